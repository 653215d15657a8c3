//! `--replace=stop-first`: no two servers at a time, and what that costs. Nearly every worker here takes a lock that only
//! one process can have, and fails without it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use e2e::client::Load;
use e2e::skip::original_differs;
use e2e::start::InTurn;
use e2e::{Server, Setup, client, ports, programs, wait};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::bad_input::assert_usage;
use crate::commands::{Client, accepted, run};
use crate::readiness::gated;

fn is_ours() -> bool {
    !original_differs("it has no --replace")
}

fn stop_first() -> Setup {
    let setup = Server::setup().pid_file().status_file().interval("0.1");
    setup.option("--replace=stop-first")
}

/// A script that takes the lock and becomes the fixture worker, with these arguments.
fn locking(folder: &Path, arguments: &str) -> String {
    format!(
        "#!/bin/sh\nexec 9>>lock\nflock -n 9 || exit 77\nexec {} --journal={} {arguments}\n",
        programs::worker().display(),
        folder.join("journal").display()
    )
}

/// Puts another program into the place of the old one, which stays what it is for whoever has it open.
fn deploy(folder: &Path, text: &str) {
    let (new, app) = (folder.join("app.new"), folder.join("app"));
    fs::write(&new, text).expect("cannot write the program");
    fs::set_permissions(&new, Permissions::from_mode(0o755)).expect("cannot make it executable");
    fs::rename(&new, &app).expect("cannot put it in place");
}

/// Generation 1 of a program that takes the lock serves.
fn serving(setup: Setup, arguments: &str) -> (Server, u16) {
    deploy(setup.folder(), &locking(setup.folder(), arguments));
    let port = ports::tcp();
    let server = setup.port(port).program(["./app"]).start();
    accepted(&server);
    (server, port)
}

fn restart(server: &Server) -> Client {
    run(server, &["--restart", "--pid-file=pid"])
}

/// The exit code and the verdict.
#[track_caller]
fn verdict(server: &Server) -> (Option<i32>, Value) {
    let words = ["--restart", "--json", "--quiet", "--pid-file=pid"];
    let output = server.client(words).output_in_turn();
    let output = output.expect("cannot run the client");
    let text = String::from_utf8(output.stdout).expect("not UTF-8");
    let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    (output.status.code(), json)
}

/// How long nobody answered, in seconds.
#[track_caller]
fn unserved(json: &Value) -> f64 {
    let unserved = json["durations"]["unserved"].as_f64();
    unserved.unwrap_or_else(|| panic!("no figure: {json}"))
}

#[track_caller]
fn wait_until_said(client: &Client, text: &str) {
    wait::until(
        &format!("it has said {text:?}"),
        || client.said(),
        || client.said().contains(text).then_some(()),
    );
}

#[test]
fn under_load_nothing_is_refused_and_no_two_servers_live_at_a_time() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(stop_first(), "--graceful");
    let load = Load::start(port, 4);
    for generation in 2..=5 {
        load.wait_for_more(50);
        let (code, json) = verdict(&server);
        assert_eq!(code, Some(0), "{json}\n{}", server.log());
        assert_eq!(json["outcome"], "committed", "{json}");
        assert_eq!(json["generation"], generation, "{json}");
        assert_eq!(json["replaces"], generation - 1, "{json}");
        assert!(unserved(&json) >= 0.1, "the interval counts: {json}");
    }
    load.wait_for_more(50);
    let outcome = load.stop();
    assert_eq!(outcome.failures, [""; 0], "{}", server.log());
    assert_eq!(server.count_in_log("failed to start"), 0);
    // Each has exited before the next one existed.
    let log = server.log();
    let events = log
        .lines()
        .filter(|line| line.starts_with("starting new worker") || line.starts_with("old worker "));
    let events: Vec<&str> = events.map(|line| &line[..10]).collect();
    let again = &["old worker", "starting n"][..];
    let expected = [&["starting n"][..], again, again, again, again].concat();
    assert_eq!(events, expected, "{log}");
}

#[test]
fn what_it_waits_for_is_told_and_connections_wait_in_the_queue() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(stop_first(), "--graceful");
    let held = client::hold(port);
    let mut client = restart(&server);
    let waits = "generation 1 stops first: waiting for 1 worker to exit";
    wait_until_said(&client, &format!("{waits}\n"));
    server.wait_for_drain(server.wait_for_service(1));
    let mut status = run(&server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 1);
    let said = status.said();
    assert!(
        said.contains(&format!("nothing serves: {waits}, ")),
        "{said}"
    );
    let json = server.status_json().expect("no status");
    let first = &json["generations"][0]["stops_first"];
    assert!(
        first["since"].is_f64() && first["killed_at"].is_null(),
        "{json}"
    );

    let connection = client::connect(port).expect("it is refused");
    assert_eq!(server.started().len(), 1, "a second one was started");
    assert!(client.is_waiting());
    held.finish();
    assert_eq!(client.wait(), 0, "{}", client.said());
    let answer = thread::spawn(move || {
        let mut connection = connection;
        connection.send("report").expect("cannot send");
        connection.receive().expect("no answer")
    });
    let answer = answer.join().expect("the client panicked");
    assert!(answer.contains("\"generation\":2"), "{answer}");
    let said = client.said();
    assert!(said.contains("\ngeneration 2 serves (pid "), "{said}");
    let end = "; generation 1 stopped first, nobody answered for ";
    assert!(said.contains(end), "{said}");
    let mut status = run(&server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 0);
    let words: Vec<String> = status
        .said()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let said = words.join(" ");
    assert!(said.contains("; nobody answered for "), "{said}");
}

