//! `--log-format=json`: each line of the log is an object that says who wrote it, wherever the log goes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use e2e::client::{Flow, burst};
use e2e::{Server, Setup, client, ports, programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::bad_input::assert_usage;
use crate::capture::{numbers, read};
use crate::commands::run;
use crate::guardian::{guarded, strike};
use crate::many_workers::serving;
use crate::readiness::{scripted, with_files};
use crate::syslog::Daemon;
use crate::upgrade::{is_ours, serving as serving_upgradable, upgraded};

const JSON: &str = "--log-format=json";

/// The keys of an object, in their order.
const KEYS: [&str; 9] = [
    "time",
    "severity",
    "stream",
    "generation",
    "pid",
    "worker",
    "message",
    "hint",
    "continued",
];

/// The objects of a log: each line must be one, with keys in their order and no others.
#[track_caller]
fn objects(text: &str) -> Vec<Value> {
    assert!(text.ends_with('\n'), "the last line is cut: {text}");
    let mut last = String::new();
    text.lines()
        .map(|line| {
            let value: Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?} in {text}"));
            let keys = value.as_object().expect("an object").keys();
            assert!(
                keys.clone().all(|key| KEYS.contains(&key.as_str())),
                "{line}"
            );
            let places: Vec<_> = KEYS
                .iter()
                .filter(|key| value.get(*key).is_some())
                .map(|key| line.find(&format!("\"{key}\":")))
                .collect();
            assert!(places.is_sorted(), "{line}");
            let time = value["time"].as_str().expect("a time").to_owned();
            assert_eq!(time.len(), "2026-11-02T09:43:06.023456Z".len(), "{line}");
            assert!(
                time.ends_with('Z') && *last <= *time,
                "{last} before {line}"
            );
            last = time;
            value
        })
        .collect()
}

fn message(object: &Value) -> &str {
    object["message"].as_str().expect("a message")
}

/// The one with this message.
#[track_caller]
fn one<'a>(objects: &'a [Value], text: &str) -> &'a Value {
    let found: Vec<_> = objects.iter().filter(|one| message(one) == text).collect();
    let [one] = found[..] else {
        panic!("{} times {text:?} in {objects:#?}", found.len());
    };
    one
}

/// Generation, slot and pid.
fn place(object: &Value) -> (Option<u64>, Option<u64>, Option<i64>) {
    let number = |key: &str| object[key].as_u64();
    (
        number("generation"),
        number("worker"),
        object["pid"].as_i64(),
    )
}

/// Where the log of a server goes, by its option.
fn text_of(server: &Server, option: Option<&str>) -> String {
    match option {
        Some(_) => read(&server.folder().join("out")),
        None => server.log(),
    }
}

/// Each worker tells first of which generation it is, its number and its pid; it fails if there is a file `bad`.
fn telling(setup: Setup) -> Setup {
    let before =
        "echo told $SERVER_STARTER_GENERATION $SERVER_STARTER_WORKER $$; [ ! -e bad ] || exit 7";
    scripted(setup, before, "")
}

/// What the workers have told: generation and slot by pid. The keys must say the same.
#[track_caller]
fn told(objects: &[Value]) -> BTreeMap<i64, (u64, u64)> {
    let mut places = BTreeMap::new();
    for object in objects {
        let Some(rest) = message(object).strip_prefix("told ") else {
            continue;
        };
        let numbers: Vec<u64> = rest.split(' ').map(|word| word.parse().unwrap()).collect();
        let pid = i64::try_from(numbers[2]).unwrap();
        let own = (Some(numbers[0]), Some(numbers[1]), Some(pid));
        assert_eq!(place(object), own, "{object}");
        assert_eq!(object["stream"], "stdout", "{object}");
        assert_eq!(object["severity"], "info", "{object}");
        places.insert(pid, (numbers[0], numbers[1]));
    }
    places
}

