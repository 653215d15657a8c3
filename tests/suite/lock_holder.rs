//! The process that holds the lock on the pid file is the server, whatever is written in the file: for every command, and
//! for the server itself, which writes its pid again.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use e2e::folder::Folder;
use e2e::server::NOBODY;
use e2e::skip::{needs_program, needs_root};
use e2e::start::InTurn;
use e2e::{Server, Setup, Worker, proc, programs, wait};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Gid, Pid, Uid};

use crate::commands::{Client, Innocent, accepted, is_ours, run};
use crate::launch::{as_ordinary_user, ordinary_folder};

/// Whoever is neither root nor the user of the server.
const FOREIGN: u32 = 4242;

/// `sleep`, with the lock on a pid file that a server would have. Dropping it kills it.
pub struct Locking(Child);

/// It took the lock itself, and was run by these words before it.
pub fn locking(pid_file: &Path, before: &[&str]) -> Locking {
    let flock = ["flock", "--nonblock", "--no-fork"];
    let words: Vec<&str> = before.iter().copied().chain(flock).collect();
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .arg(pid_file)
        .args(["sleep", "600"]);
    Locking::start(command)
}

/// Of an ordinary user: another process took the lock, left it to as many as this, and is gone.
fn left_the_lock(pid_file: &Path, sleepers: usize) -> Locking {
    let others = "sleep 600 & ".repeat(sleepers - 1);
    let script = format!("exec 9<\"$0\"; flock --nonblock 9 || exit; {others} exec sleep 600");
    let before = as_ordinary_user();
    let words: Vec<&str> = before.iter().copied().chain(["sh", "-c"]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(script).arg(pid_file);
    Locking::start(command)
}

impl Locking {
    fn start(mut command: Command) -> Locking {
        command.stdin(Stdio::null()).process_group(0);
        let locking = Locking(command.spawn_in_turn().expect("cannot run the command"));
        let comm = format!("/proc/{}/comm", locking.pid());
        let name = || fs::read_to_string(&comm).unwrap_or_default();
        wait::until("it has the lock and sleeps", name, || {
            (name() == "sleep\n").then_some(())
        });
        locking
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("cannot look").is_some()
    }
}

impl Drop for Locking {
    fn drop(&mut self) {
        // Until it is waited for, its pid is that of its group.
        if !self.has_ended() {
            let _ = killpg(self.pid(), Signal::SIGKILL);
            drop(self.0.wait());
        }
    }
}

fn as_user(uid: u32) -> [String; 4] {
    [
        "setpriv".to_owned(),
        format!("--reuid={uid}"),
        format!("--regid={uid}"),
        "--clear-groups".to_owned(),
    ]
}

/// A command to the server of this pid file, as the user who runs the tests, or as another.
#[track_caller]
pub fn command(words: &[&str], folder: &Path, user: Option<u32>) -> Client {
    let mut command = match user.map(as_user) {
        None => Command::new(programs::start_server()),
        Some(before) => {
            let mut command = Command::new(&before[0]);
            command.args(&before[1..]).arg(programs::start_server());
            command
        }
    };
    command
        .args(words)
        .args(["--pid-file=pid", "--timeout=20"])
        .current_dir(folder);
    Client::start(command, folder)
}

/// The line of a command that finds another pid in the file.
fn line(written: impl std::fmt::Display, holder: Pid) -> String {
    format!(
        "start_server: pid contains {written}, but pid {holder} holds its lock and is the server\n"
    )
}

fn logging() -> Setup {
    let setup = Server::setup().pid_file().option("--log-file=log.file");
    setup.worker(["--graceful"])
}

/// What the server itself has said.
fn log_file(server: &Server) -> String {
    fs::read_to_string(server.folder().join("log.file")).unwrap_or_default()
}

/// Waits until a server that runs this worker alone has looked at its pid file for the last time: it does that when a
/// process of it has ended, and before it answers whoever asks after that.
#[track_caller]
fn settle(server: &Server, worker: Worker, user: Option<u32>) {
    server.wait_until("all others are waited for", |server| {
        proc::children(server.pid()) == [worker.pid]
    });
    let mut reopen = command(&["--reopen"], server.folder(), user);
    assert_eq!(reopen.wait(), 0, "{}", reopen.said());
}

/// A worker has written its own pid into the pid file, and each command, of this user, reaches the server.
#[track_caller]
fn assert_commands_reach_the_server(mut server: Server, user: Option<u32>) {
    let mut worker = accepted(&server);
    let (path, pid) = (server.folder().join("pid"), server.pid());
    let overwrite = |worker: Pid| fs::write(&path, format!("{worker}\n")).expect("cannot write");
    settle(&server, worker, user);
    overwrite(worker.pid);
    let mut reopen = command(&["--reopen"], server.folder(), user);
    assert_eq!(reopen.wait(), 0, "{}", reopen.said());
    let said = line(format_args!("pid {}", worker.pid), pid);
    assert!(reopen.said().starts_with(&said), "{}", reopen.said());

    let mut restart = command(&["--restart"], server.folder(), user);
    assert_eq!(restart.wait(), 0, "{}", restart.said());
    assert!(restart.said().starts_with(&said), "{}", restart.said());
    worker = server.wait_for_generations(&[2])[0];
    settle(&server, worker, user);
    assert_eq!(server.pid_file(), Some(pid));

    overwrite(worker.pid);
    let mut stop = command(&["--stop"], server.folder(), user);
    assert_eq!(stop.wait(), 0, "{}", stop.said());
    let expected = format!(
        "{}stop_server (pid:{}) stopping now (pid:{pid})...\n",
        line(format_args!("pid {}", worker.pid), pid),
        stop.child.id()
    );
    let last = stop.said().strip_prefix(&expected).map(str::to_owned);
    let last = last.unwrap_or_else(|| panic!("{}", stop.said()));
    assert!(
        last.starts_with("stopped (") && last.lines().count() == 1,
        "{last}"
    );
    assert!(server.wait_exit().success());
    assert!(!path.exists());
    let log = log_file(&server);
    assert!(!log.contains("died unexpectedly"), "{log}");
}

#[test]
fn a_worker_that_has_overwritten_the_pid_file_is_not_taken_for_the_server() {
    if is_ours() {
        let server = logging().start();
        // The harness runs it as an ordinary user: so does this.
        let user = Uid::effective().is_root().then_some(NOBODY);
        assert_commands_reach_the_server(server, user);
    }
}

#[test]
fn root_does_not_take_a_worker_for_the_server_either() {
    if is_ours() && needs_root() {
        assert_commands_reach_the_server(logging().start(), None);
    }
}

#[test]
fn a_worker_of_a_server_from_root_is_not_taken_for_the_server() {
    if !is_ours() || !needs_root() {
        return;
    }
    // Such a server's descriptors can be seen by root alone.
    for user in [None, Some(NOBODY)] {
        let setup = logging().as_root().option("--user=nobody");
        assert_commands_reach_the_server(setup.start(), user);
    }
}

#[test]
fn the_pid_of_a_daemon_is_found_by_its_lock() {
    if !is_ours() {
        return;
    }
    let mut server = logging().option("--daemonize").start();
    assert!(server.wait_exit().success());
    let daemon = server.pid_file().expect("no pid file");
    // What it holds is no pid at all.
    for text in ["", "nginx\n"] {
        fs::write(server.folder().join("pid"), text).expect("cannot write");
        let mut reopen = run(&server, &["--reopen", "--pid-file=pid", "--timeout=20"]);
        assert_eq!(reopen.wait(), 0, "{}", reopen.said());
        let said = line("no pid", daemon);
        assert!(reopen.said().starts_with(&said), "{}", reopen.said());
    }
    let mut stop = run(&server, &["--stop", "--pid-file=pid"]);
    assert_eq!(stop.wait(), 0, "{}", stop.said());
    assert!(!proc::alive(daemon));
}

#[test]
fn a_pid_file_that_the_program_writes_is_written_again_and_this_is_said_once() {
    if !is_ours() {
        return;
    }
    for write in [
        "echo $$ >pid",
        "echo $$ >new; mv new pid",
        "echo nginx >pid",
    ] {
        let setup = Server::setup().pid_file();
        let journal = setup.folder().join("journal");
        let script = format!(
            "{write}; exec '{}' --journal='{}' --graceful",
            programs::worker().display(),
            journal.display()
        );
        let mut server = setup.program(["sh", "-c", &script]).start();
        for generation in [1, 2, 3] {
            let worker = server.wait_for_service(generation);
            server.wait_until("the pid file names the server", |server| {
                server.pid_file() == Some(server.pid())
                    && server.log().contains("pid was overwritten")
            });
            if generation == 1 && write == "echo $$ >pid" {
                let said = format!(
                    "start_server: pid was overwritten with pid {}, rewrote it; \
                     give the server program a pid file of its own",
                    worker.pid
                );
                server.wait_for_log(&said);
            }
            server.wait_for_generations(&[generation]);
            let mut restart = run(&server, &["--restart", "--pid-file=pid", "--timeout=20"]);
            assert_eq!(restart.wait(), 0, "{write}: {}", restart.said());
        }
        assert_eq!(server.count_in_log("pid was overwritten"), 1, "{write}");
        let mut stop = run(&server, &["--stop", "--pid-file=pid"]);
        assert_eq!(stop.wait(), 0, "{write}: {}", stop.said());
        assert!(server.wait_exit().success());
        assert!(!server.folder().join("pid").exists(), "{write}");
    }
}

#[test]
fn a_pid_file_that_a_worker_removes_at_its_end_is_written_again() {
    if !is_ours() {
        return;
    }
    let server = Server::setup().pid_file().start();
    let worker = accepted(&server);
    fs::remove_file(server.folder().join("pid")).expect("cannot remove the pid file");
    kill(worker.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_log("pid was gone, rewrote it");
    assert_eq!(server.pid_file(), Some(server.pid()));
}

#[test]
fn a_reader_that_locks_a_new_pid_file_does_not_hold_the_server_up() {
    if !is_ours() {
        return;
    }
    let server = Server::setup().pid_file().start();
    let worker = accepted(&server);
    let (path, new) = (server.folder().join("pid"), server.folder().join("new"));
    let file = File::create(&new).expect("cannot make a file");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o666)).expect("cannot chmod");
    fs::rename(&new, &path).expect("cannot replace the pid file");
    let lock = Flock::lock(file, FlockArg::LockSharedNonblock).expect("cannot lock");
    kill(worker.pid, Signal::SIGKILL).expect("cannot kill the worker");
    let second = server.wait_for_service(2);
    kill(second.pid, Signal::SIGKILL).expect("cannot kill the worker");
    let third = server.wait_for_service(3);
    assert_eq!(server.pid_file(), None);
    drop(lock);
    kill(third.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_until("the pid file names the server", |server| {
        server.pid_file() == Some(server.pid())
    });
}

#[test]
fn a_pid_file_that_another_server_has_taken_is_left_to_it() {
    if !is_ours() {
        return;
    }
    let server = Server::setup().pid_file().start();
    let mut worker = accepted(&server);
    let path = server.folder().join("pid");
    fs::remove_file(&path).expect("cannot remove the pid file");
    let other = Server::setup()
        .option(format!("--pid-file={}", path.display()))
        .start();
    let is_theirs = || server.pid_file() == Some(other.pid());
    server.wait_until("the other one has it", |_| is_theirs());
    // Only then has it written its status beside the pid file, where the first one writes too.
    other.wait_for_service(1);
    for generation in [2, 3] {
        kill(worker.pid, Signal::SIGKILL).expect("cannot kill the worker");
        worker = server.wait_for_service(generation);
        server.wait_for_log("pid was replaced by another process, leaving it alone");
        assert!(
            is_theirs(),
            "{:?} {:?} {}\n{}\n{}",
            server.pid_file(),
            fs::read(&path),
            proc::alive(other.pid()),
            server.log(),
            other.log()
        );
    }
    let said = server.count_in_log("pid was replaced by another process");
    assert_eq!(said, 1);
}

/// A pid file of an ordinary user, which names somebody who has nothing to do with it.
fn naming(innocent: &Innocent, folder: &Path) -> PathBuf {
    let path = folder.join("pid");
    fs::write(&path, format!("{}\n", innocent.pid())).expect("cannot write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("cannot chmod");
    let owner = fs::metadata(folder).expect("no folder").uid();
    chown(&path, Some(owner), None).expect("cannot chown");
    path
}

#[test]
fn a_lock_that_was_left_to_a_child_is_that_childs() {
    if !is_ours() {
        return;
    }
    let folder = ordinary_folder();
    let innocent = Innocent::start(folder.path());
    let mut server = left_the_lock(&naming(&innocent, folder.path()), 1);
    let mut stop = command(&["--stop"], folder.path(), None);
    assert_eq!(stop.wait(), 0, "{}", stop.said());
    let said = line(format_args!("pid {}", innocent.pid()), server.pid());
    assert!(stop.said().starts_with(&said), "{}", stop.said());
    assert!(server.has_ended());
    innocent.assert_was_not_signalled();
}

#[test]
fn where_the_holder_of_the_lock_cannot_be_found_nobody_is_signalled() {
    if !is_ours() {
        return;
    }
    let folder = ordinary_folder();
    let innocent = Innocent::start(folder.path());
    let path = naming(&innocent, folder.path());
    // Which of the two is the server?
    let mut servers = left_the_lock(&path, 2);
    for command_word in ["--stop", "--restart", "--reopen"] {
        let mut client = command(&[command_word], folder.path(), None);
        assert_eq!(client.wait(), 1, "{}", client.said());
        assert_eq!(
            client.said(),
            format!(
                "start_server: cannot find the server of --pid-file=pid: pid {} in it does not hold its lock, \
                 and the process that does cannot be found\n\
                 hint: `fuser pid` as root shows who has it open\n",
                innocent.pid()
            )
        );
    }
    assert!(!servers.has_ended());
    innocent.assert_was_not_signalled();
}

#[test]
fn root_signals_whoever_has_locked_the_file_of_a_user_and_not_whom_it_names() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = ordinary_folder();
    let innocent = Innocent::start(folder.path());
    let path = naming(&innocent, folder.path());
    // The owner's own process may be ended for the owner, and another user's may not.
    for (user, code) in [(FOREIGN, 1), (NOBODY, 0)] {
        let words = as_user(user);
        let mut attacker = locking(&path, &words.each_ref().map(String::as_str));
        let mut stop = command(&["--stop"], folder.path(), None);
        assert_eq!(stop.wait(), code, "{}", stop.said());
        assert_eq!(attacker.has_ended(), code == 0, "{}", stop.said());
        if code == 0 {
            let said = line(format_args!("pid {}", innocent.pid()), attacker.pid());
            assert!(stop.said().starts_with(&said), "{}", stop.said());
        }
    }
    innocent.assert_was_not_signalled();
}

#[test]
fn whoever_reads_the_pid_file_for_long_does_not_keep_a_start_from_being_stopped() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().pid_file();
    let path = setup.folder().join("pid");
    let file = File::create(&path).expect("cannot make the pid file");
    chown(&path, Some(NOBODY), None).expect("cannot give the pid file away");
    drop(file);
    let file = File::open(&path).expect("cannot open the pid file");
    let reader = Flock::lock(file, FlockArg::LockSharedNonblock).expect("cannot lock it");
    let mut server = setup.start();
    let pid = server.pid();
    server.wait_until("it has taken its signals and tries to lock", |_| {
        proc::status(pid).is_some_and(|status| {
            proc::signals(status.blocked).contains(&Signal::SIGTERM)
                && proc::descriptors(pid)
                    .values()
                    .any(|it| it.ends_with("[signalfd]"))
        })
    });
    server.signal(Signal::SIGTERM);
    let status = server.wait_exit();
    assert_eq!(status.code(), Some(1), "{}", server.log());
    server.wait_for_log("start_server: cannot start: stopped by SIGTERM");
    drop(reader);
}

