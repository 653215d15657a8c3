//! What `--restart` tells while it waits, and how it ends: for people, on a terminal and elsewhere, and for programs.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use e2e::start::InTurn;
use e2e::{Server, Setup, client, ports, proc, wait};
use nix::pty::openpty;
use serde_json::Value;

use crate::commands::{Client, accepted, is_ours, run};
use crate::readiness::{gated, scripted, with_files};

/// Generation 1 serves.
fn serving(setup: Setup) -> (Server, u16) {
    let port = ports::tcp();
    let server = setup.pid_file().port(port).start();
    accepted(&server);
    (server, port)
}

/// The next generations do this in a shell, and the first one serves.
fn failing(setup: Setup, script: &str) -> Setup {
    let before = format!(
        "[ $SERVER_STARTER_GENERATION = 1 ] || {{ {script}; }}; [ -z \"$NOTIFY_SOCKET\" ] || n=--notify"
    );
    scripted(setup, &before, "$n")
}

fn restart(server: &Server) -> Client {
    run(server, &["--restart", "--pid-file=pid"])
}

#[track_caller]
fn wait_until_said(client: &Client, text: &str) {
    wait::until(
        &format!("it has said {text:?}"),
        || client.said(),
        || client.said().contains(text).then_some(()),
    );
}

/// The line without its figures: `generation 2 serves (pid P, ready after T); ...`.
fn without_times(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut rest = line.split(' ').peekable();
    let is_number = |word: &str| word.trim_start_matches('(').parse::<f64>().is_ok();
    while let Some(word) = rest.next() {
        let unit = rest
            .peek()
            .is_some_and(|unit| unit.trim_end_matches([';', ')', ',']) == "s");
        match word {
            number if is_number(number) && unit => {
                let end = rest.next().unwrap_or_default().trim_start_matches('s');
                words.push(format!("T{end}"));
            }
            pid if words.last().is_some_and(|word| word == "(pid") => {
                let end = pid.trim_start_matches(|one: char| one.is_ascii_digit());
                words.push(format!("P{end}"));
            }
            word => words.push(word.to_owned()),
        }
    }
    words.join(" ")
}

// Elsewhere than on a terminal.

#[test]
fn each_phase_of_a_restart_is_a_line_and_the_last_one_has_the_figures() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(Server::setup().option("--ready=notify"), "--notify");
    let (server, port) = serving(setup);
    let held = client::hold(port);
    let mut client = restart(&server);
    wait_until_said(&client, "generation 2: started, waiting for READY=1\n");
    gate.open();
    wait_until_said(&client, "generation 2: serving; generation 1 drains\n");
    assert!(client.is_waiting());
    held.finish();
    assert_eq!(client.wait(), 0, "{}", client.said());
    let said: Vec<String> = client.said().lines().map(without_times).collect();
    let first = format!(
        "sent HUP to start_server (pid:{}), waiting for the new generation...",
        server.pid()
    );
    assert_eq!(
        said,
        [
            &*first,
            "generation 2: started, waiting for READY=1",
            "generation 2: serving; generation 1 drains",
            "generation 2 serves (pid P, ready after T); generation 1 is gone (drained T)",
        ]
    );
    // It is kept, and shown in lines that are not too long.
    let mut status = run(&server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 0);
    let words: Vec<String> = status
        .said()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let text = without_times(&words.join(" "));
    let last = " ago, after T; generation 1 is gone (drained T) ";
    assert!(text.contains(last), "{text}");
}

#[test]
fn a_restart_during_a_start_says_that_it_comes_after_it() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(Server::setup().option("--ready=notify"), "--notify");
    let (server, _) = serving(setup);
    let mut first = restart(&server);
    wait_until_said(&first, "generation 2: started");
    let mut second = restart(&server);
    let late = "generation 2 is still starting, the restart comes after it\n";
    wait_until_said(&second, late);
    gate.open();
    wait_until_said(&second, "generation 3: started, waiting for READY=1\n");
    gate.open();
    assert_eq!((first.wait(), second.wait()), (0, 0), "{}", second.said());
    assert!(second.said().contains("\ngeneration 3 serves (pid "));
}

// On a terminal.

