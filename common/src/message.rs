//! The messages between start_server and its binder: plain data, already parsed, nothing to interpret.
//!
//! The order is `Allow` (while the sender is still privileged; the last one seals the list), then `Confined` from the
//! binder, then `Bind` with an answer each. What `Allow` did not list cannot even be named in `Bind`: an ask is an index
//! into that list.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The most descriptors that the kernel passes in one message (`SCM_MAX_FD`, unix(7)); a `Bind` holds no more asks.
pub const MOST_DESCRIPTORS: usize = 253;

/// The most grants that one `Allow` carries; more are sent in several.
pub const MOST_GRANTS: usize = 256;

/// The policy: which low ports an ordinary user may have, where the binder's file has a capability.
pub const POLICY_FILE: &str = "/etc/start_server/binder.conf";

/// The kinds of inet sockets that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A literal address to bind to. Unlike [`std::net::SocketAddr`] it keeps the scope of a link-local address when
/// it is serialized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub ip: IpAddr,
    pub port: u16,
    /// The interface index of a link-local IPv6 address; 0 elsewhere.
    pub scope: u32,
}

/// The user that both processes become when they were started by root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// A unix socket to be made in a directory that only root can write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    /// Absolute.
    pub path: PathBuf,
    /// Permission bits, 0 to 0o777.
    pub mode: u32,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// One socket that may be bound, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grant {
    Port {
        transport: Transport,
        port: u16,
        /// The only address that may be bound; `None` where a host name is still to be resolved.
        ip: Option<IpAddr>,
    },
    Path(SocketFile),
    Attempt(Attempt),
}

/// Something that the binder must not be able to do. It tries to, once, where a self-test has put this into the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attempt {
    /// setresuid(2) to 0.
    BecomeRoot,
    /// capset(2) with every capability.
    RaiseCapabilities,
    /// bind(2) to a TCP port of the loopback interface that the kernel may choose.
    BindAnotherPort,
    /// bind(2) to a path in the root directory.
    BindAnotherPath,
    /// socket(2) for anything but what was asked for: netlink.
    OpenAnotherSocket,
    /// open(2) of a file that everybody may read.
    OpenFile,
    /// execve(2) of a program that everybody may run.
    Execute,
    /// fork(2).
    Fork,
    /// ptrace(2) of the parent.
    TraceParent,
    /// kill(2) of the parent, with no signal.
    SignalParent,
}

/// What may be asked for later. Sent before the sender drops its privileges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allow {
    /// Whom to become; `None` when there is nothing to drop.
    pub identity: Option<Identity>,
    pub grants: Vec<Grant>,
    /// Another `Allow` follows; without it the list is sealed.
    pub more: bool,
}

/// The use of one grant, by its place in the sealed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    Port { grant: u32, address: Address },
    Path { grant: u32 },
    Attempt { grant: u32 },
}

/// Everything that start_server sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Allow(Allow),
    /// At most [`MOST_DESCRIPTORS`] asks; answered by one [`Reply`].
    Bind(Vec<Ask>),
}

/// What the kernel enforces on the binder from now on, beside its user and its capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Any system call that it does not need ends it (seccomp(2)).
    pub seccomp: bool,
    /// The version of Landlock's interface that is in force (landlock(7)), 0 without Landlock.
    pub landlock: u8,
}

impl Confinement {
    /// The version of Landlock that has everything that is asked for: files since 1, TCP ports since 4, signals and
    /// abstract sockets since 6.
    pub const LANDLOCK: u8 = 6;

    /// Whether nothing lacks.
    pub fn is_whole(&self) -> bool {
        self.seccomp && self.landlock >= Self::LANDLOCK
    }
}

/// Everything that the binder sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The list is sealed, and what is not needed for it cannot be done any more. Sent once, before anything is asked.
    Confined(Confinement),
    /// The sockets, one descriptor for each ask in its order.
    Bound {
        /// The asks whose path held a socket that nobody served any more, and that was replaced.
        replaced: Vec<u32>,
    },
    /// This ask could not be fulfilled, and no descriptor is passed; the binder ends. The answer to a failed attempt.
    Refused { ask: u32, refusal: Refusal },
}

/// Why an ask could not be fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The kernel said no, with this errno.
    Errno(i32),
    /// The binder said no: the cause in words.
    Because(String),
}
