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
mod syslog;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use nix::unistd::{Pid, dup2_stderr, dup2_stdout};

pub use self::capture::{Pipes, Stream};
pub use self::syslog::{Address, DEFAULT_ADDRESS, Format, SyslogOptions, facility};

use self::capture::{Capture, Origin};
use self::clock::Moment;
use self::command::LogCommand;
use self::file::{cannot_open, open_file};
use self::lines::harmless;
use self::syslog::Syslog;
use crate::failure::{self, Failure};
use crate::notice::{Notice, Severity};
use crate::options::{LogTarget, Options};

/// How much may wait for a log command that does not read until workers are not read any more, in bytes.
const MOST_WAITING: usize = 1 << 20;

/// The same for our own lines, which need not be lost behind theirs.
const MOST_WITH_OURS: usize = 8 << 20;

/// How long the end waits for a syslog daemon that takes nothing more, and for a log command that has everything in its
/// pipe.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The same for a log command while there is more: it may have to be started first, and nothing is lost if it reads.
const LAST_LINES: Duration = Duration::from_secs(5);

/// How long the end takes at the most, however little is read at a time.
const LONGEST_END: Duration = Duration::from_secs(10);

/// How often a log command is looked after meanwhile: it tells nobody that it has read everything.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(100);

thread_local! {
    /// The one place that all lines go through; the superdaemon has one thread.
    static OUT: RefCell<Out> = const {
        RefCell::new(Out {
            is_quiet: false,
            target: Target::Inherited,
            is_stamped: false,
            is_shared: false,
            is_torn: false,
            lost: 0,
            portion: Vec::new(),
            syslog: None,
            launcher: None,
        })
    };
}

/// What lines are written to.
struct Out {
    /// Sentences of ours are not for standard error.
    is_quiet: bool,
    target: Target,
    /// Time, generation and pid stand before each line in the target.
    is_stamped: bool,
    /// Workers write to the target themselves.
    is_shared: bool,
    /// The file ends with a part of a line, behind which there was no room.
    is_torn: bool,
    /// Lines that could not be written to the target.
    lost: u64,
    /// Lines of workers that are written to a file in one go.
    portion: Vec<u8>,
    syslog: Option<Syslog>,
    /// Standard error of whoever waits for the first generation, where it is not the target.
    launcher: Option<File>,
}

enum Target {
    /// Standard error.
    Inherited,
    /// Standard error too, where whoever is at its other end may stop reading: a terminal, a pipe or a socket.
    Paced {
        stderr: Rc<File>,
        waiting: VecDeque<u8>,
    },
    File(File),
    /// Our own end of a log command's pipe, non-blocking: that of workers blocks.
    Command {
        pipe: Rc<File>,
        waiting: VecDeque<u8>,
    },
}

/// Says a sentence.
pub fn say(notice: Notice) {
    // Why a start has failed is told to whoever looks at standard error in any case.
    let is_reason = notice.as_failure().is_some();
    OUT.with_borrow_mut(|out| out.say(notice.severity(), &notice, is_reason));
}

/// Says why the program ends. That is told to whoever looks at standard error in any case.
pub fn complain(failure: &Failure) {
    OUT.with_borrow_mut(|out| {
        out.say(
            Severity::Error,
            &format_args!("start_server: {failure}"),
            true,
        );
    });
    write_rest(|| 0);
}

/// The same where the launcher of a daemon will show it: here it is for the log alone.
pub fn keep(failure: &Failure) {
    OUT.with_borrow_mut(|out| {
        if matches!(out.target, Target::Inherited) {
            out.is_quiet = true;
        }
        out.say(
            Severity::Error,
            &format_args!("start_server: {failure}"),
            false,
        );
    });
    write_rest(|| 0);
}

/// A generation serves: what happens from here on is for the log alone.
pub fn is_up() {
    OUT.with_borrow_mut(|out| out.launcher = None);
}

/// Our own sentences are not to be seen on standard error.
pub fn be_quiet() {
    OUT.with_borrow_mut(|out| out.is_quiet = true);
}

/// From here on every line goes to syslog too.
pub fn open_syslog(options: &SyslogOptions) -> Result<(), Failure> {
    let syslog = Syslog::open(options)?;
    OUT.with_borrow_mut(|out| out.syslog = Some(syslog));
    Ok(())
}

/// Writes what waits, as far as it goes, and says where syslog cannot be reached.
fn flush() {
    let trouble = OUT.with_borrow_mut(Out::flush);
    if let Some((place, cause)) = trouble {
        say(Notice::SyslogUnreachable { place, cause });
    }
}

