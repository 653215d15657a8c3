//! Listen specs as typed, `[HOST:][u]PORT[=FD]` and the paths of unix sockets, parsed into complete values.
//!
//! Nothing is resolved, opened or bound here.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use common::message::Transport;
use serde::{Deserialize, Serialize};

use crate::listeners::foreign_spelling;
use crate::words::failure::Failure;
use crate::words::number;
use crate::words::text::{printable, quoted};

/// The longest path of a unix socket: `sun_path` of unix(7) without the NUL at its end.
pub const LONGEST_PATH: usize = 107;

/// The highest descriptor that can be requested: the kernel's default `fs.nr_open`, less one.
pub const HIGHEST_DESCRIPTOR: RawFd = 1_048_575;

/// The default permission bits of a socket file, as in Server::Starter.
const DEFAULT_MODE: u32 = 0o777;

const PORT_RANGE: &str = "a port is a number from 0 to 65535";
const BRACKETS: &str = "brackets go around the whole address, as in [::1]:80";

/// Where a port is to be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A literal address.
    Address(IpAddr),
    /// For getaddrinfo: a host name, or an IPv6 address with its zone (`fe80::1%eth0`).
    Name(String),
}

impl Host {
    fn is_same(&self, other: &Host) -> bool {
        match (self, other) {
            (Host::Address(one), Host::Address(two)) => one == two,
            (Host::Name(one), Host::Name(two)) => one.eq_ignore_ascii_case(two),
            _ => false,
        }
    }
}

/// One TCP or UDP port to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// As typed, for messages: one line.
    pub given: String,
    /// The key in `SERVER_STARTER_PORT`, as Server::Starter writes it, unless the kernel chooses the port.
    pub name: String,
    pub host: Host,
    pub transport: Transport,
    /// 0 is one that the kernel chooses.
    pub port: u16,
    /// The descriptor number that the worker wants.
    pub descriptor: Option<RawFd>,
    /// Whether no interface need have the address yet.
    pub freebind: bool,
}

impl PortSpec {
    /// Adds an option that was typed after it. The error is the cause alone.
    fn add(&mut self, option: &str) -> Result<(), String> {
        match option.split_once('=') {
            None if option == "freebind" => match std::mem::replace(&mut self.freebind, true) {
                true => Err("freebind is given twice".to_owned()),
                false => Ok(()),
            },
            Some(("freebind", _)) => Err("freebind takes no value".to_owned()),
            Some((name, _)) => Err(unknown_option(name)),
            None => Err(unknown_option(option)),
        }
    }

    /// The port itself, as it is typed after an address.
    pub fn typed_port(&self) -> String {
        match self.transport {
            Transport::Tcp => self.port.to_string(),
            Transport::Udp => format!("u{}", self.port),
        }
    }

    /// Whether the two cannot be bound together. Of ports that the kernel chooses, each is another one.
    fn is_same_address(&self, other: &PortSpec) -> bool {
        self.port != 0
            && (self.transport, self.port) == (other.transport, other.port)
            && self.host.is_same(&other.host)
    }

    /// The key in `SERVER_STARTER_PORT`, where this is the port that was bound.
    pub fn name_with(&self, bound: u16) -> String {
        match (self.port, self.name.rsplit_once(':')) {
            (0, None) => bound.to_string(),
            (0, Some((host, _))) => format!("{host}:{bound}"),
            _ => self.name.clone(),
        }
    }
}

fn unknown_option(name: &str) -> String {
    format!(
        "a port is followed by another port or by the option freebind, not by {}",
        quoted(name)
    )
}

/// One unix socket to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathSpec {
    /// As typed, with its attributes, for messages.
    pub given: OsString,
    /// Also the key in `SERVER_STARTER_PORT`. It may be relative; with an @ in front it is no path, but the name of an abstract
    /// socket (unix(7)).
    #[serde(with = "crate::host::luggage::path")]
    pub path: PathBuf,
    /// Permission bits, 0 to 0o777.
    pub mode: u32,
    pub user: Option<String>,
    pub group: Option<String>,
}

