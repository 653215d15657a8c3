//! `--restart`: HUP, and the verdict on the new generation.

use nix::sys::signal::Signal;

use super::follower::Follower;
use super::server::Server;
use super::{Say, Wait, Woken};
use crate::options::ClientOptions;
use crate::status::file::json_path;
use crate::words::failure::Failure;
use crate::words::notice::Notice;

/// Sends HUP and waits for the verdict: committed and the old generation gone, or failed.
pub fn restart(options: &ClientOptions, say: Say<'_>) -> Result<(), Failure> {
    let server = Server::find(&options.pid_file, say)?;
    let mut files = vec![json_path(&options.pid_file)];
    files.extend(options.status_file.as_deref().map(json_path));
    files.extend(options.status_file.clone());
    // Both before the signal, so that nothing that follows from it can be missed.
    let wait = Wait::new(&server, options.timeout).watch(&files)?;
    let mut follower = Follower::before(&server, options)?;
    server.send(Signal::SIGHUP)?;
    say(Notice::RestartAsked { pid: server.pid });
    loop {
        if let Some(verdict) = follower.verdict(&server) {
            return verdict;
        }
        match wait.next()? {
            Woken::FilesChanged => {}
            Woken::ServerEnded => {
                return Err(Failure::failed(format!(
                    "cannot restart: pid {} has ended",
                    server.pid
                )));
            }
            Woken::TimedOut => {
                let waits_for = follower.waits_for(&server, &json_path(&options.pid_file));
                return Err(wait.timed_out("the restart").hint(waits_for));
            }
        }
    }
}
