//! What signals do to this process when nobody takes them, and what they do to a worker.

use common::signals;
use nix::sys::signal::Signal;

/// What keeps its default action: the signals that the supervisor takes itself, and those of job control, which stop
/// nothing for good.
const DEFAULT: [Signal; 12] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCHLD,
    Signal::SIGXCPU,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGWINCH,
];

/// Forgets what the launcher ignored or set, because exec hands that on (nohup ignores HUP, some shells INT), and its
/// timers. Every other signal is ignored but for faults of the process itself: nobody has asked for the end of the
/// superdaemon by a VTALRM or a real-time signal, and its workers would live on without it. A write to a closed pipe
/// (PIPE), or over the limit of a file's size (XFSZ), is an error instead.
pub fn reset() {
    signals::reset_all();
    signals::stop_timers();
    signals::ignore_all();
    DEFAULT.into_iter().for_each(signals::reset);
}

/// The dispositions of a worker: as Server::Starter leaves them, SIGPIPE ignored and nothing else.
pub fn reset_for_worker() {
    signals::reset_all();
    signals::ignore(Signal::SIGPIPE);
}
