//! How long start_server keeps its users waiting, beside Server::Starter where that is installed, and beside no
//! superdaemon at all: `cargo bench -p e2e` prints the table in tests/README.md. It judges nothing.
//!
//! The column "bare worker" is the same act without a superdaemon: this program forks and executes the same worker,
//! with sockets that it has bound before. That is the floor. The contestants take turns, so that a machine which is
//! busy for a while is busy for all of them.
//!
//! A worker says by a FIFO that it serves, and then it is asked over TCP until it has answered: nothing here polls
//! while a clock runs, since that would take a processor away from who is measured.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot go on has no figures"
)]
#![allow(clippy::print_stdout, reason = "the table is what it is for")]
#![allow(
    clippy::disallowed_methods,
    reason = "nothing is closed that a program which is started could keep"
)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use e2e::client::{self, Load};
use e2e::folder::Folder;
use e2e::journal::{Entry, Happened};
use e2e::server::NOBODY;
use e2e::{ports, proc, programs, wait};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Pid, Uid, mkfifo};

/// In each life a server is started, restarted, bereft of its worker, and stopped.
const LIVES: usize = 60;

/// Starts with many ports.
const STARTS: usize = 15;

const MANY_PORTS: [usize; 2] = [100, 1000];

/// For how long nothing happens to an idle server.
const IDLE: Duration = Duration::from_secs(10);

const CLIENTS: usize = 16;

/// Restarts under load.
const RESTARTS: u32 = 100;

/// From one start to the next: longer than start_server takes to believe in a worker with `--interval=0`, so that it
/// has nothing else to do, and the same for all.
const PACE: Duration = Duration::from_millis(80);

/// Where Debian has Server::Starter.
const ORIGINAL: &str = "/usr/bin/start_server";

/// The environment variable that names another start_server to measure in its place: that of a tree before a change.
const BESIDE: &str = "BESIDE";

/// What is measured beside ours: its program, and its name in the table.
fn original() -> (PathBuf, &'static str) {
    match env::var_os(BESIDE) {
        Some(program) => (program.into(), "BESIDE"),
        None => (ORIGINAL.into(), "Server::Starter"),
    }
}

/// The argument that makes this program a worker: the fixture looks at each of its listeners for so long that a
/// thousand of them would hide what a superdaemon takes.
const SERVE_LAST: &str = "--serve-last";

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(SERVE_LAST) => serve_last(Path::new(&arguments[2])),
        _ if arguments.iter().any(|argument| argument == "--bench") => measure(),
        // `cargo test --all-targets` runs benchmarks too, only to see whether they run.
        _ => println!("this is a benchmark: cargo bench -p e2e"),
    }
}

fn measure() {
    make_room_for_descriptors();
    let contestants = Contestant::all();
    let load_before = load_average();
    let mut course = Course::new();
    let mut times: BTreeMap<(Figure, Contestant), Vec<Duration>> = BTreeMap::new();
    for _ in 0..LIVES {
        for &contestant in &contestants {
            for (figure, time) in course.live(contestant) {
                times.entry((figure, contestant)).or_default().push(time);
            }
        }
    }
    for count in MANY_PORTS {
        let ports: Vec<u16> = (0..count).map(|_| ports::tcp()).collect();
        for _ in 0..STARTS {
            for &contestant in &contestants {
                let time = course.start_with_ports(contestant, &ports);
                let figure = Figure::StartWithPorts(count);
                times.entry((figure, contestant)).or_default().push(time);
            }
        }
    }
    let mut table = Table::default();
    for ((figure, contestant), mut times) in times {
        times.sort();
        let median = times[times.len() / 2];
        table.put(figure, contestant, Value::Time(median));
    }
    course.idle(&contestants, &mut table);
    for &contestant in &contestants {
        course.bear_load(contestant, &mut table);
    }
    println!("{}", facts(&load_before));
    println!();
    table.print(&contestants);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contestant {
    Ours,
    /// Ours, started as root with `--user=nobody`.
    OursAsRoot,
    Original,
    Bare,
}

impl Contestant {
    fn all() -> Vec<Contestant> {
        let mut all = vec![Contestant::Ours];
        if Uid::effective().is_root() {
            all.push(Contestant::OursAsRoot);
        }
        if original().0.exists() {
            all.push(Contestant::Original);
        }
        all.push(Contestant::Bare);
        all
    }

    fn name(self) -> &'static str {
        match self {
            Contestant::Ours => "start_server",
            Contestant::OursAsRoot => "from root, `--user`",
            Contestant::Original => original().1,
            Contestant::Bare => "bare worker",
        }
    }
}

