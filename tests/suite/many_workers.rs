//! `--workers`, `--scale`, TTIN and TTOU: several workers side by side, and another number of them while they serve.

use std::env;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use e2e::client::Load;
use e2e::journal::Happened;
use e2e::{Server, Setup, Worker, ports, proc, programs, wait};
use nix::pty::openpty;
use nix::sys::resource::Resource;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};

use crate::bad_input::assert_usage;
use crate::commands::{Client, run};
use crate::readiness::{Gate, gated_by, is_ours, scripted, with_files};
use crate::upgrade::upgradable;

const NUMBER: &str = "SERVER_STARTER_WORKER";
const NUMBERS: &str = "SERVER_STARTER_WORKERS";

/// Generation and number of each living worker, in order.
pub fn places(server: &Server) -> Vec<(u32, usize)> {
    let workers = server.workers().into_iter();
    let mut places: Vec<_> = workers
        .filter_map(|one| Some((one.generation, number(one)?)))
        .collect();
    places.sort_unstable();
    places
}

/// The number of a worker that lives.
pub fn number(worker: Worker) -> Option<usize> {
    proc::environment(worker.pid).get(NUMBER)?.parse().ok()
}

pub fn all_of(generation: u32, workers: usize) -> Vec<(u32, usize)> {
    (0..workers).map(|place| (generation, place)).collect()
}

/// Waits until exactly so many workers of this generation live, which serve as the status says.
#[track_caller]
pub fn wait_for_whole(server: &Server, generation: u32, workers: usize) -> Vec<Worker> {
    let wanted = all_of(generation, workers);
    server.wait_for(&format!("{wanted:?} serve alone"), |server| {
        let serving = server.status_file()?.lines().count();
        let is_whole = serving == workers && places(server) == wanted && !is_starting(server);
        is_whole.then(|| server.workers())
    })
}

fn is_starting(server: &Server) -> bool {
    let json = server.status_json().unwrap_or_default();
    let mut generations = json["generations"].as_array().into_iter().flatten();
    generations.any(|one| one["state"] != "current")
}

/// The worker that has this number.
#[track_caller]
pub fn worker_in(server: &Server, generation: u32, place: usize) -> Worker {
    server.wait_for("the worker lives", |server| {
        let mut workers = server.workers().into_iter();
        workers.find(|one| one.generation == generation && number(*one) == Some(place))
    })
}

#[track_caller]
pub fn serving(setup: Setup, workers: usize) -> (Server, u16) {
    let port = ports::tcp();
    let setup = setup.port(port);
    let server = setup.option(format!("--workers={workers}")).start();
    wait_for_whole(&server, 1, workers);
    (server, port)
}

fn graceful() -> Setup {
    with_files().worker(["--graceful"])
}

pub fn restart(server: &Server) -> Client {
    run(server, &["--restart", "--pid-file=pid"])
}

fn scale(server: &Server, to: &str) -> Client {
    run(server, &[&format!("--scale={to}"), "--pid-file=pid"])
}

pub fn status(server: &Server) -> String {
    let mut client = run(server, &["--status", "--pid-file=pid"]);
    client.wait();
    client.said()
}

#[track_caller]
pub fn succeeds(mut client: Client) -> String {
    assert_eq!(client.wait(), 0, "{}", client.said());
    client.said()
}

#[track_caller]
pub fn fails(mut client: Client) -> String {
    assert_eq!(client.wait(), 1, "{}", client.said());
    client.said()
}

/// How many workers of this generation have begun to serve so far.
fn count_served(server: &Server, generation: u32) -> usize {
    let served = |happened: &Happened| *happened == Happened::Served;
    let journal = server.journal().into_iter();
    journal
        .filter(|entry| entry.generation == generation && served(&entry.happened))
        .count()
}

// Side by side.

