//! What /proc says about a process.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::words::failure::{self, Failure};

/// The largest environment that execve(2) accepts, in bytes. A process can point the kernel to more (prctl(2),
/// `PR_SET_MM_ENV_END`).
const LARGEST_ENVIRONMENT: u64 = 6 << 20;

/// /proc/PID/status.
#[derive(Debug, PartialEq, Eq)]
pub struct Status {
    /// Real, effective, saved, file system.
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    /// Ascending.
    pub groups: Vec<u32>,
    pub permitted: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub ambient: u64,
    pub bounding: u64,
    pub no_new_privs: bool,
    pub seccomp_filters: u32,
    /// Bit N-1 is signal N.
    pub blocked: u64,
    pub ignored: u64,
    pub threads: u32,
    parent: i32,
}

/// The lines of /proc/PID/status, for callers that need only one or two: kernels differ in which they write.
pub struct Fields(String);

impl Fields {
    pub fn of(pid: Pid) -> io::Result<Fields> {
        fs::read_to_string(path(pid, "status")).map(Fields)
    }

    pub fn of_this_process() -> io::Result<Fields> {
        fs::read_to_string("/proc/self/status").map(Fields)
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(str::trim)
    }

    fn numbers(&self, name: &str) -> Option<Vec<u32>> {
        let words = self.field(name)?.split_whitespace();
        words.map(|word| word.parse().ok()).collect()
    }

    /// The user who may send signals to it, as the user who started it.
    pub fn real_user(&self) -> Option<u32> {
        self.numbers("Uid")?.first().copied()
    }

    pub fn parent(&self) -> Option<Pid> {
        self.field("PPid")?.parse().ok().map(Pid::from_raw)
    }

    /// Whether it has ended, and its parent has not taken note of that yet.
    pub fn is_zombie(&self) -> bool {
        self.field("State")
            .is_some_and(|state| state.starts_with('Z'))
    }

    /// Whether it is stopped, by a signal or a debugger.
    pub fn is_stopped(&self) -> bool {
        self.field("State")
            .is_some_and(|state| state.starts_with(['T', 't']))
    }

    /// Its pids, from the pid namespace of whoever mounted /proc to its own. None where the kernel has no such namespaces.
    fn pids(&self) -> Option<Vec<i32>> {
        let words = self.field("NSpid")?.split_whitespace();
        Some(words.filter_map(|word| word.parse().ok()).collect())
    }

    /// Its pid in its own pid namespace, where that is an inner one.
    fn inner_pid(&self) -> Option<Pid> {
        match self.pids()?[..] {
            [_, .., inner] => Some(Pid::from_raw(inner)),
            _ => None,
        }
    }

    /// Whether a seccomp filter decides on its system calls.
    pub fn is_filtered(&self) -> bool {
        self.field("Seccomp") == Some("2")
    }
}

/// Whether a pid that /proc shows is one that system calls of this process understand: it was mounted in the pid namespace
/// of this process. In an outer one this process has several pids, and in any other none.
pub fn shows_our_namespace() -> bool {
    Fields::of_this_process().is_ok_and(|fields| fields.inner_pid().is_none())
}

/// The pid that a process, known by a pidfd, has where it lives, if that is not our pid namespace but an inner one (see
/// pidfd_open(2) and proc_pid_fdinfo(5)). For whoever has seen that /proc [shows our namespace](shows_our_namespace).
pub fn inner_pid(process: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    let info = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    Ok(Fields(fs::read_to_string(info)?).inner_pid())
}

impl Status {
    pub fn of(pid: Pid) -> Result<Status, Failure> {
        let cannot =
            |cause: &str| Failure::failed(format!("cannot read {}: {cause}", path(pid, "status")));
        let fields = Fields::of(pid).map_err(|error| cannot(&failure::cause(&error)))?;
        Status::parse(&fields).ok_or_else(|| cannot("its format is unknown"))
    }

    fn parse(fields: &Fields) -> Option<Status> {
        let field = |name: &str| fields.field(name);
        let numbers = |name: &str| fields.numbers(name);
        let mask = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        let mut groups = numbers("Groups")?;
        groups.sort_unstable();
        groups.dedup();
        Some(Status {
            uids: numbers("Uid")?,
            gids: numbers("Gid")?,
            groups,
            permitted: mask("CapPrm")?,
            effective: mask("CapEff")?,
            inheritable: mask("CapInh")?,
            ambient: mask("CapAmb")?,
            bounding: mask("CapBnd")?,
            no_new_privs: field("NoNewPrivs")? == "1",
            // A kernel without seccomp omits it.
            seccomp_filters: field("Seccomp_filters")
                .map_or(Some(0), |count| count.parse().ok())?,
            blocked: mask("SigBlk")?,
            ignored: mask("SigIgn")?,
            threads: field("Threads")?.parse().ok()?,
            parent: field("PPid")?.parse().ok()?,
        })
    }
}

fn path(pid: Pid, file: &str) -> String {
    format!("/proc/{pid}/{file}")
}

