//! Where output goes, our own messages and what workers write: to the inherited standard error and output, to the file or
//! command of `--log-file`, to syslog, or to several of these.
//!
//! A stream of the workers goes straight to its target, by a descriptor that they inherit, unless each line must be seen:
//! then it is captured, which means read here.
//!
//! Nothing here ever ends or blocks the service: a log that cannot be written loses lines, which are counted, and what a
//! log command does not read is queued, and so is what nobody reads of the workers' lines on standard error. Only then do
//! workers block too: until that is read on.

mod appended;
mod capture;
mod command;
mod file;
mod known;
pub mod lines;
mod local_time;
mod output;
mod record;
mod settings;
mod syslog;
mod target;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::unistd::{Pid, dup2_stderr, dup2_stdout};
use serde::{Deserialize, Serialize};

pub use self::appended::Readers;
pub use self::capture::{Pipes, Stream};
pub use self::known::Known;
pub use self::lines::LineFormat;
pub use self::settings::{Address, Format, LogTarget, Settings, SyslogSettings};
pub use self::syslog::{DEFAULT_ADDRESS, facility};

use self::appended::{Appended, PackedAppended, Since};
use self::capture::{Capture, KEPT, Origin, PackedCapture};
use self::command::{LogCommand, PackedCommand};
use self::file::{cannot_open, open_file};
use self::known::About;
use self::lines::Line;
use self::local_time::LocalTime;
use self::output::{Output, PackedOutput, Unread, of_failure};
use self::record::{now, ours, stamp};
use self::settings::Routes;
use self::syslog::Syslog;
use self::target::Target;
use crate::host::access::Expected;
use crate::host::launcher::Handover;
use crate::host::luggage::Luggage;
use crate::host::moment::Moment;
use crate::host::streams;
use crate::words::failure::{self, Failure};
use crate::words::findings::Findings;
use crate::words::notice::{Notice, Severity};
use crate::words::text::quoted;

/// The log as the superdaemon sees it.
pub struct Log {
    output: Output,
    target: LogFile,
    stdout: Routes,
    stderr: Routes,
    capture: Capture,
    appended: Appended,
    reopened: Reopened,
}

enum LogFile {
    None,
    File(PathBuf),
    Command(LogCommand),
}

/// The results of requests to reopen the log file, for whoever made them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reopened {
    pub orders: u32,
    /// Why the last one failed.
    pub failure: Option<String>,
}

/// A [`Log`] on its way to the next program, with every line that has not reached its end.
#[derive(Debug, Serialize, Deserialize)]
pub struct Packed {
    output: PackedOutput,
    /// The log command, if that is the target.
    command: Option<PackedCommand>,
    capture: PackedCapture,
    appended: PackedAppended,
    reopened: Reopened,
}

/// The descriptors that the log waits for.
pub struct Sources<'a> {
    pub readable: Vec<BorrowedFd<'a>>,
    pub writable: Vec<BorrowedFd<'a>>,
}

/// Shows the messages of a program without a log on standard error.
pub fn show(sentence: &dyn std::fmt::Display) {
    // If standard error is closed, nobody wants to know.
    drop(io::stderr().write_all(format!("{sentence}\n").as_bytes()));
}

/// Shows a message of ours where there is no log, as the log would have it.
pub fn show_as(format: LineFormat, severity: Severity, text: &str) {
    let lines = ours(format, severity, About::default(), text);
    show(&lines.join("\n"));
}

/// Shows why the program fails, as the log would have it.
pub fn show_failure(format: LineFormat, failure: &Failure) {
    show(&of_failure(format, failure).join("\n"));
}

/// Shows a line on the terminal that is standard error, in the place of the last one that was shown like this. It must be
/// safe to show and narrower than the terminal; an empty one leaves nothing.
pub fn show_in_place(line: &str) {
    // Back to the first column, and away with what is left of a longer one (console_codes(4)).
    drop(io::stderr().write_all(format!("\r{line}\x1b[K").as_bytes()));
}

