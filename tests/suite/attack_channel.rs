//! A supervisor that has been taken over, speaking to the real binder: it gains nothing beyond the list that was sealed
//! before; and the sandbox that is there should the binder itself be taken over.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use common::message::{Ask, Confinement, Escape, Grant, Reply, Request, Transport};
use e2e::skip::{missing, needs_program, needs_root};
use e2e::{client, ports, proc, wait};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, bind, listen,
    sendmsg, shutdown, socket,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::channel::{
    LOOPBACK, Peer, Random, allow, allow_with, ask, ask_at, assert_is_free, encoded, file, is_ours,
    nobody, only_socket, ordinary, rooted, tcp,
};
use crate::launch::{RootFolder, launch, make_directory};
use crate::policy::Etc;

/// Who launched the binder: an ordinary user, and root where the tests may.
fn launchers() -> Vec<Launcher> {
    let is_root = nix::unistd::Uid::effective().is_root();
    let all = [Launcher::Ordinary, Launcher::Root];
    all.into_iter()
        .filter(|it| is_root || *it == Launcher::Ordinary)
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Launcher {
    Ordinary,
    Root,
}

impl Launcher {
    fn start(self) -> Peer {
        match self {
            Launcher::Ordinary => ordinary(),
            Launcher::Root => rooted(),
        }
    }

    /// A list of the ports, for the user whom root names.
    fn list(self, grants: Vec<Grant>) -> Request {
        self.list_with(grants, vec![])
    }

    fn list_with(self, grants: Vec<Grant>, escapes: Vec<Escape>) -> Request {
        match self {
            Launcher::Ordinary => allow_with(None, grants, escapes),
            Launcher::Root => allow_with(nobody(), grants, escapes),
        }
    }
}

fn hang_up(peer: &Peer, direction: Shutdown) {
    shutdown(peer.channel.as_fd().as_raw_fd(), direction).expect("cannot shut the channel down");
}

const GONE: &str = "cannot send to the other process: Broken pipe";

#[test]
fn a_channel_of_which_one_direction_is_closed_ends_the_binder() {
    if !is_ours() {
        return;
    }
    for launcher in launchers() {
        let port = ports::tcp();
        let list = launcher.list(vec![tcp(port)]);
        let request = Request::Bind(vec![ask(0, port)]);
        // It no longer reads.
        for direction in [Shutdown::Write, Shutdown::Both] {
            let peer = launcher.start();
            hang_up(&peer, direction);
            peer.end()
                .assert_refused("the channel was closed before the list was sealed");
            let peer = launcher.start();
            peer.send(&list);
            hang_up(&peer, direction);
            peer.end().assert_quiet();
        }
        // Nothing reads from it any more.
        let peer = launcher.start();
        peer.send(&list);
        peer.send(&request);
        hang_up(&peer, Shutdown::Read);
        let end = wait_for(peer);
        // It was faster, or not.
        match end.status.success() {
            true => end.assert_quiet(),
            false => end.assert_refused(GONE),
        }
        let peer = launcher.start();
        hang_up(&peer, Shutdown::Read);
        peer.send(&list);
        peer.send(&request);
        wait_for(peer).assert_refused(GONE);
        assert_is_free(port);
    }
}

/// How it ends, whatever it sent.
fn wait_for(mut peer: Peer) -> crate::channel::End {
    crate::channel::wait_for_end(&mut peer.child)
}

#[test]
fn a_socket_that_nobody_could_be_told_of_is_removed() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let peer = rooted();
    hang_up(&peer, Shutdown::Read);
    peer.send(&allow(nobody(), vec![file(&path)]));
    peer.send(&Request::Bind(vec![Ask::Path { grant: 0 }]));
    wait_for(peer).assert_refused(GONE);
    assert!(!Path::new(&path).exists());
}

