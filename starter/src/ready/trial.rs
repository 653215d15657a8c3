//! Asking a probe again and again until the generation has proved that it serves. Nothing here blocks.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send};
use serde::{Deserialize, Serialize};

use crate::host::luggage::{self, Luggage};
use crate::host::moment::Moment;
use crate::ready::http::{Answer, LONGEST_HEAD, read_answer, request};
use crate::ready::probe::{Connection, PackedConnection, Probe};
use crate::ready::settings::{Ready, Statuses};
use crate::ready::whom::Whom;

/// The first pause between two looks; each one after it is 1.5 times longer, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How long one request may take.
pub const LONGEST_REQUEST: Duration = Duration::from_secs(1);

/// What to send to a listener that hands out a connection only once data has come. A server skips an empty line before
/// a request (RFC 9112, 2.2).
const SOME_DATA: &[u8] = b"\r\n";

/// What proves that a generation serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// It accepts a connection.
    Accept,
    /// It answers a request with one of these statuses.
    Http { path: String, statuses: Statuses },
}

impl Goal {
    /// What proves it, where it is the listener of its own.
    pub fn of(ready: &Ready) -> Option<Goal> {
        match ready {
            Ready::Accept => Some(Goal::Accept),
            Ready::Http { path, statuses } => Some(Goal::Http {
                path: path.clone(),
                statuses: *statuses,
            }),
            Ready::Interval | Ready::Notify | Ready::Descriptor(_) | Ready::Command(_) => None,
        }
    }
}

/// How far the asking has got.
#[derive(Debug)]
pub struct Trial {
    goal: Goal,
    asking: Option<Asking>,
    /// When to look next, or when the request that is under way has taken too long.
    next_at: Moment,
    pause: Duration,
}

#[derive(Debug)]
struct Asking {
    connection: Connection,
    began_at: Moment,
    unsent: Vec<u8>,
    received: Vec<u8>,
}

/// A trial on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedTrial {
    asking: Option<PackedAsking>,
    next_at: Moment,
    pause: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedAsking {
    connection: PackedConnection,
    began_at: Moment,
    #[serde(with = "luggage::bytes")]
    unsent: Vec<u8>,
    #[serde(with = "luggage::bytes")]
    received: Vec<u8>,
}

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Ready,
    /// Not ready, and what is known about that.
    NotYet(String),
    /// Nothing new.
    Nothing,
}

impl Trial {
    /// It begins at this moment, or soon after it.
    pub fn new(goal: Goal, at: Moment) -> Trial {
        Trial {
            goal,
            asking: None,
            next_at: at + FIRST_PAUSE,
            pause: FIRST_PAUSE,
        }
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedTrial {
        PackedTrial {
            asking: self.asking.as_ref().map(|asking| asking.pack(luggage)),
            next_at: self.next_at,
            pause: self.pause,
        }
    }

    /// The same trial again, which goes on with the request that is under way.
    pub fn unpack(packed: PackedTrial, goal: Goal) -> Trial {
        Trial {
            goal,
            asking: packed.asking.map(Asking::unpack),
            next_at: packed.next_at,
            pause: packed.pause,
        }
    }

    /// What is known before the first answer.
    pub fn known(&self) -> String {
        match &self.goal {
            Goal::Accept => "it has not accepted a connection".to_owned(),
            Goal::Http { path, .. } => format!("GET {path} has not been answered"),
        }
    }

    /// When [`Trial::look`] is due at the latest.
    pub fn deadline(&self) -> Moment {
        self.next_at
    }

    /// When the request that is under way began.
    pub fn began_at(&self) -> Option<Moment> {
        self.asking.as_ref().map(|asking| asking.began_at)
    }

    /// It need not look again before this moment.
    pub fn pause_until(&mut self, at: Moment) {
        self.next_at = at;
    }

    /// What to wait for besides the deadline, if anything.
    pub fn source(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let asking = self.asking.as_ref()?;
        if self.goal == Goal::Accept {
            return None;
        }
        let flags = match asking.unsent.is_empty() {
            true => PollFlags::POLLIN,
            false => PollFlags::POLLOUT,
        };
        Some((asking.connection.socket.as_fd(), flags))
    }

    /// Goes on as far as it can without waiting.
    pub fn look(&mut self, probe: &Probe, whom: Whom, now: Moment) -> Found {
        match self.goal.clone() {
            Goal::Accept => self.look_for_accept(probe, whom, now),
            Goal::Http { path, statuses } => {
                self.look_for_answer(probe, &path, statuses, whom, now)
            }
        }
    }

    fn rest(&mut self, now: Moment) {
        self.next_at = now + self.pause;
        self.pause = (self.pause * 3 / 2).min(LONGEST_PAUSE);
    }

    /// One connection is kept until it is accepted: any that was given up would have to be accepted before the next.
    fn look_for_accept(&mut self, probe: &Probe, whom: Whom, now: Moment) -> Found {
        if now < self.next_at {
            return Found::Nothing;
        }
        self.rest(now);
        let asking = match self.asking.take() {
            Some(asking) => asking,
            None => match probe.connect() {
                Ok(connection) => Asking {
                    connection,
                    began_at: now,
                    unsent: SOME_DATA.to_vec(),
                    received: Vec::new(),
                },
                Err(errno) => return cannot_connect(whom, errno),
            },
        };
        self.wait_for_accept(asking, probe, whom)
    }

    fn wait_for_accept(&mut self, mut asking: Asking, probe: &Probe, whom: Whom) -> Found {
        let socket = asking.connection.socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match recv(socket, &mut [0], MsgFlags::MSG_PEEK | flags) {
            // Only a server that has accepted it can write to it, or close it in an orderly way.
            Ok(_) => return Found::Ready,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOTCONN) => {}
            // Reset, as when the listener is shut down: another connection is needed.
            Err(errno) => return cannot_connect(whom, errno),
        }
        if probe.has_accepted(&asking.connection) {
            return Found::Ready;
        }
        if !asking.unsent.is_empty() && probe.defers() {
            let sent = send(socket, &asking.unsent, flags).unwrap_or(0);
            asking.unsent.drain(..sent);
        }
        self.asking = Some(asking);
        Found::Nothing
    }

