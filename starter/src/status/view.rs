//! `FILE.json`: its one schema, which the server writes and every client reads.
//!
//! A reader ignores unknown fields and takes the default for missing ones: the server may be older or newer than the
//! client.
//!
//! A reader's memory is bounded, because root asks servers of other users, who can write there what they like. So nothing
//! here is flattened (serde would keep every unknown field until the end), every list is a [`List`], and the elements of
//! long ones have a mandatory field: each then takes about as much text as memory.
//!
//! Times are seconds since 1970, statuses as wait(2) gives them.

use serde::{Deserialize, Serialize};

use super::list::List;

/// More processes or sockets than any server has.
const MANY: usize = 65_536;

/// More than a server remembers of what has ended.
const REMEMBERED: usize = 256;

/// More lines than a server keeps of a worker.
const LAST_LINES: usize = 64;

/// A worker's last lines on standard error, oldest first; empty if unknown.
pub type LastLines = List<String, LAST_LINES>;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub supervisor: Supervisor,
    #[serde(default)]
    pub options: Options,
    #[serde(default)]
    pub confinement: Confinement,
    #[serde(default)]
    pub listeners: List<Listener, MANY>,
    /// What workers have left for the workers after them, if that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd_store: Option<FdStore>,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub upgrades: Upgrades,
    /// Which generation gets new connections, if each has sockets of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<Switch>,
    /// It was told to stop, or is giving up.
    #[serde(default)]
    pub stopping: bool,
    /// Why the generation that serves is not in good health.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<String>,
    /// How many generations in a row have died soon after they had committed; 0 unless that is a loop.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub crash_loop: u64,
    /// When the next start is due, if one is delayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_at: Option<f64>,
    /// How many workers a generation is to have; 0 if an older version has written it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub workers: u64,
    /// The last change of that number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// Those that have workers, oldest first.
    pub generations: List<Generation, MANY>,
    /// The last departed workers, oldest first.
    #[serde(default)]
    pub departed: List<Departed, REMEMBERED>,
    #[serde(default)]
    pub counters: Counters,
    /// The results of the last starts, oldest first.
    #[serde(default)]
    pub verdicts: List<Verdict, REMEMBERED>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Supervisor {
    pub pid: i64,
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub started_at: f64,
    /// When its process was started, in clock ticks since the boot.
    #[serde(default)]
    pub start_ticks: Option<u64>,
    /// The orders that it obeys.
    #[serde(default)]
    pub orders: List<String, 64>,
}

/// The command line's settings; times in seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    pub program: String,
    pub arguments: List<String, MANY>,
    pub dir: Option<String>,
    /// As given: `--label=v1`, `--label-file=VERSION`.
    pub label: Option<String>,
    pub interval: f64,
    /// As given: `http:/healthz`.
    pub ready: String,
    /// Only where readiness is told.
    pub start_timeout: Option<f64>,
    pub watch: Option<f64>,
    pub signal_on_hup: String,
    pub signal_on_term: String,
    pub kill_old_delay: Option<f64>,
    pub stop_timeout: Option<f64>,
    pub start_limit: Option<u32>,
    /// Workers that die are replaced by what has served.
    pub pins: bool,
    pub pid_file: Option<String>,
    pub status_file: Option<String>,
    /// As given: a file, or a command after `|`.
    pub log_file: Option<String>,
    pub log_timestamps: bool,
    /// `text` or `json`; empty in those of earlier versions.
    pub log_format: String,
    pub syslog: Option<Syslog>,
    pub user: Option<String>,
    pub group: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Syslog {
    pub facility: String,
    pub tag: String,
    pub address: String,
}

/// The confinement of each process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confinement {
    /// The supervisor and every worker.
    pub supervisor: ConfinedSupervisor,
    /// Only if binders were needed; the port binder is gone by now.
    pub binders: List<ConfinedBinder, 16>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfinedSupervisor {
    pub no_new_privs: bool,
    pub bounding_set_empty: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfinedBinder {
    /// `ports` or `paths`.
    pub makes: String,
    pub seccomp: bool,
    /// The Landlock ABI version, 0 without Landlock.
    pub landlock: u8,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listener {
    /// The key in `SERVER_STARTER_PORT`.
    pub name: String,
    /// `tcp`, `udp` or `unix`; of what the launcher has passed on also `fifo`, `seqpacket` and others.
    pub kind: String,
    /// Where it is bound: `127.0.0.1:80`, `[::1]:80`, or the path.
    pub address: String,
    pub fd: i32,
    /// How many connections may wait to be accepted, as the kernel grants it; null for UDP.
    pub backlog: Option<u32>,
    /// How many sockets it has, in all lanes; null if all generations share one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u64>,
    /// Whether the launcher has passed it on.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inherited: bool,
    /// Why clients do not find it as it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Sockets that belong to one generation each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Switch {
    /// How many each address has.
    pub lanes: u64,
    /// The lane to which all new connections go, or most.
    pub selected: u64,
    /// The rest, if a generation is tried with a share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

/// A generation that gets a share of new traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Canary {
    pub generation: u64,
    pub lane: u64,
    /// 1 to 99.
    pub percent: u64,
    pub by: By,
    /// When it is promoted by itself, unless it fails before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promoted_at: Option<f64>,
}

/// How the kernel chooses what goes to a canary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Anybody, anew for each connection.
    Random,
    /// The same clients each time.
    Client,
    /// A value that another version may write.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What workers have left, by `--fd-store-max`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FdStore {
    pub max: u64,
    pub count: u64,
    /// How many were refused because of a limit.
    pub refused: u64,
    pub names: List<Kept, MANY>,
}

/// The descriptors of one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub name: String,
    #[serde(default)]
    pub count: u64,
}

