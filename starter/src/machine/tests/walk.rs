//! Every short history of events, and some long ones.

use super::*;
use std::collections::HashMap;

#[derive(Debug, Clone, Copy)]
enum Step {
    OldestExits,
    SecondNewestExits,
    NewestExits,
    NewestExitsWithSuccess,
    NewestExecutes,
    NewestCannotExecute,
    /// Where readiness is told.
    NewestIsReady,
    NewestStopsByItself,
    /// Where it is watched.
    CurrentIsUnwell,
    CurrentIsWellAgain,
    CheckSucceeds,
    CheckFails,
    /// From now on, or no longer.
    SpawningFails,
    TimePasses,
    Restart,
    /// For a share of what comes.
    RestartAsCanary,
    Promote,
    CanaryIsUnwell,
    RollBack,
    Abort,
    OneMore,
    OneLess,
    Stop,
    StrangersAct,
    /// There and back.
    KnobsChange,
    /// A connection comes in, as the kernel selects.
    ClientConnects,
    /// One whose handshake began before the switch.
    OldClientConnects,
    WorkersAccept,
    /// From now on, or no longer.
    SelectingFails,
}

/// Every step but the rollback by hand and the abort, which have walks of their own: together they would take too long.
const STEPS: [Step; 18] = [
    Step::OldestExits,
    Step::SecondNewestExits,
    Step::NewestExits,
    Step::NewestExitsWithSuccess,
    Step::NewestExecutes,
    Step::NewestCannotExecute,
    Step::NewestIsReady,
    Step::NewestStopsByItself,
    Step::CurrentIsUnwell,
    Step::CurrentIsWellAgain,
    Step::CheckSucceeds,
    Step::CheckFails,
    Step::SpawningFails,
    Step::TimePasses,
    Step::Restart,
    Step::Stop,
    Step::StrangersAct,
    Step::KnobsChange,
];

/// What matters to a rollback and to an abort.
const ROLLBACK_STEPS: [Step; 12] = [
    Step::RollBack,
    Step::Abort,
    Step::Restart,
    Step::TimePasses,
    Step::OldestExits,
    Step::NewestExits,
    Step::NewestIsReady,
    Step::NewestStopsByItself,
    Step::CheckSucceeds,
    Step::CheckFails,
    Step::SpawningFails,
    Step::Stop,
];

/// What matters to a rolling restart and to another number of workers.
const ROLLING_STEPS: [Step; 13] = [
    Step::Restart,
    Step::TimePasses,
    Step::OldestExits,
    Step::SecondNewestExits,
    Step::NewestExits,
    Step::NewestIsReady,
    Step::NewestStopsByItself,
    Step::SpawningFails,
    Step::OneMore,
    Step::OneLess,
    Step::RollBack,
    Step::Abort,
    Step::Stop,
];

/// What matters to lanes.
const SWITCH_STEPS: [Step; 14] = [
    Step::Restart,
    Step::TimePasses,
    Step::ClientConnects,
    Step::OldClientConnects,
    Step::WorkersAccept,
    Step::SelectingFails,
    Step::OldestExits,
    Step::SecondNewestExits,
    Step::NewestExits,
    Step::NewestIsReady,
    Step::NewestStopsByItself,
    Step::CurrentIsUnwell,
    Step::SpawningFails,
    Step::RollBack,
];

/// What matters to shards.
const SHARD_STEPS: [Step; 13] = [
    Step::Restart,
    Step::TimePasses,
    Step::ClientConnects,
    Step::OldClientConnects,
    Step::WorkersAccept,
    Step::SelectingFails,
    Step::OldestExits,
    Step::SecondNewestExits,
    Step::NewestExits,
    Step::NewestIsReady,
    Step::SpawningFails,
    Step::OneMore,
    Step::OneLess,
];

