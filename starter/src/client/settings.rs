//! Settings for a command to a running server.

use std::path::PathBuf;
use std::time::Duration;

/// How to find the server, and how long to wait for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub pid_file: PathBuf,
    pub status_file: Option<PathBuf>,
    /// `None` waits indefinitely.
    pub timeout: Option<Duration>,
    /// Nothing is shown except why the command failed.
    pub is_quiet: bool,
}
