//! `--restart --canary`: a new generation gets a share of new connections, until it is promoted or rolled back.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;

use e2e::client::{self, Load};
use e2e::{Server, ports};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::commands::{Client, run};
use crate::readiness::{scripted, with_files};
use crate::switch::{Questions, Suspended, is_ours, json, serving, switching};

const PID_FILE: &str = "--pid-file=pid";

fn graceful(port: u16) -> Server {
    serving(switching().without_interval().worker(["--graceful"]), port)
}

/// What a command says in its last line, which has succeeded.
#[track_caller]
fn succeeds(server: &Server, words: &[&str]) -> String {
    let words = words.iter().copied().chain([PID_FILE, "--timeout=60"]);
    let words: Vec<&str> = words.collect();
    let mut client = run(server, &words);
    assert_eq!(client.wait(), 0, "{}\n{}", client.said(), server.log());
    client.said().lines().last().unwrap_or_default().to_owned()
}

/// Waits until the second generation has its share.
#[track_caller]
fn canary(server: &Server, words: &[&str]) -> String {
    let words: Vec<&str> = ["--restart"].iter().chain(words).copied().collect();
    succeeds(server, &words)
}

/// The states of the generations and their shares.
fn shares(server: &Server) -> Vec<(String, Value)> {
    let status = json(server);
    let generations = status["generations"].as_array().expect("no list");
    let of = |one: &Value| {
        (
            one["state"].as_str().unwrap_or_default().to_owned(),
            one["share"].clone(),
        )
    };
    generations.iter().map(of).collect()
}

/// Waits until the first generation gets all new connections again, and the second one is gone.
#[track_caller]
fn wait_for_end(server: &Server) {
    server.wait_for_generations(&[1]);
    server.wait_until("nothing else is left", |server| {
        shares(server) == [("current".to_owned(), json!(100))]
    });
    assert!(json(server)["switch"].get("canary").is_none());
}

/// How many of so many connections the second generation answers.
#[track_caller]
fn count_of_canary(port: u16, all: u32) -> usize {
    let generation = |_| client::ask(port).generation.expect("a generation");
    (0..all).map(generation).filter(|one| *one == 2).count()
}

#[test]
fn it_gets_its_share_until_it_is_promoted() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = graceful(port);
    let load = Load::start(port, 4);
    let said = canary(&server, &["--canary=10%"]);
    let pid = server.wait_for_start(2).pid;
    let beginning = format!("generation 2 gets 10% of new connections (pid {pid}, ready after ");
    let end = "); decide with --promote or --rollback";
    assert!(
        said.starts_with(&beginning) && said.ends_with(end),
        "{said}"
    );
    let count = count_of_canary(port, 2000);
    assert!((130..=270).contains(&count), "{count} of 2000");
    let expected = [("current", 90), ("canary", 10)];
    let expected = expected.map(|(state, share)| (state.to_owned(), json!(share)));
    assert_eq!(shares(&server), expected);
    let mut status = run(&server, &["--status", PID_FILE]);
    assert_eq!(status.wait(), 0);
    let text = status.said();
    for part in [
        "serving: generation 2 gets 10% of new connections\n",
        "last start: generation 2 became a canary ",
        "new connections go to lane 0 (90%) and lane 1 (10%) of 2\n",
        "canary      1    10%",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    server.wait_for_log(
        "start_server: generation 2 gets 10% of new connections, and generation 1 the rest",
    );
    let said = succeeds(&server, &["--promote"]);
    let beginning = format!("generation 2 serves (pid {pid}");
    assert!(said.starts_with(&beginning), "{said}");
    assert!(said.contains("; generation 1 is gone (drained "), "{said}");
    assert_eq!(count_of_canary(port, 20), 20);
    // There is no other.
    let mut client = run(&server, &["--promote", PID_FILE]);
    assert_eq!(client.wait(), 1);
    let cause = "cannot promote: no canary serves; generation 2 keeps serving";
    assert!(client.said().contains(cause), "{}", client.said());
    assert_eq!(load.stop().failures, [""; 0], "{}", server.log());
}

