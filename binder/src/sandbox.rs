//! What the kernel refuses after the drop, as tables: seccomp(2) and landlock(7).
//!
//! A system call that is not in the table ends the process. The supervisor is told if a kernel supports only one of
//! the two or none, and decides whether that is enough.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use common::for_user::{DIRECTORY_MODE, FILE_MODE, NEW_FILE};
use common::message::{Confinement, Kind};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use libc::{
    AF_INET, AF_INET6, AF_UNIX, AT_EMPTY_PATH, IP_FREEBIND, IPPROTO_IP, IPPROTO_IPV6, IPV6_V6ONLY,
    MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, O_CLOEXEC, O_NOFOLLOW, O_PATH, PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL, PR_SET_NO_NEW_PRIVS, PROT_EXEC, SECCOMP_SET_MODE_FILTER,
    SO_REUSEADDR, SO_REUSEPORT, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET, SYS_bind,
    SYS_brk, SYS_capget, SYS_capset, SYS_close, SYS_exit_group, SYS_fchmod, SYS_fchownat,
    SYS_fstat, SYS_landlock_restrict_self, SYS_madvise, SYS_mkdirat, SYS_mmap, SYS_mremap,
    SYS_munmap, SYS_newfstatat, SYS_openat, SYS_prctl, SYS_recvfrom, SYS_recvmsg, SYS_seccomp,
    SYS_sendmsg, SYS_setsockopt, SYS_sigaltstack, SYS_socket, SYS_umask, SYS_unlinkat, SYS_write,
    c_int, c_long,
};
use nix::errno::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The remaining work of the process.
#[derive(Default)]
pub struct Work<'a> {
    pub tcp_ports: Vec<u16>,
    pub udp: bool,
    /// Whether a UDP port has several sockets.
    pub udp_lanes: bool,
    /// Whether an address may be one that no interface has yet.
    pub freebind: bool,
    /// Where something will be made, and what.
    pub directories: Vec<(BorrowedFd<'a>, What)>,
    /// Whether anything of it gets another owner.
    pub owners: bool,
}

/// What is made in a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    Socket,
    ForUser(Kind),
}

impl What {
    /// What it takes to make it.
    fn making(self) -> BitFlags<AccessFs> {
        match self {
            What::Socket => self.removing() | AccessFs::MakeSock,
            // A descriptor can never do more than was allowed when it was opened.
            What::ForUser(Kind::File) => {
                let written = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
                self.removing() | written | AccessFs::MakeReg
            }
            What::ForUser(Kind::Directory) => AccessFs::MakeDir.into(),
        }
    }

    /// What it takes to remove it at the end; a directory stays.
    fn removing(self) -> BitFlags<AccessFs> {
        match self {
            What::Socket | What::ForUser(Kind::File) => AccessFs::RemoveFile.into(),
            What::ForUser(Kind::Directory) => BitFlags::EMPTY,
        }
    }
}

/// The second layers, for the process that only waits: ready to be added to the first ones.
pub struct Narrower {
    ruleset: RulesetCreated,
    filter: Option<BpfProgram>,
}

/// Confines the process to this work for good. A second, narrower confinement follows the work if files must be removed at
/// the end.
///
/// # Errors
/// Anything but a kernel without support.
pub fn confine(work: &Work<'_>) -> Result<(Confinement, Option<Narrower>), String> {
    let lasts = !work.directories.is_empty();
    let binding = ruleset(work, What::making)?;
    let waiting = lasts
        .then(|| ruleset(&work.afterwards(), What::removing))
        .transpose()?;
    let landlock = restrict(binding)?;
    let seccomp = install(program(&binding_calls(work))?.as_ref())?;
    let narrower = match waiting {
        Some(ruleset) => Some(Narrower {
            ruleset,
            filter: program(&WAITING.concat())?.filter(|_| seccomp),
        }),
        None => None,
    };
    Ok((Confinement { seccomp, landlock }, narrower))
}

impl Narrower {
    /// From here on it can only answer once, wait, and remove files.
    pub fn confine(self) -> Result<(), String> {
        restrict(self.ruleset)?;
        install(self.filter.as_ref()).map(drop)
    }
}

impl<'a> Work<'a> {
    /// What is left once everything is bound.
    fn afterwards(&self) -> Work<'a> {
        Work {
            directories: self.directories.clone(),
            ..Work::default()
        }
    }
}

/// The newest ABI version that is used: what later ones add is neither needed nor known.
const LANDLOCK: ABI = ABI::V6;
const _: () = assert!(LANDLOCK as u8 == Confinement::LANDLOCK);

