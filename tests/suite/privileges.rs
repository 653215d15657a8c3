//! What each process may do, from the start as root to the worker: the table of processes, row by row.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;

use e2e::folder::Folder;
use e2e::proc::{self, Status, signals};
use e2e::server::{NOBODY, Setup};
use e2e::skip::{needs_program, needs_root, original_differs};
use e2e::{Report, Server, client, ports, programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Pid, Uid};

use crate::launch::{
    AS_NOBODY, Launched, RootFolder, install, launch, launch_program, make_directory,
};

const NONE: [u64; 5] = [0; 5];

/// A foreign ordinary user.
const FOREIGN: u32 = 4242;

/// Whether this can be tested: as root, against the program that has privileges to separate.
pub fn can_drop() -> bool {
    needs_root() && !original_differs("it does not separate privileges")
}

/// Started by root for `nobody`.
fn for_nobody() -> Setup {
    Server::setup().as_root().option("--user=nobody")
}

pub fn status(pid: Pid) -> Status {
    proc::status(pid).unwrap_or_else(|| panic!("there is no process {pid}"))
}

/// Whether the user of the process may look into it, trace it and read its memory.
pub fn is_dumpable(pid: Pid) -> bool {
    let owner = fs::metadata(format!("/proc/{pid}/environ"))
        .expect("there is no such process")
        .uid();
    owner == status(pid).uids[1] && owner != 0
}

#[track_caller]
pub fn assert_is_nobody(status: &Status) {
    assert_eq!(status.uids, [NOBODY; 4], "{status:?}");
    assert_eq!(status.gids, [NOBODY; 4], "{status:?}");
    assert_eq!(status.groups, [NOBODY], "{status:?}");
}

#[track_caller]
pub fn assert_has_no_privilege(status: &Status) {
    assert_is_nobody(status);
    assert_eq!(status.capabilities(), NONE, "{status:?}");
    assert!(status.no_new_privs, "{status:?}");
}

#[track_caller]
pub fn assert_is_a_proper_worker(report: &Report, descriptors: &[i32]) {
    assert_has_no_privilege(&report.status);
    // Whatever confines the binder, workers do not inherit it.
    assert_eq!(report.status.seccomp, 0, "{report:?}");
    assert_eq!(report.status.blocked, 0, "{report:?}");
    assert_eq!(signals(report.status.ignored), [Signal::SIGPIPE]);
    assert_eq!(report.descriptor_numbers(), descriptors, "{report:?}");
}

/// The children of start_server that are no workers.
pub fn binders(server: &Server) -> Vec<Pid> {
    let is_binder = |pid: &Pid| proc::status(*pid).is_some_and(|it| it.name == "start_server-bi");
    let children = proc::children(server.pid());
    children.into_iter().filter(is_binder).collect()
}

#[track_caller]
pub fn the_binder(server: &Server) -> Pid {
    match binders(server)[..] {
        [binder] => binder,
        ref others => panic!("not one binder but {others:?}"),
    }
}

/// `anon_inode:[signalfd]`, `socket:[1234]` without its number, or a path.
pub fn kinds(pid: Pid) -> Vec<String> {
    let mut kinds: Vec<String> = proc::descriptors(pid)
        .into_iter()
        .filter(|(number, _)| *number > 2)
        .map(|(_, target)| match target.split_once(":[") {
            Some(("socket", _)) => "socket".to_owned(),
            _ => target,
        })
        .collect();
    kinds.sort();
    kinds
}

#[test]
fn root_without_an_ordinary_user_is_refused() {
    if !needs_root() || original_differs("it runs workers as root") {
        return;
    }
    for options in [&[][..], &["--user=root"], &["--user=0"]] {
        let finished = Server::setup().as_root().options(options).run();
        assert_eq!(finished.status.code(), Some(2), "{options:?}");
        assert!(finished.log.contains("--user"), "{}", finished.log);
        assert_eq!(finished.server.started(), [], "{options:?}");
    }
}

