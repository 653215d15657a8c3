//! How many workers there can be: one for each CPU where that is asked for, and no more than the limits allow. Found out
//! before anything is started.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use nix::sys::resource::{Resource, getrlimit, rlim_t};

use crate::host::open_files::OpenFiles;
use crate::machine::{self, Proof};
use crate::options::{Options, Workers};
use crate::ready::Ready;
use crate::words::failure::Failure;
use crate::words::many;

/// What the supervisor itself has open, besides its listeners.
const OWN_DESCRIPTORS: rlim_t = 64;

/// The same options with the numbers that this host decides on. Makes room for the descriptors that the workers need.
///
/// # Errors
/// More workers are asked for than the limits allow.
pub fn settle(mut options: Options) -> Result<Options, Failure> {
    options.machine = machine(&options, OpenFiles::of_launcher()?)?;
    let workers = options.machine.workers;
    let switch = options.listeners.switch;
    options.listeners.switch = switch.map(|switch| switch.with_workers(workers));
    Ok(options)
}

fn machine(options: &Options, open_files: OpenFiles) -> Result<machine::Settings, Failure> {
    // As many as our affinity mask and the quota of our cgroup allow (sched_getaffinity(2), cgroups(7)).
    let cpus = available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let workers = match options.workers {
        Workers::Number(number) => number.into(),
        Workers::Auto => cpus.get(),
    };
    let settings = machine::Settings {
        workers,
        start_parallel: match options.machine.proof {
            Proof::Interval => options.machine.start_parallel,
            Proof::Told { .. } => options.machine.start_parallel.or(Some(cpus)),
        },
        ..options.machine.clone()
    };
    // Whether there is room for a single one is found out where it is needed.
    let most = most_workers(options, &settings, open_files).max(1);
    match workers <= most {
        true => Ok(machine::Settings {
            most_workers: most,
            ..settings
        }),
        false => {
            let cause = many::too_many(workers, most);
            Err(Failure::failed(format!("cannot start: {}", cause.cause)).hint_if(cause.hint))
        }
    }
}

/// Makes room for everything that the supervisor may have open with so many workers.
pub fn make_room(options: &Options, open_files: OpenFiles) -> Result<(), Failure> {
    let workers = rlim_t::try_from(options.machine.workers).unwrap_or(rlim_t::MAX);
    let of_workers = workers.saturating_mul(2 * descriptors_of_a_worker(options));
    let all = reserved(options).saturating_add(of_workers);
    open_files.make_room_for(usize::try_from(all).unwrap_or(usize::MAX))
}

/// A restart has twice as many for a while, or a rolling one a few more.
fn most_workers(options: &Options, settings: &machine::Settings, open_files: OpenFiles) -> usize {
    let fits = |processes: rlim_t| {
        let most = match settings.rolling {
            None => processes / 2,
            Some(more) => processes.saturating_sub(rlim_t::try_from(more.get()).unwrap_or(0)),
        };
        usize::try_from(most).unwrap_or(usize::MAX)
    };
    let by_files =
        open_files.hard.saturating_sub(reserved(options)) / descriptors_of_a_worker(options);
    let limit = getrlimit(Resource::RLIMIT_NPROC).map_or(rlim_t::MAX, |(soft, _)| soft);
    // The supervisor and a guardian are processes too.
    let by_processes = limit.saturating_sub(2);
    fits(by_files).min(fits(by_processes))
}

/// What it holds besides that.
fn reserved(options: &Options) -> rlim_t {
    let listening = &options.listeners;
    let lanes = listening.switch.map_or(1, |switch| switch.sockets().into());
    let sockets = listening.ports.len() * lanes + listening.paths.len();
    let sockets = rlim_t::try_from(sockets).unwrap_or(rlim_t::MAX);
    OWN_DESCRIPTORS.saturating_add(sockets.saturating_mul(3))
}

/// How many the supervisor holds for each.
fn descriptors_of_a_worker(options: &Options) -> rlim_t {
    // The report of its exec, and its output.
    let of_output = if options.log.captures() { 3 } else { 1 };
    of_output
        + match options.ready.ready {
            Ready::Interval | Ready::Notify => 0,
            Ready::Descriptor(_) | Ready::Command(_) => 1,
            // The listener and a connection to it.
            Ready::Accept | Ready::Http { .. } => 2,
        }
}
