//! What `F.json` says, as far as a client must know it.

use std::path::Path;

use serde::Deserialize;

use crate::status::file::read_text;
use crate::words::failure::Failure;
use crate::words::notice::WithMeaning;
use crate::words::text::printable;

/// What became of a restart.
pub type Verdict = Result<(), Failure>;

/// The part of the status that a verdict is made of.
#[derive(Debug, PartialEq, Eq)]
pub struct Status {
    pub supervisor: i64,
    restarts: u64,
    stopping: bool,
    /// Whether a generation that has committed is left.
    serves: bool,
    /// The generations that have workers.
    living: Vec<u64>,
    /// The workers with their generations.
    workers: Vec<(u64, i64)>,
    /// As the option was given.
    pub log_file: Option<String>,
    verdicts: Vec<Decided>,
    /// How often it was told to open its log file again.
    pub reopened: u64,
    /// Why it could not, the last time.
    pub reopen_failure: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Decided {
    request: u64,
    generation: u64,
    committed: bool,
    status: Option<i64>,
    /// Why no program ran.
    cause: Option<String>,
    /// What can be done about that.
    hint: Option<String>,
    /// The last lines on standard error of the worker that has failed.
    stderr: Vec<String>,
}

impl Status {
    pub fn read(path: &Path) -> Option<Status> {
        Status::parse(&read_text(path).ok()?)
    }

    /// What a server has written into its status file, or somebody else in its place.
    pub fn parse(text: &str) -> Option<Status> {
        let View {
            supervisor,
            stopping,
            counters,
            generations,
            verdicts,
            log,
            options,
        } = serde_json::from_str(text).ok()?;
        let log = log.unwrap_or_default();
        let is_current = |one: &GenerationView| one.state.as_deref() == Some("current");
        Some(Status {
            supervisor: supervisor.pid,
            stopping,
            serves: generations.iter().any(is_current),
            restarts: counters.restarts,
            living: generations.iter().filter_map(|one| one.number).collect(),
            workers: generations.iter().flat_map(GenerationView::pids).collect(),
            log_file: options.and_then(|options| options.log_file),
            verdicts: verdicts.into_iter().map(Decided::from).collect(),
            reopened: log.reopened.unwrap_or(0),
            reopen_failure: log.failure,
        })
    }

    /// The number of the restart that is asked for next.
    pub fn next_request(&self) -> u64 {
        // The server's user can write anything there, and this may be root.
        self.restarts.saturating_add(1)
    }

    /// The generation that answers a restart. A start that was under way when it was asked for does not.
    pub fn answer_to(&self, request: u64) -> Option<u64> {
        let first = self.verdicts.iter().find(|one| one.request >= request)?;
        Some(first.generation)
    }

    /// What became of the restart that this generation answers: it was committed when nothing else is known any more.
    pub fn verdict_on(&self, generation: u64) -> Option<Verdict> {
        // A generation that died before the old one was signalled has both decisions.
        let last = self
            .verdicts
            .iter()
            .rev()
            .find(|one| one.generation == generation);
        if let Some(Decided {
            committed: false,
            status,
            cause,
            hint,
            stderr,
            ..
        }) = last
        {
            let status = status.and_then(|status| i32::try_from(status).ok());
            let how = match (cause, status) {
                // A status that no program has given would mislead.
                (Some(cause), _) => format!(": {}", printable(cause)),
                (None, Some(status)) => format!(", exit status:{}", WithMeaning(status)),
                (None, None) => String::new(),
            };
            // Whoever may write the file may have written anything.
            let said: Vec<String> = stderr.iter().map(printable).collect();
            let serving = if self.serves {
                "the old one serves on"
            } else {
                "no worker serves"
            };
            return Some(Err(Failure::failed(format!(
                "cannot restart: generation {generation} has failed to start{how}; {serving}"
            ))
            .stderr(&said)
            .hint(format!(
                "{}; it is tried again until it comes up, or --start-limit is reached",
                self.advice(hint.as_deref(), status.filter(|_| cause.is_none()))
            ))));
        }
        let old_left = self.living.iter().any(|number| *number < generation);
        // A server that stops has not restarted: its end will tell.
        (!old_left && !self.stopping).then_some(Ok(()))
    }

