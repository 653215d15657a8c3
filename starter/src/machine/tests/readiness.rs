//! Readiness that is reported, and workers that do not stop.

use super::*;

/// A worker has this many seconds to say that it is ready.
fn told(within: u64) -> Settings {
    Settings {
        proof: Proof::Told {
            within: Duration::from_secs(within),
        },
        ..settings()
    }
}

fn pid(number: i32) -> Pid {
    Pid::from_raw(number)
}

#[test]
fn a_generation_commits_when_it_says_so_and_not_before() {
    let mut world = World::new(told(60));
    world.pass(59.0);
    world.on(Event::DeadlinePassed);
    assert_eq!(world.state_of(1), Some(State::Starting));
    world.become_ready(pid(100));
    assert_eq!(world.state_of(1), Some(State::Current));
    world.restart();
    world.become_ready(pid(101));
    assert_eq!(world.state_of(2), Some(State::Current));
    assert!(world.said("new worker is now running, sending USR1 to old workers:100"));
    world.check();
}

#[test]
fn a_word_that_precedes_the_report_of_the_exec_counts() {
    let mut world = World::with(told(60), false);
    world.become_ready(pid(100));
    assert_eq!(world.state_of(1), Some(State::Current));
    world.execute(pid(100));
    assert_eq!(world.state_of(1), Some(State::Current));
    world.check();
}

#[test]
fn a_generation_that_is_not_ready_in_time_has_failed_and_the_old_one_serves() {
    let mut world = World::new(told(60));
    world.become_ready(pid(100));
    world.restart();
    world.on(Event::NotYetReady {
        pid: pid(101),
        known: "READY=1 has not come".into(),
    });
    assert_eq!(world.wait(), Some(60.0));
    world.pass_deadline();
    let cause =
        "cannot start a new worker: worker 101 was not ready within 60 secs: READY=1 has not come";
    assert!(!world.said(cause));
    assert!(world.said("worker 101 was not ready within 60 secs: READY=1 has not come"));
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.state_of(2), Some(State::Old));
    // Too late.
    world.become_ready(pid(101));
    assert_eq!(world.state_of(1), Some(State::Current));
    let verdict = &world.machine.history.decision_on(2).unwrap().verdict;
    assert!(matches!(verdict, Verdict::Failed { cause: Some(_), .. }));
    // The next try does not wait for its end, which is bounded.
    world.pass_deadline();
    assert_eq!(world.state_of(3), Some(State::Starting));
    world.pass(10.0);
    world.on(Event::DeadlinePassed);
    assert!(world.said("sending KILL to workers that have not stopped in time:101"));
    // What it has started goes with it.
    assert_eq!(world.ended_leftovers_of, []);
    world.exit(pid(101), 9);
    assert_eq!(world.ended_leftovers_of, [pid(101)]);
    world.check();
}

#[test]
fn a_worker_can_ask_for_more_time() {
    let mut world = World::new(told(10));
    let until = world.now + Duration::from_secs(30);
    world.on(Event::StartExtended {
        pid: pid(100),
        until,
    });
    assert_eq!(world.wait(), Some(30.0));
    // An extension that ends earlier does not shorten the time.
    let until = world.now;
    world.on(Event::StartExtended {
        pid: pid(100),
        until,
    });
    assert_eq!(world.wait(), Some(30.0));
    world.check();
}

#[test]
fn a_current_worker_that_stops_by_itself_is_lost() {
    let mut world = World::new(told(60));
    world.become_ready(pid(100));
    world.stop_by_itself(pid(100));
    assert_eq!(world.state_of(1), Some(State::Old));
    world.pass_deadline();
    assert_eq!(world.state_of(2), Some(State::Starting));
    world.exit(pid(100), 0);
    assert!(world.said("old worker 100 died"));
    assert!(!world.said("died unexpectedly"));
    world.check();
}

#[test]
fn a_new_generation_that_stops_by_itself_gives_the_old_one_its_place_back() {
    let mut world = World::new(Settings {
        knobs: delayed(5),
        ..told(60)
    });
    world.become_ready(pid(100));
    world.restart();
    world.become_ready(pid(101));
    assert_eq!(world.state_of(1), Some(State::Retiring));
    world.stop_by_itself(pid(101));
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.state_of(2), Some(State::Old));
    assert!(world.said("the old workers were not yet signalled and are serving again:100"));
    world.check();
}

#[test]
fn a_retiring_generation_that_stops_by_itself_is_no_way_back() {
    let mut world = World::new(Settings {
        knobs: delayed(5),
        ..told(60)
    });
    world.become_ready(pid(100));
    world.restart();
    world.become_ready(pid(101));
    world.stop_by_itself(pid(100));
    assert_eq!(world.state_of(1), Some(State::Old));
    world.exit(pid(101), 256);
    assert_eq!(world.state_of(1), Some(State::Old));
    world.pass_deadline();
    assert_eq!(world.state_of(3), Some(State::Starting));
    world.check();
}

#[test]
fn a_start_that_stops_by_itself_has_failed() {
    let mut world = World::new(told(60));
    world.become_ready(pid(100));
    world.restart();
    world.stop_by_itself(pid(101));
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.state_of(2), Some(State::Old));
    assert!(world.said("worker 101 said that it was stopping (STOPPING=1)"));
    world.check();
}

#[test]
fn where_time_is_the_proof_words_are_none() {
    let mut world = World::new(settings());
    world.on(Event::Ready(pid(100)));
    assert_eq!(world.state_of(1), Some(State::Starting));
}

#[test]
fn old_workers_that_take_too_long_are_killed_once() {
    let mut world = World::new(Settings {
        kill_old_timeout: Some(Duration::from_secs(30)),
        ..settings()
    });
    world.pass_deadline();
    world.restart();
    world.pass_deadline();
    assert_eq!(world.wait(), Some(30.0));
    world.pass_deadline();
    assert_eq!(world.count_said("sending KILL"), 1);
    assert_eq!(world.wait(), None);
    world.check();
}

#[test]
fn of_too_many_draining_generations_the_oldest_are_killed() {
    let mut world = World::new(Settings {
        max_old_generations: NonZeroU32::new(2),
        ..settings()
    });
    world.pass_deadline();
    for _ in 0..2 {
        world.restart();
        world.pass_deadline();
    }
    assert!(!world.said("sending KILL"));
    // A failed start does not count as draining, and no old generation is killed for it.
    world.restart();
    world.exit_newest(256);
    assert!(!world.said("sending KILL"));
    world.pass_deadline();
    world.pass_deadline();
    assert!(world.said("sending KILL to workers that have not stopped in time:100"));
    assert_eq!(world.count_said("sending KILL"), 1);
    world.check();
}

#[test]
fn whoever_stops_by_itself_drains_within_the_same_bounds() {
    let mut world = World::new(Settings {
        kill_old_timeout: Some(Duration::from_secs(30)),
        max_old_generations: NonZeroU32::new(1),
        ..told(60)
    });
    for pid in [100, 101] {
        world.become_ready(self::pid(pid));
        world.stop_by_itself(self::pid(pid));
        world.pass_deadline();
    }
    assert!(world.said("sending KILL to workers that have not stopped in time:100"));
    assert!(!world.said("in time:101"));
    world.become_ready(pid(102));
    world.pass(30.0);
    world.on(Event::DeadlinePassed);
    assert!(world.said("sending KILL to workers that have not stopped in time:101"));
    world.check();
}
