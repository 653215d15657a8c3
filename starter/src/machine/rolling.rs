//! `--rolling`: a restart replaces slot by slot, with at most so many processes more than slots at a time.
//!
//! | what happens | what follows |
//! |---|---|
//! | a worker of the new generation is proved | whoever has the slot of the same number in an older one leaves it, and is told to stop after `--kill-old-delay` |
//! | an old worker dies before its turn | its slot is filled from what its generation was started from, if there is room, until its turn comes |
//! | every slot is taken over | the new generation commits |
//! | a worker of the new generation fails or dies, and none other of it is proved | a failed start: everything is as it was before |
//! | the same, and others of it are proved | the roll stops: its generation is *partial*, and serves in the slots that it has taken over; the others are the older one's again |
//! | a worker of a partial generation dies | its slot is the current generation's again |
//! | a restart while a generation is partial | every worker of all older generations is replaced |
//! | nothing older is current any more | what served last is started again as a whole generation, slot by slot, as whenever nothing serves |
//!
//! A roll that has failed is not tried again by itself.

use nix::unistd::Pid;

use super::generation::{Content, Generation, Leaver, Slot, Stage, State, Why, Worker};
use super::history::Rolled;
use super::model::{Machine, Phase};
use crate::host::moment::Moment;
use crate::words::many::Many;
use crate::words::notice::Notice;

// A roll goes on.

impl Machine {
    /// Whether a generation that is started for this takes over slot by slot.
    pub(super) fn rolls(&self, why: Why) -> bool {
        let holds = |one: &Generation| one.stage.holds_slots();
        let serves = self.generations.iter().any(holds) || self.untold_leavers().next().is_some();
        self.settings.rolling.is_some() && why != Why::First && serves
    }

    /// Every proved worker of a rolling generation takes over its slot.
    pub(super) fn take_over_slots(&mut self, now: Moment) {
        let Some(starting) = self.starting().filter(|starting| starting.rolls) else {
            return;
        };
        let (number, why) = (starting.number, starting.why);
        let places = 0..starting.size();
        let proved: Vec<usize> = places.filter(|place| starting.serves_in(*place)).collect();
        let told_at = now + self.settings.knobs.kill_old_delay;
        let mut left = Vec::new();
        for generation in self
            .generations
            .iter_mut()
            .filter(|one| one.number < number)
        {
            if generation.stage.holds_slots() {
                let left_by = |place: &usize| generation.leave_slot(*place, told_at);
                left.extend(proved.iter().filter_map(left_by));
            }
        }
        if !left.is_empty() {
            self.announce_takeover(why, left);
            self.save_status();
        }
    }

    fn announce_takeover(&mut self, why: Why, pids: Vec<Pid>) {
        if why.is_restart() {
            let signal = self.settings.signal_on_hup;
            let old = pids.clone();
            self.say(Notice::NewWorkerRunning { signal, pids });
            let delay = self.settings.knobs.kill_old_delay;
            if !delay.is_zero() {
                self.say(Notice::Sleeping { delay, old });
            }
        }
    }

    /// Tells workers to stop that have left their slots some time ago, as long as their successors serve, or all that are
    /// left where their slots are gone.
    pub(super) fn tell_leavers(&mut self, now: Moment) {
        if self.phase != Phase::Serving {
            return;
        }
        let (mut due, mut has_successors) = (Vec::new(), false);
        for (number, leaver, at) in self.untold_leavers() {
            let worker = &leaver.worker;
            let is_quiet = leaver.quiet.is_none_or(|quiet| quiet.is_over);
            if at <= now && is_quiet && self.is_succeeded(number, worker.slot) {
                due.push(worker.pid);
                has_successors |= worker.slot < self.settings.workers;
            }
        }
        if due.is_empty() {
            return;
        }
        for generation in &mut self.generations {
            for leaver in &mut generation.leavers {
                leaver.told_at = leaver.told_at.filter(|_| !due.contains(&leaver.worker.pid));
            }
        }
        if has_successors {
            let old = due.clone();
            self.say(Notice::KillingOldWorkers { old });
        }
        let (signal, patience) = (self.settings.signal_on_hup, self.settings.kill_old_timeout);
        self.tell_to_stop(&due, signal, patience, now);
        self.save_status();
    }

