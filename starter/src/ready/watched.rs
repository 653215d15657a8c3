//! One generation on its way to readiness, and what is kept of it afterwards.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::unistd::{Pid, getuid};
use serde::{Deserialize, Serialize};

use super::attempts::{Attempts, Ended, PackedAttempts};
use super::handed::{Handed, Layout, Runner};
use super::health::{Health, PackedHealth};
use super::line::{self, Pipe};
use super::message::Message;
use super::notify::{PackedSocket, Received, Socket};
use super::probe::{PackedProbe, Probe};
use super::sender::worker_of;
use super::settings::{Ready, Settings};
use super::store::{Refusal, Store};
use super::trial::{self, Goal, PackedTrial, Trial};
use crate::host::launcher::Change;
use crate::host::luggage::{Carried, Luggage};
use crate::host::moment::Moment;
use crate::host::open_files::duplicate_above;
use crate::listeners::dialects::Announced;
use crate::machine::{Event, Machine};
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

/// Whom a trial asks before the commit.
const WHOM: &str = "the new generation";

/// How long after a command has failed it is run again.
const PAUSE: Duration = Duration::from_millis(100);

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
    pub ours: &'a [(OwnedFd, RawFd)],
    pub found: &'a mut Vec<Event>,
    pub notices: &'a mut Vec<Notice>,
}

/// Everything that belongs to one generation.
pub struct Watched {
    pub generation: u32,
    workers: Vec<Pid>,
    socket: Option<Socket>,
    pipes: Vec<(Pid, Pipe)>,
    probe: Option<Probe>,
    trial: Option<Trial>,
    command: Option<Attempts>,
    /// Once it is current, if it is watched.
    health: Option<Health>,
    /// How the environment of its workers differs from the launcher's.
    changes: Vec<Change>,
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
    probe: Option<PackedProbe>,
    trial: Option<PackedTrial>,
    command: Option<PackedAttempts>,
    health: Option<PackedHealth>,
    changes: Vec<Change>,
    has_complained: bool,
    refusals: BTreeSet<Refusal>,
}

impl Watched {
    pub fn new(
        generation: u32,
        settings: &Settings,
        layout: &Layout,
    ) -> Result<Watched, StartFailure> {
        let cannot = |what: &str, errno: Errno| StartFailure::cannot(what, errno, None);
        let socket = match settings.ready {
            Ready::Notify => Some(Socket::open(takes_descriptors(settings))).transpose(),
            _ => Ok(None),
        };
        let socket = socket.map_err(|errno| cannot("create a notification socket", errno))?;
        let Layout {
            backlog,
            is_blocking,
            highest,
            ..
        } = *layout;
        let open = |at| Probe::open(at, backlog, is_blocking, highest);
        let probe = settings.probe.map(open).transpose();
        let probe = probe.map_err(|errno| cannot("create a probe listener", errno))?;
        Ok(Watched {
            generation,
            workers: Vec::new(),
            socket,
            pipes: Vec::new(),
            probe,
            trial: None,
            command: None,
            health: None,
            changes: Vec::new(),
            has_complained: false,
            refusals: BTreeSet::new(),
        })
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedWatched {
        let pipes = self.pipes.iter();
        PackedWatched {
            generation: self.generation,
            workers: self.workers.iter().map(|pid| pid.as_raw()).collect(),
            socket: self.socket.as_ref().map(|it| it.pack(luggage)),
            pipes: pipes
                .map(|(pid, pipe)| (pid.as_raw(), pipe.pack(luggage)))
                .collect(),
            probe: self.probe.as_ref().map(|it| it.pack(luggage)),
            trial: self.trial.as_ref().map(|it| it.pack(luggage)),
            command: self.command.as_ref().map(|it| it.pack(luggage)),
            health: self.health.as_ref().map(|it| it.pack(luggage)),
            changes: self.changes.clone(),
            has_complained: self.has_complained,
            refusals: self.refusals.clone(),
        }
    }

    /// The same generation again, under settings from the same command line.
    pub fn unpack(packed: PackedWatched, settings: &Settings) -> Watched {
        let PackedWatched { generation, .. } = packed;
        let ready = &settings.ready;
        let pipes = packed.pipes.into_iter();
        let trial = packed.trial.zip(Goal::of(ready));
        let health = packed.health.zip(settings.watch);
        Watched {
            generation,
            workers: packed.workers.into_iter().map(Pid::from_raw).collect(),
            socket: packed
                .socket
                .map(|it| Socket::unpack(it, takes_descriptors(settings))),
            pipes: pipes
                .map(|(pid, pipe)| (Pid::from_raw(pid), Pipe::unpack(pipe)))
                .collect(),
            probe: packed.probe.map(Probe::unpack),
            trial: trial.map(|(trial, goal)| Trial::unpack(trial, goal, WHOM.to_owned())),
            command: packed
                .command
                .map(|it| Attempts::unpack(it, generation, PAUSE, None)),
            health: health
                .and_then(|(health, watch)| Health::unpack(health, generation, ready, watch)),
            changes: packed.changes,
            has_complained: packed.has_complained,
            refusals: packed.refusals,
        }
    }

    pub fn hand_out(&self, settings: &Settings, layout: &Layout) -> Result<Handed, StartFailure> {
        let mut handed = Handed::default();
        if let Some(socket) = &self.socket {
            let address = socket.address().into();
            handed.variables.push(("NOTIFY_SOCKET".into(), address));
        }
        let above = |descriptor: BorrowedFd<'_>| {
            duplicate_above(descriptor, layout.highest)
                .map_err(|errno| StartFailure::cannot("pass a descriptor to a worker", errno, None))
        };
        if let Ready::Descriptor(number) = settings.ready {
            let (ours, theirs) =
                Pipe::open().map_err(|errno| StartFailure::cannot("create a pipe", errno, None))?;
            handed.descriptors.push((above(theirs.as_fd())?, number));
            handed.pipe = Some(ours);
        }
        if let Some(probe) = &self.probe {
            let probe = above(probe.as_fd())?;
            handed.descriptors.push((probe, layout.probe_number));
            handed.probe = self.announced(layout);
        }
        Ok(handed)
    }

