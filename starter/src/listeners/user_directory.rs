//! A directory in which a user makes its own sockets: others may change what is in it at any moment.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use common::entry;
use common::message::Refusal;
use common::stat::has_type;
use common::unix_socket::SocketDirectory;
use nix::sys::stat::{FileStat, SFlag, fstat};

/// The open directory.
#[derive(Debug)]
pub struct UserDirectory(pub OwnedFd);

impl AsFd for UserDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl SocketDirectory for UserDirectory {
    fn remove(&self, name: &OsStr, file: &OwnedFd) -> nix::Result<bool> {
        entry::remove(&self.0, name, file)
    }

    /// It is none of ours if it was born before the directory has changed for the last time before the bind. Linux tells
    /// nobody but root which file a socket has (`SIOCUNIXFILE`).
    fn made(&self, before: &FileStat, file: OwnedFd) -> Result<Option<OwnedFd>, Refusal> {
        /// File systems take the time from a clock that goes by ticks, of 10 ms at the most.
        const TICK: Duration = Duration::from_millis(10);
        if !has_type(&fstat(&file)?, SFlag::S_IFSOCK) {
            return Err(Refusal::Replaced);
        }
        let file = File::from(file);
        // A file system without times of birth knows no better.
        let born = file.metadata().and_then(|metadata| metadata.created());
        let is_older = born.is_ok_and(|born| born + TICK < changed_at(before));
        Ok((!is_older).then(|| file.into()))
    }
}

/// The last change of a directory by the clock of its file system, which can be another machine's.
fn changed_at(directory: &FileStat) -> SystemTime {
    let seconds = Duration::from_secs(u64::try_from(directory.st_mtime).unwrap_or(0));
    let rest = Duration::from_nanos(u64::try_from(directory.st_mtime_nsec).unwrap_or(0));
    SystemTime::UNIX_EPOCH + seconds + rest
}
