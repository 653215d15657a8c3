//! `--guardian`: whenever the supervisor is killed, nothing is lost.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use e2e::client::{self, Load};
use e2e::skip::{needs_program, needs_root};
use e2e::start::InTurn;
use e2e::{Server, Setup, ports, proc, programs, wait};
use nix::sys::resource::Resource;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::commands::{Client, run};
use crate::launch::RootFolder;
use crate::privileges::{assert_has_no_privilege, is_dumpable, status};
use crate::readiness::{gated, is_ours, with_files};

const REVIVED: &str = "; a new one goes on with its ";
const PID_FILE: &str = "--pid-file=pid";

pub fn guarded() -> Setup {
    with_files().option("--guardian").worker(["--graceful"])
}

#[track_caller]
fn serving(setup: Setup) -> (Server, u16) {
    let port = ports::tcp();
    let server = setup.port(port).start();
    server.wait_until_accepted();
    (server, port)
}

#[track_caller]
fn supervisor(server: &Server) -> Pid {
    server.wait_for("a supervisor lives", Server::supervisor)
}

#[track_caller]
pub fn strike(server: &Server) {
    kill(supervisor(server), Signal::SIGKILL).expect("it is gone");
}

/// Waits until everything that has happened is known to the guardian.
#[track_caller]
fn settle(server: &Server) {
    let look = |server: &Server| {
        let pids = [server.main_pid(), server.supervisor()?];
        let sleeps = |pid: &Pid| proc::status(*pid).is_some_and(|status| status.is_sleeping);
        pids.iter()
            .all(sleeps)
            .then(|| pids.map(proc::context_switches))
    };
    server.wait_until("nothing happens", |server| {
        let before = look(server);
        wait::let_pass(Duration::from_millis(20));
        before.is_some() && look(server) == before
    });
}

/// Kills the supervisor, and waits until another one has taken over.
#[track_caller]
fn revive(server: &Server) {
    settle(server);
    let times = server.count_in_log(REVIVED);
    strike(server);
    server.wait_for_log_times(times + 1, REVIVED);
}

#[track_caller]
fn succeeds(client: &mut Client) -> String {
    assert_eq!(client.wait(), 0, "{}", client.said());
    client.said()
}

/// A `--restart` that has sent its signal.
#[track_caller]
fn restart(server: &Server) -> Client {
    let client = run(server, &["--restart", PID_FILE]);
    server.wait_until("the client has asked", |_| client.said().contains('\n'));
    client
}

fn json(server: &Server) -> Value {
    server.status_json().expect("there is no status")
}

/// After its end.
#[track_caller]
fn nothing_is_left(server: &Server) {
    let evidence = || server.log();
    wait::until("no process is left", evidence, || {
        server.marked().is_empty().then_some(())
    });
    for name in ["pid", "pid.json", "status", "status.json", "sock"] {
        let path = server.folder().join(name);
        let left = fs::read_to_string(&path);
        assert!(path.symlink_metadata().is_err(), "{name} is left: {left:?}");
    }
}

fn gone(pid: Pid) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

// One kill.

#[test]
fn a_supervisor_that_is_killed_is_not_missed() {
    if !is_ours() {
        return;
    }
    let (mut server, port) = serving(guarded().path("sock"));
    let sock = server.folder().join("sock");
    let first = server.accepted();
    let (held, by_path) = (client::hold(port), client::hold(&sock));
    let lines = server.status_file();
    revive(&server);
    let line = server.wait_for_log(REVIVED);
    assert!(line.contains("has died, status:9"), "{line}");
    assert!(line.ends_with("its 1 worker"), "{line}");
    assert_eq!(server.workers(), [first]);
    assert_eq!(server.pid_file(), Some(server.pid()));
    assert_eq!(server.status_file(), lines);
    let pid = i64::from(server.pid().as_raw());
    assert_eq!(json(&server)["supervisor"]["pid"], pid);
    let said = succeeds(&mut run(&server, &["--status", PID_FILE]));
    assert!(said.contains(&format!("pid {pid}")), "{said}");
    assert_eq!(server.ask(port).pid, first.pid.as_raw());
    assert_eq!(server.ask(&sock).pid, first.pid.as_raw());
    // The old worker is a child of the guardian.
    let mut client = restart(&server);
    server.wait_for_drain(first);
    let second = server.wait_for_service(2);
    assert!(client.is_waiting(), "{}", client.said());
    held.finish();
    by_path.finish();
    succeeds(&mut client);
    server.wait_until("the old worker is reaped", |_| gone(first.pid));
    server.wait_for_log(&format!("old worker {} died, status:0", first.pid));
    // So is this one, and how it exits is known.
    revive(&server);
    assert!(client::request(port, "exit 7").is_err());
    let died = format!("worker {} died unexpectedly with status:1792", second.pid);
    server.wait_for_log(&died);
    let third = server.wait_for_service(3);
    server.wait_for("it is accepted", |server| {
        (server.status_file()? == format!("3:{}\n", third.pid)).then_some(())
    });
    revive(&server);
    succeeds(&mut run(&server, &["--stop", PID_FILE]));
    assert!(server.wait_exit().success());
    assert_eq!(server.log().lines().last(), Some("exiting"));
    nothing_is_left(&server);
}

