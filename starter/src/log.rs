//! Where the superdaemon's own lines go: standard error, a whole line at a time.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes one line. An error is ignored: nobody is left to tell when standard error is closed or full, and that must
/// not end the service (`eprintln!` would).
pub fn say(line: impl Display) {
    let line = format!("{line}\n");
    drop(io::stderr().write_all(line.as_bytes()));
}
