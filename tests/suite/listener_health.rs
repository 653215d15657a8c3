//! Listeners can break: what workers, and whoever removes files, do to them, and which of it is mended.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Output;

use e2e::client;
use e2e::server::{Setup, Worker};
use e2e::skip::{needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Server, ports};
use nix::sys::signal::{Signal, kill};

use crate::launch::RootFolder;
use crate::privileges::can_drop;

/// Started by an ordinary user, and by root with `--user`.
fn each_user() -> Vec<Setup> {
    let mut setups = vec![Server::setup()];
    if needs_root() {
        setups.push(Server::setup().as_root().option("--user=nobody"));
    }
    setups
        .into_iter()
        .map(|setup| setup.pid_file().status_file())
        .collect()
}

#[track_caller]
fn restart(server: &Server) -> Output {
    let words = ["--restart", "--pid-file=pid", "--timeout=60"];
    let output = server.client(words).output_in_turn();
    output.expect("cannot run the client")
}

#[track_caller]
fn restart_done(server: &Server) {
    let output = restart(server);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", server.log());
}

/// Asserts that a restart fails for this reason, although the new generation serves.
#[track_caller]
fn restart_fails(server: &Server, generation: u32, cause: &str) {
    let output = restart(server);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}\n{}", server.log());
    let line = format!("generation {generation} serves, but nobody can reach {cause}\nhint: ");
    assert!(said.contains(&line), "{said}\n{}", server.log());
    let json = server.status_json().expect("no status");
    let verdict = json["verdicts"].as_array().expect("a list").last();
    let verdict = verdict.expect("no verdict");
    assert_eq!(verdict["result"], "failed", "{verdict}");
    assert_eq!(verdict["serves"], true, "{verdict}");
    assert!(
        verdict["cause"]
            .as_str()
            .is_some_and(|it| it.contains(cause)),
        "{verdict}"
    );
}

/// What `FILE.json` says is wrong with the listener at this place.
fn trouble(server: &Server, place: usize) -> Option<String> {
    let json = server.status_json().expect("no status");
    json["listeners"][place]["trouble"]
        .as_str()
        .map(str::to_owned)
}

fn with_socket(setup: Setup) -> (Server, PathBuf) {
    let setup = setup.path("socket");
    let path = setup.folder().join("socket");
    let server = setup.start();
    server.wait_until_accepted();
    (server, path)
}

/// The hidden second name beside the path.
fn second_name(path: &Path) -> PathBuf {
    path.with_file_name(".socket.start_server")
}

#[track_caller]
fn end(server: &Server, worker: Worker, signal: Signal) {
    kill(worker.pid, signal).expect("cannot end the worker");
    server.wait_until("the worker has ended", |server| {
        !server.workers().contains(&worker)
    });
}

// Unix sockets.

#[test]
fn a_socket_whose_file_was_removed_is_reached_after_a_restart() {
    if original_differs("nobody reaches it any more") {
        return;
    }
    for setup in each_user() {
        let (mut server, path) = with_socket(setup);
        let made = fs::metadata(&path).expect("no socket");
        fs::remove_file(&path).expect("cannot remove");
        restart_done(&server);
        assert_eq!(client::ask(&path).generation, Some(2));
        // It is the very same socket, so workers started earlier can be reached as well.
        assert_eq!(fs::metadata(&path).expect("no socket").ino(), made.ino());
        let line = format!(
            "start_server: the file of the listener {} was removed since the last check; it is back",
            path.display()
        );
        server.wait_for_log(&line);
        assert!(server.stop().success());
        assert!(!path.exists() && !second_name(&path).exists());
    }
}

#[test]
fn a_socket_that_was_removed_under_both_names_is_made_again_at_a_restart() {
    if original_differs("nobody reaches it any more") {
        return;
    }
    for setup in each_user() {
        let setup = setup.option("--backlog=7");
        let path = setup.folder().join("socket");
        let option = format!("--path={},mode=0640", path.display());
        let mut server = setup.option(option).start();
        server.wait_until_accepted();
        let made = fs::metadata(&path).expect("no socket");
        for name in [&path, &second_name(&path)] {
            fs::remove_file(name).expect("cannot remove");
        }
        restart_done(&server);
        assert_eq!(client::ask(&path).generation, Some(2));
        let again = fs::metadata(&path).expect("no socket");
        assert_eq!((again.mode(), again.uid()), (made.mode(), made.uid()));
        server.wait_for_log("workers started from now on get a new socket");
        // And the new one is looked after as the first one was.
        fs::remove_file(&path).expect("cannot remove");
        restart_done(&server);
        assert_eq!(client::ask(&path).generation, Some(3));
        assert!(server.stop().success());
        assert!(!path.exists() && !second_name(&path).exists());
    }
}

