//! The policy without processes: a machine is driven by hand, and a manager that is a list takes what it is told.

use std::num::NonZeroU32;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::*;
use crate::machine::{Action, Event, FailedCheck, Knobs, Proof, Replace, Settings};
use crate::words::start_failure::StartFailure;

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings {
        workers: 1,
        rolling: None,
        start_parallel: None,
        most_workers: usize::MAX,
        watch: None,
        replace: Replace::Overlap,
        lanes: 1,
        shards: 1,
        flows: false,
        quiet_time: Duration::from_millis(200),
        switch_timeout: Duration::from_secs(5),
        interval: SECOND,
        proof: Proof::Told {
            within: 60 * SECOND,
        },
        signal_on_hup: Signal::SIGTERM,
        signal_on_term: Signal::SIGTERM,
        stop_timeout: None,
        check: None,
        check_first: false,
        kill_old_timeout: None,
        max_old_generations: None,
        start_limit: None,
        first_start_limit: None,
        pins: true,
        knobs: Knobs {
            kill_old_delay: Duration::ZERO,
            auto_restart: None,
        },
    }
}

/// A machine, its workers, and a manager that has read everything.
struct World {
    machine: Machine,
    now: Moment,
    known: Known,
    told: Told,
    /// Whether the manager's queue has room.
    has_room: bool,
    /// No process can be made.
    fails_to_spawn: bool,
    received: Vec<String>,
    living: Vec<(u32, Pid)>,
    next_pid: i32,
}

impl World {
    fn new(settings: Settings) -> World {
        let now = Moment::of_test(1000 * SECOND);
        let (machine, actions) = Machine::start(settings, now);
        let mut world = World {
            machine,
            now,
            known: Known::default(),
            told: Told::default(),
            has_room: true,
            fails_to_spawn: false,
            received: Vec::new(),
            living: Vec::new(),
            next_pid: 100,
        };
        world.learn();
        world.perform(actions);
        world.tell();
        world
    }

    fn learn(&mut self) {
        self.known = self.known.after(&self.machine, Some("READY=1"));
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            let Action::Spawn {
                generation, slot, ..
            } = action
            else {
                continue;
            };
            if self.fails_to_spawn {
                let cause = StartFailure {
                    cause: "cannot fork: no".into(),
                    hint: None,
                };
                self.decide(Event::SpawnFailed {
                    generation,
                    slot,
                    cause,
                });
                continue;
            }
            let pid = Pid::from_raw(self.next_pid);
            self.next_pid += 1;
            self.living.push((generation, pid));
            self.decide(Event::Spawned {
                generation,
                slot,
                pid,
            });
            self.decide(Event::Executed(pid));
        }
    }

    fn decide(&mut self, event: Event) {
        let actions = self.machine.on(event, self.now);
        self.learn();
        self.perform(actions);
    }

    fn tell(&mut self) {
        while let Some((text, told)) = self.told.next(&self.known, None, self.now) {
            if !self.has_room {
                return;
            }
            self.received.push(text);
            self.told = told;
        }
    }

    fn on(&mut self, event: Event) {
        self.decide(event);
        self.tell();
    }

    fn worker(&self, generation: u32) -> Pid {
        let mut living = self.living.iter();
        living.find(|(one, _)| *one == generation).unwrap().1
    }

    fn ready(&mut self, generation: u32) {
        self.on(Event::Ready(self.worker(generation)));
    }

    fn exits(&mut self, generation: u32, status: i32) {
        let pid = self.worker(generation);
        self.living.retain(|(_, one)| *one != pid);
        self.on(Event::Exited { pid, status });
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.on(Event::DeadlinePassed);
    }

    /// Lets everything go well until no restart is under way, or for a long time.
    fn settle(&mut self) {
        self.fails_to_spawn = false;
        for _ in 0..20 {
            if !self.known.is_restarting {
                return;
            }
            self.on(Event::Checked(Ok(())));
            for (_, pid) in self.living.clone() {
                self.on(Event::Ready(pid));
            }
            self.pass(31 * SECOND);
        }
    }

    /// What has arrived since the last call.
    fn received(&mut self) -> Vec<String> {
        std::mem::take(&mut self.received)
    }

    /// The same without what the manager need not act on.
    fn lifecycle(&mut self) -> Vec<&'static str> {
        let known = ["READY=1", "RELOADING=1", "STOPPING=1"];
        let received = self.received();
        let lines = received.iter().flat_map(|datagram| datagram.lines());
        lines
            .filter_map(|line| known.into_iter().find(|one| *one == line))
            .collect()
    }
}

