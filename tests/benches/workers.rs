//! What several workers cost: `cargo bench --locked -p e2e --bench workers` prints it. It judges nothing.
//!
//! * The memory of the supervisor with 1, 33 and 65 workers.
//! * A restart of 16 workers, from HUP until all of the new ones serve, beside 16 workers that this program forks and
//!   executes at once with the same listener. They take turns.
//! * A rolling restart of 4 workers of Node.js under load, until all are replaced, beside the reload of pm2, and how long
//!   each takes to tell its status. pm2 comes from npm, into a temporary folder; without it there is nothing beside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot go on has no figures"
)]
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]
#![allow(
    clippy::disallowed_methods,
    reason = "nothing is closed that a program which is started could keep"
)]

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use e2e::folder::Folder;
use e2e::journal::{Entry, Happened};
use e2e::server::NOBODY;
use e2e::{ports, proc, programs, wait};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Pid, Uid, mkfifo};

/// How many workers a restart replaces that is measured beside bare ones, and how often.
const WORKERS: usize = 16;
const ROUNDS: usize = 31;

/// The numbers of workers whose memory is measured.
const SIZES: [usize; 3] = [1, 33, 65];

/// Of Node.js.
const NODES: usize = 4;
const RELOADS: usize = 11;
const CLIENTS: usize = 8;

/// It says that it serves in the way of each superdaemon, by a descriptor or by a message.
const NODE: &str = "
const fs = require('fs');
const http = require('http');
const named = process.env.SERVER_STARTER_PORT;
const at = named ? { fd: Number(named.split('=').pop()) } : Number(process.env.PORT);
const server = http.createServer((request, response) => response.end(`${process.pid}\\n`));
server.listen(at, () => named ? fs.writeSync(9, '\\n') : process.send('ready'));
for (const signal of ['SIGTERM', 'SIGINT']) {
  process.on(signal, () => server.close(() => process.exit(0)));
}
";

fn main() {
    match env::args().any(|argument| argument == "--bench") {
        true => measure(),
        // `cargo test --all-targets` runs benchmarks too, only to see whether they run.
        false => println!("this is a benchmark: cargo bench -p e2e --bench workers"),
    }
}

fn measure() {
    let cores = thread::available_parallelism().expect("cannot count the cores");
    let before = load_average();
    measure_memory();
    measure_restart();
    measure_nodes();
    println!("{cores} cores, load average {before} to {}", load_average());
}

fn measure_memory() {
    let mut base = None;
    for workers in SIZES {
        let mut course = Course::new();
        let server = course.start(&[&format!("--workers={workers}")]);
        course.wait_for(workers, 1);
        server.wait_until_committed();
        let kib = private_dirty(server.pid());
        let (at, least) = *base.get_or_insert((workers, kib));
        let each = match workers - at {
            0 => String::new(),
            more => format!(
                ", {:.1} KiB for each worker more than {at}",
                (kib as f64 - least as f64) / more as f64
            ),
        };
        println!("{workers} workers: the supervisor has written to {kib} KiB{each}");
    }
}

fn measure_restart() {
    let at_once = format!("--start-parallel={WORKERS}");
    let number = format!("--workers={WORKERS}");
    let options: [(&str, Vec<&str>); 2] = [
        ("as many at a time as CPUs", vec![&number]),
        ("all at a time", vec![&number, &at_once]),
    ];
    let mut running: Vec<(&str, Course, Superdaemon, Vec<Duration>)> = Vec::new();
    for (name, options) in options {
        let mut course = Course::new();
        let server = course.start(&options);
        course.wait_for(WORKERS, 1);
        running.push((name, course, server, Vec::new()));
    }
    let mut bare_course = Course::new();
    let mut bare_times = Vec::new();
    for generation in 2..2 + u32::try_from(ROUNDS).expect("few") {
        for (_, course, server, times) in &mut running {
            server.wait_until_alone(WORKERS);
            let began = Instant::now();
            kill(server.pid(), Signal::SIGHUP).expect("cannot send a signal");
            course.wait_for(WORKERS, generation);
            times.push(began.elapsed());
        }
        for (.., server, _) in &running {
            server.wait_until_alone(WORKERS);
        }
        bare_times.push(bare_course.start_bare(generation));
    }
    let floor = median(&mut bare_times);
    println!("{WORKERS} bare workers at once: {floor:?}, median of {ROUNDS}");
    for (name, .., times) in &mut running {
        let time = median(times);
        let ratio = time.as_secs_f64() / floor.as_secs_f64();
        println!("restart of {WORKERS} workers, {name}: {time:?}, {ratio:.2} times that");
    }
}

