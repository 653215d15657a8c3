//! Output that start_server reads itself, and what becomes of it: time stamps, rotations, log commands that are killed,
//! last words, and streams that go to different places.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use e2e::client::{Flow, burst, write};
use e2e::skip::original_differs;
use e2e::start::InTurn;
use e2e::wait::let_pass;
use e2e::{Server, Setup, client, ports, proc, programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn is_ours() -> bool {
    !original_differs("it reads no output")
}

fn setup() -> (Setup, u16) {
    let port = ports::tcp();
    let setup = Server::setup().status_file().pid_file().port(port);
    (setup.worker(["--graceful"]), port)
}

pub fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The numbers of the lines of each generation in a text, in its order; every line must be whole.
#[track_caller]
pub fn numbers(text: &str, length: usize, stamped: bool) -> BTreeMap<u32, Vec<usize>> {
    let mut found: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains("....")) {
        let plain = match stamped {
            true => line.split_once("] ").expect("no stamp").1,
            false => line,
        };
        assert_eq!(plain.len() + 1, length, "{line:?}");
        let mut words = plain.split(' ');
        let mut number = || words.next().and_then(|word| word.parse::<usize>().ok());
        let (generation, number) = number().zip(number()).expect("no numbers");
        assert!(
            words
                .next()
                .is_some_and(|rest| rest.bytes().all(|byte| byte == b'.'))
        );
        let generation = u32::try_from(generation).expect("a small number");
        found.entry(generation).or_default().push(number);
    }
    found
}

