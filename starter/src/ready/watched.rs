//! One generation on its way to readiness, and what is kept of it afterwards.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::unistd::{Pid, getuid};
use serde::{Deserialize, Serialize};

use super::handed::{Handed, Layout, Runner};
use super::health::{Answer, Health};
use super::line::{self, Pipe};
use super::message::Message;
use super::notify::{PackedSocket, Received, Socket};
use super::place::{PackedPlace, Place, above};
use super::sender::worker_of;
use super::settings::{Ready, Settings};
use super::store::{Refusal, Store};
use super::whom::Whom;
use crate::host::launcher::Change;
use crate::host::luggage::{Carried, Luggage};
use crate::host::moment::Moment;
use crate::listeners::dialects::Announced;
use crate::machine::{Event, Generation};
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

/// How much more time a worker can ask for at once.
const LONGEST_EXTENSION: Duration = Duration::from_secs(3600);

/// How many datagrams one look reads at most, so that signals do not have to wait.
const MOST_AT_ONCE: usize = 64;

/// How many are read when a worker has died: more than the queue of a socket holds (`net.unix.max_dgram_qlen`).
const MOST_LAST_WORDS: usize = 4096;

/// Where what workers say goes.
pub struct Desk<'a> {
    pub now: Moment,
    pub store: &'a mut Store,
    /// The listeners, with their numbers in the workers.
    pub ours: &'a [BorrowedFd<'a>],
    pub found: &'a mut Vec<Event>,
    pub notices: &'a mut Vec<Notice>,
}

/// Everything that belongs to one generation.
pub struct Watched {
    pub generation: u32,
    workers: Vec<Pid>,
    socket: Option<Socket>,
    pipes: Vec<(Pid, Pipe)>,
    /// One for each of its slots that has had a worker.
    places: Vec<Place>,
    /// Whether it is on its way to its commit.
    is_new: bool,
    /// Whether it has been told that it is well, and nothing else since.
    is_well: bool,
    /// Whether an ignored notification has been logged: once is enough.
    has_complained: bool,
    /// What its workers have been refused, likewise.
    refusals: BTreeSet<Refusal>,
}

/// A generation on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedWatched {
    generation: u32,
    /// Their pids.
    workers: Vec<i32>,
    socket: Option<PackedSocket>,
    pipes: Vec<(i32, Carried)>,
    /// Its fields are among these: once, a generation had a single place.
    #[serde(flatten)]
    first: PackedPlace,
    #[serde(default)]
    further: Vec<PackedPlace>,
    has_complained: bool,
    refusals: BTreeSet<Refusal>,
}

impl Watched {
    pub fn new(generation: u32, settings: &Settings) -> Result<Watched, StartFailure> {
        let cannot =
            |errno: Errno| StartFailure::cannot("create a notification socket", errno, None);
        let socket = match settings.ready {
            Ready::Notify => Some(Socket::open(takes_descriptors(settings))).transpose(),
            _ => Ok(None),
        };
        Ok(Watched {
            generation,
            workers: Vec::new(),
            socket: socket.map_err(cannot)?,
            pipes: Vec::new(),
            places: Vec::new(),
            is_new: true,
            is_well: false,
            has_complained: false,
            refusals: BTreeSet::new(),
        })
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedWatched {
        let pipes = self.pipes.iter();
        let mut places = self.places.iter().map(|place| place.pack(luggage));
        let (first, further) = (places.next().unwrap_or_default(), places.collect());
        PackedWatched {
            first,
            further,
            generation: self.generation,
            workers: self.workers.iter().map(|pid| pid.as_raw()).collect(),
            socket: self.socket.as_ref().map(|it| it.pack(luggage)),
            pipes: pipes
                .map(|(pid, pipe)| (pid.as_raw(), pipe.pack(luggage)))
                .collect(),
            has_complained: self.has_complained,
            refusals: self.refusals.clone(),
        }
    }

    /// The same generation again, under settings from the same command line.
    pub fn unpack(packed: PackedWatched, settings: &Settings) -> Watched {
        let is_only = packed.further.is_empty();
        let worker = packed.workers.last().filter(|_| is_only);
        let first = packed.first.with_worker(worker.copied());
        let places = [first].into_iter().chain(packed.further);
        let places = places.filter(|place| !place.is_blank());
        let pipes = packed.pipes.into_iter();
        let mut watched = Watched {
            generation: packed.generation,
            workers: packed.workers.into_iter().map(Pid::from_raw).collect(),
            socket: packed
                .socket
                .map(|it| Socket::unpack(it, takes_descriptors(settings))),
            pipes: pipes
                .map(|(pid, pipe)| (Pid::from_raw(pid), Pipe::unpack(pipe)))
                .collect(),
            places: places.map(|it| Place::unpack(it, settings)).collect(),
            is_new: true,
            is_well: false,
            has_complained: packed.has_complained,
            refusals: packed.refusals,
        };
        watched.is_well = watched.answers_well();
        watched
    }

    /// Prepares what the next worker in this slot gets.
    pub fn begin(
        &mut self,
        slot: usize,
        settings: &Settings,
        layout: &Layout,
    ) -> Result<Handed, StartFailure> {
        // Whoever still lives there has left the slot, and must not answer for the next one.
        self.places
            .retain(|place| place.slot != slot || !place.is_taken());
        if !self.places.iter().any(|place| place.slot == slot) {
            self.places.push(Place::new(slot, settings, layout)?);
        }
        let mut handed = Handed::default();
        if let Some(socket) = &self.socket {
            let address = socket.address().into();
            handed.variables.push(("NOTIFY_SOCKET".into(), address));
        }
        if let Ready::Descriptor(number) = settings.ready {
            let (ours, theirs) =
                Pipe::open().map_err(|errno| StartFailure::cannot("create a pipe", errno, None))?;
            let theirs = above(theirs.as_fd(), layout.highest)?;
            handed.descriptors.push((theirs, number));
            handed.pipe = Some(ours);
        }
        if let Some(place) = self.places.iter().find(|place| place.slot == slot) {
            place.hand_out(&mut handed, layout)?;
        }
        Ok(handed)
    }

    /// The probe listeners that its workers know, one for each slot.
    pub fn announced(&self, layout: &Layout) -> Vec<Announced> {
        let places = self.places.iter();
        places.filter_map(|place| place.announced(layout)).collect()
    }

    /// A worker has been started in this slot. Returns what is known of it.
    pub fn started(
        &mut self,
        slot: usize,
        pid: Pid,
        pipe: Option<Pipe>,
        changes: &[Change],
        settings: &Settings,
        now: Moment,
    ) -> Option<String> {
        self.workers.push(pid);
        self.pipes.extend(pipe.map(|pipe| (pid, pipe)));
        let place = self.places.iter_mut().find(|place| place.slot == slot)?;
        place.started(pid, changes, settings, now);
        place.known(settings)
    }

    pub fn sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let socket = self.socket.iter().map(AsFd::as_fd);
        let pipes = self.pipes.iter().map(|(_, pipe)| pipe.as_fd());
        let readable = socket.chain(pipes);
        let readable = readable.map(|source| (source, PollFlags::POLLIN));
        readable.chain(self.places.iter().flat_map(Place::sources))
    }