/// Our lines about one worker say which one it is.
#[track_caller]
fn assert_ours(objects: &[Value], server: &Server, places: &BTreeMap<i64, (u64, u64)>) {
    let of = |pid: i64| {
        let (generation, slot) = places[&pid];
        (Some(generation), Some(slot), Some(pid))
    };
    for pid in places.keys() {
        let (generation, _) = places[pid];
        let started = one(objects, &format!("starting new worker {pid}"));
        assert_eq!(place(started), of(*pid), "{started}");
        assert_eq!(
            (&started["stream"], &started["severity"]),
            (&"start_server".into(), &"info".into())
        );
        let (text, severity) = match generation {
            1 => (format!("old worker {pid} died, status:0"), "info"),
            2 => (format!("worker {pid} died, status:0"), "info"),
            _ => continue,
        };
        let ended = one(objects, &text);
        assert_eq!(place(ended), of(*pid), "{ended}");
        assert_eq!(ended["severity"], severity, "{ended}");
    }
    let own = i64::from(server.pid().as_raw());
    let starting = one(
        objects,
        &format!("start_server (pid:{own}) starting now..."),
    );
    assert_eq!(place(starting), (None, None, Some(own)));
    let is_of_third = |object: &&Value| {
        message(object).ends_with("seems to have failed to start, exit status:1792")
    };
    let failed = objects.iter().find(is_of_third).expect("a failed start");
    let pid = failed["pid"].as_i64().expect("a pid");
    assert!(message(failed).contains(&pid.to_string()), "{failed}");
    assert_eq!(place(failed), of(pid), "{failed}");
    assert_eq!((places[&pid].0, &failed["severity"]), (3, &"err".into()));
    let starts = |text: &str| {
        let found = objects.iter().find(|one| message(one).starts_with(text));
        place(found.unwrap_or_else(|| panic!("no {text:?}")))
    };
    assert_eq!(
        starts("start_server: generation 2 serves"),
        (Some(2), None, None)
    );
    let signalled = starts("new worker is now running, sending TERM to old workers:");
    assert_eq!(signalled, (Some(1), None, None));
    assert_eq!(starts("killing old workers"), (Some(1), None, None));
    assert_eq!(
        starts("received HUP, spawning a new worker"),
        (None, None, None)
    );
    assert_eq!(message(objects.last().unwrap()), "exiting");
}

#[test]
fn every_line_says_who_wrote_it() {
    if !is_ours() {
        return;
    }
    for option in [
        None,
        Some("--log-file=out"),
        Some("--log-file=| exec cat >>out"),
    ] {
        let setup = with_files()
            .options([JSON, "--start-limit=1"])
            .options(option);
        let (mut server, port) = serving(telling(setup), 2);
        client::request(port, "raw stderr ff6122e282").expect("no answer");
        // Half a character more, and a control character.
        client::request(port, "raw stderr 1b0a").expect("no answer");
        burst(port, 1, 20_000, "stdout");
        let mut restart = run(&server, &["--restart", "--pid-file=pid"]);
        assert_eq!(restart.wait(), 0, "{}", restart.said());
        fs::write(server.folder().join("bad"), "").expect("cannot make a file");
        let mut restart = run(&server, &["--restart", "--pid-file=pid"]);
        assert_eq!(restart.wait(), 1, "{}", restart.said());
        assert!(server.stop().success());
        wait::until(
            "the last line is there",
            || text_of(&server, option),
            || {
                text_of(&server, option)
                    .contains("\"exiting\"")
                    .then_some(())
            },
        );
        let mut objects = objects(&text_of(&server, option));
        if option.is_some() {
            // What was said before there was a log.
            objects.splice(0..0, self::objects(&server.log()));
        }
        let places = told(&objects);
        for expected in [(1, 0), (1, 1), (2, 0), (2, 1)] {
            let times = places.values().filter(|one| **one == expected).count();
            assert_eq!(times, 1, "{expected:?} in {places:?}");
        }
        assert_ours(&objects, &server, &places);
        let bytes: Vec<_> = objects
            .iter()
            .filter(|one| one["stream"] == "stderr" && place(one).0 == Some(1))
            .collect();
        // Two workers: each may have written its part.
        let all: String = bytes.iter().map(|one| message(one)).collect();
        let both = ["\u{fffd}a\"\u{fffd}\u{1b}", "\u{1b}\u{fffd}a\"\u{fffd}"];
        assert!(both.contains(&all.as_str()), "{bytes:#?}");
        assert_eq!(bytes[0]["severity"], "warning");
        let pieces: Vec<_> = objects
            .iter()
            .filter(|one| message(one).contains("...."))
            .collect();
        let whole: String = pieces.iter().map(|one| message(one)).collect();
        assert_eq!(numbers(&whole, 20_000, false)[&1], [1]);
        let (last, others) = pieces.split_last().unwrap();
        assert!(others.len() > 1 && others.iter().all(|one| one["continued"] == true));
        assert_eq!(last.get("continued"), None);
    }
}

