//! The boundary between the two processes, with a hostile or broken program on either side.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use common::channel::Channel;
use common::message::{
    Address, Allow, Ask, Escape, Grant, Identity, MOST_DESCRIPTORS, MOST_GRANTS, MOST_LANES,
    Refusal, Reply, Request, SocketFile, Transport,
};
use common::wire;
use e2e::folder::Folder;
use e2e::server::NOBODY;
use e2e::skip::{needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{ports, proc, programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen,
    sendmsg, socket, socketpair,
};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, Uid, mkfifo, pipe2};

use crate::launch::{
    Launched, RootFolder, as_ordinary_user, install, launch_program, ordinary_folder,
};

/// A binder with the test as its supervisor. Dropping it kills it.
pub struct Peer {
    pub channel: Channel<Request, Reply>,
    pub child: Child,
}

/// How a binder ended.
pub struct End {
    pub status: ExitStatus,
    pub stderr: String,
}

/// Whether there is a binder of ours to speak to.
pub fn is_ours() -> bool {
    !original_differs("it has no binder")
}

/// A binder of an ordinary user.
pub fn ordinary() -> Peer {
    let mut command = Command::new(programs::binder());
    if Uid::effective().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    start(command)
}

/// A binder of root; ask whether there is one first.
pub fn rooted() -> Peer {
    start(Command::new(programs::binder()))
}

pub fn start(command: Command) -> Peer {
    let (channel, theirs) = Channel::pair().expect("cannot make a channel");
    let child = spawn(command, theirs.into());
    Peer { channel, child }
}

pub fn spawn(mut command: Command, stdin: Stdio) -> Child {
    command
        .env_clear()
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn_in_turn().expect("cannot run the binder")
}

pub fn wait_for_end(child: &mut Child) -> End {
    let pid = Pid::from_raw(child.id().cast_signed());
    wait::until("the binder ended", String::new, || {
        (!proc::alive(pid)).then_some(())
    });
    let status = child.wait().expect("cannot wait for the binder");
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().expect("standard error is a pipe");
    pipe.read_to_string(&mut stderr).expect("not UTF-8");
    End { status, stderr }
}

impl End {
    /// It ended as programs end that found a mistake: with one line that says it.
    #[track_caller]
    pub fn assert_one_line(&self) {
        let End { status, stderr } = self;
        assert_eq!(status.code(), Some(1), "{status}: {stderr:?}");
        assert!(stderr.starts_with("start_server-binder: "), "{stderr:?}");
        assert_eq!(stderr.find('\n'), Some(stderr.len() - 1), "{stderr:?}");
        assert!(!stderr.contains("panicked"), "{stderr:?}");
    }

    #[track_caller]
    pub fn assert_refused(&self, cause: &str) {
        self.assert_one_line();
        assert_eq!(self.stderr, format!("start_server-binder: {cause}\n"));
    }

    #[track_caller]
    pub fn assert_quiet(&self) {
        let End { status, stderr } = self;
        assert!(status.success(), "{status}: {stderr:?}");
        assert_eq!(stderr, "");
    }
}

impl Peer {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn send(&self, request: &Request) {
        self.channel.send(request, &[]).expect("cannot send");
    }

    pub fn send_with(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) {
        self.channel
            .send(request, descriptors)
            .expect("cannot send");
    }

