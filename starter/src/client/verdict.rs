//! The end of a restart, as people and as programs read it.

use serde::Serialize;

use super::follower::Found;
use super::observed::now;
use super::status::{Asked, Status, Verdict, how, was_kept};
use crate::status::view::{
    By, Durations, Generation, Outcome, State, StopsFirst, Verdict as Decision,
};
use crate::words::canary::{Begun, share};
use crate::words::failure::{Failure, Status as Code};
use crate::words::number::time;
use crate::words::progress::{
    Old, Success, comes_back, connections, is_late, serving, started, stops_first,
};
use crate::words::text::{printable_json, shortened};

/// The verdict as one object; times are in seconds, and what is unknown is null.
#[derive(Serialize)]
struct Json<'a> {
    outcome: &'static str,
    generation: Option<u64>,
    /// What that is called.
    label: Option<&'a str>,
    replaces: Option<u64>,
    again: Option<u64>,
    reason: Option<String>,
    hint: Option<&'a str>,
    given_up: bool,
    status: Option<i64>,
    exit_code: Option<i64>,
    signal: Option<i64>,
    stderr: &'a [String],
    /// What served before, if it was started again as this generation.
    restored: Option<u64>,
    durations: Durations,
}

/// The verdict as JSON, with an end of line.
pub fn json(found: &Found, verdict: &Verdict) -> String {
    let status = found.status.as_ref();
    let decision = found.generation.and_then(|one| status?.last_decision(one));
    let is_good = |one: &Decision| matches!(one.result, Outcome::Committed | Outcome::Canary);
    let bad = decision.filter(|one| !is_good(one));
    let is_canary = decision.is_some_and(|one| one.result == Outcome::Canary);
    let of_decision = verdict.is_err().then_some(bad).flatten();
    let reason = |failure: &Failure| {
        // As in a sentence: `: cannot execute ...`, or `, exit status:256 (exit code 1)`.
        let how = of_decision.map(how).unwrap_or_default();
        match how.trim_start_matches([':', ',', ' ']) {
            "" => failure.text(),
            how => how.to_owned(),
        }
    };
    let json = Json {
        outcome: match (verdict, of_decision) {
            (Ok(()), _) if is_canary => "canary",
            (Ok(()), _) => "committed",
            (Err(_), Some(one)) if one.serves => "incomplete",
            (Err(_), Some(_)) => "failed",
            (Err(failure), None) if failure.status == Code::Undecided => "undecided",
            (Err(_), None) => "stopped",
        },
        // Nothing was started.
        generation: found.generation.filter(|one| *one != 0),
        label: decision.and_then(|one| one.label.as_deref()),
        replaces: decision.and_then(|one| one.replaces),
        again: decision.and_then(|one| one.again),
        reason: verdict.as_ref().err().map(reason),
        hint: of_decision.and_then(|one| one.hint.as_deref()),
        given_up: of_decision.is_some_and(|one| one.given_up),
        status: of_decision.and_then(|one| one.status),
        exit_code: of_decision.and_then(|one| one.exit_code.flatten()),
        signal: of_decision.and_then(|one| one.signal.flatten()),
        stderr: of_decision.map(|one| &*one.stderr).unwrap_or_default(),
        restored: of_decision.and_then(|one| one.restored),
        durations: decision.map(|one| one.durations).unwrap_or_default(),
    };
    // It always converts: its keys are strings, and its numbers finite.
    let mut text = serde_json::to_string_pretty(&json).unwrap_or_default();
    text.push('\n');
    printable_json(&text)
}

/// How a restart has succeeded, in one line.
pub fn success(found: &Found) -> Option<String> {
    let generation = found.generation?;
    let mut success = Success {
        generation,
        ..Success::default()
    };
    if let Some(status) = &found.status {
        let decision = status.last_decision(generation);
        let figures = decision.map(|one| one.durations).unwrap_or_default();
        if let Some(canary) = canary_of(status, generation) {
            return Some(canary);
        }
        success.after = figures.until_ready();
        success.gone = decision.and_then(|one| one.replaces).zip(figures.drained);
        success.again = decision.and_then(|one| one.again);
        success.is_kept = decision.is_some_and(|one| was_kept(status.view(), one));
        success.unserved = figures.unserved;
        success.left = old(status, generation);
        let mut living = status.view().generations.iter().rev();
        let serving = living.find(|one| one.state == State::Current);
        let worker = serving.filter(|one| one.number >= generation);
        let worker = worker.and_then(|one| one.workers.first());
        let is_labelled = status.view().options.label.is_some();
        let label = decision.and_then(|one| one.label.clone());
        success.label = label.filter(|_| is_labelled);
        success.pid = worker.map(|one| one.pid);
        let serving = serving.map(|one| one.number);
        success.successor = serving.filter(|one| *one > generation);
    }
    Some(success.sentence())
}

