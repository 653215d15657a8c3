//! `--ready`: a generation that has not proved that it serves replaces none that does.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use e2e::server::NOBODY;
use e2e::skip::{needs_root, original_differs};
use e2e::{Server, Setup, client, ports, proc, programs};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, Uid, mkfifo};
use serde_json::Value;

use crate::bad_input::assert_usage;
use crate::commands::{Client, accepted, run};

pub fn is_ours() -> bool {
    !original_differs("it takes whatever lives for ready")
}

pub fn with_files() -> Setup {
    Server::setup().pid_file().status_file().interval("0.1")
}

/// From the second generation on, a shell command waits at a gate before it executes the worker.
pub fn gated(setup: Setup, arguments: &str) -> (Setup, Gate) {
    gated_by(setup, "[ $SERVER_STARTER_GENERATION = 1 ]", arguments)
}

/// The same for each worker for which this shell command fails.
pub fn gated_by(setup: Setup, passes: &str, arguments: &str) -> (Setup, Gate) {
    let gate = setup.folder().join("gate");
    mkfifo(&gate, Mode::from_bits_truncate(0o600)).expect("cannot make a FIFO");
    let owner = Uid::effective().is_root().then_some(NOBODY);
    chown(&gate, owner, None).expect("cannot give the FIFO away");
    let before = format!("{passes} || read x <{}", gate.display());
    (scripted(setup, &before, arguments), Gate(gate))
}

/// A worker that a shell executes after something else.
pub fn scripted(setup: Setup, before: &str, arguments: &str) -> Setup {
    let script = format!(
        "{before}; exec {} --journal={} --graceful {arguments}",
        programs::worker().display(),
        setup.folder().join("journal").display()
    );
    setup.program(["/bin/sh", "-c", &script])
}

pub struct Gate(PathBuf);

impl Gate {
    pub fn at(path: PathBuf) -> Gate {
        Gate(path)
    }

    /// Waits until somebody is at the gate.
    pub fn open(&self) {
        let gate = OpenOptions::new().write(true).open(&self.0);
        let mut gate = gate.expect("cannot open the gate");
        std::io::Write::write_all(&mut gate, b"\n").expect("cannot open the gate");
    }
}

fn serving(setup: Setup) -> (Server, u16) {
    let port = ports::tcp();
    let server = setup.port(port).start();
    accepted(&server);
    (server, port)
}

fn restart(server: &Server) -> Client {
    run(server, &["--restart", "--pid-file=pid"])
}

/// Waits until this generation has a worker. Returns its entry in the status.
#[track_caller]
fn wait_for_start(server: &Server, generation: u64) -> Value {
    server.wait_for("a generation starts", |server| {
        let json = server.status_json()?;
        let mut generations = json["generations"].as_array()?.iter();
        let found = generations.find(|one| one["number"] == generation)?;
        (!found["workers"].as_array()?.is_empty()).then(|| found.clone())
    })
}

/// The notification socket of a generation that starts.
#[track_caller]
fn wait_for_socket(server: &Server, generation: u64) -> String {
    let starting = wait_for_start(server, generation);
    let pid = starting["workers"][0]["pid"].as_i64().expect("a pid");
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    server.wait_for("its worker has its environment", |_| {
        proc::environment(pid).get("NOTIFY_SOCKET").cloned()
    })
}

#[test]
fn a_worker_that_says_ready_replaces_the_old_one_and_until_then_it_does_not() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(with_files().option("--ready=notify"), "--notify");
    let (server, port) = serving(setup);
    let mut client = restart(&server);
    let starting = wait_for_start(&server, 2);
    assert_eq!(starting["waiting_for"], "READY=1");
    assert!(starting["fails_at"].as_f64() > starting["started_at"].as_f64());
    assert!(client.is_waiting());
    for _ in 0..10 {
        assert_eq!(server.ask(port).generation, Some(1));
    }
    gate.open();
    assert_eq!(client.wait(), 0, "{}", client.said());
    assert_eq!(server.ask(port).generation, Some(2));
    // What is ready does not wait for the interval.
    assert_eq!(server.count_in_log("seems to have failed"), 0);
}

