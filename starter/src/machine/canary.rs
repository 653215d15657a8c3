//! A canary: a new generation that has proved itself and gets a share of new traffic before it gets all of it. Only where
//! each generation has sockets of its own ([`super::switch`]), and beside one that is current.
//!
//! | what happens | what follows |
//! |---|---|
//! | it has proved itself | the kernel gives it its share; nobody is told to stop, and the restart is answered |
//! | it is promoted: by hand, or because its time is over | it commits, as any other generation does |
//! | a rollback or an abort | what is current gets all new traffic again; the canary is told to stop once its lane is quiet, as a replaced generation is |
//! | one of its workers dies, cannot be started or stops by itself, it is unhealthy, or the kernel refuses | the same, and it has failed; it is not tried again |
//! | another restart is asked for, and checked if it had to be | the same, and the next generation is started |
//! | the last worker of what is current dies, and nothing older can take over | the canary is promoted |
//! | it answers badly, but not for long enough to be unhealthy | it is not promoted by itself before it has answered well for the time of `--watch` |
//!
//! Requests during a start lead to one more restart: that of the last canary if all of them ask for canaries, else a full
//! restart. No automatic restart is begun beside a canary.

use super::generation::{Generation, Stage, State, Why, Worker};
use super::history::{Decision, Steps, Verdict};
use super::lane::{Canary, Portion};
use super::model::Machine;
use super::start::FailedStart;
use crate::host::moment::Moment;
use crate::words::canary::{self, Promotion, Trial};
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

// What is asked for.

impl Machine {
    /// `--restart --canary`.
    pub(super) fn restart_as_canary(&mut self, portion: Portion, now: Moment) {
        match self.has_lanes() || self.is_stopping() {
            true => self.restart(Why::Canary(portion), now),
            false => {
                self.history.counters.count_restart();
                let request = self.history.counters.restarts;
                self.answer_without_start(request, false, canary::no_lanes(), now);
                self.save_status();
            }
        }
    }

    /// One more restart is to follow what is under way.
    pub(super) fn want(&mut self, why: Why) {
        let is_whole = self.restart_wanted && self.portion_wanted.is_none();
        self.portion_wanted = why.portion().filter(|_| !is_whole);
        self.restart_wanted = true;
    }

    pub(super) fn want_nothing(&mut self) {
        self.restart_wanted = false;
        self.portion_wanted = None;
    }

    /// Takes the restart that is wanted, if one is.
    pub(super) fn take_wanted(&mut self) -> Option<Why> {
        let is_wanted = std::mem::take(&mut self.restart_wanted);
        let portion = self.portion_wanted.take();
        is_wanted.then(|| portion.map_or(Why::Asked, Why::Canary))
    }

    /// Another restart begins.
    pub(super) fn make_way_for_another(&mut self, now: Moment) {
        if let Some(number) = self.canary().map(|one| one.number) {
            self.say(Notice::Trial(Trial::Replaced { generation: number }));
            self.record_undone(number, canary::replaced(), now);
            self.end_canary(number, now);
        }
    }
}

impl Why {
    fn portion(self) -> Option<Portion> {
        match self {
            Why::Canary(portion) => Some(portion),
            Why::First
            | Why::Asked
            | Why::Timed
            | Why::Replacement
            | Why::Rollback { .. }
            | Why::Sweep => None,
        }
    }

    /// What is said of it when it begins.
    pub(super) fn announced(self) -> Notice {
        match self.portion() {
            Some(Portion { percent, .. }) => Notice::Trial(Trial::Asked { percent }),
            None => Notice::ReceivedHup,
        }
    }
}

// It serves.

impl Machine {
    pub(super) fn canary(&self) -> Option<&Generation> {
        let mut generations = self.generations.iter();
        generations.find(|one| one.state() == State::Canary)
    }

    /// The share of a generation that has proved itself; `None` if it gets all new traffic.
    pub(super) fn portion_for(&self, why: Why) -> Option<Portion> {
        let is_beside_another = self.has_lanes() && self.current().is_some();
        why.portion().filter(|_| is_beside_another)
    }

    /// The share that the canary is to have.
    pub(super) fn share_of_canary(&self) -> Option<Canary> {
        let canary = self.canary()?;
        let Portion { percent, by, .. } = canary.why.portion()?;
        Some(Canary {
            share: self.share_of(canary),
            percent,
            by,
        })
    }

    /// When a canary is promoted by itself, if ever.
    pub fn promoted_at(&self) -> Option<Moment> {
        match self.canary()?.stage {
            Stage::Canary { until } => until,
            Stage::Uncommitted
            | Stage::Current
            | Stage::Partial
            | Stage::Retiring { .. }
            | Stage::Sweeping
            | Stage::Draining
            | Stage::Failed => None,
        }
    }

