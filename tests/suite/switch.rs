//! `--switch`: each generation has sockets of its own, and the kernel gives new connections to one generation alone.

use std::fs;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use e2e::client::{self, At, Load};
use e2e::report::Report;
use e2e::skip::{needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Server, Setup, Worker, ports, proc, programs, wait};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::attack_worker::attacker;
use crate::bad_input::{FAILED, assert_refused};
use crate::commands::run;
use crate::many_workers::{number_or, tell};

pub const PID_FILE: &str = "--pid-file=pid";

pub fn is_ours() -> bool {
    !original_differs("all its generations share their sockets")
}

/// Its workers die at TERM at once.
pub fn switching() -> Setup {
    Server::setup().pid_file().status_file().option("--switch")
}

#[track_caller]
pub fn serving(setup: Setup, port: u16) -> Server {
    let server = setup.port(port).start();
    server.wait_until_accepted();
    server
}

pub fn json(server: &Server) -> Value {
    server.status_json().expect("no status")
}

/// The lane to which new connections go, and those of the generations.
fn lanes(server: &Server) -> (u64, Vec<(u64, u64)>) {
    let status = json(server);
    let generations = status["generations"].as_array().expect("no list");
    let number = |value: &Value| value.as_u64().expect("a number");
    let of = |one: &Value| (number(&one["number"]), number(&one["lane"]));
    let selected = number(&status["switch"]["selected"]);
    (selected, generations.iter().map(of).collect())
}

/// Waits until the status shows this.
#[track_caller]
fn wait_for_lanes(server: &Server, selected: u64, generations: &[(u64, u64)]) {
    let expected = (selected, generations.to_vec());
    server.wait_until(&format!("the lanes are {expected:?}"), |server| {
        lanes(server) == expected
    });
}

/// Asks for a restart, and waits until the new generation serves, though the old one may still live.
#[track_caller]
pub fn restart(server: &Server) {
    let words = ["--restart", "--no-wait", PID_FILE, "--timeout=60"];
    let output = server.client(words).output_in_turn().expect("no client");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", server.log());
}

/// Questions that are asked now, and answered when somebody accepts them.
pub struct Questions(Vec<JoinHandle<io::Result<Report>>>);

impl Questions {
    /// When it returns, all of them wait in a queue.
    #[track_caller]
    pub fn ask(port: u16, count: usize) -> Questions {
        let before = established(port);
        let ask = |_| thread::spawn(move || client::try_ask(port));
        let questions = (0..count).map(ask).collect();
        wait::until(
            "all are connected",
            || format!("{} of {count}", established(port) - before),
            || (established(port) >= before + count).then_some(()),
        );
        Questions(questions)
    }

    /// By which generation each was answered.
    #[track_caller]
    pub fn answered_by(self) -> Vec<u32> {
        let answers = self
            .0
            .into_iter()
            .map(|one| one.join().expect("it panicked"));
        let generation = |answer: io::Result<Report>| {
            answer
                .expect("a client was lost")
                .generation
                .expect("a generation")
        };
        answers.map(generation).collect()
    }
}

/// How many connections to this port are established, by the clients' ends.
fn established(port: u16) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").expect("cannot read it");
    let remote = format!(":{port:04X}");
    let is_one = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.len() > 3 && words[2].ends_with(&remote) && words[3] == "01"
    };
    table.lines().filter(is_one).count()
}

/// Whoever accepts no connection for a while.
pub struct Suspended(Worker);

impl Suspended {
    pub fn new(worker: Worker) -> Suspended {
        kill(worker.pid, Signal::SIGSTOP).expect("cannot suspend it");
        Suspended(worker)
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        // It may be gone.
        let _ = kill(self.0.pid, Signal::SIGCONT);
    }
}