fn reopen(server: &Server, more: &[&str]) -> Output {
    let mut client = server.client(["--reopen", "--pid-file=pid"]);
    client
        .args(more)
        .output_in_turn()
        .expect("cannot run the client")
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

// A log file.

#[test]
fn every_line_has_time_generation_and_pid_before_it() {
    if !is_ours() {
        return;
    }
    let (setup, port) = setup();
    let mut server = setup
        .env("TZ", "ODD+3:30")
        .options(["--log-file=server.log", "--log-timestamps"])
        .start();
    let first = server.accepted().pid;
    write(port, "stdout", "on standard output");
    write(port, "stderr", "on standard error");
    client::request(port, "raw stdout 611b5b326a0a62").expect("no answer");
    let second = server.restart();
    write(port, "stdout", "of the second");
    server.wait_until("the end of the first is noticed", |server| {
        read(&server.folder().join("server.log")).contains(&format!("old worker {first} died"))
    });
    assert!(server.stop().success());
    let text = read(&server.folder().join("server.log"));
    let mut lines = Vec::new();
    let mut last = String::new();
    for line in text.lines() {
        let (time, rest) = line.split_once(" [").expect("no stamp");
        assert_eq!(time.len(), "2026-11-22T18:43:06.123-03:30".len(), "{line}");
        assert!(time.ends_with("-03:30"), "{line}");
        assert!(*last <= *time, "{text}");
        last = time.to_owned();
        let (origin, text) = rest.split_once("] ").expect("no end of the stamp");
        lines.push((origin.to_owned(), text.to_owned()));
    }
    let of =
        |generation: &str, pid: Pid, text: &str| (format!("{generation}:{pid}"), text.to_owned());
    for expected in [
        of("1", first, "on standard output"),
        of("1", first, "on standard error"),
        of("1", first, r"a\x1B[2j"),
        of("1", first, "b"),
        of("2", second.pid, "of the second"),
        of("-", server.pid(), "received HUP, spawning a new worker"),
        of(
            "-",
            server.pid(),
            &format!("old worker {first} died, status:0"),
        ),
    ] {
        let times = lines.iter().filter(|line| **line == expected).count();
        assert_eq!(times, 1, "{expected:?}\n{text}");
    }
    // The line without end comes before the notice of the end.
    let place = |text: &str| lines.iter().position(|line| line.1 == text);
    assert!(place("b") < place(&format!("old worker {first} died, status:0")));
    assert_eq!(lines.last(), Some(&of("-", server.pid(), "exiting")));
}

/// Rotates again and again while two generations write; the texts of all files, oldest first.
fn rotate(options: &[&str], each: impl Fn(&Server, &Path)) -> (BTreeMap<u32, usize>, Vec<String>) {
    let (setup, port) = setup();
    let server = setup.options(options.iter().copied()).start();
    server.accepted();
    let mut flows = vec![
        (1, Flow::start(port, 80, "stdout", 50)),
        (1, Flow::start(port, 80, "stderr", 50)),
    ];
    server.signal(Signal::SIGHUP);
    server.wait_for_service(2);
    server.wait_until("generation 1 drains", |server| {
        let drains = |entry: &e2e::journal::Entry| {
            entry.generation == 1 && entry.happened == e2e::journal::Happened::Drains
        };
        server.journal().iter().any(drains)
    });
    flows.push((2, Flow::start(port, 80, "stdout", 50)));
    let path = server.folder().join("server.log");
    let rotated = |number: usize| server.folder().join(format!("server.log.{number}"));
    for number in 1..=20 {
        fs::rename(&path, rotated(number)).expect("cannot rotate");
        let output = reopen(&server, &["--timeout=20"]);
        assert_eq!(output.status.code(), Some(0), "{}", error_of(&output));
        each(&server, &rotated(number));
        let seen = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        server.wait_until("the new file is written to", |_| {
            fs::metadata(&path).is_ok_and(|metadata| metadata.len() > seen + 2000)
                || options.len() == 1
        });
    }
    let mut written = BTreeMap::new();
    for (generation, flow) in flows {
        *written.entry(generation).or_default() += flow.end().count;
    }
    server.wait_for_generations(&[2]);
    let all: usize = written.values().sum();
    let texts = || {
        let files = (1..=20).map(rotated).chain([path.clone()]);
        files.map(|file| read(&file)).collect::<Vec<String>>()
    };
    let lines = || texts().concat().matches("....\n").count();
    wait::until(
        "the last line is written",
        || {
            let state = fs::read_to_string(format!("/proc/{}/status", server.pid()));
            let last = texts().pop().unwrap_or_default();
            let last: String = last.lines().rev().take(10).collect();
            format!("{} of {all}; {last}\n{state:?}", lines())
        },
        || (lines() >= all && texts().concat().contains("old worker")).then_some(()),
    );
    let texts = texts();
    (written, texts)
}

/// Each stream of lines is there as a whole and in order, where a generation has written several with the same numbers.
#[track_caller]
fn assert_whole(written: &BTreeMap<u32, usize>, texts: &[String], stamped: bool) {
    let found = numbers(&texts.concat(), 80, stamped);
    let counts: BTreeMap<u32, usize> = found.iter().map(|(key, all)| (*key, all.len())).collect();
    assert_eq!(&counts, written);
    for (generation, mut all) in found {
        if generation == 2 {
            assert!(
                all.iter().copied().eq(1..=all.len()),
                "lines of 2 are not in order"
            );
        }
        all.sort_unstable();
        let most = if generation == 1 { 2 } else { 1 };
        let highest = all.last().copied().unwrap_or(0);
        for number in 1..=highest {
            let times = all.partition_point(|one| *one <= number)
                - all.partition_point(|one| *one < number);
            assert!(
                (1..=most).contains(&times),
                "{number} is there {times} times"
            );
        }
    }
}

#[test]
fn rotations_with_timestamps_lose_no_line_and_leave_the_old_file_alone() {
    if !is_ours() {
        return;
    }
    let lengths = std::cell::RefCell::new(Vec::new());
    let (written, texts) = rotate(
        &["--log-file=server.log", "--log-timestamps"],
        |_, rotated| {
            // From here on nothing may be written to it.
            lengths.borrow_mut().push(read(rotated).len());
        },
    );
    assert_whole(&written, &texts, true);
    let now: Vec<usize> = texts.iter().map(String::len).take(20).collect();
    assert_eq!(lengths.into_inner(), now);
}

#[test]
fn rotations_without_timestamps_lose_no_line_either() {
    if !is_ours() {
        return;
    }
    let (written, texts) = rotate(&["--log-file=server.log"], |_, _| {});
    assert_whole(&written, &texts, false);
}

#[test]
fn reopen_tells_by_its_exit_code_what_became_of_it() {
    if !is_ours() {
        return;
    }
    let (setup, _) = setup();
    let folder = setup.folder().join("logs");
    fs::create_dir(&folder).expect("cannot make a directory");
    let open = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("cannot open it");
    };
    open(&folder);
    let path = folder.join("server.log");
    let mut server = setup
        .option(format!("--log-file={}", path.display()))
        .start();
    server.accepted();
    let pid = server.pid();
    // Other options and a program are ignored.
    for more in [
        &[][..],
        &["--timeout=5"],
        &["--port=80", "--log-file=x", "--", "prog"],
    ] {
        fs::rename(&path, folder.join("old")).expect("cannot rotate");
        let output = reopen(&server, more);
        assert_eq!(output.status.code(), Some(0), "{}", error_of(&output));
        assert!(path.exists(), "it returned too early");
        let sent = format!("sent USR1 to start_server (pid:{pid}), waiting for the log file...\n");
        let errors = error_of(&output);
        let last = errors.strip_prefix(&sent).unwrap_or_default();
        let begin = format!("reopened {} (", path.display());
        assert!(last.starts_with(&begin), "{errors}");
        assert!(last.ends_with(" s)\n"), "{errors}");
    }
    fs::rename(&path, folder.join("old")).expect("cannot rotate");
    fs::create_dir(&path).expect("cannot make a directory");
    let output = reopen(&server, &[]);
    assert_eq!(output.status.code(), Some(1));
    let line = format!(
        "start_server: cannot reopen {}, the log file of pid {pid}: Is a directory\n",
        path.display()
    );
    assert!(error_of(&output).ends_with(&line), "{}", error_of(&output));
    fs::remove_dir(&path).expect("cannot remove the directory");
    let output = reopen(&server, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", error_of(&output));

    proc::stop(pid);
    let output = reopen(&server, &["--timeout=0.2"]);
    assert_eq!(output.status.code(), Some(4));
    let line = format!(
        "start_server: cannot wait longer for the log file of pid {pid}: --timeout expired\n\
         hint: pid {pid} is stopped: `kill -CONT {pid}` resumes it\n"
    );
    assert!(error_of(&output).ends_with(&line), "{}", error_of(&output));
    kill(pid, Signal::SIGCONT).expect("cannot continue the server");
    for (words, line) in [
        (
            &["--reopen"][..],
            "cannot use --reopen: it needs --pid-file as well",
        ),
        (
            &["--reopen", "--pid-file=pid", "--timeout=x"],
            "cannot use --timeout=x: ",
        ),
        (&["--reopen", "--pid-file=pid", "--stop"], "cannot use"),
    ] {
        let output = server
            .client(words.iter().copied())
            .output_in_turn()
            .expect("cannot run it");
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let error = error_of(&output);
        assert!(
            error.starts_with(&format!("start_server: {line}")),
            "{error}"
        );
        assert_eq!(
            error
                .lines()
                .filter(|line| !line.starts_with("hint: "))
                .count(),
            1
        );
    }
    assert!(server.stop().success());
    let output = reopen(&server, &[]);
    assert_eq!(output.status.code(), Some(3), "{}", error_of(&output));
}

#[test]
fn a_fifo_in_the_place_of_the_log_file_stops_nobody() {
    if !is_ours() {
        return;
    }
    let (setup, port) = setup();
    let path = setup.folder().join("server.log");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::unistd::mkfifo(&path, mode).expect("cannot make a fifo");
    let open = || {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("cannot open it");
    };
    open();
    let cause = "it is a fifo or a socket";
    let (refused, _) = self::setup();
    let finished = refused
        .option(format!("--log-file={}", path.display()))
        .run();
    assert_eq!(finished.status.code(), Some(1));
    let line = format!(
        "cannot open --log-file={}: {cause}\n\
         hint: to pipe the log to a command, use --log-file='| COMMAND'\n",
        path.display()
    );
    assert!(finished.log.ends_with(&line), "{}", finished.log);

    fs::remove_file(&path).expect("cannot remove the fifo");
    let server = setup.option("--log-file=server.log").start();
    server.accepted();
    let old = server.folder().join("old");
    fs::rename(&path, &old).expect("cannot rotate");
    for with_reader in [false, true] {
        drop(fs::remove_file(&path));
        nix::unistd::mkfifo(&path, mode).expect("cannot make a fifo");
        open();
        // For both directions, so that it is a reader and does not wait.
        let reader = with_reader.then(|| {
            let mut options = fs::OpenOptions::new();
            options
                .read(true)
                .write(true)
                .open(&path)
                .expect("cannot open it")
        });
        let output = reopen(&server, &["--timeout=20"]);
        assert_eq!(output.status.code(), Some(1), "{}", error_of(&output));
        assert!(error_of(&output).contains(cause), "{}", error_of(&output));
        drop(reader);
    }
    write(port, "stderr", "still in the old one");
    assert!(read(&old).contains("still in the old one"));
}

#[test]
fn reopen_without_a_log_file_is_exit_code_1() {
    if !is_ours() {
        return;
    }
    for target in [None, Some("--log-file=| exec cat >/dev/null")] {
        let (setup, _) = setup();
        let server = setup.options(target).start();
        server.accepted();
        let output = reopen(&server, &["--timeout=20"]);
        assert_eq!(output.status.code(), Some(1), "{}", error_of(&output));
        let line = format!(
            "start_server: cannot reopen the log file of pid {}: it has no log file\n",
            server.pid()
        );
        assert!(error_of(&output).ends_with(&line), "{}", error_of(&output));
    }
}

// A log command.

/// Kills the log command again and again while a worker writes.
#[track_caller]
fn kill_log_commands(options: &[&str], stamped: bool) {
    let (setup, port) = setup();
    let folder = setup.folder().to_owned();
    // It moves what was written without reading it, so that no kill can lose anything.
    let command = format!(
        "--log-file=| exec {} --sink={}",
        programs::worker().display(),
        folder.join("kept").display()
    );
    let mut server = setup
        .option(command)
        .options(options.iter().copied())
        .start();
    let worker = server.accepted().pid;
    let flow = Flow::start(port, 80, "stderr", 0);
    let began = Instant::now();
    let mut killed = BTreeSet::new();
    while began.elapsed() < Duration::from_secs(10) {
        // Not one that is dead and was not noticed yet.
        if let Some(reader) = log_command(&server).filter(|reader| proc::alive(*reader)) {
            kill(reader, Signal::SIGKILL).expect("cannot kill the log command");
            killed.insert(reader);
        }
        let_pass(Duration::from_millis(100));
    }
    let count = flow.end().count;
    assert!(killed.len() >= 5, "only {killed:?} were killed");
    assert_eq!(server.ask(port).pid, worker.as_raw());
    assert_eq!(server.started().len(), 1, "a worker died");
    assert!(server.stop().success());
    let kept = folder.join("kept");
    wait::until(
        "the last line is kept",
        || format!("{count} lines were written"),
        || read(&kept).contains("exiting\n").then_some(()),
    );
    let text = read(&kept);
    let found = numbers(&text, 80, stamped);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1]);
    assert!(
        found[&1].iter().copied().eq(1..=count),
        "{} of {count}",
        found[&1].len()
    );
    let deaths = text
        .lines()
        .filter(|line| {
            line.ends_with("start_server: the log command died, status:9 (killed by SIGKILL); starting it again")
        })
        .count();
    assert_eq!(deaths, killed.len(), "a line of ours is missing or cut");
    // Its death is no worker's.
    assert!(
        !text.contains("died unexpectedly"),
        "it was taken for a worker"
    );
}

