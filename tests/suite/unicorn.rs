//! The usual recipe for unicorn, with the real one: the application in `tests/unicorn` is restarted under load.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use e2e::server::NOBODY;
use e2e::skip::{needs_program, needs_root, original_differs};
use e2e::{Server, Setup, Worker, ports, proc, wait};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid};

/// As many as `config/unicorn.conf.rb` says.
const UNICORN_WORKERS: usize = 2;

const CLIENTS: usize = 4;

/// The recipe, for the application in the server's folder.
fn recipe(setup: Setup, port: u16) -> Setup {
    let app = copy_application(setup.folder());
    setup
        .port(port)
        .env("RACK_ENV", "production")
        .option("--signal-on-hup=CONT")
        .option(format!("--dir={}", app.display()))
        .program(["unicorn", "-c", "config/unicorn.conf.rb", "config.ru"])
}

/// Everybody can read the application, and its server can write to its folder `log`.
fn copy_application(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("unicorn");
    let app = folder.join("app");
    for directory in ["config", "log"] {
        fs::create_dir_all(app.join(directory)).expect("cannot make a folder for the application");
    }
    for file in ["config.ru", "config/unicorn.conf.rb"] {
        fs::copy(source.join(file), app.join(file)).expect("cannot copy the application");
    }
    if Uid::effective().is_root() {
        chown(app.join("log"), Some(NOBODY), Some(NOBODY)).expect("cannot give the folder away");
    }
    app
}

/// Which unicorn answers: the worker of start_server is the master of unicorn.
fn ask(port: u16) -> io::Result<Worker> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut connection = TcpStream::connect_timeout(&address, wait::DEADLINE)?;
    connection.set_read_timeout(Some(wait::DEADLINE))?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::other(format!("not what was asked for: {answer:?}")))
}

fn parse(answer: &str) -> Option<Worker> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let (generation, pid) = body.trim_end().split_once(' ')?;
    let ok = head.split(' ').nth(1) == Some("200");
    ok.then_some(Worker {
        generation: generation.parse().ok()?,
        pid: Pid::from_raw(pid.parse().ok()?),
    })
}

