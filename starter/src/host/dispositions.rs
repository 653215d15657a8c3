//! Signal dispositions of this process, for signals that it does not handle, and of a worker.

use common::signals;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::order::CARRIER;

/// Signals that keep the default disposition: those that the supervisor handles itself, and those of job control, which
/// stop nothing for good.
const DEFAULT: [Signal; 13] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCHLD,
    Signal::SIGXCPU,
    CARRIER,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGWINCH,
];

/// Resets what the launcher ignored or set, because exec preserves it (nohup ignores HUP, some shells INT), and its
/// timers. Every other signal is ignored except for faults of the process itself: nobody wants a VTALRM or a real-time
/// signal to kill the superdaemon and leave its workers running. Writing to a closed pipe (PIPE), or beyond the file size
/// limit (XFSZ), is an error instead.
pub fn reset() {
    signals::reset_all();
    signals::stop_timers();
    signals::ignore_all_but(&DEFAULT);
}

/// What is left of [`reset`] for a program that goes on where another one has stopped. An exec keeps what is ignored, but
/// Rust's runtime catches two faults at the start, and lets the first one that somebody sends pass without effect.
#[expect(unsafe_code, reason = "sigaction(2)")]
pub fn reset_after_exec() {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for fault in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default runs no code of ours. It fails only for KILL and STOP.
        let _ = unsafe { sigaction(fault, &action) };
    }
}

/// Catches a signal that is blocked and read from a descriptor: the handler never runs. A service manager may look for it in
/// `/proc/PID/status`, because one that is not caught would end us.
#[expect(unsafe_code, reason = "sigaction(2)")]
pub fn catch(signal: Signal) -> nix::Result<()> {
    extern "C" fn do_nothing(_: libc::c_int) {}
    let action = SigAction::new(
        SigHandler::Handler(do_nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing, which it may do at any moment.
    unsafe { sigaction(signal, &action) }.map(drop)
}

/// Ends this process at a signal, as the default disposition would: the kernel never applies that to the first process of
/// a pid namespace. The exit code is what a shell shows.
#[expect(unsafe_code, reason = "sigaction(2)")]
pub fn end_at(signal: Signal) -> nix::Result<()> {
    extern "C" fn end(number: libc::c_int) {
        // SAFETY: _exit(2) only ends the process, which it may do at any moment.
        unsafe { libc::_exit(128 + number) }
    }
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler only ends the process, which it may do at any moment.
    unsafe { sigaction(signal, &action) }.map(drop)
}

/// The dispositions of a worker: as Server::Starter leaves them, with SIGPIPE ignored and nothing else.
pub fn reset_for_worker() {
    signals::reset_all();
    signals::ignore(Signal::SIGPIPE);
}
