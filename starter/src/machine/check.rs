//! A check before a start: what was asked for begins only once the check has succeeded, and not at all if it fails.

use super::generation::Why;
use super::history::{Decision, FailedCheck, Steps, Verdict};
use super::model::{Action, Checking, Machine, Outcome};
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

impl Machine {
    /// Runs the check before a generation is started, or starts it at once if none is to be run. Where nothing serves
    /// there is nothing to protect, so of those starts only the very first is checked, if that is asked for.
    pub(super) fn start_checked(&mut self, why: Why, now: Moment) {
        let is_checked = match why {
            Why::Asked | Why::Canary(_) | Why::Timed => self.current().is_some(),
            Why::First => self.settings.check_first,
            Why::Replacement | Why::Rollback { .. } | Why::Sweep => false,
        };
        match self.settings.check.filter(|_| is_checked) {
            Some(within) => {
                self.checking = Some(Checking {
                    why,
                    request: self.history.counters.restarts,
                    until: now + within,
                });
                self.actions.push(Action::Check {
                    generation: self.last_number.saturating_add(1),
                });
                self.save_status();
            }
            None => self.start_now(why, now),
        }
    }

    fn start_now(&mut self, why: Why, now: Moment) {
        if self.begins_with_stop(why, now) {
            return;
        }
        match why {
            Why::Asked | Why::Canary(_) => self.restart_now(why, now),
            Why::First => self.start_generation(why, now),
            Why::Timed | Why::Replacement | Why::Rollback { .. } | Why::Sweep => {
                self.start_at(now, why, now)
            }
        }
    }

    /// The check has ended. If nothing waits for it any more, that changes nothing.
    pub(super) fn checked(&mut self, result: Result<(), FailedCheck>, now: Moment) {
        let Some(checking) = self.checking.take() else {
            return;
        };
        match result {
            // Meanwhile the workers have died, and what served is coming back: the restart comes after that.
            Ok(()) if self.is_replacing(now) => self.want(checking.why),
            Ok(()) => {
                self.start_now(checking.why, now);
                if !self.is_replacing(now) {
                    // The start that is planned for later also answers whoever has asked since.
                    self.want_nothing();
                }
            }
            Err(failed) => self.check_failed(checking, failed, now),
        }
        self.save_status();
    }

    fn check_failed(&mut self, checking: Checking, failed: FailedCheck, now: Moment) {
        self.say(Notice::CheckFailed(failed.cause.clone()));
        self.history.add_decision(Decision {
            request: checking.request,
            is_of_rollback: false,
            // No generation was started for it.
            generation: 0,
            verdict: Verdict::CheckFailed(failed),
            at: now,
            replaces: None,
            again: None,
            steps: Steps::new(now),
            outage: None,
            rolled: None,
        });
        self.auto_restart_since = now;
        match checking.why {
            Why::First => {
                let signal = self.settings.signal_on_term;
                self.stop_all(signal, Outcome::GivenUp, now);
            }
            // A restart may have been requested again since the check began.
            Why::Asked
            | Why::Canary(_)
            | Why::Timed
            | Why::Replacement
            | Why::Rollback { .. }
            | Why::Sweep => {
                if !self.is_replacing(now)
                    && let Some(wanted) = self.take_wanted()
                {
                    self.start_checked(wanted, now);
                }
            }
        }
    }

    /// A check that has taken too long has failed.
    pub(super) fn fail_late_check(&mut self, now: Moment) {
        let Some(within) = self.settings.check else {
            return;
        };
        if self.checking.is_some_and(|checking| checking.until <= now) {
            self.actions.push(Action::EndCheck);
            let failed = FailedCheck {
                status: None,
                cause: StartFailure::late_check(within),
                lines: Vec::new(),
            };
            self.checked(Err(failed), now);
        }
    }

    pub(super) fn give_up_check(&mut self) {
        if self.checking.take().is_some() {
            self.actions.push(Action::EndCheck);
        }
    }
}
