//! What the kernel says about a running server: its listeners' queues, and what each worker uses and holds.
//!
//! Only the server's own children are looked at, whatever pids somebody has put into its status file. What the user who
//! asks may not see is unknown; that is not a failure.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::{Pid, getpid};

use crate::host::proc::{self, Usage};
use crate::host::sock_diag::{self, InetSocket, State, UnixSocket};
use crate::status::view::{Generation, Listener, View, Worker};

/// How many workers are looked at: more than any server has.
const MOST_WORKERS: usize = 65_536;

/// How many listeners are looked at.
const MOST_LISTENERS: usize = 4096;

/// How many descriptors are looked at, for all workers together.
const MOST_DESCRIPTORS: u32 = 1 << 20;

/// Everything that was observed.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// When it was observed, in seconds since 1970.
    pub at: f64,
    /// The queues of the first listeners in the status, in the same order.
    pub listeners: Vec<Queue>,
    /// By pid.
    pub workers: BTreeMap<i64, Process>,
}

/// The queue of a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queue {
    /// Connections that wait to be accepted; for UDP, bytes that nobody has read.
    pub length: Option<u32>,
    /// How many connections may wait.
    pub backlog: Option<u32>,
}

/// A worker together with its descendants: a server may do its work in children.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Process {
    /// The CPU time that they have used.
    pub cpu: Option<Duration>,
    /// Their resident memory in bytes; what they share is counted for each of them.
    pub resident: Option<u64>,
    /// Their connections that were made to the listeners.
    pub connections: Option<usize>,
}

/// Looks at everything once.
pub fn observe(view: &View, server: Pid) -> Observed {
    let listeners = view.listeners.iter().as_slice();
    let listeners = listeners.get(..MOST_LISTENERS).unwrap_or(listeners);
    let families = families(view, server);
    let left = Cell::new(MOST_DESCRIPTORS);
    let held: BTreeMap<i64, Option<BTreeSet<u64>>> = families
        .iter()
        .map(|(pid, family)| (*pid, sockets_of(family, &left)))
        .collect();
    let ours = Ours::of(server, held.values().flatten(), &left);
    // In another network namespace, what the kernel lists here are the sockets of others.
    let sockets = match proc::share_network(server, getpid()) {
        true => Sockets::list(listeners),
        false => Sockets::default(),
    };
    let through = sockets.connections(listeners);
    let process = |pid: i64, family: &[Pid]| Process {
        connections: match (&through, held.get(&pid)) {
            (Some(through), Some(Some(held))) => Some(held.intersection(through).count()),
            _ => None,
        },
        ..used_by(family)
    };
    Observed {
        at: now(),
        listeners: listeners
            .iter()
            .map(|listener| sockets.queue(listener, &ours))
            .collect(),
        workers: families
            .iter()
            .map(|(pid, family)| (*pid, process(*pid, family)))
            .collect(),
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    passed.unwrap_or_default().as_secs_f64()
}

/// Each generation's workers, up to [`MOST_WORKERS`].
pub fn workers(view: &View) -> impl Iterator<Item = (&Generation, &Worker)> {
    let generations = view.generations.iter();
    let workers = generations.flat_map(|one| one.workers.iter().map(move |worker| (one, worker)));
    workers.take(MOST_WORKERS)
}

/// Each worker that lives, with its descendants.
fn families(view: &View, server: Pid) -> BTreeMap<i64, Vec<Pid>> {
    let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for (child, parent) in proc::parents() {
        children.entry(parent).or_default().push(child);
    }
    let shown: BTreeSet<i64> = workers(view).map(|(_, worker)| worker.pid).collect();
    let living = children.get(&server).into_iter().flatten();
    living
        .map(|pid| (i64::from(pid.as_raw()), *pid))
        .filter(|(number, _)| shown.contains(number))
        .map(|(number, pid)| (number, with_descendants(pid, &children)))
        .collect()
}

fn with_descendants(pid: Pid, children: &BTreeMap<Pid, Vec<Pid>>) -> Vec<Pid> {
    let mut family = vec![pid];
    let mut seen = BTreeSet::from([pid]);
    let mut next = 0;
    while let Some(pid) = family.get(next) {
        // What was read while processes came and went could contain a cycle.
        let new = children.get(pid).into_iter().flatten();
        let new: Vec<Pid> = new.filter(|child| seen.insert(**child)).copied().collect();
        family.extend(new);
        next += 1;
    }
    family
}

/// The inodes of all their sockets; `None` if we may not see those of one of them.
fn sockets_of(family: &[Pid], left: &Cell<u32>) -> Option<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for pid in family {
        match proc::sockets(*pid, left) {
            Ok(more) => inodes.extend(more),
            // It has ended.
            Err(_) if !proc::exists(*pid) => {}
            Err(_) => return None,
        }
    }
    Some(inodes)
}

