//! What the superdaemon has in its hands while it runs, and the order in which it lets go of it.

use nix::unistd::Pid;

use crate::host::daemon::Waiting;
use crate::listeners::bind::SocketFiles;
use crate::listeners::health::Health;
use crate::log::Log;
use crate::machine::Knobs;
use crate::status::file::StatusFile;
use crate::status::pid_file::PidFile;
use crate::supervisor::signals::Signals;
use crate::words::failure::Failure;
use crate::worker::environment::Environment;
use crate::worker::{Blueprint, Change, Report};

/// Everything that the loop reads from and acts on.
pub struct Resources {
    pub blueprint: Blueprint,
    pub environment: Environment,
    pub signals: Signals,
    /// Workers that have neither executed the program nor failed to.
    pub reports: Vec<(Pid, Report)>,
    pub log: Log,
    pub status_file: StatusFile,
    pub pid_file: Option<PidFile>,
    pub socket_files: SocketFiles,
    pub health: Health,
    /// Whoever waits for the first generation to serve.
    pub waiting: Option<Waiting>,
    /// Why it ends, where that is not for the machine to say.
    pub reason: Option<Failure>,
}

impl Resources {
    /// Reads the environment of the next worker. What is wrong with it is said once.
    pub fn load_environment(&mut self) -> (Vec<Change>, Knobs) {
        let loaded = self.environment.load();
        for notice in &loaded.notices {
            self.log.say(notice);
        }
        (loaded.changes, loaded.knobs)
    }

    /// The end of the superdaemon, when no worker is left. The order is what others rely on:
    ///
    /// 1. Whoever waits for the first generation hears that there is none.
    /// 2. The status files go: they would name workers that are gone.
    /// 3. The files of unix sockets go, here and by the binder, which ends with that. Before their sockets are closed:
    ///    a client finds that nobody is there, and not that somebody refuses it.
    /// 4. The listeners are closed: from now on the next superdaemon can bind.
    /// 5. The log gets its last lines, the binder's among them.
    /// 6. The pid file goes. Last, because its lock is the sign that everything else is over.
    pub fn let_go(self, failure: &Failure) {
        let Resources {
            blueprint,
            log,
            status_file,
            pid_file,
            socket_files,
            waiting,
            ..
        } = self;
        if let Some(waiting) = waiting {
            waiting.tell_failure(failure);
        }
        drop(status_file);
        drop(socket_files);
        drop(blueprint);
        log.end();
        drop(pid_file);
    }
}
