//! Readiness that is told instead of being a matter of time, and workers that are killed because they do not stop.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::generation::{Generation, Slot, Stage, Standing, State, Worker};
use super::model::{Action, Machine, Proof};
use super::start::is_success;
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

/// How long the workers of a failed start may take to stop, where `--stop-timeout` does not say.
const PATIENCE_WITH_FAILED: Duration = Duration::from_secs(10);

// What is told of a worker.

impl Machine {
    /// It serves. For a worker that has been told to stop, or cannot serve, this comes too late.
    pub(super) fn ready(&mut self, pid: Pid, now: Moment) {
        if self.settings.proof == Proof::Interval || self.is_stopping() {
            return;
        }
        let slot = self
            .generations
            .iter_mut()
            .filter(|generation| generation.state() != State::Old)
            .flat_map(|generation| &mut generation.slots)
            .find(|slot| slot.worker().is_some_and(|worker| worker.pid == pid));
        let Some(slot) = slot else { return };
        let Some(worker) = slot.worker_mut() else {
            return;
        };
        let has_executed = match worker.standing {
            Standing::Spawned => false,
            Standing::Executed { .. } => true,
            Standing::Failed(_) | Standing::Ready | Standing::Stopping => return,
        };
        worker.standing = Standing::Ready;
        slot.failures = 0;
        if !has_executed {
            // The report of that is on its way.
            self.has_executed(pid, now);
        }
        self.commit_if_proved(now);
        self.signal_retiring(now);
    }

    pub(super) fn start_extended(&mut self, pid: Pid, until: Moment) {
        if let Some(worker) = self.worker_mut(pid) {
            worker.extended_until = worker.extended_until.max(Some(until));
        }
    }

    pub(super) fn not_yet_ready(&mut self, pid: Pid, known: String) {
        if let Some(worker) = self.worker_mut(pid) {
            worker.known = Some(known);
        }
    }

    pub(super) fn says(&mut self, pid: Pid, text: String) {
        if let Some(worker) = self.worker_mut(pid) {
            worker.text = Some(text);
        }
    }

    /// A worker stops without having been told to: for its generation it is as good as gone.
    pub(super) fn stopping_by_itself(&mut self, pid: Pid, now: Moment) {
        let Some(worker) = self.worker_mut(pid) else {
            return;
        };
        let (number, slot) = (worker.generation, worker.slot);
        let is_old = self.state_of(number) == Some(State::Old) || self.is_leaver(pid);
        if self.is_stopping() || is_old {
            return;
        }
        let Some(worker) = self.worker_mut(pid) else {
            return;
        };
        if std::mem::replace(&mut worker.standing, Standing::Stopping) == Standing::Stopping {
            return;
        }
        self.say(Notice::StoppingByItself(pid));
        match self.state_of(number) {
            Some(State::Starting) => {
                let cause = StartFailure::stopping(pid);
                self.say(Notice::CannotStartWorker {
                    generation: number,
                    slot,
                    pid: Some(pid),
                    cause: cause.clone(),
                });
                self.start_failed(number, None, Some(cause), now);
            }
            Some(State::Current) if !self.has_others(number, slot) => {
                self.retire_at_once(number, now);
                self.current_died(number, None, Some(StartFailure::stopping(pid)), now);
            }
            Some(State::Retiring) if !self.has_others(number, slot) => {
                self.retire_at_once(number, now);
            }
            Some(State::Sweeping) => {
                self.retire_at_once(number, now);
            }
            Some(State::Canary) => {
                self.canary_failed(number, None, Some(StartFailure::stopping(pid)), now);
            }
            Some(State::Current | State::Partial | State::Retiring | State::Old) | None => {}
        }
        self.save_status();
    }

    /// There is no way back to it, and it need not be told to stop; it drains like any other.
    fn retire_at_once(&mut self, number: u32, now: Moment) {
        let patience = self.settings.kill_old_timeout;
        if let Some(generation) = self.generation_mut(number) {
            generation.stage = Stage::Draining;
            generation.quiet = None;
            generation.unhealthy = None;
            for worker in generation.slots.iter_mut().filter_map(Slot::worker_mut) {
                worker.kill_at = patience.map(|patience| now + patience);
            }
        }
        self.kill_surplus();
    }

    /// Whether another slot of the generation has a worker that goes on, or is about to get one.
    fn has_others(&self, number: u32, slot: usize) -> bool {
        let slots = self.generation(number).map(|one| one.slots.as_slice());
        let mut others = slots.unwrap_or_default().iter().enumerate();
        others.any(|(place, other)| place != slot && other.goes_on())
    }

    pub(super) fn worker_mut(&mut self, pid: Pid) -> Option<&mut Worker> {
        self.generations
            .iter_mut()
            .find_map(|generation| generation.worker_mut(pid))
    }
}

// Workers that are not ready in time.

impl Machine {
    /// When the worker of this slot must have become ready.
    pub(super) fn late_at(&self, slot: &Slot) -> Option<Moment> {
        match self.settings.proof {
            Proof::Interval => None,
            Proof::Told { within } => slot.late_at(within),
        }
    }

    /// When a starting generation fails unless it is ready by then.
    pub fn fails_at(&self, generation: &Generation) -> Option<Moment> {
        let slots = generation.slots.iter();
        let late = slots.filter_map(|slot| self.late_at(slot)).min();
        late.filter(|_| generation.state() == State::Starting)
    }

