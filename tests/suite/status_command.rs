//! `--status`: what the server is doing, from its `FILE.json` and the kernel, in each form and for each exit code.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use e2e::server::NOBODY;
use e2e::skip::{needs_program, needs_root};
use e2e::start::InTurn;
use e2e::{Server, Setup, Worker, client, ports, proc, programs, wait};
use nix::pty::openpty;
use nix::sys::resource::Resource;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::commands::{accepted, is_ours, run};
use crate::launch::{as_ordinary_user, launch, ordinary_folder};
use crate::lock_holder::locking;
use crate::readiness::scripted;

/// A user who is neither root nor the user of the server.
const FOREIGN: u32 = 4242;

/// The exit code, and what was written to standard output and standard error.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    text: String,
    errors: String,
}

impl Told {
    #[track_caller]
    fn by(mut command: Command) -> Told {
        let output = command.output_in_turn().expect("cannot run the client");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("not UTF-8");
        Told {
            code: output.status.code(),
            text: text(output.stdout),
            errors: text(output.stderr),
        }
    }

    fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    /// The words of the first line that ends or begins like this.
    #[track_caller]
    fn row(&self, part: &str) -> Vec<&str> {
        let mut lines = self.text.lines().map(str::trim);
        let line = lines.find(|line| line.ends_with(part) || line.starts_with(part));
        let line = line.unwrap_or_else(|| panic!("{part} is missing: {}", self.text));
        line.split_whitespace().collect()
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// As the user of the server, or root if it was started by root.
#[track_caller]
fn told(server: &Server, options: &[&str]) -> Told {
    let words = [&["--status", "--pid-file=pid"], options].concat();
    Told::by(server.client(words))
}

/// As another user, in the server's folder.
#[track_caller]
fn told_to(uid: u32, folder: &Path, options: &[&str]) -> Told {
    let mut command = Command::new(programs::start_server());
    command
        .args(["--status", "--pid-file=pid"])
        .args(options)
        .env_clear()
        .current_dir(folder)
        .uid(uid)
        .gid(uid);
    Told::by(command)
}

/// Waits for what it tells, with the code that belongs to it.
#[track_caller]
fn wait_until_told(server: &Server, beginning: &str, code: i32) -> Told {
    server.wait_for(&format!("the status begins with {beginning:?}"), |server| {
        let told = told(server, &[]);
        let begins = told.first_line().starts_with(beginning);
        begins.then(|| {
            assert_eq!(told.code, Some(code), "{told:?}");
            told
        })
    })
}

/// A server whose first generation serves.
fn serving(setup: Setup) -> (Server, u16, Worker) {
    let port = ports::tcp();
    let server = setup.pid_file().port(port).start();
    let worker = accepted(&server);
    (server, port, worker)
}

/// Stops a worker with all its threads: from now on none of them accepts or receives anything.
#[track_caller]
fn freeze(worker: Worker) {
    proc::stop(worker.pid);
    let threads = format!("/proc/{}/task", worker.pid);
    wait::until("all its threads have stopped", String::new, || {
        let threads = fs::read_dir(&threads).expect("it is gone").flatten();
        let mut states = threads.map(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .map(|(_, rest)| rest.starts_with('T'))
        });
        states
            .all(|is_stopped| is_stopped == Some(true))
            .then_some(())
    });
}

#[track_caller]
fn assert_fits(text: &str) {
    for line in text.lines() {
        let is_plain = line.chars().all(|one| (' '..='~').contains(&one));
        assert!(is_plain && line.len() <= 80, "{line:?}");
    }
}

// What it tells.

#[test]
fn a_server_that_serves_shows_itself_its_listeners_and_its_workers() {
    if !is_ours() {
        return;
    }
    let udp = ports::udp();
    let setup = Server::setup()
        .path("socket")
        .option(format!("--port=127.0.0.1:u{udp}"))
        .options(["--path=@status-command", "--backlog=7"]);
    let (server, port, worker) = serving(setup);
    let told = told(&server, &[]);
    assert_eq!((told.code, &*told.errors), (Some(0), ""), "{told:?}");
    assert_eq!(told.first_line(), "serving");
    let supervisor = told.row("pid ");
    assert_eq!(supervisor[1], format!("{},", server.pid()));
    let version = format!(", version {}", env!("CARGO_PKG_VERSION"));
    assert!(told.text.contains(&version), "{told:?}");
    told.row("last start: generation 1 committed");
    let tcp = format!("127.0.0.1:{port}");
    assert_eq!(told.row(&tcp), ["tcp", "0", "7", &tcp]);
    let udp = format!("127.0.0.1:{udp}");
    assert_eq!(told.row(&udp), ["udp", "0", "B", "-", &udp]);
    assert_eq!(told.row("/socket")[..3], ["unix", "0", "7"]);
    assert_eq!(told.row("@status-command")[..3], ["unix", "0", "7"]);
    let row = told.row("1  current");
    assert_eq!(row[2], worker.pid.to_string());
    assert!(row[6].ends_with("iB") && row[7].ends_with('%'), "{row:?}");
    assert_eq!(row[8..], ["0"]);
    assert_fits(&told.text);
}

#[test]
fn the_command_line_of_the_server_serves_for_its_status_too() {
    if !is_ours() {
        return;
    }
    let (server, port, _) = serving(Server::setup());
    let port = format!("--port=127.0.0.1:{port}");
    let told = told(&server, &[&port, "--quiet", "--", "/bin/program"]);
    assert_eq!((told.code, told.first_line()), (Some(0), "serving"));
}

#[test]
fn a_server_that_has_not_served_yet_is_starting_and_the_code_is_1() {
    if !is_ours() {
        return;
    }
    let server = Server::setup().pid_file().interval("1000").start();
    server.wait_for_service(1);
    let told = wait_until_told(&server, "starting: generation 1, ", 1);
    assert_eq!(told.row("1  starting")[0], "1");
}

#[test]
fn a_server_whose_program_has_failed_after_it_served_serves_nothing_and_the_code_is_1() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().interval("0.2");
    let broken = setup.folder().join("broken");
    let option = format!("--exit-if-exists={}", broken.display());
    let (server, _, worker) = serving(setup.worker([option]));
    fs::write(&broken, "").expect("cannot break it");
    kill(worker.pid, Signal::SIGKILL).expect("cannot kill the worker");
    let told = server.wait_for("a failed start is told", |server| {
        let told = told(server, &[]);
        let mut lines = told.text.lines();
        let is_failed = |line: &str| line.starts_with("last start: ") && line.contains(" failed");
        lines.any(is_failed).then_some(told)
    });
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.first_line().starts_with("nothing serves"), "{told:?}");
    assert!(
        told.text.contains("exit status:256 (exit code 1)"),
        "{told:?}"
    );
    fs::remove_file(&broken).expect("cannot mend it");
    wait_until_told(&server, "serving", 0);
}

