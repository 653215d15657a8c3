//! The start of the superdaemon, phase by phase, up to the loop that is its life.

use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use common::message::Identity;
use common::privileges::{self, Bounding};
use nix::errno::Errno;
use nix::unistd::getpid;

use crate::host::confinement::{InForce, OfSupervisor};
use crate::host::daemon::{self, Side, Waiting};
use crate::host::open_files::OpenFiles;
use crate::host::{identity, terminal};
use crate::listeners::bind::{Bound, Plan};
use crate::listeners::dialects;
use crate::log::{self, Log};
use crate::machine::{Knobs, Outcome, Settings};
use crate::options::{FdStyle, Options, status_settings};
use crate::status::file::StatusFile;
use crate::status::pid_file::PidFile;
use crate::supervisor::signals::Signals;
use crate::supervisor::{self, Resources};
use crate::words::failure::{self, Failure};
use crate::words::notice::Notice;
use crate::worker::Blueprint;
use crate::worker::environment::Environment;

/// Runs the superdaemon, here or as a daemon.
pub fn run(options: Options) -> Result<Outcome, Failure> {
    match options.daemonize {
        true => daemonize(options),
        false => start(options, &mut None),
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

    let log_settings = log_settings(&options);
    if log_settings.is_quiet {
        log::be_quiet();
    }
    if let Some(syslog) = &log_settings.syslog {
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
    dialects::prepare(&listeners, &options.fd_env)?;
    let status_file = StatusFile::create(
        status_settings(&options),
        &listeners,
        InForce {
            supervisor,
            binders,
        },
    )?;
    let log = Log::open(&log_settings)?;
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
            variables: dialects::variables(&listeners, &options.fd_env),
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

fn log_settings(options: &Options) -> log::Settings {
    log::Settings {
        target: options.log_file.clone(),
        target_streams: options.log_streams.clone(),
        has_timestamps: options.log_timestamps,
        syslog: options.syslog.clone(),
        syslog_streams: options.syslog_streams.clone(),
        is_quiet: options.quiet,
        is_attended: !options.daemonize,
    }
}

pub fn cannot_set_up_signals(errno: Errno) -> Failure {
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
