//! The environment of the workers: the launcher's, modified by the files of `--envdir`, read anew for each restart.
//!
//! The variables that are also options (the knobs) come from the same place: the option applies at the start and, as in
//! Server::Starter, the directory overrides it once it sets the variable.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::inotify::Inotify;

use crate::host::watch;
use crate::machine::Knobs;
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;
use crate::words::text::quoted;
use crate::words::{number, remedy};
use crate::worker::{Change, seat};

/// Server::Starter's `--auto-restart-interval`.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(360);

/// Server::Starter's `--kill-old-delay` with automatic restarts.
const DELAY_WITH_AUTO_RESTART: Duration = Duration::from_secs(5);

/// The longest `NAME=VALUE` that the kernel passes to a program, in bytes (`MAX_ARG_STRLEN`, execve(2)).
pub const LONGEST: usize = 128 * 1024 - 1;

/// This tells a worker about its sockets. Only we set it, and what says where the worker sits.
const PORT: &str = "SERVER_STARTER_PORT";

const ENABLE: &str = "ENABLE_AUTO_RESTART";
const INTERVAL: &str = "AUTO_RESTART_INTERVAL";
const DELAY: &str = "KILL_OLD_DELAY";

/// A variable and its value.
pub type Variable = (OsString, OsString);

/// Settings for the environment. `None` leaves it to the environment itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `--envdir`.
    pub directory: Option<PathBuf>,
    pub kill_old_delay: Option<Duration>,
    pub enable_auto_restart: Option<bool>,
    pub auto_restart_interval: Option<Duration>,
}

/// Where the environment comes from.
pub struct Environment {
    /// Variables that options set, overriding the launcher's.
    options: Vec<Variable>,
    directory: Option<Directory>,
    /// What the directory said last, for the time when it cannot be read.
    last: Vec<Variable>,
    /// Every name that the directory ever contained: without its file the variable is gone.
    known: BTreeSet<OsString>,
    watch: Option<Inotify>,
    complaints: BTreeSet<String>,
}

/// Where the files are.
struct Directory {
    path: PathBuf,
    /// As it was given.
    name: String,
}

/// The environment at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What differs from the launcher's environment; or why no worker can have it, since a server
    /// without its secrets is no server.
    pub changes: Result<Vec<Change>, StartFailure>,
    pub knobs: Knobs,
    /// Problems with the directory that are new since the last read.
    pub notices: Vec<Notice>,
}

impl Environment {
    /// From the command line and our own environment; the directory has not been read yet.
    pub fn new(settings: &Settings) -> Environment {
        let seconds = |duration: Duration| OsString::from(duration.as_secs_f64().to_string());
        let option = settings.directory.clone().map(PathBuf::into_os_string);
        let (given, how) = match &option {
            Some(option) => (Some(option.clone()), "--envdir"),
            None => (std::env::var_os("ENVDIR"), "ENVDIR"),
        };
        let directory = given.filter(|one| !one.is_empty()).map(|path| Directory {
            name: format!("{how}={}", quoted(&path)),
            path: path.into(),
        });
        let enable = settings
            .enable_auto_restart
            .map(|on| OsString::from(if on { "1" } else { "0" }));
        let options = [
            ("ENVDIR", option),
            (ENABLE, enable),
            (INTERVAL, settings.auto_restart_interval.map(seconds)),
            (DELAY, settings.kill_old_delay.map(seconds)),
        ];
        Environment {
            options: options
                .into_iter()
                .filter_map(|(name, value)| Some((name.into(), value?)))
                .collect(),
            directory,
            last: Vec::new(),
            known: BTreeSet::new(),
            watch: None,
            complaints: BTreeSet::new(),
        }
    }

