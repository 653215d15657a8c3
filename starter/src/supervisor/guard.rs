//! The supervisor's side of `--guardian`: what it tells the guardian, and what it hears from it. See [`crate::guardian`].

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use nix::unistd::{Pid, pipe2};
use serde::{Deserialize, Serialize};

use crate::guardian::area::Area;
use crate::guardian::message::{Channel, PAUSE, ToGuardian, ToSupervisor};
use crate::host::luggage::{Carried, Luggage};
use crate::host::moment::Moment;
use crate::host::open_files::{borrowed, duplicate_above};
use crate::host::own_program::running;
use crate::host::proc;
use crate::host::process::{Process, exited, reap_child};
use crate::host::signals::Taken;
use crate::supervisor::upgrade::Legacy;
use crate::words::failure;

/// The connection to the guardian.
pub struct Guard {
    channel: Channel,
    area: Area,
    /// The number of the last snapshot, and what it says.
    last: u64,
    text: Vec<u8>,
    /// The descriptors that the guardian has, and what they were when it got them.
    sent: BTreeMap<RawFd, Identity>,
    /// What has been heard from the guardian and is not dealt with.
    heard: VecDeque<(u64, Taken)>,
    told: Option<(Pid, i32)>,
    /// What is said once the consequences are in the snapshot.
    dealt_with: Vec<ToGuardian>,
    /// The same for an own child.
    seen: Option<Pid>,
    has_more: bool,
    /// Workers that wait until they are in the snapshot.
    gates: Vec<OwnedFd>,
    is_gone: bool,
    was_gone: bool,
    /// Children of a guardian that has died, until they have exited.
    adopted: Vec<(Pid, Option<Process>)>,
    has_complained: bool,
    /// No other supervisor follows: too many have died.
    pub is_last: bool,
}

/// The wait status of a worker whose parent was a guardian that has died: it is known to nobody.
const UNKNOWN: i32 = 0;

/// What a descriptor is: device, inode and flags. A number may be used again.
type Identity = (u64, u64, i32);

/// For the next program of this process.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedGuard {
    channel: Carried,
    area: Carried,
    is_gone: bool,
    adopted: Vec<i32>,
}

/// What has become of a save.
pub enum Saved {
    Done,
    /// For the first time.
    Failed(String),
}

impl Guard {
    pub fn new(channel: Channel, area: Area) -> Guard {
        let mut guard = Guard {
            channel,
            last: area.last(),
            area,
            text: Vec::new(),
            sent: BTreeMap::new(),
            heard: VecDeque::new(),
            told: None,
            dealt_with: Vec::new(),
            seen: None,
            has_more: false,
            gates: Vec::new(),
            is_gone: false,
            was_gone: false,
            adopted: Vec::new(),
            has_complained: false,
            is_last: false,
        };
        if let Ok(program) = running() {
            // It is the first.
            let _ = guard.say(ToGuardian::Program, Some(program.as_fd()));
        }
        guard
    }

    /// By the numbers that a guardian has named.
    pub fn of(channel: OwnedFd, area: OwnedFd) -> Guard {
        Guard::new(Channel::of(channel), Area::of(area))
    }

