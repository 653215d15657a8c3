//! `--pid-file`: the pid of the supervisor, locked for as long as it lives.
//!
//! The lock is what counts: a file without it is stale, whatever number it holds.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use common::entry;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::log;
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::remedy;
use crate::words::text::printable;

/// The locked file; removed when dropped, if it is still ours.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: Flock<File>,
}

impl PidFile {
    /// Locks the file first and writes `pid` into it then, so that a running instance's file is never touched.
    pub fn lock(path: &Path, pid: u32) -> Result<PidFile, Failure> {
        let cannot = |cause: &dyn std::fmt::Display| {
            Failure::failed(format!(
                "cannot use --pid-file={}: {cause}",
                printable(path)
            ))
        };
        loop {
            let file = open(path).map_err(|error| {
                let errno = error.raw_os_error().map(Errno::from_raw);
                let failure = match errno {
                    Some(Errno::ELOOP) => cannot(&"it is a symbolic link"),
                    Some(Errno::ENOENT) => cannot(&"its directory does not exist"),
                    _ => cannot(&crate::words::failure::cause(&error)),
                };
                failure.hint_if(errno.and_then(|errno| remedy::of_file(path, errno)))
            })?;
            if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
                return Err(cannot(&"it is not a regular file"));
            }
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                // Not a server, but somebody who looks for one: over in a moment.
                Err((file, Errno::EWOULDBLOCK)) if is_read_locked(&file) => continue,
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let holder = match recorded_pid(&mut file) {
                        Ok(Some(pid)) if !is_alive(pid) => {
                            format!(
                                "it is locked by a process that is not the pid in it, {pid}; fuser(1) shows which"
                            )
                        }
                        Ok(Some(pid)) => format!("it is locked by a running instance, pid {pid}"),
                        _ => "it is locked by a running instance".into(),
                    };
                    return Err(cannot(&holder));
                }
                Err((_, errno)) => return Err(cannot(&errno.desc())),
            };
            // Whoever held the lock a moment ago may have removed the file at its end: then the lock is on a file
            // without a name, and another instance could lock a new one.
            if !is_at(&file, path) {
                continue;
            }
            if recorded_pid(&mut file).is_err() {
                return Err(cannot(
                    &"it holds something else than a pid; it is left as it is",
                ));
            }
            let locked = PidFile {
                path: path.to_owned(),
                file,
            };
            locked
                .write(pid)
                .map_err(|error| cannot(&crate::words::failure::cause(&error)))?;
            return Ok(locked);
        }
    }

    /// Writes and locks the file again if somebody has removed it.
    pub fn restore(&mut self) {
        if self.path.symlink_metadata().is_ok() {
            return;
        }
        match PidFile::lock(&self.path, std::process::id()) {
            Ok(again) => {
                // The old one has no name any more: its end removes nothing.
                *self = again;
                log::say(Notice::PidFileWrittenAgain {
                    path: self.path.clone(),
                });
            }
            Err(_) => log::say(Notice::PidFileGone {
                path: self.path.clone(),
            }),
        }
    }

    fn write(&self, pid: u32) -> std::io::Result<()> {
        let mut file: &File = &self.file;
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{pid}\n").as_bytes())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // The next start replaces a stale file.
        let _ = entry::remove(AT_FDCWD, self.path.as_os_str(), self.file.as_fd());
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    // Not truncated: it may be another instance's, or no pid file at all. Non-blocking only for a fifo's sake.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(flags.bits())
        .open(path)
}

fn is_alive(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

/// The longest content that is a pid, in bytes.
const LONGEST: u64 = 16;

/// The pid in the file, none if it is empty; an error if it holds anything else.
pub fn recorded_pid(file: &mut File) -> Result<Option<u32>, ()> {
    let mut content = Vec::new();
    file.rewind().map_err(drop)?;
    Read::by_ref(file)
        .take(LONGEST + 1)
        .read_to_end(&mut content)
        .map_err(drop)?;
    parse(&content)
}

/// The same of the content, of which one byte more than the longest is enough.
pub fn parse(content: &[u8]) -> Result<Option<u32>, ()> {
    if content.len() as u64 > LONGEST {
        return Err(());
    }
    let text = std::str::from_utf8(content).map_err(drop)?;
    // Files without a newline at the end are written by others of this kind.
    match text.strip_suffix('\n').unwrap_or(text) {
        "" => Ok(None),
        pid => pid.parse().map(Some).map_err(drop),
    }
}

/// Whether the lock that is in the way is a shared one.
fn is_read_locked(file: &File) -> bool {
    file.try_clone()
        .is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_ok())
}

/// Whether this very file is what the path names.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}
