//! What was appended to the log file since a worker was started, where workers write to it themselves: nobody else knows
//! what a worker has said, and reading the file does not disturb it.
//!
//! Other workers write to the same file, so these lines are not the worker's alone.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::lines::{Line, Lines};

/// How much is read, in bytes: the end of what was appended.
const MOST: u64 = 64 * 1024;

/// How many of our own lines are remembered.
const MOST_OWN: usize = 64;

/// Who can read the files in which these lines are shown, besides the user of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readers {
    /// The members of this group.
    pub group: Option<u32>,
    /// Everybody.
    pub all: bool,
}

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// Its device and inode.
    file: (u64, u64),
    offset: u64,
}

/// What is known of the log file.
#[derive(Debug, Default)]
pub struct Appended {
    /// Where the lines of each living worker begin.
    starts: Vec<(Pid, Since)>,
    /// The last of our own, which are nobody's last words.
    own: VecDeque<String>,
}

/// [`Appended`] on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedAppended {
    starts: Vec<PackedStart>,
    own: VecDeque<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedStart {
    pid: i32,
    since: Since,
}

impl Appended {
    /// A worker was started, and its lines come after that.
    pub fn started(&mut self, pid: Pid, since: Since) {
        self.starts.push((pid, since));
    }

    /// It has exited.
    pub fn exited(&mut self, pid: Pid) {
        self.starts.retain(|(one, _)| *one != pid);
    }

    /// We have written this, which may be several lines.
    pub fn wrote(&mut self, text: &str) {
        for line in text.lines() {
            if self.own.len() == MOST_OWN {
                self.own.pop_front();
            }
            self.own.push_back(line.to_owned());
        }
    }

    /// The last lines that others have appended since this worker was started, at most so many, unless somebody could read
    /// them here who cannot read the file.
    pub fn lines(
        &self,
        pid: Pid,
        log: BorrowedFd<'_>,
        most: usize,
        readers: Readers,
    ) -> Vec<String> {
        let mut starts = self.starts.iter().rev();
        let Some((_, since)) = starts.find(|(one, _)| *one == pid) else {
            return Vec::new();
        };
        // It is open for appending alone.
        let read = File::open(format!("/proc/self/fd/{}", log.as_raw_fd()))
            .and_then(|file| read_since(&file, *since, readers));
        let mut all = read.unwrap_or_default();
        all.retain(|line| !self.own.contains(line));
        let first = all.len().saturating_sub(most);
        all.split_off(first)
    }

    /// For the next program.
    pub fn pack(&self) -> PackedAppended {
        let starts = self.starts.iter().map(|(pid, since)| PackedStart {
            pid: pid.as_raw(),
            since: *since,
        });
        PackedAppended {
            starts: starts.collect(),
            own: self.own.clone(),
        }
    }

    /// What the last program has packed.
    pub fn unpack(packed: PackedAppended) -> Appended {
        let starts = packed.starts.into_iter();
        let starts = starts.map(|start| (Pid::from_raw(start.pid), start.since));
        Appended {
            starts: starts.collect(),
            own: packed.own,
        }
    }
}

impl Since {
    /// The end of a regular file.
    pub fn end_of(file: &File) -> Option<Since> {
        let there = file.metadata().ok().filter(Metadata::is_file)?;
        Some(Since {
            file: place(&there),
            offset: there.len(),
        })
    }
}

impl Readers {
    /// Whether all of them can read that file too.
    fn can_read(self, there: &Metadata) -> bool {
        let (of_group, of_all) = (there.mode() & 0o040 != 0, there.mode() & 0o004 != 0);
        let group = self
            .group
            .is_none_or(|group| of_all || of_group && group == there.gid());
        group && (of_all || !self.all)
    }
}

fn place(there: &Metadata) -> (u64, u64) {
    (there.dev(), there.ino())
}

