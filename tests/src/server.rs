//! One start_server under test: how it is started, watched, signalled and, in any case, ended.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process, ptr, thread};

use nix::fcntl::{AT_FDCWD, FcntlArg, fcntl};
use nix::sys::ptrace;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{
    SigHandler, SigSet, SigmaskHow, Signal, kill, killpg, pthread_sigmask, signal,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, UnlinkatFlags, chdir, setsid, unlinkat};

use crate::client::At;
use crate::folder::Folder;
use crate::journal::{Entry, Happened};
use crate::report::Report;
use crate::start::InTurn;
use crate::{client, proc, programs, wait};

/// The user and group `nobody`.
pub const NOBODY: u32 = 65534;

/// A number above those that anybody asks for.
const HIGH: i32 = 500;

/// Marks every process that a server started, in its environment.
const MARK: &str = "E2E_MARK";

/// What is still to be said about a server before it is started.
///
/// Its folder exists already: a test can put files there.
#[must_use]
#[derive(Debug)]
pub struct Setup {
    folder: Folder,
    user: User,
    options: Vec<OsString>,
    interval: Option<String>,
    program: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    before_exec: Vec<BeforeExec>,
    stdin: Option<File>,
    output: Option<File>,
    arg0: Option<OsString>,
    /// Open until the start, because `before_exec` knows them by number.
    handed: Vec<File>,
    leads_session: bool,
    /// How many descriptors a launcher passes on.
    passed_on: i32,
    /// Runs instead of what was built.
    copy: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    /// `nobody` where the tests run as root, else whoever runs them.
    Ordinary,
    Root,
}

/// What happens in the new process before start_server is executed.
#[derive(Debug, Clone)]
enum BeforeExec {
    Limit(Resource, u64, u64),
    Close(i32),
    Keep(i32, i32),
    Ignore(Signal),
    Block(Signal),
    IgnoreAll,
    BlockAll,
    Umask(Mode),
    Enter(CString),
    Remove(CString),
    Terminal(i32),
    Trace,
    Timer(i64),
}

impl Setup {
    /// The server's folder: its current directory, owned by its (unprivileged) user.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Adds one option of start_server.
    pub fn option(mut self, option: impl Into<OsString>) -> Setup {
        self.options.push(option.into());
        self
    }

    /// Adds options of start_server.
    pub fn options<S: Into<OsString>>(mut self, options: impl IntoIterator<Item = S>) -> Setup {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }

    /// Adds `--port=127.0.0.1:PORT`.
    pub fn port(self, port: u16) -> Setup {
        self.option(format!("--port=127.0.0.1:{port}"))
    }

    /// Adds `--path`, for a socket in the server's folder.
    pub fn path(self, name: &str) -> Setup {
        let path = self.folder().join(name);
        self.option(format!("--path={}", path.display()))
    }

    /// Adds `--pid-file=pid`: in the server's folder, see [`Server::pid_file`].
    pub fn pid_file(self) -> Setup {
        self.option("--pid-file=pid")
    }

    /// Adds `--status-file=status`: in the server's folder, see [`Server::status_file`].
    pub fn status_file(self) -> Setup {
        self.option("--status-file=status")
    }

    /// Sets `--interval`. Without this it is short: 0.2 seconds, or 1 where START_SERVER cannot have less.
    /// Tests whose worker dies *while it starts* want a longer one, since it must do so in time on a loaded machine.
    pub fn interval(mut self, seconds: &str) -> Setup {
        self.interval = Some(format!("--interval={seconds}"));
        self
    }

    /// Leaves `--interval` out of the command line.
    pub fn without_interval(mut self) -> Setup {
        self.interval = None;
        self
    }

    /// Runs the fixture worker with these arguments and a journal. It is what runs when nothing else is said.
    pub fn worker<S: Into<OsString>>(self, arguments: impl IntoIterator<Item = S>) -> Setup {
        let journal = format!("--journal={}", self.folder().join(JOURNAL).display());
        let program: Vec<OsString> = vec![programs::worker().into(), journal.into()];
        self.program(
            program
                .into_iter()
                .chain(arguments.into_iter().map(Into::into)),
        )
    }

