//! The command of `--log-file="| COMMAND"`, which reads the log from a pipe. Both ends of it stay open here: what was
//! written survives the command, and no worker ever writes to a closed pipe.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::{Pid, pipe2};
use serde::{Deserialize, Serialize};

use crate::host::launcher::Handover;
use crate::host::luggage::{Carried, Luggage};
use crate::host::moment::Moment;
use crate::host::process::{detach, reap_child};
use crate::log::target::write_if_ready;
use crate::words::failure::{self, Failure};
use crate::words::notice::Notice;
use crate::words::text::quoted;

/// The shortest time between two starts of a log command.
const RESPAWN: Duration = Duration::from_secs(1);

/// The command, and its pipe.
pub struct LogCommand {
    command: OsString,
    handover: Rc<Handover>,
    read_end: OwnedFd,
    write_end: OwnedFd,
    /// The command's own output; `None` if nobody can see it.
    outputs: Option<(OwnedFd, OwnedFd)>,
    child: Option<Pid>,
    started_at: Moment,
    /// A reader who cannot see the log has been told that the command exits right after its start.
    is_told: bool,
}

/// A [`LogCommand`] on its way to the next program, with what nobody has read yet in its pipe.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedCommand {
    read_end: Carried,
    write_end: Carried,
    outputs: Option<PackedOutputs>,
    child: Option<i32>,
    started_at: Moment,
    is_told: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedOutputs {
    stdout: Carried,
    stderr: Carried,
}

/// Why it cannot be started, for the user.
pub fn cannot_use(command: &OsStr, error: &io::Error) -> Failure {
    let mut shown = OsString::from("|");
    shown.push(command);
    Failure::failed(format!(
        "cannot use --log-file={}: {}",
        quoted(shown),
        failure::cause(error)
    ))
}

impl LogCommand {
    /// Makes the pipe. `attended` is false for a daemon.
    pub fn new(command: &OsStr, handover: Rc<Handover>, attended: bool) -> io::Result<LogCommand> {
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
        let outputs = match attended {
            true => Some((
                io::stdout().as_fd().try_clone_to_owned()?,
                io::stderr().as_fd().try_clone_to_owned()?,
            )),
            false => None,
        };
        Ok(LogCommand {
            command: command.to_owned(),
            handover,
            read_end,
            write_end,
            outputs,
            child: None,
            started_at: Moment::now(),
            is_told: false,
        })
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedCommand {
        PackedCommand {
            read_end: luggage.put(&self.read_end),
            write_end: luggage.put(&self.write_end),
            outputs: self.outputs.as_ref().map(|(stdout, stderr)| PackedOutputs {
                stdout: luggage.put(stdout),
                stderr: luggage.put(stderr),
            }),
            child: self.child.map(Pid::as_raw),
            started_at: self.started_at,
            is_told: self.is_told,
        }
    }

    /// What the last program has packed: this command may be running, and is still our child.
    pub fn unpack(packed: PackedCommand, command: &OsStr, handover: Rc<Handover>) -> LogCommand {
        let outputs = packed.outputs;
        LogCommand {
            command: command.to_owned(),
            handover,
            read_end: packed.read_end.take(),
            write_end: packed.write_end.take(),
            outputs: outputs.map(|outputs| (outputs.stdout.take(), outputs.stderr.take())),
            child: packed.child.map(Pid::from_raw),
            started_at: packed.started_at,
            is_told: packed.is_told,
        }
    }

    /// For workers.
    pub fn write_end(&self) -> BorrowedFd<'_> {
        self.write_end.as_fd()
    }

    /// Another open file description of the same pipe, non-blocking for us alone.
    pub fn own_end(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(format!("/proc/self/fd/{}", self.write_end.as_raw_fd()))
    }

    /// Starts the command.
    pub fn spawn(&mut self) -> io::Result<()> {
        self.started_at = Moment::now();
        let (stdout, stderr) = match &self.outputs {
            Some((stdout, stderr)) => (stdout.try_clone()?.into(), stderr.try_clone()?.into()),
            None => (Stdio::null(), Stdio::null()),
        };
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(&self.command)
            .stdin(self.read_end.try_clone()?)
            .stdout(stdout)
            .stderr(stderr);
        self.handover.apply(&mut command);
        detach(&mut command);
        self.child = Some(Pid::from_raw(command.spawn()?.id().cast_signed()));
        Ok(())
    }

    /// Whether this child was the command.
    pub fn has_exited(&mut self, pid: Pid) -> bool {
        self.child.take_if(|child| *child == pid).is_some()
    }

