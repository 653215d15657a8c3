//! One worker: a child process becomes the server program, with exactly what it is meant to have.
//!
//! Nothing is decided here: whether a worker started successfully is for the machine to say.

pub mod environment;
mod explain;
mod label;
pub mod leftovers;
pub mod lookup;
mod pin;
pub mod pins;
mod seat;
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
use nix::sched::sched_setaffinity;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, Pid, chdir, pipe2, read, setsid, write};
use serde::{Deserialize, Serialize};

pub use self::explain::cannot_spawn;
use self::explain::{Attempt, Step, explain};
pub use self::label::Label;
pub use self::pin::Pin;
use self::pin::Wanted;
pub use self::seat::Seat;
pub use self::settings::Settings;
use crate::host::dispositions;
pub use crate::host::launcher::Change;
use crate::host::launcher::Handover;
use crate::host::luggage::{Carried, Luggage};
use crate::host::open_files::{OpenFiles, duplicate_above};
use crate::host::process::{exit_child, fork_single_threaded, wait_at};
use crate::listeners::dialects::{self, Announced, Dialect};
use crate::listeners::lanes::Lanes;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

/// Everything about a worker that is the same in every generation.
#[derive(Debug)]
pub struct Blueprint {
    pub program: OsString,
    pub arguments: Vec<OsString>,
    /// The worker's working directory; PATH is looked up from there.
    pub directory: Option<PathBuf>,
    /// What each generation is called, if not after its program.
    pub label: Option<Label>,
    /// Sockets with their numbers in the worker. Every socket's own number is above all of these.
    pub sockets: Vec<(OwnedFd, RawFd)>,
    /// The further sockets of those that have lanes.
    pub lanes: Lanes,
    /// How its environment differs from the launcher's before anything else is changed.
    pub handover: Rc<Handover>,
    /// What it is told about its sockets: always `SERVER_STARTER_PORT`, and these dialects.
    pub announced: Vec<Announced>,
    pub dialects: Vec<Dialect>,
    /// The highest number that anything of ours has in a worker. What else is open in a child must be above.
    pub highest: RawFd,
    /// Whether it gets a session of its own: see [`crate::host::terminal`].
    pub own_session: bool,
    /// The launcher's limit, which may have been raised since.
    pub open_files: OpenFiles,
}

/// What one worker gets besides that, and besides what its pin holds.
#[derive(Clone, Copy)]
pub struct Extra<'a> {
    pub seat: Seat,
    /// Which of the sockets it gets of those that have lanes: that of a lane and one of its shards.
    pub lane: (u8, u8),
    /// It is there only for what was left in that lane.
    pub sweeps: bool,
    /// Pipes for its output, with their numbers; a listener may have the same number, and gets it.
    pub output: &'a [(OwnedFd, RawFd)],
    /// Descriptors, with their numbers. Their own numbers are above all of these.
    pub descriptors: &'a [(OwnedFd, RawFd)],
    pub variables: &'a [(OsString, OsString)],
    /// A listener of its generation alone, which is one of the descriptors.
    pub probe: Option<&'a Announced>,
    /// What earlier workers have left: names, descriptors, and their numbers, which follow those of the listeners. Their own
    /// numbers are above all of these.
    pub kept: &'a [(&'a str, BorrowedFd<'a>, RawFd)],
    /// Where it waits until it is known to everybody, above all these numbers, and whether it is if nobody opens it.
    pub gate: Option<(BorrowedFd<'a>, &'a dyn Fn() -> bool)>,
}

/// The pipe on which a child says why it could not execute the program. If it could, the pipe closes by itself.
#[derive(Debug)]
pub struct Report {
    pipe: OwnedFd,
    generation: u32,
    /// Why the child could not start what its pin holds, if it has said so.
    unpinned: Option<Errno>,
    /// Where the child looks the program up.
    path: OsString,
}

/// A report on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedReport {
    pipe: Carried,
    generation: u32,
    /// An errno.
    unpinned: Option<i32>,
    path: OsString,
}