/// What matters to a canary.
const CANARY_STEPS: [Step; 16] = [
    Step::RestartAsCanary,
    Step::Promote,
    Step::TimePasses,
    Step::Restart,
    Step::RollBack,
    Step::Abort,
    Step::NewestExits,
    Step::OldestExits,
    Step::SecondNewestExits,
    Step::NewestIsReady,
    Step::NewestStopsByItself,
    Step::CanaryIsUnwell,
    Step::CurrentIsUnwell,
    Step::SelectingFails,
    Step::ClientConnects,
    Step::WorkersAccept,
];

const OTHER_KNOBS: Knobs = Knobs {
    kill_old_delay: Duration::from_secs(4),
    auto_restart: Some(Duration::from_secs(3)),
};

impl World {
    /// False where the step cannot happen or is the same as another.
    fn take(&mut self, step: Step) -> bool {
        let unexecuted = self
            .living
            .iter()
            .rfind(|one| one.executed_at.is_none())
            .map(|one| one.pid);
        match step {
            Step::OldestExits if self.living.len() < 2 => return false,
            Step::OldestExits => self.exit(self.living[0].pid, 0),
            Step::SecondNewestExits if self.living.len() < 3 => return false,
            Step::SecondNewestExits => self.exit(self.living[self.living.len() - 2].pid, 256),
            Step::NewestExits if self.living.is_empty() => return false,
            Step::NewestExits => self.exit_newest(256),
            // Once something has served, it is an exit as any other.
            Step::NewestExitsWithSuccess if self.living.is_empty() || self.machine.has_served() => {
                return false;
            }
            Step::NewestExitsWithSuccess => self.exit_newest(0),
            Step::NewestExecutes | Step::NewestCannotExecute => match (step, unexecuted) {
                (_, None) => return false,
                (Step::NewestExecutes, Some(pid)) => self.execute(pid),
                (_, Some(pid)) => self.fail_to_execute(pid),
            },
            Step::NewestIsReady => {
                let unready = self.living.iter().rfind(|one| !one.is_ready);
                match unready.map(|one| one.pid).filter(|_| self.is_told()) {
                    Some(pid) => self.become_ready(pid),
                    None => return false,
                }
            }
            Step::NewestStopsByItself => {
                let running = self.living.iter().rfind(|one| !one.is_stopping);
                match running.map(|one| one.pid).filter(|_| self.is_told()) {
                    Some(pid) => self.stop_by_itself(pid),
                    None => return false,
                }
            }
            Step::CurrentIsUnwell if !self.is_watched() => return false,
            Step::CurrentIsUnwell => self.become_unwell(),
            Step::CurrentIsWellAgain if self.unwell.is_none() || !self.is_watched() => {
                return false;
            }
            Step::CurrentIsWellAgain => self.become_well(),
            Step::CheckSucceeds | Step::CheckFails if !self.is_checking => return false,
            Step::CheckSucceeds => self.end_check(true),
            Step::CheckFails => self.end_check(false),
            Step::SpawningFails if self.stopping => return false,
            Step::SpawningFails => self.fail_to_spawn ^= true,
            Step::TimePasses => return self.pass_time(unexecuted.is_some()),
            Step::Restart if self.stopping => return false,
            Step::Restart => self.restart(),
            Step::RestartAsCanary if self.stopping => return false,
            Step::RestartAsCanary => self.restart_as_canary(None),
            Step::Promote if self.stopping => return false,
            Step::Promote => self.promote(),
            Step::CanaryIsUnwell if !self.is_watched() => return false,
            Step::CanaryIsUnwell => return self.canary_becomes_unwell(),
            Step::RollBack if self.stopping => return false,
            Step::RollBack => self.roll_back(),
            Step::Abort if self.stopping => return false,
            Step::Abort => self.abort(),
            Step::OneMore | Step::OneLess if self.stopping => return false,
            Step::OneMore if self.machine.workers() > 2 => return false,
            Step::OneMore => self.scale(Scale::OneMore),
            Step::OneLess if self.machine.workers() == 1 => return false,
            Step::OneLess => self.scale(Scale::OneLess),
            Step::Stop if self.stopping => return false,
            Step::Stop => self.stop(Signal::SIGTERM),
            Step::StrangersAct => {
                self.strangers_act();
                return false;
            }
            Step::KnobsChange if self.stopping => return false,
            Step::KnobsChange => self.change_knobs(),
            Step::ClientConnects => {
                let active = self.active();
                match active.iter().find(|one| !self.lanes.waiting.contains(one)) {
                    Some(socket) => self.connect(*socket),
                    None => return false,
                }
            }
            Step::OldClientConnects => {
                let active = self.active();
                let mut others = (0..self.count_sockets()).filter(|one| !active.contains(one));
                match others.find(|one| !self.lanes.waiting.contains(one)) {
                    Some(socket) => self.connect(socket),
                    None => return false,
                }
            }
            Step::WorkersAccept => return self.accept_all(),
            Step::SelectingFails => self.lanes.refuses ^= true,
        }
        true
    }

