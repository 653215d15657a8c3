//! What the service manager that has launched start_server is told: sd_notify(3), with a manager of the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use e2e::manager::{Manager, Message};
use e2e::skip::original_differs;
use e2e::start::InTurn;
use e2e::{Server, Setup, client, ports, proc, wait};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::privileges::can_drop;

fn is_ours() -> bool {
    !original_differs("it tells no service manager")
}

/// A setup with a manager in its folder.
fn managed(setup: Setup) -> (Setup, Manager) {
    let manager = Manager::at(&setup.folder().join("manager"));
    let setup = setup.env("NOTIFY_SOCKET", manager.place());
    (setup.pid_file().status_file(), manager)
}

/// A server whose first generation serves, and a manager that has forgotten how that came about.
fn serving(setup: Setup) -> (Server, Manager, u16) {
    let port = ports::tcp();
    let (setup, manager) = managed(setup.port(port).interval("0.1"));
    let server = setup.start();
    manager.wait_for_assignment("READY", "1");
    manager.forget();
    (server, manager, port)
}

/// `READY`, `RELOADING` and `STOPPING`, in the order in which they came.
fn lifecycle(messages: &[Message]) -> Vec<&str> {
    let assignments = messages.iter().flat_map(|message| &message.assignments);
    let is_one = |name: &&str| ["READY", "RELOADING", "STOPPING"].contains(name);
    assignments
        .filter(|(_, value)| value == "1")
        .map(|(name, _)| name.as_str())
        .filter(is_one)
        .collect()
}

#[track_caller]
fn wait_for_lifecycle(manager: &Manager, expected: &[&str]) {
    manager.wait_for(&format!("{expected:?}"), |messages| {
        (lifecycle(messages) == expected).then_some(())
    });
}

/// It waits, and does not try again and again.
#[track_caller]
fn assert_idles(server: &Server) {
    let before = proc::computed(server.pid());
    wait::let_pass(Duration::from_secs(1));
    let computed = proc::computed(server.pid()) - before;
    assert!(computed <= 5, "{computed} hundredths of a second");
}

fn microseconds() -> i128 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("there is such a clock");
    i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1000
}

#[test]
fn a_start_is_ready_when_the_first_generation_serves() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let (setup, manager) = managed(Server::setup().port(port));
    let server = setup
        .options(["--ready=exec:test -e good", "--start-timeout=300"])
        .start();
    let status = "starting: generation 1, waiting for its --ready command to succeed";
    let first = manager.wait_for_assignment("STATUS", status);
    assert_eq!(first.from, server.pid());
    // It needs more time than the manager gives by default, and has a bound of its own.
    let more: u64 = first.get("EXTEND_TIMEOUT_USEC").unwrap().parse().unwrap();
    assert!((300_000_000..=310_000_000).contains(&more), "{more}");
    assert_eq!(client::ask(port).generation, Some(1));
    assert_eq!(lifecycle(&manager.messages()), [""; 0]);

    // systemd looks for that before it accepts a service that it is to reload by a signal.
    let caught = proc::status(server.pid()).unwrap().caught;
    assert_eq!(proc::signals(caught), [Signal::SIGHUP]);

    fs::write(server.folder().join("good"), "").unwrap();
    let ready = manager.wait_for_assignment("READY", "1");
    assert_eq!(ready.get("STATUS"), Some("serving: generation 1, 1 worker"));
    let messages = manager.messages();
    assert!(messages.iter().all(|one| one.from == server.pid()));
    assert!(messages.iter().all(|one| one.get("MAINPID").is_none()));
}

#[test]
fn every_restart_is_told_however_it_was_asked_for() {
    if !is_ours() {
        return;
    }
    let (server, manager, _) = serving(Server::setup());
    let before = microseconds();
    server.signal(Signal::SIGHUP);
    let begun = manager.wait_for_assignment("RELOADING", "1");
    let at: i128 = begun.get("MONOTONIC_USEC").unwrap().parse().unwrap();
    assert!(before <= at && at <= microseconds(), "{before} {at}");
    let status = begun.get("STATUS").unwrap();
    assert!(
        status.starts_with("restarting: generation 2 of 1"),
        "{status}"
    );
    manager.wait_for_assignment("STATUS", "serving: generation 2, 1 worker");
    assert_eq!(lifecycle(&manager.forget()), ["RELOADING", "READY"]);

    let restarted = server
        .client(["--restart", "--pid-file=pid"])
        .env("NOTIFY_SOCKET", manager.place())
        .output_in_turn()
        .unwrap();
    assert!(restarted.status.success());
    wait_for_lifecycle(&manager, &["RELOADING", "READY"]);
    // The command itself tells it nothing.
    let messages = manager.forget();
    assert!(messages.iter().all(|one| one.from == server.pid()));
    assert!(
        messages
            .iter()
            .all(|one| !(one.says("READY") && one.says("RELOADING")))
    );
}

