//! The lanes of all listeners: which socket is whose, and which of them gets new connections.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};
use crate::listeners::group::{Group, Selected, look_at};
use crate::listeners::program::Spread;
use crate::listeners::settings::Switch;
use crate::listeners::socket_files::SocketFiles;
use crate::listeners::store::{Store, name_of_lane};
use crate::machine::{Selection, Share, Sockets};

/// A socket with its number in the workers.
pub type Placed = (OwnedFd, RawFd);

/// For each listener, in the order of the sockets, its group if it has lanes. All others are shared by all generations.
#[derive(Debug)]
pub struct Lanes {
    groups: Vec<Option<Group>>,
    /// How many sockets of each group a lane has.
    shards: u8,
    /// How new traffic is spread over these.
    spread: Spread,
    /// Who gets new traffic.
    selected: Selection,
}

/// The group of a listener for the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedGroup {
    others: Vec<Carried>,
    places: Vec<u8>,
    listens: bool,
    deaf: Vec<u8>,
    stored_as: Option<String>,
    #[serde(default)]
    flows: Option<u8>,
    #[serde(default)]
    idle: Option<Carried>,
}

/// New connections of a listener, by its place among all, could not be given to another lane. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotSelected {
    pub listener: usize,
    pub errno: Errno,
}

impl Default for Lanes {
    fn default() -> Lanes {
        Lanes::new(Vec::new(), None)
    }
}

impl Lanes {
    /// Uses as many lanes of each group as every group has. A lane has as many shards as are wanted, or fewer if there
    /// are not enough sockets for two such lanes.
    pub fn new(groups: Vec<Option<Group>>, switch: Option<Switch>) -> Lanes {
        let least = groups.iter().flatten().map(Group::count).min();
        let (shards, spread) = switch.map_or((1, Spread::Random), |one| (one.shards, one.spread));
        let shards = least.map_or(1, |least| shards.clamp(1, (least / 2).max(1)));
        // As groups are made.
        let selected = Selection::whole(0, 0, 1);
        Lanes {
            groups,
            shards,
            spread,
            selected,
        }
    }

    /// How many lanes every group has, or 1 if there is none.
    pub fn count(&self) -> u8 {
        let least = self.groups.iter().flatten().map(Group::count).min();
        least.map_or(1, |least| least / self.shards)
    }

    /// How many sockets of each group a lane has.
    pub fn shards(&self) -> u8 {
        self.shards
    }

    /// The CPUs, of those that are allowed, for the worker that has this shard: it gets the packets that they take. `None` if
    /// it may run on any.
    ///
    /// # Errors
    /// Of sched_getaffinity(2).
    pub fn cpus(&self, shard: u8) -> nix::Result<Option<CpuSet>> {
        if self.spread != Spread::Cpu {
            return Ok(None);
        }
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut its = CpuSet::new();
        let (shards, shard) = (usize::from(self.shards.max(1)), usize::from(shard));
        let mut has_any = false;
        for cpu in (0..CpuSet::count()).filter(|cpu| cpu % shards == shard) {
            if allowed.is_set(cpu)? {
                its.set(cpu)?;
                has_any = true;
            }
        }
        Ok(has_any.then_some(its))
    }

    /// The number of a socket in each group.
    fn number(&self, lane: u8, shard: u8) -> u8 {
        Sockets::of_lane(lane, self.shards)
            .first
            .saturating_add(shard)
    }

    /// Those of all sockets of a lane.
    fn numbers(&self, lane: u8) -> impl Iterator<Item = u8> + use<> {
        Sockets::of_lane(lane, self.shards).numbers()
    }

    /// The socket of the listener in this place for whoever has the shard of the lane.
    fn socket<'a>(&'a self, place: usize, first: &'a OwnedFd, lane: u8, shard: u8) -> &'a OwnedFd {
        let group = self.groups.get(place).and_then(Option::as_ref);
        group.map_or(first, |group| group.lane(first, self.number(lane, shard)))
    }

