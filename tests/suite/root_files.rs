//! Files in directories where only root can write: the binder makes them for the user, and removes them at the end.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use common::message::{Ask, ForUser, Grant, Kind, Reply, Request};
use e2e::skip::needs_root;
use e2e::start::InTurn;
use e2e::{Server, Setup, ports, proc, programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::bad_input::{FAILED, assert_refused};
use crate::channel::{Peer, allow, is_ours, nobody, rooted};
use crate::launch::{AS_NOBODY, RootFolder, make_directory};
use crate::privileges::{assert_has_no_privilege, status};

const NOBODY: u32 = 65534;

fn can_drop() -> bool {
    is_ours() && needs_root()
}

/// The usual command line of root.
fn usual(folder: &RootFolder) -> Setup {
    Server::setup()
        .as_root()
        .option("--user=nobody")
        .option(format!("--pid-file={}", folder.join("pid")))
        .option(format!("--status-file={}", folder.join("status")))
        .worker(["--graceful"])
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("no directory");
    let names = entries.map(|entry| entry.expect("no entry").file_name());
    let mut names: Vec<String> = names
        .map(|name| name.into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

const ALL: [&str; 4] = ["pid", "pid.json", "status", "status.json"];

#[track_caller]
fn succeeds(before: &[&str], words: &[&str]) {
    let program = programs::start_server().display().to_string();
    let mut command = [before, &[program.as_str()], words].concat().into_iter();
    let first = command.next().expect("it has a program");
    let output = Command::new(first).args(command).output_in_turn();
    let output = output.expect("cannot run it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
}

/// By root and by the user.
fn commands_work(server: &Server, folder: &RootFolder) {
    let pid_file = format!("--pid-file={}", folder.join("pid"));
    for before in [&[][..], &AS_NOBODY] {
        for command in ["--status", "--restart", "--upgrade", "--status"] {
            succeeds(before, &[command, &pid_file]);
        }
    }
    assert!(server.count_in_log("hint:") == 0, "{}", server.log());
}

#[test]
fn root_has_its_files_where_only_root_can_write() {
    if !can_drop() {
        return;
    }
    for options in [&[][..], &["--guardian"]] {
        let (folder, port) = (RootFolder::new(), ports::tcp());
        let setup = usual(&folder).options(options.iter().copied()).port(port);
        let mut server = setup.start();
        server.wait_for_log("generation 1 serves");
        assert_eq!(names(folder.path()), ALL);
        for name in ALL {
            let there = fs::symlink_metadata(folder.join(name)).expect("it is gone");
            assert_eq!((there.uid(), there.mode() & 0o7777), (NOBODY, 0o644));
        }
        commands_work(&server, &folder);
        let status = fs::read_to_string(folder.join("status")).expect("no status");
        assert_eq!(status.lines().count(), 1, "{status}");
        assert!(server.stop().success());
        assert_eq!(names(folder.path()), [""; 0]);
    }
}

#[test]
fn what_root_has_made_goes_with_a_supervisor_that_is_killed() {
    if !can_drop() {
        return;
    }
    let (folder, port) = (RootFolder::new(), ports::tcp());
    let server = usual(&folder).port(port).start();
    server.ask(port);
    let binder = binder_of(server.main_pid());
    assert_lasting_binder(binder);
    kill(server.main_pid(), Signal::SIGKILL).expect("it is gone");
    wait::until("everything is removed", String::new, || {
        names(folder.path()).is_empty().then_some(())
    });
}

fn binder_of(supervisor: Pid) -> Pid {
    let children = proc::children(supervisor);
    let is_binder = |pid: &Pid| {
        fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|it| it.ends_with("start_server-binder"))
    };
    children.into_iter().find(is_binder).expect("no binder")
}

/// Uid 0, and nothing that comes with it.
fn assert_lasting_binder(pid: Pid) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is gone");
    for line in [
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.lines().any(|it| it == line), "{line}: {status}");
    }
}

#[test]
fn stale_files_of_the_user_are_replaced_and_a_running_server_keeps_its_own() {
    if !can_drop() {
        return;
    }
    let (folder, port) = (RootFolder::new(), ports::tcp());
    for (name, text) in [("pid", "1\n"), ("status", "1:2\n"), ("pid.json", "")] {
        fs::write(folder.join(name), text).expect("cannot write");
        chown(folder.join(name), Some(NOBODY), Some(NOBODY)).expect("chown");
    }
    let before = fs::metadata(folder.join("pid")).expect("no file").ino();
    // Its inode stays in use, so that the other file is another one.
    let kept = File::open(folder.join("pid")).expect("cannot open");
    let mut server = usual(&folder).port(port).start();
    server.ask(port);
    let made = fs::metadata(folder.join("pid")).expect("no file").ino();
    assert_ne!(made, before);
    drop(kept);
    let line = format!(
        "start_server: cannot use --pid-file={}: it is locked by a running instance, pid {}",
        folder.join("pid"),
        server.main_pid()
    );
    let finished = usual(&folder).port(ports::tcp()).run();
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished.log.lines().any(|it| it == line),
        "{}",
        finished.log
    );
    assert_eq!(names(folder.path()), ALL);
    assert_eq!(
        fs::metadata(folder.join("pid")).expect("no file").ino(),
        made
    );
    server.ask(port);
    assert!(server.stop().success());
}

