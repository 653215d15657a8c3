//! What others can do about the sockets of `--switch`: another user, another process of the same user, and a worker.

use std::io::{self, BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use e2e::client;
use e2e::server::NOBODY;
use e2e::skip::{needs_program, needs_root};
use e2e::start::InTurn;
use e2e::{Server, Setup, ports, programs};

use crate::commands::run;
use crate::switch::{PID_FILE, is_ours, restart, serving, switching};

/// It joins the group at an address as the given uid, and when it is told to it attaches a program to the group that
/// selects the given place.
const STRANGER: &str = r"
import ctypes, os, socket, struct, sys
uid, kind, address, port, place = sys.argv[1:]
os.setgid(int(uid)); os.setuid(int(uid))
stranger = socket.socket(type=socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
try:
    stranger.bind((address, int(port)))
    if kind == 'tcp':
        stranger.listen(9)
except OSError as error:
    print(error.strerror, flush=True)
    sys.exit()
print('joined', flush=True)
sys.stdin.readline()
code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, int(place)))
program = struct.pack('HxxxxxxP', 1, ctypes.addressof(code))
stranger.setsockopt(socket.SOL_SOCKET, 51, program)
print('attached', flush=True)
sys.stdin.readline()
";

/// A worker that lets nobody attach another program by its first socket (`SO_LOCK_FILTER`), and then is the fixture. Those
/// after the given generation are only that.
const LOCKING: &str = r"
import os, socket, sys
if int(os.environ['SERVER_STARTER_GENERATION']) <= int(sys.argv[1]):
    number = int(os.environ['SERVER_STARTER_PORT'].split('=')[1])
    lane = socket.socket(fileno=number)
    lane.setsockopt(socket.SOL_SOCKET, 44, 1)
    lane.detach()
os.execv(sys.argv[2], sys.argv[2:])
";

