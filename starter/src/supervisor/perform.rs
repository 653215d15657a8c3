//! What the machine has decided is carried out, and what needs no decision. No policy is here.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::moment::Moment;
use crate::listeners::health::Occasion;
use crate::machine::{Action, Event, Machine};
use crate::status::pid_file::PidFile;
use crate::supervisor::resources::Resources;
use crate::supervisor::sources::{Duty, executed};
use crate::words::failure::Failure;
use crate::words::notice::{ExecFailure, Notice, WithMeaning};
use crate::worker::{Change, Report, cannot_spawn};

impl Resources {
    /// Carries one action out. Returns what has happened by that.
    pub fn perform(&mut self, action: Action, machine: &mut Machine) -> Option<Event> {
        match action {
            Action::Spawn { generation, slot } => {
                return Some(self.spawn(generation, slot, machine));
            }
            Action::Signal { pid, signal } => self.signal(pid, signal),
            Action::Serving => {
                // By now the worker has written its pid wherever it writes one.
                self.restore_pid_file();
                self.log.release_launcher();
                if let Some(waiting) = self.waiting.take() {
                    waiting.tell_success();
                }
                return self.examine_listeners(Occasion::Commit);
            }
            Action::SaveStatus => self.save_status(machine),
            Action::Say(notice) => self.log.say(&notice),
            // The loop looks for that.
            Action::Finish(_) => {}
        }
        None
    }

    /// Looks after the listeners. Returns what the machine is to hear of it.
    fn examine_listeners(&mut self, occasion: Occasion) -> Option<Event> {
        let sockets = &mut self.blueprint.sockets;
        let notices = self
            .health
            .examine(sockets, &mut self.socket_files, occasion);
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

    /// Does one duty. Returns what the machine is to hear of it.
    pub fn fulfil(&mut self, duty: Duty, machine: &Machine) -> Vec<Event> {
        match duty {
            Duty::Bury { pid, status } => return self.bury(pid, status, machine),
            Duty::RestorePidFile => self.restore_pid_file(),
            Duty::ReopenLog => {
                self.log.reopen();
                self.status_file.log_reopened(self.log.reopened().clone());
                self.save_status(machine);
            }
            Duty::Ignore(signal) => self.log.say(&Notice::Ignored(signal)),
            Duty::SaveStatus => self.save_status(machine),
            Duty::WorkOnLog => self.log.work(Instant::now()),
        }
        Vec::new()
    }

    fn save_status(&mut self, machine: &Machine) {
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

    fn spawn(&mut self, generation: u32, slot: usize, machine: &mut Machine) -> Event {
        // What of it nobody can reach is the verdict at the commit.
        self.examine_listeners(Occasion::Start);
        let (changes, knobs) = self.load_environment();
        machine.set_knobs(knobs);
        match self.spawn_captured(generation, &changes) {
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

    fn spawn_captured(
        &mut self,
        generation: u32,
        changes: &[Change],
    ) -> Result<(Pid, Report), ExecFailure> {
        let pipes = self.log.pipes().map_err(cannot_spawn)?;
        let (pid, report) = self.blueprint.spawn(generation, changes, &pipes.theirs)?;
        self.log.attach(generation, pid, pipes);
        Ok((pid, report))
    }

    /// The pid is still the worker's: it is a child that was not reaped yet.
    fn signal(&mut self, pid: Pid, signal: Signal) {
        if let Err(errno) = kill(pid, signal) {
            self.log.say(&Notice::CannotSignal { pid, signal, errno });
        }
    }

    fn bury(&mut self, pid: Pid, status: i32, machine: &Machine) -> Vec<Event> {
        if self.socket_files.binder() == Some(pid) {
            self.socket_files.binder_is_gone();
            self.log.say(&Notice::BinderDied);
            return Vec::new();
        }
        if self.log.has_exited(pid, status) {
            if self.waiting.is_none() {
                return Vec::new();
            }
            // Nobody would ever see what it was to write.
            self.reason = Some(Failure::failed(format!(
                "cannot start: the log command died, status:{}",
                WithMeaning(status)
            )));
            return vec![Event::Stop(Signal::SIGTERM)];
        }
        // Before the verdict, which is to have its last lines.
        let last_lines = self.log.worker_exited(pid);
        self.status_file.worker_exited(pid, last_lines);
        let mut events = Vec::new();
        // Before its exit, after which a restart may be over. Whoever stops needs no listeners.
        if machine.has_worker(pid) && !machine.is_stopping() {
            events.extend(self.examine_listeners(Occasion::End(pid)));
        }
        // It may have reported since the reports were read, and its report comes before its exit.
        if let Some(place) = self.reports.iter().position(|(one, _)| *one == pid) {
            let (_, report) = self.reports.swap_remove(place);
            let result = report.read(&self.blueprint);
            events.extend(result.map(|result| executed(pid, result)));
        }
        events.push(Event::Exited { pid, status });
        events
    }
}
