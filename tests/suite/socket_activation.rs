//! Sockets that the launcher passes on (sd_listen_fds(3)), as systemd does: taken over, told apart, and never invented.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use e2e::client::{self, At, Load};
use e2e::server::{NOBODY, Setup};
use e2e::skip::{missing, needs_ipv6, needs_program, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Server, ports, programs, wait};
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn6, UnixAddr, bind, listen,
    setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo, setfsuid};

use crate::bad_input::{FAILED, assert_refused};
use crate::launch::{RootFolder, install};

/// Whether the program under test takes over what its launcher passes on.
fn takes_over() -> bool {
    !original_differs("it closes what a launcher passes on")
}

/// Started by an ordinary user, and by root with `--user`.
fn each_user() -> Vec<Setup> {
    let mut setups = vec![Server::setup()];
    if needs_root() {
        setups.push(Server::setup().as_root().option("--user=nobody"));
    }
    let with_files = |setup: Setup| setup.pid_file().status_file();
    setups.into_iter().map(with_files).collect()
}

fn tcp() -> (TcpListener, u16) {
    let port = ports::tcp();
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("cannot bind");
    (listener, port)
}

/// A unix listener in the server's folder, open to everybody.
fn unix(setup: &Setup, name: &str) -> (UnixListener, PathBuf) {
    let path = setup.folder().join(name);
    let listener = UnixListener::bind(&path).expect("cannot bind");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("cannot set the mode");
    (listener, path)
}

fn dup<T: std::os::fd::AsFd>(descriptor: &T) -> OwnedFd {
    let copy = descriptor.as_fd().try_clone_to_owned();
    copy.expect("cannot duplicate a descriptor")
}

/// What a worker is told: the keys of its listeners, with their numbers.
fn keys(report: &e2e::Report) -> Vec<(&str, i32)> {
    let listeners = report.listeners.iter();
    listeners.map(|one| (one.name.as_str(), one.fd)).collect()
}

fn listen_variables(report: &e2e::Report) -> BTreeMap<&str, &str> {
    let environment = report.environment.iter();
    let those = environment.filter(|(name, _)| name.starts_with("LISTEN_"));
    those.map(|(name, value)| (&**name, &**value)).collect()
}

/// The binders that `F.json` shows.
fn binders(server: &Server) -> usize {
    let json = server.status_json().expect("no status");
    let binders = json["confinement"]["binders"].as_array().expect("a list");
    binders.len()
}

#[test]
fn without_any_option_they_are_served_and_no_binder_is_needed_or_there() {
    if !takes_over() {
        return;
    }
    for setup in each_user() {
        let (tcp, port) = tcp();
        let udp = UdpSocket::bind("127.0.0.1:0").expect("cannot bind");
        let udp_port = udp.local_addr().expect("no address").port();
        let (unix, path) = unix(&setup, "socket");
        // A copy that has no binder beside it.
        let alone = install(&programs::start_server(), setup.folder(), "alone");
        let mut server = setup
            .copy(alone)
            .pass_on(dup(&unix))
            .pass_on(dup(&tcp))
            .pass_on(dup(&udp))
            .start();
        server.wait_until_accepted();
        let report = server.ask(port);
        let (tcp_key, udp_key) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{udp_port}"));
        let key = path.to_str().expect("UTF-8");
        // In the order of the launcher.
        assert_eq!(keys(&report), [(key, 3), (&tcp_key, 4), (&udp_key, 5)]);
        assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3, 4, 5]);
        assert!(report.listeners.iter().all(|one| one.socket.is_ok()));
        assert_eq!(listen_variables(&report), [].into());
        assert_eq!(report.status.uids, [NOBODY; 4]);
        assert_eq!(client::ask(&path).pid, report.pid);
        assert_eq!(client::ask(client::udp(udp_port)).pid, report.pid);
        assert_eq!(binders(&server), 0);
        server.wait_for_log(&format!(
            "start_server: took over from the launcher: {key} {tcp_key} {udp_key}"
        ));
        server.restart();
        // A thread of the old worker could still take a connection, though its first one is gone.
        server.wait_until("the old worker is reaped", |_| {
            !std::fs::exists(format!("/proc/{}", report.pid)).unwrap_or(true)
        });
        assert_eq!(client::ask(&path).generation, Some(2));
        assert!(server.stop().success());
        // The file is its launcher's, and the sockets still wait for the next server.
        assert!(path.exists());
        assert!(!path.with_file_name(".socket.start_server").exists());
        UnixStream::connect(&path).expect("it does not listen any more");
        TcpStream::connect(("127.0.0.1", port)).expect("it does not listen any more");
    }
}

