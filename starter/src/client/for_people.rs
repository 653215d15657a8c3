//! The status of a server, for people to read.

use super::observed::{Observed, Process, Queue, workers};
use super::overview::{State, crash_loop, headline, last_start};
use super::sheet::{Colour, Sheet, Side, cut, cut_front};
use crate::status::view::{self, By, Canary, Generation, Listener, Outcome, View, Worker};
use crate::words::number::{memory, time};
use crate::words::text::shortened;

/// How many rows a table may have.
const MOST_ROWS: usize = 1000;

/// How many names of descriptors are shown.
const MOST_NAMES: usize = 20;

/// How many of a failed worker's last lines are shown.
const LAST_LINES: usize = 3;

/// How wide a cell may be, in columns, if whoever writes the status can make it wide.
const WIDEST_CELL: usize = 10;

/// What is not known.
const UNKNOWN: &str = "-";

/// What is shown.
pub struct Shown<'a> {
    pub view: &'a View,
    pub now: &'a Observed,
    /// What was observed before: CPU time is counted from then, or if there is none, from the start of the worker.
    pub before: Option<&'a Observed>,
    /// What to do about it, if a signal has suspended the server.
    pub is_stopped: Option<String>,
}

impl Shown<'_> {
    /// The whole status.
    pub fn sheet(&self) -> Sheet {
        let mut sheet = Sheet::default();
        let state = State::of(self.view);
        let colour = match state {
            State::Serving => Colour::Green,
            State::Restarting | State::Starting | State::Stopping => Colour::Yellow,
            State::Unhealthy | State::NothingServes => Colour::Red,
        };
        sheet.sentence(Some(colour), &headline(self.view, self.now.at));
        let supervisor = &self.view.supervisor;
        sheet.line(
            None,
            &format!(
                "pid {}, up {}, version {}",
                supervisor.pid,
                time(self.now.at - supervisor.started_at),
                shortened(&supervisor.version)
            ),
        );
        if let Some(remedy) = &self.is_stopped {
            sheet.sentence(Some(Colour::Red), remedy);
        }
        if let Some(sentence) = crash_loop(self.view) {
            sheet.sentence(Some(Colour::Red), &sentence);
        }
        self.last_start(&mut sheet);
        self.listeners(&mut sheet);
        self.fd_store(&mut sheet);
        self.workers(&mut sheet);
        self.labels(&mut sheet);
        sheet
    }

    /// What workers have left for the ones after them.
    fn fd_store(&self, sheet: &mut Sheet) {
        let Some(store) = self.view.fd_store.as_ref().filter(|one| one.count > 0) else {
            return;
        };
        let shown = store.names.iter().take(MOST_NAMES).map(|kept| {
            let name = shortened(&kept.name);
            match kept.count {
                0 | 1 => name,
                count => format!("{count} {name}"),
            }
        });
        let mut names: Vec<String> = shown.collect();
        if store.names.len() > MOST_NAMES {
            names.push("...".to_owned());
        }
        sheet.line(None, "");
        sheet.sentence(
            None,
            &format!(
                "keeps {} of at most {} descriptors for the next server: {}",
                store.count,
                store.max,
                names.join(", ")
            ),
        );
    }

    fn last_start(&self, sheet: &mut Sheet) {
        let Some(sentence) = last_start(self.view, self.now.at) else {
            return;
        };
        sheet.sentence(None, &sentence);
        let Some(last) = self.view.verdicts.last() else {
            return;
        };
        if matches!(last.result, Outcome::Committed | Outcome::Canary) {
            return;
        }
        let first = last.stderr.len().saturating_sub(LAST_LINES);
        for line in last.stderr.get(first..).unwrap_or_default() {
            sheet.line(None, &format!("  stderr: {}", shortened(line)));
        }
        if let Some(hint) = &last.hint {
            sheet.sentence(None, &format!("  hint: {}", shortened(hint)));
        }
    }

    fn listeners(&self, sheet: &mut Sheet) {
        let listeners = &self.view.listeners;
        if listeners.is_empty() {
            return;
        }
        sheet.line(None, "");
        let queues = self.now.listeners.iter();
        let queues = queues.copied().chain(std::iter::repeat(Queue::default()));
        let rows: Vec<_> = listeners.iter().zip(queues).take(MOST_ROWS).collect();
        let has_lanes = self.view.switch.is_some();
        let rows = rows.into_iter().map(|row| row_of_listener(row, has_lanes));
        let rows: Vec<_> = rows.collect();
        let headings = [
            ("KIND", Side::Left),
            ("QUEUE", Side::Right),
            ("BACKLOG", Side::Right),
            ("LISTENER", Side::Left),
        ];
        sheet.table(headings, &rows);
        tell_left_out(sheet, listeners.len());
        if let Some(switch) = self.view.switch {
            let (lane, of) = (switch.selected, switch.lanes);
            let text = match switch.canary {
                None => format!("new connections go to lane {lane} of {of}"),
                Some(canary) => self.shares(lane, of, canary),
            };
            sheet.sentence(None, &text);
        }
        let troubles = listeners.iter().filter_map(|one| one.trouble.as_ref());
        for trouble in troubles.take(MOST_ROWS) {
            sheet.sentence(Some(Colour::Red), &shortened(trouble));
        }
    }

    /// Which lane gets how much, while a canary serves.
    fn shares(&self, lane: u64, of: u64, canary: Canary) -> String {
        let Canary { percent, by, .. } = canary;
        let rest = 100_u64.saturating_sub(percent);
        let what = match by {
            By::Client => "clients",
            By::Random | By::Unknown => "new connections",
        };
        let end = canary.promoted_at.map(|at| {
            let left = time(at - self.now.at);
            format!(
                "; all go to lane {} in {left}, unless the canary fails",
                canary.lane
            )
        });
        format!(
            "{what} go to lane {lane} ({rest}%) and lane {} ({percent}%) of {of}{}",
            canary.lane,
            end.unwrap_or_default()
        )
    }

    fn workers(&self, sheet: &mut Sheet) {
        let count = workers(self.view).count();
        if count == 0 {
            return;
        }
        sheet.line(None, "");
        let rows: Vec<_> = workers(self.view)
            .take(MOST_ROWS)
            .map(|(generation, worker)| self.row_of_worker(generation, worker))
            .collect();
        let say_something = workers(self.view).any(|(_, worker)| worker.text.is_some());
        let headings = [
            ("GEN", Side::Right),
            ("STATE", Side::Left),
            (
                if self.view.switch.is_some() {
                    "LANE"
                } else {
                    ""
                },
                Side::Right,
            ),
            (if self.has_canary() { "SHARE" } else { "" }, Side::Right),
            (if self.view.workers > 1 { "NO" } else { "" }, Side::Right),
            ("PID", Side::Right),
            ("AGE", Side::Right),
            ("RSS", Side::Right),
            ("CPU", Side::Right),
            ("CONNS", Side::Right),
            (if say_something { "STATUS" } else { "" }, Side::Left),
        ];
        sheet.table(headings, &rows);
        tell_left_out(sheet, count);
    }

    /// What each living generation is called.
    fn labels(&self, sheet: &mut Sheet) {
        let generations = self.view.generations.iter();
        let labelled = generations.filter_map(|one| Some((one.number, one.label.as_ref()?)));
        for (place, (number, label)) in labelled.take(MOST_ROWS).enumerate() {
            if place == 0 {
                sheet.line(None, "");
            }
            sheet.sentence(None, &format!("generation {number}: {}", shortened(label)));
        }
    }

    fn row_of_worker(&self, generation: &Generation, worker: &Worker) -> [String; 11] {
        let process = self.now.workers.get(&worker.pid);
        let process = process.copied().unwrap_or_default();
        let age = self.now.at - worker.started_at;
        let cell = |text: String| cut(&text, WIDEST_CELL);
        [
            cell(generation.number.to_string()),
            state(generation.state).to_owned(),
            generation
                .lane
                .filter(|_| self.view.switch.is_some())
                .map_or(String::new(), |lane| cell(lane.to_string())),
            match generation.share.filter(|_| self.has_canary()) {
                Some(percent) => cell(format!("{percent}%")),
                None => String::new(),
            },
            match self.view.workers > 1 {
                true => cell(worker.slot.to_string()),
                false => String::new(),
            },
            cell(worker.pid.to_string()),
            time(age),
            process.resident.map_or(UNKNOWN.to_owned(), memory),
            self.share_of_cpu(worker.pid, process, age),
            known(process.connections),
            worker.text.as_ref().map(shortened).unwrap_or_default(),
        ]
    }

    fn has_canary(&self) -> bool {
        self.view
            .switch
            .is_some_and(|switch| switch.canary.is_some())
    }

    /// In percent of one processor.
    fn share_of_cpu(&self, pid: i64, process: Process, age: f64) -> String {
        let Some(cpu) = process.cpu else {
            return UNKNOWN.to_owned();
        };
        let before = self.before.and_then(|before| {
            let cpu = before.workers.get(&pid)?.cpu?;
            Some((cpu, self.now.at - before.at))
        });
        let (earlier, passed) = before.unwrap_or((std::time::Duration::ZERO, age));
        let percent = cpu.saturating_sub(earlier).as_secs_f64() / passed.max(0.01) * 100.0;
        format!("{:.0}%", percent.min(99_999.0))
    }
}

