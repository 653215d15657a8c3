//! Turns descriptors into inputs for the loop. It decides nothing and acts on nothing.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;

use crate::host::moment::Moment;
use crate::host::order::{Order, Trial};
use crate::host::process::reap;
use crate::host::signals::{Arrived, Taken};
use crate::machine::{By, Event, Knobs, Machine, Portion, Scale, Sockets};
use crate::supervisor::guard::Guard;
use crate::supervisor::resources::Resources;
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::start_failure::StartFailure;

/// How often a supervisor that can no longer wait for its descriptors polls the workers it has to stop.
const BLIND_LOOK: Duration = Duration::from_millis(10);

/// What the loop acts on.
#[derive(Debug)]
pub enum Input {
    /// For the machine to decide.
    Event(Event),
    /// The settings that the machine decides by may have changed.
    Knobs(Knobs),
    /// Nothing to decide.
    Duty(Duty),
    /// A system call failed without which nothing can be supervised.
    Broken(Failure),
}

/// Work that does not depend on the machine.
#[derive(Debug)]
pub enum Duty {
    /// A child has exited: the binder, the log command, a check, a readiness command, a program that is tried, a worker or
    /// an adopted orphan.
    ChildExited { pid: Pid, status: i32 },
    /// The pid file may have been removed or overwritten.
    RestorePidFile,
    /// USR1.
    ReopenLog,
    /// USR2.
    Upgrade,
    /// A signal without a meaning here.
    Ignore(Signal),
    /// Writing the status is due without a change of the machine.
    SaveStatus,
    /// Reads what tells of readiness, asks where that is due, and reads the output of a check.
    LookForReadiness,
    /// Tells the machine what was found.
    TellReadiness,
    /// What a worker has found out about its own start.
    Say(Notice),
    /// Connections may wait that nobody accepts.
    LookAtQueues,
    /// A socket of each listener, which nobody serves, was shut down in one of them.
    MendSocket(u8),
    /// The log reads and writes what is ready.
    WorkOnLog,
}

/// What one wait yielded, handed out in the order of [`Step`].
pub struct Inbox {
    signals: Vec<Arrived>,
    step: Step,
    /// Inputs that belong together and come next.
    next: VecDeque<Input>,
}

/// The order in which events are handled.
///
/// - A signal to stop comes before exits, because a service manager sends TERM to the workers too, and a worker that
///   obeys it has not died unexpectedly.
/// - Exits come before HUP and before the deadline, lest a dead worker be taken for a living one.
/// - What tells of readiness is read before exits are, and told to the machine after them: a worker that is ready and dead
///   is dead.
/// - What is stranded is told before a restart, which may want the lane.
/// - An exit is reaped only when it is handed out: until then the pid is the worker's and may be signalled.
#[derive(Debug, Clone, Copy)]
enum Step {
    Stop,
    Reports,
    Readiness,
    Exits,
    ReadinessFound,
    Lanes,
    Requests,
    Environment,
    Deadlines,
    Log,
    Done,
}

/// Waits until an input is ready.
///
/// # Errors
/// Those of poll(2), after which the state of every descriptor is unknown.
pub fn wait(resources: &Resources, machine: &Machine) -> Result<(), Failure> {
    let Resources {
        signals,
        log,
        status_file,
        environment,
        readiness,
        check,
        upgrade,
        guard,
        reports,
        manager,
        look,
        blueprint,
        ..
    } = resources;
    let now = Moment::now();
    let moments = [
        machine.deadline(),
        status_file.deadline(),
        readiness.deadline(),
        upgrade.deadline(),
        manager.deadline(machine),
        log.deadline(),
        look.deadline(),
        guard.as_ref().and_then(Guard::deadline),
    ];
    let moments = moments.into_iter().flatten();
    let timeouts = moments.map(|deadline| deadline.saturating_since(now));
    let timeout = timeouts.min();
    let lanes = machine.watched_sockets().map(Sockets::one);
    let unattended = lanes.flat_map(|one| blueprint.lanes.own(&blueprint.sockets, one));
    let log = log.sources();
    let reports = reports.iter().map(|(_, report)| report.as_fd());
    let readable = [signals.as_fd()]
        .into_iter()
        .chain(environment.watched())
        .chain(reports)
        .chain(check.source())
        .chain(upgrade.source())
        .chain(guard.iter().flat_map(Guard::sources))
        .chain(log.readable)
        .chain(unattended)
        .map(|source| PollFd::new(source, PollFlags::POLLIN));
    let unsent = guard.as_ref().and_then(Guard::unsent);
    let writable = log.writable.into_iter().chain(manager.source());
    let writable = writable.chain(unsent);
    let writable = writable.map(|source| PollFd::new(source, PollFlags::POLLOUT));
    let readiness = readiness.sources();
    let readiness = readiness.map(|(source, flags)| PollFd::new(source, flags));
    let mut sources: Vec<PollFd<'_>> = readable.chain(writable).chain(readiness).collect();
    match ppoll(&mut sources, timeout.map(rounded_up), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(cannot("wait for events", errno)),
    }
}