fn serving(settings: Settings) -> World {
    let mut world = World::new(settings);
    world.ready(1);
    world.received();
    world
}

#[test]
fn a_start_is_ready_when_it_serves_and_not_before() {
    let mut world = World::new(settings());
    assert_eq!(
        world.received(),
        ["STATUS=starting: generation 1, waiting for READY=1\nEXTEND_TIMEOUT_USEC=70000000"]
    );
    world.ready(1);
    assert_eq!(
        world.received(),
        ["READY=1\nSTATUS=serving: generation 1, 1 worker"]
    );
}

#[test]
fn a_restart_is_announced_with_the_time_and_its_end_too() {
    let mut world = serving(settings());
    world.on(Event::Restart);
    assert_eq!(
        world.received(),
        ["RELOADING=1\nMONOTONIC_USEC=1000000000\n\
          STATUS=restarting: generation 2 of 1, waiting for READY=1\nEXTEND_TIMEOUT_USEC=70000000"]
    );
    world.ready(2);
    assert_eq!(
        world.received(),
        ["READY=1\nSTATUS=serving: generation 2, 1 worker; 1 old worker is left"]
    );
    world.exits(1, 0);
    assert_eq!(world.received(), ["STATUS=serving: generation 2, 1 worker"]);
}

#[test]
fn a_restart_that_fails_is_over_and_so_is_each_further_try() {
    let mut world = serving(settings());
    world.on(Event::Restart);
    world.received();
    world.exits(2, 256);
    let failed = "STATUS=restart of generation 2 failed: exit status 1; generation 1 serves";
    assert_eq!(world.received(), [format!("READY=1\n{failed}")]);
    world.pass(2 * SECOND);
    assert_eq!(world.lifecycle(), ["RELOADING=1"]);
    world.exits(3, 9);
    let status = world.known.status.clone();
    assert_eq!(
        status,
        "restart of generation 3 failed: killed by SIGKILL; generation 1 serves"
    );
    assert_eq!(world.lifecycle(), ["READY=1"]);
}

#[test]
fn a_restart_that_fails_at_once_is_announced_as_well() {
    let mut world = serving(settings());
    world.fails_to_spawn = true;
    world.on(Event::Restart);
    assert_eq!(world.lifecycle(), ["RELOADING=1", "READY=1"]);
    let status = "restart of generation 2 failed: cannot fork: no; generation 1 serves";
    assert_eq!(world.known.status, status);
}

#[test]
fn a_timed_restart_is_one_like_any_other() {
    let mut world = serving(Settings {
        knobs: Knobs {
            kill_old_delay: Duration::ZERO,
            auto_restart: Some(60 * SECOND),
        },
        ..settings()
    });
    world.pass(61 * SECOND);
    assert_eq!(world.lifecycle(), ["RELOADING=1"]);
    world.ready(2);
    assert_eq!(world.lifecycle(), ["READY=1"]);
}

#[test]
fn a_request_during_a_restart_is_heard_and_both_are_over_together() {
    let mut world = serving(settings());
    world.on(Event::Restart);
    assert_eq!(world.lifecycle(), ["RELOADING=1"]);
    world.pass(SECOND);
    world.on(Event::Restart);
    let received = world.received();
    assert!(
        received[0].starts_with("RELOADING=1\nMONOTONIC_USEC=1001000000"),
        "{received:?}"
    );
    world.ready(2);
    assert_eq!(world.lifecycle(), [""; 0]);
    world.ready(3);
    assert_eq!(world.lifecycle(), ["READY=1"]);
}

