//! From specs to listening sockets: what only root can do is asked of binders, everything else is done here.
//!
//! Each step consumes the one before, so that the order cannot be wrong:
//!
//! 1. [`Plan::new`]: who makes which socket; owners are looked up. Still with the launcher's rights.
//! 2. [`Plan::start_binders`]: the binders run and have their sealed lists. Still with the launcher's rights.
//! 3. The caller drops its privileges.
//! 4. [`Prepared::resolve`]: host names become addresses.
//! 5. [`Resolved::bind`]: sockets are asked for and received, and they listen.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use common::message::{
    Address, Ask, Grant, Identity, MOST_DESCRIPTORS, Refusal, SocketFile, Transport,
};
use common::trusted_path::{Trust, open_directory};
use common::unix_socket::{Directory, Made, MadeFile, Place, SERVED, is_served};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{SockaddrStorage, getsockname};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getuid};

use crate::host::confinement::{self, OfBinder};
use crate::host::identity;
use crate::host::open_files::OpenFiles;
use crate::listeners::binder::{Answer, BINDER, Binder, channel_failed};
use crate::listeners::holders;
use crate::listeners::spec::{Host, PathSpec, PortSpec};
use crate::words::failure::{self, Failure};
use crate::words::notice::Notice;
use crate::words::remedy;
use crate::words::text::printable;
use crate::worker::duplicate_above;

/// Where the binder looks who may have which low port.
const POLICY: &str = "/etc/start_server/binder.conf";

/// Descriptors that the supervisor may need beside the listeners.
const SPARE_DESCRIPTORS: usize = 64;

/// Who makes which socket.
pub struct Plan {
    sockets: Vec<Planned>,
    /// For the binder that becomes the user.
    ports: Vec<Grant>,
    /// For the binder that stays root: another process, so that no socket of a port is root's.
    files: Vec<Grant>,
    identity: Option<Identity>,
}

struct Planned {
    wanted: Wanted,
    maker: Maker,
}

/// One socket of the command line.
enum Wanted {
    Port(PortSpec),
    Path {
        spec: PathSpec,
        uid: Option<u32>,
        gid: Option<u32>,
    },
}

enum Maker {
    /// With this grant of the ports.
    PortBinder(u32),
    /// With this grant of the files.
    FileBinder(u32),
    /// After the drop; with the reason why root does not, if it was root.
    Ourselves { objection: Option<String> },
}

/// The binders have their lists.
pub struct Prepared {
    sockets: Vec<Planned>,
    port_binder: Option<Binder>,
    file_binder: Option<Binder>,
}

/// Nothing that can take long is left to do.
pub struct Resolved {
    sockets: Vec<Planned>,
    port_asks: Vec<Asked>,
    file_asks: Vec<Asked>,
    port_binder: Option<Binder>,
    file_binder: Option<Binder>,
}

/// What a binder is asked for.
struct Asked {
    /// The place of the socket among all.
    place: usize,
    ask: Ask,
}

/// A socket for the workers.
#[derive(Debug)]
pub struct Listener {
    /// Its key in `SERVER_STARTER_PORT`.
    pub name: OsString,
    pub kind: &'static str,
    pub socket: OwnedFd,
    /// The number that it has in the workers.
    pub number: RawFd,
}

/// Everything that was bound, and who removes what of it at the end.
pub struct Bound {
    pub listeners: Vec<Listener>,
    pub files: SocketFiles,
    /// What confines, or confined, those who bound it.
    pub binders: Vec<OfBinder>,
}

/// The socket files, removed by whoever made them.
pub struct SocketFiles {
    ours: Vec<MadeFile>,
    binder: Option<Binder>,
}