#[test]
fn a_server_with_a_guardian_that_nobody_kills_is_like_any_other() {
    if !is_ours() {
        return;
    }
    let (mut server, _) = serving(guarded().path("sock"));
    assert_eq!(server.restart().generation, 2);
    assert!(server.stop().success());
    nothing_is_left(&server);
    // One that never serves.
    let finished = guarded().worker(["--exit=0"]).run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    nothing_is_left(&finished.server);
}

// Any moment.

/// A number below this.
pub fn random(below: u64) -> u64 {
    RandomState::new().hash_one(0) % below
}

/// Kills whatever supervises, after some time.
fn strike_at_random(server: &Server) {
    wait::let_pass(Duration::from_micros(random(120_000)));
    strike(server);
}

/// Does this so often, on as many threads as a small machine has a use for.
fn often(times: usize, work: impl Fn(usize) + Sync) {
    const AT_ONCE: usize = 4;
    let begun = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = begun.fetch_add(1, Ordering::Relaxed);
                    if number >= times {
                        break;
                    }
                    work(number);
                }
            });
        }
    });
}

#[test]
fn two_hundred_kills_at_any_moment_lose_no_request_no_process_and_no_order() {
    if is_ours() {
        often(200 / 4, |_| four_kills_under_load());
    }
}

/// The fifth within a minute would be the last.
fn four_kills_under_load() {
    let (mut server, port) = serving(guarded().path("sock"));
    let load = Load::start_paced(port, 4);
    load.wait_for_more(4);
    // Nothing is going on.
    strike_at_random(&server);
    // A client waits for its verdict.
    let mut client = restart(&server);
    strike_at_random(&server);
    succeeds(&mut client);
    // A signal that it may not even have read.
    let newest = server.wait_for("a generation lives", |server| {
        server.generations().last().copied()
    });
    server.signal(Signal::SIGHUP);
    strike(&server);
    server.wait_for("it restarts all the same", |server| {
        let generations = server.generations();
        (generations.last().copied()? > newest && generations.len() == 1).then_some(())
    });
    load.wait_for_more(4);
    let mut client = restart(&server);
    strike_at_random(&server);
    succeeds(&mut client);
    load.wait_for_more(4);
    let outcome = load.stop();
    assert_eq!(outcome.failures, [""; 0], "{}", server.log());
    assert!(server.stop().success(), "{}", server.log());
    nothing_is_left(&server);
}

#[test]
fn a_guardian_that_is_killed_at_any_moment_is_not_missed() {
    if is_ours() {
        often(24, kill_of_a_guardian_under_load);
    }
}

fn kill_of_a_guardian_under_load(number: usize) {
    let (mut server, port) = serving(guarded().path("sock"));
    let load = Load::start(port, 2);
    load.wait_for_more(4);
    // Its old workers may be the guardian's children.
    if number.is_multiple_of(3) {
        revive(&server);
    }
    let client = number.is_multiple_of(2).then(|| restart(&server));
    wait::let_pass(Duration::from_micros(random(120_000)));
    let last = supervisor(&server);
    kill(server.pid(), Signal::SIGKILL).expect("it is gone");
    assert_eq!(server.wait_exit().code(), None);
    // Whoever waits for it hears how its restart ends, or why that cannot be known.
    if let Some(mut client) = client {
        let code = client.wait();
        let is_told = client.said().contains("was the guardian and has died");
        assert_eq!(
            code,
            i32::from(is_told),
            "{}\n{}",
            client.said(),
            server.log()
        );
    }
    goes_on_without_a_guardian(&server, last);
    let newest = client::ask(port).generation;
    succeeds(&mut run(&server, &["--restart", PID_FILE]));
    assert!(client::ask(port).generation > newest, "{}", server.log());
    load.wait_for_more(4);
    let outcome = load.stop();
    assert_eq!(outcome.failures, [""; 0], "{}", server.log());
    succeeds(&mut run(&server, &["--stop", PID_FILE]));
    nothing_is_left(&server);
}