/// A worker writes more than a pipe holds to a log command that is stopped, and the server is told to end; then
/// `read_all` sees to it that somebody reads. Nothing is lost.
#[track_caller]
fn assert_last_lines_are_kept(read_all: impl FnOnce(Pid)) {
    const COUNT: usize = 3000;
    let (setup, port) = setup();
    let kept = setup.folder().join("kept");
    let mut server = setup
        .option("--log-file=| exec cat >>kept")
        .option("--log-timestamps")
        .start();
    server.accepted();
    wait::until(
        "the command has begun",
        || server.log(),
        || kept.exists().then_some(()),
    );
    let reader = log_command(&server).expect("no log command");
    proc::stop(reader);
    burst(port, COUNT, 100, "stderr");
    server.signal(Signal::SIGTERM);
    server.wait_until("its workers are gone", |server| server.workers().is_empty());
    read_all(reader);
    assert!(server.wait_exit().success());
    wait::until(
        "the last line is kept",
        || format!("{} bytes", read(&kept).len()),
        || read(&kept).contains("exiting\n").then_some(()),
    );
    let found = numbers(&read(&kept), 100, true);
    assert!(found[&1].iter().copied().eq(1..=COUNT));
}

/// The child that is no worker.
fn log_command(server: &Server) -> Option<Pid> {
    let workers = server.workers();
    let is_other = |pid: &Pid| !workers.iter().any(|worker| worker.pid == *pid);
    proc::children(server.pid()).into_iter().find(is_other)
}

