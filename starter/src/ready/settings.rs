//! Settings for what proves that a new generation serves.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::time::Duration;

/// When a generation counts as started, and how long that may take.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub ready: Ready,
    /// Where the probe listener is; `None` if there is none.
    pub probe: Option<ProbeAt>,
    /// How long a worker may take to become ready, except with [`Ready::Interval`].
    pub start_timeout: Duration,
    /// How long a generation that serves may fail to prove it before it is unhealthy; `None` if it is not asked again.
    pub watch: Option<Duration>,
    /// How many descriptors workers may leave for the workers after them.
    pub fd_store_max: u16,
}

/// `--ready`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// It has lived for `--interval`.
    Interval,
    /// It says so with `READY=1` (sd_notify(3)).
    Notify,
    /// It writes a line feed to this descriptor (s6's notification-fd).
    Descriptor(RawFd),
    /// This shell command exits with 0.
    Command(OsString),
    /// It accepts a connection.
    Accept,
    /// It answers a request for this path with one of these statuses.
    Http { path: String, statuses: Statuses },
}

/// Statuses of HTTP that count as ready, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statuses {
    pub first: u16,
    pub last: u16,
}

impl Statuses {
    pub fn contain(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

/// `--probe`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeAt {
    /// A port of 127.0.0.1 that the kernel chooses.
    Tcp,
    /// A unix socket in a directory that only this user can enter.
    Unix,
}

impl Settings {
    /// The descriptor number that listeners must leave free for it.
    pub fn reserved_number(&self) -> Option<RawFd> {
        match self.ready {
            Ready::Descriptor(number) => Some(number),
            Ready::Interval
            | Ready::Notify
            | Ready::Command(_)
            | Ready::Accept
            | Ready::Http { .. } => None,
        }
    }
}

impl Ready {
    /// As it is given on the command line.
    pub fn shown(&self) -> String {
        match self {
            Ready::Interval => "interval".to_owned(),
            Ready::Notify => "notify".to_owned(),
            Ready::Descriptor(number) => format!("fd:{number}"),
            Ready::Command(command) => format!("exec:{}", command.to_string_lossy()),
            Ready::Accept => "accept".to_owned(),
            Ready::Http { path, .. } => format!("http:{path}"),
        }
    }

    /// What it waits for, worded to follow `waiting for`.
    pub fn awaited(&self) -> Option<String> {
        match self {
            Ready::Interval => None,
            Ready::Notify => Some("READY=1".to_owned()),
            Ready::Descriptor(number) => Some(format!("a line feed on descriptor {number}")),
            Ready::Command(_) => Some("its --ready command to succeed".to_owned()),
            Ready::Accept => Some("its first accept".to_owned()),
            Ready::Http { path, .. } => Some(format!("GET {path}")),
        }
    }
}
