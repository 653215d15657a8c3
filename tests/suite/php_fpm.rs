//! `--preset=php-fpm`, with php-fpm itself and a FastCGI client: it restarts under load without a lost request.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{fs, thread};

use e2e::skip::{find_program, needs_program, original_differs};
use e2e::{Server, Setup, Worker, ports, proc, wait};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::real_servers::accepted;

/// Debian's name of the program has its version.
const NAMES: [&str; 4] = ["php-fpm8.2", "php-fpm8.3", "php-fpm8.4", "php-fpm"];

/// Records of FastCGI.
const BEGIN_REQUEST: u8 = 1;
const END_REQUEST: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("a short record");
    let [high, low] = length.to_be_bytes();
    let mut record = vec![1, kind, 0, 1, high, low, 0, 0];
    record.extend(content);
    record
}

/// Runs the script, and returns the process that has run it.
fn ask(port: u16, script: &Path, query: &str) -> io::Result<Pid> {
    let mut params = Vec::new();
    for (name, value) in [
        ("SCRIPT_FILENAME", script.to_str().expect("UTF-8")),
        ("REQUEST_METHOD", "GET"),
        ("QUERY_STRING", query),
    ] {
        let lengths = [name.len(), value.len()].map(|it| u8::try_from(it).expect("short"));
        params.extend(lengths);
        params.extend(name.bytes().chain(value.bytes()));
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut connection = TcpStream::connect_timeout(&address, wait::DEADLINE)?;
    connection.set_read_timeout(Some(wait::DEADLINE))?;
    // A responder; the connection is closed after its request.
    let begin = record(BEGIN_REQUEST, &[0, 1, 0, 0, 0, 0, 0, 0]);
    let request = [begin, record(PARAMS, &params)];
    let end = [record(PARAMS, &[]), record(STDIN, &[])];
    connection.write_all(&[request.concat(), end.concat()].concat())?;
    let (mut text, mut head) = (Vec::new(), [0; 8]);
    loop {
        connection.read_exact(&mut head)?;
        let [_, kind, _, _, high, low, padding, _] = head;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let mut content = vec![0; length + usize::from(padding)];
        connection.read_exact(&mut content)?;
        match kind {
            END_REQUEST => break,
            STDOUT => text.extend(content.drain(..length)),
            _ => {}
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let pid = text
        .rsplit_once("process ")
        .and_then(|(_, pid)| pid.parse().ok());
    let unexpected = || io::Error::other(format!("not what was asked for: {text:?}"));
    pid.map(Pid::from_raw).ok_or_else(unexpected)
}

/// php-fpm by its preset on this port, with its files.
fn setup(port: u16) -> Option<Setup> {
    if original_differs("it has no --preset") {
        return None;
    }
    let found = NAMES.into_iter().find(|name| find_program(name).is_some());
    let program = found.unwrap_or("php-fpm");
    if !needs_program(program) {
        return None;
    }
    let setup = Server::setup();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers");
    for file in ["php-fpm.conf", "process.php"] {
        let text = fs::read_to_string(source.join(file)).expect("cannot read the server's file");
        let text = text.replace("@PORT@", &port.to_string());
        fs::write(setup.folder().join(file), text).expect("cannot copy the server's file");
    }
    let options = ["--nodaemonize", "--no-php-ini", "--prefix", "."];
    let words = [program].into_iter().chain(options);
    let setup = setup.port(port).status_file().interval("1");
    let setup = setup.option("--preset=php-fpm");
    Some(setup.program(words.chain(["--fpm-config", "php-fpm.conf"])))
}

fn first(server: &Server) -> Worker {
    server.wait_for("the first generation is accepted", |server| {
        accepted(server).first().copied()
    })
}

/// Restarts it, and returns the new generation once it is alone.
fn restart(server: &Server, old: Worker) -> Worker {
    server.signal(Signal::SIGHUP);
    server.wait_for(
        "the new generation alone is accepted",
        |server| match accepted(server)[..] {
            [new] if new > old => Some(new),
            _ => None,
        },
    )
}

#[test]
fn php_fpm_loses_nothing_by_its_preset() {
    let port = ports::tcp();
    let Some(setup) = setup(port) else { return };
    let mut server = setup.start();
    let mut worker = first(&server);
    let script = server.folder().join("process.php");
    let belongs = |pid: Pid, worker: Worker| proc::children(worker.pid).contains(&pid);
    assert!(belongs(ask(port, &script, "").expect("no answer"), worker));

    let (stopped, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = || {
        let mut failures = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            match ask(port, &script, "") {
                Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures
    };
    let failures: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(load)).collect();
        for _ in 0..3 {
            let wanted = answered.load(Ordering::Relaxed) + 50;
            server.wait_until(&format!("{wanted} requests were answered"), |_| {
                answered.load(Ordering::Relaxed) >= wanted
            });
            worker = restart(&server, worker);
        }
        stopped.store(true, Ordering::Relaxed);
        let failures = clients
            .into_iter()
            .map(|one| one.join().expect("a client panicked"));
        failures.collect::<Vec<_>>().concat()
    });
    assert_eq!(failures, [""; 0], "{}", server.log());
    assert!(belongs(ask(port, &script, "").expect("no answer"), worker));
    assert!(server.stop().success());
}

#[test]
fn php_fpm_finishes_a_request_by_its_preset_and_not_by_the_default() {
    for (besides, is_answered) in [(None, true), (Some("--signal-on-hup=TERM"), false)] {
        let port = ports::tcp();
        let Some(setup) = setup(port) else { return };
        let server = setup.options(besides).start();
        let old = first(&server);
        let folder = server.folder().to_owned();
        let script = folder.join("process.php");
        let request = thread::spawn(move || ask(port, &script, "waits"));
        server.wait_until("the request has begun", |_| folder.join("begun").exists());
        server.signal(Signal::SIGHUP);
        match is_answered {
            true => server.wait_until("the new generation is accepted", |server| {
                accepted(server).iter().any(|one| *one > old)
            }),
            false => server.wait_until("the old generation is gone", |server| {
                !accepted(server).contains(&old)
            }),
        }
        fs::write(folder.join("finish"), "").expect("cannot create the file");
        let answer = request.join().expect("the client panicked");
        assert_eq!(answer.is_ok(), is_answered, "{answer:?}");
    }
}
