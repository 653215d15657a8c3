//! What a restart means: the next generation comes up first, and only then the old one goes.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use e2e::client::{self, Load};
use e2e::skip::original_differs;
use e2e::{Server, Setup, Worker, ports, proc, programs};
use nix::sys::signal::{Signal, kill};

/// A server whose workers fail to start while the file `broken` exists in its folder.
fn breakable(setup: Setup) -> Setup {
    let broken = setup.folder().join("broken");
    setup.worker([
        "--graceful".to_owned(),
        format!("--exit-if-exists={}", broken.display()),
    ])
}

fn break_it(server: &Server) {
    fs::write(server.folder().join("broken"), "").expect("cannot break it");
}

fn mend_it(server: &Server) {
    fs::remove_file(server.folder().join("broken")).expect("cannot mend it");
}

/// The first generation, when it serves and the server has accepted it.
fn first_generation(server: &Server) -> Worker {
    server.wait_until_accepted();
    server.wait_for_service(1)
}

#[test]
fn the_old_generation_is_stopped_only_after_the_new_one_came_up() {
    let server = Server::setup().status_file().worker(["--graceful"]).start();
    let old = first_generation(&server);
    let new = server.restart();
    let pid = server.pid();
    server.wait_for_log("died, status:0");
    let log = server.log();
    // Without those that Server::Starter does not have.
    let shared = log
        .lines()
        .filter(|line| !line.starts_with("start_server: "));
    assert_eq!(
        shared.collect::<Vec<_>>(),
        [
            format!("start_server (pid:{pid}) starting now..."),
            format!("starting new worker {}", old.pid),
            "received HUP, spawning a new worker".to_owned(),
            format!("starting new worker {}", new.pid),
            format!(
                "new worker is now running, sending TERM to old workers:{}",
                old.pid
            ),
            "killing old workers".to_owned(),
            format!("old worker {} died, status:0", old.pid),
        ]
    );
    let journal: Vec<String> = server.journal().iter().map(ToString::to_string).collect();
    assert_eq!(
        journal,
        [
            format!("1 {} started", old.pid),
            format!("1 {} serves", old.pid),
            format!("2 {} started", new.pid),
            format!("2 {} serves", new.pid),
            format!("1 {} SIGTERM", old.pid),
            format!("1 {} drains", old.pid),
        ]
    );
}

#[test]
fn no_connection_fails_during_restarts() {
    let port = ports::tcp();
    let server = Server::setup()
        .status_file()
        .port(port)
        .worker(["--graceful"])
        .start();
    first_generation(&server);
    let load = Load::start(port, 4);
    for _ in 0..3 {
        load.wait_for_more(50);
        server.restart();
    }
    load.wait_for_more(50);
    let outcome = load.stop();
    assert_eq!(outcome.failures, [""; 0]);
}

#[test]
fn connections_are_served_by_the_new_generation_after_a_restart() {
    let port = ports::tcp();
    let server = Server::setup()
        .status_file()
        .port(port)
        .worker(["--graceful"])
        .start();
    first_generation(&server);
    assert_eq!(server.ask(port).generation, Some(1));
    server.restart();
    assert_eq!(server.ask(port).generation, Some(2));
}

#[test]
fn a_generation_that_fails_to_start_leaves_the_old_one_serving() {
    let port = ports::tcp();
    let server = breakable(Server::setup().status_file().port(port).interval("1")).start();
    let old = first_generation(&server);
    break_it(&server);
    server.signal(Signal::SIGHUP);
    let failed = server.wait_for_start(2);
    server.wait_for_log(&format!(
        "new worker {} seems to have failed to start, exit status:256",
        failed.pid
    ));
    assert_eq!(server.ask(port).pid, old.pid.as_raw());
    assert!(server.caught(old).is_empty());

    // It is tried again until it comes up, with a number of its own each time.
    mend_it(&server);
    server.wait_until(
        "a later generation serves alone",
        |server| matches!(server.generations()[..], [generation] if generation > 2),
    );
    assert_eq!(server.caught(old), ["SIGTERM"]);
}

#[test]
fn restarts_asked_for_during_a_start_become_one_more() {
    if original_differs("HUP cuts the start short, and each becomes a restart of its own") {
        return;
    }
    let mut server = Server::setup()
        .status_file()
        .interval("1")
        .worker(["--graceful"])
        .start();
    first_generation(&server);
    server.signal(Signal::SIGHUP);
    server.wait_for_start(2);
    for _ in 0..3 {
        server.signal(Signal::SIGHUP);
        // One by one, because pending signals of the same number are one signal anyway.
        server.wait_until("the signal was taken", |server| {
            proc::status(server.pid()).is_some_and(|status| status.pending == 0)
        });
    }
    server.wait_for_generations(&[3]);
    assert!(server.stop().success());
    assert_eq!(server.started().len(), 3, "{:?}", server.started());
}