impl PathSpec {
    /// The name of an abstract socket, which has no file. A file whose name begins with an @ is written with a directory.
    pub fn abstract_name(&self) -> Option<&[u8]> {
        self.path.as_os_str().as_bytes().strip_prefix(b"@")
    }

    /// Whether a mode or an owner was typed.
    pub fn has_attributes(&self) -> bool {
        self.given != self.path.as_os_str()
    }
}

fn refused(option: &str, given: &OsStr, cause: impl Display) -> Failure {
    let given = quoted(given);
    Failure::usage(format!("cannot use {option}={given}: {cause}"))
}

/// Parses the value of one `--port`: a comma-separated list, in which each port may be followed by options.
pub fn parse_ports(value: &str) -> Result<Vec<PortSpec>, Failure> {
    let mut specs: Vec<PortSpec> = Vec::new();
    for segment in value.split(',').map(|it| it.trim_matches(is_blank)) {
        match specs.last_mut() {
            Some(spec) if is_port_option(segment) => {
                spec.given = format!("{},{}", spec.given, printable(segment));
                spec.add(segment)
                    .map_err(|cause| refused("--port", spec.given.as_ref(), cause))?;
            }
            // An empty spec has nothing to show: name the list that contains it.
            _ if segment.is_empty() => {
                return Err(refused("--port", value.as_ref(), "a port is missing"));
            }
            _ => specs.push(parse_port(segment).map_err(|cause| {
                let hint = foreign_spelling::of_port(segment);
                refused("--port", segment.as_ref(), cause).hint_if(hint)
            })?),
        }
    }
    Ok(specs)
}

/// Whether this looks like `NAME` or `NAME=VALUE`, known or not, and neither like a port (`80=3`, `u53`) nor like a host with
/// one.
fn is_port_option(segment: &str) -> bool {
    let after_u = segment.strip_prefix('u');
    let is_udp = after_u.is_some_and(|it| it.starts_with(|first: char| first.is_ascii_digit()));
    let is_name = segment.starts_with(|first: char| first.is_ascii_alphabetic());
    is_name && !is_udp && !segment.contains(':')
}

/// What `\s` of Perl matches in ASCII.
fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

/// The error is the cause alone.
fn parse_port(spec: &str) -> Result<PortSpec, String> {
    // A colon after the = means that it does not introduce a descriptor: it will be refused as part of the host.
    let (endpoint, descriptor) = match spec.rsplit_once('=') {
        Some((endpoint, descriptor)) if !descriptor.contains(':') => (
            endpoint.trim_end_matches(is_blank),
            Some(parse_descriptor(descriptor)?),
        ),
        _ => (spec, None),
    };
    let (typed_host, typed_port) = split_endpoint(endpoint)?;
    let (transport, digits) = match typed_port.strip_prefix('u') {
        Some(digits) => (Transport::Udp, digits),
        None => (Transport::Tcp, typed_port),
    };
    let port = number::digits(digits).ok_or(PORT_RANGE)?;
    let (host, name) = match typed_host {
        None => (
            Host::Address(Ipv4Addr::UNSPECIFIED.into()),
            digits.to_owned(),
        ),
        Some(typed) => {
            let host = parse_host(typed)?;
            let name = match typed.contains(':') {
                true => format!("[{typed}]:{digits}"),
                false => format!("{typed}:{digits}"),
            };
            (host, name)
        }
    };
    Ok(PortSpec {
        given: printable(spec),
        name,
        host,
        transport,
        port,
        descriptor,
        freebind: false,
    })
}

/// Splits at the colon before the port; the host is `None` for all IPv4 addresses.
fn split_endpoint(endpoint: &str) -> Result<(Option<&str>, &str), String> {
    if let Some(opened) = endpoint.strip_prefix('[') {
        let (host, rest) = opened.split_once(']').ok_or(BRACKETS)?;
        let host = host.trim_matches(is_blank);
        // `[]` and `[*]` are not addresses; without brackets they are our extension.
        if matches!(host, "" | "*") || host.contains('[') {
            return Err(BRACKETS.to_owned());
        }
        let Some(port) = rest.trim_start_matches(is_blank).strip_prefix(':') else {
            return Err("the address in brackets is followed by : and a port".to_owned());
        };
        return Ok((Some(host), port.trim_start_matches(is_blank)));
    }
    if endpoint.contains(['[', ']']) {
        return Err(BRACKETS.to_owned());
    }
    match endpoint.rsplit_once(':') {
        None => Ok((None, endpoint)),
        Some((host, port)) => {
            let port = port.trim_start_matches(is_blank);
            match host.trim_end_matches(is_blank) {
                // Unlike Server::Starter, which refuses both.
                "" | "*" => Ok((None, port)),
                host => Ok((Some(host), port)),
            }
        }
    }
}

