//! Watches on directories (inotify(7)), for files that appear, change or disappear.

use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

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
