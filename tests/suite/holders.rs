//! Which processes hold a port or path that cannot be bound: named as far as the starting user can see them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process;

use e2e::server::Setup;
use e2e::skip::{needs_ipv6, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Server, client, ports, proc, programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use crate::launch::RootFolder;

const TAIL: &str = "another server, or workers that a killed start_server has left behind";

/// The hint for a port that this very process holds: an ordinary user does not see into the tests of root.
pub fn hint_of_port_held_here(port: u16) -> String {
    hint_of_path_held_here().unwrap_or_else(|| {
        format!(
            "hint: `ss -anp 'sport = :{port}'`, as root, shows who holds it, \
             perhaps a worker left behind by a killed start_server"
        )
    })
}

/// The same for a socket file.
pub fn hint_of_path_held_here() -> Option<String> {
    let comm = format!("/proc/{}/comm", process::id());
    let comm = fs::read_to_string(comm).expect("cannot read our own name");
    let this = format!("pid {} ({})", process::id(), comm.trim_end());
    (!Uid::effective().is_root()).then(|| format!("hint: it is held by {this}: {TAIL}"))
}

/// As an ordinary user, and as root with `--user`.
fn each_user() -> Vec<fn() -> Setup> {
    let mut setups: Vec<fn() -> Setup> = vec![Server::setup];
    if needs_root() {
        setups.push(|| Server::setup().as_root().option("--user=nobody"));
    }
    setups
}

fn is_ours() -> bool {
    !original_differs("it names nobody")
}

/// Kills the supervisor alone.
#[track_caller]
fn kill_supervisor(server: &mut Server, left: &[Pid]) {
    server.signal(Signal::SIGKILL);
    server.wait_exit();
    assert!(
        left.iter().all(|&pid| proc::alive(pid)),
        "a worker died too"
    );
}

#[track_caller]
fn assert_refused(setup: Setup, option: &str, cause: &str, hint: &str) {
    let finished = setup.option(option).run();
    let line = format!("start_server: cannot listen on {option}: {cause}");
    let said: Vec<&str> = finished.log.lines().skip(1).collect();
    assert_eq!(said, [&line, hint]);
    assert_eq!(finished.status.code(), Some(1));
}

const IN_USE: &str = "Address already in use";
const SERVED: &str = "another server is listening on it";

#[test]
fn a_worker_that_a_killed_start_server_has_left_is_named_by_the_next_start() {
    if !is_ours() {
        return;
    }
    for setup in each_user() {
        let [tcp, udp, v6] = [ports::tcp(), ports::udp(), ports::tcp()];
        let mut first = setup()
            .port(tcp)
            .path("socket")
            .option(format!("--port=127.0.0.1:u{udp}"));
        let mut specs = vec![
            format!("127.0.0.1:{tcp}"),
            format!("localhost:{tcp}"),
            tcp.to_string(),
            format!("127.0.0.1:u{udp}"),
            format!("u{udp}"),
        ];
        if needs_ipv6() {
            first = first.option(format!("--port=[::1]:{v6}"));
            specs.extend([format!("[::1]:{v6}"), format!("[::]:{v6}")]);
        }
        let mut first = first.start();
        let worker = first.wait_for_service(1).pid;
        kill_supervisor(&mut first, &[worker]);

        let hint = format!("hint: it is held by pid {worker} (worker): {TAIL}");
        for spec in specs {
            assert_refused(setup(), &format!("--port={spec}"), IN_USE, &hint);
        }
        let path = first.folder().join("socket");
        let option = format!("--path={}", path.display());
        assert_refused(setup(), &option, SERVED, &hint);
    }
}

#[test]
fn of_sockets_at_the_same_relative_path_only_the_one_in_the_same_directory_counts() {
    if !is_ours() {
        return;
    }
    let elsewhere = Server::setup().option("--path=socket").start();
    elsewhere.wait_for_service(1);
    // Nothing is at that path below the directory of this one's worker.
    let moved = Server::setup()
        .options(["--path=socket", "--dir=/"])
        .start();
    moved.wait_for_service(1);
    let mut first = Server::setup().option("--path=socket").start();
    let worker = first.wait_for_service(1).pid;
    kill_supervisor(&mut first, &[worker]);

    let expected = format!(
        "start_server: cannot listen on --path=socket: {SERVED}\n\
         hint: it is held by pid {worker} (worker): {TAIL}\n"
    );
    let mut second = first.client(["--path=socket", "--start-limit=1", "--", "false"]);
    let second = second.output_in_turn().expect("cannot run start_server");
    let said = String::from_utf8(second.stderr).expect("not UTF-8");
    assert!(said.ends_with(&expected), "{said}");
    assert_eq!(second.status.code(), Some(1));
}

#[test]
fn every_worker_that_is_left_is_named() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let mut server = Server::setup().port(port).worker(["--graceful"]).start();
    let old = server.wait_for_service(1);
    let held = client::hold(port);
    server.signal(Signal::SIGHUP);
    let new = server.wait_for_service(2);
    server.wait_for_drain(old);
    let mut left = [old.pid, new.pid];
    left.sort();
    kill_supervisor(&mut server, &left);

    let [one, other] = left;
    let hint = format!("hint: it is held by pid {one} (worker) and pid {other} (worker): {TAIL}");
    assert_refused(Server::setup(), &format!("--port={port}"), IN_USE, &hint);
    held.finish();
}