    /// If the command dies right after its start, the log message about it stays in the pipe that it does not read: shows
    /// the message once on the command's own standard error.
    pub fn show_on_stderr(&mut self, lines: &[String]) {
        let at_once = Moment::now().saturating_since(self.started_at) < RESPAWN;
        if let (true, false, Some((_, stderr))) = (at_once, self.is_told, &self.outputs)
            && let Ok(stderr) = stderr.try_clone()
        {
            write_if_ready(&stderr.into(), &lines.join("\n"));
        }
        self.is_told = at_once;
    }

    /// When [`LogCommand::start_again`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        self.child.is_none().then(|| self.started_at + RESPAWN)
    }

    /// Restarts it if that is due. Returns a failure to report.
    pub fn start_again(&mut self, now: Moment) -> Option<Notice> {
        self.is_due(now).then(|| self.spawn_or_explain())?
    }

    fn is_due(&self, now: Moment) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// At the end something must read what is in the pipe: starts the command once at once, then whenever that is due.
    /// Returns what to report.
    pub fn start_for_the_rest(&mut self, at_once: &mut bool) -> Vec<Notice> {
        let mut notices = Vec::new();
        // Nothing else waits for children any more.
        if let Some(Ok(Some(status))) = self.child.map(reap_child) {
            self.child = None;
            notices.push(Notice::LogCommandDied { status });
        }
        if self.child.is_none() && (std::mem::take(at_once) || self.is_due(Moment::now())) {
            notices.extend(self.spawn_or_explain());
        }
        notices
    }

    /// When it was started, unless it has been seen to exit.
    pub fn running_since(&self) -> Option<Moment> {
        self.child.map(|_| self.started_at)
    }

    /// How many bytes are in the pipe (pipe(7), `FIONREAD`).
    #[expect(unsafe_code, reason = "nix has no FIONREAD")]
    pub fn unread(&self) -> usize {
        let mut unread: libc::c_int = 0;
        // SAFETY: the kernel writes one c_int through the pointer, which outlives the call.
        let asked =
            unsafe { libc::ioctl(self.read_end.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
        match asked {
            0 => usize::try_from(unread).unwrap_or(0),
            _ => 0,
        }
    }

    fn spawn_or_explain(&mut self) -> Option<Notice> {
        let error = self.spawn().err()?;
        Some(Notice::CannotStartLogCommand {
            cause: failure::cause(&error),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::log::tests::on_its_way;

    fn exec(command: LogCommand) -> LogCommand {
        let packed = on_its_way(&command.pack(&mut Luggage::default()));
        let LogCommand {
            command, handover, ..
        } = &command;
        LogCommand::unpack(packed, command, handover.clone())
    }

    /// Waits for the command to exit.
    fn status(command: &mut LogCommand) -> i32 {
        loop {
            let notices = command.start_for_the_rest(&mut false);
            if let Some(Notice::LogCommandDied { status }) = notices.first() {
                return *status;
            }
            assert_eq!(notices, []);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_command_of_the_last_program_is_waited_for_and_its_pipe_stays() {
        let script = OsStr::new("read -r line; echo \"$line\"; echo told >&2; exit 7");
        let mut command = LogCommand::new(script, Rc::default(), false).unwrap();
        let (mut stdout, for_stdout) = std::io::pipe().unwrap();
        let (mut stderr, for_stderr) = std::io::pipe().unwrap();
        command.outputs = Some((for_stdout.into(), for_stderr.into()));
        command.spawn().unwrap();
        command.is_told = true;
        let (child, started_at) = (command.child, command.started_at);
        let mut command = exec(command);
        assert_eq!((command.child, command.is_told), (child, true));
        assert_eq!(command.running_since(), Some(started_at));
        command.own_end().unwrap().write_all(b"1\n2\n").unwrap();
        assert_eq!(status(&mut command), 7 << 8);
        // It has exited, and the next one is due as before.
        let mut command = exec(command);
        assert_eq!((command.unread(), command.running_since()), (2, None));
        assert_eq!(command.deadline(), Some(started_at + RESPAWN));
        assert_eq!(command.start_again(started_at + RESPAWN), None);
        let second = command.child.unwrap();
        assert_eq!(status(&mut command), 7 << 8);
        assert!(!command.has_exited(second));
        assert_eq!(command.unread(), 0);
        drop(command);
        let (mut out, mut err) = (String::new(), String::new());
        stdout.read_to_string(&mut out).unwrap();
        stderr.read_to_string(&mut err).unwrap();
        assert_eq!((out.as_str(), err.as_str()), ("1\n2\n", "told\ntold\n"));
    }
}
