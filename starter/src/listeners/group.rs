//! The lanes of a listener: sockets of one address, of which the kernel gives every new connection to the one that is
//! selected.
//!
//! They are a group of `SO_REUSEPORT` (socket(7)), which the kernel asks a program of its own (`SO_ATTACH_REUSEPORT_CBPF`):
//! the program answers with a place in the group. What waits in the queue of another lane stays there.
//!
//! | the place of a socket | is given |
//! |---|---|
//! | TCP | by listen(2), in the order of these calls |
//! | UDP | by bind(2) |
//! | when one is shut down or closed | the last one takes its place |
//!
//! Only sockets of the same uid can join. Nobody can before the first one has listened, or for UDP has been bound: until
//! then it does not share, which proves that the address was free.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, recv, recvmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::stat::fstat;
use nix::unistd::geteuid;

use crate::host::open_files::duplicate_above;
use crate::listeners::program::{Choice, Family, Flows, Spread};
use crate::listeners::sockets::{bound_address, listen, listens};
use crate::machine::By;

/// The sockets of one listener beside the first one, which everybody else knows as the listener.
#[derive(Debug)]
pub struct Group {
    /// Lane 1 and those after it.
    pub others: Vec<OwnedFd>,
    /// The lanes in the order of their places.
    pub places: Vec<u8>,
    /// Whether they are to listen: those of UDP need not.
    pub listens: bool,
    /// Those that a worker has shut down, and that could not listen again.
    pub deaf: Vec<u8>,
    /// The name of the first place in the store of a service manager, if it is there.
    pub stored_as: Option<String>,
    /// Which byte of a QUIC connection ID names the socket, with `--udp-flows`.
    pub flows: Option<u8>,
    /// For workers that must not take packets of flows: nothing arrives there.
    pub idle: Option<OwnedFd>,
}

/// Which sockets of a group get new traffic, by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    pub main: Vec<u8>,
    /// Who gets a percentage of it.
    pub canary: Option<(Vec<u8>, u8, By)>,
    pub spread: Spread,
    /// Which of them get the packets of flows that name them.
    pub flows: Vec<u8>,
}

/// How the sockets of a group are made.
#[derive(Debug, Clone, Copy)]
pub struct Making {
    pub lanes: u8,
    pub freebind: bool,
    /// For listen(2); `None` for UDP.
    pub backlog: Option<i32>,
    /// Every socket is to be above this number.
    pub highest: RawFd,
    /// The first socket has only now begun to listen: it comes after those that an earlier process has left listening.
    pub first_is_last: bool,
    /// Which byte of a QUIC connection ID names the socket, with `--udp-flows`.
    pub flows: Option<u8>,
}

/// Whether this kernel, and whatever filters our system calls, lets a program select: tried with a socket of its own.
///
/// # Errors
/// Why not.
pub fn is_possible() -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    share(&socket, true)?;
    attach(&socket, &only(0))
}

/// Lets the first socket listen, exclusively, and then begin a group in which it is selected.
///
/// # Errors
/// Somebody else listens there.
pub fn listen_alone(first: &OwnedFd, backlog: i32) -> nix::Result<()> {
    // The program must be there before another one listens; what shares may join another group in listen(2).
    share(first, true)?;
    attach(first, &only(0))?;
    share(first, false)?;
    listen(first, backlog)
}

/// Lets the first socket listen again in a group whose other members still listen.
///
/// # Errors
/// Of listen(2).
pub fn listen_beside(first: &OwnedFd, backlog: i32) -> nix::Result<()> {
    share(first, true)?;
    listen(first, backlog)
}

impl Selected {
    /// This one gets everything.
    pub fn only(number: u8) -> Selected {
        Selected {
            main: vec![number],
            canary: None,
            spread: Spread::Random,
            flows: Vec::new(),
        }
    }
}

/// The program that always answers with this place.
fn only(place: u32) -> Vec<libc::sock_filter> {
    let choice = Choice {
        main: vec![place],
        canary: None,
        spread: Spread::Random,
        family: Family::V4,
        flows: None,
    };
    choice.program()
}