    /// Whether the first worker can have its environment.
    pub fn check(&self) -> Result<(), Failure> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let read = directory.read(&mut BTreeSet::new());
        read.map(drop).map_err(|failure| Failure::from(&failure))
    }

    /// Reads the directory. Where that fails the knobs are what they were, and only who starts a worker need mind.
    pub fn load(&mut self) -> Loaded {
        let mut complaints = BTreeSet::new();
        let mut failure = None;
        if let Some(directory) = &self.directory {
            self.watch = watch(&directory.path, self.watch.take());
            match directory.read(&mut complaints) {
                Ok(variables) => self.last = variables,
                Err(cause) => {
                    complaints.insert(format!(
                        "start_server: {}; no worker is started without it",
                        cause.cause
                    ));
                    // Nobody knows what has become of the others.
                    complaints.extend(self.complaints.iter().cloned());
                    failure = Some(cause);
                }
            }
        }
        self.known
            .extend(self.last.iter().map(|(name, _)| name.clone()));
        let knobs = self.knobs(&mut complaints);
        let new = complaints.difference(&self.complaints).cloned();
        let notices = new.map(Notice::Complaint).collect();
        self.complaints = complaints;
        Loaded {
            changes: match failure {
                Some(failure) => Err(failure),
                None => Ok(self.changes()),
            },
            knobs,
            notices,
        }
    }

    fn changes(&self) -> Vec<Change> {
        let gone = self
            .known
            .iter()
            .filter(|name| !self.last.iter().any(|(there, _)| there == *name));
        // A knob that disappears from the directory returns to the launcher's value.
        let gone = gone.filter(|name| ![ENABLE, INTERVAL, DELAY].iter().any(|knob| name == knob));
        let mut changes: Vec<Change> = self
            .options
            .iter()
            .cloned()
            .map(|(name, value)| (name, Some(value)))
            .collect();
        changes.extend(gone.map(|name| (name.clone(), None)));
        changes.extend(
            self.last
                .iter()
                .cloned()
                .map(|(name, value)| (name, Some(value))),
        );
        changes
    }

    /// Whether [`Environment::load`] can yield something new.
    pub fn can_change(&self) -> bool {
        self.directory.is_some()
    }

    /// Readable when something in the directory has changed.
    pub fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Whether something in the directory has changed since the last call.
    pub fn has_changed(&self) -> bool {
        // An error means that everything has been read.
        self.watch
            .as_ref()
            .is_some_and(|watch| watch.read_events().is_ok())
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        let of = |variables: &[Variable]| {
            variables
                .iter()
                .find(|(one, _)| one == name)
                .map(|(_, value)| value.clone())
        };
        of(&self.last)
            .or_else(|| of(&self.options))
            .or_else(|| std::env::var_os(name))
    }

    fn knobs(&self, complaints: &mut BTreeSet<String>) -> Knobs {
        let on = self
            .variable(ENABLE)
            .is_some_and(|value| is_true(&value, complaints));
        let mut seconds = |name: &str, default: Duration| {
            match self.variable(name) {
            None => default,
            Some(value) => value.to_str().and_then(number::seconds).unwrap_or_else(|| {
                let (value, seconds) = (quoted(&value), default.as_secs());
                complaints.insert(format!(
                    "start_server: cannot use {name}={value}: it is not a number of seconds; using {seconds}"
                ));
                default
            }),
        }
        };
        let interval = match seconds(INTERVAL, DEFAULT_INTERVAL) {
            // As in Perl, where 0 counts as unset.
            Duration::ZERO => DEFAULT_INTERVAL,
            interval => interval,
        };
        let delay = seconds(
            DELAY,
            if on {
                DELAY_WITH_AUTO_RESTART
            } else {
                Duration::ZERO
            },
        );
        Knobs {
            kill_old_delay: delay,
            auto_restart: on.then_some(interval),
        }
    }
}

/// The knobs that a directory sets, and the complaints about them.
pub fn knobs_of(variables: Vec<Variable>) -> (Knobs, BTreeSet<String>) {
    let environment = Environment {
        options: Vec::new(),
        directory: None,
        last: variables,
        known: BTreeSet::new(),
        watch: None,
        complaints: BTreeSet::new(),
    };
    let mut complaints = BTreeSet::new();
    let knobs = environment.knobs(&mut complaints);
    (knobs, complaints)
}

/// Truth as Perl sees it, plus a few words that mean false but are true in Perl.
fn is_true(value: &OsStr, complaints: &mut BTreeSet<String>) -> bool {
    let text = value.to_string_lossy().to_ascii_lowercase();
    match text.as_str() {
        "" | "0" => false,
        "false" | "no" | "off" => {
            complaints.insert(format!(
                "start_server: {ENABLE}={} is treated as 0, unlike in Server::Starter",
                quoted(value)
            ));
            false
        }
        _ => true,
    }
}