    /// Runs this program with these arguments, after `--`.
    pub fn program<S: Into<OsString>>(mut self, program: impl IntoIterator<Item = S>) -> Setup {
        self.program = program.into_iter().map(Into::into).collect();
        self
    }

    /// Leaves program and `--` out of the command line.
    pub fn without_program(self) -> Setup {
        self.program::<OsString>([])
    }

    /// Starts start_server as root instead of an ordinary user; ask [`skip::needs_root`](crate::skip::needs_root)
    /// first. The folder belongs to `nobody` as before.
    pub fn as_root(mut self) -> Setup {
        self.user = User::Root;
        self
    }

    /// Gives the server's folder to another user.
    pub fn owner(self, uid: u32, gid: u32) -> Setup {
        chown(self.folder(), Some(uid), Some(gid)).expect("cannot change the owner of the folder");
        self
    }

    /// Adds to the environment. It holds nothing else but PATH and a mark of the harness.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Setup {
        self.environment
            .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Gives start_server this standard input instead of /dev/null.
    pub fn stdin(mut self, file: File) -> Setup {
        self.stdin = Some(file);
        self
    }

    /// Starts start_server with this limit.
    pub fn limit(mut self, resource: Resource, soft: u64, hard: u64) -> Setup {
        self.before_exec
            .push(BeforeExec::Limit(resource, soft, hard));
        self
    }

    /// Starts start_server with this descriptor closed; 0, 1 and 2 are the interesting ones.
    pub fn close(mut self, fd: i32) -> Setup {
        self.before_exec.push(BeforeExec::Close(fd));
        self
    }

    /// Leaks /dev/null to start_server under this number, as a careless launcher does.
    pub fn leak(mut self, fd: i32) -> Setup {
        self.before_exec.push(BeforeExec::Keep(0, fd));
        self
    }

    /// Leaks what this file is to start_server under this number. Where the number is high, raise the limit first.
    pub fn leak_file(mut self, file: File, fd: i32) -> Setup {
        self.before_exec
            .push(BeforeExec::Keep(file.as_raw_fd(), fd));
        self.handed.push(file);
        self
    }

    /// Runs this copy of start_server.
    pub fn copy(mut self, program: PathBuf) -> Setup {
        self.copy = Some(program);
        self
    }

    /// Passes this descriptor on to start_server as systemd does, after those before it (sd_listen_fds(3)), with `LISTEN_PID`
    /// and `LISTEN_FDS`. Names are for the test to set, in `LISTEN_FDNAMES`, and lies in these.
    pub fn pass_on(mut self, descriptor: impl Into<OwnedFd>) -> Setup {
        // Out of the way of the numbers that they get.
        let descriptor = fcntl(descriptor.into(), FcntlArg::F_DUPFD_CLOEXEC(HIGH));
        let descriptor = descriptor.expect("cannot duplicate a descriptor");
        self.handed.push(file_of(descriptor));
        self.before_exec
            .push(BeforeExec::Keep(descriptor, 3 + self.passed_on));
        self.passed_on += 1;
        let count = self.passed_on.to_string();
        self.env("LISTEN_FDS", count)
    }

    /// Starts start_server with every signal ignored that can be, also those that have no name.
    pub fn ignore_all(mut self) -> Setup {
        self.before_exec.push(BeforeExec::IgnoreAll);
        self
    }

    /// Starts start_server with every signal blocked that can be, also those that have no name.
    pub fn block_all(mut self) -> Setup {
        self.before_exec.push(BeforeExec::BlockAll);
        self
    }

    /// Starts start_server in this directory instead of its folder.
    pub fn enter(mut self, directory: &Path) -> Setup {
        self.before_exec.push(BeforeExec::Enter(c_path(directory)));
        self
    }