/// It serves, and soon dies.
#[test]
fn a_crash_loop_is_told_until_it_is_over() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().interval("1").option("--ready=fd:9");
    let dies = "echo >&9; exec 9>&-; [ ! -e broken ] || { sleep 0.1; exit 3; }";
    let (server, _, worker) = serving(scripted(setup, dies, ""));
    assert!(!told(&server, &[]).text.contains("crash loop"));
    fs::write(server.folder().join("broken"), "").expect("cannot break it");
    kill(worker.pid, Signal::SIGKILL).expect("cannot kill the worker");
    let text = "crash loop: workers have died 2 times in a row soon after they began to serve\n";
    let told = server.wait_for("two early deaths are told", |server| {
        let told = told(server, &[]);
        told.text.contains(text).then_some(told)
    });
    assert!(told.first_line().starts_with("nothing serves"), "{told:?}");
    let json = server.wait_for("the next start is planned", |server| {
        let json = self::told(server, &["--json"]).json();
        json["next_start_at"].is_f64().then_some(json)
    });
    assert!(json["crash_loop"].as_u64() >= Some(2), "{json}");
    let headline = json["headline"].as_str().expect("a headline");
    assert!(headline.contains("next start in "), "{json}");
    let samples = check_openmetrics(&self::told(&server, &["--openmetrics"]).text);
    let mut samples = samples.iter();
    let sample = samples.find(|(name, _)| name == "start_server_crash_loop");
    assert!(sample.is_some_and(|(_, deaths)| *deaths >= 2.0));
    server.wait_for_log("workers have died 3 times in a row soon after they began to serve");
    // Each step once.
    assert_eq!(server.count_in_log("workers have died 2 times"), 1);
    fs::remove_file(server.folder().join("broken")).expect("cannot mend it");
    wait_until_told(&server, "serving", 0);
    server.wait_until("it is over", |server| {
        !self::told(server, &[]).text.contains("crash loop")
    });
}