    /// When the next of them is told.
    pub(super) fn leaver_told_at(&self) -> Option<Moment> {
        let untold = self.untold_leavers();
        // The others are looked at before.
        let untold = untold.filter(|(_, leaver, _)| leaver.quiet.is_none());
        let succeeded =
            untold.filter(|(number, leaver, _)| self.is_succeeded(*number, leaver.worker.slot));
        succeeded.map(|(_, _, at)| at).min()
    }

    pub(super) fn untold_leavers(&self) -> impl Iterator<Item = (u32, &Leaver, Moment)> {
        self.generations.iter().flat_map(|generation| {
            let untold = |leaver: &'_ Leaver| leaver.told_at.is_some();
            let leavers = generation.leavers.iter().filter(move |one| untold(one));
            leavers.filter_map(|one| Some((generation.number, one, one.told_at?)))
        })
    }

    /// Whether a newer generation serves in this slot, or enough others do where it is gone.
    pub(super) fn is_succeeded(&self, number: u32, slot: usize) -> bool {
        if slot >= self.settings.workers {
            return self.is_complete();
        }
        let mut newer = self.generations.iter().filter(|one| one.number > number);
        newer.any(|one| {
            one.stage.holds_slots_or_starts() && one.unhealthy.is_none() && one.serves_in(slot)
        })
    }
}

// It fails.

impl Machine {
    /// How far a roll has come.
    pub(super) fn rolled(&self, number: u32) -> Option<Rolled> {
        let generation = self.generation(number).filter(|one| one.rolls)?;
        Some(Rolled {
            done: generation.count_proved(),
            of: generation.size(),
        })
    }

    /// The roll has failed. What it has taken over and serves goes on serving; everything else is as before.
    pub(super) fn stop_roll(&mut self, number: u32, now: Moment) {
        let (signal, patience) = (self.settings.signal_on_term, self.patience_with_failed());
        let Some(generation) = self.generation_mut(number) else {
            return;
        };
        let is_partial = generation.serves();
        generation.stage = match is_partial {
            true => Stage::Partial,
            false => Stage::Failed,
        };
        let unproved = generation.leave_unproved();
        self.tell_to_stop(&unproved, signal, patience, now);
        self.return_slots();
        self.drop_gone();
        if let Some(Rolled { done, of }) = self.rolled(number).filter(|_| is_partial) {
            let serving = self.current().map(|current| current.number);
            self.say(Notice::Many(Many::RollStopped {
                generation: number,
                done,
                of,
                serving,
            }));
        }
    }

    /// A worker of a partial generation has died, or cannot exist.
    pub(super) fn partial_lost_worker(&mut self, number: u32, slot: usize, now: Moment) {
        let asked_at = self.slot_mut(number, slot).map(|slot| {
            slot.content = Content::Elsewhere;
            slot.asked_at
        });
        self.return_slots();
        let current = self.current().map(|current| current.number);
        if let (Some(current), Some(asked_at)) = (current, asked_at)
            && let Some(slot) = self.slot_mut(current, slot)
        {
            // At the earliest an interval after it was last filled.
            slot.asked_at = slot.asked_at.max(asked_at);
        }
        self.drop_gone();
        self.fill_slots(now);
    }

    /// Slots that no newer generation has are the current one's again.
    pub(super) fn return_slots(&mut self) {
        let held: Vec<bool> = (0..self.settings.workers)
            .map(|place| self.generations.iter().any(|one| one.holds(place)))
            .collect();
        let current = self.generations.iter_mut();
        for current in current.filter(|one| one.state() == State::Current) {
            for (place, is_held) in held.iter().enumerate() {
                if !is_held {
                    current.take_slot_back(place);
                }
            }
        }
    }

    /// Whether the next worker in this slot is on its way, or serves.
    pub(super) fn has_successor(&self, place: usize) -> bool {
        self.starting().is_some_and(|one| one.goes_on_in(place))
    }
}

// A worker without a slot.

