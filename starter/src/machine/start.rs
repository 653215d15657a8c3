//! Starting: a generation, what follows its failure, and automatic restarts.

use std::num::NonZeroU32;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::generation::{Generation, LONGEST_EXEC, Slot, Stage, Standing, State, Why, Worker};
use super::history::{Decision, Rolled, Steps, Verdict};
use super::model::{Machine, Outcome, Planned, Source};
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

/// The longest wait between two failed starts, unless the interval itself is longer.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// After this many first starts in a row that exit with success, the program evidently goes into the background: give up.
pub(super) const MOST_SUCCESSES: u32 = 3;

/// A failed start of a generation.
pub(super) struct FailedStart {
    number: u32,
    request: u32,
    why: Why,
    /// When its last worker was requested: the next try counts from there.
    asked_at: Moment,
    steps: Steps,
    /// The wait status of the worker that failed, if there was a process.
    status: Option<i32>,
    cause: Option<StartFailure>,
    /// How far it has come, if it rolled.
    rolled: Option<Rolled>,
}

// The start of a generation.

impl Machine {
    /// Requests the workers of the next generation, each in its turn.
    pub(super) fn start_generation(&mut self, why: Why, now: Moment) {
        self.planned = None;
        self.take_back_share();
        // Numbers are never reused: a worker that died while starting leaves a gap, as in Server::Starter.
        self.last_number = self.last_number.saturating_add(1);
        self.last_started_at = now;
        let (number, workers) = (self.last_number, self.settings.workers);
        let from = self.source(why);
        let request = match from {
            Source::Disk => self.history.counters.restarts,
            Source::Generation(_) if why.is_restart() => self.history.counters.restarts,
            // What served before is no answer to any of them.
            Source::Generation(_) => 0,
        };
        if why.is_restart() {
            self.postponed = None;
        }
        let rolls = self.rolls(why);
        let lane = self.next_lane().unwrap_or(self.selected.main.lane);
        let mut generation = Generation::new(number, why, request, workers, now);
        generation.lane = lane;
        generation.rolls = rolls;
        self.generations.push(generation);
        self.take_turns(now);
    }

    pub(super) fn start_at(&mut self, at: Moment, why: Why, now: Moment) {
        let planned = self.planned.map(|planned| planned.why);
        let why = match self.postpones(planned, why) {
            true => why,
            false => why.instead_of(planned),
        };
        match at <= now && self.may_start() {
            true => self.start_generation(why, now),
            false => {
                self.planned = Some(Planned { at, why });
                if at <= now && self.are_lanes_taken() {
                    self.announce_wait();
                }
            }
        }
    }

    /// HUP, or an order for a canary.
    pub(super) fn restart(&mut self, why: Why, now: Moment) {
        if self.is_stopping() {
            return;
        }
        self.history.counters.count_restart();
        if self.is_replacing(now) || self.checking.is_some() {
            // However many requests arrive during one start, they lead to one more restart.
            self.want(why);
            self.save_status();
            return;
        }
        self.start_checked(why, now);
    }

    /// A restart that was asked for, and checked if it had to be.
    pub(super) fn restart_now(&mut self, why: Why, now: Moment) {
        // Presumably the user has fixed what failed: the next try is not delayed any longer.
        self.forget_failures();
        self.early_deaths = 0;
        let earliest = match self.planned {
            Some(_) => self.last_started_at + self.settle_time(),
            None => now,
        };
        self.say(why.announced());
        self.make_way_for_another(now);
        self.start_at(earliest, why, now);
        self.save_status();
    }

    /// As in Server::Starter: once the interval has passed since the last start and no old worker is left; with old ones
    /// left, once it has passed twice.
    pub(super) fn restart_by_itself(&mut self, now: Moment) {
        let Some((_, forced)) = self.next_auto_restart().filter(|(at, _)| *at <= now) else {
            return;
        };
        let interval = self.settings.knobs.auto_restart.unwrap_or_default();
        self.say(Notice::AutoRestart { interval, forced });
        self.start_checked(Why::Timed, now);
    }

    /// When the next automatic restart is due, and whether it is forced.
    pub(super) fn next_auto_restart(&self) -> Option<(Moment, bool)> {
        let interval = self.settings.knobs.auto_restart?;
        if self.current().is_none()
            || self.canary().is_some()
            || self.is_starting()
            || self.planned.is_some()
            || self.checking.is_some()
        {
            return None;
        }
        let forced = self.generations.len() > 1;
        let wait = if forced {
            interval.saturating_mul(2)
        } else {
            interval
        };
        Some((self.auto_restart_since + wait, forced))
    }
}

