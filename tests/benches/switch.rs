//! What `--switch` costs: `cargo bench -p e2e --bench switch` prints the tables in tests/README.md. It judges nothing.
//!
//! - New connections: three servers run side by side, one of which has lanes; the other two share their socket and are the
//!   same, so that their ratio shows what the machine does by itself. They take turns under the same clients, in another
//!   order each time. Beside the time on the clock is the time on the CPUs, of clients, worker and kernel together, which
//!   says more where others use the machine.
//! - The switch: from the moment at which a worker says READY=1 to the line of the log that tells that its generation
//!   serves. So it contains all else that a commit does, which the servers without lanes and with one address show. The
//!   log is a pipe that this program reads. Beside it are the system calls alone, by this program.
//! - Descriptors of the supervisor, counted.
//!
//! All workers are this program too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot go on has no figures"
)]
#![allow(clippy::print_stdout, reason = "the tables are what it is for")]
#![allow(
    clippy::disallowed_methods,
    reason = "nothing is closed that a program which is started could keep"
)]

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, io, thread};

use common::{Listener, server_ports};
use e2e::folder::Folder;
use e2e::server::NOBODY;
use e2e::{ports, proc, programs, wait};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, getsockopt, listen,
    setsockopt, socket, sockopt,
};
use nix::unistd::{Gid, Pid, Uid};

/// The first argument of this program as a worker; the next one is a file for its notes.
const WORK: &str = "--work";

/// How often each server is under load, and for how long.
const ROUNDS: usize = 200;
const SLICE: Duration = Duration::from_millis(200);

const CLIENTS: usize = 8;

/// How many addresses are switched, and how often.
const ADDRESSES: usize = 100;
const SWITCHES: usize = 60;

const SWITCH: &[&str] = &["--switch"];

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(WORK) => work(Path::new(&arguments[2])),
        _ if arguments.iter().any(|argument| argument == "--bench") => measure(),
        // `cargo test --all-targets` runs benchmarks too, only to see whether they run.
        _ => println!("this is a benchmark: cargo bench -p e2e --bench switch"),
    }
}

fn measure() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("cannot read the limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).expect("cannot raise the limit");
    let ourselves = env::current_exe().expect("cannot find this program");
    let worker = programs::install(&ourselves, programs::installed());
    measure_connections(&worker);
    println!();
    measure_switches(&worker);
    println!();
    count_descriptors(&worker);
}

// New connections.

/// What a server did in one slice.
struct Slice {
    /// Connections per second.
    rate: f64,
    p99: Duration,
    /// Of the CPUs, for each connection.
    computed: Duration,
}

