//! `--restart` and `--stop`: another start_server is asked, and waited for until the matter is decided.
//!
//! The running server is the one that holds the lock on the pid file; from then on it is known by a pidfd, so that no
//! other process is ever signalled, whatever number it has.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::trusted_path::{Trust, open_directory};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use nix::sys::stat::fstat;
use nix::sys::time::TimeSpec;
use nix::unistd::{Pid, geteuid};
use serde::Deserialize;

use crate::failure::{self, Failure};
use crate::log::{self, lines::harmless};
use crate::notice::{Notice, WithMeaning};
use crate::options::ClientOptions;
use crate::pid_file::{is_at, recorded_pid};
use crate::process::Process;
use crate::status_file::{json_path, read_lines, read_text};

/// A server that runs.
struct Server {
    pid: Pid,
    process: Process,
    pid_file: File,
}

/// Why a wait is over.
enum Woken {
    Changed,
    ServerExited,
    TimedOut,
}

/// Sends TERM and waits for the end.
pub fn stop(options: &ClientOptions) -> Result<(), Failure> {
    let server = Server::find(&options.pid_file)?;
    log::say(Notice::StopServer {
        ours: nix::unistd::getpid(),
        theirs: server.pid,
    });
    server.send(Signal::SIGTERM)?;
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    match wait(&server, None, deadline)? {
        Woken::ServerExited | Woken::Changed => Ok(()),
        Woken::TimedOut => Err(Failure::undecided(format!(
            "cannot wait longer for the end of pid {}: --timeout has passed",
            server.pid
        ))
        .hint(server.is_stopped().unwrap_or_else(|| {
            "workers that do not end hold it up; --stop-timeout would kill them".into()
        }))),
    }
}

/// Sends HUP and waits for the verdict: committed and the old generation gone, or failed.
pub fn restart(options: &ClientOptions) -> Result<(), Failure> {
    let server = Server::find(&options.pid_file)?;
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    // Both before the signal, so that nothing that follows from it can be missed.
    let mut files = vec![json_path(&options.pid_file)];
    files.extend(options.status_file.as_deref().map(json_path));
    files.extend(options.status_file.clone());
    let watch = watch(&files)?;
    let mut follower = Follower::before(&server, options)?;
    server.send(Signal::SIGHUP)?;
    log::say(Notice::RestartAsked { pid: server.pid });
    loop {
        if let Some(verdict) = follower.look()? {
            return verdict;
        }
        match wait(&server, Some(&watch), deadline)? {
            Woken::Changed => {}
            Woken::ServerExited => {
                return Err(Failure::failed(format!(
                    "cannot restart: pid {} has ended",
                    server.pid
                )));
            }
            Woken::TimedOut => {
                return Err(Failure::undecided(format!(
                    "cannot wait longer for the restart of pid {}: --timeout has passed",
                    server.pid
                ))
                .hint(follower.how_far(&server, &json_path(&options.pid_file))));
            }
        }
    }
}

/// Sends USR1 and waits until the log file is open again.
pub fn reopen(options: &ClientOptions) -> Result<(), Failure> {
    let server = Server::find(&options.pid_file)?;
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    let json = json_path(&options.pid_file);
    let watch = watch(std::slice::from_ref(&json))?;
    let read =
        || Status::read(&json).filter(|status| status.supervisor == i64::from(server.pid.as_raw()));
    let before = read().ok_or_else(|| {
        Failure::failed(format!(
            "cannot follow the log file of pid {}: {}",
            server.pid,
            no_status(&json)
        ))
    })?;
    server.send(Signal::SIGUSR1)?;
    log::say(Notice::ReopenAsked { pid: server.pid });
    loop {
        match read() {
            Some(now) if now.reopened > before.reopened => {
                return match now.reopen_failure {
                    None => Ok(()),
                    Some(cause) => {
                        let file = now.log_file.filter(|file| !file.starts_with('|'));
                        let file = file.map(|file| format!("{}, ", harmless(&file)));
                        Err(Failure::failed(format!(
                            "cannot reopen {}the log file of pid {}: {}",
                            file.unwrap_or_default(),
                            server.pid,
                            harmless(&cause)
                        )))
                    }
                };
            }
            _ => {}
        }
        match wait(&server, Some(&watch), deadline)? {
            Woken::Changed => {}
            Woken::ServerExited => {
                return Err(Failure::failed(format!(
                    "cannot reopen the log file: pid {} has ended",
                    server.pid
                )));
            }
            Woken::TimedOut => {
                let failure = Failure::undecided(format!(
                    "cannot wait longer for the log file of pid {}: --timeout has passed",
                    server.pid
                ));
                return Err(match server.is_stopped() {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                });
            }
        }
    }
}

