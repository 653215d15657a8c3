//! A rollback by hand: the last restart is undone, however far it has come.
//!
//! | the last restart | what follows |
//! |---|---|
//! | is being checked, has not committed, or waits for its first or next try | it is given up; what serves goes on, and what served last is started again if nothing does |
//! | is a canary, or was one that has failed or was rolled back | it is ended, if it serves; after that there is nothing to go back to until the next restart |
//! | has committed, and what it replaced has not been told to stop | that is current again, without a new process; the new workers are told to stop |
//! | has committed, and what it replaced was told to stop and still lives | nothing: there is no way back to workers that are about to go, and another start beside them is not what was asked for |
//! | has committed, and what it replaced is gone | what that was started from is started again as a new generation, which must prove itself like any other |
//!
//! An abort does the first of these and nothing else: it never touches what has committed.

use super::generation::{Stage, State, Why};
use super::history::{Decision, Steps, Verdict};
use super::model::Machine;
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::rollback::{self, Asked, Way};
use crate::words::start_failure::StartFailure;

impl Machine {
    /// `--rollback`.
    pub(super) fn roll_back(&mut self, now: Moment) {
        if self.is_stopping() {
            return;
        }
        let asked_before = self.history.counters.restarts;
        self.history.counters.count_restart();
        match self.way_back() {
            Ok(way) => {
                self.say(Notice::RollingBack(way));
                self.undo_restart(way, Asked::Rollback, asked_before, now);
            }
            Err(cause) => {
                self.say(Notice::CannotRollBack(cause.clone()));
                self.answer_without_start(self.history.counters.restarts, true, cause, now);
            }
        }
        self.save_status();
    }

    /// `--abort`.
    pub(super) fn abort(&mut self, now: Moment) {
        if self.is_stopping() {
            return;
        }
        let asked_before = self.history.counters.restarts;
        self.history.counters.count_restart();
        match self.what_is_kept() {
            Ok(way) => {
                self.say(Notice::Aborting(way));
                self.undo_restart(way, Asked::Abort, asked_before, now);
            }
            Err(cause) => {
                self.say(Notice::CannotAbort(cause.clone()));
                self.answer_without_start(self.history.counters.restarts, true, cause, now);
            }
        }
        self.save_status();
    }

    /// What goes on if the restart is given up.
    fn what_is_kept(&self) -> Result<Way, StartFailure> {
        let Some(served) = self.served else {
            return Err(rollback::nothing_has_served());
        };
        match (self.is_restart_pending(), self.current()) {
            (false, _) => Err(rollback::nothing_is_tried()),
            (true, Some(current)) => Ok(Way::Keep(current.number)),
            (true, None) => self.start_again(served),
        }
    }

    /// How the last restart can be undone.
    fn way_back(&self) -> Result<Way, StartFailure> {
        let Some(served) = self.served else {
            return Err(rollback::nothing_has_served());
        };
        if let Some(to) = self.rolls_back_to() {
            return Err(rollback::under_way(to));
        }
        let is_partly_replaced = self.is_partly_replaced();
        if self.is_restart_pending() || is_partly_replaced {
            return match self.current() {
                // Nothing but a start brings back the workers that are gone.
                Some(current) if is_partly_replaced && self.pins() => {
                    Ok(Way::StartAgain(current.number))
                }
                Some(current) => Ok(Way::Keep(current.number)),
                None => self.start_again(served),
            };
        }
        let mut newest = self.generations.iter().rev();
        let retiring = newest.find(|one| one.state() == State::Retiring && one.serves());
        if let (Some(retiring), Some(current)) = (retiring, self.current()) {
            return Ok(Way::Return {
                to: retiring.number,
                from: current.number,
            });
        }
        match self.served_before {
            None => Err(rollback::nothing_before(served)),
            Some(before) if self.generation(before).is_some() => Err(rollback::too_late(before)),
            Some(before) => self.start_again(before),
        }
    }

    /// Whether a roll that is under way, or has stopped, has taken over some slots.
    fn is_partly_replaced(&self) -> bool {
        self.generations.iter().any(|one| match one.stage {
            Stage::Partial => true,
            Stage::Uncommitted => one.rolls && one.serves(),
            Stage::Current
            | Stage::Canary { .. }
            | Stage::Retiring { .. }
            | Stage::Sweeping
            | Stage::Draining
            | Stage::Failed => false,
        })
    }

    fn start_again(&self, number: u32) -> Result<Way, StartFailure> {
        match self.pins() {
            true => Ok(Way::StartAgain(number)),
            false => Err(rollback::not_kept(number)),
        }
    }

    /// The generation whose program a rollback that is under way starts again.
    pub(super) fn rolls_back_to(&self) -> Option<u32> {
        let starting = self.starting().map(|starting| starting.why);
        let planned = self.planned.map(|planned| planned.why);
        let stopping = self.stopping_first.map(|first| first.why);
        let all = [starting, planned, self.postponed, stopping];
        all.into_iter().flatten().find_map(Why::rolls_back_to)
    }

