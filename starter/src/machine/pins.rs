//! What workers are started from: the disk, or what a generation was started from before. While nothing serves, what served
//! comes back before a restart is tried again.

use super::generation::{Content, Generation, State, Why};
use super::model::{Machine, Source};
use super::start::{MOST_SUCCESSES, is_reached};

impl Machine {
    /// Whether what a generation is started from is kept.
    pub fn pins(&self) -> bool {
        self.settings.pins
    }

    /// Whether another worker may be started from what this generation was started from.
    pub fn may_start_from(&self, number: u32) -> bool {
        let may_get_workers = |generation: &Generation| {
            let mut slots = generation.slots.iter();
            generation.state() != State::Old || slots.any(|slot| slot.content == Content::AskedFor)
        };
        [self.served, self.served_before, self.rolls_back_to()].contains(&Some(number))
            || self.generation(number).is_some_and(may_get_workers)
    }

    /// What the first worker of a generation is started from.
    pub(super) fn source(&self, why: Why) -> Source {
        match (why, self.served) {
            (Why::Replacement, Some(served)) => self.source_within(served),
            (Why::Rollback { to }, _) => Source::Generation(to),
            (Why::First | Why::Asked | Why::Canary(_) | Why::Timed | Why::Sweep, _)
            | (Why::Replacement, None) => Source::Disk,
        }
    }

    /// What the further workers of a generation are started from, and those of one that replaces it.
    pub(super) fn source_within(&self, generation: u32) -> Source {
        match self.settings.pins {
            true => Source::Generation(generation),
            false => Source::Disk,
        }
    }

    /// Postpones a planned restart if what served is to come back before it. Returns whether that is so.
    pub(super) fn postpones(&mut self, planned: Option<Why>, why: Why) -> bool {
        let restart = planned.filter(|planned| planned.is_restart());
        let comes_back = why == Why::Replacement && self.settings.pins && restart.is_some();
        if comes_back {
            self.postponed = restart;
        }
        comes_back
    }

    /// The failures of a restart neither delay what served nor count toward its limit.
    pub(super) fn count_for_what_served(&mut self) {
        if self.settings.pins {
            self.forget_failures();
        }
    }

    /// What the next start after a failure is for, unless the limit forbids another one.
    pub(super) fn next_try(&mut self, failed: Why) -> Option<Why> {
        let limit = match self.has_served() {
            true => self.settings.start_limit,
            false => self.settings.first_start_limit,
        };
        let is_over = is_reached(limit, self.failures) || self.successes >= MOST_SUCCESSES;
        if is_over {
            self.history.note_given_up();
        }
        if failed.is_restart() && self.is_down() && self.settings.pins {
            match is_over {
                true => self.forget_failures(),
                false => self.postponed = Some(failed),
            }
            return Some(Why::Replacement);
        }
        // What served does not come back: perhaps what was to replace it starts.
        (!is_over).then(|| self.postponed.unwrap_or(failed))
    }

    /// Whether something has served, and nothing does.
    pub(super) fn is_down(&self) -> bool {
        self.has_served() && self.current().is_none()
    }
}
