//! `--guardian`: the process that was started stays for ever, and starts a new supervisor when the one that it watches dies.
//!
//! It holds what the supervisor holds, and knows nothing of it: descriptors by number ([`kept`]) and the last snapshot
//! ([`area`]). It passes signals on. It is the subreaper of all, so the workers of a supervisor that has died are its children
//! then, and it tells the next one when they exit. Three promises make that safe:
//!
//! - What it passes on it repeats to the next supervisor, unless its consequences are in the snapshot.
//! - No exit is lost: a child is reaped only when its exit is in the snapshot, here and in the supervisor.
//! - No worker runs that is not in the snapshot: until then it waits at a gate ([`crate::host::process::wait_at`]).

pub mod area;
mod kept;
pub mod message;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use common::descriptors::{FIRST, close_inherited, keep_from_exec};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdout};

use self::area::{Area, Written};
use self::kept::{Kept, place};
use self::message::{Channel, PAUSE, ToGuardian, ToSupervisor};
use crate::host::luggage::stand_in;
use crate::host::memory;
use crate::host::moment::Moment;
use crate::host::open_files::{OpenFiles, duplicate_above, owned};
use crate::host::own_program::{Guarded, Inheritance, execute};
use crate::host::proc;
use crate::host::process::{adopt_orphans, exit_child, exited, fork_single_threaded, reap_child};
use crate::host::sealed::sealed;
use crate::host::signals::{Signals, Taken};
use crate::log::{LineFormat, show_as};
use crate::status::pid_file::lock_again;
use crate::words::guardian as words;
use crate::words::notice::Severity;

/// How many signals it passes on that the supervisor has not dealt with. More stay with the kernel, which needs no memory of
/// ours for them.
const MOST_PASSED_ON: usize = 1000;

/// How long what served the supervisor may take to end after it.
const LONGEST_END: Duration = Duration::from_secs(5);

/// As many descriptors as it needs at the end, with room for what it keeps.
const MOST_OWN: usize = 65_536;

/// How many supervisors may die within this time.
const MOST_DEATHS: usize = 5;
const WITHIN: Duration = Duration::from_secs(60);

/// How long the workers go on without a supervisor where the host has no process or no memory for one.
const LONGEST_LACK: Duration = Duration::from_secs(60);

/// What the guardian needs to know of the command line.
#[derive(Debug, Clone)]
pub struct Settings {
    /// All words, the name of the program first.
    pub arguments: Vec<OsString>,
    /// For the workers, if no supervisor can live.
    pub signal: Signal,
    /// How long after that they are killed.
    pub stop_timeout: Option<Duration>,
    /// How it says what no supervisor can say.
    pub format: LineFormat,
}

/// Which of the processes this is after the split.
pub enum Split {
    Guardian(Box<Guardian>),
    Supervisor(Channel, Area),
}

/// The process that stays.
pub struct Guardian {
    settings: Settings,
    signals: Signals,
    channel: Channel,
    area: Area,
    /// The program to start a supervisor from.
    program: OwnedFd,
    kept: Kept,
    supervisor: Pid,
    /// Children from before the split, which serve the supervisor: binders, the log command. They end with what it holds.
    helpers: Vec<Pid>,
    /// Signals whose consequences are not in the snapshot.
    passed_on: VecDeque<(u64, Taken)>,
    last_id: u64,
    /// The exit that the supervisor was told and has not dealt with.
    told: Option<(Pid, i32)>,
    deaths: Vec<Moment>,
    /// The supervisor that no other has followed yet.
    lost: Option<Lost>,
    is_ending: bool,
    is_last: bool,
}

/// A supervisor that has died while the host had no process or no memory for another one.
#[derive(Clone, Copy)]
struct Lost {
    status: i32,
    /// How long that is tried.
    until: Moment,
}

/// Why a supervisor could not be started.
struct Cannot {
    cause: String,
    /// What the host lacks now it may have in a moment.
    lacks: Option<Errno>,
}

impl From<Errno> for Cannot {
    fn from(errno: Errno) -> Cannot {
        let is_lack = matches!(errno, Errno::EAGAIN | Errno::ENOMEM | Errno::ENFILE);
        Cannot {
            cause: errno.desc().to_owned(),
            lacks: is_lack.then_some(errno),
        }
    }
}

impl From<&str> for Cannot {
    fn from(cause: &str) -> Cannot {
        Cannot {
            cause: cause.to_owned(),
            lacks: None,
        }
    }
}

