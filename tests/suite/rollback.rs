//! `--rollback`: the last restart is undone by hand, however far it has come. `--abort` ends one that has not committed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use e2e::client::{self, Load};
use e2e::skip::needs_root;
use e2e::{Server, Setup, ports, proc, programs, wait};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::commands::{Client, accepted, is_ours, run};
use crate::readiness::{gated, scripted, with_files};

fn executable(path: &Path, text: &str) {
    fs::write(path, text).expect("cannot write it");
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("cannot make it executable");
}

/// A script that runs the fixture worker, which reports the number of its release.
fn release(folder: &Path, release: u32) {
    let (worker, journal) = (programs::worker(), folder.join("journal"));
    let script = format!(
        "#!/bin/sh\nexec {} --journal={} --graceful release={release}\n",
        worker.display(),
        journal.display()
    );
    let directory = folder.join("release");
    if !directory.exists() {
        fs::create_dir(&directory).expect("cannot make a directory");
        let open = Permissions::from_mode(0o755);
        fs::set_permissions(&directory, open).expect("cannot open it");
    }
    executable(&directory.join("new"), &script);
    fs::rename(directory.join("new"), directory.join("app")).expect("cannot deploy it");
}

/// Release 1 serves as generation 1, and release 2 is deployed.
fn deployed(setup: Setup) -> (Server, u16) {
    let port = ports::tcp();
    release(setup.folder(), 1);
    let server = setup
        .port(port)
        .option("--dir=release")
        .program(["./app"])
        .start();
    accepted(&server);
    release(server.folder(), 2);
    (server, port)
}

/// The release that answers.
fn serving(port: u16) -> String {
    let mut arguments = client::ask(port).args;
    arguments.pop().unwrap_or_default()
}

fn rollback(server: &Server, options: &[&str]) -> Client {
    let mut all = vec!["--rollback", "--pid-file=pid"];
    all.extend(options);
    run(server, &all)
}

fn restart(server: &Server, options: &[&str]) -> Client {
    let mut all = vec!["--restart", "--pid-file=pid"];
    all.extend(options);
    run(server, &all)
}

