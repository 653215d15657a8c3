//! `--fd-store-max`: what workers leave for the workers after them.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;
use std::{fs, io};

use e2e::skip::needs_root;
use e2e::{Server, Setup, ports, proc, programs, wait};
use nix::sys::resource::Resource;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::Value;

use crate::bad_input::assert_usage;
use crate::commands::run;
use crate::readiness::{is_ours, with_files};

/// A connection to a keeper that stays open.
struct Talk(BufReader<TcpStream>);

impl Talk {
    #[track_caller]
    fn new(port: u16) -> Talk {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("cannot connect");
        stream
            .set_read_timeout(Some(wait::DEADLINE))
            .expect("a timeout");
        Talk(BufReader::new(stream))
    }

    /// In one piece: a worker reads it once.
    #[track_caller]
    fn write(&mut self, request: &str) {
        let line = format!("{request}\n");
        let written = self.0.get_mut().write_all(line.as_bytes());
        written.expect("the connection was closed");
    }

    #[track_caller]
    fn ask(&mut self, request: &str) -> String {
        self.write(request);
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("no answer");
        assert!(answer.ends_with('\n'), "{request:?} was not answered");
        answer.trim_end_matches('\n').to_owned()
    }

    #[track_caller]
    fn send(&mut self, request: &str) {
        assert_eq!(self.ask(&format!("send {request}")), "sent");
    }

    /// What a worker was told that it has: how many in all, and the names of what was kept.
    #[track_caller]
    fn kept(&mut self) -> (usize, Vec<String>) {
        let answer = self.ask("kept");
        let (count, names) = answer.split_once(' ').expect("two words");
        let names = names.split(':').skip(1).map(str::to_owned);
        (count.parse().expect("a count"), names.collect())
    }
}

fn keeping(most: usize) -> Setup {
    with_files()
        .option("--ready=notify")
        .option(format!("--fd-store-max={most}"))
        .program([programs::keeper()])
}

#[track_caller]
fn started(setup: Setup) -> (Server, u16) {
    let port = ports::tcp();
    let server = setup.port(port).start();
    server.wait_until_accepted();
    (server, port)
}

/// What FILE.json says of it, once it holds.
#[track_caller]
fn wait_for_store(server: &Server, condition: &str, holds: impl Fn(&Value) -> bool) -> Value {
    server.wait_for(condition, |server| {
        let store = server.status_json()?["fd_store"].clone();
        holds(&store).then_some(store)
    })
}

#[track_caller]
fn wait_for_count(server: &Server, count: usize) -> Value {
    let condition = format!("{count} descriptors are kept");
    wait_for_store(server, &condition, |store| store["count"] == count)
}

