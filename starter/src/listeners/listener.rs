//! A socket for the workers, as everybody after its making knows it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};

use crate::listeners::group::Group;
use crate::words::text::shortened;

/// A socket for the workers.
#[derive(Debug)]
pub struct Listener {
    /// Its key in `SERVER_STARTER_PORT`.
    pub name: OsString,
    pub kind: &'static str,
    /// Where it is bound; a unix socket is where its name says.
    pub address: Option<SocketAddr>,
    pub socket: OwnedFd,
    /// Its further lanes, if it has any.
    pub group: Option<Group>,
    /// Its descriptor number in the workers.
    pub number: RawFd,
    /// How many connections may wait there; `None` for UDP, and if only whoever called listen(2) knows it.
    pub backlog: Option<u32>,
    /// If the launcher has passed it on.
    pub inherited: Option<FromLauncher>,
}

impl Listener {
    /// Where it is, for people: `0.0.0.0:80`, `0.0.0.0:53 (udp)`, `/run/app.sock`.
    pub fn place(&self) -> String {
        let place = match self.address {
            Some(address) => address.to_string(),
            None => shortened(&self.name),
        };
        match self.kind {
            "tcp" | "unix" => place,
            kind => format!("{place} ({kind})"),
        }
    }
}

/// What is known of a listener that the launcher has passed on.
#[derive(Debug)]
pub struct FromLauncher {
    /// Its name in the launcher's `LISTEN_FDNAMES`.
    pub name: Option<OsString>,
}
