//! What fuzzers call: each takes any bytes and asserts what must hold for all of them.
//!
//! The parsers are those that the program itself runs. A panic is a finding, wherever it comes from.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use common::message::Transport;

use crate::client::{self, Asked, Status};
use crate::listeners::holders::{self, InetSocket};
use crate::listeners::spec::{
    HIGHEST_DESCRIPTOR, LONGEST_PATH, PathSpec, PortSpec, check_duplicates, parse_paths,
    parse_ports,
};
use crate::log::LineFormat;
use crate::log::lines::{LONGEST, Lines};
use crate::status::{lines, pid_file, view};
use crate::worker::environment::{self, Unusable};

/// The value of `--port` and of `--path`.
pub fn listen_spec(bytes: &[u8]) {
    let mut ports = Vec::new();
    match std::str::from_utf8(bytes).map(parse_ports) {
        Ok(Ok(parsed)) => ports = parsed,
        Ok(Err(failure)) => assert_message(&failure.to_string()),
        Err(_) => {}
    }
    let mut paths = Vec::new();
    match parse_paths(OsStr::from_bytes(bytes)) {
        Ok(parsed) => paths = parsed,
        Err(failure) => assert_message(&failure.to_string()),
    }
    ports.iter().for_each(assert_port);
    paths.iter().for_each(assert_path);
    if let Err(failure) = check_duplicates(&ports, &paths) {
        assert_message(&failure.to_string());
    }
}

fn assert_port(spec: &PortSpec) {
    assert_line(&spec.given);
    assert_line(&spec.name);
    // It goes into SERVER_STARTER_PORT.
    assert!(!spec.name.contains([';', '=']), "{spec:?}");
    let descriptors = 0..=HIGHEST_DESCRIPTOR;
    assert!(
        spec.descriptor
            .is_none_or(|number| descriptors.contains(&number))
    );
    let (host, digits) = match spec.name.rfind(':') {
        Some(colon) => spec.name.split_at(colon + 1),
        None => ("", spec.name.as_str()),
    };
    let udp = match spec.transport {
        Transport::Tcp => "",
        Transport::Udp => "u",
    };
    let descriptor = spec.descriptor.map(|number| format!("={number}"));
    let freebind = if spec.freebind { ",freebind" } else { "" };
    let written = format!(
        "{host}{udp}{digits}{}{freebind}",
        descriptor.unwrap_or_default()
    );
    let again = PortSpec {
        given: written.clone(),
        ..spec.clone()
    };
    assert_eq!(parse_ports(&written), Ok(vec![again]));
}

fn assert_path(spec: &PathSpec) {
    let path = spec.path.as_os_str().as_bytes();
    let name = spec.abstract_name();
    let length = name.unwrap_or(path).len();
    assert!((1..=LONGEST_PATH).contains(&length), "{spec:?}");
    assert!(!path.iter().any(|byte| b";=\n".contains(byte)), "{spec:?}");
    assert!(spec.mode <= 0o777, "{spec:?}");
    let mut written = spec.path.clone().into_os_string();
    if name.is_none() {
        written.push(format!(",mode={:o}", spec.mode));
    }
    for (name, value) in [("user", &spec.user), ("group", &spec.group)] {
        if let Some(value) = value {
            assert!(!value.is_empty(), "{spec:?}");
            written.push(format!(",{name}={value}"));
        }
    }
    let again = PathSpec {
        given: written.clone(),
        ..spec.clone()
    };
    assert_eq!(parse_paths(&written), Ok(vec![again]));
}

/// A status file in Server::Starter's format.
pub fn status_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let generations = lines::parse_lines(text);
    assert!(generations.len() <= text.lines().count());
    // What is not replaced as ours has some line that is none.
    if lines::is_status_lines(text) {
        assert!(text.lines().all(|line| line.contains(':')));
    }
    let written: String = generations
        .iter()
        .map(|generation| format!("{generation}:1\n"))
        .collect();
    assert!(lines::is_status_lines(&written));
    assert_eq!(lines::parse_lines(&written), generations);
}

/// `F.json`, as `--restart` and `--status` read it.
pub fn status_json(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let is_stale = view::is_status_json(text);
    let Some(status) = Status::parse(text) else {
        return;
    };
    assert!(is_stale, "a server would not replace what a client follows");
    for request in [0, status.next_request()] {
        for asked in [
            Asked::Restart,
            Asked::Promotion,
            Asked::Rollback,
            Asked::Abort,
        ] {
            let answer = status.answer_to(request, asked);
            let verdict = answer.and_then(|one| status.verdict_on(one, false, asked));
            if let Some(Err(failure)) = verdict {
                assert_message(&failure.to_string());
            }
        }
        let told = client::restart_in_every_form(text, request);
        told.iter()
            .flat_map(|one| one.lines())
            .for_each(assert_line);
    }
    let [page, json, metrics] = client::in_every_form(&status);
    for line in page.lines() {
        assert_line(line);
        assert!(line.chars().count() <= 80, "{line:?}");
    }
    json.lines().for_each(assert_line);
    assert!(
        serde_json::from_str::<serde_json::Value>(&json).is_ok(),
        "{json}"
    );
    metrics.lines().for_each(assert_line);
    assert_eq!(metrics.matches("# EOF\n").count(), 1, "{metrics}");
}

