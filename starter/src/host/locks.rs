//! Which process holds an exclusive lock on a file (flock(2)), whatever the file says.
//!
//! The kernel tells it in two places, and neither is sufficient alone:
//!
//! - /proc/locks has a line for each lock with the pid of the process that took it. That process may be gone, its
//!   descriptor inherited by a child, and its pid reused. And on some file systems (btrfs, overlayfs) the device and
//!   inode numbers differ from those of stat(2).
//! - /proc/PID/fdinfo/FD has the same line for each descriptor that holds the lock. But it is unreadable to other users,
//!   and to everybody but root if the process has dropped privileges.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;

/// What is known about one process and the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    /// One of its descriptors holds the lock, and this process took it.
    Holds { taker: Pid },
    /// It has no such descriptor, or does not exist.
    HoldsNot,
    /// Its descriptors cannot be read.
    Hidden,
}

/// Finds the process that has locked the file. `written` is the pid in the file: it counts only if nothing else is known.
///
/// # Errors
/// If the file's own numbers cannot be read.
pub fn holder(file: &File, written: Option<Pid>) -> io::Result<Option<Pid>> {
    let file = file.metadata()?;
    // If there is none, the descriptors have to tell.
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    let locks = || table.lines().filter_map(Lock::parse);
    Ok(decide(
        locks()
            .filter(|lock| lock.is_on(&file))
            .map(|lock| lock.taker),
        locks()
            .filter(|lock| lock.inode == file.ino())
            .map(|lock| lock.taker),
        written,
        all_processes,
        |pid| look_at(pid, &file),
    ))
}

/// The rule, from the best evidence to the weakest.
fn decide(
    mut takers: impl Iterator<Item = Pid>,
    mut likely: impl Iterator<Item = Pid>,
    written: Option<Pid>,
    others: impl FnOnce() -> Vec<Pid>,
    look_at: impl Fn(Pid) -> Finding,
) -> Option<Pid> {
    let holds = |pid: &Pid| matches!(look_at(*pid), Finding::Holds { .. });
    // The kernel names it for this very file, and nothing shows that it no longer has the lock.
    if let Some(taker) = takers.find(|pid| look_at(*pid) != Finding::HoldsNot) {
        return Some(taker);
    }
    if let Some(holder) = written.filter(holds).or_else(|| likely.find(holds)) {
        return Some(holder);
    }
    let found: Vec<(Pid, Pid)> = others()
        .into_iter()
        .filter_map(|pid| match look_at(pid) {
            Finding::Holds { taker } => Some((pid, taker)),
            _ => None,
        })
        .collect();
    match (found.iter().find(|(pid, taker)| pid == taker), &found[..]) {
        (Some((taker, _)), _) => Some(*taker),
        // It inherited the lock from a process that is gone.
        (None, [(only, _)]) => Some(*only),
        (None, []) => written.filter(|pid| look_at(*pid) == Finding::Hidden),
        // Several have it, and none of them took it.
        (None, _) => None,
    }
}

/// An exclusive lock by flock(2), as /proc/locks and fdinfo show it (proc_locks(5)).
#[derive(Debug, PartialEq, Eq)]
struct Lock {
    taker: Pid,
    device: (u64, u64),
    inode: u64,
}

impl Lock {
    /// `1: FLOCK  ADVISORY  WRITE 4711 fe:00:131076 0 EOF`; a process waiting for a lock has `->` after the number.
    fn parse(line: &str) -> Option<Lock> {
        let mut words = line.split_whitespace().skip(1);
        let (kind, _, access) = (words.next()?, words.next()?, words.next()?);
        let is_exclusive = (kind, access) == ("FLOCK", "WRITE");
        // A process in another pid namespace has no pid here.
        let taker = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
        let mut place = words.next()?.split(':');
        let mut hexadecimal = || u64::from_str_radix(place.next()?, 16).ok();
        let device = (hexadecimal()?, hexadecimal()?);
        let lock = Lock {
            taker: Pid::from_raw(taker),
            device,
            inode: place.next()?.parse().ok()?,
        };
        is_exclusive.then_some(lock)
    }

    fn is_on(&self, file: &Metadata) -> bool {
        (self.device, self.inode) == ((major(file.dev()), minor(file.dev())), file.ino())
    }
}

fn look_at(pid: Pid, file: &Metadata) -> Finding {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let entries = match fs::read_dir(directory.join("fdinfo")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Finding::Hidden,
        // A /proc that hides other users' processes (hidepid, proc(5)) says that there is none.
        Err(_) if kill(pid, None) == Err(Errno::EPERM) => return Finding::Hidden,
        Err(_) => return Finding::HoldsNot,
    };
    for entry in entries {
        // Some kernels allow opening the directory but not reading it.
        let Ok(entry) = entry else {
            return Finding::Hidden;
        };
        let info = match fs::read_to_string(entry.path()) {
            Ok(info) => info,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Finding::Hidden;
            }
            // It has been closed in the meantime.
            Err(_) => continue,
        };
        let mut locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
        let Some(lock) = locks.find_map(Lock::parse) else {
            continue;
        };
        // Only now, because its other files may be on a file system that does not respond.
        match fs::metadata(directory.join("fd").join(entry.file_name())) {
            Ok(open) if (open.dev(), open.ino()) == (file.dev(), file.ino()) => {
                return Finding::Holds { taker: lock.taker };
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Finding::Hidden;
            }
            _ => {}
        }
    }
    Finding::HoldsNot
}