/// No file, no port, no signal to an outside process, no outside abstract socket, except the ports of the work and the
/// rights that what is made in its directories takes.
fn ruleset(
    work: &Work<'_>,
    rights: fn(What) -> BitFlags<AccessFs>,
) -> Result<RulesetCreated, String> {
    let build = || {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?;
        for port in &work.tcp_ports {
            ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
        }
        let rules = work
            .directories
            .iter()
            .map(|(at, what)| (at, rights(*what)));
        // The kernel knows no rule without a right.
        for (directory, rights) in rules.filter(|(_, rights)| !rights.is_empty()) {
            ruleset = ruleset.add_rule(PathBeneath::new(directory, rights))?;
        }
        Ok(ruleset)
    };
    build().map_err(|error: landlock::RulesetError| format!("cannot set Landlock up: {error}"))
}

/// The version in force, 0 if the kernel has none.
fn restrict(ruleset: RulesetCreated) -> Result<u8, String> {
    let status = ruleset
        .restrict_self()
        .map_err(|error| format!("cannot be confined by Landlock: {error}"))?;
    // It also succeeds if nothing is enforced.
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => Ok(0),
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            Ok(effective_abi.min(LANDLOCK) as u8)
        }
        (_, LandlockStatus::NotEnabled | LandlockStatus::NotImplemented) => Ok(0),
    }
}

/// Whether the kernel accepted it. `None` means that no filter can be built for this machine.
fn install(filter: Option<&BpfProgram>) -> Result<bool, String> {
    let Some(filter) = filter else {
        return Ok(false);
    };
    match seccompiler::apply_filter(filter) {
        Ok(()) => Ok(true),
        Err(seccompiler::Error::Seccomp(error)) if is_unavailable(&error) => Ok(false),
        Err(error) => Err(format!("cannot be confined by seccomp: {error}")),
    }
}

