//! The kernel's sockets, as sock_diag(7) lists them: those of this network namespace, for every user.
//!
//! It tells what no file in /proc tells in one place: the inode, by which /proc/PID/fd shows whose socket it is, and
//! how many connections are waiting to be accepted and how many may. One listing of a kind answers any number of
//! questions.
//!
//! The layouts are those of linux/inet_diag.h, linux/unix_diag.h and linux/netlink.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;

/// How many sockets may be kept: more than any one server has.
const MOST_SOCKETS: usize = 1 << 20;

/// How long the kernel may take for the next part of a list, in seconds.
const LONGEST_SILENCE: i64 = 10;

/// The longest part of a list, in bytes: the kernel sends 32 KiB at most.
const LONGEST_PART: usize = 64 * 1024;

/// `SOCK_DIAG_BY_FAMILY`, the type of requests and of answers.
const BY_FAMILY: u16 = 20;

/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// `NLM_F_REQUEST`, and `NLM_F_DUMP` for a list.
const REQUEST: u16 = 1;
const LIST: u16 = 0x300;

/// The length of a `nlmsghdr`.
const HEADER: usize = 16;

/// `INET_DIAG_NOCOOKIE`, twice: whatever its cookie.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// `UDIAG_SHOW_NAME`, `_VFS`, `_ICONS` and `_RQLEN`.
const SHOWN_OF_UNIX: u32 = 0x1 | 0x2 | 0x8 | 0x10;

/// `UNIX_DIAG_NAME`, `_VFS`, `_ICONS` and `_RQLEN`.
const NAME: u16 = 0;
const FILE: u16 = 1;
const WAITING: u16 = 3;
const QUEUE_LENGTHS: u16 = 4;

/// The state of a socket; unix and UDP sockets use those of TCP (include/net/tcp_states.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Established = 1,
    SynSent = 2,
    SynReceived = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    /// With UDP: not connected.
    Close = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
}

impl State {
    const ALL: [State; 11] = [
        State::Established,
        State::SynSent,
        State::SynReceived,
        State::FinWait1,
        State::FinWait2,
        State::TimeWait,
        State::Close,
        State::CloseWait,
        State::LastAck,
        State::Listen,
        State::Closing,
    ];

    /// Those of a connection that both ends have agreed on, until this end has closed it.
    pub const CONNECTED: [State; 5] = [
        State::Established,
        State::FinWait1,
        State::FinWait2,
        State::CloseWait,
        State::Closing,
    ];

    fn of(number: u8) -> Option<State> {
        State::ALL.into_iter().find(|state| *state as u8 == number)
    }
}

/// A TCP or UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InetSocket {
    pub state: State,
    /// An IPv4 address that is mapped into IPv6 is shown as that IPv4 address.
    pub local: SocketAddr,
    /// Unspecified where there is none.
    pub remote: SocketAddr,
    /// 0 where no process has it: a connection that nobody has accepted yet, or one that outlives its descriptors.
    pub inode: u64,
    /// Unlike the inode, no other socket has it, nor one that nobody has accepted yet.
    pub cookie: u64,
    /// Who created it.
    pub uid: u32,
    /// Connections that wait to be accepted, where it listens; else received bytes that nobody has read.
    pub receive_queue: u32,
    /// The backlog, where it listens; else bytes that were not yet sent or acknowledged.
    pub send_queue: u32,
}

/// A unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixSocket {
    pub state: State,
    /// As it was bound: a path, or a NUL and an abstract name. A connection has that of the listener that it was made to.
    pub name: Option<Vec<u8>>,
    pub inode: u64,
    /// The inodes of the clients whose connections wait to be accepted, where it listens.
    pub waiting: Vec<u64>,
    /// The lower half of its file's inode number, whether or not that still has a name.
    pub file: Option<u32>,
    /// Connections that wait to be accepted, where it listens; else received bytes that nobody has read.
    pub receive_queue: Option<u32>,
    /// The backlog, where it listens; else bytes that the other end has not yet read.
    pub send_queue: Option<u32>,
}

