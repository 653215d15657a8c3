//! A hostile launcher: whatever it leaves open, closed, ignored, blocked, limited or set, every process is as always.
//!
//! Each variation starts a server as root, with a low port and a socket where only root can write, so that both binders
//! run, and once more as an ordinary user.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::ptr;

use e2e::folder::Folder;
use e2e::proc;
use e2e::server::{NOBODY, Setup};
use e2e::skip::{needs_program, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Report, Server, client, ports, programs, wait};
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::pty::openpty;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, chown, pipe2};

use crate::launch::{RootFolder, make_directory};
use crate::privileges::{
    assert_has_no_privilege, assert_is_a_proper_worker, binders, can_drop, is_dumpable, kinds,
    status, the_binder,
};

/// Bit of a capability in the sets of [`proc::Status`].
const NET_BIND_SERVICE: u64 = 1 << 10;

/// As /proc/PID/status shows them.
fn mask(signals: &[Signal]) -> u64 {
    signals.iter().map(|signal| 1 << (*signal as i32 - 1)).sum()
}

/// The worker without its journal, which it could not write under every one of these circumstances.
fn worker() -> [PathBuf; 2] {
    [programs::worker(), "--graceful".into()]
}

/// With files in the folder of the server, by absolute paths: its current directory may be gone.
fn with_files(setup: Setup) -> Setup {
    let file = |name: &str| setup.folder().join(name).display().to_string();
    let options = [
        format!("--pid-file={}", file("pid")),
        format!("--status-file={}", file("status")),
    ];
    setup.options(options).program(worker())
}

/// What the launcher decides for its workers.
#[derive(Clone, Copy)]
struct Expected<'a> {
    /// What 0 to 2 lead to, of supervisor and worker; `None` is the log.
    standard: [Option<&'a str>; 3],
    umask: u32,
}

const USUAL: Expected<'_> = Expected {
    standard: [Some("/dev/null"), None, None],
    umask: 0o022,
};

/// Starts it in both ways and looks at every process that there is on the way to the end.
#[track_caller]
fn assert_changes_nothing(what: &str, expected: Expected<'_>, hostility: impl Fn(Setup) -> Setup) {
    if original_differs("it resets nothing") {
        return;
    }
    if can_drop() {
        assert_root_is_unaffected(what, expected, &hostility);
    }
    assert_ordinary_is_unaffected(what, expected, &hostility);
}

#[track_caller]
fn assert_root_is_unaffected(
    what: &str,
    expected: Expected<'_>,
    hostility: impl Fn(Setup) -> Setup,
) {
    let (folder, port) = (RootFolder::new(), ports::low());
    let path = folder.join("socket");
    let setup = with_files(Server::setup().as_root())
        .option("--user=nobody")
        .port(port)
        .option(format!("--path={path}"));
    let held = hold(&setup);
    let mut server = hostility(setup).start();
    let [first, second] = server.wait_for("both binders wait for requests", |server| {
        let binders = <[Pid; 2]>::try_from(binders(server)).ok()?;
        // The one of the ports was started first.
        binders
            .into_iter()
            .all(waits_for_requests)
            .then_some(binders)
    });
    let log = server.folder().join("log");
    let stderr = expected.standard[2].unwrap_or(text(&log));
    for binder in [first, second] {
        // The installed programs are elsewhere; what is here is the launcher's.
        let foreign = |file: &String| file.starts_with(text(server.folder()));
        let mapped = proc::mapped_files(binder);
        assert!(!mapped.is_empty() && !mapped.iter().any(foreign), "{what}");
    }
    assert_is_a_proper_port_binder(first, stderr, what);
    assert_is_a_proper_path_binder(second, 1, stderr, &[text(folder.path())], what);
    drop(held);

    let first = server.ask(port);
    assert_is_unprivileged(&first, &server, expected, what);
    // It is the only one left, and it has bound what it was there for.
    let directories = [text(folder.path()), &path];
    assert_is_a_proper_path_binder(the_binder(&server), 2, stderr, &directories, what);
    server.restart();
    let second = client::ask(Path::new(&path));
    assert_eq!(second.generation, Some(2), "{what}");
    assert_is_unprivileged(&second, &server, expected, what);
    assert_ends_without_a_trace(&mut server, what);
    assert!(!Path::new(&path).exists(), "{what}: {path} is left");
}

