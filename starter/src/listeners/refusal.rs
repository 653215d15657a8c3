//! Why a socket was refused, in words, and the remedy if one is known. Nothing is decided here.

use std::net::IpAddr;

use common::message::{BadPolicy, LARGEST_POLICY, LineFault, POLICY_FILE, Refusal};
use common::trusted_path::Untrusted;
use nix::errno::Errno;
use nix::unistd::getuid;

use crate::host::low_ports;
use crate::listeners::plan::{Wanted, kind_of};
use crate::listeners::spec::{Host, PortSpec};
use crate::listeners::{foreign_spelling, holders, policy_names};
use crate::words::failure::Failure;
use crate::words::file_type::name_of_type;
use crate::words::{distrust, remedy};

/// Why a binder or the kernel refused a socket. `ip` is the literal address of a port, even if a name was typed.
pub fn cannot_bind(wanted: &Wanted, refusal: &Refusal, ip: Option<IpAddr>) -> Failure {
    let hint = match wanted {
        Wanted::Port(spec) => hint_of_port(spec, refusal, ip),
        Wanted::Path { spec, .. } => match refusal {
            Refusal::Errno(libc::EADDRINUSE) if spec.abstract_name().is_some() => {
                Some(remedy::of_abstract_name_in_use(&spec.path))
            }
            Refusal::Served => holders::hint_of_path(&spec.path),
            Refusal::Errno(
                errno @ (libc::ENOTDIR
                | libc::ENAMETOOLONG
                | libc::EROFS
                | libc::ENOSPC
                | libc::EDQUOT),
            ) => remedy::of_file(&spec.path, Errno::from_raw(*errno)),
            // From the change of owner, the only step here for which root needs a capability.
            Refusal::Errno(libc::EPERM) if wanted.owner_is_asked() => {
                Some(remedy::CHOWN_AS_ROOT.to_owned())
            }
            Refusal::Errno(errno) => remedy::of_any_call(Errno::from_raw(*errno)),
            _ => None,
        },
        Wanted::PassedOn { .. } => match refusal {
            Refusal::Errno(errno) => remedy::of_any_call(Errno::from_raw(*errno)),
            _ => None,
        },
    };
    cannot_listen(wanted, &cause(wanted, refusal)).hint_if(hint)
}

/// Why the user was refused a socket at a path; `objection` is why root did not create it, if root started us.
pub fn cannot_bind_ourselves(
    wanted: &Wanted,
    refusal: &Refusal,
    objection: Option<&Untrusted>,
) -> Failure {
    match refusal {
        Refusal::Errno(libc::EACCES) => {
            let hint = match objection {
                Some(objection) => remedy::of_directory_of_others(&distrust::of_path(objection)),
                None => remedy::WRITABLE_DIRECTORY.to_owned(),
            };
            cannot_bind(wanted, refusal, None).hint(hint)
        }
        Refusal::Errno(libc::ENOENT) => {
            let hint = match wanted {
                Wanted::Path { spec, .. } => foreign_spelling::of_path(&spec.path)
                    .or_else(|| remedy::of_file(&spec.path, Errno::ENOENT)),
                Wanted::Port(_) | Wanted::PassedOn { .. } => None,
            };
            cannot_listen(wanted, "its directory does not exist").hint_if(hint)
        }
        // From the change of owner. Without one, the cause is a sticky directory with another user's stale socket.
        Refusal::Errno(libc::EPERM) if wanted.owner_is_asked() => {
            cannot_bind(wanted, refusal, None).hint(remedy::CHOWN_AS_USER)
        }
        _ => cannot_bind(wanted, refusal, None),
    }
}

fn cannot_listen(wanted: &Wanted, cause: &str) -> Failure {
    Failure::failed(format!("cannot listen on {}: {cause}", wanted.given()))
}