/// What a child writes, before the errno, if it starts whatever the program's path leads to instead of what its pin holds.
/// No [`Step`] has this number.
const UNPINNED: u8 = 0;

/// Where a program is looked up without any PATH (execvp(3)).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

impl Blueprint {
    /// Starts a process that becomes a worker, from what its pin holds. `is_again` says that another worker was started
    /// from the same pin before. The worker's output goes where ours goes, unless it gets pipes.
    ///
    /// # Errors
    /// If there is no process. Later failures arrive through the [`Report`].
    pub fn spawn(
        &self,
        pin: &Pin,
        is_again: bool,
        extra: Extra<'_>,
    ) -> Result<(Pid, Report), StartFailure> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(cannot_spawn)?;
        let theirs = duplicate_above(theirs.as_fd(), self.highest).map_err(cannot_spawn)?;
        let parent = Pid::this();
        match fork_single_threaded().map_err(cannot_spawn)? {
            ForkResult::Parent { child } => {
                let report = Report {
                    pipe: ours,
                    generation: extra.seat.generation,
                    unpinned: None,
                    path: path_in(&pin.environment),
                };
                Ok((child, report))
            }
            ForkResult::Child => {
                let gate = extra.gate;
                let gate = gate.map_or(Ok(()), |(gate, known)| wait_at(gate, parent, known));
                let gate = gate.map_err(|errno| (Step::Signals, errno));
                let Err((step, errno)) = gate.and_then(|()| self.prepare(extra)).and_then(|()| {
                    let command = self.command(extra, &pin.environment);
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
            highest: self.highest,
        };
        Pin::new(&wanted, environment)
    }

    /// What a generation that is started from this is called.
    pub fn label(&self, pin: &Pin) -> Option<String> {
        // With `--no-pin` nothing is held.
        match pin.program_and_time() {
            None => label::of_generation(self.label.as_ref(), &self.pin(pin.environment.clone())),
            Some(_) => label::of_generation(self.label.as_ref(), pin),
        }
    }

    /// The child's side, up to the directory and the program.
    fn prepare(&self, extra: Extra<'_>) -> Result<(), (Step, Errno)> {
        let at = |step| move |errno| (step, errno);
        keep_from_exec().map_err(at(Step::Descriptors))?;
        // Before the sockets, as one of them may need the same number, and a pipe may have one of theirs.
        for (pipe, number) in extra.output {
            place(pipe.as_fd(), *number).map_err(at(Step::Descriptors))?;
        }
        let sockets = self
            .lanes
            .of_worker(&self.sockets, extra.lane, extra.sweeps);
        let numbers = self.sockets.iter().map(|(_, number)| number);
        let others = extra.descriptors.iter().map(|(one, number)| (one, number));
        for (socket, number) in sockets.zip(numbers).chain(others) {
            place(socket.as_fd(), *number).map_err(at(Step::Descriptors))?;
        }
        // After the sockets, whose own numbers may be among these.
        for (_, kept, number) in extra.kept {
            place(*kept, *number).map_err(at(Step::Descriptors))?;
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
        let cpus = self.lanes.cpus(extra.lane.1).map_err(at(Step::Cpus))?;
        if let Some(cpus) = cpus {
            sched_setaffinity(Pid::from_raw(0), &cpus).map_err(at(Step::Cpus))?;
        }
        Ok(())
    }

    fn command(&self, extra: Extra<'_>, changes: &[Change]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        self.set_environment(&mut command, extra.seat, changes);
        // Last, so that nothing else can change them.
        command.envs(self.variables(extra.probe));
        let lane = self.lanes.announced(extra.lane);
        command.envs(lane.map(|lane| (seat::LANE, lane.to_string())));
        if !extra.kept.is_empty() {
            command.envs(dialects::with_kept(&self.announced, extra.kept));
        }
        command.envs(extra.variables.iter().map(|(name, value)| (name, value)));
        // It must be the worker's own pid (sd_listen_fds(3)).
        if self.dialects.contains(&Dialect::Systemd) {
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

impl Blueprint {
    /// The variables that tell a worker about its sockets.
    fn variables(&self, probe: Option<&Announced>) -> Vec<(OsString, OsString)> {
        let announced = self.announced.iter().chain(probe).cloned();
        dialects::variables(&announced.collect::<Vec<_>>(), &self.dialects)
    }

    /// What `SERVER_STARTER_PORT` is in a worker with this probe listener.
    pub fn ports(&self, probe: Option<&Announced>) -> OsString {
        let announced: Vec<Announced> = self.announced.iter().chain(probe).cloned().collect();
        dialects::server_starter_port(&announced)
    }

    /// The environment of a worker in this seat, except for what it is told about its sockets.
    fn set_environment(&self, command: &mut Command, seat: Seat, changes: &[Change]) {
        self.handover.apply(command);
        for (name, value) in changes {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.envs(seat.variables());
    }

    /// Prepares a command that is to run as a worker in this seat would, but without a worker's sockets.
    pub fn equip(&self, command: &mut Command, seat: Seat, changes: &[Change]) {
        self.set_environment(command, seat, changes);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
    }
}

impl Report {
    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedReport {
        PackedReport {
            pipe: luggage.put(&self.pipe),
            generation: self.generation,
            unpinned: self.unpinned.map(|errno| errno as i32),
            path: self.path.clone(),
        }
    }

    /// The same report again, of which everything that was not read is still to be read.
    pub fn unpack(packed: PackedReport) -> Report {
        Report {
            pipe: packed.pipe.take(),
            generation: packed.generation,
            unpinned: packed.unpinned.map(Errno::from_raw),
            path: packed.path,
        }
    }

    /// The child's report: `None` while it has neither executed the program nor failed to.
    pub fn read(&mut self, blueprint: &Blueprint) -> Option<Result<(), StartFailure>> {
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

    /// What else there is to say, once the report is read.
    pub fn notice(&self) -> Option<Notice> {
        let generation = self.generation;
        let errno = Some(self.unpinned?);
        Some(Notice::Unpinned { generation, errno })
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
    // Without an errno, the cause is an argument that contains a NUL.
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
/// server that relies on that must not begin to die of it.
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn blueprint() -> Blueprint {
        Blueprint {
            label: None,
            program: "there-is-no-such-program".into(),
            arguments: Vec::new(),
            directory: None,
            sockets: Vec::new(),
            lanes: Lanes::default(),
            handover: Rc::default(),
            announced: Vec::new(),
            dialects: Vec::new(),
            highest: 2,
            own_session: false,
            open_files: OpenFiles { soft: 64, hard: 64 },
        }
    }

    fn carried_over(report: Report) -> Report {
        let text = serde_json::to_string(&report.pack(&mut Luggage::default())).unwrap();
        drop(report);
        Report::unpack(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn the_next_program_reads_the_rest_of_a_report() {
        let blueprint = blueprint();
        let (pipe, theirs) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let report = Report {
            pipe,
            generation: 7,
            unpinned: None,
            path: "/nowhere".into(),
        };
        let mut report = carried_over(report);
        assert!(report.read(&blueprint).is_none() && report.notice().is_none());
        say(&theirs, UNPINNED, Errno::EACCES);
        assert!(report.read(&blueprint).is_none());
        let mut report = carried_over(report);
        assert!(matches!(
            report.notice(),
            Some(Notice::Unpinned {
                generation: 7,
                errno: Some(Errno::EACCES)
            })
        ));
        say(&theirs, Step::Execute as u8, Errno::ENOENT);
        let cause = report.read(&blueprint).unwrap().unwrap_err();
        let expected = Attempt {
            program: &blueprint.program,
            directory: None,
            path: "/nowhere".as_ref(),
        };
        let expected = explain(
            Step::from_number(Step::Execute as u8),
            Errno::ENOENT,
            &expected,
        );
        assert_eq!(cause, expected);
    }
}