/// Whatever the server's user does in the directory of the files: with a status that takes long to read, and changes that
/// never end.
#[test]
fn a_client_ends_at_its_timeout_however_busy_its_files_are() {
    if !is_ours() || !needs_program("flock") {
        return;
    }
    let folder = ordinary_folder();
    let folder = folder.path();
    let pid_file = folder.join("pid");
    let deaf = [as_ordinary_user(), &["env", "--ignore-signal=HUP"]].concat();
    let server = locking(&pid_file, &deaf);
    fs::write(&pid_file, format!("{}\n", server.pid())).expect("cannot write the pid file");
    let json = format!(
        r#"{{"supervisor":{{"pid":{}}},"stopping":false,"counters":{{"restarts":0}},"generations":[],"verdicts":[],"padding":"{}"}}"#,
        server.pid(),
        "x".repeat(8_000_000)
    );
    let json_file = folder.join("pid.json");
    fs::write(&json_file, json).expect("cannot write the status");
    chown(&json_file, Some(NOBODY), None).expect("cannot give the status away");
    let (is_over, began) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(60) {
                let path = folder.join("new");
                fs::write(&path, "").expect("cannot write");
                fs::remove_file(&path).expect("cannot remove");
            }
        });
        let mut client = Command::new(programs::start_server());
        client
            .args(["--restart", "--pid-file=pid", "--timeout=1"])
            .current_dir(folder);
        let mut client = Client::start(client, folder);
        let code = client.wait();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(code, 4, "{}", client.said());
        // Without a bound it would read until nothing changes any more. A debug build on a busy machine takes seconds to read
        // such a status once.
        assert!(
            began.elapsed() < Duration::from_secs(50),
            "{:?}",
            began.elapsed()
        );
    });
}