    pub fn deadline(&self) -> Option<Moment> {
        self.places.iter().filter_map(Place::deadline).min()
    }

    pub fn look(&mut self, settings: &Settings, run: &mut Runner<'_>, desk: &mut Desk<'_>) {
        self.read_socket(MOST_AT_ONCE, desk);
        let Desk { now, found, .. } = desk;
        let now = *now;
        self.read_pipes(settings, found);
        let whom = self.whom();
        let mut answers = Vec::new();
        for place in &mut self.places {
            let whom = whom(place.slot);
            answers.extend(place.look(settings, whom, now, run, found));
        }
        self.tell_health(answers, found);
    }

    /// Who is asked in each slot.
    fn whom(&self) -> impl Fn(usize) -> Whom + use<> {
        let (generation, is_new) = (self.generation, self.is_new);
        let has_others = self.places.len() > 1;
        move |slot| Whom {
            generation,
            slot,
            has_others,
            is_new,
        }
    }

    /// A worker of this generation has died: what it has said before counts, and its pid is soon another's.
    pub fn read_last_words(&mut self, pid: Pid, desk: &mut Desk<'_>) {
        if self.workers.contains(&pid) {
            self.read_socket(MOST_LAST_WORDS, desk);
        }
    }

    fn read_socket(&mut self, most: usize, desk: &mut Desk<'_>) {
        for _ in 0..most {
            let trace = |pid| worker_of(pid, &self.workers);
            let received = self.socket.as_ref().and_then(|socket| socket.next(trace));
            match received {
                None => return,
                Some(Received::From {
                    worker: Some(worker),
                    uid,
                    message,
                    descriptors,
                    is_cut,
                    ..
                }) if uid == getuid().as_raw() => {
                    let refused = desk.store.obey(&message, descriptors, is_cut, desk.ours);
                    self.tell_refusals(worker, refused, desk);
                    tell(worker, message, desk.now, desk.found);
                }
                Some(Received::From { pid, uid, .. }) if uid == getuid().as_raw() => {
                    self.complain(desk.notices, &format!("it came from pid {pid}"));
                }
                Some(Received::From { uid, .. }) => {
                    self.complain(desk.notices, &format!("it came from uid {uid}"));
                }
                Some(Received::Unusable) => {
                    let why = "it is too long, or its sender is unknown";
                    self.complain(desk.notices, why);
                }
            }
        }
    }

    /// Each once.
    fn tell_refusals(&mut self, worker: Pid, refused: Vec<Refusal>, desk: &mut Desk<'_>) {
        for refusal in refused {
            if self.refusals.insert(refusal) {
                desk.notices.push(Notice::NotificationIgnored {
                    generation: self.generation,
                    worker: Some(worker),
                    sentence: refusal.sentence(worker, desk.store.most()),
                });
            }
        }
    }

