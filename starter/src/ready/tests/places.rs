//! A generation with two workers: neither answers for the other.

use nix::sys::socket::{SockaddrStorage, getsockname};
use std::os::fd::OwnedFd;

use super::*;

const HTTP: &str = "/up";

fn http() -> Settings {
    let statuses = Statuses {
        first: 200,
        last: 299,
    };
    let path = HTTP.to_owned();
    settings(Ready::Http { path, statuses }, Some(ProbeAt::Tcp))
}

/// The workers in slots 0 and 1: neither is asked for anything but its pid.
fn pids() -> [Pid; 2] {
    [getpid(), getppid()]
}

/// Starts both workers. Returns their ends of the probe listeners.
fn start(readiness: &mut Readiness) -> [OwnedFd; 2] {
    let probes = [0, 1].map(|slot| {
        let mut handed = readiness.begin(1, slot).unwrap();
        let (probe, _) = handed.descriptors.pop().unwrap();
        readiness.started(1, slot, pids()[slot], handed, &changes());
        probe
    });
    readiness.take_found();
    probes
}

/// Answers the request that has come to a probe listener.
fn answer(probe: &OwnedFd, status: &str) {
    let mut server = File::from(owned(accept(probe.as_raw_fd()).unwrap()));
    let mut request = [0; 512];
    assert!(server.read(&mut request).unwrap() > 0);
    write!(server, "HTTP/1.1 {status}\r\n\r\n").unwrap();
}

fn address(probe: &OwnedFd) -> SockaddrStorage {
    getsockname(probe.as_raw_fd()).unwrap()
}

/// What is found once the answers have come.
fn find(readiness: &mut Readiness, now: Moment) -> Vec<Event> {
    for _ in 0..1000 {
        let found = look(readiness, now);
        if !found.is_empty() {
            return found;
        }
        std::thread::yield_now();
    }
    Vec::new()
}

fn unwell(since: Moment, slot: usize) -> Event {
    Event::Unwell {
        generation: 1,
        since,
        known: format!("GET {HTTP} on worker {slot} of generation 1: 503 Service Unavailable"),
    }
}

#[test]
fn only_the_worker_whose_own_probe_is_answered_is_ready() {
    let mut readiness = readiness(http());
    let probes = start(&mut readiness);
    assert_ne!(address(&probes[0]), address(&probes[1]));
    assert_eq!(look(&mut readiness, soon()), []);
    answer(&probes[1], "204 No Content");
    let ready = Event::Ready(pids()[1]);
    assert_eq!(find(&mut readiness, soon()), [ready]);

    // The next program knows whom it still waits for.
    let mut readiness = carried_over(readiness, http());
    answer(&probes[0], "503 Service Unavailable");
    let known = format!("GET {HTTP} on worker 0 of the new generation: 503 Service Unavailable");
    let pid = pids()[0];
    assert_eq!(
        find(&mut readiness, soon()),
        [Event::NotYetReady { pid, known }]
    );
    look(&mut readiness, after_a_period());
    answer(&probes[0], "200 OK");
    assert_eq!(find(&mut readiness, after_a_period()), [Event::Ready(pid)]);
}

#[test]
fn a_replacement_gets_the_probe_listener_of_its_slot_and_proves_itself_anew() {
    let mut readiness = readiness(http());
    let probes = start(&mut readiness);
    readiness.watched[0].settle();
    let names = readiness.probes_of(1);
    readiness.watched[0].forget_departed(|_| false);
    let mut handed = readiness.begin(1, 1).unwrap();
    let (probe, _) = handed.descriptors.pop().unwrap();
    assert_eq!(address(&probe), address(&probes[1]));
    let pid = Pid::from_raw(1);
    readiness.started(1, 1, pid, handed, &changes());
    readiness.take_found();
    assert_eq!(readiness.probes_of(1), names);
    look(&mut readiness, soon());
    answer(&probes[1], "200 OK");
    assert_eq!(find(&mut readiness, soon()), [Event::Ready(pid)]);
}

