//! Looks after the listeners while the superdaemon runs: is each still as it was created, and if not, can it be mended?
//!
//! Every worker of every generation shares them with us, and much of what one worker does to a shared socket affects
//! everybody. Whatever cuts clients off, and can be undone without harm to living workers, is undone:
//!
//! | done to it | seen by | mended by |
//! |---|---|---|
//! | TCP: shutdown(2), or connect(2) to a peer or with AF_UNSPEC | the state in TCP_INFO | listen(2) |
//! | TCP: listen(2) with a smaller backlog | TCP_INFO | listen(2), for each new generation |
//! | UDP: connect(2) | getpeername(2) | connect(2) with AF_UNSPEC, and bind(2) if that lost the port |
//! | UDP: shutdown(2) | poll(2) | nothing |
//! | unix: its file is removed | device and inode of what is at the path | the second name, or a new socket |
//! | unix: shutdown(2) | poll(2) | a new socket |
//! | unix, passed on by the launcher: either | the same | nothing: its launcher makes a new one |
//!
//! Only workers started later get a new socket, so one is created only before a start. Anything at a path that is not
//! the socket's own file is never touched. What root created cannot be replaced before the server is started again: the
//! user cannot create it, and the binder that did can by now only remove it.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, bind, getpeername};
use nix::sys::stat::lstat;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::listeners::bind::make_again;
use crate::listeners::group::Group;
use crate::listeners::lanes::Lanes;
use crate::listeners::launchers_file::LaunchersFile;
use crate::listeners::plan::{Maker, Planned, Wanted};
use crate::listeners::second_name::{FileId, Named, named, named_as};
use crate::listeners::socket_files::{OurFile, SocketFiles};
use crate::listeners::sockets::{Shut, backlog_of, bound_address, disconnect, listen, shut};
use crate::listeners::spec::PathSpec;
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::text::quoted;
use crate::words::trouble::{self, Trouble, Unreachable, Was};

/// The listeners as they should be, in the order of the sockets that workers get.
pub struct Health {
    listeners: Vec<Watched>,
    backlog: i32,
    /// The highest descriptor number of a listener in the workers.
    highest: RawFd,
}

/// The same for the next program: everything is as it was found out at the start.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedHealth {
    listeners: Vec<Watched>,
    highest: RawFd,
}

/// When the listeners are examined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// A worker is about to be started.
    Start,
    /// A generation has committed.
    Commit,
    /// This worker has exited.
    End(Pid),
}

