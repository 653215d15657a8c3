//! Why a worker does not run the server program, as a value that the machine's snapshot can store.

use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::words::failure::Failure;
use crate::words::remedy;

/// Why a worker does not run the server program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecFailure {
    /// What failed: `execute ./server`.
    pub action: String,
    #[serde(with = "errno_as_number")]
    pub errno: Errno,
    /// What the user can do about it, if known.
    pub hint: Option<String>,
}

impl ExecFailure {
    /// A worker has not got as far as executing the program in this time.
    pub fn hanging(pid: Pid, longest: Duration) -> ExecFailure {
        let seconds = longest.as_secs();
        ExecFailure {
            action: format!("execute the program in worker {pid} within {seconds} seconds"),
            errno: Errno::ETIME,
            hint: Some(remedy::HANGING.into()),
        }
    }

    /// One line, without the hint.
    pub fn line(&self) -> String {
        format!("cannot {}: {}", self.action, self.errno.desc())
    }
}

impl From<&ExecFailure> for Failure {
    fn from(failure: &ExecFailure) -> Failure {
        let text = failure.line();
        match &failure.hint {
            Some(hint) => Failure::failed(text).hint(hint),
            None => Failure::failed(text),
        }
    }
}

mod errno_as_number {
    use nix::errno::Errno;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(errno: &Errno, serializer: S) -> Result<S::Ok, S::Error> {
        (*errno as i32).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Errno, D::Error> {
        let number = i32::deserialize(deserializer)?;
        match Errno::from_raw(number) {
            // UnknownErrno itself is 0.
            Errno::UnknownErrno if number != 0 => {
                Err(D::Error::custom(format_args!("{number} is no errno")))
            }
            errno => Ok(errno),
        }
    }
}
