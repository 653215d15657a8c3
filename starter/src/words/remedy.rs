//! Every hint: what helps, where that is known.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::words::text::printable;

/// Where the supervisor's user may not write a file.
const WRITABLE: &str = "the file is written by the user that the server runs as, in a directory that this user can write";

/// Where nobody may write a file, which is a service manager's doing more often than a disk's.
const READ_ONLY: &str =
    "in a unit with ProtectSystem=strict, name its directory in ReadWritePaths=";

/// Where the limit of open files is too low.
pub const RAISE_OPEN_FILES: &str = "raise it with ulimit -n (LimitNOFILE= of systemd)";

/// What helps when a file of the server cannot be opened or made, by the error.
pub fn of_file(path: &Path, errno: Errno) -> Option<String> {
    match errno {
        Errno::EACCES => Some(WRITABLE.into()),
        Errno::EROFS => Some(READ_ONLY.into()),
        Errno::ENOENT => Some(missing_directory(path)),
        _ => None,
    }
}

/// Where the directory of a file does not exist.
fn missing_directory(file: &Path) -> String {
    let directory = printable(file.parent().unwrap_or(file));
    format!("`install -d -o USER {directory}` makes it, for the user that the server runs as")
}

/// Where a process cannot be made.
pub fn of_spawning(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::EAGAIN => {
            Some("this user may have no more processes: see `ulimit -u`, or TasksMax of systemd")
        }
        Errno::EMFILE => Some("the limit of open files is reached: see `ulimit -n`"),
        _ => None,
    }
}

/// Where a program is a directory.
pub const IS_A_DIRECTORY: &str = "it is a directory";

/// Where a program lacks its execute permission.
pub const NOT_EXECUTABLE: &str = "it is not executable for this user: see chmod(1)";

/// Where the interpreter of a program that is no script is missing.
pub const MISSING_LOADER: &str =
    "the loader of shared libraries that it needs does not exist: it was built for another system";

/// Where a directory of PATH has the program, which this user may not execute.
pub fn not_executable_in_path(found: &Path) -> String {
    format!("{} is not executable for this user", printable(found))
}

/// Where no directory of PATH has the program; some may be closed to this user.
pub fn not_in_path(path: &OsStr, closed: &[&PathBuf]) -> String {
    let path = printable(path);
    let closed: Vec<String> = closed.iter().map(printable).collect();
    match closed.is_empty() {
        true => format!("PATH is {path}"),
        false => format!("PATH is {path}; closed to this user: {}", closed.join(", ")),
    }
}

/// Where a directory on the way to the program is closed.
pub fn closed_directory(directory: &Path) -> String {
    format!(
        "the directory {} is closed to this user",
        printable(directory)
    )
}

/// Where the interpreter that a script names does not exist.
pub fn missing_interpreter(name: &OsStr) -> String {
    let shown = printable(name);
    match name.as_bytes().ends_with(b"\r") {
        true => format!(
            "its first line ends with a carriage return, which is taken for a part of the name: {shown}"
        ),
        false => format!("the interpreter in its first line does not exist: {shown}"),
    }
}
