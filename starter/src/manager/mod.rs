//! What the service manager that has launched us is told, over `NOTIFY_SOCKET` (sd_notify(3)): systemd, or whatever else
//! speaks its protocol.
//!
//! - [`known`] takes what it should know from the machine, after each event.
//! - [`messages`] finds the difference to what it was told, and words it.
//! - [`channel`] sends that without ever waiting; what finds no room is sent when there is some.
//! - [`watchdog`] says when a ping is due.
//!
//! Nobody depends on it: a manager that cannot be reached is complained of once, and the server goes on without it.

mod channel;
mod known;
pub mod launch;
mod messages;
pub mod watchdog;

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};

use self::channel::{Channel, PackedChannel, Sent};
use self::known::Known;
use self::launch::Launch;
use self::messages::{Told, datagram};
use self::watchdog::{Watchdog, is_healthy};
use crate::host::luggage::Luggage;
use crate::host::moment::Moment;
use crate::machine::Machine;
use crate::words::failure::Failure;
use crate::words::manager as words;
use crate::words::notice::Notice;

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub struct Manager {
    channel: Option<Channel>,
    known: Known,
    told: Told,
    /// Our pid, if it is not that of the process that the manager has launched.
    main_pid: Option<u32>,
    /// What a starting generation waits for, if that is more than time.
    awaited: Option<String>,
    watchdog: Option<Watchdog>,
    /// A datagram found no room.
    is_blocked: bool,
    /// Once is enough.
    has_complained: bool,
    notices: Vec<Notice>,
}

/// The same for the next program, without what its settings say.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedManager {
    channel: Option<PackedChannel>,
    known: Known,
    told: Told,
    main_pid: Option<u32>,
    watchdog: Option<Watchdog>,
    is_blocked: bool,
    has_complained: bool,
    /// The notices, which are all of this kind.
    complaints: Vec<String>,
}

impl Manager {
    /// With everything that the manager was told: it hears nothing twice.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedManager {
        let channel = self.channel.as_ref();
        PackedManager {
            channel: channel.map(|channel| channel.pack(luggage)),
            known: self.known.clone(),
            told: self.told.clone(),
            main_pid: self.main_pid,
            watchdog: self.watchdog.clone(),
            is_blocked: self.is_blocked,
            has_complained: self.has_complained,
            complaints: self.notices.iter().map(ToString::to_string).collect(),
        }
    }

    /// What another program has packed.
    pub fn unpack(packed: PackedManager, awaited: Option<String>) -> Manager {
        let complaints = packed.complaints.into_iter();
        Manager {
            channel: packed.channel.map(Channel::unpack),
            known: packed.known,
            told: packed.told,
            main_pid: packed.main_pid,
            awaited,
            watchdog: packed.watchdog,
            is_blocked: packed.is_blocked,
            has_complained: packed.has_complained,
            notices: complaints.map(Notice::Complaint).collect(),
        }
    }

    /// Connects to the manager. This comes before privileges are dropped: afterwards its socket may be out of reach.
    pub fn reach(launch: Launch, main_pid: Option<u32>, awaited: Option<String>) -> Manager {
        let now = Moment::now();
        let mut manager = Manager {
            main_pid,
            awaited,
            watchdog: launch.watchdog.map(|longest| Watchdog::new(longest, now)),
            notices: launch.notice.into_iter().collect(),
            ..Manager::default()
        };
        let Some(place) = launch.socket else {
            return manager;
        };
        match Channel::open(&place, now) {
            Ok((channel, errno)) => {
                manager.channel = Some(channel);
                if let Some(errno) = errno {
                    manager.complain_of(errno);
                }
            }
            Err(cause) => {
                let complaint = words::unreachable(&place, &cause);
                manager.notices.push(Notice::Complaint(complaint));
            }
        }
        manager
    }

    /// What there is to say about it.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Takes what it should know from the machine, after each event: a restart may begin and end before anything is told.
    pub fn learn(&mut self, machine: &Machine) {
        if self.channel.is_some() {
            self.known = self.known.after(machine, self.awaited.as_deref());
        }
    }

    /// Tells what it does not know yet, and that all is well if that is due.
    pub fn tell(&mut self, machine: &Machine, now: Moment) {
        if self.channel.is_none() {
            return;
        }
        self.is_blocked = false;
        let is_told = self.tell_news(now);
        if self.ping_due(machine).is_some_and(|due| due <= now) {
            let is_sent = is_told && self.send(&datagram(&[NotifyState::Watchdog]), now);
            // Where nobody listens, it is not due again at once; what found no room is sent when there is some.
            let watchdog = self.watchdog.as_mut();
            if let Some(watchdog) = watchdog.filter(|_| is_sent || !self.is_blocked) {
                watchdog.pinged(now);
            }
        }
    }

    /// Tells what it does not know yet. Returns whether it knows all now.
    fn tell_news(&mut self, now: Moment) -> bool {
        while let Some((datagram, told)) = self.told.next(&self.known, self.main_pid, now) {
            if !self.send(&datagram, now) {
                return false;
            }
            self.told = told;
        }
        true
    }

    /// The start has failed, or nothing is left that could serve. Nothing is told after this.
    pub fn tell_failure(&mut self, failure: &Failure) {
        let status = words::line(&failure.text());
        let exit_status = format!("EXIT_STATUS={}", failure.status as u8);
        let mut states = vec![NotifyState::Status(&status)];
        let errno = failure
            .errno()
            .and_then(|errno| u32::try_from(errno as i32).ok());
        states.extend(errno.map(NotifyState::Errno));
        states.push(NotifyState::Custom(&exit_status));
        self.send(&datagram(&states), Moment::now());
        self.channel = None;
    }

    /// When [`Manager::tell`] is due even if nothing has happened. What found no room waits for [`Manager::source`].
    pub fn deadline(&self, machine: &Machine) -> Option<Moment> {
        self.ping_due(machine).filter(|_| !self.is_blocked)
    }

    /// Can be written to when there is room again for what found none.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        let channel = self.channel.as_ref().filter(|_| self.is_blocked);
        channel.and_then(Channel::as_fd)
    }

    fn ping_due(&self, machine: &Machine) -> Option<Moment> {
        let watchdog = self.watchdog.as_ref().filter(|_| self.channel.is_some())?;
        is_healthy(machine).then(|| watchdog.due())
    }

    /// Whether it was sent.
    fn send(&mut self, datagram: &str, now: Moment) -> bool {
        let Some(channel) = &mut self.channel else {
            return false;
        };
        match channel.send(datagram, now) {
            Sent::Done => return true,
            Sent::NoRoom => {
                self.is_blocked = true;
                let complaint = words::unread(channel.place());
                self.complain(complaint);
            }
            // Those that wait for READY=1 alone, such as runc, listen no longer than that.
            Sent::Nobody(errno) if !self.told.is_ready() => self.complain_of(errno),
            Sent::Nobody(_) | Sent::StillNobody => {}
        }
        false
    }

    fn complain_of(&mut self, errno: Errno) {
        if let Some(channel) = &self.channel {
            let complaint = words::unreachable(channel.place(), errno.desc());
            self.complain(complaint);
        }
    }

    fn complain(&mut self, complaint: String) {
        if !std::mem::replace(&mut self.has_complained, true) {
            self.notices.push(Notice::Complaint(complaint));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