type Figure = (&'static str, fn(&Slice) -> f64);

fn measure_connections(worker: &Path) {
    let load_before = load_average();
    let names = ["--switch", "shared socket", "shared socket, another one"];
    let options: [&[&str]; 3] = [SWITCH, &[], &[]];
    let servers = options.map(|options| Server::start(worker, options, 1));
    let mut slices: [Vec<Slice>; 3] = Default::default();
    // For the caches.
    for server in &servers {
        let _warm = load(server);
    }
    for round in 0..ROUNDS {
        // Whoever comes first or last may have an advantage.
        for place in 0..servers.len() {
            let place = match round / servers.len() % 2 {
                0 => (place + round) % servers.len(),
                _ => (servers.len() - 1 - place + round) % servers.len(),
            };
            slices[place].push(load(&servers[place]));
        }
    }
    println!(
        "{CLIENTS} clients, each request on a connection of its own; medians of {ROUNDS} slices of {SLICE:?} in turns; {}",
        facts(&load_before)
    );
    println!("\n| | connections/s | p99 | CPU time of each |\n|---|---:|---:|---:|");
    for (name, slices) in names.iter().zip(&slices) {
        let rate = Spread::of(slices.iter().map(|slice| slice.rate));
        let p99 = Spread::of(slices.iter().map(|slice| slice.p99.as_secs_f64() * 1e3));
        let computed = Spread::of(slices.iter().map(|it| it.computed.as_secs_f64() * 1e6));
        println!(
            "| {name} | {:.0} | {:.3} ms | {:.2} \u{b5}s |",
            rate.median, p99.median, computed.median
        );
    }
    println!("\n| ratio to the shared socket | median | it lies in (95 %) | middle half of all |");
    println!("|---|---:|---:|---:|");
    for (name, slices_of) in [(names[0], &slices[0]), (names[2], &slices[2])] {
        let figures: [Figure; 3] = [
            ("connections/s", |slice| slice.rate),
            ("p99", |slice| slice.p99.as_secs_f64()),
            ("CPU time of each", |slice| slice.computed.as_secs_f64()),
        ];
        for (what, figure) in figures {
            let pairs = slices_of.iter().zip(&slices[1]);
            let ratios = pairs.map(|(one, shared)| figure(one) / figure(shared));
            println!("| {what}, {name} | {} |", Spread::of(ratios).cells());
        }
    }
}

fn load(server: &Server) -> Slice {
    let stopped = AtomicBool::new(false);
    let port = server.ports[0];
    let worker = format!("/proc/{}/schedstat", server.worker());
    let computed_before = computed(&worker);
    let client = || {
        let mut latencies = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            let began = Instant::now();
            ask(port).expect("a request has failed");
            latencies.push(began.elapsed());
        }
        (latencies, computed("/proc/thread-self/schedstat"))
    };
    let (clients, time) = thread::scope(|scope| {
        let began = Instant::now();
        let clients = [(); CLIENTS].map(|()| scope.spawn(client));
        wait::let_pass(SLICE);
        stopped.store(true, Ordering::Relaxed);
        let clients = clients.map(|client| client.join().expect("a client panicked"));
        (clients, began.elapsed())
    });
    let by_clients: Duration = clients.iter().map(|(_, computed)| *computed).sum();
    let by_worker = computed(&worker).saturating_sub(computed_before);
    let mut latencies = clients.map(|(latencies, _)| latencies).concat();
    latencies.sort_unstable();
    let count = u32::try_from(latencies.len()).expect("few");
    Slice {
        rate: f64::from(count) / time.as_secs_f64(),
        p99: latencies[latencies.len() * 99 / 100],
        computed: (by_clients + by_worker) / count,
    }
}

/// How long a thread has been on a CPU (`schedstat`, proc(5)).
fn computed(schedstat: &str) -> Duration {
    let text = fs::read_to_string(schedstat).expect("no schedstat");
    let nanoseconds = text.split(' ').next().expect("a number");
    Duration::from_nanos(nanoseconds.parse().expect("a number"))
}

/// One connection, one byte, one byte.
fn ask(port: u16) -> io::Result<()> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.set_read_timeout(Some(wait::DEADLINE))?;
    connection.write_all(b"?")?;
    connection.read_exact(&mut [0])
}

// The switch.

fn measure_switches(worker: &Path) {
    let load_before = load_average();
    let contestants: [(&str, &[&str], usize); 4] = [
        ("100 addresses with --switch", SWITCH, ADDRESSES),
        ("100 shared addresses", &[], ADDRESSES),
        ("one address with --switch", SWITCH, 1),
        ("one shared address", &[], 1),
    ];
    let mut servers =
        contestants.map(|(_, options, addresses)| Server::start(worker, options, addresses));
    let groups = Groups::make();
    let mut bare = Vec::new();
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..SWITCHES {
        for (server, times) in servers.iter_mut().zip(&mut times) {
            times.push(server.restart());
        }
        bare.push(groups.switch(u32::from(round % 2 == 0)));
    }
    println!(
        "From READY=1 to \"generation N serves\" in the log; {SWITCHES} restarts in turns; {}",
        facts(&load_before)
    );
    println!("\n| | median | it lies in (95 %) | middle half of all |\n|---|---:|---:|---:|");
    let of = |times: &[Duration]| Spread::of(times.iter().map(|time| time.as_secs_f64() * 1e3));
    for ((name, ..), times) in contestants.iter().zip(&times) {
        println!("| {name} | {} |", of(times).cells_in("ms"));
    }
    let name = format!("the {} system calls of a switch alone", 3 * ADDRESSES);
    println!("| {name} | {} |", of(&bare).cells_in("ms"));
    let more = times[0].iter().zip(&times[1]);
    let more = more.map(|(switch, shared)| (switch.as_secs_f64() - shared.as_secs_f64()) * 1e3);
    let more = Spread::of(more);
    println!(
        "| the first less the second, of the same turn | {} |",
        more.cells_in("ms")
    );
}