impl Occasion {
    /// The worker that may have done something to them.
    pub fn worker(self) -> Option<Pid> {
        match self {
            Occasion::End(pid) => Some(pid),
            Occasion::Start | Occasion::Commit => None,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Watched {
    name: String,
    kind: Kind,
    /// Who can create a new one, if not we.
    maker: trouble::Maker,
    trouble: Option<Trouble>,
}

/// What is known of a listener since it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Kind {
    Tcp {
        address: Option<SocketAddr>,
        /// The one that we asked for, as the kernel capped it.
        backlog: Option<u32>,
    },
    Udp {
        address: Option<SocketAddr>,
    },
    /// Without a file.
    Abstract,
    /// Passed on by the launcher, with its file.
    Launchers(LaunchersFile),
    /// Passed on, and the workers' own business.
    Other,
    /// Created by ourselves; with its index among our files.
    Ours {
        spec: PathSpec,
        uid: Option<u32>,
        gid: Option<u32>,
        place: usize,
    },
    /// Created by the binder; with its file, if this user can see it.
    Binders {
        #[serde(with = "crate::host::luggage::path")]
        path: PathBuf,
        file: Option<FileId>,
    },
}

/// What has become of a listener.
enum Found {
    InOrder,
    Mended(Was),
    /// This new socket replaces the old one.
    Renewed(OwnedFd),
    InTrouble(Trouble),
}

impl Health {
    /// For listeners that have just been created as planned, with their numbers in the workers.
    pub fn new<'a>(
        planned: Vec<Planned>,
        sockets: impl Iterator<Item = (&'a OwnedFd, RawFd)>,
        backlog: i32,
    ) -> Health {
        let mut highest = 2;
        let mut ours = 0..;
        let watch = |(planned, (socket, number)): (Planned, (&OwnedFd, RawFd))| {
            highest = highest.max(number);
            Watched {
                name: quoted(planned.wanted.name(bound_address(socket))),
                maker: match planned.inherited() {
                    Some(_) => trouble::Maker::Launcher,
                    None => trouble::Maker::Start,
                },
                kind: Kind::of(planned, socket, &mut ours),
                trouble: None,
            }
        };
        let listeners = planned.into_iter().zip(sockets).map(watch).collect();
        Health {
            listeners,
            backlog,
            highest,
        }
    }

    /// For the next program.
    pub fn pack(&self) -> PackedHealth {
        PackedHealth {
            listeners: self.listeners.clone(),
            highest: self.highest,
        }
    }

    /// What another program has packed; `backlog` is for listen(2).
    pub fn unpack(packed: PackedHealth, backlog: i32) -> Health {
        let PackedHealth { listeners, highest } = packed;
        Health {
            listeners,
            backlog,
            highest,
        }
    }

    /// Examines each listener and mends what can be mended. A new socket replaces the old one in `sockets`, and its
    /// file the old file in `files`. Returns what to say about it.
    pub fn examine(
        &mut self,
        sockets: &mut [(OwnedFd, RawFd)],
        lanes: &Lanes,
        files: &mut SocketFiles,
        occasion: Occasion,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (place, (listener, (socket, _))) in self.listeners.iter_mut().zip(sockets).enumerate() {
            let maker = listener.maker;
            let found = match &listener.kind {
                Kind::Tcp { address, backlog } => {
                    let listen = |socket: &OwnedFd| listen(socket, self.backlog);
                    tcp(socket, *address, *backlog, occasion, listen)
                }
                Kind::Udp { address } => {
                    udp_with_lanes(socket, lanes.group(place), *address, maker)
                }
                Kind::Abstract => by_shutdown(socket, maker),
                Kind::Launchers(file) => by_name(socket, file.named(), maker),
                Kind::Other => Found::InOrder,
                Kind::Ours {
                    spec,
                    uid,
                    gid,
                    place,
                } => match files.ours.get_mut(*place) {
                    Some(file) => {
                        let owners = (*uid, *gid);
                        let again = || make_again(spec, owners, self.backlog, self.highest);
                        ours(socket, &spec.path, file, occasion, again)
                    }
                    None => Found::InOrder,
                },
                Kind::Binders { path, file } => {
                    let named = file.map_or(Named::Unknown, |file| named_as(path, file));
                    by_name(socket, named, maker)
                }
            };
            let (was, trouble) = match found {
                Found::InOrder => (None, None),
                Found::Mended(was) => (Some(was), None),
                Found::Renewed(renewed) => {
                    *socket = renewed;
                    if let Kind::Ours { place, .. } = &listener.kind {
                        notices.extend(files.store_again(*place, socket));
                    }
                    (Some(Was::Replaced), None)
                }
                Found::InTrouble(trouble) => (None, Some(trouble)),
            };
            notices.extend(listener.turn(was, trouble, occasion));
        }
        notices
    }

    /// Lets a socket of the listener in this place listen again, as the first one did.
    pub fn listen_again(&self, place: usize, socket: &OwnedFd) -> nix::Result<()> {
        let Some(Kind::Tcp { address, .. }) = self.listeners.get(place).map(|one| &one.kind) else {
            return Ok(());
        };
        listen_again(socket, *address, |socket| listen(socket, self.backlog))
    }

    /// What to say when that has been done for the lane that was selected.
    pub fn mended(&self, place: usize, worker: Option<Pid>) -> Option<Notice> {
        let name = self.listeners.get(place)?.name.clone();
        let was = Was::ShutDown;
        Some(Notice::ListenerMended { name, was, worker })
    }

    /// What is wrong with each listener, if anything, in their order.
    pub fn troubles(&self) -> impl Iterator<Item = Option<&Trouble>> {
        self.listeners.iter().map(|one| one.trouble.as_ref())
    }

    /// The first one that nobody can reach.
    pub fn unreachable(&self) -> Option<Unreachable> {
        let mut listeners = self.listeners.iter();
        listeners.find_map(|Watched { name, trouble, .. }| {
            let trouble = trouble.as_ref().filter(|one| !one.is_reachable)?;
            Some(Unreachable {
                cause: format!("nobody can reach {name}: {}", trouble.cause),
                hint: trouble.hint.clone(),
            })
        })
    }
}

impl Kind {
    fn of(planned: Planned, socket: &OwnedFd, ours: &mut impl Iterator<Item = usize>) -> Kind {
        let Planned { wanted, maker } = planned;
        if let Maker::Launcher(inherited) = &maker {
            match inherited.file_path() {
                Some(path) => return Kind::Launchers(LaunchersFile::of(path, socket)),
                None if inherited.is_other() => return Kind::Other,
                None => {}
            }
        }
        match (wanted.kind(), wanted, maker) {
            ("tcp", ..) => Kind::Tcp {
                address: bound_address(socket),
                backlog: backlog_of(socket).ok().flatten(),
            },
            ("udp", ..) => Kind::Udp {
                address: bound_address(socket),
            },
            (_, Wanted::Path { spec, .. }, _) if spec.abstract_name().is_some() => Kind::Abstract,
            (_, Wanted::Path { spec, uid, gid }, Maker::Ourselves { .. }) => Kind::Ours {
                spec,
                uid,
                gid,
                place: ours.next().unwrap_or(usize::MAX),
            },
            (_, Wanted::Path { spec, .. }, Maker::FileBinder(_)) => Kind::Binders {
                // Only root can change the directory, so this is still the socket's file.
                file: lstat(&spec.path).ok().map(|stat| FileId::from(&stat)),
                path: spec.path,
            },
            // What has no file, whoever has created it.
            _ => Kind::Abstract,
        }
    }
}

impl Watched {
    /// Remembers the trouble. Returns what to say if something has changed since the last examination.
    fn turn(
        &mut self,
        was: Option<Was>,
        trouble: Option<Trouble>,
        occasion: Occasion,
    ) -> Option<Notice> {
        let name = self.name.clone();
        let worker = occasion.worker();
        let before = std::mem::replace(&mut self.trouble, trouble);
        match (was, &self.trouble) {
            (Some(was), _) => Some(Notice::ListenerMended { name, was, worker }),
            (None, Some(trouble)) if before.as_ref() != Some(trouble) => {
                let trouble = trouble.clone();
                Some(Notice::ListenerInTrouble {
                    name,
                    trouble,
                    worker,
                })
            }
            (None, None) if before.is_some() => Some(Notice::ListenerReachable { name }),
            (None, Some(_) | None) => None,
        }
    }
}

/// `at_start` is the backlog as the kernel capped it when the socket was created.
fn tcp(
    socket: &OwnedFd,
    address: Option<SocketAddr>,
    at_start: Option<u32>,
    occasion: Occasion,
    listen: impl Fn(&OwnedFd) -> nix::Result<()>,
) -> Found {
    match backlog_of(socket) {
        Ok(None) => match listen_again(socket, address, listen) {
            Ok(()) => Found::Mended(Was::ShutDown),
            Err(errno) => Found::InTrouble(Trouble::unmended(format!(
                "a worker has shut it down, and it cannot listen again: {}",
                errno.desc()
            ))),
        },
        // Each generation begins with at least the backlog of the command line. What it changes later is its own
        // business, and so is a longer queue.
        Ok(Some(now)) if occasion == Occasion::Start && at_start.is_some_and(|then| now < then) => {
            // Even if this fails, it still listens.
            let _ = listen(socket);
            Found::InOrder
        }
        Ok(Some(_)) | Err(_) => Found::InOrder,
    }
}

fn listen_again(
    socket: &OwnedFd,
    address: Option<SocketAddr>,
    listen: impl Fn(&OwnedFd) -> nix::Result<()>,
) -> nix::Result<()> {
    let again = || match address.map(|address| bind_to(socket, address)) {
        // A port that the kernel chose is lost with the shutdown, and listen(2) would choose another. Any other port is
        // still bound, which bind(2) reports as EINVAL.
        Some(Ok(()) | Err(Errno::EINVAL)) | None => listen(socket),
        Some(Err(errno)) => Err(errno),
    };
    match again() {
        // It is connected to a peer.
        Err(Errno::EINVAL) => disconnect(socket).and_then(|()| again()),
        listens => listens,
    }
}

/// The worst of its sockets.
fn udp_with_lanes(
    socket: &OwnedFd,
    group: Option<&Group>,
    address: Option<SocketAddr>,
    maker: trouble::Maker,
) -> Found {
    let others = group.into_iter().flat_map(|group| &group.others);
    let all = std::iter::once(socket).chain(others);
    worst(all.map(|socket| udp(socket, address, maker)))
}

/// What is worst of several sockets of one listener.
fn worst(found: impl Iterator<Item = Found>) -> Found {
    found.fold(Found::InOrder, |before, found| match (before, found) {
        (before @ Found::InTrouble(_), _) => before,
        (_, found @ Found::InTrouble(_)) => found,
        (before, Found::InOrder) => before,
        (_, found) => found,
    })
}

fn udp(socket: &OwnedFd, address: Option<SocketAddr>, maker: trouble::Maker) -> Found {
    let is_connected = getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok();
    if is_connected
        && let Err(errno) = disconnect(socket).and_then(|()| bind_again(socket, address))
    {
        return Found::InTrouble(Trouble::unmended(format!(
            "a worker has connected it to one peer, and that cannot be undone: {}",
            errno.desc()
        )));
    }
    match (shut(socket), is_connected) {
        (Shut::Everything, _) => Found::InTrouble(Trouble::shut_down(maker)),
        (Shut::Reading, _) => Found::InTrouble(Trouble::shut_down_for_reading()),
        (Shut::Nothing, true) => Found::Mended(Was::Connected),
        (Shut::Nothing, false) => Found::InOrder,
    }
}

/// Binds the socket to its port again if disconnecting it has lost the port, as it does if the kernel chose it.
fn bind_again(socket: &OwnedFd, address: Option<SocketAddr>) -> nix::Result<()> {
    let now = bound_address(socket).map(|address| address.port());
    match address {
        Some(address) if now != Some(address.port()) => bind_to(socket, address),
        Some(_) | None => Ok(()),
    }
}

fn bind_to(socket: &OwnedFd, address: SocketAddr) -> nix::Result<()> {
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
}

fn ours(
    socket: &OwnedFd,
    path: &Path,
    ours: &mut OurFile,
    occasion: Occasion,
    again: impl FnOnce() -> Result<(OwnedFd, OurFile), Failure>,
) -> Found {
    let Some(file) = ours.made.file() else {
        return Found::InOrder;
    };
    let is_shut_down = shut(socket) != Shut::Nothing;
    match named(path, file) {
        Named::Unknown => Found::InOrder,
        Named::SomethingElse => Found::InTrouble(Trouble::replaced(trouble::Maker::Supervisor)),
        Named::Itself if !is_shut_down => {
            // At a commit, when no start waits for it. At every commit, because the second name alone may have been
            // removed.
            if occasion == Occasion::Commit {
                ours.second_name.keep(file);
            }
            Found::InOrder
        }
        Named::Nothing if !is_shut_down && ours.second_name.restore(file, path) => {
            Found::Mended(Was::Removed)
        }
        Named::Itself | Named::Nothing if occasion == Occasion::Start => {
            ours.remove();
            match again() {
                Ok((socket, file)) => {
                    *ours = file;
                    Found::Renewed(socket)
                }
                Err(failure) => Found::InTrouble(Trouble::not_made_again(failure.text())),
            }
        }
        Named::Itself => Found::InTrouble(Trouble::shut_down(trouble::Maker::Supervisor)),
        Named::Nothing => Found::InTrouble(Trouble::removed(trouble::Maker::Supervisor)),
    }
}

/// A unix socket that we cannot create again.
fn by_name(socket: &OwnedFd, named: Named, maker: trouble::Maker) -> Found {
    match named {
        Named::Nothing => Found::InTrouble(Trouble::removed(maker)),
        Named::SomethingElse => Found::InTrouble(Trouble::replaced(maker)),
        Named::Itself | Named::Unknown => by_shutdown(socket, maker),
    }
}

/// A unix socket that still has its name, or needs none.
fn by_shutdown(socket: &OwnedFd, maker: trouble::Maker) -> Found {
    match shut(socket) {
        Shut::Nothing => Found::InOrder,
        Shut::Reading | Shut::Everything => Found::InTrouble(Trouble::shut_down(maker)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::mem::ManuallyDrop;
    use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{Shutdown, connect, getsockname, shutdown};

    use super::*;
    use crate::host::luggage::Luggage;
    use crate::listeners::spec::{parse_paths, parse_ports};

    /// Two sockets: one whose port the kernel chooses, and one that asks for a port by its number. (The kernel has just
    /// chosen that one, too, so it is free.)
    fn ports<S>(make: impl Fn(u16) -> S, port: impl Fn(&S) -> u16) -> [S; 2] {
        let chosen = port(&make(0));
        [make(0), make(chosen)]
    }

    fn address(socket: &OwnedFd) -> SocketAddr {
        bound_address(socket).unwrap()
    }

    fn examine_tcp(socket: &OwnedFd, was: SocketAddr, occasion: Occasion) -> Found {
        tcp(socket, Some(was), Some(7), occasion, |socket| {
            listen(socket, 7)
        })
    }

    #[test]
    fn a_tcp_listener_listens_again_at_its_port_whatever_was_done_to_it() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let other: SockaddrStorage = getsockname(other.as_raw_fd()).unwrap();
        let make = |port| TcpListener::bind(("127.0.0.1", port)).unwrap();
        for socket in ports(make, |one| one.local_addr().unwrap().port()) {
            let socket = OwnedFd::from(socket);
            let was = address(&socket);
            let shut_down = || shutdown(socket.as_raw_fd(), Shutdown::Both).unwrap();
            let disconnected = || disconnect(&socket).unwrap();
            let connected = || {
                disconnect(&socket).unwrap();
                connect(socket.as_raw_fd(), &other).unwrap();
            };
            for harm in [&shut_down as &dyn Fn(), &disconnected, &connected] {
                harm();
                let found = examine_tcp(&socket, was, Occasion::Commit);
                assert!(matches!(found, Found::Mended(Was::ShutDown)));
                assert_eq!(address(&socket), was);
                TcpStream::connect(was).unwrap();
                let found = examine_tcp(&socket, was, Occasion::Commit);
                assert!(matches!(found, Found::InOrder));
            }
        }
    }

    #[test]
    fn a_shorter_backlog_is_as_it_was_for_the_next_generation_and_a_longer_one_stays() {
        let socket = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let was = address(&socket);
        for (set, occasion, then) in [
            (3, Occasion::Commit, 3),
            (3, Occasion::Start, 7),
            (9, Occasion::Start, 9),
        ] {
            listen(&socket, set).unwrap();
            examine_tcp(&socket, was, occasion);
            assert_eq!(backlog_of(&socket), Ok(Some(then)), "{set} {occasion:?}");
        }
    }

    #[test]
    fn a_udp_socket_that_was_connected_hears_everybody_again_at_its_port() {
        let make = |port| UdpSocket::bind(("127.0.0.1", port)).unwrap();
        for socket in ports(make, |one| one.local_addr().unwrap().port()) {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            let port = socket.local_addr().unwrap().port();
            socket.connect("127.0.0.1:9").unwrap();
            let socket = OwnedFd::from(socket);
            let was = address(&socket);
            let found = udp(&socket, Some(was), trouble::Maker::Start);
            assert!(matches!(found, Found::Mended(Was::Connected)));
            assert_eq!(address(&socket), was);
            client.send_to(b"x", ("127.0.0.1", port)).unwrap();
            let socket = UdpSocket::from(socket);
            assert_eq!(socket.recv(&mut [0; 2]).unwrap(), 1);
        }
    }

    #[test]
    fn a_udp_socket_that_is_shut_down_to_read_is_in_trouble_and_reached() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = OwnedFd::from(socket);
        for (how, is_reachable) in [(Shutdown::Read, true), (Shutdown::Both, false)] {
            // It fails with ENOTCONN, and takes effect nevertheless.
            let _ = shutdown(socket.as_raw_fd(), how);
            let Found::InTrouble(trouble) = udp(&socket, None, trouble::Maker::Start) else {
                panic!("it is in order");
            };
            assert_eq!(trouble.is_reachable, is_reachable);
        }
    }

    /// Through the text that the next program reads.
    fn next(health: &Health, files: &SocketFiles) -> (Health, SocketFiles) {
        let packed = (health.pack(), files.pack(&mut Luggage::default()));
        let text = serde_json::to_string(&packed).unwrap();
        let (health, files) = serde_json::from_str(&text).unwrap();
        (Health::unpack(health, 7), SocketFiles::unpack(files))
    }

    fn planned(wanted: Wanted) -> Planned {
        let maker = Maker::Ourselves {
            objection: None,
            stored: None,
        };
        Planned { wanted, maker }
    }

    #[test]
    fn the_next_program_mends_what_this_one_has_made_and_removes_it_at_the_end() {
        let folder = std::env::temp_dir().join(format!("packed-health-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("socket");
        let spec = parse_paths(path.as_ref()).unwrap().remove(0);
        let (unix, file) = make_again(&spec, (None, None), 7, 20).unwrap();
        let port = parse_ports("127.0.0.1:0").unwrap().remove(0);
        let tcp = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        listen(&tcp, 7).unwrap();
        let was = address(&tcp);
        let wanted = Wanted::Path {
            spec,
            uid: None,
            gid: None,
        };
        let mut sockets = vec![(tcp, 3), (unix, 4)];
        let mut health = Health::new(
            vec![planned(Wanted::Port(port)), planned(wanted)],
            sockets.iter().map(|(socket, number)| (socket, *number)),
            7,
        );
        // It would remove the files of the next one.
        let mut files = ManuallyDrop::new(SocketFiles {
            ours: vec![file],
            binder: None,
            store: None,
        });
        let notices = health.examine(
            &mut sockets,
            &Lanes::default(),
            &mut files,
            Occasion::Commit,
        );
        assert_eq!(notices, []);
        fs::rename(&path, folder.join("aside")).unwrap();
        fs::write(&path, "foreign").unwrap();
        let notices = health.examine(
            &mut sockets,
            &Lanes::default(),
            &mut files,
            Occasion::Commit,
        );
        assert!(matches!(notices[..], [Notice::ListenerInTrouble { .. }]));

        let (mut health, mut files) = next(&health, &files);
        assert!(health.unreachable().is_some());
        // It is known already.
        let notices = health.examine(
            &mut sockets,
            &Lanes::default(),
            &mut files,
            Occasion::Commit,
        );
        assert_eq!(notices, []);
        fs::remove_file(&path).unwrap();
        fs::remove_file(folder.join("aside")).unwrap();
        disconnect(&sockets[0].0).unwrap();
        let notices = health.examine(
            &mut sockets,
            &Lanes::default(),
            &mut files,
            Occasion::Commit,
        );
        let mended = |notice: &Notice| match notice {
            Notice::ListenerMended { was, .. } => Some(*was),
            _ => None,
        };
        let mended: Vec<_> = notices.iter().map(mended).collect();
        assert_eq!(mended, [Some(Was::ShutDown), Some(Was::Removed)]);
        assert_eq!(address(&sockets[0].0), was);
        UnixStream::connect(&path).unwrap();
        // Only its backlog at the start tells that this is a shorter one.
        listen(&sockets[0].0, 3).unwrap();
        let notices = health.examine(&mut sockets, &Lanes::default(), &mut files, Occasion::Start);
        assert_eq!(notices, []);
        assert_eq!(backlog_of(&sockets[0].0), Ok(Some(7)));
        drop(files);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn everything_that_a_listener_is_known_by_is_written_and_read() {
        let path = PathBuf::from(OsString::from_vec(b"/run/\xff".to_vec()));
        let file = lstat("/").ok().map(|stat| FileId::from(&stat));
        let socket = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        // A link-local address is nothing without its interface.
        let address = SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 80, 0, 3);
        let kinds = [
            Kind::Tcp {
                address: Some(address.into()),
                backlog: Some(5),
            },
            Kind::Udp {
                address: Some(address.into()),
            },
            Kind::Abstract,
            Kind::Launchers(LaunchersFile::of("/".as_ref(), &socket)),
            Kind::Other,
            Kind::Ours {
                spec: PathSpec {
                    given: "given".into(),
                    path: path.clone(),
                    mode: 0o600,
                    user: Some("user".into()),
                    group: None,
                },
                uid: Some(7),
                gid: None,
                place: 2,
            },
            Kind::Binders { path, file },
        ];
        let listeners = kinds.map(|kind| Watched {
            name: "name".into(),
            kind,
            maker: trouble::Maker::Launcher,
            trouble: Some(Trouble::shut_down_for_reading()),
        });
        let health = Health {
            listeners: listeners.into(),
            backlog: 7,
            highest: 9,
        };
        let text = serde_json::to_string(&health.pack()).unwrap();
        let next = Health::unpack(serde_json::from_str(&text).unwrap(), 7);
        assert_eq!(
            format!("{:?}", next.listeners),
            format!("{:?}", health.listeners)
        );
        assert_eq!(next.highest, 9);
    }
}
