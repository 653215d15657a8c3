//! The fixture worker: serves every listener that it gets, and reports on itself to whoever asks.
//!
//! It judges what start_server handed over, so it finds its listeners by itself, and it has no Rust `main`: Rust's
//! runtime ignores SIGPIPE and opens missing standard descriptors before `main`, which would hide both.
//! Everything that a report tells was read before anything else was opened or changed.
//!
//! Arguments, in any combination, done in the order of this list; others are reported and otherwise ignored:
//!
//! * `--journal=FILE` append `GENERATION PID started`, later `.. serves`, `.. SIGNAL` for each caught signal, and
//!   `.. drains` when it has stopped accepting
//! * `--report=FILE` append the report as one line: for workers that nobody can connect to
//! * `--sink=FILE` be a log command instead of a worker: append standard input to the file until it ends, without ever
//!   reading it into memory, so that a kill loses no byte
//! * `--last-words=COUNT` write `last word NUMBER` to standard error this many times
//! * `--exit=CODE` end at once
//! * `--exit-if-exists=FILE` end with status 1 when there is such a file
//! * `--say=TEXT` send a notification to NOTIFY_SOCKET, or where `--say-to=ADDRESS` says, with a line feed for each
//!   semicolon
//! * `--hold=FIFO` go on only when somebody has opened the FIFO for writing and closed it again
//! * `--ignore=TERM,HUP` ignore these signals
//! * `--catch=USR1,WINCH` write these signals to the journal and go on
//! * `--graceful` at TERM, stop accepting, answer every accepted connection, and end with status 0. Without this TERM
//!   has its default action
//! * `--unlink-at-term`, `--shutdown-at-term`: with `--graceful`, remove the file of each unix listener, or shut down every
//!   stream listener, before that
//! * `--unlink-at-start` remove the file of each unix listener
//! * `--notify` send READY=1 to NOTIFY_SOCKET
//!
//! Requests, one line on a connection, or a datagram; the answer is one line, and the connection is closed:
//!
//! * `report`, or nothing: the report
//! * `ping`: the pid
//! * `hold`: answers `holding`, waits for one more line, then reports (not for datagrams)
//! * `say TEXT`, `say-to ADDRESS TEXT`: sends a notification, to NOTIFY_SOCKET or another address
//! * `say-and-exit ADDRESS TEXT`: the same by a process that is gone when this is answered
//! * `GET PATH ...`: an HTTP answer. `/exists/FILE` is 200 if the file exists and 503 if not, `/garbage` is not HTTP,
//!   `/fields` has a head without end, `/half` ends within the head, `/silent` is never answered, `/moved` is 301
//! * `exit CODE`: ends at once, without an answer
//! * `shutdown KEY`, `connect KEY`, `listen KEY BACKLOG`: these system calls on the listener with this key, which is
//!   shut down for both ways, or connected to a port of the loopback interface that nobody has
//! * `stdout TEXT`, `stderr TEXT`: writes the line there
//! * `raw STREAM HEX`: writes these bytes to `stdout` or `stderr`
//! * `burst COUNT LENGTH STREAM`: writes this many lines of this length (with its end), `GENERATION NUMBER ...`, each
//!   with a write(2) of its own; answers how many microseconds the slowest took
//! * `flow LENGTH STREAM MICROSECONDS`: answers `flowing`, then does the same, with this pause after each line, until one
//!   more line or the end comes on the connection (not for datagrams); answers `COUNT SLOWEST FAILED`, the last being
//!   writes that failed

#![no_main]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, ffi, mem, process, ptr};

use e2e::journal::{Entry, Happened};
use e2e::proc::Status;
use e2e::report::{Listener, Report, Socket};
use e2e::start::InTurn;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, SockaddrIn, SockaddrLike,
    SockaddrStorage, accept4, connect, getsockname, getsockopt, listen, recvfrom, sendto, shutdown,
    sockopt,
};
use nix::unistd::getpgrp;

