//! `--switch`: every address has several sockets, its lanes, of which one is selected: it gets all new connections. Each
//! generation has a lane, and a commit selects that of the new generation.
//!
//! | what happens | what follows |
//! |---|---|
//! | a generation is started | it gets the first lane that no generation has which still lives; where all are taken, the start waits; where nothing serves, it gets the selected one at once |
//! | another generation becomes current: by a commit, or because what replaced it has died, is unhealthy or is given up | its lane is selected, before anybody is signalled |
//! | one that was replaced is to be told to stop | not before nothing has waited in its lane for `--quiet-time`, or after `--switch-timeout` |
//! | something waits in a lane of which everybody was told to stop or is gone (a handshake that began before the switch, a death) | if it still does after `--quiet-time`, a *sweeper* is started: a worker from what is current, with that lane |
//! | a sweeper is proved, and nothing has waited in its lane for `--quiet-time` | it is told to stop, as old workers are |
//! | a sweeper fails, or does not accept what waits | another one, later and later |
//! | the kernel refuses to select | what is current is given up where there is a way back |
//!
//! So what a worker of a replaced generation has accepted it had time to read, and what it has not accepted is not lost.

use std::time::Duration;

use nix::unistd::Pid;

use super::generation::{Content, Generation, Slot, Stage, State, Why, Worker};
use super::lane::{Quiet, Selection, Stray};
use super::model::{Action, Machine, Phase};
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;
use crate::words::switch::Switching;

/// The shortest time between two looks at a lane.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);

/// How long to wait for a worker that could start something that can serve.
const NOBODY_YET: Duration = Duration::from_secs(1);

// The lane of a new generation.

impl Machine {
    pub(super) fn has_lanes(&self) -> bool {
        self.settings.lanes > 1
    }

    /// Which lane a generation gets that is started now; `None` if it has to wait for one.
    pub(super) fn next_lane(&self) -> Option<u8> {
        if !self.has_lanes() {
            return Some(0);
        }
        let lanes = 0..self.settings.lanes;
        let owners = |lane: u8| self.generations.iter().filter(move |one| one.lane == lane);
        let is_free = |lane: &u8| owners(*lane).next().is_none();
        if self.current().is_some() {
            // What waits there is for a worker that has proved itself, unless that has been tried.
            let is_unclear = |lane: &u8| {
                let mut strays = self.strays.iter();
                strays.any(|one| one.lane == *lane && one.failures == 0)
                    || self.freed.contains(lane)
            };
            return lanes.filter(is_free).find(|lane| !is_unclear(lane));
        }
        // Clients wait: whoever was told to stop is no reason to let them.
        let is_left = |lane: &u8| !owners(*lane).any(Generation::attends);
        let candidates = || std::iter::once(self.selected.main.lane).chain(lanes.clone());
        candidates()
            .find(is_free)
            .or_else(|| candidates().find(is_left))
    }

    /// Whether old workers have all of them.
    pub(super) fn are_lanes_taken(&self) -> bool {
        let is_taken = |lane| self.generations.iter().any(|one| one.lane == lane);
        self.has_lanes() && (0..self.settings.lanes).all(is_taken)
    }

    /// Whether a start is due, and waits for a lane.
    pub(super) fn waits_for_lane(&self, now: Moment) -> bool {
        self.has_lanes() && self.planned.is_some_and(|planned| planned.at <= now)
    }

    /// Says that this is so.
    pub(super) fn announce_wait(&mut self) {
        let generations = self.generations.iter();
        let old = generations.filter(|one| one.state() != State::Current);
        let pids: Vec<Pid> = old.flat_map(Generation::pids).collect();
        self.say(Notice::Switching(Switching::Waiting { pids }));
    }
}

// The switch.

impl Machine {
    /// Who gets what comes.
    pub fn selected(&self) -> Option<&Selection> {
        self.has_lanes().then_some(&self.selected)
    }

