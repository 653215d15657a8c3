//! How far a start has come, and how long each step took.

use super::*;

fn seconds(duration: Option<Duration>) -> Option<f64> {
    duration.map(|one| one.as_secs_f64())
}

/// Of the last decision on this generation: spawn, exec, ready and drained in seconds.
fn durations(world: &World, generation: u32) -> [Option<f64>; 4] {
    let decision = world.machine.history.decision_on(generation).unwrap();
    let durations = decision.durations();
    [
        durations.spawn,
        durations.exec,
        durations.ready,
        durations.drained,
    ]
    .map(seconds)
}

fn replaces(world: &World, generation: u32) -> Option<u32> {
    world
        .machine
        .history
        .decision_on(generation)
        .unwrap()
        .replaces
}

/// Restarts with a worker that executes after 0.5 seconds.
fn restart_slowly(world: &mut World) -> Pid {
    world.execute = false;
    world.restart();
    let pid = world.living.last().unwrap().pid;
    world.pass(0.5);
    world.execute(pid);
    pid
}

#[test]
fn a_restart_knows_how_long_each_step_took() {
    let mut world = World::new(settings());
    world.pass_deadline();
    assert_eq!(
        durations(&world, 1),
        [Some(0.0), Some(0.0), Some(1.0), None]
    );
    assert_eq!(replaces(&world, 1), None);
    restart_slowly(&mut world);
    world.pass_deadline();
    let until_ready = [Some(0.0), Some(0.5), Some(0.5)];
    assert_eq!(durations(&world, 2)[..3], until_ready);
    assert_eq!(durations(&world, 2)[3], None);
    world.pass(3.0);
    world.exit(Pid::from_raw(100), 0);
    assert_eq!(durations(&world, 2)[..3], until_ready);
    assert_eq!(durations(&world, 2)[3], Some(3.0));
    assert_eq!(replaces(&world, 2), Some(1));
    // What happens later to its workers changes nothing.
    world.pass(60.0);
    world.exit(Pid::from_raw(101), 9);
    assert_eq!(durations(&world, 2)[3], Some(3.0));
    world.check();
}

#[test]
fn a_word_that_precedes_the_report_of_the_exec_tells_of_it_too() {
    let proof = Proof::Told {
        within: Duration::from_secs(60),
    };
    let mut world = World::with(
        Settings {
            proof,
            ..settings()
        },
        false,
    );
    world.pass(2.0);
    world.become_ready(Pid::from_raw(100));
    world.execute(Pid::from_raw(100));
    assert_eq!(
        durations(&world, 1),
        [Some(0.0), Some(2.0), Some(0.0), None]
    );
}

#[test]
fn a_failed_start_has_the_steps_that_it_took() {
    let mut world = World::new(settings());
    world.pass_deadline();
    let pid = restart_slowly(&mut world);
    world.exit(pid, 256);
    assert_eq!(durations(&world, 2), [Some(0.0), Some(0.5), None, None]);
    assert_eq!(replaces(&world, 2), Some(1));
    // There is no process, and the next try of the same restart replaces the same generation.
    world.fail_to_spawn = true;
    world.pass_deadline();
    assert_eq!(durations(&world, 3), [None; 4]);
    assert_eq!(replaces(&world, 3), Some(1));
    world.check();
}

#[test]
fn a_generation_that_nobody_reaches_has_the_same_steps() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    world.is_unreachable = true;
    world.pass_deadline();
    let decision = world.machine.history.decision_on(2).unwrap();
    assert!(matches!(decision.verdict, Verdict::Unreachable(_)));
    world.pass(2.0);
    world.exit(Pid::from_raw(100), 0);
    assert_eq!(durations(&world, 2)[2..], [Some(1.0), Some(2.0)]);
    assert_eq!(replaces(&world, 2), Some(1));
}

#[test]
fn a_restart_is_drained_when_all_older_generations_are_gone_and_not_by_a_stop() {
    let mut world = World::new(settings());
    world.pass_deadline();
    for _ in 0..2 {
        world.restart();
        world.pass_deadline();
    }
    world.pass(1.0);
    // Generation 2 has gone, and 1 drains on.
    world.exit(Pid::from_raw(101), 0);
    assert_eq!(
        (durations(&world, 2)[3], durations(&world, 3)[3]),
        (None, None)
    );
    world.pass(1.0);
    world.stop(Signal::SIGTERM);
    world.exit(Pid::from_raw(100), 0);
    assert_eq!(durations(&world, 3)[3], None);
}

#[test]
fn only_a_worker_whose_start_can_still_fail_is_on_trial() {
    let on_trial = |world: &World, pid| world.machine.is_on_trial(Pid::from_raw(pid));
    let mut world = World::new(Settings {
        knobs: delayed(5),
        ..settings()
    });
    assert!(on_trial(&world, 100));
    world.pass_deadline();
    assert!(!on_trial(&world, 100));
    world.restart();
    world.pass_deadline();
    // There is a way back until the other one is gone.
    assert!(on_trial(&world, 101) && !on_trial(&world, 100));
    world.pass_deadline();
    world.exit(Pid::from_raw(100), 0);
    assert!(!on_trial(&world, 101));
    let proof = Proof::Told {
        within: Duration::from_secs(60),
    };
    let mut world = World::new(Settings {
        proof,
        ..settings()
    });
    world.pass_deadline();
    let failed: Vec<Pid> = world.machine.failed_workers().collect();
    assert_eq!(failed, [Pid::from_raw(100)]);
    assert!(!on_trial(&world, 100));
}
