//! Processes that a worker leaves behind when it puts itself into the background: they are found, and signalled if it
//! is certain whose they are.
//!
//! While a generation starts, this process adopts the orphans among its descendants ([`adopt_orphans`]). So whatever a
//! dead worker left running is a child of ours, or descends from one. Others may be among them: what workers of other
//! generations, or the log command, have left behind on purpose. What tells them apart is the environment that each
//! process was executed with (proc(5), `environ`). A process with a different one, because it was started with that or
//! has overwritten its own, is left alone.
//!
//! [`adopt_orphans`]: crate::host::process::adopt_orphans

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid};

use crate::host::proc;
use crate::host::process::Process;

/// The maximum number of looks. A process may start others just before it is signalled, and only another look finds
/// them; whoever stays ahead of this many means to win the race.
const MOST_LOOKS: usize = 8;

/// What identifies the processes that are looked for.
pub struct Leftovers<'a> {
    /// The number of their generation.
    pub generation: u32,
    /// The number of the worker that has left them behind.
    pub slot: usize,
    /// What `SERVER_STARTER_PORT` is in its workers: one value for each slot, if each has a socket of its own.
    pub ports: &'a [OsString],
    /// Every living worker, of any generation: its descendants belong to it and are left alone.
    pub workers: &'a [Pid],
}

impl Leftovers<'_> {
    /// Sends a signal to all of them. Returns those that got it.
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
        // At most as many steps as there are processes: the table was not read at one instant, so it may contain a
        // loop.
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

    /// Sends the signal if the process is one of them. Returns whether it got it.
    fn signal_one(&self, pid: Pid, signal: Signal) -> bool {
        // Opened first: either the environment that is read next is that of this process, or nobody gets the signal.
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
        let mut ports = self.ports.iter();
        let slot = OsString::from(self.slot.to_string());
        has("SERVER_STARTER_GENERATION", &generation)
            && has("SERVER_STARTER_WORKER", &slot)
            && ports.any(|ports| has("SERVER_STARTER_PORT", ports))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a generation with two slots.
    fn ports() -> [OsString; 2] {
        ["80=3;/a=4".into(), "80=3;/b=4".into()]
    }

    fn leftovers<'a>(ports: &'a [OsString], workers: &'a [Pid]) -> Leftovers<'a> {
        Leftovers {
            generation: 7,
            slot: 1,
            ports,
            workers,
        }
    }

    #[test]
    fn only_the_environment_of_that_generation_and_of_these_sockets_is_theirs() {
        let ports = ports();
        let theirs = |environment: &[u8]| leftovers(&ports, &[]).is_theirs(environment);
        for its in [
            b"A=1\0SERVER_STARTER_WORKER=1\0SERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=80=3;/a=4\0B=2\0".as_slice(),
            b"SERVER_STARTER_PORT=80=3;/b=4\0SERVER_STARTER_GENERATION=7\0SERVER_STARTER_WORKER=1\0",
        ] {
            assert!(theirs(its), "{}", its.escape_ascii());
        }
        for other in [
            b"".as_slice(),
            b"SERVER_STARTER_WORKER=1\0SERVER_STARTER_GENERATION=7\0",
            b"SERVER_STARTER_WORKER=1\0SERVER_STARTER_PORT=80=3;/a=4\0",
            b"SERVER_STARTER_WORKER=1\0SERVER_STARTER_GENERATION=77\0SERVER_STARTER_PORT=80=3;/a=4\0",
            b"SERVER_STARTER_WORKER=1\0SERVER_STARTER_GENERATION=6\0SERVER_STARTER_PORT=80=3;/a=4\0",
            b"SERVER_STARTER_WORKER=1\0SERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=81=3;/a=4\0",
            b"SERVER_STARTER_WORKER=1\0SERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=80=3\0",
            b"SERVER_STARTER_WORKER=1\0SERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=80=3;/c=4\0",
            b"SERVER_STARTER_WORKER=1\0XSERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=80=3;/a=4\0",
            b"SERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=80=3;/a=4\0",
            b"SERVER_STARTER_WORKER=0\0SERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=80=3;/a=4\0",
            b"SERVER_STARTER_WORKER=11\0SERVER_STARTER_GENERATION=7\0SERVER_STARTER_PORT=80=3;/a=4\0",
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
        let (ports, workers) = (ports(), [worker]);
        let leftovers = leftovers(&ports, &workers);
        let mut orphans = parents.keys().copied().collect::<Vec<_>>();
        orphans.retain(|pid| leftovers.is_orphan(*pid, &parents));
        assert_eq!(orphans, [orphan, its_child]);
    }
}
