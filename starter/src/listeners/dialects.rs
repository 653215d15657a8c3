//! How a worker learns about its sockets: always by `SERVER_STARTER_PORT`, by other conventions as `--fd-env` names them.

use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::listeners::listener::Listener;
use crate::words::failure::Failure;
use crate::words::text::quoted;

/// Environment variables that announce sockets to a worker, beside `SERVER_STARTER_PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Only if no listener chooses its descriptor.
    Systemd,
    /// Only if every listener is a stream socket.
    Unicorn,
    Nginx,
    Einhorn,
    /// Only if every listener is a TCP port: it removes the file of a unix socket when it ends.
    PhpFpm,
}

/// A socket as a worker knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Its key in `SERVER_STARTER_PORT`.
    pub name: OsString,
    /// Its descriptor number.
    pub number: RawFd,
    /// Its name in the launcher's `LISTEN_FDNAMES`, if it is from there.
    pub given_name: Option<OsString>,
}

impl From<&Listener> for Announced {
    fn from(listener: &Listener) -> Announced {
        Announced {
            name: listener.name.clone(),
            number: listener.number,
            given_name: listener.inherited.as_ref().and_then(|it| it.name.clone()),
        }
    }
}

/// A variable and its value.
type Variable = (OsString, OsString);

/// The variables that are the same in every worker. `LISTEN_PID` is not one of them: it is the worker's own pid.
pub fn variables(listeners: &[Announced], dialects: &[Dialect]) -> Vec<Variable> {
    let mut variables = vec![("SERVER_STARTER_PORT".into(), server_starter_port(listeners))];
    for dialect in dialects {
        variables.extend(in_dialect(listeners, *dialect));
    }
    variables
}