#[test]
fn the_supervisor_of_root_has_no_privilege_left() {
    if !can_drop() || !needs_program("setpriv") {
        return;
    }
    let port = format!("--port=127.0.0.1:{}", ports::low());
    let worker = programs::worker();
    let arguments = [
        "--user=nobody",
        &port,
        "--",
        text(&worker),
        "--report=report",
    ];
    // The launcher's groups and capabilities of every kind.
    let before = [
        "setpriv",
        "--groups=0,4242",
        "--inh-caps=+setuid,+chown,+net_bind_service",
        "--ambient-caps=+setuid,+chown,+net_bind_service",
    ];
    let launched = launch(&before, &arguments);
    let report = launched.wait_for_report();
    assert_has_no_privilege(&status(launched.pid()));
    assert_eq!(status(launched.pid()).threads, 1);
    assert_has_no_privilege(&report.status);
}

#[test]
fn nobody_of_the_same_user_can_trace_the_supervisor() {
    if !can_drop() {
        return;
    }
    let server = for_nobody().start();
    let worker = server.wait_for_service(1);
    assert!(!is_dumpable(server.pid()));
    // The worker is an ordinary process of its user.
    assert!(is_dumpable(worker.pid));
}

#[test]
fn the_supervisor_has_its_files_and_listeners_open_and_nothing_else() {
    if !can_drop() {
        return;
    }
    let setup = for_nobody().pid_file().status_file().leak(3).leak(9);
    let folder = setup.folder().to_owned();
    let server = setup.port(ports::low()).port(ports::tcp()).start();
    server.wait_for_service(1);
    server.wait_until("the status file is there", |it| it.status_file().is_some());
    let file = |name: &str| text(&folder.join(name)).to_owned();
    let mut expected = ["pid", "pid.json", "status", "status.json"]
        .map(file)
        .to_vec();
    expected.extend(["anon_inode:[signalfd]", "socket", "socket"].map(str::to_owned));
    // The program that would be started again.
    expected.push(text(&programs::worker()).to_owned());
    expected.sort();
    // A status file that is just being replaced is open twice.
    server.wait_until("nothing else is open", |it| kinds(it.pid()) == expected);
}

#[test]
fn the_launchers_signals_and_closed_descriptors_do_not_reach_the_supervisor() {
    if !can_drop() {
        return;
    }
    let mut setup = for_nobody().port(ports::low());
    for fd in 0..=2 {
        setup = setup.close(fd);
    }
    for signal in [Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGWINCH] {
        setup = setup.ignore(signal);
    }
    for signal in [Signal::SIGTERM, Signal::SIGALRM, Signal::SIGWINCH] {
        setup = setup.block(signal);
    }
    let server = setup.start();
    let worker = server.wait_for_service(1);
    let supervisor = status(server.pid());
    assert_eq!(
        signals(supervisor.ignored),
        [
            Signal::SIGPIPE,
            Signal::SIGALRM,
            Signal::SIGSTKFLT,
            Signal::SIGCONT,
            Signal::SIGXFSZ,
            Signal::SIGVTALRM,
            Signal::SIGPROF,
            Signal::SIGIO,
            Signal::SIGPWR,
        ]
    );
    // Those that it reads from a descriptor are blocked by itself.
    for signal in signals(supervisor.blocked) {
        assert!(
            ![Signal::SIGALRM, Signal::SIGWINCH].contains(&signal),
            "{signal}"
        );
    }
    let standard = |pid: Pid| {
        let open = proc::descriptors(pid);
        (0..=2).map(|fd| open.get(&fd).cloned()).collect::<Vec<_>>()
    };
    let null = vec![Some("/dev/null".to_owned()); 3];
    assert_eq!(standard(server.pid()), null);
    assert_eq!(standard(worker.pid), null);
}

#[test]
fn a_worker_of_any_generation_has_no_privilege_and_nothing_but_its_listeners() {
    if !can_drop() {
        return;
    }
    let port = ports::low();
    let mut setup = for_nobody().port(port).leak(7).leak(200);
    for signal in [Signal::SIGTERM, Signal::SIGUSR1] {
        setup = setup.block(signal);
    }
    for signal in [Signal::SIGHUP, Signal::SIGQUIT] {
        setup = setup.ignore(signal);
    }
    let server = setup.worker(["--graceful"]).start();
    let open = [0, 1, 2, 3];
    let first = server.ask(port);
    assert_is_a_proper_worker(&first, &open);
    server.restart();
    let second = server.ask(port);
    assert_eq!((first.generation, second.generation), (Some(1), Some(2)));
    assert_is_a_proper_worker(&second, &open);
    kill(Pid::from_raw(second.pid), Signal::SIGKILL).expect("cannot kill the worker");
    server.wait_for_service(3);
    let third = server.ask(port);
    assert_eq!(third.generation, Some(3));
    assert_is_a_proper_worker(&third, &open);
}