impl Plan {
    /// Decides who makes which socket, and looks up the owners of the files.
    pub fn new(
        ports: Vec<PortSpec>,
        paths: Vec<PathSpec>,
        identity: Option<Identity>,
    ) -> Result<Plan, Failure> {
        let mut plan = Plan {
            sockets: Vec::new(),
            ports: Vec::new(),
            files: Vec::new(),
            identity,
        };
        for spec in ports {
            // Host names are resolved later, by the ordinary user; a literal address is pinned now.
            let ip = match &spec.host {
                Host::Address(ip) => Some(*ip),
                Host::Name(_) => None,
            };
            let grant = Grant::Port {
                transport: spec.transport,
                port: spec.port,
                ip,
            };
            let maker = Maker::PortBinder(number_of_next(&plan.ports)?);
            plan.ports.push(grant);
            plan.sockets.push(Planned {
                wanted: Wanted::Port(spec),
                maker,
            });
        }
        for spec in paths {
            let (uid, gid) = owners(&spec)?;
            let maker = plan.maker_of(&spec, uid, gid)?;
            plan.sockets.push(Planned {
                wanted: Wanted::Path { spec, uid, gid },
                maker,
            });
        }
        Ok(plan)
    }

    /// Root never works in a directory that somebody else can write; everywhere else the user does it.
    fn maker_of(
        &mut self,
        spec: &PathSpec,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<Maker, Failure> {
        if self.identity.is_none() {
            return Ok(Maker::Ourselves { objection: None });
        }
        let path = std::path::absolute(&spec.path).map_err(|error| {
            Failure::failed(format!(
                "cannot bind to {}: {error}",
                printable(&spec.given)
            ))
        })?;
        match open_directory(path.parent().unwrap_or(Path::new("/")), &Trust::ROOT) {
            Ok(_) => {
                let maker = Maker::FileBinder(number_of_next(&self.files)?);
                self.files.push(Grant::Path(SocketFile {
                    path,
                    mode: spec.mode,
                    uid,
                    gid,
                }));
                Ok(maker)
            }
            Err(untrusted) => Ok(Maker::Ourselves {
                objection: Some(untrusted.to_string()),
            }),
        }
    }

    /// Starts the binders of which anything is asked, and sends them their sealed lists.
    pub fn start_binders(self, open_files: OpenFiles) -> Result<Prepared, Failure> {
        open_files.check(self.sockets.len())?;
        // Also for the binders, which inherit the limit: a file takes its socket, itself and its directory.
        open_files.make_room_for(MOST_DESCRIPTORS + SPARE_DESCRIPTORS + 3 * self.sockets.len())?;
        let start = |grants: Vec<Grant>| match grants.is_empty() {
            true => Ok(None),
            false => Binder::start(self.identity.clone(), &grants).map(Some),
        };
        let (port_binder, file_binder) = (start(self.ports)?, start(self.files)?);
        Ok(Prepared {
            sockets: self.sockets,
            port_binder,
            file_binder,
        })
    }
}

fn number_of_next(grants: &[Grant]) -> Result<u32, Failure> {
    u32::try_from(grants.len()).map_err(|_| Failure::usage("cannot bind so many sockets"))
}

fn owners(spec: &PathSpec) -> Result<(Option<u32>, Option<u32>), Failure> {
    let cannot = |option: &str, name: &str, cause: String| {
        Failure::failed(format!(
            "cannot use {option}={name} of --path={}: {cause}",
            printable(&spec.given)
        ))
    };
    let uid = spec
        .user
        .as_deref()
        .map(|name| owner(identity::uid(name)).map_err(|cause| cannot("user", name, cause)));
    let gid = spec
        .group
        .as_deref()
        .map(|name| owner(identity::gid(name)).map_err(|cause| cannot("group", name, cause)));
    Ok((uid.transpose()?, gid.transpose()?))
}

/// The highest number is nobody's: chown(2) takes it for "as it is".
fn owner(number: Result<u32, String>) -> Result<u32, String> {
    number.and_then(|number| match number {
        u32::MAX => Err("no file can belong to this number".into()),
        number => Ok(number),
    })
}

impl Prepared {
    /// Resolves the host names, which may take as long as the network wants.
    pub fn resolve(self) -> Result<Resolved, Failure> {
        let Prepared {
            sockets,
            port_binder,
            file_binder,
        } = self;
        let (mut port_asks, mut file_asks) = (Vec::new(), Vec::new());
        for (place, planned) in sockets.iter().enumerate() {
            match (&planned.maker, &planned.wanted) {
                (Maker::PortBinder(grant), Wanted::Port(spec)) => {
                    let ask = Ask::Port {
                        grant: *grant,
                        address: resolve(spec)?,
                    };
                    port_asks.push(Asked { place, ask });
                }
                (Maker::FileBinder(grant), Wanted::Path { .. }) => {
                    file_asks.push(Asked {
                        place,
                        ask: Ask::Path { grant: *grant },
                    });
                }
                _ => {}
            }
        }
        Ok(Resolved {
            sockets,
            port_asks,
            file_asks,
            port_binder,
            file_binder,
        })
    }
}

impl Resolved {
    /// Binds everything, in the order of `SERVER_STARTER_PORT`; all of it listens afterwards. The binder of the ports
    /// is gone when this returns. Binders that this kernel cannot confine fully are not asked if `strict`.
    ///
    /// What it has to say is told in `notices`, also where it fails.
    pub fn bind(
        self,
        backlog: i32,
        strict: bool,
        open_files: OpenFiles,
        notices: &mut Vec<Notice>,
    ) -> Result<Bound, Failure> {
        let Resolved {
            sockets,
            port_asks,
            file_asks,
            mut port_binder,
            mut file_binder,
        } = self;
        let mut confinements = Vec::new();
        let mut binders = Vec::new();
        for (makes, binder) in [("ports", &mut port_binder), ("paths", &mut file_binder)] {
            if let Some(binder) = binder {
                let confinement = binder.confinement()?;
                confinements.push(confinement);
                binders.push(OfBinder::new(makes, confinement));
            }
        }
        notices.extend(confinement::check(&confinements, strict)?);
        let mut files = SocketFiles {
            ours: Vec::new(),
            binder: file_binder,
        };
        let mut made: Vec<Option<OwnedFd>> = sockets.iter().map(|_| None).collect();
        if let Some(mut binder) = port_binder {
            ask_binder(&mut binder, &sockets, &port_asks, &mut made, notices)?;
            binder.end().map_err(channel_failed)?;
        }
        if let Some(binder) = &mut files.binder {
            refuse_served(&sockets, &file_asks)?;
            ask_binder(binder, &sockets, &file_asks, &mut made, notices)?;
        }
        for (planned, socket) in sockets.iter().zip(&mut made) {
            if let (Wanted::Path { spec, uid, gid }, Maker::Ourselves { objection }) =
                (&planned.wanted, &planned.maker)
            {
                let Made {
                    socket: bound,
                    file,
                    replaced,
                } = bind_ourselves(spec, *uid, *gid).map_err(|refusal| {
                    cannot_bind_ourselves(&planned.wanted, &refusal, objection.as_deref())
                })?;
                files.ours.push(file);
                if replaced {
                    notices.push(Notice::RemovingSocket {
                        path: spec.path.clone(),
                    });
                }
                *socket = Some(bound);
            }
        }
        let listeners = numbered(sockets, made, backlog, open_files, notices)?;
        Ok(Bound {
            listeners,
            files,
            binders,
        })
    }
}

/// Once more, because a socket may have been bound and not listened on yet when the binder looked, which must not connect
/// any more by now. Where this user may not look, the binder's look counts.
fn refuse_served(sockets: &[Planned], asks: &[Asked]) -> Result<(), Failure> {
    for asked in asks {
        let wanted = &sockets[asked.place].wanted;
        if let Wanted::Path { spec, .. } = wanted
            && is_served(&spec.path) == Ok(true)
        {
            return Err(cannot_bind(wanted, &Refusal::Because(SERVED.into()), None));
        }
    }
    Ok(())
}

/// Fetches what the binder makes, as many sockets at a time as fit into one message.
fn ask_binder(
    binder: &mut Binder,
    sockets: &[Planned],
    asks: &[Asked],
    made: &mut [Option<OwnedFd>],
    notices: &mut Vec<Notice>,
) -> Result<(), Failure> {
    for batch in asks.chunks(MOST_DESCRIPTORS) {
        let asked = |number: u32| {
            let number = usize::try_from(number).ok()?;
            let Asked { place, ask } = batch.get(number)?;
            let ip = match ask {
                Ask::Port { address, .. } => Some(address.ip),
                Ask::Path { .. } | Ask::Attempt { .. } => None,
            };
            Some((&sockets[*place].wanted, ip))
        };
        match binder.bind(batch.iter().map(|asked| asked.ask).collect())? {
            Answer::Refused { ask, refusal } => {
                return Err(match asked(ask) {
                    Some((wanted, ip)) => cannot_bind(wanted, &refusal, ip),
                    None => channel_failed("it refused what was not asked for"),
                });
            }
            Answer::Sockets { sockets, replaced } => {
                for (asked, socket) in batch.iter().zip(sockets) {
                    made[asked.place] = Some(socket);
                }
                for number in replaced {
                    if let Some((Wanted::Path { spec, .. }, _)) = asked(number) {
                        notices.push(Notice::RemovingSocket {
                            path: spec.path.clone(),
                        });
                    }
                }
            }
        }
    }
    Ok(())
}

/// One literal address. Of a name with several, the first IPv4 one, as in Server::Starter; an IPv6 one only where
/// there is no other.
fn resolve(spec: &PortSpec) -> Result<Address, Failure> {
    let name = match &spec.host {
        Host::Address(ip) => {
            return Ok(Address {
                ip: *ip,
                port: spec.port,
                scope: 0,
            });
        }
        Host::Name(name) => name,
    };
    let cannot = |cause: &str| {
        Failure::failed(format!(
            "cannot resolve the host {name} of --port={}: {cause}",
            spec.given
        ))
    };
    let found: Vec<SocketAddr> = (name.as_str(), spec.port)
        .to_socket_addrs()
        .map_err(|error| cannot(&resolver_cause(&error)))?
        .collect();
    let first = found
        .iter()
        .find(|address| address.is_ipv4())
        .or(found.first())
        .ok_or_else(|| cannot("it has no address"))?;
    let scope = match first {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    };
    Ok(Address {
        ip: first.ip(),
        port: spec.port,
        scope,
    })
}

fn resolver_cause(error: &std::io::Error) -> String {
    let text = failure::cause(error);
    match text.split_once(": ") {
        Some((_, cause)) => cause.to_owned(),
        None => text,
    }
}

fn bind_ourselves(spec: &PathSpec, uid: Option<u32>, gid: Option<u32>) -> Result<Made, Refusal> {
    let directory = match spec.path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(directory, flags, Mode::empty())?;
    Place::examine(Directory::Shared(directory), &spec.path)?.bind(spec.mode, uid, gid)
}

/// Gives every socket its number in the workers (the fixed ones first, the others from 3 on) and moves it out of
/// the way of all these numbers, so that placing them in a child cannot overwrite one.
fn numbered(
    sockets: Vec<Planned>,
    made: Vec<Option<OwnedFd>>,
    backlog: i32,
    open_files: OpenFiles,
    notices: &mut Vec<Notice>,
) -> Result<Vec<Listener>, Failure> {
    let fixed: Vec<Option<RawFd>> = sockets
        .iter()
        .map(|planned| planned.wanted.fixed_number())
        .collect();
    let numbers = numbers(&fixed);
    let highest = numbers.iter().copied().max().unwrap_or(2);
    let soft = open_files.soft;
    if !sockets.is_empty() && u64::from(highest.unsigned_abs()) + DESCRIPTORS_TO_EXEC > soft {
        return Err(Failure::failed(format!(
            "cannot pass descriptor {highest} to workers: the limit of open files is {soft}"
        ))
        .hint(remedy::RAISE_OPEN_FILES));
    }
    open_files.make_room_for(
        usize::try_from(highest).unwrap_or(0) + 3 * sockets.len() + SPARE_DESCRIPTORS,
    )?;
    let mut listeners = Vec::with_capacity(sockets.len());
    for ((planned, socket), number) in sockets.into_iter().zip(made).zip(numbers) {
        let Some(socket) = socket else {
            return Err(channel_failed("a socket is missing"));
        };
        let socket = duplicate_above(socket.as_fd(), highest).map_err(|errno| {
            Failure::failed(format!(
                "cannot keep {}: {}",
                planned.wanted.given(),
                errno.desc()
            ))
        })?;
        if planned.wanted.listens() {
            start_listening(&socket, backlog).map_err(|errno| {
                let refusal = Refusal::Errno(errno as i32);
                cannot_bind(&planned.wanted, &refusal, bound_ip(&socket))
            })?;
        }
        if planned.wanted.fixed_number().is_some() {
            notices.push(Notice::Duplicated { descriptor: number });
        }
        listeners.push(Listener {
            name: planned.wanted.name(),
            kind: planned.wanted.kind(),
            socket,
            number,
        });
    }
    Ok(listeners)
}

/// How many numbers above its listeners a worker must have left for its exec (the program, its loader, libraries).
const DESCRIPTORS_TO_EXEC: u64 = 8;

/// The numbers of the workers' descriptors: what asks for one gets it, the others follow each other from 3 on.
fn numbers(fixed: &[Option<RawFd>]) -> Vec<RawFd> {
    let mut free = (3..).filter(|number| !fixed.contains(&Some(*number)));
    fixed
        .iter()
        .map(|number| number.or_else(|| free.next()).unwrap_or(RawFd::MAX))
        .collect()
}

/// listen(2) with whatever backlog was asked for: the kernel cuts it to `net.core.somaxconn`.
#[expect(
    unsafe_code,
    reason = "nix refuses a backlog above a limit that is the kernel's to set"
)]
fn start_listening(socket: &OwnedFd, backlog: i32) -> nix::Result<()> {
    // SAFETY: it takes numbers only.
    Errno::result(unsafe { libc::listen(socket.as_raw_fd(), backlog) }).map(drop)
}

