//! For a dry run: what a start would listen on. Nothing is bound, and no file is made or removed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use caps::Capability;
use common::message::{Identity, Refusal, Transport};
use common::stat::{file_type_of, find, has_type};
use common::trusted_path::{Trust, open_directory};
use nix::sys::stat::SFlag;

use super::bind::{place_of, resolve};
use super::binder::{Binder, channel_failed};
use super::for_user;
use super::group;
use super::inherited::{Inherited, take_first};
use super::plan::{Maker, Plan, Planned, Prepared, Wanted, kind_of, owners};
use super::refusal::{cannot_bind, cannot_bind_ourselves};
use super::settings::{Settings, Switch};
use super::spec::{PathSpec, PortSpec};
use crate::host::access::{self, Expected};
use crate::host::open_files::OpenFiles;
use crate::host::sock_diag::{self, State};
use crate::host::{confinement, low_ports, proc};
use crate::words;
use crate::words::failure::Failure;
use crate::words::findings::Findings;
use crate::words::remedy;
use crate::words::text::quoted;

/// What is known with the launcher's privileges.
pub struct Examined {
    prepared: Option<Prepared>,
    /// What root makes for the user besides sockets.
    pub by_root: Vec<PathBuf>,
}

/// Decides as a start does who creates which socket, and starts the binder of ports. It is not asked for any.
pub fn examine(
    settings: &Settings,
    wanted: &for_user::Wanted,
    cannot: impl Fn(&Path, &str) -> Failure,
    inherited: Vec<Inherited>,
    identity: Option<Identity>,
    open_files: OpenFiles,
    findings: &mut Findings,
) -> Examined {
    // One by one: the others are examined too.
    let paths = settings.paths.iter();
    let paths = paths.filter(|spec| findings.take(owners(spec)).is_some());
    let (ports, paths) = (settings.ports.clone(), paths.cloned().collect());
    let lanes = settings.switch.map_or(1, Switch::sockets);
    let plan = Plan::new(ports, paths, inherited, identity.clone(), lanes);
    let Some(plan) = findings.take(plan) else {
        return Examined {
            prepared: None,
            by_root: Vec::new(),
        };
    };
    let plan = plan.with_files(wanted);
    if let Some(switch) = settings.switch {
        examine_switch(&plan, switch, findings);
    }
    let (sockets, further) = plan.count();
    findings.take(open_files.check(sockets, further));
    let (prepared, failure) = plan.start_port_binder();
    if let Some(failure) = failure {
        findings.fails(failure);
    }
    for planned in &prepared.sockets {
        if let (Wanted::Path { spec, .. }, Maker::FileBinder(_)) = (&planned.wanted, &planned.maker)
            && let Err(refusal) = examine_as_root(&spec.path)
        {
            findings.fails(cannot_bind(&planned.wanted, &refusal, None));
        }
    }
    let by_root: Vec<PathBuf> = prepared.for_user.paths().map(Path::to_owned).collect();
    for path in &by_root {
        let cannot = |cause: &str| cannot(path, cause);
        let user = identity.as_ref();
        let examined = user.map_or(Ok(()), |user| prepared.for_user.examine(path, user, cannot));
        if findings.take(examined).is_some() {
            findings.would(format!("lets root make {} for the user", quoted(path)));
        }
    }
    Examined {
        prepared: Some(prepared),
        by_root,
    }
}

/// Whether there could be lanes.
fn examine_switch(plan: &Plan, switch: Switch, findings: &mut Findings) {
    match (group::is_possible(), switch.is_required) {
        (Err(errno), true) => findings.fails(words::switch::impossible(errno)),
        (Err(_), false) => findings.would("lets all generations share the listeners"),
        (Ok(()), true) => {
            for shared in plan.shared() {
                findings.fails(words::switch::cannot_switch(&shared.wanted.given()));
            }
        }
        (Ok(()), false) => {
            for shared in plan.shared() {
                let given = shared.wanted.given();
                findings.would(format!("lets all generations share {given}"));
            }
        }
    }
}

/// What the binder would refuse in a directory where only root can write.
fn examine_as_root(path: &Path) -> Result<(), Refusal> {
    let path = std::path::absolute(path).map_err(|_| Refusal::NamesDirectory)?;
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        return Err(Refusal::NamesDirectory);
    };
    let directory = open_directory(parent, &Trust::ROOT).map_err(Refusal::Untrusted)?;
    match find(&directory, name)? {
        Some(stat) if !has_type(&stat, SFlag::S_IFSOCK) => {
            let file_type = file_type_of(&stat);
            Err(Refusal::NotASocket { file_type })
        }
        Some(_) | None => Ok(()),
    }
}

