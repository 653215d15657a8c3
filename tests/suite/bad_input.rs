//! Mistakes: each is one clear line with its object and cause, and nothing is lost, deleted or left behind.

use std::fs::{self, File, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use e2e::folder::{Folder, snapshot};
use e2e::server::Setup;
use e2e::skip::{needs_root, original_differs};
use e2e::{Finished, Server, client, ports, programs};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, mkfifo};

use crate::holders::{hint_of_path_held_here, hint_of_port_held_here};
use crate::launch::{Launched, as_ordinary_user, install, launch_program, make_directory};

pub const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// The remedy for a file in a directory `missing`.
const MISSING_DIRECTORY: &str =
    "hint: create it for the server's user: `install -d -o USER missing`";

/// Whoever is neither root nor the user of the server.
const FOREIGN: u32 = 4242;

/// Server::Starter has other messages and other exit codes.
pub fn is_ours() -> bool {
    !original_differs("its messages and exit codes are others")
}

/// The lines that a start without mistakes has as well.
fn is_usual(line: &str) -> bool {
    line.ends_with(") starting now...")
        || line.starts_with("start_server: listening on ")
        || line.starts_with("start_server: generation 1 is ")
        || line.starts_with("start_server: generation 1 serves ")
        || line.starts_with("starting new worker ")
}

/// Runs it to its end: it must end with this code, say these lines and no others, and leave the folder as it was.
#[track_caller]
pub fn assert_refused(setup: Setup, code: i32, lines: &[&str]) -> Finished {
    // It is made for the server, not by it.
    let log = setup.folder().join("log");
    File::create(&log).expect("cannot make the log");
    let before = snapshot(setup.folder());
    let finished = setup.run();
    let said: Vec<&str> = finished
        .log
        .lines()
        .filter(|line| !is_usual(line))
        .collect();
    assert_eq!(said, lines);
    assert_eq!(finished.status.code(), Some(code), "{}", finished.log);
    assert_eq!(finished.server.started(), []);
    let mut after = snapshot(finished.server.folder());
    let mut before = before;
    let log = log.display().to_string();
    assert!(before.remove(&log).is_some() && after.remove(&log).is_some());
    assert_eq!(before, after);
    finished
}

