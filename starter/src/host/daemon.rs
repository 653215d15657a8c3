//! `--daemonize`: the superdaemon leaves its terminal, and the launched process waits for the first verdict.

use std::fs::File;
use std::io::{Read, Write};

use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, dup2_stdin, pipe2, setsid};
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};
use crate::host::process::{exit_child, fork_single_threaded, is_first};
use crate::words::failure::{Failure, Status};
use crate::words::remedy;

/// Which of the processes this is.
pub enum Side {
    /// The launched process, with the result of the start.
    Launcher(Result<(), Failure>),
    /// The superdaemon.
    Daemon(Waiting),
}

/// The connection to the launched process, which waits for the result of the start.
pub struct Waiting(File);

/// The same for the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedWaiting(Carried);

/// Pid 1 cannot leave its container, which would end with it.
pub fn refuse_first() -> Result<(), Failure> {
    match is_first() {
        true => {
            let cause = "cannot run in the background: this is pid 1, and with pid 1 all processes of a container end";
            Err(Failure::failed(cause).hint(remedy::NOT_IN_THE_BACKGROUND))
        }
        false => Ok(()),
    }
}

/// Forks twice, as daemons do: the second process is not a session leader, so it can never acquire a terminal again.
pub fn detach(keep_stdin: bool) -> Result<Side, Failure> {
    let cannot =
        |errno: nix::Error| Failure::failed(format!("cannot become a daemon: {}", errno.desc()));
    refuse_first()?;
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(cannot)?;
    match fork_single_threaded().map_err(cannot)? {
        ForkResult::Parent { child } => {
            drop(theirs);
            // The intermediate process exits before this one returns: a service manager would take it for the daemon.
            waitpid(child, None).map_err(cannot)?;
            Ok(Side::Launcher(read_verdict(File::from(ours))))
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
    /// For the next program, which may be the one that tells the result.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedWaiting {
        PackedWaiting(luggage.put(&self.0))
    }

    /// What another program has packed.
    pub fn unpack(PackedWaiting(pipe): PackedWaiting) -> Waiting {
        Waiting(pipe.take().into())
    }

    /// Reports that the first generation serves.
    pub fn tell_success(mut self) {
        // The launched process may be gone by now.
        drop(self.0.write_all(NO_FAILURE));
    }

    /// Reports that the start failed, for the terminal to show.
    pub fn tell_failure(mut self, failure: &Failure) {
        // All its keys are strings, so it can always be written as JSON.
        let message = serde_json::to_vec(&Some(failure)).unwrap_or_default();
        // The launched process may be gone by now.
        drop(self.0.write_all(&message));
    }
}

/// The size limit of a verdict with the last lines of a worker, in bytes. The daemon does not have the launcher's
/// privileges and must not be able to use up its memory.
const LONGEST_VERDICT: u64 = 1 << 18;

/// The verdict "no failure" in JSON: the first generation serves.
const NO_FAILURE: &[u8] = b"null";

/// Waits for the verdict.
fn read_verdict(from: File) -> Result<(), Failure> {
    let mut message = Vec::new();
    from.take(LONGEST_VERDICT)
        .read_to_end(&mut message)
        .map_err(|error| Failure::failed(format!("cannot read from the daemon: {error}")))?;
    match serde_json::from_slice::<Option<Failure>>(&message) {
        Ok(None) => Ok(()),
        Ok(Some(failure)) if failure.status == Status::Done => Err(no_verdict()),
        Ok(Some(failure)) => Err(failure),
        Err(_) => Err(no_verdict()),
    }
}

fn no_verdict() -> Failure {
    Failure::failed("cannot start: the daemon exited without giving a reason")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_next_program_tells_the_launched_process_the_result() {
        for failure in [None, Some(Failure::failed("cannot start"))] {
            let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let waiting = Waiting(File::from(theirs));
            let text = serde_json::to_string(&waiting.pack(&mut Luggage::default())).unwrap();
            drop(waiting);
            let waiting = Waiting::unpack(serde_json::from_str(&text).unwrap());
            match &failure {
                None => waiting.tell_success(),
                Some(failure) => waiting.tell_failure(failure),
            }
            let told = read_verdict(File::from(ours)).err();
            let text = |failure: &Failure| failure.to_string();
            assert_eq!(told.as_ref().map(text), failure.as_ref().map(text));
        }
    }
}
