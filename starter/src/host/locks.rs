//! Which process holds an exclusive lock on a file (flock(2)), whatever the file says.
//!
//! The kernel shows this in two places, and neither is sufficient alone:
//!
//! - /proc/locks has a line for each lock, with the pid of the process that took it. That process may be gone and have
//!   left its descriptor to a child, and another process may have its pid. And on some file systems (btrfs, overlayfs)
//!   the device, or even the inode, is not the one that stat(2) reports; the device is that of the mount.
//! - /proc/PID/fdinfo/FD has the same line for each descriptor that has the lock. But other users cannot read it, and
//!   if the process has dropped privileges, only root can.
//!
//! Both know only the pid namespace of whoever mounted /proc, and the namespaces inside it. A lock that was taken by a
//! process outside has no line in the first, and pid 0 in the second. So a pid from another source, such as the one in
//! the file, never counts by itself: in another container it belongs to another process.

use std::cell::Cell;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;

use super::proc;

/// Who holds a lock, as far as that can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// This process, by its pid in our pid namespace. It may live in an inner one.
    Process(Pid),
    /// The kernel names this process, but we cannot read its descriptors: it may merely have inherited the pid of a
    /// holder that is gone.
    Hidden(Pid),
    /// No process in our pid namespace or in one inside it.
    Elsewhere,
    /// Several processes, or one that cannot be seen.
    Unknown,
    /// There is no /proc, or it shows another pid namespace, whose pids mean other processes here.
    NoProc,
}

/// Whether one process has the lock, as far as its descriptors show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    /// One of its descriptors has the lock. `taker` is the process that took it, and may be gone by now; `None` if the
    /// kernel knows no pid for it in this pid namespace.
    Holds { taker: Option<Pid> },
    /// It has no such descriptor, or there is no such process.
    HoldsNot,
    /// Its descriptors cannot be read.
    Hidden,
}

/// How much of the table of locks is read, in bytes: some ten thousand locks. Other processes can hold any number, and
/// the more there are, the longer the kernel takes for each.
const LARGEST_TABLE: u64 = 1 << 20;

/// How many descriptors are examined, and how long: other processes can open any number of those, too, and of some of them
/// the kernel tells as much as their owner likes.
const MOST_DESCRIPTORS: u32 = 20_000;
const LONGEST_SEARCH: Duration = Duration::from_secs(2);

/// What is left of these bounds.
struct Budget {
    descriptors: Cell<u32>,
    until: Instant,
}

impl Budget {
    fn new(descriptors: u32) -> Budget {
        Budget {
            descriptors: Cell::new(descriptors),
            until: Instant::now() + LONGEST_SEARCH,
        }
    }

    /// Whether one more descriptor may be examined.
    fn spend(&self) -> bool {
        let left = self.descriptors.get();
        self.descriptors.set(left.saturating_sub(1));
        left > 0 && Instant::now() < self.until
    }
}

/// How often a holder that is not found is looked for. The kernel shows the table of locks a page at a time, and a line is
/// missing if another lock before it is released between two pages.
const MOST_LOOKS: usize = 5;

/// How much of it is certainly from one moment, in bytes: a page, less what a line may need.
const AT_ONCE: usize = 4096 - 256;

/// The size of a read from the table of locks, in bytes: the kernel shows no more than a page at once, and what one read
/// returns is from one moment.
const PORTION: usize = 64 * 1024;

/// Who has locked the file. `written` is the pid in the file: it shortens the search and decides between several
/// processes that have the lock, but never makes one without the lock the holder.
///
/// # Errors
/// When the file's own device and inode cannot be read.
pub fn holder(file: &File, written: Option<Pid>) -> io::Result<Holder> {
    if !proc::shows_our_namespace() {
        return Ok(Holder::NoProc);
    }
    let budget = Budget::new(MOST_DESCRIPTORS);
    for _ in 1..MOST_LOOKS {
        let look = look_for_holder(file, written, &budget)?;
        let is_found = !matches!(look.holder, Holder::Elsewhere | Holder::Unknown);
        if is_found || !look.may_have_missed {
            return Ok(look.holder);
        }
    }
    Ok(look_for_holder(file, written, &budget)?.holder)
}

/// What one look has found.
struct Look {
    holder: Holder,
    /// Whether the table of locks may have a line for the file that was not seen.
    may_have_missed: bool,
}