/// What is measured, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    Start,
    StartWithPorts(usize),
    Restart,
    Crash,
    Stop,
    PrivateDirty,
    Proportional,
    Resident,
    ContextSwitches,
    Failures,
    Answers,
    WorstLatency,
}

impl Figure {
    fn name(self) -> String {
        match self {
            Figure::Start => "exec to first answer".to_owned(),
            Figure::StartWithPorts(count) => format!("exec to first answer, {count} ports"),
            Figure::Restart => "HUP to first answer of the new generation".to_owned(),
            Figure::Crash => "death of a worker to first answer of the next".to_owned(),
            Figure::Stop => "TERM to exit".to_owned(),
            Figure::PrivateDirty => "memory, private and dirty".to_owned(),
            Figure::Proportional => "memory, proportional (PSS)".to_owned(),
            Figure::Resident => "memory, resident (RSS)".to_owned(),
            Figure::ContextSwitches => {
                format!("context switches in {} idle seconds", IDLE.as_secs())
            }
            Figure::Failures => {
                format!("{CLIENTS} clients, {RESTARTS} restarts: failed requests")
            }
            Figure::Answers => "... answered requests per second".to_owned(),
            Figure::WorstLatency => "... worst latency".to_owned(),
        }
    }
}

/// The workers' FIFO, and what they are.
struct Course {
    folder: Folder,
    news: BufReader<File>,
    serve_last: PathBuf,
}

impl Course {
    fn new() -> Course {
        let folder = Folder::new(ordinary_user(), ordinary_group());
        let fifo = folder.path().join("news");
        mkfifo(&fifo, Mode::from_bits_truncate(0o600)).expect("cannot make a FIFO");
        chown(&fifo, Some(ordinary_user().as_raw()), None).expect("cannot give the FIFO away");
        // For writing too, so that it never ends.
        let news = OpenOptions::new().read(true).write(true).open(&fifo);
        let ourselves = env::current_exe().expect("cannot find this program");
        Course {
            folder,
            news: BufReader::new(news.expect("cannot open the FIFO")),
            serve_last: programs::install(&ourselves, programs::installed()),
        }
    }

    fn fifo(&self) -> PathBuf {
        self.folder.path().join("news")
    }

    fn fixture(&self) -> Vec<PathBuf> {
        let journal = format!("--journal={}", self.fifo().display());
        vec![programs::worker(), journal.into()]
    }

    /// Waits until a worker of a later generation serves.
    fn wait_for_service_after(&mut self, generation: u32) -> (u32, Pid) {
        let deadline = Instant::now() + wait::DEADLINE;
        loop {
            if self.news.buffer().is_empty() {
                wait_for_input(self.news.get_ref(), deadline);
            }
            let mut line = String::new();
            self.news
                .read_line(&mut line)
                .expect("cannot read the FIFO");
            let entry: Entry = line.trim_end().parse().expect("a line of a journal");
            if entry.happened == Happened::Served && entry.generation > generation {
                return (entry.generation, Pid::from_raw(entry.pid));
            }
        }
    }

    /// One life, and how long its acts took.
    fn live(&mut self, contestant: Contestant) -> [(Figure, Duration); 4] {
        let entrant = Entrant::new(contestant, &[ports::tcp()], self.fixture());
        let began = Instant::now();
        let mut running = entrant.start(self);
        running.ask();
        let start = began.elapsed();

        pause(PACE);
        let old = running.worker;
        // Else that one, already awake, would snatch away every connection that the new one is waking up for.
        suspend(old);
        let began = Instant::now();
        running.restart(self);
        running.ask();
        let restart = began.elapsed();
        kill(old, Signal::SIGCONT).expect("the old worker is gone already");
        running.wait_for_end_of(old);

        pause(PACE);
        let began = Instant::now();
        running.lose_worker(self);
        running.ask();
        let crash = began.elapsed();

        pause(PACE);
        let began = Instant::now();
        running.stop();
        let stop = began.elapsed();
        [
            (Figure::Start, start),
            (Figure::Restart, restart),
            (Figure::Crash, crash),
            (Figure::Stop, stop),
        ]
    }

