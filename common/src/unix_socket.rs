//! A unix socket at a path: created without following or deleting anything foreign, removed only if it is still ours.
//!
//! Used by the binder where only root can write, and by the supervisor where its own user can.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, umask};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};

use crate::message::Refusal;
use crate::stat::{file_type_of, find, has_type, same_file};

/// The directory of a socket: who can change its contents decides how a file is removed and identified.
pub trait SocketDirectory: AsFd {
    /// Removes the entry of this file; returns whether the file had it.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn remove(&self, name: &OsStr, file: &OwnedFd) -> nix::Result<bool>;

    /// The file that has the name of a socket right after it was bound, if it can be the socket's own. `before` is
    /// fstat(2) of the directory before that.
    ///
    /// # Errors
    /// If it is something else.
    fn made(&self, before: &FileStat, file: OwnedFd) -> Result<Option<OwnedFd>, Refusal>;
}

/// A directory that only root can change: what was examined is still there, and so is what was bound.
#[derive(Debug)]
pub struct RootDirectory(pub OwnedFd);

impl AsFd for RootDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl SocketDirectory for RootDirectory {
    fn remove(&self, name: &OsStr, file: &OwnedFd) -> nix::Result<bool> {
        let ours = fstat(file)?;
        let has_it = find(&self.0, name)?.is_some_and(|there| same_file(&there, &ours));
        if has_it {
            unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir)?;
        }
        Ok(has_it)
    }

    fn made(&self, _before: &FileStat, file: OwnedFd) -> Result<Option<OwnedFd>, Refusal> {
        Ok(Some(file))
    }
}

/// A path at which a socket can be bound: nothing is there, or a stale socket.
#[derive(Debug)]
pub struct Place<D> {
    directory: D,
    name: OsString,
    path: PathBuf,
    // Kept open, so that its inode number cannot be reused meanwhile.
    stale: Option<OwnedFd>,
}

/// A socket that was bound at a path.
#[derive(Debug)]
pub struct Made<D> {
    pub socket: OwnedFd,
    pub file: MadeFile<D>,
    /// A stale socket was removed before.
    pub replaced: bool,
}

/// The file of a bound socket.
#[derive(Debug)]
pub struct MadeFile<D> {
    directory: D,
    name: OsString,
    /// Kept open, so that its inode number cannot be reused. `None` if another file has the name.
    file: Option<OwnedFd>,
}

impl<D: SocketDirectory> Place<D> {
    /// Finds out what is at `path`, an entry of `directory`.
    ///
    /// # Errors
    /// If something is there that is not a socket, or a socket that a server still listens on.
    pub fn examine(directory: D, path: &Path) -> Result<Place<D>, Refusal> {
        let name = name_of(path)?;
        let stale = match find(&directory, name.as_os_str())? {
            None => None,
            Some(stat) if has_type(&stat, SFlag::S_IFSOCK) => {
                let stale = open_entry(&directory, &name)?;
                if !same_file(&stat, &fstat(&stale)?) {
                    return Err(Refusal::Changing);
                }
                if is_served(path)? {
                    return Err(Refusal::Served);
                }
                Some(stale)
            }
            Some(stat) => {
                let file_type = file_type_of(&stat);
                return Err(Refusal::NotASocket { file_type });
            }
        };
        Ok(Place {
            directory,
            name,
            path: path.to_owned(),
            stale,
        })
    }

    /// Whether nothing is there, so that binding removes nothing.
    pub fn is_free(&self) -> bool {
        self.stale.is_none()
    }

    /// The directory in which the socket will be created.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Binds a stream socket there, with exactly these permission bits and owners; it does not listen yet.
    ///
    /// Changes the process's umask for a moment: the process must have one thread.
    pub fn bind(self, mode: u32, uid: Option<u32>, gid: Option<u32>) -> Result<Made<D>, Refusal> {
        let replaced = self.remove_stale()?;
        let socket = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        // The file takes the mode of its socket at bind, less the umask (unix(7) does not say so, Linux does it):
        // it is never more permissive than requested.
        fchmod(&socket, Mode::from_bits_truncate(mode & 0o777))?;
        let address = UnixAddr::new(&self.path)?;
        // A lack of descriptors must not prevent us from opening what the bind has created.
        let spare = open_entry(&self.directory, OsStr::new("."))?;
        let before = fstat(&self.directory)?;
        let launchers = umask(Mode::empty());
        let bound = bind(socket.as_raw_fd(), &address);
        umask(launchers);
        bound?;
        drop(spare);
        let file = match open_entry(&self.directory, &self.name) {
            Ok(file) => self.directory.made(&before, file)?,
            Err(Errno::ENOENT) => return Err(Refusal::Replaced),
            Err(errno) => return Err(errno.into()),
        };
        let file = MadeFile::of(self.directory, self.name, file);
        if uid.is_some() || gid.is_some() {
            file.give_to(uid, gid).inspect_err(|_| file.remove())?;
        }
        Ok(Made {
            socket,
            file,
            replaced,
        })
    }

    fn remove_stale(&self) -> Result<bool, Refusal> {
        let Some(stale) = &self.stale else {
            return Ok(false);
        };
        if self.directory.remove(&self.name, stale)? {
            return Ok(true);
        }
        match find(&self.directory, self.name.as_os_str())? {
            Some(_) => Err(Refusal::Replaced),
            None => Ok(false),
        }
    }
}

impl<D: SocketDirectory> MadeFile<D> {
    /// The file of a socket that is bound there, if it is known.
    pub fn of(directory: D, name: OsString, file: Option<OwnedFd>) -> MadeFile<D> {
        MadeFile {
            directory,
            name,
            file,
        }
    }

    pub(crate) fn give_to(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Refusal> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        let file = self.file.as_ref().ok_or(Refusal::Replaced)?;
        Ok(fchownat(file, "", uid, gid, AtFlags::AT_EMPTY_PATH)?)
    }

    /// Its directory, and its name there.
    pub fn place(&self) -> (&D, &OsStr) {
        (&self.directory, &self.name)
    }

    /// The file, if it is known.
    pub fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    /// Removes the file if it is still the one that was bound; anything else is left alone.
    pub fn remove(&self) {
        if let Some(file) = &self.file {
            // If that fails nothing is left to do: the next start replaces the socket.
            let _ = self.directory.remove(&self.name, file);
        }
    }
}

/// The name of a file in its directory.
pub(crate) fn name_of(path: &Path) -> Result<OsString, Refusal> {
    match (path.file_name(), path.as_os_str().as_encoded_bytes().last()) {
        (Some(name), Some(last)) if *last != b'/' => Ok(name.to_owned()),
        _ => Err(Refusal::NamesDirectory),
    }
}

/// Only to identify it: this descriptor cannot read it.
pub(crate) fn open_entry(directory: impl AsFd, name: &OsStr) -> nix::Result<OwnedFd> {
    openat(
        directory,
        name,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// Whether a process accepts on the socket at `path`, of whatever type it is.
pub fn is_served(path: &Path) -> Result<bool, Refusal> {
    // Non-blocking: a server whose queue is full answers EAGAIN.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Refusal::MaybeServed(errno as i32)),
    }
}