#[test]
fn an_upgrade_loses_no_line_and_keeps_the_format() {
    if !is_ours() {
        return;
    }
    let command = |setup: &Setup| {
        let out = setup.folder().join("out");
        let sink = programs::worker();
        format!(
            "--log-file=| exec {} --sink={}",
            sink.display(),
            out.display()
        )
    };
    for is_command in [true, false] {
        let setup = with_files().option(JSON).worker(["--graceful"]);
        let option = is_command.then(|| command(&setup));
        let (mut server, programs, port) = serving_upgradable(setup.options(option.clone()));
        client::request(port, "raw stdout 68616c66e282").expect("no answer");
        let flow = Flow::start(port, 80, "stderr", 50);
        for number in 0..4 {
            programs.replace_by_version(number % 2 == 0);
            upgraded(&server);
        }
        client::request(port, "raw stdout ac0a").expect("no answer");
        let count = flow.end().count;
        assert!(server.stop().success());
        wait::until(
            "the last line is there",
            || text_of(&server, option.as_deref()),
            || {
                text_of(&server, option.as_deref())
                    .contains("\"exiting\"")
                    .then_some(())
            },
        );
        let objects = objects(&text_of(&server, option.as_deref()));
        let of_worker = objects.iter().filter(|one| one["stream"] == "stderr");
        let text: String = of_worker.map(|one| format!("{}\n", message(one))).collect();
        let found = numbers(&text, 80, false);
        assert!(
            found[&1].iter().copied().eq(1..=count),
            "{} of {count}",
            found[&1].len()
        );
        let pid = client_pid(&objects);
        assert_eq!(
            place(one(&objects, "half\u{20ac}")),
            (Some(1), Some(0), Some(pid))
        );
        // It was started by another program.
        let ended = one(&objects, &format!("worker {pid} died, status:0"));
        assert_eq!(place(ended), (Some(1), Some(0), Some(pid)));
        let upgrades = objects
            .iter()
            .filter(|one| message(one).contains("upgraded in place"));
        assert_eq!(upgrades.count(), 4);
    }
}

/// The pid of the only worker.
fn client_pid(objects: &[Value]) -> i64 {
    let started = objects
        .iter()
        .find(|one| message(one).starts_with("starting new worker"));
    started
        .and_then(|one| one["pid"].as_i64())
        .expect("a worker")
}

#[test]
fn under_a_guardian_the_file_is_reopened_and_no_supervisor_writes_text() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let mut server = guarded()
        .options([JSON, "--log-file=out"])
        .port(port)
        .start();
    server.wait_until_accepted();
    let (out, old) = (server.folder().join("out"), server.folder().join("old"));
    client::write(port, "stderr", "before");
    let count = |text: &str| read(&out).matches(text).count();
    strike(&server);
    server.wait_until("another one has taken over", |_| {
        count("a new one goes on") == 1
    });
    client::write(port, "stderr", "between");
    fs::rename(&out, &old).expect("there is no log");
    let mut reopen = run(&server, &["--reopen", "--pid-file=pid"]);
    assert_eq!(reopen.wait(), 0, "{}", reopen.said());
    client::write(port, "stdout", "after");
    server.wait_until("the line is there", |_| count("\"after\"") == 1);
    strike(&server);
    server.wait_until("another one has taken over", |_| {
        count("a new one goes on") == 1
    });
    assert!(server.stop().success());
    let (old, new) = (objects(&read(&old)), objects(&read(&out)));
    let of_worker = |object: &Value| {
        let (generation, worker, _) = place(object);
        (
            object["stream"].as_str().map(str::to_owned),
            generation,
            worker,
        )
    };
    for text in ["before", "between"] {
        let expected = (Some("stderr".to_owned()), Some(1), Some(0));
        assert_eq!(of_worker(one(&old, text)), expected);
    }
    assert_eq!(of_worker(one(&new, "after")).0.as_deref(), Some("stdout"));
    assert_eq!(message(new.last().unwrap()), "exiting");
    // Nothing has gone past it.
    let rest = server.log();
    assert!(rest.is_empty() || !objects(&rest).is_empty(), "{rest}");
}

#[test]
fn what_nobody_reads_holds_up_workers_and_nothing_else() {
    if !is_ours() {
        return;
    }
    let (mut reader, writer) = std::io::pipe().expect("cannot make a pipe");
    let port = ports::tcp();
    let mut server = with_files()
        .option(JSON)
        .port(port)
        .worker(["--graceful"])
        .output(File::from(OwnedFd::from(writer)))
        .start();
    let first = server.accepted();
    let flow = Flow::start(port, 1000, "stdout", 0);
    server.wait_until("the worker waits", |_| is_held_up(first.pid));
    let mut status = run(&server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 0, "{}", status.said());
    let text = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    let count = flow.end().count;
    assert!(server.stop().success());
    let text = text.join().expect("it panicked").expect("cannot read");
    let objects = objects(&text);
    let of_worker = objects.iter().filter(|one| one["stream"] == "stdout");
    let text: String = of_worker.map(|one| format!("{}\n", message(one))).collect();
    let found = numbers(&text, 1000, false);
    assert!(
        found[&1].iter().copied().eq(1..=count),
        "{} of {count}",
        found[&1].len()
    );
}

/// Whether what was writing all the time has stopped for a while.
fn is_held_up(pid: Pid) -> bool {
    let written = || {
        let io = read(Path::new(&format!("/proc/{pid}/io")));
        let count = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        count.and_then(|count| count.parse::<u64>().ok())
    };
    let before = written();
    wait::let_pass(Duration::from_millis(50));
    before.is_some_and(|count| count > 1 << 20) && written() == before
}

