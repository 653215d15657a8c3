//! The user to become: `--user` and `--group`, looked up while still root. Host names are never looked up here.

use std::ffi::{CString, OsString};

use caps::Capability;
use common::message::Identity;
use common::privileges;
use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgid, getgrouplist, getuid};
use serde::{Deserialize, Serialize};

use crate::words::failure::Failure;
use crate::words::remedy;
use crate::words::text::quoted;

/// Where the user database names none (passwd(5)).
const DEFAULT_SHELL: &str = "/bin/sh";

const NO_SUCH_USER: &str = "there is no such user";

/// What can be chosen about the user of the workers, by name or number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub user: Option<String>,
    /// Only together with `user`.
    pub group: Option<String>,
    /// The workers get root's environment as it is. Only together with `user`.
    pub keeps_environment: bool,
}

/// A user to become.
#[derive(Debug)]
pub struct Account {
    pub identity: Identity,
    pub login: Login,
}

/// What a user finds in its environment when it logs in (environ(7)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    name: OsString,
    home: OsString,
    shell: OsString,
}

impl Login {
    fn of(user: &User) -> Login {
        let or = |value: OsString, default: &str| match value.is_empty() {
            true => default.into(),
            false => value,
        };
        Login {
            name: user.name.clone().into(),
            home: or(user.dir.clone().into(), "/"),
            shell: or(user.shell.clone().into(), DEFAULT_SHELL),
        }
    }

    /// Of a user that is only a number. As with systemd, the number is its name.
    pub fn without_entry(uid: u32) -> Login {
        Login {
            name: uid.to_string().into(),
            home: "/".into(),
            shell: DEFAULT_SHELL.into(),
        }
    }

    /// The variables that setpriv(1), sudo(8) and systemd set as well.
    pub fn variables(&self) -> [(&'static str, OsString); 4] {
        [
            ("HOME", self.home.clone()),
            ("USER", self.name.clone()),
            ("LOGNAME", self.name.clone()),
            ("SHELL", self.shell.clone()),
        ]
    }
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
    .hint(remedy::NO_SETUID_BIT))
}

/// The user of the workers; `None` if there is nothing to drop.
///
/// # Errors
/// Root without an ordinary user to become, an ordinary user that names another, unknown names.
pub fn identify(settings: &Settings) -> Result<Option<Account>, Failure> {
    match (geteuid().is_root(), settings.user.as_deref()) {
        (true, Some(user)) => {
            let account = ordinary_user(user, settings.group.as_deref())?;
            can_become(user)?;
            Ok(Some(account))
        }
        (true, None) => Err(Failure::usage(
            "cannot start as root without --user: workers never run as root",
        )
        .hint(remedy::NAME_THE_USER)),
        (false, Some(user)) => Err(Failure::usage(format!(
            "cannot use --user={}: only root can change the user",
            quoted(user)
        ))
        .hint(remedy::ROOT_OR_YOURSELF)),
        (false, None) => Ok(None),
    }
}

/// Root may lack these capabilities in a container.
fn can_become(user: &str) -> Result<(), Failure> {
    let cannot =
        |cause: &str| Failure::failed(format!("cannot become --user={}: {cause}", quoted(user)));
    let needed = [Capability::CAP_SETUID, Capability::CAP_SETGID];
    let available = privileges::available(&needed).map_err(|error| cannot(&error.to_string()))?;
    match needed.iter().find(|one| !available.contains(one)) {
        None => Ok(()),
        Some(missing) => {
            Err(cannot(&format!("root lacks {missing} here")).hint(remedy::CAPABILITY_OR_THE_USER))
        }
    }
}

/// Whether root is root of a user namespace that does not have all users (user_namespaces(7), "uid_map"). It may be unable
/// to become one of the others, whatever its capabilities.
pub fn is_in_partial_namespace() -> bool {
    let maps = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<&str> = maps.split_whitespace().collect();
    !matches!(words[..], [] | ["0", "0", "4294967295"])
}

fn ordinary_user(name: &str, group: Option<&str>) -> Result<Account, Failure> {
    let cannot =
        |cause: &str| Failure::failed(format!("cannot use --user={}: {cause}", quoted(name)));
    let user = find_user(name).map_err(|errno| cannot(errno.desc()))?;
    let uid = match &user {
        Some(user) => user.uid.as_raw(),
        None => number(name)
            .ok_or_else(|| cannot(NO_SUCH_USER).hint_if(remedy::of_user_and_group(name)))?,
    };
    if uid == 0 {
        return Err(Failure::usage(format!(
            "cannot use --user={}: its uid is 0, and workers never run as root",
            quoted(name)
        ))
        .hint(remedy::AN_ORDINARY_USER));
    }
    let group = group.map(|group| {
        gid(group).map_err(|cause| {
            Failure::failed(format!("cannot use --group={}: {cause}", quoted(group)))
        })
    });
    match (user, group.transpose()?) {
        (Some(user), gid) => account_of(user, gid),
        // As in a container without a user database.
        (None, Some(gid)) => Ok(Account {
            identity: Identity {
                uid,
                gid,
                groups: vec![gid],
            },
            login: Login::without_entry(uid),
        }),
        (None, None) => Err(cannot(NO_SUCH_USER).hint(remedy::ADD_THE_GROUP)),
    }
}

/// With this group instead of the one in the entry, and all others that the user is in.
fn account_of(user: User, group: Option<u32>) -> Result<Account, Failure> {
    let login = Login::of(&user);
    let (uid, gid) = (user.uid.as_raw(), group.unwrap_or(user.gid.as_raw()));
    let cannot = |cause: &str| {
        Failure::failed(format!(
            "cannot look up the groups of --user={}: {cause}",
            quoted(&user.name)
        ))
    };
    let name = CString::new(user.name.as_bytes()).map_err(|_| cannot("its name holds a NUL"))?;
    let groups = getgrouplist(&name, Gid::from_raw(gid)).map_err(|errno| cannot(errno.desc()))?;
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    Ok(Account {
        identity: Identity { uid, gid, groups },
        login,
    })
}

/// The uid of a user by name, or else by number; the cause in words if there is none.
pub fn uid(name: &str) -> Result<u32, String> {
    match (find_user(name), number(name)) {
        (Ok(Some(user)), _) => Ok(user.uid.as_raw()),
        // The owner of a file needs no entry.
        (_, Some(number)) => Ok(number),
        (Ok(None), None) => Err(NO_SUCH_USER.into()),
        (Err(errno), None) => Err(errno.desc().into()),
    }
}

/// The gid of a group by name, or else by number; the cause in words if there is none.
pub fn gid(name: &str) -> Result<u32, String> {
    match (found(Group::from_name(name)), number(name)) {
        (Ok(Some(group)), _) => Ok(group.gid.as_raw()),
        (_, Some(number)) => Ok(number),
        (Ok(None), None) => Err("there is no such group".into()),
        (Err(errno), None) => Err(errno.desc().into()),
    }
}

fn find_user(name: &str) -> nix::Result<Option<User>> {
    match (found(User::from_name(name))?, number(name)) {
        (None, Some(number)) => found(User::from_uid(Uid::from_raw(number))),
        (user, _) => Ok(user),
    }
}

/// Where there is no database at all, there is no entry either (getpwnam(3)).
fn found<T>(looked_up: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match looked_up {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        other => other,
    }
}

/// The number of a user or group. The highest is none: to the kernel it means that nothing is to change (setresuid(2)).
fn number(name: &str) -> Option<u32> {
    name.parse().ok().filter(|number| *number != u32::MAX)
}