/// Gets a thread out of accept(2).
const INTERRUPT: Signal = Signal::SIGURG;

/// Set when no thread is to accept any more.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// How many connections are accepted and not yet answered.
static OPEN: AtomicUsize = AtomicUsize::new(0);

#[expect(
    unsafe_code,
    reason = "the C runtime looks for a function of this name"
)]
#[unsafe(no_mangle)]
extern "C" fn main(_argc: ffi::c_int, _argv: *const *const ffi::c_char) -> ffi::c_int {
    // Leaked, since its threads use it until the process ends.
    let worker: &'static Worker = Box::leak(Box::new(Worker::look()));
    worker.run()
}

/// The worker as it was executed, and what it is to do.
struct Worker {
    as_executed: Report,
    options: Options,
}

#[derive(Default)]
struct Options {
    journal: Option<String>,
    report: Option<String>,
    sink: Option<String>,
    last_words: usize,
    exit: Option<i32>,
    exit_if_exists: Option<String>,
    say: Option<String>,
    say_to: Option<String>,
    hold: Option<String>,
    ignore: Vec<Signal>,
    catch: Vec<Signal>,
    graceful: bool,
    unlink_at_term: bool,
    shutdown_at_term: bool,
    unlink_at_start: bool,
    notify: bool,
}

impl Options {
    fn parse(args: &[String]) -> Options {
        let mut options = Options::default();
        for arg in args {
            let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
            match name {
                "--journal" => options.journal = Some(value.to_owned()),
                "--report" => options.report = Some(value.to_owned()),
                "--sink" => options.sink = Some(value.to_owned()),
                "--last-words" => options.last_words = value.parse().expect("--last-words=COUNT"),
                "--exit" => options.exit = Some(value.parse().expect("--exit=CODE")),
                "--exit-if-exists" => options.exit_if_exists = Some(value.to_owned()),
                "--say" => options.say = Some(value.to_owned()),
                "--say-to" => options.say_to = Some(value.to_owned()),
                "--hold" => options.hold = Some(value.to_owned()),
                "--ignore" => options.ignore = signals(value),
                "--catch" => options.catch = signals(value),
                "--graceful" => options.graceful = true,
                "--unlink-at-term" => options.unlink_at_term = true,
                "--shutdown-at-term" => options.shutdown_at_term = true,
                "--unlink-at-start" => options.unlink_at_start = true,
                "--notify" => options.notify = true,
                _ => {}
            }
        }
        options
    }
}

fn signals(list: &str) -> Vec<Signal> {
    list.split(',')
        .map(|name| format!("SIG{name}").parse().expect("the name of a signal"))
        .collect()
}

impl Worker {
    /// Reads everything, changes nothing.
    fn look() -> Worker {
        let descriptors = open_descriptors();
        let status = Status::parse(
            &fs::read_to_string("/proc/self/status").expect("cannot read /proc/self/status"),
        );
        let environment: BTreeMap<String, String> = env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .collect();
        let args: Vec<String> = env::args_os()
            .skip(1)
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        let options = Options::parse(&args);
        let as_executed = Report {
            generation: environment
                .get("SERVER_STARTER_GENERATION")
                .and_then(|text| text.parse().ok()),
            pid: process::id().cast_signed(),
            ppid: status.ppid,
            process_group: getpgrp().as_raw(),
            args,
            cwd: env::current_dir()
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
            listeners: environment
                .get("SERVER_STARTER_PORT")
                .map(|text| listeners(text))
                .unwrap_or_default(),
            environment,
            status,
            nofile: getrlimit(Resource::RLIMIT_NOFILE).expect("cannot read the limit"),
            descriptors,
        };
        Worker {
            as_executed,
            options,
        }
    }