#[test]
fn an_option_that_names_the_same_address_takes_the_inherited_socket() {
    if !takes_over() {
        return;
    }
    for setup in each_user() {
        let (one, port) = tcp();
        let (other, other_port) = tcp();
        let (named, named_port) = tcp();
        let (unix, path) = unix(&setup, "socket");
        let own = ports::tcp();
        let mode = fs::metadata(&path).expect("no socket").mode();
        let mut server = setup
            .option(format!("--port=127.0.0.1:{own}"))
            // A number that the launcher's sockets have.
            .option(format!("--port=127.0.0.1:{port}=4"))
            .option(format!("--port=localhost:{named_port}"))
            .option(format!("--path={},mode=0600", path.display()))
            .pass_on(dup(&unix))
            .pass_on(dup(&other))
            .pass_on(dup(&one))
            .pass_on(dup(&named))
            .start();
        server.wait_until_accepted();
        let report = server.ask(port);
        let all = [own, port, other_port].map(|port| format!("127.0.0.1:{port}"));
        let [own_key, key, other_key] = &all;
        let named_key = format!("localhost:{named_port}");
        let path_key = path.to_str().expect("UTF-8");
        let expected = [
            (&**own_key, 3),
            (key, 4),
            (&named_key, 5),
            (path_key, 6),
            (other_key, 7),
        ];
        assert_eq!(keys(&report), expected);
        for at in [own, port, named_port, other_port] {
            assert_eq!(client::ask(at).pid, report.pid);
        }
        assert_eq!(client::ask(&path).pid, report.pid);
        server.wait_for_log(&format!(
            "start_server: --path={},mode=0600: the launcher has made this socket, so its mode and owner stay as they \
             are",
            path.display()
        ));
        assert_eq!(fs::metadata(&path).expect("no socket").mode(), mode);
        let json = server.status_json().expect("no status");
        let inherited = json["listeners"].as_array().expect("a list").iter();
        let inherited: Vec<bool> = inherited.map(|it| it["inherited"] == true).collect();
        assert_eq!(inherited, [false, true, true, true, true]);
        assert!(server.stop().success());
        assert!(path.exists());
    }
}

#[test]
fn a_socket_for_both_families_is_what_a_port_alone_means() {
    if !takes_over() || !needs_ipv6() {
        return;
    }
    let port = ports::tcp();
    let flags = SockFlag::SOCK_CLOEXEC;
    let dual = socket(AddressFamily::Inet6, SockType::Stream, flags, None).expect("socket");
    setsockopt(&dual, sockopt::Ipv6V6Only, &false).expect("setsockopt");
    let any = std::net::SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, port, 0, 0);
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&dual),
        &SockaddrIn6::from(any),
    )
    .expect("bind");
    // Nobody has let it listen yet.
    for (option, key) in [
        (Some(format!("--port={port}")), port.to_string()),
        (None, format!("[::]:{port}")),
    ] {
        let setup = Server::setup().options(option).pass_on(dup(&dual));
        let mut server = setup.start();
        assert_eq!(keys(&server.ask(port)), [(&*key, 3)]);
        assert_eq!(keys(&server.ask(client::tcp6(port))), [(&*key, 3)]);
        assert!(server.stop().success());
    }
}

#[test]
fn names_are_kept_for_workers_that_ask_for_the_variables_of_systemd() {
    if !takes_over() {
        return;
    }
    let (first, port) = tcp();
    let (second, second_port) = tcp();
    let (third, third_port) = tcp();
    let server = Server::setup()
        .status_file()
        .option("--fd-env=systemd")
        .option(format!("--port=127.0.0.1:{third_port}"))
        .pass_on(first)
        .pass_on(second)
        .pass_on(third)
        .env("LISTEN_FDNAMES", "web::third")
        // A launcher that knows of it.
        .env("LISTEN_PIDFDID", "1234")
        .start();
    server.wait_until_accepted();
    for generation in 1..=2 {
        let report = server.ask(port);
        assert_eq!(report.generation, Some(generation));
        let (pid, names) = (
            report.pid.to_string(),
            format!("third:web:127.0.0.1_{second_port}"),
        );
        let expected = [
            ("LISTEN_FDS", "3"),
            ("LISTEN_FDNAMES", &*names),
            ("LISTEN_PID", &*pid),
        ];
        assert_eq!(listen_variables(&report), expected.into());
        server.restart();
    }
}

