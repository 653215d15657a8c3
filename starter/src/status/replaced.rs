//! A file that is replaced as a whole by rename: a reader never sees half of it.
//!
//! Anything else that appears at its path, before or after the first write, is left alone.
//!
//! Where only root can rename, root has made the file for this user, and it is written in place: under a lock, for which
//! our own readers wait.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use common::entry::{self, same_file};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag};
use nix::poll::ppoll;
use nix::sys::stat::{FileStat, fstat};
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::access::{self, Expected};
use crate::host::luggage::{Carried, Luggage};
use crate::host::proc;
use crate::words::failure::{self, Failure};
use crate::words::notice::Notice;
use crate::words::remedy;
use crate::words::text::quoted;

/// The largest file that is read, in bytes.
const LARGEST: u64 = 16 * 1024 * 1024;

/// How many drafts may have been left behind by processes that had our pid.
const MOST_DRAFTS: u32 = 100;

/// Such a file.
#[derive(Debug)]
pub struct Replaced {
    path: PathBuf,
    /// Its mode, whatever the umask.
    least_mode: u32,
    /// What may be replaced: the last version written, or before that what was there already. Kept open, lest its inode
    /// number be reused for another file.
    there: Option<File>,
    /// Root has made it, and removes it at the end.
    is_in_place: bool,
    /// The last text that was written.
    text: Option<Rc<str>>,
    is_failing: bool,
}

/// The same for the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedReplaced {
    #[serde(with = "crate::host::luggage::path")]
    path: PathBuf,
    there: Option<Carried>,
    #[serde(default)]
    is_in_place: bool,
    text: Option<String>,
    is_failing: bool,
}

/// The result of a save.
#[derive(Debug)]
pub struct Saved {
    /// Everything is done.
    pub is_done: bool,
    /// Saves begin to fail, or work again.
    pub notice: Option<Notice>,
}

impl Replaced {
    /// Nothing is written yet; there may be a stale file.
    ///
    /// # Errors
    /// If something else is there (it is left alone).
    pub fn new(
        path: PathBuf,
        least_mode: u32,
        is_stale: impl Fn(&str) -> bool,
    ) -> Result<Replaced, Failure> {
        let there = refuse_foreign(&path, is_stale)?;
        Ok(Replaced {
            path,
            least_mode,
            there,
            is_in_place: false,
            text: None,
            is_failing: false,
        })
    }

    /// One that root has made here for this user; it is still empty.
    pub fn made(path: PathBuf, least_mode: u32, file: File) -> Replaced {
        Replaced {
            path,
            least_mode,
            there: Some(file),
            is_in_place: true,
            text: None,
            is_failing: false,
        }
    }