/// It says so, and whoever looks for the server finds it.
#[track_caller]
fn goes_on_without_a_guardian(server: &Server, last: Pid) {
    let until = |condition: &str, holds: &dyn Fn() -> bool| {
        wait::until(condition, || server.log(), || holds().then_some(()));
    };
    until("it says so", &|| {
        server.count_in_log("the guardian has died") == 1
    });
    until("the pid file names it", &|| server.pid_file() == Some(last));
    until("FILE.json names it", &|| {
        json(server)["supervisor"]["pid"] == i64::from(last.as_raw())
    });
    let said = succeeds(&mut run(server, &["--status", PID_FILE]));
    assert!(said.contains(&format!("pid {last},")), "{said}");
    let second = as_configured(server);
    assert!(
        second.contains("locked by a running instance, pid"),
        "{second}"
    );
}

// Certain moments.

#[test]
fn a_start_that_is_under_way_goes_on() {
    if !is_ours() {
        return;
    }
    for (ready, arguments) in [("notify", "--notify"), ("http:/exists/go", "")] {
        let setup = with_files()
            .option("--guardian")
            .option(format!("--ready={ready}"));
        fs::write(setup.folder().join("go"), "").expect("cannot write");
        let (setup, gate) = gated(setup, arguments);
        let (mut server, port) = serving(setup);
        let mut client = restart(&server);
        let second = server.wait_for(ready, |server| {
            (server.workers().into_iter()).find(|worker| worker.generation == 2)
        });
        revive(&server);
        assert!(client.is_waiting(), "{}", client.said());
        assert_eq!(server.ask(port).generation, Some(1));
        // What it says meanwhile is heard.
        proc::stop(server.pid());
        strike(&server);
        gate.open();
        assert_eq!(server.wait_for_service(2).pid, second.pid);
        server.signal(Signal::SIGCONT);
        succeeds(&mut client);
        assert_eq!(server.ask(port).pid, second.pid.as_raw());
        assert_eq!(server.generations(), [2]);
        assert!(server.stop().success());
        nothing_is_left(&server);
    }
}

#[test]
fn a_start_that_has_failed_is_tried_again() {
    if !is_ours() {
        return;
    }
    let worker = ["--graceful", "--exit-if-exists=broken"];
    let (mut server, port) = serving(guarded().worker(worker));
    let first = server.accepted();
    let broken = server.folder().join("broken");
    fs::write(&broken, "").expect("cannot write");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("failed to start");
    revive(&server);
    assert_eq!(server.ask(port).pid, first.pid.as_raw());
    fs::remove_file(&broken).expect("it is gone");
    server.wait_until(
        "a later generation serves alone",
        |server| matches!(server.generations()[..], [generation] if generation > 1),
    );
    assert!(server.stop().success());
    nothing_is_left(&server);
}

#[test]
fn a_check_that_is_under_way_ends_and_counts() {
    if !is_ours() {
        return;
    }
    let check = "--check=test ! -e held || { echo x >>checking; read x <gate; test ! -e bad; }";
    for is_bad in [false, true] {
        let (setup, gate) = gated(guarded().option(check), "");
        // Nothing else waits there.
        let setup = setup.worker(["--graceful"]);
        let (mut server, _) = serving(setup);
        let file = |name: &str| server.folder().join(name);
        fs::write(file("held"), "").expect("cannot write");
        let mut client = restart(&server);
        server.wait_until("it is checked", |_| file("checking").exists());
        revive(&server);
        assert!(client.is_waiting(), "{}", client.said());
        if is_bad {
            fs::write(file("bad"), "").expect("cannot write");
        }
        gate.open();
        assert_eq!(client.wait(), i32::from(is_bad), "{}", client.said());
        let checked = fs::read_to_string(file("checking")).expect("it was checked");
        assert_eq!(checked, "x\n", "checked twice");
        assert_eq!(server.generations(), [if is_bad { 1 } else { 2 }]);
        assert!(server.stop().success());
        nothing_is_left(&server);
    }
}

#[test]
fn an_old_worker_is_told_to_stop_when_its_delay_has_passed_and_once() {
    if !is_ours() {
        return;
    }
    let (mut server, _) = serving(guarded().option("--kill-old-delay=1"));
    let first = server.accepted();
    let mut client = restart(&server);
    server.wait_for("the second is committed", |server| {
        server.status_file()?.contains("2:").then_some(())
    });
    assert_eq!(server.generations(), [1, 2]);
    revive(&server);
    assert_eq!(server.caught(first), [""; 0]);
    succeeds(&mut client);
    assert_eq!(server.caught(first), ["SIGTERM"]);
    assert!(server.stop().success());
}

#[test]
fn a_stop_goes_on() {
    if !is_ours() {
        return;
    }
    let (mut server, port) = serving(guarded().path("sock"));
    let first = server.accepted();
    let held = client::hold(port);
    server.signal(Signal::SIGTERM);
    server.wait_for_drain(first);
    revive(&server);
    assert!(server.folder().join("sock").exists());
    assert!(proc::alive(server.pid()));
    held.finish();
    assert!(server.wait_exit().success());
    assert_eq!(server.caught(first), ["SIGTERM"]);
    nothing_is_left(&server);
}