    fn run(&'static self) -> ffi::c_int {
        let options = &self.options;
        if let Some(file) = &options.sink {
            return sink(file);
        }
        self.note(Happened::Started);
        if let Some(file) = &options.report {
            append(file, &self.report());
        }
        for number in 1..=options.last_words {
            write_line(2, &format!("last word {number}"));
        }
        if let Some(text) = &options.say {
            say(&options.say_to.clone().unwrap_or_else(own_address), text);
        }
        if let Some(code) = options.exit {
            return code;
        }
        if options
            .exit_if_exists
            .as_ref()
            .is_some_and(|file| fs::exists(file).expect("cannot look for the file"))
        {
            return 1;
        }
        if let Some(fifo) = &options.hold {
            fs::read(fifo).expect("cannot read the FIFO");
        }
        // Before the first thread, so that all of them inherit the mask and the signals wait for `wait` below.
        let mut caught: SigSet = options.catch.iter().copied().collect();
        if options.graceful {
            caught.add(Signal::SIGTERM);
            act_on(INTERRUPT, SigHandler::Handler(do_nothing));
        }
        caught.thread_block().expect("cannot block signals");
        for &signal in &options.ignore {
            act_on(signal, SigHandler::SigIgn);
        }

        if options.unlink_at_start {
            self.unlink();
        }
        let mut accepting: Vec<_> = self
            .as_executed
            .listeners
            .iter()
            .filter_map(|it| self.serve(it))
            .collect();
        if options.notify {
            say(&own_address(), "READY=1");
        }
        self.note(Happened::Served);
        loop {
            let signal = caught.wait().expect("cannot wait for signals");
            self.note(Happened::Caught(signal.as_str().to_owned()));
            if signal == Signal::SIGTERM
                && options.graceful
                && !STOPPING.swap(true, Ordering::SeqCst)
            {
                if options.unlink_at_term {
                    self.unlink();
                }
                if options.shutdown_at_term {
                    self.shut_down();
                }
                let accepting = mem::take(&mut accepting);
                // Alongside this loop, which has further signals to write down.
                spawn(move || self.drain(&accepting));
            }
        }
    }

    /// As servers do that believe they created the socket themselves.
    fn unlink(&self) {
        for Listener { name, socket, .. } in &self.as_executed.listeners {
            if socket.as_ref().is_ok_and(|socket| socket.family == "unix") {
                // It may be gone.
                drop(fs::remove_file(name));
            }
        }
    }

    fn shut_down(&self) {
        for Listener { fd, socket, .. } in &self.as_executed.listeners {
            if socket.as_ref().is_ok_and(|socket| socket.listening) {
                shutdown(*fd, Shutdown::Both).expect("shutdown");
            }
        }
    }

    fn descriptor(&self, key: &str) -> RawFd {
        let mut listeners = self.as_executed.listeners.iter();
        let found = listeners.find(|listener| listener.name == key);
        found.unwrap_or_else(|| panic!("no listener {key}")).fd
    }

    fn listen(&self, words: &str) {
        let (key, backlog) = words.split_once(' ').expect("listen KEY BACKLOG");
        let backlog = Backlog::new(backlog.parse::<i32>().expect("a number")).expect("a backlog");
        listen(&borrow(self.descriptor(key)), backlog).expect("listen");
    }

