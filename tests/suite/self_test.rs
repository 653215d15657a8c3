//! `--self-test`: what it looks at, what it says, that it can fail, and that nothing is left of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{PipeReader, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use e2e::folder::Folder;
use e2e::server::{NOBODY, Server};
use e2e::skip::{needs_program, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{proc, programs, wait};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};

use crate::channel::install_beside;
use crate::launch::{Launched, as_ordinary_user, launch, launch_program};

/// The rows of the table of processes of a start as root: each has its checks, and some of them are named here.
const ROWS: [(&str, &[&str]); 9] = [
    (
        "supervisor",
        &[
            "its uids are ",
            "its gids are ",
            "it has no capability",
            "its bounding set is empty",
            "no_new_privs is set",
            "its user cannot inspect it",
            "it has one thread",
            "its listeners, signals and files are open, and nothing that was leaked to it",
            "it leaves no socket, pid or status file",
            "it leaves no process",
        ],
    ),
    ("worker 1", WORKER),
    ("worker 2", WORKER),
    (
        "supervisor beside a binder",
        &[
            "its uids are ",
            "it has no capability",
            "it leaves no process",
        ],
    ),
    ("worker 1 beside a binder", BESIDE),
    ("worker 2 beside a binder", BESIDE),
    (
        "resident binder",
        &[
            "it is the only process beside the first worker",
            "its uids are 0",
            "it has no capability",
            "its bounding set is empty",
            "it has 2 seccomp filters of its own",
            "only ",
            "its environment is empty",
            "its directory is /",
            "it exits before its supervisor",
        ],
    ),
    (
        "port binder",
        &[
            "it is gone when the first worker starts",
            "seccomp is in force",
            "Landlock 6 is in force",
            "it has CAP_NET_BIND_SERVICE and no other capability",
            "its bounding set is empty",
            "it has one seccomp filter of its own",
            "only the channel and standard error are open",
            "it gives nothing and exits when it is asked for another address",
            "it gives nothing and exits when it is asked for the same twice",
            "once all is bound, it cannot raise a capability",
        ],
    ),
    (
        "path binder",
        &[
            "seccomp is in force",
            "Landlock 6 is in force",
            "its uids are 0",
            "it has no capability",
            "it has CAP_CHOWN and no other capability",
            "its bounding set is empty",
            "it creates its socket, and removes it at exit",
            "it gives nothing and exits when it is asked for a port",
            "once it waits, it is killed when it tries to raise a capability",
        ],
    ),
];

const WORKER: &[&str] = &[
    "its uids are ",
    "its gids are ",
    "it has no capability",
    "its bounding set is empty",
    "no_new_privs is set",
    "it has the seccomp filters of its launcher",
    "it blocks no signal, and ignores only PIPE",
    "only 0 to 2 and the listeners are open",
    "it cannot become uid 0",
    "it cannot become gid 0",
    "it cannot take the group of root",
    "it cannot raise a capability",
    "it cannot bind the low port ",
    "it cannot open a file of root",
    "it cannot trace its supervisor",
    "it cannot open the memory of its supervisor",
    "it cannot take a descriptor from its supervisor",
];

const BESIDE: &[&str] = &[
    "it has no capability",
    "only 0 to 2 and the listeners are open",
    "it cannot trace the resident binder",
    "it cannot open the memory of the resident binder",
    "it cannot take a descriptor from the resident binder",
    "it cannot signal the resident binder",
    "it cannot remove the socket of root",
];

/// What a port binder tries, in both phases.
const ESCAPES_OF_PORTS: [&str; 10] = [
    "it is killed when it tries to change its user to root",
    "it cannot raise a capability",
    "it cannot bind another port",
    "it is killed when it tries to bind another path",
    "it is killed when it tries to open a socket of another kind",
    "it is killed when it tries to open a file",
    "it is killed when it tries to execute a program",
    "it is killed when it tries to fork",
    "it is killed when it tries to trace its parent",
    "it is killed when it tries to signal its parent",
];