/// A kernel without seccomp, or a container or unit that forbids its use.
fn is_unavailable(error: &std::io::Error) -> bool {
    [Errno::ENOSYS, Errno::EINVAL, Errno::EPERM, Errno::EACCES]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// A system call that is allowed, by number, and conditions on its arguments.
type Call = (c_long, &'static [Argument]);

#[derive(Clone, Copy)]
enum Argument {
    /// Of 32 bits: the number of the argument, and its value.
    Is(u8, c_int),
    /// None of these bits is set.
    Lacks(u8, c_int),
    /// Not less than this.
    IsAtLeast(u8, c_int),
}

use Argument::{Is, IsAtLeast, Lacks};

const CHANNEL: c_int = 0;
const STDERR: c_int = 2;
const STREAM: c_int = SOCK_STREAM | SOCK_CLOEXEC;
const DATAGRAM: c_int = SOCK_DGRAM | SOCK_CLOEXEC;

/// In every phase.
const ALWAYS: &[Call] = &[
    // The answer. Other flags could connect to a port (MSG_FASTOPEN), which Landlock does not see.
    (SYS_sendmsg, &[Is(0, CHANNEL), Is(2, MSG_NOSIGNAL)]),
    // The error message, in one line.
    (SYS_write, &[Is(0, STDERR)]),
    // Sockets that were sent, and the channel.
    (SYS_close, &[]),
    // Before that, in builds with debug assertions, the standard library checks whether it is open.
    #[cfg(debug_assertions)]
    (libc::SYS_fcntl, &[Is(1, libc::F_GETFD)]),
    // The allocator. No writable memory is ever executable.
    (SYS_brk, &[]),
    (SYS_mmap, &[Lacks(2, PROT_EXEC)]),
    (SYS_munmap, &[]),
    (SYS_mremap, &[]),
    (SYS_madvise, &[]),
    // Exit: the standard library frees the stack for its handlers.
    (SYS_sigaltstack, &[]),
    (SYS_exit_group, &[]),
];

/// While requests are answered.
const SERVING: &[Call] = &[
    // Requests.
    (SYS_recvmsg, &[Is(0, CHANNEL), Is(2, MSG_CMSG_CLOEXEC)]),
    (SYS_bind, &[]),
    // Capabilities, which can only be given up: the last ones are, before the last answer.
    (SYS_capget, &[]),
    (SYS_capset, &[]),
    (
        SYS_prctl,
        &[Is(0, PR_CAP_AMBIENT), Is(1, PR_CAP_AMBIENT_CLEAR_ALL)],
    ),
];

/// If a TCP port is requested. The protocol is the default one: MPTCP is not restricted to ports.
const TCP: &[Call] = &[
    (SYS_socket, &[Is(0, AF_INET), Is(1, STREAM), Is(2, 0)]),
    (SYS_socket, &[Is(0, AF_INET6), Is(1, STREAM), Is(2, 0)]),
    (SYS_setsockopt, &[Is(1, SOL_SOCKET), Is(2, SO_REUSEADDR)]),
    (SYS_setsockopt, &[Is(1, IPPROTO_IPV6), Is(2, IPV6_V6ONLY)]),
];

/// If a UDP port is requested.
const UDP: &[Call] = &[
    (SYS_socket, &[Is(0, AF_INET), Is(1, DATAGRAM), Is(2, 0)]),
    (SYS_socket, &[Is(0, AF_INET6), Is(1, DATAGRAM), Is(2, 0)]),
    (SYS_setsockopt, &[Is(1, IPPROTO_IPV6), Is(2, IPV6_V6ONLY)]),
];

/// If a UDP port has several sockets.
const UDP_LANES: &[Call] = &[(SYS_setsockopt, &[Is(1, SOL_SOCKET), Is(2, SO_REUSEPORT)])];

/// If an address may be one that no interface has yet.
const FREEBIND: &[Call] = &[(SYS_setsockopt, &[Is(1, IPPROTO_IP), Is(2, IP_FREEBIND)])];

/// If a socket file will be created. No connect(2): other services would take a client for root.
const SOCKETS: &[Call] = &[
    (SYS_socket, &[Is(0, AF_UNIX), Is(1, STREAM), Is(2, 0)]),
    // The mode of the file, by way of its socket. Not that of the files that it was started with, and no setuid bit.
    (SYS_fchmod, &[IsAtLeast(0, STDERR + 1), Lacks(1, !0o777)]),
];

/// If a file or a directory will be made for the user: nothing that is there can be opened.
const FILE: &[Call] = &[(
    SYS_openat,
    &[Is(2, NEW_FILE.bits()), Is(3, FILE_MODE.cast_signed())],
)];
const DIRECTORY: &[Call] = &[(SYS_mkdirat, &[Is(2, DIRECTORY_MODE.cast_signed())])];

/// If anything will be made in a directory.
const FILES: &[Call] = &[
    (SYS_umask, &[]),
    // The new file, only to identify it: this descriptor cannot read it.
    (SYS_openat, &[Is(2, O_PATH | O_NOFOLLOW | O_CLOEXEC)]),
    // The second layers.
    (SYS_prctl, &[Is(0, PR_SET_NO_NEW_PRIVS), Is(1, 1)]),
    (SYS_landlock_restrict_self, &[]),
    (SYS_seccomp, &[Is(0, SECCOMP_SET_MODE_FILTER as c_int)]),
];

/// If it gets an owner: by its descriptor.
const OWNERS: &[Call] = &[(SYS_fchownat, &[Is(4, AT_EMPTY_PATH)])];

/// If files are removed: what is still there, and is it what was created.
const REMOVING: &[Call] = &[
    (SYS_newfstatat, &[]),
    (SYS_fstat, &[]),
    (SYS_unlinkat, &[Is(2, 0)]),
];

/// The supervisor's exit.
const WAITS: &[Call] = &[(SYS_recvfrom, &[Is(0, CHANNEL)])];

/// Once everything is bound, if files must be removed at the end.
const WAITING: &[&[Call]] = &[ALWAYS, REMOVING, WAITS];

fn binding_calls(work: &Work<'_>) -> Vec<Call> {
    let files = !work.directories.is_empty();
    let makes = |what: What| work.directories.iter().any(|(_, one)| *one == what);
    [
        (true, ALWAYS),
        (true, SERVING),
        (!work.tcp_ports.is_empty(), TCP),
        (work.udp, UDP),
        (work.udp_lanes, UDP_LANES),
        (work.freebind, FREEBIND),
        (makes(What::Socket), SOCKETS),
        (makes(What::ForUser(Kind::File)), FILE),
        (makes(What::ForUser(Kind::Directory)), DIRECTORY),
        (files, FILES),
        (files && work.owners, OWNERS),
        (files, REMOVING),
        (files, WAITS),
    ]
    .into_iter()
    .filter(|(needed, _)| *needed)
    .flat_map(|(_, calls)| calls)
    .copied()
    .collect()
}

/// The table for the kernel; `None` on a machine that cannot have one.
fn program(calls: &[Call]) -> Result<Option<BpfProgram>, String> {
    let Ok(machine) = TargetArch::try_from(std::env::consts::ARCH) else {
        return Ok(None);
    };
    let compile = || {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for (number, arguments) in calls {
            // Without a rule any argument is allowed.
            let alternatives = rules.entry(*number).or_default();
            if !arguments.is_empty() {
                let conditions = arguments.iter().map(condition).collect::<Result<_, _>>()?;
                alternatives.push(SeccompRule::new(conditions)?);
            }
        }
        let (otherwise, allowed) = (SeccompAction::KillProcess, SeccompAction::Allow);
        BpfProgram::try_from(SeccompFilter::new(rules, otherwise, allowed, machine)?)
    };
    compile()
        .map(Some)
        .map_err(|error: seccompiler::BackendError| {
            format!("cannot make a seccomp filter: {error}")
        })
}

fn condition(argument: &Argument) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (place, comparison, value) = match *argument {
        Is(place, value) => (place, SeccompCmpOp::Eq, value),
        Lacks(place, bits) => (
            place,
            SeccompCmpOp::MaskedEq(bits.cast_unsigned().into()),
            0,
        ),
        IsAtLeast(place, value) => (place, SeccompCmpOp::Ge, value),
    };
    SeccompCondition::new(
        place,
        SeccompCmpArgLen::Dword,
        comparison,
        value.cast_unsigned().into(),
    )
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
