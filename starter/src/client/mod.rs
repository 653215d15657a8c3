//! `--restart`, `--stop` and `--reopen`: another start_server is asked, and waited for until the matter is decided.

mod follower;
mod server;
mod status;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::inotify::Inotify;
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;

pub use self::status::Status;

use self::follower::{Follower, no_status};
use self::server::Server;
use crate::host::watch;
use crate::log;
use crate::options::ClientOptions;
use crate::status::file::json_path;
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::text::printable;

/// Why a wait is over.
enum Woken {
    Changed,
    ServerExited,
    TimedOut,
}

/// Sends TERM and waits for the end.
pub fn stop(options: &ClientOptions) -> Result<(), Failure> {
    let server = Server::find(&options.pid_file)?;
    log::say(Notice::StopServer {
        ours: nix::unistd::getpid(),
        theirs: server.pid,
    });
    server.send(Signal::SIGTERM)?;
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    match wait(&server, None, deadline)? {
        Woken::ServerExited | Woken::Changed => Ok(()),
        Woken::TimedOut => Err(Failure::undecided(format!(
            "cannot wait longer for the end of pid {}: --timeout has passed",
            server.pid
        ))
        .hint(server.is_stopped().unwrap_or_else(|| {
            "workers that do not end hold it up; --stop-timeout would kill them".into()
        }))),
    }
}

/// Sends HUP and waits for the verdict: committed and the old generation gone, or failed.
pub fn restart(options: &ClientOptions) -> Result<(), Failure> {
    let server = Server::find(&options.pid_file)?;
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    // Both before the signal, so that nothing that follows from it can be missed.
    let mut files = vec![json_path(&options.pid_file)];
    files.extend(options.status_file.as_deref().map(json_path));
    files.extend(options.status_file.clone());
    let watch = watch(&files)?;
    let mut follower = Follower::before(&server, options)?;
    server.send(Signal::SIGHUP)?;
    log::say(Notice::RestartAsked { pid: server.pid });
    loop {
        if let Some(verdict) = follower.look()? {
            return verdict;
        }
        match wait(&server, Some(&watch), deadline)? {
            Woken::Changed => {}
            Woken::ServerExited => {
                return Err(Failure::failed(format!(
                    "cannot restart: pid {} has ended",
                    server.pid
                )));
            }
            Woken::TimedOut => {
                return Err(Failure::undecided(format!(
                    "cannot wait longer for the restart of pid {}: --timeout has passed",
                    server.pid
                ))
                .hint(follower.how_far(&server, &json_path(&options.pid_file))));
            }
        }
    }
}

/// Sends USR1 and waits until the log file is open again.
pub fn reopen(options: &ClientOptions) -> Result<(), Failure> {
    let server = Server::find(&options.pid_file)?;
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    let json = json_path(&options.pid_file);
    let watch = watch(std::slice::from_ref(&json))?;
    let read =
        || Status::read(&json).filter(|status| status.supervisor == i64::from(server.pid.as_raw()));
    let before = read().ok_or_else(|| {
        Failure::failed(format!(
            "cannot follow the log file of pid {}: {}",
            server.pid,
            no_status(&json)
        ))
    })?;
    server.send(Signal::SIGUSR1)?;
    log::say(Notice::ReopenAsked { pid: server.pid });
    loop {
        match read() {
            Some(now) if now.reopened > before.reopened => {
                return match now.reopen_failure {
                    None => Ok(()),
                    Some(cause) => {
                        let file = now.log_file.filter(|file| !file.starts_with('|'));
                        let file = file.map(|file| format!("{}, ", printable(&file)));
                        Err(Failure::failed(format!(
                            "cannot reopen {}the log file of pid {}: {}",
                            file.unwrap_or_default(),
                            server.pid,
                            printable(&cause)
                        )))
                    }
                };
            }
            _ => {}
        }
        match wait(&server, Some(&watch), deadline)? {
            Woken::Changed => {}
            Woken::ServerExited => {
                return Err(Failure::failed(format!(
                    "cannot reopen the log file: pid {} has ended",
                    server.pid
                )));
            }
            Woken::TimedOut => {
                let failure = Failure::undecided(format!(
                    "cannot wait longer for the log file of pid {}: --timeout has passed",
                    server.pid
                ));
                return Err(match server.is_stopped() {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                });
            }
        }
    }
}

/// Watches the folders of files that are replaced by rename.
fn watch(files: &[PathBuf]) -> Result<Inotify, Failure> {
    let cannot =
        |errno: Errno| Failure::failed(format!("cannot watch the status files: {}", errno.desc()));
    let inotify = watch::new().map_err(cannot)?;
    for file in files {
        let folder = match file.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        watch::add(&inotify, folder).map_err(cannot)?;
    }
    Ok(inotify)
}

fn wait(
    server: &Server,
    watch: Option<&Inotify>,
    deadline: Option<Instant>,
) -> Result<Woken, Failure> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let mut sources = vec![PollFd::new(server.process.as_fd(), PollFlags::POLLIN)];
        sources.extend(watch.map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)));
        match ppoll(&mut sources, left.map(TimeSpec::from_duration), None) {
            Err(Errno::EINTR) => continue,
            Err(errno) => {
                return Err(Failure::failed(format!(
                    "cannot wait for pid {}: {}",
                    server.pid,
                    errno.desc()
                )));
            }
            Ok(0) => return Ok(Woken::TimedOut),
            Ok(_) => {}
        }
        if sources[0].any() == Some(true) {
            return Ok(Woken::ServerExited);
        }
        // What has changed is seen by looking at the files, however many events there are.
        drop(watch.map(Inotify::read_events));
        return Ok(Woken::Changed);
    }
}
