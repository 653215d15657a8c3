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
    /// In the order given, without duplicates.
    pub dialects: Vec<Dialect>,
}
