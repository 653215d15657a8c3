//! A program that serves and soon dies, again and again: it comes back ever later.

use super::model::Machine;
use crate::host::moment::Moment;
use crate::words::notice::Notice;

/// So many early deaths in a row are a loop.
const LOOP: u32 = 2;

impl Machine {
    /// How many generations in a row have died soon after they had committed, if that is a loop.
    pub fn crash_loop(&self) -> Option<u32> {
        Some(self.early_deaths).filter(|deaths| *deaths >= LOOP)
    }

    /// When the loop is over, unless what serves dies before.
    pub(super) fn trusted_at(&self) -> Option<Moment> {
        self.crash_loop()?;
        Some(self.current()?.steps.ready_at? + self.settle_time())
    }

    pub(super) fn forget_crash_loop(&mut self, now: Moment) {
        if self.trusted_at().is_some_and(|at| at <= now) {
            self.early_deaths = 0;
            self.save_status();
        }
    }

    /// When what served is started again, whose last worker has died. `served_since` is when it committed.
    pub(super) fn comes_back_at(&mut self, served_since: Option<Moment>, now: Moment) -> Moment {
        let shortest = self.settle_time();
        let is_early = served_since.is_some_and(|since| now.saturating_since(since) < shortest);
        self.early_deaths = match is_early {
            true => self.early_deaths.saturating_add(1),
            false => 0,
        };
        let at = self.last_started_at + self.backoff(self.early_deaths.max(1));
        if let Some(deaths) = self.crash_loop() {
            self.say(Notice::CrashLoop {
                deaths,
                next: at.saturating_since(now),
            });
        }
        at
    }
}
