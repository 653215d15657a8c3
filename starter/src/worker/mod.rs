//! One worker: a child process becomes the server program, with exactly what it is meant to have.
//!
//! Nothing is decided here: whether a worker started successfully is for the machine to say.

pub mod environment;
mod explain;
pub mod leftovers;
mod pin;
mod settings;

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

use common::descriptors::keep_from_exec;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, Pid, chdir, pipe2, read, setsid, write};

pub use self::explain::cannot_spawn;
use self::explain::{Attempt, Step, explain};
pub use self::pin::Pin;
use self::pin::Wanted;
pub use self::settings::Settings;
use crate::host::dispositions;
pub use crate::host::launcher::Change;
use crate::host::launcher::Handover;
use crate::host::open_files::{OpenFiles, duplicate_above};
use crate::host::process::{exit_child, fork_single_threaded};
use crate::words::exec_failure::ExecFailure;
use crate::words::notice::Notice;

/// Everything about a worker that is the same in every generation.
#[derive(Debug)]
pub struct Blueprint {
    pub program: OsString,
    pub arguments: Vec<OsString>,
    /// The worker's working directory; PATH is looked up from there.
    pub directory: Option<PathBuf>,
    /// Sockets with their numbers in the worker. Every socket's own number is above all of these.
    pub sockets: Vec<(OwnedFd, RawFd)>,
    /// What it has different from the launcher's environment, before anything else is changed.
    pub handover: Rc<Handover>,
    /// What tells it about its sockets: `SERVER_STARTER_PORT` and further dialects.
    pub variables: Vec<(OsString, OsString)>,
    /// Whether to set `LISTEN_PID` too, which must be the worker's own pid (sd_listen_fds(3)).
    pub listen_pid: bool,
    /// Whether it gets a session of its own: see [`crate::host::terminal`].
    pub own_session: bool,
    /// The launcher's limit, which may have been raised since.
    pub open_files: OpenFiles,
}

/// The pipe on which a child says why it could not execute the program. It closes by itself when it could.
#[derive(Debug)]
pub struct Report {
    pipe: OwnedFd,
    generation: u32,
    /// Why the child could not start what its pin holds, if it has said so.
    unpinned: Option<Errno>,
    /// Where the child looks the program up.
    path: OsString,
}

/// What a child writes, before the errno, if it starts whatever the program's path leads to instead of what its pin holds.
/// No [`Step`] has this number.
const UNPINNED: u8 = 0;

/// Where a program is looked up without any PATH (execvp(3)).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

impl Blueprint {
    /// Starts a process that becomes a worker of `generation`, from what its pin holds. `is_again` says that another worker
    /// was started from the same before. Its output goes where ours goes, except for these descriptors, which get the
    /// given numbers unless a listener has that number.
    ///
    /// # Errors
    /// If there is no process. Later failures arrive by the [`Report`].
    pub fn spawn(
        &self,
        generation: u32,
        pin: &Pin,
        is_again: bool,
        output: &[(OwnedFd, RawFd)],
    ) -> Result<(Pid, Report), ExecFailure> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(cannot_spawn)?;
        let theirs = duplicate_above(theirs.as_fd(), self.highest()).map_err(cannot_spawn)?;
        match fork_single_threaded().map_err(cannot_spawn)? {
            ForkResult::Parent { child } => {
                let report = Report {
                    pipe: ours,
                    generation,
                    unpinned: None,
                    path: path_in(&pin.environment),
                };
                Ok((child, report))
            }
            ForkResult::Child => {
                let Err((step, errno)) = self.prepare(output).and_then(|()| {
                    let command = self.command(generation, &pin.environment);
                    dispositions::reset_for_worker();
                    match pin.execute(&command) {
                        Err(Some(errno)) if is_again => say(&theirs, UNPINNED, errno),
                        Err(_) => {}
                    }
                    self.execute(command)
                });
                say(&theirs, step as u8, errno);
                exit_child(255)
            }
        }
    }

    /// Holds what a worker with this environment would be started from now.
    pub fn pin(&self, environment: Vec<Change>) -> Pin {
        let wanted = Wanted {
            program: &self.program,
            directory: self.directory.as_deref(),
            path: &path_in(&environment),
            highest: self.highest(),
        };
        Pin::new(&wanted, environment)
    }

    /// The highest number that a worker's sockets take. What else is open in a child must be above.
    fn highest(&self) -> RawFd {
        let numbers = self.sockets.iter().map(|(_, number)| *number);
        numbers.max().unwrap_or(2)
    }

    /// The child's side, up to the directory and the program.
    fn prepare(&self, output: &[(OwnedFd, RawFd)]) -> Result<(), (Step, Errno)> {
        let at = |step| move |errno| (step, errno);
        keep_from_exec().map_err(at(Step::Descriptors))?;
        // Before the sockets, as one of them may need the same number, and a pipe may have one of theirs.
        for (pipe, number) in output {
            place(pipe.as_fd(), *number).map_err(at(Step::Descriptors))?;
        }
        for (socket, number) in &self.sockets {
            place(socket.as_fd(), *number).map_err(at(Step::Descriptors))?;
        }
        // After the sockets are placed: their numbers may need the raised limit.
        let OpenFiles { soft, hard } = self.open_files;
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(at(Step::Limits))?;
        // The dispositions of signals to stop are default already, so a TERM that arrived after the fork terminates this
        // process here instead of being swallowed by the supervisor's signalfd.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
            .map_err(at(Step::Signals))?;
        if self.own_session {
            setsid().map_err(at(Step::Signals))?;
        }
        Ok(())
    }

    fn command(&self, generation: u32, environment: &[Change]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        self.handover.apply(&mut command);
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        // Last, so that nothing else can change them.
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.env("SERVER_STARTER_GENERATION", generation.to_string());
        if self.listen_pid {
            command.env("LISTEN_PID", std::process::id().to_string());
        }
        reset_signals(&mut command);
        command
    }

    /// Executes what lies on disk.
    fn execute(&self, mut command: Command) -> Result<Infallible, (Step, Errno)> {
        if let Some(directory) = &self.directory {
            chdir(directory.as_path()).map_err(|errno| (Step::Directory, errno))?;
        }
        let error = command.exec();
        Err((Step::Execute, errno_of(&error)))
    }
}

