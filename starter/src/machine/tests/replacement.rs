//! A worker that died while others of its generation serve.

use super::*;

/// The first generation of two workers, 100 and 101, serves.
fn serving(settings: Settings) -> World {
    let mut world = World::new(Settings {
        workers: 2,
        ..settings
    });
    world.pass_deadline();
    world.pass(10.0);
    world
}

#[test]
fn a_replacement_has_the_number_and_the_slot_of_the_dead_worker() {
    let mut world = serving(settings());
    world.exit(Pid::from_raw(100), 9);
    let places: Vec<_> = world.living.iter().map(|one| one.slot).collect();
    assert_eq!((world.pids(), places), (vec![101, 102], vec![1, 0]));
    assert!(world.said("worker 100 died unexpectedly with status:9, restarting"));
    let workers = world.machine.generation(1).unwrap().workers();
    assert_eq!(
        workers
            .map(|worker| worker.pid.as_raw())
            .collect::<Vec<_>>(),
        [102, 101]
    );
}

#[test]
fn a_replacement_that_fails_is_tried_again_later_each_time() {
    let mut world = serving(settings());
    world.exit_newest(9);
    let mut waits = Vec::new();
    for _ in 0..12 {
        world.exit_newest(256);
        waits.push(world.wait().unwrap());
        world.pass_deadline();
    }
    assert_eq!(waits[..4], [1.0, 1.5, 2.25, 3.375]);
    assert_eq!(waits[11], 30.0);
    let counters = world.machine.history().counters;
    assert_eq!((counters.crashes, counters.failed_starts), (1, 12));
    assert!(world.said("new worker 102 seems to have failed to start, exit status:256"));
    assert_eq!(
        (world.highest, world.state_of(1)),
        (1, Some(State::Current))
    );
}

#[test]
fn a_replacement_that_is_proved_starts_the_count_of_failures_anew() {
    let mut world = serving(settings());
    world.exit_newest(9);
    for _ in 0..3 {
        world.exit_newest(256);
        world.pass_deadline();
    }
    // It is proved.
    world.pass_deadline();
    world.pass(10.0);
    world.exit_newest(9);
    assert_eq!(world.machine.history().counters.crashes, 2);
    world.exit_newest(256);
    assert_eq!(world.wait(), Some(1.0));
}

#[test]
fn a_replacement_is_proved_by_its_own_time_and_only_once_it_has_executed() {
    let mut world = serving(settings());
    world.execute = false;
    world.exit_newest(9);
    assert_eq!(world.wait(), Some(30.0));
    world.pass(29.0);
    world.execute(Pid::from_raw(102));
    assert_eq!(world.wait(), Some(PROOF_OF_LIFE.as_secs_f64()));
    world.exit_newest(9);
    assert!(world.said("new worker 102 seems to have failed to start"));
}

#[test]
fn a_slot_that_fails_too_often_is_given_up_and_the_others_serve_on() {
    let mut world = serving(Settings {
        start_limit: NonZeroU32::new(2),
        ..settings()
    });
    world.exit_newest(9);
    world.exit_newest(256);
    world.pass_deadline();
    world.exit_newest(256);
    assert!(world.said("after 2 failed starts, still serving:100"));
    assert_eq!((world.pids(), world.machine.deadline()), (vec![100], None));
    // The next generation has all of them again.
    world.restart();
    assert_eq!(world.pids(), [100, 104, 105]);
    world.pass_deadline();
    assert_eq!(world.state_of(2), Some(State::Current));
}

#[test]
fn a_generation_whose_other_slots_are_given_up_ends_with_its_last_worker() {
    let mut world = serving(Settings {
        start_limit: NonZeroU32::new(1),
        ..settings()
    });
    world.exit_newest(9);
    world.exit_newest(256);
    assert!(world.said("after 1 failed start, still serving:100"));
    world.exit_newest(9);
    assert_eq!(world.state_of(2), Some(State::Starting));
    assert_eq!(world.living.len(), 2);
}

#[test]
fn what_cannot_be_spawned_or_executed_is_a_failure_of_the_slot_too() {
    let mut world = serving(settings());
    world.fail_to_spawn = true;
    world.exit_newest(9);
    assert_eq!((world.wait(), world.living.len()), (Some(1.0), 1));
    world.fail_to_spawn = false;
    world.execute = false;
    world.pass_deadline();
    world.fail_to_execute(Pid::from_raw(102));
    assert_eq!(world.wait(), Some(1.5));
    assert_eq!(world.count_said("cannot execute x"), 2);
    assert_eq!(world.machine.history().counters.failed_starts, 2);
}