#[track_caller]
pub fn assert_usage(setup: Setup, lines: &[&str]) {
    let finished = assert_refused(setup, USAGE, lines);
    // It was seen before anything was begun.
    assert_eq!(finished.log.lines().collect::<Vec<_>>(), lines);
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    if !is_ours() {
        return;
    }
    assert_usage(
        Server::setup().without_program(),
        &[
            "start_server: server program not specified",
            "hint: put it last, after two dashes: see --help",
        ],
    );
    let long = "x".repeat(108);
    let too_long = format!(
        "start_server: cannot use --path={long}: \
         the path of a unix socket has at most 107 bytes, this one has 108"
    );
    let long = format!("--path={long}");
    for (options, lines) in [
        (
            &["--bogus"][..],
            &["start_server: unknown option --bogus"][..],
        ),
        (
            &["--prot=80"],
            &[
                "start_server: unknown option --prot",
                "hint: did you mean --port?",
            ],
        ),
        (
            &["--interval=1", "--port", "--strict"],
            &[
                "start_server: cannot use --port: its value is missing",
                "hint: a value that begins with a dash needs an equals sign: --port=--strict",
            ],
        ),
        (
            &["--syslog", "mail"],
            &[
                "start_server: cannot use --syslog mail: a facility needs an equals sign",
                "hint: write --syslog=mail, or -- before a server program of that name",
            ],
        ),
        (
            &["--port=-1"],
            &["start_server: cannot use --port=-1: a port is a number from 0 to 65535"],
        ),
        (
            &["--port=127.0.0.1:65536"],
            &[
                "start_server: cannot use --port=127.0.0.1:65536: a port is a number from 0 to 65535",
            ],
        ),
        (
            &["--switch=yes"],
            &["start_server: cannot use --switch=yes: it is optional or required"],
        ),
        (
            &["--switch", "--lanes=1"],
            &["start_server: cannot use --lanes=1: it takes a number from 2 to 8"],
        ),
        (
            &["--switch", "--lanes=9"],
            &["start_server: cannot use --lanes=9: it takes a number from 2 to 8"],
        ),
        (
            &["--lanes=2"],
            &["start_server: cannot use --lanes: it needs --switch as well"],
        ),
        (
            &["--switch", "--port=u1", "--udp-flows=quic:20"],
            &[
                "start_server: cannot use --udp-flows=quic:20: it takes quic:OFFSET, where OFFSET is the place of a byte \
                 in a connection ID, from 0 to 19",
            ],
        ),
        (
            &["--switch", "--port=u1", "--udp-flows=quic:-1"],
            &[
                "start_server: cannot use --udp-flows=quic:-1: it takes quic:OFFSET, where OFFSET is the place of a byte \
                 in a connection ID, from 0 to 19",
            ],
        ),
        (
            &["--switch", "--port=u1", "--udp-flows=quic:"],
            &[
                "start_server: cannot use --udp-flows=quic:: it takes quic:OFFSET, where OFFSET is the place of a byte \
                 in a connection ID, from 0 to 19",
            ],
        ),
        (
            &["--switch", "--port=u1", "--udp-flows=dtls:1"],
            &[
                "start_server: cannot use --udp-flows=dtls:1: it takes quic:OFFSET, where OFFSET is the place of a byte \
                 in a connection ID, from 0 to 19",
            ],
        ),
        (
            &["--port=u1", "--udp-flows=quic:0"],
            &["start_server: cannot use --udp-flows: it needs --switch as well"],
        ),
        (
            &["--switch", "--port=1", "--udp-flows=quic:0"],
            &["start_server: cannot use --udp-flows: no --port is UDP, such as --port=u443"],
        ),
        (
            &["--quiet-time=1"],
            &["start_server: cannot use --quiet-time: it needs --switch as well"],
        ),
        (
            &["--switch", "--quiet-time=-1"],
            &[
                "start_server: cannot use --quiet-time=-1: the time is a number of seconds from 0 to 1000000000, such \
                 as 1 or 0.5",
            ],
        ),
        (
            &["--switch", "--rolling"],
            &[
                "start_server: cannot use --switch: --rolling replaces servers one by one, and --switch all at the \
                 same moment",
            ],
        ),
        (
            &["--switch", "--replace=stop-first"],
            &[
                "start_server: cannot use --switch: --replace=stop-first leaves no old server from which to switch",
            ],
        ),
        (
            &["--port=abc"],
            &[
                "start_server: cannot use --port=abc: a port is a number from 0 to 65535",
                "hint: names of services are not looked up: `getent services abc` shows the number",
            ],
        ),
        (
            &["--port=18001=4", "--port=18002=4"],
            &["start_server: cannot use --port=18002=4: descriptor 4 is taken by --port=18001=4"],
        ),
        (
            &["--port=18001", "--port=18001"],
            &["start_server: cannot use --port=18001: it is the same as --port=18001"],
        ),
        (
            &["--path="],
            &["start_server: cannot use --path=: the path is empty"],
        ),
        (
            &["--path=a,mode=999"],
            &[
                "start_server: cannot use --path=a,mode=999: a mode is an octal number from 0 to 0777",
            ],
        ),
        (
            &["--path=a;b"],
            &["start_server: cannot use --path=a;b: \
               a path cannot contain ; or =, which are separators in SERVER_STARTER_PORT"],
        ),
        (&[&long], &[&too_long]),
        (
            &["--group=nogroup"],
            &["start_server: cannot use --group=nogroup: it needs --user as well"],
        ),
        (
            &["--user=nobody"],
            &[
                "start_server: cannot use --user=nobody: only root can change the user",
                "hint: start as root, or omit --user to run as yourself",
            ],
        ),
    ] {
        assert_usage(Server::setup().options(options.iter().copied()), lines);
    }
}

#[test]
fn a_message_is_one_line_whatever_was_typed() {
    if !is_ours() {
        return;
    }
    assert_usage(
        Server::setup().option("--port=80\n\x1b(Bstart_server: all is well"),
        &[
            "start_server: cannot use --port='80\\x0A\\x1B(Bstart_server: all is well': \
           a port is a number from 0 to 65535",
        ],
    );
}

