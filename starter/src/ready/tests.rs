//! Readiness as a whole.

mod places;

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, accept, recv, sendmsg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{getpid, getppid};

use super::command::Running;
use super::*;
use crate::host::open_files::owned;
use crate::listeners::backlog::Backlog;

fn settings(ready: Ready, probe: Option<ProbeAt>) -> Settings {
    Settings {
        ready,
        probe,
        start_timeout: Duration::from_secs(1),
        watch: Some(Duration::from_secs(60)),
        fd_store_max: 1,
    }
}

fn layout(settings: &Settings) -> Layout {
    Layout::new([3, 4].into_iter(), settings, Backlog::new(None), true)
}

fn readiness(settings: Settings) -> Readiness {
    let layout = layout(&settings);
    Readiness::new(settings, layout)
}

/// As in an exec, nobody drops the original.
fn carried_over(readiness: Readiness, settings: Settings) -> Readiness {
    assert!(readiness.is_settled());
    let readiness = ManuallyDrop::new(readiness);
    let text = serde_json::to_string(&readiness.pack(&mut Luggage::default())).unwrap();
    let layout = layout(&settings);
    Readiness::unpack(serde_json::from_str(&text).unwrap(), settings, layout)
}

fn soon() -> Moment {
    Moment::now() + Duration::from_millis(10)
}

fn after_a_period() -> Moment {
    Moment::now() + Duration::from_secs(20)
}

/// What a look has found.
fn look(readiness: &mut Readiness, now: Moment) -> Vec<Event> {
    readiness.look(now, &[], &mut run);
    readiness.take_found()
}

fn run(order: &Order<'_>) -> io::Result<Running> {
    assert_eq!((order.generation, order.changes), (1, &changes()[..]));
    Running::start(order.command, |_| {})
}

fn changes() -> Vec<Change> {
    vec![("SET".into(), Some("1".into())), ("GONE".into(), None)]
}

/// A client of the notification socket.
fn client(address: impl AsRef<Path>) -> UnixDatagram {
    let client = UnixDatagram::unbound().unwrap();
    client.connect(address).unwrap();
    client
}

fn store(client: &UnixDatagram, name: &str) {
    let (reader, writer) = std::io::pipe().unwrap();
    // It would hang up.
    let _writer = ManuallyDrop::new(writer);
    let raw = [reader.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&raw)];
    let text = format!("FDSTORE=1\nFDNAME={name}");
    let parts = [IoSlice::new(text.as_bytes())];
    let number = client.as_raw_fd();
    sendmsg::<()>(number, &parts, &rights, MsgFlags::empty(), None).unwrap();
}

#[test]
fn the_last_words_of_a_worker_are_read_when_it_has_died() {
    let mut readiness = readiness(settings(Ready::Notify, None));
    let handed = readiness.begin(1, 0).unwrap();
    let (_, address) = handed.variables[0].clone();
    readiness.started(1, 0, getpid(), handed, &[]);
    store(&client(address), "last");
    let count = |readiness: &Readiness| readiness.store.hand_out().len();
    readiness.read_last_words(getppid(), Moment::now(), &[]);
    assert_eq!(count(&readiness), 0);
    readiness.read_last_words(getpid(), Moment::now(), &[]);
    assert_eq!(count(&readiness), 1);
    let (name, _, place) = readiness.store.hand_out()[0];
    assert_eq!((name, place), ("last", 5));
}

#[test]
fn the_next_program_hears_what_workers_say_and_removes_the_socket() {
    let settings = || settings(Ready::Notify, None);
    let mut readiness = readiness(settings());
    let handed = readiness.begin(1, 0).unwrap();
    let (_, address) = handed.variables[0].clone();
    readiness.started(1, 0, getpid(), handed, &changes());
    assert!(!readiness.is_settled());
    let worker = client(&address);
    let too_long = [b'x'; message::LARGEST + 1];
    worker.send(&too_long).unwrap();
    store(&worker, "kept");
    store(&worker, "refused");
    readiness.look(Moment::now(), &[], &mut run);
    assert_eq!(readiness.take_notices().len(), 2);
    readiness.take_found();

    worker.send(b"READY=1").unwrap();
    let mut readiness = carried_over(readiness, settings());
    assert_eq!(readiness.sources().count(), 2);
    // What has been said once is not said again.
    client(&address).send(&too_long).unwrap();
    store(&worker, "refused");
    let found = look(&mut readiness, Moment::now());
    assert_eq!(found, [Event::Ready(getpid())]);
    assert_eq!(readiness.take_notices().len(), 0);
    assert_eq!(readiness.store.refused(), 2);
    assert_eq!(readiness.store.hand_out()[0].0, "kept");
    // The next worker of this generation gets the same address.
    assert_eq!(readiness.begin(1, 0).unwrap().variables[0].1, address);
    let directory = Path::new(&address).parent().unwrap();
    assert!(directory.exists());
    drop(readiness);
    assert!(!directory.exists());
}

