//! A generation that gets a share before it gets everything: how it begins, and each way in which that ends.

use super::*;
use crate::machine::lane::Canary;

fn portion(time: Option<u64>) -> Portion {
    Portion {
        percent: 10,
        by: By::Random,
        time: time.map(Duration::from_secs),
    }
}

impl World {
    pub(super) fn restart_as_canary(&mut self, time: Option<u64>) {
        // Without lanes it is refused at once.
        self.owed |= !self.stopping && self.has_lanes();
        if self.has_lanes() {
            self.successes = 0;
        }
        self.on(Event::Canary(portion(time)));
    }

    /// It makes the canary current, or changes nothing but its verdict.
    pub(super) fn promote(&mut self) {
        let before = self.machine.clone();
        let canary = before.canary().map(|one| one.number);
        let refuses = self.lanes.refuses;
        self.on(Event::Promote);
        let is_current = || self.machine.current().map(|one| one.number) == canary;
        match canary {
            // Where the kernel refuses, there is a way back.
            Some(_) => assert!(refuses || is_current(), "it is not current"),
            None => {
                let history = self.machine.history.clone();
                let after = Machine { history, ..before };
                assert_eq!(after, self.machine, "it is refused, and changes nothing");
            }
        }
    }

    /// The canary has not answered well for very long. False where there is none.
    pub(super) fn canary_becomes_unwell(&mut self) -> bool {
        let Some(number) = self.machine.canary().map(|one| one.number) else {
            return false;
        };
        let current = self.machine.current().map(|one| one.number);
        self.on(Event::Unwell {
            generation: number,
            since: Moment::of_test(Duration::ZERO),
            known: "GET / on it: 503".into(),
        });
        assert_eq!(self.state_of(number), Some(State::Old));
        assert_eq!(self.machine.current().map(|one| one.number), current);
        true
    }

    fn pass_until_canary(&mut self) {
        self.pass_until("a canary serves", |world| world.machine.canary().is_some());
    }

    /// Who has a share, and of how many of a hundred.
    fn share(&self) -> Option<(u32, u8)> {
        let canary = self.lanes.canary.as_ref();
        canary.map(|Canary { share, percent, .. }| (share.generation, *percent))
    }

    fn last_answer(&self) -> (u32, u32, Verdict) {
        let last = self.machine.history.decisions.back().unwrap();
        (last.request, last.generation, last.verdict.clone())
    }

    fn is_signalled(&self, generation: u32) -> bool {
        let mut its = self
            .living
            .iter()
            .filter(|one| one.generation == generation);
        its.any(|one| one.is_told)
    }
}

/// Where the second generation serves a share.
pub(super) fn serving(settings: Settings, time: Option<u64>) -> World {
    let mut world = World::new(settings);
    while world.state_of(1) != Some(State::Current) {
        match world.living.iter().find(|one| !one.is_ready) {
            Some(one) if world.is_told() => world.become_ready(one.pid),
            _ => assert!(world.pass_deadline()),
        }
    }
    world.restart_as_canary(time);
    if world.is_checking {
        world.end_check(true);
    }
    while world.state_of(2) != Some(State::Canary) {
        match world.living.iter().find(|one| !one.is_ready) {
            Some(one) if world.is_told() => world.become_ready(one.pid),
            _ => assert!(world.pass_deadline()),
        }
    }
    world
}

fn switched(settings: Settings) -> Settings {
    switch::switching(2, settings)
}

fn two(time: Option<u64>) -> World {
    serving(switched(settings()), time)
}

#[test]
fn it_gets_its_share_and_nobody_is_told_to_stop() {
    let mut world = two(None);
    assert_eq!(world.share(), Some((2, 10)));
    assert_eq!(world.last_answer(), (1, 2, Verdict::Canary));
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.machine.deadline(), None, "it stays for ever");
    world.pass(3600.0);
    world.on(Event::DeadlinePassed);
    assert!(!world.is_signalled(1) && world.share().is_some());
    world.check();
}

#[test]
fn once_it_has_ended_a_rollback_does_not_undo_the_restart_before() {
    for is_by_hand in [false, true] {
        let mut world = switch::restarted(3, settings());
        world.pass_until("the old one is told", |world| world.is_signalled(1));
        world.exit(world.living[0].pid, 0);
        world.restart_as_canary(None);
        world.pass_until_canary();
        match is_by_hand {
            true => world.roll_back(),
            false => world.exit_newest(9),
        }
        world.pass_until("it is gone", |world| world.living.len() == 1 || is_by_hand);
        world.roll_back();
        let (_, generation, verdict) = world.last_answer();
        assert_eq!(generation, 0);
        assert!(matches!(verdict, Verdict::Refused(_)), "{verdict:?}");
        assert_eq!(world.state_of(2), Some(State::Current));
        assert!(world.machine.planned.is_none() && !world.machine.is_starting());
    }
}