    fn become_all_ready(&mut self) {
        while let Some(one) = self.living.iter().find(|one| !one.is_ready) {
            self.become_ready(one.pid);
        }
    }

    /// Whether a generation is current and goes on being asked.
    fn is_watched(&self) -> bool {
        let is_watching = self.machine.settings.watch.is_some() && !self.stopping;
        is_watching && self.machine.current().is_some()
    }

    /// Until the next deadline, or without one as long as a program takes to start that takes long.
    fn pass_time(&mut self, is_executing: bool) -> bool {
        if !self.pass_deadline() {
            self.pass(60.0);
            return is_executing;
        }
        let due = self
            .machine
            .deadline()
            .is_some_and(|deadline| deadline <= self.now);
        assert!(!due, "a deadline that stays due would be a busy loop");
        true
    }

    fn strangers_act(&mut self) {
        let before = self.machine.clone();
        let stranger = Pid::from_raw(9);
        let generation = self.highest;
        for event in [
            // Nobody has asked for them: between two steps all that was asked for is answered.
            Event::Spawned {
                generation,
                slot: 0,
                pid: stranger,
            },
            Event::SpawnFailed {
                generation,
                slot: 0,
                cause: cannot_execute(),
            },
            Event::Unwell {
                generation: generation + 1,
                since: Moment::of_test(Duration::ZERO),
                known: "hello".into(),
            },
            Event::Well {
                generation: generation + 1,
            },
            Event::Executed(stranger),
            Event::Ready(stranger),
            Event::Stopping(stranger),
            Event::Text {
                pid: stranger,
                text: "hello".into(),
            },
            Event::NotYetReady {
                pid: stranger,
                known: "hello".into(),
            },
            Event::StartExtended {
                pid: stranger,
                until: self.now,
            },
            Event::NotExecuted {
                pid: stranger,
                cause: cannot_execute(),
            },
            Event::Exited {
                pid: stranger,
                status: 0,
            },
            Event::Looked {
                sockets: Sockets::one(99),
                waiting: 1,
            },
            Event::Stranded { socket: 99 },
        ] {
            let actions = self.machine.on(event, self.now);
            assert_eq!(actions, [], "a stranger is no reason to act");
        }
        assert_eq!(before, self.machine, "a stranger changes nothing");
    }

    fn change_knobs(&mut self) {
        let knobs = match self.machine.settings.knobs == OTHER_KNOBS {
            true => delayed(0),
            false => OTHER_KNOBS,
        };
        self.machine.set_knobs(knobs);
    }

    /// Told to stop, it ends when the last worker has.
    fn stops_in_the_end(mut self) {
        if self.finished.is_none() {
            if !self.stopping {
                self.stop(Signal::SIGTERM);
            }
            while !self.living.is_empty() {
                self.exit_newest(0);
                self.check_promises();
            }
            assert!(
                self.finished.is_some(),
                "told to stop, and no worker is left"
            );
        }
    }
}

