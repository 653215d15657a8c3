//! What the machine is made of: settings, events, actions, its own state, and questions about it. What follows from an event
//! is decided in the files beside this one.

use std::num::NonZeroU32;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::generation::{Content, Generation, Slot, State, Why};
use super::history::History;
use crate::host::moment::Moment;
use crate::words::notice::{ExecFailure, Notice};
use crate::words::trouble::Unreachable;

/// What the command line says about restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The number of slots of a generation, at least 1.
    pub workers: usize,
    pub interval: Duration,
    #[serde(with = "super::as_number::signal")]
    pub signal_on_hup: Signal,
    #[serde(with = "super::as_number::signal")]
    pub signal_on_term: Signal,
    pub stop_timeout: Option<Duration>,
    pub start_limit: Option<NonZeroU32>,
    /// The limit that holds until the first generation has committed.
    pub first_start_limit: Option<NonZeroU32>,
    /// How it begins; [`Machine::set_knobs`] changes it later.
    pub knobs: Knobs,
}

/// What may change while the superdaemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knobs {
    pub kill_old_delay: Duration,
    /// Restart by itself so long after the last start; `None` does not.
    pub auto_restart: Option<Duration>,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The process of a worker that was asked for exists.
    Spawned {
        generation: u32,
        slot: usize,
        pid: Pid,
    },
    /// There is no process for a worker that was asked for.
    SpawnFailed {
        generation: u32,
        slot: usize,
        cause: ExecFailure,
    },
    /// The worker runs the server program.
    Executed(Pid),
    /// The worker could not run the server program; its exit follows.
    NotExecuted { pid: Pid, cause: ExecFailure },
    /// A child of ours is gone, with its wait status as wait(2) gives it.
    Exited { pid: Pid, status: i32 },
    /// The deadline that was asked for has passed.
    DeadlinePassed,
    /// HUP.
    Restart,
    /// TERM, INT or QUIT.
    Stop(Signal),
    /// Nobody can reach one of the listeners: found at the commit of a generation, or when a worker has ended.
    Unreachable {
        at_commit: bool,
        unreachable: Unreachable,
    },
    /// The supervisor can only end: what it needs to supervise workers has failed.
    Broken,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a worker, and answer with [`Event::Spawned`] or [`Event::SpawnFailed`].
    Spawn {
        generation: u32,
        slot: usize,
    },
    Signal {
        pid: Pid,
        signal: Signal,
    },
    /// A generation has committed: to be answered with [`Event::Unreachable`] where clients cannot reach it.
    Serving,
    /// What the status files show has changed.
    SaveStatus,
    Say(Notice),
    /// No worker is left: end.
    Finish(Outcome),
}

/// What the machine is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    Serving,
    Stopping {
        /// When what is left is killed, if that is to happen and has not.
        kill_at: Option<Moment>,
        outcome: Outcome,
    },
    Finished,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As it was told to.
    Stopped,
    /// There was nothing left that could serve.
    GivenUp,
}

/// A start that is due later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Planned {
    pub at: Moment,
    pub why: Why,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub(super) settings: Settings,
    pub(super) phase: Phase,
    /// Every generation that has a worker or is about to get one, oldest first.
    pub(super) generations: Vec<Generation>,
    /// The number of the last generation.
    pub(super) last_number: u32,
    /// When the last generation was started.
    pub(super) last_started_at: Moment,
    /// A restart was asked for while a start was under way.
    pub(super) restart_wanted: bool,
    /// The next start, where it has to wait.
    pub(super) planned: Option<Planned>,
    /// Failed starts of generations in a row.
    pub(super) failures: u32,
    /// Whether any generation has ever committed.
    pub(super) has_served: bool,
    /// Since when the next automatic restart is waited for.
    pub(super) auto_restart_since: Moment,
    pub(super) history: History,
    /// What an event has led to so far; empty between events.
    #[serde(skip)]
    pub(super) actions: Vec<Action>,
}

impl Machine {
    /// Changes what may change. Nothing is started by that: only the deadline may be another one.
    pub fn set_knobs(&mut self, knobs: Knobs) {
        self.settings.knobs = knobs;
    }

    /// Whether it was told to stop, or has given up.
    pub fn is_stopping(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// Every generation that has a worker, oldest first.
    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        self.generations.iter()
    }

    /// Whether this process is one of its workers.
    pub fn has_worker(&self, pid: Pid) -> bool {
        let mut workers = self.generations.iter().flat_map(Generation::workers);
        workers.any(|worker| worker.pid == pid)
    }

    /// What has happened so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    // Questions.

    pub(super) fn current(&self) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|generation| generation.state() == State::Current)
    }

    /// Whether the current generation has a worker that is proved.
    pub(super) fn current_serves(&self) -> bool {
        self.current().is_some_and(Generation::serves)
    }

    pub(super) fn starting(&self) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|generation| generation.state() == State::Starting)
    }

    pub(super) fn is_starting(&self) -> bool {
        self.starting().is_some()
    }

    pub(super) fn is_restarting(&self) -> bool {
        self.starting()
            .is_some_and(|generation| generation.why.is_restart())
    }

    pub(super) fn generation(&self, number: u32) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|generation| generation.number == number)
    }

    pub(super) fn generation_mut(&mut self, number: u32) -> Option<&mut Generation> {
        self.generations
            .iter_mut()
            .find(|generation| generation.number == number)
    }

    pub(super) fn state_of(&self, number: u32) -> Option<State> {
        self.generation(number).map(Generation::state)
    }

    /// The slot, if a worker was asked for there and there is none yet.
    pub(super) fn asked_for(&mut self, number: u32, slot: usize) -> Option<&mut Slot> {
        let slot = self.generation_mut(number)?.slots.get_mut(slot)?;
        (slot.content == Content::AskedFor).then_some(slot)
    }

    pub(super) fn all_pids(&self) -> Vec<Pid> {
        self.generations.iter().flat_map(Generation::pids).collect()
    }

    // Small changes.

    pub(super) fn drop_gone(&mut self) {
        self.generations.retain(|generation| !generation.is_gone());
    }

    pub(super) fn say(&mut self, notice: Notice) {
        self.actions.push(Action::Say(notice));
    }

    pub(super) fn signal(&mut self, pid: Pid, signal: Signal) {
        self.actions.push(Action::Signal { pid, signal });
    }

    /// One save after all that an event has changed is enough.
    pub(super) fn save_status(&mut self) {
        self.actions.retain(|action| *action != Action::SaveStatus);
        self.actions.push(Action::SaveStatus);
    }
}
