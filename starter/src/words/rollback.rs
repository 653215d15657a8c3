//! What a rollback does, and why there is none.

use crate::words::remedy;
use crate::words::start_failure::StartFailure;

/// How the last restart is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It has not committed: this generation goes on.
    Keep(u32),
    /// What it replaced is current again.
    Return { to: u32, from: u32 },
    /// What this generation was started from is started again.
    StartAgain(u32),
}

/// What has undone a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Rollback,
    Abort,
}

impl Way {
    /// What follows, behind `rolling back: ` or `aborting: `.
    pub(super) fn sentence(self) -> String {
        match self {
            Way::Keep(number) => {
                format!("the restart is undone, generation {number} keeps serving")
            }
            Way::Return { to, from } => {
                format!("generation {to} is current again, generation {from} is told to stop")
            }
            Way::StartAgain(number) => {
                format!("starting the program of generation {number} again")
            }
        }
    }
}

fn because(cause: String) -> StartFailure {
    StartFailure { cause, hint: None }
}

/// Nothing has ever committed.
pub fn nothing_has_served() -> StartFailure {
    because("no generation has served yet".into())
}

/// Nothing that served is older than this generation, as far as is known.
pub fn nothing_before(number: u32) -> StartFailure {
    because(format!(
        "there is nothing to go back to from generation {number}"
    ))
}

/// What the last restart replaced is about to go.
pub fn too_late(number: u32) -> StartFailure {
    StartFailure {
        hint: Some(remedy::ROLL_BACK_LATER.into()),
        ..because(format!(
            "the workers of generation {number} were already told to stop and have not exited yet"
        ))
    }
}

/// A rollback that was asked for before is not over.
pub fn under_way(number: u32) -> StartFailure {
    because(format!(
        "a rollback to generation {number} is already under way"
    ))
}

/// With `--no-pin`.
pub fn not_kept(number: u32) -> StartFailure {
    because(format!(
        "generation {number} is gone, and with --no-pin nothing is kept to start it again"
    ))
}

/// There is no restart that has not committed.
pub fn nothing_is_tried() -> StartFailure {
    because("no restart is under way or tried again".into())
}

/// Why a restart has led to nothing that was undone.
pub fn undone(asked: Asked) -> StartFailure {
    because(match asked {
        Asked::Rollback => "it was rolled back".into(),
        Asked::Abort => "it was aborted".into(),
    })
}

/// Why a restart was not even begun.
pub fn came_first(asked: Asked) -> StartFailure {
    because(match asked {
        Asked::Rollback => "a rollback came first".into(),
        Asked::Abort => "an abort came first".into(),
    })
}
