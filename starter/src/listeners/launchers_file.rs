//! The file of a unix socket that we have not made: is what is at its path still that file?
//!
//! Nothing in the socket leads to its file, but the kernel lists its inode number (sock_diag(7)). Where it does not, as for a
//! socket of another network namespace, the file that is there at the start has to do.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use common::stat::{find, has_type};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FileStat, SFlag, fstat};
use serde::{Deserialize, Serialize};

use crate::host::sock_diag;
use crate::listeners::second_name::{FileId, Named};

/// The file, as it was known when the server was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchersFile {
    #[serde(with = "crate::host::luggage::path")]
    path: PathBuf,
    identity: Identity,
}

/// What is known of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Identity {
    /// The lower half of its inode number.
    Inode(u32),
    AtStart(FileId),
    Unknown,
}

impl LaunchersFile {
    pub fn of(path: &Path, socket: &OwnedFd) -> LaunchersFile {
        let identity = match (inode_of_file(socket), find(AT_FDCWD, path)) {
            (Some(inode), _) => Identity::Inode(inode),
            (None, Ok(Some(there))) => Identity::AtStart(FileId::from(&there)),
            (None, Ok(None) | Err(_)) => Identity::Unknown,
        };
        LaunchersFile {
            path: path.to_owned(),
            identity,
        }
    }

    /// Whether the kernel says that its file is at its path.
    pub fn is_certainly_there(&self) -> bool {
        matches!(self.identity, Identity::Inode(_)) && self.named() == Named::Itself
    }

    /// What is now at its path.
    pub fn named(&self) -> Named {
        let is_it = |there: &FileStat| match &self.identity {
            Identity::Inode(inode) => lower_half(there.st_ino) == *inode,
            Identity::AtStart(file) => FileId::from(there) == *file,
            Identity::Unknown => true,
        };
        match find(AT_FDCWD, &self.path) {
            Ok(Some(there)) if has_type(&there, SFlag::S_IFSOCK) && is_it(&there) => Named::Itself,
            Ok(Some(_)) => Named::SomethingElse,
            // Also if a directory on the way is gone.
            Ok(None) | Err(Errno::ENOENT | Errno::ENOTDIR) => Named::Nothing,
            Err(_) => Named::Unknown,
        }
    }
}

/// The lower half of the inode number of the file that the socket is bound to, if the kernel tells.
fn inode_of_file(socket: &OwnedFd) -> Option<u32> {
    let ours = fstat(socket).ok()?.st_ino;
    let found = sock_diag::unix(|it| it.inode == ours).ok()?;
    found.first()?.file
}

fn lower_half(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn another_file_at_the_path_is_not_taken_for_the_sockets_own() {
        let folder = std::env::temp_dir().join(format!("launchers-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let (path, aside) = (folder.join("socket"), folder.join("aside"));
        let socket = OwnedFd::from(UnixListener::bind(&path).unwrap());
        let known = || LaunchersFile::of(&path, &socket);
        assert!(matches!(known().identity, Identity::Inode(_)));
        assert_eq!(known().named(), Named::Itself);
        fs::rename(&path, &aside).unwrap();
        assert_eq!(known().named(), Named::Nothing);
        // It was there before we looked.
        let other = UnixListener::bind(&path).unwrap();
        assert_eq!(known().named(), Named::SomethingElse);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(known().named(), Named::SomethingElse);
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        assert_eq!(known().named(), Named::Itself);
        drop(other);
        fs::remove_dir_all(&folder).unwrap();
    }
}
