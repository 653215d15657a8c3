//! `--restart`, `--promote`, `--rollback` and `--abort`: what is sent, and the verdict on the generation that it leads to.

use nix::sys::signal::Signal;

use super::follower::{Follower, Found};
use super::progress::Progress;
use super::server::{Say, Server};
use super::settings::{Form, Settings};
use super::show::write;
use super::status::{Asked, Verdict};
use super::verdict::{json, success};
use super::wait::{Wait, Woken};
use crate::log;
use crate::status::file::json_path;
use crate::words::failure::Failure;
use crate::words::notice::Notice;

/// Sends HUP and waits for the verdict: committed and the old generation gone, or failed. With `--canary` it orders a canary
/// instead, and waits until that gets its share.
pub fn restart(settings: &Settings, say: Say<'_>) -> Result<(), Failure> {
    let asked = settings.canary.map_or(Asked::Restart, Asked::Canary);
    ask(asked, settings, say)
}

/// Orders the promotion of the canary, and waits until it serves alone.
pub fn promote(settings: &Settings, say: Say<'_>) -> Result<(), Failure> {
    ask(Asked::Promotion, settings, say)
}

/// Orders the rollback and waits until what it leads to serves alone, or for the reason why there is none.
pub fn rollback(settings: &Settings, say: Say<'_>) -> Result<(), Failure> {
    ask(Asked::Rollback, settings, say)
}

/// Orders the end of a restart that is under way or tried again, and waits until what served serves alone.
pub fn abort(settings: &Settings, say: Say<'_>) -> Result<(), Failure> {
    ask(Asked::Abort, settings, say)
}

fn ask(asked: Asked, settings: &Settings, say: Say<'_>) -> Result<(), Failure> {
    let server = Server::find(&settings.pid_file, say)?;
    let mut files = vec![json_path(&settings.pid_file)];
    files.extend(settings.status_file.as_deref().map(json_path));
    files.extend(settings.status_file.clone());
    // Both before the signal, so that none of its consequences can be missed.
    let wait = Wait::new(&server, settings.timeout).watch(&files)?;
    let mut follower = Follower::before(&server, settings, asked)?;
    match asked.order() {
        Some(order) => server.order(order)?,
        None => server.send(Signal::SIGHUP)?,
    }
    say(match asked {
        Asked::Promotion => Notice::PromotionAsked { pid: server.pid },
        Asked::Restart => Notice::RestartAsked { pid: server.pid },
        Asked::Canary(_) => Notice::CanaryAsked { pid: server.pid },
        Asked::Rollback => Notice::RollbackAsked { pid: server.pid },
        Asked::Abort => Notice::AbortAsked { pid: server.pid },
    });
    let (found, verdict) = follow(settings, &server, &wait, &mut follower)?;
    let told = match settings.form {
        Form::Json => write(&json(&found, &verdict)),
        Form::Text | Form::Follow | Form::OpenMetrics => Ok(()),
    };
    verdict?;
    if let Some(sentence) = success(&found).filter(|_| !settings.is_quiet) {
        log::show(&sentence);
    }
    told
}

/// Shows the progress until there is a verdict.
fn follow(
    settings: &Settings,
    server: &Server,
    wait: &Wait<'_>,
    follower: &mut Follower,
) -> Result<(Found, Verdict), Failure> {
    let mut progress = Progress::new(settings, server, follower.asked(), follower.newest());
    let mut found = follower.look(server);
    loop {
        if let Some(verdict) = found.verdict.take() {
            return Ok((found, verdict));
        }
        progress.show(&found);
        match wait.next_until(progress.due())? {
            Woken::FilesChanged => found = follower.look(server),
            Woken::Due => {}
            Woken::ServerEnded => {
                let cannot = format!("cannot {}", follower.asked());
                return Ok((found, Err(server.has_exited(&cannot))));
            }
            Woken::TimedOut => {
                let waits_for = follower.waits_for(server, &json_path(&settings.pid_file));
                let failure = wait.timed_out(follower.asked().noun()).hint(waits_for);
                return Ok((found, Err(failure)));
            }
        }
    }
}
