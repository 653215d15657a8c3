//! Where output goes: standard error as it was inherited, or the file or command of `--log-file`, which workers then
//! inherit as standard output and standard error.
//!
//! A line of ours never ends or blocks the service, wherever it goes: a log that cannot be written loses lines, which
//! are counted, and a command that does not read keeps ours waiting here.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::signals::reset_all;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, pipe2};

use crate::failure::{self, Failure};
use crate::listen_spec::printable;
use crate::notice::Notice;
use crate::options::LogTarget;
use crate::pid_file::WRITABLE_HINT;

/// The shortest time between two starts of a log command.
const RESPAWN: Duration = Duration::from_secs(1);

/// How long a log command may take to read the last lines, in milliseconds.
const LAST_MOMENT: u16 = 1000;

/// How much of ours may wait for a log command that does not read, in bytes.
const MOST_WAITING: usize = 1 << 20;

thread_local! {
    /// The one place that all lines go through; the superdaemon has one thread.
    static OUT: RefCell<Out> = const {
        RefCell::new(Out { own: None, waiting: VecDeque::new(), lost: 0 })
    };
}

struct Out {
    /// Our own end of a log command's pipe, non-blocking: that of standard error is shared with the workers.
    own: Option<File>,
    waiting: VecDeque<u8>,
    /// Lines that could not be written.
    lost: u64,
}

/// Writes one line.
pub fn say(line: impl Display) {
    OUT.with_borrow_mut(|out| {
        if out.lost > 0 {
            let lost = format!("{}\n", Notice::LinesLost(out.lost));
            if out.write(lost.as_bytes()) {
                out.lost = 0;
            }
        }
        if !out.write(format!("{line}\n").as_bytes()) {
            out.lost += 1;
        }
    });
}

/// Whether lines wait for the log command to read.
pub fn is_waiting() -> bool {
    OUT.with_borrow(|out| !out.waiting.is_empty())
}

/// Writes what waits, as far as it goes.
pub fn flush() {
    OUT.with_borrow_mut(Out::flush);
}

impl Out {
    /// False if the line is lost.
    fn write(&mut self, line: &[u8]) -> bool {
        if self.own.is_none() {
            return io::stderr().write_all(line).is_ok();
        }
        if self.waiting.len() + line.len() > MOST_WAITING {
            return false;
        }
        self.waiting.extend(line);
        self.flush();
        true
    }

    fn flush(&mut self) {
        let Some(own) = &mut self.own else { return };
        while !self.waiting.is_empty() {
            match own.write(self.waiting.as_slices().0) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A full pipe: the rest waits until it can be written.
                Err(_) => return,
            }
        }
    }
}

/// The target of `--log-file`.
pub enum Log {
    Inherited,
    File { path: PathBuf },
    Command(LogCommand),
}

/// A command that reads the log from a pipe. Both ends stay open here, so that what was written survives the command
/// and no worker ever writes to a closed pipe.
pub struct LogCommand {
    command: std::ffi::OsString,
    read_end: OwnedFd,
    /// For the command itself; none when nobody is there to see it.
    outputs: Option<(OwnedFd, OwnedFd)>,
    child: Option<Child>,
    started_at: Instant,
}

impl Log {
    /// Turns standard output and standard error to the target. `attended` is false for a daemon.
    pub fn open(target: Option<&LogTarget>, attended: bool) -> Result<Log, Failure> {
        match target {
            None => Ok(Log::Inherited),
            Some(LogTarget::File(path)) => {
                let file = open_file(path).map_err(|error| cannot_open(path, &error))?;
                redirect(file.as_fd()).map_err(|errno| cannot_open(path, &errno.into()))?;
                Ok(Log::File { path: path.clone() })
            }
            Some(LogTarget::Command(command)) => {
                let cannot = |error: &io::Error| {
                    let shown = printable(command);
                    Failure::failed(format!(
                        "cannot use --log-file=|{shown}: {}",
                        failure::cause(error)
                    ))
                };
                let mut log =
                    LogCommand::start(command, attended).map_err(|error| cannot(&error))?;
                log.spawn().map_err(|error| cannot(&error))?;
                Ok(Log::Command(log))
            }
        }
    }

    /// USR1: whoever rotates the log has moved the file away.
    pub fn reopen(&self) {
        let Log::File { path } = self else {
            say(Notice::NothingToReopen);
            return;
        };
        match open_file(path).and_then(|file| Ok(redirect(file.as_fd())?)) {
            Ok(()) => say(Notice::LogReopened { path: path.clone() }),
            Err(error) => {
                say(Notice::CannotReopen {
                    path: path.clone(),
                    cause: failure::cause(&error),
                });
            }
        }
    }

