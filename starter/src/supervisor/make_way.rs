//! What the loop does for an upgrade: it starts one, hears what is tried, and makes way for it.

use crate::host::moment::Moment;
use crate::machine::{Generation, Machine};
use crate::supervisor::guard::{Guard, Saved};
use crate::supervisor::resources::Resources;
use crate::supervisor::upgrade::Legacy;
use crate::words::guardian::Guarding;
use crate::words::notice::Notice;
use crate::words::upgrade::Upgrade;

impl Resources {
    /// USR2.
    pub fn upgrade(&mut self, machine: &Machine) {
        if self.upgrade.postpone() {
            return;
        }
        let path = self.upgrade.path();
        self.log.say(&Notice::Upgrade(Upgrade::Trying { path }));
        if let Err(cause) = self.try_upgrade(machine) {
            self.upgrade_failed(cause, machine);
        }
    }

    fn try_upgrade(&mut self, machine: &Machine) -> Result<(), String> {
        let legacy = self.legacy_of_upgrade(machine)?;
        self.upgrade.begin(&legacy, Moment::now())
    }

    fn legacy_of_upgrade(&self, machine: &Machine) -> Result<Legacy, String> {
        match machine.is_stopping() {
            true => Err("the server is stopping".to_owned()),
            false => self.legacy(machine, self.guard.as_ref()),
        }
    }

    /// What was tried has ended.
    pub fn upgrade_answered(&mut self, answer: Result<(), String>, machine: &Machine) {
        if let Err(cause) = answer {
            self.upgrade_failed(cause, machine);
        }
    }

    /// Lets a program that can resume go on from here, or tries the next one. Call it when no action is pending.
    pub fn make_way(&mut self, machine: &Machine) {
        if self.upgrade.take_next() {
            self.upgrade(machine);
        }
        let has_unsent = self.guard.as_ref().is_some_and(Guard::has_unsent);
        if !self.readiness.is_settled() || has_unsent {
            return;
        }
        if let Some(program) = self.upgrade.take_ready() {
            let gone = self.legacy_of_upgrade(machine);
            let cause = gone.map_or_else(|why| why, |legacy| self.upgrade.go(&program, &legacy));
            self.upgrade_failed(cause, machine);
        }
    }

    /// Lets the guardian know what a next supervisor has to know.
    pub fn tell_guardian(&mut self, machine: &Machine) {
        // What was found comes first in the next turn, which begins at once.
        if self.guard.is_none() || !self.readiness.is_settled() {
            return;
        }
        let legacy = self.legacy(machine, None);
        let Some(guard) = &mut self.guard else { return };
        let saved = match legacy {
            Ok(legacy) => guard.save(&legacy),
            Err(cause) => Saved::Failed(cause),
        };
        if let Saved::Failed(cause) = saved {
            self.log
                .say(&Notice::Guarding(Guarding::Unwritten { cause }));
        }
        if let (Some(guard), Some(pid_file)) = (&mut self.guard, &mut self.pid_file)
            && let Some(file) = pid_file.take_new()
        {
            guard.give_lock(file);
        }
        let workers = machine.generations().flat_map(Generation::workers);
        let guard = self.guard.as_mut();
        if guard.is_some_and(|guard| guard.has_died(workers.map(|worker| worker.pid))) {
            self.go_on_alone(machine);
        }
    }

    /// The guardian is dead: whoever signals the server finds this process.
    fn go_on_alone(&mut self, machine: &Machine) {
        self.log.say(&Notice::Guarding(Guarding::GuardianGone));
        if let Some(pid_file) = &mut self.pid_file {
            pid_file.taken_over();
        }
        self.status_file.taken_over();
        self.save_status(machine);
    }

    fn upgrade_failed(&mut self, cause: String, machine: &Machine) {
        let notice = self.upgrade.failed(cause);
        self.log.say(&notice);
        self.show_upgrades(machine);
    }

    /// Writes what became of upgrades where a client finds it.
    pub fn show_upgrades(&mut self, machine: &Machine) {
        let outcome = self.upgrade.outcome();
        let failure = outcome.failure.as_deref();
        self.status_file.upgrades_decided(outcome.tried, failure);
        self.save_status(machine);
    }
}
