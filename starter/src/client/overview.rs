//! What a server is doing, in one word and in one line.

use super::observed::workers;
use crate::status::view::{self, By, Generation, Outcome, StopsFirst, View};
use crate::words::canary::share;
use crate::words::failure::Status as Code;
use crate::words::many;
use crate::words::number::{short_time, time};
use crate::words::progress::{gone, stops_first, was_restored};
use crate::words::text::shortened;

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Serving,
    /// It serves, and the next generation is starting.
    Restarting,
    /// It serves, but not well.
    Unhealthy,
    /// Nothing has ever served.
    Starting,
    /// No generation serves any more.
    NothingServes,
    /// It was told to stop, or is giving up.
    Stopping,
}

impl State {
    /// All of them.
    pub const ALL: [State; 6] = [
        State::Serving,
        State::Restarting,
        State::Unhealthy,
        State::Starting,
        State::NothingServes,
        State::Stopping,
    ];

    pub fn of(view: &View) -> State {
        let serves = |one: &Generation| {
            matches!(
                one.state,
                view::State::Current
                    | view::State::Canary
                    | view::State::Partial
                    | view::State::Retiring
            )
        };
        if view.stopping {
            State::Stopping
        } else if !view.generations.iter().any(serves) {
            match has_served(view) {
                true => State::NothingServes,
                false => State::Starting,
            }
        } else if view.unhealthy.is_some() {
            State::Unhealthy
        } else if starting(view).is_some() {
            State::Restarting
        } else {
            State::Serving
        }
    }

    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            State::Serving => "serving",
            State::Restarting => "restarting",
            State::Unhealthy => "unhealthy",
            State::Starting => "starting",
            State::NothingServes => "nothing_serves",
            State::Stopping => "stopping",
        }
    }

    /// Its name for people.
    pub fn words(self) -> &'static str {
        match self {
            State::NothingServes => "nothing serves",
            other => other.name(),
        }
    }

    /// The exit code of `--status`.
    pub fn code(self) -> Code {
        match self {
            State::Serving | State::Restarting => Code::Done,
            State::Unhealthy | State::Starting | State::NothingServes | State::Stopping => {
                Code::Failed
            }
        }
    }
}

/// The state, and what is known about it: safe to show. `at` is the time in seconds since 1970.
pub fn headline(view: &View, at: f64) -> String {
    let state = State::of(view);
    let details = match state {
        State::Serving => canary(view).or_else(|| how_many(view)),
        State::Unhealthy => view.unhealthy.as_ref().map(shortened),
        State::Restarting | State::Starting | State::NothingServes => progress(view, at),
        State::Stopping => Some(match workers(view).count() {
            0 => "no worker is left".to_owned(),
            1 => "waiting for 1 worker to exit".to_owned(),
            left => format!("waiting for {left} workers to exit"),
        }),
    };
    match details {
        Some(details) => format!("{}: {details}", state.words()),
        None => state.words().to_owned(),
    }
}

/// The start that is under way, or what became of the last one.
fn progress(view: &View, at: f64) -> Option<String> {
    let Some(starting) = starting(view) else {
        let mut first = view
            .generations
            .iter()
            .filter_map(|one| Some((one, one.stops_first?)));
        if let Some((first, StopsFirst { since, killed_at })) = first.next() {
            let passed = time(at - since);
            let sentence = stops_first(first.number, first.workers.len());
            return Some(match killed_at {
                Some(end) => format!("{sentence}, {passed} of {}", time(end - since)),
                None => format!("{sentence}, {passed}"),
            });
        }
        let mut parts = Vec::new();
        // A rollback that was refused has changed nothing.
        let mut verdicts = view.verdicts.iter().rev();
        let failed = verdicts.find(|one| one.generation > 0);
        if let Some(failed) = failed.filter(|one| one.result == Outcome::Failed) {
            parts.push(format!("generation {} failed", failed.generation));
        }
        match (next_start(view, at), parts.is_empty()) {
            (Some(next), _) => parts.push(next),
            (None, false) => parts.push("another try follows".to_owned()),
            (None, true) => return None,
        }
        return Some(parts.join("; "));
    };
    let number = starting.number;
    let serves = |one: &&Generation| one.state == view::State::Current;
    let mut parts = vec![match view.generations.iter().rev().find(serves) {
        Some(current) => format!("generation {number} of {}", current.number),
        None => format!("generation {number}"),
    }];
    let what = starting.waiting_for.as_ref();
    parts.extend(what.map(|what| format!("waiting for {}", shortened(what))));
    let workers = starting.workers.iter().map(|worker| worker.started_at);
    if let Some(began) = starting.started_at.or(workers.reduce(f64::min)) {
        let passed = time(at - began);
        parts.push(match starting.fails_at {
            Some(end) => format!("{passed} of {}", time(end - began)),
            None => passed,
        });
    }
    Some(parts.join(", "))
}

