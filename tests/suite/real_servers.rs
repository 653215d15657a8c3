//! Servers that others wrote, as Debian ships them, are restarted under load with the few lines in `tests/servers`.
//! All that they know of start_server is what it promises to every worker.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use e2e::skip::{missing, needs_program, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Server, Setup, Worker, ports, proc, wait};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::many_workers::{number_or, tell};

const RESTARTS: u32 = 3;

const CLIENTS: usize = 3;

/// What is particular to one server.
pub struct Recipe {
    /// `@PORT@` stands for the port here and in the files.
    pub program: &'static [&'static str],
    /// Those of `tests/servers` that it needs in its folder.
    pub files: &'static [&'static str],
    /// Those of start_server.
    pub options: &'static [&'static str],
    /// How many clients ask all the time.
    pub clients: usize,
    /// The request of one more client, which takes longer than the restart.
    pub held: Option<Held>,
}

/// How much of a request has come when its server is told to stop.
#[derive(Clone, Copy)]
pub enum Held {
    /// The first line.
    Line,
    /// All but the body.
    Head,
}

pub const UNICORN: Recipe = Recipe {
    program: &["unicorn", "-c", "unicorn.rb", "config.ru"],
    files: &["unicorn.rb", "config.ru"],
    options: &[
        "--fd-env=unicorn",
        "--signal-on-hup=QUIT",
        "--signal-on-term=QUIT",
    ],
    clients: CLIENTS,
    held: Some(Held::Line),
};

pub const PUMA: Recipe = Recipe {
    program: &[
        "puma",
        "-C",
        "puma.rb",
        "-b",
        "tcp://127.0.0.1:@PORT@",
        "config.ru",
    ],
    files: &["puma.rb", "config.ru"],
    options: &["--fd-env=systemd"],
    clients: CLIENTS,
    held: Some(Held::Line),
};

pub const NGINX: Recipe = Recipe {
    program: &["nginx", "-p", ".", "-c", "nginx.conf"],
    files: &["nginx.conf", "listen.conf"],
    options: &[
        "--fd-env=nginx",
        "--signal-on-hup=QUIT",
        "--signal-on-term=QUIT",
    ],
    clients: CLIENTS,
    held: Some(Held::Line),
};

pub const H2O: Recipe = Recipe {
    program: &["h2o", "-c", "h2o.conf"],
    files: &["h2o.conf"],
    options: &[],
    clients: CLIENTS,
    held: Some(Held::Line),
};

pub const GUNICORN: Recipe = Recipe {
    program: &["gunicorn", "--workers=2", "app:wsgi"],
    files: &["app.py"],
    options: &["--fd-env=systemd"],
    clients: CLIENTS,
    held: Some(Held::Line),
};

/// No load: when it is told to stop it drops the connections of which it has not read a request yet.
pub const UVICORN: Recipe = Recipe {
    program: &["uvicorn", "--fd=3", "app:asgi"],
    files: &["app.py"],
    options: &[],
    clients: 0,
    held: Some(Held::Head),
};

pub const UVICORN_THAT_WAITS: Recipe = Recipe {
    program: &["/usr/bin/python3", "uvicorn_that_waits.py"],
    files: &["uvicorn_that_waits.py", "app.py"],
    options: &[],
    clients: CLIENTS,
    held: Some(Held::Line),
};

pub const NODE: Recipe = Recipe {
    program: &["node", "server.js"],
    files: &["server.js"],
    options: &[],
    clients: CLIENTS,
    held: Some(Held::Line),
};

pub const STARLET: Recipe = Recipe {
    program: &["plackup", "-s", "Starlet", "--max-workers=2", "app.psgi"],
    files: &["app.psgi"],
    options: &[],
    clients: CLIENTS,
    held: Some(Held::Line),
};

/// No load and no request that is held: the signal that ends its processes ends the read(2) of a request too, and the
/// process that has just accepted a connection.
pub const STARMAN: Recipe = Recipe {
    program: &["starman", "--workers=2", "app.psgi"],
    files: &["app.psgi"],
    options: &["--signal-on-hup=QUIT", "--signal-on-term=QUIT"],
    clients: 0,
    held: None,
};

/// A server by its recipe, ready to start.
pub fn cook(recipe: &Recipe, setup: Setup, port: u16) -> Setup {
    let fill_in = |text: &str| text.replace("@PORT@", &port.to_string());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers");
    for file in recipe.files {
        let text = fs::read_to_string(source.join(file)).expect("cannot read the server's file");
        fs::write(setup.folder().join(file), fill_in(&text))
            .expect("cannot copy the server's file");
    }
    setup
        .port(port)
        .interval("1")
        .status_file()
        // Python would leave what it compiled.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .options(recipe.options)
        .program(recipe.program.iter().map(|word| fill_in(word)))
}