/// The sentence about a canary, if it is one.
fn canary_of(status: &Status, generation: u64) -> Option<String> {
    let decision = status.last_decision(generation)?;
    let is_canary = decision.result == Outcome::Canary;
    let canary = status.view().switch.and_then(|switch| switch.canary);
    let canary = canary.filter(|one| is_canary && one.generation == generation)?;
    let mut living = status.view().generations.iter();
    let worker = living.find(|one| one.number == generation)?.workers.first();
    let is_labelled = status.view().options.label.is_some();
    let label = decision.label.as_ref().filter(|_| is_labelled);
    let begun = Begun {
        generation,
        share: share(canary.percent, canary.by == By::Client),
        label: label.map(shortened),
        pid: worker.map(|worker| worker.pid),
        after: decision.durations.until_ready(),
        time: canary.promoted_at.map(|at| at - decision.at),
    };
    Some(begun.sentence())
}

/// The old generations that still have workers.
fn old(status: &Status, generation: u64) -> Option<Old> {
    let old: Vec<&Generation> = status.replaced_by(generation).collect();
    match old[..] {
        [] => None,
        [one] if one.state == State::Retiring => Some(Old::Retiring(one.number)),
        [one] => Some(Old::Draining(one.number)),
        _ => Some(Old::Several(old.len())),
    }
}

/// A stage on the way to the verdict.
#[derive(Debug, PartialEq)]
pub struct Phase {
    /// They follow each other in the order of these numbers.
    pub order: u8,
    /// What can be said about it as long as it lasts.
    pub sentence: String,
    /// When it began, in seconds since 1970, if known.
    since: Option<f64>,
}

/// Another generation is starting.
pub const LATE: u8 = 1;

/// What serves stops before the new generation is started.
const STOPPING_FIRST: u8 = 2;

/// The new generation has a worker.
const STARTED: u8 = 3;

/// The new generation serves, and old ones have workers.
pub const SERVING: u8 = 4;

/// The new generation has failed, and what served before is started again.
const COMING_BACK: u8 = 5;

/// Where a restart is without a verdict, if there is something to tell. `newest` is the last generation before it.
pub fn phase(found: &Found, newest: u64) -> Option<Phase> {
    let status = found.status.as_ref()?;
    if let Some(generation) = found.generation {
        let committed = status.last_decision(generation);
        if let Some(failed) = committed.filter(|one| status.brings_back(one)) {
            return Some(Phase {
                order: COMING_BACK,
                sentence: comes_back(generation),
                since: Some(failed.at),
            });
        }
        let old = old(status, generation)?;
        return Some(Phase {
            order: SERVING,
            sentence: serving(generation, &old),
            since: committed.map(|one| one.at),
        });
    }
    let living = || status.view().generations.iter().rev();
    let mut first = living().filter_map(|one| Some((one, one.stops_first?)));
    if let Some((first, StopsFirst { since, .. })) = first.next() {
        return Some(Phase {
            order: STOPPING_FIRST,
            sentence: stops_first(first.number, first.workers.len()),
            since: Some(since),
        });
    }
    let starting = living().find(|one| one.state == State::Starting)?;
    let number = starting.number;
    let (order, sentence) = match number > newest {
        true => (STARTED, started(number, starting.waiting_for.as_deref())),
        false => (LATE, is_late(number)),
    };
    Some(Phase {
        order,
        sentence,
        since: starting.started_at,
    })
}

impl Phase {
    /// With what changes while it lasts. `open` is the number of connections of old generations, if known.
    pub fn with_time(&self, open: Option<usize>) -> String {
        let passed = self.since.map(|since| time(now() - since));
        let sentence = &self.sentence;
        match (self.order, open, passed) {
            (SERVING, None, None) => sentence.clone(),
            (SERVING, open, passed) => {
                let parts: Vec<String> = open.map(connections).into_iter().chain(passed).collect();
                format!("{sentence}: {}", parts.join(", "))
            }
            (_, _, Some(passed)) => format!("{sentence} ({passed}) ..."),
            (_, _, None) => format!("{sentence} ..."),
        }
    }
}

