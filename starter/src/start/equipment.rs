//! From the command line and the listeners to what every worker gets.

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;

use crate::host::launcher::Handover;
use crate::host::open_files::OpenFiles;
use crate::listeners::backlog::Backlog;
use crate::listeners::dialects::{Announced, Dialect};
use crate::listeners::lanes::Lanes;
use crate::options::Options;
use crate::ready::{self, Layout};
use crate::worker::Blueprint;

/// What has come of the start besides the command line.
pub struct Found {
    pub announced: Vec<Announced>,
    /// Sockets with their numbers in the workers.
    pub sockets: Vec<(OwnedFd, RawFd)>,
    /// The further sockets of those that have lanes.
    pub lanes: Lanes,
    pub handover: Rc<Handover>,
    pub own_session: bool,
    pub open_files: OpenFiles,
}

/// What every worker gets, and how it proves itself.
pub struct Equipment {
    pub blueprint: Blueprint,
    pub ready: ready::Settings,
    pub layout: Layout,
    /// The command of `--check`.
    pub check: Option<OsString>,
}

/// What has which number in a worker whose listeners have these.
pub fn layout(options: &Options, listeners: impl Iterator<Item = RawFd>) -> Layout {
    let listening = &options.listeners;
    Layout::new(
        listeners,
        &options.ready,
        Backlog::new(listening.backlog),
        !listening.dialects.contains(&Dialect::Nginx),
    )
}

impl Equipment {
    pub fn new(options: Options, found: Found) -> Equipment {
        let layout = layout(&options, found.announced.iter().map(|one| one.number));
        let (listening, worker) = (options.listeners, options.worker);
        Equipment {
            blueprint: Blueprint {
                program: worker.program,
                arguments: worker.arguments,
                directory: worker.directory,
                label: worker.label,
                handover: found.handover,
                announced: found.announced,
                highest: layout.highest,
                dialects: listening.dialects,
                own_session: found.own_session,
                sockets: found.sockets,
                lanes: found.lanes,
                open_files: found.open_files,
            },
            ready: options.ready,
            layout,
            check: worker.check,
        }
    }
}