#[test]
fn a_log_command_that_reads_late_gets_the_last_lines() {
    if !is_ours() {
        return;
    }
    assert_last_lines_are_kept(|reader| {
        // As long as a loaded machine can keep a command from running.
        let_pass(Duration::from_secs(2));
        kill(reader, Signal::SIGCONT).expect("cannot continue the log command");
    });
}

#[test]
fn a_log_command_that_dies_at_the_end_is_started_again_for_the_last_lines() {
    if !is_ours() {
        return;
    }
    assert_last_lines_are_kept(|reader| {
        kill(reader, Signal::SIGKILL).expect("cannot kill the log command");
    });
}

#[test]
fn a_log_command_that_is_killed_again_and_again_loses_no_line() {
    if !is_ours() {
        return;
    }
    kill_log_commands(&[], false);
}

#[test]
fn a_log_command_that_is_killed_again_and_again_loses_no_line_with_timestamps() {
    if !is_ours() {
        return;
    }
    kill_log_commands(&["--log-timestamps"], true);
}

#[test]
fn lines_that_we_write_and_those_of_workers_do_not_mix_in_the_pipe_of_a_log_command() {
    if !is_ours() {
        return;
    }
    const COUNT: usize = 40_000;
    let (setup, port) = setup();
    let folder = setup.folder().to_owned();
    let command = format!(
        "--log-file=| exec {} --sink={}",
        programs::worker().display(),
        folder.join("kept").display(),
    );
    // Standard output comes by us, standard error from the worker itself.
    let server = setup
        .option(command)
        .options(["--syslog", "--syslog-stream=stdout"])
        .option(format!(
            "--syslog-address={}",
            folder.join("none").display()
        ))
        .start();
    server.accepted();
    let bursts = ["stdout", "stderr"].map(|stream| {
        std::thread::spawn(move || {
            client::request(port, &format!("burst {COUNT} 80 {stream}")).expect("no answer")
        })
    });
    for burst in bursts {
        burst.join().expect("a client panicked");
    }
    let kept = folder.join("kept");
    let lines = || {
        read(&kept)
            .lines()
            .filter(|line| line.contains("...."))
            .count()
    };
    wait::until(
        "every line is there",
        || format!("{} lines are", lines()),
        || (lines() >= 2 * COUNT).then_some(()),
    );
    let found = numbers(&read(&kept), 80, false);
    assert_eq!(found[&1].len(), 2 * COUNT);
}