/// A client whose standard error is a terminal.
struct OnTerminal {
    child: Child,
    screen: Arc<Mutex<Vec<u8>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl OnTerminal {
    fn start(mut command: Command) -> OnTerminal {
        let pty = openpty(None, None).expect("cannot open a terminal");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(pty.slave)
            .spawn_in_turn()
            .expect("cannot run the client");
        // It holds the terminal, too.
        drop(command);
        let mut master = File::from(pty.master);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&screen);
        // It ends with an error when nobody has the terminal any more.
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = master.read(&mut buffer) {
                let mut written = written.lock().expect("a thread panicked");
                written.extend_from_slice(&buffer[..length]);
            }
        });
        OnTerminal {
            child,
            screen,
            reader: Some(reader),
        }
    }

    fn screen(&self) -> String {
        let screen = self.screen.lock().expect("a thread panicked");
        String::from_utf8_lossy(&screen).into_owned()
    }

    /// Waits until a line that begins and ends like this was drawn with several times in it.
    #[track_caller]
    fn wait_until_rewritten(&self, beginning: &str, end: &str) {
        wait::until(
            &format!("{beginning:?} is rewritten"),
            || self.screen(),
            || {
                let screen = self.screen();
                let lines = screen.split(beginning).skip(1);
                let times = lines.filter_map(|line| Some(line.split_once(end)?.0.to_owned()));
                let times: BTreeSet<String> = times.collect();
                let are_numbers = times.iter().all(|time| time.parse::<f64>().is_ok());
                (times.len() > 2 && are_numbers).then_some(())
            },
        );
    }

    /// Its exit code, when everything is on the screen.
    fn wait(&mut self) -> Option<i32> {
        let code = self.child.wait().expect("cannot wait").code();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("a thread panicked");
        }
        code
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn on_a_terminal_one_line_is_rewritten_and_nothing_of_it_stays() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(Server::setup().option("--ready=notify"), "--notify");
    let (server, port) = serving(setup);
    let held = client::hold(port);
    let began = Instant::now();
    let mut client = OnTerminal::start(server.client(["--restart", "--pid-file=pid"]));
    client.wait_until_rewritten(
        "\rgeneration 2: started, waiting for READY=1 (",
        " s) ...\x1b[K",
    );
    gate.open();
    let drains = "\rgeneration 2: serving; generation 1 drains: 1 connection, ";
    client.wait_until_rewritten(drains, " s\x1b[K");
    held.finish();
    assert_eq!(client.wait(), Some(0), "{}", client.screen());
    let passed = began.elapsed();
    let screen = client.screen();
    let lines: Vec<&str> = screen.lines().collect();
    assert_eq!(lines.len(), 2, "{screen:?}");
    assert!(
        lines[0].starts_with("sent HUP to start_server"),
        "{screen:?}"
    );
    let (_, last) = lines[1]
        .rsplit_once("\r\x1b[K")
        .expect("it was not cleaned up");
    let expected = "generation 2 serves (pid P, ready after T); generation 1 is gone (drained T)";
    assert_eq!(without_times(last), expected, "{screen:?}");
    let drawn = screen.matches("\x1b[K").count();
    let most = passed.as_millis() / 100 + 3;
    assert!(drawn as u128 <= most, "{drawn} times in {passed:?}");
}

#[test]
fn a_line_of_progress_is_gone_before_an_error_and_quiet_has_none() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(Server::setup().option("--ready=notify"), "--notify");
    let (server, _) = serving(setup);
    let words = ["--restart", "--pid-file=pid", "--timeout=0.5"];
    let mut client = OnTerminal::start(server.client(words));
    assert_eq!(client.wait(), Some(4), "{}", client.screen());
    let screen = client.screen();
    assert!(screen.contains("\rgeneration 2: started"), "{screen:?}");
    let cleaned = screen.contains("\r\x1b[Kstart_server: cannot wait longer");
    assert!(cleaned, "{screen:?}");
    gate.open();
    server.wait_for_generations(&[2]);
    let words = ["--restart", "--pid-file=pid", "--quiet"];
    let mut quiet = OnTerminal::start(server.client(words));
    gate.open();
    assert_eq!(quiet.wait(), Some(0), "{}", quiet.screen());
    assert_eq!(quiet.screen(), "");
}

// For programs.

