//! Opening a directory only if nobody untrusted can change what its path leads to.
//!
//! The path is walked one component at a time and each is checked by its open descriptor: nothing can be swapped between
//! the check and the use.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

use crate::stat::has_type;

/// As many symbolic links as the kernel follows in one path (path_resolution(7)).
const MOST_LINKS: u32 = 40;

/// Who may own the components. Nobody else may be able to write there.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Root is always trusted.
    pub owner: Option<u32>,
    /// A directory that everybody can write is accepted if it is sticky: what a trusted user owns in it stays.
    pub sticky: bool,
}

impl Trust {
    /// Only root, and no directory that anybody else can write.
    pub const ROOT: Trust = Trust {
        owner: None,
        sticky: false,
    };

    fn owner_is_trusted(&self, stat: &FileStat) -> bool {
        stat.st_uid == 0 || Some(stat.st_uid) == self.owner
    }

    /// The objection to a file or directory, if there is one.
    pub fn objection(&self, stat: &FileStat) -> Option<Distrust> {
        let sticky =
            self.sticky && has_type(stat, SFlag::S_IFDIR) && stat.st_mode & libc::S_ISVTX != 0;
        if !self.owner_is_trusted(stat) {
            Some(Distrust::OwnedByUser)
        } else if stat.st_mode & 0o022 != 0 && !sticky {
            Some(Distrust::WritableByOthers)
        } else {
            None
        }
    }
}

/// Why a path is not trusted or cannot be opened: which part of it, and what about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untrusted {
    /// No `PathBuf`, because serde refuses one that is not UTF-8.
    pub at: OsString,
    pub why: Distrust,
}

/// What is wrong with one part of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Distrust {
    /// The whole path is not absolute.
    Relative,
    /// It cannot be opened or examined, with this errno.
    Errno(i32),
    /// A symbolic link that an ordinary user made.
    LinkOfUser,
    /// On a file system that an ordinary user may serve (FUSE), and thus determines contents and ownership.
    ServedByUser,
    OwnedByUser,
    WritableByOthers,
}

/// Opens the directory at the absolute `path` (`O_PATH`), following only links that a trusted user made where only
/// trusted users can.
///
/// # Errors
/// The first part of the path that cannot be opened or is not trusted.
pub fn open_directory(path: &Path, trust: &Trust) -> Result<OwnedFd, Untrusted> {
    if !path.is_absolute() {
        return Err(untrusted(path, Distrust::Relative));
    }
    let mut at = PathBuf::from("/");
    let mut directory = open_root(trust)?;
    let mut left = components(path);
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        let next = at.join(&name);
        let entry =
            openat(&directory, name.as_os_str(), FLAGS, Mode::empty()).map_err(failed(&next))?;
        let stat = fstat(&entry).map_err(failed(&next))?;
        if !has_type(&stat, SFlag::S_IFLNK) {
            check_directory(&entry, &stat, &next, trust)?;
            (directory, at) = (entry, next);
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(failed(&next)(Errno::ELOOP));
        }
        if !trust.owner_is_trusted(&stat) {
            return Err(untrusted(&next, Distrust::LinkOfUser));
        }
        let target = PathBuf::from(readlinkat(&entry, OsStr::new("")).map_err(failed(&next))?);
        for name in components(&target).into_iter().rev() {
            left.push_front(name);
        }
        if target.is_absolute() {
            at = PathBuf::from("/");
            directory = open_root(trust)?;
        }
    }
    Ok(directory)
}

const FLAGS: OFlag = OFlag::O_PATH
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

fn open_root(trust: &Trust) -> Result<OwnedFd, Untrusted> {
    let at = Path::new("/");
    let root = open(at, FLAGS, Mode::empty()).map_err(failed(at))?;
    let stat = fstat(&root).map_err(failed(at))?;
    check_directory(&root, &stat, at, trust)?;
    Ok(root)
}

fn check_directory(
    directory: &OwnedFd,
    stat: &FileStat,
    at: &Path,
    trust: &Trust,
) -> Result<(), Untrusted> {
    if !has_type(stat, SFlag::S_IFDIR) {
        return Err(failed(at)(Errno::ENOTDIR));
    }
    let file_system = fstatfs(directory).map_err(failed(at))?.filesystem_type();
    if file_system == FUSE_SUPER_MAGIC {
        return Err(untrusted(at, Distrust::ServedByUser));
    }
    match trust.objection(stat) {
        Some(why) => Err(untrusted(at, why)),
        None => Ok(()),
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

fn untrusted(at: &Path, why: Distrust) -> Untrusted {
    let at = at.into();
    Untrusted { at, why }
}

fn failed(at: &Path) -> impl Fn(Errno) -> Untrusted + '_ {
    move |errno| untrusted(at, Distrust::Errno(errno as i32))
}