/// Pauses briefly, once [`wait`] can no longer be relied on.
pub fn wait_blindly() {
    // Without descriptors it cannot fail.
    let _ = ppoll(&mut [], Some(TimeSpec::from_duration(BLIND_LOOK)), None);
}

impl Inbox {
    /// What has arrived by now.
    pub fn open(resources: &mut Resources) -> Inbox {
        let mut next = VecDeque::new();
        let mut signals = resources.signals.read().unwrap_or_else(|errno| {
            next.push_back(Input::Broken(cannot("read signals", errno)));
            Vec::new()
        });
        if let Some(guard) = &mut resources.guard {
            let passed_on = guard.listen().into_iter();
            signals.extend(passed_on.filter_map(Taken::meant));
        }
        Inbox {
            signals,
            step: Step::Stop,
            next,
        }
    }

    /// The next input.
    pub fn next(&mut self, resources: &mut Resources, machine: &Machine) -> Option<Input> {
        while self.next.is_empty() {
            self.step = match self.step {
                Step::Stop => self.stop(),
                Step::Reports => self.reports(resources),
                Step::Readiness => {
                    self.next.push_back(Input::Duty(Duty::LookForReadiness));
                    Step::Exits
                }
                Step::Exits => self.exit(resources),
                Step::ReadinessFound => {
                    self.next.push_back(Input::Duty(Duty::TellReadiness));
                    Step::Lanes
                }
                Step::Lanes => self.lanes(resources, machine),
                Step::Requests => self.requests(resources),
                Step::Environment => self.environment(resources),
                Step::Deadlines => self.deadlines(resources, machine),
                Step::Log => {
                    self.next.push_back(Input::Duty(Duty::WorkOnLog));
                    Step::Done
                }
                Step::Done => return None,
            };
        }
        self.next.pop_front()
    }

    fn stop(&mut self) -> Step {
        let mut arrived = self.signals.iter().copied();
        if let Some(stop) = arrived.find_map(Arrived::stop) {
            self.next.push_back(Input::Event(Event::Stop(stop)));
        }
        Step::Reports
    }

    fn reports(&mut self, resources: &mut Resources) -> Step {
        let Resources {
            blueprint, reports, ..
        } = resources;
        reports.retain_mut(|(pid, report)| match report.read(blueprint) {
            None => true,
            Some(result) => {
                let notice = report.notice().map(Duty::Say);
                self.next.extend(notice.map(Input::Duty));
                self.next.push_back(Input::Event(executed(*pid, result)));
                false
            }
        });
        Step::Readiness
    }

    /// One at a time.
    fn exit(&mut self, resources: &mut Resources) -> Step {
        // A guardian must know of one exit before there is another.
        let exited = match &mut resources.guard {
            Some(guard) => guard.next_exit(),
            None => reap(),
        };
        match exited {
            Ok(Some((pid, status))) => {
                let exited = Duty::ChildExited { pid, status };
                self.next.push_back(Input::Duty(exited));
                // A server program that writes a pid file removes it when it exits.
                self.next.push_back(Input::Duty(Duty::RestorePidFile));
                Step::Exits
            }
            Ok(None) => Step::ReadinessFound,
            Err(errno) => {
                let broken = Input::Broken(cannot("wait for children", errno));
                self.next.push_back(broken);
                Step::ReadinessFound
            }
        }
    }

