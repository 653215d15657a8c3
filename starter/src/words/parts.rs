//! Parts of messages: statuses, pids and signals as Server::Starter writes them.

use std::fmt;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// A wait status with what it means: `256 (exit code 1)`.
pub struct WithMeaning(pub i32);

impl fmt::Display for WithMeaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WithMeaning(status) = *self;
        write!(f, "{status}")?;
        if libc::WIFSIGNALED(status) {
            write!(f, " (signal {})", libc::WTERMSIG(status))
        } else {
            write!(f, " (exit code {})", libc::WEXITSTATUS(status))
        }
    }
}

/// Pids with commas between them; the text, if there are none.
pub(super) struct Pids<'a>(pub &'a [Pid], pub &'static str);

impl fmt::Display for Pids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.0.split_first() else {
            return f.write_str(self.1);
        };
        write!(f, "{first}")?;
        others.iter().try_for_each(|pid| write!(f, ",{pid}"))
    }
}

/// The name of a signal as Server::Starter writes it: without SIG.
pub(super) fn name(signal: Signal) -> &'static str {
    let name = signal.as_str();
    name.strip_prefix("SIG").unwrap_or(name)
}

pub(super) fn failed_starts(count: u32) -> String {
    match count {
        1 => "1 failed start".to_owned(),
        count => format!("{count} failed starts"),
    }
}
