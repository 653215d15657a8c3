//! A start by root: what the worker finds that is not root's any more, and users that are hardly there.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use e2e::server::Finished;
use e2e::server::Setup;
use e2e::skip::{self, needs_program, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Report, Server, ports, programs};
use nix::fcntl::OFlag;
use nix::pty::openpty;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Group, Uid, User, fchown, mkfifo, pipe2};

use crate::launch::{AS_NOBODY, RootFolder, launch, make_directory, ordinary_folder};

/// What root has in its environment after a login.
const OF_ROOT: [(&str, &str); 7] = [
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("SHELL", "/bin/rootshell"),
    ("MAIL", "/var/mail/root"),
    ("XDG_RUNTIME_DIR", "/run/user/0"),
    ("XDG_CONFIG_HOME", "/root/.config"),
];

fn can_drop() -> bool {
    needs_root() && !original_differs("root needs --user, which it does not have")
}

/// A server with the environment of a root that has logged in, and a variable that is nobody's business.
fn launched_after_login(setup: Setup) -> Setup {
    let setup = setup.env("TZ", "UTC");
    OF_ROOT
        .iter()
        .fold(setup, |setup, (name, value)| setup.env(name, value))
}

/// Of the variables in question, those that there are.
fn login_of(environment: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    let names = OF_ROOT.map(|(name, _)| name);
    environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| names.contains(name))
        .collect()
}

