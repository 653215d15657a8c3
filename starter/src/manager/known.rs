//! What the service manager should know now: taken from the machine's state after each event, and nothing else.

use serde::{Deserialize, Serialize};

use crate::host::moment::Moment;
use crate::machine::{Decision, Generation, Machine, State, Verdict};
use crate::words::manager as words;

/// What the service manager should know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// A generation has served.
    pub is_ready: bool,
    /// How many restarts have begun since then. A request during a restart is another one: whoever has made it waits for
    /// a sign that it was heard.
    pub restarts: u64,
    pub is_restarting: bool,
    pub is_stopping: bool,
    /// One line that is safe to show.
    pub status: String,
    /// When the start or stop that the manager waits for is over by itself, if that is bounded.
    pub ends_by: Option<Moment>,
    /// How many restarts had been requested.
    asked: u32,
    /// The last of them that was decided.
    answered: u32,
}

impl Known {
    /// After one more event. `awaited` is what a starting generation waits for, if that is more than time.
    pub fn after(&self, machine: &Machine, awaited: Option<&str>) -> Known {
        let history = machine.history();
        let asked = history.counters.restarts;
        let decided = history.decisions.iter().map(|decision| decision.request);
        // What is not remembered any more was answered nevertheless.
        let answered = decided.max().unwrap_or(0).max(self.answered);
        let is_ready = history.counters.commits > 0;
        let is_stopping = machine.is_stopping();
        let is_restarting =
            is_ready && !is_stopping && (machine.is_under_way() || asked > answered);
        let was_restarting = self.is_ready && self.is_restarting;
        let begins = is_restarting && (!was_restarting || asked > self.asked);
        let is_awaited = !is_ready || is_restarting || is_stopping;
        Known {
            is_ready,
            restarts: self.restarts.saturating_add(begins.into()),
            is_restarting,
            is_stopping,
            status: words::line(&status(machine, awaited)),
            ends_by: machine.ends_by().filter(|_| is_awaited),
            asked,
            answered,
        }
    }
}

fn status(machine: &Machine, awaited: Option<&str>) -> String {
    let workers = |of: State| {
        let of = machine.generations().filter(move |one| one.state() == of);
        of.flat_map(Generation::workers).count()
    };
    if machine.is_stopping() {
        let all = machine.generations().flat_map(Generation::workers);
        return words::stopping(all.count());
    }
    let find = |state| machine.generations().find(|one| one.state() == state);
    let (current, starting) = (find(State::Current), find(State::Starting));
    let last = machine.history().decisions.back();
    let failed = last.and_then(|decision| Some((decision, failure(decision)?)));
    let has_served = machine.history().counters.commits > 0;
    match (current, starting) {
        (None, None) if machine.stopping_first().is_some() => {
            let number = machine.stopping_first().unwrap_or_default();
            words::stopping_first(number, workers(State::Old))
        }
        (Some(current), Some(starting)) => {
            words::restarting(starting.number, current.number, awaited)
        }
        (Some(current), None) if machine.is_checking() => words::checking(current.number),
        (Some(current), None) => match failed {
            Some((decision, why)) => {
                let number = Some(decision.generation).filter(|number| *number != 0);
                words::restart_failed(number, &why, current.number)
            }
            None => {
                let old = workers(State::Retiring) + workers(State::Old);
                let unhealthy = machine.unhealthy();
                let trouble = unhealthy.or_else(|| last.and_then(trouble));
                words::serving(current.number, workers(State::Current), old, trouble)
            }
        },
        (None, Some(starting)) if has_served => words::coming_back(starting.number, awaited),
        (None, Some(starting)) => words::starting(starting.number, awaited),
        (None, None) if has_served => {
            let failed = failed.as_ref();
            words::nothing_serves(failed.map(|(one, why)| (one.generation, why.as_str())))
        }
        (None, None) => match failed {
            Some((decision, why)) => words::first_start_failed(decision.generation, &why),
            None => words::checking_first(),
        },
    }
}

/// Why this start has failed, if it has.
fn failure(decision: &Decision) -> Option<String> {
    match &decision.verdict {
        // What was rolled back is no failure, and a rollback that is refused changes nothing.
        Verdict::Committed | Verdict::Canary | Verdict::Unreachable(_) | Verdict::Refused(_) => {
            None
        }
        Verdict::CheckFailed(failed) => Some(words::why(Some(&failed.cause), failed.status)),
        Verdict::Failed { status, cause, .. } => Some(words::why(cause.as_ref(), *status)),
    }
}

/// Why what has started cannot be reached everywhere, if so.
fn trouble(decision: &Decision) -> Option<&str> {
    match &decision.verdict {
        Verdict::Unreachable(unreachable) => Some(&unreachable.cause),
        Verdict::Committed
        | Verdict::Canary
        | Verdict::CheckFailed(_)
        | Verdict::Refused(_)
        | Verdict::Failed { .. } => None,
    }
}