// Last words.

fn last_words(first: u32, last: u32) -> Vec<String> {
    (first..=last)
        .map(|number| format!("last word {number}"))
        .collect()
}

#[track_caller]
fn stderr_in(value: &serde_json::Value) -> Vec<String> {
    let lines = value["stderr"].as_array().expect("no stderr");
    let text = |line: &serde_json::Value| line.as_str().expect("no text").to_owned();
    lines.iter().map(text).collect()
}

#[test]
fn the_last_lines_of_a_worker_that_failed_are_in_the_verdict_and_told_by_restart() {
    if !is_ours() {
        return;
    }
    let stamped = ["--log-file=server.log", "--log-timestamps"];
    // The second has much to say; the others no more than can be shown.
    for (options, words, shown) in [
        (&stamped[..], 3, last_words(1, 3)),
        (&stamped[..], 20_000, last_words(19_981, 20_000)),
        (
            &["--syslog", "--syslog-address=/nonexistent/log"][..],
            20,
            last_words(1, 20),
        ),
        // Nobody reads these before they are asked for.
        (&["--log-file=server.log"][..], 3, last_words(1, 3)),
        (
            &["--log-file=server.log"],
            20_000,
            last_words(19_981, 20_000),
        ),
        // Not where nobody can.
        (&["--log-file=| cat >server.log"], 3, vec![]),
        (&[][..], 3, vec![]),
        (
            &[
                "--syslog",
                "--syslog-stream=stdout",
                "--syslog-address=/nonexistent/log",
            ][..],
            3,
            vec![],
        ),
    ] {
        let (setup, _) = setup();
        let failing = setup.folder().join("failing");
        let script = format!(
            "if [ -e {} ]; then exec {worker} --last-words={words} --exit=7; fi; exec {worker} --graceful --journal={}",
            failing.display(),
            setup.folder().join("journal").display(),
            worker = programs::worker().display(),
        );
        let server = setup
            .options(options.iter().copied())
            .interval("1")
            .program(["/bin/sh", "-c", &script])
            .start();
        server.accepted();
        fs::write(&failing, "").expect("cannot write a file");
        let mut client = server.client(["--restart", "--pid-file=pid"]);
        let output = client.output_in_turn().expect("cannot run the client");
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        let told: Vec<String> = error
            .lines()
            .filter_map(|line| line.strip_prefix("stderr: "))
            .map(str::to_owned)
            .collect();
        assert_eq!(told, shown, "{options:?}\n{error}");
        let json = server.status_json().expect("no status");
        let verdict = json["verdicts"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["result"] == "failed"))
            .expect("no verdict");
        assert_eq!(stderr_in(verdict), shown, "{options:?}");
        let departed = &json["departed"].as_array().expect("none")[0];
        assert_eq!(departed["exit_code"], 7);
        assert_eq!(stderr_in(departed), shown, "{options:?}");
    }
}

