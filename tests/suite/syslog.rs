//! Where output goes: `--syslog`, as a daemon sees it that this test is itself.

use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use e2e::client::{Flow, burst, write};
use e2e::skip::original_differs;
use e2e::start::InTurn;
use e2e::wait::let_pass;
use e2e::{Server, Setup, client, ports, proc, wait};
use nix::sys::signal::{Signal, kill};

/// The daemon: a socket that the test reads when it likes to.
pub struct Daemon {
    socket: Socket,
    /// Every datagram that was read.
    seen: Mutex<Vec<Vec<u8>>>,
}

enum Socket {
    Unix(UnixDatagram),
    Udp(UdpSocket),
}

impl Daemon {
    pub fn at(path: &Path) -> Daemon {
        let socket = UnixDatagram::bind(path).expect("cannot bind the socket");
        fs::set_permissions(path, Permissions::from_mode(0o666)).expect("cannot open the socket");
        socket.set_nonblocking(true).expect("cannot set up");
        Daemon {
            socket: Socket::Unix(socket),
            seen: Mutex::default(),
        }
    }

    fn udp(port: u16) -> Daemon {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).expect("cannot bind the port");
        socket.set_nonblocking(true).expect("cannot set up");
        Daemon {
            socket: Socket::Udp(socket),
            seen: Mutex::default(),
        }
    }

    /// Closes its socket at this path, and returns when nobody can send anything there any more.
    #[track_caller]
    fn end(self, path: &Path) {
        let probe = UnixDatagram::unbound().expect("cannot make a socket");
        probe.connect(path).expect("cannot connect");
        probe.set_nonblocking(true).expect("cannot set up");
        drop(self);
        let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        wait::until("its socket is closed", String::new, || {
            probe.send(b"").err().filter(is_refused)
        });
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.seen.lock().expect("a reader panicked")
    }

    /// Reads all the time while something happens: whoever sends very much loses nothing then.
    pub fn read_during<T>(&self, act: impl FnOnce() -> T) -> T {
        // Also when it panics, since the reader is waited for.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let has_ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !has_ended.load(Ordering::Relaxed) {
                    self.read();
                    let_pass(Duration::from_millis(1));
                }
            });
            let _ends = Ends(&has_ended);
            act()
        })
    }

    /// Reads what there is.
    pub fn read(&self) {
        let mut buffer = vec![0; 65536];
        loop {
            let read = match &self.socket {
                Socket::Unix(socket) => socket.recv(&mut buffer),
                Socket::Udp(socket) => socket.recv(&mut buffer),
            };
            match read {
                Ok(length) => self.seen().push(buffer[..length].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => panic!("cannot read a record: {error}"),
            }
        }
    }

    fn records(&self) -> Vec<Record> {
        self.read();
        let seen = self.seen();
        seen.iter().map(|record| Record::parse(record)).collect()
    }

    pub fn messages(&self) -> Vec<String> {
        self.records().into_iter().map(|one| one.message).collect()
    }

    /// Waits for a record whose message ends so, and returns the first one.
    #[track_caller]
    fn wait_for(&self, end: &str) -> Record {
        let found = |record: &Record| record.message.ends_with(end);
        wait::until(
            &format!("a record ends with {end:?}"),
            || format!("{:#?}", self.messages()),
            || self.records().into_iter().find(found),
        )
    }

    /// Reads until the last line of a burst is there, and returns what arrived of the burst and how many were told to be
    /// lost.
    #[track_caller]
    fn read_burst(&self, last: &str) -> (Vec<usize>, u64) {
        self.read_numbers(|_, _, message| message.ends_with(last))
    }

    /// Reads until `is_all` says of the numbers that have arrived, of how many were told to be lost, and of a message,
    /// that no more is to come.
    #[track_caller]
    pub fn read_numbers(&self, is_all: impl Fn(&[usize], u64, &str) -> bool) -> (Vec<usize>, u64) {
        // Parsed once: there are very many.
        let mut next = 0;
        let (mut numbers, mut lost) = (Vec::new(), 0);
        let mut has_ended = false;
        // However long all of it takes: on a loaded machine there is time as long as more comes.
        while !has_ended {
            wait::until(
                "more comes",
                || format!("{} records arrived, {lost} are lost", self.seen().len()),
                || {
                    self.read();
                    (self.seen().len() > next).then_some(())
                },
            );
            let seen = self.seen();
            for record in &seen[next..] {
                let message = Record::parse(record).message;
                lost += told_lost(&message);
                numbers.extend(number_in(&message));
                has_ended |= is_all(&numbers, lost, &message);
            }
            next = seen.len();
        }
        (numbers, lost)
    }
}

