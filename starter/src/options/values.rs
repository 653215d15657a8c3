//! The values of single options, from words to types.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;
use nix::sys::signal::Signal;

use super::preset::Preset;
use super::refusal::refused;

use super::workers::{MOST_WORKERS, Workers};
use crate::listeners::dialects::Dialect;
use crate::listeners::spec::{HIGHEST_DESCRIPTOR, PathSpec, PortSpec, parse_paths, parse_ports};
use crate::log::{Address, Format, LineFormat, LogTarget, Stream, facility};
use crate::machine::Replace;
use crate::ready::http::is_path;
use crate::ready::{ProbeAt, Ready, Statuses};
use crate::words::failure::Failure;
use crate::words::number::{self, LONGEST_TIME};

/// The words for `--fd-env`.
const DIALECTS: [(&str, Dialect); 5] = [
    ("systemd", Dialect::Systemd),
    ("unicorn", Dialect::Unicorn),
    ("nginx", Dialect::Nginx),
    ("einhorn", Dialect::Einhorn),
    ("php-fpm", Dialect::PhpFpm),
];

/// The words for `--syslog-format`.
const SYSLOG_FORMATS: [(&str, Format); 2] =
    [("rfc3164", Format::Rfc3164), ("rfc5424", Format::Rfc5424)];

/// The longest tag of a syslog record (RFC 3164, 4.1.3).
const LONGEST_TAG: usize = 32;

/// What clap has parsed, by type. `None` means that the option was not given.
pub struct Given<'a> {
    matches: &'a ArgMatches,
    /// It gives its options where the command line does not.
    pub preset: Option<&'static Preset>,
}

impl<'a> Given<'a> {
    pub fn new(matches: &'a ArgMatches) -> Given<'a> {
        Given {
            matches,
            preset: None,
        }
    }

    /// Whether the command line itself gives it.
    pub fn has(&self, option: &str) -> bool {
        self.matches.value_source(option) == Some(ValueSource::CommandLine)
    }

    pub fn flag(&self, option: &str) -> bool {
        self.matches.get_flag(option)
    }

    /// All options that were given, in alphabetical order.
    pub fn names(&self) -> Vec<&'a str> {
        let all = self.matches.ids().map(clap::Id::as_str);
        let mut names: Vec<&str> = all.filter(|name| self.has(name)).collect();
        names.sort_unstable();
        names
    }

    /// Every value of a repeatable option.
    pub fn all(&self, option: &str) -> impl Iterator<Item = &'a OsStr> + use<'a> {
        let given = self.matches.get_many::<OsString>(option);
        let given = given.unwrap_or_default().map(OsString::as_os_str);
        given.chain(self.of_preset(option))
    }

