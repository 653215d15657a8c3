//! One line for each check, on standard output, as soon as it is made.

use std::fmt::Display;
use std::io::{self, Write};

use crate::words::failure::{self, Failure};
use crate::words::text::printable;

/// The counts so far.
#[derive(Default)]
pub struct Report {
    hold: u32,
    fail: u32,
    /// Checks that this run cannot make.
    not_here: u32,
    /// Nobody reads it any more.
    broken: bool,
}

impl Report {
    /// One check of a process: `what` must hold; `found` is shown if it does not.
    pub fn check(
        &mut self,
        process: &str,
        what: impl Display,
        holds: bool,
        found: impl Display,
    ) -> Result<(), Failure> {
        if holds {
            self.hold += 1;
            self.line(format_args!("ok      {process}: {what}"))
        } else {
            self.fail += 1;
            self.line(format_args!("FAILED  {process}: {what}: {found}"))
        }
    }

    /// A check that cannot be made, and why.
    pub fn not_here(&mut self, process: &str, why: impl Display) -> Result<(), Failure> {
        self.not_here += 1;
        self.line(format_args!("-       {process}: {why}"))
    }

    /// Writes the last line; returns whether everything holds.
    pub fn summary(mut self) -> Result<bool, Failure> {
        let Report {
            hold,
            fail,
            not_here,
            ..
        } = self;
        self.line(format_args!(
            "{hold} checks hold, {fail} failed, {not_here} could not be made"
        ))?;
        Ok(fail == 0 && hold > 0)
    }

    pub fn is_broken(&self) -> bool {
        self.broken
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        // What was found may be a name or a path.
        writeln!(out, "{}", printable(line.to_string()))
            .and_then(|()| out.flush())
            .map_err(|error| {
                self.broken = true;
                Failure::failed(format!(
                    "cannot write to standard output: {}",
                    failure::cause(&error)
                ))
            })
    }
}