#[test]
fn a_request_during_the_first_start_is_a_restart_after_it() {
    let mut world = World::new(settings());
    world.on(Event::Restart);
    assert_eq!(world.lifecycle(), [""; 0]);
    world.ready(1);
    let received = world.received();
    assert!(received[0].starts_with("READY=1\n"), "{received:?}");
    assert!(received[1].starts_with("RELOADING=1\n"), "{received:?}");
    world.ready(2);
    assert_eq!(world.lifecycle(), ["READY=1"]);
}

#[test]
fn a_check_is_a_part_of_the_restart_and_its_failure_the_end_of_it() {
    let mut world = serving(Settings {
        check: Some(60 * SECOND),
        ..settings()
    });
    world.on(Event::Restart);
    let received = world.received();
    assert!(
        received[0].ends_with(
            "\nSTATUS=restarting: the check runs; generation 1 serves\nEXTEND_TIMEOUT_USEC=70000000"
        ),
        "{received:?}"
    );
    let failed = FailedCheck {
        status: Some(256),
        cause: StartFailure::failed_check(256),
        lines: Vec::new(),
    };
    world.on(Event::Checked(Err(failed)));
    assert_eq!(
        world.received(),
        [
            "READY=1\nSTATUS=restart failed: the check failed, exit status:256 (exit code 1); generation 1 serves"
        ]
    );
}

#[test]
fn a_request_while_nothing_serves_is_answered_by_the_start_that_it_leads_to() {
    let mut world = serving(settings());
    world.exits(1, 256);
    assert_eq!(world.lifecycle(), [""; 0]);
    world.on(Event::Restart);
    assert_eq!(world.lifecycle(), ["RELOADING=1"]);
    world.pass(5 * SECOND);
    world.ready(2);
    if world.known.is_restarting {
        world.ready(3);
    }
    assert_eq!(world.lifecycle(), ["READY=1"]);
}

#[test]
fn crashes_are_no_restarts_and_what_is_long_answered_stays_so() {
    let mut world = serving(settings());
    world.on(Event::Restart);
    world.ready(2);
    world.exits(1, 0);
    assert_eq!(world.lifecycle(), ["RELOADING=1", "READY=1"]);
    // More than the machine remembers.
    for generation in 2..20 {
        world.exits(generation, 256);
        world.pass(60 * SECOND);
        world.ready(generation + 1);
    }
    assert_eq!(world.lifecycle(), [""; 0]);
}

#[test]
fn a_stop_ends_everything_and_is_told_once() {
    let mut world = serving(Settings {
        stop_timeout: Some(300 * SECOND),
        ..settings()
    });
    world.on(Event::Restart);
    world.received();
    world.on(Event::Stop(Signal::SIGTERM));
    assert_eq!(
        world.received(),
        [
            "STOPPING=1\nSTATUS=stopping: waiting for 2 workers to exit\nEXTEND_TIMEOUT_USEC=310000000"
        ]
    );
    world.exits(2, 0);
    world.exits(1, 0);
    assert_eq!(
        world.received(),
        [
            "STATUS=stopping: waiting for 1 worker to exit",
            "STATUS=stopping: no worker is left"
        ]
    );
}

#[test]
fn only_what_has_a_bound_gets_more_time() {
    let extension = |world: &mut World| world.received().concat().contains("EXTEND_TIMEOUT_USEC");
    let mut stopping = serving(settings());
    stopping.on(Event::Stop(Signal::SIGTERM));
    assert!(!extension(&mut stopping));
    // Retries for ever have none, those with a limit do.
    for (limit, expected) in [(None, false), (NonZeroU32::new(9), true)] {
        let mut world = World::new(Settings {
            first_start_limit: limit,
            ..settings()
        });
        assert!(extension(&mut world));
        world.exits(1, 256);
        world.pass(2 * SECOND);
        world.received();
        world.pass(100 * SECOND);
        world.pass(100 * SECOND);
        assert_eq!(extension(&mut world), expected, "{limit:?}");
    }
}

