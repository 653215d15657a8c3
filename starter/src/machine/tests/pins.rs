//! What each worker is started from. That a crash deploys nothing is checked at each step of the [`walk`](super::walk).

use super::*;

/// The actions of an event that start workers: generation, slot and source.
fn spawned(world: &mut World, event: Event) -> Vec<(u32, usize, Source)> {
    let now = world.now;
    let actions = world.machine.clone().on(event.clone(), now);
    world.on(event);
    let spawns = actions.into_iter().filter_map(|action| match action {
        Action::Spawn {
            generation,
            slot,
            from,
        } => Some((generation, slot, from)),
        _ => None,
    });
    spawns.collect()
}

/// What the deadline starts.
fn due(world: &mut World) -> Vec<(u32, usize, Source)> {
    world.now = world.now.max(world.machine.deadline().unwrap());
    spawned(world, Event::DeadlinePassed)
}

fn died(world: &mut World, pid: i32) -> Vec<(u32, usize, Source)> {
    let pid = Pid::from_raw(pid);
    world.living.retain(|one| one.pid != pid);
    spawned(world, Event::Exited { pid, status: 9 })
}

fn hup(world: &mut World) -> Vec<(u32, usize, Source)> {
    world.owed = true;
    spawned(world, Event::Restart)
}

/// Generation 1, worker 100, has served for a while.
fn serving(settings: Settings) -> World {
    let mut world = World::new(settings);
    world.pass_deadline();
    world.pass(10.0);
    world
}

const DISK: Source = Source::Disk;

fn of(generation: u32) -> Source {
    Source::Generation(generation)
}

#[test]
fn the_first_start_and_every_further_try_look_at_the_disk() {
    let (_, actions) = Machine::start(settings(), Moment::of_test(Duration::ZERO));
    let first = Action::Spawn {
        generation: 1,
        slot: 0,
        from: DISK,
    };
    assert!(actions.contains(&first));
    let mut world = World::new(settings());
    died(&mut world, 100);
    assert_eq!(due(&mut world), [(2, 0, DISK)]);
}

#[test]
fn a_crash_brings_back_what_served_however_often_it_happens() {
    let mut world = serving(settings());
    assert_eq!(died(&mut world, 100), [(2, 0, of(1))]);
    // It fails, is tried again, serves, and crashes.
    assert_eq!(died(&mut world, 101), []);
    assert_eq!(due(&mut world), [(3, 0, of(1))]);
    world.pass_deadline();
    world.pass(10.0);
    assert_eq!(died(&mut world, 102), [(4, 0, of(3))]);
}

#[test]
fn without_pins_a_crash_starts_what_lies_on_disk() {
    let mut world = serving(unpinned(settings()));
    assert_eq!(died(&mut world, 100), [(2, 0, DISK)]);
    let mut world = serving(unpinned(with_workers(2)));
    assert_eq!(died(&mut world, 100), [(1, 0, DISK)]);
}

#[test]
fn a_restart_and_its_further_tries_look_at_the_disk() {
    let mut world = serving(settings());
    assert_eq!(hup(&mut world), [(2, 0, DISK)]);
    died(&mut world, 101);
    assert_eq!(due(&mut world), [(3, 0, DISK)]);
    world.pass_deadline();
    world.machine.set_knobs(Knobs {
        auto_restart: Some(Duration::from_secs(3)),
        ..delayed(0)
    });
    died(&mut world, 100);
    assert_eq!(due(&mut world), [(4, 0, DISK)]);
}

#[test]
fn all_workers_of_a_generation_are_started_from_the_same() {
    let mut world = serving(with_workers(2));
    assert_eq!(died(&mut world, 101), [(1, 1, of(1))]);
    assert_eq!(hup(&mut world), [(2, 0, DISK), (2, 1, of(2))]);
}

#[test]
fn a_crash_after_a_failed_restart_brings_back_what_served_and_then_the_restart_is_tried_again() {
    let mut world = serving(settings());
    hup(&mut world);
    died(&mut world, 101);
    // The next try is planned.
    assert_eq!(died(&mut world, 100), []);
    assert_eq!(due(&mut world), [(3, 0, of(1))]);
    assert_eq!(due(&mut world), [(4, 0, DISK)]);
    assert_eq!(world.state_of(3), Some(State::Current));
}