fn used_by(family: &[Pid]) -> Process {
    let all: Vec<Usage> = family.iter().filter_map(|pid| Usage::of(*pid)).collect();
    if all.is_empty() {
        return Process::default();
    }
    Process {
        cpu: Some(all.iter().map(|one| one.cpu).sum()),
        resident: Some(
            all.iter()
                .map(|one| one.resident)
                .fold(0, u64::saturating_add),
        ),
        connections: None,
    }
}

/// The inodes of the server's sockets, as far as they are known.
enum Ours {
    /// All that the supervisor has.
    All(BTreeSet<u64>),
    /// Those of the workers, which have the listeners too.
    Some(BTreeSet<u64>),
    Unknown,
}

impl Ours {
    fn of<'a>(
        server: Pid,
        workers: impl Iterator<Item = &'a BTreeSet<u64>>,
        left: &Cell<u32>,
    ) -> Ours {
        if let Ok(inodes) = proc::sockets(server, left) {
            return Ours::All(inodes.into_iter().collect());
        }
        let inodes: BTreeSet<u64> = workers.flatten().copied().collect();
        match inodes.is_empty() {
            true => Ours::Unknown,
            false => Ours::Some(inodes),
        }
    }

    fn has(&self, inode: u64) -> bool {
        match self {
            Ours::All(inodes) | Ours::Some(inodes) => inodes.contains(&inode),
            Ours::Unknown => false,
        }
    }

    /// Which of the sockets that have the listener's address is the listener.
    fn find<'a, T>(&self, candidates: &'a [T], inode: impl Fn(&T) -> u64) -> Option<&'a T> {
        let among =
            |inodes: &BTreeSet<u64>| candidates.iter().find(|it| inodes.contains(&inode(it)));
        let only = || match candidates {
            [only] => Some(only),
            _ => None,
        };
        match self {
            Ours::All(inodes) => among(inodes),
            // A worker may have closed it.
            Ours::Some(inodes) => among(inodes).or_else(only),
            Ours::Unknown => only(),
        }
    }
}

/// The sockets of the listeners, and the connections made to them; `None` where the kernel cannot list them.
#[derive(Default)]
struct Sockets {
    tcp: Option<Vec<InetSocket>>,
    udp: Option<Vec<InetSocket>>,
    unix: Option<Vec<UnixSocket>>,
}

impl Sockets {
    fn list(listeners: &[Listener]) -> Sockets {
        let addresses = |kind: &str| -> BTreeSet<u16> {
            let of_kind = listeners.iter().filter(|one| one.kind == kind);
            of_kind.filter_map(|one| Some(inet(one)?.port())).collect()
        };
        let (tcp, udp) = (addresses("tcp"), addresses("udp"));
        let unix: BTreeSet<Vec<u8>> = listeners.iter().filter_map(unix_name).collect();
        let states = [&[State::Listen], &State::CONNECTED[..]].concat();
        let wanted = |it: &InetSocket| it.inode != 0 && tcp.contains(&it.local.port());
        Sockets {
            tcp: match tcp.is_empty() {
                true => Some(Vec::new()),
                false => sock_diag::tcp(&states, wanted).ok(),
            },
            udp: match udp.is_empty() {
                true => Some(Vec::new()),
                false => sock_diag::udp(|it| udp.contains(&it.local.port())).ok(),
            },
            unix: match unix.is_empty() {
                true => Some(Vec::new()),
                false => {
                    sock_diag::unix(|it| it.name.as_ref().is_some_and(|name| is_among(name, &unix)))
                        .ok()
                }
            },
        }
    }

