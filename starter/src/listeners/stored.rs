//! What is done with the sockets that an earlier start has stored with the service manager: those that can be served again
//! become listeners as if they had just been made, the others leave the store.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use common::stat::has_type;
use common::unix_socket::MadeFile;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::listeners::inherited::{Inherited, take_first};
use crate::listeners::launchers_file::LaunchersFile;
use crate::listeners::plan::{Maker, Planned, Wanted};
use crate::listeners::second_name::{Named, named};
use crate::listeners::sockets;
use crate::listeners::spec::PathSpec;
use crate::listeners::store::{Store, name_of_lane, name_of_path, name_of_port};
use crate::listeners::user_directory::UserDirectory;
use crate::words::notice::Notice;
use crate::words::text::quoted;

/// The names that the listeners have in the store; `None` for what is not stored.
pub fn names(sockets: &[Planned]) -> Vec<Option<String>> {
    let mut ordinals: BTreeMap<String, usize> = BTreeMap::new();
    let name_of = |planned: &Planned| match (&planned.wanted, &planned.maker) {
        (_, Maker::FileBinder(_)) => None,
        (_, Maker::Launcher(inherited)) if inherited.stored_name().is_none() => None,
        (Wanted::Port(spec), _) => {
            let ordinal = ordinals.entry(name_of_port(spec, 0)).or_default();
            *ordinal += 1;
            Some(name_of_port(spec, *ordinal - 1))
        }
        (Wanted::Path { spec, .. }, _) => Some(name_of_path(spec)),
        (Wanted::PassedOn { .. }, _) => None,
    };
    sockets.iter().map(name_of).collect()
}

/// The further lanes of each listener that are stored, in the order of their places as far as none lacks; at most so many
/// that there are `lanes`. All others are unwanted: closed last, they leave those before them in their places.
pub fn settle_lanes(
    sockets: &[Planned],
    mut stored: Vec<Inherited>,
    lanes: u8,
    unwanted: &mut Vec<Inherited>,
    store: &mut Option<Store>,
) -> Vec<Vec<OwnedFd>> {
    let names = names(sockets);
    let mut all = Vec::new();
    for (planned, name) in sockets.iter().zip(&names) {
        let mut taken = Vec::new();
        let first = planned.stored();
        let earlier = first.and_then(Inherited::stored_name);
        let earlier = earlier.and_then(|name| name.to_str());
        // Whoever can write to the store can give a name to anything.
        let is_beside = |one: &Inherited| {
            first
                .is_some_and(|first| first.kind() == one.kind() && first.address() == one.address())
        };
        for place in 1..usize::from(lanes) {
            let its_name = earlier.map(|earlier| name_of_lane(earlier, place));
            let is_its = |one: &Inherited| {
                let is_named = one.stored_name() == its_name.as_ref().map(OsStr::new);
                its_name.is_some() && is_named && is_beside(one)
            };
            let found = take_first(&mut stored, is_its);
            let Some(socket) = found.and_then(|mut one| one.take_socket()) else {
                break;
            };
            // As a new one is.
            let _ = sockets::make_blocking(&socket);
            if let (Some(store), Some(its_name)) = (store.as_mut(), its_name) {
                match name.as_deref() == earlier {
                    true => store.has(&its_name),
                    false => store.remove(its_name.as_ref()),
                }
            }
            taken.push(socket);
        }
        all.push(taken);
    }
    unwanted.extend(stored);
    all
}

/// Finds the files of the stored unix sockets, by the place of their listener, and gives up those sockets that have lost
/// theirs. Whatever is not wanted any more is closed, and the manager has closed it too when this returns: its address is
/// free then.
pub fn settle(
    sockets: &mut [Planned],
    mut unwanted: Vec<Inherited>,
    store: &mut Option<Store>,
    notices: &mut Vec<Notice>,
) -> BTreeMap<usize, MadeFile<UserDirectory>> {
    let mut files = BTreeMap::new();
    for (place, Planned { wanted, maker }) in sockets.iter_mut().enumerate() {
        let (Wanted::Path { spec, uid, gid }, Maker::Ourselves { stored, .. }) = (wanted, maker)
        else {
            continue;
        };
        if spec.abstract_name().is_some() {
            continue;
        }
        let file = stored.as_ref().and_then(|it| file_of(it, spec, *uid, *gid));
        match file {
            Some(file) => drop(files.insert(place, file)),
            None => unwanted.extend(stored.take()),
        }
    }
    let names = names(sockets);
    let mut keys = Vec::new();
    for (planned, name) in sockets.iter().zip(&names) {
        let Some(stored) = planned.stored() else {
            continue;
        };
        keys.push(quoted(planned.wanted.name(stored.address())));
        // As a new one is, whatever earlier workers wanted. If that fails, the workers find out.
        let _ = stored.socket().map(sockets::make_blocking);
        if let (Some(store), Some(earlier)) = (store.as_mut(), stored.stored_name()) {
            match name.as_deref() {
                Some(name) if earlier == name => store.has(name),
                // It is stored once more, with the name that it has now.
                _ => store.remove(earlier),
            }
        }
    }
    notices.extend((!keys.is_empty()).then_some(Notice::TookBack { keys }));
    if unwanted.is_empty() {
        return files;
    }
    if let Some(store) = store {
        let names = unwanted.iter().filter_map(Inherited::stored_name);
        names.for_each(|name| store.remove(name));
        drop(unwanted);
        store.wait();
    }
    files
}

/// The file of a stored socket, if it is still at its path, with the mode and the owners that are wanted now.
fn file_of(
    stored: &Inherited,
    spec: &PathSpec,
    uid: Option<u32>,
    gid: Option<u32>,
) -> Option<MadeFile<UserDirectory>> {
    let socket = stored.socket()?;
    let name = spec.path.file_name()?.to_owned();
    let parent = spec.path.parent().filter(|it| *it != Path::new(""));
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let directory = parent.unwrap_or(Path::new("."));
    let directory = open(directory, flags | OFlag::O_DIRECTORY, Mode::empty()).ok()?;
    let file = open(&spec.path, flags | OFlag::O_NOFOLLOW, Mode::empty()).ok()?;
    // In this order: what is open now is what has the name.
    let is_its_own = LaunchersFile::of(&spec.path, socket).is_certainly_there()
        && named(&spec.path, &file) == Named::Itself;
    let stat = fstat(&file).ok()?;
    let is_as_wanted = stat.st_mode & 0o777 == spec.mode
        && uid.is_none_or(|uid| uid == stat.st_uid)
        && gid.is_none_or(|gid| gid == stat.st_gid);
    (is_its_own && is_as_wanted && has_type(&stat, SFlag::S_IFSOCK))
        .then(|| MadeFile::of(UserDirectory(directory), name, Some(file)))
}