#[test]
fn the_next_program_goes_on_with_a_request_that_is_under_way() {
    for at in [ProbeAt::Tcp, ProbeAt::Unix] {
        let statuses = Statuses {
            first: 200,
            last: 299,
        };
        let path = "/up".to_owned();
        let http = Ready::Http { path, statuses };
        let settings = || settings(http.clone(), Some(at));
        let mut readiness = readiness(settings());
        let mut handed = readiness.begin(1, 0).unwrap();
        let (listener, _) = handed.descriptors.pop().unwrap();
        let accept = || File::from(owned(accept(listener.as_raw_fd()).unwrap()));
        let read_request = |mut server: &File| {
            let mut request = [0; 512];
            let length = server.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /up HTTP/1.1\r\n"));
        };
        readiness.started(1, 0, getpid(), handed, &[]);
        readiness.take_found();
        assert_eq!(look(&mut readiness, soon()), []);
        let mut server = accept();
        read_request(&server);
        server.write_all(b"HTTP/1.1 2").unwrap();
        assert_eq!(look(&mut readiness, soon()), []);
        let deadline = readiness.deadline();

        let mut readiness = carried_over(readiness, settings());
        assert_eq!(readiness.deadline(), deadline);
        server.write_all(b"04 No Content\r\n\r\n").unwrap();
        assert_eq!(
            look(&mut readiness, soon()),
            [Event::Ready(getpid())],
            "{at:?}"
        );
        let more = recv(server.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT);
        assert_eq!(more, Err(nix::errno::Errno::EAGAIN));

        // The same once it serves.
        readiness.watched[0].serve(&settings(), Moment::now());
        assert_eq!(look(&mut readiness, after_a_period()), []);
        let mut server = accept();
        read_request(&server);
        let mut readiness = carried_over(readiness, settings());
        server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let well = Event::Well { generation: 1 };
        assert_eq!(look(&mut readiness, after_a_period()), [well], "{at:?}");
        let name = readiness.probes_of(1).remove(0).name;
        let is_file = at == ProbeAt::Unix;
        assert_eq!(Path::new(&name).exists(), is_file);
        drop(readiness);
        assert!(!Path::new(&name).exists());
    }
}

#[test]
fn the_next_program_learns_how_commands_end() {
    let settings = || settings(Ready::Command("echo why; exit 3".into()), None);
    let mut readiness = readiness(settings());
    let handed = readiness.begin(1, 0).unwrap();
    readiness.started(1, 0, getpid(), handed, &changes());
    readiness.take_found();
    let exited = |readiness: &mut Readiness, pid: Pid| {
        assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 3));
        assert!(readiness.has_exited(pid, 3 << 8));
        readiness.take_found()
    };
    let mut pids = Vec::new();
    let mut look = |readiness: &mut Readiness| {
        let mut run = |order: &Order<'_>| {
            let running = run(order)?;
            pids.push(running.pid());
            Ok(running)
        };
        readiness.look(after_a_period(), &[], &mut run);
        pids.pop()
    };
    let pid = look(&mut readiness).unwrap();
    let mut readiness = carried_over(readiness, settings());
    assert_eq!(look(&mut readiness), None);
    let known = "the --ready command failed, exit status:768 (exit code 3): why".to_owned();
    assert_eq!(
        exited(&mut readiness, pid),
        [Event::NotYetReady {
            pid: getpid(),
            known
        }]
    );

    // The same once it serves.
    readiness.watched[0].settle();
    readiness.watched[0].serve(&settings(), Moment::now());
    let since_of = |found: &[Event]| match found {
        [Event::Unwell { since, .. }] => *since,
        _ => unreachable!("it is unwell: {found:?}"),
    };
    let pid = look(&mut readiness).unwrap();
    let since = since_of(&exited(&mut readiness, pid));
    readiness = carried_over(readiness, settings());
    let pid = look(&mut readiness).unwrap();
    readiness = carried_over(readiness, settings());
    assert_eq!(since_of(&exited(&mut readiness, pid)), since);
}

#[test]
fn the_next_program_sees_a_line_feed() {
    let settings = || settings(Ready::Descriptor(9), None);
    let mut readiness = readiness(settings());
    let mut handed = readiness.begin(1, 0).unwrap();
    let (theirs, _) = handed.descriptors.pop().unwrap();
    readiness.started(1, 0, getpid(), handed, &[]);
    readiness.take_found();
    let mut readiness = carried_over(readiness, settings());
    assert_eq!(look(&mut readiness, Moment::now()), []);
    File::from(theirs).write_all(b"\n").unwrap();
    let found = look(&mut readiness, Moment::now());
    assert_eq!(found, [Event::Ready(getpid())]);
}