/// The log: what became of requests to reopen its file, and of lines.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// The number of requests to reopen the log file.
    pub reopened: u64,
    /// Why the last one failed.
    pub failure: Option<String>,
    /// Lines that were lost on the way to the log or to syslog.
    pub lost: u64,
}

/// What became of requests to execute the program file again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Upgrades {
    /// The number of requests that are decided.
    pub tried: u64,
    /// Why the last one failed.
    pub failure: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    pub number: u64,
    #[serde(default)]
    pub state: State,
    /// What it is called: what `--label` or `--label-file` says, or the program that it was started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Which sockets it has, if each generation has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<u64>,
    /// The percentage of new connections that go to it, if each generation has its own sockets and any do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u64>,
    /// When it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<f64>,
    /// What it must do before it serves, such as `READY`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// The next generation is not started before this one is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops_first: Option<StopsFirst>,
    /// When its start fails unless it has done that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fails_at: Option<f64>,
    #[serde(default)]
    pub workers: List<Worker, MANY>,
}

/// A change of the number of workers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scaling {
    /// Counted from 1.
    pub number: u64,
    pub from: u64,
    pub to: u64,
    pub at: f64,
    /// When all of them served.
    pub done_at: Option<f64>,
    /// Why it has failed.
    pub cause: Option<String>,
    pub hint: Option<String>,
}

/// How far a rolling restart came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rolled {
    /// Workers that were replaced.
    pub done: u64,
    pub of: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopsFirst {
    /// When it was told to stop.
    pub since: f64,
    /// When the last of its workers is killed, if that is bounded.
    pub killed_at: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Starting,
    Current,
    /// It serves a share of new traffic.
    Canary,
    /// It has taken over some slots of the current one in a rolling restart, which has failed then.
    Partial,
    /// A newer one serves, but this one has not been signalled yet.
    Retiring,
    /// It is there only for what waits at sockets that no other generation serves.
    Sweeping,
    /// Told to stop.
    Old,
    /// A value that another version may write.
    #[default]
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    pub pid: i64,
    /// Its place among the workers of its generation, from 0.
    #[serde(default)]
    pub slot: u64,
    #[serde(default)]
    pub started_at: f64,
    /// What it last said about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Departed {
    pub generation: u64,
    pub pid: i64,
    pub at: f64,
    pub status: i64,
    pub exit_code: Option<i64>,
    pub signal: Option<i64>,
    pub stderr: LastLines,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Restarts and rollbacks requested.
    pub restarts: u64,
    /// Generations that have committed, the first included.
    pub commits: u64,
    /// When one last did.
    pub committed_at: Option<f64>,
    pub failed_starts: u64,
    /// Workers that died while serving.
    pub crashes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The last restart that it answers, as counted by [`Counters::restarts`].
    pub request: u64,
    /// That is a rollback.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback: bool,
    pub generation: u64,
    /// What that is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default)]
    pub result: Outcome,
    /// The generation serves though it has failed: its listeners, or one of them, cannot be reached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub serves: bool,
    /// It has failed, and `--start-limit` forbids another try.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given_up: bool,
    #[serde(default)]
    pub at: f64,
    /// A rollback has undone it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undone: bool,
    /// The wait status of the failed worker. It and its parts are written only if there was such a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<i64>,
    /// The inner one is null if a signal ended the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<Option<i64>>,
    /// The inner one is null if the worker exited by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Option<i64>>,
    /// Why no program ran, or nobody reaches it.
    #[serde(default)]
    pub cause: Option<String>,
    /// What can be done about that, if known.
    #[serde(default)]
    pub hint: Option<String>,
    /// The failed worker's.
    #[serde(default)]
    pub stderr: LastLines,
    /// The generation that it was to replace: the newest older one, or after a rollback a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<u64>,
    /// The generation whose program it runs again, after a rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<u64>,
    /// What it was to replace had to stop first, and that was told to it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unserved_since: Option<f64>,
    /// After it had failed, what served before was started again as this generation, and serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<u64>,
    /// It has failed in the middle of a rolling restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled: Option<Rolled>,
    #[serde(default, skip_serializing_if = "Durations::are_unknown")]
    pub durations: Durations,
}

