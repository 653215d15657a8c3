//! `--daemonize`: the superdaemon leaves its terminal, and the process that was started waits for its first verdict.

use std::fs::File;
use std::io::{Read, Write};

use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, dup2_stdin, pipe2, setsid};

use crate::host::process::{exit_child, fork_single_threaded};
use crate::words::failure::Failure;

/// Which process this is now.
pub enum Side {
    /// The one that was started: what became of the superdaemon.
    Launcher(Result<(), Failure>),
    /// The superdaemon.
    Daemon(Waiting),
}

/// The process that waits to hear how the start has gone.
pub struct Waiting(File);

/// Forks twice, as daemons do: the second process leads no session, so that it never gets a terminal back.
pub fn detach(keep_stdin: bool) -> Result<Side, Failure> {
    let cannot =
        |errno: nix::Error| Failure::failed(format!("cannot become a daemon: {}", errno.desc()));
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(cannot)?;
    match fork_single_threaded().map_err(cannot)? {
        ForkResult::Parent { child } => {
            drop(theirs);
            // The process in between is gone before this one returns: a service manager would take it for the daemon.
            waitpid(child, None).map_err(cannot)?;
            Ok(Side::Launcher(hear(File::from(ours))))
        }
        ForkResult::Child => {
            drop(ours);
            setsid().map_err(cannot)?;
            match fork_single_threaded().map_err(cannot)? {
                ForkResult::Parent { .. } => exit_child(0),
                ForkResult::Child => {
                    if !keep_stdin {
                        let null = File::open("/dev/null").map_err(|error| {
                            Failure::failed(format!("cannot open /dev/null: {error}"))
                        })?;
                        dup2_stdin(null).map_err(cannot)?;
                    }
                    Ok(Side::Daemon(Waiting(File::from(theirs))))
                }
            }
        }
    }
}

impl Waiting {
    /// The first generation serves.
    pub fn tell_success(mut self) {
        // Whoever started us may have gone away meanwhile.
        drop(self.0.write_all(NO_FAILURE));
    }

    /// The start has failed; this is what the terminal is to show.
    pub fn tell_failure(mut self, failure: &Failure) {
        // It has no keys but strings, so that it can always be written as JSON.
        let message = serde_json::to_vec(&Some(failure)).unwrap_or_default();
        // Whoever started us may have gone away meanwhile.
        drop(self.0.write_all(&message));
    }
}

/// What a verdict can be long, with the last lines of a worker, in bytes. The daemon has not the rights of its launcher,
/// whose memory is not for it.
const LONGEST_VERDICT: u64 = 1 << 20;

/// The verdict "no failure" in JSON: the first generation serves.
const NO_FAILURE: &[u8] = b"null";

/// The verdict, as soon as there is one.
fn hear(from: File) -> Result<(), Failure> {
    let mut message = Vec::new();
    from.take(LONGEST_VERDICT)
        .read_to_end(&mut message)
        .map_err(|error| Failure::failed(format!("cannot read from the daemon: {error}")))?;
    match serde_json::from_slice::<Option<Failure>>(&message) {
        Ok(None) => Ok(()),
        Ok(Some(failure)) => Err(failure),
        Err(_) => Err(Failure::failed(
            "cannot start: the daemon exited without giving a reason",
        )),
    }
}
