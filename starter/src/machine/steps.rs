//! How far a start has come, for readers of the status: no decision depends on it.

use nix::unistd::Pid;

use super::generation::{Generation, Stage};
use super::model::{Machine, Phase};
use crate::host::moment::Moment;

impl Machine {
    /// A process of this generation exists.
    pub(super) fn has_spawned(&mut self, number: u32, now: Moment) {
        let generation = self.generation_mut(number);
        if let Some(generation) = generation.filter(|one| one.stage == Stage::Uncommitted) {
            generation.steps.spawned_at = Some(now);
        }
    }

    /// A worker runs the program.
    pub(super) fn has_executed(&mut self, pid: Pid, now: Moment) {
        let mut generations = self.generations.iter_mut();
        let generation = generations.find(|one| one.workers().any(|worker| worker.pid == pid));
        if let Some(generation) = generation.filter(|one| one.stage == Stage::Uncommitted) {
            generation.steps.executed_at = Some(now);
        }
    }

    /// The newest generation before this one that serves, or has served.
    pub(super) fn replaced_by(&self, number: u32) -> Option<u32> {
        let older = self
            .generations
            .iter()
            .filter(|one| one.number < number && !one.is_sweeper());
        let served = older.filter(|one| match one.stage {
            Stage::Current | Stage::Partial | Stage::Retiring { .. } | Stage::Draining => true,
            Stage::Uncommitted | Stage::Canary { .. } | Stage::Sweeping | Stage::Failed => false,
        });
        served.map(|one| one.number).max()
    }

    /// Whether the verdict on the last start may depend on this worker.
    pub fn is_on_trial(&self, pid: Pid) -> bool {
        let mut generations = self.generations.iter();
        let its = generations.find(|one| one.workers().any(|worker| worker.pid == pid));
        its.is_some_and(|its| match its.stage {
            Stage::Uncommitted | Stage::Canary { .. } => true,
            // There is a way back.
            Stage::Current => self.generations.iter().any(|one| one.number < its.number),
            Stage::Partial
            | Stage::Retiring { .. }
            | Stage::Sweeping
            | Stage::Draining
            | Stage::Failed => false,
        })
    }

    /// The workers of failed starts that have not exited yet.
    pub fn failed_workers(&self) -> impl Iterator<Item = Pid> {
        let failed = self
            .generations
            .iter()
            .filter(|one| one.stage == Stage::Failed);
        failed
            .flat_map(Generation::workers)
            .map(|worker| worker.pid)
    }

    /// At the end of each event: whatever has replaced generations may be alone by now. What ends with the server has not
    /// been replaced.
    pub(super) fn note_drained(&mut self, now: Moment) {
        if self.phase != Phase::Serving {
            return;
        }
        let living = self
            .generations
            .iter()
            .filter(|one| !one.is_gone() && !one.is_sweeper());
        let living: Vec<u32> = living.map(|one| one.number).collect();
        if self.history.note_drained(&living, now) {
            self.save_status();
        }
    }
}
