//! What a worker gets so that it can prove itself, and the commands that are run for it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use crate::host::launcher::Change;
use crate::listeners::backlog::Backlog;
use crate::listeners::dialects::Announced;
use crate::ready::command::Running;
use crate::ready::line::Pipe;
use crate::ready::settings::Settings;

/// What a probe listener needs to know about the worker's other listeners.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// The probe listener's descriptor number in the worker.
    pub probe_number: RawFd,
    pub listeners: usize,
    /// The highest number that anything of ours has in a worker.
    pub highest: RawFd,
    pub backlog: i32,
    /// Whether listeners block, as they do unless a dialect requires otherwise.
    pub is_blocking: bool,
}

impl Layout {
    /// For a worker whose listeners have these numbers.
    pub fn new(
        listeners: impl Iterator<Item = RawFd>,
        settings: &Settings,
        backlog: Backlog,
        is_blocking: bool,
    ) -> Layout {
        let listeners: Vec<RawFd> = listeners.collect();
        let count = listeners.len();
        // What is kept for workers comes after the listeners.
        let last_kept = 2 + count + usize::from(settings.fd_store_max);
        let last_kept = RawFd::try_from(last_kept).unwrap_or(RawFd::MAX);
        let taken = listeners.into_iter().chain(settings.reserved_number());
        let taken: Vec<RawFd> = taken.collect();
        let probe_number = (3..).find(|number| !taken.contains(number));
        let probe_number = probe_number.unwrap_or(RawFd::MAX);
        let highest = taken.into_iter().chain([probe_number, last_kept]).max();
        Layout {
            probe_number,
            listeners: count,
            highest: highest.unwrap_or(probe_number),
            backlog: backlog.number(),
            is_blocking,
        }
    }
}

/// What a worker gets so that it can prove itself.
#[derive(Debug, Default)]
pub struct Handed {
    /// Descriptors with their numbers in the worker. Their numbers in this process are above all of these.
    pub descriptors: Vec<(OwnedFd, RawFd)>,
    pub variables: Vec<(OsString, OsString)>,
    pub probe: Option<Announced>,
    pub pipe: Option<Pipe>,
}

/// A command that is to be run for a worker.
pub struct Order<'a> {
    pub command: &'a OsStr,
    pub generation: u32,
    pub slot: usize,
    /// How that worker's environment differs from the launcher's.
    pub changes: &'a [Change],
    /// The probe listener, whose address is added to that environment.
    pub probe: Option<&'a Announced>,
}

/// Starts a command the way this worker would be started.
pub type Runner<'a> = dyn FnMut(&Order<'_>) -> io::Result<Running> + 'a;