#[test]
fn a_worker_beside_a_resident_binder_has_no_privilege_and_nothing_but_its_listeners() {
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
    for generation in [1, 2] {
        server.wait_for_service(generation);
        let report = server.ask(Path::new(&path));
        assert_eq!(report.generation, Some(generation));
        assert_is_a_proper_worker(&report, &[0, 1, 2, 3, 4]);
        server.restart();
    }
    assert_has_no_privilege(&status(server.pid()));
}

#[test]
fn a_worker_cannot_gain_a_privilege_by_a_setuid_program() {
    if !can_drop() || !needs_program("setpriv") {
        return;
    }
    let folder = Folder::new(Uid::from_raw(0), Gid::from_raw(0));
    let worker = install(&programs::worker(), folder.path(), "worker");
    set_mode(&worker, 0o6755);
    let port = ports::tcp();
    // Without us it works, on this file system.
    let alone = launch_program(&AS_NOBODY, &worker, &["--report=report"]);
    assert_eq!(alone.wait_for_report().status.uids[1], 0);
    let server = for_nobody().port(port).program([text(&worker)]).start();
    assert_has_no_privilege(&server.ask(port).status);
}

#[test]
fn only_ports_leave_no_binder_behind() {
    if !can_drop() {
        return;
    }
    let setup = for_nobody().port(ports::low()).port(ports::tcp());
    let fifo = setup.folder().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o666))
        .expect("cannot make a fifo");
    let server = setup.worker([format!("--hold={}", fifo.display())]).start();
    // It is held there: whatever else is a child of start_server was there before it.
    let worker = server.wait_for_start(1);
    assert_eq!(proc::children(server.pid()), [worker.pid]);
}

#[test]
fn a_resident_binder_has_no_capability_and_nothing_open_but_its_directory() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let server = for_nobody()
        .port(ports::low())
        .option(format!("--path={path},user=4242"))
        .leak(5)
        .start();
    server.wait_for_service(1);
    let binder = the_binder(&server);
    let status = status(binder);
    assert_eq!((status.uids, status.gids), ([0; 4], [0; 4]));
    assert!(status.groups.is_empty(), "{status:?}");
    assert_eq!(status.capabilities(), NONE);
    assert!(status.no_new_privs);
    // The sandbox of the time when it made the socket, and a narrower one.
    assert_eq!((status.seccomp, status.seccomp_filters), (2, 2));
    let mut open = proc::descriptors(binder);
    let channel = open.remove(&0).expect("no channel");
    assert!(channel.starts_with("socket:["), "{channel}");
    assert_eq!(open.remove(&1).as_deref(), Some("/dev/null"));
    let stderr = open.remove(&2).expect("no standard error");
    assert_eq!(stderr, text(&server.folder().join("log")));
    let others: BTreeSet<&str> = open.values().map(String::as_str).collect();
    assert_eq!(others, BTreeSet::from([text(folder.path()), &path]));
    assert!(proc::environment(binder).is_empty());
    assert_eq!(
        fs::read_link(format!("/proc/{binder}/cwd")).expect("no cwd"),
        Path::new("/")
    );
}

#[test]
fn the_status_file_says_what_is_in_force() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let server = for_nobody()
        .port(ports::low())
        .option(format!("--path={}", folder.join("socket")))
        .status_file()
        .start();
    server.wait_for_service(1);
    let json = server.folder().join("status.json");
    let text = fs::read_to_string(json).expect("cannot read the status file");
    let status: serde_json::Value = serde_json::from_str(&text).expect("not JSON");
    let whole = |makes| serde_json::json!({"makes": makes, "seccomp": true, "landlock": 6});
    let expected = serde_json::json!({
        "supervisor": {"no_new_privs": true, "bounding_set_empty": true},
        "binders": [whole("ports"), whole("paths")],
    });
    assert_eq!(status["confinement"], expected);
    let mut ordinary = Server::setup().port(ports::tcp()).status_file().start();
    ordinary.wait_for_service(1);
    let json = ordinary.folder().join("status.json");
    let text = fs::read_to_string(json).expect("cannot read the status file");
    let status: serde_json::Value = serde_json::from_str(&text).expect("not JSON");
    let expected = serde_json::json!({
        "supervisor": {"no_new_privs": false, "bounding_set_empty": false},
        "binders": [whole("ports")],
    });
    assert_eq!(status["confinement"], expected);
    assert!(ordinary.stop().success());
}

