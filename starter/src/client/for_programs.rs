//! The status of a server, for programs to read: JSON and OpenMetrics.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::Serialize;

use super::for_people::state as state_name;
use super::observed::{Observed, Process, Queue, workers};
use super::overview::{State, headline};
use crate::status::view::{self, Generation, Listener, Supervisor, Verdict, View, Worker};
use crate::words::text::{printable, printable_json};

/// The latest time that is reported, in seconds since 1970: those in the file may be anything.
const LATEST: f64 = 1e11;

/// The states of a generation, each with its name.
const STATES: [view::State; 7] = [
    view::State::Starting,
    view::State::Current,
    view::State::Canary,
    view::State::Partial,
    view::State::Retiring,
    view::State::Sweeping,
    view::State::Old,
];

/// Everything that is shown, as JSON. Times are seconds since 1970; what is unknown is null.
#[derive(Serialize)]
struct Json<'a> {
    state: &'static str,
    headline: String,
    at: f64,
    supervisor: &'a Supervisor,
    stopping: bool,
    unhealthy: &'a Option<String>,
    crash_loop: u64,
    next_start_at: Option<f64>,
    switch: &'a Option<view::Switch>,
    listeners: Vec<JsonListener<'a>>,
    generations: Vec<JsonGeneration<'a>>,
    workers: Vec<JsonWorker<'a>>,
    fd_store: &'a Option<view::FdStore>,
    counters: &'a view::Counters,
    log: &'a view::Log,
    last_verdict: Option<&'a Verdict>,
}

#[derive(Serialize)]
struct JsonListener<'a> {
    name: &'a str,
    kind: &'a str,
    address: &'a str,
    /// Connections; for UDP, bytes.
    queue: Option<u32>,
    backlog: Option<u32>,
    sockets: Option<u64>,
    inherited: bool,
    trouble: &'a Option<String>,
}

#[derive(Serialize)]
struct JsonGeneration<'a> {
    number: u64,
    label: &'a Option<String>,
    state: &'static str,
    lane: Option<u64>,
    share: Option<u64>,
    waiting_for: &'a Option<String>,
    started_at: Option<f64>,
    fails_at: Option<f64>,
}

#[derive(Serialize)]
struct JsonWorker<'a> {
    generation: u64,
    state: &'static str,
    pid: i64,
    started_at: f64,
    /// In bytes.
    rss: Option<u64>,
    cpu_seconds: Option<f64>,
    connections: Option<usize>,
    text: &'a Option<String>,
}

/// One object, followed by a newline.
pub fn json(view: &View, now: &Observed) -> String {
    let json = Json {
        state: State::of(view).name(),
        headline: headline(view, now.at),
        at: (now.at * 1000.0).round() / 1000.0,
        supervisor: &view.supervisor,
        stopping: view.stopping,
        unhealthy: &view.unhealthy,
        crash_loop: view.crash_loop,
        next_start_at: view.next_start_at,
        switch: &view.switch,
        listeners: queues(view, now).map(json_of_listener).collect(),
        generations: view.generations.iter().map(json_of_generation).collect(),
        workers: workers(view)
            .map(|(generation, worker)| json_of_worker(generation, worker, now))
            .collect(),
        fd_store: &view.fd_store,
        counters: &view.counters,
        log: &view.log,
        last_verdict: view.verdicts.last(),
    };
    // It always converts: its keys are strings, and its numbers finite.
    let mut text = serde_json::to_string_pretty(&json).unwrap_or_default();
    text.push('\n');
    printable_json(&text)
}

/// Each listener with its queue, as far as it is known.
fn queues<'a>(view: &'a View, now: &'a Observed) -> impl Iterator<Item = (&'a Listener, Queue)> {
    let unknown = std::iter::repeat(Queue::default());
    let queues = now.listeners.iter().copied().chain(unknown);
    view.listeners.iter().zip(queues)
}