/// A path that one user controls leads to the pid file of another: that server must not be stopped for the first.
#[test]
fn root_follows_no_link_of_one_user_to_the_server_of_another() {
    if !is_ours() || !needs_root() {
        return;
    }
    let mut server = logging().start();
    accepted(&server);
    let folder = Folder::new(Uid::from_raw(FOREIGN), Gid::from_raw(FOREIGN));
    let link = folder.path().join("run");
    symlink(server.folder(), &link).expect("cannot make the link");
    lchown(&link, Some(FOREIGN), Some(FOREIGN)).expect("cannot give the link away");
    let path = format!("--pid-file={}", link.join("pid").display());
    let mut by_link = Command::new(programs::start_server());
    by_link.args(["--stop", &path, "--timeout=20"]);
    let mut by_link = Client::start(by_link, folder.path());
    assert_eq!(by_link.wait(), 1, "{}", by_link.said());
    let objection = "belongs to an ordinary user";
    assert!(by_link.said().contains(objection), "{}", by_link.said());
    // By its own path the same file is good.
    let mut stop = command(&["--stop"], server.folder(), None);
    assert_eq!(stop.wait(), 0, "{}", stop.said());
    assert!(server.wait_exit().success());
}

/// The kernel shows its table of locks in pieces, and forgets where it was when one is released.
#[test]
fn a_server_is_found_however_many_locks_come_and_go() {
    if !is_ours() || !needs_root() || !needs_program("setpriv") {
        return;
    }
    // Another user sees the table alone.
    let setup = Server::setup().as_root().option("--user=nobody");
    let server = setup.pid_file().start();
    accepted(&server);
    let folder = ordinary_folder();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..2 {
            let (folder, is_over) = (&folder, &is_over);
            scope.spawn(move || lock_and_unlock(folder.path(), number, is_over));
        }
        for _ in 0..40 {
            let mut foreign = Command::new("setpriv");
            foreign
                .args([
                    &format!("--reuid={FOREIGN}"),
                    &format!("--regid={FOREIGN}"),
                    "--clear-groups",
                ])
                .arg(programs::start_server())
                .args(["--stop", "--pid-file=pid"])
                .current_dir(server.folder());
            let mut client = Client::start(foreign, server.folder());
            let code = client.wait();
            // Before anything can fail, lest the others go on for ever.
            let is_found = client.said().contains("cannot send SIGTERM to pid");
            if code != 1 || !is_found {
                is_over.store(true, Ordering::Relaxed);
                panic!("{}", client.said());
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

fn lock_and_unlock(folder: &Path, number: usize, is_over: &AtomicBool) {
    let files: Vec<File> = (0..3)
        .map(|file| File::create(folder.join(format!("{number}-{file}"))).expect("cannot create"))
        .collect();
    let mut files = files;
    while !is_over.load(Ordering::Relaxed) {
        let locked: Vec<Flock<File>> = files
            .drain(..)
            .map(|file| Flock::lock(file, FlockArg::LockExclusive).expect("cannot lock"))
            .collect();
        files = locked
            .into_iter()
            .map(|locked| locked.unlock().expect("cannot unlock"))
            .collect();
    }
}
