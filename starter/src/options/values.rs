//! The values of single options, from words to types.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;
use nix::sys::signal::Signal;

use super::FdStyle;
use super::refusal::refused;
use crate::log::{Address, DEFAULT_ADDRESS, Format, LogTarget, Stream, SyslogSettings, facility};
use crate::words::failure::Failure;
use crate::words::number::{self, LONGEST_TIME};

/// The words for `--fd-env`.
const FD_STYLES: [(&str, FdStyle); 4] = [
    ("systemd", FdStyle::Systemd),
    ("unicorn", FdStyle::Unicorn),
    ("nginx", FdStyle::Nginx),
    ("einhorn", FdStyle::Einhorn),
];

/// The words for `--syslog-format`.
const SYSLOG_FORMATS: [(&str, Format); 2] =
    [("rfc3164", Format::Rfc3164), ("rfc5424", Format::Rfc5424)];

/// The longest tag of a syslog record (RFC 3164, 4.1.3).
const LONGEST_TAG: usize = 32;

/// What clap has read, by type. `None` means that the option was not given.
pub struct Given<'a>(pub &'a ArgMatches);

impl<'a> Given<'a> {
    pub fn flag(&self, option: &str) -> bool {
        self.0.get_flag(option)
    }

    /// Of all options that were given, in the order of their names.
    pub fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let matches = self.0;
        let is_given = |name: &&str| matches.value_source(name) == Some(ValueSource::CommandLine);
        let mut names: Vec<&str> = matches
            .ids()
            .map(clap::Id::as_str)
            .filter(is_given)
            .collect();
        names.sort_unstable();
        names.into_iter()
    }

    pub fn all(&self, option: &str) -> impl Iterator<Item = &'a OsString> + use<'a> {
        self.0.get_many::<OsString>(option).unwrap_or_default()
    }

    pub fn value(&self, option: &str) -> Result<Option<&'a OsString>, Failure> {
        match self.0.get_one::<OsString>(option) {
            Some(value) if value.is_empty() => Err(refused(option, value, "its value is empty")),
            value => Ok(value),
        }
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

    /// Lists of streams; both where none is given.
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

    /// A number from 1 on.
    pub fn count<T>(&self, option: &str, most: T) -> Result<Option<T>, Failure>
    where
        T: FromStr + PartialOrd + From<bool> + std::fmt::Display,
    {
        let cause = || format!("it takes a number from 1 to {most}");
        let read = |text: &str| number::digits(text).filter(|number| *number >= T::from(true));
        self.read(option, read, cause)
    }

    pub fn read<T>(
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

pub fn utf8<'a>(option: &str, value: &'a OsStr) -> Result<&'a str, Failure> {
    value
        .to_str()
        .ok_or_else(|| refused(option, value, "it is not valid UTF-8"))
}

/// Reads the value of one `--fd-env`: a list, separated by commas.
pub fn parse_fd_styles(value: &str) -> Result<Vec<FdStyle>, Failure> {
    let words = value.split(',').map(str::trim);
    words
        .map(|word| {
            if word.is_empty() {
                // The empty word itself would show nothing: name the list that holds it.
                return Err(refused("fd-env", value.as_ref(), "a style is missing"));
            }
            let found = FD_STYLES.iter().find(|(name, _)| *name == word);
            found.map(|(_, style)| *style).ok_or_else(|| {
                let cause = "the styles are systemd, unicorn, nginx and einhorn";
                refused("fd-env", word.as_ref(), cause)
            })
        })
        .collect()
}

/// All that begins with `--syslog`.
pub fn syslog(given: &Given<'_>, program: &OsStr) -> Result<Option<SyslogSettings>, Failure> {
    let others = [
        "syslog-tag",
        "syslog-address",
        "syslog-format",
        "syslog-stream",
    ];
    if given.value("syslog")?.is_none() {
        return match others
            .into_iter()
            .find(|other| given.all(other).next().is_some())
        {
            Some(other) => Err(Failure::usage(format!(
                "cannot use --{other}: it needs --syslog as well"
            ))),
            None => Ok(None),
        };
    }
    let facility = given.read(
        "syslog",
        |name| facility(name).map(|_| name.to_owned()),
        || "the facilities are kern, user, mail, daemon, auth, syslog, lpr, news, uucp, cron, authpriv, ftp and local0 to local7".to_owned(),
    )?;
    let tag = given.read(
        "syslog-tag",
        |tag| is_tag(tag).then(|| tag.to_owned()),
        || format!("a tag has 1 to {LONGEST_TAG} letters, digits and any of . _ - /"),
    )?;
    let format = given.read(
        "syslog-format",
        |name| {
            let found = SYSLOG_FORMATS.iter().find(|(one, _)| *one == name);
            found.map(|(_, format)| *format)
        },
        || "the formats are rfc3164 and rfc5424".to_owned(),
    )?;
    Ok(Some(SyslogSettings {
        facility: facility.unwrap_or_default(),
        tag: tag.unwrap_or_else(|| tag_of(program)),
        address: syslog_address(given)?,
        format: format.unwrap_or(Format::Rfc3164),
    }))
}

fn syslog_address(given: &Given<'_>) -> Result<Address, Failure> {
    let option = "syslog-address";
    let Some(value) = given.value(option)? else {
        return Ok(Address::Socket(DEFAULT_ADDRESS.into()));
    };
    let cause = "the address is an absolute path, or udp:HOST:PORT";
    match value.to_str().and_then(|text| text.strip_prefix("udp:")) {
        Some(address) => {
            let port = address
                .rsplit_once(':')
                .map(|(host, port)| (host, number::port(port)));
            match port {
                Some((host, Some(_))) if !host.is_empty() => Ok(Address::Udp(address.to_owned())),
                _ => Err(refused(option, value, cause)),
            }
        }
        None if value.as_bytes().starts_with(b"/") => Ok(Address::Socket(value.into())),
        None => Err(refused(option, value, cause)),
    }
}

fn is_tag(text: &str) -> bool {
    (1..=LONGEST_TAG).contains(&text.len()) && text.chars().all(is_of_tag)
}

/// What no syslog daemon takes for the end of the tag.
fn is_of_tag(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._-/".contains(character)
}

/// The name of the program, as far as it can be a tag.
fn tag_of(program: &OsStr) -> String {
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

/// What is behind a leading `|`; `None` where there is none.
fn read_command(value: &[u8]) -> Option<&[u8]> {
    let command = without_blanks(value).strip_prefix(b"|")?;
    Some(without_blanks(command))
}

/// Takes off, at the start, what `\s` of Perl matches in ASCII.
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

/// A number, or a name in any case with or without SIG; also the second names that Perl knows on Linux.
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