/// Which generation is a canary, and its share.
fn canary(view: &View) -> Option<String> {
    let canary = view.switch?.canary?;
    let share = share(canary.percent, canary.by == By::Client);
    Some(format!("generation {} gets {share}", canary.generation))
}

/// How many workers serve, where there is to be more than one.
fn how_many(view: &View) -> Option<String> {
    let wanted = Some(view.workers).filter(|wanted| *wanted > 1)?;
    let count = |state: view::State| -> usize {
        let its = view.generations.iter().filter(|one| one.state == state);
        its.map(|one| one.workers.len()).sum()
    };
    let mut partial = view.generations.iter().rev();
    if let Some(partial) = partial.find(|one| one.state == view::State::Partial) {
        return Some(many::rolled(partial.workers.len(), wanted, partial.number));
    }
    Some(match u64::try_from(count(view::State::Current)) {
        Ok(living) if living < wanted => format!("{living} of {wanted} workers"),
        _ => format!("{wanted} workers"),
    })
}

/// When the next start is due.
fn next_start(view: &View, at: f64) -> Option<String> {
    let next = view.next_start_at?;
    // With `--replace=stop-first`, or no lane is free: nothing else keeps a start that is due from beginning.
    let others = view.generations.iter();
    let others = others.filter(|one| one.state != view::State::Current);
    let left: usize = others.map(|one| one.workers.len()).sum();
    Some(match left {
        1 if next < at => "the next start waits for 1 worker to exit".to_owned(),
        left if next < at && left > 0 => {
            format!("the next start waits for {left} workers to exit")
        }
        _ => format!("next start in {}", time(next - at)),
    })
}

/// What serves dies again and again, in a sentence.
pub fn crash_loop(view: &View) -> Option<String> {
    let deaths = view.crash_loop;
    (deaths > 0).then(|| {
        format!(
            "crash loop: workers have died {deaths} times in a row soon after they began to serve"
        )
    })
}

fn starting(view: &View) -> Option<&Generation> {
    let mut generations = view.generations.iter().rev();
    generations.find(|one| one.state == view::State::Starting)
}

/// An older server does not count its commits, but remembers the last ones.
fn has_served(view: &View) -> bool {
    let mut verdicts = view.verdicts.iter();
    view.counters.commits > 0 || verdicts.any(|one| one.result == Outcome::Committed)
}

