//! USR2: the file of this program is executed again, in this process, and goes on where this one stopped.
//!
//! It is tried first, in a child with a snapshot and copies of all descriptors: whatever it does there, nothing is lost. Only
//! if it says in time that it can resume from this snapshot does it take this program's place, with a new one.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::luggage::Luggage;
use crate::host::moment::Moment;
use crate::host::own_program::{Inheritance, OwnProgram, execute, rehearsal, running};
use crate::host::sealed::sealed;
use crate::ready::command::Running;
use crate::words::failure;
use crate::words::notice::Notice;
use crate::words::parts::WithMeaning;
use crate::words::upgrade as words;

/// How long a program may take to say whether it can resume.
const LONGEST_REHEARSAL: Duration = Duration::from_secs(5);

/// What a program prints first that can resume, before its version.
pub const YES: &str = "start_server can resume: ";

/// What a program is given that takes another one's place.
pub struct Legacy {
    pub text: Vec<u8>,
    pub luggage: Luggage,
}

/// Upgrades of this process, and the one that is under way.
pub struct Upgrade {
    program: OwnProgram,
    /// All words of the command line, the name of the program first.
    arguments: Vec<OsString>,
    rehearsal: Option<Rehearsal>,
    /// What has said that it can resume.
    ready: Option<OwnedFd>,
    /// Asked for once more since the last one began: the file may be another one by now.
    is_wanted_again: bool,
    outcome: Outcome,
}

/// What became of the upgrades that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub tried: u32,
    /// Why the last one failed.
    pub failure: Option<String>,
}

struct Rehearsal {
    program: OwnedFd,
    running: Running,
    until: Moment,
    is_late: bool,
}

/// The same as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub struct Packed {
    path: OsString,
    name: OsString,
    pub arguments: Vec<OsString>,
    is_wanted_again: bool,
    outcome: Outcome,
}

impl Upgrade {
    /// For a program that was just started.
    pub fn new() -> Upgrade {
        Upgrade {
            program: OwnProgram::find(),
            arguments: std::env::args_os().collect(),
            rehearsal: None,
            ready: None,
            is_wanted_again: false,
            outcome: Outcome::default(),
        }
    }

    pub fn pack(&self) -> Packed {
        Packed {
            path: self.program.path().to_owned(),
            name: self.program.name().to_owned(),
            arguments: self.arguments.clone(),
            is_wanted_again: self.is_wanted_again,
            outcome: self.outcome.clone(),
        }
    }

    /// In the program that goes on. `is_new` says that an upgrade has led to it, or back to it because of a failure.
    pub fn unpack(packed: Packed, failure: Option<String>, is_new: bool) -> Upgrade {
        let program = OwnProgram::of(packed.path, packed.name);
        program.restore_name();
        Upgrade {
            program,
            arguments: packed.arguments,
            rehearsal: None,
            ready: None,
            is_wanted_again: packed.is_wanted_again,
            outcome: match is_new {
                true => Outcome {
                    tried: packed.outcome.tried.saturating_add(1),
                    failure,
                },
                // A new supervisor: none was tried meanwhile, and what was under way is over.
                false => packed.outcome,
            },
        }
    }

    pub fn path(&self) -> PathBuf {
        self.program.path().into()
    }

    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Whether one is under way. If so, the next one follows it.
    pub fn postpone(&mut self) -> bool {
        let is_under_way = self.rehearsal.is_some() || self.ready.is_some();
        self.is_wanted_again |= is_under_way;
        is_under_way
    }

    /// Whether another one was asked for meanwhile, and none is under way.
    pub fn take_next(&mut self) -> bool {
        let is_idle = self.rehearsal.is_none() && self.ready.is_none();
        is_idle && std::mem::take(&mut self.is_wanted_again)
    }

    /// Tries the file that lies there now.
    ///
    /// # Errors
    /// Why it cannot even be tried.
    pub fn begin(&mut self, legacy: &Legacy, now: Moment) -> Result<(), String> {
        let program = self.program.next()?;
        let snapshot = sealed(&legacy.text).map_err(|error| failure::cause(&error))?;
        let command = rehearsal(&program, &snapshot, &legacy.luggage);
        let command = command.map_err(|errno| errno.desc().to_owned())?;
        let running = Running::run(command).map_err(|error| failure::cause(&error))?;
        self.rehearsal = Some(Rehearsal {
            program,
            running,
            until: now + LONGEST_REHEARSAL,
            is_late: false,
        });
        Ok(())
    }

    /// The output of what is tried.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        let rehearsal = self.rehearsal.as_ref();
        rehearsal.and_then(|one| one.running.source())
    }

    /// When [`Upgrade::look`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        let rehearsal = self.rehearsal.as_ref().filter(|one| !one.is_late);
        rehearsal.map(|one| one.until)
    }

    /// Reads its output, and kills it if it takes too long: its exit follows.
    pub fn look(&mut self, now: Moment) {
        if let Some(rehearsal) = &mut self.rehearsal {
            rehearsal.running.read();
            if now >= rehearsal.until && !rehearsal.is_late {
                rehearsal.running.kill();
                rehearsal.is_late = true;
            }
        }
    }

    /// If this child was what is tried: whether it said yes, or why not.
    pub fn has_exited(&mut self, pid: Pid, status: i32) -> Option<Result<(), String>> {
        let is_it = |one: &mut Rehearsal| one.running.pid() == pid;
        let mut rehearsal = self.rehearsal.take_if(is_it)?;
        rehearsal.running.exited();
        Some(match answer(&rehearsal, status) {
            None => {
                self.ready = Some(rehearsal.program);
                Ok(())
            }
            Some(cause) => Err(cause),
        })
    }

    /// What has said yes, once.
    pub fn take_ready(&mut self) -> Option<OwnedFd> {
        self.ready.take()
    }

    /// Lets it take this program's place. Returns why it could not.
    pub fn go(&self, program: &OwnedFd, legacy: &Legacy) -> String {
        let in_words = |errno: nix::Error| errno.desc().to_owned();
        let before = match running().map_err(in_words) {
            Ok(before) => before,
            Err(cause) => return cause,
        };
        let snapshot = match sealed(&legacy.text) {
            Ok(snapshot) => snapshot,
            Err(error) => return failure::cause(&error),
        };
        let inheritance = Inheritance {
            snapshot: snapshot.as_raw_fd(),
            before: Some(before.as_raw_fd()),
            failure: None,
            guarded: None,
        };
        let luggage = legacy.luggage.numbers();
        in_words(execute(program, &self.arguments, &inheritance, luggage))
    }

    /// It was not possible. Returns what to say.
    pub fn failed(&mut self, cause: String) -> Notice {
        self.outcome = Outcome {
            tried: self.outcome.tried.saturating_add(1),
            failure: Some(cause.clone()),
        };
        let path = self.path();
        Notice::Upgrade(words::Upgrade::Failed { path, cause })
    }
}

/// Why it cannot take over; `None` if it can.
fn answer(rehearsal: &Rehearsal, status: i32) -> Option<String> {
    if rehearsal.is_late {
        let longest = LONGEST_REHEARSAL.as_secs();
        return Some(format!("it did not answer within {longest} secs"));
    }
    let last = rehearsal.running.last_lines().pop().unwrap_or_default();
    match status {
        0 if last.starts_with(YES) => None,
        0 => Some("it does not know how to resume".to_owned()),
        _ if last.is_empty() => Some(format!(
            "it failed when it was tried, exit status:{}",
            WithMeaning(status)
        )),
        _ => Some(last.trim_start_matches("start_server: ").to_owned()),
    }
}
