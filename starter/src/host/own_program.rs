//! The program file that this process executes, and how another version of it takes this one's place.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use common::stat::has_type;
use common::trusted_path::Trust;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::prctl;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{AccessFlags, execveat, faccessat};

use super::luggage::Luggage;
use super::open_files::borrowed;
use super::process::detach;
use crate::words::distrust;

/// Where the kernel keeps the file that this process executes, whatever has become of its name.
const RUNNING: &str = "/proc/self/exe";

/// What the program before has left to this one: numbers of descriptors, see [`Inheritance`].
pub const VARIABLE: &str = "START_SERVER_RESUME";

/// The same from a guardian: see [`Guarded`].
pub const OF_GUARDIAN: &str = "START_SERVER_GUARDIAN";

/// Where the file of this program was when it was started: a new version of it has that path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnProgram {
    path: PathBuf,
    /// What `ps -C` and pgrep(1) find: an exec by descriptor would make a number of it.
    name: CString,
}

/// What a program finds that has taken another one's place.
#[derive(Debug, PartialEq, Eq)]
pub struct Inheritance {
    /// The sealed snapshot.
    pub snapshot: RawFd,
    /// The file of the program before, as long as there is a way back.
    pub before: Option<RawFd>,
    /// Why the program after this one has come back.
    pub failure: Option<String>,
    /// If a guardian has started it, because its supervisor had died.
    pub guarded: Option<Guarded>,
}

/// What a guardian leaves to a new supervisor.
#[derive(Debug, PartialEq, Eq)]
pub struct Guarded {
    pub channel: RawFd,
    /// The memory of the snapshots.
    pub area: RawFd,
    /// How the last one ended: its wait status.
    pub status: i32,
    /// It is to stop: too many have died.
    pub is_last: bool,
}

/// Arguments and environment.
type Image = (Vec<CString>, Vec<CString>);

impl OwnProgram {
    /// Call it at the start, before the file can be replaced.
    pub fn find() -> OwnProgram {
        OwnProgram {
            path: fs::read_link(RUNNING).unwrap_or_default(),
            name: own_name(),
        }
    }

    /// The one that an earlier program has found.
    pub fn of(path: OsString, name: OsString) -> OwnProgram {
        OwnProgram {
            path: path.into(),
            name: CString::new(name.into_vec()).unwrap_or_default(),
        }
    }

    pub fn path(&self) -> &OsStr {
        self.path.as_os_str()
    }

    pub fn name(&self) -> &OsStr {
        OsStr::from_bytes(self.name.as_bytes())
    }

    /// Gives the process the name that it had before an exec by descriptor.
    pub fn restore_name(&self) {
        if self.name.is_empty() {
            return;
        }
        // It fails for no name that the kernel has given.
        let _ = prctl::set_name(&self.name);
    }

    /// The file that lies there now, if it may take this one's place.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn next(&self) -> Result<OwnedFd, String> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let in_words = |errno: Errno| errno.desc().to_owned();
        let file = open(&self.path, flags, Mode::empty()).map_err(in_words)?;
        let there = fstat(&file).map_err(in_words)?;
        let ours = running().and_then(fstat).map_err(in_words)?;
        objection(&there, &ours).map_or(Ok(()), Err)?;
        faccessat(&file, c"", AccessFlags::X_OK, AtFlags::AT_EMPTY_PATH).map_err(|errno| {
            match errno {
                Errno::EACCES => "it is not executable".to_owned(),
                errno => in_words(errno),
            }
        })?;
        Ok(file)
    }
}

/// The name of this process; empty without /proc. prctl(2) would tell it too, but nix lets the kernel write to what the compiler
/// takes for a constant: a release build finds no name.
fn own_name() -> CString {
    let mut name = fs::read("/proc/self/comm").unwrap_or_default();
    name.pop_if(|last| *last == b'\n');
    CString::new(name).unwrap_or_default()
}