/// The lines that this record says were lost.
fn told_lost(message: &str) -> u64 {
    message
        .strip_prefix("start_server: ")
        .and_then(|rest| rest.split_once(" lines before this one were lost: "))
        .map_or(0, |(number, _)| number.parse().expect("a number"))
}

/// The number of a line of a burst: `gen 1: 1 00000042 ....`.
fn number_in(message: &str) -> Option<usize> {
    let text = message.strip_prefix("gen ")?.split_once(": ")?.1;
    let (_, rest) = text.split_once(' ')?;
    let number = rest.get(..8).filter(|_| rest.get(8..9) == Some(" "))?;
    number.parse().ok()
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    facility: u8,
    severity: u8,
    time: String,
    host: Option<String>,
    tag: String,
    pid: i32,
    /// Of RFC 5424.
    data: Vec<(String, String)>,
    message: String,
}

const ERROR: u8 = 3;
const WARNING: u8 = 4;
const NOTICE: u8 = 5;
const INFO: u8 = 6;

impl Record {
    /// Strictly. What is neither format is a defect.
    #[track_caller]
    fn parse(bytes: &[u8]) -> Record {
        let text = std::str::from_utf8(bytes).expect("a record is no UTF-8");
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(bytes.len() <= 8192, "a record of {} bytes", bytes.len());
        let parsed = Abnf(text).rfc5424().or_else(|| Abnf(text).rfc3164());
        parsed.unwrap_or_else(|| panic!("no record: {text:?}"))
    }
}

/// What is left of a record.
struct Abnf<'a>(&'a str);

impl<'a> Abnf<'a> {
    fn literal(&mut self, text: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(text)?;
        Some(())
    }

    /// One or more characters of a kind, up to a number.
    fn some(&mut self, most: usize, kind: impl Fn(char) -> bool) -> Option<&'a str> {
        let end = self.0.find(|one| !kind(one)).unwrap_or(self.0.len());
        let (found, rest) = self.0.split_at(end);
        self.0 = rest;
        (1..=most).contains(&found.len()).then_some(found)
    }

    fn digits(&mut self, count: usize) -> Option<u32> {
        let found = self.0.get(..count)?;
        self.0 = &self.0[count..];
        let all = found.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| found.parse().ok())?
    }

    fn number(&mut self, digits: usize, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        self.digits(digits).filter(|number| range.contains(number))
    }

    /// PRI = "<" PRIVAL ">"; 1*3DIGIT, 0 .. 191, without leading zeros.
    fn priority(&mut self) -> Option<(u8, u8)> {
        self.literal("<")?;
        let digits = self.some(3, |one| one.is_ascii_digit())?;
        let value: u8 = digits.parse().ok()?;
        (value <= 191 && value.to_string() == digits).then_some(())?;
        self.literal(">")?;
        Some((value / 8, value % 8))
    }

    fn printable(&mut self, most: usize) -> Option<&'a str> {
        self.some(most, |one| ('!'..='~').contains(&one))
    }

    /// RFC 5424, section 6: the whole of its ABNF.
    fn rfc5424(&mut self) -> Option<Record> {
        let (facility, severity) = self.priority()?;
        self.literal("1 ")?;
        let before = self.0;
        self.timestamp()?;
        let time = before[..before.len() - self.0.len()].to_owned();
        self.literal(" ")?;
        let host = self.printable(255)?.to_owned();
        self.literal(" ")?;
        let tag = self.printable(48)?.to_owned();
        self.literal(" ")?;
        let pid = self.printable(128)?.parse().ok()?;
        self.literal(" ")?;
        self.printable(32)?;
        self.literal(" ")?;
        let data = self.structured_data()?;
        self.literal(" ")?;
        Some(Record {
            facility,
            severity,
            time,
            host: Some(host),
            tag,
            pid,
            data,
            message: self.0.to_owned(),
        })
    }

    fn timestamp(&mut self) -> Option<()> {
        self.number(4, 2020..=9999)?;
        self.literal("-")?;
        self.number(2, 1..=12)?;
        self.literal("-")?;
        self.number(2, 1..=31)?;
        self.literal("T")?;
        self.number(2, 0..=23)?;
        self.literal(":")?;
        self.number(2, 0..=59)?;
        self.literal(":")?;
        self.number(2, 0..=59)?;
        if self.literal(".").is_some() {
            self.some(6, |one| one.is_ascii_digit())?;
        }
        if self.literal("Z").is_some() {
            return Some(());
        }
        self.literal("+").or_else(|| self.literal("-"))?;
        self.number(2, 0..=23)?;
        self.literal(":")?;
        self.number(2, 0..=59).map(drop)
    }

    fn structured_data(&mut self) -> Option<Vec<(String, String)>> {
        if self.literal("-").is_some() {
            return Some(Vec::new());
        }
        let mut found = Vec::new();
        self.literal("[")?;
        let name = |one: char| ('!'..='~').contains(&one) && !"=]\"".contains(one);
        let id = self.some(32, name)?;
        // A name of one's own has an enterprise number behind one @ (6.3.2).
        let (_, number) = id.split_once('@')?;
        number.parse::<u32>().ok()?;
        while self.literal(" ").is_some() {
            let key = self.some(32, name)?.to_owned();
            self.literal("=\"")?;
            let value = self.some(100, |one| one.is_ascii_alphanumeric())?;
            self.literal("\"")?;
            found.push((key, value.to_owned()));
        }
        self.literal("]")?;
        Some(found)
    }

    /// RFC 3164, section 4.1, as daemons read it; the host is left out on the way to /dev/log.
    fn rfc3164(&mut self) -> Option<Record> {
        let (facility, severity) = self.priority()?;
        let time = self.0.get(..15)?.to_owned();
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        MONTHS.contains(&time.get(..3)?).then_some(())?;
        let day: u8 = time.get(4..6)?.trim_start().parse().ok()?;
        (1..=31).contains(&day).then_some(())?;
        let mut clock = Abnf(time.get(6..)?);
        clock.literal(" ")?;
        clock.number(2, 0..=23)?;
        clock.literal(":")?;
        clock.number(2, 0..=59)?;
        clock.literal(":")?;
        clock.number(2, 0..=60)?;
        self.0 = &self.0[15..];
        self.literal(" ")?;
        let head = self.0.split_once("]: ")?.0;
        let host = match head.split_once(' ') {
            Some((host, _)) => {
                self.literal(host)?;
                self.literal(" ")?;
                Some(host.to_owned())
            }
            None => None,
        };
        let tag = self.some(32, |one| {
            one.is_ascii_alphanumeric() || "._-/".contains(one)
        })?;
        self.literal("[")?;
        let pid = self.some(10, |one| one.is_ascii_digit())?.parse().ok()?;
        self.literal("]: ")?;
        Some(Record {
            facility,
            severity,
            time,
            host,
            tag: tag.to_owned(),
            pid,
            data: Vec::new(),
            message: self.0.to_owned(),
        })
    }
}

