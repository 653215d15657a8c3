//! A program that serves and soon dies, again and again: it comes back ever later.

use super::model::Machine;
use crate::host::moment::Moment;
use crate::words::notice::Notice;

impl Machine {
    /// When what served is started again, whose last worker has died. `served_since` is when it committed.
    pub(super) fn comes_back_at(&mut self, served_since: Option<Moment>, now: Moment) -> Moment {
        let shortest = self.settle_time();
        let is_early = served_since.is_some_and(|since| now.saturating_since(since) < shortest);
        self.early_deaths = match is_early {
            true => self.early_deaths.saturating_add(1),
            false => 0,
        };
        let at = self.last_started_at + self.backoff(self.early_deaths.max(1));
        if self.early_deaths > 1 {
            self.say(Notice::CrashLoop {
                deaths: self.early_deaths,
                next: at.saturating_since(now),
            });
        }
        at
    }
}
