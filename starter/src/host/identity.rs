//! The user to become: `--user` and `--group`, looked up while still root. Host names are never looked up here.

use std::ffi::CString;

use caps::Capability;
use common::message::Identity;
use common::privileges;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgid, getgrouplist, getuid};

use crate::words::failure::Failure;

/// Settings for the workers' user, by name or number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub user: Option<String>,
    /// Only together with `user`.
    pub group: Option<String>,
}

/// Refuses a setuid or setgid bit: this program does everything with its launcher's privileges, and never checks what the
/// owner of its file would let another user signal, read or remove.
pub fn refuse_rights_of_another() -> Result<(), Failure> {
    if getuid() == geteuid() && getgid() == getegid() {
        return Ok(());
    }
    Err(Failure::failed(
        "cannot start with a setuid or setgid bit: the launcher's user is not trusted",
    )
    .hint("remove the bit with chmod u-s,g-s"))
}

/// The user of the workers; `None` if there is nothing to drop.
///
/// # Errors
/// Root without an ordinary user to become, an ordinary user who names another, unknown names.
pub fn identify(settings: &Settings) -> Result<Option<Identity>, Failure> {
    match (geteuid().is_root(), settings.user.as_deref()) {
        (true, Some(user)) => {
            let identity = ordinary_user(user, settings.group.as_deref())?;
            can_become(user)?;
            Ok(Some(identity))
        }
        (true, None) => Err(Failure::usage(
            "cannot start as root without --user: workers never run as root",
        )
        .hint("add --user=NAME, the user that the server program runs as")),
        (false, Some(user)) => Err(Failure::usage(format!(
            "cannot use --user={user}: only root can change the user"
        ))
        .hint("start as root, or omit --user to run as yourself")),
        (false, None) => Ok(None),
    }
}

/// Root may lack these capabilities in a container.
fn can_become(user: &str) -> Result<(), Failure> {
    let cannot = |cause: &str| Failure::failed(format!("cannot become --user={user}: {cause}"));
    let needed = [Capability::CAP_SETUID, Capability::CAP_SETGID];
    let available = privileges::available(&needed).map_err(|error| cannot(&error.to_string()))?;
    match needed.iter().find(|one| !available.contains(one)) {
        None => Ok(()),
        Some(missing) => Err(cannot(&format!("root lacks {missing} here"))
            .hint("give the container or unit that capability, or start as the user itself")),
    }
}

fn ordinary_user(name: &str, group: Option<&str>) -> Result<Identity, Failure> {
    let user = user(name)
        .map_err(|cause| Failure::failed(format!("cannot use --user={name}: {cause}")))?;
    if user.uid.is_root() {
        return Err(Failure::usage(format!(
            "cannot use --user={name}: its uid is 0, and workers never run as root"
        ))
        .hint("name the ordinary user that the server program runs as"));
    }
    let gid = match group {
        None => user.gid.as_raw(),
        Some(group) => gid(group)
            .map_err(|cause| Failure::failed(format!("cannot use --group={group}: {cause}")))?,
    };
    let cannot = |cause: &str| {
        Failure::failed(format!(
            "cannot look up the groups of --user={name}: {cause}"
        ))
    };
    let login = CString::new(user.name).map_err(|_| cannot("its name contains a NUL"))?;
    let groups = getgrouplist(&login, Gid::from_raw(gid)).map_err(|errno| cannot(errno.desc()))?;
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    Ok(Identity {
        uid: user.uid.as_raw(),
        gid,
        groups,
    })
}

/// The uid of a user by name, or else by number; the cause in words if there is none.
pub fn uid(name: &str) -> Result<u32, String> {
    match (user(name), name.parse()) {
        (Ok(user), _) => Ok(user.uid.as_raw()),
        // The owner of a file needs no entry in the user database.
        (Err(_), Ok(number)) => Ok(number),
        (Err(cause), Err(_)) => Err(cause),
    }
}

/// The gid of a group by name, or else by number; the cause in words if there is none.
pub fn gid(name: &str) -> Result<u32, String> {
    match (Group::from_name(name), name.parse()) {
        (Ok(Some(group)), _) => Ok(group.gid.as_raw()),
        (_, Ok(number)) => Ok(number),
        (Ok(None), Err(_)) => Err("there is no such group".into()),
        (Err(errno), Err(_)) => Err(errno.desc().into()),
    }
}

fn user(name: &str) -> Result<User, String> {
    let by_number = || match name.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => Ok(None),
    };
    let found = User::from_name(name).and_then(|found| match found {
        Some(user) => Ok(Some(user)),
        None => by_number(),
    });
    match found {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err("there is no such user".into()),
        Err(errno) => Err(errno.desc().into()),
    }
}