/// A server whose records go to a socket in its folder.
fn setup() -> (Setup, u16, PathBuf) {
    let port = ports::tcp();
    let setup = Server::setup().status_file().pid_file().port(port);
    let path = setup.folder().join("syslog");
    let option = format!("--syslog-address={}", path.display());
    let setup = setup
        .options(["--syslog=local3", "--syslog-tag=app"])
        .option(option)
        .worker(["--graceful"]);
    (setup, port, path)
}

/// Lets the worker write these very bytes.
fn write_raw(port: u16, stream: &str, bytes: &[u8]) {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    client::request(port, &format!("raw {stream} {hex}")).expect("the worker does not answer");
}

fn is_syslog_of_ours() -> bool {
    !original_differs("it has no --syslog")
}

// What a record says.

#[test]
fn every_record_has_facility_severity_tag_pid_and_generation() {
    if !is_syslog_of_ours() {
        return;
    }
    for (udp, rfc5424) in [(false, false), (true, false), (false, true), (true, true)] {
        let port = ports::tcp();
        let setup = Server::setup().status_file().port(port);
        let (daemon, address) = match udp {
            false => {
                let path = setup.folder().join("syslog");
                (Daemon::at(&path), path.display().to_string())
            }
            true => {
                let port = ports::udp();
                (Daemon::udp(port), format!("udp:127.0.0.1:{port}"))
            }
        };
        let failing = setup.folder().join("failing");
        let mut server = setup
            .options(["--syslog=local3", "--syslog-tag=app"])
            .option(format!("--syslog-address={address}"))
            .options(rfc5424.then_some("--syslog-format=rfc5424"))
            .interval("0.5")
            .worker([
                "--graceful".to_owned(),
                format!("--exit-if-exists={}", failing.display()),
            ])
            .start();
        let first = server.accepted().pid;
        let ours = server.pid().as_raw();
        let check = |text: &str, severity: u8, pid: i32, of: Option<(u32, &str)>| {
            let record = daemon.wait_for(text);
            let (message, data) = match of {
                None => (text.to_owned(), vec![]),
                Some((generation, _)) if !rfc5424 => (format!("gen {generation}: {text}"), vec![]),
                Some((generation, stream)) => {
                    let data = [
                        ("generation", generation.to_string()),
                        ("pid", pid.to_string()),
                        ("stream", stream.to_owned()),
                    ];
                    let data = data.map(|(name, value)| (name.to_owned(), value));
                    (text.to_owned(), data.to_vec())
                }
            };
            assert_eq!(
                record,
                Record {
                    facility: 19,
                    severity,
                    time: record.time.clone(),
                    host: (udp || rfc5424).then(host_name),
                    tag: "app".into(),
                    pid,
                    data,
                    message,
                }
            );
        };
        let start = format!("start_server (pid:{ours}) starting now...");
        check(&start, NOTICE, ours, None);
        check(&format!("starting new worker {first}"), INFO, ours, None);
        write(port, "stdout", "on standard output");
        write(port, "stderr", "on standard error");
        check(
            "on standard output",
            INFO,
            first.as_raw(),
            Some((1, "stdout")),
        );
        check(
            "on standard error",
            WARNING,
            first.as_raw(),
            Some((1, "stderr")),
        );

        fs::write(&failing, "").expect("cannot write a file");
        server.signal(Signal::SIGHUP);
        check("received HUP, spawning a new worker", NOTICE, ours, None);
        let second = server.wait_for_start(2).pid;
        let text = format!("new worker {second} seems to have failed to start, exit status:256");
        check(&text, ERROR, ours, None);
        fs::remove_file(&failing).expect("cannot remove a file");
        let third = server.restart();
        write(port, "stdout", "of a later one");
        let (generation, pid) = (third.generation, third.pid.as_raw());
        check("of a later one", INFO, pid, Some((generation, "stdout")));
        kill(third.pid, Signal::SIGKILL).expect("cannot kill the worker");
        let text = format!("worker {pid} died unexpectedly with status:9, restarting");
        check(&text, WARNING, ours, None);
        server.wait_for_service(generation + 1);
        assert!(server.stop().success());
        check("exiting", NOTICE, ours, None);
        assert!(
            !daemon.messages().iter().any(|text| text.contains("lost")),
            "{:#?}",
            daemon.messages()
        );
    }
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").expect("no name");
    name.trim_end().to_owned()
}

