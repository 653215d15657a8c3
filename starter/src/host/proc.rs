//! What /proc says about a process.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::unistd::Pid;

use crate::words::failure::{self, Failure};

/// /proc/PID/status.
#[derive(Debug, PartialEq, Eq)]
pub struct Status {
    /// Real, effective, saved, file system.
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    /// Ascending.
    pub groups: Vec<u32>,
    pub permitted: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub ambient: u64,
    pub bounding: u64,
    pub no_new_privs: bool,
    pub seccomp_filters: u32,
    /// Bit N-1 stands for signal N.
    pub blocked: u64,
    pub ignored: u64,
    pub threads: u32,
    parent: i32,
}

/// The lines of /proc/PID/status, for whoever needs one or two of them: kernels differ in which they write.
pub struct Fields(String);

impl Fields {
    pub fn of(pid: Pid) -> io::Result<Fields> {
        fs::read_to_string(path(pid, "status")).map(Fields)
    }

    pub fn of_this_process() -> io::Result<Fields> {
        fs::read_to_string("/proc/self/status").map(Fields)
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(str::trim)
    }

    fn numbers(&self, name: &str) -> Option<Vec<u32>> {
        let words = self.field(name)?.split_whitespace();
        words.map(|word| word.parse().ok()).collect()
    }

    /// The user who may send signals to it, as the user who started it.
    pub fn real_user(&self) -> Option<u32> {
        self.numbers("Uid")?.first().copied()
    }

    fn parent(&self) -> Option<Pid> {
        self.field("PPid")?.parse().ok().map(Pid::from_raw)
    }

    /// Whether a signal, or a debugger, has stopped it.
    pub fn is_stopped(&self) -> bool {
        self.field("State")
            .is_some_and(|state| state.starts_with(['T', 't']))
    }

    /// Whether a seccomp filter decides on its system calls.
    pub fn is_filtered(&self) -> bool {
        self.field("Seccomp") == Some("2")
    }
}

impl Status {
    pub fn of(pid: Pid) -> Result<Status, Failure> {
        let cannot =
            |cause: &str| Failure::failed(format!("cannot read {}: {cause}", path(pid, "status")));
        let fields = Fields::of(pid).map_err(|error| cannot(&failure::cause(&error)))?;
        Status::parse(&fields).ok_or_else(|| cannot("it is not understood"))
    }

    fn parse(fields: &Fields) -> Option<Status> {
        let field = |name: &str| fields.field(name);
        let numbers = |name: &str| fields.numbers(name);
        let mask = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        let mut groups = numbers("Groups")?;
        groups.sort_unstable();
        groups.dedup();
        Some(Status {
            uids: numbers("Uid")?,
            gids: numbers("Gid")?,
            groups,
            permitted: mask("CapPrm")?,
            effective: mask("CapEff")?,
            inheritable: mask("CapInh")?,
            ambient: mask("CapAmb")?,
            bounding: mask("CapBnd")?,
            no_new_privs: field("NoNewPrivs")? == "1",
            // A kernel without seccomp says nothing of it.
            seccomp_filters: field("Seccomp_filters")
                .map_or(Some(0), |count| count.parse().ok())?,
            blocked: mask("SigBlk")?,
            ignored: mask("SigIgn")?,
            threads: field("Threads")?.parse().ok()?,
            parent: field("PPid")?.parse().ok()?,
        })
    }
}

fn path(pid: Pid, file: &str) -> String {
    format!("/proc/{pid}/{file}")
}

/// Whether there is such a process, running or not reaped yet.
pub fn exists(pid: Pid) -> bool {
    fs::exists(path(pid, "")).unwrap_or(true)
}

/// The children of a process, ascending.
pub fn children(parent: Pid) -> Result<Vec<Pid>, Failure> {
    let entries = fs::read_dir("/proc").map_err(|error| {
        Failure::failed(format!("cannot read /proc: {}", failure::cause(&error)))
    })?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let pids = entries.flatten().filter_map(number).map(Pid::from_raw);
    // Whoever is gone meanwhile is nobody's child.
    let is_child = |pid: &Pid| Status::of(*pid).is_ok_and(|it| it.parent == parent.as_raw());
    let mut children: Vec<Pid> = pids.filter(is_child).collect();
    children.sort_unstable();
    Ok(children)
}