#[test]
fn a_worker_of_a_generation_that_is_about_to_lose_its_last_one_and_cannot_be_spawned_ends_it() {
    let (mut machine, _) = Machine::start(with_workers(2), Moment::of_test(Duration::ZERO));
    let mut now = Moment::of_test(Duration::ZERO);
    for (slot, pid) in [(0, 100), (1, 101)] {
        let pid = Pid::from_raw(pid);
        let spawned = Event::Spawned {
            generation: 1,
            slot,
            pid,
        };
        machine.on(spawned, now);
        machine.on(Event::Executed(pid), now);
    }
    now = now + Duration::from_secs(10);
    machine.on(Event::DeadlinePassed, now);
    // Both die before anybody could answer whether there is a replacement.
    for pid in [100, 101] {
        let pid = Pid::from_raw(pid);
        machine.on(Event::Exited { pid, status: 9 }, now);
    }
    assert_eq!(machine.state_of(1), Some(State::Current));
    machine.on(
        Event::SpawnFailed {
            generation: 1,
            slot: 0,
            cause: cannot_execute(),
        },
        now,
    );
    // The other one was asked for as well: its time had come.
    let actions = machine.on(
        Event::SpawnFailed {
            generation: 1,
            slot: 1,
            cause: cannot_execute(),
        },
        now,
    );
    let spawn = |slot, from| Action::Spawn {
        generation: 2,
        slot,
        from: Source::Generation(from),
    };
    assert!(actions.contains(&spawn(0, 1)) && actions.contains(&spawn(1, 2)));
}

#[test]
fn a_replacement_that_its_successor_stops_has_not_failed() {
    let mut world = serving(settings());
    world.exit(Pid::from_raw(101), 9);
    world.restart();
    world.exit(Pid::from_raw(102), 0);
    assert!(world.said("old worker 102 died, status:0"));
    assert_eq!(world.machine.history().counters.failed_starts, 0);
}

#[test]
fn a_replacement_that_hangs_before_the_program_is_killed_and_its_end_is_a_failure_of_its_slot() {
    let mut world = serving(settings());
    world.execute = false;
    world.exit_newest(9);
    world.pass_deadline();
    assert_eq!(world.state_of(1), Some(State::Current));
    assert!(!world.said("within 30 seconds"));
    world.exit(Pid::from_raw(102), 9);
    assert!(world.said("cannot execute the program in worker 102 within 30 seconds"));
    assert_eq!(world.machine.history().counters.failed_starts, 1);
}

#[test]
fn a_retiring_generation_is_not_signalled_before_its_successor_has_a_proved_worker() {
    let mut world = serving(Settings {
        knobs: delayed(5),
        ..settings()
    });
    world.restart();
    world.pass_deadline();
    assert_eq!(world.state_of(1), Some(State::Retiring));
    // Both workers of generation 2 are replaced, just before the delay is over; the others do not execute in time.
    world.pass(4.5);
    world.execute = false;
    world.exit(Pid::from_raw(102), 9);
    world.exit(Pid::from_raw(103), 9);
    world.pass(1.0);
    world.on(Event::DeadlinePassed);
    assert_eq!(world.state_of(1), Some(State::Retiring));
    assert_eq!(world.wait(), Some(29.0));
    world.execute(Pid::from_raw(104));
    world.pass_deadline();
    assert_eq!(world.state_of(1), Some(State::Old));
}

#[test]
fn a_slot_that_became_empty_while_retiring_is_filled_after_the_rollback() {
    let mut world = serving(Settings {
        knobs: delayed(60),
        ..settings()
    });
    world.restart();
    world.pass_deadline();
    world.exit(Pid::from_raw(101), 0);
    assert_eq!(world.pids(), [100, 102, 103]);
    world.execute = false;
    world.fail_to_spawn = true;
    world.exit_newest(9);
    world.fail_to_spawn = false;
    world.exit(Pid::from_raw(102), 9);
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.pids(), [100, 104]);
}

#[test]
fn an_old_worker_that_ends_for_its_successor_is_not_replaced_unless_that_fails() {
    let mut world = World::new(with_workers(3));
    world.pass_deadline();
    world.restart();
    world.exit(Pid::from_raw(100), 0);
    assert_eq!(world.living.len(), 5, "nobody comes back for it");
    world.exit(Pid::from_raw(101), 256);
    assert_eq!(world.living.len(), 5, "that was a crash");
    // The successor.
    world.exit(Pid::from_raw(103), 256);
    let old = world.living.iter().filter(|one| one.generation == 1);
    let mut slots: Vec<usize> = old.map(|one| one.slot).collect();
    slots.sort();
    assert_eq!(slots, [0, 1, 2]);
}