#[test]
fn a_worker_that_stops_by_itself_does_not_end_the_unit() {
    let mut world = serving(settings());
    world.on(Event::Restart);
    world.on(Event::Stopping(world.worker(1)));
    world.ready(2);
    assert_eq!(world.lifecycle(), ["RELOADING=1", "READY=1"]);
    world.on(Event::Stopping(world.worker(2)));
    assert_eq!(world.lifecycle(), [""; 0]);
}

#[test]
fn what_found_no_room_is_told_later_if_it_still_matters() {
    let mut world = World::new(settings());
    world.received();
    world.has_room = false;
    world.ready(1);
    world.on(Event::Restart);
    world.ready(2);
    world.exits(1, 0);
    assert_eq!(world.received(), [""; 0]);
    world.has_room = true;
    world.tell();
    let status = "STATUS=serving: generation 2, 1 worker";
    assert_eq!(
        world.received(),
        [
            format!("READY=1\n{status}"),
            "RELOADING=1\nMONOTONIC_USEC=1000000000".to_owned(),
            "READY=1".to_owned()
        ]
    );
    world.has_room = false;
    world.on(Event::Restart);
    world.on(Event::Stop(Signal::SIGTERM));
    world.has_room = true;
    world.tell();
    assert_eq!(world.lifecycle(), ["STOPPING=1"]);
}

#[test]
fn a_daemon_introduces_itself_once() {
    let known = Known::default();
    let (first, told) = Told::default().next(&known, Some(7), Moment::ZERO).unwrap();
    assert_eq!(first, "MAINPID=7\nSTATUS=");
    assert_eq!(told.next(&known, Some(7), Moment::ZERO), None);
}

#[test]
fn the_server_is_well_while_its_current_generation_lives() {
    let mut world = World::new(settings());
    assert!(!is_healthy(&world.machine));
    world.ready(1);
    assert!(is_healthy(&world.machine));
    world.exits(1, 256);
    assert!(!is_healthy(&world.machine));
    world.pass(60 * SECOND);
    world.ready(2);
    world.on(Event::Restart);
    assert!(is_healthy(&world.machine));
    world.on(Event::Stop(Signal::SIGTERM));
    world.exits(2, 0);
    assert!(is_healthy(&world.machine));
    world.exits(3, 0);
    assert!(!is_healthy(&world.machine));
}

/// Whatever happens, and whether or not there is room in between: the first word is that it is ready, every restart ends,
/// and nothing follows a stop.
#[test]
fn the_protocol_is_kept_through_many_random_lives() {
    for seed in 1..=2000_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut world = World::new(Settings {
            check: (next(3) == 0).then_some(60 * SECOND),
            start_limit: NonZeroU32::new(u32::try_from(next(3)).unwrap()),
            pins: next(2) == 0,
            knobs: Knobs {
                kill_old_delay: SECOND * u32::try_from(next(2)).unwrap(),
                auto_restart: (next(2) == 0).then_some(90 * SECOND),
            },
            ..settings()
        });
        for _ in 0..40 {
            world.has_room = next(3) > 0;
            world.fails_to_spawn = next(9) == 0;
            let some = (!world.living.is_empty())
                .then(|| world.living[usize::try_from(next(99)).unwrap() % world.living.len()]);
            match (next(8), some) {
                (0, _) => world.on(Event::Restart),
                (1, Some((generation, _))) => world.exits(generation, 256),
                (2 | 3, Some((_, pid))) => world.on(Event::Ready(pid)),
                (4, Some((_, pid))) => world.on(Event::Stopping(pid)),
                (5, _) if world.machine.is_checking() => world.on(Event::Checked(Ok(()))),
                (6, _) if next(9) == 0 => world.on(Event::Stop(Signal::SIGTERM)),
                _ => world.pass(SECOND * u32::try_from(next(50)).unwrap()),
            }
        }
        world.has_room = true;
        world.tell();
        let told = world.lifecycle();
        let mut is_over = true;
        for (place, word) in told.iter().enumerate() {
            match *word {
                "READY=1" => assert!(place == 0 || !is_over, "{seed}: {told:?}"),
                "RELOADING=1" => assert!(place > 0, "{seed}: {told:?}"),
                _ => assert!(place + 1 == told.len(), "{seed}: {told:?}"),
            }
            is_over = *word == "READY=1";
        }
        let expected = !told.is_empty() && !world.machine.is_stopping() && !is_over;
        assert_eq!(expected, world.known.is_restarting, "{seed}: {told:?}");
        assert!(world.known.is_ready || !told.contains(&"READY=1"));
        world.settle();
        assert!(!world.known.is_restarting, "{seed}: {:?}", world.machine);
    }
}