    /// The last value; never an empty one.
    pub fn value(&self, option: &str) -> Result<Option<&'a OsStr>, Failure> {
        let given = self.matches.get_one::<OsString>(option);
        match given.map(OsString::as_os_str).or(self.of_preset(option)) {
            Some(value) if value.is_empty() => Err(refused(option, value, "its value is empty")),
            value => Ok(value),
        }
    }

    /// What the preset sets for an option that the command line does not give.
    fn of_preset(&self, option: &str) -> Option<&'static OsStr> {
        let preset = self.preset.filter(|_| !self.has(option))?;
        preset.value(option)
    }

    pub fn text(&self, option: &str) -> Result<Option<String>, Failure> {
        let value = self.value(option)?;
        value
            .map(|value| Ok(utf8(option, value)?.to_owned()))
            .transpose()
    }

    pub fn path(&self, option: &str) -> Result<Option<PathBuf>, Failure> {
        Ok(self.value(option)?.map(PathBuf::from))
    }

    pub fn ports(&self, option: &str) -> Result<Vec<PortSpec>, Failure> {
        let mut ports = Vec::new();
        for value in self.all(option) {
            ports.extend(parse_ports(utf8(option, value)?)?);
        }
        Ok(ports)
    }

    pub fn paths(&self, option: &str) -> Result<Vec<PathSpec>, Failure> {
        let mut paths = Vec::new();
        for value in self.all(option) {
            paths.extend(parse_paths(value)?);
        }
        Ok(paths)
    }

    /// In the order given, without duplicates.
    pub fn dialects(&self, option: &str) -> Result<Vec<Dialect>, Failure> {
        let mut dialects = Vec::new();
        for value in self.all(option) {
            for dialect in read_dialects(utf8(option, value)?)? {
                if !dialects.contains(&dialect) {
                    dialects.push(dialect);
                }
            }
        }
        Ok(dialects)
    }

    pub fn log_target(&self, option: &str) -> Result<Option<LogTarget>, Failure> {
        let Some(value) = self.value(option)? else {
            return Ok(None);
        };
        match read_command(value.as_bytes()) {
            None => Ok(Some(LogTarget::File(value.into()))),
            Some(b"") => Err(refused(option, value, "a command is missing after the |")),
            Some(command) => Ok(Some(LogTarget::Command(OsString::from_vec(
                command.to_vec(),
            )))),
        }
    }

    /// Lists of streams; both if none is given.
    pub fn streams(&self, option: &str) -> Result<Vec<Stream>, Failure> {
        let mut streams = Vec::new();
        for value in self.all(option) {
            for word in utf8(option, value)?.split(',').map(str::trim) {
                let found = Stream::BOTH
                    .into_iter()
                    .find(|stream| stream.name() == word);
                let cause = "the streams are stdout and stderr";
                let stream = found.ok_or_else(|| refused(option, value, cause))?;
                if !streams.contains(&stream) {
                    streams.push(stream);
                }
            }
        }
        match streams.is_empty() {
            true => Ok(Stream::BOTH.into()),
            false => Ok(streams),
        }
    }

    pub fn facility(&self, option: &str) -> Result<Option<String>, Failure> {
        let read = |name: &str| facility(name).map(|_| name.to_owned());
        self.read(option, read, || {
            "the facilities are kern, user, mail, daemon, auth, syslog, lpr, news, uucp, cron, authpriv, ftp and local0 to local7".to_owned()
        })
    }

    pub fn syslog_tag(&self, option: &str) -> Result<Option<String>, Failure> {
        let read = |tag: &str| is_tag(tag).then(|| tag.to_owned());
        self.read(option, read, || {
            format!("a tag has 1 to {LONGEST_TAG} letters, digits and any of . _ - /")
        })
    }

    pub fn syslog_address(&self, option: &str) -> Result<Option<Address>, Failure> {
        let Some(value) = self.value(option)? else {
            return Ok(None);
        };
        let cause = "the address is an absolute path, or udp:HOST:PORT";
        let address = read_syslog_address(value);
        address
            .ok_or_else(|| refused(option, value, cause))
            .map(Some)
    }

    pub fn syslog_format(&self, option: &str) -> Result<Option<Format>, Failure> {
        let read = |name: &str| {
            let found = SYSLOG_FORMATS.iter().find(|(one, _)| *one == name);
            found.map(|(_, format)| *format)
        };
        self.read(option, read, || {
            "the formats are rfc3164 and rfc5424".to_owned()
        })
    }

    pub fn line_format(&self, option: &str) -> Result<Option<LineFormat>, Failure> {
        let read = |name: &str| match name {
            "text" => Some(LineFormat::Text),
            "json" => Some(LineFormat::Json),
            _ => None,
        };
        self.read(option, read, || "the formats are text and json".to_owned())
    }

    pub fn switch(&self, option: &str) -> Result<Option<bool>, Failure> {
        let cause = || "it takes 0, 1, true or false, or no value".to_owned();
        self.read(option, read_switch, cause)
    }

    pub fn seconds(&self, option: &str) -> Result<Option<Duration>, Failure> {
        let cause = || {
            format!("the time is a number of seconds from 0 to {LONGEST_TIME}, such as 1 or 0.5")
        };
        self.read(option, number::seconds, cause)
    }

    pub fn signal(&self, option: &str) -> Result<Option<Signal>, Failure> {
        self.read(option, read_signal, || {
            "the signal is a name such as TERM, or a number from 1 to 31".to_owned()
        })
    }

    /// What proves that a generation serves. A request over HTTP is to be answered with one of these statuses.
    pub fn ready(&self, option: &str, statuses: Statuses) -> Result<Option<Ready>, Failure> {
        let Some(value) = self.value(option)? else {
            return Ok(None);
        };
        let ready = read_ready(value, statuses);
        let ready = ready.map_err(|cause| refused(option, value, cause))?;
        Ok(Some(ready))
    }

    pub fn statuses(&self, option: &str) -> Result<Option<Statuses>, Failure> {
        let cause = || "it takes a status from 100 to 599 or a range such as 200-399".to_owned();
        self.read(option, read_statuses, cause)
    }

    pub fn probe(&self, option: &str) -> Result<Option<ProbeAt>, Failure> {
        let read = |word: &str| match word {
            "tcp" => Some(ProbeAt::Tcp),
            "unix" => Some(ProbeAt::Unix),
            _ => None,
        };
        self.read(option, read, || "the probes are tcp and unix".to_owned())
    }

    pub fn replace(&self, option: &str) -> Result<Option<Replace>, Failure> {
        let read = |word: &str| match word {
            "overlap" => Some(Replace::Overlap),
            "stop-first" => Some(Replace::StopFirst),
            _ => None,
        };
        self.read(option, read, || {
            "the ways are overlap and stop-first".to_owned()
        })
    }

    /// A number from 1 on.
    pub fn count<T>(&self, option: &str, most: T) -> Result<Option<T>, Failure>
    where
        T: FromStr + PartialOrd + From<bool> + std::fmt::Display,
    {
        let cause = || format!("it takes a number from 1 to {most}");
        let read = |text: &str| number::digits(text).filter(|number| *number >= T::from(true));
        self.read(option, read, cause)
    }

    pub fn workers(&self, option: &str) -> Result<Option<Workers>, Failure> {
        if self.value(option)? == Some(OsStr::new("auto")) {
            return Ok(Some(Workers::Auto));
        }
        let cause = || format!("it takes a number from 1 to {MOST_WORKERS}, or auto");
        let is_one = |number: &u16| (1..=MOST_WORKERS).contains(number);
        let read = |text: &str| number::digits(text).filter(is_one).map(Workers::Number);
        self.read(option, read, cause)
    }

    /// Whether it is required.
    pub fn required(&self, option: &str) -> Result<Option<bool>, Failure> {
        let read = |text: &str| match text {
            "optional" => Some(false),
            "required" => Some(true),
            _ => None,
        };
        self.read(option, read, || "it is optional or required".to_owned())
    }

    pub fn lanes(&self, option: &str) -> Result<Option<u8>, Failure> {
        /// More generations than this do not live at a time.
        const MOST: u8 = 8;
        let cause = || format!("it takes a number from 2 to {MOST}");
        let read = |text: &str| number::digits(text).filter(|it| (2..=MOST).contains(it));
        self.read(option, read, cause)
    }

    /// A share of a hundred, with or without its sign, that leaves something for others.
    pub fn percent(&self, option: &str) -> Result<Option<u8>, Failure> {
        let read = |text: &str| {
            let digits = text.strip_suffix('%').unwrap_or(text);
            number::digits(digits).filter(|percent| (1..=99).contains(percent))
        };
        self.read(option, read, || {
            "it takes a whole number from 1% to 99%".to_owned()
        })
    }

    /// Whether a share is one of clients.
    pub fn by_client(&self, option: &str) -> Result<Option<bool>, Failure> {
        let read = |text: &str| match text {
            "random" => Some(false),
            "client" => Some(true),
            _ => None,
        };
        self.read(option, read, || "it is random or client".to_owned())
    }

    /// Which byte of a connection ID of QUIC names the socket of its flow.
    pub fn udp_flows(&self, option: &str) -> Result<Option<u8>, Failure> {
        /// An ID has no more bytes than this (RFC 9000).
        const LONGEST: u8 = 20;
        let most = LONGEST - 1;
        let cause = || {
            format!(
                "it takes quic:OFFSET, where OFFSET is the place of a byte in a connection ID, from 0 to {most}"
            )
        };
        let read = |text: &str| {
            let offset = number::digits(text.strip_prefix("quic:")?);
            offset.filter(|offset| *offset <= most)
        };
        self.read(option, read, cause)
    }

    /// A number up to `most`; 0 too.
    pub fn limit(&self, option: &str, most: u16) -> Result<Option<u16>, Failure> {
        let cause = || format!("it takes a number from 0 to {most}");
        let read = |text: &str| number::digits(text).filter(|number| *number <= most);
        self.read(option, read, cause)
    }

    /// Parses the value as text; `cause` says what it may be.
    fn read<T>(
        &self,
        option: &str,
        read: impl Fn(&str) -> Option<T>,
        cause: impl Fn() -> String,
    ) -> Result<Option<T>, Failure> {
        let Some(value) = self.value(option)? else {
            return Ok(None);
        };
        match value.to_str().and_then(read) {
            Some(read) => Ok(Some(read)),
            None => Err(refused(option, value, &cause())),
        }
    }
}

