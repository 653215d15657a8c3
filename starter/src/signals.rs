//! The signals of the supervisor: a known state at start, whatever the launcher left, then taken one by one.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What the supervisor takes itself. As PID 1 it would not get them otherwise.
const TAKEN: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCHLD,
];

/// Those of them that end the superdaemon.
pub const STOPS: [Signal; 3] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// The taken signals, blocked and read here.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// Resets every disposition and the mask, because exec hands on what the launcher ignored (nohup ignores HUP, some
/// shells INT) or blocked. From here on no HUP is lost: it waits. Orders to stop still end the process at once, while
/// there is nothing to clean up.
pub fn reset() -> nix::Result<()> {
    for number in 1..=64 {
        reset_disposition(number);
    }
    ignore_pipe()?;
    let waiting: SigSet = TAKEN
        .into_iter()
        .filter(|signal| !STOPS.contains(signal))
        .collect();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&waiting), None)
}

impl Signals {
    /// Takes the signals over: none is lost from here on, and none ends the process.
    pub fn take() -> nix::Result<Signals> {
        let taken: SigSet = TAKEN.into_iter().collect();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&taken), None)?;
        SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Signals)
    }

    /// The signals that have come since the last call.
    pub fn read(&self) -> nix::Result<Vec<Signal>> {
        let mut come = Vec::new();
        loop {
            match self.0.read_signal() {
                Ok(Some(info)) => {
                    let signal = i32::try_from(info.ssi_signo).map_err(|_| Errno::EINVAL)?;
                    come.push(Signal::try_from(signal)?);
                }
                Ok(None) => return Ok(come),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A write to a closed pipe is an error, not the end.
#[expect(
    unsafe_code,
    reason = "nix cannot know that an action is no function of ours"
)]
pub fn ignore_pipe() -> nix::Result<()> {
    let ignored = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: SIG_IGN runs no code in a signal's context.
    unsafe { sigaction(Signal::SIGPIPE, &ignored) }.map(drop)
}

/// The default action for any signal, by number: nix has no names for the real-time ones, and libc refuses the two
/// that it keeps for itself. KILL and STOP cannot be changed, and need not be.
#[expect(unsafe_code, reason = "neither nix nor libc reaches every signal")]
fn reset_disposition(number: libc::c_int) {
    // The kernel's struct sigaction, at most this large: SIG_DFL, no flags, no mask (rt_sigaction(2)).
    let default = [0_u64; 4];
    let old = std::ptr::null_mut::<u64>();
    // SAFETY: the kernel reads one struct from a larger buffer, and writes nothing; SIG_DFL runs no code of ours.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            number,
            default.as_ptr(),
            old,
            size_of::<u64>(),
        )
    };
}
