//! `--switch`: every address has several lanes, of which one is selected: it gets all new traffic (new connections, and
//! datagrams of no known flow). Each generation has a lane, and a commit selects that of the new generation.
//!
//! | what happens | what follows |
//! |---|---|
//! | a generation is started | it gets the first lane that no living generation has; where all are taken, the start waits; where nothing serves, it gets the selected one at once |
//! | another generation becomes current: by a commit, or because what replaced it has died, is unhealthy or is given up | its lane is selected, before anybody is signalled |
//! | one that was replaced is to be told to stop | once nothing has waited in its lane for `--quiet-time`, or after `--switch-timeout` |
//! | a generation that was selected is gone | packets of its flows (UDP, QUIC) count as new; until then they go to its lane |
//! | the kernel refuses to select | what is current is given up where there is a way back |
//!
//! A lane has one socket, or a shard for each of several slots: see [`super::shards`]. What nobody accepts any more is left
//! to [`super::sweep`].
//!
//! So a worker of a replaced generation has time to read what it has accepted, and what it has not accepted is not lost.

use std::collections::BTreeSet;

use nix::unistd::Pid;

use super::generation::{Content, Generation, Slot, Stage, State, Why, Worker};
use super::lane::{Quiet, Selection, Share, Sockets, look_time};
use super::model::{Action, Machine, Phase, Settings};
use crate::host::moment::Moment;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;
use crate::words::switch::Switching;

// The lane of a new generation.

impl Machine {
    pub(super) fn has_lanes(&self) -> bool {
        self.settings.lanes > 1
    }

    /// The lane of a generation that is started now; `None` if it has to wait for one.
    pub(super) fn next_lane(&self) -> Option<u8> {
        if !self.has_lanes() {
            return Some(0);
        }
        let lanes = 0..self.settings.lanes;
        let owners = |lane: u8| self.generations.iter().filter(move |one| one.lane == lane);
        let is_free = |lane: &u8| owners(*lane).next().is_none();
        if self.current().is_some() {
            // Only a worker that has proved itself should get what waits there, unless that has been tried.
            let is_unclear = |lane: &u8| {
                let its: Vec<u8> = self.sockets_of(*lane).numbers().collect();
                let mut strays = self.strays.iter();
                strays.any(|one| its.contains(&one.socket) && one.failures == 0)
                    || self.freed.contains(lane)
            };
            return lanes.filter(is_free).find(|lane| !is_unclear(lane));
        }
        // Clients wait, and workers that were told to stop are no reason to let them.
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
        self.save_status();
    }
}

// The switch.

impl Machine {
    /// Who gets new traffic.
    pub fn selected(&self) -> Option<&Selection> {
        self.has_lanes().then_some(&self.selected)
    }

    /// The lane of a generation, and which of its sockets the slot has: several slots can have the same.
    pub fn lane_and_shard(&self, generation: u32, slot: usize) -> (u8, u8) {
        match self.generation(generation) {
            Some(one) => (one.lane, one.shard_of(slot, self.settings.shards)),
            None => (self.selected.main.lane, 0),
        }
    }

    /// The sockets of a lane.
    pub(super) fn sockets_of(&self, lane: u8) -> Sockets {
        Sockets::of_lane(lane, self.settings.shards)
    }

    /// Whether a generation is there only for what was left in its lane.
    pub fn sweeps(&self, generation: u32) -> bool {
        let generation = self.generation(generation);
        generation.is_some_and(Generation::is_sweeper)
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
        let Some(wanted) = self.wanted().filter(|_| self.has_lanes()) else {
            return;
        };
        if wanted.is_same(&self.selected) && wanted.flows == self.selected.flows {
            self.selected = wanted;
            self.refused = None;
        } else if !self
            .refused
            .as_ref()
            .is_some_and(|one| one.is_same(&wanted))
        {
            self.refused = None;
            self.selected = wanted.clone();
            self.actions.push(Action::Select(wanted));
        }
    }

    /// Who is to get new traffic.
    fn wanted(&self) -> Option<Selection> {
        let current = self.current()?;
        let wanted = Selection {
            main: self.share_of(current),
            canary: self.share_of_canary(),
            flows: Vec::new(),
        };
        Some(Selection {
            flows: self.flows_of(&wanted),
            ..wanted
        })
    }

