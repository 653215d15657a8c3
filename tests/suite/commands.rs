//! `--daemonize`, `--stop` and `--restart`: when they return, and what they say then.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use e2e::folder::Folder;
use e2e::skip::{needs_program, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Report, Server, Setup, Worker, client, ports, proc, programs, wait};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, getpgid, getsid};

use crate::holders::hint_of_port_held_here;
use crate::launch::{as_ordinary_user, launch_program, ordinary_folder};
use crate::lock_holder::{self, locking};

/// Whoever is neither root nor the user of the server.
const FOREIGN: u32 = 4242;

/// Server::Starter prints other messages, has other exit codes and gives no verdicts.
pub fn is_ours() -> bool {
    !original_differs("its commands have other messages and exit codes")
}

/// As much of a status file as any client reads, in bytes.
const LARGEST_STATUS: usize = 16 * 1024 * 1024;

/// How soon after an event a waiting client must know it.
const SOON: Duration = Duration::from_secs(1);

// What the tests have in common.

/// A command that runs beside the test. Dropping it kills it.
pub struct Client {
    pub child: Child,
    output: PathBuf,
    code: Option<i32>,
}

impl Client {
    #[track_caller]
    pub fn start(mut command: Command, folder: &Path) -> Client {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let output = folder.join(format!("client-{number}"));
        let file = File::create(&output).expect("cannot make a file");
        let copy = file.try_clone().expect("cannot duplicate a descriptor");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .spawn_in_turn()
            .expect("cannot run the client");
        Client {
            child,
            output,
            code: None,
        }
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// What it said behind its first line, which every command has, and behind those about the progress of a restart.
    fn verdict(&self) -> Vec<String> {
        let said = self.said();
        let lines = said.lines().skip(1);
        let parts = [": started", ": serving; ", " is still starting, "];
        let is_progress = |line: &&str| {
            line.starts_with("generation ") && parts.iter().any(|part| line.contains(part))
        };
        lines.skip_while(is_progress).map(str::to_owned).collect()
    }

    pub fn is_waiting(&mut self) -> bool {
        self.child.try_wait().expect("cannot wait").is_none()
    }

    /// Its exit code.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        let status = wait::until(
            "the client ended",
            || fs::read_to_string(&self.output).unwrap_or_default(),
            || self.child.try_wait().expect("cannot wait"),
        );
        let code = status.code().expect("the client was killed");
        self.code = Some(code);
        code
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.code.is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

pub fn run(server: &Server, words: &[&str]) -> Client {
    Client::start(server.client(words.iter().copied()), server.folder())
}

fn restart(server: &Server) -> Client {
    run(server, &["--restart", "--pid-file=pid"])
}

/// The client has sent its signal; what follows comes after that.
#[track_caller]
fn wait_until_asked(server: &Server, client: &Client) {
    server.wait_until("the client has asked", |_| client.said().contains("\n"));
}

fn serving(setup: Setup) -> (Server, u16, Worker) {
    let port = ports::tcp();
    let server = setup.pid_file().port(port).start();
    let first = accepted(&server);
    (server, port, first)
}

fn graceful(setup: Setup) -> (Server, u16, Worker) {
    serving(setup.worker(["--graceful"]))
}

/// The first generation, when the server has accepted it.
#[track_caller]
pub fn accepted(server: &Server) -> Worker {
    server.wait_until("the first generation is accepted", |server| {
        json(server).is_some_and(|json| json["verdicts"][0]["result"] == "committed")
    });
    server.wait_for_service(1)
}

/// A server whose program is at a path of its own, where something else can be put.
fn with_program_at(setup: Setup) -> (Server, PathBuf) {
    let program = setup.folder().join("program");
    std::os::unix::fs::symlink(programs::worker(), &program).expect("cannot make a link");
    let journal = format!("--journal={}", setup.folder().join("journal").display());
    let server = setup
        .program([program.as_os_str(), journal.as_ref()])
        .start();
    server.wait_for_service(1);
    (server, program)
}

/// `pid.json`.
fn json(server: &Server) -> Option<serde_json::Value> {
    serde_json::from_str(&fs::read_to_string(server.folder().join("pid.json")).ok()?).ok()
}

/// A worker that fails to start while the file `broken` exists.
fn breakable(setup: Setup) -> Setup {
    let broken = setup.folder().join("broken");
    setup.worker([
        "--graceful".to_owned(),
        format!("--exit-if-exists={}", broken.display()),
    ])
}

fn break_it(server: &Server) {
    fs::write(server.folder().join("broken"), "").expect("cannot break it");
}

fn mend_it(server: &Server) {
    fs::remove_file(server.folder().join("broken")).expect("cannot mend it");
}

/// Every process whose directory this is, the daemon and its workers among them.
fn processes_in(folder: &Path) -> Vec<Pid> {
    let is_there = |pid: &Pid| {
        proc::alive(*pid)
            && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder)
    };
    proc::all().into_iter().filter(is_there).collect()
}

/// A process that writes down every TERM and HUP.
pub struct Innocent {
    child: Child,
    journal: PathBuf,
}