#[test]
fn a_binder_waits_for_a_peer_that_says_nothing_and_ends_with_it() {
    if !is_ours() {
        return;
    }
    for launcher in launchers() {
        let port = ports::tcp();
        for list in [None, Some(launcher.list(vec![tcp(port)]))] {
            let peer = launcher.start();
            if let Some(list) = &list {
                peer.send(list);
            }
            let pid = peer.pid();
            wait::until("it waits", String::new, || {
                let status = proc::status(pid)?;
                (status.state == 'S' && (list.is_none() || status.seccomp == 2)).then_some(())
            });
            // Not even a stop in between disturbs it.
            kill(pid, Signal::SIGSTOP).expect("cannot stop it");
            kill(pid, Signal::SIGCONT).expect("cannot continue it");
            assert_is_free(port);
            let end = peer.close();
            match list {
                None => end.assert_refused("the channel was closed before the list was sealed"),
                Some(_) => end.assert_quiet(),
            }
        }
    }
}

#[test]
fn a_peer_that_reads_nothing_stops_the_binder_and_no_more() {
    if !is_ours() {
        return;
    }
    const MANY: u32 = 20_000;
    for launcher in launchers() {
        let peer = launcher.start();
        let grants: Vec<Grant> = (0..MANY).map(|_| tcp(0)).collect();
        let mut parts = grants.chunks(common::message::MOST_GRANTS).peekable();
        while let Some(part) = parts.next() {
            let Request::Allow(mut list) = launcher.list(part.to_vec()) else {
                unreachable!("it is a list");
            };
            list.more = parts.peek().is_some();
            peer.send(&Request::Allow(list));
        }
        // Until neither direction has room: it does not read since it cannot answer.
        let mut next = 0;
        let pid = peer.pid();
        wait::until("nothing moves", String::new, || {
            while next < MANY && send_at_once(&peer, &Request::Bind(vec![ask(next, 0)])) {
                next += 1;
            }
            assert!(next < MANY, "it has answered everything");
            (proc::status(pid)?.state == 'S' && next > 0).then_some(())
        });
        let end = peer.close();
        end.assert_one_line();
    }
}

/// Whether there was room.
fn send_at_once(peer: &Peer, request: &Request) -> bool {
    let bytes = encoded(request);
    let slices = [std::io::IoSlice::new(&bytes)];
    let none: &[ControlMessage<'_>] = &[];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let socket = peer.channel.as_fd().as_raw_fd();
    match sendmsg::<()>(socket, &slices, none, flags, None) {
        Ok(_) => true,
        Err(Errno::EAGAIN) => false,
        Err(errno) => panic!("cannot send: {errno}"),
    }
}

#[test]
fn conversations_at_random_bind_nothing_beyond_the_list() {
    if !is_ours() {
        return;
    }
    let ports = [ports::tcp(), ports::tcp(), ports::tcp()];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for launcher in launchers() {
        for _ in 0..120 {
            converse(launcher, ports, &mut random);
        }
    }
}

/// Valid messages without sense: lists and requests in any order, repeated, sometimes with a descriptor.
fn converse(launcher: Launcher, ports: [u16; 3], random: &mut Random) {
    let mut pick = |limit: usize| random.below(limit as u64) as usize;
    let mut allowed: Vec<u16> = Vec::new();
    let mut sealed = false;
    let mut requests: Vec<(Request, bool)> = Vec::new();
    for _ in 0..=pick(5) {
        let is_list = pick(if sealed { 6 } else { 2 }) == 0;
        let request = if is_list {
            let listed: Vec<u16> = (0..=pick(2)).map(|_| ports[pick(3)]).collect();
            let request = launcher.list(listed.iter().copied().map(tcp).collect());
            if !sealed && requests.is_empty() {
                allowed = listed;
            }
            sealed = true;
            request
        } else {
            let ask = |pick: &mut dyn FnMut(usize) -> usize| {
                let grant = u32::try_from(pick(4)).expect("small");
                match pick(8) {
                    0 => Ask::Path { grant },
                    _ => ask(grant, ports[pick(3)]),
                }
            };
            match pick(16) {
                0 => Request::TryEscape(ESCAPES[pick(ESCAPES.len())].0),
                _ => Request::Bind((0..pick(4)).map(|_| ask(&mut pick)).collect()),
            }
        };
        requests.push((request, pick(12) == 0));
    }
    let peer = launcher.start();
    let null = File::open("/dev/null").expect("no /dev/null");
    for (request, with_descriptor) in &requests {
        let descriptors: &[BorrowedFd<'_>] = match with_descriptor {
            true => &[null.as_fd()],
            false => &[],
        };
        // It may have ended already.
        drop(peer.channel.send(request, descriptors));
    }
    hang_up(&peer, Shutdown::Write);
    let mut bound = Vec::new();
    while let Ok(Some((reply, sockets))) = peer.channel.receive_with_descriptors() {
        assert!(
            matches!(reply, Reply::Bound { .. }) || sockets.is_empty(),
            "{reply:?}"
        );
        bound.extend(sockets.into_iter().map(|it| {
            let address = TcpListener::from(it).local_addr().expect("no address");
            assert_eq!(address.ip(), LOOPBACK);
            address.port()
        }));
    }
    for port in bound {
        let place = allowed.iter().position(|it| *it == port);
        let place = place.unwrap_or_else(|| panic!("{port} was bound by {requests:?}"));
        allowed.remove(place);
    }
    let end = wait_for(peer);
    match end.status.success() {
        true => end.assert_quiet(),
        false => end.assert_one_line(),
    }
}

/// The outcome of an escape.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Succeeded,
    Refused(Errno),
    /// By the kernel: the sandbox knows no such system call.
    Killed,
}

