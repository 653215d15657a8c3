//! The loop: wait, collect, decide, perform. One thread, one wait with one deadline, no sleep.
//!
//! - [`sources`] waits for descriptors and turns them into inputs, in the order in which they must be handled.
//! - The machine ([`crate::machine`]) decides: an event and the time go in, actions come out.
//! - [`perform`] carries the actions out.
//! - [`resources`] holds what all of them work with, and releases it in order at the end.
//! - [`upgrade`] lets another version of this program go on in the same process, with all of that: [`state`].

pub mod check;
pub mod envelope;
pub mod guard;
mod lanes;
mod make_way;
mod perform;
pub mod queues;
pub mod resources;
mod sources;
pub mod state;
pub mod upgrade;

use nix::sys::signal::Signal;

use crate::host::memory;
use crate::host::moment::Moment;
use crate::machine::{Action, Event, Generation, Machine, Outcome, Settings, State, Verdict};
use crate::supervisor::guard::Guard;
use crate::supervisor::resources::Resources;
use crate::supervisor::sources::{Inbox, Input, wait, wait_blindly};
use crate::words::failure::Failure;
use crate::words::parts::WithMeaning;
use crate::words::remedy;

/// The running superdaemon.
struct Supervisor {
    resources: Resources,
    machine: Machine,
    /// A system call failed without which nothing can be supervised: all that is left is to stop the workers.
    is_broken: bool,
    /// It has given back the memory that only a start needs.
    is_lean: bool,
    finished: Option<Outcome>,
}

/// Runs until no worker is left and everything that was made for them is gone.
pub fn run(mut resources: Resources, settings: Settings) -> Outcome {
    let (_, knobs) = resources.load_environment();
    let (machine, actions) = Machine::start(Settings { knobs, ..settings }, Moment::now());
    let mut supervisor = Supervisor {
        resources,
        machine,
        is_broken: false,
        is_lean: false,
        finished: None,
    };
    supervisor.resources.manager.learn(&supervisor.machine);
    supervisor.perform(actions);
    supervisor.resources.tell_manager(&supervisor.machine);
    if supervisor.finished.is_none() {
        supervisor.resources.tell_guardian(&supervisor.machine);
    }
    supervisor.serve()
}

/// The same from where another program of this process, or another supervisor, has stopped. `stops` says that it only ends
/// the workers in order.
pub fn go_on(mut resources: Resources, mut machine: Machine, stops: bool) -> Outcome {
    // It may have changed while nobody watched it.
    let (_, knobs) = resources.load_environment();
    machine.set_knobs(knobs);
    resources.select_again(&machine);
    resources.show_upgrades(&machine);
    if let Some(guard) = &mut resources.guard {
        guard.is_last = stops;
    }
    let mut supervisor = Supervisor {
        resources,
        machine,
        is_broken: false,
        is_lean: false,
        finished: None,
    };
    if stops {
        supervisor.decide(Event::Stop(Signal::SIGTERM));
    }
    // What has happened meanwhile need not show in any descriptor: the signal of a child's exit may be gone.
    supervisor.turn();
    supervisor.serve()
}

impl Supervisor {
    fn serve(mut self) -> Outcome {
        loop {
            if let Some(outcome) = self.finished {
                return self.end(outcome);
            }
            let guard = self.resources.guard.as_mut();
            if !guard.is_some_and(Guard::take_more) {
                self.wait();
            }
            self.turn();
        }
    }

    fn turn(&mut self) {
        let mut inbox = Inbox::open(&mut self.resources);
        while let Some(input) = inbox.next(&mut self.resources, &self.machine) {
            self.act_on(input);
        }
        self.resources.tell_manager(&self.machine);
        // Between two turns no action is pending. After the last one there is nothing to go on with: a next supervisor would
        // find the last worker, and its exit, and come to the same end.
        if self.finished.is_none() {
            self.resources.tell_guardian(&self.machine);
            self.resources.make_way(&self.machine);
            self.become_lean();
        }
    }