fn row_of_listener((listener, queue): (&Listener, Queue), has_lanes: bool) -> [String; 4] {
    /// What is left of a line for an address.
    const WIDEST_ADDRESS: usize = 45;
    let kind = match listener.kind.as_str() {
        kind @ ("tcp" | "udp" | "unix") => kind,
        // What only a launcher can pass on.
        kind @ ("fifo" | "seqpacket" | "datagram" | "netlink" | "vsock" | "other") => kind,
        _ => UNKNOWN,
    };
    [
        kind.to_owned(),
        match (kind, queue.length) {
            ("udp", Some(bytes)) => memory(bytes.into()),
            (_, length) => known(length),
        },
        known(queue.backlog.or(listener.backlog)),
        // The end of a path tells more than its beginning.
        match (
            cut_front(&shortened(&listener.address), WIDEST_ADDRESS),
            listener.inherited,
        ) {
            (address, false) if has_lanes && listener.sockets.is_none() => {
                format!("{address} (shared)")
            }
            (address, false) => address,
            (address, true) => format!("{address} (inherited)"),
        },
    ]
}

fn known<T: ToString>(value: Option<T>) -> String {
    value.map_or(UNKNOWN.to_owned(), |value| value.to_string())
}

/// The state of a generation as `FILE.json` has it.
pub fn state(state: view::State) -> &'static str {
    match state {
        view::State::Starting => "starting",
        view::State::Current => "current",
        view::State::Canary => "canary",
        view::State::Partial => "partial",
        view::State::Retiring => "retiring",
        view::State::Sweeping => "sweeping",
        view::State::Old => "old",
        view::State::Unknown => "unknown",
    }
}

