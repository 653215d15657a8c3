//! A directory for the sockets of one generation, which only this user can enter: nobody else can send to them, or take
//! their place.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, mkdtemp, unlinkat};
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};

/// Where directories are made if TMPDIR says nothing useful.
const USUAL: &str = "/tmp";

/// The longest TMPDIR that leaves room for the name of a socket, in bytes (unix(7)).
const LONGEST: usize = 64;

/// A new directory. Dropping it removes it with its socket.
#[derive(Debug)]
pub struct PrivateDirectory {
    path: PathBuf,
    opened: OwnedFd,
    socket: &'static str,
}

/// A directory on its way to the next program, which is to remove it.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedDirectory {
    path: OsString,
    opened: Carried,
}

impl PrivateDirectory {
    /// For a socket of this name.
    ///
    /// # Errors
    /// Why none can be made, in TMPDIR or in /tmp.
    pub fn new(socket: &'static str) -> nix::Result<PrivateDirectory> {
        let wanted = std::env::var_os("TMPDIR").filter(|path| is_useful(path));
        let wanted = wanted.map(PathBuf::from);
        let made = wanted.and_then(|place| make(&place).ok());
        let path = made.map_or_else(|| make(Path::new(USUAL)), Ok)?;
        // Of what was made, and not of what somebody has put in its place, where the parent allows that.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = open(&path, flags, Mode::empty())?;
        let stat = nix::sys::stat::fstat(&opened)?;
        let is_ours = stat.st_uid == nix::unistd::geteuid().as_raw() && stat.st_mode & 0o077 == 0;
        match is_ours {
            true => Ok(PrivateDirectory {
                path,
                opened,
                socket,
            }),
            false => Err(Errno::EEXIST),
        }
    }

    /// For the next program. Whoever drops the original removes the directory nevertheless.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedDirectory {
        PackedDirectory {
            path: self.path.clone().into(),
            opened: luggage.put(&self.opened),
        }
    }

    /// The same directory again, with a socket of this name.
    pub fn unpack(packed: PackedDirectory, socket: &'static str) -> PrivateDirectory {
        PrivateDirectory {
            path: packed.path.into(),
            opened: packed.opened.take(),
            socket,
        }
    }

    /// The path of the socket, for others.
    pub fn path(&self) -> PathBuf {
        self.path.join(self.socket)
    }

    /// The same path for this process, whatever has become of the directories above.
    pub fn own_path(&self) -> PathBuf {
        let directory = format!("/proc/self/fd/{}", self.opened.as_raw_fd());
        Path::new(&directory).join(self.socket)
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = unlinkat(self.opened.as_fd(), self.socket, UnlinkatFlags::NoRemoveDir);
        // Of anything else than an empty directory this removes nothing.
        drop(std::fs::remove_dir(&self.path));
    }
}

/// mkdtemp(3) makes the directory for its owner alone.
fn make(place: &Path) -> nix::Result<PathBuf> {
    mkdtemp(&place.join("start_server-XXXXXX"))
}

/// Whether a path below it can be a key in `SERVER_STARTER_PORT`, and the address of a socket.
fn is_useful(path: &OsStr) -> bool {
    let is_plain = |byte: &u8| !b";=,".contains(byte);
    Path::new(path).is_absolute() && path.len() <= LONGEST && path.as_bytes().iter().all(is_plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_absolute_path_is_useful() {
        for path in ["", "tmp", "/a;b", "/a=b", "/a,b"] {
            assert!(!is_useful(path.as_ref()), "{path:?}");
        }
        assert!(!is_useful(format!("/{}", "x".repeat(LONGEST)).as_ref()));
        assert!(is_useful("/var/tmp".as_ref()));
    }

    #[test]
    fn it_is_removed_with_its_socket_and_nothing_else_is() {
        let directory = PrivateDirectory::new("socket").unwrap();
        let path = directory.path();
        std::fs::write(directory.own_path(), "").unwrap();
        assert!(path.exists());
        drop(directory);
        assert!(!path.parent().unwrap().exists());
        let directory = PrivateDirectory::new("socket").unwrap();
        let other = directory.path().with_file_name("other");
        std::fs::write(&other, "").unwrap();
        drop(directory);
        assert!(other.exists());
        std::fs::remove_dir_all(other.parent().unwrap()).unwrap();
    }
}
