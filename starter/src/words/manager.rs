//! What a service manager is told in words: the state of the server in one line, as `--status` says it first, but without
//! times that pass. And what is wrong with the way to the manager.

use crate::words::parts::in_words;
use crate::words::start_failure::StartFailure;
use crate::words::text::{escape, quoted};

/// The longest line, in bytes: a datagram has at most 4096 (PIPE_BUF), and other assignments need some of them.
const LONGEST: usize = 1024;

/// One line that is safe to show, whatever is in it.
pub fn line(text: &str) -> String {
    let mut line = String::new();
    let (is_whole, _) = escape(text.as_bytes(), LONGEST, &mut line);
    if !is_whole {
        line.push_str("[...]");
    }
    line
}

/// `starting: generation 1, waiting for READY=1`
pub fn starting(generation: u32, awaited: Option<&str>) -> String {
    format!("starting: generation {generation}{}", waiting(awaited))
}

/// The check of the very first start runs.
pub fn checking_first() -> String {
    "starting: the check runs".to_owned()
}

/// A failed first start, with another one to come.
pub fn first_start_failed(generation: u32, why: &str) -> String {
    format!("starting: generation {generation} failed: {why}; another try follows")
}

/// `restarting: generation 5 of 4, waiting for READY=1`
pub fn restarting(generation: u32, of: u32, awaited: Option<&str>) -> String {
    format!(
        "restarting: generation {generation} of {of}{}",
        waiting(awaited)
    )
}

/// The check of a restart runs.
pub fn checking(serving: u32) -> String {
    format!("restarting: the check runs; generation {serving} serves")
}

/// `restarting: generation 4 stops first, 1 worker is left`
pub fn stopping_first(generation: u32, left: usize) -> String {
    let left = match left {
        1 => "1 worker is left".to_owned(),
        count => format!("{count} workers are left"),
    };
    format!("restarting: generation {generation} stops first, {left}")
}

/// `serving: generation 4, 2 workers; 1 old worker is left`
pub fn serving(generation: u32, workers: usize, old: usize, trouble: Option<&str>) -> String {
    let workers = match workers {
        1 => "1 worker".to_owned(),
        count => format!("{count} workers"),
    };
    let old = match old {
        0 => String::new(),
        1 => "; 1 old worker is left".to_owned(),
        count => format!("; {count} old workers are left"),
    };
    let but = trouble.map(|cause| format!(", but {cause}"));
    format!(
        "serving: generation {generation}, {workers}{}{old}",
        but.unwrap_or_default()
    )
}

/// `restart of generation 5 failed: exit status 1; generation 4 serves`. Without a generation nothing was started.
pub fn restart_failed(generation: Option<u32>, why: &str, serving: u32) -> String {
    let what = match generation {
        Some(generation) => format!("restart of generation {generation} failed"),
        None => "restart failed".to_owned(),
    };
    format!("{what}: {why}; generation {serving} serves")
}

/// Nothing serves any more; the last start has failed with this, if it has.
pub fn nothing_serves(failed: Option<(u32, &str)>) -> String {
    match failed {
        Some((generation, why)) => {
            format!("nothing serves: generation {generation} failed: {why}; another try follows")
        }
        None => "nothing serves: another start follows".to_owned(),
    }
}

/// A generation takes the place of one that has died.
pub fn coming_back(generation: u32, awaited: Option<&str>) -> String {
    format!(
        "nothing serves: generation {generation} is starting{}",
        waiting(awaited)
    )
}

/// It was told to stop, or gives up.
pub fn stopping(left: usize) -> String {
    match left {
        0 => "stopping: no worker is left".to_owned(),
        1 => "stopping: waiting for 1 worker to exit".to_owned(),
        left => format!("stopping: waiting for {left} workers to exit"),
    }
}

/// Why a start has failed: its cause, or how its worker ended.
pub fn why(cause: Option<&StartFailure>, status: Option<i32>) -> String {
    match (cause, status) {
        (Some(cause), _) => cause.cause.clone(),
        (None, Some(status)) => in_words(status),
        (None, None) => "no worker could be started".to_owned(),
    }
}

fn waiting(awaited: Option<&str>) -> String {
    let awaited = awaited.map(|what| format!(", waiting for {what}"));
    awaited.unwrap_or_default()
}

/// `NOTIFY_SOCKET` leads nowhere.
pub fn unreachable(place: &std::ffi::OsStr, cause: &str) -> String {
    format!(
        "start_server: cannot reach the service manager at NOTIFY_SOCKET={}: {cause}; going on without it",
        quoted(place)
    )
}

/// The manager does not read what it is sent.
pub fn unread(place: &std::ffi::OsStr) -> String {
    format!(
        "start_server: the service manager at NOTIFY_SOCKET={} does not read what it is sent; it gets the \
         latest state once it does",
        quoted(place)
    )
}

/// A variable of the watchdog is not what it should be.
pub fn bad_watchdog(name: &str, value: &std::ffi::OsStr, expected: &str) -> String {
    format!(
        "start_server: cannot use {name}={}: it is not {expected}; the watchdog gets no answer",
        quoted(value)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_one_short_safe_line() {
        assert_eq!(
            restart_failed(Some(5), &why(None, Some(256)), 4),
            "restart of generation 5 failed: exit status 1; generation 4 serves"
        );
        assert_eq!(why(None, Some(9)), "killed by SIGKILL");
        assert_eq!(
            serving(4, 2, 1, None),
            "serving: generation 4, 2 workers; 1 old worker is left"
        );
        assert_eq!(line("a\nREADY=1\x1b"), r"a\x0AREADY=1\x1B");
        let long = line(&"\u{20ac}".repeat(5000));
        assert!(long.len() <= LONGEST + 5 && long.ends_with("[...]"));
    }
}
