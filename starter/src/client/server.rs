//! The running server: the process that holds the lock on the pid file, whatever the file says. From then on a pidfd
//! identifies it: no other process is ever signalled, whatever its pid.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use common::trusted_path::{Trust, open_directory};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::signal::Signal;
use nix::sys::stat::fstat;
use nix::unistd::{Pid, geteuid};

use super::status::Status;
use crate::host::locks::{self, Holder};
use crate::host::order::{CARRIER, Order};
use crate::host::proc::{self, Fields};
use crate::host::process::Process;
use crate::status::file::json_path;
use crate::status::pid_file::{as_pid, is_at, recorded_pid};
use crate::words::distrust;
use crate::words::failure::{self, Failure};
use crate::words::notice::Notice;
use crate::words::remedy;
use crate::words::stopping::listed;
use crate::words::text::quoted;

/// Shows the user what is going on.
pub type Say<'a> = &'a mut dyn FnMut(Notice);

/// A running server.
pub struct Server {
    pub pid: Pid,
    pub process: Process,
    /// Whose process it must still be when it is signalled; none if the kernel checks that.
    owner: Option<u32>,
    pid_file: PathBuf,
    /// By its own account, to know it again.
    started_at: Option<f64>,
}

impl Server {
    /// Finds the server that holds the lock on this file, and reports if that is not the pid in it.
    ///
    /// # Errors
    /// "Not running" where the file is missing, or nobody holds its lock; where the holder lives in another pid namespace,
    /// whose pids, and so all that the server has written, mean other processes here; and where root must not signal it.
    pub fn find(path: &Path, say: Say<'_>) -> Result<Server, Failure> {
        let pid_file = PidFile::open(path)?;
        if !pid_file.is_locked()? {
            let failure = pid_file.not_running("is not locked");
            return Err(failure.hint_if(workers_left(path)));
        }
        let written = recorded_pid(&pid_file.file);
        let holder = pid_file.holder()?;
        let pid = match holder {
            Holder::Process(pid) | Holder::Hidden(pid) => pid,
            Holder::Elsewhere => return Err(pid_file.elsewhere().hint(remedy::ASK_THERE)),
            Holder::Unknown => return Err(pid_file.unknown_holder(written)),
            Holder::NoProc => return Err(pid_file.no_proc()),
        };
        let written = written.ok().flatten();
        let process = match Process::open(pid) {
            Ok(process) => process,
            Err(Errno::ESRCH) => return Err(pid_file.given_up()),
            Err(errno) => {
                return Err(Failure::failed(format!(
                    "cannot find pid {pid}: {}",
                    errno.desc()
                )));
            }
        };
        // The pid was the holder's as long as the lock was held: if it still is, the process that was opened in between is
        // the holder.
        if !is_at(&pid_file.file, path) || !pid_file.is_locked()? || pid_file.holder()? != holder {
            return Err(pid_file.given_up());
        }
        let inner = proc::inner_pid(process.as_fd());
        if let Some(inner) = inner.map_err(|error| pid_file.cannot(&failure::cause(&error)))? {
            return Err(pid_file
                .elsewhere()
                .hint(remedy::of_inner_namespace(pid.as_raw(), inner.as_raw())));
        }
        let owner = pid_file.refuse_foreign(holder, pid, written)?;
        if written.and_then(as_pid) != Some(pid) {
            say(Notice::LockHeldByAnother {
                path: path.to_owned(),
                written,
                holder: pid,
            });
        }
        Ok(Server {
            pid,
            process,
            owner,
            pid_file: path.to_owned(),
            started_at: started_at(path),
        })
    }

    /// Whether the same server goes on although its process has exited: that was its guardian.
    pub fn goes_on(&self) -> bool {
        let pid_file = PidFile::open(&self.pid_file);
        let is_locked = pid_file.and_then(|file| file.is_locked());
        let now = started_at(&self.pid_file);
        is_locked.unwrap_or_default() && now.is_some() && now == self.started_at
    }

    /// What this process could not do because it has exited.
    pub fn has_exited(&self, cannot: &str) -> Failure {
        let pid = self.pid;
        match self.goes_on() {
            false => Failure::failed(format!("{cannot}: pid {pid} has exited")),
            true => Failure::failed(format!(
                "{cannot}: pid {pid} was the guardian and has died; the supervisor goes on without it"
            ))
            .hint(remedy::ASK_THE_SUPERVISOR),
        }
    }

    /// Sends a signal to it and to no other process.
    pub fn send(&self, signal: Signal) -> Result<(), Failure> {
        self.send_by(signal, || self.process.signal(signal))
    }

