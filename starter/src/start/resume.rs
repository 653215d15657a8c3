//! Going on where another program of this process has stopped: see [`crate::supervisor::upgrade`].
//!
//! Until everything is taken over there is a way back: whatever goes wrong, the program before is executed again, and finds
//! all descriptors open. So what can fail comes first, and nothing of it changes anything outside of this process.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::panic;
use std::path::PathBuf;
use std::rc::Rc;

use common::descriptors::keep_from_exec;
use nix::unistd::{Pid, geteuid};

use super::equipment::{Equipment, Found, layout};
use super::shown;
use crate::host::daemon::Waiting;
use crate::host::dispositions;
use crate::host::launcher::Handover;
use crate::host::open_files::{borrowed, owned};
use crate::host::own_program::{Guarded, Inheritance, execute};
use crate::host::sealed::read_all;
use crate::host::signals::Signals;
use crate::listeners::Switch;
use crate::listeners::backlog::Backlog;
use crate::listeners::health::Health;
use crate::listeners::lanes::Lanes;
use crate::listeners::packed::{self as listeners, PackedListener};
use crate::listeners::socket_files::SocketFiles;
use crate::log::{Known, Log};
use crate::machine::{Generation, Machine, Outcome};
use crate::manager::Manager;
use crate::options::{self, Invocation, Options};
use crate::ready::Readiness;
use crate::status::file::StatusFile;
use crate::status::pid_file::PidFile;
use crate::supervisor;
use crate::supervisor::check::Check;
use crate::supervisor::envelope;
use crate::supervisor::guard::Guard;
use crate::supervisor::queues::Look;
use crate::supervisor::resources::Resources;
use crate::supervisor::state::{Held, State};
use crate::supervisor::upgrade::{self, Upgrade, YES};
use crate::words::failure::{self, Failure, Status};
use crate::words::guardian::Guarding;
use crate::words::notice::Notice;
use crate::words::text::shortened;
use crate::words::upgrade as words;
use crate::worker::Report;
use crate::worker::environment::Environment;

/// The option by which a running program asks another version whether it can resume, with the number of a descriptor.
const QUESTION: &str = "--can-resume=";

/// The number of the snapshot, if this is that question. No other word comes with it.
pub fn question(mut words: impl Iterator<Item = OsString>) -> Option<RawFd> {
    let only = words.next().filter(|_| words.next().is_none())?;
    only.to_str()?.strip_prefix(QUESTION)?.parse().ok()
}

/// Answers it, on standard output.
pub fn answer(snapshot: RawFd) -> Result<String, Failure> {
    let can = read(snapshot).and_then(|state| {
        options_of(&state)?;
        Machine::restore(state.machine)
    });
    can.map_err(Failure::failed)?;
    Ok(format!("{YES}{}\n", words::ours()))
}

/// Goes on. Returns when the superdaemon ends.
///
/// # Errors
/// Why it cannot, if there is no way back either.
pub fn run(inheritance: Result<Inheritance, String>) -> Result<Status, Failure> {
    let cannot = |cause: String| Failure::failed(format!("cannot resume: {cause}"));
    let inheritance = inheritance.map_err(cannot)?;
    // Before anything of it is believed.
    if geteuid().is_root() {
        return Err(cannot("it would run as root".to_owned()));
    }
    let before = inheritance.before;
    let snapshot = inheritance.snapshot;
    panic::set_hook(Box::new(move |panicked| {
        let cause = go_back(snapshot, before, &format!("it panicked: {panicked}"));
        crate::log::show(&format_args!("start_server: {}", cannot(cause)));
    }));
    let prepared = prepare(&inheritance);
    let prepared = prepared.map_err(|cause| cannot(go_back(snapshot, before, &cause)))?;
    let Inheritance {
        failure, guarded, ..
    } = inheritance;
    let (mut resources, machine, notice) = prepared.take_over(failure, guarded.as_ref());
    // From here on there is no way back, and none is needed.
    drop(panic::take_hook());
    dispositions::reset_after_exec();
    keep_from_exec().map_err(|errno| cannot(errno.desc().to_owned()))?;
    let left = [Some(snapshot), before].into_iter().flatten();
    left.for_each(|number| drop(owned(number)));
    resources.log.say(&notice);
    let is_last = guarded.is_some_and(|one| one.is_last);
    Ok(match supervisor::go_on(resources, machine, is_last) {
        Outcome::Stopped => Status::Done,
        Outcome::GivenUp => Status::Failed,
    })
}

/// Executes the program before again. Returns why it could not be done.
fn go_back(snapshot: RawFd, before: Option<RawFd>, cause: &str) -> String {
    let Some(before) = before else {
        return cause.to_owned();
    };
    let cause = shortened(cause);
    let inheritance = Inheritance {
        snapshot,
        before: None,
        failure: Some(cause.clone()),
        guarded: None,
    };
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let errno = execute(borrowed(before), &arguments, &inheritance, &[]);
    format!("{cause}; and there is no way back: {}", errno.desc())
}

/// Everything that can fail has succeeded, and nothing is taken over.
struct Prepared {
    options: Options,
    machine: Machine,
    signals: Signals,
    environment: Environment,
    version: String,
    upgrade: upgrade::Packed,
    held: Held,
}