#[test]
fn every_listener_gives_it_its_share_and_each_worker_its_part() {
    const ASKED: usize = 400;
    if !is_ours() {
        return;
    }
    let (port, udp) = (ports::tcp(), ports::udp());
    let setup = switching().without_interval().option("--workers=2");
    let setup = setup.option(format!("--port=[::1]:{port},127.0.0.1:u{udp},[::1]:u{udp}"));
    let server = serving(setup.worker(["--graceful"]), port);
    let load = Load::start(port, 8);
    canary(&server, &["--canary=25%"]);
    let listeners = [
        port.into(),
        client::tcp6(port),
        client::udp(udp),
        client::udp6(udp),
    ];
    for at in &listeners {
        let mut counts: BTreeMap<(Option<u32>, i32), usize> = BTreeMap::new();
        for _ in 0..ASKED {
            let report = client::ask(at.clone());
            *counts.entry((report.generation, report.pid)).or_default() += 1;
        }
        let of = |generation| {
            let counts = counts.iter();
            counts.filter(move |((one, _), _)| *one == Some(generation))
        };
        for (generation, part) in [(1, 0.375), (2, 0.125)] {
            assert_eq!(of(generation).count(), 2, "{at:?}: {counts:?}");
            // Chance alone takes a count further from its part once in 100,000 times.
            let deviation = (part * (1.0 - part) / ASKED as f64).sqrt();
            for (_, count) in of(generation) {
                let distance = (*count as f64 / ASKED as f64 - part).abs();
                assert!(distance < 4.5 * deviation, "{at:?}: {counts:?}");
            }
        }
    }
    succeeds(&server, &["--promote"]);
    for at in listeners {
        let promoted = |_| client::ask(at.clone()).generation == Some(2);
        assert!((0..40).all(promoted), "{at:?}");
    }
    assert_eq!(load.stop().failures, [""; 0], "{}", server.log());
}

/// By which generation clients of some addresses are answered.
#[track_caller]
fn by_source(port: u16) -> Vec<u32> {
    let ask = |last: u8| {
        let source = Ipv4Addr::new(127, 0, 0, last);
        client::ask_from(source, port)
            .generation
            .expect("a generation")
    };
    (2..52).map(ask).collect()
}

#[test]
fn each_client_stays_with_one_generation_across_an_upgrade_and_a_kill() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let setup = switching().without_interval().option("--guardian");
    let server = serving(setup.worker(["--graceful"]), port);
    let load = Load::start(port, 4);
    let said = canary(&server, &["--canary=40", "--canary-by=client"]);
    assert!(
        said.starts_with("generation 2 gets 40% of clients (pid "),
        "{said}"
    );
    let before = by_source(port);
    assert!(before.contains(&1) && before.contains(&2), "{before:?}");
    assert_eq!(by_source(port), before);
    succeeds(&server, &["--upgrade"]);
    assert_eq!(by_source(port), before);
    let supervisor = server.wait_for("a supervisor lives", Server::supervisor);
    kill(supervisor, Signal::SIGKILL).expect("it is gone");
    server.wait_for_log("; a new one goes on with its ");
    assert_eq!(by_source(port), before);
    load.wait_for_more(50);
    let said = succeeds(&server, &["--rollback"]);
    assert!(
        said.starts_with("generation 1 keeps serving (pid "),
        "{said}"
    );
    wait_for_end(&server);
    assert_eq!(by_source(port), [1; 50]);
    assert_eq!(load.stop().failures, [""; 0], "{}", server.log());
}

#[test]
fn a_death_ends_it_and_what_it_has_not_accepted_is_served() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = serving(switching().without_interval(), port);
    canary(&server, &["--canary=99"]);
    let worker = server.wait_for_start(2);
    // One of a hundred clients asks the first generation.
    let suspended = [server.wait_for_start(1), worker].map(Suspended::new);
    let questions = Questions::ask(port, 20);
    kill(worker.pid, Signal::SIGKILL).expect("it is gone");
    drop(suspended);
    let generations = questions.answered_by();
    assert!(!generations.contains(&2), "{generations:?}");
    let log = server.wait_for_log("start_server: the canary, generation 2, is rolled back: ");
    assert!(
        log.contains("; generation 1 gets all new connections again"),
        "{log}"
    );
    wait_for_end(&server);
    assert_eq!(count_of_canary(port, 50), 0);
    let verdicts = &json(&server)["verdicts"];
    let last = verdicts.as_array().and_then(|all| all.last());
    let last = last.expect("no verdict");
    assert_eq!(
        (&last["generation"], &last["result"]),
        (&json!(2), &json!("failed"))
    );
    // There is no other try: what is started next is what is asked for.
    let mut client = run(&server, &["--restart", "--canary=5", "--json", PID_FILE]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    assert!(
        client.said().contains("\"outcome\": \"canary\""),
        "{}",
        client.said()
    );
}