// Streams that go to different places.

/// A syslog daemon that keeps what it gets.
struct Daemon(UnixDatagram);

impl Daemon {
    fn at(path: &Path) -> Daemon {
        use std::os::unix::fs::PermissionsExt;
        let socket = UnixDatagram::bind(path).expect("cannot bind the socket");
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("cannot open it");
        socket.set_nonblocking(true).expect("cannot set up");
        Daemon(socket)
    }

    fn read(&self, into: &mut String) {
        let mut buffer = [0; 9000];
        while let Ok(length) = self.0.recv(&mut buffer) {
            into.push_str(&String::from_utf8_lossy(&buffer[..length]));
            into.push('\n');
        }
    }
}

#[test]
fn each_stream_goes_where_it_was_sent_and_nowhere_else() {
    if !is_ours() {
        return;
    }
    const STREAMS: [Option<&str>; 4] =
        [None, Some("stdout"), Some("stderr"), Some("stdout,stderr")];
    for to_syslog in STREAMS {
        for to_file in STREAMS {
            for stamps in [false, true] {
                if stamps && to_file.is_none() {
                    continue;
                }
                let (mut setup, port) = setup();
                let path = setup.folder().join("syslog");
                let daemon = Daemon::at(&path);
                if let Some(streams) = to_syslog {
                    setup = setup
                        .options(["--syslog".to_owned(), format!("--syslog-stream={streams}")])
                        .option(format!("--syslog-address={}", path.display()));
                }
                if let Some(streams) = to_file {
                    setup = setup
                        .options([
                            "--log-file=server.log".to_owned(),
                            format!("--log-stream={streams}"),
                        ])
                        .options(stamps.then_some("--log-timestamps"));
                }
                let mut server = setup.start();
                let worker = server.accepted().pid;
                write(port, "stdout", "on standard output");
                write(port, "stderr", "on standard error");
                assert!(server.stop().success());
                let mut records = String::new();
                daemon.read(&mut records);
                let file = read(&server.folder().join("server.log"));
                let inherited = server.log();
                let case = format!("{to_syslog:?} {to_file:?} {stamps}");
                for (stream, text) in [
                    ("stdout", "on standard output"),
                    ("stderr", "on standard error"),
                ] {
                    let goes_to = |streams: Option<&str>| {
                        streams.is_some_and(|streams| streams.contains(stream))
                    };
                    let (syslog, log) = (goes_to(to_syslog), goes_to(to_file));
                    let there = |place: &str| place.matches(text).count();
                    assert_eq!(there(&records), usize::from(syslog), "{case}\n{records}");
                    assert_eq!(there(&file), usize::from(log), "{case}\n{file}");
                    assert_eq!(
                        there(&inherited),
                        usize::from(!syslog && !log),
                        "{case}\n{inherited}"
                    );
                }
                // Ours are everywhere, and on standard error where there is no file.
                let ours = format!("worker {worker} died, status:0");
                assert_eq!(
                    records.contains(&ours),
                    to_syslog.is_some(),
                    "{case}\n{records}"
                );
                assert_eq!(file.contains(&ours), to_file.is_some(), "{case}\n{file}");
                assert_eq!(
                    inherited.contains(&ours),
                    to_file.is_none(),
                    "{case}\n{inherited}"
                );
            }
        }
    }
}

#[test]
fn a_listener_at_descriptor_1_or_2_takes_the_place_of_a_stream_that_is_captured() {
    if !is_ours() {
        return;
    }
    for (descriptor, left) in [(1, "stderr"), (2, "stdout")] {
        let port = ports::tcp();
        let server = Server::setup()
            .status_file()
            .option(format!("--port=127.0.0.1:{port}={descriptor}"))
            .options(["--log-file=server.log", "--log-timestamps"])
            .worker(["--graceful"])
            .start();
        server.accepted();
        let report = server.ask(port);
        assert_eq!(report.descriptor_numbers(), [0, 1, 2]);
        assert!(report.descriptors[&descriptor].starts_with("socket:"));
        write(port, left, "the other one is read");
        let path = server.folder().join("server.log");
        server.wait_until("the line is there", |_| {
            read(&path).contains("the other one is read")
        });
        server.restart();
        write(port, left, "once more");
        server.wait_until("the line is there", |_| read(&path).contains("once more"));
    }
}

