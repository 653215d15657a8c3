//! R1 to R13: the defects of ruby-server-starter 0.3.2.
//!
//! What cannot be provoked from outside:
//!
//! * R10, SO_REUSEADDR set only after bind: the option is there either way. The test says that it has its effect.
//! * R13, `slow_start` of its listener for unicorn signals the pids that it finds in the status file: there is no such
//!   program here; nothing of ours reads a pid in a status file.

use std::fs;

use e2e::client;
use e2e::skip::needs_ipv6;
use e2e::{Server, Setup, ports, proc, wait};
use nix::sys::signal::{Signal, kill};

use crate::defects::{
    break_it, breakable, client as start_client, code_of, envdir, hup, original_fails, serving,
    wait_until_acted_on,
};

#[test]
fn r01_port_and_path_can_be_used_together() {
    let port = ports::tcp();
    let setup = Server::setup().port(port).path("socket");
    let socket = setup.folder().join("socket");
    let (_server, worker) = serving(setup);
    assert_eq!(client::ask(port).pid, worker.pid.as_raw());
    assert_eq!(client::ask(&socket).pid, worker.pid.as_raw());
}

#[test]
fn r02_it_sleeps_while_it_waits_for_workers_at_the_end() {
    let port = ports::tcp();
    let (mut server, worker) = serving(Server::setup().port(port).worker(["--graceful"]));
    let held = client::hold(port);
    server.signal(Signal::SIGTERM);
    server.wait_for_drain(worker);
    wait_until_acted_on(&server);
    let before = proc::context_switches(server.pid());
    let mut looks = 0;
    wait::until(
        "somebody has looked a hundred times",
        || server.log(),
        || {
            let state = proc::status(server.pid()).map(|status| status.state);
            assert_eq!(state, Some('S'));
            looks += 1;
            (looks == 100).then_some(())
        },
    );
    assert_eq!(proc::context_switches(server.pid()), before);
    held.finish();
    assert!(server.wait_exit().success());
}

#[test]
fn r03_a_hup_during_the_interval_does_not_accept_a_dead_worker() {
    let port = ports::tcp();
    let (server, old) = serving(breakable(Server::setup().port(port).interval("2")));
    break_it(&server);
    hup(&server);
    let new = server.wait_for_start(2);
    server.wait_until("the new worker is dead", |_| !proc::alive(new.pid));
    hup(&server);
    wait_until_acted_on(&server);
    server.wait_for_log(&format!("new worker {} seems to have failed", new.pid));
    assert_eq!(server.count_in_log("new worker is now running"), 0);
    assert_eq!(client::ask(port).pid, old.pid.as_raw());
    assert_eq!(server.caught(old), [""; 0]);
}

/// A server that nobody sends a signal restarts by time.
#[track_caller]
fn assert_restarts_by_itself(setup: Setup) {
    let (server, _) = serving(setup.worker(["--graceful"]));
    server.wait_for_log("autorestart triggered (interval=1)");
    server.wait_for_service(2);
}

#[test]
fn r04_auto_restart_comes_although_nothing_else_happens() {
    assert_restarts_by_itself(Server::setup().options([
        "--enable-auto-restart",
        "--auto-restart-interval=1",
        "--kill-old-delay=0",
    ]));
}

#[test]
fn r05_a_path_is_removed_at_the_end() {
    let setup = Server::setup().path("socket");
    let socket = setup.folder().join("socket");
    let (mut server, _) = serving(setup);
    assert!(socket.exists());
    assert!(server.stop().success());
    assert!(!socket.exists());
}

#[test]
fn r06_a_worker_that_is_dead_at_term_already_is_no_trouble() {
    let (mut server, worker) = serving(Server::setup());
    proc::stop(server.pid());
    server.wait_until("it is stopped", |server| {
        proc::status(server.pid()).is_some_and(|status| status.state == 'T')
    });
    kill(worker.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_until("the worker is dead", |_| !proc::alive(worker.pid));
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGCONT);
    assert!(server.wait_exit().success());
}

#[test]
fn r07_auto_restart_can_be_switched_on_by_the_environment() {
    let setup = Server::setup().env("ENABLE_AUTO_RESTART", "1");
    let setup = setup.env("AUTO_RESTART_INTERVAL", "1");
    assert_restarts_by_itself(setup.env("KILL_OLD_DELAY", "0"));
}