/// Whether a binder is confined: after that it waits for nothing but requests.
pub fn waits_for_requests(binder: Pid) -> bool {
    proc::status(binder).is_some_and(|it| it.seccomp_filters > 0 && it.state == 'S')
}

/// A worker of root's server and its supervisor: the same as if nothing had been odd.
#[track_caller]
fn assert_is_unprivileged(report: &Report, server: &Server, expected: Expected<'_>, what: &str) {
    assert_is_a_proper_worker(report, &[0, 1, 2, 3, 4]);
    assert_is_a_usual_worker(report, server, expected, what);
    assert!(!proc::has_terminal(Pid::from_raw(report.pid)), "{what}");
    let supervisor = status(server.pid());
    assert_has_no_privilege(&supervisor);
    assert_eq!(supervisor.threads, 1, "{what}");
    assert!(!is_dumpable(server.pid()), "{what}");
    let generations = report.generation.expect("a generation");
    assert_is_a_usual_supervisor(server, what, 3, generations as usize);
}

#[track_caller]
fn assert_ordinary_is_unaffected(
    what: &str,
    expected: Expected<'_>,
    hostility: impl Fn(Setup) -> Setup,
) {
    let port = ports::tcp();
    let mut server = hostility(with_files(Server::setup()).port(port)).start();
    let report = server.ask(port);
    assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3], "{what}");
    assert_is_a_usual_worker(&report, &server, expected, what);
    assert_is_a_usual_supervisor(&server, what, 1, 1);
    let root = |pid: &Pid| proc::status(*pid).is_some_and(|it| it.uids.contains(&0));
    let children = proc::children(server.pid());
    if nix::unistd::geteuid().is_root() {
        assert!(!children.iter().any(root), "{what}");
    }
    server.restart();
    assert_eq!(server.ask(port).generation, Some(2), "{what}");
    assert_ends_without_a_trace(&mut server, what);
}

/// The signals, descriptors 0 to 2, umask and limits of a worker, as the launcher meant them or as they always are.
#[track_caller]
fn assert_is_a_usual_worker(report: &Report, server: &Server, expected: Expected<'_>, what: &str) {
    let status = &report.status;
    // By bits: real-time signals have no names.
    let masks = (status.blocked, status.ignored, status.seccomp);
    assert_eq!(
        masks,
        (0, mask(&[Signal::SIGPIPE]), 0),
        "{what}: {report:?}"
    );
    assert_eq!(status.umask, expected.umask, "{what}");
    let log = server.folder().join("log");
    for (number, wanted) in (0..).zip(expected.standard) {
        let (wanted, found) = (wanted.unwrap_or(text(&log)), &report.descriptors[&number]);
        assert_eq!(found, wanted, "{what}: descriptor {number}");
        let of_supervisor = &proc::descriptors(server.pid())[&number];
        assert_eq!(of_supervisor, wanted, "{what}: descriptor {number}");
    }
}

/// The signals and descriptors of a supervisor that has this many channels and listeners, and has started as many
/// generations.
#[track_caller]
fn assert_is_a_usual_supervisor(server: &Server, what: &str, sockets: usize, generations: usize) {
    let status = status(server.pid());
    let taken = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGCHLD,
        Signal::SIGXCPU,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGURG,
    ];
    assert_eq!(status.blocked, mask(&taken), "{what}");
    // Job control, and what nobody can ignore or would make sense of.
    let others = [
        Signal::SIGTSTP,
        Signal::SIGWINCH,
        Signal::SIGKILL,
        Signal::SIGSTOP,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGABRT,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGSEGV,
        Signal::SIGSYS,
    ];
    let not_ignored = mask(&taken) | mask(&others);
    assert_eq!(status.ignored, !not_ignored, "{what}");
    let file = |name: &str| text(&server.folder().join(name)).to_owned();
    let mut open = ["pid", "pid.json", "status", "status.json"]
        .map(file)
        .to_vec();
    open.push("anon_inode:[signalfd]".to_owned());
    open.extend(vec!["socket".to_owned(); sockets]);
    open.extend(vec![text(&programs::worker()).to_owned(); generations]);
    open.sort();
    // A status file that is just being replaced is open twice.
    server.wait_until(&format!("nothing else is open: {what}"), |server| {
        kinds(server.pid()) == open
    });
}