    /// One datagram as it is; a binder that has ended already cannot be told.
    pub fn send_bytes(&self, bytes: &[u8]) {
        let slices = [std::io::IoSlice::new(bytes)];
        let socket = self.channel.as_fd().as_raw_fd();
        let none: &[ControlMessage<'_>] = &[];
        let _ = sendmsg::<()>(socket, &slices, none, MsgFlags::MSG_NOSIGNAL, None);
    }

    /// The answer to a request, after what the binder says by itself.
    #[track_caller]
    pub fn answer(&self) -> (Reply, Vec<OwnedFd>) {
        loop {
            let answer = self.channel.receive_with_descriptors();
            match answer.expect("no answer").expect("the binder ended") {
                (Reply::Confined(_), sockets) => assert!(sockets.is_empty()),
                answer => return answer,
            }
        }
    }

    /// Its end while the channel is open: it has ended by its own decision, and sent nothing.
    #[track_caller]
    pub fn end(mut self) -> End {
        let end = wait_for_end(&mut self.child);
        // What we sent and it did not read makes this an error instead of the end.
        while let Ok(Some((reply, sockets))) = self.channel.receive_with_descriptors() {
            if matches!(reply, Reply::Confined(_)) {
                continue;
            }
            panic!(
                "it has answered {reply:?} with {} descriptors",
                sockets.len()
            );
        }
        end
    }

    /// Its end because the channel was closed.
    pub fn close(mut self) -> End {
        let (_, unused) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .expect("cannot make a channel");
        let unused = Channel::from_socket(unused).expect("a channel");
        drop(std::mem::replace(&mut self.channel, unused));
        wait_for_end(&mut self.child)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail where it has ended and was waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub fn tcp(port: u16) -> Grant {
    Grant::Port {
        transport: Transport::Tcp,
        port,
        ip: Some(LOOPBACK),
        freebind: false,
        lanes: 1,
    }
}

pub fn file(path: impl AsRef<Path>) -> Grant {
    let path = path.as_ref();
    Grant::Path(SocketFile {
        path: path.into(),
        mode: 0o600,
        uid: None,
        gid: None,
    })
}

pub fn allow(identity: Option<Identity>, grants: Vec<Grant>) -> Request {
    allow_with(identity, grants, vec![])
}

/// With what the binder is to try, as a self-test has it.
pub fn allow_with(identity: Option<Identity>, grants: Vec<Grant>, escapes: Vec<Escape>) -> Request {
    Request::Allow(Allow {
        identity,
        grants,
        escapes,
        more: false,
    })
}

pub fn ask(grant: u32, port: u16) -> Ask {
    ask_at(grant, LOOPBACK, port)
}

pub fn ask_at(grant: u32, ip: IpAddr, port: u16) -> Ask {
    Ask::Port {
        grant,
        address: Address { ip, port, scope: 0 },
    }
}

pub fn nobody() -> Option<Identity> {
    Some(Identity {
        uid: NOBODY,
        gid: NOBODY,
        groups: vec![NOBODY],
    })
}

/// Nobody has the port. For a moment a process that is just being started somewhere else in this test process may have
/// it: a fork copies everything.
#[track_caller]
pub fn assert_is_free(port: u16) {
    let evidence = || format!("port {port} is bound");
    wait::until("the port is free", evidence, || {
        TcpListener::bind(("127.0.0.1", port)).ok()
    });
}

pub fn encoded(request: &Request) -> Vec<u8> {
    wire::encode(request).expect("cannot encode")
}

#[test]
fn what_is_allowed_is_bound_once_and_then_the_binder_ends() {
    if !is_ours() {
        return;
    }
    let [one, two] = [ports::tcp(), ports::udp()];
    let udp = Grant::Port {
        transport: Transport::Udp,
        port: two,
        ip: None,
        freebind: false,
        lanes: 1,
    };
    let peer = ordinary();
    peer.send(&allow(None, vec![tcp(one), udp]));
    // In any order, and in several requests.
    let loopback = |port| std::net::SocketAddr::from((LOOPBACK, port));
    peer.send(&Request::Bind(vec![ask(1, two)]));
    let udp = UdpSocket::from(only_socket(&peer));
    assert_eq!(udp.local_addr().expect("no address"), loopback(two));
    peer.send(&Request::Bind(vec![ask(0, one)]));
    let tcp = TcpListener::from(only_socket(&peer));
    assert_eq!(tcp.local_addr().expect("no address"), loopback(one));
    peer.end().assert_quiet();
}

#[track_caller]
pub fn only_socket(peer: &Peer) -> OwnedFd {
    let (reply, mut sockets) = peer.answer();
    assert_eq!(reply, Reply::Bound { replaced: vec![] });
    assert_eq!(sockets.len(), 1);
    sockets.remove(0)
}

/// Everything that is no message, whatever was expected, and what the binder says about it. The valid message is the
/// one to spoil.
fn malformed(valid: &[u8]) -> Vec<(Vec<u8>, &'static str)> {
    let longer = [valid, &[0]].concat();
    let of_version = |version| [&[version], &valid[1..]].concat();
    let oversized = |length| [valid, &vec![0; length - valid.len()]].concat();
    vec![
        (valid[..valid.len() - 1].to_vec(), "not a message: "),
        (valid[..1].to_vec(), "not a message: "),
        (longer, "a message with 1 bytes left over"),
        (of_version(0), "a message of version 0, not 6"),
        (of_version(5), "a message of version 5, not 6"),
        (of_version(7), "a message of version 7, not 6"),
        (vec![6, 3], "not a message: "),
        (vec![6, 250], "not a message: "),
        // A list of 2^63 entries.
        (
            vec![6, 1, 253, 0, 0, 0, 0, 0, 0, 0, 0x80],
            "not a message: ",
        ),
        (oversized(wire::LARGEST), "a message with "),
        (
            oversized(wire::LARGEST + 1),
            "a message is over the limit of 65536 bytes",
        ),
        (
            oversized(2 * wire::LARGEST),
            "a message is over the limit of 65536 bytes",
        ),
    ]
}

#[track_caller]
fn assert_refused_for(end: &End, cause: &str) {
    end.assert_one_line();
    let expected = format!("start_server-binder: {cause}");
    assert!(
        end.stderr.starts_with(&expected),
        "{:?} instead of {cause:?}",
        end.stderr
    );
}

#[test]
fn what_is_no_message_ends_the_binder_before_the_list_is_sealed() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    for (bytes, cause) in malformed(&encoded(&allow(None, vec![tcp(port)]))) {
        let peer = ordinary();
        peer.send_bytes(&bytes);
        assert_refused_for(&peer.end(), cause);
        assert_is_free(port);
    }
}

#[test]
fn what_is_no_message_ends_the_binder_after_the_list_is_sealed() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    for (bytes, cause) in malformed(&encoded(&Request::Bind(vec![ask(0, port)]))) {
        let peer = ordinary();
        peer.send(&allow(None, vec![tcp(port)]));
        peer.send_bytes(&bytes);
        assert_refused_for(&peer.end(), cause);
        assert_is_free(port);
    }
}

#[test]
fn descriptors_beside_a_message_end_the_binder() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let cause = "more descriptors came than expected or than this process may open";
    let list = allow(None, vec![tcp(port)]);
    let null = File::open("/dev/null").expect("cannot open /dev/null");
    for descriptors in [1, MOST_DESCRIPTORS] {
        let descriptors = vec![null.as_fd(); descriptors];
        let peer = ordinary();
        peer.send_with(&list, &descriptors);
        peer.end().assert_refused(cause);
        let peer = ordinary();
        peer.send(&list);
        peer.send_with(&Request::Bind(vec![ask(0, port)]), &descriptors);
        peer.end().assert_refused(cause);
        assert_is_free(port);
    }
}

