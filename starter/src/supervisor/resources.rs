//! What the superdaemon holds while it runs, and the order in which it releases it.

use std::collections::BTreeMap;
use std::rc::Rc;

use nix::unistd::Pid;

use crate::host::daemon::Waiting;
use crate::host::identity::Login;
use crate::host::signals::Signals;
use crate::listeners::health::Health;
use crate::listeners::socket_files::SocketFiles;
use crate::log::Log;
use crate::machine::Knobs;
use crate::manager::Manager;
use crate::ready::Readiness;
use crate::status::file::StatusFile;
use crate::status::pid_file::PidFile;
use crate::supervisor::check::Check;
use crate::supervisor::guard::Guard;
use crate::supervisor::queues::Look;
use crate::supervisor::upgrade::Upgrade;
use crate::words::failure::Failure;
use crate::words::start_failure::StartFailure;
use crate::worker::environment::Environment;
use crate::worker::{Blueprint, Change, Pin, Report};

/// Everything that the loop reads from and acts on.
pub struct Resources {
    pub blueprint: Blueprint,
    /// Whose the environment of our children is to be, if not the launcher's.
    pub login: Option<Login>,
    pub environment: Environment,
    /// What a worker may be started from again, by the number of the generation that was started from it.
    pub pins: BTreeMap<u32, Rc<Pin>>,
    pub signals: Signals,
    /// Workers that have neither executed the program nor failed to do so yet.
    pub reports: Vec<(Pid, Report)>,
    pub readiness: Readiness,
    pub check: Check,
    pub upgrade: Upgrade,
    pub log: Log,
    pub status_file: StatusFile,
    pub pid_file: Option<PidFile>,
    pub socket_files: SocketFiles,
    pub health: Health,
    /// The next one at what waits in the queues of the listeners.
    pub look: Look,
    pub manager: Manager,
    /// The guardian, with `--guardian`.
    pub guard: Option<Guard>,
    /// The launcher, while it waits for the first generation to serve.
    pub waiting: Option<Waiting>,
    /// Why it exits, if the machine does not know the reason.
    pub reason: Option<Failure>,
    /// Whether a failed start has already led to the hint about the streams that the user cannot open.
    pub has_hinted_at_streams: bool,
}

impl Resources {
    /// Reads the environment of the next worker. What is wrong with it is said once.
    pub fn load_environment(&mut self) -> (Result<Vec<Change>, StartFailure>, Knobs) {
        let loaded = self.environment.load();
        for notice in &loaded.notices {
            self.log.say(notice);
        }
        (loaded.changes, loaded.knobs)
    }

    /// Shuts the superdaemon down once no worker is left. Others rely on the order:
    ///
    /// 1. The status files are removed: they would name workers that are gone.
    /// 2. Unix socket files are removed, here and by the binder, which then exits. This precedes closing the sockets:
    ///    a client finds that nothing is there, rather than being refused.
    /// 3. What readiness and the check still hold is released, and the listeners are closed: from now on the next
    ///    superdaemon can bind.
    /// 4. The log gets its last lines, the binder's among them.
    /// 5. The pid file is removed, because its lock signals that everything else is over.
    /// 6. A launcher that waits for the first generation learns that there is none: it may try again at once.
    pub fn shut_down(self, failure: &Failure) {
        let Resources {
            blueprint,
            readiness,
            check,
            upgrade,
            log,
            status_file,
            pid_file,
            socket_files,
            waiting,
            ..
        } = self;
        drop(status_file);
        drop(socket_files);
        drop(readiness);
        drop(check);
        // A program that is being tried has copies of everything.
        drop(upgrade);
        drop(blueprint);
        log.end();
        drop(pid_file);
        if let Some(waiting) = waiting {
            waiting.tell_failure(failure);
        }
    }
}
