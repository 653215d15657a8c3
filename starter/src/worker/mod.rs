//! One worker: a child process becomes the server program, with exactly what it is meant to have.
//!
//! What it is not: a place for decisions. Whether a worker has started well is for `generations` to say.

pub mod environment;
mod settings;

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::descriptors::keep_from_exec;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{AccessFlags, ForkResult, Pid, access, chdir, pipe2, read, setsid, write};

pub use self::settings::Settings;

use crate::host::open_files::OpenFiles;
use crate::host::process::{exit_child, fork_single_threaded};
use crate::supervisor::signals::dispose_for_worker;
use crate::words::notice::ExecFailure;
use crate::words::text::printable;

/// Everything about a worker that is the same in every generation.
#[derive(Debug)]
pub struct Blueprint {
    pub program: OsString,
    pub arguments: Vec<OsString>,
    /// Where the worker runs; PATH is looked up from there.
    pub directory: Option<PathBuf>,
    /// Sockets, and the number that each has in the worker. Every socket's own number is above all of these.
    pub sockets: Vec<(OwnedFd, RawFd)>,
    /// What tells it about its sockets: `SERVER_STARTER_PORT` and further dialects.
    pub variables: Vec<(OsString, OsString)>,
    /// Whether `LISTEN_PID` is to be set as well, which must be the worker's own pid (sd_listen_fds(3)).
    pub listen_pid: bool,
    /// Whether it gets a session of its own: see [`crate::host::terminal`].
    pub own_session: bool,
    /// The launcher's limit, which may have been raised since.
    pub open_files: OpenFiles,
}

/// A change to the launcher's environment; without a value the variable is removed.
pub type Change = (OsString, Option<OsString>);

/// The pipe on which a child says why it could not execute the program. It closes by itself when it could.
#[derive(Debug)]
pub struct Report(OwnedFd);

/// The step at which a child failed, as it is sent over the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Descriptors = 1,
    Limits,
    Signals,
    Directory,
    Execute,
}