#[test]
fn what_only_the_server_can_use_is_passed_through_under_its_name() {
    if !takes_over() {
        return;
    }
    for setup in each_user() {
        let (tcp, port) = tcp();
        let fifo = setup.folder().join("fifo");
        mkfifo(&fifo, Mode::from_bits_truncate(0o666)).expect("mkfifo");
        let opened = open(&fifo, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).expect("open");
        let new = |family, kind, protocol: Option<SockProtocol>| {
            socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).expect("socket")
        };
        let packets = new(AddressFamily::Unix, SockType::SeqPacket, None);
        let address = UnixAddr::new(&setup.folder().join("packets")).expect("an address");
        bind(std::os::fd::AsRawFd::as_raw_fd(&packets), &address).expect("bind");
        listen(&packets, Backlog::new(3).expect("a backlog")).expect("listen");
        let events = SockProtocol::NetlinkKObjectUEvent;
        let netlink = new(AddressFamily::Netlink, SockType::Datagram, Some(events));
        let (datagrams, _other_end) =
            std::os::unix::net::UnixDatagram::pair().expect("a socketpair");
        let server = setup
            .option("--fd-env=systemd")
            .pass_on(opened)
            .pass_on(packets)
            .pass_on(netlink)
            .pass_on(datagrams)
            .pass_on(dup(&tcp))
            .env("LISTEN_FDNAMES", "in;put::net=link:log:web")
            .start();
        server.wait_until_accepted();
        for generation in 1..=2 {
            let report = server.ask(port);
            assert_eq!(report.generation, Some(generation));
            let key = format!("127.0.0.1:{port}");
            let expected = [
                ("in_put", 3),
                ("unknown", 4),
                ("net_link", 5),
                ("log", 6),
                (&*key, 7),
            ];
            assert_eq!(keys(&report), expected);
            assert_eq!(report.descriptors[&3], fifo.to_str().expect("UTF-8"));
            let names = listen_variables(&report)["LISTEN_FDNAMES"];
            assert_eq!(names, "in;put:unknown:net=link:log:web");
            server.restart();
        }
        let json = server.status_json().expect("no status");
        let kinds = json["listeners"].as_array().expect("a list").iter();
        let kinds: Vec<&str> = kinds.map(|it| it["kind"].as_str().expect("text")).collect();
        assert_eq!(kinds, ["fifo", "seqpacket", "netlink", "datagram", "tcp"]);
        let words = ["--status", "--pid-file=pid"];
        let shown = server.client(words).output_in_turn().expect("no client");
        let shown = String::from_utf8_lossy(&shown.stdout);
        for line in ["fifo ", "seqpacket ", "netlink ", "datagram ", "tcp "] {
            let line = shown.lines().find(|it| it.starts_with(line));
            let line = line.unwrap_or_else(|| panic!("{shown}"));
            assert!(line.ends_with(" (inherited)"), "{shown}");
            assert!(line.len() <= 80, "{shown}");
        }
    }
}

#[test]
fn what_is_for_another_process_is_closed() {
    if !takes_over() {
        return;
    }
    let (one, port) = tcp();
    let variables = [
        &[("LISTEN_PID", "1")][..],
        &[("LISTEN_PID", "nobody")],
        // Lies about what is not for us do not matter.
        &[("LISTEN_PID", "1"), ("LISTEN_FDS", "many")],
    ];
    for variables in variables {
        let mut setup = Server::setup().pass_on(dup(&one)).port(ports::tcp());
        for (name, value) in variables {
            setup = setup.env(name, value);
        }
        let server = setup.worker(["--report=report"]).start();
        let report = server.wait_for("a worker reports", |server| {
            let report = fs::read_to_string(server.folder().join("report")).ok();
            report.filter(|it| it.ends_with('\n'))
        });
        assert!(!report.contains(&format!("127.0.0.1:{port}=")), "{report}");
        assert!(!report.contains("LISTEN_"), "{report}");
        let report: e2e::Report = serde_json::from_str(&report).expect("a report");
        assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3]);
    }
}

const HINT: &str = "hint: correct what the launcher passes on (sd_listen_fds(3)), or unset LISTEN_PID to start without its \
                    sockets";

