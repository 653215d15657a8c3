//! How a restart goes, as the running server writes it down.

use std::io;
use std::path::{Path, PathBuf};

use super::server::Server;
use super::settings::Settings;
use super::status::{Status, Verdict};
use crate::status::file::{json_path, read_lines, read_text};
use crate::words::failure::{self, Failure};

/// Sees the verdict in what the server writes.
pub enum Follower {
    /// A server of ours: by the number of the restart that was asked for.
    ByRequest {
        json: PathBuf,
        /// The restart that was asked for, by its number.
        request: u64,
        /// The generation that answers it, once that is known: later decisions push the first one out.
        answer: Option<u64>,
    },
    /// A server of another make: one generation left, newer than all before.
    ByGenerations { lines: PathBuf, newest: u32 },
}

impl Follower {
    pub fn before(server: &Server, settings: &Settings) -> Result<Follower, Failure> {
        let jsons = [
            Some(json_path(&settings.pid_file)),
            settings.status_file.as_deref().map(json_path),
        ];
        for json in jsons.into_iter().flatten() {
            if let Some(status) = Status::read(&json)
                && status.supervisor == i64::from(server.pid.as_raw())
            {
                return Ok(Follower::ByRequest {
                    json,
                    request: status.next_request(),
                    answer: None,
                });
            }
        }
        let Some(lines) = settings.status_file.clone() else {
            let json = json_path(&settings.pid_file);
            let failure = Failure::failed(format!(
                "cannot follow a restart of pid {}: {}",
                server.pid,
                no_status(&json)
            ));
            return Err(match json.exists() {
                true => failure,
                false => failure
                    .hint("a server of another make is followed by its --status-file: name it too"),
            });
        };
        let newest = read_lines(&lines).map_err(|cause| {
            Failure::failed(format!(
                "cannot read --status-file={}: {cause}",
                lines.display()
            ))
        })?;
        let newest = newest.into_iter().max().unwrap_or(0);
        Ok(Follower::ByGenerations { lines, newest })
    }

    /// The verdict, if there is one yet.
    pub fn look(&mut self) -> Result<Option<Verdict>, Failure> {
        match self {
            Follower::ByGenerations { lines, newest } => {
                // Between two writes there may be nothing to read.
                let generations = read_lines(lines).unwrap_or_default();
                let only = generations.iter().min() == generations.iter().max();
                Ok(generations
                    .first()
                    .filter(|one| only && *one > newest)
                    .map(|_| Ok(())))
            }
            Follower::ByRequest {
                json,
                request,
                answer,
            } => {
                let Some(status) = Status::read(json) else {
                    return Ok(None);
                };
                *answer = answer.or_else(|| status.answer_to(*request));
                Ok(answer.and_then(|generation| status.verdict_on(generation)))
            }
        }
    }

    /// What a restart waits for that has no verdict yet.
    pub fn how_far(&self, server: &Server, json: &Path) -> String {
        let waits_for = || match self {
            Follower::ByRequest {
                json,
                answer: Some(generation),
                ..
            } => Status::read(json)?.waits_for(*generation),
            _ => None,
        };
        server.is_stopped().or_else(waits_for).unwrap_or_else(|| {
            format!(
                "{} shows how far it is, unless its disk is full",
                json.display()
            )
        })
    }
}

/// What is wrong with the file that a server's status should be in.
pub fn no_status(json: &Path) -> String {
    let cause = match read_text(json) {
        Ok(_) => "is not the status of that server".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "is missing".to_owned(),
        Err(error) => format!("cannot be read: {}", failure::cause(&error)),
    };
    format!("{} {cause}", json.display())
}
