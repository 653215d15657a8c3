//! Where output goes: `--log-file=FILE` and `--log-file="| COMMAND"`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use e2e::skip::{needs_root, original_differs};
use e2e::{Report, Server, Setup, client, ports, proc, programs};
use nix::fcntl::OFlag;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getpgid, mkfifo};

/// A server that logs to this file or command in its folder; `DIR` stands for the folder.
fn logging(target: &str) -> (Setup, u16) {
    let port = ports::tcp();
    let setup = Server::setup().status_file().port(port);
    let target = target.replace("DIR", setup.folder().to_str().expect("UTF-8"));
    (setup.option(format!("--log-file={target}")), port)
}

fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn count(path: &Path, text: &str) -> usize {
    read(path)
        .lines()
        .filter(|line| line.contains(text))
        .count()
}

/// Waits until a file of the server's folder has a line with this text.
#[track_caller]
fn wait_for_line(server: &Server, file: &str, text: &str) {
    let path = server.folder().join(file);
    server.wait_until(&format!("{file} says {text:?}"), |_| count(&path, text) > 0);
}

/// Lets the worker write a line to standard error.
fn write_by_worker(port: u16, line: &str) {
    client::request(port, &format!("stderr {line}")).expect("the worker does not answer");
}

// A file.

#[test]
fn a_log_file_gets_our_lines_and_those_of_the_workers_behind_what_it_held() {
    let (setup, port) = logging("DIR/server.log");
    let path = setup.folder().join("server.log");
    fs::write(&path, "of yesterday\n").expect("cannot write a file");
    fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("cannot open it");
    let mut server = setup.worker(["--graceful"]).start();
    server.accepted();
    write_by_worker(port, "from standard error");
    client::request(port, "stdout from standard output").expect("no answer");
    let second = server.restart();
    write_by_worker(port, "from the second");
    assert!(server.stop().success());
    let text = read(&path);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.first(), Some(&"of yesterday"));
    assert_eq!(lines.last(), Some(&"exiting"));
    for line in [
        "from standard error".to_owned(),
        "from standard output".to_owned(),
        "from the second".to_owned(),
        format!("starting new worker {}", second.pid),
    ] {
        let times = lines.iter().filter(|one| **one == line).count();
        assert_eq!(times, 1, "{line}\n{text}");
    }
}

#[test]
fn nothing_is_left_for_the_terminal_but_the_first_line() {
    let (setup, _) = logging("DIR/server.log");
    let mut server = setup.start();
    server.accepted();
    let pid = server.pid();
    assert!(server.stop().success());
    assert_eq!(
        server.log(),
        format!("start_server (pid:{pid}) starting now...\n")
    );
}

#[test]
fn the_reason_of_a_failed_first_start_is_on_the_terminal_as_well_as_in_the_log_file() {
    if original_differs("its log file alone has the reason") {
        return;
    }
    for option in ["--quiet", "--log-timestamps", "--log-stream=stdout"] {
        let (setup, _) = logging("DIR/server.log");
        let finished = setup.option(option).program(["/missing/program"]).run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        let line = "start_server: cannot execute /missing/program: No such file or directory";
        let said: Vec<&str> = finished.log.lines().filter(|one| *one == line).collect();
        assert_eq!(said.len(), 1, "{option}: {}", finished.log);
        let log = finished.server.folder().join("server.log");
        assert_eq!(count(&log, line), 1, "{option}: {}", read(&log));
    }
}

#[test]
fn what_fails_after_the_first_start_is_for_the_log_file_alone() {
    let (setup, _) = logging("DIR/server.log");
    let switch = setup.folder().join("broken");
    let option = format!("--exit-if-exists={}", switch.display());
    let mut server = setup.worker([option]).start();
    server.accepted();
    let pid = server.pid();
    fs::write(&switch, "").expect("cannot break the worker");
    server.signal(Signal::SIGHUP);
    wait_for_line(&server, "server.log", "seems to have failed to start");
    assert!(server.stop().success());
    assert_eq!(
        server.log(),
        format!("start_server (pid:{pid}) starting now...\n")
    );
}

