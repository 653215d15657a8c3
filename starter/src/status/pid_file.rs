//! `--pid-file`: the pid of the supervisor, locked for as long as it lives.
//!
//! The lock is what counts: a file without it is stale, whatever number it contains.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::entry;
use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, Flock, FlockArg, OFlag};
use nix::poll::ppoll;
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::access::{self, Expected};
use crate::host::locks::{self, Holder};
use crate::host::luggage::{Carried, Luggage};
use crate::words::failure::{self, Failure};
use crate::words::notice::Notice;
use crate::words::remedy;
use crate::words::text::quoted;

const SOMETHING_ELSE: &str = "it contains something other than a pid and is left alone";

/// The locked file; removed when dropped, if it is still ours.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: Locked,
    /// Its content, unless somebody else writes to it.
    pid: u32,
    /// It has been reported that others write to it.
    is_shared: bool,
    /// It has been reported that it cannot be rewritten.
    is_lost: bool,
    /// It was made again, and locked by this process, which need not be the one to signal.
    is_new: bool,
}

/// The same for the next program, which has the lock because it has the open file.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedPidFile {
    #[serde(with = "crate::host::luggage::path")]
    path: PathBuf,
    file: Carried,
    pid: u32,
    is_shared: bool,
    is_lost: bool,
    is_new: bool,
}

/// A file that is locked exclusively (flock(2)) until this is dropped, even if a child that was just forked has it open
/// too. Unlike a [`Flock`] it can be made of a file that is locked already.
#[derive(Debug)]
struct Locked(File);

impl Locked {
    fn lock(file: File) -> Result<Locked, (File, Errno)> {
        match flock(&file, FlockArg::LockExclusiveNonblock) {
            Ok(()) => Ok(Locked(file)),
            Err(errno) => Err((file, errno)),
        }
    }
}

/// Makes this process the one that has locked the file, for whoever looks for the holder. It must be locked already, by this
/// process or another one that has it open.
pub fn lock_again(file: &File) {
    const MOST_TRIES: u32 = 50;
    const PAUSE: Duration = Duration::from_millis(2);
    // The same lock once more would change nothing.
    let _ = flock(file, FlockArg::LockSharedNonblock);
    for _ in 0..MOST_TRIES {
        // A client may just look at it.
        if flock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            return;
        }
        let _ = ppoll(&mut [], Some(TimeSpec::from_duration(PAUSE)), None);
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // If it fails, the last one who closes the file unlocks it.
        let _ = flock(&self.0, FlockArg::Unlock);
    }
}

#[expect(
    deprecated,
    reason = "its successor takes no file that is locked already"
)]
fn flock(file: &File, how: FlockArg) -> nix::Result<()> {
    fcntl::flock(file.as_raw_fd(), how)
}

impl PidFile {
    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedPidFile {
        PackedPidFile {
            path: self.path.clone(),
            file: luggage.put(self.file.as_fd()),
            pid: self.pid,
            is_shared: self.is_shared,
            is_lost: self.is_lost,
            is_new: self.is_new,
        }
    }

    /// What another program has packed.
    pub fn unpack(packed: PackedPidFile) -> PidFile {
        PidFile {
            path: packed.path,
            file: Locked(packed.file.take().into()),
            pid: packed.pid,
            is_shared: packed.is_shared,
            is_lost: packed.is_lost,
            is_new: packed.is_new,
        }
    }

    /// Locks the file first and then writes `pid` into it, so that a running instance's file is never touched. `None` if
    /// somebody is only examining the file or has just removed it: the caller may try again.
    pub fn try_lock(path: &Path, pid: u32) -> Result<Option<PidFile>, Failure> {
        let file = open(path, true).map_err(|error| cannot_open(path, &error))?;
        PidFile::try_lock_open(path, file, pid)
    }

    /// The same for one that root has made there for this user.
    pub fn try_lock_made(path: &Path, file: &File, pid: u32) -> Result<Option<PidFile>, Failure> {
        if !is_at(file, path) {
            return Err(cannot_use(path, "another start has replaced it"));
        }
        let file = file.try_clone();
        let file = file.map_err(|error| cannot_use(path, &failure::cause(&error)))?;
        PidFile::try_lock_open(path, file, pid)
    }