    /// Workers that have not become ready in time have failed.
    pub(super) fn fail_late(&mut self, now: Moment) {
        let Proof::Told { within } = self.settings.proof else {
            return;
        };
        let late: Vec<Worker> = self
            .generations
            .iter()
            .filter(|generation| generation.stage.awaits_readiness())
            .flat_map(|generation| &generation.slots)
            .filter(|slot| slot.late_at(within).is_some_and(|at| at <= now))
            .filter_map(Slot::worker)
            .cloned()
            .collect();
        for worker in late {
            let known = worker.known.as_deref().unwrap_or("nothing is known of it");
            let cause = StartFailure::not_ready(worker.pid, within, known);
            match self.state_of(worker.generation) {
                Some(State::Starting) => {
                    self.say(Notice::CannotStartWorker {
                        generation: worker.generation,
                        slot: worker.slot,
                        pid: Some(worker.pid),
                        cause: cause.clone(),
                    });
                    self.start_failed(worker.generation, None, Some(cause), now);
                }
                // Its exit is the failure of its slot, which cannot be refilled before then.
                Some(State::Current | State::Canary | State::Sweeping) => {
                    if let Some(worker) = self.worker_mut(worker.pid) {
                        worker.standing = Standing::Failed(cause);
                    }
                    let signal = self.settings.signal_on_term;
                    self.tell_to_stop(&[worker.pid], signal, self.patience_with_failed(), now);
                }
                // Another worker of its generation was late as well, and the whole start has failed.
                Some(State::Partial | State::Retiring | State::Old) | None => {}
            }
        }
    }
}

// Workers that do not stop.

impl Machine {
    pub(super) fn patience_with_failed(&self) -> Option<Duration> {
        Some(self.settings.stop_timeout.unwrap_or(PATIENCE_WITH_FAILED))
    }

    /// Sends a signal to stop. A worker that outlives `patience` is killed.
    pub(super) fn tell_to_stop(
        &mut self,
        pids: &[Pid],
        signal: Signal,
        patience: Option<Duration>,
        now: Moment,
    ) {
        for pid in pids {
            self.signal(*pid, signal);
            if let Some(worker) = self.worker_mut(*pid) {
                worker.kill_at = patience.map(|patience| now + patience);
            }
        }
    }

    /// When the next worker is to be killed.
    pub(super) fn kill_at(&self) -> Option<Moment> {
        let workers = self.generations.iter().flat_map(Generation::workers);
        workers.filter_map(|worker| worker.kill_at).min()
    }

    /// Kills workers that have taken too long to stop.
    pub(super) fn kill_due(&mut self, now: Moment) {
        let workers = self.generations.iter().flat_map(Generation::workers);
        let due = workers.filter(|worker| worker.kill_at.is_some_and(|at| at <= now));
        let due: Vec<Pid> = due.map(|worker| worker.pid).collect();
        self.kill(&due);
    }

    /// Kills the oldest of too many draining generations. Those of failed starts do not count: they never served.
    pub(super) fn kill_surplus(&mut self) {
        let Some(most) = self.settings.max_old_generations else {
            return;
        };
        let most = usize::try_from(most.get()).unwrap_or(usize::MAX);
        let old: Vec<&Generation> = self
            .generations
            .iter()
            .filter(|one| one.stage == Stage::Draining && one.quiet.is_none() && !one.is_sweeper())
            .collect();
        let surplus = old.len().saturating_sub(most);
        let pids = old.into_iter().take(surplus).flat_map(Generation::pids);
        let pids: Vec<Pid> = pids.collect();
        self.kill(&pids);
    }

    /// A worker of a failed start did not stop and was killed, or has left the foreground when others of it had failed: what
    /// it has started goes with it. It has the listeners, and nobody would tell it to stop. Where the next generation waits
    /// for its end, the same holds for any old worker that was killed.
    pub(super) fn end_what_it_started(&mut self, worker: &Worker, status: i32) {
        let Some(generation) = self.generation(worker.generation) else {
            return;
        };
        let (has_failed, stops_first) = match generation.stage {
            Stage::Failed => (true, false),
            Stage::Partial => (!worker.has_served(), false),
            Stage::Draining => (false, self.stops_first()),
            Stage::Uncommitted
            | Stage::Current
            | Stage::Canary { .. }
            | Stage::Retiring { .. }
            | Stage::Sweeping => (false, false),
        };
        let has_left =
            has_failed && !worker.has_served() && is_success(Some(status), worker.failure());
        if worker.is_killed && (has_failed || stops_first) {
            self.end_leftovers(worker, Signal::SIGKILL);
        } else if has_left {
            self.end_leftovers(worker, self.settings.signal_on_term);
        }
    }

    /// Others of its generation may live: what they have left behind has another number.
    pub(super) fn end_leftovers(&mut self, worker: &Worker, signal: Signal) {
        self.actions.push(Action::EndLeftovers {
            worker: worker.pid,
            generation: worker.generation,
            slot: worker.slot,
            signal,
        });
    }

    fn kill(&mut self, pids: &[Pid]) {
        if pids.is_empty() {
            return;
        }
        self.say(Notice::KillingLateWorkers {
            pids: pids.to_vec(),
        });
        for pid in pids {
            if let Some(worker) = self.worker_mut(*pid) {
                worker.kill_at = None;
                worker.is_killed = true;
            }
            // As when everything is stopped: tools that watch a suspended process see it run again.
            self.signal(*pid, Signal::SIGCONT);
            self.signal(*pid, Signal::SIGKILL);
        }
    }
}

impl Stage {
    /// Whether a worker that is not ready in time is stopped for that.
    pub(super) fn awaits_readiness(self) -> bool {
        match self {
            Stage::Uncommitted | Stage::Current | Stage::Canary { .. } | Stage::Sweeping => true,
            Stage::Partial | Stage::Retiring { .. } | Stage::Draining | Stage::Failed => false,
        }
    }
}
