//! `--watch`: each worker of the generation that serves goes on being asked what it was asked before it was ready.
//!
//! How long bad answers matter is not decided here.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::attempts::{Attempts, Ended, PackedAttempts};
use super::handed::Runner;
use super::probe::Probe;
use super::settings::Ready;
use super::trial::{self, Goal, LONGEST_REQUEST, PackedTrial, Trial};
use super::whom::Whom;
use crate::host::launcher::Change;
use crate::host::luggage::Luggage;
use crate::host::moment::Moment;
use crate::listeners::dialects::Announced;

/// The bounds of the time between two tries.
const SHORTEST_PERIOD: Duration = Duration::from_millis(100);
const LONGEST_PERIOD: Duration = Duration::from_secs(10);

/// What one worker that serves is asked, and how it has answered.
pub struct Health {
    period: Duration,
    question: Question,
    /// The last answer.
    last: Last,
}

enum Question {
    Probe { goal: Goal, trial: Trial },
    Command(Attempts),
}

/// What a worker has answered.
pub enum Answer {
    Good,
    /// The first bad answer, and no good one since, was asked for then; and what is known about this one.
    Bad {
        since: Moment,
        known: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Last {
    /// There was none yet.
    Unknown,
    Good,
    /// The first try that failed, and has not been followed by a good one, began then.
    BadSince(Moment),
}

/// The health of a worker on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedHealth {
    question: PackedQuestion,
    last: Last,
}

#[derive(Debug, Serialize, Deserialize)]
enum PackedQuestion {
    Probe(PackedTrial),
    Command(PackedAttempts),
}

/// How long a command may take.
fn longest_command(watch: Duration) -> Duration {
    watch.max(LONGEST_REQUEST)
}

/// How long it is from the end of a try to the next one: a quarter of the time after which failures matter, within
/// bounds.
fn period(watch: Duration) -> Duration {
    (watch / 4).clamp(SHORTEST_PERIOD, LONGEST_PERIOD)
}

impl Health {
    /// For a worker that serves from now on; `None` if it cannot be asked.
    pub fn new(ready: &Ready, watch: Duration, changes: &[Change], now: Moment) -> Option<Health> {
        let period = period(watch);
        let first_at = now + period;
        let question = match Goal::of(ready) {
            Some(goal) => Question::Probe {
                trial: Trial::new(goal.clone(), first_at),
                goal,
            },
            None if matches!(ready, Ready::Command(_)) => Question::Command(Attempts::new(
                changes.to_vec(),
                period,
                Some(longest_command(watch)),
                first_at,
            )),
            None => return None,
        };
        Some(Health {
            period,
            question,
            last: Last::Unknown,
        })
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedHealth {
        PackedHealth {
            question: match &self.question {
                Question::Probe { trial, .. } => PackedQuestion::Probe(trial.pack(luggage)),
                Question::Command(attempts) => PackedQuestion::Command(attempts.pack(luggage)),
            },
            last: self.last,
        }
    }

    /// The same again, under settings from the same command line; `None` if they ask nothing.
    pub fn unpack(packed: PackedHealth, ready: &Ready, watch: Duration) -> Option<Health> {
        let period = period(watch);
        let question = match packed.question {
            PackedQuestion::Probe(trial) => {
                let goal = Goal::of(ready)?;
                let trial = Trial::unpack(trial, goal.clone());
                Question::Probe { goal, trial }
            }
            PackedQuestion::Command(attempts) => {
                let longest = Some(longest_command(watch));
                Question::Command(Attempts::unpack(attempts, period, longest))
            }
        };
        Some(Health {
            period,
            question,
            last: packed.last,
        })
    }

    pub fn source(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.question {
            Question::Probe { trial, .. } => trial.source(),
            Question::Command(attempts) => {
                attempts.source().map(|output| (output, PollFlags::POLLIN))
            }
        }
    }

    pub fn deadline(&self) -> Option<Moment> {
        match &self.question {
            Question::Probe { trial, .. } => Some(trial.deadline()),
            Question::Command(attempts) => attempts.deadline(),
        }
    }

    /// Asks where that is due, and looks at the answer.
    pub fn look(
        &mut self,
        ready: &Ready,
        probe: Option<&Probe>,
        whom: Whom,
        now: Moment,
        run: &mut Runner<'_>,
    ) -> Option<Answer> {
        let ended = match (&mut self.question, ready, probe) {
            (Question::Probe { .. }, _, Some(probe)) => self.look_at_trial(probe, whom, now),
            (Question::Command(attempts), Ready::Command(command), probe) => {
                let probe = probe.map(Announced::from);
                attempts.look(command, probe.as_ref(), whom, now, run)
            }
            _ => None,
        };
        ended.map(|ended| self.take(ended))
    }

    fn look_at_trial(&mut self, probe: &Probe, whom: Whom, now: Moment) -> Option<Ended> {
        let Question::Probe { goal, trial } = &mut self.question else {
            return None;
        };
        let again_at = now + self.period;
        let began_at = trial.began_at().unwrap_or(now);
        let result = match trial.look(probe, whom, now) {
            trial::Found::Ready => Ok(()),
            trial::Found::NotYet(known) => Err(known),
            trial::Found::Nothing => {
                // The same connection goes on waiting: it would have to be accepted before any other.
                let is_late = *goal == Goal::Accept && now >= began_at + LONGEST_REQUEST;
                return is_late.then(|| {
                    trial.pause_until(again_at);
                    Ended {
                        began_at,
                        result: Err(format!("{whom} has not accepted a connection")),
                    }
                });
            }
        };
        *trial = Trial::new(goal.clone(), again_at);
        Some(Ended { began_at, result })
    }

    /// If this child was its command, what that says.
    pub fn command_exited(
        &mut self,
        pid: Pid,
        status: i32,
        whom: Whom,
        now: Moment,
    ) -> Option<Answer> {
        let Question::Command(attempts) = &mut self.question else {
            return None;
        };
        let ended = attempts.exited(pid, status, whom, now)?;
        Some(self.take(ended))
    }

    fn take(&mut self, ended: Ended) -> Answer {
        let Ended { began_at, result } = ended;
        match result {
            Err(known) => {
                let since = self.bad_since().unwrap_or(began_at);
                self.last = Last::BadSince(since);
                Answer::Bad { since, known }
            }
            Ok(()) => {
                self.last = Last::Good;
                Answer::Good
            }
        }
    }

    /// Since when it has given bad answers alone.
    pub fn bad_since(&self) -> Option<Moment> {
        match self.last {
            Last::BadSince(since) => Some(since),
            Last::Unknown | Last::Good => None,
        }
    }

    /// Whether its last answer was good.
    pub fn is_good(&self) -> bool {
        self.last == Last::Good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_period_is_a_quarter_of_the_watch_within_bounds() {
        for (watch, expected) in [
            (0.001, 0.1),
            (0.4, 0.1),
            (2.0, 0.5),
            (40.0, 10.0),
            (3600.0, 10.0),
        ] {
            let found = period(Duration::from_secs_f64(watch));
            assert_eq!(found, Duration::from_secs_f64(expected), "{watch}");
        }
    }
}
