//! Generations, their slots, and the workers in them. Conclusions are drawn elsewhere.

use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::history::Steps;
use super::lane::{Portion, Quiet};
use crate::host::moment::Moment;
use crate::words::start_failure::StartFailure;

/// How long a worker must survive its exec to count as started, however short the interval.
pub(super) const PROOF_OF_LIFE: Duration = Duration::from_millis(50);

/// How long a worker may take to execute the program.
pub(super) const LONGEST_EXEC: Duration = Duration::from_secs(30);

/// Why a generation is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Why {
    /// Nothing has served yet.
    First,
    /// A restart was requested.
    Asked,
    /// One that gets a share of new traffic until it is promoted.
    Canary(Portion),
    /// An automatic restart was due.
    Timed,
    /// All workers of the previous generation died, and nothing serves.
    Replacement,
    /// A rollback was requested, and what this generation was started from is started again.
    Rollback { to: u32 },
    /// Something waits in a lane that nobody serves.
    Sweep,
}

impl Why {
    /// Whether it replaces healthy workers. As in Server::Starter, these count as old as soon as it begins: if one dies, it
    /// has not crashed. The log announces its commit together with the signal to them.
    pub fn is_restart(self) -> bool {
        match self {
            Why::Asked | Why::Canary(_) | Why::Timed | Why::Rollback { .. } => true,
            Why::First | Why::Replacement | Why::Sweep => false,
        }
    }

    /// The generation that a rollback starts again.
    pub fn rolls_back_to(self) -> Option<u32> {
        match self {
            Why::Rollback { to } => Some(to),
            Why::First
            | Why::Asked
            | Why::Canary(_)
            | Why::Timed
            | Why::Replacement
            | Why::Sweep => None,
        }
    }

    /// The purpose of a start that takes the place of a planned one: a restart if either is one.
    pub(super) fn instead_of(self, planned: Option<Why>) -> Why {
        match planned {
            Some(planned) if planned.is_restart() && !self.is_restart() => planned,
            Some(_) | None => self,
        }
    }
}

/// Workers that were started together, and those that replace them one by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    pub number: u32,
    /// What it was started for.
    pub(super) why: Why,
    /// How many restarts had been requested when it was started.
    pub(super) request: u32,
    pub(super) stage: Stage,
    /// Which sockets it has, where each address has several.
    #[serde(default)]
    pub lane: u8,
    /// The shard of the lane that its first slot has: those of a sweeper need not begin at the first one.
    #[serde(default)]
    pub(super) shard: u8,
    /// It was replaced, and is told to stop once nothing waits in its lane.
    #[serde(default)]
    pub(super) quiet: Option<Quiet>,
    /// It takes over from what serves slot by slot, as its workers are proved.
    #[serde(default)]
    pub(super) rolls: bool,
    /// How far its start has come.
    pub(super) steps: Steps,
    /// Why it is unhealthy, while it is current.
    pub(super) unhealthy: Option<String>,
    /// One for each of its workers, numbered from 0.
    pub(super) slots: Vec<Slot>,
    /// Its workers that have no slot any more.
    #[serde(default)]
    pub(super) leavers: Vec<Leaver>,
}

/// A worker whose slot another generation has taken over, or whose slot is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leaver {
    pub worker: Worker,
    /// When it is told to stop, unless it has been.
    pub told_at: Option<Moment>,
    /// It is told once nothing waits in its sockets, if they are its own.
    #[serde(default)]
    pub quiet: Option<Quiet>,
}

/// The state of a generation, as the head of [`super`] explains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Starting,
    Current,
    Canary,
    Partial,
    Retiring,
    Sweeping,
    Old,
}

/// The part of a generation's state that its workers do not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    Uncommitted,
    Current,
    /// It serves a share of new traffic, until it gets all of it at this moment, or is told to, or is rolled back.
    Canary {
        until: Option<Moment>,
    },
    /// It rolled, and has failed after it had taken over some slots, in which it serves.
    Partial,
    Retiring {
        signal_at: Moment,
    },
    /// It takes what waits in a lane that nobody serves.
    Sweeping,
    /// It has served, and was told to stop, is about to be, or has begun to by itself.
    Draining,
    /// Its start has failed.
    Failed,
}

