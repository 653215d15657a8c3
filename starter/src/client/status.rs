//! The parts of `F.json` that a client needs.

use std::fmt;
use std::io;
use std::path::Path;

use nix::unistd::Pid;

use crate::host::order::{Order, Trial};
use crate::host::proc;
use crate::status::file::{UPGRADE, read_text};
use crate::status::view::{self, Outcome, State, View, Worker};
use crate::words::canary::cannot_share;
use crate::words::failure::{self, Failure};
use crate::words::many;
use crate::words::parts::WithMeaning;
use crate::words::progress::{serves_instead, was_restored};
use crate::words::remedy;
use crate::words::text::{printable, quoted, shortened};

/// The result of a restart.
pub type Verdict = Result<(), Failure>;

/// What a server is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Restart,
    /// A restart whose new generation gets a share of new connections.
    Canary(Trial),
    Promotion,
    Rollback,
    Abort,
}

impl Asked {
    pub fn noun(self) -> &'static str {
        match self {
            Asked::Restart | Asked::Canary(_) => "the restart",
            Asked::Promotion => "the promotion",
            Asked::Rollback => "the rollback",
            Asked::Abort => "the abort",
        }
    }

    /// The order that a server must know for it.
    pub fn order(self) -> Option<Order> {
        match self {
            Asked::Restart => None,
            Asked::Canary(trial) => Some(Order::Canary(trial)),
            Asked::Promotion => Some(Order::Promote),
            Asked::Rollback => Some(Order::RollBack),
            Asked::Abort => Some(Order::Abort),
        }
    }

    /// Whether it starts another generation, whatever has served before.
    fn is_restart(self) -> bool {
        matches!(self, Asked::Restart | Asked::Canary(_))
    }

    /// The option that only a server with lanes can obey.
    fn needs_lanes(self) -> Option<&'static str> {
        match self {
            Asked::Canary(_) => Some("canary"),
            Asked::Promotion => Some("promote"),
            Asked::Restart | Asked::Rollback | Asked::Abort => None,
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Asked::Restart | Asked::Canary(_) => "restart",
            Asked::Promotion => "promote",
            Asked::Rollback => "roll back",
            Asked::Abort => "abort",
        })
    }
}

/// What a server, or somebody able to write in its place, has put into the file.
#[derive(Debug, PartialEq)]
pub struct Status(View);

impl Status {
    pub fn read(path: &Path) -> Option<Status> {
        Status::parse(&read_text(path).ok()?)
    }

    pub fn parse(text: &str) -> Option<Status> {
        View::parse(text).map(Status)
    }

    /// All of it.
    pub fn view(&self) -> &View {
        &self.0
    }

    /// When the server was started, which stays the same if another process takes it over.
    pub fn started_at(&self) -> f64 {
        self.0.supervisor.started_at
    }

    /// Whether that server has written it, and not a dead one that had the same pid: in a container each one is 1.
    pub fn is_of(&self, server: Pid) -> bool {
        let written = self.0.supervisor.start_ticks;
        let is_same_start = || match (written, proc::start_ticks(server)) {
            (Some(written), Some(started)) => written == started,
            // An older version does not tell it, and /proc may be closed.
            _ => true,
        };
        self.supervisor() == i64::from(server.as_raw()) && is_same_start()
    }

    pub fn supervisor(&self) -> i64 {
        self.0.supervisor.pid
    }

    /// The workers that are still alive, with their generations, though their server may be gone. A process that has the
    /// pid of one by now was started at another time.
    pub fn surviving_workers(&self) -> impl Iterator<Item = (i64, u64)> {
        /// Clock ticks in a second, as /proc counts them.
        const TICKS: f64 = 100.0;
        /// What clocks and rounding may make of it, in ticks.
        const TOLERANCE: f64 = 2.0 * TICKS;
        let supervisor = &self.0.supervisor;
        let began = supervisor.start_ticks.map(|ticks| ticks as f64);
        let is_alive = move |worker: &Worker| {
            let pid = i32::try_from(worker.pid).ok().filter(|pid| *pid > 1)?;
            let pid = Pid::from_raw(pid);
            proc::Fields::of(pid).ok().filter(|one| !one.is_zombie())?;
            let started = proc::start_ticks(pid)? as f64;
            let expected = began? + (worker.started_at - supervisor.started_at) * TICKS;
            ((started - expected).abs() <= TOLERANCE).then_some(())
        };
        let living = self.0.generations.iter();
        living.flat_map(move |one| {
            let workers = one.workers.iter();
            let alive = workers.filter(move |worker| is_alive(worker).is_some());
            alive.map(|worker| (worker.pid, one.number))
        })
    }

