//! Who creates which socket: a binder those that only root can create, this process all others, unless the launcher has.
//!
//! All of it runs with the launcher's privileges, before they are dropped.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use common::message::{Grant, Identity, MOST_DESCRIPTORS, SocketFile, Transport};
use common::trusted_path::{Trust, Untrusted, open_directory};

use crate::host::identity;
use crate::host::open_files::OpenFiles;
use crate::listeners::binder::Binder;
use crate::listeners::for_user::{self, Granted};
use crate::listeners::inherited::{self, Inherited};
use crate::listeners::spec::{Host, PathSpec, PortSpec};
use crate::listeners::store::Store;
use crate::words::failure::{self, Failure};
use crate::words::remedy;
use crate::words::text::quoted;

/// Descriptors that the supervisor may need beside the listeners.
pub const SPARE_DESCRIPTORS: usize = 64;

/// Who creates which socket.
pub struct Plan {
    sockets: Vec<Planned>,
    /// For the binder that becomes the user.
    ports: Vec<Grant>,
    /// For the binder that stays root: a separate process, so that no port's socket belongs to root.
    files: Vec<Grant>,
    /// What root makes for the user besides sockets.
    for_user: Granted,
    /// Those that no option names so far.
    inherited: Vec<Inherited>,
    /// Further lanes that an earlier start has stored.
    stored_lanes: Vec<Inherited>,
    store: Option<Store>,
    identity: Option<Identity>,
    /// How many sockets each address has.
    lanes: u8,
}

/// One socket, and who creates it.
pub struct Planned {
    pub wanted: Wanted,
    pub maker: Maker,
}

/// One socket of the command line, or of the launcher.
pub enum Wanted {
    Port(PortSpec),
    Path {
        spec: PathSpec,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    /// No option names it.
    PassedOn {
        key: OsString,
        kind: &'static str,
        listens: bool,
    },
}

/// Who creates a socket.
pub enum Maker {
    /// The port binder, by this grant.
    PortBinder(u32),
    /// The path binder, by this grant.
    FileBinder(u32),
    /// This process, after the drop; with the reason why root does not, if it was root. It need not if an earlier start has
    /// stored the socket.
    Ourselves {
        objection: Option<Untrusted>,
        stored: Option<Inherited>,
    },
    /// The launcher, which has passed it on.
    Launcher(Inherited),
}

/// The binders have their lists.
pub struct Prepared {
    pub sockets: Vec<Planned>,
    pub port_binder: Option<Binder>,
    pub file_binder: Option<Binder>,
    pub for_user: Granted,
    /// Those that no option has named so far; a host name still may.
    pub inherited: Vec<Inherited>,
    /// Further lanes that an earlier start has stored.
    pub stored_lanes: Vec<Inherited>,
    /// Where listeners are stored, if the service manager keeps any.
    pub store: Option<Store>,
}

impl Plan {
    /// Decides who creates which socket, and looks up the owners of the files. What the launcher has passed on need not be
    /// created.
    pub fn new(
        ports: Vec<PortSpec>,
        paths: Vec<PathSpec>,
        inherited: Vec<Inherited>,
        identity: Option<Identity>,
        lanes: u8,
    ) -> Result<Plan, Failure> {
        let is_first = |one: &Inherited| one.lane().is_none();
        let (mut inherited, stored_lanes): (Vec<Inherited>, _) =
            inherited.into_iter().partition(is_first);
        let of_ports = inherited::of_ports(&ports, &mut inherited);
        let mut plan = Plan {
            sockets: Vec::new(),
            ports: Vec::new(),
            files: Vec::new(),
            for_user: Granted::default(),
            inherited,
            stored_lanes,
            store: Store::reach(identity.is_some()),
            identity,
            lanes,
        };
        for (spec, inherited) in ports.into_iter().zip(of_ports) {
            let maker = match inherited {
                Some(inherited) => Maker::Launcher(inherited),
                None => plan.maker_of_port(&spec)?,
            };
            let wanted = Wanted::Port(spec);
            plan.sockets.push(Planned { wanted, maker });
        }
        for spec in paths {
            let (uid, gid) = owners(&spec)?;
            let maker = match inherited::of_path(&spec, &mut plan.inherited) {
                Some(inherited) if inherited.stored_name().is_none() => Maker::Launcher(inherited),
                stored => plan.maker_of(&spec, uid, gid, stored)?,
            };
            let wanted = Wanted::Path { spec, uid, gid };
            plan.sockets.push(Planned { wanted, maker });
        }
        Ok(plan)
    }

    /// Decides what of this root makes for the user: nothing where somebody else can write, and nothing if nobody is root.
    pub fn with_files(mut self, wanted: &for_user::Wanted) -> Plan {
        if self.identity.is_some() {
            self.for_user = Granted::choose(wanted, &mut self.files);
        }
        self
    }

