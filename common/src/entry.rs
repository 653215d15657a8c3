//! Removing and replacing a name in a directory where others can write too: only the file that is meant loses its name,
//! never one that has appeared there meanwhile. The binder works in no such directory.
//!
//! Linux has no such call. unlink(2) and rename(2) act on whatever has the name at that moment, which another process
//! may have put there after the last check. So what has the name is moved aside or exchanged atomically (rename(2),
//! `RENAME_NOREPLACE` and `RENAME_EXCHANGE`), examined where nobody else expects it, and put back if it is foreign.
//! If a file system cannot do that, the last check has to do.
//!
//! `directory` is a directory or `AT_FDCWD`, `name` a name in it or a path from there.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat, renameat2};
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::stat::find;
pub use crate::stat::same_file;

/// How often another process may be faster, and how many names may be taken already.
const MOST_TRIES: u32 = 100;

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
/// If it cannot be removed. Then it is where it was, or beside it if somebody took the name at that moment.
pub fn remove(directory: impl AsFd, name: &OsStr, file: impl AsFd) -> nix::Result<bool> {
    let ours = fstat(file)?;
    let is_ours = |name: &OsStr| -> nix::Result<bool> {
        Ok(find(&directory, name)?.is_some_and(|there| same_file(&there, &ours)))
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

/// Gives `name` to the file that is named `draft`, if nothing has it or a file that `may_go`, which is removed; returns
/// whether that was so. If not, both are as they were.
///
/// # Errors
/// If it cannot be renamed.
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
        let there = find(&directory, name)?;
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
            Ok(()) if may_go(find(&directory, draft)?) => {
                return unlinkat(&directory, draft, UnlinkatFlags::NoRemoveDir).map(|()| true);
            }
            Ok(()) => return exchange().map(|()| false),
            // Something has appeared there, or is gone, since the check.
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

/// The file system does not support this rename, or the name has no room for a number.
fn is_unknown_here(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::ENAMETOOLONG
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;

    use super::*;

    /// A directory of its own for each test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("entry-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Folder(path)
        }

        fn open(&self) -> OwnedFd {
            File::open(&self.0).unwrap().into()
        }

        fn put(&self, name: &str, text: &str) -> File {
            fs::write(self.0.join(name), text).unwrap();
            File::open(self.0.join(name)).unwrap()
        }

        /// Names and texts.
        fn content(&self) -> Vec<(String, String)> {
            let entries = fs::read_dir(&self.0).unwrap().map(Result::unwrap);
            let mut all: Vec<_> = entries
                .map(|entry| {
                    let text = fs::read_to_string(entry.path()).unwrap();
                    (entry.file_name().into_string().unwrap(), text)
                })
                .collect();
            all.sort();
            all
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        all.iter().map(owned).collect()
    }

    #[test]
    fn only_the_very_file_is_removed() {
        let folder = Folder::new("remove");
        let ours = folder.put("name", "ours");
        assert_eq!(remove(folder.open(), OsStr::new("name"), &ours), Ok(true));
        assert_eq!(folder.content(), []);
        folder.put("name", "foreign");
        for name in ["name", "missing"] {
            assert_eq!(remove(folder.open(), OsStr::new(name), &ours), Ok(false));
        }
        assert_eq!(folder.content(), pairs(&[("name", "foreign")]));
    }

    #[test]
    fn what_is_in_the_way_aside_stays() {
        let folder = Folder::new("aside");
        let aside = beside(OsStr::new("name"), 0).into_string().unwrap();
        folder.put(&aside, "foreign");
        let ours = folder.put("name", "ours");
        assert_eq!(remove(folder.open(), OsStr::new("name"), &ours), Ok(true));
        assert_eq!(folder.content(), pairs(&[(&aside, "foreign")]));
    }

    #[test]
    fn only_what_may_go_is_replaced() {
        let folder = Folder::new("replace");
        let replace = |may_go: bool| {
            let names = ["draft", "name"].map(OsStr::new);
            replace(folder.open(), names[0], names[1], |_| may_go)
        };
        folder.put("draft", "first");
        assert_eq!(replace(false), Ok(true), "nothing was there");
        assert_eq!(folder.content(), pairs(&[("name", "first")]));
        folder.put("draft", "second");
        let both = pairs(&[("draft", "second"), ("name", "first")]);
        assert_eq!(replace(false), Ok(false));
        assert_eq!(folder.content(), both);
        assert_eq!(replace(true), Ok(true));
        assert_eq!(folder.content(), pairs(&[("name", "second")]));
    }

    #[test]
    fn what_appears_between_the_check_and_the_exchange_is_put_back() {
        let folder = Folder::new("exchange");
        let (ours, _draft) = (folder.put("name", "ours"), folder.put("draft", "draft"));
        let ours = fstat(&ours).unwrap();
        let swapped = std::cell::Cell::new(false);
        let may_go = |there: &FileStat| {
            let goes = same_file(there, &ours);
            // After the check that it answers.
            if !swapped.replace(true) {
                fs::rename(folder.0.join("name"), folder.0.join("was there")).unwrap();
                folder.put("name", "foreign");
            }
            goes
        };
        let names = ["draft", "name"].map(OsStr::new);
        assert_eq!(
            replace(folder.open(), names[0], names[1], may_go),
            Ok(false)
        );
        let expected = [
            ("draft", "draft"),
            ("name", "foreign"),
            ("was there", "ours"),
        ];
        assert_eq!(folder.content(), pairs(&expected));
    }
}
