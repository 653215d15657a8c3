//! What guardian and supervisor tell each other: each message a datagram of JSON, with a descriptor where one is passed.
//!
//! Neither waits for the other to read. Whatever the guardian passes on it keeps until the supervisor says that its consequences
//! are in the snapshot: a supervisor that dies before that gets it again, or rather its successor does.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How long to wait where nothing tells that there is room.
pub const PAUSE: Duration = Duration::from_millis(100);

/// The longest message, in bytes.
const LONGEST: usize = 256;

/// What the guardian passes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// A signal for the server, as signalfd(2) tells it.
    Signal {
        id: u64,
        signal: i32,
        code: i32,
        value: i32,
    },
    /// A child of the guardian has exited, with this wait status. It is not reaped yet: its pid is still its own.
    Exited { pid: i32, status: i32 },
}

/// What the supervisor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuardian {
    /// The descriptor that comes along has this number in snapshots from this one on.
    Keep { number: RawFd, since: u64 },
    /// No snapshot from this one on has that number.
    Forget { number: RawFd, since: u64 },
    /// The same of all numbers: those that are left are told next.
    ForgetAll { since: u64 },
    /// The descriptor that comes along is a file that the supervisor has locked: its holder has to be the guardian.
    Lock,
    /// The descriptor that comes along is the program that runs.
    Program,
    /// The consequences of this signal are in the snapshot.
    Done { id: u64 },
    /// Those of this exit are.
    Reap { pid: i32 },
    /// All is over, and its exit is meant.
    Ending,
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// What there was no room for.
    unsent: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    /// The kernel passes on no more descriptors of this user for now, and nothing tells when it does again.
    is_rationed: bool,
}

impl Channel {
    /// Both ends.
    pub fn pair() -> nix::Result<(Channel, Channel)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Channel::of(one), Channel::of(other)))
    }

    pub fn of(socket: OwnedFd) -> Channel {
        Channel {
            socket,
            unsent: VecDeque::new(),
            is_rationed: false,
        }
    }

    /// Sends it, or keeps it until there is room: see [`Channel::wants_to_write`].
    ///
    /// # Errors
    /// The other end is gone, or descriptors cannot be copied.
    pub fn send(
        &mut self,
        message: &impl Serialize,
        along: Option<BorrowedFd<'_>>,
    ) -> nix::Result<()> {
        let message = serde_json::to_vec(message).map_err(|_| Errno::EINVAL)?;
        if self.unsent.is_empty() && self.has_sent(&message, along)? {
            return Ok(());
        }
        let along = along.map(|one| one.try_clone_to_owned());
        let along = along.transpose().map_err(|_| Errno::EMFILE)?;
        self.unsent.push_back((message, along));
        Ok(())
    }

    /// Sends what there is room for by now.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn flush(&mut self) -> nix::Result<()> {
        while let Some((message, along)) = self.unsent.pop_front() {
            if !self.has_sent(&message, along.as_ref().map(AsFd::as_fd))? {
                self.unsent.push_front((message, along));
                break;
            }
        }
        Ok(())
    }

    pub fn wants_to_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether to look again after a while: see [`PAUSE`].
    pub fn is_rationed(&self) -> bool {
        self.is_rationed && self.wants_to_write()
    }

    /// Closes what is unsent and means nothing any more to a guardian that finds the snapshot with this number or a later one:
    /// it may read nothing for a long time.
    pub fn drop_superseded(&mut self, last: u64) {
        let mut later: BTreeMap<RawFd, u64> = BTreeMap::new();
        let mut is_over = |message: &[u8]| {
            let (number, since) = match serde_json::from_slice(message) {
                Ok(ToGuardian::Keep { number, since } | ToGuardian::Forget { number, since }) => {
                    (number, since)
                }
                _ => return false,
            };
            let is_over = later
                .get(&number)
                .is_some_and(|one| *one <= last.max(since));
            let first = later.entry(number).or_insert(since);
            *first = since.min(*first);
            is_over
        };
        let from_the_last = self.unsent.drain(..).rev();
        let left = from_the_last.filter(|(message, _)| !is_over(message));
        let left: Vec<_> = left.collect();
        self.unsent.extend(left.into_iter().rev());
    }

    /// Whether there was room for it.
    fn has_sent(&mut self, message: &[u8], along: Option<BorrowedFd<'_>>) -> nix::Result<bool> {
        let sent = self.send_now(message, along);
        self.is_rationed = matches!(sent, Err(Errno::ETOOMANYREFS | Errno::ENOBUFS));
        match sent {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::ENOBUFS) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn send_now(&self, message: &[u8], along: Option<BorrowedFd<'_>>) -> nix::Result<()> {
        let number = along.map(|one| [one.as_raw_fd()]);
        let rights = number.as_ref().map(|one| ControlMessage::ScmRights(one));
        let rights: Vec<ControlMessage<'_>> = rights.into_iter().collect();
        let parts = [IoSlice::new(message)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, &rights, flags, None) {
                Err(Errno::EINTR) => {}
                sent => return sent.map(drop),
            }
        }
    }

    /// The next message, if one has arrived.
    ///
    /// # Errors
    /// `EPIPE`: the other end is gone. `EBADMSG`: it sends what this version does not know.
    pub fn receive<T: DeserializeOwned>(&self) -> nix::Result<Option<(T, Option<OwnedFd>)>> {
        let mut message = [0; LONGEST];
        let mut space = nix::cmsg_space!(RawFd);
        let (length, along) = loop {
            let mut parts = [IoSliceMut::new(&mut message)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Ok(received) => break (received.bytes, first_of(&received)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ECONNRESET) => return Err(Errno::EPIPE),
                Err(errno) => return Err(errno),
            }
        };
        let text = message.get(..length).unwrap_or_default();
        if text.is_empty() {
            return Err(Errno::EPIPE);
        }
        let message = serde_json::from_slice(text).map_err(|_| Errno::EBADMSG)?;
        Ok(Some((message, along)))
    }
}