#[test]
fn each_kind_of_proof_is_waited_for() {
    if !is_ours() {
        return;
    }
    for (ready, arguments, awaited) in [
        ("fd:9", "", "a line feed on descriptor 9"),
        (
            "exec:test $SERVER_STARTER_GENERATION = 1 || test -e go",
            "",
            "its --ready command to succeed",
        ),
        ("accept", "", "its first accept"),
        ("http:/exists/pid", "", "GET /exists/pid"),
    ] {
        let setup = with_files().option(format!("--ready={ready}"));
        let gate = setup.folder().join("gate");
        let (setup, gate) = match ready {
            "fd:9" => {
                mkfifo(&gate, Mode::from_bits_truncate(0o600)).expect("cannot make a FIFO");
                let owner = Uid::effective().is_root().then_some(NOBODY);
                chown(&gate, owner, None).expect("cannot give the FIFO away");
                let before = format!(
                    "[ $SERVER_STARTER_GENERATION = 1 ] || read x <{}; echo >&9; exec 9>&-",
                    gate.display()
                );
                (scripted(setup, &before, arguments), Gate(gate))
            }
            _ => gated(setup, arguments),
        };
        let (server, port) = serving(setup);
        let mut client = restart(&server);
        let starting = wait_for_start(&server, 2);
        assert_eq!(starting["waiting_for"], awaited);
        for _ in 0..10 {
            assert_eq!(server.ask(port).generation, Some(1), "{ready}");
        }
        gate.open();
        if ready.starts_with("exec") {
            server.wait_for_service(2);
            assert!(client.is_waiting(), "{ready}: {}", client.said());
            fs::write(server.folder().join("go"), "").expect("cannot write");
        }
        assert_eq!(client.wait(), 0, "{ready}: {}", client.said());
        assert_eq!(server.ask(port).generation, Some(2), "{ready}");
    }
}

#[test]
fn what_is_never_ready_is_refused_with_what_is_known_and_the_old_one_serves() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp;
    for (ready, known) in [
        ("notify", "it has not said READY=1"),
        ("fd:9", "no line feed has come on descriptor 9"),
        ("accept", "it has not accepted a connection"),
        (
            "http:/exists/pid",
            "GET /exists/pid on the new generation: no answer within a second",
        ),
    ] {
        let timeout = if ready.starts_with("http") {
            "1.5"
        } else {
            "0.5"
        };
        let setup = with_files().option(format!("--ready={ready}"));
        let before = "[ $SERVER_STARTER_GENERATION = 1 ] || exec sleep 600; [ -z \"$NOTIFY_SOCKET\" ] || n=--notify; \
                      { echo >&9; } 2>/dev/null; exec 9>&-";
        let server = scripted(setup, before, "$n")
            .port(port())
            .option(format!("--start-timeout={timeout}"))
            .start();
        accepted(&server);
        let mut client = restart(&server);
        assert_eq!(client.wait(), 1, "{ready}: {}", client.said());
        let said = client.said();
        let expected = format!("was not ready within {timeout} secs: {known}");
        assert!(said.contains(&expected), "{ready}: {said}");
        server.wait_for_log(&expected);
        assert!(
            said.contains("the old one keeps serving"),
            "{ready}: {said}"
        );
    }
}