fn look_for_holder(file: &File, written: Option<Pid>, budget: &Budget) -> io::Result<Look> {
    let mount = device_of_mount(file);
    let file = file.metadata()?;
    // By far the most common case: the server has written its pid, has taken the lock itself, and lets us see its
    // descriptors.
    if let Some(pid) = written
        && look_at(pid, &file, budget) == (Finding::Holds { taker: written })
    {
        return Ok(Look {
            holder: Holder::Process(pid),
            may_have_missed: false,
        });
    }
    let device = (major(file.dev()), minor(file.dev()));
    // Without it, only the descriptors can tell.
    let table = read_table().ok();
    let is_whole = table
        .as_ref()
        .is_some_and(|table| (table.len() as u64) < LARGEST_TABLE);
    let lines = || table.as_deref().unwrap_or_default().lines();
    let locks = || {
        lines()
            .filter_map(Lock::parse)
            .filter(|lock| lock.inode == file.ino())
    };
    let length = table.as_ref().map_or(0, String::len);
    let may_have_missed = is_whole && length > AT_ONCE && locks().next().is_none();
    let holder = decide(
        locks()
            .filter(|lock| lock.device == mount.unwrap_or(device))
            .filter_map(|lock| lock.taker),
        locks().filter_map(|lock| lock.taker),
        written,
        Absence {
            from_table: is_whole && locks().next().is_none(),
            is_proof: mount == Some(device),
        },
        all_processes,
        |pid| look_at(pid, &file, budget),
    );
    Ok(Look {
        holder,
        may_have_missed,
    })
}

/// What it means if the table of locks has no line for a file.
#[derive(Debug, Clone, Copy)]
struct Absence {
    /// The whole table was read, and it has none.
    from_table: bool,
    /// The table would show the file with the device that stat(2) reports, so the absence of a line is proof.
    is_proof: bool,
}

/// The rule, from the strongest evidence to the weakest.
fn decide(
    takers: impl Iterator<Item = Pid>,
    mut likely: impl Iterator<Item = Pid>,
    written: Option<Pid>,
    absence: Absence,
    others: impl FnOnce() -> Vec<Pid>,
    look_at: impl Fn(Pid) -> Finding,
) -> Holder {
    let holds = |pid: &Pid| matches!(look_at(*pid), Finding::Holds { .. });
    // The kernel names this process for this very file, and nothing shows that it no longer has the lock.
    let mut found = takers.map(|pid| (pid, look_at(pid)));
    match found.find(|(_, finding)| *finding != Finding::HoldsNot) {
        Some((taker, Finding::Hidden)) => return Holder::Hidden(taker),
        Some((taker, _)) => return Holder::Process(taker),
        None => {}
    }
    if let Some(holder) = written.filter(holds).or_else(|| likely.find(holds)) {
        return Holder::Process(holder);
    }
    let mut some_hide = false;
    let mut found = Vec::new();
    for pid in others() {
        match look_at(pid) {
            Finding::Holds { taker } => found.push((pid, taker)),
            Finding::Hidden => some_hide = true,
            Finding::HoldsNot => {}
        }
    }
    match (
        found.iter().find(|(pid, taker)| Some(*pid) == *taker),
        &found[..],
    ) {
        (Some((taker, _)), _) => Holder::Process(*taker),
        // Another process took the lock and left it to this one.
        (None, [(only, _)]) => Holder::Process(*only),
        (None, []) if absence.from_table && (absence.is_proof || !some_hide) => Holder::Elsewhere,
        // A process hides its descriptors, or several have the lock and none of them took it.
        (None, _) => Holder::Unknown,
    }
}

/// The device of the file system that the file is on, as the table of locks and /proc/self/mountinfo show it. Unlike
/// the one that stat(2) reports, it is the same everywhere on a btrfs or an overlay.
fn device_of_mount(file: &File) -> Option<(u64, u64)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mut fields = info.lines().filter_map(|line| line.strip_prefix("mnt_id:"));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    device_of(fields.next()?.trim(), &mounts)
}

/// `27 1 254:0 / / rw,relatime - ext4 /dev/vda rw` is mount 27, of device 254:0 (proc_pid_mountinfo(5)).
fn device_of(mount: &str, mounts: &str) -> Option<(u64, u64)> {
    let device = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        (words.next()? == mount).then(|| words.nth(1))?
    })?;
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// An exclusive lock by flock(2), as /proc/locks and fdinfo show it (proc_locks(5)).
#[derive(Debug, PartialEq, Eq)]
struct Lock {
    /// `None` if it has no pid in our pid namespace.
    taker: Option<Pid>,
    device: (u64, u64),
    inode: u64,
}

