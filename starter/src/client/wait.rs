//! Waiting for a running server to carry out a request.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::inotify::Inotify;
use nix::sys::time::TimeSpec;

use super::server::Server;
use crate::host::watch;
use crate::words::failure::Failure;

/// Why a wait is over.
pub enum Woken {
    FilesChanged,
    /// The caller has something to do.
    Due,
    ServerEnded,
    TimedOut,
}

/// What a client waits for: the server's exit, a change of its files, or the timeout.
pub struct Wait<'a> {
    server: &'a Server,
    watch: Option<Inotify>,
    /// As long as it is open, another process has the watch too.
    _elsewhere: Option<OwnedFd>,
    deadline: Option<Instant>,
}

impl<'a> Wait<'a> {
    pub fn new(server: &'a Server, timeout: Option<Duration>) -> Wait<'a> {
        Wait {
            server,
            watch: None,
            _elsewhere: None,
            deadline: timeout.map(|timeout| Instant::now() + timeout),
        }
    }

    /// Watches the directories of these files too, which are replaced by rename.
    pub fn watch(self, files: &[PathBuf]) -> Result<Wait<'a>, Failure> {
        let cannot = |errno: Errno| {
            Failure::failed(format!("cannot watch the status files: {}", errno.desc()))
        };
        let inotify = watch::new().map_err(cannot)?;
        for file in files {
            let directory = match file.parent() {
                Some(directory) if directory != Path::new("") => directory,
                _ => Path::new("."),
            };
            watch::add(&inotify, directory).map_err(cannot)?;
        }
        Ok(Wait {
            _elsewhere: watch::close_elsewhere(&inotify).ok(),
            watch: Some(inotify),
            ..self
        })
    }

    pub fn next(&self) -> Result<Woken, Failure> {
        self.next_until(None)
    }

    /// The same, but no longer than until the caller has something to do.
    pub fn next_until(&self, due: Option<Instant>) -> Result<Woken, Failure> {
        let left = || {
            let next = self.deadline.into_iter().chain(due).min()?;
            let left = next.saturating_duration_since(Instant::now());
            Some(TimeSpec::from_duration(left))
        };
        let mut sources = vec![PollFd::new(self.server.process.as_fd(), PollFlags::POLLIN)];
        let watch = self.watch.as_ref();
        sources.extend(watch.map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)));
        let ready = loop {
            match ppoll(&mut sources, left(), None) {
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(Failure::failed(format!(
                        "cannot wait for pid {}: {}",
                        self.server.pid,
                        errno.desc()
                    )));
                }
                Ok(ready) => break ready,
            }
        };
        if sources[0].any() == Some(true) {
            return Ok(Woken::ServerEnded);
        }
        // Even if the files change all the time: the server's user can make them.
        if self.is_over() || (ready == 0 && due.is_none()) {
            return Ok(Woken::TimedOut);
        }
        if ready == 0 {
            return Ok(Woken::Due);
        }
        // However many events there are: the files are read again. An error means that there are no more.
        while watch.is_some_and(|watch| watch.read_events().is_ok()) && !self.is_over() {}
        Ok(Woken::FilesChanged)
    }

    fn is_over(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline <= Instant::now())
    }

    /// `--timeout` expired before `what` happened.
    pub fn timed_out(&self, what: &str) -> Failure {
        Failure::undecided(format!(
            "cannot wait longer for {what} of pid {}: --timeout expired",
            self.server.pid
        ))
    }
}
