//! The command of `--check`, which is run before a restart as a worker would be, but without a worker's sockets.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;

use nix::unistd::Pid;

use crate::host::launcher::Change;
use crate::machine::{Event, FailedCheck};
use crate::ready::command::Running;
use crate::words::failure;
use crate::words::start_failure::StartFailure;
use crate::worker::Blueprint;

/// The check, and its process while it runs.
#[derive(Debug, Default)]
pub struct Check {
    command: Option<OsString>,
    running: Option<Running>,
}

impl Check {
    pub fn new(command: Option<OsString>) -> Check {
        Check {
            command,
            running: None,
        }
    }

    /// Starts it for what would be this generation. Returns the event if that fails.
    pub fn start(
        &mut self,
        blueprint: &Blueprint,
        generation: u32,
        changes: Result<Vec<Change>, StartFailure>,
    ) -> Option<Event> {
        let command = self.command.as_ref()?;
        let started = changes.and_then(|changes| {
            let equip = |command: &mut _| blueprint.equip(command, generation, &changes);
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
