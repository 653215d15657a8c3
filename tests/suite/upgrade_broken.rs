//! New versions that are none, snapshots that cannot be used, and what a launcher must not be able to forge.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::process::Output;

use e2e::server::Finished;
use e2e::skip::{needs_program, needs_root};
use e2e::start::InTurn;
use e2e::{Report, Server, Setup, client, proc, programs};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::launch::{RootFolder, install};
use crate::policy::set_capability;
use crate::readiness::with_files;
use crate::snapshots;
use crate::upgrade::{Programs, chmod, is_ours, open_files, serving, upgrade, upgraded};

/// What lies there instead of a new version, and what is said of it.
struct Broken {
    what: &'static str,
    put: fn(&Programs),
    cause: &'static str,
}

/// Puts a file there that has these bytes.
fn put_bytes(programs: &Programs, bytes: &[u8]) {
    let file = programs.folder().join("bytes");
    fs::write(&file, bytes).expect("cannot write");
    programs.replace(&file);
}

fn of_the_program(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = fs::read(programs::start_server()).expect("cannot read the program");
    change(&mut bytes);
    bytes
}

const BROKEN: &[Broken] = &[
    Broken {
        what: "nothing",
        put: |it| fs::remove_file(it.start_server()).expect("cannot remove it"),
        cause: "No such file or directory",
    },
    Broken {
        what: "a directory",
        put: |it| {
            it.replace(&programs::start_server());
            fs::remove_file(it.start_server()).expect("cannot remove it");
            fs::create_dir(it.start_server()).expect("cannot make a directory");
        },
        cause: "it is not a regular file",
    },
    Broken {
        what: "an empty file",
        put: |it| put_bytes(it, b""),
        cause: "Exec format error",
    },
    Broken {
        what: "a part of the program",
        put: |it| put_bytes(it, &of_the_program(|bytes| bytes.truncate(20000))),
        cause: "",
    },
    Broken {
        what: "a program for another machine",
        put: |it| {
            let swap = |bytes: &mut Vec<u8>| bytes[18..20].copy_from_slice(&[0xff, 0x7f]);
            put_bytes(it, &of_the_program(swap));
        },
        cause: "Exec format error",
    },
    Broken {
        what: "a program that was not made executable",
        put: |it| {
            it.replace(&programs::start_server());
            chmod(&it.start_server(), 0o644);
        },
        cause: "it is not executable",
    },
    Broken {
        what: "a program that a group can write",
        put: |it| {
            it.replace(&programs::start_server());
            chmod(&it.start_server(), 0o775);
        },
        cause: "writable",
    },
    Broken {
        what: "a program that everybody can write",
        put: |it| {
            it.replace(&programs::start_server());
            chmod(&it.start_server(), 0o757);
        },
        cause: "writable",
    },
    Broken {
        what: "what hangs",
        put: |it| it.replace_by_successor("hang"),
        cause: "it did not answer within 5 secs",
    },
    Broken {
        what: "what says no",
        put: |it| it.replace_by_successor("no"),
        cause: "it is a bad day",
    },
    Broken {
        what: "what knows nothing of it",
        put: |it| it.replace_by_successor("silent"),
        cause: "it does not know how to resume",
    },
    Broken {
        what: "what fails when it has taken over",
        put: |it| {
            it.replace_by_successor(&format!("fails {}", programs::start_server().display()));
        },
        cause: "the snapshot is damaged",
    },
];

