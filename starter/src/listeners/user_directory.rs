//! A directory in which a user creates its own sockets: others may change its contents at any moment.

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

    /// A file that was created before the directory's last change before the bind is not ours. Linux tells only root which
    /// file a socket has (`SIOCUNIXFILE`).
    fn made(&self, before: &FileStat, file: OwnedFd) -> Result<Option<OwnedFd>, Refusal> {
        /// File systems take the time from a clock that advances in ticks of at most 10 ms.
        const TICK: Duration = Duration::from_millis(10);
        if !has_type(&fstat(&file)?, SFlag::S_IFSOCK) {
            return Err(Refusal::Replaced);
        }
        let file = File::from(file);
        // A file system without creation times cannot tell.
        let born = file.metadata().and_then(|metadata| metadata.created());
        let is_older = born.is_ok_and(|born| born + TICK < changed_at(before));
        Ok((!is_older).then(|| file.into()))
    }
}

/// The directory's last change by the clock of its file system, which may be another machine's.
fn changed_at(directory: &FileStat) -> SystemTime {
    let seconds = Duration::from_secs(u64::try_from(directory.st_mtime).unwrap_or(0));
    let rest = Duration::from_nanos(u64::try_from(directory.st_mtime_nsec).unwrap_or(0));
    SystemTime::UNIX_EPOCH + seconds + rest
}