    /// Starts start_server in this empty directory, which is removed as soon as it is entered.
    pub fn enter_and_remove(mut self, directory: &Path) -> Setup {
        let directory = c_path(directory);
        self.before_exec.push(BeforeExec::Enter(directory.clone()));
        self.before_exec.push(BeforeExec::Remove(directory));
        self
    }

    /// Starts start_server as the leader of a session with this terminal.
    pub fn terminal(mut self, terminal: File) -> Setup {
        self.before_exec
            .push(BeforeExec::Terminal(terminal.as_raw_fd()));
        self.handed.push(terminal);
        self.leads_session = true;
        self
    }

    /// Gives start_server this standard output and standard error instead of the log.
    pub fn output(mut self, file: File) -> Setup {
        self.output = Some(file);
        self
    }

    /// Gives start_server this `argv[0]` instead of its path.
    pub fn arg0(mut self, name: impl Into<OsString>) -> Setup {
        self.arg0 = Some(name.into());
        self
    }

    /// Starts start_server with this signal ignored.
    pub fn ignore(mut self, signal: Signal) -> Setup {
        self.before_exec.push(BeforeExec::Ignore(signal));
        self
    }

    /// Starts start_server with this signal blocked.
    pub fn block(mut self, signal: Signal) -> Setup {
        self.before_exec.push(BeforeExec::Block(signal));
        self
    }

    /// Starts start_server with a timer that sends PROF when it has computed this long.
    pub fn timer(mut self, milliseconds: i64) -> Setup {
        self.before_exec.push(BeforeExec::Timer(milliseconds));
        self
    }

    /// Starts start_server with this umask instead of 022.
    pub fn umask(mut self, mode: u32) -> Setup {
        self.before_exec
            .push(BeforeExec::Umask(Mode::from_bits_truncate(mode)));
        self
    }

    /// Starts it as a tracee of this thread, held at its first instruction: for [`trace`](crate::trace).
    pub fn traced(mut self) -> Setup {
        self.before_exec.push(BeforeExec::Trace);
        self
    }

    /// Starts it.
    #[track_caller]
    pub fn start(mut self) -> Server {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let mark = format!(
            "{}-{}",
            process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let log = self.folder().join(LOG);
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o644)
            .open(&log)
            .expect("cannot make the log");
        // A worker may open /dev/stderr by its path.
        let owner = fs::metadata(self.folder()).expect("no folder");
        chown(
            &log,
            Some(std::os::unix::fs::MetadataExt::uid(&owner)),
            None,
        )
        .expect("cannot give the log away");
        let knows_its_pid =
            self.passed_on > 0 && !self.environment.contains_key(OsStr::new("LISTEN_PID"));
        let program = self.copy.take().unwrap_or_else(programs::start_server);
        let mut command = match self.arg0.take() {
            None if knows_its_pid => command_with_pid(self.user, &program),
            None => command(self.user, &program),
            Some(name) => command_called(self.user, &program, &name),
        };
        command.args(&self.options).args(&self.interval);
        if !self.program.is_empty() {
            command.arg("--").args(&self.program);
        }
        command
            .current_dir(self.folder())
            .envs(&self.environment)
            .env(MARK, &mark);
        // A launcher has no copies of what it has passed on, and neither may this process when start_server begins to run:
        // until this is closed it does not.
        let copies = knows_its_pid.then(|| io::pipe().expect("cannot make a pipe"));
        let copies = match copies {
            Some((reader, writer)) => {
                command.stdin(reader);
                Some(writer)
            }
            None => {
                command.stdin(self.stdin.take().map_or_else(Stdio::null, Stdio::from));
                None
            }
        };
        let output = self.output.take().unwrap_or(output);
        command
            .stdout(output.try_clone().expect("cannot duplicate a descriptor"))
            .stderr(output);
        // Whoever leads a session leads a group already, and whoever leads a group cannot begin a session.
        if !self.leads_session {
            command.process_group(0);
        }
        prepare(&mut command, std::mem::take(&mut self.before_exec));
        let has = |word: &str| self.options.iter().any(|option| option == word);
        let (daemon, is_guarded) = (has("--daemonize"), has("--guardian"));
        let child = command.spawn_in_turn().expect("cannot run start_server");
        drop(command);
        drop(std::mem::take(&mut self.handed));
        drop(copies);
        Server {
            folder: self.folder,
            user: self.user,
            child,
            mark,
            daemon,
            is_guarded,
            ended: None,
        }
    }

