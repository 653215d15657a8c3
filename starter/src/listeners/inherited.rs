//! Sockets that the launcher has bound and passes on (see [`crate::host::passed_on`]): what each is, its key in
//! `SERVER_STARTER_PORT`, and which option names it.
//!
//! Nothing is changed here. TCP and UDP ports and unix stream sockets are listeners like any other; what else the launcher
//! may pass on to a server, such as a FIFO, goes to the workers as it is. Anything that could never be what a launcher
//! wants to be served is refused, before anything is bound.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use common::message::{Identity, Transport};
use common::stat::file_type_of;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockaddrStorage, UnixAddr, getpeername, getsockname, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::geteuid;

use crate::host::identity::is_in_partial_namespace;
use crate::host::passed_on::PassedOn;
use crate::listeners::sockets::{self, Shut, bound_address, shut};
use crate::listeners::spec::{Host, PathSpec, PortSpec};
use crate::listeners::store::{is_stored, lane_of, name_of_port};
use crate::words::failure::Failure;
use crate::words::file_type::name_of_type;
use crate::words::remedy;
use crate::words::text::quoted;

/// The key of what has neither an address nor a name, as sd_listen_fds_with_names(3) calls it.
const UNKNOWN: &str = "unknown";

/// The uid that stands for everybody who has none in this user namespace (`/proc/sys/kernel/overflowuid`).
const NOBODY_HERE: u32 = 65534;

/// A descriptor that was passed on, and may be used.
#[derive(Debug)]
pub struct Inherited {
    /// Until it becomes a listener.
    socket: Option<OwnedFd>,
    /// Its name in the launcher's `LISTEN_FDNAMES`.
    pub name: Option<OsString>,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Port {
        transport: Transport,
        address: SocketAddr,
        /// Whether it is open to IPv4 as well.
        is_dual: bool,
    },
    /// As `--path` is written: with an @ in front it is the name of an abstract socket.
    Path(PathBuf),
    /// The workers' own business.
    Other { kind: &'static str },
}

/// Why a descriptor cannot be taken over, and the remedy.
struct Objection {
    cause: String,
    hint: Option<&'static str>,
}

impl Inherited {
    /// `identity` is whom the workers will be, if root starts them.
    ///
    /// # Errors
    /// If one is nothing that a launcher would want to have served. What an earlier start has stored, and cannot be served
    /// now, is not wanted any more.
    pub fn examine_all(
        passed_on: Vec<PassedOn>,
        identity: Option<&Identity>,
    ) -> Result<Vec<Inherited>, Failure> {
        let examine = |passed_on: PassedOn| {
            let name = passed_on.name.clone();
            let examined = Inherited::examine(passed_on, identity);
            let is_usable = examined
                .as_ref()
                .is_ok_and(|it| !it.is_shut_down() && !it.is_port_of_another(identity));
            match is_stored(name.as_deref()) && !is_usable {
                true => Ok(Inherited {
                    socket: None,
                    name,
                    what: What::Other { kind: "other" },
                }),
                false => examined,
            }
        };
        passed_on.into_iter().map(examine).collect()
    }

    fn examine(passed_on: PassedOn, identity: Option<&Identity>) -> Result<Inherited, Failure> {
        let PassedOn {
            descriptor,
            number,
            name,
        } = passed_on;
        let what = check_owner(&descriptor, identity).and_then(|()| what(&descriptor));
        match what {
            Ok(what) => Ok(Inherited {
                socket: Some(descriptor),
                name,
                what,
            }),
            Err(Objection { cause, hint }) => {
                let hint = hint.unwrap_or(remedy::LISTEN_FDS);
                Err(cannot_take(number, name.as_deref(), &cause).hint(hint))
            }
        }
    }

    /// The name that we have stored it with, if it is from there.
    pub fn stored_name(&self) -> Option<&OsStr> {
        let name = self.name.as_deref();
        name.filter(|_| is_stored(name))
    }

    /// Which lane of a port it is, if we have stored it as one beside the first.
    pub fn lane(&self) -> Option<u8> {
        lane_of(self.stored_name()?)
    }

