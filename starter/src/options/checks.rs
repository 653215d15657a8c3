//! What one option asks of the others.

use common::message::Transport;

use super::refusal::refused;
use super::{FdStyle, Options};
use crate::listeners::spec::check_duplicates;
use crate::words::failure::Failure;

/// What one option asks of the others.
pub fn check_together(options: &Options) -> Result<(), Failure> {
    check_duplicates(&options.ports, &options.paths)?;
    check_fd_env(options)?;
    check_group(options.user.as_deref(), options.group.as_deref())?;
    if options.daemonize && options.log_file.is_none() && options.syslog.is_none() {
        return Err(Failure::usage(
            "cannot use --daemonize: it needs --log-file or --syslog as well",
        ));
    }
    if options.log_timestamps && options.log_file.is_none() {
        return Err(Failure::usage(
            "cannot use --log-timestamps: it needs --log-file as well",
        ));
    }
    Ok(())
}

pub fn check_group(user: Option<&str>, group: Option<&str>) -> Result<(), Failure> {
    match (user, group) {
        (None, Some(group)) => Err(refused("group", group.as_ref(), "it needs --user as well")),
        _ => Ok(()),
    }
}

fn check_fd_env(options: &Options) -> Result<(), Failure> {
    let chosen = options.ports.iter().find(|port| port.descriptor.is_some());
    if let (true, Some(port)) = (options.fd_env.contains(&FdStyle::Systemd), chosen) {
        let cause = format!(
            "its descriptors are consecutive from 3, but --port={} chooses its own",
            port.given
        );
        return Err(refused("fd-env", "systemd".as_ref(), &cause));
    }
    let mut ports = options.ports.iter();
    let datagram = ports.find(|port| port.transport == Transport::Udp);
    if let (true, Some(port)) = (options.fd_env.contains(&FdStyle::Unicorn), datagram) {
        let cause = format!(
            "it takes stream sockets only, but --port={} is UDP",
            port.given
        );
        return Err(refused("fd-env", "unicorn".as_ref(), &cause));
    }
    Ok(())
}
