//! What a generation is started from: its program and its directory, held open, and its environment.
//!
//! A worker that dies is replaced from these, so that a crash does not deploy what lies on disk by then. The program is
//! executed in the first of these ways that leads to the same file (the same device and inode):
//!
//! | way | why |
//! |---|---|
//! | by the path that execvp(3) has found, if that still has the same symbolic links | nothing differs from the first start |
//! | by its path without symbolic links | a symbolic link leads to another release now |
//! | by the path that the kernel knows for the descriptor | it or a directory above was renamed |
//! | by the descriptor | it was deleted, or another file was renamed over it |
//!
//! A path is better than the descriptor: it is what a script sees as its own name, and what the process is called. Where
//! all of them fail, the caller executes whatever the program's path leads to.
//!
//! What this cannot keep: a file that is overwritten in place, since it stays the same file, and the files that the
//! program loads later.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::stat::has_type;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, FdFlag, OFlag, fcntl, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, stat};
use nix::unistd::{AccessFlags, chdir, execve, execveat, faccessat, fchdir};
use serde::{Deserialize, Serialize};

use crate::host::launcher::Change;
use crate::host::luggage::{Carried, Luggage};
use crate::host::open_files::duplicate_above;

/// What a generation is started from.
#[derive(Debug)]
pub struct Pin {
    /// What differs from the launcher's environment.
    pub environment: Vec<Change>,
    /// That of `--dir`. Without one it is the supervisor's own, which stays the same whatever it is called.
    directory: Option<OwnedFd>,
    program: Result<Program, Errno>,
}

/// Device and inode: the same ones are the same file, as long as that is held open.
type Identity = (u64, u64);

/// The program, held open. Its descriptor's number, like the directory's, is above all that a worker's sockets take.
#[derive(Debug)]
struct Program {
    file: OwnedFd,
    identity: Identity,
    /// As execvp(3) finds it from the directory.
    found: PathBuf,
    /// The same without symbolic links, if known.
    real: Option<PathBuf>,
}

/// A pin on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedPin {
    environment: Vec<Change>,
    directory: Option<Carried>,
    /// The error is an errno.
    program: Result<PackedProgram, i32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedProgram {
    file: Carried,
    identity: Identity,
    found: OsString,
    real: Option<OsString>,
}

/// What is to be held.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub program: &'a OsStr,
    /// `--dir`.
    pub directory: Option<&'a Path>,
    /// The worker's PATH.
    pub path: &'a OsStr,
    /// The highest number that a worker's sockets take: the descriptors that are held are above it.
    pub highest: RawFd,
}

impl Wanted<'_> {
    fn hold_directory(&self) -> nix::Result<Option<OwnedFd>> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let hold = |path| {
            let opened = open(path, flags, Mode::empty())?;
            duplicate_above(opened.as_fd(), self.highest)
        };
        self.directory.map(hold).transpose()
    }

    /// As execvp(3) looks it up: the first one that can be executed, as far as its mode tells.
    fn hold_program(&self, directory: Option<&OwnedFd>) -> nix::Result<Program> {
        let at = directory.map_or(AT_FDCWD, AsFd::as_fd);
        let mut failure = Errno::ENOENT;
        for found in candidates(self.program, self.path) {
            match self.hold(at, &found) {
                Ok((file, identity)) => {
                    let start = self.directory.unwrap_or(Path::new(""));
                    let real = fs::canonicalize(start.join(&found)).ok();
                    return Ok(Program {
                        // The directory's path may lead to another one by now.
                        real: real.filter(|path| leads_to(path, identity)),
                        file,
                        identity,
                        found,
                    });
                }
                Err(errno) => failure = errno,
            }
        }
        Err(failure)
    }

    /// Where the program is found, as execvp(3) does.
    ///
    /// # Errors
    /// Why it cannot be executed, and whether the directory is to blame.
    pub fn find(&self) -> Result<PathBuf, (Errno, bool)> {
        let directory = self.hold_directory().map_err(|errno| (errno, true))?;
        if let Some(directory) = &directory {
            let flags = AtFlags::empty();
            faccessat(directory, ".", AccessFlags::X_OK, flags).map_err(|errno| (errno, true))?;
        }
        let program = self.hold_program(directory.as_ref());
        let program = program.map_err(|errno| (errno, false))?;
        Ok(self.directory.unwrap_or(Path::new("")).join(program.found))
    }

    fn hold(&self, at: BorrowedFd<'_>, path: &Path) -> nix::Result<(OwnedFd, Identity)> {
        let file = openat(at, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let stat = fstat(&file)?;
        faccessat(at, path, AccessFlags::X_OK, AtFlags::empty())?;
        match has_type(&stat, SFlag::S_IFREG) {
            true => Ok((
                duplicate_above(file.as_fd(), self.highest)?,
                identity_of(&stat),
            )),
            false => Err(Errno::EACCES),
        }
    }
}

