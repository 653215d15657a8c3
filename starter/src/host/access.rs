//! What this user may do with files, found out without doing it.

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// What a start makes before the user needs it, and a dry run does not.
#[derive(Debug, Default)]
pub struct Expected {
    /// What root makes for the user.
    pub by_root: Vec<PathBuf>,
    /// A directory of the user's that is not there yet.
    pub directory: Option<PathBuf>,
}

impl Expected {
    /// Whether the user can write there by then.
    pub fn covers(&self, path: &Path) -> bool {
        let is_in = |directory: &PathBuf| path.parent() == Some(directory);
        self.by_root.iter().any(|one| one == path) || self.directory.as_ref().is_some_and(is_in)
    }
}

/// Whether an entry can be made or replaced at this path, as far as its directory tells.
///
/// # Errors
/// With the error of open(2) where it cannot.
pub fn can_make(path: &Path, expected: &Expected) -> io::Result<()> {
    if expected.covers(path) {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(path);
    // With the dot, what is no directory is found out.
    let directory = Path::new("").join(directory).join(".");
    Ok(access(&directory, AccessFlags::W_OK | AccessFlags::X_OK)?)
}
