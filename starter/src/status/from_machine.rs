//! The machine's state as the status files show it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::Pid;

use super::view::{self, LastLines, View};
use crate::host::moment::Moment;
use crate::machine::{
    By, Decision, Departed, Durations, Generation, History, Machine, Scaling, Selection, State,
    Verdict as Found,
};
use crate::words::remedy;
use crate::words::trouble::Unreachable;

/// Updates everything that changes while the superdaemon runs. `awaited` is what a starting generation waits for, if that
/// is more than time.
pub fn update(
    view: &mut View,
    machine: &Machine,
    clock: &Clock,
    awaited: Option<&str>,
    last_lines: impl Fn(Pid) -> LastLines,
) {
    let last_lines_for = |decision: &Decision| match &decision.verdict {
        Found::Committed | Found::Canary | Found::Unreachable(_) | Found::Refused(_) => {
            LastLines::default()
        }
        Found::CheckFailed(failed) => failed.lines.iter().cloned().collect(),
        Found::Failed { .. } => {
            let mut departed = machine.history().departed.iter().rev();
            let failed = departed.find(|one| one.generation == decision.generation);
            // One that was not ready in time may still live.
            let mut generations = machine.generations();
            let generation = generations.find(|one| one.number == decision.generation);
            let living = generation.and_then(|one| one.workers().next());
            let failed = failed.map(|one| one.pid);
            let pid = failed.or(living.map(|worker| worker.pid));
            pid.map(&last_lines).unwrap_or_default()
        }
    };
    view.stopping = machine.is_stopping();
    view.crash_loop = machine.crash_loop().unwrap_or_default().into();
    view.next_start_at = machine.next_start_at().map(|at| clock.seconds(at));
    view.workers = number(machine.workers());
    let scaling = machine.history().scaling.as_ref();
    view.scaling = scaling.map(|scaling| self::scaling(scaling, clock));
    view.switch = machine
        .selected()
        .map(|selected| switch(machine, selected, clock));
    view.unhealthy = machine.unhealthy().map(str::to_owned);
    view.generations = machine
        .generations()
        .map(|one| view::Generation {
            fails_at: machine.fails_at(one).map(|at| clock.seconds(at)),
            stops_first: stops_first(machine, one, clock),
            share: share(machine, one),
            ..generation(one, machine.lanes() > 1, awaited, clock)
        })
        .collect();
    view.departed = machine
        .history()
        .departed
        .iter()
        .map(|one| departed(one, clock, last_lines(one.pid)))
        .collect();
    view.counters = counters(machine.history(), clock);
    view.verdicts = machine
        .history()
        .decisions
        .iter()
        .map(|one| verdict(one, clock, last_lines_for(one)))
        .collect();
}

fn switch(machine: &Machine, selected: &Selection, clock: &Clock) -> view::Switch {
    view::Switch {
        lanes: machine.lanes().into(),
        selected: selected.main.lane.into(),
        canary: selected.canary.as_ref().map(|canary| view::Canary {
            generation: canary.share.generation.into(),
            lane: canary.share.lane.into(),
            percent: canary.percent.into(),
            by: match canary.by {
                By::Random => view::By::Random,
                By::Client => view::By::Client,
            },
            promoted_at: machine.promoted_at().map(|at| clock.seconds(at)),
        }),
    }
}

/// `GENERATION:PID` for every settled, living worker, by generation.
pub fn lines(machine: &Machine) -> String {
    machine
        .generations()
        // Whoever reads it waits for a number, and that of a sweeper is none of a restart.
        .filter(|generation| !generation.is_sweeper())
        .flat_map(|generation| {
            generation
                .settled_workers()
                .map(move |worker| format!("{}:{}\n", generation.number, worker.pid))
        })
        .collect()
}

/// Moments as seconds since 1970.
pub struct Clock {
    moment: Moment,
    since_1970: Duration,
}

impl Clock {
    /// The time of day at this past moment.
    pub fn new(moment: Moment) -> Clock {
        let passed = Moment::now().saturating_since(moment);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Clock {
            moment,
            since_1970: now.saturating_sub(passed),
        }
    }

    /// Rounded to milliseconds. It may be in the future.
    pub fn seconds(&self, moment: Moment) -> f64 {
        let (since, until) = (
            self.moment.saturating_since(moment),
            moment.saturating_since(self.moment),
        );
        let at = self.since_1970.saturating_sub(since).saturating_add(until);
        (at.as_secs_f64() * 1000.0).round() / 1000.0
    }
}

fn generation(
    generation: &Generation,
    has_lanes: bool,
    awaited: Option<&str>,
    clock: &Clock,
) -> view::Generation {
    let is_starting = generation.state() == State::Starting;
    view::Generation {
        started_at: generation.started_at().map(|at| clock.seconds(at)),
        waiting_for: awaited.filter(|_| is_starting).map(str::to_owned),
        number: generation.number.into(),
        lane: has_lanes.then(|| generation.lane.into()),
        state: match generation.state() {
            State::Starting => view::State::Starting,
            State::Current => view::State::Current,
            State::Canary => view::State::Canary,
            State::Partial => view::State::Partial,
            State::Retiring => view::State::Retiring,
            State::Sweeping => view::State::Sweeping,
            State::Old => view::State::Old,
        },
        workers: generation
            .workers()
            .map(|worker| view::Worker {
                pid: worker.pid.as_raw().into(),
                slot: number(worker.slot),
                started_at: clock.seconds(worker.spawned_at),
                text: worker.text().map(str::to_owned),
            })
            .collect(),
        ..view::Generation::default()
    }
}