#[test]
fn a_reader_that_is_gone_ends_neither_the_workers_nor_the_service() {
    if !is_ours() {
        return;
    }
    let (reader, writer) = std::io::pipe().expect("cannot make a pipe");
    let port = ports::tcp();
    let mut server = with_files()
        .option(JSON)
        .port(port)
        .worker(["--graceful"])
        .output(File::from(OwnedFd::from(writer)))
        .start();
    let first = server.accepted();
    drop(reader);
    // More than is queued.
    burst(port, 40_000, 100, "stdout");
    assert_eq!(client::ask(port).pid, first.pid.as_raw());
    kill(first.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_service(2);
    assert!(server.stop().success());
}

#[test]
fn syslog_gets_the_object_as_its_message() {
    if !is_ours() {
        return;
    }
    let setup = with_files().worker(["--graceful"]);
    let address = setup.folder().join("syslog");
    let daemon = Daemon::at(&address);
    let port = ports::tcp();
    let mut server = setup
        .options([JSON, "--syslog=local3", "--syslog-stream=stdout"])
        .option(format!("--syslog-address={}", address.display()))
        .port(port)
        .start();
    let first = server.accepted();
    client::write(port, "stdout", "to syslog");
    client::write(port, "stderr", "past it");
    server.wait_for_log("past it");
    assert!(server.stop().success());
    wait::until(
        "its last record",
        || format!("{:?}", daemon.messages()),
        || {
            daemon.read();
            daemon
                .messages()
                .iter()
                .any(|one| one.contains("\"exiting\""))
                .then_some(())
        },
    );
    let messages: String = daemon
        .messages()
        .iter()
        .map(|one| format!("{one}\n"))
        .collect();
    let own = (Some(1), Some(0), Some(first.pid.as_raw().into()));
    let records = objects(&messages);
    assert_eq!(place(one(&records, "to syslog")), own);
    assert!(!messages.contains("past it"), "{messages}");
    // What goes nowhere else is with our own lines.
    let rest = objects(&server.log());
    assert_eq!(place(one(&rest, "past it")), own);
    assert!(!server.log().contains("to syslog"), "{}", server.log());
    one(&rest, "exiting");
}

#[test]
fn what_fails_after_the_command_line_is_an_object_with_its_hint() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).expect("cannot bind");
    for setup in [
        Server::setup().option(JSON).port(port),
        // Only an error of the start, on standard error too.
        Server::setup()
            .options([JSON, "--log-file=out"])
            .program(["./missing"]),
        // The launched process shows it.
        Server::setup()
            .options([JSON, "--log-file=out", "--daemonize"])
            .program(["./missing"]),
    ] {
        let finished = setup.run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        let objects = objects(&finished.log);
        let is_error = |one: &&Value| one["severity"] == "err" && one["stream"] == "start_server";
        let error = objects.iter().find(is_error).expect("an error");
        assert!(
            message(error).starts_with("start_server: cannot "),
            "{error}"
        );
        let hint = objects.iter().find_map(|one| one["hint"].as_str());
        let is_of_port = message(error).contains("listen on");
        assert_eq!(hint.is_some(), is_of_port, "{objects:#?}");
    }
    drop(taken);
}

#[test]
fn a_format_that_there_is_not_is_wrong_usage_for_a_command_too() {
    if !is_ours() {
        return;
    }
    let line = "start_server: cannot use --log-format=xml: the formats are text and json";
    assert_usage(Server::setup().option("--log-format=xml"), &[line]);
    let command = || {
        Server::setup()
            .options(["--restart", "--pid-file=pid"])
            .without_program()
    };
    assert_usage(command().option("--log-format=xml"), &[line]);
    let line = "start_server: cannot use --log-timestamps: --log-format=json writes the time of each line anyway";
    let setup = Server::setup().options([JSON, "--log-file=out", "--log-timestamps"]);
    assert_usage(setup, &[line]);
    let line = "start_server: cannot use --self-test: --log-format is given as well";
    let setup = Server::setup()
        .without_interval()
        .options(["--self-test", JSON])
        .without_program();
    assert_usage(setup, &[line]);
}

#[test]
fn a_dry_run_and_the_status_say_the_format() {
    if !is_ours() {
        return;
    }
    let finished = Server::setup().options(["--check-config", JSON]).run();
    let line = "writes each line of the log as a JSON object";
    assert!(finished.log.contains(line), "{}", finished.log);
    for (option, expected) in [(Some(JSON), "json"), (None, "text")] {
        let server = with_files().options(option).port(ports::tcp()).start();
        server.accepted();
        let json = server.status_json().expect("no FILE.json");
        assert_eq!(json["options"]["log_format"], expected);
    }
}