/// For a dry run: where the log would go. Nothing is opened for good, and no command is started.
pub fn examine(settings: &Settings, expected: &Expected, findings: &mut Findings) {
    if let Some(syslog) = &settings.syslog
        && findings
            .take(Syslog::open(syslog, settings.format))
            .is_some()
    {
        let address = match &syslog.address {
            Address::Socket(path) => quoted(path),
            Address::Udp(address) => format!("udp:{}", quoted(address)),
        };
        findings.would(format!("sends lines to syslog at {address}"));
    }
    if settings.format == LineFormat::Json {
        findings.would("writes each line of the log as a JSON object");
    }
    match &settings.target {
        Some(LogTarget::File(path)) => {
            let examined = file::examine(path, expected).map_err(|error| cannot_open(path, &error));
            if findings.take(examined).is_some() {
                findings.would(format!("appends to {} (--log-file)", quoted(path)));
            }
        }
        Some(LogTarget::Command(command)) => {
            findings.would(format!("pipes lines to a command: {}", quoted(command)));
        }
        None => {}
    }
}

impl Log {
    /// From here on our own messages go to standard error and to syslog. Streams stay as they are until [`Log::open`].
    ///
    /// # Errors
    /// An invalid syslog address.
    pub fn begin(settings: &Settings) -> Result<Log, Failure> {
        let open = |one| Syslog::open(one, settings.format);
        let syslog = settings.syslog.as_ref().map(open).transpose()?;
        Ok(Log {
            output: Output::new(settings.is_quiet, settings.format, syslog),
            target: LogFile::None,
            stdout: settings.routes(Stream::Stdout),
            stderr: settings.routes(Stream::Stderr),
            capture: Capture::default(),
            appended: Appended::default(),
            reopened: Reopened::default(),
        })
    }

    /// For the next program. Standard output and error are not in the luggage: they stay what they are.
    pub fn pack(&self, luggage: &mut Luggage) -> Packed {
        Packed {
            output: self.output.pack(luggage),
            command: match &self.target {
                LogFile::Command(command) => Some(command.pack(luggage)),
                LogFile::File(_) | LogFile::None => None,
            },
            capture: self.capture.pack(luggage),
            appended: self.appended.pack(),
            reopened: self.reopened.clone(),
        }
    }

    /// What the last program has packed, which had the same settings.
    pub fn unpack(packed: Packed, settings: &Settings, handover: &Rc<Handover>) -> Log {
        let target = match (&settings.target, packed.command) {
            (Some(LogTarget::Command(command)), Some(packed)) => {
                LogFile::Command(LogCommand::unpack(packed, command, handover.clone()))
            }
            (Some(LogTarget::File(path)), _) => LogFile::File(path.clone()),
            (Some(LogTarget::Command(_)) | None, _) => LogFile::None,
        };
        let mut log = Log {
            output: Output::unpack(packed.output, settings),
            target,
            stdout: settings.routes(Stream::Stdout),
            stderr: settings.routes(Stream::Stderr),
            capture: Capture::unpack(packed.capture),
            appended: Appended::unpack(packed.appended),
            reopened: packed.reopened,
        };
        if let (LogFile::File(path), true) = (&log.target, log.output.target.is_lost()) {
            let path = path.clone();
            // Where that fails every line that is lost is counted.
            drop(log.open_again(&path));
        }
        log
    }