/// The TCP sockets in these states that are to be kept, IPv4 first.
///
/// # Errors
/// If the kernel cannot list them, or there are too many.
pub fn tcp(
    states: &[State],
    mut keep: impl FnMut(&InetSocket) -> bool,
) -> io::Result<Vec<InetSocket>> {
    both_families(libc::IPPROTO_TCP, states, &mut keep)
}

/// The UDP sockets that are to be kept, IPv4 first.
///
/// # Errors
/// As with [`tcp`].
pub fn udp(mut keep: impl FnMut(&InetSocket) -> bool) -> io::Result<Vec<InetSocket>> {
    both_families(libc::IPPROTO_UDP, &State::ALL, &mut keep)
}

/// The end of a TCP connection that has exactly these addresses. Of two ends on this machine, each is found on its own.
///
/// # Errors
/// If the kernel cannot tell.
pub fn connection(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<InetSocket>> {
    let request = inet_request(
        family_of(local),
        libc::IPPROTO_TCP,
        &State::ALL,
        Some((local, remote)),
    );
    let mut found = None;
    let asked = ask(Asked::One, &request, |answer| {
        found = Some(inet_socket(answer)?);
        Ok(())
    });
    match asked {
        // Where there is no such connection, the kernel looks for a listener.
        Ok(()) => Ok(found.filter(|it| is_between(it, local, remote))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The unix sockets that are to be kept.
///
/// # Errors
/// As with [`tcp`].
pub fn unix(mut keep: impl FnMut(&UnixSocket) -> bool) -> io::Result<Vec<UnixSocket>> {
    let mut request = vec![byte(libc::AF_UNIX), 0, 0, 0];
    request.extend(mask(&State::ALL).to_ne_bytes());
    // Whatever its inode.
    request.extend(0u32.to_ne_bytes());
    request.extend(SHOWN_OF_UNIX.to_ne_bytes());
    request.extend(ANY_COOKIE);
    let mut sockets = Vec::new();
    ask(Asked::List, &request, |answer| {
        add(&mut sockets, unix_socket(answer)?, &mut keep)
    })?;
    Ok(sockets)
}

fn both_families(
    protocol: i32,
    states: &[State],
    keep: &mut dyn FnMut(&InetSocket) -> bool,
) -> io::Result<Vec<InetSocket>> {
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = inet_request(family, protocol, states, None);
        let listed = ask(Asked::List, &request, |answer| {
            add(&mut sockets, inet_socket(answer)?, &mut *keep)
        });
        match listed {
            // A kernel without IPv6 has no such sockets.
            Err(error)
                if family == libc::AF_INET6 && error.raw_os_error() == Some(libc::ENOENT) => {}
            listed => listed?,
        }
    }
    Ok(sockets)
}

fn add<T>(sockets: &mut Vec<T>, one: T, mut keep: impl FnMut(&T) -> bool) -> io::Result<()> {
    if !keep(&one) {
        return Ok(());
    }
    if sockets.len() == MOST_SOCKETS {
        return Err(io::Error::other("there are too many sockets"));
    }
    sockets.push(one);
    Ok(())
}

fn family_of(address: SocketAddr) -> i32 {
    match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    }
}

fn is_between(socket: &InetSocket, local: SocketAddr, remote: SocketAddr) -> bool {
    let is_same = |one: SocketAddr, other: SocketAddr| {
        (one.ip(), one.port()) == (other.ip().to_canonical(), other.port())
    };
    is_same(socket.local, local) && is_same(socket.remote, remote)
}

/// The number, which is known to fit.
fn byte(number: i32) -> u8 {
    number.to_le_bytes()[0]
}

fn mask(states: &[State]) -> u32 {
    states
        .iter()
        .fold(0, |mask, state| mask | 1 << (*state as u8))
}

/// `inet_diag_req_v2`: of one connection, or of all.
fn inet_request(
    family: i32,
    protocol: i32,
    states: &[State],
    of: Option<(SocketAddr, SocketAddr)>,
) -> Vec<u8> {
    let (local, remote) = of.unzip();
    let port = |of: Option<SocketAddr>| of.map_or(0, |address| address.port()).to_be_bytes();
    let ip = |of: Option<SocketAddr>| {
        let mut bytes = [0; 16];
        match of.map(|address| address.ip()) {
            Some(IpAddr::V4(ip)) => bytes[..4].copy_from_slice(&ip.octets()),
            Some(IpAddr::V6(ip)) => bytes = ip.octets(),
            None => {}
        }
        bytes
    };
    let interface = match local {
        Some(SocketAddr::V6(local)) => local.scope_id(),
        Some(SocketAddr::V4(_)) | None => 0,
    };
    let mut request = vec![byte(family), byte(protocol), 0, 0];
    request.extend(mask(states).to_ne_bytes());
    request.extend([port(local), port(remote)].concat());
    request.extend([ip(local), ip(remote)].concat());
    request.extend(interface.to_ne_bytes());
    request.extend(ANY_COOKIE);
    request
}

/// What is asked for: all that match, or one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    List,
    One,
}

/// Sends a request and takes each answer to it.
fn ask(
    asked: Asked,
    request: &[u8],
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let socket = open()?;
    let flags = match asked {
        Asked::List => REQUEST | LIST,
        Asked::One => REQUEST,
    };
    let length = u32::try_from(HEADER + request.len()).map_err(|_| strange())?;
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend(length.to_ne_bytes());
    message.extend([BY_FAMILY.to_ne_bytes(), flags.to_ne_bytes()].concat());
    // The sequence number and the port id: they tell nothing here, as each request has a socket of its own.
    message.extend([0; 8]);
    message.extend(request);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut buffer = vec![0; LONGEST_PART];
    loop {
        // With this flag it is the true length, even if that does not fit.
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR) => continue,
            received => received?,
        };
        let mut rest = buffer.get(..length).ok_or_else(strange)?;
        while !rest.is_empty() {
            let (kind, answer, after) = message_in(rest).ok_or_else(strange)?;
            rest = after;
            match kind {
                BY_FAMILY => take(answer)?,
                ERROR => return Err(error_in(answer).unwrap_or_else(strange)),
                DONE => return error_in(answer).map_or(Ok(()), Err),
                _ => return Err(strange()),
            }
        }
        if asked == Asked::One {
            return Ok(());
        }
    }
}

