//! The file of `--log-file`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use common::trusted_path::{Trust, open_directory};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::host::access::{self, Expected};
use crate::words::failure::{self, Failure};
use crate::words::remedy;
use crate::words::text::quoted;

/// Opens it for appending.
pub fn open_file(path: &Path) -> io::Result<File> {
    // Not through a symbolic link, which the server program could plant. Non-blocking only in case of a fifo: it may never
    // have a reader.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o666)
        .custom_flags(flags.bits())
        .open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        // A full one would block the service.
        return Err(Errno::ENXIO.into());
    }
    // The workers share it, and do not expect EAGAIN.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(file)
}

/// For a dry run: whether it could be opened. It is neither made nor changed.
pub fn examine(path: &Path, expected: &Expected) -> io::Result<()> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(flags.bits());
    match options.open(path) {
        Ok(file) if file.metadata()?.file_type().is_fifo() => Err(Errno::ENXIO.into()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => access::can_make(path, expected),
        Err(error) => Err(error),
    }
}

/// Whether only root can write in its directory.
fn is_of_root(path: &Path) -> bool {
    let path = std::path::absolute(path).unwrap_or_default();
    path.parent()
        .is_some_and(|directory| open_directory(directory, &Trust::ROOT).is_ok())
}

/// Why it cannot be opened, in words.
pub fn cause(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ELOOP) => "it is a symbolic link".into(),
        Some(Errno::ENOENT) => "its directory does not exist".into(),
        Some(Errno::ENXIO) => "it is a fifo or a socket".into(),
        _ => failure::cause(error),
    }
}

/// The same for a start, with the remedy.
pub fn cannot_open(path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::failed(format!(
        "cannot open --log-file={}: {}",
        quoted(path),
        cause(error)
    ));
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ELOOP) if path.starts_with("/dev") => failure.hint(remedy::NO_LOG_FILE),
        Some(Errno::ENXIO) => failure.hint(remedy::LOG_TO_A_COMMAND),
        Some(Errno::EACCES) if is_of_root(path) => failure.hint(remedy::LOG_OF_ROOT),
        Some(errno) => failure.hint_if(remedy::of_file(path, errno)),
        None => failure,
    }
}
