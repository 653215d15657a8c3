//! Connections that nobody accepts, because the program has not taken its sockets.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use e2e::skip::original_differs;
use e2e::{Server, client, ports};
use nix::sys::signal::Signal;

const WARNING: &str = "start_server: nobody accepts connections at ";

const HINT: &str = "hint: probably the server program has not taken its sockets: see --fd-env, and --preset=list for what yours needs";

#[test]
fn a_program_that_takes_no_sockets_is_warned_of_once_for_each_commit() {
    if original_differs("it does not look") {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup().port(port).port(ports::tcp()).path("socket");
    let setup = setup.pid_file().status_file();
    let server = setup.program(["sleep", "1000"]).start();
    server.wait_until_accepted();
    let connect = || {
        let tcp = TcpStream::connect(("127.0.0.1", port)).expect("cannot connect");
        let unix = UnixStream::connect(server.folder().join("socket")).expect("cannot connect");
        (tcp, unix)
    };
    let _waiting = [connect(), connect()];
    let line = |listener: &str, count| {
        let queue = format!("{count} in its queue, one for more than 5 secs");
        format!("{WARNING}{listener}: {queue}\n{HINT}\n")
    };
    let tcp = format!("127.0.0.1:{port}");
    let socket = server.folder().join("socket").display().to_string();
    let of_socket = format!("{WARNING}{socket}: ");
    server.wait_for_log(&of_socket);
    let log = server.log();
    assert!(log.contains(&line(&tcp, 2)), "{log}");
    assert!(log.contains(&line(&socket, 2)), "{log}");
    assert_eq!(server.count_in_log(WARNING), 2, "{log}");
    // The next one is no better.
    server.signal(Signal::SIGHUP);
    server.wait_for_log_times(2, &of_socket);
    assert_eq!(server.count_in_log(WARNING), 4, "{}", server.log());
}

#[test]
fn a_server_that_accepts_is_not_warned_of() {
    if original_differs("it does not look") {
        return;
    }
    let port = ports::tcp();
    let server = Server::setup().port(port).start();
    server.wait_for_service(1);
    let held = client::hold(port);
    // As long as both looks could take.
    e2e::wait::let_pass(std::time::Duration::from_secs(11));
    assert_eq!(server.count_in_log(WARNING), 0, "{}", server.log());
    held.finish();
}
