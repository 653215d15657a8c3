//! `--check-config`: what a start would do, and what would keep it from that, without anything of it.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};

use e2e::folder::snapshot;
use e2e::server::Setup;
use e2e::skip::needs_root;
use e2e::{Finished, Server, ports};
use nix::sys::resource::Resource;

use crate::bad_input::is_ours;
use crate::commands::run;

const FAILED: i32 = 1;

/// What is wrong with a command line.
type Wrong = fn(Setup) -> Setup;

/// Runs it to its end: it has left the folder as it was, and started nothing.
#[track_caller]
fn check(setup: Setup) -> Finished {
    let log = setup.folder().join("log");
    File::create(&log).expect("cannot make the log");
    let mut before = snapshot(setup.folder());
    let finished = setup.option("--check-config").run();
    assert_eq!(finished.server.started(), []);
    let mut after = snapshot(finished.server.folder());
    let log = log.display().to_string();
    assert!(before.remove(&log).is_some() && after.remove(&log).is_some());
    assert_eq!(before, after);
    finished
}

#[track_caller]
fn says(setup: Setup, code: i32, lines: &[&str]) {
    let finished = check(setup);
    assert_eq!(finished.log.lines().collect::<Vec<_>>(), lines);
    assert_eq!(finished.status.code(), Some(code));
}

/// Everything that can be told, without a mistake.
fn sound(setup: Setup, port: u16) -> Setup {
    let folder = setup.folder().to_owned();
    fs::create_dir(folder.join("bin")).expect("cannot make a folder");
    fs::create_dir(folder.join("env")).expect("cannot make a folder");
    fs::write(folder.join("env/PATH"), "/nowhere:bin").expect("cannot write a variable");
    let server = folder.join("bin/server");
    fs::write(&server, "#!/bin/sh\ntouch started\n").expect("cannot write the program");
    fs::set_permissions(&server, PermissionsExt::from_mode(0o755)).expect("cannot make it run");
    setup
        .port(port)
        .option(format!("--port=127.0.0.1:u{port}=7"))
        .option("--path=socket,mode=0660")
        .option("--path=@check-config")
        .options(["--pid-file=pid", "--status-file=status", "--log-file=lines"])
        .options(["--preset=starlet", "--envdir=env", "--check=touch checked"])
        .program(["server", "argument"])
}

fn what_is_sound(port: u16) -> Vec<String> {
    [
        "takes from --preset: --signal-on-hup=TERM --signal-on-term=TERM --ready=accept",
        &format!("listens on tcp 127.0.0.1:{port} (--port=127.0.0.1:{port})"),
        &format!("listens on udp 127.0.0.1:{port} (--port=127.0.0.1:u{port}=7)"),
        "listens on unix socket, mode 0660 (--path=socket,mode=0660)",
        "listens on the abstract socket @check-config (--path=@check-config)",
        "writes pid (--pid-file)",
        "writes status (--status-file)",
        "writes status.json",
        "writes pid.json",
        "appends to lines (--log-file)",
        "sets the variables in env (--envdir)",
        "runs before each restart (--check): 'touch checked'",
        "runs bin/server",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[test]
fn it_says_what_a_start_would_do_and_does_none_of_it() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let lines = what_is_sound(port);
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    says(sound(Server::setup(), port), 0, &lines);
    // Nobody has it, and nobody ever had a connection there.
    TcpListener::bind(("127.0.0.1", port)).expect("the port is taken");
    says(sound(Server::setup(), port).option("--quiet"), 0, &[]);
}

#[test]
fn started_by_root_it_says_what_the_user_may_do() {
    if !is_ours() || !needs_root() {
        return;
    }
    let port = ports::tcp();
    let mut lines = what_is_sound(port);
    lines.insert(1, "becomes nobody (uid 65534, gid 65534)".to_owned());
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let as_root = || Server::setup().as_root().option("--user=nobody");
    says(sound(as_root(), port), 0, &lines);
    let low = as_root().option("--port=127.0.0.1:1").program(["true"]);
    let finished = check(low);
    assert_eq!(finished.status.code(), Some(0), "{}", finished.log);
    let line = "listens on tcp 127.0.0.1:1 (--port=127.0.0.1:1)";
    assert!(finished.log.contains(line), "{}", finished.log);
}

/// 30 addresses with 8 lanes each.
fn too_many_lanes(setup: Setup) -> Setup {
    let setup = setup.limit(Resource::RLIMIT_NOFILE, 100, 100);
    let ports = (0..30).map(|_| format!("--port=127.0.0.1:{}", ports::tcp()));
    setup.options(ports).options(["--switch", "--lanes=8"])
}

#[test]
fn what_a_switch_needs_is_examined() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let lines = what_is_sound(port);
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let with = |word: &str| sound(Server::setup(), port).option(word);
    let (first, others) = lines.split_first().expect("lines");
    let shared = [
        "lets all generations share --path=socket,mode=0660",
        "lets all generations share --path=@check-config",
    ];
    let all = [&[*first][..], &shared, others].concat();
    says(with("--switch"), 0, &all);
    let required = check(with("--switch=required"));
    assert_eq!(required.status.code(), Some(FAILED), "{}", required.log);
    for shared in ["--path=socket,mode=0660", "--path=@check-config"] {
        let failure =
            format!("start_server: cannot use --switch=required: all generations share {shared}\n");
        assert!(required.log.contains(&failure), "{}", required.log);
    }
    let lanes = with("--switch").option("--lanes=1");
    let failure = "start_server: cannot use --lanes=1: it takes a number from 2 to 8";
    says(lanes, 2, &[failure]);
    let finished = check(too_many_lanes(Server::setup()));
    assert_eq!(finished.status.code(), Some(2), "{}", finished.log);
    let hint = "\nhint: ask for fewer --lanes or --workers, or raise it with ulimit -n";
    assert!(finished.log.contains(hint), "{}", finished.log);
    let is_failure = |line: &&str| line.starts_with("start_server: ");
    let failures: Vec<&str> = finished.log.lines().filter(is_failure).collect();
    let [failure] = failures[..] else {
        panic!("{}", finished.log);
    };
    assert!(
        failure.starts_with("start_server: cannot open 240 sockets: that takes ")
            && failure.ends_with(" descriptors, and the limit on open files is 100"),
        "{failure}"
    );
}