impl Blueprint {
    /// Starts a process that becomes a worker of `generation`. Its output goes where ours goes, but for these
    /// descriptors with the numbers that they are to have there, unless a listener has that number.
    ///
    /// # Errors
    /// When there is no process. Whatever fails later comes by the [`Report`].
    pub fn spawn(
        &self,
        generation: u32,
        environment: &[Change],
        output: &[(OwnedFd, RawFd)],
    ) -> Result<(Pid, Report), ExecFailure> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(cannot_spawn)?;
        let theirs = self.out_of_the_way(&theirs).map_err(cannot_spawn)?;
        match fork_single_threaded().map_err(cannot_spawn)? {
            ForkResult::Parent { child } => Ok((child, Report(ours))),
            ForkResult::Child => self.run(generation, environment, output, &theirs),
        }
    }

    /// A copy with a number above all that the worker's sockets will take.
    fn out_of_the_way(&self, descriptor: &OwnedFd) -> nix::Result<OwnedFd> {
        let highest = self
            .sockets
            .iter()
            .map(|(_, number)| *number)
            .max()
            .unwrap_or(2);
        duplicate_above(descriptor.as_fd(), highest)
    }

    /// The child's side; it never comes back into the supervisor's code.
    fn run(
        &self,
        generation: u32,
        environment: &[Change],
        output: &[(OwnedFd, RawFd)],
        report: &OwnedFd,
    ) -> ! {
        let Err((step, errno)) = self.execute(generation, environment, output);
        let mut message = vec![step as u8];
        message.extend((errno as i32).to_ne_bytes());
        // Without the report the exit status still says that it failed.
        let _ = write(report, &message);
        exit_child(255)
    }

    fn execute(
        &self,
        generation: u32,
        environment: &[Change],
        output: &[(OwnedFd, RawFd)],
    ) -> Result<Infallible, (Step, Errno)> {
        let at = |step| move |errno| (step, errno);
        keep_from_exec().map_err(at(Step::Descriptors))?;
        // Before the sockets, one of which may be wanted at the same number, and whose numbers a pipe may have.
        for (pipe, number) in output {
            place(pipe.as_fd(), *number).map_err(at(Step::Descriptors))?;
        }
        for (socket, number) in &self.sockets {
            place(socket.as_fd(), *number).map_err(at(Step::Descriptors))?;
        }
        // After the sockets are placed: their numbers may need the raised limit.
        let OpenFiles { soft, hard } = self.open_files;
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(at(Step::Limits))?;
        // All dispositions are default already, so that a TERM that came since the fork ends this process here
        // instead of being swallowed by the supervisor's.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
            .map_err(at(Step::Signals))?;
        if self.own_session {
            setsid().map_err(at(Step::Signals))?;
        }
        if let Some(directory) = &self.directory {
            chdir(directory.as_path()).map_err(at(Step::Directory))?;
        }
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
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
        dispose_of_signals(&mut command);
        let error = command.exec();
        Err((Step::Execute, errno_of(&error)))
    }

    /// What the user needs to know about a step that failed.
    fn explain(&self, step: Step, errno: Errno) -> ExecFailure {
        let program = Path::new(&self.program).display();
        match step {
            Step::Directory => ExecFailure {
                action: format!(
                    "change to --dir={}",
                    self.directory.as_deref().unwrap_or(Path::new("")).display()
                ),
                errno,
                hint: None,
            },
            Step::Execute => self.explain_execute(errno),
            Step::Descriptors => ExecFailure {
                action: format!("pass the sockets to {program}"),
                errno,
                hint: None,
            },
            Step::Limits => ExecFailure {
                action: format!("restore the resource limits for {program}"),
                errno,
                hint: None,
            },
            Step::Signals => ExecFailure {
                action: format!("reset the signals for {program}"),
                errno,
                hint: None,
            },
        }
    }

    fn explain_execute(&self, errno: Errno) -> ExecFailure {
        let program = Path::new(&self.program);
        let action = format!("execute {}", printable(&self.program));
        if !self.program.as_encoded_bytes().contains(&b'/') {
            let (errno, hint) = explain_lookup(program, errno);
            return ExecFailure {
                action,
                errno,
                hint: Some(hint),
            };
        }
        let file = match &self.directory {
            Some(directory) => directory.join(program),
            None => program.to_owned(),
        };
        let hint = match errno {
            Errno::EACCES => explain_denied(&file),
            Errno::ENOENT if file.exists() => Some(explain_missing_interpreter(&file)),
            _ => None,
        };
        ExecFailure {
            action,
            errno,
            hint,
        }
    }
}

/// A program that no directory of PATH has. execvp(3) says "permission denied" as soon as one of them is closed to the
/// user, as root's own often are.
fn explain_lookup(program: &Path, errno: Errno) -> (Errno, String) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Some(found) = directories
        .iter()
        .map(|one| one.join(program))
        .find(|one| one.is_file())
    {
        return (
            errno,
            format!("{} is not executable for this user", found.display()),
        );
    }
    let closed = directories
        .iter()
        .filter(|one| one.is_dir() && access(one.as_path(), AccessFlags::X_OK).is_err());
    let closed: Vec<String> = closed.map(|one| one.display().to_string()).collect();
    let path = printable(&path);
    let hint = match closed.is_empty() {
        true => format!("PATH is {path}"),
        false => format!("PATH is {path}; closed to this user: {}", closed.join(", ")),
    };
    (Errno::ENOENT, hint)
}

/// What a file needs that is there and still cannot be found.
fn explain_missing_interpreter(file: &Path) -> String {
    let Some(line) = first_line(file).filter(|line| line.starts_with(b"#!")) else {
        return "the loader of shared libraries that it needs does not exist: it was built for another system".into();
    };
    let words = line[2..].trim_ascii_start();
    let end = words.iter().position(|byte| b" \t\n".contains(byte));
    let name = &words[..end.unwrap_or(words.len())];
    let shown = printable(OsStr::from_bytes(name));
    match name.ends_with(b"\r") {
        true => format!(
            "its first line ends with a carriage return, which is taken for a part of the name: {shown}"
        ),
        false => format!("the interpreter in its first line does not exist: {shown}"),
    }
}

