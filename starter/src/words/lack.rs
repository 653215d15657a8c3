//! Which parts of a binder's confinement a kernel, or a container around it, does not support.

use std::fmt;

use common::message::Confinement;

/// Something is missing. It reads as a list: `seccomp filters and Landlock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack(Confinement);

impl Lack {
    /// What is missing here; `None` where all of it is in force.
    pub fn of(confinement: Confinement) -> Option<Lack> {
        (!confinement.is_whole()).then_some(Lack(confinement))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        for (seccomp, landlock, words) in [
            (true, 6, None),
            (true, 5, Some("Landlock's rules for signals")),
            (true, 4, Some("Landlock's rules for signals")),
            (true, 3, Some("Landlock's rules for ports and signals")),
            (true, 0, Some("Landlock")),
            (false, 6, Some("seccomp filters")),
            (false, 0, Some("seccomp filters and Landlock")),
        ] {
            let lack = Lack::of(Confinement { seccomp, landlock });
            assert_eq!(lack.map(|lack| lack.to_string()).as_deref(), words);
        }
    }
}