/// The address of a socket of a port.
fn bound_ip(socket: &OwnedFd) -> Option<IpAddr> {
    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    let v4 = name.as_sockaddr_in().map(|name| name.ip().into());
    v4.or_else(|| name.as_sockaddr_in6().map(|name| name.ip().into()))
}

impl Wanted {
    fn fixed_number(&self) -> Option<RawFd> {
        match self {
            Wanted::Port(spec) => spec.descriptor,
            Wanted::Path { .. } => None,
        }
    }

    fn owner_is_asked(&self) -> bool {
        matches!(
            self,
            Wanted::Path { uid, gid, .. } if uid.is_some() || gid.is_some()
        )
    }

    fn listens(&self) -> bool {
        !matches!(
            self,
            Wanted::Port(PortSpec {
                transport: Transport::Udp,
                ..
            })
        )
    }

    fn kind(&self) -> &'static str {
        match self {
            Wanted::Port(PortSpec {
                transport: Transport::Tcp,
                ..
            }) => "tcp",
            Wanted::Port(PortSpec {
                transport: Transport::Udp,
                ..
            }) => "udp",
            Wanted::Path { .. } => "unix",
        }
    }

    /// The key in `SERVER_STARTER_PORT`.
    fn name(&self) -> OsString {
        match self {
            Wanted::Port(spec) => spec.name.clone().into(),
            Wanted::Path { spec, .. } => spec.path.clone().into(),
        }
    }

    /// What the user typed.
    fn given(&self) -> String {
        match self {
            Wanted::Port(spec) => format!("--port={}", spec.given),
            Wanted::Path { spec, .. } => format!("--path={}", printable(&spec.given)),
        }
    }
}