/// As much of it as the kernel looks at.
fn first_line(file: &Path) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(file)
        .and_then(|file| file.take(256).read_to_end(&mut start))
        .ok()?;
    let end = start.iter().position(|byte| *byte == b'\n');
    start.truncate(end.unwrap_or(start.len()));
    Some(start)
}

/// Which part of the path keeps this user from executing the file.
fn explain_denied(file: &Path) -> Option<String> {
    let mut parents: Vec<&Path> = file
        .ancestors()
        .skip(1)
        .filter(|one| *one != Path::new(""))
        .collect();
    parents.reverse();
    match parents
        .into_iter()
        .find(|directory| access(*directory, AccessFlags::X_OK).is_err())
    {
        Some(closed) => Some(format!(
            "the directory {} is closed to this user",
            closed.display()
        )),
        None if file.is_dir() => Some("it is a directory".into()),
        None if access(file, AccessFlags::X_OK).is_err() => {
            Some("it is not executable for this user: see chmod(1)".into())
        }
        None => None,
    }
}

/// There is no process, or not what it takes to start one.
pub fn cannot_spawn(errno: Errno) -> ExecFailure {
    let hint = match errno {
        Errno::EAGAIN => {
            Some("this user may have no more processes: see `ulimit -u`, or TasksMax of systemd")
        }
        Errno::EMFILE => Some("the limit of open files is reached: see `ulimit -n`"),
        _ => None,
    };
    ExecFailure {
        action: "start a new worker".into(),
        errno,
        hint: hint.map(str::to_owned),
    }
}

impl Report {
    /// What the child has said: `None` while it has neither executed the program nor failed to.
    pub fn read(&self, blueprint: &Blueprint) -> Option<Result<(), ExecFailure>> {
        let mut message = [0; 5];
        match read(&self.0, &mut message) {
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Ok(5) => {
                let [step, errno @ ..] = message;
                let errno = Errno::from_raw(i32::from_ne_bytes(errno));
                let steps = [
                    Step::Descriptors,
                    Step::Limits,
                    Step::Signals,
                    Step::Directory,
                ];
                let step = steps
                    .into_iter()
                    .find(|one| *one as u8 == step)
                    .unwrap_or(Step::Execute);
                Some(Err(blueprint.explain(step, errno)))
            }
            // The end: closed by the exec, or by a death before it, which the exit tells.
            Ok(_) | Err(_) => Some(Ok(())),
        }
    }
}

impl AsFd for Report {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A close-on-exec copy of a descriptor with a number above `number`.
pub fn duplicate_above(descriptor: BorrowedFd<'_>, number: RawFd) -> nix::Result<OwnedFd> {
    let copy = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(number + 1))?;
    Ok(owned(copy))
}

fn errno_of(error: &io::Error) -> Errno {
    // Without an errno it is an argument with a NUL in it.
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

#[expect(unsafe_code, reason = "fcntl(2) gives a new descriptor as a number")]
fn owned(descriptor: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: F_DUPFD_CLOEXEC has just made this descriptor, and nothing else has seen its number.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

#[expect(
    unsafe_code,
    reason = "the worker's numbers have no owner in this process"
)]
fn place(socket: BorrowedFd<'_>, number: RawFd) -> nix::Result<()> {
    // SAFETY: this runs in the child alone, which uses nothing but descriptors above all placed numbers until it
    // executes the program or exits; what had this number before is given up on purpose.
    Errno::result(unsafe { libc::dup2(socket.as_raw_fd(), number) }).map(drop)
}

/// The standard library sets SIGPIPE to its default before an exec. Unlike that, and as in Server::Starter, it stays
/// ignored: a server that relies on it must not start to die.
#[expect(
    unsafe_code,
    reason = "only a hook comes after the standard library's own change"
)]
fn dispose_of_signals(command: &mut Command) {
    let dispose = || {
        dispose_for_worker();
        Ok(())
    };
    // SAFETY: the hook makes system calls only and touches no memory of the process.
    unsafe { command.pre_exec(dispose) };
}