fn json_of_listener((listener, queue): (&Listener, Queue)) -> JsonListener<'_> {
    JsonListener {
        name: &listener.name,
        kind: &listener.kind,
        address: &listener.address,
        queue: queue.length,
        backlog: queue.backlog.or(listener.backlog),
        sockets: listener.sockets,
        inherited: listener.inherited,
        trouble: &listener.trouble,
    }
}

fn json_of_generation(generation: &Generation) -> JsonGeneration<'_> {
    JsonGeneration {
        number: generation.number,
        label: &generation.label,
        state: state_name(generation.state),
        lane: generation.lane,
        share: generation.share,
        waiting_for: &generation.waiting_for,
        started_at: generation.started_at,
        fails_at: generation.fails_at,
    }
}

fn json_of_worker<'a>(
    generation: &Generation,
    worker: &'a Worker,
    now: &Observed,
) -> JsonWorker<'a> {
    let process = now.workers.get(&worker.pid).copied().unwrap_or_default();
    JsonWorker {
        generation: generation.number,
        state: state_name(generation.state),
        pid: worker.pid,
        started_at: worker.started_at,
        rss: process.resident,
        cpu_seconds: process.cpu.map(|cpu| cpu.as_secs_f64()),
        connections: process.connections,
        text: &worker.text,
    }
}

/// The text of OpenMetrics 1.0, as scrapers read it.
pub fn openmetrics(view: &View, now: &Observed) -> String {
    let mut metrics = Metrics(String::new());
    metrics.server(view);
    metrics.workers(view, now);
    metrics.counters(view);
    metrics.listeners(view, now);
    metrics.0.push_str("# EOF\n");
    metrics.0
}

struct Metrics(String);

/// A label and its value.
type Label<'a> = (&'a str, &'a str);

impl Metrics {
    /// Begins a family; its name is that of its samples, without the prefix that all have and the suffix of counters.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let head = format!("# TYPE start_server_{name} {kind}\n");
        self.0.push_str(&head);
        let unit = name.rsplit('_').next();
        if let Some(unit @ ("seconds" | "bytes")) = unit {
            self.0
                .push_str(&format!("# UNIT start_server_{name} {unit}\n"));
        }
        self.0
            .push_str(&format!("# HELP start_server_{name} {help}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        self.0
            .push_str(&format!("start_server_{name}{labels} {value}\n"));
    }

    /// A family of one sample.
    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// The same for what only grows.
    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(&format!("{name}_total"), &[], value);
    }

    fn server(&mut self, view: &View) {
        self.family("build", "info", "The running start_server.");
        self.sample("build_info", &[("version", &view.supervisor.version)], 1);
        let state = State::of(view);
        self.family("state", "stateset", "What the server is doing.");
        for one in State::ALL {
            let label = [("start_server_state", one.name())];
            self.sample("state", &label, u8::from(one == state));
        }
        self.gauge(
            "start_time_seconds",
            "When it was started, since 1970.",
            time(view.supervisor.started_at),
        );
        let current = view.generations.iter().rev();
        let mut current = current.filter(|one| one.state == view::State::Current);
        if let Some(current) = current.next() {
            let help = "The number of the generation that serves.";
            self.gauge("current_generation", help, current.number);
        }
    }

