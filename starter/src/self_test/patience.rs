//! Waiting no longer than a deadline, nor after the operator has interrupted.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use common::signals;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::words::failure::Failure;

/// The time limit for anything that normally takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);

/// The pause between two probes of what cannot be polled, in milliseconds.
const PAUSE: u16 = 5;

/// Signals that end the self-test early. Blocked until then, so that nothing is left behind.
const INTERRUPTS: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// What the started processes must not inherit as ignored, besides what this program ignores itself.
const IGNORED: [Signal; 2] = [Signal::SIGWINCH, Signal::SIGTSTP];

pub struct Patience(SignalFd);

impl Patience {
    /// From here on the started processes inherit a mask and dispositions that they must reset.
    pub fn take_signals() -> Result<Patience, Failure> {
        let interrupts: SigSet = INTERRUPTS.into_iter().collect();
        IGNORED.into_iter().for_each(signals::ignore);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&interrupts), None)
            .and_then(|()| {
                SignalFd::with_flags(&interrupts, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            })
            .map(Patience)
            .map_err(|errno| Failure::failed(format!("cannot set up signals: {}", errno.desc())))
    }

    /// Nothing reads the signals: an interruption remains pending.
    pub fn is_interrupted(&self) -> bool {
        let mut sources = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut sources, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Waits until there is something to read, or end of file.
    pub fn readable(&self, source: BorrowedFd<'_>, what: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut sources = [
                PollFd::new(source, PollFlags::POLLIN),
                PollFd::new(self.0.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut sources, timeout) {
                Ok(0) => return Err(in_vain(what)),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(Failure::failed(format!(
                        "cannot wait until {what}: {}",
                        errno.desc()
                    )));
                }
                Ok(_) if sources[1].any() == Some(true) => return Err(interrupted()),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Waits until `probe` returns something.
    pub fn until<T>(
        &self,
        what: &str,
        mut probe: impl FnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(answer) = probe()? {
                return Ok(answer);
            }
            if Instant::now() >= deadline {
                return Err(in_vain(what));
            }
            let mut sources = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            if poll(&mut sources, PAUSE).is_ok_and(|ready| ready > 0) {
                return Err(interrupted());
            }
        }
    }
}

fn in_vain(what: &str) -> Failure {
    Failure::failed(format!(
        "gave up after {} s waiting until {what}",
        DEADLINE.as_secs()
    ))
}

fn interrupted() -> Failure {
    Failure::failed("cannot finish the self-test: it was interrupted")
}