fn all_processes() -> Vec<Pid> {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(number).map(Pid::from_raw).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs::OpenOptions;

    use nix::fcntl::{Flock, FlockArg};
    use nix::unistd::getpid;

    use super::*;

    #[test]
    fn lines_of_proc_locks_are_read() {
        let line = "1: FLOCK  ADVISORY  WRITE 4711 fe:0a:131076 0 EOF";
        let lock = Lock {
            taker: Pid::from_raw(4711),
            device: (0xfe, 0x0a),
            inode: 131_076,
        };
        assert_eq!(Lock::parse(line), Some(lock));
        for other in [
            "",
            "1: FLOCK",
            "1: POSIX  ADVISORY  WRITE 4711 fe:0a:131076 0 EOF",
            "1: FLOCK  ADVISORY  READ  4711 fe:0a:131076 0 EOF",
            "1: -> FLOCK  ADVISORY  WRITE 4711 fe:0a:131076 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 4711 fe:131076 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 0 fe:0a:131076 0 EOF",
            "1: FLOCK  ADVISORY  WRITE -1 fe:0a:131076 0 EOF",
        ] {
            assert_eq!(Lock::parse(other), None, "{other}");
        }
    }

    /// What is found where these processes hold the lock, with the taker of each, and those are hidden.
    fn decided(
        takers: &[i32],
        likely: &[i32],
        written: Option<i32>,
        holds: &[(i32, i32)],
        hidden: &[i32],
    ) -> Option<i32> {
        let look_at = |pid: Pid| {
            let taker = holds.iter().find(|(one, _)| *one == pid.as_raw());
            match taker {
                Some((_, taker)) => Finding::Holds {
                    taker: Pid::from_raw(*taker),
                },
                None if hidden.contains(&pid.as_raw()) => Finding::Hidden,
                None => Finding::HoldsNot,
            }
        };
        let pids = |pids: &[i32]| pids.iter().copied().map(Pid::from_raw).collect::<Vec<_>>();
        let all = pids(&holds.iter().map(|(pid, _)| *pid).collect::<Vec<_>>());
        decide(
            pids(takers).into_iter(),
            pids(likely).into_iter(),
            written.map(Pid::from_raw),
            || all,
            look_at,
        )
        .map(Pid::as_raw)
    }

    #[test]
    fn the_lock_decides_and_not_what_is_written() {
        // Seen by its descriptor, or closed to us.
        assert_eq!(decided(&[1], &[1], Some(1), &[(1, 1)], &[]), Some(1));
        assert_eq!(decided(&[1], &[1], Some(2), &[(1, 1)], &[]), Some(1));
        assert_eq!(decided(&[1], &[1], Some(2), &[], &[1, 2]), Some(1));
        assert_eq!(decided(&[1], &[1], None, &[(1, 1)], &[]), Some(1));
    }

    #[test]
    fn a_process_that_took_the_lock_and_has_it_no_more_is_not_the_holder() {
        // Its pid may be another's by now. Who has the lock is written in the file, or found.
        assert_eq!(decided(&[1], &[1], Some(2), &[(2, 1)], &[]), Some(2));
        assert_eq!(decided(&[1], &[1], Some(1), &[(2, 1)], &[]), Some(2));
        assert_eq!(decided(&[1], &[1], Some(1), &[], &[]), None);
        // Nobody knows which of the two is the server.
        assert_eq!(decided(&[1], &[1], Some(1), &[(2, 1), (3, 1)], &[]), None);
    }

    #[test]
    fn where_the_table_has_other_numbers_the_descriptors_decide() {
        assert_eq!(decided(&[], &[4, 1], Some(2), &[(1, 1)], &[2]), Some(1));
        assert_eq!(decided(&[], &[], Some(2), &[(3, 1), (1, 1)], &[2]), Some(1));
        // One that is like it by its inode alone, and cannot be seen, is nobody.
        assert_eq!(decided(&[], &[4], Some(2), &[], &[4]), None);
    }

    #[test]
    fn what_is_written_counts_where_nothing_else_is_known() {
        assert_eq!(decided(&[], &[], Some(2), &[], &[2]), Some(2));
        assert_eq!(decided(&[], &[], Some(2), &[], &[]), None);
        assert_eq!(decided(&[], &[], None, &[], &[]), None);
    }

    #[test]
    fn our_own_lock_is_found() {
        let path = std::env::temp_dir().join(format!("start_server-locks-{}", getpid()));
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(&path);
        let lock = Flock::lock(file.unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        assert_eq!(holder(&lock, None).unwrap(), Some(getpid()));
        let file = lock.metadata().unwrap();
        let taker = getpid();
        assert_eq!(look_at(taker, &file), Finding::Holds { taker });
        let file = lock.unlock().map_err(|_| "still locked").unwrap();
        assert_eq!(holder(&file, Some(getpid())).unwrap(), None);
        fs::remove_file(path).unwrap();
    }
}
