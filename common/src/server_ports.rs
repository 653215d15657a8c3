//! `SERVER_STARTER_PORT` to listeners, and what names their lane, for workers written in Rust.
//!
//! It binds nothing, accepts nothing and changes nothing that other processes could notice: it only takes over the
//! descriptors that start_server has left open for this process.

use std::env;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::mem;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::str;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

const VARIABLE: &str = "SERVER_STARTER_PORT";
const LANE: &str = "SERVER_STARTER_LANE";

/// Whether the descriptors of this process have an owner, or are about to have one.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// A socket that start_server bound, and the name it has in `SERVER_STARTER_PORT`.
#[derive(Debug)]
pub struct ServerPort {
    /// `8080`, `127.0.0.1:8080`, `[::1]:80`, `/run/app.sock`: what follows `--port` or `--path`, without the `u` of
    /// UDP and without a descriptor number. Two entries may have the same name: with `--port=53 --port=u53` one is a
    /// [`Listener::Tcp`] and the other a [`Listener::Udp`].
    pub name: OsString,
    pub listener: Listener,
}

/// A bound socket, as the type of the standard library that fits it.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    /// UDP has no connections: this socket itself receives the datagrams.
    Udp(UdpSocket),
    Unix(UnixListener),
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Udp(socket) => socket.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        }
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> OwnedFd {
        match listener {
            Listener::Tcp(listener) => listener.into(),
            Listener::Udp(socket) => socket.into(),
            Listener::Unix(listener) => listener.into(),
        }
    }
}

/// Why [`server_ports`] gave no sockets. Whichever it is, nothing was taken by that call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerPortsError {
    /// `SERVER_STARTER_PORT` is not set. A program that can also run by itself binds its own sockets now.
    NotStarted,
    /// An earlier call has handed the sockets out, or another thread is in the call at this moment.
    AlreadyTaken,
    /// An entry of `SERVER_STARTER_PORT` is malformed, or its descriptor is not what it should be.
    BadEntry { entry: OsString, cause: String },
}

impl fmt::Display for ServerPortsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerPortsError::NotStarted => write!(
                f,
                "cannot take the sockets: not run by start_server ({VARIABLE} is not set)"
            ),
            ServerPortsError::AlreadyTaken => write!(
                f,
                "cannot take the sockets of {VARIABLE}: this process has taken them already"
            ),
            ServerPortsError::BadEntry { entry, cause } => {
                // Escaped: a path may hold a line break, and a message is one line.
                let entry = entry.to_string_lossy();
                let entry = entry.escape_debug();
                write!(f, "cannot take '{entry}' of {VARIABLE}: {cause}")
            }
        }
    }
}

impl Error for ServerPortsError {}

/// Takes over the sockets that start_server bound for this process, in the order of `SERVER_STARTER_PORT`: ports
/// first, then paths, each as on the command line. Without `--port` and `--path` the list is empty.
///
/// ```no_run
/// use common::{Listener, ServerPortsError, server_ports};
///
/// # fn main() -> Result<(), ServerPortsError> {
/// for port in server_ports()? {
///     match port.listener {
///         Listener::Tcp(_listener) => { /* accept from it */ }
///         Listener::Unix(_listener) => { /* accept from it */ }
///         Listener::Udp(_socket) => { /* receive from it */ }
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Once
///
/// The sockets have one owner, so only one call in the life of a process succeeds; every later one, from whichever
/// thread, gets [`ServerPortsError::AlreadyTaken`], also after the sockets have been closed and when the list was
/// empty. Everything is checked before anything is taken: a call that fails has changed nothing, and may be
/// repeated. Of two threads that call at once one is told `AlreadyTaken`, even if the other then fails.
///
/// # Close-on-exec
///
/// Each socket becomes close-on-exec, so that programs which the worker runs do not keep the port open. They do
/// inherit the variable: remove `SERVER_STARTER_PORT` from their environment if they might look at it. The other way
/// round, a descriptor that is close-on-exec *before* the call cannot have come from start_server. It belongs to
/// something in this process which happened to get that number, and is refused. Calling early in `main` avoids that.
///
/// # Blocking
///
/// `O_NONBLOCK` is left as it is: blocking, unless somebody changed it. It does not belong to the descriptor but to
/// the open socket behind it, which this worker shares with start_server and with the workers of every other
/// generation. `set_nonblocking` therefore changes it under all of them: a worker of the previous generation that
/// sits in a blocking `accept` loop suddenly gets [`WouldBlock`](io::ErrorKind::WouldBlock), and back again a worker
/// that trusts in never being blocked hangs in `accept`, because another one was faster to take the connection that
/// `poll` announced. Let all generations of a program do the same, and be ready for `WouldBlock` in any case.
/// Asynchronous runtimes need nonblocking sockets. Accepted connections are not shared, and start out blocking.
pub fn server_ports() -> Result<Vec<ServerPort>, ServerPortsError> {
    take(env::var_os(VARIABLE).as_deref(), &TAKEN)
}