use Escape::{
    BecomeRoot, BindAnotherPath, BindAnotherPort, Execute, Fork, OpenAnotherSocket, OpenFile,
    RaiseCapabilities, SignalParent, TraceParent,
};

const NO: Outcome = Outcome::Killed;

/// What an escape comes to: in a port binder; in one of paths; and in one of paths once everything is made.
const ESCAPES: [(Escape, [Outcome; 3]); 10] = [
    (BecomeRoot, [NO, NO, NO]),
    (
        RaiseCapabilities,
        [
            // Capabilities can be given up there, and not be raised.
            Outcome::Refused(Errno::EPERM),
            Outcome::Refused(Errno::EPERM),
            NO,
        ],
    ),
    (
        BindAnotherPort,
        // By Landlock.
        [Outcome::Refused(Errno::EACCES), NO, NO],
    ),
    (
        BindAnotherPath,
        // By Landlock.
        [NO, Outcome::Refused(Errno::EACCES), NO],
    ),
    (OpenAnotherSocket, [NO, NO, NO]),
    (OpenFile, [NO, NO, NO]),
    (Execute, [NO, NO, NO]),
    (Fork, [NO, NO, NO]),
    (TraceParent, [NO, NO, NO]),
    (SignalParent, [NO, NO, NO]),
];

/// Whether the kernel has all that the sandbox asks for.
fn is_confined(peer: &Peer) -> bool {
    let first = peer.channel.receive().expect("no answer");
    let Some(Reply::Confined(confinement)) = first else {
        panic!("{first:?} instead of what confines it");
    };
    let whole = Confinement {
        seccomp: true,
        landlock: Confinement::LANDLOCK,
    };
    confinement == whole || missing("needs seccomp and Landlock 6")
}