#[test]
fn a_worker_that_dies_before_it_is_ready_has_failed_at_once() {
    if !is_ours() {
        return;
    }
    let setup = scripted(
        with_files().option("--ready=notify"),
        "[ $SERVER_STARTER_GENERATION = 1 ] || exit 7",
        "--notify",
    );
    let (server, port) = serving(setup);
    let mut client = restart(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    assert!(client.said().contains("(exit code 7)"), "{}", client.said());
    assert_eq!(server.ask(port).generation, Some(1));
}

#[test]
fn an_answer_that_does_not_fit_is_told_and_one_that_does_commits() {
    if !is_ours() {
        return;
    }
    for (path, known) in [
        ("/exists/missing", "503 Service Unavailable"),
        ("/nothing", "404 Not Found"),
        ("/garbage", "the answer cannot be used: it is not HTTP"),
        (
            "/fields",
            "the answer cannot be used: it has more than 256 header fields",
        ),
        ("/half", "the connection was closed before an answer"),
    ] {
        let setup = scripted(with_files(), ":", "");
        let server = setup
            .port(ports::tcp())
            .options([
                format!("--ready=http:{path}"),
                "--start-timeout=0.5".to_owned(),
                "--start-limit=1".to_owned(),
            ])
            .start();
        let mut server = server;
        let status = server.wait_exit();
        assert_eq!(status.code(), Some(1), "{}", server.log());
        let expected = format!("GET {path} on the new generation: {known}");
        assert_eq!(server.count_in_log(&expected), 1, "{}", server.log());
    }
    let setup =
        scripted(with_files(), ":", "").options(["--ready=http:/moved", "--ready-status=200-399"]);
    serving(setup);
    // First 503, then 200.
    let setup = scripted(with_files(), ":", "").option("--ready=http:/exists/go");
    let server = setup.port(ports::tcp()).start();
    server.wait_for_service(1);
    fs::write(server.folder().join("go"), "").expect("cannot write");
    accepted(&server);
}

#[test]
fn the_probe_is_known_to_its_generation_alone_and_gone_with_it() {
    if !is_ours() {
        return;
    }
    for probe in ["tcp", "unix"] {
        let setup = scripted(with_files(), ":", "")
            .options(["--ready=accept".to_owned(), format!("--probe={probe}")]);
        let (server, port) = serving(setup);
        let probe_of = |report: &e2e::report::Report| {
            let text = &report.environment["SERVER_STARTER_PORT"];
            let (shared, own) = text.split_once(';').expect("no probe");
            assert_eq!(shared, format!("127.0.0.1:{port}=3"));
            own.strip_suffix("=4").expect("its number").to_owned()
        };
        let first = server.ask(port);
        let own = probe_of(&first);
        assert_eq!(own.starts_with("127.0.0.1:"), probe == "tcp", "{own}");
        assert_eq!(restart(&server).wait(), 0);
        let other = probe_of(&server.ask(port));
        assert_ne!(own, other);
        if probe == "unix" {
            assert!(!PathBuf::from(&own).exists() && PathBuf::from(&other).exists());
            let folder = PathBuf::from(&other);
            let mut server = server;
            assert!(server.stop().success());
            assert!(!folder.parent().expect("its directory").exists());
        } else {
            client::try_ask(
                own.rsplit_once(':')
                    .expect("a port")
                    .1
                    .parse::<u16>()
                    .expect("a port"),
            )
            .expect_err("nobody listens there any more");
        }
    }
}

#[test]
fn what_a_worker_says_about_itself_is_shown_and_in_the_reason() {
    if !is_ours() {
        return;
    }
    let setup = scripted(
        with_files().options(["--ready=notify", "--start-timeout=0.5", "--start-limit=1"]),
        ":",
        "--say='STATUS=warming up'",
    );
    let mut server = setup.port(ports::tcp()).start();
    let status = server.wait_exit();
    assert_eq!(status.code(), Some(1));
    server.wait_for_log("it has not said READY=1; its last STATUS is: warming up");

    let (server, port) = serving(scripted(
        with_files().option("--ready=notify"),
        ":",
        "--notify",
    ));
    client::request(port, "say STATUS=3 of 4 caches\u{1b}[2J").expect("no answer");
    server.wait_until("the status shows it", |server| {
        server.status_json().is_some_and(|json| {
            json["generations"][0]["workers"][0]["text"] == "3 of 4 caches\\x1B[2J"
        })
    });
    // Reloading is the worker's own matter.
    for text in ["RELOADING=1", "READY=1", "BARRIER=1", "FDSTORE=1;FDNAME=x"] {
        client::request(port, &format!("say {text}")).expect("no answer");
    }
    assert_eq!(server.ask(port).generation, Some(1));
}

#[test]
fn a_worker_can_ask_for_more_time() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(
        with_files().options(["--ready=notify", "--start-timeout=0.3"]),
        "--notify",
    );
    let (server, _) = serving(setup);
    let mut client = restart(&server);
    // Without more time it fails, and every further try waits at the gate again.
    assert_eq!(client.wait(), 1, "{}", client.said());
    drop(server);
    drop(gate);

    let extended = scripted(
        with_files().options(["--ready=notify", "--start-timeout=0.3"]),
        ":",
        "--say=EXTEND_TIMEOUT_USEC=60000000 --hold=hold --notify",
    );
    let hold = extended.folder().join("hold");
    mkfifo(&hold, Mode::from_bits_truncate(0o600)).expect("cannot make a FIFO");
    let owner = Uid::effective().is_root().then_some(NOBODY);
    chown(&hold, owner, None).expect("cannot give the FIFO away");
    let server = extended.port(ports::tcp()).start();
    let extension = server.wait_for("it has more time", |server| {
        let json = server.status_json()?;
        let one = &json["generations"][0];
        let time = one["fails_at"].as_f64()? - one["started_at"].as_f64()?;
        (time > 10.0).then_some(time)
    });
    assert!(extension < 61.0, "{extension}");
    drop(OpenOptions::new().write(true).open(&hold));
    accepted(&server);
}

