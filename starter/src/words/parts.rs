//! Parts of messages: statuses, pids and signals as Server::Starter writes them.

use std::fmt;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// A wait status with what it means: `256 (exit code 1)`, `9 (killed by SIGKILL)`.
pub struct WithMeaning(pub i32);

impl fmt::Display for WithMeaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WithMeaning(status) = *self;
        write!(f, "{status}")?;
        match killed_by(status) {
            Some(killed) => write!(f, " ({killed})"),
            None => write!(f, " (exit code {})", libc::WEXITSTATUS(status)),
        }
    }
}

/// A wait status in words alone: `exit status 1`, `killed by SIGKILL`.
pub fn in_words(status: i32) -> String {
    let code = libc::WEXITSTATUS(status);
    killed_by(status).unwrap_or_else(|| format!("exit status {code}"))
}

/// The signal that has ended a process: `killed by SIGSEGV, core dumped`.
fn killed_by(status: i32) -> Option<String> {
    if !libc::WIFSIGNALED(status) {
        return None;
    }
    let number = libc::WTERMSIG(status);
    let signal = match Signal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        // A real-time signal.
        Err(_) => format!("signal {number}"),
    };
    let core = match libc::WCOREDUMP(status) {
        true => ", core dumped",
        false => "",
    };
    Some(format!("killed by {signal}{core}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_is_said_in_words() {
        for (status, with_meaning, words) in [
            (0, "0 (exit code 0)", "exit status 0"),
            (256, "256 (exit code 1)", "exit status 1"),
            (9, "9 (killed by SIGKILL)", "killed by SIGKILL"),
            (
                139,
                "139 (killed by SIGSEGV, core dumped)",
                "killed by SIGSEGV, core dumped",
            ),
            (40, "40 (killed by signal 40)", "killed by signal 40"),
        ] {
            assert_eq!(WithMeaning(status).to_string(), with_meaning);
            assert_eq!(in_words(status), words);
        }
    }
}
