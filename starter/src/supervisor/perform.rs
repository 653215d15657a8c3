//! Carries out what the machine has decided, and what needs no decision. There is no policy here.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::rc::Rc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::moment::Moment;
use crate::host::process::adopt_orphans;
use crate::listeners::health::Occasion;
use crate::log::Known;
use crate::machine::{Action, Event, Generation, Machine, Source, State};
use crate::ready::Order;
use crate::ready::command::Running;
use crate::status::pid_file::PidFile;
use crate::supervisor::guard::Guard;
use crate::supervisor::queues::PATIENCE;
use crate::supervisor::resources::Resources;
use crate::supervisor::sources::{Duty, executed};
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::parts::WithMeaning;
use crate::words::start_failure::StartFailure;
use crate::worker::leftovers::Leftovers;
use crate::worker::{Extra, Pin, Report, Seat, cannot_spawn};

impl Resources {
    /// Carries out one action. Returns the event that results from it.
    pub fn perform(&mut self, action: Action, machine: &mut Machine) -> Option<Event> {
        match action {
            Action::Spawn {
                generation,
                slot,
                from,
            } => return Some(self.spawn(generation, slot, from, machine)),
            Action::Signal { pid, signal } => self.signal(pid, signal),
            Action::EndLeftovers {
                worker,
                generation,
                slot,
                signal,
            } => self.end_leftovers(worker, (generation, slot), signal, machine),
            Action::Serving => return self.committed(machine),
            Action::Select(selection) => {
                if selection.canary.is_some() {
                    // It serves, as after a commit.
                    adopt_orphans(false);
                }
                return self.select(&selection);
            }
            Action::Look(sockets) => {
                let firsts = &self.blueprint.sockets;
                let waiting = self.blueprint.lanes.count_waiting(firsts, sockets);
                return Some(Event::Looked { sockets, waiting });
            }
            Action::Check { generation } => {
                let (changes, knobs) = self.load_environment();
                machine.set_knobs(knobs);
                let seat = Seat {
                    generation,
                    slot: 0,
                    workers: machine.workers(),
                };
                return self.check.start(&self.blueprint, seat, changes);
            }
            Action::EndCheck => self.check.end(),
            Action::SaveStatus => self.save_status(machine),
            Action::Say(notice) => {
                self.log.say(&notice);
                if let Notice::FailedToStart { status: 256.., .. } = notice {
                    self.hint_at_streams();
                }
            }
            // The loop looks for that.
            Action::Finish(_) => {}
        }
        None
    }

    /// A generation has committed.
    fn committed(&mut self, machine: &Machine) -> Option<Event> {
        // What a serving worker leaves behind is its own business.
        adopt_orphans(false);
        // By now the worker has written its pid file, if it writes one.
        self.restore_pid_file();
        self.log.release_launcher();
        if let Some(waiting) = self.waiting.take() {
            // While the launched process still exists: until then it is the main process for a service manager.
            self.tell_manager(machine);
            waiting.tell_success();
        }
        if machine.proves_by_interval() {
            self.look.begin(Moment::now());
        }
        self.examine_listeners(Occasion::Commit)
    }

    /// Tells the service manager what it does not know yet.
    pub fn tell_manager(&mut self, machine: &Machine) {
        self.manager.tell(machine, Moment::now());
        for notice in self.manager.notices() {
            self.log.say(&notice);
        }
    }

    /// Examines the listeners and mends what can be mended. Returns the event for the machine, if any.
    fn examine_listeners(&mut self, occasion: Occasion) -> Option<Event> {
        self.mend_lanes(Some(occasion));
        let (sockets, lanes) = (&mut self.blueprint.sockets, &self.blueprint.lanes);
        let files = &mut self.socket_files;
        let notices = self.health.examine(sockets, lanes, files, occasion);
        if !notices.is_empty() {
            self.status_file.listeners_examined(self.health.troubles());
        }
        notices.iter().for_each(|notice| self.log.say(notice));
        let unreachable = self.health.unreachable()?;
        Some(Event::Unreachable {
            at_commit: occasion == Occasion::Commit,
            unreachable,
        })
    }

