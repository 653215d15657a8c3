//! Addresses that are not there yet, that the kernel chooses, or that are no file.

use std::io::{self, BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use e2e::server::Setup;
use e2e::skip::{needs_ipv6, original_differs};
use e2e::{Report, Server, client, ports};

use crate::privileges::can_drop;

/// Started by an ordinary user, and by root with `--user` where that is possible.
fn setups() -> Vec<Setup> {
    let by_root = can_drop().then(|| Server::setup().as_root().option("--user=nobody"));
    [Server::setup()].into_iter().chain(by_root).collect()
}

/// What `FILE.json` says of the listeners: name, kind and address of each.
fn shown(server: &Server) -> Vec<[String; 3]> {
    let status = server.status_json().expect("a status file");
    let listeners = status["listeners"].as_array().expect("a list");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    listeners
        .iter()
        .map(|one| [&one["name"], &one["kind"], &one["address"]].map(text))
        .collect()
}

#[test]
fn ports_that_the_kernel_chooses_are_named_wherever_they_are_told() {
    if original_differs("it tells its workers port 0") {
        return;
    }
    for setup in setups() {
        let server = setup
            .options(["--port=127.0.0.1:0,127.0.0.1:0=9", "--port=0,127.0.0.1:u0"])
            .status_file()
            .worker(["--graceful"])
            .start();
        let worker = server.accepted();
        let listeners = shown(&server);
        let port = |place: usize| -> u16 {
            let [_, _, address]: &[String; 3] = &listeners[place];
            let digits = address.rsplit(':').next().expect("a port");
            digits.parse().expect("a number")
        };
        let [first, second, third, udp] = [0, 1, 2, 3].map(port);
        let expected = [
            [
                "tcp",
                &format!("127.0.0.1:{first}"),
                &format!("127.0.0.1:{first}"),
            ],
            [
                "tcp",
                &format!("127.0.0.1:{second}"),
                &format!("127.0.0.1:{second}"),
            ],
            ["tcp", &third.to_string(), &format!("0.0.0.0:{third}")],
            [
                "udp",
                &format!("127.0.0.1:{udp}"),
                &format!("127.0.0.1:{udp}"),
            ],
        ]
        .map(|[kind, name, address]| [name, kind, address].map(str::to_owned));
        assert_eq!(listeners, expected);
        assert!(
            first != second && second != third && first != third,
            "{listeners:?}"
        );
        for (option, address) in [
            ("127.0.0.1:0", format!("127.0.0.1:{first}")),
            ("127.0.0.1:0=9", format!("127.0.0.1:{second}")),
            ("0", format!("0.0.0.0:{third}")),
            ("127.0.0.1:u0", format!("127.0.0.1:{udp}")),
        ] {
            let line = format!("start_server: --port={option} is bound to {address}");
            let log = server.log();
            let before = log.split("starting new worker").next().unwrap_or_default();
            assert!(before.lines().any(|one| one == line), "{line}\n{log}");
        }
        let report = server.ask(first);
        let told: Vec<&str> = report.listeners.iter().map(|it| it.name.as_str()).collect();
        let names: Vec<&str> = expected.iter().map(|[name, ..]| name.as_str()).collect();
        assert_eq!(told, names);
        assert_eq!(report.listeners[1].fd, 9);
        server.ask(third);
        server.ask(client::udp(udp));
        // The next generation has the same ones.
        assert_ne!(server.restart(), worker);
        server.ask(second);
    }
}

/// An abstract name that no other test and no other run has.
fn abstract_name(purpose: &str) -> String {
    format!("start_server-e2e-{}-{purpose}", std::process::id())
}

fn address(name: &str) -> SocketAddr {
    SocketAddr::from_abstract_name(name).expect("a short name")
}

fn ask_abstract(name: &str) -> io::Result<Report> {
    let mut stream = UnixStream::connect_addr(&address(name))?;
    stream.write_all(b"report\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::other)
}

#[test]
fn an_abstract_socket_has_no_file_and_no_binder_and_is_gone_at_the_end() {
    if original_differs("it makes a file of that name") {
        return;
    }
    for (number, setup) in setups().into_iter().enumerate() {
        let name = abstract_name(&format!("served-{number}"));
        let key = format!("@{name}");
        let mut server = setup
            .option(format!("--path={key}"))
            .option("--path=./@file")
            .status_file()
            .worker(["--graceful"])
            .start();
        let worker = server.accepted();
        let report = ask_abstract(&name).expect("a report");
        // As the fixture writes an abstract address.
        assert_eq!(report.socket(&key).address, format!("@{name:?}"));
        assert_eq!(report.socket("./@file").address, "./@file");
        assert_eq!(shown(&server)[0], [key.as_str(), "unix", key.as_str()]);
        assert!(!server.folder().join(&key).exists());
        assert!(server.folder().join("@file").exists());
        let status = server.status_json().expect("a status file");
        assert_eq!(status["confinement"]["binders"], serde_json::json!([]));
        assert_ne!(server.restart(), worker);
        ask_abstract(&name).expect("a report of the next generation");
        assert!(server.stop().success());
        let refused = ask_abstract(&name).expect_err("nobody has it any more");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn an_abstract_name_that_somebody_has_is_refused() {
    if original_differs("it makes a file of that name") {
        return;
    }
    for (number, setup) in setups().into_iter().enumerate() {
        let name = abstract_name(&format!("held-{number}"));
        let held = UnixListener::bind_addr(&address(&name)).expect("cannot bind");
        let finished = setup.option(format!("--path=@{name}")).run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        let error =
            format!("start_server: cannot listen on --path=@{name}: Address already in use");
        assert!(
            finished.log.lines().any(|line| line == error),
            "{}",
            finished.log
        );
        let hint = format!("hint: `ss -lxp src @{name}` as root shows who has it");
        assert!(finished.log.contains(&hint), "{}", finished.log);
        drop(held);
    }
}

/// Addresses for documentation (RFC 5737 and 3849), which no machine has.
const NOBODYS: [&str; 2] = ["192.0.2.7", "[2001:db8::7]"];

#[test]
fn an_address_that_comes_later_is_bound_where_that_is_asked_for_and_only_there() {
    if original_differs("it has no freebind") || !needs_ipv6() {
        return;
    }
    for setup in setups() {
        let (first, second) = (ports::tcp(), ports::udp());
        let [v4, v6] = NOBODYS.map(|ip| format!("{ip}:{first}"));
        let udp = format!("{}:{second}", NOBODYS[0]);
        let options = [
            format!("--port={v4},freebind,127.0.0.1:{first},{v6}=7,freebind"),
            format!("--port={}:u{second},freebind", NOBODYS[0]),
        ];
        let server = setup.options(options).status_file().start();
        server.accepted();
        let report = server.ask(first);
        let told: Vec<&str> = report.listeners.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(told, [&*v4, &*format!("127.0.0.1:{first}"), &*v6, &*udp]);
        for (name, is_listening) in [(&v4, true), (&v6, true), (&udp, false)] {
            let socket = report.socket(name);
            assert_eq!((&socket.address, socket.listening), (name, is_listening));
        }
    }
    for setup in setups() {
        let spec = format!("{}:{}", NOBODYS[0], ports::tcp());
        // The option of another port is not its own.
        let finished = setup
            .option(format!("--port=127.0.0.1:{},freebind,{spec}", ports::tcp()))
            .run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        let expected = [
            format!("start_server: cannot listen on --port={spec}: Cannot assign requested address"),
            "hint: no interface of this machine has that address: see `ip address`; `,freebind` after the port binds an \
             address before it exists"
                .to_owned(),
        ];
        let lines: Vec<&str> = finished.log.lines().collect();
        assert_eq!(lines[lines.len() - 2..], expected);
    }
}
