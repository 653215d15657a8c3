//! Every hint: what helps, where that is known.

use std::path::Path;

use nix::errno::Errno;

use crate::words::text::printable;

/// Where the supervisor's user may not write a file.
const WRITABLE: &str = "the file is written by the user that the server runs as, in a directory that this user can write";

/// Where nobody may write a file, which is a service manager's doing more often than a disk's.
const READ_ONLY: &str =
    "in a unit with ProtectSystem=strict, name its directory in ReadWritePaths=";

/// Where the limit of open files is too low.
pub const RAISE_OPEN_FILES: &str = "raise it with ulimit -n (LimitNOFILE= of systemd)";

/// Where the kernel, or what is around it, lacks a means of confinement.
pub const CONFINE_FULLY: &str = "Linux 6.12 has all of it, where `landlock` is in /sys/kernel/security/lsm and no \
     container or unit keeps it away (SystemCallFilter=@system-service does); without --strict this is a notice";

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