fn open() -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    // To the kernel: nobody else can send to a socket that is connected to it.
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(LONGEST_SILENCE, 0))?;
    Ok(socket)
}

fn strange() -> io::Error {
    io::Error::other("the kernel's answer is not understood")
}

/// The type and the content of the first message, and what follows it.
fn message_in(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let mut header = Fields(bytes);
    let length = usize::try_from(header.u32()?).ok()?;
    let kind = header.u16()?;
    let content = bytes.get(HEADER..length)?;
    let after = bytes.get(aligned(length)..).unwrap_or_default();
    Some((kind, content, after))
}

/// The error that a message reports; `None` for the number 0.
fn error_in(content: &[u8]) -> Option<io::Error> {
    let number = Fields(content).take().map(i32::from_ne_bytes)?;
    (number != 0).then(|| Errno::from_raw(number.saturating_neg()).into())
}

/// Messages and attributes begin at multiples of 4.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// `inet_diag_msg`.
fn inet_socket(answer: &[u8]) -> io::Result<InetSocket> {
    parse_inet(&mut Fields(answer)).ok_or_else(strange)
}

fn parse_inet(fields: &mut Fields<'_>) -> Option<InetSocket> {
    let [family, state, _timer, _retransmits] = fields.take()?;
    let ports = [fields.take()?, fields.take()?].map(u16::from_be_bytes);
    let ips: [[u8; 16]; 2] = [fields.take()?, fields.take()?];
    let interface = fields.u32()?;
    let (cookie, _expires) = (u64::from_ne_bytes(fields.take()?), fields.u32()?);
    let address = |place: usize| {
        let (ip, port) = (ips[place], ports[place]);
        let [a, b, c, d, ..] = ip;
        match i32::from(family) {
            libc::AF_INET => Some((Ipv4Addr::new(a, b, c, d), port).into()),
            libc::AF_INET6 => Some(inet6(Ipv6Addr::from(ip), port, interface)),
            _ => None,
        }
    };
    Some(InetSocket {
        state: State::of(state)?,
        local: address(0)?,
        remote: address(1)?,
        receive_queue: fields.u32()?,
        send_queue: fields.u32()?,
        uid: fields.u32()?,
        inode: fields.u32()?.into(),
        cookie,
    })
}

