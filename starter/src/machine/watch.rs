//! What serves may stop doing so without dying: the current generation goes on being asked whether it serves.
//!
//! | it is unhealthy | what follows |
//! |---|---|
//! | while its predecessor is retiring and serves | the predecessor is current again; it is told to stop and has failed |
//! | at any other time | a warning, once; nothing is signalled, neither it nor a retiring generation |
//! | and answers again | it is said; a retiring generation whose time has come is signalled |
//!
//! Nothing that serves is ever ended for being unhealthy where nothing else could serve.

use std::time::Duration;

use super::generation::{Generation, Stage, State};
use super::model::Machine;
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

impl Machine {
    /// Why the current generation is unhealthy, if it is.
    pub fn unhealthy(&self) -> Option<&str> {
        self.current()?.unhealthy.as_deref()
    }

    /// The current generation has not answered well since then.
    pub(super) fn unwell(&mut self, number: u32, since: Moment, known: String, now: Moment) {
        let Some(watch) = self.settings.watch.filter(|_| !self.is_stopping()) else {
            return;
        };
        if now.saturating_since(since) < watch {
            return self.extend_canary(number, now + watch);
        }
        if self.state_of(number) == Some(State::Canary) {
            let cause = StartFailure::unhealthy(watch, &known);
            return self.canary_failed(number, None, Some(cause), now);
        }
        let current = self.generation_mut(number);
        let Some(current) = current.filter(|one| one.state() == State::Current) else {
            return;
        };
        let before = current.unhealthy.replace(known.clone());
        if before.as_ref() != Some(&known) {
            self.save_status();
        }
        if before.is_none() {
            self.say(Notice::Unhealthy {
                generation: number,
                since: watch,
                known,
            });
        }
        // Each time: there may be a way back that there was not when it became so.
        self.leave_unhealthy(number, watch, now);
    }

    /// The current generation has answered well.
    pub(super) fn well(&mut self, number: u32, now: Moment) {
        let current = self.generation_mut(number);
        let current = current.filter(|one| one.state() == State::Current);
        let Some(current) = current.filter(|one| one.unhealthy.is_some()) else {
            return;
        };
        current.unhealthy = None;
        self.save_status();
        if !self.is_stopping() {
            self.say(Notice::HealthyAgain { generation: number });
            self.signal_retiring(now);
        }
    }

    /// Gives the place of an unhealthy generation back to its predecessor, if that was not signalled yet and serves.
    fn leave_unhealthy(&mut self, number: u32, watch: Duration, now: Moment) {
        let mut retiring = self.generations.iter().rev();
        let retiring = retiring.find(|one| one.state() == State::Retiring);
        if !retiring.is_some_and(Generation::serves) {
            return;
        }
        let unhealthy = self.generation_mut(number);
        let Some(known) = unhealthy.and_then(|one| one.unhealthy.take()) else {
            return;
        };
        let cause = StartFailure::unhealthy(watch, &known);
        self.drain(number, now);
        self.current_died(number, None, Some(cause), now);
        self.save_status();
    }

    /// Tells its workers to stop, as old ones are told.
    pub(super) fn drain(&mut self, number: u32, now: Moment) {
        let quiet = self.quiet_from(now, now);
        let Some(generation) = self.generation_mut(number) else {
            return;
        };
        generation.stage = Stage::Draining;
        generation.unhealthy = None;
        if let Some(quiet) = quiet {
            // It has accepted connections until now.
            generation.quiet = Some(quiet);
            return;
        }
        let pids = generation.take_untold();
        let (signal, patience) = (self.settings.signal_on_hup, self.settings.kill_old_timeout);
        self.tell_to_stop(&pids, signal, patience, now);
        self.kill_surplus();
    }
}
