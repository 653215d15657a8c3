//! What a service manager has put into our environment: sd_notify(3), sd_watchdog_enabled(3).

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use crate::words::manager as words;
use crate::words::notice::Notice;
use crate::words::number::digits;

/// The manager that has launched us, if there is one.
#[derive(Debug, Default)]
pub struct Launch {
    /// `NOTIFY_SOCKET`
    pub socket: Option<OsString>,
    /// The longest time between two pings, if they are for us to send.
    pub watchdog: Option<Duration>,
    pub notice: Option<Notice>,
}

impl Launch {
    /// Of this process, which is the one that the manager has launched: not of a daemon that it has become.
    pub fn of_process() -> Launch {
        Launch::new(|name| std::env::var_os(name), std::process::id())
    }

    fn new(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Launch {
        // An empty one is as good as none.
        let Some(socket) = variable("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
            return Launch::default();
        };
        let (watchdog, notice) = match watchdog(&variable, pid) {
            Ok(watchdog) => (watchdog, None),
            Err(complaint) => (None, Some(Notice::Complaint(complaint))),
        };
        Launch {
            socket: Some(socket),
            watchdog,
            notice,
        }
    }
}

fn watchdog(
    variable: impl Fn(&str) -> Option<OsString>,
    pid: u32,
) -> Result<Option<Duration>, String> {
    const EVERY: &str = "WATCHDOG_USEC";
    const WHOSE: &str = "WATCHDOG_PID";
    let Some(every) = variable(EVERY) else {
        return Ok(None);
    };
    let number = |value: &OsStr| {
        value
            .to_str()
            .and_then(digits::<u64>)
            .filter(|one| *one > 0)
    };
    if let Some(whose) = variable(WHOSE) {
        match number(&whose) {
            None => return Err(words::bad_watchdog(WHOSE, &whose, "a pid")),
            // It was for whoever has launched us.
            Some(other) if other != u64::from(pid) => return Ok(None),
            Some(_) => {}
        }
    }
    match number(&every) {
        Some(every) => Ok(Some(Duration::from_micros(every))),
        None => {
            let expected = "a number of microseconds";
            Err(words::bad_watchdog(EVERY, &every, expected))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Launch {
        let find = |name: &str| {
            let found = variables.iter().find(|(one, _)| *one == name);
            found.map(|(_, value)| value.into())
        };
        Launch::new(find, 7)
    }

    #[test]
    fn pings_are_wanted_of_the_process_that_was_launched_alone() {
        let socket = ("NOTIFY_SOCKET", "/x");
        for (pid, expected) in [(None, true), (Some("7"), true), (Some("8"), false)] {
            let pid = pid.map(|pid| ("WATCHDOG_PID", pid));
            let all: Vec<_> = [socket, ("WATCHDOG_USEC", "1500000")]
                .into_iter()
                .chain(pid)
                .collect();
            let launch = launch(&all);
            let every = launch.watchdog;
            assert_eq!(every, expected.then_some(Duration::from_millis(1500)));
            assert_eq!(launch.notice, None);
        }
        // Without a socket nobody can be told.
        assert_eq!(launch(&[("WATCHDOG_USEC", "x")]).notice, None);
        assert!(launch(&[("NOTIFY_SOCKET", "")]).socket.is_none());
    }

    #[test]
    fn what_is_no_number_is_named() {
        for value in ["", "0", "-1", "1s", "99999999999999999999999", "+5"] {
            let launch = launch(&[("NOTIFY_SOCKET", "/x"), ("WATCHDOG_USEC", value)]);
            assert_eq!(launch.watchdog, None);
            let said = launch.notice.unwrap().to_string();
            let start = format!("start_server: cannot use WATCHDOG_USEC={value}: it is not");
            assert!(said.starts_with(&start), "{said}");
        }
        let all = [
            ("NOTIFY_SOCKET", "/x"),
            ("WATCHDOG_USEC", "5"),
            ("WATCHDOG_PID", "me"),
        ];
        assert!(launch(&all).notice.is_some());
    }
}