/// The exit code, the verdict, and what was said on standard error.
#[track_caller]
fn verdict(server: &Server, options: &[&str]) -> (Option<i32>, Value, String) {
    let words = [&["--restart", "--json", "--pid-file=pid"], options].concat();
    let output = server.client(words).output_in_turn();
    let output = output.expect("cannot run the client");
    let text = String::from_utf8(output.stdout).expect("not UTF-8");
    let errors = String::from_utf8(output.stderr).expect("not UTF-8");
    let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{errors}"));
    (output.status.code(), json, errors)
}

#[test]
fn the_verdict_for_programs_has_the_durations_of_a_success() {
    if !is_ours() {
        return;
    }
    let (server, _) = serving(Server::setup().interval("0.3"));
    let (code, json, errors) = verdict(&server, &["--quiet"]);
    assert_eq!((code, &*errors), (Some(0), ""), "{json}");
    assert_eq!(json["outcome"], "committed", "{json}");
    assert_eq!(
        (&json["generation"], &json["replaces"]),
        (&2.into(), &1.into())
    );
    for known in ["spawn", "exec", "ready", "drained"] {
        let duration = json["durations"][known].as_f64();
        assert!(
            duration.is_some_and(|it| (0.0..30.0).contains(&it)),
            "{json}"
        );
    }
    let ready = json["durations"]["ready"].as_f64();
    assert!(ready > Some(0.2), "the interval has not passed: {json}");
    for unknown in ["reason", "hint", "status", "exit_code", "signal"] {
        assert!(json[unknown].is_null(), "{unknown}: {json}");
    }
    let mut status = run(&server, &["--status", "--json", "--pid-file=pid"]);
    assert_eq!(status.wait(), 0);
    let status: Value = serde_json::from_str(&status.said()).expect("not JSON");
    assert_eq!(status["last_verdict"]["durations"], json["durations"]);
}

#[test]
fn the_verdict_for_programs_has_the_cause_of_a_failure() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().options(["--log-file=log", "--log-timestamps"]);
    let (server, _) = serving(failing(setup.interval("2"), "echo the reason >&2; exit 3"));
    let (code, json, errors) = verdict(&server, &[]);
    assert_eq!(code, Some(1), "{json}");
    assert!(errors.contains("\nstderr: the reason\n"), "{errors}");
    assert_eq!(json["outcome"], "failed", "{json}");
    assert_eq!(json["generation"], 2);
    assert_eq!(json["reason"], "exit status:768 (exit code 3)");
    let status = ["status", "exit_code", "signal"].map(|name| json[name].as_i64());
    assert_eq!(status, [Some(768), Some(3), None], "{json}");
    assert_eq!(json["stderr"], serde_json::json!(["the reason"]));
    let durations = &json["durations"];
    assert!(
        durations["exec"].is_f64() && durations["ready"].is_null(),
        "{json}"
    );
}

#[test]
fn the_verdict_for_programs_tells_what_is_undecided_and_what_has_stopped() {
    if !is_ours() {
        return;
    }
    let (mut server, port) = serving(Server::setup().worker(["--graceful"]));
    let held = client::hold(port);
    let (code, json, _) = verdict(&server, &["--timeout=0.5"]);
    assert_eq!(code, Some(4), "{json}");
    assert_eq!(
        (&json["outcome"], &json["generation"]),
        (&"undecided".into(), &2.into())
    );
    let reason = json["reason"].as_str().expect("no reason");
    assert!(reason.ends_with("--timeout expired"), "{json}");
    assert!(json["durations"]["drained"].is_null(), "{json}");
    // Nothing was asked for, so there is no verdict.
    server.signal(nix::sys::signal::Signal::SIGTERM);
    held.finish();
    assert!(server.wait_exit().success());
    let mut client = run(&server, &["--restart", "--json", "--pid-file=pid"]);
    assert_eq!(client.wait(), 3);
    assert!(!client.said().contains('{'), "{}", client.said());
}

// --no-wait

