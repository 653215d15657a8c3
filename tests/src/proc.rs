//! What /proc says about a process. Absent processes are `None` or empty: they end while one looks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::str::FromStr;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::wait;

/// /proc/PID/status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    /// R, S, D, T, t, Z or X.
    pub state: char,
    pub ppid: i32,
    /// Real, effective, saved, file system.
    pub uids: [u32; 4],
    pub gids: [u32; 4],
    pub groups: Vec<u32>,
    pub inheritable: u64,
    pub permitted: u64,
    pub effective: u64,
    pub bounding: u64,
    pub ambient: u64,
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    pub seccomp_filters: u32,
    /// Bit N-1 stands for signal N; see [`signals`].
    pub blocked: u64,
    pub ignored: u64,
    pub caught: u64,
    pub pending: u64,
    pub threads: u32,
    pub umask: u32,
    /// Of the main thread; see [`context_switches`].
    pub context_switches: u64,
    /// How often the main thread has waited for something: the context switches that no other process has caused.
    pub waits: u64,
    /// The main thread waits for something, rather than for its turn on a CPU.
    pub is_sleeping: bool,
}

impl Status {
    /// Panics where the text is not that of /proc/PID/status.
    #[must_use]
    pub fn parse(text: &str) -> Status {
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key, value.trim()))
            .collect();
        let text_of = |key: &str| {
            *fields
                .get(key)
                .unwrap_or_else(|| panic!("no {key} in /proc/PID/status"))
        };
        let mask = |key: &str| u64::from_str_radix(text_of(key), 16).expect("a mask");
        let numbers = |key: &str| {
            text_of(key)
                .split_whitespace()
                .map(number)
                .collect::<Vec<u32>>()
        };
        let four = |key: &str| <[u32; 4]>::try_from(numbers(key)).expect("four ids");
        Status {
            name: text_of("Name").to_owned(),
            state: text_of("State").chars().next().expect("a state"),
            ppid: number(text_of("PPid")),
            uids: four("Uid"),
            gids: four("Gid"),
            groups: numbers("Groups"),
            inheritable: mask("CapInh"),
            permitted: mask("CapPrm"),
            effective: mask("CapEff"),
            bounding: mask("CapBnd"),
            ambient: mask("CapAmb"),
            no_new_privs: text_of("NoNewPrivs") == "1",
            seccomp: number(text_of("Seccomp")),
            seccomp_filters: fields
                .get("Seccomp_filters")
                .map_or(0, |count| number(count)),
            blocked: mask("SigBlk"),
            ignored: mask("SigIgn"),
            caught: mask("SigCgt"),
            pending: mask("SigPnd") | mask("ShdPnd"),
            threads: number(text_of("Threads")),
            umask: u32::from_str_radix(text_of("Umask"), 8).expect("an octal umask"),
            context_switches: number::<u64>(text_of("voluntary_ctxt_switches"))
                + number::<u64>(text_of("nonvoluntary_ctxt_switches")),
            is_sleeping: text_of("State").starts_with('S'),
            waits: number(text_of("voluntary_ctxt_switches")),
        }
    }

    /// The five capability sets: inheritable, permitted, effective, bounding, ambient.
    #[must_use]
    pub fn capabilities(&self) -> [u64; 5] {
        [
            self.inheritable,
            self.permitted,
            self.effective,
            self.bounding,
            self.ambient,
        ]
    }
}

/// The named signals of a mask of [`Status`]; real-time signals have no name and are left out.
#[must_use]
pub fn signals(mask: u64) -> Vec<Signal> {
    Signal::iterator()
        .filter(|&signal| mask & (1 << (signal as i32 - 1)) != 0)
        .collect()
}

/// /proc/PID/status; `None` where there is no such process, or one that is just ending and has given up its umask.
#[must_use]
pub fn status(pid: Pid) -> Option<Status> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.contains("\nUmask:").then(|| Status::parse(&text))
}

/// It has a place in the table of processes, if only as a zombie: it may still have its descriptors.
#[must_use]
pub fn exists(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Whether the process runs: zombies do not.
#[must_use]
pub fn alive(pid: Pid) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ")?.1.chars().next());
    state.is_some_and(|state| !"ZXx".contains(state))
}

/// Sends STOP to a process and waits until it has stopped: it finishes the call that it is in, such as a read(2).
#[track_caller]
pub fn stop(pid: Pid) {
    kill(pid, Signal::SIGSTOP).expect("cannot stop it");
    wait::until(&format!("{pid} has stopped"), String::new, || {
        status(pid)
            .is_some_and(|status| status.state == 'T')
            .then_some(())
    });
}