#[test]
fn no_escape_from_a_binder_of_ports_comes_to_anything() {
    if !is_ours() {
        return;
    }
    for launcher in launchers() {
        for (escape, [expected, _, _]) in &ESCAPES {
            // While something is still to be bound, and after that.
            for last in [false, true] {
                let port = ports::tcp();
                let peer = launcher.start();
                peer.send(&launcher.list_with(vec![tcp(port)], vec![*escape]));
                if !is_confined(&peer) {
                    return;
                }
                if last {
                    peer.send(&Request::Bind(vec![ask(0, port)]));
                    drop(only_socket(&peer));
                }
                let outcome = try_it(peer, *escape);
                assert_eq!(outcome, *expected, "{escape:?}, {launcher:?}, last: {last}");
            }
        }
    }
}

#[test]
fn no_escape_from_a_binder_of_paths_comes_to_anything() {
    if !is_ours() || !needs_root() {
        return;
    }
    for (escape, [_, serving, waiting]) in &ESCAPES {
        for (last, expected) in [(false, serving), (true, waiting)] {
            let folder = RootFolder::new();
            let path = folder.join("socket");
            let peer = rooted();
            peer.send(&allow_with(nobody(), vec![file(&path)], vec![*escape]));
            if !is_confined(&peer) {
                return;
            }
            if last {
                peer.send(&Request::Bind(vec![Ask::Path { grant: 0 }]));
                drop(only_socket(&peer));
            }
            let outcome = try_it(peer, *escape);
            assert_eq!(outcome, *expected, "{escape:?}, last: {last}");
            // Who is killed leaves what it made.
            assert_eq!(Path::new(&path).exists(), last, "{escape:?}");
        }
    }
}

/// Has the binder try it.
#[track_caller]
fn try_it(peer: Peer, escape: Escape) -> Outcome {
    peer.send(&Request::TryEscape(escape));
    let answer = peer.channel.receive().ok().flatten();
    let end = peer.close();
    match answer {
        Some(Reply::EscapeTried { errno }) => {
            end.assert_quiet();
            match errno {
                Some(errno) => Outcome::Refused(Errno::from_raw(errno)),
                None => Outcome::Succeeded,
            }
        }
        Some(other) => panic!("{other:?}"),
        None => {
            assert_eq!(end.status.signal(), Some(libc_sigsys()), "{}", end.stderr);
            assert_eq!(end.stderr, "");
            Outcome::Killed
        }
    }
}

fn libc_sigsys() -> i32 {
    Signal::SIGSYS as i32
}

fn not_listed() -> String {
    "the escape is not in the list or was tried already".to_owned()
}

#[test]
fn an_escape_is_tried_once_and_only_where_the_list_has_it() {
    if !is_ours() {
        return;
    }
    for launcher in launchers() {
        let list = || launcher.list_with(vec![tcp(ports::tcp())], vec![RaiseCapabilities]);
        let peer = launcher.start();
        peer.send(&list());
        peer.send(&Request::TryEscape(BindAnotherPort));
        peer.end().assert_refused(&not_listed());
        let peer = launcher.start();
        peer.send(&list());
        peer.send(&Request::TryEscape(RaiseCapabilities));
        let (tried, sockets) = peer.answer();
        assert!(matches!(tried, Reply::EscapeTried { .. }), "{tried:?}");
        assert!(sockets.is_empty());
        peer.send(&Request::TryEscape(RaiseCapabilities));
        peer.end().assert_refused(&not_listed());
    }
}

/// The sealed list was root's; from here on the supervisor is somebody else's.
fn sealed_by_root(grants: Vec<Grant>) -> Peer {
    let peer = rooted();
    peer.send(&allow(nobody(), grants));
    peer
}

