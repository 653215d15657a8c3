//! Single rules.

use super::*;

#[test]
fn a_new_generation_commits_after_the_interval_and_the_old_one_is_signalled_then() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.state_of(2), Some(State::Starting));
    world.pass_deadline();
    assert_eq!(world.state_of(1), Some(State::Old));
    assert_eq!(world.state_of(2), Some(State::Current));
    assert!(world.living[0].is_signalled);
}

#[test]
fn commits_are_counted_with_the_time_of_the_last_one() {
    let mut world = World::new(settings());
    let counted = |world: &World| {
        let history = world.machine.history();
        (history.counters.commits, history.committed_at)
    };
    assert_eq!(counted(&world), (0, None));
    world.pass_deadline();
    let first = Some(world.now);
    assert_eq!(counted(&world), (1, first));
    world.pass(10.0);
    world.restart();
    world.exit_newest(256);
    assert_eq!(counted(&world), (1, first));
    world.pass_deadline();
    world.pass_deadline();
    assert_eq!(counted(&world), (2, Some(world.now)));
}

#[test]
fn an_interval_of_zero_still_asks_for_a_proof_of_life() {
    let mut world = World::new(Settings {
        interval: Duration::ZERO,
        ..settings()
    });
    assert_eq!(world.machine.deadline(), Some(world.now + PROOF_OF_LIFE));
    world.on(Event::DeadlinePassed);
    assert_eq!(world.state_of(1), Some(State::Starting));
    world.pass_deadline();
    assert_eq!(world.state_of(1), Some(State::Current));
}

#[test]
fn a_worker_that_has_not_executed_the_program_does_not_commit_though_it_lives_for_the_interval() {
    let mut world = World::with(settings(), false);
    world.pass(29.0);
    world.on(Event::DeadlinePassed);
    assert_eq!(world.state_of(1), Some(State::Starting));
    assert_eq!(world.wait(), Some(1.0));
    world.on(Event::Executed(Pid::from_raw(100)));
    world.on(Event::DeadlinePassed);
    assert_eq!(world.state_of(1), Some(State::Starting));
    world.pass_deadline();
    assert_eq!(world.state_of(1), Some(State::Current));
}

#[test]
fn a_worker_that_hangs_before_the_program_is_killed_and_its_start_has_failed() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.execute = false;
    world.restart();
    let hanging = world.living[1].pid;
    world.execute = true;
    world.pass_deadline();
    assert_eq!(world.state_of(2), Some(State::Old));
    assert_eq!(world.state_of(1), Some(State::Current));
    assert!(world.said(&format!(
        "cannot execute the program in worker {hanging} within 30 seconds"
    )));
    assert_eq!(world.machine.history().counters.failed_starts, 1);
    // The next try does not wait for the end of a process that may have none.
    world.pass_deadline();
    assert_eq!(world.state_of(3), Some(State::Current));
    world.exit(hanging, 9);
    assert!(world.said(&format!("old worker {hanging} died, status:9")));
}

fn verdicts(world: &World) -> Vec<(u32, bool)> {
    let decisions = world.machine.history().decisions.iter();
    decisions
        .map(|one| (one.generation, one.verdict == Verdict::Committed))
        .collect()
}

#[test]
fn a_restart_after_which_nobody_reaches_a_listener_has_failed_though_it_serves() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.is_unreachable = true;
    world.restart();
    world.pass_deadline();
    assert_eq!(verdicts(&world), [(1, true), (2, true), (2, false)]);
    assert_eq!(world.state_of(2), Some(State::Current));
    // The old one would be reached no better, and there is no further try.
    assert!(world.living[0].is_signalled);
    assert_eq!(world.machine.history().counters.failed_starts, 0);
    world.exit(Pid::from_raw(100), 0);
    assert_eq!(world.machine.deadline(), None);
    assert_eq!(verdicts(&world).len(), 3, "it is said once");
    let last = world.machine.history().decisions.back().unwrap();
    assert_eq!(last.verdict, Verdict::Unreachable(nobody_reaches()));
    assert_eq!(last.request, 1);
}

#[test]
fn what_an_old_worker_does_to_a_listener_at_its_end_is_the_verdict_on_its_restart() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    world.pass_deadline();
    assert_eq!(verdicts(&world), [(1, true), (2, true)]);
    world.is_unreachable = true;
    world.exit(Pid::from_raw(100), 0);
    assert_eq!(verdicts(&world), [(1, true), (2, true), (2, false)]);
}

