//! What a dry run finds out: what a start would do, and what would keep it from that.

use crate::words::failure::{Failure, Status};
use crate::words::text::printable;

/// Both, in the order in which a start would come to them.
#[derive(Debug, Default)]
pub struct Findings {
    lines: Vec<String>,
    failures: Vec<Failure>,
}

impl Findings {
    /// A start would do this.
    pub fn would(&mut self, line: impl AsRef<str>) {
        self.lines.push(printable(line.as_ref()));
    }

    /// A start would fail like this.
    pub fn fails(&mut self, failure: impl Into<Failure>) {
        self.failures.push(failure.into());
    }

    /// The value, unless a start would fail before it had one.
    pub fn take<T, E: Into<Failure>>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|failure| self.fails(failure)).ok()
    }

    /// Adds what comes later in a start.
    pub fn append(&mut self, later: Findings) {
        self.lines.extend(later.lines);
        self.failures.extend(later.failures);
    }

    /// The lines for standard output.
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// The exit code. A wrong command line is the worst.
    pub fn status(&self) -> Status {
        let is_usage = |failure: &Failure| failure.status == Status::Usage;
        match self.failures.iter().any(is_usage) {
            true => Status::Usage,
            false if self.failures.is_empty() => Status::Done,
            false => Status::Failed,
        }
    }
}
