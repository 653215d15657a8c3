//! What has happened so far, for readers of the status: no decision depends on it.

use std::collections::VecDeque;

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
}

/// How often something has happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Restarts requested.
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
    /// 0 if none was started.
    pub generation: u32,
    pub verdict: Verdict,
    pub at: Moment,
}

/// Whether a start has led to a serving generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    Committed,
    /// It serves, but not everywhere it should.
    Unreachable(Unreachable),
    /// Nothing was started.
    CheckFailed(FailedCheck),
    Failed {
        /// The wait status of the worker that failed, if there was a process.
        status: Option<i32>,
        /// Why it failed, if more is known than how it ended: then the status says nothing.
        cause: Option<StartFailure>,
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

    /// The last decision on this generation.
    pub(super) fn decision_on(&self, generation: u32) -> Option<&Decision> {
        let mut decisions = self.decisions.iter().rev();
        decisions.find(|decision| decision.generation == generation)
    }

    /// A generation has committed.
    pub(super) fn count_commit(&mut self, now: Moment) {
        self.counters.commits = self.counters.commits.saturating_add(1);
        self.committed_at = Some(now);
    }

    pub(super) fn add_departed(&mut self, departed: Departed) {
        push_the_last(&mut self.departed, departed);
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