    /// Whether a worker has shut it down for good: only TCP can listen again.
    fn is_shut_down(&self) -> bool {
        let socket = self.socket().filter(|_| self.kind() != "tcp");
        socket.is_some_and(|socket| shut(socket) != Shut::Nothing)
    }

    /// Whether it is a port that a start of another user has stored. To the kernel it stays that user's, whose processes could
    /// join it if it has been shared ([`super::group`]), and take its connections.
    fn is_port_of_another(&self, identity: Option<&Identity>) -> bool {
        let What::Port { .. } = self.what else {
            return false;
        };
        let owner = self.socket().map(fstat).and_then(Result::ok);
        let owner = owner.map(|stat| stat.st_uid);
        let is_unknown = owner == Some(NOBODY_HERE) && is_in_partial_namespace();
        let is_fine = match identity {
            Some(identity) => [0, identity.uid].map(Some).contains(&owner),
            None => owner == Some(geteuid().as_raw()),
        };
        !is_fine && !is_unknown
    }

    /// Where a port is bound.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.what {
            What::Port { address, .. } => Some(*address),
            What::Path(_) | What::Other { .. } => None,
        }
    }

    /// The socket, unless it was given away.
    pub fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Gives the socket away, once.
    pub fn take_socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// `tcp`, `udp`, `unix`, or what else it is.
    pub fn kind(&self) -> &'static str {
        match &self.what {
            What::Port {
                transport: Transport::Tcp,
                ..
            } => "tcp",
            What::Port {
                transport: Transport::Udp,
                ..
            } => "udp",
            What::Path(_) => "unix",
            What::Other { kind } => kind,
        }
    }

    pub fn listens(&self) -> bool {
        match &self.what {
            What::Port { transport, .. } => *transport == Transport::Tcp,
            What::Path(_) => true,
            What::Other { .. } => false,
        }
    }

    /// The path of its file, if it has one.
    pub fn file_path(&self) -> Option<&Path> {
        match &self.what {
            What::Path(path) if !is_abstract(path) => Some(path),
            What::Path(_) | What::Port { .. } | What::Other { .. } => None,
        }
    }

    /// Whether workers get it as it is, without anybody looking after it.
    pub fn is_other(&self) -> bool {
        matches!(self.what, What::Other { .. })
    }

    /// The key that Server::Starter would give its address; of what has none that could be typed, its name.
    pub fn key(&self) -> OsString {
        match &self.what {
            What::Port { address, .. } => match address {
                SocketAddr::V4(v4) if v4.ip().is_unspecified() => v4.port().to_string().into(),
                address => address.to_string().into(),
            },
            What::Path(path) => path.clone().into(),
            What::Other { .. } => {
                let name = self.name.as_deref().unwrap_or(OsStr::new(UNKNOWN));
                let safe = |byte: &u8| match byte {
                    b';' | b'=' | b'\n' => b'_',
                    byte => *byte,
                };
                OsString::from_vec(name.as_bytes().iter().map(safe).collect())
            }
        }
    }

    /// Whether it is bound to this address, which is that of a `--port`.
    pub fn is_at(&self, wanted: Transport, ip: IpAddr, port: u16) -> bool {
        match &self.what {
            What::Port {
                transport, address, ..
            } => (*transport, address.ip(), address.port()) == (wanted, ip, port) && port != 0,
            What::Path(_) | What::Other { .. } => false,
        }
    }

    /// Whether this `--port` means it.
    fn is_port(&self, spec: &PortSpec, ordinal: usize) -> bool {
        if spec.port == 0 {
            return self.is_chosen_for(spec, ordinal);
        }
        match &spec.host {
            Host::Address(ip) => self.is_at(spec.transport, *ip, spec.port),
            // That is known only when it is resolved.
            Host::Name(_) => false,
        }
    }

    /// Whether an earlier start has let the kernel choose its port for this `--port`.
    fn is_chosen_for(&self, spec: &PortSpec, ordinal: usize) -> bool {
        let What::Port {
            transport, address, ..
        } = &self.what
        else {
            return false;
        };
        let is_there = match &spec.host {
            Host::Address(ip) => address.ip() == *ip,
            Host::Name(_) => true,
        };
        let name = name_of_port(spec, ordinal);
        is_there && *transport == spec.transport && self.stored_name() == Some(name.as_ref())
    }

    /// Whether this `--port` for all IPv4 addresses gets its connections, although it is one for all IPv6 addresses.
    fn includes(&self, spec: &PortSpec) -> bool {
        match &self.what {
            What::Port {
                transport,
                address,
                is_dual: true,
            } => {
                let all =
                    matches!(&spec.host, Host::Address(IpAddr::V4(ip)) if ip.is_unspecified());
                all && (*transport, address.port()) == (spec.transport, spec.port)
            }
            What::Port { .. } | What::Path(_) | What::Other { .. } => false,
        }
    }

    /// Whether this `--path` means it.
    fn is_path(&self, spec: &PathSpec) -> bool {
        let What::Path(path) = &self.what else {
            return false;
        };
        let absolute = |path: &Path| std::path::absolute(path).ok();
        match (spec.abstract_name().is_some(), is_abstract(path)) {
            (true, true) => spec.path == *path,
            (false, false) => spec.path == *path || absolute(&spec.path) == absolute(path),
            (true, false) | (false, true) => false,
        }
    }
}