/// The place of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    /// When a worker was last requested.
    pub asked_at: Moment,
    /// Consecutive replacements that failed before they were proved.
    pub failures: u32,
    pub content: Content,
}

/// The content of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Content {
    /// No worker has been requested yet: others are started before.
    Waiting,
    /// Empty, but it will be filled while its generation is current.
    Empty,
    /// A worker has been requested, and it is not yet known whether it exists.
    AskedFor,
    Occupied(Worker),
    /// Empty, and it will not be filled again.
    GivenUp,
    /// Another generation has the slot of this number.
    Elsewhere,
}

/// One process of the server program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    #[serde(with = "super::as_number::pid")]
    pub pid: Pid,
    /// The number of its generation.
    pub generation: u32,
    /// The number of its slot, from 0.
    pub slot: usize,
    pub spawned_at: Moment,
    pub(super) standing: Standing,
    /// It may take until then to become ready, whatever `--start-timeout` says.
    pub(super) extended_until: Option<Moment>,
    /// It has been killed because it did not stop.
    pub(super) is_killed: bool,
    /// When it is killed, if it has been told to stop and that is bounded.
    pub(super) kill_at: Option<Moment>,
    /// What is known of its way to readiness.
    pub(super) known: Option<String>,
    /// What it says about itself.
    pub(super) text: Option<String>,
}

/// The progress of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// The process exists.
    Spawned,
    /// It runs the server program.
    Executed { at: Moment },
    /// It cannot run the server program, or has not become ready in time, and is about to exit.
    Failed(StartFailure),
    /// It has proved itself, and serves.
    Ready,
    /// It has begun to stop by itself.
    Stopping,
}

impl Generation {
    /// None of its workers is requested yet.
    pub(super) fn new(
        number: u32,
        why: Why,
        request: u32,
        workers: usize,
        now: Moment,
    ) -> Generation {
        Generation {
            number,
            why,
            request,
            stage: Stage::Uncommitted,
            lane: 0,
            shard: 0,
            quiet: None,
            rolls: false,
            steps: Steps::new(now),
            unhealthy: None,
            slots: vec![Slot::new(Content::Waiting, now); workers],
            leavers: Vec::new(),
        }
    }

    pub fn state(&self) -> State {
        match self.stage {
            Stage::Uncommitted => State::Starting,
            Stage::Current => State::Current,
            Stage::Canary { .. } => State::Canary,
            Stage::Partial => State::Partial,
            Stage::Retiring { .. } => State::Retiring,
            Stage::Sweeping => State::Sweeping,
            Stage::Draining | Stage::Failed => State::Old,
        }
    }

