//! From addresses and paths to listening sockets: resolve, ask the binders, receive, create the rest, number, listen.
//!
//! All of it runs with the user's privileges. What the binders may be asked for was decided before (see `plan`).

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitStatus;

use common::message::{Address, Ask, MOST_DESCRIPTORS, Refusal};
use common::unix_socket::{Made, MadeFile, Place, is_served};
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use nix::sys::stat::Mode;

use crate::host::confinement::{self, OfBinder};
use crate::host::open_files::{OpenFiles, duplicate_above};
use crate::listeners::backlog::Backlog;
use crate::listeners::binder::{Answer, Binder, channel_failed};
use crate::listeners::for_user::Granted;
use crate::listeners::foreign_spelling;
use crate::listeners::inherited::{Inherited, take_first};
use crate::listeners::listen::{Ways, listen_on};
use crate::listeners::listener::Listener;
use crate::listeners::numbers::Reserved;
use crate::listeners::plan::{Maker, Planned, Prepared, Wanted, lanes_of};
use crate::listeners::refusal::{cannot_bind, cannot_bind_ourselves};
use crate::listeners::settings::Switch;
use crate::listeners::socket_files::{OurFile, SocketFiles};
use crate::listeners::sockets;
use crate::listeners::spec::{Host, PathSpec, PortSpec};
use crate::listeners::store::{Store, name_of_lane};
use crate::listeners::stored::{names, settle, settle_lanes};
use crate::listeners::user_directory::UserDirectory;
use crate::words::failure::{self, Failure};
use crate::words::notice::Notice;
use crate::words::switch;
use crate::words::text::quoted;

/// Everything slow has been done.
pub struct Resolved {
    sockets: Vec<Planned>,
    port_asks: Vec<Asked>,
    file_asks: Vec<Asked>,
    port_binder: Option<Binder>,
    file_binder: Option<Binder>,
    for_user: Granted,
    /// What an earlier start has stored, and no option names now.
    unwanted: Vec<Inherited>,
    /// Further lanes that an earlier start has stored.
    stored_lanes: Vec<Inherited>,
    store: Option<Store>,
}

/// The binders have told their confinement, and serve. Dropping it ends them.
pub struct Confined {
    sockets: Vec<Planned>,
    port_asks: Vec<Asked>,
    file_asks: Vec<Asked>,
    port_binder: Option<Binder>,
    for_user: Granted,
    unwanted: Vec<Inherited>,
    stored_lanes: Vec<Inherited>,
    /// With the binder of paths, and where listeners are stored.
    files: SocketFiles,
    binders: Vec<OfBinder>,
}

/// A request to a binder.
struct Asked {
    /// The index of the socket among all.
    place: usize,
    ask: Ask,
    /// How many sockets answer it.
    lanes: usize,
}

/// Everything that was bound, and who removes which part of it at the end.
pub struct Bound {
    pub listeners: Vec<Listener>,
    /// What each of them was to be, in the same order.
    pub planned: Vec<Planned>,
    pub files: SocketFiles,
    /// The confinement of the binders that bound it.
    pub binders: Vec<OfBinder>,
}

impl Prepared {
    /// Resolves the host names, which may take as long as the network wants. Inherited sockets that no option has named by
    /// then are listeners of their own, after those of the options.
    pub fn resolve(self, lanes: u8) -> Result<Resolved, Failure> {
        let Prepared {
            mut sockets,
            port_binder,
            file_binder,
            for_user,
            mut inherited,
            stored_lanes,
            store,
        } = self;
        let (mut port_asks, mut file_asks) = (Vec::new(), Vec::new());
        for (place, planned) in sockets.iter_mut().enumerate() {
            match (&planned.maker, &planned.wanted) {
                (Maker::PortBinder(grant), Wanted::Port(spec)) => {
                    let (grant, address) = (*grant, resolve(spec)?);
                    let is_meant =
                        |one: &Inherited| one.is_at(spec.transport, address.ip, address.port);
                    match take_first(&mut inherited, is_meant) {
                        Some(inherited) => planned.maker = Maker::Launcher(inherited),
                        None => port_asks.push(Asked {
                            place,
                            ask: Ask::Port { grant, address },
                            lanes: lanes_of(spec, lanes).into(),
                        }),
                    }
                }
                (Maker::FileBinder(grant), Wanted::Path { .. }) => {
                    let ask = Ask::Path { grant: *grant };
                    let lanes = 1;
                    file_asks.push(Asked { place, ask, lanes });
                }
                _ => {}
            }
        }
        let is_stored = |one: &Inherited| one.stored_name().is_some();
        let (unwanted, others) = inherited.into_iter().partition(is_stored);
        let others: Vec<Inherited> = others;
        sockets.extend(others.into_iter().map(Planned::passed_on));
        Ok(Resolved {
            sockets,
            port_asks,
            file_asks,
            port_binder,
            file_binder,
            for_user,
            unwanted,
            stored_lanes,
            store,
        })
    }
}

