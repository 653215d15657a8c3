//! `--status-file=F`: `F` in Server::Starter's format for programs that know it, and `F.json` with everything. Beside
//! a pid file `P` there is the same as `P.json`, where `--restart` finds its verdict.
//!
//! All are removed at the end if they are still ours. A disk that is full does not end the service: it is said once, and tried again until it works.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::Pid;
use serde::Serialize;

use crate::host::confinement::InForce;
use crate::host::moment::Moment;
use crate::listeners::bind::Listener;
use crate::log::{Address, LogTarget, Reopened};
use crate::machine::{
    Counters, Decision, Departed, Generation, Machine, REMEMBERED, State, Verdict,
};
use crate::options::Options;
use crate::words::failure::Failure;
use crate::words::notice::ExecFailure;

pub use super::replaced::read_text;
use super::replaced::{Replaced, remove_drafts_of_the_dead};

/// How long after a failed write it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The mode of `F`, whatever the umask is: it holds nothing but numbers.
const READ_BY_ALL: u32 = 0o644;

/// The least mode of `F.json`, so that workers and clients read it. More is up to the umask: it may hold lines of the log,
/// and no more users are to read these there than in the log itself.
const READ_BY_USER: u32 = 0o600;

/// All these files.
#[derive(Debug)]
pub struct StatusFile {
    lines: Option<Replaced>,
    json: Vec<Replaced>,
    fixed: Fixed,
    log: LogView,
    /// The last lines on standard error of workers that are gone, where these are captured; oldest first.
    last_lines: VecDeque<(Pid, Vec<String>)>,
    retry_at: Option<Moment>,
}

/// What does not change while the superdaemon runs.
#[derive(Debug, Serialize)]
struct Fixed {
    supervisor: SupervisorView,
    options: OptionsView,
    confinement: InForce,
    listeners: Vec<ListenerView>,
}

#[derive(Debug, Serialize)]
struct SupervisorView {
    pid: u32,
    version: &'static str,
    started_at: f64,
}

#[derive(Debug, Serialize)]
struct OptionsView {
    program: String,
    arguments: Vec<String>,
    dir: Option<String>,
    interval: f64,
    signal_on_hup: &'static str,
    signal_on_term: &'static str,
    kill_old_delay: Option<f64>,
    stop_timeout: Option<f64>,
    start_limit: Option<u32>,
    pid_file: Option<String>,
    status_file: Option<String>,
    /// As it was given: a file, or a command behind `|`.
    log_file: Option<String>,
    log_timestamps: bool,
    syslog: Option<SyslogView>,
    user: Option<String>,
    group: Option<String>,
}

#[derive(Debug, Serialize)]
struct SyslogView {
    facility: String,
    tag: String,
    address: String,
}

#[derive(Debug, Serialize)]
struct ListenerView {
    name: String,
    kind: &'static str,
    fd: i32,
}

/// `F.json`. Times are seconds since 1970, statuses as wait(2) gives them.
#[derive(Debug, Serialize)]
struct View<'a> {
    #[serde(flatten)]
    fixed: &'a Fixed,
    log: &'a LogView,
    stopping: bool,
    generations: Vec<GenerationView>,
    /// The last workers that are gone, oldest first.
    departed: Vec<DepartedView<'a>>,
    counters: CountersView,
    /// What became of the last starts, oldest first.
    verdicts: Vec<VerdictView<'a>>,
}

#[derive(Debug, Serialize)]
struct GenerationView {
    number: u32,
    state: &'static str,
    workers: Vec<WorkerView>,
}

#[derive(Debug, Serialize)]
struct WorkerView {
    pid: i32,
    started_at: f64,
}

#[derive(Debug, Serialize)]
struct DepartedView<'a> {
    generation: u32,
    pid: i32,
    at: f64,
    #[serde(flatten)]
    status: StatusView,
    /// The last lines of its standard error, where they are captured.
    stderr: &'a [String],
}

/// The orders to open the log file again.
#[derive(Debug, Default, Serialize)]
struct LogView {
    reopened: u32,
    failure: Option<String>,
}

/// A wait status, raw and in its parts.
#[derive(Debug, Serialize)]
struct StatusView {
    status: i32,
    exit_code: Option<i32>,
    signal: Option<i32>,
}