#[test]
fn a_resident_binder_ignores_signals_and_removes_the_socket_at_the_end() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let mut server = for_nobody().option(format!("--path={path}")).start();
    server.wait_for_service(1);
    let binder = the_binder(&server);
    let ignored = signals(status(binder).ignored);
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        assert!(
            ignored.contains(&signal),
            "{signal} is not among {ignored:?}"
        );
        kill(binder, signal).expect("cannot send a signal");
    }
    assert!(Path::new(&path).exists());
    assert!(server.stop().success());
    assert!(!Path::new(&path).exists());
    assert!(!proc::alive(binder));
}

#[test]
fn a_resident_binder_removes_the_socket_when_the_supervisor_was_killed() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let server = for_nobody().option(format!("--path={path}")).start();
    server.wait_for_service(1);
    let binder = the_binder(&server);
    server.signal(Signal::SIGKILL);
    let evidence = || server.log();
    wait::until("the binder ended", evidence, || {
        (!proc::alive(binder)).then_some(())
    });
    assert!(!Path::new(&path).exists());
}

#[test]
fn a_resident_binder_leaves_what_has_replaced_the_socket() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let mut server = for_nobody().option(format!("--path={path}")).start();
    server.wait_for_service(1);
    fs::remove_file(&path).expect("cannot remove the socket");
    fs::write(&path, "precious").expect("cannot write");
    assert!(server.stop().success());
    assert_eq!(fs::read_to_string(&path).expect("it is gone"), "precious");
}

#[test]
fn a_server_whose_binder_was_killed_says_so_and_serves_on() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let mut server = for_nobody().option(format!("--path={path}")).start();
    server.wait_for_service(1);
    kill(the_binder(&server), Signal::SIGKILL).expect("cannot kill the binder");
    server.wait_for_log("the binder died; its socket files will not be removed at exit");
    server.restart();
    // Until then the old one may take a request with it.
    server.wait_for_log("died, status:15");
    assert_eq!(client::ask(Path::new(&path)).generation, Some(2));
    assert!(server.stop().success());
}

#[test]
fn a_socket_in_a_directory_of_the_user_is_made_by_the_user() {
    if !can_drop() {
        return;
    }
    let setup = for_nobody().path("socket");
    let path = setup.folder().join("socket");
    let mut server = setup.start();
    let worker = server.wait_for_service(1);
    assert_eq!(fs::metadata(&path).expect("no socket").uid(), NOBODY);
    assert_eq!(proc::children(server.pid()), [worker.pid]);
    assert!(server.stop().success());
    assert!(!path.exists());
}

#[test]
fn a_socket_in_a_directory_of_root_belongs_to_root() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let server = for_nobody().option(format!("--path={path}")).start();
    server.wait_for_service(1);
    let socket = fs::metadata(&path).expect("no socket");
    assert!(socket.file_type().is_socket());
    assert_eq!((socket.uid(), socket.gid()), (0, 0));
}

#[test]
fn root_makes_no_socket_in_a_directory_of_another_user() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let foreign = folder.path().join("foreign");
    make_directory(&foreign, 0o755, FOREIGN);
    let path = foreign.join("socket");
    let objection = format!("{} belongs to an ordinary user", foreign.display());
    assert_path_is_refused(&path, &objection);
    assert_is_empty(&foreign);
}

#[test]
fn root_makes_no_socket_in_a_directory_that_others_can_write() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    for mode in [0o775, 0o757, 0o1757] {
        let open = folder.path().join(format!("{mode:o}"));
        make_directory(&open, mode, 0);
        // Below it: there the user cannot write itself.
        let below = open.join("below");
        make_directory(&below, 0o755, 0);
        let objection = format!(
            "{} is writable by users other than its owner",
            open.display()
        );
        assert_path_is_refused(&below.join("socket"), &objection);
        assert_is_empty(&below);
    }
}