/// Walks every history of so many steps, but no way twice that starts at the same point.
struct Walk {
    steps: &'static [Step],
    /// Every point that was visited, with the number of steps that were walked from there.
    visited: HashMap<String, usize>,
    history: Vec<Step>,
}

impl Walk {
    fn visit(&mut self, world: &World, length: usize) {
        let snapshot = written(&world.machine);
        let World {
            now,
            living,
            fail_to_spawn,
            owed,
            served_last,
            restarts,
            lanes,
            ..
        } = world;
        let point = format!(
            "{snapshot}{now:?}{living:?}{fail_to_spawn}{owed}{served_last:?}{restarts:?}{lanes:?}"
        );
        let walked = self.visited.get(&point);
        if walked.is_some_and(|walked| *walked >= length) {
            return;
        }
        if walked.is_none() {
            self.unless_it_panics(|| {
                world.check_promises();
                world.check_snapshot(&snapshot);
                world.clone().stops_in_the_end();
            });
        }
        self.visited.insert(point, length);
        if length > 0 && world.finished.is_none() {
            for step in self.steps {
                self.take(*step, world, length - 1);
            }
        }
    }

    fn take(&mut self, step: Step, world: &World, length: usize) {
        let mut next = world.clone();
        next.said.clear();
        self.history.push(step);
        if self.unless_it_panics(|| next.take(step)) {
            self.visit(&next, length);
        }
        self.history.pop();
    }

    fn unless_it_panics<T>(&self, promise: impl FnOnce() -> T) -> T {
        let kept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(promise));
        kept.unwrap_or_else(|_| panic!("after {:?}", self.history))
    }
}

/// From each of these on, with so many steps.
fn walk_all(beginnings: Vec<(World, usize)>) {
    walk_by(&STEPS, beginnings);
}

fn walk_by(steps: &'static [Step], beginnings: Vec<(World, usize)>) {
    for (world, length) in beginnings {
        let mut walk = Walk {
            steps,
            visited: HashMap::new(),
            history: Vec::new(),
        };
        walk.visit(&world, length);
        let visited = walk.visited.len();
        assert!(visited > 500, "only {visited} points were visited");
    }
}

fn limited(limit: u32, settings: Settings) -> Settings {
    Settings {
        start_limit: NonZeroU32::new(limit),
        first_start_limit: NonZeroU32::new(limit),
        ..settings
    }
}

fn slow(settings: Settings) -> Settings {
    Settings {
        knobs: delayed(5),
        ..settings
    }
}

/// Where workers say that they are ready.
fn told(settings: Settings) -> Settings {
    Settings {
        proof: Proof::Told {
            within: Duration::from_secs(20),
        },
        ..settings
    }
}

/// Where the current generation goes on being asked.
fn watched(settings: Settings) -> Settings {
    Settings {
        watch: Some(Duration::from_secs(3)),
        ..told(settings)
    }
}

/// Where restarts are checked.
fn checked(settings: Settings) -> Settings {
    Settings {
        check: Some(Duration::from_secs(20)),
        ..settings
    }
}

/// Where old workers are killed, because they take too long or because there are too many of them.
fn impatient(settings: Settings) -> Settings {
    Settings {
        kill_old_timeout: Some(Duration::from_secs(8)),
        max_old_generations: NonZeroU32::new(1),
        ..settings
    }
}

/// Where what serves stops before a restart starts anything.
fn stop_first(settings: Settings) -> Settings {
    Settings {
        replace: Replace::StopFirst,
        ..settings
    }
}

/// Where nobody reaches a listener.
fn unreachable(world: World) -> World {
    World {
        is_unreachable: true,
        ..world
    }
}

/// Where workers execute the program only when it is a step of the history.
fn slow_to_execute(settings: Settings) -> World {
    World::with(settings, false)
}

/// Where the first generation has committed.
fn serving(settings: Settings) -> World {
    let mut world = World::new(settings);
    world.pass_deadline();
    world
}