/// Wherever a name stands: in the cause, in the object and in the hint, of a usage error and of a failed start, of a
/// client, in a log and in what a launcher shows for its daemon.
#[test]
fn no_name_forges_a_line_or_drives_a_terminal() {
    if !is_ours() {
        return;
    }
    const NAME: &str = "a\nforged: line\x1b[2J\u{202e}";
    let beside = |options: &[&str]| -> Vec<String> {
        let setup = options.iter().map(|option| format!("{option}={NAME}"));
        setup.collect()
    };
    let missing = format!("/nodir/{NAME}/file");
    let mut cases: Vec<Vec<String>> = [
        "pid-file",
        "status-file",
        "log-file",
        "path",
        "dir",
        "envdir",
        "port",
        "user",
        "group",
        "fd-env",
        "interval",
        "signal-on-hup",
        "backlog",
        "syslog",
        "log-stream",
    ]
    .into_iter()
    .flat_map(|option| {
        let option = format!("--{option}");
        [
            vec![format!("{option}={missing}")],
            vec![format!("{option}={NAME}")],
            vec![format!("{option}{NAME}")],
        ]
    })
    .collect();
    cases.extend([
        beside(&["--log-file=|", "--daemonize"]),
        vec![format!("--pid-file={missing}"), "--restart".into()],
        vec![format!("--pid-file={missing}"), "--stop".into()],
        vec![
            format!("--status-file={missing}"),
            "--daemonize".into(),
            "--log-file=log-of-daemon".into(),
        ],
        vec![format!("--syslog-address={missing}"), "--syslog".into()],
        vec![format!("--path=socket,user={NAME}")],
        vec![format!("--port={NAME}:80")],
    ]);
    for options in cases {
        let program = format!("./{NAME}");
        let finished = Server::setup()
            .options(&options)
            .option("--start-limit=1")
            .program([program])
            .run();
        let log = finished.server.folder().join("log-of-daemon");
        let said = finished.log.clone() + &fs::read_to_string(log).unwrap_or_default();
        assert!(!finished.status.success(), "{options:?}: {said}");
        let is_forged = |line: &str| line.trim_start().starts_with("forged");
        assert!(!said.lines().any(is_forged), "{options:?}: {said}");
        assert!(!said.contains(['\x1b', '\u{202e}']), "{options:?}: {said}");
    }
}

/// With everything that a failed start has to remove.
fn with_files() -> Setup {
    let setup = Server::setup().pid_file().status_file().path("socket");
    setup.port(ports::tcp())
}

#[test]
fn a_program_that_cannot_be_executed_is_said_and_leaves_nothing_behind() {
    if !is_ours() {
        return;
    }
    let no_file = "start_server: cannot execute ./missing: No such file or directory";
    assert_refused(with_files().program(["./missing"]), FAILED, &[no_file]);

    let setup = with_files().program(["./plain"]);
    make_file(&setup, "plain", "#!/bin/sh\n", 0o644);
    let lines = [
        "start_server: cannot execute ./plain: Permission denied",
        "hint: it is not executable for this user: see chmod(1)",
    ];
    assert_refused(setup, FAILED, &lines);

    let setup = with_files().program(["closed/program"]);
    make_directory_of_server(&setup, "closed");
    make_file(&setup, "closed/program", "#!/bin/sh\n", 0o755);
    let closed = setup.folder().join("closed");
    fs::set_permissions(&closed, Permissions::from_mode(0o600)).expect("cannot close it");
    let lines = [
        "start_server: cannot execute closed/program: Permission denied",
        "hint: the directory closed is closed to this user",
    ];
    if Uid::effective().is_root() {
        assert_refused(setup, FAILED, &lines);
    } else {
        // Else not even the test can look into it.
        drop(setup);
    }

    let setup = with_files().program(["./directory"]);
    make_directory_of_server(&setup, "directory");
    let lines = [
        "start_server: cannot execute ./directory: Permission denied",
        "hint: it is a directory",
    ];
    assert_refused(setup, FAILED, &lines);

    let setup = with_files().program(["./script"]);
    make_file(&setup, "script", "#!/missing/interpreter\n", 0o755);
    let lines = [
        "start_server: cannot execute ./script: No such file or directory",
        "hint: the interpreter in its first line does not exist: /missing/interpreter",
    ];
    assert_refused(setup, FAILED, &lines);

    let setup = with_files().program(["./script"]);
    make_file(&setup, "script", "#! /bin/sh\r\nexit 0\r\n", 0o755);
    let lines = [
        "start_server: cannot execute ./script: No such file or directory",
        r"hint: its first line ends with a carriage return, which becomes part of the interpreter's name: /bin/sh\x0D",
    ];
    assert_refused(setup, FAILED, &lines);

    let setup = with_files().program(["missing-program"]);
    let lines = [
        "start_server: cannot execute missing-program: No such file or directory",
        "hint: no directory in PATH has it: PATH is /usr/bin:/bin",
    ];
    assert_refused(setup.env("PATH", "/usr/bin:/bin"), FAILED, &lines);

    let line = "start_server: cannot change to --dir=missing: No such file or directory";
    assert_refused(with_files().option("--dir=missing"), FAILED, &[line]);
}

fn owner(setup: &Setup) -> (u32, u32) {
    let metadata = fs::metadata(setup.folder()).expect("no folder");
    (metadata.uid(), metadata.gid())
}