    /// The lane of a generation.
    pub fn lane_of(&self, generation: u32) -> u8 {
        self.generation(generation)
            .map_or(self.selected.main.lane, |one| one.lane)
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> u8 {
        self.settings.lanes
    }

    /// How many sockets of each listener a lane has.
    pub fn shards(&self) -> u8 {
        self.settings.shards
    }

    /// The lane of what is current is selected. This comes before any signal to what was.
    pub(super) fn switch_to_current(&mut self) {
        let Some((generation, lane)) = self.current().map(|one| (one.number, one.lane)) else {
            return;
        };
        if !self.has_lanes() {
            return;
        }
        let selection = Selection::whole(generation, lane, self.settings.shards);
        if !selection.is_same(&self.selected) {
            self.actions.push(Action::Select(selection.clone()));
        }
        self.selected = selection;
    }

    /// The kernel has refused.
    pub(super) fn not_selected(&mut self, selected: Selection, cause: StartFailure, now: Moment) {
        let lane = selected.main.lane;
        self.selected = selected;
        if self.is_stopping() {
            return;
        }
        let mut retiring = self.generations.iter().rev();
        let retiring = retiring.find(|one| one.state() == State::Retiring && one.lane == lane);
        let way_back = retiring.is_some_and(Generation::serves);
        let current = self.current().map(|one| one.number);
        // Otherwise nobody serves the other lane, and sweepers do until the next switch.
        if let Some(current) = current.filter(|_| way_back) {
            self.drain(current, now);
            self.current_died(current, None, Some(cause), now);
            self.save_status();
        }
    }
}

// Its end.

impl Machine {
    /// When a generation that was replaced, or is to be, is told to stop: it is looked at from then on, and shortly before.
    pub(super) fn quiet_from(&self, not_before: Moment, now: Moment) -> Option<Quiet> {
        let quiet_time = self.settings.quiet_time;
        // As much of it as possible passes during --kill-old-delay.
        let early = not_before.saturating_since(now).saturating_sub(quiet_time);
        let busy_at = now + early;
        self.has_lanes().then(|| Quiet {
            not_before,
            busy_at,
            look_at: (busy_at + self.look_time()).min(not_before.max(busy_at + quiet_time)),
            is_over: false,
        })
    }

    fn look_time(&self) -> Duration {
        (self.settings.quiet_time / 4).max(SHORTEST_LOOK)
    }

    /// Asks what waits in lanes that are to be looked at.
    pub(super) fn look_at_lanes(&mut self, now: Moment) {
        let next = now + self.look_time();
        let may_end = self.current_serves();
        let mut lanes = Vec::new();
        for generation in &mut self.generations {
            let is_wanted = generation.stage.ends_anyway() || may_end;
            let quiet = generation.quiet.as_mut().filter(|_| is_wanted);
            if let Some(quiet) = quiet.filter(|quiet| quiet.look_at <= now) {
                quiet.look_at = next;
                lanes.push(generation.lane);
            }
        }
        self.forget_strays();
        for stray in &mut self.strays {
            if stray.look_at <= now {
                stray.look_at = now + NOBODY_YET;
                stray.is_looked_at = true;
                lanes.push(stray.lane);
            }
        }
        lanes.sort_unstable();
        lanes.dedup();
        let looks = lanes.into_iter().map(|lane| Action::Look { lane });
        self.actions.extend(looks);
    }

    /// So many sockets of the lane have something to be accepted or received.
    pub(super) fn looked(&mut self, lane: u8, waiting: usize, now: Moment) {
        if self.phase != Phase::Serving {
            return;
        }
        let (quiet_time, timeout) = (self.settings.quiet_time, self.settings.switch_timeout);
        let next = now + self.look_time();
        let may_end = self.current_serves();
        let mut is_late = None;
        for generation in self.generations.iter_mut().filter(|one| one.lane == lane) {
            let is_wanted = generation.stage.ends_anyway() || may_end;
            let is_sweeper = generation.stage == Stage::Sweeping;
            let Some(quiet) = generation.quiet.as_mut().filter(|_| is_wanted) else {
                continue;
            };
            if waiting > 0 {
                quiet.busy_at = quiet.busy_at.max(now);
            }
            let quiet_at = quiet.not_before.max(quiet.busy_at + quiet_time);
            let is_quiet = waiting == 0 && quiet_at <= now;
            let is_timed_out = quiet.not_before + timeout <= now;
            quiet.is_over = is_quiet || is_timed_out;
            if is_timed_out && waiting > 0 {
                is_late = Some(is_sweeper);
            }
            // A timeout comes first, and so does the moment when it can be quiet at the earliest.
            let earliest = quiet_at.min(quiet.not_before + timeout);
            quiet.look_at = if earliest > now {
                next.min(earliest)
            } else {
                next
            };
        }
        if is_late == Some(false) {
            self.say(Notice::Switching(Switching::NotQuiet { waiting }));
        }
        self.signal_retiring(now);
        self.tell_drained(now);
        self.end_sweepers(is_late.is_some(), now);
        self.sweep_if_stray(lane, waiting, now);
    }

