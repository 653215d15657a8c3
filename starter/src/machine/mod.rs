//! All policy of starting, replacing and stopping: an event and the time go in, actions come out.
//!
//! It knows no clock, no process and no file, so that a test can walk every short history.
//!
//! A generation goes through these states:
//!
//! | state | meaning | leaves it when |
//! |---|---|---|
//! | starting | spawned, not yet proved | alive after the interval: commits; a worker dies: failed, becomes old |
//! | current | committed, the newest that serves | a newer one commits: retiring; the last worker dies: gone |
//! | retiring | a newer one serves, not yet signalled | `--kill-old-delay` is over: old; the newer one dies: current again |
//! | old | told to stop | its last worker is gone |

#![deny(
    clippy::wildcard_enum_match_arm,
    reason = "a new state or event must be thought of in every decision"
)]

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::words::notice::{ExecFailure, Notice};

/// How long a worker must have lived after its exec to count as started, however short the interval.
const PROOF_OF_LIFE: Duration = Duration::from_millis(50);

/// The longest wait between two failed starts, unless the interval itself is longer.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// How many decisions and workers that are gone are remembered for the status file.
pub const REMEMBERED: usize = 10;

/// What the command line says about restarts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The number of workers in a generation, at least 1.
    pub workers: usize,
    pub interval: Duration,
    pub signal_on_hup: Signal,
    pub signal_on_term: Signal,
    pub stop_timeout: Option<Duration>,
    pub start_limit: Option<NonZeroU32>,
    /// The limit that holds until the first generation has committed.
    pub first_start_limit: Option<NonZeroU32>,
    /// How it begins; [`Generations::turn`] changes it later.
    pub knobs: Knobs,
}

/// What may change while the superdaemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knobs {
    pub kill_old_delay: Duration,
    /// Restart by itself so long after the last start; `None` does not.
    pub auto_restart: Option<Duration>,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The process of a worker that was asked for exists.
    Spawned { generation: u32, pid: Pid },
    /// There is no process for a worker that was asked for.
    SpawnFailed { generation: u32, cause: ExecFailure },
    /// The worker runs the server program.
    Executed(Pid),
    /// The worker could not run the server program; its exit follows.
    NotExecuted { pid: Pid, cause: ExecFailure },
    /// A child of ours is gone, with its wait status as wait(2) gives it.
    Exited { pid: Pid, status: i32 },
    /// The deadline that was asked for has passed.
    DeadlinePassed,
    /// HUP.
    Restart,
    /// TERM, INT or QUIT.
    Stop(Signal),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Spawn {
        generation: u32,
    },
    Signal {
        pid: Pid,
        signal: Signal,
    },
    /// A generation has committed.
    Serving,
    /// The view has changed.
    SaveStatus,
    Say(Notice),
    /// No worker is left: end.
    Finish(Outcome),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it was told to.
    Stopped,
    /// There was nothing left that could serve.
    GivenUp,
}

/// The state of a generation, as the head of this file explains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Starting { settled_at: Instant, restart: bool },
    Current,
    Retiring { signal_at: Instant },
    Old,
}

/// One process of the server program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    pub pid: Pid,
    pub spawned_at: Instant,
    executed: bool,
    failure: Option<ExecFailure>,
}

/// The workers that were started together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    pub number: u32,
    pub state: State,
    pub workers: Vec<Worker>,
    /// Workers that were asked for and do not exist yet.
    expected: usize,
    /// When a worker of it was asked for last.
    spawned_at: Instant,
    /// How many restarts had been asked for when it was started.
    request: u32,
}

/// A worker that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departed {
    pub generation: u32,
    pub pid: Pid,
    /// As wait(2) gives it.
    pub status: i32,
    pub at: Instant,
}

/// Whether a start has led to a generation that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Committed,
    Failed {
        /// The wait status of the worker that failed, if there was a process.
        status: Option<i32>,
        /// Why it did not run the program, if that is so: then the status says nothing.
        cause: Option<ExecFailure>,
    },
}

