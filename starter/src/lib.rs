//! The superdaemon: starts server programs with bound sockets, and replaces them without refusing a connection.
//!
//! A library only so that its parsers can be fuzzed: nothing else of it is public, and the program is [`main`].

mod binder;
mod binding;
mod client;
mod confinement;
mod daemon;
mod environment;
mod failure;
mod fd_env;
#[doc(hidden)]
pub mod fuzz;
mod generations;
mod holders;
mod identity;
mod listen_spec;
mod log;
mod notice;
mod open_files;
mod options;
mod pid_file;
mod process;
mod self_test;
mod signals;
mod status_file;
mod supervisor;
mod terminal;
mod worker;

use std::io::{self, Write};
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use common::descriptors::close_inherited;
use common::message::Identity;
use common::privileges::{self, Bounding};
use nix::errno::Errno;
use nix::unistd::getpid;

use crate::binding::{Bound, Plan};
use crate::confinement::{InForce, OfSupervisor};
use crate::daemon::{Side, Waiting};
use crate::environment::Environment;
use crate::failure::Failure;
use crate::generations::{Knobs, Outcome, Settings};
use crate::log::Log;
use crate::notice::Notice;
use crate::open_files::OpenFiles;
use crate::options::{FdStyle, Invocation, Options};
use crate::pid_file::PidFile;
use crate::signals::Signals;
use crate::status_file::StatusFile;
use crate::supervisor::Resources;
use crate::worker::Blueprint;

/// The whole program, from its command line to its exit code.
pub fn main() -> ExitCode {
    match run() {
        Ok(Outcome::Stopped) => ExitCode::SUCCESS,
        Ok(Outcome::GivenUp) => ExitCode::from(failure::Status::Failed as u8),
        Err(failure) => {
            log::complain(&failure);
            ExitCode::from(failure.status as u8)
        }
    }
}

fn run() -> Result<Outcome, Failure> {
    // First, for the clients and the worker of a self-test as well.
    identity::refuse_rights_of_another()?;
    if self_test::is_worker() {
        return self_test::run_worker().map(|()| Outcome::Stopped);
    }
    close_inherited().map_err(|errno| {
        Failure::failed(format!(
            "cannot close inherited descriptors: {}",
            errno.desc()
        ))
    })?;
    // Before the first child: whoever ignores CHLD cannot wait for one.
    signals::reset().map_err(cannot_set_up_signals)?;
    let done = |()| Outcome::Stopped;
    match options::parse(std::env::args_os().skip(1))? {
        Invocation::Start(options) if options.daemonize => daemonize(*options),
        Invocation::Start(options) => start(*options, &mut None),
        Invocation::Restart(options) => client::restart(&options).map(done),
        Invocation::Stop(options) => client::stop(&options).map(done),
        Invocation::Reopen(options) => client::reopen(&options).map(done),
        Invocation::SelfTest(options) => self_test::run(&options).map(|holds| match holds {
            true => Outcome::Stopped,
            false => Outcome::GivenUp,
        }),
        Invocation::Print(text) => io::stdout()
            .write_all(text.as_bytes())
            .map(done)
            .map_err(|error| Failure::failed(format!("cannot write to standard output: {error}"))),
    }
}

/// The process that was started waits for the verdict on the first start, and ends with it.
fn daemonize(options: Options) -> Result<Outcome, Failure> {
    let stdin_is_a_socket = options.ports.iter().any(|port| port.descriptor == Some(0));
    match daemon::detach(stdin_is_a_socket)? {
        Side::Launcher(verdict) => verdict.map(|()| Outcome::Stopped),
        Side::Daemon(waiting) => {
            let mut waiting = Some(waiting);
            let result = start(options, &mut waiting);
            if let (Err(failure), Some(waiting)) = (&result, waiting) {
                // The launcher shows it on the terminal.
                log::keep(failure);
                waiting.tell_failure(failure);
                return Ok(Outcome::GivenUp);
            }
            result
        }
    }
}