#[test]
fn the_death_of_a_worker_is_seen_by_the_next_supervisor() {
    if !is_ours() {
        return;
    }
    let (mut server, port) = serving(guarded());
    let first = server.accepted();
    proc::stop(server.pid());
    strike(&server);
    kill(first.pid, Signal::SIGKILL).expect("it is gone");
    server.signal(Signal::SIGCONT);
    // The first supervisor may have been killed before it had written down that the first generation serves.
    server.wait_for("its exit is in the log", |server| {
        let log = server.log();
        let mut lines = log.lines();
        let (pid, how) = (format!("worker {} ", first.pid), "status:9");
        lines.find(|line| line.contains(&pid) && line.contains(how))?;
        Some(())
    });
    server.wait_for_service(2);
    assert_eq!(server.ask(port).generation, Some(2));
    assert!(server.stop().success());
    nothing_is_left(&server);
}

#[test]
fn a_pid_file_that_was_made_again_leads_to_the_server_after_a_kill() {
    if !is_ours() {
        return;
    }
    let (mut server, _) = serving(guarded());
    let path = server.folder().join("pid");
    fs::remove_file(&path).expect("it is gone");
    server.restart();
    server.wait_until("it is there again", |server| server.pid_file().is_some());
    let pid = server.pid();
    for _ in 0..2 {
        let said = succeeds(&mut run(&server, &["--status", PID_FILE]));
        assert!(said.contains(&format!("pid {pid},")), "{said}");
        assert!(!said.contains("lock"), "{said}");
        revive(&server);
    }
    succeeds(&mut restart(&server));
    succeeds(&mut run(&server, &["--stop", PID_FILE]));
    assert!(server.wait_exit().success());
    nothing_is_left(&server);
}

// Too many.

#[test]
fn the_fifth_death_within_a_minute_stops_everything_in_order() {
    if !is_ours() {
        return;
    }
    let (mut server, port) = serving(guarded().path("sock"));
    let first = server.accepted();
    for _ in 0..4 {
        revive(&server);
    }
    let held = client::hold(port);
    strike(&server);
    server.wait_for_log("has died too often, status:9");
    server.wait_for_drain(first);
    held.finish();
    assert_eq!(server.wait_exit().code(), Some(1));
    assert_eq!(server.caught(first), ["SIGTERM"]);
    nothing_is_left(&server);
}

/// Changes a limit of the guardian, as prlimit(1) takes it.
#[track_caller]
fn limit(server: &Server, limit: &str) {
    let mut command = match nix::unistd::Uid::effective().is_root() {
        true => Command::new("setpriv"),
        false => Command::new("prlimit"),
    };
    if nix::unistd::Uid::effective().is_root() {
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "prlimit",
        ]);
    }
    command.arg(format!("--pid={}", server.pid())).arg(limit);
    assert!(command.status_in_turn().expect("cannot run it").success());
}

/// No supervisor can be started any more.
#[track_caller]
fn let_it_open_nothing(server: &Server) {
    limit(server, "--nofile=3:");
}

#[test]
fn if_no_supervisor_can_start_the_workers_are_told_to_stop() {
    if !is_ours() || !needs_program("prlimit") {
        return;
    }
    let (mut server, port) = serving(guarded());
    let first = server.accepted();
    let held = client::hold(port);
    let_it_open_nothing(&server);
    strike(&server);
    server.wait_for_log("and no other is started: ");
    server.wait_for_drain(first);
    assert!(proc::alive(server.pid()));
    held.finish();
    assert_eq!(server.wait_exit().code(), Some(1));
    assert_eq!(server.caught(first), ["SIGTERM"]);
    wait::until(
        "no process is left",
        || server.log(),
        || server.marked().is_empty().then_some(()),
    );
}

// The guardian dies.

#[test]
fn a_supervisor_goes_on_without_its_guardian() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(guarded().path("sock"));
    let first = server.accepted();
    revive(&server);
    let held = client::hold(port);
    let last = supervisor(&server);
    kill(server.pid(), Signal::SIGKILL).expect("it is gone");
    goes_on_without_a_guardian(&server, last);
    // Its old worker is nobody's child here.
    let client = run(&server, &["--restart", PID_FILE]);
    let until = |condition: &str, holds: &dyn Fn() -> bool| {
        wait::until(condition, || server.log(), || holds().then_some(()));
    };
    until("the old one drains", &|| {
        server.caught(first) == ["SIGTERM"]
    });
    held.finish();
    let mut client = client;
    succeeds(&mut client);
    assert!(!proc::alive(first.pid));
    assert_eq!(client::ask(port).generation, Some(2));
    until("it is no more in the status", &|| {
        server
            .status_file()
            .is_some_and(|text| text.starts_with("2:"))
    });
    succeeds(&mut run(&server, &["--stop", PID_FILE]));
    nothing_is_left(&server);
}