/// One literal address: of a name with several, the first IPv4 one, as in Server::Starter; an IPv6 one only if there is no
/// other.
pub(super) fn resolve(spec: &PortSpec) -> Result<Address, Failure> {
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
            "cannot resolve the host {} of --port={}: {cause}",
            quoted(name),
            quoted(&spec.given)
        ))
        // A scheme of another program looks like a host.
        .hint_if(foreign_spelling::of_port(&spec.given))
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

impl Resolved {
    /// Waits until the binders are confined. With `strict`, those that this kernel cannot fully confine are not used.
    pub fn confine(self, strict: bool, notices: &mut Vec<Notice>) -> Result<Confined, Failure> {
        let Resolved {
            mut port_binder,
            mut file_binder,
            ..
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
        Ok(Confined {
            sockets: self.sockets,
            port_asks: self.port_asks,
            file_asks: self.file_asks,
            port_binder,
            for_user: self.for_user,
            unwanted: self.unwanted,
            stored_lanes: self.stored_lanes,
            files: SocketFiles {
                ours: Vec::new(),
                binder: file_binder,
                store: self.store,
            },
            binders,
        })
    }
}

impl Confined {
    /// Whether root makes what is wanted at this path.
    pub fn makes(&self, path: &Path) -> bool {
        self.for_user.has(path)
    }

    /// Lets root make it; `None` if that is up to the user.
    pub fn make(
        &mut self,
        path: &Path,
        cannot: impl Fn(&str) -> Failure,
    ) -> Result<Option<OwnedFd>, Failure> {
        self.for_user.make(path, self.files.binder.as_mut(), cannot)
    }