    fn try_lock_open(path: &Path, file: File, pid: u32) -> Result<Option<PidFile>, Failure> {
        let cannot = |cause: &str| cannot_use(path, cause);
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(cannot("it is not a regular file"));
        }
        let file = match Locked::lock(file) {
            Ok(file) => file,
            // Not a server, but a client looking for one.
            Err((file, Errno::EWOULDBLOCK)) if has_no_holder(&file) => return Ok(None),
            Err((file, Errno::EWOULDBLOCK)) => {
                let why = locked_by(&file);
                // A killed server's child has the lock until it executes its program; by now it may have.
                return match has_no_holder(&file) {
                    true => Ok(None),
                    false => Err(cannot(&why)),
                };
            }
            Err((_, errno)) => return Err(cannot(errno.desc())),
        };
        // The previous holder of the lock may have removed the file when it exited: then the lock is on a file without a
        // name, and another instance could lock a new one.
        if !is_at(&file, path) {
            return Ok(None);
        }
        if recorded_pid(&file).is_err() {
            return Err(cannot(SOMETHING_ELSE));
        }
        let locked = PidFile {
            path: path.to_owned(),
            file,
            pid,
            is_shared: false,
            is_lost: false,
            is_new: false,
        };
        locked.write().map_err(|error| {
            let errno = error.raw_os_error().map(Errno::from_raw);
            cannot(&failure::cause(&error))
                .hint_if(errno.and_then(|errno| remedy::of_file(path, errno)))
        })?;
        Ok(Some(locked))
    }

    /// Before root replaces what this user has there.
    ///
    /// # Errors
    /// If a server has locked it, or it contains something other than a pid.
    pub fn refuse_used(path: &Path) -> Result<(), Failure> {
        match open(path, false) {
            Ok(file) if file.metadata().is_ok_and(|metadata| metadata.is_file()) => {
                match examine_open(path, &file)? {
                    Some(locked) => Err(cannot_use(path, &locked)),
                    None => Ok(()),
                }
            }
            // Root finds out what it is.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// This process is the one to signal from now on: writes its pid, and makes the lock its own.
    pub fn taken_over(&mut self) {
        self.pid = std::process::id();
        lock_again(&self.file);
        // If it cannot be written, the next look at it says so.
        drop(self.write());
    }

    /// The file, once, if another process has to lock it again.
    pub fn take_new(&mut self) -> Option<BorrowedFd<'_>> {
        mem::take(&mut self.is_new).then(|| self.file.as_fd())
    }

    /// For a dry run: by whom it is locked, if it is. The file is neither made nor changed.
    ///
    /// # Errors
    /// Those of a start, except that it is locked.
    pub fn examine(path: &Path, expected: &Expected) -> Result<Option<String>, Failure> {
        let file = match open(path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = access::can_make(path, expected).map(|()| None);
                return made.map_err(|error| cannot_open(path, &error));
            }
            Err(error) => return Err(cannot_open(path, &error)),
        };
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(cannot_use(path, "it is not a regular file"));
        }
        examine_open(path, &file)
    }

    /// Rewrites the file if somebody has removed, replaced or overwritten it; returns what is new about that. It costs a
    /// few system calls if nothing is wrong, and never blocks.
    #[must_use]
    pub fn restore(&mut self) -> Option<Notice> {
        if is_at(&self.file, &self.path) {
            return match recorded_pid(&self.file) {
                Ok(Some(pid)) if pid == self.pid => {
                    self.is_lost = false;
                    None
                }
                found => match self.write() {
                    Ok(()) => self.overwritten(found.unwrap_or_default()),
                    Err(_) => self.lost(|path| Notice::PidFileGone { path }),
                },
            };
        }
        let is_gone = self
            .path
            .symlink_metadata()
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        match PidFile::try_lock(&self.path, self.pid) {
            Ok(Some(mut again)) => {
                again.is_shared = self.is_shared;
                again.is_new = true;
                // The old one no longer has this name: dropping it removes nothing.
                *self = again;
                let path = self.path.clone();
                match is_gone {
                    true => Some(Notice::PidFileWrittenAgain { path }),
                    false => self.overwritten(None),
                }
            }
            // Retried at the next event.
            Ok(None) => None,
            Err(_) if is_gone => self.lost(|path| Notice::PidFileGone { path }),
            Err(_) => self.lost(|path| Notice::TakenOver { path }),
        }
    }

    /// It was restored; the same will happen with every generation, and is reported once.
    fn overwritten(&mut self, by: Option<u32>) -> Option<Notice> {
        self.is_lost = false;
        let is_known = mem::replace(&mut self.is_shared, true);
        let path = self.path.clone();
        (!is_known).then_some(Notice::PidFileOverwritten { path, by })
    }

    fn lost(&mut self, notice: impl FnOnce(PathBuf) -> Notice) -> Option<Notice> {
        let is_known = mem::replace(&mut self.is_lost, true);
        (!is_known).then(|| notice(self.path.clone()))
    }

    fn write(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file
            .write_all_at(format!("{}\n", self.pid).as_bytes(), 0)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // The next start replaces a stale file.
        let _ = entry::remove(AT_FDCWD, self.path.as_os_str(), self.file.as_fd());
    }
}