#[test]
fn a_restart_is_told_while_it_lasts_and_so_is_a_suspended_supervisor() {
    if !is_ours() {
        return;
    }
    let (server, _, _) = serving(Server::setup().interval("2"));
    server.signal(Signal::SIGHUP);
    server.wait_for_start(2);
    proc::stop(server.pid());
    // It stays like that for as long as the supervisor does nothing.
    let told = told(&server, &[]);
    assert_eq!(told.code, Some(0), "{told:?}");
    let headline = "restarting: generation 2 of 1, ";
    assert!(told.first_line().starts_with(headline), "{told:?}");
    let suspended = format!("pid {} is stopped", server.pid());
    assert!(told.text.contains(&suspended), "{told:?}");
    assert_eq!(told.row("2  starting")[1], "starting");
    server.signal(Signal::SIGCONT);
    wait_until_told(&server, "serving", 0);
}

#[test]
fn an_old_generation_shows_the_connections_that_it_still_holds() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().path("socket").worker(["--graceful"]);
    let (server, port, _) = serving(setup);
    let held = [
        client::hold(port),
        client::hold(&server.folder().join("socket")),
    ];
    server.signal(Signal::SIGHUP);
    let told = server.wait_for("generation 1 drains", |server| {
        let told = told(server, &[]);
        told.text.contains("1  old").then_some(told)
    });
    assert_eq!((told.code, told.first_line()), (Some(0), "serving"));
    assert_eq!(told.row("1  old").last(), Some(&"2"), "{told:?}");
    assert_eq!(told.row("2  current").last(), Some(&"0"), "{told:?}");
    for held in held {
        assert_eq!(held.finish().generation, Some(1));
    }
}

#[test]
fn connections_in_the_hands_of_a_workers_children_are_those_of_the_worker() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup();
    let journal = format!("--journal={}", setup.folder().join("journal").display());
    let worker = programs::worker();
    let worker = worker.to_str().expect("a path");
    let script = ["/bin/sh", "-c", "\"$@\" & wait", "sh", worker, &journal];
    let (server, port, _) = serving(setup.program(script));
    let _held = client::hold(port);
    let told = told(&server, &[]);
    assert_eq!(told.row("1  current").last(), Some(&"1"), "{told:?}");
}