#[derive(Debug, Serialize)]
struct CountersView {
    restarts: u32,
    failed_starts: u32,
    crashes: u32,
}

#[derive(Debug, Serialize)]
struct VerdictView<'a> {
    /// The restart that it answers, with all before it: counted by `counters.restarts`.
    request: u32,
    generation: u32,
    result: &'static str,
    at: f64,
    #[serde(flatten)]
    status: Option<StatusView>,
    /// Why no program ran.
    cause: Option<String>,
    /// What can be done about that, where it is known.
    hint: Option<&'a str>,
    /// The last lines on standard error of the worker that has failed, where they are captured.
    stderr: &'a [String],
}

impl StatusFile {
    /// Writes the first `F.json`, which also shows that the directory can be written, and removes a stale `F`.
    ///
    /// # Errors
    /// When something is there that is no status file (it stays as it is), or nothing can be written.
    pub fn create(
        options: &Options,
        listeners: &[Listener],
        confinement: InForce,
    ) -> Result<StatusFile, Failure> {
        let lines = options.status_file.as_deref();
        let mut status = StatusFile {
            lines: lines
                .map(|path| Replaced::new(path.to_owned(), READ_BY_ALL, is_status_lines))
                .transpose()?,
            json: Vec::new(),
            fixed: Fixed::new(options, listeners, confinement),
            log: LogView::default(),
            last_lines: VecDeque::new(),
            retry_at: None,
        };
        lines.into_iter().for_each(remove_drafts);
        let text = status.json_text(None);
        for beside in [lines, options.pid_file.as_deref()].into_iter().flatten() {
            let path = json_path(beside);
            let mut json = Replaced::new(path.clone(), READ_BY_USER, is_status_json)?;
            remove_drafts(&path);
            json.create(text.clone())?;
            status.json.push(json);
        }
        if let Some(lines) = &mut status.lines {
            // The pids in it are of another time, and workers read it.
            lines.remove_stale()?;
        }
        Ok(status)
    }

    /// Writes what has changed. An error is said once and tried again.
    pub fn save(&mut self, machine: &Machine, now: Moment) {
        let mut saved = true;
        if let Some(file) = &mut self.lines {
            let text = lines(machine);
            // Before anything has settled there is no `F`, as in Server::Starter.
            if !text.is_empty() || file.is_written() {
                saved &= file.save(text);
            }
        }
        if !self.json.is_empty() {
            let text = self.json_text(Some((machine, now)));
            for file in &mut self.json {
                saved &= file.save(text.clone());
            }
        }
        self.retry_at = (!saved).then(|| now + RETRY);
    }

    /// What a worker that has ended has said last; to be written with the next change.
    pub fn worker_exited(&mut self, pid: Pid, last_lines: Vec<String>) {
        if last_lines.is_empty() {
            return;
        }
        self.last_lines.push_back((pid, last_lines));
        if self.last_lines.len() > REMEMBERED {
            self.last_lines.pop_front();
        }
    }

    /// What became of the orders to open the log file again; to be written with the next change.
    pub fn log_reopened(&mut self, Reopened { orders, failure }: Reopened) {
        self.log = LogView {
            reopened: orders,
            failure,
        };
    }

    /// What a worker that is gone has said last, where that is captured.
    pub fn last_lines_of(&self, pid: Pid) -> &[String] {
        // The last of that number: numbers come again.
        let found = self.last_lines.iter().rev().find(|(one, _)| *one == pid);
        found.map_or(&[], |(_, lines)| lines)
    }

    fn last_lines_for(&self, decision: &Decision, machine: &Machine) -> &[String] {
        let failed = matches!(decision.verdict, Verdict::Failed { .. });
        let departed = machine.history().departed.iter().rev();
        let worker = departed
            .filter(|_| failed)
            .find(|one| one.generation == decision.generation);
        worker.map_or(&[], |one| self.last_lines_of(one.pid))
    }

    /// When [`StatusFile::save`] is to be called again because it has failed.
    pub fn deadline(&self) -> Option<Moment> {
        self.retry_at
    }