#[test]
fn a_standard_error_that_nobody_reads_does_not_stop_the_service() {
    if original_differs("it blocks in write") {
        return;
    }
    let port = ports::tcp();
    let (mut reader, writer) = std::io::pipe().expect("cannot make a pipe");
    let writer = File::from(OwnedFd::from(writer));
    let own = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut server = Server::setup()
        .status_file()
        .port(port)
        .worker(["--graceful"])
        .output(writer.try_clone().expect("cannot duplicate a descriptor"))
        .start();
    server.accepted();
    // A description of its own: that of the server goes on to block.
    let mut full = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(own)
        .expect("cannot open the pipe");
    while full.write(b"x").is_ok() {}
    drop((full, writer));
    let first = server.ask(port);
    let second = server.restart();
    assert_eq!(server.ask(port).generation, Some(2));
    kill(second.pid, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_service(3);
    // What waited comes when somebody reads.
    let text = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    assert!(server.stop().success());
    let text = text.join().expect("it panicked").expect("cannot read");
    for line in [
        "received HUP, spawning a new worker".to_owned(),
        format!("old worker {} died, status:0", first.pid),
        format!(
            "worker {} died unexpectedly with status:9, restarting",
            second.pid
        ),
        "exiting".to_owned(),
    ] {
        assert_eq!(
            text.matches(&line).count(),
            1,
            "{line} in {}",
            text.replace('x', "")
        );
    }
}

#[test]
fn a_terminal_that_is_not_read_does_not_stop_the_service() {
    if original_differs("it blocks in write") {
        return;
    }
    lines_for_a_full_terminal(|setup| setup);
}

#[test]
fn a_terminal_of_root_that_is_not_read_does_not_stop_the_service() {
    if original_differs("it blocks in write") || !needs_root() {
        return;
    }
    lines_for_a_full_terminal(|setup| setup.as_root().option("--user=nobody"));
}

/// Unlike one that Ctrl-S has stopped, a terminal whose other end is not read takes a part of a line.
#[track_caller]
fn lines_for_a_full_terminal(set_up: fn(Setup) -> Setup) {
    let port = ports::tcp();
    let pty = openpty(None, None).expect("cannot open a terminal");
    let mut server = set_up(Server::setup().status_file().port(port))
        .worker(["--graceful"])
        .output(File::from(pty.slave))
        .start();
    server.accepted();
    // More than a terminal holds, by the supervisor alone: each signal is a line.
    for _ in 0..1000 {
        server.signal(Signal::SIGUSR1);
        server.wait_until("the signal was taken", |server| {
            proc::status(server.pid()).is_some_and(|status| status.pending == 0)
        });
    }
    server.restart();
    assert_eq!(server.ask(port).generation, Some(2));
    assert!(server.stop().success());
    drop(pty.master);
}

#[test]
fn usr1_opens_the_log_file_again() {
    if original_differs("USR1 kills it") {
        return;
    }
    let (setup, port) = logging("DIR/server.log");
    let mut server = setup.worker(["--graceful"]).start();
    server.accepted();
    let (path, rotated) = (
        server.folder().join("server.log"),
        server.folder().join("server.log.1"),
    );
    write_by_worker(port, "before the rotation");
    fs::rename(&path, &rotated).expect("cannot rotate");
    server.signal(Signal::SIGUSR1);
    wait_for_line(&server, "server.log", "server.log; new workers write to it");
    // A worker has what it was started with, until it is replaced.
    write_by_worker(port, "of the first generation");
    assert_eq!(count(&rotated, "of the first generation"), 1);
    server.restart();
    write_by_worker(port, "of the second generation");
    assert_eq!(count(&path, "of the second generation"), 1);
    assert!(server.stop().success());
    assert_eq!(count(&rotated, "before the rotation"), 1);
    assert_eq!(count(&rotated, "exiting"), 0, "{}", read(&rotated));
    assert_eq!(count(&path, "exiting"), 1, "{}", read(&path));
}

#[test]
fn a_log_file_that_cannot_be_opened_again_stays_the_old_one() {
    if original_differs("USR1 kills it") {
        return;
    }
    let (setup, _) = logging("DIR/logs/server.log");
    let folder = setup.folder().join("logs");
    fs::create_dir(&folder).expect("cannot make a directory");
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).expect("cannot open it");
    let mut server = setup.start();
    server.accepted();
    let (path, rotated) = (folder.join("server.log"), folder.join("server.log.1"));
    fs::rename(&path, &rotated).expect("cannot rotate");
    symlink("planted", &path).expect("cannot make a link");
    server.signal(Signal::SIGUSR1);
    server.wait_until("it says why", |_| count(&rotated, "cannot reopen") > 0);
    server.restart();
    assert!(server.stop().success());
    assert_eq!(count(&rotated, "exiting"), 1, "{}", read(&rotated));
    assert!(!folder.join("planted").exists());
}

