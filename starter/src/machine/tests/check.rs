//! The check before a restart.

use super::*;

fn checked() -> Settings {
    Settings {
        check: Some(Duration::from_secs(20)),
        ..settings()
    }
}

/// The first generation serves, and is not checked.
fn serving() -> World {
    let mut world = World::new(checked());
    assert!(!world.is_checking);
    world.pass_deadline();
    world
}

#[test]
fn a_restart_is_started_only_once_the_check_has_succeeded() {
    let mut world = serving();
    world.restart();
    assert!(world.is_checking);
    assert_eq!(world.pids(), [100]);
    world.end_check(true);
    assert_eq!(world.state_of(2), Some(State::Starting));
    assert!(world.said("received HUP, spawning a new worker"));
    world.check();
}

#[test]
fn a_check_that_fails_is_the_verdict_and_changes_nothing() {
    let mut world = serving();
    world.restart();
    world.end_check(false);
    assert_eq!(world.pids(), [100]);
    assert!(world.said("the check failed, exit status:256 (exit code 1); nothing was started"));
    let decision = world.machine.history.decisions.back().unwrap();
    assert_eq!((decision.request, decision.generation), (1, 0));
    assert!(matches!(&decision.verdict, Verdict::CheckFailed(failed) if failed.lines == ["no"]));
    assert_eq!(world.wait(), None);
    // The next check may succeed.
    world.restart();
    world.end_check(true);
    assert_eq!(world.state_of(2), Some(State::Starting));
    world.check();
}

#[test]
fn a_check_that_takes_too_long_has_failed() {
    let mut world = serving();
    world.restart();
    assert_eq!(world.wait(), Some(20.0));
    world.pass_deadline();
    assert!(!world.is_checking);
    assert!(world.said("the check did not finish within 20 secs; nothing was started"));
    // Its end comes too late.
    world.on(Event::Checked(Ok(())));
    assert_eq!(world.pids(), [100]);
    world.check();
}

#[test]
fn whoever_asks_during_a_check_gets_another_one() {
    let mut world = serving();
    world.restart();
    world.restart();
    world.end_check(false);
    assert!(world.is_checking);
    world.end_check(true);
    assert_eq!(world.state_of(2), Some(State::Starting));
    let mut world = serving();
    world.restart();
    world.restart();
    world.end_check(true);
    world.pass_deadline();
    assert!(world.is_checking, "after the first of the two");
    world.check();
}

#[test]
fn a_worker_that_dies_during_a_check_is_replaced_at_once_and_unchecked() {
    let mut world = serving();
    world.restart();
    world.exit_newest(256);
    assert_eq!(world.state_of(2), Some(State::Starting));
    assert!(world.is_checking);
    world.end_check(true);
    assert_eq!(world.state_of(3), None);
    world.pass_deadline();
    // It serves, and the restart is checked again: the last check may be long ago.
    assert!(world.is_checking);
    world.end_check(true);
    assert_eq!(world.state_of(3), Some(State::Starting));
    world.check();
}

#[test]
fn the_first_start_is_checked_only_if_that_is_asked_for() {
    let first = || Settings {
        check_first: true,
        ..checked()
    };
    let mut world = World::new(first());
    assert!(world.is_checking && world.pids().is_empty());
    world.end_check(true);
    assert_eq!(world.state_of(1), Some(State::Starting));
    let mut world = World::new(first());
    world.end_check(false);
    assert_eq!(world.finished, Some(Outcome::GivenUp));
}

#[test]
fn what_is_asked_for_last_comes_instead_of_a_restart_that_waits_for_what_served() {
    let mut world = serving();
    world.restart();
    world.end_check(true);
    // What serves dies, and so does the restart.
    world.exit(Pid::from_raw(100), 256);
    world.exit_newest(256);
    assert!(world.machine.postponed.is_some());
    world.pass_deadline();
    world.restart();
    world.pass_deadline();
    assert!(world.is_checking, "what was asked for is checked");
    world.check();
    world.end_check(false);
    assert_eq!(world.wait(), None);
}

#[test]
fn a_stop_ends_the_check() {
    let mut world = serving();
    world.restart();
    world.stop(Signal::SIGTERM);
    assert!(!world.is_checking);
    world.exit_newest(0);
    assert_eq!(world.finished, Some(Outcome::Stopped));
}
