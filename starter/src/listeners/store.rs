//! Listeners that survive this process: the service manager keeps them (`FDSTORE=1`, sd_notify(3)) and passes them on to
//! the next start, so that even clients of a killed superdaemon only wait.
//!
//! Only what can be served again is stored: not what the launcher has passed on, which it has itself, and not the sockets
//! whose file a binder of root removes as soon as we are gone. A name tells for which option a socket is. Nobody depends on
//! the manager: it is never waited for without a limit, and where it cannot be reached nothing is stored.

use std::env;
use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use common::message::Transport;
use common::trusted_path::{Trust, open_directory};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use nix::sys::stat::lstat;
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};
use crate::host::moment::Moment;
use crate::host::sealed::checksum;
use crate::listeners::spec::{PathSpec, PortSpec};
use crate::words::notice::Notice;
use crate::words::number;
use crate::words::text::quoted;

/// What the names begin with, so that they are not taken for those of sockets that a launcher has made.
const PREFIX: &str = "start_server.";

/// The longest name that the manager accepts is 255 bytes long; two of them may be for a lane.
const LONGEST_NAME: usize = 253;

/// What comes before the number of a lane. No port has it in its name.
const LANE: char = ',';

/// How long a manager that does not read is waited for, in all.
const PATIENCE: Duration = Duration::from_secs(5);

/// The connection to the manager's store.
#[derive(Debug)]
pub struct Store {
    manager: OwnedFd,
    /// How many descriptors it keeps; unknown before systemd 254.
    most: Option<usize>,
    /// What it keeps of ours, as far as we know.
    names: Vec<String>,
    left: Duration,
    notices: Vec<Notice>,
}

/// The same for the next program. Whoever has used it has taken its notices.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedStore {
    manager: Carried,
    most: Option<usize>,
    names: Vec<String>,
    left: Duration,
}

/// Whether this names a socket that we have stored.
pub fn is_stored(name: Option<&OsStr>) -> bool {
    name.is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()))
}

/// The name of a port's socket. Of ports that the kernel chooses, each has its `ordinal`.
pub fn name_of_port(spec: &PortSpec, ordinal: usize) -> String {
    let kind = match spec.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    match spec.port {
        0 => named(kind, format!("{}.{ordinal}", spec.name).as_bytes()),
        _ => named(kind, spec.name.as_bytes()),
    }
}

/// The name of a further lane of the port's socket that has this name: its place in the group, which it keeps in the store.
pub fn name_of_lane(first: &str, place: usize) -> String {
    format!("{first}{LANE}{place}")
}

/// Its place, if this is such a name.
pub fn lane_of(name: &OsStr) -> Option<u8> {
    let name = name.to_str()?.strip_prefix(PREFIX)?;
    let of_port = name.strip_prefix("tcp.").or(name.strip_prefix("udp."))?;
    of_port.rsplit_once(LANE)?.1.parse().ok()
}

/// The name of a unix socket.
pub fn name_of_path(spec: &PathSpec) -> String {
    // What is not absolute is so in the same directory.
    let path = match spec.abstract_name() {
        Some(_) => spec.path.clone(),
        None => std::path::absolute(&spec.path).unwrap_or_else(|_| spec.path.clone()),
    };
    named("unix", path.as_os_str().as_bytes())
}