/// A folder, and a FIFO by which workers say that they serve.
struct Course {
    folder: Folder,
    news: BufReader<File>,
    /// For the bare ones.
    listener: TcpListener,
    notified: UnixDatagram,
}

impl Course {
    fn new() -> Course {
        let (user, group) = ordinary();
        let folder = Folder::new(user, group);
        let fifo = folder.path().join("news");
        mkfifo(&fifo, Mode::from_bits_truncate(0o600)).expect("cannot make a FIFO");
        chown(&fifo, Some(user.as_raw()), None).expect("cannot give the FIFO away");
        // For writing too, so that it never ends.
        let news = OpenOptions::new().read(true).write(true).open(&fifo);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("cannot bind a port");
        let socket = folder.path().join("notify");
        let notified = UnixDatagram::bind(&socket).expect("cannot bind a socket");
        chown(&socket, Some(user.as_raw()), None).expect("cannot give the socket away");
        Course {
            folder,
            news: BufReader::new(news.expect("cannot open the FIFO")),
            listener,
            notified,
        }
    }

    fn worker(&self) -> [String; 4] {
        let journal = self.folder.path().join("news");
        [
            programs::worker().display().to_string(),
            format!("--journal={}", journal.display()),
            "--graceful".to_owned(),
            "--notify".to_owned(),
        ]
    }

    fn start(&self, options: &[&str]) -> Superdaemon {
        let mut command = ordinary_command(&programs::start_server(), self.folder.path());
        let port = format!("--port=127.0.0.1:{}", ports::tcp());
        command.args(["--ready=notify", "--pid-file=pid", "--status-file=status"]);
        command
            .args(options)
            .arg(port)
            .arg("--")
            .args(self.worker());
        Superdaemon::run(command)
    }

    /// Waits until so many workers of this generation serve.
    fn wait_for(&mut self, mut workers: usize, generation: u32) {
        while workers > 0 {
            let mut line = String::new();
            self.news
                .read_line(&mut line)
                .expect("cannot read the FIFO");
            let entry: Entry = line.trim_end().parse().expect("a line of a journal");
            if entry.happened == Happened::Served && entry.generation == generation {
                workers -= 1;
            }
        }
    }