#[test]
fn a_worker_that_stops_by_itself_is_replaced_while_it_drains() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(scripted(
        with_files().option("--ready=notify"),
        ":",
        "--notify",
    ));
    let first = server.ask(port);
    client::request(port, "say STOPPING=1").expect("no answer");
    server.wait_for_log("says that it is stopping, though nobody told it to");
    server.wait_for_service(2);
    assert!(proc::alive(Pid::from_raw(first.pid)));
    assert_eq!(server.count_in_log("died unexpectedly"), 0);
}

#[test]
fn nobody_else_can_say_that_a_generation_is_ready() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(with_files().option("--ready=notify"), "--notify");
    let (server, port) = serving(setup);
    let mut client = restart(&server);
    let socket = wait_for_socket(&server, 2);
    // The worker of the old generation, which has the same uid.
    let request = format!("say-to {socket} READY=1");
    client::request(port, &request).expect("no answer");
    let log = server.wait_for_log("ignoring a notification to generation 2: it came from pid ");
    assert!(!log.contains("new worker is now running"), "{log}");
    // Too long, and very many: each is read and dropped.
    let long = format!("say-to {socket} READY=1;STATUS={}", "x".repeat(5000));
    client::request(port, &long).expect("no answer");
    for _ in 0..200 {
        client::request(port, &request).expect("no answer");
    }
    assert!(client.is_waiting());
    assert_eq!(server.ask(port).generation, Some(1));
    // Said once, however often it happens.
    assert_eq!(server.count_in_log("ignoring a notification"), 1);
    gate.open();
    assert_eq!(client.wait(), 0, "{}", client.said());
}

#[test]
fn a_foreign_user_cannot_say_that_a_generation_is_ready() {
    if !is_ours() || !needs_root() {
        return;
    }
    let (setup, gate) = gated(with_files().option("--ready=notify"), "--notify");
    let (server, _) = serving(setup);
    let mut client = restart(&server);
    let socket = wait_for_socket(&server, 2);
    let root = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    root.send_to(b"READY=1", &socket).expect("cannot send");
    server.wait_for_log("ignoring a notification to generation 2: it came from uid 0");
    assert!(client.is_waiting());
    // Root can do all that; other users cannot even enter its directory.
    let directory = PathBuf::from(&socket);
    let directory = directory.parent().expect("a directory").to_owned();
    let mode = fs::metadata(&directory).expect("no directory").mode();
    assert_eq!(mode & 0o7777, 0o700);
    gate.open();
    assert_eq!(client.wait(), 0, "{}", client.said());
    let mut server = server;
    assert!(server.stop().success());
    assert!(!directory.exists());
}