    /// At the end of each event: by now other workers of what is current may serve.
    pub(super) fn select_who_serves(&mut self) {
        if self.settings.shards > 1 && self.phase == Phase::Serving {
            self.switch_to_current();
        }
    }

    /// The sockets of those workers of a generation that can serve new traffic.
    pub(super) fn share_of(&self, generation: &Generation) -> Share {
        let shards = self.settings.shards;
        let proved = |one: &&Worker| one.is_proved();
        let in_slots = generation.in_slots().filter(proved).map(|one| one.slot);
        let untold = generation
            .leavers
            .iter()
            .filter(|one| one.told_at.is_some());
        let leavers = untold.map(|one| &one.worker).filter(proved);
        let leavers = leavers.map(|one| one.slot);
        let sets: [Vec<usize>; 3] = [
            in_slots.collect(),
            // Where the slots of all that serve are gone, until others do.
            leavers.collect(),
            (0..generation.size()).collect(),
        ];
        let slots = sets.into_iter().find(|slots| !slots.is_empty());
        let slots = slots.unwrap_or_default().into_iter();
        let its: BTreeSet<u8> = slots
            .map(|slot| generation.shard_of(slot, shards))
            .collect();
        // A sweeper ends when nothing arrives at its socket any more.
        let sweepers = self
            .generations
            .iter()
            .filter(|one| one.stage == Stage::Sweeping);
        let sweepers = sweepers.filter(|one| one.lane == generation.lane);
        let swept: BTreeSet<u8> = sweepers.map(|one| one.shard).collect();
        let unswept: Vec<u8> = its.difference(&swept).copied().collect();
        Share {
            generation: generation.number,
            lane: generation.lane,
            shards: match unswept.is_empty() {
                true => its.into_iter().collect(),
                false => unswept,
            },
        }
    }

    /// Which lanes get the packets of flows that name them. A lane that has never been selected has no flows, and must not be
    /// reached; packets to a lane whose generation is gone would wait for ever.
    fn flows_of(&self, selection: &Selection) -> Vec<u8> {
        if !self.settings.flows {
            return Vec::new();
        }
        let owners = self.generations.iter().filter(|one| !one.is_sweeper());
        let owned: Vec<u8> = owners.map(|one| one.lane).collect();
        let before = self.selected.flows.iter().copied();
        let before = before.filter(|lane| owned.contains(lane));
        let mut flows: Vec<u8> = before
            .chain(selection.shares().map(|one| one.lane))
            .collect();
        flows.sort_unstable();
        flows.dedup();
        flows
    }

    /// Generations are gone, and so are their flows; or the kernel has others.
    pub(super) fn end_flows(&mut self) {
        let flows = self.flows_of(&self.selected);
        let is_serving = self.phase == Phase::Serving && self.has_served();
        if is_serving && flows != self.selected.flows {
            self.selected.flows = flows;
            self.actions.push(Action::Select(self.selected.clone()));
        }
    }