/// `E2E_SWITCH_RESTARTS=1000 cargo test -p e2e --test suite -- --nocapture switch::clients_lose_nothing` is the long run.
#[test]
fn clients_lose_nothing_though_old_workers_die_at_once() {
    if !is_ours() {
        return;
    }
    let restarts = number_or("E2E_SWITCH_RESTARTS", 12);
    let began = Instant::now();
    let port = ports::tcp();
    let setup = switching().without_interval();
    let server = serving(setup.option("--quiet-time=0.1"), port);
    let load = Load::start(port, 64);
    for _ in 0..restarts {
        load.wait_for_more(200);
        server.restart();
    }
    load.wait_for_more(200);
    let outcome = load.stop();
    tell(&format!(
        "--switch: restarts: {restarts}, answers: {}, failures: {}, worst latency: {:?}, time: {:?}",
        outcome.successes,
        outcome.failures.len(),
        outcome.worst_latency,
        began.elapsed()
    ));
    assert_eq!(outcome.failures, [""; 0], "{}", server.log());
    // The same restarts of the same server, whose generations share their socket.
    let port = ports::tcp();
    let setup = Server::setup().status_file().without_interval();
    let server = serving(setup, port);
    let load = Load::start(port, 64);
    // On a busy machine it may take a while.
    let mut done = 0;
    while load.failures() == 0 && done < restarts.max(400) {
        load.wait_for_more(200);
        server.restart();
        done += 1;
    }
    let outcome = load.stop();
    let lost = outcome.failures.len();
    tell(&format!(
        "shared: restarts: {done}, answers: {}, failures: {lost}",
        outcome.successes
    ));
    assert!(lost > 0, "nothing was lost");
}

#[test]
fn no_client_reaches_a_generation_before_it_serves_or_after_it_was_replaced() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let gate = |setup: &Setup| setup.folder().join("gate");
    let setup = switching().options(["--ready=notify", "--kill-old-delay=60"]);
    let fifo = gate(&setup);
    fs::write(&fifo, "").expect("cannot write it");
    let hold = format!("--hold={}", fifo.display());
    let server = serving(setup.worker(["--notify".to_owned(), hold]), port);
    fs::remove_file(&fifo).expect("cannot remove it");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("no FIFO");
    server.signal(Signal::SIGHUP);
    server.wait_for_start(2);
    let answered = |times: usize| -> Vec<Option<u32>> {
        let mut generations: Vec<_> = (0..times).map(|_| server.ask(port).generation).collect();
        generations.dedup();
        generations
    };
    assert_eq!(answered(50), [Some(1)], "it is being started");
    wait_for_lanes(&server, 0, &[(1, 0), (2, 1)]);
    drop(
        fs::OpenOptions::new()
            .write(true)
            .open(&fifo)
            .expect("cannot open the gate"),
    );
    server.wait_for_log("new connections go to generation 2");
    assert_eq!(answered(50), [Some(2)], "both live");
    wait_for_lanes(&server, 1, &[(1, 0), (2, 1)]);
    let output = server.client(["--status", PID_FILE]).output_in_turn();
    let shown = String::from_utf8(output.expect("no client").stdout).expect("text");
    assert!(
        shown.contains("new connections go to lane 1 of 2"),
        "{shown}"
    );
    // And back, without a new process.
    let words = ["--rollback", PID_FILE, "--no-wait", "--timeout=60"];
    let output = server.client(words).output_in_turn().expect("no client");
    assert!(output.status.success(), "{}", server.log());
    assert_eq!(answered(50), [Some(1)], "it has been rolled back");
    assert_eq!(server.started().len(), 2);
}

#[test]
fn what_a_new_generation_has_not_accepted_when_it_dies_is_served_by_the_old_one() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = serving(switching().option("--kill-old-delay=60"), port);
    restart(&server);
    let new = server.wait_for_service(2);
    let suspended = Suspended::new(new);
    let questions = Questions::ask(port, 20);
    kill(new.pid, Signal::SIGKILL).expect("it is gone");
    drop(suspended);
    let generations = questions.answered_by();
    // By a worker of a number of its own, and what it runs is what was started first.
    assert!(generations.iter().all(|one| *one == 3), "{generations:?}");
    assert_eq!(server.ask(port).generation, Some(1));
    server.wait_for_log("starting a worker for them");
    // It goes when it has done that, and the restart is tried again.
    server.wait_for_generations(&[1, 4]);
}