    /// For the next program, to which the file belongs then.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedReplaced {
        PackedReplaced {
            path: self.path.clone(),
            there: self.there.as_ref().map(|there| luggage.put(there)),
            is_in_place: self.is_in_place,
            text: self.text.as_deref().map(str::to_owned),
            is_failing: self.is_failing,
        }
    }

    /// What another program has packed.
    pub fn unpack(packed: PackedReplaced, least_mode: u32) -> Replaced {
        Replaced {
            path: packed.path,
            least_mode,
            there: packed.there.map(|there| there.take().into()),
            is_in_place: packed.is_in_place,
            text: packed.text.map(Rc::from),
            is_failing: packed.is_failing,
        }
    }

    /// Takes over what lies there. Whoever wrote it last may have died before it could say that it did.
    pub fn find_again(&mut self, is_ours: impl Fn(&str) -> bool) {
        if !self.is_failing
            && let Ok((text, file)) = open_text(&self.path)
            && is_ours(&text)
        {
            (self.there, self.text) = (Some(file), Some(text.into()));
        }
    }

    /// Whether it was ever written.
    pub fn is_written(&self) -> bool {
        self.text.is_some()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// That of the last version written.
    pub fn metadata(&self) -> Option<Metadata> {
        self.there.as_ref()?.metadata().ok()
    }

    /// Writes it for the first time.
    ///
    /// # Errors
    /// If that is not possible here.
    pub fn create(&mut self, text: &Rc<str>) -> Result<(), Failure> {
        let path = self.path.clone();
        match self.write(text) {
            Ok(true) => Ok(()),
            Ok(false) => Err(cannot(&path, "something else has appeared there")),
            Err(error) => Err(cannot_create(&path, &error)),
        }
    }

    /// Removes what was there already.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_stale(&mut self) -> Result<(), Failure> {
        if self.is_in_place {
            return Ok(());
        }
        let Some(stale) = self.there.take() else {
            return Ok(());
        };
        match entry::remove(AT_FDCWD, self.path.as_os_str(), stale) {
            Ok(_) => Ok(()),
            Err(errno) => Err(cannot(&self.path, errno.desc())),
        }
    }

    /// Writes a text that differs from the last one. If another instance has replaced our file, that one is left alone.
    pub fn save(&mut self, text: &Rc<str>) -> Saved {
        if self.text.as_ref() == Some(text) {
            return Saved {
                is_done: true,
                notice: None,
            };
        }
        let path = self.path.clone();
        let (notice, fails, is_done) = match self.write(text) {
            Ok(true) => (Notice::SavedAgain { path }, false, true),
            Ok(false) => (Notice::TakenOver { path }, true, true),
            Err(error) => {
                let cause = failure::cause(&error);
                (Notice::CannotSave { path, cause }, true, false)
            }
        };
        let is_news = std::mem::replace(&mut self.is_failing, fails) != fails;
        Saved {
            is_done,
            notice: is_news.then_some(notice),
        }
    }

    /// Removes it if it is still ours.
    pub fn remove(&self) {
        if let (Some(ours), true) = (&self.there, self.is_written()) {
            // The next start replaces a stale file.
            let _ = entry::remove(AT_FDCWD, self.path.as_os_str(), ours);
        }
    }

    /// Returns whether it was written: nothing that is not ours is replaced.
    fn write(&mut self, text: &Rc<str>) -> io::Result<bool> {
        if self.is_in_place {
            return self.write_in_place(text);
        }
        let (draft, mut file) = create_beside(&self.path)?;
        let ours = self.there.as_ref().map(fstat).transpose()?;
        let may_go = |there: &FileStat| ours.as_ref().is_some_and(|ours| same_file(ours, there));
        let replaced = file
            .metadata()
            .map(|made| made.mode() & 0o777 | self.least_mode)
            .and_then(|mode| file.set_permissions(Permissions::from_mode(mode)))
            .and_then(|()| file.write_all(text.as_bytes()))
            .and_then(|()| {
                let (draft, path) = (draft.as_os_str(), self.path.as_os_str());
                Ok(entry::replace(AT_FDCWD, draft, path, may_go)?)
            });
        match replaced {
            Ok(true) => (self.text, self.there) = (Some(Rc::clone(text)), Some(file)),
            // The error that matters is that of the write.
            _ => {
                let _ = entry::remove(AT_FDCWD, draft.as_os_str(), &file);
            }
        }
        replaced
    }
}

impl Replaced {
    /// The close at the end tells watchers of the directory.
    fn write_in_place(&mut self, text: &Rc<str>) -> io::Result<bool> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(flags.bits())
            .open(&self.path)?;
        let ours = self.there.as_ref().map(fstat).transpose()?;
        let there = fstat(&file)?;
        if !ours.is_some_and(|ours| same_file(&ours, &there)) {
            return Ok(false);
        }
        let file = locked(file, FlockArg::LockExclusiveNonblock);
        let bytes = text.as_bytes();
        file.write_all_at(bytes, 0)?;
        // Afterwards: a reader that does not wait finds an old end rather than nothing.
        file.set_len(bytes.len() as u64)?;
        self.text = Some(Rc::clone(text));
        Ok(true)
    }
}

/// Either kind of access to a file that is written in place.
enum Access {
    Locked(Flock<File>),
    /// Somebody else holds the lock for longer than a write takes. Nobody waits for that.
    Unlocked(File),
}

impl Deref for Access {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Access::Locked(file) => file,
            Access::Unlocked(file) => file,
        }
    }
}