    /// Starts it and waits for its end: for command lines that are refused, for clients such as `--version`.
    #[track_caller]
    pub fn run(self) -> Finished {
        let mut server = self.start();
        let status = server.wait_exit();
        Finished {
            status,
            log: server.log(),
            server,
        }
    }
}

/// The exit status of a start_server that ended by itself, and all that it wrote.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub log: String,
    /// What it left behind, such as its folder.
    pub server: Server,
}

const LOG: &str = "log";
const GENERATION: &str = "SERVER_STARTER_GENERATION";
const JOURNAL: &str = "journal";

/// A running start_server. Dropping it kills it and everything that it started.
#[derive(Debug)]
pub struct Server {
    folder: Folder,
    user: User,
    child: Child,
    mark: String,
    daemon: bool,
    is_guarded: bool,
    ended: Option<ExitStatus>,
}

/// One living worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    pub generation: u32,
    pub pid: Pid,
}

impl Server {
    /// Begins to describe a server: an ordinary user runs the fixture worker, with no listener yet.
    pub fn setup() -> Setup {
        let (uid, gid) = match Uid::effective() {
            uid if uid.is_root() => (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY)),
            uid => (uid, Gid::effective()),
        };
        let mut environment = BTreeMap::new();
        if let Some(path) = env::var_os("PATH") {
            environment.insert("PATH".into(), path);
        }
        let setup = Setup {
            folder: Folder::new(uid, gid),
            user: User::Ordinary,
            options: Vec::new(),
            interval: None,
            program: Vec::new(),
            environment,
            before_exec: Vec::new(),
            stdin: None,
            output: None,
            arg0: None,
            handed: Vec::new(),
            leads_session: false,
            passed_on: 0,
            copy: None,
        };
        setup
            .interval(if programs::another().is_some() {
                "1"
            } else {
                "0.2"
            })
            .worker::<OsString>([])
    }

    /// The pid that was started.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The server's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The content of the pid file, as a pid; `None` while there is none.
    #[must_use]
    pub fn pid_file(&self) -> Option<Pid> {
        fs::read_to_string(self.folder().join("pid"))
            .ok()?
            .trim_end()
            .parse()
            .ok()
            .map(Pid::from_raw)
    }

    /// The content of the status file; `None` while there is none.
    #[must_use]
    pub fn status_file(&self) -> Option<String> {
        fs::read_to_string(self.folder().join("status")).ok()
    }

    /// F.json of the status file.
    #[must_use]
    pub fn status_json(&self) -> Option<serde_json::Value> {
        let text = fs::read_to_string(self.folder().join("status.json")).ok()?;
        Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("status.json: {e}: {text:?}")))
    }

    /// Everything that start_server and its workers wrote to stdout and stderr.
    #[must_use]
    pub fn log(&self) -> String {
        read_lossy(&self.folder().join(LOG))
    }

    /// How many lines of the log contain this text.
    #[must_use]
    pub fn count_in_log(&self, text: &str) -> usize {
        self.log()
            .lines()
            .filter(|line| line.contains(text))
            .count()
    }

    /// What the fixture workers wrote down.
    #[must_use]
    pub fn journal(&self) -> Vec<Entry> {
        let text = read_lossy(&self.folder().join(JOURNAL));
        text.lines()
            .map(|line| line.parse().expect("a line of the journal"))
            .collect()
    }

    /// The workers that were started so far, dead ones included.
    #[must_use]
    pub fn started(&self) -> Vec<Worker> {
        let journal = self
            .journal()
            .into_iter()
            .filter(|entry| entry.happened == Happened::Started);
        journal
            .map(|entry| Worker {
                generation: entry.generation,
                pid: Pid::from_raw(entry.pid),
            })
            .collect()
    }

    /// The signals, `SIGTERM`, that the worker caught (it has to run with `--graceful` or `--catch`).
    #[must_use]
    pub fn caught(&self, worker: Worker) -> Vec<String> {
        let journal = self
            .journal()
            .into_iter()
            .filter(|entry| entry.pid == worker.pid.as_raw());
        journal
            .filter_map(|entry| {
                if let Happened::Caught(name) = entry.happened {
                    Some(name)
                } else {
                    None
                }
            })
            .collect()
    }

    /// The process that signals are for: the one that was started, or its daemon. With `--guardian` it is the guardian.
    #[must_use]
    pub fn main_pid(&self) -> Pid {
        let daemon = self.daemon.then(|| self.pid_file()).flatten();
        daemon.unwrap_or(self.pid())
    }

    /// With `--guardian`: the living supervisor. A child that is about to execute it is none yet.
    #[must_use]
    pub fn supervisor(&self) -> Option<Pid> {
        let guardian = proc::status(self.main_pid())?.name;
        let mut children = proc::children(self.main_pid()).into_iter();
        children.rfind(|pid| proc::status(*pid).is_some_and(|status| status.name == guardian))
    }

    /// The living workers by generation: the children that were executed with a generation in their environment. With
    /// `--guardian` they are children of the guardian or of the supervisor.
    #[must_use]
    pub fn workers(&self) -> Vec<Worker> {
        let main = self.main_pid();
        let mut children = proc::children(main);
        if self.is_guarded {
            let of_worker = |pid: &Pid| proc::environment(*pid).contains_key(GENERATION);
            let others = children.clone().into_iter().filter(|pid| !of_worker(pid));
            children.extend(others.flat_map(proc::children));
        }
        let mut workers: Vec<Worker> = children
            .into_iter()
            .filter_map(|pid| {
                let generation = proc::environment(pid).get(GENERATION)?.parse().ok()?;
                Some(Worker { generation, pid })
            })
            .collect();
        workers.sort();
        // One that got another parent between two looks was seen twice.
        workers.dedup();
        workers
    }

    /// The generations of the living workers.
    #[must_use]
    pub fn generations(&self) -> Vec<u32> {
        self.workers()
            .into_iter()
            .map(|worker| worker.generation)
            .collect()
    }

    /// The report of whichever worker answers there. Waits for the socket to be bound, unlike [`client::ask`].
    #[track_caller]
    pub fn ask(&self, at: impl Into<At>) -> Report {
        let at = at.into();
        self.wait_for(&format!("a worker answers at {at:?}"), |_| {
            client::try_ask(at.clone()).ok()
        })
    }

    /// Sends a signal to start_server.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("cannot send a signal to start_server");
    }

    /// Sends HUP and waits until a newer generation serves alone.
    #[track_caller]
    pub fn restart(&self) -> Worker {
        // One look may come between two states of /proc, and find nobody.
        let old = self.wait_for("a generation lives", |server| {
            Some(server.workers()).filter(|workers| !workers.is_empty())
        });
        let newest = old.last().map_or(0, |worker| worker.generation);
        self.signal(Signal::SIGHUP);
        self.wait_for(
            &format!("a generation after {newest} serves alone"),
            |server| match server.workers()[..] {
                // A process that ends loses its environment, by which it is found, before its sockets.
                [worker] if worker.generation > newest => {
                    (!old.iter().any(|old| proc::exists(old.pid))).then_some(worker)
                }
                _ => None,
            },
        )
    }

    /// Waits until exactly these generations live, with one worker each, and returns those.
    #[track_caller]
    pub fn wait_for_generations(&self, wanted: &[u32]) -> Vec<Worker> {
        self.wait_for(
            &format!("the living generations are {wanted:?}"),
            |server| {
                let workers = server.workers();
                (workers
                    .iter()
                    .map(|worker| worker.generation)
                    .eq(wanted.iter().copied()))
                .then_some(workers)
            },
        )
    }

    /// Waits until the fixture worker of this generation was started, and returns it.
    #[track_caller]
    pub fn wait_for_start(&self, generation: u32) -> Worker {
        self.wait_for(&format!("generation {generation} was started"), |server| {
            server
                .started()
                .into_iter()
                .find(|worker| worker.generation == generation)
        })
    }

    /// Waits until the first generation is accepted, as the status file says: a restart before that would be another start
    /// of it.
    #[track_caller]
    pub fn wait_until_accepted(&self) {
        self.wait_until("the first generation is accepted", |server| {
            server.status_file().is_some()
        });
    }

    /// The fixture worker of the first generation, which is accepted and serves.
    #[track_caller]
    pub fn accepted(&self) -> Worker {
        self.wait_until_accepted();
        self.wait_for_service(1)
    }

    /// Waits until the fixture worker of this generation has all its listeners and signals in place.
    #[track_caller]
    pub fn wait_for_service(&self, generation: u32) -> Worker {
        self.wait_for(&format!("generation {generation} serves"), |server| {
            let served = |entry: &Entry| {
                entry.generation == generation && entry.happened == Happened::Served
            };
            let entry = server.journal().into_iter().find(served)?;
            Some(Worker {
                generation,
                pid: Pid::from_raw(entry.pid),
            })
        })
    }

    /// Waits until this worker, which runs with `--graceful`, got TERM and accepts no more connections.
    #[track_caller]
    pub fn wait_for_drain(&self, worker: Worker) {
        let drains =
            |entry: Entry| entry.pid == worker.pid.as_raw() && entry.happened == Happened::Drains;
        self.wait_until(&format!("{worker:?} drains"), |server| {
            server.journal().into_iter().any(drains)
        });
    }

    /// Waits until a line of the log contains this text, and returns the first such line.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) -> String {
        self.wait_for(&format!("the log says {text:?}"), |server| {
            server
                .log()
                .lines()
                .find(|line| line.contains(text))
                .map(str::to_owned)
        })
    }

    /// Waits until this many lines of the log contain this text.
    #[track_caller]
    pub fn wait_for_log_times(&self, times: usize, text: &str) {
        self.wait_until(&format!("the log says {text:?} {times} times"), |server| {
            server.count_in_log(text) >= times
        });
    }

    /// Waits for a condition, described as the end of "waited until ...".
    #[track_caller]
    pub fn wait_until(&self, condition: &str, holds: impl Fn(&Server) -> bool) {
        self.wait_for(condition, |server| holds(server).then_some(()));
    }

    /// Waits for an answer. Gives up early when start_server has ended, since nothing will happen any more.
    #[track_caller]
    pub fn wait_for<T>(&self, condition: &str, answer: impl Fn(&Server) -> Option<T>) -> T {
        wait::until(
            condition,
            || self.evidence(),
            || {
                // In this order: what was true when it ended stays so.
                let ended = !self.daemon && !proc::alive(self.pid());
                let found = answer(self);
                assert!(
                    found.is_some() || !ended,
                    "start_server ended before {condition}\n{}",
                    self.evidence()
                );
                found
            },
        )
    }

    /// Waits until start_server ends by itself.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        wait::until(
            "start_server ended",
            || self.evidence(),
            || (!proc::alive(self.pid())).then_some(()),
        );
        let status = self.child.wait().expect("cannot wait for start_server");
        self.ended = Some(status);
        status
    }

    /// Waits until a worker answers there, or start_server has ended by itself: its exit status then.
    #[track_caller]
    pub fn wait_for_answer_or_exit(&mut self, at: impl Into<At>) -> Option<ExitStatus> {
        let at = at.into();
        let answers = wait::until(
            &format!("a worker answers at {at:?}, or start_server has ended"),
            || self.evidence(),
            || {
                let ended = !proc::alive(self.pid());
                let answers = client::try_ask(at.clone()).is_ok();
                (answers || ended).then_some(answers)
            },
        );
        (!answers).then(|| self.wait_exit())
    }

    /// Sends TERM and waits until start_server ended.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit()
    }

    /// A further command as the same user in the same folder and a plain environment, such as
    /// `server.client(["--restart", "--pid-file=pid"])`: start_server with these arguments.
    pub fn client<S: Into<OsString>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut client = command(self.user, &programs::start_server());
        client
            .args(arguments.into_iter().map(Into::into))
            .current_dir(self.folder())
            .stdin(Stdio::null());
        client
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            .env(MARK, &self.mark);
        client
    }

    fn evidence(&self) -> String {
        let journal = read_lossy(&self.folder().join(JOURNAL));
        format!(
            "workers: {:?}\njournal:\n{journal}log:\n{}",
            self.workers(),
            self.log()
        )
    }

    /// Every living process that this server, its workers or its clients have started, whoever its parent is.
    #[must_use]
    pub fn marked(&self) -> Vec<Pid> {
        let ours = |pid: &Pid| proc::environment(*pid).get(MARK) == Some(&self.mark);
        proc::all()
            .into_iter()
            .filter(ours)
            .filter(|&pid| proc::alive(pid))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            #[expect(
                clippy::print_stderr,
                reason = "the test runner shows it below the failure"
            )]
            {
                eprintln!("{}", self.evidence());
            }
        }
        if self.ended.is_none() {
            // The group cannot be gone, since its leader was not waited for.
            let _ = killpg(self.pid(), Signal::SIGKILL);
            drop(self.child.wait());
        }
        // Orphans of a server that ended first, daemons and whatever made a group of its own. A supervisor may still
        // replace its workers while we look, so look until there are none; one that cannot be killed is left.
        for _ in 0..100 {
            let left = self.marked();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}