    /// The last change of the number of workers.
    pub fn scaling(&self) -> Option<&view::Scaling> {
        self.0.scaling.as_ref()
    }

    /// How often it was told to reopen its log file.
    pub fn reopened(&self) -> u64 {
        self.0.log.reopened
    }

    /// Why it failed the last time.
    pub fn reopen_failure(&self) -> Option<&str> {
        self.0.log.failure.as_deref()
    }

    /// How many upgrades it has tried, and why the last one failed, if it did.
    pub fn upgrades(&self) -> (u64, Option<&str>) {
        (self.0.upgrades.tried, self.0.upgrades.failure.as_deref())
    }

    /// The version that runs.
    pub fn version(&self) -> &str {
        &self.0.supervisor.version
    }

    /// The log file, unless it is a command.
    pub fn log_file(&self) -> Option<&str> {
        let file = self.0.options.log_file.as_deref();
        file.filter(|file| !file.starts_with('|'))
    }

    /// The number of the next restart to be requested.
    pub fn next_request(&self) -> u64 {
        // The server's user can write anything there, and this process may be root.
        self.0.counters.restarts.saturating_add(1)
    }

    /// The pids of all workers, with commas between them.
    pub fn all_workers(&self) -> String {
        self.workers(|_| true)
    }

    /// Whether its server knows this order.
    pub fn can_upgrade(&self) -> bool {
        let mut orders = self.0.supervisor.orders.iter();
        orders.any(|one| one == UPGRADE)
    }

    pub fn obeys(&self, order: Order) -> bool {
        let mut orders = self.0.supervisor.orders.iter();
        orders.any(|one| one == order.name())
    }

    /// Why this cannot be asked of a server whose generations share their sockets.
    pub fn without_lanes(&self, asked: Asked) -> Option<Failure> {
        let option = asked.needs_lanes().filter(|_| self.0.switch.is_none())?;
        Some(cannot_share(option, self.supervisor()))
    }

    /// The server does not know what it would be asked for.
    pub fn too_old(&self, asked: impl fmt::Display) -> Failure {
        let (pid, version) = (self.supervisor(), &self.0.supervisor.version);
        Failure::failed(format!(
            "cannot {asked}: pid {pid} is start_server {}, which knows no such order",
            shortened(version)
        ))
    }

    /// Why what is asked for is no longer possible, if the server is stopping.
    pub fn stopping(&self, asked: impl fmt::Display) -> Option<Failure> {
        if !self.0.stopping {
            return None;
        }
        let failure = Failure::failed(format!(
            "cannot {asked}: pid {} is stopping",
            self.supervisor()
        ));
        let workers = self.all_workers();
        Some(match workers.is_empty() {
            true => failure,
            false => failure.hint(remedy::waits_for_workers(&workers)),
        })
    }

    /// The generation that answers what was asked for. A start already under way when it was requested does not, nor does
    /// the answer to what somebody else has asked for at the same moment, nor the refusal of a later rollback.
    pub fn answer_to(&self, request: u64, asked: Asked) -> Option<u64> {
        let answers = |one: &&view::Verdict| {
            let is_refused = one.rollback && one.generation == 0;
            match one.request == request {
                true => one.rollback != asked.is_restart(),
                false => one.request > request && !is_refused,
            }
        };
        self.0
            .verdicts
            .iter()
            .find(answers)
            .map(|one| one.generation)
    }

    /// The result of the restart that this generation answers: committed if nothing else is known any more. With
    /// `at_commit` it does not depend on the end of the old workers.
    pub fn verdict_on(&self, generation: u64, at_commit: bool, asked: Asked) -> Option<Verdict> {
        match self.last_decision(generation) {
            Some(decision) if self.brings_back(decision) => None,
            // That is what was asked for.
            Some(decision) if decision.result == Outcome::Canary => Some(Ok(())),
            Some(decision) if decision.result != Outcome::Committed => {
                Some(Err(self.failure(decision, asked)))
            }
            _ => {
                let old_left = self.replaced_by(generation).next().is_some();
                // A server that is stopping has not restarted.
                ((at_commit || !old_left) && !self.0.stopping).then_some(Ok(()))
            }
        }
    }