/// What a path binder tries that only Landlock and its capabilities forbid; when it waits, nothing is left to them.
const TRIED_BY_A_PATH: [(&str, bool); 10] = [
    ("change its user to root", false),
    ("raise a capability", true),
    ("bind another port", false),
    ("bind another path", true),
    ("open a socket of another kind", false),
    ("open a file", false),
    ("execute a program", false),
    ("fork", false),
    ("trace its parent", false),
    ("signal its parent", false),
];

/// A self-test that has ended.
struct Tested {
    code: i32,
    output: String,
}

impl Tested {
    #[track_caller]
    fn new(mut launched: Launched) -> Tested {
        let tested = Tested {
            code: launched.wait_exit(),
            output: launched.log(),
        };
        assert_nothing_is_left_of(launched.pid());
        tested
    }

    /// What is said of a process behind this word.
    fn said<'a>(&'a self, word: &str, process: &str) -> Vec<&'a str> {
        let start = format!("{word:8}{process}: ");
        let of_process = |line: &'a str| line.strip_prefix(start.as_str());
        self.output.lines().filter_map(of_process).collect()
    }

    #[track_caller]
    fn assert_ok(&self, process: &str, what: &str) {
        let said = self.said("ok", process);
        assert!(
            said.iter().any(|line| line.starts_with(what)),
            "nothing says that {process}: {what}\n{}",
            self.output
        );
    }

    #[track_caller]
    fn assert_failed(&self, process: &str, what: &str) {
        assert_eq!(self.code, 1, "{}", self.output);
        let said = self.said("FAILED", process);
        assert!(said.contains(&what), "{what}\n{}", self.output);
    }

    /// Every line is one of three kinds, and the last one counts them.
    #[track_caller]
    fn assert_counts(&self) {
        let mut lines: Vec<&str> = self.output.lines().collect();
        let last = lines.pop().expect("no line");
        let count = |word: &str| {
            let word = format!("{word:8}");
            lines.iter().filter(|line| line.starts_with(&word)).count()
        };
        let (hold, failed, others) = (count("ok"), count("FAILED"), count("-"));
        assert_eq!(hold + failed + others, lines.len(), "{}", self.output);
        assert_eq!(
            last,
            format!("{hold} checks hold, {failed} failed, {others} could not be made")
        );
    }
}

/// Neither a process nor a directory of it.
#[track_caller]
fn assert_nothing_is_left_of(self_test: Pid) {
    assert_eq!(servers_of(self_test), []);
    assert_eq!(directories_of(self_test), [] as [PathBuf; 0]);
}

/// What runs on the address that each self-test has to itself.
fn servers_of(self_test: Pid) -> Vec<Pid> {
    let address = Ipv4Addr::from_bits(0x7f00_0000 | self_test.as_raw().cast_unsigned());
    let port = format!("--port={address}:");
    let is_its = |pid: &Pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&port)
    };
    proc::all().into_iter().filter(is_its).collect()
}