/// The number of the sockets that this process has and no other generation, with `--switch`: `SERVER_STARTER_LANE`, as it
/// was at the first call. `None` if it shares its sockets with all generations.
pub fn lane() -> Option<u8> {
    static FOUND: OnceLock<Option<u8>> = OnceLock::new();
    *FOUND.get_or_init(|| env::var(LANE).ok()?.parse().ok())
}

/// Puts the number of this process' [`lane`] into a connection ID of QUIC that it is to issue. With
/// `--udp-flows=quic:OFFSET` start_server leaves the packets that have such an ID with this process until it is gone,
/// whoever gets new connections by then. Every ID needs the number: the one of the handshake and all later ones. An example
/// with the crate `quinn` is `tests/examples/quic.rs`.
///
/// ```
/// use common::{lane, put_lane};
///
/// // What `--udp-flows=quic:OFFSET` says.
/// const OFFSET: usize = 0;
/// let mut id = [0xc5, 0x0f, 0x6a, 0x91, 0x3e, 0x77, 0x28]; // random
/// if let Some(lane) = lane() {
///     put_lane(&mut id, OFFSET, lane);
/// }
/// ```
///
/// # Panics
/// If the ID has no byte at this offset: nothing that is sent to it would come back.
pub fn put_lane(id: &mut [u8], offset: usize, lane: u8) {
    assert!(
        offset < id.len(),
        "a connection ID of {} bytes has none at the offset {offset}",
        id.len()
    );
    id[offset] = lane;
}

fn take(value: Option<&OsStr>, taken: &AtomicBool) -> Result<Vec<ServerPort>, ServerPortsError> {
    let value = value.ok_or(ServerPortsError::NotStarted)?;
    // Claimed before the first look, not only before taking: otherwise a second thread would still look at
    // descriptors that the first already owns, and perhaps has closed.
    if taken.swap(true, Ordering::AcqRel) {
        return Err(ServerPortsError::AlreadyTaken);
    }
    let ports = check_and_own(value);
    if ports.is_err() {
        taken.store(false, Ordering::Release);
    }
    ports
}

fn check_and_own(value: &OsStr) -> Result<Vec<ServerPort>, ServerPortsError> {
    let entries = parse(value)?;
    let kinds = entries
        .iter()
        .map(|entry| inspect(entry.fd).map_err(|cause| entry.bad(cause)))
        .collect::<Result<Vec<_>, _>>()?;
    for entry in &entries {
        set_descriptor_flags(entry.fd, libc::FD_CLOEXEC)
            .map_err(|cause| entry.bad(format!("cannot make it close-on-exec: {cause}")))?;
    }
    // From here on nothing fails: either all descriptors get their owner or none.
    Ok(entries
        .iter()
        .zip(kinds)
        .map(|(entry, kind)| own(entry, kind))
        .collect())
}

