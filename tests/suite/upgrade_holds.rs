//! What a server holds on to, an upgrade in place does not let go.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

use e2e::skip::needs_root;
use e2e::{Server, Setup, client, ports, proc, programs, wait};
use nix::sys::signal::{Signal, kill};

use crate::commands::{accepted, run};
use crate::readiness::with_files;
use crate::upgrade::{is_ours, serving, upgradable, upgraded};

#[test]
fn descriptors_that_workers_have_left_are_kept() {
    if !is_ours() {
        return;
    }
    let setup = with_files()
        .program([programs::keeper()])
        .options(["--ready=notify", "--fd-store-max=3"]);
    let port = ports::tcp();
    let (setup, programs) = upgradable(setup.port(port));
    let mut server = setup.start();
    server.wait_until_accepted();
    let keep = |name: &str| {
        let line = format!("send memfd 1 FDSTORE=1;FDNAME={name}");
        client::request(port, &line).expect("no answer")
    };
    let count = |server: &Server, count: u64| {
        server.wait_until("they are kept", |server| {
            let json = server.status_json();
            json.is_some_and(|json| json["fd_store"]["count"] == count)
        });
    };
    keep("one");
    count(&server, 1);
    programs.replace_by_version(true);
    upgraded(&server);
    count(&server, 1);
    // The limit and the order hold.
    keep("two");
    count(&server, 2);
    upgraded(&server);
    assert_eq!(server.restart().generation, 2);
    server.wait_until("the second one serves", |_| {
        client::request(port, "who").is_ok_and(|answer| answer == "2")
    });
    let kept = client::request(port, "kept").expect("no answer");
    assert!(
        kept.starts_with("3 ") && kept.ends_with(":one:two"),
        "{kept}"
    );
    for name in ["one", "two"] {
        let content = client::request(port, &format!("content {name}")).expect("no answer");
        assert_eq!(content, "1");
    }
    keep("three");
    count(&server, 3);
    upgraded(&server);
    keep("four");
    server.wait_for_log("asks to keep: there are --fd-store-max=3 already");
    client::request(port, "send none 0 FDSTOREREMOVE=1;FDNAME=one").expect("no answer");
    count(&server, 2);
    assert!(server.stop().success());
}

/// Started by an ordinary user, and where that is possible by root with `--user`.
fn each_user() -> Vec<Setup> {
    let mut setups = vec![with_files()];
    if needs_root() {
        setups.push(with_files());
    }
    setups
}

#[test]
fn a_socket_keeps_its_second_name_and_comes_back() {
    if !is_ours() {
        return;
    }
    for setup in each_user() {
        let (mut server, programs, _) = serving(setup.path("socket"));
        let path = server.folder().join("socket");
        let second = server.folder().join(".socket.start_server");
        let inode = || fs::metadata(&path).map(|there| there.ino()).ok();
        let made = inode();
        assert!(second.exists() && made.is_some());
        programs.replace_by_version(true);
        upgraded(&server);
        assert_eq!(inode(), made);
        fs::remove_file(&path).expect("cannot remove it");
        let mut restart = run(&server, &["--restart", "--pid-file=pid"]);
        assert_eq!(restart.wait(), 0, "{}", restart.said());
        server.wait_for_log("was removed since the last check; it is back");
        assert_eq!(inode(), made);
        assert_eq!(client::ask(&path).generation, Some(2));
        // Under both names: another one is made, and the next program knows that.
        for name in [&path, &second] {
            fs::remove_file(name).expect("cannot remove it");
        }
        let mut restart = run(&server, &["--restart", "--pid-file=pid"]);
        assert_eq!(restart.wait(), 0, "{}", restart.said());
        let made_again = inode();
        upgraded(&server);
        assert_eq!(inode(), made_again);
        assert_eq!(client::ask(&path).generation, Some(3));
        assert!(server.stop().success());
        assert!(!path.exists() && !second.exists());
    }
}

#[test]
fn what_another_has_put_at_the_path_stays() {
    if !is_ours() {
        return;
    }
    let (mut server, programs, _) = serving(with_files().path("socket"));
    let path = server.folder().join("socket");
    programs.replace_by_version(true);
    upgraded(&server);
    fs::remove_file(&path).expect("cannot remove it");
    let _other = UnixListener::bind(&path).expect("cannot bind");
    let theirs = fs::metadata(&path).expect("no socket").ino();
    upgraded(&server);
    assert!(server.stop().success());
    assert_eq!(fs::metadata(&path).expect("no socket").ino(), theirs);
}