pub fn make_file(setup: &Setup, name: &str, text: &str, mode: u32) {
    let path = setup.folder().join(name);
    let draft = setup.folder().join("draft");
    fs::write(&draft, text).expect("cannot write the file");
    // Like a program: it may be executed.
    install(&draft, setup.folder(), name);
    fs::remove_file(&draft).expect("cannot remove the draft");
    fs::set_permissions(&path, Permissions::from_mode(mode)).expect("cannot set the mode");
    let (uid, gid) = owner(setup);
    chown(&path, Some(uid), Some(gid)).expect("cannot give the file away");
}

fn make_directory_of_server(setup: &Setup, name: &str) {
    make_directory(&setup.folder().join(name), 0o755, owner(setup).0);
}

#[test]
fn an_address_that_cannot_be_bound_is_named() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let hint = hint_of_port_held_here(port);
    let _tcp = TcpListener::bind(("127.0.0.1", port)).expect("cannot bind");
    let _udp = UdpSocket::bind(("127.0.0.1", port)).expect("cannot bind");
    for spec in [
        format!("127.0.0.1:{port}"),
        format!("{port}"),
        format!("localhost:{port}"),
        format!("127.0.0.1:u{port}"),
    ] {
        let line = format!("start_server: cannot listen on --port={spec}: Address already in use");
        // After others, which are given back.
        let setup = with_files().option(format!("--port={spec}"));
        assert_refused(setup, FAILED, &[&line, &hint]);
    }

    let spec = format!("192.0.2.1:{port}");
    let line =
        format!("start_server: cannot listen on --port={spec}: Cannot assign requested address");
    let hint = "hint: no interface of this machine has that address: see `ip address`; `,freebind` after the port binds an address before it exists";
    let nonlocal = fs::read_to_string("/proc/sys/net/ipv4/ip_nonlocal_bind");
    if nonlocal.is_ok_and(|it| it.trim() == "0") {
        let setup = with_files().option(format!("--port={spec}"));
        assert_refused(setup, FAILED, &[&line, hint]);
    }
}

#[test]
fn a_host_that_does_not_exist_is_named() {
    if !is_ours() {
        return;
    }
    // The resolver also rejects it as a host name, so no name server is asked.
    let host = format!("{}.invalid", "x".repeat(64));
    let setup = with_files().option(format!("--port={host}:{}", ports::tcp()));
    let finished = setup.run();
    assert_eq!(finished.status.code(), Some(FAILED), "{}", finished.log);
    let said: Vec<&str> = finished
        .log
        .lines()
        .filter(|line| !is_usual(line))
        .collect();
    let [line] = said[..] else {
        panic!("{}", finished.log);
    };
    let (what, cause) = line.rsplit_once(": ").expect("no cause");
    assert!(what.starts_with(&format!(
        "start_server: cannot resolve the host {host} of --port={host}:"
    )));
    // Each system has its own words for it.
    assert!(!cause.is_empty() && !cause.contains("lookup"), "{line}");
}

#[test]
fn a_scheme_of_another_program_that_looks_like_a_host_gets_the_remedy() {
    if !is_ours() {
        return;
    }
    // Where a name server invents addresses for unknown names it is a host like any other.
    if std::net::ToSocketAddrs::to_socket_addrs("udp:53").is_ok() {
        return;
    }
    for (given, written) in [("udp:53", "u53"), ("tcp:80", "80")] {
        let finished = with_files().option(format!("--port={given}")).run();
        assert_eq!(finished.status.code(), Some(FAILED), "{}", finished.log);
        let said: Vec<&str> = finished
            .log
            .lines()
            .filter(|line| !is_usual(line))
            .collect();
        let hint = format!("hint: it is written as --port={written}");
        assert_eq!(said.get(1), Some(&hint.as_str()), "{}", finished.log);
    }
}

#[test]
fn a_low_port_of_an_ordinary_user_is_refused_with_the_remedy() {
    // Only root can know an unused one.
    if !is_ours() || !needs_root() {
        return;
    }
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first.is_ok_and(|it| it.trim() != "1024") {
        e2e::skip::missing("needs ports below 1024 to be reserved");
        return;
    }
    for transport in ["", "u"] {
        let port = ports::low();
        let line = format!(
            "start_server: cannot listen on --port=127.0.0.1:{transport}{port}: Permission denied"
        );
        let hint = format!(
            "hint: port {port} is reserved for root: start as root, with --user=NAME for the server program; or let \
             root `setcap cap_net_bind_service=ep` on start_server-binder and allow it in \
             /etc/start_server/binder.conf (which has no effect under no_new_privs or on a nosuid file system); or, in a unit \
             with User=, add AmbientCapabilities=CAP_NET_BIND_SERVICE"
        );
        let setup = with_files().option(format!("--port=127.0.0.1:{transport}{port}"));
        assert_refused(setup, FAILED, &[&line, &hint]);
    }
}

