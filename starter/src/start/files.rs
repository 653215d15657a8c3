//! What the files of a start need before anything is bound: the directory for them, the lock on the pid file, and what only
//! root can make.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use crate::host::moment::Moment;
use crate::host::runtime_dir;
use crate::host::signals::Signals;
use crate::listeners::bind::Confined;
use crate::listeners::for_user::Wanted;
use crate::options::Options;
use crate::start::cannot_set_up_signals;
use crate::status::file::{self, MadeByRoot, cannot_write};
use crate::status::pid_file::{PidFile, cannot_use};
use crate::words::failure::Failure;
use crate::words::remedy;
use crate::words::text::quoted;

/// Everything of which root has to know whether it makes it.
pub fn wanted(options: &Options) -> Wanted {
    let pid_file = options.status.pid_file.iter().cloned();
    Wanted {
        directory: options.runtime_dir.clone(),
        files: pid_file.chain(file::paths(&options.status)).collect(),
    }
}

/// Why root does not make one of them, as the start says it.
pub fn cannot_make(options: &Options, path: &Path, cause: &str) -> Failure {
    if options.runtime_dir.as_deref() == Some(path) {
        return runtime_dir::cannot_make(path, cause);
    }
    match options.status.pid_file.as_deref() == Some(path) {
        true => cannot_use(path, cause),
        false => cannot_write(path, cause),
    }
}

/// Makes `--runtime-dir`: root where only root can, or else the user.
pub fn make_runtime_dir(options: &Options, makers: &mut Confined) -> Result<(), Failure> {
    let Some(path) = &options.runtime_dir else {
        return Ok(());
    };
    let made = makers.make(path, |cause| cannot_make(options, path, cause))?;
    match made {
        Some(_) => Ok(()),
        None => runtime_dir::make(path),
    }
}

/// Locks `--pid-file`, before anything else of this instance is there: a second one must not get at what the first one has.
pub fn lock_pid_file(
    options: &Options,
    makers: &mut Confined,
    signals: &Signals,
) -> Result<Option<PidFile>, Failure> {
    let Some(path) = &options.status.pid_file else {
        return Ok(None);
    };
    if makers.makes(path) {
        PidFile::refuse_used(path)?;
    }
    let made = makers.make(path, |cause| cannot_make(options, path, cause))?;
    lock(path, made.map(File::from).as_ref(), signals).map(Some)
}

/// A process that only reads the file, such as a client looking for a server, will be gone in a moment. One that is not
/// must neither block the start for good nor keep it from being told to stop.
fn lock(path: &Path, made: Option<&File>, signals: &Signals) -> Result<PidFile, Failure> {
    const LONGEST: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_millis(10);
    let (until, pid) = (Moment::now() + LONGEST, std::process::id());
    loop {
        let locked = match made {
            Some(file) => PidFile::try_lock_made(path, file, pid)?,
            None => PidFile::try_lock(path, pid)?,
        };
        if let Some(locked) = locked {
            return Ok(locked);
        }
        let stop = signals
            .wait_for_stop(PAUSE)
            .map_err(cannot_set_up_signals)?;
        if let Some(signal) = stop {
            return Err(Failure::failed(format!(
                "cannot start: stopped by {signal}"
            )));
        }
        if Moment::now() >= until {
            let path = quoted(path);
            return Err(Failure::failed(format!(
                "cannot use --pid-file={path}: another process holds a lock on it for reading"
            ))
            .hint(remedy::who_has_open(&path)));
        }
    }
}

/// Lets root make the status files, where only root can. With the lock on the pid file: those that are there are stale.
pub fn make_status_files(options: &Options, makers: &mut Confined) -> Result<MadeByRoot, Failure> {
    let mut made = MadeByRoot::default();
    for path in file::paths(&options.status) {
        if makers.makes(&path) {
            file::refuse_foreign(&path)?;
        }
        if let Some(file) = makers.make(&path, |cause| cannot_make(options, &path, cause))? {
            made.0.insert(path, file.into());
        }
    }
    Ok(made)
}