impl Directory {
    /// Its variables, sorted by name. Files that cannot be variables are complained about and left out; one that cannot be
    /// read fails all of it.
    fn read(&self, complaints: &mut BTreeSet<String>) -> Result<Vec<Variable>, StartFailure> {
        let cannot_list = |error| cannot_read(&self.name, &error);
        let mut variables = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(cannot_list)? {
            let entry = entry.map_err(cannot_list)?;
            let (name, path) = (entry.file_name(), entry.path());
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            let shown = quoted(path.as_os_str());
            match variable(&name, || first_line(&path)) {
                Ok(variable) => variables.extend(variable),
                // It was removed after it was listed.
                Err(Unusable::Unreadable(_)) if is_gone(&path) => {}
                Err(Unusable::Unreadable(error)) => {
                    return Err(cannot_read(&format!("the variable {shown}"), &error));
                }
                Err(Unusable::NoVariable(cause)) => {
                    let complaint =
                        format!("start_server: cannot use {shown} as a variable: {cause}");
                    complaints.insert(complaint);
                }
            }
        }
        variables.sort();
        Ok(variables)
    }
}

fn is_gone(path: &Path) -> bool {
    let looked_at = path.symlink_metadata();
    looked_at.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Why a file gives no variable.
#[derive(Debug)]
pub enum Unusable {
    /// It is none; the cause in words.
    NoVariable(&'static str),
    /// It may well be one.
    Unreadable(io::Error),
}

/// The variable in the first line of a file, `None` for an empty one. A NUL, which no variable can contain, becomes a line
/// break, as in daemontools. The error is the cause alone.
pub fn variable(
    name: &OsStr,
    read: impl FnOnce() -> Result<Vec<u8>, Unusable>,
) -> Result<Option<Variable>, Unusable> {
    if name.as_bytes().contains(&b'=') {
        return Err(Unusable::NoVariable("its name holds a ="));
    }
    let mut ours = [PORT, seat::LANE].into_iter().chain(seat::VARIABLES);
    if ours.any(|ours| name == ours) {
        return Err(Unusable::NoVariable("start_server sets it itself"));
    }
    let content = read()?;
    if content.is_empty() {
        return Ok(None);
    }
    let line = content.split(|byte| *byte == b'\n').next();
    let mut line = line.unwrap_or_default().to_vec();
    if name.len() + 1 + line.len() > LONGEST {
        return Err(Unusable::NoVariable(
            "it is too long for the environment of a program",
        ));
    }
    for byte in &mut line {
        if *byte == 0 {
            *byte = b'\n';
        }
    }
    Ok(Some((name.to_owned(), OsString::from_vec(line))))
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Unusable {
        Unusable::Unreadable(error)
    }
}

/// As much of the file as its variable needs.
fn first_line(path: &Path) -> Result<Vec<u8>, Unusable> {
    // Nothing to wait for, should it be a fifo.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Unusable::NoVariable("it is not a regular file"));
    }
    let mut line = Vec::new();
    // One byte more than allowed, to detect a line that is too long.
    BufReader::new(file.take(LONGEST as u64 + 1)).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// What could not be read of the directory, in words, and why.
fn cannot_read(what: &str, error: &io::Error) -> StartFailure {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let hint = remedy::of_environment(errno).map(str::to_owned);
    StartFailure::cannot(&format!("read {what}"), errno, hint)
}

/// Watches the directory; where it did not exist before, it may by now.
fn watch(directory: &Path, before: Option<Inotify>) -> Option<Inotify> {
    let inotify = match before {
        Some(inotify) => inotify,
        None => watch::new().ok()?,
    };
    // Without a watch it is still read for each generation.
    let _ = watch::add(&inotify, directory);
    Some(inotify)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_be_read_any_more_leaves_the_knobs_alone() {
        let path = std::env::temp_dir().join(format!("start_server-test-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::write(path.join(DELAY), "7\n").unwrap();
        let mut environment = Environment::new(&Settings {
            directory: Some(path.clone()),
            kill_old_delay: None,
            enable_auto_restart: None,
            auto_restart_interval: None,
        });
        let before = environment.load();
        fs::remove_dir_all(&path).unwrap();
        let after = environment.load();
        assert_eq!(before.knobs.kill_old_delay, Duration::from_secs(7));
        assert_eq!(after.knobs, before.knobs);
        let failure = after.changes.unwrap_err();
        assert!(failure.cause.ends_with(Errno::ENOENT.desc()), "{failure:?}");
        // Said once, by whoever has read it.
        assert_eq!(after.notices.len(), 1);
        assert_eq!(environment.load().notices, []);
    }
}
