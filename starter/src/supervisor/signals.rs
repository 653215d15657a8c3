//! The signals of the supervisor: a known state at start, whatever the launcher left, then taken one by one.

use std::os::fd::{AsFd, BorrowedFd};

use common::signals;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
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

/// What the supervisor ignores: a write to a closed pipe or over the limit of a file's size is an error, and no end;
/// ALRM is what Server::Starter woke itself with.
const OWN_IGNORED: [Signal; 3] = [Signal::SIGPIPE, Signal::SIGALRM, Signal::SIGXFSZ];

/// Those of them that end the superdaemon.
pub const STOPS: [Signal; 3] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// The taken signals, blocked and read here.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// Resets every disposition, the timers and the mask, because exec hands on what the launcher ignored (nohup ignores HUP,
/// some shells INT), set or blocked. From here on no HUP is lost: it waits. Orders to stop still end the process at once, while
/// there is nothing to clean up.
pub fn reset() -> nix::Result<()> {
    signals::reset_all();
    signals::stop_timers();
    OWN_IGNORED.into_iter().for_each(signals::ignore);
    let waiting: SigSet = TAKEN
        .into_iter()
        .filter(|signal| !STOPS.contains(signal))
        .collect();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&waiting), None)
}

/// The dispositions of a worker: as Server::Starter leaves them, SIGPIPE ignored and nothing else.
pub fn dispose_for_worker() {
    OWN_IGNORED.into_iter().for_each(signals::reset);
    signals::ignore(Signal::SIGPIPE);
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