/// What both binders have in common, whoever started them.
#[track_caller]
fn assert_is_a_proper_binder(pid: Pid, layers: u32, stderr: &str, open: &[&str], what: &str) {
    let status = status(pid);
    assert!(status.no_new_privs && status.threads == 1, "{what}");
    let sandbox = (status.seccomp, status.seccomp_filters);
    assert_eq!(sandbox, (2, layers), "{what}");
    assert_eq!((status.bounding, status.ambient), (0, 0), "{what}");
    assert_eq!((status.inheritable, status.blocked), (0, 0), "{what}");
    assert_eq!(proc::environment(pid), BTreeMap::new(), "{what}");
    assert!(!is_dumpable(pid), "{what}");
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).expect("no cwd"),
        Path::new("/"),
        "{what}"
    );
    let not_ignored = [
        Signal::SIGKILL,
        Signal::SIGSTOP,
        // Faults of the process itself, and what says nothing unless it is asked.
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGABRT,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGSEGV,
        Signal::SIGSYS,
        Signal::SIGCHLD,
    ];
    assert_eq!(status.ignored, !mask(&not_ignored), "{what}");
    let mut descriptors = proc::descriptors(pid);
    let channel = descriptors.remove(&0).expect("no channel");
    assert!(channel.starts_with("socket:["), "{what}: {channel}");
    let standard = [1, 2].map(|number| descriptors.remove(&number));
    let wanted = ["/dev/null", stderr].map(|it| Some(it.to_owned()));
    assert_eq!(standard, wanted, "{what}");
    let others: Vec<&str> = descriptors.values().map(String::as_str).collect();
    assert!(
        others.iter().all(|one| open.contains(one)),
        "{what}: {others:?}"
    );
}

#[track_caller]
fn assert_is_a_proper_port_binder(pid: Pid, stderr: &str, what: &str) {
    assert_is_a_proper_binder(pid, 1, stderr, &[], what);
    let status = status(pid);
    assert_eq!((status.uids, status.gids), ([NOBODY; 4], [NOBODY; 4]));
    assert_eq!(status.groups, [NOBODY], "{what}");
    let sets = (status.permitted, status.effective);
    assert_eq!(sets, (NET_BIND_SERVICE, NET_BIND_SERVICE), "{what}");
}

#[track_caller]
fn assert_is_a_proper_path_binder(pid: Pid, layers: u32, stderr: &str, open: &[&str], what: &str) {
    // The second layer of the sandbox is at hand until it is used.
    let second: &[&str] = match layers {
        1 => &["anon_inode:[landlock-ruleset]"],
        _ => &[],
    };
    assert_is_a_proper_binder(pid, layers, stderr, &[open, second].concat(), what);
    let status = status(pid);
    assert_eq!((status.uids, status.gids), ([0; 4], [0; 4]), "{what}");
    assert!(status.groups.is_empty(), "{what}");
    assert_eq!((status.permitted, status.effective), (0, 0), "{what}");
}

/// Stops the server; nothing of it runs or lies about any more.
#[track_caller]
fn assert_ends_without_a_trace(server: &mut Server, what: &str) {
    assert!(server.stop().success(), "{what}: {}", server.log());
    assert_eq!(proc::group(server.pid()), [], "{what}");
    for name in ["pid", "pid.json", "status", "status.json"] {
        let path = server.folder().join(name);
        assert!(path.symlink_metadata().is_err(), "{what}: {name} is left");
    }
}

