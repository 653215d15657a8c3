//! Why the program fails: one line, the last lines of a worker, a hint if a remedy is known, and the exit code. Each is a
//! single line and safe to show, whatever it contains.

use std::fmt;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::words::text::printable;

/// The exit codes of start_server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// The request succeeded.
    Done = 0,
    /// The request failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// No server is running that could be restarted or stopped.
    NotRunning = 3,
    /// `--timeout` expired first.
    Undecided = 4,
}

/// An error message for the user: `cannot <verb> <object>: <cause>`, and a hint if a remedy is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub status: Status,
    text: String,
    /// The last lines of a worker.
    stderr: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    fn new(status: Status, text: impl Into<String>) -> Failure {
        Failure {
            status,
            text: text.into(),
            stderr: Vec::new(),
            hint: None,
        }
    }

    /// The command line is wrong.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure::new(Status::Usage, text)
    }

    /// The request failed.
    pub fn failed(text: impl Into<String>) -> Failure {
        Failure::new(Status::Failed, text)
    }

    /// No server is running.
    pub fn not_running(text: impl Into<String>) -> Failure {
        Failure::new(Status::NotRunning, text)
    }

    /// `--timeout` expired first.
    pub fn undecided(text: impl Into<String>) -> Failure {
        Failure::new(Status::Undecided, text)
    }

    /// The error alone, in one line.
    pub fn text(&self) -> String {
        printable(&self.text)
    }

    /// The error of the system that it tells: every message ends with it, after a colon, if there was one.
    pub fn errno(&self) -> Option<Errno> {
        const HIGHEST: i32 = 133;
        let cause = self.text.rsplit(": ").next()?;
        let mut all = (1..=HIGHEST).map(Errno::from_raw);
        all.find(|errno| *errno != Errno::UnknownErrno && errno.desc() == cause)
    }

    /// Adds the last lines of a worker.
    #[must_use]
    pub fn stderr(self, lines: &[String]) -> Failure {
        Failure {
            stderr: lines.to_vec(),
            ..self
        }
    }

    /// Adds the remedy.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Failure {
        Failure {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Adds the remedy, if one is known.
    #[must_use]
    pub fn hint_if(self, hint: Option<String>) -> Failure {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.text))?;
        for line in &self.stderr {
            write!(f, "\nstderr: {}", printable(line))?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", printable(hint)),
            None => Ok(()),
        }
    }
}

/// The cause that an error gives, without the number that the standard library adds.
pub fn cause(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_the_system_is_found_at_the_end() {
        let errno = |text: &str| Failure::failed(text).errno();
        let missing = "cannot execute ./x: No such file or directory";
        assert_eq!(errno(missing), Some(Errno::ENOENT));
        assert_eq!(
            errno("cannot listen on 127.0.0.1:80: Permission denied"),
            Some(Errno::EACCES)
        );
        assert_eq!(errno("cannot start: stopped by a signal"), None);
        assert_eq!(errno("Unknown errno"), None);
    }
}
