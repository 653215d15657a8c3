//! A shell command that is run again and again until it exits with 0.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};
use serde::{Deserialize, Serialize};

use crate::host::luggage::{self, Carried, Luggage};
use crate::host::process::detach;
use crate::words::text::shortened;

/// How many of a command's last lines of output are kept.
const KEPT: usize = 20;

/// How many bytes are read at a time: a command that floods its output must not hold up the loop.
const PORTION: usize = 64 * 1024;

/// The longest line that is kept, in bytes.
const LONGEST_LINE: usize = 1024;

/// A running command, in a session and a process group of its own. Dropping it kills the group.
#[derive(Debug)]
pub struct Running {
    pid: Pid,
    has_exited: bool,
    output: Output,
}

/// The last lines that a command has written to standard output and standard error.
#[derive(Debug)]
struct Output {
    /// `None` once every writer has closed it.
    pipe: Option<File>,
    lines: VecDeque<Vec<u8>>,
    /// The line that has not ended yet.
    partial: Vec<u8>,
}

/// A running command on its way to the next program, whose child it is then.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedRunning {
    pid: i32,
    has_exited: bool,
    output: PackedOutput,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedOutput {
    pipe: Option<Carried>,
    lines: Vec<PackedLine>,
    partial: PackedLine,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct PackedLine(#[serde(with = "luggage::bytes")] Vec<u8>);

impl Running {
    /// For the next program. Whoever drops the original kills the command nevertheless.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedRunning {
        PackedRunning {
            pid: self.pid.as_raw(),
            has_exited: self.has_exited,
            output: self.output.pack(luggage),
        }
    }

    /// The same command again.
    pub fn unpack(packed: PackedRunning) -> Running {
        Running {
            pid: Pid::from_raw(packed.pid),
            has_exited: packed.has_exited,
            output: Output::unpack(packed.output),
        }
    }

    /// Starts a command; `prepare` sets its environment and directory. The only descriptor of ours that it gets is the
    /// pipe for its output.
    ///
    /// # Errors
    /// Why there is no process.
    pub fn start(command: &OsStr, prepare: impl FnOnce(&mut Command)) -> io::Result<Running> {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(command);
        prepare(&mut shell);
        detach(&mut shell);
        Running::run(shell)
    }

    /// Starts what is detached already.
    ///
    /// # Errors
    /// Why there is no process.
    pub fn run(mut command: Command) -> io::Result<Running> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        command
            .stdin(Stdio::null())
            .stdout(theirs.try_clone()?)
            .stderr(theirs);
        let child = command.spawn()?;
        Ok(Running {
            pid: Pid::from_raw(child.id().cast_signed()),
            has_exited: false,
            output: Output {
                pipe: Some(ours.into()),
                lines: VecDeque::new(),
                partial: Vec::new(),
            },
        })
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Reads a bounded amount of what it has written.
    pub fn read(&mut self) {
        self.output.read();
    }

    /// It has been reaped: kills what is left of its group, which is not signalled again, as the number may be reused.
    pub fn exited(&mut self) {
        self.end_group();
        self.has_exited = true;
        self.output.read();
    }

    /// Kills it and its group. Its exit follows.
    pub fn kill(&self) {
        self.end_group();
    }

    /// Its last lines, oldest first, made safe to show.
    pub fn last_lines(&self) -> Vec<String> {
        let partial = Some(&self.output.partial).filter(|line| !line.is_empty());
        let lines = self.output.lines.iter().chain(partial);
        let lines = lines.map(|line| shortened(OsStr::from_bytes(line)));
        lines.collect()
    }

    /// Its output, as long as it is open.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        self.output.pipe.as_ref().map(AsFd::as_fd)
    }

    fn end_group(&self) {
        if !self.has_exited {
            // It fails only if no process is left in the group.
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end_group();
    }
}

impl Output {
    fn pack(&self, luggage: &mut Luggage) -> PackedOutput {
        let lines = self.lines.iter().cloned().map(PackedLine);
        PackedOutput {
            pipe: self.pipe.as_ref().map(|pipe| luggage.put(pipe)),
            lines: lines.collect(),
            partial: PackedLine(self.partial.clone()),
        }
    }

    fn unpack(packed: PackedOutput) -> Output {
        Output {
            pipe: packed.pipe.map(|pipe| pipe.take().into()),
            lines: packed.lines.into_iter().map(|line| line.0).collect(),
            partial: packed.partial.0,
        }
    }

    fn read(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut portion = vec![0; PORTION];
        match pipe.read(&mut portion) {
            Ok(0) => self.pipe = None,
            Ok(length) => self.take(&portion[..length]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => self.pipe = None,
        }
    }

    fn take(&mut self, portion: &[u8]) {
        for piece in portion.split_inclusive(|byte| *byte == b'\n') {
            let (piece, is_end) = match piece.strip_suffix(b"\n") {
                Some(piece) => (piece, true),
                None => (piece, false),
            };
            let room = LONGEST_LINE.saturating_sub(self.partial.len());
            self.partial.extend(&piece[..piece.len().min(room)]);
            if is_end {
                self.lines.push_back(std::mem::take(&mut self.partial));
                if self.lines.len() > KEPT {
                    self.lines.pop_front();
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::mem::ManuallyDrop;

    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;

    fn read_until(running: &mut Running, expected: &[&str]) {
        while running.last_lines() != expected {
            let source = running.source().unwrap();
            let mut source = [PollFd::new(source, PollFlags::POLLIN)];
            assert_eq!(poll(&mut source, 30_000_u16), Ok(1), "{expected:?}");
            running.read();
        }
    }

    #[test]
    fn the_next_program_reads_on_and_ends_the_command() {
        let command = "echo one; printf 'tw\\377'; kill -STOP $$; echo o; exec sleep 60";
        let mut running = Running::start(command.as_ref(), |_| {}).unwrap();
        read_until(&mut running, &["one", "tw\\xFF"]);
        let running = ManuallyDrop::new(running);
        let text = serde_json::to_string(&running.pack(&mut Luggage::default())).unwrap();
        let mut next = Running::unpack(serde_json::from_str(&text).unwrap());
        let pid = next.pid();
        // It may not have stopped yet.
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
        killpg(pid, Signal::SIGCONT).unwrap();
        read_until(&mut next, &["one", "tw\\xFFo"]);
        drop(next);
        let killed = WaitStatus::Signaled(pid, Signal::SIGKILL, false);
        assert_eq!(waitpid(pid, None).unwrap(), killed);
    }

    #[test]
    fn the_last_lines_are_kept_and_no_line_without_end() {
        let mut output = Output {
            pipe: None,
            lines: VecDeque::new(),
            partial: Vec::new(),
        };
        for number in 0..100 {
            output.take(format!("line {number}\nli").as_bytes());
            output.take(b"ne\n");
        }
        assert_eq!(output.lines.len(), KEPT);
        assert_eq!(output.lines[KEPT - 2], b"line 99");
        assert_eq!(output.lines[KEPT - 1], b"line");
        for _ in 0..100 {
            output.take(&[b'x'; 4096]);
        }
        assert_eq!(output.partial.len(), LONGEST_LINE);
    }
}
