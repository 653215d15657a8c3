//! Creating and ending processes, and identifying them by more than their number.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use common::signals::reset_all;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{ForkResult, Pid, getppid, getuid, read, setsid};

use super::order::{CARRIER, Order};

/// fork(2), for a process that has one thread.
#[expect(
    unsafe_code,
    reason = "a worker and a daemon need processes of their own"
)]
pub fn fork_single_threaded() -> nix::Result<ForkResult> {
    // SAFETY: start_server has one thread only, so the child finds no lock that a vanished thread holds.
    unsafe { nix::unistd::fork() }
}

/// Ends a forked child without the exit handlers and guards of its parent.
#[expect(
    unsafe_code,
    reason = "std::process::exit would run the exit handlers that the parent has set up"
)]
pub fn exit_child(code: u8) -> ! {
    // SAFETY: _exit(2) only ends the process.
    unsafe { libc::_exit(code.into()) }
}

/// Reaps one child, worker or not, and returns its raw wait status.
pub fn reap() -> nix::Result<Option<(Pid, i32)>> {
    wait(Pid::from_raw(-1), libc::WNOHANG)
}

/// The same for this child and no other.
pub fn reap_child(child: Pid) -> nix::Result<Option<i32>> {
    Ok(wait(child, libc::WNOHANG)?.map(|(_, status)| status))
}

/// Waits until this child has exited, and reaps it.
///
/// # Errors
/// `ECHILD` if it is no child of ours.
pub fn wait_for(child: Pid) -> nix::Result<ExitStatus> {
    let (_, status) = wait(child, 0)?.ok_or(Errno::ECHILD)?;
    Ok(ExitStatus::from_raw(status))
}

/// nix cannot do this: it cannot represent death by a real-time signal, and that child would be lost.
#[expect(
    unsafe_code,
    reason = "nix's waitpid loses children that a real-time signal killed"
)]
fn wait(child: Pid, flags: libc::c_int) -> nix::Result<Option<(Pid, i32)>> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int, to a local variable.
    match Errno::result(unsafe { libc::waitpid(child.as_raw(), &raw mut status, flags) }) {
        Ok(0) | Err(Errno::ECHILD) => Ok(None),
        Ok(pid) => Ok(Some((Pid::from_raw(pid), status))),
        Err(Errno::EINTR) => wait(child, flags),
        Err(errno) => Err(errno),
    }
}

/// A child that has exited, or this one if it has, with its wait status. It is not reaped: its pid stays its own.
#[expect(
    unsafe_code,
    reason = "nix cannot represent death by a real-time signal"
)]
pub fn exited(child: Option<Pid>) -> nix::Result<Option<(Pid, i32)>> {
    let (which, id) = match child {
        Some(child) => (libc::P_PID, child.as_raw().unsigned_abs()),
        None => (libc::P_ALL, 0),
    };
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: waitid(2) writes one siginfo, to a local variable.
    match Errno::result(unsafe { libc::waitid(which, id, &raw mut info, flags) }) {
        Err(Errno::ECHILD) => return Ok(None),
        Err(Errno::EINTR) => return exited(child),
        Err(errno) => return Err(errno),
        Ok(_) => {}
    }
    // SAFETY: waitid(2) has filled in this field, or left the zero.
    let pid = unsafe { info.si_pid() };
    // SAFETY: the same.
    let status = unsafe { info.si_status() };
    let status = match info.si_code {
        libc::CLD_EXITED => status << 8,
        libc::CLD_DUMPED => status | 0x80,
        _ => status,
    };
    Ok((pid != 0).then(|| (Pid::from_raw(pid), status)))
}

/// In a new child: waits until its parent has opened the gate by writing a byte. If the parent dies before that and the child
/// is not known to anybody else, it ends, and nobody has ever known it.
pub fn wait_at(gate: BorrowedFd<'_>, parent: Pid, is_known: impl Fn() -> bool) -> nix::Result<()> {
    let process = Process::open(parent);
    // If it has died before that, the pid may be another process's.
    let is_there = getppid() == parent;
    if let (Ok(process), true) = (&process, is_there) {
        let mut sources = [gate, process.as_fd()].map(|one| PollFd::new(one, PollFlags::POLLIN));
        while poll(&mut sources, PollTimeout::NONE) == Err(Errno::EINTR) {}
        // Its death counts only if the gate is closed.
        let is_open = sources[0].any().unwrap_or_default();
        if is_open && read(gate, &mut [0])? == 1 {
            return Ok(());
        }
    }
    match process {
        Err(errno) if is_there && errno != Errno::ESRCH => Err(errno),
        _ if is_known() => Ok(()),
        _ => exit_child(255),
    }
}