impl Report {
    /// The child's report: `None` while it has neither executed the program nor failed to.
    pub fn read(&mut self, blueprint: &Blueprint) -> Option<Result<(), ExecFailure>> {
        let mut message = [0; 5];
        match read(&self.pipe, &mut message) {
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Ok(5) => {
                let [step, errno @ ..] = message;
                let errno = Errno::from_raw(i32::from_ne_bytes(errno));
                if step == UNPINNED {
                    self.unpinned = Some(errno);
                    return self.read(blueprint);
                }
                let attempt = Attempt {
                    program: &blueprint.program,
                    directory: blueprint.directory.as_deref(),
                    path: &self.path,
                };
                Some(Err(explain(Step::from_number(step), errno, &attempt)))
            }
            // End of file: closed by the exec, or by a death before it, which the exit status tells.
            Ok(_) | Err(_) => Some(Ok(())),
        }
    }

    /// What else is to be said, once the report is read.
    pub fn notice(&self) -> Option<Notice> {
        let generation = self.generation;
        self.unpinned
            .map(|errno| Notice::Unpinned { generation, errno })
    }
}

impl AsFd for Report {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// What the child says.
fn say(report: &OwnedFd, what: u8, errno: Errno) {
    let mut message = vec![what];
    message.extend((errno as i32).to_ne_bytes());
    // Without the report the exit status still says that it failed.
    let _ = write(report, &message);
}

fn path_in(changes: &[Change]) -> OsString {
    let changed = changes.iter().rfind(|(name, _)| name == "PATH");
    let path = match changed {
        Some((_, value)) => value.clone(),
        None => std::env::var_os("PATH"),
    };
    path.unwrap_or_else(|| DEFAULT_PATH.into())
}

fn errno_of(error: &io::Error) -> Errno {
    // Without an errno it is an argument that contains a NUL.
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

#[expect(
    unsafe_code,
    reason = "the worker's numbers have no owner in this process"
)]
fn place(socket: BorrowedFd<'_>, number: RawFd) -> nix::Result<()> {
    // SAFETY: this runs in the child alone, which uses nothing but descriptors above all placed numbers until it
    // executes the program or exits; whatever had this number before is given up on purpose.
    Errno::result(unsafe { libc::dup2(socket.as_raw_fd(), number) }).map(drop)
}

/// The standard library sets SIGPIPE to its default before an exec. As in Server::Starter it stays ignored instead: a
/// server that relies on it must not start to die.
#[expect(
    unsafe_code,
    reason = "only a hook comes after the standard library's own change"
)]
fn reset_signals(command: &mut Command) {
    let reset = || {
        dispositions::reset_for_worker();
        Ok(())
    };
    // SAFETY: the hook makes system calls only and touches no memory of the process.
    unsafe { command.pre_exec(reset) };
}
