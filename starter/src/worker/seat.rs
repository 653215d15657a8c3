//! Where a worker sits: what its environment says about that.

/// The variables that say it.
pub const VARIABLES: [&str; 3] = [
    "SERVER_STARTER_GENERATION",
    "SERVER_STARTER_WORKER",
    "SERVER_STARTER_WORKERS",
];

/// The number of its sockets, where generations have sockets of their own.
pub const LANE: &str = "SERVER_STARTER_LANE";

/// The slot of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// The number of its generation.
    pub generation: u32,
    /// From 0. A worker that replaces another gets the same number.
    pub slot: usize,
    /// How many slots a generation has.
    pub workers: usize,
}

impl Seat {
    pub fn variables(self) -> impl Iterator<Item = (&'static str, String)> {
        let values = [
            self.generation.to_string(),
            self.slot.to_string(),
            self.workers.to_string(),
        ];
        VARIABLES.into_iter().zip(values)
    }
}