#[test]
fn a_failed_start_is_an_error_in_syslog() {
    if !is_syslog_of_ours() {
        return;
    }
    let (setup, port, path) = setup();
    let daemon = Daemon::at(&path);
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("cannot bind");
    let finished = setup.option("--quiet").run();
    assert_eq!(finished.status.code(), Some(1));
    let cause = format!("cannot listen on --port=127.0.0.1:{port}: Address already in use");
    let record = daemon.wait_for(&cause);
    assert_eq!(record.message, format!("start_server: {cause}"));
    assert_eq!(record.severity, ERROR);
    // What was asked for to be quiet does not hide why there is no server.
    let first = finished.log.lines().next().map(str::to_owned);
    assert_eq!(
        first,
        Some(format!("start_server: {cause}")),
        "{}",
        finished.log
    );
    drop(taken);
}

#[test]
fn a_record_of_rfc_3164_has_the_local_time() {
    if !is_syslog_of_ours() {
        return;
    }
    // Five hours and three quarters east of Greenwich, as in Nepal.
    const ZONE: &str = "ODD-5:45";
    let now = || {
        let output = Command::new("date")
            .arg("+%b %e %H:%M:%S")
            .envs([("TZ", ZONE), ("LC_ALL", "C")])
            .output_in_turn()
            .expect("cannot run date");
        let text = String::from_utf8(output.stdout).expect("text");
        text.trim_end().to_owned()
    };
    let (setup, port, path) = setup();
    let daemon = Daemon::at(&path);
    let server = setup.env("TZ", ZONE).start();
    server.accepted();
    let (before, after) = (now(), {
        write(port, "stdout", "what time is it?");
        daemon.wait_for("what time is it?");
        now()
    });
    let time = daemon.wait_for("what time is it?").time;
    assert!(before <= time && time <= after, "{before} {time} {after}");
}

// Lines.