#[test]
fn a_queue_that_nobody_accepts_from_shows_its_length_and_its_backlog() {
    if !is_ours() {
        return;
    }
    let udp = ports::udp();
    let setup = Server::setup()
        .path("socket")
        .option("--backlog=5")
        .option(format!("--port=127.0.0.1:u{udp}"));
    let (server, port, worker) = serving(setup);
    freeze(worker);
    let socket = server.folder().join("socket");
    let _clients: Vec<_> = (0..3)
        .flat_map(|_| [client::connect(port), client::connect(&socket)])
        .collect();
    let sender = UdpSocket::bind("127.0.0.1:0").expect("cannot bind");
    sender
        .send_to(b"hello", ("127.0.0.1", udp))
        .expect("cannot send");
    let told_all = told(&server, &["--json"]).json();
    for listener in told_all["listeners"].as_array().expect("a list") {
        let (queue, backlog) = (&listener["queue"], &listener["backlog"]);
        match listener["kind"].as_str() {
            Some("udp") => {
                assert!(queue.as_u64() >= Some(5) && backlog.is_null(), "{listener}");
            }
            _ => assert_eq!((queue, backlog), (&3.into(), &5.into()), "{listener}"),
        }
    }
    let told = told(&server, &[]);
    let address = format!("127.0.0.1:{port}");
    assert_eq!(told.row(&address), ["tcp", "3", "5", &address]);
    // What nobody has accepted is no worker's.
    assert_eq!(told_all["workers"][0]["connections"], 0);
}

#[test]
fn a_server_that_is_stopping_says_what_it_waits_for() {
    if !is_ours() {
        return;
    }
    let (server, port, _) = serving(Server::setup().worker(["--graceful"]));
    let held = client::hold(port);
    server.signal(Signal::SIGTERM);
    wait_until_told(&server, "stopping: waiting for 1 worker to exit", 1);
    held.finish();
}

#[test]
fn lines_that_the_log_has_lost_are_counted_for_good() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup()
        .options(["--log-file=lines", "--log-timestamps"])
        .limit(Resource::RLIMIT_FSIZE, 64 * 1024, 64 * 1024);
    let (server, port, _) = serving(setup);
    let lost = |server: &Server| told(server, &["--json"]).json()["log"]["lost"].as_u64();
    assert_eq!(lost(&server), Some(0));
    client::burst(port, 2000, 100, "stdout");
    let first = server.wait_for("lost lines are counted", |server| {
        lost(server).filter(|lost| *lost > 100)
    });
    // Though nothing has happened since.
    fs::write(server.folder().join("lines"), "").expect("cannot make room");
    client::write(port, "stdout", "a line with room");
    assert!(lost(&server) >= Some(first));
}

// Who asks.

#[test]
fn root_and_the_user_of_a_server_that_root_started_see_everything_and_others_see_what_is_open_to_all()
 {
    if !is_ours() || !needs_root() {
        return;
    }
    let port = ports::low();
    let server = Server::setup()
        .as_root()
        .options(["--user=nobody", "--backlog=9"])
        .pid_file()
        .port(port)
        .worker(["--graceful"])
        .start();
    let worker = accepted(&server);
    let _held = client::hold(port);
    freeze(worker);
    let _clients = [client::connect(port), client::connect(port)];
    let address = format!("127.0.0.1:{port}");
    for (uid, connections) in [(0, "1"), (NOBODY, "1"), (FOREIGN, "-")] {
        let told = told_to(uid, server.folder(), &[]);
        assert_eq!((told.code, &*told.errors), (Some(0), ""), "{told:?}");
        assert_eq!(told.row(&address), ["tcp", "2", "9", &address], "{uid}");
        let row = told.row("1  current");
        assert!(row[6].ends_with("iB"), "{row:?}");
        assert_eq!(row.last(), Some(&connections), "{uid}");
        let told = told_to(uid, server.folder(), &["--openmetrics"]);
        check_openmetrics(&told.text);
    }
}