/// What another start with the same pid file says.
fn as_configured(server: &Server) -> String {
    let words = [PID_FILE, "--guardian", "--", "/bin/true"];
    let mut client = Client::start(server.client(words), server.folder());
    assert_ne!(client.wait(), 0, "{}", client.said());
    client.said()
}

#[test]
fn a_client_does_not_take_the_death_of_the_guardian_for_the_end_of_the_server() {
    if !is_ours() {
        return;
    }
    for command in ["--stop", "--restart", "--upgrade", "--reopen"] {
        let (mut server, port) = serving(guarded().path("sock"));
        let last = supervisor(&server);
        // By then the lock of the pid file is the guardian's.
        settle(&server);
        // It passes nothing on.
        proc::stop(server.pid());
        let mut client = run(&server, &[command, PID_FILE]);
        let pid = server.pid();
        server.wait_until("it is asked", |_| {
            client.said().contains(&format!("{pid}"))
                && proc::status(pid).is_some_and(|status| status.pending != 0)
        });
        kill(pid, Signal::SIGKILL).expect("it is gone");
        assert_eq!(server.wait_exit().code(), None);
        assert_eq!(client.wait(), 1, "{}", client.said());
        let said =
            format!("pid {pid} was the guardian and has died; the supervisor goes on without it");
        assert!(client.said().contains(&said), "{}", client.said());
        goes_on_without_a_guardian(&server, last);
        assert_eq!(client::ask(port).generation, Some(1));
        succeeds(&mut run(&server, &["--stop", PID_FILE]));
        nothing_is_left(&server);
    }
}

#[test]
fn a_worker_of_a_dead_guardian_that_dies_is_replaced() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(guarded());
    let first = server.accepted();
    revive(&server);
    kill(server.pid(), Signal::SIGKILL).expect("it is gone");
    kill(first.pid, Signal::SIGKILL).expect("it is gone");
    wait::until(
        "another one serves",
        || server.log(),
        || {
            let report = client::try_ask(port).ok()?;
            (report.generation == Some(2)).then_some(())
        },
    );
    wait::until(
        "the pid file names the supervisor",
        || server.log(),
        || (server.pid_file()? != server.pid()).then_some(()),
    );
    succeeds(&mut run(&server, &["--stop", PID_FILE]));
    nothing_is_left(&server);
}

// With other options.

#[test]
fn after_an_upgrade_the_next_supervisor_is_the_new_program() {
    if !is_ours() {
        return;
    }
    let setup = guarded();
    let program = programs::install(&programs::start_server(), setup.folder());
    programs::install(&programs::binder(), setup.folder());
    let (mut server, port) = serving(setup.copy(program.clone()));
    let first = server.accepted();
    let inode = |pid: Pid| {
        fs::metadata(format!("/proc/{pid}/exe"))
            .expect("no exe")
            .ino()
    };
    let old = inode(server.pid());
    let replace = || {
        let aside = server.folder().join("next");
        fs::copy(&program, &aside).expect("cannot copy");
        fs::rename(&aside, &program).expect("cannot rename");
        fs::metadata(&program).expect("it is gone").ino()
    };
    let new = replace();
    assert_ne!(new, old);
    let before = supervisor(&server);
    succeeds(&mut run(&server, &["--upgrade", PID_FILE]));
    assert_eq!(supervisor(&server), before);
    assert_eq!((inode(before), inode(server.pid())), (new, old));
    revive(&server);
    assert_eq!(inode(supervisor(&server)), new);
    // And once more, in one that was revived.
    let newer = replace();
    succeeds(&mut run(&server, &["--upgrade", PID_FILE]));
    revive(&server);
    assert_eq!(inode(supervisor(&server)), newer);
    assert_eq!(server.ask(port).pid, first.pid.as_raw());
    assert_eq!(server.restart().generation, 2);
    assert!(server.stop().success());
    nothing_is_left(&server);
}

/// Kills the supervisor of a server with this log.
#[track_caller]
fn revive_with_log(server: &Server, log: &str) {
    let path = server.folder().join(log);
    let count = || {
        let text = fs::read_to_string(&path).unwrap_or_default();
        text.matches(REVIVED).count()
    };
    let before = count();
    strike(server);
    server.wait_until("another one has taken over", |_| count() > before);
}