/// One `NAME=FD` of the variable.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    name: &'a OsStr,
    fd: RawFd,
}

impl Entry<'_> {
    fn bad(&self, cause: String) -> ServerPortsError {
        let mut entry = self.name.to_owned();
        entry.push(format!("={}", self.fd));
        ServerPortsError::BadEntry { entry, cause }
    }
}

/// `NAME=FD;NAME=FD`, or nothing. No descriptor is in the result twice.
fn parse(value: &OsStr) -> Result<Vec<Entry<'_>>, ServerPortsError> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    if value.is_empty() {
        return Ok(entries);
    }
    for text in value.as_bytes().split(|&byte| byte == b';') {
        let entry = parse_entry(text).ok_or_else(|| ServerPortsError::BadEntry {
            entry: OsStr::from_bytes(text).to_owned(),
            cause: "it is not of the form NAME=DESCRIPTOR".to_owned(),
        })?;
        // Two owners of one descriptor would close it twice.
        if let Some(first) = entries.iter().find(|other| other.fd == entry.fd) {
            let first = first.name.to_string_lossy();
            let first = first.escape_debug();
            return Err(entry.bad(format!("descriptor {} is that of '{first}'", entry.fd)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn parse_entry(text: &[u8]) -> Option<Entry<'_>> {
    // Unlike Server::Starter: split at the last `=`, since a path may contain others.
    let split = text.iter().rposition(|&byte| byte == b'=')?;
    let (name, digits) = (&text[..split], &text[split + 1..]);
    // Digits alone: `parse` would let a sign through.
    if name.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let fd = str::from_utf8(digits).ok()?.parse().ok()?;
    let name = OsStr::from_bytes(name);
    Some(Entry { name, fd })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Unix,
}

/// Tells what `fd` is without owning it; an error says why it cannot be taken.
fn inspect(fd: RawFd) -> Result<Kind, String> {
    match descriptor_flags(fd) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            return Err(format!("descriptor {fd} is not open"));
        }
        Err(error) => return Err(format!("descriptor {fd}: {error}")),
        // What came through exec was not close-on-exec, and everything that Rust opens is.
        Ok(flags) if flags & libc::FD_CLOEXEC != 0 => {
            return Err(format!(
                "descriptor {fd} is close-on-exec: this process opened it, not start_server"
            ));
        }
        Ok(_) => {}
    }
    let option = |name| match socket_option(fd, name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
            Err(format!("descriptor {fd} is not a socket"))
        }
        Err(error) => Err(format!("descriptor {fd}: {error}")),
        Ok(value) => Ok(value),
    };
    let domain = option(libc::SO_DOMAIN)?;
    let socket_type = option(libc::SO_TYPE)?;
    let listens = option(libc::SO_ACCEPTCONN)? != 0;
    match (domain, socket_type, listens) {
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, true) => Ok(Kind::Tcp),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, _) => Ok(Kind::Udp),
        (libc::AF_UNIX, libc::SOCK_STREAM, true) => Ok(Kind::Unix),
        (_, libc::SOCK_STREAM, false) => {
            Err(format!("descriptor {fd} is a socket that does not listen"))
        }
        _ => Err(format!(
            "descriptor {fd} is a socket, but not of TCP, UDP or unix stream"
        )),
    }
}

#[expect(
    unsafe_code,
    reason = "fcntl is called for numbers that may not be open"
)]
fn descriptor_flags(fd: RawFd) -> io::Result<libc::c_int> {
    // SAFETY: F_GETFD takes no pointer and changes nothing; a number that is not open is answered with EBADF.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(flags)
}