/// What the log command has found in its environment.
fn of_log_command(server: &Server) -> BTreeMap<String, String> {
    let text = server.wait_for("the log command tells its environment", |server| {
        let text = fs::read_to_string(server.folder().join("of-log-command")).ok()?;
        text.contains("PATH=").then_some(text)
    });
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

const TELLS_ENVIRONMENT: &str = "--log-file=| env > of-log-command.new && mv of-log-command.new of-log-command; exec cat >/dev/null";

#[test]
fn a_worker_of_root_is_at_home_where_its_user_is() {
    if !can_drop() {
        return;
    }
    let nobody = User::from_name("nobody")
        .expect("getpwnam")
        .expect("nobody");
    let home = nobody.dir.to_str().expect("UTF-8");
    let shell = nobody.shell.to_str().expect("UTF-8");
    let port = ports::tcp();
    for user in ["nobody", "65534"] {
        let setup = launched_after_login(Server::setup().as_root());
        let server = setup
            .port(port)
            .option(format!("--user={user}"))
            .option(TELLS_ENVIRONMENT)
            .start();
        let expected = BTreeMap::from([
            ("HOME", home),
            ("USER", "nobody"),
            ("LOGNAME", "nobody"),
            ("SHELL", shell),
        ]);
        let report = server.ask(port);
        assert_eq!(login_of(&report.environment), expected);
        assert_eq!(report.environment["TZ"], "UTC");
        let path = std::env::var("PATH").expect("no PATH");
        assert_eq!(report.environment["PATH"], path);
        assert_eq!(login_of(&of_log_command(&server)), expected);
    }
}

#[test]
fn with_keep_env_a_worker_of_root_has_the_environment_of_root() {
    if !can_drop() {
        return;
    }
    let port = ports::tcp();
    let server = launched_after_login(Server::setup().as_root())
        .port(port)
        .options(["--user=nobody", "--keep-env", TELLS_ENVIRONMENT])
        .start();
    let expected = BTreeMap::from(OF_ROOT);
    assert_eq!(login_of(&server.ask(port).environment), expected);
    assert_eq!(login_of(&of_log_command(&server)), expected);
}

#[test]
fn an_ordinary_user_hands_its_environment_on() {
    let port = ports::tcp();
    let server = launched_after_login(Server::setup()).port(port).start();
    let report = server.ask(port);
    assert_eq!(login_of(&report.environment), BTreeMap::from(OF_ROOT));
}

#[test]
fn the_directory_of_variables_holds_over_the_user_database() {
    if !can_drop() {
        return;
    }
    let port = ports::tcp();
    let setup = launched_after_login(Server::setup().as_root());
    let directory = setup.folder().join("env");
    fs::create_dir(&directory).expect("cannot make a directory");
    fs::write(directory.join("HOME"), "/srv/app\n").expect("cannot write a file");
    fs::write(directory.join("XDG_CACHE_HOME"), "/srv/cache\n").expect("cannot write a file");
    let server = setup
        .port(port)
        .option("--user=nobody")
        .option(format!("--envdir={}", directory.display()))
        .start();
    let Report { environment, .. } = server.ask(port);
    assert_eq!(environment["HOME"], "/srv/app");
    assert_eq!(environment["XDG_CACHE_HOME"], "/srv/cache");
    assert_eq!(environment["USER"], "nobody");
}

/// The two lines that say why the program was not executed.
#[track_caller]
fn assert_not_executed(finished: &Finished, lines: [&str; 2]) {
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    let said: Vec<&str> = finished.log.lines().collect();
    let found = said.windows(2).any(|two| two == lines);
    assert!(found, "{lines:#?} are not in\n{}", finished.log);
}

#[test]
fn a_directory_of_path_that_is_closed_to_the_user_is_named() {
    if original_differs("it says Permission denied without the directory") || !needs_root() {
        return;
    }
    // As /root is where nvm, rbenv and perlbrew install, while root's own `which` finds the program.
    let closed = RootFolder::new();
    let bin = closed.path().join("bin");
    make_directory(&bin, 0o755, 0);
    symlink(programs::worker(), bin.join("only-here")).expect("cannot make a link");
    fs::set_permissions(closed.path(), PermissionsExt::from_mode(0o700)).expect("cannot close it");
    let path = format!("/usr/bin:{}:/bin", bin.display());
    let cannot = |name: &str| format!("start_server: cannot execute {name}: Permission denied");
    let hint = format!(
        "hint: the program may be in or below directories that are closed to this user: {}; PATH is {path}",
        closed.path().display()
    );
    // By the launcher's PATH, and by one that the workers alone have.
    let by_launcher = |setup: Setup| setup.env("PATH", &path);
    let by_directory = |setup: Setup| {
        let directory = setup.folder().join("env");
        fs::create_dir(&directory).expect("cannot make a directory");
        fs::write(directory.join("PATH"), format!("{path}\n")).expect("cannot write a file");
        setup.option(format!("--envdir={}", directory.display()))
    };
    for program in ["only-here", "nowhere"] {
        let root = || Server::setup().as_root().option("--user=nobody");
        let finished = by_launcher(root()).program([program]).run();
        assert_not_executed(&finished, [&cannot(program), &hint]);
        let finished = by_directory(root()).program([program]).run();
        assert_not_executed(&finished, [&cannot(program), &hint]);
        let ordinary = Server::setup().program([program]);
        let finished = by_launcher(ordinary).run();
        assert_not_executed(&finished, [&cannot(program), &hint]);
    }
    // What is in an open directory runs, whatever is closed before it.
    let open = ordinary_folder();
    symlink(programs::worker(), open.path().join("only-here")).expect("cannot make a link");
    let path = format!("{}:{}", bin.display(), open.path().display());
    let port = ports::tcp();
    let server = Server::setup()
        .as_root()
        .env("PATH", &path)
        .option("--user=nobody")
        .port(port)
        .program(["only-here"])
        .start();
    assert_eq!(server.ask(port).generation, Some(1));
}

#[test]
fn a_program_that_is_in_no_directory_of_an_open_path_does_not_exist() {
    for missing in ["/missing", "/usr/bin/env"] {
        let path = format!("{missing}:/usr/bin:/bin");
        let setup = Server::setup().env("PATH", &path);
        let finished = setup.program(["missing-program"]).run();
        assert!(
            finished.log.contains("No such file or directory"),
            "{}",
            finished.log
        );
    }
}

// Standard output and error by their paths.

/// A program that opens both as h2o and nginx do in a container, and goes on as the fixture.
fn opens_streams(setup: Setup) -> Setup {
    let journal = setup.folder().join("journal");
    let script = format!(
        "echo to stdout by path >/dev/stdout && echo to stderr by path >/dev/stderr || exit 1; \
         exec {} --journal={}",
        programs::worker().display(),
        journal.display()
    );
    setup.program(["/bin/sh", "-c", &script])
}

/// A pipe as a container engine or a shell of root's makes it.
fn pipe() -> (File, File) {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).expect("cannot make a pipe");
    (reader.into(), writer.into())
}

