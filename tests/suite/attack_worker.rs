//! A server program that has been taken over: what it cannot do to the processes beside it, and what it cannot make them
//! do.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use e2e::folder::Folder;
use e2e::server::{NOBODY, Setup};
use e2e::skip::{needs_program, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Server, ports, proc, programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, chown};

use crate::launch::{AS_NOBODY, RootFolder, install, launch};
use crate::policy::set_capability;

/// The fixture, where everybody can run it.
pub fn attacker() -> PathBuf {
    static INSTALLED: OnceLock<Folder> = OnceLock::new();
    let folder = INSTALLED.get_or_init(|| {
        let folder = Folder::new(Uid::effective(), Gid::effective());
        let built = Path::new(env!("CARGO_BIN_EXE_attacker"));
        install(built, folder.path(), "attacker");
        folder
    });
    folder.path().join("attacker")
}

/// By what was tried: `ok`, or an errno.
type Results = BTreeMap<String, String>;

/// What `nobody` can do with the fixture.
fn as_nobody(program: &Path, arguments: &[&str]) -> Results {
    let output = Command::new(AS_NOBODY[0])
        .args(&AS_NOBODY[1..])
        .arg(program)
        .args(arguments)
        .output_in_turn()
        .expect("cannot run the attacker");
    serde_json::from_slice(&output.stdout).expect("not JSON")
}

/// What `nobody` can do to a process.
pub fn reach(pid: Pid) -> Results {
    as_nobody(&attacker(), &["reach", &pid.to_string()])
}

/// What takes the right to look into a process.
pub const LOOKS: [&str; 13] = [
    "attach",
    "seize",
    "mem",
    "environ",
    "maps",
    "auxv",
    "descriptors",
    "root",
    "cwd",
    "exe",
    "read memory",
    "write memory",
    "take a descriptor",
];

#[track_caller]
pub fn assert_cannot(results: &Results, what: &str) {
    let result = results.get(what).map(String::as_str);
    assert!(
        matches!(result, Some("EPERM" | "EACCES")),
        "{what}: {results:?}"
    );
}

fn can_drop() -> bool {
    needs_root() && !original_differs("it does not separate privileges")
}

fn for_nobody() -> Setup {
    Server::setup().as_root().option("--user=nobody")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The fixture in the place of the server program, and what it has found out.
#[track_caller]
fn attack<T: serde::de::DeserializeOwned>(
    setup: Setup,
    program: &Path,
    deed: &[&str],
) -> (Server, T) {
    let into = setup.folder().join("result");
    let option = format!("--into={}", into.display());
    let words = [&[text(program), deed[0], &option], &deed[1..]].concat();
    let server = setup.program(words).start();
    let result = server.wait_for("the attacker has tried everything", |_| {
        fs::read_to_string(&into).ok()
    });
    (server, serde_json::from_str(&result).expect("not JSON"))
}

#[test]
fn a_worker_cannot_look_into_or_govern_the_binder_nor_look_into_its_supervisor() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let setup = for_nobody()
        .port(ports::low())
        .option(format!("--path={}", folder.join("socket")));
    let (mut server, family): (_, BTreeMap<String, Results>) =
        attack(setup, &attacker(), &["family"]);
    // All of it can be done, where it may be.
    let victim = &family["victim"];
    assert!(victim.values().all(|it| it == "ok"), "{victim:?}");
    let binder = &family["sibling"];
    for what in victim.keys() {
        assert_cannot(binder, what);
    }
    let supervisor = &family["supervisor"];
    for what in LOOKS.into_iter().chain(["compare", "oom score"]) {
        assert_cannot(supervisor, what);
    }
    // It has the same user: start_server-binder(8) says so.
    assert_eq!(supervisor["signal"], "ok");
    assert!(server.stop().success());
    assert!(!Path::new(&folder.join("socket")).exists());
}

#[test]
fn a_worker_cannot_bind_a_low_port() {
    if !can_drop() || !needs_program("setcap") {
        return;
    }
    let folder = Folder::new(Uid::from_raw(0), Gid::from_raw(0));
    let raised = install(&attacker(), folder.path(), "attacker");
    set_capability(&raised);
    let port = ports::low();
    let low = port.to_string();
    // Without us it can, on this file system.
    assert_eq!(as_nobody(&raised, &["bind", &low])["bind"], "ok");
    let setup = for_nobody().port(ports::low());
    let (server, result): (_, Results) = attack(setup, &attacker(), &["bind", &low]);
    assert_eq!(result["bind"], "EACCES");
    let worker = server.workers()[0].pid;
    let status = proc::status(worker).expect("it is gone");
    assert_eq!(status.capabilities(), [0; 5]);
    // The kernel executes no program that could not have the capabilities of its file.
    let finished = for_nobody().program([text(&raised), "bind", &low]).run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    let error = format!(
        "start_server: cannot execute {}: Operation not permitted\n",
        raised.display()
    );
    assert!(finished.log.contains(&error), "{}", finished.log);
}

