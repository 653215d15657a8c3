//! `--stop`: TERM, and the exit of the server.

use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::getpid;

use super::server::{Say, Server};
use super::settings::Settings;
use super::status::Status;
use super::wait::{Wait, Woken};
use crate::log;
use crate::status::file::json_path;
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::progress::stopped;
use crate::words::remedy;

/// Sends TERM and waits for the exit.
pub fn stop(settings: &Settings, say: Say<'_>) -> Result<(), Failure> {
    let server = Server::find(&settings.pid_file, say)?;
    say(Notice::StopServer {
        ours: getpid(),
        theirs: server.pid,
    });
    let told = Instant::now();
    server.send(Signal::SIGTERM)?;
    let wait = Wait::new(&server, settings.timeout);
    match wait.next()? {
        Woken::ServerEnded if server.goes_on() => Err(server.has_exited("cannot stop")),
        Woken::ServerEnded | Woken::FilesChanged | Woken::Due => {
            if !settings.is_quiet {
                log::show(&stopped(told.elapsed().as_secs_f64()));
            }
            Ok(())
        }
        Woken::TimedOut => Err(wait
            .timed_out("the end")
            .hint(server.is_stopped().unwrap_or_else(|| {
                let status = Status::read(&json_path(&settings.pid_file));
                let status = status.filter(|status| status.is_of(server.pid));
                remedy::workers_that_do_not_exit(status.map(|status| status.all_workers()))
            }))),
    }
}