#[test]
fn a_restart_by_the_clock_is_told_too() {
    if !is_ours() {
        return;
    }
    let (_server, manager, _) =
        serving(Server::setup().options(["--enable-auto-restart", "--auto-restart-interval=0.5"]));
    manager.wait_for("a restart by the clock is over", |messages| {
        lifecycle(messages)
            .starts_with(&["RELOADING", "READY"])
            .then_some(())
    });
}

#[test]
fn a_restart_that_fails_is_over_as_well_and_the_status_says_how() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup()
        .worker(["--exit-if-exists=broken"])
        .option("--start-limit=1");
    let (server, manager, port) = serving(setup);
    fs::write(server.folder().join("broken"), "").unwrap();
    server.signal(Signal::SIGHUP);
    wait_for_lifecycle(&manager, &["RELOADING", "READY"]);
    let failed = "restart of generation 2 failed: exit status 1; generation 1 serves";
    let over = manager.wait_for_assignment("STATUS", failed);
    assert!(over.says("READY"), "{over:?}");
    assert_eq!(server.ask(port).generation, Some(1));

    // One that ends within a moment is told as well.
    manager.forget();
    fs::remove_file(server.folder().join("broken")).unwrap();
    drop(server);
    let setup = Server::setup().options(["--check=exit 3", "--start-limit=1"]);
    let (server, manager, _) = serving(setup);
    server.signal(Signal::SIGHUP);
    wait_for_lifecycle(&manager, &["RELOADING", "READY"]);
    let failed =
        "restart failed: the check failed, exit status:768 (exit code 3); generation 1 serves";
    manager.wait_for_assignment("STATUS", failed);
}

#[test]
fn a_stop_is_told_once_and_gets_the_time_that_it_has_itself() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup()
        .worker(["--graceful"])
        .option("--stop-timeout=200");
    let (mut server, manager, port) = serving(setup);
    let held = client::hold(port);
    let worker = server.workers()[0];
    server.signal(Signal::SIGTERM);
    server.wait_for_drain(worker);
    let stopping = manager.wait_for_assignment("STOPPING", "1");
    let status = "stopping: waiting for 1 worker to exit";
    assert_eq!(stopping.get("STATUS"), Some(status));
    let more: u64 = stopping
        .get("EXTEND_TIMEOUT_USEC")
        .unwrap()
        .parse()
        .unwrap();
    assert!((200_000_000..=210_000_000).contains(&more), "{more}");
    server.signal(Signal::SIGTERM);
    assert_eq!(held.finish().generation, Some(1));
    assert!(server.wait_exit().success());
    assert_eq!(lifecycle(&manager.messages()), ["STOPPING"]);
}

#[test]
fn a_worker_that_says_that_it_stops_does_not_stop_the_unit() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup()
        .worker(["--notify", "--graceful"])
        .options(["--ready=notify", "--start-timeout=300"]);
    let (server, manager, port) = serving(setup);
    let first = server.ask(port);
    client::request(port, "say STOPPING=1").expect("no answer");
    server.wait_for_log("says that it is stopping");
    server.wait_for_service(2);
    manager.wait_for("generation 2 serves", |messages| {
        let status = |one: &Message| one.get("STATUS").map(str::to_owned);
        let last = messages.iter().rev().find_map(status)?;
        last.starts_with("serving: generation 2").then_some(())
    });
    let messages = manager.messages();
    assert_eq!(lifecycle(&messages), [""; 0], "{messages:?}");
    assert!(messages.iter().all(|one| one.from == server.pid()));
    let place = proc::environment(Pid::from_raw(first.pid))
        .get("NOTIFY_SOCKET")
        .cloned();
    assert_ne!(
        place.as_deref().map(AsRef::as_ref),
        Some(manager.place().as_os_str())
    );
}

#[test]
fn a_start_that_fails_says_why() {
    if !is_ours() {
        return;
    }
    let told = |setup: Setup| {
        let (setup, manager) = managed(setup);
        let finished = setup.run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        let messages = manager.messages();
        let last = messages.last().expect("nothing was told").clone();
        assert_eq!(last.get("EXIT_STATUS"), Some("1"), "{messages:?}");
        assert!(
            messages.iter().all(|one| !one.says("READY")),
            "{messages:?}"
        );
        last
    };
    let missing = told(Server::setup().program(["./missing"]));
    let why = "cannot execute ./missing: No such file or directory";
    assert_eq!(
        (missing.get("STATUS"), missing.get("ERRNO")),
        (Some(why), Some("2"))
    );

    let exits = Server::setup().worker(["--exit=3"]);
    let exits = told(exits.option("--start-limit=1"));
    let status = exits.get("STATUS").unwrap();
    assert!(
        status.ends_with("exit status:768 (exit code 3)"),
        "{status}"
    );
    assert_eq!(exits.get("ERRNO"), None);

    let port = ports::tcp();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let taken = told(Server::setup().port(port));
    assert_eq!(taken.get("ERRNO"), Some("98"), "{taken:?}");
}