impl Examined {
    /// The rest, with the user's privileges. What a server holds `beside` which this is run is not examined.
    pub fn finish(
        self,
        is_strict: bool,
        beside: bool,
        expected: &Expected,
        findings: &mut Findings,
    ) {
        let Some(Prepared {
            sockets,
            port_binder,
            mut inherited,
            ..
        }) = self.prepared
        else {
            return;
        };
        let mut ours = Vec::new();
        let may_bind_low = port_binder.is_none_or(|binder| try_out(binder, is_strict, findings));
        for planned in &sockets {
            if let Some(taken) = planned.inherited() {
                findings.would(taken_over(taken));
                continue;
            }
            match &planned.wanted {
                Wanted::Port(spec) => {
                    let port = Port {
                        spec,
                        planned,
                        may_bind_low,
                        beside,
                    };
                    ours.extend(port.examine(&ours, &mut inherited, findings));
                }
                Wanted::Path { spec, .. } => {
                    examine_path(spec, planned, beside, expected, findings);
                }
                Wanted::PassedOn { .. } => {}
            }
        }
        let others = inherited.iter().filter(|one| one.stored_name().is_none());
        others.for_each(|one| findings.would(taken_over(one)));
    }
}

fn taken_over(inherited: &Inherited) -> String {
    let (kind, key) = (inherited.kind(), quoted(inherited.key()));
    format!("takes over {kind} {key} from the launcher")
}

/// Whether the binder can bind low ports. It is gone when this returns.
fn try_out(mut binder: Binder, is_strict: bool, findings: &mut Findings) -> bool {
    let Some(confinement) = findings.take(binder.confinement()) else {
        return true;
    };
    findings.take(confinement::check(&[confinement], is_strict));
    let low = Capability::CAP_NET_BIND_SERVICE.bitmask();
    // Where that cannot be read, nothing is claimed.
    let may = proc::Status::of(binder.pid()).map_or(true, |status| status.permitted & low != 0);
    findings.take(binder.end().map_err(channel_failed));
    may
}

struct Port<'a> {
    spec: &'a PortSpec,
    planned: &'a Planned,
    may_bind_low: bool,
    beside: bool,
}

impl Port<'_> {
    /// Its address, unless it is the launcher's or cannot be had. Those before it are `ours`.
    fn examine(
        &self,
        ours: &[(Transport, SocketAddr)],
        inherited: &mut Vec<Inherited>,
        findings: &mut Findings,
    ) -> Option<(Transport, SocketAddr)> {
        let Port { spec, planned, .. } = *self;
        let address = findings.take(resolve(spec))?;
        let is_meant = |one: &Inherited| one.is_at(spec.transport, address.ip, address.port);
        if let Some(taken) = take_first(inherited, is_meant) {
            findings.would(taken_over(&taken));
            return None;
        }
        let address = SocketAddr::from((address.ip, address.port));
        let is_low = spec.port != 0 && u32::from(spec.port) < low_ports::first_unprivileged();
        let fails = |errno| {
            let refusal = Refusal::Errno(errno);
            cannot_bind(&planned.wanted, &refusal, Some(address.ip()))
        };
        let mut before = ours.iter();
        if is_low && !self.may_bind_low {
            findings.fails(fails(libc::EACCES));
        } else if before.any(|one| one.0 == spec.transport && excludes(one.1, address)) {
            findings.fails(fails(libc::EADDRINUSE).hint(remedy::HELD_BY_OURSELVES));
        } else if !self.beside && is_taken(spec.transport, address) {
            findings.fails(fails(libc::EADDRINUSE));
        } else {
            let (kind, given) = (kind_of(spec.transport), planned.wanted.given());
            findings.would(format!("listens on {kind} {address} ({given})"));
            return Some((spec.transport, address));
        }
        None
    }
}

/// Whether one keeps the other from being bound: it is the same, or one is all addresses of their family.
fn excludes(one: SocketAddr, other: SocketAddr) -> bool {
    let (ip, other_ip) = (one.ip(), other.ip());
    let is_same = ip == other_ip || ip.is_unspecified() || other_ip.is_unspecified();
    one.port() != 0 && one.port() == other.port() && one.is_ipv4() == other.is_ipv4() && is_same
}

/// Whether another socket has the address, or all addresses of its family.
fn is_taken(transport: Transport, wanted: SocketAddr) -> bool {
    let found = match transport {
        Transport::Tcp => sock_diag::tcp(&[State::Listen], |it| excludes(wanted, it.local)),
        Transport::Udp => sock_diag::udp(|it| excludes(wanted, it.local)),
    };
    // Where the kernel does not tell, nothing is claimed.
    found.is_ok_and(|sockets| !sockets.is_empty())
}

fn examine_path(
    spec: &PathSpec,
    planned: &Planned,
    beside: bool,
    expected: &Expected,
    findings: &mut Findings,
) {
    let wanted = &planned.wanted;
    if let Maker::Ourselves { objection, .. } = &planned.maker
        && spec.abstract_name().is_none()
        && !expected.covers(&spec.path)
    {
        let examined = place_of(spec).map(drop).and_then(|()| {
            access::can_make(&spec.path, expected).map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(libc::EACCES);
                Refusal::Errno(errno)
            })
        });
        match examined {
            Err(Refusal::Served) if beside => {}
            Err(refusal) => {
                let objection = objection.as_ref();
                return findings.fails(cannot_bind_ourselves(wanted, &refusal, objection));
            }
            Ok(()) => {}
        }
    }
    let (path, given) = (quoted(&spec.path), wanted.given());
    match spec.abstract_name() {
        Some(_) => findings.would(format!("listens on the abstract socket {path} ({given})")),
        None => {
            let mode = spec.mode;
            findings.would(format!("listens on unix {path}, mode {mode:04o} ({given})"));
        }
    }
}
