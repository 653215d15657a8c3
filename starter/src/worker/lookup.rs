//! For a dry run: the program that a worker would execute, found without starting one.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::Change;
use super::explain::{Attempt, Step, explain, interpreter};
use super::path_in;
use super::pin::Wanted;
use super::settings::Settings;
use crate::words::start_failure::StartFailure;

/// The highest number of a standard stream: nothing else has one in this process.
const HIGHEST_STREAM: i32 = 2;

/// Where the program is, for a worker with this environment.
///
/// # Errors
/// Those of the first start, as far as they can be known without it.
pub fn find(settings: &Settings, environment: &[Change]) -> Result<PathBuf, StartFailure> {
    let path = path_in(environment);
    let wanted = Wanted {
        program: &settings.program,
        directory: settings.directory.as_deref(),
        path: &path,
        highest: HIGHEST_STREAM,
    };
    let attempt = Attempt {
        program: &settings.program,
        directory: settings.directory.as_deref(),
        path: &path,
    };
    let found = wanted.find().map_err(|(errno, is_directory)| {
        let step = match is_directory {
            true => Step::Directory,
            false => Step::Execute,
        };
        explain(step, errno, &attempt)
    })?;
    match interpreter(&found).map(|name| access(name.as_os_str(), AccessFlags::X_OK)) {
        Some(Err(errno @ (Errno::ENOENT | Errno::EACCES))) => {
            Err(explain(Step::Execute, errno, &attempt))
        }
        Some(_) | None => Ok(found),
    }
}
