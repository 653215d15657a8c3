//! Why a worker does not run the server program: the step, the error, and what helps. To find out, this examines the
//! file system as the user that the worker would have run as; it changes nothing.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};

use crate::words::remedy;
use crate::words::start_failure::StartFailure;
use crate::words::text::quoted;

/// The step at which a child failed, as sent over the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Descriptors = 1,
    Limits,
    Signals,
    Directory,
    Execute,
    Cpus,
}

impl Step {
    /// The step that was sent as this number.
    pub fn from_number(number: u8) -> Step {
        [
            Step::Descriptors,
            Step::Limits,
            Step::Signals,
            Step::Directory,
            Step::Cpus,
        ]
        .into_iter()
        .find(|step| *step as u8 == number)
        .unwrap_or(Step::Execute)
    }
}

/// The process, or something that is needed to start it, could not be created.
pub fn cannot_spawn(errno: Errno) -> StartFailure {
    let hint = remedy::of_spawning(errno).map(str::to_owned);
    StartFailure::cannot("start a new worker", errno, hint)
}

/// What was tried: this program, in this directory, and where it is looked up.
pub struct Attempt<'a> {
    pub program: &'a OsStr,
    pub directory: Option<&'a Path>,
    /// The worker's PATH.
    pub path: &'a OsStr,
}

/// What the user needs to know about a step that failed on the way to the program.
pub fn explain(step: Step, errno: Errno, attempt: &Attempt<'_>) -> StartFailure {
    let Attempt {
        program, directory, ..
    } = *attempt;
    let shown = quoted(program);
    let action = match step {
        Step::Descriptors => format!("pass the sockets to {shown}"),
        Step::Limits => format!("restore the resource limits for {shown}"),
        Step::Signals => format!("reset the signals for {shown}"),
        Step::Cpus => format!("choose the CPUs of {shown}"),
        Step::Directory => {
            let directory = directory.unwrap_or(Path::new(""));
            let action = format!("change to --dir={}", quoted(directory));
            return StartFailure::cannot(&action, errno, explain_directory(errno, directory));
        }
        Step::Execute => return explain_execute(errno, attempt),
    };
    StartFailure::cannot(&action, errno, None)
}

fn explain_execute(errno: Errno, attempt: &Attempt<'_>) -> StartFailure {
    let action = format!("execute {}", quoted(attempt.program));
    let (program, directory) = (Path::new(attempt.program), attempt.directory);
    if !program.as_os_str().as_bytes().contains(&b'/') {
        let (errno, hint) = explain_lookup(errno, attempt);
        return StartFailure::cannot(&action, errno, hint);
    }
    let file = match directory {
        Some(directory) => directory.join(program),
        None => program.to_owned(),
    };
    let hint = match errno {
        Errno::EACCES => explain_denied(&file),
        Errno::ENOENT if file.exists() => Some(explain_missing_interpreter(&file)),
        Errno::ENOENT if is_from_nowhere(&file) => Some(remedy::LAUNCHED_FROM_NOWHERE.into()),
        Errno::ENOENT => remedy::of_program_with_blanks(attempt.program),
        _ => remedy::of_executing(errno).map(str::to_owned),
    };
    StartFailure::cannot(&action, errno, hint)
}