/// A start with this descriptor after a good one: refused for this cause, before anything is bound or written.
#[track_caller]
fn refuses(descriptor: impl Into<OwnedFd>, cause: &str, hint: &str) {
    let descriptor = descriptor.into();
    for setup in each_user() {
        let (good, port) = tcp();
        let setup = setup
            .path("unmade")
            .port(ports::tcp())
            .pass_on(dup(&good))
            .pass_on(dup(&descriptor))
            .env("LISTEN_FDNAMES", "good:bad");
        let line =
            format!("start_server: cannot take over descriptor 4 (bad) of LISTEN_FDS: {cause}");
        assert_refused(setup, FAILED, &[&line, hint]);
        TcpStream::connect(("127.0.0.1", port)).expect("the launcher's socket was harmed");
    }
}

#[test]
fn what_is_no_listener_is_refused_before_anything_is_bound() {
    if !takes_over() {
        return;
    }
    let neither = |kind: &str| format!("it is {kind}, neither a socket nor a FIFO");
    let opened = |path: &str| File::open(path).expect("cannot open");
    refuses(opened("/etc/passwd"), &neither("a regular file"), HINT);
    refuses(opened("/"), &neither("a directory"), HINT);
    refuses(opened("/dev/null"), &neither("a device"), HINT);
    let anonymous = SignalFd::new(&SigSet::empty()).expect("signalfd");
    refuses(dup(&anonymous), &neither("something else"), HINT);
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let path = open("/", flags, Mode::empty()).expect("open");
    refuses(path, "it is open as a path only", HINT);
    let accept = "hint: start_server takes listeners: remove Accept=yes from the socket unit";
    let connection = "it is a connection, not a listener";
    let (listener, port) = tcp();
    let client = TcpStream::connect(("127.0.0.1", port)).expect("cannot connect");
    refuses(listener.accept().expect("accept").0, connection, accept);
    refuses(client, connection, accept);
    refuses(
        UnixStream::pair().expect("a pair").0,
        "it is bound to no path",
        HINT,
    );
    let unbound = |family| {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(family, SockType::Stream, flags, None).expect("socket")
    };
    refuses(unbound(AddressFamily::Inet), "it is bound to no port", HINT);
    refuses(unbound(AddressFamily::Unix), "it is bound to no path", HINT);
    let folder = e2e::folder::Folder::new(Uid::effective(), nix::unistd::Gid::effective());
    for name in ["a;b=5", "a=b", "a\nb"] {
        refuses(
            UnixListener::bind(folder.path().join(name)).expect("bind"),
            "its path cannot be a key in SERVER_STARTER_PORT: it contains a ;, a =, a newline or a NUL",
            HINT,
        );
    }
}

#[test]
fn variables_that_lie_are_one_clear_line() {
    if !takes_over() {
        return;
    }
    let many = "cannot take over the descriptors of LISTEN_FDS";
    let number = "it is not a number of descriptors";
    for (name, value, line) in [
        (
            "LISTEN_FDS",
            "3",
            "cannot take over descriptor 5 of LISTEN_FDS=3: it is not open".into(),
        ),
        (
            "LISTEN_FDS",
            "100000",
            "cannot take over descriptor 5 of LISTEN_FDS=100000: it is not open".into(),
        ),
        ("LISTEN_FDS", "-1", format!("{many}=-1: {number}")),
        ("LISTEN_FDS", "", format!("{many}=: {number}")),
        (
            "LISTEN_FDS",
            "two\nlines",
            format!(r"{many}=two\x0Alines: {number}"),
        ),
        (
            "LISTEN_FDS",
            "99999999999",
            format!("{many}=99999999999: {number}"),
        ),
        (
            "LISTEN_FDNAMES",
            "a",
            format!("{many}=2: LISTEN_FDNAMES has 1 names"),
        ),
        (
            "LISTEN_FDNAMES",
            "a:b:",
            format!("{many}=2: LISTEN_FDNAMES has 3 names"),
        ),
    ] {
        for setup in each_user() {
            let (one, _) = tcp();
            let (other, _) = tcp();
            let setup = setup
                .path("unmade")
                .pass_on(one)
                .pass_on(other)
                .env(name, value);
            assert_refused(setup, FAILED, &[&format!("start_server: {line}"), HINT]);
        }
    }
    // A client has no use for them.
    let setup = Server::setup().pass_on(tcp().0).env("LISTEN_FDS", "100000");
    let finished = setup.without_program().option("--version").run();
    assert!(finished.status.success(), "{}", finished.log);
}

