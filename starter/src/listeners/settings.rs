//! Settings for the listeners.

use super::dialects::Dialect;
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

/// New connections come to one generation alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// How many sockets each address has, at least 2.
    pub lanes: u8,
    /// Whatever must be shared is refused.
    pub is_required: bool,
}