// Its failure.

impl Machine {
    pub(super) fn starting_worker_died(&mut self, worker: &Worker, status: i32, now: Moment) {
        let cause = worker.failure().cloned();
        let has_succeeded = is_success(Some(status), cause.as_ref());
        // Nothing serves that could be kept, and the next try would find the same program.
        let is_hopeless = worker.generation == 1 && cause.is_some();
        if !is_hopeless {
            let pid = worker.pid;
            self.say(Notice::FailedToStart { pid, status });
        }
        if has_succeeded {
            self.end_leftovers(worker, self.settings.signal_on_term);
        }
        self.start_failed(worker.generation, Some(status), cause, now);
        if is_hopeless && !self.is_stopping() {
            self.stop_all(self.settings.signal_on_term, Outcome::GivenUp, now);
        }
    }

    /// Kills workers that have not executed the program in time. Their exit is not awaited: whatever keeps them from the
    /// program may also keep them from exiting.
    pub(super) fn fail_hanging(&mut self, now: Moment) {
        let hanging: Vec<Worker> = self
            .generations
            .iter()
            .filter(|generation| generation.stage.awaits_readiness())
            .flat_map(|generation| &generation.slots)
            .filter(|slot| slot.hangs_at().is_some_and(|at| at <= now))
            .filter_map(Slot::worker)
            .cloned()
            .collect();
        for worker in hanging {
            let cause = StartFailure::hanging(worker.pid, LONGEST_EXEC);
            self.signal(worker.pid, Signal::SIGKILL);
            if let Some(worker) = self.worker_mut(worker.pid) {
                worker.is_killed = true;
            }
            if self.state_of(worker.generation) == Some(State::Starting) {
                self.say(Notice::CannotStartWorker {
                    generation: worker.generation,
                    slot: worker.slot,
                    pid: Some(worker.pid),
                    cause: cause.clone(),
                });
                self.start_failed(worker.generation, None, Some(cause), now);
            } else if let Some(generation) = self.generation_mut(worker.generation)
                && let Some(worker) = generation.worker_mut(worker.pid)
            {
                // Its exit is the failure of its slot, which cannot be refilled before.
                worker.standing = Standing::Failed(cause);
            }
        }
    }

    /// A failed start: stops what is left of it, and plans another one, with growing delays.
    pub(super) fn start_failed(
        &mut self,
        number: u32,
        status: Option<i32>,
        cause: Option<StartFailure>,
        now: Moment,
    ) {
        let rolled = self.rolled(number);
        let Some(generation) = self.generation_mut(number) else {
            return;
        };
        let failed = FailedStart {
            rolled,
            ..FailedStart::of(generation, status, cause, now)
        };
        if generation.rolls {
            self.stop_roll(number, now);
        } else {
            generation.stage = Stage::Failed;
            let pids = generation.take_untold();
            let signal = self.settings.signal_on_term;
            self.tell_to_stop(&pids, signal, self.patience_with_failed(), now);
            self.drop_gone();
        }
        self.try_again(&failed, now);
    }

    /// The last worker of the current generation is gone, or about to be. If the previous generation has not been signalled
    /// yet, it becomes current again: this is the rollback.
    pub(super) fn current_died(
        &mut self,
        number: u32,
        status: Option<i32>,
        cause: Option<StartFailure>,
        now: Moment,
    ) {
        let Some(generation) = self.generation(number) else {
            return;
        };
        let served_since = generation.steps.ready_at;
        let failed = FailedStart::of(generation, status, cause, now);
        // Workers that have lost their slots may still live.
        if let Some(generation) = self.generation_mut(number) {
            generation.stage = Stage::Draining;
            generation.unhealthy = None;
        }
        self.drop_gone();
        let (is_starting, has_canary) = (self.is_starting(), self.canary().is_some());
        let previous = self
            .generations
            .iter_mut()
            .rev()
            .find(|generation| generation.state() == State::Retiring);
        match previous {
            Some(generation) => {
                generation.stage = Stage::Current;
                generation.quiet = None;
                let pids = generation.pids();
                (self.served, self.served_before) = (Some(generation.number), None);
                self.switch_to_current();
                self.say(Notice::RolledBack { pids });
                match is_starting || has_canary || self.waits_for_lane(now) {
                    // What is starting, serves a share, or waits for a lane, is the next try.
                    true => self.record_failure(&failed, now),
                    false => self.try_again(&failed, now),
                }
                self.fill_slots(now);
            }
            None if has_canary => self.promote_instead_of(number, now),
            // What is starting becomes current.
            None if is_starting => self.count_for_what_served(),
            None => {
                self.count_for_what_served();
                let at = self.comes_back_at(served_since, now);
                self.start_at(at, Why::Replacement, now);
            }
        }
    }

