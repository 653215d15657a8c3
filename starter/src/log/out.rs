//! The one place that all lines go through: our own sentences, the lines of workers that are read here, and what they
//! are written to.

use std::cell::RefCell;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::Routes;
use super::capture::Origin;
use super::clock::Moment;
use super::settings::SyslogSettings;
use super::syslog::Syslog;
use super::target::{Target, write_if_ready};
use crate::words::failure::Failure;
use crate::words::notice::{Notice, Severity};
use crate::words::text::printable;

/// The memory that is kept for the next lines of workers, in bytes.
const LARGEST_PORTION: usize = 1 << 20;

/// How long the end waits for a syslog daemon that takes nothing more, and for a log command that has everything in its
/// pipe.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The same for a log command while there is more, or while none runs: it may have to be started first, and nothing is lost
/// if it reads.
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
    /// Lines that could not be written to the target.
    lost: u64,
    /// Lines of workers that are written to a file in one go.
    portion: Vec<u8>,
    syslog: Option<Syslog>,
    /// Standard error of whoever waits for the first generation, where it is not the target.
    launcher: Option<File>,
}

/// From here on lines go to this target; `launcher` is the standard error of whoever waits for the first generation, where
/// it is not the target.
pub fn turn_to(target: Target, is_stamped: bool, launcher: Option<File>) {
    OUT.with_borrow_mut(|out| {
        out.target = target;
        out.is_stamped = is_stamped;
        out.launcher = launcher;
    });
}

/// The same after a rotation.
pub fn turn_to_file(file: File) {
    OUT.with_borrow_mut(|out| out.target = Target::file(file));
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
    write_rest(Unread::default);
}

/// The same where the launcher of a daemon will show it: here it is for the log alone.
pub fn keep(failure: &Failure) {
    OUT.with_borrow_mut(|out| {
        if out.target.is_standard_error() {
            out.is_quiet = true;
        }
        out.say(
            Severity::Error,
            &format_args!("start_server: {failure}"),
            false,
        );
    });
    write_rest(Unread::default);
}

/// A generation serves: what happens from here on is for the log alone.
pub fn is_up() {
    OUT.with_borrow_mut(|out| out.launcher = None);
}

/// Whether our own sentences are not to be seen on standard error.
pub fn is_quiet() -> bool {
    OUT.with_borrow(|out| out.is_quiet)
}

/// Our own sentences are not to be seen on standard error.
pub fn be_quiet() {
    OUT.with_borrow_mut(|out| out.is_quiet = true);
}

/// From here on every line goes to syslog too.
pub fn open_syslog(settings: &SyslogSettings) -> Result<(), Failure> {
    let syslog = Syslog::open(settings)?;
    OUT.with_borrow_mut(|out| out.syslog = Some(syslog));
    Ok(())
}

/// A line of a worker. What goes to a file waits for [`flush`].
pub fn write_line(origin: &Origin, line: &str, routes: Routes, stamp: &str) {
    OUT.with_borrow_mut(|out| out.write_line(origin, line, routes, stamp));
}

/// Whoever reads has to read before workers are read again.
pub fn is_congested() -> bool {
    OUT.with_borrow(|out| out.target.is_congested())
}

/// When [`flush`] is due in any case.
pub fn deadline() -> Option<Instant> {
    OUT.with_borrow(|out| out.syslog.as_ref().and_then(Syslog::deadline))
}

/// How many lines have not reached syslog.
pub fn unsent() -> u64 {
    OUT.with_borrow(|out| out.syslog.as_ref().map_or(0, Syslog::unsent))
}

/// Writes what waits, as far as it goes, and says where syslog cannot be reached.
pub fn flush() {
    let trouble = OUT.with_borrow_mut(Out::flush);
    if let Some((place, cause)) = trouble {
        say(Notice::SyslogUnreachable { place, cause });
    }
}

/// What others have to read before more can be written.
pub fn unwritten() -> Vec<Rc<dyn AsFd>> {
    OUT.with_borrow(|out| {
        let mut sources: Vec<Rc<dyn AsFd>> = Vec::new();
        if let Some(file) = out.target.wants_to_write() {
            sources.push(file);
        }
        if let Some(socket) = out.syslog.as_ref().and_then(Syslog::wants_to_write) {
            sources.push(socket);
        }
        sources
    })
}

/// What is in the pipe of a log command.
#[derive(Default)]
pub struct Unread {
    /// In bytes.
    pub unread: usize,
    /// When the command was started that reads it, also when we have ended; none if no command runs.
    pub read_since: Option<Instant>,
}

/// At the end: whoever reads gets the time for the last lines that it makes use of. `look_after` is called again and
/// again meanwhile, and returns what was written that nobody has read.
pub fn write_rest(mut look_after: impl FnMut() -> Unread) {
    let began = Instant::now();
    let (mut moved_at, mut left) = (began, usize::MAX);
    let mut pause = SHORTEST_LOOK;
    loop {
        flush();
        let now = Instant::now();
        let Unread { unread, read_since } = look_after();
        let (waiting, patience) = OUT.with_borrow(Out::waiting);
        if unread + waiting < left {
            (moved_at, left) = (now, unread + waiting);
        }
        let sources = unwritten();
        let end = match read_since {
            None if unread > 0 => moved_at + LAST_LINES,
            None => moved_at + patience,
            Some(since) => (moved_at + patience).max(since + LAST_MOMENT),
        };
        let end = end.min(began + LONGEST_END);
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
        let text = text.lines().map(printable).collect::<Vec<_>>().join("\n");
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
        if self.is_quiet && !is_reason && self.target.is_standard_error() {
            return 0;
        }
        self.target.write_own(lines.as_bytes())
    }

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
        self.lost += self.target.write_of_workers(&self.portion);
        self.portion.clear();
        self.portion.shrink_to(LARGEST_PORTION);
    }

    fn flush(&mut self) -> Option<(String, String)> {
        self.write_portion();
        self.lost += self.target.flush();
        let syslog = self.syslog.as_mut()?;
        syslog.flush(Instant::now());
        syslog.take_trouble()
    }

    /// How much waits to be written (bytes for a log command, records for syslog), and how long the end waits for the
    /// next of it to be taken.
    fn waiting(&self) -> (usize, Duration) {
        let records = self.syslog.as_ref().map_or(0, Syslog::waiting);
        let patience = match &self.target {
            Target::Command { waiting, .. } if !waiting.is_empty() => LAST_LINES,
            _ => LAST_MOMENT,
        };
        (self.target.waiting() + records, patience)
    }
}