    pub(super) fn begin_canary(
        &mut self,
        number: u32,
        portion: Portion,
        steps: Steps,
        now: Moment,
    ) {
        let replaces = self.replaced_by(number);
        let Some(generation) = self.generation_mut(number) else {
            return;
        };
        generation.stage = Stage::Canary {
            until: portion.time.map(|time| now + time),
        };
        generation.steps = steps;
        let request = generation.request;
        self.forget_failures();
        self.refused = None;
        self.switch_to_current();
        self.history.add_decision(Decision {
            request,
            is_of_rollback: false,
            generation: number,
            verdict: Verdict::Canary,
            at: now,
            replaces,
            again: None,
            steps,
            outage: None,
            rolled: None,
        });
        self.save_status();
    }

    /// It has answered badly: it is not promoted by itself before this moment.
    pub(super) fn extend_canary(&mut self, number: u32, at: Moment) {
        if let Some(generation) = self.generation_mut(number)
            && let Stage::Canary { until: Some(until) } = &mut generation.stage
        {
            *until = at.max(*until);
        }
    }
}

// It is promoted.

impl Machine {
    /// `--promote`.
    pub(super) fn promote(&mut self, now: Moment) {
        if self.is_stopping() {
            return;
        }
        self.history.counters.count_restart();
        let request = self.history.counters.restarts;
        match self.canary().map(|one| one.number) {
            Some(number) => {
                let promotion = Promotion::Asked;
                self.promote_canary(number, (request, true), promotion, now);
            }
            None => {
                let cause = canary::nothing_to_promote();
                self.say(Notice::Trial(Trial::CannotPromote(cause.clone())));
                self.answer_without_start(request, true, cause, now);
                self.save_status();
            }
        }
    }

    /// Its time is over, without a fault.
    pub(super) fn promote_if_due(&mut self, now: Moment) {
        if self.promoted_at().is_some_and(|at| at <= now) {
            self.promote_unasked(Promotion::Trusted, now);
        }
    }

    /// What was current is gone, and nothing else can serve.
    pub(super) fn promote_instead_of(&mut self, gone: u32, now: Moment) {
        self.count_for_what_served();
        self.promote_unasked(Promotion::InsteadOf(gone), now);
    }

    fn promote_unasked(&mut self, promotion: Promotion, now: Moment) {
        if let Some((number, request)) = self.canary().map(|one| (one.number, one.request)) {
            self.promote_canary(number, (request, false), promotion, now);
        }
    }

    fn promote_canary(
        &mut self,
        number: u32,
        answers: (u32, bool),
        promotion: Promotion,
        now: Moment,
    ) {
        self.say(Notice::Trial(Trial::Promoting {
            generation: number,
            promotion,
        }));
        // The old ones go from now on.
        let steps = Steps {
            ready_at: Some(now),
            ..Steps::new(now)
        };
        self.commit(number, answers, steps, now);
    }
}

// It ends.

impl Machine {
    /// One of its workers has died: whatever others it has, this version is not to be trusted.
    pub(super) fn canary_died(&mut self, worker: &Worker, status: i32, now: Moment) {
        let (pid, number) = (worker.pid, worker.generation);
        self.say(match worker.has_served() {
            // It is not started again.
            true => Notice::Trial(Trial::Died { pid, status }),
            false => worker.says_how_it_ended(status),
        });
        if worker.has_served() {
            self.history.counters.count_crash();
        }
        let cause = worker.failure().cloned();
        let cause = cause.unwrap_or(StartFailure::exited(pid, status));
        self.canary_failed(number, Some(status), Some(cause), now);
    }

    /// What is current gets all new traffic again, and the canary is not tried again.
    pub(super) fn canary_failed(
        &mut self,
        number: u32,
        status: Option<i32>,
        cause: Option<StartFailure>,
        now: Moment,
    ) {
        let Some(generation) = self.generation(number) else {
            return;
        };
        let failed = FailedStart::of(generation, status, cause.clone(), now);
        let serving = self.current().map(|one| one.number);
        self.say(Notice::Trial(Trial::Failed {
            generation: number,
            serving,
            cause,
        }));
        self.end_canary(number, now);
        self.keep_what_serves();
        self.record_failure(&failed, now);
        self.save_status();
    }

    /// The last restart has been undone: a rollback that comes a moment later does not undo the one before.
    pub(super) fn keep_what_serves(&mut self) {
        self.served_before = None;
    }

    /// All new traffic goes to what is current, before anybody is told to stop.
    pub(super) fn end_canary(&mut self, number: u32, now: Moment) {
        if let Some(generation) = self.generation_mut(number) {
            generation.stage = Stage::Draining;
        }
        self.switch_to_current();
        self.drain(number, now);
        self.drop_gone();
        self.auto_restart_since = now;
        self.save_status();
    }

    /// The kernel has refused to take back the share of a canary that has ended; the next generation may get its lane.
    pub(super) fn take_back_share(&mut self) {
        if self.canary().is_none() && self.selected.canary.is_some() {
            self.refused = None;
            self.switch_to_current();
        }
    }

    /// The canary, if the kernel does not give it anything.
    pub(super) fn unselected_canary(&self) -> Option<u32> {
        let canary = self.canary()?;
        let shared = self.selected.canary.as_ref().map(|one| one.share.lane);
        (shared != Some(canary.lane)).then_some(canary.number)
    }
}