#[test]
fn a_worker_that_dies_while_serving_is_replaced() {
    let port = ports::tcp();
    let server = Server::setup()
        .status_file()
        .port(port)
        .worker(["--graceful"])
        .start();
    let worker = first_generation(&server);
    kill(worker.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_log(&format!(
        "worker {} died unexpectedly with status:9, restarting",
        worker.pid
    ));
    server.wait_for_generations(&[2]);
    assert_eq!(server.ask(port).generation, Some(2));
}

#[test]
fn the_log_shows_how_a_worker_exited_as_a_wait_status() {
    let port = ports::tcp();
    let server = Server::setup().status_file().port(port).start();
    let worker = first_generation(&server);
    assert!(client::request(port, "exit 3").is_err());
    server.wait_for_log(&format!(
        "worker {} died unexpectedly with status:768, restarting",
        worker.pid
    ));
}

#[test]
fn term_during_the_first_start_ends_at_once() {
    let mut server = Server::setup().interval("1000").start();
    let worker = server.wait_for_start(1);
    assert!(server.stop().success());
    let log = server.log();
    let shared = log
        .lines()
        .filter(|line| !line.starts_with("start_server: "));
    let last: Vec<&str> = shared.skip(2).collect();
    assert_eq!(
        last,
        [
            format!("received TERM, sending TERM to all workers:{}", worker.pid),
            format!("worker {} died, status:15", worker.pid),
            "exiting".to_owned(),
        ]
    );
}

#[test]
fn term_while_starts_keep_failing_ends_at_once() {
    let mut server = Server::setup()
        .interval("1000")
        .worker(["--exit=1"])
        .start();
    if original_differs("it waits for the whole interval") {
        return;
    }
    server.wait_for_log("seems to have failed to start");
    assert!(server.stop().success());
    assert_eq!(server.started().len(), 1);
}

#[test]
fn term_during_the_start_of_a_new_generation_ends_both() {
    if original_differs("the log says that the new worker is running") {
        return;
    }
    let mut server = Server::setup()
        .status_file()
        .interval("2")
        .worker(["--graceful"])
        .start();
    first_generation(&server);
    server.signal(Signal::SIGHUP);
    server.wait_for_service(2);
    assert!(server.stop().success());
    assert_eq!(
        server.count_in_log("new worker is now running"),
        0,
        "{}",
        server.log()
    );
    assert_eq!(
        server.count_in_log("received TERM, sending TERM to all workers:"),
        1
    );
    assert_eq!(server.count_in_log("died, status:0"), 2);
}

#[test]
fn a_new_generation_that_dies_before_the_old_one_is_stopped_gives_way_to_it() {
    if original_differs("it stops the old one nevertheless") {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup()
        .status_file()
        .port(port)
        .interval("1")
        .option("--kill-old-delay=2");
    let server = breakable(setup).start();
    let old = first_generation(&server);
    server.signal(Signal::SIGHUP);
    let new = server.wait_for_service(2);
    server.wait_for_log("sleeping 2 secs before killing old workers");
    break_it(&server);
    kill(new.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_until("the new worker is gone", |_| !proc::alive(new.pid));
    // The third failure comes more than two seconds after the first try: the delay is over then.
    server.signal(Signal::SIGHUP);
    server.wait_for_log_times(3, "seems to have failed to start");
    assert!(
        server.caught(old).is_empty(),
        "the old worker was signalled"
    );
    assert_eq!(server.ask(port).pid, old.pid.as_raw());
}

#[test]
fn term_during_the_delay_before_the_old_ones_are_stopped_ends_at_once() {
    if original_differs("it sleeps through signals") {
        return;
    }
    let mut server = Server::setup()
        .status_file()
        .option("--kill-old-delay=1000")
        .worker(["--graceful"])
        .start();
    first_generation(&server);
    server.signal(Signal::SIGHUP);
    server.wait_for_log("sleeping 1000 secs before killing old workers");
    assert!(server.stop().success());
    assert_eq!(server.count_in_log("killing old workers\n"), 0);
}

#[test]
fn a_worker_that_still_drains_is_not_signalled_again() {
    if original_differs("it signals every old worker at each restart") {
        return;
    }
    let port = ports::tcp();
    let mut server = Server::setup()
        .status_file()
        .port(port)
        .worker(["--graceful"])
        .start();
    let first = first_generation(&server);
    let held = client::hold(port);
    server.signal(Signal::SIGHUP);
    server.wait_for_drain(first);
    server.signal(Signal::SIGHUP);
    server.wait_for_generations(&[1, 3]);
    assert_eq!(held.finish().pid, first.pid.as_raw());
    server.wait_for_generations(&[3]);
    assert_eq!(server.caught(first), ["SIGTERM"]);
    assert!(server.stop().success());
}

#[test]
fn a_connection_that_the_old_generation_holds_is_finished() {
    let port = ports::tcp();
    let server = Server::setup()
        .status_file()
        .port(port)
        .worker(["--graceful"])
        .start();
    let old = first_generation(&server);
    let held = client::hold(port);
    server.signal(Signal::SIGHUP);
    server.wait_for_drain(old);
    assert_eq!(server.ask(port).generation, Some(2));
    assert_eq!(held.finish().generation, Some(1));
    server.wait_for_generations(&[2]);
}

#[test]
fn signal_on_hup_is_what_old_workers_get() {
    for name in ["USR1", "SIGUSR1", "usr1", "sigusr1"] {
        let option = format!("--signal-on-hup={name}");
        let mut server = Server::setup()
            .status_file()
            .option(option)
            .worker(["--catch=USR1"])
            .start();
        let old = first_generation(&server);
        server.signal(Signal::SIGHUP);
        server.wait_for_log(&format!(
            "new worker is now running, sending USR1 to old workers:{}",
            old.pid
        ));
        server.wait_until("the old worker caught it", |server| {
            server.caught(old) == ["SIGUSR1"]
        });
        assert!(server.stop().success());
    }
}

#[test]
fn signal_on_term_is_what_workers_get_at_term() {
    let mut server = Server::setup()
        .status_file()
        .option("--signal-on-term=usr2")
        .start();
    let worker = first_generation(&server);
    assert!(server.stop().success());
    assert_eq!(
        server.count_in_log(&format!(
            "received TERM, sending USR2 to all workers:{}",
            worker.pid
        )),
        1
    );
    assert_eq!(
        server.count_in_log(&format!("worker {} died, status:12", worker.pid)),
        1
    );
}

#[test]
fn workers_get_term_at_int_whatever_signal_on_term_says() {
    let mut server = Server::setup()
        .status_file()
        .option("--signal-on-term=USR2")
        .start();
    let worker = first_generation(&server);
    server.signal(Signal::SIGINT);
    assert!(server.wait_exit().success());
    assert_eq!(
        server.count_in_log(&format!(
            "received INT, sending TERM to all workers:{}",
            worker.pid
        )),
        1
    );
}

#[test]
fn quit_ends_like_int() {
    if original_differs("QUIT kills it, and the worker lives on") {
        return;
    }
    let mut server = Server::setup()
        .status_file()
        .option("--signal-on-term=USR2")
        .start();
    let worker = first_generation(&server);
    server.signal(Signal::SIGQUIT);
    assert!(server.wait_exit().success());
    assert_eq!(
        server.count_in_log(&format!(
            "received QUIT, sending TERM to all workers:{}",
            worker.pid
        )),
        1
    );
    assert!(!proc::alive(worker.pid));
}

#[test]
fn the_server_stays_until_its_last_worker_has_drained() {
    let port = ports::tcp();
    let mut server = Server::setup()
        .status_file()
        .port(port)
        .worker(["--graceful"])
        .start();
    let worker = first_generation(&server);
    let held = client::hold(port);
    server.signal(Signal::SIGTERM);
    server.wait_for_drain(worker);
    assert!(proc::alive(server.pid()));
    assert_eq!(held.finish().generation, Some(1));
    assert!(server.wait_exit().success());
}

#[test]
fn stop_timeout_kills_workers_that_ignore_term() {
    if original_differs("it has no --stop-timeout") {
        return;
    }
    let mut server = Server::setup()
        .status_file()
        .option("--stop-timeout=0.2")
        .worker(["--ignore=TERM"])
        .start();
    let worker = first_generation(&server);
    assert!(server.stop().success());
    assert_eq!(
        server.count_in_log(&format!("worker {} died, status:9", worker.pid)),
        1,
        "{}",
        server.log()
    );
}

#[test]
fn stop_timeout_kills_workers_that_are_stopped() {
    if original_differs("it has no --stop-timeout") {
        return;
    }
    let mut server = Server::setup()
        .status_file()
        .option("--stop-timeout=0.2")
        .start();
    let worker = first_generation(&server);
    proc::stop(worker.pid);
    assert!(server.stop().success());
    assert!(!proc::alive(worker.pid));
}

#[test]
fn start_limit_ends_a_server_whose_first_generation_never_comes_up() {
    if original_differs("it has no --start-limit") {
        return;
    }
    let mut server = Server::setup()
        .option("--start-limit=2")
        .interval("0.5")
        .worker(["--exit=3"])
        .start();
    assert_eq!(server.wait_exit().code(), Some(1));
    assert_eq!(server.started().len(), 2);
    assert_eq!(
        server.count_in_log("seems to have failed to start, exit status:768"),
        2
    );
}

#[test]
fn start_limit_gives_up_a_restart_and_the_old_generation_serves_on() {
    if original_differs("it has no --start-limit") {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup()
        .pid_file()
        .status_file()
        .port(port)
        .interval("0.5")
        .option("--start-limit=2");
    let server = breakable(setup).start();
    let old = first_generation(&server);
    break_it(&server);
    server.signal(Signal::SIGHUP);
    let serving = old.pid;
    server.wait_for_log(&format!(
        "giving up the restart after 2 failed starts, still serving:{serving}"
    ));
    assert_eq!(server.started().len(), 3);
    assert_eq!(server.ask(port).pid, old.pid.as_raw());
    assert!(server.caught(old).is_empty());
    mend_it(&server);
    server.signal(Signal::SIGHUP);
    server.wait_for_generations(&[4]);
}

#[test]
fn a_program_that_cannot_be_executed_is_fatal_at_the_first_start() {
    if original_differs("it tries for ever") {
        return;
    }
    let finished = Server::setup()
        .interval("1000")
        .program(["/nonexistent/program"])
        .run();
    assert_eq!(finished.status.code(), Some(1));
    let reason = "/nonexistent/program: No such file or directory";
    assert!(
        finished
            .log
            .lines()
            .any(|line| line.starts_with("start_server: cannot ") && line.ends_with(reason)),
        "{}",
        finished.log
    );
}

#[test]
fn a_program_that_cannot_be_executed_at_a_restart_is_a_failed_start() {
    let port = ports::tcp();
    let setup = Server::setup()
        .pid_file()
        .status_file()
        .port(port)
        .interval("1");
    let folder = setup.folder().to_owned();
    let program = programs::install(&programs::worker(), &folder);
    let moved = folder.join("moved");
    let journal = folder.join("journal");
    let journal = format!("--journal={}", journal.display());
    let server = setup
        .program([
            program.clone().into_os_string(),
            journal.into(),
            "--graceful".into(),
        ])
        .start();
    let old = first_generation(&server);
    fs::rename(&program, &moved).expect("cannot move the program away");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("No such file or directory");
    server.wait_for_log("failed to start");
    assert_eq!(server.ask(port).pid, old.pid.as_raw());
    if !original_differs("the failed child removes the pid file and the status file") {
        assert_eq!(server.pid_file(), Some(server.pid()));
        assert_eq!(
            server.status_file().as_deref(),
            Some(&*format!("1:{}\n", old.pid))
        );
    }
    fs::rename(&moved, &program).expect("cannot move the program back");
    server.wait_until(
        "a later generation serves alone",
        |server| matches!(server.generations()[..], [generation] if generation > 1),
    );
}

#[test]
fn without_an_interval_a_worker_still_has_to_prove_that_it_lives() {
    if original_differs("every worker counts as started at once") {
        return;
    }
    let port = ports::tcp();
    let server = breakable(Server::setup().status_file().port(port).interval("0")).start();
    let old = first_generation(&server);
    break_it(&server);
    server.signal(Signal::SIGHUP);
    server.wait_for_log("seems to have failed to start");
    assert_eq!(server.ask(port).pid, old.pid.as_raw());
    assert!(server.caught(old).is_empty());
}

#[test]
fn signals_that_arrive_together_are_all_acted_on() {
    if original_differs("a TERM that reaches a worker between fork and exec is swallowed") {
        return;
    }
    for _ in 0..5 {
        let mut server = Server::setup().status_file().interval("0").start();
        first_generation(&server);
        for signal in [
            Signal::SIGSTOP,
            Signal::SIGHUP,
            Signal::SIGTERM,
            Signal::SIGCONT,
        ] {
            server.signal(signal);
        }
        let status = server.wait_exit();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
        let left: Vec<Worker> = server
            .started()
            .into_iter()
            .filter(|worker| proc::alive(worker.pid))
            .collect();
        assert_eq!(left, []);
    }
}