impl Innocent {
    pub fn start(folder: &Path) -> Innocent {
        let journal = folder.join("innocent");
        let child = Command::new(programs::worker())
            .arg(format!("--journal={}", journal.display()))
            .arg("--catch=HUP,TERM,WINCH")
            .env_clear()
            .stdin(Stdio::null())
            .spawn_in_turn()
            .expect("cannot run the worker");
        let innocent = Innocent { child, journal };
        innocent.wait_for("serves");
        innocent
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn wait_for(&self, word: &str) -> String {
        let read = || fs::read_to_string(&self.journal).unwrap_or_default();
        wait::until(&format!("{word} is written down"), read, || {
            let text = read();
            text.lines()
                .any(|line| line.ends_with(word))
                .then_some(text)
        })
    }

    pub fn assert_was_not_signalled(&self) {
        // Pending signals are caught in the order of their numbers, and this is the last of the three.
        kill(self.pid(), Signal::SIGWINCH).expect("it is dead");
        let text = self.wait_for("SIGWINCH");
        assert!(
            !text.contains("SIGTERM") && !text.contains("SIGHUP"),
            "{text}"
        );
    }
}

impl Drop for Innocent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

// --daemonize

/// A daemon in the making; the terminal is [`Server::log`], its own log is `daemon.log`.
fn daemon() -> Setup {
    Server::setup()
        .options(["--daemonize", "--log-file=daemon.log"])
        .pid_file()
        .status_file()
}

fn daemon_log(server: &Server) -> String {
    fs::read_to_string(server.folder().join("daemon.log")).unwrap_or_default()
}

#[track_caller]
fn daemon_pid(server: &Server) -> Pid {
    server.pid_file().expect("no pid file")
}

#[test]
fn daemonize_returns_when_the_first_generation_serves() {
    let port = ports::tcp();
    let began = Instant::now();
    let mut server = daemon().interval("1").port(port).start();
    assert!(server.wait_exit().success());
    if original_differs("it returns before anything has started") {
        return;
    }
    assert!(began.elapsed() >= Duration::from_secs(1));
    // Nothing to wait for any more.
    assert_eq!(client::ask(port).generation, Some(1));
    let pid = daemon_pid(&server);
    assert!(proc::alive(pid));
    assert_eq!(server.generations(), [1]);
    let log = daemon_log(&server);
    assert!(log.contains("starting new worker"), "{log}");
    assert!(!server.log().contains("starting new worker"));
}

#[test]
fn daemonize_does_not_return_before_the_first_generation_serves() {
    if !is_ours() {
        return;
    }
    let mut server = daemon().interval("1000").start();
    server.wait_for_service(1);
    assert!(proc::alive(server.pid()), "the launcher is gone");
    kill(daemon_pid(&server), Signal::SIGTERM).expect("cannot stop the daemon");
    assert_eq!(server.wait_exit().code(), Some(1));
    let last = server.log().lines().last().map(str::to_owned);
    assert_eq!(
        last.as_deref(),
        Some("start_server: cannot start: stopped by a signal")
    );
}

/// Starts a daemon that must fail: one line of the cause on the terminal, no process, and no file but its log.
#[track_caller]
fn assert_daemon_fails(setup: Setup, code: i32, cause: &[&str]) -> Server {
    let mut server = setup.path("socket").start();
    assert_eq!(server.wait_exit().code(), Some(code), "{}", server.log());
    let log = server.log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| !line.ends_with(") starting now..."))
        .collect();
    assert_eq!(lines, cause);
    let folder = server.folder().to_owned();
    wait::until(
        "no process is left",
        || format!("{:?}", processes_in(&folder)),
        || processes_in(&folder).is_empty().then_some(()),
    );
    for left in ["pid.json", "status", "status.json", "socket"] {
        assert!(!folder.join(left).exists(), "{left} is left behind");
    }
    server
}

#[test]
fn a_daemon_whose_first_generation_fails_says_so_on_the_terminal() {
    if !is_ours() {
        return;
    }
    let server = assert_daemon_fails(
        daemon().interval("1000").worker(["--exit=3"]),
        1,
        &[
            "start_server: cannot start: the new worker failed, exit status:768 (exit code 3)",
            "hint: see the worker's output for more",
        ],
    );
    assert!(!server.folder().join("pid").exists());
    let log = daemon_log(&server);
    assert!(
        log.contains("seems to have failed to start, exit status:768"),
        "{log}"
    );
    assert_eq!(server.started().len(), 1);
}

#[test]
fn a_daemon_whose_output_is_captured_shows_what_the_worker_has_said() {
    if !is_ours() {
        return;
    }
    assert_daemon_fails(
        daemon()
            .option("--log-timestamps")
            .interval("1000")
            .program(["/bin/sh", "-c", "echo the reason >&2; exit 3"]),
        1,
        &[
            "start_server: cannot start: the new worker failed, exit status:768 (exit code 3)",
            "stderr: the reason",
            "hint: see the worker's output for more",
        ],
    );
}

#[test]
fn a_restart_of_a_program_that_cannot_be_executed_tells_why() {
    if !is_ours() {
        return;
    }
    let (server, program) = with_program_at(Server::setup().pid_file());
    fs::remove_file(&program).expect("cannot remove the program");
    let mut restart = run(&server, &["--restart", "--pid-file=pid"]);
    assert_eq!(restart.wait(), 1, "{}", restart.said());
    let verdict = format!(
        "start_server: cannot restart: generation 2 failed to start: \
         cannot execute {}: No such file or directory; the old one keeps serving",
        program.display()
    );
    assert_eq!(restart.verdict()[0], verdict);
}

#[test]
fn a_daemon_whose_program_is_missing_says_so_on_the_terminal() {
    if !is_ours() {
        return;
    }
    let server = assert_daemon_fails(
        daemon().interval("1000").program(["/nonexistent/program"]),
        1,
        &["start_server: cannot execute /nonexistent/program: No such file or directory"],
    );
    assert!(!server.folder().join("pid").exists());
}

#[test]
fn a_daemon_whose_pid_file_is_locked_says_so_on_the_terminal() {
    if !is_ours() {
        return;
    }
    let setup = daemon();
    let path = setup.folder().join("pid");
    // The holder of the lock is this process.
    let holder = std::process::id();
    fs::write(&path, format!("{holder}\n")).expect("cannot write a file");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .expect("cannot open the file");
    let file = OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("cannot open");
    let _lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).expect("cannot lock");
    let _server = assert_daemon_fails(
        setup,
        1,
        &[&format!(
            "start_server: cannot use --pid-file=pid: it is locked by a running instance, pid {holder}"
        )],
    );
    assert_eq!(
        fs::read_to_string(&path).expect("no file"),
        format!("{holder}\n")
    );
}

#[test]
fn a_daemon_whose_port_is_in_use_says_so_on_the_terminal() {
    if !is_ours() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("cannot bind");
    let port = listener.local_addr().expect("no address").port();
    let server = assert_daemon_fails(
        daemon().port(port),
        1,
        &[
            &format!(
                "start_server: cannot listen on --port=127.0.0.1:{port}: Address already in use"
            ),
            &hint_of_port_held_here(port),
        ],
    );
    assert!(!server.folder().join("pid").exists());
}

#[test]
fn a_daemon_without_a_log_is_wrong_usage() {
    let mut server = Server::setup().option("--daemonize").start();
    let code = server.wait_exit().code();
    assert_ne!(code, Some(0));
    if !is_ours() {
        return;
    }
    assert_eq!(code, Some(2));
    let log = server.log();
    assert_eq!(
        log.lines().next(),
        Some("start_server: cannot use --daemonize: it needs --log-file or --syslog as well")
    );
    assert_eq!(server.started(), []);
}