#[test]
fn what_workers_leave_behind_is_known_after_the_probes_are_closed() {
    let mut readiness = readiness(http());
    start(&mut readiness);
    let names = readiness.probes_of(1);
    assert_eq!(names.len(), 2);
    readiness.watched[0].retire();
    assert_eq!(readiness.probes_of(1), names);
    let readiness = carried_over(readiness, http());
    assert_eq!(readiness.probes_of(1), names);
}

#[test]
fn a_generation_is_well_once_no_worker_is_bad() {
    let mut readiness = readiness(http());
    let probes = start(&mut readiness);
    readiness.watched[0].settle();
    readiness.watched[0].serve(&http(), Moment::now());
    let mut now = Moment::now();
    // Each worker is asked, and both have answered by the time of the next look.
    let mut ask = |readiness: &mut Readiness, answers: [&str; 2]| {
        now = now + Duration::from_secs(20);
        assert_eq!(look(readiness, now), []);
        for (probe, status) in probes.iter().zip(answers) {
            answer(probe, status);
        }
        (look(readiness, now), now)
    };
    let (good, bad) = ("200 OK", "503 Service Unavailable");
    let (found, since_1) = ask(&mut readiness, [good, bad]);
    assert_eq!(found, [unwell(since_1, 1)]);
    // The one that has been bad for longer speaks for the generation.
    let (found, since_0) = ask(&mut readiness, [bad, bad]);
    assert_eq!(found, [unwell(since_1, 1)]);
    let mut readiness = carried_over(readiness, http());
    let (found, _) = ask(&mut readiness, [bad, good]);
    assert_eq!(found, [unwell(since_0, 0)]);
    let (found, _) = ask(&mut readiness, [good, good]);
    assert_eq!(found, [Event::Well { generation: 1 }]);
    let mut readiness = carried_over(readiness, http());
    let (found, _) = ask(&mut readiness, [good, good]);
    assert_eq!(found, []);
    // A worker that replaces a bad one has given no answer yet: it need not hold up the others.
    let (found, since) = ask(&mut readiness, [good, bad]);
    assert_eq!(found, [unwell(since, 1)]);
    let handed = readiness.begin(1, 1).unwrap();
    readiness.started(1, 1, Pid::from_raw(1), handed, &changes());
    readiness.take_found();
    let well = Event::Well { generation: 1 };
    assert_eq!(look(&mut readiness, Moment::now()), [well]);
}

#[test]
fn each_worker_has_a_command_of_its_own() {
    let ready = || {
        let command = "test $SLOT = 1 || { echo not mine; exit 3; }";
        settings(Ready::Command(command.into()), Some(ProbeAt::Tcp))
    };
    let mut readiness = readiness(ready());
    start(&mut readiness);
    let names = readiness.probes_of(1);
    let mut started = Vec::new();
    let mut run = |order: &Order<'_>| {
        let running = Running::start(order.command, |command| {
            command.env("SLOT", order.slot.to_string());
        })?;
        let probe = order.probe.unwrap().name.clone();
        started.push((order.slot, probe, running.pid()));
        Ok(running)
    };
    readiness.look(Moment::now(), &[], &mut run);
    let mut found = Vec::new();
    for (slot, probe, pid) in started {
        assert_eq!(probe, names[slot].name);
        let WaitStatus::Exited(_, code) = waitpid(pid, None).unwrap() else {
            unreachable!("it exits");
        };
        assert!(readiness.has_exited(pid, code << 8));
        found.extend(readiness.take_found());
    }
    let known = "the --ready command for worker 0 failed, exit status:768 (exit code 3): not mine";
    let known = known.to_owned();
    let [pid, other] = pids();
    assert_eq!(
        found,
        [Event::NotYetReady { pid, known }, Event::Ready(other)]
    );
}