    fn maker_of_port(&mut self, spec: &PortSpec) -> Result<Maker, Failure> {
        // Host names are resolved later, by the ordinary user; a literal address is pinned now.
        let ip = match &spec.host {
            Host::Address(ip) => Some(*ip),
            Host::Name(_) => None,
        };
        let maker = Maker::PortBinder(number_of_next(&self.ports)?);
        self.ports.push(Grant::Port {
            transport: spec.transport,
            port: spec.port,
            ip,
            freebind: spec.freebind,
            lanes: lanes_of(spec, self.lanes),
        });
        Ok(maker)
    }

    /// Root never works in a directory that someone else can write; there the user does it.
    fn maker_of(
        &mut self,
        spec: &PathSpec,
        uid: Option<u32>,
        gid: Option<u32>,
        stored: Option<Inherited>,
    ) -> Result<Maker, Failure> {
        if self.identity.is_none() || spec.abstract_name().is_some() {
            let objection = None;
            return Ok(Maker::Ourselves { objection, stored });
        }
        let path = std::path::absolute(&spec.path).map_err(|error| {
            let (shown, cause) = (quoted(&spec.given), failure::cause(&error));
            Failure::failed(format!("cannot listen on --path={shown}: {cause}"))
                .hint(remedy::LAUNCHED_FROM_NOWHERE)
        })?;
        match open_directory(path.parent().unwrap_or(Path::new("/")), &Trust::ROOT) {
            Ok(_) => {
                // Its file is gone with the binder that made it.
                self.inherited.extend(stored);
                let maker = Maker::FileBinder(number_of_next(&self.files)?);
                self.files.push(Grant::Path(SocketFile {
                    path: path.into(),
                    mode: spec.mode,
                    uid,
                    gid,
                }));
                Ok(maker)
            }
            Err(untrusted) => Ok(Maker::Ourselves {
                objection: Some(untrusted),
                stored,
            }),
        }
    }

    /// What all generations would share in spite of `--switch`.
    pub fn shared(&self) -> impl Iterator<Item = &Planned> {
        self.sockets.iter().filter(|planned| !planned.can_switch())
    }

    /// How many sockets there will be, or at least may be: apart from further lanes, and these.
    pub fn count(&self) -> (usize, usize) {
        let ports = self.sockets.iter();
        let ports = ports.filter(|one| matches!(one.wanted, Wanted::Port(_)));
        let further = usize::from(self.lanes).saturating_sub(1) * ports.count();
        (self.sockets.len() + self.inherited.len(), further)
    }

    /// For a dry run, starts only the binder of ports, and adds why that fails. It binds nothing until it is asked.
    pub fn start_port_binder(self) -> (Prepared, Option<Failure>) {
        let binder = match self.ports.is_empty() {
            true => Ok(None),
            false => Binder::start(self.identity, &self.ports).map(Some),
        };
        let (port_binder, failure) = match binder {
            Ok(binder) => (binder, None),
            Err(failure) => (None, Some(failure)),
        };
        let prepared = Prepared {
            sockets: self.sockets,
            port_binder,
            file_binder: None,
            for_user: self.for_user,
            inherited: self.inherited,
            stored_lanes: self.stored_lanes,
            store: self.store,
        };
        (prepared, failure)
    }

    /// Starts the binders that have something to do, and sends them their sealed lists.
    pub fn start_binders(self, open_files: OpenFiles) -> Result<Prepared, Failure> {
        let (sockets, further) = self.count();
        open_files.check(sockets, further)?;
        let count = sockets + further;
        // For the binders too, which inherit the limit: a file takes its socket, itself and its directory.
        open_files.make_room_for(MOST_DESCRIPTORS + SPARE_DESCRIPTORS + 3 * count)?;
        let start = |grants: Vec<Grant>| match grants.is_empty() {
            true => Ok(None),
            false => Binder::start(self.identity.clone(), &grants).map(Some),
        };
        let (port_binder, file_binder) = (start(self.ports)?, start(self.files)?);
        Ok(Prepared {
            sockets: self.sockets,
            port_binder,
            file_binder,
            for_user: self.for_user,
            inherited: self.inherited,
            stored_lanes: self.stored_lanes,
            store: self.store,
        })
    }
}

impl Planned {
    /// One that no option names.
    pub fn passed_on(inherited: Inherited) -> Planned {
        Planned {
            wanted: Wanted::PassedOn {
                key: inherited.key(),
                kind: inherited.kind(),
                listens: inherited.listens(),
            },
            maker: Maker::Launcher(inherited),
        }
    }

    /// What the launcher has made.
    pub fn inherited(&self) -> Option<&Inherited> {
        match &self.maker {
            Maker::Launcher(inherited) if inherited.stored_name().is_none() => Some(inherited),
            Maker::Launcher(_)
            | Maker::PortBinder(_)
            | Maker::FileBinder(_)
            | Maker::Ourselves { .. } => None,
        }
    }