impl Server {
    /// The server that holds the lock on this file.
    ///
    /// # Errors
    /// "Not running" where the file is missing, or nobody holds its lock.
    fn find(path: &Path) -> Result<Server, Failure> {
        let cannot = |cause: &str| {
            Failure::failed(format!(
                "cannot read --pid-file={}: {cause}",
                path.display()
            ))
        };
        let not_running =
            |cause: &str| Failure::not_running(format!("not running: {} {cause}", path.display()));
        // Not for writing: whoever may send signals need not be able to change the file.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(path)
            .map_err(|error| match error.kind() {
                                io::ErrorKind::NotFound => match Status::read(&json_path(path)) {
                    Some(status) if is_alive(status.supervisor) => not_running("does not exist").hint(format!(
                        "{} names pid {}: if that is a start_server, HUP makes it write the file again",
                        json_path(path).display(),
                        status.supervisor
                    )),
                    _ => not_running("does not exist"),
                },
                _ if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
                    cannot("it is a symbolic link")
                }
                _ => cannot(&failure::cause(&error)),
            })?;
        if !is_locked(&file).map_err(|errno| cannot(errno.desc()))? {
            return Err(not_running("is locked by nobody"));
        }
        let pid = match recorded_pid(&mut file) {
            Ok(Some(pid)) => {
                Pid::from_raw(i32::try_from(pid).map_err(|_| cannot("it holds no pid"))?)
            }
            Ok(None) => return Err(cannot("the server has not written its pid yet")),
            Err(()) => return Err(cannot("it holds no pid")),
        };
        let process = match Process::open(pid) {
            Ok(process) => process,
            Err(Errno::ESRCH) => return Err(not_running("names a process that has ended")),
            Err(errno) => {
                return Err(Failure::failed(format!(
                    "cannot find pid {pid}: {}",
                    errno.desc()
                )));
            }
        };
        let server = Server {
            pid,
            process,
            pid_file: file,
        };
        // The number belonged to the holder of the lock as long as the lock is held: if it still is, the process
        // that was opened in between is the holder.
        if !server.still_holds_its_lock(path) {
            return Err(not_running("was given up a moment ago"));
        }
        server.refuse_foreign(path, &cannot)?;
        Ok(server)
    }

    /// Whoever can write the file can also lock it and name any process: root must not send a signal for them that they
    /// could not send themselves.
    fn refuse_foreign(
        &self,
        path: &Path,
        cannot: &impl Fn(&str) -> Failure,
    ) -> Result<(), Failure> {
        if !geteuid().is_root() {
            // The kernel asks who sends it.
            return Ok(());
        }
        let there = self.pid_file.metadata();
        let there = there.map_err(|error| cannot(&failure::cause(&error)))?;
        let owner = there.uid();
        if there.mode() & 0o022 != 0 {
            return Err(cannot("it can be written by others than its owner"));
        }
        if owner == 0 {
            self.refuse_moved(path, cannot)?;
        }
        let user = real_user(self.pid)
            .ok_or_else(|| cannot(&format!("cannot find out whose pid {} is", self.pid)))?;
        match owner == 0 || owner == user {
            true => Ok(()),
            false => Err(cannot(&format!(
                "it belongs to uid {owner}, but pid {} in it is a process of uid {user}",
                self.pid
            ))),
        }
    }

    /// What to do about a server that a signal has stopped, if this is one: it follows no order until it goes on.
    fn is_stopped(&self) -> Option<String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let state = status
            .lines()
            .find_map(|line| line.strip_prefix("State:"))?;
        state.trim_start().starts_with(['T', 't']).then(|| {
            format!(
                "pid {0} is stopped: `kill -CONT {0}` lets it go on",
                self.pid
            )
        })
    }

    /// A file of root's can hold what another user wants (it is the output of a server program, for example), and whoever
    /// may write the directory can give it this name. A sticky one keeps nobody from bringing it there.
    fn refuse_moved(&self, path: &Path, cannot: &impl Fn(&str) -> Failure) -> Result<(), Failure> {
        const ABOVE: Trust = Trust {
            sticky: true,
            ..Trust::ROOT
        };
        let of_root =
            |cause: &dyn fmt::Display| cannot(&format!("it belongs to root, but {cause}"));
        let path = std::path::absolute(path).map_err(|error| cannot(&failure::cause(&error)))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let opened = open_directory(directory, &ABOVE).map_err(|untrusted| of_root(&untrusted))?;
        let stat = fstat(&opened).map_err(|errno| cannot(errno.desc()))?;
        if let Some(objection) = Trust::ROOT.objection(&stat) {
            return Err(of_root(&format_args!(
                "{} {objection}",
                directory.display()
            )));
        }
        // From here on nobody else can change what the path leads to.
        match is_at(&self.pid_file, &path) {
            true => Ok(()),
            false => Err(cannot("it changes while it is looked at")),
        }
    }

    fn still_holds_its_lock(&self, path: &Path) -> bool {
        let Ok(mut file) = self.pid_file.try_clone() else {
            return false;
        };
        let same = file.rewind().is_ok()
            && recorded_pid(&mut file) == Ok(u32::try_from(self.pid.as_raw()).ok())
            && is_at(&file, path);
        same && is_locked(&self.pid_file) == Ok(true)
    }

    fn send(&self, signal: Signal) -> Result<(), Failure> {
        match self.process.signal(signal) {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(Failure::not_running(format!(
                "not running: pid {} has ended",
                self.pid
            ))),
            Err(errno) => {
                let failure = Failure::failed(format!(
                    "cannot send {signal} to pid {}: {}",
                    self.pid,
                    errno.desc()
                ));
                Err(match errno {
                    Errno::EPERM => failure.hint("use the user that the server runs as, or root"),
                    _ => failure,
                })
            }
        }
    }
}