    fn json_text(&self, live: Option<(&Machine, Moment)>) -> String {
        let clock = Clock::new(live.map_or_else(Moment::now, |(_, now)| now));
        let none = View {
            fixed: &self.fixed,
            log: &self.log,
            stopping: false,
            generations: Vec::new(),
            departed: Vec::new(),
            counters: CountersView {
                restarts: 0,
                failed_starts: 0,
                crashes: 0,
            },
            verdicts: Vec::new(),
        };
        let view = match live {
            None => none,
            Some((machine, _)) => View {
                stopping: machine.is_stopping(),
                generations: machine
                    .generations()
                    .map(|one| generation_view(one, &clock))
                    .collect(),
                departed: machine
                    .history()
                    .departed
                    .iter()
                    .map(|one| departed_view(one, &clock, self.last_lines_of(one.pid)))
                    .collect(),
                counters: counters_view(machine.history().counters),
                verdicts: machine
                    .history()
                    .decisions
                    .iter()
                    .map(|one| verdict_view(one, &clock, self.last_lines_for(one, machine)))
                    .collect(),
                ..none
            },
        };
        // Nothing in it can fail to be JSON: its keys are strings, and its numbers finite.
        let mut text = serde_json::to_string_pretty(&view).unwrap_or_default();
        text.push('\n');
        text
    }
}

impl Drop for StatusFile {
    fn drop(&mut self) {
        self.lines
            .iter()
            .chain(&self.json)
            .for_each(Replaced::remove);
    }
}

/// The file with everything that belongs to a status or pid file.
pub fn json_path(beside: &Path) -> PathBuf {
    let mut path = OsString::from(beside);
    path.push(".json");
    path.into()
}

/// The generations in a status file of Server::Starter's format, in its order; the cause in words where there is none.
pub fn read_lines(path: &Path) -> Result<Vec<u32>, String> {
    let text = read_text(path).map_err(|error| crate::words::failure::cause(&error))?;
    Ok(parse_lines(&text))
}

/// What is no line of that format is left out.
pub fn parse_lines(text: &str) -> Vec<u32> {
    text.lines()
        .filter_map(|line| line.split_once(':')?.0.parse().ok())
        .collect()
}

/// `GENERATION:PID` for every worker that has settled and lives, by number.
fn lines(machine: &Machine) -> String {
    machine
        .generations()
        .filter(|generation| generation.state() != State::Starting)
        .flat_map(|generation| {
            generation
                .workers()
                .map(move |worker| format!("{}:{}\n", generation.number, worker.pid))
        })
        .collect()
}

/// Whether a status file may be replaced: it is one in Server::Starter's format.
pub fn is_status_lines(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.lines().all(|line| {
        line.split_once(':')
            .is_some_and(|(generation, pid)| number(generation) && number(pid))
    })
}

/// The same for `F.json`.
pub fn is_status_json(text: &str) -> bool {
    text.is_empty()
        || serde_json::from_str::<serde_json::Value>(text).is_ok_and(|value| {
            value.get("supervisor").is_some() && value.get("generations").is_some()
        })
}

fn remove_drafts(path: &Path) {
    remove_drafts_of_the_dead(path, |text| {
        text.is_empty() || text.starts_with("{\n  \"supervisor\"") || is_status_lines(text)
    });
}

/// Moments as seconds since 1970.
struct Clock {
    moment: Moment,
    since_1970: Duration,
}

impl Clock {
    fn new(moment: Moment) -> Clock {
        let passed = Moment::now().saturating_since(moment);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Clock {
            moment,
            since_1970: now.saturating_sub(passed),
        }
    }

    /// Rounded to milliseconds.
    fn seconds(&self, moment: Moment) -> f64 {
        let at = self
            .since_1970
            .saturating_sub(self.moment.saturating_since(moment));
        (at.as_secs_f64() * 1000.0).round() / 1000.0
    }
}