    pub(super) fn record_failure(&mut self, failed: &FailedStart, now: Moment) {
        self.history.counters.count_failed_start();
        self.history.add_decision(Decision {
            request: failed.request,
            is_of_rollback: failed.why.rolls_back_to().is_some(),
            generation: failed.number,
            verdict: Verdict::Failed {
                status: failed.status,
                cause: failed.cause.clone(),
                given_up: false,
            },
            at: now,
            replaces: self
                .replaced_by(failed.number)
                .or(self.stopped_for(failed.why)),
            again: failed.why.rolls_back_to(),
            steps: failed.steps,
            outage: self.outage_of(failed.why),
            rolled: failed.rolled,
        });
    }

    /// Records the failure, and decides whether and when there is another start.
    fn try_again(&mut self, failed: &FailedStart, now: Moment) {
        self.failures = self.failures.saturating_add(1);
        self.successes = match is_success(failed.status, failed.cause.as_ref()) {
            true if !self.has_served() => self.successes.saturating_add(1),
            true | false => 0,
        };
        self.record_failure(failed, now);
        let brings_back = self.brings_back(failed.why);
        let may_restart = self.checking.is_none() && !brings_back;
        let wanted = may_restart.then(|| self.take_wanted()).flatten();
        if let Some(wanted) = wanted {
            self.forget_failures();
            self.say(wanted.announced());
            self.start_at(failed.asked_at + self.settle_time(), wanted, now);
        } else if failed.rolled.is_some() && self.current().is_some() {
            self.forget_failures();
            self.auto_restart_since = now;
            self.history.note_given_up();
        } else if let Some(why) = self.next_try(failed.why) {
            let at = failed.asked_at + self.backoff(self.failures);
            self.start_at(if brings_back { now } else { at }, why, now);
        } else {
            self.give_up(now);
        }
        self.announce_return(failed.why);
        if let Some(planned) = self.planned.filter(|planned| planned.at > now) {
            let next = planned.at.saturating_since(now);
            if let Some(serving) = self.current().map(|one| one.number) {
                self.say(Notice::NextTry { next, serving });
            } else if self.is_down() {
                self.say(Notice::NothingServes { next });
            }
        }
        self.save_status();
    }

    pub(super) fn forget_failures(&mut self) {
        self.failures = 0;
        self.successes = 0;
    }

    /// No further try: what serves continues; if nothing does, there is nothing left to do.
    fn give_up(&mut self, now: Moment) {
        let failures = std::mem::take(&mut self.failures);
        // The next automatic restart is a full interval away again.
        self.auto_restart_since = now;
        self.planned = None;
        let serving = self.current().map(Generation::pids);
        let is_down = serving.is_none();
        self.say(Notice::GivingUp {
            failures,
            serving: serving.unwrap_or_default(),
        });
        if is_down {
            self.stop_all(self.settings.signal_on_term, Outcome::GivenUp, now);
        }
    }

    /// The delay after this many failures: the interval, multiplied by 1.5 each time.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        let first = self.settle_time();
        let longest = first.max(LONGEST_BACKOFF);
        let mut delay = first;
        for _ in 1..failures {
            delay = delay.saturating_add(delay / 2).min(longest);
            if delay == longest {
                break;
            }
        }
        delay
    }
}

impl FailedStart {
    pub(super) fn of(
        generation: &Generation,
        status: Option<i32>,
        cause: Option<StartFailure>,
        now: Moment,
    ) -> FailedStart {
        FailedStart {
            number: generation.number,
            request: generation.request,
            why: generation.why,
            asked_at: generation.asked_at().unwrap_or(now),
            steps: generation.steps,
            status,
            cause,
            rolled: None,
        }
    }
}

/// Whether the program itself has ended without an error, though it was to serve.
pub(super) fn is_success(status: Option<i32>, cause: Option<&StartFailure>) -> bool {
    status == Some(0) && cause.is_none()
}

pub(super) fn is_reached(limit: Option<NonZeroU32>, failures: u32) -> bool {
    limit.is_some_and(|limit| failures >= limit.get())
}