    /// Does one duty. Returns the events for the machine.
    pub fn fulfil(&mut self, duty: Duty, machine: &Machine) -> Vec<Event> {
        match duty {
            Duty::ChildExited { pid, status } => return self.child_exited(pid, status, machine),
            Duty::RestorePidFile => self.restore_pid_file(),
            Duty::ReopenLog => {
                self.log.reopen();
                self.status_file.log_reopened(self.log.reopened().clone());
                self.save_status(machine);
            }
            Duty::Upgrade => self.upgrade(machine),
            Duty::Ignore(signal) => self.log.say(&Notice::Ignored(signal)),
            Duty::SaveStatus => self.save_status(machine),
            Duty::LookForReadiness => self.look_for_readiness(machine),
            Duty::TellReadiness => return self.tell_readiness(),
            Duty::Say(notice) => self.log.say(&notice),
            Duty::LookAtQueues => self.look_at_queues(machine),
            Duty::MendSocket(number) => self.mend_socket(number),
            Duty::WorkOnLog => {
                self.log.work(Moment::now());
                self.status_file.lines_lost(self.log.lost(), Moment::now());
            }
        }
        Vec::new()
    }

    /// Warns of connections that nobody accepts.
    fn look_at_queues(&mut self, machine: &Machine) {
        let serves = |one: &Generation| one.state() == State::Current;
        // Otherwise it is known why nobody accepts.
        if machine.is_stopping() || !machine.generations().any(serves) {
            return self.look.cancel();
        }
        let lane = machine.selected().map_or(0, |selected| selected.main.lane);
        let sockets = self
            .blueprint
            .lanes
            .sockets(&self.blueprint.sockets, (lane, 0));
        for untaken in self.look.look(sockets, Moment::now()) {
            if let Some(announced) = self.blueprint.announced.get(untaken.place) {
                self.log.say(&Notice::NobodyAccepts {
                    listener: announced.name.clone(),
                    waiting: untaken.length,
                    since: PATIENCE,
                });
            }
        }
    }

    /// Only once. A server that cannot open its log often ends without a word: its last words would have gone there.
    fn hint_at_streams(&mut self) {
        if !std::mem::replace(&mut self.has_hinted_at_streams, true) {
            let closed = self.log.closed_streams();
            if !closed.is_empty() {
                self.log.say(&Notice::ClosedStreams(closed));
            }
        }
    }

    /// The last lines of workers whose start has failed and which still live: once, before the next ones write to the same
    /// file.
    fn keep_last_lines_of_failed(&mut self, machine: &Machine) {
        for pid in machine.failed_workers() {
            if self.status_file.last_lines_of(pid).is_empty() {
                let readers = self.status_file.readers();
                let last_lines = self.log.worker_failed(pid, readers);
                self.status_file.keep_last_lines(pid, last_lines);
            }
        }
    }

    pub fn save_status(&mut self, machine: &Machine) {
        self.keep_last_lines_of_failed(machine);
        for notice in self.status_file.save(machine, Moment::now()) {
            self.log.say(&notice);
        }
    }

    fn restore_pid_file(&mut self) {
        let pid_file = self.pid_file.as_mut();
        if let Some(notice) = pid_file.and_then(PidFile::restore) {
            self.log.say(&notice);
        }
    }

    fn spawn(
        &mut self,
        generation: u32,
        slot: usize,
        from: Source,
        machine: &mut Machine,
    ) -> Event {
        self.keep_last_lines_of_failed(machine);
        self.readiness.forget_departed(machine);
        // Whether clients can reach them is for the verdict at the commit.
        self.examine_listeners(Occasion::Start);
        let kept = match from {
            Source::Disk => None,
            Source::Generation(number) => self.kept(number, generation),
        };
        let is_again = kept.is_some();
        let pin = kept.map_or_else(|| self.pin(machine), Ok);
        if let (0, Ok(pin)) = (slot, &pin) {
            self.name_generation(generation, from, pin);
        }
        // If it fails, it may leave processes behind.
        adopt_orphans(true);
        let seat = Seat {
            generation,
            slot,
            workers: machine.workers(),
        };
        let lane = machine.lane_and_shard(generation, slot);
        let sweeps = machine.sweeps(generation);
        match pin.and_then(|pin| self.spawn_captured(seat, (lane, sweeps), pin, is_again)) {
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
        }
    }