impl Group {
    /// Makes a group of sockets: the first one listens, and the others may, in the order of their places. Missing ones are
    /// bound here, as far as this user may.
    ///
    /// # Errors
    /// What does not work: then only the first one is of use, and gets all new connections.
    pub fn form(first: &OwnedFd, others: Vec<OwnedFd>, making: Making) -> nix::Result<Group> {
        Group::try_to_form(first, others, making).inspect_err(|_| {
            // Whatever an earlier process has left selected. If that fails too, nothing was ever selected.
            let _ = attach(first, &only(0));
            let _ = share(first, false);
        })
    }

    fn try_to_form(first: &OwnedFd, others: Vec<OwnedFd>, making: Making) -> nix::Result<Group> {
        // One that another user has made would let that user join, and take everything.
        if !std::iter::once(first).chain(&others).all(is_ours) {
            return Err(Errno::EPERM);
        }
        let mut kept = Vec::new();
        share(first, true)?;
        for other in others {
            kept.push(duplicate_above(other.as_fd(), making.highest)?);
        }
        for _ in kept.len() + 1..usize::from(making.lanes) {
            match bind_beside(first, making.freebind) {
                Ok(other) => kept.push(duplicate_above(other.as_fd(), making.highest)?),
                // Only a binder may open this port; the sockets that are there suffice.
                Err(_) if !kept.is_empty() => break,
                Err(errno) => return Err(errno),
            }
        }
        // Of more than are wanted, the last ones go: the others keep their places.
        kept.truncate(usize::from(making.lanes).saturating_sub(1));
        let mut group = Group {
            others: kept,
            places: Vec::new(),
            listens: making.backlog.is_some(),
            deaf: Vec::new(),
            stored_as: None,
            flows: making.flows,
            idle: None,
        };
        if making.flows.is_some() {
            group.idle = Some(duplicate_above(unbound(first)?.as_fd(), making.highest)?);
        }
        group.places = (0..group.count()).collect();
        for other in &group.others {
            share(other, true)?;
        }
        if let Some(backlog) = making.backlog {
            if making.first_is_last {
                group.places.swap_remove(0);
            }
            let is_silent = |lane: &u8| *lane > 0 && listens(group.lane(first, *lane)) != Ok(true);
            let silent: Vec<u8> = (0..group.count()).filter(is_silent).collect();
            // As the kernel has done it.
            for lane in &silent {
                let place = group.places.iter().position(|one| one == lane);
                place.map(|place| group.places.swap_remove(place));
            }
            group.places.extend(making.first_is_last.then_some(0));
            for lane in silent {
                listen(group.lane(first, lane), backlog)?;
                group.places.push(lane);
            }
        }
        group.select(first, &Selected::only(0))?;
        Ok(group)
    }