    /// Its living workers: by slot, then those that have no slot any more.
    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        let leavers = self.leavers.iter().map(|leaver| &leaver.worker);
        self.in_slots().chain(leavers)
    }

    /// Those of its living workers that serve, or have served. While it starts it has such workers only where they take over
    /// one by one.
    pub fn settled_workers(&self) -> impl Iterator<Item = &Worker> {
        let (is_starting, rolls) = (self.state() == State::Starting, self.rolls);
        let is_settled = move |worker: &&Worker| !is_starting || (rolls && worker.is_proved());
        self.workers().filter(is_settled)
    }

    /// Whether a worker of this number is wanted, or may be again.
    pub fn has_slot(&self, slot: usize) -> bool {
        let content = self.slots.get(slot).map(|slot| &slot.content);
        let may_return = |one: &Leaver| one.worker.slot == slot && one.told_at.is_some();
        content.is_some_and(|content| *content != Content::Elsewhere)
            || self.leavers.iter().any(may_return)
    }

    /// The number of its slots.
    pub fn size(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn in_slots(&self) -> impl Iterator<Item = &Worker> {
        self.slots.iter().filter_map(Slot::worker)
    }

    pub(super) fn pids(&self) -> Vec<Pid> {
        self.workers().map(|worker| worker.pid).collect()
    }

    /// Those of its workers that have not been told to stop one by one. All are to be told now.
    pub(super) fn take_untold(&mut self) -> Vec<Pid> {
        let in_slots: Vec<Pid> = self.in_slots().map(|worker| worker.pid).collect();
        let leavers = self.leavers.iter_mut();
        let untold = leavers.filter_map(|one| one.told_at.take().map(|_| one.worker.pid));
        in_slots.into_iter().chain(untold).collect()
    }

    /// Whether every slot has a proved worker: then it can commit.
    pub(super) fn is_proved(&self) -> bool {
        self.slots
            .iter()
            .all(|slot| slot.worker().is_some_and(Worker::is_proved))
    }

    /// Whether any worker is proved: then connections are served.
    pub(super) fn serves(&self) -> bool {
        self.in_slots().any(Worker::is_proved)
    }

    /// Whether the worker of this slot is proved.
    pub(super) fn serves_in(&self, slot: usize) -> bool {
        let worker = self.slots.get(slot).and_then(Slot::worker);
        worker.is_some_and(Worker::is_proved)
    }

    /// How many workers are proved.
    pub(super) fn count_proved(&self) -> usize {
        self.in_slots().filter(|one| one.is_proved()).count()
    }

    /// Whether it has no worker and is not about to get one.
    pub(super) fn is_gone(&self) -> bool {
        self.leavers.is_empty() && self.is_deserted()
    }

    /// Whether no slot has a worker or is about to get one, whatever else it waits for.
    pub(super) fn is_deserted(&self) -> bool {
        let is_uncommitted = self.stage == Stage::Uncommitted;
        self.slots.iter().all(|slot| match slot.content {
            Content::Waiting => !is_uncommitted,
            Content::Empty | Content::GivenUp | Content::Elsewhere => true,
            Content::AskedFor | Content::Occupied(_) => false,
        })
    }

    /// When a worker was last requested for a slot: the earliest such moment of all its slots.
    pub fn started_at(&self) -> Option<Moment> {
        self.slots.iter().map(|slot| slot.asked_at).min()
    }

    /// When a worker was last requested for any of its slots.
    pub(super) fn asked_at(&self) -> Option<Moment> {
        self.slots.iter().map(|slot| slot.asked_at).max()
    }

    /// When the last of its workers is killed, if all of them are that have not exited by then.
    pub fn killed_at(&self) -> Option<Moment> {
        let times: Option<Vec<Moment>> = self.workers().map(|worker| worker.kill_at).collect();
        times?.into_iter().max()
    }

    pub(super) fn worker_mut(&mut self, pid: Pid) -> Option<&mut Worker> {
        self.workers_mut().find(|worker| worker.pid == pid)
    }

    pub(super) fn workers_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        let leavers = self.leavers.iter_mut().map(|leaver| &mut leaver.worker);
        let slots = self.slots.iter_mut().filter_map(Slot::worker_mut);
        slots.chain(leavers)
    }

    /// Marks every worker that has lived long enough as proved.
    pub(super) fn prove_workers(&mut self, settle_time: Duration, now: Moment) {
        for slot in &mut self.slots {
            if slot.proved_at(settle_time).is_some_and(|at| at <= now) {
                slot.failures = 0;
                if let Some(worker) = slot.worker_mut() {
                    worker.standing = Standing::Ready;
                }
            }
        }
    }

    /// Takes a worker that has no slot.
    pub(super) fn take_leaver(&mut self, pid: Pid) -> Option<Worker> {
        let mut leavers = self.leavers.iter();
        let place = leavers.position(|one| one.worker.pid == pid)?;
        Some(self.leavers.remove(place).worker)
    }

    /// Empties the slot of this worker.
    pub(super) fn take_worker(&mut self, pid: Pid) -> Option<Worker> {
        let is_its = |slot: &&mut Slot| slot.worker().is_some_and(|worker| worker.pid == pid);
        self.slots.iter_mut().find(is_its)?.take_worker()
    }
}

impl Slot {
    pub fn new(content: Content, asked_at: Moment) -> Slot {
        Slot {
            asked_at,
            failures: 0,
            content,
        }
    }

