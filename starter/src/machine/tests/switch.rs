//! Lanes: which one is selected, when whoever has another is told to stop, and what is left in those that nobody serves.

use super::*;
use crate::words::switch::Switching;

/// What the kernel knows of the lanes.
#[derive(Debug, Clone, Default)]
pub(super) struct Lanes {
    pub selected: u8,
    /// Those in which something waits.
    pub waiting: Vec<u8>,
    /// Whether it refuses to select another one.
    pub refuses: bool,
    /// It has refused the last one.
    pub is_behind: bool,
    /// When each generation ceased to be current.
    pub replaced: Vec<(u32, Moment)>,
    /// Those that were current and lost it to an older one, and sweepers.
    pub given_up: Vec<u32>,
}

impl World {
    pub(super) fn has_lanes(&self) -> bool {
        self.machine.settings.lanes > 1
    }

    fn current(&self) -> Option<&Generation> {
        self.machine.current()
    }

    pub(super) fn select(&mut self, selection: &Selection) {
        assert!(self.has_lanes());
        let Share {
            generation, lane, ..
        } = selection.main;
        let current = self.current().map(|one| (one.number, one.lane));
        assert_eq!(current, Some((generation, lane)));
        self.lanes.is_behind = self.lanes.refuses;
        if !self.lanes.refuses {
            self.lanes.selected = lane;
            return;
        }
        self.lanes.given_up.push(generation);
        self.on(Event::NotSelected {
            selected: Selection::whole(0, self.lanes.selected, 1),
            cause: StartFailure::not_switched("x", Errno::ENOMEM),
        });
    }

    pub(super) fn look(&mut self, lane: u8) {
        assert!(self.has_lanes());
        let waiting = usize::from(self.lanes.waiting.contains(&lane));
        self.on(Event::Looked { lane, waiting });
    }

    /// As the supervisor does in each turn.
    pub(super) fn tell_stranded(&mut self) {
        let watched: Vec<u8> = self.machine.watched_lanes().collect();
        for lane in watched {
            if self.lanes.waiting.contains(&lane) {
                let actions = self.machine.on(Event::Stranded { lane }, self.now);
                assert!(!actions.iter().any(|it| matches!(it, Action::Spawn { .. })));
                self.perform(actions);
            }
        }
    }

    /// What was current before an event is not any more.
    pub(super) fn note_replaced(&mut self, current: Option<u32>) {
        let replaced = &mut self.lanes.replaced;
        for generation in self.machine.generations() {
            let number = generation.number;
            if Some(number) == current {
                replaced.retain(|(one, _)| *one != number);
                self.lanes.given_up.retain(|one| *one != number);
            } else if !replaced.iter().any(|(one, _)| *one == number) {
                replaced.push((number, self.now));
            }
            let is_newer = current.is_some_and(|current| number > current);
            let has_lost = is_newer && generation.state() == State::Old;
            if (has_lost || generation.is_sweeper()) && !self.lanes.given_up.contains(&number) {
                self.lanes.given_up.push(number);
            }
        }
    }

    /// An old worker has had the time that it is to have.
    pub(super) fn check_quiet(&self, number: u32) {
        let generation = self.machine.generation(number);
        let Some(generation) = generation.filter(|_| self.has_lanes()) else {
            return;
        };
        let replaced = self.lanes.replaced.iter().find(|(one, _)| *one == number);
        let since = replaced.map_or(self.now, |(_, at)| *at);
        let Settings {
            quiet_time,
            switch_timeout,
            ..
        } = self.machine.settings;
        let is_late = since + switch_timeout <= self.now;
        let is_empty = !self.lanes.waiting.contains(&generation.lane);
        assert!(
            is_late || (is_empty && since + quiet_time <= self.now),
            "{number} is told to stop though something waits for it"
        );
    }

    pub(super) fn check_lanes(&self) {
        if !self.has_lanes() || self.machine.phase != Phase::Serving {
            return;
        }
        if let Some(current) = self.current() {
            let is_selected = current.lane == self.lanes.selected;
            assert!(
                is_selected || self.lanes.is_behind,
                "another lane is selected"
            );
        }
        for lane in 0..self.machine.settings.lanes {
            let owners = self.machine.generations().filter(|one| one.lane == lane);
            let untold = |one: &&Generation| {
                let mut its = self.living.iter().filter(|it| it.generation == one.number);
                its.any(|it| !it.is_told && !it.is_stopping && !self.has_failed(it.pid))
            };
            let untold: Vec<u32> = owners.filter(untold).map(|one| one.number).collect();
            assert!(untold.len() <= 1, "lane {lane} is that of {untold:?}");
            let is_served = !untold.is_empty() || !self.lanes.waiting.contains(&lane);
            let is_known = self.machine.strays.iter().any(|one| one.lane == lane);
            // One that was told, and has not been started yet, is about to be told again.
            let is_asked_for = self
                .machine
                .generations()
                .any(|one| one.lane == lane && one.attends());
            assert!(
                is_served || is_known || is_asked_for || self.current().is_none(),
                "nobody cares for what waits in lane {lane}"
            );
            assert!(
                !is_known || is_asked_for || self.machine.deadline().is_some(),
                "nobody looks at lane {lane} again"
            );
        }
    }

