//! How soon start_server acts on a worker's READY=1, and how soon `--restart` returns after the old worker's end:
//! `cargo bench -p e2e --bench ready` prints the table in tests/README.md. It judges nothing.
//!
//! Beside it, in turns, a process does the same for its parent without a superdaemon: it says READY=1 on a socket pair,
//! and ends when it is told to. The parent is this program, and so are all the workers. They note the time of day just
//! before they say READY=1, and just before they exit.

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
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, thread};

use e2e::folder::Folder;
use e2e::server::NOBODY;
use e2e::{programs, wait};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use serde_json::Value;

/// The first argument of this program as a worker; the next ones are its notes and its time to boot, in milliseconds.
const WORK: &str = "--work";

/// How long a worker boots, and how often that is measured.
const BOOTS: [(Duration, usize); 2] = [
    (Duration::from_millis(200), 20),
    (Duration::from_secs(2), 5),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    Ready,
    End,
}

impl Figure {
    const ALL: [Figure; 2] = [Figure::Ready, Figure::End];

    fn name(self) -> &'static str {
        match self {
            Figure::Ready => "from READY=1 to the commit; bare: to its receipt",
            Figure::End => {
                "from the old worker's end to the return of `--restart`; bare: of wait(2)"
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contestant {
    Ours,
    Bare,
}

type Times = BTreeMap<(Figure, Contestant), Vec<Duration>>;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(WORK) => work(Path::new(&arguments[2]), Path::new(&arguments[3])),
        _ if arguments.iter().any(|argument| argument == "--bench") => measure(),
        _ => println!("this is a benchmark: cargo bench -p e2e --bench ready"),
    }
}

fn measure() {
    let load_before = load_average();
    let ourselves = env::current_exe().expect("cannot find this program");
    let worker = programs::install(&ourselves, programs::installed());
    let mut course = Course::start(worker);
    let mut times = Times::new();
    for (boot, rounds) in BOOTS {
        course.set_boot(boot);
        for _ in 0..rounds {
            for (contestant, [ready, end]) in [
                (Contestant::Ours, course.restart()),
                (Contestant::Bare, course.bare()),
            ] {
                let mut put =
                    |figure, time| times.entry((figure, contestant)).or_default().push(time);
                put(Figure::Ready, ready);
                put(Figure::End, end);
            }
        }
    }
    let [(short, many), (long, few)] = BOOTS;
    println!(
        "{many} restarts of a worker that boots for {short:?}, {few} of one that does for {long:?}; load average {load_before} to {}",
        load_average()
    );
    println!();
    print(&mut times);
}

fn print(times: &mut Times) {
    println!("| | start_server, median | worst | bare, median | worst |");
    println!("|---|---:|---:|---:|---:|");
    for figure in Figure::ALL {
        let cells = [Contestant::Ours, Contestant::Bare].map(|contestant| {
            let times = times.get_mut(&(figure, contestant)).expect("measured");
            times.sort();
            let worst = times.last().copied().unwrap_or_default();
            let median = times[times.len() / 2];
            format!("{} | {}", milliseconds(median), milliseconds(worst))
        });
        println!("| {} | {} |", figure.name(), cells.join(" | "));
    }
}

/// A server, and what its workers and the bare ones note down.
struct Course {
    folder: Folder,
    worker: PathBuf,
    server: Child,
    generation: u64,
}

impl Course {
    /// Returns when the first generation serves.
    fn start(worker: PathBuf) -> Course {
        let (uid, gid) = match Uid::effective() {
            uid if uid.is_root() => (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY)),
            uid => (uid, Gid::effective()),
        };
        let folder = Folder::new(uid, gid);
        fs::write(folder.path().join("boot"), "0").expect("cannot write the time to boot");
        let server = command(&programs::start_server(), &folder)
            .args(["--ready=notify", "--pid-file=pid", "--"])
            .arg(&worker)
            .arg(WORK)
            .args([folder.path().join("notes"), folder.path().join("boot")])
            .spawn()
            .expect("cannot run start_server");
        let course = Course {
            folder,
            worker,
            server,
            generation: 1,
        };
        wait::until("the first generation serves", String::new, || {
            course.committed_at()
        });
        course
    }