/// Splits off a supervisor. The guardian stays the process that was started.
///
/// # Errors
/// Of fork(2) and the like; then there is one process as before.
pub fn split(settings: Settings, program: OwnedFd) -> nix::Result<Split> {
    let (ours, theirs) = Channel::pair()?;
    let area = Area::new().map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO))?;
    match fork_single_threaded()? {
        ForkResult::Child => Ok(Split::Supervisor(theirs, area)),
        ForkResult::Parent { child } => {
            adopt_orphans(true);
            // Their descriptors are closed by number.
            let both = ManuallyDrop::new((ours, theirs, area));
            let [channel, area, program] = alone_with([
                both.0.as_fd().try_clone_to_owned(),
                both.2.as_fd().try_clone_to_owned(),
                Ok(program),
            ]);
            Ok(Split::Guardian(Box::new(Guardian {
                settings,
                signals: Signals::take().unwrap_or_else(|_| exit_child(1)),
                channel: Channel::of(channel),
                area: Area::of(area),
                program,
                kept: Kept::default(),
                supervisor: child,
                helpers: (proc::children(Pid::this()).unwrap_or_default().into_iter())
                    .filter(|one| *one != child)
                    .collect(),
                passed_on: VecDeque::new(),
                last_id: 0,
                told: None,
                deaths: Vec::new(),
                lost: None,
                is_ending: false,
                is_last: false,
            })))
        }
    }
}

/// Closes everything but standard input, output and error, and these, which get new numbers.
fn alone_with<const COUNT: usize>(kept: [std::io::Result<OwnedFd>; COUNT]) -> [OwnedFd; COUNT] {
    let mut next = FIRST..;
    let kept = kept.map(|one| one.unwrap_or_else(|_| exit_child(1)));
    let numbers = [(); COUNT].map(|()| next.next().unwrap_or(RawFd::MAX));
    let placed: Vec<_> = numbers
        .into_iter()
        .zip(kept.iter().map(AsFd::as_fd))
        .collect();
    let closed = place(&placed).and_then(|()| close_inherited(next.start));
    if closed.is_err() {
        exit_child(1);
    }
    // Those with new numbers are nobody else's.
    if keep_from_exec().is_err() {
        exit_child(1);
    }
    // Their old numbers are closed, or belong to one of the new ones.
    let _ = kept.map(OwnedFd::into_raw_fd);
    numbers.map(owned)
}

impl Guardian {
    /// Watches until all is over. Returns the exit code.
    pub fn watch(mut self) -> u8 {
        // Of the start, which was this process's too.
        memory::release();
        loop {
            self.wait();
            if self.has_room() {
                match self.signals.take_all() {
                    Ok(arrived) => arrived.into_iter().for_each(|one| self.pass_on(one)),
                    Err(errno) => self.show(&words::cannot("read signals", errno)),
                }
            }
            self.listen();
            if let Some(code) = self.look_at_supervisor() {
                return code;
            }
            self.look_at_others();
        }
    }