#[test]
fn what_happens_to_a_listener_after_a_restart_is_no_verdict_on_it() {
    let mut world = World::new(with_workers(2));
    world.pass_deadline();
    world.is_unreachable = true;
    world.exit_newest(256);
    assert_eq!(verdicts(&world), [(1, true)]);
}

#[test]
fn a_supervisor_that_is_broken_stops_everything_and_has_failed() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    world.stopping = true;
    world.owed = false;
    world.on(Event::Broken);
    while !world.living.is_empty() {
        world.exit_newest(15);
    }
    assert_eq!(world.finished, Some(Outcome::GivenUp));
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
        assert_eq!(world.state_of(1), Some(State::Current));
        let started_at = world.machine.last_started_at;
        waits.push(
            world
                .machine
                .deadline()
                .unwrap()
                .saturating_since(started_at)
                .as_secs_f64(),
        );
        world.pass_deadline();
    }
    assert_eq!(waits[..4], [1.0, 1.5, 2.25, 3.375]);
    assert_eq!(waits[11], 30.0);
    assert_eq!(world.machine.history.counters.failed_starts, 12);
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
    let started_at = world.machine.last_started_at;
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
    assert_eq!(world.state_of(1), Some(State::Retiring));
    world.exit_newest(11);
    assert_eq!(world.state_of(1), Some(State::Current));
    assert!(!world.living[0].is_signalled);
    assert!(world.said("the old workers were not yet signalled and are serving again:100"));
    assert_eq!(world.machine.history.counters.failed_starts, 1);
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
    assert_eq!(world.state_of(3), Some(State::Starting));
    while world.pass_deadline() {}
    assert_eq!(
        [1, 2, 3].map(|number| world.state_of(number)),
        [Some(State::Old), Some(State::Old), Some(State::Current)]
    );
}

#[test]
fn a_worker_that_dies_while_serving_is_replaced_at_once() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.pass(10.0);
    world.exit_newest(9);
    assert_eq!(world.state_of(2), Some(State::Starting));
    assert!(world.said("worker 100 died unexpectedly with status:9, restarting"));
}

#[test]
fn a_worker_that_its_successor_stops_during_the_start_has_not_crashed() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    world.exit(Pid::from_raw(100), 0);
    assert!(world.said("old worker 100 died, status:0"));
    assert_eq!(world.machine.history.counters.crashes, 0);
    world.pass_deadline();
    assert_eq!(world.state_of(2), Some(State::Current));
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
fn a_first_start_that_exits_with_success_three_times_in_a_row_is_given_up_without_any_limit() {
    let mut world = World::new(settings());
    world.exit_newest(0);
    world.pass_deadline();
    world.exit_newest(0);
    world.pass_deadline();
    world.exit_newest(256);
    world.pass_deadline();
    for _ in 0..2 {
        world.exit_newest(0);
        assert_eq!(world.finished, None);
        world.pass_deadline();
    }
    world.exit_newest(0);
    assert_eq!(world.finished, Some(Outcome::GivenUp));
    assert!(world.said("giving up after 6 failed starts"));
}

#[test]
fn a_smaller_limit_ends_a_first_start_that_exits_with_success() {
    let mut world = World::new(Settings {
        first_start_limit: NonZeroU32::new(2),
        ..settings()
    });
    world.exit_newest(0);
    world.pass_deadline();
    world.exit_newest(0);
    assert_eq!(world.finished, Some(Outcome::GivenUp));
}

#[test]
fn a_hup_gives_a_first_start_that_exits_with_success_three_more_tries() {
    let mut world = World::new(settings());
    for _ in 0..2 {
        world.exit_newest(0);
        world.pass_deadline();
    }
    world.restart();
    world.exit_newest(0);
    for _ in 0..2 {
        world.pass_deadline();
        world.exit_newest(0);
    }
    assert_eq!(world.finished, None);
    world.pass_deadline();
    world.exit_newest(0);
    assert_eq!(world.finished, Some(Outcome::GivenUp));
}