    /// Whether a restart has failed for which what served had to stop, and it is not known yet whether that comes back.
    pub fn brings_back(&self, decision: &view::Verdict) -> bool {
        let is_open = decision.unserved_since.is_some() && decision.durations.unserved.is_none();
        let is_last = self.0.verdicts.last() == Some(decision);
        decision.result == Outcome::Failed && is_open && is_last && !self.0.stopping
    }

    /// The generations that this one is to replace and that still have workers: the older ones, and after a rollback those
    /// up to the one that was rolled back.
    pub fn replaced_by(&self, generation: u64) -> impl Iterator<Item = &view::Generation> {
        let replaces = self.last_decision(generation).and_then(|one| one.replaces);
        let last = replaces.unwrap_or(0).max(generation);
        let living = self.0.generations.iter();
        let replaced = living.filter(move |one| one.number <= last && one.number != generation);
        // What has taken over some slots goes on serving in them.
        replaced.filter(|one| one.state != State::Partial)
    }

    /// The highest number of a generation that is known.
    pub fn newest(&self) -> u64 {
        let living = self.0.generations.iter().map(|one| one.number);
        let decided = self.0.verdicts.iter().map(|one| one.generation);
        living.chain(decided).max().unwrap_or(0)
    }

    /// A generation that died before the old one was signalled has two decisions: committed, then failed.
    pub fn last_decision(&self, generation: u64) -> Option<&view::Verdict> {
        let mut decisions = self.0.verdicts.iter().rev();
        decisions.find(|one| one.generation == generation)
    }

    fn failure(&self, decision: &view::Verdict, asked: Asked) -> Failure {
        let generation = decision.generation;
        if let (true, Some(cause)) = (decision.serves, &decision.cause) {
            let cause = printable(cause);
            let failure = Failure::failed(format!(
                "{} is incomplete: generation {generation} serves, but {cause}",
                asked.noun()
            ));
            return failure.hint_if(decision.hint.as_ref().map(printable));
        }
        let how = how(decision);
        let serving = self.who_serves(decision, asked);
        // Someone else may have written anything into the file.
        let said: Vec<String> = decision.stderr.iter().map(shortened).collect();
        // Nothing was started: a check has failed, or a rollback was refused.
        if generation == 0 {
            let cause = decision.cause.as_ref().map(shortened).unwrap_or_default();
            return Failure::failed(format!("cannot {asked}: {cause}; {serving}"))
                .stderr(&said)
                .hint_if(decision.hint.as_ref().map(shortened));
        }
        if decision.undone {
            // `it was rolled back`
            let cause = decision.cause.as_deref().map(shortened);
            let cause = cause.unwrap_or_default();
            let done = cause.strip_prefix("it ").unwrap_or("was rolled back");
            return Failure::failed(format!(
                "cannot {asked}: generation {generation} {done}; {serving}"
            ));
        }
        let was_rolling = decision.rolled.is_some();
        let what_follows = match decision.given_up && !was_rolling {
            true => remedy::until_the_next_restart,
            false => remedy::until_it_is_retried,
        };
        let own_status = wait_status(decision).filter(|_| decision.cause.is_none());
        let had = |result| {
            let mut decisions = self.0.verdicts.iter();
            decisions.any(|one| one.generation == generation && one.result == result)
        };
        let was_canary = had(Outcome::Canary);
        let has_served = was_canary || had(Outcome::Committed);
        let failed = match has_served {
            true => "failed after it had begun to serve",
            false => "failed to start",
        };
        let advice = self.advice(decision.hint.as_deref(), own_status);
        let label = self.label_of(decision);
        let serving = rolled(decision).unwrap_or(serving);
        Failure::failed(format!(
            "cannot {asked}: generation {generation}{label} {failed}{how}; {serving}"
        ))
        .stderr(&said)
        .hint(
            match decision.restored.is_some() || was_rolling || was_canary {
                true => remedy::until_it_is_asked_for(&advice),
                false => what_follows(&advice),
            },
        )
    }

