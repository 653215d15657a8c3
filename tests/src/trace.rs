//! Holding a process before each call that takes a name away: races are provoked there instead of waited for.
//!
//! Sources: ptrace(2), rename(2), unlink(2).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// `PTRACE_SYSCALL_INFO_ENTRY` of ptrace(2).
const ENTRY: u8 = 1;

/// The calls that take names away or give them to something else, and which of their arguments are paths.
const CALLS: &[(libc::c_long, &[usize])] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, &[0]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, &[0, 1]),
    (libc::SYS_unlinkat, &[1]),
    (libc::SYS_renameat, &[1, 3]),
    (libc::SYS_renameat2, &[1, 3]),
];

/// Traces a process that was started with [`Setup::traced`](crate::Setup::traced) by this thread until it is about to
/// exit. Before each call that takes a name away, `held` is told the paths in it.
///
/// # Panics
/// If it cannot be traced, or is killed.
pub fn at_each_removal(pid: Pid, mut held: impl FnMut(&[PathBuf])) {
    wait(pid);
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEEXIT
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, options).expect("cannot set the options");
    let mut signal = None;
    loop {
        ptrace::syscall(pid, signal.take()).expect("cannot go on");
        match wait(pid) {
            WaitStatus::PtraceSyscall(_) => {
                let paths = paths(pid);
                if !paths.is_empty() {
                    held(&paths);
                }
            }
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT) => break,
            // The exec of a program, here or in what ran before it.
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, come) => signal = Some(come),
            other => panic!("it is not held: {other:?}"),
        }
    }
    ptrace::detach(pid, None).expect("cannot let it go");
}

/// Traces a process that was started with [`Setup::traced`](crate::Setup::traced) by this thread until it is about to
/// exit, and holds each child that it forks before the child does anything. Returns these children.
///
/// # Panics
/// If it cannot be traced, or is killed.
pub fn holding_children(pid: Pid) -> Vec<Pid> {
    wait(pid);
    let options = Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEEXIT
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, options).expect("cannot set the options");
    let mut children = Vec::new();
    ptrace::cont(pid, None).expect("cannot go on");
    loop {
        let mut signal = None;
        // Of this thread alone; and a child that was killed, its parent sees only when its tracer has seen it.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        match waitpid(Pid::from_raw(-1), Some(flags)).expect("cannot wait for them") {
            // Killed, it stops a last time.
            WaitStatus::PtraceEvent(child, _, libc::PTRACE_EVENT_EXIT) if child != pid => {
                ptrace::cont(child, None).expect("cannot let it end");
                continue;
            }
            status if status.pid() != Some(pid) => continue,
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT) => break,
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_FORK) => {
                let child = ptrace::getevent(pid).expect("no child");
                children.push(Pid::from_raw(i32::try_from(child).expect("a pid")));
            }
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, stopped_by) => signal = Some(stopped_by),
            other => panic!("it is not held: {other:?}"),
        }
        ptrace::cont(pid, signal).expect("cannot go on");
    }
    ptrace::detach(pid, None).expect("cannot let it go");
    children
}

fn wait(pid: Pid) -> WaitStatus {
    waitpid(pid, Some(WaitPidFlag::__WALL)).expect("cannot wait for it")
}

/// The paths in the call that it is about to make, if that is one of [`CALLS`].
#[expect(
    unsafe_code,
    reason = "which part of a union is valid, the kernel says in `op`"
)]
fn paths(pid: Pid) -> Vec<PathBuf> {
    let info = ptrace::syscall_info(pid).expect("cannot look at it");
    if info.op != ENTRY {
        return Vec::new();
    }
    // SAFETY: at the entry of a call this is the part that the kernel has filled.
    let entry = unsafe { info.u.entry };
    let call = CALLS
        .iter()
        .find(|(number, _)| u64::try_from(*number) == Ok(entry.nr));
    let arguments = call.into_iter().flat_map(|(_, arguments)| *arguments);
    arguments
        .map(|argument| read_path(pid, entry.args[*argument]))
        .collect()
}

fn read_path(pid: Pid, address: u64) -> PathBuf {
    let mut address = usize::try_from(address).expect("an address");
    let mut bytes = Vec::new();
    loop {
        let pointer = std::ptr::without_provenance_mut(address);
        let word = ptrace::read(pid, pointer).expect("cannot read its memory");
        for byte in word.to_ne_bytes() {
            if byte == 0 {
                return OsString::from_vec(bytes).into();
            }
            bytes.push(byte);
        }
        address += size_of_val(&word);
    }
}
