//! Every way to say where to listen.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

use e2e::client::{self, At};
use e2e::skip::{needs_ipv6, original_differs};
use e2e::{Report, Server, ports};

/// The report of a server with this `--port`, asked there, and the socket of this name.
#[track_caller]
fn listens(option: &str, name: &str, at: impl Into<At>) -> (Report, e2e::report::Socket) {
    let server = Server::setup().option(format!("--port={option}")).start();
    let report = server.ask(at);
    let socket = report.socket(name).clone();
    (report, socket)
}

#[test]
fn a_port_alone_is_all_of_ipv4() {
    let port = ports::tcp();
    let (_, socket) = listens(&port.to_string(), &port.to_string(), port);
    assert_eq!(socket.address, format!("0.0.0.0:{port}"));
    assert_eq!(socket.kind, "stream");
    assert!(socket.listening);
    assert!(!socket.nonblocking);
    assert!(!socket.close_on_exec);
}

#[test]
fn a_host_and_a_port() {
    let port = ports::tcp();
    let (_, socket) = listens(
        &format!("127.0.0.1:{port}"),
        &format!("127.0.0.1:{port}"),
        port,
    );
    assert_eq!(socket.address, format!("127.0.0.1:{port}"));
}

#[test]
fn a_host_name_is_looked_up() {
    let port = ports::tcp();
    let (_, socket) = listens(
        &format!("localhost:{port}"),
        &format!("localhost:{port}"),
        port,
    );
    assert_eq!(socket.address, format!("127.0.0.1:{port}"));
}

#[test]
fn an_empty_host_is_all_of_ipv4() {
    if original_differs("it refuses :PORT") {
        return;
    }
    let port = ports::tcp();
    let (_, socket) = listens(&format!(":{port}"), &port.to_string(), port);
    assert_eq!(socket.address, format!("0.0.0.0:{port}"));
}

#[test]
fn a_star_is_all_of_ipv4() {
    if original_differs("it refuses *:PORT") {
        return;
    }
    let port = ports::tcp();
    let server = Server::setup().option(format!("--port=*:{port}")).start();
    let report = server.ask(port);
    let [listener] = &report.listeners[..] else {
        panic!("one listener, not {:?}", report.listeners)
    };
    assert_eq!(
        listener.socket.as_ref().expect("a socket").address,
        format!("0.0.0.0:{port}")
    );
}

#[test]
fn an_ipv6_address_in_brackets() {
    if !needs_ipv6() {
        return;
    }
    let port = ports::tcp();
    let name = format!("[::1]:{port}");
    let (_, socket) = listens(&name, &name, client::tcp6(port));
    assert_eq!(socket.address, name);
    assert_eq!(socket.v6_only, Some(true));
}

#[test]
fn an_ipv6_address_without_brackets() {
    if !needs_ipv6() {
        return;
    }
    let port = ports::tcp();
    let (_, socket) = listens(
        &format!("::1:{port}"),
        &format!("[::1]:{port}"),
        client::tcp6(port),
    );
    assert_eq!(socket.address, format!("[::1]:{port}"));
}

#[test]
fn all_of_ipv6_leaves_ipv4_alone() {
    if !needs_ipv6() {
        return;
    }
    let port = ports::tcp();
    let options = [format!("--port=[::]:{port}"), format!("--port={port}")];
    let server = Server::setup().options(options).start();
    let report = server.ask(port);
    assert_eq!(
        report.socket(&format!("[::]:{port}")).address,
        format!("[::]:{port}")
    );
    assert_eq!(report.socket(&format!("[::]:{port}")).v6_only, Some(true));
    client::ask(client::tcp6(port));
}

#[test]
fn a_udp_port() {
    let port = ports::udp();
    let (_, socket) = listens(&format!("u{port}"), &port.to_string(), client::udp(port));
    assert_eq!(
        (socket.kind.as_str(), socket.address),
        ("datagram", format!("0.0.0.0:{port}"))
    );
    assert!(!socket.listening);
}

#[test]
fn a_udp_port_of_a_host() {
    let port = ports::udp();
    let name = format!("127.0.0.1:{port}");
    let (_, socket) = listens(&format!("127.0.0.1:u{port}"), &name, client::udp(port));
    assert_eq!((socket.kind.as_str(), socket.address), ("datagram", name));
}

#[test]
fn a_udp_port_of_ipv6() {
    if !needs_ipv6() {
        return;
    }
    let port = ports::udp();
    let name = format!("[::1]:{port}");
    let (_, socket) = listens(&format!("[::1]:u{port}"), &name, client::udp6(port));
    assert_eq!((socket.kind.as_str(), socket.address), ("datagram", name));
}

#[test]
fn the_same_port_of_tcp_and_udp() {
    let port = ports::tcp();
    let server = Server::setup()
        .options([format!("--port={port}"), format!("--port=u{port}")])
        .start();
    let report = server.ask(port);
    assert_eq!(client::ask(client::udp(port)).pid, report.pid);
    let kinds = report.listeners.iter().map(|it| {
        (
            &*it.name,
            it.socket.as_ref().expect("a socket").kind.as_str(),
        )
    });
    let name = port.to_string();
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        [(&*name, "stream"), (&*name, "datagram")]
    );
}

#[test]
fn blanks_around_a_port() {
    let port = ports::tcp();
    let (report, _) = listens(&format!(" {port} =9 "), &port.to_string(), port);
    assert_eq!(
        report.environment["SERVER_STARTER_PORT"],
        format!("{port}=9")
    );
}