/// The old version goes on, and says why: once in its log, and to the client.
#[track_caller]
fn assert_goes_on(server: &Server, programs: &Programs, broken: &Broken) {
    let Broken { what, put, cause } = broken;
    let pid = server.pid();
    let workers = server.workers();
    let open = server.wait_for("the status files are written", |_| {
        let open = open_files(pid);
        let files = ["/status", "/status.json", "/pid.json"];
        let has = |file: &&str| open.keys().any(|target| target.ends_with(*file));
        files.iter().all(has).then_some(open)
    });
    let before = server.count_in_log("start_server: cannot upgrade to ");
    // Whatever was there before it was removed.
    drop(fs::remove_dir(programs.start_server()));
    put(programs);
    let mut client = upgrade(server);
    assert_eq!(client.wait(), 1, "{what}: {}", client.said());
    let said = client.said();
    let last = said.lines().last().unwrap_or_default();
    let start = format!("start_server: cannot upgrade pid {pid}: ");
    assert!(last.starts_with(&start), "{what}: {said}");
    assert!(
        last.len() > start.len() && last.contains(cause),
        "{what}: {said}"
    );
    let warnings = server.count_in_log("start_server: cannot upgrade to ");
    assert_eq!(warnings, before + 1, "{what}: {}", server.log());
    let line = format!(
        "start_server: cannot upgrade to {}: {}; version {} goes on",
        programs.start_server().display(),
        &last[start.len()..],
        env!("CARGO_PKG_VERSION")
    );
    server.wait_for_log(&line);
    assert_eq!(server.workers(), workers, "{what}");
    // Less may be: what was being replaced a moment ago is closed by now.
    server.wait_until("nothing more is open", |_| {
        let now = open_files(pid);
        now.iter()
            .all(|(target, count)| open.get(target) >= Some(count))
    });
    let children: Vec<Pid> = workers.iter().map(|worker| worker.pid).collect();
    assert_eq!(proc::children(pid), children, "{what}");
    let mut status = crate::commands::run(server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 0, "{what}: {}", status.said());
}

#[test]
fn whatever_lies_there_the_old_version_goes_on_and_a_good_one_works_later() {
    if !is_ours() {
        return;
    }
    let (mut server, programs, port) = serving(with_files().worker(["--graceful"]));
    for (number, broken) in BROKEN.iter().enumerate() {
        assert_goes_on(&server, &programs, broken);
        if number % 3 == 0 {
            server.restart();
        }
    }
    let serving = server.ask(port);
    drop(fs::remove_dir(programs.start_server()));
    programs.replace_by_version(true);
    upgraded(&server);
    assert_eq!(server.ask(port), serving);
    let json = server.status_json().expect("no status");
    assert_eq!(json["upgrades"]["failure"], serde_json::Value::Null);
    server.restart();
    assert!(server.stop().success());
}

#[test]
fn a_program_of_another_owner_or_behind_a_link_does_not_take_over() {
    if !is_ours() || !needs_root() {
        return;
    }
    let (server, programs, _) = serving(with_files());
    let foreign = Broken {
        what: "a program of another owner",
        put: |it| {
            it.replace(&programs::start_server());
            chown(it.start_server(), Some(65534), None).expect("cannot give it away");
        },
        cause: "it belongs to uid 65534, and the program that runs to uid 0",
    };
    assert_goes_on(&server, &programs, &foreign);
    // A link is followed, and what it leads to is what counts.
    let behind = Broken {
        what: "a link to a program of another owner",
        put: |it| {
            let target = install(&programs::start_server(), it.folder(), "target");
            chown(&target, Some(65534), None).expect("cannot give it away");
            fs::remove_file(it.start_server()).expect("cannot remove it");
            symlink(target, it.start_server()).expect("cannot make a link");
        },
        cause: "it belongs to uid 65534",
    };
    assert_goes_on(&server, &programs, &behind);
    chown(programs.folder().join("target"), Some(0), Some(0)).expect("cannot take it back");
    upgraded(&server);
}

// Snapshots.

/// What the program says to a snapshot.
fn ask(snapshot: &[u8]) -> Output {
    snapshots::can_resume(&programs::start_server(), snapshot)
}