#[test]
fn r08_every_port_counts() {
    let ports = [ports::tcp(), ports::tcp(), ports::tcp()];
    let setup = ports.into_iter().fold(Server::setup(), Setup::port);
    let (_server, worker) = serving(setup);
    for port in ports {
        assert_eq!(client::ask(port).pid, worker.pid.as_raw());
    }
}

#[test]
fn r09_a_start_that_cannot_bind_writes_no_files() {
    let port = ports::tcp();
    let _others = std::net::TcpListener::bind(("127.0.0.1", port)).expect("cannot bind");
    let setup = Server::setup().pid_file().status_file().port(port);
    let finished = setup.run();
    assert!(!finished.status.success(), "{}", finished.log);
    let entries = fs::read_dir(finished.server.folder()).expect("cannot read the folder");
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["log"]);
}

#[test]
fn r09_files_of_another_server_are_left_alone_at_the_end() {
    original_fails("it is gone", || {
        let (mut server, _) = serving(Server::setup().pid_file());
        let files = ["pid", "status"].map(|name| server.folder().join(name));
        for file in &files {
            let others = file.with_extension("others");
            fs::write(&others, "of another").expect("cannot write the file");
            fs::rename(&others, file).expect("cannot put it in place");
        }
        assert!(server.stop().success());
        for file in &files {
            let found = fs::read_to_string(file).expect("it is gone");
            assert_eq!(found, "of another");
        }
    });
}

#[test]
fn r10_the_backlog_is_as_asked() {
    let port = ports::tcp();
    let (_server, _) = serving(Server::setup().port(port).option("--backlog=7"));
    let report = client::ask(port);
    assert_eq!(report.socket(&format!("127.0.0.1:{port}")).backlog, Some(7));
}

#[test]
fn r10_an_address_can_be_bound_again_while_connections_linger() {
    let port = ports::tcp();
    let (mut server, _) = serving(Server::setup().port(port));
    // The worker closes first, so that its side is the one that lingers.
    server.wait_until("a connection lingers", |_| {
        client::request(port, "ping").expect("no answer");
        lingers(port)
    });
    assert!(server.stop().success());
    assert!(lingers(port));
    let (_server, _) = serving(Server::setup().port(port));
    assert_eq!(client::ask(port).generation, Some(1));
}

/// Whether a connection of this port is in the state TIME_WAIT.
fn lingers(port: u16) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").expect("cannot read /proc/net/tcp");
    let local = format!("0100007F:{port:04X}");
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1] == local && fields[3] == "06"
    })
}

#[test]
fn r11_ipv6_udp_descriptors_log_commands_daemons_and_stop_are_there() {
    if !needs_ipv6() {
        return;
    }
    let [tcp, udp] = [ports::tcp(), ports::udp()];
    let setup = Server::setup().options([
        format!("--port=[::1]:{tcp}"),
        format!("--port=127.0.0.1:u{udp}=9"),
        "--log-file=| exec cat >>out".to_owned(),
        "--daemonize".to_owned(),
    ]);
    let launched = setup.pid_file().run();
    assert!(launched.status.success(), "{}", launched.log);
    let server = launched.server;
    let report = server.ask(client::tcp6(tcp));
    let udp_name = format!("127.0.0.1:{udp}");
    let fds = report.listeners.iter().map(|it| (&*it.name, it.fd == 9));
    let tcp_name = format!("[::1]:{tcp}");
    assert_eq!(
        fds.collect::<Vec<_>>(),
        [(&*tcp_name, false), (&*udp_name, true)]
    );
    assert_eq!(client::ask(client::udp(udp)).pid, report.pid);
    let stop = start_client(&server, &["--stop", "--pid-file=pid"]);
    assert_eq!(code_of(&server, stop), Some(0));
    assert!(!proc::alive(nix::unistd::Pid::from_raw(report.pid)));
    server.wait_until("all of it is in the log", |server| {
        let log = fs::read_to_string(server.folder().join("out"));
        log.is_ok_and(|log| log.contains("starting new worker") && log.ends_with("exiting\n"))
    });
}

#[test]
fn r12_envdir_is_for_the_first_generation_too_and_may_hold_an_empty_file() {
    let port = ports::tcp();
    let variables = [("COLOUR", "red\n"), ("EMPTY", ""), (".hidden", "dots")];
    let (_server, _) = serving(envdir(Server::setup().port(port), &variables));
    let environment = client::ask(port).environment;
    assert_eq!(environment["COLOUR"], "red");
    assert!(!environment.contains_key("EMPTY"), "{environment:?}");
    assert!(!environment.contains_key(".hidden"), "{environment:?}");
}
