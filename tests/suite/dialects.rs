//! `--fd-env`: the descriptors in the variables of other launchers too, and never unless asked.

use std::collections::BTreeMap;

use e2e::skip::original_differs;
use e2e::{Report, Server, Setup, ports};

/// Whether the program under test knows `--fd-env`.
fn has_dialects() -> bool {
    !original_differs("it has no --fd-env")
}

/// The variables by which a worker could find descriptors, without that of Server::Starter itself.
fn dialects(report: &Report) -> BTreeMap<&str, &str> {
    let known = ["LISTEN_", "UNICORN_FD", "NGINX", "EINHORN_"];
    report
        .environment
        .iter()
        .filter(|(name, _)| known.iter().any(|start| name.starts_with(start)))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

/// A TCP port, a UDP port and a path, in an order that is not theirs in the worker.
fn three_listeners() -> (Setup, [u16; 2]) {
    let (tcp, udp) = (ports::tcp(), ports::udp());
    let setup = Server::setup()
        .status_file()
        .path("socket")
        .port(tcp)
        .option(format!("--port=127.0.0.1:u{udp}"));
    (setup, [tcp, udp])
}

/// What the variables are with these styles, `LISTEN_PID` aside, for a TCP port and a path.
fn with_styles(styles: &[&str]) -> (Report, BTreeMap<String, String>) {
    let port = ports::tcp();
    let styles = styles.iter().map(|style| format!("--fd-env={style}"));
    let server = Server::setup()
        .port(port)
        .path("socket")
        .options(styles)
        .start();
    let report = server.ask(port);
    let path = server.folder().join("socket");
    assert_eq!(
        report.environment["SERVER_STARTER_PORT"],
        format!("127.0.0.1:{port}=3;{}=4", path.display()),
        "it must stay, whatever else is there"
    );
    let mut found: BTreeMap<String, String> = dialects(&report)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Some(pid) = found.remove("LISTEN_PID") {
        assert_eq!(pid, report.pid.to_string());
    }
    if let Some(names) = found.get_mut("LISTEN_FDNAMES") {
        let all = format!("127.0.0.1_{port}:{}", path.display());
        assert_eq!(*names, all);
        "both".clone_into(names);
    }
    (report, found)
}

fn texts<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

#[test]
fn no_other_dialect_is_spoken_unless_asked() {
    let (setup, [tcp, _]) = three_listeners();
    let server = setup.worker(["--graceful"]).start();
    assert_eq!(dialects(&server.ask(tcp)), [].into());
    server.wait_until_accepted();
    server.restart();
    assert_eq!(dialects(&server.ask(tcp)), [].into());
}

#[test]
fn systemd_names_number_names_and_the_workers_own_pid_in_every_generation() {
    if !has_dialects() {
        return;
    }
    let (setup, [tcp, udp]) = three_listeners();
    let server = setup
        .option("--fd-env=systemd")
        .worker(["--graceful"])
        .start();
    server.wait_until_accepted();
    for generation in 1..=3 {
        let report = server.ask(tcp);
        assert_eq!(report.generation, Some(generation));
        let pid = report.pid.to_string();
        let names = format!(
            "127.0.0.1_{tcp}:127.0.0.1_{udp}:{}",
            server.folder().join("socket").display()
        );
        assert_eq!(
            dialects(&report),
            [
                ("LISTEN_FDS", "3"),
                ("LISTEN_FDNAMES", &*names),
                ("LISTEN_PID", &*pid),
            ]
            .into()
        );
        // They count from 3 in this order: that is the whole protocol.
        let numbers: Vec<i32> = report.listeners.iter().map(|one| one.fd).collect();
        assert_eq!(numbers, [3, 4, 5]);
        server.restart();
    }
}

#[test]
fn a_worker_that_replaces_one_which_died_has_its_own_pid_in_listen_pid() {
    if !has_dialects() {
        return;
    }
    let port = ports::tcp();
    let server = Server::setup()
        .status_file()
        .port(port)
        .option("--fd-env=systemd")
        .start();
    server.wait_until_accepted();
    let first = server.ask(port);
    assert!(e2e::client::request(port, "exit 1").is_err());
    server.wait_for_generations(&[2]);
    let second = server.ask(port);
    assert_ne!(first.pid, second.pid);
    assert_eq!(second.environment["LISTEN_PID"], second.pid.to_string());
}

#[test]
fn each_style_sets_its_own_variables_and_no_others() {
    if !has_dialects() {
        return;
    }
    let systemd = [("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "both")];
    assert_eq!(with_styles(&["systemd"]).1, texts(systemd));
    assert_eq!(with_styles(&["unicorn"]).1, texts([("UNICORN_FD", "3,4")]));
    assert_eq!(with_styles(&["nginx"]).1, texts([("NGINX", "3;4;")]));
    let einhorn = [
        ("EINHORN_FD_COUNT", "2"),
        ("EINHORN_FDS", "3 4"),
        ("EINHORN_FD_0", "3"),
        ("EINHORN_FD_1", "4"),
    ];
    assert_eq!(with_styles(&["einhorn"]).1, texts(einhorn));
}

#[test]
fn sockets_are_non_blocking_for_nginx_alone() {
    if !has_dialects() {
        return;
    }
    for (style, wanted) in [("nginx", true), ("systemd", false), ("unicorn", false)] {
        let (report, _) = with_styles(&[style]);
        for listener in &report.listeners {
            let socket = listener.socket.as_ref().expect("no socket");
            assert_eq!(socket.nonblocking, wanted, "{style}: {}", listener.name);
        }
    }
}

#[test]
fn several_styles_are_a_list_or_are_asked_for_one_by_one() {
    if !has_dialects() {
        return;
    }
    let all = texts([
        ("LISTEN_FDS", "2"),
        ("LISTEN_FDNAMES", "both"),
        ("UNICORN_FD", "3,4"),
        ("NGINX", "3;4;"),
    ]);
    for styles in [
        &["systemd,unicorn,nginx"][..],
        &["nginx", "systemd,unicorn"],
        &["unicorn", "nginx", "systemd"],
    ] {
        let (report, found) = with_styles(styles);
        assert_eq!(found, all, "{styles:?}");
        assert_eq!(
            report.environment["LISTEN_PID"],
            report.pid.to_string(),
            "{styles:?}"
        );
    }
}

#[test]
fn the_numbers_are_those_of_the_descriptors_that_were_asked_for() {
    if !has_dialects() {
        return;
    }
    let (first, second) = (ports::tcp(), ports::tcp());
    let server = Server::setup()
        .option(format!("--port=127.0.0.1:{first}=7"))
        .port(second)
        .option("--fd-env=unicorn,nginx,einhorn")
        .start();
    let report = server.ask(second);
    let expected = [
        ("UNICORN_FD", "7,3"),
        ("NGINX", "7;3;"),
        ("EINHORN_FD_COUNT", "2"),
        ("EINHORN_FDS", "7 3"),
        ("EINHORN_FD_0", "7"),
        ("EINHORN_FD_1", "3"),
    ];
    assert_eq!(dialects(&report), expected.into());
    for name in [first, second].map(|port| format!("127.0.0.1:{port}")) {
        assert!(report.socket(&name).listening);
    }
}

#[test]
fn what_the_launcher_and_the_envdir_say_does_not_change_them() {
    if !has_dialects() {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup();
    let directory = setup.folder().join("env");
    std::fs::create_dir(&directory).expect("cannot make a directory");
    for name in ["LISTEN_PID", "LISTEN_FDS", "UNICORN_FD"] {
        std::fs::write(directory.join(name), "1\n").expect("cannot write a file");
    }
    let server = setup
        .port(port)
        .option(format!("--envdir={}", directory.display()))
        .option("--fd-env=systemd,unicorn")
        .env("LISTEN_FDNAMES", "of:another")
        .env("LISTEN_FDS", "9")
        .start();
    let report = server.ask(port);
    let (pid, name) = (report.pid.to_string(), format!("127.0.0.1_{port}"));
    assert_eq!(
        dialects(&report),
        [
            ("LISTEN_FDS", "1"),
            ("LISTEN_FDNAMES", &*name),
            ("LISTEN_PID", &*pid),
            ("UNICORN_FD", "3"),
        ]
        .into()
    );
}

#[test]
fn without_listeners_each_style_says_that_there_is_none() {
    if !has_dialects() {
        return;
    }
    let setup = Server::setup();
    let file = setup.folder().join("report");
    let server = setup
        .option("--fd-env=systemd,unicorn,nginx,einhorn")
        .worker([format!("--report={}", file.display())])
        .start();
    let report: Report = server.wait_for("a worker reports", |_| {
        serde_json::from_str(&std::fs::read_to_string(&file).ok()?).ok()
    });
    let pid = report.pid.to_string();
    assert_eq!(
        dialects(&report),
        [
            ("LISTEN_FDS", "0"),
            ("LISTEN_FDNAMES", ""),
            ("LISTEN_PID", &*pid),
            ("UNICORN_FD", ""),
            ("NGINX", ""),
            ("EINHORN_FD_COUNT", "0"),
            ("EINHORN_FDS", ""),
        ]
        .into()
    );
}

#[test]
fn styles_that_cannot_tell_of_a_listener_are_refused() {
    if !has_dialects() {
        return;
    }
    let port = ports::tcp();
    for (style, spec, word) in [
        ("systemd", format!("127.0.0.1:{port}=7"), "systemd"),
        ("unicorn", format!("127.0.0.1:u{port}"), "unicorn"),
        ("puma", format!("127.0.0.1:{port}"), "puma"),
    ] {
        let finished = Server::setup()
            .option(format!("--fd-env={style}"))
            .option(format!("--port={spec}"))
            .run();
        assert_eq!(finished.status.code(), Some(2), "{}", finished.log);
        let first = finished.log.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("start_server: cannot ") && first.contains(word),
            "{}",
            finished.log
        );
        assert_eq!(finished.server.started(), []);
    }
}