#[test]
fn two_hundred_idle_connections_pass_through_fifty_restarts() {
    const CONNECTIONS: usize = 200;
    const RESTARTS: u32 = 50;
    if !is_ours() {
        return;
    }
    let (mut server, port) = started(keeping(CONNECTIONS));
    let before = proc::descriptors_at_rest(server.pid()).len();
    let mut clients: Vec<Talk> = (0..CONNECTIONS).map(|_| Talk::new(port)).collect();
    let names: Vec<String> = (0..CONNECTIONS).map(|it| format!("conn-{it}")).collect();
    for (client, name) in clients.iter_mut().zip(&names) {
        client.send(&format!("conn 1 FDSTORE=1;FDNAME={name}"));
    }
    wait_for_count(&server, CONNECTIONS);
    for generation in 2..=RESTARTS + 1 {
        assert_eq!(server.restart().generation, generation);
        // All of them in the end, and a few in between.
        let step = if generation % 10 == 1 { 1 } else { 23 };
        let first = usize::try_from(generation).expect("a small number") % step;
        for client in clients.iter_mut().skip(first).step_by(step) {
            assert_eq!(client.ask("who"), generation.to_string());
        }
        // A few belong to what was replaced, for a rollback.
        server.wait_until("no descriptor is left over", |server| {
            proc::descriptors(server.pid()).len() <= before + CONNECTIONS + 10
        });
    }
    assert_eq!(clients[7].kept(), (1 + CONNECTIONS, names.clone()));
    // One more is refused, and nobody loses a place.
    clients[0].send("memfd 1 FDSTORE=1;FDNAME=more");
    server.wait_for_log("asks to keep: there are --fd-store-max=200 already");
    // A worker that dies leaves them too.
    let worker = server.workers()[0];
    kill(worker.pid, Signal::SIGKILL).expect("cannot kill it");
    server.wait_for_generations(&[RESTARTS + 2]);
    for client in &mut clients {
        assert_eq!(client.ask("who"), (RESTARTS + 2).to_string());
    }
    assert_eq!(clients[199].kept(), (1 + CONNECTIONS, names));
    let store = wait_for_count(&server, CONNECTIONS);
    assert_eq!((&store["max"], &store["refused"]), (&200.into(), &1.into()));
    // At the end they are closed.
    assert!(server.stop().success());
    for client in &mut clients {
        let end = client.0.read(&mut [0]);
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        assert!(end.is_ok_and(|length| length == 0));
    }
}

#[test]
fn the_next_worker_has_what_was_kept_after_its_listeners_and_nothing_else() {
    if !is_ours() {
        return;
    }
    let setup = keeping(20).option("--check=ls -l /proc/self/fd >check; env >>check");
    let folder = setup.folder().to_owned();
    let (server, port) = started(setup);
    let mut talk = Talk::new(port);
    assert_eq!(talk.kept(), (1, vec![]));
    talk.send("memfd 1 FDSTORE=1;FDNAME=tickets");
    talk.send("memfd 2 FDSTORE=1");
    talk.send("copies 3 FDSTORE=1;FDNAME=once");
    // Every worker has that.
    talk.send("listener 1 FDSTORE=1;FDNAME=listener");
    // These are not valid, and nothing is lost.
    talk.send("memfd 1 FDSTORE=1;FDNAME=a:b");
    talk.send("memfd 1 READY=1;FDNAME=unasked");
    talk.send("memfd 1 FDNAME=gone;FDSTORE=1");
    talk.send("memfd 0 FDSTOREREMOVE=1;FDNAME=gone");
    server.wait_for_log("as \"stored\": its FDNAME is not printable ASCII without a colon");
    let store = wait_for_count(&server, 5);
    let expected = serde_json::json!([
        {"name": "once", "count": 1}, {"name": "stored", "count": 3}, {"name": "tickets", "count": 1},
    ]);
    assert_eq!(store["names"], expected);
    server.restart();
    let mut talk = Talk::new(port);
    let names = ["tickets", "stored", "stored", "once", "stored"];
    assert_eq!(talk.kept(), (6, names.map(str::to_owned).to_vec()));
    assert_eq!(talk.ask("content tickets"), "1");
    let open = talk.ask("open");
    let open: Vec<&str> = open.split(';').collect();
    let numbers: Vec<&str> = open.iter().filter_map(|it| it.split('=').next()).collect();
    let expected = ["0", "1", "2", "3", "4", "5", "6", "7", "8"];
    assert_eq!(numbers, expected, "{open:?}");
    assert!(open[3].contains("=socket:"), "{open:?}");
    assert!(
        open[4..].iter().all(|it| it.contains("=/memfd:kept")),
        "{open:?}"
    );
    let check = fs::read_to_string(folder.join("check")).expect("the check has run");
    assert!(
        !check.contains("memfd") && !check.contains("LISTEN_FD"),
        "{check}"
    );
    let status = run(&server, &["--status", "--json", "--pid-file=pid"]);
    let said = finished(status);
    let json: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(json["fd_store"]["count"], 5);
    let said = finished(run(&server, &["--status", "--pid-file=pid"]));
    let line = "keeps 5 of at most 20 descriptors for the next server: once, 3 stored, tickets";
    assert!(said.contains(line), "{said}");
    // A new one with the same name takes the place of the old one.
    talk.send("memfd 1 FDSTOREREMOVE=1;FDSTORE=1;FDNAME=tickets");
    talk.send("memfd 0 FDSTOREREMOVE=1;FDNAME=stored");
    wait_for_count(&server, 2);
    server.restart();
    let mut talk = Talk::new(port);
    assert_eq!(
        talk.kept(),
        (3, vec!["once".to_owned(), "tickets".to_owned()])
    );
    assert_eq!(talk.ask("content tickets"), "2");
}

