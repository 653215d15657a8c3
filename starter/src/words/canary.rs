//! What is said about a canary: a generation that gets a share of new connections before it gets all of them.

use std::fmt;

use nix::unistd::Pid;

use crate::words::failure::Failure;
use crate::words::number::short_time;
use crate::words::progress::in_brackets;
use crate::words::remedy;
use crate::words::start_failure::StartFailure;

/// Something that happened to a canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// A restart whose generation is to get this share.
    Asked {
        percent: u8,
    },
    /// It gets its share.
    Shared {
        generation: u32,
        percent: u8,
        is_by_client: bool,
        /// Who gets the rest.
        serving: u32,
    },
    /// It gets all new connections.
    Promoting {
        generation: u32,
        promotion: Promotion,
    },
    CannotPromote(StartFailure),
    /// Another restart ends it.
    Replaced {
        generation: u32,
    },
    /// One of its workers, which had served.
    Died {
        pid: Pid,
        status: i32,
    },
    /// It has failed, and `serving` gets all new connections again.
    Failed {
        generation: u32,
        serving: Option<u32>,
        cause: Option<StartFailure>,
    },
}

/// Why a canary is promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promotion {
    Asked,
    /// It has served for long enough without a fault.
    Trusted,
    /// This generation is gone, and nothing else serves.
    InsteadOf(u32),
}

/// There is no canary.
pub fn nothing_to_promote() -> StartFailure {
    because("no canary serves")
}

/// The generation was a canary when another restart began.
pub fn replaced() -> StartFailure {
    because("it was ended by another restart")
}

/// All generations share their sockets.
pub fn no_lanes() -> StartFailure {
    StartFailure {
        hint: Some(remedy::CANARY_NEEDS_LANES.into()),
        ..because("only --switch can give a generation a share")
    }
}

fn because(cause: &str) -> StartFailure {
    StartFailure {
        cause: cause.to_owned(),
        hint: None,
    }
}

/// A client has asked such a server for a share, by this option.
pub fn cannot_share(option: &str, pid: i64) -> Failure {
    Failure::usage(format!(
        "cannot use --{option}: all generations of pid {pid} share their listeners"
    ))
    .hint(remedy::CANARY_NEEDS_LANES)
}

/// What a canary gets: `10% of clients`.
pub fn share(percent: u64, is_by_client: bool) -> String {
    match is_by_client {
        true => format!("{percent}% of clients"),
        false => format!("{percent}% of new connections"),
    }
}

/// How a canary has begun. Times are in seconds.
pub struct Begun {
    pub generation: u64,
    /// `10% of new connections`
    pub share: String,
    /// What it is called, if somebody has said it.
    pub label: Option<String>,
    pub pid: Option<i64>,
    /// How long its start took.
    pub after: Option<f64>,
    /// How long until it is promoted by itself.
    pub time: Option<f64>,
}

impl Begun {
    /// `generation 2 gets 10% of new connections (pid 17266, ready after 0.42 s); decide with --promote or --rollback`
    pub fn sentence(self) -> String {
        let pid = self.pid.map(|pid| format!("pid {pid}"));
        let after = self
            .after
            .map(|after| format!("ready after {}", short_time(after)));
        let known = in_brackets([self.label, pid, after]);
        let (generation, share) = (self.generation, self.share);
        let end = match self.time {
            Some(time) => format!(
                "it is promoted after {} without a fault, unless --promote or --rollback comes first",
                short_time(time)
            ),
            None => "decide with --promote or --rollback".to_owned(),
        };
        format!("generation {generation} gets {share}{known}; {end}")
    }
}

impl Promotion {
    fn reason(self) -> String {
        match self {
            Promotion::Asked => "as asked".to_owned(),
            Promotion::Trusted => "it has served without a fault".to_owned(),
            Promotion::InsteadOf(gone) => format!("generation {gone} is gone"),
        }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start_server: ")?;
        match self {
            Trial::Asked { percent } => {
                write!(
                    f,
                    "asked for a canary with a share of {percent}%, starting a new worker"
                )
            }
            Trial::Shared {
                generation,
                percent,
                is_by_client,
                serving,
            } => write!(
                f,
                "generation {generation} gets {}, and generation {serving} the rest, until --promote or --rollback",
                share((*percent).into(), *is_by_client)
            ),
            Trial::Promoting {
                generation,
                promotion,
            } => {
                let why = promotion.reason();
                write!(
                    f,
                    "generation {generation} is promoted and gets all new connections: {why}"
                )
            }
            Trial::CannotPromote(StartFailure { cause, .. }) => {
                write!(f, "cannot promote: {cause}")
            }
            Trial::Replaced { generation } => write!(
                f,
                "the canary, generation {generation}, is ended by another restart"
            ),
            Trial::Died { pid, status } => {
                write!(
                    f,
                    "worker {pid} of the canary died unexpectedly with status:{status}"
                )
            }
            Trial::Failed {
                generation,
                serving,
                cause,
            } => {
                write!(f, "the canary, generation {generation}, is rolled back")?;
                if let Some(StartFailure { cause, .. }) = cause {
                    write!(f, ": {cause}")?;
                }
                match serving {
                    Some(serving) => {
                        write!(f, "; generation {serving} gets all new connections again")
                    }
                    None => Ok(()),
                }
            }
        }
    }
}