/// The open descriptors and what they lead to, as `readlink` says it.
#[must_use]
pub fn descriptors(pid: Pid) -> BTreeMap<i32, String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                target.to_string_lossy().into_owned(),
            ))
        })
        .collect()
}

/// The same of a process that has nothing to do: no file is open that it only reads or writes.
#[track_caller]
#[must_use]
pub fn descriptors_at_rest(pid: Pid) -> BTreeMap<i32, String> {
    let condition = format!("process {pid} has nothing to do");
    wait::until(&condition, String::new, || {
        let before = status(pid)?;
        let found = descriptors(pid);
        let after = status(pid)?;
        let rested = before.context_switches == after.context_switches;
        (before.is_sleeping && after.is_sleeping && rested).then_some(found)
    })
}

/// The living children, in order of their pids.
#[must_use]
pub fn children(pid: Pid) -> Vec<Pid> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let mut children: Vec<Pid> = match listed {
        Ok(listed) => listed
            .split_whitespace()
            .map(|child| Pid::from_raw(number(child)))
            .collect(),
        // Not every kernel has that file.
        Err(_) => all()
            .into_iter()
            .filter(|&child| parent(child) == Some(pid))
            .collect(),
    };
    children.retain(|&child| alive(child));
    children.sort();
    children
}

/// The living processes of this process group, in order of their pids.
#[must_use]
pub fn group(leader: Pid) -> Vec<Pid> {
    let is_in_it = |pid: &Pid| field_of_stat(*pid, 2) == Some(leader.as_raw());
    let mut found: Vec<Pid> = all().into_iter().filter(is_in_it).collect();
    found.retain(|&pid| alive(pid));
    found.sort();
    found
}

/// The session that the process is in.
#[must_use]
pub fn session(pid: Pid) -> Option<Pid> {
    field_of_stat(pid, 3).map(Pid::from_raw)
}

/// Whether the process has a controlling terminal.
#[must_use]
pub fn has_terminal(pid: Pid) -> bool {
    field_of_stat(pid, 4).is_some_and(|number| number != 0)
}

/// How long the process has computed, in hundredths of a second.
#[must_use]
pub fn computed(pid: Pid) -> i32 {
    let [user, system] = [11, 12].map(|place| field_of_stat(pid, place));
    user.unwrap_or(0) + system.unwrap_or(0)
}

/// The pid of the process in the innermost namespace that it is in.
#[must_use]
pub fn innermost(pid: Pid) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let pids = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    pids.split_whitespace().next_back()?.parse().ok()
}

/// Every process that there is.
#[must_use]
pub fn all() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").expect("cannot read /proc");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .collect()
}

fn parent(pid: Pid) -> Option<Pid> {
    field_of_stat(pid, 1).map(Pid::from_raw)
}

/// A field of /proc/PID/stat, counted from the one behind the name.
fn field_of_stat(pid: Pid, place: usize) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit_once(") ")?.1;
    fields.split(' ').nth(place)?.parse().ok()
}

/// The lines of /proc/PID/limits: each resource with its soft and hard limit; empty where we may not look.
#[must_use]
pub fn limits(pid: Pid) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    text.lines().skip(1).map(str::to_owned).collect()
}

/// The files that are mapped into the process; empty where we may not look.
#[must_use]
pub fn mapped_files(pid: Pid) -> BTreeSet<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    text.lines()
        .filter_map(|line| Some(line[line.find('/')?..].to_owned()))
        .collect()
}

/// The environment that the process was executed with; empty where we may not look.
#[must_use]
pub fn environment(pid: Pid) -> BTreeMap<String, String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split('\0')
        .filter_map(|entry| entry.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// Memory in KiB, from /proc/PID/smaps_rollup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub resident: u64,
    /// Shared pages count only by their share.
    pub proportional: u64,
    /// What would be freed if the process ended.
    pub private: u64,
}

/// How much memory the process uses; `None` where we may not look.
#[must_use]
pub fn memory(pid: Pid) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        Some(number::<u64>(line.split_whitespace().next()?))
    };
    Some(Memory {
        resident: kib("Rss")?,
        proportional: kib("Pss")?,
        private: kib("Private_Clean")? + kib("Private_Dirty")?,
    })
}

/// How much of the heap the process has written to, in KiB; `None` where we may not look.
#[must_use]
pub fn heap(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let heap = text.split_once("[heap]")?.1;
    let dirty = heap
        .lines()
        .find_map(|line| line.strip_prefix("Private_Dirty:"))?;
    Some(number(dirty.split_whitespace().next()?))
}

/// How often the threads of the process went to sleep or were put aside, so far: an idle process stays the same.
#[must_use]
pub fn context_switches(pid: Pid) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok())
        .map(|text| Status::parse(&text).context_switches)
        .sum()
}

fn number<T: FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("not a number in /proc: {text}"))
}
