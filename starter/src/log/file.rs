//! The file of `--log-file`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::failure::{self, Failure};
use crate::pid_file::WRITABLE_HINT;

/// Opens it to append.
pub fn open_file(path: &Path) -> io::Result<File> {
    // Not through a link, which the server program could plant. Non-blocking only for a fifo's sake.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o666)
        .custom_flags(flags.bits())
        .open(path)
}

/// Why it cannot be opened, for the user.
pub fn cannot_open(path: &Path, error: &io::Error) -> Failure {
    let cannot = |cause: &str| {
        Failure::failed(format!(
            "cannot open --log-file={}: {cause}",
            path.display()
        ))
    };
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ELOOP) => cannot("it is a symbolic link"),
        Some(Errno::ENOENT) => cannot("its directory does not exist"),
        Some(Errno::EACCES) => cannot(Errno::EACCES.desc()).hint(WRITABLE_HINT),
        _ => cannot(&failure::cause(error)),
    }
}
