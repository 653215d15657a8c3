//! `--reopen`: USR1, and the reopened log file.

use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::server::{Say, Server};
use super::settings::Settings;
use super::status::{Status, no_status};
use super::wait::{Wait, Woken};
use crate::log;
use crate::status::file::json_path;
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::progress::reopened;
use crate::words::text::shortened;

/// Sends USR1 and waits until the log file is reopened.
pub fn reopen(settings: &Settings, say: Say<'_>) -> Result<(), Failure> {
    let server = Server::find(&settings.pid_file, say)?;
    let json = json_path(&settings.pid_file);
    let wait = Wait::new(&server, settings.timeout).watch(std::slice::from_ref(&json))?;
    let before = status(&server, &json).ok_or_else(|| {
        Failure::failed(format!(
            "cannot follow the log file of pid {}: {}",
            server.pid,
            no_status(&json)
        ))
    })?;
    let told = Instant::now();
    server.send(Signal::SIGUSR1)?;
    say(Notice::ReopenAsked { pid: server.pid });
    loop {
        if let Some(now) = status(&server, &json)
            && now.reopened() > before.reopened()
        {
            outcome(&server, &now)?;
            if !settings.is_quiet {
                log::show(&reopened(now.log_file(), told.elapsed().as_secs_f64()));
            }
            return Ok(());
        }
        match wait.next()? {
            Woken::FilesChanged | Woken::Due => {}
            Woken::ServerEnded => {
                return Err(server.has_exited("cannot reopen the log file"));
            }
            Woken::TimedOut => {
                return Err(wait.timed_out("the log file").hint_if(server.is_stopped()));
            }
        }
    }
}

fn status(server: &Server, json: &Path) -> Option<Status> {
    Status::read(json).filter(|status| status.is_of(server.pid))
}

fn outcome(server: &Server, now: &Status) -> Result<(), Failure> {
    let Some(cause) = now.reopen_failure() else {
        return Ok(());
    };
    let file = now.log_file().map(|file| format!("{}, ", shortened(file)));
    Err(Failure::failed(format!(
        "cannot reopen {}the log file of pid {}: {}",
        file.unwrap_or_default(),
        server.pid,
        shortened(cause)
    )))
}