/// Somebody looks for the holder of the pid file: as long as that lasts, start_server waits, after its drop and before
/// anything is bound. Its binders have their lists by then.
pub fn hold(setup: &Setup) -> Flock<File> {
    let path = setup.folder().join("pid");
    File::create(&path).expect("cannot make the pid file");
    let nobody = NOBODY.into();
    chown(&path, Some(nobody), None).expect("cannot give the pid file away");
    let file = File::open(&path).expect("cannot open the pid file");
    Flock::lock(file, FlockArg::LockSharedNonblock).expect("cannot lock the pid file")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The highest hard limit of open files that this test can set: root may lack the right to raise it.
fn most_files() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("cannot read the limit");
    hard.min(1 << 20)
}

#[test]
fn leaked_descriptors_reach_nobody() {
    let most = most_files();
    assert_changes_nothing("leaked descriptors", USUAL, |mut setup| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        let secret = options
            .open(setup.folder().join("secret"))
            .expect("cannot open the secret");
        // With this descriptor no path is needed to escape from a directory.
        let directory = File::open("/").expect("cannot open a directory");
        setup = setup.limit(Resource::RLIMIT_NOFILE, most, most);
        let highest = i32::try_from(most - 1).expect("a number of a descriptor");
        for number in [3, 10, 254, 1023, 1024, highest].map(|number| number.min(highest)) {
            let secret = secret.try_clone().expect("cannot duplicate a descriptor");
            setup = setup.leak_file(secret, number);
        }
        setup.leak_file(directory, 5).leak(4).leak(255)
    });
}

#[test]
fn closed_descriptors_0_to_2_are_never_taken_by_something_else() {
    for closed in 0..8 {
        let is_closed = |number: i32| closed & (1 << number) != 0;
        let null = Some("/dev/null");
        let standard = [0, 1, 2].map(|number| match number == 0 || is_closed(number) {
            true => null,
            false => None,
        });
        let expected = Expected { standard, ..USUAL };
        assert_changes_nothing(&format!("closed: {closed:03b}"), expected, |setup| {
            let numbers = (0..=2).filter(|number| is_closed(*number));
            numbers.fold(setup, Setup::close)
        });
    }
}

#[test]
fn ignored_and_blocked_signals_of_every_number_are_as_usual_again() {
    assert_changes_nothing("all ignored", USUAL, Setup::ignore_all);
    assert_changes_nothing("all blocked", USUAL, Setup::block_all);
    assert_changes_nothing("all ignored and blocked", USUAL, |setup| {
        setup.ignore_all().block_all()
    });
}

#[test]
fn a_timer_that_the_launcher_has_set_does_not_end_the_server() {
    if original_differs("it resets nothing") {
        return;
    }
    for setup in [Some(Server::setup()), as_root()].into_iter().flatten() {
        let port = ports::tcp();
        let mut server = with_files(setup).port(port).timer(20).start();
        server.ask(port);
        // The time of the timer, and the same again for its coarse clock. Each of these signals is a
        // line in the log, and new status files.
        server.wait_until("it has computed for longer", |server| {
            (0..100).for_each(|_| server.signal(Signal::SIGUSR1));
            proc::computed(server.pid()) >= 4
        });
        assert!(server.stop().success(), "{}", server.log());
    }
}

#[test]
fn an_odd_umask_reaches_the_worker_and_closes_or_opens_nothing() {
    for umask in [0, 0o777] {
        let expected = Expected { umask, ..USUAL };
        assert_changes_nothing(&format!("umask {umask:o}"), expected, |setup| {
            setup.umask(umask)
        });
    }
}

#[test]
fn an_odd_current_directory_does_not_matter() {
    if needs_root() {
        assert_changes_nothing("a closed directory", USUAL, |setup| {
            let directory = setup.folder().join("closed");
            make_directory(&directory, 0, 0);
            setup.enter(&directory)
        });
    }
    assert_changes_nothing("a removed directory", USUAL, |setup| {
        let directory = setup.folder().join("gone");
        fs::create_dir(&directory).expect("cannot make a directory");
        setup.enter_and_remove(&directory)
    });
}

