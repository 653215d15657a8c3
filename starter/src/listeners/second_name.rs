//! A second, hidden name for the file of a unix socket, so that the first can be restored.
//!
//! A file without a name can never get one again (linkat(2)), and a bound socket cannot be bound again (unix(7)):
//! whoever removes its only name cuts it off for good, and with it every worker that accepts on it. Servers that
//! believe that the socket is theirs do so when they exit, just when a new generation has begun to accept on it.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use common::entry;
use common::stat::{find, has_type};
use common::unix_socket::is_served;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::linkat;
use serde::{Deserialize, Serialize};

/// What is put before and after the name of the socket.
const AROUND: [&str; 2] = [".", ".start_server"];

/// What is at the path of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// Its own file.
    Itself,
    Nothing,
    SomethingElse,
    /// This user cannot see it.
    Unknown,
}

/// Which file it is, by what stat(2) says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    device: libc::dev_t,
    inode: libc::ino_t,
}

impl From<&FileStat> for FileId {
    fn from(stat: &FileStat) -> FileId {
        FileId {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

/// What is now at the `path` of the socket with this file.
pub fn named(path: &Path, file: &OwnedFd) -> Named {
    fstat(file).map_or(Named::Unknown, |ours| named_as(path, FileId::from(&ours)))
}

/// The same for a file that is not held open. Its inode number cannot be reused while the socket is open, because the
/// socket keeps the file.
pub fn named_as(path: &Path, ours: FileId) -> Named {
    match find(AT_FDCWD, path) {
        Ok(Some(there)) if FileId::from(&there) == ours => Named::Itself,
        Ok(Some(_)) => Named::SomethingElse,
        // Also if a directory on the way is gone.
        Ok(None) | Err(Errno::ENOENT | Errno::ENOTDIR) => Named::Nothing,
        Err(_) => Named::Unknown,
    }
}

/// The second name of the socket at a path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecondName(#[serde(with = "crate::host::luggage::path")] PathBuf);

impl SecondName {
    /// The second name for the socket at `path`; [`SecondName::keep`] creates it.
    pub fn of(path: &Path) -> SecondName {
        let [before, after] = AROUND;
        let mut name = OsString::from(before);
        name.push(path.file_name().unwrap_or_default());
        name.push(after);
        SecondName(path.with_file_name(name))
    }

    /// Gives this name to the file, which must still have another one. A socket left over from a killed start_server is
    /// replaced, as at the path itself. If the file system, or what is already there, does not allow it, the file gets
    /// no second name.
    pub fn keep(&self, file: &OwnedFd) {
        if named(&self.0, file) == Named::Itself {
            return;
        }
        if give(file, &self.0) == Err(Errno::EEXIST) && self.remove_stale() {
            // If another process was faster, it keeps the name.
            let _ = give(file, &self.0);
        }
    }

    /// Restores the first name, which must be free. Returns whether that worked.
    pub fn restore(&self, file: &OwnedFd, path: &Path) -> bool {
        give(file, path).is_ok()
    }

    /// Removes this name, if the file has it.
    pub fn remove(&self, file: &OwnedFd) {
        // If that fails, the next start replaces it.
        let _ = entry::remove(AT_FDCWD, self.0.as_os_str(), file);
    }

    fn remove_stale(&self) -> bool {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(stale) = open(&self.0, flags, Mode::empty()) else {
            return false;
        };
        let is_socket = fstat(&stale).is_ok_and(|stat| has_type(&stat, SFlag::S_IFSOCK));
        is_socket
            && is_served(&self.0) == Ok(false)
            && entry::remove(AT_FDCWD, self.0.as_os_str(), &stale) == Ok(true)
    }
}

/// Gives the open file one more name, if that name is free.
fn give(file: &OwnedFd, path: &Path) -> nix::Result<()> {
    // By its number in /proc, as linkat(2) suggests: AT_EMPTY_PATH needs privilege.
    let by_number = format!("/proc/self/fd/{}", file.as_raw_fd());
    let by_number = by_number.as_str();
    linkat(
        AT_FDCWD,
        by_number,
        AT_FDCWD,
        path,
        AtFlags::AT_SYMLINK_FOLLOW,
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("second-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn opened(path: &Path) -> OwnedFd {
        open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()).unwrap()
    }

    #[test]
    fn a_socket_whose_name_was_removed_gets_it_back() {
        let folder = Folder::new("back");
        let path = folder.0.join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let file = opened(&path);
        let second = SecondName::of(&path);
        second.keep(&file);
        fs::remove_file(&path).unwrap();
        assert_eq!(named(&path, &file), Named::Nothing);
        assert!(second.restore(&file, &path));
        assert_eq!(named(&path, &file), Named::Itself);
        UnixStream::connect(&path).unwrap();
        second.remove(&file);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn what_has_taken_the_name_keeps_it() {
        let folder = Folder::new("taken");
        let path = folder.0.join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let file = opened(&path);
        let second = SecondName::of(&path);
        second.keep(&file);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "foreign").unwrap();
        assert_eq!(named(&path, &file), Named::SomethingElse);
        assert!(!second.restore(&file, &path));
        assert_eq!(fs::read_to_string(&path).unwrap(), "foreign");
    }

    #[test]
    fn only_a_socket_that_nobody_serves_is_replaced_by_a_second_name() {
        let folder = Folder::new("stale");
        let path = folder.0.join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let file = opened(&path);
        let second = SecondName::of(&path);
        fs::write(&second.0, "foreign").unwrap();
        second.keep(&file);
        assert_eq!(fs::read_to_string(&second.0).unwrap(), "foreign");
        fs::remove_file(&second.0).unwrap();
        drop(UnixListener::bind(&second.0).unwrap());
        second.keep(&file);
        assert_eq!(named(&second.0, &file), Named::Itself);
        // Keeping it twice does no harm.
        second.keep(&file);
        assert_eq!(named(&second.0, &file), Named::Itself);
    }
}
