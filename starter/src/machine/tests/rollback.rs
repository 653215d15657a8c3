//! `--rollback` and `--abort` in each state of the last restart. That it takes no serving worker away without another one is checked at
//! each step of the [`walk`](super::walk).

use super::*;

/// Generation 1 has served for a while, and the old one is kept for so many seconds after a restart.
fn serving(seconds: u64) -> World {
    let mut world = World::new(Settings {
        knobs: delayed(seconds),
        ..settings()
    });
    world.pass_deadline();
    world.pass(10.0);
    world
}

/// Generation 2 has replaced it a moment ago.
fn restarted(seconds: u64) -> World {
    let mut world = serving(seconds);
    world.restart();
    world.pass_deadline();
    assert_eq!(world.state_of(2), Some(State::Current));
    world
}

fn last(world: &World) -> &Decision {
    world.machine.history.decisions.back().unwrap()
}

fn refused(world: &World) -> &str {
    match &last(world).verdict {
        Verdict::Refused(cause) => &cause.cause,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_has_not_been_told_to_stop_is_current_again() {
    let mut world = restarted(5);
    let living = world.pids();
    world.roll_back();
    assert_eq!(world.pids(), living, "no process is started");
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.state_of(2), Some(State::Old));
    assert!(world.said("generation 1 is current again, generation 2 is told to stop"));
    let decision = last(&world);
    assert_eq!((decision.request, decision.generation), (2, 1));
    assert_eq!(decision.replaces, Some(2));
    assert_eq!(decision.steps.drained_at, None);
    world.exit_newest(0);
    assert!(last(&world).steps.drained_at.is_some());
    // Whoever waits for the restart learns that it was undone.
    let of_restart = world.machine.history.decision_on(2).unwrap();
    let undone = matches!(&of_restart.verdict, Verdict::Refused(_));
    assert!(undone && of_restart.request == 1, "{of_restart:?}");
}

#[test]
fn there_is_no_way_back_to_workers_that_were_told_to_stop() {
    let mut world = restarted(0);
    assert_eq!(world.state_of(1), Some(State::Old));
    world.roll_back();
    assert!(refused(&world).contains("generation 1 were already told to stop"));
    assert_eq!(world.state_of(2), Some(State::Current));
}

#[test]
fn what_is_gone_is_started_again_and_must_prove_itself() {
    let mut world = restarted(0);
    world.exit(Pid::from_raw(100), 0);
    world.roll_back();
    assert_eq!(world.state_of(2), Some(State::Current));
    assert_eq!(world.state_of(3), Some(State::Starting));
    assert!(world.machine.may_start_from(1), "another try may follow");
    world.pass_deadline();
    assert_eq!(world.state_of(2), Some(State::Old));
    assert_eq!(world.state_of(3), Some(State::Current));
    let decision = last(&world);
    assert_eq!((decision.generation, decision.again), (3, Some(1)));
    assert_eq!((decision.request, decision.replaces), (2, Some(2)));
    // And back.
    world.exit(Pid::from_raw(101), 0);
    world.roll_back();
    world.pass_deadline();
    assert_eq!(last(&world).again, Some(2));
}

#[test]
fn a_rollback_that_fails_leaves_what_serves_and_is_tried_again() {
    let mut world = restarted(0);
    world.exit(Pid::from_raw(100), 0);
    world.roll_back();
    world.exit_newest(256);
    assert_eq!(world.state_of(2), Some(State::Current));
    let failed = matches!(last(&world).verdict, Verdict::Failed { .. });
    assert!(failed && last(&world).again == Some(1));
    world.pass_deadline();
    assert_eq!(world.state_of(4), Some(State::Starting));
    world.roll_back();
    assert!(refused(&world).contains("a rollback to generation 1 is already under way"));
}

#[test]
fn a_restart_that_has_not_committed_is_given_up() {
    let mut world = serving(0);
    world.restart();
    world.restart();
    world.roll_back();
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.state_of(2), Some(State::Old), "it is told to stop");
    world.exit_newest(0);
    world.pass(100.0);
    assert_eq!(world.wait(), None, "nothing more is started");
    let decisions = world.machine.history.decisions.iter();
    let told: Vec<_> = decisions.map(|one| (one.request, one.generation)).collect();
    // The first start; the restart; the one that was to follow it; the rollback.
    assert_eq!(told, [(0, 1), (1, 2), (2, 0), (3, 1)]);
}

#[test]
fn a_restart_that_fails_again_and_again_is_given_up() {
    let mut world = serving(0);
    world.restart();
    world.exit_newest(256);
    assert!(world.wait().is_some());
    world.roll_back();
    assert_eq!(world.wait(), None);
    assert_eq!(world.state_of(1), Some(State::Current));
}

/// A restart that fails, and another one that has to wait a moment for its start.
fn waiting() -> World {
    let mut world = serving(0);
    world.restart();
    world.exit_newest(256);
    world.restart();
    assert_eq!(world.state_of(3), None);
    world
}

fn answers(world: &World) -> Vec<(u32, u32, bool)> {
    let decisions = world.machine.history.decisions.iter();
    let all = decisions.map(|one| (one.request, one.generation, one.is_of_rollback));
    all.collect()
}

