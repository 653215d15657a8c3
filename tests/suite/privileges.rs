//! What is left of root: nothing.

use std::fs;

use e2e::server::NOBODY;
use e2e::skip::{needs_root, original_differs};
use e2e::{Server, ports, proc};

#[test]
fn root_without_a_user_is_refused() {
    if !needs_root() || original_differs("it runs workers as root") {
        return;
    }
    for options in [&[][..], &["--user=root"], &["--user=0"]] {
        let finished = Server::setup().as_root().options(options).run();
        assert!(!finished.status.success(), "{options:?}");
        assert!(finished.log.contains("--user"), "{}", finished.log);
        assert_eq!(finished.server.started(), [], "{options:?}");
    }
}

#[test]
fn a_worker_on_a_low_port_has_no_privilege() {
    if !needs_root() || original_differs("it has no --user") {
        return;
    }
    let port = ports::low();
    let server = Server::setup()
        .as_root()
        .option("--user=nobody")
        .port(port)
        .start();
    let report = server.ask(port);
    let status = &report.status;
    assert_eq!((status.uids, status.gids), ([NOBODY; 4], [NOBODY; 4]));
    assert_eq!(
        status
            .groups
            .iter()
            .filter(|&&group| group != NOBODY)
            .count(),
        0,
        "{:?}",
        status.groups
    );
    assert_eq!(status.capabilities(), [0; 5]);
    assert!(status.no_new_privs);
    assert_eq!(status.seccomp, 0);
    assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3]);
}

#[test]
fn no_privileged_process_is_left_when_only_ports_were_asked_for() {
    if !needs_root() || original_differs("it has no --user") {
        return;
    }
    let port = ports::low();
    let server = Server::setup()
        .as_root()
        .option("--user=nobody")
        .port(port)
        .start();
    let report = server.ask(port);
    let children: Vec<i32> = proc::children(server.pid())
        .iter()
        .map(|pid| pid.as_raw())
        .collect();
    assert_eq!(children, [report.pid], "nothing but the worker");
    let status = proc::status(server.pid()).expect("the server is gone");
    assert_eq!((status.uids, status.gids), ([NOBODY; 4], [NOBODY; 4]));
    assert_eq!(status.capabilities(), [0; 5]);
    assert!(status.no_new_privs);
    // Not dumpable: its files in /proc belong to root.
    let owner =
        fs::metadata(format!("/proc/{}/environ", server.pid())).expect("the server is gone");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
}
