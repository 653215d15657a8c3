//! Who creates which socket: a binder those that only root can create, this process all others.
//!
//! All of it runs with the launcher's privileges, before they are dropped.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::Path;

use common::message::{Grant, Identity, MOST_DESCRIPTORS, SocketFile, Transport};
use common::trusted_path::{Trust, Untrusted, open_directory};

use crate::host::identity;
use crate::host::open_files::OpenFiles;
use crate::listeners::binder::Binder;
use crate::listeners::spec::{Host, PathSpec, PortSpec};
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
    identity: Option<Identity>,
}

/// One socket, and who creates it.
pub struct Planned {
    pub wanted: Wanted,
    pub maker: Maker,
}

/// One socket of the command line.
pub enum Wanted {
    Port(PortSpec),
    Path {
        spec: PathSpec,
        uid: Option<u32>,
        gid: Option<u32>,
    },
}

/// Who creates a socket.
pub enum Maker {
    /// The port binder, by this grant.
    PortBinder(u32),
    /// The path binder, by this grant.
    FileBinder(u32),
    /// This process, after the drop; with the reason why root does not, if it was root.
    Ourselves { objection: Option<Untrusted> },
}

/// The binders have their lists.
pub struct Prepared {
    pub sockets: Vec<Planned>,
    pub port_binder: Option<Binder>,
    pub file_binder: Option<Binder>,
}

impl Plan {
    /// Decides who creates which socket, and looks up the owners of the files.
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
                freebind: spec.freebind,
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

    /// Root never works in a directory that someone else can write; there the user does it.
    fn maker_of(
        &mut self,
        spec: &PathSpec,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<Maker, Failure> {
        if self.identity.is_none() || spec.abstract_name().is_some() {
            return Ok(Maker::Ourselves { objection: None });
        }
        let path = std::path::absolute(&spec.path).map_err(|error| {
            let (shown, cause) = (quoted(&spec.given), failure::cause(&error));
            Failure::failed(format!("cannot listen on --path={shown}: {cause}"))
                .hint(remedy::LAUNCHED_FROM_NOWHERE)
        })?;
        match open_directory(path.parent().unwrap_or(Path::new("/")), &Trust::ROOT) {
            Ok(_) => {
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
            }),
        }
    }

    /// Starts the binders that have something to do, and sends them their sealed lists.
    pub fn start_binders(self, open_files: OpenFiles) -> Result<Prepared, Failure> {
        open_files.check(self.sockets.len())?;
        // For the binders too, which inherit the limit: a file takes its socket, itself and its directory.
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
            Wanted::Path { .. } => None,
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
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Wanted::Port(spec) => kind_of(spec.transport),
            Wanted::Path { .. } => "unix",
        }
    }

    /// What a policy would have to allow.
    pub fn in_policy(&self) -> String {
        match self {
            Wanted::Port(spec) => format!("{} port {}", self.kind(), spec.port),
            Wanted::Path { .. } => "a path".to_owned(),
        }
    }

    /// The key in `SERVER_STARTER_PORT`, where this is the address that was bound.
    pub fn name(&self, bound: Option<SocketAddr>) -> OsString {
        match self {
            Wanted::Port(spec) => spec
                .name_with(bound.map_or(spec.port, |bound| bound.port()))
                .into(),
            Wanted::Path { spec, .. } => spec.path.clone().into(),
        }
    }

    /// What the user typed.
    pub fn given(&self) -> String {
        match self {
            Wanted::Port(spec) => format!("--port={}", quoted(&spec.given)),
            Wanted::Path { spec, .. } => format!("--path={}", quoted(&spec.given)),
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
