//! Why the program ends without success: one line, what a worker said last, a hint where the remedy is known, and the exit
//! code. Whatever is in them, each is one line and safe to show.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::words::text::printable;

/// The exit codes of start_server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// What was asked for is done.
    Done = 0,
    /// Something that was asked for could not be done.
    Failed = 1,
    /// The command line itself is wrong.
    Usage = 2,
    /// There is no running server to restart or to stop.
    NotRunning = 3,
    /// `--timeout` has passed first.
    Undecided = 4,
}

/// An error message for the user: `cannot <verb> <object>: <cause>`, and a hint where the remedy is known.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub status: Status,
    text: String,
    /// What a worker has said last.
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

    /// What was asked for could not be done.
    pub fn failed(text: impl Into<String>) -> Failure {
        Failure::new(Status::Failed, text)
    }

    /// There is no server to be asked.
    pub fn not_running(text: impl Into<String>) -> Failure {
        Failure::new(Status::NotRunning, text)
    }

    /// It was not decided in time.
    pub fn undecided(text: impl Into<String>) -> Failure {
        Failure::new(Status::Undecided, text)
    }

    /// The error alone, in one line.
    pub fn text(&self) -> String {
        printable(&self.text)
    }

    /// Adds what a worker has said last.
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

    /// Adds the remedy where one is known.
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
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_owned(),
        None => error.to_string(),
    }
}