fn locked(mut file: File, how: FlockArg) -> Access {
    const MOST_TRIES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(1);
    for _ in 0..MOST_TRIES {
        match Flock::lock(file, how) {
            Ok(locked) => return Access::Locked(locked),
            Err((unlocked, _)) => file = unlocked,
        }
        let _ = ppoll(&mut [], Some(TimeSpec::from_duration(PAUSE)), None);
    }
    Access::Unlocked(file)
}

/// The text of a status or pid file. Whatever somebody has put there instead can neither block nor flood the reader. No
/// link is followed: root asks servers of other users, and merely opening a device can have an effect.
pub fn read_text(path: &Path) -> io::Result<String> {
    read_open(&locked(open(path)?, FlockArg::LockSharedNonblock))
}

fn open_text(path: &Path) -> io::Result<(String, File)> {
    let file = open(path)?;
    Ok((read_open(&file)?, file))
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => io::Error::other("it is a symbolic link"),
            _ => error,
        })?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

fn read_open(file: &File) -> io::Result<String> {
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// For a dry run: whether it could be written. Nothing is.
///
/// # Errors
/// Those of a start.
pub fn examine(
    path: &Path,
    expected: &Expected,
    is_stale: impl Fn(&str) -> bool,
) -> Result<(), Failure> {
    refuse_foreign(path, is_stale)?;
    access::can_make(path, expected).map_err(|error| cannot_create(path, &error))
}

fn cannot_create(path: &Path, error: &io::Error) -> Failure {
    let failure = match error.kind() {
        io::ErrorKind::NotFound => cannot(path, "its directory does not exist"),
        _ => cannot(path, &failure::cause(error)),
    };
    let errno = error.raw_os_error().map(Errno::from_raw);
    failure.hint_if(errno.and_then(|errno| remedy::of_file(path, errno)))
}

pub fn cannot(path: &Path, cause: &str) -> Failure {
    Failure::failed(format!(
        "cannot write the status file {}: {cause}",
        quoted(path)
    ))
}

/// The stale status file that is there, if any.
pub fn refuse_foreign(
    path: &Path,
    is_stale: impl Fn(&str) -> bool,
) -> Result<Option<File>, Failure> {
    const SOMETHING_ELSE: &str = "it contains something other than a status and is left alone";
    let there = match path.symlink_metadata() {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(path, &failure::cause(&error))),
    };
    if !there.is_file() {
        return Err(cannot(path, "it is not a regular file"));
    }
    match open_text(path) {
        Ok((text, file)) if is_stale(&text) => Ok(Some(file)),
        Ok(_) => Err(cannot(path, SOMETHING_ELSE)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(cannot(path, SOMETHING_ELSE))
        }
        Err(error) => Err(cannot(path, &failure::cause(&error))),
    }
}

/// Removes the drafts of a superdaemon that was killed between creating and renaming one.
pub fn remove_drafts_of_the_dead(path: &Path, is_draft: impl Fn(&str) -> bool) {
    let (Some(name), Some(directory)) = (path.file_name(), directory_of(path)) else {
        return;
    };
    let is_alive = |pid: &str| {
        let pid = pid.parse().map(Pid::from_raw);
        pid.is_ok_and(proc::exists)
    };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let draft = entry.path();
        let is_left = entry
            .file_name()
            .to_str()
            .and_then(|entry| entry.strip_prefix(name.to_str()?)?.strip_prefix('.'))
            .and_then(|rest| rest.split_once('.'))
            .is_some_and(|(pid, attempt)| {
                let is_number = |text: &str| text.parse::<u32>().is_ok();
                is_number(pid) && is_number(attempt) && !is_alive(pid)
            });
        if is_left
            && let Ok((text, file)) = open_text(&draft)
            && is_draft(&text)
        {
            // Left behind, it does no harm.
            let _ = entry::remove(AT_FDCWD, draft.as_os_str(), file);
        }
    }
}

fn directory_of(path: &Path) -> Option<&Path> {
    match path.parent() {
        Some(directory) if directory == Path::new("") => Some(Path::new(".")),
        directory => directory,
    }
}

/// A new file in the same directory: never an existing one, never through a link.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    for attempt in 0..MOST_DRAFTS {
        let draft = PathBuf::from(entry::beside(path.as_os_str(), attempt));
        match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&draft)
        {
            Ok(file) => return Ok((draft, file)),
            Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EEXIST.into())
}