    /// Sends an order to it and to no other process.
    pub fn order(&self, order: Order) -> Result<(), Failure> {
        self.send_by(CARRIER, || self.process.order(order))
    }

    fn send_by(
        &self,
        signal: Signal,
        send: impl FnOnce() -> nix::Result<()>,
    ) -> Result<(), Failure> {
        // It may have executed a setuid program since, which its user could not signal.
        if self.owner.is_some() && real_user(self.pid) != self.owner {
            return Err(Failure::failed(format!(
                "cannot send {signal} to pid {}: its user has changed",
                self.pid
            )));
        }
        match send() {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(Failure::not_running(format!(
                "not running: pid {} has exited",
                self.pid
            ))),
            Err(errno) => {
                let failure = Failure::failed(format!(
                    "cannot send {signal} to pid {}: {}",
                    self.pid,
                    errno.desc()
                ));
                Err(match errno {
                    Errno::EPERM => failure.hint(remedy::USER_OF_THE_SERVER),
                    _ => failure,
                })
            }
        }
    }

    /// What to do about a server that a signal has stopped, if this is one: it obeys nothing until it continues.
    pub fn is_stopped(&self) -> Option<String> {
        let fields = Fields::of(self.pid).ok()?;
        fields
            .is_stopped()
            .then(|| format!("pid {0} is stopped: `kill -CONT {0}` resumes it", self.pid))
    }
}

/// A pid file that somebody else may have written.
struct PidFile<'a> {
    path: &'a Path,
    file: File,
}

impl PidFile<'_> {
    fn open(path: &Path) -> Result<PidFile<'_>, Failure> {
        // Not for writing: a user who may send signals need not be able to change the file.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(path);
        match opened {
            Ok(file) => Ok(PidFile { path, file }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(path)),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                Err(cannot_read(path, "it is a symbolic link"))
            }
            Err(error) => Err(cannot_read(path, &failure::cause(&error))),
        }
    }

    /// Whether a server holds the exclusive lock. Shared ones are held only for a moment, which a starting server waits
    /// out.
    fn is_locked(&self) -> Result<bool, Failure> {
        let file = self.file.try_clone();
        let file = file.map_err(|error| self.cannot(&failure::cause(&error)))?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            // Dropped, and thereby unlocked.
            Ok(_) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(self.cannot(errno.desc())),
        }
    }

    /// Who holds it, as far as that can be known.
    fn holder(&self) -> Result<Holder, Failure> {
        let written = recorded_pid(&self.file).ok().flatten().and_then(as_pid);
        locks::holder(&self.file, written).map_err(|error| self.cannot(&failure::cause(&error)))
    }

    fn cannot(&self, cause: &str) -> Failure {
        cannot_read(self.path, cause)
    }

    fn not_running(&self, cause: &str) -> Failure {
        not_running(self.path, cause)
    }

    fn given_up(&self) -> Failure {
        self.not_running("was released a moment ago")
    }

    fn elsewhere(&self) -> Failure {
        let path = quoted(self.path);
        Failure::failed(format!(
            "cannot ask the server of --pid-file={path}: it runs in another pid namespace; ask there"
        ))
    }

    fn no_proc(&self) -> Failure {
        let path = quoted(self.path);
        Failure::failed(format!(
            "cannot find the server of --pid-file={path}: /proc is missing, or that of another pid namespace"
        ))
        .hint(remedy::MOUNT_PROC)
    }

    fn unknown_holder(&self, written: Result<Option<u32>, ()>) -> Failure {
        let path = quoted(self.path);
        let what = match written {
            Ok(Some(pid)) => format!("pid {pid} in it does not hold its lock"),
            Ok(None) => "it is empty".to_owned(),
            Err(()) => "it contains no pid".to_owned(),
        };
        Failure::failed(format!(
            "cannot find the server of --pid-file={path}: {what}, and the process that does cannot be found"
        ))
        .hint(remedy::who_has_open(&path))
    }

    /// Users who can write the file can also lock it: root must not send a signal for them that they could not send
    /// themselves. A process that the file's owner started is one that its owner may signal; a lock does not prove who
    /// took it, because a descriptor can be passed on and a pid reused.
    ///
    /// Returns whose process it must still be when it is signalled, where the kernel does not see to that.
    fn refuse_foreign(
        &self,
        holder: Holder,
        pid: Pid,
        written: Option<u32>,
    ) -> Result<Option<u32>, Failure> {
        if !geteuid().is_root() {
            // The kernel checks the permission of the sender.
            return Ok(None);
        }
        let there = self.file.metadata();
        let there = there.map_err(|error| self.cannot(&failure::cause(&error)))?;
        if there.mode() & 0o022 != 0 {
            return Err(self.cannot("it is writable by users other than its owner"));
        }
        self.refuse_moved(there.uid())?;
        if there.uid() == 0 {
            // A user who can read it can lock it. Only what root has written there can be trusted, about a process that has the
            // lock for certain.
            return match (written.and_then(as_pid) == Some(pid), holder) {
                (true, Holder::Process(_)) => Ok(None),
                (true, _) => Err(self.cannot(&format!(
                    "it belongs to root, and whether pid {pid} in it holds its lock cannot be seen without CAP_SYS_PTRACE"
                ))),
                (false, _) => Err(self.cannot(&format!(
                    "it belongs to root, but pid {pid} holds its lock, which is not the pid in it"
                ))),
            };
        }
        let user = real_user(pid)
            .ok_or_else(|| self.cannot(&format!("cannot find out whose pid {pid} is")))?;
        match there.uid() == user {
            true => Ok(Some(user)),
            false => Err(self.cannot(&format!(
                "it belongs to uid {}, but pid {pid}, which holds its lock, is a process of uid {user}",
                there.uid()
            ))),
        }
    }

    /// A file of root's can contain what another user wants (the output of a server program, for example), and that of one
    /// user can name a server that another user must not stop. Whoever can write the directory can move such a file to this
    /// name, which a sticky directory does not prevent, or lead there by a symbolic link.
    fn refuse_moved(&self, owner: u32) -> Result<(), Failure> {
        let trust = Trust {
            owner: Some(owner),
            sticky: false,
        };
        let above = Trust {
            sticky: true,
            ..trust.clone()
        };
        let whose = match owner {
            0 => "root".to_owned(),
            uid => format!("uid {uid}"),
        };
        let of_owner =
            |cause: &dyn fmt::Display| self.cannot(&format!("it belongs to {whose}, but {cause}"));
        let path = std::path::absolute(self.path);
        let path = path.map_err(|error| self.cannot(&failure::cause(&error)))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let opened = open_directory(directory, &above)
            .map_err(|untrusted| of_owner(&distrust::of_path(&untrusted)))?;
        let stat = fstat(&opened).map_err(|errno| self.cannot(errno.desc()))?;
        if let Some(objection) = trust.objection(&stat) {
            let directory = quoted(directory);
            return Err(of_owner(&format_args!(
                "{directory} {}",
                distrust::predicate(objection)
            )));
        }
        // From here on nobody else can change what the path leads to.
        match is_at(&self.file, &path) {
            true => Ok(()),
            false => Err(self.cannot("it keeps changing")),
        }
    }
}