#[test]
fn a_worker_of_root_can_open_the_pipes_of_its_launcher_by_their_paths() {
    if !can_drop() {
        return;
    }
    let port = ports::tcp();
    let (mut reader, writer) = pipe();
    assert_eq!(writer.metadata().expect("fstat").uid(), 0);
    let kept = writer.try_clone().expect("cannot duplicate a descriptor");
    let setup = Server::setup().as_root().port(port).output(writer);
    let mut server = opens_streams(setup)
        .options(["--user=nobody", "--start-limit=1"])
        .start();
    assert_eq!(server.wait_for_answer_or_exit(port), None);
    // To write, and nothing else: what others write there is not theirs to read.
    let there = kept.metadata().expect("fstat");
    assert_eq!((there.uid(), there.mode() & 0o7777), (0, 0o622));
    drop(kept);
    assert!(server.stop().success());
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("cannot read");
    for stream in ["stdout", "stderr"] {
        let line = format!("to {stream} by path");
        assert!(text.lines().any(|one| one == line), "{text}");
    }
}

#[test]
fn nothing_of_root_but_a_pipe_without_a_name_is_opened_to_the_user() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(folder.join("log"))
        .expect("cannot make a file");
    let fifo = folder.join("fifo");
    mkfifo(fifo.as_str(), Mode::from_bits_truncate(0o600)).expect("mkfifo");
    let fifo = OpenOptions::new().read(true).write(true).open(&fifo);
    let terminal = openpty(None, None).expect("cannot open a terminal");
    let (_other_end, socket) = UnixStream::pair().expect("cannot make a socket");
    let (_reader, of_another) = pipe();
    fchown(&of_another, Some(Uid::from_raw(4242)), None).expect("fchown");
    for output in [
        log,
        fifo.expect("cannot open the fifo"),
        File::from(terminal.slave),
        File::from(OwnedFd::from(socket)),
        of_another,
    ] {
        let look = |file: &File| {
            let there = file.metadata().expect("fstat");
            (there.uid(), there.gid(), there.mode())
        };
        let before = look(&output);
        let kept = output.try_clone().expect("cannot duplicate a descriptor");
        let server = Server::setup()
            .as_root()
            .option("--user=nobody")
            .output(output)
            .start();
        server.wait_for_service(1);
        assert_eq!(look(&kept), before);
    }
}

#[test]
fn a_program_that_cannot_open_its_streams_has_a_hint_with_the_remedy() {
    if !needs_root() || original_differs("it has no hints") {
        return;
    }
    let folder = RootFolder::new();
    let closed = |name: &str| {
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(folder.join(name))
            .expect("cannot make a file")
    };
    let hint = "hint: if the program opens /dev/stdout or /dev/stderr by path: this user cannot; \
                with --log-file='| cat' it can";
    let count = |name: &str| {
        let text = fs::read_to_string(folder.join(name)).expect("cannot read the log");
        text.lines().filter(|line| *line == hint).count()
    };
    let of_root = || Server::setup().as_root().option("--user=nobody");
    for (name, setup) in [("root", of_root()), ("ordinary", Server::setup())] {
        let setup = setup.option("--start-limit=2").interval("0.1");
        let finished = opens_streams(setup).output(closed(name)).run();
        assert_eq!(finished.status.code(), Some(1));
        assert_eq!(count(name), 1, "{name}");
    }
    // What it says helps.
    let port = ports::tcp();
    let setup = of_root()
        .port(port)
        .option("--start-limit=1")
        .option("--log-file=| cat");
    let mut server = opens_streams(setup).output(closed("helps")).start();
    assert_eq!(server.wait_for_answer_or_exit(port), None);
    // Where the streams can be opened, a program that fails has no such hint.
    let finished = Server::setup()
        .option("--start-limit=1")
        .worker(["--exit=1"])
        .run();
    assert!(
        !finished.log.contains("hint: a program"),
        "{}",
        finished.log
    );
}

// Users that are hardly there.

/// Neither a user nor a group.
const NUMBER: u32 = 12345;

fn assert_number_is_free() {
    let user = User::from_uid(Uid::from_raw(NUMBER));
    assert!(matches!(user, Ok(None)), "{user:?}");
    let group = Group::from_gid(Gid::from_raw(NUMBER));
    assert!(matches!(group, Ok(None)), "{group:?}");
}