    fn wait(&mut self) {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, self.channel.wants_to_write());
        // That to a dead supervisor would be ready all the time.
        let channel = self.lost.is_none().then(|| self.channel.as_fd());
        let mut sources: Vec<PollFd<'_>> = channel
            .into_iter()
            .map(|channel| PollFd::new(channel, flags))
            .collect();
        if self.has_room() {
            sources.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
        }
        // An error would be one of memory: there is nothing better than to look again.
        let longest = self.lost.map(|_| TimeSpec::from_duration(PAUSE));
        let _ = ppoll(&mut sources, longest, None);
        // If the supervisor is dead, so is the channel, and its exit is seen next.
        let _ = self.channel.flush();
    }

    /// For more signals to pass on.
    fn has_room(&self) -> bool {
        self.passed_on.len() < MOST_PASSED_ON
    }

    fn pass_on(&mut self, arrived: Taken) {
        if arrived.signal == Signal::SIGCHLD as i32 {
            return;
        }
        // As the kernel does it: while one waits, the same once more is the same. Another one may be under way.
        if self
            .passed_on
            .iter()
            .filter(|(_, one)| *one == arrived)
            .count()
            >= 2
        {
            return;
        }
        self.last_id += 1;
        self.passed_on.push_back((self.last_id, arrived));
        self.tell(&signal(self.last_id, arrived));
    }

    fn tell(&mut self, message: &ToSupervisor) {
        // If the supervisor is dead, the next one is told.
        let _ = self.channel.send(message, None);
    }

    fn listen(&mut self) {
        loop {
            match self.channel.receive() {
                Ok(Some((message, along))) => self.obey(message, along),
                // One of a later version: what matters in it cannot be known.
                Err(Errno::EBADMSG) => {}
                Ok(None) | Err(_) => break,
            }
        }
        self.kept.prune(self.area.last());
    }

    fn obey(&mut self, message: ToGuardian, along: Option<OwnedFd>) {
        match message {
            ToGuardian::Keep { number, since } => {
                // Lest a log file that was moved away stays open.
                match (number, &along) {
                    (1, Some(stdout)) => drop(dup2_stdout(stdout)),
                    (2, Some(stderr)) => drop(dup2_stderr(stderr)),
                    _ => {}
                }
                self.kept.keep(number, since, along);
            }
            ToGuardian::Forget { number, since } => self.kept.keep(number, since, None),
            ToGuardian::ForgetAll { since } => self.kept.forget_all(since),
            ToGuardian::Lock => along.into_iter().for_each(|file| lock_again(&file.into())),
            ToGuardian::Program => {
                if let Some(program) = along {
                    self.program = program;
                }
            }
            ToGuardian::Done { id } => self.passed_on.retain(|(one, _)| *one != id),
            ToGuardian::Reap { pid } => {
                if let Some((told, _)) = self.told.take_if(|(one, _)| one.as_raw() == pid) {
                    // It has exited, so this does not wait.
                    let _ = reap_child(told);
                    self.helpers.retain(|one| *one != told);
                }
            }
            ToGuardian::Ending => {
                self.is_ending = true;
                // Whoever waits for the end of something waits for our copies too.
                self.kept = Kept::default();
            }
        }
    }

    /// Returns the exit code if all is over.
    fn look_at_supervisor(&mut self) -> Option<u8> {
        if let Some(lost) = self.lost {
            return self.replace(lost);
        }
        let (_, status) = exited(Some(self.supervisor)).ok().flatten()?;
        // What it has said last.
        self.listen();
        let _ = reap_child(self.supervisor);
        if self.is_ending && self.is_last {
            return Some(1);
        }
        if self.is_ending {
            let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
            return Some(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        let now = Moment::now();
        self.deaths
            .retain(|death| now.saturating_since(*death) < WITHIN);
        self.deaths.push(now);
        let was_last = std::mem::replace(&mut self.is_last, self.deaths.len() >= MOST_DEATHS);
        match was_last {
            true => Some(self.give_up(status, words::TOO_MANY)),
            false => self.replace(Lost {
                status,
                until: now + LONGEST_LACK,
            }),
        }
    }

    /// Starts another supervisor, now or later. Returns the exit code if that is in vain.
    fn replace(&mut self, lost: Lost) -> Option<u8> {
        let Err(cannot) = self.start_supervisor(lost.status) else {
            self.lost = None;
            return None;
        };
        if let Some(errno) = cannot.lacks.filter(|_| Moment::now() < lost.until) {
            if self.lost.replace(lost).is_none() {
                self.show(&words::cannot("start a supervisor yet", errno));
            }
            return None;
        }
        Some(self.give_up(lost.status, &cannot.cause))
    }

    fn give_up(&mut self, status: i32, cause: &str) -> u8 {
        self.show(&words::ending_workers(status, cause));
        self.end_workers();
        1
    }

    fn show(&self, text: &str) {
        show_as(self.settings.format, Severity::Error, text);
    }

    /// One exit at a time: the next one is told when that is dealt with.
    fn look_at_others(&mut self) {
        if self.told.is_some() {
            return;
        }
        if let Ok(Some((pid, status))) = exited(None) {
            // That of the supervisor is seen in the next turn, which its signal begins.
            if pid != self.supervisor {
                self.told = Some((pid, status));
                let pid = pid.as_raw();
                self.tell(&ToSupervisor::Exited { pid, status });
            }
        }
    }

    fn start_supervisor(&mut self, status: i32) -> Result<(), Cannot> {
        let written = self.area.read().map_err(|_| words::NO_SNAPSHOT)?;
        self.kept.prune(written.number);
        let in_errno = |error| Errno::try_from(error).unwrap_or(Errno::EIO);
        let snapshot = sealed(&written.snapshot).map_err(in_errno)?;
        let stand_in = stand_in()?;
        let (descriptors, missing) = self.descriptors(&written, stand_in.as_fd());
        if missing > 0 {
            self.show(&words::missing(missing));
        }
        let (ours, theirs) = Channel::pair()?;
        match fork_single_threaded()? {
            ForkResult::Child => {
                let Err(errno) = self.become_supervisor(&descriptors, status, &snapshot, &theirs);
                self.show(&words::cannot("start a supervisor", errno));
                exit_child(1)
            }
            ForkResult::Parent { child } => {
                self.supervisor = child;
                self.channel = ours;
                self.repeat();
                memory::release();
                Ok(())
            }
        }
    }

    /// Those that the snapshot names, and how many of them are not here: the last supervisor has died before it could send
    /// them. Something is in their place, so that all others are of use.
    fn descriptors<'a>(
        &'a self,
        written: &Written,
        stand_in: BorrowedFd<'a>,
    ) -> (Vec<(RawFd, BorrowedFd<'a>)>, usize) {
        let mut found = self.kept.of(written.number);
        let is_here = |number: &RawFd| found.iter().any(|(one, _)| one == number);
        let named = written.descriptors.iter().copied();
        let missing: Vec<RawFd> = named.filter(|one| *one > 2 && !is_here(one)).collect();
        found.extend(missing.iter().map(|number| (*number, stand_in)));
        (found, missing.len())
    }

    /// Tells a new supervisor what the last one has not dealt with.
    fn repeat(&mut self) {
        let passed_on: Vec<(u64, Taken)> = self.passed_on.iter().copied().collect();
        for (id, arrived) in passed_on {
            self.tell(&signal(id, arrived));
        }
        if let Some((pid, status)) = self.told {
            let pid = pid.as_raw();
            self.tell(&ToSupervisor::Exited { pid, status });
        }
    }

    /// In a child.
    fn become_supervisor(
        &self,
        descriptors: &[(RawFd, BorrowedFd<'_>)],
        status: i32,
        snapshot: &OwnedFd,
        channel: &Channel,
    ) -> Result<std::convert::Infallible, Errno> {
        let numbers: Vec<RawFd> = descriptors.iter().map(|(number, _)| *number).collect();
        let highest = numbers.iter().copied().max().unwrap_or(2);
        // Out of the way of all these.
        let snapshot = duplicate_above(snapshot.as_fd(), highest)?;
        let channel = duplicate_above(channel.as_fd(), highest)?;
        let area = duplicate_above(self.area.as_fd(), highest)?;
        let program = duplicate_above(self.program.as_fd(), highest)?;
        place(descriptors)?;
        let inheritance = Inheritance {
            snapshot: snapshot.as_raw_fd(),
            before: None,
            failure: None,
            guarded: Some(Guarded {
                channel: channel.as_raw_fd(),
                area: area.as_raw_fd(),
                status,
                is_last: self.is_last,
            }),
        };
        let arguments = &self.settings.arguments;
        Err(execute(program, arguments, &inheritance, &numbers))
    }

    /// Nothing can look after them any more: tells all workers to stop, and waits for them.
    fn end_workers(&mut self) {
        // To find them takes descriptors, and a lack of these may be why there is no supervisor.
        drop(OpenFiles::of_launcher().and_then(|limit| limit.make_room_for(MOST_OWN)));
        let until = self
            .settings
            .stop_timeout
            .map(|limit| Moment::now() + limit);
        self.signal_workers(self.settings.signal);
        loop {
            self.reap_all();
            if self.workers().is_empty() {
                break;
            }
            let left = until.map(|until| until.saturating_since(Moment::now()));
            if left.is_some_and(|left| left.is_zero()) {
                self.signal_workers(Signal::SIGKILL);
            }
            self.wait_for_child(left.map(|left| left.max(Duration::from_millis(10))));
        }
        self.end_helpers();
    }

    /// A binder removes its sockets, a log command reads the rest.
    fn end_helpers(&mut self) {
        self.kept = Kept::default();
        let until = Moment::now() + LONGEST_END;
        loop {
            self.reap_all();
            let is_over = proc::children(Pid::this()).is_ok_and(|left| left.is_empty());
            let left = until.saturating_since(Moment::now());
            if is_over || left.is_zero() {
                return;
            }
            self.wait_for_child(Some(left));
        }
    }

    fn reap_all(&mut self) {
        while let Ok(Some((pid, _))) = exited(None) {
            let _ = reap_child(pid);
            self.helpers.retain(|one| *one != pid);
        }
    }

    /// Until one exits, or this time has passed.
    fn wait_for_child(&self, longest: Option<Duration>) {
        let mut source = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let _ = ppoll(&mut source, longest.map(TimeSpec::from_duration), None);
        drop(self.signals.take_all());
    }

    /// All children but those that serve the supervisor.
    fn workers(&self) -> Vec<Pid> {
        let mut children = proc::children(Pid::this()).unwrap_or_default();
        children.retain(|child| !self.helpers.contains(child));
        children
    }

    fn signal_workers(&self, signal: Signal) {
        for child in self.workers() {
            // It is a child that has not been reaped.
            let _ = kill(child, signal);
        }
    }
}

fn signal(id: u64, arrived: Taken) -> ToSupervisor {
    ToSupervisor::Signal {
        id,
        signal: arrived.signal,
        code: arrived.code,
        value: arrived.value,
    }
}
