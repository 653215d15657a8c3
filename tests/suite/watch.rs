//! `--watch`: what serves goes on being asked whether it does.

use std::fs;
use std::time::Duration;

use e2e::{Server, Setup, client, ports, proc, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bad_input::assert_usage;
use crate::commands::{Client, accepted, run};
use crate::readiness::{is_ours, scripted, with_files};

/// A worker that answers well as long as there is a file `up`.
fn watched(options: &[&str]) -> (Server, u16) {
    let setup = scripted(with_files(), ":", "").option("--ready=http:/exists/up");
    let setup = setup.options(options.iter().copied());
    up(setup.folder());
    serving(setup)
}

fn serving(setup: Setup) -> (Server, u16) {
    let port = ports::tcp();
    let server = setup.port(port).start();
    accepted(&server);
    (server, port)
}

fn up(folder: &std::path::Path) {
    fs::write(folder.join("up"), "").expect("cannot write");
}

fn down(server: &Server) {
    fs::remove_file(server.folder().join("up")).expect("cannot remove");
}

fn restart(server: &Server) -> Client {
    run(server, &["--restart", "--pid-file=pid"])
}

/// Exit code and output of `--status`.
fn status(server: &Server, option: &str) -> (i32, String) {
    let arguments = ["--status", "--pid-file=pid", option];
    let arguments = arguments.iter().filter(|one| !one.is_empty());
    let arguments: Vec<&str> = arguments.copied().collect();
    let mut client = run(server, &arguments);
    (client.wait(), client.said())
}

#[track_caller]
fn wait_until_unhealthy(server: &Server, reason: &str) {
    server.wait_until("the status shows that it is unhealthy", |server| {
        let json = server.status_json();
        json.is_some_and(|json| json["unhealthy"] == reason)
    });
}

#[track_caller]
fn wait_until_healthy(server: &Server) {
    server.wait_until(
        "the status no longer shows that it is unhealthy",
        |server| {
            let json = server.status_json();
            json.is_some_and(|json| json["unhealthy"].is_null())
        },
    );
}

#[test]
fn what_becomes_unhealthy_is_a_warning_until_it_is_well_again() {
    if !is_ours() {
        return;
    }
    let (server, port) = watched(&["--watch=0.4"]);
    let (code, text) = status(&server, "");
    assert!(code == 0 && text.starts_with("serving\n"), "{code} {text}");
    down(&server);
    let reason = "GET /exists/up on generation 1: 503 Service Unavailable";
    let line = format!("start_server: generation 1 has been unhealthy for 0.4 secs: {reason}");
    server.wait_for_log(&line);
    wait_until_unhealthy(&server, reason);
    let (code, text) = status(&server, "");
    assert_eq!(code, 1, "{text}");
    let flat: Vec<&str> = text.split_whitespace().collect();
    assert!(
        flat.join(" ").starts_with(&format!("unhealthy: {reason}")),
        "{text}"
    );
    let (code, text) = status(&server, "--openmetrics");
    let metric = "start_server_state{start_server_state=\"unhealthy\"} 1\n";
    assert!(code == 1 && text.contains(metric), "{code} {text}");
    let (_, text) = status(&server, "--json");
    let json: serde_json::Value = serde_json::from_str(&text).expect("no JSON");
    assert_eq!(
        (&json["state"], &json["unhealthy"]),
        (&"unhealthy".into(), &reason.into())
    );
    // It is asked on and on, serves whoever is content with it, and is neither ended nor replaced.
    let first = server.ask(port);
    assert_eq!(first.generation, Some(1));

    up(server.folder());
    server.wait_for_log("start_server: generation 1 is healthy again");
    wait_until_healthy(&server);
    assert_eq!(status(&server, "").0, 0);
    down(&server);
    server.wait_for_log_times(2, &line);
    up(server.folder());
    server.wait_for_log_times(2, "generation 1 is healthy again");
    assert_eq!(server.ask(port).pid, first.pid);
    assert_eq!(server.count_in_log("has been unhealthy"), 2);
}

#[test]
fn a_new_generation_that_becomes_unhealthy_within_the_delay_is_rolled_back() {
    if !is_ours() {
        return;
    }
    // Only the second generation answers by another file.
    let before = "[ $SERVER_STARTER_GENERATION != 2 ] || cd two";
    let setup = scripted(with_files(), before, "").options([
        "--ready=http:/exists/up",
        "--watch=0.4",
        "--kill-old-delay=600",
        "--start-limit=1",
    ]);
    let two = setup.folder().join("two");
    fs::create_dir(&two).expect("cannot make a directory");
    up(&two);
    up(setup.folder());
    let (server, port) = serving(setup);
    let first = server.ask(port).pid;
    let mut client = restart(&server);
    server.wait_for_log("sleeping 600 secs before killing old workers");
    fs::remove_file(two.join("up")).expect("cannot remove");
    assert_eq!(client.wait(), 1, "{}", client.said());
    let said = client.said();
    let reason = "rolled back, as it was unhealthy for 0.4 secs: GET /exists/up on generation 2: 503 Service Unavailable";
    let expected = format!(
        "start_server: cannot restart: generation 2 failed after it had begun to serve: {reason}; the old one keeps serving"
    );
    assert!(said.contains(&expected), "{said}");
    server.wait_for_log(&format!(
        "the old workers were not yet signalled and are serving again:{first}"
    ));
    server.wait_for_generations(&[1]);
    assert_eq!(server.ask(port).pid, first);
    // Without a fork.
    assert_eq!(server.started().len(), 2);
    wait_until_healthy(&server);
    let json = server.status_json().expect("no status");
    let verdicts = json["verdicts"].as_array().expect("no verdicts");
    let last = verdicts.last().expect("no verdict");
    assert_eq!(
        (&last["generation"], &last["result"], &last["cause"]),
        (&2.into(), &"failed".into(), &reason.into())
    );
    assert_eq!(status(&server, "").0, 0);

    // Its own listener is still there, and it goes on being asked.
    down(&server);
    wait_until_unhealthy(
        &server,
        "GET /exists/up on generation 1: 503 Service Unavailable",
    );
    up(server.folder());
    server.wait_for_log("generation 1 is healthy again");
    // And another restart is as good as ever.
    let mut client = run(&server, &["--restart", "--no-wait", "--pid-file=pid"]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    server.wait_for_service(3);
}

#[test]
fn once_the_old_workers_are_told_to_stop_there_is_no_way_back() {
    if !is_ours() {
        return;
    }
    let (server, port) = watched(&["--watch=0.4", "--kill-old-delay=0.1"]);
    assert_eq!(restart(&server).wait(), 0);
    down(&server);
    server.wait_for_log("generation 2 has been unhealthy for 0.4 secs");
    wait_until_unhealthy(
        &server,
        "GET /exists/up on generation 2: 503 Service Unavailable",
    );
    assert_eq!(server.ask(port).generation, Some(2));
    assert_eq!(server.generations(), [2]);
    assert_eq!(server.count_in_log("serving again"), 0);
}

#[test]
fn a_server_that_no_longer_accepts_is_unhealthy_however_long_it_takes() {
    if !is_ours() {
        return;
    }
    for probe in ["tcp", "unix"] {
        let setup = scripted(with_files(), ":", "").options([
            "--ready=accept".to_owned(),
            "--watch=0.5".to_owned(),
            format!("--probe={probe}"),
        ]);
        let (server, port) = serving(setup);
        let worker = Pid::from_raw(server.ask(port).pid);
        // The kernel goes on taking connections for it.
        kill(worker, Signal::SIGSTOP).expect("cannot stop the worker");
        wait_until_unhealthy(&server, "generation 1 has not accepted a connection");
        server.wait_for_log(
            "generation 1 has been unhealthy for 0.5 secs: generation 1 has not accepted a connection",
        );
        kill(worker, Signal::SIGCONT).expect("cannot continue the worker");
        server.wait_for_log("generation 1 is healthy again");
        wait_until_healthy(&server);
        assert_eq!(server.ask(port).pid, worker.as_raw());
    }
}

#[test]
fn a_server_that_no_longer_answers_is_unhealthy() {
    if !is_ours() {
        return;
    }
    let (server, port) = watched(&["--watch=0.5"]);
    let worker = Pid::from_raw(server.ask(port).pid);
    kill(worker, Signal::SIGSTOP).expect("cannot stop the worker");
    wait_until_unhealthy(
        &server,
        "GET /exists/up on generation 1: no answer within a second",
    );
    kill(worker, Signal::SIGCONT).expect("cannot continue the worker");
    server.wait_for_log("generation 1 is healthy again");
    wait_until_healthy(&server);
}

#[test]
fn a_command_that_begins_to_fail_or_hangs_is_a_warning() {
    if !is_ours() {
        return;
    }
    let command =
        "echo $$ >last; [ ! -e hang ] || { sleep 600; }; test -e up || { echo no up >&2; exit 3; }";
    let setup = scripted(with_files(), ":", "")
        .options([format!("--ready=exec:{command}"), "--watch=0.4".to_owned()]);
    up(setup.folder());
    let (server, port) = serving(setup);
    let first = server.ask(port).pid;
    down(&server);
    wait_until_unhealthy(
        &server,
        "the --ready command failed, exit status:768 (exit code 3): no up",
    );
    up(server.folder());
    server.wait_for_log("generation 1 is healthy again");
    // It is not the server that hangs, but nobody can tell.
    let hang = server.folder().join("hang");
    fs::write(&hang, "").expect("cannot write");
    wait_until_unhealthy(&server, "the --ready command did not finish within 1 secs");
    // What hung is gone, with all that it had started.
    fs::remove_file(&hang).expect("cannot remove");
    server.wait_for_log_times(2, "generation 1 is healthy again");
    let sleeping = proc::all().into_iter().filter(|pid| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
        let command = fs::read_to_string(format!("/proc/{pid}/comm"));
        cwd.is_ok_and(|cwd| cwd == server.folder()) && command.is_ok_and(|it| it == "sleep\n")
    });
    assert_eq!(sleeping.count(), 0);
    assert_eq!(server.ask(port).pid, first);
}

#[test]
fn what_is_unhealthy_can_be_restarted_and_what_replaces_it_begins_afresh() {
    if !is_ours() {
        return;
    }
    let (server, port) = watched(&["--watch=0.4", "--start-timeout=1", "--start-limit=1"]);
    down(&server);
    server.wait_for_log("generation 1 has been unhealthy");
    // What does not answer well either does not replace it.
    let mut client = restart(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    assert!(
        client.said().contains("the old one keeps serving"),
        "{}",
        client.said()
    );
    let failed = server.wait_for_start(2).pid;
    server.wait_until("the failed one is gone", |_| !proc::exists(failed));
    assert_eq!(server.ask(port).generation, Some(1));
    assert_eq!(status(&server, "").0, 1);
    up(server.folder());
    server.wait_for_log("generation 1 is healthy again");
    down(&server);
    server.wait_for_log_times(2, "generation 1 has been unhealthy");
    up(server.folder());
    assert_eq!(restart(&server).wait(), 0);
    let generation = server.ask(port).generation.expect("a number");
    wait_until_healthy(&server);
    down(&server);
    server.wait_for_log(&format!("generation {generation} has been unhealthy"));
}

#[test]
fn a_worker_that_dies_while_it_is_unhealthy_is_replaced() {
    if !is_ours() {
        return;
    }
    let (server, port) = watched(&["--watch=0.4"]);
    down(&server);
    server.wait_for_log("generation 1 has been unhealthy");
    let worker = Pid::from_raw(server.ask(port).pid);
    kill(worker, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_log(&format!("worker {worker} died unexpectedly"));
    wait_until_healthy(&server);
    // Nothing serves until the next one has proved itself.
    assert_eq!(status(&server, "").0, 1);
    up(server.folder());
    let generation = server.wait_for("another generation is current", |server| {
        let json = server.status_json()?;
        let one = &json["generations"][0];
        (one["state"] == "current").then(|| one["number"].as_u64())?
    });
    assert_eq!(server.ask(port).generation.map(u64::from), Some(generation));
    assert_eq!(status(&server, "").0, 0);
    down(&server);
    server.wait_for_log(&format!("generation {generation} has been unhealthy"));
}

#[test]
fn a_stop_of_what_is_unhealthy_ends_the_questions_too() {
    if !is_ours() {
        return;
    }
    let (mut server, port) = watched(&["--watch=0.4"]);
    down(&server);
    server.wait_for_log("generation 1 has been unhealthy");
    // It drains for a while, in which it could recover.
    let held = client::hold(port);
    server.signal(Signal::SIGTERM);
    server.wait_for_log("received TERM, sending TERM to all workers");
    up(server.folder());
    server.wait_until("the status shows that it is stopping", |server| {
        server
            .status_json()
            .is_some_and(|json| json["stopping"] == true)
    });
    drop(held);
    assert!(server.wait_exit().success());
    assert_eq!(server.count_in_log("healthy again"), 0);
}

/// An idle server is asked and does nothing else.
#[test]
fn questions_wake_the_server_a_few_times_each_and_nothing_else_does() {
    if !is_ours() {
        return;
    }
    for ready in ["accept", "http:/exists/up"] {
        let setup = scripted(with_files(), ":", "")
            .options([format!("--ready={ready}"), "--watch=0.8".to_owned()]);
        up(setup.folder());
        let (server, _) = serving(setup);
        let before = proc::context_switches(server.pid());
        let began = std::time::Instant::now();
        wait::until(
            "it was woken twenty times",
            || server.log(),
            || (proc::context_switches(server.pid()) >= before + 20).then_some(()),
        );
        // Periods of 200 ms with two wake-ups in each, or more where an answer comes in pieces: seven in each would be
        // too many.
        assert!(
            began.elapsed() > Duration::from_millis(600),
            "{ready}: {:?}",
            began.elapsed()
        );
    }
}

#[test]
fn options_of_a_watch_that_cannot_be_are_one_line_and_a_hint() {
    if !is_ours() {
        return;
    }
    let lacks = "start_server: cannot use --watch: it needs --ready=accept, --ready=http:PATH or --ready=exec:COMMAND as well";
    let hint = "hint: READY=1 and a line feed come only once: use --ready=exec:COMMAND with a command that asks the server";
    for (options, lines) in [
        (&["--watch=5"][..], &[lacks][..]),
        (&["--watch=5", "--ready=interval"], &[lacks]),
        (&["--watch=5", "--ready=notify"], &[lacks, hint]),
        (&["--watch=5", "--ready=fd:7"], &[lacks, hint]),
        (
            &["--watch=0", "--ready=accept"],
            &["start_server: cannot use --watch=0: every server would be unhealthy"],
        ),
    ] {
        assert_usage(Server::setup().options(options.iter().copied()), lines);
    }
}
