//! The signals that the supervisor takes, one by one.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;

/// What the supervisor takes itself. As PID 1 it would not get them otherwise.
const TAKEN: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCHLD,
    Signal::SIGXCPU,
];

/// Those of them that end the superdaemon.
pub const STOPS: [Signal; 3] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// The taken signals, blocked and read here.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// Has signals wait that are taken later, whatever mask the launcher left: from here on no HUP is lost. Orders to stop still
/// end the process at once, while there is nothing to clean up.
pub fn hold() -> nix::Result<()> {
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

    /// Waits so long for an order to stop. Other signals ask for nothing yet: there is no worker.
    pub fn wait_for_stop(&self, longest: Duration) -> nix::Result<Option<Signal>> {
        let mut source = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut source, Some(TimeSpec::from_duration(longest)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let arrived = self.read()?;
        Ok(arrived.into_iter().find(|signal| STOPS.contains(signal)))
    }

    /// The signals that have arrived since the last call.
    pub fn read(&self) -> nix::Result<Vec<Signal>> {
        let mut arrived = Vec::new();
        loop {
            match self.0.read_signal() {
                Ok(Some(info)) => {
                    let signal = i32::try_from(info.ssi_signo).map_err(|_| Errno::EINVAL)?;
                    arrived.push(Signal::try_from(signal)?);
                }
                Ok(None) => return Ok(arrived),
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