/// The percentage of new connections that go to it.
fn share(machine: &Machine, generation: &Generation) -> Option<u64> {
    let Selection { main, canary, .. } = machine.selected()?;
    let canary = canary.as_ref();
    let percent = canary.map_or(0, |canary| canary.percent);
    match canary.is_some_and(|canary| canary.share.generation == generation.number) {
        true => Some(percent.into()),
        false if main.generation == generation.number => Some(100 - u64::from(percent)),
        false => None,
    }
}

fn stops_first(
    machine: &Machine,
    generation: &Generation,
    clock: &Clock,
) -> Option<view::StopsFirst> {
    let is_first = machine.stopping_first() == Some(generation.number);
    let since = machine.outage().filter(|_| is_first)?;
    Some(view::StopsFirst {
        since: clock.seconds(since),
        killed_at: generation.killed_at().map(|at| clock.seconds(at)),
    })
}

fn departed(departed: &Departed, clock: &Clock, stderr: LastLines) -> view::Departed {
    view::Departed {
        generation: departed.generation.into(),
        pid: departed.pid.as_raw().into(),
        at: clock.seconds(departed.at),
        status: departed.status.into(),
        exit_code: exit_code(departed.status),
        signal: signal(departed.status),
        stderr,
    }
}

fn counters(history: &History, clock: &Clock) -> view::Counters {
    let counters = history.counters;
    view::Counters {
        restarts: counters.restarts.into(),
        commits: counters.commits.into(),
        committed_at: history.committed_at.map(|at| clock.seconds(at)),
        failed_starts: counters.failed_starts.into(),
        crashes: counters.crashes.into(),
    }
}

fn verdict(decision: &Decision, clock: &Clock, stderr: LastLines) -> view::Verdict {
    let (result, status) = match &decision.verdict {
        Found::Committed => (view::Outcome::Committed, None),
        Found::Canary => (view::Outcome::Canary, None),
        Found::Unreachable(_) | Found::Refused(_) => (view::Outcome::Failed, None),
        Found::CheckFailed(failed) => (view::Outcome::Failed, failed.status),
        Found::Failed { status, .. } => (view::Outcome::Failed, *status),
    };
    let (cause, hint) = match &decision.verdict {
        Found::Committed | Found::Canary => (None, None),
        Found::CheckFailed(failed) => (Some(failed.cause.cause.clone()), None),
        Found::Unreachable(Unreachable { cause, hint }) => {
            (Some(cause.clone()), Some(hint.clone()))
        }
        Found::Refused(cause)
        | Found::Failed {
            cause: Some(cause), ..
        } => (Some(cause.cause.clone()), cause.hint.clone()),
        Found::Failed {
            cause: None,
            status: Some(0),
            ..
        } => (None, Some(remedy::STAY_IN_FOREGROUND.to_owned())),
        Found::Failed { cause: None, .. } => (None, None),
    };
    view::Verdict {
        request: decision.request.into(),
        rollback: decision.is_of_rollback,
        generation: decision.generation.into(),
        // The status file knows it.
        label: None,
        result,
        at: clock.seconds(decision.at),
        status: status.map(Into::into),
        exit_code: status.map(exit_code),
        signal: status.map(signal),
        serves: matches!(decision.verdict, Found::Unreachable(_)),
        given_up: matches!(decision.verdict, Found::Failed { given_up: true, .. }),
        cause,
        hint,
        stderr,
        replaces: decision.replaces.map(Into::into),
        undone: decision.generation > 0 && matches!(decision.verdict, Found::Refused(_)),
        again: decision.again.map(Into::into),
        unserved_since: decision.outage.map(|outage| clock.seconds(outage.since)),
        restored: decision
            .outage
            .and_then(|outage| outage.restored)
            .map(Into::into),
        rolled: decision.rolled.map(|rolled| view::Rolled {
            done: number(rolled.done),
            of: number(rolled.of),
        }),
        durations: durations(decision.durations()),
    }
}

fn scaling(scaling: &Scaling, clock: &Clock) -> view::Scaling {
    let result = scaling.result.as_ref();
    let failure = result.and_then(|result| result.as_ref().err());
    view::Scaling {
        number: scaling.number.into(),
        from: number(scaling.from),
        to: number(scaling.to),
        at: clock.seconds(scaling.at),
        done_at: result.and_then(|result| Some(clock.seconds(*result.as_ref().ok()?))),
        cause: failure.map(|failure| failure.cause.clone()),
        hint: failure.and_then(|failure| failure.hint.clone()),
    }
}

fn number(number: usize) -> u64 {
    number.try_into().unwrap_or(u64::MAX)
}

fn durations(durations: Durations) -> view::Durations {
    /// Rounded to microseconds.
    fn seconds(duration: Option<Duration>) -> Option<f64> {
        duration.map(|one| (one.as_secs_f64() * 1e6).round() / 1e6)
    }
    view::Durations {
        spawn: seconds(durations.spawn),
        exec: seconds(durations.exec),
        ready: seconds(durations.ready),
        drained: seconds(durations.drained),
        unserved: seconds(durations.unserved),
    }
}

fn exit_code(status: i32) -> Option<i64> {
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status).into())
}

fn signal(status: i32) -> Option<i64> {
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_is_shown_in_its_parts() {
        assert_eq!((exit_code(256), signal(256)), (Some(1), None));
        assert_eq!((exit_code(9), signal(9)), (None, Some(9)));
    }
}