/// A start ends with the first of its failures; the dry run has the same lines for it.
#[track_caller]
fn has_the_sentences_of_a_start(mistakes: &[(&str, Wrong)], base: fn() -> Setup) {
    for (mistake, wrong) in mistakes {
        let started = wrong(base()).run();
        assert_ne!(started.status.code(), Some(0), "{mistake}");
        let is_usual = |line: &&str| {
            let before = [
                "starting new ",
                "start_server: generation ",
                "start_server: listening on ",
            ];
            line.ends_with("starting now...") || before.iter().any(|one| line.starts_with(one))
        };
        let failure: Vec<&str> = started.log.lines().filter(|line| !is_usual(line)).collect();
        let checked = check(wrong(base()));
        let log = &checked.log;
        assert_eq!(checked.status.code(), started.status.code(), "{log}");
        assert!(!failure.is_empty(), "{mistake}");
        let failure = failure.join("\n");
        assert!(log.contains(&failure), "{mistake}: {failure}\n{log}");
    }
}

const MISTAKES: [(&str, Wrong); 21] = [
    ("a switch for a path", |it| {
        it.options(["--switch=required", "--path=socket"])
    }),
    ("more lanes than descriptors", too_many_lanes),
    ("a path in no directory", |it| it.option("--path=no/socket")),
    ("a path of nobody", |it| {
        it.option("--path=a,user=no-such-user")
    }),
    ("a path of no group", |it| {
        it.option("--path=a,group=no-such-group")
    }),
    ("a path where a file is", |it| {
        fs::write(it.folder().join("file"), "").expect("cannot write");
        it.option("--path=file")
    }),
    ("a host without an address", |it| {
        it.option("--port=no-such-host.invalid:80")
    }),
    ("a pid file in no directory", |it| {
        it.option("--pid-file=no/pid")
    }),
    ("a pid file that is a link", |it| {
        symlink("elsewhere", it.folder().join("pid")).expect("cannot make a link");
        it.option("--pid-file=pid")
    }),
    ("a pid file with a text", |it| {
        fs::write(it.folder().join("pid"), "a text of somebody\n").expect("cannot write");
        let path = it.folder().join("pid");
        fs::set_permissions(path, PermissionsExt::from_mode(0o666)).expect("cannot open it");
        it.option("--pid-file=pid")
    }),
    ("a pid file that is a directory", |it| {
        it.option("--pid-file=/")
    }),
    ("a status file in no directory", |it| {
        it.option("--status-file=no/status")
    }),
    ("a status file with a text", |it| {
        fs::write(it.folder().join("status"), "a text of somebody\n").expect("cannot write");
        it.option("--status-file=status")
    }),
    ("a log file in no directory", |it| {
        it.option("--log-file=no/log")
    }),
    ("a log file that is a directory", |it| {
        it.option("--log-file=/tmp")
    }),
    ("a syslog that is a file", |it| {
        it.options(["--syslog", "--syslog-address=/etc/passwd"])
    }),
    ("no directory of variables", |it| it.option("--envdir=no")),
    ("a directory that is missing", |it| it.option("--dir=no")),
    ("a program that is nowhere", |it| {
        it.program(["no-such-program"])
    }),
    ("a program that is a file", |it| it.program(["/etc/passwd"])),
    ("a script without its interpreter", |it| {
        let script = it.folder().join("script");
        fs::write(&script, "#!/no/such/shell\n").expect("cannot write");
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("cannot open it");
        it.program(["./script"])
    }),
];