fn is_abstract(path: &Path) -> bool {
    path.as_os_str().as_bytes().starts_with(b"@")
}

/// For each `--port` the inherited socket that it names, which is then no longer among the others.
pub fn of_ports(ports: &[PortSpec], inherited: &mut Vec<Inherited>) -> Vec<Option<Inherited>> {
    let mut found: Vec<Option<Inherited>> = Vec::with_capacity(ports.len());
    for (place, spec) in ports.iter().enumerate() {
        let earlier = ports.iter().take(place);
        let of_that_name = |one: &&PortSpec| name_of_port(one, 0) == name_of_port(spec, 0);
        let ordinal = match spec.port {
            0 => earlier.filter(of_that_name).count(),
            _ => 0,
        };
        found.push(take_first(inherited, |one| one.is_port(spec, ordinal)));
    }
    // Only what nobody names by its own address.
    for (spec, found) in ports.iter().zip(&mut found) {
        if found.is_none() {
            *found = take_first(inherited, |one| one.includes(spec));
        }
    }
    found
}

/// The same for one `--path`.
pub fn of_path(path: &PathSpec, inherited: &mut Vec<Inherited>) -> Option<Inherited> {
    take_first(inherited, |one| one.is_path(path))
}

/// The first of them that is meant, which is then no longer among them.
pub fn take_first(
    inherited: &mut Vec<Inherited>,
    is_meant: impl Fn(&Inherited) -> bool,
) -> Option<Inherited> {
    let place = inherited.iter().position(is_meant)?;
    Some(inherited.remove(place))
}

fn cannot_take(number: RawFd, name: Option<&OsStr>, cause: &str) -> Failure {
    let named = name.map(|name| format!(" ({})", quoted(name)));
    let named = named.unwrap_or_default();
    Failure::failed(format!(
        "cannot take over descriptor {number}{named} of LISTEN_FDS: {cause}"
    ))
}

/// Root's workers serve sockets of root and of their own user alone. Whoever else has created one still has it, and would
/// share what its clients send to the server.
fn check_owner(descriptor: &OwnedFd, identity: Option<&Identity>) -> Result<(), Objection> {
    let Some(identity) = identity else {
        return Ok(());
    };
    let stat = fstat(descriptor).map_err(|errno| errno.desc())?;
    let owner = stat.st_uid;
    let is_from_outside = || owner == NOBODY_HERE && is_in_partial_namespace();
    let is_socket = file_type_of(&stat) == SFlag::S_IFSOCK.bits();
    if !is_socket || owner == 0 || owner == identity.uid || is_from_outside() {
        return Ok(());
    }
    Err(Objection {
        cause: format!("uid {owner} has created it, which is neither root nor --user"),
        hint: Some(remedy::SOCKET_OF_ANOTHER),
    })
}

