//! `--upgrade` and USR2: another version of start_server goes on in the same process, and nobody notices.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use e2e::folder;
use e2e::skip::original_differs;
use e2e::{Report, Server, Setup, client, ports, proc, programs};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::bad_input::assert_usage;
use crate::commands::{Client, accepted, run};
use crate::launch::install;
use crate::readiness::with_files;

/// What the version of a new file is, in a debug build.
const NEWER: &str = "9.9.9";

pub fn is_ours() -> bool {
    !original_differs("it cannot be upgraded in place")
}

/// The two programs of one server, in a folder of their own.
pub struct Programs(PathBuf);

impl Programs {
    /// Those that were built.
    pub fn install(folder: &Path) -> Programs {
        fs::create_dir(folder).expect("cannot make the folder of the programs");
        for program in [programs::start_server(), programs::binder()] {
            let name = program.file_name().and_then(|name| name.to_str());
            install(&program, folder, name.expect("UTF-8"));
        }
        Programs(folder.to_owned())
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }

    pub fn start_server(&self) -> PathBuf {
        self.0.join("start_server")
    }

    /// Puts another file in the place of start_server, as package managers do.
    pub fn replace(&self, by: &Path) {
        let next = install(by, &self.0, "next");
        fs::rename(next, self.start_server()).expect("cannot replace the program");
    }

    /// Puts [`successor`](e2e) there, with this order.
    pub fn replace_by_successor(&self, order: &str) {
        fs::write(self.0.join("successor"), order).expect("cannot write the order");
        self.replace(&programs::installed().join("successor"));
    }

    /// Puts the version there that was built, or another one.
    pub fn replace_by_version(&self, is_newer: bool) -> String {
        let (program, version) = match is_newer {
            true => newer().clone(),
            false => (programs::start_server(), env!("CARGO_PKG_VERSION").into()),
        };
        self.replace(&program);
        version
    }
}

/// A start_server that has another version, and the version. It is the same program with another text in it; where a
/// compiler may have put the text into the code, it is the same program.
pub fn newer() -> &'static (PathBuf, String) {
    static NEWER_PROGRAM: OnceLock<(PathBuf, String)> = OnceLock::new();
    NEWER_PROGRAM.get_or_init(|| {
        let (ours, newer) = (env!("CARGO_PKG_VERSION"), NEWER);
        if !cfg!(debug_assertions) || ours.len() != newer.len() {
            return (programs::start_server(), ours.to_owned());
        }
        let mut program = fs::read(programs::start_server()).expect("cannot read the program");
        let mut place = 0;
        while place + ours.len() <= program.len() {
            if program[place..].starts_with(ours.as_bytes()) {
                program[place..place + ours.len()].copy_from_slice(newer.as_bytes());
            }
            place += 1;
        }
        let path = folder::base().join("newer");
        fs::write(&path, program).expect("cannot write a program");
        (path, newer.to_owned())
    })
}

/// A server whose programs can be replaced.
pub fn upgradable(setup: Setup) -> (Setup, Programs) {
    let programs = Programs::install(&setup.folder().join("programs"));
    (setup.copy(programs.start_server()), programs)
}

/// The same, when its first generation has been accepted at this port.
#[track_caller]
pub fn serving(setup: Setup) -> (Server, Programs, u16) {
    let port = ports::tcp();
    let (setup, programs) = upgradable(setup.port(port));
    let server = setup.start();
    accepted(&server);
    (server, programs, port)
}

pub fn upgrade(server: &Server) -> Client {
    run(server, &["--upgrade", "--pid-file=pid"])
}

/// Upgrades it, and succeeds.
#[track_caller]
pub fn upgraded(server: &Server) {
    let mut client = upgrade(server);
    assert_eq!(client.wait(), 0, "{}\n{}", client.said(), server.log());
}

/// What a process is to others: its name, and the words of its command line.
fn appearance(pid: Pid) -> (String, Vec<u8>) {
    let of = |file: &str| fs::read(format!("/proc/{pid}/{file}")).expect("it has ended");
    let name = String::from_utf8(of("comm")).expect("UTF-8");
    (name, of("cmdline"))
}

/// How many descriptors lead to each thing.
pub fn open_files(pid: Pid) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for target in proc::descriptors(pid).into_values() {
        *found.entry(target).or_default() += 1;
    }
    found
}

fn supervisor(server: &Server) -> serde_json::Value {
    server.status_json().expect("no status")["supervisor"].clone()
}