#[test]
fn a_list_that_is_wrong_ends_the_binder() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let more = |identity, grants| {
        Request::Allow(Allow {
            identity,
            grants,
            escapes: vec![],
            more: true,
        })
    };
    let many = |count| vec![tcp(port); count];
    let too_many = format!("a list of {} grants", MOST_GRANTS + 1);
    let cases: Vec<(Vec<Request>, &str)> = vec![
        (
            vec![Request::Bind(vec![ask(0, port)])],
            "Bind came before the list was sealed",
        ),
        (
            vec![more(None, many(1)), Request::Bind(vec![ask(0, port)])],
            "Bind came before the list was sealed",
        ),
        (
            vec![Request::TryEscape(Escape::OpenFile)],
            "TryEscape came before the list was sealed",
        ),
        (vec![allow(None, many(MOST_GRANTS + 1))], &too_many),
        (vec![more(None, vec![])], "a list of 0 grants"),
        (
            vec![more(None, many(1)), allow(nobody(), many(1))],
            "two lists for different users",
        ),
    ];
    for (requests, cause) in cases {
        let peer = ordinary();
        // It may have ended before the last one.
        requests
            .iter()
            .for_each(|request| peer.send_bytes(&encoded(request)));
        peer.end().assert_refused(cause);
        assert_is_free(port);
    }
}

#[test]
fn a_request_for_what_the_list_lacks_ends_the_binder() {
    if !is_ours() {
        return;
    }
    let [port, other] = [ports::tcp(), ports::tcp()];
    let elsewhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let v6 = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
    let missing = |grant: u32| format!("grant {grant} does not exist or was used already");
    let not_allowed = "the ask is not what grant 0 allows".to_owned();
    let cases = vec![
        (vec![ask(2, port)], missing(2)),
        (vec![ask(u32::MAX, port)], missing(u32::MAX)),
        (vec![ask(0, port), ask(0, port)], missing(0)),
        (vec![ask(0, other)], not_allowed.clone()),
        (vec![ask_at(0, elsewhere, port)], not_allowed.clone()),
        (vec![ask_at(0, v6, port)], not_allowed.clone()),
        (vec![Ask::Path { grant: 0 }], not_allowed),
        (vec![], "a request for 0 sockets".to_owned()),
        (
            vec![ask(0, port); MOST_DESCRIPTORS + 1],
            format!("a request for {} sockets", MOST_DESCRIPTORS + 1),
        ),
    ];
    for (asks, cause) in cases {
        let peer = ordinary();
        peer.send(&allow(None, vec![tcp(port), tcp(ports::tcp())]));
        peer.send(&Request::Bind(asks));
        peer.end().assert_refused(&cause);
        assert_is_free(port);
        assert_is_free(other);
    }
}

#[test]
fn a_grant_without_an_address_does_not_free_the_port() {
    if !is_ours() {
        return;
    }
    let [port, other] = [ports::tcp(), ports::tcp()];
    let peer = ordinary();
    let any = Grant::Port {
        transport: Transport::Tcp,
        port,
        ip: None,
        freebind: false,
        lanes: 1,
    };
    peer.send(&allow(None, vec![any]));
    peer.send(&Request::Bind(vec![ask(0, other)]));
    peer.end()
        .assert_refused("the ask is not what grant 0 allows");
    assert_is_free(other);
}

