//! The machine is driven by hand: first single rules, then every short history of events.

use super::*;

fn settings() -> Settings {
    Settings {
        workers: 1,
        interval: Duration::from_secs(1),
        signal_on_hup: Signal::SIGUSR1,
        signal_on_term: Signal::SIGUSR2,
        stop_timeout: None,
        start_limit: None,
        first_start_limit: None,
        knobs: Knobs {
            kill_old_delay: Duration::ZERO,
            auto_restart: None,
        },
    }
}

/// With so many seconds of `--kill-old-delay`.
fn delayed(seconds: u64) -> Knobs {
    Knobs {
        kill_old_delay: Duration::from_secs(seconds),
        auto_restart: None,
    }
}

/// The machine and the processes that it believes in, with the invariants checked at every step.
#[derive(Clone)]
struct World {
    machine: Generations,
    now: Instant,
    /// Living workers with the number of their generation, oldest first, and whether a restart signalled them.
    living: Vec<(Pid, u32, bool)>,
    next_pid: i32,
    /// Whether new workers run the program at once, or what they do is left to the test.
    execute: bool,
    highest: u32,
    started: u32,
    said: Vec<Notice>,
    finished: Option<Outcome>,
    stopping: bool,
    /// A restart that was asked for and that no start since has served.
    owed: bool,
}

impl World {
    fn new(settings: Settings) -> World {
        World::with(settings, true)
    }

    fn with(settings: Settings, execute: bool) -> World {
        let now = Instant::now();
        let (machine, actions) = Generations::start(settings, now);
        let mut world = World {
            machine,
            now,
            living: Vec::new(),
            next_pid: 100,
            execute,
            highest: 0,
            started: 0,
            said: Vec::new(),
            finished: None,
            stopping: false,
            owed: false,
        };
        world.perform(actions);
        world.check();
        world
    }