#[test]
fn an_old_generation_that_removes_the_socket_at_its_end_does_not_cut_the_new_one_off() {
    if original_differs("nobody reaches the new one") {
        return;
    }
    for setup in each_user() {
        let (server, path) = with_socket(setup.worker(["--graceful", "--unlink-at-term"]));
        for generation in [2, 3] {
            let old = server.wait_for_service(generation - 1);
            restart_done(&server);
            assert_eq!(client::ask(&path).generation, Some(generation));
            let line = format!("removed, apparently by worker {}; it is back", old.pid);
            server.wait_for_log(&line);
        }
        assert_eq!(trouble(&server, 0), None);
    }
}

#[test]
fn a_foreign_file_at_the_path_stays_and_the_restart_has_failed() {
    if original_differs("it deletes the file at the end") {
        return;
    }
    for setup in each_user() {
        let (mut server, path) = with_socket(setup);
        fs::remove_file(&path).expect("cannot remove");
        fs::write(&path, "precious").expect("cannot write");
        let name = path.display();
        restart_fails(
            &server,
            2,
            &format!("{name}: something else is at its path, and is left alone"),
        );
        assert_eq!(fs::read_to_string(&path).expect("gone"), "precious");
        assert!(trouble(&server, 0).is_some());
        let line = format!("start_server: the listener {name} is in trouble: something else");
        server.wait_for_log(&line);
        // Once the foreign file is gone, the next restart gives the socket its name back.
        fs::remove_file(&path).expect("cannot remove");
        restart_done(&server);
        assert_eq!(client::ask(&path).generation, Some(3));
        assert_eq!(trouble(&server, 0), None);
        assert!(server.stop().success());
    }
}

#[test]
fn a_foreign_socket_that_is_served_at_the_path_stays_and_the_restart_has_failed() {
    if original_differs("it removes whatever socket is there at the end") {
        return;
    }
    for setup in each_user() {
        let (mut server, path) = with_socket(setup);
        for name in [&path, &second_name(&path)] {
            fs::remove_file(name).expect("cannot remove");
        }
        let foreign = UnixListener::bind(&path).expect("cannot bind");
        let name = path.display();
        let cause = format!("{name}: something else is at its path, and is left alone");
        restart_fails(&server, 2, &cause);
        // A foreign socket that nobody serves is just as foreign.
        drop(foreign);
        restart_fails(&server, 3, &cause);
        assert!(server.stop().success());
        let left = fs::symlink_metadata(&path).expect("it is gone");
        assert!(left.file_type().is_socket());
    }
}

#[test]
fn a_socket_that_a_new_generation_removes_for_good_is_the_verdict_on_it() {
    if original_differs("it is content") {
        return;
    }
    for setup in each_user() {
        let folder = setup.folder().to_owned();
        let script = format!(
            "test $SERVER_STARTER_GENERATION = 1 || rm {0}/socket {0}/.socket.start_server; exec sleep 1000",
            folder.display()
        );
        let setup = setup.program(["/bin/sh", "-c", &script]);
        let (server, path) = with_socket(setup);
        let cause = format!("{}: its file was removed", path.display());
        restart_fails(&server, 2, &cause);
    }
}

#[test]
fn a_unix_socket_that_a_worker_has_shut_down_is_made_again_at_the_restart_after_it() {
    if original_differs("nobody reaches it any more") {
        return;
    }
    for setup in each_user() {
        let port = ports::tcp();
        let (mut server, path) = with_socket(setup.port(port));
        let request = format!("shutdown {}", path.display());
        client::request(port, &request).expect("no answer");
        assert!(client::try_ask(&path).is_err());
        restart_done(&server);
        assert_eq!(client::ask(&path).generation, Some(2));
        assert!(server.stop().success());
        assert!(!path.exists() && !second_name(&path).exists());
    }
}

#[test]
fn an_abstract_socket_that_a_worker_has_shut_down_is_the_verdict_on_every_restart() {
    if original_differs("it has no abstract sockets") {
        return;
    }
    for setup in each_user() {
        let port = ports::tcp();
        let name = format!("@start_server-shut-{port}");
        let setup = setup.port(port).option(format!("--path={name}"));
        let server = setup.start();
        server.wait_until_accepted();
        client::request(port, &format!("shutdown {name}")).expect("no answer");
        for generation in [2, 3] {
            let cause = format!("{name}: a worker has shut it down");
            restart_fails(&server, generation, &cause);
        }
        server.wait_for_log("a worker has shut it down; stop the server and start it again");
    }
}

#[test]
fn an_old_generation_that_shuts_a_unix_socket_down_at_its_end_is_the_verdict_on_the_restart() {
    if original_differs("it is content") {
        return;
    }
    for setup in each_user() {
        let (server, path) = with_socket(setup.worker(["--graceful", "--shutdown-at-term"]));
        server.wait_for_service(1);
        let cause = format!("{}: a worker has shut it down", path.display());
        restart_fails(&server, 2, &cause);
        // The next generation has a socket of its own, which the previous one cannot shut down.
        restart_done(&server);
        assert_eq!(client::ask(&path).generation, Some(3));
    }
}