/// Puts something into a folder under a name, and says what it is.
type Obstacle = (&'static str, fn(&Path));

const OBSTACLES: [Obstacle; 5] = [
    ("a regular file", |path| {
        fs::write(path, "precious").expect("cannot write the file");
    }),
    ("a directory", |path| {
        fs::create_dir(path).expect("cannot make the directory");
        fs::write(path.join("file"), "precious").expect("cannot write the file");
    }),
    ("a symbolic link", |path| {
        symlink("nowhere", path).expect("cannot make the link");
    }),
    ("a symbolic link", |path| {
        let target = path.with_extension("target");
        fs::write(&target, "precious").expect("cannot write the file");
        fs::set_permissions(&target, Permissions::from_mode(0o666)).expect("cannot set the mode");
        symlink(&target, path).expect("cannot make the link");
    }),
    ("a fifo", |path| {
        mkfifo(path, Mode::from_bits_truncate(0o666)).expect("cannot make the fifo");
        fs::set_permissions(path, Permissions::from_mode(0o666)).expect("cannot set the mode");
    }),
];

#[test]
fn what_is_at_the_path_of_a_socket_stays() {
    if !is_ours() {
        return;
    }
    for (kind, make) in OBSTACLES {
        let setup = Server::setup()
            .pid_file()
            .status_file()
            .option("--path=thing");
        make(&setup.folder().join("thing"));
        let line = format!(
            "start_server: cannot listen on --path=thing: it exists and is {kind}, not a socket"
        );
        assert_refused(setup, FAILED, &[&line]);
    }
    let line =
        "start_server: cannot listen on --path=/dev/null: it exists and is a device, not a socket";
    assert_refused(Server::setup().option("--path=/dev/null"), FAILED, &[line]);
    assert!(
        fs::metadata("/dev/null")
            .expect("it is gone")
            .file_type()
            .is_char_device()
    );
}

#[test]
fn a_path_that_cannot_be_bound_is_named() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().option("--path=missing/socket");
    let line = "start_server: cannot listen on --path=missing/socket: its directory does not exist";
    let hint = "hint: create it for the server's user: `install -d -o USER missing`";
    assert_refused(setup, FAILED, &[line, hint]);

    let setup = Server::setup().option("--path=directory/");
    make_directory_of_server(&setup, "directory");
    let line = "start_server: cannot listen on --path=directory/: it names a directory";
    assert_refused(setup, FAILED, &[line]);

    let setup = Server::setup().option("--path=closed/socket");
    make_directory_of_server(&setup, "closed");
    let closed = setup.folder().join("closed");
    fs::set_permissions(&closed, Permissions::from_mode(0o555)).expect("cannot close it");
    let lines = [
        "start_server: cannot listen on --path=closed/socket: Permission denied",
        "hint: the directory must be writable by this user",
    ];
    assert_refused(setup, FAILED, &lines);

    for (attribute, what) in [("user", "user"), ("group", "group")] {
        let line = format!(
            "start_server: cannot use {attribute}=no-such-name of \
             --path=socket,{attribute}=no-such-name: there is no such {what}"
        );
        let setup = Server::setup().option(format!("--path=socket,{attribute}=no-such-name"));
        assert_refused(setup, FAILED, &[&line]);
    }
}

#[test]
fn a_socket_that_is_served_stays() {
    if !is_ours() {
        return;
    }
    let line = "start_server: cannot listen on --path=socket: another server is listening on it";
    let hint = hint_of_path_held_here();
    let lines: Vec<&str> = [line].into_iter().chain(hint.as_deref()).collect();
    let setup = Server::setup()
        .pid_file()
        .status_file()
        .option("--path=socket");
    let path = setup.folder().join("socket");
    let listener = UnixListener::bind(&path).expect("cannot bind");
    fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("cannot set the mode");
    drop((assert_refused(setup, FAILED, &lines), listener));

    // Of another type, such as that of a syslog daemon.
    let setup = Server::setup().option("--path=socket");
    let path = setup.folder().join("socket");
    let datagrams = UnixDatagram::bind(&path).expect("cannot bind");
    fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("cannot set the mode");
    drop((assert_refused(setup, FAILED, &lines), datagrams));
}

