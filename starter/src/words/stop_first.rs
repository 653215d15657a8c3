//! What the log says about restarts for which what serves stops first.

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::words::parts::{Pids, name};

/// A step of such a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopFirst {
    /// What serves is told to stop.
    Stopping { signal: Signal, pids: Vec<Pid> },
    /// The new generation has failed.
    StartingAgain { is_pinned: bool },
    /// Something serves again, after this time.
    ServesAgain { is_restored: bool, after: Duration },
}

impl fmt::Display for StopFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopFirst::Stopping { signal, pids } => {
                let (signal, pids) = (name(*signal), Pids(pids, "none"));
                write!(
                    f,
                    "start_server: sending {signal} to old workers, and starting the new one when they are gone:{pids}"
                )
            }
            StopFirst::StartingAgain { is_pinned } => {
                let what = match is_pinned {
                    true => "what has served",
                    false => "what is on disk, because of --no-pin",
                };
                write!(
                    f,
                    "start_server: the restart has failed, starting again {what}"
                )
            }
            StopFirst::ServesAgain { is_restored, after } => {
                let what = match is_restored {
                    true => {
                        "what has served before serves again, and the restart is not tried again"
                    }
                    false => "the new worker serves",
                };
                let after = after.as_secs_f64();
                write!(
                    f,
                    "start_server: {what}; clients had to wait for {after:.2} secs"
                )
            }
        }
    }
}