    fn on(&mut self, event: Event) {
        let actions = self.machine.on(event, self.now);
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Spawn { generation } => {
                    assert!(!self.stopping, "a worker is started while stopping");
                    if generation > self.highest {
                        assert_eq!(generation, self.highest + 1, "numbers follow each other");
                        self.highest = generation;
                        self.owed = false;
                    } else {
                        assert!(
                            self.machine.settings.workers > 1,
                            "number {generation} was used before"
                        );
                    }
                    self.started += 1;
                    let pid = Pid::from_raw(self.next_pid);
                    self.next_pid += 1;
                    self.living.push((pid, generation, false));
                    self.on(Event::Spawned { generation, pid });
                    if self.execute {
                        self.on(Event::Executed(pid));
                    }
                }
                Action::Signal { pid, signal } => {
                    let worker = self.living.iter_mut().find(|one| one.0 == pid);
                    let Some((_, number, signalled)) = worker else {
                        panic!("{signal} to the dead {pid}");
                    };
                    if signal == self.machine.settings.signal_on_hup {
                        assert!(!*signalled, "{pid} is signalled a second time by a restart");
                        *signalled = true;
                        let number = *number;
                        let newer_serves = self.machine.generations.iter().any(|generation| {
                            generation.number > number
                                && generation.state == State::Current
                                && !generation.workers.is_empty()
                        });
                        assert!(newer_serves, "{pid} is stopped though nothing newer serves");
                    }
                }
                Action::SaveStatus | Action::Serving => {}
                Action::Say(notice) => self.said.push(notice),
                Action::Finish(outcome) => {
                    assert_eq!(self.finished, None, "it finishes once");
                    assert!(self.living.is_empty(), "it finishes while workers live");
                    self.finished = Some(outcome);
                }
            }
        }
    }

    fn spawn_time(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    /// Time passes until the deadline, and it is told.
    fn pass_deadline(&mut self) -> bool {
        let Some(deadline) = self.machine.deadline() else {
            return false;
        };
        self.now = self.now.max(deadline);
        self.on(Event::DeadlinePassed);
        true
    }

    fn exit(&mut self, pid: Pid, status: i32) {
        self.living.retain(|one| one.0 != pid);
        self.on(Event::Exited { pid, status });
    }

    fn exit_newest(&mut self, status: i32) {
        let pid = self.living.last().unwrap().0;
        self.exit(pid, status);
    }

    fn restart(&mut self) {
        self.owed = !self.stopping;
        self.on(Event::Restart);
    }

    fn stop(&mut self, signal: Signal) {
        self.stopping = true;
        self.owed = false;
        self.on(Event::Stop(signal));
    }

    fn pids(&self) -> Vec<i32> {
        self.living.iter().map(|one| one.0.as_raw()).collect()
    }

    fn state_of(&self, number: u32) -> Option<&'static str> {
        self.machine
            .generations()
            .find(|one| one.number == number)
            .map(|one| match one.state {
                State::Starting { .. } => "starting",
                State::Current => "current",
                State::Retiring { .. } => "retiring",
                State::Old => "old",
            })
    }

    fn said(&self, text: &str) -> bool {
        self.said
            .iter()
            .any(|notice| notice.to_string().contains(text))
    }

    /// What holds after every event of every history.
    fn check(&self) {
        let mut known: Vec<Pid> = self.machine.all_pids();
        let mut living: Vec<Pid> = self.living.iter().map(|one| one.0).collect();
        known.sort_unstable_by_key(|pid| pid.as_raw());
        living.sort_unstable_by_key(|pid| pid.as_raw());
        assert_eq!(known, living, "no worker is lost, and none is invented");
        let count = |wanted: fn(&State) -> bool| {
            self.machine
                .generations
                .iter()
                .filter(|one| wanted(&one.state))
                .count()
        };
        if let Phase::Serving = self.machine.phase {
            assert!(
                count(|state| *state == State::Current) <= 1,
                "one generation is current"
            );
            let starting = count(|state| matches!(state, State::Starting { .. }));
            assert!(starting <= 1, "one generation starts at a time");
            let hope = starting > 0
                || self.machine.planned.is_some()
                || count(|state| *state == State::Current) > 0;
            assert!(hope, "nothing serves and nothing will");
            assert!(
                !self.owed || starting > 0 || self.machine.planned.is_some(),
                "a restart is forgotten"
            );
        }
        if self.finished.is_none() && self.living.is_empty() {
            assert!(self.machine.deadline().is_some(), "it waits for nothing");
        }
        if let Some(outcome) = self.finished {
            assert_eq!(self.machine.phase, Phase::Finished);
            assert!(self.stopping || outcome == Outcome::GivenUp);
            assert_eq!(self.machine.deadline(), None);
        }
    }
}

// Single rules.

#[test]
fn a_new_generation_commits_after_the_interval_and_the_old_one_is_signalled_then() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    assert_eq!(world.state_of(1), Some("current"));
    assert_eq!(world.state_of(2), Some("starting"));
    world.pass_deadline();
    assert_eq!(world.state_of(1), Some("old"));
    assert_eq!(world.state_of(2), Some("current"));
    assert!(world.living[0].2);
}

#[test]
fn an_interval_of_zero_still_asks_for_a_proof_of_life() {
    let mut world = World::new(Settings {
        interval: Duration::ZERO,
        ..settings()
    });
    assert_eq!(world.machine.deadline(), Some(world.now + PROOF_OF_LIFE));
    world.on(Event::DeadlinePassed);
    assert_eq!(world.state_of(1), Some("starting"));
    world.pass_deadline();
    assert_eq!(world.state_of(1), Some("current"));
}

#[test]
fn a_worker_that_has_not_executed_the_program_does_not_commit_however_long_it_takes() {
    let mut world = World::with(settings(), false);
    world.spawn_time(3600.0);
    world.on(Event::DeadlinePassed);
    assert_eq!(world.state_of(1), Some("starting"));
    assert_eq!(world.machine.deadline(), None);
    world.on(Event::Executed(Pid::from_raw(100)));
    world.on(Event::DeadlinePassed);
    assert_eq!(world.state_of(1), Some("starting"));
    world.pass_deadline();
    assert_eq!(world.state_of(1), Some("current"));
}

