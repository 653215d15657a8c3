//! The supervisor's own end, and what must not be one: workers are never left behind.

use std::fs;
use std::process::Command;

use e2e::skip::{needs_program, original_differs};
use e2e::start::InTurn;
use e2e::{Server, client, ports, proc, trace};
use nix::libc;
use nix::sys::signal::Signal;

use crate::launch::as_ordinary_user;

/// By number: some of them have no name.
#[expect(unsafe_code, reason = "nix sends signals that it has a name for")]
fn send(server: &Server, signal: i32) {
    // SAFETY: it takes numbers only.
    let sent = unsafe { libc::kill(server.pid().as_raw(), signal) };
    assert_eq!(sent, 0, "cannot send signal {signal}");
}

#[test]
fn signals_that_mean_nothing_here_end_nothing() {
    if original_differs("they end it, and its workers live on") {
        return;
    }
    let port = ports::tcp();
    let mut server = Server::setup().status_file().port(port).start();
    let worker = server.accepted();
    let named = [
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGSTKFLT,
        Signal::SIGALRM,
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
        Signal::SIGXCPU,
    ];
    let named = named.map(|signal| signal as i32);
    // The C library keeps the first two real-time ones for itself.
    for signal in named.into_iter().chain(32..=64) {
        send(&server, signal);
    }
    server.wait_for_log("received XCPU: start_server has used up its CPU time");
    let next = server.restart();
    assert_eq!(next.generation, 2, "{}", server.log());
    assert_ne!(next.pid, worker.pid);
    let dispositions = server.ask(port).status;
    let pipe = 1 << (Signal::SIGPIPE as i32 - 1);
    assert_eq!((dispositions.ignored, dispositions.blocked), (pipe, 0));
    assert!(server.stop().success(), "{}", server.log());
}

#[test]
fn an_error_of_the_loop_stops_the_workers_and_leaves_nothing_behind() {
    if original_differs("its loop waits for children alone") || !needs_program("prlimit") {
        return;
    }
    let port = ports::tcp();
    let mut server = Server::setup()
        .pid_file()
        .status_file()
        .port(port)
        .path("socket")
        .start();
    let worker = server.accepted();
    // poll(2) refuses more descriptors than the limit allows.
    let pid = format!("--pid={}", server.pid());
    let limit = ["prlimit", pid.as_str(), "--nofile=0"];
    let words = [as_ordinary_user(), &limit].concat();
    let set = Command::new(words[0])
        .args(&words[1..])
        .status_in_turn()
        .expect("cannot run prlimit");
    assert!(set.success());
    server.signal(Signal::SIGUSR2);
    let status = server.wait_exit();
    assert_eq!(status.code(), Some(1), "{}", server.log());
    assert!(!proc::alive(worker.pid), "{}", server.log());
    server.wait_for_log(&format!("worker {} died, status:15", worker.pid));
    let why = "start_server: cannot wait for events: Invalid argument";
    assert_eq!(server.count_in_log(why), 1, "{}", server.log());
    for name in ["pid", "pid.json", "status", "status.json", "socket"] {
        let path = server.folder().join(name);
        assert!(path.symlink_metadata().is_err(), "{name} is left");
    }
}

/// Status files, then sockets, then the listeners, then the log, then the pid file: once the lock is free, the next one can
/// start.
#[test]
fn at_the_end_the_pid_file_goes_last_and_the_listeners_are_closed_before() {
    if original_differs("it has another order") {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup();
    let copy = setup.folder().join("copy");
    let mut server = setup
        .pid_file()
        .status_file()
        .port(port)
        .path("socket")
        .option(format!("--log-file=| cat > {}", copy.display()))
        .option("--start-limit=1")
        .program(["false"])
        .traced()
        .start();
    let mut removed: Vec<String> = Vec::new();
    let mut seen_last = (true, String::new());
    trace::at_each_removal(server.pid(), |paths| {
        // What is removed was moved aside before, to a name with two numbers more.
        let [path] = paths else { return };
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.and_then(|name| name.rsplitn(3, '.').nth(2));
        let name = name
            .expect("a file with its own name is removed")
            .to_owned();
        if name == "pid" {
            let log = fs::read_to_string(&copy).unwrap_or_default();
            seen_last = (client::connect(port).is_ok(), log);
        }
        removed.push(name);
    });
    assert_eq!(server.wait_exit().code(), Some(1));
    // Before that, drafts of the status are removed that were exchanged for newer ones.
    let last = ["status.json", "pid.json", "socket", "pid"];
    assert!(removed.ends_with(&last.map(str::to_owned)), "{removed:?}");
    let (accepts, log) = seen_last;
    assert!(!accepts, "the listener is open when the lock is given up");
    assert!(log.contains("giving up after 1 failed start"), "{log}");
}

/// As a file system does that does not answer. It takes as long as the supervisor is patient.
#[test]
fn a_worker_that_hangs_before_it_executes_the_program_is_a_failed_start() {
    if original_differs("it takes whatever lives for a worker that serves") {
        return;
    }
    let mut server = Server::setup()
        .pid_file()
        .option("--start-limit=1")
        .traced()
        .start();
    let held = trace::holding_children(server.pid());
    assert_eq!(server.wait_exit().code(), Some(1), "{}", server.log());
    let [worker] = held[..] else {
        panic!("{held:?} were held: {}", server.log());
    };
    let log = server.log();
    let why = format!(
        "start_server: cannot execute the program in worker {worker} within 30 seconds: Timer expired\n\
         hint: probably a file system does not respond"
    );
    assert!(log.contains(&why), "{log}");
    assert!(log.contains("giving up after 1 failed start"), "{log}");
    assert!(!proc::alive(worker), "{log}");
}