#[test]
fn a_socket_of_another_user_that_cannot_be_asked_stays() {
    if !is_ours() || !needs_root() {
        return;
    }
    let setup = Server::setup().option("--path=socket");
    let path = setup.folder().join("socket");
    let listener = UnixListener::bind(&path).expect("cannot bind");
    fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("cannot set the mode");
    let line = "start_server: cannot listen on --path=socket: \
                cannot tell whether a server listens on it: Permission denied";
    drop((assert_refused(setup, FAILED, &[line]), listener));
}

#[test]
fn a_socket_that_nobody_serves_is_replaced_and_said() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().option("--path=socket");
    let path = setup.folder().join("socket");
    client::leave_stale_socket(&path);
    let (uid, gid) = owner(&setup);
    chown(&path, Some(uid), Some(gid)).expect("cannot give the socket away");
    let mut server = setup.start();
    server.wait_for_service(1);
    let log = server.log();
    let said: Vec<&str> = log.lines().filter(|line| !is_usual(line)).collect();
    assert_eq!(said, ["removing existing socket file:socket"]);
    assert_eq!(client::ask(&path).generation, Some(1));
    assert!(server.stop().success());
    assert!(!path.exists());
}

#[test]
fn what_is_in_the_place_of_the_pid_file_stays() {
    if !is_ours() {
        return;
    }
    for (kind, make) in OBSTACLES {
        let setup = Server::setup().option("--pid-file=thing").path("socket");
        let path = setup.folder().join("thing");
        make(&path);
        let cause = match kind {
            "a regular file" => {
                fs::set_permissions(&path, Permissions::from_mode(0o666))
                    .expect("cannot set the mode");
                "it contains something other than a pid and is left alone"
            }
            "a directory" => "Is a directory",
            "a symbolic link" => "it is a symbolic link",
            _ => "it is not a regular file",
        };
        let line = format!("start_server: cannot use --pid-file=thing: {cause}");
        assert_refused(setup, FAILED, &[&line]);
    }
    for text in [
        "12 34\n",
        "-1\n",
        "0x10\n",
        "1\n2\n",
        "99999999999\n",
        "\u{e9}\n",
    ] {
        let setup = Server::setup().pid_file();
        make_file(&setup, "pid", text, 0o644);
        let line = "start_server: cannot use --pid-file=pid: \
                    it contains something other than a pid and is left alone";
        assert_refused(setup, FAILED, &[line]);
    }
}

const WRITABLE: &str = "hint: the user that the server runs as must be able to \
                        write the file and its directory";

/// Makes the directory `closed` unwritable for the user of the server.
fn with_closed_directory(option: &str) -> Setup {
    let setup = Server::setup().option(option);
    make_directory_of_server(&setup, "closed");
    let closed = setup.folder().join("closed");
    fs::set_permissions(&closed, Permissions::from_mode(0o555)).expect("cannot close it");
    setup
}

#[test]
fn a_pid_file_that_cannot_be_written_is_said() {
    if !is_ours() {
        return;
    }
    let line = "start_server: cannot use --pid-file=closed/pid: Permission denied";
    assert_refused(
        with_closed_directory("--pid-file=closed/pid"),
        FAILED,
        &[line, WRITABLE],
    );
    let line = "start_server: cannot use --pid-file=missing/pid: its directory does not exist";
    assert_refused(
        Server::setup().option("--pid-file=missing/pid"),
        FAILED,
        &[line, MISSING_DIRECTORY],
    );
}

#[test]
fn a_pid_file_of_a_running_server_stays() {
    if !is_ours() {
        return;
    }
    let first = Server::setup().pid_file().start();
    first.wait_for_service(1);
    let path = first.folder().join("pid");
    let before = (
        fs::read(&path).expect("no file"),
        fs::metadata(&path).expect("no file").ino(),
    );
    let option = format!("--pid-file={}", path.display());
    let line = format!(
        "start_server: cannot use {option}: it is locked by a running instance, pid {}",
        first.pid()
    );
    assert_refused(
        Server::setup().option(option).path("socket"),
        FAILED,
        &[&line],
    );
    let after = (
        fs::read(&path).expect("no file"),
        fs::metadata(&path).expect("no file").ino(),
    );
    assert_eq!(before, after);
}

