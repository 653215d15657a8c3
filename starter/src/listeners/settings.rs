//! What can be chosen about listeners.

use super::dialects::Dialect;
use super::spec::{PathSpec, PortSpec};

/// What to listen on, and how workers are told about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub ports: Vec<PortSpec>,
    pub paths: Vec<PathSpec>,
    /// For listen(2), at least 1.
    pub backlog: i32,
    /// In the order given, each once.
    pub dialects: Vec<Dialect>,
}