/// A pid file.
pub fn pid_file(bytes: &[u8]) {
    let Ok(pid) = pid_file::parse(bytes) else {
        return;
    };
    let written = pid.map(|pid| format!("{pid}\n")).unwrap_or_default();
    assert_eq!(pid_file::parse(written.as_bytes()), Ok(pid));
}

/// A file of `--envdir`: its name, a slash (which no name can hold), and its content.
pub fn envdir(bytes: &[u8]) {
    let Some(slash) = bytes.iter().position(|byte| *byte == b'/') else {
        return;
    };
    let (name, content) = bytes.split_at(slash);
    // No file has such a name.
    if name.is_empty() || name.contains(&0) {
        return;
    }
    let name = OsStr::from_bytes(name);
    let content = content.get(1..).unwrap_or_default().to_vec();
    let (name, value) = match environment::variable(name, || Ok(content)) {
        Ok(Some(variable)) => variable,
        Ok(None) => return,
        Err(Unusable::NoVariable(cause)) => return assert_line(cause),
        Err(Unusable::Unreadable(_)) => unreachable!("nothing is read from a file here"),
    };
    assert!(!name.as_bytes().contains(&b'='));
    assert!(!value.as_bytes().contains(&0));
    let length = name.len() + 1 + value.len();
    assert!(length <= environment::LONGEST, "{length} bytes");
    let again = {
        // A line break in the value was a NUL.
        let mut content = value.clone().into_vec();
        for byte in &mut content {
            if *byte == b'\n' {
                *byte = 0;
            }
        }
        content.push(b'\n');
        environment::variable(&name, || Ok(content))
    };
    let again = again.ok().flatten();
    assert_eq!(again, Some((name.clone(), value.clone())));
    let (knobs, complaints) = environment::knobs_of(vec![(name, value)]);
    assert!(
        knobs
            .auto_restart
            .is_none_or(|interval| !interval.is_zero())
    );
    complaints
        .iter()
        .for_each(|complaint| assert_line(complaint));
}

/// Tables of /proc/net, where paths are what any process has bound, and the name that a process has given itself.
pub fn holders(bytes: &[u8]) {
    let sockets = holders::inet_sockets(bytes, u32::to_le_bytes);
    let others = holders::inet_sockets(bytes, u32::to_be_bytes);
    assert_eq!(sockets.len(), others.len());
    for (socket, other) in sockets.iter().zip(others) {
        // The byte order is that of the address alone.
        let turned = InetSocket {
            ip: socket.ip,
            ..other
        };
        assert_eq!(*socket, turned);
        let found = holders::in_the_way(&sockets, Transport::Udp, socket.ip, socket.port);
        assert!(found.contains(&socket.inode), "{socket:?}");
    }
    for socket in holders::served_sockets(bytes) {
        let path = socket.path.as_os_str().as_bytes();
        assert!(!path.is_empty() && !path.starts_with(b"@"), "{socket:?}");
    }
    assert_line(&holders::command(bytes));
}

/// Nothing that a terminal would obey, and no second line that could be taken for one of ours.
fn assert_line(text: &str) {
    assert!(!text.contains(char::is_control), "{text:?}");
}

/// One line, and the hint where there is one.
fn assert_message(text: &str) {
    let (line, hint) = text.split_once("\nhint: ").unwrap_or((text, ""));
    assert_line(line);
    assert_line(hint);
    assert!(line.starts_with("cannot "), "{line}");
}

/// What a worker writes, in portions of which the first byte gives the size: lines that can do no harm, of which nothing
/// is lost, and the same however it was written.
pub fn lines(bytes: &[u8]) {
    let Some((size, written)) = bytes.split_first() else {
        return;
    };
    let both = |format| {
        let in_portions = lines_of(format, written, usize::from(*size) + 1);
        let at_once = lines_of(format, written, written.len().max(1));
        assert_eq!(in_portions, at_once, "{format:?}");
        in_portions
    };
    let for_json = both(LineFormat::Json).concat();
    let expected = String::from_utf8_lossy(written).replace('\n', "");
    assert_eq!(for_json, expected);
    let in_portions = both(LineFormat::Text);
    for line in &in_portions {
        assert_line(line);
        assert!(line.len() <= LONGEST, "{line:?}");
        assert!(!line.contains(['\u{202e}', '\u{2028}']), "{line:?}");
    }
    let ends = written.iter().filter(|byte| **byte == b'\n').count();
    assert!(in_portions.len() >= ends, "{in_portions:?}");
}

fn lines_of(format: LineFormat, written: &[u8], portion: usize) -> Vec<String> {
    let (mut lines, mut out) = (Lines::new(format), Vec::new());
    for portion in written.chunks(portion) {
        lines.push(portion, |line| out.push(line.text.to_owned()));
    }
    lines.end(|line| out.push(line.text.to_owned()));
    out
}