#[test]
fn whoever_does_not_wait_has_the_verdict_at_the_commit() {
    if !is_ours() {
        return;
    }
    let (server, port) = serving(Server::setup().worker(["--graceful"]));
    let held = client::hold(port);
    let mut client = run(&server, &["--restart", "--no-wait", "--pid-file=pid"]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    // The old one accepts until it gets the signal.
    server.wait_until("the new one alone answers", |server| {
        server.ask(port).generation == Some(2)
    });
    let said = client.said();
    let last = said.lines().last().map(without_times);
    let expected = "generation 2 serves (pid P, ready after T); generation 1 is not waited for";
    assert_eq!(last.as_deref(), Some(expected));
    let (code, json, _) = verdict(&server, &["--no-wait"]);
    assert_eq!((code, &json["generation"]), (Some(0), &3.into()), "{json}");
    assert!(json["durations"]["drained"].is_null(), "{json}");
    held.finish();
    server.wait_for_generations(&[3]);
}

#[test]
fn whoever_does_not_wait_learns_of_a_failure_too() {
    if !is_ours() {
        return;
    }
    let (server, _) = serving(failing(Server::setup().interval("2"), "exit 3"));
    let mut client = run(&server, &["--restart", "--no-wait", "--pid-file=pid"]);
    assert_eq!(client.wait(), 1, "{}", client.said());
    let failed = "generation 2 failed to start, exit status:768 (exit code 3)";
    assert!(client.said().contains(failed), "{}", client.said());
}

// The last lines on standard error.

#[test]
fn a_failed_start_shows_what_was_appended_to_the_log_file_since_it_began() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().option("--log-file=log").interval("2");
    let script = "echo the first line; echo the reason >&2; exit 3";
    let (server, port) = serving(failing(setup, script));
    client::write(port, "stderr", "long before");
    let mut client = restart(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    let said = client.said();
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("stderr: "))
        .collect();
    // None of start_server's own lines, and none of before.
    assert_eq!(
        lines,
        ["stderr: the first line", "stderr: the reason"],
        "{said}"
    );
    let log = fs::read_to_string(server.folder().join("log")).expect("no log");
    assert!(
        log.contains("long before") && log.contains("starting new worker"),
        "{log}"
    );
}

#[test]
fn the_lines_of_a_log_file_that_others_cannot_read_are_not_shown_to_them() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().option("--log-file=log").interval("2");
    let (server, port) = serving(failing(setup, "echo a secret >&2; exit 3"));
    client::write(port, "stderr", "the log is there");
    let log = server.folder().join("log");
    fs::set_permissions(&log, Permissions::from_mode(0o600)).expect("cannot close the log");
    let mut client = restart(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    assert!(!client.said().contains("stderr: "), "{}", client.said());
    let json = fs::read_to_string(server.folder().join("pid.json")).expect("no status");
    let json: Value = serde_json::from_str(&json).expect("not JSON");
    let verdict = json["verdicts"].as_array().and_then(|all| all.last());
    let stderr = verdict.map(|one| one["stderr"].clone());
    assert_eq!(stderr, Some(serde_json::json!([])), "{json}");
    assert!(fs::read_to_string(&log).is_ok_and(|text| text.contains("a secret")));
}

/// It is told to stop, and takes its time.
#[test]
fn a_start_that_takes_too_long_shows_what_its_living_worker_has_said() {
    if !is_ours() {
        return;
    }
    for options in [
        &["--log-file=log", "--log-timestamps"][..],
        &["--log-file=log"],
    ] {
        let setup = with_files().options(options.iter().copied());
        let setup = setup.options(["--ready=notify", "--start-timeout=0.5"]);
        let script = "trap '' TERM; echo waiting for the database >&2; while :; do sleep 600; done";
        let (server, _) = serving(failing(setup, script));
        let (code, json, errors) = verdict(&server, &[]);
        assert_eq!(code, Some(1), "{json}");
        let status = server.status_json().expect("no status");
        let mut generations = status["generations"].as_array().expect("a list").iter();
        let failed = generations.find(|one| one["number"] == 2);
        let failed = failed.expect("its worker has ended");
        let pid = failed["workers"][0]["pid"].as_i64().expect("no pid");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
        assert!(proc::alive(pid), "{options:?}");
        assert_eq!(json["outcome"], "failed", "{json}");
        let expected = serde_json::json!(["waiting for the database"]);
        assert_eq!(json["stderr"], expected, "{options:?}: {errors}");
        assert!(
            errors.contains("\nstderr: waiting for the database\n"),
            "{errors}"
        );
    }
}

#[test]
fn times_are_left_out_where_they_differ() {
    let line =
        "generation 2 serves (pid 17266, ready after 0.84 s); generation 1 is gone (drained 3 s)";
    let expected = "generation 2 serves (pid P, ready after T); generation 1 is gone (drained T)";
    assert_eq!(without_times(line), expected);
}
