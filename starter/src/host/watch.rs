//! Watches on directories (inotify(7)), for files that appear, change or disappear.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use common::descriptors::{FIRST, close_inherited};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, pipe2, read};

use super::process::{exit_child, fork_single_threaded};

/// Watches nothing yet. It becomes readable when something happens, and reading never blocks.
pub fn new() -> nix::Result<Inotify> {
    Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
}

/// Adds a directory; adding it twice has no effect.
pub fn add(inotify: &Inotify, directory: &Path) -> nix::Result<()> {
    let changes = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ATTRIB;
    inotify.add_watch(directory, changes).map(drop)
}

/// Lets another process do the last close of the descriptor, for which the kernel takes up to 30 ms: an exit that somebody
/// waits for must not wait for that. That process has nothing else, and ends once what is returned is closed, by this
/// process or its exit.
///
/// # Errors
/// Those of pipe(2) and fork(2): then this process itself closes it, and all that is lost is time.
pub fn close_elsewhere(inotify: &Inotify) -> nix::Result<OwnedFd> {
    let (until, lives) = pipe2(OFlag::O_CLOEXEC)?;
    match fork_single_threaded()? {
        ForkResult::Parent { .. } => Ok(lives),
        ForkResult::Child => {
            let code = match keep(inotify, &until) {
                Ok(()) => 0,
                Err(_) => 1,
            };
            exit_child(code)
        }
    }
}

fn keep(inotify: &Inotify, until: &OwnedFd) -> nix::Result<()> {
    dup2_stdin(until)?;
    dup2_stdout(inotify)?;
    dup2_stderr(inotify)?;
    // Whoever reads what the other process writes would wait for this one too. Nothing here uses an owner of these
    // descriptors again, and the exit drops none.
    close_inherited(FIRST)?;
    while read(io::stdin().as_fd(), &mut [0]) == Err(Errno::EINTR) {}
    Ok(())
}
