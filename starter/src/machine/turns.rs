//! When a worker is asked for that waits for its turn: only so many are on their way to readiness at the same time, and a
//! rolling restart has room for only so many processes.

use super::generation::{Content, Generation, Slot, Stage};
use super::model::{Action, Machine, Phase};
use crate::host::moment::Moment;

impl Machine {
    /// At the end of each event: asks for the workers whose turn it is. What serves is completed first.
    pub(super) fn take_turns(&mut self, now: Moment) {
        if self.phase != Phase::Serving {
            return;
        }
        self.return_slots();
        self.fill_slots(now);
        while let Some((number, place)) = self.next_in_turn() {
            let from = match self.generation(number).map(|one| (one.stage, one.why)) {
                Some((Stage::Uncommitted, why)) if place == 0 => self.source(why),
                _ => self.source_within(number),
            };
            if let Some(slot) = self.slot_mut(number, place) {
                slot.asked_at = now;
                slot.content = Content::AskedFor;
            }
            self.actions.push(Action::Spawn {
                generation: number,
                slot: place,
                from,
            });
        }
    }

    /// The slot whose turn it is, if it is anybody's.
    fn next_in_turn(&self) -> Option<(u32, usize)> {
        if !self.may_ask() || !self.has_room_for(1 + self.count_empty()) {
            return None;
        }
        let generations = self.generations.iter();
        let mut may_get = generations.filter(|one| Machine::may_get_workers(one.stage));
        may_get.find_map(|generation| {
            let mut slots = generation.slots.iter();
            let place = slots.position(|slot| slot.content == Content::Waiting)?;
            Some((generation.number, place))
        })
    }

    fn may_get_workers(stage: Stage) -> bool {
        match stage {
            Stage::Uncommitted | Stage::Current | Stage::Canary { .. } => true,
            Stage::Partial
            | Stage::Retiring { .. }
            | Stage::Sweeping
            | Stage::Draining
            | Stage::Failed => false,
        }
    }

    /// Whether one more worker may be asked for now.
    pub(super) fn may_ask(&self) -> bool {
        let most = self.settings.start_parallel;
        let is_free = most.is_none_or(|most| self.count_starting() < most.get());
        is_free && self.has_room_for(1)
    }

    /// What serves gets its dead workers back before anything new is started.
    fn count_empty(&self) -> usize {
        let current = self.current().into_iter();
        let slots = current.flat_map(|current| &current.slots);
        slots.filter(|slot| slot.content == Content::Empty).count()
    }

    fn count_starting(&self) -> usize {
        let generations = self.generations.iter();
        let may_get = generations.filter(|one| Machine::may_get_workers(one.stage));
        let slots = may_get.flat_map(|generation| &generation.slots);
        slots.filter(|slot| slot.is_starting()).count()
    }

    /// Whether so many more processes are within what a rolling restart may take.
    fn has_room_for(&self, processes: usize) -> bool {
        let Some(more) = self.settings.rolling else {
            return true;
        };
        let most = self.settings.workers.saturating_add(more.get());
        self.count_processes().saturating_add(processes) <= most
    }

    fn count_processes(&self) -> usize {
        let count = |generation: &Generation| {
            let slots = generation.slots.iter();
            slots.filter(|slot| slot.is_taken()).count() + generation.leavers.len()
        };
        self.generations.iter().map(count).sum()
    }
}

impl Slot {
    /// Whether it has a worker, or one was asked for.
    fn is_taken(&self) -> bool {
        match self.content {
            Content::AskedFor | Content::Occupied(_) => true,
            Content::Waiting | Content::Empty | Content::GivenUp | Content::Elsewhere => false,
        }
    }
}
