//! The machine's data: settings, events, actions, its own state, and questions about it. What an event leads to is decided
//! in the files beside this one.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::generation::{Content, Generation, Slot, State, Why};
use super::history::{FailedCheck, History};
use super::lane::{Portion, Selection, Sockets, Stray};
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;
use crate::words::trouble::Unreachable;

/// The restart policy of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The number of slots of a generation, at least 1.
    pub workers: usize,
    pub interval: Duration,
    pub proof: Proof,
    #[serde(with = "super::as_number::signal")]
    pub signal_on_hup: Signal,
    #[serde(with = "super::as_number::signal")]
    pub signal_on_term: Signal,
    pub stop_timeout: Option<Duration>,
    /// How long the check before a restart may take; `None` if there is no check.
    pub check: Option<Duration>,
    /// The very first start is checked too.
    pub check_first: bool,
    /// Kills workers that drain longer than this.
    pub kill_old_timeout: Option<Duration>,
    /// When more generations than this are draining, the oldest ones are killed at once.
    pub max_old_generations: Option<NonZeroU32>,
    pub start_limit: Option<NonZeroU32>,
    /// The limit until the first generation has committed.
    pub first_start_limit: Option<NonZeroU32>,
    /// How long the current generation may go without a good answer; `None` if it is not asked.
    pub watch: Option<Duration>,
    /// Whether a worker that dies is replaced from what its generation was started from, not from what lies on disk.
    pub pins: bool,
    pub replace: Replace,
    /// How many generations can have sockets of their own; 1 if all share them.
    #[serde(default = "one")]
    pub lanes: u8,
    /// How many sockets a generation has at each address: several are for its slots, in turn.
    #[serde(default = "one")]
    pub shards: u8,
    /// Whether packets of flows can name their lane.
    #[serde(default)]
    pub flows: bool,
    /// How long nothing must have waited in the lane of a generation before it is told to stop.
    #[serde(default)]
    pub quiet_time: Duration,
    /// How long that is waited for at most.
    #[serde(default)]
    pub switch_timeout: Duration,
    /// A restart replaces slot by slot, with at most so many processes more than slots at a time.
    #[serde(default)]
    pub rolling: Option<NonZeroUsize>,
    /// How many workers may be on their way to readiness at the same time, if that is bounded.
    #[serde(default)]
    pub start_parallel: Option<NonZeroUsize>,
    /// More slots than this are refused.
    #[serde(default = "any_number")]
    pub most_workers: usize,
    /// The initial values; [`Machine::set_knobs`] changes them later.
    pub knobs: Knobs,
}

fn one() -> u8 {
    1
}

fn first_lane() -> Selection {
    Selection::whole(0, 0, 1)
}

fn any_number() -> usize {
    usize::MAX
}

/// How a restart replaces what serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replace {
    /// What serves stops once the new generation serves.
    Overlap,
    /// It stops before the new generation is started.
    StopFirst,
}

/// What proves that a worker serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// It has lived for the interval.
    Interval,
    /// [`Event::Ready`] says so, at the latest this long after the worker was asked for.
    Told { within: Duration },
}

/// Settings that may change while the superdaemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knobs {
    pub kill_old_delay: Duration,
    /// How long after the last start to restart automatically; `None` for never.
    pub auto_restart: Option<Duration>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The process of a requested worker exists.
    Spawned {
        generation: u32,
        slot: usize,
        pid: Pid,
    },
    /// A requested worker has no process.
    SpawnFailed {
        generation: u32,
        slot: usize,
        cause: StartFailure,
    },
    /// The worker runs the server program.
    Executed(Pid),
    /// The worker serves, where that is to be told ([`Proof::Told`]).
    Ready(Pid),
    /// The worker may take until this moment to become ready.
    StartExtended { pid: Pid, until: Moment },
    /// What is known of a worker that is not ready yet: `it has not said READY=1`.
    NotYetReady { pid: Pid, known: String },
    /// What the worker says about itself, for the status alone.
    Text { pid: Pid, text: String },
    /// The check before a restart has ended.
    Checked(Result<(), FailedCheck>),
    /// A generation that has committed has answered badly or not at all since then, and this is the last that is known
    /// about it: `GET /healthz on generation 5: 503 Service Unavailable`.
    Unwell {
        generation: u32,
        since: Moment,
        known: String,
    },
    /// It has answered well.
    Well { generation: u32 },
    /// The worker has begun to stop by itself.
    Stopping(Pid),
    /// The worker could not run the server program; its exit follows.
    NotExecuted { pid: Pid, cause: StartFailure },
    /// A child has exited, with its wait status as wait(2) gives it.
    Exited { pid: Pid, status: i32 },
    /// The requested deadline has passed.
    DeadlinePassed,
    /// HUP.
    Restart,
    /// `--rollback`: the last restart is to be undone.
    RollBack,
    /// `--restart --canary`: a restart that gets a share of new traffic.
    Canary(Portion),
    /// `--promote`: it gets all new traffic.
    Promote,
    /// `--abort`: the restart that is under way or tried again is given up.
    Abort,
    /// TTIN, TTOU or `--scale`: another number of workers is wanted.
    Scale(Scale),
    /// TERM, INT or QUIT.
    Stop(Signal),
    /// Clients cannot reach one of the listeners: found when a generation committed or a worker exited.
    Unreachable {
        at_commit: bool,
        unreachable: Unreachable,
    },
    /// The answer to [`Action::Look`]: so many of them have something to be accepted or received.
    Looked { sockets: Sockets, waiting: usize },
    /// Something waits in one of [`Machine::watched_sockets`].
    Stranded { socket: u8 },
    /// What [`Action::Select`] asked for cannot be done: this is still in force.
    NotSelected {
        selected: Selection,
        cause: StartFailure,
    },
    /// A failure leaves the supervisor unable to supervise: it can only stop.
    Broken,
}

