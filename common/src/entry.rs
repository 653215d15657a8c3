//! A name in a directory where others can write as well: it is taken from the file that it was given to, and from
//! nothing else that has come there meanwhile.
//!
//! Linux knows no such call. unlink(2) and rename(2) take whatever has the name in that moment, which another process
//! may have put there after the last look. So what has the name is moved aside or exchanged in one step (rename(2),
//! `RENAME_NOREPLACE` and `RENAME_EXCHANGE`), looked at where nobody else expects it, and put back if it is foreign.
//! Where a file system cannot do that, the last look is what counts.
//!
//! `directory` is a directory or `AT_FDCWD`, `name` a name in it or a path from there.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, RenameFlags, renameat, renameat2};
use nix::sys::stat::{FileStat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// As often as somebody may be faster than we are, and as many names as may be taken already.
const MOST_TRIES: u32 = 100;

/// What has this name, without following it; `None` where nothing has it.
///
/// # Errors
/// As fstatat(2).
pub fn look<P: ?Sized + NixPath>(directory: impl AsFd, name: &P) -> nix::Result<Option<FileStat>> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether both are the same file. It must be held open: the number of an inode that is gone is given to the next file.
#[must_use]
pub fn same_file(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// A name beside `name` that nobody else expects.
#[must_use]
pub fn beside(name: &OsStr, attempt: u32) -> OsString {
    let mut beside = name.to_owned();
    beside.push(format!(".{}.{attempt}", std::process::id()));
    beside
}

/// Removes the name of this file; returns whether the file had it.
///
/// # Errors
/// When it cannot be removed. Then it is where it was, or beside it if somebody took the name in that moment.
pub fn remove(directory: impl AsFd, name: &OsStr, file: impl AsFd) -> nix::Result<bool> {
    let ours = fstat(file)?;
    let is_ours = |name: &OsStr| -> nix::Result<bool> {
        Ok(look(&directory, name)?.is_some_and(|there| same_file(&there, &ours)))
    };
    let unlink = |name: &OsStr| unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir);
    if !is_ours(name)? {
        return Ok(false);
    }
    for attempt in 0..MOST_TRIES {
        let aside = beside(name, attempt);
        match rename_to_free(&directory, name, &aside) {
            Ok(()) if is_ours(&aside)? => return unlink(&aside).map(|()| true),
            Ok(()) => return rename_to_free(&directory, &aside, name).map(|()| false),
            Err(Errno::EEXIST) => {}
            Err(Errno::ENOENT) => return Ok(false),
            Err(errno) if is_unknown_here(errno) => return unlink(name).map(|()| true),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EEXIST)
}

/// Gives `name` to the file that is named `draft`, if nobody has it or somebody who `may_go`, whose file is removed;
/// returns whether that was so. If not, both are as they were.
///
/// # Errors
/// When it cannot be renamed.
pub fn replace(
    directory: impl AsFd,
    draft: &OsStr,
    name: &OsStr,
    may_go: impl Fn(&FileStat) -> bool,
) -> nix::Result<bool> {
    let exchange = || {
        renameat2(
            &directory,
            draft,
            &directory,
            name,
            RenameFlags::RENAME_EXCHANGE,
        )
    };
    let may_go = |there: Option<FileStat>| there.is_none_or(|there| may_go(&there));
    for _ in 0..MOST_TRIES {
        let there = look(&directory, name)?;
        let is_free = there.is_none();
        if !may_go(there) {
            return Ok(false);
        }
        let renamed = match is_free {
            true => rename_to_free(&directory, draft, name),
            false => exchange(),
        };
        match renamed {
            Ok(()) if is_free => return Ok(true),
            Ok(()) if may_go(look(&directory, draft)?) => {
                return unlinkat(&directory, draft, UnlinkatFlags::NoRemoveDir).map(|()| true);
            }
            Ok(()) => return exchange().map(|()| false),
            // Something came there, or went, after the look.
            Err(Errno::EEXIST | Errno::ENOENT) => {}
            Err(errno) if is_unknown_here(errno) => {
                return renameat(&directory, draft, &directory, name).map(|()| true);
            }
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EEXIST)
}

fn rename_to_free(directory: impl AsFd, from: &OsStr, to: &OsStr) -> nix::Result<()> {
    renameat2(
        &directory,
        from,
        &directory,
        to,
        RenameFlags::RENAME_NOREPLACE,
    )
}

/// The file system knows no such rename, or the name has no room for a number.
fn is_unknown_here(errno: Errno) -> bool {
    matches!(errno, Errno::EINVAL | Errno::ENOSYS | Errno::ENAMETOOLONG)
}