#[test]
fn usr1_without_a_log_file_is_said_and_harmless() {
    if original_differs("USR1 kills it") {
        return;
    }
    let mut server = Server::setup().status_file().start();
    server.accepted();
    server.signal(Signal::SIGUSR1);
    server.wait_for_log("received USR1, but there is no log file to reopen");
    assert!(server.stop().success());
}

#[test]
fn a_log_file_that_cannot_be_opened_is_one_line_and_exit_code_1() {
    if original_differs("its messages are others") {
        return;
    }
    let hint =
        "hint: the user that the server runs as must be able to write the file and its directory";
    for (target, cause, hint) in [
        ("DIR/closed/log", "Permission denied", Some(hint)),
        (
            "DIR/missing/log",
            "its directory does not exist",
            Some("hint: create it for the server's user: `install -d -o USER DIR/missing`"),
        ),
        ("DIR/link", "it is a symbolic link", None),
        ("DIR", "Is a directory", None),
    ] {
        let (setup, _) = logging(target);
        let closed = setup.folder().join("closed");
        fs::create_dir(&closed).expect("cannot make a directory");
        // Root's where the tests run as root; else nobody may write there.
        fs::set_permissions(&closed, Permissions::from_mode(0o555)).expect("cannot close it");
        symlink("elsewhere", setup.folder().join("link")).expect("cannot make a link");
        let folder = setup.folder().to_owned();
        let setup_folder = folder.to_str().expect("UTF-8");
        let path = target.replace("DIR", setup_folder);
        let finished = setup.pid_file().run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        let expected: Vec<String> = [format!(
            "start_server: cannot open --log-file={path}: {cause}"
        )]
        .into_iter()
        .chain(hint.map(|hint| hint.replace("DIR", setup_folder)))
        .collect();
        let lines: Vec<&str> = finished.log.lines().skip(1).collect();
        assert_eq!(lines, expected);
        assert_eq!(finished.server.started(), []);
        for left in ["pid", "pid.json", "status", "status.json", "elsewhere"] {
            let path = finished.server.folder().join(left);
            assert!(path.symlink_metadata().is_err(), "{left} is left behind");
        }
    }
}

#[test]
fn the_log_file_has_the_mode_of_the_umask_and_belongs_to_the_user() {
    let (setup, _) = logging("DIR/server.log");
    let server = setup.umask(0o027).start();
    server.accepted();
    let metadata = fs::metadata(server.folder().join("server.log")).expect("no log");
    let folder = fs::metadata(server.folder()).expect("no folder");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
    assert_eq!(metadata.uid(), folder.uid());
}

// Standard error by its path.

/// The program of a worker that opens /dev/stderr as h2o does, and goes on as the fixture.
fn opens_dev_stderr(setup: Setup) -> Setup {
    let journal = setup.folder().join("journal");
    let script = format!(
        "echo written by path >>/dev/stderr || exit 1; exec {} --graceful --journal={}",
        programs::worker().display(),
        journal.display()
    );
    setup.program(["/bin/sh", "-c", &script])
}

#[test]
fn a_worker_can_open_dev_stderr_by_its_path() {
    for target in ["DIR/server.log", "| exec cat >>DIR/server.log"] {
        let (setup, _) = logging(target);
        let server = opens_dev_stderr(setup).start();
        server.accepted();
        wait_for_line(&server, "server.log", "written by path");
        assert_eq!(server.started().len(), 1, "{target}");
    }
}

#[test]
fn a_worker_of_root_with_a_user_can_open_dev_stderr_by_its_path() {
    if original_differs("it has no --user") || !needs_root() {
        return;
    }
    for target in ["DIR/server.log", "| exec cat >>DIR/server.log"] {
        let (setup, _) = logging(target);
        let setup = setup.as_root().option("--user=nobody");
        let server = opens_dev_stderr(setup).start();
        server.accepted();
        wait_for_line(&server, "server.log", "written by path");
        assert_eq!(server.started().len(), 1, "{target}");
        let owner = fs::metadata(server.folder().join("server.log")).expect("no log");
        assert_eq!(owner.uid(), e2e::server::NOBODY);
    }
}