/// HTTP clients in a closed loop.
struct Load {
    stopped: Arc<AtomicBool>,
    successes: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(port: u16) -> Load {
        let stopped = Arc::new(AtomicBool::new(false));
        let successes = Arc::new(AtomicU64::new(0));
        let clients = (0..CLIENTS)
            .map(|_| {
                let (stopped, successes) = (Arc::clone(&stopped), Arc::clone(&successes));
                thread::spawn(move || {
                    let mut failures = Vec::new();
                    while !stopped.load(Ordering::Relaxed) {
                        match ask(port) {
                            Ok(_) => drop(successes.fetch_add(1, Ordering::Relaxed)),
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
            clients,
        }
    }

    /// Waits until more requests were answered than now, so that what follows happens under load.
    #[track_caller]
    fn wait_for_more(&self, server: &Server, more: u64) {
        let wanted = self.successes.load(Ordering::Relaxed) + more;
        server.wait_until(&format!("{wanted} requests were answered"), |_| {
            self.successes.load(Ordering::Relaxed) >= wanted
        });
    }

    fn stop(self) -> Vec<String> {
        self.stopped.store(true, Ordering::Relaxed);
        let clients = self.clients.into_iter();
        clients
            .flat_map(|client| client.join().expect("a client panicked"))
            .collect()
    }
}

/// The living processes of the application: unicorn's masters and workers.
fn processes_in(app: &Path) -> Vec<Pid> {
    let ours = |pid: &Pid| {
        let directory = fs::read_link(format!("/proc/{pid}/cwd"));
        directory.is_ok_and(|directory| directory == app)
    };
    proc::all()
        .into_iter()
        .filter(ours)
        .filter(|&pid| proc::alive(pid))
        .collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("cannot read the folder");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("cannot read the folder").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The first generation, when it answers and the server has accepted it.
fn first_generation(server: &Server, status_file: &str, port: u16) {
    server.wait_until("the first generation is accepted", |server| {
        server.folder().join(status_file).exists()
    });
    let first = server.wait_for("unicorn answers", |_| ask(port).ok());
    assert_eq!(first.generation, 1);
}

/// Restarts it and looks at everything that the recipe promises.
fn restart_under_load(setup: Setup) {
    let port = ports::tcp();
    let mut server = recipe(setup, port)
        .option("--status-file=app/log/unicorn.stat")
        .start();
    let app = server.folder().join("app");
    first_generation(&server, "app/log/unicorn.stat", port);

    let load = Load::start(port);
    for generation in 2..=5 {
        load.wait_for_more(&server, 50);
        let master = server.restart();
        assert_eq!(master.generation, generation);
        assert_eq!(ask(port).expect("no answer"), master);
        // The slow restart: one old worker for each new one, and the last takes the old master with it.
        let previous = generation - 1;
        let took = |worker, signal| {
            format!(
                "worker={worker} of generation {generation} sent {signal} to generation {previous}"
            )
        };
        server.wait_for_log(&took(0, "TTOU"));
        server.wait_for_log(&took(1, "QUIT"));
    }
    load.wait_for_more(&server, 50);
    assert_eq!(load.stop(), [""; 0], "{}", server.log());

    server.wait_until("one master and its workers are left", |_| {
        processes_in(&app).len() == 1 + UNICORN_WORKERS
    });
    // Also where the new master has stopped the old one before it was taken for started.
    assert_eq!(server.count_in_log("unexpectedly"), 0, "{}", server.log());
    assert!(server.stop().success());
    // Its workers are not children of start_server, which has not waited for them.
    wait::until(
        "no process of the application is left",
        || format!("{:?}", processes_in(&app)),
        || processes_in(&app).is_empty().then_some(()),
    );
    assert_eq!(names_in(&app.join("log")), [""; 0]);
    assert_eq!(names_in(server.folder()), ["app", "log"]);
}

#[test]
fn unicorn_is_replaced_worker_by_worker_without_a_failed_request() {
    if !needs_program("unicorn") {
        return;
    }
    // Here the old master goes before start_server takes the new one for started, below after that.
    restart_under_load(Server::setup().interval("1"));
}

#[test]
fn unicorn_is_replaced_worker_by_worker_below_a_server_that_was_started_as_root() {
    if !needs_program("unicorn") || !needs_root() || original_differs("it has no --user") {
        return;
    }
    restart_under_load(Server::setup().as_root().option("--user=nobody"));
}

#[test]
fn unicorn_finds_a_status_file_outside_of_its_folder_by_its_environment() {
    if !needs_program("unicorn") {
        return;
    }
    let port = ports::tcp();
    let setup = recipe(Server::setup(), port).status_file();
    let status_file = setup.folder().join("status");
    let server = setup.env("UNICORN_STATUS_FILE", status_file).start();
    first_generation(&server, "status", port);
    assert_eq!(server.restart().generation, 2);
}

#[test]
fn two_unicorns_are_replaced_each_by_its_successor_without_a_failed_request() {
    if !needs_program("unicorn") || original_differs("it has no --workers") {
        return;
    }
    let port = ports::tcp();
    // Each old master goes long before start_server takes the new ones for started.
    let setup = recipe(Server::setup().interval("2"), port).option("--workers=2");
    let mut server = setup.option("--status-file=app/log/unicorn.stat").start();
    let app = server.folder().join("app");
    first_generation(&server, "app/log/unicorn.stat", port);
    let load = Load::start(port);
    for generation in 2..=3 {
        load.wait_for_more(&server, 50);
        server.signal(Signal::SIGHUP);
        server.wait_until("the new ones are left alone, and accepted", |server| {
            let workers = server.workers().into_iter();
            let mut lines: Vec<String> = workers
                .map(|one| format!("{generation}:{}", one.pid))
                .collect();
            let status = fs::read_to_string(app.join("log/unicorn.stat")).unwrap_or_default();
            let mut listed: Vec<&str> = status.lines().collect();
            lines.sort();
            listed.sort_unstable();
            lines.len() == 2
                && lines == listed
                && processes_in(&app).len() == 2 * (1 + UNICORN_WORKERS)
        });
    }
    assert_eq!(load.stop(), [""; 0], "{}", server.log());
    assert!(server.stop().success());
}
