//! The probe: a listener that belongs to one slot of one generation. A request there is answered by the worker in it; one
//! to the shared listeners might be answered by any other.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, UnixAddr, bind, connect, getsockname,
    getsockopt, socket,
};
use nix::sys::stat::fstat;
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};
use crate::host::sock_diag::{self, State, UnixSocket};
use crate::listeners::dialects::Announced;
use crate::listeners::sockets;
use crate::ready::private::{PackedDirectory, PrivateDirectory};
use crate::ready::settings::ProbeAt;

sockopt_impl!(
    /// How long a TCP listener holds back a connection without data, in seconds (tcp(7)).
    DeferAccept,
    Both,
    libc::IPPROTO_TCP,
    libc::TCP_DEFER_ACCEPT,
    libc::c_int
);

/// The name of a unix socket in its directory.
const NAME: &str = "socket";

/// A listener of one slot. Dropping it closes our copy, and removes the file of a unix socket.
#[derive(Debug)]
pub struct Probe {
    listener: OwnedFd,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Port(SocketAddr),
    File(PrivateDirectory),
}

/// A connection to a probe, which may not be established yet.
#[derive(Debug)]
pub struct Connection {
    pub socket: OwnedFd,
    /// The addresses of our end and theirs, for TCP.
    addresses: Option<(SocketAddr, SocketAddr)>,
}

/// A probe on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedProbe {
    listener: Carried,
    place: PackedPlace,
}

#[derive(Debug, Serialize, Deserialize)]
enum PackedPlace {
    Port(SocketAddr),
    File(PackedDirectory),
}

/// A connection on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedConnection {
    socket: Carried,
    addresses: Option<(SocketAddr, SocketAddr)>,
}

impl Connection {
    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedConnection {
        PackedConnection {
            socket: luggage.put(&self.socket),
            addresses: self.addresses,
        }
    }

    /// The same connection again.
    pub fn unpack(packed: PackedConnection) -> Connection {
        Connection {
            socket: packed.socket.take(),
            addresses: packed.addresses,
        }
    }
}