    /// Everything that was heard must be dealt with.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedGuard {
        PackedGuard {
            channel: luggage.put(&self.channel),
            area: luggage.put(&self.area),
            is_gone: self.is_gone,
            adopted: self.adopted.iter().map(|(pid, _)| pid.as_raw()).collect(),
        }
    }

    pub fn unpack(packed: PackedGuard) -> Guard {
        let adopted = packed.adopted.into_iter().map(Pid::from_raw);
        Guard {
            is_gone: packed.is_gone,
            was_gone: packed.is_gone,
            adopted: watched(adopted),
            ..Guard::of(packed.channel.take(), packed.area.take())
        }
    }

    /// What to wait for until the guardian has room for what is unsent.
    pub fn unsent(&self) -> Option<BorrowedFd<'_>> {
        let is_waiting = self.has_unsent() && !self.channel.is_rationed();
        is_waiting.then(|| self.channel.as_fd())
    }

    pub fn has_unsent(&self) -> bool {
        !self.is_gone && self.channel.wants_to_write()
    }

    /// When to look whether there is room, if nothing tells that.
    pub fn deadline(&self) -> Option<Moment> {
        let is_rationed = !self.is_gone && self.channel.is_rationed();
        is_rationed.then(|| Moment::now() + PAUSE)
    }

    /// Whether the next turn begins at once: no signal tells of a second child that has exited.
    pub fn take_more(&mut self) -> bool {
        std::mem::take(&mut self.has_more)
    }

    /// Whether it has died since the last call. `workers` of it, which are no children of ours, are looked after from then on.
    pub fn has_died(&mut self, workers: impl Iterator<Item = Pid>) -> bool {
        if !self.is_gone || std::mem::replace(&mut self.was_gone, true) {
            return false;
        }
        let ours = proc::children(Pid::this()).unwrap_or_default();
        self.adopted = watched(workers.filter(|pid| !ours.contains(pid)));
        true
    }

    /// What to wait for.
    pub fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let guardian = (!self.is_gone).then(|| self.channel.as_fd());
        let adopted = self.adopted.iter().filter_map(|(_, it)| it.as_ref());
        guardian.into_iter().chain(adopted.map(AsFd::as_fd))
    }

    /// One of them has exited; nobody knows how.
    fn next_of_adopted(&mut self) -> Option<Pid> {
        let is_over = |it: &Option<Process>| it.as_ref().is_none_or(Process::has_exited);
        let place = self.adopted.iter().position(|(_, it)| is_over(it))?;
        Some(self.adopted.swap_remove(place).0)
    }

    /// The signals that the guardian has passed on since the last call.
    pub fn listen(&mut self) -> Vec<Taken> {
        loop {
            match self.channel.receive() {
                Ok(Some((ToSupervisor::Exited { pid, status }, _))) => {
                    self.told = Some((Pid::from_raw(pid), status));
                }
                Ok(Some((message @ ToSupervisor::Signal { .. }, _))) => {
                    self.heard.extend(arrived(&message));
                }
                Err(Errno::EPIPE) => {
                    self.is_gone = true;
                    break;
                }
                Err(Errno::EBADMSG) => {}
                Ok(None) | Err(_) => break,
            }
        }
        let heard = self.heard.drain(..);
        let (ids, arrived): (Vec<u64>, Vec<Taken>) = heard.unzip();
        let done = ids.into_iter().map(|id| ToGuardian::Done { id });
        self.dealt_with.extend(done);
        arrived
    }

    /// The exit of one child, here or of the guardian, and no other until it is in the snapshot.
    pub fn next_exit(&mut self) -> nix::Result<Option<(Pid, i32)>> {
        if self.seen.is_some() {
            return Ok(None);
        }
        if let Some((pid, status)) = self.told.take() {
            let pid_of = pid.as_raw();
            self.dealt_with.push(ToGuardian::Reap { pid: pid_of });
            return Ok(Some((pid, status)));
        }
        if let Some(pid) = self.next_of_adopted() {
            self.has_more = true;
            return Ok(Some((pid, UNKNOWN)));
        }
        let exited = exited(None)?;
        self.seen = exited.map(|(pid, _)| pid);
        self.has_more |= exited.is_some();
        Ok(exited)
    }

    /// A gate for a new worker: its end of it.
    pub fn gate(&mut self, highest: RawFd) -> nix::Result<OwnedFd> {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        let theirs = duplicate_above(theirs.as_fd(), highest)?;
        self.gates.push(ours);
        Ok(theirs)
    }

    /// In a child, which sees the memory and not this process: whether this process has written one more snapshot since.
    pub fn has_saved_next(&self) -> bool {
        self.area.last() > self.last
    }

    /// Writes the snapshot, if anything is new. After that nothing of this turn can be lost, so the rest of it is done.
    pub fn save(&mut self, legacy: &Legacy) -> Saved {
        let saved = match self.is_gone {
            true => Ok(()),
            false => self.write(legacy),
        };
        for message in std::mem::take(&mut self.dealt_with) {
            self.tell(message);
        }
        if let Some(pid) = self.seen.take() {
            // It has exited, so this does not wait.
            let _ = reap_child(pid);
        }
        for gate in std::mem::take(&mut self.gates) {
            // If the worker is dead, its exit is seen.
            drop(std::fs::File::from(gate).write_all(b"\n"));
        }
        match saved {
            Err(cause) if !std::mem::replace(&mut self.has_complained, true) => {
                Saved::Failed(cause)
            }
            _ => Saved::Done,
        }
    }

    fn write(&mut self, legacy: &Legacy) -> Result<(), String> {
        let _ = self.channel.flush();
        self.channel.drop_superseded(self.last);
        let next = self.last + 1;
        // Standard output and error may be a file that was opened since.
        let numbers = legacy.luggage.numbers().iter().copied().chain([1, 2]);
        let now: BTreeMap<RawFd, Identity> = numbers
            .filter_map(|number| Some((number, identity(number)?)))
            .collect();
        if now == self.sent && legacy.text == self.text {
            return Ok(());
        }
        if self.sent.is_empty() {
            // The supervisor before had others, and perhaps some that are in no snapshot.
            self.tell(ToGuardian::ForgetAll { since: next });
        }
        for (number, identity) in &now {
            if self.sent.get(number) != Some(identity) {
                let message = ToGuardian::Keep {
                    number: *number,
                    since: next,
                };
                // Without it the snapshot would be of no use.
                let said = self.say(message, Some(borrowed(*number)));
                said.map_err(|errno| errno.desc().to_owned())?;
            }
        }
        let written = (self.area).write(next, &legacy.text, legacy.luggage.numbers());
        written.map_err(|error| failure::cause(&error))?;
        let gone: Vec<RawFd> = self.sent.keys().copied().collect();
        for number in gone.into_iter().filter(|one| !now.contains_key(one)) {
            let since = next;
            self.tell(ToGuardian::Forget { number, since });
        }
        (self.last, self.sent) = (next, now);
        self.text.clone_from(&legacy.text);
        Ok(())
    }

    /// Whoever looks for the holder of this lock has to find the guardian.
    pub fn give_lock(&mut self, file: BorrowedFd<'_>) {
        if !self.is_gone {
            // For lack of descriptors: then the holder is this process, which is found as well.
            let _ = self.say(ToGuardian::Lock, Some(file));
        }
    }

    /// Whether the server ends because of deaths: of its guardian, whose end a service manager takes for that of the server,
    /// or of too many supervisors. It is to be started again then.
    pub fn ends_by_deaths(&self) -> bool {
        self.is_gone || self.is_last
    }

    /// All is over: the exit that follows is meant.
    pub fn end(&mut self) {
        self.tell(ToGuardian::Ending);
    }

    fn tell(&mut self, message: ToGuardian) {
        // Without a descriptor it is sent or kept.
        let _ = self.say(message, None);
    }

    fn say(&mut self, message: ToGuardian, along: Option<BorrowedFd<'_>>) -> nix::Result<()> {
        match self.channel.send(&message, along) {
            Err(Errno::EPIPE) => {
                self.is_gone = true;
                Ok(())
            }
            said => said,
        }
    }
}

fn watched(pids: impl Iterator<Item = Pid>) -> Vec<(Pid, Option<Process>)> {
    pids.map(|pid| (pid, Process::open(pid).ok())).collect()
}

fn arrived(message: &ToSupervisor) -> Option<(u64, Taken)> {
    match *message {
        ToSupervisor::Signal {
            id,
            signal,
            code,
            value,
        } => Some((
            id,
            Taken {
                signal,
                code,
                value,
            },
        )),
        ToSupervisor::Exited { .. } => None,
    }
}

fn identity(number: RawFd) -> Option<Identity> {
    let descriptor = borrowed(number);
    let there = fstat(descriptor).ok()?;
    let flags = fcntl(descriptor, FcntlArg::F_GETFL).ok()?;
    Some((there.st_dev, there.st_ino, flags))
}