/// What is there, how it is named in the message, and the look at it that must not change.
#[test]
fn what_is_not_the_users_own_file_is_left_alone() {
    if !can_drop() {
        return;
    }
    type Put = fn(&str);
    let cases: [(Put, &str); 6] = [
        (
            |path| fs::write(path, "1\n").expect("cannot write"),
            "it exists and belongs to root",
        ),
        (
            |path| {
                fs::write(path, "1\n").expect("cannot write");
                chown(path, Some(4242), Some(4242)).expect("chown");
            },
            "it exists and belongs to uid 4242",
        ),
        (
            |path| {
                fs::write(path, "1\n").expect("cannot write");
                chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
                fs::hard_link(path, format!("{path}.other")).expect("link");
            },
            "it exists and has other names too",
        ),
        (
            |path| symlink("/etc/passwd", path).expect("symlink"),
            "it exists and is a symbolic link, not a regular file",
        ),
        (
            |path| mkfifo(path, Mode::from_bits_truncate(0o666)).expect("mkfifo"),
            "it exists and is a fifo, not a regular file",
        ),
        (
            |path| make_directory(Path::new(path), 0o777, NOBODY),
            "it exists and is a directory, not a regular file",
        ),
    ];
    for (put, cause) in cases {
        let folder = RootFolder::new();
        let path = folder.join("pid");
        put(&path);
        let look = || {
            let there = fs::symlink_metadata(&path).expect("it is gone");
            (there.ino(), there.uid(), there.mode(), there.len())
        };
        let before = look();
        let setup = usual(&folder).port(ports::tcp());
        let line = format!("start_server: cannot use --pid-file={path}: {cause}");
        let finished = setup.run();
        assert_eq!(finished.status.code(), Some(1));
        assert!(
            finished.log.lines().any(|it| it == line),
            "{}",
            finished.log
        );
        assert_eq!(look(), before);
    }
    // Of the user, but nothing that a server writes.
    let folder = RootFolder::new();
    for name in ["pid", "status.json"] {
        let path = folder.join(name);
        fs::write(&path, "precious\n").expect("cannot write");
        chown(&path, Some(NOBODY), Some(NOBODY)).expect("chown");
        let finished = usual(&folder).port(ports::tcp()).run();
        assert!(finished.log.contains("is left alone"), "{}", finished.log);
        assert_eq!(names(folder.path()), [name]);
        fs::remove_file(&path).expect("cannot remove");
    }
}

fn file_for_user(path: &str) -> Grant {
    for_user(path, Kind::File)
}

fn for_user(path: &str, kind: Kind) -> Grant {
    Grant::ForUser(ForUser {
        path: path.into(),
        kind,
    })
}

fn sealed(grants: Vec<Grant>) -> Peer {
    let peer = rooted();
    peer.send(&allow(nobody(), grants));
    peer
}

const FIRST: Ask = Ask::Path { grant: 0 };

#[track_caller]
fn only_file(peer: &Peer) -> OwnedFd {
    let (reply, mut files) = peer.answer();
    assert!(matches!(reply, Reply::Bound { .. }), "{reply:?}");
    assert_eq!(files.len(), 1);
    files.remove(0)
}