    fn queue(&self, listener: &Listener, ours: &Ours) -> Queue {
        let found = match listener.kind.as_str() {
            "tcp" => self.inet_queue(&self.tcp, listener, ours, Some(State::Listen)),
            "udp" => self.inet_queue(&self.udp, listener, ours, None),
            "unix" => self.unix_queue(listener, ours),
            _ => None,
        };
        found.unwrap_or_default()
    }

    fn inet_queue(
        &self,
        sockets: &Option<Vec<InetSocket>>,
        listener: &Listener,
        ours: &Ours,
        state: Option<State>,
    ) -> Option<Queue> {
        let address = inet(listener)?;
        let is_there = |it: &&InetSocket| {
            is_same(it.local, address) && state.is_none_or(|state| it.state == state)
        };
        let there: Vec<InetSocket> = sockets.iter().flatten().filter(is_there).copied().collect();
        let found = ours.find(&there, |it| it.inode)?;
        // With lanes, each of them has one.
        let is_ours = |it: &&InetSocket| it.inode == found.inode || ours.has(it.inode);
        let lengths = there.iter().filter(is_ours).map(|it| it.receive_queue);
        Some(Queue {
            length: Some(lengths.fold(0, u32::saturating_add)),
            backlog: state.map(|_| found.send_queue),
        })
    }

    fn unix_queue(&self, listener: &Listener, ours: &Ours) -> Option<Queue> {
        let name = unix_name(listener)?;
        let is_there = |it: &&UnixSocket| {
            it.state == State::Listen && it.name.as_deref().is_some_and(|it| lossy(it) == name)
        };
        let sockets = self.unix.iter().flatten();
        let there: Vec<&UnixSocket> = sockets.filter(is_there).collect();
        let found = ours.find(&there, |it| it.inode)?;
        Some(Queue {
            length: found.receive_queue,
            backlog: found.send_queue,
        })
    }

    /// The inodes of all connections that were made to the listeners; `None` if not all are known.
    fn connections(&self, listeners: &[Listener]) -> Option<BTreeSet<u64>> {
        let (tcp, unix) = (self.tcp.as_ref()?, self.unix.as_ref()?);
        let addresses: BTreeSet<(IpAddr, u16)> = listeners
            .iter()
            .filter(|one| one.kind == "tcp")
            .filter_map(inet)
            .map(|address| (address.ip(), address.port()))
            .collect();
        let names: BTreeSet<Vec<u8>> = listeners.iter().filter_map(unix_name).collect();
        let is_through = |it: &&InetSocket| {
            let (ip, port) = (it.local.ip(), it.local.port());
            it.state != State::Listen
                && (addresses.contains(&(ip, port)) || addresses.contains(&(anywhere(ip), port)))
        };
        let tcp = tcp.iter().filter(is_through).map(|it| it.inode);
        let is_connection = |it: &&UnixSocket| {
            let name = it.name.as_deref();
            it.state == State::Established && name.is_some_and(|name| is_among(name, &names))
        };
        let unix = unix.iter().filter(is_connection).map(|it| it.inode);
        Some(tcp.chain(unix).collect())
    }
}

/// The address of a TCP or UDP listener.
fn inet(listener: &Listener) -> Option<SocketAddr> {
    listener.address.parse().ok()
}

fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip(), one.port()) == (other.ip(), other.port())
}

/// What a listener on every address of that family is bound to.
fn anywhere(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The name of a unix listener as the kernel has it.
fn unix_name(listener: &Listener) -> Option<Vec<u8>> {
    if listener.kind != "unix" {
        return None;
    }
    let name = listener.address.as_bytes();
    Some(match name.strip_prefix(b"@") {
        Some(name) => [b"\0", name].concat(),
        None => name.to_vec(),
    })
}

fn is_among(name: &[u8], names: &BTreeSet<Vec<u8>>) -> bool {
    names.contains(&lossy(name))
}

/// As the status shows a name that is not UTF-8.
fn lossy(name: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(name).into_owned().into_bytes()
}