fn inet6(ip: Ipv6Addr, port: u16, interface: u32) -> SocketAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => (ip, port).into(),
        IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, interface).into(),
    }
}

/// `unix_diag_msg`, and its attributes.
fn unix_socket(answer: &[u8]) -> io::Result<UnixSocket> {
    parse_unix(&mut Fields(answer)).ok_or_else(strange)
}

fn parse_unix(fields: &mut Fields<'_>) -> Option<UnixSocket> {
    let [_family, _kind, state, _] = fields.take()?;
    let inode = fields.u32()?;
    let _cookie = fields.take::<8>()?;
    let mut socket = UnixSocket {
        state: State::of(state)?,
        name: None,
        inode: inode.into(),
        waiting: Vec::new(),
        file: None,
        receive_queue: None,
        send_queue: None,
    };
    while let Some((kind, value)) = fields.attribute()? {
        match kind {
            NAME => socket.name = Some(without_end(value).to_vec()),
            FILE => socket.file = Some(Fields(value).u32()?),
            WAITING => {
                let (inodes, _) = value.as_chunks::<4>();
                let inodes = inodes.iter().map(|one| u32::from_ne_bytes(*one).into());
                socket.waiting = inodes.collect();
            }
            QUEUE_LENGTHS => {
                let mut numbers = Fields(value);
                socket.receive_queue = Some(numbers.u32()?);
                socket.send_queue = Some(numbers.u32()?);
            }
            _ => {}
        }
    }
    Some(socket)
}

/// A path is followed by a NUL; an abstract name begins with one, and may contain more.
fn without_end(name: &[u8]) -> &[u8] {
    match name {
        [0, ..] => name,
        _ => name.strip_suffix(&[0]).unwrap_or(name),
    }
}

