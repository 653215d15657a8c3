//! The watchdog of a service manager: a ping at half of the time that it allows, as long as the server is well.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::moment::Moment;
use crate::machine::{Machine, State};

/// However often a manager wants to hear.
const SHORTEST: Duration = Duration::from_millis(1);

/// Whether to tell the service manager that all is well: a worker of the current generation lives and `--watch` finds
/// nothing wrong with it. While everything is stopped, any worker counts, and so does one that ends or starts because a
/// restart stops what serves first.
pub fn is_healthy(machine: &Machine) -> bool {
    let any_counts = machine.is_stopping() || machine.stopping_first().is_some();
    let counts = |state| match state {
        State::Current => machine.unhealthy().is_none(),
        State::Starting => any_counts || machine.outage().is_some(),
        State::Canary | State::Partial | State::Retiring | State::Sweeping | State::Old => {
            any_counts
        }
    };
    let mut generations = machine.generations();
    generations.any(|one| counts(one.state()) && one.workers().next().is_some())
}

/// When the next ping is due.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
