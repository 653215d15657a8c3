//! Why a socket could not be had, in words, and the remedy where one is known.

use std::net::IpAddr;

use common::message::Refusal;
use common::unix_socket::SERVED;
use nix::errno::Errno;
use nix::unistd::getuid;

use crate::listeners::holders;
use crate::listeners::plan::Wanted;
use crate::words::failure::Failure;
use crate::words::remedy;

/// `ip` is the literal address of a port, also where a name was typed.
pub fn cannot_bind(wanted: &Wanted, refusal: &Refusal, ip: Option<IpAddr>) -> Failure {
    let cause = match refusal {
        Refusal::Errno(errno) => Errno::from_raw(*errno).desc(),
        Refusal::Because(cause) => cause,
    };
    let failure = Failure::failed(format!("cannot listen on {}: {cause}", wanted.given()));
    match (wanted, refusal) {
        (Wanted::Port(spec), Refusal::Errno(libc::EADDRINUSE)) => {
            let seen = ip.and_then(|ip| holders::hint_of_port(spec.transport, ip, spec.port));
            failure.hint(seen.unwrap_or_else(|| remedy::of_port_in_use(spec.port)))
        }
        (Wanted::Path { spec, .. }, Refusal::Because(cause)) if cause == SERVED => {
            match holders::hint_of_path(&spec.path) {
                Some(seen) => failure.hint(seen),
                None => failure,
            }
        }
        (Wanted::Port(spec), Refusal::Errno(libc::EACCES)) => {
            failure.hint(remedy::of_low_port(spec.port))
        }
        // Of a port only the policy says so.
        (Wanted::Port(_), Refusal::Because(cause)) if cause.contains("grants nothing: line ") => {
            failure.hint(remedy::POLICY_LINE)
        }
        (Wanted::Port(spec), Refusal::Because(_)) => failure.hint(remedy::of_policy(
            getuid().as_raw(),
            wanted.kind(),
            spec.port,
        )),
        (Wanted::Port(_), Refusal::Errno(libc::EADDRNOTAVAIL)) => {
            failure.hint(remedy::NO_SUCH_ADDRESS)
        }
        // Of a change of owner, which is the only thing there that root needs a capability for.
        (Wanted::Path { .. }, Refusal::Errno(libc::EPERM)) if wanted.owner_is_asked() => {
            failure.hint(remedy::CHOWN_AS_ROOT)
        }
        _ => failure,
    }
}

pub fn cannot_bind_ourselves(
    wanted: &Wanted,
    refusal: &Refusal,
    objection: Option<&str>,
) -> Failure {
    let failure = cannot_bind(wanted, refusal, None);
    match (refusal, objection) {
        (Refusal::Errno(libc::EACCES), Some(objection)) => {
            failure.hint(remedy::of_directory_of_others(objection))
        }
        (Refusal::Errno(libc::EACCES), None) => failure.hint(remedy::WRITABLE_DIRECTORY),
        (Refusal::Errno(libc::ENOENT), _) => Failure::failed(format!(
            "cannot listen on {}: its directory does not exist",
            wanted.given()
        )),
        // Of a change of owner; without one it is a sticky directory that keeps a stale socket of another user.
        (Refusal::Errno(libc::EPERM), _) if wanted.owner_is_asked() => {
            failure.hint(remedy::CHOWN_AS_USER)
        }
        _ => failure,
    }
}
