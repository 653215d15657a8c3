//! What is under way and when it ends by itself, for a service manager: no decision depends on it.

use super::generation::{Generation, Slot};
use super::model::{Machine, Phase};
use crate::host::moment::Moment;

impl Machine {
    /// Whether the check before a start runs.
    pub fn is_checking(&self) -> bool {
        self.checking.is_some()
    }

    /// Whether a restart is under way: what is to replace what serves is being checked, waits for the end of that, or was
    /// started.
    pub fn is_under_way(&self) -> bool {
        let is_checked = self
            .checking
            .is_some_and(|checking| checking.why.is_restart());
        self.is_restarting() || is_checked || self.stopping_first().is_some()
    }

    /// When the start or the stop that is under way is over at the latest, if it has a bound: a start of its own accord
    /// succeeds or fails by then, and a stop kills what is left. Retries without a limit have none.
    pub fn ends_by(&self) -> Option<Moment> {
        match self.phase {
            Phase::Finished => None,
            Phase::Stopping { kill_at, .. } => kill_at,
            Phase::Serving if self.retries_forever() => None,
            Phase::Serving => {
                let checked = self.checking.map(|checking| checking.until);
                let proved = || self.starting().and_then(|one| self.decided_by(one));
                let planned = || self.planned.map(|planned| planned.at);
                checked.or_else(proved).or_else(planned)
            }
        }
    }

    fn retries_forever(&self) -> bool {
        !self.has_served() && self.failures > 0 && self.settings.first_start_limit.is_none()
    }

    fn decided_by(&self, generation: &Generation) -> Option<Moment> {
        let of_slot = |slot: &Slot| {
            let late = self.late_at(slot);
            let proved = self.proved_at(slot);
            late.into_iter().chain(proved).chain(slot.hangs_at()).max()
        };
        generation.slots.iter().filter_map(of_slot).max()
    }
}