#[test]
fn a_process_cannot_bring_control_characters_into_the_hint_by_its_name() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup().port(port);
    let program = setup.folder().join("\x1b[2J\n\u{9b}");
    symlink(programs::worker(), &program).expect("cannot make a link");
    let journal = format!("--journal={}", setup.folder().join("journal").display());
    let program = program.into_os_string();
    let mut server = setup.program([program, journal.into()]).start();
    let worker = server.wait_for_service(1).pid;
    kill_supervisor(&mut server, &[worker]);

    let hint = format!("hint: it is held by pid {worker} (\\x1B[2J\\x0A\\xC2\\x9B): {TAIL}");
    assert_refused(Server::setup(), &format!("--port={port}"), IN_USE, &hint);
}

#[test]
fn an_overlap_within_one_command_line_is_told_from_a_port_that_somebody_else_holds() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup().port(port);
    let hint = "hint: another listener of the same command line has it";
    assert_refused(setup, &format!("--port={port}"), IN_USE, hint);
}

#[test]
fn the_holder_of_a_socket_where_only_root_may_look_is_named_too() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let option = format!("--path={}", folder.join("socket"));
    let setup = || Server::setup().as_root().option("--user=nobody");
    let server = setup().option(&option).start();
    server.wait_for_service(1);
    let closed = Permissions::from_mode(0o700);
    fs::set_permissions(folder.path(), closed).expect("cannot close the folder");
    let hint = hint_of_running(&server);
    assert_refused(setup(), &option, SERVED, &hint);
}

fn hint_of_running(server: &Server) -> String {
    let pid = server.pid();
    format!(
        "hint: start_server (pid {pid}) already runs on it: with its --pid-file, --restart deploys and --stop ends it"
    )
}

#[test]
fn a_start_server_that_runs_is_named_alone() {
    if !is_ours() {
        return;
    }
    for setup in each_user() {
        let port = ports::tcp();
        let mut server = setup().port(port).path("socket").start();
        server.wait_for_service(1);
        let hint = hint_of_running(&server);
        let path = format!("--path={}", server.folder().join("socket").display());
        assert_refused(setup(), &path, SERVED, &hint);
        assert_refused(setup(), &format!("--port={port}"), IN_USE, &hint);
        assert!(server.stop().success());
    }
}

#[test]
fn the_commands_name_the_workers_that_a_killed_start_server_has_left() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let mut server = Server::setup()
        .pid_file()
        .status_file()
        .port(port)
        .worker(["--graceful"])
        .start();
    let old = server.accepted();
    let held = client::hold(port);
    server.signal(Signal::SIGHUP);
    let new = server.wait_for_service(2);
    server.wait_for_drain(old);
    server.wait_until("the status has both", |server| {
        let json = server.status_json();
        json.is_some_and(|json| {
            json["generations"]
                .as_array()
                .is_some_and(|all| all.len() == 2)
        })
    });
    kill_supervisor(&mut server, &[old.pid, new.pid]);
    let asked = |command: &str| {
        let mut client = server.client([command, "--pid-file=pid"]);
        let output = client.output_in_turn().expect("cannot run the command");
        let said = String::from_utf8(output.stderr).expect("not UTF-8");
        (output.status.code(), said)
    };
    let hint = |workers: &str| {
        format!(
            "start_server: not running: pid is not locked\n\
             hint: that server has not ended in order, and its workers still serve: {workers}; \
             end them with `kill` before the next start\n"
        )
    };
    let both = format!(
        "pid {} of generation 1 and pid {} of generation 2",
        old.pid, new.pid
    );
    for command in ["--restart", "--stop", "--status", "--abort"] {
        assert_eq!(asked(command), (Some(3), hint(&both)), "{command}");
    }
    // Only those that are left.
    held.finish();
    wait::until("the old one is gone", String::new, || {
        (!proc::alive(old.pid)).then_some(())
    });
    let one = format!("pid {} of generation 2", new.pid);
    assert_eq!(asked("--status"), (Some(3), hint(&one)));
    kill(new.pid, Signal::SIGKILL).expect("cannot end it");
    wait::until("the new one is gone", String::new, || {
        (!proc::alive(new.pid)).then_some(())
    });
    let line = "start_server: not running: pid is not locked\n";
    assert_eq!(asked("--status"), (Some(3), line.to_owned()));
}