    /// Ends the process when every accepted connection is answered.
    fn drain(&self, accepting: &[JoinHandle<()>]) -> ! {
        for thread in accepting {
            // Again and again: the signal is lost on a thread that is just about to enter accept.
            while !thread.is_finished() {
                interrupt(thread);
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.note(Happened::Drains);
        while OPEN.load(Ordering::SeqCst) > 0 {
            thread::sleep(Duration::from_millis(1));
        }
        process::exit(0);
    }

    fn note(&self, happened: Happened) {
        if let Some(file) = &self.options.journal {
            let Report {
                generation, pid, ..
            } = self.as_executed;
            append(
                file,
                &Entry {
                    generation: generation.unwrap_or(0),
                    pid,
                    happened,
                }
                .to_string(),
            );
        }
    }

    fn report(&self) -> String {
        serde_json::to_string(&self.as_executed).expect("a report is plain data")
    }

    /// One thread for each listener, which blocks in accept: several workers share the listener, so a poll before
    /// it would not tell who gets the connection, and O_NONBLOCK would be set for all of them.
    fn serve(&'static self, listener: &Listener) -> Option<JoinHandle<()>> {
        let fd = listener.fd;
        let socket = listener.socket.as_ref().ok()?;
        match socket.kind.as_str() {
            "datagram" => {
                // Not among those that are drained: a datagram is answered at once or is still in the socket.
                drop(spawn(move || self.answer_datagrams(fd)));
                None
            }
            _ if socket.listening => Some(spawn(move || self.accept_connections(fd))),
            _ => None,
        }
    }

    fn accept_connections(&'static self, listener: RawFd) {
        while !STOPPING.load(Ordering::SeqCst) {
            match accept4(listener, SockFlag::SOCK_CLOEXEC) {
                Ok(connection) => {
                    OPEN.fetch_add(1, Ordering::SeqCst);
                    self.answer(File::from(own(connection)));
                }
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                // A listener that somebody has made non-blocking.
                Err(Errno::EAGAIN) => wait_for(listener),
                // Somebody has shut it down, and somebody else may let it listen again.
                Err(Errno::EINVAL) => thread::sleep(Duration::from_millis(1)),
                Err(errno) => panic!("accept on descriptor {listener}: {errno}"),
            }
        }
    }

    fn answer(&'static self, connection: File) {
        let mut reader = BufReader::new(connection);
        let mut request = String::new();
        // A client that goes away is its own affair, here and below.
        drop(reader.read_line(&mut request));
        // Other requests must not wait for those that take long.
        match request.split_whitespace().next() {
            Some("hold") => drop(spawn(move || {
                drop(reader.get_mut().write_all(b"holding\n"));
                drop(reader.read_line(&mut String::new()));
                self.close(reader, "report");
            })),
            Some("flow") => drop(spawn(move || self.flow(reader, request.trim_end()))),
            Some("GET") => drop(spawn(move || answer_http(reader, &request))),
            Some("burst") => drop(spawn(move || self.close(reader, request.trim_end()))),
            _ => self.close(reader, request.trim_end()),
        }
    }

    fn flow(&self, mut reader: BufReader<File>, request: &str) {
        drop(reader.get_mut().write_all(b"flowing\n"));
        let stopped = Arc::new(AtomicBool::new(false));
        let connection = reader.get_ref().try_clone().expect("cannot duplicate");
        let until = Arc::clone(&stopped);
        drop(spawn(move || {
            drop(reader.read_line(&mut String::new()));
            until.store(true, Ordering::SeqCst);
        }));
        let words: Vec<&str> = request.split(' ').collect();
        let [_, length, stream, pause] = words[..] else {
            panic!("flow LENGTH STREAM MICROSECONDS");
        };
        let pause = Duration::from_micros(pause.parse().expect("microseconds"));
        let mut flow = Flow::new(self, length, stream);
        while !stopped.load(Ordering::SeqCst) {
            flow.write();
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
        let Flow {
            count,
            slowest,
            failed,
            ..
        } = flow;
        let answer = format!("{count} {} {failed}", slowest.as_micros());
        self.close_with(BufReader::new(connection), &answer);
    }

    fn burst(&self, words: &str) -> String {
        let words: Vec<&str> = words.split(' ').collect();
        let [count, length, stream] = words[..] else {
            panic!("burst COUNT LENGTH STREAM");
        };
        let mut flow = Flow::new(self, length, stream);
        for _ in 0..count.parse().expect("a count") {
            flow.write();
        }
        flow.slowest.as_micros().to_string()
    }

    fn close(&self, reader: BufReader<File>, request: &str) {
        self.close_with(reader, &self.perform(request));
    }

    fn close_with(&self, mut reader: BufReader<File>, answer: &str) {
        drop(reader.get_mut().write_all(format!("{answer}\n").as_bytes()));
        drop(reader);
        OPEN.fetch_sub(1, Ordering::SeqCst);
    }

    fn answer_datagrams(&self, socket: RawFd) {
        let mut buffer = [0; 4096];
        loop {
            match recvfrom::<SockaddrStorage>(socket, &mut buffer) {
                Ok((length, Some(client))) => {
                    let answer =
                        self.perform(String::from_utf8_lossy(&buffer[..length]).trim_end());
                    // A client that goes away is its own affair.
                    let _ = sendto(socket, answer.as_bytes(), &client, MsgFlags::empty());
                }
                Ok((_, None)) | Err(Errno::EINTR) => {}
                Err(errno) => panic!("recvfrom on descriptor {socket}: {errno}"),
            }
        }
    }

    fn perform(&self, request: &str) -> String {
        let (word, rest) = request.split_once(' ').unwrap_or((request, ""));
        match word {
            "" | "report" => return self.report(),
            "exit" => process::exit(rest.parse().expect("exit CODE")),
            "shutdown" => {
                // For a UDP socket it reports that it is not connected, but works.
                let _ = shutdown(self.descriptor(rest), Shutdown::Both);
            }
            "connect" => {
                let nobody = SockaddrIn::new(127, 0, 0, 1, 1);
                connect(self.descriptor(rest), &nobody).expect("connect");
            }
            "listen" => self.listen(rest),
            "stdout" => write_line(1, rest),
            "stderr" => write_line(2, rest),
            "raw" => write_hex(rest),
            "burst" => return self.burst(rest),
            "say" => say(&own_address(), rest),
            "say-to" => {
                let (address, text) = rest.split_once(' ').expect("say-to ADDRESS TEXT");
                say(address, text);
            }
            "say-and-exit" => {
                let (address, text) = rest.split_once(' ').expect("say-and-exit ADDRESS TEXT");
                std::process::Command::new("/proc/self/exe")
                    .arg(format!("--say-to={address}"))
                    .arg(format!("--say={text}"))
                    .arg("--exit=0")
                    .status_in_turn()
                    .expect("cannot run a process");
            }
            "ping" => {}
            _ => return format!("no such request: {request}"),
        }
        process::id().to_string()
    }
}

/// Numbered lines, each written on its own.
struct Flow {
    generation: u32,
    length: usize,
    /// What a line ends with.
    rest: String,
    descriptor: RawFd,
    count: usize,
    slowest: Duration,
    failed: usize,
}

impl Flow {
    fn new(worker: &Worker, length: &str, stream: &str) -> Flow {
        let length = length.parse().expect("a length");
        Flow {
            generation: worker.as_executed.generation.unwrap_or(0),
            length,
            rest: ".".repeat(length - 1) + "\n",
            descriptor: descriptor_of(stream),
            count: 0,
            slowest: Duration::ZERO,
            failed: 0,
        }
    }

    fn write(&mut self) {
        self.count += 1;
        let start = format!("{} {:08} ", self.generation, self.count);
        let length = self.length.saturating_sub(start.len());
        let line = start + &self.rest[self.rest.len() - length..];
        let began = Instant::now();
        let written = write_whole(self.descriptor, line.as_bytes());
        self.slowest = self.slowest.max(began.elapsed());
        self.failed += usize::from(written.is_err());
    }
}

fn descriptor_of(stream: &str) -> RawFd {
    match stream {
        "stdout" => 1,
        "stderr" => 2,
        _ => panic!("no stream: {stream}"),
    }
}

fn write_whole(descriptor: RawFd, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(borrow(descriptor), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn write_hex(words: &str) {
    let (stream, hex) = words.split_once(' ').expect("raw STREAM HEX");
    let digits: Vec<char> = hex.chars().collect();
    let byte = |pair: &[char]| {
        let text: String = pair.iter().collect();
        u8::from_str_radix(&text, 16).expect("hexadecimal digits")
    };
    let bytes: Vec<u8> = digits.chunks(2).map(byte).collect();
    // Whoever closed the other end does not want it.
    let _ = write_whole(descriptor_of(stream), &bytes);
}

/// The log command.
fn sink(file: &str) -> ffi::c_int {
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(file)
        .expect("cannot open the file");
    // splice(2) takes no file that was opened to append. There is one command at a time.
    file.seek(SeekFrom::End(0)).expect("cannot find the end");
    loop {
        match move_on(&file) {
            Ok(0) => return 0,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => panic!("cannot move what was written: {errno}"),
        }
    }
}

#[expect(unsafe_code, reason = "splice(2)")]
fn move_on(file: &File) -> nix::Result<isize> {
    let (none, most) = (ptr::null_mut(), 1 << 20);
    // SAFETY: both descriptors are open, and it touches no memory of the process without offsets.
    let moved = unsafe { libc::splice(0, none, file.as_raw_fd(), none, most, 0) };
    Errno::result(moved)
}

fn spawn(run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new()
        .stack_size(128 * 1024)
        .spawn(run)
        .expect("cannot start a thread")
}

fn own_address() -> String {
    env::var("NOTIFY_SOCKET").expect("there is no NOTIFY_SOCKET")
}

fn say(address: &str, text: &str) {
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(address),
    };
    let socket = UnixDatagram::unbound().expect("cannot make a socket");
    let datagram = text.replace(';', "\n");
    socket
        .send_to_addr(datagram.as_bytes(), &address.expect("an address"))
        .expect("cannot send a notification");
}

fn answer_http(mut reader: BufReader<File>, request: &str) {
    let path = request.split(' ').nth(1).unwrap_or("/");
    // The whole head, so that closing the connection resets nothing.
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
        line.clear();
    }
    let status = |text: &str| format!("HTTP/1.1 {text}\r\nContent-Length: 0\r\n\r\n");
    let answer = match path.split_once("/exists/") {
        Some((_, file)) if fs::exists(file).expect("cannot look for the file") => status("200 OK"),
        Some(_) => status("503 Service Unavailable"),
        None => match path {
            "/garbage" => "hello\n".to_owned(),
            "/fields" => format!("HTTP/1.1 200 OK\r\n{}", "A: b\r\n".repeat(200_000)),
            "/half" => "HTTP/1.1 200 OK\r\nContent-".to_owned(),
            "/silent" => loop {
                thread::park();
            },
            "/moved" => status("301 Moved Permanently"),
            _ => status("404 Not Found"),
        },
    };
    drop(reader.get_mut().write_all(answer.as_bytes()));
    drop(reader);
    OPEN.fetch_sub(1, Ordering::SeqCst);
}

/// In one write, so that the lines of several workers do not mix.
fn append(file: &str, line: &str) {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .unwrap_or_else(|e| panic!("cannot open {file}: {e}"));
    file.write_all(format!("{line}\n").as_bytes())
        .expect("cannot append a line");
}

fn open_descriptors() -> BTreeMap<i32, String> {
    let own = format!("/proc/{}/fd", process::id());
    fs::read_dir("/proc/self/fd")
        .expect("cannot read /proc/self/fd")
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path())
                .ok()?
                .to_string_lossy()
                .into_owned();
            let number = entry.file_name().to_str()?.parse().ok()?;
            (target != own).then_some((number, target))
        })
        .collect()
}