#[expect(unsafe_code, reason = "the descriptor has no owner yet")]
fn set_descriptor_flags(fd: RawFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETFD takes an int, no pointer. It changes `fd` in this process only, which `inspect` found to be a
    // socket inherited from start_server, and which nothing else in this process owns: `take` holds the claim.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, flags) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An option of the level `SOL_SOCKET` whose value is an int.
#[expect(
    unsafe_code,
    reason = "getsockopt is called for numbers that may not be sockets"
)]
fn socket_option(fd: RawFd, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: both pointers are to live locals, and `size` tells the kernel how much of `value` it may write; what
    // `fd` is does not matter, anything but a socket is answered with an error.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut size,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

#[expect(
    unsafe_code,
    reason = "this is where inherited descriptors get their owner"
)]
fn own(entry: &Entry<'_>, kind: Kind) -> ServerPort {
    // SAFETY: `inspect` found the descriptor open, and inherited rather than opened by something in this process;
    // `parse` lets each number through once, and the claim in `take` lets one list through once. So this is the
    // first owner and the only one.
    let fd = unsafe { OwnedFd::from_raw_fd(entry.fd) };
    ServerPort {
        name: entry.name.to_owned(),
        listener: match kind {
            Kind::Tcp => Listener::Tcp(fd.into()),
            Kind::Udp => Listener::Udp(fd.into()),
            Kind::Unix => Listener::Unix(fd.into()),
        },
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test, and says where"
)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
    use std::thread;

    use super::*;

    /// A number that is never open: beyond what the kernel allows as a limit.
    const NEVER_OPEN: RawFd = RawFd::MAX;

    fn entries(value: &str) -> Vec<(String, RawFd)> {
        parse(OsStr::new(value))
            .unwrap()
            .iter()
            .map(|entry| (entry.name.to_str().unwrap().to_owned(), entry.fd))
            .collect()
    }

    /// Leaves the descriptor open without owner and without close-on-exec, as exec leaves it to a worker.
    fn inherited(socket: impl Into<OwnedFd>) -> RawFd {
        let fd = socket.into().into_raw_fd();
        set_descriptor_flags(fd, 0).unwrap();
        fd
    }

    fn tcp() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn take_fresh(value: &str) -> Result<Vec<ServerPort>, ServerPortsError> {
        take(Some(OsStr::new(value)), &AtomicBool::new(false))
    }

    #[test]
    fn a_lane_is_one_byte_of_an_id() {
        let mut id = [0xff; 4];
        put_lane(&mut id, 0, 1);
        put_lane(&mut id, 3, 127);
        assert_eq!(id, [1, 0xff, 0xff, 127]);
    }

    #[test]
    #[should_panic(expected = "a connection ID of 4 bytes has none at the offset 4")]
    fn an_id_without_that_byte_is_a_mistake() {
        put_lane(&mut [0; 4], 4, 1);
    }

    fn message(value: &str) -> String {
        take_fresh(value).unwrap_err().to_string()
    }

    fn is_nonblocking(socket: &impl AsRawFd) -> bool {
        #[expect(unsafe_code, reason = "the standard library does not tell O_NONBLOCK")]
        // SAFETY: F_GETFL takes no pointer and changes nothing.
        let flags = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) };
        assert_ne!(flags, -1);
        flags & libc::O_NONBLOCK != 0
    }

    #[test]
    fn entries_keep_their_order_and_their_names() {
        let table: &[(&str, &[(&str, RawFd)])] = &[
            ("", &[]),
            ("8080=3", &[("8080", 3)]),
            ("8080=0", &[("8080", 0)]),
            ("[::1]:80=4;80=3", &[("[::1]:80", 4), ("80", 3)]),
            (
                "127.0.0.1:80=3;/run/app.sock=4",
                &[("127.0.0.1:80", 3), ("/run/app.sock", 4)],
            ),
            ("53=3;53=4", &[("53", 3), ("53", 4)]),
            ("/run/a=b.sock=3", &[("/run/a=b.sock", 3)]),
            ("/run/a=7=3", &[("/run/a=7", 3)]),
        ];
        for (value, expected) in table {
            let expected: Vec<_> = expected
                .iter()
                .map(|&(name, fd)| (name.to_owned(), fd))
                .collect();
            assert_eq!(entries(value), expected, "{value}");
        }
    }

    #[test]
    fn a_malformed_entry_is_named() {
        let table = [
            ("8080", "8080"),
            ("8080=", "8080="),
            ("=3", "=3"),
            ("=", "="),
            ("8080=x", "8080=x"),
            ("8080=+3", "8080=+3"),
            ("8080=-1", "8080=-1"),
            ("8080= 3", "8080= 3"),
            ("8080=2147483648", "8080=2147483648"),
            ("8080=3;", ""),
            (";", ""),
            ("8080=3;/run/a;b.sock=4", "/run/a"),
            ("8080=3;two\nlines", "two\\nlines"),
        ];
        for (value, entry) in table {
            let expected = format!(
                "cannot take '{entry}' of SERVER_STARTER_PORT: it is not of the form NAME=DESCRIPTOR"
            );
            assert_eq!(message(value), expected);
        }
    }

    #[test]
    fn names_and_entries_need_not_be_utf8() {
        let parsed = parse(OsStr::from_bytes(b"/run/\xff=3")).unwrap();
        assert_eq!(parsed[0].name.as_bytes(), b"/run/\xff");
        assert!(parse(OsStr::from_bytes(b"80=\xff")).is_err());
    }

    #[test]
    fn the_same_descriptor_twice_is_refused() {
        assert_eq!(
            message("53=3;80=4;53=3"),
            "cannot take '53=3' of SERVER_STARTER_PORT: descriptor 3 is that of '53'"
        );
        assert!(parse(OsStr::new("53=3;80=03")).is_err());
    }

    #[test]
    fn without_the_variable_nothing_is_claimed() {
        let taken = AtomicBool::new(false);
        assert_eq!(
            take(None, &taken).unwrap_err(),
            ServerPortsError::NotStarted
        );
        assert!(!taken.load(Ordering::Acquire));
        assert_eq!(
            ServerPortsError::NotStarted.to_string(),
            "cannot take the sockets: not run by start_server (SERVER_STARTER_PORT is not set)"
        );
    }

    #[test]
    fn an_empty_list_is_a_list() {
        assert!(take_fresh("").unwrap().is_empty());
    }

    #[test]
    fn each_socket_gets_its_type_and_its_name() {
        let four = tcp();
        let four_address = four.local_addr().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp_address = udp.local_addr().unwrap();
        let abstract_name = format!("server_ports test {}", std::process::id());
        let unix_address = SocketAddr::from_abstract_name(abstract_name).unwrap();
        let unix = UnixListener::bind_addr(&unix_address).unwrap();
        let value = format!(
            "53={};53={};/run/app.sock={}",
            inherited(four),
            inherited(udp),
            inherited(unix),
        );

        let ports = take_fresh(&value).unwrap();

        let names: Vec<_> = ports
            .iter()
            .map(|port| port.name.to_str().unwrap())
            .collect();
        assert_eq!(names, ["53", "53", "/run/app.sock"]);
        let [
            Listener::Tcp(four),
            Listener::Udp(udp),
            Listener::Unix(unix),
        ] = [0, 1, 2].map(|index: usize| &ports[index].listener)
        else {
            unreachable!("{ports:?}")
        };
        assert_eq!(four.local_addr().unwrap(), four_address);
        assert_eq!(udp.local_addr().unwrap(), udp_address);

        let mut client = UnixStream::connect_addr(&unix_address).unwrap();
        unix.accept().unwrap().0.write_all(b"hello").unwrap();
        let mut received = String::new();
        client.read_to_string(&mut received).unwrap();
        assert_eq!(received, "hello");
    }

    #[test]
    fn ipv6_is_taken_too() {
        let (Ok(tcp), Ok(udp)) = (TcpListener::bind("[::1]:0"), UdpSocket::bind("[::1]:0")) else {
            writeln!(
                io::stderr(),
                "SKIPPED: needs IPv6 on the loopback interface"
            )
            .unwrap();
            return;
        };
        let value = format!("[::1]:53={};[::1]:53={}", inherited(tcp), inherited(udp));
        let ports = take_fresh(&value).unwrap();
        assert!(
            matches!(&ports[0].listener, Listener::Tcp(tcp) if tcp.local_addr().unwrap().is_ipv6())
        );
        assert!(
            matches!(&ports[1].listener, Listener::Udp(udp) if udp.local_addr().unwrap().is_ipv6())
        );
    }

    #[test]
    fn taking_sets_close_on_exec_and_leaves_o_nonblock() {
        let blocking = tcp();
        let nonblocking = tcp();
        nonblocking.set_nonblocking(true).unwrap();
        let value = format!("1={};2={}", inherited(blocking), inherited(nonblocking));

        let ports = take_fresh(&value).unwrap();

        for port in &ports {
            let fd = port.listener.as_fd().as_raw_fd();
            assert_eq!(descriptor_flags(fd).unwrap(), libc::FD_CLOEXEC);
        }
        assert!(!is_nonblocking(&ports[0].listener.as_fd()));
        assert!(is_nonblocking(&ports[1].listener.as_fd()));
    }

    #[test]
    fn a_taken_listener_becomes_the_same_descriptor() {
        let fd = inherited(tcp());
        let mut ports = take_fresh(&format!("80={fd}")).unwrap();
        assert_eq!(OwnedFd::from(ports.remove(0).listener).as_raw_fd(), fd);
    }

    #[test]
    fn a_descriptor_that_cannot_be_taken_is_named_with_its_entry() {
        let unlistening = inherited(UnixStream::pair().unwrap().0);
        let datagram = inherited(UnixDatagram::unbound().unwrap());
        let file = inherited(File::open("/dev/null").unwrap());
        let own = tcp();
        let own_fd = own.as_raw_fd();
        let table = [
            (NEVER_OPEN, "is not open"),
            (file, "is not a socket"),
            (unlistening, "is a socket that does not listen"),
            (datagram, "is a socket, but not of TCP, UDP or unix stream"),
            (
                own_fd,
                "is close-on-exec: this process opened it, not start_server",
            ),
        ];
        for (fd, cause) in table {
            let expected =
                format!("cannot take '80={fd}' of SERVER_STARTER_PORT: descriptor {fd} {cause}");
            assert_eq!(message(&format!("80={fd}")), expected);
        }
    }

    #[test]
    fn a_call_that_fails_takes_nothing_and_may_be_repeated() {
        let taken = AtomicBool::new(false);
        let fd = inherited(tcp());

        let bad = format!("80={fd};81={NEVER_OPEN}");
        assert!(take(Some(OsStr::new(&bad)), &taken).is_err());
        assert_eq!(descriptor_flags(fd).unwrap(), 0);

        let good = format!("80={fd}");
        assert_eq!(take(Some(OsStr::new(&good)), &taken).unwrap().len(), 1);
    }

    #[test]
    fn a_second_call_gets_nothing() {
        let taken = AtomicBool::new(false);
        let value = format!("80={}", inherited(tcp()));
        let ports = take(Some(OsStr::new(&value)), &taken).unwrap();
        // Also once the number is free for something else.
        drop(ports);
        let error = take(Some(OsStr::new(&value)), &taken).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot take the sockets of SERVER_STARTER_PORT: this process has taken them already"
        );
    }

    #[test]
    fn of_several_threads_one_gets_the_sockets() {
        let taken = AtomicBool::new(false);
        let value = format!("80={}", inherited(tcp()));
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| take(Some(OsStr::new(&value)), &taken)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        let refused =
            |result: &&Result<_, _>| matches!(result, Err(ServerPortsError::AlreadyTaken));
        assert_eq!(results.iter().filter(refused).count(), 7);
    }
}