    fn start_with_ports(&mut self, contestant: Contestant, ports: &[u16]) -> Duration {
        let program = vec![self.serve_last.clone(), SERVE_LAST.into(), self.fifo()];
        let entrant = Entrant::new(contestant, ports, program);
        let began = Instant::now();
        let mut running = entrant.start(self);
        running.ask();
        let time = began.elapsed();
        running.stop();
        time
    }

    /// All of them at once: who does nothing disturbs nobody.
    fn idle(&mut self, contestants: &[Contestant], table: &mut Table) {
        let mut all: Vec<Running> = contestants
            .iter()
            .filter(|&&contestant| contestant != Contestant::Bare)
            .map(|&contestant| {
                Entrant::new(contestant, &[ports::tcp()], self.fixture()).start(self)
            })
            .collect();
        pause(PACE);
        let switches = |running: &Running| -> u64 {
            let processes = running.superdaemon();
            processes.into_iter().map(proc::context_switches).sum()
        };
        let before: Vec<u64> = all.iter().map(switches).collect();
        pause(IDLE);
        for (running, before) in all.iter().zip(before) {
            let mut put = |figure, value| table.put(figure, running.contestant(), value);
            put(
                Figure::ContextSwitches,
                Value::Count(switches(running) - before),
            );
            for (figure, key) in [
                (Figure::PrivateDirty, "Private_Dirty"),
                (Figure::Proportional, "Pss"),
                (Figure::Resident, "Rss"),
            ] {
                let processes = running.superdaemon();
                let kib = processes.into_iter().map(|pid| memory(pid, key)).sum();
                put(figure, Value::Memory(kib));
            }
        }
        for running in &mut all {
            running.stop();
        }
    }

    fn bear_load(&mut self, contestant: Contestant, table: &mut Table) {
        let port = ports::tcp();
        let mut program = self.fixture();
        program.push("--graceful".into());
        let mut running = Entrant::new(contestant, &[port], program).start(self);
        let began = Instant::now();
        let load = Load::start(port, CLIENTS);
        for _ in 0..RESTARTS {
            let next = Instant::now() + PACE;
            // The bare worker shows what the clients do to themselves.
            if contestant != Contestant::Bare {
                let old = running.worker;
                running.restart(self);
                running.wait_for_end_of(old);
            }
            pause(next.saturating_duration_since(Instant::now()));
        }
        let outcome = load.stop();
        let time = began.elapsed();
        running.stop();
        let failures = u64::try_from(outcome.failures.len()).expect("a count");
        let per_second = u128::from(outcome.successes) * 1000 / time.as_millis();
        let answers = u64::try_from(per_second).expect("a count");
        table.put(Figure::Failures, contestant, Value::Count(failures));
        table.put(Figure::Answers, contestant, Value::Count(answers));
        let worst = Value::Time(outcome.worst_latency);
        table.put(Figure::WorstLatency, contestant, worst);
    }
}

/// A contestant that is ready to be started.
struct Entrant {
    contestant: Contestant,
    program: Vec<PathBuf>,
    ports: Vec<u16>,
    /// Of the bare worker, which cannot bind them itself.
    listeners: Vec<TcpListener>,
}

impl Entrant {
    fn new(contestant: Contestant, ports: &[u16], program: Vec<PathBuf>) -> Entrant {
        let listeners = match contestant {
            Contestant::Bare => ports.iter().map(|&port| inheritable(port)).collect(),
            _ => Vec::new(),
        };
        Entrant {
            contestant,
            program,
            ports: ports.to_vec(),
            listeners,
        }
    }

    /// Returns when its worker says that it serves.
    fn start(self, course: &mut Course) -> Running {
        let child = match self.contestant {
            Contestant::Bare => self.run_worker(1),
            Contestant::Ours => self.run(&programs::start_server(), true, &[]),
            Contestant::OursAsRoot => {
                self.run(&programs::start_server(), false, &["--user=nobody"])
            }
            Contestant::Original => self.run(&original().0, true, &[]),
        };
        let (generation, worker) = course.wait_for_service_after(0);
        Running {
            entrant: self,
            child,
            old: None,
            worker,
            generation,
        }
    }

    fn run(&self, start_server: &Path, ordinary: bool, options: &[&str]) -> Child {
        let mut command = command(start_server, ordinary);
        command.args(options).arg("--interval=0");
        command.args(
            self.ports
                .iter()
                .map(|port| format!("--port=127.0.0.1:{port}")),
        );
        command.arg("--").args(&self.program);
        command.spawn().expect("cannot run a start_server")
    }

