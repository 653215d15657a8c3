//! The listeners themselves for the next program, as its workers need them.

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};
use crate::listeners::dialects::Announced;

/// A listener for the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedListener {
    socket: Carried,
    number: RawFd,
    name: OsString,
    given_name: Option<OsString>,
}

impl PackedListener {
    /// Its number in the workers.
    pub fn number(&self) -> RawFd {
        self.number
    }
}

/// `announced` says what workers are told about each of the sockets, in the same order.
pub fn pack(
    sockets: &[(OwnedFd, RawFd)],
    announced: &[Announced],
    luggage: &mut Luggage,
) -> Vec<PackedListener> {
    let listeners = sockets.iter().zip(announced);
    let pack = |((socket, number), announced): (&(OwnedFd, RawFd), &Announced)| PackedListener {
        socket: luggage.put(socket),
        number: *number,
        name: announced.name.clone(),
        given_name: announced.given_name.clone(),
    };
    listeners.map(pack).collect()
}

/// What another program has packed, in the same order. The sockets keep their own numbers, which are above all those in the
/// workers.
pub fn unpack(packed: Vec<PackedListener>) -> (Vec<(OwnedFd, RawFd)>, Vec<Announced>) {
    let unpack = |packed: PackedListener| {
        let announced = Announced {
            name: packed.name,
            number: packed.number,
            given_name: packed.given_name,
        };
        ((packed.socket.take(), packed.number), announced)
    };
    packed.into_iter().map(unpack).unzip()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::listeners::dialects::{Dialect, variables};
    use crate::listeners::sockets::bound_address;

    #[test]
    fn workers_of_the_next_program_get_the_same_listeners_in_the_same_order() {
        let socket = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let announced = |name: &[u8], number, given: Option<&str>| Announced {
            name: OsString::from_vec(name.to_vec()),
            number,
            given_name: given.map(OsString::from),
        };
        let sockets = [(socket(), 9), (socket(), 3), (socket(), 4)];
        let all = [
            announced(b"127.0.0.1:80", 9, None),
            announced(b"/run/\xff", 3, Some("web")),
            announced(b"80", 4, None),
        ];
        let packed = pack(&sockets, &all, &mut Luggage::default());
        let text = serde_json::to_string(&packed).unwrap();
        let (taken, told) = unpack(serde_json::from_str(&text).unwrap());
        let seen = |sockets: &[(OwnedFd, RawFd)]| -> Vec<_> {
            let sockets = sockets.iter();
            sockets.map(|(one, at)| (bound_address(one), *at)).collect()
        };
        assert_eq!(seen(&taken), seen(&sockets));
        let dialects = [Dialect::Systemd];
        assert_eq!(variables(&told, &dialects), variables(&all, &dialects));
    }
}
