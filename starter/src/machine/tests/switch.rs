//! Lanes: which one is selected, when whoever has another is told to stop, and what is left in those that nobody serves.

use std::collections::BTreeSet;

use super::*;
use crate::machine::lane::Canary;
use crate::words::switch::Switching;

/// What the kernel knows of the lanes.
#[derive(Debug, Clone, Default)]
pub(super) struct Lanes {
    pub selected: u8,
    /// Which of its sockets get anything, if not all.
    pub shards: Option<Vec<u8>>,
    /// When workers lost their slots.
    pub left: Vec<(Pid, Moment)>,
    /// Who gets a share, if anybody does.
    pub canary: Option<Canary>,
    /// The sockets in which something waits.
    pub waiting: Vec<u8>,
    /// Whether it refuses to select another one.
    pub refuses: bool,
    /// It has refused the last one.
    pub is_behind: bool,
    /// Those that get the packets of their flows.
    pub flows: Vec<u8>,
    /// Generations that have been selected.
    pub served: Vec<u32>,
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
            generation,
            lane,
            ref shards,
        } = selection.main;
        let is_same = lane == self.lanes.selected && *shards == self.active_shards();
        if is_same && selection.canary == self.lanes.canary {
            assert!(self.machine.settings.flows);
            if !self.lanes.refuses {
                self.lanes.flows.clone_from(&selection.flows);
                let shares = selection.shares().map(|one| one.generation);
                self.lanes.served.extend(shares);
            }
            return;
        }
        let current = self.current().map(|one| (one.number, one.lane));
        assert_eq!(current, Some((generation, lane)));
        if let Some(Canary { share, percent, .. }) = &selection.canary {
            // It may have been given up in the same event.
            let canary = self.machine.generation(share.generation);
            assert_eq!(canary.map(|one| one.lane), Some(share.lane));
            assert!(share.lane != lane && (1..=99).contains(percent));
        }
        assert!(!shards.is_empty());
        self.lanes.is_behind = self.lanes.refuses;
        if !self.lanes.refuses {
            self.lanes.selected = lane;
            self.lanes.shards = Some(shards.clone());
            self.lanes.canary = selection.canary.clone();
            self.lanes.flows.clone_from(&selection.flows);
            let shares = selection.shares().map(|one| one.generation);
            self.lanes.served.extend(shares);
            return;
        }
        self.lanes.given_up.push(generation);
        let shards = self.active_shards();
        let mut selected = Selection::whole(0, self.lanes.selected, 1);
        selected.main.shards = shards;
        selected.canary = self.lanes.canary.clone();
        self.on(Event::NotSelected {
            selected: Selection {
                flows: self.lanes.flows.clone(),
                ..selected
            },
            cause: StartFailure::not_switched("x", Errno::ENOMEM),
        });
    }

    fn active_shards(&self) -> Vec<u8> {
        // At first that of the first one, whose address is bound before.
        self.lanes.shards.clone().unwrap_or_else(|| vec![0])
    }

    /// The sockets that get what comes.
    pub(super) fn active(&self) -> Vec<u8> {
        let first = self.lanes.selected * self.machine.settings.shards;
        let shards = self.active_shards().into_iter();
        shards.map(|shard| first + shard).collect()
    }

    /// How many sockets there are.
    pub(super) fn count_sockets(&self) -> u8 {
        self.machine.settings.lanes * self.machine.settings.shards
    }

    /// Which socket this process has, of a generation that still has a place.
    fn socket_of(&self, process: &Process) -> Option<u8> {
        let generation = self.machine.generation(process.generation)?;
        let shards = self.machine.settings.shards;
        let shard = (usize::from(generation.shard) + process.slot) % usize::from(shards);
        Some(generation.lane * shards + u8::try_from(shard).unwrap())
    }

    pub(super) fn look(&mut self, sockets: Sockets) {
        assert!(self.has_lanes());
        let waiting = &self.lanes.waiting;
        let waiting = sockets
            .numbers()
            .filter(|one| waiting.contains(one))
            .count();
        self.on(Event::Looked { sockets, waiting });
    }

    /// As the supervisor does in each turn.
    pub(super) fn tell_stranded(&mut self) {
        let watched: Vec<u8> = self.machine.watched_sockets().collect();
        for socket in watched {
            if self.lanes.waiting.contains(&socket) {
                let actions = self.machine.on(Event::Stranded { socket }, self.now);
                assert!(!actions.iter().any(|it| matches!(it, Action::Spawn { .. })));
                self.perform(actions);
            }
        }
    }

    /// What was current before an event is not any more.
    pub(super) fn note_replaced(&mut self, current: Option<u32>) {
        let leavers = self.living.iter().map(|one| one.pid);
        for pid in leavers.filter(|pid| self.machine.is_leaver(*pid)) {
            if !self.lanes.left.iter().any(|(one, _)| *one == pid) {
                self.lanes.left.push((pid, self.now));
            }
        }
        let replaced = &mut self.lanes.replaced;
        for generation in self.machine.generations() {
            let number = generation.number;
            if Some(number) == current || generation.state() == State::Canary {
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
    pub(super) fn check_quiet(&self, pid: Pid) {
        let process = self.living.iter().find(|one| one.pid == pid);
        let Some((process, number)) = process.map(|one| (one, one.generation)) else {
            return;
        };
        let generation = self.machine.generation(number);
        let Some(generation) = generation.filter(|_| self.has_lanes()) else {
            return;
        };
        let shards = self.machine.settings.shards;
        let is_leaver = self.machine.is_leaver(pid);
        if is_leaver && !self.has_proved_itself(process) {
            return;
        }
        let left = self.lanes.left.iter().find(|(one, _)| *one == pid);
        let left = left.filter(|_| is_leaver).map(|(_, at)| *at);
        let mut replaced = self.lanes.replaced.iter();
        let replaced = replaced.find(|(one, _)| *one == number).map(|(_, at)| *at);
        // From the first of both on, nothing came to it.
        let since = left.into_iter().chain(replaced).min();
        let since = since.unwrap_or(self.now);
        let sockets: Vec<u8> = match is_leaver || generation.is_sweeper() {
            true => self.socket_of(process).into_iter().collect(),
            false => Sockets::of_lane(generation.lane, shards)
                .numbers()
                .collect(),
        };
        // Others have it too, and go on.
        let mut others = self
            .living
            .iter()
            .filter(|one| one.pid != pid && !one.is_told);
        let is_shared = is_leaver
            && others.any(|one| {
                one.generation == number && self.socket_of(one) == self.socket_of(process)
            });
        let Settings {
            quiet_time,
            switch_timeout,
            ..
        } = self.machine.settings;
        let is_late = since + switch_timeout <= self.now;
        let is_empty = !sockets.iter().any(|one| self.lanes.waiting.contains(one));
        assert!(
            is_shared || is_late || (is_empty && since + quiet_time <= self.now),
            "{pid} of {number} is told to stop though something waits for it"
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
            if !self.lanes.is_behind {
                self.check_shards(current);
            }
            let canary = self.machine.canary().map(|one| one.lane);
            let shared = self.lanes.canary.as_ref().map(|one| one.share.lane);
            assert!(
                canary == shared || (self.lanes.is_behind && canary.is_none()),
                "lane {shared:?} has a share, and that of the canary is {canary:?}"
            );
        }
        assert!(
            self.machine.canary().is_none() || self.current().is_some(),
            "a canary is all there is"
        );
        self.check_flows();
        for socket in 0..self.count_sockets() {
            let is_its = |it: &&Process| self.socket_of(it) == Some(socket);
            let untold = self.living.iter().filter(is_its).filter(|it| {
                // Whoever has lost its slot while nothing else served goes when that does, and a sweeper when nothing comes.
                let generation = self.machine.generation(it.generation);
                let stays = !self.machine.is_leaver(it.pid)
                    && !generation.is_some_and(Generation::is_sweeper);
                stays && !it.is_told && !it.is_stopping && !self.has_failed(it.pid)
            });
            let untold: BTreeSet<u32> = untold.map(|it| it.generation).collect();
            assert!(untold.len() <= 1, "socket {socket} is that of {untold:?}");
            let is_served = self
                .living
                .iter()
                .filter(is_its)
                .any(|it| !it.is_told && !it.is_stopping && !self.has_failed(it.pid));
            let is_served = is_served || !self.lanes.waiting.contains(&socket);
            let is_known = self.machine.strays.iter().any(|one| one.socket == socket);
            // One that was told, and has not been started yet, is about to be told again.
            let shards = self.machine.settings.shards;
            let is_asked_for = self
                .machine
                .generations()
                .any(|one| one.attends_to(socket, shards));
            assert!(
                is_served || is_known || is_asked_for || self.current().is_none(),
                "nobody cares for what waits in socket {socket}"
            );
            assert!(
                !is_known || is_asked_for || self.machine.deadline().is_some(),
                "nobody looks at socket {socket} again"
            );
        }
    }

    /// What comes is spread over those that serve, and nobody else where anybody does.
    fn check_shards(&self, current: &Generation) {
        let shards = self.machine.settings.shards;
        let its: Vec<u8> = current
            .slots
            .iter()
            .filter_map(Slot::worker)
            .filter(|one| one.is_proved())
            .map(|one| u8::try_from(one.slot % usize::from(shards)).unwrap())
            .collect();
        let active = self.active_shards();
        let is_swept = |shard: &u8| {
            let mut sweepers = self
                .machine
                .generations()
                .filter(|one| one.state() == State::Sweeping);
            sweepers.any(|one| one.lane == current.lane && one.shard == *shard)
        };
        assert!(
            its.iter()
                .all(|shard| active.contains(shard) || is_swept(shard)),
            "{its:?} serve, and {active:?} are selected"
        );
        assert!(
            its.is_empty() || active.iter().all(|shard| its.contains(shard)),
            "{active:?} are selected, and {its:?} serve"
        );
    }

    /// Whoever has served has its flows until it is gone, and no lane has any in which nobody is.
    fn check_flows(&self) {
        if !self.machine.settings.flows {
            return;
        }
        let flows = &self.machine.selected.flows;
        let is_selected = |lane| self.machine.selected.shares().any(|one| one.lane == lane);
        let owners = |lane: u8| {
            let all = self.machine.generations();
            all.filter(move |one| one.lane == lane && !one.is_sweeper())
        };
        let served = |one: &Generation| self.lanes.served.contains(&one.number);
        for lane in 0..self.machine.settings.lanes {
            let has_flows = flows.contains(&lane);
            let is_wanted = is_selected(lane) || owners(lane).any(served);
            let may_lack = self.machine.served.is_none() || self.lanes.refuses;
            assert!(has_flows || !is_wanted || may_lack, "lane {lane} lacks");
            // One that was started while nothing served had the selected lane before it has served.
            let may_have = is_selected(lane) || owners(lane).next().is_some();
            assert!(!has_flows || may_have, "lane {lane} of {flows:?}");
        }
    }

    /// A connection comes in.
    pub(super) fn connect(&mut self, socket: u8) {
        if !self.lanes.waiting.contains(&socket) {
            self.lanes.waiting.push(socket);
        }
        self.tell_stranded();
    }

    /// Whoever serves takes what waits.
    pub(super) fn accept_all(&mut self) -> bool {
        let attended: Vec<u8> = self
            .living
            .iter()
            .filter(|one| one.executed_at.is_some() && !one.is_told)
            .filter_map(|one| self.socket_of(one))
            .collect();
        let before = self.lanes.waiting.len();
        self.lanes
            .waiting
            .retain(|socket| !attended.contains(socket));
        before != self.lanes.waiting.len()
    }

    fn lane_of_newest(&self) -> u8 {
        let newest = self.machine.generations().last();
        newest.map_or(0, |one| one.lane)
    }

    pub(super) fn pass_until(&mut self, what: &str, is_so: impl Fn(&World) -> bool) {
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
    Settings {
        lanes,
        flows: true,
        ..settings
    }
}

/// Each slot has a socket of its own.
pub(super) fn sharded(settings: Settings) -> Settings {
    Settings {
        shards: u8::try_from(settings.workers).unwrap(),
        ..settings
    }
}

fn serving(lanes: u8, settings: Settings) -> World {
    let mut world = World::new(switching(lanes, settings));
    world.pass_until("the first generation serves", |world| {
        world.state_of(1) == Some(State::Current)
    });
    world
}

pub(super) fn restarted(lanes: u8, settings: Settings) -> World {
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
    assert!(world.said("did not serve them"));
}

#[test]
fn late_clients_that_stay_get_ever_longer_sweepers_and_no_more_than_eight() {
    let mut world = restarted(2, settings());
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    world.exit(world.living[0].pid, 0);
    let mut stays = Vec::new();
    for count in 1..=8 {
        world.connect(0);
        let is_there = |world: &World| {
            let sweepers = world.machine.generations().filter(|one| one.is_sweeper());
            sweepers.count() == count && world.machine.generations().all(Generation::serves)
        };
        world.pass_until("there is one more", is_there);
        let since = world.now;
        assert!(world.accept_all());
        assert_eq!(world.said("the last one until"), count == 8);
        // Its client holds it, and it does not end.
        world.pass_until("it is told", |world| {
            world.living.last().unwrap().is_signalled
        });
        stays.push(world.now.saturating_since(since).as_secs());
    }
    assert_eq!(stays, [0, 2, 4, 8, 16, 32, 64, 64]);
    world.connect(0);
    let before = world.living.len();
    for _ in 0..20 {
        world.pass_deadline();
    }
    assert_eq!(world.living.len(), before);
    let sweeper = world.living.last().unwrap().pid;
    world.exit(sweeper, 0);
    world.pass_until("another one comes", |world| world.living.len() == before);
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
fn flows_come_to_whoever_has_served_until_it_is_gone() {
    let mut world = serving(3, settings());
    assert_eq!(world.lanes.flows, [0]);
    world.restart();
    assert_eq!(world.lanes.flows, [0], "the new one has not served yet");
    world.pass_until("the second one serves", |world| {
        world.state_of(2) == Some(State::Current)
    });
    assert_eq!(world.lanes.flows, [0, 1]);
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    assert_eq!(world.lanes.flows, [0, 1], "it drains");
    let first = world.living[0].pid;
    world.exit(first, 0);
    assert_eq!(world.lanes.flows, [1]);
}

#[test]
fn a_sweeper_has_no_flows() {
    let mut world = restarted(2, settings());
    let first = world.living[0].pid;
    world.exit(first, 0);
    assert_eq!(world.lanes.flows, [1]);
    world.connect(0);
    world.pass_until("it is swept", |world| {
        world.machine.generations().any(Generation::is_sweeper)
    });
    assert_eq!(world.lanes.flows, [1]);
    let sweeper = world.machine.generations().find(|one| one.is_sweeper());
    let sweeper = sweeper.map(|one| one.number);
    assert!(sweeper.is_some_and(|number| world.machine.sweeps(number)));
}

#[test]
fn without_flows_there_are_no_more_switches_than_commits() {
    let settings = Settings {
        flows: false,
        ..switching(2, settings())
    };
    let mut world = World::new(settings);
    world.pass_until("the first generation serves", |world| {
        world.state_of(1) == Some(State::Current)
    });
    assert!(world.lanes.served.is_empty());
    world.restart();
    world.pass_until("the second one serves", |world| {
        world.state_of(2) == Some(State::Current)
    });
    world.pass_until("it is told", |world| world.living[0].is_signalled);
    let first = world.living[0].pid;
    world.exit(first, 0);
    assert_eq!(world.lanes.served, [2]);
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
            is_last: true,
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