/// A request that has begun.
pub struct Request {
    connection: TcpStream,
    rest: &'static [u8],
}

impl Request {
    pub fn begin(port: u16, part: Held) -> io::Result<Request> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut connection = TcpStream::connect_timeout(&address, wait::DEADLINE)?;
        connection.set_read_timeout(Some(wait::DEADLINE))?;
        let (first, rest): (&[u8], &[u8]) = match part {
            Held::Line => (b"GET / HTTP/1.0\r\n", b"\r\n"),
            Held::Head => (b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\n", b"end"),
        };
        connection.write_all(first)?;
        Ok(Request { connection, rest })
    }

    pub fn finish(mut self) -> io::Result<Answerer> {
        self.connection.write_all(self.rest)?;
        let mut text = String::new();
        self.connection.read_to_string(&mut text)?;
        parse(&text).ok_or_else(|| io::Error::other(format!("not what was asked for: {text:?}")))
    }
}

pub fn ask(port: u16) -> io::Result<Answerer> {
    Request::begin(port, Held::Line)?.finish()
}

/// Who answered, as well as the server knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answerer {
    Generation(u32),
    /// A child of the worker.
    Process(Pid),
}

fn parse(answer: &str) -> Option<Answerer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if head.split(' ').nth(1) != Some("200") {
        return None;
    }
    match body.trim_end().split_once(' ')? {
        ("generation", number) => number.parse().ok().map(Answerer::Generation),
        ("process", pid) => Some(Answerer::Process(Pid::from_raw(pid.parse().ok()?))),
        _ => None,
    }
}

impl Answerer {
    pub fn belongs_to(&self, worker: Worker) -> bool {
        match *self {
            Answerer::Generation(generation) => generation == worker.generation,
            Answerer::Process(pid) => proc::children(worker.pid).contains(&pid),
        }
    }
}

