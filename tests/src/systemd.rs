//! The real systemd, booted with units of the test in a root of its own: see `systemd/boot`.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};

use crate::folder::Folder;
use crate::start::InTurn;
use crate::{proc, programs, skip, wait};

/// The program, on every distribution that has merged /usr and on those that have not.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// The exit status of `systemd/boot` where such a root cannot be made.
const CANNOT: i32 = 77;

/// What it boots to: nothing of a host's.
const TARGET: &str = "[Unit]\nDescription=The target of the test\nDefaultDependencies=no\n";

/// The kinds of namespaces that are made.
const NAMESPACES: [&str; 6] = ["mnt", "pid", "net", "uts", "ipc", "cgroup"];

/// A booted systemd. Everything in its namespaces ends when it is dropped.
#[derive(Debug)]
pub struct Systemd {
    unshare: Child,
    /// Its first process, by its pid here.
    init: Pid,
    folder: Folder,
    /// Released last.
    group: Group,
}

impl Systemd {
    /// Boots with these units, which find the programs in [`Systemd::PROGRAMS`]. Where that cannot be done the test says so:
    /// then there is none.
    #[track_caller]
    pub fn boot(units: &[(&str, &str)]) -> Option<Systemd> {
        if !skip::needs_root()
            || !["unshare", "nsenter", "pivot_root", "setpriv"]
                .into_iter()
                .all(skip::needs_program)
        {
            return None;
        }
        if !Path::new(SYSTEMD).exists() {
            skip::missing("needs systemd, which is not installed");
            return None;
        }
        let Some(group) = Group::new() else {
            skip::missing("needs a control group of its own (cgroup2), which cannot be made");
            return None;
        };
        let folder = Folder::new(Uid::effective(), Gid::effective());
        let in_folder = |name: &str| folder.path().join(name);
        for name in ["root", "bin", "units"] {
            fs::create_dir(in_folder(name)).expect("cannot make a folder");
        }
        for program in [
            programs::start_server(),
            programs::binder(),
            programs::worker(),
        ] {
            programs::install(&program, &in_folder("bin"));
        }
        for (name, text) in units.iter().chain([&("e2e.target", TARGET)]) {
            fs::write(in_folder("units").join(name), text).expect("cannot write a unit");
        }
        let namespaces = NAMESPACES.map(|kind| {
            let link = fs::read_link(format!("/proc/self/ns/{kind}")).expect("no namespace");
            link.to_str().expect("a plain name").to_owned()
        });
        // It is in its group before it has a namespace of groups, whose root that is.
        let enter = "echo $$ >\"$0\" && exec unshare --mount --propagation=private --pid --fork --kill-child --net --uts \
                     --ipc --cgroup \"$@\"";
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/boot");
        let log = File::create(in_folder("log")).expect("cannot make a log");
        let unshare = Command::new("sh")
            .args(["-c", enter])
            .arg(group.0.join("cgroup.procs"))
            .arg(script)
            .arg(folder.path())
            .arg(namespaces.join(" "))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn_in_turn()
            .expect("cannot run sh");
        let booted = Systemd {
            init: Pid::from_raw(unshare.id().cast_signed()),
            unshare,
            folder,
            group,
        };
        booted.wait()
    }

    /// Where the units find the programs.
    pub const PROGRAMS: &str = "/e2e/bin";

    #[track_caller]
    fn wait(mut self) -> Option<Systemd> {
        let log = self.folder.path().join("log");
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let unshare = self.init;
        let first = wait::until("systemd has booted", said, || {
            if let Some(status) = self.unshare.try_wait().expect("cannot wait for unshare") {
                return Some(Err(status));
            }
            self.init = *proc::children(unshare).first()?;
            let target = self.systemctl(["is-active", "e2e.target"]);
            target.status.success().then_some(Ok(()))
        });
        let Err(status) = first else {
            return Some(self);
        };
        let said = said();
        assert_eq!(status.code(), Some(CANNOT), "{said}");
        skip::missing(&format!("systemd cannot be booted here: {said:?}"));
        None
    }