    /// Drops what waits in a socket of datagrams.
    pub fn empty(&self, first: &OwnedFd, number: u8) {
        /// More than any socket holds.
        const MOST: usize = 1_000_000;
        /// More than a socket reports of datagrams that did not arrive, each of which is an error once.
        const MOST_ERRORS: usize = 1_000;
        let socket = self.lane(first, number).as_raw_fd();
        let mut errors = 0;
        for _ in 0..MOST {
            match recv(socket, &mut [0], MsgFlags::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) if errors == MOST_ERRORS => break,
                Err(_) => errors += 1,
            }
        }
    }

    /// The socket of a lane.
    pub fn lane<'a>(&'a self, first: &'a OwnedFd, lane: u8) -> &'a OwnedFd {
        match lane.checked_sub(1) {
            None => first,
            Some(place) => self.others.get(usize::from(place)).unwrap_or(first),
        }
    }

    /// Gives new traffic to these.
    pub fn select(&self, first: &OwnedFd, selected: &Selected) -> nix::Result<()> {
        let program = self.choice(first, selected)?.program();
        // Any member will do, unless a worker has locked its program (SO_LOCK_FILTER). One that was shut down is no member:
        // it would begin another group.
        let sockets = (0..self.count()).map(|one| self.lane(first, one));
        let members = sockets.filter(|one| !self.listens || listens(one) == Ok(true));
        let mut result = Err(Errno::ENOTCONN);
        for member in members {
            result = attach(member, &program);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn choice(&self, first: &OwnedFd, selected: &Selected) -> nix::Result<Choice> {
        let family = match bound_address(first) {
            Some(SocketAddr::V6(_)) => Family::V6,
            Some(SocketAddr::V4(_)) | None => Family::V4,
        };
        let canary = selected.canary.as_ref();
        let canary = canary.map(|(sockets, percent, by)| (self.places_of(sockets), *percent, *by));
        let main = self.places_of(&selected.main);
        let has_flows = |one: &u8| selected.flows.contains(one);
        let place_of_flow = |one| self.place_of(one).filter(|_| has_flows(&one));
        // A lane that was shut down, and could not listen again, has none.
        let is_deaf = main.is_empty() || canary.as_ref().is_some_and(|(all, ..)| all.is_empty());
        match is_deaf {
            true => Err(Errno::ENOTCONN),
            false => Ok(Choice {
                main,
                canary,
                spread: selected.spread,
                family,
                flows: self.flows.map(|offset| Flows {
                    offset,
                    places: (0..self.count()).map(place_of_flow).collect(),
                }),
            }),
        }
    }

    fn places_of(&self, sockets: &[u8]) -> Vec<u32> {
        sockets
            .iter()
            .filter_map(|one| self.place_of(*one))
            .collect()
    }

    fn place_of(&self, number: u8) -> Option<u32> {
        let place = self.places.iter().position(|one| *one == number)?;
        u32::try_from(place).ok()
    }

    /// Lets lanes listen again that were shut down. Returns those; one must be selected then.
    pub fn listen_again(
        &mut self,
        first: &OwnedFd,
        again: impl Fn(&OwnedFd) -> nix::Result<()>,
    ) -> Vec<u8> {
        let is_shut = |lane: &u8| match self.listens {
            true => listens(self.lane(first, *lane)) == Ok(false),
            false => false,
        };
        let shut: Vec<u8> = (0..self.count()).filter(is_shut).collect();
        for lane in &shut {
            // As the kernel has done it.
            if let Some(place) = self.places.iter().position(|one| one == lane) {
                self.places.swap_remove(place);
            }
        }
        self.deaf.retain(|lane| !shut.contains(lane));
        for lane in &shut {
            match again(self.lane(first, *lane)) {
                Ok(()) => self.places.push(*lane),
                Err(_) => self.deaf.push(*lane),
            }
        }
        shut
    }

    /// How many lanes there are.
    pub fn count(&self) -> u8 {
        u8::try_from(self.others.len()).map_or(u8::MAX, |others| others.saturating_add(1))
    }
}

/// How many of these sockets have something to accept or receive, and whether any has been shut down.
pub fn look_at<'a>(sockets: impl Iterator<Item = BorrowedFd<'a>>) -> (usize, bool) {
    let asked = |socket| PollFd::new(socket, PollFlags::POLLIN);
    let mut sources: Vec<PollFd<'_>> = sockets.map(asked).collect();
    // If it fails, nobody knows; whoever asks does so again.
    if poll(&mut sources, PollTimeout::ZERO).is_err() {
        return (0, false);
    }
    let failed = sources.iter().filter(|one| {
        let found = one.revents().unwrap_or(PollFlags::empty());
        found.contains(PollFlags::POLLERR) && !found.contains(PollFlags::POLLIN)
    });
    failed.for_each(|one| drop_errors(one.as_fd()));
    let found = sources.iter().filter_map(PollFd::revents);
    let shut = found.clone().filter(|it| it.contains(PollFlags::POLLHUP));
    let waiting =
        found.filter(|it| it.contains(PollFlags::POLLIN) && !it.contains(PollFlags::POLLHUP));
    (waiting.count(), shut.count() > 0)
}