    fn set_boot(&self, boot: Duration) {
        let text = boot.as_millis().to_string();
        fs::write(self.folder.path().join("boot"), text).expect("cannot write the time to boot");
    }

    /// When the newest generation committed, to the millisecond.
    fn committed_at(&self) -> Option<Duration> {
        let text = fs::read_to_string(self.folder.path().join("pid.json")).ok()?;
        let json: Value = serde_json::from_str(&text).expect("not JSON");
        let verdict = json["verdicts"].as_array()?.last()?;
        let is_newest =
            verdict["generation"] == self.generation && verdict["result"] == "committed";
        let at = verdict["at"].as_f64().filter(|_| is_newest)?;
        Some(Duration::from_secs_f64(at))
    }

    /// One restart: how long after READY=1 it committed, and after the old worker's end it returned.
    fn restart(&mut self) -> [Duration; 2] {
        self.forget_notes();
        let status = command(&programs::start_server(), &self.folder)
            .args(["--restart", "--pid-file=pid", "--quiet"])
            .status()
            .expect("cannot run the client");
        let returned = now();
        assert!(status.success(), "the restart has failed: {status}");
        self.generation += 1;
        let committed = self.committed_at().expect("it has not committed");
        [
            committed.saturating_sub(self.noted("ready")),
            returned.saturating_sub(self.noted("end")),
        ]
    }

    /// The same for a child of this process.
    fn bare(&mut self) -> [Duration; 2] {
        self.forget_notes();
        let (mut ours, theirs) = UnixStream::pair().expect("cannot make a socket pair");
        let notes = self.folder.path().join("notes");
        let mut child = command(&self.worker, &self.folder)
            .arg(WORK)
            .args([notes, self.folder.path().join("boot")])
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .expect("cannot run the worker");
        let mut message = [0; READY.len()];
        ours.read_exact(&mut message).expect("it says nothing");
        let received = now();
        let pid = Pid::from_raw(child.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("cannot end it");
        child.wait().expect("cannot wait for it");
        let returned = now();
        [
            received.saturating_sub(self.noted("ready")),
            returned.saturating_sub(self.noted("end")),
        ]
    }

    fn forget_notes(&self) {
        // The server's user must be able to write there.
        drop(fs::remove_file(self.folder.path().join("notes")));
    }

    /// The one note of this kind.
    fn noted(&self, what: &str) -> Duration {
        let text = fs::read_to_string(self.folder.path().join("notes")).expect("no notes");
        let mut times = text.lines().filter_map(|line| line.strip_prefix(what));
        let (Some(time), None) = (times.next(), times.next()) else {
            panic!("not one note of {what}: {text}");
        };
        Duration::from_nanos(time.trim().parse().expect("a time"))
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.server.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        drop(self.server.wait());
    }
}

/// A quiet command in the folder, as its user.
fn command(program: &Path, folder: &Folder) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.current_dir(folder.path());
    command.stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    if Uid::effective().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

const READY: &[u8] = b"READY=1";

/// Boots, says that it is ready to whoever has started it, and ends when it is told to.
fn work(notes: &Path, boot: &Path) {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_block().expect("cannot block a signal");
    let boot = fs::read_to_string(boot).expect("no time to boot");
    thread::sleep(Duration::from_millis(boot.parse().expect("milliseconds")));
    let note = |what: &str| {
        let file = OpenOptions::new().create(true).append(true).open(notes);
        let mut file = file.expect("cannot open the notes");
        let line = format!("{what} {}\n", now().as_nanos());
        file.write_all(line.as_bytes()).expect("cannot note it");
    };
    note("ready");
    match env::var_os("NOTIFY_SOCKET") {
        Some(address) => {
            let socket = UnixDatagram::unbound().expect("cannot make a socket");
            socket.send_to(READY, address).expect("cannot say it");
        }
        None => {
            let stdin = io::stdin();
            let socket = stdin.as_fd().try_clone_to_owned();
            let mut socket = UnixStream::from(socket.expect("cannot duplicate a descriptor"));
            socket.write_all(READY).expect("cannot say it");
        }
    }
    term.wait().expect("cannot wait for a signal");
    note("end");
    process::exit(0);
}

/// Since 1970.
fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a clock that goes right")
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").expect("cannot read the load average");
    text.split(' ').next().expect("a number").to_owned()
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}
