//! Reading what workers write: a pipe for each stream, so that the writer of every line is known.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Pid, pipe2};
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};
use crate::log::appended::Since;
use crate::log::known::Known;
use crate::log::lines::{Line, LineFormat, Lines};
use crate::words::notice::Severity;
use crate::words::text::{escape, is_plain};

/// How many of the last lines on standard error are kept for the verdict on a worker.
pub const KEPT: usize = 20;

/// The size of a pipe and of a read, in bytes.
const PORTION: usize = 256 * 1024;

/// How many portions of one stream are read at a time, lest signals have to wait.
const MOST_PORTIONS: usize = 4;

/// One of a worker's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    /// Its descriptor in a worker.
    pub fn number(self) -> i32 {
        match self {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        }
    }

    /// The syslog severity of its lines.
    pub fn severity(self) -> Severity {
        match self {
            Stream::Stdout => Severity::Info,
            Stream::Stderr => Severity::Warning,
        }
    }
}

/// Who wrote a line.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub worker: Known,
    pub stream: Stream,
}

/// The pipes for a worker about to be started.
#[derive(Debug, Default)]
pub struct Pipes {
    ours: Vec<(Stream, OwnedFd)>,
    /// The worker's ends, with their descriptor numbers there.
    pub theirs: Vec<(OwnedFd, i32)>,
    /// Where the worker's lines begin in the log file, if it writes them there itself.
    pub since: Option<Since>,
}

/// All pipes of workers that are open.
#[derive(Debug, Default)]
pub struct Capture {
    sources: Vec<Source>,
    /// The last lines of pipes that were closed before their worker ended. That is the normal case: a process's descriptors
    /// are closed before its exit can be observed.
    closed: Vec<(Pid, VecDeque<String>)>,
    /// The read buffer, reused by every read.
    portion: Vec<u8>,
}

#[derive(Debug)]
struct Source {
    pipe: File,
    origin: Origin,
    lines: Lines,
    /// `None` once the worker has ended: its children may write on.
    last: Option<VecDeque<String>>,
}

/// A [`Capture`] on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedCapture {
    sources: Vec<PackedSource>,
    closed: Vec<PackedLast>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedSource {
    pipe: Carried,
    generation: u32,
    /// Where it is missing, nobody asks for it: no line is an object then.
    #[serde(default)]
    slot: usize,
    pid: i32,
    stream: Stream,
    lines: Lines,
    last: Option<VecDeque<String>>,
}

/// The last lines of a worker whose pipe is closed.
#[derive(Debug, Serialize, Deserialize)]
struct PackedLast {
    pid: i32,
    lines: VecDeque<String>,
}

/// What a read yielded.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Something,
    Nothing,
    End,
}

impl Pipes {
    /// Pipes for these streams.
    pub fn new(streams: impl IntoIterator<Item = Stream>) -> nix::Result<Pipes> {
        let mut pipes = Pipes::default();
        for stream in streams {
            let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
            // Non-blocking on our side only: the two ends are separate open file descriptions.
            fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            // Fewer reads for much output. A user with many pipes may not be allowed larger ones.
            let _ = fcntl(&ours, FcntlArg::F_SETPIPE_SZ(PORTION as i32));
            pipes.ours.push((stream, ours));
            pipes.theirs.push((theirs, stream.number()));
        }
        Ok(pipes)
    }
}

impl Capture {
    /// The worker was started, with these pipes, and its lines are for this format.
    pub fn attach(&mut self, worker: Known, pipes: Pipes, format: LineFormat) {
        let sources = pipes.ours.into_iter().map(|(stream, pipe)| Source {
            pipe: pipe.into(),
            origin: Origin { worker, stream },
            lines: Lines::new(format),
            last: (stream == Stream::Stderr).then(VecDeque::new),
        });
        self.sources.extend(sources);
    }