/// The parent of every process that can be seen. A process that comes or goes meanwhile may be in it or not.
pub fn parents() -> BTreeMap<Pid, Pid> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let with_parent = |pid: Pid| Some((pid, Fields::of(pid).ok()?.parent()?));
    pids.map(Pid::from_raw).filter_map(with_parent).collect()
}

/// The environment that the process was executed with, as far as it has not written over it: `NAME=VALUE`, each with a
/// NUL after it.
pub fn environment(pid: Pid) -> io::Result<Vec<u8>> {
    fs::read(path(pid, "environ"))
}

/// The open descriptors and what they lead to; of a socket or pipe only that it is one.
pub fn descriptors(pid: Pid) -> io::Result<BTreeMap<i32, String>> {
    let mut open = BTreeMap::new();
    for entry in fs::read_dir(path(pid, "fd"))?.flatten() {
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // One that was closed meanwhile is not open.
        if let Ok(target) = fs::read_link(entry.path()) {
            let target = target.to_string_lossy();
            let kind = match target.split_once(":[") {
                Some((kind @ ("socket" | "pipe"), _)) => kind,
                _ => &*target,
            };
            open.insert(number, kind.to_owned());
        }
    }
    Ok(open)
}

/// The names of the variables that the process was executed with, in order.
pub fn variables(pid: Pid) -> io::Result<Vec<String>> {
    let bytes = environment(pid)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut names: Vec<String> = text
        .split_terminator('\0')
        .map(|entry| entry.split('=').next().unwrap_or_default().to_owned())
        .collect();
    names.sort_unstable();
    Ok(names)
}

pub fn directory(pid: Pid) -> io::Result<PathBuf> {
    fs::read_link(path(pid, "cwd"))
}

/// Whether its own user may look into it. What belongs to root there is closed to others (proc(5)); of a process of
/// root's this says nothing.
pub fn is_dumpable(pid: Pid) -> io::Result<bool> {
    Ok(fs::metadata(path(pid, "environ"))?.uid() != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read() {
        let text = "Name:\tx\nPPid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t20 4 20 \nThreads:\t2\n\
                    SigBlk:\t0000000000000200\nSigIgn:\t0000000000001000\nCapInh:\t1\nCapPrm:\t400\nCapEff:\t2\n\
                    CapBnd:\t000001ffffffffff\nCapAmb:\t4\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n";
        let parse = |text: &str| Status::parse(&Fields(text.to_owned()));
        let status = parse(text).unwrap();
        assert_eq!(
            status,
            Status {
                uids: vec![1, 2, 3, 4],
                gids: vec![5, 6, 7, 8],
                groups: vec![4, 20],
                permitted: 0x400,
                effective: 2,
                inheritable: 1,
                ambient: 4,
                bounding: 0x1ff_ffff_ffff,
                no_new_privs: true,
                seccomp_filters: 3,
                blocked: 0x200,
                ignored: 0x1000,
                threads: 2,
                parent: 7,
            }
        );
        assert_eq!(parse(&text.replace("CapBnd", "Else")), None);
        let without = text.replace("Seccomp_filters:\t3\n", "");
        assert_eq!(parse(&without).unwrap().seccomp_filters, 0);
    }

    #[test]
    fn single_fields_are_read() {
        let fields = |text: &str| Fields(text.to_owned());
        let running =
            fields("State:\tS (sleeping)\nUid:\t1\t2\t3\t4\nSeccomp:\t0\nSeccomp_filters:\t2\n");
        assert_eq!(running.real_user(), Some(1));
        assert!(!running.is_stopped() && !running.is_filtered());
        assert!(fields("State:\tT (stopped)\n").is_stopped());
        assert!(fields("State:\tt (tracing stop)\n").is_stopped());
        assert!(fields("Seccomp:\t2\n").is_filtered());
        assert_eq!(fields("").real_user(), None);
    }

    #[test]
    fn this_process_is_found_in_proc() {
        let (ourselves, parent) = (nix::unistd::getpid(), nix::unistd::getppid());
        assert!(exists(ourselves));
        assert!(children(parent).unwrap().contains(&ourselves));
        assert_eq!(parents().get(&ourselves), Some(&parent));
        assert!(descriptors(ourselves).unwrap().contains_key(&2));
        assert_eq!(Status::of(ourselves).unwrap().parent, parent.as_raw());
    }
}
