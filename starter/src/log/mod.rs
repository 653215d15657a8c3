//! Where output goes: our own sentences and what workers write, to standard error and output as they were inherited, to
//! the file or command of `--log-file`, to syslog, or to several of these.
//!
//! A stream of the workers goes straight where it belongs, by a descriptor that they inherit, unless each line of it must be
//! known: then it is captured, which means read here.
//!
//! Nothing of this ever ends or blocks the service: a log that cannot be written loses lines, which are counted, and what
//! a log command does not read waits. Only then workers wait as well: as long as the command does.

mod capture;
mod clock;
mod command;
mod file;
pub mod lines;
mod out;
mod settings;
mod syslog;
mod target;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use nix::unistd::{Pid, dup2_stderr, dup2_stdout};

pub use self::capture::{Pipes, Stream};
pub use self::out::{be_quiet, complain, is_up, keep, open_syslog, say};
pub use self::settings::{Address, Format, LogTarget, Settings, SyslogSettings};
pub use self::syslog::{DEFAULT_ADDRESS, facility};

use self::capture::{Capture, Origin};
use self::clock::Moment;
use self::command::LogCommand;
use self::file::{cannot_open, open_file};
use self::out::Unread;
use self::target::Target;
use crate::words::failure::{self, Failure};
use crate::words::notice::Notice;

/// Where one stream of the workers goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Routes {
    to_target: bool,
    to_syslog: bool,
    /// Each line is read here.
    is_captured: bool,
}

/// The log as the superdaemon sees it.
pub struct Log {
    target: LogFile,
    stdout: Routes,
    stderr: Routes,
    capture: Capture,
    reopened: Reopened,
}

enum LogFile {
    None,
    File(PathBuf),
    Command(LogCommand),
}

/// What became of the orders to open the log file again, for whoever gave them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reopened {
    pub orders: u32,
    /// Why the last one was not carried out.
    pub failure: Option<String>,
}

impl Log {
    /// Turns the streams to where they belong; those that are captured stay as they are here.
    pub fn open(settings: &Settings) -> Result<Log, Failure> {
        let routes = |stream| {
            let to_target = settings.target.is_some() && settings.target_streams.contains(&stream);
            let to_syslog = settings.syslog.is_some() && settings.syslog_streams.contains(&stream);
            Routes {
                to_target,
                to_syslog,
                is_captured: to_syslog || (to_target && settings.has_timestamps),
            }
        };
        let mut log = Log {
            target: LogFile::None,
            stdout: routes(Stream::Stdout),
            stderr: routes(Stream::Stderr),
            capture: Capture::default(),
            reopened: Reopened::default(),
        };
        let attended = settings.is_attended;
        let launcher = match attended && settings.target.is_some() {
            true => io::stderr().as_fd().try_clone_to_owned().ok(),
            false => None,
        };
        let (target, out) = match &settings.target {
            None if attended => (LogFile::None, Target::inherited()),
            None => (LogFile::None, Target::Inherited),
            Some(LogTarget::File(path)) => {
                let file = open_file(path).map_err(|error| cannot_open(path, &error))?;
                log.redirect(file.as_fd(), attended)
                    .map_err(|error| cannot_open(path, &error))?;
                (LogFile::File(path.clone()), Target::file(file))
            }
            Some(LogTarget::Command(command)) => {
                let cannot = |error: io::Error| command::cannot_use(command, &error);
                let mut command = LogCommand::new(command, attended).map_err(cannot)?;
                log.redirect(command.write_end(), attended)
                    .map_err(cannot)?;
                let pipe = Rc::new(command.own_end().map_err(cannot)?);
                command.spawn().map_err(cannot)?;
                let is_shared = !log.is_all_captured();
                (LogFile::Command(command), Target::command(pipe, is_shared))
            }
        };
        if settings.target.is_none() && !attended {
            log.redirect(
                File::open("/dev/null").map_err(cannot_detach)?.as_fd(),
                false,
            )
            .map_err(cannot_detach)?;
        }
        log.target = target;
        out::turn_to(out, settings.has_timestamps, launcher.map(File::from));
        Ok(log)
    }

    /// Standard output and error to the target, as far as they go there. A daemon keeps no other.
    fn redirect(&self, target: BorrowedFd<'_>, attended: bool) -> io::Result<()> {
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
        let place = |routes: Routes| match (routes.to_target, attended) {
            (true, _) => Some(target),
            (false, false) => Some(null.as_fd()),
            (false, true) => None,
        };
        if let Some(stdout) = place(self.stdout) {
            dup2_stdout(stdout)?;
        }
        if let Some(stderr) = place(self.stderr) {
            dup2_stderr(stderr)?;
        }
        Ok(())
    }