    /// What to wait for until there is something to read.
    pub fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sources.iter().map(|source| source.pipe.as_fd())
    }

    /// Reads a share of what was written, and passes on its lines.
    pub fn read(&mut self, mut each: impl FnMut(&Origin, Line<'_>)) {
        if self.sources.is_empty() {
            // Nothing to read, so not even the buffer is needed.
            return;
        }
        self.portion.resize(PORTION, 0);
        let (portion, closed) = (&mut self.portion, &mut self.closed);
        self.sources.retain_mut(|source| {
            for _ in 0..MOST_PORTIONS {
                match source.read(portion, &mut each) {
                    Found::Something => {}
                    Found::Nothing => return true,
                    Found::End => {
                        closed.extend(
                            source
                                .last
                                .take()
                                .map(|last| (source.origin.worker.pid, last)),
                        );
                        return false;
                    }
                }
            }
            true
        });
    }

    /// The last lines on standard error of a worker that has not ended, as far as they were read.
    pub fn last_lines(&self, pid: Pid) -> Vec<String> {
        let of_open = self
            .sources
            .iter()
            .filter(|one| one.origin.worker.pid == pid);
        let of_open = of_open.filter_map(|one| one.last.as_ref());
        let closed = self.closed.iter().filter(|(one, _)| *one == pid);
        let all = of_open.chain(closed.map(|(_, last)| last));
        all.flatten().cloned().collect()
    }

    /// The worker has ended: reads what it wrote before that, and returns the last lines of its standard error. What its
    /// own children write is still read later.
    pub fn worker_exited(
        &mut self,
        pid: Pid,
        mut each: impl FnMut(&Origin, Line<'_>),
    ) -> Vec<String> {
        if self.sources.is_empty() && self.closed.is_empty() {
            return Vec::new();
        }
        self.portion.resize(PORTION, 0);
        let portion = &mut self.portion;
        let mut last = VecDeque::new();
        if let Some(place) = self.closed.iter().position(|(one, _)| *one == pid) {
            (_, last) = self.closed.swap_remove(place);
        }
        self.sources.retain_mut(|source| {
            if source.origin.worker.pid != pid {
                return true;
            }
            // At most what a pipe can hold: its children may never stop writing.
            let mut found = Found::Something;
            let mut left = 1 + MOST_PORTIONS;
            while found == Found::Something && left > 0 {
                found = source.read(portion, &mut each);
                left -= 1;
            }
            source.end_line(&mut each);
            last.extend(source.last.take().into_iter().flatten());
            found != Found::End
        });
        last.into()
    }

    /// For the next program: what is in the pipes stays there, and what was read of a line that has not ended goes along.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedCapture {
        let sources = self.sources.iter().map(|source| source.pack(luggage));
        let closed = self.closed.iter().map(|(pid, lines)| PackedLast {
            pid: pid.as_raw(),
            lines: lines.clone(),
        });
        PackedCapture {
            sources: sources.collect(),
            closed: closed.collect(),
        }
    }

    /// What the last program has packed.
    pub fn unpack(packed: PackedCapture) -> Capture {
        let closed = packed.closed.into_iter();
        let closed = closed.map(|last| (Pid::from_raw(last.pid), last.lines));
        Capture {
            sources: packed.sources.into_iter().map(Source::unpack).collect(),
            closed: closed.collect(),
            portion: Vec::new(),
        }
    }
}

impl Source {
    fn pack(&self, luggage: &mut Luggage) -> PackedSource {
        PackedSource {
            pipe: luggage.put(&self.pipe),
            generation: self.origin.worker.generation,
            slot: self.origin.worker.slot,
            pid: self.origin.worker.pid.as_raw(),
            stream: self.origin.stream,
            lines: self.lines.clone(),
            last: self.last.clone(),
        }
    }

    fn unpack(packed: PackedSource) -> Source {
        Source {
            pipe: packed.pipe.take().into(),
            origin: Origin {
                worker: Known {
                    generation: packed.generation,
                    slot: packed.slot,
                    pid: Pid::from_raw(packed.pid),
                },
                stream: packed.stream,
            },
            lines: packed.lines,
            last: packed.last,
        }
    }

