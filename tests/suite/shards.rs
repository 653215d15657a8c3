//! `--switch` with `--workers`: each worker has sockets of its own, and the kernel spreads new connections over them.

use std::collections::BTreeMap;
use std::thread;

use e2e::client::{self, Load};
use e2e::skip::original_differs;
use e2e::{Server, Setup, ports, proc};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::many_workers::{number, restart, succeeds, wait_for_whole, worker_in};
use crate::readiness::{gated_by, with_files};
use crate::upgrade::upgradable;

fn is_ours() -> bool {
    !original_differs("all its generations share their sockets")
}

/// Its workers die at TERM at once.
fn switching() -> Setup {
    Server::setup().pid_file().status_file().option("--switch")
}

#[track_caller]
fn serving(setup: Setup, workers: usize) -> (Server, u16) {
    let port = ports::tcp();
    let setup = setup.port(port).option(format!("--workers={workers}"));
    let server = setup.start();
    wait_for_whole(&server, 1, workers);
    (server, port)
}

/// How many of so many connections each process has answered.
#[track_caller]
fn spread(port: u16, connections: usize) -> BTreeMap<i32, usize> {
    const CLIENTS: usize = 4;
    let clients = (0..CLIENTS).map(|_| {
        thread::spawn(move || {
            let mut counts = BTreeMap::new();
            for _ in 0..connections / CLIENTS {
                let answer = client::request(port, "ping").expect("a client was lost");
                let pid: i32 = answer.trim().parse().expect("a pid");
                *counts.entry(pid).or_insert(0) += 1;
            }
            counts
        })
    });
    let clients: Vec<_> = clients.collect();
    let mut counts = BTreeMap::new();
    for client in clients {
        for (pid, count) in client.join().expect("a client panicked") {
            *counts.entry(pid).or_insert(0) += count;
        }
    }
    counts
}

/// Each of them gets its part, to within so many hundredths of all.
#[track_caller]
fn assert_even(server: &Server, port: u16, connections: usize, within: f64) {
    let workers: Vec<i32> = server
        .workers()
        .iter()
        .map(|one| one.pid.as_raw())
        .collect();
    let counts = spread(port, connections);
    let part = |count: usize| count as f64 / connections as f64;
    let shares: Vec<f64> = workers
        .iter()
        .map(|pid| part(counts.get(pid).copied().unwrap_or(0)))
        .collect();
    let even = 1.0 / workers.len() as f64;
    let is_even = shares.iter().all(|share| (share - even).abs() < within);
    assert!(is_even, "{shares:?} of {connections}: {counts:?}");
}

#[test]
fn each_of_four_workers_gets_a_quarter_in_every_generation() {
    if !is_ours() {
        return;
    }
    let connections = std::env::var("E2E_CONNECTIONS").ok();
    let connections = connections
        .and_then(|asked| asked.parse().ok())
        .unwrap_or(8_000);
    let (setup, programs) = upgradable(switching().worker(["--graceful"]));
    let (server, port) = serving(setup, 4);
    assert_even(&server, port, connections, 0.03);
    succeeds(restart(&server));
    wait_for_whole(&server, 2, 4);
    succeeds(crate::commands::run(
        &server,
        &["--upgrade", "--pid-file=pid"],
    ));
    assert_even(&server, port, connections, 0.03);
    drop(programs);
}

#[test]
fn restarts_and_other_numbers_of_workers_lose_nothing_though_workers_die_at_once() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(switching().without_interval(), 3);
    let load = Load::start(port, 16);
    let mut generation = 1;
    // More than at the start would share sockets, and whoever does loses connections if it ends at once.
    for workers in [1, 3, 2, 3] {
        load.wait_for_more(200);
        let to = format!("--scale={workers}");
        succeeds(crate::commands::run(&server, &[&to, "--pid-file=pid"]));
        wait_for_whole(&server, generation, workers);
        load.wait_for_more(200);
        generation += 1;
        server.signal(Signal::SIGHUP);
        wait_for_whole(&server, generation, workers);
    }
    load.wait_for_more(200);
    let outcome = load.stop();
    assert_eq!(outcome.failures, [""; 0], "{}", server.log());
}

#[test]
fn new_connections_avoid_a_worker_that_is_gone() {
    if !is_ours() {
        return;
    }
    // The first three pass, and whatever replaces one of them waits.
    let passes = "[ $SERVER_STARTER_GENERATION = 1 ] && mkdir started-$SERVER_STARTER_WORKER";
    let setup = with_files().option("--switch").option("--ready=notify");
    let (setup, gate) = gated_by(setup, passes, "--notify");
    let (server, port) = serving(setup, 3);
    let killed = worker_in(&server, 1, 1);
    kill(killed.pid, Signal::SIGKILL).expect("cannot kill it");
    server.wait_for("another one is to replace it", |server| {
        let mut workers = server.workers().into_iter();
        workers.find(|one| one.pid != killed.pid && number(*one) == Some(1))
    });
    let counts = spread(port, 200);
    assert_eq!(counts.len(), 2, "{counts:?}");
    gate.open();
    server.wait_until("the one that replaces it gets its part", |_| {
        spread(port, 40).len() == 3
    });
}

#[test]
fn with_cpu_affinity_a_worker_gets_what_its_cpus_take() {
    if !is_ours() {
        return;
    }
    let us = Pid::from_raw(0);
    let allowed = sched_getaffinity(us).expect("our CPUs");
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).expect("a CPU"))
        .collect();
    let (server, port) = serving(switching().option("--cpu-affinity"), 2);
    for cpu in cpus {
        let place = cpu % 2;
        let worker = worker_in(&server, 1, place);
        let its = sched_getaffinity(worker.pid).expect("its CPUs");
        assert_eq!(its.is_set(cpu), Ok(true));
        let mut only = CpuSet::new();
        only.set(cpu).expect("a CPU");
        sched_setaffinity(us, &only).expect("cannot move");
        for _ in 0..20 {
            let answer = client::request(port, "ping").expect("a client was lost");
            assert_eq!(answer.trim(), worker.pid.to_string());
        }
    }
}

#[test]
fn more_workers_than_at_the_start_share_the_sockets_of_the_others() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(switching().worker(["--graceful"]), 2);
    let before = proc::descriptors_at_rest(server.pid()).len();
    succeeds(crate::commands::run(
        &server,
        &["--scale=4", "--pid-file=pid"],
    ));
    wait_for_whole(&server, 1, 4);
    server.wait_until("all four answer", |_| spread(port, 80).len() == 4);
    assert_eq!(proc::descriptors_at_rest(server.pid()).len(), before);
}