fn parse_host(typed: &str) -> Result<Host, String> {
    if typed.contains(':') {
        let (address, zone) = match typed.split_once('%') {
            Some((address, zone)) => (address, Some(zone)),
            None => (typed, None),
        };
        let Ok(ip) = address.parse::<Ipv6Addr>() else {
            return Err(format!("{} is not an IPv6 address", quoted(typed)));
        };
        return match zone {
            None => Ok(Host::Address(ip.into())),
            Some(zone) if is_zone(zone) => Ok(Host::Name(typed.to_owned())),
            Some(_) => Err("the name of an interface follows %".to_owned()),
        };
    }
    if let Ok(ip) = typed.parse::<Ipv4Addr>() {
        return Ok(Host::Address(ip.into()));
    }
    if typed.contains([';', '=']) {
        let cause =
            "a host name cannot contain ; or =, which are separators in SERVER_STARTER_PORT";
        return Err(cause.to_owned());
    }
    if typed.contains(|character: char| character.is_whitespace() || character.is_control()) {
        return Err("a host name cannot contain white space".to_owned());
    }
    Ok(Host::Name(typed.to_owned()))
}

/// Whether this can name an interface without breaking SERVER_STARTER_PORT.
fn is_zone(zone: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    !zone.is_empty() && zone.bytes().all(is_plain)
}

fn parse_descriptor(digits: &str) -> Result<RawFd, String> {
    number::digits(digits)
        .filter(|descriptor| *descriptor <= HIGHEST_DESCRIPTOR)
        .ok_or_else(|| format!("a descriptor is a number from 0 to {HIGHEST_DESCRIPTOR}"))
}

/// Parses the value of one `--path`.
///
/// A comma may be part of a path. It separates two paths only if every part starts with `/`, but it always separates
/// attributes (`,mode=0660`) from their path: no path may contain the `=` that each of them has.
pub fn parse_paths(value: &OsStr) -> Result<Vec<PathSpec>, Failure> {
    let mut segments = value.as_bytes().split(|byte| *byte == b',');
    let first = segments.next().unwrap_or_default();
    let segments: Vec<&[u8]> = segments.collect();
    let is_list = first.starts_with(b"/")
        && segments
            .iter()
            .all(|segment| segment.starts_with(b"/") || is_attribute(segment));

    let mut parts = Vec::new();
    let mut part = Part {
        path: first.to_vec(),
        attributes: Vec::new(),
    };
    for segment in segments {
        if is_attribute(segment) {
            part.attributes.push(segment);
        } else if is_list {
            let next = Part {
                path: segment.to_vec(),
                attributes: Vec::new(),
            };
            parts.push(std::mem::replace(&mut part, next));
        } else if part.attributes.is_empty() {
            part.path.push(b',');
            part.path.extend_from_slice(segment);
        } else {
            let cause =
                "the attributes are followed by neither an attribute nor a path that starts with /";
            return Err(refused("--path", value, cause));
        }
    }
    parts.push(part);
    parts.into_iter().map(Part::parse).collect()
}

/// Whether this looks like `NAME=VALUE`, known or not; a `/` before the = makes it part of a path.
fn is_attribute(segment: &[u8]) -> bool {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    match segment.iter().position(|byte| *byte == b'=') {
        Some(end) => end > 0 && segment.iter().take(end).all(is_name),
        None => false,
    }
}

/// A path with the attributes after it, not yet parsed.
struct Part<'a> {
    path: Vec<u8>,
    attributes: Vec<&'a [u8]>,
}