    /// Turns the streams to where they belong; those that are captured stay as they are here.
    pub fn open(&mut self, settings: &Settings, handover: &Rc<Handover>) -> Result<(), Failure> {
        let is_attended = settings.is_attended;
        let launcher = match is_attended && settings.target.is_some() {
            true => io::stderr().as_fd().try_clone_to_owned().ok(),
            false => None,
        };
        let (target, output) = match &settings.target {
            None if is_attended => (LogFile::None, Target::inherited(settings.is_passed_on())),
            None => {
                let null = File::open("/dev/null").map_err(cannot_detach)?;
                self.redirect(null.as_fd(), false).map_err(cannot_detach)?;
                (LogFile::None, Target::Inherited)
            }
            Some(LogTarget::File(path)) => {
                let file = open_file(path).map_err(|error| cannot_open(path, &error))?;
                self.redirect(file.as_fd(), is_attended)
                    .map_err(|error| cannot_open(path, &error))?;
                (LogFile::File(path.clone()), Target::file(file))
            }
            Some(LogTarget::Command(command)) => {
                let cannot = |error: io::Error| command::cannot_use(command, &error);
                let mut command =
                    LogCommand::new(command, handover.clone(), is_attended).map_err(cannot)?;
                self.redirect(command.write_end(), is_attended)
                    .map_err(cannot)?;
                let pipe = command.own_end().map_err(cannot)?;
                command.spawn().map_err(cannot)?;
                let is_shared = !self.is_all_captured();
                (LogFile::Command(command), Target::command(pipe, is_shared))
            }
        };
        self.target = target;
        self.output.target = output;
        self.output.is_stamped = settings.has_timestamps;
        self.output.launcher = launcher.map(File::from);
        Ok(())
    }

    /// Redirects those of standard output and error that go to the target. A daemon keeps no other.
    fn redirect(&self, target: BorrowedFd<'_>, is_attended: bool) -> io::Result<()> {
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
        let place = |routes: Routes| match (routes.to_target, is_attended) {
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

    /// Logs a message.
    pub fn say(&mut self, notice: &Notice) {
        self.output.say(notice);
        if self.shared_file().is_some() {
            self.appended.wrote(&notice.to_string());
        }
    }

    /// Reports why the program fails, also on standard error.
    pub fn complain(&mut self, failure: &Failure) {
        self.output.complain(failure);
    }

    /// The same, for the log alone, if something else shows it on standard error.
    pub fn record(&mut self, failure: &Failure) {
        self.output.record(failure);
    }

    /// A generation serves: from here on messages go to the log alone, no longer to the waiting launcher.
    pub fn release_launcher(&mut self) {
        self.output.launcher = None;
    }

    /// USR1: the log was rotated, and its file moved away.
    pub fn reopen(&mut self) {
        self.reopened.orders += 1;
        let LogFile::File(path) = &self.target else {
            self.reopened.failure = Some("it has no log file".into());
            self.say(&Notice::NothingToReopen);
            return;
        };
        let path = path.clone();
        // What was read before belongs in the old file.
        self.read_all();
        let opened = self.open_again(&path);
        self.reopened.failure = opened.as_ref().err().map(file::cause);
        let notice = match opened {
            Ok(()) => Notice::LogReopened {
                path,
                is_captured: self.is_all_captured(),
            },
            Err(error) => Notice::CannotReopen {
                path,
                cause: file::cause(&error),
            },
        };
        self.say(&notice);
    }

    fn open_again(&mut self, path: &Path) -> io::Result<()> {
        let file = open_file(path)?;
        self.redirect(file.as_fd(), true)?;
        self.output.target = Target::file(file);
        Ok(())
    }

    /// How many lines have been lost since the start, on the way to the target or to syslog.
    pub fn lost(&self) -> u64 {
        self.output.lost_in_all()
    }

    pub fn reopened(&self) -> &Reopened {
        &self.reopened
    }

    /// Whether no worker has the file open itself.
    fn is_all_captured(&self) -> bool {
        !self.stdout.is_shared() && !self.stderr.is_shared()
    }

    /// The paths of those streams of the workers that they cannot open again: no log of their own takes them over.
    pub fn closed_streams(&self) -> Vec<&'static str> {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let streams = [
            ("/dev/stdout", self.stdout, 1, stdout.as_fd()),
            ("/dev/stderr", self.stderr, 2, stderr.as_fd()),
        ];
        streams
            .into_iter()
            .filter(|(_, routes, _, _)| !routes.is_captured)
            .filter(|(_, _, number, stream)| !streams::can_open_by_path(*number, *stream))
            .map(|(path, ..)| path)
            .collect()
    }