#[test]
fn odd_limits_reach_the_worker_and_nothing_else_changes() {
    if original_differs("it resets nothing") {
        return;
    }
    let most = most_files();
    for (name, resource, soft, hard) in [
        ("Max open files", Resource::RLIMIT_NOFILE, 1024, most),
        ("Max open files", Resource::RLIMIT_NOFILE, most, most),
        ("Max open files", Resource::RLIMIT_NOFILE, 24, 24),
        ("Max open files", Resource::RLIMIT_NOFILE, 16, 1024),
        ("Max core file size", Resource::RLIMIT_CORE, 0, 0),
        ("Max address space", Resource::RLIMIT_AS, 1 << 28, 1 << 29),
        ("Max locked memory", Resource::RLIMIT_MEMLOCK, 0, 0),
        ("Max pending signals", Resource::RLIMIT_SIGPENDING, 0, 0),
        ("Max msgqueue size", Resource::RLIMIT_MSGQUEUE, 0, 0),
    ] {
        let what = format!("{name}: {soft} {hard}");
        assert_changes_nothing(&what, USUAL, |setup| setup.limit(resource, soft, hard));
        for setup in [Some(Server::setup()), as_root()].into_iter().flatten() {
            let port = ports::tcp();
            let server = with_files(setup)
                .port(port)
                .limit(resource, soft, hard)
                .start();
            assert_limits(&server.ask(port), name, soft, hard);
        }
    }
}

/// Root's start, where the tests can make one.
fn as_root() -> Option<Setup> {
    let setup = || Server::setup().as_root().option("--user=nobody");
    needs_root().then(setup)
}

/// The worker has this limit, whatever was raised for start_server itself, and otherwise those of this test.
#[track_caller]
fn assert_limits(report: &Report, name: &str, soft: u64, hard: u64) {
    let ours = proc::limits(Pid::this());
    let theirs = proc::limits(Pid::from_raw(report.pid));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        match theirs.strip_prefix(name) {
            None => assert_eq!(theirs, ours, "{name}"),
            Some(found) => {
                let found: Vec<&str> = found.split_whitespace().take(2).collect();
                assert_eq!(found, [soft.to_string(), hard.to_string()], "{name}");
            }
        }
    }
    assert_eq!(ours.len(), theirs.len());
}

/// How a start ended, or that it serves.
struct Outcome {
    server: Server,
    /// None while it serves.
    status: Option<ExitStatus>,
    said: String,
}

/// Starts it and waits until it serves or has ended. What it says is read from a pipe: files may be limited.
#[track_caller]
fn run(setup: Setup, port: u16) -> Outcome {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("cannot make a pipe");
    let mut server = setup.port(port).output(File::from(writer)).start();
    let status = server.wait_for_answer_or_exit(port);
    let mut said = Vec::new();
    // Up to what is not there yet, where something still holds the other end.
    drop(File::from(reader).read_to_end(&mut said));
    Outcome {
        server,
        status,
        said: String::from_utf8_lossy(&said).into_owned(),
    }
}

impl Outcome {
    /// It serves with every privilege given up; or it has ended with one error of these words, and with everything
    /// that it began.
    #[track_caller]
    fn assert_served_or_said(&mut self, what: &str, words: &[&str]) {
        let Outcome {
            server,
            status,
            said,
        } = self;
        let Some(status) = status else {
            return assert_ends_without_a_trace(server, what);
        };
        assert_eq!(status.code(), Some(1), "{what}: {status} {said}");
        let errors = said.lines().filter(|line| line.contains(": cannot "));
        let [line] = errors.collect::<Vec<_>>()[..] else {
            panic!("{what}: not one error: {said}");
        };
        assert!(words.iter().any(|word| line.contains(word)), "{line}");
        wait::until("nothing of it is left", String::new, || {
            proc::group(server.pid()).is_empty().then_some(())
        });
    }
}

/// Both starts under the same limit.
fn starts_under(limit: impl Fn(Setup) -> Setup, what: &str, mut judge: impl FnMut(Outcome)) {
    if original_differs("its messages are others") {
        return;
    }
    judge(run(limit(with_files(Server::setup())), ports::tcp()));
    if let Some(setup) = as_root() {
        let folder = RootFolder::new();
        let path = format!("--path={}", folder.join("socket"));
        let setup = limit(with_files(setup).option(path));
        judge(run(setup, ports::low()));
        // Whether it had served or had failed.
        let mut left = fs::read_dir(folder.path()).expect("no folder");
        assert!(left.next().is_none(), "{what}: the socket is left");
    }
}