#[test]
fn a_grant_that_was_used_in_an_earlier_request_cannot_be_used_again() {
    if !is_ours() {
        return;
    }
    let [one, two] = [ports::tcp(), ports::tcp()];
    let peer = ordinary();
    peer.send(&allow(None, vec![tcp(one), tcp(two)]));
    peer.send(&Request::Bind(vec![ask(0, one)]));
    drop(peer.answer());
    assert_is_free(one);
    peer.send(&Request::Bind(vec![ask(0, one)]));
    peer.end()
        .assert_refused("grant 0 does not exist or was used already");
    assert_is_free(one);
}

#[test]
fn a_list_cannot_grow_after_it_was_sealed() {
    if !is_ours() {
        return;
    }
    let [one, two] = [ports::tcp(), ports::tcp()];
    let peer = ordinary();
    peer.send(&allow(None, vec![tcp(one)]));
    peer.send(&allow(None, vec![tcp(two)]));
    peer.end()
        .assert_refused("Allow came after the list was sealed");
}

#[test]
fn a_bind_that_fails_is_answered_with_its_place_and_errno() {
    if !is_ours() {
        return;
    }
    let [one, two] = [ports::tcp(), ports::tcp()];
    let _others = TcpListener::bind(("127.0.0.1", two)).expect("cannot bind");
    let peer = ordinary();
    peer.send(&allow(None, vec![tcp(one), tcp(two), tcp(ports::tcp())]));
    peer.send(&Request::Bind(vec![ask(0, one), ask(1, two)]));
    let (reply, sockets) = peer.answer();
    let refusal = Refusal::Errno(nix::errno::Errno::EADDRINUSE as i32);
    assert_eq!(reply, Reply::Refused { ask: 1, refusal });
    assert!(sockets.is_empty());
    peer.end().assert_quiet();
    assert_is_free(one);
}

#[test]
fn a_channel_that_closes_before_the_list_is_sealed_is_an_error() {
    if !is_ours() {
        return;
    }
    let cause = "the channel was closed before the list was sealed";
    ordinary().close().assert_refused(cause);
    let peer = ordinary();
    let grants = vec![tcp(ports::tcp())];
    peer.send(&Request::Allow(Allow {
        identity: None,
        grants,
        escapes: vec![],
        more: true,
    }));
    peer.close().assert_refused(cause);
    // An empty datagram looks the same.
    let peer = ordinary();
    peer.send_bytes(&[]);
    peer.end().assert_refused(cause);
}

#[test]
fn a_channel_that_closes_after_the_list_is_sealed_is_the_end() {
    if !is_ours() {
        return;
    }
    let [one, two] = [ports::tcp(), ports::tcp()];
    let peer = ordinary();
    peer.send(&allow(None, vec![tcp(one)]));
    peer.close().assert_quiet();
    let peer = ordinary();
    peer.send(&allow(None, vec![tcp(one), tcp(two)]));
    peer.send(&Request::Bind(vec![ask(0, one)]));
    drop(peer.answer());
    peer.close().assert_quiet();
    let peer = ordinary();
    peer.send(&allow(None, vec![]));
    peer.end().assert_quiet();
}

#[test]
fn random_bytes_never_make_the_binder_panic() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let list = allow(None, vec![tcp(port)]);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for round in 0..300 {
        let sealed = round % 2 == 0;
        let length = random.below(40) + 1;
        let mut bytes: Vec<u8> = (0..length).map(|_| random.byte()).collect();
        // Mostly of the right version, else nothing behind it is ever looked at.
        if round % 8 != 0 {
            bytes[0] = 3;
        }
        // Half of them with a variant that exists.
        if round % 3 != 0 && bytes.len() > 1 {
            bytes[1] %= 3;
        }
        assert_survives(&list, sealed, &bytes, port);
    }
}

#[test]
fn messages_with_a_wrong_byte_never_make_the_binder_panic() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let list = allow(None, vec![tcp(port)]);
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    for (sealed, valid) in [
        (false, encoded(&list)),
        (
            false,
            encoded(&allow(nobody(), vec![tcp(port), file("/run/x/socket")])),
        ),
        (true, encoded(&Request::Bind(vec![ask(0, port)]))),
    ] {
        for place in 0..valid.len() {
            for _ in 0..4 {
                let mut bytes = valid.clone();
                bytes[place] ^= random.byte() | 1;
                assert_survives(&list, sealed, &bytes, port);
            }
        }
    }
}

/// It ends when the channel is closed, quietly or with one line.
#[track_caller]
fn assert_survives(list: &Request, sealed: bool, bytes: &[u8], port: u16) {
    let peer = ordinary();
    if sealed {
        peer.send(list);
    }
    peer.send_bytes(bytes);
    let end = peer.close();
    assert_eq!(end.status.signal(), None, "{bytes:?}: {}", end.stderr);
    match end.status.success() {
        true => end.assert_quiet(),
        false => end.assert_one_line(),
    }
    assert_is_free(port);
}