#[test]
fn what_an_old_generation_has_not_accepted_when_it_is_killed_is_served_by_the_new_one() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = serving(switching(), port);
    let old = server.wait_for_service(1);
    let suspended = Suspended::new(old);
    let questions = Questions::ask(port, 20);
    restart(&server);
    assert_eq!(server.ask(port).generation, Some(2));
    // It is not told to stop: something waits for it.
    wait::let_pass(std::time::Duration::from_millis(600));
    assert_eq!(server.count_in_log("killing old workers"), 0);
    kill(old.pid, Signal::SIGKILL).expect("it is gone");
    drop(suspended);
    assert_eq!(questions.answered_by(), [3; 20]);
    server.wait_for_generations(&[2]);
    let status = server.status_file().expect("no status file");
    assert!(status.starts_with("2:"), "{status}");
}

#[test]
fn an_old_worker_that_accepts_nothing_is_told_after_the_timeout() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = serving(switching().option("--switch-timeout=0.5"), port);
    let old = server.wait_for_service(1);
    let suspended = Suspended::new(old);
    let questions = Questions::ask(port, 3);
    restart(&server);
    server.wait_for_log("clients still wait");
    server.wait_for_log("killing old workers");
    // Not by the signal that it has by now: another thread of it could accept one before.
    kill(old.pid, Signal::SIGKILL).expect("cannot kill it");
    drop(suspended);
    assert_eq!(questions.answered_by(), [3; 3]);
}

#[test]
fn a_restart_waits_for_a_lane_unless_one_is_free() {
    if !is_ours() {
        return;
    }
    for (number, waits) in [("2", true), ("3", false)] {
        let port = ports::tcp();
        let setup = switching().worker(["--graceful"]);
        let server = serving(setup.option(format!("--lanes={number}")), port);
        let held = client::hold(port);
        restart(&server);
        server.wait_for_log("killing old workers");
        server.signal(Signal::SIGHUP);
        match waits {
            true => drop(server.wait_for_log("the next start waits until old workers are gone")),
            false => drop(server.wait_for_service(3)),
        }
        assert_eq!(server.started().len(), if waits { 2 } else { 3 });
        held.finish();
        server.wait_for_generations(&[3]);
    }
}

#[test]
fn upgrades_and_a_guardian_keep_the_lanes() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let setup = switching().options(["--guardian", "--kill-old-delay=0"]);
    let server = serving(setup, port);
    let load = Load::start(port, 8);
    let go_on = |load: &Load| load.wait_for_more(50);
    go_on(&load);
    restart(&server);
    server.wait_for_generations(&[2]);
    wait_for_lanes(&server, 1, &[(2, 1)]);
    let mut client = run(&server, &["--upgrade", PID_FILE, "--timeout=60"]);
    assert_eq!(client.wait(), 0, "{}\n{}", client.said(), server.log());
    go_on(&load);
    wait_for_lanes(&server, 1, &[(2, 1)]);
    restart(&server);
    server.wait_for_generations(&[3]);
    wait_for_lanes(&server, 0, &[(3, 0)]);
    let supervisor = server.wait_for("a supervisor lives", Server::supervisor);
    kill(supervisor, Signal::SIGKILL).expect("it is gone");
    server.wait_for_log("; a new one goes on with its ");
    go_on(&load);
    restart(&server);
    server.wait_for_generations(&[4]);
    wait_for_lanes(&server, 1, &[(4, 1)]);
    go_on(&load);
    assert_eq!(load.stop().failures, [""; 0], "{}", server.log());
}

