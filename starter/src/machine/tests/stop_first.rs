//! Restarts for which what serves stops first. What never happens is checked at each step of the [`walk`](super::walk).

use super::*;

fn stop_first(settings: Settings) -> Settings {
    Settings {
        replace: Replace::StopFirst,
        ..settings
    }
}

/// Generation 1, worker 100 (and 101), has served for a while.
fn serving(settings: Settings) -> World {
    let mut world = World::new(stop_first(settings));
    world.pass_deadline();
    world.pass(10.0);
    world.said.clear();
    world
}

fn is_signalled(world: &World, pid: i32) -> bool {
    let mut living = world.living.iter();
    living.any(|one| one.pid.as_raw() == pid && one.is_signalled)
}

fn exit(world: &mut World, pid: i32) {
    world.exit(Pid::from_raw(pid), 0);
    world.check();
}

#[test]
fn the_new_generation_starts_when_the_last_old_worker_is_gone() {
    let mut world = serving(with_workers(2));
    world.restart();
    assert!(is_signalled(&world, 100) && is_signalled(&world, 101));
    assert_eq!(world.state_of(1), Some(State::Old));
    assert_eq!(world.machine.stopping_first(), Some(1));
    assert_eq!(
        world.machine.deadline(),
        None,
        "it has all the time it needs"
    );
    exit(&mut world, 100);
    assert_eq!(world.pids(), [101]);
    world.pass(3.0);
    exit(&mut world, 101);
    assert_eq!(world.pids(), [102, 103]);
    assert_eq!(world.machine.stopping_first(), None);
    world.pass_deadline();
    assert_eq!(world.state_of(2), Some(State::Current));
    let decision = world.machine.history().decision_on(2).unwrap();
    assert_eq!((decision.request, decision.replaces), (1, Some(1)));
    let durations = decision.durations();
    assert_eq!(durations.unserved, Some(Duration::from_secs(4)));
    assert_eq!(durations.drained, Some(Duration::ZERO));
    assert!(world.said("clients had to wait for 4.00 secs"));
    assert!(!world.said("killing old workers"), "there are none");
}

#[test]
fn a_delay_before_the_old_ones_are_signalled_has_no_effect() {
    let mut world = serving(Settings {
        knobs: delayed(60),
        ..settings()
    });
    world.restart();
    assert!(is_signalled(&world, 100));
    exit(&mut world, 100);
    world.pass_deadline();
    assert_eq!(world.machine.deadline(), None);
    assert!(!world.said("sleeping"));
}

#[test]
fn old_workers_that_do_not_stop_are_killed_if_that_is_wanted() {
    let mut world = serving(Settings {
        kill_old_timeout: Some(Duration::from_secs(8)),
        ..settings()
    });
    world.restart();
    assert_eq!(world.wait(), Some(8.0));
    world.pass_deadline();
    assert!(world.living[0].is_killed);
    exit(&mut world, 100);
    assert_eq!(world.pids(), [101]);
    // What it has started would be a second server.
    assert_eq!(world.ended_leftovers_of, [Pid::from_raw(100)]);
}

#[test]
fn a_new_generation_that_fails_is_followed_at_once_by_what_served() {
    let mut world = serving(settings());
    world.restart();
    exit(&mut world, 100);
    world.pass(0.25);
    world.exit_newest(256);
    assert_eq!(world.pids(), [102]);
    assert!(world.said("the restart has failed, starting again what has served"));
    let open = world.machine.history().decision_on(2).unwrap();
    assert_eq!(open.durations().unserved, None);
    assert_eq!(open.replaces, Some(1));
    world.pass_deadline();
    assert_eq!(world.state_of(3), Some(State::Current));
    // Each further try would interrupt the service.
    assert_eq!(world.machine.deadline(), None);
    let failed = world.machine.history().decision_on(2).unwrap();
    assert_eq!(failed.outage.unwrap().restored, Some(3));
    assert_eq!(
        failed.durations().unserved,
        Some(Duration::from_secs_f64(1.25))
    );
    assert!(world.said("what has served before serves again"));
    world.check();
}

#[test]
fn what_served_waits_for_the_workers_of_the_failed_start() {
    let mut world = serving(with_workers(2));
    world.restart();
    exit(&mut world, 100);
    exit(&mut world, 101);
    exit(&mut world, 102);
    assert_eq!(world.pids(), [103], "it has been told to stop");
    // It is killed if it does not.
    assert_eq!(world.wait(), Some(10.0));
    world.restart();
    assert_eq!(world.pids(), [103], "that comes after what served is back");
    exit(&mut world, 103);
    assert_eq!(world.pids(), [104, 105]);
    world.pass_deadline();
    assert_eq!(world.machine.stopping_first(), Some(3));
    assert!(is_signalled(&world, 104) && is_signalled(&world, 105));
}

#[test]
fn without_pins_the_restart_is_tried_again() {
    let mut world = serving(unpinned(settings()));
    world.restart();
    exit(&mut world, 100);
    world.exit_newest(256);
    assert_eq!(world.pids(), [0; 0]);
    assert!(world.said("starting again what is on disk, because of --no-pin"));
    world.pass_deadline();
    world.pass_deadline();
    assert_eq!(world.state_of(3), Some(State::Current));
    let failed = world.machine.history().decision_on(2).unwrap();
    assert_eq!(failed.outage.unwrap().restored, None);
    assert_eq!(failed.durations().unserved, Some(Duration::from_secs(2)));
    assert_eq!(world.machine.deadline(), None);
}

