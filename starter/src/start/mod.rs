//! The start of the superdaemon, phase by phase, up to the loop that is its life.
//!
//! | phase | privileges | what |
//! |---|---|---|
//! | [`Manager::reach`] | the launcher's | connect to the service manager |
//! | [`drop_to_user`] | the launcher's | look up the user, give binders their lists, drop privileges |
//! | [`Log::begin`] | the user's | open the log for our own messages |
//! | [`lock_and_bind`] | the user's | host names, the lock on the pid file, sockets |
//! | [`make_ready`] | the user's | status files, the workers' output, what each worker gets |
//! | [`supervisor::run`] | the user's | workers |
//!
//! Everything that an attacker could influence comes after the drop: host names, files, the server program.

pub mod dry_run;
mod equipment;
mod files;
mod numbers;
pub mod resume;

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use common::message::Identity;
use common::privileges::{self, Bounding};
use nix::errno::Errno;
use nix::unistd::getpid;

use crate::guardian::{self, Split};
use crate::host::confinement::{InForce, OfSupervisor};
use crate::host::daemon::{self, Side, Waiting};
use crate::host::identity::Login;
use crate::host::launcher::Handover;
use crate::host::open_files::OpenFiles;
use crate::host::passed_on::PassedOn;
use crate::host::process::exit_child;
use crate::host::signals::Signals;
use crate::host::{identity, own_program, streams, terminal};
use crate::listeners::backlog::Backlog;
use crate::listeners::bind::Bound;
use crate::listeners::dialects::{self, Announced};
use crate::listeners::group;
use crate::listeners::health::Health;
use crate::listeners::inherited::Inherited;
use crate::listeners::lanes::Lanes;
use crate::listeners::listener::Listener;
use crate::listeners::numbers::Reserved;
use crate::listeners::plan::{Plan, Prepared};
use crate::listeners::socket_files::SocketFiles;
use crate::listeners::{self, Switch};
use crate::log::Log;
use crate::machine::{self, Outcome};
use crate::manager::Manager;
use crate::manager::launch::Launch;
use crate::options::Options;
use crate::ready::Readiness;
use crate::start::equipment::{Equipment, Found};
use crate::status::Shown;
use crate::status::file::{MadeByRoot, StatusFile};
use crate::status::pid_file::PidFile;
use crate::supervisor;
use crate::supervisor::check::Check;
use crate::supervisor::guard::Guard;
use crate::supervisor::queues::Look;
use crate::supervisor::resources::Resources;
use crate::supervisor::upgrade::Upgrade;
use crate::words;
use crate::words::failure::{self, Failure, Status};
use crate::words::notice::Notice;
use crate::words::remedy;
use crate::words::switch::Switching;
use crate::worker::Blueprint;
use crate::worker::environment::Environment;

/// Runs the superdaemon, in the foreground or as a daemon.
pub fn run(options: Options, passed_on: Vec<PassedOn>) -> Result<Status, Failure> {
    let options = numbers::settle(options)?;
    let launch = Launch::of_process();
    if !options.is_daemon {
        return start(options, passed_on, None, launch);
    }
    let stdin_is_a_socket = options
        .listeners
        .ports
        .iter()
        .any(|port| port.descriptor == Some(0));
    match daemon::detach(stdin_is_a_socket)? {
        // The launched process waits for the verdict on the first start and exits with it.
        Side::Launcher(verdict) => verdict.map(|()| Status::Done),
        Side::Daemon(waiting) => start(options, passed_on, Some(waiting), launch),
    }
}