#[test]
fn a_supervisor_that_was_taken_over_gains_no_port() {
    if !is_ours() || !needs_root() {
        return;
    }
    let [pinned, named, udp, other] = [ports::low(), ports::low(), ports::low(), ports::low()];
    let any = |transport, port| Grant::Port {
        transport,
        port,
        ip: None,
        freebind: false,
        lanes: 1,
    };
    let list = || {
        vec![
            tcp(pinned),
            any(Transport::Tcp, named),
            any(Transport::Udp, udp),
        ]
    };
    let v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mapped = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
    let v6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let not_allowed = |grant: u32| format!("the ask is not what grant {grant} allows");
    let missing = |grant: u32| format!("grant {grant} does not exist or was used already");
    let cases: Vec<(Request, String)> = vec![
        // Another port, by each grant.
        (Request::Bind(vec![ask(0, other)]), not_allowed(0)),
        (Request::Bind(vec![ask(1, other)]), not_allowed(1)),
        (Request::Bind(vec![ask(2, other)]), not_allowed(2)),
        (Request::Bind(vec![ask(1, pinned)]), not_allowed(1)),
        // Any port, which the kernel would choose.
        (Request::Bind(vec![ask(0, 0)]), not_allowed(0)),
        (Request::Bind(vec![ask(1, 0)]), not_allowed(1)),
        // Another address.
        (Request::Bind(vec![ask_at(0, v4, pinned)]), not_allowed(0)),
        (Request::Bind(vec![ask_at(0, v6, pinned)]), not_allowed(0)),
        (
            Request::Bind(vec![ask_at(0, mapped, pinned)]),
            not_allowed(0),
        ),
        // The TCP port by the grant of the UDP one, and the other way round.
        (Request::Bind(vec![ask(1, udp)]), not_allowed(1)),
        (Request::Bind(vec![ask(2, named)]), not_allowed(2)),
        // Twice, also when the second would be another address.
        (
            Request::Bind(vec![ask(0, pinned), ask(0, pinned)]),
            missing(0),
        ),
        (
            Request::Bind(vec![ask(1, named), ask_at(1, v4, named)]),
            missing(1),
        ),
        // What was never granted, of each kind.
        (Request::Bind(vec![ask(3, other)]), missing(3)),
        (Request::TryEscape(BecomeRoot), not_listed()),
        (Request::Bind(vec![Ask::Path { grant: 3 }]), missing(3)),
        (Request::TryEscape(OpenFile), not_listed()),
        (Request::Bind(vec![Ask::Path { grant: 1 }]), not_allowed(1)),
        // A longer list.
        (
            allow(nobody(), vec![tcp(other)]),
            "Allow came after the list was sealed".to_owned(),
        ),
        (
            allow_with(None, vec![], vec![BecomeRoot]),
            "Allow came after the list was sealed".to_owned(),
        ),
    ];
    for (request, cause) in cases {
        let peer = sealed_by_root(list());
        peer.send(&request);
        peer.end().assert_refused(&cause);
        // The same after something was bound properly.
        if !matches!(&request, Request::Bind(asks) if asks.len() > 1) {
            let peer = sealed_by_root(list());
            peer.send(&Request::Bind(vec![ask(2, udp)]));
            drop(only_socket(&peer));
            peer.send(&request);
            let end = peer.end();
            end.assert_one_line();
        }
    }
    for port in [pinned, named, udp, other] {
        assert_is_free(port);
    }
}

#[test]
fn an_address_that_was_left_open_is_the_only_thing_to_choose() {
    if !is_ours() || !needs_root() {
        return;
    }
    let port = ports::low();
    let any = Grant::Port {
        transport: Transport::Tcp,
        port,
        ip: None,
        freebind: false,
        lanes: 1,
    };
    for ip in [
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    ] {
        let peer = sealed_by_root(vec![any.clone()]);
        peer.send(&Request::Bind(vec![ask_at(0, ip, port)]));
        let socket = TcpListener::from(only_socket(&peer));
        assert_eq!(
            socket.local_addr().expect("no address"),
            SocketAddr::new(ip, port)
        );
        peer.end().assert_quiet();
    }
}

/// A socket file that nobody serves.
fn leave_stale(path: &str) -> u64 {
    client::leave_stale_socket(Path::new(path));
    fs::symlink_metadata(path).expect("no socket").ino()
}