#[test]
fn a_seccomp_filter_of_the_launcher_holds_and_nothing_is_added_to_it_but_for_the_binder() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let worker = programs::worker();
    let options = [
        "--user=nobody",
        &format!("--port=127.0.0.1:{}", ports::low()),
        &format!("--path={}", folder.join("socket")),
        "--",
        text(&worker),
        "--report=report",
    ];
    let launched = launch(&[text(&attacker()), "filter"], &options);
    let report = launched.wait_for_report();
    let filters = |pid| {
        let status = proc::status(pid).expect("it is gone");
        (status.seccomp, status.seccomp_filters)
    };
    assert_eq!(
        (report.status.seccomp, report.status.seccomp_filters),
        (2, 1)
    );
    assert_eq!(filters(launched.pid()), (2, 1));
    let binder = proc::children(launched.pid())
        .into_iter()
        .find(|pid| pid.as_raw() != report.pid)
        .expect("no binder");
    assert_eq!(filters(binder), (2, 3));
}

#[test]
fn after_a_crash_and_restarts_nobody_has_more_than_before() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let server = for_nobody()
        .port(ports::low())
        .option(format!("--path={path}"))
        .worker(["--graceful"])
        .start();
    for generation in 1..=4 {
        let worker = server.wait_for_service(generation);
        server.wait_for_generations(&[generation]);
        let binder = proc::children(server.pid())
            .into_iter()
            .find(|pid| *pid != worker.pid)
            .expect("no binder");
        let report = server.ask(Path::new(&path));
        assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3, 4]);
        assert_eq!(report.status.blocked, 0);
        for pid in [worker.pid, server.pid()] {
            let status = proc::status(pid).expect("it is gone");
            assert_eq!((status.uids, status.gids), ([NOBODY; 4], [NOBODY; 4]));
            assert_eq!(status.groups, [NOBODY]);
            assert_eq!(status.capabilities(), [0; 5]);
            assert!(status.no_new_privs);
            assert_eq!((status.seccomp, status.seccomp_filters), (0, 0));
        }
        let status = proc::status(binder).expect("it is gone");
        assert_eq!((status.uids, status.gids), ([0; 4], [0; 4]));
        assert!(status.groups.is_empty());
        assert_eq!(status.capabilities(), [0; 5]);
        assert!(status.no_new_privs);
        assert_eq!((status.seccomp, status.seccomp_filters), (2, 2));
        match generation {
            // A crash, and a crash that looks like a stop.
            2 => kill(worker.pid, Signal::SIGSEGV).expect("cannot kill it"),
            _ => server.signal(Signal::SIGHUP),
        }
    }
}

/// A folder of the user, and in another one a file that nobody shall touch.
struct Precious {
    folder: Folder,
}

impl Precious {
    const TEXT: &str = "precious\n";

    fn new() -> Precious {
        let folder = Folder::new(Uid::effective(), Gid::effective());
        let precious = Precious { folder };
        fs::write(precious.path(), Self::TEXT).expect("cannot write");
        // The supervisor could write it.
        fs::set_permissions(precious.path(), fs::Permissions::from_mode(0o666)).expect("chmod");
        fs::set_permissions(precious.folder.path(), fs::Permissions::from_mode(0o777))
            .expect("chmod");
        precious
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("precious")
    }

    fn dangling(&self) -> PathBuf {
        self.folder.path().join("made")
    }

    /// Puts a link to it into this place, as the user of the server does it.
    fn plant(&self, link: &Path) {
        Self::plant_to(&self.path(), link);
    }

    fn plant_to(target: &Path, link: &Path) {
        let half = link.with_extension("planted");
        symlink(target, &half).expect("cannot make a link");
        fs::rename(&half, link).expect("cannot put the link there");
    }