#[test]
fn each_failure_has_the_sentence_of_the_start() {
    if is_ours() {
        has_the_sentences_of_a_start(&MISTAKES, Server::setup);
        let low: [(&str, Wrong); 1] = [("a low port", |it| it.option("--port=127.0.0.1:1"))];
        has_the_sentences_of_a_start(&low, Server::setup);
    }
}

#[test]
fn each_failure_has_the_sentence_of_the_start_by_root_too() {
    if !is_ours() || !needs_root() {
        return;
    }
    has_the_sentences_of_a_start(&MISTAKES, || {
        Server::setup().as_root().option("--user=nobody")
    });
    let of_root: [(&str, Wrong); 5] = [
        ("a path where only root has a file", |it| {
            it.option("--path=/etc/passwd")
        }),
        ("an unknown user", |it| it.option("--user=no-such-user")),
        ("no user", |it| it.option("--user=root")),
        ("an unknown group", |it| it.option("--group=no-such-group")),
        ("a directory of root", |it| it.option("--dir=/root")),
    ];
    has_the_sentences_of_a_start(&of_root, || {
        Server::setup().as_root().option("--user=nobody")
    });
}

#[test]
fn one_address_twice_is_found_once_the_names_are_resolved() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let with_both = || Server::setup().option(format!("--port=127.0.0.1:{port},localhost:{port}"));
    let failure = format!(
        "start_server: cannot listen on --port=localhost:{port}: Address already in use\n\
         hint: another listener of the same command line has it\n"
    );
    let started = with_both().run();
    assert!(started.log.ends_with(&failure), "{}", started.log);
    let checked = check(with_both());
    assert!(checked.log.contains(&failure), "{}", checked.log);
}

#[test]
fn all_failures_are_found_at_once() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup()
        .options(["--path=no/socket", "--port=no-such-host.invalid:80"])
        .options(["--pid-file=no/pid", "--log-file=no/log", "--dir=no"]);
    let finished = check(setup);
    assert_eq!(finished.status.code(), Some(FAILED));
    for failure in [
        "cannot listen on --path=no/socket: its directory does not exist",
        "cannot resolve the host no-such-host.invalid of --port=no-such-host.invalid:80: ",
        "cannot use --pid-file=no/pid: its directory does not exist",
        "cannot write the status file no/pid.json: its directory does not exist",
        "cannot open --log-file=no/log: its directory does not exist",
        "cannot change to --dir=no: No such file or directory",
    ] {
        let line = format!("start_server: {failure}");
        assert!(finished.log.contains(&line), "{failure}: {}", finished.log);
    }
}

#[test]
fn beside_the_server_that_runs_its_own_command_line_is_in_order() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let server = Server::setup().port(port).path("socket").pid_file().start();
    server.wait_for_service(1);
    let port = format!("--port=127.0.0.1:{port}");
    let options = ["--check-config", &port, "--path=socket"];
    let mut beside = run(
        &server,
        &[&options[..], &["--pid-file=pid", "true"]].concat(),
    );
    assert_eq!(beside.wait(), 0, "{}", beside.said());
    let locked = format!(
        "--pid-file=pid is locked by a running instance, pid {}: what that server has is not examined",
        server.pid()
    );
    assert!(beside.said().contains(&locked), "{}", beside.said());
    // Another server with the same listeners could not start.
    let mut another = run(&server, &[&options[..], &["true"]].concat());
    assert_eq!(another.wait(), FAILED, "{}", another.said());
    for failure in [
        format!("cannot listen on {port}: Address already in use\nhint: start_server (pid "),
        "cannot listen on --path=socket: another server is listening on it\n".to_owned(),
    ] {
        assert!(another.said().contains(&failure), "{}", another.said());
    }
}
