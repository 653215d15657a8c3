//! What has happened so far, for readers of the status: no decision depends on it.

use std::collections::VecDeque;
use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::moment::Moment;
use crate::words::start_failure::StartFailure;
use crate::words::trouble::Unreachable;

/// How many decisions and departed workers are remembered.
pub const REMEMBERED: usize = 10;

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub counters: Counters,
    /// When a generation last committed.
    pub committed_at: Option<Moment>,
    /// The last decisions, oldest first.
    pub decisions: VecDeque<Decision>,
    /// The last departed workers, oldest first.
    pub departed: VecDeque<Departed>,
    /// The last change of the number of workers.
    #[serde(default)]
    pub scaling: Option<Scaling>,
}

/// A change of the number of workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    /// Counted from 1.
    pub number: u32,
    pub from: usize,
    pub to: usize,
    pub at: Moment,
    /// When they all served, or why they do not.
    pub result: Option<Result<Moment, StartFailure>>,
}

/// How far a generation has come that takes over slot by slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolled {
    /// Slots that it has taken over.
    pub done: usize,
    pub of: usize,
}

/// How often something has happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Restarts and rollbacks requested.
    pub restarts: u32,
    /// Generations that have committed, the first included.
    pub commits: u32,
    /// Failed starts, of a generation or of a replacement within a generation.
    pub failed_starts: u32,
    /// Workers that died while serving.
    pub crashes: u32,
}

/// The result of an attempt to start a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// It answers every restart requested up to this one, counted from 1.
    pub request: u32,
    /// The last of those is a rollback. If that is refused, this answers no other.
    pub is_of_rollback: bool,
    /// 0 if none was started.
    pub generation: u32,
    pub verdict: Verdict,
    pub at: Moment,
    /// The generation that it was to replace, if there was one: the newest older one, or after a rollback a newer one.
    pub replaces: Option<u32>,
    /// The generation whose program it runs again, after a rollback.
    pub again: Option<u32>,
    pub steps: Steps,
    /// What it has cost, if what served had to stop first.
    pub outage: Option<Outage>,
    /// How far it has come, if it has failed in the middle of a roll.
    #[serde(default)]
    pub rolled: Option<Rolled>,
}

/// A time in which nothing served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// What served was told to stop.
    pub since: Moment,
    /// Something served again.
    pub until: Option<Moment>,
    /// The generation that has ended it, if that is what served before.
    pub restored: Option<u32>,
}

/// When each step of a start was done, for the last worker that took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// Its workers were asked for.
    pub asked_at: Moment,
    /// Its processes existed.
    pub spawned_at: Option<Moment>,
    /// They ran the program.
    pub executed_at: Option<Moment>,
    /// They served.
    pub ready_at: Option<Moment>,
    /// No older generation had a worker any more.
    pub drained_at: Option<Moment>,
}

/// How long each step of a start took, if it was done, from the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Durations {
    pub spawn: Option<Duration>,
    pub exec: Option<Duration>,
    pub ready: Option<Duration>,
    pub drained: Option<Duration>,
    /// From the end of what it was to replace until something served.
    pub unserved: Option<Duration>,
}

/// Whether a start has led to a serving generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    Committed,
    /// It serves a share of new traffic.
    Canary,
    /// It serves, but not everywhere it should.
    Unreachable(Unreachable),
    /// Nothing was started.
    CheckFailed(FailedCheck),
    /// The same, without a check; or a rollback has undone it.
    Refused(StartFailure),
    Failed {
        /// The wait status of the worker that failed, if there was a process.
        status: Option<i32>,
        /// Why it failed, if more is known than how it ended: then the status says nothing.
        cause: Option<StartFailure>,
        /// `--start-limit` forbids another try.
        given_up: bool,
    },
}

/// How a check has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCheck {
    /// Its wait status, if it has one.
    pub status: Option<i32>,
    pub cause: StartFailure,
    /// The last lines of its output.
    pub lines: Vec<String>,
}

/// A departed worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    pub generation: u32,
    #[serde(with = "super::as_number::pid")]
    pub pid: Pid,
    /// As wait(2) gives it.
    pub status: i32,
    pub at: Moment,
}

impl History {
    pub(super) fn add_decision(&mut self, decision: Decision) {
        push_the_last(&mut self.decisions, decision);
    }