    #[track_caller]
    fn assert_is_whole(&self) {
        let text = fs::read_to_string(self.path()).expect("it is gone");
        assert_eq!(text, Self::TEXT);
        let mode = fs::metadata(self.path()).expect("it is gone").permissions();
        assert_eq!(mode.mode() & 0o7777, 0o666);
        assert!(!self.dangling().exists(), "a file was made through a link");
    }
}

/// As root where the tests may, for the user that owns the folder.
fn with_files() -> Setup {
    let setup = match Uid::effective().is_root() {
        true => for_nobody(),
        false => Server::setup(),
    };
    setup.pid_file().status_file()
}

#[test]
fn links_in_the_places_of_the_files_are_not_followed_between_two_writes() {
    if original_differs("it follows them") {
        return;
    }
    for name in ["status", "status.json", "pid", "pid.json"] {
        let precious = Precious::new();
        let mut server = with_files().start();
        server.wait_for_service(1);
        server.wait_until("the files are there", |it| it.status_json().is_some());
        let place = server.folder().join(name);
        precious.plant(&place);
        server.restart();
        precious.assert_is_whole();
        fs::remove_file(&place).expect("cannot remove the link");
        Precious::plant_to(&precious.dangling(), &place);
        server.restart();
        precious.assert_is_whole();
        precious.plant(&place);
        assert!(server.stop().success());
        precious.assert_is_whole();
        assert_eq!(
            fs::read_link(&place).expect("it is gone"),
            precious.path(),
            "{name}"
        );
    }
}

/// Makes a link where the supervisor may just have a draft, which it gives its real name in a moment.
#[track_caller]
fn plant(target: impl AsRef<Path>, link: &Path) {
    wait::until(
        "the place is free for a link",
        || link.display().to_string(),
        || symlink(&target, link).ok(),
    );
}

#[test]
fn links_under_the_names_of_temporary_files_are_not_followed() {
    if original_differs("it follows them") {
        return;
    }
    let precious = Precious::new();
    let mut server = with_files().start();
    server.wait_for_service(1);
    server.wait_until("the files are there", |it| it.status_json().is_some());
    let names = |name: &str, numbers: std::ops::Range<u32>| -> Vec<PathBuf> {
        let name = format!("{name}.{}", server.pid());
        let folder = server.folder();
        numbers
            .map(|it| folder.join(format!("{name}.{it}")))
            .collect()
    };
    let all = |numbers: std::ops::Range<u32>| -> Vec<PathBuf> {
        ["status", "status.json", "pid.json"]
            .iter()
            .flat_map(|name| names(name, numbers.clone()))
            .collect()
    };
    // Some of them: another name is found.
    let some = all(0..3);
    for (number, link) in some.iter().enumerate() {
        match number % 2 {
            0 => plant(precious.path(), link),
            _ => plant(precious.dangling(), link),
        }
    }
    server.restart();
    server.wait_until("the status is right", |it| {
        it.status_file().is_some_and(|text| text.starts_with("2:"))
    });
    precious.assert_is_whole();
    // All of them: that is said, and the service goes on.
    for link in all(3..100) {
        plant(precious.dangling(), &link);
    }
    server.restart();
    precious.assert_is_whole();
    let planted = all(0..100);
    assert!(
        planted.iter().all(|link| link.is_symlink()),
        "a link is gone"
    );
    assert!(server.stop().success());
    precious.assert_is_whole();
}

#[test]
fn a_link_in_the_place_of_the_log_is_not_followed_when_it_is_opened_again() {
    if original_differs("USR1 kills it") {
        return;
    }
    for dangling in [false, true] {
        let precious = Precious::new();
        let setup = with_files();
        let logs = setup.folder().join("logs");
        fs::create_dir(&logs).expect("cannot make a folder");
        let user = fs::metadata(setup.folder()).expect("no folder");
        let user = Uid::from_raw(std::os::unix::fs::MetadataExt::uid(&user));
        chown(&logs, Some(user), None).expect("cannot give it away");
        let log = logs.join("log");
        let mut server = setup
            .option(format!("--log-file={}", log.display()))
            .start();
        server.wait_for_service(1);
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let target = match dangling {
            true => precious.dangling(),
            false => precious.path(),
        };
        let old = logs.join("old");
        fs::rename(&log, &old).expect("cannot rotate");
        Precious::plant_to(&target, &log);
        server.signal(Signal::SIGUSR1);
        server.wait_until("it says why", |_| read(&old).contains("cannot reopen"));
        server.restart();
        assert!(server.stop().success());
        precious.assert_is_whole();
    }
}
