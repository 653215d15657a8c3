//! The messages between start_server and its binder: plain data, already parsed, nothing to interpret.
//!
//! The order is `Allow` (while the sender is still privileged; the last one seals the list), then `Bind` with an
//! answer each. What `Allow` did not list cannot even be named in `Bind`: an ask is an index into that list.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The most descriptors that the kernel passes in one message (`SCM_MAX_FD`, unix(7)); a `Bind` holds no more asks.
pub const MOST_DESCRIPTORS: usize = 253;

/// The most grants that one `Allow` carries; more are sent in several.
pub const MOST_GRANTS: usize = 256;

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
}

/// Everything that start_server sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Allow(Allow),
    /// At most [`MOST_DESCRIPTORS`] asks; answered by one [`Reply`].
    Bind(Vec<Ask>),
}

/// Everything that the binder sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The sockets, one descriptor for each ask in its order.
    Bound {
        /// The asks whose path held a socket that nobody served any more, and that was replaced.
        replaced: Vec<u32>,
    },
    /// This ask could not be fulfilled, and no descriptor is passed; the binder ends.
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
