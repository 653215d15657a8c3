//! The environment that the launcher has given to this process, and which parts of it our children must not get.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use crate::host::identity::Login;
use crate::host::own_program::{OF_GUARDIAN, VARIABLE};

/// A change to the launcher's environment; without a value the variable is removed.
pub type Change = (OsString, Option<OsString>);

/// Variables that are addressed to this process alone. A worker that found them would answer the sender in our place,
/// or take whatever has the announced descriptor numbers for its sockets: we have closed all inherited descriptors but
/// 0 to 2.
const TOLD_TO_US: [&str; 15] = [
    // A service manager: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).
    "NOTIFY_SOCKET",
    "FDSTORE",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    // Servers that execute their own successor: unicorn, nginx, gunicorn, php-fpm.
    "UNICORN_FD",
    "NGINX",
    "GUNICORN_FD",
    "GUNICORN_PID",
    "FPM_SOCKETS",
    // Another version of this program.
    VARIABLE,
    OF_GUARDIAN,
];

/// The same by prefix, where a number follows or more names may be added: another superdaemon, einhorn, puma.
const TOLD_TO_US_BY_PREFIX: [&str; 3] = ["SERVER_STARTER_", "EINHORN_", "PUMA_INHERIT_"];

/// What belongs to a login session: the mailbox, and the directories of the XDG specification.
const OF_SESSION: &str = "MAIL";
const OF_SESSION_BY_PREFIX: &str = "XDG_";

/// How the environment of all our children differs from our own.
#[derive(Debug, Default)]
pub struct Handover(Vec<Change>);

impl Handover {
    /// With a login, the children get that user's name, home and shell instead of root's.
    pub fn new(login: Option<&Login>) -> Handover {
        Handover(changes(std::env::vars_os().map(|(name, _)| name), login))
    }

    /// Applies these changes to a command. Any other change must come later.
    pub fn apply(&self, command: &mut Command) {
        for (name, value) in &self.0 {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }
}

fn changes(names: impl Iterator<Item = OsString>, login: Option<&Login>) -> Vec<Change> {
    let is_for_us = |name: &OsStr| {
        TOLD_TO_US.iter().any(|one| name == *one)
            || begins_with_any(name, &TOLD_TO_US_BY_PREFIX)
            || login.is_some()
                && (name == OF_SESSION || begins_with_any(name, &[OF_SESSION_BY_PREFIX]))
    };
    let removed = names.filter(|name| is_for_us(name));
    let mut changes: Vec<Change> = removed.map(|name| (name, None)).collect();
    if let Some(login) = login {
        let set = login.variables().into_iter();
        changes.extend(set.map(|(name, value)| (name.into(), Some(value))));
    }
    changes
}

fn begins_with_any(name: &OsStr, prefixes: &[&str]) -> bool {
    prefixes
        .iter()
        .any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(names: &[&str], login: Option<&Login>) -> Vec<String> {
        changes(names.iter().map(OsString::from), login)
            .into_iter()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn names_are_removed_whole_or_by_their_beginning() {
        let kept = [
            "PATH",
            "NGINX_VERSION",
            "EINHORN",
            "XUNICORN_FD",
            "MAILTO",
            "LISTEN",
        ];
        assert_eq!(removed(&kept, None), [""; 0]);
        let gone = [
            "UNICORN_FD",
            "EINHORN_FD_17",
            "SERVER_STARTER_PORT",
            "PUMA_INHERIT_0",
        ];
        assert_eq!(removed(&gone, None), gone);
    }

    #[test]
    fn only_with_a_login_a_session_is_left() {
        let names = ["MAIL", "XDG_RUNTIME_DIR", "XDG_"];
        assert_eq!(removed(&names, None), [""; 0]);
        assert_eq!(removed(&names, Some(&Login::without_entry(7))), names);
    }
}
