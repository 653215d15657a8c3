//! Another number of workers, rule by rule.

use super::*;

fn scaling(world: &World) -> &Scaling {
    world.machine.history.scaling.as_ref().unwrap()
}

#[test]
fn more_workers_are_started_at_once_and_it_is_done_when_they_serve() {
    let mut world = World::new(with_workers(2));
    world.pass_deadline();
    world.scale(Scale::To(4));
    assert_eq!(world.living.len(), 4);
    assert!(scaling(&world).is_pending());
    world.pass_deadline();
    assert!(matches!(scaling(&world).result, Some(Ok(_))));
    let slots: Vec<usize> = world.living.iter().map(|one| one.slot).collect();
    assert_eq!(slots, [0, 1, 2, 3]);
}

#[test]
fn fewer_workers_are_told_to_stop_from_the_end() {
    let mut world = World::new(with_workers(3));
    world.pass_deadline();
    world.scale(Scale::To(1));
    let signalled = world.living.iter().filter(|one| one.is_signalled);
    let signalled: Vec<usize> = signalled.map(|one| one.slot).collect();
    assert_eq!(signalled, [1, 2]);
    assert!(matches!(scaling(&world).result, Some(Ok(_))));
    // There and back, while they drain.
    world.scale(Scale::To(2));
    assert_eq!(world.living.len(), 4);
    world.exit(Pid::from_raw(101), 0);
    world.exit(Pid::from_raw(102), 0);
    world.pass_deadline();
    assert_eq!(world.living.len(), 2);
    assert!(!world.said("died unexpectedly"));
}

#[test]
fn the_number_outlives_a_restart_and_one_that_is_under_way_gets_it() {
    let mut world = World::new(with_workers(1));
    world.pass_deadline();
    world.restart();
    world.scale(Scale::OneMore);
    assert_eq!(world.living.len(), 4, "two of each");
    world.pass_deadline();
    let old: Vec<Pid> = world
        .living
        .iter()
        .filter(|one| one.is_signalled)
        .map(|one| one.pid)
        .collect();
    for pid in old {
        world.exit(pid, 0);
    }
    world.restart();
    assert_eq!(world.living.len(), 4);
}

#[test]
fn a_worker_that_fails_is_the_answer_and_it_is_tried_again() {
    let mut world = World::new(with_workers(1));
    world.pass_deadline();
    world.scale(Scale::OneMore);
    world.exit_newest(256);
    assert!(matches!(scaling(&world).result, Some(Err(_))));
    assert!(world.pass_deadline());
    assert_eq!(world.living.len(), 2);
}

#[test]
fn no_worker_and_too_many_are_refused() {
    let mut world = World::new(with_workers(1));
    world.pass_deadline();
    for (scale, cause) in [
        (Scale::OneLess, "one worker is the least"),
        (Scale::To(0), "one worker is the least"),
        (Scale::To(10), "10 workers are more than"),
    ] {
        world.scale(scale);
        let Some(Err(failure)) = &scaling(&world).result else {
            panic!("{scale:?} is not refused");
        };
        assert!(failure.cause.contains(cause), "{failure:?}");
        assert!(world.said("cannot scale: "));
    }
    assert_eq!(world.living.len(), 1);
}

#[test]
fn only_so_many_start_at_a_time() {
    let mut world = World::new(parallel(2, with_workers(5)));
    for expected in [2, 4, 5] {
        assert_eq!(world.living.len(), expected);
        world.pass_deadline();
    }
    assert_eq!(world.state_of(1), Some(State::Current));
}