#[test]
fn nothing_that_a_worker_writes_forges_a_record_or_an_escape_sequence() {
    if !is_syslog_of_ours() {
        return;
    }
    for format in ["rfc3164", "rfc5424"] {
        let (setup, port, path) = setup();
        let daemon = Daemon::at(&path);
        let server = setup.option(format!("--syslog-format={format}")).start();
        let worker = server.accepted().pid;
        write_raw(port, "stderr", b"a\0b\n<0>Jan  1 00:00:00 forged: c\n");
        write_raw(
            port,
            "stderr",
            b"<0>1 - - - - - - d\r\n\x1b]0;title\x07\x9b2J\x7f\n",
        );
        write_raw(
            port,
            "stderr",
            b"half \xe2\x82\n\xac and the rest\n\xff\xfe \xc2\x9b \xe2\x80\xae\n",
        );
        write_raw(
            port,
            "stderr",
            "gr\u{fc}\u{df}e \u{1f600} [x y=\"z\"] \\ %s\n\n".as_bytes(),
        );
        // A character that comes in two writes is one.
        write_raw(port, "stderr", b"\xe2\x82");
        write_raw(port, "stderr", b"\xac is whole\nlast");
        daemon.wait_for(" is whole");
        let expected = [
            r"a\x00b",
            "<0>Jan  1 00:00:00 forged: c",
            r"<0>1 - - - - - - d\x0D",
            r"\x1B]0;title\x07\x9B2J\x7F",
            r"half \xE2\x82",
            r"\xAC and the rest",
            r"\xFF\xFE \xC2\x9B \xE2\x80\xAE",
            "gr\u{fc}\u{df}e \u{1f600} [x y=\"z\"] \\ %s",
            "",
            "\u{20ac} is whole",
        ];
        let of_worker = || {
            let records = daemon.records();
            let mut records = records
                .into_iter()
                .filter(|one| one.pid == worker.as_raw())
                .map(|one| {
                    assert_eq!((one.facility, one.severity), (19, WARNING));
                    let text = one.message.strip_prefix("gen 1: ");
                    text.map_or(one.message.clone(), str::to_owned)
                })
                .collect::<Vec<String>>();
            records.dedup();
            records
        };
        assert_eq!(of_worker(), expected);
        // A last line without end comes when the worker has ended.
        server.restart();
        daemon.wait_for("last");
        assert_eq!(of_worker().last().map(String::as_str), Some("last"));
    }
}

#[test]
fn a_long_line_comes_in_marked_pieces_and_lacks_nothing() {
    if !is_syslog_of_ours() {
        return;
    }
    for format in ["rfc3164", "rfc5424"] {
        let (setup, port, path) = setup();
        let daemon = Daemon::at(&path);
        let server = setup.option(format!("--syslog-format={format}")).start();
        let worker = server.accepted().pid;
        // Three bytes each, so that no cut comes out by chance.
        let line = "\u{20ac}".repeat(100 * 1024 / 3);
        write(port, "stdout", &line);
        write(port, "stdout", "after it");
        daemon.wait_for("after it");
        let records = daemon.records();
        let pieces: Vec<String> = records
            .into_iter()
            .filter(|one| one.pid == worker.as_raw())
            .map(|one| one.message)
            .map(|text| text.strip_prefix("gen 1: ").unwrap_or(&text).to_owned())
            .collect();
        let (last, pieces) = pieces.split_last().expect("no record");
        assert_eq!(last, "after it");
        assert!((13..=15).contains(&pieces.len()), "{}", pieces.len());
        let whole: String = pieces
            .iter()
            .map(|piece| piece.trim_start_matches("[...]"))
            .map(|piece| piece.trim_end_matches("[...]"))
            .collect();
        assert_eq!(whole, line);
        let (last, others) = pieces.split_last().expect("no piece");
        assert!(others.iter().all(|piece| piece.ends_with("[...]")));
        assert!(!last.ends_with("[...]"));
        assert!(pieces[1..].iter().all(|piece| piece.starts_with("[...]")));
    }
}