/// Marsaglia's xorshift: the same numbers in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[test]
fn a_binder_without_a_channel_ends() {
    if !is_ours() {
        return;
    }
    let cause =
        "this program is run by start_server only: the channel is not a SEQPACKET socket pair";
    let folder = ordinary_folder();
    let pair = |kind| {
        let flags = SockFlag::SOCK_CLOEXEC;
        socketpair(AddressFamily::Unix, kind, None, flags).expect("cannot make a pair")
    };
    let (_stream, stream) = pair(SockType::Stream);
    let (_datagram, datagram) = pair(SockType::Datagram);
    let (reader, _writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("cannot make a pipe");
    let named = named_socket(&UnixAddr::new(&folder.path().join("named")).expect("an address"));
    let tcp = TcpListener::bind("127.0.0.1:0").expect("cannot bind");
    let cases: [Stdio; 6] = [
        Stdio::null(),
        stream.into(),
        datagram.into(),
        reader.into(),
        named.into(),
        OwnedFd::from(tcp).into(),
    ];
    for stdin in cases {
        let mut child = spawn(Command::new(programs::binder()), stdin);
        wait_for_end(&mut child).assert_refused(cause);
    }
    let mut closed = Command::new("sh");
    closed
        .args(["-c", "exec \"$0\" <&-"])
        .arg(programs::binder());
    let mut child = spawn(closed, Stdio::null());
    wait_for_end(&mut child).assert_refused(cause);
}

/// The end of a connection that belongs to the address; not from a pair.
fn named_socket(address: &UnixAddr) -> OwnedFd {
    let new = || {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("cannot make a socket")
    };
    let (listener, client) = (new(), new());
    bind(listener.as_raw_fd(), address).expect("cannot bind");
    listen(
        &listener,
        nix::sys::socket::Backlog::new(1).expect("a backlog"),
    )
    .expect("cannot listen");
    connect(client.as_raw_fd(), address).expect("cannot connect");
    // The accepted one has the name of the listener.
    let (accepted, _) = UnixListener::from(listener)
        .accept()
        .expect("cannot accept");
    accepted.into()
}

#[test]
fn an_ordinary_user_cannot_ask_for_what_only_root_can_do() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let folder = ordinary_folder();
    let path = folder.path().join("socket");
    for (identity, grants) in [
        (nobody(), vec![tcp(port)]),
        (None, vec![file(&path)]),
        (nobody(), vec![file(&path)]),
    ] {
        let peer = ordinary();
        peer.send(&allow(identity, grants));
        peer.end()
            .assert_refused("an ordinary user asked for what only root can do");
        assert!(!path.exists());
    }
}

#[test]
fn root_without_an_ordinary_user_to_become_is_refused() {
    if !is_ours() || !needs_root() {
        return;
    }
    let port = ports::tcp();
    let folder = RootFolder::new();
    let path = folder.join("socket");
    for grants in [vec![tcp(port)], vec![file(&path)], vec![]] {
        let peer = rooted();
        peer.send(&allow(None, grants));
        peer.end()
            .assert_refused("root asked for sockets without a user to become");
    }
    let peer = rooted();
    let root = Some(Identity {
        uid: 0,
        gid: NOBODY,
        groups: vec![],
    });
    peer.send(&allow(root, vec![tcp(port)]));
    peer.end().assert_refused("the user to become is root");
    assert!(!Path::new(&path).exists());
}

#[test]
fn a_binder_with_nothing_but_ports_keeps_nothing_but_the_right_to_bind_them() {
    if !is_ours() || !needs_root() {
        return;
    }
    let port = ports::low();
    let peer = rooted();
    peer.send(&allow(nobody(), vec![tcp(port)]));
    let pid = peer.pid();
    let status = wait::until(
        "it has dropped its privileges",
        || format!("{:?}", proc::status(pid)),
        || proc::status(pid).filter(|it| it.no_new_privs && it.permitted.count_ones() <= 1),
    );
    assert_eq!((status.uids, status.gids), ([NOBODY; 4], [NOBODY; 4]));
    assert_eq!(status.groups, [NOBODY]);
    // CAP_NET_BIND_SERVICE.
    assert_eq!(status.capabilities(), [0, 1 << 10, 1 << 10, 0, 0]);
    assert_owned_by_root(pid);
    // It may still be at its proof, for which it reads in /proc.
    wait::until(
        "nothing else is open",
        || format!("{:?}", proc::descriptors(pid)),
        || {
            proc::descriptors(pid)
                .into_keys()
                .eq([0, 1, 2])
                .then_some(())
        },
    );
    peer.send(&Request::Bind(vec![ask(0, port)]));
    assert_eq!(peer.answer().1.len(), 1);
    peer.end().assert_quiet();
}

