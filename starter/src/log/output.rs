//! Where all lines go, in order: our own messages, and those of the workers' lines that are read here.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::capture::{Origin, Stream};
use super::known::{About, Workers};
use super::lines::{Line, LineFormat};
use super::local_time::LocalTime;
use super::record::{Record, ours, stamp};
use super::settings::{Routes, Settings};
use super::syslog::{PackedSyslog, Syslog};
use super::target::{PackedTarget, Target, write_if_ready};
use crate::host::luggage::{Carried, Luggage, bytes};
use crate::host::moment::Moment;
use crate::words::failure::Failure;
use crate::words::notice::{Notice, Severity};

/// How much memory is kept for the workers' next lines, in bytes.
const LARGEST_PORTION: usize = 1 << 20;

/// How long the end waits for a syslog daemon that accepts nothing more, and for a log command that has everything in its
/// pipe.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The same for a log command while there is more, or while none runs: it may have to be started first, and nothing is lost
/// if it reads.
const LAST_LINES: Duration = Duration::from_secs(5);

/// How long the end takes at most, however slowly the rest is read.
const LONGEST_END: Duration = Duration::from_secs(10);

/// How often a log command is checked meanwhile: it does not announce that it has read everything.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(100);

/// The destinations of lines.
pub struct Output {
    /// Our own messages do not go to standard error.
    pub is_quiet: bool,
    pub target: Target,
    /// Each line in the target is prefixed with time, generation and pid.
    pub is_stamped: bool,
    pub format: LineFormat,
    pub workers: Workers,
    /// Lines that could not be written to the target, and have not been reported yet.
    lost: u64,
    /// The same since the start, reported or not.
    lost_in_all: u64,
    /// Workers' lines to be written to a file in one go.
    portion: Vec<u8>,
    syslog: Option<Syslog>,
    /// Standard error of the waiting launcher, unless it is the target.
    pub launcher: Option<File>,
}

/// An [`Output`] on its way to the next program, with all that is queued.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedOutput {
    is_quiet: bool,
    target: PackedTarget,
    lost: u64,
    lost_in_all: u64,
    #[serde(with = "bytes")]
    portion: Vec<u8>,
    syslog: Option<PackedSyslog>,
    launcher: Option<Carried>,
}

/// The contents of a log command's pipe.
#[derive(Default)]
pub struct Unread {
    /// In bytes.
    pub unread: usize,
    /// When the reading command was started, even if it has exited since; `None` if no command runs.
    pub read_since: Option<Moment>,
}