#[test]
fn what_served_comes_back_when_it_died_during_a_restart_that_fails() {
    let mut world = serving(Settings {
        start_limit: NonZeroU32::new(2),
        ..settings()
    });
    hup(&mut world);
    assert_eq!(died(&mut world, 100), []);
    assert_eq!(died(&mut world, 101), []);
    assert_eq!(due(&mut world), [(3, 0, of(1))]);
    // These are two failed starts in a row, with nothing serving.
    died(&mut world, 102);
    world.check();
    assert_eq!(world.finished, Some(Outcome::GivenUp));
}

#[test]
fn while_nothing_serves_what_served_and_a_failed_restart_take_turns() {
    let mut world = serving(settings());
    hup(&mut world);
    died(&mut world, 100);
    died(&mut world, 101);
    let mut starts = Vec::new();
    for pid in 102..108 {
        starts.extend(due(&mut world).into_iter().map(|(_, _, from)| from));
        died(&mut world, pid);
        world.check();
    }
    assert_eq!(starts, [of(1), DISK, of(1), DISK, of(1), DISK]);
    assert!(world.wait().unwrap() > 5.0, "later each time");
}

#[test]
fn a_restart_that_is_given_up_while_nothing_serves_does_not_end_everything() {
    let mut world = serving(Settings {
        start_limit: NonZeroU32::new(1),
        ..settings()
    });
    hup(&mut world);
    died(&mut world, 100);
    died(&mut world, 101);
    assert_eq!(world.finished, None);
    assert_eq!(due(&mut world), [(3, 0, of(1))]);
    world.pass_deadline();
    assert_eq!(world.state_of(3), Some(State::Current));
    // The restart was given up.
    assert_eq!(world.machine.deadline(), None);
    assert_eq!(world.highest, 3);

    // What served has a limit of its own.
    died(&mut world, 102);
    died(&mut world, 103);
    assert_eq!(world.finished, Some(Outcome::GivenUp));
}

#[test]
fn a_hup_looks_at_the_disk_though_nothing_serves() {
    let mut world = serving(settings());
    died(&mut world, 100);
    died(&mut world, 101);
    hup(&mut world);
    assert_eq!(due(&mut world), [(3, 0, DISK)]);
}

#[test]
fn what_served_is_no_answer_to_a_restart_that_waits_for_it() {
    let mut world = serving(settings());
    hup(&mut world);
    died(&mut world, 101);
    // Before it can be tried, nothing serves any more.
    hup(&mut world);
    died(&mut world, 100);
    world.pass_deadline();
    assert_eq!(due(&mut world), [(4, 0, DISK)]);
    let decisions = world.machine.history().decisions.iter();
    let requests: Vec<_> = decisions.map(|one| (one.generation, one.request)).collect();
    assert_eq!(requests, [(1, 0), (2, 1), (3, 0)]);
}

#[test]
fn a_crash_after_a_rollback_brings_back_what_was_rolled_back_to() {
    let mut world = serving(Settings {
        knobs: delayed(60),
        start_limit: NonZeroU32::new(1),
        ..settings()
    });
    hup(&mut world);
    world.pass_deadline();
    assert_eq!(world.state_of(2), Some(State::Current));
    died(&mut world, 101);
    assert_eq!(world.state_of(1), Some(State::Current));
    world.pass(10.0);
    assert_eq!(died(&mut world, 100), [(3, 0, of(1))]);
}

#[test]
fn what_served_and_what_it_has_replaced_is_kept_and_nothing_else() {
    let kept = |world: &World| -> Vec<u32> {
        let all = 1..=world.highest;
        all.filter(|number| world.machine.may_start_from(*number))
            .collect()
    };
    let mut world = serving(settings());
    assert_eq!(kept(&world), [1]);
    world.restart();
    assert_eq!(kept(&world), [1, 2]);
    world.pass_deadline();
    world.restart();
    world.pass_deadline();
    world.exit(Pid::from_raw(100), 0);
    world.exit(Pid::from_raw(101), 0);
    assert_eq!(kept(&world), [2, 3]);
    // A crash is not a restart: a rollback would still lead to the same.
    world.exit(Pid::from_raw(102), 9);
    world.pass_deadline();
    assert_eq!(kept(&world), [2, 4]);
    // Nor is a failed one.
    world.restart();
    world.exit_newest(256);
    assert_eq!(kept(&world), [2, 4]);
}
