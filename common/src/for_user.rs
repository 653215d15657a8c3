//! A file or directory that root makes for the user, in a directory that only root can change. What is there already is
//! never opened to the user: a file of the user's is replaced by a new one, a directory of the user's stays, and anything
//! else is left alone.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, umask};
use nix::unistd::{Gid, Uid, fchownat};

use crate::message::{Identity, Kind, Refusal};
use crate::stat::{file_type_of, find, has_type, same_file};
use crate::unix_socket::{MadeFile, RootDirectory, SocketDirectory, name_of, open_entry};

/// How a file is made: never one that is there, however it got there.
pub const NEW_FILE: OFlag = OFlag::O_RDWR
    .union(OFlag::O_CREAT)
    .union(OFlag::O_EXCL)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// The mode of a file, less the umask.
pub const FILE_MODE: u32 = 0o644;

/// The mode of a directory, whatever the umask.
pub const DIRECTORY_MODE: u32 = 0o755;

/// A path at which it can be made.
#[derive(Debug)]
pub struct Place {
    directory: RootDirectory,
    name: OsString,
    kind: Kind,
    /// What the user has there. Kept open, so that its inode number cannot be reused meanwhile.
    there: Option<OwnedFd>,
}

/// What was made, or was there.
#[derive(Debug)]
pub struct Made {
    /// A file for reading and writing; a directory only as proof.
    pub descriptor: OwnedFd,
    /// What must be removed at the end.
    pub file: Option<MadeFile<RootDirectory>>,
}

impl Place {
    /// Finds out what is at `path`, an entry of `directory`.
    ///
    /// # Errors
    /// If something is there that is of another type, not the user's, or a file with a second name.
    pub fn examine(
        directory: RootDirectory,
        path: &Path,
        kind: Kind,
        user: u32,
    ) -> Result<Place, Refusal> {
        let name = name_of(path)?;
        let wanted = match kind {
            Kind::File => SFlag::S_IFREG,
            Kind::Directory => SFlag::S_IFDIR,
        };
        let there = match find(&directory, name.as_os_str())? {
            None => None,
            Some(stat) if !has_type(&stat, wanted) => {
                let file_type = file_type_of(&stat);
                return Err(Refusal::OtherType { file_type });
            }
            Some(stat) if stat.st_uid != user => {
                let uid = stat.st_uid;
                return Err(Refusal::OfAnother { uid });
            }
            Some(stat) if kind == Kind::File && stat.st_nlink != 1 => {
                return Err(Refusal::HardLinks);
            }
            Some(stat) => {
                let there = open_entry(&directory, &name)?;
                if !same_file(&stat, &fstat(&there)?) {
                    return Err(Refusal::Changing);
                }
                Some(there)
            }
        };
        Ok(Place {
            directory,
            name,
            kind,
            there,
        })
    }

    /// The directory in which it will be made, and what that is.
    pub fn work(&self) -> (BorrowedFd<'_>, Kind) {
        (self.directory.as_fd(), self.kind)
    }

    /// Makes it and gives it to the user.
    ///
    /// Changes the process's umask for a moment: the process must have one thread.
    ///
    /// # Errors
    /// If something else has appeared there, or a system call fails.
    pub fn make(self, user: &Identity) -> Result<Made, Refusal> {
        match (self.kind, &self.there) {
            (Kind::File, Some(stale)) => drop(self.directory.remove(&self.name, stale)?),
            (Kind::Directory, Some(_)) | (_, None) => {}
        }
        match self.kind {
            Kind::File => self.make_file(user),
            Kind::Directory => self.make_directory(user),
        }
    }

    fn make_file(self, user: &Identity) -> Result<Made, Refusal> {
        // A lack of descriptors must not prevent us from identifying what was made.
        let spare = open_entry(&self.directory, OsStr::new("."))?;
        let mode = Mode::from_bits_truncate(FILE_MODE);
        let descriptor =
            openat(&self.directory, self.name.as_os_str(), NEW_FILE, mode).map_err(appeared)?;
        drop(spare);
        let made = open_entry(&self.directory, &self.name)?;
        let file = MadeFile::of(self.directory, self.name, Some(made));
        file.give_to(Some(user.uid), Some(user.gid))
            .inspect_err(|_| file.remove())?;
        Ok(Made {
            descriptor,
            file: Some(file),
        })
    }

    fn make_directory(self, user: &Identity) -> Result<Made, Refusal> {
        let file = None;
        if let Some(descriptor) = self.there {
            return Ok(Made { descriptor, file });
        }
        let launchers = umask(Mode::empty());
        let mode = Mode::from_bits_truncate(DIRECTORY_MODE);
        let made = mkdirat(&self.directory, self.name.as_os_str(), mode);
        umask(launchers);
        made.map_err(appeared)?;
        let descriptor = open_entry(&self.directory, &self.name)?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        fchownat(
            &descriptor,
            "",
            Some(uid),
            Some(gid),
            AtFlags::AT_EMPTY_PATH,
        )?;
        Ok(Made { descriptor, file })
    }
}

fn appeared(errno: Errno) -> Refusal {
    match errno {
        Errno::EEXIST => Refusal::Replaced,
        errno => errno.into(),
    }
}
