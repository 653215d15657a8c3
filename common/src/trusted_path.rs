//! Opening a directory only where nobody untrusted can change what its path leads to.
//!
//! The path is walked one component at a time and each is judged by its open descriptor, so that nothing can be
//! swapped between the look and the use.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};

/// As many symbolic links as the kernel follows in one path (path_resolution(7)).
const MOST_LINKS: u32 = 40;

/// Who may own what is on the way. Nobody else may be able to write there.
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

    /// The reason against a file or directory, if there is one.
    pub fn objection(&self, stat: &FileStat) -> Option<&'static str> {
        let sticky = self.sticky && is(stat, SFlag::S_IFDIR) && stat.st_mode & libc::S_ISVTX != 0;
        if !self.owner_is_trusted(stat) {
            Some("belongs to an ordinary user")
        } else if stat.st_mode & 0o022 != 0 && !sticky {
            Some("can be written by others than its owner")
        } else {
            None
        }
    }
}

/// Why a path is not trusted or cannot be opened: which part of it, and what about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Untrusted {
    pub at: PathBuf,
    pub cause: String,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.at.display(), self.cause)
    }
}

impl std::error::Error for Untrusted {}

/// Whether a file is of this type.
pub fn is(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == kind
}

/// Opens the directory at the absolute `path` (`O_PATH`), following only links that a trusted user made where only
/// trusted users can.
pub fn open_directory(path: &Path, trust: &Trust) -> Result<OwnedFd, Untrusted> {
    if !path.is_absolute() {
        return Err(Untrusted {
            at: path.into(),
            cause: "is not an absolute path".into(),
        });
    }
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at = PathBuf::from("/");
    let mut directory = open("/", flags, Mode::empty()).map_err(untrusted(&at))?;
    judge(&directory, &at, trust)?;
    let mut left = components(path);
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        let next = at.join(&name);
        let entry =
            openat(&directory, name.as_os_str(), flags, Mode::empty()).map_err(untrusted(&next))?;
        let stat = fstat(&entry).map_err(untrusted(&next))?;
        if is(&stat, SFlag::S_IFLNK) {
            links += 1;
            if links > MOST_LINKS {
                return Err(untrusted(&next)(Errno::ELOOP));
            }
            if !trust.owner_is_trusted(&stat) {
                return Err(Untrusted {
                    at: next,
                    cause: "is a symbolic link of an ordinary user".into(),
                });
            }
            let target =
                PathBuf::from(readlinkat(&entry, OsStr::new("")).map_err(untrusted(&next))?);
            for name in components(&target).into_iter().rev() {
                left.push_front(name);
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
                directory = open("/", flags, Mode::empty()).map_err(untrusted(&at))?;
            }
            continue;
        }
        judge(&entry, &next, trust)?;
        (directory, at) = (entry, next);
    }
    Ok(directory)
}

fn judge(directory: &OwnedFd, at: &Path, trust: &Trust) -> Result<(), Untrusted> {
    let stat = fstat(directory).map_err(untrusted(at))?;
    if !is(&stat, SFlag::S_IFDIR) {
        return Err(untrusted(at)(Errno::ENOTDIR));
    }
    // Whoever mounted it says what is in it and whom that belongs to.
    if fstatfs(directory).map_err(untrusted(at))?.filesystem_type() == FUSE_SUPER_MAGIC {
        return Err(Untrusted {
            at: at.into(),
            cause: "is on a file system that an ordinary user may serve".into(),
        });
    }
    match trust.objection(&stat) {
        Some(cause) => Err(Untrusted {
            at: at.into(),
            cause: cause.into(),
        }),
        None => Ok(()),
    }
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

fn untrusted(at: &Path) -> impl Fn(Errno) -> Untrusted + '_ {
    move |errno| Untrusted {
        at: at.into(),
        cause: format!("cannot be opened: {}", errno.desc()),
    }
}
