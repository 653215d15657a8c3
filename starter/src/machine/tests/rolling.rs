//! Rolling restarts, rule by rule.

use super::*;
use crate::machine::history::Rolled;

/// Three workers that say when they serve, and one more process at most.
fn three() -> World {
    let mut world = World::new(Settings {
        proof: Proof::Told {
            within: Duration::from_secs(20),
        },
        ..rolling(1, with_workers(3))
    });
    for pid in world.living.iter().map(|one| one.pid).collect::<Vec<_>>() {
        world.become_ready(pid);
    }
    world
}

impl World {
    fn newest(&self) -> Pid {
        self.living.last().unwrap().pid
    }

    /// How many workers each generation has that have a slot.
    fn sizes(&self) -> Vec<(u32, usize)> {
        let generations = self.machine.generations();
        let sizes = generations.map(|one| (one.number, one.in_slots().count()));
        sizes.filter(|(_, count)| *count > 0).collect()
    }

    fn last_verdict(&self) -> Option<&Decision> {
        self.machine.history.decisions.back()
    }
}

#[test]
fn one_is_replaced_after_the_other_and_the_next_one_waits_for_the_exit_of_the_last() {
    let mut world = three();
    world.restart();
    assert_eq!(world.living.len(), 4, "one more process");
    for (place, old) in [100, 101, 102].into_iter().enumerate() {
        let old = Pid::from_raw(old);
        let newest = world.newest();
        world.become_ready(newest);
        let signalled = world.living.iter().filter(|one| one.is_signalled);
        let signalled: Vec<Pid> = signalled.map(|one| one.pid).collect();
        assert_eq!(
            signalled,
            [old],
            "its predecessor, and nobody else, at {place}"
        );
        assert_eq!(
            world.newest(),
            newest,
            "there is no room before that has gone"
        );
        world.exit(old, 0);
    }
    assert_eq!(world.sizes(), [(2, 3)]);
    assert_eq!(world.state_of(2), Some(State::Current));
    assert_eq!(world.last_verdict().unwrap().verdict, Verdict::Committed);
}

#[test]
fn the_first_one_that_fails_changes_nothing() {
    let mut world = three();
    world.restart();
    world.exit_newest(256);
    assert_eq!(world.sizes(), [(1, 3)]);
    assert_eq!(
        world.last_verdict().unwrap().rolled,
        Some(Rolled { done: 0, of: 3 })
    );
    assert_eq!(world.machine.deadline(), None, "it is not tried again");
    assert!(!world.machine.is_starting());
}

#[test]
fn a_failure_in_the_middle_stops_the_roll_and_the_next_restart_replaces_everything() {
    let mut world = three();
    world.restart();
    world.become_ready(world.newest());
    world.exit(Pid::from_raw(100), 0);
    world.exit_newest(256);
    assert_eq!(world.sizes(), [(1, 2), (2, 1)]);
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.state_of(2), Some(State::Partial));
    assert_eq!(
        world.last_verdict().unwrap().rolled,
        Some(Rolled { done: 1, of: 3 })
    );
    assert!(world.said("1 of 3 workers are of generation 2, the others of generation 1"));
    world.restart();
    for _ in 0..3 {
        world.become_ready(world.newest());
        let old = world.living.iter().find(|one| one.is_signalled).unwrap();
        world.exit(old.pid, 0);
    }
    assert_eq!(world.sizes(), [(3, 3)]);
    assert_eq!(world.state_of(3), Some(State::Current));
}

#[test]
fn a_worker_of_a_stopped_roll_that_dies_comes_back_as_what_serves() {
    let mut world = three();
    world.restart();
    world.become_ready(world.newest());
    world.exit(Pid::from_raw(100), 0);
    world.exit_newest(256);
    let partial = world.living.iter().find(|one| one.generation == 2).unwrap();
    world.exit(partial.pid, 9);
    world.pass_deadline();
    assert_eq!(world.sizes(), [(1, 3)]);
    assert_eq!(world.state_of(2), None);
}

#[test]
fn a_successor_that_dies_before_its_predecessor_is_told_leaves_that_alone() {
    let mut world = three();
    world.machine.set_knobs(delayed(5));
    world.restart();
    world.become_ready(world.newest());
    world.exit_newest(256);
    assert_eq!(world.sizes(), [(1, 3)]);
    world.pass(60.0);
    world.on(Event::DeadlinePassed);
    assert!(!world.living.iter().any(|one| one.is_signalled));
    assert_eq!(world.living.len(), 3);
}

#[test]
fn an_old_worker_that_dies_before_its_turn_is_replaced_from_what_it_was() {
    let mut world = three();
    world.restart();
    world.exit(Pid::from_raw(102), 256);
    world.pass_deadline();
    assert_eq!(world.sizes(), [(1, 3), (2, 1)]);
}

#[test]
fn a_rollback_in_the_middle_starts_what_served_in_every_slot() {
    let mut world = three();
    world.restart();
    world.become_ready(world.newest());
    world.exit(Pid::from_raw(100), 0);
    world.roll_back();
    world.pass_deadline();
    assert_eq!(world.machine.rolls_back_to(), Some(1));
    assert_eq!(
        world.state_of(2),
        Some(State::Partial),
        "it serves meanwhile"
    );
}

#[test]
fn an_abort_in_the_middle_leaves_everything_as_it_is() {
    let mut world = three();
    world.restart();
    world.become_ready(world.newest());
    world.exit(Pid::from_raw(100), 0);
    world.abort();
    world.exit_newest(0);
    assert_eq!(world.sizes(), [(1, 2), (2, 1)]);
    assert!(!world.machine.is_starting() && world.machine.planned.is_none());
}