impl Probe {
    /// Opens one, whose descriptor in this process is above `highest`.
    pub fn open(
        at: ProbeAt,
        backlog: i32,
        is_blocking: bool,
        highest: RawFd,
    ) -> nix::Result<Probe> {
        let (listener, place) = match at {
            ProbeAt::Tcp => open_port()?,
            ProbeAt::Unix => open_file()?,
        };
        // From here on, dropping it removes what was made.
        let mut probe = Probe { listener, place };
        sockets::listen(&probe.listener, backlog)?;
        if !is_blocking {
            fcntl(&probe.listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        probe.listener = crate::host::open_files::duplicate_above(probe.listener.as_fd(), highest)?;
        Ok(probe)
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedProbe {
        PackedProbe {
            listener: luggage.put(&self.listener),
            place: match &self.place {
                Place::Port(address) => PackedPlace::Port(*address),
                Place::File(directory) => PackedPlace::File(directory.pack(luggage)),
            },
        }
    }

    /// The same probe again, wherever `--probe` would open one now.
    pub fn unpack(packed: PackedProbe) -> Probe {
        Probe {
            listener: packed.listener.take(),
            place: match packed.place {
                PackedPlace::Port(address) => Place::Port(address),
                PackedPlace::File(directory) => {
                    Place::File(PrivateDirectory::unpack(directory, NAME))
                }
            },
        }
    }

    /// Its key in `SERVER_STARTER_PORT`.
    pub fn name(&self) -> OsString {
        match &self.place {
            Place::Port(address) => address.to_string().into(),
            Place::File(directory) => directory.path().into(),
        }
    }

    /// What a request names as its host.
    pub fn host(&self) -> String {
        match &self.place {
            Place::Port(address) => address.to_string(),
            Place::File(_) => "localhost".to_owned(),
        }
    }

    /// Begins to connect. The socket is writable once it is connected.
    pub fn connect(&self) -> nix::Result<Connection> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        match &self.place {
            Place::Port(SocketAddr::V4(address)) => {
                let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
                match connect(socket.as_raw_fd(), &SockaddrIn::from(*address)) {
                    Ok(()) | Err(Errno::EINPROGRESS) => {}
                    Err(errno) => return Err(errno),
                }
                let ours: SockaddrIn = getsockname(socket.as_raw_fd())?;
                let ours = SocketAddr::V4(SocketAddrV4::from(ours));
                Ok(Connection {
                    socket,
                    addresses: Some((ours, SocketAddr::V4(*address))),
                })
            }
            Place::Port(SocketAddr::V6(_)) => Err(Errno::EAFNOSUPPORT),
            Place::File(directory) => {
                let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
                connect(socket.as_raw_fd(), &UnixAddr::new(&directory.own_path())?)?;
                Ok(Connection {
                    socket,
                    addresses: None,
                })
            }
        }
    }

    /// Whether accept(2) returns a connection only once data has come (TCP_DEFER_ACCEPT of tcp(7)), as unicorn sets it.
    pub fn defers(&self) -> bool {
        matches!(self.place, Place::Port(_))
            && getsockopt(&self.listener, DeferAccept).is_ok_and(|seconds| seconds > 0)
    }

    /// Whether the server has accepted this connection.
    ///
    /// With TCP, the server's end has an inode from then on. A connection to a unix socket is in the listener's queue
    /// as soon as connect(2) has returned, and nobody else connects here: once the queue is empty, it has been
    /// accepted.
    pub fn has_accepted(&self, connection: &Connection) -> bool {
        match (connection.addresses, &self.place) {
            (Some((ours, theirs)), _) => sock_diag::connection(theirs, ours)
                .ok()
                .flatten()
                .is_some_and(|it| it.inode != 0),
            (None, Place::File(_)) => self.is_queue_empty() == Some(true),
            (None, Place::Port(_)) => false,
        }
    }

    /// Whether nobody waits to be accepted, at a unix socket. Its name can be that of another socket too, in another
    /// mount namespace, but not its inode.
    fn is_queue_empty(&self) -> Option<bool> {
        let inode = fstat(&self.listener).ok()?.st_ino;
        let is_ours = |one: &UnixSocket| one.state == State::Listen && one.inode == inode;
        let found = sock_diag::unix(is_ours).ok()?;
        Some(found.first()?.receive_queue? == 0)
    }
}

fn open_port() -> nix::Result<(OwnedFd, Place)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    bind(socket.as_raw_fd(), &any)?;
    let bound: SockaddrIn = getsockname(socket.as_raw_fd())?;
    Ok((socket, Place::Port(SocketAddr::V4(bound.into()))))
}

fn open_file() -> nix::Result<(OwnedFd, Place)> {
    let directory = PrivateDirectory::new(NAME)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // By the path that others use: it is the address that the kernel shows.
    bind(socket.as_raw_fd(), &UnixAddr::new(&directory.path())?)?;
    Ok((socket, Place::File(directory)))
}

/// For a command, which has no descriptor of it.
impl From<&Probe> for Announced {
    fn from(probe: &Probe) -> Announced {
        Announced {
            name: probe.name(),
            number: -1,
            given_name: None,
        }
    }
}

impl AsFd for Probe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::path::PathBuf;

    use nix::sys::socket::{accept, setsockopt};

    use super::*;

    #[test]
    fn a_connection_counts_as_accepted_once_it_is_and_not_before() {
        for at in [ProbeAt::Tcp, ProbeAt::Unix] {
            let probe = Probe::open(at, 8, true, 2).unwrap();
            let connection = probe.connect().unwrap();
            assert!(!probe.has_accepted(&connection), "{at:?}");
            let accepted = accept(probe.as_fd().as_raw_fd()).unwrap();
            assert!(probe.has_accepted(&connection), "{at:?}");
            nix::unistd::close(accepted).unwrap();
        }
    }

    #[test]
    fn a_listener_that_waits_for_data_is_known() {
        let probe = Probe::open(ProbeAt::Tcp, 8, true, 2).unwrap();
        assert!(!probe.defers());
        setsockopt(&probe, DeferAccept, &1).unwrap();
        assert!(probe.defers());
    }

    #[test]
    fn nothing_is_left_of_a_unix_socket() {
        let probe = Probe::open(ProbeAt::Unix, 8, true, 2).unwrap();
        let path = PathBuf::from(probe.name());
        let directory = path.parent().unwrap().to_owned();
        assert!(path.exists());
        drop(probe);
        assert!(!directory.exists());
    }
}