/// Runs the phases of a start; each gets what the one before produced.
fn start(
    options: Options,
    passed_on: Vec<PassedOn>,
    waiting: Option<Waiting>,
    launch: Launch,
) -> Result<Status, Failure> {
    let main_pid = waiting.is_some().then(std::process::id);
    let mut manager = Manager::reach(launch, main_pid, options.ready.ready.awaited());
    let begun = drop_to_user(&options, passed_on).and_then(|dropped| {
        let log = Log::begin(&options.log)?;
        Ok((dropped, log))
    });
    let (dropped, mut log) = match (begun, waiting.is_some()) {
        (Ok(begun), _) => begun,
        (Err(failure), is_daemon) => {
            manager.tell_failure(&failure);
            return match is_daemon {
                true => Ok(tell_launcher(waiting, &failure)),
                false => Err(failure),
            };
        }
    };
    manager.notices().iter().for_each(|notice| log.say(notice));
    let ready = lock_and_bind(&options, dropped, &mut log)
        .and_then(|held| make_ready(options, held, &mut log));
    match ready {
        Ok(ready) => Ok(match ready.run(log, waiting, manager)? {
            Outcome::Stopped => Status::Done,
            Outcome::GivenUp => Status::Failed,
        }),
        Err(failure) => {
            manager.tell_failure(&failure);
            match waiting {
                // The launcher shows it.
                Some(_) => log.record(&failure),
                None => log.complain(&failure),
            }
            log.end();
            Ok(tell_launcher(waiting, &failure))
        }
    }
}

fn tell_launcher(waiting: Option<Waiting>, failure: &Failure) -> Status {
    if let Some(waiting) = waiting {
        waiting.tell_failure(failure);
    }
    failure.status
}

/// What remains of the launcher's privileges: running binders, each with its sealed list.
struct Dropped {
    prepared: Prepared,
    switch: Option<Switch>,
    /// Whose the environment of our children is to be, if not the launcher's.
    login: Option<Login>,
    supervisor: OfSupervisor,
    own_session: bool,
    open_files: OpenFiles,
    notices: Vec<Notice>,
}

/// Does everything that needs the launcher's privileges, possibly root's: starts the binders, and nothing else.
fn drop_to_user(options: &Options, passed_on: Vec<PassedOn>) -> Result<Dropped, Failure> {
    let open_files = OpenFiles::of_launcher()?;
    let account = identity::identify(&options.identity)?;
    let (identity, login) = account
        .map(|account| (account.identity, account.login))
        .unzip();
    let listening = &options.listeners;
    let mut notices = Vec::new();
    let (ports, paths) = (listening.ports.clone(), listening.paths.clone());
    let inherited = Inherited::examine_all(passed_on, identity.as_ref())?;
    let switch = possible_switch(listening, &mut notices)?;
    let lanes = switch.map_or(1, Switch::sockets);
    let plan = Plan::new(ports, paths, inherited, identity.clone(), lanes)?;
    let plan = plan.with_files(&files::wanted(options));
    // Before the binders, which must not have it either.
    let own_session =
        identity.is_some() && terminal::keep_from_user().map_err(cannot_keep_terminal)?;
    if identity.is_some() {
        streams::let_user_write_to_pipes();
    }
    let prepared = plan.start_binders(open_files)?;
    let (supervisor, notice) = drop_privileges(identity.as_ref(), options.is_strict)?;
    notices.extend(notice);
    Ok(Dropped {
        prepared,
        switch,
        login: login.filter(|_| !options.identity.keeps_environment),
        supervisor,
        own_session,
        open_files,
        notices,
    })
}

/// `--switch`, as far as this kernel and whatever filters our system calls allow it.
fn possible_switch(
    listening: &listeners::Settings,
    notices: &mut Vec<Notice>,
) -> Result<Option<Switch>, Failure> {
    let Some(switch) = listening.switch else {
        return Ok(None);
    };
    match group::is_possible() {
        Ok(()) => Ok(Some(switch)),
        Err(errno) if switch.is_required => Err(words::switch::impossible(errno)),
        Err(errno) => {
            notices.push(Notice::Switching(Switching::Impossible { errno }));
            Ok(None)
        }
    }
}

/// What only one superdaemon at a time can hold: the lock on the pid file, and the sockets.
struct Held {
    signals: Signals,
    pid_file: Option<PidFile>,
    made_by_root: MadeByRoot,
    listeners: Vec<Listener>,
    socket_files: SocketFiles,
    /// What is to be said once the log is open.
    for_log: Vec<Notice>,
    health: Health,
    in_force: InForce,
    login: Option<Login>,
    own_session: bool,
    open_files: OpenFiles,
}

