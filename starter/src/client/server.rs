//! The running server: the one that holds the lock on the pid file. From then on it is known by a pidfd, so that no other
//! process is ever signalled, whatever number it has.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use common::trusted_path::{Trust, open_directory};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::signal::Signal;
use nix::sys::stat::fstat;
use nix::unistd::{Pid, geteuid};

use super::status::Status;
use crate::host::proc::Fields;
use crate::host::process::Process;
use crate::status::file::json_path;
use crate::status::pid_file::{is_at, recorded_pid};
use crate::words::failure::{self, Failure};

/// A server that runs.
pub struct Server {
    pub pid: Pid,
    pub process: Process,
    pid_file: File,
}

impl Server {
    /// The server that holds the lock on this file.
    ///
    /// # Errors
    /// "Not running" where the file is missing, or nobody holds its lock.
    pub fn find(path: &Path) -> Result<Server, Failure> {
        let cannot = |cause: &str| {
            Failure::failed(format!(
                "cannot read --pid-file={}: {cause}",
                path.display()
            ))
        };
        let not_running =
            |cause: &str| Failure::not_running(format!("not running: {} {cause}", path.display()));
        // Not for writing: whoever may send signals need not be able to change the file.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(path)
            .map_err(|error| match error.kind() {
                                io::ErrorKind::NotFound => match Status::read(&json_path(path)) {
                    Some(status) if is_alive(status.supervisor) => not_running("does not exist").hint(format!(
                        "{} names pid {}: if that is a start_server, HUP makes it write the file again",
                        json_path(path).display(),
                        status.supervisor
                    )),
                    _ => not_running("does not exist"),
                },
                _ if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
                    cannot("it is a symbolic link")
                }
                _ => cannot(&failure::cause(&error)),
            })?;
        if !is_locked(&file).map_err(|errno| cannot(errno.desc()))? {
            return Err(not_running("is locked by nobody"));
        }
        let pid = match recorded_pid(&mut file) {
            Ok(Some(pid)) => {
                Pid::from_raw(i32::try_from(pid).map_err(|_| cannot("it holds no pid"))?)
            }
            Ok(None) => return Err(cannot("the server has not written its pid yet")),
            Err(()) => return Err(cannot("it holds no pid")),
        };
        let process = match Process::open(pid) {
            Ok(process) => process,
            Err(Errno::ESRCH) => return Err(not_running("names a process that has ended")),
            Err(errno) => {
                return Err(Failure::failed(format!(
                    "cannot find pid {pid}: {}",
                    errno.desc()
                )));
            }
        };
        let server = Server {
            pid,
            process,
            pid_file: file,
        };
        // The number belonged to the holder of the lock as long as the lock is held: if it still is, the process
        // that was opened in between is the holder.
        if !server.still_holds_its_lock(path) {
            return Err(not_running("was given up a moment ago"));
        }
        server.refuse_foreign(path, &cannot)?;
        Ok(server)
    }

    /// Whoever can write the file can also lock it and name any process: root must not send a signal for them that they
    /// could not send themselves.
    fn refuse_foreign(
        &self,
        path: &Path,
        cannot: &impl Fn(&str) -> Failure,
    ) -> Result<(), Failure> {
        if !geteuid().is_root() {
            // The kernel asks who sends it.
            return Ok(());
        }
        let there = self.pid_file.metadata();
        let there = there.map_err(|error| cannot(&failure::cause(&error)))?;
        let owner = there.uid();
        if there.mode() & 0o022 != 0 {
            return Err(cannot("it can be written by others than its owner"));
        }
        if owner == 0 {
            self.refuse_moved(path, cannot)?;
        }
        let user = Fields::of(self.pid).ok();
        let user = user
            .and_then(|fields| fields.real_user())
            .ok_or_else(|| cannot(&format!("cannot find out whose pid {} is", self.pid)))?;
        match owner == 0 || owner == user {
            true => Ok(()),
            false => Err(cannot(&format!(
                "it belongs to uid {owner}, but pid {} in it is a process of uid {user}",
                self.pid
            ))),
        }
    }

    /// What to do about a server that a signal has stopped, if this is one: it follows no order until it goes on.
    pub fn is_stopped(&self) -> Option<String> {
        let fields = Fields::of(self.pid).ok()?;
        fields.is_stopped().then(|| {
            format!(
                "pid {0} is stopped: `kill -CONT {0}` lets it go on",
                self.pid
            )
        })
    }

    /// A file of root's can hold what another user wants (it is the output of a server program, for example), and whoever
    /// may write the directory can give it this name. A sticky one keeps nobody from bringing it there.
    fn refuse_moved(&self, path: &Path, cannot: &impl Fn(&str) -> Failure) -> Result<(), Failure> {
        const ABOVE: Trust = Trust {
            sticky: true,
            ..Trust::ROOT
        };
        let of_root =
            |cause: &dyn fmt::Display| cannot(&format!("it belongs to root, but {cause}"));
        let path = std::path::absolute(path).map_err(|error| cannot(&failure::cause(&error)))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let opened = open_directory(directory, &ABOVE).map_err(|untrusted| of_root(&untrusted))?;
        let stat = fstat(&opened).map_err(|errno| cannot(errno.desc()))?;
        if let Some(objection) = Trust::ROOT.objection(&stat) {
            return Err(of_root(&format_args!(
                "{} {objection}",
                directory.display()
            )));
        }
        // From here on nobody else can change what the path leads to.
        match is_at(&self.pid_file, &path) {
            true => Ok(()),
            false => Err(cannot("it changes while it is looked at")),
        }
    }

    fn still_holds_its_lock(&self, path: &Path) -> bool {
        let Ok(mut file) = self.pid_file.try_clone() else {
            return false;
        };
        let same = file.rewind().is_ok()
            && recorded_pid(&mut file) == Ok(u32::try_from(self.pid.as_raw()).ok())
            && is_at(&file, path);
        same && is_locked(&self.pid_file) == Ok(true)
    }

    pub fn send(&self, signal: Signal) -> Result<(), Failure> {
        match self.process.signal(signal) {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(Failure::not_running(format!(
                "not running: pid {} has ended",
                self.pid
            ))),
            Err(errno) => {
                let failure = Failure::failed(format!(
                    "cannot send {signal} to pid {}: {}",
                    self.pid,
                    errno.desc()
                ));
                Err(match errno {
                    Errno::EPERM => failure.hint("use the user that the server runs as, or root"),
                    _ => failure,
                })
            }
        }
    }
}

/// Whether there is a process with the pid that somebody has written into a file.
fn is_alive(pid: i64) -> bool {
    i32::try_from(pid).is_ok_and(|pid| Process::open(Pid::from_raw(pid)).is_ok())
}

/// Whether a server holds the exclusive lock. A shared one is held for a moment, which a starting server waits out.
fn is_locked(file: &File) -> nix::Result<bool> {
    match Flock::lock(
        file.try_clone().map_err(|_| Errno::EMFILE)?,
        FlockArg::LockSharedNonblock,
    ) {
        // Dropped, and with that unlocked.
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(errno),
    }
}