fn utf8<'a>(option: &str, value: &'a OsStr) -> Result<&'a str, Failure> {
    value
        .to_str()
        .ok_or_else(|| refused(option, value, "it is not valid UTF-8"))
}

/// Parses the value of one `--fd-env`: a comma-separated list.
fn read_dialects(value: &str) -> Result<Vec<Dialect>, Failure> {
    let words = value.split(',').map(str::trim);
    words
        .map(|word| {
            if word.is_empty() {
                // An empty word has nothing to show, so the whole list is shown.
                return Err(refused("fd-env", value.as_ref(), "a style is missing"));
            }
            let found = DIALECTS.iter().find(|(name, _)| *name == word);
            found.map(|(_, dialect)| *dialect).ok_or_else(|| {
                let cause = "the styles are systemd, unicorn, nginx, einhorn and php-fpm";
                refused("fd-env", word.as_ref(), cause)
            })
        })
        .collect()
}

/// The error is the cause alone.
fn read_ready(value: &OsStr, statuses: Statuses) -> Result<Ready, &'static str> {
    const KINDS: &str = "the kinds are interval, notify, fd:N, exec:COMMAND, accept and http:PATH";
    if let Some(command) = value.as_bytes().strip_prefix(b"exec:") {
        return match without_blanks(command) {
            b"" => Err("a command is missing after exec:"),
            command => Ok(Ready::Command(OsString::from_vec(command.to_vec()))),
        };
    }
    let text = value.to_str().ok_or("it is not valid UTF-8")?;
    let (kind, rest) = match text.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (text, None),
    };
    match (kind, rest) {
        ("interval", None) => Ok(Ready::Interval),
        ("notify", None) => Ok(Ready::Notify),
        ("accept", None) => Ok(Ready::Accept),
        ("fd", Some(digits)) => number::digits(digits)
            .filter(|number| (3..=HIGHEST_DESCRIPTOR).contains(number))
            .map(Ready::Descriptor)
            .ok_or("a descriptor for it is a number from 3 to 1048575"),
        ("http", Some(path)) if is_path(path) => Ok(Ready::Http {
            path: path.to_owned(),
            statuses,
        }),
        ("http", Some(_)) => Err("a path begins with a slash and has no blanks"),
        _ => Err(KINDS),
    }
}

