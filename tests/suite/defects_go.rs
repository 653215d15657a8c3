//! G1 to G11: the defects of the Server::Starter of Go.
//!
//! What cannot be provoked from outside:
//!
//! * G8, errors of writing the status file are ignored: they are said, and that has its test in `bad_input`.
//! * G10, its library for workers takes `127.0.0.1:80` for a path: the test is one of our example worker, which only
//!   runs with ours.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use e2e::client;
use e2e::skip::original_differs;
use e2e::{Server, ports, programs};
use nix::sys::signal::Signal;

use crate::defects::{
    FILES, client as start_client, code_of, ends_soon, envdir, hup, original_fails, removable,
    serving, take_the_program_away, write_for_all,
};

#[test]
fn g01_kill_old_delay_and_restart_have_their_effect() {
    let setup = Server::setup().pid_file().option("--kill-old-delay=1");
    let (server, old) = serving(setup.worker(["--graceful"]));
    let restart = start_client(&server, &["--restart", FILES[0], FILES[1]]);
    server.wait_for_log("sleeping 1 secs before killing old workers");
    assert_eq!(code_of(&server, restart), Some(0));
    assert_eq!(server.caught(old), ["SIGTERM"]);
    assert_eq!(server.generations(), [2]);
}

#[test]
fn g02_a_hup_while_an_old_worker_drains_is_not_dropped() {
    let port = ports::tcp();
    let (server, old) = serving(Server::setup().port(port).worker(["--graceful"]));
    let _held = client::hold(port);
    hup(&server);
    server.wait_for_drain(old);
    server.wait_for_service(2);
    hup(&server);
    server.wait_for_generations(&[1, 3]);
}

#[test]
fn g03_envdir_is_read_anew_for_each_generation() {
    let port = ports::tcp();
    let setup = envdir(Server::setup().port(port), &[("COLOUR", "red\n")]);
    let (server, _) = serving(setup);
    let env = server.folder().join("env");
    fs::write(env.join("COLOUR"), "green\n").expect("cannot write a variable");
    fs::write(env.join("TASTE"), "sweet\n").expect("cannot write a variable");
    assert_eq!(client::ask(port).environment["COLOUR"], "red");
    server.restart();
    let environment = server.ask(port).environment;
    assert_eq!(environment["COLOUR"], "green");
    assert_eq!(environment["TASTE"], "sweet");
}

#[test]
fn g04_a_program_that_cannot_be_executed_is_no_tight_loop_and_term_is_heard() {
    let (mut server, _) = serving(removable(Server::setup().interval("1")));
    take_the_program_away(&server);
    hup(&server);
    server.wait_for_log_times(2, "seems to have failed to start");
    assert!(server.stop().success());
    let starts = server.count_in_log("starting new worker");
    assert!(starts <= 6, "{starts} starts");
    let lines = server.log().lines().count();
    assert!(lines < 40, "{lines} lines");
}

#[test]
fn g05_a_term_while_starts_fail_ends_it_without_a_crash() {
    let mut server = Server::setup().interval("1").worker(["--exit=1"]).start();
    server.wait_for_log("seems to have failed to start");
    assert!(server.stop().success());
    assert!(!server.log().contains("panic"));
    assert_eq!(server.log().lines().last(), Some("exiting"));
}

#[test]
fn g06_a_term_in_a_burst_of_signals_is_not_lost() {
    original_fails("in vain until it ended", || {
        let (mut server, worker) = serving(Server::setup().worker(["--graceful"]));
        for signal in [
            Signal::SIGSTOP,
            Signal::SIGHUP,
            Signal::SIGALRM,
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGCONT,
        ] {
            server.signal(signal);
        }
        assert!(ends_soon(&mut server).success());
        assert_eq!(server.caught(worker), ["SIGTERM"]);
    });
}

#[test]
fn g07_a_stale_pid_file_is_replaced_by_a_whole_line() {
    let setup = Server::setup().pid_file();
    let path = setup.folder().join("pid");
    // Without a newline, as that of Go.
    write_for_all(&path, "4194304");
    let (server, _) = serving(setup);
    let found = fs::read_to_string(&path).expect("no pid file");
    assert_eq!(found, format!("{}\n", server.pid()));
}

#[test]
fn g08_whoever_reads_the_status_file_finds_all_of_it() {
    let (server, _) = serving(Server::setup().worker(["--graceful"]));
    let path = server.folder().join("status");
    let done = AtomicBool::new(false);
    let is_whole = |text: &str| {
        let is_line = |line: &str| {
            let numbers = line.split_once(':');
            numbers
                .is_some_and(|(one, two)| one.parse::<u32>().is_ok() && two.parse::<u32>().is_ok())
        };
        text.ends_with('\n') && text.lines().all(is_line)
    };
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut broken = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let text = fs::read_to_string(&path).expect("no status file");
                if !is_whole(&text) {
                    broken.push(text);
                }
            }
            broken
        });
        for generation in 2..=4 {
            hup(&server);
            server.wait_for_generations(&[generation]);
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(reader.join().expect("the reader has failed"), [""; 0]);
    });
}

#[test]
fn g09_the_exit_status_of_a_worker_is_not_lost() {
    let server = Server::setup().interval("1").worker(["--exit=3"]).start();
    server.wait_for_log("seems to have failed to start, exit status:768");
    let port = ports::tcp();
    let (server, worker) = serving(Server::setup().port(port));
    assert!(client::request(port, "exit 3").is_err());
    server.wait_for_log(&format!(
        "worker {} died unexpectedly with status:768, restarting",
        worker.pid
    ));
}

#[test]
fn g10_a_worker_that_takes_its_sockets_by_server_ports_takes_a_host_and_a_port_for_tcp() {
    if original_differs("the example worker is there for ours only") {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup().port(port).program([programs::hello()]);
    let server = setup.start();
    let ask = || {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).ok()?;
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    let answer = server.wait_for("the worker answers", |_| ask());
    assert!(answer.contains("generation 1, pid "), "{answer}");
}

#[test]
fn g11_every_signal_is_known_by_its_name() {
    let setup = Server::setup().option("--signal-on-hup=XFSZ");
    let (server, old) = serving(setup.worker(["--catch=XFSZ"]));
    hup(&server);
    server.wait_until("the old worker caught it", |server| {
        server.caught(old) == ["SIGXFSZ"]
    });
}

#[test]
fn g11_a_signal_that_does_not_exist_is_refused() {
    for option in ["--signal-on-hup=GXFSZ", "--signal-on-term=GXFSZ"] {
        original_fails("in vain until it ended", || {
            let mut server = Server::setup().option(option).start();
            assert_eq!(ends_soon(&mut server).code(), Some(2));
        });
    }
}