/// A command that runs a program as this user, with an empty environment.
fn command(user: User, program: &Path) -> Command {
    let mut command = if user == User::Ordinary && Uid::effective().is_root() {
        let mut command = Command::new("setpriv");
        command.args([
            format!("--reuid={NOBODY}"),
            format!("--regid={NOBODY}"),
            "--clear-groups".to_owned(),
        ]);
        command.arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env_clear();
    command
}

/// The same by a launcher that sets `LISTEN_PID` to the pid that it keeps.
fn command_with_pid(user: User, program: &Path) -> Command {
    let inner = command(user, program);
    let mut command = Command::new("/bin/sh");
    let script = r#"read _; LISTEN_PID=$$ exec "$@" </dev/null"#;
    command.args(["-c", script, "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.env_clear();
    command
}

#[expect(unsafe_code, reason = "fcntl(2) gives a new descriptor as a number")]
fn file_of(descriptor: i32) -> File {
    // SAFETY: it was just made, and nothing else has seen its number.
    unsafe { File::from_raw_fd(descriptor) }
}

/// The same with another `argv[0]`, which setpriv(1) would not hand on.
fn command_called(user: User, program: &Path, name: &OsStr) -> Command {
    let mut command = Command::new(program);
    command.arg0(name).env_clear();
    if user == User::Ordinary && Uid::effective().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("a path without a NUL")
}

#[expect(
    unsafe_code,
    reason = "the standard library cannot set limits, masks and dispositions for a child"
)]
fn prepare(command: &mut Command, steps: Vec<BeforeExec>) {
    let perform = move || -> io::Result<()> {
        start_from_nothing()?;
        steps.iter().try_for_each(|step| step.perform())
    };
    // SAFETY: everything in `perform` is system calls only; nothing there allocates or takes a lock.
    unsafe { command.pre_exec(perform) };
}

/// Whoever runs the tests may have leaked descriptors or ignored signals (a shell does for a job in the background):
/// that must not decide how a test ends.
#[expect(unsafe_code, reason = "close_range(2)")]
fn start_from_nothing() -> io::Result<()> {
    // Marked instead of closed: the standard library still needs one to tell that the program cannot be executed.
    // SAFETY: marking descriptors closes none in this process.
    if unsafe {
        libc::close_range(
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC.cast_signed(),
        )
    } == -1
    {
        return Err(io::Error::last_os_error());
    }
    act_on_all(libc::SIG_DFL)
}

/// SIG_DFL or SIG_IGN for every signal.
#[expect(unsafe_code, reason = "rt_sigaction(2)")]
fn act_on_all(action: libc::sighandler_t) -> io::Result<()> {
    // A sigaction of the kernel: the action, no flags, no mask. Not by sigaction(3), which refuses the signals that
    // the C library keeps for itself; a launcher can have ignored even those.
    let wanted = [action as u64, 0, 0, 0];
    for number in (1..=64).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number)) {
        let (new, old) = (wanted.as_ptr(), ptr::null_mut::<u64>());
        // SAFETY: `wanted` is as long as the kernel reads, and a null pointer says that the old action is not wanted.
        let result =
            unsafe { libc::syscall(libc::SYS_rt_sigaction, number, new, old, size_of::<u64>()) };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Every signal, by its number: sigprocmask(3) leaves out those that the C library keeps for itself.
#[expect(unsafe_code, reason = "rt_sigprocmask(2)")]
fn block_all() -> io::Result<()> {
    let (all, old) = (u64::MAX, ptr::null_mut::<u64>());
    // SAFETY: the kernel reads as many bytes as is said, and a null pointer says that the old mask is not wanted.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const all,
            old,
            size_of::<u64>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A session of its own with this terminal.
#[expect(unsafe_code, reason = "TIOCSCTTY takes a descriptor by number")]
fn lead_session_at(terminal: i32) -> io::Result<()> {
    setsid()?;
    // SAFETY: it takes numbers only.
    match unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl BeforeExec {
    #[expect(unsafe_code, reason = "descriptors by number, and signal(2)")]
    fn perform(&self) -> io::Result<()> {
        match *self {
            BeforeExec::Limit(resource, soft, hard) => setrlimit(resource, soft, hard)?,
            BeforeExec::Close(fd) => {
                // SAFETY: this child executes another program next and has no owner for the descriptor.
                if unsafe { libc::close(fd) } == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
            BeforeExec::Keep(from, to) => {
                // SAFETY: this child executes another program next, so nobody can own what `to` was.
                if unsafe { libc::dup2(from, to) } == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
            BeforeExec::Ignore(number) => {
                // SAFETY: ignoring a signal runs no code of ours.
                unsafe { signal(number, SigHandler::SigIgn) }?;
            }
            BeforeExec::Block(number) => {
                pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::from(number)), None)?
            }
            BeforeExec::IgnoreAll => act_on_all(libc::SIG_IGN)?,
            BeforeExec::BlockAll => block_all()?,
            BeforeExec::Umask(mode) => {
                umask(mode);
            }
            BeforeExec::Trace => ptrace::traceme()?,
            BeforeExec::Enter(ref directory) => chdir(directory.as_c_str())?,
            BeforeExec::Remove(ref directory) => {
                unlinkat(AT_FDCWD, directory.as_c_str(), UnlinkatFlags::RemoveDir)?;
            }
            BeforeExec::Terminal(terminal) => lead_session_at(terminal)?,
            BeforeExec::Timer(milliseconds) => {
                let timer = libc::itimerval {
                    it_interval: libc::timeval {
                        tv_sec: 0,
                        tv_usec: 0,
                    },
                    it_value: libc::timeval {
                        tv_sec: 0,
                        tv_usec: 1000 * milliseconds,
                    },
                };
                let old = ptr::null_mut();
                // SAFETY: the kernel reads one struct of this type and writes nothing.
                if unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, old) } == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    }
}

fn read_lossy(path: &PathBuf) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