fn hint_of_port(spec: &PortSpec, refusal: &Refusal, ip: Option<IpAddr>) -> Option<String> {
    match refusal {
        Refusal::Errno(libc::EADDRINUSE) => ip
            .and_then(|ip| holders::hint_of_port(spec.transport, ip, spec.port))
            .or_else(|| Some(remedy::of_port_in_use(spec.port))),
        Refusal::Errno(libc::EACCES) if u32::from(spec.port) >= low_ports::first_unprivileged() => {
            Some(remedy::PORT_OF_A_LABEL.to_owned())
        }
        Refusal::Errno(libc::EACCES) => Some(remedy::of_low_port(spec.port)),
        Refusal::Errno(libc::EPERM) => Some(remedy::BIND_DENIED.to_owned()),
        Refusal::Errno(libc::EAFNOSUPPORT) => Some(remedy::NO_SUCH_FAMILY.to_owned()),
        Refusal::Errno(libc::ENODEV) => Some(remedy::NO_SUCH_INTERFACE.to_owned()),
        Refusal::Errno(libc::EINVAL) => match spec.host {
            Host::Address(IpAddr::V6(ip)) if ip.is_unicast_link_local() => {
                Some(remedy::of_link_local(ip, &spec.typed_port()))
            }
            _ => None,
        },
        Refusal::Errno(libc::EADDRNOTAVAIL) => Some(remedy::NO_SUCH_ADDRESS.to_owned()),
        Refusal::BadPolicy(BadPolicy::Line { .. }) => Some(remedy::POLICY_LINE.to_owned()),
        Refusal::BadPolicy(_) | Refusal::NotAllowed => {
            let (uid, kind) = (getuid().as_raw(), kind_of(spec.transport));
            Some(remedy::of_policy(uid, kind, spec.port))
        }
        Refusal::Errno(errno) => remedy::of_any_call(Errno::from_raw(*errno)),
        _ => None,
    }
}

fn cause(wanted: &Wanted, refusal: &Refusal) -> String {
    match refusal {
        Refusal::Errno(errno) => description(*errno).to_owned(),
        Refusal::NamesDirectory => "it names a directory".to_owned(),
        Refusal::NotASocket { file_type } => {
            let kind = name_of_type(*file_type);
            format!("it exists and is {kind}, not a socket")
        }
        Refusal::Changing => "it changed while it was being examined".to_owned(),
        Refusal::Served => "another server is listening on it".to_owned(),
        Refusal::MaybeServed(errno) => {
            let cause = description(*errno);
            format!("cannot tell whether a server listens on it: {cause}")
        }
        Refusal::Replaced => "it was replaced by something else during the start".to_owned(),
        Refusal::Untrusted(untrusted) => distrust::of_path(untrusted),
        // Of these no binder speaks where a socket is asked for.
        Refusal::OtherType { .. } | Refusal::OfAnother { .. } | Refusal::HardLinks => {
            "it was refused".to_owned()
        }
        Refusal::NotAllowed => {
            let (what, uid) = (wanted.in_policy(), getuid());
            // Perhaps a misspelt line was to allow it.
            let unknown = policy_names::unknown_name().map(|unknown| format!("; {unknown}"));
            let unknown = unknown.unwrap_or_default();
            format!("{POLICY_FILE} does not allow {what} to uid {uid} or its groups{unknown}")
        }
        Refusal::BadPolicy(bad) => {
            format!("{POLICY_FILE} grants nothing: {}", cause_of_policy(bad))
        }
    }
}

fn cause_of_policy(bad: &BadPolicy) -> String {
    match bad {
        BadPolicy::Untrusted(untrusted) => distrust::of_path(untrusted),
        BadPolicy::Distrusted(why) => format!("it {}", distrust::predicate(*why)),
        // The file is opened without following links.
        BadPolicy::Unopened(libc::ELOOP) => "it is a symbolic link".to_owned(),
        BadPolicy::Unopened(libc::ENOENT) => "it does not exist".to_owned(),
        BadPolicy::Unopened(errno) => format!("it cannot be opened: {}", description(*errno)),
        BadPolicy::Unread(errno) => format!("it cannot be read: {}", description(*errno)),
        BadPolicy::NotARegularFile => "it is not a regular file".to_owned(),
        BadPolicy::TooLarge => format!("it is larger than {LARGEST_POLICY} bytes"),
        BadPolicy::NotUtf8 => "it is not valid UTF-8".to_owned(),
        BadPolicy::Line { number, fault } => {
            let fault = match fault {
                LineFault::Words => "is not of the form `user NAME tcp 80,443`",
                LineFault::Kind => "does not begin with `user` or `group`",
                LineFault::Transport => "has neither `tcp` nor `udp` after the name",
                LineFault::Ports => "has a list of ports that is not of the form `53,8000-8010`",
            };
            format!("line {number} {fault}")
        }
    }
}

fn description(errno: i32) -> &'static str {
    Errno::from_raw(errno).desc()
}