impl Pin {
    /// Holds what a worker with this environment would be started from now. What cannot be held makes the start itself
    /// fail, which reports it better, or only means that it cannot be started again.
    pub fn new(wanted: &Wanted<'_>, environment: Vec<Change>) -> Pin {
        let (directory, program) = match wanted.hold_directory() {
            Ok(directory) => {
                let program = wanted.hold_program(directory.as_ref());
                (directory, program)
            }
            Err(errno) => (None, Err(errno)),
        };
        Pin {
            environment,
            directory,
            program,
        }
    }

    /// Nothing is held open.
    pub fn without_files(environment: Vec<Change>) -> Pin {
        Pin {
            environment,
            directory: None,
            program: Err(Errno::ENOENT),
        }
    }

    /// Where the program is, without symbolic links if that is known, and when it was last modified, in seconds since 1970.
    pub fn program_and_time(&self) -> Option<(PathBuf, i64)> {
        let program = self.program.as_ref().ok()?;
        let path = program.real.as_ref().unwrap_or(&program.found).clone();
        Some((path, fstat(&program.file).ok()?.st_mtime))
    }

    /// Where the directory of `--dir` is.
    pub fn directory_path(&self) -> Option<PathBuf> {
        fs::read_link(by_descriptor(self.directory.as_ref()?)).ok()
    }

    /// For the next program, once for all generations that share it.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedPin {
        let program = self.program.as_ref();
        PackedPin {
            environment: self.environment.clone(),
            directory: self.directory.as_ref().map(|it| luggage.put(it)),
            program: program
                .map(|program| program.pack(luggage))
                .map_err(|errno| *errno as i32),
        }
    }

    /// The same pin again.
    pub fn unpack(packed: PackedPin) -> Pin {
        let program = packed.program;
        Pin {
            environment: packed.environment,
            directory: packed.directory.map(Carried::take),
            program: program.map(Program::unpack).map_err(Errno::from_raw),
        }
    }

    /// Changes to the directory and executes the program with the command's arguments and environment.
    ///
    /// # Errors
    /// Why the program cannot be executed; the working directory is then as before. `None` if the program's path leads
    /// to the same file, so that executing it by that path would fail in the same way.
    pub fn execute(&self, command: &Command) -> Result<Infallible, Option<Errno>> {
        let program = self.program.as_ref().map_err(|errno| Some(*errno))?;
        // Not as a descriptor: the launcher's limit may not allow another one.
        let before = std::env::current_dir();
        if let Some(directory) = &self.directory {
            fchdir(directory).map_err(Some)?;
        }
        let image = Image::of(command).map_err(Some);
        let Err(failure) = image.and_then(|image| program.execute(&image));
        if let (Some(_), Ok(before)) = (&self.directory, before) {
            // If it is gone, no relative path leads anywhere.
            let _ = chdir(before.as_path());
        }
        Err(failure)
    }
}

impl Program {
    fn pack(&self, luggage: &mut Luggage) -> PackedProgram {
        PackedProgram {
            file: luggage.put(&self.file),
            identity: self.identity,
            found: self.found.clone().into(),
            real: self.real.clone().map(OsString::from),
        }
    }

    fn unpack(packed: PackedProgram) -> Program {
        Program {
            file: packed.file.take(),
            identity: packed.identity,
            found: packed.found.into(),
            real: packed.real.map(PathBuf::from),
        }
    }

    fn execute(&self, image: &Image) -> Result<Infallible, Option<Errno>> {
        if self.is_where_it_was() {
            image.execute(&self.found).map_err(|_| None)
        } else if let Some(path) = self.other_path() {
            image.execute(&path).map_err(Some)
        } else {
            image.execute_file(&self.file).map_err(Some)
        }
    }

    /// Whether its path has the same symbolic links. The same file alone could be a hard link in another release.
    fn is_where_it_was(&self) -> bool {
        let is_same_path =
            |real: &PathBuf| fs::canonicalize(&self.found).ok().as_ref() == Some(real);
        leads_to(&self.found, self.identity) && self.real.as_ref().is_none_or(is_same_path)
    }

    fn other_path(&self) -> Option<PathBuf> {
        let of_descriptor = || fs::read_link(by_descriptor(&self.file)).ok();
        let leads_to_it = |path: &PathBuf| leads_to(path, self.identity);
        let real = self.real.clone().filter(leads_to_it);
        real.or_else(|| of_descriptor().filter(leads_to_it))
    }
}

