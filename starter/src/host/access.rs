//! What this user may do with files, found out without doing it.

use std::io;
use std::path::Path;

use nix::unistd::{AccessFlags, access};

/// Whether an entry can be made or replaced at this path, as far as its directory tells.
///
/// # Errors
/// With the error of open(2) where it cannot.
pub fn can_make(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    // With the dot, what is no directory is found out.
    let directory = Path::new("").join(directory).join(".");
    Ok(access(&directory, AccessFlags::W_OK | AccessFlags::X_OK)?)
}