/// Everything but printable ASCII is escaped, and the colon, which separates names; what is too long is cut and hashed.
fn named(kind: &str, key: &[u8]) -> String {
    let mut name = format!("{PREFIX}{kind}.");
    for byte in key {
        match byte {
            b'%' | b':' => name.push_str(&format!("%{byte:02x}")),
            b'!'..=b'~' => name.push(char::from(*byte)),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    if name.len() > LONGEST_NAME {
        // Nobody gains from a collision, which gives a socket to an option with another address. It is refused.
        let hash = checksum(key);
        name.truncate(LONGEST_NAME - 17);
        name.push_str(&format!(".{hash:016x}"));
    }
    name
}

impl Store {
    /// Connects to the manager, if it has a store. This comes before privileges are dropped: afterwards its socket may be out
    /// of reach. Root talks only to root's: whoever else got the sockets would get their clients.
    pub fn reach(is_root: bool) -> Option<Store> {
        let most = match (
            env::var("FDSTORE").ok(),
            env::var_os("MEMORY_PRESSURE_WATCH"),
        ) {
            (Some(most), _) => Some(number::digits(&most).filter(|most| *most > 0)?),
            // Of managers of the same age, which would have told.
            (None, Some(_)) => return None,
            (None, None) => None,
        };
        let place = env::var_os("NOTIFY_SOCKET")?;
        let address = match place.as_bytes() {
            [b'@', name @ ..] if !name.is_empty() && !is_root => UnixAddr::new_abstract(name),
            [b'/', ..] if !is_root || is_of_root(Path::new(&place)) => UnixAddr::new(&*place),
            _ => return None,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let manager = socket(AddressFamily::Unix, SockType::Datagram, flags, None).ok()?;
        connect(manager.as_raw_fd(), &address.ok()?).ok()?;
        Some(Store {
            manager,
            most,
            names: Vec::new(),
            left: PATIENCE,
            notices: Vec::new(),
        })
    }

    /// With the connection, which may be out of reach by now.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedStore {
        PackedStore {
            manager: luggage.put(&self.manager),
            most: self.most,
            names: self.names.clone(),
            left: self.left,
        }
    }

    /// What another program has packed.
    pub fn unpack(packed: PackedStore) -> Store {
        let PackedStore {
            manager,
            most,
            names,
            left,
        } = packed;
        Store {
            manager: manager.take(),
            most,
            names,
            left,
            notices: Vec::new(),
        }
    }

    /// A socket with this name was passed on, so it is there.
    pub fn has(&mut self, name: &str) {
        self.names.push(name.to_owned());
    }

    /// Whether it is there, as far as we know.
    pub fn keeps(&self, name: &str) -> bool {
        self.names.iter().any(|one| one == name)
    }

    /// Stores a listener under its name, if it is not there.
    pub fn keep(&mut self, name: &str, socket: &OwnedFd) {
        if self.keeps(name) {
            return;
        }
        let count = self.names.len();
        if self.most.is_some_and(|most| count >= most) {
            self.say_once(format!(
                "start_server: the service manager keeps {count} listeners and no more: raise FileDescriptorStoreMax= to keep \
                 all if start_server is killed"
            ));
            return;
        }
        // What a worker shuts down for a moment hangs up, and is still wanted.
        let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        match self.send(&text, Some(socket.as_fd())) {
            Ok(()) => self.names.push(name.to_owned()),
            Err(errno) => self.say_once(format!(
                "start_server: cannot store {} with the service manager: {}",
                quoted(name),
                errno.desc()
            )),
        }
    }

    /// Removes what has this name.
    pub fn remove(&mut self, name: &OsStr) {
        self.names.retain(|one| OsStr::new(one) != name);
        let Some(name) = name.to_str() else {
            return;
        };
        // If it cannot be told, the next start finds the socket and removes it.
        let _ = self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
    }

    /// Waits until the manager has done everything that it was told so far: sd_notify_barrier(3).
    pub fn wait(&mut self) {
        let Ok((ours, theirs)) = pipe2(nix::fcntl::OFlag::O_CLOEXEC) else {
            return;
        };
        if self.send("BARRIER=1", Some(theirs.as_fd())).is_err() {
            return;
        }
        drop(theirs);
        self.wait_for(ours.as_fd(), PollFlags::empty());
    }

    /// What there is to say since the last time.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn say_once(&mut self, complaint: String) {
        if self.notices.is_empty() {
            self.notices.push(Notice::Complaint(complaint));
        }
    }

    fn send(&mut self, text: &str, with: Option<BorrowedFd<'_>>) -> nix::Result<()> {
        let raw: Vec<i32> = with.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let parts = [IoSlice::new(text.as_bytes())];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let number = self.manager.as_raw_fd();
        loop {
            match sendmsg::<()>(number, &parts, control, flags, None) {
                Err(Errno::EAGAIN) if !self.left.is_zero() => {
                    let manager = self.manager.try_clone().map_err(|_| Errno::EMFILE)?;
                    self.wait_for(manager.as_fd(), PollFlags::POLLOUT);
                }
                Err(Errno::EINTR) => {}
                sent => return sent.map(drop),
            }
        }
    }

    /// Waits for these events or a hang-up, as long as there is patience left.
    fn wait_for(&mut self, source: BorrowedFd<'_>, events: PollFlags) {
        let begun = Moment::now();
        loop {
            let passed = Moment::now().saturating_since(begun);
            let left = self.left.saturating_sub(passed);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(source, events)], timeout) {
                Err(Errno::EINTR) if !left.is_zero() => {}
                Ok(_) | Err(_) => break,
            }
        }
        let passed = Moment::now().saturating_since(begun);
        self.left = match self.left.saturating_sub(passed) {
            left if left < Duration::from_millis(1) => Duration::ZERO,
            left => left,
        };
    }
}