#[test]
fn too_few_open_files_are_one_line_with_the_number_that_is_needed() {
    for limit in 4..24 {
        let what = format!("{limit} files");
        let set = |setup: Setup| setup.limit(Resource::RLIMIT_NOFILE, limit, limit);
        starts_under(set, &what, |mut outcome| {
            let needed = format!("descriptors, and the limit on open files is {limit}");
            outcome.assert_served_or_said(&what, &[&needed]);
            assert!(limit < 20 || outcome.status.is_none_or(|it| it.success()));
        });
    }
}

#[test]
fn files_that_cannot_be_written_are_one_line() {
    // Nothing at all; a pid and no status.
    for limit in [0, 8] {
        let what = format!("files of {limit} bytes");
        let set = |setup: Setup| setup.limit(Resource::RLIMIT_FSIZE, limit, limit);
        starts_under(set, &what, |mut outcome| {
            assert!(outcome.status.is_some(), "{what}: it serves");
            outcome.assert_served_or_said(&what, &[": File too large"]);
        });
    }
}

#[test]
fn files_that_cannot_grow_any_more_do_not_end_the_service() {
    if original_differs("it is ended by the signal") {
        return;
    }
    // Enough for the first status, and not for that of some generations; nothing is left for the log.
    const LIMIT: u64 = 2048;
    let folder = needs_root().then(RootFolder::new);
    for root in [false, true] {
        let setup = match (root, &folder) {
            (false, _) => Server::setup(),
            (true, None) => continue,
            (true, Some(folder)) => as_root()
                .expect("it was asked above")
                .option(format!("--path={}", folder.join("socket"))),
        };
        let full = vec![b'\n'; usize::try_from(LIMIT).expect("a small number")];
        fs::write(setup.folder().join("log"), full).expect("cannot fill the log");
        let port = ports::tcp();
        let mut server = with_files(setup)
            .interval("0")
            .port(port)
            .limit(Resource::RLIMIT_FSIZE, LIMIT, LIMIT)
            .start();
        let file = server.folder().join("status.json");
        let text = || fs::read_to_string(&file).unwrap_or_default();
        for generation in 1..=8 {
            let report = server.ask(port);
            assert_eq!(report.generation, Some(generation));
            assert_limits(&report, "Max file size", LIMIT, LIMIT);
            assert_eq!(report.status.ignored, mask(&[Signal::SIGPIPE]));
            if generation < 8 {
                server.restart();
            }
        }
        // Else nothing has grown beyond the limit.
        assert!(!text().contains("\"number\": 8"), "{}", text());
        assert_eq!(binders(&server).len(), usize::from(root));
        assert_ends_without_a_trace(&mut server, "full files");
    }
}

#[test]
fn too_few_processes_for_the_user_are_one_line() {
    // Root is held to it from the drop on.
    if !can_drop() {
        return;
    }
    for limit in [0, 1] {
        let what = format!("{limit} processes");
        let folder = RootFolder::new();
        let setup = with_files(Server::setup().as_root())
            .option("--user=nobody")
            .option(format!("--path={}", folder.join("socket")))
            // Others of the same user may end, so that without this it is tried again and again.
            .option("--start-limit=1")
            .limit(Resource::RLIMIT_NPROC, limit, limit);
        let mut outcome = run(setup, ports::low());
        assert!(outcome.status.is_some(), "{what}: it serves");
        outcome.assert_served_or_said(&what, &["cannot start a new worker: "]);
    }
}