/// Where the second one has.
fn restarted(settings: Settings) -> World {
    let mut world = serving(settings);
    world.restart();
    if world.is_checking {
        world.end_check(true);
    }
    world.pass_deadline();
    world
}

/// The same, and the delay before the first one is signalled is over before a replacement is proved.
fn retiring_soon(settings: Settings) -> World {
    let mut world = serving(Settings {
        knobs: Knobs {
            kill_old_delay: settings.interval / 2,
            auto_restart: None,
        },
        ..settings
    });
    world.restart();
    world.pass_deadline();
    world
}

/// Where the second generation has committed by what it has said, and of the first one, which is not signalled yet, one
/// worker is proved and the other is not.
fn retiring_unevenly(settings: Settings) -> World {
    let mut world = World::new(settings);
    world.become_all_ready();
    world.exit(world.living[0].pid, 256);
    world.pass_deadline();
    let unready = world.living.last().unwrap().pid;
    world.restart();
    for pid in world.living[2..]
        .iter()
        .map(|one| one.pid)
        .collect::<Vec<_>>()
    {
        world.become_ready(pid);
    }
    assert_eq!(world.state_of(2), Some(State::Current));
    assert!(
        world
            .living
            .iter()
            .any(|one| one.pid == unready && !one.is_ready)
    );
    world
}

#[test]
fn every_short_history_of_one_worker_keeps_the_promises() {
    let restarts_by_itself = Settings {
        knobs: Knobs {
            auto_restart: Some(Duration::from_secs(3)),
            ..delayed(5)
        },
        ..settings()
    };
    let kills = Settings {
        stop_timeout: Some(Duration::from_secs(5)),
        ..limited(1, settings())
    };
    walk_all(vec![
        (World::new(settings()), 7),
        (slow_to_execute(settings()), 6),
        (World::new(slow(settings())), 7),
        (slow_to_execute(slow(settings())), 6),
        (World::new(limited(2, slow(settings()))), 6),
        (World::new(kills), 6),
        (World::new(restarts_by_itself), 6),
        (unreachable(World::new(slow(settings()))), 6),
        (World::new(impatient(settings())), 6),
        (World::new(unpinned(slow(settings()))), 6),
    ]);
}

#[test]
fn every_short_history_of_a_worker_that_says_when_it_is_ready_keeps_the_promises() {
    walk_all(vec![
        (World::new(told(settings())), 6),
        (slow_to_execute(told(settings())), 5),
        (World::new(told(slow(settings()))), 5),
        (World::new(told(impatient(slow(settings())))), 5),
        (World::new(told(limited(2, settings()))), 5),
    ]);
}

#[test]
fn every_short_history_of_a_watched_generation_keeps_the_promises() {
    walk_all(vec![
        (World::new(watched(settings())), 6),
        (World::new(watched(slow(settings()))), 5),
        (World::new(watched(impatient(slow(settings())))), 5),
        (World::new(watched(limited(2, slow(settings())))), 5),
        (retiring_unevenly(watched(slow(with_workers(2)))), 4),
    ]);
}

#[test]
fn every_short_history_with_a_check_keeps_the_promises() {
    let timed = Settings {
        knobs: Knobs {
            auto_restart: Some(Duration::from_secs(3)),
            ..delayed(5)
        },
        ..settings()
    };
    walk_all(vec![
        (serving(checked(settings())), 6),
        (serving(checked(unpinned(settings()))), 5),
        (serving(checked(timed)), 5),
        (serving(checked(slow(settings()))), 5),
        (serving(checked(limited(1, settings()))), 6),
        (World::new(checked(settings())), 6),
    ]);
}

#[test]
fn every_short_history_with_a_rollback_keeps_the_promises() {
    walk_by(
        &ROLLBACK_STEPS,
        vec![
            (restarted(settings()), 5),
            (restarted(slow(settings())), 5),
            (restarted(checked(slow(settings()))), 5),
            (restarted(unpinned(settings())), 6),
            (restarted(impatient(settings())), 5),
            (restarted(limited(1, settings())), 6),
            (World::new(told(slow(settings()))), 5),
            (retiring_soon(with_workers(2)), 4),
            (unreachable(restarted(slow(settings()))), 5),
            (restarted(stop_first(settings())), 6),
            (restarted(stop_first(limited(1, settings()))), 6),
        ],
    );
}