#[test]
fn a_restart_that_exits_with_success_is_tried_again_for_ever() {
    let mut world = World::new(settings());
    world.pass_deadline();
    world.restart();
    for _ in 0..5 {
        world.exit_newest(0);
        world.pass_deadline();
    }
    assert_eq!(world.state_of(1), Some(State::Current));
    assert_eq!(world.state_of(7), Some(State::Starting));
}

#[test]
fn only_what_a_start_that_exited_with_success_has_left_behind_is_ended() {
    let mut world = World::new(settings());
    world.exit_newest(256);
    world.pass_deadline();
    world.exit_newest(0);
    world.pass_deadline();
    world.pass_deadline();
    world.exit_newest(0);
    assert_eq!(world.ended_leftovers_of, [Pid::from_raw(101)]);
}

#[test]
fn what_each_of_several_workers_of_a_failed_start_has_left_behind_is_ended() {
    let mut world = World::new(with_workers(3));
    world.exit(Pid::from_raw(100), 0);
    world.exit(Pid::from_raw(102), 0);
    // It has not left the foreground.
    world.exit(Pid::from_raw(101), 15);
    assert_eq!(world.ended_leftovers_of, [100, 102].map(Pid::from_raw));
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
    assert_eq!(world.state_of(1), Some(State::Current));
    world.restart();
    assert_eq!(world.state_of(4), Some(State::Starting));
}

#[test]
fn a_program_that_cannot_be_executed_ends_the_first_start_only() {
    let cause = cannot_execute;
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
    assert_eq!(
        (world.finished, world.state_of(1)),
        (None, Some(State::Current))
    );
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
fn whoever_stops_it_again_learns_what_it_waits_for() {
    let stop_timeout = Some(Duration::from_secs(30));
    for (settings, end) in [
        (settings(), "--stop-timeout or kill -KILL ends them"),
        (
            Settings {
                stop_timeout,
                ..settings()
            },
            "they are killed in 18 s",
        ),
    ] {
        let mut world = World::new(settings);
        world.pass_deadline();
        world.restart();
        world.stop(Signal::SIGTERM);
        assert!(!world.said("still waiting"));
        world.pass(12.0);
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let before = world.machine.clone();
            world.said.clear();
            world.stop(signal);
            let line = format!(
                "still waiting for worker 100 of generation 1 and worker 101 of generation 2 (12 s); {end}"
            );
            assert!(world.said(&line), "{:?}", world.said);
            assert_eq!(world.machine, before, "it changes nothing");
        }
    }
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
    world.pass(5.0);
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
    world.pass(10.0);
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
        (Some(State::Current), Some(State::Old))
    );
    assert_eq!(world.machine.history.counters.failed_starts, 1);
    world.exit_newest(0);
    world.exit_newest(0);
    assert_eq!(world.machine.history.counters.failed_starts, 1);
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
    assert_eq!(world.now.saturating_since(first).as_secs(), 100);
    assert!(world.said("autorestart triggered (interval=100)"));
    world.pass_deadline();
    let second = world.now;
    // The old worker stays.
    world.pass_deadline();
    assert_eq!(world.now.saturating_since(second).as_secs(), 200);
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
    world.machine.set_knobs(Knobs {
        auto_restart: Some(Duration::from_secs(7)),
        ..delayed(0)
    });
    assert_eq!(
        world.machine.deadline(),
        Some(world.now + Duration::from_secs(7))
    );
    world.machine.set_knobs(delayed(0));
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
            .history
            .decisions
            .iter()
            .map(|decision| decision.request)
            .collect()
    };
    assert_eq!(requests(&world), [0, 1]);
    world.exit_newest(256);
    assert_eq!(requests(&world), [0, 1, 2]);
    assert_eq!(
        world.machine.history.decisions[2].verdict,
        Verdict::Failed {
            status: Some(256),
            cause: None,
            given_up: false,
        }
    );
}

#[test]
fn the_last_try_of_a_restart_says_so() {
    let mut world = World::new(Settings {
        start_limit: NonZeroU32::new(2),
        ..settings()
    });
    world.pass_deadline();
    world.restart();
    world.exit_newest(256);
    world.pass_deadline();
    world.exit_newest(256);
    let decisions = world.machine.history.decisions.iter();
    let given_up: Vec<bool> = decisions
        .map(|one| matches!(one.verdict, Verdict::Failed { given_up: true, .. }))
        .collect();
    assert_eq!(given_up, [false, false, true]);
    world.check();
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