impl Lock {
    /// `1: FLOCK  ADVISORY  WRITE 4711 fe:00:131076 0 EOF`; a process waiting for a lock has `->` after the number.
    fn parse(line: &str) -> Option<Lock> {
        let mut words = line.split_whitespace().skip(1);
        let (kind, _, access) = (words.next()?, words.next()?, words.next()?);
        let is_exclusive = (kind, access) == ("FLOCK", "WRITE");
        let taker: i32 = words.next()?.parse().ok()?;
        let mut place = words.next()?.split(':');
        let mut hexadecimal = || u64::from_str_radix(place.next()?, 16).ok();
        let device = (hexadecimal()?, hexadecimal()?);
        let lock = Lock {
            taker: (taker > 0).then(|| Pid::from_raw(taker)),
            device,
            inode: place.next()?.parse().ok()?,
        };
        is_exclusive.then_some(lock)
    }
}

/// The start of the table of locks. A `read_to_string` would begin with a few bytes at a time.
fn read_table() -> io::Result<String> {
    let mut file = File::open("/proc/locks")?.take(LARGEST_TABLE);
    let mut table = Vec::new();
    let mut portion = vec![0; PORTION];
    loop {
        match file.read(&mut portion) {
            Ok(0) => break,
            Ok(length) => table.extend(&portion[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    String::from_utf8(table).map_err(io::Error::other)
}

/// Examines the descriptors of one process. Once the budget is spent, a process counts as hidden.
fn look_at(pid: Pid, file: &Metadata, budget: &Budget) -> Finding {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let entries = match fs::read_dir(directory.join("fdinfo")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Finding::Hidden,
        // A /proc that hides other users' processes (hidepid, proc(5)) claims that there is none.
        Err(_) if kill(pid, None) == Err(Errno::EPERM) => return Finding::Hidden,
        Err(_) => return Finding::HoldsNot,
    };
    for entry in entries {
        // Some kernels allow opening the directory but not reading it.
        let Ok(entry) = entry else {
            return Finding::Hidden;
        };
        if !budget.spend() {
            return Finding::Hidden;
        }
        // A pid file has a path. What has none may have much to tell: epoll lists everything that it watches.
        let link = fs::read_link(directory.join("fd").join(entry.file_name()));
        if link.is_ok_and(|target| target.is_relative()) {
            continue;
        }
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
        // Only for a descriptor with a lock: the process's other files may be on a file system that does not respond.
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
            taker: Some(Pid::from_raw(4711)),
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
            "1: FLOCK  ADVISORY  WRITE x fe:0a:131076 0 EOF",
        ] {
            assert_eq!(Lock::parse(other), None, "{other}");
        }
        for unknown in ["0", "-1"] {
            let line = line.replace("4711", unknown);
            assert_eq!(Lock::parse(&line).unwrap().taker, None);
        }
    }

    #[test]
    fn the_device_of_a_mount_is_read() {
        let mounts =
            "2 1 0:21 / /proc rw - proc proc rw\n27 2 254:3 / / rw,discard - ext4 /dev/vda rw\n";
        assert_eq!(device_of("27", mounts), Some((254, 3)));
        assert_eq!(device_of("2", mounts), Some((0, 21)));
        assert_eq!(device_of("7", mounts), None);
    }

    const LISTED: Absence = Absence {
        from_table: false,
        is_proof: true,
    };
    const UNLISTED: Absence = Absence {
        from_table: true,
        is_proof: true,
    };

    /// The holder that is found if the processes in `holds` have the lock, each with its taker (0: not known here), and
    /// those in `hidden` cannot be seen.
    fn decided(
        takers: &[i32],
        likely: &[i32],
        written: Option<i32>,
        holds: &[(i32, i32)],
        hidden: &[i32],
    ) -> Option<i32> {
        match found(takers, likely, written, LISTED, holds, hidden) {
            Holder::Process(pid) | Holder::Hidden(pid) => Some(pid.as_raw()),
            _ => None,
        }
    }

    fn found(
        takers: &[i32],
        likely: &[i32],
        written: Option<i32>,
        absence: Absence,
        holds: &[(i32, i32)],
        hidden: &[i32],
    ) -> Holder {
        let look_at = |pid: Pid| {
            let taker = holds.iter().find(|(one, _)| *one == pid.as_raw());
            match taker {
                Some((_, taker)) => Finding::Holds {
                    taker: (*taker > 0).then(|| Pid::from_raw(*taker)),
                },
                None if hidden.contains(&pid.as_raw()) => Finding::Hidden,
                None => Finding::HoldsNot,
            }
        };
        let pids = |pids: &[i32]| pids.iter().copied().map(Pid::from_raw).collect::<Vec<_>>();
        let mut all = pids(&holds.iter().map(|(pid, _)| *pid).collect::<Vec<_>>());
        all.extend(pids(hidden));
        decide(
            pids(takers).into_iter(),
            pids(likely).into_iter(),
            written.map(Pid::from_raw),
            absence,
            || all,
            look_at,
        )
    }

    #[test]
    fn the_lock_decides_and_not_what_is_written() {
        // Its descriptors show the lock, or are closed to us.
        assert_eq!(decided(&[1], &[1], Some(1), &[(1, 1)], &[]), Some(1));
        assert_eq!(decided(&[1], &[1], Some(2), &[(1, 1)], &[]), Some(1));
        assert_eq!(decided(&[1], &[1], Some(2), &[], &[1, 2]), Some(1));
        assert_eq!(decided(&[1], &[1], None, &[(1, 1)], &[]), Some(1));
    }

    #[test]
    fn a_process_that_took_the_lock_and_has_it_no_more_is_not_the_holder() {
        // Another process may have its pid by now. The holder is the one in the file, or is found by its descriptors.
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
        // A taker that only the inode suggests, and that cannot be seen, does not count.
        assert_eq!(decided(&[], &[4], Some(2), &[], &[4]), None);
    }

    #[test]
    fn what_is_written_is_never_taken_for_the_holder_that_hides() {
        // In another container this number is somebody else's.
        assert_eq!(decided(&[], &[], Some(2), &[], &[2]), None);
        assert_eq!(decided(&[], &[2], Some(2), &[], &[2]), None);
        assert_eq!(decided(&[], &[], Some(2), &[], &[]), None);
        assert_eq!(decided(&[], &[], None, &[], &[]), None);
    }

    #[test]
    fn a_lock_that_nobody_here_holds_is_held_elsewhere() {
        let unsure = Absence {
            is_proof: false,
            ..UNLISTED
        };
        assert_eq!(
            found(&[], &[], Some(2), UNLISTED, &[], &[2]),
            Holder::Elsewhere
        );
        // The table might list it with other numbers: then the hidden process might hold it.
        assert_eq!(found(&[], &[], Some(2), unsure, &[], &[2]), Holder::Unknown);
        assert_eq!(
            found(&[], &[], Some(2), unsure, &[], &[]),
            Holder::Elsewhere
        );
        // A process has it that did not take it.
        let left = [(3, 0)];
        assert_eq!(
            found(&[], &[], Some(2), UNLISTED, &left, &[]),
            Holder::Process(Pid::from_raw(3))
        );
        let several = [(3, 0), (4, 0)];
        assert_eq!(
            found(&[], &[], None, UNLISTED, &several, &[]),
            Holder::Unknown
        );
        assert_eq!(found(&[], &[], None, LISTED, &[], &[]), Holder::Unknown);
    }

    #[test]
    fn one_that_the_kernel_names_and_that_hides_is_not_certain() {
        let pid = Pid::from_raw(1);
        assert_eq!(
            found(&[1], &[1], Some(1), LISTED, &[], &[1]),
            Holder::Hidden(pid)
        );
        assert_eq!(
            found(&[1], &[1], Some(1), LISTED, &[(1, 1)], &[]),
            Holder::Process(pid)
        );
    }

    #[test]
    fn our_own_lock_is_found() {
        let path = std::env::temp_dir().join(format!("start_server-locks-{}", getpid()));
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(&path);
        let lock = Flock::lock(file.unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        assert_eq!(holder(&lock, None).unwrap(), Holder::Process(getpid()));
        let file = lock.metadata().unwrap();
        let taker = Some(getpid());
        assert_eq!(
            look_at(getpid(), &file, &Budget::new(1000)),
            Finding::Holds { taker }
        );
        assert_eq!(look_at(getpid(), &file, &Budget::new(0)), Finding::Hidden);
        let late = Budget {
            until: Instant::now(),
            ..Budget::new(1000)
        };
        assert_eq!(look_at(getpid(), &file, &late), Finding::Hidden);
        let file = lock.unlock().map_err(|_| "still locked").unwrap();
        assert_eq!(holder(&file, Some(getpid())).unwrap(), Holder::Elsewhere);
        fs::remove_file(path).unwrap();
    }
}
