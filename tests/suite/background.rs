//! Server programs that put themselves into the background.

use std::fs;

use e2e::server::Setup;
use e2e::skip::original_differs;
use e2e::start::InTurn;
use e2e::{Server, ports, proc, wait};
use nix::unistd::Pid;

use crate::privileges::can_drop;

const HINT: &str = "hint: a server must stay in the foreground: nginx with `daemon off;`, others without -D, --daemon or --daemonize";

/// Whether this is our start_server, which knows what to do about such programs.
fn is_ours() -> bool {
    !original_differs("it starts daemons for ever and leaves all of them behind")
}

/// Started by an ordinary user, and by root with `--user` where that is possible.
fn setups() -> Vec<Setup> {
    let by_root = can_drop().then(|| Server::setup().as_root().option("--user=nobody"));
    [Server::setup()].into_iter().chain(by_root).collect()
}

/// The living processes of this generation: those that its workers have become, or have started.
fn of_generation(server: &Server, generation: u32) -> Vec<Pid> {
    let mut pids = server.marked();
    pids.retain(|pid| {
        let environment = proc::environment(*pid);
        let its = environment.get("SERVER_STARTER_GENERATION");
        its.and_then(|number| number.parse().ok()) == Some(generation)
    });
    pids
}

#[track_caller]
fn wait_until_gone(server: &Server, generation: u32) {
    let condition = format!("nothing of generation {generation} is left");
    wait::until(
        &condition,
        || server.log(),
        || of_generation(server, generation).is_empty().then_some(()),
    );
}

#[test]
fn a_first_start_is_given_up_after_three_exits_with_success_and_leaves_nothing_behind() {
    if !is_ours() {
        return;
    }
    for setup in setups() {
        let finished = setup
            .port(ports::tcp())
            .interval("0.3")
            // Forked twice, as traditional daemons are.
            .program([
                "sh",
                "-c",
                "(setsid sleep 1000 & setsid sh -c 'sleep 1001 & sleep 1002' &); exit 0",
            ])
            .run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        let count = |text: &str| {
            finished
                .log
                .lines()
                .filter(|line| line.contains(text))
                .count()
        };
        let failed = "seems to have failed to start, exit status:0";
        assert_eq!((count(failed), count(HINT)), (3, 3), "{}", finished.log);
        let end = "start_server: giving up after 3 failed starts, no worker is left to serve";
        assert_eq!(finished.log.lines().last(), Some(end));
        for generation in 1..=3 {
            wait_until_gone(&finished.server, generation);
        }
    }
}

#[test]
fn a_smaller_start_limit_ends_it_earlier_and_a_greater_one_does_not_prolong_it() {
    if !is_ours() {
        return;
    }
    for (limit, tries) in [(1, 1), (9, 3)] {
        let finished = Server::setup()
            .option(format!("--start-limit={limit}"))
            .interval("0")
            .program(["true"])
            .run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        let started = finished.log.matches("starting new worker").count();
        assert_eq!(started, tries, "{}", finished.log);
    }
}

#[test]
fn the_launcher_of_a_daemon_hears_that_the_server_left_the_foreground() {
    if !is_ours() {
        return;
    }
    for setup in setups() {
        let finished = setup
            .options(["--daemonize", "--log-file=daemon.log"])
            .interval("1")
            .program(["sh", "-c", "(setsid sleep 1000 &); exit 0"])
            .run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        assert_eq!(finished.log.lines().last(), Some(HINT), "{}", finished.log);
        wait_until_gone(&finished.server, 1);
    }
}

/// If the start of the next generation fails, what the serving generation has left behind on purpose lives on, and so
/// does whatever its living worker has started.
#[test]
fn a_failed_restart_ends_what_it_has_left_behind_and_nothing_else() {
    if !is_ours() {
        return;
    }
    for setup in setups() {
        let script = "test ! -e broken || { (setsid sleep 1000 &); exit 0; }
            (setsid sleep 1001 &); sleep 1002 & exec sleep 1003";
        let server = setup
            .port(ports::tcp())
            .pid_file()
            .status_file()
            .interval("0.5")
            .program(["sh", "-c", script])
            .start();
        server.wait_until_accepted();
        let before = server.wait_for("generation 1 has three processes", |server| {
            let pids = of_generation(server, 1);
            (pids.len() == 3).then_some(pids)
        });
        fs::write(server.folder().join("broken"), "").expect("cannot break it");
        let restart = server
            .client(["--restart", "--pid-file=pid"])
            .output_in_turn()
            .expect("cannot run a client");
        let said = String::from_utf8_lossy(&restart.stderr);
        assert_eq!(restart.status.code(), Some(1), "{said}");
        assert!(said.lines().any(|line| line.starts_with(HINT)), "{said}");
        wait_until_gone(&server, 2);
        let ended = server.wait_for_log("has left processes behind, sending TERM to them:");
        let pids = ended.rsplit(':').next().unwrap_or_default();
        assert!(
            before.iter().all(|pid| !pids.contains(&pid.to_string())),
            "{ended}"
        );
        assert_eq!(of_generation(&server, 1), before);
    }
}

/// Each puts itself into the background, one of them only when it is told to stop.
#[test]
fn whatever_worker_of_several_exits_with_success_leaves_nothing_behind() {
    if !is_ours() {
        return;
    }
    for options in [&["--workers=3"][..], &["--workers=3", "--rolling=2"]] {
        // Forked twice, as traditional daemons are.
        let script = "test -e broken || exec sleep 1000
            leave() { (setsid sleep 1001 &); exit 0; }
            trap leave TERM
            (setsid sleep 1002 &)
            [ $SERVER_STARTER_WORKER != 0 ] || { until [ -e leave ]; do sleep 0.01; done; leave; }
            while :; do sleep 0.01; done";
        let setup = Server::setup().port(ports::tcp()).pid_file().status_file();
        let setup = setup.options(options);
        let setup = setup.option("--ready=exec:test ! -e broken");
        let server = setup.program(["sh", "-c", script]).start();
        server.wait_until_accepted();
        server.wait_until("all workers have looked whether it is broken", |server| {
            let sleeps = |pid: &Pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
            };
            of_generation(server, 1)
                .iter()
                .filter(|pid| sleeps(pid))
                .count()
                == 3
        });
        fs::write(server.folder().join("broken"), "").expect("cannot break it");
        let mut restart = server.client(["--restart", "--pid-file=pid"]);
        let client = std::thread::spawn(move || restart.output_in_turn());
        server.wait_until("workers have started what they leave", |server| {
            let pids = of_generation(server, 2).into_iter();
            let left = pids.filter(|pid| proc::session(*pid) == Some(*pid));
            left.count() >= 2
        });
        fs::write(server.folder().join("leave"), "").expect("cannot let it leave");
        let said = client
            .join()
            .expect("it panicked")
            .expect("cannot run a client");
        assert_eq!(said.status.code(), Some(1), "{said:?}");
        wait_until_gone(&server, 2);
        assert_eq!(of_generation(&server, 1).len(), 3, "{}", server.log());
    }
}
