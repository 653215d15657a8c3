//! Addresses that are not there yet, that the kernel chooses, or that are no file.

use e2e::server::Setup;
use e2e::skip::original_differs;
use e2e::{Server, client};

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