/// Whether there is such a process, running or not yet reaped.
pub fn exists(pid: Pid) -> bool {
    fs::exists(path(pid, "")).unwrap_or(true)
}

/// The children of a process, ascending.
pub fn children(parent: Pid) -> Result<Vec<Pid>, Failure> {
    let entries = fs::read_dir("/proc").map_err(|error| {
        Failure::failed(format!("cannot read /proc: {}", failure::cause(&error)))
    })?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let pids = entries.flatten().filter_map(number).map(Pid::from_raw);
    // A process that is gone by now is nobody's child.
    let is_child = |pid: &Pid| Status::of(*pid).is_ok_and(|it| it.parent == parent.as_raw());
    let mut children: Vec<Pid> = pids.filter(is_child).collect();
    children.sort_unstable();
    Ok(children)
}

/// The parent of every visible process. One that starts or exits meanwhile may be missing.
pub fn parents() -> BTreeMap<Pid, Pid> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let with_parent = |pid: Pid| Some((pid, Fields::of(pid).ok()?.parent()?));
    pids.map(Pid::from_raw).filter_map(with_parent).collect()
}

/// The environment that the process was executed with, unless it has overwritten it: `NAME=VALUE`, each followed by a
/// NUL.
pub fn environment(pid: Pid) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = fs::File::open(path(pid, "environ"))?;
    file.take(LARGEST_ENVIRONMENT).read_to_end(&mut text)?;
    Ok(text)
}

/// The open descriptors and what they refer to; for a socket or pipe only its kind.
pub fn descriptors(pid: Pid) -> io::Result<BTreeMap<i32, String>> {
    let mut open = BTreeMap::new();
    for entry in fs::read_dir(path(pid, "fd"))?.flatten() {
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // It has been closed in the meantime.
        if let Ok(target) = fs::read_link(entry.path()) {
            let target = target.to_string_lossy();
            let kind = match target.split_once(":[") {
                Some((kind @ ("socket" | "pipe"), _)) => kind,
                _ => &*target,
            };
            open.insert(number, kind.to_owned());
        }
    }
    Ok(open)
}

/// The inodes of the sockets that a process has open. Each descriptor that is looked at reduces `left`.
///
/// # Errors
/// If its descriptors are closed to us, or are more than that.
pub fn sockets(pid: Pid, left: &Cell<u32>) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for entry in fs::read_dir(path(pid, "fd"))? {
        let more = left.get().checked_sub(1);
        left.set(more.ok_or_else(|| io::Error::other("it has too many descriptors"))?);
        // One that cannot be read has been closed in the meantime.
        let target = entry.and_then(|entry| fs::read_link(entry.path()));
        inodes.extend(target.ok().and_then(|it| socket_inode(it.as_os_str())));
    }
    Ok(inodes)
}

/// The number in `socket:[NUMBER]`, the target of a link in /proc/PID/fd.
pub fn socket_inode(target: &OsStr) -> Option<u64> {
    let number = target.to_str()?.strip_prefix("socket:[")?;
    number.strip_suffix(']')?.parse().ok()
}

/// What a process has used so far, and uses now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// The time for which it has computed.
    pub cpu: Duration,
    /// Its memory that is resident, in bytes.
    pub resident: u64,
}

impl Usage {
    pub fn of(pid: Pid) -> Option<Usage> {
        let stat = fs::read_to_string(path(pid, "stat")).ok()?;
        let unit = |of| sysconf(of).ok().flatten().and_then(|it| it.try_into().ok());
        let (ticks, page) = (unit(SysconfVar::CLK_TCK)?, unit(SysconfVar::PAGE_SIZE)?);
        Usage::parse(&stat, ticks, page)
    }

    /// `ticks` are those of a second, a `page` is in bytes. The name may contain anything.
    fn parse(stat: &str, ticks: u64, page: u64) -> Option<Usage> {
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let field = |number: usize| fields.get(number)?.parse::<u64>().ok();
        let computed = field(11)?.saturating_add(field(12)?);
        Some(Usage {
            cpu: Duration::from_millis(computed.saturating_mul(1000).checked_div(ticks)?),
            resident: field(21)?.saturating_mul(page),
        })
    }
}

/// When a process was started, in clock ticks since the boot (proc_pid_stat(5)): it tells processes apart that have had
/// the same pid one after the other, as the first processes of containers do.
pub fn start_ticks(pid: Pid) -> Option<u64> {
    parse_start_ticks(&fs::read_to_string(path(pid, "stat")).ok()?)
}

/// The name may contain anything.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Whether two processes are known to be in the same network namespace. Unlike the link in /proc/PID/ns, which is closed to
/// other users, every file in /proc/PID/net shows it: each namespace has files of its own.
pub fn share_network(one: Pid, other: Pid) -> bool {
    let network = |pid| {
        let file = fs::metadata(path(pid, "net/dev")).ok();
        file.map(|file| (file.dev(), file.ino()))
    };
    network(one).is_some_and(|it| network(other) == Some(it))
}