#[test]
fn a_daemon_with_syslog_needs_no_log_file() {
    if !is_ours() {
        return;
    }
    let (setup, port) = setup();
    let path = setup.folder().join("syslog");
    let daemon = Daemon::at(&path);
    let mut server = setup
        .options(["--daemonize", "--syslog", "--syslog-stream=stderr"])
        .option(format!("--syslog-address={}", path.display()))
        .start();
    assert!(server.wait_exit().success());
    let pid = server.pid_file().expect("no pid");
    write(port, "stdout", "for nobody");
    write(port, "stderr", "for syslog");
    let descriptors = proc::descriptors(pid);
    for number in 0..=2 {
        assert_eq!(descriptors[&number], "/dev/null");
    }
    kill(pid, Signal::SIGTERM).expect("cannot stop the daemon");
    let records = std::cell::RefCell::new(String::new());
    wait::until(
        "the last record is there",
        || records.borrow().clone(),
        || {
            daemon.read(&mut records.borrow_mut());
            records.borrow().contains("exiting").then_some(())
        },
    );
    let records = records.into_inner();
    assert!(records.contains("gen 1: for syslog"), "{records}");
    assert!(!records.contains("for nobody"), "{records}");
    let launcher = server.log();
    assert!(
        !launcher.contains("for nobody") && !launcher.contains("exiting"),
        "{launcher}"
    );
}

#[test]
fn a_daemon_that_cannot_start_says_why_in_syslog_too() {
    if !is_ours() {
        return;
    }
    let (setup, port) = setup();
    let path = setup.folder().join("syslog");
    let daemon = Daemon::at(&path);
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).expect("cannot bind");
    let finished = setup
        .options(["--daemonize", "--syslog"])
        .option(format!("--syslog-address={}", path.display()))
        .run();
    assert_eq!(finished.status.code(), Some(1));
    let line =
        format!("start_server: cannot listen on --port=127.0.0.1:{port}: Address already in use");
    let times = finished.log.lines().filter(|one| **one == line).count();
    assert_eq!(times, 1, "{}", finished.log);
    let mut records = String::new();
    daemon.read(&mut records);
    assert!(
        records
            .lines()
            .any(|one| one.starts_with("<27>") && one.ends_with(&line)),
        "{records}"
    );
    drop(taken);
}

// --quiet.

#[test]
fn quiet_silences_us_on_standard_error_and_nobody_else() {
    if !is_ours() {
        return;
    }
    let (setup, port) = setup();
    let path = setup.folder().join("syslog");
    let daemon = Daemon::at(&path);
    let mut server = setup
        .options(["--quiet", "--syslog", "--syslog-stream=stdout"])
        .option(format!("--syslog-address={}", path.display()))
        .start();
    server.accepted();
    // A socket queues only a few records.
    let mut records = String::new();
    daemon.read(&mut records);
    write(port, "stderr", "of the worker");
    server.restart();
    daemon.read(&mut records);
    assert!(server.stop().success());
    assert_eq!(server.log(), "of the worker\n");
    daemon.read(&mut records);
    for text in [
        "starting now",
        "received HUP, spawning a new worker",
        "exiting",
    ] {
        assert!(records.contains(text), "{records}");
    }

    let (setup, _) = self::setup();
    let mut server = setup.options(["--quiet", "--log-file=server.log"]).start();
    server.accepted();
    assert!(server.stop().success());
    assert_eq!(server.log(), "");
    assert!(read(&server.folder().join("server.log")).ends_with("exiting\n"));
}

#[test]
fn quiet_does_not_hide_why_a_start_has_failed() {
    if !is_ours() {
        return;
    }
    let run = |setup: Setup| setup.option("--quiet").run();
    let (setup, _) = setup();
    let finished = run(setup.program(["/nonexistent/server"]));
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(
        finished.log,
        "start_server: cannot execute /nonexistent/server: No such file or directory\n"
    );
    let (setup, _) = self::setup();
    let finished = run(setup
        .interval("1")
        .option("--start-limit=1")
        .worker(["--exit=3"]));
    assert_eq!(finished.status.code(), Some(1));
    let pid = finished.server.started()[0].pid;
    assert_eq!(
        finished.log,
        format!("new worker {pid} seems to have failed to start, exit status:768\n")
    );
    let (setup, _) = self::setup();
    let finished = run(setup.option("--log-file=missing/log"));
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(
        finished.log,
        "start_server: cannot open --log-file=missing/log: its directory does not exist\n\
         hint: create it for the server's user: `install -d -o USER missing`\n"
    );
    let (setup, _) = self::setup();
    let finished = run(setup.option("--backlog=x"));
    assert_eq!(finished.status.code(), Some(2));
    assert!(
        finished
            .log
            .starts_with("start_server: cannot use --backlog=x: ")
    );
}

