//! What is remembered of lanes: see [`super::switch`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::moment::Moment;

/// The shortest time between two looks at a socket.
pub(super) const SHORTEST_LOOK: Duration = Duration::from_millis(10);

/// Who gets new traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Gets all of it, or all but the share of the canary.
    pub main: Share,
    /// Gets [`Canary::percent`] of it.
    pub canary: Option<Canary>,
    /// The lanes that still get the packets of flows that name them: those of generations that have been selected, and live.
    /// All other flows count as new.
    #[serde(default)]
    pub flows: Vec<u8>,
}

/// Some sockets of each listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Whose they are.
    pub generation: u32,
    pub lane: u8,
    /// Which sockets of the lane get anything: as many each.
    pub shards: Vec<u8>,
}

/// A share of new traffic, for a generation that has not committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    pub share: Share,
    /// 1 to 99.
    pub percent: u8,
    pub by: By,
}

/// How the kernel chooses what goes to a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// At random, anew for each connection or datagram.
    Random,
    /// By the address of the client, so always the same clients.
    Client,
}

/// Sockets of each listener, by their numbers: those of the first lane, one for each shard, then those of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sockets {
    pub first: u8,
    pub count: u8,
}

impl Sockets {
    pub fn one(number: u8) -> Sockets {
        Sockets {
            first: number,
            count: 1,
        }
    }

    /// All of a lane.
    pub fn of_lane(lane: u8, shards: u8) -> Sockets {
        Sockets {
            first: lane.saturating_mul(shards),
            count: shards,
        }
    }

    pub fn numbers(self) -> impl Iterator<Item = u8> {
        self.first..self.first.saturating_add(self.count)
    }
}

/// The share that a restart asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Portion {
    /// 1 to 99.
    pub percent: u8,
    pub by: By,
    /// How long it serves without a fault until it is promoted by itself, if ever.
    pub time: Option<Duration>,
}

impl Selection {
    /// All new traffic goes to the lane.
    pub fn whole(generation: u32, lane: u8, shards: u8) -> Selection {
        let shards = (0..shards).collect();
        Selection {
            main: Share {
                generation,
                lane,
                shards,
            },
            canary: None,
            flows: Vec::new(),
        }
    }

    /// All of them.
    pub fn shares(&self) -> impl Iterator<Item = &Share> {
        let canary = self.canary.iter().map(|canary| &canary.share);
        std::iter::once(&self.main).chain(canary)
    }

    /// Whether the kernel does the same for both with what is new.
    pub fn is_same(&self, other: &Selection) -> bool {
        let of = |share: &Share| (share.lane, share.shards.clone());
        let canary = |one: &Selection| {
            let canary = one.canary.as_ref();
            canary.map(|canary| (of(&canary.share), canary.percent, canary.by))
        };
        of(&self.main) == of(&other.main) && canary(self) == canary(other)
    }
}

/// Workers that are to be told to stop once nothing waits in their sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Quiet {
    /// Not before then.
    pub not_before: Moment,
    /// Something has waited then, or nobody has looked before.
    pub busy_at: Moment,
    pub look_at: Moment,
    /// It can be told.
    pub is_over: bool,
}

/// A socket in which something waits that nobody accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stray {
    /// Its number.
    pub socket: u8,
    /// When to look whether something still waits.
    pub look_at: Moment,
    /// Whether the answer to a look is awaited.
    pub is_looked_at: bool,
    /// How many sweepers have failed to serve it.
    pub failures: u32,
}

impl Quiet {
    /// So many of the sockets have something to be accepted or received. Returns whether that is waited for no longer.
    pub fn looked(
        &mut self,
        waiting: usize,
        quiet_time: Duration,
        timeout: Duration,
        now: Moment,
    ) -> bool {
        if waiting > 0 {
            self.busy_at = self.busy_at.max(now);
        }
        let quiet_at = self.not_before.max(self.busy_at + quiet_time);
        let is_quiet = waiting == 0 && quiet_at <= now;
        let is_timed_out = self.not_before + timeout <= now;
        self.is_over = is_quiet || is_timed_out;
        // Nothing depends on it long before that; a timeout comes first, and so does the moment when it can be quiet at the
        // earliest.
        let early = self
            .not_before
            .saturating_since(now)
            .saturating_sub(quiet_time);
        let next = now + early.max(look_time(quiet_time));
        let earliest = quiet_at.min(self.not_before + timeout);
        self.look_at = if earliest > now {
            next.min(earliest)
        } else {
            next
        };
        is_timed_out && waiting > 0
    }
}

/// The time between two looks.
pub(super) fn look_time(quiet_time: Duration) -> Duration {
    (quiet_time / 4).max(SHORTEST_LOOK)
}
