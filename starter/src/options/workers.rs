//! The value of `--workers`.

/// How many workers there are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    Number(u16),
    /// One for each CPU.
    Auto,
}

/// More workers than this are a mistake.
pub const MOST_WORKERS: u16 = 10_000;
