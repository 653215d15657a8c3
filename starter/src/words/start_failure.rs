//! Why a worker or a whole start has failed, in a value that the snapshot of the machine can keep.

use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::words::failure::Failure;
use crate::words::parts::WithMeaning;
use crate::words::remedy;

/// Why a start has failed, where more is known than how a worker ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// One line: `cannot execute ./server: No such file or directory`.
    pub cause: String,
    /// What the user can do about it, if known.
    pub hint: Option<String>,
}

impl StartFailure {
    /// A step on the way to the server program failed: `execute ./server`.
    pub fn cannot(action: &str, errno: Errno, hint: Option<String>) -> StartFailure {
        StartFailure {
            cause: format!("cannot {action}: {}", errno.desc()),
            hint,
        }
    }

    /// A worker has exited with this wait status before it served.
    pub fn exited(pid: Pid, status: i32) -> StartFailure {
        StartFailure {
            cause: format!("worker {pid} failed, exit status:{}", WithMeaning(status)),
            hint: None,
        }
    }

    /// The kernel does not give it the new connections of this listener.
    pub fn not_switched(listener: &str, errno: Errno) -> StartFailure {
        StartFailure::cannot(&format!("switch {listener} to its lane"), errno, None)
    }

    /// A worker has not executed the program for this long.
    pub fn hanging(pid: Pid, longest: Duration) -> StartFailure {
        let seconds = longest.as_secs();
        let action = format!("execute the program in worker {pid} within {seconds} seconds");
        StartFailure::cannot(&action, Errno::ETIME, Some(remedy::HANGING.into()))
    }

    /// A worker has not become ready within `--start-timeout`. `known` is what is known: `it has not said READY=1`.
    pub fn not_ready(pid: Pid, longest: Duration, known: &str) -> StartFailure {
        let seconds = longest.as_secs_f64();
        StartFailure {
            cause: format!("worker {pid} was not ready within {seconds} secs: {known}"),
            hint: None,
        }
    }

    /// The command of `--check` has exited with this wait status.
    pub fn failed_check(status: i32) -> StartFailure {
        StartFailure {
            cause: format!("the check failed, exit status:{}", WithMeaning(status)),
            hint: None,
        }
    }

    /// The command of `--check` cannot be run.
    pub fn no_check(cause: &str) -> StartFailure {
        StartFailure {
            cause: format!("cannot run the check: {cause}"),
            hint: None,
        }
    }

    /// The command of `--check` has taken longer than this.
    pub fn late_check(longest: Duration) -> StartFailure {
        let seconds = longest.as_secs_f64();
        StartFailure {
            cause: format!("the check did not finish within {seconds} secs"),
            hint: None,
        }
    }

    /// A generation has become unhealthy so soon after its commit that its predecessor could take over again.
    pub fn unhealthy(since: Duration, known: &str) -> StartFailure {
        let seconds = since.as_secs_f64();
        StartFailure {
            cause: format!("rolled back, as it was unhealthy for {seconds} secs: {known}"),
            hint: None,
        }
    }

    /// A worker has announced its end before it was ready.
    pub fn stopping(pid: Pid) -> StartFailure {
        StartFailure {
            cause: format!("worker {pid} said that it was stopping (STOPPING=1)"),
            hint: None,
        }
    }
}

impl From<&StartFailure> for Failure {
    fn from(failure: &StartFailure) -> Failure {
        let StartFailure { cause, hint } = failure;
        Failure::failed(cause.clone()).hint_if(hint.clone())
    }
}
