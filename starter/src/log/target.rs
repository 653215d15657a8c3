//! The target of lines besides syslog, written to in a way that its reader can never block us.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage, bytes, is_for_reading};

/// How much is queued for a log command that does not read before workers are no longer read, in bytes.
const MOST_WAITING: usize = 1 << 20;

/// The same for our own lines, which need not be lost along with theirs.
const MOST_WITH_OURS: usize = 8 << 20;

/// The one target for lines.
pub enum Target {
    /// Standard error.
    Inherited,
    /// Standard error too, if its reader may stop reading: a terminal, a pipe or a socket.
    Paced {
        stderr: File,
        waiting: VecDeque<u8>,
        /// It gets lines of workers too.
        has_workers: bool,
    },
    File {
        file: File,
        /// It ends with part of a line, after which there was no room.
        is_torn: bool,
    },
    /// Our own end of a log command's pipe, non-blocking: the workers' end blocks.
    Command {
        pipe: File,
        waiting: VecDeque<u8>,
        /// Workers write to the pipe themselves.
        is_shared: bool,
    },
}

/// A [`Target`] on its way to the next program, with what is queued.
#[derive(Debug, Serialize, Deserialize)]
pub enum PackedTarget {
    /// The next program inherits it as well, and finds out itself whether its reader may stop reading.
    StandardError {
        #[serde(with = "bytes")]
        waiting: Vec<u8>,
    },
    File {
        file: Carried,
        is_torn: bool,
    },
    Command {
        pipe: Carried,
        #[serde(with = "bytes")]
        waiting: Vec<u8>,
    },
}

impl Target {
    /// Standard error as inherited, but unable to block the service.
    pub fn inherited(has_workers: bool) -> Target {
        let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned().map(File::from) else {
            return Target::Inherited;
        };
        let Ok(kind) = stderr.metadata().map(|there| there.file_type()) else {
            return Target::Inherited;
        };
        if !(kind.is_fifo() || kind.is_socket() || stderr.is_terminal()) {
            return Target::Inherited;
        }
        // If possible, opens a new description of the pipe or terminal, non-blocking for us alone: a worker may write
        // between our check for room and our write. That fails if it belongs to another user.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let own = match kind.is_socket() {
            false => OpenOptions::new()
                .write(true)
                .custom_flags(flags.bits())
                .open(format!("/proc/self/fd/{}", stderr.as_raw_fd()))
                .unwrap_or(stderr),
            true => stderr,
        };
        Target::Paced {
            stderr: own,
            waiting: VecDeque::new(),
            has_workers,
        }
    }

    pub fn file(file: File) -> Target {
        Target::File {
            file,
            is_torn: false,
        }
    }

    pub fn command(pipe: File, is_shared: bool) -> Target {
        Target::Command {
            pipe,
            waiting: VecDeque::new(),
            is_shared,
        }
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedTarget {
        let copied = |waiting: &VecDeque<u8>| waiting.iter().copied().collect();
        match self {
            Target::Inherited => PackedTarget::StandardError {
                waiting: Vec::new(),
            },
            Target::Paced { waiting, .. } => PackedTarget::StandardError {
                waiting: copied(waiting),
            },
            Target::File { file, is_torn } => PackedTarget::File {
                file: luggage.put(file),
                is_torn: *is_torn,
            },
            Target::Command { pipe, waiting, .. } => PackedTarget::Command {
                pipe: luggage.put(pipe),
                waiting: copied(waiting),
            },
        }
    }

    /// What the last program has packed, and how many lines are lost because standard error can no longer be written to in
    /// a way that does not block.
    pub fn unpack(packed: PackedTarget, is_shared: bool, has_workers: bool) -> (Target, u64) {
        match packed {
            PackedTarget::StandardError { waiting } => {
                Target::inherited(has_workers).with_queue(waiting)
            }
            PackedTarget::File { file, is_torn } => {
                let file = file.take().into();
                (Target::File { file, is_torn }, 0)
            }
            PackedTarget::Command { pipe, waiting } => {
                Target::command(pipe.take().into(), is_shared).with_queue(waiting)
            }
        }
    }

    /// With these bytes as its queue. Returns how many lines are lost if it has none.
    fn with_queue(mut self, bytes: Vec<u8>) -> (Target, u64) {
        match &mut self {
            Target::Inherited | Target::File { .. } => {
                let lost = count(&bytes);
                return (self, lost);
            }
            Target::Paced { waiting, .. } | Target::Command { waiting, .. } => {
                *waiting = bytes.into();
            }
        }
        (self, 0)
    }

    /// It is a file that was lost on the way from the last program.
    pub fn is_lost(&self) -> bool {
        matches!(self, Target::File { file, .. } if is_for_reading(file))
    }

    pub fn is_standard_error(&self) -> bool {
        matches!(self, Target::Inherited | Target::Paced { .. })
    }

    /// Writes lines of ours, or queues them; returns how many are lost.
    pub fn write_own(&mut self, lines: &[u8]) -> u64 {
        match self {
            Target::Inherited => match io::stderr().write_all(lines) {
                Ok(()) => 0,
                Err(_) => count(lines),
            },
            Target::File { file, is_torn } => append(file, is_torn, lines),
            Target::Command { waiting, .. } | Target::Paced { waiting, .. } => {
                if waiting.len() + lines.len() > MOST_WITH_OURS {
                    return count(lines);
                }
                waiting.extend(lines);
                self.flush()
            }
        }
    }

    /// The same for lines of workers; what cannot be written at once is queued until [`Target::flush`].
    pub fn write_of_workers(&mut self, lines: &[u8]) -> u64 {
        match self {
            Target::Inherited => self.write_own(lines),
            Target::File { file, is_torn } => append(file, is_torn, lines),
            Target::Command { waiting, .. } | Target::Paced { waiting, .. } => {
                waiting.extend(lines);
                0
            }
        }
    }

    /// Writes what is queued, as far as that does not block. Returns how many lines are lost because nothing will ever read
    /// them.
    pub fn flush(&mut self) -> u64 {
        match self {
            Target::Inherited | Target::File { .. } => 0,
            Target::Paced {
                stderr, waiting, ..
            } => flush_stderr(stderr, waiting),
            Target::Command {
                pipe,
                waiting,
                is_shared,
            } => {
                flush_command(pipe, waiting, *is_shared);
                0
            }
        }
    }

    /// How much is queued, in bytes.
    pub fn waiting(&self) -> usize {
        match self {
            Target::Inherited | Target::File { .. } => 0,
            Target::Paced { waiting, .. } | Target::Command { waiting, .. } => waiting.len(),
        }
    }

    /// The descriptor to wait for until more can be written.
    pub fn wants_to_write(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Target::Paced {
                stderr: file,
                waiting,
                ..
            }
            | Target::Command {
                pipe: file,
                waiting,
                ..
            } if !waiting.is_empty() => Some(file.as_fd()),
            _ => None,
        }
    }

    /// Its reader must read before workers are read again.
    pub fn is_congested(&self) -> bool {
        self.of_workers()
            .is_some_and(|waiting| waiting.len() >= MOST_WAITING)
    }

    /// Whether lines of workers are queued, or were.
    pub fn is_behind(&self) -> bool {
        self.of_workers().is_some_and(|waiting| !waiting.is_empty())
    }

    fn of_workers(&self) -> Option<&VecDeque<u8>> {
        match self {
            Target::Command { waiting, .. }
            | Target::Paced {
                waiting,
                has_workers: true,
                ..
            } => Some(waiting),
            Target::Paced { .. } | Target::Inherited | Target::File { .. } => None,
        }
    }
}

