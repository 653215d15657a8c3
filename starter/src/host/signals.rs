//! The signals that the supervisor handles, one at a time.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;

use crate::host::dispositions;
use crate::host::order::{CARRIER, Order};
use crate::host::process::is_first;

/// The signals that the supervisor handles itself. As PID 1 it would not get them otherwise.
const TAKEN: [Signal; 11] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCHLD,
    Signal::SIGXCPU,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    CARRIER,
];

/// Those that stop the superdaemon.
const STOPS: [Signal; 3] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// What has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    Signal(Signal),
    Order(Order),
}

/// The handled signals, blocked and read from a descriptor.
#[derive(Debug)]
pub struct Signals(SignalFd);

/// Blocks the signals to be handled later, whatever mask the launcher left: from here on no HUP is lost. Signals to stop
/// still terminate the process at once while there is nothing to clean up, also the first one of a container.
pub fn hold() -> nix::Result<()> {
    if is_first() {
        STOPS.into_iter().try_for_each(dispositions::end_at)?;
    }
    let waiting: SigSet = TAKEN
        .into_iter()
        .filter(|signal| !STOPS.contains(signal))
        .collect();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&waiting), None)
}

impl Arrived {
    /// The signal, if it is one to stop.
    pub fn stop(self) -> Option<Signal> {
        match self {
            Arrived::Signal(signal) if STOPS.contains(&signal) => Some(signal),
            Arrived::Signal(_) | Arrived::Order(_) => None,
        }
    }
}

impl Signals {
    /// Takes over all signals: from here on none is lost, and none terminates the process.
    pub fn take() -> nix::Result<Signals> {
        let taken: SigSet = TAKEN.into_iter().collect();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&taken), None)?;
        // systemd reloads only what catches its signal.
        dispositions::catch(Signal::SIGHUP)?;
        SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Signals)
    }

    /// Waits up to `longest` for an order to stop. Other signals mean nothing yet: there is no worker.
    pub fn wait_for_stop(&self, longest: Duration) -> nix::Result<Option<Signal>> {
        let mut source = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut source, Some(TimeSpec::from_duration(longest)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let arrived = self.read()?;
        Ok(arrived.into_iter().find_map(Arrived::stop))
    }

    /// What arrived since the last call. A signal that carries orders is left out if it carries none.
    pub fn read(&self) -> nix::Result<Vec<Arrived>> {
        let taken = self.take_all()?.into_iter();
        Ok(taken.filter_map(Taken::meant).collect())
    }

    /// All signals that arrived since the last call.
    pub fn take_all(&self) -> nix::Result<Vec<Taken>> {
        let mut arrived = Vec::new();
        loop {
            match self.0.read_signal() {
                Ok(Some(info)) => arrived.push(Taken {
                    signal: i32::try_from(info.ssi_signo).map_err(|_| Errno::EINVAL)?,
                    code: info.ssi_code,
                    value: info.ssi_int,
                }),
                Ok(None) => return Ok(arrived),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// A signal as signalfd(2) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub signal: i32,
    pub code: i32,
    pub value: i32,
}

impl Taken {
    /// What it is for us, if anything.
    pub fn meant(self) -> Option<Arrived> {
        match Signal::try_from(self.signal).ok()? {
            // A terminal sends these to whoever uses it in the background (tty_ioctl(4)), not to say anything to us.
            Signal::SIGTTIN | Signal::SIGTTOU if self.code > 0 => None,
            CARRIER => Order::carried(CARRIER, self.code, self.value).map(Arrived::Order),
            signal => Some(Arrived::Signal(signal)),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