    /// Binds everything, in the order of `SERVER_STARTER_PORT`; afterwards all of it listens. The port binder is gone
    /// when this returns, and that of paths if nothing must be removed at the end.
    ///
    /// Adds to `notices`, even on failure.
    pub fn bind(
        self,
        reserved: Reserved,
        backlog: Backlog,
        open_files: OpenFiles,
        switch: Option<Switch>,
        notices: &mut Vec<Notice>,
    ) -> Result<Bound, Failure> {
        let Confined {
            mut sockets,
            port_asks,
            file_asks,
            port_binder,
            for_user,
            mut unwanted,
            stored_lanes,
            mut files,
            binders,
        } = self;
        check_switch(&sockets, switch)?;
        let (lanes, store) = (switch.map_or(1, Switch::sockets), &mut files.store);
        let further = settle_lanes(&sockets, stored_lanes, lanes, &mut unwanted, store);
        let mut restored = settle(&mut sockets, unwanted, store, notices);
        let mut made = take_inherited(&mut sockets, further, notices);
        if let Some(mut binder) = port_binder {
            ask_binder(&mut binder, &sockets, &port_asks, &mut made, notices)?;
            binder.end().map_err(channel_failed)?;
        }
        if let Some(binder) = &mut files.binder {
            refuse_served(&sockets, &file_asks)?;
            ask_binder(binder, &sockets, &file_asks, &mut made, notices)?;
        }
        if file_asks.is_empty() && !for_user.lasts() {
            let binder = files.binder.take();
            binder
                .map_or(Ok(ExitStatus::default()), Binder::end)
                .map_err(channel_failed)?;
        }
        let ours = &mut files.ours;
        make_ours(&sockets, &mut made, &mut restored, ours, notices)?;
        let ways = Ways {
            reserved,
            backlog,
            switch,
        };
        let mut listeners = listen_on(&sockets, made, ways, open_files, notices)?;
        if let Some(store) = &mut files.store {
            keep_all(store, &sockets, &mut listeners);
            notices.extend(store.take_notices());
        }
        Ok(Bound {
            listeners,
            planned: sockets,
            files,
            binders,
        })
    }
}

/// Stores the listeners, each lane under a name of its own.
fn keep_all(store: &mut Store, sockets: &[Planned], listeners: &mut [Listener]) {
    for (name, listener) in names(sockets).into_iter().zip(listeners) {
        let Some(name) = name else { continue };
        store.keep(&name, &listener.socket);
        if let Some(group) = &mut listener.group {
            for (other, place) in group.others.iter().zip(1..) {
                store.keep(&name_of_lane(&name, place), other);
            }
            group.stored_as = Some(name);
        }
    }
}

/// The sockets that need not be made.
fn take_inherited(
    sockets: &mut [Planned],
    further: Vec<Vec<OwnedFd>>,
    notices: &mut Vec<Notice>,
) -> Vec<Vec<OwnedFd>> {
    let mut made = Vec::with_capacity(sockets.len());
    let keys = sockets.iter().filter_map(Planned::inherited);
    let keys: Vec<String> = keys.map(|one| quoted(one.key())).collect();
    notices.extend((!keys.is_empty()).then_some(Notice::TookOver { keys }));
    for (planned, further) in sockets.iter_mut().zip(further) {
        if let Wanted::Path { spec, .. } = &planned.wanted
            && planned.inherited().is_some()
            && spec.has_attributes()
        {
            let given = planned.wanted.given();
            notices.push(Notice::AttributesOfLauncher { given });
        }
        made.push(planned.take_socket().into_iter().chain(further).collect());
    }
    made
}

/// Checks again, because a socket that was bound but not listening when the binder examined it may listen by now, and the
/// binder can no longer connect. If this user may not connect, the binder's finding counts.
fn refuse_served(sockets: &[Planned], asks: &[Asked]) -> Result<(), Failure> {
    for asked in asks {
        let wanted = &sockets[asked.place].wanted;
        if let Wanted::Path { spec, .. } = wanted
            && is_served(&spec.path) == Ok(true)
        {
            return Err(cannot_bind(wanted, &Refusal::Served, None));
        }
    }
    Ok(())
}

/// Refuses what all generations would have to share, where that is not wanted.
fn check_switch(sockets: &[Planned], switch: Option<Switch>) -> Result<(), Failure> {
    let mut shared = sockets.iter().filter(|planned| !planned.can_switch());
    match (switch, shared.next()) {
        (Some(Switch { is_required, .. }), Some(planned)) if is_required => {
            Err(switch::cannot_switch(&planned.wanted.given()))
        }
        _ => Ok(()),
    }
}

/// Fetches the binder's sockets, as many at a time as fit into one message.
fn ask_binder(
    binder: &mut Binder,
    sockets: &[Planned],
    asks: &[Asked],
    made: &mut [Vec<OwnedFd>],
    notices: &mut Vec<Notice>,
) -> Result<(), Failure> {
    for batch in batches(asks) {
        let wanted = batch.iter().map(|asked| asked.lanes).sum();
        let asked = |number: u32| {
            let number = usize::try_from(number).ok()?;
            let Asked { place, ask, .. } = batch.get(number)?;
            let ip = match ask {
                Ask::Port { address, .. } => Some(address.ip),
                Ask::Path { .. } => None,
            };
            Some((&sockets[*place].wanted, ip))
        };
        match binder.bind(batch.iter().map(|asked| asked.ask).collect(), wanted)? {
            Answer::Refused { ask, refusal } => {
                return Err(match asked(ask) {
                    Some((wanted, ip)) => cannot_bind(wanted, &refusal, ip),
                    None => channel_failed("it refused something that was not requested"),
                });
            }
            Answer::Sockets { sockets, replaced } => {
                let mut sockets = sockets.into_iter();
                for asked in batch {
                    made[asked.place] = sockets.by_ref().take(asked.lanes).collect();
                }
                for number in replaced {
                    if let Some((Wanted::Path { spec, .. }, _)) = asked(number) {
                        notices.push(removing_socket(spec));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Each is answered by one message.
fn batches(asks: &[Asked]) -> Vec<&[Asked]> {
    let mut batches = Vec::new();
    let (mut rest, mut end, mut count) = (asks, 0, 0);
    for asked in asks {
        if count + asked.lanes > MOST_DESCRIPTORS {
            let (batch, others) = rest.split_at(end);
            batches.push(batch);
            (rest, end, count) = (others, 0, 0);
        }
        end += 1;
        count += asked.lanes;
    }
    if !rest.is_empty() {
        batches.push(rest);
    }
    batches
}

fn removing_socket(spec: &PathSpec) -> Notice {
    Notice::RemovingSocket {
        path: spec.path.clone(),
    }
}

/// Creates the sockets that are not requested from a binder.
fn make_ours(
    sockets: &[Planned],
    made: &mut [Vec<OwnedFd>],
    restored: &mut BTreeMap<usize, MadeFile<UserDirectory>>,
    files: &mut Vec<OurFile>,
    notices: &mut Vec<Notice>,
) -> Result<(), Failure> {
    for (place, (planned, made)) in sockets.iter().zip(made).enumerate() {
        if let (Wanted::Path { spec, uid, gid }, Maker::Ourselves { objection, .. }) =
            (&planned.wanted, &planned.maker)
        {
            if !made.is_empty() {
                let file = restored.remove(&place);
                files.extend(file.map(|file| OurFile::new(file, spec)));
                continue;
            }
            if let Some(name) = spec.abstract_name() {
                let socket = bind_abstract(name)
                    .map_err(|errno| cannot_bind(&planned.wanted, &errno.into(), None))?;
                made.push(socket);
                continue;
            }
            let Made {
                socket,
                file,
                replaced,
            } = place_of(spec)
                .and_then(|place| place.bind(spec.mode, *uid, *gid))
                .map_err(|refusal| {
                    cannot_bind_ourselves(&planned.wanted, &refusal, objection.as_ref())
                })?;
            files.push(OurFile::new(file, spec));
            notices.extend(replaced.then(|| removing_socket(spec)));
            made.push(socket);
        }
    }
    Ok(())
}

/// A socket without a file: the name lives in the network namespace, for as long as somebody has the socket open.
fn bind_abstract(name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
    Ok(socket)
}

pub(super) fn place_of(spec: &PathSpec) -> Result<Place<UserDirectory>, Refusal> {
    let directory = match spec.path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(directory, flags, Mode::empty())?;
    Place::examine(UserDirectory(directory), &spec.path)
}

/// A new socket that listens at a path that nobody has, in place of one that we have made there.
pub(super) fn make_again(
    spec: &PathSpec,
    (uid, gid): (Option<u32>, Option<u32>),
    backlog: i32,
    highest: RawFd,
) -> Result<(OwnedFd, OurFile), Failure> {
    let wanted = Wanted::Path {
        spec: spec.clone(),
        uid,
        gid,
    };
    let made = place_of(spec).and_then(|place| match place.is_free() {
        true => place.bind(spec.mode, uid, gid),
        false => Err(Refusal::Replaced),
    });
    let Made { socket, file, .. } =
        made.map_err(|refusal| cannot_bind_ourselves(&wanted, &refusal, None))?;
    let file = OurFile::new(file, spec);
    let ready = sockets::listen(&socket, backlog)
        .and_then(|()| duplicate_above(socket.as_fd(), highest))
        .inspect_err(|_| file.remove());
    let socket = ready.map_err(|errno| cannot_bind(&wanted, &errno.into(), None))?;
    Ok((socket, file))
}
