//! `--replace=stop-first`: what serves is told to stop before a restart starts anything, and no two generations have
//! workers at the same time. Connections wait in the listeners' queues meanwhile.
//!
//! | what happens | what follows |
//! |---|---|
//! | a restart, checked if it has to be, while a generation is current | that one is told to stop, and becomes old |
//! | another restart is asked for before the new generation has been started, or while it starts | one more restart, as during any start |
//! | the last old worker is gone | the new generation is started |
//! | the new generation fails | what served is started again at once, from what it was started from |
//! | that commits | the restart is over: every further try of it would interrupt the service again |
//! | that fails as well | the two take turns, with growing delays, as whenever nothing serves |
//! | a start is due while a worker of another generation is left: of a failed start, or one that stops by itself | it waits for the exit of that worker |
//!
//! With `--no-pin` nothing is kept that could be started again: the restart itself is tried again.

use super::generation::{Content, Slot, Stage, Standing, Why, Worker};
use super::history::Outage;
use super::model::{Machine, Phase, Replace, StoppingFirst};
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::stop_first::StopFirst;

// What serves stops.

impl Machine {
    /// Begins a restart by telling what serves to stop, if that comes first. Returns whether it does.
    pub(super) fn begins_with_stop(&mut self, why: Why, now: Moment) -> bool {
        let stops_first = self.stops_first() && why.is_restart();
        let Some(current) = self.current().filter(|_| stops_first) else {
            return false;
        };
        let number = current.number;
        self.forget_failures();
        self.early_deaths = 0;
        if why == Why::Asked {
            self.say(Notice::ReceivedHup);
        }
        let mut pids = Vec::new();
        if let Some(generation) = self.generation_mut(number) {
            generation.stage = Stage::Draining;
            pids = generation.take_untold();
        }
        self.stopping_first = Some(StoppingFirst {
            why,
            generation: number,
            request: self.history.counters.restarts,
        });
        self.outage = Some(now);
        let (signal, patience) = (self.settings.signal_on_hup, self.settings.kill_old_timeout);
        let step = StopFirst::Stopping {
            signal,
            pids: pids.clone(),
        };
        self.say(Notice::StopFirst(step));
        self.tell_to_stop(&pids, signal, patience, now);
        self.save_status();
        true
    }

    /// At the end of each event: whatever waited for the exit of workers is started when the last one is gone.
    pub(super) fn go_on_when_alone(&mut self, now: Moment) {
        let may_wait = self.stops_first() || self.has_lanes();
        if !may_wait || self.phase != Phase::Serving || !self.may_start() {
            return;
        }
        if let Some(first) = self.stopping_first.take() {
            self.start_generation(first.why, now);
            if let Some(started) = self.generations.last_mut() {
                started.request = first.request;
            }
            self.save_status();
        } else if let Some(planned) = self.planned.filter(|planned| planned.at <= now) {
            self.start_generation(planned.why, now);
            self.save_status();
        }
    }
}

// What served comes back.

impl Machine {
    /// After a failed restart what served is started again, whatever else has been asked for.
    pub(super) fn brings_back(&self, failed: Why) -> bool {
        self.stops_first() && self.settings.pins && failed.is_restart() && self.is_down()
    }

    /// What serves again is not stopped again for another try of the restart that has failed.
    pub(super) fn end_postponed(&mut self) {
        if self.stops_first() {
            self.postponed = None;
        }
    }

    /// A start was to replace what serves, and has failed.
    pub(super) fn announce_return(&mut self, failed: Why) {
        if self.outage.is_some() && failed.is_restart() && !self.is_stopping() {
            let is_pinned = self.settings.pins;
            self.say(Notice::StopFirst(StopFirst::StartingAgain { is_pinned }));
        }
    }

    /// A generation has committed: whoever was kept waiting is served.
    pub(super) fn end_outage(&mut self, number: u32, why: Why, now: Moment) -> Option<Outage> {
        let since = self.outage.take()?;
        let restored = (why == Why::Replacement).then_some(number);
        self.history.end_outage(restored, now);
        self.say(Notice::StopFirst(StopFirst::ServesAgain {
            is_restored: restored.is_some(),
            after: now.saturating_since(since),
        }));
        Some(Outage {
            since,
            until: Some(now),
            restored: None,
        })
    }

    /// That of a start that has failed: it goes on.
    pub(super) fn outage_of(&self, failed: Why) -> Option<Outage> {
        let since = self.outage.filter(|_| failed.is_restart())?;
        Some(Outage {
            since,
            until: None,
            restored: None,
        })
    }

    /// What a restart was to replace, and has stopped before it.
    pub(super) fn stopped_for(&self, why: Why) -> Option<u32> {
        self.served
            .filter(|_| self.outage.is_some() && why.is_restart())
    }
}

// Questions.

impl Machine {
    pub(super) fn stops_first(&self) -> bool {
        self.settings.replace == Replace::StopFirst
    }

    /// The generation whose end the next one waits for, to be started then.
    pub fn stopping_first(&self) -> Option<u32> {
        self.stopping_first.map(|first| first.generation)
    }

    /// Since when nothing serves because of a restart, if that is so.
    pub fn outage(&self) -> Option<Moment> {
        self.outage
    }

    /// Whether a start may begin now.
    pub(super) fn may_start(&self) -> bool {
        self.is_alone() && self.next_lane().is_some()
    }

    /// Whether a start may begin now, as far as workers are concerned that still live.
    pub(super) fn is_alone(&self) -> bool {
        let mut slots = self.generations.iter().flat_map(|one| &one.slots);
        let mut leavers = self.generations.iter().flat_map(|one| &one.leavers);
        let is_crowded =
            slots.any(Slot::is_in_the_way) || leavers.any(|leaver| leaver.worker.is_in_the_way());
        !self.stops_first() || !is_crowded
    }

    /// Whether a start is under way, or waits for nothing but the exit of workers: a restart that is asked for comes
    /// after it.
    pub(super) fn is_replacing(&self, now: Moment) -> bool {
        let is_due = self.planned.is_some_and(|planned| planned.at <= now);
        let may_wait = self.stops_first() || self.has_lanes();
        self.is_starting() || self.stopping_first.is_some() || (may_wait && is_due)
    }
}

impl Slot {
    fn is_in_the_way(&self) -> bool {
        match &self.content {
            Content::AskedFor | Content::Waiting => true,
            Content::Occupied(worker) => worker.is_in_the_way(),
            Content::Empty | Content::GivenUp | Content::Elsewhere => false,
        }
    }
}

impl Worker {
    /// A process that was killed before it ran the program never will, and whatever kept it from that may also keep it
    /// from exiting.
    fn is_in_the_way(&self) -> bool {
        !(self.is_killed && self.standing == Standing::Spawned)
    }
}