#[test]
fn process_workers_and_listeners_stay_and_the_version_is_another() {
    if !is_ours() {
        return;
    }
    let (server, programs, port) = serving(
        with_files()
            .path("socket")
            .worker(["--graceful", "--catch=HUP,INT,USR1,USR2,CHLD,WINCH"]),
    );
    let (pid, before) = (server.pid(), server.ask(port));
    let (looks, open, known) = (appearance(pid), open_files(pid), supervisor(&server));
    let version = programs.replace_by_version(true);
    let mut client = upgrade(&server);
    assert_eq!(client.wait(), 0, "{}", client.said());
    let ours = env!("CARGO_PKG_VERSION");
    let said = format!(
        "sent USR2 to start_server (pid:{pid}), waiting for the upgrade...\n\
         start_server (pid:{pid}) runs version {version} now, before that {ours}; its workers go on\n"
    );
    assert_eq!(client.said(), said);
    let after = server.ask(port);
    assert_eq!(after, before);
    assert_eq!(server.pid_file(), Some(pid));
    assert_eq!((appearance(pid), open_files(pid)), (looks, open));
    let now = supervisor(&server);
    assert_eq!(now["version"], version.as_str());
    for same in ["pid", "started_at", "start_ticks"] {
        assert_eq!(now[same], known[same], "{same}");
    }
    let worker = Pid::from_raw(before.pid);
    assert_eq!(proc::children(pid), [worker]);
    let running = fs::read_link(format!("/proc/{pid}/exe")).expect("it has ended");
    assert_eq!(running, programs.start_server());
    server.wait_for_log(&format!("received USR2, trying {}", running.display()));
    server.wait_for_log("start_server: upgraded in place, from version");
    assert_eq!(server.caught(server.wait_for_service(1)), [""; 0]);
    works_as_before(server, port, &before);
}

/// Restart, status, pins and stop after an upgrade; workers know nothing of it.
#[track_caller]
fn works_as_before(mut server: Server, port: u16, before: &Report) {
    let mut restart = run(&server, &["--restart", "--pid-file=pid"]);
    assert_eq!(restart.wait(), 0, "{}", restart.said());
    let second = server.ask(port);
    assert_eq!(second.generation, Some(2));
    assert_eq!(second.descriptors[&3], before.descriptors[&3]);
    assert_eq!(client::ask(&server.folder().join("socket")).pid, second.pid);
    for report in [before, &second] {
        let of_ours = |name: &&String| name.starts_with("START_SERVER");
        assert_eq!(report.environment.keys().find(of_ours), None);
    }
    let mut same = second.environment.clone();
    same.insert("SERVER_STARTER_GENERATION".into(), "1".into());
    assert_eq!(same, before.environment);
    let mut status = run(&server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 0, "{}", status.said());
    // It is replaced from the pins.
    drop(client::request(port, "exit 3"));
    server.wait_for_service(3);
    server.wait_until("it has served", |_| {
        client::try_ask(port).is_ok_and(|report| report.generation == Some(3))
    });
    assert!(server.stop().success(), "{}", server.log());
    for file in ["pid", "status", "status.json", "pid.json", "socket"] {
        assert!(!server.folder().join(file).exists(), "{file}");
    }
}

#[test]
fn usr2_alone_is_enough_and_a_quiet_client_says_nothing() {
    if !is_ours() {
        return;
    }
    let (mut server, programs, port) = serving(with_files());
    let first = server.ask(port).pid;
    let version = programs.replace_by_version(true);
    server.signal(Signal::SIGUSR2);
    server.wait_until("the other version runs", |server| {
        supervisor(server)["version"] == version.as_str()
    });
    let mut client = run(&server, &["--upgrade", "--pid-file=pid", "--quiet"]);
    assert_eq!(client.wait(), 0);
    assert_eq!(client.said(), "");
    assert_eq!(server.ask(port).pid, first);
    assert!(server.stop().success());
}

#[test]
fn a_worker_that_dies_is_replaced_by_what_has_served_after_an_upgrade_too() {
    if !is_ours() {
        return;
    }
    let setup = with_files();
    let program = install(&programs::worker(), setup.folder(), "server");
    let journal = format!("--journal={}", setup.folder().join("journal").display());
    let words = [program.to_str().expect("UTF-8").to_owned(), journal];
    let (server, programs, port) = serving(setup.program(words));
    let broken = install(Path::new("/bin/false"), server.folder(), "broken");
    fs::rename(broken, &program).expect("cannot replace it");
    programs.replace_by_version(true);
    upgraded(&server);
    drop(client::request(port, "exit 3"));
    server.wait_for_service(2);
    upgraded(&server);
    drop(client::request(port, "exit 3"));
    server.wait_for_service(3);
    assert_eq!(server.ask(port).generation, Some(3));
}

