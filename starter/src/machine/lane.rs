//! What is remembered of lanes: see [`super::switch`].

use serde::{Deserialize, Serialize};

use crate::host::moment::Moment;

/// Who gets what comes to the listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// All of it, or the most of it.
    pub main: Share,
    /// So much of it as [`Canary::percent`] says.
    pub canary: Option<Canary>,
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

/// A share of what comes, for a generation that has not committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    pub share: Share,
    /// 1 to 99.
    pub percent: u8,
    pub by: By,
}

/// Who comes to a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// Anybody, anew for each connection or datagram.
    Random,
    /// The same clients each time, by their addresses.
    Client,
}

impl Selection {
    /// Everything comes to the lane.
    pub fn whole(generation: u32, lane: u8, shards: u8) -> Selection {
        let shards = (0..shards).collect();
        Selection {
            main: Share {
                generation,
                lane,
                shards,
            },
            canary: None,
        }
    }

    /// Whether the kernel does the same for both.
    pub(super) fn is_same(&self, other: &Selection) -> bool {
        let of = |share: &Share| (share.lane, share.shards.clone());
        let canary = |one: &Selection| {
            let canary = one.canary.as_ref();
            canary.map(|canary| (of(&canary.share), canary.percent, canary.by))
        };
        of(&self.main) == of(&other.main) && canary(self) == canary(other)
    }
}

/// A generation that is to be told to stop once its lane is quiet.
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

/// A lane in which something waits that nobody accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stray {
    pub lane: u8,
    /// When to look whether it still does.
    pub look_at: Moment,
    /// Whether the answer to a look is awaited.
    pub is_looked_at: bool,
    /// How many sweepers have not served it.
    pub failures: u32,
}
