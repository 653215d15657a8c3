//! The hints of the commands: a restart, a rollback, another number of workers.

use std::fmt::Display;
use std::path::Path;

use crate::words::text::quoted;

/// This place says more about a failed start: `the log`.
pub fn see_for_more(place: &str) -> String {
    format!("see {place} for more")
}

/// A generation failed to start, and there is advice about that.
pub fn until_it_is_retried(advice: &str) -> String {
    format!(
        "{advice}; start_server keeps trying until a start succeeds or --start-limit is reached"
    )
}

/// A generation failed to start for the last time, and there is advice about that.
pub fn until_the_next_restart(advice: &str) -> String {
    format!(
        "{advice}; --start-limit is reached: start_server does not try again until the next restart"
    )
}

/// A restart has failed, there is advice about that, and what served before was started again.
pub fn until_it_is_asked_for(advice: &str) -> String {
    format!("{advice}; the restart is not tried again by itself")
}

/// Only a generation with sockets of its own can get a share.
pub const CANARY_NEEDS_LANES: &str =
    "start the server with --switch, and a port that start_server opens itself";

/// Only ports can have several sockets.
pub const SWITCH_PORTS: &str = "only ports that start_server opens itself can have a socket for each generation: without \
     =required, this one is shared";

/// A port that an earlier start has left with the service manager has too few sockets.
pub const SWITCH_ANEW: &str = "stop the service, so that its manager forgets the sockets of an earlier start, and start it again";

/// The kernel does not let a program choose the socket.
pub const SWITCH_KERNEL: &str = "it needs Linux 4.5 or later, and a container or unit must not forbid it; without \
     =required, this is a warning, and all generations share the listeners";

/// What a rollback leads to is about to go.
pub const ROLL_BACK_LATER: &str =
    "try again once they have exited: what they were started from is then started again";

/// The last worker cannot be taken away.
pub const STOP_INSTEAD: &str = "--stop ends the server";

/// There would be more workers than the limits allow.
pub const RAISE_LIMITS: &str = "raise the limits (ulimit -n, ulimit -u), or ask for fewer workers";

/// A server is stopping, and these workers hold it up.
pub fn waits_for_workers(workers: &str) -> String {
    format!("it is waiting for its workers to exit: {workers}")
}

/// A restart takes longer than the client waits, and the client does not know why.
pub fn progress_in(json: &Path) -> String {
    format!(
        "{} shows the progress of the restart, unless the server cannot write it: then its log says why",
        quoted(json)
    )
}

/// A pid file is missing, but the status file beside it names a living process.
pub fn maybe_the_server(json: &Path, pid: impl Display) -> String {
    format!(
        "{} names pid {pid}: if that is a start_server, `kill -HUP {pid}` makes it rewrite the pid file, and restarts its workers",
        quoted(json)
    )
}
