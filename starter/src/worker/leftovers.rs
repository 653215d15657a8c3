//! What a worker leaves behind that puts itself into the background: found and ended where it is certain whose it is.
//!
//! While a generation starts, this process adopts what its descendants leave behind ([`adopt_orphans`]). So whatever a
//! worker that has ended left running is a child of ours, or descends from one. Others may be among them: what workers of
//! other generations, or the log command, have left behind on purpose. Their environment tells them apart, as every
//! process got it when it executed its program (proc(5), `environ`). What has another one, because it was given one or has
//! written over it, is left alone.
//!
//! [`adopt_orphans`]: crate::host::process::adopt_orphans

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid};

use crate::host::proc;
use crate::host::process::Process;

/// What is found while they are told to stop may have been started by them just before. More looks than that would be a
/// race with somebody who wants to win it.
const MOST_LOOKS: usize = 8;

/// What is known of the processes that are looked for.
pub struct Leftovers<'a> {
    /// The number of their generation, of which no worker lives.
    pub generation: u32,
    /// The variables that tell each worker about its sockets.
    pub variables: &'a [(OsString, OsString)],
    /// Every worker that lives, of whatever generation: what descends from these is theirs.
    pub workers: &'a [Pid],
}

impl Leftovers<'_> {
    /// Sends a signal to all of them. Returns who got it.
    pub fn signal(&self, signal: Signal) -> Vec<Pid> {
        let mut signalled = Vec::new();
        for _ in 0..MOST_LOOKS {
            let known = signalled.len();
            let parents = proc::parents();
            for pid in parents.keys().copied() {
                let is_new = !signalled.contains(&pid);
                if is_new && self.is_orphan(pid, &parents) && self.signal_one(pid, signal) {
                    signalled.push(pid);
                }
            }
            if signalled.len() == known {
                break;
            }
        }
        signalled
    }

    /// Whether it descends from this process, and from no worker.
    fn is_orphan(&self, pid: Pid, parents: &BTreeMap<Pid, Pid>) -> bool {
        let ourselves = getpid();
        let mut at = pid;
        // No longer than there are processes, because the table was not read in one moment.
        for _ in 0..parents.len() {
            match parents.get(&at) {
                _ if self.workers.contains(&at) => return false,
                Some(parent) if *parent == ourselves => return true,
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        false
    }

    /// Whether the process has got the signal.
    fn signal_one(&self, pid: Pid, signal: Signal) -> bool {
        // Opened first: what is read then belongs to this process, or the signal to nobody.
        let Ok(process) = Process::open(pid) else {
            return false;
        };
        let environment = proc::environment(pid).unwrap_or_default();
        self.is_theirs(&environment) && process.signal(signal).is_ok()
    }

    fn is_theirs(&self, environment: &[u8]) -> bool {
        let has = |name: &str, value: &OsStr| {
            let mut entries = environment.split(|byte| *byte == 0);
            entries.any(|entry| {
                let entry = entry.strip_prefix(name.as_bytes());
                entry.and_then(|rest| rest.strip_prefix(b"=")) == Some(value.as_bytes())
            })
        };
        let generation = OsString::from(self.generation.to_string());
        let mut variables = self.variables.iter();
        let ports = variables.find(|(name, _)| name == "SERVER_STARTER_PORT");
        has("SERVER_STARTER_GENERATION", &generation)
            && ports.is_some_and(|(_, ports)| has("SERVER_STARTER_PORT", ports))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Vec<(OsString, OsString)> {
        vec![("SERVER_STARTER_PORT".into(), "80=3;/a=4".into())]
    }

    fn leftovers<'a>(variables: &'a [(OsString, OsString)], workers: &'a [Pid]) -> Leftovers<'a> {
        Leftovers {
            generation: 7,
            variables,
            workers,
        }
    }

    #[test]
    fn only_the_environment_of_that_generation_and_of_these_sockets_is_theirs() {
        let variables = variables();
        let theirs = |environment: &[u8]| leftovers(&variables, &[]).is_theirs(environment);
        assert!(theirs(
            b"A=1\0SERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=80=3;/a=4\0B=2\0"
        ));
        for other in [
            b"".as_slice(),
            b"SERVER_STARTER_GENERATION=7\0",
            b"SERVER_STARTER_PORT=80=3;/a=4\0",
            b"SERVER_STARTER_GENERATION=77\0SERVER_STARTER_PORT=80=3;/a=4\0",
            b"SERVER_STARTER_GENERATION=6\0SERVER_STARTER_PORT=80=3;/a=4\0",
            b"SERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=81=3;/a=4\0",
            b"XSERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=80=3;/a=4\0",
        ] {
            assert!(!theirs(other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn an_orphan_descends_from_this_process_and_from_no_worker() {
        let [
            ours,
            init,
            orphan,
            its_child,
            worker,
            child_of_worker,
            stranger,
        ] = [
            getpid().as_raw(),
            1,
            1_000_002,
            1_000_003,
            1_000_004,
            1_000_005,
            1_000_006,
        ]
        .map(Pid::from_raw);
        let parents = [
            (orphan, ours),
            (its_child, orphan),
            (worker, ours),
            (child_of_worker, worker),
            (stranger, init),
            (init, Pid::from_raw(0)),
            (ours, init),
        ];
        let parents = BTreeMap::from(parents);
        let (variables, workers) = (variables(), [worker]);
        let leftovers = leftovers(&variables, &workers);
        let mut orphans = parents.keys().copied().collect::<Vec<_>>();
        orphans.retain(|pid| leftovers.is_orphan(*pid, &parents));
        assert_eq!(orphans, [orphan, its_child]);
    }
}