    /// What helps against a failed start, with the status that the program itself has given.
    fn advice(&self, hint: Option<&str>, status: Option<i32>) -> String {
        match (hint, status, &self.log_file) {
            (Some(hint), ..) => printable(hint),
            (None, Some(0), _) => {
                "a server that puts itself into the background has ended for start_server: keep it in the foreground".into()
            }
            (None, _, Some(file)) if !file.starts_with('|') => {
                format!("{} says more", printable(file))
            }
            _ => "the log says more".into(),
        }
    }

    /// The old workers that a restart waits for whose generation serves.
    pub fn waits_for(&self, generation: u64) -> Option<String> {
        let committed = self
            .verdicts
            .iter()
            .rev()
            .find(|one| one.generation == generation)?
            .committed;
        let old = self
            .workers
            .iter()
            .filter(|(number, _)| *number < generation);
        let old: Vec<String> = old.map(|(_, pid)| pid.to_string()).collect();
        (committed && !old.is_empty()).then(|| {
            format!(
                "generation {generation} serves; old workers that have not ended yet: {}",
                old.join(", ")
            )
        })
    }
}

/// The file as far as it is asked for. What else is in it costs no memory, which another user could make root's.
#[derive(Deserialize)]
struct View {
    supervisor: SupervisorView,
    stopping: bool,
    counters: CountersView,
    generations: Vec<GenerationView>,
    verdicts: Vec<VerdictView>,
    log: Option<LogView>,
    options: Option<OptionsView>,
}

#[derive(Deserialize)]
struct OptionsView {
    log_file: Option<String>,
}

#[derive(Deserialize)]
struct WorkerView {
    pid: i64,
}

#[derive(Deserialize)]
struct SupervisorView {
    pid: i64,
}

#[derive(Deserialize)]
struct CountersView {
    restarts: u64,
}

#[derive(Deserialize)]
struct GenerationView {
    number: Option<u64>,
    state: Option<String>,
    workers: Option<Vec<WorkerView>>,
}

impl GenerationView {
    /// The workers, each with the number of the generation.
    fn pids(&self) -> Vec<(u64, i64)> {
        let pid = |worker: &WorkerView| Some((self.number?, worker.pid));
        self.workers.iter().flatten().filter_map(pid).collect()
    }
}

#[derive(Deserialize)]
struct VerdictView {
    request: u64,
    generation: u64,
    result: String,
    status: Option<i64>,
    cause: Option<String>,
    hint: Option<String>,
    stderr: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
struct LogView {
    reopened: Option<u64>,
    failure: Option<String>,
}

impl From<VerdictView> for Decided {
    fn from(view: VerdictView) -> Decided {
        Decided {
            request: view.request,
            generation: view.generation,
            committed: view.result == "committed",
            status: view.status,
            cause: view.cause,
            hint: view.hint,
            stderr: view.stderr.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn status(living: &[u64], verdicts: &[(u64, u64, bool)]) -> Status {
        let verdicts = verdicts
            .iter()
            .map(|&(request, generation, committed)| Decided {
                request,
                generation,
                committed,
                status: Some(256),
                cause: None,
                hint: None,
                stderr: vec!["the reason".into()],
            })
            .collect();
        Status {
            supervisor: 1,
            restarts: 9,
            stopping: false,
            serves: true,
            living: living.to_vec(),
            workers: Vec::new(),
            log_file: None,
            verdicts,
            reopened: 0,
            reopen_failure: None,
        }
    }

    impl Status {
        fn verdict(&self, request: u64) -> Option<Verdict> {
            self.answer_to(request)
                .and_then(|generation| self.verdict_on(generation))
        }
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
            "generation 2 has failed to start, exit status:256 (exit code 1); the old one serves on\nstderr: the reason\nhint: "
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
    fn later_restarts_and_crashes_do_not_keep_one_from_its_verdict() {
        // Committed, superseded by a restart that failed, and crashed: the old one of before is gone.
        let status = status(&[5], &[(1, 2, true), (2, 3, false), (2, 5, true)]);
        assert_eq!(status.verdict(1), Some(Ok(())));
    }

    #[test]
    fn a_decision_that_is_forgotten_stays_what_it_was() {
        assert!(status(&[1, 2], &[(2, 3, false)]).verdict_on(2).is_none());
        assert_eq!(status(&[2], &[(2, 3, false)]).verdict_on(2), Some(Ok(())));
    }

    #[test]
    fn a_server_that_is_about_to_end_has_not_restarted() {
        let stopping = Status {
            stopping: true,
            ..status(&[2], &[(0, 1, true), (1, 2, true)])
        };
        assert!(stopping.verdict(1).is_none());
    }
}
