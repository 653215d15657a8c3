//! Whether a new generation serves, in the sense of `--ready`: its workers or a command say so, or it answers a probe.
//!
//! Nothing is decided here: what is found becomes events for the machine, which commits a generation or fails it.
//!
//! | `--ready` | proof | file |
//! |---|---|---|
//! | `interval` | none here: the machine waits | |
//! | `notify` | `READY=1` on the generation's own socket | [`mod@notify`], [`mod@message`] |
//! | `fd:N` | a line feed on a pipe | [`mod@line`] |
//! | `exec:COMMAND` | a command exits with 0 | [`mod@command`], [`mod@attempts`] |
//! | `accept`, `http:PATH` | the worker's own listener is served | [`mod@probe`], [`mod@trial`], [`mod@http`] |
//!
//! Each slot of a generation has a place of its own, so that no worker can answer for another: [`mod@place`].
//!
//! With `notify`, workers can also leave descriptors for the workers after them: [`mod@store`].
//!
//! With `--watch`, the same goes on for the generation that serves: [`mod@health`].

mod attempts;
pub mod command;
mod handed;
mod health;
pub mod http;
mod line;
mod message;
mod notify;
mod place;
mod private;
mod probe;
mod sender;
mod settings;
mod store;
mod trial;
mod watched;
mod whom;

use std::os::fd::BorrowedFd;

use nix::poll::PollFlags;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use self::store::PackedStore;
use self::watched::{Desk, PackedWatched, Watched};
use crate::host::launcher::Change;
use crate::host::luggage::Luggage;
use crate::host::moment::Moment;
use crate::listeners::dialects::Announced;
use crate::machine::{Event, Machine, State};
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

pub use self::handed::{Handed, Layout, Order, Runner};
pub use self::settings::{ProbeAt, Ready, Settings, Statuses};
pub use self::store::{MOST as MOST_STORED, Store};

/// How far each generation that has workers has got on its way to readiness.
pub struct Readiness {
    pub settings: Settings,
    layout: Layout,
    watched: Vec<Watched>,
    /// What workers have left for the ones after them.
    pub store: Store,
    /// What was found, for the machine.
    found: Vec<Event>,
    notices: Vec<Notice>,
}

/// All of it on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedReadiness {
    watched: Vec<PackedWatched>,
    store: PackedStore,
}

impl Readiness {
    pub fn new(settings: Settings, layout: Layout) -> Readiness {
        let store = Store::new(settings.fd_store_max, layout.listeners, layout.highest);
        Readiness {
            store,
            settings,
            layout,
            watched: Vec::new(),
            found: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// Whether everything that was found and is to be said was taken. It is, unless a worker has just been started.
    pub fn is_settled(&self) -> bool {
        self.found.is_empty() && self.notices.is_empty()
    }

    /// For the next program, without what was found and is to be said: only where [`Readiness::is_settled`] is nothing lost.
    /// Whoever drops the original ends commands and removes sockets nevertheless.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedReadiness {
        PackedReadiness {
            watched: self.watched.iter().map(|it| it.pack(luggage)).collect(),
            store: self.store.pack(luggage),
        }
    }

    /// The same again, with what the command line says.
    pub fn unpack(packed: PackedReadiness, settings: Settings, layout: Layout) -> Readiness {
        let watched = packed.watched.into_iter();
        let watched = watched.map(|it| Watched::unpack(it, &settings)).collect();
        let new = Readiness::new(settings, layout);
        Readiness {
            watched,
            store: Store::unpack(packed.store, new.store),
            ..new
        }
    }

    /// Forgets workers that are gone. Before the next one is started in the place of one.
    pub fn forget_departed(&mut self, machine: &Machine) {
        let watched = self.watched.iter_mut();
        watched.for_each(|watched| watched.forget_departed(|pid| machine.has_worker(pid)));
    }

    /// Prepares what the next worker in this slot of a generation gets.
    ///
    /// # Errors
    /// What cannot be made for it.
    pub fn begin(&mut self, generation: u32, slot: usize) -> Result<Handed, StartFailure> {
        if !self.watched.iter().any(|one| one.generation == generation) {
            self.watched.push(Watched::new(generation, &self.settings)?);
        }
        let mut watched = self.watched.iter_mut();
        match watched.find(|one| one.generation == generation) {
            Some(watched) => watched.begin(slot, &self.settings, &self.layout),
            None => Ok(Handed::default()),
        }
    }

    /// A worker has been started with what was prepared for it, in this environment.
    pub fn started(
        &mut self,
        generation: u32,
        slot: usize,
        pid: Pid,
        handed: Handed,
        changes: &[Change],
    ) {
        let (now, settings) = (Moment::now(), &self.settings);
        let mut watched = self.watched.iter_mut();
        if let Some(watched) = watched.find(|one| one.generation == generation) {
            let known = watched.started(slot, pid, handed.pipe, changes, settings, now);
            self.found
                .extend(known.map(|known| Event::NotYetReady { pid, known }));
        }
    }

    /// The probe listeners of a generation, each as the workers in its slot know it.
    pub fn probes_of(&self, generation: u32) -> Vec<Announced> {
        let mut watched = self.watched.iter();
        let watched = watched.find(|one| one.generation == generation);
        watched.map_or_else(Vec::new, |watched| watched.announced(&self.layout))
    }

    /// What to wait for.
    pub fn sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let watched = self.watched.iter().flat_map(Watched::sources);
        watched.chain(self.store.sources())
    }