// A command.

#[test]
fn a_log_command_gets_our_lines_and_those_of_the_workers() {
    for blanks in ["|", "| ", "  |  "] {
        let (setup, port) = logging(&format!("{blanks}exec cat >>DIR/read"));
        let mut server = setup.worker(["--graceful"]).start();
        server.accepted();
        write_by_worker(port, "from the worker");
        wait_for_line(&server, "read", "from the worker");
        let reader = reader(&server);
        assert!(server.stop().success());
        // It is a child of its own and may be a moment behind.
        e2e::wait::until("the log command has ended", String::new, || {
            (!proc::alive(reader)).then_some(())
        });
        let text = read(&server.folder().join("read"));
        assert_eq!(text.lines().last(), Some("exiting"), "{text}");
    }
}

/// The one child that is no worker.
#[track_caller]
fn reader(server: &Server) -> Pid {
    server.wait_for("the log command runs", |server| {
        let workers: Vec<Pid> = server.workers().iter().map(|worker| worker.pid).collect();
        proc::children(server.pid())
            .into_iter()
            .find(|pid| !workers.contains(pid))
    })
}

#[test]
fn a_log_command_is_run_by_the_shell_with_clean_signals_and_nothing_open() {
    if original_differs("its log command inherits what it has") {
        return;
    }
    let report = format!("{} --report=DIR/report", programs::worker().display());
    let (setup, _) = logging(&format!("|{report} --exit=0; exec cat >/dev/null"));
    let server = setup.pid_file().start();
    server.accepted();
    let path = server.folder().join("report");
    let report: Report = server.wait_for("the log command reports", |_| {
        serde_json::from_str(read(&path).lines().next()?).ok()
    });
    assert_eq!(proc::signals(report.status.blocked), []);
    let ignored = proc::signals(report.status.ignored);
    assert!(
        ignored.is_empty() || ignored == [Signal::SIGPIPE],
        "{ignored:?}"
    );
    assert_eq!(report.descriptor_numbers(), [0, 1, 2], "{report:?}");
    assert!(report.descriptors[&0].starts_with("pipe:"));
    assert!(report.listeners.is_empty());
}

#[test]
fn a_log_command_that_is_killed_is_started_again_and_nothing_written_is_lost() {
    if original_differs("its log is lost for good") {
        return;
    }
    let (setup, port) = logging("| exec cat >>DIR/read");
    let mut server = setup.worker(["--graceful"]).start();
    server.accepted();
    let mut number = 0;
    for _ in 0..2 {
        let reader = reader(&server);
        assert_eq!(getpgid(Some(reader)), Ok(reader));
        number += 1;
        write_by_worker(port, &format!("line {number}."));
        wait_for_line(&server, "read", &format!("line {number}."));
        kill(reader, Signal::SIGKILL).expect("cannot kill the log command");
        server.wait_until("it is gone", |_| !proc::alive(reader));
        // Nobody reads now, or will only in a moment.
        for _ in 0..50 {
            number += 1;
            write_by_worker(port, &format!("line {number}."));
        }
        wait_for_line(&server, "read", &format!("line {number}."));
    }
    wait_for_line(
        &server,
        "read",
        "start_server: the log command died, status:9 (killed by SIGKILL); starting it again",
    );
    assert_eq!(server.workers().len(), 1);
    assert_eq!(server.started().len(), 1, "a worker died");
    assert!(server.stop().success());
    let text = read(&server.folder().join("read"));
    for number in 1..=number {
        let line = format!("line {number}.");
        let times = text.lines().filter(|one| *one == line).count();
        assert_eq!(times, 1, "{line}\n{text}");
    }
}