/// Whether there is a process with the pid that somebody has written into a file.
fn is_alive(pid: i64) -> bool {
    i32::try_from(pid).is_ok_and(|pid| Process::open(Pid::from_raw(pid)).is_ok())
}

/// The real uid of a process: whoever has it may send signals to it.
fn real_user(pid: Pid) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().next()?.parse().ok()
}

/// What is wrong with the file that a server's status should be in.
fn no_status(json: &Path) -> String {
    let cause = match read_text(json) {
        Ok(_) => "is not the status of that server".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "is missing".to_owned(),
        Err(error) => format!("cannot be read: {}", failure::cause(&error)),
    };
    format!("{} {cause}", json.display())
}

/// Whether a server holds the exclusive lock. A shared one is held for a moment, which a starting server waits out.
fn is_locked(file: &File) -> nix::Result<bool> {
    match Flock::lock(
        file.try_clone().map_err(|_| Errno::EMFILE)?,
        FlockArg::LockSharedNonblock,
    ) {
        // Dropped, and with that unlocked.
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(errno),
    }
}

/// Watches the folders of files that are replaced by rename.
fn watch(files: &[PathBuf]) -> Result<Inotify, Failure> {
    let cannot =
        |errno: Errno| Failure::failed(format!("cannot watch the status files: {}", errno.desc()));
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(cannot)?;
    for file in files {
        let folder = match file.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let changes =
            AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_DELETE;
        inotify.add_watch(folder, changes).map_err(cannot)?;
    }
    Ok(inotify)
}

fn wait(
    server: &Server,
    watch: Option<&Inotify>,
    deadline: Option<Instant>,
) -> Result<Woken, Failure> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let mut sources = vec![PollFd::new(server.process.as_fd(), PollFlags::POLLIN)];
        sources.extend(watch.map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)));
        match ppoll(&mut sources, left.map(TimeSpec::from_duration), None) {
            Err(Errno::EINTR) => continue,
            Err(errno) => {
                return Err(Failure::failed(format!(
                    "cannot wait for pid {}: {}",
                    server.pid,
                    errno.desc()
                )));
            }
            Ok(0) => return Ok(Woken::TimedOut),
            Ok(_) => {}
        }
        if sources[0].any() == Some(true) {
            return Ok(Woken::ServerExited);
        }
        // What has changed is seen by looking at the files, however many events there are.
        drop(watch.map(Inotify::read_events));
        return Ok(Woken::Changed);
    }
}

pub type Verdict = Result<(), Failure>;

