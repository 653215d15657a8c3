//! What a worker is given: descriptors, environment, directory, signals, limits and arguments.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use e2e::skip::original_differs;
use e2e::{Report, Server, Setup, client, ports, proc, programs};
use nix::sys::resource::Resource;
use nix::sys::signal::Signal;

/// The report of the only worker of a server with one port.
fn report(setup: Setup) -> Report {
    let port = ports::tcp();
    let server = setup.port(port).start();
    server.ask(port)
}

#[test]
fn a_worker_gets_the_standard_descriptors_and_its_listeners_and_nothing_else() {
    let [one, two, three] = [ports::tcp(), ports::udp(), ports::tcp()];
    let setup = Server::setup()
        .option("--status-file=status")
        .option("--pid-file=pid")
        .port(one);
    let setup = setup
        .option(format!("--port=127.0.0.1:u{two}"))
        .path("socket")
        .port(three)
        .leak(7)
        .leak(100);
    let path = setup.folder().join("socket");
    let server = setup.start();
    let report = server.ask(one);
    let names: Vec<&str> = report
        .listeners
        .iter()
        .map(|listener| listener.name.as_str())
        .collect();
    let ports = [one, two, three].map(|port| format!("127.0.0.1:{port}"));
    assert_eq!(
        names,
        [
            &ports[0],
            &ports[1],
            &ports[2],
            path.to_str().expect("a path")
        ],
        "ports first, then paths"
    );
    if original_differs(
        "it starts at the lowest descriptor that is free, and keeps what the launcher leaked",
    ) {
        return;
    }
    assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(
        report.environment["SERVER_STARTER_PORT"],
        format!(
            "{}=3;{}=4;{}=5;{}=6",
            names[0], names[1], names[2], names[3]
        )
    );
}

#[test]
fn listeners_have_the_same_descriptors_in_every_generation() {
    let [one, two] = [ports::tcp(), ports::tcp()];
    let server = Server::setup()
        .status_file()
        .port(one)
        .port(two)
        .worker(["--graceful"])
        .start();
    let first = server.ask(one);
    server.wait_until_accepted();
    server.restart();
    let second = server.ask(one);
    assert_eq!(first.descriptors, second.descriptors);
    assert_eq!(
        first.environment["SERVER_STARTER_PORT"],
        second.environment["SERVER_STARTER_PORT"]
    );
    assert_eq!([first.generation, second.generation], [Some(1), Some(2)]);
}

#[test]
fn a_port_can_ask_for_its_descriptor() {
    let [one, two, three] = [ports::tcp(), ports::tcp(), ports::tcp()];
    let setup = Server::setup()
        .option(format!("--port=127.0.0.1:{one}=7"))
        .port(two);
    let server = setup.option(format!("--port={three}=20")).start();
    let report = server.ask(one);
    let entries: Vec<(String, i32)> = report
        .listeners
        .iter()
        .map(|it| (it.name.clone(), it.fd))
        .collect();
    let fd_of_two = entries[1].1;
    assert_eq!(
        entries,
        [
            (format!("127.0.0.1:{one}"), 7),
            (format!("127.0.0.1:{two}"), fd_of_two),
            (three.to_string(), 20)
        ]
    );
    assert_eq!(
        report.socket(&format!("127.0.0.1:{one}")).address,
        format!("127.0.0.1:{one}")
    );
    assert_eq!(
        report.socket(&three.to_string()).address,
        format!("0.0.0.0:{three}")
    );
    if !original_differs(
        "it starts at the lowest descriptor that is free, and closes what it duplicated too late",
    ) {
        assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3, 7, 20]);
    }
}

#[test]
fn descriptors_that_are_asked_for_never_take_those_of_other_listeners() {
    if original_differs("it loses sockets") {
        return;
    }
    let [one, two, three] = [ports::tcp(), ports::tcp(), ports::tcp()];
    // Swapped, and in the way of the one that asks for nothing.
    let options = [
        format!("--port={one}=4"),
        format!("--port={two}"),
        format!("--port={three}=3"),
    ];
    let server = Server::setup().options(options).start();
    let report = server.ask(one);
    for port in [one, two, three] {
        assert_eq!(
            report.socket(&port.to_string()).address,
            format!("0.0.0.0:{port}")
        );
    }
    assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(
        report.environment["SERVER_STARTER_PORT"],
        format!("{one}=4;{two}=5;{three}=3")
    );
}

