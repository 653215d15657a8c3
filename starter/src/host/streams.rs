//! Opening standard output and error by path: a server that logs to /dev/stderr opens what is behind it once more, and
//! depends on the permissions that its creator gave it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{AccessFlags, access};

/// The file system of unnamed pipes (`PIPEFS_MAGIC`, statfs(2)).
const PIPEFS: FsType = FsType(0x5049_5045);

/// The mode of a pipe that its owner reads and writes, and everybody else only writes.
const WRITTEN_BY_ALL: Mode = Mode::from_bits_retain(0o622);

/// Lets the user open root's pipes on descriptors 1 and 2 for writing: only unnamed ones, which nobody can reach who does
/// not have them open already. A file, a FIFO or a terminal stays closed. Container runtimes give the pipe to the user
/// instead, who could then read from it and outlive its reader.
pub fn let_user_write_to_pipes() {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    for stream in [stdout.as_fd(), stderr.as_fd()] {
        if is_pipe_of_root(stream) {
            // Without it, a program that opens the stream by its path is told that it may not.
            let _ = fchmod(stream, WRITTEN_BY_ALL);
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
