//! The loop: wait, decide, perform. One thread, one wait with one deadline, no sleep.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;

use crate::binding::SocketFiles;
use crate::failure::Failure;
use crate::generations::{Action, Event, Generations, Outcome, Settings};
use crate::log;
use crate::notice::Notice;
use crate::signals::Signals;
use crate::status_file::StatusFile;
use crate::worker::{Blueprint, Report};

/// Everything that the running superdaemon holds.
pub struct Supervisor {
    pub blueprint: Blueprint,
    pub signals: Signals,
    pub status_file: Option<StatusFile>,
    pub socket_files: SocketFiles,
}

/// Workers that have neither executed the program nor failed to.
type Reports = Vec<(Pid, Report)>;

impl Supervisor {
    /// Runs until no worker is left, then removes the socket files. Status and pid file go with their owners.
    pub fn run(mut self, settings: Settings) -> Result<Outcome, Failure> {
        let (mut generations, actions) = Generations::start(settings, Instant::now());
        let mut reports = Reports::new();
        let mut finished = self.perform(actions, &mut generations, &mut reports);
        while finished.is_none() {
            for event in self.wait(&generations, &mut reports)? {
                let actions = generations.on(event, Instant::now());
                finished = finished.or(self.perform(actions, &mut generations, &mut reports));
            }
            self.save_again(&generations);
        }
        self.socket_files.remove();
        finished.ok_or_else(|| Failure::failed("cannot go on without an outcome"))
    }

    /// Carries actions out, and what follows from them at once.
    fn perform(
        &mut self,
        actions: Vec<Action>,
        generations: &mut Generations,
        reports: &mut Reports,
    ) -> Option<Outcome> {
        let mut finished = None;
        for action in actions {
            match action {
                Action::Spawn { generation } => {
                    let event = match self.blueprint.spawn(generation) {
                        Ok((pid, report)) => {
                            reports.push((pid, report));
                            Event::Spawned { generation, pid }
                        }
                        Err(cause) => Event::SpawnFailed { generation, cause },
                    };
                    let actions = generations.on(event, Instant::now());
                    finished = finished.or(self.perform(actions, generations, reports));
                }
                // The pid is still the worker's: it is a child that was not reaped yet.
                Action::Signal { pid, signal } => {
                    if let Err(errno) = kill(pid, signal) {
                        log::say(Notice::CannotSignal { pid, signal, errno });
                    }
                }
                Action::SaveStatus => {
                    if let Some(status_file) = &mut self.status_file {
                        status_file.save(generations, Instant::now());
                    }
                }
                Action::Say(notice) => log::say(notice),
                Action::Finish(outcome) => finished = Some(outcome),
            }
        }
        finished
    }

    /// Waits for something to happen, and orders what has happened:
    ///
    /// - an order to stop before exits, because a service manager sends TERM to the workers too, and a worker that
    ///   follows it has not died unexpectedly;
    /// - exits before HUP and before the deadline, so that a dead worker is never taken for a living one.
    fn wait(
        &mut self,
        generations: &Generations,
        reports: &mut Reports,
    ) -> Result<Vec<Event>, Failure> {
        self.poll(generations, reports)?;
        let cannot =
            |what: &str, errno: Errno| Failure::failed(format!("cannot {what}: {}", errno.desc()));
        let come = self
            .signals
            .read()
            .map_err(|errno| cannot("read signals", errno))?;
        let mut events = Vec::new();
        let stop =
            |signal: &&Signal| matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT);
        events.extend(come.iter().find(stop).map(|signal| Event::Stop(*signal)));
        reports.retain(|(pid, report)| match report.read(&self.blueprint) {
            None => true,
            Some(result) => {
                events.push(executed(*pid, result));
                false
            }
        });
        while let Some((pid, status)) =
            reap().map_err(|errno| cannot("wait for children", errno))?
        {
            if self.socket_files.binder() == Some(pid) {
                self.socket_files.binder_is_gone();
                log::say(Notice::BinderDied);
                continue;
            }
            // It may have reported since the look above, and its report comes before its exit.
            if let Some(place) = reports.iter().position(|(one, _)| *one == pid) {
                let (_, report) = reports.swap_remove(place);
                events.extend(
                    report
                        .read(&self.blueprint)
                        .map(|result| executed(pid, result)),
                );
            }
            events.push(Event::Exited { pid, status });
        }
        for signal in come {
            match signal {
                Signal::SIGHUP => events.push(Event::Restart),
                Signal::SIGUSR1 | Signal::SIGUSR2 => log::say(Notice::Ignored(signal)),
                _ => {}
            }
        }
        if generations
            .deadline()
            .is_some_and(|deadline| deadline <= Instant::now())
        {
            events.push(Event::DeadlinePassed);
        }
        Ok(events)
    }

    fn poll(&self, generations: &Generations, reports: &Reports) -> Result<(), Failure> {
        let retry = self.status_file.as_ref().and_then(StatusFile::deadline);
        let deadline = generations.deadline().into_iter().chain(retry).min();
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let mut sources = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        sources.extend(
            reports
                .iter()
                .map(|(_, report)| PollFd::new(report.as_fd(), PollFlags::POLLIN)),
        );
        match ppoll(&mut sources, timeout.map(rounded_up), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Failure::failed(format!(
                "cannot wait for events: {}",
                errno.desc()
            ))),
        }
    }

    fn save_again(&mut self, generations: &Generations) {
        let now = Instant::now();
        if let Some(status_file) = &mut self.status_file
            && status_file
                .deadline()
                .is_some_and(|deadline| deadline <= now)
        {
            status_file.save(generations, now);
        }
    }
}

fn executed(pid: Pid, result: Result<(), crate::notice::ExecFailure>) -> Event {
    match result {
        Ok(()) => Event::Executed(pid),
        Err(cause) => Event::NotExecuted { pid, cause },
    }
}

/// A little later than the deadline rather than a little earlier, which would be an empty turn of the loop.
fn rounded_up(timeout: Duration) -> TimeSpec {
    TimeSpec::from_duration(timeout + Duration::from_nanos(1))
}

/// One child that has exited, worker or not, with its raw wait status. nix cannot be asked: it has no value for a
/// death by a real-time signal, and that child would be lost.
#[expect(
    unsafe_code,
    reason = "nix's waitpid loses children that a real-time signal killed"
)]
fn reap() -> nix::Result<Option<(Pid, i32)>> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int, to a local one.
    match Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }) {
        Ok(0) | Err(Errno::ECHILD) => Ok(None),
        Ok(pid) => Ok(Some((Pid::from_raw(pid), status))),
        Err(Errno::EINTR) => reap(),
        Err(errno) => Err(errno),
    }
}