/// What execve(2) takes besides the program.
struct Image {
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Image {
    fn of(command: &Command) -> nix::Result<Image> {
        let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => variables.insert(name.to_owned(), value.to_owned()),
                None => variables.remove(name),
            };
        }
        let environment = variables.into_iter().map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            c_string(variable)
        });
        let program = std::iter::once(command.get_program());
        let arguments = program.chain(command.get_args());
        let arguments = arguments.map(|one| c_string(one.to_owned()));
        Ok(Image {
            arguments: arguments.collect::<nix::Result<_>>()?,
            environment: environment.collect::<nix::Result<_>>()?,
        })
    }

    /// As execvp(3) executes what it has found: with the shell, if it is in no format that the kernel knows.
    fn execute(&self, path: &Path) -> nix::Result<Infallible> {
        let path = c_string(path.as_os_str().to_owned())?;
        let Err(errno) = execve(&path, &self.arguments, &self.environment);
        if errno != Errno::ENOEXEC {
            return Err(errno);
        }
        let shell = c"/bin/sh";
        let mut arguments = vec![shell.to_owned(), path];
        arguments.extend(self.arguments.iter().skip(1).cloned());
        execve(shell, &arguments, &self.environment)
    }

    /// Executes a file that may have no name any more.
    fn execute_file(&self, file: &OwnedFd) -> nix::Result<Infallible> {
        let (arguments, environment) = (&self.arguments, &self.environment);
        let Err(errno) = execveat(file, c"", arguments, environment, AtFlags::AT_EMPTY_PATH);
        // A script is opened once more, by its interpreter, and the kernel refuses the execution of one whose descriptor
        // is closed by then. So this one stays open in the worker. Its number is above those of all listeners.
        if !matches!(errno, Errno::ENOENT | Errno::ENOEXEC) {
            return Err(errno);
        }
        fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let result = self.execute(&by_descriptor(file));
        fcntl(file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        result
    }
}

/// Where execvp(3) looks for a program, from the worker's directory.
fn candidates(program: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    match program.as_bytes().contains(&b'/') {
        true => vec![program.into()],
        false => std::env::split_paths(path)
            .map(|one| one.join(program))
            .collect(),
    }
}

fn leads_to(path: &Path, file: Identity) -> bool {
    stat(path).is_ok_and(|found| identity_of(&found) == file)
}

fn identity_of(stat: &FileStat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

fn by_descriptor(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn c_string(text: OsString) -> nix::Result<CString> {
    CString::new(text.into_vec()).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::fstat;
    use nix::unistd::mkdtemp;

    use super::*;

    fn carried_over(pin: Pin) -> Pin {
        let text = serde_json::to_string(&pin.pack(&mut Luggage::default())).unwrap();
        drop(pin);
        Pin::unpack(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn the_next_program_holds_the_same_files_and_still_finds_them() {
        let directory = mkdtemp(&std::env::temp_dir().join("pin-XXXXXX")).unwrap();
        let directory = fs::canonicalize(directory).unwrap();
        let [one, two, current] = ["one", "two", "current"].map(|name| directory.join(name));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        symlink(&one, &current).unwrap();
        let path = current.join("program");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let wanted = Wanted {
            program: path.as_os_str(),
            directory: Some(&directory),
            path: "".as_ref(),
            highest: 2,
        };
        let environment = vec![("SET".into(), Some("1".into())), ("GONE".into(), None)];
        let pin = carried_over(Pin::new(&wanted, environment.clone()));
        assert_eq!(pin.environment, environment);
        let held = fstat(pin.directory.as_ref().unwrap()).unwrap();
        assert!(leads_to(&directory, identity_of(&held)));
        let program = pin.program.as_ref().unwrap();
        assert!(program.is_where_it_was());
        // The same file in another release.
        fs::hard_link(&path, two.join("program")).unwrap();
        fs::remove_file(&current).unwrap();
        symlink(&two, &current).unwrap();
        assert!(!program.is_where_it_was());
        assert_eq!(program.other_path(), Some(one.join("program")));
        // Only its descriptor still leads to it.
        fs::rename(one.join("program"), one.join("renamed")).unwrap();
        assert_eq!(program.other_path(), Some(one.join("renamed")));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_program_is_looked_up_as_execvp_does_it() {
        let of = |program: &str, path: &str| candidates(program.as_ref(), path.as_ref());
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(of("./a", "/bin"), paths(&["./a"]));
        assert_eq!(of("a/b", "/bin"), paths(&["a/b"]));
        // An empty part is the worker's directory.
        assert_eq!(of("a", "/bin::x:"), paths(&["/bin/a", "a", "x/a", "a"]));
    }
}