#[track_caller]
fn assert_is_number(report: &Report) {
    let status = &report.status;
    assert_eq!(status.uids, [NUMBER; 4], "{status:?}");
    assert_eq!(status.gids, [NUMBER; 4], "{status:?}");
    assert_eq!(status.groups, [NUMBER], "{status:?}");
    let expected = BTreeMap::from([
        ("HOME", "/"),
        ("USER", "12345"),
        ("LOGNAME", "12345"),
        ("SHELL", "/bin/sh"),
    ]);
    assert_eq!(login_of(&report.environment), expected);
}

#[test]
fn numbers_without_entries_are_a_user_with_that_group_alone() {
    if !can_drop() {
        return;
    }
    assert_number_is_free();
    let port = ports::low();
    let server = launched_after_login(Server::setup().as_root())
        .owner(NUMBER, NUMBER)
        .port(port)
        .pid_file()
        .options(["--user=12345", "--group=12345"])
        .start();
    assert_is_number(&server.ask(port));
}

#[test]
fn numbers_are_a_user_where_there_is_no_user_database() {
    if !can_drop() || !needs_program("unshare") {
        return;
    }
    // As in a container that holds one program.
    let without_etc = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /etc && export HOME=/root USER=root && chmod 1777 . && exec \"$0\" \"$@\"",
    ];
    let worker = programs::worker();
    let launched = launch(
        &without_etc,
        &[
            "--user=12345",
            "--group=12345",
            "--",
            worker.to_str().expect("UTF-8"),
            "--report=report",
        ],
    );
    assert_is_number(&launched.wait_for_report());
}

#[test]
fn a_number_that_is_nobody_is_refused() {
    if !can_drop() {
        return;
    }
    assert_number_is_free();
    let no_user = "there is no such user";
    // To the kernel the highest number means that nothing changes.
    for (options, line) in [
        (
            &["--user=4294967295", "--group=12345"][..],
            format!("cannot use --user=4294967295: {no_user}"),
        ),
        (
            &["--user=12345", "--group=4294967295"],
            "cannot use --group=4294967295: there is no such group".to_owned(),
        ),
        (
            &["--user=12345"],
            format!("cannot use --user=12345: {no_user}\nhint: add --group=GROUP: "),
        ),
    ] {
        let finished = Server::setup().as_root().options(options).run();
        assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
        assert!(finished.log.contains(&line), "{}", finished.log);
        assert_eq!(finished.server.started(), []);
    }
}

#[test]
fn root_of_a_namespace_with_one_user_hears_how_to_start_instead() {
    if original_differs("root needs --user") || !needs_program("unshare") {
        return;
    }
    let as_root_there = ["unshare", "--user", "--map-root-user"];
    if !can_run(&as_root_there) {
        skip::missing("needs user namespaces");
        return;
    }
    let port = format!("--port=127.0.0.1:{}", ports::tcp());
    let worker = programs::worker();
    let worker = worker.to_str().expect("UTF-8");
    let arguments = [&port, "--", worker, "--report=report"];
    let mut launched = launch(
        &as_root_there,
        &[&["--user=nobody"], &arguments[..]].concat(),
    );
    assert_eq!(launched.wait_exit(), 1);
    let log = launched.log();
    for text in [
        "start_server: cannot drop privileges: ",
        "hint: this user namespace maps only some users",
        "unshare --map-current-user",
    ] {
        assert!(log.contains(text), "{log}");
    }
    assert!(!log.contains("starting new worker"), "{log}");
    // What it says helps.
    let as_user_there = ["unshare", "--user", "--map-current-user"];
    let before = match Uid::effective().is_root() {
        true => [&AS_NOBODY[..], &as_user_there].concat(),
        false => as_user_there.to_vec(),
    };
    let launched = launch(&before, &arguments);
    assert_eq!(launched.wait_for_report().generation, Some(1));
}

fn can_run(before: &[&str]) -> bool {
    Command::new(before[0])
        .args(&before[1..])
        .arg("true")
        .stderr(Stdio::null())
        .status_in_turn()
        .is_ok_and(|status| status.success())
}