/// The entries of SERVER_STARTER_PORT: `NAME=FD`, separated by `;`. A name may hold a `=`.
fn listeners(text: &str) -> Vec<Listener> {
    let entries = text.split(';').filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (name, fd) = entry
                .rsplit_once('=')
                .unwrap_or_else(|| panic!("not NAME=FD: {entry}"));
            let fd = fd
                .parse()
                .unwrap_or_else(|_| panic!("not NAME=FD: {entry}"));
            Listener {
                name: name.to_owned(),
                fd,
                socket: describe(fd).map_err(|errno| errno.to_string()),
            }
        })
        .collect()
}

fn describe(fd: RawFd) -> Result<Socket, Errno> {
    let socket = borrow(fd);
    let kind = getsockopt(&socket, sockopt::SockType)?;
    let address: SockaddrStorage = getsockname(fd)?;
    let family = match address.family() {
        Some(AddressFamily::Inet) => "inet",
        Some(AddressFamily::Inet6) => "inet6",
        Some(AddressFamily::Unix) => "unix",
        _ => "other",
    };
    let listening = getsockopt(&socket, sockopt::AcceptConn)?;
    Ok(Socket {
        kind: if kind == SockType::Datagram {
            "datagram"
        } else {
            "stream"
        }
        .to_owned(),
        family: family.to_owned(),
        address: address.to_string(),
        listening,
        nonblocking: fcntl(socket, FcntlArg::F_GETFL)? & OFlag::O_NONBLOCK.bits() != 0,
        close_on_exec: fcntl(socket, FcntlArg::F_GETFD)? & FdFlag::FD_CLOEXEC.bits() != 0,
        v6_only: if family == "inet6" {
            Some(getsockopt(&socket, sockopt::Ipv6V6Only)?)
        } else {
            None
        },
        backlog: if listening && family != "unix" {
            Some(backlog(fd)?)
        } else {
            None
        },
    })
}

