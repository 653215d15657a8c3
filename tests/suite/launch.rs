//! start_server as other launchers start it: behind setpriv(1), from another place, with other privileges.

use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use e2e::folder::Folder;
use e2e::server::NOBODY;
use e2e::start::InTurn;
use e2e::{Report, proc, programs, wait};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid};

/// What makes an ordinary user of root: to be put before a command.
pub const AS_NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];

/// A start_server behind another program. Dropping it kills it and its process group.
pub struct Launched {
    folder: Folder,
    child: Child,
    code: Option<i32>,
}

/// Starts the program under test behind `before` (a command that executes its last arguments, or nothing) in a folder
/// of `nobody`. The arguments of start_server are taken as they are.
#[track_caller]
pub fn launch(before: &[&str], arguments: &[&str]) -> Launched {
    launch_program(before, &programs::start_server(), arguments)
}

/// The same with another copy of the program.
#[track_caller]
pub fn launch_program(before: &[&str], program: &Path, arguments: &[&str]) -> Launched {
    let folder = ordinary_folder();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.path().join("log"))
        .expect("cannot make the log");
    let program = program.to_str().expect("UTF-8");
    let mut words = before.iter().copied().chain([program]);
    let mut command = Command::new(words.next().expect("the program at least"));
    command
        .args(words)
        .args(arguments)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("cannot duplicate a descriptor"))
        .stderr(log)
        .process_group(0);
    let child = command.spawn_in_turn().expect("cannot run start_server");
    Launched {
        folder,
        child,
        code: None,
    }
}

/// A folder of the user that servers have by default.
#[track_caller]
pub fn ordinary_folder() -> Folder {
    match Uid::effective().is_root() {
        true => Folder::new(Uid::from_raw(NOBODY), Gid::from_raw(NOBODY)),
        false => Folder::new(Uid::effective(), Gid::effective()),
    }
}

/// What is to be put before a command so that an ordinary user runs it, whoever runs the tests.
pub fn as_ordinary_user() -> &'static [&'static str] {
    match Uid::effective().is_root() {
        true => &AS_NOBODY,
        false => &[],
    }
}

impl Launched {
    /// The folder that it was started in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Everything that start_server and its workers wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("cannot read the log")
    }

    /// The first report of a fixture worker that runs with `--report=report`.
    #[track_caller]
    pub fn wait_for_report(&self) -> Report {
        self.wait_for("a worker reports", || {
            let text = fs::read_to_string(self.folder.path().join("report")).ok()?;
            let line = text.lines().next().filter(|_| text.ends_with('\n'))?;
            Some(serde_json::from_str(line).expect("a report"))
        })
    }

    #[track_caller]
    pub fn wait_for<T>(&self, condition: &str, answer: impl Fn() -> Option<T>) -> T {
        wait::until(
            condition,
            || self.log(),
            || {
                let ended = !proc::alive(self.pid());
                let found = answer();
                assert!(
                    found.is_some() || !ended,
                    "start_server ended before {condition}\n{}",
                    self.log()
                );
                found
            },
        )
    }

    /// Waits until start_server ends by itself; its exit code.
    #[track_caller]
    pub fn wait_exit(&mut self) -> i32 {
        let condition = "start_server ended";
        let evidence = || self.log();
        wait::until(condition, evidence, || {
            (!proc::alive(self.pid())).then_some(())
        });
        let status = self.child.wait().expect("cannot wait for start_server");
        let code = status
            .code()
            .unwrap_or_else(|| panic!("start_server was killed: {status}\n{}", self.log()));
        self.code = Some(code);
        code
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.code.is_none() {
            // The group cannot be gone, since its leader was not waited for.
            let _ = killpg(self.pid(), Signal::SIGKILL);
            drop(self.child.wait());
        }
    }
}

/// A directory in which only root can write, as in all its parents (unlike /tmp). Removed when it is dropped.
pub struct RootFolder(PathBuf);

impl RootFolder {
    const PREFIX: &str = "start_server-e2e-";

    /// Needs root.
    pub fn new() -> RootFolder {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self::remove_leftovers();
        let path = Path::new("/run").join(format!("{}{}-{number}", Self::PREFIX, process::id()));
        make_directory(&path, 0o755, 0);
        RootFolder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of something in it, as text.
    pub fn join(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }

    /// A test process that was killed could not remove its own.
    fn remove_leftovers() {
        for entry in fs::read_dir("/run").expect("cannot read /run").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name
                .strip_prefix(Self::PREFIX)
                .and_then(|rest| rest.split_once('-')?.0.parse().ok());
            if owner.is_some_and(|pid| !proc::alive(Pid::from_raw(pid))) {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }
}

impl Drop for RootFolder {
    fn drop(&mut self) {
        // What cannot be removed now goes with the next run.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A directory with exactly this mode, of this user and of the group with the same number.
pub fn make_directory(path: &Path, mode: u32, owner: u32) {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
        .expect("cannot set the mode");
    chown(path, Some(owner), Some(owner)).expect("cannot give the directory away");
}

/// Copies a program into a folder, executable by everybody. Another process writes it: a descriptor of this one could be
/// copied by a fork in another thread, and a program that somebody can still write cannot be executed.
#[track_caller]
pub fn install(program: &Path, folder: &Path, name: &str) -> PathBuf {
    let copy = folder.join(name);
    let copied = Command::new("cp").arg(program).arg(&copy).status_in_turn();
    assert!(
        copied.expect("cannot run cp").success(),
        "cannot copy {}",
        program.display()
    );
    fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("cannot set the mode");
    copy
}
