//! The machine is driven by hand: single rules, then every short history of events, then what a snapshot holds.

mod canary;
mod check;
mod crash;
mod pins;
mod readiness;
mod replacement;
mod rollback;
mod rolling;
mod rules;
mod scale;
mod snapshot;
mod steps;
mod stop_first;
mod switch;
mod walk;
mod watch;

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::generation::PROOF_OF_LIFE;
use super::snapshot::Snapshot;
use super::*;
use crate::words::trouble::Unreachable;

fn settings() -> Settings {
    Settings {
        workers: 1,
        rolling: None,
        start_parallel: None,
        most_workers: 9,
        interval: Duration::from_secs(1),
        proof: Proof::Interval,
        signal_on_hup: Signal::SIGUSR1,
        signal_on_term: Signal::SIGUSR2,
        stop_timeout: None,
        check: None,
        check_first: false,
        kill_old_timeout: None,
        max_old_generations: None,
        start_limit: None,
        first_start_limit: None,
        watch: None,
        pins: true,
        replace: Replace::Overlap,
        lanes: 1,
        shards: 1,
        flows: false,
        quiet_time: Duration::from_millis(200),
        switch_timeout: Duration::from_secs(5),
        knobs: Knobs {
            kill_old_delay: Duration::ZERO,
            auto_restart: None,
        },
    }
}

/// With so many processes more than workers, at most, while a restart goes on.
fn rolling(more: usize, settings: Settings) -> Settings {
    Settings {
        rolling: NonZeroUsize::new(more),
        ..settings
    }
}

/// Where so many workers start at a time.
fn parallel(most: usize, settings: Settings) -> Settings {
    Settings {
        start_parallel: NonZeroUsize::new(most),
        ..settings
    }
}

fn with_workers(workers: usize) -> Settings {
    Settings {
        workers,
        ..settings()
    }
}

/// With `--no-pin`.
fn unpinned(settings: Settings) -> Settings {
    Settings {
        pins: false,
        ..settings
    }
}

/// With so many seconds of `--kill-old-delay`.
fn delayed(seconds: u64) -> Knobs {
    Knobs {
        kill_old_delay: Duration::from_secs(seconds),
        auto_restart: None,
    }
}

fn cannot_execute() -> StartFailure {
    StartFailure::cannot("execute x", Errno::ENOENT, None)
}

fn nobody_reaches() -> Unreachable {
    Unreachable {
        cause: "nobody can reach x: its file was removed".into(),
        hint: "make another".into(),
    }
}

/// A process that the world knows of, by its own account and not the machine's.
#[derive(Debug, Clone)]
struct Process {
    pid: Pid,
    generation: u32,
    slot: usize,
    spawned_at: Moment,
    executed_at: Option<Moment>,
    /// It has said so.
    is_ready: bool,
    /// It has begun to stop by itself.
    is_stopping: bool,
    /// A restart, or the return to its predecessor, has told it to stop.
    is_signalled: bool,
    is_killed: bool,
    /// It has got any signal.
    is_told: bool,
    /// It was killed before it ran the program, which it never will.
    is_harmless: bool,
}

/// The machine and the processes that it believes in, with the invariants checked at every step.
#[derive(Clone)]
struct World {
    machine: Machine,
    now: Moment,
    /// Oldest first.
    living: Vec<Process>,
    next_pid: i32,
    /// Whether new workers run the program at once, or what they do is left to the test.
    execute: bool,
    /// Whether there will be no process for the workers that are asked for.
    fail_to_spawn: bool,
    /// Whether nobody can reach a listener, which is seen when a generation commits and when a worker has ended.
    is_unreachable: bool,
    highest: u32,
    said: Vec<Notice>,
    /// Workers whose leftovers were ended.
    ended_leftovers_of: Vec<Pid>,
    /// First starts in a row that exited with success, and nobody has asked for another one since.
    successes: u32,
    /// Generations that were to replace what served.
    restarts: Vec<u32>,
    /// The generation that was current last, by what could be seen of it.
    served_last: Option<u32>,
    finished: Option<Outcome>,
    stopping: bool,
    /// The current generation has not answered well for too long, and the machine was told.
    unwell: Option<u32>,
    /// A check is under way.
    is_checking: bool,
    /// A restart that was asked for and that no start since has served.
    owed: bool,
    /// What it was before a rollback that is being decided.
    before_rollback: Option<Box<Machine>>,
    lanes: switch::Lanes,
}