#[test]
fn every_short_history_with_a_stop_first_keeps_the_promises() {
    let killed = Settings {
        kill_old_timeout: Some(Duration::from_secs(8)),
        ..settings()
    };
    let timed = Settings {
        knobs: Knobs {
            auto_restart: Some(Duration::from_secs(3)),
            ..delayed(0)
        },
        ..settings()
    };
    let executing_slowly = World {
        execute: false,
        ..serving(stop_first(settings()))
    };
    let mut told_and_serving = World::new(stop_first(told(settings())));
    told_and_serving.become_ready(Pid::from_raw(100));
    walk_all(vec![
        (World::new(stop_first(settings())), 6),
        (serving(stop_first(settings())), 8),
        (serving(stop_first(killed)), 7),
        (serving(stop_first(timed)), 6),
        (serving(stop_first(limited(1, settings()))), 8),
        (serving(stop_first(limited(2, settings()))), 8),
        (serving(stop_first(unpinned(settings()))), 8),
        (serving(stop_first(checked(settings()))), 7),
        (executing_slowly, 6),
        (told_and_serving, 7),
        (World::new(stop_first(told(settings()))), 7),
        (serving(stop_first(with_workers(2))), 6),
        (World::new(stop_first(told(with_workers(2)))), 5),
    ]);
}

#[test]
fn every_short_history_of_two_workers_keeps_the_promises() {
    let hasty = Settings {
        interval: Duration::ZERO,
        ..limited(1, with_workers(2))
    };
    let serving_slowly = World {
        execute: false,
        ..serving(slow(with_workers(2)))
    };
    walk_all(vec![
        (slow_to_execute(with_workers(2)), 4),
        (serving_slowly, 5),
        (retiring_soon(with_workers(2)), 4),
        (World::new(with_workers(2)), 5),
        (World::new(unpinned(with_workers(2))), 5),
        (serving(limited(2, slow(with_workers(2)))), 5),
        (unreachable(World::new(slow(with_workers(2)))), 5),
        (World::new(hasty), 5),
        (World::new(told(with_workers(2))), 5),
        (World::new(told(impatient(slow(with_workers(2))))), 4),
    ]);
}

#[test]
fn every_short_history_of_a_rolling_restart_keeps_the_promises() {
    let delayed = slow(with_workers(2));
    let mut half = World::new(rolling(1, told(with_workers(2))));
    half.become_all_ready();
    half.restart();
    let newest = half.living.last().unwrap().pid;
    half.become_ready(newest);
    walk_by(
        &ROLLING_STEPS,
        vec![
            (serving(rolling(1, settings())), 6),
            (serving(rolling(1, with_workers(2))), 5),
            (serving(rolling(2, with_workers(3))), 4),
            (serving(rolling(1, delayed.clone())), 4),
            (serving(rolling(1, limited(1, delayed))), 4),
            (serving(rolling(2, unpinned(with_workers(2)))), 4),
            (half, 5),
            (serving(parallel(1, rolling(2, with_workers(3)))), 4),
            (World::new(rolling(1, told(with_workers(2)))), 4),
        ],
    );
}

#[test]
fn every_short_history_of_another_number_of_workers_keeps_the_promises() {
    walk_by(
        &ROLLING_STEPS,
        vec![
            (World::new(with_workers(2)), 4),
            (serving(slow(with_workers(2))), 4),
            (World::new(parallel(1, with_workers(2))), 4),
            (World::new(parallel(2, told(with_workers(3)))), 4),
            (serving(stop_first(with_workers(2))), 4),
            (serving(limited(1, with_workers(1))), 5),
        ],
    );
}