/// Its listener has the address of a socket of ours, which does not belong to it.
#[test]
fn the_sockets_of_a_server_in_another_network_are_unknown() {
    if !is_ours() || !needs_root() || !needs_program("unshare") {
        return;
    }
    let ours = TcpListener::bind("0.0.0.0:0").expect("cannot bind");
    let port = ours.local_addr().expect("no address").port();
    let before = [&["unshare", "--net"], as_ordinary_user()].concat();
    let option = format!("--port={port}");
    let worker = programs::worker();
    let worker = worker.to_str().expect("a path");
    let server = launch(
        &before,
        &["--pid-file=pid", &option, "--interval=0.2", worker],
    );
    for uid in [0, NOBODY, FOREIGN] {
        let told = server.wait_for("it serves", || {
            let told = told_to(uid, server.folder(), &[]);
            (told.code == Some(0)).then_some(told)
        });
        let address = format!("0.0.0.0:{port}");
        assert_eq!(told.row(&address), ["tcp", "-", "4096", &address], "{uid}");
        assert_eq!(told.row("1  current").last(), Some(&"-"), "{uid}");
    }
}

#[test]
fn a_status_that_cannot_be_read_is_named_with_the_cause() {
    if !is_ours() || !needs_root() {
        return;
    }
    let (server, _, _) = serving(Server::setup().umask(0o077));
    let told_to_user = told(&server, &[]);
    assert_eq!(told_to_user.code, Some(0), "{told_to_user:?}");
    fs::set_permissions(
        server.folder().join("pid"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .expect("cannot open the pid file");
    let told = told_to(FOREIGN, server.folder(), &[]);
    assert_eq!((told.code, &*told.text), (Some(1), ""));
    let cause = format!(
        "start_server: cannot show the status of pid {}: pid.json cannot be read: Permission denied\n\
         hint: use the user that the server runs as, or root\n",
        server.pid()
    );
    assert_eq!(told.errors, cause);
}

#[test]
fn without_a_server_the_code_is_3_and_nothing_is_printed_in_any_form() {
    if !is_ours() {
        return;
    }
    let (mut server, _, _) = serving(Server::setup());
    assert!(server.stop().success());
    for form in [&[][..], &["--json"], &["--openmetrics"]] {
        let told = told(&server, form);
        assert_eq!((told.code, &*told.text), (Some(3), ""));
        let cause = "start_server: not running: pid does not exist\n";
        assert_eq!(told.errors, cause);
    }
}

/// A process of an ordinary user that holds the lock can write anything into the status that root reads.
#[test]
fn what_a_hostile_server_writes_neither_drives_the_terminal_nor_floods_it() {
    if !is_ours() || !needs_program("flock") {
        return;
    }
    let folder = ordinary_folder();
    let folder = folder.path();
    let pid_file = folder.join("pid");
    let server = locking(&pid_file, as_ordinary_user());
    fs::write(&pid_file, format!("{}\n", server.pid())).expect("cannot write the pid file");
    let harm = format!(
        r##"\u001b[2J\u009b2J\n# EOF\n\u202e\\\"{}"##,
        "x".repeat(50_000)
    );
    let listener =
        format!(r#"{{"name":"{harm}","kind":"tcp","address":"{harm}","trouble":"{harm}"}}"#);
    let json = format!(
        r#"{{"supervisor":{{"pid":{},"version":"{harm}","started_at":-1e300}},"unhealthy":"{harm}",
        "listeners":[{listener},{listener}],
        "generations":[{{"number":18446744073709551615,"state":"current","waiting_for":"{harm}",
        "workers":[{{"pid":1,"started_at":1e300,"text":"{harm}"}},{{"pid":-1}}]}}],
        "verdicts":[{{"request":0,"generation":1,"result":"failed","cause":"{harm}","hint":"{harm}","stderr":["{harm}"]}}]}}"#,
        server.pid(),
    );
    let json_file = folder.join("pid.json");
    fs::write(&json_file, json).expect("cannot write the status");
    let as_whoever_tests = |form: &[&str]| {
        let mut command = Command::new(programs::start_server());
        command
            .args(["--status", "--pid-file=pid"])
            .args(form)
            .current_dir(folder);
        Told::by(command)
    };
    let told = as_whoever_tests(&[]);
    assert_eq!((told.code, &*told.errors), (Some(1), ""), "{told:?}");
    assert!(
        told.first_line()
            .starts_with(r"unhealthy: \x1B[2J\xC2\x9B2J\x0A"),
        "{told:?}"
    );
    assert_fits(&told.text);
    assert!(told.text.len() < 8000, "{} bytes", told.text.len());
    // It is not a child of the server, whatever it is.
    assert_eq!(told.row("1844674...")[5..8], ["-", "-", "-"], "{told:?}");
    let told = as_whoever_tests(&["--json"]);
    let is_plain = |one: char| one == '\n' || (' '..='~').contains(&one);
    assert!(told.text.chars().all(is_plain));
    let text = told.json()["workers"][0]["text"].clone();
    assert!(
        text.as_str()
            .is_some_and(|text| text.contains("\u{1b}[2J\u{9b}2J\n# EOF"))
    );
    let told = as_whoever_tests(&["--openmetrics"]);
    assert!(told.text.chars().all(is_plain));
    check_openmetrics(&told.text);
}

// For programs.

#[test]
fn json_has_everything_that_is_shown() {
    if !is_ours() {
        return;
    }
    let (server, port, worker) = serving(Server::setup());
    let told = told(&server, &["--json"]);
    assert_eq!((told.code, &*told.errors), (Some(0), ""), "{told:?}");
    let json = told.json();
    assert_eq!(
        (&json["state"], &json["headline"]),
        (&"serving".into(), &"serving".into())
    );
    assert_eq!(json["supervisor"]["pid"], server.pid().as_raw());
    let started_at = json["supervisor"]["started_at"].as_f64().expect("a time");
    assert!(json["at"].as_f64().expect("a time") >= started_at);
    let listener = &json["listeners"][0];
    assert_eq!(listener["address"], format!("127.0.0.1:{port}"));
    assert_eq!(listener["queue"], 0);
    assert_eq!(json["generations"][0]["state"], "current");
    let row = &json["workers"][0];
    assert_eq!(
        (&row["generation"], &row["state"]),
        (&1.into(), &"current".into())
    );
    assert_eq!(
        (&row["pid"], &row["connections"]),
        (&worker.pid.as_raw().into(), &0.into())
    );
    assert!(row["rss"].as_u64() > Some(100_000), "{row}");
    assert!(row["cpu_seconds"].is_f64() && row["started_at"].as_f64() >= Some(started_at));
    assert_eq!(json["last_verdict"]["result"], "committed");
    assert_eq!(json["counters"]["commits"], 1);
    assert!(json["counters"]["committed_at"].as_f64() > Some(started_at));
    server.restart();
    server.wait_until("the second commit is counted", |server| {
        self::told(server, &["--json"]).json()["counters"]["commits"] == 2
    });
}

/// The rules of OpenMetrics 1.0 that a writer breaks most easily. Returns the samples.
#[track_caller]
fn check_openmetrics(text: &str) -> Vec<(String, f64)> {
    let body = text.strip_suffix("# EOF\n").expect("no EOF at the end");
    let (mut families, mut seen, mut samples) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let mut family = (String::new(), String::new());
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            let [what, name, value] = words[..] else {
                panic!("not a description: {line}");
            };
            match what {
                "TYPE" => {
                    assert!(families.insert(name.to_owned()), "described twice: {name}");
                    family = (name.to_owned(), value.to_owned());
                }
                "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                "HELP" => assert!(value.ends_with('.'), "{line}"),
                _ => panic!("not a description: {line}"),
            }
            assert_eq!(name, family.0, "{line}");
            continue;
        }
        let (labelled, value) = line.rsplit_once(' ').expect("a sample");
        let name = labelled.split('{').next().expect("a name");
        let suffix = match &*family.1 {
            "counter" => "_total",
            "info" => "_info",
            "gauge" | "stateset" => "",
            other => panic!("an unknown type: {other}"),
        };
        assert_eq!(name, format!("{}{suffix}", family.0), "{line}");
        if let Some(labels) = labelled.strip_prefix(name).filter(|rest| !rest.is_empty()) {
            let labels = labels.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
            check_labels(labels.expect("labels"));
        }
        assert!(seen.insert(labelled.to_owned()), "a duplicate: {labelled}");
        let value: f64 = value.parse().unwrap_or_else(|e| panic!("{e}: {line}"));
        samples.push((labelled.to_owned(), value));
    }
    samples
}

