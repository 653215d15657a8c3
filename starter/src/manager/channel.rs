//! The socket of a service manager: connected, and never waited for.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};
use crate::host::moment::Moment;

/// How long after a failure the socket is connected again, if there is something to tell.
const PAUSE: Duration = Duration::from_secs(1);

/// The way to the manager.
#[derive(Debug)]
pub struct Channel {
    place: Place,
    /// While there is a connection.
    socket: Option<OwnedFd>,
    next_try: Moment,
}

/// Where the manager listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "OsString", into = "OsString")]
struct Place {
    /// The value of `NOTIFY_SOCKET`.
    name: OsString,
    address: UnixAddr,
}

/// The same for the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedChannel {
    place: Place,
    socket: Option<Carried>,
    next_try: Moment,
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The manager will read it.
    Done,
    /// There is no room for it now: [`Channel::as_fd`] can be written to once there is.
    NoRoom,
    /// Nobody listens there, or what does cannot be reached.
    Nobody(Errno),
    /// As before, and it is not tried again so soon.
    StillNobody,
}

impl Channel {
    /// Connects. Where that fails, it is tried again when there is something to send, as whoever we are by then.
    pub fn open(place: &OsStr, now: Moment) -> Result<(Channel, Option<Errno>), String> {
        let place = Place::try_from(place.to_owned())?;
        let (socket, errno) = match connected(&place.address) {
            Ok(socket) => (Some(socket), None),
            Err(errno) => (None, Some(errno)),
        };
        let channel = Channel {
            place,
            socket,
            next_try: now + PAUSE,
        };
        Ok((channel, errno))
    }

    /// With its connection, which may be out of reach by now.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedChannel {
        PackedChannel {
            place: self.place.clone(),
            socket: self.socket.as_ref().map(|socket| luggage.put(socket)),
            next_try: self.next_try,
        }
    }

    /// What another program has packed.
    pub fn unpack(packed: PackedChannel) -> Channel {
        let PackedChannel {
            place,
            socket,
            next_try,
        } = packed;
        Channel {
            place,
            socket: socket.map(Carried::take),
            next_try,
        }
    }

    pub fn place(&self) -> &OsStr {
        &self.place.name
    }

    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    pub fn send(&mut self, datagram: &str, now: Moment) -> Sent {
        if let Some(socket) = &self.socket {
            match send_over(socket, datagram) {
                Ok(()) => return Sent::Done,
                Err(Errno::EAGAIN) => return Sent::NoRoom,
                // It listens no more; perhaps another one does.
                Err(_) => (self.socket, self.next_try) = (None, now),
            }
        }
        if now < self.next_try {
            return Sent::StillNobody;
        }
        self.next_try = now + PAUSE;
        let socket = match connected(&self.place.address) {
            Ok(socket) => socket,
            Err(errno) => return Sent::Nobody(errno),
        };
        let sent = match send_over(&socket, datagram) {
            Ok(()) => Sent::Done,
            Err(Errno::EAGAIN) => Sent::NoRoom,
            Err(errno) => return Sent::Nobody(errno),
        };
        self.socket = Some(socket);
        sent
    }
}

impl TryFrom<OsString> for Place {
    type Error = String;

    fn try_from(name: OsString) -> Result<Place, String> {
        let address = address(&name)?;
        Ok(Place { name, address })
    }
}

impl From<Place> for OsString {
    fn from(place: Place) -> OsString {
        place.name
    }
}

/// An absolute path, or an abstract name after `@`.
fn address(place: &OsStr) -> Result<UnixAddr, String> {
    let too_long = |_| "it is longer than 107 bytes".to_owned();
    match place.as_bytes() {
        [b'@', name @ ..] if !name.is_empty() => UnixAddr::new_abstract(name).map_err(too_long),
        [b'/', ..] => UnixAddr::new(place).map_err(too_long),
        _ => Err("it is neither an absolute path nor an abstract name (@NAME)".to_owned()),
    }
}

fn connected(address: &UnixAddr) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    connect(socket.as_raw_fd(), address)?;
    Ok(socket)
}

fn send_over(socket: &OwnedFd, datagram: &str) -> nix::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    // A datagram is sent whole or not at all.
    send(socket.as_raw_fd(), datagram.as_bytes(), flags).map(drop)
}
