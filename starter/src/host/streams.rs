//! Standard output and error by their paths: servers that log to /dev/stderr open again what is there, which takes the rights
//! that whoever made it has given.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{AccessFlags, Uid, access, fchown};

/// The file system of pipes that have no name (`PIPEFS_MAGIC`, statfs(2)).
const PIPEFS: FsType = FsType(0x5049_5045);

/// Gives root's pipes on descriptors 1 and 2 to the user, as container runtimes do. Only those without a name, which are the
/// launcher's for this very purpose: a file, a FIFO or a terminal stays root's. So does a pipe where root may not give it.
pub fn give_pipes_to(user: Uid) {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    for stream in [stdout.as_fd(), stderr.as_fd()] {
        if is_pipe_of_root(stream) {
            let _ = fchown(stream, Some(user), None);
        }
    }
}

fn is_pipe_of_root(stream: BorrowedFd<'_>) -> bool {
    let is_of_root = |there: FileStat| there.st_uid == 0 && kind(&there) == SFlag::S_IFIFO;
    fstat(stream).is_ok_and(is_of_root)
        && fstatfs(stream).is_ok_and(|there| there.filesystem_type() == PIPEFS)
}

/// Whether this user can open standard output or error by its path; of a descriptor that is closed nobody can tell.
pub fn can_open_by_path(number: i32, stream: BorrowedFd<'_>) -> bool {
    // Nobody can open a socket, whatever its mode says.
    let is_socket = fstat(stream).is_ok_and(|there| kind(&there) == SFlag::S_IFSOCK);
    let path = format!("/proc/self/fd/{number}");
    !is_socket && access(path.as_str(), AccessFlags::W_OK) != Err(Errno::EACCES)
}

fn kind(there: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(there.st_mode) & SFlag::S_IFMT
}
