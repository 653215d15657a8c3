//! A pipe on which a worker writes a line feed once it serves: s6's notification-fd
//! (<https://skarnet.org/software/s6/notifywhenup.html>).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, read};

use crate::host::luggage::{Carried, Luggage};

/// Our end.
#[derive(Debug)]
pub struct Pipe(OwnedFd);

/// What a look at the pipe has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The line feed.
    Line,
    /// Nothing yet, though other bytes may have come.
    Nothing,
    /// The worker has closed it, and so has every process that got it from the worker.
    Closed,
}

impl Pipe {
    /// Our end and the worker's.
    pub fn open() -> nix::Result<(Pipe, OwnedFd)> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        // On our side only: the two ends are separate open file descriptions.
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Pipe(ours), theirs))
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> Carried {
        luggage.put(&self.0)
    }

    /// The same pipe again.
    pub fn unpack(packed: Carried) -> Pipe {
        Pipe(packed.take())
    }

    /// Reads a bounded amount of what has come.
    pub fn read(&self) -> Found {
        let mut portion = [0; 4096];
        match read(&self.0, &mut portion) {
            Ok(0) => Found::Closed,
            Ok(length) if portion[..length].contains(&b'\n') => Found::Line,
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Found::Nothing,
            Err(_) => Found::Closed,
        }
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use nix::unistd::write;

    use super::*;

    #[test]
    fn only_a_line_feed_counts() {
        let (ours, theirs) = Pipe::open().unwrap();
        assert_eq!(ours.read(), Found::Nothing);
        write(&theirs, b"ready").unwrap();
        assert_eq!(ours.read(), Found::Nothing);
        write(&theirs, b"ready\n").unwrap();
        assert_eq!(ours.read(), Found::Line);
        drop(theirs);
        assert_eq!(ours.read(), Found::Closed);
    }
}