/// What became of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// It answers every restart that had been asked for up to this one, counted from 1.
    pub request: u32,
    pub generation: u32,
    pub verdict: Verdict,
    pub at: Instant,
}

/// How often something has happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Restarts that were asked for.
    pub restarts: u32,
    /// Starts that failed, of any generation.
    pub failed_starts: u32,
    /// Workers that died while they served.
    pub crashes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Stopping {
        kill_at: Option<Instant>,
        outcome: Outcome,
    },
    Finished,
}

/// A start that is due later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Planned {
    at: Instant,
    restart: bool,
}

/// A start that did not succeed.
#[derive(Debug)]
struct Failed {
    number: u32,
    request: u32,
    restart: bool,
    /// The wait status of the worker, if there was a process.
    status: Option<i32>,
    cause: Option<ExecFailure>,
    spawned_at: Instant,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Generations {
    settings: Settings,
    phase: Phase,
    generations: Vec<Generation>,
    /// The number of the last generation. Numbers are never reused: a worker that died while starting leaves a gap,
    /// as in Server::Starter.
    last: u32,
    last_spawned_at: Instant,
    /// A restart was asked for while one was under way.
    restart_wanted: bool,
    planned: Option<Planned>,
    /// Failed starts in a row.
    failures: u32,
    pub counters: Counters,
    /// The last decisions, oldest first.
    pub decisions: VecDeque<Decision>,
    /// The last workers that are gone, oldest first.
    pub departed: VecDeque<Departed>,
    /// Whether any generation has ever committed.
    has_served: bool,
    /// Since when the next automatic restart is waited for.
    last_start: Instant,
    actions: Vec<Action>,
}

impl Generations {
    /// The machine, and the actions that start the first generation.
    pub fn start(settings: Settings, now: Instant) -> (Generations, Vec<Action>) {
        let mut machine = Generations {
            settings,
            phase: Phase::Serving,
            generations: Vec::new(),
            last: 0,
            last_spawned_at: now,
            restart_wanted: false,
            planned: None,
            failures: 0,
            counters: Counters::default(),
            decisions: VecDeque::new(),
            departed: VecDeque::new(),
            has_served: false,
            last_start: now,
            actions: Vec::new(),
        };
        machine.start_generation(false, now);
        let actions = std::mem::take(&mut machine.actions);
        (machine, actions)
    }

    /// Changes what may change. Nothing is started by that: only the deadline may be another one.
    pub fn turn(&mut self, knobs: Knobs) {
        self.settings.knobs = knobs;
    }

