//! Settings for the log.

use std::ffi::OsString;
use std::path::PathBuf;

use super::capture::Stream;
use super::lines::LineFormat;

/// Where output goes, and how it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `--log-file`.
    pub target: Option<LogTarget>,
    /// Which of the workers' streams go to the target; not empty.
    pub target_streams: Vec<Stream>,
    /// Each line in the target is prefixed with time, generation and pid. Only together with a target.
    pub has_timestamps: bool,
    /// How each line is written, wherever it goes.
    pub format: LineFormat,
    pub syslog: Option<SyslogSettings>,
    /// Which of the workers' streams go to syslog; not empty.
    pub syslog_streams: Vec<Stream>,
    /// Our own messages do not go to standard error.
    pub is_quiet: bool,
    /// Somebody may be looking at standard output and error: this is not a daemon.
    pub is_attended: bool,
}

impl Settings {
    /// Whether the output of workers may be read here, before it goes anywhere.
    pub fn captures(&self) -> bool {
        self.target.is_some() || self.syslog.is_some() || self.format == LineFormat::Json
    }
}

/// What `--log-file` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    File(PathBuf),
    /// For the shell; not empty.
    Command(OsString),
}

/// What the command line says about syslog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyslogSettings {
    /// A valid facility name.
    pub facility: String,
    /// Printable, without blanks and characters that end a tag.
    pub tag: String,
    pub address: Address,
    pub format: Format,
}

/// Where the daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Socket(PathBuf),
    /// `HOST:PORT`, not yet resolved.
    Udp(String),
}

/// How a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Rfc3164,
    Rfc5424,
}

/// Where one stream of the workers goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routes {
    pub to_target: bool,
    pub to_syslog: bool,
    /// Each line is read here.
    pub is_captured: bool,
}

impl Routes {
    /// Whether its lines are written to the target here.
    pub fn is_passed_on(self) -> bool {
        self.to_target && self.is_captured
    }

    /// Whether the workers have the target open themselves.
    pub fn is_shared(self) -> bool {
        self.to_target && !self.is_captured
    }
}

impl Settings {
    /// Whether any line of workers is written to the target here.
    pub fn is_passed_on(&self) -> bool {
        let mut streams = Stream::BOTH.into_iter();
        streams.any(|stream| self.routes(stream).is_passed_on())
    }

    /// Where this stream of the workers goes.
    pub fn routes(&self, stream: Stream) -> Routes {
        let to_syslog = self.syslog.is_some() && self.syslog_streams.contains(&stream);
        let is_json = self.format == LineFormat::Json;
        let to_target = match self.target {
            Some(_) => self.target_streams.contains(&stream),
            // Standard error, which has our own lines, too.
            None => is_json && self.is_attended && !to_syslog,
        };
        Routes {
            to_target,
            to_syslog,
            is_captured: to_syslog || (to_target && (self.has_timestamps || is_json)),
        }
    }
}
