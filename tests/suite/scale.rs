//! Many ports, many restarts, and a long time in which nothing happens.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::time::{Duration, Instant};

use e2e::server::NOBODY;
use e2e::skip::{missing, original_differs};
use e2e::wait::let_pass;
use e2e::{Report, Server, Setup, client, ports, proc, programs};
use nix::sys::resource::Resource;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, Uid, mkfifo};

use crate::readiness::{self, scripted, with_files};

const PORTS: i32 = 1000;

const RESTARTS: u32 = 1000;

/// By then everything that grows only once has grown.
const WARM: u32 = 100;

/// A worker that leaves no journal, which would grow all the time.
fn silent_worker(setup: Setup) -> Setup {
    setup.program([programs::worker()])
}

fn unused_ports() -> Vec<u16> {
    (0..PORTS).map(|_| ports::tcp()).collect()
}

fn many_ports(setup: Setup, ports: &[u16]) -> Setup {
    ports.iter().fold(setup, |setup, &port| setup.port(port))
}

/// The worker has the listeners and nothing else, and the limit that the launcher had.
fn check_report(report: &Report, ports: &[u16], limit: (u64, u64)) {
    assert_eq!(report.nofile, limit);
    let expected: Vec<i32> = (0..3 + PORTS).collect();
    assert_eq!(report.descriptor_numbers(), expected);
    let numbers: Vec<i32> = report.listeners.iter().map(|it| it.fd).collect();
    assert_eq!(numbers, expected[3..]);
    for port in ports {
        let address = format!("127.0.0.1:{port}");
        let socket = report.socket(&address);
        assert!(socket.listening, "{address}");
        assert_eq!(socket.address, address);
    }
}

#[test]
fn a_thousand_ports_are_served_at_once() {
    if original_differs("it has no free descriptor 3") {
        return;
    }
    let ports = unused_ports();
    // The fixture accepts at all of them at once, and each accept takes a descriptor in advance.
    let limit = (2 * 1024, 4096);
    let setup = many_ports(silent_worker(Server::setup()), &ports);
    let server = setup
        .limit(Resource::RLIMIT_NOFILE, limit.0, limit.1)
        .start();
    let report = server.ask(ports[0]);
    check_report(&report, &ports, limit);
    for port in ports {
        let pid = client::request(port, "ping").expect("a port does not answer");
        assert_eq!(pid, report.pid.to_string(), "port {port}");
    }
}

#[test]
fn a_thousand_ports_fit_into_the_usual_soft_limit_of_1024_open_files() {
    if original_differs("it has no free descriptor 3") {
        return;
    }
    let ports = unused_ports();
    let limit = (1024, 4096);
    let setup = many_ports(Server::setup(), &ports);
    let (written, gate) = (setup.folder().join("report"), setup.folder().join("gate"));
    mkfifo(&gate, Mode::S_IRWXU).expect("cannot make a FIFO");
    if Uid::effective().is_root() {
        chown(&gate, Some(NOBODY), Some(NOBODY)).expect("cannot give the FIFO away");
    }
    // It never gets as far as accept, see above.
    let program = [
        programs::worker().into_os_string(),
        format!("--report={}", written.display()).into(),
        format!("--hold={}", gate.display()).into(),
    ];
    let server = setup
        .program(program)
        .limit(Resource::RLIMIT_NOFILE, limit.0, limit.1)
        .start();
    let report = server.wait_for("the worker has reported", |_| {
        serde_json::from_str(&fs::read_to_string(&written).ok()?).ok()
    });
    check_report(&report, &ports, limit);
}

#[test]
fn more_ports_than_the_launcher_allows_open_files_are_refused() {
    if original_differs("its message is another one") {
        return;
    }
    for limit in [512, 1020] {
        let setup = many_ports(Server::setup(), &unused_ports());
        let finished = setup.limit(Resource::RLIMIT_NOFILE, limit, limit).run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        let message = format!(
            "start_server: cannot open 1000 sockets: that takes 2016 descriptors, and the limit on open files is {limit}"
        );
        assert!(
            finished.log.lines().any(|line| line == message),
            "{}",
            finished.log
        );
        assert_eq!(finished.server.started(), []);
    }
}

