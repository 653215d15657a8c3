//! What is said about many workers: another number of them, and restarts that replace one after the other.

use std::cmp::Ordering;
use std::fmt::{self, Display};

use crate::words::number::short_time;
use crate::words::remedy;
use crate::words::start_failure::StartFailure;

/// Something about the number of workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Many {
    Scaling {
        from: usize,
        to: usize,
    },
    CannotScale(StartFailure),
    /// A rolling restart has failed in the middle.
    RollStopped {
        generation: u32,
        done: usize,
        of: usize,
        /// What has the other slots.
        serving: Option<u32>,
    },
}

impl Display for Many {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Many::Scaling { from, to } => {
                write!(
                    formatter,
                    "start_server: scaling from {from} to {to} workers"
                )
            }
            Many::CannotScale(cause) => {
                write!(formatter, "start_server: cannot scale: {}", cause.cause)
            }
            Many::RollStopped {
                generation,
                done,
                of,
                serving,
            } => {
                let rolled = rolled(done, of, generation);
                write!(
                    formatter,
                    "start_server: the rolling restart stops: {rolled}"
                )?;
                if let Some(serving) = serving {
                    write!(formatter, ", the others of generation {serving}")?;
                }
                formatter.write_str("; the next restart replaces every older worker")
            }
        }
    }
}

/// How far a generation has come that takes over slot by slot.
pub fn rolled(done: impl Display, of: impl Display, generation: impl Display) -> String {
    format!("{done} of {of} workers are of generation {generation}")
}

/// A server runs another number of workers. The time is in seconds.
pub fn scaled(from: u64, to: u64, took: f64) -> String {
    let workers = match to {
        1 => "1 worker serves".to_owned(),
        to => format!("{to} workers serve"),
    };
    let took = short_time(took);
    match to.cmp(&from) {
        Ordering::Greater => format!("{workers} ({} more, after {took})", to - from),
        Ordering::Less => format!("{workers} ({} fewer, after {took})", from - to),
        Ordering::Equal => format!("{workers}, as before"),
    }
}

/// A server without workers is none.
pub fn none_left() -> StartFailure {
    StartFailure {
        cause: "one worker is the least".to_owned(),
        hint: Some(remedy::STOP_INSTEAD.into()),
    }
}

/// The limits of the process allow no more than `most`.
pub fn too_many(asked: usize, most: usize) -> StartFailure {
    StartFailure {
        cause: format!(
            "{asked} workers are more than the limits of open files and processes allow ({most})"
        ),
        hint: Some(remedy::RAISE_LIMITS.into()),
    }
}