#[test]
fn hups_during_one_start_become_one_more_restart() {
    let mut world = World::new(settings());
    world.pass_deadline();
    for _ in 0..3 {
        world.restart();
    }
    assert_eq!(world.highest, 2);
    world.pass_deadline();
    assert_eq!(world.highest, 3);
    world.pass_deadline();
    assert_eq!(world.highest, 3);
}

#[test]
fn a_failed_start_keeps_the_old_generation_and_is_tried_again_later_each_time() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    let mut waits = Vec::new();
    for _ in 0..12 {
        world.exit_newest(256);
        assert_eq!(world.state_of(1), Some("current"));
        let started_at = world.machine.last_spawned_at;
        waits.push((world.machine.deadline().unwrap() - started_at).as_secs_f64());
        world.pass_deadline();
    }
    assert_eq!(waits[..4], [1.0, 1.5, 2.25, 3.375]);
    assert_eq!(waits[11], 30.0);
    assert_eq!(world.machine.counters.failed_starts, 12);
}

#[test]
fn a_hup_while_a_failed_start_waits_is_tried_at_once_but_not_before_the_interval() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    for _ in 0..5 {
        world.exit_newest(256);
        world.pass_deadline();
    }
    world.exit_newest(256);
    let started_at = world.machine.last_spawned_at;
    assert!(world.machine.deadline().unwrap() > started_at + Duration::from_secs(5));
    world.restart();
    assert_eq!(
        world.machine.deadline(),
        Some(started_at + Duration::from_secs(1))
    );
}

#[test]
fn a_new_worker_that_dies_during_the_delay_leaves_the_old_one_serving_and_unsignalled() {
    let mut world = World::new(Settings {
        knobs: delayed(60),
        ..settings()
    });
    world.pass_deadline();
    world.restart();
    world.pass_deadline();
    assert_eq!(world.state_of(1), Some("retiring"));
    world.exit_newest(11);
    assert_eq!(world.state_of(1), Some("current"));
    assert!(!world.living[0].2);
    assert!(world.said("the old workers were not signalled yet and serve again:100"));
    assert_eq!(world.machine.counters.failed_starts, 1);
}

#[test]
fn a_restart_during_the_delay_starts_at_once_and_both_older_ones_are_signalled_in_the_end() {
    let mut world = World::new(Settings {
        knobs: delayed(60),
        ..settings()
    });
    world.pass_deadline();
    world.restart();
    world.pass_deadline();
    world.restart();
    assert_eq!(world.state_of(3), Some("starting"));
    while world.pass_deadline() {}
    assert_eq!(
        [1, 2, 3].map(|number| world.state_of(number)),
        [Some("old"), Some("old"), Some("current")]
    );
}

#[test]
fn a_worker_that_dies_while_serving_is_replaced_at_once() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.spawn_time(10.0);
    world.exit_newest(9);
    assert_eq!(world.state_of(2), Some("starting"));
    assert!(world.said("worker 100 died unexpectedly with status:9, restarting"));
}

#[test]
fn a_worker_that_its_successor_stops_during_the_start_has_not_crashed() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    world.exit(Pid::from_raw(100), 0);
    assert!(world.said("old worker 100 died, status:0"));
    assert_eq!(world.machine.counters.crashes, 0);
    world.pass_deadline();
    assert_eq!(world.state_of(2), Some("current"));
    assert!(world.said("sending USR1 to old workers:none"));
}

