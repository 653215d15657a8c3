//! The place of one worker: what only the worker in this slot of its generation can answer.
//!
//! A worker that replaces another in its slot gets the same probe listener, and proves itself anew.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::attempts::{Attempts, Ended, PackedAttempts};
use super::handed::{Handed, Layout, Runner};
use super::health::{Answer, Health, PackedHealth};
use super::probe::{PackedProbe, Probe};
use super::settings::{Ready, Settings};
use super::trial::{self, Goal, PackedTrial, Trial};
use super::whom::Whom;
use crate::host::launcher::Change;
use crate::host::luggage::Luggage;
use crate::host::moment::Moment;
use crate::host::open_files::duplicate_above;
use crate::listeners::dialects::Announced;
use crate::machine::Event;
use crate::words::start_failure::StartFailure;

/// How long after a command has failed it is run again.
const PAUSE: Duration = Duration::from_millis(100);

/// Everything that belongs to one slot of a generation.
pub struct Place {
    pub slot: usize,
    /// Its worker, as long as it lives.
    pid: Option<Pid>,
    probe: Option<Probe>,
    /// Its name, which tells what its workers leave behind even when it is closed.
    probe_name: Option<OsString>,
    /// Until its worker is ready.
    trial: Option<Trial>,
    command: Option<Attempts>,
    /// From then on, if its generation is current and watched.
    health: Option<Health>,
    /// How the environment of its worker differs from the launcher's.
    changes: Vec<Change>,
}

/// A place on its way to the next program.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct PackedPlace {
    #[serde(default)]
    slot: usize,
    #[serde(default)]
    pid: Option<i32>,
    #[serde(default)]
    probe_name: Option<OsString>,
    probe: Option<PackedProbe>,
    trial: Option<PackedTrial>,
    command: Option<PackedAttempts>,
    health: Option<PackedHealth>,
    changes: Vec<Change>,
}

impl Place {
    pub fn new(slot: usize, settings: &Settings, layout: &Layout) -> Result<Place, StartFailure> {
        let Layout {
            backlog,
            is_blocking,
            highest,
            ..
        } = *layout;
        let open = |at| Probe::open(at, backlog, is_blocking, highest);
        let cannot = |errno: Errno| StartFailure::cannot("create a probe listener", errno, None);
        let probe = settings.probe.map(open).transpose().map_err(cannot)?;
        Ok(Place {
            slot,
            pid: None,
            probe_name: probe.as_ref().map(Probe::name),
            probe,
            trial: None,
            command: None,
            health: None,
            changes: Vec::new(),
        })
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedPlace {
        PackedPlace {
            slot: self.slot,
            pid: self.pid.map(Pid::as_raw),
            probe_name: self.probe_name.clone(),
            probe: self.probe.as_ref().map(|it| it.pack(luggage)),
            trial: self.trial.as_ref().map(|it| it.pack(luggage)),
            command: self.command.as_ref().map(|it| it.pack(luggage)),
            health: self.health.as_ref().map(|it| it.pack(luggage)),
            changes: self.changes.clone(),
        }
    }

    /// The same place again, under settings from the same command line.
    pub fn unpack(packed: PackedPlace, settings: &Settings) -> Place {
        let ready = &settings.ready;
        let trial = packed.trial.zip(Goal::of(ready));
        let health = packed.health.zip(settings.watch);
        let probe = packed.probe.map(Probe::unpack);
        Place {
            slot: packed.slot,
            pid: packed.pid.map(Pid::from_raw),
            probe_name: packed.probe_name.or(probe.as_ref().map(Probe::name)),
            probe,
            trial: trial.map(|(trial, goal)| Trial::unpack(trial, goal)),
            command: packed.command.map(|it| Attempts::unpack(it, PAUSE, None)),
            health: health.and_then(|(health, watch)| Health::unpack(health, ready, watch)),
            changes: packed.changes,
        }
    }

    /// Adds what the next worker gets.
    pub fn hand_out(&self, handed: &mut Handed, layout: &Layout) -> Result<(), StartFailure> {
        if let Some(probe) = &self.probe {
            let number = layout.probe_number;
            handed
                .descriptors
                .push((above(probe.as_fd(), layout.highest)?, number));
            handed.probe = self.announced(layout);
        }
        Ok(())
    }

    /// Its probe listener as its workers know it, even if it is closed here.
    pub fn announced(&self, layout: &Layout) -> Option<Announced> {
        Some(Announced {
            name: self.probe_name.clone()?,
            number: layout.probe_number,
            given_name: None,
        })
    }

    /// A worker has been started for it, in this environment.
    pub fn started(&mut self, pid: Pid, changes: &[Change], settings: &Settings, now: Moment) {
        self.pid = Some(pid);
        self.changes = changes.to_vec();
        let trial = |goal| Trial::new(goal, now);
        self.trial = Goal::of(&settings.ready).map(trial);
        let attempts = || Attempts::new(changes.to_vec(), PAUSE, None, now);
        self.command = matches!(settings.ready, Ready::Command(_)).then(attempts);
        // It was another's.
        self.health = None;
    }

    /// What is known of a worker that has just been started.
    pub fn known(&self, settings: &Settings) -> Option<String> {
        match &settings.ready {
            Ready::Interval => None,
            Ready::Notify => Some("it has not said READY=1".to_owned()),
            Ready::Descriptor(number) => {
                Some(format!("no line feed has come on descriptor {number}"))
            }
            Ready::Command(_) => Some("the --ready command has not finished".to_owned()),
            Ready::Accept | Ready::Http { .. } => self.trial.as_ref().map(Trial::known),
        }
    }

    pub fn sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let output = self.command.iter().filter_map(Attempts::source);
        let output = output.map(|source| (source, PollFlags::POLLIN));
        let trial = self.trial.iter().filter_map(Trial::source);
        let health = self.health.iter().filter_map(Health::source);
        output.chain(trial).chain(health)
    }