#[test]
fn an_unhealthy_one_is_rolled_back() {
    if !is_ours() {
        return;
    }
    let setup = with_files().options(["--switch", "--watch=0.4", "--ready=http:/exists/up"]);
    let elsewhere = setup.folder().join("canary");
    fs::create_dir(&elsewhere).expect("cannot make a directory");
    let up = [setup.folder().join("up"), elsewhere.join("up")];
    for file in &up {
        fs::write(file, "").expect("cannot write");
    }
    let before = "[ $SERVER_STARTER_GENERATION = 1 ] || cd canary";
    let port = ports::tcp();
    let server = serving(scripted(setup, before, ""), port);
    let load = Load::start(port, 4);
    canary(&server, &["--canary=30", "--canary-time=60"]);
    fs::remove_file(&up[1]).expect("cannot remove");
    let log = server.wait_for_log("start_server: the canary, generation 2, is rolled back: ");
    let cause = "GET /exists/up on generation 2: 503 Service Unavailable";
    assert!(log.contains(cause), "{log}");
    wait_for_end(&server);
    assert_eq!(count_of_canary(port, 20), 0);
    assert_eq!(load.stop().failures, [""; 0], "{}", server.log());
}

#[test]
fn it_gets_everything_after_its_time_or_when_nothing_else_serves() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = graceful(port);
    let load = Load::start(port, 4);
    let said = canary(&server, &["--canary=50%", "--canary-time=1"]);
    assert!(
        said.contains("; it is promoted after 1 s without a fault, "),
        "{said}"
    );
    server.wait_for_generations(&[2]);
    server.wait_for_log(
        "generation 2 is promoted and gets all new connections: it has served without a fault",
    );
    canary(&server, &["--canary=1"]);
    assert_eq!(load.stop().failures, [""; 0], "{}", server.log());
    kill(server.wait_for_start(2).pid, Signal::SIGKILL).expect("it is gone");
    server.wait_for_log(
        "generation 3 is promoted and gets all new connections: generation 2 is gone",
    );
    assert_eq!(server.ask(port).generation, Some(3));
    server.wait_for_generations(&[3]);
}

#[test]
fn another_restart_ends_it() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = graceful(port);
    let load = Load::start(port, 4);
    canary(&server, &["--canary=50%"]);
    load.wait_for_more(50);
    let said = succeeds(&server, &["--restart"]);
    assert!(said.starts_with("generation 3 serves (pid "), "{said}");
    server.wait_for_generations(&[3]);
    assert_eq!(load.stop().failures, [""; 0], "{}", server.log());
}

/// Exit code and output of a command that is refused.
#[track_caller]
fn refused(server: &Server, words: &[&str]) -> (i32, String) {
    let words: Vec<&str> = words.iter().copied().chain([PID_FILE]).collect();
    let mut client: Client = run(server, &words);
    (client.wait(), client.said())
}

#[test]
fn bad_shares_are_one_line_and_exit_code_2() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().pid_file().status_file();
    let server = serving(setup, ports::tcp());
    let refusal = |words: &[&str], line: &str| {
        let (code, said) = refused(&server, words);
        assert_eq!(
            (code, said),
            (2, format!("start_server: {line}\n")),
            "{words:?}"
        );
    };
    for share in ["0%", "100%", "101%", "-1", "10.5%", "%"] {
        let line = format!("cannot use --canary={share}: it takes a whole number from 1% to 99%");
        refusal(&["--restart", &format!("--canary={share}")], &line);
    }
    refusal(
        &["--restart", "--canary="],
        "cannot use --canary=: its value is empty",
    );
    refusal(
        &["--stop", "--canary=10%"],
        "cannot use --canary: it needs --restart as well",
    );
    refusal(
        &["--restart", "--canary-by=client"],
        "cannot use --canary-by: it needs --canary as well",
    );
    refusal(
        &["--restart", "--canary=10%", "--canary-by=luck"],
        "cannot use --canary-by=luck: it is random or client",
    );
    refusal(
        &["--restart", "--canary=10%", "--canary-time=0"],
        "cannot use --canary-time=0: it takes a number from 1 to 65535",
    );
    let pid = server.main_pid();
    let hint = "\nhint: start the server with --switch, and a port that start_server opens itself";
    for (words, option) in [
        (&["--restart", "--canary=10%"][..], "canary"),
        (&["--promote"], "promote"),
    ] {
        let line = format!(
            "cannot use --{option}: all generations of pid {pid} share their listeners{hint}"
        );
        refusal(words, &line);
    }
    assert_eq!(server.started().len(), 1);
}
