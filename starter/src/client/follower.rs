//! The progress of a restart, as the running server reports it in its status files.

use std::path::{Path, PathBuf};

use super::server::Server;
use super::settings::Settings;
use super::status::{Status, Verdict, no_status};
use crate::status::file::json_path;
use crate::status::lines::read_lines;
use crate::words::failure::Failure;
use crate::words::remedy;
use crate::words::text::printable;

/// Finds the verdict in the server's status files.
pub enum Follower {
    /// A server of ours: by the number of the requested restart.
    ByRequest {
        json: PathBuf,
        /// The number of the requested restart.
        request: u64,
        /// The generation that answers it, once known: the decision itself is forgotten after some more.
        answer: Option<u64>,
    },
    /// Another implementation: done when one generation is left that is newer than all before.
    ByGenerations { lines: PathBuf, newest: u32 },
}

impl Follower {
    /// Reads what must be known before the restart is requested.
    ///
    /// # Errors
    /// If the server cannot be followed, or is stopping.
    pub fn before(server: &Server, settings: &Settings) -> Result<Follower, Failure> {
        let jsons = [
            Some(json_path(&settings.pid_file)),
            settings.status_file.as_deref().map(json_path),
        ];
        for json in jsons.into_iter().flatten() {
            if let Some(status) = Status::read(&json)
                && status.is_of(server.pid)
            {
                if let Some(stopping) = status.stopping() {
                    return Err(stopping);
                }
                return Ok(Follower::ByRequest {
                    json,
                    request: status.next_request(),
                    answer: None,
                });
            }
        }
        match settings.status_file.clone() {
            Some(lines) => Follower::by_generations(lines),
            None => Err(cannot_follow(server, &json_path(&settings.pid_file))),
        }
    }

    fn by_generations(lines: PathBuf) -> Result<Follower, Failure> {
        let generations = read_lines(&lines).map_err(|cause| {
            let lines = printable(&lines);
            Failure::failed(format!("cannot read --status-file={lines}: {cause}"))
        })?;
        let newest = generations.into_iter().max().unwrap_or(0);
        Ok(Follower::ByGenerations { lines, newest })
    }

    /// The verdict, if there is one yet.
    pub fn verdict(&mut self, server: &Server) -> Option<Verdict> {
        match self {
            Follower::ByGenerations { lines, newest } => {
                // Between two writes there may be nothing to read.
                let generations = read_lines(lines).unwrap_or_default();
                let is_only = generations.iter().min() == generations.iter().max();
                let is_new = generations.first().is_some_and(|one| *one > *newest);
                (is_only && is_new).then_some(Ok(()))
            }
            Follower::ByRequest {
                json,
                request,
                answer,
            } => {
                let status = Status::read(json).filter(|status| status.is_of(server.pid))?;
                *answer = answer.or_else(|| status.answer_to(*request));
                let verdict = answer.and_then(|generation| status.verdict_on(generation));
                // A stopping server starts nothing more: if there is no verdict by now, there will be none.
                verdict.or_else(|| status.stopping().map(Err))
            }
        }
    }

    /// What a restart without a verdict is waiting for.
    pub fn waits_for(&self, server: &Server, json: &Path) -> String {
        let old_workers = || match self {
            Follower::ByRequest {
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

fn cannot_follow(server: &Server, json: &Path) -> Failure {
    let failure = Failure::failed(format!(
        "cannot follow a restart of pid {}: {}",
        server.pid,
        no_status(json)
    ));
    match json.exists() {
        true => failure,
        false => failure.hint(remedy::STATUS_FILE_OF_ANOTHER),
    }
}