#[test]
fn the_figure_is_the_time_from_the_stop_until_something_serves() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(stop_first().option("--ready=notify"), "--notify");
    let port = ports::tcp();
    let server = setup.port(port).start();
    accepted(&server);
    let held = client::hold(port);
    let before = Instant::now();
    let client = thread::scope(|scope| {
        let client = scope.spawn(|| verdict(&server));
        server.wait_for_log(
            "start_server: sending TERM to old workers, and starting the new one when they are gone:",
        );
        let told = Instant::now();
        held.finish();
        server.wait_for_log_times(2, "starting new worker");
        gate.open();
        let least = told.elapsed().as_secs_f64();
        let (code, json) = client.join().expect("the client panicked");
        assert_eq!(code, Some(0), "{json}");
        let unserved = unserved(&json);
        assert!(unserved >= least, "{unserved} s, but at least {least} s");
        unserved
    });
    let most = before.elapsed().as_secs_f64();
    assert!(client <= most, "{client} s, but at most {most} s");
    server.wait_for_log("start_server: the new worker serves; clients had to wait for ");
}

#[test]
fn a_version_that_fails_is_followed_by_what_served_though_that_is_not_on_disk_any_more() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(stop_first(), "--graceful release=1");
    let load = Load::start(port, 4);
    load.wait_for_more(50);
    deploy(server.folder(), "rubbish\n");
    let mut client = restart(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    let said = client.said();
    assert!(
        said.contains("cannot restart: generation 2 failed to start, exit status:"),
        "{said}"
    );
    let back = "; what served before was started again as generation 3; nobody answered for ";
    assert!(said.contains(back), "{said}");
    server.wait_for_log("start_server: the restart has failed, starting again what has served");
    let report = server.ask(port);
    assert_eq!(report.generation, Some(3));
    assert!(
        report.args.contains(&"release=1".to_owned()),
        "{:?}",
        report.args
    );
    let mut status = run(&server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 0);

    let (code, json) = verdict(&server);
    assert_eq!(code, Some(1), "{json}");
    assert_eq!(
        (&json["outcome"], &json["generation"]),
        (&"failed".into(), &4.into())
    );
    assert_eq!(
        (&json["restored"], &json["replaces"]),
        (&5.into(), &3.into())
    );
    assert!(unserved(&json) > 0.0, "{json}");
    let kept = server.status_json().expect("no status");
    let verdicts = kept["verdicts"].as_array().expect("no verdicts");
    let failed = verdicts.iter().find(|one| one["generation"] == 4);
    let failed = failed.expect("the failed one is forgotten");
    assert_eq!(failed["restored"], 5, "{kept}");
    assert_eq!(
        failed["durations"]["unserved"],
        json["durations"]["unserved"]
    );

    // It was not tried again, and a good version replaces it.
    deploy(
        server.folder(),
        &locking(server.folder(), "--graceful release=2"),
    );
    assert_eq!(restart(&server).wait(), 0, "{}", server.log());
    let report = server.ask(port);
    assert_eq!(report.generation, Some(6));
    assert!(
        report.args.contains(&"release=2".to_owned()),
        "{:?}",
        report.args
    );
    load.wait_for_more(50);
    assert_eq!(load.stop().failures, [""; 0], "{}", server.log());
}

#[test]
fn without_pins_what_served_does_not_come_back_and_what_is_on_disk_is_tried_again() {
    if !is_ours() {
        return;
    }
    let setup = stop_first().option("--no-pin");
    let (server, port) = serving(setup, "--graceful release=1");
    deploy(server.folder(), "rubbish\n");
    let mut client = restart(&server);
    let again =
        "start_server: the restart has failed, starting again what is on disk, because of --no-pin";
    server.wait_for_log_times(2, again);
    assert_eq!(client.wait(), 1, "{}", client.said());
    let said = client.said();
    assert!(said.contains("; no worker is serving\n"), "{said}");
    let waiting = thread::spawn(move || client::ask(port));
    deploy(
        server.folder(),
        &locking(server.folder(), "--graceful release=2"),
    );
    let report = waiting.join().expect("it is refused");
    assert!(
        report.args.contains(&"release=2".to_owned()),
        "{:?}",
        report.args
    );
}