#[test]
fn a_daemon_is_the_process_of_its_pid_file_and_leads_no_session() {
    let port = ports::tcp();
    let mut server = daemon().port(port).umask(0o027).start();
    assert!(server.wait_exit().success());
    let pid = server.wait_for("the pid file has a line", Server::pid_file);
    let report = server.ask(port);
    assert_eq!(report.ppid, pid.as_raw());
    assert_ne!(pid, server.pid());
    let status = proc::status(pid).expect("no daemon");
    // Both processes before it are gone: its parent is whoever reaps orphans.
    assert_ne!(status.ppid, server.pid().as_raw());
    let cwd = fs::read_link(format!("/proc/{}/cwd", status.ppid));
    assert!(
        !cwd.is_ok_and(|cwd| cwd == server.folder()),
        "the process in between lives"
    );
    // A leader could get a terminal by opening one.
    let session = getsid(Some(pid)).expect("no session");
    assert_ne!(session, pid);
    assert_ne!(Some(session), getsid(None).ok());
    assert!(!proc::alive(session), "the leader of its session lives");
    let group = getpgid(Some(pid)).expect("no group");
    assert_eq!(group, session);
    // The launcher's umask and directory.
    assert_eq!(status.umask, 0o027);
    assert_eq!(report.status.umask, 0o027);
    let folder = server.folder().display().to_string();
    assert_eq!(report.cwd, folder);
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).expect("no directory");
    assert_eq!(cwd.display().to_string(), folder);
    // Nothing of the terminal is left open.
    let open: Vec<String> = proc::descriptors(pid).into_values().collect();
    assert!(!open.contains(&format!("{folder}/log")), "{open:?}");
    assert_eq!(report.descriptors[&0], "/dev/null");
    for fd in [1, 2] {
        assert_eq!(report.descriptors[&fd], format!("{folder}/daemon.log"));
    }
    if !original_differs("it leaves out numbers that it used itself") {
        assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3]);
    }
}

#[test]
fn a_daemon_has_dev_null_as_standard_input_unless_a_socket_is_asked_for_there() {
    let port = ports::tcp();
    let setup = daemon();
    let file = setup.folder().join("input");
    fs::write(&file, "of the terminal").expect("cannot write a file");
    let open = || File::open(&file).expect("cannot open a file");
    let mut server = setup.stdin(open()).port(port).start();
    assert!(server.wait_exit().success());
    assert_eq!(server.ask(port).descriptors[&0], "/dev/null");
    let pid = server.wait_for("the pid file has a line", Server::pid_file);
    assert_eq!(proc::descriptors(pid)[&0], "/dev/null");

    let port = ports::tcp();
    let mut server = daemon()
        .stdin(open())
        .option(format!("--port=127.0.0.1:{port}=0"))
        .start();
    assert!(server.wait_exit().success());
    let report = server.ask(port);
    assert!(report.descriptors[&0].starts_with("socket:"), "{report:?}");
    assert!(report.socket(&format!("127.0.0.1:{port}")).listening);
}

#[test]
fn a_daemon_with_a_log_command_returns_too_and_the_command_gets_everything() {
    let port = ports::tcp();
    let mut server = Server::setup()
        .options(["--daemonize", "--log-file=| exec cat >>daemon.log"])
        .pid_file()
        .port(port)
        .start();
    assert!(server.wait_exit().success());
    server.wait_until("the log is written", |server| {
        daemon_log(server).contains("starting new worker")
    });
    let code = run(&server, &["--stop", "--pid-file=pid"]).wait();
    assert_eq!(code, 0);
    wait::until(
        "the last line was read",
        || daemon_log(&server),
        || (daemon_log(&server).lines().last() == Some("exiting")).then_some(()),
    );
}

#[test]
fn a_daemon_of_root_is_that_of_its_user() {
    if original_differs("it has no --user") || !needs_root() {
        return;
    }
    let port = ports::low();
    let mut server = daemon()
        .as_root()
        .option("--user=nobody")
        .port(port)
        .start();
    assert!(server.wait_exit().success(), "{}", server.log());
    let pid = daemon_pid(&server);
    let uids = proc::status(pid).expect("no daemon").uids;
    assert_eq!(uids, [e2e::server::NOBODY; 4]);
    assert_eq!(client::ask(port).ppid, pid.as_raw());
    let code = run(&server, &["--stop", "--pid-file=pid"]).wait();
    assert_eq!(code, 0);
    assert!(!proc::alive(pid));
}

#[test]
fn a_daemon_is_restarted_and_stopped_by_its_pid_file() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let mut server = daemon().port(port).worker(["--graceful"]).start();
    assert!(server.wait_exit().success());
    assert_eq!(restart(&server).wait(), 0);
    assert_eq!(client::ask(port).generation, Some(2));
    let pid = daemon_pid(&server);
    assert_eq!(run(&server, &["--stop", "--pid-file=pid"]).wait(), 0);
    assert!(!proc::alive(pid));
    assert_eq!(processes_in(server.folder()), []);
}

// --stop

#[test]
fn stop_returns_when_the_server_has_ended_and_not_before() {
    let (mut server, port, worker) = {
        let port = ports::tcp();
        let server = Server::setup()
            .pid_file()
            .status_file()
            .port(port)
            .worker(["--graceful"])
            .start();
        server.wait_until_accepted();
        let worker = server.wait_for_service(1);
        (server, port, worker)
    };
    let held = client::hold(port);
    let mut stop = run(&server, &["--stop", "--pid-file=pid"]);
    server.wait_for_drain(worker);
    assert!(stop.is_waiting(), "{}", stop.said());
    held.finish();
    assert_eq!(stop.wait(), 0, "{}", stop.said());
    if !original_differs("it waits for the lock, which is given up a moment before the end") {
        assert!(!proc::alive(server.pid()));
    }
    assert!(!server.folder().join("pid").exists());
    assert!(server.wait_exit().success());
    let (theirs, ours) = (server.pid(), stop.child.id());
    let first = format!("stop_server (pid:{ours}) stopping now (pid:{theirs})...\n");
    let said = stop.said();
    let last = said.strip_prefix(&first);
    if !original_differs("it says nothing at the end") {
        let last = last.and_then(|last| last.strip_prefix("stopped ("));
        let time = last.and_then(|last| last.strip_suffix(" s)\n"));
        let seconds = time.and_then(|time| time.parse::<f64>().ok());
        assert!(seconds.is_some_and(|seconds| seconds > 0.0), "{said}");
    }
}

#[test]
fn commands_that_find_no_server_end_with_3_and_signal_nobody() {
    if !is_ours() {
        return;
    }
    for command in ["--stop", "--restart"] {
        let folder = ordinary_folder();
        let ask = |name: &str| {
            let mut command_line = Command::new(programs::start_server());
            command_line
                .args([command, &format!("--pid-file={name}")])
                .current_dir(folder.path());
            let mut client = Client::start(command_line, folder.path());
            (client.wait(), client.said())
        };
        assert_eq!(
            ask("missing"),
            (
                3,
                "start_server: not running: missing does not exist\n".to_owned()
            )
        );
        // An unused pid, and that of a foreign process.
        let innocent = Innocent::start(folder.path());
        for (name, pid) in [("stale", 4_194_304), ("recycled", innocent.pid().as_raw())] {
            for end in ["\n", ""] {
                fs::write(folder.path().join(name), format!("{pid}{end}")).expect("cannot write");
                assert_eq!(
                    ask(name),
                    (
                        3,
                        format!("start_server: not running: {name} is not locked\n")
                    )
                );
            }
            let left = fs::read_to_string(folder.path().join(name)).expect("it is gone");
            assert_eq!(left, pid.to_string());
        }
        innocent.assert_was_not_signalled();
    }
}

