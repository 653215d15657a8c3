//! What users of Server::Starter rely on, seen from outside: the log byte for byte, and who answers when.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use e2e::client::{self, Load};
use e2e::skip::{needs_ipv6, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Report, Server, Setup, ports, proc, programs, wait};
use nix::sys::signal::{Signal, kill};

/// The fixture behind a shell that lets these generations fail.
fn failing(setup: Setup, generations: &str) -> Setup {
    let journal = setup.folder().join("journal");
    let script = format!(
        "case $SERVER_STARTER_GENERATION in {generations}) exit 1;; esac; exec {} --graceful --journal={}",
        programs::worker().display(),
        journal.display()
    );
    setup.program(["/bin/sh", "-c", &script])
}

/// The log with names in the place of pids: `S` for start_server, `1` to `n` in brackets for its workers. Lines that
/// Server::Starter does not have are left out: they begin with the name of the program.
fn story(server: &Server) -> Vec<String> {
    let log = server.log();
    let started: Vec<&str> = log
        .lines()
        .filter_map(|line| line.strip_prefix("starting new worker "))
        .collect();
    let name = |word: &str| {
        let number = started.iter().position(|pid| *pid == word)?;
        Some(format!("[{}]", number + 1))
    };
    let rename = |line: &str| {
        let line = line.replace(&format!("(pid:{})", server.pid()), "(pid:S)");
        let words = line.split(' ').map(|word| {
            let (before, pids) = word.rsplit_once(':').map_or(("", word), |(a, b)| (a, b));
            let named: Option<Vec<String>> = pids.split(',').map(name).collect();
            match named {
                Some(named) if before.is_empty() => named.join(","),
                Some(named) => format!("{before}:{}", named.join(",")),
                None => word.to_owned(),
            }
        });
        words.collect::<Vec<_>>().join(" ")
    };
    let shared = log
        .lines()
        .filter(|line| !line.starts_with("start_server: "));
    shared.map(rename).collect()
}

#[track_caller]
fn wait_for_line(server: &Server, line: &str) {
    server.wait_until(&format!("the log says {line:?}"), |server| {
        story(server).iter().any(|one| one == line)
    });
}

/// The keys of SERVER_STARTER_PORT; their descriptor numbers do not matter as long as they stay the same.
fn keys(report: &Report) -> Vec<&str> {
    report.listeners.iter().map(|one| &*one.name).collect()
}

/// As an ordinary user, and as root who names one.
fn each_user() -> Vec<Setup> {
    let mut setups = vec![Server::setup()];
    if !original_differs("it has no --user") && needs_root() {
        setups.push(Server::setup().as_root().option("--user=nobody"));
    }
    setups
}

#[test]
fn starts_that_fail_are_tried_again_while_the_old_generation_answers() {
    for setup in each_user() {
        let port = ports::tcp();
        let setup = setup.status_file().port(port).interval("1");
        let mut server = failing(setup, "1|3|4").start();
        server.wait_until_accepted();
        server.wait_for_service(2);
        let load = Load::start(port, 2);
        load.wait_for_more(20);
        server.signal(Signal::SIGHUP);
        wait_for_line(
            &server,
            "new worker [3] seems to have failed to start, exit status:256",
        );
        assert_eq!(client::ask(port).generation, Some(2));
        wait_for_line(
            &server,
            "new worker [4] seems to have failed to start, exit status:256",
        );
        assert_eq!(client::ask(port).generation, Some(2));
        wait_for_line(&server, "old worker [2] died, status:0");
        assert_eq!(client::ask(port).generation, Some(5));
        load.wait_for_more(20);
        assert_eq!(load.stop().failures, [""; 0]);
        assert!(server.stop().success());
        assert_eq!(
            story(&server),
            [
                "start_server (pid:S) starting now...",
                "starting new worker [1]",
                "new worker [1] seems to have failed to start, exit status:256",
                "starting new worker [2]",
                "received HUP, spawning a new worker",
                "starting new worker [3]",
                "new worker [3] seems to have failed to start, exit status:256",
                "starting new worker [4]",
                "new worker [4] seems to have failed to start, exit status:256",
                "starting new worker [5]",
                "new worker is now running, sending TERM to old workers:[2]",
                "killing old workers",
                "old worker [2] died, status:0",
                "received TERM, sending TERM to all workers:[5]",
                "worker [5] died, status:0",
                "exiting",
            ]
        );
    }
}