/// The file that this process executes.
///
/// # Errors
/// Of open(2): /proc may be missing.
pub fn running() -> nix::Result<OwnedFd> {
    open(RUNNING, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// What speaks against a file. Whoever could write the one that runs is trusted, and nobody else.
fn objection(there: &FileStat, ours: &FileStat) -> Option<String> {
    if !has_type(there, SFlag::S_IFREG) {
        return Some("it is not a regular file".to_owned());
    }
    if there.st_uid != ours.st_uid {
        let (theirs, ours) = (there.st_uid, ours.st_uid);
        return Some(format!(
            "it belongs to uid {theirs}, and the program that runs to uid {ours}"
        ));
    }
    let trust = Trust {
        owner: Some(ours.st_uid),
        sticky: false,
    };
    let objection = trust.objection(there)?;
    Some(format!("it {}", distrust::predicate(objection)))
}

/// A command that tries this program with a snapshot, without doing anything else: `--can-resume`.
///
/// # Errors
/// What cannot be handed to a program.
pub fn rehearsal(program: &OwnedFd, snapshot: &OwnedFd, luggage: &Luggage) -> nix::Result<Command> {
    let snapshot = snapshot.as_raw_fd();
    let words = [
        "start_server".to_owned(),
        format!("--can-resume={snapshot}"),
    ];
    let image = image(&words.map(OsString::from), None)?;
    let kept: Vec<RawFd> = luggage
        .numbers()
        .iter()
        .copied()
        .chain([snapshot])
        .collect();
    // The name is never looked up.
    let mut command = Command::new("start_server");
    detach(&mut command);
    execute_instead(&mut command, program.as_raw_fd(), image, kept);
    Ok(command)
}

/// By the very system call that lets it take over. The standard library would have the C library execute it, which hands what
/// is no program to a shell (execvp(3)): the shell would run what a half-written file happens to say.
#[expect(
    unsafe_code,
    reason = "only a hook can keep descriptors open for a child, and execute a descriptor"
)]
fn execute_instead(command: &mut Command, program: RawFd, image: Image, kept: Vec<RawFd>) {
    let execute = move || {
        kept.iter()
            .try_for_each(|number| set_flags(*number, FdFlag::empty()))?;
        let Err(errno) = execute_image(borrowed(program), &image);
        Err(errno.into())
    };
    // SAFETY: the hook makes system calls only. What it allocates, it may: this process has one thread.
    unsafe { command.pre_exec(execute) };
}

fn execute_image(program: impl AsFd, (arguments, environment): &Image) -> nix::Result<Infallible> {
    execveat(program, c"", arguments, environment, AtFlags::AT_EMPTY_PATH)
}

/// Executes another program in this process, with these arguments and our environment but for what it inherits. It finds these
/// descriptors open.
///
/// Returns why it could not be executed; then nothing has changed.
pub fn execute(
    program: impl AsFd,
    arguments: &[OsString],
    inheritance: &Inheritance,
    luggage: &[RawFd],
) -> Errno {
    let kept: Vec<RawFd> = luggage
        .iter()
        .copied()
        .chain(inheritance.numbers())
        .collect();
    let program = program.as_fd();
    let executed = image(arguments, Some(inheritance)).and_then(|image| {
        kept.iter()
            .try_for_each(|number| set_flags(*number, FdFlag::empty()))?;
        // On the way back it was inherited, and nobody would close it.
        set_flags(program.as_raw_fd(), FdFlag::FD_CLOEXEC)?;
        execute_image(program, &image)
    });
    let Err(errno) = executed;
    for number in kept {
        // It was open a moment ago.
        let _ = set_flags(number, FdFlag::FD_CLOEXEC);
    }
    errno
}

fn image(arguments: &[OsString], inheritance: Option<&Inheritance>) -> nix::Result<Image> {
    let c_string = |text: OsString| CString::new(text.into_vec()).map_err(|_| Errno::EINVAL);
    let is_ours = |name: &OsStr| [VARIABLE, OF_GUARDIAN].iter().any(|one| name == *one);
    let variables = std::env::vars_os().filter(|(name, _)| !is_ours(name));
    let inherited = inheritance.map(|it| (VARIABLE.into(), it.to_variable()));
    let of_guardian = inheritance.and_then(|it| it.guarded.as_ref());
    let of_guardian = of_guardian.map(|one| (OF_GUARDIAN.into(), one.to_variable()));
    let variables = variables.chain(inherited).chain(of_guardian);
    let variables = variables.map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        c_string(variable)
    });
    let arguments = arguments.iter().cloned().map(c_string);
    Ok((
        arguments.collect::<nix::Result<_>>()?,
        variables.collect::<nix::Result<_>>()?,
    ))
}

fn set_flags(number: RawFd, flags: FdFlag) -> nix::Result<()> {
    fcntl(borrowed(number), FcntlArg::F_SETFD(flags)).map(drop)
}