#[test]
fn what_is_in_the_place_of_a_status_file_stays() {
    if !is_ours() {
        return;
    }
    for name in ["status", "status.json"] {
        for (kind, make) in OBSTACLES {
            let setup = Server::setup().status_file().pid_file();
            let path = setup.folder().join(name);
            make(&path);
            let cause = match kind {
                "a regular file" => "it contains something other than a status and is left alone",
                _ => "it is not a regular file",
            };
            let line = format!("start_server: cannot write the status file {name}: {cause}");
            assert_refused(setup, FAILED, &[&line]);
        }
    }
    for (name, text) in [
        ("status", "1:23\nand more\n"),
        ("status", "1:\n"),
        ("status.json", "{}\n"),
        ("status.json", "[1, 2]\n"),
        (
            "status.json",
            "{\"supervisor\": {}, \"generations\": []}\n trailing",
        ),
    ] {
        let setup = Server::setup().status_file();
        make_file(&setup, name, text, 0o644);
        let line = format!(
            "start_server: cannot write the status file {name}: \
             it contains something other than a status and is left alone"
        );
        assert_refused(setup, FAILED, &[&line]);
    }
}

#[test]
fn a_status_file_that_cannot_be_written_is_said() {
    if !is_ours() {
        return;
    }
    let line = "start_server: cannot write the status file closed/status.json: Permission denied";
    let setup = with_closed_directory("--status-file=closed/status").pid_file();
    assert_refused(setup, FAILED, &[line, WRITABLE]);
    let line = "start_server: cannot write the status file missing/status.json: its directory does not exist";
    let setup = Server::setup()
        .option("--status-file=missing/status")
        .pid_file();
    assert_refused(setup, FAILED, &[line, MISSING_DIRECTORY]);
}

#[test]
fn stale_files_are_replaced() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().pid_file().status_file();
    make_file(&setup, "pid", "4194304", 0o644);
    make_file(&setup, "status", "7:4194304\n", 0o644);
    make_file(
        &setup,
        "status.json",
        "{\"supervisor\": {}, \"generations\": []}\n",
        0o644,
    );
    let server = setup.start();
    let worker = server.wait_for_service(1);
    let line = format!("1:{}\n", worker.pid);
    server.wait_until("the files are its own", |server| {
        server.pid_file() == Some(server.pid()) && server.status_file().as_deref() == Some(&line)
    });
}

#[test]
fn a_user_that_root_cannot_become_is_refused() {
    if !is_ours() || !needs_root() {
        return;
    }
    let root = || Server::setup().as_root();
    let no_root = "workers never run as root";
    let hint = "hint: name the ordinary user that the server program runs as";
    for name in ["root", "0"] {
        let line = format!("start_server: cannot use --user={name}: its uid is 0, and {no_root}");
        assert_usage(root().option(format!("--user={name}")), &[&line, hint]);
    }
    let lines = [
        "start_server: cannot start as root without --user: workers never run as root",
        "hint: add --user=NAME, the user that the server program runs as",
    ];
    assert_usage(root(), &lines);
    let line = "start_server: cannot use --user=no-such-name: there is no such user";
    assert_refused(root().option("--user=no-such-name"), FAILED, &[line]);
    let lines = [
        "start_server: cannot use --user=4242: there is no such user",
        "hint: add --group=GROUP: a uid without an entry in the user database has no group of its own",
    ];
    assert_refused(root().option("--user=4242"), FAILED, &lines);
    let line = "start_server: cannot use --group=no-such-name: there is no such group";
    let setup = root().options(["--user=nobody", "--group=no-such-name"]);
    assert_refused(setup, FAILED, &[line]);
}

/// Both programs in a folder of their own.
fn installed() -> Folder {
    let folder = Folder::new(Uid::effective(), Gid::effective());
    install(&programs::start_server(), folder.path(), "start_server");
    install(&programs::binder(), folder.path(), "start_server-binder");
    folder
}

/// The error of this copy of start_server, without what it usually says.
#[track_caller]
fn assert_installed_fails(before: &[&str], folder: &Path, options: &[&str], lines: &[&str]) {
    let mut launched = run_installed(before, folder, options);
    assert_eq!(launched.wait_exit(), FAILED, "{}", launched.log());
    let log = launched.log();
    let said: Vec<&str> = log.lines().filter(|line| !is_usual(line)).collect();
    assert_eq!(said, lines);
    assert!(!log.contains("starting new worker"), "{log}");
}

fn run_installed(before: &[&str], folder: &Path, options: &[&str]) -> Launched {
    let program = folder.join("start_server");
    let port = format!("--port=127.0.0.1:{}", ports::tcp());
    let worker = programs::worker();
    let mut arguments = vec![port.as_str()];
    arguments.extend(options);
    arguments.extend(["--", worker.to_str().expect("UTF-8"), "--report=report"]);
    launch_program(before, &program, &arguments)
}