    /// Whether a restart was begun that has not committed.
    fn is_restart_pending(&self) -> bool {
        let planned = self.planned.is_some_and(|planned| planned.why.is_restart());
        let is_stopping_first = self.stopping_first.is_some();
        let waits = planned || self.postponed.is_some() || is_stopping_first;
        // One that is wanted comes after a start, also of what served.
        let is_under_way = self.is_restarting() || self.canary().is_some();
        self.checking.is_some() || is_under_way || waits || self.restart_wanted
    }

    fn undo_restart(&mut self, way: Way, asked: Asked, asked_before: u32, now: Moment) {
        let was_busy = self.planned.is_some() || self.is_starting();
        let is_stopping_first = self.stopping_first.take().is_some();
        // One that waits may be another try, whose first one was the answer.
        let planned = self.planned.filter(|planned| planned.why.is_restart());
        let waits = planned.is_some() || self.postponed.is_some();
        let is_unanswered = self.checking.is_some()
            || self.restart_wanted
            || is_stopping_first
            || (waits && !self.history.has_answered(asked_before));
        self.give_up_check();
        self.planned = None;
        self.postponed = None;
        self.want_nothing();
        self.forget_failures();
        self.early_deaths = 0;
        self.auto_restart_since = now;
        let undone = self.undo_start(asked, now);
        if is_unanswered {
            self.answer_without_start(asked_before, false, rollback::came_first(asked), now);
        }
        match way {
            Way::Keep(current) => {
                let verdict = self.history.decision_on(current);
                let verdict = verdict.map_or(Verdict::Committed, |one| one.verdict.clone());
                self.answer(current, undone, verdict, now);
            }
            Way::Return { to, from } => self.return_to(to, from, now),
            Way::StartAgain(to) if self.begins_with_stop(Why::Rollback { to }, now) => {}
            Way::StartAgain(to) => {
                let earliest = match was_busy {
                    true => self.last_started_at + self.settle_time(),
                    false => now,
                };
                self.start_at(earliest, Why::Rollback { to }, now);
            }
        }
    }

    /// Ends the start that is under way, as if it had failed, and without another try.
    fn undo_start(&mut self, asked: Asked, now: Moment) -> Option<u32> {
        let Some(starting) = self.starting() else {
            let canary = self.canary()?.number;
            self.record_undone(canary, rollback::undone(asked), now);
            self.end_canary(canary, now);
            self.keep_what_serves();
            return Some(canary);
        };
        let (number, rolls) = (starting.number, starting.rolls);
        self.record_undone(number, rollback::undone(asked), now);
        if rolls {
            self.stop_roll(number, now);
            return Some(number);
        }
        let mut pids = Vec::new();
        if let Some(starting) = self.generation_mut(number) {
            starting.stage = Stage::Failed;
            pids = starting.take_untold();
        }
        // Perhaps it had no worker yet.
        self.drop_gone();
        let signal = self.settings.signal_on_term;
        self.tell_to_stop(&pids, signal, self.patience_with_failed(), now);
        Some(number)
    }

    /// The older generation is current again, and the newer one drains as any that was replaced.
    fn return_to(&mut self, to: u32, from: u32, now: Moment) {
        self.record_undone(from, rollback::undone(Asked::Rollback), now);
        if let Some(generation) = self.generation_mut(to) {
            generation.stage = Stage::Current;
            generation.quiet = None;
        }
        self.switch_to_current();
        (self.served, self.served_before) = (Some(to), None);
        self.drain(from, now);
        self.answer(to, Some(from), Verdict::Committed, now);
        self.fill_slots(now);
    }

    /// Whoever waits for this generation learns that it is not to serve.
    pub(super) fn record_undone(&mut self, number: u32, cause: StartFailure, now: Moment) {
        let Some(generation) = self.generation(number) else {
            return;
        };
        let (request, steps) = (generation.request, generation.steps);
        let is_of_rollback = generation.why.rolls_back_to().is_some();
        self.history.add_decision(Decision {
            request,
            is_of_rollback,
            generation: number,
            verdict: Verdict::Refused(cause),
            at: now,
            replaces: self.replaced_by(number),
            again: None,
            outage: None,
            rolled: None,
            steps,
        });
    }

    /// This generation serves, and did so before.
    fn answer(&mut self, generation: u32, replaces: Option<u32>, verdict: Verdict, now: Moment) {
        let steps = Steps {
            ready_at: Some(now),
            ..Steps::new(now)
        };
        self.history.add_decision(Decision {
            request: self.history.counters.restarts,
            is_of_rollback: true,
            generation,
            verdict,
            at: now,
            replaces,
            again: None,
            outage: None,
            rolled: None,
            steps,
        });
    }

    pub(super) fn answer_without_start(
        &mut self,
        request: u32,
        is_of_rollback: bool,
        cause: StartFailure,
        now: Moment,
    ) {
        self.history.add_decision(Decision {
            request,
            is_of_rollback,
            generation: 0,
            verdict: Verdict::Refused(cause),
            at: now,
            replaces: None,
            again: None,
            outage: None,
            rolled: None,
            steps: Steps::new(now),
        });
    }
}