fn what(descriptor: &OwnedFd) -> Result<What, Objection> {
    let flags = fcntl(descriptor, FcntlArg::F_GETFL).map_err(|errno| errno.desc())?;
    if OFlag::from_bits_retain(flags).contains(OFlag::O_PATH) {
        return Err("it is open as a path only".into());
    }
    let stat = fstat(descriptor).map_err(|errno| errno.desc())?;
    match SFlag::from_bits_retain(file_type_of(&stat)) {
        SFlag::S_IFSOCK => what_socket(descriptor),
        SFlag::S_IFIFO => Ok(What::Other { kind: "fifo" }),
        other => {
            let kind = name_of_type(other.bits());
            let cause = format!("it is {kind}, neither a socket nor a FIFO");
            Err(cause.as_str().into())
        }
    }
}

fn what_socket(socket: &OwnedFd) -> Result<What, Objection> {
    let option = |name| sockets::option(socket, name).map_err(|errno| errno.desc());
    let (domain, of_type) = (option(libc::SO_DOMAIN)?, option(libc::SO_TYPE)?);
    let what = match (domain, of_type, option(libc::SO_PROTOCOL)?) {
        (
            libc::AF_INET | libc::AF_INET6,
            libc::SOCK_STREAM,
            libc::IPPROTO_TCP | libc::IPPROTO_MPTCP,
        ) => port(socket, Transport::Tcp)?,
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP) => {
            port(socket, Transport::Udp)?
        }
        (libc::AF_UNIX, libc::SOCK_STREAM, _) => path(socket)?,
        (libc::AF_UNIX, libc::SOCK_SEQPACKET, _) => What::Other { kind: "seqpacket" },
        (libc::AF_UNIX, libc::SOCK_DGRAM, _) => What::Other { kind: "datagram" },
        (libc::AF_NETLINK, _, _) => What::Other { kind: "netlink" },
        (libc::AF_VSOCK, _, _) => What::Other { kind: "vsock" },
        _ => What::Other { kind: "other" },
    };
    let is_connected = getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok();
    match what {
        What::Port { .. } | What::Path(_) if is_connected => Err(Objection {
            cause: "it is a connection, not a listener".to_owned(),
            hint: Some(remedy::ACCEPT_NO),
        }),
        what => Ok(what),
    }
}

fn port(socket: &OwnedFd, transport: Transport) -> Result<What, Objection> {
    let address = bound_address(socket).filter(|address| address.port() != 0);
    let address = address.ok_or("it is bound to no port")?;
    let only_v6 = || getsockopt(socket, sockopt::Ipv6V6Only).unwrap_or(true);
    Ok(What::Port {
        transport,
        is_dual: address.is_ipv6() && address.ip().is_unspecified() && !only_v6(),
        // What is bound to an IPv4 address in IPv6 has the clients of that IPv4 address.
        address: match address.ip().to_canonical() {
            IpAddr::V4(ip) => (ip, address.port()).into(),
            IpAddr::V6(_) => address,
        },
    })
}

fn path(socket: &OwnedFd) -> Result<What, Objection> {
    let name: UnixAddr = getsockname(socket.as_raw_fd()).map_err(|errno| errno.desc())?;
    let path = match (name.path(), name.as_abstract()) {
        // As the option is written for a file of such a name.
        (Some(path), _) if path.as_os_str().as_bytes().starts_with(b"@") => {
            Path::new(".").join(path).into_os_string().into_vec()
        }
        (Some(path), _) => path.as_os_str().as_bytes().to_vec(),
        (None, Some(name)) => [b"@", name].concat(),
        (None, None) => return Err("it is bound to no path".into()),
    };
    if path.iter().any(|byte| b";=\n\0".contains(byte)) {
        return Err(
            "its path cannot be a key in SERVER_STARTER_PORT: it contains a ;, a =, a newline or a NUL"
                .into(),
        );
    }
    Ok(What::Path(OsString::from_vec(path).into()))
}