fn prepare(inheritance: &Inheritance) -> Result<Prepared, String> {
    let state = read(inheritance.snapshot)?;
    state.confinement.prove()?;
    let options = options_of(&state)?;
    Ok(Prepared {
        machine: Machine::restore(state.machine)?,
        signals: Signals::take().map_err(|errno| errno.desc().to_owned())?,
        environment: Environment::new(&options.environment),
        options,
        version: state.version,
        upgrade: state.upgrade,
        held: state.held,
    })
}

impl Prepared {
    /// Takes over everything. `failure` is why the program after this one has come back, if it has.
    fn take_over(
        self,
        failure: Option<String>,
        guarded: Option<&Guarded>,
    ) -> (Resources, Machine, Notice) {
        let Prepared { options, held, .. } = self;
        let handover = Rc::new(Handover::new(held.login.as_ref()));
        let shown = shown(&options);
        let status_file = StatusFile::unpack(held.status_file, &shown, guarded.is_some());
        let mut log = Log::unpack(held.log, &options.log, &handover);
        workers(&self.machine).for_each(|worker| log.know(worker));
        let manager = Manager::unpack(held.manager, options.ready.ready.awaited());
        let backlog = Backlog::new(options.listeners.backlog).number();
        let upgrade = Upgrade::unpack(self.upgrade, failure.clone(), guarded.is_none());
        let notice = what_happened(
            &self.machine,
            self.version,
            upgrade.path(),
            failure,
            guarded,
        );
        let (sockets, announced) = listeners::unpack(held.listeners);
        let found = Found {
            announced,
            sockets,
            lanes: Lanes::unpack(held.lanes, as_it_is(&self.machine, &options)),
            handover,
            own_session: held.own_session,
            open_files: held.open_files,
        };
        let equipment = Equipment::new(options, found);
        let guard = guarded.map(|one| Guard::of(owned(one.channel), owned(one.area)));
        let reports = held.reports.into_iter();
        let resources = Resources {
            blueprint: equipment.blueprint,
            login: held.login,
            environment: self.environment,
            pins: held.pins.unpack(),
            signals: self.signals,
            reports: reports
                .map(|(pid, report)| (Pid::from_raw(pid), Report::unpack(report)))
                .collect(),
            readiness: Readiness::unpack(held.readiness, equipment.ready, equipment.layout),
            check: Check::unpack(held.check, equipment.check),
            upgrade,
            log,
            status_file,
            pid_file: held.pid_file.map(PidFile::unpack),
            socket_files: SocketFiles::unpack(held.socket_files),
            health: Health::unpack(held.health, backlog),
            // What it would warn of was there before the upgrade, too.
            look: Look::default(),
            manager,
            guard: guard.or(held.guard.map(Guard::unpack)),
            waiting: held.waiting.map(Waiting::unpack),
            reason: held.reason,
            has_hinted_at_streams: held.has_hinted_at_streams,
        };
        (resources, self.machine, notice)
    }
}

/// However many workers the next program is to have: the sockets are those of the one before.
fn as_it_is(machine: &Machine, options: &Options) -> Option<Switch> {
    options.listeners.switch.map(|switch| Switch {
        lanes: machine.lanes(),
        shards: machine.shards(),
        ..switch
    })
}

/// Those that live, for the log.
fn workers(machine: &Machine) -> impl Iterator<Item = Known> {
    let workers = machine.generations().flat_map(Generation::workers);
    workers.map(|worker| Known {
        generation: worker.generation,
        slot: worker.slot,
        pid: worker.pid,
    })
}

/// Why this program goes on, for the log.
fn what_happened(
    machine: &Machine,
    version: String,
    path: PathBuf,
    failure: Option<String>,
    guarded: Option<&Guarded>,
) -> Notice {
    match (guarded, failure) {
        (
            Some(Guarded {
                status, is_last, ..
            }),
            _,
        ) => Notice::Guarding(match is_last {
            true => Guarding::Last { status: *status },
            false => Guarding::Revived {
                status: *status,
                workers: workers(machine).count(),
            },
        }),
        (None, Some(cause)) => Notice::Upgrade(words::Upgrade::Failed { path, cause }),
        (None, None) => Notice::Upgrade(words::Upgrade::Done {
            from: version,
            to: words::ours().to_owned(),
        }),
    }
}

fn read(snapshot: RawFd) -> Result<State, String> {
    let text = read_all(borrowed(snapshot)).map_err(|error| failure::cause(&error))?;
    envelope::open(&text)
}

fn options_of(state: &State) -> Result<Options, String> {
    let words = state.upgrade.arguments.iter().skip(1).cloned();
    let options = match options::parse(words) {
        Ok(Invocation::Start(options)) => *options,
        Ok(_) => return Err("its command line starts no server".to_owned()),
        Err(failure) => {
            let why = failure.text();
            return Err(format!("its command line cannot be used: {why}"));
        }
    };
    // A worker must not get one of its descriptors in the place of one that is held for it.
    let listeners = state.held.listeners.iter().map(PackedListener::number);
    match layout(&options, listeners).highest <= state.held.highest {
        true => Ok(options),
        false => {
            Err("its workers have more descriptors than this version leaves room for".to_owned())
        }
    }
}