    pub fn announced(&self, layout: &Layout) -> Option<Announced> {
        let probe = self.probe.as_ref()?;
        Some(Announced {
            name: probe.name(),
            number: layout.probe_number,
            given_name: None,
        })
    }

    pub fn started(
        &mut self,
        pid: Pid,
        pipe: Option<Pipe>,
        changes: &[Change],
        settings: &Settings,
        now: Moment,
    ) {
        self.workers.push(pid);
        self.pipes.extend(pipe.map(|pipe| (pid, pipe)));
        self.changes = changes.to_vec();
        let trial = |goal| Trial::new(goal, WHOM.to_owned(), now);
        self.trial = Goal::of(&settings.ready).map(trial);
        let attempts = || Attempts::new(self.generation, changes.to_vec(), PAUSE, None, now);
        self.command = matches!(settings.ready, Ready::Command(_)).then(attempts);
    }

    /// What is known of a worker that has just been started.
    pub fn known(&self, settings: &Settings) -> Option<String> {
        match &settings.ready {
            Ready::Interval => None,
            Ready::Notify => Some("it has not said READY=1".to_owned()),
            Ready::Descriptor(number) => {
                Some(format!("no line feed has come on descriptor {number}"))
            }
            Ready::Command(_) => Some("the --ready command has not finished".to_owned()),
            Ready::Accept | Ready::Http { .. } => self.trial.as_ref().map(Trial::known),
        }
    }

