//! What start_server says of itself where Server::Starter says nothing: where it listens, what serves, and what a stop
//! waits for.

use std::path::PathBuf;

use e2e::{Server, client, ports};
use nix::sys::signal::Signal;

use crate::commands::is_ours;

/// The place of a line in the log.
#[track_caller]
fn place(log: &str, line: &str) -> usize {
    let mut lines = log.lines();
    lines
        .position(|one| one == line)
        .unwrap_or_else(|| panic!("no line {line:?}\n{log}"))
}

#[test]
fn the_log_says_where_it_listens_and_what_serves() {
    if !is_ours() {
        return;
    }
    let (tcp, udp) = (ports::tcp(), ports::udp());
    let mut server = Server::setup()
        .options([format!("--port=127.0.0.1:{tcp}"), format!("--port=u{udp}")])
        .path("socket")
        .status_file()
        .start();
    let first = server.accepted();
    let second = server.restart();
    let path: PathBuf = server.folder().join("socket");
    assert!(server.stop().success());
    let log = server.log();
    let listening = format!(
        "start_server: listening on 127.0.0.1:{tcp}, 0.0.0.0:{udp} (udp) and {}",
        path.display()
    );
    let places = [
        format!("start_server (pid:{}) starting now...", server.pid()),
        listening,
        format!("starting new worker {}", first.pid),
        format!("start_server: generation 1 serves (pid {})", first.pid),
        format!("start_server: generation 2 serves (pid {})", second.pid),
    ]
    .map(|line| place(&log, &line));
    assert!(places.is_sorted(), "{places:?}\n{log}");
    assert_eq!(server.count_in_log("listening on"), 1);
}

#[test]
fn of_many_listeners_the_first_ones_are_named() {
    if !is_ours() {
        return;
    }
    let ports: [u16; 7] = std::array::from_fn(|_| ports::tcp());
    let mut server = Server::setup()
        .options(ports.map(|port| format!("--port={port}")))
        .status_file()
        .start();
    server.accepted();
    assert!(server.stop().success());
    let named: Vec<String> = ports[..4]
        .iter()
        .map(|port| format!("0.0.0.0:{port}"))
        .collect();
    let line = format!("start_server: listening on {} and 3 more", named.join(", "));
    place(&server.log(), &line);
}

#[test]
fn a_quiet_server_and_one_without_listeners_say_nothing_of_them() {
    if !is_ours() {
        return;
    }
    let mut quiet = Server::setup().option("--quiet").port(ports::tcp()).start();
    quiet.wait_for_service(1);
    assert!(quiet.stop().success());
    assert_eq!(quiet.log(), "");
    let mut alone = Server::setup().start();
    alone.wait_for_log("generation 1 serves");
    assert!(alone.stop().success());
    assert_eq!(alone.count_in_log("listening on"), 0);
}

#[test]
fn a_stop_that_is_repeated_says_what_it_waits_for() {
    if !is_ours() {
        return;
    }
    for (timeout, end) in [
        (None, "--stop-timeout or kill -KILL ends it"),
        (Some("--stop-timeout=600"), "it is killed in "),
    ] {
        let port = ports::tcp();
        let mut server = Server::setup()
            .options(timeout)
            .status_file()
            .port(port)
            .worker(["--graceful"])
            .start();
        let worker = server.accepted();
        let held = client::hold(port);
        server.signal(Signal::SIGTERM);
        server.wait_for_drain(worker);
        assert_eq!(server.count_in_log("still waiting"), 0);
        for (times, signal) in [
            (1, Signal::SIGINT),
            (2, Signal::SIGQUIT),
            (3, Signal::SIGTERM),
        ] {
            server.signal(signal);
            let line = format!(
                "start_server: still waiting for worker {} of generation 1 (",
                worker.pid
            );
            server.wait_for_log_times(times, &line);
            assert_eq!(server.count_in_log(&format!(" s); {end}")), times);
        }
        held.finish();
        assert!(server.wait_exit().success());
        // They were no further orders.
        assert_eq!(server.count_in_log("sending TERM to all workers"), 1);
    }
}