    fn look_for_answer(
        &mut self,
        probe: &Probe,
        path: &str,
        statuses: Statuses,
        whom: Whom,
        now: Moment,
    ) -> Found {
        let not_yet = |what: &str| Found::NotYet(format!("GET {path} on {whom}: {what}"));
        let mut asking = match self.asking.take() {
            Some(asking) => asking,
            None if now < self.next_at => return Found::Nothing,
            None => match probe.connect() {
                Ok(connection) => {
                    self.next_at = now + LONGEST_REQUEST;
                    Asking {
                        connection,
                        began_at: now,
                        unsent: request(path, &probe.host()),
                        received: Vec::new(),
                    }
                }
                Err(errno) => {
                    self.rest(now);
                    return not_yet(errno.desc());
                }
            },
        };
        // As a rule the connection exists by now, and the first look sends the request.
        let is_due = now >= self.next_at;
        let answer = asking.exchange();
        match answer {
            Ok(Answer::Final { status, .. }) if statuses.contain(status) => return Found::Ready,
            Ok(Answer::Partial) if !is_due => {
                self.asking = Some(asking);
                return Found::Nothing;
            }
            _ => self.rest(now),
        }
        match answer {
            Ok(Answer::Final { shown, .. }) => not_yet(&shown),
            Ok(Answer::Partial) => not_yet("no answer within a second"),
            Ok(Answer::Broken(why)) => not_yet(&format!("the answer cannot be used: {why}")),
            Err(why) => not_yet(&why),
        }
    }
}

fn cannot_connect(whom: Whom, errno: Errno) -> Found {
    let cause = errno.desc();
    Found::NotYet(format!("a connection to {whom} failed: {cause}"))
}

impl Asking {
    fn pack(&self, luggage: &mut Luggage) -> PackedAsking {
        PackedAsking {
            connection: self.connection.pack(luggage),
            began_at: self.began_at,
            unsent: self.unsent.clone(),
            received: self.received.clone(),
        }
    }

    fn unpack(packed: PackedAsking) -> Asking {
        Asking {
            connection: Connection::unpack(packed.connection),
            began_at: packed.began_at,
            unsent: packed.unsent,
            received: packed.received,
        }
    }

    /// Sends and reads what can be sent and read at once. The error is the cause in words.
    fn exchange(&mut self) -> Result<Answer, String> {
        let socket = self.connection.socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !self.unsent.is_empty() {
            match send(socket, &self.unsent, flags) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOTCONN) => return Ok(Answer::Partial),
                Err(errno) => return Err(errno.desc().to_owned()),
            }
        }
        let mut portion = [0; 4096];
        // No more than it takes to know that the head is too long.
        while self.received.len() <= LONGEST_HEAD {
            match recv(socket, &mut portion, flags) {
                Ok(0) => {
                    return match read_answer(&self.received) {
                        Answer::Partial => {
                            Err("the connection was closed before an answer".to_owned())
                        }
                        answer => Ok(answer),
                    };
                }
                Ok(length) => self.received.extend(&portion[..length]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno.desc().to_owned()),
            }
        }
        match read_answer(&self.received) {
            // Interim answers without end.
            Answer::Partial if self.received.len() > LONGEST_HEAD => {
                Err(format!("the answer has no end within {LONGEST_HEAD} bytes"))
            }
            answer => Ok(answer),
        }
    }
}