impl Machine {
    pub(super) fn leaver_exited(&mut self, worker: &Worker, status: i32, now: Moment) {
        let pid = worker.pid;
        match self.phase {
            Phase::Serving => {
                self.say(Notice::OldWorkerDied { pid, status });
                self.end_what_it_started(worker, status);
                let number = worker.generation;
                match self.current().filter(|current| current.number == number) {
                    // Perhaps it was the last one that served.
                    Some(_) => self.current_lost_worker(number, Some(status), None, now),
                    None => self.drop_gone(),
                }
            }
            Phase::Stopping { .. } | Phase::Finished => {
                self.say(Notice::WorkerDied { pid, status });
                self.drop_gone();
                self.finish_if_empty();
            }
        }
        self.save_status();
    }

    /// Whether it is one.
    pub(super) fn is_leaver(&self, pid: Pid) -> bool {
        let mut leavers = self.generations.iter().flat_map(|one| &one.leavers);
        leavers.any(|one| one.worker.pid == pid)
    }

    pub(super) fn slot_mut(&mut self, number: u32, place: usize) -> Option<&mut Slot> {
        self.generation_mut(number)?.slots.get_mut(place)
    }
}

impl Stage {
    /// Whether its workers serve until something takes over their slots.
    fn holds_slots(self) -> bool {
        match self {
            Stage::Current | Stage::Partial | Stage::Retiring { .. } => true,
            Stage::Uncommitted
            | Stage::Canary { .. }
            | Stage::Sweeping
            | Stage::Draining
            | Stage::Failed => false,
        }
    }

    fn holds_slots_or_starts(self) -> bool {
        self.holds_slots() || self == Stage::Uncommitted
    }
}

impl Leaver {
    pub(super) fn new(worker: Worker, told_at: Option<Moment>) -> Leaver {
        Leaver {
            worker,
            told_at,
            quiet: None,
        }
    }
}

impl Generation {
    /// Whether what serves has lost the slot of this number to it.
    fn holds(&self, place: usize) -> bool {
        match self.stage {
            Stage::Uncommitted => self.rolls || self.goes_on_in(place),
            Stage::Partial => self.serves_in(place),
            Stage::Current
            | Stage::Canary { .. }
            | Stage::Retiring { .. }
            | Stage::Sweeping
            | Stage::Draining
            | Stage::Failed => false,
        }
    }

    fn goes_on_in(&self, place: usize) -> bool {
        self.slots.get(place).is_some_and(Slot::goes_on)
    }

    /// Another one has the slot of this number. Returns the worker that has left it.
    fn leave_slot(&mut self, place: usize, told_at: Moment) -> Option<Pid> {
        let slot = self.slots.get_mut(place)?;
        let worker = slot.take_worker();
        slot.content = Content::Elsewhere;
        let worker = worker?;
        let pid = worker.pid;
        // Whoever stops by itself need not be told.
        let told_at = (!worker.is_leaving_by_itself()).then_some(told_at);
        self.leavers.push(Leaver::new(worker, told_at));
        Some(pid)
    }

    /// Every slot is another's whose worker is not proved. Returns those workers, who are to be told at once.
    fn leave_unproved(&mut self) -> Vec<Pid> {
        let mut left = Vec::new();
        for slot in &mut self.slots {
            // One that was asked for is told as soon as it exists.
            if slot.worker().is_some_and(Worker::is_proved) || slot.content == Content::AskedFor {
                continue;
            }
            if let Some(worker) = slot.take_worker() {
                left.push(worker.pid);
                let told_at = None;
                self.leavers.push(Leaver::new(worker, told_at));
            }
            slot.content = Content::Elsewhere;
        }
        left
    }

    /// The slot is its own again, with the worker that has left it if that was not told yet.
    pub(super) fn take_slot_back(&mut self, place: usize) {
        let Some(slot) = self.slots.get_mut(place) else {
            return;
        };
        if slot.content != Content::Elsewhere {
            return;
        }
        let mut leavers = self.leavers.iter();
        let is_its = |one: &Leaver| one.worker.slot == place && one.told_at.is_some();
        slot.content = match leavers.position(is_its) {
            Some(place) => Content::Occupied(self.leavers.remove(place).worker),
            None => Content::Empty,
        };
    }
}
