//! The command of `--check`, which is run before a restart as a worker would be, but without a worker's sockets.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::launcher::Change;
use crate::host::luggage::Luggage;
use crate::machine::{Event, FailedCheck};
use crate::ready::command::{PackedRunning, Running};
use crate::words::failure;
use crate::words::start_failure::StartFailure;
use crate::worker::{Blueprint, Seat};

/// The check, and its process while it runs.
#[derive(Debug, Default)]
pub struct Check {
    command: Option<OsString>,
    running: Option<Running>,
}

/// The check on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedCheck {
    running: Option<PackedRunning>,
}

impl Check {
    pub fn new(command: Option<OsString>) -> Check {
        Check {
            command,
            running: None,
        }
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedCheck {
        let running = self.running.as_ref();
        PackedCheck {
            running: running.map(|running| running.pack(luggage)),
        }
    }

    /// The same check again, which goes on if it runs. `command` is for the next one.
    pub fn unpack(packed: PackedCheck, command: Option<OsString>) -> Check {
        Check {
            command,
            running: packed.running.map(Running::unpack),
        }
    }

    /// Starts it as the worker that would be in this seat. Returns the event if that fails.
    pub fn start(
        &mut self,
        blueprint: &Blueprint,
        seat: Seat,
        changes: Result<Vec<Change>, StartFailure>,
    ) -> Option<Event> {
        let command = self.command.as_ref()?;
        let started = changes.and_then(|changes| {
            let equip = |command: &mut _| blueprint.equip(command, seat, &changes);
            Running::start(command, equip)
                .map_err(|error| StartFailure::no_check(&failure::cause(&error)))
        });
        match started {
            Ok(running) => {
                self.running = Some(running);
                None
            }
            Err(cause) => Some(Event::Checked(Err(FailedCheck {
                status: None,
                cause,
                lines: Vec::new(),
            }))),
        }
    }

    /// Kills it.
    pub fn end(&mut self) {
        self.running = None;
    }

    /// Its output, as long as it is open.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().and_then(Running::source)
    }

    /// Reads a bounded amount of its output.
    pub fn read(&mut self) {
        if let Some(running) = &mut self.running {
            running.read();
        }
    }

    /// The event, if this child was the check.
    pub fn has_exited(&mut self, pid: Pid, status: i32) -> Option<Event> {
        let mut running = self.running.take_if(|running| running.pid() == pid)?;
        running.exited();
        Some(Event::Checked(match status {
            0 => Ok(()),
            status => Err(FailedCheck {
                status: Some(status),
                cause: StartFailure::failed_check(status),
                lines: running.last_lines(),
            }),
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::mem::ManuallyDrop;

    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;

    fn carried_over(check: Check) -> Check {
        let check = ManuallyDrop::new(check);
        let text = serde_json::to_string(&check.pack(&mut Luggage::default())).unwrap();
        Check::unpack(serde_json::from_str(&text).unwrap(), Some("next".into()))
    }

    #[test]
    fn the_next_program_learns_how_a_check_ends() {
        let running = Running::start("echo bad; exit 3".as_ref(), |_| {}).unwrap();
        let pid = running.pid();
        let mut check = carried_over(Check {
            command: Some("this".into()),
            running: Some(running),
        });
        assert_eq!(check.command.as_deref(), Some("next".as_ref()));
        assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 3));
        let Some(Event::Checked(Err(failed))) = check.has_exited(pid, 3 << 8) else {
            unreachable!("it has failed");
        };
        assert_eq!(
            (failed.status, failed.lines),
            (Some(3 << 8), vec!["bad".to_owned()])
        );
        // Without a running check there is nothing to learn.
        assert!(carried_over(check).has_exited(pid, 3 << 8).is_none());
    }
}
