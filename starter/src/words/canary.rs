//! What is said about a canary: a generation that gets a share of what comes before it gets everything.

use std::fmt;

use crate::words::failure::Failure;
use crate::words::number::short_time;
use crate::words::progress::in_brackets;
use crate::words::remedy;
use crate::words::start_failure::StartFailure;

/// Something that happened to a canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// A restart that is to get so many of a hundred.
    Asked {
        percent: u8,
    },
    /// It gets them.
    Shared {
        generation: u32,
        percent: u8,
        is_by_client: bool,
        /// Who gets the rest.
        serving: u32,
    },
    /// It gets everything.
    Promoting {
        generation: u32,
        promotion: Promotion,
    },
    CannotPromote(StartFailure),
    /// It is over, because another restart begins.
    Replaced {
        generation: u32,
    },
    /// It has failed, and this one gets everything again.
    Failed {
        generation: u32,
        serving: Option<u32>,
        cause: Option<StartFailure>,
    },
}

/// Why a canary gets everything.
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

/// Who gets so many of a hundred: `10 % of the clients`.
pub fn share(percent: u64, is_by_client: bool) -> String {
    match is_by_client {
        true => format!("{percent} % of the clients"),
        false => format!("{percent} % of what comes"),
    }
}

/// How a canary has begun. Times are in seconds.
pub struct Begun {
    pub generation: u64,
    /// `10 % of what comes`
    pub share: String,
    /// What it is called, if somebody has said it.
    pub label: Option<String>,
    pub pid: Option<i64>,
    /// How long its start took.
    pub after: Option<f64>,
    /// How long until it gets everything by itself.
    pub time: Option<f64>,
}

impl Begun {
    /// `generation 2 gets 10 % of what comes (pid 17266, ready after 0.42 s); --promote or --rollback ends that`
    pub fn sentence(self) -> String {
        let pid = self.pid.map(|pid| format!("pid {pid}"));
        let after = self
            .after
            .map(|after| format!("ready after {}", short_time(after)));
        let known = in_brackets([self.label, pid, after]);
        let (generation, share) = (self.generation, self.share);
        let end = match self.time {
            Some(time) => format!(
                "it gets everything after {} without a fault, unless --promote or --rollback comes first",
                short_time(time)
            ),
            None => "--promote or --rollback ends that".to_owned(),
        };
        format!("generation {generation} gets {share}{known}; {end}")
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start_server: ")?;
        match self {
            Trial::Asked { percent } => {
                write!(
                    f,
                    "asked for a canary that gets {percent} %, starting a new worker"
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
                let why = match promotion {
                    Promotion::Asked => "as asked".to_owned(),
                    Promotion::Trusted => "it has served without a fault".to_owned(),
                    Promotion::InsteadOf(gone) => format!("generation {gone} is gone"),
                };
                write!(f, "generation {generation} gets everything: {why}")
            }
            Trial::CannotPromote(StartFailure { cause, .. }) => {
                write!(f, "cannot promote: {cause}")
            }
            Trial::Replaced { generation } => write!(
                f,
                "the canary, generation {generation}, is given up for another restart"
            ),
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
                    Some(serving) => write!(f, "; generation {serving} gets everything again"),
                    None => Ok(()),
                }
            }
        }
    }
}