    /// In parentheses, if the server was given one.
    fn label_of(&self, decision: &view::Verdict) -> String {
        let label = decision.label.as_ref();
        let label = label.filter(|_| self.0.options.label.is_some());
        let label = label.map(|label| format!(" ({})", shortened(label)));
        label.unwrap_or_default()
    }

    /// Who serves though this start has failed.
    fn who_serves(&self, decision: &view::Verdict, asked: Asked) -> String {
        let mut living = self.0.generations.iter();
        let current = living.find(|one| one.state == State::Current);
        let current = current.map(|one| one.number);
        match (decision.durations.unserved, decision.restored, current) {
            (Some(unserved), Some(restored), _) => was_restored(restored, unserved),
            (Some(unserved), None, current) => serves_instead(current, unserved),
            (None, _, Some(_)) if asked.is_restart() => "the old one keeps serving".to_owned(),
            (None, _, Some(number)) => format!("generation {number} keeps serving"),
            (None, _, None) => "no worker is serving".to_owned(),
        }
    }

    /// The hint for a failed start, given the program's own exit status.
    fn advice(&self, hint: Option<&str>, status: Option<i32>) -> String {
        match (hint, status, self.log_file()) {
            (Some(hint), ..) => shortened(hint),
            // A server of an older version has no hint for it.
            (None, Some(0), _) => remedy::STAY_IN_FOREGROUND.into(),
            (None, _, Some(file)) => remedy::see_for_more(&shortened(file)),
            _ => remedy::see_for_more("the log"),
        }
    }

    /// The old workers that hold up a restart whose generation serves.
    pub fn waits_for(&self, generation: u64) -> Option<String> {
        let is_committed = self.last_decision(generation)?.result == Outcome::Committed;
        let replaced: Vec<u64> = self.replaced_by(generation).map(|one| one.number).collect();
        let old = self.workers(|number| replaced.contains(&number));
        (is_committed && !old.is_empty())
            .then(|| format!("generation {generation} serves; old workers still running: {old}"))
    }

    /// The pids of the workers of these generations.
    fn workers(&self, are_meant: impl Fn(u64) -> bool) -> String {
        let generations = self.0.generations.iter();
        let pids: Vec<String> = generations
            .filter(|one| are_meant(one.number))
            .flat_map(|one| one.workers.iter())
            .map(|Worker { pid, .. }| pid.to_string())
            .collect();
        pids.join(", ")
    }
}

fn wait_status(decision: &view::Verdict) -> Option<i32> {
    let status = decision.status?;
    i32::try_from(status).ok()
}

/// How a start has failed, as the end of a sentence.
pub fn how(decision: &view::Verdict) -> String {
    match (&decision.cause, wait_status(decision)) {
        // A status that no program returned would mislead.
        (Some(cause), _) => format!(": {}", shortened(cause)),
        (None, Some(status)) => format!(", exit status:{}", WithMeaning(status)),
        (None, None) => String::new(),
    }
}

/// How far a rolling restart came that has failed in the middle. One that has replaced nobody has changed nothing.
pub fn rolled(decision: &view::Verdict) -> Option<String> {
    let rolled = decision.rolled.filter(|rolled| rolled.done > 0)?;
    Some(many::rolled(rolled.done, rolled.of, decision.generation))
}

/// Whether this generation has served before: a rollback has put an end to what was to replace it.
pub fn was_kept(view: &View, decision: &view::Verdict) -> bool {
    let has_committed = |one: &&view::Verdict| {
        one.generation == decision.generation && (one.serves || one.result == Outcome::Committed)
    };
    decision.replaces > Some(decision.generation)
        || view.verdicts.iter().filter(has_committed).count() > 1
}