#[test]
fn too_little_memory_ends_the_start_and_leaves_nothing() {
    let mut served = 0;
    for mebibytes in [1, 2, 3, 4, 5, 6, 8, 12, 16, 64] {
        let what = format!("{mebibytes} MiB");
        let limit = mebibytes << 20;
        let set = |setup: Setup| setup.limit(Resource::RLIMIT_AS, limit, limit);
        starts_under(set, &what, |mut outcome| match outcome.status {
            None => {
                served += 1;
                assert_ends_without_a_trace(&mut outcome.server, &what);
            }
            // The kernel or the loader may have had no memory to say more.
            Some(status) => {
                assert!(mebibytes < 64 && !status.success(), "{what}: {status}");
                let pid = outcome.server.pid();
                wait::until(
                    "nothing of it is left",
                    || format!("{what}: {:?}", proc::group(pid)),
                    || proc::group(pid).is_empty().then_some(()),
                );
            }
        });
    }
    assert!(served > 0 || original_differs("its messages are others"));
}

#[test]
fn a_hostile_environment_reaches_the_worker_and_no_binder() {
    let hostile = |setup: Setup| {
        let folder = setup.folder().to_owned();
        // The library that every program here is linked with, in two places where the loader is told to look.
        let libraries = proc::mapped_files(Pid::this());
        let library = libraries.iter().find(|file| file.contains("/libgcc_s.so"));
        let library = Path::new(library.expect("a library of this test"));
        let preloaded = folder.join("preloaded.so");
        fs::copy(library, &preloaded).expect("cannot copy the library");
        let searched = folder.join(library.file_name().expect("a name"));
        fs::copy(library, searched).expect("cannot copy the library");
        fs::write(folder.join("aliases"), "localhost evil.invalid\n").expect("cannot write");
        let variables = [
            ("LD_PRELOAD", preloaded.clone()),
            ("LD_LIBRARY_PATH", folder.clone()),
            ("LD_AUDIT", preloaded),
            ("LD_BIND_NOW", "1".into()),
            ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0".into()),
            ("MALLOC_ARENA_MAX", "1".into()),
            ("MALLOC_PERTURB_", "85".into()),
            ("RUST_BACKTRACE", "full".into()),
            ("RUST_LOG", "trace".into()),
            ("RUST_MIN_STACK", "1".into()),
            ("TMPDIR", folder.join("missing")),
            ("LOCALDOMAIN", "evil.invalid".into()),
            ("HOSTALIASES", folder.join("aliases")),
            ("RES_OPTIONS", "ndots:15".into()),
            ("SERVER_STARTER_PORT", "1=9".into()),
            ("SERVER_STARTER_GENERATION", "77".into()),
        ];
        variables
            .into_iter()
            .fold(setup, |setup, (name, value)| setup.env(name, value))
    };
    assert_changes_nothing("a hostile environment", USUAL, hostile);
    if original_differs("it resets nothing") {
        return;
    }
    // What the launcher tells its own processes reaches it too.
    for setup in [Some(Server::setup()), as_root()].into_iter().flatten() {
        let port = ports::tcp();
        let server = hostile(with_files(setup).port(port)).start();
        let report = server.ask(port);
        for (name, value) in [("RUST_LOG", "trace"), ("SERVER_STARTER_GENERATION", "1")] {
            assert_eq!(report.environment[name], value);
        }
        for pid in [server.pid(), Pid::from_raw(report.pid)] {
            let ours = |file: &String| file.starts_with(text(server.folder()));
            assert!(proc::mapped_files(pid).iter().any(ours), "{pid}");
        }
    }
}

#[test]
fn the_name_that_the_launcher_calls_it_by_leads_to_no_other_binder() {
    for name in ["", "\n\x1b[2Jstart_server: all is well", "../x", "-h"] {
        assert_changes_nothing(&format!("argv[0] {name:?}"), USUAL, |setup| {
            setup.arg0(name)
        });
    }
    assert_changes_nothing("argv[0] beside another binder", USUAL, |setup| {
        let binder = setup.folder().join("start_server-binder");
        fs::write(&binder, "#!/bin/sh\nexit 7\n").expect("cannot write the script");
        fs::set_permissions(&binder, Permissions::from_mode(0o755)).expect("cannot set the mode");
        let name = setup.folder().join("start_server");
        setup.arg0(name)
    });
}