/// The phases of the superdaemon's life. Up to the drop it may have root, and does nothing with it but start the
/// binder; everything that an attacker could have a hand in (host names, files, the server program) comes after.
fn start(mut options: Options, waiting: &mut Option<Waiting>) -> Result<Outcome, Failure> {
    let open_files = OpenFiles::of_launcher()?;
    let identity = identity::identify(options.user.as_deref(), options.group.as_deref())?;
    let (ports, paths) = (
        std::mem::take(&mut options.ports),
        std::mem::take(&mut options.paths),
    );
    let plan = Plan::new(ports, paths, identity.clone())?;
    // Before the binders, which are not to have it either.
    let own_session =
        identity.is_some() && terminal::keep_from_user().map_err(cannot_keep_terminal)?;
    let prepared = plan.start_binders(open_files)?;
    let supervisor = drop_privileges(identity.as_ref(), &options)?;

    if options.quiet {
        log::be_quiet();
    }
    if let Some(syslog) = &options.syslog {
        log::open_syslog(syslog)?;
    }
    log::say(Notice::StartingNow(getpid()));
    let resolved = prepared.resolve()?;
    let signals = Signals::take().map_err(cannot_set_up_signals)?;
    // Before anything is bound: a second instance must not come as far as the first one's sockets.
    let pid_file = options
        .pid_file
        .as_deref()
        .map(|path| PidFile::lock(path, std::process::id()))
        .transpose()?;
    let Bound {
        listeners,
        files,
        binders,
    } = resolved.bind(options.backlog, options.strict, open_files)?;
    fd_env::prepare(&listeners, &options.fd_env)?;
    let status_file = StatusFile::create(
        &options,
        &listeners,
        InForce {
            supervisor,
            binders,
        },
    )?;
    let log = Log::open(&options)?;
    let one = NonZeroU32::MIN;
    let settings = Settings {
        workers: 1,
        interval: options.interval,
        signal_on_hup: options.signal_on_hup,
        signal_on_term: options.signal_on_term,
        stop_timeout: options.stop_timeout,
        start_limit: options.start_limit,
        // Somebody waits for the verdict: the first failure is one.
        first_start_limit: if options.daemonize {
            options.start_limit.or(Some(one))
        } else {
            options.start_limit
        },
        knobs: Knobs {
            kill_old_delay: Duration::ZERO,
            auto_restart: None,
        },
    };
    let resources = Resources {
        environment: Environment::new(&options),
        blueprint: Blueprint {
            program: options.program,
            arguments: options.arguments,
            directory: options.directory,
            variables: fd_env::variables(&listeners, &options.fd_env),
            listen_pid: options.fd_env.contains(&FdStyle::Systemd),
            own_session,
            sockets: listeners
                .into_iter()
                .map(|listener| (listener.socket, listener.number))
                .collect(),
            open_files,
        },
        signals,
        log,
        status_file,
        pid_file,
        socket_files: files,
        waiting: waiting.take(),
    };
    supervisor::run(resources, settings)
}

fn cannot_set_up_signals(errno: Errno) -> Failure {
    Failure::failed(format!("cannot set up signals: {}", errno.desc()))
}

fn cannot_keep_terminal(error: io::Error) -> Failure {
    Failure::failed(format!(
        "cannot keep the terminal from the server program: {}",
        failure::cause(&error)
    ))
}

/// From here on there is nothing to regain, and no worker can inherit anything.
fn drop_privileges(
    identity: Option<&Identity>,
    options: &Options,
) -> Result<OfSupervisor, Failure> {
    let cannot = |error| Failure::failed(format!("cannot drop privileges: {error}"));
    let Some(identity) = identity else {
        privileges::keep_only(&[]).map_err(cannot)?;
        return Ok(OfSupervisor::ORDINARY);
    };
    let bounding = privileges::become_user(identity, &[]).map_err(cannot)?;
    match (bounding, options.strict) {
        (Bounding::Empty, _) => {}
        (Bounding::Kept, false) => log::say(Notice::BoundingSetKept),
        (Bounding::Kept, true) => {
            return Err(Failure::failed(
                "cannot empty the capability bounding set: CAP_SETPCAP is missing, and --strict is given",
            ));
        }
    }
    Ok(OfSupervisor::dropped(bounding))
}
