//! The watchdog of a service manager: a ping at half of the time that it allows, as long as the server is well.

use std::time::Duration;

use crate::host::moment::Moment;
use crate::machine::{Machine, State};

/// However often a manager wants to hear.
const SHORTEST: Duration = Duration::from_millis(1);

/// Whether to tell the service manager that all is well: a worker of the current generation lives, or while everything is
/// stopped, any worker. Whatever else makes a server unhealthy belongs here.
pub fn is_healthy(machine: &Machine) -> bool {
    let counts = |state| match state {
        State::Current => true,
        State::Starting | State::Retiring | State::Old => machine.is_stopping(),
    };
    let mut generations = machine.generations();
    generations.any(|one| counts(one.state()) && one.workers().next().is_some())
}

/// When the next ping is due.
#[derive(Debug)]
pub struct Watchdog {
    every: Duration,
    due: Moment,
}

impl Watchdog {
    /// `longest` is the longest time between two pings.
    pub fn new(longest: Duration, now: Moment) -> Watchdog {
        Watchdog {
            every: (longest / 2).max(SHORTEST),
            due: now,
        }
    }

    pub fn due(&self) -> Moment {
        self.due
    }

    pub fn pinged(&mut self, now: Moment) {
        self.due = now + self.every;
    }
}