    /// Generations that drain, and were not told yet because something waited in their lane.
    fn tell_drained(&mut self, now: Moment) {
        let mut due = Vec::new();
        for generation in &mut self.generations {
            let is_over = generation.quiet.is_some_and(|quiet| quiet.is_over);
            if generation.stage == Stage::Draining && is_over {
                generation.quiet = None;
                due.extend(generation.take_untold());
            }
        }
        if due.is_empty() {
            return;
        }
        let (signal, patience) = (self.settings.signal_on_hup, self.settings.kill_old_timeout);
        self.tell_to_stop(&due, signal, patience, now);
        self.kill_surplus();
        self.save_status();
    }

    /// When the next look at any lane is due.
    pub(super) fn looks_at(&self) -> Option<Moment> {
        let strays = self
            .strays
            .iter()
            .filter(|one| self.is_unattended(one.lane));
        strays.map(|stray| stray.look_at).min()
    }
}

// Lanes that nobody serves.

impl Machine {
    /// Lanes in which nobody accepts anything, and nothing has waited so far: [`super::Event::Stranded`] says when it does.
    pub fn watched_lanes(&self) -> impl Iterator<Item = u8> {
        let lanes = (0..self.settings.lanes).filter(|_| self.has_lanes());
        lanes.filter(|lane| {
            self.is_unattended(*lane) && !self.strays.iter().any(|stray| stray.lane == *lane)
        })
    }

    /// Whether something serves, and nobody in this lane.
    fn is_unattended(&self, lane: u8) -> bool {
        let serves = self.phase == Phase::Serving && self.current().is_some();
        let mut owners = self.generations.iter().filter(|one| one.lane == lane);
        serves && !owners.any(Generation::attends)
    }

    /// At the end of each event: whoever had these lanes cannot accept anything any more.
    pub(super) fn look_at_freed(&mut self, now: Moment) {
        for lane in std::mem::take(&mut self.freed) {
            let is_known = self.strays.iter().any(|stray| stray.lane == lane);
            if self.is_unattended(lane) && !is_known {
                self.strays.push(Stray {
                    lane,
                    look_at: now + NOBODY_YET,
                    is_looked_at: true,
                    failures: 0,
                });
                self.actions.push(Action::Look { lane });
            }
        }
    }

    /// Something waits in a lane that nobody serves. Whoever was told to stop may still accept it.
    pub(super) fn stranded(&mut self, lane: u8, now: Moment) {
        if lane < self.settings.lanes && self.watched_lanes().any(|one| one == lane) {
            self.strays.push(Stray {
                lane,
                look_at: now + self.settings.quiet_time.max(SHORTEST_LOOK),
                is_looked_at: false,
                failures: 0,
            });
        }
    }

    /// Whoever has such a lane by now serves it.
    fn forget_strays(&mut self) {
        let mut strays = std::mem::take(&mut self.strays);
        strays.retain(|stray| {
            let mut owners = self.generations.iter().filter(|one| one.lane == stray.lane);
            // The failures of its sweepers count until one of them has served it.
            self.is_unattended(stray.lane) || owners.any(|one| one.stage == Stage::Sweeping)
        });
        self.strays = strays;
    }

    /// It still waits, or does no longer.
    fn sweep_if_stray(&mut self, lane: u8, waiting: usize, now: Moment) {
        let mut strays = self.strays.iter_mut();
        let stray = strays.find(|stray| stray.lane == lane);
        let is_asked = stray.is_some_and(|stray| std::mem::take(&mut stray.is_looked_at));
        if !is_asked || !self.is_unattended(lane) {
            return;
        }
        let serving = self.current().filter(|current| current.serves());
        match (waiting, serving.map(|current| current.number)) {
            (0, _) => self.strays.retain(|stray| stray.lane != lane),
            (_, None) => {}
            (_, Some(current)) => {
                self.say(Notice::Switching(Switching::Sweeping { waiting, lane }));
                self.start_sweeper(lane, current, now);
            }
        }
    }

