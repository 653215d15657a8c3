//! `--scale`: another number of workers, and whether they serve.

use std::path::Path;
use std::time::Instant;

use super::server::{Say, Server};
use super::settings::Settings;
use super::status::{Status, no_status};
use super::wait::{Wait, Woken};
use crate::host::order::Order;
use crate::log;
use crate::status::file::json_path;
use crate::status::view::Scaling;
use crate::words::failure::Failure;
use crate::words::many::scaled;
use crate::words::notice::Notice;
use crate::words::text::shortened;

/// What is asked for, as a verb.
const SCALE: &str = "scale";

/// Orders so many workers and waits until they serve, or for the reason why they do not.
pub fn scale(settings: &Settings, workers: u16, say: Say<'_>) -> Result<(), Failure> {
    let server = Server::find(&settings.pid_file, say)?;
    let cannot = |cause: &str| {
        Failure::failed(format!(
            "cannot scale pid {} to {workers} workers: {cause}",
            server.pid
        ))
    };
    let json = json_path(&settings.pid_file);
    let wait = Wait::new(&server, settings.timeout).watch(std::slice::from_ref(&json))?;
    let before = status(&server, &json).ok_or_else(|| cannot(&no_status(&json)))?;
    let order = Order::Scale(workers);
    if !before.obeys(order) {
        return Err(before.too_old(SCALE));
    }
    if let Some(failure) = before.stopping(SCALE) {
        return Err(failure);
    }
    let last = before.scaling().map_or(0, |scaling| scaling.number);
    let told = Instant::now();
    server.order(order)?;
    say(Notice::ScaleAsked {
        pid: server.pid,
        workers,
    });
    loop {
        let now = status(&server, &json);
        let scaling = now.as_ref().and_then(Status::scaling);
        match scaling.filter(|scaling| scaling.number > last) {
            Some(Scaling {
                cause: Some(cause),
                hint,
                ..
            }) => return Err(cannot(&shortened(cause)).hint_if(hint.as_ref().map(shortened))),
            Some(other) if other.to != u64::from(workers) => {
                return Err(cannot("another number was asked for meanwhile"));
            }
            Some(done) if done.done_at.is_some() => {
                if !settings.is_quiet {
                    let took = told.elapsed().as_secs_f64();
                    log::show(&scaled(done.from, done.to, took));
                }
                return Ok(());
            }
            Some(_) | None => {}
        }
        if let Some(failure) = now.and_then(|now| now.stopping(SCALE)) {
            return Err(failure);
        }
        match wait.next()? {
            Woken::FilesChanged | Woken::Due => {}
            Woken::ServerEnded => return Err(cannot("it has exited")),
            Woken::TimedOut => {
                return Err(wait.timed_out("the workers").hint_if(server.is_stopped()));
            }
        }
    }
}

fn status(server: &Server, json: &Path) -> Option<Status> {
    Status::read(json).filter(|status| status.is_of(server.pid))
}
