//! Results of fstat(2).

use std::os::fd::AsFd;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstatat};

/// The file with this name, without following it; `None` if there is none.
///
/// # Errors
/// As fstatat(2).
pub fn find<P: ?Sized + NixPath>(directory: impl AsFd, name: &P) -> nix::Result<Option<FileStat>> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether both are the same file. One must be held open: the inode number of a deleted file is reused.
#[must_use]
pub fn same_file(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Whether a file is of this type.
pub fn has_type(stat: &FileStat, file_type: SFlag) -> bool {
    file_type_of(stat) == file_type.bits()
}

/// The bits `S_IFMT` of the mode of a file.
pub fn file_type_of(stat: &FileStat) -> u32 {
    stat.st_mode & SFlag::S_IFMT.bits()
}