#[test]
fn a_start_without_any_argument_is_wrong_usage() {
    if original_differs("its messages are others") {
        return;
    }
    for user in [None, Some(NOBODY)] {
        if user.is_some() && !needs_root() {
            continue;
        }
        let output = without_arguments(user)
            .output_in_turn()
            .expect("cannot run it");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.starts_with("start_server: "), "{said}");
        assert_eq!(said.lines().count(), 2, "{said}");
    }
}

/// start_server with an `argv` that has not even a first element.
#[expect(unsafe_code, reason = "the standard library always gives a name")]
fn without_arguments(user: Option<u32>) -> Command {
    let program = CString::new(text(&programs::start_server())).expect("a path without a NUL");
    let mut command = Command::new(programs::start_server());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let execute = move || {
        let none = [ptr::null::<libc::c_char>()];
        // SAFETY: the program ends with a NUL, and both lists end with a null pointer.
        unsafe { libc::execve(program.as_ptr(), none.as_ptr(), none.as_ptr()) };
        Err(std::io::Error::last_os_error())
    };
    // SAFETY: it makes a system call only.
    unsafe { command.pre_exec(execute) };
    command
}

#[test]
fn the_terminal_of_the_launcher_is_out_of_reach_of_workers_though_nothing_leads_there() {
    let masters = RefCell::new(Vec::new());
    assert_changes_nothing("a terminal", USUAL, |setup| {
        let pty = openpty(None, None).expect("cannot open a terminal");
        // Its end would hang up.
        masters.borrow_mut().push(pty.master);
        setup.terminal(File::from(pty.slave))
    });
}

#[test]
fn the_terminal_of_root_is_out_of_reach_of_whatever_else_runs_as_the_user() {
    if !can_drop() {
        return;
    }
    let pty = openpty(None, None).expect("cannot open a terminal");
    let port = ports::tcp();
    let setup = Server::setup().as_root().option("--user=nobody").port(port);
    let server = setup
        .option("--log-file=| exec cat >>output")
        .terminal(File::from(pty.slave))
        .start();
    let worker = server.ask(port).pid;
    // The session leader keeps it: Ctrl-C is meant for it, and no process of its user can trace it.
    assert!(proc::has_terminal(server.pid()) && !is_dumpable(server.pid()));
    let children = proc::children(server.pid());
    assert!(children.len() == 2 && children.contains(&Pid::from_raw(worker)));
    for child in children {
        assert!(!proc::has_terminal(child), "{:?}", status(child));
    }
    drop(pty.master);
}

#[test]
fn a_supervisor_that_leads_no_session_gives_the_terminal_of_root_up_and_hears_it_still() {
    if !can_drop() || !needs_program("setsid") {
        return;
    }
    let pty = openpty(None, None).expect("cannot open a terminal");
    let folder = Folder::new(Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let report = folder.path().join("report");
    let mut session = Command::new("setsid")
        .args(["--ctty", "sh", "-c", "\"$@\"; exit $?", "sh"])
        .arg(programs::start_server())
        .args(["--user=nobody", "--interval=0", "--"])
        .arg(programs::worker())
        .arg(format!("--report={}", report.display()))
        .stdin(pty.slave)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn_in_turn()
        .expect("cannot run setsid");
    let worker = wait::until("the worker reports", String::new, || {
        let text = fs::read_to_string(&report).ok()?;
        let line = text.lines().next().filter(|_| text.ends_with('\n'))?;
        Some(serde_json::from_str::<Report>(line).expect("a report"))
    });
    let shell = Pid::from_raw(session.id().cast_signed());
    let supervisor = Pid::from_raw(worker.ppid);
    assert!(proc::has_terminal(shell), "nobody has the terminal");
    assert!(!proc::has_terminal(supervisor));
    assert!(!proc::has_terminal(Pid::from_raw(worker.pid)));
    // Ctrl-C.
    File::from(pty.master).write_all(&[3]).expect("cannot type");
    wait::until("it has ended", String::new, || {
        (!proc::alive(supervisor)).then_some(())
    });
    session.wait().expect("cannot wait for the shell");
}