impl Inheritance {
    /// What the program before has left, if there was one.
    ///
    /// # Errors
    /// What is wrong with the variable.
    pub fn find() -> Option<Result<Inheritance, String>> {
        let value = std::env::var_os(VARIABLE)?;
        let read = value.to_str().and_then(Inheritance::read).and_then(|read| {
            let guarded = std::env::var_os(OF_GUARDIAN);
            let guarded = guarded.map(|value| value.to_str().and_then(Guarded::read));
            Some(Inheritance {
                guarded: guarded.map_or(Some(None), |read| read.map(Some))?,
                ..read
            })
        });
        Some(read.ok_or_else(|| format!("{VARIABLE} was not set by start_server")))
    }

    fn read(value: &str) -> Option<Inheritance> {
        let number = |text: &str| text.parse().ok().filter(|number: &RawFd| *number > 2);
        let mut parts = value.splitn(3, ':');
        let (snapshot, before, failure) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Inheritance {
            snapshot: number(snapshot)?,
            before: match before {
                "" => None,
                before => Some(number(before)?),
            },
            failure: (!failure.is_empty()).then(|| failure.to_owned()),
            guarded: None,
        })
    }

    /// The descriptors.
    fn numbers(&self) -> impl Iterator<Item = RawFd> {
        let guarded = self.guarded.as_ref();
        let guarded = guarded.map(|one| [one.channel, one.area]);
        let own = [Some(self.snapshot), self.before].into_iter().flatten();
        own.chain(guarded.into_iter().flatten())
    }

    fn to_variable(&self) -> OsString {
        let before = self.before.map(|number| number.to_string());
        format!(
            "{}:{}:{}",
            self.snapshot,
            before.unwrap_or_default(),
            self.failure.as_deref().unwrap_or_default()
        )
        .into()
    }
}

impl Guarded {
    fn read(value: &str) -> Option<Guarded> {
        let numbers: Option<Vec<i32>> = value.split(':').map(|text| text.parse().ok()).collect();
        match numbers?[..] {
            [channel, area, status, is_last] if channel > 2 && area > 2 => Some(Guarded {
                channel,
                area,
                status,
                is_last: is_last != 0,
            }),
            _ => None,
        }
    }

    fn to_variable(&self) -> OsString {
        let Guarded {
            channel,
            area,
            status,
            is_last,
        } = self;
        format!("{channel}:{area}:{status}:{}", i32::from(*is_last)).into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_inheritance_is_read_as_it_was_written() {
        for (before, failure) in [(None, None), (Some(9), None), (None, Some("a: b"))] {
            let inheritance = Inheritance {
                snapshot: 7,
                before,
                failure: failure.map(str::to_owned),
                guarded: None,
            };
            let text = inheritance.to_variable().into_string().unwrap();
            assert_eq!(Inheritance::read(&text), Some(inheritance));
        }
        let guarded = Guarded {
            channel: 8,
            area: 9,
            status: 137,
            is_last: true,
        };
        let text = guarded.to_variable().into_string().unwrap();
        assert_eq!(Guarded::read(&text), Some(guarded));
        for wrong in ["", "8:9:1", "2:9:1:0", "8:9:1:0:0", "a:9:1:0"] {
            assert_eq!(Guarded::read(wrong), None, "{wrong}");
        }
        for wrong in ["", "7", "7:", "x::", "7:x:", "2::", "-7::", "7:2:"] {
            assert_eq!(Inheritance::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_name_of_a_process_comes_back() {
        let program = OwnProgram::find();
        // That of the thread that runs this test.
        assert!(!program.name().is_empty());
        prctl::set_name(c"3").unwrap();
        OwnProgram::of("/".into(), "restored".into()).restore_name();
        let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
        assert_eq!(name, "restored\n");
        OwnProgram::of("/".into(), OsString::new()).restore_name();
        let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
        assert_eq!(name, "restored\n");
    }

    #[test]
    fn only_a_file_of_the_same_owner_that_nobody_else_writes_takes_over() {
        let ours = fstat(running().unwrap()).unwrap();
        let with = |change: fn(&mut FileStat)| {
            let mut there = ours;
            there.st_mode = libc::S_IFREG | 0o755;
            change(&mut there);
            objection(&there, &ours)
        };
        assert_eq!(with(|_| {}), None);
        assert!(
            with(|there| there.st_uid += 1)
                .unwrap()
                .contains("belongs to uid")
        );
        assert!(with(|there| there.st_mode |= 0o020).is_some());
        assert!(with(|there| there.st_mode |= 0o002).is_some());
        assert!(with(|there| there.st_mode = libc::S_IFDIR | 0o755).is_some());
    }
}