fn tell_left_out(sheet: &mut Sheet, count: usize) {
    if count > MOST_ROWS {
        sheet.line(None, &format!("... and {} more", count - MOST_ROWS));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::status::view::{Supervisor, Verdict};

    fn worker(pid: i64, started_at: f64, text: &str) -> Worker {
        Worker {
            pid,
            slot: 0,
            started_at,
            text: Some(text.to_owned()).filter(|text| !text.is_empty()),
        }
    }

    fn generation(number: u64, state: view::State, worker: Worker) -> Generation {
        Generation {
            number,
            state,
            workers: [worker].into_iter().collect(),
            ..Generation::default()
        }
    }

    fn listener(kind: &str, address: &str, backlog: Option<u32>) -> Listener {
        Listener {
            kind: kind.to_owned(),
            address: address.to_owned(),
            backlog,
            ..Listener::default()
        }
    }

    fn view() -> View {
        View {
            supervisor: Supervisor {
                pid: 4711,
                version: "0.1.0".to_owned(),
                started_at: 1000.0,
                ..Supervisor::default()
            },
            listeners: [
                listener("tcp", "127.0.0.1:80", Some(4096)),
                listener("udp", "127.0.0.1:53", None),
            ]
            .into_iter()
            .collect(),
            generations: [
                generation(4, view::State::Old, worker(41, 1000.0, "draining")),
                generation(5, view::State::Current, worker(42, 9000.0, "")),
            ]
            .into_iter()
            .collect(),
            verdicts: [Verdict {
                generation: 5,
                result: Outcome::Committed,
                at: 9001.0,
                ..Verdict::default()
            }]
            .into_iter()
            .collect(),
            ..View::default()
        }
    }

    fn observed() -> Observed {
        let process = Process {
            cpu: Some(Duration::from_secs(450)),
            resident: Some(3_400_000),
            connections: Some(1),
        };
        Observed {
            at: 10_000.0,
            listeners: vec![
                Queue {
                    length: Some(3),
                    backlog: Some(128),
                },
                Queue {
                    length: Some(768),
                    backlog: None,
                },
            ],
            workers: [(41, process)].into(),
        }
    }

    fn text(view: &View, before: Option<&Observed>) -> String {
        let shown = Shown {
            view,
            now: &observed(),
            before,
            is_stopped: None,
        };
        shown.sheet().text(false)
    }

    #[test]
    fn everything_is_on_one_page() {
        let expected = "\
serving
pid 4711, up 2 h 30 min, version 0.1.0
last start: generation 5 committed 16 min ago

KIND  QUEUE  BACKLOG  LISTENER
tcp       3      128  127.0.0.1:80
udp   768 B        -  127.0.0.1:53

GEN  STATE    PID         AGE      RSS  CPU  CONNS  STATUS
  4  old       41  2 h 30 min  3.2 MiB   5%      1  draining
  5  current   42      16 min        -    -      -
";
        assert_eq!(text(&view(), None), expected);
    }

    #[test]
    fn the_share_of_the_processor_is_that_since_the_last_look() {
        let mut before = observed();
        before.at = 9990.0;
        before.workers.get_mut(&41).unwrap().cpu = Some(Duration::from_secs(445));
        assert!(text(&view(), Some(&before)).contains("  50%  "));
    }

    #[test]
    fn a_failure_shows_its_last_lines_and_its_hint() {
        let mut view = view();
        view.verdicts = [Verdict {
            generation: 6,
            result: Outcome::Failed,
            at: 9990.0,
            status: Some(256),
            hint: Some("mend it".to_owned()),
            stderr: ["1", "2", "3", "4"]
                .map(str::to_owned)
                .into_iter()
                .collect(),
            ..Verdict::default()
        }]
        .into_iter()
        .collect();
        let lines = "exit status:256 (exit code 1)\n  stderr: 2\n  stderr: 3\n  stderr: 4\n  hint: mend it\n";
        assert!(text(&view, None).contains(lines), "{}", text(&view, None));
    }

    #[test]
    fn a_crash_loop_is_told_with_the_next_start() {
        let mut view = view();
        view.generations = [].into_iter().collect();
        view.counters.commits = 4;
        view.crash_loop = 4;
        view.next_start_at = Some(10_002.4);
        let beginning = "\
nothing serves: next start in 2.4 s
pid 4711, up 2 h 30 min, version 0.1.0
crash loop: workers have died 4 times in a row soon after they began to serve
last start: ";
        let text = text(&view, None);
        assert!(text.starts_with(beginning), "{text}");
    }

    #[test]
    fn nothing_that_a_server_writes_drives_the_terminal_or_floods_it() {
        let harm = format!("\x1b[2J\u{9b}2J\n\u{202e}{}", "x".repeat(100_000));
        let mut view = view();
        view.supervisor.version = harm.clone();
        view.supervisor.started_at = -1e308;
        view.unhealthy = Some(harm.clone());
        view.crash_loop = u64::MAX;
        view.next_start_at = Some(1e308);
        let bad = Listener {
            trouble: Some(harm.clone()),
            ..listener(&harm, &harm, Some(u32::MAX))
        };
        view.listeners = std::iter::repeat_n(bad, 2000).collect();
        let mut bad = generation(
            u64::MAX,
            view::State::Unknown,
            worker(i64::MIN, 1e308, &harm),
        );
        bad.waiting_for = Some(harm.clone());
        view.generations = std::iter::repeat_n(bad, 2000).collect();
        view.verdicts = [Verdict {
            generation: u64::MAX,
            cause: Some(harm.clone()),
            hint: Some(harm.clone()),
            stderr: [harm].into_iter().collect(),
            ..Verdict::default()
        }]
        .into_iter()
        .collect();
        let text = text(&view, None);
        assert!(text.len() < 1_000_000, "{} bytes", text.len());
        for line in text.lines() {
            assert!(line.chars().all(|one| (' '..='~').contains(&one)), "{line}");
            assert!(line.len() <= 80, "{line}");
        }
    }
}