#[test]
fn every_short_history_with_lanes_keeps_the_promises() {
    let two = |settings| switch::switching(2, settings);
    let three = |settings| switch::switching(3, settings);
    walk_by(
        &SWITCH_STEPS,
        vec![
            (serving(two(settings())), 5),
            (restarted(two(settings())), 5),
            (restarted(two(slow(settings()))), 5),
            (restarted(three(settings())), 4),
            (restarted(two(unpinned(slow(settings())))), 4),
            (restarted(two(impatient(settings()))), 4),
            (restarted(three(slow(with_workers(2)))), 4),
            (World::new(two(watched(slow(settings())))), 5),
            (serving(two(with_workers(2))), 4),
        ],
    );
}

#[test]
fn every_short_history_with_shards_keeps_the_promises() {
    let two = |settings| switch::switching(2, switch::sharded(settings));
    walk_by(
        &SHARD_STEPS,
        vec![
            (serving(two(with_workers(2))), 5),
            (restarted(two(with_workers(2))), 4),
            (serving(two(slow(with_workers(3)))), 4),
            (restarted(two(limited(1, slow(with_workers(2))))), 4),
            (World::new(two(told(with_workers(2)))), 4),
        ],
    );
}

#[test]
fn every_short_history_of_a_canary_keeps_the_promises() {
    let two = |settings| switch::switching(2, settings);
    let three = |settings| switch::switching(3, settings);
    walk_by(
        &CANARY_STEPS,
        vec![
            (canary::serving(two(settings()), None), 5),
            (canary::serving(three(settings()), Some(8)), 4),
            (canary::serving(two(slow(with_workers(2))), None), 4),
            (canary::serving(two(watched(slow(settings()))), Some(8)), 4),
            (canary::serving(two(checked(settings())), None), 4),
            (
                canary::serving(two(switch::sharded(with_workers(2))), None),
                4,
            ),
            (restarted(three(slow(settings()))), 4),
            (serving(two(limited(1, settings()))), 4),
        ],
    );
}

/// As a history of many steps cannot be one of all, these are chosen by a generator that always chooses the same.
#[test]
fn some_long_histories_keep_the_promises() {
    let kinds = [
        limited(3, slow(with_workers(2))),
        with_workers(3),
        slow(settings()),
        told(impatient(with_workers(2))),
        watched(slow(with_workers(2))),
        stop_first(with_workers(2)),
        stop_first(limited(3, settings())),
        stop_first(checked(settings())),
        rolling(1, slow(with_workers(3))),
        parallel(1, rolling(2, told(with_workers(3)))),
        parallel(1, impatient(with_workers(3))),
        switch::switching(2, slow(settings())),
        switch::switching(3, watched(with_workers(2))),
        switch::switching(2, switch::sharded(slow(with_workers(3)))),
    ];
    let mut state: u64 = 1;
    let mut chosen = |from: usize| {
        // Knuth's constants of a linear congruential generator modulo 2^64: the high bits are the good ones.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % from
    };
    for number in 0..88 {
        let mut world = World::with(kinds[number % kinds.len()].clone(), number % 2 == 0);
        let mut history = Vec::new();
        for _ in 0..60 {
            let step = match chosen(STEPS.len() + 10) {
                0 => Step::RollBack,
                1 => Step::Abort,
                2 => Step::OneMore,
                3 => Step::OneLess,
                4 => Step::ClientConnects,
                5 => Step::OldClientConnects,
                6 => Step::WorkersAccept,
                7 => Step::RestartAsCanary,
                8 => Step::Promote,
                9 => Step::CanaryIsUnwell,
                other => STEPS[other - 10],
            };
            // Otherwise most of them were short again.
            if matches!(step, Step::Stop) || world.finished.is_some() {
                continue;
            }
            history.push(step);
            let kept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                world.take(step);
                world.check();
            }));
            assert!(kept.is_ok(), "after {history:?}");
        }
        world.stops_in_the_end();
    }
}