/// HTTP clients in a closed loop.
pub struct Load {
    stopped: Arc<AtomicBool>,
    successes: Arc<AtomicU64>,
    answerers: Arc<Mutex<BTreeSet<Answerer>>>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    pub fn start(port: u16, clients: usize) -> Load {
        let stopped = Arc::new(AtomicBool::new(false));
        let successes = Arc::new(AtomicU64::new(0));
        let answerers = Arc::new(Mutex::new(BTreeSet::new()));
        let clients = (0..clients)
            .map(|_| {
                let (stopped, successes) = (Arc::clone(&stopped), Arc::clone(&successes));
                let answerers = Arc::clone(&answerers);
                thread::spawn(move || {
                    let mut failures = Vec::new();
                    while !stopped.load(Ordering::Relaxed) {
                        match ask(port) {
                            Ok(answerer) => {
                                let mut answerers = answerers.lock().expect("a client panicked");
                                answerers.insert(answerer);
                                successes.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => failures.push(error.to_string()),
                        }
                    }
                    failures
                })
            })
            .collect();
        Load {
            stopped,
            successes,
            answerers,
            clients,
        }
    }

    /// Everybody who has answered so far.
    pub fn answerers(&self) -> BTreeSet<Answerer> {
        self.answerers.lock().expect("a client panicked").clone()
    }

    /// How many requests were answered so far.
    pub fn successes(&self) -> u64 {
        self.successes.load(Ordering::Relaxed)
    }

    /// Waits until more requests were answered than now, so that what follows happens under load.
    #[track_caller]
    pub fn wait_for_more(&self, server: &Server, more: u64) {
        if self.clients.is_empty() {
            return;
        }
        let wanted = self.successes.load(Ordering::Relaxed) + more;
        server.wait_until(&format!("{wanted} requests were answered"), |_| {
            self.successes.load(Ordering::Relaxed) >= wanted
        });
    }

    /// The errors, one for each request without an answer.
    pub fn stop(self) -> Vec<String> {
        self.stopped.store(true, Ordering::Relaxed);
        let clients = self.clients.into_iter();
        clients
            .flat_map(|client| client.join().expect("a client panicked"))
            .collect()
    }
}

/// The workers in the status file. (Some of these servers overwrite their environment in /proc with their title.)
pub fn accepted(server: &Server) -> Vec<Worker> {
    let text = server.status_file().unwrap_or_default();
    let worker = |line: &str| {
        let (generation, pid) = line.split_once(':').expect("not GENERATION:PID");
        Worker {
            generation: generation.parse().expect("not a generation"),
            pid: Pid::from_raw(pid.parse().expect("not a pid")),
        }
    };
    text.lines().map(worker).collect()
}

/// The living processes whose directory this is: start_server and everything below it.
pub fn processes_in(folder: &Path) -> Vec<Pid> {
    let ours = |pid: &Pid| {
        let directory = fs::read_link(format!("/proc/{pid}/cwd"));
        directory.is_ok_and(|directory| directory == folder)
    };
    proc::all()
        .into_iter()
        .filter(ours)
        .filter(|&pid| proc::alive(pid))
        .collect()
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("cannot read the folder");
    entries
        .map(|entry| entry.expect("cannot read the folder").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

/// Waits until the old generation accepts no more connections: they are answered by chance as long as both do.
/// Requests that fail meanwhile are for the load to count; not every server can do without failures.
#[track_caller]
pub fn wait_until_it_serves_alone(server: &Server, worker: Worker, port: u16) {
    server.wait_until(&format!("{worker:?} alone answers"), |_| {
        (0..20).all(|_| ask(port).is_ok_and(|answerer| answerer.belongs_to(worker)))
    });
}

/// Restarts it, and returns the worker of the new generation.
fn restart(server: &Server, old: Worker, port: u16, held: Option<Held>) -> Worker {
    let held = held.map(|part| {
        let request = Request::begin(port, part).expect("cannot begin a request");
        // Connections are accepted in their order: when a later one is answered, this one was accepted.
        assert!(ask(port).expect("no answer").belongs_to(old));
        // A process of nginx is nobody's child once its master is gone.
        (request, proc::children(old.pid))
    });
    server.signal(Signal::SIGHUP);
    let new = server.wait_for("the new generation is accepted", |server| {
        accepted(server).into_iter().find(|&worker| worker > old)
    });
    wait_until_it_serves_alone(server, new, port);
    if let Some((request, children)) = held {
        match request.finish().expect("the held request was lost") {
            Answerer::Generation(generation) => assert_eq!(generation, old.generation),
            Answerer::Process(pid) => assert!(children.contains(&pid)),
        }
    }
    server.wait_until("the old generation is gone", |server| {
        accepted(server) == [new]
    });
    new
}

/// Everything that is promised to a server, by its recipe.
pub fn restarts_without_a_failed_request(recipe: &Recipe, setup: Setup) {
    restarts_so_often_without_a_failed_request(recipe, setup, RESTARTS);
}

/// Returns how many requests of the load were answered.
fn restarts_so_often_without_a_failed_request(recipe: &Recipe, setup: Setup, restarts: u32) -> u64 {
    let port = ports::tcp();
    let setup = cook(recipe, setup, port);
    let mut files = names_in(setup.folder());
    files.insert("log".to_owned());
    let mut server = setup.start();
    let mut worker = server.wait_for("the first generation is accepted", |server| {
        accepted(server).first().copied()
    });
    assert!(ask(port).expect("no answer").belongs_to(worker));

    let load = Load::start(port, recipe.clients);
    for _ in 0..restarts {
        load.wait_for_more(&server, 50);
        worker = restart(&server, worker, port, recipe.held);
    }
    load.wait_for_more(&server, 50);
    let answers = load.successes();
    assert_eq!(load.stop(), [""; 0], "{}", server.log());

    assert!(server.stop().success());
    wait::until(
        "no process is left",
        || format!("{:?}", processes_in(server.folder())),
        || processes_in(server.folder()).is_empty().then_some(()),
    );
    assert_eq!(names_in(server.folder()), files);
    answers
}

/// Options that only start_server has.
const TOLD: [&str; 3] = ["--fd-env", "--preset", "--switch"];

/// Whether this server can be run here.
pub fn can_run(recipe: &Recipe) -> bool {
    let told_otherwise = recipe
        .options
        .iter()
        .any(|option| TOLD.iter().any(|told| option.starts_with(told)));
    needs_program(recipe.program[0])
        && !(told_otherwise && original_differs("it has neither --fd-env nor --preset"))
}

/// Whether Perl has this server for plackup.
pub fn needs_plack_server(name: &str) -> bool {
    let module = format!("-MPlack::Handler::{name}");
    let found = Command::new("perl")
        .args([&module, "-e", ""])
        .output_in_turn();
    found.is_ok_and(|output| output.status.success())
        || missing(&format!("needs {name}, which is not installed"))
}

fn as_ordinary_user(recipe: &Recipe) {
    if can_run(recipe) {
        restarts_without_a_failed_request(recipe, Server::setup());
    }
}

fn as_root(recipe: &Recipe) {
    if can_run(recipe) && needs_root() && !original_differs("it has no --user") {
        let setup = Server::setup().as_root().option("--user=nobody");
        restarts_without_a_failed_request(recipe, setup);
    }
}

#[test]
fn unicorn_is_restarted_without_a_failed_request_and_without_code_in_its_configuration() {
    as_ordinary_user(&UNICORN);
}

#[test]
fn puma_is_restarted_without_a_failed_request() {
    as_ordinary_user(&PUMA);
}

#[test]
fn nginx_is_restarted_without_a_failed_request() {
    as_ordinary_user(&NGINX);
}

#[test]
fn h2o_is_restarted_without_a_failed_request() {
    as_ordinary_user(&H2O);
}

#[test]
fn gunicorn_is_restarted_without_a_failed_request() {
    as_ordinary_user(&GUNICORN);
}

#[test]
fn uvicorn_answers_the_requests_that_it_has_begun_to_read() {
    as_ordinary_user(&UVICORN);
}

#[test]
fn uvicorn_that_waits_for_requests_is_restarted_without_a_failed_one() {
    // It is a program of its own, for Python.
    if needs_program("uvicorn") {
        as_ordinary_user(&UVICORN_THAT_WAITS);
    }
}

#[test]
fn node_is_restarted_without_a_failed_request() {
    as_ordinary_user(&NODE);
}

#[test]
fn starlet_is_restarted_without_a_failed_request() {
    // plackup runs other servers too.
    if needs_plack_server("Starlet") {
        as_ordinary_user(&STARLET);
    }
}

#[test]
fn starman_is_restarted_between_requests() {
    as_ordinary_user(&STARMAN);
}

#[test]
fn nginx_is_restarted_without_a_failed_request_below_a_server_that_was_started_as_root() {
    as_root(&NGINX);
}

#[test]
fn h2o_is_restarted_without_a_failed_request_below_a_server_that_was_started_as_root() {
    as_root(&H2O);
}

#[test]
fn puma_is_restarted_without_a_failed_request_below_a_server_that_was_started_as_root() {
    as_root(&PUMA);
}

/// By signals that end them at once, and without the code or the options that they need otherwise.
///
/// `E2E_SWITCH_RESTARTS=40 E2E_CLIENTS=8 cargo test -p e2e --test suite -- --nocapture loses_nothing_with_a_switch` is the
/// long run.
fn as_ordinary_user_with_a_switch(recipe: &Recipe) {
    let restarts = number_or("E2E_SWITCH_RESTARTS", RESTARTS);
    let clients = number_or("E2E_CLIENTS", 3);
    let recipe = Recipe {
        clients: clients.try_into().expect("a number"),
        held: None,
        ..*recipe
    };
    if !can_run(&recipe) {
        return;
    }
    let answers = restarts_so_often_without_a_failed_request(&recipe, Server::setup(), restarts);
    tell(&format!(
        "{}, restarts: {restarts}, clients: {clients}, answers: {answers}, failures: 0",
        recipe.program[0]
    ));
}

#[test]
fn uvicorn_loses_nothing_with_a_switch() {
    as_ordinary_user_with_a_switch(&Recipe {
        options: &["--switch"],
        ..UVICORN
    });
}

#[test]
fn starman_loses_nothing_with_a_switch() {
    if needs_plack_server("Starman") {
        as_ordinary_user_with_a_switch(&Recipe {
            options: &["--switch"],
            ..STARMAN
        });
    }
}

#[test]
fn gunicorn_loses_nothing_with_a_switch() {
    as_ordinary_user_with_a_switch(&Recipe {
        options: &["--fd-env=systemd", "--switch"],
        ..GUNICORN
    });
}

#[test]
fn unicorn_loses_nothing_with_a_switch_though_its_workers_are_ended_at_once() {
    as_ordinary_user_with_a_switch(&Recipe {
        options: &["--fd-env=unicorn", "--switch"],
        ..UNICORN
    });
}

#[test]
fn nginx_loses_nothing_with_a_switch_though_its_workers_are_ended_at_once() {
    as_ordinary_user_with_a_switch(&Recipe {
        options: &["--fd-env=nginx", "--switch"],
        ..NGINX
    });
}

#[test]
fn node_loses_nothing_with_a_switch() {
    as_ordinary_user_with_a_switch(&Recipe {
        options: &["--switch"],
        ..NODE
    });
}
