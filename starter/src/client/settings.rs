//! Settings for a command to a running server.

use std::path::PathBuf;
use std::time::Duration;

use crate::host::order::Trial;

/// How to find the server, and how long to wait for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub pid_file: PathBuf,
    pub status_file: Option<PathBuf>,
    /// `None` waits indefinitely.
    pub timeout: Option<Duration>,
    /// Nothing is shown except why the command failed, and what was asked for on standard output.
    pub is_quiet: bool,
    /// How `--status` shows what it finds, and `--restart` its verdict.
    pub form: Form,
    /// `--restart` does not wait for the old workers.
    pub returns_at_commit: bool,
    /// `--restart` asks for a share alone.
    pub canary: Option<Trial>,
}

/// How `--status` shows what it finds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// For people.
    #[default]
    Text,
    /// The same, redrawn until somebody ends it.
    Follow,
    Json,
    OpenMetrics,
}