/// What a server holds on to.
#[derive(Debug)]
struct Holdings {
    descriptors: BTreeMap<i32, String>,
    /// In KiB: what it has written to, and all that it has in memory.
    dirty: u64,
    resident: u64,
    /// Dead ones included.
    children: Vec<Pid>,
    files: Vec<String>,
}

impl Holdings {
    /// `None` where we may not look.
    fn of(server: &Server) -> Option<Holdings> {
        let pid = server.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let entries = fs::read_dir(server.folder()).expect("cannot read the folder");
        let mut files: Vec<String> = entries
            .map(|entry| entry.expect("cannot read the folder").file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        files.sort();
        Some(Holdings {
            descriptors: proc::descriptors(pid),
            dirty: memory(pid, "Private_Dirty")?,
            resident: memory(pid, "Rss")?,
            children: children
                .split_whitespace()
                .map(|child| Pid::from_raw(child.parse().expect("a pid")))
                .collect(),
            files,
        })
    }
}

/// One server, since it is one server that must not grow: at 50 milliseconds for each proof of life this takes about
/// a minute, beside which the other tests run.
#[test]
fn a_thousand_restarts_in_a_row_leave_no_descriptor_no_zombie_no_file_and_no_growing_memory() {
    if original_differs("it stops the old generation before the new one has started") {
        return;
    }
    let setup = silent_worker(Server::setup().status_file().pid_file().interval("0"));
    let server = setup.port(ports::tcp()).start();
    server.wait_until_accepted();
    let mut warm = None;
    for generation in 2..=RESTARTS + 1 {
        // It comes back when the new generation serves alone, so that the next HUP is a restart of its own.
        assert_eq!(server.restart().generation, generation);
        if generation == WARM + 1 {
            warm = settled(&server, generation);
        }
    }
    let end = settled(&server, RESTARTS + 1);
    let (Some(warm), Some(end)) = (warm, end) else {
        // An ordinary user may not look into the server of another, nor into one that is not dumpable.
        missing("needs to read /proc/PID/fd and smaps_rollup of the server");
        return;
    };
    let last = server.workers();
    assert_eq!(end.children, [last[0].pid]);
    // Status files are held open, each with a new inode but the same name.
    assert_eq!(
        end.descriptors.len(),
        warm.descriptors.len(),
        "{:?}",
        end.descriptors
    );
    assert_eq!(end.files, warm.files);
    for (what, before, after, slack) in [
        ("dirty", warm.dirty, end.dirty, 32),
        // The kernel maps the program's own pages as it likes.
        ("resident", warm.resident, end.resident, 256),
    ] {
        assert!(
            after <= before + slack,
            "{what} memory grew from {before} to {after} KiB between restart {WARM} and {RESTARTS}"
        );
    }
}

#[test]
fn memory_that_only_a_start_needs_is_given_back_after_it() {
    if original_differs("it is a Perl program") {
        return;
    }
    let setup = silent_worker(Server::setup().status_file().pid_file().interval("1"));
    let mut server = setup.port(ports::tcp()).start();
    server.wait_until_accepted();
    for generation in 2..=3 {
        let before = server.generations().len();
        server.signal(Signal::SIGHUP);
        server.wait_until("the next one is starting", |server| {
            server.generations().len() > before
        });
        let during = memory(server.pid(), "Rss");
        server.wait_for_generations(&[generation]);
        wait_until_idle(&server);
        let (Some(during), Some(after)) = (during, memory(server.pid(), "Rss")) else {
            missing("needs to read /proc/PID/smaps_rollup of the server");
            return;
        };
        assert!(
            after + 256 < during,
            "{during} KiB during the start, {after} KiB after it"
        );
    }
    assert!(server.stop().success());
}

/// One line of /proc/PID/smaps_rollup.
fn memory(pid: Pid, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is held when this generation serves alone and everything is written down.
fn settled(server: &Server, generation: u32) -> Option<Holdings> {
    let status = format!("{generation}:{}\n", server.workers()[0].pid);
    server.wait_until("the status file is written", |server| {
        server.status_file().as_ref() == Some(&status)
    });
    wait_until_idle(server);
    Holdings::of(server)
}

/// Waits until the server did nothing for a moment: what it does after the status file is done then.
fn wait_until_idle(server: &Server) {
    server.wait_until("the server is idle", |server| {
        let look = || {
            let status = proc::status(server.pid()).expect("the server has ended");
            (status.is_sleeping, status.context_switches)
        };
        let before = look();
        let_pass(Duration::from_millis(20));
        // On a busy machine it may only wait for its turn.
        before.0 && look() == before
    });
}

/// Without another proof, a look at the queues of the listeners follows 5 seconds after each commit.
fn wait_until_it_has_looked(server: &Server) {
    wait_until_idle(server);
    let (begin, before) = (Instant::now(), proc::context_switches(server.pid()));
    // It may have looked before this did.
    let is_over = || begin.elapsed() > Duration::from_secs(6);
    server.wait_until("it has looked at the queues", |server| {
        proc::context_switches(server.pid()) > before || is_over()
    });
    wait_until_idle(server);
}

#[test]
fn an_idle_server_does_not_wake_up() {
    let port = ports::tcp();
    let setup = Server::setup().status_file().pid_file().port(port);
    let server = setup.worker(["--graceful"]).start();
    server.wait_until_accepted();
    server.restart();
    wait_until_it_has_looked(&server);
    let before = proc::context_switches(server.pid());
    let_pass(Duration::from_secs(3));
    assert_eq!(proc::context_switches(server.pid()), before);
    // It was idle, not dead.
    assert_eq!(server.ask(port).generation, Some(2));
    server.restart();
    assert!(proc::context_switches(server.pid()) > before);
}

/// Each kind of proof, with what a worker's shell does before the worker, and the worker's arguments.
const PROOFS: [(&str, &str, &str); 6] = [
    ("interval", ":", ""),
    ("notify", ":", "--notify"),
    ("fd:9", "echo >&9; exec 9>&-", ""),
    ("exec:test -e pid", ":", ""),
    ("accept", ":", ""),
    ("http:/exists/pid", ":", ""),
];

/// A server for each kind of proof whose second generation serves, and which has nothing to do.
fn proved() -> Vec<(&'static str, Server)> {
    let start = |&(ready, before, arguments): &(&'static str, _, _)| {
        let setup = scripted(with_files(), before, arguments);
        let setup = setup.option(format!("--ready={ready}"));
        (ready, setup.port(ports::tcp()).start())
    };
    let servers: Vec<_> = PROOFS.iter().map(start).collect();
    for (_, server) in &servers {
        server.wait_until_accepted();
        server.restart();
    }
    servers
}

/// All at a time: who is idle disturbs nobody.
#[test]
fn no_kind_of_proof_wakes_an_idle_server_up() {
    if !readiness::is_ours() {
        return;
    }
    let servers = proved();
    wait_until_it_has_looked(&servers[0].1);
    let switches = |(_, server): &(_, Server)| {
        wait_until_idle(server);
        proc::context_switches(server.pid())
    };
    let before: Vec<u64> = servers.iter().map(switches).collect();
    let_pass(Duration::from_secs(3));
    for ((ready, server), before) in servers.iter().zip(before) {
        let after = proc::context_switches(server.pid());
        assert_eq!(after, before, "--ready={ready}");
        // It was idle, not dead.
        server.restart();
        assert!(proc::context_switches(server.pid()) > before);
    }
}

#[test]
fn a_probe_costs_one_descriptor_and_no_proof_costs_more_after_many_restarts() {
    if !readiness::is_ours() {
        return;
    }
    let held = |server: &Server, generation| {
        let settled = settled(server, generation);
        settled.map(|held| (held.descriptors, held.files))
    };
    let mut of_interval = None;
    for (ready, server) in proved() {
        let Some((descriptors, files)) = held(&server, 2) else {
            missing("needs to read /proc/PID/fd and smaps_rollup of the server");
            return;
        };
        let without = *of_interval.get_or_insert(descriptors.len());
        let cost = match ready.split(':').next() {
            Some("interval" | "fd" | "exec") => 0,
            // The socket and its directory.
            Some("notify") => 2,
            // The probe.
            _ => 1,
        };
        assert_eq!(
            descriptors.len(),
            without + cost,
            "--ready={ready}: {descriptors:#?}"
        );
        for _ in 0..10 {
            server.restart();
        }
        let (after, files_after) = held(&server, 12).expect("it could be read before");
        assert_eq!(
            after.len(),
            descriptors.len(),
            "--ready={ready}: {after:#?}"
        );
        assert_eq!(files_after, files, "--ready={ready}");
    }
}