    /// Whether this child was the log command; if so another will be started.
    pub fn has_exited(&mut self, pid: Pid, status: i32) -> bool {
        let Log::Command(log) = self else {
            return false;
        };
        let ours = log
            .child
            .as_ref()
            .is_some_and(|child| i64::from(child.id()) == i64::from(pid.as_raw()));
        if ours {
            log.child = None;
            say(Notice::LogCommandDied { status });
        }
        ours
    }

    /// When [`Log::start_again`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Log::Command(log) if log.child.is_none() => Some(log.started_at + RESPAWN),
            Log::Command(_) | Log::Inherited | Log::File { .. } => None,
        }
    }

    /// Starts the log command again if that is due.
    pub fn start_again(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now)
            && let Log::Command(log) = self
        {
            log.spawn_or_say();
        }
    }

    /// Where to wait for the log command to read, if lines wait for that.
    pub fn wants_to_write(&self) -> Option<BorrowedFd<'static>> {
        match self {
            Log::Command(_) if is_waiting() => Some(stdout()),
            Log::Command(_) | Log::Inherited | Log::File { .. } => None,
        }
    }

    /// At the end: somebody must read what is in the pipe, and gets a moment to read what does not fit into it.
    pub fn end(&mut self) {
        if let Log::Command(log) = self
            && log.child.is_none()
        {
            log.spawn_or_say();
        }
        while let Some(pipe) = self.wants_to_write() {
            let mut sources = [PollFd::new(pipe, PollFlags::POLLOUT)];
            match poll(&mut sources, LAST_MOMENT) {
                Ok(1..) => flush(),
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}

impl LogCommand {
    fn start(command: &std::ffi::OsStr, attended: bool) -> io::Result<LogCommand> {
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
        let outputs = match attended {
            true => Some((
                stdout().try_clone_to_owned()?,
                io::stderr().as_fd().try_clone_to_owned()?,
            )),
            false => None,
        };
        // Another description of the same pipe: non-blocking for us alone.
        let own = OpenOptions::new()
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(format!("/proc/self/fd/{}", write_end.as_raw_fd()))?;
        redirect(write_end.as_fd())?;
        OUT.with_borrow_mut(|out| out.own = Some(own));
        let command = command.to_owned();
        Ok(LogCommand {
            command,
            read_end,
            outputs,
            child: None,
            started_at: Instant::now(),
        })
    }

    fn spawn(&mut self) -> io::Result<()> {
        self.started_at = Instant::now();
        let (stdout, stderr) = match &self.outputs {
            Some((stdout, stderr)) => (stdout.try_clone()?.into(), stderr.try_clone()?.into()),
            None => (Stdio::null(), Stdio::null()),
        };
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(&self.command)
            .stdin(self.read_end.try_clone()?)
            .stdout(stdout)
            .stderr(stderr);
        // A terminal's INT is for the server; the log outlives it.
        command.process_group(0);
        make_signals_plain(&mut command);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    fn spawn_or_say(&mut self) {
        if let Err(error) = self.spawn() {
            say(Notice::CannotStartLogCommand {
                cause: failure::cause(&error),
            });
        }
    }
}

/// The standard library hands our blocked and ignored signals on.
#[expect(
    unsafe_code,
    reason = "only a hook can change the signals of a command"
)]
fn make_signals_plain(command: &mut Command) {
    let plain = || {
        reset_all();
        Ok(sigprocmask(
            SigmaskHow::SIG_SETMASK,
            Some(&SigSet::empty()),
            None,
        )?)
    };
    // SAFETY: the hook makes system calls only and touches no memory of the process.
    unsafe { command.pre_exec(plain) };
}

fn stdout() -> BorrowedFd<'static> {
    // Standard output is open from start to end: the standard library sees to it where it was closed.
    static STDOUT: std::sync::LazyLock<io::Stdout> = std::sync::LazyLock::new(io::stdout);
    STDOUT.as_fd()
}

fn open_file(path: &Path) -> io::Result<File> {
    // Not through a link, which the server program could plant. Non-blocking only for a fifo's sake.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o666)
        .custom_flags(flags.bits())
        .open(path)
}

fn cannot_open(path: &Path, error: &io::Error) -> Failure {
    let cannot = |cause: &str| {
        Failure::failed(format!(
            "cannot open --log-file={}: {cause}",
            path.display()
        ))
    };
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ELOOP) => cannot("it is a symbolic link"),
        Some(Errno::ENOENT) => cannot("its directory does not exist"),
        Some(Errno::EACCES) => cannot(Errno::EACCES.desc()).hint(WRITABLE_HINT),
        _ => cannot(&failure::cause(error)),
    }
}

fn redirect(target: BorrowedFd<'_>) -> nix::Result<()> {
    dup2_stdout(target)?;
    dup2_stderr(target)
}