#[test]
fn the_limit_ends_the_first_generation_with_a_failure() {
    let limit = NonZeroU32::new(3);
    let mut world = World::new(Settings {
        first_start_limit: limit,
        ..settings()
    });
    for _ in 0..2 {
        world.exit_newest(256);
        assert_eq!(world.finished, None);
        world.pass_deadline();
    }
    world.exit_newest(256);
    assert_eq!(world.finished, Some(Outcome::GivenUp));
    assert!(world.said("giving up after 3 failed starts"));
}

#[test]
fn the_limit_ends_a_restart_and_the_old_generation_serves_on() {
    let mut world = World::new(Settings {
        start_limit: NonZeroU32::new(2),
        first_start_limit: NonZeroU32::new(2),
        ..settings()
    });
    world.pass_deadline();
    world.restart();
    world.exit_newest(256);
    world.pass_deadline();
    world.exit_newest(256);
    assert_eq!(world.machine.deadline(), None);
    assert_eq!(world.state_of(1), Some("current"));
    world.restart();
    assert_eq!(world.state_of(4), Some("starting"));
}

#[test]
fn a_program_that_cannot_be_executed_ends_the_first_start_only() {
    let cause = || ExecFailure {
        action: "execute x".into(),
        errno: nix::errno::Errno::ENOENT,
        hint: None,
    };
    let mut world = World::with(settings(), false);
    world.on(Event::NotExecuted {
        pid: Pid::from_raw(100),
        cause: cause(),
    });
    world.exit_newest(255 << 8);
    assert_eq!(world.finished, Some(Outcome::GivenUp));

    let mut world = World::new(settings());
    world.pass_deadline();
    world.execute = false;
    world.restart();
    world.on(Event::NotExecuted {
        pid: Pid::from_raw(101),
        cause: cause(),
    });
    world.exit_newest(255 << 8);
    assert_eq!((world.finished, world.state_of(1)), (None, Some("current")));
}

#[test]
fn stop_reaches_every_worker_whatever_its_state() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    world.pass_deadline();
    world.restart();
    assert_eq!(world.pids(), [100, 101, 102]);
    world.stop(Signal::SIGTERM);
    assert!(world.said("received TERM, sending USR2 to all workers:100,101,102"));
    for pid in [100, 101, 102] {
        world.exit(Pid::from_raw(pid), 0);
    }
    assert_eq!(world.finished, Some(Outcome::Stopped));
}

#[test]
fn only_term_uses_the_signal_that_was_chosen_for_it() {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let mut world = World::new(settings());
        world.stop(signal);
        assert!(world.said("sending TERM to all workers:100"));
    }
}

#[test]
fn the_stop_timeout_kills_what_is_left() {
    let mut world = World::new(Settings {
        stop_timeout: Some(Duration::from_secs(5)),
        ..settings()
    });
    world.stop(Signal::SIGTERM);
    assert_eq!(
        world.machine.deadline(),
        Some(world.now + Duration::from_secs(5))
    );
    world.now += Duration::from_secs(5);
    let actions = world.machine.on(Event::DeadlinePassed, world.now);
    let sent: Vec<Signal> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Signal { signal, .. } => Some(*signal),
            _ => None,
        })
        .collect();
    assert_eq!(sent, [Signal::SIGCONT, Signal::SIGKILL]);
    assert_eq!(world.machine.deadline(), None);
}

#[test]
fn one_dead_worker_of_several_is_replaced_in_its_generation() {
    let mut world = World::new(Settings {
        workers: 3,
        ..settings()
    });
    world.pass_deadline();
    world.spawn_time(10.0);
    world.exit_newest(9);
    assert_eq!((world.highest, world.living.len()), (1, 3));
    // The replacement dies at once: the next one waits for the interval.
    world.exit_newest(9);
    assert_eq!(world.living.len(), 2);
    world.pass_deadline();
    assert_eq!((world.highest, world.living.len()), (1, 3));
}