#[test]
fn several_ports_separated_by_commas() {
    if original_differs("it takes one port in each option") {
        return;
    }
    let [one, two] = [ports::tcp(), ports::tcp()];
    let (report, _) = listens(&format!("{one},127.0.0.1:{two}"), &one.to_string(), one);
    assert_eq!(
        report.environment["SERVER_STARTER_PORT"],
        format!("{one}=3;127.0.0.1:{two}=4")
    );
}

#[test]
fn the_backlog_is_as_asked() {
    let port = ports::tcp();
    let server = Server::setup().port(port).option("--backlog=7").start();
    let report = server.ask(port);
    assert_eq!(report.socket(&format!("127.0.0.1:{port}")).backlog, Some(7));
}

#[test]
fn a_path_is_open_to_everybody_and_gone_at_the_end() {
    let setup = Server::setup().path("socket");
    let path = setup.folder().join("socket");
    let owner = fs::metadata(setup.folder()).expect("no folder").uid();
    let mut server = setup.umask(0o077).start();
    let report = server.ask(&path);
    let socket = report.socket(path.to_str().expect("a path"));
    assert_eq!(
        (socket.family.as_str(), socket.kind.as_str()),
        ("unix", "stream")
    );
    let metadata = fs::metadata(&path).expect("no socket");
    assert_eq!(
        (metadata.permissions().mode() & 0o7777, metadata.uid()),
        (0o777, owner)
    );
    assert!(server.stop().success());
    assert!(!path.exists());
}

#[test]
fn a_path_can_have_a_mode() {
    if original_differs("paths have no attributes") {
        return;
    }
    let setup = Server::setup();
    let path = setup.folder().join("socket");
    let server = setup
        .option(format!("--path={},mode=0600", path.display()))
        .start();
    let report = server.ask(&path);
    assert_eq!(report.listeners[0].name, path.to_str().expect("a path"));
    assert_eq!(
        fs::metadata(&path).expect("no socket").permissions().mode() & 0o7777,
        0o600
    );
}

#[test]
fn several_paths_and_a_relative_one() {
    let setup = Server::setup().option("--path=relative").path("absolute");
    let relative = setup.folder().join("relative");
    let absolute = setup.folder().join("absolute");
    let mut server = setup.start();
    let report = server.ask(&relative);
    let names: Vec<&str> = report
        .listeners
        .iter()
        .map(|listener| listener.name.as_str())
        .collect();
    assert_eq!(names, ["relative", absolute.to_str().expect("a path")]);
    assert_eq!(client::ask(&absolute).pid, report.pid);
    assert!(server.stop().success());
    assert!(!relative.exists() && !absolute.exists());
}

#[test]
fn a_socket_that_nobody_serves_is_replaced_with_a_warning() {
    let setup = Server::setup().path("socket");
    let path = setup.folder().join("socket");
    client::leave_stale_socket(&path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("cannot change the mode");
    let server = setup.start();
    server.wait_for_log(&format!("removing existing socket file:{}", path.display()));
    server.ask(&path);
}

#[test]
fn a_socket_that_somebody_serves_is_left_alone() {
    if original_differs("it steals the socket") {
        return;
    }
    let setup = Server::setup().path("socket");
    let path = setup.folder().join("socket");
    let listener = UnixListener::bind(&path).expect("cannot bind");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("cannot change the mode");
    let finished = setup.run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    let line = format!(
        "start_server: cannot listen on --path={}: another server is listening on it",
        path.display()
    );
    assert!(
        finished.log.lines().any(|it| it == line),
        "{}",
        finished.log
    );
    UnixStream::connect(&path).expect("the socket does not work any more");
    drop(listener);
}

#[test]
fn a_file_at_the_path_of_a_socket_is_left_alone() {
    if original_differs("it deletes the file") {
        return;
    }
    let setup = Server::setup().path("socket");
    let path = setup.folder().join("socket");
    fs::write(&path, "precious").expect("cannot write the file");
    let finished = setup.run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    assert_eq!(
        fs::read_to_string(&path).expect("the file is gone"),
        "precious"
    );
}

#[test]
fn a_path_that_was_replaced_meanwhile_is_left_alone_at_the_end() {
    if original_differs("it removes whatever socket is there") {
        return;
    }
    let setup = Server::setup().path("socket");
    let path = setup.folder().join("socket");
    let mut server = setup.start();
    server.ask(&path);
    fs::remove_file(&path).expect("cannot remove the socket");
    let _others = UnixListener::bind(&path).expect("cannot bind");
    assert!(server.stop().success());
    assert!(
        fs::metadata(&path)
            .expect("the socket is gone")
            .file_type()
            .is_socket()
    );
}

#[test]
fn an_address_that_is_in_use_is_an_error() {
    let port = ports::tcp();
    let _others = std::net::TcpListener::bind(("127.0.0.1", port)).expect("cannot bind");
    let finished = Server::setup().port(port).run();
    assert!(!finished.status.success());
    assert!(
        finished.log.contains("Address already in use"),
        "{}",
        finished.log
    );
    if !original_differs("it uses the errno as its exit status, and other words") {
        assert_eq!(finished.status.code(), Some(1));
        let line = format!(
            "start_server: cannot listen on --port=127.0.0.1:{port}: Address already in use"
        );
        assert!(
            finished.log.lines().any(|it| it == line),
            "{}",
            finished.log
        );
    }
}
