//! What the fixture worker tells about itself. It was all read before the worker opened or changed anything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::proc::Status;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// SERVER_STARTER_GENERATION.
    pub generation: Option<u32>,
    pub pid: i32,
    pub ppid: i32,
    pub process_group: i32,
    /// Without the name of the program.
    pub args: Vec<String>,
    pub cwd: String,
    pub environment: BTreeMap<String, String>,
    pub status: Status,
    /// RLIMIT_NOFILE, soft and hard.
    pub nofile: (u64, u64),
    /// Number and what it leads to, without the one that read them.
    pub descriptors: BTreeMap<i32, String>,
    /// In the order of SERVER_STARTER_PORT.
    pub listeners: Vec<Listener>,
}

/// One entry of SERVER_STARTER_PORT and the descriptor that it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub name: String,
    pub fd: i32,
    /// What the descriptor is; the errno's name where it is no socket.
    pub socket: Result<Socket, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// `stream` or `datagram`.
    pub kind: String,
    /// `inet`, `inet6` or `unix`.
    pub family: String,
    /// `127.0.0.1:80`, `[::1]:80` or a path.
    pub address: String,
    /// SO_ACCEPTCONN: somebody called listen.
    pub listening: bool,
    pub nonblocking: bool,
    pub close_on_exec: bool,
    /// IPV6_V6ONLY, of IPv6 sockets.
    pub v6_only: Option<bool>,
    /// Of TCP sockets: how many connections may wait to be accepted, cut by the kernel at net.core.somaxconn.
    pub backlog: Option<u32>,
}

impl Report {
    /// The numbers of the open descriptors.
    #[must_use]
    pub fn descriptor_numbers(&self) -> Vec<i32> {
        self.descriptors.keys().copied().collect()
    }

    /// The socket behind this name. Panics where there is none.
    #[must_use]
    #[track_caller]
    pub fn socket(&self, name: &str) -> &Socket {
        let listener = self.listeners.iter().find(|listener| listener.name == name);
        let listener = listener.unwrap_or_else(|| panic!("no {name} among {:?}", self.listeners));
        listener
            .socket
            .as_ref()
            .unwrap_or_else(|errno| panic!("{name} is no socket: {errno}"))
    }
}
