//! One line of the log with all that is known of it, and how each format writes it.

use std::fmt::Write;

use nix::unistd::Pid;
use serde::Serialize;
use time::OffsetDateTime;

use super::capture::Origin;
use super::known::About;
use super::lines::{Line, LineFormat};
use super::local_time::LocalTime;
use crate::words::notice::Severity;
use crate::words::text::{is_plain, printable_json};

/// The stream of our own lines.
const OURS: &str = "start_server";

/// What comes before a remedy, which is in a line of its own where lines are text.
const HINT: &str = "hint: ";

/// A line. The keys of an object of JSON are in this order, without those that have no value.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    time: &'a str,
    severity: &'static str,
    stream: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<usize>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "is_false")]
    continued: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}

impl<'a> Record<'a> {
    /// What a worker has written.
    pub fn of_worker(origin: &Origin, line: Line<'a>, time: &'a str) -> Record<'a> {
        Record {
            time,
            severity: origin.stream.severity().name(),
            stream: origin.stream.name(),
            generation: Some(origin.worker.generation),
            pid: Some(origin.worker.pid.as_raw()),
            worker: Some(origin.worker.slot),
            message: line.text,
            hint: None,
            continued: line.continued,
        }
    }

    fn of_ours(severity: Severity, about: About, message: &'a str, time: &'a str) -> Record<'a> {
        Record {
            time,
            severity: severity.name(),
            stream: OURS,
            generation: about.generation,
            pid: about.pid.map(Pid::as_raw),
            worker: about.worker,
            message,
            hint: None,
            continued: false,
        }
    }

    /// An object in one line, which is safe to show.
    pub fn to_json(&self) -> String {
        // All its keys are strings, so it can always be written.
        let json = serde_json::to_string(self).unwrap_or_default();
        match is_plain(json.as_bytes()) {
            true => json,
            false => printable_json(&json),
        }
    }
}

/// A message of ours as the lines of a log: already safe to show.
pub fn ours(format: LineFormat, severity: Severity, about: About, text: &str) -> Vec<String> {
    match format {
        LineFormat::Text => text.lines().map(str::to_owned).collect(),
        LineFormat::Json => {
            let time = now();
            let hint = text
                .lines()
                .skip(1)
                .find_map(|line| line.strip_prefix(HINT));
            let others = text.lines().skip(1);
            let others = others.filter(|line| !line.starts_with(HINT));
            let mut records: Vec<Record<'_>> = (text.lines().take(1).chain(others))
                .map(|line| Record::of_ours(severity, about, line, &time))
                .collect();
            if let Some(first) = records.first_mut() {
                first.hint = hint;
            }
            records.iter().map(Record::to_json).collect()
        }
    }
}

/// What a line of text may begin with: when, and who.
pub fn stamp(time: &LocalTime, generation: Option<u32>, pid: u32) -> String {
    match generation {
        Some(generation) => format!("{time} [{generation}:{pid}] "),
        None => format!("{time} [-:{pid}] "),
    }
}

/// The time of an object, now.
pub fn now() -> String {
    utc(OffsetDateTime::now_utc())
}

/// In UTC (RFC 3339), with microseconds: `2026-11-22T17:43:06.123456Z`.
fn utc(at: OffsetDateTime) -> String {
    let mut text = String::with_capacity(27);
    // Writing into memory does not fail.
    let _ = write!(
        text,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.microsecond(),
    );
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::log::capture::Stream;
    use crate::log::known::Known;
    use crate::log::lines::LONGEST;

    fn json_of(text: &str, continued: bool) -> String {
        let worker = Known {
            generation: 3,
            slot: 1,
            pid: Pid::from_raw(7),
        };
        let origin = Origin {
            worker,
            stream: Stream::Stderr,
        };
        let time =
            utc(OffsetDateTime::from_unix_timestamp_nanos(1_793_612_586_023_456_789).unwrap());
        Record::of_worker(&origin, Line { text, continued }, &time).to_json()
    }

    #[test]
    fn a_line_of_a_worker_is_one_object() {
        let start = r#"{"time":"2026-11-02T09:43:06.023456Z","severity":"warning","stream":"stderr","generation":3,"pid":7,"worker":1,"message":"#;
        assert_eq!(json_of("a line", false), format!(r#"{start}"a line"}}"#));
        let continued = format!(r#"{start}"","continued":true}}"#);
        assert_eq!(json_of("", true), continued);
    }

    #[test]
    fn what_could_do_harm_is_escaped_and_comes_back() {
        let text = "a\"\\\u{1b}[2J\u{0}\r\u{7f}\u{85}\u{9b}\u{202e}\u{2028}\u{fc}\u{fffd}\u{1f600}";
        let json = json_of(text, false);
        assert!(!json.chars().any(char::is_control), "{json}");
        assert!(!json.contains(['\u{202e}', '\u{2028}']), "{json}");
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["message"], text);
    }

    #[test]
    fn an_object_is_as_long_as_a_line_may_be() {
        for text in ["\"", "\u{9b}", "\u{20ac}"] {
            let (mut lines, mut longest) = (crate::log::lines::Lines::new(LineFormat::Json), 0);
            let written = format!("{}\n", text.repeat(LONGEST));
            lines.push(written.as_bytes(), |line| {
                longest = longest.max(json_of(line.text, line.continued).len());
            });
            assert!((LONGEST - 256..=LONGEST).contains(&longest), "{longest}");
        }
    }

    #[test]
    fn a_message_of_ours_has_its_hint_with_it() {
        let about = About {
            generation: Some(2),
            pid: None,
            worker: Some(0),
        };
        let ours = |text| ours(LineFormat::Json, Severity::Error, about, text);
        let text = "start_server: cannot\nstderr: hint: no\nhint: do";
        let lines = ours(text);
        let values: Vec<Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let messages: Vec<&Value> = values.iter().map(|one| &one["message"]).collect();
        assert_eq!(messages, ["start_server: cannot", "stderr: hint: no"]);
        assert_eq!(
            (&values[0]["hint"], &values[1]["hint"]),
            (&"do".into(), &Value::Null)
        );
        let end = r#"Z","severity":"err","stream":"start_server","generation":2,"worker":0,"message":"start_server: cannot","hint":"do"}"#;
        assert!(lines[0].ends_with(end), "{}", lines[0]);
        // One that is nothing but a hint.
        let value: Value = serde_json::from_str(&ours("hint: do")[0]).unwrap();
        assert_eq!(
            (&value["message"], &value["hint"]),
            (&"hint: do".into(), &Value::Null)
        );
    }
}
