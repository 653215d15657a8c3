//! Another number of workers, while they serve: slots come to the generations that serve or are about to, and go from them.
//!
//! | what happens | what follows |
//! |---|---|
//! | more are wanted | new slots, which wait for their turn: of the generation that starts, if one does slot by slot, else of each |
//! | fewer are wanted | the slots with the highest numbers go; their workers are told to stop, as old ones are, once all others serve |
//! | a slot was given up before | it gets another chance |
//! | a new worker fails | its slot is tried again as any other: with growing delays, up to `--start-limit` |
//!
//! It is a start for nobody: no generation gets another number, and a restart goes on.

use super::generation::{Content, Generation, Leaver, Slot, State, Worker};
use super::history::Scaling;
use super::model::{Machine, Phase, Scale};
use crate::host::moment::Moment;
use crate::words::many::{self, Many};
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

impl Machine {
    pub(super) fn scale(&mut self, scale: Scale, now: Moment) {
        if self.is_stopping() {
            return;
        }
        let from = self.settings.workers;
        let to = match scale {
            Scale::To(workers) => workers,
            Scale::OneMore => from.saturating_add(1),
            Scale::OneLess => from.saturating_sub(1),
        };
        let most = self.settings.most_workers;
        let refusal = match to {
            0 => Some(many::none_left()),
            _ if to > most => Some(many::too_many(to, most)),
            _ => None,
        };
        self.history.begin_scaling(from, to, now);
        match refusal {
            Some(cause) => {
                self.say(Notice::Many(Many::CannotScale(cause.clone())));
                self.history.end_scaling(Err(cause));
            }
            None => {
                self.say(Notice::Many(Many::Scaling { from, to }));
                self.resize(to, now);
            }
        }
        self.save_status();
    }

    fn resize(&mut self, to: usize, now: Moment) {
        self.settings.workers = to;
        let is_rolling = self.starting().is_some_and(|starting| starting.rolls);
        for generation in &mut self.generations {
            let content = match generation.state() {
                State::Starting | State::Canary => Content::Waiting,
                State::Current if is_rolling => Content::Elsewhere,
                State::Current => Content::Waiting,
                State::Retiring => Content::Empty,
                State::Partial => Content::Elsewhere,
                State::Sweeping | State::Old => continue,
            };
            generation.resize(to, &content, now);
        }
        self.quiet_leavers(now);
        // Perhaps what was missing is no longer wanted.
        self.commit_if_proved(now);
        self.signal_retiring(now);
    }

    /// At the end of each event: what was wanted may be there by now.
    pub(super) fn note_scaled(&mut self, now: Moment) {
        let is_pending = self
            .history
            .scaling
            .as_ref()
            .is_some_and(Scaling::is_pending);
        if !is_pending || self.phase != Phase::Serving || self.is_starting() {
            return;
        }
        if self.is_complete() {
            self.history.end_scaling(Ok(now));
            self.save_status();
        }
    }

    /// Whether as many workers serve as are wanted.
    pub(super) fn is_complete(&self) -> bool {
        let serving = self.generations.iter().filter(|one| match one.state() {
            State::Current | State::Partial => true,
            State::Starting | State::Canary | State::Retiring | State::Sweeping | State::Old => {
                false
            }
        });
        let proved: usize = serving.map(Generation::count_proved).sum();
        self.current().is_some() && proved >= self.settings.workers
    }

    /// A worker has failed that was to be one more.
    pub(super) fn note_not_scaled(&mut self, slot: usize, cause: StartFailure) {
        let scaling = self.history.scaling.as_ref();
        let is_of_it = scaling.is_some_and(|one| one.is_pending() && slot >= one.from);
        if is_of_it {
            self.history.end_scaling(Err(cause));
        }
    }
}

impl Generation {
    /// New slots get this content, or the worker that has just left them.
    fn resize(&mut self, to: usize, content: &Content, now: Moment) {
        let surplus = self.slots.split_off(to.min(self.slots.len()));
        for worker in surplus
            .into_iter()
            .filter_map(|mut slot| slot.take_worker())
        {
            let told_at = (!worker.is_leaving_by_itself()).then_some(now);
            self.leavers.push(Leaver::new(worker, told_at));
        }
        for slot in &mut self.slots {
            if slot.content == Content::GivenUp {
                *slot = Slot::new(Content::Empty, slot.asked_at);
            }
        }
        for place in self.slots.len()..to {
            self.slots.push(Slot::new(Content::Elsewhere, now));
            self.take_slot_back(place);
            if let Some(slot) = self.slots.last_mut().filter(|slot| slot.worker().is_none()) {
                slot.content = content.clone();
            }
        }
    }
}

impl Worker {
    /// Whether it has begun to stop, and need not be told.
    pub(super) fn is_leaving_by_itself(&self) -> bool {
        self.standing == super::generation::Standing::Stopping
    }
}