/// Through the text that the next program reads.
fn packed_and_unpacked(manager: &Manager) -> Manager {
    let text = serde_json::to_string(&manager.pack(&mut Luggage::default())).unwrap();
    Manager::unpack(serde_json::from_str(&text).unwrap(), Some("READY=1".into()))
}

#[test]
fn the_next_program_tells_only_what_the_manager_does_not_know() {
    let path = std::env::temp_dir().join(format!("packed-manager-{}", std::process::id()));
    let listener = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let heard = || {
        let mut datagram = [0; 4096];
        let length = listener.recv(&mut datagram).ok()?;
        Some(String::from_utf8_lossy(&datagram[..length]).into_owned())
    };
    let launch = Launch {
        socket: Some(path.clone().into()),
        watchdog: Some(2000 * SECOND),
        notice: Some(Notice::Complaint("a complaint".to_owned())),
    };
    let mut manager = Manager::reach(launch, Some(7), Some("READY=1".into()));
    let mut world = World::new(settings());
    world.ready(1);
    manager.learn(&world.machine);
    manager.tell(&world.machine, Moment::now());
    let told = heard().unwrap();
    assert!(told.starts_with("MAINPID=7\nREADY=1\n"), "{told}");
    assert_eq!(heard().as_deref(), Some("WATCHDOG=1"));
    // Its socket is out of reach, as it may be since privileges were dropped.
    std::fs::remove_file(&path).unwrap();
    let mut next = packed_and_unpacked(&manager);
    drop(manager);
    let said = next.notices();
    assert!(matches!(&said[..], [Notice::Complaint(said)] if said == "a complaint"));
    next.learn(&world.machine);
    next.tell(&world.machine, Moment::now());
    assert_eq!(heard(), None);
    world.on(Event::Restart);
    next.learn(&world.machine);
    next.tell(&world.machine, Moment::now());
    let told = heard().unwrap();
    assert!(told.starts_with("RELOADING=1\n"), "{told}");
    assert!(told.contains("\nSTATUS=restarting"), "{told}");
    assert!(told.contains("waiting for READY=1"), "{told}");
}

#[test]
fn the_next_program_does_not_complain_again_and_asks_no_sooner() {
    let path = std::env::temp_dir().join(format!("no-manager-{}", std::process::id()));
    let launch = Launch {
        socket: Some(path.into()),
        ..Launch::default()
    };
    let mut manager = Manager::reach(launch, None, None);
    assert_eq!(manager.notices().len(), 1);
    let mut next = packed_and_unpacked(&manager);
    let world = World::new(settings());
    next.learn(&world.machine);
    let later = Moment::now() + 5 * SECOND;
    next.tell(&world.machine, later);
    assert_eq!(next.notices(), []);
    let mut again = packed_and_unpacked(&next);
    let channel = again.channel.as_mut().unwrap();
    assert_eq!(channel.send("x", later), Sent::StillNobody);
    assert!(matches!(channel.send("x", later + SECOND), Sent::Nobody(_)));
}

#[test]
fn a_place_where_nobody_can_listen_is_not_read() {
    let text = r#"{"place":{"Unix":[47]},"socket":null,"next_try":5}"#;
    assert!(serde_json::from_str::<PackedChannel>(text).is_ok());
    let relative = text.replace("47", "46");
    assert!(serde_json::from_str::<PackedChannel>(&relative).is_err());
}