#[test]
fn it_is_promoted_by_hand() {
    let mut world = two(None);
    world.promote();
    assert_eq!((world.share(), world.lanes.selected), (None, 1));
    assert_eq!(world.last_answer(), (2, 2, Verdict::Committed));
    assert_eq!(world.state_of(2), Some(State::Current));
    assert!(!world.is_signalled(1), "its lane is not quiet yet");
    world.pass_until("the old one is told", |world| world.is_signalled(1));
    // And rolled back as after any restart.
    world.promote();
    let (request, generation, verdict) = world.last_answer();
    assert_eq!((request, generation), (3, 0));
    assert!(matches!(verdict, Verdict::Refused(_)));
}

#[test]
fn it_is_promoted_when_its_time_is_over() {
    let mut world = two(Some(8));
    assert_eq!(world.wait(), Some(8.0));
    world.pass_deadline();
    assert_eq!((world.share(), world.lanes.selected), (None, 1));
    assert_eq!(world.state_of(2), Some(State::Current));
    assert_eq!(world.last_answer(), (1, 2, Verdict::Committed));
    assert!(world.said("it has served without a fault"));
}

#[test]
fn a_rollback_and_an_abort_give_everything_back_first() {
    for event in [Event::RollBack, Event::Abort] {
        let mut world = two(Some(60));
        world.on(event);
        assert_eq!((world.share(), world.lanes.selected), (None, 0));
        assert_eq!(world.last_answer(), (2, 1, Verdict::Committed));
        assert_eq!(world.state_of(2), Some(State::Old));
        assert!(!world.is_signalled(2), "it has time to answer");
        world.pass_until("it is told", |world| world.is_signalled(2));
        world.exit_newest(0);
        assert_eq!(world.pids(), [100]);
        assert_eq!(world.machine.deadline(), None, "there is no other try");
    }
}

#[test]
fn a_death_ends_it_and_there_is_no_other_try() {
    let mut world = two(Some(60));
    world.exit_newest(256);
    assert_eq!((world.share(), world.lanes.selected), (None, 0));
    let (request, generation, verdict) = world.last_answer();
    assert_eq!((request, generation), (1, 2));
    assert!(matches!(verdict, Verdict::Failed { .. }));
    assert!(world.said("the canary, generation 2, is rolled back"));
    world.check();
    world.pass(600.0);
    world.on(Event::DeadlinePassed);
    assert_eq!(world.pids(), [100]);
}

#[test]
fn the_death_of_one_of_several_workers_ends_it_as_well() {
    let mut world = serving(switched(with_workers(2)), None);
    world.exit_newest(256);
    assert_eq!(world.share(), None);
    assert_eq!(world.state_of(2), Some(State::Old));
    world.pass_until("the other one is told", |world| world.is_signalled(2));
}

#[test]
fn an_unhealthy_one_is_rolled_back() {
    let watched = Settings {
        watch: Some(Duration::from_secs(3)),
        proof: Proof::Told {
            within: Duration::from_secs(20),
        },
        ..switched(settings())
    };
    let mut world = serving(watched, Some(8));
    // Not unhealthy yet, but not without a fault: its time goes on.
    world.pass(7.0);
    let unwell = |since| Event::Unwell {
        generation: 2,
        since,
        known: "503".into(),
    };
    world.on(unwell(world.now));
    assert_eq!(world.wait(), Some(3.0));
    world.pass(2.0);
    let since = world.now;
    world.on(unwell(since));
    assert_eq!(world.wait(), Some(3.0), "it goes on");
    world.pass(3.0);
    world.on(unwell(since));
    assert_eq!(world.share(), None);
    assert_eq!(world.state_of(2), Some(State::Old));
    assert_eq!(world.state_of(1), Some(State::Current));
}

#[test]
fn it_serves_on_alone_if_what_was_current_dies() {
    let mut world = two(None);
    world.exit(Pid::from_raw(100), 256);
    assert_eq!((world.share(), world.lanes.selected), (None, 1));
    assert_eq!(world.state_of(2), Some(State::Current));
    assert_eq!(world.living.len(), 1, "nothing is started");
    world.check();
}