/// Nobody of the same user can trace it.
#[track_caller]
fn assert_owned_by_root(pid: Pid) {
    use std::os::unix::fs::MetadataExt;
    let environment = fs::metadata(format!("/proc/{pid}/environ")).expect("it is gone");
    assert_eq!(environment.uid(), 0);
}

#[test]
fn a_binder_with_paths_keeps_only_what_they_need() {
    if !is_ours() || !needs_root() {
        return;
    }
    const CHOWN: u64 = 1 << 0;
    let folder = RootFolder::new();
    let given = |path: &str| {
        let (path, uid, gid) = (path.into(), Some(NOBODY), None);
        Grant::Path(SocketFile {
            path,
            mode: 0o600,
            uid,
            gid,
        })
    };
    let path = folder.join("socket");
    for (grants, kept) in [
        (vec![file(&path)], 0),
        (vec![given(&path)], CHOWN),
        (vec![file(&path), given("/run/other")], CHOWN),
    ] {
        let peer = rooted();
        let grants_left = grants.len() - 1;
        peer.send(&allow(nobody(), grants));
        let pid = peer.pid();
        let status = wait::until(
            "it has dropped its privileges",
            || format!("{:?}", proc::status(pid)),
            || proc::status(pid).filter(|it| it.no_new_privs && it.permitted.count_ones() <= 2),
        );
        assert_eq!((status.uids, status.gids), ([0; 4], [0; 4]));
        assert!(status.groups.is_empty());
        assert_eq!(status.capabilities(), [0, kept, kept, 0, 0]);
        // After the last answer there is nothing left.
        peer.send(&Request::Bind(vec![Ask::Path { grant: 0 }]));
        assert_eq!(peer.answer().1.len(), 1);
        if grants_left == 0 {
            let status = proc::status(pid).expect("it is gone");
            assert_eq!(status.capabilities(), [0; 5]);
        }
        peer.close().assert_quiet();
        assert!(!Path::new(&path).exists());
    }
}

#[test]
fn a_port_cannot_be_asked_for_with_the_grant_of_a_path() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let peer = rooted();
    let port = ports::low();
    peer.send(&allow(nobody(), vec![file(&path)]));
    peer.send(&Request::Bind(vec![ask(0, port)]));
    peer.end()
        .assert_refused("the ask is not what grant 0 allows");
    assert!(!Path::new(&path).exists());
}

#[test]
fn a_path_need_not_be_utf_8() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.path().join(OsStr::from_bytes(b"socket-\xff"));
    let peer = rooted();
    peer.send(&allow(nobody(), vec![file(&path)]));
    peer.send(&Request::Bind(vec![Ask::Path { grant: 0 }]));
    drop(only_socket(&peer));
    assert!(path.exists());
    peer.close().assert_quiet();
    assert!(!path.exists());
}

#[test]
fn ports_and_paths_are_not_bound_by_the_same_process() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let peer = rooted();
    peer.send(&allow(nobody(), vec![file(&path), tcp(ports::low())]));
    peer.end()
        .assert_refused("ports and paths are not for one process");
    assert!(!Path::new(&path).exists());
}

#[test]
fn a_path_that_root_must_not_touch_is_refused_by_the_binder_too() {
    if !is_ours() || !needs_root() {
        return;
    }
    let ordinary = ordinary_folder();
    let root = RootFolder::new();
    let mine = ordinary.path().join("socket");
    for path in [
        mine.to_str().expect("UTF-8"),
        "socket",
        "../socket",
        "",
        "/",
        &root.join(""),
        &root.join(".."),
        &root.join("missing/socket"),
    ] {
        let peer = rooted();
        peer.send(&allow(nobody(), vec![file(path)]));
        peer.send(&Request::Bind(vec![Ask::Path { grant: 0 }]));
        let (reply, sockets) = peer.answer();
        let refused = matches!(
            &reply,
            Reply::Refused {
                ask: 0,
                refusal: Refusal::Untrusted(_) | Refusal::NamesDirectory
            }
        );
        assert!(refused, "{path:?}: {reply:?}");
        assert!(sockets.is_empty());
        peer.end().assert_quiet();
    }
    assert!(!mine.exists());
    assert_eq!(fs::read_dir(root.path()).expect("no directory").count(), 0);
}