#[test]
fn a_worker_that_shuts_its_sockets_down_harms_nobody_else() {
    if !is_ours() {
        return;
    }
    for lanes in ["2", "3"] {
        let port = ports::tcp();
        let setup = switching().worker(["--graceful", "--shutdown-at-term"]);
        let server = serving(setup.option(format!("--lanes={lanes}")), port);
        let load = Load::start(port, 4);
        for _ in 0..5 {
            load.wait_for_more(50);
            let new = server.restart();
            // Before the lanes are mended, what comes may reach the lane of the old one, and a worker that is started for it.
            server.wait_until("the new worker answers", |server| {
                server.ask(port).pid == new.pid.as_raw()
            });
        }
        load.wait_for_more(50);
        assert_eq!(load.stop().failures, [""; 0], "{}", server.log());
    }
}

#[test]
fn a_second_server_at_the_same_port_is_refused() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = serving(switching(), port);
    for kind in ["", "u"] {
        let at = format!("--port=127.0.0.1:{kind}{port}");
        let first = switching().option(at.clone()).start();
        if kind.is_empty() {
            drop(first);
        } else {
            first.wait_until_accepted();
            let second = switching().option(at).run();
            let cause = "Address already in use";
            assert!(second.log.contains(cause), "{}", second.log);
        }
    }
    let second = switching().port(port).run();
    assert!(
        second.log.contains("Address already in use"),
        "{}",
        second.log
    );
    assert_eq!(server.ask(port).generation, Some(1));
}

#[test]
fn datagrams_are_switched_too() {
    if !is_ours() {
        return;
    }
    let port = ports::udp();
    let setup = switching().option("--kill-old-delay=60");
    let setup = setup.option(format!("--port=127.0.0.1:u{port}"));
    let server = setup.start();
    server.wait_until_accepted();
    server.wait_for_service(1);
    for generation in 1..=2 {
        let asked = |_| server.ask(client::udp(port)).generation == Some(generation);
        assert!((0..50).all(asked), "{}", server.log());
        if generation == 1 {
            restart(&server);
            server.wait_for_service(2);
        }
    }
}

#[test]
fn low_ports_have_lanes_as_well_and_a_port_that_the_kernel_chooses() {
    if !is_ours() || !needs_root() {
        return;
    }
    let (tcp, udp) = (ports::low(), ports::low());
    let setup = switching().as_root().option("--user=nobody");
    let setup = setup.option(format!(
        "--port=127.0.0.1:{tcp},[::1]:{tcp},127.0.0.1:u{udp}"
    ));
    let setup = setup.options([
        "--port=127.0.0.1:0",
        "--port=[::1]:u0",
        "--kill-old-delay=60",
    ]);
    let server = setup.option("--switch=required").start();
    server.wait_until_accepted();
    server.wait_for_service(1);
    let chosen = |kind: &str| -> At {
        let status = json(&server);
        let listeners = status["listeners"].as_array().expect("a list").clone();
        let is_chosen = |one: &&Value| {
            let address = one["address"].as_str().expect("text");
            let port = address.rsplit_once(':').expect("a port").1;
            one["kind"] == kind && ![tcp.to_string(), udp.to_string()].contains(&port.to_owned())
        };
        let one = listeners.iter().find(is_chosen).expect("it is not there");
        let address = one["address"]
            .as_str()
            .expect("text")
            .parse()
            .expect("an address");
        match kind {
            "udp" => At::Udp(address),
            _ => At::Tcp(address),
        }
    };
    let all = [
        tcp.into(),
        client::tcp6(tcp),
        client::udp(udp),
        chosen("tcp"),
        chosen("udp"),
    ];
    for generation in [1, 2] {
        for at in &all {
            let asked = |_| server.ask(at.clone()).generation == Some(generation);
            assert!((0..10).all(asked), "{at:?}: {}", server.log());
        }
        if generation == 1 {
            restart(&server);
            server.wait_for_service(2);
        }
    }
}

/// `setsockopt(SO_ATTACH_REUSEPORT_CBPF)` is refused, as in a container that allows no BPF.
fn refused(options: &[&str], port: u16) -> Setup {
    let option = libc::SO_ATTACH_REUSEPORT_CBPF;
    let call = format!("{}:::{option}", libc::SYS_setsockopt);
    let program = programs::start_server().display().to_string();
    let words = ["refuse".to_owned(), call, libc::EPERM.to_string(), program];
    let setup = Server::setup().copy(attacker()).as_root().options(words);
    let setup = setup.option("--user=nobody").pid_file().status_file();
    setup.port(port).options(options.iter().copied())
}