impl From<&str> for Objection {
    fn from(cause: &str) -> Objection {
        Objection {
            cause: cause.to_owned(),
            hint: None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::listeners::spec::{parse_paths, parse_ports};

    fn one(what: What, name: Option<&str>) -> Inherited {
        Inherited {
            socket: None,
            name: name.map(OsString::from),
            what,
        }
    }

    fn port(address: &str) -> Inherited {
        let what = What::Port {
            transport: Transport::Tcp,
            address: address.parse().unwrap(),
            is_dual: false,
        };
        one(what, None)
    }

    fn dual(address: &str) -> Inherited {
        let mut dual = port(address);
        if let What::Port { is_dual, .. } = &mut dual.what {
            *is_dual = true;
        }
        dual
    }

    fn unix(path: &str) -> Inherited {
        one(What::Path(path.into()), None)
    }

    #[test]
    fn a_key_is_what_server_starter_would_give_the_address() {
        for (inherited, key) in [
            (port("0.0.0.0:80"), "80"),
            (port("127.0.0.1:80"), "127.0.0.1:80"),
            (port("[::]:80"), "[::]:80"),
            (dual("[::]:80"), "[::]:80"),
            (port("[::1]:80"), "[::1]:80"),
            (unix("/run/a.sock"), "/run/a.sock"),
            (unix("@a"), "@a"),
            (one(What::Other { kind: "fifo" }, None), "unknown"),
            (one(What::Other { kind: "fifo" }, Some("in")), "in"),
            (
                one(What::Other { kind: "fifo" }, Some("a;b=3\nc")),
                "a_b_3_c",
            ),
        ] {
            assert_eq!(inherited.key(), key, "{inherited:?}");
        }
    }

    /// Which of the inherited ones each `--port` gets, by their keys, and which are left.
    fn ports(specs: &str, mut inherited: Vec<Inherited>) -> (Vec<Option<String>>, Vec<String>) {
        let key = |one: &Inherited| one.key().into_string().unwrap();
        let found = of_ports(&parse_ports(specs).unwrap(), &mut inherited);
        let found = found.iter().map(|one| one.as_ref().map(key)).collect();
        (found, inherited.iter().map(key).collect())
    }

    #[test]
    fn a_port_gets_the_socket_at_its_address() {
        let all = || vec![port("0.0.0.0:80"), port("127.0.0.1:80"), port("[::1]:80")];
        for (spec, key) in [
            ("80", Some("80")),
            ("*:80", Some("80")),
            ("127.0.0.1:80=7", Some("127.0.0.1:80")),
            ("::1:80", Some("[::1]:80")),
            ("u80", None),
            ("81", None),
            ("127.0.0.2:80", None),
            // Whoever it is, is known later.
            ("localhost:80", None),
            // Any port but one that somebody has chosen already.
            ("0", None),
        ] {
            let (found, left) = ports(spec, all());
            assert_eq!(found, [key.map(str::to_owned)], "{spec}");
            assert_eq!(left.len(), all().len() - usize::from(key.is_some()));
        }
        let twice = vec![port("0.0.0.0:80"), port("0.0.0.0:80")];
        assert_eq!(ports("80", twice).1, ["80"]);
    }

    #[test]
    fn a_socket_for_both_families_is_that_of_ipv4_unless_it_is_named_itself() {
        let key = Some("[::]:80".to_owned());
        let of = |specs, inherited| ports(specs, inherited).0;
        assert_eq!(of("80", vec![dual("[::]:80")])[0], key);
        assert_eq!(of("80", vec![port("[::]:80")]), [None]);
        assert_eq!(of("127.0.0.1:80", vec![dual("[::]:80")]), [None]);
        let both = of("80,[::]:80", vec![dual("[::]:80")]);
        assert_eq!(both, [None, key.clone()]);
        let both = of("80,[::]:80", vec![dual("[::]:80"), port("0.0.0.0:80")]);
        assert_eq!(both, [Some("80".to_owned()), key]);
    }

    #[test]
    fn a_path_gets_the_socket_at_it() {
        let here = std::env::current_dir().unwrap().join("a");
        let here = here.to_str().unwrap();
        for (option, bound, is_meant) in [
            ("/a", "/a", true),
            ("/a,mode=0600", "/a", true),
            ("/a", "/b", false),
            ("@a", "@a", true),
            ("@a", "./@a", false),
            ("./@a", "./@a", true),
            ("a", here, true),
            (here, "a", true),
        ] {
            let specs = parse_paths(option.as_ref()).unwrap();
            let mut inherited = vec![unix(bound)];
            let found = of_path(&specs[0], &mut inherited).is_some();
            assert_eq!(found, is_meant, "{option} {bound}");
        }
    }
}
