//! A unix socket at a path: made without following or deleting anything foreign, removed only if it is still ours.
//!
//! Used by the binder where only root can write, and by the supervisor where its own user can.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, umask};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};

use crate::message::Refusal;
use crate::trusted_path::is;

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        Refusal::Errno(errno as i32)
    }
}

/// The cause where a server listens on the socket at the path.
pub const SERVED: &str = "another server is listening on it";

fn refused(cause: impl Into<String>) -> Refusal {
    Refusal::Because(cause.into())
}

/// A path at which a socket can be bound: nothing is there, or a socket that nobody serves any more.
#[derive(Debug)]
pub struct Place {
    directory: OwnedFd,
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
    directory: OwnedFd,
    name: OsString,
    // Open, so that the number of the inode cannot be given to another file.
    file: OwnedFd,
}

impl Place {
    /// Looks at what is at `path`, an entry of `directory`.
    ///
    /// # Errors
    /// When something is there that is not a socket, or a socket that a server still listens on.
    pub fn examine(directory: OwnedFd, path: &Path) -> Result<Place, Refusal> {
        let name = match (path.file_name(), path.as_os_str().as_encoded_bytes().last()) {
            (Some(name), Some(last)) if *last != b'/' => name.to_owned(),
            _ => return Err(refused("it names a directory")),
        };
        let stale = match look(&directory, &name)? {
            None => None,
            Some(stat) if is(&stat, SFlag::S_IFSOCK) => {
                let stale = open_entry(&directory, &name)?;
                if !same_file(&stat, &fstat(&stale)?) {
                    return Err(refused("it changes while it is looked at"));
                }
                if is_served(path)? {
                    return Err(refused(SERVED));
                }
                Some(stale)
            }
            Some(stat) => {
                return Err(refused(format!(
                    "it exists and is {}, not a socket",
                    kind(&stat)
                )));
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
        let launchers = umask(Mode::empty());
        let bound = bind(socket.as_raw_fd(), &address);
        umask(launchers);
        bound?;
        let file = open_entry(&self.directory, &self.name).inspect_err(|_| {
            // Out of descriptors, a moment after the bind: it is ours still. The first error is the one to tell.
            let _ = unlinkat(
                &self.directory,
                self.name.as_os_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        })?;
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

    fn remove_stale(&self) -> Result<bool, Refusal> {
        let Some(stale) = &self.stale else {
            return Ok(false);
        };
        match look(&self.directory, &self.name)? {
            Some(now) if same_file(&now, &fstat(stale)?) => {
                unlinkat(
                    &self.directory,
                    self.name.as_os_str(),
                    UnlinkatFlags::NoRemoveDir,
                )?;
                Ok(true)
            }
            Some(_) => Err(refused(
                "it was replaced by something else during the start",
            )),
            None => Ok(false),
        }
    }
}

impl MadeFile {
    fn give_to(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Refusal> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        Ok(fchownat(&self.file, "", uid, gid, AtFlags::AT_EMPTY_PATH)?)
    }

    /// Removes the file if it is still the one that was bound; whatever else is there by now stays.
    pub fn remove(&self) {
        if let (Ok(Some(now)), Ok(ours)) = (look(&self.directory, &self.name), fstat(&self.file))
            && same_file(&now, &ours)
        {
            // Nothing is left to do where that fails: the next start replaces the socket.
            let _ = unlinkat(
                &self.directory,
                self.name.as_os_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
    }
}

fn look(directory: &OwnedFd, name: &OsStr) -> Result<Option<FileStat>, Refusal> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn open_entry(directory: &OwnedFd, name: &OsStr) -> nix::Result<OwnedFd> {
    openat(
        directory,
        name,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

fn same_file(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn kind(stat: &FileStat) -> &'static str {
    let kinds = [
        (SFlag::S_IFREG, "a regular file"),
        (SFlag::S_IFDIR, "a directory"),
        (SFlag::S_IFLNK, "a symbolic link"),
        (SFlag::S_IFIFO, "a fifo"),
        (SFlag::S_IFCHR, "a device"),
        (SFlag::S_IFBLK, "a device"),
    ];
    kinds
        .iter()
        .find(|(flag, _)| is(stat, *flag))
        .map_or("something else", |(_, name)| name)
}

/// Whether somebody accepts on the socket at `path`, of whatever type it is.
pub fn is_served(path: &Path) -> Result<bool, Refusal> {
    // Without waiting: a server whose queue is full answers EAGAIN.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(refused(format!(
            "cannot tell whether a server listens on it: {}",
            errno.desc()
        ))),
    }
}