    /// The same of all listeners.
    pub fn sockets<'a>(
        &'a self,
        firsts: &'a [Placed],
        (lane, shard): (u8, u8),
    ) -> impl Iterator<Item = &'a OwnedFd> + Clone {
        let firsts = firsts.iter().enumerate();
        firsts.map(move |(place, (first, _))| self.socket(place, first, lane, shard))
    }

    /// Those of a worker that serves or `sweeps` the lane. Where packets of flows still go to workers of the lane that were
    /// told to stop, a sweeper must not take them.
    pub fn of_worker<'a>(
        &'a self,
        firsts: &'a [Placed],
        lane: (u8, u8),
        sweeps: bool,
    ) -> impl Iterator<Item = &'a OwnedFd> {
        let groups = self.groups.iter().map(Option::as_ref);
        let groups = groups.chain(std::iter::repeat(None));
        let sockets = self.sockets(firsts, lane).zip(groups);
        sockets.map(move |(socket, group)| {
            let idle = group.and_then(|group| group.idle.as_ref());
            idle.filter(|_| sweeps).unwrap_or(socket)
        })
    }

    /// The number that a worker puts into its connection IDs; `None` if it shares its sockets with all.
    pub fn announced(&self, (lane, shard): (u8, u8)) -> Option<u8> {
        (self.count() > 1).then(|| self.number(lane, shard))
    }

    /// Whether packets of flows can name their lane anywhere.
    pub fn have_flows(&self) -> bool {
        self.groups.iter().flatten().any(|one| one.flows.is_some())
    }

    /// Every socket of every listener.
    pub fn all<'a>(&'a self, firsts: &'a [Placed]) -> Vec<BorrowedFd<'a>> {
        let others = self.groups.iter().flatten().flat_map(|one| &one.others);
        let firsts = firsts.iter().map(|(first, _)| first);
        firsts.chain(others).map(AsFd::as_fd).collect()
    }

    /// These of each group, except those that could not listen again, and those where flows name their socket: what waits
    /// there is for the worker that knows these flows, and clients begin new ones again.
    pub fn own<'a>(
        &'a self,
        firsts: &'a [Placed],
        sockets: Sockets,
    ) -> impl Iterator<Item = BorrowedFd<'a>> {
        let groups = firsts.iter().zip(&self.groups);
        let groups = groups.filter_map(|((first, _), group)| Some((first, group.as_ref()?)));
        let groups = groups.filter(|(_, group)| group.flows.is_none());
        groups.flat_map(move |(first, group)| {
            let numbers = sockets.numbers().filter(|one| !group.deaf.contains(one));
            numbers.map(move |number| group.lane(first, number).as_fd())
        })
    }

    /// How many of them have something to accept or receive.
    pub fn count_waiting(&self, firsts: &[Placed], sockets: Sockets) -> usize {
        look_at(self.own(firsts, sockets)).0
    }

    /// Whether any of them has been shut down.
    pub fn is_shut_down(&self, firsts: &[Placed], sockets: Sockets) -> bool {
        look_at(self.own(firsts, sockets)).1
    }

    /// Who gets new traffic.
    pub fn selected(&self) -> &Selection {
        &self.selected
    }

    /// Gives new traffic to these, one listener after the other. If that fails for one of them, those before it go
    /// back to whoever had them.
    pub fn select(&mut self, firsts: &[Placed], selection: &Selection) -> Result<(), NotSelected> {
        let (wanted, before) = (self.chosen(selection), self.chosen(&self.selected));
        let groups = firsts.iter().zip(&self.groups);
        let groups = groups.map(|((first, _), group)| (first, group.as_ref()));
        let mut done: Vec<(&OwnedFd, &Group)> = Vec::new();
        for (listener, (first, group)) in groups.enumerate() {
            let Some(group) = group else { continue };
            if let Err(errno) = group.select(first, &wanted) {
                for (first, group) in done {
                    // If that fails as well, the next switch mends it.
                    let _ = group.select(first, &before);
                }
                return Err(NotSelected { listener, errno });
            }
            done.push((first, group));
        }
        let before = std::mem::replace(&mut self.selected, selection.clone());
        if before.flows != selection.flows {
            self.empty_without_flows(firsts);
        }
        Ok(())
    }

    /// The next generation in such a lane knows nothing of what has arrived for others.
    fn empty_without_flows(&self, firsts: &[Placed]) {
        let flows = &self.selected.flows;
        let lanes = (0..self.count()).filter(|lane| !flows.contains(lane));
        let numbers: Vec<u8> = lanes.flat_map(|lane| self.numbers(lane)).collect();
        for ((first, _), group) in firsts.iter().zip(&self.groups) {
            let group = group.as_ref().filter(|group| group.flows.is_some());
            for (group, number) in numbers.iter().filter_map(|it| Some((group?, it))) {
                group.empty(first, *number);
            }
        }
    }

    /// By the numbers of the sockets.
    fn chosen(&self, selection: &Selection) -> Selected {
        let of = |share: &Share| {
            let shards = share.shards.iter();
            shards
                .map(|shard| self.number(share.lane, *shard))
                .collect()
        };
        let canary = selection.canary.as_ref();
        let flows = selection.flows.iter();
        Selected {
            main: of(&selection.main),
            canary: canary.map(|one| (of(&one.share), one.percent, one.by)),
            spread: self.spread,
            flows: flows.flat_map(|lane| self.numbers(*lane)).collect(),
        }
    }

    /// Lets every lane that was shut down listen again, as `again` does it for a listener in its place. Returns the places of
    /// the listeners whose selected lane was shut down.
    pub fn listen_again(
        &mut self,
        firsts: &[Placed],
        files: &mut SocketFiles,
        again: impl Fn(usize, &OwnedFd) -> nix::Result<()>,
    ) -> Vec<usize> {
        let mut missed = Vec::new();
        let selected = self.chosen(&self.selected);
        for (place, ((first, _), group)) in firsts.iter().zip(&mut self.groups).enumerate() {
            let Some(group) = group else { continue };
            let mended = group.listen_again(first, |socket| again(place, socket));
            if mended.is_empty() {
                continue;
            }
            // The places have changed. If that fails, the next switch mends it.
            let _ = group.select(first, &selected);
            if let Some(store) = &mut files.store {
                store_again(group, first, store);
            }
            if mended.iter().any(|one| selected.main.contains(one)) {
                missed.push(place);
            }
        }
        missed
    }

    /// This one of each group is never looked at again where it could not listen again.
    pub fn give_up_shut_down(&mut self, firsts: &[Placed], number: u8) {
        for ((first, _), group) in firsts.iter().zip(&mut self.groups) {
            let Some(group) = group else { continue };
            let socket = group.lane(first, number).as_fd();
            if look_at(std::iter::once(socket)).1 && !group.deaf.contains(&number) {
                group.deaf.push(number);
            }
        }
    }

    /// The group of the listener in this place, if it has lanes.
    pub fn group(&self, place: usize) -> Option<&Group> {
        self.groups.get(place).and_then(Option::as_ref)
    }

    pub fn pack(&self, luggage: &mut Luggage) -> Vec<Option<PackedGroup>> {
        let mut pack = |group: &Group| PackedGroup {
            others: group.others.iter().map(|one| luggage.put(one)).collect(),
            places: group.places.clone(),
            listens: group.listens,
            deaf: group.deaf.clone(),
            stored_as: group.stored_as.clone(),
            flows: group.flows,
            idle: group.idle.as_ref().map(|one| luggage.put(one)),
        };
        let groups = self.groups.iter();
        groups.map(|group| group.as_ref().map(&mut pack)).collect()
    }

    /// What another program has packed. One must be selected again.
    pub fn unpack(packed: Vec<Option<PackedGroup>>, switch: Option<Switch>) -> Lanes {
        let unpack = |packed: PackedGroup| Group {
            others: packed.others.into_iter().map(Carried::take).collect(),
            places: packed.places,
            listens: packed.listens,
            deaf: packed.deaf,
            stored_as: packed.stored_as,
            flows: packed.flows,
            idle: packed.idle.map(Carried::take),
        };
        let groups = packed.into_iter().map(|group| group.map(unpack));
        Lanes::new(groups.collect(), switch)
    }
}

/// Under the names of the places that they have now.
fn store_again(group: &Group, first: &OwnedFd, store: &mut Store) {
    let Some(name) = &group.stored_as else {
        return;
    };
    let name_of = |place: usize| match place {
        0 => name.clone(),
        _ => name_of_lane(name, place),
    };
    // The manager does not store a socket that it has by another name.
    for place in 0..usize::from(group.count()) {
        store.remove(name_of(place).as_ref());
    }
    for (place, lane) in group.places.iter().enumerate() {
        store.keep(&name_of(place), group.lane(first, *lane));
    }
}