    pub fn deadline(&self) -> Option<Moment> {
        let command = self.command.as_ref().and_then(Attempts::deadline);
        let trial = self.trial.as_ref().map(Trial::deadline);
        let health = self.health.as_ref().and_then(Health::deadline);
        command.into_iter().chain(trial).chain(health).min()
    }

    /// Looks at everything that may have changed. Returns what its worker has answered while it serves.
    pub fn look(
        &mut self,
        settings: &Settings,
        whom: Whom,
        now: Moment,
        run: &mut Runner<'_>,
        found: &mut Vec<Event>,
    ) -> Option<Answer> {
        self.look_at_trial(whom, now, found);
        if let (Ready::Command(command), Some(attempts)) = (&settings.ready, &mut self.command) {
            let probe = self.probe.as_ref().map(Announced::from);
            let ended = attempts.look(command, probe.as_ref(), whom, now, run);
            self.attempt_ended(ended, found);
        }
        let (probe, whom) = (self.probe.as_ref(), whom.that_serves());
        let health = self.health.as_mut()?;
        health.look(&settings.ready, probe, whom, now, run)
    }

    fn look_at_trial(&mut self, whom: Whom, now: Moment, found: &mut Vec<Event>) {
        let (Some(trial), Some(probe)) = (&mut self.trial, &self.probe) else {
            return;
        };
        match trial.look(probe, whom, now) {
            trial::Found::Nothing => {}
            trial::Found::NotYet(known) => self.not_yet(known, found),
            trial::Found::Ready => {
                self.trial = None;
                self.ready(found);
            }
        }
    }

    /// Whether this child was the command that proves that its worker is ready.
    pub fn has_proof(
        &mut self,
        pid: Pid,
        status: i32,
        whom: Whom,
        now: Moment,
        found: &mut Vec<Event>,
    ) -> bool {
        let attempts = self.command.as_mut();
        let ended = attempts.and_then(|one| one.exited(pid, status, whom, now));
        let is_its = ended.is_some();
        self.attempt_ended(ended, found);
        is_its
    }

    /// If this child was the command that asks for its health, what that says.
    pub fn has_answer(&mut self, pid: Pid, status: i32, whom: Whom, now: Moment) -> Option<Answer> {
        let health = self.health.as_mut()?;
        health.command_exited(pid, status, whom.that_serves(), now)
    }

    fn attempt_ended(&mut self, ended: Option<Ended>, found: &mut Vec<Event>) {
        match ended.map(|ended| ended.result) {
            None => {}
            Some(Ok(())) => {
                self.command = None;
                self.ready(found);
            }
            Some(Err(known)) => self.not_yet(known, found),
        }
    }

    fn ready(&self, found: &mut Vec<Event>) {
        found.extend(self.pid.map(Event::Ready));
    }

    fn not_yet(&self, known: String, found: &mut Vec<Event>) {
        found.extend(self.pid.map(|pid| Event::NotYetReady { pid, known }));
    }

    /// How it is, if it is asked.
    pub fn health(&self) -> Option<&Health> {
        self.health.as_ref()
    }

    /// Whether it has a worker.
    pub fn is_taken(&self) -> bool {
        self.pid.is_some()
    }

    /// Forgets its worker unless it lives.
    pub fn forget_departed(&mut self, lives: impl Fn(Pid) -> bool) {
        if !self.pid.is_some_and(lives) {
            self.pid = None;
            self.settle();
            self.rest();
        }
    }

    /// Its generation is current: a worker that has proved itself goes on being asked, if it is watched.
    pub fn serve(&mut self, settings: &Settings, now: Moment) {
        let is_proved = self.pid.is_some() && self.trial.is_none() && self.command.is_none();
        if let Some(watch) = settings
            .watch
            .filter(|_| is_proved && self.health.is_none())
        {
            self.health = Health::new(&settings.ready, watch, &self.changes, now);
        }
    }

    /// It need not prove itself any more.
    pub fn settle(&mut self) {
        self.trial = None;
        self.command = None;
    }

    /// It is not asked how it is any more.
    pub fn rest(&mut self) {
        self.health = None;
    }

    /// It has been told to stop: its probe listener is no longer needed either.
    pub fn retire(&mut self) {
        self.settle();
        self.rest();
        self.probe = None;
    }
}

impl PackedPlace {
    /// As it was packed before places knew their workers.
    pub fn with_worker(self, pid: Option<i32>) -> PackedPlace {
        let pid = self.pid.or(pid);
        PackedPlace { pid, ..self }
    }

    /// Whether there is nothing in it.
    pub fn is_blank(&self) -> bool {
        self.pid.is_none() && self.probe.is_none() && self.probe_name.is_none()
    }
}

/// A copy whose number is above this one.
pub fn above(descriptor: BorrowedFd<'_>, highest: RawFd) -> Result<OwnedFd, StartFailure> {
    duplicate_above(descriptor, highest)
        .map_err(|errno| StartFailure::cannot("pass a descriptor to a worker", errno, None))
}