/// How many workers are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    To(usize),
    OneMore,
    OneLess,
}

/// Something to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a worker, and answer with [`Event::Spawned`] or [`Event::SpawnFailed`].
    Spawn {
        generation: u32,
        slot: usize,
        from: Source,
    },
    Signal {
        pid: Pid,
        signal: Signal,
    },
    /// Send a signal to whatever a departed worker left running, by generation and slot.
    EndLeftovers {
        worker: Pid,
        generation: u32,
        slot: usize,
        signal: Signal,
    },
    /// A generation has committed: answer with [`Event::Unreachable`] if clients cannot reach it.
    Serving,
    /// Give new traffic to these, or answer with [`Event::NotSelected`].
    Select(Selection),
    /// Find out what waits in these sockets, and answer with [`Event::Looked`].
    Look(Sockets),
    /// Run the check for what would be this generation, and answer with [`Event::Checked`].
    Check {
        generation: u32,
    },
    /// End the check: its result is no longer needed.
    EndCheck,
    /// The contents of the status files have changed.
    SaveStatus,
    Say(Notice),
    /// No worker is left: exit.
    Finish(Outcome),
}

impl Action {
    /// The generation that is to get what comes, apart from the share of a canary.
    pub fn selected(&self) -> Option<u32> {
        let Action::Select(selection) = self else {
            return None;
        };
        Some(selection.main.generation)
    }

    /// Whether it is done, or said, only because a generation has committed.
    pub fn follows_commit(&self) -> bool {
        let Action::Say(notice) = self else {
            return *self == Action::Serving;
        };
        let is_of_nobody = matches!(notice, Notice::KillingOldWorkers { old } if old.is_empty());
        let is_of_commit = matches!(
            notice,
            Notice::Serves { .. } | Notice::NewWorkerRunning { .. } | Notice::Sleeping { .. }
        );
        is_of_commit || is_of_nobody
    }
}

/// Where the program, the directory and the environment of a worker come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The disk as it is now. What is found there is kept with the worker's generation.
    Disk,
    /// What this generation was started from.
    Generation(u32),
}

/// What the machine is currently doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    Serving,
    Stopping {
        /// When the remaining workers will be killed, if that is planned.
        kill_at: Option<Moment>,
        outcome: Outcome,
    },
    Finished,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As told.
    Stopped,
    /// Nothing was left that could serve.
    GivenUp,
}

/// A start that is due later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Planned {
    pub at: Moment,
    pub why: Why,
}

/// A restart that waits for the end of what served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoppingFirst {
    pub why: Why,
    /// What is stopping.
    pub generation: u32,
    /// How many restarts had been requested when it was told to.
    pub request: u32,
}

