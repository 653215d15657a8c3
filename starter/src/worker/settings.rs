//! Settings for the server program.

use std::ffi::OsString;
use std::path::PathBuf;

use super::label::Label;

/// What every worker runs, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    /// Not empty, and not yet looked up.
    pub program: OsString,
    pub arguments: Vec<OsString>,
    /// A shell command that is run before each restart.
    pub check: Option<OsString>,
    /// What each generation is called, if not after its program.
    pub label: Option<Label>,
    /// `None` is the launcher's.
    pub directory: Option<PathBuf>,
}
