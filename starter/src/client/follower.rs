//! The progress of a restart, as the running server reports it in its status files.

use std::path::{Path, PathBuf};

use super::server::Server;
use super::settings::Settings;
use super::status::{Asked, Status, Verdict, no_status};
use crate::status::file::json_path;
use crate::status::lines::read_lines;
use crate::words::failure::Failure;
use crate::words::remedy;
use crate::words::text::printable;

/// Finds the verdict in the server's status files.
pub struct Follower {
    asked: Asked,
    by: By,
    /// The commit is the end of it.
    at_commit: bool,
}

/// How it is found.
enum By {
    /// A server of ours: by the number of the requested restart.
    Request {
        json: PathBuf,
        /// The last generation before that.
        newest: u64,
        /// The number of the requested restart.
        request: u64,
        /// The generation that answers it, once known: the decision itself is forgotten after some more.
        answer: Option<u64>,
    },
    /// Another implementation: done when one generation is left that is newer than all before.
    Generations { lines: PathBuf, newest: u32 },
}

/// What was found.
#[derive(Default)]
pub struct Found {
    /// What a server of ours has written.
    pub status: Option<Status>,
    /// The generation that answers the restart, once there is a verdict on it.
    pub generation: Option<u64>,
    /// The end of the restart.
    pub verdict: Option<Verdict>,
}

impl Follower {
    /// Reads what must be known before the restart is requested.
    ///
    /// # Errors
    /// If the server cannot be followed, is stopping, or does not know what is asked.
    pub fn before(server: &Server, settings: &Settings, asked: Asked) -> Result<Follower, Failure> {
        let jsons = [
            Some(json_path(&settings.pid_file)),
            settings.status_file.as_deref().map(json_path),
        ];
        for json in jsons.into_iter().flatten() {
            if let Some(status) = Status::read(&json)
                && status.is_of(server.pid)
            {
                if let Some(stopping) = status.stopping(asked) {
                    return Err(stopping);
                }
                if asked.order().is_some_and(|order| !status.obeys(order)) {
                    return Err(status.too_old(asked));
                }
                if let Some(failure) = status.without_lanes(asked) {
                    return Err(failure);
                }
                return Ok(Follower {
                    asked,
                    by: By::Request {
                        json,
                        newest: status.newest(),
                        request: status.next_request(),
                        answer: None,
                    },
                    at_commit: settings.returns_at_commit,
                });
            }
        }
        match settings.status_file.clone() {
            Some(lines) if asked == Asked::Restart => Ok(Follower {
                asked,
                by: By::generations(lines)?,
                at_commit: settings.returns_at_commit,
            }),
            _ => Err(cannot_follow(server, &json_path(&settings.pid_file), asked)),
        }
    }

    /// What the server was asked for.
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// The last generation before the restart was requested.
    pub fn newest(&self) -> u64 {
        match self.by {
            By::Request { newest, .. } => newest,
            By::Generations { newest, .. } => newest.into(),
        }
    }

    /// What can be found now.
    pub fn look(&mut self, server: &Server) -> Found {
        match &mut self.by {
            By::Generations { lines, newest } => {
                // Between two writes there may be nothing to read.
                let generations = read_lines(lines).unwrap_or_default();
                let last = generations.iter().copied().max();
                let is_only = generations.iter().copied().min() == last;
                let answer = last.filter(|last| last > newest);
                Found {
                    status: None,
                    generation: answer.map(u64::from),
                    verdict: answer.filter(|_| is_only || self.at_commit).map(|_| Ok(())),
                }
            }
            By::Request {
                json,
                request,
                answer,
                ..
            } => {
                let status = Status::read(json).filter(|status| status.is_of(server.pid));
                let Some(status) = status else {
                    return Found::default();
                };
                *answer = answer.or_else(|| status.answer_to(*request, self.asked));
                let verdict =
                    answer.and_then(|one| status.verdict_on(one, self.at_commit, self.asked));
                Found {
                    generation: *answer,
                    // A stopping server starts nothing more: if there is no verdict by now, there will be none.
                    verdict: verdict.or_else(|| status.stopping(self.asked).map(Err)),
                    status: Some(status),
                }
            }
        }
    }

    /// What a restart without a verdict is waiting for.
    pub fn waits_for(&self, server: &Server, json: &Path) -> String {
        let old_workers = || match &self.by {
            By::Request {
                json,
                answer: Some(generation),
                ..
            } => Status::read(json)?.waits_for(*generation),
            _ => None,
        };
        server
            .is_stopped()
            .or_else(old_workers)
            .unwrap_or_else(|| remedy::progress_in(json))
    }
}

impl By {
    fn generations(lines: PathBuf) -> Result<By, Failure> {
        let generations = read_lines(&lines).map_err(|cause| {
            let lines = printable(&lines);
            Failure::failed(format!("cannot read --status-file={lines}: {cause}"))
        })?;
        let newest = generations.into_iter().max().unwrap_or(0);
        Ok(By::Generations { lines, newest })
    }
}

fn cannot_follow(server: &Server, json: &Path, asked: Asked) -> Failure {
    let failure = Failure::failed(format!(
        "cannot follow {} of pid {}: {}",
        asked.noun(),
        server.pid,
        no_status(json)
    ));
    match json.exists() {
        true => failure,
        false => failure.hint(remedy::STATUS_FILE_OF_ANOTHER),
    }
}
