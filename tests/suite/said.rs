//! What start_server says of itself where Server::Starter says nothing: where it listens, what serves and how that is
//! called, and what a stop waits for.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use e2e::start::InTurn;
use e2e::{Server, client, ports, programs};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

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

/// The verdict of `--restart --json`, and what it has said.
#[track_caller]
fn verdict(server: &Server) -> (Value, String) {
    let mut client = server.client(["--restart", "--json", "--pid-file=pid"]);
    let output = client.output_in_turn().expect("cannot run the client");
    let text = String::from_utf8(output.stdout).expect("not UTF-8");
    let errors = String::from_utf8(output.stderr).expect("not UTF-8");
    (serde_json::from_str(&text).expect("no JSON"), errors)
}

#[test]
fn each_generation_is_called_as_its_label_file_says() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().pid_file().status_file();
    let file = setup.folder().join("VERSION");
    let write = |text: &str| fs::write(&file, text).expect("cannot write the label");
    write("v1\nof no interest\n");
    let mut server = setup
        .option(format!("--label-file={}", file.display()))
        .start();
    let first = server.accepted();
    write("v2\x1b[2J");
    let (json, said) = verdict(&server);
    assert_eq!(json["label"], r"v2\x1B[2J", "{json}");
    let sentence = r"generation 2 serves (v2\x1B[2J, pid ";
    assert!(said.contains(sentence), "{said}");
    let worker = server.wait_for_service(2);
    assert_ne!(worker.pid, first.pid);
    // A crash brings back what has served, whatever the file says by then.
    write("v3");
    kill(worker.pid, Signal::SIGKILL).expect("cannot kill the worker");
    let third = server.wait_for_service(3);
    let json = server.wait_for("the status has it", |server| {
        server
            .status_json()
            .filter(|json| json["generations"][0]["number"] == 3)
    });
    assert_eq!(json["generations"][0]["label"], r"v2\x1B[2J", "{json}");
    let verdicts = json["verdicts"].as_array().expect("no verdicts");
    let labels: Vec<_> = verdicts.iter().map(|one| &one["label"]).collect();
    assert_eq!(labels[..2], ["v1", r"v2\x1B[2J"]);
    let mut status = server.client(["--status", "--pid-file=pid"]);
    let output = status.output_in_turn().expect("cannot run the client");
    let shown = String::from_utf8(output.stdout).expect("not UTF-8");
    assert!(shown.ends_with("\n\ngeneration 3: v2\\x1B[2J\n"), "{shown}");
    assert!(server.stop().success());
    let log = server.log();
    let places = [
        "start_server: generation 1 is v1".to_owned(),
        format!("starting new worker {}", first.pid),
        r"start_server: generation 2 is v2\x1B[2J".to_owned(),
        r"start_server: generation 3 is v2\x1B[2J".to_owned(),
        format!("starting new worker {}", third.pid),
    ]
    .map(|line| place(&log, &line));
    assert!(places.is_sorted(), "{places:?}\n{log}");
}

#[test]
fn without_a_label_it_is_the_program_as_the_links_lead_to_it() {
    if !is_ours() {
        return;
    }
    for no_pin in [None, Some("--no-pin")] {
        let setup = Server::setup().pid_file().status_file().options(no_pin);
        let (folder, worker) = (setup.folder().to_owned(), programs::worker());
        symlink(&worker, folder.join("current")).expect("cannot make a link");
        let journal = format!("--journal={}", folder.join("journal").display());
        let mut server = setup
            .option(format!("--dir={}", folder.display()))
            .program(["./current".into(), journal])
            .start();
        server.accepted();
        let (json, said) = verdict(&server);
        let label = json["label"].as_str().expect("no label");
        let real = fs::canonicalize(&worker).expect("no worker");
        assert!(
            label.starts_with(&format!("{} of 20", real.display())),
            "{label}"
        );
        assert!(
            label.ends_with(&format!(" UTC, in {}", folder.display())),
            "{label}"
        );
        // Nobody has chosen it, so that the line is short.
        assert!(said.contains("generation 2 serves (pid "), "{said}");
        assert!(server.stop().success());
        place(
            &server.log(),
            &format!("start_server: generation 2 is {label}"),
        );
    }
}

#[test]
fn a_label_that_cannot_be_read_is_no_reason_not_to_start() {
    if !is_ours() {
        return;
    }
    let mut server = Server::setup()
        .status_file()
        .option("--label-file=missing/VERSION")
        .start();
    server.accepted();
    assert!(server.stop().success());
    let line = "start_server: generation 1 is cannot read --label-file=missing/VERSION: No such file or directory";
    place(&server.log(), line);
}