#[test]
fn one_dead_worker_of_several_fails_the_start_of_all() {
    let mut world = World::new(Settings {
        workers: 3,
        ..settings()
    });
    world.pass_deadline();
    world.restart();
    assert_eq!(world.living.len(), 6);
    world.exit_newest(256);
    assert_eq!(
        (world.state_of(1), world.state_of(2)),
        (Some("current"), Some("old"))
    );
    assert_eq!(world.machine.counters.failed_starts, 1);
    world.exit_newest(0);
    world.exit_newest(0);
    assert_eq!(world.machine.counters.failed_starts, 1);
}

#[test]
fn an_automatic_restart_waits_for_the_old_workers_but_not_longer_than_twice_the_interval() {
    let auto_restart = Some(Duration::from_secs(100));
    let knobs = Knobs {
        kill_old_delay: Duration::ZERO,
        auto_restart,
    };
    let mut world = World::new(Settings {
        knobs,
        ..settings()
    });
    world.pass_deadline();
    let first = world.now;
    world.pass_deadline();
    assert_eq!((world.now - first).as_secs(), 100);
    assert!(world.said("autorestart triggered (interval=100)"));
    world.pass_deadline();
    let second = world.now;
    // The old worker stays.
    world.pass_deadline();
    assert_eq!((world.now - second).as_secs(), 200);
    assert!(world.said("autorestart triggered (forced, interval=100)"));
    world.pass_deadline();
    let third = world.now;
    // They leave when the interval has passed already: it is restarted at once.
    world.now = third + Duration::from_secs(150);
    world.exit(Pid::from_raw(100), 0);
    world.exit(Pid::from_raw(101), 0);
    assert!(world.machine.deadline().unwrap() <= world.now);
    world.pass_deadline();
    assert_eq!(world.highest, 4);
}

#[test]
fn an_automatic_restart_can_be_turned_on_and_off_at_any_time() {
    let mut world = World::new(settings());
    world.pass_deadline();
    assert_eq!(world.machine.deadline(), None);
    world.machine.turn(Knobs {
        auto_restart: Some(Duration::from_secs(7)),
        ..delayed(0)
    });
    assert_eq!(
        world.machine.deadline(),
        Some(world.now + Duration::from_secs(7))
    );
    world.machine.turn(delayed(0));
    assert_eq!(world.machine.deadline(), None);
}

#[test]
fn each_restart_is_answered_by_a_decision_of_a_later_start() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    world.restart();
    // The start that was under way does not answer the second one.
    world.pass_deadline();
    let requests = |world: &World| -> Vec<u32> {
        world
            .machine
            .decisions
            .iter()
            .map(|decision| decision.request)
            .collect()
    };
    assert_eq!(requests(&world), [0, 1]);
    world.exit_newest(256);
    assert_eq!(requests(&world), [0, 1, 2]);
    assert_eq!(
        world.machine.decisions[2].verdict,
        Verdict::Failed {
            status: Some(256),
            cause: None
        }
    );
}

#[test]
fn the_limit_of_the_first_start_is_another_one() {
    let mut world = World::new(Settings {
        first_start_limit: NonZeroU32::new(1),
        ..settings()
    });
    world.exit_newest(256);
    assert_eq!(world.finished, Some(Outcome::GivenUp));

    let mut world = World::new(Settings {
        first_start_limit: NonZeroU32::new(1),
        ..settings()
    });
    world.pass_deadline();
    world.restart();
    world.exit_newest(256);
    assert!(world.machine.deadline().is_some());
}

// Every short history.

#[derive(Debug, Clone, Copy)]
enum Step {
    OldestExits,
    NewestExits,
    NewestCannotExecute,
    TimePasses,
    Restart,
    Stop,
    StrangerExits,
}

const STEPS: [Step; 7] = [
    Step::OldestExits,
    Step::NewestExits,
    Step::NewestCannotExecute,
    Step::TimePasses,
    Step::Restart,
    Step::Stop,
    Step::StrangerExits,
];

