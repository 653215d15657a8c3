//! `--upgrade`: USR2, and whether another version of the program has taken over.

use std::path::Path;

use nix::sys::signal::Signal;

use super::server::{Say, Server};
use super::settings::Settings;
use super::status::{Status, no_status};
use super::wait::{Wait, Woken};
use crate::log;
use crate::status::file::json_path;
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::remedy;
use crate::words::text::shortened;
use crate::words::upgrade::success;

/// Sends USR2 and waits until the program file was executed again, or until it is known why it was not.
pub fn upgrade(settings: &Settings, say: Say<'_>) -> Result<(), Failure> {
    let server = Server::find(&settings.pid_file, say)?;
    let cannot =
        |cause: &str| Failure::failed(format!("cannot upgrade pid {}: {cause}", server.pid));
    let json = json_path(&settings.pid_file);
    let wait = Wait::new(&server, settings.timeout).watch(std::slice::from_ref(&json))?;
    let before = status(&server, &json).ok_or_else(|| cannot(&no_status(&json)))?;
    if !before.can_upgrade() {
        let version = shortened(before.version());
        let cause = format!("its version {version} cannot be upgraded in place");
        return Err(cannot(&cause).hint(remedy::STOP_AND_START));
    }
    server.send(Signal::SIGUSR2)?;
    say(Notice::UpgradeAsked { pid: server.pid });
    let tried = |status: &Status| status.upgrades().0;
    loop {
        if let Some(now) = status(&server, &json)
            && tried(&now) > tried(&before)
        {
            return match now.upgrades().1 {
                Some(cause) => Err(cannot(&shortened(cause))),
                None => {
                    if !settings.is_quiet {
                        log::show(&success(server.pid, before.version(), now.version()));
                    }
                    Ok(())
                }
            };
        }
        match wait.next()? {
            Woken::FilesChanged | Woken::Due => {}
            Woken::ServerEnded => return Err(server.has_exited("cannot upgrade")),
            Woken::TimedOut => {
                return Err(wait.timed_out("the upgrade").hint_if(server.is_stopped()));
            }
        }
    }
}

fn status(server: &Server, json: &Path) -> Option<Status> {
    Status::read(json).filter(|status| status.is_of(server.pid))
}
