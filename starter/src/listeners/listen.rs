//! The last step: every socket listens, has its number in the workers, and gets its lanes.

use std::os::fd::{AsFd, OwnedFd, RawFd};

use crate::host::open_files::{OpenFiles, duplicate_above};
use crate::listeners::backlog::Backlog;
use crate::listeners::binder::channel_failed;
use crate::listeners::group::{self, Group, Making};
use crate::listeners::listener::{FromLauncher, Listener};
use crate::listeners::numbers::{Reserved, make_more_room, make_room, numbers};
use crate::listeners::plan::{Planned, Wanted};
use crate::listeners::refusal::cannot_bind;
use crate::listeners::settings::Switch;
use crate::listeners::sockets::{self, bound_address};
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::switch::{self, Switching};

/// How they listen.
#[derive(Debug, Clone, Copy)]
pub struct Ways {
    pub reserved: Reserved,
    pub backlog: Backlog,
    pub switch: Option<Switch>,
}

/// Listens on every socket, assigns its number in the workers (fixed ones first, the others from 3 on), and moves it above
/// all these numbers, so that placing them in a child cannot overwrite one.
pub fn listen_on(
    sockets: &[Planned],
    made: Vec<Vec<OwnedFd>>,
    ways: Ways,
    open_files: OpenFiles,
    notices: &mut Vec<Notice>,
) -> Result<Vec<Listener>, Failure> {
    let fixed = sockets.iter().map(|planned| planned.wanted.fixed_number());
    let fixed: Vec<Option<RawFd>> = fixed.collect();
    let numbers = numbers(&fixed, ways.reserved.number);
    let highest = numbers.iter().copied().chain(ways.reserved.number).max();
    let highest = highest.unwrap_or(2);
    let lanes = ways.switch.map_or(1, |switch| {
        // With flows one more, to which nothing comes.
        usize::from(switch.sockets()) + usize::from(switch.flows.is_some())
    });
    make_room(highest, sockets.len() * lanes, open_files)?;
    let highest = make_more_room(highest, sockets.len(), ways.reserved.after, open_files)?;
    let mut listeners = Vec::with_capacity(sockets.len());
    for ((planned, mut made), number) in sockets.iter().zip(made).zip(numbers) {
        let listener = listener(planned, &mut made, number, highest, ways, notices)?;
        let wanted = &planned.wanted;
        if let Some(address) = listener.address.filter(|_| wanted.is_chosen_by_kernel()) {
            let given = wanted.given();
            notices.push(Notice::PortChosen { given, address });
        }
        if wanted.fixed_number().is_some() {
            notices.push(Notice::Duplicated { descriptor: number });
        }
        listeners.push(listener);
    }
    if listeners.iter().any(|one| one.backlog.is_some()) {
        notices.extend(ways.backlog.notice());
    }
    if ways.switch.is_some() {
        let shared = listeners.iter().filter(|one| one.group.is_none());
        let shared: Vec<String> = shared.map(Listener::place).collect();
        notices
            .extend((!shared.is_empty()).then_some(Notice::Switching(Switching::Shared(shared))));
    }
    Ok(listeners)
}

/// Lets the first of the sockets that were made listen, and makes it one of a group where that is wanted and possible.
fn listener(
    planned: &Planned,
    made: &mut Vec<OwnedFd>,
    number: RawFd,
    highest: RawFd,
    ways: Ways,
    notices: &mut Vec<Notice>,
) -> Result<Listener, Failure> {
    let wanted = &planned.wanted;
    let further = made.split_off(made.len().min(1));
    let Some(socket) = made.pop() else {
        return Err(channel_failed("a socket is missing"));
    };
    let socket = duplicate_above(socket.as_fd(), highest).map_err(|errno| {
        Failure::failed(format!("cannot keep {}: {}", wanted.given(), errno.desc()))
    })?;
    let address = bound_address(&socket);
    let switch = ways.switch.filter(|_| planned.can_switch());
    let is_silent = wanted.listens() && sockets::listens(&socket) != Ok(true);
    // Of an earlier process, which may have left the first one shut down.
    let first_is_last = is_silent && further.iter().any(|one| sockets::listens(one) == Ok(true));
    let way = match (switch, first_is_last) {
        (None, _) => Way::Plain,
        (Some(_), false) => Way::Alone,
        (Some(_), true) => Way::Beside,
    };
    let granted = listen_if_needed(planned, &socket, ways.backlog, way).map_err(|errno| {
        let ip = address.map(|address| address.ip());
        cannot_bind(wanted, &errno.into(), ip)
    })?;
    let group = match switch {
        None => None,
        Some(switch) => {
            let making = Making {
                lanes: switch.sockets(),
                freebind: matches!(wanted, Wanted::Port(spec) if spec.freebind),
                backlog: wanted.listens().then_some(ways.backlog.number()),
                highest,
                first_is_last,
                flows: switch.flows.filter(|_| !wanted.listens()),
            };
            group(planned, &socket, further, (switch, making), notices)?
        }
    };
    Ok(Listener {
        name: wanted.name(address),
        kind: wanted.kind(),
        address,
        socket,
        group,
        number,
        backlog: granted,
        inherited: planned.inherited().map(|one| FromLauncher {
            name: one.name.clone(),
        }),
    })
}

/// The group of a listener whose first socket listens, if it can be one.
fn group(
    planned: &Planned,
    first: &OwnedFd,
    further: Vec<OwnedFd>,
    (switch, making): (Switch, Making),
    notices: &mut Vec<Notice>,
) -> Result<Option<Group>, Failure> {
    let given = || planned.wanted.given();
    match Group::form(first, further, making) {
        Ok(group) => Ok(Some(group)),
        Err(errno) if switch.is_required => Err(switch::no_lanes(&given(), errno)),
        Err(errno) => {
            let given = given();
            notices.push(Notice::Switching(Switching::NoLanes { given, errno }));
            Ok(None)
        }
    }
}

/// How the first socket of a listener begins to listen.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// It is the only one.
    Plain,
    /// Before all others of its group, and as nobody's but ours.
    Alone,
    /// While others of its group do.
    Beside,
}

/// Lets the socket listen, if it is a stream socket. One that the launcher lets listen already does so as it says, unless
/// `--backlog` asks for something else. Returns how many connections may wait there, if that is known.
fn listen_if_needed(
    planned: &Planned,
    socket: &OwnedFd,
    backlog: Backlog,
    way: Way,
) -> nix::Result<Option<u32>> {
    if !planned.wanted.listens() {
        return Ok(None);
    }
    let is_inherited = planned.inherited().is_some();
    if is_inherited && !backlog.is_asked() && sockets::listens(socket)? {
        return Ok(sockets::backlog_of(socket).ok().flatten());
    }
    match way {
        Way::Alone if !sockets::listens(socket)? => group::listen_alone(socket, backlog.number())?,
        Way::Beside => group::listen_beside(socket, backlog.number())?,
        Way::Alone | Way::Plain => sockets::listen(socket, backlog.number())?,
    }
    Ok(Some(backlog.granted()))
}