#[test]
fn a_log_command_that_ends_at_once_is_started_again_not_more_than_once_a_second() {
    if original_differs("its log is lost for good") {
        return;
    }
    let began = std::time::Instant::now();
    let (setup, port) = logging("| echo run >>DIR/runs; exit 3");
    let mut server = setup.worker(["--graceful"]).start();
    server.accepted();
    let runs = server.folder().join("runs");
    server.wait_until("it was started three times", |_| count(&runs, "run") >= 3);
    let (times, passed) = (count(&runs, "run"), began.elapsed().as_secs());
    assert!(
        u64::try_from(times).expect("few") <= passed + 1,
        "{times} starts in {passed} s"
    );
    // It is in the log, which nobody reads: once it is also shown where somebody may look.
    let line = "start_server: the log command died, status:768 (exit code 3); starting it again";
    assert_eq!(server.count_in_log(line), 1, "{}", server.log());
    // The service goes on as if nothing was.
    let worker = server.ask(port);
    write_by_worker(port, "nobody reads this");
    assert_eq!(server.ask(port).pid, worker.pid);
    server.restart();
    assert_eq!(server.ask(port).generation, Some(2));
    assert!(server.stop().success());
    assert_eq!(server.started().len(), 2, "a worker died");
}

#[test]
fn a_log_command_that_does_not_exist_does_not_end_the_service() {
    if original_differs("it does not start") {
        return;
    }
    let (setup, port) = logging("| /nonexistent/logger");
    let mut server = setup.worker(["--graceful"]).start();
    server.accepted();
    for _ in 0..20 {
        write_by_worker(port, "nobody reads this");
    }
    server.restart();
    assert_eq!(server.ask(port).generation, Some(2));
    assert!(server.stop().success());
}

#[test]
fn a_log_command_that_never_reads_neither_blocks_nor_ends_the_service() {
    if original_differs("it blocks in write") {
        return;
    }
    // The command ends when the FIFO is opened and closed again.
    let (setup, port) = logging("| read line <DIR/fifo; exec cat >>DIR/read");
    let fifo = setup.folder().join("fifo");
    mkfifo(&fifo, Mode::from_bits_truncate(0o666)).expect("cannot make a FIFO");
    fs::set_permissions(&fifo, Permissions::from_mode(0o666)).expect("cannot open the FIFO");
    let server = setup.worker(["--graceful"]).start();
    server.accepted();
    // More than the 64 KiB of a pipe, by the supervisor alone: each signal is a line.
    let signals = 2000;
    for _ in 0..signals {
        server.signal(Signal::SIGUSR1);
        server.wait_until("the signal was taken", |server| {
            proc::status(server.pid()).is_some_and(|status| status.pending == 0)
        });
    }
    let first = server.ask(port);
    let second = server.restart();
    assert_eq!(server.ask(port).pid, second.pid.as_raw());
    assert_ne!(first.pid, second.pid.as_raw());
    assert_eq!(server.started().len(), 2, "a worker died");
    // What waited is read when somebody does, every line of it and in order.
    drop(
        OpenOptions::new()
            .write(true)
            .open(&fifo)
            .expect("cannot open the FIFO"),
    );
    let path = server.folder().join("read");
    let last = format!("old worker {} died, status:0", first.pid);
    server.wait_until("the last line was read", |_| count(&path, &last) == 1);
    let line = "received USR1, but there is no log file to reopen";
    assert_eq!(count(&path, line), signals);
    let text = read(&path);
    assert_eq!(text.lines().count(), signals + 11, "{text}");
}

#[test]
fn term_ends_the_server_while_the_log_command_does_not_read() {
    if original_differs("it blocks in write") {
        return;
    }
    let (setup, _) = logging("| exec sleep 1000");
    let mut server = setup.worker(["--graceful"]).start();
    server.accepted();
    for _ in 0..2000 {
        server.signal(Signal::SIGUSR1);
        server.wait_until("the signal was taken", |server| {
            proc::status(server.pid()).is_some_and(|status| status.pending == 0)
        });
    }
    assert!(server.stop().success());
    assert_eq!(server.started().len(), 1);
}