impl World {
    /// False where the step cannot happen or is the same as another.
    fn take(&mut self, step: Step) -> bool {
        match step {
            Step::OldestExits if self.living.len() < 2 => return false,
            Step::OldestExits => self.exit(self.living[0].0, 0),
            Step::NewestExits | Step::NewestCannotExecute if self.living.is_empty() => {
                return false;
            }
            Step::NewestExits => self.exit_newest(256),
            Step::NewestCannotExecute => {
                let cause = ExecFailure {
                    action: String::new(),
                    errno: nix::errno::Errno::ENOENT,
                    hint: None,
                };
                let pid = self.living[self.living.len() - 1].0;
                self.on(Event::NotExecuted { pid, cause });
                self.exit_newest(255 << 8);
            }
            Step::TimePasses => {
                if !self.pass_deadline() {
                    return false;
                }
                let due = self
                    .machine
                    .deadline()
                    .is_some_and(|deadline| deadline <= self.now);
                assert!(!due, "a deadline that stays due would be a busy loop");
            }
            Step::Restart if self.stopping => return false,
            Step::Restart => self.restart(),
            Step::Stop if self.stopping => return false,
            Step::Stop => self.stop(Signal::SIGTERM),
            Step::StrangerExits => {
                let before = format!("{:?}", self.machine);
                self.on(Event::Exited {
                    pid: Pid::from_raw(9),
                    status: 0,
                });
                assert_eq!(
                    before,
                    format!("{:?}", self.machine),
                    "a stranger's exit changes nothing"
                );
                return false;
            }
        }
        true
    }

    /// Told to stop, it ends when the last worker has.
    fn stops_in_the_end(mut self) {
        if self.finished.is_none() {
            if !self.stopping {
                self.stop(Signal::SIGTERM);
            }
            while !self.living.is_empty() {
                self.exit_newest(0);
                self.check();
            }
            assert!(
                self.finished.is_some(),
                "told to stop, and no worker is left"
            );
        }
    }
}

/// Visits every history of at most `length` steps and returns how many there were.
fn walk(world: &World, length: usize, history: &mut Vec<Step>) -> u64 {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.check();
        world.clone().stops_in_the_end();
    }));
    assert!(result.is_ok(), "after {history:?}");
    if length == 0 || world.finished.is_some() {
        return 1;
    }
    let mut visited = 1;
    for step in STEPS {
        let mut next = world.clone();
        history.push(step);
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| next.take(step)));
        match taken {
            Ok(true) => visited += walk(&next, length - 1, history),
            Ok(false) => {}
            Err(_) => panic!("after {history:?}"),
        }
        history.pop();
    }
    visited
}

#[test]
fn every_short_history_keeps_the_promises() {
    let delay = Duration::from_secs(5);
    let cases = [
        (settings(), 7),
        (
            Settings {
                knobs: delayed(5),
                ..settings()
            },
            7,
        ),
        (
            Settings {
                knobs: delayed(5),
                start_limit: NonZeroU32::new(2),
                first_start_limit: NonZeroU32::new(2),
                ..settings()
            },
            6,
        ),
        (
            Settings {
                workers: 2,
                knobs: delayed(5),
                ..settings()
            },
            6,
        ),
        (
            Settings {
                workers: 2,
                start_limit: NonZeroU32::new(1),
                first_start_limit: NonZeroU32::new(1),
                interval: Duration::ZERO,
                ..settings()
            },
            6,
        ),
        (
            Settings {
                stop_timeout: Some(delay),
                start_limit: NonZeroU32::new(1),
                first_start_limit: NonZeroU32::new(1),
                ..settings()
            },
            6,
        ),
        (
            Settings {
                knobs: Knobs {
                    kill_old_delay: delay,
                    auto_restart: Some(Duration::from_secs(3)),
                },
                ..settings()
            },
            6,
        ),
    ];
    for (settings, length) in cases {
        let visited = walk(&World::new(settings), length, &mut Vec::new());
        assert!(visited > 1000, "only {visited} histories were walked");
    }
}