    /// A connection comes in.
    pub(super) fn connect(&mut self, lane: u8) {
        if !self.lanes.waiting.contains(&lane) {
            self.lanes.waiting.push(lane);
        }
        self.tell_stranded();
    }

    /// Whoever serves takes what waits.
    pub(super) fn accept_all(&mut self) -> bool {
        let before = self.lanes.waiting.len();
        let machine = &self.machine;
        let living = &self.living;
        self.lanes.waiting.retain(|lane| {
            !living.iter().any(|one| {
                let its = machine.generation(one.generation);
                let has_run = one.executed_at.is_some() && !one.is_told;
                has_run && its.is_some_and(|its| its.lane == *lane)
            })
        });
        before != self.lanes.waiting.len()
    }

    fn lane_of_newest(&self) -> u8 {
        let newest = self.machine.generations().last();
        newest.map_or(0, |one| one.lane)
    }

    fn pass_until(&mut self, what: &str, is_so: impl Fn(&World) -> bool) {
        for _ in 0..1000 {
            if is_so(self) {
                return;
            }
            assert!(self.pass_deadline(), "{what}");
            self.check();
        }
        panic!(
            "{what}: {:#?} {:?}",
            self.machine.generations, self.machine.strays
        );
    }
}

pub(super) fn switching(lanes: u8, settings: Settings) -> Settings {
    Settings { lanes, ..settings }
}

fn serving(lanes: u8, settings: Settings) -> World {
    let mut world = World::new(switching(lanes, settings));
    world.pass_until("the first generation serves", |world| {
        world.state_of(1) == Some(State::Current)
    });
    world
}

fn restarted(lanes: u8, settings: Settings) -> World {
    let mut world = serving(lanes, settings);
    world.restart();
    assert_eq!(world.lane_of_newest(), 1, "it has sockets of its own");
    world.pass_until("the second one serves", |world| {
        world.state_of(2) == Some(State::Current)
    });
    world
}

#[test]
fn a_commit_switches_and_the_old_worker_is_told_once_nothing_waits_for_it() {
    let mut world = restarted(2, settings());
    assert_eq!(world.lanes.selected, 1);
    assert_eq!(world.state_of(1), Some(State::Retiring));
    // Its handshake began before.
    world.pass(0.1);
    world.connect(0);
    world.on(Event::DeadlinePassed);
    world.pass(0.15);
    world.on(Event::DeadlinePassed);
    assert_eq!(
        world.state_of(1),
        Some(State::Retiring),
        "it waits for that one"
    );
    assert!(world.accept_all());
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    assert_eq!(world.state_of(1), Some(State::Old));
}

#[test]
fn an_old_worker_that_accepts_nothing_is_told_after_the_timeout() {
    let mut world = restarted(2, settings());
    world.connect(0);
    let committed_at = world.now;
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    let passed = world.now.saturating_since(committed_at);
    assert!(passed >= Duration::from_secs(5), "{passed:?}");
    assert!(world.said("clients still wait"));
    // And what waits is taken by somebody else.
    world.pass_until("there is a sweeper", |world| {
        world.machine.generations().any(Generation::is_sweeper)
    });
    assert_eq!(world.lane_of_newest(), 0);
}

#[test]
fn the_quiet_time_is_part_of_the_delay() {
    let mut world = restarted(
        2,
        Settings {
            knobs: delayed(3),
            ..settings()
        },
    );
    let committed_at = world.now;
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    let passed = world.now.saturating_since(committed_at);
    assert_eq!(passed, Duration::from_secs(3));
}

#[test]
fn a_new_generation_that_dies_during_the_delay_gives_its_connections_back() {
    let mut world = restarted(
        2,
        Settings {
            knobs: delayed(30),
            ..settings()
        },
    );
    world.connect(1);
    let pids = world.pids();
    world.exit_newest(256);
    assert_eq!(world.lanes.selected, 0, "the switch goes back at once");
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.pids()[..1], pids[..1]);
    let sweeper = world.highest;
    assert!(
        world
            .machine
            .generation(sweeper)
            .is_some_and(Generation::is_sweeper)
    );
    assert_eq!(world.lane_of_newest(), 1, "what it has left is swept");
    assert!(world.machine.planned.is_some(), "the next try comes later");
    world.pass_until("it serves", |world| {
        world
            .machine
            .generation(sweeper)
            .is_some_and(Generation::serves)
    });
    assert!(world.accept_all());
    world.pass_until("it is told to stop", |world| {
        world
            .living
            .iter()
            .any(|one| one.generation == sweeper && one.is_signalled)
    });
    assert!(world.machine.strays.is_empty());
    assert_eq!(world.lanes.selected, 0);
}