/// Everything that is told of a restart: for fuzzers.
pub fn in_every_form(text: &str, request: u64) -> Vec<String> {
    let Some(status) = Status::parse(text) else {
        return Vec::new();
    };
    let generation = status.answer_to(request, Asked::Restart);
    let verdict = generation.and_then(|one| status.verdict_on(one, true, Asked::Restart));
    let found = Found {
        status: Some(status),
        generation,
        verdict: None,
    };
    let phase = phase(&found, 0).map(|phase| phase.with_time(Some(1)));
    let mut all: Vec<String> = phase.into_iter().chain(success(&found)).collect();
    all.push(json(&found, &verdict.unwrap_or(Ok(()))));
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn found(text: &str, generation: Option<u64>) -> Found {
        Found {
            status: Some(Status::parse(text).unwrap()),
            generation,
            verdict: None,
        }
    }

    const COMMITTED: &str = r#"{"supervisor":{"pid":7},
        "generations":[{"number":4,"state":"old"},{"number":5,"state":"current","workers":[{"pid":1234}]}],
        "verdicts":[{"request":1,"generation":5,"result":"committed","replaces":4,
            "durations":{"spawn":0.1,"exec":0.2,"ready":0.54,"drained":null}}]}"#;

    #[test]
    fn a_success_has_the_figures_that_are_known() {
        let sentence = |text: &str| success(&found(text, Some(5))).unwrap();
        assert_eq!(
            sentence(COMMITTED),
            "generation 5 serves (pid 1234, ready after 0.84 s); generation 4 is not waited for"
        );
        let gone = COMMITTED
            .replace(r#"{"number":4,"state":"old"},"#, "")
            .replace("null", "3.1");
        assert_eq!(
            sentence(&gone),
            "generation 5 serves (pid 1234, ready after 0.84 s); generation 4 is gone (drained 3.1 s)"
        );
        let older_server =
            r#"{"supervisor":{"pid":7},"generations":[{"number":6,"state":"current"}]}"#;
        assert_eq!(
            sentence(older_server),
            "generation 5 served, now generation 6 does"
        );
    }

    #[test]
    fn a_phase_is_told_by_what_lasts() {
        let told = |text: &str, generation, newest| {
            let phase = phase(&found(text, generation), newest)?;
            Some((phase.order, phase.sentence))
        };
        let drains = "generation 5: serving; generation 4 drains".to_owned();
        assert_eq!(told(COMMITTED, Some(5), 4), Some((SERVING, drains)));
        assert_eq!(told(COMMITTED, None, 4), None);
        let starting = r#"{"supervisor":{"pid":7},"generations":[{"number":3,"state":"current"},
            {"number":4,"state":"starting","waiting_for":"READY=1"}]}"#;
        let started = "generation 4: started, waiting for READY=1".to_owned();
        assert_eq!(told(starting, None, 3), Some((STARTED, started)));
        let late = "generation 4 is still starting, the restart comes after it".to_owned();
        assert_eq!(told(starting, None, 4), Some((LATE, late)));
        let phase = phase(&found(COMMITTED, Some(5)), 4).unwrap();
        let told = phase.with_time(Some(2));
        let beginning = "generation 5: serving; generation 4 drains: 2 connections, ";
        assert!(told.starts_with(beginning), "{told}");
    }

    #[test]
    fn what_stops_first_and_what_comes_back_are_phases() {
        let told = |text: &str, generation| {
            let phase = phase(&found(text, generation), 4).unwrap();
            (phase.order, phase.sentence)
        };
        let stopping = r#"{"supervisor":{"pid":7},"generations":[{"number":4,"state":"old",
            "stops_first":{"since":5.0},"workers":[{"pid":8},{"pid":9}]}]}"#;
        let waits = "generation 4 stops first: waiting for 2 workers to exit".to_owned();
        assert_eq!(told(stopping, None), (STOPPING_FIRST, waits));
        let failed = r#"{"supervisor":{"pid":7},"generations":[{"number":6,"state":"starting"}],
            "verdicts":[{"request":1,"generation":5,"result":"failed","unserved_since":5.0}]}"#;
        let back = "generation 5 has failed, starting again what served before".to_owned();
        assert_eq!(told(failed, Some(5)), (COMING_BACK, back));
    }

    #[test]
    fn a_verdict_for_programs_has_everything() {
        let text = r#"{"supervisor":{"pid":7},"generations":[{"number":4,"state":"current"}],
            "verdicts":[{"request":1,"generation":5,"result":"failed","label":"v5","replaces":4,"status":256,"exit_code":1,
                "signal":null,"stderr":["the \u009b2Jreason"],"hint":"mend it",
                "durations":{"spawn":0.1,"exec":0.2}}]}"#;
        let found = found(text, Some(5));
        let verdict = found
            .status
            .as_ref()
            .unwrap()
            .verdict_on(5, false, Asked::Restart)
            .unwrap();
        let told = json(&found, &verdict);
        assert!(told.contains(r"the \u009b2Jreason"), "{told}");
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let expected = serde_json::json!({
            "outcome": "failed", "generation": 5, "label": "v5", "replaces": 4, "again": null,
            "reason": "exit status:256 (exit code 1)", "hint": "mend it",
            "given_up": false,
            "status": 256, "exit_code": 1, "signal": null, "stderr": ["the \u{9b}2Jreason"], "restored": null,
            "durations": {"spawn": 0.1, "exec": 0.2, "ready": null, "drained": null, "unserved": null},
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn a_verdict_for_programs_names_each_outcome() {
        let outcome = |text: &str, verdict: Verdict| {
            let told = json(&found(text, Some(5)), &verdict);
            let told: serde_json::Value = serde_json::from_str(&told).unwrap();
            told["outcome"].as_str().unwrap().to_owned()
        };
        assert_eq!(outcome(COMMITTED, Ok(())), "committed");
        let undecided = Failure::undecided("too late");
        assert_eq!(outcome(COMMITTED, Err(undecided)), "undecided");
        let stopped = Failure::failed("it is stopping");
        assert_eq!(outcome(COMMITTED, Err(stopped)), "stopped");
        let unreachable = COMMITTED.replace("committed\"", "failed\",\"serves\":true");
        let incomplete = Failure::failed("nobody can reach it");
        assert_eq!(outcome(&unreachable, Err(incomplete)), "incomplete");
    }
}