/// The result of the last start, in a sentence that is safe to show.
pub fn last_start(view: &View, at: f64) -> Option<String> {
    let last = view.verdicts.last()?;
    let (generation, ago) = (last.generation, time(at - last.at));
    let how = super::status::how(last);
    Some(match (last.result, last.serves) {
        (Outcome::Committed, _) => {
            let figures = &last.durations;
            let took = figures.until_ready();
            let took = took.map(|took| format!(", after {}", short_time(took)));
            let end = last.replaces.zip(figures.drained);
            let end = end.map(|(old, drained)| gone(old, drained));
            let unserved = figures.unserved;
            let unserved =
                unserved.map(|unserved| format!("; nobody answered for {}", short_time(unserved)));
            let end = unserved.or(end).unwrap_or_default();
            match super::status::was_kept(view, last) {
                true => {
                    format!("last rollback: generation {generation} was kept, {ago} ago{end}")
                }
                false => format!(
                    "last start: generation {generation} committed {ago} ago{}{end}",
                    took.unwrap_or_default()
                ),
            }
        }
        (_, true) => {
            format!(
                "last start: generation {generation} committed {ago} ago, but cannot be reached everywhere{how}"
            )
        }
        (Outcome::Failed, false) => {
            let back = last.restored.zip(last.durations.unserved);
            let back = back.map(|(number, after)| format!("; {}", was_restored(number, after)));
            let rolled = super::status::rolled(last);
            let further = match last.given_up {
                _ if last.rolled.is_some() => rolled,
                true => Some("given up, since --start-limit is reached".to_owned()),
                false => next_start(view, at),
            };
            let further = further.map(|text| format!("; {text}"));
            let further = back.or(further).unwrap_or_default();
            match generation {
                0 => format!("last start: refused {ago} ago{how}{further}"),
                _ => format!("last start: generation {generation} failed {ago} ago{how}{further}"),
            }
        }
        (Outcome::Canary, false) => {
            format!("last start: generation {generation} became a canary {ago} ago")
        }
        (Outcome::Unknown, false) => {
            format!("last start: generation {generation}, {ago} ago, result unknown")
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::status::view::{Counters, Durations, Verdict, Worker};

    fn generation(number: u64, state: view::State) -> Generation {
        Generation {
            number,
            state,
            workers: [Worker {
                slot: 0,
                pid: 7,
                started_at: 990.0,
                text: None,
            }]
            .into_iter()
            .collect(),
            ..Generation::default()
        }
    }

    fn view(generations: &[Generation], commits: u64) -> View {
        View {
            generations: generations.iter().cloned().collect(),
            counters: Counters {
                commits,
                ..Counters::default()
            },
            ..View::default()
        }
    }

    fn shown(view: &View) -> (State, String, u8) {
        let state = State::of(view);
        (state, headline(view, 1000.0), state.code() as u8)
    }

    #[test]
    fn a_server_serves_while_a_generation_is_current_or_retiring() {
        use view::State::{Current, Old, Retiring, Starting};
        for generations in [
            &[generation(1, Current)][..],
            &[generation(1, Retiring), generation(2, Current)],
            &[generation(1, Old), generation(2, Current)],
        ] {
            let expected = (State::Serving, "serving".to_owned(), 0);
            assert_eq!(shown(&view(generations, 1)), expected);
        }
        let headline = "restarting: generation 5 of 4, 10 s".to_owned();
        let restarting = [generation(4, Current), generation(5, Starting)];
        let expected = (State::Restarting, headline, 0);
        assert_eq!(shown(&view(&restarting, 1)), expected);
    }

    #[test]
    fn a_start_shows_what_it_waits_for_and_how_long() {
        let mut one = generation(5, view::State::Starting);
        one.waiting_for = Some("READY".to_owned());
        one.started_at = Some(996.8);
        one.fails_at = Some(1056.8);
        let details = "waiting for READY, 3.2 s of 60 s";
        let restarting = [generation(4, view::State::Current), one.clone()];
        assert_eq!(
            headline(&view(&restarting, 1), 1000.0),
            format!("restarting: generation 5 of 4, {details}")
        );
        for (commits, words) in [(0, "starting"), (1, "nothing serves")] {
            assert_eq!(
                headline(&view(std::slice::from_ref(&one), commits), 1000.0),
                format!("{words}: generation 5, {details}")
            );
        }
        one.waiting_for = Some("GET /\n\x1b[2J".to_owned());
        let shown = headline(&view(&[one], 0), 1000.0);
        assert!(shown.contains(r"waiting for GET /\x0A\x1B[2J, "), "{shown}");
    }

    #[test]
    fn without_a_current_generation_nothing_serves_and_the_code_is_1() {
        let old = [generation(1, view::State::Old)];
        let expected = (State::NothingServes, "nothing serves".to_owned(), 1);
        assert_eq!(shown(&view(&old, 1)), expected);
        // An older server, which counts no commits.
        let mut older = view(&[], 0);
        assert_eq!(State::of(&older), State::Starting);
        let verdict = |result| Verdict {
            generation: 3,
            result,
            at: 970.0,
            ..Verdict::default()
        };
        let both = [Outcome::Committed, Outcome::Failed].map(verdict);
        older.verdicts = both.into_iter().collect();
        let headline = "nothing serves: generation 3 failed; another try follows";
        let expected = (State::NothingServes, headline.to_owned(), 1);
        assert_eq!(shown(&older), expected);
        older.next_start_at = Some(1002.4);
        let headline = "nothing serves: generation 3 failed; next start in 2.4 s";
        let expected = (State::NothingServes, headline.to_owned(), 1);
        assert_eq!(shown(&older), expected);
        // What has served has died, and nothing has failed to start since.
        older.verdicts = [verdict(Outcome::Committed)].into_iter().collect();
        let headline = "nothing serves: next start in 2.4 s";
        let expected = (State::NothingServes, headline.to_owned(), 1);
        assert_eq!(shown(&older), expected);
    }

    #[test]
    fn a_start_that_waits_for_a_worker_says_so() {
        let view = |at| View {
            next_start_at: Some(at),
            generations: [generation(4, view::State::Old)].into_iter().collect(),
            ..View::default()
        };
        assert_eq!(
            next_start(&view(1000.5), 1000.0).unwrap(),
            "next start in 0.5 s"
        );
        let waits = "the next start waits for 1 worker to exit";
        assert_eq!(next_start(&view(999.0), 1000.0).unwrap(), waits);
    }

    #[test]
    fn what_stops_first_is_what_nothing_serves_for() {
        let mut first = generation(4, view::State::Old);
        first.stops_first = Some(StopsFirst {
            since: 996.8,
            killed_at: None,
        });
        let waits = "nothing serves: generation 4 stops first: waiting for 1 worker to exit, 3.2 s";
        let expected = (State::NothingServes, waits.to_owned(), 1);
        assert_eq!(shown(&view(std::slice::from_ref(&first), 1)), expected);
        first.stops_first = Some(StopsFirst {
            since: 996.8,
            killed_at: Some(1006.8),
        });
        first.workers = [].into_iter().collect();
        let headline = headline(&view(&[first], 1), 1000.0);
        assert!(
            headline.ends_with(": waiting for 0 workers to exit, 3.2 s of 10 s"),
            "{headline}"
        );
    }

    #[test]
    fn what_is_unhealthy_or_stopping_says_so_first() {
        let mut view = view(&[generation(1, view::State::Current)], 1);
        view.unhealthy = Some("GET /healthz: 503".to_owned());
        let headline = "unhealthy: GET /healthz: 503".to_owned();
        assert_eq!(shown(&view), (State::Unhealthy, headline, 1));
        view.stopping = true;
        let headline = "stopping: waiting for 1 worker to exit".to_owned();
        assert_eq!(shown(&view), (State::Stopping, headline, 1));
    }

    #[test]
    fn the_last_start_is_told_with_its_cause() {
        let mut view = view(&[], 0);
        let mut told = |verdict: Verdict| {
            view.verdicts = [verdict].into_iter().collect();
            last_start(&view, 1000.0).unwrap()
        };
        let verdict = Verdict {
            generation: 3,
            at: 940.0,
            result: Outcome::Committed,
            ..Verdict::default()
        };
        assert_eq!(
            told(verdict.clone()),
            "last start: generation 3 committed 60 s ago"
        );
        let failed = Verdict {
            result: Outcome::Failed,
            status: Some(256),
            ..verdict
        };
        assert_eq!(
            told(failed.clone()),
            "last start: generation 3 failed 60 s ago, exit status:256 (exit code 1)"
        );
        let given_up = Verdict {
            given_up: true,
            ..failed.clone()
        };
        assert_eq!(
            told(given_up),
            "last start: generation 3 failed 60 s ago, exit status:256 (exit code 1); given up, since --start-limit is reached"
        );
        let refused = Verdict {
            generation: 0,
            status: None,
            cause: Some("the check failed".to_owned()),
            ..failed.clone()
        };
        assert_eq!(
            told(refused),
            "last start: refused 60 s ago: the check failed"
        );
        let restored = Verdict {
            restored: Some(4),
            durations: Durations {
                unserved: Some(0.5),
                ..Durations::default()
            },
            ..failed.clone()
        };
        assert!(told(restored).ends_with(
            "(exit code 1); what served before was started again as generation 4; nobody answered for 0.50 s"
        ));
        let cause = Some("nobody can reach x".to_owned());
        assert_eq!(
            told(Verdict {
                cause,
                serves: true,
                ..failed
            }),
            "last start: generation 3 committed 60 s ago, but cannot be reached everywhere: nobody can reach x"
        );
        assert_eq!(last_start(&View::default(), 1000.0), None);
    }

    #[test]
    fn what_a_rollback_has_kept_has_not_started() {
        let mut view = view(&[], 0);
        let committed = |replaces| Verdict {
            generation: 3,
            at: 940.0,
            result: Outcome::Committed,
            replaces,
            ..Verdict::default()
        };
        let kept = Some("last rollback: generation 3 was kept, 60 s ago".to_owned());
        view.verdicts = [committed(Some(4))].into_iter().collect();
        assert_eq!(last_start(&view, 1000.0), kept);
        view.verdicts = [committed(None), committed(None)].into_iter().collect();
        assert_eq!(last_start(&view, 1000.0), kept);
    }
}