#[test]
fn each_has_its_number_and_its_place_in_every_file() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(graceful(), 3);
    let workers = server.workers();
    for worker in &workers {
        let environment = proc::environment(worker.pid);
        assert_eq!(environment.get(NUMBERS).map(String::as_str), Some("3"));
    }
    let mut lines: Vec<String> = workers.iter().map(|one| format!("1:{}", one.pid)).collect();
    let text = server.status_file().expect("a status file");
    let mut found: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    found.sort();
    assert_eq!(found, lines);
    let json = server.status_json().expect("a status");
    assert_eq!(json["workers"], 3);
    for entry in json["generations"][0]["workers"]
        .as_array()
        .expect("workers")
    {
        let pid = i32::try_from(entry["pid"].as_i64().expect("a pid")).expect("a pid");
        let worker = workers.iter().find(|one| one.pid == Pid::from_raw(pid));
        let number = number(*worker.expect("it lives"));
        assert_eq!(entry["slot"].as_u64(), number.map(|number| number as u64));
    }
    let said = status(&server);
    assert!(said.contains("3 workers"), "{said}");
    assert!(said.contains("NO"), "{said}");
    assert!(server.ask(port).generation == Some(1));
}

#[test]
fn old_workers_are_told_only_after_every_new_one_is_ready() {
    if !is_ours() {
        return;
    }
    for (ready, arguments) in [("notify", "--notify"), ("http:/exists/pid", "")] {
        let before = "[ $SERVER_STARTER_GENERATION = 1 ] || [ $SERVER_STARTER_WORKER != 2 ]";
        let setup = with_files().option(format!("--ready={ready}"));
        let (setup, gate): (Setup, Gate) = gated_by(setup, before, arguments);
        let (server, port) = serving(setup, 3);
        let old = server.workers();
        let client = restart(&server);
        server.wait_until("two of three serve", |server| count_served(server, 2) == 2);
        for _ in 0..20 {
            server.ask(port);
        }
        for worker in &old {
            assert_eq!(server.caught(*worker), [] as [&str; 0], "{ready}");
        }
        gate.open();
        succeeds(client);
        wait_for_whole(&server, 2, 3);
        for worker in old {
            assert_eq!(server.caught(worker), ["SIGTERM"], "{ready}");
        }
    }
}

#[test]
fn one_that_dies_is_replaced_in_its_place_alone() {
    if !is_ours() {
        return;
    }
    let (server, _) = serving(graceful(), 3);
    let (first, killed, last) = (
        worker_in(&server, 1, 0),
        worker_in(&server, 1, 1),
        worker_in(&server, 1, 2),
    );
    kill(killed.pid, Signal::SIGKILL).expect("cannot kill it");
    let instead = server.wait_for("another has its number", |server| {
        let workers = server.workers().into_iter();
        let mut others = workers.filter(|one| ![first, killed, last].contains(one));
        others.find(|one| number(*one) == Some(1))
    });
    server.wait_until("the others are the same", |server| {
        let mut pids: Vec<Pid> = server.workers().iter().map(|one| one.pid).collect();
        pids.retain(|pid| *pid != instead.pid);
        let mut others = [first.pid, last.pid];
        others.sort();
        pids.sort();
        pids == others
    });
}

#[test]
fn a_start_in_which_one_fails_has_failed_and_the_others_of_it_end() {
    if !is_ours() {
        return;
    }
    let broken = "[ $SERVER_STARTER_GENERATION = 1 ] || [ $SERVER_STARTER_WORKER != 1 ] || exit 1";
    let setup = with_files().option("--ready=notify").interval("60");
    let (server, port) = serving(scripted(setup, broken, "--notify"), 3);
    let old = server.workers();
    let said = fails(restart(&server));
    assert!(said.contains("the old one keeps serving"), "{said}");
    server.wait_until("the old ones are alone", |server| server.workers() == old);
    assert_eq!(server.ask(port).generation, Some(1));
    for worker in old {
        assert_eq!(server.caught(worker), [] as [&str; 0]);
    }
}

// Another number.

#[test]
fn scale_says_when_as_many_serve() {
    if !is_ours() {
        return;
    }
    let setup = scripted(with_files().option("--ready=notify"), ":", "--notify");
    let (server, _) = serving(setup, 3);
    let old = server.workers();
    let said = succeeds(scale(&server, "5"));
    assert!(said.contains("\n5 workers serve (2 more, after "), "{said}");
    let five = wait_for_whole(&server, 1, 5);
    assert!(old.iter().all(|one| five.contains(one)), "{five:?}");
    server.wait_for_log("start_server: scaling from 3 to 5 workers");
    let said = succeeds(scale(&server, "2"));
    assert!(
        said.contains("\n2 workers serve (3 fewer, after "),
        "{said}"
    );
    wait_for_whole(&server, 1, 2);
    let said = succeeds(scale(&server, "2"));
    assert!(said.contains("\n2 workers serve, as before"), "{said}");
    assert_eq!(server.status_json().expect("a status")["workers"], 2);
    let said = status(&server);
    assert!(said.contains("2 workers"), "{said}");
}

