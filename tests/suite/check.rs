//! `--check`: a command has a veto on every restart.

use std::fs;

use e2e::skip::original_differs;
use e2e::{Server, Setup, ports, proc, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bad_input::assert_usage;
use crate::commands::{Client, accepted, run};

fn is_ours() -> bool {
    !original_differs("it has no --check")
}

fn serving(setup: Setup) -> (Server, u16) {
    let port = ports::tcp();
    let setup = setup.pid_file().status_file().interval("0.1");
    let server = setup.port(port).start();
    accepted(&server);
    (server, port)
}

fn restart(server: &Server) -> Client {
    run(server, &["--restart", "--pid-file=pid"])
}

/// The lines that a check has appended to a file.
fn lines(server: &Server, file: &str) -> Vec<String> {
    let text = fs::read_to_string(server.folder().join(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_restart_whose_check_fails_starts_nothing_and_says_why() {
    if !is_ours() {
        return;
    }
    let check = "echo run >>checks; test -e good || { echo no good; echo at all >&2; exit 3; }";
    let (server, port) = serving(Server::setup().option(format!("--check={check}")));
    // Neither the first start nor a crash asks for it.
    let first = server.ask(port);
    kill(Pid::from_raw(first.pid), Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_service(2);
    assert_eq!(lines(&server, "checks").len(), 0);

    let mut client = restart(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    let said = client.said();
    let expected = "start_server: cannot restart: the check failed, exit status:768 (exit code 3); the old one keeps serving\n\
                    stderr: no good\nstderr: at all\n";
    assert!(said.ends_with(expected), "{said}");
    server.wait_for_log(
        "start_server: the check failed, exit status:768 (exit code 3); nothing was started",
    );
    assert_eq!(server.generations(), [2]);
    assert_eq!(server.ask(port).generation, Some(2));
    let json = server.status_json().expect("no status");
    let verdicts = json["verdicts"].as_array().expect("no verdicts");
    let last = verdicts.last().expect("no verdict");
    assert_eq!(
        (&last["result"], &last["status"]),
        (&"failed".into(), &768.into())
    );

    fs::write(server.folder().join("good"), "").expect("cannot write");
    let mut client = restart(&server);
    assert_eq!(client.wait(), 0, "{}", client.said());
    assert_eq!(server.ask(port).generation, Some(3));
    assert_eq!(lines(&server, "checks").len(), 2);
}

#[test]
fn a_check_runs_as_the_next_worker_would_without_its_sockets() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup();
    let envdir = setup.folder().join("env");
    fs::create_dir(&envdir).expect("cannot make a directory");
    fs::write(envdir.join("COLOUR"), "red").expect("cannot write");
    let inside = setup.folder().join("inside");
    fs::create_dir(&inside).expect("cannot make a directory");
    let out = setup.folder().join("checks");
    let check = format!(
        "echo $SERVER_STARTER_GENERATION $COLOUR [$SERVER_STARTER_PORT] $(basename $PWD) $(ls /proc/self/fd) >>{}",
        out.display()
    );
    let (server, _) = serving(setup.options([
        format!("--check={check}"),
        "--envdir=env".to_owned(),
        "--dir=inside".to_owned(),
    ]));
    // The environment is that of the next generation.
    fs::write(envdir.join("COLOUR"), "green").expect("cannot write");
    assert_eq!(restart(&server).wait(), 0);
    // 3 is the directory that ls lists.
    assert_eq!(lines(&server, "checks"), ["2 green [] inside 0 1 2 3"]);
}

#[test]
fn a_check_that_hangs_is_ended_with_all_that_it_has_started() {
    if !is_ours() {
        return;
    }
    let check = "echo $$ >>checks; while :; do echo flood; done & sleep 600";
    let (server, port) = serving(
        Server::setup().options([format!("--check={check}"), "--start-timeout=0.5".to_owned()]),
    );
    let mut client = restart(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    let said = client.said();
    assert!(
        said.contains(
            "cannot restart: the check did not finish within 0.5 secs; the old one keeps serving"
        ),
        "{said}"
    );
    let group = lines(&server, "checks")[0].parse().expect("a pid");
    wait::until(
        "its group is gone",
        || server.log(),
        || proc::group(Pid::from_raw(group)).is_empty().then_some(()),
    );
    assert_eq!(server.ask(port).generation, Some(1));
    // A stop does not wait for a check either.
    server.signal(Signal::SIGHUP);
    server.wait_until("another one runs", |server| {
        lines(server, "checks").len() == 2
    });
    let mut server = server;
    assert!(server.stop().success());
    let group = lines(&server, "checks")[1].parse().expect("a pid");
    wait::until(
        "its group is gone",
        || server.log(),
        || proc::group(Pid::from_raw(group)).is_empty().then_some(()),
    );
}

#[test]
fn with_check_first_not_even_the_first_start_goes_unchecked() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().options(["--check=echo broken; exit 1", "--check-first"]);
    let finished = setup.port(ports::tcp()).run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    assert!(
        finished
            .log
            .contains("the check failed, exit status:256 (exit code 1); nothing was started"),
        "{}",
        finished.log
    );
    assert_eq!(finished.server.started(), []);
    let (server, _) = serving(Server::setup().options(["--check=echo >>checks", "--check-first"]));
    assert_eq!(lines(&server, "checks").len(), 1);
}

#[test]
fn options_of_a_check_that_cannot_be_are_one_line() {
    if !is_ours() {
        return;
    }
    for (options, line) in [
        (&["--check="][..], "cannot use --check=: its value is empty"),
        (
            &["--check-first"],
            "cannot use --check-first: it needs --check as well",
        ),
    ] {
        let setup = Server::setup().options(options.iter().copied());
        assert_usage(setup, &[&format!("start_server: {line}")]);
    }
}