#[test]
fn a_supervisor_that_was_taken_over_gains_no_path() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let [path, foreign] = ["socket", "foreign"].map(|name| folder.join(name));
    let stale = leave_stale(&foreign);
    let not_allowed = "the ask is not what grant 0 allows".to_owned();
    let missing = |grant: u32| format!("grant {grant} does not exist or was used already");
    let once = Ask::Path { grant: 0 };
    let cases: Vec<(Request, String)> = vec![
        (Request::Bind(vec![Ask::Path { grant: 1 }]), missing(1)),
        (Request::Bind(vec![once, once]), missing(0)),
        (Request::Bind(vec![ask(0, 80)]), not_allowed),
        (Request::TryEscape(SignalParent), not_listed()),
        (
            allow(nobody(), vec![file(&foreign)]),
            "Allow came after the list was sealed".to_owned(),
        ),
    ];
    for (request, cause) in cases {
        let peer = sealed_by_root(vec![file(&path)]);
        peer.send(&request);
        peer.end().assert_refused(&cause);
        assert!(!Path::new(&path).exists());
    }
    // Once everything is made it only waits: whatever is said is the end.
    for request in [
        Request::Bind(vec![once]),
        allow(nobody(), vec![file(&foreign)]),
    ] {
        let peer = sealed_by_root(vec![file(&path)]);
        peer.send(&Request::Bind(vec![once]));
        drop(only_socket(&peer));
        peer.send(&request);
        peer.end().assert_quiet();
        assert!(!Path::new(&path).exists());
    }
    assert_eq!(
        fs::symlink_metadata(&foreign).expect("it is gone").ino(),
        stale
    );
}

/// Something else is put into the place of what the binder has looked at. Only root could do that: the user cannot, and
/// where it can, the binder does not work.
#[test]
fn what_comes_to_a_path_between_the_look_and_the_bind_stays() {
    if !is_ours() || !needs_root() {
        return;
    }
    type Swap = (fn(&str), fn(&str) -> bool);
    let swaps: [Swap; 4] = [
        (
            |path| fs::write(path, "precious").expect("cannot write"),
            |path| fs::read_to_string(path).is_ok_and(|it| it == "precious"),
        ),
        (
            |path| symlink("/etc/passwd", path).expect("cannot make a link"),
            |path| fs::read_link(path).is_ok_and(|it| it == Path::new("/etc/passwd")),
        ),
        (
            |path| make_directory(Path::new(path), 0o755, 0),
            |path| Path::new(path).is_dir(),
        ),
        (
            |path| assert_ne!(leave_stale(path), 0),
            |path| fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket()),
        ),
    ];
    for was_there in [false, true] {
        for (put, is_there) in swaps {
            let folder = RootFolder::new();
            let path = folder.join("socket");
            // Its inode stays in use, so that the other file is another one.
            let kept = folder.join("kept");
            if was_there {
                leave_stale(&path);
            }
            let peer = sealed_by_root(vec![file(&path)]);
            if !is_confined(&peer) {
                return;
            }
            if was_there {
                fs::rename(&path, &kept).expect("cannot move it");
            }
            put(&path);
            peer.send(&Request::Bind(vec![Ask::Path { grant: 0 }]));
            let (reply, sockets) = peer.answer();
            assert!(matches!(reply, Reply::Refused { ask: 0, .. }), "{reply:?}");
            assert!(sockets.is_empty());
            peer.end().assert_quiet();
            assert!(is_there(&path), "it was touched");
        }
    }
}

