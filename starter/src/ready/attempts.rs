//! The command of `--ready=exec`, run again and again for one worker, never twice at a time.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::command::{PackedRunning, Running};
use super::handed::{Order, Runner};
use super::whom::Whom;
use crate::host::launcher::Change;
use crate::host::luggage::Luggage;
use crate::host::moment::Moment;
use crate::listeners::dialects::Announced;
use crate::words::failure;
use crate::words::parts::WithMeaning;

/// A command that is run again and again.
pub struct Attempts {
    changes: Vec<Change>,
    /// How long after its end it is run again.
    pause: Duration,
    /// How long it may take, if that is bounded here.
    longest: Option<Duration>,
    /// It runs, and began then.
    running: Option<(Running, Moment)>,
    is_late: bool,
    next_at: Moment,
}

/// Attempts on their way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedAttempts {
    changes: Vec<Change>,
    running: Option<(PackedRunning, Moment)>,
    is_late: bool,
    next_at: Moment,
}

/// How an attempt has ended.
pub struct Ended {
    pub began_at: Moment,
    /// The error is why it has failed, in words.
    pub result: Result<(), String>,
}

impl Attempts {
    /// The first one is due at this moment.
    pub fn new(
        changes: Vec<Change>,
        pause: Duration,
        longest: Option<Duration>,
        at: Moment,
    ) -> Attempts {
        Attempts {
            changes,
            pause,
            longest,
            running: None,
            is_late: false,
            next_at: at,
        }
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedAttempts {
        let running = self.running.as_ref();
        PackedAttempts {
            changes: self.changes.clone(),
            running: running.map(|(running, began_at)| (running.pack(luggage), *began_at)),
            is_late: self.is_late,
            next_at: self.next_at,
        }
    }

    /// The same attempts again, with the one that is under way.
    pub fn unpack(packed: PackedAttempts, pause: Duration, longest: Option<Duration>) -> Attempts {
        let running = packed.running;
        Attempts {
            changes: packed.changes,
            pause,
            longest,
            running: running.map(|(running, began_at)| (Running::unpack(running), began_at)),
            is_late: packed.is_late,
            next_at: packed.next_at,
        }
    }

    /// Its output.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().and_then(|(one, _)| one.source())
    }

    pub fn deadline(&self) -> Option<Moment> {
        match &self.running {
            None => Some(self.next_at),
            Some(_) if self.is_late => None,
            Some((_, began_at)) => self.longest.map(|longest| *began_at + longest),
        }
    }

    /// Runs it where that is due, reads its output, and kills it if it takes too long: its exit says whether it has
    /// succeeded before that. Returns the end of an attempt that could not even begin.
    pub fn look(
        &mut self,
        command: &OsStr,
        probe: Option<&Announced>,
        whom: Whom,
        now: Moment,
        run: &mut Runner<'_>,
    ) -> Option<Ended> {
        let is_late = self.deadline().is_some_and(|deadline| deadline <= now);
        if let Some((running, _)) = &mut self.running {
            running.read();
            if is_late {
                running.kill();
                self.is_late = true;
            }
            return None;
        }
        if now < self.next_at {
            return None;
        }
        let order = Order {
            command,
            generation: whom.generation,
            slot: whom.slot,
            changes: &self.changes,
            probe,
        };
        match run(&order) {
            Ok(running) => {
                self.running = Some((running, now));
                self.is_late = false;
                None
            }
            Err(error) => {
                self.next_at = now + self.pause;
                let (command, cause) = (whom.command(), failure::cause(&error));
                Some(Ended {
                    began_at: now,
                    result: Err(format!("{command} cannot be run: {cause}")),
                })
            }
        }
    }

    /// If this child was the command, how the attempt has ended.
    pub fn exited(&mut self, pid: Pid, status: i32, whom: Whom, now: Moment) -> Option<Ended> {
        let is_it = |(running, _): &mut (Running, Moment)| running.pid() == pid;
        let (mut running, began_at) = self.running.take_if(is_it)?;
        running.exited();
        self.next_at = now + self.pause;
        Some(Ended {
            began_at,
            result: match (status, self.is_late, self.longest) {
                (0, ..) => Ok(()),
                (_, true, Some(longest)) => Err(format!(
                    "{} did not finish within {} secs",
                    whom.command(),
                    longest.as_secs_f64()
                )),
                _ => Err(why_failed(&running, status, whom)),
            },
        })
    }
}

fn why_failed(running: &Running, status: i32, whom: Whom) -> String {
    let mut known = format!(
        "{} failed, exit status:{}",
        whom.command(),
        WithMeaning(status)
    );
    if let Some(last) = running.last_lines().pop() {
        known.push_str(": ");
        known.push_str(&last);
    }
    known
}