#[test]
fn twenty_upgrades_leave_nothing_behind() {
    if !is_ours() {
        return;
    }
    let (mut server, programs, port) = serving(
        with_files()
            .path("socket")
            .options(["--log-file=server.log", "--log-timestamps"]),
    );
    let (pid, before) = (server.pid(), server.ask(port));
    let open = open_files(pid);
    let limits = proc::limits(pid);
    let signals = |status: proc::Status| (status.blocked, status.ignored, status.caught);
    let masks = proc::status(pid).map(signals);
    for number in 0..20 {
        programs.replace_by_version(number % 2 == 0);
        upgraded(&server);
    }
    assert_eq!(open_files(pid), open);
    assert_eq!(proc::limits(pid), limits);
    assert_eq!(proc::status(pid).map(signals), masks);
    assert_eq!(proc::children(pid), [Pid::from_raw(before.pid)]);
    let json = server.status_json().expect("no status");
    assert_eq!(json["upgrades"]["tried"], 20);
    // Each leaves the next no more than it had itself.
    let variables = fs::read(format!("/proc/{pid}/environ")).expect("it has ended");
    let of_ours = variables.split(|byte| *byte == 0);
    let of_ours = of_ours.filter(|one| one.starts_with(b"START_SERVER_RESUME="));
    assert_eq!(of_ours.count(), 1);
    assert_eq!(server.ask(port), before);
    assert!(server.stop().success());
}

// The clients.

#[test]
fn without_a_server_it_is_exit_code_3_and_it_stands_alone() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().without_program().without_interval();
    let finished = setup.options(["--upgrade", "--pid-file=pid"]).run();
    assert_eq!(finished.status.code(), Some(3), "{}", finished.log);
    for (other, line) in [
        ("--restart", "--restart: --upgrade is given as well"),
        ("--rollback", "--rollback: --upgrade is given as well"),
        ("--stop", "--upgrade: --stop is given as well"),
        ("--reopen", "--upgrade: --reopen is given as well"),
        ("--status", "--upgrade: --status is given as well"),
    ] {
        let setup = Server::setup().without_program().without_interval();
        let setup = setup.options(["--upgrade", other, "--pid-file=pid"]);
        assert_usage(setup, &[&format!("start_server: cannot use {line}")]);
    }
    let setup = Server::setup().without_program().without_interval();
    assert_usage(
        setup.option("--upgrade"),
        &["start_server: cannot use --upgrade: it needs --pid-file as well"],
    );
}

#[test]
fn a_server_that_is_stopped_is_exit_code_4_and_is_upgraded_when_it_goes_on() {
    if !is_ours() {
        return;
    }
    let (server, programs, port) = serving(with_files());
    let (pid, first) = (server.pid(), server.ask(port).pid);
    programs.replace_by_version(true);
    proc::stop(pid);
    let mut client = run(&server, &["--upgrade", "--pid-file=pid", "--timeout=0.3"]);
    assert_eq!(client.wait(), 4, "{}", client.said());
    let lines = format!(
        "start_server: cannot wait longer for the upgrade of pid {pid}: --timeout expired\n\
         hint: pid {pid} is stopped: `kill -CONT {pid}` resumes it\n"
    );
    assert!(client.said().ends_with(&lines), "{}", client.said());
    server.signal(Signal::SIGCONT);
    server.wait_for_log("upgraded in place");
    assert_eq!(server.ask(port).pid, first);
}

#[test]
fn a_server_that_does_not_know_of_upgrades_is_not_signalled() {
    if !is_ours() {
        return;
    }
    let (server, _, _) = serving(with_files());
    let json = server.folder().join("pid.json");
    let mut status: serde_json::Value =
        serde_json::from_slice(&fs::read(&json).expect("no status")).expect("JSON");
    let orders = status["supervisor"]["orders"].as_array_mut();
    let orders = orders.expect("no orders");
    orders.retain(|order| order != "upgrade");
    fs::write(&json, status.to_string()).expect("cannot write");
    let mut client = upgrade(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    let pid = server.pid();
    let ours = env!("CARGO_PKG_VERSION");
    let line = format!(
        "start_server: cannot upgrade pid {pid}: its version {ours} cannot be upgraded in place\nhint: "
    );
    assert!(client.said().starts_with(&line), "{}", client.said());
    assert_eq!(server.count_in_log("USR2"), 0);
}

#[test]
fn two_clients_at_once_both_get_an_answer() {
    if !is_ours() {
        return;
    }
    let (server, programs, port) = serving(with_files());
    let first = server.ask(port).pid;
    programs.replace_by_version(true);
    let mut clients: Vec<Client> = (0..2).map(|_| upgrade(&server)).collect();
    for client in &mut clients {
        assert_eq!(client.wait(), 0, "{}", client.said());
    }
    programs.replace_by_successor("no");
    let mut clients: Vec<Client> = (0..2).map(|_| upgrade(&server)).collect();
    for client in &mut clients {
        assert_eq!(client.wait(), 1, "{}", client.said());
    }
    assert_eq!(server.ask(port).pid, first);
}

/// The mode of a file.
pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("cannot set the mode");
}