    /// How long it takes until all of them serve.
    fn start_bare(&mut self, generation: u32) -> Duration {
        let inherited = fcntl(&self.listener, FcntlArg::F_SETFD(FdFlag::empty()));
        inherited.expect("cannot pass the listener on");
        let listener = format!("127.0.0.1:1={}", self.listener.as_raw_fd());
        let [program, arguments @ ..] = self.worker();
        let began = Instant::now();
        let mut workers: Vec<Child> = (0..WORKERS)
            .map(|_| {
                let mut command = ordinary_command(Path::new(&program), self.folder.path());
                command
                    .args(&arguments)
                    .env("SERVER_STARTER_PORT", &listener)
                    .env("SERVER_STARTER_GENERATION", generation.to_string())
                    .env("NOTIFY_SOCKET", self.folder.path().join("notify"));
                command.spawn().expect("cannot run a worker")
            })
            .collect();
        // The socket holds fewer than all of them send, and whoever sends more waits.
        for _ in &workers {
            let said = self.notified.recv(&mut [0; 64]);
            said.expect("nobody says READY=1");
        }
        self.wait_for(WORKERS, generation);
        let time = began.elapsed();
        let cloexec = fcntl(&self.listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        cloexec.expect("cannot keep the listener");
        for worker in &mut workers {
            worker.kill().expect("cannot kill a worker");
            worker.wait().expect("cannot wait for a worker");
        }
        time
    }
}

/// A start_server. Dropping it ends it.
struct Superdaemon {
    child: Child,
    status: std::path::PathBuf,
}

impl Superdaemon {
    fn run(mut command: Command) -> Superdaemon {
        let folder = command.get_current_dir().expect("a folder").to_owned();
        Superdaemon {
            child: command.spawn().expect("cannot run start_server"),
            status: folder.join("status"),
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn wait_until_committed(&self) {
        wait::until("it serves", String::new, || {
            self.status.exists().then_some(())
        });
    }

    /// Waits until the workers of one generation are left alone, and are accepted.
    fn wait_until_alone(&self, workers: usize) {
        wait::until("one generation is left", String::new, || {
            let status = fs::read_to_string(&self.status).ok()?;
            let accepted = status.lines().count() == workers;
            (accepted && proc::children(self.pid()).len() == workers).then_some(())
        });
    }
}

impl Drop for Superdaemon {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        drop(self.child.wait());
    }
}

// Beside pm2.

fn measure_nodes() {
    if !is_installed("node") {
        println!("SKIPPED: needs node, which is not installed");
        return;
    }
    for options in [&["--rolling"][..], &["--rolling=2"], &[]] {
        let name = format!("start_server {}", options.join(" "));
        measure_reloads(name.trim_end(), &mut Ours::start(options));
    }
    match Pm2::install() {
        Some(mut pm2) => measure_reloads("pm2", &mut pm2),
        None => println!("SKIPPED: needs pm2, which npm could not install"),
    }
}

/// A superdaemon with workers of Node.js.
trait Supervisor {
    fn port(&self) -> u16;
    /// Replaces all.
    fn reload(&self) -> Command;
    fn status(&self) -> Command;
}

fn measure_reloads(name: &str, supervisor: &mut dyn Supervisor) {
    let port = supervisor.port();
    let load = Load::start(port);
    let (mut times, mut statuses) = (Vec::new(), Vec::new());
    for _ in 0..RELOADS {
        times.push(time_of(supervisor.reload()));
    }
    let (answers, failures) = load.stop();
    for _ in 0..RELOADS {
        statuses.push(time_of(supervisor.status()));
    }
    println!(
        "{name}: {NODES} workers replaced in {:?}, {} of {} requests of {CLIENTS} clients failed, status in {:?}; \
         medians of {RELOADS}",
        median(&mut times),
        failures,
        answers + failures,
        median(&mut statuses)
    );
}

fn time_of(mut command: Command) -> Duration {
    let began = Instant::now();
    let status = command.status().expect("cannot run a command");
    assert!(status.success(), "{command:?} has failed");
    began.elapsed()
}

struct Ours {
    folder: Folder,
    port: u16,
    _superdaemon: Superdaemon,
}

impl Ours {
    fn start(options: &[&str]) -> Ours {
        let (user, group) = ordinary();
        let folder = Folder::new(user, group);
        fs::write(folder.path().join("server.js"), NODE).expect("cannot write the server");
        let port = ports::tcp();
        let mut command = ordinary_command(&programs::start_server(), folder.path());
        command.args(["--ready=fd:9", "--pid-file=pid", "--status-file=status"]);
        command.args([
            format!("--workers={NODES}"),
            format!("--port=127.0.0.1:{port}"),
        ]);
        command.args(options).args(["--", "node", "server.js"]);
        let superdaemon = Superdaemon::run(command);
        superdaemon.wait_until_alone(NODES);
        Ours {
            folder,
            port,
            _superdaemon: superdaemon,
        }
    }

    fn client(&self, act: &str) -> Command {
        let mut command = ordinary_command(&programs::start_server(), self.folder.path());
        command.args([act, "--pid-file=pid"]);
        command
    }
}

impl Supervisor for Ours {
    fn port(&self) -> u16 {
        self.port
    }

