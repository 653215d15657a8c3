//! What is said about guardians and the supervisors that they start.

use std::fmt;

use nix::errno::Errno;

use crate::words::parts::WithMeaning;
use crate::words::text::shortened;

/// Why no further supervisor is started.
pub const TOO_MANY: &str = "too many have died";
pub const NO_SNAPSHOT: &str = "it has left no snapshot";

/// What the log says about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guarding {
    /// A new supervisor goes on.
    Revived { status: i32, workers: usize },
    /// The same, only to stop: too many have died.
    Last { status: i32 },
    /// The supervisor goes on alone.
    GuardianGone,
    /// No snapshot can be written.
    Unwritten { cause: String },
}

impl fmt::Display for Guarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Guarding::Revived { status, workers } => write!(
                f,
                "start_server: the supervisor has died, status:{}; a new one goes on with its {workers} {}",
                WithMeaning(*status),
                if *workers == 1 { "worker" } else { "workers" }
            ),
            Guarding::Last { status } => write!(
                f,
                "start_server: the supervisor has died too often, status:{}; a last one stops the workers",
                WithMeaning(*status)
            ),
            Guarding::GuardianGone => f.write_str(
                "start_server: the guardian has died; the supervisor goes on without it, and takes over the pid file",
            ),
            Guarding::Unwritten { cause } => write!(
                f,
                "start_server: cannot tell the guardian what is going on: {}; if the supervisor dies, the next one knows less",
                shortened(cause)
            ),
        }
    }
}

/// What the guardian itself says, when there is no supervisor to say it.
pub fn ending_workers(status: i32, cause: &str) -> String {
    format!(
        "start_server: the supervisor has died, status:{}, and no other is started: {cause}; telling the workers to stop",
        WithMeaning(status)
    )
}

/// The same about descriptors that the guardian had no room for, or no time, before the supervisor died.
pub fn missing(count: usize) -> String {
    format!(
        "start_server: the supervisor died before the guardian had taken {count} of its descriptors: some output of the newest \
         workers, or what they left to the next, may be lost"
    )
}

/// The same about something that failed.
pub fn cannot(what: &str, errno: Errno) -> String {
    format!("start_server: the guardian cannot {what}: {}", errno.desc())
}