/// By whom it is locked, if it is; an error if it is not a pid file.
fn examine_open(path: &Path, file: &File) -> Result<Option<String>, Failure> {
    if !has_no_holder(file) {
        return Ok(Some(locked_by(file)));
    }
    match recorded_pid(file) {
        Ok(_) => Ok(None),
        Err(()) => Err(cannot_use(path, SOMETHING_ELSE)),
    }
}

/// The holder of a file's lock.
fn locked_by(file: &File) -> String {
    let written = recorded_pid(file).ok().flatten();
    match locks::holder(file, written.and_then(as_pid)) {
        Ok(Holder::Process(pid) | Holder::Hidden(pid)) => {
            format!("it is locked by a running instance, pid {pid}")
        }
        Ok(Holder::Elsewhere) => "it is locked by a process in another pid namespace".into(),
        _ => "it is locked by another process; fuser(1) shows which".into(),
    }
}

pub fn cannot_use(path: &Path, cause: &str) -> Failure {
    Failure::failed(format!("cannot use --pid-file={}: {cause}", quoted(path)))
}

fn cannot_open(path: &Path, error: &io::Error) -> Failure {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let failure = match errno {
        Some(Errno::ELOOP) => cannot_use(path, "it is a symbolic link"),
        Some(Errno::ENOENT) => cannot_use(path, "its directory does not exist"),
        _ => cannot_use(path, &failure::cause(error)),
    };
    failure.hint_if(errno.and_then(|errno| remedy::of_file(path, errno)))
}

fn open(path: &Path, may_create: bool) -> io::Result<File> {
    // Not truncated: it may be another instance's, or not a pid file at all. Non-blocking only in case of a fifo.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(may_create)
        .truncate(false)
        .mode(0o644)
        .custom_flags(flags.bits())
        .open(path)
}

/// The process with this pid, if the number can be one.
pub fn as_pid(number: u32) -> Option<Pid> {
    let number = i32::try_from(number).ok().filter(|number| *number > 0)?;
    Some(Pid::from_raw(number))
}

/// The longest content that is a pid, in bytes.
const LONGEST: usize = 16;

/// The pid in the file, `None` if it is empty; an error if it contains anything else.
pub fn recorded_pid(file: &File) -> Result<Option<u32>, ()> {
    let mut content = [0; LONGEST + 1];
    let length = file.read_at(&mut content, 0).map_err(drop)?;
    parse(&content[..length])
}

/// The same for its content, of which one byte more than the longest is enough.
pub fn parse(content: &[u8]) -> Result<Option<u32>, ()> {
    if content.len() > LONGEST {
        return Err(());
    }
    let text = std::str::from_utf8(content).map_err(drop)?;
    // Other programs of this kind write no newline.
    match text.strip_suffix('\n').unwrap_or(text) {
        "" => Ok(None),
        pid => pid.parse().map(Some).map_err(drop),
    }
}

/// Whether nobody has locked it exclusively: then somebody was only reading it, or has just let go of it.
fn has_no_holder(file: &File) -> bool {
    file.try_clone()
        .is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_ok())
}

/// Whether the path still names this very file.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;
    use std::mem::ManuallyDrop;

    use super::*;

    #[test]
    fn the_next_program_has_the_lock_and_gives_it_up_with_the_file() {
        let path = std::env::temp_dir().join(format!("packed-pid-{}", std::process::id()));
        // It shares the lock with the next one, and would remove its file.
        let mut before = ManuallyDrop::new(PidFile::try_lock(&path, 7).unwrap().unwrap());
        fs::write(&path, "8").unwrap();
        let notice = before.restore();
        assert!(matches!(notice, Some(Notice::PidFileOverwritten { .. })));
        let text = serde_json::to_string(&before.pack(&mut Luggage::default())).unwrap();
        let mut next = PidFile::unpack(serde_json::from_str(&text).unwrap());
        fs::write(&path, "8").unwrap();
        // That was reported.
        assert_eq!(next.restore(), None);
        assert_eq!(fs::read_to_string(&path).unwrap(), "7\n");
        let is_locked = |file: &File| {
            let file = file.try_clone().unwrap();
            Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
        };
        let client = File::open(&path).unwrap();
        assert!(is_locked(&client));
        drop(next);
        assert!(!is_locked(&client));
        assert!(!path.exists());
    }
}