#[test]
fn the_last_lines_of_a_worker_come_before_the_notice_of_its_death() {
    if !is_syslog_of_ours() {
        return;
    }
    const COUNT: usize = 2000;
    let (setup, port, path) = setup();
    let daemon = Daemon::at(&path);
    let server = setup.start();
    let worker = server.accepted().pid;
    // Both happen before it can see either.
    proc::stop(server.pid());
    burst(port, COUNT, 80, "stderr");
    kill(worker, Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_until("the worker is gone", |_| !proc::alive(worker));
    server.signal(Signal::SIGCONT);
    let death = format!("worker {worker} died unexpectedly with status:9, restarting");
    daemon.wait_for(&death);
    let messages = daemon.messages();
    let before = messages.iter().take_while(|text| **text != death);
    let numbers = before.filter_map(|text| number_in(text));
    assert!(numbers.eq(1..=COUNT), "{messages:#?}");
}

// A daemon that is not as it should be.

#[test]
fn a_burst_arrives_in_order_where_the_daemon_keeps_up() {
    if !is_syslog_of_ours() {
        return;
    }
    let (setup, port, path) = setup();
    let daemon = Daemon::at(&path);
    let server = setup.start();
    server.accepted();
    const COUNT: usize = 100_000;
    let written = std::thread::spawn(move || {
        burst(port, COUNT, 80, "stdout");
        write(port, "stdout", "the end");
    });
    let (numbers, lost) = daemon.read_burst(": the end");
    written.join().expect("the client panicked");
    assert_eq!(lost, 0);
    assert!(numbers.iter().copied().eq(1..=COUNT), "{}", numbers.len());
}

#[test]
fn what_a_stopped_daemon_loses_is_counted_and_the_order_is_kept() {
    if !is_syslog_of_ours() {
        return;
    }
    let (setup, port, path) = setup();
    let daemon = Daemon::at(&path);
    let server = setup.start();
    server.accepted();
    const COUNT: usize = 400_000;
    // Nobody reads meanwhile.
    burst(port, COUNT, 100, "stdout");
    let text = "received USR1, but there is no log file to reopen";
    daemon.read();
    // Room again, so that this one finds its place behind the count.
    let (numbers, lost) =
        daemon.read_numbers(|numbers, lost, _| numbers.len() as u64 + lost >= COUNT as u64);
    assert_eq!(numbers.len() as u64 + lost, COUNT as u64);
    assert!(lost > 0, "the burst was too small to lose anything");
    assert!(numbers.len() > 50_000, "only {} were kept", numbers.len());
    assert!(numbers.is_sorted());
    server.signal(Signal::SIGUSR1);
    daemon.wait_for(text);
    assert_eq!(
        lost,
        daemon
            .messages()
            .iter()
            .map(|text| told_lost(text))
            .sum::<u64>()
    );
}

#[test]
fn a_daemon_that_is_too_slow_is_told_of_losses_now_and_then_and_not_at_every_line() {
    if !is_syslog_of_ours() {
        return;
    }
    let (setup, port, path) = setup();
    let daemon = Daemon::at(&path);
    let server = setup.start();
    server.accepted();
    // Of long lines fewer can wait: each few that are read take two switches between processes.
    burst(port, 5000, 7900, "stdout");
    let flow = Flow::start(port, 7900, "stdout", 0);
    let mut read = 0;
    let mut told = 0;
    let mut buffer = [0; 9000];
    let Socket::Unix(socket) = &daemon.socket else {
        panic!("the daemon is at a path");
    };
    // In the end it has read more than can wait at a time.
    for share in 1..=10 {
        wait::until(
            "the daemon has read another share",
            || format!("{share} of 10"),
            || {
                // At its own pace, and yet too slow: it reads some each time the sender writes.
                for _ in 0..500 {
                    let Ok(length) = socket.recv(&mut buffer) else {
                        std::thread::yield_now();
                        continue;
                    };
                    read += 1;
                    told += usize::from(told_lost(&Record::parse(&buffer[..length]).message) > 0);
                }
                (read > 240 * share).then_some(())
            },
        );
    }
    flow.end();
    assert!((1..20).contains(&told), "{told} of {read} records");
}

#[test]
fn a_socket_that_is_missing_at_the_start_is_said_once_and_found_later() {
    if !is_syslog_of_ours() {
        return;
    }
    let (setup, port, path) = setup();
    let server = setup.start();
    server.accepted();
    let notice = format!(
        "start_server: cannot reach syslog at {}: No such file or directory; will keep trying",
        path.display()
    );
    server.wait_for_log(&notice);
    let hint = "hint: no syslog daemon has created that socket: start one, or give the address of another with \
                --syslog-address";
    server.wait_for_log(hint);
    write(port, "stdout", "before there was a daemon");
    // Some tries more.
    let_pass(Duration::from_millis(2500));
    let began = Instant::now();
    let daemon = Daemon::at(&path);
    daemon.wait_for("before there was a daemon");
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(server.count_in_log("cannot reach syslog"), 1);
    let messages = daemon.messages();
    let start = format!("start_server (pid:{}) starting now...", server.pid());
    assert_eq!(messages.first(), Some(&start));
    write(port, "stdout", "after");
    daemon.wait_for("after");
}

#[test]
fn what_never_reaches_syslog_is_counted_at_the_end() {
    if !is_syslog_of_ours() {
        return;
    }
    let (setup, port, _) = setup();
    let mut server = setup.start();
    server.accepted();
    for line in 0..5 {
        write(port, "stdout", &format!("line {line}"));
    }
    assert!(server.stop().success());
    // Five, and what start_server has said itself.
    let own = server.log().lines().count() - 1;
    let expected = format!(
        "start_server: {} lines have not reached syslog and are lost",
        own + 5
    );
    assert_eq!(server.log().lines().last(), Some(expected.as_str()));
}

#[test]
fn a_daemon_that_is_replaced_gets_what_follows_and_nothing_is_lost() {
    if !is_syslog_of_ours() {
        return;
    }
    let (setup, port, path) = setup();
    let mut daemon = Daemon::at(&path);
    let server = setup.start();
    server.accepted();
    for round in 0..3 {
        write(port, "stdout", &format!("first of round {round}"));
        daemon.wait_for(&format!("first of round {round}"));
        daemon.end(&path);
        if round > 0 {
            // Nobody is there for a while.
            for line in 0..50 {
                write(port, "stdout", &format!("gap {line}"));
            }
            server.wait_for_log_times(round, "cannot reach syslog");
        }
        fs::remove_file(&path).expect("cannot remove the socket");
        let began = Instant::now();
        daemon = Daemon::at(&path);
        write(port, "stdout", "for the next one");
        daemon.wait_for("for the next one");
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
        let messages = daemon.messages();
        let gap = messages.iter().filter(|text| text.contains("gap "));
        let expected = if round > 0 { 50 } else { 0 };
        assert_eq!(gap.count(), expected, "{messages:#?}\n{}", server.log());
    }
    assert_eq!(server.count_in_log("cannot reach syslog"), 2);
}

#[test]
fn a_udp_port_where_nobody_listens_is_said_once_and_found_later() {
    if !is_syslog_of_ours() {
        return;
    }
    let (port, log_port) = (ports::tcp(), ports::udp());
    let server = Server::setup()
        .status_file()
        .port(port)
        .options(["--syslog", "--syslog-tag=app"])
        .option(format!("--syslog-address=udp:127.0.0.1:{log_port}"))
        .worker(["--graceful"])
        .start();
    server.accepted();
    let began = Instant::now();
    let mut number = 0;
    // Lines all the time, for several tries.
    while began.elapsed() < Duration::from_millis(3500) {
        number += 1;
        write(port, "stdout", &format!("line {number}."));
        // All of them fit into the socket of the next daemon.
        let_pass(Duration::from_millis(30));
    }
    let daemon = Daemon::udp(log_port);
    let began = Instant::now();
    write(port, "stdout", "now");
    daemon.wait_for("now");
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let said = format!(
        "start_server: cannot reach syslog at udp:127.0.0.1:{log_port}: Connection refused; will keep trying"
    );
    let hint = "hint: no syslog daemon is running there";
    assert_eq!(server.count_in_log("cannot reach syslog"), 1);
    assert_eq!(server.count_in_log(hint), 1);
    assert_eq!(server.count_in_log(&said), 1);
    let messages = daemon.messages();
    let start = format!("start_server (pid:{}) starting now...", server.pid());
    assert_eq!(messages.first(), Some(&start));
    let lines: Vec<&String> = messages
        .iter()
        .filter(|text| text.contains("line "))
        .collect();
    let expected: Vec<String> = (1..=number)
        .map(|one| format!("gen 1: line {one}."))
        .collect();
    assert!(
        lines.iter().copied().eq(&expected),
        "{} of {number}",
        lines.len()
    );
}

// What it costs.

#[test]
fn a_daemon_that_is_gone_is_looked_for_once_a_second_and_not_at_all_when_nothing_is_to_be_said() {
    if !is_syslog_of_ours() {
        return;
    }
    let (setup, port, path) = setup();
    let server = setup.start();
    server.accepted();
    write(port, "stdout", "waits");
    let wakes = |period| {
        let waits = || proc::status(server.pid()).expect("it has ended").waits;
        let before = waits();
        let_pass(period);
        waits() - before
    };
    // Once a second, and once more where these three begin or end.
    let woken = wakes(Duration::from_secs(3));
    assert!((2..=5).contains(&woken), "it woke up {woken} times in 3 s");
    let daemon = Daemon::at(&path);
    daemon.wait_for("waits");
    // Some seconds after the commit it looks once at the queues of its listeners.
    server.wait_until("the server is idle for two seconds", |_| {
        wakes(Duration::from_secs(2)) == 0
    });
    write(port, "stdout", "still there");
    daemon.wait_for("still there");
}

#[test]
fn memory_stays_bounded_when_the_daemon_is_gone_and_a_worker_writes_very_much() {
    if !is_syslog_of_ours() {
        return;
    }
    // Long lines and short ones, and one that never ends.
    let (setup, port, _) = setup();
    let server = setup.start();
    server.accepted();
    for (count, length) in [(60_000, 4000), (60_000, 1000), (400_000, 12)] {
        burst(port, count, length, "stdout");
        let memory = proc::memory(server.pid()).map(|memory| memory.resident);
        assert!(memory.is_none_or(|kib| kib < 40 * 1024), "{memory:?} KiB");
    }
    // By a pipe of its own, which is empty as long as nobody reads too little of it.
    let memory = || proc::memory(server.pid()).map(|memory| memory.resident);
    let before = memory();
    for _ in 0..20 {
        write_raw(port, "stderr", &[b'x'; 400_000]);
    }
    assert!(
        before
            .zip(memory())
            .is_none_or(|(before, now)| now < before + 2048)
    );
}

#[test]
fn a_daemon_that_does_not_read_makes_no_writer_wait_and_no_restart() {
    if !is_syslog_of_ours() {
        return;
    }
    let (setup, port, path) = setup();
    let daemon = Daemon::at(&path);
    let mut server = setup.start();
    server.accepted();
    const COUNT: usize = 60_000;
    let live = {
        let written = std::thread::spawn(move || {
            let slowest = burst(port, COUNT, 100, "stdout");
            write(port, "stdout", "the end");
            slowest
        });
        daemon.read_burst(": the end");
        written.join().expect("the client panicked")
    };
    // From here on nobody reads.
    // A loaded machine can hold up anybody once.
    let slowest = (0..4).map(|_| burst(port, COUNT, 100, "stdout")).min();
    assert!(
        slowest.is_some_and(|slowest| slowest < live + Duration::from_millis(100)),
        "{slowest:?}, with a live reader {live:?}"
    );
    let flow = Flow::start(port, 100, "stdout", 0);
    let began = Instant::now();
    server.signal(Signal::SIGHUP);
    server.wait_for_log("new worker is now running, sending TERM to old workers");
    let restart = began.elapsed();
    assert!(restart < Duration::from_secs(2), "{restart:?}");
    flow.end();
    server.wait_for_generations(&[2]);
    let flow = Flow::start(port, 100, "stderr", 0);
    server.signal(Signal::SIGTERM);
    let began = Instant::now();
    server.wait_until("it is told to stop", |server| {
        server.count_in_log("received TERM") == 1
    });
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    flow.end();
    // The end is not held up either.
    let began = Instant::now();
    assert!(server.wait_exit().success());
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    drop(daemon);
}

#[test]
fn a_long_queue_holds_no_writer_up_when_the_daemon_is_back() {
    if !is_syslog_of_ours() {
        return;
    }
    // A loaded machine can hold up anybody once.
    let tries: Vec<(Duration, Duration)> = (0..4).map(|_| slowest_when_it_is_back()).collect();
    assert!(
        tries
            .iter()
            .any(|(back, gone)| *back <= *gone + Duration::from_millis(100)),
        "when it is back, and when nobody is there: {tries:?}"
    );
}

/// The slowest write of a worker when the daemon is back, and while it was gone.
fn slowest_when_it_is_back() -> (Duration, Duration) {
    let (port, log_port) = (ports::tcp(), ports::udp());
    let server = Server::setup()
        .status_file()
        .port(port)
        .options(["--syslog", "--syslog-tag=app"])
        .option(format!("--syslog-address=udp:127.0.0.1:{log_port}"))
        .worker(["--graceful"])
        .start();
    server.accepted();
    // As many as can wait.
    let gone = burst(port, 150_000, 100, "stdout");
    let flow = Flow::start(port, 100, "stderr", 0);
    // All at once: nothing stops a sender of datagrams.
    let daemon = Daemon::udp(log_port);
    wait::until("it gets records", String::new, || {
        daemon.read();
        (daemon.seen().len() > 10_000).then_some(())
    });
    (flow.end().slowest, gone)
}

#[test]
fn the_status_file_says_where_output_goes() {
    if !is_syslog_of_ours() {
        return;
    }
    let (setup, _, address) = setup();
    let server = setup
        .options([
            "--syslog=local3",
            "--syslog-tag=app",
            "--log-file=| exec cat >/dev/null",
        ])
        .option(format!("--syslog-address={}", address.display()))
        .options(["--log-timestamps", "--status-file=status"])
        .start();
    server.accepted();
    let text = fs::read_to_string(server.folder().join("status.json")).expect("no status file");
    let status: serde_json::Value = serde_json::from_str(&text).expect("not JSON");
    let options = &status["options"];
    assert_eq!(options["log_file"], "| exec cat >/dev/null");
    assert_eq!(options["log_timestamps"], true);
    let syslog = serde_json::json!({
        "facility": "local3",
        "tag": "app",
        "address": address.display().to_string(),
    });
    assert_eq!(options["syslog"], syslog);
}