/// Resolves host names, locks the pid file and binds; from here on everything runs as the user.
fn lock_and_bind(options: &Options, dropped: Dropped, log: &mut Log) -> Result<Held, Failure> {
    // What generations share is for the log too, which is not open yet.
    let is_for_log = |notice: &Notice| matches!(notice, Notice::Switching(_));
    let (mut for_log, others): (Vec<Notice>, Vec<Notice>) =
        dropped.notices.into_iter().partition(is_for_log);
    others.iter().for_each(|notice| log.say(notice));
    log.say(&Notice::StartingNow(getpid()));
    let resolved = dropped
        .prepared
        .resolve(dropped.switch.map_or(1, Switch::sockets))?;
    let signals = Signals::take().map_err(cannot_set_up_signals)?;
    let mut notices = Vec::new();
    let mut makers = resolved.confine(options.is_strict, &mut notices)?;
    files::make_runtime_dir(options, &mut makers)?;
    // Before anything is bound: a second instance must not get at the first one's sockets.
    let pid_file = files::lock_pid_file(options, &mut makers, &signals)?;
    let made_by_root = files::make_status_files(options, &mut makers)?;
    let backlog = Backlog::new(options.listeners.backlog);
    let open_files = dropped.open_files;
    let reserved = Reserved {
        number: options.ready.reserved_number(),
        after: options.ready.fd_store_max.into(),
    };
    let bound = makers.bind(reserved, backlog, open_files, dropped.switch, &mut notices);
    // Even after a failure: they tell how far it got.
    let (more, others): (Vec<Notice>, Vec<Notice>) = notices.into_iter().partition(is_for_log);
    others.iter().for_each(|notice| log.say(notice));
    for_log.extend(more);
    let Bound {
        listeners,
        planned,
        files,
        binders,
    } = bound?;
    let sockets = listeners.iter().map(|one| (&one.socket, one.number));
    let health = Health::new(planned, sockets, backlog.number());
    Ok(Held {
        signals,
        pid_file,
        made_by_root,
        listeners,
        socket_files: files,
        for_log,
        health,
        in_force: InForce {
            supervisor: dropped.supervisor,
            binders,
        },
        login: dropped.login,
        own_session: dropped.own_session,
        open_files,
    })
}

/// Everything that must exist before the first worker.
struct Ready {
    /// With `--guardian`.
    guardian: Option<guardian::Settings>,
    blueprint: Blueprint,
    login: Option<Login>,
    readiness: Readiness,
    check: Check,
    environment: Environment,
    signals: Signals,
    status_file: StatusFile,
    pid_file: Option<PidFile>,
    socket_files: SocketFiles,
    health: Health,
    machine: machine::Settings,
}

/// Writes the first status files, redirects the streams, and prepares what every worker gets.
fn make_ready(options: Options, held: Held, log: &mut Log) -> Result<Ready, Failure> {
    let (mut listeners, dialects) = (held.listeners, &options.listeners.dialects);
    let environment = Environment::new(&options.environment);
    environment.check()?;
    dialects::check(&listeners, dialects, options.ready.reserved_number())?;
    dialects::prepare(&listeners, dialects)?;
    let shown = shown(&options);
    let status_file = StatusFile::create(&shown, &listeners, held.in_force, held.made_by_root)?;
    let handover = Rc::new(Handover::new(held.login.as_ref()));
    log.open(&options.log, &handover)?;
    held.for_log.iter().for_each(|notice| log.say(notice));
    if !listeners.is_empty() {
        log.say(&listening(&listeners));
    }
    numbers::make_room(&options, held.open_files)?;
    let lanes = listeners.iter_mut().map(|listener| listener.group.take());
    let lanes = Lanes::new(lanes.collect(), options.listeners.switch);
    let machine = machine::Settings {
        lanes: lanes.count(),
        shards: lanes.shards(),
        flows: lanes.have_flows(),
        ..options.machine.clone()
    };
    let guardian = options.is_guarded.then(|| guardian::Settings {
        arguments: std::env::args_os().collect(),
        signal: machine.signal_on_term,
        stop_timeout: machine.stop_timeout,
        format: options.log.format,
    });
    let announced = listeners.iter().map(Announced::from).collect();
    let sockets = listeners.into_iter();
    let sockets = sockets.map(|listener| (listener.socket, listener.number));
    let found = Found {
        announced,
        sockets: sockets.collect(),
        lanes,
        handover,
        own_session: held.own_session,
        open_files: held.open_files,
    };
    let equipment = Equipment::new(options, found);
    Ok(Ready {
        guardian,
        readiness: Readiness::new(equipment.ready, equipment.layout),
        check: Check::new(equipment.check),
        environment,
        blueprint: equipment.blueprint,
        login: held.login,
        machine,
        signals: held.signals,
        status_file,
        pid_file: held.pid_file,
        socket_files: held.socket_files,
        health: held.health,
    })
}

