//! What is remembered of lanes: see [`super::switch`].

use serde::{Deserialize, Serialize};

use crate::host::moment::Moment;

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