#[test]
fn no_line_of_a_worker_is_lost() {
    if !is_ours() {
        return;
    }
    for target in ["--log-file=out", "--log-file=| cat >>out"] {
        let (mut server, port) = serving(guarded().options([target, "--log-timestamps"]));
        let out = server.folder().join("out");
        let mut number = 0;
        let mut write = || {
            for _ in 0..20 {
                number += 1;
                client::write(port, "stderr", &format!("line {number}."));
            }
        };
        for _ in 0..2 {
            // What it has not read yet; what it has read and not written dies with it.
            settle(&server);
            proc::stop(supervisor(&server));
            write();
            revive_with_log(&server, "out");
        }
        write();
        server.restart();
        write();
        assert!(server.stop().success());
        nothing_is_left(&server);
        let text = fs::read_to_string(&out).expect("there is no log");
        for number in 1..=80 {
            let times = text.matches(&format!("line {number}.")).count();
            assert_eq!(times, 1, "{target}: line {number}:\n{text}");
        }
        assert_eq!(
            text.lines().last().map(|line| line.ends_with("exiting")),
            Some(true)
        );
    }
}

#[test]
fn after_usr1_and_a_kill_the_log_goes_to_the_new_file() {
    if !is_ours() {
        return;
    }
    for is_at_once in [false, true] {
        let (mut server, port) = serving(guarded().option("--log-file=out"));
        let (out, old) = (server.folder().join("out"), server.folder().join("old"));
        fs::rename(&out, &old).expect("there is no log");
        server.signal(Signal::SIGUSR1);
        if !is_at_once {
            server.wait_until("it is reopened", |_| out.exists());
            settle(&server);
        }
        strike(&server);
        server.wait_until("the new one has the line", |_| {
            fs::read_to_string(&out).is_ok_and(|text| text.contains(REVIVED))
                || (is_at_once && fs::read_to_string(&old).is_ok_and(|text| text.contains(REVIVED)))
        });
        server.wait_until("it is reopened", |_| out.exists());
        server.restart();
        client::write(port, "stderr", "of a worker");
        let text = fs::read_to_string(&out).expect("it is reopened");
        assert!(text.contains("of a worker"), "{text}");
        assert!(server.stop().success());
        let text = fs::read_to_string(&out).expect("it is reopened");
        assert_eq!(text.lines().last(), Some("exiting"));
        nothing_is_left(&server);
    }
}

#[test]
fn a_launcher_hears_the_verdict_from_another_supervisor() {
    if !is_ours() {
        return;
    }
    let daemon = || guarded().options(["--daemonize", "--log-file=out"]);
    // Held at its start.
    let setup = daemon().worker(["--graceful", "--hold=fifo"]);
    let fifo = setup.folder().join("fifo");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::unistd::mkfifo(&fifo, mode).expect("cannot make a FIFO");
    fs::set_permissions(&fifo, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .expect("cannot open it");
    let mut server = setup
        .option("--ready=notify")
        .worker(["--graceful", "--hold=fifo", "--notify"])
        .start();
    server.wait_for_start(1);
    revive_with_log(&server, "out");
    assert!(proc::alive(server.pid()), "the launcher does not wait");
    drop(
        fs::OpenOptions::new()
            .write(true)
            .open(&fifo)
            .expect("nobody reads it"),
    );
    assert!(server.wait_exit().success());
    revive_with_log(&server, "out");
    let guardian = server.pid_file().expect("there is no pid file");
    kill(guardian, Signal::SIGTERM).expect("it is gone");
    nothing_is_left(&server);
    // A failure.
    let finished = daemon().worker(["--exit=3"]).run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    assert!(finished.log.contains("exit status:768"), "{}", finished.log);
    nothing_is_left(&finished.server);
}

#[test]
fn with_user_a_guardian_and_all_its_supervisors_have_no_privilege() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let setup = guarded()
        .as_root()
        .options(["--user=nobody".to_owned(), format!("--path={path}")]);
    let (mut server, _) = serving(setup);
    let check = |server: &Server| {
        for pid in [server.pid(), supervisor(server)] {
            assert_has_no_privilege(&status(pid));
            assert!(!is_dumpable(pid), "{pid}");
        }
    };
    check(&server);
    revive(&server);
    check(&server);
    assert!(Path::new(&path).exists());
    server.restart();
    assert_eq!(server.ask(Path::new(&path)).generation, Some(2));
    let binders = crate::privileges::binders(&server);
    assert_eq!(binders.len(), 1);
    revive(&server);
    assert!(proc::alive(binders[0]));
    succeeds(&mut run(&server, &["--stop", PID_FILE]));
    assert!(!Path::new(&path).exists());
    assert!(server.wait_exit().success());
    nothing_is_left(&server);
    assert!(!proc::alive(binders[0]));
}

