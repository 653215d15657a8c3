//! Replacements within the current generation: a slot whose worker has died, while others serve.

use super::generation::{Content, Generation, Slot, Worker};
use super::model::{Action, Machine};
use super::start::{is_reached, is_success};
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

impl Machine {
    pub(super) fn current_worker_died(&mut self, worker: &Worker, status: i32, now: Moment) {
        let (pid, cause) = (worker.pid, worker.failure().cloned());
        let is_restarting = self.is_restarting();
        // During a restart, its successor may well have told it to stop: unicorn's does. As in Server::Starter, the
        // worker being replaced already counts as old.
        if !worker.has_served() && (cause.is_some() || !is_restarting) {
            self.say(Notice::FailedToStart { pid, status });
            let known = cause.clone();
            self.note_not_scaled(
                worker.slot,
                known.unwrap_or(StartFailure::exited(pid, status)),
            );
            self.replacement_failed(worker.generation, worker.slot);
        } else if is_restarting {
            self.say(Notice::OldWorkerDied { pid, status });
            if is_success(Some(status), cause.as_ref()) && self.has_successor(worker.slot) {
                // One that is started now could outlive the restart, where the signal does not end it: unicorn by CONT.
                if let Some(slot) = self.slot_mut(worker.generation, worker.slot) {
                    slot.content = Content::Elsewhere;
                }
            }
        } else {
            self.say(Notice::DiedUnexpectedly { pid, status });
            self.history.counters.count_crash();
        }
        self.current_lost_worker(worker.generation, Some(status), cause, now);
    }

    /// A replacement died, or could not even be spawned, before it was proved.
    pub(super) fn replacement_failed(&mut self, number: u32, slot: usize) {
        self.history.counters.count_failed_start();
        self.save_status();
        let limit = self.settings.start_limit;
        let Some(generation) = self.generation_mut(number) else {
            return;
        };
        // Nothing serves that could continue without it.
        if generation.is_deserted() {
            return;
        }
        let serving = generation.pids();
        let Some(slot) = generation.slots.get_mut(slot) else {
            return;
        };
        slot.failures = slot.failures.saturating_add(1);
        let failures = slot.failures;
        if is_reached(limit, failures) {
            slot.content = Content::GivenUp;
            self.say(Notice::GivingUp { failures, serving });
        }
    }

    /// The current generation has lost a worker, perhaps its last.
    pub(super) fn current_lost_worker(
        &mut self,
        number: u32,
        status: Option<i32>,
        cause: Option<StartFailure>,
        now: Moment,
    ) {
        match self.generation(number).is_some_and(Generation::is_deserted) {
            true => self.current_died(number, status, cause, now),
            false => self.fill_slots(now),
        }
    }

    /// When a replacement is due for this slot of the current generation, if it needs one.
    pub(super) fn filled_at(&self, slot: &Slot) -> Option<Moment> {
        match slot.content {
            // Until it is its turn, nothing but another event can be waited for.
            Content::Empty if self.may_ask() => Some(slot.asked_at + self.backoff(slot.failures)),
            Content::Empty
            | Content::Waiting
            | Content::AskedFor
            | Content::Occupied(_)
            | Content::GivenUp
            | Content::Elsewhere => None,
        }
    }

    /// Refills slots whose workers died while others of their generation serve; the generation keeps its number.
    pub(super) fn fill_slots(&mut self, now: Moment) {
        let Some(generation) = self.current() else {
            return;
        };
        let number = generation.number;
        let slots = generation.slots.iter().enumerate();
        let due: Vec<usize> = slots
            .filter(|(_, slot)| self.filled_at(slot).is_some_and(|at| at <= now))
            .map(|(place, _)| place)
            .collect();
        for place in due {
            if !self.may_ask() {
                break;
            }
            if let Some(slot) = self
                .generation_mut(number)
                .and_then(|generation| generation.slots.get_mut(place))
            {
                slot.asked_at = now;
                slot.content = Content::AskedFor;
            }
            self.actions.push(Action::Spawn {
                generation: number,
                slot: place,
                from: self.source_within(number),
            });
        }
    }
}
