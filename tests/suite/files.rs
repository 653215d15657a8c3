//! The pid file and the status file: their form, their lock, and their end.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::skip::original_differs;
use e2e::{Server, client, ports, wait};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};

#[test]
fn the_pid_file_names_the_pid_that_was_started_and_is_locked() {
    let mut server = Server::setup().pid_file().start();
    let path = server.folder().join("pid");
    server.wait_until("the pid file has a line", |server| {
        server.pid_file().is_some()
    });
    assert_eq!(
        fs::read_to_string(&path).expect("no pid file"),
        format!("{}\n", server.pid())
    );
    let file = File::open(&path).expect("cannot open the pid file");
    let (_, errno) =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).expect_err("the pid file is not locked");
    assert_eq!(errno, Errno::EWOULDBLOCK);
    assert!(server.stop().success());
    assert!(!path.exists());
}

#[test]
fn the_lock_of_the_pid_file_is_free_when_the_server_has_ended() {
    let mut server = Server::setup().pid_file().start();
    server.wait_until("the pid file has a line", |server| {
        server.pid_file().is_some()
    });
    let file = File::open(server.folder().join("pid")).expect("cannot open the pid file");
    assert!(server.stop().success());
    // Workers do not hold it either.
    Flock::lock(file, FlockArg::LockExclusiveNonblock).expect("still locked");
}

#[test]
fn a_stale_pid_file_is_replaced() {
    let setup = Server::setup().pid_file();
    let path = setup.folder().join("pid");
    fs::write(&path, "4194304\n").expect("cannot write the file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("cannot change the mode");
    let server = setup.start();
    server.wait_until("the pid file names the server", |server| {
        server.pid_file() == Some(server.pid())
    });
}

#[test]
fn a_second_server_with_the_same_pid_file_is_refused() {
    if original_differs("it empties the file and waits for ever") {
        return;
    }
    let server = Server::setup().pid_file().start();
    server.wait_until("the pid file has a line", |server| {
        server.pid_file().is_some()
    });
    let path = server.folder().join("pid");
    let finished = Server::setup()
        .option(format!("--pid-file={}", path.display()))
        .run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    assert_eq!(server.pid_file(), Some(server.pid()));
}

#[test]
fn lines_of_the_log_in_a_status_file_are_for_no_more_users_than_the_umask_says() {
    if original_differs("it writes no such file") {
        return;
    }
    for (umask, expected) in [
        (0o022, 0o644),
        (0o027, 0o640),
        (0o077, 0o600),
        (0o777, 0o600),
    ] {
        let setup = Server::setup().pid_file().status_file().umask(umask);
        let server = setup.program(["sleep", "600"]).start();
        let mode = |name: &str| {
            let file = fs::metadata(server.folder().join(name));
            file.expect("no status file").permissions().mode() & 0o777
        };
        for (name, expected) in [
            ("pid.json", expected),
            ("status.json", expected),
            ("status", 0o644),
        ] {
            server.wait_until("it is written", |server| {
                server.folder().join(name).exists()
            });
            assert_eq!(mode(name), expected, "{name} with umask {umask:o}");
        }
    }
}

#[test]
fn the_status_file_has_a_line_for_each_generation() {
    let port = ports::tcp();
    let mut server = Server::setup()
        .status_file()
        .port(port)
        .worker(["--graceful"])
        .start();
    let path = server.folder().join("status");
    let first = server.wait_for_service(1);
    server.wait_until("the first generation is listed", |server| {
        server.status_file().as_deref() == Some(&*format!("1:{}\n", first.pid))
    });
    assert_eq!(
        fs::metadata(&path)
            .expect("no status file")
            .permissions()
            .mode()
            & 0o777,
        0o644
    );
    let held = client::hold(port);
    server.signal(Signal::SIGHUP);
    let second = server.wait_for_service(2);
    let both = format!("1:{}\n2:{}\n", first.pid, second.pid);
    server.wait_until("both generations are listed", |server| {
        server.status_file().as_deref() == Some(&*both)
    });
    held.finish();
    let one = format!("2:{}\n", second.pid);
    server.wait_until("the old generation is gone", |server| {
        server.status_file().as_deref() == Some(&*one)
    });
    assert!(server.stop().success());
    assert!(!path.exists());
}

#[test]
fn the_status_file_is_replaced_at_once() {
    let server = Server::setup().status_file().worker(["--graceful"]).start();
    let path = server.folder().join("status");
    server.wait_until("there is a status file", |server| {
        server.status_file().is_some()
    });
    server.wait_for_service(1);
    let old = File::open(&path).expect("cannot open the status file");
    server.restart();
    wait::until("another file is there", String::new, || {
        let inode = fs::metadata(&path).ok()?.ino();
        (inode != old.metadata().expect("an open file").ino()).then_some(())
    });
}

#[test]
fn generations_are_listed_by_number() {
    if original_differs("it sorts them as text, and needs a second for each") {
        return;
    }
    let port = ports::tcp();
    let server = Server::setup()
        .status_file()
        .interval("0.05")
        .port(port)
        .worker(["--graceful"])
        .start();
    server.wait_until("the first generation is listed", |server| {
        server.status_file().is_some()
    });
    server.wait_for_service(1);
    for _ in 0..7 {
        server.restart();
    }
    // Two old ones on either side of the step to two digits.
    let mut held = Vec::new();
    for generation in 8..=10 {
        let worker = server.wait_for_service(generation);
        held.push(client::hold(port));
        server.signal(Signal::SIGHUP);
        // From here on only the next generation accepts.
        server.wait_for_drain(worker);
    }
    let listed = server.status_file().expect("no status file");
    let numbers: Vec<&str> = listed
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0))
        .collect();
    assert_eq!(numbers, ["8", "9", "10", "11"]);
}

