//! The superdaemon: starts server programs with bound sockets, and replaces them without refusing a connection.

mod binder;
mod binding;
mod failure;
mod generations;
mod identity;
mod listen_spec;
mod log;
mod notice;
mod open_files;
mod options;
mod pid_file;
mod signals;
mod status_file;
mod supervisor;
mod worker;

use std::io::{self, Write};
use std::process::ExitCode;

use common::descriptors::close_inherited;
use common::message::Identity;
use common::privileges::{self, Bounding};
use nix::unistd::getpid;

use crate::binding::{Bound, Plan, server_starter_port};
use crate::failure::Failure;
use crate::generations::{Outcome, Settings};
use crate::notice::Notice;
use crate::open_files::OpenFiles;
use crate::options::{Invocation, Options};
use crate::pid_file::PidFile;
use crate::signals::Signals;
use crate::status_file::StatusFile;
use crate::supervisor::Supervisor;
use crate::worker::Blueprint;

fn main() -> ExitCode {
    match run() {
        Ok(Outcome::Stopped) => ExitCode::SUCCESS,
        Ok(Outcome::GivenUp) => ExitCode::from(failure::Status::Failed as u8),
        Err(failure) => {
            log::say(format_args!("start_server: {failure}"));
            ExitCode::from(failure.status as u8)
        }
    }
}

fn run() -> Result<Outcome, Failure> {
    close_inherited().map_err(|errno| {
        Failure::failed(format!(
            "cannot close inherited descriptors: {}",
            errno.desc()
        ))
    })?;
    match options::parse(std::env::args_os().skip(1))? {
        Invocation::Start(options) => start(*options),
        Invocation::Print(text) => {
            io::stdout().write_all(text.as_bytes()).map_err(|error| {
                Failure::failed(format!("cannot write to standard output: {error}"))
            })?;
            Ok(Outcome::Stopped)
        }
    }
}

/// The phases of the superdaemon's life. Up to the drop it may have root, and does nothing with it but start the
/// binder; everything that an attacker could have a hand in (host names, files, the server program) comes after.
fn start(mut options: Options) -> Result<Outcome, Failure> {
    let signals = Signals::take()
        .map_err(|errno| Failure::failed(format!("cannot set up signals: {}", errno.desc())))?;
    let open_files = OpenFiles::of_launcher()?;
    let identity = identity::identify(options.user.as_deref(), options.group.as_deref())?;
    let (ports, paths) = (
        std::mem::take(&mut options.ports),
        std::mem::take(&mut options.paths),
    );
    let prepared = Plan::new(ports, paths, identity.clone())?.start_binder(open_files)?;
    drop_privileges(identity.as_ref(), &options)?;

    // Before anything is bound: a second instance must not come as far as the first one's sockets.
    let pid_file = options
        .pid_file
        .as_deref()
        .map(|path| PidFile::lock(path, std::process::id()))
        .transpose()?;
    log::say(Notice::StartingNow(getpid()));
    let Bound { listeners, files } = prepared.bind(options.backlog, open_files)?;
    let status_file = options
        .status_file
        .as_deref()
        .map(|path| StatusFile::create(path, &options, &listeners))
        .transpose()?;
    let settings = Settings {
        workers: 1,
        interval: options.interval,
        signal_on_hup: options.signal_on_hup,
        signal_on_term: options.signal_on_term,
        kill_old_delay: options.kill_old_delay,
        stop_timeout: options.stop_timeout,
        start_limit: options.start_limit,
    };
    let blueprint = Blueprint {
        program: options.program,
        arguments: options.arguments,
        directory: options.directory,
        ports: server_starter_port(&listeners),
        sockets: listeners
            .into_iter()
            .map(|listener| (listener.socket, listener.number))
            .collect(),
        open_files,
    };
    let supervisor = Supervisor {
        blueprint,
        signals,
        status_file,
        socket_files: files,
    };
    let outcome = supervisor.run(settings);
    // Last, because its lock is the sign that everything else is over.
    drop(pid_file);
    outcome
}

/// From here on there is nothing to regain, and no worker can inherit anything.
fn drop_privileges(identity: Option<&Identity>, options: &Options) -> Result<(), Failure> {
    let cannot = |error| Failure::failed(format!("cannot drop privileges: {error}"));
    let bounding = match identity {
        Some(identity) => privileges::become_user(identity, &[]).map_err(cannot)?,
        None => {
            privileges::keep_only(&[]).map_err(cannot)?;
            Bounding::Empty
        }
    };
    match (bounding, options.strict) {
        (Bounding::Empty, _) => Ok(()),
        (Bounding::Kept, false) => {
            log::say(Notice::BoundingSetKept);
            Ok(())
        }
        (Bounding::Kept, true) => Err(Failure::failed(Notice::BoundingSetKept.to_string())),
    }
}
