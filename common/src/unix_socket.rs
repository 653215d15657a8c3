//! A unix socket at a path: made without following or deleting anything foreign, removed only if it is still ours.
//!
//! Used by the binder where only root can write, and by the supervisor where its own user can.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, umask};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};

use crate::entry::{self, find, same_file};
use crate::message::Refusal;
use crate::trusted_path::{file_type_of, has_type};

/// The directory of a socket, by who can change what is in it.
#[derive(Debug)]
pub enum Directory {
    /// Root alone: what was looked at is still there.
    OfRoot(OwnedFd),
    /// Somebody else may, at any moment.
    Shared(OwnedFd),
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Directory::OfRoot(directory) | Directory::Shared(directory) => directory.as_fd(),
        }
    }
}

impl Directory {
    /// Removes the entry of this file; returns whether the file had it.
    fn remove(&self, name: &OsStr, file: &OwnedFd) -> nix::Result<bool> {
        match self {
            Directory::Shared(directory) => entry::remove(directory, name, file),
            Directory::OfRoot(directory) => {
                let ours = fstat(file)?;
                let has_it = find(directory, name)?.is_some_and(|there| same_file(&there, &ours));
                if has_it {
                    unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?;
                }
                Ok(has_it)
            }
        }
    }
}

/// A path at which a socket can be bound: nothing is there, or a socket that nobody serves any more.
#[derive(Debug)]
pub struct Place {
    directory: Directory,
    name: OsString,
    path: PathBuf,
    // Open, so that the number of its inode cannot be given to another file meanwhile.
    stale: Option<OwnedFd>,
}

/// A socket that was bound at a path.
#[derive(Debug)]
pub struct Made {
    pub socket: OwnedFd,
    pub file: MadeFile,
    /// A socket that nobody served was removed before.
    pub replaced: bool,
}

/// The file of a bound socket.
#[derive(Debug)]
pub struct MadeFile {
    directory: Directory,
    name: OsString,
    /// Open, so that the number of the inode cannot be given to another file. None where another file has the name.
    file: Option<OwnedFd>,
}

impl Place {
    /// Looks at what is at `path`, an entry of `directory`.
    ///
    /// # Errors
    /// When something is there that is not a socket, or a socket that a server still listens on.
    pub fn examine(directory: Directory, path: &Path) -> Result<Place, Refusal> {
        let name = match (path.file_name(), path.as_os_str().as_encoded_bytes().last()) {
            (Some(name), Some(last)) if *last != b'/' => name.to_owned(),
            _ => return Err(Refusal::NamesDirectory),
        };
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

    /// The directory that the socket is to be made in.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Binds a stream socket there, with exactly these permission bits and owners; it does not listen yet.
    ///
    /// Changes the process's umask for a moment: the process must have one thread.
    pub fn bind(self, mode: u32, uid: Option<u32>, gid: Option<u32>) -> Result<Made, Refusal> {
        let replaced = self.remove_stale()?;
        let socket = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        // The file takes the mode of its socket at bind, less the umask (unix(7) does not say so, Linux does it):
        // at no moment is it more open than asked for.
        fchmod(&socket, Mode::from_bits_truncate(mode & 0o777))?;
        let address = UnixAddr::new(&self.path)?;
        // So that no lack of descriptors can come between the bind and the look at what it has made.
        let spare = open_entry(&self.directory, OsStr::new("."))?;
        let changed = changed_at(&self.directory)?;
        let launchers = umask(Mode::empty());
        let bound = bind(socket.as_raw_fd(), &address);
        umask(launchers);
        bound?;
        drop(spare);
        let file = match open_entry(&self.directory, &self.name) {
            Ok(file) => self.if_made_since(changed, file)?,
            Err(Errno::ENOENT) => return Err(Refusal::Replaced),
            Err(errno) => return Err(errno.into()),
        };
        let file = MadeFile {
            directory: self.directory,
            name: self.name,
            file,
        };
        if uid.is_some() || gid.is_some() {
            file.give_to(uid, gid).inspect_err(|_| file.remove())?;
        }
        Ok(Made {
            socket,
            file,
            replaced,
        })
    }

    /// This file, if it can be that of a socket which was bound after the directory had changed then. Linux tells nobody
    /// but root which file a socket has (`SIOCUNIXFILE`).
    fn if_made_since(
        &self,
        changed: SystemTime,
        file: OwnedFd,
    ) -> Result<Option<OwnedFd>, Refusal> {
        /// File systems take the time from a clock that goes by ticks, of 10 ms at the most.
        const TICK: Duration = Duration::from_millis(10);
        if matches!(self.directory, Directory::OfRoot(_)) {
            return Ok(Some(file));
        }
        if !has_type(&fstat(&file)?, SFlag::S_IFSOCK) {
            return Err(Refusal::Replaced);
        }
        let file = File::from(file);
        // A file system without times of birth knows no better.
        let born = file.metadata().and_then(|metadata| metadata.created());
        let is_older = born.is_ok_and(|born| born + TICK < changed);
        Ok((!is_older).then(|| file.into()))
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

impl MadeFile {
    fn give_to(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Refusal> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        let file = self.file.as_ref().ok_or(Refusal::Replaced)?;
        Ok(fchownat(file, "", uid, gid, AtFlags::AT_EMPTY_PATH)?)
    }

    /// Removes the file if it is still the one that was bound; whatever else is there by now stays.
    pub fn remove(&self) {
        if let Some(file) = &self.file {
            // Nothing is left to do where that fails: the next start replaces the socket.
            let _ = self.directory.remove(&self.name, file);
        }
    }
}

/// The last change of a directory by the clock of its file system, which can be another machine's.
fn changed_at(directory: &Directory) -> nix::Result<SystemTime> {
    let stat = fstat(directory)?;
    let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    let rest = Duration::from_nanos(u64::try_from(stat.st_mtime_nsec).unwrap_or(0));
    Ok(SystemTime::UNIX_EPOCH + seconds + rest)
}

fn open_entry(directory: &Directory, name: &OsStr) -> nix::Result<OwnedFd> {
    openat(
        directory,
        name,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// Whether somebody accepts on the socket at `path`, of whatever type it is.
pub fn is_served(path: &Path) -> Result<bool, Refusal> {
    // Without waiting: a server whose queue is full answers EAGAIN.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Refusal::MaybeServed(errno as i32)),
    }
}