fn read_since(file: &File, since: Since, readers: Readers) -> io::Result<Vec<String>> {
    let there = file.metadata()?;
    // After a rotation the worker writes to another file than we do.
    if place(&there) != since.file || !readers.can_read(&there) {
        return Ok(Vec::new());
    }
    // A file that is shorter was emptied after the start.
    let begin = if there.len() < since.offset {
        0
    } else {
        since.offset
    };
    let from = begin.max(there.len().saturating_sub(MOST));
    let length = usize::try_from(there.len() - from).unwrap_or_default();
    let mut bytes = vec![0; length];
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, from + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    bytes.truncate(read);
    let (mut lines, mut all) = (Lines::default(), Vec::new());
    let mut keep = |line: Line<'_>| all.push(line.text.to_owned());
    lines.push(&bytes, &mut keep);
    lines.end(&mut keep);
    if from > begin && !all.is_empty() {
        // Its beginning is missing.
        all.remove(0);
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs::{OpenOptions, Permissions};
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::log::tests::on_its_way;

    const NOBODY_ELSE: Readers = Readers {
        group: None,
        all: false,
    };

    /// A log file of this test alone, which has no name.
    fn log_file() -> File {
        let name = format!(
            "start-server-appended-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let path = std::env::temp_dir().join(name);
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    fn lines(appended: &Appended, log: &File, readers: Readers) -> Vec<String> {
        appended.lines(Pid::from_raw(7), log.as_fd(), 3, readers)
    }

    #[test]
    fn the_last_lines_since_the_start_are_those_of_others() {
        let (mut log, mut appended) = (log_file(), Appended::default());
        log.write_all(b"before\n").unwrap();
        assert_eq!(lines(&appended, &log, NOBODY_ELSE), [""; 0]);
        appended.started(Pid::from_raw(7), Since::end_of(&log).unwrap());
        appended.wrote("ours\nhint: ours too");
        log.write_all(b"1\n2\nours\n\x1b[2J\nhint: ours too\nno end")
            .unwrap();
        assert_eq!(
            lines(&appended, &log, NOBODY_ELSE),
            ["2", r"\x1B[2J", "no end"]
        );
        // Of much, the end.
        log.write_all(&b"long\n".repeat(100_000)).unwrap();
        assert_eq!(lines(&appended, &log, NOBODY_ELSE), ["long"; 3]);
        // What was emptied and written again.
        log.set_len(0).unwrap();
        log.write_all(b"again\n").unwrap();
        assert_eq!(lines(&appended, &log, NOBODY_ELSE), ["again"]);
        appended.exited(Pid::from_raw(7));
        assert_eq!(lines(&appended, &log, NOBODY_ELSE), [""; 0]);
    }

    #[test]
    fn the_next_program_knows_where_the_lines_of_a_worker_begin() {
        let (mut log, mut appended) = (log_file(), Appended::default());
        log.write_all(b"before\n").unwrap();
        appended.started(Pid::from_raw(7), Since::end_of(&log).unwrap());
        appended.wrote("ours");
        log.write_all(b"1\nours\n").unwrap();
        let mut appended = Appended::unpack(on_its_way(&appended.pack()));
        log.write_all(b"2\n").unwrap();
        assert_eq!(lines(&appended, &log, NOBODY_ELSE), ["1", "2"]);
        appended.exited(Pid::from_raw(7));
        assert_eq!(lines(&appended, &log, NOBODY_ELSE), [""; 0]);
    }

    #[test]
    fn nobody_reads_here_what_is_closed_to_them_there() {
        let (mut log, mut appended) = (log_file(), Appended::default());
        appended.started(Pid::from_raw(7), Since::end_of(&log).unwrap());
        log.write_all(b"secret\n").unwrap();
        let group = log.metadata().unwrap().gid();
        for (mode, readers, shows) in [
            (0o600, NOBODY_ELSE, true),
            (
                0o600,
                Readers {
                    group: Some(group),
                    all: false,
                },
                false,
            ),
            (
                0o640,
                Readers {
                    group: Some(group),
                    all: false,
                },
                true,
            ),
            (
                0o640,
                Readers {
                    group: Some(group + 1),
                    all: false,
                },
                false,
            ),
            (
                0o640,
                Readers {
                    group: Some(group),
                    all: true,
                },
                false,
            ),
            (
                0o644,
                Readers {
                    group: Some(group + 1),
                    all: true,
                },
                true,
            ),
        ] {
            log.set_permissions(Permissions::from_mode(mode)).unwrap();
            let found = lines(&appended, &log, readers);
            assert_eq!(!found.is_empty(), shows, "{mode:o} {readers:?}");
        }
    }
}