/// A check that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checking {
    /// What is started if it succeeds.
    pub why: Why,
    /// How many restarts had been requested when it began.
    pub request: u32,
    /// When it has taken too long.
    pub until: Moment,
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
    /// A restart was requested during a start.
    pub(super) restart_wanted: bool,
    /// It is to get this share of new traffic, unless a whole one was requested as well.
    #[serde(default)]
    pub(super) portion_wanted: Option<Portion>,
    /// The check that is under way.
    pub(super) checking: Option<Checking>,
    /// The restart that waits for the end of what served.
    pub(super) stopping_first: Option<StoppingFirst>,
    /// Since when nothing serves because of a restart that stops first.
    pub(super) outage: Option<Moment>,
    /// Who gets new traffic, where there are lanes.
    #[serde(rename = "selection", default = "first_lane")]
    pub(super) selected: Selection,
    /// What the kernel has refused: not asked for again until something else is wanted.
    #[serde(default)]
    pub(super) refused: Option<Selection>,
    /// Sockets in which something waits that nobody accepts.
    #[serde(default)]
    pub(super) strays: Vec<Stray>,
    /// When it was told to stop, or gave up.
    #[serde(default)]
    pub(super) stopping_since: Option<Moment>,
    /// The next start, if it is delayed.
    pub(super) planned: Option<Planned>,
    /// A failed restart whose next try waits for what served to serve again.
    pub(super) postponed: Option<Why>,
    /// Consecutive failed starts of generations.
    pub(super) failures: u32,
    /// How many of the last failed starts in a row were exits with success, while nothing has ever served.
    pub(super) successes: u32,
    /// How many generations in a row died soon after they had committed.
    pub(super) early_deaths: u32,
    /// The generation that is current, or was last.
    pub(super) served: Option<u32>,
    /// The one that the last successful restart replaced: a start from it would undo that restart.
    pub(super) served_before: Option<u32>,
    /// The start of the wait for the next automatic restart.
    pub(super) auto_restart_since: Moment,
    pub(super) history: History,
    /// Lanes whose generation has gone in the current event; empty between events.
    #[serde(skip)]
    pub(super) freed: Vec<u8>,
    /// The actions of the current event; empty between events.
    #[serde(skip)]
    pub(super) actions: Vec<Action>,
}

impl Machine {
    /// Changes the variable settings. That starts nothing, but may move the deadline.
    pub fn set_knobs(&mut self, knobs: Knobs) {
        self.settings.knobs = knobs;
    }

    /// Whether a generation proves nothing but that it lives.
    pub fn proves_by_interval(&self) -> bool {
        self.settings.proof == Proof::Interval
    }

    /// Whether it was told to stop, or has given up.
    pub fn is_stopping(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// How many workers a generation is to have.
    pub fn workers(&self) -> usize {
        self.settings.workers
    }

    /// Every generation that has a worker or is about to get one, oldest first.
    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        self.generations.iter()
    }

    /// Whether this process is a worker.
    pub fn has_worker(&self, pid: Pid) -> bool {
        let mut workers = self.generations.iter().flat_map(Generation::workers);
        workers.any(|worker| worker.pid == pid)
    }

    /// When the next start is due, if one is delayed.
    pub fn next_start_at(&self) -> Option<Moment> {
        self.planned.map(|planned| planned.at)
    }

    /// What has happened so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    // Questions.

    /// Whether any generation has ever committed.
    pub(super) fn has_served(&self) -> bool {
        self.served.is_some()
    }

    pub(super) fn current(&self) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|generation| generation.state() == State::Current)
    }

    /// Whether this generation is the current one.
    pub fn has_current(&self, generation: u32) -> bool {
        self.current().is_some_and(|one| one.number == generation)
    }

    /// Whether the current generation has a proved worker, and is not unhealthy: then older ones are not needed.
    pub(super) fn current_serves(&self) -> bool {
        self.current()
            .is_some_and(|current| current.serves() && current.unhealthy.is_none())
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

    /// The slot, if a worker was requested for it and does not exist yet.
    pub(super) fn asked_for(&mut self, number: u32, slot: usize) -> Option<&mut Slot> {
        let slot = self.generation_mut(number)?.slots.get_mut(slot)?;
        (slot.content == Content::AskedFor).then_some(slot)
    }

    pub(super) fn all_pids(&self) -> Vec<Pid> {
        self.generations.iter().flat_map(Generation::pids).collect()
    }

    // Small changes.

    pub(super) fn drop_gone(&mut self) {
        let gone = self.generations.iter().filter(|one| one.is_gone());
        self.freed.extend(gone.map(|one| one.lane));
        self.generations.retain(|generation| !generation.is_gone());
        self.end_flows();
    }

    pub(super) fn say(&mut self, notice: Notice) {
        self.actions.push(Action::Say(notice));
    }

    pub(super) fn signal(&mut self, pid: Pid, signal: Signal) {
        self.actions.push(Action::Signal { pid, signal });
    }

    /// One save after all changes of an event is enough.
    pub(super) fn save_status(&mut self) {
        self.actions.retain(|action| *action != Action::SaveStatus);
        self.actions.push(Action::SaveStatus);
    }
}