    fn reload(&self) -> Command {
        self.client("--restart")
    }

    fn status(&self) -> Command {
        self.client("--status")
    }
}

struct Pm2 {
    folder: Folder,
    port: u16,
}

impl Pm2 {
    fn install() -> Option<Pm2> {
        if !is_installed("npm") {
            return None;
        }
        let (user, group) = ordinary();
        let pm2 = Pm2 {
            folder: Folder::new(user, group),
            port: ports::tcp(),
        };
        fs::write(pm2.folder.path().join("server.js"), NODE).expect("cannot write the server");
        let mut npm = pm2.command("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "pm2"]);
        if !npm.status().is_ok_and(|status| status.success()) {
            return None;
        }
        let mut start = pm2.pm2("start");
        start.args(["server.js", "--name=app", "--wait-ready"]);
        start.arg(format!("--instances={NODES}"));
        time_of(start);
        Some(pm2)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = ordinary_command(Path::new(program), self.folder.path());
        command
            .env("HOME", self.folder.path())
            .env("PM2_HOME", self.folder.path().join("pm2"))
            .env("PORT", self.port.to_string());
        // What leads to the registry, if there is need of it.
        for (name, value) in env::vars() {
            let name_of = name.to_lowercase();
            if name_of.ends_with("_proxy")
                || name_of.starts_with("npm_config")
                || name.contains("CA_")
            {
                command.env(name, value);
            }
        }
        command
    }

    fn pm2(&self, act: &str) -> Command {
        let mut command = self.command("node_modules/.bin/pm2");
        command.arg(act);
        command
    }
}

impl Supervisor for Pm2 {
    fn port(&self) -> u16 {
        self.port
    }

    fn reload(&self) -> Command {
        let mut command = self.pm2("reload");
        command.arg("app");
        command
    }

    fn status(&self) -> Command {
        self.pm2("status")
    }
}

impl Drop for Pm2 {
    fn drop(&mut self) {
        drop(self.pm2("kill").status());
    }
}

/// HTTP clients in a closed loop, each request on a connection of its own.
struct Load {
    stopped: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(u64, u64)>>,
}

impl Load {
    fn start(port: u16) -> Load {
        wait::until("it answers", String::new, || ask(port).ok());
        let stopped = Arc::new(AtomicBool::new(false));
        let client = || {
            let stopped = Arc::clone(&stopped);
            thread::spawn(move || {
                let (mut answers, mut failures) = (0, 0);
                while !stopped.load(Ordering::Relaxed) {
                    match ask(port) {
                        Ok(()) => answers += 1,
                        Err(_) => failures += 1,
                    }
                }
                (answers, failures)
            })
        };
        let clients = (0..CLIENTS).map(|_| client()).collect();
        Load { stopped, clients }
    }

    /// The numbers of answers and of failures.
    fn stop(self) -> (u64, u64) {
        self.stopped.store(true, Ordering::Relaxed);
        let clients = self.clients.into_iter();
        let counts = clients.map(|client| client.join().expect("a client panicked"));
        counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
    }
}

fn ask(port: u16) -> io::Result<()> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.set_read_timeout(Some(wait::DEADLINE))?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    match answer.starts_with("HTTP/1.1 200") && answer.ends_with('\n') {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

// Small things.

/// A quiet command of an ordinary user.
fn ordinary_command(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.current_dir(folder).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    if Uid::effective().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn ordinary() -> (Uid, Gid) {
    match Uid::effective().is_root() {
        true => (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY)),
        false => (Uid::effective(), Gid::effective()),
    }
}

fn is_installed(program: &str) -> bool {
    e2e::skip::find_program(program).is_some()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// In KiB.
fn private_dirty(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let text = text.expect("cannot read smaps_rollup: needs root");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Private_Dirty:"));
    let mut words = line.expect("no such line").split_whitespace();
    words.next().expect("a number").parse().expect("a number")
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").expect("cannot read the load average");
    text.split(' ').next().unwrap_or_default().to_owned()
}