#[test]
fn a_port_can_be_the_standard_input() {
    let port = ports::tcp();
    let server = Server::setup().option(format!("--port={port}=0")).start();
    let report = server.ask(port);
    assert_eq!(
        report.environment["SERVER_STARTER_PORT"],
        format!("{port}=0")
    );
    assert!(
        report.descriptors[&0].starts_with("socket:"),
        "{:?}",
        report.descriptors
    );
}

#[test]
fn without_listeners_server_starter_port_is_empty() {
    let setup = Server::setup();
    let file = setup.folder().join("report");
    let server = setup
        .worker([format!("--report={}", file.display())])
        .start();
    let report: Report = server.wait_for("the worker reported", |_| {
        serde_json::from_str(&fs::read_to_string(&file).ok()?).ok()
    });
    assert_eq!(report.environment["SERVER_STARTER_PORT"], "");
    assert_eq!(report.environment["SERVER_STARTER_GENERATION"], "1");
}

#[test]
fn a_worker_starts_with_no_signal_blocked_and_only_sigpipe_ignored() {
    let status = report(Server::setup()).status;
    assert_eq!(proc::signals(status.blocked), []);
    assert_eq!(proc::signals(status.ignored), [Signal::SIGPIPE]);
    assert_eq!(status.blocked, 0);
    assert_eq!(status.ignored, 1 << (Signal::SIGPIPE as i32 - 1));
}

#[test]
fn signals_that_the_launcher_blocked_or_ignored_are_as_usual_for_the_worker() {
    if original_differs("workers inherit both") {
        return;
    }
    let setup = Server::setup()
        .block(Signal::SIGTERM)
        .block(Signal::SIGHUP)
        .block(Signal::SIGUSR1);
    let setup = setup
        .ignore(Signal::SIGCHLD)
        .ignore(Signal::SIGHUP)
        .ignore(Signal::SIGINT)
        .ignore(Signal::SIGUSR2);
    let status = report(setup).status;
    assert_eq!(status.blocked, 0);
    assert_eq!(proc::signals(status.ignored), [Signal::SIGPIPE]);
}

#[test]
fn signals_that_the_launcher_blocked_or_ignored_still_work() {
    if original_differs("a blocked signal does not arrive") {
        return;
    }
    let setup = Server::setup().status_file().worker(["--graceful"]);
    let setup = setup
        .block(Signal::SIGTERM)
        .block(Signal::SIGHUP)
        .block(Signal::SIGCHLD);
    let mut server = setup
        .ignore(Signal::SIGCHLD)
        .ignore(Signal::SIGHUP)
        .ignore(Signal::SIGTERM)
        .start();
    server.wait_until_accepted();
    server.wait_for_service(1);
    server.restart();
    assert!(server.stop().success());
}

#[test]
fn a_worker_has_the_umask_of_the_launcher() {
    for mask in [0o022, 0o077, 0o002] {
        assert_eq!(report(Server::setup().umask(mask)).status.umask, mask);
    }
}

#[test]
fn a_worker_has_the_descriptor_limits_of_the_launcher() {
    let report = report(Server::setup().limit(Resource::RLIMIT_NOFILE, 100, 200));
    assert_eq!(report.nofile, (100, 200));
}

#[test]
fn a_worker_has_the_environment_of_the_launcher() {
    let report = report(Server::setup().env("COLOUR", "grün=ja").env("EMPTY", ""));
    assert_eq!(report.environment["COLOUR"], "grün=ja");
    assert_eq!(report.environment["EMPTY"], "");
    let mut names: Vec<&str> = report.environment.keys().map(String::as_str).collect();
    names.retain(|name| !matches!(*name, "COLOUR" | "EMPTY" | "E2E_MARK" | "PATH"));
    assert_eq!(
        names,
        [
            "SERVER_STARTER_GENERATION",
            "SERVER_STARTER_PORT",
            "SERVER_STARTER_WORKER",
            "SERVER_STARTER_WORKERS"
        ]
    );
    // Whoever has slots numbers them from 0.
    assert_eq!(report.environment["SERVER_STARTER_WORKER"], "0");
    assert_eq!(report.environment["SERVER_STARTER_WORKERS"], "1");
}