#[test]
fn if_no_supervisor_can_start_a_binder_removes_its_socket() {
    if !is_ours() || !needs_root() || !needs_program("prlimit") {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let options = ["--user=nobody".to_owned(), format!("--path={path}")];
    let (mut server, _) = serving(guarded().as_root().options(options));
    let_it_open_nothing(&server);
    strike(&server);
    assert_eq!(server.wait_exit().code(), Some(1));
    assert!(!Path::new(&path).exists());
    wait::until(
        "no process is left",
        || server.log(),
        || server.marked().is_empty().then_some(()),
    );
}

// What it costs.

#[test]
fn a_guardian_sleeps() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(guarded());
    revive(&server);
    let worker = server.ask(port).pid;
    // What the supervisor has said last is dealt with.
    server.wait_until("the guardian sleeps", |server| {
        proc::status(server.pid()).is_some_and(|status| status.is_sleeping)
    });
    wait::let_pass(Duration::from_millis(300));
    let pids = [server.pid(), supervisor(&server)];
    let before = pids.map(proc::context_switches);
    wait::let_pass(Duration::from_secs(1));
    assert_eq!(pids.map(proc::context_switches), before);
    assert_eq!(server.ask(port).pid, worker);
}

/// All that it has for itself is 244 KiB then, in a release build: what was relocated at its start is most of the rest.
#[test]
fn a_guardian_has_given_back_the_memory_of_the_start() {
    const MOST: u64 = 100;
    if !is_ours() {
        return;
    }
    let (server, _) = serving(guarded().path("sock"));
    revive(&server);
    settle(&server);
    let heap = proc::heap(server.pid()).expect("it has none");
    assert!(heap <= MOST, "{heap} KiB");
}

#[test]
fn descriptors_of_a_guardian_do_not_grow() {
    if !is_ours() {
        return;
    }
    let (mut server, port) = serving(guarded().path("sock"));
    server.restart();
    let guardian = server.pid();
    let count = |server: &Server| {
        let counts = [guardian, supervisor(server)].map(|pid| proc::descriptors(pid).len());
        (counts[0], counts[1])
    };
    let before = count(&server);
    for kills in 0..4 {
        for _ in 0..12 {
            server.restart();
        }
        if kills < 2 {
            assert!(client::request(port, "exit 1").is_err());
            let died = kills + 1;
            server.wait_for_log_times(died, "died unexpectedly");
        }
        revive(&server);
    }
    server.restart();
    server.wait_until("nothing is left over", |server| {
        let now = count(server);
        now.0 <= before.0 && now.1 <= before.1
    });
    assert!(server.stop().success());
    nothing_is_left(&server);
}

// Attacks.

#[test]
fn a_worker_has_nothing_of_a_guardian() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(guarded());
    let mut reports = vec![server.ask(port)];
    server.restart();
    reports.push(server.ask(port));
    revive(&server);
    server.restart();
    reports.push(server.ask(port));
    for report in reports {
        assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3], "{report:?}");
        let environment = proc::environment(Pid::from_raw(report.pid));
        let of_ours = |name: &&String| name.starts_with("START_SERVER_");
        assert_eq!(environment.keys().find(of_ours), None);
    }
    // Nor does a supervisor that is started again find anything but what was named.
    let open = proc::descriptors(supervisor(&server));
    let programs = open.values().filter(|it| it.ends_with("/start_server"));
    assert_eq!(programs.count(), 0, "{open:?}");
}

#[test]
fn variables_of_a_guardian_from_a_launcher_are_never_followed() {
    if !is_ours() {
        return;
    }
    let resume = ("START_SERVER_RESUME", "7::");
    let of_guardian = ("START_SERVER_GUARDIAN", "9:10:9:0");
    for by_root in [false, true] {
        if by_root && !needs_root() {
            continue;
        }
        for variables in [vec![resume], vec![resume, of_guardian]] {
            let setup = guarded().port(ports::tcp());
            let setup = match by_root {
                true => setup.as_root().option("--user=nobody"),
                false => setup,
            };
            let setup =
                (variables.iter()).fold(setup, |setup, (name, value)| setup.env(name, value));
            let file = || File::open("/bin/true").expect("no /bin/true");
            let setup = (7..=10).fold(setup, |setup, fd| setup.leak_file(file(), fd));
            let finished = setup.run();
            assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
            assert_eq!(finished.log.lines().count(), 1, "{}", finished.log);
            assert!(
                finished.log.starts_with("start_server: cannot resume: "),
                "{}",
                finished.log
            );
        }
    }
    // Alone it means nothing.
    let (mut server, port) = serving(guarded().env(of_guardian.0, of_guardian.1));
    let report = server.ask(port);
    let environment = proc::environment(Pid::from_raw(report.pid));
    assert!(!environment.contains_key(of_guardian.0));
    assert!(server.stop().success());
}