    /// What is to be done about an event. Events of processes that are no workers change nothing.
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Spawned { generation, pid } => self.spawned(generation, pid, now),
            Event::SpawnFailed { generation, cause } => self.spawn_failed(generation, cause, now),
            Event::Executed(pid) => self.executed(pid, now),
            Event::NotExecuted { pid, cause } => self.not_executed(pid, cause),
            Event::Exited { pid, status } => self.exited(pid, status, now),
            Event::DeadlinePassed => self.deadline_passed(now),
            Event::Restart => self.restart(now),
            Event::Stop(signal) => self.stop(signal, now),
        }
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::DeadlinePassed`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let of_generations =
            self.generations
                .iter()
                .filter_map(|generation| match generation.state {
                    State::Starting { settled_at, .. } if self.is_running(generation) => {
                        Some(settled_at)
                    }
                    State::Current if self.lacks_workers(generation) => {
                        Some(self.next_spawn_of(generation))
                    }
                    State::Retiring { signal_at } => Some(signal_at),
                    State::Starting { .. } | State::Current | State::Old => None,
                });
        match self.phase {
            Phase::Serving => {
                let planned = self.planned.map(|planned| planned.at);
                let auto = self.next_auto_restart().map(|(at, _)| at);
                of_generations.chain(planned).chain(auto).min()
            }
            Phase::Stopping { kill_at, .. } => kill_at,
            Phase::Finished => None,
        }
    }

    /// Whether it was told to stop, or has given up.
    pub fn is_stopping(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// Every generation that has a worker, oldest first.
    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        self.generations.iter()
    }

    // Events.

    fn spawned(&mut self, number: u32, pid: Pid, now: Instant) {
        self.say(Notice::StartingNewWorker(pid));
        let worker = Worker {
            pid,
            spawned_at: now,
            executed: false,
            failure: None,
        };
        if let Some(generation) = self.generation(number) {
            generation.expected = generation.expected.saturating_sub(1);
            generation.workers.push(worker);
            match (generation.state, self.phase) {
                // Its start failed or was stopped before this worker of it existed.
                (State::Old, _) | (_, Phase::Stopping { .. }) => {
                    self.signal(pid, self.settings.signal_on_term);
                }
                _ => {}
            }
        }
        self.save();
    }

    fn spawn_failed(&mut self, number: u32, cause: ExecFailure, now: Instant) {
        let Some(generation) = self.generation(number) else {
            return;
        };
        generation.expected = generation.expected.saturating_sub(1);
        let state = generation.state;
        self.say(Notice::CannotStartWorker(cause.clone()));
        match (self.phase, state) {
            (Phase::Serving, State::Starting { .. }) => {
                self.start_failed(number, None, Some(cause), now);
            }
            (Phase::Serving, _) => self.forget_if_empty(number),
            (Phase::Stopping { .. } | Phase::Finished, _) => {
                self.forget_if_empty(number);
                self.finish_if_empty();
            }
        }
    }

    fn executed(&mut self, pid: Pid, now: Instant) {
        let Some(generation) = self.generation_of(pid) else {
            return;
        };
        if let State::Starting { settled_at, .. } = &mut generation.state {
            *settled_at = (*settled_at).max(now + PROOF_OF_LIFE);
        }
        if let Some(worker) = generation.worker(pid) {
            worker.executed = true;
        }
    }

    fn not_executed(&mut self, pid: Pid, cause: ExecFailure) {
        if let Some(worker) = self
            .generation_of(pid)
            .and_then(|generation| generation.worker(pid))
        {
            worker.failure = Some(cause);
        }
    }

    fn exited(&mut self, pid: Pid, status: i32, now: Instant) {
        let Some(generation) = self.generation_of(pid) else {
            return;
        };
        let (number, state) = (generation.number, generation.state);
        let Some(place) = generation
            .workers
            .iter()
            .position(|worker| worker.pid == pid)
        else {
            return;
        };
        let worker = generation.workers.remove(place);
        let alone = generation.workers.is_empty() && generation.expected == 0;
        self.remember(Departed {
            generation: number,
            pid,
            status,
            at: now,
        });
        if let Some(cause) = worker.failure.clone() {
            self.say(Notice::CannotStartWorker(cause));
        }
        match (self.phase, state) {
            (Phase::Stopping { .. } | Phase::Finished, _) => {
                self.say(Notice::WorkerDied { pid, status });
                self.forget_if_empty(number);
                self.finish_if_empty();
            }
            (Phase::Serving, State::Starting { .. }) => {
                // Nothing serves that could be kept, and the next try would find the same program.
                let hopeless = number == 1 && worker.failure.is_some();
                if !hopeless {
                    self.say(Notice::FailedToStart { pid, status });
                }
                self.start_failed(number, Some(status), worker.failure, now);
                if hopeless && self.phase == Phase::Serving {
                    self.planned = None;
                    self.stop_all(self.settings.signal_on_term, Outcome::GivenUp, now);
                }
            }
            (Phase::Serving, State::Current) => {
                if self.is_restarting() {
                    // Its successor may well have told it to stop: unicorn's does. As in Server::Starter, the worker
                    // that is being replaced is an old one already.
                    self.say(Notice::OldWorkerDied { pid, status });
                } else {
                    self.say(Notice::DiedUnexpectedly { pid, status });
                    self.counters.crashes += 1;
                }
                match alone {
                    true => self.current_died(number, status, now),
                    false => self.replace_missing(now),
                }
            }
            (Phase::Serving, State::Retiring { .. } | State::Old) => {
                self.say(Notice::OldWorkerDied { pid, status });
                self.forget_if_empty(number);
            }
        }
        self.save();
    }

    fn deadline_passed(&mut self, now: Instant) {
        match self.phase {
            Phase::Stopping {
                kill_at: Some(at),
                outcome,
            } if at <= now => {
                self.phase = Phase::Stopping {
                    kill_at: None,
                    outcome,
                };
                let left = self.all_pids();
                self.say(Notice::KillingWorkers { pids: left.clone() });
                for pid in left {
                    // A stopped process that is killed leaves nothing to wait for, but CONT first lets tools that
                    // watch it (a shell, a debugger) see it run again.
                    self.signal(pid, Signal::SIGCONT);
                    self.signal(pid, Signal::SIGKILL);
                }
            }
            Phase::Stopping { .. } | Phase::Finished => {}
            Phase::Serving => {
                self.commit_settled(now);
                self.signal_retiring(now);
                self.replace_missing(now);
                if let Some(planned) = self.planned.filter(|planned| planned.at <= now) {
                    self.start_generation(planned.restart, now);
                }
                self.restart_by_itself(now);
            }
        }
    }

    fn restart(&mut self, now: Instant) {
        if self.phase != Phase::Serving {
            return;
        }
        self.counters.restarts += 1;
        if self.is_starting() {
            // However often it is asked for during one start, one more restart follows.
            self.restart_wanted = true;
            self.save();
            return;
        }
        // Whoever asks has probably mended what failed: the next try is not put off any more.
        self.failures = 0;
        let earliest = match self.planned {
            Some(_) => self.last_spawned_at + self.settle_time(),
            None => now,
        };
        self.say(Notice::ReceivedHup);
        self.start_at(earliest, true, now);
        self.save();
    }

    fn stop(&mut self, received: Signal, now: Instant) {
        if self.phase != Phase::Serving {
            return;
        }
        // As in Server::Starter, --signal-on-term is for TERM alone.
        let sent = if received == Signal::SIGTERM {
            self.settings.signal_on_term
        } else {
            Signal::SIGTERM
        };
        self.say(Notice::Stopping {
            received,
            sent,
            pids: self.all_pids(),
        });
        self.stop_all(sent, Outcome::Stopped, now);
    }

    // Decisions.

    fn start_generation(&mut self, restart: bool, now: Instant) {
        self.planned = None;
        self.last += 1;
        self.last_spawned_at = now;
        self.generations.push(Generation {
            number: self.last,
            state: State::Starting {
                settled_at: now + self.settle_time(),
                restart,
            },
            workers: Vec::new(),
            expected: self.settings.workers,
            spawned_at: now,
            request: self.counters.restarts,
        });
        for _ in 0..self.settings.workers {
            self.actions.push(Action::Spawn {
                generation: self.last,
            });
        }
    }

    fn start_at(&mut self, at: Instant, restart: bool, now: Instant) {
        let restart = restart || self.planned.is_some_and(|planned| planned.restart);
        match at <= now {
            true => self.start_generation(restart, now),
            false => self.planned = Some(Planned { at, restart }),
        }
    }

    /// Every worker of the starting generation runs and has lived long enough: from now on it serves.
    fn commit_settled(&mut self, now: Instant) {
        let settled = self.generations.iter().position(|generation| {
            matches!(generation.state, State::Starting { settled_at, .. } if settled_at <= now)
                && self.is_running(generation)
        });
        let Some(place) = settled else { return };
        let State::Starting { restart, .. } = self.generations[place].state else {
            return;
        };
        let delay = self.settings.knobs.kill_old_delay;
        let signal_at = now + delay;
        for generation in &mut self.generations {
            if generation.state == State::Current {
                generation.state = State::Retiring { signal_at };
            }
        }
        self.generations[place].state = State::Current;
        self.has_served = true;
        self.last_start = now;
        let Generation {
            number, request, ..
        } = self.generations[place];
        self.decide(Decision {
            request,
            generation: number,
            verdict: Verdict::Committed,
            at: now,
        });
        self.actions.push(Action::Serving);
        self.save();
        if restart {
            let signal = self.settings.signal_on_hup;
            self.say(Notice::NewWorkerRunning {
                signal,
                pids: self.retiring_pids(),
            });
            if !delay.is_zero() {
                self.say(Notice::Sleeping { delay });
            }
        }
        let retiring = self
            .generations
            .iter()
            .any(|one| matches!(one.state, State::Retiring { .. }));
        if restart && !retiring {
            self.say(Notice::KillingOldWorkers);
        }
        if !retiring {
            self.failures = 0;
        }
        self.signal_retiring(now);
        if std::mem::take(&mut self.restart_wanted) {
            self.say(Notice::ReceivedHup);
            self.start_generation(true, now);
        }
    }

    /// The delay is over and the newer generation still serves: there is no way back any more.
    fn signal_retiring(&mut self, now: Instant) {
        let mut due = Vec::new();
        for generation in &mut self.generations {
            if matches!(generation.state, State::Retiring { signal_at } if signal_at <= now) {
                generation.state = State::Old;
                due.extend(generation.workers.iter().map(|worker| worker.pid));
            }
        }
        if due.is_empty() {
            return;
        }
        self.failures = 0;
        self.say(Notice::KillingOldWorkers);
        for pid in due {
            self.signal(pid, self.settings.signal_on_hup);
        }
        self.save();
    }

    /// A start that did not succeed: what is left of it is stopped, and another follows, later each time.
    fn start_failed(
        &mut self,
        number: u32,
        status: Option<i32>,
        cause: Option<ExecFailure>,
        now: Instant,
    ) {
        let Some(generation) = self.generation(number) else {
            return;
        };
        let State::Starting { restart, .. } = generation.state else {
            return;
        };
        generation.state = State::Old;
        let failed = Failed {
            number,
            request: generation.request,
            restart,
            status,
            cause,
            spawned_at: generation.spawned_at,
        };
        for pid in pids(generation) {
            self.signal(pid, self.settings.signal_on_term);
        }
        self.forget_if_empty(number);
        self.count_failure(&failed, now);
    }

    /// The last worker of the current generation died. If the one before it was not signalled yet, that one is
    /// current again: this is the rollback.
    fn current_died(&mut self, number: u32, status: i32, now: Instant) {
        let Some(Generation {
            request,
            spawned_at,
            ..
        }) = self.generation(number).cloned()
        else {
            return;
        };
        self.forget_if_empty(number);
        let starting = self.is_starting();
        let previous = self
            .generations
            .iter_mut()
            .rev()
            .find(|generation| matches!(generation.state, State::Retiring { .. }));
        match previous {
            Some(generation) => {
                generation.state = State::Current;
                let serving = pids(generation);
                self.say(Notice::RolledBack { pids: serving });
                let failed = Failed {
                    number,
                    request,
                    restart: true,
                    status: Some(status),
                    cause: None,
                    spawned_at,
                };
                match starting {
                    // What is starting is the next try.
                    true => self.decide_failed(&failed, now),
                    false => self.count_failure(&failed, now),
                }
                self.replace_missing(now);
            }
            // What is starting becomes current.
            None if starting => {}
            None => self.start_at(self.last_spawned_at + self.settle_time(), false, now),
        }
    }

    fn decide_failed(&mut self, failed: &Failed, now: Instant) {
        self.counters.failed_starts += 1;
        let verdict = Verdict::Failed {
            status: failed.status,
            cause: failed.cause.clone(),
        };
        self.decide(Decision {
            request: failed.request,
            generation: failed.number,
            verdict,
            at: now,
        });
    }

    fn count_failure(&mut self, failed: &Failed, now: Instant) {
        let Failed {
            restart,
            spawned_at,
            ..
        } = *failed;
        self.failures += 1;
        self.decide_failed(failed, now);
        let wanted_again = std::mem::take(&mut self.restart_wanted);
        let limit = match self.has_served {
            true => self.settings.start_limit,
            false => self.settings.first_start_limit,
        };
        let limit_reached = limit.is_some_and(|limit| self.failures >= limit.get());
        match (limit_reached, wanted_again) {
            (true, false) => self.give_up(now),
            (_, true) => {
                self.failures = 0;
                self.say(Notice::ReceivedHup);
                self.start_at(spawned_at + self.settle_time(), true, now);
            }
            (false, false) => self.start_at(spawned_at + self.backoff(), restart, now),
        }
        let serves = self
            .generations
            .iter()
            .any(|generation| generation.state == State::Current);
        if let Some(planned) = self.planned.filter(|_| self.has_served && !serves) {
            self.say(Notice::NothingServes {
                next: planned.at.saturating_duration_since(now),
            });
        }
        self.save();
    }

    /// No further try: what serves goes on; without it there is nothing to do any more.
    fn give_up(&mut self, now: Instant) {
        let failures = std::mem::take(&mut self.failures);
        // The next automatic restart is an interval away again.
        self.last_start = now;
        self.planned = None;
        let current = self
            .generations
            .iter()
            .find(|generation| generation.state == State::Current);
        let serving = current.map(pids);
        self.say(Notice::GivingUp {
            failures,
            serving: serving.clone().unwrap_or_default(),
        });
        if serving.is_none() {
            self.stop_all(self.settings.signal_on_term, Outcome::GivenUp, now);
        }
    }

    /// As in Server::Starter: once the interval has passed since the last start and no old worker is left; with old ones
    /// left, once it has passed twice.
    fn restart_by_itself(&mut self, now: Instant) {
        let Some((_, forced)) = self.next_auto_restart().filter(|(at, _)| *at <= now) else {
            return;
        };
        let interval = self.settings.knobs.auto_restart.unwrap_or_default();
        self.say(Notice::AutoRestart { interval, forced });
        self.start_generation(true, now);
    }

    /// Workers that died while others of their generation serve: new ones with the same number.
    fn replace_missing(&mut self, now: Instant) {
        let wanted = self.settings.workers;
        let due = self.generations.iter().position(|generation| {
            self.lacks_workers(generation) && self.next_spawn_of(generation) <= now
        });
        let Some(place) = due else { return };
        let generation = &mut self.generations[place];
        let missing = wanted - generation.workers.len() - generation.expected;
        generation.expected += missing;
        generation.spawned_at = now;
        let number = generation.number;
        for _ in 0..missing {
            self.actions.push(Action::Spawn { generation: number });
        }
    }

    fn stop_all(&mut self, signal: Signal, outcome: Outcome, now: Instant) {
        let kill_at = self.settings.stop_timeout.map(|timeout| now + timeout);
        self.phase = Phase::Stopping { kill_at, outcome };
        self.planned = None;
        self.restart_wanted = false;
        for pid in self.all_pids() {
            self.signal(pid, signal);
        }
        self.save();
        self.finish_if_empty();
    }

    fn finish_if_empty(&mut self) {
        let Phase::Stopping { outcome, .. } = self.phase else {
            return;
        };
        if !self.generations.is_empty() {
            return;
        }
        if outcome == Outcome::Stopped {
            self.say(Notice::Exiting);
        }
        self.phase = Phase::Finished;
        self.actions.push(Action::Finish(outcome));
    }

    // Questions.

    fn settle_time(&self) -> Duration {
        self.settings.interval.max(PROOF_OF_LIFE)
    }

    /// From the last try to the next one: the interval, then 1.5 times longer each time.
    fn backoff(&self) -> Duration {
        let first = self.settle_time();
        let longest = first.max(LONGEST_BACKOFF);
        let mut delay = first;
        for _ in 1..self.failures {
            delay = (delay + delay / 2).min(longest);
            if delay == longest {
                break;
            }
        }
        delay
    }

    /// When the next automatic restart is due, and whether it is forced.
    fn next_auto_restart(&self) -> Option<(Instant, bool)> {
        let interval = self.settings.knobs.auto_restart?;
        let serves = self
            .generations
            .iter()
            .any(|generation| generation.state == State::Current);
        if !serves || self.is_starting() || self.planned.is_some() {
            return None;
        }
        let forced = self.generations.len() > 1;
        let wait = if forced {
            interval.saturating_mul(2)
        } else {
            interval
        };
        Some((self.last_start + wait, forced))
    }

    fn is_starting(&self) -> bool {
        self.generations
            .iter()
            .any(|generation| matches!(generation.state, State::Starting { .. }))
    }

    fn is_restarting(&self) -> bool {
        let restarting = |state| matches!(state, State::Starting { restart: true, .. });
        self.generations
            .iter()
            .any(|generation| restarting(generation.state))
    }

    fn is_running(&self, generation: &Generation) -> bool {
        generation.workers.len() == self.settings.workers
            && generation.workers.iter().all(|worker| worker.executed)
    }

    fn lacks_workers(&self, generation: &Generation) -> bool {
        generation.state == State::Current
            && generation.workers.len() + generation.expected < self.settings.workers
    }

    fn next_spawn_of(&self, generation: &Generation) -> Instant {
        generation.spawned_at + self.settle_time()
    }

    fn generation(&mut self, number: u32) -> Option<&mut Generation> {
        self.generations
            .iter_mut()
            .find(|generation| generation.number == number)
    }

    fn generation_of(&mut self, pid: Pid) -> Option<&mut Generation> {
        self.generations
            .iter_mut()
            .find(|generation| generation.workers.iter().any(|worker| worker.pid == pid))
    }

    fn all_pids(&self) -> Vec<Pid> {
        self.generations.iter().flat_map(pids).collect()
    }

    fn retiring_pids(&self) -> Vec<Pid> {
        let retiring =
            |generation: &&Generation| matches!(generation.state, State::Retiring { .. });
        self.generations
            .iter()
            .filter(retiring)
            .flat_map(pids)
            .collect()
    }

    // Small changes.

    fn forget_if_empty(&mut self, number: u32) {
        self.generations.retain(|generation| {
            generation.number != number || !generation.workers.is_empty() || generation.expected > 0
        });
    }

    fn decide(&mut self, decision: Decision) {
        self.decisions.push_back(decision);
        if self.decisions.len() > REMEMBERED {
            self.decisions.pop_front();
        }
    }

    fn remember(&mut self, departed: Departed) {
        self.departed.push_back(departed);
        if self.departed.len() > REMEMBERED {
            self.departed.pop_front();
        }
    }

    fn say(&mut self, notice: Notice) {
        self.actions.push(Action::Say(notice));
    }

    fn signal(&mut self, pid: Pid, signal: Signal) {
        self.actions.push(Action::Signal { pid, signal });
    }

    /// One save after all that an event has changed is enough.
    fn save(&mut self) {
        self.actions.retain(|action| *action != Action::SaveStatus);
        self.actions.push(Action::SaveStatus);
    }
}

impl Generation {
    fn worker(&mut self, pid: Pid) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.pid == pid)
    }
}

fn pids(generation: &Generation) -> Vec<Pid> {
    generation.workers.iter().map(|worker| worker.pid).collect()
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "tests fail by panicking, and look at what they are about"
)]
mod tests;