#[test]
fn a_pid_file_that_a_killed_server_left_behind_names_nobody() {
    if !is_ours() {
        return;
    }
    let (mut server, ..) = graceful(Server::setup());
    server.signal(Signal::SIGKILL);
    server.wait_exit();
    assert!(server.folder().join("pid").exists());
    for command in ["--stop", "--restart"] {
        let mut client = run(&server, &[command, "--pid-file=pid"]);
        assert_eq!(client.wait(), 3, "{}", client.said());
    }
    // Its status is there still, and is no reason to signal a process that is not.
    fs::remove_file(server.folder().join("pid")).expect("cannot remove the pid file");
    let mut client = run(&server, &["--restart", "--pid-file=pid"]);
    assert_eq!(client.wait(), 3, "{}", client.said());
    assert_eq!(
        client.said(),
        "start_server: not running: pid does not exist\n"
    );
}

#[test]
fn a_status_file_with_the_highest_count_of_restarts_does_not_end_the_client() {
    if !is_ours() {
        return;
    }
    let (server, ..) = graceful(Server::setup());
    let mut forged = json(&server).expect("no status");
    forged["counters"]["restarts"] = u64::MAX.into();
    let path = server.folder().join("pid.json");
    fs::remove_file(&path).expect("cannot remove the status");
    fs::write(&path, forged.to_string()).expect("cannot forge the status");
    let mut client = run(&server, &["--restart", "--pid-file=pid", "--timeout=0.3"]);
    // The server leaves the foreign file alone, so there is no verdict.
    assert_eq!(client.wait(), 4, "{}", client.said());
}

#[test]
fn root_signals_no_process_for_somebody_who_could_not() {
    if !is_ours() || !needs_root() {
        return;
    }
    let setup = Server::setup();
    let (pid_file, folder) = (setup.folder().join("pid"), setup.folder().to_owned());
    // A process of root that the file names; this test holds the lock.
    let mut victim = Command::new("sleep")
        .arg("600")
        .spawn_in_turn()
        .expect("cannot run sleep");
    let holder = std::process::id();
    for (owner, mode, link) in [
        (e2e::server::NOBODY, 0o644, false),
        (0, 0o666, false),
        (0, 0o644, true),
        // Moved there: the directory is the user's.
        (0, 0o644, false),
    ] {
        let file = fs::File::create(&pid_file).expect("cannot make the pid file");
        fs::write(&pid_file, format!("{}\n", victim.id())).expect("cannot write");
        fs::set_permissions(&pid_file, fs::Permissions::from_mode(mode)).expect("cannot chmod");
        std::os::unix::fs::chown(&pid_file, Some(owner), None).expect("cannot chown");
        let _lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
            .expect("cannot lock");
        let path = match link {
            false => pid_file.clone(),
            true => {
                let link = setup.folder().join("link");
                std::os::unix::fs::symlink(&pid_file, &link).expect("cannot make a link");
                link
            }
        };
        for command in ["--stop", "--restart", "--reopen"] {
            let output = Command::new(programs::start_server())
                .args([command, "--timeout=10"])
                .arg(format!("--pid-file={}", path.display()))
                .output_in_turn()
                .expect("cannot run the client");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            let cause = match (link, mode) {
                (true, _) => "it is a symbolic link".to_owned(),
                (false, 0o666) => "it is writable by users other than its owner".to_owned(),
                _ if owner == 0 => format!(
                    "it belongs to root, but {} belongs to an ordinary user",
                    folder.display()
                ),
                _ => format!(
                    "it belongs to uid {owner}, but pid {holder}, which holds its lock, is a process of uid 0"
                ),
            };
            assert!(said.contains(&cause), "{said}");
        }
        assert!(
            victim.try_wait().expect("cannot look").is_none(),
            "it was killed"
        );
        fs::remove_file(&pid_file).expect("cannot remove the pid file");
    }
    // A sticky directory does not prevent moving it there; into one of root's only root can have moved it.
    let root = Folder::new(Uid::from_raw(0), Gid::from_raw(0));
    let pid_file = root.path().join("pid");
    let stop = || {
        Command::new(programs::start_server())
            .args(["--stop", "--timeout=10"])
            .arg(format!("--pid-file={}", pid_file.display()))
            .output_in_turn()
            .expect("cannot run the client")
    };
    fs::write(&pid_file, format!("{}\n", victim.id())).expect("cannot write");
    let file = File::open(&pid_file).expect("cannot open the pid file");
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).expect("cannot lock");
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("cannot chmod");
    // Everybody who can read it can lock it: then what root has written must be the holder.
    let output = stop();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let cause =
        format!("it belongs to root, but pid {holder} holds its lock, which is not the pid in it");
    assert!(said.contains(&cause), "{said}");
    drop(lock);
    let mut server = locking(&pid_file, &[]);
    fs::write(&pid_file, format!("{}\n", server.pid())).expect("cannot write");
    for (mode, code) in [(0o1777, 1), (0o755, 0)] {
        fs::set_permissions(root.path(), fs::Permissions::from_mode(mode)).expect("cannot chmod");
        let output = stop();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(server.has_ended(), code == 0, "{mode:o}");
    }
    assert!(victim.try_wait().expect("cannot look").is_none());
    drop(victim.kill());
    drop(victim.wait());
}

#[test]
fn a_fifo_in_the_place_of_the_status_file_holds_no_client_up() {
    if !is_ours() {
        return;
    }
    let (server, ..) = graceful(Server::setup());
    let path = server.folder().join("pid.json");
    fs::remove_file(&path).expect("cannot remove the status");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o666))
        .expect("cannot make a fifo");
    for command in ["--restart", "--reopen"] {
        let mut client = run(&server, &[command, "--pid-file=pid", "--timeout=20"]);
        assert_eq!(client.wait(), 1, "{}", client.said());
        assert!(
            client
                .said()
                .contains("pid.json cannot be read: it is not a regular file"),
            "{}",
            client.said()
        );
    }
}

#[test]
fn a_link_in_the_place_of_the_status_file_is_followed_by_no_client() {
    if !is_ours() {
        return;
    }
    let (mut server, ..) = graceful(Server::setup().status_file());
    let folder = server.folder().to_owned();
    let link = |name: &str| {
        let (place, aside) = (folder.join(name), folder.join(format!("{name}.aside")));
        fs::rename(&place, &aside).expect("cannot move the status");
        std::os::unix::fs::symlink(aside, place).expect("cannot make a link");
    };
    // What it leads to is the right status, so that nothing but the link is in the way.
    link("pid.json");
    for command in ["--restart", "--reopen"] {
        let mut client = run(&server, &[command, "--pid-file=pid", "--timeout=20"]);
        assert_eq!(client.wait(), 1, "{}", client.said());
        let cause = "pid.json cannot be read: it is a symbolic link";
        assert!(client.said().contains(cause), "{}", client.said());
    }
    // Of the file of a server of another make as well.
    link("status.json");
    link("status");
    let options = ["--restart", "--pid-file=pid", "--status-file=status"];
    let mut client = run(&server, &options);
    assert_eq!(client.wait(), 1, "{}", client.said());
    let cause = "cannot read --status-file=status: it is a symbolic link";
    assert!(client.said().contains(cause), "{}", client.said());
    // The pid file is gone, and the client looks for a hint.
    fs::remove_file(folder.join("pid")).expect("cannot remove the pid file");
    let mut client = run(&server, &["--stop", "--pid-file=pid"]);
    assert_eq!(client.wait(), 3, "{}", client.said());
    assert!(!client.said().contains("hint: "), "{}", client.said());
    assert!(server.stop().success());
}