    /// What is left of a superdaemon without the superdaemon.
    fn run_worker(&self, generation: u32) -> Child {
        let listeners: Vec<String> = self
            .ports
            .iter()
            .zip(&self.listeners)
            .map(|(port, listener)| format!("127.0.0.1:{port}={}", listener.as_raw_fd()))
            .collect();
        command(&self.program[0], true)
            .args(&self.program[1..])
            .env("SERVER_STARTER_PORT", listeners.join(";"))
            .env("SERVER_STARTER_GENERATION", generation.to_string())
            .spawn()
            .expect("cannot run the worker")
    }
}

/// A contestant that runs. Dropping it kills what is left.
struct Running {
    entrant: Entrant,
    /// The superdaemon, or the bare worker.
    child: Child,
    /// The bare worker before.
    old: Option<Child>,
    worker: Pid,
    generation: u32,
}

impl Running {
    fn contestant(&self) -> Contestant {
        self.entrant.contestant
    }

    /// The last one, since there are workers that answer nowhere else.
    fn port(&self) -> u16 {
        *self.entrant.ports.last().expect("a port")
    }

    /// Asks until the current worker answers: one that is about to go may be quicker, or may be killed meanwhile.
    fn ask(&self) {
        let wanted = self.worker.to_string();
        let deadline = Instant::now() + wait::DEADLINE;
        while client::request(self.port(), "ping").ok().as_ref() != Some(&wanted) {
            assert!(
                Instant::now() < deadline,
                "worker {wanted} of {:?} does not answer",
                self.contestant()
            );
        }
    }

    /// Returns when the next worker serves.
    fn restart(&mut self, course: &mut Course) {
        if self.contestant() == Contestant::Bare {
            let new = self.entrant.run_worker(self.generation + 1);
            self.old = Some(std::mem::replace(&mut self.child, new));
        } else {
            self.signal(Signal::SIGHUP);
        }
        (self.generation, self.worker) = course.wait_for_service_after(self.generation);
    }

    fn wait_for_end_of(&mut self, old: Pid) {
        if let Some(mut child) = self.old.take() {
            child.kill().expect("cannot kill the old worker");
            child.wait().expect("cannot wait for the old worker");
        }
        wait::until(
            "the old worker ended",
            || old.to_string(),
            || (!proc::alive(old)).then_some(()),
        );
    }

    /// Kills the worker, and returns when the next one serves.
    fn lose_worker(&mut self, course: &mut Course) {
        kill(self.worker, Signal::SIGKILL).expect("cannot kill the worker");
        if self.contestant() == Contestant::Bare {
            self.child.wait().expect("cannot wait for the worker");
            self.child = self.entrant.run_worker(self.generation + 1);
        }
        (self.generation, self.worker) = course.wait_for_service_after(self.generation);
    }

    fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        self.child.wait().expect("cannot wait for a contestant");
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("cannot send a signal");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The processes of the superdaemon itself.
    fn superdaemon(&self) -> Vec<Pid> {
        let mut processes = proc::children(self.pid());
        processes.retain(|&pid| pid != self.worker);
        processes.push(self.pid());
        processes
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.old.iter_mut().chain([&mut self.child]) {
            // Where it was waited for already, its pid may be somebody else's.
            if let Ok(None) = child.try_wait() {
                // It leads the group of its workers.
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                drop(child.wait());
            }
        }
    }
}

/// A quiet command in a group of its own.
fn command(program: &Path, ordinary: bool) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.process_group(0);
    command.stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    if ordinary && Uid::effective().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn inheritable(port: u16) -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("cannot bind a port");
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).expect("cannot pass a listener on");
    listener
}

/// A worker that answers at its last listener, and does nothing else.
fn serve_last(fifo: &Path) {
    let number = |name: &str| env::var(name).expect("no superdaemon above");
    let last = number("SERVER_STARTER_PORT");
    let last = last.rsplit('=').next().expect("a last part");
    let listener = own(last.parse().expect("a descriptor"));
    let entry = Entry {
        generation: number("SERVER_STARTER_GENERATION")
            .parse()
            .expect("a generation"),
        pid: process::id().cast_signed(),
        happened: Happened::Served,
    };
    let mut news = OpenOptions::new().append(true).open(fifo).expect("no FIFO");
    news.write_all(format!("{entry}\n").as_bytes())
        .expect("cannot say that it serves");
    for connection in listener.incoming() {
        let mut connection = connection.expect("cannot accept");
        let mut request = String::new();
        // A client that goes away is its own affair.
        drop(BufReader::new(&connection).read_line(&mut request));
        drop(connection.write_all(format!("{}\n", process::id()).as_bytes()));
    }
}

