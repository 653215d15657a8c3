//! Everything that one program of this process leaves to the next: as plain data, with descriptors by their numbers.
//!
//! Not in it is what the command line says, which the next program reads itself, and what the process keeps through an exec:
//! its pid, user, directory, limits, and the signals that are blocked and pending.

use common::privileges;
use nix::sys::prctl;
use serde::{Deserialize, Serialize};

use crate::host::daemon::{PackedWaiting, Waiting};
use crate::host::identity::Login;
use crate::host::luggage::Luggage;
use crate::host::open_files::OpenFiles;
use crate::listeners::health::PackedHealth;
use crate::listeners::lanes::PackedGroup;
use crate::listeners::packed::{self as listeners, PackedListener};
use crate::listeners::socket_files::PackedFiles;
use crate::log;
use crate::machine::{Machine, Snapshot};
use crate::manager::PackedManager;
use crate::ready::PackedReadiness;
use crate::status::file::PackedStatusFile;
use crate::status::pid_file::{PackedPidFile, PidFile};
use crate::supervisor::check::PackedCheck;
use crate::supervisor::envelope;
use crate::supervisor::guard::{Guard, PackedGuard};
use crate::supervisor::resources::Resources;
use crate::supervisor::upgrade::{self, Legacy};
use crate::words::failure::Failure;
use crate::words::upgrade::ours;
use crate::worker::PackedReport;
use crate::worker::pins::PackedPins;

/// The whole superdaemon.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// That of the program that has written it.
    pub version: String,
    pub confinement: Confinement,
    pub machine: Snapshot,
    pub upgrade: upgrade::Packed,
    pub held: Held,
}

/// What the loop holds besides the machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct Held {
    pub listeners: Vec<PackedListener>,
    /// The further sockets of each listener that has lanes.
    #[serde(default)]
    pub lanes: Vec<Option<PackedGroup>>,
    /// Whose environment workers get, if not the launcher's.
    pub login: Option<Login>,
    pub own_session: bool,
    /// The highest number that anything of ours has in a worker: what is held open here is above it.
    pub highest: i32,
    pub open_files: OpenFiles,
    pub pins: PackedPins,
    pub reports: Vec<(i32, PackedReport)>,
    pub readiness: PackedReadiness,
    pub check: PackedCheck,
    pub log: log::Packed,
    pub status_file: PackedStatusFile,
    pub pid_file: Option<PackedPidFile>,
    pub socket_files: PackedFiles,
    pub health: PackedHealth,
    pub manager: PackedManager,
    pub guard: Option<PackedGuard>,
    pub waiting: Option<PackedWaiting>,
    pub reason: Option<Failure>,
    pub has_hinted_at_streams: bool,
}

/// What the process must not have lost, and cannot get back.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Confinement {
    /// It has dropped root's privileges.
    is_undumpable: bool,
    no_new_privs: bool,
}

impl Confinement {
    fn of_process() -> nix::Result<Confinement> {
        Ok(Confinement {
            is_undumpable: !prctl::get_dumpable()?,
            no_new_privs: prctl::get_no_new_privs()?,
        })
    }

    /// Makes this program what the one before was: an exec keeps all but one of it. And proves it.
    ///
    /// # Errors
    /// What does not hold.
    pub fn prove(self) -> Result<(), String> {
        privileges::retain_only(&[])?;
        if self.no_new_privs && prctl::get_no_new_privs() != Ok(true) {
            return Err("no_new_privs did not hold".to_owned());
        }
        match self.is_undumpable {
            true => privileges::become_undumpable(),
            false => Ok(()),
        }
    }
}

impl Resources {
    /// What the next program gets. Take it when no action and no finding is pending.
    ///
    /// # Errors
    /// Why it cannot be written down.
    pub fn legacy(&self, machine: &Machine, guard: Option<&Guard>) -> Result<Legacy, String> {
        let mut luggage = Luggage::default();
        let state = State {
            version: ours().to_owned(),
            confinement: Confinement::of_process().map_err(|errno| errno.desc().to_owned())?,
            machine: machine.snapshot(),
            upgrade: self.upgrade.pack(),
            held: Held {
                // Only another program of this process takes the connection over.
                guard: guard.map(|guard| guard.pack(&mut luggage)),
                ..self.pack(&mut luggage)
            },
        };
        // A version without lanes would give a worker a socket to which nobody comes.
        let format = match machine.selected() {
            Some(_) => envelope::FORMAT,
            None => envelope::FIRST,
        };
        let text = envelope::seal(&state, format)?;
        Ok(Legacy { text, luggage })
    }

    fn pack(&self, luggage: &mut Luggage) -> Held {
        let blueprint = &self.blueprint;
        let reports = self.reports.iter();
        Held {
            listeners: listeners::pack(&blueprint.sockets, &blueprint.announced, luggage),
            lanes: blueprint.lanes.pack(luggage),
            login: self.login.clone(),
            own_session: blueprint.own_session,
            highest: blueprint.highest,
            open_files: blueprint.open_files,
            pins: PackedPins::pack(&self.pins, luggage),
            reports: reports
                .map(|(pid, report)| (pid.as_raw(), report.pack(luggage)))
                .collect(),
            readiness: self.readiness.pack(luggage),
            check: self.check.pack(luggage),
            log: self.log.pack(luggage),
            status_file: self.status_file.pack(luggage),
            pid_file: self
                .pid_file
                .as_ref()
                .map(|file| PidFile::pack(file, luggage)),
            socket_files: self.socket_files.pack(luggage),
            health: self.health.pack(),
            manager: self.manager.pack(luggage),
            guard: None,
            waiting: self.waiting.as_ref().map(|one| Waiting::pack(one, luggage)),
            reason: self.reason.clone(),
            has_hinted_at_streams: self.has_hinted_at_streams,
        }
    }
}