    /// What is started again is called as before.
    fn name_generation(&mut self, generation: u32, from: Source, pin: &Pin) {
        // Its first worker again, after the first one has died.
        if self.status_file.label_of(generation).is_some() {
            return;
        }
        let known = match from {
            Source::Disk => None,
            Source::Generation(number) => self.status_file.label_of(number).map(str::to_owned),
        };
        let Some(label) = known.or_else(|| self.blueprint.label(pin)) else {
            return;
        };
        self.log.say(&Notice::Labelled {
            generation,
            label: label.clone(),
        });
        self.status_file.name_generation(generation, label);
    }

    /// What the generation `number` was started from, for a worker of `generation`, which may be the same.
    fn kept(&mut self, number: u32, generation: u32) -> Option<Rc<Pin>> {
        let kept = self.pins.get(&number).cloned();
        if kept.is_none() {
            let errno = None;
            self.log.say(&Notice::Unpinned { generation, errno });
        }
        kept
    }

    /// What the disk has now.
    fn pin(&mut self, machine: &mut Machine) -> Result<Rc<Pin>, StartFailure> {
        let (changes, knobs) = self.load_environment();
        machine.set_knobs(knobs);
        Ok(Rc::new(match machine.pins() {
            true => self.blueprint.pin(changes?),
            false => Pin::without_files(changes?),
        }))
    }

    fn spawn_captured(
        &mut self,
        seat: Seat,
        (lane, sweeps): ((u8, u8), bool),
        pin: Rc<Pin>,
        is_again: bool,
    ) -> Result<(Pid, Report), StartFailure> {
        let Seat {
            generation, slot, ..
        } = seat;
        // Even if there is no process: the next one is started from the same.
        self.pins.insert(generation, Rc::clone(&pin));
        let handed = self.readiness.begin(generation, slot)?;
        let pipes = self.log.pipes().map_err(cannot_spawn)?;
        let highest = self.blueprint.highest;
        let gate = self.guard.as_mut().map(|guard| guard.gate(highest));
        let gate = gate.transpose().map_err(cannot_spawn)?;
        let guard = self.guard.as_ref();
        let is_known = || guard.is_some_and(Guard::has_saved_next);
        let extra = Extra {
            seat,
            lane,
            sweeps,
            output: &pipes.theirs,
            descriptors: &handed.descriptors,
            variables: &handed.variables,
            probe: handed.probe.as_ref(),
            kept: &self.readiness.store.hand_out(),
            gate: gate.as_ref().map(|gate| (gate.as_fd(), &is_known as _)),
        };
        let (pid, report) = self.blueprint.spawn(&pin, is_again, extra)?;
        self.readiness
            .started(generation, slot, pid, handed, &pin.environment);
        let worker = Known {
            generation,
            slot,
            pid,
        };
        self.log.attach(worker, pipes);
        Ok((pid, report))
    }