    /// The kernel has refused.
    pub(super) fn not_selected(&mut self, selected: Selection, cause: StartFailure, now: Moment) {
        let lane = selected.main.lane;
        self.refused = Some(std::mem::replace(&mut self.selected, selected));
        if self.is_stopping() {
            return;
        }
        // What the kernel has may date from before others were gone.
        self.end_flows();
        if let Some(canary) = self.unselected_canary() {
            return self.canary_failed(canary, None, Some(cause), now);
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
    /// When a generation that was replaced, or is to be, may be told to stop: its sockets are looked at from shortly before.
    pub(super) fn quiet_from(&self, not_before: Moment, now: Moment) -> Option<Quiet> {
        let quiet_time = self.settings.quiet_time;
        // As much of it as possible passes during --kill-old-delay.
        let early = not_before.saturating_since(now).saturating_sub(quiet_time);
        let busy_at = now + early;
        self.has_lanes().then(|| Quiet {
            not_before,
            busy_at,
            look_at: (busy_at + look_time(quiet_time)).min(not_before.max(busy_at + quiet_time)),
            is_over: false,
        })
    }

    /// Asks what waits in sockets whose look is due.
    pub(super) fn look_at_lanes(&mut self, now: Moment) {
        let next = now + look_time(self.settings.quiet_time);
        let (may_end, shards) = (self.current_serves(), self.settings.shards);
        let mut looks: Vec<Sockets> = Vec::new();
        for generation in &mut self.generations {
            let is_wanted = generation.stage.ends_anyway() || may_end;
            let quiet = generation.quiet.as_mut().filter(|_| is_wanted);
            if let Some(quiet) = quiet.filter(|quiet| quiet.look_at <= now) {
                quiet.look_at = next;
                looks.push(generation.its_sockets(shards));
            }
        }
        looks.extend(self.looks_at_leavers(now));
        looks.extend(self.looks_at_strays(now));
        looks.sort_unstable_by_key(|sockets| (sockets.first, sockets.count));
        looks.dedup();
        self.actions.extend(looks.into_iter().map(Action::Look));
    }

    /// This many of the sockets have something to accept or receive.
    pub(super) fn looked(&mut self, sockets: Sockets, waiting: usize, now: Moment) {
        if self.phase != Phase::Serving {
            return;
        }
        let Settings {
            quiet_time,
            switch_timeout,
            shards,
            ..
        } = self.settings;
        let may_end = self.current_serves();
        let mut is_late = None;
        let generations = self.generations.iter_mut();
        for generation in generations.filter(|one| one.its_sockets(shards) == sockets) {
            let is_wanted = generation.stage.ends_anyway() || may_end;
            let is_sweeper = generation.stage == Stage::Sweeping;
            let Some(quiet) = generation.quiet.as_mut().filter(|_| is_wanted) else {
                continue;
            };
            if quiet.looked(waiting, quiet_time, switch_timeout, now) {
                is_late = Some(is_sweeper);
            }
        }
        if self.looked_at_leavers(sockets, waiting, now) || is_late == Some(false) {
            self.say(Notice::Switching(Switching::NotQuiet { waiting }));
        }
        self.signal_retiring(now);
        self.tell_drained(now);
        self.end_sweepers(is_late.is_some(), now);
        self.sweep_if_stray(sockets, waiting, now);
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
}

impl Stage {
    /// Whether its end depends on nobody else.
    fn ends_anyway(self) -> bool {
        match self {
            Stage::Draining | Stage::Sweeping => true,
            Stage::Uncommitted
            | Stage::Current
            | Stage::Canary { .. }
            | Stage::Partial
            | Stage::Retiring { .. }
            | Stage::Failed => false,
        }
    }
}

impl Generation {
    /// Whether it accepts what arrives at its sockets, or is about to.
    pub(super) fn attends(&self) -> bool {
        match self.stage {
            Stage::Uncommitted
            | Stage::Current
            | Stage::Canary { .. }
            | Stage::Partial
            | Stage::Retiring { .. }
            | Stage::Sweeping => true,
            Stage::Draining => self.quiet.is_some(),
            Stage::Failed => false,
        }
    }

    /// Whether it accepts what arrives at this socket, or is about to.
    pub(super) fn attends_to(&self, socket: u8, shards: u8) -> bool {
        let is_its = |slot: usize| {
            let lane = Sockets::of_lane(self.lane, shards);
            lane.first.saturating_add(self.shard_of(slot, shards)) == socket
        };
        let mut slots = self.slots.iter().enumerate();
        let mut leavers = self.leavers.iter().filter(|one| one.told_at.is_some());
        self.attends()
            && (slots.any(|(place, slot)| is_its(place) && self.may_fill(slot))
                || leavers.any(|one| is_its(one.worker.slot)))
    }

    /// Whether the slot has a worker or may get one: a slot whose worker ended for its successor does if that fails.
    fn may_fill(&self, slot: &Slot) -> bool {
        let is_current = self.stage == Stage::Current;
        slot.is_wanted() || (is_current && slot.content == Content::Elsewhere)
    }

    /// Which of the sockets of its lane the slot has.
    pub(super) fn shard_of(&self, slot: usize, shards: u8) -> u8 {
        let shard = (usize::from(self.shard) + slot) % usize::from(shards.max(1));
        u8::try_from(shard).unwrap_or(0)
    }

    /// All that its workers can have.
    pub(super) fn its_sockets(&self, shards: u8) -> Sockets {
        let lane = Sockets::of_lane(self.lane, shards);
        match self.is_sweeper() {
            true => Sockets::one(lane.first.saturating_add(self.shard)),
            false => lane,
        }
    }

    /// Whether it is there only for what was left in a lane.
    pub fn is_sweeper(&self) -> bool {
        self.why == Why::Sweep
    }
}
