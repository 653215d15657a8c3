//! The messages between start_server and its binder: plain data, already parsed, nothing to interpret.
//!
//! The order is `Allow` (while the sender is still privileged; the last one seals the list), then `Confined` from the
//! binder, then `Bind` with an answer each. What `Allow` did not list cannot even be named in `Bind`: a request is an
//! index into that list. In a self-test, and only there, the list also names what the binder must try (`Escape`).
//!
//! Failures are variants, never sentences: the words are start_server's.

use std::ffi::OsString;
use std::net::IpAddr;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::trusted_path::{Distrust, Untrusted};

/// The most descriptors that the kernel passes in one message (`SCM_MAX_FD`, unix(7)); what a `Bind` asks for has no more.
pub const MOST_DESCRIPTORS: usize = 253;

/// The most sockets that are made for one address.
pub const MOST_LANES: u8 = 128;

/// The most grants in one `Allow`; more are sent in several.
pub const MOST_GRANTS: usize = 256;

/// The policy: which low ports an ordinary user may have if the binder's file has a capability.
pub const POLICY_FILE: &str = "/etc/start_server/binder.conf";

/// The largest policy file that is read, in bytes.
pub const LARGEST_POLICY: usize = 64 * 1024;

/// The kinds of inet sockets that can be requested.
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

/// The user that both processes become if they were started by root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// A unix socket to be created in a directory that only root can write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    /// An absolute path. No `PathBuf`, because serde refuses one that is not UTF-8.
    pub path: OsString,
    /// Permission bits, 0 to 0o777.
    pub mode: u32,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// A file or directory to be made for the user in a directory that only root can write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForUser {
    /// An absolute path.
    pub path: OsString,
    pub kind: Kind,
}

/// What is made for the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// To be read and written, and removed at the end.
    File,
    /// It stays.
    Directory,
}

/// One thing that may be made, once, or the sockets of one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grant {
    Port {
        transport: Transport,
        port: u16,
        /// The only address that may be bound; `None` if a host name is yet to be resolved.
        ip: Option<IpAddr>,
        /// Whether no interface need have the address yet (`IP_FREEBIND`).
        freebind: bool,
        /// How many sockets are made there, 1 to [`MOST_LANES`]. Several can become a group (`SO_REUSEPORT`, socket(7)).
        lanes: u8,
    },
    Path(SocketFile),
    ForUser(ForUser),
}

/// Something that the binder must not be able to do. It tries it, once, if a self-test has put it into the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Escape {
    /// setresuid(2) to 0.
    BecomeRoot,
    /// capset(2) with every capability.
    RaiseCapabilities,
    /// bind(2) to a TCP port of the loopback interface that the kernel may choose.
    BindAnotherPort,
    /// bind(2) to a path in the root directory.
    BindAnotherPath,
    /// socket(2) for anything but what was requested: netlink.
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

/// What may be requested later. Sent before the sender drops its privileges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allow {
    /// The user to become; `None` if there is nothing to drop.
    pub identity: Option<Identity>,
    pub grants: Vec<Grant>,
    /// What the binder must try on request, each once; empty except in a self-test.
    pub escapes: Vec<Escape>,
    /// Another `Allow` follows; without it the list is sealed.
    pub more: bool,
}

/// The use of one grant, by its index in the sealed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    Port {
        grant: u32,
        address: Address,
    },
    /// A socket at a path, or what is made for the user there.
    Path {
        grant: u32,
    },
}

/// Everything that start_server sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Allow(Allow),
    /// For at most [`MOST_DESCRIPTORS`] descriptors; answered by one [`Reply`].
    Bind(Vec<Ask>),
    /// One escape of the list; answered by [`Reply::EscapeTried`], unless the sandbox kills the binder for it.
    TryEscape(Escape),
}

/// What the kernel enforces on the binder from now on, besides its user and its capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Any system call that it does not need ends it (seccomp(2)).
    pub seccomp: bool,
    /// The Landlock ABI version in force (landlock(7)), 0 without Landlock.
    pub landlock: u8,
}

impl Confinement {
    /// The Landlock version that has everything that is used: files since 1, TCP ports since 4, signals and abstract
    /// sockets since 6.
    pub const LANDLOCK: u8 = 6;

    /// Whether nothing is missing.
    pub fn is_whole(&self) -> bool {
        self.seccomp && self.landlock >= Self::LANDLOCK
    }
}

/// Everything that the binder sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The list is sealed, and the binder can do nothing else any more. Sent once, before any request.
    Confined(Confinement),
    /// The sockets, files and directories in the order of the requests: one descriptor for each, or as many as its grant
    /// has lanes.
    Bound {
        /// The requests whose path held a stale socket that was replaced.
        replaced: Vec<u32>,
    },
    /// This request could not be fulfilled, and no descriptor is passed; the binder exits.
    Refused { ask: u32, refusal: Refusal },
    /// The escape failed with this errno; `None` means that it succeeded.
    EscapeTried { errno: Option<i32> },
}

/// Why a request could not be fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The kernel said no, with this errno.
    Errno(i32),
    /// The path ends like that of a directory.
    NamesDirectory,
    /// Something is there that is not a socket: its type, as the bits `S_IFMT` of a mode (inode(7)).
    NotASocket { file_type: u32 },
    /// Something of another type is there than was to be made.
    OtherType { file_type: u32 },
    /// What is there belongs to this uid, not to the user.
    OfAnother { uid: u32 },
    /// The file that is there has other names too.
    HardLinks,
    /// What is there now is not what was there a moment before.
    Changing,
    /// A server listens on the socket there.
    Served,
    /// connect(2) has failed with this errno, which does not tell whether a server listens there.
    MaybeServed(i32),
    /// During the start something else has taken the socket's place.
    Replaced,
    /// Somebody whom root does not trust could change what the path leads to.
    Untrusted(Untrusted),
    /// The policy does not allow the launcher this port.
    NotAllowed,
    /// The policy grants nothing to anybody.
    BadPolicy(BadPolicy),
}

/// Why the policy grants nothing to anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BadPolicy {
    /// Its directory.
    Untrusted(Untrusted),
    /// The file.
    Distrusted(Distrust),
    /// open(2) has failed with this errno.
    Unopened(i32),
    /// read(2) or fstat(2) has failed with this errno.
    Unread(i32),
    NotARegularFile,
    /// More than [`LARGEST_POLICY`].
    TooLarge,
    NotUtf8,
    /// A line, counted from 1, is not understood.
    Line {
        number: u32,
        fault: LineFault,
    },
}

/// What is wrong with a line of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineFault {
    /// It does not have four words.
    Words,
    /// The first one is neither `user` nor `group`.
    Kind,
    /// The third one is neither `tcp` nor `udp`.
    Transport,
    /// The fourth one is not a list of ports.
    Ports,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        Refusal::Errno(errno as i32)
    }
}