/// Why the program could not be executed from PATH. If this user finds it nowhere there, it may still be in a directory
/// that is closed to this user, for which execvp(3) says "permission denied". Such directories are often root's own.
fn explain_lookup(errno: Errno, attempt: &Attempt<'_>) -> (Errno, Option<String>) {
    // Anything else is about a file that was found.
    if !matches!(errno, Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR) {
        return (errno, remedy::of_executing(errno).map(str::to_owned));
    }
    let Attempt {
        program,
        directory,
        path,
    } = *attempt;
    let start = directory.unwrap_or(Path::new(""));
    let candidates: Vec<PathBuf> = std::env::split_paths(path)
        .map(|one| start.join(one).join(program))
        .collect();
    if let Some(found) = candidates.iter().find(|one| one.is_file()) {
        let hint = match errno {
            Errno::ENOENT => explain_missing_interpreter(found),
            _ if is_on_noexec(found) => remedy::MOUNTED_NOEXEC.into(),
            _ => remedy::not_executable_in_path(found),
        };
        return (errno, Some(hint));
    }
    let closed: Vec<&Path> = candidates
        .iter()
        .filter_map(|one| closed_part(one))
        .collect();
    match closed.is_empty() {
        true => {
            let hint = remedy::of_program_with_blanks(program);
            (
                Errno::ENOENT,
                hint.or_else(|| Some(remedy::not_in_path(path))),
            )
        }
        false => (Errno::EACCES, Some(remedy::maybe_behind(&closed, path))),
    }
}

/// Whether the file is executable by its mode, but not on its file system.
fn is_on_noexec(file: &Path) -> bool {
    let has_mode = file
        .metadata()
        .is_ok_and(|metadata| metadata.mode() & 0o111 != 0);
    has_mode && statvfs(file).is_ok_and(|mount| mount.flags().contains(FsFlags::ST_NOEXEC))
}

/// What is missing if the file exists and the kernel says that it does not.
fn explain_missing_interpreter(file: &Path) -> String {
    match interpreter(file) {
        Some(name) => remedy::missing_interpreter(&name),
        None => remedy::MISSING_LOADER.into(),
    }
}

/// The interpreter that the first line of a script names.
pub fn interpreter(file: &Path) -> Option<OsString> {
    let line = first_line(file).filter(|line| line.starts_with(b"#!"))?;
    let words = line[2..].trim_ascii_start();
    let end = words.iter().position(|byte| b" \t\n".contains(byte));
    let name = &words[..end.unwrap_or(words.len())];
    Some(OsStr::from_bytes(name).to_owned())
}

/// The first line, or as much of it as the kernel examines.
fn first_line(file: &Path) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(file)
        .and_then(|file| file.take(256).read_to_end(&mut start))
        .ok()?;
    let end = start.iter().position(|byte| *byte == b'\n');
    start.truncate(end.unwrap_or(start.len()));
    Some(start)
}

/// What keeps this user from executing the file.
fn explain_denied(file: &Path) -> Option<String> {
    match closed_part(file) {
        Some(closed) => Some(remedy::closed_directory(closed)),
        None if file.is_dir() => Some(remedy::IS_A_DIRECTORY.into()),
        None if is_on_noexec(file) => Some(remedy::MOUNTED_NOEXEC.into()),
        None if access(file, AccessFlags::X_OK).is_err() => Some(remedy::NOT_EXECUTABLE.into()),
        None => None,
    }
}

/// What keeps this user from changing to a directory.
fn explain_directory(errno: Errno, directory: &Path) -> Option<String> {
    match errno {
        // The directory itself may be the closed one.
        Errno::EACCES => closed_part(&directory.join("any")).map(remedy::closed_directory),
        Errno::ENOENT if is_from_nowhere(directory) => Some(remedy::LAUNCHED_FROM_NOWHERE.into()),
        Errno::ENOTDIR => Some(remedy::NOT_A_DIRECTORY.into()),
        _ => None,
    }
}

/// Whether the path is relative to the launcher's directory, and that directory has been removed.
fn is_from_nowhere(path: &Path) -> bool {
    path.is_relative() && std::env::current_dir().is_err()
}

/// The first directory on the way to the file that this user may not search.
fn closed_part(file: &Path) -> Option<&Path> {
    let mut parents: Vec<&Path> = file
        .ancestors()
        .skip(1)
        .filter(|one| *one != Path::new(""))
        .collect();
    parents.reverse();
    let is_closed = |directory: &&Path| access(*directory, AccessFlags::X_OK) == Err(Errno::EACCES);
    parents.into_iter().find(is_closed)
}