/// Whoever is gone before its message is read cannot be traced.
#[test]
fn a_process_that_says_ready_and_exits_speaks_for_nobody() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(with_files().option("--ready=notify"), "--notify");
    let (server, port) = serving(setup);
    let mut client = restart(&server);
    let socket = wait_for_socket(&server, 2);
    // It waits in the queue until its sender is gone.
    proc::stop(server.pid());
    client::request(port, &format!("say-and-exit {socket} READY=1")).expect("no answer");
    server.signal(Signal::SIGCONT);
    server.wait_for_log("ignoring a notification to generation 2: it came from pid ");
    assert!(client.is_waiting());
    gate.open();
    assert_eq!(client.wait(), 0, "{}", client.said());
}

#[test]
fn a_command_that_hangs_or_floods_is_ended_with_its_group() {
    if !is_ours() {
        return;
    }
    let flood = "echo $$ >>commands; while :; do echo flood; done & sleep 600";
    let setup = scripted(with_files(), ":", "").options([
        format!("--ready=exec:{flood}"),
        "--start-timeout=0.5".to_owned(),
        "--start-limit=1".to_owned(),
    ]);
    let mut server = setup.port(ports::tcp()).start();
    let group = server.wait_for("the command runs", |server| {
        let text = fs::read_to_string(server.folder().join("commands")).ok()?;
        text.lines().next()?.parse().ok().map(Pid::from_raw)
    });
    assert_eq!(server.wait_exit().code(), Some(1));
    e2e::wait::until("its group is gone", server_log(&server), || {
        proc::group(group).is_empty().then_some(())
    });
    // It was never run twice.
    let text = fs::read_to_string(server.folder().join("commands")).expect("no file");
    assert_eq!(text.lines().count(), 1);

    let failing = scripted(with_files(), ":", "").options([
        "--ready=exec:echo not yet >&2; exit 3",
        "--start-timeout=0.5",
        "--start-limit=1",
    ]);
    let mut server = failing.port(ports::tcp()).start();
    assert_eq!(server.wait_exit().code(), Some(1));
    server.wait_for_log("the --ready command failed, exit status:768 (exit code 3): not yet");
}

fn server_log(server: &Server) -> impl Fn() -> String + '_ {
    || server.log()
}

#[test]
fn old_workers_that_drain_too_long_or_are_too_many_are_killed() {
    if !is_ours() {
        return;
    }
    let setup = with_files()
        .worker(["--graceful"])
        .option("--kill-old-timeout=0.3");
    let (server, port) = serving(setup);
    let held = client::hold(port);
    let first = server.accepted();
    assert_eq!(restart(&server).wait(), 0);
    server.wait_for_log(&format!(
        "sending KILL to workers that have not stopped in time:{}",
        first.pid
    ));
    drop(held);
    drop(server);

    let setup = with_files()
        .worker(["--graceful"])
        .option("--max-old-generations=1");
    let (server, port) = serving(setup);
    let mut held = vec![client::hold(port)];
    let first = server.accepted();
    for generation in 2..4 {
        server.signal(Signal::SIGHUP);
        server.wait_for_service(generation);
        server.wait_for_log_times(
            usize::try_from(generation).expect("small") - 1,
            "killing old workers",
        );
        if generation == 2 {
            held.push(client::hold(port));
        }
    }
    server.wait_for_log(&format!(
        "sending KILL to workers that have not stopped in time:{}",
        first.pid
    ));
}

#[test]
fn ready_commits_at_once_and_a_restart_ends_with_the_old_worker() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(
        with_files().option("--ready=notify").interval("30"),
        "--notify",
    );
    let (server, _) = serving(setup);
    let mut client = restart(&server);
    wait_for_start(&server, 2);
    let began = since_1970();
    gate.open();
    assert_eq!(client.wait(), 0, "{}", client.said());
    let returned = since_1970();
    let json = server.status_json().expect("no status");
    let verdict = json["verdicts"].as_array().and_then(|all| all.last());
    let verdict = verdict.expect("no verdict");
    // A moment of each, and much more on a busy machine; the benchmark measures it.
    let committed = verdict["at"].as_f64().expect("a time");
    assert!((0.0..5.0).contains(&(committed - began + 0.001)), "{json}");
    let drained = verdict["durations"]["drained"].as_f64();
    let gone = committed + drained.expect("no duration");
    assert!((0.0..5.0).contains(&(returned - gone + 0.001)), "{json}");
}

