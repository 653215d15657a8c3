//! Settings for the listeners.

use common::message::MOST_LANES;

use super::dialects::Dialect;
use super::program::Spread;
use super::spec::{PathSpec, PortSpec};

/// What to listen on, and how workers learn about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub ports: Vec<PortSpec>,
    pub paths: Vec<PathSpec>,
    /// For listen(2), at least 1; `None` if it was not given.
    pub backlog: Option<i32>,
    /// Whether each generation gets sockets of its own, where that is possible.
    pub switch: Option<Switch>,
    /// In the order given, without duplicates.
    pub dialects: Vec<Dialect>,
}

/// New connections go to one generation alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// How many generations can have sockets of their own, at least 2.
    pub lanes: u8,
    /// How many sockets a generation has at each address, at least 1.
    pub shards: u8,
    /// How new traffic is spread over these.
    pub spread: Spread,
    /// Whatever must be shared is refused.
    pub is_required: bool,
    /// With QUIC: which byte of a connection ID names the socket of its flow.
    pub flows: Option<u8>,
}

impl Switch {
    /// How many sockets each address has.
    pub fn sockets(self) -> u8 {
        self.lanes.saturating_mul(self.shards)
    }

    /// With as many shards as there are workers, as far as one address may have so many sockets: others share them.
    pub fn with_workers(self, workers: usize) -> Switch {
        let most = (MOST_LANES / self.lanes.max(1)).max(1);
        let shards = u8::try_from(workers).map_or(most, |workers| workers.clamp(1, most));
        Switch { shards, ..self }
    }
}