#[test]
fn a_manager_that_does_not_read_holds_nothing_up_and_learns_what_matters_later() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let (setup, manager) = managed(Server::setup().port(port).interval("0.1"));
    let junk = manager.fill();
    let server = setup.start();
    assert_eq!(server.ask(port).generation, Some(1));
    server.wait_until_accepted();
    server.restart();
    let complaint = "does not read what it is sent; it gets the latest state once it does";
    server.wait_for_log(complaint);
    assert_idles(&server);

    wait_for_lifecycle(&manager, &["READY", "RELOADING", "READY"]);
    let messages = manager.forget();
    let is_junk = |one: &&Message| one.says("X_JUNK");
    assert_eq!(messages.iter().filter(is_junk).count(), junk);
    server.restart();
    wait_for_lifecycle(&manager, &["RELOADING", "READY"]);
    assert_eq!(server.count_in_log(complaint), 1);
}

#[test]
fn the_socket_may_have_an_abstract_name() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup();
    let name = format!("e2e-manager-{}", setup.folder().display());
    let manager = Manager::at_name(&name);
    let server = setup.env("NOTIFY_SOCKET", manager.place()).start();
    let ready = manager.wait_for_assignment("READY", "1");
    assert_eq!(ready.from, server.pid());
    assert!(!server.log().contains("NOTIFY_SOCKET"), "{}", server.log());
}