#[test]
fn a_unix_socket_is_served_by_every_generation_and_gone_at_the_end() {
    for setup in each_user() {
        let mut server = setup
            .status_file()
            .path("socket")
            .worker(["--graceful"])
            .start();
        let path = server.folder().join("socket");
        server.wait_until_accepted();
        let first = server.ask(&path);
        assert_eq!(keys(&first), [path.display().to_string()]);
        let metadata = fs::metadata(&path).expect("no socket");
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o777);
        server.restart();
        let second = server.ask(&path);
        assert_eq!(second.generation, Some(2));
        assert_eq!(second.listeners, first.listeners);
        assert!(server.stop().success());
        assert!(!path.exists());
    }
}

#[test]
fn a_socket_that_nobody_serves_is_replaced_with_a_warning() {
    let setup = Server::setup().status_file().path("socket");
    let path = setup.folder().join("socket");
    client::leave_stale_socket(&path);
    if nix::unistd::Uid::effective().is_root() {
        let nobody = Some(e2e::server::NOBODY);
        std::os::unix::fs::chown(&path, nobody, nobody).expect("cannot give it away");
    }
    let server = setup.start();
    assert_eq!(server.ask(&path).generation, Some(1));
    // A worker can be faster with its answer than the server with the line about it.
    server.wait_for_log("starting new worker");
    let story = story(&server);
    assert_eq!(story.len(), 3, "{story:?}");
    assert_eq!(story[0], "start_server (pid:S) starting now...");
    let warning = format!("removing existing socket file:{}", path.display());
    if original_differs("the place in its source follows") {
        assert!(story[1].starts_with(&format!("{warning} at ")), "{story:?}");
    } else {
        assert_eq!(story[1], warning);
    }
    assert_eq!(story[2], "starting new worker [1]");
}

#[test]
fn the_worker_runs_in_dir_and_its_program_is_looked_up_there() {
    for setup in each_user() {
        let port = ports::tcp();
        let folder = setup.folder().join("dir");
        fs::create_dir(&folder).expect("cannot make a directory");
        programs::install(&programs::worker(), &folder);
        let server = setup
            .port(port)
            .option("--dir=dir")
            .program(["./worker"])
            .start();
        assert_eq!(server.ask(port).cwd, folder.display().to_string());
    }
}

#[test]
fn old_workers_get_their_signal_when_the_delay_is_over() {
    for (signal, status) in [("TERM", 15), ("USR1", 10)] {
        for setup in each_user() {
            let port = ports::tcp();
            let mut server = setup
                .status_file()
                .port(port)
                .option("--kill-old-delay=2")
                .option(format!("--signal-on-hup={signal}"))
                .start();
            server.wait_until_accepted();
            server.signal(Signal::SIGHUP);
            wait_for_line(&server, "sleeping 2 secs before killing old workers");
            // Both answer.
            assert_eq!(server.generations(), [1, 2]);
            wait_for_line(&server, &format!("old worker [1] died, status:{status}"));
            assert_eq!(server.ask(port).generation, Some(2));
            assert!(server.stop().success());
            assert_eq!(
                story(&server),
                [
                    "start_server (pid:S) starting now...",
                    "starting new worker [1]",
                    "received HUP, spawning a new worker",
                    "starting new worker [2]",
                    &format!("new worker is now running, sending {signal} to old workers:[1]"),
                    "sleeping 2 secs before killing old workers",
                    "killing old workers",
                    &format!("old worker [1] died, status:{status}"),
                    "received TERM, sending TERM to all workers:[2]",
                    "worker [2] died, status:15",
                    "exiting",
                ]
            );
        }
    }
}