/// By the binder and by the user: the reason against the first is the hint.
#[track_caller]
fn assert_path_is_refused(path: &Path, objection: &str) {
    let finished = for_nobody()
        .option(format!("--path={}", path.display()))
        .run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    let error = format!(
        "start_server: cannot listen on --path={}: Permission denied\n\
         hint: root makes sockets only where nobody else can write, but {objection}; \
         elsewhere the directory must be writable by --user\n",
        path.display()
    );
    assert!(finished.log.ends_with(&error), "{}", finished.log);
    assert_eq!(finished.server.started(), []);
}

#[track_caller]
fn assert_is_empty(directory: &Path) {
    let mut entries = fs::read_dir(directory).expect("cannot read the directory");
    assert!(entries.next().is_none());
}

#[test]
fn the_mode_and_owner_of_a_socket_of_root_are_as_asked_whatever_the_umask_is() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    for (number, umask) in [0, 0o022, 0o177].into_iter().enumerate() {
        for (attributes, expected) in [
            ("", (0o777, 0, 0)),
            (",mode=0662", (0o662, 0, 0)),
            (",mode=0,user=4242,group=4343", (0, 4242, 4343)),
            (",group=nogroup,mode=660", (0o660, 0, NOBODY)),
            (",user=nobody", (0o777, NOBODY, 0)),
        ] {
            let path = folder.join(&format!("{number}{}", expected.0));
            let server = for_nobody()
                .umask(umask)
                .option(format!("--path={path}{attributes}"))
                .start();
            let worker = server.wait_for_service(1);
            let socket = fs::metadata(&path).expect("no socket");
            let found = (socket.mode() & 0o7777, socket.uid(), socket.gid());
            assert_eq!(found, expected, "{attributes:?} with umask {umask:o}");
            assert_eq!(status(worker.pid).umask, umask);
        }
    }
}

#[test]
fn a_link_of_root_is_followed() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let real = folder.path().join("real");
    make_directory(&real, 0o755, 0);
    let absolute = folder.path().join("absolute");
    let relative = folder.path().join("relative");
    symlink(&real, &absolute).expect("cannot make a link");
    symlink("./real/../real", &relative).expect("cannot make a link");
    for link in [absolute, relative] {
        let mut server = for_nobody()
            .option(format!("--path={}", link.join("socket").display()))
            .start();
        server.wait_for_service(1);
        let socket = fs::metadata(real.join("socket")).expect("no socket");
        assert_eq!(socket.uid(), 0, "{}", link.display());
        assert!(server.stop().success());
        assert_is_empty(&real);
    }
}

#[test]
fn the_link_of_var_run_is_followed() {
    if !can_drop() {
        return;
    }
    if !fs::read_link("/var/run").is_ok_and(|it| it == Path::new("/run")) {
        e2e::skip::missing("needs /var/run to be a link to /run");
        return;
    }
    let folder = RootFolder::new();
    let path = format!("/var{}", folder.join("socket"));
    let server = for_nobody().option(format!("--path={path}")).start();
    let report = server.ask(Path::new(&path));
    assert_eq!(report.listeners[0].name, path);
    assert_eq!(fs::metadata(&path).expect("no socket").uid(), 0);
}

#[test]
fn a_link_of_an_ordinary_user_is_not_followed() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let target = folder.path().join("target");
    make_directory(&target, 0o755, 0);
    // In a directory of root, which somebody has given away with what was in it.
    let link = folder.path().join("link");
    symlink(&target, &link).expect("cannot make a link");
    lchown(&link, Some(FOREIGN), None).expect("cannot give the link away");
    let objection = format!("{} is a symbolic link of an ordinary user", link.display());
    assert_path_is_refused(&link.join("socket"), &objection);
    // In a directory of the user, even where root made it.
    let own = folder.path().join("own");
    make_directory(&own, 0o755, NOBODY);
    symlink(&target, own.join("link")).expect("cannot make a link");
    let objection = format!("{} belongs to an ordinary user", own.display());
    assert_path_is_refused(&own.join("link/socket"), &objection);
    assert_is_empty(&target);
}