#[test]
fn files_that_were_made_go_when_a_later_request_is_wrong() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let [one, two] = ["one", "two"].map(|name| folder.join(name));
    let make_one = || {
        let peer = rooted();
        peer.send(&allow(
            nobody(),
            vec![file(&one), file(&two), file(folder.join("sub/three"))],
        ));
        peer.send(&Request::Bind(vec![Ask::Path { grant: 0 }]));
        assert_eq!(peer.answer().1.len(), 1);
        assert!(Path::new(&one).exists());
        peer
    };
    // A mistake ends it.
    let peer = make_one();
    peer.send(&Request::Bind(vec![Ask::Path { grant: 0 }]));
    peer.end()
        .assert_refused("grant 0 does not exist or was used already");
    assert!(!Path::new(&one).exists());
    // A refusal ends it too, also what was made for the same request.
    let peer = make_one();
    peer.send(&Request::Bind(vec![
        Ask::Path { grant: 1 },
        Ask::Path { grant: 2 },
    ]));
    let (reply, sockets) = peer.answer();
    assert!(matches!(reply, Reply::Refused { ask: 1, .. }), "{reply:?}");
    assert!(sockets.is_empty());
    peer.end().assert_quiet();
    assert!(!Path::new(&one).exists() && !Path::new(&two).exists());
    // And so does the end of the supervisor.
    make_one().close().assert_quiet();
    assert!(!Path::new(&one).exists());
    // Signals do not.
    let peer = make_one();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(peer.pid(), signal).expect("cannot send a signal");
    }
    peer.send(&Request::Bind(vec![Ask::Path { grant: 1 }]));
    assert_eq!(peer.answer().1.len(), 1);
    peer.close().assert_quiet();
}

/// start_server beside a broken binder. The folder belongs to whoever runs the tests.
pub fn install_beside(mode: &str) -> Folder {
    let folder = Folder::new(Uid::effective(), nix::unistd::Gid::effective());
    install(&programs::start_server(), folder.path(), "start_server");
    let fake = Path::new(env!("CARGO_BIN_EXE_fake_binder"));
    install(fake, folder.path(), "start_server-binder");
    fs::write(folder.path().join("mode"), mode).expect("cannot write the mode");
    folder
}

#[test]
fn a_broken_binder_is_one_clear_line_and_no_worker() {
    if !is_ours() {
        return;
    }
    let too_early = |how: &str| format!("it exited too early, exit status: 0{how}");
    let option = format!("--port=127.0.0.1:{}", ports::tcp());
    for (mode, causes) in [
        ("exits without an answer", vec![too_early("")]),
        (
            "answers garbage",
            vec!["a message of version 103, not 6".to_owned()],
        ),
        (
            "answers of another version",
            vec!["a message of version 7, not 6".to_owned()],
        ),
        ("answers half", vec!["not a message: ".to_owned()]),
        (
            "answers too much",
            vec!["a message with 1 bytes left over".to_owned()],
        ),
        (
            "sends no socket",
            vec!["it sent 0 sockets instead of 1".to_owned()],
        ),
        (
            "sends a socket too much",
            vec!["it sent 2 sockets instead of 1".to_owned()],
        ),
        (
            "refuses what was not asked for",
            vec!["it refused something that was not requested".to_owned()],
        ),
        (
            "answers before it is asked",
            vec!["it answered before it was asked".to_owned()],
        ),
        (
            "says twice what confines it",
            vec!["it reported its confinement twice".to_owned()],
        ),
        (
            // It may be gone before or after what it does not read.
            "exits at once",
            vec![
                too_early(""),
                "cannot send to the other process: ".to_owned(),
                "cannot receive from the other process: ".to_owned(),
            ],
        ),
        (
            "exits after the list",
            vec![
                too_early(""),
                "cannot receive from the other process: ".to_owned(),
            ],
        ),
    ] {
        let folder = install_beside(mode);
        let program = folder.path().join("start_server");
        let worker = programs::worker();
        let arguments = [
            &option,
            "--",
            worker.to_str().expect("UTF-8"),
            "--report=report",
        ];
        let mut launched = launch_program(as_ordinary_user(), &program, &arguments);
        assert_eq!(launched.wait_exit(), 1, "{mode}: {}", launched.log());
        let log = launched.log();
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| !line.ends_with("starting now..."))
            .collect();
        let [line] = lines[..] else {
            panic!("{mode}: {log}");
        };
        let told = causes.iter().any(|cause| {
            line.starts_with(&format!("start_server: cannot talk to the binder: {cause}"))
        });
        assert!(told, "{mode}: {line}");
    }
}

#[test]
fn something_else_than_a_socket_from_the_binder_is_an_error() {
    if !is_ours() {
        return;
    }
    let folder = install_beside("sends no socket but a file");
    let program = folder.path().join("start_server");
    let option = format!("--port=127.0.0.1:{}", ports::tcp());
    let mut launched = launch_program(as_ordinary_user(), &program, &[&option, "--", "true"]);
    assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
    let line = format!("start_server: cannot listen on {option}: Socket operation on non-socket");
    assert!(
        launched.log().lines().any(|it| it == line),
        "{}",
        launched.log()
    );
    assert!(
        !launched.log().contains("starting new worker"),
        "{}",
        launched.log()
    );
}