/// Sees the verdict in what the server writes.
enum Follower {
    /// A server of ours: by the number of the restart that was asked for.
    ByRequest {
        json: PathBuf,
        /// The restart that was asked for, by its number.
        request: u64,
        /// The generation that answers it, once that is known: later decisions push the first one out.
        answer: Option<u64>,
    },
    /// A server of another make: one generation left, newer than all before.
    ByGenerations { lines: PathBuf, newest: u32 },
}

impl Follower {
    fn before(server: &Server, options: &ClientOptions) -> Result<Follower, Failure> {
        let jsons = [
            Some(json_path(&options.pid_file)),
            options.status_file.as_deref().map(json_path),
        ];
        for json in jsons.into_iter().flatten() {
            if let Some(status) = Status::read(&json)
                && status.supervisor == i64::from(server.pid.as_raw())
            {
                return Ok(Follower::ByRequest {
                    json,
                    request: status.next_request(),
                    answer: None,
                });
            }
        }
        let Some(lines) = options.status_file.clone() else {
            let json = json_path(&options.pid_file);
            let failure = Failure::failed(format!(
                "cannot follow a restart of pid {}: {}",
                server.pid,
                no_status(&json)
            ));
            return Err(match json.exists() {
                true => failure,
                false => failure
                    .hint("a server of another make is followed by its --status-file: name it too"),
            });
        };
        let newest = read_lines(&lines).map_err(|cause| {
            Failure::failed(format!(
                "cannot read --status-file={}: {cause}",
                lines.display()
            ))
        })?;
        let newest = newest.into_iter().max().unwrap_or(0);
        Ok(Follower::ByGenerations { lines, newest })
    }

    /// The verdict, if there is one yet.
    fn look(&mut self) -> Result<Option<Verdict>, Failure> {
        match self {
            Follower::ByGenerations { lines, newest } => {
                // Between two writes there may be nothing to read.
                let generations = read_lines(lines).unwrap_or_default();
                let only = generations.iter().min() == generations.iter().max();
                Ok(generations
                    .first()
                    .filter(|one| only && *one > newest)
                    .map(|_| Ok(())))
            }
            Follower::ByRequest {
                json,
                request,
                answer,
            } => {
                let Some(status) = Status::read(json) else {
                    return Ok(None);
                };
                *answer = answer.or_else(|| status.answer_to(*request));
                Ok(answer.and_then(|generation| status.verdict_on(generation)))
            }
        }
    }
}

impl Follower {
    /// What a restart waits for that has no verdict yet.
    fn how_far(&self, server: &Server, json: &Path) -> String {
        let waits_for = || match self {
            Follower::ByRequest {
                json,
                answer: Some(generation),
                ..
            } => Status::read(json)?.waits_for(*generation),
            _ => None,
        };
        server.is_stopped().or_else(waits_for).unwrap_or_else(|| {
            format!(
                "{} shows how far it is, unless its disk is full",
                json.display()
            )
        })
    }
}

/// The part of the status that a verdict is made of.
#[derive(Debug, PartialEq, Eq)]
pub struct Status {
    supervisor: i64,
    restarts: u64,
    stopping: bool,
    /// Whether a generation that has committed is left.
    serves: bool,
    /// The generations that have workers.
    living: Vec<u64>,
    /// The workers with their generations.
    workers: Vec<(u64, i64)>,
    /// As the option was given.
    log_file: Option<String>,
    verdicts: Vec<Decided>,
    /// How often it was told to open its log file again.
    reopened: u64,
    /// Why it could not, the last time.
    reopen_failure: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Decided {
    request: u64,
    generation: u64,
    committed: bool,
    status: Option<i64>,
    /// Why no program ran.
    cause: Option<String>,
    /// What can be done about that.
    hint: Option<String>,
    /// The last lines on standard error of the worker that has failed.
    stderr: Vec<String>,
}

impl Status {
    fn read(path: &Path) -> Option<Status> {
        Status::parse(&read_text(path).ok()?)
    }