#[test]
fn a_link_at_the_path_itself_is_left_alone_by_root() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let target = folder.join("target");
    symlink(&target, &path).expect("cannot make a link");
    let finished = for_nobody().option(format!("--path={path}")).run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    let line = format!(
        "start_server: cannot listen on --path={path}: it exists and is a symbolic link, not a socket"
    );
    assert!(
        finished.log.lines().any(|it| it == line),
        "{}",
        finished.log
    );
    assert_eq!(
        fs::read_link(&path).expect("it is gone"),
        Path::new(&target)
    );
    assert!(!Path::new(&target).exists());
}

#[test]
fn a_client_of_a_socket_of_root_sees_the_user_as_its_peer() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let in_root = folder.join("socket");
    let setup = for_nobody().option(format!("--path={in_root}")).path("own");
    let own = setup.folder().join("own");
    let server = setup.start();
    server.wait_for_service(1);
    for path in [Path::new(&in_root), &own] {
        let client = UnixStream::connect(path).expect("cannot connect");
        let peer = getsockopt(&client, sockopt::PeerCredentials).expect("no credentials");
        assert_eq!(
            (peer.uid(), peer.gid()),
            (NOBODY, NOBODY),
            "{}",
            path.display()
        );
    }
}

#[test]
fn an_ordinary_user_has_nothing_to_drop_and_runs_the_same() {
    if original_differs("its processes keep the ambient capabilities") {
        return;
    }
    let port = ports::tcp();
    let server = Server::setup().port(port).start();
    let report = server.ask(port);
    let before = status(nix::unistd::getpid());
    for status in [&report.status, &status(server.pid())] {
        let own = if Uid::effective().is_root() {
            NOBODY
        } else {
            before.uids[0]
        };
        assert_eq!(status.uids, [own; 4]);
        assert_eq!(status.capabilities(), [0, 0, 0, before.bounding, 0]);
        // A worker may run setuid programs, as it could without start_server.
        assert_eq!(status.no_new_privs, before.no_new_privs);
    }
    assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3]);
    assert_eq!(proc::children(server.pid()), [Pid::from_raw(report.pid)]);
}

#[test]
fn ambient_capabilities_bind_a_low_port_and_do_not_reach_workers() {
    if !can_drop() || !needs_program("setpriv") {
        return;
    }
    let option = format!("--port=127.0.0.1:{}", ports::low());
    let worker = programs::worker();
    let arguments = [&option, "--", text(&worker), "--report=report"];
    let mut before = AS_NOBODY.to_vec();
    before.extend([
        "--inh-caps=+net_bind_service",
        "--ambient-caps=+net_bind_service",
    ]);
    let launched = launch(&before, &arguments);
    let report = launched.wait_for_report();
    assert_eq!(
        report.socket(option.trim_start_matches("--port=")).family,
        "inet"
    );
    for status in [&report.status, &status(launched.pid())] {
        assert_is_uid_nobody(status);
        let [inheritable, permitted, effective, _, ambient] = status.capabilities();
        assert_eq!([inheritable, permitted, effective, ambient], [0; 4]);
    }
    // The test knows how to give some: the same port cannot be had without.
    let mut without = launch(&AS_NOBODY, &arguments);
    assert_eq!(without.wait_exit(), 1, "{}", without.log());
}

#[track_caller]
fn assert_is_uid_nobody(status: &Status) {
    assert_eq!((status.uids, status.gids), ([NOBODY; 4], [NOBODY; 4]));
}

#[test]
fn a_setuid_or_setgid_bit_on_start_server_is_refused() {
    if !can_drop() || !needs_program("setpriv") {
        return;
    }
    let folder = Folder::new(Uid::from_raw(0), Gid::from_raw(0));
    let program = install(&programs::start_server(), folder.path(), "start_server");
    install(&programs::binder(), folder.path(), "start_server-binder");
    let option = format!("--port=127.0.0.1:{}", ports::low());
    // A client sends signals and reads files, and the worker of a self-test does whatever its standard input says.
    let all: [&[&str]; 6] = [
        &[&option, "--", "true"],
        &["--stop", "--pid-file=pid"],
        &["--restart", "--pid-file=pid"],
        &["--reopen", "--pid-file=pid"],
        &["--self-test"],
        &["--self-test-worker"],
    ];
    for (mode, arguments) in [0o4755, 0o2755]
        .into_iter()
        .flat_map(|mode| all.map(|it| (mode, it)))
    {
        set_mode(&program, mode);
        let mut launched = launch_program(&AS_NOBODY, &program, arguments);
        let what = format!("{mode:o} {arguments:?}: {}", launched.log());
        assert_eq!(launched.wait_exit(), 1, "{what}");
        assert_eq!(
            launched.log(),
            "start_server: cannot start with a setuid or setgid bit: the launcher's user is not trusted\n\
             hint: remove the bit with chmod u-s,g-s\n",
            "{what}"
        );
    }
}