    /// Whether its worker is asked for or not proved yet.
    pub fn is_starting(&self) -> bool {
        match &self.content {
            Content::AskedFor => true,
            Content::Occupied(worker) => match worker.standing {
                Standing::Spawned | Standing::Executed { .. } => true,
                Standing::Failed(_) | Standing::Ready | Standing::Stopping => false,
            },
            Content::Waiting | Content::Empty | Content::GivenUp | Content::Elsewhere => false,
        }
    }

    /// Whether it has a worker that is not about to end, or will have one in a moment.
    pub fn goes_on(&self) -> bool {
        match &self.content {
            Content::AskedFor => true,
            Content::Occupied(worker) => match worker.standing {
                Standing::Spawned | Standing::Executed { .. } | Standing::Ready => true,
                Standing::Failed(_) | Standing::Stopping => false,
            },
            Content::Waiting | Content::Empty | Content::GivenUp | Content::Elsewhere => false,
        }
    }

    /// When this slot's worker has taken too long to execute the program, if it has not yet.
    pub fn hangs_at(&self) -> Option<Moment> {
        match &self.content {
            Content::Occupied(worker) if worker.standing == Standing::Spawned => {
                Some(worker.spawned_at + LONGEST_EXEC)
            }
            Content::Occupied(_)
            | Content::Waiting
            | Content::Empty
            | Content::AskedFor
            | Content::GivenUp
            | Content::Elsewhere => None,
        }
    }

    pub fn worker(&self) -> Option<&Worker> {
        match &self.content {
            Content::Occupied(worker) => Some(worker),
            Content::Waiting
            | Content::Empty
            | Content::AskedFor
            | Content::GivenUp
            | Content::Elsewhere => None,
        }
    }

    pub fn worker_mut(&mut self) -> Option<&mut Worker> {
        match &mut self.content {
            Content::Occupied(worker) => Some(worker),
            Content::Waiting
            | Content::Empty
            | Content::AskedFor
            | Content::GivenUp
            | Content::Elsewhere => None,
        }
    }

    /// When its worker is proved, if only time is missing.
    pub fn proved_at(&self, settle_time: Duration) -> Option<Moment> {
        match self.worker()?.standing {
            Standing::Executed { at } => {
                Some((self.asked_at + settle_time).max(at + PROOF_OF_LIFE))
            }
            Standing::Spawned | Standing::Failed(_) | Standing::Ready | Standing::Stopping => None,
        }
    }

    /// When its worker must be ready at the latest, if it is not and that is to be told.
    pub fn late_at(&self, within: Duration) -> Option<Moment> {
        let worker = self.worker()?;
        match worker.standing {
            Standing::Spawned | Standing::Executed { .. } => {
                let at = self.asked_at + within;
                Some(worker.extended_until.map_or(at, |until| at.max(until)))
            }
            Standing::Failed(_) | Standing::Ready | Standing::Stopping => None,
        }
    }

    pub fn take_worker(&mut self) -> Option<Worker> {
        match std::mem::replace(&mut self.content, Content::Empty) {
            Content::Occupied(worker) => Some(worker),
            content @ (Content::Waiting
            | Content::Empty
            | Content::AskedFor
            | Content::GivenUp
            | Content::Elsewhere) => {
                self.content = content;
                None
            }
        }
    }
}

impl Worker {
    pub(super) fn new(pid: Pid, generation: u32, slot: usize, now: Moment) -> Worker {
        Worker {
            pid,
            generation,
            slot,
            spawned_at: now,
            standing: Standing::Spawned,
            extended_until: None,
            is_killed: false,
            kill_at: None,
            known: None,
            text: None,
        }
    }

    /// What it says about itself, if anything.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    pub(super) fn is_proved(&self) -> bool {
        self.standing == Standing::Ready
    }

    /// Whether it serves, or did until it began to stop by itself.
    pub(super) fn has_served(&self) -> bool {
        matches!(self.standing, Standing::Ready | Standing::Stopping)
    }

    /// Why it cannot run the server program or was not ready in time, if that is what happened.
    pub(super) fn failure(&self) -> Option<&StartFailure> {
        match &self.standing {
            Standing::Failed(failure) => Some(failure),
            Standing::Spawned
            | Standing::Executed { .. }
            | Standing::Ready
            | Standing::Stopping => None,
        }
    }
}
