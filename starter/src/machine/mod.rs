//! All policy of starting, replacing and stopping: an event and the time go in, actions come out.
//!
//! It knows no clock, no process and no file, so that a test can walk every short history.
//!
//! A generation goes through these states:
//!
//! | state | meaning | leaves it when |
//! |---|---|---|
//! | starting | spawned, not yet proved | every slot has a proved worker: commits; a worker dies: failed, becomes old |
//! | canary | proved, gets a share of new traffic: [`canary`] | it is promoted: current; it fails or is rolled back: old |
//! | current | committed, the newest that serves | a newer one commits: retiring; the last worker dies: gone |
//! | sweeping | it is there for what waits in sockets that nobody serves: [`sweep`] | nothing waits there any more: old |
//! | retiring | a newer one serves, not yet signalled | `--kill-old-delay` expires: old; the newer one dies or is unhealthy: current again |
//! | old | told to stop | its last worker is gone |
//!
//! A worker that has not executed the program after [`generation::LONGEST_EXEC`], for example because a file system does
//! not respond, is killed and has failed.
//!
//! A generation has a slot for each of its workers. A worker is *proved* (`Ready`) when it has lived for the interval
//! since it was asked for, and a moment since it executed the program ([`generation::PROOF_OF_LIFE`]); with any
//! `--ready` but `interval`, when [`Event::Ready`] says so. An unproved worker is never a reason to give up one that
//! serves: neither to commit, nor to signal a retiring generation, which waits until the current one has a proved
//! worker.
//!
//! With `--watch`, a current generation may be unhealthy ([`mod@watch`]). As long as it is, no retiring one is signalled.
//!
//! A failed start is retried with growing delays, up to `--start-limit` times. The same holds for one slot of the
//! current generation whose worker died while others serve:
//!
//! | the slot's worker | what follows |
//! |---|---|
//! | proved, dies | it crashed; the slot is refilled, at the earliest an interval after it was last filled |
//! | replacement, cannot be spawned or executed, or dies before it is proved | a failed start of this slot: the next try is an interval after the last one, then 1.5 times later each time, at most 30 seconds |
//! | replacement, is proved | the failures of the slot are forgotten |
//! | replacement, fails for the `--start-limit`th time in a row | the slot is given up and the others keep serving; the next generation starts afresh |
//! | replacement, dies before it is proved while a restart is under way | its successor may have told it to stop: no failure, and the next try has the same delay as this one |
//! | any, exits with success during a restart, and its successor is on its way or serves | that has told it to stop: the slot stays empty as long as the restart goes on |
//! | last one of the generation, dies | whatever its slots wait for, the generation is gone: the one it replaced is current again, or a new generation starts |
//!
//! A generation that dies sooner than an interval after its commit, and so do those that replace it, comes back with the
//! same growing delays.
//!
//! Each slot counts its own failures: they neither delay a restart nor count toward its limit or verdict. While its
//! generation is retiring no slot is filled; empty ones are filled if it becomes current again.
//!
//! What a generation is started from is kept, unless `--no-pin` is given, and a crash deploys nothing:
//!
//! | a worker of | is started from ([`Source`]) |
//! |---|---|
//! | the first generation, a restart, and every further try of it | the disk as it is then |
//! | the same generation, in another slot or instead of one that died | the same as the first one |
//! | a generation that replaces one whose workers have all died | the same as the one that served last |
//!
//! When nothing serves, what served comes back before a failed restart is tried again: its next try is due once that
//! serves, or when that has failed as well.
//!
//! With `--replace=stop-first` a restart begins with the end of what serves: see [`stop_first`]. With `--switch` each
//! generation has sockets of its own: see [`switch`].

#![deny(
    clippy::wildcard_enum_match_arm,
    reason = "a new state or event must be thought of in every decision"
)]

mod as_number;
mod bounds;
mod canary;
mod check;
mod commit;
mod crash;
mod generation;
mod history;
mod lane;
mod model;
mod pins;
mod readiness;
mod rollback;
mod rolling;
mod scale;
mod shards;
mod slots;
mod snapshot;
pub use self::snapshot::Snapshot;
mod start;
mod steps;
mod stop;
mod stop_first;
mod sweep;
mod switch;
mod turns;
mod watch;