/// How long each step of a start took, in seconds; null if it was not done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// Until its process existed.
    pub spawn: Option<f64>,
    /// From then until it ran the program.
    pub exec: Option<f64>,
    /// From then until it served.
    pub ready: Option<f64>,
    /// From then until no older generation had a worker any more.
    pub drained: Option<f64>,
    /// From the moment when what it was to replace was told to stop first until something served.
    pub unserved: Option<f64>,
}

impl Durations {
    /// An older server does not tell them.
    fn are_unknown(&self) -> bool {
        *self == Durations::default()
    }

    /// How long the whole start took, if it serves.
    pub fn until_ready(&self) -> Option<f64> {
        Some(self.spawn? + self.exec? + self.ready?)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Committed,
    /// It serves a share of new traffic.
    Canary,
    Failed,
    /// A value that another version may write.
    #[default]
    #[serde(other)]
    Unknown,
}

impl View {
    /// What a server, or somebody else in its place, has written into its status file.
    pub fn parse(text: &str) -> Option<View> {
        is_object(text)
            .then(|| serde_json::from_str(text).ok())
            .flatten()
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        // It always converts to JSON: its keys are strings, and its numbers finite.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Whether this may be the status of a server of any version: then another one may replace it.
pub fn is_status_json(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Sketch {
        #[serde(rename = "supervisor")]
        _supervisor: serde::de::IgnoredAny,
        #[serde(rename = "generations")]
        _generations: serde::de::IgnoredAny,
    }
    text.is_empty() || is_object(text) && serde_json::from_str::<Sketch>(text).is_ok()
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// serde also accepts an array of the right values for a struct.
fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_may_be_replaced() {
        for ours in [
            "",
            r#"{"supervisor":{"pid":1},"generations":[]}"#,
            r#" {"supervisor":{},"generations":[],"later":{"a":[1]}}"#,
        ] {
            assert!(is_status_json(ours), "{ours}");
        }
        for foreign in [
            r#"{"name":"package"}"#,
            "[1]",
            "[1,2]",
            r#"{"supervisor":1}"#,
        ] {
            assert!(!is_status_json(foreign), "{foreign}");
        }
    }

    #[test]
    fn what_an_older_server_lacks_and_what_a_newer_one_adds_hinders_no_reader() {
        let text = r#"{"supervisor":{"pid":7,"room":1},"generations":[{"number":2},{"number":3,"state":"melting",
            "workers":[{"pid":9,"slot":0}]}],"verdicts":[{"request":1,"generation":2,"result":"postponed"}],"later":{}}"#;
        let view = View::parse(text).unwrap();
        assert_eq!(view.supervisor.pid, 7);
        assert_eq!(view.generations[1].state, State::Unknown);
        assert_eq!(view.generations[1].workers[0].pid, 9);
        assert_eq!(view.verdicts[0].result, Outcome::Unknown);
        assert!(!view.stopping);
        for lacks in [
            "",
            "{}",
            r#"{"supervisor":{"pid":1}}"#,
            r#"{"supervisor":{},"generations":[]}"#,
            r#"[{"pid":1},{},{},[],{},false,[],[],{},[]]"#,
        ] {
            assert_eq!(View::parse(lacks), None, "{lacks}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let view = View {
            supervisor: Supervisor {
                pid: 1,
                ..Supervisor::default()
            },
            generations: [Generation {
                state: State::Retiring,
                ..Generation::default()
            }]
            .into_iter()
            .collect(),
            verdicts: [Verdict {
                status: Some(256),
                exit_code: Some(Some(1)),
                stderr: ["the reason".to_owned()].into_iter().collect(),
                ..Verdict::default()
            }]
            .into_iter()
            .collect(),
            ..View::default()
        };
        assert_eq!(View::parse(&view.text()), Some(view));
    }

    #[test]
    fn the_parts_of_a_wait_status_are_written_only_where_there_is_one() {
        let text = |verdict: Verdict| {
            let text = serde_json::to_string(&verdict).unwrap();
            text.split_once("\"at\":0.0,").unwrap().1.to_owned()
        };
        let without = Verdict::default();
        assert_eq!(text(without), r#""cause":null,"hint":null,"stderr":[]}"#);
        let killed = Verdict {
            status: Some(9),
            exit_code: Some(None),
            signal: Some(Some(9)),
            ..Verdict::default()
        };
        assert_eq!(
            text(killed),
            r#""status":9,"exit_code":null,"signal":9,"cause":null,"hint":null,"stderr":[]}"#
        );
    }
}
