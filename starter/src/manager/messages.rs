//! From what the service manager should know, and what it was told, to the next datagram: policy alone.
//!
//! - `READY=1` and `RELOADING=1` never share a datagram, because systemd takes both together for a restart that is over.
//! - What could not be sent is not queued. The next datagram is again the first difference: a restart that has come and
//!   gone meanwhile is still told, since whoever asked for it waits for both of its messages, but its progress is not.

use std::time::Duration;

use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};

use super::known::Known;
use crate::host::moment::Moment;

/// How much longer than its bound a start or stop may take until its end is told.
const MARGIN: Duration = Duration::from_secs(10);

/// What the service manager was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    is_ready: bool,
    restarts: u64,
    is_restarting: bool,
    is_stopping: bool,
    status: Option<String>,
    /// How long it will wait for what is under way, if it was told.
    extended_until: Option<Moment>,
    main_pid: Option<u32>,
}

impl Told {
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// The next datagram, and what the manager knows once it has it; none if it knows all.
    pub fn next(
        &self,
        known: &Known,
        main_pid: Option<u32>,
        now: Moment,
    ) -> Option<(String, Told)> {
        let mut states = Vec::new();
        let mut told = self.clone();
        if main_pid != self.main_pid {
            states.extend(main_pid.map(NotifyState::MainPid));
            told.main_pid = main_pid;
        }
        told.lifecycle(known, now, &mut states);
        if self.status.as_ref() != Some(&known.status) {
            states.push(NotifyState::Status(&known.status));
            told.status = Some(known.status.clone());
        }
        // Not the crate's own, which is limited to 71 minutes.
        let extension;
        let until = known.ends_by.map(|at| at + MARGIN);
        if until > told.extended_until {
            let longest = until.map_or(Duration::ZERO, |until| until.saturating_since(now));
            extension = format!("EXTEND_TIMEOUT_USEC={}", longest.as_micros());
            states.push(NotifyState::Custom(&extension));
            told.extended_until = until;
        }
        (!states.is_empty()).then(|| (datagram(&states), told))
    }

    /// One step: the manager's timer begins anew with it.
    fn lifecycle(&mut self, known: &Known, now: Moment, states: &mut Vec<NotifyState<'_>>) {
        if self.is_stopping {
            return;
        }
        if known.is_stopping {
            states.push(NotifyState::Stopping);
            self.is_stopping = true;
        } else if known.is_ready && !self.is_ready {
            states.push(NotifyState::Ready);
            self.is_ready = true;
        } else if known.restarts != self.restarts {
            states.push(NotifyState::Reloading);
            let since = now.saturating_since(Moment::ZERO).as_micros();
            states.push(NotifyState::MonotonicUsec(
                i128::try_from(since).unwrap_or(i128::MAX),
            ));
            self.restarts = known.restarts;
            self.is_restarting = true;
        } else if self.is_restarting && !known.is_restarting {
            states.push(NotifyState::Ready);
            self.is_restarting = false;
        } else {
            return;
        }
        self.extended_until = None;
    }
}

/// One assignment per line.
pub fn datagram(states: &[NotifyState<'_>]) -> String {
    let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