fn flush_command(mut pipe: &File, waiting: &mut VecDeque<u8>, is_shared: bool) {
    while !waiting.is_empty() {
        let all = &*waiting.make_contiguous();
        let share = if is_shared { at_once(all) } else { all };
        match pipe.write(share) {
            Ok(written) => drop(waiting.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A full pipe: the rest is queued until it can be written.
            Err(_) => return,
        }
    }
}

fn flush_stderr(mut stderr: &File, waiting: &mut VecDeque<u8>) -> u64 {
    let is_terminal = stderr.is_terminal();
    while !waiting.is_empty() && is_ready(stderr) {
        match stderr.write(piece(waiting.make_contiguous(), is_terminal)) {
            Ok(written) => drop(waiting.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A worker has filled it in the meantime.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => {
                let lost = count(waiting.make_contiguous());
                waiting.clear();
                return lost;
            }
        }
    }
    0
}

/// Writes a line for anyone looking. It never blocks: a terminal or pipe that accepts nothing more does not get it.
pub fn write_if_ready(mut file: &File, line: &str) {
    let line = format!("{line}\n");
    let (mut left, is_terminal) = (line.as_bytes(), file.is_terminal());
    while !left.is_empty() && is_ready(file) {
        match file.write(piece(left, is_terminal)) {
            Ok(written) => left = &left[written..],
            // If the reader is gone, nobody misses it.
            Err(_) => return,
        }
    }
}

/// As much as can be written without blocking when there is room. A pipe then has room for a page. A terminal has room for
/// 256 bytes or for none, and after part of them it may have none again: the newline, which it writes separately, must not
/// be in one write with the line.
fn piece(lines: &[u8], is_terminal: bool) -> &[u8] {
    const ROOM: usize = 256;
    if !is_terminal {
        return at_once(lines);
    }
    let most = lines.len().min(ROOM);
    match lines[..most].iter().position(|byte| *byte == b'\n') {
        Some(0) => &lines[..1],
        Some(end) => &lines[..end],
        None => &lines[..most],
    }
}

/// Whether a line can be written without blocking on the reader.
fn is_ready(file: &File) -> bool {
    let mut source = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    let now = Some(TimeSpec::from_duration(std::time::Duration::ZERO));
    ppoll(&mut source, now, None) == Ok(1)
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Appends whole lines to a file and returns how many are lost; a line that was cut is lost too.
fn append(file: &mut File, is_torn: &mut bool, lines: &[u8]) -> u64 {
    // The next line must not continue one that was cut.
    if *is_torn && file.write_all(b"\n").is_err() {
        return count(lines);
    }
    *is_torn = false;
    let mut written = 0;
    while written < lines.len() {
        match file.write(&lines[written..]) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let (done, lost) = lines.split_at(written);
    *is_torn = done.last().is_some_and(|byte| *byte != b'\n');
    count(lost)
}

/// As many lines as a pipe takes atomically (pipe(7)), so that no other writer's line gets into the middle of one.
fn at_once(lines: &[u8]) -> &[u8] {
    let most = lines.len().min(libc::PIPE_BUF);
    let end = lines[..most].iter().rposition(|byte| *byte == b'\n');
    match end.or_else(|| lines.iter().position(|byte| *byte == b'\n')) {
        Some(end) => &lines[..=end],
        None => lines,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;
    use crate::log::tests::on_its_way;

    fn pipe() -> (File, File) {
        let (reader, writer) = std::io::pipe().unwrap();
        let ends = [OwnedFd::from(reader), OwnedFd::from(writer)];
        for end in &ends {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        }
        let [reader, writer] = ends.map(File::from);
        (reader, writer)
    }

    fn exec(target: Target) -> Target {
        let packed = on_its_way(&target.pack(&mut Luggage::default()));
        let (next, lost) = Target::unpack(packed, true, true);
        assert_eq!(lost, 0);
        next
    }

    /// What is in the pipe now.
    fn read(mut reader: &File, all: &mut Vec<u8>) {
        let error = reader.read_to_end(all).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_queue_of_a_log_command_goes_on_with_the_next_program() {
        let (reader, writer) = pipe();
        let mut target = Target::command(writer, true);
        let mut written = Vec::new();
        for number in 0..100_000 {
            written.extend(format!("{number}: gr\u{fc}\u{df}e \u{1f600}\n").into_bytes());
        }
        assert_eq!(target.write_of_workers(&written), 0);
        target.flush();
        let waiting = target.waiting();
        assert!((MOST_WAITING..written.len()).contains(&waiting));
        let mut target = exec(target);
        assert_eq!(target.waiting(), waiting);
        assert!(target.is_congested());
        assert!(matches!(
            target,
            Target::Command {
                is_shared: true,
                ..
            }
        ));
        let mut found = Vec::new();
        while target.wants_to_write().is_some() {
            read(&reader, &mut found);
            target.flush();
        }
        read(&reader, &mut found);
        assert!(found == written);
    }

    #[test]
    fn the_next_program_ends_a_line_that_was_cut() {
        let (reader, file) = pipe();
        let is_torn = true;
        let mut target = exec(Target::File { file, is_torn });
        target.write_own(b"next\n");
        let mut target = exec(target);
        target.write_own(b"last\n");
        let mut found = Vec::new();
        read(&reader, &mut found);
        assert_eq!(found, b"\nnext\nlast\n");
    }

    #[test]
    fn what_waits_for_standard_error_is_written_or_counted() {
        let (reader, stderr) = pipe();
        let waiting = b"1\n2\n";
        let paced = Target::Paced {
            stderr,
            waiting: waiting.to_vec().into(),
            has_workers: true,
        };
        let packed = on_its_way(&paced.pack(&mut Luggage::default()));
        let packed = match packed {
            PackedTarget::StandardError { waiting } => waiting,
            PackedTarget::File { .. } | PackedTarget::Command { .. } => Vec::new(),
        };
        assert_eq!(packed, waiting);
        // As if it had just been found.
        let (mut paced, lost) = paced.with_queue(packed.clone());
        assert_eq!((lost, paced.flush()), (0, 0));
        let mut found = Vec::new();
        read(&reader, &mut found);
        assert_eq!(found, waiting);
        assert_eq!(Target::Inherited.with_queue(packed).1, 2);
        assert!(exec(Target::Inherited).is_standard_error());
    }
}