/// Where the first listeners are, for the log.
fn listening(listeners: &[Listener]) -> Notice {
    const NAMED: usize = 4;
    Notice::Listening {
        first: listeners.iter().take(NAMED).map(Listener::place).collect(),
        count: listeners.len(),
    }
}

/// What the status files say of the command line.
fn shown(options: &Options) -> Shown<'_> {
    Shown {
        files: &options.status,
        worker: &options.worker,
        environment: &options.environment,
        machine: &options.machine,
        ready: &options.ready,
        log: &options.log,
        identity: &options.identity,
    }
}

impl Ready {
    fn run(self, log: Log, waiting: Option<Waiting>, manager: Manager) -> Result<Outcome, Failure> {
        let guard = match &self.guardian {
            None => None,
            Some(settings) => {
                let program = own_program::running().map_err(cannot_guard)?;
                match guardian::split(settings.clone(), program).map_err(cannot_guard)? {
                    Split::Supervisor(channel, area) => Some(Guard::new(channel, area)),
                    // Everything else is the supervisor's.
                    Split::Guardian(guardian) => exit_child(guardian.watch()),
                }
            }
        };
        let resources = Resources {
            blueprint: self.blueprint,
            login: self.login,
            readiness: self.readiness,
            check: self.check,
            upgrade: Upgrade::new(),
            environment: self.environment,
            pins: BTreeMap::new(),
            signals: self.signals,
            reports: Vec::new(),
            log,
            status_file: self.status_file,
            pid_file: self.pid_file,
            socket_files: self.socket_files,
            health: self.health,
            look: Look::default(),
            manager,
            guard,
            waiting,
            reason: None,
            has_hinted_at_streams: false,
        };
        Ok(supervisor::run(resources, self.machine))
    }
}

fn cannot_guard(errno: Errno) -> Failure {
    Failure::failed(format!("cannot start a guardian: {}", errno.desc()))
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

/// Drops privileges for good: they cannot be regained, and no worker can inherit any.
fn drop_privileges(
    identity: Option<&Identity>,
    is_strict: bool,
) -> Result<(OfSupervisor, Option<Notice>), Failure> {
    let cannot = |error| Failure::failed(format!("cannot drop privileges: {error}"));
    let Some(identity) = identity else {
        privileges::retain_only(&[]).map_err(cannot)?;
        return Ok((OfSupervisor::ORDINARY, None));
    };
    let bounding = privileges::become_user(identity, &[]).map_err(|error| {
        let is_partial = identity::is_in_partial_namespace();
        cannot(error).hint_if(is_partial.then(|| remedy::MAP_USER.into()))
    })?;
    let notice = match (bounding, is_strict) {
        (Bounding::Empty, _) => None,
        (Bounding::Kept, false) => Some(Notice::BoundingSetKept),
        (Bounding::Kept, true) => {
            return Err(Failure::failed(
                "cannot empty the capability bounding set: CAP_SETPCAP is missing, and --strict is given",
            ));
        }
    };
    Ok((OfSupervisor::dropped(bounding), notice))
}