#[test]
fn a_forged_status_file_costs_a_client_little_memory() {
    if !is_ours() || !needs_program("prlimit") {
        return;
    }
    let (mut server, ..) = graceful(Server::setup());
    let path = server.folder().join("pid.json");
    fs::remove_file(&path).expect("cannot remove the status");
    // Each element takes many times its text in memory, if it is kept: those that no reader knows, and those that it does.
    let of_no_server = r#""supervisor":{"pid":1}"#;
    for (before, element, after) in [
        (r#"{"options":["#, r#"{"":0},"#, "0]}"),
        (r#"{"later":["#, "{},", "0]}"),
        (r#"{"departed":["#, "{},", "{}]"),
        (r#"{"listeners":["#, "{},", "{}]"),
        (r#"{"options":{"arguments":["#, r#""","#, r#"""]}"#),
        (r#"{"departed":[{"stderr":["#, r#""","#, r#"""]}]"#),
        (
            r#"{"generations":["#,
            r#"{"number":1},"#,
            r#"{"number":1}]"#,
        ),
        (
            r#"{"verdicts":["#,
            r#"{"request":1,"generation":1},"#,
            r#"{"request":1,"generation":1}]"#,
        ),
    ] {
        let elements = element.repeat((LARGEST_STATUS - 256) / element.len());
        let generations = match before.contains("generations") {
            true => "",
            false => r#","generations":[]"#,
        };
        let forged = match after.ends_with('}') {
            true => format!("{before}{elements}{after}"),
            false => format!("{before}{elements}{after},{of_no_server}{generations}}}"),
        };
        fs::write(&path, forged).expect("cannot forge the status");
        let client = server.client(["--reopen", "--pid-file=pid", "--timeout=20"]);
        let mut limited = Command::new("prlimit");
        limited
            .arg("--as=67108864")
            .arg(client.get_program())
            .args(client.get_args())
            .current_dir(server.folder());
        let mut client = Client::start(limited, server.folder());
        assert_eq!(client.wait(), 1, "{before}: {}", client.said());
        let cause = "pid.json is not the status of that server";
        assert!(client.said().contains(cause), "{}", client.said());
    }
    assert!(server.stop().success());
}

#[test]
fn stop_ends_with_4_when_its_time_is_over_and_the_server_goes_on_to_stop() {
    if !is_ours() {
        return;
    }
    let (mut server, port, worker) = graceful(Server::setup());
    let held = client::hold(port);
    let mut stop = run(&server, &["--stop", "--pid-file=pid", "--timeout=0.3"]);
    assert_eq!(stop.wait(), 4, "{}", stop.said());
    let expected = format!(
        "start_server: cannot wait longer for the end of pid {}: --timeout expired",
        server.pid()
    );
    let hint = format!(
        "hint: it is waiting for its workers to exit: {}; kill -KILL PID ends one; a server started with --stop-timeout=SECONDS does this by itself",
        worker.pid
    );
    assert_eq!(stop.verdict(), [expected, hint]);
    server.wait_for_drain(worker);
    held.finish();
    assert!(server.wait_exit().success());
}

#[test]
fn another_user_is_told_that_it_may_not() {
    if !is_ours() || !needs_root() {
        return;
    }
    let (server, port, worker) = graceful(Server::setup());
    for (command, name) in [("--stop", "SIGTERM"), ("--restart", "SIGHUP")] {
        let mut client = lock_holder::command(&[command], server.folder(), Some(FOREIGN));
        assert_eq!(client.wait(), 1, "{}", client.said());
        let expected = format!(
            "start_server: cannot send {name} to pid {}: Operation not permitted\n\
             hint: use the user that the server runs as, or root\n",
            server.pid()
        );
        assert!(client.said().ends_with(&expected), "{}", client.said());
    }
    assert_eq!(server.ask(port).pid, worker.pid.as_raw());
    assert_eq!(server.started().len(), 1);
}

#[test]
fn root_may_ask_the_server_of_any_user() {
    if !is_ours() || !needs_root() {
        return;
    }
    let (server, ..) = graceful(Server::setup());
    for command in ["--restart", "--stop"] {
        let mut client = lock_holder::command(&[command], server.folder(), None);
        assert_eq!(client.wait(), 0, "{}", client.said());
    }
}

// --restart

#[test]
fn restart_returns_when_the_old_generation_is_gone_and_not_before() {
    if !is_ours() {
        return;
    }
    // Without a status file: the pid file is all that it needs.
    let (server, port, first) = graceful(Server::setup());
    let held = client::hold(port);
    let mut restart = restart(&server);
    server.wait_for_drain(first);
    server.wait_for_service(2);
    assert!(restart.is_waiting(), "{}", restart.said());
    held.finish();
    let gone = server.wait_for("the old one is gone", |_| {
        (!proc::alive(first.pid)).then(Instant::now)
    });
    assert_eq!(restart.wait(), 0, "{}", restart.said());
    assert!(gone.elapsed() < SOON, "{:?}", gone.elapsed());
    assert_eq!(server.generations(), [2]);
    let first = format!(
        "sent HUP to start_server (pid:{}), waiting for the new generation...",
        server.pid()
    );
    assert_eq!(restart.said().lines().next(), Some(&*first));
    let [last] = &restart.verdict()[..] else {
        panic!("not one line: {}", restart.said());
    };
    assert!(last.starts_with("generation 2 serves (pid "), "{last}");
}

#[test]
fn restart_finds_its_verdict_beside_the_status_file_too() {
    if !is_ours() {
        return;
    }
    let (server, ..) = graceful(Server::setup().status_file());
    let words = ["--restart", "--pid-file=pid", "--status-file=status"];
    let mut restart = run(&server, &words);
    assert_eq!(restart.wait(), 0, "{}", restart.said());
    assert_eq!(server.generations(), [2]);
}

#[test]
fn restart_tells_at_once_that_the_new_generation_has_failed() {
    if !is_ours() {
        return;
    }
    let (server, port, old) = serving(breakable(Server::setup().interval("2")));
    break_it(&server);
    let mut restart = restart(&server);
    let failed = server.wait_for_start(2);
    let gone = server.wait_for("the new one is gone", |_| {
        (!proc::alive(failed.pid)).then(Instant::now)
    });
    assert_eq!(restart.wait(), 1, "{}", restart.said());
    assert!(gone.elapsed() < SOON, "{:?}", gone.elapsed());
    assert_eq!(server.started().len(), 2, "it waited for the next try");
    assert_eq!(
        restart.verdict(),
        [
            "start_server: cannot restart: generation 2 failed to start, exit status:256 (exit code 1); the old one keeps serving",
            "hint: see the log for more; start_server keeps trying until a start succeeds or --start-limit is reached"
        ]
    );
    assert_eq!(server.ask(port).pid, old.pid.as_raw());
}

#[test]
fn restart_tells_that_the_program_cannot_be_executed() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().interval("2").pid_file();
    let program = programs::install(&programs::worker(), setup.folder());
    let journal = format!("--journal={}", setup.folder().join("journal").display());
    let server = setup
        .program([program.clone().into_os_string(), journal.into()])
        .start();
    accepted(&server);
    fs::remove_file(&program).expect("cannot remove the program");
    let mut restart = restart(&server);
    assert_eq!(restart.wait(), 1, "{}", restart.said());
    let verdict = restart.verdict().join("\n");
    assert!(
        verdict.starts_with("start_server: cannot restart: generation 2 failed to start")
            && verdict.contains("; the old one keeps serving\nhint: see the log for more"),
        "{verdict}"
    );
}

#[test]
fn restart_ends_with_4_when_its_time_is_over_and_the_restart_goes_on() {
    if !is_ours() {
        return;
    }
    let (server, port, first) = graceful(Server::setup());
    let held = client::hold(port);
    let mut restart = run(&server, &["--restart", "--pid-file=pid", "--timeout=0.5"]);
    assert_eq!(restart.wait(), 4, "{}", restart.said());
    let expected = format!(
        "start_server: cannot wait longer for the restart of pid {}: --timeout expired",
        server.pid()
    );
    let hint = format!(
        "hint: generation 2 serves; old workers still running: {}",
        first.pid
    );
    assert_eq!(restart.verdict(), [expected, hint]);
    server.wait_for_drain(first);
    held.finish();
    server.wait_for_generations(&[2]);
}

#[test]
fn a_server_that_is_stopped_is_told_from_one_that_is_slow() {
    if !is_ours() {
        return;
    }
    let (mut server, _, _) = graceful(Server::setup().option("--log-file=log.file"));
    server.signal(Signal::SIGSTOP);
    let hint = format!(
        "hint: pid {0} is stopped: `kill -CONT {0}` resumes it",
        server.pid()
    );
    for command in ["--restart", "--reopen", "--stop"] {
        let mut client = run(&server, &[command, "--pid-file=pid", "--timeout=0.3"]);
        assert_eq!(client.wait(), 4, "{}", client.said());
        assert_eq!(client.verdict().get(1), Some(&hint), "{}", client.said());
    }
    server.signal(Signal::SIGCONT);
    assert!(server.wait_exit().success());
}

#[test]
fn a_failed_restart_names_the_remedy_and_the_log_file() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().pid_file().option("--log-file=log.file");
    let (server, program) = with_program_at(setup);
    let next = server.folder().join("next");
    for (script, expected) in [
        (
            "#!/missing/interpreter\n",
            "hint: the interpreter in its first line does not exist: /missing/interpreter",
        ),
        ("#!/bin/sh\nexit 3\n", "hint: see log.file for more"),
        (
            "#!/bin/sh\nexit 0\n",
            "hint: a server must stay in the foreground: nginx with `daemon off;`, others without -D, --daemon or --daemonize",
        ),
    ] {
        fs::write(&next, script).expect("cannot write a script");
        fs::set_permissions(&next, fs::Permissions::from_mode(0o755))
            .expect("cannot make it a program");
        fs::rename(&next, &program).expect("cannot deploy it");
        let mut restart = run(&server, &["--restart", "--pid-file=pid"]);
        assert_eq!(restart.wait(), 1, "{}", restart.said());
        let hint = format!(
            "{expected}; start_server keeps trying until a start succeeds or --start-limit is reached"
        );
        assert_eq!(restart.verdict().last(), Some(&hint));
    }
}

#[test]
fn each_of_two_overlapping_restarts_gets_its_own_verdict() {
    if !is_ours() {
        return;
    }
    let (server, ..) = serving(breakable(Server::setup().interval("1")));
    let mut first = restart(&server);
    server.wait_for_service(2);
    let mut second = restart(&server);
    wait_until_asked(&server, &second);
    assert_eq!(first.wait(), 0, "{}", first.said());
    assert_eq!(second.wait(), 0, "{}", second.said());
    assert_eq!(server.generations(), [3]);

    // The first requested restart succeeds, the other fails.
    let mut first = restart(&server);
    server.wait_for_service(4);
    break_it(&server);
    let mut second = restart(&server);
    wait_until_asked(&server, &second);
    assert_eq!(first.wait(), 0, "{}", first.said());
    assert_eq!(second.wait(), 1, "{}", second.said());
    let verdict = second.verdict().join("\n");
    assert!(
        verdict.contains("generation 5 failed to start"),
        "{verdict}"
    );
}

#[test]
fn a_restart_that_is_asked_for_while_a_failed_start_waits_for_its_retry_is_not_answered_by_that() {
    if !is_ours() {
        return;
    }
    let (server, ..) = serving(breakable(Server::setup().interval("1")));
    break_it(&server);
    let mut first = restart(&server);
    assert_eq!(first.wait(), 1, "{}", first.said());
    // The next try is pending; a request made now gets the verdict on that one.
    mend_it(&server);
    let before = server.started().len();
    let mut second = restart(&server);
    assert_eq!(second.wait(), 0, "{}", second.said());
    assert!(server.started().len() > before);
    assert!(matches!(server.generations()[..], [generation] if generation > 2));
}

#[test]
fn a_crash_of_the_new_generation_while_the_old_one_drains_does_not_keep_restart_from_its_verdict() {
    if !is_ours() {
        return;
    }
    let (server, port, first) = graceful(Server::setup());
    let held = client::hold(port);
    let mut restart = restart(&server);
    server.wait_for_drain(first);
    let second = server.wait_for_service(2);
    kill(second.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_service(3);
    server.wait_for_generations(&[1, 3]);
    assert!(restart.is_waiting(), "{}", restart.said());
    held.finish();
    assert_eq!(restart.wait(), 0, "{}", restart.said());
    server.wait_for_generations(&[3]);
}

#[test]
fn a_crash_of_the_old_generation_during_the_start_does_not_keep_restart_from_its_verdict() {
    if !is_ours() {
        return;
    }
    let (server, _, first) = graceful(Server::setup().interval("1"));
    let mut restart = restart(&server);
    server.wait_for_service(2);
    kill(first.pid, Signal::SIGKILL).expect("cannot kill the worker");
    assert_eq!(restart.wait(), 0, "{}", restart.said());
    assert_eq!(server.generations(), [2]);
}

#[test]
fn a_new_generation_that_dies_before_the_old_one_is_signalled_has_failed() {
    if !is_ours() {
        return;
    }
    let (server, _, first) = graceful(Server::setup().option("--kill-old-delay=1000"));
    let mut restart = restart(&server);
    server.wait_for_log("sleeping 1000 secs before killing old workers");
    let second = server.wait_for_service(2);
    assert!(restart.is_waiting(), "{}", restart.said());
    kill(second.pid, Signal::SIGKILL).expect("cannot kill the worker");
    assert_eq!(restart.wait(), 1, "{}", restart.said());
    assert_eq!(
        restart.verdict(),
        [
            "start_server: cannot restart: generation 2 failed after it had begun to serve, exit status:9 (killed by SIGKILL); the old one keeps serving",
            "hint: see the log for more; start_server keeps trying until a start succeeds or --start-limit is reached"
        ]
    );
    assert!(server.caught(first).is_empty());
}

#[test]
fn restart_works_after_a_restart_that_was_given_up() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().interval("0.5").option("--start-limit=1");
    let (server, ..) = serving(breakable(setup));
    break_it(&server);
    let mut given_up = restart(&server);
    assert_eq!(given_up.wait(), 1);
    server.wait_for_log("giving up the restart after 1 failed start");
    let hint = "hint: see the log for more; --start-limit is reached: start_server does not try again until the next \
                restart";
    assert_eq!(given_up.verdict().last().map(String::as_str), Some(hint));
    let mut status = run(&server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 0);
    let said = status.said().replace('\n', " ");
    let expected = "; given up, since --start-limit is reached";
    assert!(
        said.split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .contains(expected),
        "{said}"
    );
    assert_eq!(restart(&server).wait(), 1);
    mend_it(&server);
    let mut last = restart(&server);
    assert_eq!(last.wait(), 0, "{}", last.said());
    assert_eq!(server.generations(), [4]);
}

#[test]
fn restart_of_a_server_whose_first_start_is_under_way_waits_for_the_second() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = Server::setup()
        .interval("1")
        .pid_file()
        .port(port)
        .worker(["--graceful"])
        .start();
    server.wait_for_service(1);
    let mut restart = restart(&server);
    assert_eq!(restart.wait(), 0, "{}", restart.said());
    assert_eq!(server.generations(), [2]);
}

#[test]
fn restart_ends_with_1_when_the_server_stops_meanwhile() {
    if !is_ours() {
        return;
    }
    let (mut server, port, _) = graceful(Server::setup().interval("2"));
    let mut restart = restart(&server);
    server.wait_for_service(2);
    let held = client::hold(port);
    server.signal(Signal::SIGTERM);
    server.wait_for_log("received TERM");
    assert_eq!(restart.wait(), 1, "{}", restart.said());
    assert!(proc::alive(server.pid()), "it waited for the end");
    let expected = format!(
        "start_server: cannot restart: pid {} is stopping",
        server.pid()
    );
    assert_eq!(restart.verdict()[0], expected);
    held.finish();
    assert!(server.wait_exit().success());
}

#[test]
fn restart_of_a_server_that_is_stopping_fails_at_once_and_says_what_it_waits_for() {
    if !is_ours() {
        return;
    }
    let (server, _, worker) = serving(Server::setup().worker(["--ignore=TERM"]));
    server.signal(Signal::SIGTERM);
    server.wait_until("its status says that it stops", |server| {
        json(server).is_some_and(|json| json["stopping"] == true)
    });
    let mut restart = restart(&server);
    assert_eq!(restart.wait(), 1, "{}", restart.said());
    assert_eq!(
        restart.said(),
        format!(
            "start_server: cannot restart: pid {} is stopping\n\
             hint: it is waiting for its workers to exit: {}\n",
            server.pid(),
            worker.pid
        )
    );
    assert_eq!(server.count_in_log("received HUP"), 0);
    assert!(proc::alive(worker.pid));
}

#[test]
fn commands_without_a_pid_file_are_wrong_usage() {
    let server = Server::setup().without_program();
    let folder = server.folder().to_owned();
    for (words, cause) in [
        (
            &["--restart"][..],
            "cannot use --restart: it needs --pid-file as well",
        ),
        (
            &["--stop"],
            "cannot use --stop: it needs --pid-file as well",
        ),
    ] {
        let mut command = Command::new(programs::start_server());
        command.args(words);
        let mut client = Client::start(command, &folder);
        assert_ne!(client.wait(), 0);
        if is_ours() {
            assert_eq!(client.code, Some(2));
            assert_eq!(
                client.said().lines().next(),
                Some(&*format!("start_server: {cause}"))
            );
        }
    }
}

// --quiet

#[test]
fn quiet_commands_print_nothing_while_they_wait_and_when_they_succeed() {
    if !is_ours() {
        return;
    }
    let (mut server, port, _) = graceful(Server::setup().option("--log-file=server.log"));
    for command in ["--reopen", "--restart"] {
        let mut quiet = run(&server, &[command, "--pid-file=pid", "--quiet"]);
        assert_eq!(
            (quiet.wait(), quiet.said()),
            (0, String::new()),
            "{command}"
        );
    }
    let worker = server.wait_for_service(2);
    let held = client::hold(port);
    let mut stop = run(&server, &["--stop", "--pid-file=pid", "--quiet"]);
    server.wait_for_drain(worker);
    assert!(stop.is_waiting());
    assert_eq!(stop.said(), "");
    held.finish();
    assert_eq!((stop.wait(), stop.said()), (0, String::new()));
    assert!(server.wait_exit().success());
}

#[test]
fn quiet_does_not_hide_why_a_command_has_failed() {
    if !is_ours() {
        return;
    }
    let (mut server, port, worker) = serving(breakable(Server::setup().interval("2")));
    let mut stop = run(&server, &["--stop", "--pid-file=missing", "--quiet"]);
    let error = "start_server: not running: missing does not exist\n";
    assert_eq!((stop.wait(), stop.said()), (3, error.to_owned()));

    break_it(&server);
    let mut restart = run(&server, &["--restart", "--pid-file=pid", "--quiet"]);
    let error = "start_server: cannot restart: generation 2 failed to start, exit status:256 (exit code 1); the old one keeps serving\n\
         hint: see the log for more; start_server keeps trying until a start succeeds or --start-limit is reached\n";
    assert_eq!((restart.wait(), restart.said()), (1, error.to_owned()));

    let held = client::hold(port);
    let words = ["--stop", "--pid-file=pid", "--timeout=0.3", "--quiet"];
    let mut stop = run(&server, &words);
    let error = format!(
        "start_server: cannot wait longer for the end of pid {}: --timeout expired\n\
         hint: it is waiting for its workers to exit: {}; kill -KILL PID ends one; a server started with --stop-timeout=SECONDS does this by itself\n",
        server.pid(),
        worker.pid
    );
    assert_eq!((stop.wait(), stop.said()), (4, error));
    server.wait_for_drain(worker);
    held.finish();
    assert!(server.wait_exit().success());
}

// Beside Server::Starter.

/// Server::Starter's own program.
const ORIGINAL: &str = "/usr/bin/start_server";

fn has_original() -> bool {
    is_ours() && needs_program("start_server") && Path::new(ORIGINAL).exists()
}

#[test]
fn our_restart_and_stop_work_on_a_server_of_the_original() {
    if !has_original() {
        return;
    }
    let folder = ordinary_folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (pid_file, status_file) = (
        format!("--pid-file={}", path("p")),
        format!("--status-file={}", path("s")),
    );
    let worker = programs::worker();
    let mut server = launch_program(
        as_ordinary_user(),
        Path::new(ORIGINAL),
        &[
            &pid_file,
            &status_file,
            "--",
            worker.to_str().expect("UTF-8"),
            "--graceful",
        ],
    );
    let lines = || fs::read_to_string(path("s")).ok();
    server.wait_for("the first generation is listed", || {
        lines()?.starts_with("1:").then_some(())
    });
    let ask = |words: &[&str]| {
        let before = as_ordinary_user();
        let program = programs::start_server();
        let all: Vec<&str> = before
            .iter()
            .copied()
            .chain([program.to_str().expect("UTF-8")])
            .chain(words.iter().copied())
            .collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]);
        let mut client = Client::start(command, folder.path());
        (client.wait(), client.said())
    };
    // It writes nothing else that could be followed.
    let (code, said) = ask(&["--restart", &pid_file]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("hint: ") && said.contains("--status-file"),
        "{said}"
    );
    assert!(lines().is_some_and(|text| text.starts_with("1:")));
    let (code, said) = ask(&["--restart", &pid_file, &status_file]);
    assert_eq!(code, 0, "{said}");
    let listed = lines().expect("no status file");
    assert!(
        listed.starts_with("2:") && listed.lines().count() == 1,
        "{listed}"
    );
    let (code, said) = ask(&["--stop", &pid_file]);
    assert_eq!(code, 0, "{said}");
    assert!(!proc::alive(server.pid()));
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn restart_and_stop_of_the_original_work_on_our_server() {
    if !has_original() {
        return;
    }
    let (mut server, ..) = graceful(Server::setup().status_file());
    let ask = |words: &[&str]| {
        let before = as_ordinary_user();
        let all: Vec<&str> = before
            .iter()
            .copied()
            .chain([ORIGINAL])
            .chain(words.iter().copied())
            .collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).current_dir(server.folder());
        let mut client = Client::start(command, server.folder());
        (client.wait(), client.said())
    };
    let (code, said) = ask(&["--restart", "--pid-file=pid", "--status-file=status"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(server.generations(), [2]);
    let (code, said) = ask(&["--stop", "--pid-file=pid"]);
    assert_eq!(code, 0, "{said}");
    assert!(server.wait_exit().success());
}

#[test]
fn the_report_of_a_daemon_worker_shows_the_launchers_user() {
    let setup = daemon();
    let owner = fs::metadata(setup.folder()).expect("no folder").uid();
    let port = ports::tcp();
    let mut server = setup.port(port).start();
    assert!(server.wait_exit().success());
    let report: Report = server.ask(port);
    assert_eq!(report.status.uids, [owner; 4]);
}
#[test]
fn many_later_failures_do_not_change_the_verdict_on_a_restart_that_has_committed() {
    if !is_ours() {
        return;
    }
    let (server, port, first) = serving(breakable(Server::setup().interval("0.3")));
    let held = client::hold(port);
    let mut restart = restart(&server);
    server.wait_for_drain(first);
    break_it(&server);
    for failures in 1..=12 {
        server.signal(Signal::SIGHUP);
        server.wait_for_log_times(failures, "seems to have failed to start");
    }
    held.finish();
    assert_eq!(restart.wait(), 0, "{}", restart.said());
}

#[test]
fn restart_ends_with_1_when_the_server_stops_while_the_old_generation_drains() {
    if !is_ours() {
        return;
    }
    for _ in 0..10 {
        let (mut server, port, first) = graceful(Server::setup());
        let held = client::hold(port);
        let mut restart = restart(&server);
        server.wait_for_drain(first);
        server.signal(Signal::SIGTERM);
        server.wait_for_log("received TERM");
        held.finish();
        assert!(server.wait_exit().success());
        assert_eq!(restart.wait(), 1, "{}", restart.said());
    }
}

#[test]
fn a_pid_file_that_was_removed_is_written_again_at_the_next_restart() {
    if !is_ours() {
        return;
    }
    let (mut server, _, _) = graceful(Server::setup());
    let path = server.folder().join("pid");
    fs::remove_file(&path).expect("cannot remove the pid file");
    let mut lost = restart(&server);
    assert_eq!(lost.wait(), 3, "{}", lost.said());
    let hint = format!("pid.json names pid {}", server.pid());
    assert!(lost.said().contains(&hint), "{}", lost.said());
    server.signal(Signal::SIGHUP);
    server.wait_for_log("pid was gone, rewrote it");
    let mut found = restart(&server);
    assert_eq!(found.wait(), 0, "{}", found.said());
    assert!(server.stop().success());
    assert!(!path.exists());
}

#[test]
fn a_server_of_which_nothing_serves_any_more_says_so() {
    if !is_ours() {
        return;
    }
    let (server, _, first) = serving(breakable(Server::setup().interval("0.3")));
    break_it(&server);
    kill(first.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_log("no worker is serving, clients have to wait; next start in 0.");
    let mut restart = restart(&server);
    assert_eq!(restart.wait(), 1, "{}", restart.said());
    assert!(
        restart.said().contains("; no worker is serving"),
        "{}",
        restart.said()
    );
    mend_it(&server);
    server.wait_until("it serves again", |server| server.workers().len() == 1);
}

#[test]
fn a_daemon_whose_log_command_does_not_run_has_failed() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().pid_file().interval("1000");
    let setup = setup
        .option("--daemonize")
        .option("--log-file=| exec /nonexistent/command");
    let finished = setup.run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    let cause = "start_server: cannot start: the log command died, status:32512 (exit code 127)";
    assert!(
        finished.log.lines().any(|line| line == cause),
        "{}",
        finished.log
    );
    // Whoever tries again at once finds neither the files nor the lock of this one.
    assert!(!finished.server.folder().join("pid").exists());
    finished
        .server
        .wait_until("nothing is left running", |server| {
            server.workers().is_empty()
        });
}