/// The variables of systemd, for a worker that gets other descriptors after its listeners: each with its name and number.
pub fn with_kept(listeners: &[Announced], kept: &[(&str, BorrowedFd<'_>, RawFd)]) -> Vec<Variable> {
    let kept = kept.iter().map(|(name, _, number)| Announced {
        name: name.into(),
        number: *number,
        given_name: None,
    });
    let all: Vec<Announced> = listeners.iter().cloned().chain(kept).collect();
    in_dialect(&all, Dialect::Systemd)
}

/// Refuses what the launcher has passed on, if a dialect cannot describe it, and a descriptor for something else that would
/// be amidst the listeners. What the options alone say was checked with them.
pub fn check(
    listeners: &[Listener],
    dialects: &[Dialect],
    reserved: Option<RawFd>,
) -> Result<(), Failure> {
    let cannot = |dialect: &str, cause: String| {
        Err(Failure::failed(format!(
            "cannot use --fd-env={dialect}: {cause}"
        )))
    };
    let mut inherited = listeners.iter().filter(|one| one.inherited.is_some());
    let restricted: [(Dialect, &str, &[&str], &str); 2] = [
        (
            Dialect::Unicorn,
            "unicorn",
            &["tcp", "unix"],
            "stream sockets",
        ),
        (Dialect::PhpFpm, "php-fpm", &["tcp"], "TCP ports"),
    ];
    for (dialect, word, kinds, taken) in restricted {
        if dialects.contains(&dialect)
            && let Some(one) = inherited.clone().find(|one| !kinds.contains(&one.kind))
        {
            let (name, kind) = (quoted(&one.name), one.kind);
            return cannot(
                word,
                format!("it takes {taken} only, but the inherited {name} is {kind}"),
            );
        }
    }
    let free = 3 + listeners.len();
    let is_amidst = |number: &RawFd| usize::try_from(*number).is_ok_and(|number| number < free);
    if dialects.contains(&Dialect::Systemd)
        && inherited.next().is_some()
        && let Some(number) = reserved.filter(is_amidst)
    {
        return cannot(
            "systemd",
            format!(
                "it numbers all listeners, those of the launcher too, from 3 without gaps, but --ready=fd:{number} is \
                 amidst them: the first free one is {free}"
            ),
        );
    }
    Ok(())
}

/// Prepares the sockets as a dialect requires, before the first worker has them: all workers share the flag.
///
/// An nginx master leaves its sockets non-blocking, and its successor relies on it: with blocking ones, a worker that loses
/// the race for a connection would hang in accept(2).
pub fn prepare(listeners: &[Listener], dialects: &[Dialect]) -> Result<(), Failure> {
    if !dialects.contains(&Dialect::Nginx) {
        return Ok(());
    }
    let lanes = listeners.iter().flat_map(|listener| {
        let others = listener.group.iter().flat_map(|group| &group.others);
        let sockets = std::iter::once(&listener.socket).chain(others);
        sockets.map(move |socket| (listener, socket))
    });
    for (listener, socket) in lanes {
        let flags = fcntl(socket, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        flags
            .and_then(|flags| fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
            .map_err(|errno| {
                let name = quoted(&listener.name);
                Failure::failed(format!(
                    "cannot make the socket of {name} non-blocking: {}",
                    errno.desc()
                ))
            })?;
    }
    Ok(())
}

/// `KEY=NUMBER` for every listener, with semicolons between them.
/// The value of `SERVER_STARTER_PORT`.
pub fn server_starter_port(listeners: &[Announced]) -> OsString {
    joined(listeners, ";", |listener| {
        let mut text = listener.name.clone();
        text.push(format!("={}", listener.number));
        text
    })
}

fn in_dialect(listeners: &[Announced], dialect: Dialect) -> Vec<Variable> {
    let numbers = |separator| {
        joined(listeners, separator, |listener| {
            listener.number.to_string().into()
        })
    };
    let count = OsString::from(listeners.len().to_string());
    match dialect {
        // sd_listen_fds(3).
        Dialect::Systemd => vec![
            ("LISTEN_FDS".into(), count),
            (
                "LISTEN_FDNAMES".into(),
                joined(listeners, ":", |listener| {
                    systemd_name(listener.given_name.as_ref().unwrap_or(&listener.name))
                }),
            ),
        ],
        // What a unicorn master leaves to its successor.
        Dialect::Unicorn => vec![("UNICORN_FD".into(), numbers(","))],
        // What an nginx master leaves to its successor: each number followed by a semicolon.
        Dialect::Nginx => {
            let mut value = numbers(";");
            if !value.is_empty() {
                value.push(";");
            }
            vec![("NGINX".into(), value)]
        }
        // What einhorn gives the servers that it runs.
        Dialect::Einhorn => {
            let each = listeners.iter().enumerate().map(|(place, listener)| {
                (
                    format!("EINHORN_FD_{place}").into(),
                    listener.number.to_string().into(),
                )
            });
            let all = [
                ("EINHORN_FD_COUNT".into(), count),
                ("EINHORN_FDS".into(), numbers(" ")),
            ];
            all.into_iter().chain(each).collect()
        }
        // What a php-fpm master leaves to its successor: it finds a socket by the address in its own `listen`.
        Dialect::PhpFpm => vec![(
            "FPM_SOCKETS".into(),
            joined(listeners, ",", |listener| {
                let mut text = php_fpm_key(&listener.name);
                text.push(format!("={}", listener.number));
                text
            }),
        )],
    }
}

/// An address as php-fpm writes it: all of it, and without the brackets of IPv6.
fn php_fpm_key(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    match bytes.iter().all(u8::is_ascii_digit) {
        true => [OsStr::new("0.0.0.0:"), name].into_iter().collect(),
        false => {
            let is_plain = |byte: &u8| !b"[]".contains(byte);
            OsString::from_vec(bytes.iter().copied().filter(is_plain).collect())
        }
    }
}

/// Colons separate the names, and control characters are not allowed in one (sd_listen_fds_with_names(3)).
fn systemd_name(name: &OsStr) -> OsString {
    let allowed = |byte: &u8| {
        if *byte == b':' || !(b' '..=b'~').contains(byte) {
            b'_'
        } else {
            *byte
        }
    };
    OsString::from_vec(name.as_bytes().iter().map(allowed).collect())
}

fn joined(
    listeners: &[Announced],
    separator: &str,
    part: impl Fn(&Announced) -> OsString,
) -> OsString {
    let parts: Vec<OsString> = listeners.iter().map(part).collect();
    parts.join(OsStr::new(separator))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn listeners(names: &[&str]) -> Vec<Announced> {
        (3..)
            .zip(names)
            .map(|(number, name)| Announced {
                name: name.into(),
                number,
                given_name: None,
            })
            .collect()
    }

    fn texts(names: &[&str], dialect: Dialect) -> Vec<(String, String)> {
        let text = |one: OsString| one.into_string().unwrap();
        in_dialect(&listeners(names), dialect)
            .into_iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn each_dialect_is_written_as_its_programs_read_it() {
        let names = ["80", "[::1]:81"];
        assert_eq!(server_starter_port(&listeners(&names)), "80=3;[::1]:81=4");
        assert_eq!(
            texts(&names, Dialect::Systemd),
            pairs(&[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "80:[__1]_81")])
        );
        assert_eq!(
            texts(&names, Dialect::Unicorn),
            pairs(&[("UNICORN_FD", "3,4")])
        );
        assert_eq!(texts(&names, Dialect::Nginx), pairs(&[("NGINX", "3;4;")]));
        assert_eq!(
            texts(&names, Dialect::PhpFpm),
            pairs(&[("FPM_SOCKETS", "0.0.0.0:80=3,::1:81=4")])
        );
        let einhorn = [
            ("EINHORN_FD_COUNT", "2"),
            ("EINHORN_FDS", "3 4"),
            ("EINHORN_FD_0", "3"),
            ("EINHORN_FD_1", "4"),
        ];
        assert_eq!(texts(&names, Dialect::Einhorn), pairs(&einhorn));
    }

    #[test]
    fn systemd_gets_the_names_that_the_launcher_gave() {
        let mut listeners = listeners(&["80", "81"]);
        listeners[1].given_name = Some("web".into());
        let names = &in_dialect(&listeners, Dialect::Systemd)[1];
        assert_eq!(names.1, "80:web");
    }

    #[test]
    fn without_listeners_the_variable_is_empty() {
        assert_eq!(server_starter_port(&[]), "");
        assert_eq!(texts(&[], Dialect::Nginx), pairs(&[("NGINX", "")]));
    }
}