/// The names of the variables that the process was executed with, in order.
pub fn variables(pid: Pid) -> io::Result<Vec<String>> {
    let bytes = environment(pid)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut names: Vec<String> = text
        .split_terminator('\0')
        .map(|entry| entry.split('=').next().unwrap_or_default().to_owned())
        .collect();
    names.sort_unstable();
    Ok(names)
}

pub fn directory(pid: Pid) -> io::Result<PathBuf> {
    fs::read_link(path(pid, "cwd"))
}

/// Whether its own user can inspect it. Root's entries there are closed to others (proc(5)); for a process of root this
/// says nothing.
pub fn is_dumpable(pid: Pid) -> io::Result<bool> {
    Ok(fs::metadata(path(pid, "environ"))?.uid() != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read() {
        let text = "Name:\tx\nPPid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t20 4 20 \nThreads:\t2\n\
                    SigBlk:\t0000000000000200\nSigIgn:\t0000000000001000\nCapInh:\t1\nCapPrm:\t400\nCapEff:\t2\n\
                    CapBnd:\t000001ffffffffff\nCapAmb:\t4\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n";
        let parse = |text: &str| Status::parse(&Fields(text.to_owned()));
        let status = parse(text).unwrap();
        assert_eq!(
            status,
            Status {
                uids: vec![1, 2, 3, 4],
                gids: vec![5, 6, 7, 8],
                groups: vec![4, 20],
                permitted: 0x400,
                effective: 2,
                inheritable: 1,
                ambient: 4,
                bounding: 0x1ff_ffff_ffff,
                no_new_privs: true,
                seccomp_filters: 3,
                blocked: 0x200,
                ignored: 0x1000,
                threads: 2,
                parent: 7,
            }
        );
        assert_eq!(parse(&text.replace("CapBnd", "Else")), None);
        let without = text.replace("Seccomp_filters:\t3\n", "");
        assert_eq!(parse(&without).unwrap().seccomp_filters, 0);
    }

    #[test]
    fn single_fields_are_read() {
        let fields = |text: &str| Fields(text.to_owned());
        let running =
            fields("State:\tS (sleeping)\nUid:\t1\t2\t3\t4\nSeccomp:\t0\nSeccomp_filters:\t2\n");
        assert_eq!(running.real_user(), Some(1));
        assert!(!running.is_stopped() && !running.is_filtered());
        assert!(fields("State:\tT (stopped)\n").is_stopped());
        assert!(fields("State:\tt (tracing stop)\n").is_stopped());
        assert!(fields("Seccomp:\t2\n").is_filtered());
        assert_eq!(fields("").real_user(), None);
        let inner_pid = |text: &str| fields(text).inner_pid().map(Pid::as_raw);
        assert_eq!(inner_pid("Pid:\t7\nNSpid:\t7\n"), None);
        assert_eq!(inner_pid("Pid:\t7\nNSpid:\t7\t5\t1\n"), Some(1));
        assert_eq!(inner_pid("Pid:\t7\n"), None);
    }

    #[test]
    fn what_a_process_uses_is_read_whatever_its_name() {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194304 90 0 0 0 150 50 9 9 20 0 1 0 100 4096000 300 18446744073709551615";
        let usage = Usage {
            cpu: Duration::from_secs(2),
            resident: 300 * 4096,
        };
        assert_eq!(Usage::parse(stat, 100, 4096), Some(usage));
        assert_eq!(Usage::parse("7 (a) S 1", 100, 4096), None);
        assert!(Usage::of(nix::unistd::getpid()).unwrap().resident > 100_000);
    }

    #[test]
    fn the_start_of_a_process_is_read_whatever_its_name() {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194304 90 0 0 0 150 50 9 9 20 0 1 0 100 4096000 300";
        assert_eq!(parse_start_ticks(stat), Some(100));
        assert_eq!(parse_start_ticks("7 (a) S 1"), None);
        assert!(start_ticks(nix::unistd::getpid()).is_some());
    }

    #[test]
    fn the_sockets_of_a_process_are_found_by_their_inodes() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let inode = socket_inode(link.as_os_str()).unwrap();
        let ourselves = nix::unistd::getpid();
        assert!(
            sockets(ourselves, &Cell::new(10_000))
                .unwrap()
                .contains(&inode)
        );
        assert!(sockets(ourselves, &Cell::new(0)).is_err());
        assert!(share_network(ourselves, nix::unistd::getppid()));
        assert!(!share_network(ourselves, Pid::from_raw(i32::MAX)));
    }

    #[test]
    fn this_process_is_found_in_proc() {
        let (ourselves, parent) = (nix::unistd::getpid(), nix::unistd::getppid());
        assert!(exists(ourselves));
        assert!(children(parent).unwrap().contains(&ourselves));
        assert_eq!(parents().get(&ourselves), Some(&parent));
        assert!(descriptors(ourselves).unwrap().contains_key(&2));
        assert_eq!(Status::of(ourselves).unwrap().parent, parent.as_raw());
    }
}