// What cannot be.

#[test]
fn output_options_that_cannot_be_are_one_line_and_exit_code_2() {
    if !is_ours() {
        return;
    }
    let file = format!(
        "--syslog-address={}",
        programs::worker().with_file_name("worker").display()
    );
    let not_resolved = "--syslog-address=udp:no.such.host.invalid:514";
    for (options, line) in [
        (
            &["--syslog=local8"][..],
            "cannot use --syslog=local8: the facilities are kern, ",
        ),
        (
            &["--syslog=Daemon "],
            "cannot use --syslog='Daemon ': the facilities are kern, ",
        ),
        (
            &["--syslog", "--syslog-format=rfc5425"],
            "cannot use --syslog-format=rfc5425: the formats are rfc3164 and rfc5424",
        ),
        (
            &["--syslog", "--syslog-stream=stdin"],
            "cannot use --syslog-stream=stdin: the streams are stdout and stderr",
        ),
        (
            &["--log-file=l", "--log-stream=all"],
            "cannot use --log-stream=all: the streams are stdout and stderr",
        ),
        (
            &["--syslog", "--syslog-tag=a b"],
            "cannot use --syslog-tag='a b': a tag has 1 to 32 letters",
        ),
        (
            &["--syslog", "--syslog-address=log"],
            "cannot use --syslog-address=log: the address is an absolute path, or udp:HOST:PORT",
        ),
        (
            &["--syslog", "--syslog-address=udp:host"],
            "cannot use --syslog-address=udp:host: the address is",
        ),
        (
            &["--syslog", not_resolved],
            "cannot use --syslog-address=udp:no.such.host.invalid:514: ",
        ),
        (
            &["--syslog", "--syslog-address=/"],
            "cannot use --syslog-address=/: it is not a socket",
        ),
        (&["--syslog", &file], "cannot use --syslog-address=/"),
        (
            &["--syslog-tag=a"],
            "cannot use --syslog-tag: it needs --syslog as well",
        ),
        (
            &["--syslog-format=rfc5424"],
            "cannot use --syslog-format: it needs --syslog as well",
        ),
        (
            &["--log-timestamps"],
            "cannot use --log-timestamps: it needs --log-file as well",
        ),
        (
            &["--log-stream=stdout"],
            "cannot use --log-stream: it needs --log-file as well",
        ),
        (
            &["--daemonize"],
            "cannot use --daemonize: it needs --log-file or --syslog as well",
        ),
    ] {
        let (setup, port) = setup();
        let finished = setup.options(options.iter().copied()).run();
        assert_eq!(
            finished.status.code(),
            Some(2),
            "{options:?}\n{}",
            finished.log
        );
        assert!(
            finished.log.starts_with(&format!("start_server: {line}")),
            "{options:?}\n{}",
            finished.log
        );
        assert_eq!(
            finished.log.lines().count(),
            1,
            "{options:?}\n{}",
            finished.log
        );
        assert_eq!(finished.server.started(), []);
        assert!(client::connect(port).is_err(), "it listens");
        for left in ["pid", "pid.json", "status", "status.json", "l"] {
            assert!(
                !finished.server.folder().join(left).exists(),
                "{left} is left"
            );
        }
    }
}

// A flood.

#[test]
fn a_flood_of_output_holds_up_neither_hup_nor_term() {
    if !is_ours() {
        return;
    }
    let (setup, port) = setup();
    let mut server = setup
        .options(["--log-file=/dev/null", "--log-timestamps"])
        .start();
    let worker = server.accepted().pid;
    // Together they are faster than one that reads.
    let flows = ["stdout"; 4].map(|stream| Flow::start(port, 4000, stream, 0));
    let began = Instant::now();
    server.signal(Signal::SIGHUP);
    server.wait_until("the second generation is current", |server| {
        server.status_file().is_some_and(|text| text.contains("2:"))
    });
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let second = Flow::start(port, 4000, "stdout", 0);
    let began = Instant::now();
    server.signal(Signal::SIGTERM);
    server.wait_until("the second one is told to stop", |server| {
        let worker = server.journal().into_iter().filter(|entry| {
            entry.happened == e2e::journal::Happened::Drains && entry.pid != worker.as_raw()
        });
        worker.count() == 1
    });
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    for flow in flows.into_iter().chain([second]) {
        assert!(flow.end().count > 0);
    }
    assert!(server.wait_exit().success());
}
