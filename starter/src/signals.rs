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

/// The taken signals, blocked from now on and read here.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Resets every disposition and takes the signals over. None is lost from here on: a blocked signal waits.
    ///
    /// Dispositions are reset because exec hands on what the launcher ignored (nohup ignores HUP, some shells INT).
    pub fn take() -> nix::Result<Signals> {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        for signal in
            Signal::iterator().filter(|one| !matches!(one, Signal::SIGKILL | Signal::SIGSTOP))
        {
            set_action(signal, &default)?;
        }
        ignore_pipe()?;
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
pub fn ignore_pipe() -> nix::Result<()> {
    set_action(
        Signal::SIGPIPE,
        &SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty()),
    )
}

#[expect(
    unsafe_code,
    reason = "nix cannot know that an action is no function of ours"
)]
fn set_action(signal: Signal, action: &SigAction) -> nix::Result<()> {
    // SAFETY: every caller passes SIG_IGN or SIG_DFL, so no code of ours runs in a signal's context.
    unsafe { sigaction(signal, action) }.map(drop)
}