    /// Once after each start: when nothing is left of it but what serves.
    fn become_lean(&mut self) {
        let mut states = self.machine.generations().map(Generation::state);
        let serves = |state| matches!(state, State::Current | State::Canary);
        let is_settled = self.machine.generations().next().is_some() && states.all(serves);
        if is_settled && !self.is_lean {
            memory::release();
        }
        self.is_lean = is_settled;
    }

    fn wait(&mut self) {
        if self.is_broken {
            wait_blindly();
        } else if let Err(failure) = wait(&self.resources, &self.machine) {
            self.act_on(Input::Broken(failure));
        }
    }

    fn act_on(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.decide(event),
            Input::Knobs(knobs) => self.machine.set_knobs(knobs),
            Input::Duty(duty) => {
                let events = self.resources.fulfil(duty, &self.machine);
                events.into_iter().for_each(|event| self.decide(event));
            }
            Input::Broken(failure) => self.break_off(failure),
        }
    }

    fn decide(&mut self, event: Event) {
        let actions = self.machine.on(event, Moment::now());
        self.resources.manager.learn(&self.machine);
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let mut is_undone = false;
        for action in actions {
            if is_undone && action.follows_commit() {
                continue;
            }
            if let Action::Finish(outcome) = action {
                self.finished = Some(outcome);
            }
            let selected = action.selected();
            if let Some(event) = self.resources.perform(action, &mut self.machine) {
                self.decide(event);
                // The kernel has refused the switch of a commit, and what served before does so again.
                is_undone |= selected.is_some_and(|one| !self.machine.has_current(one));
            }
        }
        let machine = &self.machine;
        self.resources.readiness.tidy(machine);
        let pins = &mut self.resources.pins;
        pins.retain(|generation, _| machine.may_start_from(*generation));
    }
}

impl Supervisor {
    /// Nothing can be supervised any more: stops the workers in order, once.
    fn break_off(&mut self, failure: Failure) {
        if std::mem::replace(&mut self.is_broken, true) {
            return;
        }
        self.resources.log.complain(&failure);
        self.resources.reason = Some(failure);
        self.decide(Event::Broken);
    }

    fn end(mut self, outcome: Outcome) -> Outcome {
        let failure = self.why_nothing_serves(outcome);
        if outcome == Outcome::GivenUp {
            self.resources.manager.tell_failure(&failure);
        }
        let guard = self.resources.guard.take();
        if guard.as_ref().is_some_and(Guard::ends_by_deaths) {
            self.resources.socket_files.leave_what_is_stored();
        }
        self.resources.shut_down(&failure);
        // Not before: if this one dies in between, the next one finishes it.
        if let Some(mut guard) = guard {
            guard.end();
        }
        outcome
    }

    /// The reason, for a launcher still waiting for the first generation.
    fn why_nothing_serves(&mut self, outcome: Outcome) -> Failure {
        if let Some(reason) = self.resources.reason.take() {
            return reason;
        }
        let last = self.machine.history().decisions.back();
        match (last.map(|decision| &decision.verdict), outcome) {
            (
                Some(
                    Verdict::Refused(cause)
                    | Verdict::Failed {
                        cause: Some(cause), ..
                    },
                ),
                _,
            ) => cause.into(),
            (Some(Verdict::CheckFailed(failed)), _) => {
                Failure::from(&failed.cause).stderr(&failed.lines)
            }
            (
                Some(Verdict::Failed {
                    status: Some(status),
                    ..
                }),
                _,
            ) => self.failed_with(*status),
            (_, Outcome::Stopped) => Failure::failed("cannot start: stopped by a signal"),
            (_, Outcome::GivenUp) => Failure::failed("cannot start: no worker is serving"),
        }
    }

    fn failed_with(&self, status: i32) -> Failure {
        let worker = self.machine.history().departed.back();
        let status_file = &self.resources.status_file;
        Failure::failed(format!(
            "cannot start: the new worker failed, exit status:{}",
            WithMeaning(status)
        ))
        .stderr(worker.map_or(&[], |worker| status_file.last_lines_of(worker.pid)))
        .hint(match status {
            0 => remedy::STAY_IN_FOREGROUND.into(),
            _ => remedy::see_for_more("the worker's output"),
        })
    }
}