/// Dropping it kills it.
struct Stranger {
    child: Child,
    told: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Stranger {
    /// The two lanes of the group have the places 0 and 1, and so this one has 2.
    fn start(uid: u32, kind: &str, address: &str, port: u16) -> Stranger {
        let mut child = Command::new("python3")
            .args(["-c", STRANGER, &uid.to_string(), kind, address])
            .args([port.to_string(), "2".to_owned()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn_in_turn()
            .expect("no python");
        let told = child.stdin.take().expect("a pipe");
        let said = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Stranger { child, told, said }
    }

    #[track_caller]
    fn says(&mut self) -> String {
        self.said.next().expect("a line").expect("text")
    }

    #[track_caller]
    fn attaches(&mut self) {
        self.told.write_all(b"\n").expect("it is gone");
        assert_eq!(self.says(), "attached");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether all that comes to the port is answered by this generation.
fn all_come_to(server: &Server, port: u16, generation: u32) -> bool {
    (0..50).all(|_| server.ask(port).generation == Some(generation))
}

/// A client is connected, and whoever has it does not answer.
#[track_caller]
fn assert_nobody_answers(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("cannot connect");
    stream.write_all(b"ping\n").expect("cannot ask");
    let patience = Duration::from_millis(300);
    stream.set_read_timeout(Some(patience)).expect("no timeout");
    let nobody = stream.read(&mut [0]).expect_err("it was answered");
    assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
}

fn can_run() -> bool {
    is_ours() && needs_root() && needs_program("python3")
}

#[test]
fn another_user_cannot_join() {
    if !can_run() {
        return;
    }
    let port = ports::tcp();
    let setup = switching().options([
        format!("--port=127.0.0.1:u{port}"),
        format!("--port=127.0.0.2:{port}"),
    ]);
    let server = serving(setup, port);
    for other in [0, NOBODY - 1] {
        for kind in ["tcp", "udp"] {
            // By the same address, and by one that contains it.
            for address in ["127.0.0.1", "0.0.0.0"] {
                let mut stranger = Stranger::start(other, kind, address, port);
                let said = stranger.says();
                assert_eq!(said, "Address already in use", "{other} {kind} {address}");
            }
        }
    }
    // Nor by one that is contained.
    let wide = ports::tcp();
    let wide_server = switching()
        .options([format!("--port={wide}"), format!("--port=u{wide}")])
        .start();
    wide_server.wait_until_accepted();
    for kind in ["tcp", "udp"] {
        let mut stranger = Stranger::start(NOBODY - 1, kind, "127.0.0.1", wide);
        assert_eq!(stranger.says(), "Address already in use", "{kind}");
    }
    assert!(all_come_to(&server, port, 1));
}

#[test]
fn a_process_of_the_same_user_gets_nothing_until_it_attaches_and_loses_it_with_the_next_switch() {
    if !can_run() {
        return;
    }
    let port = ports::tcp();
    let server = serving(switching(), port);
    server.wait_for_service(1);
    let mut stranger = Stranger::start(NOBODY, "tcp", "127.0.0.1", port);
    assert_eq!(stranger.says(), "joined");
    assert!(all_come_to(&server, port, 1), "whoever joins gets nothing");
    stranger.attaches();
    assert_nobody_answers(port);
    // The next switch is ours again.
    restart(&server);
    assert!(all_come_to(&server, port, 2));
}

#[test]
fn a_process_of_the_same_user_gets_connections_to_a_more_specific_address() {
    if !can_run() {
        return;
    }
    let port = ports::tcp();
    let server = switching().option(format!("--port={port}")).start();
    server.wait_until_accepted();
    server.wait_for_service(1);
    let mut stranger = Stranger::start(NOBODY, "tcp", "127.0.0.1", port);
    assert_eq!(stranger.says(), "joined");
    assert_nobody_answers(port);
    let other = || "127.0.0.2".parse().expect("an address");
    let elsewhere = std::net::SocketAddr::new(other(), port);
    assert_eq!(server.ask(elsewhere).generation, Some(1));
    restart(&server);
    assert_nobody_answers(port);
    assert_eq!(server.ask(elsewhere).generation, Some(2));
    drop(stranger);
    assert!(all_come_to(&server, port, 2));
}

#[test]
fn whoever_has_joined_moves_into_the_place_of_a_lane_that_a_worker_shuts_down() {
    if !can_run() {
        return;
    }
    let port = ports::tcp();
    let server = serving(switching(), port);
    server.wait_for_service(1);
    let mut stranger = Stranger::start(NOBODY, "tcp", "127.0.0.1", port);
    assert_eq!(stranger.says(), "joined");
    client::request(port, &format!("shutdown 127.0.0.1:{port}")).expect("no answer");
    assert_nobody_answers(port);
}

fn locking(last: u32) -> Setup {
    // Before it says so, it has locked its own.
    let setup = switching().option("--ready=notify");
    let journal = format!("--journal={}", setup.folder().join("journal").display());
    let worker = programs::worker().display().to_string();
    setup.program([
        "python3",
        "-c",
        LOCKING,
        &last.to_string(),
        &worker,
        &journal,
        "--notify",
    ])
}

#[test]
fn workers_that_lock_all_sockets_can_keep_new_connections() {
    if !can_run() {
        return;
    }
    // Any other socket of the group will do.
    let port = ports::tcp();
    let server = serving(locking(1), port);
    server.wait_for_service(1);
    for generation in [2, 3] {
        restart(&server);
        server.wait_for_generations(&[generation]);
        assert!(all_come_to(&server, port, generation));
    }
    let port = ports::tcp();
    let server = serving(locking(1000), port);
    server.wait_for_service(1);
    let mut client = run(&server, &["--restart", PID_FILE, "--timeout=60"]);
    assert_eq!(client.wait(), 1, "{}\n{}", client.said(), server.log());
    let cause = format!("cannot switch 127.0.0.1:{port} to its lane: Operation not permitted");
    assert!(client.said().contains(&cause), "{}", client.said());
    assert!(all_come_to(&server, port, 1));
    // A switch that was refused is no commit.
    for sentence in ["generation 2 serves", "new worker is now running"] {
        assert_eq!(server.count_in_log(sentence), 0, "{}", server.log());
    }
}