#[test]
fn arguments_after_the_program_are_its_own() {
    let program = programs::worker();
    let program = program.to_str().expect("a path");
    let arguments = ["--port=1", "--", "-x", "a b", "", "--restart", "*"];
    let setup = Server::setup().program([program].into_iter().chain(arguments));
    assert_eq!(report(setup).args, arguments);
}

#[test]
fn the_dashes_before_the_program_may_be_left_out() {
    let port = ports::tcp();
    let options = [
        format!("--port={port}"),
        programs::worker().display().to_string(),
        "one".to_owned(),
    ];
    let server = Server::setup()
        .without_interval()
        .without_program()
        .options(options)
        .start();
    assert_eq!(server.ask(port).args, ["one"]);
}

#[test]
fn a_program_without_a_slash_is_looked_up_in_path_after_dir() {
    let setup = Server::setup();
    let inner = setup.folder().join("inner");
    fs::create_dir(&inner).expect("cannot make a folder");
    symlink(programs::worker(), inner.join("fixture")).expect("cannot make a link");
    // Relative to the directory of the worker, not to that of the server.
    let report = report(
        setup
            .option("--dir=inner")
            .env("PATH", ".:/usr/bin:/bin")
            .program(["fixture"]),
    );
    assert_eq!(report.cwd, inner.to_str().expect("a path"));
}

#[test]
fn dir_is_for_the_worker_only() {
    let setup = Server::setup()
        .pid_file()
        .status_file()
        .option("--dir=inner");
    let folder = setup.folder().to_owned();
    fs::create_dir(folder.join("inner")).expect("cannot make a folder");
    let server = setup.start();
    let worker = server.wait_for_start(1);
    assert_eq!(
        fs::read_link(format!("/proc/{}/cwd", server.pid())).expect("no link"),
        folder
    );
    assert_eq!(
        fs::read_link(format!("/proc/{}/cwd", worker.pid)).expect("no link"),
        folder.join("inner")
    );
    server.wait_until("the files are in the folder of the server", |server| {
        server.pid_file().is_some() && server.status_file().is_some()
    });
}

#[test]
fn a_program_with_blanks_in_its_name_is_not_given_to_a_shell() {
    let setup = Server::setup();
    let program = setup.folder().join("a worker; exit 1");
    symlink(programs::worker(), &program).expect("cannot make a link");
    assert_eq!(report(setup.program([program])).args, [""; 0]);
}

#[test]
fn standard_streams_pass_through() {
    let port = ports::tcp();
    let setup = Server::setup().port(port);
    let input = setup.folder().join("input");
    fs::write(&input, "").expect("cannot write the file");
    let server = setup
        .stdin(File::open(&input).expect("cannot open the file"))
        .start();
    let report = server.ask(port);
    assert_eq!(report.descriptors[&0], input.to_str().expect("a path"));
    for line in ["stdout out of the worker", "stderr out of the worker"] {
        client::request(port, line).expect("no answer");
    }
    server.wait_for_log_times(2, "out of the worker");
}

#[test]
fn a_server_whose_standard_descriptors_are_closed_works() {
    if original_differs("its sockets take their places") {
        return;
    }
    let port = ports::tcp();
    let mut server = Server::setup()
        .port(port)
        .close(0)
        .close(1)
        .close(2)
        .start();
    let report = server.ask(port);
    assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3]);
    assert!(
        [0, 1, 2]
            .iter()
            .all(|fd| report.descriptors[fd] == "/dev/null"),
        "{:?}",
        report.descriptors
    );
    assert!(server.stop().success());
}

#[test]
fn a_worker_is_a_child_of_the_pid_that_was_started() {
    let port = ports::tcp();
    let server = Server::setup().port(port).start();
    assert_eq!(server.ask(port).ppid, server.pid().as_raw());
}
