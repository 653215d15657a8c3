//! Settings for the pid and status files, and what they show of the other settings.

use std::path::PathBuf;

use crate::host::identity;
use crate::worker::environment;
use crate::{log, machine, ready, worker};

/// Where the files are.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub pid_file: Option<PathBuf>,
    pub status_file: Option<PathBuf>,
}

/// The settings that `F.json` shows.
pub struct Shown<'a> {
    pub files: &'a Settings,
    pub worker: &'a worker::Settings,
    pub environment: &'a environment::Settings,
    pub machine: &'a machine::Settings,
    pub ready: &'a ready::Settings,
    pub log: &'a log::Settings,
    pub identity: &'a identity::Settings,
}
