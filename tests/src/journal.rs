//! The journal that fixture workers write: one line for each start and each signal that one caught, in their order.

use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub generation: u32,
    pub pid: i32,
    pub happened: Happened,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// The worker was executed.
    Started,
    /// It reached the point where it serves.
    Served,
    /// It caught TERM and accepts no more connections, but answers those that it has.
    Drains,
    /// It caught this signal, `SIGTERM`.
    Caught(String),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry {
            generation,
            pid,
            happened,
        } = self;
        match happened {
            Happened::Started => write!(f, "{generation} {pid} started"),
            Happened::Served => write!(f, "{generation} {pid} serves"),
            Happened::Drains => write!(f, "{generation} {pid} drains"),
            Happened::Caught(signal) => write!(f, "{generation} {pid} {signal}"),
        }
    }
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(line: &str) -> Result<Entry, String> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [generation, pid, word] = fields[..] else {
            return Err(format!("three words, not {line:?}"));
        };
        let happened = match word {
            "started" => Happened::Started,
            "serves" => Happened::Served,
            "drains" => Happened::Drains,
            signal => Happened::Caught(signal.to_owned()),
        };
        let number = |text: &str| text.parse::<i32>().map_err(|e| format!("{line:?}: {e}"));
        Ok(Entry {
            generation: number(generation)?.cast_unsigned(),
            pid: number(pid)?,
            happened,
        })
    }
}