impl World {
    fn new(settings: Settings) -> World {
        World::with(settings, true)
    }

    fn with(settings: Settings, execute: bool) -> World {
        let now = Moment::of_test(Duration::from_secs(1000));
        let (machine, actions) = Machine::start(settings, now);
        let mut world = World {
            machine,
            now,
            living: Vec::new(),
            next_pid: 100,
            execute,
            fail_to_spawn: false,
            is_unreachable: false,
            highest: 0,
            said: Vec::new(),
            ended_leftovers_of: Vec::new(),
            successes: 0,
            restarts: Vec::new(),
            served_last: None,
            finished: None,
            stopping: false,
            unwell: None,
            is_checking: false,
            owed: false,
            before_rollback: None,
            lanes: switch::Lanes::default(),
        };
        world.perform(actions);
        world.check();
        world
    }

    fn on(&mut self, event: Event) {
        let current = self.machine.current().map(|one| one.number);
        // Another one is asked afresh.
        self.unwell = self.unwell.filter(|unwell| Some(*unwell) == current);
        let actions = self.machine.on(event, self.now);
        let current = self.machine.current().map(|one| one.number);
        // What is stopped first as soon as it has committed is never seen to be current.
        let committed = self.committed_last().filter(|_| self.stops_first());
        self.served_last = current.or(committed).or(self.served_last);
        self.note_replaced(current);
        self.perform(actions);
        self.tell_stranded();
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Spawn {
                    generation,
                    slot,
                    from,
                } => {
                    self.check_source(generation, slot, from);
                    self.spawn(generation, slot);
                }
                Action::Signal { pid, signal } => self.signal(pid, signal),
                Action::EndLeftovers {
                    worker,
                    generation,
                    slot,
                    signal,
                } => self.end_leftovers(worker, (generation, slot), signal),
                Action::SaveStatus => {}
                Action::Select(selection) => self.select(&selection),
                Action::Look(sockets) => self.look(sockets),
                Action::Check { generation } => {
                    assert!(!self.is_checking, "two checks at a time");
                    let next = self.machine.last_number + 1;
                    assert_eq!(generation, next, "it is for the next one");
                    self.is_checking = true;
                }
                Action::EndCheck => {
                    assert!(self.is_checking, "there is no check to end");
                    self.is_checking = false;
                    // That is the answer, or it is stopping.
                    self.owed = false;
                }
                Action::Serving => self.look_at_listeners(true),
                Action::Say(notice) => {
                    // Another failure in between.
                    if matches!(notice, Notice::CannotStartWorker { .. }) {
                        self.successes = 0;
                    }
                    self.said.push(notice);
                }
                Action::Finish(outcome) => {
                    assert_eq!(self.finished, None, "it finishes once");
                    assert!(self.living.is_empty(), "it finishes while workers live");
                    self.finished = Some(outcome);
                }
            }
        }
    }

    fn spawn(&mut self, generation: u32, slot: usize) {
        assert!(!self.stopping, "a worker is started while stopping");
        assert!(slot < self.machine.settings.workers, "there is no {slot}");
        if generation > self.highest {
            // One that has waited for room, and was given up, never had a worker.
            let is_next = generation == self.highest + 1;
            let settings = &self.machine.settings;
            let may_wait = settings.rolling.is_some() || settings.start_parallel.is_some();
            assert!(is_next || may_wait, "numbers follow each other");
            self.highest = generation;
            let known = self.machine.generation(generation);
            self.owed &= known.is_some_and(Generation::is_sweeper);
            self.check_that_nobody_is_left(generation);
        }
        let known = self.machine.generation(generation);
        assert!(known.is_some(), "number {generation} was used before");
        let is_occupied = |one: &Process| (one.generation, one.slot) == (generation, slot);
        // Whoever has left a slot may take its time.
        let occupied = self.living.iter().find(|one| is_occupied(one));
        assert!(
            occupied.is_none_or(|one| self.machine.is_leaver(one.pid)),
            "slot {slot} of {generation} is occupied"
        );
        self.check_room();
        if self.fail_to_spawn {
            self.on(Event::SpawnFailed {
                generation,
                slot,
                cause: cannot_execute(),
            });
            return;
        }
        let pid = Pid::from_raw(self.next_pid);
        self.next_pid += 1;
        self.living.push(Process {
            pid,
            generation,
            slot,
            spawned_at: self.now,
            executed_at: None,
            is_ready: false,
            is_stopping: false,
            is_signalled: false,
            is_killed: false,
            is_told: false,
            is_harmless: false,
        });
        self.on(Event::Spawned {
            generation,
            slot,
            pid,
        });
        if self.execute {
            self.execute(pid);
        }
    }

    /// A crash deploys nothing: only what was asked for, or is due, looks at the disk.
    fn check_source(&self, generation: u32, slot: usize, from: Source) {
        if !self.machine.settings.pins {
            assert_eq!(from, Source::Disk, "with --no-pin it is always the disk");
            return;
        }
        let why = self.machine.generation(generation).unwrap().why;
        let expected = match (generation > self.highest, slot, why) {
            (true, 0, Why::Rollback { to }) => Source::Generation(to),
            (true, 0, Why::First | Why::Asked | Why::Canary(_) | Why::Timed) => Source::Disk,
            (true, 0, Why::Replacement | Why::Sweep) => {
                Source::Generation(self.served_last.unwrap())
            }
            // The other slots, and whoever replaces one that died.
            _ => Source::Generation(generation),
        };
        assert_eq!(from, expected, "slot {slot} of generation {generation}");
        if let Source::Generation(number) = from {
            assert!(self.machine.may_start_from(number), "{number} is not kept");
        }
    }

    fn execute(&mut self, pid: Pid) {
        let process = self.living.iter_mut().find(|one| one.pid == pid).unwrap();
        process.executed_at = Some(self.now);
        self.on(Event::Executed(pid));
    }

    fn signal(&mut self, pid: Pid, signal: Signal) {
        let stops_first = self.stops_first();
        let Some(process) = self.living.iter_mut().find(|one| one.pid == pid) else {
            panic!("{signal} to the dead {pid}");
        };
        process.is_told = true;
        process.is_killed |= signal == Signal::SIGKILL;
        process.is_harmless |= process.is_killed && process.executed_at.is_none();
        if signal != self.machine.settings.signal_on_hup {
            return;
        }
        assert!(
            !process.is_signalled,
            "{pid} is signalled a second time by a restart"
        );
        let number = process.generation;
        let is_leaver = self.machine.is_leaver(pid);
        if stops_first && !is_leaver {
            process.is_signalled = true;
            assert_eq!(self.machine.stopping_first(), Some(number));
            assert_eq!(self.highest, number, "something newer has been started");
            return;
        }
        let is_alone = self.machine.settings.shards > 1;
        if !is_leaver || is_alone {
            self.check_quiet(pid);
        }
        if self.before_rollback.is_some() && !is_leaver {
            self.check_return_from(number);
            for process in &mut self.living {
                process.is_signalled |= process.pid == pid;
            }
            return;
        }
        if is_leaver {
            self.check_leaver(pid);
            for process in &mut self.living {
                process.is_signalled |= process.pid == pid;
            }
            return;
        }
        if self.lanes.given_up.contains(&number) {
            for process in &mut self.living {
                process.is_signalled |= process.pid == pid;
            }
            return;
        }
        let successor = self.machine.current().map(|one| one.number);
        let Some(successor) = successor.filter(|one| *one != number) else {
            panic!("{pid} is stopped though nothing else is current");
        };
        assert!(
            successor > number || self.unwell == Some(number),
            "{pid} is stopped though it is well and nothing newer is current"
        );
        let its = |one: &&Process| one.generation == successor;
        assert!(
            self.living
                .iter()
                .filter(its)
                .any(|one| self.has_proved_itself(one)),
            "{pid} is stopped though what is current has not proved that it serves"
        );
        assert!(
            self.unwell != Some(successor)
                && !self
                    .living
                    .iter()
                    .filter(its)
                    .any(|one| one.is_signalled && !self.machine.is_leaver(one.pid)),
            "{pid} is stopped though what is current is unwell or has been told to stop"
        );
        for process in &mut self.living {
            process.is_signalled |= process.pid == pid;
        }
    }

    /// A rolling restart takes no more than it may.
    fn check_room(&self) {
        let settings = &self.machine.settings;
        if let Some(more) = settings.rolling {
            assert!(
                self.living.len() < settings.workers + more.get(),
                "there are too many processes for another one: {:?}",
                self.living
            );
        }
        if let Some(most) = settings.start_parallel {
            let is_starting = |one: &&Process| !self.has_proved_itself(one) && !one.is_signalled;
            let may_start = |one: &&Process| {
                let state = self.state_of(one.generation);
                matches!(
                    state,
                    Some(State::Starting | State::Current | State::Canary)
                ) && !one.is_stopping
                    && !self.machine.is_leaver(one.pid)
                    && !self.has_failed(one.pid)
            };
            let starting = self.living.iter().filter(is_starting).filter(may_start);
            assert!(starting.count() < most.get(), "too many start at a time");
        }
    }

    /// It cannot run the program, or was not ready in time.
    fn has_failed(&self, pid: Pid) -> bool {
        let mut workers = self.machine.generations().flat_map(Generation::workers);
        workers.any(|one| one.pid == pid && one.failure().is_some())
    }

    /// A worker has no slot any more and is told: because there are fewer, or because its successor serves.
    fn check_leaver(&self, pid: Pid) {
        let leaver = self.living.iter().find(|one| one.pid == pid).unwrap();
        if self.machine.stopping_first() == Some(leaver.generation) {
            // With everybody else.
            return;
        }
        let is_surplus = leaver.slot >= self.machine.settings.workers;
        let serves = |one: &&Process| {
            one.slot == leaver.slot
                && one.generation > leaver.generation
                && !one.is_signalled
                && self.has_proved_itself(one)
                && Some(one.generation) != self.unwell
        };
        let serving = self.living.iter();
        let serving = serving.filter(|one| !self.machine.is_leaver(one.pid) && !one.is_signalled);
        let proved = serving.filter(|one| self.has_proved_itself(one)).count();
        assert!(
            !is_surplus || proved >= self.machine.settings.workers,
            "{pid} is stopped though only {proved} others serve"
        );
        assert!(
            is_surplus || self.living.iter().any(|one| serves(&one)),
            "{pid} is stopped though nothing newer serves in its slot"
        );
    }

    /// As many serve as are wanted, unless some have died or failed.
    fn scale(&mut self, scale: Scale) {
        let (before, is_stopping) = (self.machine.workers(), self.machine.is_stopping());
        self.on(Event::Scale(scale));
        let wanted = match scale {
            Scale::To(workers) => workers,
            Scale::OneMore => before + 1,
            Scale::OneLess => before - 1,
        };
        let expected = match (1..=9).contains(&wanted) && !is_stopping {
            true => wanted,
            false => before,
        };
        assert_eq!(self.machine.workers(), expected);
    }

    fn end_leftovers(&mut self, worker: Pid, place: (u32, usize), signal: Signal) {
        let is_known = signal == self.machine.settings.signal_on_term || signal == Signal::SIGKILL;
        assert!(is_known, "{signal}");
        let mut living = self.living.iter();
        let others = living.find(|one| (one.generation, one.slot) == place && one.pid != worker);
        // Whoever has left a slot may take its time.
        assert!(
            others.is_none_or(|one| self.machine.is_leaver(one.pid)),
            "what the worker in {place:?} has left behind is ended while another one is there"
        );
        self.ended_leftovers_of.push(worker);
    }

    fn has_proved_itself(&self, process: &Process) -> bool {
        if self.is_told() {
            return process.is_ready && !process.is_stopping;
        }
        let interval = self.machine.settings.interval;
        process.executed_at.is_some_and(|at| {
            self.now >= at + PROOF_OF_LIFE && self.now >= process.spawned_at + interval
        })
    }

    fn stops_first(&self) -> bool {
        self.machine.settings.replace == Replace::StopFirst
    }

    fn committed_last(&self) -> Option<u32> {
        let mut decisions = self.machine.history.decisions.iter().rev();
        let last = decisions.find(|one| match one.verdict {
            Verdict::Committed | Verdict::Unreachable(_) => true,
            Verdict::Canary
            | Verdict::CheckFailed(_)
            | Verdict::Refused(_)
            | Verdict::Failed { .. } => false,
        });
        last.map(|one| one.generation)
    }

    /// With `--replace=stop-first`: of all others only processes live that have been killed before they ran the program,
    /// and after a failed restart it is what served that comes back.
    fn check_that_nobody_is_left(&mut self, generation: u32) {
        let why = self.machine.generation(generation).unwrap().why;
        if !self.stops_first() {
            return;
        }
        assert!(
            self.living.iter().all(|one| one.is_harmless),
            "generation {generation} is started while others live"
        );
        let last = self.machine.history.decisions.back();
        let failed = last.filter(|one| matches!(one.verdict, Verdict::Failed { .. }));
        let is_failed_restart = failed.is_some_and(|one| self.restarts.contains(&one.generation));
        if is_failed_restart && self.machine.settings.pins {
            assert_eq!(why, Why::Replacement, "what served does not come back");
        }
        if why.is_restart() && self.machine.has_served() {
            self.restarts.push(generation);
        }
    }

    /// Whether readiness is told, instead of being a matter of time.
    fn is_told(&self) -> bool {
        self.machine.settings.proof != Proof::Interval
    }

    fn become_ready(&mut self, pid: Pid) {
        let process = self.living.iter_mut().find(|one| one.pid == pid).unwrap();
        process.is_ready = true;
        self.on(Event::Ready(pid));
    }

    fn stop_by_itself(&mut self, pid: Pid) {
        let process = self.living.iter_mut().find(|one| one.pid == pid).unwrap();
        process.is_stopping = true;
        self.on(Event::Stopping(pid));
    }

    /// The current generation has not answered well for very long.
    fn become_unwell(&mut self) {
        let Some(number) = self.machine.current().map(|one| one.number) else {
            return;
        };
        self.unwell = Some(number);
        let previous = self.machine.generations.iter().rev();
        let previous = previous.filter(|one| one.state() == State::Retiring);
        let previous = previous.map(|one| one.number).next();
        let proved =
            |one: &&Process| Some(one.generation) == previous && self.has_proved_itself(one);
        let way_back = self.living.iter().find(proved).and(previous);
        let event = Event::Unwell {
            generation: number,
            since: Moment::of_test(Duration::ZERO),
            known: "GET / on it: 503".into(),
        };
        match way_back {
            Some(way_back) => {
                self.on(event);
                let current = self.machine.current().map(|one| one.number);
                assert_eq!(current, Some(way_back), "what is unwell is left");
                assert_eq!(self.state_of(number), Some(State::Old));
            }
            None => {
                let actions = self.machine.on(event, self.now);
                let is_harmless =
                    |action: &Action| matches!(action, Action::SaveStatus | Action::Say(_));
                assert!(
                    actions.iter().all(is_harmless),
                    "{actions:?} because of bad answers"
                );
                self.perform(actions);
                assert!(self.machine.unhealthy().is_some());
                assert_eq!(self.state_of(number), Some(State::Current));
            }
        }
    }

    fn become_well(&mut self) {
        let current = self.machine.current().map(|one| one.number);
        self.unwell = None;
        self.on(Event::Well {
            generation: current.unwrap(),
        });
        assert_eq!(self.machine.unhealthy(), None);
    }

    fn pass(&mut self, seconds: f64) {
        self.now = self.now + Duration::from_secs_f64(seconds);
    }

    /// Time passes until the deadline, and it is told.
    fn pass_deadline(&mut self) -> bool {
        let Some(deadline) = self.machine.deadline() else {
            return false;
        };
        self.now = self.now.max(deadline);
        self.on(Event::DeadlinePassed);
        true
    }

    fn exit(&mut self, pid: Pid, status: i32) {
        self.count_successes(pid, status);
        if !self.stopping {
            self.look_at_listeners(false);
        }
        self.living.retain(|one| one.pid != pid);
        self.on(Event::Exited { pid, status });
    }

    fn count_successes(&mut self, pid: Pid, status: i32) {
        let process = self.living.iter().find(|one| one.pid == pid).unwrap();
        let is_first_start = self.state_of(process.generation) == Some(State::Starting)
            && !self.machine.has_served();
        if is_first_start {
            let is_asked_again = self.machine.restart_wanted;
            self.successes = match status {
                0 if !is_asked_again => self.successes + 1,
                _ => 0,
            };
        }
    }

    fn exit_newest(&mut self, status: i32) {
        let pid = self.living.last().unwrap().pid;
        self.exit(pid, status);
    }

    /// It is a verdict, and nothing else.
    fn look_at_listeners(&mut self, at_commit: bool) {
        if !self.is_unreachable {
            return;
        }
        let before = self.machine.clone();
        let unreachable = nobody_reaches();
        let event = Event::Unreachable {
            at_commit,
            unreachable,
        };
        let actions = self.machine.on(event, self.now);
        let is_told = before.history != self.machine.history;
        let expected: &[Action] = if is_told { &[Action::SaveStatus] } else { &[] };
        assert_eq!(actions, expected);
        let decisions = self.machine.history.decisions.clone();
        let mut after = before;
        after.history.decisions = decisions;
        assert_eq!(after, self.machine, "a verdict changes nothing");
        let current = self.machine.current().map(|one| one.number);
        let verdict = current.and_then(|number| self.machine.history.decision_on(number));
        let is_reached = verdict.is_some_and(|one| one.verdict == Verdict::Committed);
        assert!(
            !(at_commit && is_reached),
            "a generation has committed that nobody can reach"
        );
    }

    fn fail_to_execute(&mut self, pid: Pid) {
        self.on(Event::NotExecuted {
            pid,
            cause: cannot_execute(),
        });
        self.exit(pid, 255 << 8);
    }

    fn restart(&mut self) {
        self.owed = !self.stopping;
        self.successes = 0;
        self.on(Event::Restart);
    }

    /// It undoes the last restart, or changes nothing but its verdict.
    fn roll_back(&mut self) {
        let before = self.machine.clone();
        self.successes = 0;
        self.before_rollback = Some(Box::new(before.clone()));
        let living = self.pids();
        self.on(Event::RollBack);
        self.before_rollback = None;
        let asked = self.machine.history.counters.restarts;
        let last = self.machine.history.decisions.back();
        let last = last.filter(|one| one.request == asked);
        if let Some(Verdict::Refused(_)) = last.map(|one| &one.verdict) {
            let history = self.machine.history.clone();
            let after = Machine { history, ..before };
            assert_eq!(after, self.machine, "it is refused, and changes nothing");
            return;
        }
        self.owed = false;
        assert!(!self.machine.restart_wanted, "the restart is given up");
        let serves = |machine: &Machine| machine.current().map(|one| one.number);
        let (was, is) = (serves(&before), serves(&self.machine));
        let still_serves = was.is_none() || is.is_some();
        assert!(
            still_serves || self.stops_first(),
            "nothing serves any more"
        );
        if was != is && is.is_some() {
            let after = self.pids();
            let are_there = living.iter().all(|pid| after.contains(pid));
            assert!(are_there, "the old workers serve again");
        }
    }

    /// Nothing that has committed is touched, and no restart is left over.
    fn abort(&mut self) {
        let before = self.machine.clone();
        self.successes = 0;
        let restarts = self.machine.history.counters.restarts;
        self.on(Event::Abort);
        if before.is_stopping() {
            assert_eq!(
                before, self.machine,
                "it is stopping, and goes on with that"
            );
            return;
        }
        assert_eq!(self.machine.history.counters.restarts, restarts + 1);
        let last = self.machine.history.decisions.back();
        let last = last.filter(|one| one.request > restarts);
        if let Some(Verdict::Refused(_)) = last.map(|one| &one.verdict) {
            let history = self.machine.history.clone();
            let after = Machine { history, ..before };
            assert_eq!(after, self.machine, "it is refused, and changes nothing");
            return;
        }
        self.owed = false;
        let machine = &self.machine;
        assert!(!machine.restart_wanted && machine.checking.is_none());
        let serves = |machine: &Machine| machine.current().map(|one| one.number);
        if serves(&before).is_some() {
            assert_eq!(serves(&before), serves(machine), "what serves goes on");
            assert!(!machine.is_starting() && machine.planned.is_none());
            for generation in before
                .generations()
                .filter(|one| !matches!(one.state(), State::Starting | State::Canary))
            {
                let state = machine.state_of(generation.number);
                assert_eq!(state, Some(generation.state()), "it is not touched");
            }
        }
    }

    /// Only whoever is current is told to stop, and only if what it replaced serves in its place.
    fn check_return_from(&self, number: u32) {
        let before = self.before_rollback.as_ref().unwrap();
        let current = |machine: &Machine| machine.current().map(|one| one.number);
        assert_eq!(current(before), Some(number), "{number} was not current");
        let is = current(&self.machine).unwrap();
        let of_old = |one: &Process| one.generation == is && self.has_proved_itself(one);
        assert!(is < number && self.living.iter().any(of_old));
        assert_eq!(before.state_of(is), Some(State::Retiring));
    }

    fn stop(&mut self, signal: Signal) {
        self.stopping = true;
        self.owed = false;
        self.on(Event::Stop(signal));
    }

    fn pids(&self) -> Vec<i32> {
        self.living.iter().map(|one| one.pid.as_raw()).collect()
    }

    fn state_of(&self, number: u32) -> Option<State> {
        self.machine.state_of(number)
    }

    fn said(&self, text: &str) -> bool {
        self.count_said(text) > 0
    }

    fn count_said(&self, text: &str) -> usize {
        let said = self.said.iter();
        said.filter(|notice| notice.to_string().contains(text))
            .count()
    }

    /// How long it is until the deadline, in seconds.
    fn wait(&self) -> Option<f64> {
        let deadline = self.machine.deadline()?;
        Some(deadline.saturating_since(self.now).as_secs_f64())
    }

    /// What holds after every event of every history.
    fn check(&self) {
        self.check_promises();
        self.check_snapshot(&written(&self.machine));
    }

    /// The text is the machine's snapshot.
    fn check_snapshot(&self, text: &str) {
        let restored = read(text);
        let expected = Ok(&self.machine);
        assert_eq!(restored.as_ref(), expected, "a snapshot holds everything");
    }

    /// The check ends like this.
    fn end_check(&mut self, is_good: bool) {
        self.is_checking = false;
        let failed = FailedCheck {
            status: Some(256),
            cause: StartFailure::failed_check(256),
            lines: vec!["no".to_owned()],
        };
        let before = self.living.len();
        if !is_good {
            // That is the answer.
            self.owed = self.machine.restart_wanted;
        }
        self.on(Event::Checked(is_good.then_some(()).ok_or(failed)));
        // Where nothing serves, whoever has asked since is not checked.
        if !is_good && self.machine.current().is_some() {
            assert!(
                self.living.len() <= before,
                "something is started though the check has failed"
            );
        }
    }

    fn check_promises(&self) {
        assert_eq!(self.machine.checking.is_some(), self.is_checking);
        self.check_workers();
        self.check_lanes();
        self.check_kept();
        if self.machine.phase == Phase::Serving {
            self.check_serving();
        }
        if self.finished.is_none() && self.living.is_empty() {
            assert!(self.machine.deadline().is_some(), "it waits for nothing");
        }
        if let Some(outcome) = self.finished {
            assert_eq!(self.machine.phase, Phase::Finished);
            assert!(self.stopping || outcome == Outcome::GivenUp);
            assert_eq!(self.machine.deadline(), None);
        }
    }

    fn check_workers(&self) {
        let mut known: Vec<i32> = self
            .machine
            .all_pids()
            .into_iter()
            .map(Pid::as_raw)
            .collect();
        let mut living = self.pids();
        known.sort_unstable();
        living.sort_unstable();
        assert_eq!(known, living, "no worker is lost, and none is invented");
        let is_harmful = |one: &&Process| !one.is_harmless;
        let mut harmful = self
            .living
            .iter()
            .filter(is_harmful)
            .map(|one| one.generation);
        let first = harmful.next();
        assert!(
            !self.stops_first() || harmful.all(|other| Some(other) == first),
            "two generations have workers"
        );
        for generation in self.machine.generations() {
            let number = generation.number;
            let living = self.living.iter().filter(|one| one.generation == number);
            let with_slots = living.filter(|one| !self.machine.is_leaver(one.pid));
            assert!(
                with_slots.count() <= generation.size(),
                "generation {number} has more workers than slots"
            );
        }
    }

    /// What nothing will be started from is let go, and nothing that is running.
    fn check_kept(&self) {
        let kept = (1..=self.highest).filter(|number| self.machine.may_start_from(*number));
        let kept: Vec<u32> = kept.collect();
        let may_get_workers = self.machine.generations();
        let may_get_workers = may_get_workers.filter(|one| one.state() != State::Old);
        let count = may_get_workers.count();
        assert!(kept.len() <= count + 2, "{kept:?} are kept");
        assert!(self.served_last.is_none_or(|last| kept.contains(&last)));
    }

    fn check_serving(&self) {
        let current = self.machine.current().map(|one| one.number);
        let is_unwell = self.unwell.is_some() && self.unwell == current;
        assert_eq!(
            self.machine.unhealthy().is_some(),
            is_unwell,
            "what is shown is what was told"
        );
        assert!(
            self.successes < 3,
            "a program that goes into the background again and again is not given up"
        );
        let count = |state: State| {
            let generations = self.machine.generations();
            generations.filter(|one| one.state() == state).count()
        };
        self.check_draining();
        let (starting, current) = (count(State::Starting), count(State::Current));
        assert!(current <= 1, "one generation is current");
        assert!(starting <= 1, "one generation starts at a time");
        let is_planned = self.machine.planned.is_some();
        let is_stopping_first = self.machine.stopping_first().is_some();
        assert!(
            starting > 0 || is_planned || current > 0 || self.is_checking || is_stopping_first,
            "nothing serves and nothing will"
        );
        assert!(
            !self.owed || starting > 0 || is_planned || self.is_checking || is_stopping_first,
            "a restart is forgotten"
        );
        let retiring = count(State::Retiring);
        assert!(
            retiring == 0 || !self.stops_first(),
            "what has stopped is no way back"
        );
        if retiring > 0 {
            let why = self.machine.current().map(|one| one.why);
            assert!(
                why.is_some_and(Why::is_restart),
                "only a restart makes another generation retire"
            );
        }
    }
}

impl World {
    /// Generations that have served and were told to stop, and that nobody has killed.
    fn check_draining(&self) {
        let Some(most) = self.machine.settings.max_old_generations else {
            return;
        };
        let is_draining = |number: &u32| {
            let its = |one: &&Process| one.generation == *number && one.is_signalled;
            self.living.iter().filter(its).any(|one| !one.is_killed)
        };
        let mut draining: Vec<u32> = self.living.iter().map(|one| one.generation).collect();
        draining.dedup();
        draining.retain(is_draining);
        assert!(
            draining.len() <= usize::try_from(most.get()).unwrap(),
            "{draining:?} drain"
        );
    }
}

/// The snapshot as it would be handed to another program.
fn written(machine: &Machine) -> String {
    serde_json::to_string(&machine.snapshot()).unwrap()
}

/// What that one would make of it.
fn read(text: &str) -> Result<Machine, String> {
    let snapshot: Snapshot = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Machine::restore(snapshot)
}