#[test]
fn the_first_worker_starts_after_the_binder_has_ended() {
    if !is_ours() {
        return;
    }
    let folder = install_beside("stays until it is released");
    let fifo = folder.path().join("fifo");
    mkfifo(&fifo, Mode::from_bits_truncate(0o644)).expect("cannot make a fifo");
    let program = folder.path().join("start_server");
    let option = format!("--port=127.0.0.1:{}", ports::tcp());
    let worker = programs::worker();
    let arguments = [
        &option,
        "--",
        worker.to_str().expect("UTF-8"),
        "--report=report",
    ];
    let launched = launch_program(as_ordinary_user(), &program, &arguments);
    // Opening it waits until the binder has answered and waits there.
    let release = fs::OpenOptions::new()
        .write(true)
        .open(&fifo)
        .expect("cannot open the fifo");
    // Either it waits for its child, or it goes on.
    let waits = || {
        let call = fs::read_to_string(format!("/proc/{}/syscall", launched.pid())).ok()?;
        let number: i64 = call.split(' ').next()?.parse().ok()?;
        [libc::SYS_wait4, libc::SYS_waitid]
            .contains(&number)
            .then_some(())
    };
    let goes_on = || launched.log().contains("starting new worker").then_some(());
    launched.wait_for("start_server waits for the binder", || {
        waits().or(goes_on())
    });
    assert!(
        !launched.log().contains("starting new worker"),
        "{}",
        launched.log()
    );
    drop(release);
    launched.wait_for_report();
}

/// Starts a server beside a binder whose kernel has only this of the sandbox.
fn launch_beside(mode: &str, options: &[&str]) -> (Folder, Launched) {
    let folder = install_beside(mode);
    let program = folder.path().join("start_server");
    let port = format!("--port=127.0.0.1:{}", ports::tcp());
    let worker = programs::worker();
    let worker = ["--", worker.to_str().expect("UTF-8"), "--report=report"];
    let arguments = [&[port.as_str()], options, &worker].concat();
    let launched = launch_program(as_ordinary_user(), &program, &arguments);
    (folder, launched)
}

const HALF: [(&str, &str); 2] = [
    ("has no sandbox", "seccomp filters and Landlock"),
    ("has half a sandbox", "Landlock's rules for signals"),
];

#[test]
fn a_sandbox_that_lacks_something_is_said_once() {
    if !is_ours() {
        return;
    }
    for (mode, lack) in HALF {
        let (_folder, launched) = launch_beside(mode, &[]);
        launched.wait_for_report();
        let line = format!(
            "start_server: cannot confine the binder fully: this kernel or container lacks {lack}"
        );
        let log = launched.log();
        let said = log.lines().filter(|it| it.contains("confine"));
        assert_eq!(said.collect::<Vec<_>>(), [line]);
    }
}

#[test]
fn strict_refuses_a_sandbox_that_lacks_something() {
    if !is_ours() {
        return;
    }
    for (mode, lack) in HALF {
        let (_folder, mut launched) = launch_beside(mode, &["--strict"]);
        assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
        let line = format!(
            "start_server: cannot confine the binder: this kernel or container lacks {lack}, and --strict is given"
        );
        let log = launched.log();
        let hint = "hint: it needs Linux 6.12 with `landlock` in /sys/kernel/security/lsm, and no container or unit \
                    that blocks it (SystemCallFilter=@system-service does); without --strict this is a warning";
        let said = format!("{line}\n{hint}\n");
        assert!(log.contains(&said), "{log}");
        assert!(!log.contains("starting new worker"), "{log}");
    }
}

#[test]
fn a_port_has_as_many_sockets_as_its_grant_says_and_a_message_no_more_than_it_can() {
    if !is_ours() {
        return;
    }
    let port = ports::tcp();
    let with_lanes = |lanes| Grant::Port {
        transport: Transport::Udp,
        port,
        ip: Some(LOOPBACK),
        freebind: false,
        lanes,
    };
    for lanes in [0, MOST_LANES + 1] {
        let peer = ordinary();
        peer.send(&allow(None, vec![with_lanes(lanes)]));
        let cause = format!("a port with {lanes} lanes");
        peer.end().assert_refused(&cause);
    }
    let peer = ordinary();
    peer.send(&allow(None, vec![with_lanes(3)]));
    peer.send(&Request::Bind(vec![ask(0, port)]));
    let (_, sockets) = peer.answer();
    assert_eq!(sockets.len(), 3);
    let peer = ordinary();
    peer.send(&allow(None, vec![with_lanes(MOST_LANES); 2]));
    peer.send(&Request::Bind((0..2).map(|one| ask(one, port)).collect()));
    peer.end().assert_refused("a request for 256 sockets");
}
