//! Opening standard output and error by path: a server that logs to /dev/stderr opens what is behind it once more, and
//! depends on the permissions that its creator gave it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{AccessFlags, Uid, access, fchown};

/// The file system of unnamed pipes (`PIPEFS_MAGIC`, statfs(2)).
const PIPEFS: FsType = FsType(0x5049_5045);

/// Gives root's pipes on descriptors 1 and 2 to the user, as container runtimes do: only unnamed ones, which the
/// launcher has made for this very purpose. A file, a FIFO or a terminal stays root's, and so does a pipe that root may
/// not give away.
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

/// Whether this user can open standard output or error by its path. If that cannot be known, as with a closed
/// descriptor, the answer is yes.
pub fn can_open_by_path(number: i32, stream: BorrowedFd<'_>) -> bool {
    // Nobody can open a socket, whatever its mode says.
    let is_socket = fstat(stream).is_ok_and(|there| kind(&there) == SFlag::S_IFSOCK);
    let path = format!("/proc/self/fd/{number}");
    !is_socket && access(path.as_str(), AccessFlags::W_OK) != Err(Errno::EACCES)
}

fn kind(there: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(there.st_mode) & SFlag::S_IFMT
}