    /// Pipes for the streams of a new worker that are captured.
    pub fn pipes(&self) -> nix::Result<Pipes> {
        let is_captured = |stream: &Stream| match stream {
            Stream::Stdout => self.stdout.is_captured,
            Stream::Stderr => self.stderr.is_captured,
        };
        let mut pipes = Pipes::new(Stream::BOTH.into_iter().filter(is_captured))?;
        pipes.since = self.shared_file().and_then(Since::end_of);
        Ok(pipes)
    }

    /// The log file, if workers write their standard error there themselves.
    fn shared_file(&self) -> Option<&File> {
        match &self.output.target {
            Target::File { file, .. } if self.stderr.is_shared() => Some(file),
            _ => None,
        }
    }

    /// The worker was started with these pipes.
    pub fn attach(&mut self, worker: Known, pipes: Pipes) {
        self.know(worker);
        if let Some(since) = pipes.since {
            self.appended.started(worker.pid, since);
        }
        self.capture.attach(worker, pipes, self.output.format);
    }

    /// A worker of the program or supervisor before is known here too.
    pub fn know(&mut self, worker: Known) {
        self.output.workers.started(worker);
    }

    /// The descriptors to wait for.
    pub fn sources(&self) -> Sources<'_> {
        let is_congested = self.output.is_congested();
        Sources {
            readable: self.capture.sources().filter(|_| !is_congested).collect(),
            writable: self.output.unwritten().collect(),
        }
    }

    /// When [`Log::work`] is due even without input.
    pub fn deadline(&self) -> Option<Moment> {
        let command = match &self.target {
            LogFile::Command(command) => command.deadline(),
            LogFile::File(_) | LogFile::None => None,
        };
        command.into_iter().chain(self.output.deadline()).min()
    }

    /// Reads a share of what workers wrote, writes what is queued, and restarts a log command if that is due.
    pub fn work(&mut self, now: Moment) {
        if let LogFile::Command(command) = &mut self.target
            && let Some(notice) = command.start_again(now)
        {
            self.say(&notice);
        }
        if !self.output.is_congested() {
            self.read();
        }
        self.output.flush();
    }

    /// A worker has ended: reads all that it wrote, and returns the last lines of its standard error, if captured. Those of
    /// one that was on trial may be found in the log file too.
    pub fn worker_exited(&mut self, pid: Pid, is_on_trial: bool, readers: Readers) -> Vec<String> {
        self.output.workers.exited(pid);
        let writer = writer(&mut self.output, self.stdout, self.stderr);
        let mut last = self.capture.worker_exited(pid, writer);
        self.output.flush();
        if last.is_empty() && is_on_trial {
            last = self.appended_lines(pid, readers);
        }
        self.appended.exited(pid);
        last
    }

    /// The last lines of a worker whose start has failed, and which still lives.
    pub fn worker_failed(&mut self, pid: Pid, readers: Readers) -> Vec<String> {
        if !self.output.is_congested() {
            self.read();
        }
        let last = self.capture.last_lines(pid);
        match last.is_empty() {
            true => self.appended_lines(pid, readers),
            false => last,
        }
    }

    fn appended_lines(&self, pid: Pid, readers: Readers) -> Vec<String> {
        let file = self.shared_file();
        let lines = file.map(|file| self.appended.lines(pid, file.as_fd(), KEPT, readers));
        lines.unwrap_or_default()
    }

    /// Whether this child was the log command; if so it will be restarted.
    pub fn has_exited(&mut self, pid: Pid, status: i32) -> bool {
        let LogFile::Command(command) = &mut self.target else {
            return false;
        };
        let ours = command.has_exited(pid);
        if ours {
            let notice = Notice::LogCommandDied { status };
            if !self.output.is_quiet {
                command.show_on_stderr(&self.output.lines(&notice));
            }
            self.say(&notice);
        }
        ours
    }

    fn read(&mut self) {
        let writer = writer(&mut self.output, self.stdout, self.stderr);
        self.capture.read(writer);
    }

    /// Reads and writes what was written until now, as far as that does not block.
    fn read_all(&mut self) {
        self.read();
        self.output.flush();
    }

    /// At the end, gives readers a moment to take what is queued.
    pub fn end(mut self) {
        self.read_all();
        let Log { output, target, .. } = &mut self;
        let mut at_once = true;
        output.write_rest(|output| match target {
            LogFile::Command(command) => {
                for notice in command.start_for_the_rest(&mut at_once) {
                    output.say(&notice);
                }
                Unread {
                    unread: command.unread(),
                    read_since: command.running_since(),
                }
            }
            LogFile::File(_) | LogFile::None => Unread::default(),
        });
        let unsent = output.unsent();
        if unsent > 0 {
            output.say(&Notice::NeverSent(unsent));
        }
    }
}