#[test]
fn the_status_file_has_a_companion_in_json() {
    if original_differs("it writes no such file") {
        return;
    }
    let mut server = Server::setup().status_file().worker(["--graceful"]).start();
    let path = server.folder().join("status.json");
    server.wait_until("it is there", |server| {
        server.status_json().is_some_and(|json| json.is_object())
    });
    server.wait_until("both files are there", |server| {
        server.status_file().is_some()
    });
    assert!(server.stop().success());
    assert!(!path.exists());
}

#[test]
fn a_pid_file_that_was_replaced_meanwhile_is_left_alone_at_the_end() {
    if original_differs("it removes whatever is there") {
        return;
    }
    let mut server = Server::setup().pid_file().start();
    server.wait_until("the pid file has a line", |server| {
        server.pid_file().is_some()
    });
    put_another_in_place(&server.folder().join("pid"));
    assert!(server.stop().success());
    assert_eq!(
        fs::read_to_string(server.folder().join("pid")).expect("it is gone"),
        "of another"
    );
}

#[test]
fn a_status_file_that_another_server_took_over_is_left_alone_at_the_end() {
    if original_differs("it writes and removes whatever is there") {
        return;
    }
    let mut server = Server::setup().status_file().start();
    server.wait_until("there is a status file", |server| {
        server.status_file().is_some()
    });
    // As a server does that starts while this one still waits for its workers.
    put_another_in_place(&server.folder().join("status"));
    assert!(server.stop().success());
    assert_eq!(server.status_file().as_deref(), Some("of another"));
}

fn put_another_in_place(path: &Path) {
    let another = path.with_extension("another");
    fs::write(&another, "of another").expect("cannot write the file");
    fs::rename(&another, path).expect("cannot put it in place");
}

#[test]
fn a_worker_that_is_replaced_is_replaced_in_the_status_file() {
    let server = Server::setup().status_file().start();
    server.wait_until("the first generation is listed", |server| {
        server.status_file().is_some()
    });
    let first = server.wait_for_service(1);
    kill(first.pid, Signal::SIGKILL).expect("cannot kill the worker");
    let second = server.wait_for_start(2);
    let line = format!("2:{}\n", second.pid);
    server.wait_until("the second is listed alone", |server| {
        server.status_file().as_deref() == Some(&*line)
    });
}

#[test]
fn a_draft_that_a_killed_superdaemon_has_left_is_removed_and_nothing_else() {
    if original_differs("it leaves them") {
        return;
    }
    let setup = Server::setup().status_file();
    let dead = "4194304";
    let file = |name: &str| setup.folder().join(name);
    let own = std::process::id();
    let left = [
        (format!("status.json.{dead}.0"), "{\n  \"supervisor\": {"),
        (format!("status.{dead}.1"), "1:23\n"),
        (format!("status.{dead}.2"), ""),
    ];
    let kept = [
        (format!("status.json.{own}.0"), "{\n  \"supervisor\": {"),
        (format!("status.{dead}.3"), "precious"),
        (format!("status.{dead}.x"), "1:23\n"),
        (format!("status.json.{dead}"), ""),
        (format!("other.{dead}.0"), ""),
    ];
    for (name, text) in left.iter().chain(&kept) {
        fs::write(file(name), text).expect("cannot write a file");
    }
    let (left, kept) = (
        left.map(|(name, _)| file(&name)),
        kept.map(|(name, _)| file(&name)),
    );
    let server = setup.start();
    server.wait_for_service(1);
    server.wait_until("the status file is there", |it| it.status_file().is_some());
    for path in left {
        assert!(!path.exists(), "{} is left", path.display());
    }
    for path in kept {
        assert!(path.exists(), "{} is gone", path.display());
    }
}