    fn look_for_readiness(&mut self, machine: &Machine) {
        let workers = machine.workers();
        let Resources {
            blueprint,
            readiness,
            ..
        } = self;
        let mut run = |order: &Order<'_>| {
            Running::start(order.command, |command| {
                let seat = Seat {
                    generation: order.generation,
                    slot: order.slot,
                    workers,
                };
                blueprint.equip(command, seat, order.changes);
                if let Some(probe) = order.probe {
                    command.env("SERVER_STARTER_PROBE", &probe.name);
                }
            })
        };
        let ours = blueprint.lanes.all(&blueprint.sockets);
        readiness.look(Moment::now(), &ours, &mut run);
        self.check.read();
        self.upgrade.look(Moment::now());
        self.tell_of_readiness();
    }

    /// Says and shows what workers have said.
    fn tell_of_readiness(&mut self) {
        for notice in self.readiness.take_notices() {
            self.log.say(&notice);
        }
        let store = &mut self.readiness.store;
        let refused = store.refused();
        if let Some(kept) = store.take_changed() {
            self.status_file.descriptors_kept(kept, refused);
            self.status_file.changed(Moment::now());
        }
    }

    /// Returns what was found before the last exits were handled: a worker that has exited since is not ready.
    fn tell_readiness(&mut self) -> Vec<Event> {
        let found = self.readiness.take_found();
        // What matters of the health of a generation is for the machine to say.
        let is_of_health =
            |event: &Event| matches!(event, Event::Unwell { .. } | Event::Well { .. });
        if !found.iter().all(is_of_health) {
            self.status_file.changed(Moment::now());
        }
        found
    }

    /// The pid still belongs to the worker: it is a child that has not been reaped.
    fn signal(&mut self, pid: Pid, signal: Signal) {
        if let Err(errno) = kill(pid, signal) {
            self.log.say(&Notice::CannotSignal { pid, signal, errno });
        }
    }

    fn end_leftovers(
        &mut self,
        worker: Pid,
        (generation, slot): (u32, usize),
        signal: Signal,
        machine: &Machine,
    ) {
        let generations = machine.generations();
        let workers = generations.flat_map(Generation::workers);
        let workers: Vec<Pid> = workers.map(|worker| worker.pid).collect();
        // Each slot has a probe listener of its own, or none has.
        let probes = self.readiness.probes_of(generation);
        let ports: Vec<OsString> = match probes.is_empty() {
            true => vec![self.blueprint.ports(None)],
            false => {
                let ports = |probe| self.blueprint.ports(Some(probe));
                probes.iter().map(ports).collect()
            }
        };
        let leftovers = Leftovers {
            generation,
            slot,
            ports: &ports,
            workers: &workers,
        };
        let pids = leftovers.signal(signal);
        if !pids.is_empty() {
            self.log.say(&Notice::EndingLeftovers {
                worker,
                signal,
                pids,
            });
        }
    }

    fn child_exited(&mut self, pid: Pid, status: i32, machine: &Machine) -> Vec<Event> {
        if self.socket_files.binder() == Some(pid) {
            self.socket_files.binder_is_gone();
            self.log.say(&Notice::BinderDied);
            return Vec::new();
        }
        if let Some(checked) = self.check.has_exited(pid, status) {
            return vec![checked];
        }
        if let Some(answer) = self.upgrade.has_exited(pid, status) {
            self.upgrade_answered(answer, machine);
            return Vec::new();
        }
        if self.readiness.has_exited(pid, status) {
            return Vec::new();
        }
        if self.log.has_exited(pid, status) {
            if self.waiting.is_none() {
                return Vec::new();
            }
            // Nobody would ever see its output.
            self.reason = Some(Failure::failed(format!(
                "cannot start: the log command died, status:{}",
                WithMeaning(status)
            )));
            return vec![Event::Stop(Signal::SIGTERM)];
        }
        let ours = self.blueprint.lanes.all(&self.blueprint.sockets);
        self.readiness.read_last_words(pid, Moment::now(), &ours);
        self.tell_of_readiness();
        // Before the verdict, which needs its last lines.
        let (is_on_trial, readers) = (machine.is_on_trial(pid), self.status_file.readers());
        let last_lines = self.log.worker_exited(pid, is_on_trial, readers);
        self.status_file.keep_last_lines(pid, last_lines);
        let mut events = Vec::new();
        // Before its exit, which may end a restart. A stop needs no listeners.
        if machine.has_worker(pid) && !machine.is_stopping() {
            events.extend(self.examine_listeners(Occasion::End(pid)));
        }
        // It may have reported after the reports were read, and its report precedes its exit.
        if let Some(place) = self.reports.iter().position(|(one, _)| *one == pid) {
            let (_, mut report) = self.reports.swap_remove(place);
            let result = report.read(&self.blueprint);
            if let Some(notice) = report.notice() {
                self.log.say(&notice);
            }
            events.extend(result.map(|result| executed(pid, result)));
        }
        events.push(Event::Exited { pid, status });
        events
    }
}