/// `ip` is the literal address of a port, also where a name was typed.
fn cannot_bind(wanted: &Wanted, refusal: &Refusal, ip: Option<IpAddr>) -> Failure {
    let cause = match refusal {
        Refusal::Errno(errno) => Errno::from_raw(*errno).desc(),
        Refusal::Because(cause) => cause,
    };
    let failure = Failure::failed(format!("cannot listen on {}: {cause}", wanted.given()));
    match (wanted, refusal) {
        (Wanted::Port(spec), Refusal::Errno(libc::EADDRINUSE)) => {
            let seen = ip.and_then(|ip| holders::hint_of_port(spec.transport, ip, spec.port));
            failure.hint(seen.unwrap_or_else(|| format!(
                "`ss -anp 'sport = :{}'`, as root, shows who has it: maybe a worker that a killed start_server has left",
                spec.port
            )))
        }
        (Wanted::Path { spec, .. }, Refusal::Because(cause)) if cause == SERVED => {
            match holders::hint_of_path(&spec.path) {
                Some(seen) => failure.hint(seen),
                None => failure,
            }
        }
        (Wanted::Port(spec), Refusal::Errno(libc::EACCES)) => failure.hint(format!(
            "port {} is reserved for root: start as root, with --user=NAME for the server program; or let root \
             `setcap cap_net_bind_service=ep` on {BINDER} and allow it in {POLICY} (no use below no_new_privs or on \
             a nosuid file system); or, in a unit with User=, add AmbientCapabilities=CAP_NET_BIND_SERVICE",
            spec.port
        )),
        // Of a port only the policy says so.
        (Wanted::Port(_), Refusal::Because(cause)) if cause.contains("grants nothing: line ") => {
            failure.hint("a right line is like `user alice tcp 80,443` or `group dns udp 53`")
        }
        (Wanted::Port(spec), Refusal::Because(_)) => failure.hint(format!(
            "root allows it to a user by a line such as `user {} {} {}` in {POLICY}, which must belong to root, \
             be readable by everybody and writable by root alone",
            getuid(),
            wanted.kind(),
            spec.port
        )),
        (Wanted::Port(_), Refusal::Errno(libc::EADDRNOTAVAIL)) => {
            failure.hint("no interface of this machine has that address: see `ip address`")
        }
        // Of a change of owner, which is the only thing there that root needs a capability for.
        (Wanted::Path { .. }, Refusal::Errno(libc::EPERM)) if wanted.owner_is_asked() => {
            failure.hint("root lacks CAP_CHOWN here: give the unit or container that capability")
        }
        _ => failure,
    }
}