fn directories_of(self_test: Pid) -> Vec<PathBuf> {
    let prefix = format!("start_server-self-test-{self_test}-");
    let entries = ["/run".into(), std::env::temp_dir()].map(fs::read_dir::<PathBuf>);
    entries
        .into_iter()
        .flat_map(|entries| entries.expect("cannot read a directory").flatten())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

/// A self-test whose output is read only as far as the test wants. Its pipe holds one write, which is a line (pipe(2),
/// `O_DIRECT`): it waits one line later.
struct Held {
    child: Child,
    output: PipeReader,
    come: String,
}

impl Held {
    fn start() -> Held {
        let (output, theirs) = std::io::pipe().expect("cannot make a pipe");
        fcntl(&theirs, FcntlArg::F_SETPIPE_SZ(4096)).expect("cannot make a pipe small");
        fcntl(&theirs, FcntlArg::F_SETFL(OFlag::O_DIRECT)).expect("cannot keep writes apart");
        let mut command = Command::new(programs::start_server());
        command
            .arg("--self-test")
            .stdout(theirs.try_clone().expect("cannot duplicate"));
        if Uid::effective().is_root() {
            command.arg("--user=nobody");
        }
        let child = command
            .stderr(theirs)
            .spawn_in_turn()
            .expect("cannot run start_server");
        Held {
            child,
            output,
            come: String::new(),
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn read_until(&mut self, moment: &str) {
        while !self.come.contains(moment) {
            assert!(self.read_write(), "it has ended: {}", self.come);
        }
    }

    /// What was written next; false at the end. What does not fit into the buffer would be lost.
    fn read_write(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let length = self.output.read(&mut buffer).expect("cannot read");
        self.come
            .push_str(&String::from_utf8_lossy(&buffer[..length]));
        length > 0
    }

    /// It is held no longer.
    fn end(mut self) -> (ExitStatus, String) {
        while self.read_write() {}
        let status = self.child.wait().expect("cannot wait for the self-test");
        (status, self.come)
    }
}

fn is_ours() -> bool {
    !original_differs("it has no --self-test")
}

#[test]
fn a_self_test_as_root_finds_every_row_of_the_table_as_it_must_be() {
    if !is_ours() || !needs_root() {
        return;
    }
    let tested = Tested::new(launch(&[], &["--self-test", "--user=nobody", "--strict"]));
    assert_eq!(tested.code, 0, "{}", tested.output);
    assert!(!tested.output.contains("FAILED"), "{}", tested.output);
    tested.assert_counts();
    for (process, checks) in ROWS {
        for what in checks {
            tested.assert_ok(process, what);
        }
    }
    for what in ESCAPES_OF_PORTS {
        for moment in ["while it serves", "once all is bound"] {
            tested.assert_ok("port binder", &format!("{moment}, {what}"));
        }
    }
    for (what, is_known) in TRIED_BY_A_PATH {
        let serving = match is_known {
            true => format!("while it serves, it cannot {what}"),
            false => format!("while it serves, it is killed when it tries to {what}"),
        };
        tested.assert_ok("path binder", &serving);
        let waiting = format!("once it waits, it is killed when it tries to {what}");
        tested.assert_ok("path binder", &waiting);
    }
    // Nothing else is there that this list does not know.
    let processes: BTreeSet<&str> = tested
        .output
        .lines()
        .filter_map(|line| Some(line.get(8..)?.split_once(": ")?.0))
        .collect();
    assert_eq!(processes, ROWS.map(|(process, _)| process).into());
    let users = format!("its uids are {NOBODY}");
    for process in ["supervisor", "worker 1", "worker 2", "port binder"] {
        tested.assert_ok(process, &users);
    }
}

#[test]
fn a_self_test_of_an_ordinary_user_says_what_does_not_apply() {
    if !is_ours() {
        return;
    }
    let tested = Tested::new(launch(as_ordinary_user(), &["--self-test"]));
    assert_eq!(tested.code, 0, "{}", tested.output);
    assert!(!tested.output.contains("FAILED"), "{}", tested.output);
    tested.assert_counts();
    for process in ["supervisor", "worker 1", "worker 2", "port binder"] {
        for what in ["its uids are ", "it has no capability", "it has one thread"] {
            tested.assert_ok(process, what);
        }
    }
    for what in ["it cannot become uid 0", "it cannot raise a capability"] {
        tested.assert_ok("worker 2", what);
    }
    tested.assert_ok("port binder", "Landlock 6 is in force");
    for what in ESCAPES_OF_PORTS {
        let what = format!("while it serves, {what}");
        tested.assert_ok("port binder", &what);
    }
    for process in ["supervisor", "worker", "resident binder", "path binder"] {
        assert_eq!(tested.said("-", process).len(), 1, "{}", tested.output);
    }
}

#[test]
fn a_self_test_that_may_not_look_or_end_what_it_has_started_is_refused() {
    if !is_ours() || !needs_root() || !needs_program("setpriv") {
        return;
    }
    for (name, word) in [
        ("kill", "CAP_KILL"),
        ("sys_ptrace", "CAP_SYS_PTRACE"),
        ("dac_override", "CAP_DAC_OVERRIDE"),
    ] {
        let less = ["setpriv", &format!("--bounding-set=-{name}")];
        let mut launched = launch(&less, &["--self-test", "--user=nobody"]);
        assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
        let lines = format!(
            "start_server: cannot test as root: {word} is missing here\n\
             hint: give the container or unit CAP_KILL, CAP_SYS_PTRACE and CAP_DAC_OVERRIDE for the self-test; the server \
             itself does not need them\n"
        );
        assert_eq!(launched.log(), lines);
    }
}

#[test]
fn a_self_test_fails_where_the_bounding_set_cannot_be_emptied() {
    if !is_ours() || !needs_root() || !needs_program("setpriv") {
        return;
    }
    let less = ["setpriv", "--bounding-set=-setpcap", "--inh-caps=-setpcap"];
    let tested = Tested::new(launch(&less, &["--self-test", "--user=nobody"]));
    tested.assert_counts();
    let kept = proc::status(nix::unistd::getpid())
        .expect("no status")
        .bounding
        & !(1 << 8);
    let what = format!("its bounding set is empty: {kept:x}");
    for process in ["supervisor", "worker 2", "resident binder", "port binder"] {
        tested.assert_failed(process, &what);
    }
    // The other checks go on.
    tested.assert_ok("worker 2", "no_new_privs is set");
    tested.assert_ok(
        "path binder",
        "once it waits, it is killed when it tries to signal its parent",
    );
    // A server that must not be less than whole does not even start.
    let strict = ["--self-test", "--user=nobody", "--strict"];
    let tested = Tested::new(launch(&less, &strict));
    tested.assert_failed(
        "server",
        "it can be tested to the end: it ended before generation 1 starts: start_server: cannot empty the \
         capability bounding set: CAP_SETPCAP is missing, and --strict is given",
    );
}

#[test]
fn a_self_test_fails_beside_a_binder_that_nothing_confines() {
    if !is_ours() {
        return;
    }
    let folder = install_beside("does whatever it is asked to try");
    let program = folder.path().join("start_server");
    let mut runs = vec![(as_ordinary_user(), &["--self-test"][..])];
    if Uid::effective().is_root() {
        runs.push((&[], &["--self-test", "--user=nobody"]));
    }
    for (before, arguments) in runs {
        let tested = Tested::new(launch_program(before, &program, arguments));
        tested.assert_failed(
            "port binder",
            "seccomp is in force: this kernel or container lacks it",
        );
        tested.assert_failed(
            "port binder",
            "Landlock 6 is in force: this kernel or container lacks it",
        );
        tested.assert_failed("port binder", "no_new_privs is set: it is not");
        for what in ESCAPES_OF_PORTS {
            for moment in ["while it serves", "once all is bound"] {
                let what = format!("{moment}, {what}: it can");
                tested.assert_failed("port binder", &what);
            }
        }
        if before.is_empty() {
            tested.assert_failed("port binder", &format!("its uids are {NOBODY}: 0 0 0 0"));
            tested.assert_failed(
                "port binder",
                "its user cannot inspect it: its user is root",
            );
        }
    }
}

#[test]
fn a_self_test_without_a_binder_says_so_and_fails() {
    if !is_ours() {
        return;
    }
    let folder = install_beside("");
    let binder = folder.path().join("start_server-binder");
    fs::remove_file(&binder).expect("cannot remove the binder");
    let program = folder.path().join("start_server");
    let tested = Tested::new(launch_program(
        as_ordinary_user(),
        &program,
        &["--self-test"],
    ));
    let cannot = format!(
        "cannot run the binder {}: No such file or directory; hint: install start_server-binder beside {}",
        binder.display(),
        program.display()
    );
    tested.assert_failed(
        "port binder",
        &format!("it can be tested to the end: {cannot}"),
    );
    tested.assert_failed(
        "server",
        &format!("it can be tested to the end: it ended before generation 1 starts: start_server: {cannot}"),
    );
}

#[test]
fn a_wrong_command_line_of_a_self_test_is_one_clear_line() {
    if !is_ours() {
        return;
    }
    for (option, message) in [
        (
            "--port=80",
            "cannot use --self-test: --port is given as well",
        ),
        (
            "--pid-file=p",
            "cannot use --self-test: --pid-file is given as well",
        ),
        (
            "--restart",
            "cannot use --self-test: --restart is given as well",
        ),
        ("true", "cannot use --self-test: it takes no server program"),
    ] {
        let mut launched = launch(as_ordinary_user(), &["--self-test", option]);
        assert_eq!(launched.wait_exit(), 2, "{option}");
        assert_eq!(launched.log(), format!("start_server: {message}\n"));
    }
    if Uid::effective().is_root() {
        let mut launched = launch(&[], &["--self-test"]);
        assert_eq!(launched.wait_exit(), 2);
        let log = launched.log();
        assert!(log.contains("\nhint: add --user=NAME"), "{log}");
    } else {
        let mut launched = launch(&[], &["--self-test", "--user=nobody"]);
        assert_eq!(launched.wait_exit(), 2);
    }
}

/// While a server of the self-test runs; as root also one with a binder that stays.
fn moments() -> &'static [&'static str] {
    const ALL: [&str; 2] = [
        "it is gone when the first worker starts",
        "it is the only process beside the first worker",
    ];
    match Uid::effective().is_root() {
        true => &ALL,
        false => &ALL[..1],
    }
}

#[test]
fn an_interrupted_self_test_ends_at_once_and_leaves_nothing() {
    if !is_ours() {
        return;
    }
    for moment in moments() {
        let mut held = Held::start();
        held.read_until(moment);
        assert_eq!(directories_of(held.pid()).len(), 1);
        let self_test = held.pid();
        kill(self_test, Signal::SIGTERM).expect("cannot signal the self-test");
        let (status, output) = held.end();
        assert_eq!(status.code(), Some(1), "{output}");
        let last = output.lines().last();
        let interrupted = "start_server: cannot finish the self-test: it was interrupted";
        assert_eq!(last, Some(interrupted), "{output}");
        assert_nothing_is_left_of(self_test);
    }
}

#[test]
fn a_self_test_of_root_reads_no_file_of_root_for_a_process_of_the_user() {
    if !is_ours() || !needs_root() {
        return;
    }
    let folder = Folder::new(Uid::from_raw(0), Gid::from_raw(0));
    let secret = folder.path().join("secret");
    fs::write(&secret, "known to root alone").expect("cannot write");
    let held = Held::start();
    let deadline = Instant::now() + Duration::from_secs(10);
    // Between the supervisor, which writes it, and the self-test, which reads it when a worker is there: without a pause.
    let swapped = loop {
        let places = directories_of(held.pid());
        let mut places = places.iter().map(|it| it.join("user/pid"));
        let is_written = |it: &PathBuf| fs::metadata(it).is_ok_and(|file| file.len() > 0);
        if let Some(place) = places.find(is_written) {
            let link = place.with_extension("link");
            symlink(&secret, &link).expect("cannot make a link");
            break fs::rename(&link, &place).is_ok();
        }
        if Instant::now() > deadline {
            break false;
        }
    };
    let self_test = held.pid();
    let (status, output) = held.end();
    assert!(swapped, "{output}");
    assert_eq!(status.code(), Some(1), "{output}");
    let found = "as its pid file says: ";
    let line = output.lines().find(|line| line.contains(found));
    assert!(
        line.is_some_and(|it| it.ends_with(r#"the file says """#)),
        "{output}"
    );
    assert!(!output.contains("known to root"), "{output}");
    assert_nothing_is_left_of(self_test);
}

#[test]
fn the_servers_of_a_killed_self_test_end_by_themselves() {
    if !is_ours() {
        return;
    }
    for moment in moments() {
        let mut held = Held::start();
        held.read_until(moment);
        let self_test = held.pid();
        assert_ne!(servers_of(self_test), []);
        kill(self_test, Signal::SIGKILL).expect("cannot kill the self-test");
        held.end();
        wait::until("its server is gone", String::new, || {
            servers_of(self_test).is_empty().then_some(())
        });
        // Only its directory is left, which it cannot remove then.
        for directory in directories_of(self_test) {
            fs::remove_dir_all(directory).expect("cannot remove its directory");
        }
    }
}

#[test]
fn the_worker_of_a_self_test_is_of_no_use_alone() {
    if !is_ours() {
        return;
    }
    let finished = Server::setup().option("--self-test-worker").run();
    // As an option among others it is none.
    assert_eq!(finished.status.code(), Some(2), "{}", finished.log);
    let mut alone = launch(as_ordinary_user(), &["--self-test-worker"]);
    assert_eq!(alone.wait_exit(), 1);
    assert_eq!(
        alone.log(),
        "start_server: cannot be a self-test's worker: it was not started by start_server\n"
    );
}