impl Part<'_> {
    fn parse(self) -> Result<PathSpec, Failure> {
        let mut given = self.path.clone();
        for attribute in &self.attributes {
            given.push(b',');
            given.extend_from_slice(attribute);
        }
        let given = OsString::from_vec(given);
        match self.understand() {
            Ok((path, attributes)) => {
                let Attributes { mode, user, group } = attributes;
                let mode = mode.unwrap_or(DEFAULT_MODE);
                Ok(PathSpec {
                    given,
                    path,
                    mode,
                    user,
                    group,
                })
            }
            Err(cause) => Err(refused("--path", &given, cause)),
        }
    }

    /// The error is the cause alone.
    fn understand(self) -> Result<(PathBuf, Attributes), String> {
        let path = self.path;
        if path.is_empty() {
            return Err("the path is empty".to_owned());
        }
        if path.iter().any(|byte| b";=".contains(byte)) {
            return Err(
                "a path cannot contain ; or =, which are separators in SERVER_STARTER_PORT"
                    .to_owned(),
            );
        }
        if path.contains(&b'\n') {
            return Err("a path cannot contain a newline".to_owned());
        }
        // The @ stands for the NUL that an abstract name begins with.
        let name = path.strip_prefix(b"@");
        let length = name.unwrap_or(&path).len();
        if length > LONGEST_PATH {
            return Err(format!(
                "the path of a unix socket has at most {LONGEST_PATH} bytes, this one has {length}"
            ));
        }
        match name {
            Some(b"") => return Err("the name of an abstract socket follows @".to_owned()),
            Some(_) if !self.attributes.is_empty() => {
                return Err(
                    "an abstract socket is no file: it has neither mode nor owner (a file is written ./@name)"
                        .to_owned(),
                );
            }
            Some(_) | None => {}
        }
        let mut attributes = Attributes::default();
        for attribute in self.attributes {
            attributes.add(attribute)?;
        }
        Ok((PathBuf::from(OsString::from_vec(path)), attributes))
    }
}

#[derive(Default)]
struct Attributes {
    mode: Option<u32>,
    user: Option<String>,
    group: Option<String>,
}

impl Attributes {
    fn add(&mut self, attribute: &[u8]) -> Result<(), String> {
        let Ok(attribute) = std::str::from_utf8(attribute) else {
            return Err("an attribute is not valid UTF-8".to_owned());
        };
        let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        let is_repeated = match name {
            "mode" => self.mode.replace(parse_mode(value)?).is_some(),
            "user" | "group" if value.is_empty() => return Err(format!("{name}= is empty")),
            "user" => self.user.replace(value.to_owned()).is_some(),
            "group" => self.group.replace(value.to_owned()).is_some(),
            _ => {
                return Err(format!(
                    "the attributes of a path are mode, user and group, not {}",
                    quoted(name)
                ));
            }
        };
        match is_repeated {
            true => Err(format!("{name}= is given twice")),
            false => Ok(()),
        }
    }
}

fn parse_mode(digits: &str) -> Result<u32, String> {
    let is_octal = digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(digits, 8).ok();
    mode.filter(|mode| is_octal && *mode <= 0o777)
        .ok_or_else(|| "a mode is an octal number from 0 to 0777".to_owned())
}

/// Refuses what would fail at the second bind, or would give one descriptor to two listeners.
pub fn check_duplicates(ports: &[PortSpec], paths: &[PathSpec]) -> Result<(), Failure> {
    for (index, port) in ports.iter().enumerate() {
        for earlier in ports.iter().take(index) {
            let (given, before) = (port.given.as_ref(), &earlier.given);
            if port.is_same_address(earlier) {
                return Err(refused(
                    "--port",
                    given,
                    format!("it is the same as --port={before}"),
                ));
            }
            if let Some(descriptor) = port.descriptor
                && earlier.descriptor == Some(descriptor)
            {
                let cause = format!("descriptor {descriptor} is taken by --port={before}");
                return Err(refused("--port", given, cause));
            }
        }
    }
    for (index, path) in paths.iter().enumerate() {
        if let Some(earlier) = paths
            .iter()
            .take(index)
            .find(|earlier| earlier.path == path.path)
        {
            let cause = format!("it is the same as --path={}", quoted(&earlier.given));
            return Err(refused("--path", &path.given, cause));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]
mod tests;