/// The restart has succeeded, and what it has replaced is gone.
fn restarted(setup: Setup) -> (Server, u16) {
    let (server, port) = deployed(setup);
    let mut client = restart(&server, &[]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    assert_eq!(serving(port), "release=2");
    (server, port)
}

#[test]
fn before_the_old_workers_are_told_to_stop_they_serve_again_without_a_new_process() {
    if !is_ours() {
        return;
    }
    let (server, port) = deployed(with_files().option("--kill-old-delay=600"));
    let old = server.workers()[0];
    let mut waiting = restart(&server, &[]);
    server.wait_for_generations(&[1, 2]);
    let held = client::hold(port);
    let load = Load::start(port, 4);
    let mut client = rollback(&server, &["--no-wait"]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    let said = client.said();
    let pid = old.pid;
    let kept =
        format!("\ngeneration 1 keeps serving (pid {pid}); generation 2 is not waited for\n");
    assert!(said.contains(&kept), "{said}");
    // Whoever waits for the restart learns that it was undone.
    assert_eq!(waiting.wait(), 1);
    let said = waiting.said();
    assert!(said.contains("generation 2 was rolled back"), "{said}");
    // What was accepted is served to its end, by whichever has it.
    held.finish();
    let left = server.wait_for_generations(&[1]);
    assert_eq!(left[0].pid, old.pid, "the old process serves");
    load.wait_for_more(100);
    let outcome = load.stop();
    assert_eq!(outcome.failures, [] as [String; 0]);
    assert_eq!(serving(port), "release=1");
    // A crash brings back what serves now, not what lies on disk.
    kill(old.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_service(3);
    assert_eq!(serving(port), "release=1");
}

#[test]
fn what_is_gone_is_started_again_though_its_file_was_replaced_and_its_directory_renamed() {
    if !is_ours() {
        return;
    }
    let (server, port) = restarted(with_files());
    let folder = server.folder();
    fs::rename(folder.join("release"), folder.join("elsewhere")).expect("cannot rename it");
    let load = Load::start(port, 4);
    let mut client = rollback(&server, &[]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    let said = client.said();
    let success = "\ngeneration 3 (generation 1 again) serves (pid ";
    assert!(said.contains(success), "{said}");
    assert!(said.contains("; generation 2 is gone (drained "), "{said}");
    assert_eq!(serving(port), "release=1");
    // And back again.
    let mut client = rollback(&server, &["--json"]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    let said = client.said();
    let (start, end) = (said.find("\n{"), said.rfind("\n}"));
    let verdict = start.zip(end).map(|(start, end)| &said[start..end + 2]);
    let verdict: Value = serde_json::from_str(verdict.expect("an object")).expect("a verdict");
    assert_eq!(verdict["outcome"], "committed");
    assert_eq!(verdict["generation"], 4);
    assert_eq!(verdict["again"], 2);
    assert_eq!(verdict["replaces"], 3);
    assert_eq!(serving(port), "release=2");
    let outcome = load.stop();
    assert_eq!(outcome.failures, [] as [String; 0]);
}

#[test]
fn a_server_that_root_has_started_is_rolled_back_too() {
    if !is_ours() || !needs_root() {
        return;
    }
    let (server, port) = restarted(with_files().as_root().option("--user=nobody"));
    let mut client = rollback(&server, &[]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    assert_eq!(serving(port), "release=1");
}

#[test]
fn old_workers_that_were_told_to_stop_are_not_called_back() {
    if !is_ours() {
        return;
    }
    let (server, port) = deployed(with_files());
    let held = client::hold(port);
    let mut client = restart(&server, &["--no-wait"]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    let mut client = rollback(&server, &[]);
    assert_eq!(client.wait(), 1);
    let said = client.said();
    let cause = "start_server: cannot roll back: the workers of generation 1 were already told to stop and have not \
                 exited yet; generation 2 keeps serving\nhint: try again once they have exited";
    assert!(said.contains(cause), "{said}");
    assert_eq!(server.generations(), [1, 2], "nothing has changed");
    held.finish();
    server.wait_for_generations(&[2]);
    let mut client = rollback(&server, &[]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    assert_eq!(serving(port), "release=1");
}

#[test]
fn a_restart_that_is_under_way_is_given_up() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(with_files().option("--ready=notify"), "--notify");
    let port = ports::tcp();
    let server = setup.port(port).start();
    accepted(&server);
    let mut first = restart(&server, &[]);
    wait::until(
        "generation 2 has started",
        || first.said(),
        || first.said().contains("generation 2: started").then_some(()),
    );
    let mut second = restart(&server, &[]);
    let late = "generation 2 is still starting";
    wait::until(
        "the second restart waits",
        || second.said(),
        || second.said().contains(late).then_some(()),
    );
    let mut client = rollback(&server, &[]);
    assert_eq!((first.wait(), second.wait()), (1, 1));
    let (first, second) = (first.said(), second.said());
    assert!(first.contains("generation 2 was rolled back; the old one keeps serving"));
    assert!(second.contains("cannot restart: a rollback came first; the old one keeps serving"));
    assert_eq!(client.wait(), 0, "{}", client.said());
    let said = client.said();
    assert!(
        said.contains("\ngeneration 1 keeps serving (pid "),
        "{said}"
    );
    assert!(said.contains("); generation 2 is gone (drained "), "{said}");
    // It waits for no start: it has ended this one.
    assert!(!said.contains("is still starting"), "{said}");
    server.wait_for_generations(&[1]);
    drop(gate);
}

#[test]
fn a_version_that_crashes_again_and_again_is_left_by_a_rollback() {
    if !is_ours() {
        return;
    }
    let (server, port) = restarted(with_files());
    // The new version has a fault that shows later.
    executable(&server.folder().join("release/app"), "#!/bin/sh\nexit 3\n");
    let mut client = restart(&server, &[]);
    assert_eq!(client.wait(), 1, "{}", client.said());
    // It is tried again and again, until somebody says that it is not to be.
    let mut client = rollback(&server, &[]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    assert_eq!(serving(port), "release=2");
    let json = server.status_json().expect("a status");
    assert_eq!(json["generations"].as_array().map(Vec::len), Some(1));
}

#[test]
fn where_there_is_nothing_to_go_back_to_it_says_so_and_changes_nothing() {
    if !is_ours() {
        return;
    }
    let (server, _) = deployed(with_files());
    let mut client = rollback(&server, &[]);
    assert_eq!(client.wait(), 1);
    let said = client.said();
    let cause = "start_server: cannot roll back: there is nothing to go back to from generation 1; generation 1 keeps serving\n";
    assert!(said.contains(cause), "{said}");
    assert_eq!(server.generations(), [1]);
    let (server, port) = restarted(with_files().option("--no-pin"));
    let mut client = rollback(&server, &[]);
    assert_eq!(client.wait(), 1);
    let said = client.said();
    assert!(said.contains("with --no-pin nothing is kept to start it again"));
    assert_eq!(serving(port), "release=2");
}

#[test]
fn a_signal_that_carries_no_order_means_nothing() {
    if !is_ours() {
        return;
    }
    let (server, port) = restarted(with_files());
    let before = server.status_json().expect("a status")["counters"].clone();
    server.signal(Signal::SIGURG);
    // Whatever was sent before has been read by then.
    server.signal(Signal::SIGUSR2);
    server.wait_for_log("USR2");
    let after = server.status_json().expect("a status")["counters"].clone();
    assert_eq!(before, after);
    assert_eq!(serving(port), "release=2");
}

fn abort(server: &Server, more: &[&str]) -> Client {
    let words: Vec<&str> = ["--abort", "--pid-file=pid"]
        .iter()
        .chain(more)
        .copied()
        .collect();
    run(server, &words)
}

#[test]
fn an_abort_ends_the_tries_of_a_failed_restart_and_the_old_generation_serves_on() {
    if !is_ours() {
        return;
    }
    // Long enough for all that comes before the next try.
    let setup = with_files().interval("3");
    let port = ports::tcp();
    let server = scripted(setup, "[ $SERVER_STARTER_GENERATION = 1 ] || exit 1", "")
        .port(port)
        .start();
    accepted(&server);
    let mut failed = restart(&server, &[]);
    assert_eq!(failed.wait(), 1, "{}", failed.said());
    let line = "start_server: generation 1 keeps serving; the restart is tried again in ";
    let log = server.wait_for_log(line);
    assert!(log.ends_with(", unless --abort ends that"), "{log}");
    let mut status = run(&server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 0);
    let said: Vec<String> = status
        .said()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert!(said.join(" ").contains("; next start in "), "{said:?}");
    let mut client = abort(&server, &[]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    let said = client.said();
    assert!(said.starts_with("asked start_server (pid:"), "{said}");
    assert!(
        said.contains("\ngeneration 1 keeps serving (pid "),
        "{said}"
    );
    let json = server.status_json().expect("no status");
    assert_eq!(json["next_start_at"], Value::Null, "nothing is tried again");
    assert_eq!(server.generations(), [1]);
    assert!(client::request(port, "report").is_ok());
    // There is nothing left to end.
    let mut client = abort(&server, &["--json"]);
    assert_eq!(client.wait(), 1);
    let cause = "cannot abort: no restart is under way or tried again; generation 1 keeps serving";
    assert!(client.said().contains(cause), "{}", client.said());
    server.wait_for_log("start_server: cannot abort: no restart is under way or tried again");
}

#[test]
fn an_abort_ends_a_start_that_is_under_way() {
    if !is_ours() {
        return;
    }
    let (setup, _) = gated(with_files().option("--ready=notify"), "--notify");
    let server = setup.start();
    accepted(&server);
    let mut waiting = restart(&server, &[]);
    server.wait_for_generations(&[1, 2]);
    let mut client = abort(&server, &[]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    assert_eq!(waiting.wait(), 1);
    let cause = "cannot restart: generation 2 was aborted; the old one keeps serving";
    assert!(waiting.said().contains(cause), "{}", waiting.said());
    let left = server.wait_for_generations(&[1]);
    let json = server.status_json().expect("no status");
    assert_eq!(
        json["supervisor"]["orders"],
        serde_json::json!(["rollback", "abort", "scale", "canary", "promote", "upgrade"])
    );
    // A try is still possible.
    let mut again = restart(&server, &["--timeout=0.3"]);
    assert_eq!(again.wait(), 4, "{}", again.said());
    assert!(proc::alive(left[0].pid));
}