/// Whether this is the first process of a pid namespace, such as that of a container.
pub fn is_first() -> bool {
    Pid::this().as_raw() == 1
}

/// Whether this process adopts the orphans among its descendants (`PR_SET_CHILD_SUBREAPER`).
pub fn adopt_orphans(adopt: bool) {
    // It fails only on kernels before 3.4, which cannot do it.
    let _ = set_child_subreaper(adopt);
}

/// Gives a command of ours a session of its own: a terminal's INT is meant for the server, which the log outlives; and a
/// worker, which has the same uid, must not find a way to root's terminal there. Signals are reset, because the
/// standard library passes on what we block and ignore.
#[expect(
    unsafe_code,
    reason = "only a hook can change the session and the signals of a command"
)]
pub fn detach(command: &mut Command) {
    let detach = || {
        setsid()?;
        reset_all();
        Ok(sigprocmask(
            SigmaskHow::SIG_SETMASK,
            Some(&SigSet::empty()),
            None,
        )?)
    };
    // SAFETY: the hook makes system calls only and touches no memory of the process.
    unsafe { command.pre_exec(detach) };
}

/// A process that stays the same even if its pid is reused (pidfd_open(2)). Readable once it has exited.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    #[expect(unsafe_code, reason = "nix has no pidfd_open")]
    pub fn open(pid: Pid) -> nix::Result<Process> {
        use std::os::fd::FromRawFd;
        // SAFETY: it takes numbers only.
        let number =
            Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
        let number = i32::try_from(number).map_err(|_| Errno::EBADF)?;
        // SAFETY: pidfd_open(2) has just created this descriptor, and nothing else has seen its number.
        Ok(Process(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// Whether it has exited.
    pub fn has_exited(&self) -> bool {
        let mut source = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut source, PollTimeout::ZERO) != Ok(0)
    }

    /// A copy of one of its descriptors, for callers that may trace it (pidfd_getfd(2)).
    #[expect(unsafe_code, reason = "nix has no pidfd_getfd")]
    pub fn descriptor(&self, number: i32) -> nix::Result<OwnedFd> {
        use std::os::fd::{AsRawFd, FromRawFd};
        // SAFETY: it takes numbers only.
        let copy = Errno::result(unsafe {
            libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0)
        })?;
        let copy = i32::try_from(copy).map_err(|_| Errno::EBADF)?;
        // SAFETY: pidfd_getfd(2) has just created this descriptor, and nothing else has seen its number.
        Ok(unsafe { OwnedFd::from_raw_fd(copy) })
    }

    /// Sends a signal to this process and no other.
    #[expect(unsafe_code, reason = "nix has no pidfd_send_signal")]
    pub fn signal(&self, signal: Signal) -> nix::Result<()> {
        use std::os::fd::AsRawFd;
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: without a siginfo it takes numbers only.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as i32,
                info,
                0,
            )
        };
        Errno::result(sent).map(drop)
    }

    /// Sends an order to this process and no other.
    #[expect(
        unsafe_code,
        reason = "nix has no pidfd_send_signal, and no siginfo to send"
    )]
    pub fn order(&self, order: Order) -> nix::Result<()> {
        use std::os::fd::AsRawFd;
        let info = Queued::new(order);
        // SAFETY: it reads as many bytes as a siginfo has, from a local variable that is as large.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                CARRIER as i32,
                &raw const info,
                0,
            )
        };
        Errno::result(sent).map(drop)
    }
}

/// A siginfo for a signal with a value, as the kernel reads it (rt_sigqueueinfo(2)): libc's has no such fields.
#[repr(C)]
struct Queued {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    fields: Fields,
    rest: [u8; 104],
}

/// Aligned as a pointer, because a value can be one.
#[repr(C)]
struct Fields {
    pid: libc::pid_t,
    uid: libc::uid_t,
    value: Value,
}

#[repr(C)]
union Value {
    number: libc::c_int,
    pointer: *const libc::c_void,
}

impl Queued {
    fn new(order: Order) -> Queued {
        const { assert!(size_of::<Queued>() >= size_of::<libc::siginfo_t>()) };
        let mut value = Value {
            pointer: std::ptr::null(),
        };
        value.number = order.value();
        Queued {
            signal: CARRIER as i32,
            errno: 0,
            code: libc::SI_QUEUE,
            fields: Fields {
                pid: Pid::this().as_raw(),
                uid: getuid().as_raw(),
                value,
            },
            rest: [0; 104],
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