#[test]
fn the_lock_of_the_pid_file_stays() {
    if !is_ours() {
        return;
    }
    let (mut server, programs, _) = serving(with_files());
    programs.replace_by_version(true);
    for _ in 0..2 {
        upgraded(&server);
        let path = server.folder().join("pid");
        let other = Server::setup().option(format!("--pid-file={}", path.display()));
        let finished = other.run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        assert_eq!(server.pid_file(), Some(server.pid()));
    }
    // A pid file that was overwritten is still its own; one in its place is not.
    assert!(server.stop().success());
    assert!(!server.folder().join("pid").exists());
    let mut status = run(&server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 3, "{}", status.said());
}

#[test]
fn a_server_that_was_killed_after_an_upgrade_is_known_to_be_gone() {
    if !is_ours() {
        return;
    }
    let (mut server, programs, _) = serving(with_files());
    programs.replace_by_version(true);
    upgraded(&server);
    let workers = server.workers();
    kill(server.pid(), Signal::SIGKILL).expect("cannot kill it");
    assert_eq!(server.wait_exit().code(), None);
    for worker in workers {
        kill(worker.pid, Signal::SIGKILL).expect("cannot kill it");
        wait::until("it is gone", String::new, || {
            (!proc::alive(worker.pid)).then_some(())
        });
    }
    for command in ["--status", "--upgrade", "--restart", "--stop"] {
        let mut client = run(&server, &[command, "--pid-file=pid"]);
        assert_eq!(client.wait(), 3, "{command}: {}", client.said());
    }
}

#[test]
fn sockets_of_the_launcher_stay_its_own() {
    if !is_ours() {
        return;
    }
    let (setup, programs) = upgradable(with_files());
    let listener = TcpListener::bind("127.0.0.1:0").expect("cannot bind");
    let port = listener.local_addr().expect("no address").port();
    let path = setup.folder().join("theirs");
    let unix = UnixListener::bind(&path).expect("cannot bind");
    std::os::unix::fs::chown(&path, Some(65534), None).ok();
    let mut server = setup
        .pass_on(listener)
        .pass_on(unix)
        .env("LISTEN_FDNAMES", "web:local")
        .option("--fd-env=systemd")
        .start();
    accepted(&server);
    let before = server.ask(port);
    assert_eq!(before.environment["LISTEN_FDNAMES"], "web:local");
    programs.replace_by_version(true);
    upgraded(&server);
    assert_eq!(server.ask(port), before);
    let json = server.status_json().expect("no status");
    assert_eq!(json["listeners"][0]["inherited"], true);
    server.restart();
    let second = server.ask(port);
    assert_eq!(second.generation, Some(2));
    assert_eq!(second.listeners, before.listeners);
    assert_eq!(second.environment["LISTEN_FDNAMES"], "web:local");
    upgraded(&server);
    drop(client::request(port, "exit 1"));
    server.wait_for_service(3);
    assert!(server.stop().success());
    assert!(path.exists());
}

#[test]
fn a_rollback_goes_back_behind_an_upgrade() {
    if !is_ours() {
        return;
    }
    let (server, programs, port) = serving(with_files());
    server.restart();
    programs.replace_by_version(true);
    upgraded(&server);
    let mut client = run(&server, &["--rollback", "--pid-file=pid"]);
    assert_eq!(client.wait(), 0, "{}", client.said());
    server.wait_until("the third one serves", |_| {
        client::try_ask(port).is_ok_and(|report| report.generation == Some(3))
    });
}

#[test]
fn an_environment_that_has_changed_since_is_read_for_the_next_worker() {
    if !is_ours() {
        return;
    }
    let setup = with_files();
    let directory = setup.folder().join("env");
    fs::create_dir(&directory).expect("cannot make a directory");
    fs::write(directory.join("NAME"), "before\n").expect("cannot write");
    let (server, programs, port) = serving(setup.option("--envdir=env"));
    assert_eq!(server.ask(port).environment["NAME"], "before");
    fs::write(directory.join("NAME"), "after\n").expect("cannot write");
    programs.replace_by_version(true);
    upgraded(&server);
    assert_eq!(server.ask(port).environment["NAME"], "before");
    server.restart();
    assert_eq!(server.ask(port).environment["NAME"], "after");
}