/// Bytes that are taken from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const COUNT: usize>(&mut self) -> Option<[u8; COUNT]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    /// The type and value of the next `rtattr`; the inner `None` is the end.
    #[expect(
        clippy::option_option,
        reason = "the end is no error, as half of one is"
    )]
    fn attribute(&mut self) -> Option<Option<(u16, &'a [u8])>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let all = self.0;
        let (length, kind) = (usize::from(self.u16()?), self.u16()?);
        let value = all.get(4..length)?;
        self.0 = all.get(aligned(length)..).unwrap_or_default();
        Some(Some((kind, value)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};

    use nix::sys::socket::{Backlog, listen};
    use nix::unistd::geteuid;

    use super::*;

    /// The inode of a descriptor, as /proc/PID/fd shows it.
    fn inode(descriptor: &impl AsRawFd) -> u64 {
        let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let link = fs::read_link(link).unwrap().into_os_string();
        let link = link.into_string().unwrap();
        let digits = link.trim_start_matches("socket:[").trim_end_matches(']');
        digits.parse().unwrap()
    }

    fn only<T>(mut found: Vec<T>) -> T {
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    fn listening(address: SocketAddr) -> InetSocket {
        only(tcp(&[State::Listen], |it| it.local == address).unwrap())
    }

    #[test]
    fn a_tcp_listener_shows_its_queue_its_backlog_and_its_owner() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else {
                assert!(host.contains("::1"), "cannot bind {host}");
                continue;
            };
            let backlog = Backlog::new(7).unwrap();
            listen(&listener, backlog).unwrap();
            let address = listener.local_addr().unwrap();
            let clients = [0; 3].map(|_| TcpStream::connect(address).unwrap());
            let found = listening(address);
            assert_eq!((found.receive_queue, found.send_queue), (3, 7));
            assert_eq!(found.inode, inode(&listener));
            assert_eq!(found.uid, geteuid().as_raw());
            assert_eq!((found.state, found.remote.port()), (State::Listen, 0));
            drop(listener.accept().unwrap());
            assert_eq!(listening(address).receive_queue, 2);
            drop(clients);
        }
    }

    #[test]
    fn a_connection_has_no_inode_until_it_is_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let client = TcpStream::connect(here).unwrap();
        let there = client.local_addr().unwrap();
        let waiting = connection(here, there).unwrap().unwrap();
        assert_eq!((waiting.inode, waiting.state), (0, State::Established));
        assert_eq!((waiting.local, waiting.remote), (here, there));
        let (accepted, _) = listener.accept().unwrap();
        let found = connection(here, there).unwrap().unwrap();
        assert_eq!(found.inode, inode(&accepted));
        // The other end.
        let found = connection(there, here).unwrap().unwrap();
        assert_eq!(found.inode, inode(&client));
        let all = tcp(&State::CONNECTED, |it| it.local == here).unwrap();
        assert_eq!(only(all).inode, inode(&accepted));
        // The listener is not a connection.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(connection(here, nobody).unwrap(), None);
        drop((client, accepted, listener));
        assert_eq!(connection(nobody, here).unwrap(), None);
    }

    #[test]
    fn a_udp_socket_shows_what_nobody_has_read() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let found = || only(udp(|it| it.local == address).unwrap());
        assert_eq!((found().receive_queue, found().state), (0, State::Close));
        assert_eq!(found().inode, inode(&socket));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"hello", address).unwrap();
        assert!(found().receive_queue >= 5);
    }

    #[test]
    fn a_unix_listener_shows_its_name_its_queue_and_its_backlog() {
        let path = std::env::temp_dir().join(format!("sock_diag-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        listen(&listener, Backlog::new(5).unwrap()).unwrap();
        let clients = [0; 2].map(|_| UnixStream::connect(&path).unwrap());
        let name = path.as_os_str().as_bytes().to_vec();
        let named = || unix(|it| it.name.as_ref() == Some(&name)).unwrap();
        let (listeners, connections): (Vec<_>, Vec<_>) = named()
            .into_iter()
            .partition(|it| it.state == State::Listen);
        let found = only(listeners);
        assert_eq!((found.receive_queue, found.send_queue), (Some(2), Some(5)));
        assert_eq!(found.inode, inode(&listener));
        let file = u64::from(found.file.unwrap());
        assert_eq!(file, fs::metadata(&path).unwrap().ino() & 0xffff_ffff);
        // What nobody has accepted has no inode.
        assert!(
            connections.iter().all(|it| it.inode == 0),
            "{connections:?}"
        );
        let (accepted, _) = listener.accept().unwrap();
        let mut all = named().into_iter();
        assert!(all.any(|it| it.inode == inode(&accepted) && it.state == State::Established));
        fs::remove_file(&path).unwrap();
        drop(clients);
    }

    #[test]
    fn an_abstract_name_begins_with_a_nul() {
        let name = format!("sock_diag-{}", std::process::id());
        let address = UnixAddress::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let found = only(unix(|it| it.inode == inode(&listener)).unwrap());
        let expected = [b"\0", name.as_bytes()].concat();
        assert_eq!(found.name, Some(expected));
    }

    #[test]
    fn half_an_answer_is_none() {
        let answer = [1u8; 72];
        for length in 0..answer.len() {
            assert!(inet_socket(&answer[..length]).is_err(), "{length}");
        }
        // A family that does not exist here.
        assert!(inet_socket(&answer).is_err());
        let mut answer = vec![1, 1, 10, 0];
        answer.extend([0; 12]);
        assert!(unix_socket(&answer).is_ok());
        for cut in [
            &[0; 3][..],
            &[9, 0, 0, 0],
            &[3, 0, 0, 0],
            &[8, 0, 4, 0, 0, 0, 0, 0],
        ] {
            let answer = [&answer[..], cut].concat();
            assert!(unix_socket(&answer).is_err(), "{cut:?}");
        }
        assert_eq!(message_in(&[0; 16]), None);
        assert_eq!(message_in(&[17, 0, 0, 0]), None);
    }
}
