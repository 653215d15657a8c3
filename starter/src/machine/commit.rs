//! The proof of a generation and its commit, and how the older ones retire.

use std::time::Duration;

use nix::unistd::Pid;

use super::generation::{Generation, PROOF_OF_LIFE, Slot, Stage, State, Why};
use super::history::{Decision, Steps, Verdict};
use super::model::{Action, Machine, Proof, Settings};
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::trouble::Unreachable;

impl Machine {
    /// How long a worker must live to be proved, and the shortest time between two starts.
    pub(super) fn settle_time(&self) -> Duration {
        self.settings.interval.max(PROOF_OF_LIFE)
    }

    /// When the worker of this slot is proved, if only time is missing.
    pub(super) fn proved_at(&self, slot: &Slot) -> Option<Moment> {
        match self.settings.proof {
            Proof::Interval => slot.proved_at(self.settle_time()),
            Proof::Told { .. } => None,
        }
    }

    pub(super) fn prove_workers(&mut self, now: Moment) {
        if self.settings.proof != Proof::Interval {
            return;
        }
        let settle_time = self.settle_time();
        for generation in &mut self.generations {
            // A worker that was told to stop has nothing left to prove.
            if generation.state() != State::Old {
                generation.prove_workers(settle_time, now);
            }
        }
    }

    /// Every slot of the starting generation has a proved worker: from now on it serves, and the previous one retires.
    pub(super) fn commit_if_proved(&mut self, now: Moment) {
        self.take_over_slots(now);
        let Some(proved) = self.starting().filter(|starting| starting.is_proved()) else {
            return;
        };
        let (number, request, why) = (proved.number, proved.request, proved.why);
        let mut steps = proved.steps;
        steps.ready_at = Some(now);
        match self.portion_for(why) {
            Some(portion) => self.begin_canary(number, portion, steps, now),
            None => self.commit(number, (request, why.rolls_back_to().is_some()), steps, now),
        }
        if self.checking.is_none()
            && let Some(wanted) = self.take_wanted()
        {
            // What was asked for last comes instead of an earlier one that has failed.
            self.postponed = None;
            self.start_checked(wanted, now);
        } else if let Some(restart) = self.postponed.take() {
            self.start_at(now, restart, now);
        }
    }

    /// From now on it serves, and the previous one retires. That answers the request, which may be an order.
    pub(super) fn commit(
        &mut self,
        number: u32,
        (request, is_of_order): (u32, bool),
        steps: Steps,
        now: Moment,
    ) {
        let Some(proved) = self.generation(number) else {
            return;
        };
        let (why, rolls) = (proved.why, proved.rolls);
        let replaces = self.replaced_by(number).or(self.stopped_for(why));
        let outage = self.end_outage(number, why, now);
        self.end_postponed();
        self.make_current(number, steps, rolls, now);
        self.switch_to_current();
        if why.is_restart() {
            self.served_before = self.served;
        }
        self.served = Some(number);
        self.auto_restart_since = now;
        self.history.count_commit(now);
        self.history.add_decision(Decision {
            request,
            is_of_rollback: is_of_order,
            generation: number,
            verdict: Verdict::Committed,
            at: now,
            replaces,
            again: why.rolls_back_to(),
            steps,
            outage,
            rolled: None,
        });
        let pids = self.generation(number).map(Generation::pids);
        self.say(Notice::Serves {
            generation: number,
            pids: pids.unwrap_or_default(),
        });
        self.actions.push(Action::Serving);
        self.save_status();
        match rolls {
            true => {
                self.failures = 0;
                self.kill_surplus();
            }
            false => self.announce_commit(why),
        }
        self.signal_retiring(now);
    }

    /// The generation takes the place of what serves, which is told to stop later, or was one by one.
    fn make_current(&mut self, number: u32, steps: Steps, rolls: bool, now: Moment) {
        let signal_at = now + self.settings.knobs.kill_old_delay;
        let quiet = self.quiet_from(signal_at, now);
        for generation in &mut self.generations {
            if generation.number == number {
                generation.stage = Stage::Current;
                generation.steps = steps;
            } else if matches!(generation.state(), State::Current | State::Partial) {
                generation.stage = match rolls {
                    true => Stage::Draining,
                    false => Stage::Retiring { signal_at },
                };
                generation.unhealthy = None;
                generation.quiet = quiet;
            }
        }
    }

    /// The verdict on the restart that is about to be over, once.
    pub(super) fn cannot_be_reached(
        &mut self,
        at_commit: bool,
        unreachable: Unreachable,
        now: Moment,
    ) {
        let Some(current) = self.current().filter(|_| !self.is_stopping()) else {
            return;
        };
        let (number, request) = (current.number, current.request);
        let has_older = self.generations.iter().any(|one| one.number < number);
        let decision = self.history.decision_on(number).cloned();
        let committed = decision.filter(|one| one.verdict == Verdict::Committed);
        if let Some(committed) = committed.filter(|_| at_commit || has_older) {
            self.history.add_decision(Decision {
                request,
                verdict: Verdict::Unreachable(unreachable),
                at: now,
                ..committed
            });
            self.save_status();
        }
    }

    fn announce_commit(&mut self, why: Why) {
        let retiring: Vec<&Generation> = self
            .generations
            .iter()
            .filter(|generation| generation.state() == State::Retiring)
            .collect();
        let is_alone = retiring.is_empty();
        let pids: Vec<Pid> = retiring.into_iter().flat_map(Generation::pids).collect();
        if why.is_restart() {
            let signal = self.settings.signal_on_hup;
            let old = pids.clone();
            self.say(Notice::NewWorkerRunning { signal, pids });
            if self.stops_first() {
                self.failures = 0;
                return;
            }
            let delay = self.settings.knobs.kill_old_delay;
            if !delay.is_zero() {
                self.say(Notice::Sleeping { delay, old });
            }
            if is_alone {
                self.say(Notice::KillingOldWorkers { old: Vec::new() });
            }
        }
        if is_alone {
            self.failures = 0;
        }
    }

    /// The delay has expired and the newer generation still serves: there is no way back.
    pub(super) fn signal_retiring(&mut self, now: Moment) {
        if !self.current_serves() {
            return;
        }
        let mut due = Vec::new();
        for generation in &mut self.generations {
            let is_quiet = generation.quiet.is_none_or(|quiet| quiet.is_over);
            let is_due =
                matches!(generation.stage, Stage::Retiring { signal_at } if signal_at <= now);
            if is_due && is_quiet {
                generation.stage = Stage::Draining;
                generation.quiet = None;
                due.extend(generation.take_untold());
            }
        }
        if due.is_empty() {
            return;
        }
        self.failures = 0;
        let old = due.clone();
        self.say(Notice::KillingOldWorkers { old });
        let Settings {
            signal_on_hup,
            kill_old_timeout,
            ..
        } = self.settings;
        self.tell_to_stop(&due, signal_on_hup, kill_old_timeout, now);
        self.kill_surplus();
        self.save_status();
    }
}