/// As root without these capabilities, on a port that anybody may bind.
fn launch_without(capabilities: &[&str], options: &[&str]) -> Launched {
    let less = capabilities.iter().map(|one| format!("-{one}"));
    let less = less.collect::<Vec<_>>().join(",");
    let (bounding, inheritable) = (
        format!("--bounding-set={less}"),
        format!("--inh-caps={less}"),
    );
    let port = format!("--port=127.0.0.1:{}", ports::tcp());
    let worker = programs::worker();
    let mut arguments = vec!["--user=nobody", &port];
    arguments.extend(options);
    arguments.extend(["--", text(&worker), "--report=report"]);
    launch(&["setpriv", &bounding, &inheritable], &arguments)
}

const BOUNDING_SET_KEPT: &str = "start_server: cannot empty the capability bounding set: CAP_SETPCAP is missing; \
    no_new_privs still keeps workers from gaining privileges";

#[test]
fn a_bounding_set_that_cannot_be_emptied_is_said_once() {
    if !can_drop() || !needs_program("setpriv") {
        return;
    }
    let launched = launch_without(&["setpcap"], &[]);
    for status in [&launched.wait_for_report().status, &status(launched.pid())] {
        assert_is_nobody(status);
        assert!(status.no_new_privs);
        let [inheritable, permitted, effective, bounding, ambient] = status.capabilities();
        assert_eq!([inheritable, permitted, effective, ambient], [0; 4]);
        // Else this test has tested nothing.
        assert_ne!(bounding, 0);
    }
    let log = launched.log();
    let said = log.lines().filter(|line| line.contains("bounding set"));
    assert_eq!(said.collect::<Vec<_>>(), [BOUNDING_SET_KEPT]);
}

#[test]
fn strict_refuses_a_bounding_set_that_cannot_be_emptied() {
    if !can_drop() || !needs_program("setpriv") {
        return;
    }
    let mut launched = launch_without(&["setpcap"], &["--strict"]);
    assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
    assert!(
        launched.log().contains("CAP_SETPCAP is missing"),
        "{}",
        launched.log()
    );
    assert!(
        !launched.log().contains("starting new worker"),
        "{}",
        launched.log()
    );
}

#[test]
fn strict_is_content_where_nothing_is_missing() {
    if !can_drop() {
        return;
    }
    let server = for_nobody().option("--strict").port(ports::low()).start();
    server.wait_for_service(1);
    assert_eq!(server.count_in_log("cannot"), 0, "{}", server.log());
}

#[test]
fn root_that_cannot_change_its_user_is_refused() {
    if !can_drop() || !needs_program("setpriv") {
        return;
    }
    for capability in ["setuid", "setgid"] {
        let mut launched = launch_without(&[capability], &[]);
        assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
        let log = launched.log();
        assert!(
            log.contains(&format!(
                "root lacks CAP_{} here",
                capability.to_uppercase()
            )),
            "{log}"
        );
        assert!(!log.contains("starting"), "{log}");
    }
}

#[test]
fn a_low_port_is_bound_for_the_user_and_free_at_the_end() {
    if !can_drop() {
        return;
    }
    let port = ports::low();
    let mut server = for_nobody().port(port).start();
    let report = server.ask(port);
    assert_eq!(
        report.socket(&format!("127.0.0.1:{port}")).address,
        format!("127.0.0.1:{port}")
    );
    assert!(server.stop().success());
    TcpListener::bind(("127.0.0.1", port)).expect("the port is still bound");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("cannot set the mode");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
