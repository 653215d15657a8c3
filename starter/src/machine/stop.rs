//! Stopping: tells every worker to stop, kills those that do not, and finishes with the last of them.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::generation::{Content, Generation};
use super::model::{Action, Machine, Outcome, Phase};
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::stopping::{End, StillWaiting};

impl Machine {
    /// The first order to stop counts; to later ones it says what it waits for, and they change nothing.
    pub(super) fn stop(&mut self, received: Signal, now: Moment) {
        if self.phase != Phase::Serving {
            self.say_what_it_waits_for(now);
            return;
        }
        // As in Server::Starter, --signal-on-term applies to TERM only.
        let sent = if received == Signal::SIGTERM {
            self.settings.signal_on_term
        } else {
            Signal::SIGTERM
        };
        self.say(Notice::Stopping {
            received,
            sent,
            pids: self.all_pids(),
        });
        self.stop_all(sent, Outcome::Stopped, now);
    }

    /// Whoever is impatient is to know what can be done.
    fn say_what_it_waits_for(&mut self, now: Moment) {
        let Phase::Stopping { kill_at, .. } = self.phase else {
            return;
        };
        let generations = self.generations.iter();
        let workers =
            generations.flat_map(|one| one.pids().into_iter().map(|pid| (pid, one.number)));
        let waiting = StillWaiting {
            workers: workers.collect(),
            since: self
                .stopping_since
                .map_or(Duration::ZERO, |since| now.saturating_since(since)),
            end: match (kill_at, self.settings.stop_timeout) {
                (Some(at), _) => End::KillIn(at.saturating_since(now)),
                (None, Some(_)) => End::Killed,
                (None, None) => End::Nothing,
            },
        };
        // A worker that was only asked for has no pid yet.
        if !waiting.workers.is_empty() {
            self.say(Notice::StillWaiting(waiting));
        }
    }

    /// Stops every worker, because they can no longer be supervised.
    pub(super) fn give_up_everything(&mut self, now: Moment) {
        if self.phase == Phase::Serving {
            self.stop_all(self.settings.signal_on_term, Outcome::GivenUp, now);
        }
    }

    pub(super) fn stop_all(&mut self, signal: Signal, outcome: Outcome, now: Moment) {
        let kill_at = self.settings.stop_timeout.map(|timeout| now + timeout);
        self.phase = Phase::Stopping { kill_at, outcome };
        self.stopping_since = Some(now);
        self.give_up_check();
        self.planned = None;
        self.stopping_first = None;
        self.outage = None;
        self.postponed = None;
        self.want_nothing();
        self.cancel_waiting();
        for pid in self.all_pids() {
            self.signal(pid, signal);
        }
        self.save_status();
        self.finish_if_empty();
    }

    /// Whoever waits for its turn waits no longer.
    fn cancel_waiting(&mut self) {
        let generations = self.generations.iter_mut();
        for slot in generations.flat_map(|generation| &mut generation.slots) {
            if slot.content == Content::Waiting {
                slot.content = Content::GivenUp;
            }
        }
        self.drop_gone();
    }

    /// `--stop-timeout` has expired: kills what is left, once.
    pub(super) fn kill_all(&mut self, outcome: Outcome) {
        self.phase = Phase::Stopping {
            kill_at: None,
            outcome,
        };
        let left = self.all_pids();
        self.say(Notice::KillingWorkers { pids: left.clone() });
        for worker in self
            .generations
            .iter_mut()
            .flat_map(Generation::workers_mut)
        {
            // Perhaps it is due now as well.
            worker.kill_at = None;
        }
        for pid in left {
            // A stopped process that is killed leaves nothing to wait for, but CONT first lets tools that
            // watch it (a shell, a debugger) see it run again.
            self.signal(pid, Signal::SIGCONT);
            self.signal(pid, Signal::SIGKILL);
        }
    }

    pub(super) fn finish_if_empty(&mut self) {
        let Phase::Stopping { outcome, .. } = self.phase else {
            return;
        };
        if !self.generations.is_empty() {
            return;
        }
        if outcome == Outcome::Stopped {
            self.say(Notice::Exiting);
        }
        self.phase = Phase::Finished;
        self.actions.push(Action::Finish(outcome));
    }
}