#[test]
fn automatic_restarts_come_after_the_interval() {
    let port = ports::tcp();
    let server = Server::setup()
        .status_file()
        .port(port)
        .options([
            "--enable-auto-restart",
            "--auto-restart-interval=2",
            "--kill-old-delay=0",
        ])
        .start();
    wait_for_line(&server, "old worker [1] died, status:15");
    server.wait_until("the second is alone", |server| server.generations() == [2]);
    assert_eq!(
        story(&server)[..7],
        [
            "start_server (pid:S) starting now...",
            "starting new worker [1]",
            "autorestart triggered (interval=2)",
            "starting new worker [2]",
            "new worker is now running, sending TERM to old workers:[1]",
            "killing old workers",
            "old worker [1] died, status:15",
        ]
    );
}

#[test]
fn automatic_restarts_are_forced_after_twice_the_interval_when_an_old_worker_lingers() {
    let port = ports::tcp();
    let server = Server::setup()
        .status_file()
        .port(port)
        .options([
            "--enable-auto-restart",
            "--auto-restart-interval=2",
            "--kill-old-delay=0",
        ])
        .worker(["--graceful"])
        .start();
    server.wait_until_accepted();
    let first = server.wait_for_service(1);
    let held = client::hold(port);
    server.wait_for_drain(first);
    wait_for_line(&server, "autorestart triggered (forced, interval=2)");
    wait_for_line(&server, "starting new worker [3]");
    assert!(proc::alive(first.pid));
    assert_eq!(held.finish().pid, first.pid.as_raw());
    assert_eq!(
        story(&server)[..8],
        [
            "start_server (pid:S) starting now...",
            "starting new worker [1]",
            "autorestart triggered (interval=2)",
            "starting new worker [2]",
            "new worker is now running, sending TERM to old workers:[1]",
            "killing old workers",
            "autorestart triggered (forced, interval=2)",
            "starting new worker [3]",
        ]
    );
}

#[test]
fn envdir_is_read_anew_for_each_generation() {
    for setup in each_user() {
        let port = ports::tcp();
        let directory = setup.folder().join("env");
        fs::create_dir(&directory).expect("cannot make a directory");
        let put = |name: &str, value: &str| {
            fs::write(directory.join(name), format!("{value}\n")).expect("cannot write a file");
        };
        put("CHANGED", "before");
        put("REMOVED", "there");
        let server = setup
            .status_file()
            .port(port)
            .option(format!("--envdir={}", directory.display()))
            .start();
        server.wait_until_accepted();
        let first = server.ask(port).environment;
        assert_eq!(
            (&*first["CHANGED"], &*first["REMOVED"]),
            ("before", "there")
        );
        put("CHANGED", "after");
        put("ADDED", "new");
        fs::remove_file(directory.join("REMOVED")).expect("cannot remove a file");
        server.restart();
        let second = server.ask(port).environment;
        assert_eq!((&*second["CHANGED"], &*second["ADDED"]), ("after", "new"));
        if !original_differs("what is removed stays at its first value") {
            assert_eq!(second.get("REMOVED"), None);
        }
    }
}

#[test]
fn ipv4_and_ipv6_are_bound_apart_from_each_other() {
    if !needs_ipv6() {
        return;
    }
    for setup in each_user() {
        let port = ports::tcp();
        let server = setup
            .option(format!("--port=127.0.0.1:{port}"))
            .option(format!("--port=[::]:{port}"))
            .start();
        let report = server.ask(port);
        assert_eq!(
            keys(&report),
            [format!("127.0.0.1:{port}"), format!("[::]:{port}")]
        );
        assert_eq!(report.socket(&format!("[::]:{port}")).v6_only, Some(true));
        assert_eq!(server.ask(client::tcp6(port)).pid, report.pid);
    }
}