#[test]
fn one_more_and_one_fewer_until_one_is_left() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(graceful(), 1);
    let load = Load::start(port, 4);
    server.signal(Signal::SIGTTIN);
    wait_for_whole(&server, 1, 2);
    server.signal(Signal::SIGTTOU);
    let left = wait_for_whole(&server, 1, 1);
    server.signal(Signal::SIGTTOU);
    server.wait_for_log("start_server: cannot scale: one worker is the least");
    load.wait_for_more(100);
    assert_eq!(load.stop().failures, [] as [&str; 0]);
    assert_eq!(server.count_in_log("cannot scale"), 1);
    assert_eq!(server.workers(), left);
    assert_eq!(server.caught(left[0]), [] as [&str; 0]);
}

/// The leader of a session with a terminal, which runs start_server in the background. In the same job somebody changes
/// the terminal, and somebody else reads it: each time the kernel sends TTOU or TTIN to the whole job (tty_ioctl(4)).
const LEADER: &str = r#"#!/bin/sh
begin() { until [ -e "$1" ]; do sleep 0.01; done; shift; exec "$@" </dev/tty; }
set -m
{ begin change stty tostop & begin read head -c 1 & exec "$START" "$@"; } &
wait
"#;

#[test]
fn a_terminal_does_not_scale_what_runs_in_its_background() {
    if !is_ours() {
        return;
    }
    let pty = openpty(None, None).expect("cannot open a terminal");
    let setup = graceful().port(ports::tcp()).option("--workers=2");
    let leader = setup.folder().join("leader");
    fs::write(&leader, LEADER).expect("cannot write the script");
    let executable = Permissions::from_mode(0o755);
    fs::set_permissions(&leader, executable).expect("cannot make it a program");
    let setup = setup.env("START", programs::start_server()).copy(leader);
    let server = setup.terminal(File::from(pty.slave)).start();
    let supervisor = server.wait_for("it serves", |server| {
        let status = server.status_file().unwrap_or_default();
        server.pid_file().filter(|_| status.lines().count() == 2)
    });
    for (begin, program) in [("change", "stty"), ("read", "head")] {
        fs::write(server.folder().join(begin), "").expect("cannot write");
        let stopped = server.wait_for("the kernel has stopped it", |server| {
            let is_it = |one: &proc::Status| one.name == program && one.state == 'T';
            let mut job = proc::all().into_iter();
            job.find(|pid| {
                proc::session(*pid) == Some(server.pid())
                    && proc::status(*pid).as_ref().is_some_and(is_it)
            })
        });
        server.wait_until("the supervisor has taken the signal", |_| {
            proc::status(supervisor).is_some_and(|status| status.pending == 0)
        });
        // Or it would try again.
        kill(stopped, Signal::SIGKILL).expect("it is gone");
        let job = getpgid(Some(supervisor)).expect("no job");
        assert_ne!(job, server.pid(), "it is in the foreground");
        killpg(job, Signal::SIGCONT).expect("the job is gone");
    }
    // What somebody sends does.
    kill(supervisor, Signal::SIGTTIN).expect("it is gone");
    server.wait_for_log("start_server: scaling from 2 to 3 workers");
    assert_eq!(server.count_in_log("scaling from"), 1);
    drop(pty.master);
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    if !is_ours() {
        return;
    }
    let range = "it takes a number from 1 to 10000";
    for (option, cause) in [
        ("--workers=0", format!("{range}, or auto")),
        ("--workers=100000", format!("{range}, or auto")),
        ("--rolling=0", range.to_owned()),
        ("--start-parallel=0", range.to_owned()),
    ] {
        let (name, value) = option.split_once('=').expect("a value");
        let line = format!("start_server: cannot use {name}={value}: {cause}");
        assert_usage(Server::setup().option(option), &[&line]);
    }
    let (server, _) = serving(graceful(), 1);
    for to in ["0", "99999"] {
        let mut client = scale(&server, to);
        assert_eq!(client.wait(), 2, "{}", client.said());
        assert!(client.said().contains(range), "{}", client.said());
    }
    assert_eq!(places(&server), all_of(1, 1));
}