#[test]
fn a_supervisor_that_was_taken_over_gains_no_file() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let [path, foreign] = ["pid", "foreign"].map(|name| folder.join(name));
    fs::write(&foreign, "precious").expect("cannot write");
    for (request, cause) in [
        (
            Request::Bind(vec![Ask::Path { grant: 1 }]),
            "grant 1 does not exist or was used already",
        ),
        (
            Request::Bind(vec![FIRST, FIRST]),
            "grant 0 does not exist or was used already",
        ),
        (
            Request::Bind(vec![crate::channel::ask(0, 80)]),
            "the ask is not what grant 0 allows",
        ),
        (
            allow(nobody(), vec![file_for_user(&foreign)]),
            "Allow came after the list was sealed",
        ),
    ] {
        let peer = sealed(vec![file_for_user(&path)]);
        peer.send(&request);
        peer.end().assert_refused(cause);
        assert_eq!(names(folder.path()), ["foreign"]);
    }
    // Once everything is made it only waits.
    let peer = sealed(vec![file_for_user(&path)]);
    peer.send(&Request::Bind(vec![FIRST]));
    drop(only_file(&peer));
    assert_eq!(names(folder.path()), ["foreign", "pid"]);
    peer.send(&Request::Bind(vec![FIRST]));
    peer.end().assert_quiet();
    assert_eq!(names(folder.path()), ["foreign"]);
    // For a user, and never for root.
    let peer = rooted();
    peer.send(&allow(None, vec![file_for_user(&path)]));
    peer.end()
        .assert_refused("root asked for sockets without a user to become");
    assert_eq!(fs::read_to_string(&foreign).expect("gone"), "precious");
}

#[test]
fn what_comes_to_the_name_of_a_file_after_the_look_stays() {
    if !can_drop() {
        return;
    }
    type Put = fn(&str);
    let puts: [Put; 3] = [
        |path| fs::write(path, "precious").expect("cannot write"),
        |path| symlink("/etc/passwd", path).expect("symlink"),
        |path| make_directory(Path::new(path), 0o755, 0),
    ];
    for kind in [Kind::File, Kind::Directory] {
        for was_there in [false, true] {
            for put in puts {
                let folder = RootFolder::new();
                let path = folder.join("name");
                if was_there && kind == Kind::File {
                    fs::write(&path, "1\n").expect("cannot write");
                    chown(&path, Some(NOBODY), Some(NOBODY)).expect("chown");
                }
                let peer = sealed(vec![for_user(&path, kind)]);
                wait_until_confined(&peer);
                if was_there && kind == Kind::File {
                    fs::rename(&path, folder.join("kept")).expect("cannot move it");
                }
                put(&path);
                let look = || {
                    let there = fs::symlink_metadata(&path).expect("it is gone");
                    (there.ino(), there.uid(), there.mode(), there.len())
                };
                let before = look();
                peer.send(&Request::Bind(vec![FIRST]));
                let (reply, files) = peer.answer();
                assert!(matches!(reply, Reply::Refused { ask: 0, .. }), "{reply:?}");
                assert!(files.is_empty());
                peer.end().assert_quiet();
                assert_eq!(look(), before, "it was touched");
            }
        }
    }
}

#[track_caller]
fn wait_until_confined(peer: &Peer) {
    let told = peer.channel.receive().expect("no message");
    assert!(matches!(told, Some(Reply::Confined(_))), "{told:?}");
}

#[test]
fn root_makes_nothing_where_others_can_write_or_a_link_of_theirs_leads() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let open = folder.path().join("open");
    make_directory(&open, 0o1777, 0);
    let theirs = folder.path().join("theirs");
    make_directory(&theirs, 0o755, NOBODY);
    let real = folder.path().join("real");
    make_directory(&real, 0o755, 0);
    symlink(&real, theirs.join("link")).expect("symlink");
    for directory in [&open, &theirs, &theirs.join("link")] {
        let path = directory.join("name").display().to_string();
        for kind in [Kind::File, Kind::Directory] {
            let peer = sealed(vec![for_user(&path, kind)]);
            peer.send(&Request::Bind(vec![FIRST]));
            let (reply, files) = peer.answer();
            assert!(matches!(reply, Reply::Refused { ask: 0, .. }), "{reply:?}");
            assert!(files.is_empty());
            peer.end().assert_quiet();
            assert!(!Path::new(&path).exists());
        }
    }
}