/// `name="value"`, separated by commas; in a value, a backslash comes only before a backslash, a quote or an n.
#[track_caller]
fn check_labels(labels: &str) {
    let mut rest = labels;
    loop {
        let (name, after) = rest.split_once("=\"").expect("a label");
        assert!(
            name.chars()
                .all(|one| one.is_ascii_lowercase() || one == '_')
        );
        let (mut escaped, mut end) = (false, None);
        for (at, one) in after.char_indices() {
            match (escaped, one) {
                (true, '\\' | '"' | 'n') => escaped = false,
                (true, other) => panic!("an escaped {other}: {labels}"),
                (false, '\\') => escaped = true,
                (false, '"') => {
                    end = Some(at);
                    break;
                }
                (false, _) => {}
            }
        }
        rest = &after[end.expect("the end of a value") + 1..];
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => return assert_eq!(rest, "", "{labels}"),
        }
    }
}

#[test]
fn openmetrics_is_valid_and_has_what_a_scraper_wants() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().option("--backlog=5").worker(["--graceful"]);
    let (server, port, worker) = serving(setup);
    let held = client::hold(port);
    server.signal(Signal::SIGHUP);
    let samples = server.wait_for("generation 1 drains", |server| {
        let told = told(server, &["--openmetrics"]);
        assert_eq!((told.code, &*told.errors), (Some(0), ""), "{told:?}");
        let samples = check_openmetrics(&told.text);
        let drains = (r#"start_server_workers{state="old"}"#.to_owned(), 1.0);
        samples.contains(&drains).then_some(samples)
    });
    let value = |name: &str| {
        let found = samples.iter().find(|(one, _)| one == name);
        found
            .unwrap_or_else(|| panic!("{name} is missing: {samples:#?}"))
            .1
    };
    let listener = format!(r#"{{listener="127.0.0.1:{port}",kind="tcp"}}"#);
    for (name, expected) in [
        (r#"start_server_state{start_server_state="serving"}"#, 1.0),
        ("start_server_current_generation", 2.0),
        (r#"start_server_generations{state="old"}"#, 1.0),
        (r#"start_server_workers{state="current"}"#, 1.0),
        (r#"start_server_connections{state="old"}"#, 1.0),
        (r#"start_server_starts_total{outcome="committed"}"#, 2.0),
        (r#"start_server_starts_total{outcome="failed"}"#, 0.0),
        ("start_server_restart_requests_total", 1.0),
        ("start_server_crashes_total", 0.0),
        ("start_server_log_lines_dropped_total", 0.0),
        (&format!("start_server_listener_queue{listener}"), 0.0),
        (&format!("start_server_listener_backlog{listener}"), 5.0),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
    let success = value("start_server_last_success_timestamp_seconds");
    assert!(success > value("start_server_start_time_seconds"));
    held.finish();
    let second = server.wait_for_generations(&[2])[0];
    assert_ne!(second.pid, worker.pid);
    kill(second.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_until("the crash is counted", |server| {
        let samples = check_openmetrics(&told(server, &["--openmetrics"]).text);
        samples.contains(&("start_server_crashes_total".to_owned(), 1.0))
    });
}

// On a terminal.

/// A client on a terminal of its own, and what it has written there.
struct OnTerminal {
    client: Server,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(server: &Server, options: &[&str], no_color: bool) -> OnTerminal {
        let pty = openpty(None, None).expect("cannot open a terminal");
        let terminal = File::from(pty.slave);
        let output = terminal.try_clone().expect("cannot duplicate a descriptor");
        let pid_file = server.folder().join("pid");
        let mut setup = Server::setup()
            .without_interval()
            .without_program()
            .option("--status")
            .option(format!("--pid-file={}", pid_file.display()))
            .options(options.iter().copied())
            .terminal(terminal)
            .output(output);
        if no_color {
            setup = setup.env("NO_COLOR", "1");
        }
        let client = setup.start();
        let keyboard = File::from(pty.master);
        let mut master = keyboard.try_clone().expect("cannot duplicate a descriptor");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&screen);
        // It ends with an error when nobody has the terminal any more.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = master.read(&mut buffer) {
                let mut written = written.lock().expect("a thread panicked");
                written.extend_from_slice(&buffer[..length]);
            }
        });
        OnTerminal {
            client,
            keyboard,
            screen,
        }
    }

    fn screen(&self) -> String {
        let screen = self.screen.lock().expect("a thread panicked");
        String::from_utf8_lossy(&screen).into_owned()
    }

    #[track_caller]
    fn wait_until(&self, condition: &str, holds: impl Fn(&str) -> bool) {
        wait::until(
            condition,
            || self.screen(),
            || holds(&self.screen()).then_some(()),
        );
    }
}

#[test]
fn colours_are_for_terminals_alone_and_for_those_who_want_them() {
    if !is_ours() {
        return;
    }
    let (server, _, _) = serving(Server::setup());
    assert!(!told(&server, &[]).text.contains('\x1b'));
    for (no_color, expected) in [(false, true), (true, false)] {
        let mut client = OnTerminal::start(&server, &[], no_color);
        assert_eq!(client.client.wait_exit().code(), Some(0));
        client.wait_until("the table is there", |screen| screen.contains("current"));
        let screen = client.screen();
        assert_eq!(
            screen.contains("\x1b[32mserving\x1b[0m"),
            expected,
            "{screen:?}"
        );
        assert_eq!(screen.contains('\x1b'), expected, "{screen:?}");
    }
}

/// What makes the next picture take the place of the last one.
const REDRAWN: &str = "A\r\x1b[J";

#[test]
fn a_follower_redraws_what_changes_until_ctrl_c_ends_it() {
    if !is_ours() {
        return;
    }
    let (server, _, _) = serving(Server::setup());
    let mut follower = OnTerminal::start(&server, &["--follow"], true);
    follower.wait_until("it is drawn", |screen| screen.contains("1  current"));
    server.restart();
    follower.wait_until("it is redrawn", |screen| {
        let last = screen.rsplit(REDRAWN).next().unwrap_or_default();
        screen.contains(REDRAWN) && last.contains("2  current")
    });
    follower.keyboard.write_all(b"\x03").expect("cannot type");
    // As the default action of INT: a shell sees 130, and ends its script as well.
    let status = follower.client.wait_exit();
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "{status}");
}

#[test]
fn a_follower_ends_with_the_server() {
    if !is_ours() {
        return;
    }
    let (mut server, _, _) = serving(Server::setup());
    let mut follower = OnTerminal::start(&server, &["--follow"], true);
    follower.wait_until("it is drawn", |screen| screen.contains("1  current"));
    let pid = server.pid();
    assert!(server.stop().success());
    assert_eq!(follower.client.wait_exit().code(), Some(3));
    let end = format!("start_server: not running: pid {pid} has exited");
    follower.wait_until("it says why it ends", |screen| screen.contains(&end));
}

#[test]
fn a_follower_needs_a_terminal() {
    if !is_ours() {
        return;
    }
    let (server, _, _) = serving(Server::setup());
    let mut follower = run(&server, &["--status", "--pid-file=pid", "--follow"]);
    assert_eq!(follower.wait(), 2);
    let cause = "start_server: cannot use --follow: standard output is not a terminal\n";
    assert_eq!(follower.said(), cause);
}