#[test]
fn more_than_the_limits_allow_are_refused_before_anything_is_started() {
    if !is_ours() {
        return;
    }
    let limited = |setup: Setup| setup.limit(Resource::RLIMIT_NOFILE, 100, 100);
    let finished = limited(Server::setup().option("--workers=50")).run();
    assert_eq!(finished.status.code(), Some(1));
    let said = "start_server: cannot start: 50 workers are more than the limits of open files and processes allow (";
    assert!(finished.log.contains(said), "{}", finished.log);
    assert!(finished.server.started().is_empty());
    let (server, _) = serving(limited(graceful()), 2);
    let said = fails(scale(&server, "50"));
    let cause = ": 50 workers are more than the limits of open files and processes allow (";
    assert!(said.contains(cause), "{said}");
    assert!(said.contains("\nhint: "), "{said}");
    assert_eq!(places(&server), all_of(1, 2));
}

#[test]
fn the_number_outlives_a_restart_an_upgrade_and_the_supervisor() {
    if !is_ours() {
        return;
    }
    let (setup, _programs) = upgradable(graceful().option("--guardian"));
    let (server, _) = serving(setup, 3);
    succeeds(scale(&server, "2"));
    wait_for_whole(&server, 1, 2);
    succeeds(restart(&server));
    let two = wait_for_whole(&server, 2, 2);
    succeeds(run(&server, &["--upgrade", "--pid-file=pid"]));
    assert_eq!(wait_for_whole(&server, 2, 2), two);
    let supervisor = server.wait_for("a supervisor lives", Server::supervisor);
    kill(supervisor, Signal::SIGKILL).expect("it is gone");
    server.wait_for_log("; a new one goes on with its ");
    assert_eq!(wait_for_whole(&server, 2, 2), two);
    succeeds(restart(&server));
    wait_for_whole(&server, 3, 2);
}

// Under load.

/// What an environment variable says instead of what is usual.
pub fn number_or(variable: &str, usual: u32) -> u32 {
    let said = env::var(variable).ok();
    said.map_or(usual, |said| said.parse().expect("a number"))
}

/// The figures of a run, shown by `--nocapture`.
#[expect(clippy::print_stdout, reason = "the test runner keeps it otherwise")]
pub fn tell(figures: &str) {
    println!("{figures}");
}

/// `E2E_ROUNDS=200 E2E_CLIENTS=64 cargo test -p e2e --test suite -- --nocapture however_often` is the long run.
#[test]
fn no_request_fails_however_often_all_are_replaced_and_scaled() {
    if !is_ours() {
        return;
    }
    let rounds = number_or("E2E_ROUNDS", 20);
    let clients = number_or("E2E_CLIENTS", 16);
    for rolling in [false, true] {
        let setup = scripted(with_files().option("--ready=notify"), ":", "--notify");
        let setup = setup.options(rolling.then_some("--rolling"));
        let (server, port) = serving(setup, 4);
        let began = Instant::now();
        let load = Load::start(port, clients.try_into().expect("a number"));
        for round in 1..=rounds {
            succeeds(restart(&server));
            match round % 5 {
                2 => drop(succeeds(scale(&server, "2"))),
                4 => drop(succeeds(scale(&server, "4"))),
                _ => {}
            }
        }
        load.wait_for_more(100);
        let outcome = load.stop();
        tell(&format!(
            "rolling: {rolling}, restarts: {rounds}, clients: {clients}, answers: {}, failures: {}, worst latency: {:?}, \
             time: {:?}",
            outcome.successes,
            outcome.failures.len(),
            outcome.worst_latency,
            began.elapsed()
        ));
        assert_eq!(outcome.failures, [] as [&str; 0]);
        assert!(outcome.successes > 100);
        let workers = wait_for_whole(&server, rounds + 1, 4);
        let evidence = || fs::read_to_string(server.folder().join("journal")).unwrap_or_default();
        wait::until("no other is left", evidence, || {
            (server.workers() == workers).then_some(())
        });
    }
}
