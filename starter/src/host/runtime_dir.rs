//! `--runtime-dir`: a directory of the user's for the files of a server, made if it is missing. It stays: removing it where
//! only root can would take a process of root's for as long as the server runs.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::for_user::DIRECTORY_MODE;
use nix::errno::Errno;
use nix::unistd::geteuid;

use crate::words::failure::{self, Failure};
use crate::words::remedy;
use crate::words::text::quoted;

/// With its name at the end, however it was typed.
pub fn without_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

/// Makes it as this user. One that is there already must belong to this user.
///
/// # Errors
/// If that is not possible.
pub fn make(path: &Path) -> Result<(), Failure> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        // Whatever the umask.
        Ok(()) => std::fs::set_permissions(path, PermissionsExt::from_mode(DIRECTORY_MODE))
            .map_err(|error| cannot(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => accept(path),
        Err(error) => Err(cannot(path, &error)),
    }
}

/// Whether one that is there can be used.
///
/// # Errors
/// If it is something else, or another user's.
pub fn accept(path: &Path) -> Result<(), Failure> {
    let there = path.symlink_metadata();
    let there = there.map_err(|error| cannot(path, &error))?;
    if there.is_symlink() {
        return Err(cannot_make(path, "it is a symbolic link"));
    }
    if !there.is_dir() {
        return Err(cannot_make(path, "it exists and is not a directory"));
    }
    match there.uid() == geteuid().as_raw() {
        true => Ok(()),
        false => {
            Err(cannot_make(path, "it exists and belongs to another user").hint(remedy::LEFT_ALONE))
        }
    }
}

/// Why the user cannot make it.
pub fn cannot(path: &Path, error: &io::Error) -> Failure {
    let cause = match error.kind() {
        io::ErrorKind::NotFound => "the directory above it does not exist".to_owned(),
        _ => failure::cause(error),
    };
    let hint = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES) => Some(remedy::RUNTIME_DIR.to_owned()),
        Some(errno) => remedy::of_file(path, errno),
        None => None,
    };
    cannot_make(path, &cause).hint_if(hint)
}

pub fn cannot_make(path: &Path, cause: &str) -> Failure {
    let path = quoted(path);
    Failure::failed(format!("cannot make --runtime-dir={path}: {cause}"))
}
