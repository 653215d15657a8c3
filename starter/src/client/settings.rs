//! What can be chosen about a command to a running server.

use std::path::PathBuf;
use std::time::Duration;

/// How to find the server, and how long to wait for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub pid_file: PathBuf,
    pub status_file: Option<PathBuf>,
    /// `None` waits for as long as it takes.
    pub timeout: Option<Duration>,
    /// Nothing is said but why the command has failed.
    pub is_quiet: bool,
}
