//! Connections that nobody accepts: the program may not have taken its sockets, but bound others, or none.
//!
//! A queue that is not empty says little, as a busy server's is never empty. So each connection in it is known by a
//! number of the kernel (sock_diag(7)), and what counts is one that is still there a while later.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use nix::sys::stat::fstat;

use crate::host::sock_diag::{self, InetSocket, State};
use crate::listeners::sockets::bound_address;

/// What waits in the queues of all listeners.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Queues(Vec<Queue>);

/// What waits in one of them.
#[derive(Debug, PartialEq, Eq)]
struct Queue {
    /// The listener's inode.
    listener: u64,
    /// How many connections wait.
    length: u32,
    /// Numbers of the connections, or of their clients.
    cookies: BTreeSet<u64>,
}

/// A listener of which nobody accepts connections.
#[derive(Debug, PartialEq, Eq)]
pub struct Untaken {
    /// The place of its socket among all.
    pub place: usize,
    pub length: u32,
}

impl Queues {
    /// Those that are not empty. What the kernel does not tell is empty.
    pub fn of<'a>(sockets: impl Iterator<Item = &'a OwnedFd>) -> Queues {
        let sockets: Vec<&OwnedFd> = sockets.collect();
        let inodes: BTreeSet<u64> = sockets.iter().filter_map(|it| inode(it)).collect();
        let mut queues = of_tcp(&inodes, &sockets).unwrap_or_default();
        queues.extend(of_unix(&inodes).unwrap_or_default());
        Queues(queues)
    }

    pub fn are_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of which listeners a connection waits that has waited `before` too.
    pub fn untaken<'a>(
        &self,
        before: &Queues,
        sockets: impl Iterator<Item = &'a OwnedFd>,
    ) -> Vec<Untaken> {
        let is_stuck = |now: &&Queue| {
            let mut before = before.0.iter();
            before.any(|one| one.listener == now.listener && !one.cookies.is_disjoint(&now.cookies))
        };
        let stuck: Vec<&Queue> = self.0.iter().filter(is_stuck).collect();
        let untaken = |(place, socket): (usize, &OwnedFd)| {
            let inode = inode(socket)?;
            let queue = stuck.iter().find(|queue| queue.listener == inode)?;
            let length = queue.length;
            Some(Untaken { place, length })
        };
        sockets.enumerate().filter_map(untaken).collect()
    }
}

fn inode(socket: &OwnedFd) -> Option<u64> {
    fstat(socket).ok().map(|stat| stat.st_ino)
}

fn of_tcp(inodes: &BTreeSet<u64>, sockets: &[&OwnedFd]) -> Option<Vec<Queue>> {
    // Cheap, unlike the connections, of which there may be many: they are listed only where some wait.
    let is_waited_for = |it: &InetSocket| it.receive_queue > 0 && inodes.contains(&it.inode);
    let listeners = sock_diag::tcp(&[State::Listen], is_waited_for).ok()?;
    if listeners.is_empty() {
        return None;
    }
    let addresses: BTreeSet<u16> = listeners.iter().map(|it| it.local.port()).collect();
    // Whoever has sent everything and closed waits too.
    let states = [State::Established, State::CloseWait];
    let is_waiting = |it: &InetSocket| it.inode == 0 && addresses.contains(&it.local.port());
    let waiting = sock_diag::tcp(&states, is_waiting).ok()?;
    let bound = |inode: u64| {
        let socket = sockets.iter().find(|it| self::inode(it) == Some(inode))?;
        bound_address(socket)
    };
    let queue = |listener: &InetSocket| Queue {
        listener: listener.inode,
        length: listener.receive_queue,
        cookies: waiting
            .iter()
            .filter(|it| bound(listener.inode).is_some_and(|address| is_through(it.local, address)))
            .map(|it| it.cookie)
            .collect(),
    };
    Some(listeners.iter().map(queue).collect())
}

/// Whether a connection with this address at this end may have come in through that listener.
fn is_through(local: SocketAddr, listener: SocketAddr) -> bool {
    let (ip, all) = (local.ip(), listener.ip());
    local.port() == listener.port() && (all.is_unspecified() || ip == all.to_canonical())
}

/// Here the kernel lists no connection that nobody has accepted, but the clients of a listener: by their inodes.
fn of_unix(inodes: &BTreeSet<u64>) -> Option<Vec<Queue>> {
    let is_waited_for = |it: &sock_diag::UnixSocket| {
        it.state == State::Listen && inodes.contains(&it.inode) && !it.waiting.is_empty()
    };
    let listeners = sock_diag::unix(is_waited_for).ok()?.into_iter();
    let queue = |listener: sock_diag::UnixSocket| Queue {
        listener: listener.inode,
        length: listener.receive_queue.unwrap_or_default(),
        cookies: listener.waiting.into_iter().collect(),
    };
    Some(listeners.map(queue).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn only_a_connection_that_has_waited_before_is_untaken() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let path = std::env::temp_dir().join(format!("queues-{}", std::process::id()));
        let unix = UnixListener::bind(&path).unwrap();
        let sockets: [OwnedFd; 2] = [
            tcp.try_clone().unwrap().into(),
            unix.try_clone().unwrap().into(),
        ];
        assert_eq!(Queues::of(sockets.iter()), Queues::default());
        let _first = (TcpStream::connect(address), UnixStream::connect(&path));
        let before = Queues::of(sockets.iter());
        assert_eq!(before.0.len(), 2, "{before:?}");
        let _second = (TcpStream::connect(address), UnixStream::connect(&path));
        let untaken = Queues::of(sockets.iter()).untaken(&before, sockets.iter());
        let both = [0, 1].map(|place| Untaken { place, length: 2 });
        assert_eq!(untaken, both);
        // Others have come, and the first ones are taken.
        let _taken = (tcp.accept().unwrap(), unix.accept().unwrap());
        let now = Queues::of(sockets.iter());
        assert!(!now.are_empty());
        assert_eq!(now.untaken(&before, sockets.iter()), []);
        std::fs::remove_file(&path).unwrap();
    }
}
