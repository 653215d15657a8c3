//! The loop: wait, decide, perform. One thread, one wait with one deadline, no sleep.

pub mod signals;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;

use crate::host::daemon::Waiting;
use crate::host::moment::Moment;
use crate::host::process::reap;
use crate::listeners::bind::SocketFiles;
use crate::log::{self, Log};
use crate::machine::{Action, Event, Machine, Outcome, Settings};
use crate::status::file::StatusFile;
use crate::status::pid_file::PidFile;
use crate::supervisor::signals::{STOPS, Signals};
use crate::words::failure::Failure;
use crate::words::notice::{ExecFailure, Notice, WithMeaning};
use crate::worker::environment::Environment;
use crate::worker::{Blueprint, Change, Report, cannot_spawn};

/// Everything that the superdaemon needs to run.
pub struct Resources {
    pub blueprint: Blueprint,
    pub environment: Environment,
    pub signals: Signals,
    pub log: Log,
    pub status_file: StatusFile,
    pub pid_file: Option<PidFile>,
    pub socket_files: SocketFiles,
    /// Whoever waits for the first generation to serve.
    pub waiting: Option<Waiting>,
}

/// The running superdaemon.
struct Supervisor {
    resources: Resources,
    machine: Machine,
    /// Workers that have neither executed the program nor failed to.
    reports: Vec<(Pid, Report)>,
    /// Why the last start has failed.
    failure: Option<Failure>,
    finished: Option<Outcome>,
}

/// Runs until no worker is left. Socket and status files are removed with the resources, however it ends.
pub fn run(mut resources: Resources, settings: Settings) -> Result<Outcome, Failure> {
    // From here on the knobs are the environment's.
    let settings = Settings {
        knobs: resources.environment.load().knobs,
        ..settings
    };
    let (machine, actions) = Machine::start(settings, Moment::now());
    let mut supervisor = Supervisor {
        resources,
        machine,
        reports: Vec::new(),
        failure: None,
        finished: None,
    };
    supervisor.perform(actions);
    loop {
        if let Some(outcome) = supervisor.finished {
            supervisor.end();
            return Ok(outcome);
        }
        supervisor.poll()?;
        supervisor.take_turn()?;
    }
}

impl Supervisor {
    fn poll(&self) -> Result<(), Failure> {
        let Resources {
            signals,
            log,
            status_file,
            environment,
            ..
        } = &self.resources;
        let now = Moment::now();
        let deadlines = [self.machine.deadline(), status_file.deadline()];
        let deadlines = deadlines.into_iter().flatten();
        let of_log = log.deadline();
        let timeout = deadlines
            .map(|deadline| deadline.saturating_since(now))
            .chain(of_log.map(|deadline| deadline.saturating_duration_since(Instant::now())))
            .min();
        let readable = |source| PollFd::new(source, PollFlags::POLLIN);
        let mut sources = vec![readable(signals.as_fd())];
        sources.extend(environment.watched().map(readable));
        sources.extend(
            self.reports
                .iter()
                .map(|(_, report)| readable(report.as_fd())),
        );
        let logging = log.sources();
        sources.extend(logging.readable.iter().copied().map(readable));
        let writable = logging.writable.iter();
        sources.extend(writable.map(|one| PollFd::new(one.as_fd(), PollFlags::POLLOUT)));
        match ppoll(&mut sources, timeout.map(rounded_up), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(cannot("wait for events", errno)),
        }
    }