#[test]
fn what_served_and_the_restart_take_turns_until_one_of_them_serves() {
    let mut world = serving(settings());
    world.restart();
    exit(&mut world, 100);
    let mut whys = Vec::new();
    for _ in 0..6 {
        let newest = world.living.last().map(|one| one.generation).unwrap();
        whys.push(world.machine.generation(newest).unwrap().why);
        world.exit_newest(256);
        world.check();
        if world.living.is_empty() {
            world.pass_deadline();
        }
    }
    let both = [Why::Asked, Why::Replacement];
    assert_eq!(whys, [both, both, both].concat());
    world.pass_deadline();
    assert!(world.machine.current().is_some());
    assert_eq!(world.machine.outage(), None);
}

#[test]
fn restarts_meanwhile_lead_to_one_more() {
    let mut world = serving(settings());
    world.restart();
    world.restart();
    world.restart();
    assert_eq!(world.pids(), [100]);
    world.check();
    exit(&mut world, 100);
    world.pass_deadline();
    assert_eq!(world.machine.stopping_first(), Some(2));
    exit(&mut world, 101);
    world.pass_deadline();
    assert_eq!(world.state_of(3), Some(State::Current));
    assert_eq!(world.machine.deadline(), None);
    let decisions = world.machine.history().decisions.iter();
    let requests: Vec<_> = decisions.map(|one| (one.generation, one.request)).collect();
    assert_eq!(requests, [(1, 0), (2, 1), (3, 3)]);
}

#[test]
fn a_failed_restart_is_followed_by_what_served_though_another_one_was_asked_for() {
    let mut world = serving(settings());
    world.restart();
    world.restart();
    exit(&mut world, 100);
    world.exit_newest(256);
    let why = |world: &World, number| world.machine.generation(number).unwrap().why;
    assert_eq!(why(&world, 3), Why::Replacement);
    world.pass_deadline();
    assert_eq!(world.machine.stopping_first(), Some(3));
    exit(&mut world, 102);
    assert_eq!(why(&world, 4), Why::Asked);
}

#[test]
fn a_stop_while_it_waits_starts_nothing() {
    let mut world = serving(settings());
    world.restart();
    world.restart();
    world.stop(Signal::SIGTERM);
    world.check();
    exit(&mut world, 100);
    assert_eq!(world.finished, Some(Outcome::Stopped));
    assert_eq!(world.highest, 1);
}

#[test]
fn the_check_comes_before_anything_is_stopped() {
    let checked = Settings {
        check: Some(Duration::from_secs(20)),
        ..settings()
    };
    let mut world = serving(checked);
    world.restart();
    assert!(world.is_checking && !is_signalled(&world, 100));
    world.end_check(false);
    assert_eq!(world.state_of(1), Some(State::Current));
    world.restart();
    world.end_check(true);
    assert!(is_signalled(&world, 100));
}

#[test]
fn a_timed_restart_stops_first_too() {
    let mut world = serving(Settings {
        knobs: Knobs {
            auto_restart: Some(Duration::from_secs(3)),
            ..delayed(0)
        },
        ..settings()
    });
    world.pass_deadline();
    assert!(world.said("autorestart triggered"));
    assert!(!world.said("received HUP"));
    assert!(is_signalled(&world, 100));
    exit(&mut world, 100);
    assert_eq!(world.machine.generation(2).unwrap().why, Why::Timed);
}

#[test]
fn a_crash_is_no_restart() {
    let mut world = serving(settings());
    world.exit_newest(9);
    assert_eq!(world.pids(), [101]);
    world.pass_deadline();
    let decision = world.machine.history().decision_on(2).unwrap();
    assert_eq!(decision.outage, None);
}

#[test]
fn a_worker_that_stops_by_itself_is_waited_for() {
    let mut world = World::new(stop_first(Settings {
        proof: Proof::Told {
            within: Duration::from_secs(20),
        },
        ..settings()
    }));
    world.become_ready(Pid::from_raw(100));
    world.pass(10.0);
    world.stop_by_itself(Pid::from_raw(100));
    assert_eq!(world.pids(), [100]);
    assert_eq!(world.machine.deadline(), None);
    world.check();
    exit(&mut world, 100);
    assert_eq!(world.pids(), [101]);
}

#[test]
fn a_process_that_never_ran_the_program_keeps_nothing_from_coming_back() {
    let mut world = serving(settings());
    world.execute = false;
    world.restart();
    exit(&mut world, 100);
    // Its file system hangs, and so does its exit.
    world.pass_deadline();
    assert!(world.living[0].is_killed);
    assert_eq!(world.pids(), [101, 102]);
    world.check();
}

#[test]
fn a_snapshot_in_which_a_restart_waits_for_nothing_is_refused() {
    let mut world = serving(settings());
    world.restart();
    let good: serde_json::Value = serde_json::from_str(&written(&world.machine)).unwrap();
    for (place, other) in [
        ("/machine/settings/replace", serde_json::json!("Overlap")),
        ("/machine/generations", serde_json::json!([])),
        ("/machine/outage", serde_json::json!(null)),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(place).unwrap() = other;
        let refused = read(&bad.to_string()).unwrap_err();
        assert!(
            refused.starts_with("generation 1 is to stop before a start"),
            "{place}: {refused}"
        );
    }
}