#[track_caller]
fn finished(mut client: crate::commands::Client) -> String {
    assert_eq!(client.wait(), 0, "{}", client.said());
    client.said()
}

#[test]
fn what_hangs_up_is_closed_and_what_is_not_to_be_polled_costs_nothing() {
    if !is_ours() {
        return;
    }
    let (server, port) = started(keeping(20));
    let mut talk = Talk::new(port);
    talk.send("pipe 2 FDSTORE=1;FDNAME=polled");
    talk.send("pipe 3 FDSTORE=1;FDPOLL=0;FDNAME=unpolled");
    talk.send("memfd 1 FDSTORE=1;FDNAME=file");
    wait_for_count(&server, 6);
    assert_eq!(talk.ask("hang-up"), "closed");
    let store = wait_for_count(&server, 4);
    assert_eq!(store["names"][1]["name"], "unpolled");
    let before = proc::context_switches(server.pid());
    wait::let_pass(Duration::from_millis(500));
    let after = proc::context_switches(server.pid());
    assert!(after - before <= 3, "it woke up {} times", after - before);
}

#[test]
fn a_flood_is_bounded_by_the_option_and_leaks_nothing() {
    if !is_ours() {
        return;
    }
    let (server, port) = started(keeping(100));
    let mut talk = Talk::new(port);
    let before = proc::descriptors_at_rest(server.pid()).len();
    for _ in 0..8 {
        talk.send("memfd 253 FDSTORE=1;FDNAME=flood");
        talk.send("memfd 253 STATUS=flood");
    }
    let store = wait_for_store(&server, "the flood is counted", |store| {
        store["refused"] == 8 * 253 - 100
    });
    assert_eq!(store["count"], 100);
    server.wait_until("a hundred descriptors are kept and no more", |server| {
        proc::descriptors(server.pid()).len() == before + 100
    });
    assert_eq!(server.count_in_log("asks to keep"), 1);
    talk.send("memfd 0 FDSTOREREMOVE=1;FDNAME=flood");
    wait_for_count(&server, 0);
    server.wait_until("no descriptor is left over", |server| {
        proc::descriptors(server.pid()).len() == before
    });
    // Names as long as they may be: all of them fit the environment of the next worker.
    let name = "x".repeat(255);
    talk.send(&format!("memfd 100 FDSTORE=1;FDNAME={name}"));
    wait_for_count(&server, 100);
    server.restart();
    assert_eq!(Talk::new(port).kept().0, 101);
}

#[test]
fn names_never_make_an_environment_that_nothing_can_be_started_with() {
    if !is_ours() {
        return;
    }
    let (server, port) = started(keeping(900));
    let mut talk = Talk::new(port);
    for number in 0..6 {
        let name = format!("{number}{}", "x".repeat(254));
        talk.send(&format!("memfd 150 FDSTORE=1;FDNAME={name}"));
    }
    server.wait_for_log("all names together would be longer than 65536 bytes");
    wait_for_count(&server, 256);
    server.restart();
    assert_eq!(Talk::new(port).kept().0, 257);
}