/// Reads the reports about datagrams that did not arrive (`IP_RECVERR`, ip(7)) that a worker has asked for and not read: they
/// would wake for ever whoever waits for the socket.
fn drop_errors(socket: BorrowedFd<'_>) {
    /// More than any socket holds by default.
    const MOST: usize = 10_000;
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    for _ in 0..MOST {
        let mut rest = [0];
        let mut parts = [IoSliceMut::new(&mut rest)];
        if recvmsg::<()>(socket.as_raw_fd(), &mut parts, None, flags).is_err() {
            break;
        }
    }
    // The error itself, which is gone once it is asked for.
    let _ = nix::sys::socket::getsockopt(&socket, sockopt::SocketError);
}

/// Whether the user of this process has made it: the kernel goes by that.
fn is_ours(socket: &OwnedFd) -> bool {
    fstat(socket).is_ok_and(|stat| stat.st_uid == geteuid().as_raw())
}

/// Whether others of the same uid may be bound to its address.
fn share(socket: &OwnedFd, shares: bool) -> nix::Result<()> {
    setsockopt(socket, sockopt::ReusePort, &shares)
}

/// A socket of the same kind, at no address.
fn unbound(first: &OwnedFd) -> nix::Result<OwnedFd> {
    let family = match bound_address(first) {
        Some(SocketAddr::V6(_)) => AddressFamily::Inet6,
        Some(SocketAddr::V4(_)) | None => AddressFamily::Inet,
    };
    socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

/// One more socket at the address of this one, which shares it.
fn bind_beside(first: &OwnedFd, freebind: bool) -> nix::Result<OwnedFd> {
    let address = bound_address(first).ok_or(Errno::EINVAL)?;
    let (family, ip) = match address {
        SocketAddr::V4(v4) => (AddressFamily::Inet, IpAddr::V4(*v4.ip())),
        SocketAddr::V6(v6) => (AddressFamily::Inet6, IpAddr::V6(*v6.ip())),
    };
    let is_stream = nix::sys::socket::getsockopt(first, sockopt::SockType)? == SockType::Stream;
    let kind = match is_stream {
        true => SockType::Stream,
        false => SockType::Datagram,
    };
    let other = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // What is left of earlier connections must not matter.
    if is_stream {
        setsockopt(&other, sockopt::ReuseAddr, &true)?;
    }
    share(&other, true)?;
    if freebind {
        setsockopt(&other, sockopt::IpFreebind, &true)?;
    }
    if ip.is_ipv6() {
        setsockopt(&other, sockopt::Ipv6V6Only, &true)?;
    }
    bind(other.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(other)
}

/// Attaches a program to the group of this socket.
#[expect(unsafe_code, reason = "nix does not know SO_ATTACH_REUSEPORT_CBPF")]
fn attach(member: &OwnedFd, program: &[libc::sock_filter]) -> nix::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        filter: program.as_ptr().cast_mut(),
    };
    let length = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or(0);
    // SAFETY: `program` is `length` bytes and points to as many instructions as it says; the kernel only reads both, and both
    // outlive the call.
    let result = unsafe {
        libc::setsockopt(
            member.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
pub(super) mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

    use nix::unistd::{Uid, fchown};

    use super::*;

    /// `SO_LOCK_FILTER`, socket(7).
    #[expect(unsafe_code, reason = "nix does not know SO_LOCK_FILTER")]
    fn lock_filter(socket: &OwnedFd) {
        let (level, name, on): (_, _, libc::c_int) = (libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1);
        let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
        let value = (&raw const on).cast();
        // SAFETY: `value` points to `length` bytes, which the kernel only reads.
        let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, length) };
        assert_eq!(result, 0);
    }

    pub const MAKING: Making = Making {
        lanes: 3,
        freebind: false,
        backlog: Some(9),
        highest: 2,
        first_is_last: false,
        flows: None,
    };

    /// Bound as a binder does it, to a port that the kernel has chosen and nobody has any more.
    fn bound(ip: IpAddr) -> OwnedFd {
        let port = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap();
        bound_to(port)
    }

    fn bound_to(address: SocketAddr) -> OwnedFd {
        let family = match address.ip() {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Stream, flags, None).unwrap();
        setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
        socket
    }

    /// Three lanes of a port.
    pub fn listening(ip: IpAddr) -> (OwnedFd, Group) {
        let first = bound(ip);
        let address = bound_address(&first).unwrap();
        let others = vec![bound_to(address), bound_to(address)];
        listen_alone(&first, 9).unwrap();
        let group = Group::form(&first, others, MAKING).unwrap();
        (first, group)
    }

    /// Which lanes have something waiting, after a client has connected.
    fn reached(first: &OwnedFd, group: &Group) -> Vec<u8> {
        let address = bound_address(first).unwrap();
        reached_by(TcpStream::connect(address).unwrap(), first, group)
    }

    /// The same for a client that has connected.
    pub fn reached_by(client: TcpStream, first: &OwnedFd, group: &Group) -> Vec<u8> {
        let is_waiting = |lane: &u8| {
            let socket = group.lane(first, *lane).as_fd();
            look_at(std::iter::once(socket)).0 > 0
        };
        let lanes: Vec<u8> = (0..group.count()).filter(is_waiting).collect();
        for lane in &lanes {
            let socket = group.lane(first, *lane).try_clone().unwrap();
            drop(TcpListener::from(socket).accept().unwrap());
        }
        drop(client);
        lanes
    }

    fn both() -> [IpAddr; 2] {
        [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    }

    #[test]
    fn every_connection_comes_to_the_lane_that_is_selected() {
        assert_eq!(is_possible(), Ok(()));
        for ip in both() {
            let (first, group) = listening(ip);
            assert_eq!(reached(&first, &group), [0], "before any switch");
            for lane in [2, 1, 0, 1] {
                group.select(&first, &Selected::only(lane)).unwrap();
                for _ in 0..8 {
                    assert_eq!(reached(&first, &group), [lane]);
                }
            }
        }
    }

    #[test]
    fn nobody_else_can_listen_there_who_has_not_joined() {
        for ip in both() {
            let first = bound(ip);
            let address = bound_address(&first).unwrap();
            // Both are bound and none listens, as when two servers are started at the same time.
            let rival = bound_to(address);
            listen_alone(&first, 9).unwrap();
            assert_eq!(listen_alone(&rival, 9), Err(Errno::EADDRINUSE));
            let group = Group::form(&first, vec![], MAKING).unwrap();
            assert_eq!(listen_alone(&rival, 9), Err(Errno::EADDRINUSE));
            drop(group);
        }
    }

    #[test]
    fn a_socket_that_another_user_has_made_is_not_shared_with_that_user() {
        if !geteuid().is_root() {
            // Only root can give one away.
            return;
        }
        for given_away in 0..2 {
            let first = bound(Ipv4Addr::LOCALHOST.into());
            listen_alone(&first, 9).unwrap();
            // As it was left by a start of another user.
            share(&first, true).unwrap();
            let other = bind_beside(&first, false).unwrap();
            let its = [&first, &other][given_away];
            fchown(its, Some(Uid::from_raw(65534)), None).unwrap();
            let group = Group::form(&first, vec![other], MAKING);
            assert_eq!(group.err(), Some(Errno::EPERM));
            let shares = nix::sys::socket::getsockopt(&first, sockopt::ReusePort);
            assert_eq!(shares, Ok(false));
        }
    }

    #[test]
    fn lanes_that_were_shut_down_listen_again_and_are_found() {
        let again = |socket: &OwnedFd| listen(socket, 9);
        for shut in [&[0][..], &[1], &[2], &[0, 1, 2], &[1, 2]] {
            let (first, mut group) = listening(Ipv4Addr::LOCALHOST.into());
            group.select(&first, &Selected::only(1)).unwrap();
            for lane in shut {
                let socket = group.lane(&first, *lane).try_clone().unwrap();
                let how = nix::sys::socket::Shutdown::Both;
                nix::sys::socket::shutdown(socket.as_raw_fd(), how).unwrap();
                let (waiting, is_shut) = look_at(std::iter::once(socket.as_fd()));
                assert_eq!((waiting, is_shut), (0, true));
                if shut.len() == 2 {
                    // Each is seen before the next one.
                    assert_eq!(group.listen_again(&first, again), [*lane]);
                }
            }
            if *shut == [0] {
                // Before anybody has seen it, and though any member would do.
                assert_eq!(group.select(&first, &Selected::only(1)), Ok(()));
                assert_eq!(reached(&first, &group), [1]);
            }
            if shut.len() != 2 {
                assert_eq!(group.listen_again(&first, again), shut);
            }
            for lane in [0, 2, 1] {
                group.select(&first, &Selected::only(lane)).unwrap();
                assert_eq!(reached(&first, &group), [lane], "{shut:?} {group:?}");
            }
        }
    }

    #[test]
    fn lanes_of_an_earlier_process_are_found_whichever_of_them_was_shut_down() {
        for shut in [None, Some(0), Some(1), Some(2)] {
            let (first, group) = listening(Ipv4Addr::LOCALHOST.into());
            group.select(&first, &Selected::only(1)).unwrap();
            if let Some(lane) = shut {
                let how = nix::sys::socket::Shutdown::Both;
                nix::sys::socket::shutdown(group.lane(&first, lane).as_raw_fd(), how).unwrap();
            }
            let first_is_last = shut == Some(0);
            if first_is_last {
                listen_beside(&first, 9).unwrap();
            }
            let making = Making {
                first_is_last,
                ..MAKING
            };
            let group = Group::form(&first, group.others, making).unwrap();
            for lane in [0, 2, 1] {
                group.select(&first, &Selected::only(lane)).unwrap();
                assert_eq!(reached(&first, &group), [lane], "{shut:?} {group:?}");
            }
        }
    }

    #[test]
    fn a_lane_whose_program_is_locked_does_not_keep_the_others_from_being_selected() {
        let (first, group) = listening(Ipv4Addr::LOCALHOST.into());
        lock_filter(&first);
        assert_eq!(attach(&first, &only(1)), Err(Errno::EPERM));
        group.select(&first, &Selected::only(1)).unwrap();
        assert_eq!(reached(&first, &group), [1]);
    }

    #[test]
    fn reports_of_datagrams_that_did_not_arrive_do_not_wake_for_ever() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
        let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = nobody.local_addr().unwrap();
        drop(nobody);
        socket.send_to(b"x", address).unwrap();
        let is_woken = || {
            let mut sources = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut sources, PollTimeout::ZERO).unwrap() > 0
        };
        assert!(is_woken());
        assert_eq!(look_at(std::iter::once(socket.as_fd())), (0, false));
        assert!(!is_woken());
    }

    #[test]
    fn datagrams_come_to_the_lane_that_is_selected() {
        for ip in both() {
            let first = OwnedFd::from(UdpSocket::bind((ip, 0)).unwrap());
            let backlog = None;
            let group = Group::form(&first, vec![], Making { backlog, ..MAKING }).unwrap();
            let client = UdpSocket::bind((ip, 0)).unwrap();
            for lane in [0, 2, 1] {
                group.select(&first, &Selected::only(lane)).unwrap();
                client
                    .send_to(b"x", bound_address(&first).unwrap())
                    .unwrap();
                let socket = group.lane(&first, lane);
                let waiting = |socket: &OwnedFd| look_at(std::iter::once(socket.as_fd())).0;
                assert_eq!(waiting(socket), 1);
                let socket = UdpSocket::from(socket.try_clone().unwrap());
                socket.recv(&mut [0]).unwrap();
            }
        }
    }
}