    fn start_sweeper(&mut self, lane: u8, current: u32, now: Moment) {
        self.last_number = self.last_number.saturating_add(1);
        let number = self.last_number;
        let mut sweeper = Generation::new(number, Why::Sweep, 0, 1, now);
        sweeper.stage = Stage::Sweeping;
        sweeper.lane = lane;
        sweeper.slots = vec![Slot::new(Content::AskedFor, now)];
        self.generations.push(sweeper);
        self.actions.push(Action::Spawn {
            generation: number,
            slot: 0,
            from: self.source_within(current),
        });
        self.save_status();
    }

    /// At the end of each event: one that is proved serves until nothing has waited for a while.
    pub(super) fn watch_sweepers(&mut self, now: Moment) {
        let quiet = self.quiet_from(now, now);
        for generation in &mut self.generations {
            let is_new = generation.stage == Stage::Sweeping && generation.quiet.is_none();
            if is_new && generation.serves() {
                generation.quiet = quiet;
            }
        }
    }

    /// Nothing waits there any more, or it does not take what does.
    fn end_sweepers(&mut self, is_late: bool, now: Moment) {
        let over = self.generations.iter_mut().filter(|one| {
            one.stage == Stage::Sweeping && one.quiet.is_some_and(|quiet| quiet.is_over)
        });
        let mut ended = Vec::new();
        for generation in over {
            generation.stage = Stage::Draining;
            generation.quiet = None;
            ended.push((generation.lane, generation.take_untold()));
        }
        for (lane, pids) in ended {
            let patience = match is_late {
                true => {
                    self.not_swept(lane, now);
                    self.patience_with_failed()
                }
                false => {
                    self.strays.retain(|stray| stray.lane != lane);
                    self.settings.kill_old_timeout
                }
            };
            let signal = self.settings.signal_on_hup;
            self.tell_to_stop(&pids, signal, patience, now);
            self.save_status();
        }
    }

    /// A sweeper could not be started, or has died.
    pub(super) fn sweeper_failed(&mut self, number: u32, now: Moment) {
        if let Some(sweeper) = self.generation_mut(number) {
            sweeper.stage = Stage::Failed;
            let lane = sweeper.lane;
            self.not_swept(lane, now);
        }
        self.drop_gone();
        self.save_status();
    }

    fn not_swept(&mut self, lane: u8, now: Moment) {
        let failures = self.strays.iter().find(|stray| stray.lane == lane);
        let failures = failures.map_or(0, |stray| stray.failures).saturating_add(1);
        self.strays.retain(|stray| stray.lane != lane);
        self.strays.push(Stray {
            lane,
            look_at: now + self.backoff(failures),
            is_looked_at: false,
            failures,
        });
        self.say(Notice::Switching(Switching::NotSwept { lane }));
    }
}

impl Stage {
    /// Whether its end depends on nobody else.
    fn ends_anyway(self) -> bool {
        match self {
            Stage::Draining | Stage::Sweeping => true,
            Stage::Uncommitted
            | Stage::Current
            | Stage::Partial
            | Stage::Retiring { .. }
            | Stage::Failed => false,
        }
    }
}

impl Generation {
    /// Whether it accepts what comes to its lane, or is about to.
    pub(super) fn attends(&self) -> bool {
        match self.stage {
            Stage::Uncommitted
            | Stage::Current
            | Stage::Partial
            | Stage::Retiring { .. }
            | Stage::Sweeping => true,
            Stage::Draining => self.quiet.is_some(),
            Stage::Failed => false,
        }
    }

    /// Whether it is there only for what was left in a lane.
    pub fn is_sweeper(&self) -> bool {
        self.why == Why::Sweep
    }
}

impl Worker {
    /// Of a sweeper.
    pub(super) fn says_how_it_ended(&self, status: i32) -> Notice {
        let pid = self.pid;
        match self.has_served() {
            true => Notice::DiedUnexpectedly { pid, status },
            false => Notice::FailedToStart { pid, status },
        }
    }
}