/// Groups of two sockets each, as a supervisor has them.
struct Groups(Vec<[OwnedFd; 2]>);

impl Groups {
    fn make() -> Groups {
        let lane = |port: u16| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let one = socket(AddressFamily::Inet, SockType::Stream, flags, None);
            let one = one.expect("cannot make a socket");
            setsockopt(&one, sockopt::ReusePort, &true).expect("cannot share a port");
            let address = SockaddrIn::new(127, 0, 0, 1, port);
            bind(one.as_raw_fd(), &address).expect("cannot bind a port");
            listen(&one, Backlog::MAXCONN).expect("cannot listen");
            one
        };
        let group = |_| {
            let first = lane(0);
            let address: SockaddrIn = getsockname(first.as_raw_fd()).expect("no address");
            [first, lane(address.port())]
        };
        Groups((0..ADDRESSES).map(group).collect())
    }

    /// Gives all that comes to this lane, by the calls of the supervisor.
    fn switch(&self, lane: u32) -> Duration {
        let began = Instant::now();
        for [first, _] in &self.0 {
            let address = getsockname::<SockaddrIn>(first.as_raw_fd());
            address.expect("no address");
            let listens = getsockopt(first, sockopt::AcceptConn).expect("it is no socket");
            assert!(listens, "it does not listen");
            select(first, lane);
        }
        began.elapsed()
    }
}