impl Output {
    /// Standard error, and syslog too.
    pub fn new(is_quiet: bool, format: LineFormat, syslog: Option<Syslog>) -> Output {
        Output {
            is_quiet,
            target: Target::Inherited,
            is_stamped: false,
            format,
            workers: Workers::default(),
            lost: 0,
            lost_in_all: 0,
            portion: Vec::new(),
            syslog,
            launcher: None,
        }
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedOutput {
        PackedOutput {
            is_quiet: self.is_quiet,
            target: self.target.pack(luggage),
            lost: self.lost,
            lost_in_all: self.lost_in_all,
            portion: self.portion.clone(),
            syslog: self.syslog.as_ref().map(|syslog| syslog.pack(luggage)),
            launcher: self.launcher.as_ref().map(|file| luggage.put(file)),
        }
    }

    /// What the last program has packed.
    pub fn unpack(packed: PackedOutput, settings: &Settings) -> Output {
        let routes = Stream::BOTH.map(|stream| settings.routes(stream));
        let is_shared = routes.into_iter().any(Routes::is_shared);
        let (target, lost) = Target::unpack(packed.target, is_shared, settings.is_passed_on());
        let syslog = packed.syslog.zip(settings.syslog.as_ref());
        let mut output = Output {
            is_quiet: packed.is_quiet,
            target,
            is_stamped: settings.has_timestamps,
            format: settings.format,
            workers: Workers::default(),
            lost: packed.lost,
            lost_in_all: packed.lost_in_all,
            portion: packed.portion,
            syslog: syslog.map(|(packed, one)| Syslog::unpack(packed, one, settings.format)),
            launcher: packed.launcher.map(|file| file.take().into()),
        };
        output.count_lost(lost);
        output
    }

    /// Writes a message of ours.
    pub fn say(&mut self, notice: &Notice) {
        // Why a start failed goes to standard error in any case.
        let lines = self.lines(notice);
        self.write_sentence(notice.severity(), &lines, notice.is_failed_start());
    }

    /// Reports why the program fails, always on standard error too.
    pub fn complain(&mut self, failure: &Failure) {
        let lines = of_failure(self.format, failure);
        self.write_sentence(Severity::Error, &lines, true);
    }

    /// The same, if something else shows it on standard error.
    pub fn record(&mut self, failure: &Failure) {
        if self.target.is_standard_error() {
            self.is_quiet = true;
        }
        let lines = of_failure(self.format, failure);
        self.write_sentence(Severity::Error, &lines, false);
    }

    /// A message of ours as the lines that are written of it.
    pub fn lines(&self, notice: &Notice) -> Vec<String> {
        let about = match self.format {
            LineFormat::Text => About::default(),
            LineFormat::Json => self.workers.about(&notice.subject()),
        };
        ours(self.format, notice.severity(), about, &notice.to_string())
    }

    /// Takes a line of a worker. Lines for the target are queued until [`Output::flush`]. `stamp` is what a line of text may
    /// begin with, and the time of an object.
    pub fn take_line(&mut self, origin: &Origin, line: Line<'_>, routes: Routes, stamp: &str) {
        let json;
        let text = match self.format {
            LineFormat::Text => line.text,
            LineFormat::Json => {
                json = Record::of_worker(origin, line, stamp).to_json();
                &json
            }
        };
        if routes.to_target {
            if self.is_stamped {
                self.portion.extend_from_slice(stamp.as_bytes());
            }
            self.portion.extend_from_slice(text.as_bytes());
            self.portion.push(b'\n');
        }
        if routes.to_syslog
            && let Some(syslog) = &mut self.syslog
        {
            syslog.push_line(origin, text);
        }
    }

    /// The reader of the target must read before workers are read again.
    pub fn is_congested(&self) -> bool {
        self.target.is_congested()
    }

    /// When [`Output::flush`] is due even without input.
    pub fn deadline(&self) -> Option<Moment> {
        self.syslog.as_ref().and_then(Syslog::deadline)
    }

    /// How many lines have not reached syslog.
    pub fn unsent(&self) -> u64 {
        self.syslog.as_ref().map_or(0, Syslog::unsent)
    }

    /// How many lines have been lost since the start.
    pub fn lost_in_all(&self) -> u64 {
        let syslog = self.syslog.as_ref().map_or(0, Syslog::dropped_in_all);
        self.lost_in_all.saturating_add(syslog)
    }

    /// Writes what is queued, as far as that does not block, and reports if syslog cannot be reached.
    pub fn flush(&mut self) {
        self.write_portion();
        let lost = self.target.flush();
        self.count_lost(lost);
        let Some(syslog) = &mut self.syslog else {
            return;
        };
        syslog.flush(Moment::now());
        if let Some((place, errno)) = syslog.take_trouble() {
            self.say(&Notice::SyslogUnreachable { place, errno });
        }
    }

    /// Descriptors whose readers must catch up before more can be written.
    pub fn unwritten(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let syslog = self.syslog.as_ref().and_then(Syslog::wants_to_write);
        self.target.wants_to_write().into_iter().chain(syslog)
    }

    /// At the end, gives readers time for the last lines while they make progress. Calls `look_after` repeatedly meanwhile,
    /// which returns how much of what was written is still unread.
    pub fn write_rest(&mut self, mut look_after: impl FnMut(&mut Output) -> Unread) {
        let began = Moment::now();
        let (mut moved_at, mut left) = (began, usize::MAX);
        let mut pause = SHORTEST_LOOK;
        loop {
            self.flush();
            let now = Moment::now();
            let Unread { unread, read_since } = look_after(self);
            let (waiting, patience) = self.waiting();
            if unread + waiting < left {
                (moved_at, left) = (now, unread + waiting);
            }
            let end = match read_since {
                None if unread > 0 => moved_at + LAST_LINES,
                None => moved_at + patience,
                Some(since) => (moved_at + patience).max(since + LAST_MOMENT),
            };
            let end = end.min(began + LONGEST_END);
            let timeout = end.saturating_since(now).min(pause);
            let writable = |source| PollFd::new(source, PollFlags::POLLOUT);
            let mut sources: Vec<PollFd<'_>> = self.unwritten().map(writable).collect();
            if (sources.is_empty() && unread == 0) || timeout.is_zero() {
                return;
            }
            pause = (pause * 2).min(LONGEST_LOOK);
            match ppoll(&mut sources, Some(TimeSpec::from_duration(timeout)), None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn write_sentence(&mut self, severity: Severity, lines: &[String], is_reason: bool) {
        // What was read before comes first.
        self.write_portion();
        self.tell_lost();
        let lost = self.write_own(lines, is_reason);
        self.count_lost(lost);
        if let (true, Some(launcher)) = (is_reason, &self.launcher) {
            write_if_ready(launcher, &lines.join("\n"));
        }
        if let Some(syslog) = &mut self.syslog {
            syslog.push_own(severity, lines);
            syslog.flush(Moment::now());
        }
    }

    fn count_lost(&mut self, lines: u64) {
        self.lost = self.lost.saturating_add(lines);
        self.lost_in_all = self.lost_in_all.saturating_add(lines);
    }

    /// Reports lost lines in their place, by number.
    fn tell_lost(&mut self) {
        if self.lost == 0 {
            return;
        }
        let lines = self.lines(&Notice::LinesLost(self.lost));
        if self.write_own(&lines, false) == 0 {
            self.lost = 0;
        }
    }

    /// Returns how many of its lines are lost.
    fn write_own(&mut self, lines: &[String], is_reason: bool) -> u64 {
        if self.is_quiet && !is_reason && self.target.is_standard_error() {
            return 0;
        }
        let stamp = match self.is_stamped {
            true => stamp(&LocalTime::now(), None, std::process::id()),
            false => String::new(),
        };
        let lines = lines.iter().map(|line| format!("{stamp}{line}\n"));
        let lines: String = lines.collect();
        self.target.write_own(lines.as_bytes())
    }

    /// Writes the workers' lines collected so far.
    fn write_portion(&mut self) {
        if self.portion.is_empty() {
            return;
        }
        self.tell_lost();
        let lost = self.target.write_of_workers(&self.portion);
        self.count_lost(lost);
        self.portion.clear();
        self.portion.shrink_to(LARGEST_PORTION);
    }

    /// How much is queued (bytes for a log command, records for syslog), and how long the end waits for any of it to be
    /// taken.
    fn waiting(&self) -> (usize, Duration) {
        let records = self.syslog.as_ref().map_or(0, Syslog::waiting);
        let patience = match &self.target {
            target if target.is_behind() => LAST_LINES,
            _ => LAST_MOMENT,
        };
        (self.target.waiting() + records, patience)
    }
}

/// Why the program fails, as lines.
pub fn of_failure(format: LineFormat, failure: &Failure) -> Vec<String> {
    let text = format!("start_server: {failure}");
    ours(format, Severity::Error, About::default(), &text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use nix::unistd::Pid;

    use super::*;
    use crate::log::known::Known;
    use crate::log::settings::{Address, Format, SyslogSettings};
    use crate::log::tests::{on_its_way, settings};

    #[test]
    fn the_next_program_writes_what_was_collected_and_tells_what_was_lost() {
        let (mut file, target) = std::io::pipe().unwrap();
        let (mut launcher, for_launcher) = std::io::pipe().unwrap();
        let settings = Settings {
            syslog: Some(SyslogSettings {
                facility: "local3".into(),
                tag: "app".into(),
                address: Address::Socket("/nowhere/log".into()),
                format: Format::Rfc3164,
            }),
            ..settings()
        };
        let syslog = settings.syslog.as_ref();
        let syslog = syslog.map(|one| Syslog::open(one, LineFormat::Text).unwrap());
        let mut output = Output::new(true, LineFormat::Text, syslog);
        output.target = Target::file(OwnedFd::from(target).into());
        output.launcher = Some(OwnedFd::from(for_launcher).into());
        output.count_lost(3);
        let routes = settings.routes(Stream::Stdout);
        let origin = Origin {
            worker: Known {
                generation: 3,
                slot: 0,
                pid: Pid::from_raw(7),
            },
            stream: Stream::Stdout,
        };
        let line = Line {
            text: "line",
            continued: false,
        };
        output.take_line(&origin, line, routes, "");
        let packed = on_its_way(&output.pack(&mut Luggage::default()));
        drop(output);
        let mut output = Output::unpack(packed, &settings);
        assert!(output.is_quiet && output.is_stamped && output.launcher.is_some());
        assert_eq!(output.unsent(), 1);
        output.flush();
        output.complain(&Failure::failed("of that"));
        assert_eq!((output.lost, output.lost_in_all()), (0, 3));
        drop(output);
        let (mut found, mut told) = (String::new(), String::new());
        file.read_to_string(&mut found).unwrap();
        launcher.read_to_string(&mut told).unwrap();
        let found: Vec<&str> = found.lines().collect();
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found[0].ends_with(&Notice::LinesLost(3).to_string()));
        assert_eq!(found[1], "line");
        assert!(found[2].contains("/nowhere/log"));
        // A hint follows it.
        assert!(found[4].ends_with("] start_server: of that"));
        assert_eq!(told, "start_server: of that\n");
    }
}