/// The real uid of a process, whose owner may signal it.
fn real_user(pid: Pid) -> Option<u32> {
    Fields::of(pid).ok()?.real_user()
}

fn cannot_read(path: &Path, cause: &str) -> Failure {
    let path = quoted(path);
    Failure::failed(format!("cannot read --pid-file={path}: {cause}"))
}

fn not_running(path: &Path, cause: &str) -> Failure {
    Failure::not_running(format!("not running: {} {cause}", quoted(path)))
}

/// There is no such file, though its server may still be running.
fn missing(path: &Path) -> Failure {
    let failure = not_running(path, "does not exist");
    let json = json_path(path);
    match Status::read(&json).map(|status| status.supervisor()) {
        Some(pid) if is_alive(pid) => failure.hint(remedy::maybe_the_server(&json, pid)),
        _ => failure,
    }
}

fn started_at(pid_file: &Path) -> Option<f64> {
    Status::read(&json_path(pid_file)).map(|status| status.started_at())
}

/// The workers that a server which was killed has left behind, by what it has last written.
fn workers_left(path: &Path) -> Option<String> {
    const NAMED: usize = 16;
    let status = Status::read(&json_path(path))?;
    let left: Vec<String> = status
        .surviving_workers()
        .map(|(pid, generation)| format!("pid {pid} of generation {generation}"))
        .collect();
    let first = left.get(..NAMED).unwrap_or(&left);
    (!left.is_empty()).then(|| remedy::of_workers_left(&listed(first, left.len())))
}

/// Whether there is a process with the pid that somebody wrote into a file.
fn is_alive(pid: i64) -> bool {
    i32::try_from(pid).is_ok_and(|pid| Process::open(Pid::from_raw(pid)).is_ok())
}