#[test]
fn root_passes_no_socket_of_a_third_user_on_to_workers() {
    if !takes_over() || !needs_root() {
        return;
    }
    let as_user = |uid: u32| {
        let bound = std::thread::spawn(move || {
            // Of this thread alone, and for the creation of files and sockets alone.
            setfsuid(Uid::from_raw(uid));
            let port = ports::tcp();
            (
                TcpListener::bind(("127.0.0.1", port)).expect("cannot bind"),
                port,
            )
        });
        bound.join().expect("a thread")
    };
    let (of_another, port) = as_user(4242);
    let setup = || Server::setup().as_root().option("--user=nobody");
    let lines = [
        "start_server: cannot take over descriptor 3 of LISTEN_FDS: uid 4242 has created it, which is neither root nor \
         --user",
        "hint: its owner could take clients from the server: create the socket as root or as --user, as a socket \
         unit does",
    ];
    let refused = setup().port(port).pass_on(of_another);
    assert_refused(refused, FAILED, &lines);
    let (of_nobody, port) = as_user(NOBODY);
    let server = setup().pass_on(of_nobody).start();
    server.ask(port);
}

#[test]
fn without_a_user_root_is_refused_whatever_is_passed_on() {
    if !takes_over() || !needs_root() {
        return;
    }
    let (one, _) = tcp();
    let finished = Server::setup().as_root().pass_on(one).run();
    assert_eq!(finished.status.code(), Some(2));
    assert!(finished.log.contains("without --user"), "{}", finished.log);
}

#[test]
fn no_client_is_refused_over_restarts_under_load() {
    if !takes_over() {
        return;
    }
    for setup in each_user() {
        let (tcp, port) = tcp();
        let (unix, path) = unix(&setup, "socket");
        let server = setup
            .pass_on(tcp)
            .pass_on(unix)
            .worker(["--graceful"])
            .start();
        server.accepted();
        let loads = [At::from(port), At::from(&path)].map(|at| Load::start(at, 4));
        for _ in 0..10 {
            server.restart();
            loads.iter().for_each(|load| load.wait_for_more(20));
        }
        for load in loads {
            let outcome = load.stop();
            assert_eq!(outcome.failures, [""; 0], "of {}", outcome.successes);
        }
    }
}

#[test]
fn a_listening_socket_keeps_its_backlog_unless_another_is_asked_for() {
    if !takes_over() {
        return;
    }
    for (options, expected) in [(&[][..], 7), (&["--backlog=11"], 11)] {
        let (one, port) = tcp();
        listen(&one, Backlog::new(7).expect("a backlog")).expect("listen");
        let server = Server::setup()
            .status_file()
            .options(options.iter().copied())
            .pass_on(one)
            .start();
        let key = format!("127.0.0.1:{port}");
        assert_eq!(server.ask(port).socket(&key).backlog, Some(expected));
        server.wait_until_accepted();
        let json = server.status_json().expect("no status");
        assert_eq!(json["listeners"][0]["backlog"], expected);
    }
}

#[test]
fn what_becomes_of_an_inherited_listener_is_mended_or_said() {
    if !takes_over() {
        return;
    }
    for setup in each_user() {
        let (tcp, port) = tcp();
        let (unix, path) = unix(&setup, "socket");
        let server = setup.pass_on(dup(&tcp)).pass_on(dup(&unix)).start();
        server.wait_until_accepted();
        let words = ["--restart", "--pid-file=pid", "--timeout=60"];
        let restart = || server.client(words).output_in_turn().expect("no client");
        // TCP listens again.
        client::request(&path, &format!("shutdown 127.0.0.1:{port}")).expect("no answer");
        assert!(restart().status.success(), "{}", server.log());
        server.ask(port);
        // The path is the launcher's.
        let aside = path.with_file_name("aside");
        fs::rename(&path, &aside).expect("cannot rename");
        let other = UnixListener::bind(&path).expect("cannot bind");
        for cause in [
            "something else is at its path, and is left alone",
            "its file was removed",
        ] {
            let output = restart();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            let line = format!("nobody can reach {}: {cause}\nhint: ", path.display());
            assert!(said.contains(&line), "{said}");
            assert!(said.contains("launcher"), "{said}");
            if path.exists() {
                fs::remove_file(&path).expect("cannot remove");
            }
        }
        drop(other);
        fs::rename(&aside, &path).expect("cannot rename");
        assert!(restart().status.success(), "{}", server.log());
        client::ask(&path);
    }
}