#[expect(unsafe_code, reason = "nix does not know TCP_INFO")]
fn backlog(fd: RawFd) -> Result<u32, Errno> {
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).expect("a small struct");
    // SAFETY: `info` is `length` bytes that the kernel may write, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    // The kernel reports the limit of a listening socket in this field.
    Ok(info.tcpi_sacked)
}

#[expect(unsafe_code, reason = "sigaction(2)")]
fn act_on(signal: Signal, handler: SigHandler) {
    // No SA_RESTART: accept is to be interrupted.
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the only handler is `do_nothing`, which does nothing that a signal handler must not do.
    unsafe { sigaction(signal, &action) }.expect("cannot set the action of a signal");
}

extern "C" fn do_nothing(_signal: ffi::c_int) {}

#[expect(unsafe_code, reason = "pthread_kill(3)")]
fn interrupt(thread: &JoinHandle<()>) {
    // SAFETY: the handle was not joined, so its thread id is valid even if the thread has ended.
    let result = unsafe { libc::pthread_kill(thread.as_pthread_t(), INTERRUPT as ffi::c_int) };
    assert!(
        result == 0 || result == libc::ESRCH,
        "cannot interrupt a thread: {}",
        Errno::from_raw(result)
    );
}

fn write_line(fd: RawFd, line: &str) {
    let line = format!("{line}\n");
    // Whoever closed the other end does not want it.
    let _ = nix::unistd::write(borrow(fd), line.as_bytes());
}

#[expect(unsafe_code, reason = "descriptors come by number")]
fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: nothing in this program closes descriptors that it was executed with. One that start_server named but
    // did not pass is answered with EBADF, or is a descriptor of ours that is only looked at.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[expect(unsafe_code, reason = "nix returns accepted connections by number")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: accept4 has just made this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[expect(unsafe_code, reason = "descriptors come by number")]
fn wait_for(listener: RawFd) {
    // SAFETY: the listener stays open as long as the process lives.
    let listener = unsafe { BorrowedFd::borrow_raw(listener) };
    let mut sources = [PollFd::new(listener, PollFlags::POLLIN)];
    // An interruption is the caller's concern.
    let _ = poll(&mut sources, PollTimeout::NONE);
}