    /// USR1: whoever rotates the log has moved the file away.
    pub fn reopen(&mut self) {
        self.reopened.orders += 1;
        let LogFile::File(path) = &self.target else {
            self.reopened.failure = Some("it writes to no log file".into());
            say(Notice::NothingToReopen);
            return;
        };
        let path = path.clone();
        // What was read before belongs to the old file.
        self.read_all();
        let opened = open_file(&path).and_then(|file| {
            self.redirect(file.as_fd(), true)?;
            out::turn_to_file(file);
            Ok(())
        });
        self.reopened.failure = opened.as_ref().err().map(file::cause);
        match opened {
            Ok(()) => say(Notice::LogReopened {
                path,
                is_captured: self.is_all_captured(),
            }),
            Err(error) => say(Notice::CannotReopen {
                path,
                cause: file::cause(&error),
            }),
        }
    }

    pub fn reopened(&self) -> &Reopened {
        &self.reopened
    }

    /// No worker has the file open itself.
    fn is_all_captured(&self) -> bool {
        [self.stdout, self.stderr]
            .iter()
            .all(|routes| routes.is_captured || !routes.to_target)
    }

    /// Pipes for the streams of a new worker that are captured.
    pub fn pipes(&self) -> nix::Result<Pipes> {
        let is_captured = |stream: &Stream| self.routes(*stream).is_captured;
        Pipes::new(Stream::BOTH.into_iter().filter(is_captured))
    }

    /// The worker was started with them.
    pub fn attach(&mut self, generation: u32, pid: Pid, pipes: Pipes) {
        self.capture.attach(generation, pid, pipes);
    }

    fn routes(&self, stream: Stream) -> Routes {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    /// Everything to wait for.
    pub fn sources(&self) -> Sources<'_> {
        let is_congested = out::is_congested();
        Sources {
            readable: self.capture.sources().filter(|_| !is_congested).collect(),
            writable: out::unwritten(),
        }
    }

    /// When [`Log::take_turn`] is due in any case.
    pub fn deadline(&self) -> Option<Instant> {
        let command = match &self.target {
            LogFile::Command(command) => command.deadline(),
            LogFile::File(_) | LogFile::None => None,
        };
        command.into_iter().chain(out::deadline()).min()
    }

    /// Reads a share of what workers have written, writes what waits, and starts a log command again if that is due.
    pub fn take_turn(&mut self, now: Instant) {
        if let LogFile::Command(command) = &mut self.target {
            command.start_again(now);
        }
        if !out::is_congested() {
            let (stdout, stderr) = (self.stdout, self.stderr);
            self.capture.read(writer(stdout, stderr));
        }
        out::flush();
    }

    /// A worker has ended: all that it has written is read. The last lines of its standard error, where that is captured.
    pub fn worker_exited(&mut self, pid: Pid) -> Vec<String> {
        let (stdout, stderr) = (self.stdout, self.stderr);
        let last = self.capture.worker_exited(pid, writer(stdout, stderr));
        out::flush();
        last
    }

    /// Whether this child was the log command; if so another will be started.
    pub fn has_exited(&mut self, pid: Pid, status: i32) -> bool {
        let LogFile::Command(command) = &mut self.target else {
            return false;
        };
        let ours = command.has_exited(pid);
        if ours {
            let notice = Notice::LogCommandDied { status };
            if !out::is_quiet() {
                command.tell_elsewhere(&notice);
            }
            say(notice);
        }
        ours
    }

    /// What was written until now, as far as it can be had without waiting.
    fn read_all(&mut self) {
        let (stdout, stderr) = (self.stdout, self.stderr);
        self.capture.read(writer(stdout, stderr));
        out::flush();
    }

    /// At the end: somebody must read what waits, and gets a moment for that.
    pub fn end(&mut self) {
        self.read_all();
        let mut at_once = true;
        out::write_rest(|| match &mut self.target {
            LogFile::Command(command) => {
                command.start_for_the_rest(&mut at_once);
                Unread {
                    unread: command.unread(),
                    read_since: command.running_since(),
                }
            }
            LogFile::File(_) | LogFile::None => Unread::default(),
        });
        let unsent = out::unsent();
        if unsent > 0 {
            say(Notice::NeverSent(unsent));
        }
    }
}

/// What [`Log::sources`] has found.
pub struct Sources<'a> {
    pub readable: Vec<BorrowedFd<'a>>,
    pub writable: Vec<Rc<dyn AsFd>>,
}

/// Takes the lines of workers, all with the time of now.
fn writer(stdout: Routes, stderr: Routes) -> impl FnMut(&Origin, &str) {
    let now = Moment::now();
    let mut stamp = (None, String::new());
    move |origin, line| {
        let routes = match origin.stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        if stamp.0 != Some(origin.pid) {
            stamp = (
                Some(origin.pid),
                format!("{now} [{}:{}] ", origin.generation, origin.pid),
            );
        }
        out::write_line(origin, line, routes, &stamp.1);
    }
}

fn cannot_detach(error: io::Error) -> Failure {
    Failure::failed(format!("cannot open /dev/null: {}", failure::cause(&error)))
}