#[test]
fn a_port_as_descriptor_0_is_said_in_the_log_and_is_there_in_every_generation() {
    let port = ports::tcp();
    let server = Server::setup()
        .status_file()
        .option(format!("--port=127.0.0.1:{port}=0"))
        .start();
    server.wait_until_accepted();
    for generation in 1..=2 {
        let report = server.ask(port);
        assert_eq!(report.generation, Some(generation));
        let name = format!("127.0.0.1:{port}");
        assert_eq!(
            report.environment["SERVER_STARTER_PORT"],
            format!("{name}=0")
        );
        assert!(report.socket(&name).listening);
        server.restart();
    }
    assert_eq!(
        story(&server)[..3],
        [
            "start_server (pid:S) starting now...",
            "socket is duplicated to file descriptor 0",
            "starting new worker [1]",
        ]
    );
}

#[test]
fn without_any_port_workers_are_started_and_replaced_all_the_same() {
    for setup in each_user() {
        let mut server = setup.status_file().worker(["--graceful"]).start();
        server.wait_until_accepted();
        server.wait_for_service(1);
        let second = server.restart();
        server.wait_for_service(2);
        let environment = proc::environment(second.pid);
        assert_eq!(environment["SERVER_STARTER_PORT"], "");
        assert_eq!(environment["SERVER_STARTER_GENERATION"], "2");
        assert!(server.stop().success());
    }
}

#[test]
fn udp_ports_are_asked_for_with_a_u_before_the_number() {
    for setup in each_user() {
        let (alone, with_host) = (ports::udp(), ports::udp());
        let server = setup
            .status_file()
            .option(format!("--port=u{alone}"))
            .option(format!("--port=127.0.0.1:u{with_host}"))
            .start();
        server.wait_until_accepted();
        server.wait_for_service(1);
        for generation in 1..=2 {
            let report = server.ask(client::udp(alone));
            assert_eq!(report.generation, Some(generation));
            assert_eq!(
                keys(&report),
                [alone.to_string(), format!("127.0.0.1:{with_host}")]
            );
            for name in [alone.to_string(), format!("127.0.0.1:{with_host}")] {
                assert_eq!(report.socket(&name).kind, "datagram");
            }
            assert_eq!(server.ask(client::udp(with_host)).pid, report.pid);
            server.restart();
            server.wait_for_service(generation + 1);
        }
    }
}

#[test]
fn a_daemon_keeps_its_unix_socket_until_it_is_stopped() {
    for setup in each_user() {
        let mut server = setup
            .options(["--daemonize", "--log-file=daemon.log"])
            .pid_file()
            .status_file()
            .path("socket")
            .worker(["--graceful"])
            .start();
        assert!(server.wait_exit().success());
        server.wait_until_accepted();
        let path = server.folder().join("socket");
        let report = server.ask(&path);
        let daemon = server.wait_for("the pid file has a line", Server::pid_file);
        assert_eq!(report.ppid, daemon.as_raw());
        kill(daemon, Signal::SIGHUP).expect("cannot signal the daemon");
        server.wait_until("the second generation is alone", |server| {
            server.generations() == [2]
        });
        assert_eq!(server.ask(&path).generation, Some(2));
        let status = server
            .client(["--stop", "--pid-file=pid"])
            .status_in_turn()
            .expect("cannot run the client");
        assert!(status.success());
        wait::until(
            "the daemon is gone",
            || server.log(),
            || (!proc::alive(daemon)).then_some(()),
        );
        for left in ["pid", "status", "socket"] {
            assert!(
                !server.folder().join(left).exists(),
                "{left} is left behind"
            );
        }
        let log = fs::read_to_string(server.folder().join("daemon.log")).expect("no log");
        assert_eq!(log.lines().last(), Some("exiting"));
    }
}
