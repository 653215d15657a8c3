//! `--watch`: the generation that serves goes on being asked what it was asked before its commit.
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
use crate::host::launcher::Change;
use crate::host::luggage::Luggage;
use crate::host::moment::Moment;
use crate::listeners::dialects::Announced;
use crate::machine::Event;

/// The bounds of the time between two tries.
const SHORTEST_PERIOD: Duration = Duration::from_millis(100);
const LONGEST_PERIOD: Duration = Duration::from_secs(10);

/// One generation that serves, and how it has answered.
pub struct Health {
    generation: u32,
    period: Duration,
    question: Question,
    /// The last answer.
    last: Last,
}

enum Question {
    Probe { goal: Goal, trial: Trial },
    Command(Attempts),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Last {
    /// There was none yet.
    Unknown,
    Good,
    /// The first try that failed, and has not been followed by a good one, began then.
    BadSince(Moment),
}

/// The health of a generation on its way to the next program.
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
    /// For a generation that has just become current; `None` if it cannot be asked.
    pub fn new(
        generation: u32,
        ready: &Ready,
        watch: Duration,
        changes: &[Change],
        now: Moment,
    ) -> Option<Health> {
        let period = period(watch);
        let first_at = now + period;
        let question = match Goal::of(ready) {
            Some(goal) => Question::Probe {
                trial: trial(generation, goal.clone(), first_at),
                goal,
            },
            None if matches!(ready, Ready::Command(_)) => Question::Command(Attempts::new(
                generation,
                changes.to_vec(),
                period,
                Some(longest_command(watch)),
                first_at,
            )),
            None => return None,
        };
        Some(Health {
            generation,
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
    pub fn unpack(
        packed: PackedHealth,
        generation: u32,
        ready: &Ready,
        watch: Duration,
    ) -> Option<Health> {
        let period = period(watch);
        let question = match packed.question {
            PackedQuestion::Probe(trial) => {
                let goal = Goal::of(ready)?;
                let trial = Trial::unpack(trial, goal.clone(), whom(generation));
                Question::Probe { goal, trial }
            }
            PackedQuestion::Command(attempts) => {
                let longest = Some(longest_command(watch));
                Question::Command(Attempts::unpack(attempts, generation, period, longest))
            }
        };
        Some(Health {
            generation,
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
        now: Moment,
        run: &mut Runner<'_>,
        found: &mut Vec<Event>,
    ) {
        let ended = match (&mut self.question, ready, probe) {
            (Question::Probe { .. }, _, Some(probe)) => self.look_at_trial(probe, now),
            (Question::Command(attempts), Ready::Command(command), probe) => {
                let probe = probe.map(Announced::from);
                attempts.look(command, probe.as_ref(), now, run)
            }
            _ => None,
        };
        self.tell(ended, found);
    }

    fn look_at_trial(&mut self, probe: &Probe, now: Moment) -> Option<Ended> {
        let Question::Probe { goal, trial } = &mut self.question else {
            return None;
        };
        let again_at = now + self.period;
        let began_at = trial.began_at().unwrap_or(now);
        let result = match trial.look(probe, now) {
            trial::Found::Ready => Ok(()),
            trial::Found::NotYet(known) => Err(known),
            trial::Found::Nothing => {
                // The same connection goes on waiting: it would have to be accepted before any other.
                let is_late = *goal == Goal::Accept && now >= began_at + LONGEST_REQUEST;
                return is_late.then(|| {
                    trial.pause_until(again_at);
                    let generation = self.generation;
                    Ended {
                        began_at,
                        result: Err(format!(
                            "generation {generation} has not accepted a connection"
                        )),
                    }
                });
            }
        };
        *trial = self::trial(self.generation, goal.clone(), again_at);
        Some(Ended { began_at, result })
    }

    /// Whether this child was its command.
    pub fn command_exited(
        &mut self,
        pid: Pid,
        status: i32,
        now: Moment,
        found: &mut Vec<Event>,
    ) -> bool {
        let ended = match &mut self.question {
            Question::Command(attempts) => attempts.exited(pid, status, now),
            Question::Probe { .. } => None,
        };
        let is_its = ended.is_some();
        self.tell(ended, found);
        is_its
    }

    /// Each bad answer is told, and the first good one.
    fn tell(&mut self, ended: Option<Ended>, found: &mut Vec<Event>) {
        let generation = self.generation;
        let Some(Ended { began_at, result }) = ended else {
            return;
        };
        let before = self.last;
        match result {
            Err(known) => {
                let since = match before {
                    Last::BadSince(since) => since,
                    Last::Unknown | Last::Good => began_at,
                };
                self.last = Last::BadSince(since);
                found.push(Event::Unwell {
                    generation,
                    since,
                    known,
                });
            }
            Ok(()) => {
                self.last = Last::Good;
                let is_news = before != Last::Good;
                found.extend(is_news.then_some(Event::Well { generation }));
            }
        }
    }
}

fn trial(generation: u32, goal: Goal, at: Moment) -> Trial {
    Trial::new(goal, whom(generation), at)
}

fn whom(generation: u32) -> String {
    format!("generation {generation}")
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