#[test]
fn a_directory_that_is_swapped_after_the_look_gains_nothing() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let (inner, moved, elsewhere) = (
        folder.path().join("inner"),
        folder.path().join("moved"),
        folder.path().join("elsewhere"),
    );
    make_directory(&inner, 0o755, 0);
    make_directory(&elsewhere, 0o755, 0);
    let path = inner.join("socket");
    let peer = sealed_by_root(vec![file(&path)]);
    if !is_confined(&peer) {
        return;
    }
    fs::rename(&inner, &moved).expect("cannot move it");
    symlink(&elsewhere, &inner).expect("cannot make a link");
    peer.send(&Request::Bind(vec![Ask::Path { grant: 0 }]));
    let (reply, sockets) = peer.answer();
    assert!(matches!(reply, Reply::Refused { ask: 0, .. }), "{reply:?}");
    assert!(sockets.is_empty());
    peer.end().assert_quiet();
    for directory in [elsewhere, moved] {
        assert_eq!(fs::read_dir(directory).expect("no directory").count(), 0);
    }
}

#[test]
fn a_socket_that_was_bound_when_the_binder_looked_and_is_served_since_stays() {
    if !is_ours() || !needs_root() || !needs_program("unshare") {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let other = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("cannot make a socket");
    let address = UnixAddr::new(path.as_str()).expect("an address");
    bind(other.as_raw_fd(), &address).expect("cannot bind");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("cannot set the mode");
    let before = fs::symlink_metadata(&path).expect("no socket").ino();
    // The look-up of a host reads a fifo first: then the binders have their lists.
    let etc = Etc::bare();
    fs::write(
        etc.join("nsswitch.conf"),
        "passwd: files\ngroup: files\nhosts: files\n",
    )
    .expect("cannot write");
    fs::write(etc.join("hosts"), "127.0.0.1 some.test\n").expect("cannot write");
    let fifo = etc.join("resolv.conf");
    mkfifo(&fifo, Mode::from_bits_truncate(0o644)).expect("cannot make a fifo");
    let behind = etc.before_as_root();
    let behind: Vec<&str> = behind.iter().map(String::as_str).collect();
    let options = [
        "--user=nobody",
        &format!("--port=some.test:{}", ports::tcp()),
        &format!("--path={path}"),
        "--",
        "true",
    ];
    let mut launched = launch(&behind, &options);
    launched.wait_for("the binders have looked", || {
        let confined =
            |pid: &nix::unistd::Pid| proc::status(*pid).is_some_and(|it| it.seccomp_filters == 1);
        let children = proc::children(launched.pid());
        (children.len() == 2 && children.iter().all(confined)).then_some(())
    });
    let backlog = nix::sys::socket::Backlog::new(1).expect("a backlog");
    listen(&other, backlog).expect("cannot listen");
    // A reader that blocks until there is a writer continues after the first; it may read more than once.
    wait::until(
        "it ended",
        || launched.log(),
        || {
            let writer = fs::OpenOptions::new()
                .write(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(&fifo);
            drop(writer);
            (!proc::alive(launched.pid())).then_some(())
        },
    );
    assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
    let error = format!(
        "start_server: cannot listen on --path={path}: another server is listening on it\n"
    );
    assert!(launched.log().ends_with(&error), "{}", launched.log());
    let after = fs::symlink_metadata(&path).expect("it is gone").ino();
    assert_eq!(after, before);
}

/// For chown(2) the highest number is no owner, but the one that is there: root.
#[test]
fn a_number_that_nobody_can_have_owns_no_socket() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    for option in ["user", "group"] {
        let attribute = format!("--path={path},{option}=4294967295");
        let mut launched = launch(&[], &["--user=nobody", &attribute, "--", "true"]);
        assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
        let cause = format!("cannot use {option}=4294967295 of --path={path}");
        assert!(launched.log().contains(&cause), "{}", launched.log());
        assert!(!Path::new(&path).exists());
    }
    for arguments in [
        &["--user=4294967295"][..],
        &["--user=nobody", "--group=4294967295"],
    ] {
        let arguments = [arguments, &["--port=127.0.0.1:0", "--", "true"]].concat();
        let mut launched = launch(&[], &arguments);
        assert_ne!(launched.wait_exit(), 0, "{}", launched.log());
        assert!(!launched.log().contains("starting new worker"));
    }
}