#[test]
fn a_binder_that_cannot_be_run_is_named() {
    if !is_ours() {
        return;
    }
    let folder = installed();
    let binder = folder.path().join("start_server-binder");
    let cannot = format!("start_server: cannot run the binder {}: ", binder.display());
    let refused = |lines: &[&str]| {
        assert_installed_fails(as_ordinary_user(), folder.path(), &[], lines);
    };
    fs::set_permissions(&binder, Permissions::from_mode(0o644)).expect("cannot set the mode");
    refused(&[&format!("{cannot}Permission denied")]);

    let elsewhere = folder.path().join("elsewhere");
    fs::rename(&binder, &elsewhere).expect("cannot rename the binder");
    let start_server = folder.path().join("start_server");
    let hint = format!(
        "hint: install start_server-binder beside {}",
        start_server.display()
    );
    refused(&[&format!("{cannot}No such file or directory"), &hint]);

    symlink(&elsewhere, &binder).expect("cannot make a link");
    refused(&[&format!("{cannot}it is not a regular file")]);
}

#[test]
fn a_binder_that_others_could_have_changed_is_not_run_by_root() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = installed();
    let binder = folder.path().join("start_server-binder");
    let cannot = format!("start_server: cannot run the binder {}: ", binder.display());
    let hint = "hint: as root every file and directory on its path must belong to root or to the owner of \
                start_server, and be writable by nobody else";
    let refused = |cause: &str| {
        let line = format!("{cannot}{cause}");
        assert_installed_fails(&[], folder.path(), &["--user=nobody"], &[&line, hint]);
    };
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("cannot set the mode");
    };
    let give = |path: &Path, owner| chown(path, Some(owner), None).expect("cannot give it away");

    give(&binder, FOREIGN);
    refused("it belongs to an ordinary user");
    give(&binder, 0);
    for mode in [0o775, 0o757] {
        set_mode(&binder, mode);
        refused("it is writable by users other than its owner");
    }
    set_mode(&binder, 0o755);
    let path = folder.path().display();
    give(folder.path(), FOREIGN);
    refused(&format!("{path} belongs to an ordinary user"));
    give(folder.path(), 0);
    for mode in [0o775, 0o757] {
        set_mode(folder.path(), mode);
        refused(&format!("{path} is writable by users other than its owner"));
    }
    set_mode(folder.path(), 0o755);

    // Nothing else was wrong, and an installation of one ordinary user is trusted as a whole.
    let works = || {
        let report = run_installed(&[], folder.path(), &["--user=nobody"]).wait_for_report();
        assert_eq!(report.listeners.len(), 1);
    };
    works();
    for path in [folder.path(), &binder, &folder.path().join("start_server")] {
        give(path, FOREIGN);
    }
    works();
}

#[test]
fn neither_path_nor_the_environment_nor_the_current_folder_leads_to_another_binder() {
    if !is_ours() {
        return;
    }
    let folder = installed();
    fs::remove_file(folder.path().join("start_server-binder")).expect("cannot remove it");
    let other = installed();
    let cannot = format!(
        "start_server: cannot run the binder {}/start_server-binder: No such file or directory",
        folder.path().display()
    );
    let path = format!("PATH={}:/usr/bin:/bin", other.path().display());
    let start_server = folder.path().join("start_server").display().to_string();
    let hint = format!("hint: install start_server-binder beside {start_server}");
    let enter = "cd \"$0\" && exec \"$@\"";
    let mut before = as_ordinary_user().to_vec();
    let other_path = other.path().to_str().expect("UTF-8");
    before.extend(["env", &path, "sh", "-c", enter, other_path]);
    assert_installed_fails(&before, folder.path(), &[], &[&cannot, &hint]);
}

#[test]
fn what_is_typed_cannot_drive_the_terminal_of_who_reads_the_error() {
    if original_differs("it shows what was typed as it is") {
        return;
    }
    for option in [
        "--pid-file=/nonexistent/\u{1b}[2J",
        "--path=/nonexistent/\u{1b}[2J",
        "--status-file=/nonexistent/\u{1b}[2J",
        "--log-file=/nonexistent/\u{1b}[2J",
        "--user=\u{1b}[2J",
    ] {
        let finished = Server::setup().option(option).run();
        assert!(!finished.status.success(), "{}", finished.log);
        let raw = finished
            .log
            .chars()
            .any(|one| one.is_control() && one != '\n');
        assert!(!raw, "{:?}", finished.log);
        assert!(finished.log.contains("[2J"), "{}", finished.log);
    }
}