    /// Runs a program in there.
    #[must_use]
    pub fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Output {
        Command::new("nsenter")
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .arg(format!("--target={}", self.init))
            .arg("--")
            .args(words)
            .output_in_turn()
            .expect("cannot run nsenter")
    }

    /// Runs systemctl in there.
    #[must_use]
    pub fn systemctl<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Output {
        self.run(["systemctl"].into_iter().chain(words))
    }

    /// Runs systemctl, which must succeed.
    #[track_caller]
    pub fn must<'a>(&self, words: impl IntoIterator<Item = &'a str>) {
        let output = self.systemctl(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}{}", self.log());
    }

    /// A property of a unit.
    #[must_use]
    pub fn property(&self, unit: &str, name: &str) -> String {
        let output = self.systemctl(["show", "--value", "--property", name, unit]);
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim_end().to_owned()
    }

    /// Waits until a property of a unit has this value.
    #[track_caller]
    pub fn wait_for(&self, unit: &str, name: &str, value: &str) {
        wait::until(
            &format!("{name} of {unit} is {value:?}"),
            || format!("{}\n{}", self.property(unit, name), self.log()),
            || (self.property(unit, name) == value).then_some(()),
        );
    }

    /// The processes of a service, by their pids here.
    #[must_use]
    pub fn processes(&self, unit: &str) -> Vec<Pid> {
        let group = self.group.0.join(format!("system.slice/{unit}.service"));
        let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let pids = listed
            .lines()
            .map(|line| line.parse().expect("not a pid"))
            .map(Pid::from_raw);
        pids.filter(|pid| proc::alive(*pid)).collect()
    }

    /// The main process of a service, by its pid here.
    #[must_use]
    pub fn main_process(&self, unit: &str) -> Option<Pid> {
        let main: i32 = self.property(unit, "MainPID").parse().ok()?;
        let processes = self.processes(unit).into_iter();
        processes
            .into_iter()
            .find(|pid| proc::innermost(*pid) == Some(main))
    }

    /// A file in there, as it is seen from here.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Does this in its network.
    #[track_caller]
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.init)).expect("it has ended");
        // Threads of this one are there, too.
        let there = || {
            setns(network, CloneFlags::CLONE_NEWNET).expect("cannot enter the network");
            work()
        };
        let done = thread::scope(|scope| scope.spawn(there).join());
        done.expect("it panicked")
    }

    /// Puts another file in the place of start_server, as package managers do.
    #[track_caller]
    pub fn replace_program(&self, by: &Path) {
        let bin = self.folder.path().join("bin");
        let aside = self.folder.path().join("next");
        fs::create_dir_all(&aside).expect("cannot make a folder");
        let next = programs::install(by, &aside);
        fs::rename(next, bin.join("start_server")).expect("cannot replace the program");
    }

    /// What the units have written to /run/e2e.log.
    #[must_use]
    pub fn log(&self) -> String {
        let output = self.run(["cat", "/run/e2e.log"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // With the first process of a pid namespace all others end; with unshare(1), that one.
        if self.unshare.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = kill(self.init, Signal::SIGKILL);
            drop(self.unshare.wait());
        }
    }
}

/// A control group, removed with all below it when it is dropped.
#[derive(Debug)]
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Group> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let all = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = all.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let is_cgroup2 = |root: &&Path| root.join("cgroup.controllers").exists();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("e2e-{}-{number}", std::process::id());
        let path = roots.into_iter().find(is_cgroup2)?.join(own).join(name);
        fs::create_dir(&path).ok()?;
        Some(Group(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last processes may be on their way out.
        for _ in 0..1000 {
            remove_groups(&self.0);
            if !self.0.exists() {
                return;
            }
            wait::let_pass(Duration::from_millis(3));
        }
    }
}

/// A group can be removed once it has no groups and no processes.
fn remove_groups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    drop(fs::remove_dir(path));
}