impl Fixed {
    fn new(options: &Options, listeners: &[Listener], confinement: InForce) -> Fixed {
        let text = |path: &PathBuf| path.display().to_string();
        let now = Moment::now();
        Fixed {
            supervisor: SupervisorView {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION"),
                started_at: Clock::new(now).seconds(now),
            },
            options: OptionsView {
                program: options.program.to_string_lossy().into_owned(),
                arguments: options
                    .arguments
                    .iter()
                    .map(|one| one.to_string_lossy().into_owned())
                    .collect(),
                dir: options.directory.as_ref().map(text),
                interval: options.interval.as_secs_f64(),
                signal_on_hup: options.signal_on_hup.as_str(),
                signal_on_term: options.signal_on_term.as_str(),
                kill_old_delay: options.kill_old_delay.map(|one| one.as_secs_f64()),
                stop_timeout: options.stop_timeout.map(|one| one.as_secs_f64()),
                start_limit: options.start_limit.map(Into::into),
                pid_file: options.pid_file.as_ref().map(text),
                status_file: options.status_file.as_ref().map(text),
                log_file: options.log_file.as_ref().map(|target| match target {
                    LogTarget::File(path) => text(path),
                    LogTarget::Command(command) => format!("| {}", command.display()),
                }),
                log_timestamps: options.log_timestamps,
                syslog: options.syslog.as_ref().map(|syslog| SyslogView {
                    facility: syslog.facility.clone(),
                    tag: syslog.tag.clone(),
                    address: match &syslog.address {
                        Address::Socket(path) => text(path),
                        Address::Udp(address) => format!("udp:{address}"),
                    },
                }),
                user: options.user.clone(),
                group: options.group.clone(),
            },
            confinement,
            listeners: listeners
                .iter()
                .map(|one| ListenerView {
                    name: one.name.to_string_lossy().into_owned(),
                    kind: one.kind,
                    fd: one.number,
                })
                .collect(),
        }
    }
}

fn generation_view(generation: &Generation, clock: &Clock) -> GenerationView {
    GenerationView {
        number: generation.number,
        state: match generation.state() {
            State::Starting => "starting",
            State::Current => "current",
            State::Retiring => "retiring",
            State::Old => "old",
        },
        workers: generation
            .workers()
            .map(|worker| WorkerView {
                pid: worker.pid.as_raw(),
                started_at: clock.seconds(worker.spawned_at),
            })
            .collect(),
    }
}

fn departed_view<'a>(departed: &Departed, clock: &Clock, stderr: &'a [String]) -> DepartedView<'a> {
    DepartedView {
        generation: departed.generation,
        pid: departed.pid.as_raw(),
        at: clock.seconds(departed.at),
        status: status_view(departed.status),
        stderr,
    }
}

fn counters_view(
    Counters {
        restarts,
        failed_starts,
        crashes,
    }: Counters,
) -> CountersView {
    CountersView {
        restarts,
        failed_starts,
        crashes,
    }
}

fn verdict_view<'a>(
    decision: &'a Decision,
    clock: &Clock,
    stderr: &'a [String],
) -> VerdictView<'a> {
    let (result, status, cause) = match &decision.verdict {
        Verdict::Committed => ("committed", None, None),
        Verdict::Failed { status, cause } => ("failed", status.map(status_view), cause.as_ref()),
    };
    VerdictView {
        request: decision.request,
        generation: decision.generation,
        result,
        at: clock.seconds(decision.at),
        status,
        cause: cause.map(ExecFailure::line),
        hint: cause.and_then(|cause| cause.hint.as_deref()),
        stderr,
    }
}

fn status_view(status: i32) -> StatusView {
    StatusView {
        status,
        exit_code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_may_be_replaced() {
        for ours in ["", "1:23\n", "9:100\n10:101\n", "1:23"] {
            assert!(is_status_lines(ours), "{ours:?}");
        }
        for foreign in ["\n", "hello\n", "1:23\nhello\n", "1:\n", ":1\n", "a:1\n"] {
            assert!(!is_status_lines(foreign), "{foreign:?}");
        }
        assert!(is_status_json(
            r#"{"supervisor":{"pid":1},"generations":[]}"#
        ));
        assert!(!is_status_json(r#"{"name":"package"}"#));
        assert!(!is_status_json("[1]"));
    }

    #[test]
    fn a_wait_status_is_shown_in_its_parts() {
        let exited = status_view(256);
        assert_eq!((exited.exit_code, exited.signal), (Some(1), None));
        let killed = status_view(9);
        assert_eq!((killed.exit_code, killed.signal), (None, Some(9)));
    }
}