    fn workers(&mut self, view: &View, now: &Observed) {
        let shared = || {
            view.generations
                .iter()
                .filter_map(|one| Some((one.state, one.share?)))
        };
        if shared().next().is_some() {
            self.family(
                "share_percent",
                "gauge",
                "Percentage of new connections that go to it.",
            );
            for (state, share) in shared() {
                self.sample("share_percent", &[("state", state_name(state))], share);
            }
        }
        self.family("generations", "gauge", "Generations that have workers.");
        for state in STATES {
            let generations = view.generations.iter();
            let count = generations.filter(|one| one.state == state).count();
            self.sample("generations", &[("state", state_name(state))], count);
        }
        let of_state = |state| workers(view).filter(move |(one, _)| one.state == state);
        self.family("workers", "gauge", "Workers.");
        for state in STATES {
            let label = [("state", state_name(state))];
            self.sample("workers", &label, of_state(state).count());
        }
        let processes = |state| -> Option<Vec<Process>> {
            let all = of_state(state).map(|(_, worker)| now.workers.get(&worker.pid).copied());
            all.collect()
        };
        let help = "Connections to the listeners that workers have accepted.";
        self.family("connections", "gauge", help);
        for state in STATES {
            let all = processes(state).unwrap_or_default();
            let sum: Option<usize> = all.into_iter().map(|one| one.connections).sum();
            if let Some(sum) = sum.filter(|_| processes(state).is_some()) {
                self.sample("connections", &[("state", state_name(state))], sum);
            }
        }
        let help = "Resident memory of the workers.";
        self.family("resident_memory_bytes", "gauge", help);
        for state in STATES {
            let all = processes(state).unwrap_or_default();
            let sum: u64 = all.iter().filter_map(|one| one.resident).sum();
            self.sample(
                "resident_memory_bytes",
                &[("state", state_name(state))],
                sum,
            );
        }
    }

    fn counters(&mut self, view: &View) {
        let counters = &view.counters;
        let help = "Restarts that were asked for.";
        self.counter("restart_requests", help, counters.restarts);
        let help = "Starts of generations and of single workers, by their outcome.";
        self.family("starts", "counter", help);
        for (outcome, count) in [
            ("committed", counters.commits),
            ("failed", counters.failed_starts),
        ] {
            self.sample("starts_total", &[("outcome", outcome)], count);
        }
        if let Some(at) = counters.committed_at {
            let help = "When a generation last committed, since 1970.";
            self.gauge("last_success_timestamp_seconds", help, time(at));
        }
        let help = "Workers that died while they served.";
        self.counter("crashes", help, counters.crashes);
        let help =
            "How many generations in a row died soon after they had committed, if more than one.";
        self.gauge("crash_loop", help, view.crash_loop);
        let help = "Lines that were lost on the way to the log or to syslog.";
        self.counter("log_lines_dropped", help, view.log.lost);
    }

    fn listeners(&mut self, view: &View, now: &Observed) {
        let mut seen = BTreeSet::new();
        let all: Vec<(&Listener, Queue)> = queues(view, now)
            .filter(|(one, _)| seen.insert((&one.kind, &one.name)))
            .collect();
        let mut family =
            |name: &str, help: &str, value: &dyn Fn(&Listener, Queue) -> Option<u32>| {
                self.family(name, "gauge", help);
                for (listener, queue) in &all {
                    if let Some(value) = value(listener, *queue) {
                        let labels = [("listener", &*listener.name), ("kind", &listener.kind)];
                        self.sample(name, &labels, value);
                    }
                }
            };
        let is_udp = |listener: &Listener| listener.kind == "udp";
        family(
            "listener_queue",
            "Connections that wait to be accepted.",
            &|listener, queue| queue.length.filter(|_| !is_udp(listener)),
        );
        family(
            "listener_backlog",
            "How many connections may wait to be accepted.",
            &|listener, queue| queue.backlog.or(listener.backlog),
        );
        family(
            "listener_unread_bytes",
            "Memory taken by datagrams that nobody has read.",
            &|listener, queue| queue.length.filter(|_| is_udp(listener)),
        );
        family(
            "listener_trouble",
            "1 if clients do not find the listener as it was created, else 0.",
            &|listener, _| Some(listener.trouble.is_some().into()),
        );
    }
}

fn time(seconds: f64) -> f64 {
    seconds.clamp(0.0, LATEST)
}

/// The value of a label, whatever it contains.
fn escaped(value: &str) -> String {
    printable(value).replace('\\', r"\\").replace('"', "\\\"")
}
