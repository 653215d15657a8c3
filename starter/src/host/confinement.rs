//! Which confinement is in force for each process: for the notice, `--strict` and `FILE.json`.

use common::message::Confinement;
use common::privileges::Bounding;

use crate::words::failure::Failure;
use crate::words::lack::Lack;
use crate::words::notice::Notice;
use crate::words::remedy;

/// For all processes, as `FILE.json` shows it.
#[derive(Debug)]
pub struct InForce {
    /// For the supervisor and every worker.
    pub supervisor: OfSupervisor,
    /// Only if binders were needed; the port binder is gone by now.
    pub binders: Vec<OfBinder>,
}

/// For the supervisor; an ordinary user's has nothing to give up, and its workers may run setuid programs.
#[derive(Debug, Clone, Copy)]
pub struct OfSupervisor {
    pub no_new_privs: bool,
    pub bounding_set_empty: bool,
}

/// For one binder.
#[derive(Debug)]
pub struct OfBinder {
    pub makes: &'static str,
    pub seccomp: bool,
    /// The Landlock ABI version, 0 without Landlock.
    pub landlock: u8,
}

impl OfSupervisor {
    /// For root that became a user.
    pub fn dropped(bounding: Bounding) -> OfSupervisor {
        OfSupervisor {
            no_new_privs: true,
            bounding_set_empty: bounding == Bounding::Empty,
        }
    }

    /// For an ordinary user.
    pub const ORDINARY: OfSupervisor = OfSupervisor {
        no_new_privs: false,
        bounding_set_empty: false,
    };
}

impl OfBinder {
    pub fn new(makes: &'static str, confinement: Confinement) -> OfBinder {
        OfBinder {
            makes,
            seccomp: confinement.seccomp,
            landlock: confinement.landlock,
        }
    }
}

/// What is missing, to be reported once; an error if `strict` demands everything. All binders run on the same kernel.
pub fn check(confinements: &[Confinement], strict: bool) -> Result<Option<Notice>, Failure> {
    let Some(lack) = confinements.iter().copied().find_map(Lack::of) else {
        return Ok(None);
    };
    match strict {
        false => Ok(Some(Notice::Unconfined(lack))),
        true => Err(Failure::failed(format!(
            "cannot confine the binder: this kernel or container lacks {lack}, and --strict is given"
        ))
        .hint(remedy::CONFINE_FULLY)),
    }
}
