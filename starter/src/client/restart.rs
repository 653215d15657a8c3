//! `--restart`: HUP, and the verdict on the new generation.

use nix::sys::signal::Signal;

use super::follower::Follower;
use super::server::{Say, Server};
use super::settings::Settings;
use super::wait::{Wait, Woken};
use crate::status::file::json_path;
use crate::words::failure::Failure;
use crate::words::notice::Notice;

/// Sends HUP and waits for the verdict: committed and the old generation gone, or failed.
pub fn restart(settings: &Settings, say: Say<'_>) -> Result<(), Failure> {
    let server = Server::find(&settings.pid_file, say)?;
    let mut files = vec![json_path(&settings.pid_file)];
    files.extend(settings.status_file.as_deref().map(json_path));
    files.extend(settings.status_file.clone());
    // Both before the signal, so that none of its consequences can be missed.
    let wait = Wait::new(&server, settings.timeout).watch(&files)?;
    let mut follower = Follower::before(&server, settings)?;
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
                    "cannot restart: pid {} has exited",
                    server.pid
                )));
            }
            Woken::TimedOut => {
                let waits_for = follower.waits_for(&server, &json_path(&settings.pid_file));
                return Err(wait.timed_out("the restart").hint(waits_for));
            }
        }
    }
}