#[test]
fn a_worker_that_waits_for_the_log_command_gets_its_line_through_when_that_is_replaced() {
    if original_differs("its log is lost for good") {
        return;
    }
    let (setup, port) = logging(
        "| if [ -e DIR/second ]; then exec cat >>DIR/read; fi; touch DIR/second; exec sleep 1000",
    );
    let server = setup.worker(["--graceful"]).start();
    server.accepted();
    wait_until_exists(&server, "second");
    let reader = reader(&server);
    let worker = server.ask(port);
    // More than a pipe holds: the worker waits in write, with its connection.
    let line = "x".repeat(4000);
    let mut last = client::connect(port).expect("cannot connect");
    for _ in 0..20 {
        let mut connection = client::connect(port).expect("cannot connect");
        connection
            .send(&format!("stderr {line}"))
            .expect("cannot send");
        last = connection;
    }
    kill(reader, Signal::SIGKILL).expect("cannot kill the log command");
    assert_eq!(last.receive().expect("no answer"), worker.pid.to_string());
    let path = server.folder().join("read");
    server.wait_until("every line was read", |_| count(&path, &line) == 20);
    assert_eq!(server.ask(port).pid, worker.pid);
}

#[track_caller]
fn wait_until_exists(server: &Server, name: &str) {
    server.wait_until(&format!("{name} is there"), |server| {
        server.folder().join(name).exists()
    });
}

#[test]
fn int_of_a_terminal_leaves_the_log_command_to_finish() {
    if original_differs("its log command gets the INT too") {
        return;
    }
    let (setup, port) = logging("| exec cat >>DIR/read");
    let mut server = setup.worker(["--graceful", "--ignore=INT"]).start();
    server.accepted();
    let reader = reader(&server);
    let worker = server.wait_for_service(1);
    let held = client::hold(port);
    // What a terminal does at ^C: everybody in the foreground group gets INT.
    assert_eq!(getpgid(Some(worker.pid)), Ok(server.pid()));
    killpg(server.pid(), Signal::SIGINT).expect("cannot signal the group");
    server.wait_for_drain(worker);
    wait_for_line(&server, "read", "received INT, sending TERM to all workers");
    assert!(proc::alive(reader), "the log command has ended too early");
    assert_eq!(held.finish().pid, worker.pid.as_raw());
    assert!(server.wait_exit().success());
    let path: PathBuf = server.folder().join("read");
    e2e::wait::until(
        "the last line was read",
        || read(&path),
        || (read(&path).lines().last() == Some("exiting")).then_some(()),
    );
}

#[test]
fn a_log_command_that_is_gone_at_the_end_is_started_once_more_for_the_last_lines() {
    if original_differs("its log is lost for good") {
        return;
    }
    let (setup, port) = logging("| exec cat >>DIR/read");
    let mut server = setup.worker(["--graceful"]).start();
    server.accepted();
    write_by_worker(port, "one more");
    wait_for_line(&server, "read", "one more");
    let reader = reader(&server);
    // Stopped, so that nothing has read the server's next lines; then killed together with the server's end.
    proc::stop(reader);
    server.signal(Signal::SIGTERM);
    kill(reader, Signal::SIGKILL).expect("cannot kill the log command");
    assert!(server.wait_exit().success());
    let path = server.folder().join("read");
    e2e::wait::until(
        "the last line was read",
        || read(&path),
        || read(&path).contains("exiting\n").then_some(()),
    );
}

#[test]
fn a_log_command_that_dies_at_once_is_started_until_it_reads_the_last_lines() {
    if original_differs("its log is lost for good") {
        return;
    }
    // The first three end at once.
    let (setup, _) = logging(
        "| if [ -e DIR/third ]; then exec cat >>DIR/read; fi; \
         if [ -e DIR/second ]; then touch DIR/third; fi; \
         if [ -e DIR/first ]; then touch DIR/second; fi; \
         touch DIR/first",
    );
    let mut server = setup.worker(["--graceful"]).start();
    server.accepted();
    wait_until_exists(&server, "first");
    assert!(server.stop().success());
    let path = server.folder().join("read");
    e2e::wait::until(
        "the last line was read",
        || read(&path),
        || read(&path).contains("exiting\n").then_some(()),
    );
}

#[test]
fn what_a_log_command_writes_itself_goes_where_start_server_began() {
    let (setup, _) = logging("| read line; echo \"heard: $line\"; exec cat >/dev/null");
    let server = setup.start();
    server.wait_for_log("heard: start_server: listening on ");
    assert!(
        File::open(server.folder().join("log"))
            .and_then(|mut file| file.read_to_string(&mut String::new()))
            .is_ok()
    );
}