fn read_statuses(text: &str) -> Option<Statuses> {
    let status = |digits: &str| number::digits(digits).filter(|one| (100..=599).contains(one));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (status(first)?, status(last)?);
    (first <= last).then_some(Statuses { first, last })
}

/// An absolute path, or `udp:HOST:PORT`.
fn read_syslog_address(value: &OsStr) -> Option<Address> {
    match value.to_str().and_then(|text| text.strip_prefix("udp:")) {
        Some(address) => {
            let (host, port) = address.rsplit_once(':')?;
            let is_valid = !host.is_empty() && number::port(port).is_some();
            is_valid.then(|| Address::Udp(address.to_owned()))
        }
        None => Path::new(value)
            .is_absolute()
            .then(|| Address::Socket(value.into())),
    }
}

fn is_tag(text: &str) -> bool {
    (1..=LONGEST_TAG).contains(&text.len()) && text.chars().all(is_of_tag)
}

/// Whether no syslog daemon takes this for the end of the tag.
fn is_of_tag(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._-/".contains(character)
}

/// A tag derived from the name of the program.
pub fn tag_of(program: &OsStr) -> String {
    let name = Path::new(program).file_name().unwrap_or(program);
    let tag: String = name
        .to_string_lossy()
        .chars()
        .map(|one| if is_of_tag(one) { one } else { '_' })
        .take(LONGEST_TAG)
        .collect();
    match tag.is_empty() {
        true => "start_server".to_owned(),
        false => tag,
    }
}

/// What follows a leading `|`; `None` if there is none.
fn read_command(value: &[u8]) -> Option<&[u8]> {
    let command = without_blanks(value).strip_prefix(b"|")?;
    Some(without_blanks(command))
}

/// Without leading ASCII characters that Perl's `\s` matches.
fn without_blanks(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\n' | b'\x0b' | b'\x0c' | b'\r', rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

fn read_switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// A number, or a name in any case, with or without SIG. Perl's aliases on Linux are names too.
fn read_signal(text: &str) -> Option<Signal> {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return Signal::try_from(number::digits::<i32>(text)?).ok();
    }
    let upper = text.to_ascii_uppercase();
    match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "CLD" => Some(Signal::SIGCHLD),
        "IOT" => Some(Signal::SIGABRT),
        "POLL" => Some(Signal::SIGIO),
        name => Signal::from_str(&format!("SIG{name}")).ok(),
    }
}
