//! The environment of the workers: the launcher's, modified by the files of `--envdir`, read anew for each generation.
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

use nix::fcntl::OFlag;
use nix::sys::inotify::Inotify;

use crate::host::watch;
use crate::machine::Knobs;
use crate::words::failure;
use crate::words::notice::Notice;
use crate::words::number;
use crate::words::text::printable;
use crate::worker::Change;

/// Server::Starter's `--auto-restart-interval`.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(360);

/// Server::Starter's `--kill-old-delay` with automatic restarts.
const DELAY_WITH_AUTO_RESTART: Duration = Duration::from_secs(5);

/// The longest `NAME=VALUE` that the kernel passes to a program, in bytes (`MAX_ARG_STRLEN`, execve(2)).
pub const LONGEST: usize = 128 * 1024 - 1;

/// These tell a worker about its sockets, and only we set them.
const OURS: [&str; 2] = ["SERVER_STARTER_PORT", "SERVER_STARTER_GENERATION"];

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
    directory: Option<PathBuf>,
    /// The directory's last known contents, for times when it cannot be read.
    last: Vec<Variable>,
    /// Every name that the directory ever contained: without its file the variable is gone.
    known: BTreeSet<OsString>,
    watch: Option<Inotify>,
    complaints: BTreeSet<String>,
}

/// The environment at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The differences from the launcher's environment.
    pub changes: Vec<Change>,
    pub knobs: Knobs,
    /// Problems with the directory that are new since the last read.
    pub notices: Vec<Notice>,
}

impl Environment {
    /// From the command line and our own environment; the directory has not been read yet.
    pub fn new(settings: &Settings) -> Environment {
        let seconds = |duration: Duration| OsString::from(duration.as_secs_f64().to_string());
        let option = settings.directory.clone().map(PathBuf::into_os_string);
        let directory = option
            .clone()
            .or_else(|| std::env::var_os("ENVDIR"))
            .filter(|one| !one.is_empty());
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
            directory: directory.map(PathBuf::from),
            last: Vec::new(),
            known: BTreeSet::new(),
            watch: None,
            complaints: BTreeSet::new(),
        }
    }

    /// Reads the directory. Workers start whatever is wrong with it.
    pub fn load(&mut self) -> Loaded {
        let mut complaints = BTreeSet::new();
        if let Some(directory) = &self.directory {
            self.watch = watch(directory, self.watch.take());
            match read_directory(directory, &mut complaints) {
                Ok(variables) => self.last = variables,
                Err(error) => {
                    if error.kind() == io::ErrorKind::NotFound {
                        // A directory that is gone has no files.
                        self.last.clear();
                    }
                    complaints.insert(format!(
                        "start_server: cannot read --envdir={}: {}; workers start anyway",
                        printable(directory.as_os_str()),
                        failure::cause(&error)
                    ));
                }
            }
        }
        self.known
            .extend(self.last.iter().map(|(name, _)| name.clone()));
        let knobs = self.knobs(&mut complaints);
        let new = complaints.difference(&self.complaints).cloned();
        let notices = new.map(Notice::Complaint).collect();
        self.complaints = complaints;
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
        Loaded {
            changes,
            knobs,
            notices,
        }
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
                let (value, seconds) = (printable(&value), default.as_secs());
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
                printable(value)
            ));
            false
        }
        _ => true,
    }
}

/// The variables of a directory, sorted by name. Files that cannot be variables are skipped with a complaint.
fn read_directory(
    directory: &Path,
    complaints: &mut BTreeSet<String>,
) -> io::Result<Vec<Variable>> {
    let mut variables = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_bytes().starts_with(b".") {
            continue;
        }
        match variable(&name, || first_line(&entry.path())) {
            Ok(variable) => variables.extend(variable),
            Err(cause) => {
                let path = printable(entry.path().as_os_str());
                complaints.insert(format!(
                    "start_server: cannot use {path} as a variable: {cause}"
                ));
            }
        }
    }
    variables.sort();
    Ok(variables)
}

/// The variable in the first line of a file, `None` for an empty one. A NUL, which no variable can contain, becomes a line
/// break, as in daemontools. The error is the cause alone.
pub fn variable(
    name: &OsStr,
    read: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Result<Option<Variable>, String> {
    if name.as_bytes().contains(&b'=') {
        return Err("its name holds a =".to_owned());
    }
    if OURS.iter().any(|ours| name == *ours) {
        return Err("start_server sets it itself".to_owned());
    }
    let content = read().map_err(|error| failure::cause(&error))?;
    if content.is_empty() {
        return Ok(None);
    }
    let line = content.split(|byte| *byte == b'\n').next();
    let mut line = line.unwrap_or_default().to_vec();
    if name.len() + 1 + line.len() > LONGEST {
        return Err("it is too long for the environment of a program".to_owned());
    }
    for byte in &mut line {
        if *byte == 0 {
            *byte = b'\n';
        }
    }
    Ok(Some((name.to_owned(), OsString::from_vec(line))))
}

/// As much of the file as its variable needs.
fn first_line(path: &Path) -> io::Result<Vec<u8>> {
    // Never block, should it be a fifo.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut line = Vec::new();
    // One byte more than allowed, to detect a line that is too long.
    BufReader::new(file.take(LONGEST as u64 + 1)).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Watches the directory; if it did not exist before, it may by now.
fn watch(directory: &Path, before: Option<Inotify>) -> Option<Inotify> {
    let inotify = match before {
        Some(inotify) => inotify,
        None => watch::new().ok()?,
    };
    // Without a watch it is still read for each generation.
    let _ = watch::add(&inotify, directory);
    Some(inotify)
}
