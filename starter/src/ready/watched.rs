//! One generation on its way to readiness, and what is kept of it afterwards.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::unistd::{Pid, getuid};

use super::command::Running;
use super::handed::{Handed, Layout, Order, Runner};
use super::line::{self, Pipe};
use super::message::Message;
use super::notify::{Received, Socket};
use super::probe::Probe;
use super::sender::worker_of;
use super::settings::{Ready, Settings};
use super::trial::{self, Goal, Trial};
use crate::host::launcher::Change;
use crate::host::moment::Moment;
use crate::host::open_files::duplicate_above;
use crate::listeners::dialects::Announced;
use crate::machine::{Event, Machine};
use crate::words::failure;
use crate::words::notice::Notice;
use crate::words::parts::WithMeaning;
use crate::words::start_failure::StartFailure;

/// How long after a command has failed it is run again.
const PAUSE: Duration = Duration::from_millis(100);

/// How much more time a worker can ask for at once.
const LONGEST_EXTENSION: Duration = Duration::from_secs(3600);

/// Everything that belongs to one generation.
pub struct Watched {
    pub generation: u32,
    workers: Vec<Pid>,
    socket: Option<Socket>,
    pipes: Vec<(Pid, Pipe)>,
    probe: Option<Probe>,
    trial: Option<Trial>,
    command: Option<Attempts>,
    /// Whether an ignored notification has been logged: once is enough.
    has_complained: bool,
}

/// A command that is run until it succeeds.
struct Attempts {
    running: Option<Running>,
    next_at: Moment,
    changes: Vec<Change>,
}

impl Watched {
    pub fn new(
        generation: u32,
        settings: &Settings,
        layout: &Layout,
    ) -> Result<Watched, StartFailure> {
        let cannot = |what: &str, errno: Errno| StartFailure::cannot(what, errno, None);
        let socket = match settings.ready {
            Ready::Notify => Some(Socket::open()).transpose(),
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
            has_complained: false,
        })
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
        let goal = match &settings.ready {
            Ready::Accept => Some(Goal::Accept),
            Ready::Http { path, statuses } => Some(Goal::Http {
                path: path.clone(),
                statuses: *statuses,
            }),
            Ready::Interval | Ready::Notify | Ready::Descriptor(_) | Ready::Command(_) => None,
        };
        self.trial = goal.map(|goal| Trial::new(goal, now));
        self.command = match settings.ready {
            Ready::Command(_) => Some(Attempts {
                running: None,
                next_at: now,
                changes: changes.to_vec(),
            }),
            _ => None,
        };
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
        let running = self.command.iter().filter_map(|one| one.running.as_ref());
        let output = running.filter_map(Running::source);
        let readable = socket.chain(pipes).chain(output);
        let readable = readable.map(|source| (source, PollFlags::POLLIN));
        readable.chain(self.trial.iter().filter_map(Trial::source))
    }

    pub fn deadline(&self) -> Option<Moment> {
        let waits = |one: &&Attempts| one.running.is_none();
        let command = self.command.as_ref().filter(waits).map(|one| one.next_at);
        let trial = self.trial.as_ref().map(Trial::deadline);
        command.into_iter().chain(trial).min()
    }

    pub fn look(
        &mut self,
        settings: &Settings,
        now: Moment,
        run: &mut Runner<'_>,
        found: &mut Vec<Event>,
        notices: &mut Vec<Notice>,
    ) {
        self.read_socket(now, found, notices);
        self.read_pipes(settings, found);
        self.look_at_trial(now, found);
        if let Ready::Command(command) = &settings.ready {
            self.look_at_command(command, now, run, found);
        }
    }

    fn read_socket(&mut self, now: Moment, found: &mut Vec<Event>, notices: &mut Vec<Notice>) {
        let trace = |pid| worker_of(pid, &self.workers);
        let received = self.socket.as_ref().map(|socket| socket.read(trace));
        for one in received.unwrap_or_default() {
            match one {
                Received::From {
                    pid,
                    uid,
                    worker,
                    message,
                } if uid == getuid().as_raw() => match worker {
                    Some(worker) => tell(worker, message, now, found),
                    None => self.complain(notices, &format!("it came from pid {pid}")),
                },
                Received::From { uid, .. } => {
                    self.complain(notices, &format!("it came from uid {uid}"));
                }
                Received::Unusable => {
                    self.complain(notices, "it is too long, or its sender is unknown");
                }
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
        let probe = self.probe.as_ref().map(|probe| Announced {
            name: probe.name(),
            number: -1,
            given_name: None,
        });
        let Some(attempts) = &mut self.command else {
            return;
        };
        match &mut attempts.running {
            Some(running) => running.read(),
            None if attempts.next_at <= now => {
                let order = Order {
                    command,
                    generation: self.generation,
                    changes: &attempts.changes,
                    probe: probe.as_ref(),
                };
                match run(&order) {
                    Ok(running) => attempts.running = Some(running),
                    Err(error) => {
                        attempts.next_at = now + PAUSE;
                        let cause = failure::cause(&error);
                        let known = format!("the --ready command cannot be run: {cause}");
                        self.all_not_yet(&known, found);
                    }
                }
            }
            None => {}
        }
    }

    /// Whether this child was its command.
    pub fn command_exited(
        &mut self,
        pid: Pid,
        status: i32,
        now: Moment,
        found: &mut Vec<Event>,
    ) -> bool {
        let Some(attempts) = &mut self.command else {
            return false;
        };
        let is_it = |running: &mut Running| running.pid() == pid;
        let Some(mut running) = attempts.running.take_if(is_it) else {
            return false;
        };
        running.exited();
        attempts.next_at = now + PAUSE;
        if status == 0 {
            self.command = None;
            self.all_ready(found);
            return true;
        }
        let mut known = format!(
            "the --ready command failed, exit status:{}",
            WithMeaning(status)
        );
        if let Some(last) = running.last_lines().pop() {
            known.push_str(": ");
            known.push_str(&last);
        }
        self.all_not_yet(&known, found);
        true
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

    /// It serves: there is nothing left to find out.
    pub fn settle(&mut self) {
        self.trial = None;
        self.command = None;
    }

    /// It has been told to stop: its probe listener is no longer needed either.
    pub fn retire(&mut self) {
        self.settle();
        self.probe = None;
        self.pipes.clear();
    }
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