use nix::unistd::Pid;

pub use self::generation::{Generation, State};
pub use self::history::{
    Decision, Departed, Durations, FailedCheck, History, REMEMBERED, Scaling, Verdict,
};
pub use self::lane::{By, Portion, Selection, Share, Sockets};
pub use self::model::{
    Action, Event, Knobs, Machine, Outcome, Proof, Replace, Scale, Settings, Source,
};

use self::generation::{Content, Slot, Stage, Standing, Why, Worker};
use self::model::Phase;
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

impl Machine {
    /// The machine, and the actions that start the first generation.
    pub fn start(settings: Settings, now: Moment) -> (Machine, Vec<Action>) {
        let mut machine = Machine {
            settings,
            phase: Phase::Serving,
            generations: Vec::new(),
            last_number: 0,
            last_started_at: now,
            restart_wanted: false,
            portion_wanted: None,
            checking: None,
            stopping_first: None,
            outage: None,
            // As the sockets are made.
            selected: Selection::whole(0, 0, 1),
            refused: None,
            strays: Vec::new(),
            freed: Vec::new(),
            stopping_since: None,
            planned: None,
            postponed: None,
            failures: 0,
            successes: 0,
            early_deaths: 0,
            served: None,
            served_before: None,
            auto_restart_since: now,
            history: History::default(),
            actions: Vec::new(),
        };
        machine.start_checked(Why::First, now);
        let actions = std::mem::take(&mut machine.actions);
        (machine, actions)
    }