/// What is wrong with the file that should contain a server's status.
pub fn no_status(json: &Path) -> String {
    let cause = match read_text(json) {
        Ok(_) => "is not the status of that server".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "is missing".to_owned(),
        Err(error) => format!("cannot be read: {}", failure::cause(&error)),
    };
    format!("{} {cause}", quoted(json))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn status(living: &[u64], verdicts: &[(u64, u64, bool)]) -> Status {
        let verdict = |&(request, generation, is_committed): &_| view::Verdict {
            request,
            generation,
            result: match is_committed {
                true => Outcome::Committed,
                false => Outcome::Failed,
            },
            status: Some(256),
            stderr: ["the reason".to_owned()].into_iter().collect(),
            ..view::Verdict::default()
        };
        let generation = |&number: &u64| view::Generation {
            number,
            state: State::Current,
            ..view::Generation::default()
        };
        Status(View {
            generations: living.iter().map(generation).collect(),
            verdicts: verdicts.iter().map(verdict).collect(),
            ..View::default()
        })
    }

    impl Status {
        fn verdict(&self, request: u64) -> Option<Verdict> {
            self.answer_to(request, Asked::Restart)
                .and_then(|generation| self.verdict_on(generation, false, Asked::Restart))
        }
    }

    #[test]
    fn a_file_is_not_that_of_a_dead_server_with_the_same_pid() {
        let written = |start_ticks| {
            let supervisor = view::Supervisor {
                pid: Pid::this().as_raw().into(),
                start_ticks,
                ..view::Supervisor::default()
            };
            Status(View {
                supervisor,
                ..View::default()
            })
        };
        let own = proc::start_ticks(Pid::this()).unwrap();
        assert!(written(Some(own)).is_of(Pid::this()));
        assert!(written(None).is_of(Pid::this()));
        assert!(!written(Some(own - 1)).is_of(Pid::this()));
        assert!(!written(Some(own)).is_of(Pid::parent()));
    }

    #[test]
    fn a_restart_is_done_when_its_generation_has_committed_and_the_old_one_is_gone() {
        assert!(status(&[1], &[(0, 1, true)]).verdict(1).is_none());
        assert!(status(&[1, 2], &[(0, 1, true)]).verdict(1).is_none());
        assert!(
            status(&[1, 2], &[(0, 1, true), (1, 2, true)])
                .verdict(1)
                .is_none()
        );
        assert_eq!(
            status(&[2], &[(0, 1, true), (1, 2, true)]).verdict(1),
            Some(Ok(()))
        );
    }

    #[test]
    fn a_start_that_was_under_way_does_not_answer() {
        assert!(status(&[2], &[(1, 2, true)]).verdict(2).is_none());
        assert_eq!(
            status(&[3], &[(1, 2, true), (2, 3, true)]).verdict(2),
            Some(Ok(()))
        );
    }

    #[test]
    fn a_failed_start_is_told_at_once_and_with_its_status() {
        let failure = status(&[1], &[(0, 1, true), (1, 2, false)])
            .verdict(1)
            .unwrap()
            .unwrap_err();
        assert!(failure.to_string().contains(
            "generation 2 failed to start, exit status:256 (exit code 1); the old one keeps serving\nstderr: the reason\nhint: "
        ));
        // Also if the next try has succeeded meanwhile, and if it failed after it had committed.
        assert!(
            status(&[3], &[(1, 2, false), (1, 3, true)])
                .verdict(1)
                .unwrap()
                .is_err()
        );
        assert!(
            status(&[1], &[(1, 2, true), (1, 2, false)])
                .verdict(1)
                .unwrap()
                .is_err()
        );
    }

    #[test]
    fn a_failed_restart_that_stopped_first_is_told_once_it_is_known_what_serves() {
        let mut status = status(&[], &[(0, 1, true), (1, 2, false)]);
        let verdicts = |status: &Status| -> Vec<view::Verdict> { status.0.verdicts.to_vec() };
        let mut with_outage = verdicts(&status);
        with_outage[1].unserved_since = Some(5.0);
        status.0.verdicts = with_outage.iter().cloned().collect();
        assert!(status.verdict(1).is_none());
        let told = |status: &Status| status.verdict(1).unwrap().unwrap_err().to_string();
        // It is stopping, or what served before has failed too.
        status.0.stopping = true;
        assert!(told(&status).contains("; no worker is serving\n"));
        status.0.stopping = false;
        let failed_too = view::Verdict {
            generation: 3,
            ..with_outage[1].clone()
        };
        let both = with_outage.iter().cloned().chain([failed_too]);
        status.0.verdicts = both.collect();
        assert!(told(&status).contains("; no worker is serving\n"));

        with_outage[1].durations.unserved = Some(1.34);
        status.0.verdicts = with_outage.iter().cloned().collect();
        let another = "; another generation served instead; nobody answered for 1.3 s\n";
        assert!(told(&status).contains(another));
        with_outage[1].restored = Some(3);
        status.0.verdicts = with_outage.iter().cloned().collect();
        let back =
            "; what served before was started again as generation 3; nobody answered for 1.3 s\n";
        assert!(told(&status).contains(back));
    }

    #[test]
    fn later_restarts_and_crashes_do_not_keep_one_from_its_verdict() {
        // Committed, superseded by a restart that failed, and crashed: the old one of before is gone.
        let status = status(&[5], &[(1, 2, true), (2, 3, false), (2, 5, true)]);
        assert_eq!(status.verdict(1), Some(Ok(())));
    }

    #[test]
    fn whoever_asks_for_a_rollback_gets_another_answer_than_whoever_asks_for_a_restart() {
        let verdict = |request, rollback, generation| view::Verdict {
            request,
            rollback,
            generation,
            ..view::Verdict::default()
        };
        let answers = |verdicts: &[view::Verdict], asked| {
            let status = Status(View {
                verdicts: verdicts.iter().cloned().collect(),
                ..View::default()
            });
            status.answer_to(5, asked)
        };
        // Both were asked for at the same moment.
        let both = [verdict(5, false, 3), verdict(6, true, 2)];
        assert_eq!(answers(&both, Asked::Restart), Some(3));
        assert_eq!(answers(&both, Asked::Rollback), Some(2));
        let both = [verdict(5, true, 2), verdict(6, false, 3)];
        assert_eq!(answers(&both, Asked::Restart), Some(3));
        assert_eq!(answers(&both, Asked::Rollback), Some(2));
        // A later rollback that is refused keeps nobody from an answer.
        let refused = [verdict(6, true, 0)];
        assert_eq!(answers(&refused, Asked::Restart), None);
        assert_eq!(answers(&refused, Asked::Rollback), None);
        let refused = [verdict(5, true, 0)];
        assert_eq!(answers(&refused, Asked::Rollback), Some(0));
        // Several restarts have one answer.
        let several = [verdict(7, false, 3)];
        assert_eq!(answers(&several, Asked::Restart), Some(3));
    }

    #[test]
    fn a_decision_that_is_forgotten_stays_what_it_was() {
        let forgotten = &[(2, 3, false)];
        assert!(
            status(&[1, 2], forgotten)
                .verdict_on(2, false, Asked::Restart)
                .is_none()
        );
        let verdict = status(&[2], forgotten).verdict_on(2, false, Asked::Restart);
        assert_eq!(verdict, Some(Ok(())));
    }

    #[test]
    fn a_commit_is_a_verdict_for_whoever_does_not_wait_for_the_old_one() {
        let mut status = status(&[1, 2], &[(0, 1, true), (1, 2, true)]);
        assert!(status.verdict_on(2, false, Asked::Restart).is_none());
        assert_eq!(status.verdict_on(2, true, Asked::Restart), Some(Ok(())));
        status.0.stopping = true;
        assert!(status.verdict_on(2, true, Asked::Restart).is_none());
    }

    #[test]
    fn a_server_that_is_about_to_end_has_not_restarted() {
        let mut stopping = status(&[2], &[(0, 1, true), (1, 2, true)]);
        stopping.0.stopping = true;
        assert!(stopping.verdict(1).is_none());
    }

    #[test]
    fn a_server_that_is_stopping_is_named_with_the_workers_that_it_waits_for() {
        let mut status = status(&[2], &[(0, 1, true), (1, 2, true)]);
        status.0.supervisor.pid = 7;
        assert_eq!(status.stopping(Asked::Restart), None);
        status.0.stopping = true;
        let failure = Failure::failed("cannot restart: pid 7 is stopping");
        assert_eq!(status.stopping(Asked::Restart), Some(failure));
        let workers = [8, 9].map(|pid| Worker {
            pid,
            ..Worker::default()
        });
        status.0.generations = [view::Generation {
            workers: workers.into_iter().collect(),
            ..view::Generation::default()
        }]
        .into_iter()
        .collect();
        assert_eq!(
            status.stopping(Asked::Restart).unwrap().to_string(),
            "cannot restart: pid 7 is stopping\nhint: it is waiting for its workers to exit: 8, 9"
        );
    }
}