    /// When [`Readiness::look`] is due at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        match self.found.is_empty() {
            true => self.watched.iter().filter_map(Watched::deadline).min(),
            // What was found is passed on at once.
            false => Some(Moment::now()),
        }
    }

    /// Looks at everything that may have changed, without waiting for anything. What is found is passed on afterwards.
    /// `ours` are the listeners, with all their lanes.
    pub fn look(&mut self, now: Moment, ours: &[BorrowedFd<'_>], run: &mut Runner<'_>) {
        let (settings, watched, mut desk) = self.desk(now, ours);
        for watched in watched {
            watched.look(settings, run, &mut desk);
        }
        self.store.tidy();
    }

    /// A child has died: if it was a worker, what it has said before counts.
    pub fn read_last_words(&mut self, pid: Pid, now: Moment, ours: &[BorrowedFd<'_>]) {
        let (_, watched, mut desk) = self.desk(now, ours);
        for watched in watched {
            watched.read_last_words(pid, &mut desk);
        }
    }

    fn desk<'a>(
        &'a mut self,
        now: Moment,
        ours: &'a [BorrowedFd<'a>],
    ) -> (&'a Settings, &'a mut [Watched], Desk<'a>) {
        let desk = Desk {
            now,
            store: &mut self.store,
            ours,
            found: &mut self.found,
            notices: &mut self.notices,
        };
        (&self.settings, &mut self.watched, desk)
    }

    /// What was found since the last time.
    pub fn take_found(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.found)
    }

    /// What there is to say since the last time.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Whether this child was a command; if so, its exit has been dealt with.
    pub fn has_exited(&mut self, pid: Pid, status: i32) -> bool {
        let (now, found) = (Moment::now(), &mut self.found);
        let mut watched = self.watched.iter_mut();
        watched.any(|watched| watched.command_exited(pid, status, now, found))
    }

    /// Closes what no generation needs any more, and begins to ask those that serve. After each event.
    pub fn tidy(&mut self, machine: &Machine) {
        let (settings, now) = (&self.settings, Moment::now());
        let is_stopping = machine.is_stopping();
        self.watched.retain_mut(|watched| {
            watched.forget_departed(|pid| machine.has_worker(pid));
            let mut generations = machine.generations();
            let generation = generations.find(|one| one.number == watched.generation);
            let Some(generation) = generation else {
                return false;
            };
            match generation.state() {
                State::Starting | State::Sweeping => {}
                State::Current | State::Canary | State::Partial | State::Retiring
                    if is_stopping =>
                {
                    watched.settle()
                }
                State::Current | State::Canary => {
                    watched.forget_slots(generation);
                    watched.serve(settings, now);
                }
                State::Partial | State::Retiring => {
                    watched.forget_slots(generation);
                    watched.rest();
                }
                State::Old => watched.retire(),
            }
            true
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