    /// Before a restart, which may want such a lane.
    fn lanes(&mut self, resources: &Resources, machine: &Machine) -> Step {
        let (waiting, shut_down) = resources.look_at_unattended(machine);
        let stranded = waiting.into_iter().map(|socket| Event::Stranded { socket });
        self.next.extend(stranded.map(Input::Event));
        let mended = shut_down.into_iter().map(Duty::MendSocket);
        self.next.extend(mended.map(Input::Duty));
        Step::Requests
    }

    fn requests(&mut self, resources: &mut Resources) -> Step {
        for arrived in std::mem::take(&mut self.signals) {
            let signal = match arrived {
                Arrived::Signal(signal) => signal,
                Arrived::Order(order) => {
                    if let Order::Canary(_) = order {
                        self.next.push_back(Input::Duty(Duty::RestorePidFile));
                        self.knobs(resources);
                    }
                    self.next.push_back(Input::Event(match order {
                        Order::RollBack => Event::RollBack,
                        Order::Abort => Event::Abort,
                        Order::Canary(trial) => Event::Canary(portion(trial)),
                        Order::Promote => Event::Promote,
                        Order::Scale(workers) => Event::Scale(Scale::To(workers.into())),
                    }));
                    continue;
                }
            };
            match signal {
                Signal::SIGHUP => {
                    self.next.push_back(Input::Duty(Duty::RestorePidFile));
                    self.knobs(resources);
                    self.next.push_back(Input::Event(Event::Restart));
                }
                Signal::SIGUSR1 => self.next.push_back(Input::Duty(Duty::ReopenLog)),
                Signal::SIGUSR2 => self.next.push_back(Input::Duty(Duty::Upgrade)),
                Signal::SIGTTIN => self.scale(Scale::OneMore),
                Signal::SIGTTOU => self.scale(Scale::OneLess),
                Signal::SIGXCPU => {
                    self.next.push_back(Input::Duty(Duty::Ignore(signal)));
                }
                _ => {}
            }
        }
        Step::Environment
    }

    fn scale(&mut self, scale: Scale) {
        self.next.push_back(Input::Event(Event::Scale(scale)));
    }

    fn environment(&mut self, resources: &mut Resources) -> Step {
        if resources.environment.has_changed() {
            self.knobs(resources);
        }
        Step::Deadlines
    }

    fn deadlines(&mut self, resources: &mut Resources, machine: &Machine) -> Step {
        let now = Moment::now();
        let is_due = |deadline: Option<Moment>| deadline.is_some_and(|deadline| deadline <= now);
        if is_due(machine.deadline()) {
            self.knobs(resources);
            self.next.push_back(Input::Event(Event::DeadlinePassed));
        }
        if is_due(resources.look.deadline()) {
            self.next.push_back(Input::Duty(Duty::LookAtQueues));
        }
        if is_due(resources.status_file.deadline()) {
            self.next.push_back(Input::Duty(Duty::SaveStatus));
        }
        Step::Log
    }

    fn knobs(&mut self, resources: &mut Resources) {
        if resources.environment.can_change() {
            let (_, knobs) = resources.load_environment();
            self.next.push_back(Input::Knobs(knobs));
        }
    }
}

fn portion(trial: Trial) -> Portion {
    let seconds = trial.seconds.map(|seconds| u64::from(seconds.get()));
    Portion {
        percent: trial.percent,
        by: match trial.is_by_client {
            true => By::Client,
            false => By::Random,
        },
        time: seconds.map(Duration::from_secs),
    }
}

/// The event for a worker's report.
pub fn executed(pid: Pid, result: Result<(), StartFailure>) -> Event {
    match result {
        Ok(()) => Event::Executed(pid),
        Err(cause) => Event::NotExecuted { pid, cause },
    }
}

fn cannot(what: &str, errno: Errno) -> Failure {
    Failure::failed(format!("cannot {what}: {}", errno.desc()))
}

/// Rounds up: waking just before the deadline would be a wake-up with nothing to do.
fn rounded_up(timeout: Duration) -> TimeSpec {
    TimeSpec::from_duration(timeout + Duration::from_nanos(1))
}