    /// The last decision was a failure after which the limit forbids another try.
    pub(super) fn note_given_up(&mut self) {
        let last = self.decisions.back_mut();
        if let Some(Verdict::Failed { given_up, .. }) = last.map(|one| &mut one.verdict) {
            *given_up = true;
        }
    }

    /// The last decision on this generation.
    pub(super) fn decision_on(&self, generation: u32) -> Option<&Decision> {
        let mut decisions = self.decisions.iter().rev();
        decisions.find(|decision| decision.generation == generation)
    }

    /// Whether there is a decision on the restart with this number, if it is not forgotten.
    pub(super) fn has_answered(&self, request: u32) -> bool {
        let mut decisions = self.decisions.iter();
        decisions.any(|one| one.request >= request && (one.generation != 0 || !one.is_of_rollback))
    }

    /// Only these generations have workers: what has replaced all others is alone. Returns whether that is news.
    pub(super) fn note_drained(&mut self, living: &[u32], now: Moment) -> bool {
        let mut is_news = false;
        for decision in &mut self.decisions {
            let serves = !matches!(
                decision.verdict,
                Verdict::Canary | Verdict::Failed { .. } | Verdict::Refused(_)
            );
            let number = decision.generation;
            let Some(replaces) = decision.replaces.filter(|_| serves) else {
                continue;
            };
            let last = replaces.max(number);
            let is_alone = living.iter().all(|one| *one == number || *one > last);
            if decision.steps.drained_at.is_none() && is_alone {
                decision.steps.drained_at = Some(now);
                is_news = true;
            }
        }
        is_news
    }

    /// Something serves again: perhaps what served before.
    pub(super) fn end_outage(&mut self, restored: Option<u32>, now: Moment) {
        let outages = self
            .decisions
            .iter_mut()
            .filter_map(|one| one.outage.as_mut());
        for outage in outages.filter(|outage| outage.until.is_none()) {
            outage.until = Some(now);
            outage.restored = restored;
        }
    }

    /// A generation has committed.
    pub(super) fn count_commit(&mut self, now: Moment) {
        self.counters.commits = self.counters.commits.saturating_add(1);
        self.committed_at = Some(now);
    }

    pub(super) fn begin_scaling(&mut self, from: usize, to: usize, at: Moment) {
        let before = self.scaling.as_ref().map_or(0, |scaling| scaling.number);
        self.scaling = Some(Scaling {
            number: before.saturating_add(1),
            from,
            to,
            at,
            result: None,
        });
    }

    pub(super) fn end_scaling(&mut self, result: Result<Moment, StartFailure>) {
        if let Some(scaling) = &mut self.scaling {
            scaling.result = Some(result);
        }
    }

    pub(super) fn add_departed(&mut self, departed: Departed) {
        push_the_last(&mut self.departed, departed);
    }
}

impl Scaling {
    pub fn is_pending(&self) -> bool {
        self.result.is_none()
    }
}

impl Steps {
    pub(super) fn new(asked_at: Moment) -> Steps {
        Steps {
            asked_at,
            spawned_at: None,
            executed_at: None,
            ready_at: None,
            drained_at: None,
        }
    }

    fn durations(&self) -> Durations {
        let passed = |from: Option<Moment>, to: Option<Moment>| Some(to?.saturating_since(from?));
        Durations {
            spawn: passed(Some(self.asked_at), self.spawned_at),
            exec: passed(self.spawned_at, self.executed_at),
            ready: passed(self.executed_at, self.ready_at),
            drained: passed(self.ready_at, self.drained_at),
            unserved: None,
        }
    }
}

impl Decision {
    pub fn durations(&self) -> Durations {
        let passed = |outage: Outage| Some(outage.until?.saturating_since(outage.since));
        Durations {
            unserved: self.outage.and_then(passed),
            ..self.steps.durations()
        }
    }
}

impl Counters {
    // A counter overflow is no reason to stop.

    pub(super) fn count_restart(&mut self) {
        self.restarts = self.restarts.saturating_add(1);
    }

    pub(super) fn count_failed_start(&mut self) {
        self.failed_starts = self.failed_starts.saturating_add(1);
    }

    pub(super) fn count_crash(&mut self) {
        self.crashes = self.crashes.saturating_add(1);
    }
}

fn push_the_last<T>(remembered: &mut VecDeque<T>, last: T) {
    remembered.push_back(last);
    if remembered.len() > REMEMBERED {
        remembered.pop_front();
    }
}