#[test]
fn another_restart_ends_it() {
    let mut world = two(None);
    world.restart();
    assert_eq!((world.share(), world.lanes.selected), (None, 0));
    assert!(!world.is_signalled(2));
    // With two lanes it waits for that of the canary.
    world.pass_until("the canary is told", |world| world.is_signalled(2));
    world.exit_newest(0);
    world.pass_until("the next one serves", |world| {
        world.state_of(3) == Some(State::Current)
    });
    assert_eq!(world.last_answer(), (2, 3, Verdict::Committed));
}

#[test]
fn requests_during_a_start_become_one_and_a_whole_one_wins() {
    let after = |events: &[Event]| {
        let mut world = World::new(switch::switching(3, settings()));
        world.pass_deadline();
        world.restart();
        for event in events {
            world.on(event.clone());
        }
        world.pass_until("the third one serves", |world| {
            matches!(world.state_of(3), Some(State::Current | State::Canary))
        });
        world.state_of(3)
    };
    let canary = || Event::Canary(portion(None));
    assert_eq!(after(&[canary()]), Some(State::Canary));
    assert_eq!(after(&[canary(), Event::Restart]), Some(State::Current));
    assert_eq!(after(&[Event::Restart, canary()]), Some(State::Current));
}

#[test]
fn a_failed_start_of_one_is_tried_again_as_one() {
    let mut world = World::new(switched(settings()));
    world.pass_deadline();
    world.restart_as_canary(None);
    world.exit_newest(256);
    world.pass_until_canary();
    assert_eq!(world.share(), Some((3, 10)));
}

#[test]
fn where_the_kernel_refuses_the_share_it_has_failed() {
    let mut world = World::new(switched(settings()));
    world.pass_deadline();
    world.restart_as_canary(None);
    world.lanes.refuses = true;
    world.pass_until("it has failed", |world| {
        world.state_of(2) == Some(State::Old)
    });
    assert_eq!((world.share(), world.lanes.selected), (None, 0));
    assert_eq!(world.state_of(1), Some(State::Current));
}

#[test]
fn a_share_that_the_kernel_did_not_take_back_is_taken_before_the_next_start() {
    let mut world = two(None);
    world.lanes.refuses = true;
    world.on(Event::RollBack);
    assert_eq!(world.share(), Some((2, 10)), "it is refused");
    world.lanes.refuses = false;
    world.pass_until("it is told", |world| world.is_signalled(2));
    world.exit_newest(0);
    world.restart();
    while world.state_of(3).is_none() {
        assert!(world.pass_deadline(), "the next one is started");
    }
    assert_eq!(world.share(), None, "nobody comes to it yet");
    world.check();
}

#[test]
fn without_lanes_it_is_refused() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart_as_canary(None);
    assert!(matches!(world.last_answer(), (1, 0, Verdict::Refused(_))));
    assert_eq!(world.living.len(), 1);
}

#[test]
fn nothing_restarts_by_itself_beside_it() {
    let timed = Settings {
        knobs: Knobs {
            auto_restart: Some(Duration::from_secs(3)),
            ..delayed(0)
        },
        ..switched(settings())
    };
    let mut world = serving(timed, None);
    assert_eq!(world.machine.deadline(), None);
    world.promote();
    world.pass_until("the old one is told", |world| world.is_signalled(1));
    world.exit(Pid::from_raw(100), 0);
    world.pass_until("it does again", |world| world.state_of(3).is_some());
}

#[test]
fn it_is_the_first_to_serve_where_nothing_does() {
    let mut world = World::new(switched(unpinned(settings())));
    world.pass_deadline();
    world.restart_as_canary(None);
    world.exit(Pid::from_raw(100), 256);
    world.pass_until("it serves", |world| {
        world.state_of(2) == Some(State::Current)
    });
    assert_eq!(world.last_answer(), (1, 2, Verdict::Committed));
}

#[test]
fn a_snapshot_without_its_share_is_refused() {
    let world = two(None);
    let mut wrong = world.machine.clone();
    wrong.selected.canary = None;
    let error = read(&written(&wrong)).unwrap_err();
    assert_eq!(error, "generation 2 is a canary without a share");
    let mut wrong = world.machine.clone();
    wrong.generations[0].stage = Stage::Draining;
    let error = read(&written(&wrong)).unwrap_err();
    assert_eq!(
        error,
        "generation 2 is a canary, and nothing older is current"
    );
}