/// In seconds.
fn since_1970() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a clock that goes right").as_secs_f64()
}

#[test]
fn options_of_readiness_that_cannot_be_are_one_line() {
    if !is_ours() {
        return;
    }
    let kinds = "the kinds are interval, notify, fd:N, exec:COMMAND, accept and http:PATH";
    for (options, line) in [
        (
            &["--ready=soon"][..],
            &*format!("cannot use --ready=soon: {kinds}"),
        ),
        (
            &["--ready=notify:x"],
            &*format!("cannot use --ready=notify:x: {kinds}"),
        ),
        (
            &["--ready=fd:2"],
            "cannot use --ready=fd:2: a descriptor for it is a number from 3 to 1048575",
        ),
        (
            &["--ready=exec:"],
            "cannot use --ready=exec:: a command is missing after exec:",
        ),
        (
            &["--ready=http:healthz"],
            "cannot use --ready=http:healthz: a path begins with a slash and has no blanks",
        ),
        (
            &["--ready=http:/a b"],
            "cannot use --ready='http:/a b': a path begins with a slash and has no blanks",
        ),
        (
            &["--ready=http:/", "--ready-status=600"],
            "cannot use --ready-status=600: it takes a status from 100 to 599 or a range such as 200-399",
        ),
        (
            &["--ready=http:/", "--ready-status=399-200"],
            "cannot use --ready-status=399-200: it takes a status from 100 to 599 or a range such as 200-399",
        ),
        (
            &["--ready-status=200"],
            "cannot use --ready-status: it needs --ready=http:PATH as well",
        ),
        (
            &["--ready=notify", "--probe=tcp"],
            "cannot use --probe: it needs --ready=accept, --ready=http:PATH or --ready=exec:COMMAND as well",
        ),
        (
            &["--ready=accept", "--probe=udp"],
            "cannot use --probe=udp: the probes are tcp and unix",
        ),
        (
            &["--start-timeout=5"],
            "cannot use --start-timeout: it needs --check, or a --ready other than interval, as well",
        ),
        (
            &["--ready=notify", "--start-timeout=0"],
            "cannot use --start-timeout=0: no server is ready in no time",
        ),
        (
            &["--ready=fd:5", "--port=8080=5"],
            "cannot use --ready=fd:5: --port=8080=5 has that descriptor",
        ),
        (
            &["--ready=fd:3", "--port=8080", "--fd-env=systemd"],
            "cannot use --ready=fd:3: --fd-env=systemd numbers the listeners from 3 without gaps: the first free one is 4",
        ),
    ] {
        let setup = Server::setup().options(options.iter().copied());
        assert_usage(setup, &[&format!("start_server: {line}")]);
    }
}

/// The children of a server that hangs have its listeners, and do not hear that it is over.
#[test]
fn what_a_worker_has_started_that_must_be_killed_is_killed_with_it() {
    if !is_ours() {
        return;
    }
    let before = "[ $SERVER_STARTER_GENERATION = 1 ] || { trap : TERM; sh -c 'trap : TERM; echo $$ >child; \
                  while :; do sleep 600; done' & while :; do wait; done; }";
    let setup = scripted(
        with_files().options([
            "--ready=notify",
            "--start-timeout=0.5",
            "--stop-timeout=0.5",
            "--start-limit=1",
        ]),
        before,
        "--notify",
    );
    let (server, port) = serving(setup);
    let mut client = restart(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    let child = server.wait_for("its child is known", |server| {
        let text = fs::read_to_string(server.folder().join("child")).ok()?;
        text.trim().parse().ok().map(Pid::from_raw)
    });
    server.wait_until("its child is gone", |_| !proc::alive(child));
    server.wait_for_log("has left processes behind, sending KILL to them");
    assert_eq!(server.ask(port).generation, Some(1));
}