fn cannot_bind_ourselves(wanted: &Wanted, refusal: &Refusal, objection: Option<&str>) -> Failure {
    let failure = cannot_bind(wanted, refusal, None);
    match (refusal, objection) {
        (Refusal::Errno(libc::EACCES), Some(objection)) => failure.hint(format!(
            "root makes sockets only where nobody else can write, but {objection}; \
             elsewhere the directory must be writable by --user"
        )),
        (Refusal::Errno(libc::EACCES), None) => {
            failure.hint("the directory must be writable by this user")
        }
        (Refusal::Errno(libc::ENOENT), _) => Failure::failed(format!(
            "cannot listen on {}: its directory does not exist",
            wanted.given()
        )),
        // Of a change of owner; without one it is a sticky directory that keeps a stale socket of another user.
        (Refusal::Errno(libc::EPERM), _) if wanted.owner_is_asked() => {
            failure.hint("an ordinary user can give the socket only to a group that it is in")
        }
        _ => failure,
    }
}

impl SocketFiles {
    /// The binder that waits to remove its files at the end.
    pub fn binder(&self) -> Option<Pid> {
        self.binder.as_ref().map(Binder::pid)
    }

    /// The binder has exited by itself and was reaped; there is nobody to wait for any more.
    pub fn binder_is_gone(&mut self) {
        self.binder = None;
    }
}

/// However it ends: every socket file that is still ours is removed, here and by the binder, and the binder has ended.
impl Drop for SocketFiles {
    fn drop(&mut self) {
        self.ours.iter().for_each(MadeFile::remove);
        if let Some(binder) = self.binder.take() {
            // Nothing can be done about a binder that ended in its own way.
            drop(binder.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_consecutive_from_3_and_move_away_only_for_fixed_ones() {
        assert_eq!(numbers(&[None, None, None]), [3, 4, 5]);
        assert_eq!(numbers(&[None, Some(4), None]), [3, 4, 5]);
        assert_eq!(numbers(&[None, Some(3), None]), [4, 3, 5]);
        assert_eq!(numbers(&[Some(0), None, Some(100)]), [0, 3, 100]);
        assert!(numbers(&[]).is_empty());
    }
}