    /// What a server has written into its status file, or somebody else in its place.
    pub fn parse(text: &str) -> Option<Status> {
        let View {
            supervisor,
            stopping,
            counters,
            generations,
            verdicts,
            log,
            options,
        } = serde_json::from_str(text).ok()?;
        let log = log.unwrap_or_default();
        let is_current = |one: &GenerationView| one.state.as_deref() == Some("current");
        Some(Status {
            supervisor: supervisor.pid,
            stopping,
            serves: generations.iter().any(is_current),
            restarts: counters.restarts,
            living: generations.iter().filter_map(|one| one.number).collect(),
            workers: generations.iter().flat_map(GenerationView::pids).collect(),
            log_file: options.and_then(|options| options.log_file),
            verdicts: verdicts.into_iter().map(Decided::from).collect(),
            reopened: log.reopened.unwrap_or(0),
            reopen_failure: log.failure,
        })
    }

    /// The number of the restart that is asked for next.
    pub fn next_request(&self) -> u64 {
        // The server's user can write anything there, and this may be root.
        self.restarts.saturating_add(1)
    }

    /// The generation that answers a restart. A start that was under way when it was asked for does not.
    pub fn answer_to(&self, request: u64) -> Option<u64> {
        let first = self.verdicts.iter().find(|one| one.request >= request)?;
        Some(first.generation)
    }

    /// What became of the restart that this generation answers: it was committed when nothing else is known any more.
    pub fn verdict_on(&self, generation: u64) -> Option<Verdict> {
        // A generation that died before the old one was signalled has both decisions.
        let last = self
            .verdicts
            .iter()
            .rev()
            .find(|one| one.generation == generation);
        if let Some(Decided {
            committed: false,
            status,
            cause,
            hint,
            stderr,
            ..
        }) = last
        {
            let status = status.and_then(|status| i32::try_from(status).ok());
            let how = match (cause, status) {
                // A status that no program has given would mislead.
                (Some(cause), _) => format!(": {}", harmless(cause)),
                (None, Some(status)) => format!(", exit status:{}", WithMeaning(status)),
                (None, None) => String::new(),
            };
            // Whoever may write the file may have written anything.
            let said: Vec<String> = stderr.iter().map(|line| harmless(line)).collect();
            let serving = if self.serves {
                "the old one serves on"
            } else {
                "no worker serves"
            };
            return Some(Err(Failure::failed(format!(
                "cannot restart: generation {generation} has failed to start{how}; {serving}"
            ))
            .stderr(&said)
            .hint(format!(
                "{}; it is tried again until it comes up, or --start-limit is reached",
                self.advice(hint.as_deref(), status.filter(|_| cause.is_none()))
            ))));
        }
        let old_left = self.living.iter().any(|number| *number < generation);
        // A server that stops has not restarted: its end will tell.
        (!old_left && !self.stopping).then_some(Ok(()))
    }

    /// What helps against a failed start, with the status that the program itself has given.
    fn advice(&self, hint: Option<&str>, status: Option<i32>) -> String {
        match (hint, status, &self.log_file) {
            (Some(hint), ..) => harmless(hint),
            (None, Some(0), _) => {
                "a server that puts itself into the background has ended for start_server: keep it in the foreground".into()
            }
            (None, _, Some(file)) if !file.starts_with('|') => {
                format!("{} says more", harmless(file))
            }
            _ => "the log says more".into(),
        }
    }