#[test]
fn styles_that_cannot_describe_what_is_passed_on_are_refused() {
    if !takes_over() {
        return;
    }
    let udp = UdpSocket::bind("127.0.0.1:0").expect("cannot bind");
    let key = udp.local_addr().expect("no address").to_string();
    let setup = Server::setup()
        .option("--fd-env=unicorn")
        .pass_on(dup(&udp));
    let line = format!(
        "start_server: cannot use --fd-env=unicorn: it takes stream sockets only, but the inherited {key} is udp"
    );
    let took = format!("start_server: took over from the launcher: {key}");
    assert_refused(setup, FAILED, &[&took, &line]);
    let options = ["--fd-env=systemd", "--ready=fd:3"];
    let line = "start_server: cannot use --fd-env=systemd: it numbers all listeners, those of the launcher too, from 3 \
                without gaps, but --ready=fd:3 is amidst them: the first free one is 4";
    let setup = Server::setup().options(options).pass_on(udp);
    assert_refused(setup, FAILED, &[&took, line]);
}

#[test]
fn a_daemon_serves_them_too() {
    if !takes_over() {
        return;
    }
    for setup in each_user() {
        let (tcp, port) = tcp();
        let mut server = setup
            .options(["--daemonize", "--log-file=daemon.log"])
            .pass_on(tcp)
            .start();
        assert!(server.wait_exit().success(), "{}", server.log());
        assert_eq!(
            keys(&client::ask(port)),
            [(&*format!("127.0.0.1:{port}"), 3)]
        );
        let stop = ["--stop", "--pid-file=pid", "--timeout=60"];
        let stop = server.client(stop).output_in_turn().expect("no client");
        assert!(stop.status.success(), "{stop:?}");
    }
}

#[test]
fn low_ports_and_paths_of_root_are_served_by_an_ordinary_user() {
    if !takes_over() || !needs_root() {
        return;
    }
    let port = ports::low();
    let tcp = TcpListener::bind(("127.0.0.1", port)).expect("cannot bind");
    let folder = RootFolder::new();
    let path = PathBuf::from(folder.join("socket"));
    let unix = UnixListener::bind(&path).expect("cannot bind");
    let mut server = Server::setup()
        .status_file()
        .port(port)
        .option(format!("--path={}", path.display()))
        .pass_on(tcp)
        .pass_on(unix)
        .start();
    server.wait_until_accepted();
    assert_eq!(server.ask(port).status.uids, [NOBODY; 4]);
    server.ask(&path);
    assert_eq!(binders(&server), 0);
    assert!(server.stop().success());
    assert!(path.exists());
}

/// The launcher of systemd itself.
#[test]
fn systemd_socket_activate_starts_it_at_the_first_connection() {
    if !takes_over() || !needs_program("systemd-socket-activate") {
        return;
    }
    let program = e2e::skip::find_program("systemd-socket-activate");
    let program = program.expect("it was found");
    let port = ports::tcp();
    let setup = Server::setup();
    let path = setup.folder().join("socket");
    let start_server = programs::start_server();
    let words = [
        format!("--listen=127.0.0.1:{port}"),
        format!("--listen={}", path.display()),
        "--fdname=web:local".to_owned(),
        start_server.to_str().expect("UTF-8").to_owned(),
        "--fd-env=systemd".to_owned(),
        "--pid-file=pid".to_owned(),
        "--status-file=status".to_owned(),
        programs::worker().to_str().expect("UTF-8").to_owned(),
    ];
    let server = setup
        .copy(program)
        .without_interval()
        .without_program()
        .options(words)
        .start();
    if let Some(why) = server.log().lines().find(|it| it.contains("Failed to")) {
        missing(why);
        return;
    }
    server.wait_until("it listens", |_| path.exists());
    let report = server.ask(port);
    assert_eq!(listen_variables(&report)["LISTEN_FDNAMES"], "web:local");
    server.wait_until_accepted();
    server.signal(Signal::SIGHUP);
    let condition = "the second generation answers";
    wait::until(
        condition,
        || server.log(),
        || {
            client::try_ask(Path::new(&path))
                .ok()
                .filter(|it| it.generation == Some(2))
        },
    );
}