#[test]
fn a_name_that_a_killed_server_left_behind_is_no_hindrance() {
    if original_differs("it has no second name") {
        return;
    }
    for setup in each_user() {
        let path = setup.folder().join("socket");
        client::leave_stale_socket(&second_name(&path));
        let for_all = fs::Permissions::from_mode(0o777);
        fs::set_permissions(second_name(&path), for_all).expect("cannot change the mode");
        let (mut server, path) = with_socket(setup);
        fs::remove_file(&path).expect("cannot remove");
        restart_done(&server);
        assert_eq!(client::ask(&path).generation, Some(2));
        assert!(server.stop().success());
        assert!(!second_name(&path).exists());
    }
}

#[test]
fn a_socket_in_a_directory_of_root_that_was_removed_asks_for_a_stop_and_a_start() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let setup = Server::setup().as_root().option("--user=nobody");
    let port = ports::tcp();
    let server = setup
        .pid_file()
        .status_file()
        .port(port)
        .option(format!("--path={path}"))
        .start();
    server.wait_until_accepted();
    restart_done(&server);
    assert_eq!(server.ask(Path::new(&path)).generation, Some(2));
    fs::remove_file(&path).expect("cannot remove");
    restart_fails(&server, 3, &format!("{path}: its file was removed"));
    // The old worker, which ends at once, may have accepted what comes before.
    server.wait_for_generations(&[3]);
    // Its other listener is still served.
    assert_eq!(client::ask(port).generation, Some(3));
    assert_eq!(trouble(&server, 0), None);
    assert_eq!(trouble(&server, 1).as_deref(), Some("its file was removed"));
    server.wait_for_log("its file was removed; stop the server and start it again");
    assert!(fs::symlink_metadata(&path).is_err());
}

// Ports.

#[test]
fn a_tcp_listener_that_a_worker_shuts_down_before_it_ends_listens_again() {
    if original_differs("every connection is refused from then on") {
        return;
    }
    for setup in each_user() {
        let (port, other) = (ports::tcp(), ports::tcp());
        let server = setup.port(port).port(other).start();
        server.wait_until_accepted();
        let first = server.wait_for_service(1);
        let name = format!("127.0.0.1:{port}");
        client::request(other, &format!("shutdown {name}")).expect("no answer");
        assert!(client::try_ask(port).is_err());
        end(&server, first, Signal::SIGKILL);
        assert_eq!(server.ask(port).generation, Some(2));
        let line = format!(
            "start_server: the listener {name} was shut down, apparently by worker {}; it listens again",
            first.pid
        );
        server.wait_for_log(&line);
    }
}

#[test]
fn an_old_generation_that_shuts_its_listeners_down_at_its_end_does_not_cut_the_new_one_off() {
    if original_differs("every connection is refused from then on") {
        return;
    }
    for setup in each_user() {
        let port = ports::tcp();
        let setup = setup.port(port);
        let server = setup.worker(["--graceful", "--shutdown-at-term"]).start();
        server.wait_until_accepted();
        server.wait_for_service(1);
        restart_done(&server);
        assert_eq!(server.ask(port).generation, Some(2));
    }
}

#[test]
fn a_listener_with_a_shorter_queue_has_its_own_again_in_the_next_generation() {
    if original_differs("the queue stays short") {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup().status_file().pid_file().port(port);
    let server = setup.option("--backlog=70").start();
    server.wait_until_accepted();
    let name = format!("127.0.0.1:{port}");
    assert_eq!(server.ask(port).socket(&name).backlog, Some(70));
    client::request(port, &format!("listen {name} 3")).expect("no answer");
    restart_done(&server);
    assert_eq!(server.ask(port).socket(&name).backlog, Some(70));
}

#[test]
fn a_udp_socket_that_a_worker_has_connected_hears_everybody_after_it() {
    if original_differs("it hears one peer alone from then on") {
        return;
    }
    for setup in each_user() {
        let (port, udp) = (ports::tcp(), ports::udp());
        let name = format!("127.0.0.1:{udp}");
        let option = format!("--port=127.0.0.1:u{udp}");
        let server = setup.port(port).option(option).start();
        server.wait_until_accepted();
        client::request(port, &format!("connect {name}")).expect("no answer");
        restart_done(&server);
        assert_eq!(client::ask(client::udp(udp)).generation, Some(2));
        server.wait_for_log("it receives from everybody again");
    }
}

#[test]
fn a_udp_socket_that_a_worker_has_shut_down_is_the_verdict_on_every_restart() {
    if original_differs("it says nothing") {
        return;
    }
    let (port, udp) = (ports::tcp(), ports::udp());
    let name = format!("127.0.0.1:{udp}");
    let setup = Server::setup().status_file().pid_file().port(port);
    let server = setup.option(format!("--port=127.0.0.1:u{udp}")).start();
    server.wait_until_accepted();
    client::request(port, &format!("shutdown {name}")).expect("no answer");
    for generation in [2, 3] {
        let cause = format!("{name}: a worker has shut it down");
        restart_fails(&server, generation, &cause);
    }
    assert!(trouble(&server, 1).is_some());
    assert_eq!(server.count_in_log("is in trouble"), 1);
}