/// There is room for one.
#[expect(unsafe_code, reason = "a descriptor that arrives is a number")]
fn first_of(received: &nix::sys::socket::RecvMsg<'_, '_, ()>) -> Option<OwnedFd> {
    let mut all = received.cmsgs().ok()?;
    let Some(ControlMessageOwned::ScmRights(numbers)) = all.next() else {
        return None;
    };
    let number = *numbers.first()?;
    // SAFETY: the kernel has just installed this descriptor, and nothing else has seen its number.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_order_however_many_there_are_and_with_their_descriptors() {
        let (mut one, other) = Channel::pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let message = |number| ToGuardian::Keep { number, since: 7 };
        for number in 0..600 {
            one.send(&message(number), Some(writer.as_fd())).unwrap();
        }
        assert!(one.wants_to_write());
        for number in 0..600 {
            one.flush().unwrap();
            let (received, along): (ToGuardian, _) = other.receive().unwrap().unwrap();
            assert_eq!(received, message(number));
            assert!(along.is_some());
        }
        assert!(!one.wants_to_write());
        assert_eq!(other.receive::<ToGuardian>().unwrap().map(|_| ()), None);
        drop((one, reader));
        assert_eq!(other.receive::<ToGuardian>().map(|_| ()), Err(Errno::EPIPE));
    }

    #[test]
    fn of_what_is_unsent_only_the_last_is_kept() {
        let (mut one, other) = Channel::pair().unwrap();
        let writer = std::io::pipe().unwrap().1;
        // There is no room for anything else.
        while !one.wants_to_write() {
            one.send(&ToGuardian::Ending, None).unwrap();
        }
        for since in 1..=5 {
            for number in [7, 8] {
                let keep = ToGuardian::Keep { number, since };
                one.send(&keep, Some(writer.as_fd())).unwrap();
            }
        }
        let (number, since) = (8, 6);
        one.send(&ToGuardian::Forget { number, since }, None)
            .unwrap();
        one.drop_superseded(5);
        let with_descriptor = |one: &Channel| {
            let unsent = one.unsent.iter();
            unsent.filter(|(_, along)| along.is_some()).count()
        };
        assert_eq!(with_descriptor(&one), 2);
        one.drop_superseded(6);
        assert_eq!(with_descriptor(&one), 1);
        let mut received = Vec::new();
        while one.wants_to_write() || received.is_empty() {
            while let Some((message, _)) = other.receive::<ToGuardian>().unwrap() {
                received.push(message);
            }
            one.flush().unwrap();
        }
        while let Some((message, _)) = other.receive::<ToGuardian>().unwrap() {
            received.push(message);
        }
        received.retain(|message| *message != ToGuardian::Ending);
        let keep = ToGuardian::Keep {
            number: 7,
            since: 5,
        };
        assert_eq!(received, [keep, ToGuardian::Forget { number, since }]);
    }
}
