//! What is in force of each process's confinement: for the notice, `--strict` and `FILE.json`.

use std::fmt;

use common::message::Confinement;
use common::privileges::Bounding;

use crate::log;
use crate::words::failure::Failure;
use crate::words::notice::Notice;

/// Of all processes, as `FILE.json` shows it.
#[derive(Debug)]
pub struct InForce {
    /// Of the supervisor, and of every worker.
    pub supervisor: OfSupervisor,
    /// Only where binders were needed; the one of the ports is gone by now.
    pub binders: Vec<OfBinder>,
}

/// Of the supervisor; an ordinary user's has nothing to give up, and its workers may run setuid programs.
#[derive(Debug, Clone, Copy)]
pub struct OfSupervisor {
    pub no_new_privs: bool,
    pub bounding_set_empty: bool,
}

/// Of one binder.
#[derive(Debug)]
pub struct OfBinder {
    pub makes: &'static str,
    pub seccomp: bool,
    /// The version of its interface, 0 without it.
    pub landlock: u8,
}

impl OfSupervisor {
    /// Of root that became a user.
    pub fn dropped(bounding: Bounding) -> OfSupervisor {
        OfSupervisor {
            no_new_privs: true,
            bounding_set_empty: bounding == Bounding::Empty,
        }
    }

    /// Of an ordinary user.
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

/// What a kernel, or a container around it, lacks of the confinement of a binder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack(Confinement);

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lack(Confinement { seccomp, landlock }) = self;
        let landlock = match landlock {
            0 => Some("Landlock"),
            // Since Linux 6.7.
            1..4 => Some("Landlock's rules for ports and signals"),
            // Since Linux 6.12.
            4..Confinement::LANDLOCK => Some("Landlock's rules for signals"),
            _ => None,
        };
        let seccomp = (!seccomp).then_some("seccomp filters");
        let lacks: Vec<&str> = seccomp.into_iter().chain(landlock).collect();
        f.write_str(&lacks.join(" and "))
    }
}

/// Says once what lacks, or refuses to go on where that was asked for. All binders run on the same kernel.
pub fn judge(confinements: &[Confinement], strict: bool) -> Result<(), Failure> {
    let Some(lack) = confinements.iter().find(|one| !one.is_whole()) else {
        return Ok(());
    };
    let lack = Lack(*lack);
    if strict {
        return Err(Failure::failed(format!(
            "cannot confine the binder: {lack} cannot be had here, and --strict is given"
        ))
        .hint(
            "Linux 6.12 has all of it, where `landlock` is in /sys/kernel/security/lsm and no container or unit keeps \
             it away (SystemCallFilter=@system-service does); without --strict this is a notice",
        ));
    }
    log::say(Notice::Unconfined(lack));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lacks_is_named() {
        for (seccomp, landlock, words) in [
            (true, 6, ""),
            (true, 5, "Landlock's rules for signals"),
            (true, 4, "Landlock's rules for signals"),
            (true, 3, "Landlock's rules for ports and signals"),
            (true, 0, "Landlock"),
            (false, 6, "seccomp filters"),
            (false, 0, "seccomp filters and Landlock"),
        ] {
            let confinement = Confinement { seccomp, landlock };
            assert_eq!(Lack(confinement).to_string(), words);
            assert_eq!(confinement.is_whole(), words.is_empty());
        }
    }
}