/// Whether nobody but root can have put this socket there.
fn is_of_root(place: &Path) -> bool {
    let directory = place.parent().unwrap_or(Path::new("/"));
    open_directory(directory, &Trust::ROOT).is_ok() && lstat(place).is_ok_and(|it| it.st_uid == 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::listeners::spec::{parse_paths, parse_ports};

    #[test]
    fn a_name_is_what_the_manager_accepts_and_tells_options_apart() {
        let port = |spec: &str, ordinal| name_of_port(&parse_ports(spec).unwrap()[0], ordinal);
        assert_eq!(port("80", 0), "start_server.tcp.80");
        assert_eq!(port("*:80=7", 3), "start_server.tcp.80");
        assert_eq!(port("u80", 0), "start_server.udp.80");
        assert_eq!(port("::1:80", 0), "start_server.tcp.[%3a%3a1]%3a80");
        assert_eq!(port("0", 1), "start_server.tcp.0.1");
        let path = |path: &str| name_of_path(&parse_paths(path.as_ref()).unwrap()[0]);
        assert_eq!(
            path("/run/a b.sock,mode=0600"),
            "start_server.unix./run/a%20b.sock"
        );
        assert_eq!(path("@a%"), "start_server.unix.@a%25");
        let long = |last| path(&format!("/{}{last}", "ä".repeat(50)));
        assert_eq!(long("1").len(), LONGEST_NAME);
        assert_ne!(long("1"), long("2"));
        for name in [port("[::1]:0", 9), path("/a\tb"), long("x")] {
            let is_valid = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b':';
            assert!(
                name.len() <= LONGEST_NAME && name.bytes().all(is_valid),
                "{name}"
            );
            assert!(is_stored(Some(name.as_ref())));
        }
        for name in ["start_server", "web", "", "start_server_"] {
            assert!(!is_stored(Some(name.as_ref())), "{name}");
        }
    }

    #[test]
    fn the_next_program_knows_what_the_manager_keeps() {
        let (manager, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let heard = || {
            let mut datagram = [0; 100];
            let length = theirs.recv(&mut datagram).ok()?;
            Some(String::from_utf8_lossy(&datagram[..length]).into_owned())
        };
        let mut store = Store {
            manager: manager.into(),
            most: Some(1),
            names: Vec::new(),
            left: PATIENCE,
            notices: Vec::new(),
        };
        let socket = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        store.keep("one", &socket);
        let stored = "FDSTORE=1\nFDPOLL=0\nFDNAME=one";
        assert_eq!(heard().as_deref(), Some(stored));
        let text = serde_json::to_string(&store.pack(&mut Luggage::default())).unwrap();
        drop(store);
        let mut next = Store::unpack(serde_json::from_str(&text).unwrap());
        assert_eq!(next.left, PATIENCE);
        next.keep("one", &socket);
        assert_eq!(next.take_notices(), []);
        next.keep("two", &socket);
        assert_eq!(next.take_notices().len(), 1);
        assert_eq!(heard(), None);
        next.remove("one".as_ref());
        assert_eq!(heard().as_deref(), Some("FDSTOREREMOVE=1\nFDNAME=one"));
    }
}