/// What others have to read before more can be written.
fn unwritten() -> Vec<Rc<dyn AsFd>> {
    OUT.with_borrow(|out| {
        let mut sources: Vec<Rc<dyn AsFd>> = Vec::new();
        if let Target::Command { pipe, waiting } = &out.target
            && !waiting.is_empty()
        {
            let pipe: Rc<File> = Rc::clone(pipe);
            sources.push(pipe);
        }
        if let Target::Paced { stderr, waiting } = &out.target
            && !waiting.is_empty()
        {
            let stderr: Rc<File> = Rc::clone(stderr);
            sources.push(stderr);
        }
        if let Some(socket) = out.syslog.as_ref().and_then(Syslog::wants_to_write) {
            sources.push(socket);
        }
        sources
    })
}

/// At the end: whoever reads gets the time for the last lines that it makes use of. `look_after` is called again and
/// again meanwhile, and returns how many bytes were written that nobody has read.
fn write_rest(mut look_after: impl FnMut() -> usize) {
    let began = Instant::now();
    let (mut moved_at, mut left) = (began, usize::MAX);
    let mut pause = SHORTEST_LOOK;
    loop {
        flush();
        let now = Instant::now();
        let unread = look_after();
        let (waiting, patience) = OUT.with_borrow(Out::waiting);
        if unread + waiting < left {
            (moved_at, left) = (now, unread + waiting);
        }
        let sources = unwritten();
        let end = (moved_at + patience).min(began + LONGEST_END);
        let timeout = end.saturating_duration_since(now).min(pause);
        if (sources.is_empty() && unread == 0) || timeout.is_zero() {
            return;
        }
        pause = (pause * 2).min(LONGEST_LOOK);
        let writable = |one: &Rc<dyn AsFd>| one.as_fd().try_clone_to_owned();
        let Ok(sources) = sources
            .iter()
            .map(writable)
            .collect::<io::Result<Vec<OwnedFd>>>()
        else {
            return;
        };
        let mut sources: Vec<PollFd<'_>> = sources
            .iter()
            .map(|one| PollFd::new(one.as_fd(), PollFlags::POLLOUT))
            .collect();
        match ppoll(&mut sources, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

impl Out {
    fn say(&mut self, severity: Severity, text: &dyn Display, is_reason: bool) {
        // Names and paths are part of it, and a hint is a line of its own.
        let text = text.to_string();
        let text = text.lines().map(harmless).collect::<Vec<_>>().join("\n");
        self.tell_lost();
        self.lost += self.write_own(&text, is_reason);
        if let (true, Some(launcher)) = (is_reason, &self.launcher) {
            write_if_ready(launcher, &text);
        }
        if let Some(syslog) = &mut self.syslog {
            syslog.push_own(severity, &text);
            syslog.flush(Instant::now());
        }
    }

    /// Where lines were lost, the count stands in their place.
    fn tell_lost(&mut self) {
        if self.lost > 0 && self.write_own(&Notice::LinesLost(self.lost).to_string(), false) == 0 {
            self.lost = 0;
        }
    }

    /// How many lines of it are lost.
    fn write_own(&mut self, text: &str, is_reason: bool) -> u64 {
        let lines: String = match self.is_stamped {
            true => {
                let stamp = format!("{} [-:{}] ", Moment::now(), std::process::id());
                text.lines()
                    .map(|line| format!("{stamp}{line}\n"))
                    .collect()
            }
            false => format!("{text}\n"),
        };
        let lines = lines.as_bytes();
        match &mut self.target {
            Target::Inherited | Target::Paced { .. } if self.is_quiet && !is_reason => 0,
            Target::Inherited => match io::stderr().write_all(lines) {
                Ok(()) => 0,
                Err(_) => count(lines),
            },
            Target::File(file) => append(file, &mut self.is_torn, lines),
            Target::Command { waiting, .. } | Target::Paced { waiting, .. }
                if waiting.len() + lines.len() > MOST_WITH_OURS =>
            {
                count(lines)
            }
            Target::Paced { waiting, .. } => {
                waiting.extend(lines);
                self.flush_stderr()
            }
            Target::Command { waiting, .. } => {
                waiting.extend(lines);
                self.flush_command();
                0
            }
        }
    }

    /// A line of a worker. What goes to a file waits for [`Out::flush`].
    fn write_line(&mut self, origin: &Origin, line: &str, routes: Routes, stamp: &str) {
        if routes.to_target {
            if self.is_stamped {
                self.portion.extend_from_slice(stamp.as_bytes());
            }
            self.portion.extend_from_slice(line.as_bytes());
            self.portion.push(b'\n');
        }
        if routes.to_syslog
            && let Some(syslog) = &mut self.syslog
        {
            syslog.push_line(origin, line);
        }
    }

    /// The lines of workers that have come together.
    fn write_portion(&mut self) {
        if self.portion.is_empty() {
            return;
        }
        self.tell_lost();
        match &mut self.target {
            Target::File(file) => self.lost += append(file, &mut self.is_torn, &self.portion),
            Target::Command { waiting, .. } => waiting.extend(&self.portion),
            Target::Inherited | Target::Paced { .. } => {}
        }
        self.portion.clear();
        self.portion.shrink_to(MOST_WAITING);
    }

    fn flush(&mut self) -> Option<(String, String)> {
        self.write_portion();
        self.flush_command();
        self.lost += self.flush_stderr();
        let syslog = self.syslog.as_mut()?;
        syslog.flush(Instant::now());
        syslog.take_trouble()
    }

    fn flush_command(&mut self) {
        let Target::Command { pipe, waiting } = &mut self.target else {
            return;
        };
        while !waiting.is_empty() {
            let all = &*waiting.make_contiguous();
            let share = if self.is_shared { at_once(all) } else { all };
            match (&**pipe).write(share) {
                Ok(written) => drop(waiting.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A full pipe: the rest waits until it can be written.
                Err(_) => return,
            }
        }
    }

    /// How much waits to be written (bytes for a log command, records for syslog), and how long the end waits for the
    /// next of it to be taken.
    fn waiting(&self) -> (usize, Duration) {
        let records = self.syslog.as_ref().map_or(0, Syslog::waiting);
        match &self.target {
            Target::Command { waiting, .. } if !waiting.is_empty() => {
                (waiting.len() + records, LAST_LINES)
            }
            Target::Paced { waiting, .. } => (waiting.len() + records, LAST_MOMENT),
            _ => (records, LAST_MOMENT),
        }
    }

    /// How many lines are lost because nobody will ever read them. What is not read now waits.
    fn flush_stderr(&mut self) -> u64 {
        let Target::Paced { stderr, waiting } = &mut self.target else {
            return 0;
        };
        while !waiting.is_empty() && is_ready(stderr) {
            match (&**stderr).write(at_once(waiting.make_contiguous())) {
                Ok(written) => drop(waiting.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A worker has filled it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    let lost = count(waiting.make_contiguous());
                    waiting.clear();
                    return lost;
                }
            }
        }
        0
    }

    /// A log command has to read before workers are read again.
    fn is_congested(&self) -> bool {
        matches!(&self.target, Target::Command { waiting, .. } if waiting.len() >= MOST_WAITING)
    }
}

/// A line for whoever may look there. It never waits: a terminal or pipe that takes nothing more goes without.
fn write_if_ready(mut file: &File, line: &str) {
    if is_ready(file) {
        // Whoever is gone misses nothing.
        drop(file.write(format!("{line}\n").as_bytes()));
    }
}

/// Whether a line can be written without waiting for whoever reads.
fn is_ready(file: &File) -> bool {
    let mut source = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    let now = Some(TimeSpec::from_duration(std::time::Duration::ZERO));
    ppoll(&mut source, now, None) == Ok(1)
}

/// Standard error as it was inherited, such that nobody at its other end can hold the service up.
fn inherited() -> Target {
    let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned().map(File::from) else {
        return Target::Inherited;
    };
    let Ok(kind) = stderr.metadata().map(|there| there.file_type()) else {
        return Target::Inherited;
    };
    if !(kind.is_fifo() || kind.is_socket() || stderr.is_terminal()) {
        return Target::Inherited;
    }
    // Where it can be had another description of a pipe, non-blocking for us alone: what workers write comes between the
    // question whether there is room and the answer. It cannot be had of what belongs to another user.
    let own = match kind.is_fifo() {
        true => OpenOptions::new()
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(format!("/proc/self/fd/{}", stderr.as_raw_fd()))
            .unwrap_or(stderr),
        false => stderr,
    };
    Target::Paced {
        stderr: Rc::new(own),
        waiting: VecDeque::new(),
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Appends whole lines to a file, and returns how many of them are lost: one that was cut is lost as well.
fn append(file: &mut File, is_torn: &mut bool, lines: &[u8]) -> u64 {
    // What is left of a line that was cut is no start for the next one.
    if *is_torn && file.write_all(b"\n").is_err() {
        return count(lines);
    }
    *is_torn = false;
    let mut written = 0;
    while written < lines.len() {
        match file.write(&lines[written..]) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let (done, lost) = lines.split_at(written);
    *is_torn = done.last().is_some_and(|byte| *byte != b'\n');
    count(lost)
}

/// As many lines as a pipe takes in one piece (pipe(7)), so that no line of another writer comes into one of them.
fn at_once(lines: &[u8]) -> &[u8] {
    let most = lines.len().min(libc::PIPE_BUF);
    let end = lines[..most].iter().rposition(|byte| *byte == b'\n');
    match end.or_else(|| lines.iter().position(|byte| *byte == b'\n')) {
        Some(end) => &lines[..=end],
        None => lines,
    }
}

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
    pub fn open(options: &Options) -> Result<Log, Failure> {
        let routes = |stream| {
            let to_target = options.log_file.is_some() && options.log_streams.contains(&stream);
            let to_syslog = options.syslog.is_some() && options.syslog_streams.contains(&stream);
            Routes {
                to_target,
                to_syslog,
                is_captured: to_syslog || (to_target && options.log_timestamps),
            }
        };
        let mut log = Log {
            target: LogFile::None,
            stdout: routes(Stream::Stdout),
            stderr: routes(Stream::Stderr),
            capture: Capture::default(),
            reopened: Reopened::default(),
        };
        let attended = !options.daemonize;
        let launcher = match attended && options.log_file.is_some() {
            true => io::stderr().as_fd().try_clone_to_owned().ok(),
            false => None,
        };
        let (target, out) = match &options.log_file {
            None if attended => (LogFile::None, inherited()),
            None => (LogFile::None, Target::Inherited),
            Some(LogTarget::File(path)) => {
                let file = open_file(path).map_err(|error| cannot_open(path, &error))?;
                log.redirect(file.as_fd(), attended)
                    .map_err(|error| cannot_open(path, &error))?;
                (LogFile::File(path.clone()), Target::File(file))
            }
            Some(LogTarget::Command(command)) => {
                let cannot = |error: io::Error| command::cannot_use(command, &error);
                let mut command = LogCommand::new(command, attended).map_err(cannot)?;
                log.redirect(command.write_end(), attended)
                    .map_err(cannot)?;
                let pipe = Rc::new(command.own_end().map_err(cannot)?);
                command.spawn().map_err(cannot)?;
                let waiting = VecDeque::new();
                (LogFile::Command(command), Target::Command { pipe, waiting })
            }
        };
        if options.log_file.is_none() && !attended {
            log.redirect(
                File::open("/dev/null").map_err(cannot_detach)?.as_fd(),
                false,
            )
            .map_err(cannot_detach)?;
        }
        log.target = target;
        OUT.with_borrow_mut(|out_now| {
            out_now.target = out;
            out_now.is_stamped = options.log_timestamps;
            out_now.is_shared = !log.is_all_captured();
            out_now.launcher = launcher.map(File::from);
        });
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
            OUT.with_borrow_mut(|out| {
                out.target = Target::File(file);
                out.is_torn = false;
            });
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
        let is_congested = OUT.with_borrow(Out::is_congested);
        Sources {
            readable: self.capture.sources().filter(|_| !is_congested).collect(),
            writable: unwritten(),
        }
    }

    /// When [`Log::take_turn`] is due in any case.
    pub fn deadline(&self) -> Option<Instant> {
        let command = match &self.target {
            LogFile::Command(command) => command.deadline(),
            LogFile::File(_) | LogFile::None => None,
        };
        let syslog = OUT.with_borrow(|out| out.syslog.as_ref().and_then(Syslog::deadline));
        command.into_iter().chain(syslog).min()
    }

    /// Reads a share of what workers have written, writes what waits, and starts a log command again if that is due.
    pub fn take_turn(&mut self, now: Instant) {
        if let LogFile::Command(command) = &mut self.target {
            command.start_again(now);
        }
        if !OUT.with_borrow(Out::is_congested) {
            let (stdout, stderr) = (self.stdout, self.stderr);
            self.capture.read(writer(stdout, stderr));
        }
        flush();
    }

    /// A worker has ended: all that it has written is read. The last lines of its standard error, where that is captured.
    pub fn worker_exited(&mut self, pid: Pid) -> Vec<String> {
        let (stdout, stderr) = (self.stdout, self.stderr);
        let last = self.capture.worker_exited(pid, writer(stdout, stderr));
        flush();
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
            if !OUT.with_borrow(|out| out.is_quiet) {
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
        flush();
    }

    /// At the end: somebody must read what waits, and gets a moment for that.
    pub fn end(&mut self) {
        self.read_all();
        let mut at_once = true;
        write_rest(|| match &mut self.target {
            LogFile::Command(command) => {
                command.start_for_the_rest(&mut at_once);
                command.unread()
            }
            LogFile::File(_) | LogFile::None => 0,
        });
        let unsent = OUT.with_borrow(|out| out.syslog.as_ref().map_or(0, Syslog::unsent));
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
        OUT.with_borrow_mut(|out| out.write_line(origin, line, routes, &stamp.1));
    }
}

fn cannot_detach(error: io::Error) -> Failure {
    Failure::failed(format!("cannot open /dev/null: {}", failure::cause(&error)))
}