    /// The old workers that a restart waits for whose generation serves.
    fn waits_for(&self, generation: u64) -> Option<String> {
        let committed = self
            .verdicts
            .iter()
            .rev()
            .find(|one| one.generation == generation)?
            .committed;
        let old = self
            .workers
            .iter()
            .filter(|(number, _)| *number < generation);
        let old: Vec<String> = old.map(|(_, pid)| pid.to_string()).collect();
        (committed && !old.is_empty()).then(|| {
            format!(
                "generation {generation} serves; old workers that have not ended yet: {}",
                old.join(", ")
            )
        })
    }
}

/// The file as far as it is asked for. What else is in it costs no memory, which another user could make root's.
#[derive(Deserialize)]
struct View {
    supervisor: SupervisorView,
    stopping: bool,
    counters: CountersView,
    generations: Vec<GenerationView>,
    verdicts: Vec<VerdictView>,
    log: Option<LogView>,
    options: Option<OptionsView>,
}

#[derive(Deserialize)]
struct OptionsView {
    log_file: Option<String>,
}

#[derive(Deserialize)]
struct WorkerView {
    pid: i64,
}

#[derive(Deserialize)]
struct SupervisorView {
    pid: i64,
}

#[derive(Deserialize)]
struct CountersView {
    restarts: u64,
}

#[derive(Deserialize)]
struct GenerationView {
    number: Option<u64>,
    state: Option<String>,
    workers: Option<Vec<WorkerView>>,
}

impl GenerationView {
    /// The workers, each with the number of the generation.
    fn pids(&self) -> Vec<(u64, i64)> {
        let pid = |worker: &WorkerView| Some((self.number?, worker.pid));
        self.workers.iter().flatten().filter_map(pid).collect()
    }
}

#[derive(Deserialize)]
struct VerdictView {
    request: u64,
    generation: u64,
    result: String,
    status: Option<i64>,
    cause: Option<String>,
    hint: Option<String>,
    stderr: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
struct LogView {
    reopened: Option<u64>,
    failure: Option<String>,
}

impl From<VerdictView> for Decided {
    fn from(view: VerdictView) -> Decided {
        Decided {
            request: view.request,
            generation: view.generation,
            committed: view.result == "committed",
            status: view.status,
            cause: view.cause,
            hint: view.hint,
            stderr: view.stderr.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn status(living: &[u64], verdicts: &[(u64, u64, bool)]) -> Status {
        let verdicts = verdicts
            .iter()
            .map(|&(request, generation, committed)| Decided {
                request,
                generation,
                committed,
                status: Some(256),
                cause: None,
                hint: None,
                stderr: vec!["the reason".into()],
            })
            .collect();
        Status {
            supervisor: 1,
            restarts: 9,
            stopping: false,
            serves: true,
            living: living.to_vec(),
            workers: Vec::new(),
            log_file: None,
            verdicts,
            reopened: 0,
            reopen_failure: None,
        }
    }

    impl Status {
        fn verdict(&self, request: u64) -> Option<Verdict> {
            self.answer_to(request)
                .and_then(|generation| self.verdict_on(generation))
        }
    }

    #[test]
    fn a_restart_is_done_when_its_generation_has_committed_and_the_old_one_is_gone() {
        assert!(status(&[1], &[(0, 1, true)]).verdict(1).is_none());
        assert!(status(&[1, 2], &[(0, 1, true)]).verdict(1).is_none());
        assert!(
            status(&[1, 2], &[(0, 1, true), (1, 2, true)])
                .verdict(1)
                .is_none()
        );
        assert_eq!(
            status(&[2], &[(0, 1, true), (1, 2, true)]).verdict(1),
            Some(Ok(()))
        );
    }

    #[test]
    fn a_start_that_was_under_way_does_not_answer() {
        assert!(status(&[2], &[(1, 2, true)]).verdict(2).is_none());
        assert_eq!(
            status(&[3], &[(1, 2, true), (2, 3, true)]).verdict(2),
            Some(Ok(()))
        );
    }

    #[test]
    fn a_failed_start_is_told_at_once_and_with_its_status() {
        let failure = status(&[1], &[(0, 1, true), (1, 2, false)])
            .verdict(1)
            .unwrap()
            .unwrap_err();
        assert!(failure.to_string().contains(
            "generation 2 has failed to start, exit status:256 (exit code 1); the old one serves on\nstderr: the reason\nhint: "
        ));
        // Also if the next try has succeeded meanwhile, and if it failed after it had committed.
        assert!(
            status(&[3], &[(1, 2, false), (1, 3, true)])
                .verdict(1)
                .unwrap()
                .is_err()
        );
        assert!(
            status(&[1], &[(1, 2, true), (1, 2, false)])
                .verdict(1)
                .unwrap()
                .is_err()
        );
    }

    #[test]
    fn later_restarts_and_crashes_do_not_keep_one_from_its_verdict() {
        // Committed, superseded by a restart that failed, and crashed: the old one of before is gone.
        let status = status(&[5], &[(1, 2, true), (2, 3, false), (2, 5, true)]);
        assert_eq!(status.verdict(1), Some(Ok(())));
    }

    #[test]
    fn a_decision_that_is_forgotten_stays_what_it_was() {
        assert!(status(&[1, 2], &[(2, 3, false)]).verdict_on(2).is_none());
        assert_eq!(status(&[2], &[(2, 3, false)]).verdict_on(2), Some(Ok(())));
    }

    #[test]
    fn a_server_that_is_about_to_end_has_not_restarted() {
        let stopping = Status {
            stopping: true,
            ..status(&[2], &[(0, 1, true), (1, 2, true)])
        };
        assert!(stopping.verdict(1).is_none());
    }
}