#[test]
fn where_the_kernel_cannot_switch_the_socket_is_shared_or_that_is_refused() {
    if !is_ours() || !needs_root() {
        return;
    }
    let port = ports::tcp();
    let server = refused(&["--switch"], port).start();
    server.wait_for_log("--switch has no effect here");
    server.wait_until_accepted();
    server.wait_for_service(1);
    assert_eq!(server.restart().generation, 2);
    assert_eq!(server.ask(port).generation, Some(2));
    assert!(json(&server).get("switch").is_none());
    let finished = refused(&["--switch=required"], port).run();
    let cause = "cannot use --switch=required: setsockopt(SO_ATTACH_REUSEPORT_CBPF) is refused: \
                 Operation not permitted";
    assert!(finished.log.contains(cause), "{}", finished.log);
    assert_eq!(finished.status.code(), Some(1));
    // A dry run says the same.
    let finished = refused(&["--switch", "--check-config"], port).run();
    let line = "\nlets all generations share the listeners\n";
    assert!(finished.log.contains(line), "{}", finished.log);
    // The server that runs has the port.
    assert_eq!(finished.log.matches("start_server: ").count(), 1);
    let finished = refused(&["--switch=required", "--check-config"], port).run();
    assert!(finished.log.contains(cause), "{}", finished.log);
    assert_eq!(finished.status.code(), Some(1));
}

#[test]
fn what_cannot_have_lanes_is_shared_and_named_or_refused() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = serving(switching().path("socket"), port);
    let socket = server.folder().join("socket");
    server.wait_for_log(&format!(
        "all generations share these listeners despite --switch: {}",
        socket.display()
    ));
    let listeners = json(&server)["listeners"].clone();
    assert_eq!(listeners[0]["sockets"], 2);
    assert!(listeners[1].get("sockets").is_none());
    let output = server.client(["--status", PID_FILE]).output_in_turn();
    let shown = String::from_utf8(output.expect("no client").stdout).expect("text");
    assert!(shown.contains("socket (shared)"), "{shown}");
    server.wait_for_service(1);
    restart(&server);
    server.wait_for_generations(&[2]);
    assert_eq!(server.ask(&socket).generation, Some(2));
    assert_eq!(server.ask(port).generation, Some(2));
    let setup = switching().option("--switch=required").path("socket");
    let path = setup.folder().join("socket").display().to_string();
    let refused =
        format!("start_server: cannot use --switch=required: all generations share --path={path}");
    let hint = "hint: only ports that start_server opens itself can have a socket for each generation: without =required, \
                this one is shared";
    assert_refused(setup, FAILED, &[&refused, hint]);
}

#[test]
fn more_sockets_than_fit_in_one_message_all_arrive() {
    if !is_ours() {
        return;
    }
    let ports: Vec<u16> = (0..40).map(|_| ports::tcp()).collect();
    let setup = switching().option("--lanes=8");
    let setup = ports.iter().fold(setup, |setup, port| setup.port(*port));
    let server = setup.start();
    server.wait_until_accepted();
    restart(&server);
    server.wait_for_service(2);
    for port in ports {
        assert_eq!(server.ask(port).generation, Some(2));
    }
}

#[test]
fn an_idle_server_is_not_woken_up() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = serving(switching(), port);
    let mut client = run(&server, &["--restart", PID_FILE, "--timeout=60"]);
    assert_eq!(client.wait(), 0, "{}\n{}", client.said(), server.log());
    server.wait_for_generations(&[2]);
    // Looks at a lane would come every 50 milliseconds.
    server.wait_until("nothing happens", |server| {
        let before = proc::context_switches(server.pid());
        wait::let_pass(std::time::Duration::from_millis(500));
        proc::context_switches(server.pid()) == before
    });
}