    /// Acts on everything that has happened, in this order:
    ///
    /// - an order to stop before exits, because a service manager sends TERM to the workers too, and a worker that
    ///   follows it has not died unexpectedly;
    /// - exits before HUP and before the deadline, so that a dead worker is never taken for a living one.
    fn take_turn(&mut self) -> Result<(), Failure> {
        let come = self
            .resources
            .signals
            .read()
            .map_err(|errno| cannot("read signals", errno))?;
        if let Some(signal) = come.iter().find(|signal| STOPS.contains(signal)) {
            self.on(Event::Stop(*signal));
        }
        self.hear_reports();
        while let Some((pid, status)) =
            reap().map_err(|errno| cannot("wait for children", errno))?
        {
            self.child_exited(pid, status);
        }
        for signal in come {
            match signal {
                Signal::SIGHUP => {
                    if let Some(pid_file) = &mut self.resources.pid_file {
                        pid_file.restore();
                    }
                    self.read_knobs();
                    self.on(Event::Restart);
                }
                Signal::SIGUSR1 => {
                    let Resources {
                        log, status_file, ..
                    } = &mut self.resources;
                    log.reopen();
                    status_file.log_reopened(log.reopened().clone());
                    status_file.save(&self.machine, Moment::now());
                }
                Signal::SIGUSR2 => log::say(Notice::Ignored(signal)),
                _ => {}
            }
        }
        if self.resources.environment.has_changed() {
            self.read_knobs();
        }
        let now = Moment::now();
        if self
            .machine
            .deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            self.read_knobs();
            self.on(Event::DeadlinePassed);
        }
        if self
            .resources
            .status_file
            .deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            self.resources.status_file.save(&self.machine, now);
        }
        self.resources.log.take_turn(Instant::now());
        Ok(())
    }

    fn on(&mut self, event: Event) {
        let actions = self.machine.on(event, Moment::now());
        self.perform(actions);
    }

    /// Carries actions out, and what follows from them at once.
    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Spawn { generation, slot } => self.spawn(generation, slot),
                // The pid is still the worker's: it is a child that was not reaped yet.
                Action::Signal { pid, signal } => {
                    if let Err(errno) = kill(pid, signal) {
                        log::say(Notice::CannotSignal { pid, signal, errno });
                    }
                }
                Action::Serving => {
                    log::is_up();
                    if let Some(waiting) = self.resources.waiting.take() {
                        waiting.tell_success();
                    }
                }
                Action::SaveStatus => {
                    self.resources
                        .status_file
                        .save(&self.machine, Moment::now());
                }
                Action::Say(notice) => {
                    if let Some(failure) = notice.as_failure() {
                        self.failure = Some(match &notice {
                            Notice::FailedToStart { pid, .. } => {
                                failure.stderr(self.resources.status_file.last_lines_of(*pid))
                            }
                            _ => failure,
                        });
                    }
                    log::say(notice);
                }
                Action::Finish(outcome) => self.finished = Some(outcome),
            }
        }
    }

    fn spawn(&mut self, generation: u32, slot: usize) {
        let loaded = self.resources.environment.load();
        self.machine.set_knobs(loaded.knobs);
        let event = match self.spawn_captured(generation, &loaded.changes) {
            Ok((pid, report)) => {
                self.reports.push((pid, report));
                Event::Spawned {
                    generation,
                    slot,
                    pid,
                }
            }
            Err(cause) => Event::SpawnFailed {
                generation,
                slot,
                cause,
            },
        };
        self.on(event);
    }

    fn spawn_captured(
        &mut self,
        generation: u32,
        changes: &[Change],
    ) -> Result<(Pid, Report), ExecFailure> {
        let Resources { blueprint, log, .. } = &mut self.resources;
        let pipes = log.pipes().map_err(cannot_spawn)?;
        let (pid, report) = blueprint.spawn(generation, changes, &pipes.theirs)?;
        log.attach(generation, pid, pipes);
        Ok((pid, report))
    }

    fn read_knobs(&mut self) {
        if self.resources.environment.can_change() {
            let knobs = self.resources.environment.load().knobs;
            self.machine.set_knobs(knobs);
        }
    }

    fn hear_reports(&mut self) {
        let mut heard = Vec::new();
        let blueprint = &self.resources.blueprint;
        self.reports
            .retain(|(pid, report)| match report.read(blueprint) {
                None => true,
                Some(result) => {
                    heard.push(executed(*pid, result));
                    false
                }
            });
        heard.into_iter().for_each(|event| self.on(event));
    }

    fn child_exited(&mut self, pid: Pid, status: i32) {
        let Resources {
            socket_files,
            log,
            status_file,
            ..
        } = &mut self.resources;
        if socket_files.binder() == Some(pid) {
            socket_files.binder_is_gone();
            log::say(Notice::BinderDied);
            return;
        }
        if log.has_exited(pid, status) {
            if self.resources.waiting.is_some() {
                // Nobody would ever see what it was to write.
                let status = WithMeaning(status);
                self.failure = Some(Failure::failed(format!(
                    "cannot start: the log command died, status:{status}"
                )));
                self.on(Event::Stop(Signal::SIGTERM));
            }
            return;
        }
        // Before the verdict, which is to have its last lines.
        let last_lines = log.worker_exited(pid);
        status_file.worker_exited(pid, last_lines);
        // It may have reported since the reports were heard, and its report comes before its exit.
        if let Some(place) = self.reports.iter().position(|(one, _)| *one == pid) {
            let (_, report) = self.reports.swap_remove(place);
            if let Some(result) = report.read(&self.resources.blueprint) {
                self.on(executed(pid, result));
            }
        }
        self.on(Event::Exited { pid, status });
    }

    fn end(mut self) {
        if let (Some(waiting), Some(outcome)) = (self.resources.waiting.take(), self.finished) {
            let failure = self.failure.unwrap_or_else(|| match outcome {
                Outcome::Stopped => Failure::failed("cannot start: stopped by a signal"),
                Outcome::GivenUp => Failure::failed("cannot start: nothing serves"),
            });
            waiting.tell_failure(&failure);
        }
        let Resources {
            status_file,
            socket_files,
            mut log,
            pid_file,
            ..
        } = self.resources;
        drop((status_file, socket_files));
        log.end();
        // Last, because its lock is the sign that everything else is over.
        drop(pid_file);
    }
}

fn cannot(what: &str, errno: Errno) -> Failure {
    Failure::failed(format!("cannot {what}: {}", errno.desc()))
}

fn executed(pid: Pid, result: Result<(), ExecFailure>) -> Event {
    match result {
        Ok(()) => Event::Executed(pid),
        Err(cause) => Event::NotExecuted { pid, cause },
    }
}

/// A little later than the deadline rather than a little earlier, which would be an empty turn of the loop.
fn rounded_up(timeout: Duration) -> TimeSpec {
    TimeSpec::from_duration(timeout + Duration::from_nanos(1))
}
