//! What the log says about upgrades in place.

use std::fmt;
use std::path::PathBuf;

use nix::unistd::Pid;

use crate::words::text::{quoted, shortened};

/// A step of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// The file that lies where this program was started from is tried first.
    Trying { path: PathBuf },
    /// The program that runs goes on.
    Failed { path: PathBuf, cause: String },
    /// This program has taken the place of another version in the same process.
    Done { from: String, to: String },
}

impl fmt::Display for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Upgrade::Trying { path } => {
                write!(f, "received USR2, trying {} first", quoted(path))
            }
            Upgrade::Failed { path, cause } => {
                let (path, cause, version) = (quoted(path), shortened(cause), ours());
                write!(
                    f,
                    "start_server: cannot upgrade to {path}: {cause}; version {version} goes on"
                )
            }
            Upgrade::Done { from, to } if from == to => write!(
                f,
                "start_server: upgraded in place, from version {from} to the same version"
            ),
            Upgrade::Done { from, to } => write!(
                f,
                "start_server: upgraded in place, from version {} to {}",
                shortened(from),
                shortened(to)
            ),
        }
    }
}

/// What `--upgrade` ends with.
pub fn success(pid: Pid, from: &str, to: &str) -> String {
    let (from, to) = (shortened(from), shortened(to));
    format!("start_server (pid:{pid}) runs version {to} now, before that {from}; its workers go on")
}

/// The version of this program.
pub fn ours() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_the_new_program_has_printed() {
        let failed = Upgrade::Failed {
            path: "/bin/start_server".into(),
            cause: "it said: a\nb".to_owned(),
        };
        assert_eq!(failed.to_string().lines().count(), 1);
    }
}