/// Takes the workers' lines, all with the current time.
fn writer(
    output: &mut Output,
    stdout: Routes,
    stderr: Routes,
) -> impl FnMut(&Origin, Line<'_>) + use<'_> {
    let local = LocalTime::now();
    let (mut of, mut start) = (None, String::new());
    if output.format == LineFormat::Json {
        start = now();
    }
    move |origin, line| {
        let routes = match origin.stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        let Known {
            generation, pid, ..
        } = origin.worker;
        if output.format == LineFormat::Text && of != Some(pid) {
            of = Some(pid);
            start = stamp(&local, Some(generation), pid.as_raw().unsigned_abs());
        }
        output.take_line(origin, line, routes, &start);
    }
}

fn cannot_detach(error: io::Error) -> Failure {
    Failure::failed(format!("cannot open /dev/null: {}", failure::cause(&error)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsRawFd, OwnedFd};

    use serde::de::DeserializeOwned;

    use super::*;

    const NOBODY_ELSE: Readers = Readers {
        group: None,
        all: false,
    };

    /// What the next program reads of this.
    pub fn on_its_way<T: Serialize + DeserializeOwned>(packed: &T) -> T {
        serde_json::from_str(&serde_json::to_string(packed).unwrap()).unwrap()
    }

    /// Everything goes to a command, each line with a timestamp.
    pub fn settings() -> Settings {
        Settings {
            target: Some(LogTarget::Command("cat".into())),
            target_streams: Stream::BOTH.into(),
            has_timestamps: true,
            format: LineFormat::Text,
            syslog: None,
            syslog_streams: Stream::BOTH.into(),
            is_quiet: false,
            is_attended: false,
        }
    }

    /// A log whose command is not running, so that the streams of this process stay as they are, and what reads its pipe.
    fn log_and_reader(settings: &Settings) -> (Log, File) {
        let mut log = Log::begin(settings).unwrap();
        let command = LogCommand::new("cat".as_ref(), Rc::default(), false).unwrap();
        let path = format!("/proc/self/fd/{}", command.write_end().as_raw_fd());
        let pipe = command.own_end().unwrap();
        log.output.target = Target::command(pipe, false);
        log.output.is_stamped = true;
        log.target = LogFile::Command(command);
        (log, File::open(path).unwrap())
    }

    /// Without the times.
    fn lines(written: &str) -> Vec<&str> {
        let lines = written.lines();
        lines.map(|line| line.split_once(' ').unwrap().1).collect()
    }

    #[test]
    fn the_next_program_loses_and_doubles_no_line() {
        let (settings, pid) = (settings(), Pid::from_raw(7));
        let (mut log, mut reader) = log_and_reader(&settings);
        let mut pipes = log.pipes().unwrap();
        let mut theirs = std::mem::take(&mut pipes.theirs).into_iter();
        let worker = Known {
            generation: 3,
            slot: 0,
            pid,
        };
        log.attach(worker, pipes);
        let [mut stdout, mut stderr] = [(); 2].map(|()| File::from(theirs.next().unwrap().0));
        log.reopen();
        stdout.write_all(b"out\nha").unwrap();
        stderr.write_all(b"err\n").unwrap();
        // Reads, but does not write.
        assert_eq!(log.worker_failed(pid, NOBODY_ELSE), ["err"]);
        stdout.write_all(b"lf\n").unwrap();
        let (reopened, deadline) = (log.reopened().clone(), log.deadline());
        let packed = on_its_way(&log.pack(&mut Luggage::default()));
        drop(log);
        let mut log = Log::unpack(packed, &settings, &Rc::default());
        assert_eq!((log.reopened(), log.deadline()), (&reopened, deadline));
        assert!(log.is_all_captured() && deadline.is_some());
        assert_eq!(log.worker_exited(pid, true, NOBODY_ELSE), ["err"]);
        drop(log);
        let mut written = String::new();
        reader.read_to_string(&mut written).unwrap();
        let own = format!("[-:{}] {}", std::process::id(), Notice::NothingToReopen);
        let expected = [&own, "[3:7] out", "[3:7] err", "[3:7] half"];
        assert_eq!(lines(&written), expected);
    }

    #[test]
    fn objects_go_on_where_the_program_before_has_stopped() {
        let settings = Settings {
            format: LineFormat::Json,
            has_timestamps: false,
            ..settings()
        };
        let pid = Pid::from_raw(7);
        let worker = Known {
            generation: 3,
            slot: 1,
            pid,
        };
        let (mut log, mut reader) = log_and_reader(&settings);
        log.output.is_stamped = false;
        let mut pipes = log.pipes().unwrap();
        let mut theirs = std::mem::take(&mut pipes.theirs).into_iter();
        log.attach(worker, pipes);
        let [mut stdout, mut stderr] = [(); 2].map(|()| File::from(theirs.next().unwrap().0));
        stdout.write_all(b"ha").unwrap();
        stderr.write_all(b"\xff\n").unwrap();
        assert_eq!(log.worker_failed(pid, NOBODY_ELSE), ["\u{fffd}"]);
        stdout.write_all(b"lf\n").unwrap();
        let packed = on_its_way(&log.pack(&mut Luggage::default()));
        drop(log);
        let mut log = Log::unpack(packed, &settings, &Rc::default());
        log.know(worker);
        log.worker_exited(pid, true, NOBODY_ELSE);
        let died = Notice::WorkerDied { pid, status: 9 };
        log.say(&died);
        drop(log);
        let mut written = String::new();
        reader.read_to_string(&mut written).unwrap();
        let lines = written.lines().map(|line| {
            let (start, line) = line.split_once(r#"Z","severity":""#).unwrap();
            assert_eq!(start.len(), r#"{"time":"2026-11-02T09:43:06.023456"#.len());
            line
        });
        let expected = [
            ("warning", "stderr", "\u{fffd}".to_owned()),
            ("info", "stdout", "half".to_owned()),
            ("info", "start_server", died.to_string()),
        ];
        let expected = expected.map(|(severity, stream, message)| {
            let of = r#""generation":3,"pid":7,"worker":1"#;
            format!(r#"{severity}","stream":"{stream}",{of},"message":"{message}"}}"#)
        });
        assert_eq!(lines.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_next_program_reopens_the_same_file() {
        let settings = Settings {
            target: Some(LogTarget::File("/var/log/app.log".into())),
            ..settings()
        };
        let (reader, writer) = std::io::pipe().unwrap();
        let mut log = Log::begin(&settings).unwrap();
        log.target = LogFile::File("/var/log/app.log".into());
        log.output.target = Target::file(OwnedFd::from(writer).into());
        log.appended.wrote("ours");
        let appended = format!("{:?}", log.appended);
        let packed = on_its_way(&log.pack(&mut Luggage::default()));
        drop((log, reader));
        let log = Log::unpack(packed, &settings, &Rc::default());
        assert_eq!(format!("{:?}", log.appended), appended);
        assert!(matches!(log.output.target, Target::File { .. }));
        assert!(matches!(log.target, LogFile::File(path) if path == *"/var/log/app.log"));
    }
}