#[test]
fn a_rollback_by_hand_during_the_delay_is_a_switch() {
    let mut world = restarted(
        2,
        Settings {
            knobs: delayed(30),
            ..settings()
        },
    );
    world.connect(1);
    world.roll_back();
    assert_eq!(world.lanes.selected, 0);
    assert!(!world.living[1].is_told, "it has something to accept");
    assert_eq!(world.living.len(), 2);
    assert!(world.accept_all());
    world.pass_until("it is told", |world| world.living[1].is_signalled);
}

#[test]
fn a_start_waits_for_a_lane_while_something_serves() {
    let mut world = restarted(2, settings());
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    world.restart();
    world.check();
    assert_eq!(world.living.len(), 2, "both lanes are taken");
    assert!(world.said("the next start waits"));
    world.exit(world.living[0].pid, 0);
    assert_eq!(world.living.len(), 2, "it starts at once");
    assert_eq!(world.lane_of_newest(), 0);
    let mut world = restarted(3, settings());
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    world.restart();
    assert_eq!((world.living.len(), world.lane_of_newest()), (3, 2));
}

#[test]
fn nothing_waits_for_a_lane_while_nothing_serves() {
    let mut world = restarted(2, settings());
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    world.connect(1);
    world.exit_newest(256);
    world.check();
    world.pass_until("what served is back", |world| world.living.len() == 2);
    assert_eq!(world.lane_of_newest(), 1, "where clients wait");
}

#[test]
fn what_waits_is_swept_by_what_is_current_again_and_again() {
    let mut world = restarted(3, settings());
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    world.exit(world.living[0].pid, 0);
    world.connect(0);
    let is_sweeper = |world: &World| world.machine.generations().any(Generation::is_sweeper);
    let mut delays = Vec::new();
    for _ in 0..4 {
        let since = world.now;
        world.pass_until("there is a sweeper", is_sweeper);
        delays.push(world.now.saturating_since(since).as_secs_f64());
        assert_eq!(world.lane_of_newest(), 0);
        // A restart does not want that lane.
        assert_eq!(world.machine.next_lane(), Some(2));
        world.exit_newest(256);
    }
    assert_eq!(delays, [0.2, 1.0, 1.5, 2.25]);
    world.pass_until("there is a sweeper", is_sweeper);
    world.pass_until("it is given up, as it accepts nothing", |world| {
        world.living.last().unwrap().is_signalled
    });
    assert!(world.said("did not serve it"));
}

#[test]
fn whoever_was_told_may_still_accept() {
    let mut world = restarted(2, settings());
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    world.connect(0);
    assert_eq!(world.machine.strays.len(), 1);
    world.lanes.waiting.clear();
    world.pass_deadline();
    assert!(world.machine.strays.is_empty());
    assert!(!world.machine.generations().any(Generation::is_sweeper));
    assert_eq!(
        world.machine.deadline(),
        None,
        "an idle server is not woken up"
    );
}

#[test]
fn where_the_kernel_refuses_what_served_goes_on() {
    let mut world = serving(2, settings());
    world.lanes.refuses = true;
    world.restart();
    world.pass_until("it is refused", |world| {
        world.state_of(2) == Some(State::Old)
    });
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(
        (world.lanes.selected, world.machine.selected.main.lane),
        (0, 0)
    );
    assert!(
        world.said(
            &Notice::RolledBack {
                pids: vec![world.living[0].pid]
            }
            .to_string()
        )
    );
    let verdict = world
        .machine
        .history
        .decision_on(2)
        .map(|one| one.verdict.clone());
    assert!(matches!(
        verdict,
        Some(Verdict::Failed { cause: Some(_), .. })
    ));
}

#[test]
fn a_sentence_tells_of_each_step() {
    let all = [
        Switching::Impossible {
            errno: Errno::EPERM,
        },
        Switching::Shared(vec!["/run/app.sock".into()]),
        Switching::Switched {
            generation: 2,
            lane: 1,
        },
        Switching::Waiting {
            pids: vec![Pid::from_raw(7)],
        },
        Switching::Sweeping {
            waiting: 1,
            lane: 0,
        },
    ];
    for one in all {
        let text = one.to_string();
        assert!(
            text.starts_with("start_server: ") && !text.contains('\n'),
            "{text}"
        );
    }
}
