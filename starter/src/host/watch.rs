//! Watches on directories (inotify(7)), for files that appear, change or go there.

use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Watches nothing yet. It is readable when something has happened, and reading never blocks.
pub fn new() -> nix::Result<Inotify> {
    Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
}

/// Watches a directory as well. The same one a second time changes nothing.
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