#[test]
fn a_restart_that_waits_for_its_start_learns_that_it_was_given_up() {
    let mut world = waiting();
    world.roll_back();
    assert_eq!(world.wait(), None);
    let expected = [(0, 1, false), (1, 2, false), (2, 0, false), (3, 1, true)];
    assert_eq!(answers(&world), expected);
    // The same where what served has died meanwhile and comes back before it.
    let mut world = waiting();
    world.exit(Pid::from_raw(100), 0);
    assert_eq!(world.state_of(3), None);
    world.roll_back();
    assert_eq!(answers(&world).last(), Some(&(2, 0, false)));
    // Another try is no other restart.
    let mut world = serving(0);
    world.restart();
    world.exit_newest(256);
    world.roll_back();
    let expected = [(0, 1, false), (1, 2, false), (2, 1, true)];
    assert_eq!(answers(&world), expected);
}

#[test]
fn a_restart_that_waits_for_what_served_is_the_last_one() {
    let mut world = restarted(0);
    world.exit(Pid::from_raw(100), 0);
    world.pass(10.0);
    world.exit_newest(256);
    assert_eq!(world.state_of(3), Some(State::Starting));
    world.restart();
    world.roll_back();
    assert!(world.said("starting the program of generation 2 again"));
    assert_eq!(answers(&world).last(), Some(&(2, 0, false)));
}

#[test]
fn a_check_is_given_up() {
    let mut world = World::new(Settings {
        check: Some(Duration::from_secs(20)),
        ..settings()
    });
    world.pass_deadline();
    world.restart();
    assert!(world.is_checking);
    world.roll_back();
    assert!(!world.is_checking);
    assert_eq!(world.wait(), None);
}

#[test]
fn a_crash_loop_of_the_new_version_can_be_left() {
    let mut world = restarted(0);
    world.exit(Pid::from_raw(100), 0);
    world.pass(10.0);
    world.exit_newest(256);
    assert_eq!(world.state_of(3), Some(State::Starting));
    world.roll_back();
    assert_eq!(world.state_of(3), Some(State::Old), "it is told to stop");
    world.pass_deadline();
    assert_eq!(world.state_of(4), Some(State::Starting));
    world.pass_deadline();
    assert_eq!(last(&world).again, Some(1));
}

#[test]
fn there_must_be_something_to_go_back_to() {
    let mut world = World::new(settings());
    world.roll_back();
    assert!(refused(&world).contains("no generation has served yet"));
    let mut world = serving(0);
    world.roll_back();
    assert!(refused(&world).contains("nothing to go back to from generation 1"));
    let mut world = World::new(unpinned(settings()));
    world.pass_deadline();
    world.restart();
    world.pass_deadline();
    world.exit(Pid::from_raw(100), 0);
    world.roll_back();
    assert!(refused(&world).contains("--no-pin"));
}

#[test]
fn an_abort_ends_the_tries_of_a_failed_restart() {
    let mut world = serving(0);
    world.restart();
    world.exit_newest(256);
    assert!(world.said(
        "generation 1 keeps serving; the restart is tried again in 1 s, unless --abort ends that"
    ));
    world.abort();
    assert!(world.said("aborting: the restart is undone, generation 1 keeps serving"));
    assert_eq!((world.machine.deadline(), world.pids().len()), (None, 1));
    let decision = last(&world);
    assert_eq!((decision.request, decision.generation), (2, 1));
    assert_eq!(decision.verdict, Verdict::Committed);
    // Nothing is left to abort, and the next restart is one as any other.
    world.abort();
    assert!(refused(&world).contains("no restart is under way or tried again"));
    world.restart();
    world.pass_deadline();
    assert_eq!(world.state_of(3), Some(State::Current));
}

#[test]
fn an_abort_ends_a_start_and_whoever_waits_for_it_learns_why() {
    let mut world = serving(0);
    world.restart();
    assert_eq!(world.state_of(2), Some(State::Starting));
    world.abort();
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.state_of(2), Some(State::Old));
    let of_restart = world.machine.history.decision_on(2).unwrap();
    let cause = match &of_restart.verdict {
        Verdict::Refused(cause) => &*cause.cause,
        other => panic!("{other:?}"),
    };
    assert_eq!((of_restart.request, cause), (1, "it was aborted"));
    world.exit_newest(0);
    assert!(last(&world).steps.drained_at.is_some());
}

#[test]
fn an_abort_leaves_alone_what_has_committed() {
    for seconds in [0, 5] {
        let mut world = restarted(seconds);
        let states = [1, 2].map(|number| world.state_of(number));
        world.abort();
        assert!(refused(&world).contains("no restart is under way or tried again"));
        assert_eq!([1, 2].map(|number| world.state_of(number)), states);
    }
}

#[test]
fn an_abort_while_nothing_has_served_is_refused() {
    let mut world = World::new(settings());
    world.abort();
    assert!(refused(&world).contains("no generation has served yet"));
    assert_eq!(world.state_of(1), Some(State::Starting));
}