    /// Decides what to do about an event. Events of processes that are not workers change nothing.
    pub fn on(&mut self, event: Event, now: Moment) -> Vec<Action> {
        match event {
            Event::Spawned {
                generation,
                slot,
                pid,
            } => self.spawned(generation, slot, pid, now),
            Event::SpawnFailed {
                generation,
                slot,
                cause,
            } => self.spawn_failed(generation, slot, cause, now),
            Event::Executed(pid) => {
                self.has_executed(pid, now);
                self.executed(pid, Standing::Executed { at: now });
            }
            Event::NotExecuted { pid, cause } => self.executed(pid, Standing::Failed(cause)),
            Event::Ready(pid) => self.ready(pid, now),
            Event::StartExtended { pid, until } => self.start_extended(pid, until),
            Event::NotYetReady { pid, known } => self.not_yet_ready(pid, known),
            Event::Text { pid, text } => self.says(pid, text),
            Event::Checked(result) => self.checked(result, now),
            Event::Unwell {
                generation,
                since,
                known,
            } => self.unwell(generation, since, known, now),
            Event::Well { generation } => self.well(generation, now),
            Event::Stopping(pid) => self.stopping_by_itself(pid, now),
            Event::Exited { pid, status } => self.exited(pid, status, now),
            Event::DeadlinePassed => self.deadline_passed(now),
            Event::Restart => self.restart(Why::Asked, now),
            Event::Canary(portion) => self.restart_as_canary(portion, now),
            Event::Promote => self.promote(now),
            Event::RollBack => self.roll_back(now),
            Event::Abort => self.abort(now),
            Event::Scale(scale) => self.scale(scale, now),
            Event::Stop(signal) => self.stop(signal, now),
            Event::Unreachable {
                at_commit,
                unreachable,
            } => self.cannot_be_reached(at_commit, unreachable, now),
            Event::Looked { sockets, waiting } => self.looked(sockets, waiting, now),
            Event::Stranded { socket } => self.stranded(socket, now),
            Event::NotSelected { selected, cause } => self.not_selected(selected, cause, now),
            Event::Broken => self.give_up_everything(now),
        }
        self.look_at_freed(now);
        self.go_on_when_alone(now);
        self.tell_leavers(now);
        self.take_turns(now);
        self.watch_sweepers(now);
        self.note_drained(now);
        self.note_scaled(now);
        self.select_who_serves();
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::DeadlinePassed`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        match self.phase {
            Phase::Serving => {
                let of_generations = self
                    .generations
                    .iter()
                    .filter_map(|generation| self.deadline_of(generation));
                let planned = self.planned.filter(|_| self.may_start());
                let planned = planned.map(|planned| planned.at);
                let auto = self.next_auto_restart().map(|(at, _)| at);
                of_generations
                    .chain(planned)
                    .chain(auto)
                    .chain(self.kill_at())
                    .chain(self.trusted_at())
                    .chain(self.leaver_told_at())
                    .chain(self.looks_at())
                    .chain(self.leavers_looked_at())
                    .chain(self.checking.map(|checking| checking.until))
                    .min()
            }
            Phase::Stopping { kill_at, .. } => kill_at.into_iter().chain(self.kill_at()).min(),
            Phase::Finished => None,
        }
    }

    // Events.

    fn spawned(&mut self, number: u32, slot: usize, pid: Pid, now: Moment) {
        let Some(place) = self.asked_for(number, slot) else {
            return;
        };
        place.content = Content::Occupied(Worker::new(pid, number, slot, now));
        self.has_spawned(number, now);
        self.say(Notice::StartingNewWorker(pid));
        match (self.phase, self.state_of(number)) {
            (
                Phase::Serving,
                Some(
                    State::Starting
                    | State::Current
                    | State::Canary
                    | State::Retiring
                    | State::Sweeping,
                )
                | None,
            ) => {}
            // Its start failed or was stopped before this worker existed.
            (Phase::Serving, Some(State::Old)) => {
                let signal = self.settings.signal_on_term;
                self.tell_to_stop(&[pid], signal, self.patience_with_failed(), now);
            }
            // The same, and the rest of its generation serves.
            (Phase::Serving, Some(State::Partial)) => self.stop_roll(number, now),
            (Phase::Stopping { .. } | Phase::Finished, _) => {
                self.signal(pid, self.settings.signal_on_term);
            }
        }
        self.save_status();
    }

    fn spawn_failed(&mut self, number: u32, slot: usize, cause: StartFailure, now: Moment) {
        let Some(place) = self.asked_for(number, slot) else {
            return;
        };
        place.content = Content::Empty;
        self.say(Notice::CannotStartWorker {
            generation: number,
            slot,
            pid: None,
            cause: cause.clone(),
        });
        match (self.phase, self.state_of(number)) {
            (Phase::Serving, Some(State::Starting)) => {
                self.start_failed(number, None, Some(cause), now);
            }
            (Phase::Serving, Some(State::Current)) => {
                self.note_not_scaled(slot, cause.clone());
                self.replacement_failed(number, slot);
                self.current_lost_worker(number, None, Some(cause), now);
            }
            (Phase::Serving, Some(State::Partial)) => self.partial_lost_worker(number, slot, now),
            (Phase::Serving, Some(State::Canary)) => {
                self.canary_failed(number, None, Some(cause), now);
            }
            (Phase::Serving, Some(State::Sweeping)) => self.sweeper_failed(number, now),
            (Phase::Serving, Some(State::Retiring | State::Old) | None) => self.drop_gone(),
            (Phase::Stopping { .. } | Phase::Finished, _) => {
                self.drop_gone();
                self.finish_if_empty();
            }
        }
    }

    /// A worker's report about its exec. There is only one per worker, so a second one is from an unknown process.
    fn executed(&mut self, pid: Pid, standing: Standing) {
        let worker = self
            .generations
            .iter_mut()
            .find_map(|generation| generation.worker_mut(pid));
        if let Some(worker) = worker.filter(|worker| worker.standing == Standing::Spawned) {
            worker.standing = standing;
        }
    }

    fn exited(&mut self, pid: Pid, status: i32, now: Moment) {
        let mut generations = self.generations.iter_mut();
        if let Some(leaver) = generations.find_map(|one| one.take_leaver(pid)) {
            self.note_departed(&leaver, status, now);
            return self.leaver_exited(&leaver, status, now);
        }
        let mut generations = self.generations.iter_mut();
        let Some(worker) = generations.find_map(|one| one.take_worker(pid)) else {
            return;
        };
        self.note_departed(&worker, status, now);
        if let Some(cause) = worker.failure() {
            self.say(Notice::CannotStartWorker {
                generation: worker.generation,
                slot: worker.slot,
                pid: Some(pid),
                cause: cause.clone(),
            });
        }
        match (self.phase, self.state_of(worker.generation)) {
            (Phase::Stopping { .. } | Phase::Finished, _) => {
                self.say(Notice::WorkerDied { pid, status });
                self.drop_gone();
                self.finish_if_empty();
            }
            (Phase::Serving, Some(State::Starting)) => {
                self.starting_worker_died(&worker, status, now);
            }
            (Phase::Serving, Some(State::Current)) => {
                self.current_worker_died(&worker, status, now);
            }
            (Phase::Serving, Some(State::Partial)) => {
                self.say(Notice::DiedUnexpectedly { pid, status });
                self.history.counters.count_crash();
                self.partial_lost_worker(worker.generation, worker.slot, now);
            }
            (Phase::Serving, Some(State::Canary)) => self.canary_died(&worker, status, now),
            (Phase::Serving, Some(State::Sweeping)) => {
                self.say(worker.says_how_it_ended(status));
                self.sweeper_failed(worker.generation, now);
            }
            (Phase::Serving, Some(State::Retiring | State::Old) | None) => {
                self.say(Notice::OldWorkerDied { pid, status });
                self.end_what_it_started(&worker, status);
                self.drop_gone();
            }
        }
        self.save_status();
    }

    fn note_departed(&mut self, worker: &Worker, status: i32, at: Moment) {
        self.history.add_departed(Departed {
            generation: worker.generation,
            pid: worker.pid,
            status,
            at,
        });
    }

    fn deadline_passed(&mut self, now: Moment) {
        match self.phase {
            Phase::Stopping {
                kill_at: Some(at),
                outcome,
            } if at <= now => self.kill_all(outcome),
            Phase::Stopping { .. } => self.kill_due(now),
            Phase::Finished => {}
            Phase::Serving => {
                self.kill_due(now);
                self.fail_late_check(now);
                self.fail_hanging(now);
                self.fail_late(now);
                self.forget_crash_loop(now);
                self.prove_workers(now);
                self.commit_if_proved(now);
                self.promote_if_due(now);
                self.look_at_lanes(now);
                self.signal_retiring(now);
                self.fill_slots(now);
                let planned = self.planned.filter(|_| self.may_start());
                if let Some(planned) = planned.filter(|planned| planned.at <= now) {
                    self.start_generation(planned.why, now);
                }
                self.restart_by_itself(now);
            }
        }
    }

    // Questions.

    /// When something is due for this generation, unless it has been told to stop.
    fn deadline_of(&self, generation: &Generation) -> Option<Moment> {
        let slots = || generation.slots.iter();
        let proofs = slots().filter_map(|slot| self.proved_at(slot));
        let late = slots().filter_map(|slot| self.late_at(slot));
        let hanging = slots().filter_map(Slot::hangs_at).chain(late);
        let looks = generation.quiet.map(|quiet| quiet.look_at);
        match generation.stage {
            Stage::Uncommitted => proofs.chain(hanging).min(),
            Stage::Current => {
                let empty = slots().filter_map(|slot| self.filled_at(slot));
                proofs.chain(hanging).chain(empty).min()
            }
            Stage::Canary { until } => proofs.chain(hanging).chain(until).min(),
            Stage::Retiring { signal_at } => {
                let signal_at = looks.unwrap_or(signal_at);
                let signal_at = self.current_serves().then_some(signal_at);
                proofs.chain(signal_at).min()
            }
            Stage::Sweeping => proofs.chain(hanging).chain(looks).min(),
            Stage::Draining => looks,
            Stage::Partial | Stage::Failed => None,
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "tests fail by panicking, and look at what they are about"
)]
mod tests;