#[test]
fn floods_of_signals_harm_nobody() {
    if !is_ours() {
        return;
    }
    let (mut server, port) = serving(guarded());
    let load = Load::start(port, 2);
    let quiet = [
        Signal::SIGCHLD,
        Signal::SIGXCPU,
        Signal::SIGWINCH,
        Signal::SIGUSR1,
    ];
    for _ in 0..2000 {
        for signal in quiet {
            server.signal(signal);
            // It may be dead for a moment.
            let _ = server.supervisor().map(|pid| kill(pid, signal));
        }
    }
    revive(&server);
    // One that does not listen.
    let deaf = supervisor(&server);
    proc::stop(deaf);
    let memory = |pid| proc::memory(pid).map_or(0, |memory| memory.private);
    let before = memory(server.pid());
    for _ in 0..20_000 {
        server.signal(Signal::SIGXCPU);
        server.signal(Signal::SIGUSR1);
    }
    let more = memory(server.pid()).saturating_sub(before);
    assert!(more < 2048, "{more} KiB more");
    kill(deaf, Signal::SIGKILL).expect("it is gone");
    server.wait_for_log_times(2, REVIVED);
    server.restart();
    load.wait_for_more(10);
    assert_eq!(load.stop().failures, [""; 0]);
    assert!(server.stop().success());
    nothing_is_left(&server);
}

#[test]
fn a_guardian_that_was_stopped_for_long_knows_everything_when_it_goes_on() {
    if !is_ours() {
        return;
    }
    // As many as a supervisor and its workers need, and some more.
    let (mut server, port) = serving(guarded().limit(Resource::RLIMIT_NOFILE, 150, 150));
    let load = Load::start(port, 1);
    proc::stop(server.pid());
    let last = supervisor(&server);
    for generation in 2..=60 {
        kill(last, Signal::SIGHUP).expect("it is gone");
        server.wait_for_service(generation);
        server.wait_for_generations(&[generation]);
    }
    server.signal(Signal::SIGCONT);
    revive(&server);
    assert_eq!(server.restart().generation, 61);
    load.wait_for_more(4);
    assert_eq!(load.stop().failures, [""; 0]);
    assert!(server.stop().success());
    nothing_is_left(&server);
}

#[test]
fn what_a_stopped_guardian_never_got_costs_no_request_and_no_worker() {
    if !is_ours() {
        return;
    }
    let logs: [&[&str]; 2] = [&[], &["--log-file=out", "--log-timestamps"]];
    for options in logs {
        let limited = guarded().limit(Resource::RLIMIT_NOFILE, 100, 100);
        let (mut server, port) = serving(limited.options(options));
        let out = server.folder().join("out");
        let said = |server: &Server, text: &str| {
            let out = fs::read_to_string(&out).unwrap_or_default();
            out.contains(text) || server.log().contains(text)
        };
        let load = Load::start(port, 1);
        proc::stop(server.pid());
        let last = supervisor(&server);
        for generation in 2..=25 {
            kill(last, Signal::SIGHUP).expect("it is gone");
            server.wait_for_service(generation);
            server.wait_for_generations(&[generation]);
        }
        if !options.is_empty() {
            kill(last, Signal::SIGUSR1).expect("it is gone");
            server.wait_until("the log is reopened", |server| said(server, "reopened"));
        }
        // What it has not sent dies with it.
        strike(&server);
        server.signal(Signal::SIGCONT);
        for text in ["died before the guardian had", REVIVED] {
            server.wait_until(text, |server| said(server, text));
        }
        assert_eq!(server.restart().generation, 26);
        load.wait_for_more(4);
        assert_eq!(load.stop().failures, [""; 0]);
        assert!(server.stop().success());
        nothing_is_left(&server);
    }
}

#[test]
fn a_supervisor_for_which_there_is_no_process_now_is_started_later() {
    if !is_ours() || !needs_program("prlimit") {
        return;
    }
    let (mut server, port) = serving(guarded());
    let first = server.accepted();
    let load = Load::start(port, 1);
    settle(&server);
    let limit = |most: &str| limit(&server, &format!("--nproc={most}:"));
    limit("1");
    strike(&server);
    server.wait_for_log("the guardian cannot start a supervisor yet");
    // What is asked meanwhile is done later.
    server.signal(Signal::SIGHUP);
    load.wait_for_more(100);
    assert_eq!(server.supervisor(), None);
    assert!(proc::alive(first.pid));
    limit("2000");
    server.wait_for_log(REVIVED);
    server.wait_for_service(2);
    server.wait_for_generations(&[2]);
    assert_eq!(load.stop().failures, [""; 0]);
    assert!(server.stop().success());
    nothing_is_left(&server);
}

#[test]
fn a_group_that_is_interrupted_at_a_terminal_stops_once() {
    if !is_ours() {
        return;
    }
    let (mut server, _) = serving(guarded().worker(["--graceful", "--ignore=INT"]));
    let first = server.accepted();
    nix::sys::signal::killpg(server.pid(), Signal::SIGINT).expect("it is gone");
    assert!(server.wait_exit().success());
    assert_eq!(server.caught(first), ["SIGTERM"]);
    assert_eq!(server.count_in_log("received INT"), 1);
    nothing_is_left(&server);
}