#[test]
fn a_manager_that_cannot_be_reached_is_named_once_and_the_server_serves() {
    if !is_ours() {
        return;
    }
    let folder = Server::setup();
    let folder = folder.folder();
    let in_folder = |name: &str| folder.join(name).into_os_string().into_string().unwrap();
    let (closed, stream) = (in_folder("closed"), in_folder("stream"));
    drop(UnixDatagram::bind(&closed).unwrap());
    let _stream = UnixListener::bind(&stream).unwrap();
    for place in [&closed, &stream] {
        fs::set_permissions(place, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let form = "it is neither an absolute path nor an abstract name (@NAME)";
    let long = format!("/{}", "x".repeat(200));
    for (place, cause) in [
        (in_folder("missing").as_str(), "No such file or directory"),
        (&closed, "Connection refused"),
        (&stream, "Protocol wrong type for socket"),
        ("run/notify", form),
        ("@", form),
        ("vsock:2:1234", form),
        (&long, "it is longer than 107 bytes"),
    ] {
        let port = ports::tcp();
        let mut server = Server::setup()
            .port(port)
            .env("NOTIFY_SOCKET", place)
            .status_file()
            .start();
        server.wait_until_accepted();
        server.restart();
        assert_eq!(server.ask(port).generation, Some(2));
        assert!(server.stop().success());
        let line = format!(
            "start_server: cannot reach the service manager at NOTIFY_SOCKET={place}: {cause}; going on without it"
        );
        assert_eq!(server.count_in_log(&line), 1, "{place}: {}", server.log());
        assert_eq!(server.count_in_log("NOTIFY_SOCKET"), 1, "{}", server.log());
    }
}

#[test]
fn a_watchdog_of_nobody_keeps_nobody_busy() {
    if !is_ours() {
        return;
    }
    let watched = |setup: Setup| setup.env("WATCHDOG_USEC", "200000");
    let missing = Server::setup().env("NOTIFY_SOCKET", "/missing/manager");
    let server = watched(missing.status_file()).start();
    server.wait_until_accepted();
    assert_idles(&server);

    // One that has gone away, and one that does not read.
    let (server, manager, _) = serving(watched(Server::setup()));
    drop(manager);
    server.restart();
    assert_idles(&server);
    let (server, manager, _) = serving(watched(Server::setup()));
    let _junk = manager.fill();
    server.restart();
    assert_idles(&server);
}

/// As runc does, which waits for `READY=1` alone.
#[test]
fn a_manager_that_goes_away_once_it_is_ready_is_not_missed_and_found_again() {
    if !is_ours() {
        return;
    }
    let (server, manager, _) = serving(Server::setup());
    let place = manager.place().clone();
    drop(manager);
    server.restart();
    fs::remove_file(&place).unwrap();
    let manager = Manager::at(place.as_ref());
    // It is not tried again at once.
    wait::until(
        "the new manager knows of a restart",
        || server.log(),
        || {
            server.restart();
            (!manager.messages().is_empty()).then_some(())
        },
    );
    assert!(!server.log().contains("NOTIFY_SOCKET"), "{}", server.log());
}

#[test]
fn the_manager_stays_in_reach_when_root_drops_its_privileges() {
    if !is_ours() || !can_drop() {
        return;
    }
    let setup = Server::setup().as_root().option("--user=nobody");
    let closed = setup.folder().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let manager = Manager::at(&closed.join("manager"));
    let server = setup.env("NOTIFY_SOCKET", manager.place()).start();
    manager.wait_for_assignment("READY", "1");
    manager.forget();
    server.restart();
    wait_for_lifecycle(&manager, &["RELOADING", "READY"]);
    let messages = manager.messages();
    assert!(messages.iter().all(|one| one.from == server.pid()));
    assert!(!server.log().contains("NOTIFY_SOCKET"), "{}", server.log());
}

#[test]
fn a_daemon_tells_who_it_is_before_its_launcher_returns() {
    if !is_ours() {
        return;
    }
    let (setup, manager) = managed(Server::setup());
    let finished = setup.options(["--daemonize", "--log-file=out"]).run();
    assert!(finished.status.success(), "{}", finished.log);
    let messages = manager.messages();
    let daemon = finished.server.pid_file().expect("no pid file");
    let first = messages.first().expect("nothing was told");
    let expected = daemon.to_string();
    assert_eq!(first.get("MAINPID"), Some(expected.as_str()));
    assert_eq!(lifecycle(&messages), ["READY"]);
    let named = messages.iter().filter(|one| one.get("MAINPID").is_some());
    assert_eq!(named.count(), 1, "{messages:?}");
    assert!(messages.iter().all(|one| one.from == daemon));
    kill(daemon, Signal::SIGTERM).unwrap();
    manager.wait_for_assignment("STOPPING", "1");
}

#[test]
fn the_watchdog_is_answered_while_something_serves_and_not_otherwise() {
    if !is_ours() {
        return;
    }
    let pings = |manager: &Manager| {
        let messages = manager.messages();
        let pings = messages.iter().filter(|one| one.says("WATCHDOG"));
        pings.count()
    };
    let wait_for_pings = |manager: &Manager, count| {
        manager.wait_for(&format!("all is well, {count} times"), |messages| {
            let pings = messages.iter().filter(|one| one.says("WATCHDOG"));
            (pings.count() >= count).then_some(())
        });
    };
    let setup = Server::setup()
        .worker(["--exit-if-exists=broken"])
        .env("WATCHDOG_USEC", "200000");
    let (server, manager, _) = serving(setup);
    let before = microseconds();
    wait_for_pings(&manager, 4);
    let took = microseconds() - before;
    // The first may have been due at once.
    assert!(took >= 280_000, "{took}");

    fs::write(server.folder().join("broken"), "").unwrap();
    kill(server.workers()[0].pid, Signal::SIGKILL).unwrap();
    manager.wait_for("nothing serves", |messages| {
        let statuses = messages.iter().filter_map(|one| one.get("STATUS"));
        let mut nothing = statuses.filter(|one| one.starts_with("nothing serves"));
        nothing.next().map(drop)
    });
    manager.forget();
    wait::let_pass(Duration::from_millis(500));
    assert_eq!(pings(&manager), 0, "{:#?}", manager.messages());
    fs::remove_file(server.folder().join("broken")).unwrap();
    wait_for_pings(&manager, 2);
}

#[test]
fn a_watchdog_that_is_not_meant_for_us_or_makes_no_sense_is_not_answered() {
    if !is_ours() {
        return;
    }
    let bad = "start_server: cannot use WATCHDOG_USEC=soon: it is not a number of microseconds; the watchdog gets no answer";
    for (variables, line) in [
        (
            &[("WATCHDOG_USEC", "20000"), ("WATCHDOG_PID", "1")][..],
            None,
        ),
        (&[("WATCHDOG_USEC", "soon")], Some(bad)),
    ] {
        let setup = variables
            .iter()
            .fold(Server::setup(), |setup, (name, value)| {
                setup.env(name, value)
            });
        let (server, manager, _) = serving(setup);
        server.restart();
        wait_for_lifecycle(&manager, &["RELOADING", "READY"]);
        let messages = manager.messages();
        assert!(messages.iter().all(|one| !one.says("WATCHDOG")));
        assert_eq!(server.count_in_log("WATCHDOG"), usize::from(line.is_some()));
        if let Some(line) = line {
            server.wait_for_log(line);
        }
    }
}