#[expect(unsafe_code, reason = "nix does not know this option")]
fn select(socket: &OwnedFd, place: u32) {
    let answer = u16::try_from(libc::BPF_RET | libc::BPF_K).expect("a code");
    let mut code = [libc::sock_filter {
        code: answer,
        jt: 0,
        jf: 0,
        k: place,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: code.as_mut_ptr(),
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).expect("small");
    // SAFETY: the program and what it points to live longer than the call, which copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            length,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

// Descriptors.

fn count_descriptors(worker: &Path) {
    println!("| {ADDRESSES} addresses | descriptors of the supervisor | more for each address |");
    println!("|---|---:|---:|");
    let contestants: [(&str, &[&str]); 4] = [
        ("shared", &[]),
        ("--switch", SWITCH),
        ("--switch --lanes=3", &["--switch", "--lanes=3"]),
        ("--switch --lanes=8", &["--switch", "--lanes=8"]),
    ];
    let mut shared = 0;
    for (name, options) in contestants {
        let server = Server::start(worker, options, ADDRESSES);
        let entries = fs::read_dir(format!("/proc/{}/fd", server.pid()));
        let count = entries.expect("cannot look at its descriptors").count();
        if options.is_empty() {
            shared = count;
        }
        let more = count - shared;
        let each = f64::from(u32::try_from(more).expect("few")) / 100.0;
        println!("| {name} | {count} | {each:.2} |");
    }
}

// A server.

struct Server {
    folder: Folder,
    ports: Vec<u16>,
    child: Child,
    log: BufReader<ChildStderr>,
    generation: u32,
}

impl Server {
    /// Returns when its first generation serves.
    fn start(worker: &Path, options: &[&str], addresses: usize) -> Server {
        let (uid, gid) = match Uid::effective() {
            uid if uid.is_root() => (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY)),
            uid => (uid, Gid::effective()),
        };
        let folder = Folder::new(uid, gid);
        let ports: Vec<u16> = (0..addresses).map(|_| ports::tcp()).collect();
        let mut command = command(&programs::start_server(), &folder);
        command.args(["--ready=notify", "--interval=0"]);
        command.args(options);
        command.args(ports.iter().map(|port| format!("--port=127.0.0.1:{port}")));
        command.arg("--").arg(worker).arg(WORK).arg(notes(&folder));
        command.stderr(Stdio::piped());
        let mut child = command.spawn().expect("cannot run start_server");
        let log = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut server = Server {
            folder,
            ports,
            child,
            log,
            generation: 1,
        };
        server.wait_until_it_serves();
        server
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn worker(&self) -> Pid {
        proc::children(self.pid())[0]
    }

    /// How long it took from READY=1 to the line of the log.
    fn restart(&mut self) -> Duration {
        self.generation += 1;
        drop(fs::remove_file(notes(&self.folder)));
        kill(self.pid(), Signal::SIGHUP).expect("cannot send a signal");
        let serves = self.wait_until_it_serves();
        let noted = fs::read_to_string(notes(&self.folder)).expect("no notes");
        let ready = Duration::from_nanos(noted.parse().expect("a time"));
        // There is a lane for the next one, and nothing else to do.
        self.wait_for_line("old worker", " died");
        serves.saturating_sub(ready)
    }

    /// When it said so.
    fn wait_until_it_serves(&mut self) -> Duration {
        let beginning = format!("start_server: generation {} serves", self.generation);
        self.wait_for_line(&beginning, "")
    }

    fn wait_for_line(&mut self, beginning: &str, middle: &str) -> Duration {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            let length = self.log.read_line(&mut line).expect("cannot read the log");
            let at = now();
            all.push_str(&line);
            assert!(length > 0, "it has ended: {all}");
            if line.starts_with(beginning) && line.contains(middle) {
                return at;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        // It must not wait for whoever reads the log.
        drop(io::copy(&mut self.log, &mut io::sink()));
        drop(self.child.wait());
    }
}

fn notes(folder: &Folder) -> PathBuf {
    folder.path().join("notes")
}

/// A quiet command in the folder, as its user.
fn command(program: &Path, folder: &Folder) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.current_dir(folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    if Uid::effective().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Says that it is ready, notes when, and answers at its first listener; TERM ends it at once.
fn work(notes: &Path) {
    let mut all = server_ports().expect("no listeners");
    let Listener::Tcp(listener) = all.remove(0).listener else {
        panic!("not TCP");
    };
    let mut file = OpenOptions::new().create(true).append(true).open(notes);
    let file = file.as_mut().expect("cannot open the notes");
    let address = env::var_os("NOTIFY_SOCKET").expect("nobody wants to know");
    let socket = UnixDatagram::unbound().expect("cannot make a socket");
    write!(file, "{}", now().as_nanos()).expect("cannot note it");
    socket.send_to(b"READY=1", address).expect("cannot say it");
    for connection in listener.incoming() {
        let mut connection = connection.expect("cannot accept");
        // A client that goes away is its own affair.
        drop(connection.read_exact(&mut [0]));
        drop(connection.write_all(b"!"));
    }
}

// Small things.

/// Of figures that differ.
struct Spread {
    median: f64,
    /// Where that of infinitely many figures lies, 19 times of 20.
    interval: [f64; 2],
    middle: [f64; 2],
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Spread {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let last = figures.len() - 1;
        let at = |part: usize| figures[last * part / 4];
        // By the binomial distribution: the ranks around the middle, by as much as the root of the count.
        let off = figures.len().isqrt();
        let middle = last / 2;
        Spread {
            median: at(2),
            interval: [figures[middle - off], figures[(middle + off + 1).min(last)]],
            middle: [at(1), at(3)],
        }
    }

    fn cells(&self) -> String {
        let ([least, most], [low, high]) = (self.interval, self.middle);
        let median = self.median;
        format!("{median:.3} | {least:.3} to {most:.3} | {low:.3} to {high:.3}")
    }

    fn cells_in(&self, unit: &str) -> String {
        let ([least, most], [low, high]) = (self.interval, self.middle);
        let median = self.median;
        format!("{median:.2} {unit} | {least:.2} to {most:.2} | {low:.2} to {high:.2}")
    }
}

/// Since 1970.
fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a clock that goes right")
}

fn facts(load_before: &str) -> String {
    let cores = thread::available_parallelism().expect("cannot count the cores");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("cannot read osrelease");
    format!(
        "{cores} cores, Linux {}, load average {load_before} to {}",
        kernel.trim_end(),
        load_average()
    )
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").expect("cannot read the load average");
    text.split(' ').next().expect("a number").to_owned()
}