    /// What an earlier start has made and stored.
    pub fn stored(&self) -> Option<&Inherited> {
        match &self.maker {
            Maker::Launcher(inherited) if inherited.stored_name().is_some() => Some(inherited),
            Maker::Ourselves { stored, .. } => stored.as_ref(),
            Maker::Launcher(_) | Maker::PortBinder(_) | Maker::FileBinder(_) => None,
        }
    }

    /// Whether its address can have a socket for each generation: if it is ours alone, and one of a port.
    pub fn can_switch(&self) -> bool {
        matches!(self.wanted, Wanted::Port(_)) && self.inherited().is_none()
    }

    /// Gives away the socket of either.
    pub fn take_socket(&mut self) -> Option<OwnedFd> {
        match &mut self.maker {
            Maker::Launcher(inherited) => inherited.take_socket(),
            Maker::Ourselves { stored, .. } => stored.as_mut()?.take_socket(),
            Maker::PortBinder(_) | Maker::FileBinder(_) => None,
        }
    }
}

/// How many sockets a binder makes for a port. Which one the kernel will choose nobody can allow it: the others are made when
/// that is known.
pub(super) fn lanes_of(spec: &PortSpec, lanes: u8) -> u8 {
    match spec.port {
        0 => 1,
        _ => lanes,
    }
}

fn number_of_next(grants: &[Grant]) -> Result<u32, Failure> {
    u32::try_from(grants.len()).map_err(|_| Failure::usage("cannot bind so many sockets"))
}

pub(super) fn owners(spec: &PathSpec) -> Result<(Option<u32>, Option<u32>), Failure> {
    let cannot = |option: &str, name: &str, cause: String| {
        Failure::failed(format!(
            "cannot use {option}={} of --path={}: {cause}",
            quoted(name),
            quoted(&spec.given)
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

/// The highest number belongs to nobody: chown(2) takes it for "unchanged".
fn owner(number: Result<u32, String>) -> Result<u32, String> {
    number.and_then(|number| match number {
        u32::MAX => Err("no file can belong to this number".into()),
        number => Ok(number),
    })
}

/// As the policy and `FILE.json` write it.
pub fn kind_of(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

impl Wanted {
    pub fn fixed_number(&self) -> Option<RawFd> {
        match self {
            Wanted::Port(spec) => spec.descriptor,
            Wanted::Path { .. } | Wanted::PassedOn { .. } => None,
        }
    }

    pub fn owner_is_asked(&self) -> bool {
        matches!(
            self,
            Wanted::Path { uid, gid, .. } if uid.is_some() || gid.is_some()
        )
    }

    /// Whether nobody knows the port before it is bound.
    pub fn is_chosen_by_kernel(&self) -> bool {
        matches!(self, Wanted::Port(spec) if spec.port == 0)
    }

    pub fn listens(&self) -> bool {
        match self {
            Wanted::Port(spec) => spec.transport == Transport::Tcp,
            Wanted::Path { .. } => true,
            Wanted::PassedOn { listens, .. } => *listens,
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Wanted::Port(spec) => kind_of(spec.transport),
            Wanted::Path { .. } => "unix",
            Wanted::PassedOn { kind, .. } => kind,
        }
    }

    /// What a policy would have to allow.
    pub fn in_policy(&self) -> String {
        match self {
            Wanted::Port(spec) => format!("{} port {}", self.kind(), spec.port),
            Wanted::Path { .. } => "a path".to_owned(),
            Wanted::PassedOn { kind, .. } => (*kind).to_owned(),
        }
    }

    /// The key in `SERVER_STARTER_PORT`, where this is the address that was bound.
    pub fn name(&self, bound: Option<SocketAddr>) -> OsString {
        match self {
            Wanted::Port(spec) => spec
                .name_with(bound.map_or(spec.port, |bound| bound.port()))
                .into(),
            Wanted::Path { spec, .. } => spec.path.clone().into(),
            Wanted::PassedOn { key, .. } => key.clone(),
        }
    }

    /// What the user typed, or the launcher has passed on.
    pub fn given(&self) -> String {
        match self {
            Wanted::Port(spec) => format!("--port={}", quoted(&spec.given)),
            Wanted::Path { spec, .. } => format!("--path={}", quoted(&spec.given)),
            Wanted::PassedOn { key, .. } => format!("the inherited {}", quoted(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listeners::spec::parse_paths;

    #[test]
    fn an_owner_that_nobody_is_stays_one_line_whatever_it_is_called() {
        let mut specs = parse_paths("/a,user=x\nforged: line".as_ref()).unwrap_or_default();
        let spec = specs.pop().map(|spec| owners(&spec));
        let failure = spec.and_then(Result::err).map(|it| it.to_string());
        let line = r"cannot use user='x\x0Aforged: line' of --path='/a,user=x\x0Aforged: line': there is no such user";
        assert_eq!(failure.as_deref(), Some(line));
    }
}