#[test]
fn the_last_words_of_a_worker_that_dies_are_heard() {
    if !is_ours() {
        return;
    }
    let (server, port) = started(keeping(200));
    // More than one look reads, if the queue holds as many.
    let queue = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap_or_default();
    let count = queue.trim().parse().unwrap_or(10).min(100);
    proc::stop(server.pid());
    let worker = server.workers()[0];
    let mut talk = Talk::new(port);
    talk.write(&format!("last-words {count}"));
    server.wait_until("the worker is dead", |_| {
        proc::status(worker.pid).is_none_or(|status| status.state == 'Z')
    });
    server.signal(Signal::SIGCONT);
    server.wait_for_generations(&[2]);
    wait_for_count(&server, count);
    let names: Vec<String> = (1..=count).map(|it| format!("last-{it}")).collect();
    assert_eq!(Talk::new(port).kept(), (1 + count, names));
}

#[test]
fn a_foreign_user_cannot_leave_anything() {
    if !is_ours() || !needs_root() {
        return;
    }
    let (server, _) = started(keeping(9));
    let worker = server.workers()[0];
    let socket = proc::environment(worker.pid)["NOTIFY_SOCKET"].clone();
    let root = UnixDatagram::unbound().expect("a socket");
    root.connect(socket).expect("cannot connect");
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let raw = [writer.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&raw)];
    let parts = [IoSlice::new(b"FDSTORE=1\nFDNAME=root")];
    sendmsg::<()>(root.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).expect("sent");
    drop(writer);
    server.wait_for_log("ignoring a notification to generation 1: it came from uid 0");
    // Nobody holds the other end.
    assert_eq!(reader.read(&mut [0]).expect("cannot read"), 0);
    assert_eq!(
        server.status_json().expect("a status")["fd_store"]["count"],
        0
    );
}

#[test]
fn without_the_option_descriptors_are_closed_and_the_log_says_so_once() {
    if !is_ours() {
        return;
    }
    let setup = with_files()
        .option("--ready=notify")
        .program([programs::keeper()]);
    let (server, port) = started(setup);
    let mut talk = Talk::new(port);
    let before = proc::descriptors_at_rest(server.pid()).len();
    for _ in 0..3 {
        talk.send("memfd 253 FDSTORE=1;FDNAME=x");
    }
    server.wait_for_log("asks to keep (FDSTORE=1): they are only kept with --fd-store-max");
    assert_eq!(server.count_in_log("--fd-store-max"), 1);
    assert_eq!(proc::descriptors_at_rest(server.pid()).len(), before);
    server.restart();
    assert_eq!(Talk::new(port).ask("kept"), " ");
    assert_eq!(
        server.status_json().expect("a status").get("fd_store"),
        None
    );
}

#[test]
fn the_option_is_refused_where_nothing_can_be_kept() {
    if !is_ours() {
        return;
    }
    let setup = |options: &[&str]| Server::setup().options(options.iter().copied());
    assert_usage(
        setup(&["--fd-store-max=5"]),
        &["start_server: cannot use --fd-store-max=5: it needs --ready=notify as well"],
    );
    assert_usage(
        setup(&["--ready=notify", "--fd-store-max=4097"]),
        &["start_server: cannot use --fd-store-max=4097: it takes a number from 0 to 4096"],
    );
    assert_usage(
        setup(&["--ready=notify", "--fd-store-max=5", "--port=80=7"]),
        &[
            "start_server: cannot use --fd-store-max=5: workers get their descriptors from 3 on without gaps, but \
           --port=80=7 sets its own",
        ],
    );
    let limited = keeping(100)
        .port(ports::tcp())
        .limit(Resource::RLIMIT_NOFILE, 64, 64);
    let finished = limited.run();
    let cause =
        "cannot pass --fd-store-max=100 descriptors to workers: the limit on open files is 64";
    assert!(finished.log.contains(cause), "{}", finished.log);
    assert!(finished.log.contains("hint: "), "{}", finished.log);
}
