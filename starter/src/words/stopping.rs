//! What the log says when it is told to stop once more.

use std::fmt;
use std::time::Duration;

use nix::unistd::Pid;

use crate::words::number::time;

/// How many workers are named in one line.
const NAMED: usize = 4;

/// Workers that hold up a stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StillWaiting {
    /// Each with its generation, oldest first.
    pub workers: Vec<(Pid, u32)>,
    /// The time since the first order to stop.
    pub since: Duration,
    pub end: End,
}

/// What ends them if they do not exit by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing, so far.
    Nothing,
    /// They are killed after this time.
    KillIn(Duration),
    /// They were killed.
    Killed,
}

impl fmt::Display for StillWaiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.workers.iter().take(NAMED);
        let named: Vec<String> = named
            .map(|(pid, generation)| format!("worker {pid} of generation {generation}"))
            .collect();
        write!(
            f,
            "start_server: still waiting for {} ({}); ",
            listed(&named, self.workers.len()),
            time(self.since.as_secs_f64())
        )?;
        match (self.end, self.workers.len()) {
            (End::Nothing, 1) => f.write_str("--stop-timeout or kill -KILL ends it"),
            (End::Nothing, _) => f.write_str("--stop-timeout or kill -KILL ends them"),
            (End::KillIn(left), 1) => {
                write!(f, "it is killed in {}", time(left.as_secs_f64()))
            }
            (End::KillIn(left), _) => {
                write!(f, "they are killed in {}", time(left.as_secs_f64()))
            }
            (End::Killed, _) => {
                f.write_str("KILL was sent, and takes effect once the kernel lets it")
            }
        }
    }
}

/// Those that are named, out of `count`: `a`, `a and b`, `a, b and 3 more`.
pub fn listed(named: &[String], count: usize) -> String {
    let more = count.saturating_sub(named.len());
    let rest = format!("{more} more");
    let parts = named.iter().chain((more > 0).then_some(&rest));
    let parts: Vec<&str> = parts.map(String::as_str).collect();
    match parts.split_last() {
        None => String::new(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(count: i32, end: End) -> String {
        let workers = (1..=count).map(|number| (Pid::from_raw(20684 + number), 3));
        StillWaiting {
            workers: workers.collect(),
            since: Duration::from_secs(12),
            end,
        }
        .to_string()
    }

    #[test]
    fn it_says_what_it_waits_for_and_what_ends_that() {
        assert_eq!(
            said(1, End::Nothing),
            "start_server: still waiting for worker 20685 of generation 3 (12 s); --stop-timeout or kill -KILL ends it"
        );
        assert_eq!(
            said(2, End::KillIn(Duration::from_millis(48_500))),
            "start_server: still waiting for worker 20685 of generation 3 and worker 20686 of generation 3 (12 s); \
             they are killed in 48.5 s"
        );
        let many = said(7, End::Killed);
        let end = "worker 20688 of generation 3 and 3 more (12 s); KILL was sent, and takes effect once the kernel lets it";
        assert!(many.ends_with(end), "{many}");
    }
}