#[test]
fn a_snapshot_that_cannot_be_used_is_one_clear_line() {
    if !is_ours() {
        return;
    }
    let good = snapshots::of_the_corpus();
    let (_, good) = good.first().expect("an empty corpus");
    let mut bit = good.clone();
    *bit.last_mut().expect("it is empty") ^= 1;
    let short = &good[..good.len() - 1];
    let header = good
        .iter()
        .position(|byte| *byte == b'\n')
        .expect("no line");
    let empty = snapshots::sealed(b"{}");
    for (snapshot, cause) in [
        (&b""[..], "it is no snapshot of start_server"),
        (b"\n", "it is no snapshot of start_server"),
        (b"hello\nworld\n", "it is no snapshot of start_server"),
        (
            b"start_server snapshot\n{}",
            "it is no snapshot of start_server",
        ),
        (
            b"start_server snapshot x 2 0\n{}",
            "it is no snapshot of start_server",
        ),
        (&[0xff; 100], "it is no snapshot of start_server"),
        (
            b"start_server snapshot 3 2 0\n{}",
            "the snapshot has format 3, and this version knows formats up to 2",
        ),
        (
            b"start_server snapshot 0 2 0\n{}",
            "the snapshot has format 0",
        ),
        (
            b"start_server snapshot 1 2 0\n{}",
            "the snapshot is damaged",
        ),
        (&bit, "the snapshot is damaged"),
        (short, "the snapshot is damaged"),
        (&good[..=header], "the snapshot is damaged"),
        (&empty, "the snapshot cannot be used: missing field"),
    ] {
        let output = ask(snapshot);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{cause}: {said}");
        assert!(
            said.starts_with(&format!("start_server: {cause}")),
            "{cause}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_question_about_no_snapshot_is_refused() {
    if !is_ours() {
        return;
    }
    for (word, code) in [
        ("--can-resume=99", 1),
        ("--can-resume=2147483647", 1),
        ("--can-resume=0", 1),
        ("--can-resume=x", 2),
        ("--can-resume=", 2),
        ("--can-resume", 2),
    ] {
        let finished = client_alone([word]);
        assert_eq!(
            finished.status.code(),
            Some(code),
            "{word}: {}",
            finished.log
        );
        assert!(
            finished.log.starts_with("start_server: "),
            "{}",
            finished.log
        );
    }
    let finished = client_alone(["--can-resume=3", "--port=8080"]);
    assert_eq!(finished.status.code(), Some(2), "{}", finished.log);
}

fn client_alone<const N: usize>(words: [&str; N]) -> Finished {
    let setup = Server::setup().without_program().without_interval();
    setup.options(words).run()
}

// Privileges.

/// Started by an ordinary user, and by root with `--user`.
fn each_user() -> Vec<Setup> {
    let mut setups = vec![Server::setup()];
    if needs_root() {
        setups.push(Server::setup().as_root().option("--user=nobody"));
    }
    setups
}

#[test]
fn a_launcher_that_sets_the_variable_is_refused() {
    if !is_ours() {
        return;
    }
    for value in [
        "",
        "x",
        "3",
        "3:4",
        "3::",
        "3:4:",
        "0::",
        "2:2:",
        "-1::",
        "99999999999::",
        "900:901:it failed",
        "::",
        "\u{1b}[2J::",
    ] {
        for setup in each_user() {
            let finished = setup.env("START_SERVER_RESUME", value).run();
            assert_refused(&finished, "start_server: cannot resume: ");
        }
    }
    let long = "7::".to_owned() + &"x".repeat(100_000);
    for value in [
        OsString::from(long),
        OsString::from_vec(vec![0xff, b':', b':']),
    ] {
        for setup in each_user() {
            let finished = setup.env("START_SERVER_RESUME", &value).run();
            assert_refused(&finished, "start_server: cannot resume: ");
        }
    }
}

#[track_caller]
fn assert_refused(finished: &Finished, start: &str) {
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    assert!(finished.log.starts_with(start), "{}", finished.log);
    assert_eq!(finished.log.lines().count(), 1, "{}", finished.log);
    assert!(finished.server.started().is_empty());
}

#[test]
fn a_snapshot_does_not_make_a_server_of_root() {
    if !is_ours() || !needs_root() {
        return;
    }
    for (name, snapshot) in snapshots::of_the_corpus() {
        let setup = Server::setup().as_root();
        let file = setup.folder().join("crafted");
        fs::write(&file, snapshot).expect("cannot write");
        let file = File::open(file).expect("cannot open it");
        let number = snapshots::MOST_DESCRIPTORS;
        // First, before one of the others takes its number.
        let setup = setup.leak_file(file, number);
        let finished = (3..number)
            .fold(setup, Setup::leak)
            .env("START_SERVER_RESUME", format!("{number}::"))
            .run();
        let line = "start_server: cannot resume: it would run as root";
        assert_refused(&finished, line);
        assert!(finished.server.journal().is_empty(), "{name}");
    }
}

/// Whoever starts a program of which the file has a capability also says how it resumes, and to what it goes back.
#[test]
fn a_capability_of_the_file_is_not_handed_to_what_a_launcher_names() {
    if !is_ours() || !needs_root() || !needs_program("setcap") {
        return;
    }
    let folder = RootFolder::new();
    let program = install(&programs::start_server(), folder.path(), "start_server");
    set_capability(&program);
    let open = |path: &Path| File::open(path).expect("cannot open it");
    for snapshot in ["/dev/null", "/proc/cpuinfo"] {
        let setup = Server::setup()
            .copy(program.clone())
            .worker(["--report=report"])
            .env("START_SERVER_RESUME", "20:21:")
            .leak_file(open(Path::new(snapshot)), 20)
            .leak_file(open(&programs::worker()), 21);
        let server = setup.start();
        let report = server.wait_for("it is executed", |server| {
            let text = fs::read_to_string(server.folder().join("report")).ok()?;
            serde_json::from_str::<Report>(&text).ok()
        });
        assert_eq!(report.pid, server.pid().as_raw());
        let [inheritable, permitted, effective, _, ambient] = report.status.capabilities();
        assert_eq!([inheritable, permitted, effective, ambient], [0; 4]);
        let resumes = &report.environment["START_SERVER_RESUME"];
        assert!(resumes.starts_with("20::"), "{resumes}");
    }
}

#[test]
fn privileges_never_come_back() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let programs = Programs::install(&folder.path().join("programs"));
    let socket = folder.join("socket");
    let setup = with_files().as_root().copy(programs.start_server());
    let port = e2e::ports::low();
    let mut server = setup
        .option("--user=nobody")
        .port(port)
        .option(format!("--path={socket}"))
        .worker(["--graceful"])
        .start();
    let worker = server.accepted();
    let pid = server.pid();
    let binder = |server: &Server| {
        let children = proc::children(server.pid());
        let others: Vec<Pid> = children
            .into_iter()
            .filter(|it| *it != worker.pid)
            .collect();
        assert_eq!(others.len(), 1, "{others:?}");
        others[0]
    };
    let resident = binder(&server);
    let identity = |pid: Pid| {
        let status = proc::status(pid).expect("it has ended");
        let fds = fs::metadata(format!("/proc/{pid}/fd")).expect("it has ended");
        let own = (status.uids, status.gids, status.groups.clone());
        (own, status.capabilities(), status.no_new_privs, fds.uid())
    };
    let before = identity(pid);
    assert_eq!((before.1, before.2, before.3), ([0; 5], true, 0));
    let report = server.ask(port);
    for number in 0..3 {
        programs.replace_by_version(number % 2 == 0);
        upgraded(&server);
        assert_eq!(identity(pid), before);
        assert_eq!(binder(&server), resident);
        assert_eq!(server.ask(port), report);
    }
    let confinement = server.status_json().expect("no status")["confinement"].clone();
    assert_eq!(confinement["supervisor"]["no_new_privs"], true);
    assert_eq!(confinement["supervisor"]["bounding_set_empty"], true);
    // What fails when it has taken over gives nothing back either.
    programs.replace_by_successor(&format!("fails {}", programs::start_server().display()));
    let mut failing = upgrade(&server);
    assert_eq!(failing.wait(), 1, "{}", failing.said());
    assert_eq!(identity(pid), before);
    let second = server.restart();
    assert_eq!(identity(second.pid), identity_of_worker(&before));
    assert_eq!(client::ask(Path::new(&socket)).generation, Some(2));
    // The binder removes what only root can remove.
    server.signal(Signal::SIGTERM);
    assert!(server.wait_exit().success(), "{}", server.log());
    e2e::wait::until(
        "the socket is gone",
        || server.log(),
        || fs::symlink_metadata(&socket).is_err().then_some(()),
    );
    assert!(!proc::alive(resident));
}

/// A worker has the same, and is an ordinary process: it may be inspected by its user.
fn identity_of_worker<I: Clone>(of: &(I, [u64; 5], bool, u32)) -> (I, [u64; 5], bool, u32) {
    (of.0.clone(), of.1, of.2, 65534)
}

/// Both of the program's ways to be asked leave nothing that runs.
#[test]
fn nobody_runs_after_a_refused_start() {
    if !is_ours() {
        return;
    }
    let finished = Server::setup().env("START_SERVER_RESUME", "3::").run();
    assert!(finished.server.marked().is_empty());
    let mut command = finished.server.client(["--version"]);
    let output = command.env("START_SERVER_RESUME", "3::").output_in_turn();
    let output = output.expect("cannot run it");
    assert_eq!(output.status.code(), Some(1));
}