#[test]
fn a_runtime_directory_takes_all_files_and_leaves_no_process_of_root() {
    if !can_drop() {
        return;
    }
    let (folder, port) = (RootFolder::new(), ports::tcp());
    let directory = folder.join("app");
    let in_it = |setup: Setup| {
        setup
            .as_root()
            .umask(0o077)
            .option("--user=nobody")
            .option(format!("--runtime-dir={directory}/"))
            .options(["--pid-file=pid", "--status-file=status", "--log-file=log"])
    };
    for _ in 0..2 {
        let mut server = in_it(Server::setup()).port(port).start();
        server.ask(port);
        let there = fs::symlink_metadata(&directory).expect("it is gone");
        assert_eq!(
            (there.uid(), there.gid(), there.mode() & 0o7777),
            (NOBODY, NOBODY, 0o755)
        );
        wait::until("all is written", String::new, || {
            let expected = ["log", "pid", "pid.json", "status", "status.json"];
            (names(directory.as_ref()) == expected).then_some(())
        });
        assert_has_no_privilege(&status(server.main_pid()));
        for pid in proc::children(server.main_pid()) {
            let uid = fs::metadata(format!("/proc/{pid}")).map(|it| it.uid());
            assert_eq!(uid.ok(), Some(NOBODY), "a process of root is left");
        }
        let runtime_dir = format!("--runtime-dir={directory}");
        for before in [&[][..], &AS_NOBODY] {
            succeeds(before, &["--restart", &runtime_dir, "--pid-file=pid"]);
        }
        assert!(server.stop().success());
        assert_eq!(names(directory.as_ref()), ["log"]);
    }
}

#[test]
fn a_runtime_directory_of_somebody_else_is_refused() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let directory = folder.join("app");
    let refused = |cause: &str| {
        let setup = Server::setup()
            .as_root()
            .options(["--user=nobody", "--pid-file=pid"])
            .option(format!("--runtime-dir={directory}"));
        let line = format!("start_server: cannot make --runtime-dir={directory}: {cause}");
        let finished = setup.run();
        assert_eq!(finished.status.code(), Some(1));
        assert!(
            finished.log.lines().any(|it| it == line),
            "{}",
            finished.log
        );
    };
    make_directory(directory.as_ref(), 0o777, 0);
    refused("it exists and belongs to root");
    fs::remove_dir(&directory).expect("cannot remove");
    symlink("/tmp", &directory).expect("symlink");
    refused("it exists and is a symbolic link, not a directory");
    fs::remove_file(&directory).expect("cannot remove");
    fs::write(&directory, "").expect("cannot write");
    refused("it exists and is a regular file, not a directory");
}

#[test]
fn an_ordinary_user_makes_its_own_runtime_directory() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup()
        .port(port)
        .options(["--runtime-dir=run", "--pid-file=pid"]);
    let directory = setup.folder().join("run");
    let mut server = setup.start();
    server.ask(port);
    assert_eq!(names(&directory), ["pid", "pid.json"]);
    let mode = fs::metadata(&directory).expect("gone").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert!(server.stop().success());
    assert_eq!(names(&directory), [""; 0]);
    fs::remove_dir(&directory).expect("cannot remove");
    symlink("/", &directory).expect("symlink");
    let setup = Server::setup()
        .options(["--pid-file=pid"])
        .option(format!("--runtime-dir={}", directory.display()));
    let line = format!(
        "start_server: cannot make --runtime-dir={}: it is a symbolic link",
        directory.display()
    );
    assert_refused(setup, FAILED, &[&line]);
}

#[test]
fn a_log_file_of_root_is_refused_with_what_helps() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let log = folder.join("log");
    let setup = usual(&folder)
        .port(ports::tcp())
        .option(format!("--log-file={log}"));
    let finished = setup.run();
    assert_eq!(finished.status.code(), Some(1));
    let said: Vec<&str> = finished.log.lines().collect();
    let line = format!("start_server: cannot open --log-file={log}: Permission denied");
    assert!(said.contains(&line.as_str()), "{said:#?}");
    assert!(
        said.iter()
            .any(|it| it.starts_with("hint: root opens no log file: name one in --runtime-dir")),
        "{said:#?}"
    );
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_dry_run_says_what_root_makes_and_makes_nothing() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let setup = usual(&folder)
        .option("--check-config")
        .option(format!("--runtime-dir={}", folder.join("app")));
    let finished = setup.run();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.log);
    for name in ["app", "pid", "status", "pid.json", "status.json"] {
        let line = format!("lets root make {} for the user", folder.join(name));
        assert!(
            finished.log.lines().any(|it| it == line),
            "{}",
            finished.log
        );
    }
    assert_eq!(names(folder.path()), [""; 0]);
    fs::write(folder.join("pid"), "1\n").expect("cannot write");
    let finished = usual(&folder).option("--check-config").run();
    assert_eq!(finished.status.code(), Some(1));
    let cause = format!(
        "cannot use --pid-file={}: it exists and belongs to root",
        folder.join("pid")
    );
    assert!(finished.log.contains(&cause), "{}", finished.log);
}