    fn read(&mut self, portion: &mut [u8], each: &mut impl FnMut(&Origin, Line<'_>)) -> Found {
        match self.pipe.read(portion) {
            Ok(0) => {
                self.end_line(each);
                Found::End
            }
            Ok(length) => {
                let (origin, last) = (&self.origin, &mut self.last);
                self.lines.push(&portion[..length], |line| {
                    each(origin, line);
                    remember(last, line);
                });
                Found::Something
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Found::Something,
            Err(_) => Found::Nothing,
        }
    }

    fn end_line(&mut self, each: &mut impl FnMut(&Origin, Line<'_>)) {
        let (origin, last) = (&self.origin, &mut self.last);
        self.lines.end(|line| {
            each(origin, line);
            remember(last, line);
        });
    }
}

fn remember(last: &mut Option<VecDeque<String>>, Line { text, .. }: Line<'_>) {
    let Some(last) = last else {
        return;
    };
    // The oldest line's memory is reused for the new one.
    let mut kept = match last.len() {
        KEPT => last.pop_front().unwrap_or_default(),
        _ => String::new(),
    };
    kept.clear();
    match is_plain(text.as_bytes()) {
        true => kept.push_str(text),
        // What is safe to show already stays as it is.
        false => drop(escape(text.as_bytes(), usize::MAX, &mut kept)),
    }
    last.push_back(kept);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::log::lines::LONGEST;
    use crate::log::tests::on_its_way;

    const WORKER: Pid = Pid::from_raw(7);
    const GONE: Pid = Pid::from_raw(8);

    /// What a worker writes with.
    fn attached(capture: &mut Capture, generation: u32, pid: Pid, format: LineFormat) -> [File; 2] {
        let mut pipes = Pipes::new(Stream::BOTH).unwrap();
        let mut theirs = std::mem::take(&mut pipes.theirs).into_iter();
        let worker = Known {
            generation,
            slot: 1,
            pid,
        };
        capture.attach(worker, pipes, format);
        [(); 2].map(|()| theirs.next().unwrap().0.into())
    }

    /// All lines of two workers, and the last ones of each.
    fn story(
        format: LineFormat,
        exec: impl Fn(Capture) -> Capture,
    ) -> (Vec<String>, Vec<String>, Vec<String>) {
        let (mut capture, mut lines) = (Capture::default(), Vec::new());
        let mut keep = |origin: &Origin, line: Line<'_>| {
            let Known {
                generation,
                slot,
                pid,
            } = origin.worker;
            let stream = origin.stream.name();
            lines.push(format!("{generation}.{slot}:{pid}:{stream}: {}", line.text));
        };
        let [mut stdout, mut stderr] = attached(&mut capture, 3, WORKER, format);
        let [_, mut gone] = attached(&mut capture, 2, GONE, format);
        gone.write_all(b"last words").unwrap();
        drop(gone);
        stdout.write_all(&[b'x'; LONGEST + 100]).unwrap();
        stderr.write_all(b"one\nhalf of g\xc3").unwrap();
        capture.read(&mut keep);
        // Still in the pipe when the program changes.
        stderr.write_all(b"\xbcte\nthree\x1b\n").unwrap();
        let mut capture = exec(capture);
        stdout.write_all(b"y\n").unwrap();
        capture.read(&mut keep);
        stderr.write_all(b"no end").unwrap();
        let of_gone = capture.worker_exited(GONE, &mut keep);
        let of_worker = capture.worker_exited(WORKER, &mut keep);
        (lines, of_worker, of_gone)
    }

    #[test]
    fn the_next_program_reads_on_in_the_middle_of_a_line() {
        let exec =
            |capture: Capture| Capture::unpack(on_its_way(&capture.pack(&mut Luggage::default())));
        for format in [LineFormat::Text, LineFormat::Json] {
            let (lines, of_worker, of_gone) = story(format, exec);
            let three = match format {
                LineFormat::Text => "3.1:7:stderr: three\\x1B",
                LineFormat::Json => "3.1:7:stderr: three\u{1b}",
            };
            assert!(lines.iter().any(|line| line == three), "{lines:?}");
            // They are shown to people.
            assert_eq!(
                of_worker,
                ["one", "half of g\u{fc}te", "three\\x1B", "no end"]
            );
            assert_eq!(of_gone, ["last words"]);
            assert_eq!(lines[1], "3.1:7:stderr: one");
            assert!(lines.iter().any(|line| line.ends_with("xxxy")));
            assert_eq!(
                (lines, of_worker, of_gone),
                story(format, |capture| capture)
            );
        }
    }
}