/// Whatever it does instead of stopping, the next one starts when it is gone.
#[test]
fn what_served_waits_until_a_version_that_hangs_is_gone() {
    if !is_ours() {
        return;
    }
    let setup = stop_first().options(["--ready=notify", "--start-timeout=5", "--stop-timeout=0.3"]);
    let (server, port) = serving(setup, "--graceful --notify");
    let hangs = locking(server.folder(), "--ignore=TERM --say=STATUS=x");
    deploy(server.folder(), &hangs);
    let (code, json) = verdict(&server);
    assert_eq!(code, Some(1), "{json}");
    assert_eq!(json["restored"], 3, "{json}\n{}", server.log());
    assert!(unserved(&json) >= 5.3, "{json}");
    assert_eq!(server.ask(port).generation, Some(3));
    assert_eq!(
        server.count_in_log("sending KILL to workers that have not stopped in time"),
        1
    );
}

#[test]
fn an_old_server_that_does_not_stop_is_killed_in_time() {
    if !is_ours() {
        return;
    }
    let setup = stop_first().option("--kill-old-timeout=0.3");
    let (server, port) = serving(setup, "--ignore=TERM");
    let (code, json) = verdict(&server);
    assert_eq!(code, Some(0), "{json}\n{}", server.log());
    assert!(unserved(&json) >= 0.3, "{json}");
    assert_eq!(server.ask(port).generation, Some(2));
}

#[test]
fn a_stop_while_the_old_one_stops_starts_nothing_more() {
    if !is_ours() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut server, port) = serving(stop_first(), "--graceful");
        let held = client::hold(port);
        let mut client = restart(&server);
        wait_until_said(&client, "generation 1 stops first: ");
        server.signal(signal);
        assert_eq!(client.wait(), 1);
        let said = client.said();
        assert!(said.contains("cannot restart: pid "), "{said}");
        held.finish();
        assert!(server.wait_exit().success(), "{}", server.log());
        assert_eq!(server.started().len(), 1, "{}", server.log());
    }
}

#[test]
fn restarts_that_are_asked_for_while_the_old_one_stops_become_one_more() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(stop_first(), "--graceful");
    let held = client::hold(port);
    let mut first = restart(&server);
    wait_until_said(&first, "generation 1 stops first: ");
    let mut others = Vec::new();
    for count in [2, 3] {
        others.push(restart(&server));
        // Signals that arrive at the same time are one.
        server.wait_until("it has counted them", |server| {
            server
                .status_json()
                .is_some_and(|json| json["counters"]["restarts"] == count)
        });
    }
    held.finish();
    assert_eq!(first.wait(), 0, "{}", first.said());
    for other in &mut others {
        assert_eq!(other.wait(), 0, "{}", other.said());
        assert!(
            other.said().contains("\ngeneration 3 serves (pid "),
            "{}",
            other.said()
        );
    }
    assert_eq!(verdict(&server).1["generation"], 4);
}

#[test]
fn a_worker_that_dies_by_itself_while_it_stops_is_gone() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(stop_first(), "--graceful");
    let old = server.wait_for_service(1);
    let held = client::hold(port);
    let mut client = restart(&server);
    wait_until_said(&client, "generation 1 stops first: ");
    kill(old.pid, Signal::SIGKILL).expect("cannot kill the worker");
    assert_eq!(client.wait(), 0, "{}", client.said());
    drop(held);
    assert_eq!(server.ask(port).generation, Some(2));
    assert_eq!(server.count_in_log("died unexpectedly"), 0);
}

#[test]
fn a_failed_check_stops_nothing() {
    if !is_ours() {
        return;
    }
    let setup = stop_first().option("--check=test -e good");
    let (server, port) = serving(setup, "--graceful");
    let mut client = restart(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    assert!(
        client.said().contains("; the old one keeps serving"),
        "{}",
        client.said()
    );
    let old = server.wait_for_service(1);
    assert_eq!(server.caught(old), [""; 0]);
    fs::write(server.folder().join("good"), "").expect("cannot write");
    assert_eq!(restart(&server).wait(), 0);
    assert_eq!(server.ask(port).generation, Some(2));
}

#[test]
fn a_crash_is_mended_as_ever() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(stop_first(), "--graceful release=1");
    let old = server.wait_for_service(1);
    deploy(server.folder(), "rubbish\n");
    kill(old.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_service(2);
    let report = server.ask(port);
    assert!(
        report.args.contains(&"release=1".to_owned()),
        "{:?}",
        report.args
    );
}

#[test]
fn ways_to_replace_that_cannot_be_are_one_line() {
    if !is_ours() {
        return;
    }
    for (options, line) in [
        (
            &["--replace=both"][..],
            "cannot use --replace=both: the ways are overlap and stop-first",
        ),
        (&["--replace="], "cannot use --replace=: its value is empty"),
        (
            &["--replace=stop-first", "--kill-old-delay=0.5"],
            "cannot use --kill-old-delay=0.5: --replace=stop-first stops the old server before it starts the new one",
        ),
    ] {
        let setup = Server::setup().options(options.iter().copied());
        assert_usage(setup, &[&format!("start_server: {line}")]);
    }
}