    pub fn sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let socket = self.socket.iter().map(AsFd::as_fd);
        let pipes = self.pipes.iter().map(|(_, pipe)| pipe.as_fd());
        let output = self.command.iter().filter_map(Attempts::source);
        let readable = socket.chain(pipes).chain(output);
        let readable = readable.map(|source| (source, PollFlags::POLLIN));
        let trial = self.trial.iter().filter_map(Trial::source);
        readable
            .chain(trial)
            .chain(self.health.iter().filter_map(Health::source))
    }

    pub fn deadline(&self) -> Option<Moment> {
        let command = self.command.as_ref().and_then(Attempts::deadline);
        let trial = self.trial.as_ref().map(Trial::deadline);
        let health = self.health.as_ref().and_then(Health::deadline);
        command.into_iter().chain(trial).chain(health).min()
    }

    pub fn look(&mut self, settings: &Settings, run: &mut Runner<'_>, desk: &mut Desk<'_>) {
        self.read_socket(MOST_AT_ONCE, desk);
        let Desk { now, found, .. } = desk;
        let now = *now;
        self.read_pipes(settings, found);
        self.look_at_trial(now, found);
        if let Ready::Command(command) = &settings.ready {
            self.look_at_command(command, now, run, found);
        }
        if let Some(health) = &mut self.health {
            health.look(&settings.ready, self.probe.as_ref(), now, run, found);
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
                let sentence = refusal.sentence(worker, desk.store.most());
                desk.notices.push(Notice::Complaint(sentence));
            }
        }
    }

    fn complain(&mut self, notices: &mut Vec<Notice>, why: &str) {
        if !std::mem::replace(&mut self.has_complained, true) {
            let generation = self.generation;
            notices.push(Notice::Complaint(format!(
                "start_server: ignoring a notification to generation {generation}: {why}"
            )));
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

    fn look_at_trial(&mut self, now: Moment, found: &mut Vec<Event>) {
        let (Some(trial), Some(probe)) = (&mut self.trial, &self.probe) else {
            return;
        };
        match trial.look(probe, now) {
            trial::Found::Nothing => {}
            trial::Found::NotYet(known) => self.all_not_yet(&known, found),
            trial::Found::Ready => {
                self.trial = None;
                self.all_ready(found);
            }
        }
    }

    fn look_at_command(
        &mut self,
        command: &std::ffi::OsStr,
        now: Moment,
        run: &mut Runner<'_>,
        found: &mut Vec<Event>,
    ) {
        let probe = self.probe.as_ref().map(Announced::from);
        let Some(attempts) = &mut self.command else {
            return;
        };
        let ended = attempts.look(command, probe.as_ref(), now, run);
        self.attempt_ended(ended, found);
    }

    /// Whether this child was its command.
    pub fn command_exited(
        &mut self,
        pid: Pid,
        status: i32,
        now: Moment,
        found: &mut Vec<Event>,
    ) -> bool {
        let attempts = self.command.as_mut();
        if let Some(ended) = attempts.and_then(|one| one.exited(pid, status, now)) {
            self.attempt_ended(Some(ended), found);
            return true;
        }
        let health = self.health.as_mut();
        health.is_some_and(|health| health.command_exited(pid, status, now, found))
    }

    fn attempt_ended(&mut self, ended: Option<Ended>, found: &mut Vec<Event>) {
        match ended.map(|ended| ended.result) {
            None => {}
            Some(Ok(())) => {
                self.command = None;
                self.all_ready(found);
            }
            Some(Err(known)) => self.all_not_yet(&known, found),
        }
    }

    fn all_ready(&self, found: &mut Vec<Event>) {
        found.extend(self.workers.iter().map(|pid| Event::Ready(*pid)));
    }

    fn all_not_yet(&self, known: &str, found: &mut Vec<Event>) {
        found.extend(self.workers.iter().map(|pid| Event::NotYetReady {
            pid: *pid,
            known: known.to_owned(),
        }));
    }

    /// Forgets workers that are gone: their pids may soon belong to other processes.
    pub fn forget_departed(&mut self, machine: &Machine) {
        self.workers.retain(|pid| machine.has_worker(*pid));
        self.pipes.retain(|(pid, _)| machine.has_worker(*pid));
    }

    /// It is current: there is nothing left to find out, unless it is watched.
    pub fn serve(&mut self, settings: &Settings, now: Moment) {
        self.settle();
        if let Some(watch) = settings.watch.filter(|_| self.health.is_none()) {
            let (ready, changes) = (&settings.ready, &self.changes);
            self.health = Health::new(self.generation, ready, watch, changes, now);
        }
    }

    /// Another one serves, or soon none will. Its probe listener stays: it may become current again.
    pub fn rest(&mut self) {
        self.settle();
        self.health = None;
    }

    fn settle(&mut self) {
        self.trial = None;
        self.command = None;
    }

    /// It has been told to stop: its probe listener is no longer needed either.
    pub fn retire(&mut self) {
        self.rest();
        self.probe = None;
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
