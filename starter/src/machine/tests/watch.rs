//! Generations that are asked again after their commit.

use super::*;

/// Watched for this long, where a restart signals the old workers after `delay`.
fn watched(delay: u64) -> Settings {
    Settings {
        proof: Proof::Told {
            within: Duration::from_secs(60),
        },
        watch: Some(Duration::from_secs(3)),
        knobs: delayed(delay),
        ..settings()
    }
}

fn pid(number: i32) -> Pid {
    Pid::from_raw(number)
}

/// A generation has not answered well for so many seconds.
fn unwell(world: &mut World, generation: u32, seconds: u64) {
    let now = world.now.saturating_since(Moment::of_test(Duration::ZERO));
    world.unwell = Some(generation);
    world.on(Event::Unwell {
        generation,
        since: Moment::of_test(now - Duration::from_secs(seconds)),
        known: format!("GET / on generation {generation}: 503"),
    });
}

fn well(world: &mut World, generation: u32) {
    world.unwell = None;
    world.on(Event::Well { generation });
}

/// Where the second generation serves and the first one is retiring.
fn restarted(settings: Settings) -> World {
    let mut world = World::new(settings);
    world.become_ready(pid(100));
    world.restart();
    world.become_ready(pid(101));
    assert_eq!(world.state_of(1), Some(State::Retiring));
    world
}

#[test]
fn what_is_unhealthy_long_enough_is_said_once_and_serves_on() {
    let mut world = World::new(watched(0));
    world.become_ready(pid(100));
    unwell(&mut world, 1, 2);
    assert_eq!(world.machine.unhealthy(), None);
    for seconds in 3..6 {
        unwell(&mut world, 1, seconds);
        let expected = "GET / on generation 1: 503";
        assert_eq!(world.machine.unhealthy(), Some(expected));
    }
    let line = "generation 1 has been unhealthy for 3 secs: GET / on generation 1: 503";
    assert_eq!(world.count_said(line), 1);
    assert_eq!(world.pids(), [100]);
    well(&mut world, 1);
    well(&mut world, 1);
    assert_eq!(world.machine.unhealthy(), None);
    assert_eq!(world.count_said("generation 1 is healthy again"), 1);
    world.check();
}

#[test]
fn a_new_generation_that_becomes_unhealthy_within_the_delay_is_rolled_back() {
    let mut world = restarted(watched(5));
    unwell(&mut world, 2, 3);
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.state_of(2), Some(State::Old));
    assert!(world.living[1].is_signalled && !world.living[0].is_signalled);
    assert!(world.said("the old workers were not yet signalled and are serving again:100"));
    let Verdict::Failed {
        status: None,
        cause: Some(cause),
        ..
    } = &world.machine.history.decision_on(2).unwrap().verdict
    else {
        panic!("it has not failed");
    };
    assert_eq!(
        cause.cause,
        "rolled back, as it was unhealthy for 3 secs: GET / on generation 2: 503"
    );
    assert_eq!(world.machine.unhealthy(), None);
    world.check();
    // It drains, however long that takes, and its exit is no failure of what serves.
    world.exit(pid(101), 0);
    assert!(world.said("old worker 101 died"));
    world.check();
}

#[test]
fn once_the_old_workers_are_signalled_unhealthy_is_a_warning() {
    let mut world = restarted(watched(5));
    world.pass(5.0);
    world.on(Event::DeadlinePassed);
    assert_eq!(world.state_of(1), Some(State::Old));
    unwell(&mut world, 2, 3);
    assert_eq!(world.state_of(2), Some(State::Current));
    assert!(!world.living[1].is_signalled);
    world.check();
}

#[test]
fn while_the_current_one_is_unhealthy_no_retiring_one_is_signalled() {
    let mut world = restarted(Settings {
        workers: 1,
        ..watched(5)
    });
    // The old one has just been lost, and its successor in the slot is not proved: there is no way back.
    world.machine.generations[0].slots[0]
        .worker_mut()
        .unwrap()
        .standing = Standing::Executed { at: world.now };
    world.living[0].is_ready = false;
    unwell(&mut world, 2, 3);
    assert_eq!(world.state_of(2), Some(State::Current));
    world.pass(60.0);
    world.on(Event::DeadlinePassed);
    assert_eq!(world.state_of(1), Some(State::Retiring));
    assert_eq!(world.machine.deadline(), None);
    well(&mut world, 2);
    assert_eq!(world.state_of(1), Some(State::Old));
    assert!(world.living[0].is_signalled);
    world.check();
}

#[test]
fn a_restart_of_what_is_unhealthy_begins_healthy() {
    let mut world = World::new(watched(5));
    world.become_ready(pid(100));
    unwell(&mut world, 1, 3);
    world.restart();
    assert!(world.machine.unhealthy().is_some());
    world.become_ready(pid(101));
    assert_eq!(world.machine.unhealthy(), None);
    // The answers of a generation that has been replaced mean nothing.
    world.on(Event::Unwell {
        generation: 1,
        since: Moment::of_test(Duration::ZERO),
        known: "late".into(),
    });
    assert_eq!(world.machine.unhealthy(), None);
    // It was unhealthy, but is the only way back.
    unwell(&mut world, 2, 3);
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.machine.unhealthy(), None);
    world.check();
}

#[test]
fn what_dies_while_it_is_unhealthy_is_replaced_as_ever() {
    let mut world = World::new(watched(0));
    world.become_ready(pid(100));
    unwell(&mut world, 1, 3);
    world.exit(pid(100), 9);
    assert_eq!(world.machine.unhealthy(), None);
    world.pass_deadline();
    world.become_ready(pid(101));
    assert_eq!(world.state_of(2), Some(State::Current));
    assert_eq!(world.machine.unhealthy(), None);
    world.check();
}

#[test]
fn without_a_watch_no_answer_matters() {
    let mut world = World::new(Settings {
        watch: None,
        ..watched(0)
    });
    world.become_ready(pid(100));
    let before = world.machine.clone();
    world.on(Event::Unwell {
        generation: 1,
        since: Moment::of_test(Duration::ZERO),
        known: "503".into(),
    });
    assert_eq!(world.machine, before);
}