#[expect(unsafe_code, reason = "a listener comes by number")]
fn own(number: i32) -> TcpListener {
    // SAFETY: this process was executed with the descriptor, and nothing else here uses it.
    unsafe { TcpListener::from_raw_fd(number) }
}

fn ordinary_user() -> Uid {
    match Uid::effective() {
        uid if uid.is_root() => Uid::from_raw(NOBODY),
        uid => uid,
    }
}

fn ordinary_group() -> Gid {
    match Uid::effective() {
        uid if uid.is_root() => Gid::from_raw(NOBODY),
        _ => Gid::effective(),
    }
}

/// For the listeners of the bare worker.
fn make_room_for_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("cannot read the limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).expect("cannot raise the limit");
}

fn suspend(worker: Pid) {
    kill(worker, Signal::SIGSTOP).expect("cannot stop a worker");
    let stopped = || proc::status(worker).is_some_and(|status| status.state == 'T');
    wait::until(
        "the worker is suspended",
        || worker.to_string(),
        || stopped().then_some(()),
    );
}

/// Lets time pass, with nothing to do in it.
fn pause(time: Duration) {
    wait_for(&mut [], time);
}

fn wait_for_input(input: impl AsFd, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let ready = wait_for(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], left);
    assert!(ready > 0, "waited in vain for a worker to serve");
}

fn wait_for(sources: &mut [PollFd], time: Duration) -> i32 {
    let timeout = PollTimeout::try_from(time).expect("a short time");
    poll(sources, timeout).expect("cannot wait")
}

/// One line of /proc/PID/smaps_rollup, in KiB.
fn memory(pid: Pid, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("cannot read smaps");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.expect("a size").parse().expect("a size")
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").expect("cannot read the load average");
    text.split(' ').next().expect("a number").to_owned()
}

fn facts(load_before: &str) -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").expect("cannot read /proc/cpuinfo");
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let cores = thread::available_parallelism().expect("cannot count the cores");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("cannot read osrelease");
    let version = Command::new(original().0).arg("--version").output();
    let version = version.map_or(String::new(), |output| {
        let version = String::from_utf8_lossy(&output.stdout);
        format!("{} {}, ", original().1, version.trim_end())
    });
    format!(
        "{model}, {cores} cores, Linux {}, load average {load_before} to {}. {version}`--interval=0`; medians of \
         {LIVES} lives, with many ports of {STARTS} starts; in brackets, how often the floor.",
        kernel.trim_end(),
        load_average(),
    )
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Time(Duration),
    /// In KiB.
    Memory(u64),
    Count(u64),
}

impl Value {
    fn text(self, floor: Option<Value>) -> String {
        match (self, floor) {
            (Value::Time(time), Some(Value::Time(floor))) => {
                let ratio = time.as_secs_f64() / floor.as_secs_f64();
                format!("{} ({ratio:.2})", milliseconds(time))
            }
            (Value::Time(time), _) => milliseconds(time),
            (Value::Memory(kib), _) => format!("{}.{:02} MiB", kib / 1024, kib % 1024 * 100 / 1024),
            (Value::Count(count), _) => count.to_string(),
        }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

#[derive(Debug, Default)]
struct Table(BTreeMap<Figure, BTreeMap<Contestant, Value>>);

impl Table {
    fn put(&mut self, figure: Figure, contestant: Contestant, value: Value) {
        self.0.entry(figure).or_default().insert(contestant, value);
    }

    fn print(&self, contestants: &[Contestant]) {
        let line =
            |first: &str, cells: Vec<String>| println!("| {first} | {} |", cells.join(" | "));
        line(
            "",
            contestants.iter().map(|it| it.name().to_owned()).collect(),
        );
        line(
            "---",
            contestants.iter().map(|_| "---:".to_owned()).collect(),
        );
        for (figure, values) in &self.0 {
            let cell = |contestant: &Contestant| {
                let floor = match contestant {
                    Contestant::Bare => None,
                    _ => values.get(&Contestant::Bare).copied(),
                };
                let value = values.get(contestant);
                value.map_or("–".to_owned(), |value| value.text(floor))
            };
            line(&figure.name(), contestants.iter().map(cell).collect());
        }
    }
}