    fn complain(&mut self, notices: &mut Vec<Notice>, why: &str) {
        if !std::mem::replace(&mut self.has_complained, true) {
            let generation = self.generation;
            notices.push(Notice::NotificationIgnored {
                generation,
                worker: None,
                sentence: format!(
                    "start_server: ignoring a notification to generation {generation}: {why}"
                ),
            });
        }
    }

    fn read_pipes(&mut self, settings: &Settings, found: &mut Vec<Event>) {
        let Ready::Descriptor(number) = settings.ready else {
            return;
        };
        self.pipes.retain(|(pid, pipe)| match pipe.read() {
            line::Found::Nothing => true,
            line::Found::Line => {
                found.push(Event::Ready(*pid));
                false
            }
            line::Found::Closed => {
                let known = format!("it closed descriptor {number} without a line feed");
                found.push(Event::NotYetReady { pid: *pid, known });
                false
            }
        });
    }

    /// Whether this child was a command of its.
    pub fn command_exited(
        &mut self,
        pid: Pid,
        status: i32,
        now: Moment,
        found: &mut Vec<Event>,
    ) -> bool {
        let whom = self.whom();
        for place in &mut self.places {
            let whom = whom(place.slot);
            if place.has_proof(pid, status, whom, now, found) {
                return true;
            }
            if let Some(answer) = place.has_answer(pid, status, whom, now) {
                self.tell_health(vec![answer], found);
                return true;
            }
        }
        false
    }

    /// A generation is as well as its worst worker: each bad answer of the one that has been bad for longest is told, and
    /// that it is well once no worker is bad.
    fn tell_health(&mut self, answers: Vec<Answer>, found: &mut Vec<Event>) {
        let generation = self.generation;
        let longest = self.healths().filter_map(Health::bad_since).min();
        for answer in answers {
            if let Answer::Bad { since, known } = answer
                && Some(since) == longest
            {
                found.push(Event::Unwell {
                    generation,
                    since,
                    known,
                });
            }
        }
        let is_well = self.answers_well();
        let was_well = std::mem::replace(&mut self.is_well, is_well);
        let is_news = is_well && !was_well;
        found.extend(is_news.then_some(Event::Well { generation }));
    }

    /// Whether a worker has answered well, and none has answered badly since its last good answer.
    fn answers_well(&self) -> bool {
        let is_bad = self.healths().any(|health| health.bad_since().is_some());
        !is_bad && self.healths().any(Health::is_good)
    }

    fn healths(&self) -> impl Iterator<Item = &Health> {
        self.places.iter().filter_map(Place::health)
    }

    /// Forgets workers that are gone: their pids may soon belong to other processes.
    pub fn forget_departed(&mut self, lives: impl Fn(Pid) -> bool + Copy) {
        self.workers.retain(|pid| lives(*pid));
        self.pipes.retain(|(pid, _)| lives(*pid));
        for place in &mut self.places {
            place.forget_departed(lives);
        }
    }

    /// Forgets the places of slots that are gone, with their workers. An empty slot keeps its own: the next worker in it
    /// gets the same probe listener.
    pub fn forget_slots(&mut self, generation: &Generation) {
        self.places.retain_mut(|place| {
            if generation.has_slot(place.slot) {
                return true;
            }
            // It has been told to stop.
            place.settle();
            place.rest();
            place.is_taken()
        });
    }

    /// It is current: workers that have proved themselves go on being asked, if it is watched.
    pub fn serve(&mut self, settings: &Settings, now: Moment) {
        self.is_new = false;
        for place in &mut self.places {
            place.serve(settings, now);
        }
    }

    /// Another one serves. It may become current again: its probe listeners stay, and a worker that was about to prove
    /// itself goes on.
    pub fn rest(&mut self) {
        self.is_new = false;
        self.is_well = false;
        self.places.iter_mut().for_each(Place::rest);
    }

    /// No worker need prove anything any more.
    pub fn settle(&mut self) {
        self.rest();
        self.places.iter_mut().for_each(Place::settle);
    }

    /// It has been told to stop: its probe listeners are no longer needed either.
    pub fn retire(&mut self) {
        self.settle();
        self.places.iter_mut().for_each(Place::retire);
        self.pipes.clear();
    }
}

/// Whether what workers send may come with descriptors.
fn takes_descriptors(settings: &Settings) -> bool {
    settings.fd_store_max > 0
}

/// What a worker has said, as events.
fn tell(pid: Pid, message: Message, now: Moment, found: &mut Vec<Event>) {
    if let Some(extension) = message.extension {
        let until = now + extension.min(LONGEST_EXTENSION);
        found.push(Event::StartExtended { pid, until });
    }
    if let Some(text) = message.status {
        let known = format!("it has not said READY=1; its last STATUS is: {text}");
        found.push(Event::NotYetReady { pid, known });
        found.push(Event::Text { pid, text });
    }
    // Whoever says both is about to end.
    match (message.is_stopping, message.is_ready) {
        (true, _) => found.push(Event::Stopping(pid)),
        (false, true) => found.push(Event::Ready(pid)),
        (false, false) => {}
    }
}
