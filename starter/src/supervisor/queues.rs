//! When the queues of the listeners are looked at, after the commit of a generation that has proved nothing but that it
//! lives. Nothing follows from it but a warning.
//!
//! An idle server is woken up once for each commit. A second look follows only where connections were found waiting.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::host::moment::Moment;
use crate::listeners::queues::{Queues, Untaken};

/// How long after a commit the first look is, and how long after that the second one.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The next look.
#[derive(Debug, Default)]
pub struct Look {
    at: Option<Moment>,
    /// What has waited at the first look.
    before: Option<Queues>,
}

impl Look {
    /// A generation has committed.
    pub fn begin(&mut self, now: Moment) {
        *self = Look {
            at: Some(now + PATIENCE),
            before: None,
        };
    }

    pub fn deadline(&self) -> Option<Moment> {
        self.at
    }

    /// It is not worth it any more.
    pub fn cancel(&mut self) {
        *self = Look::default();
    }

    /// Looks. Returns what has waited since the look before; if that was none, another one follows.
    pub fn look<'a>(
        &mut self,
        sockets: impl Iterator<Item = &'a OwnedFd> + Clone,
        now: Moment,
    ) -> Vec<Untaken> {
        let before = std::mem::take(self).before;
        let queues = Queues::of(sockets.clone());
        match before {
            Some(before) => queues.untaken(&before, sockets),
            None if queues.are_empty() => Vec::new(),
            None => {
                self.at = Some(now + PATIENCE);
                self.before = Some(queues);
                Vec::new()
            }
        }
    }
}
