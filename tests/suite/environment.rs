//! `--envdir` and the knobs: what workers find in their environment, and when a change is taken.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use e2e::skip::{needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Report, Server, Setup, client, ports, programs};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// The longest `NAME=VALUE` that the kernel hands to a program.
const LONGEST: usize = 128 * 1024 - 1;

/// The original has no complaints about variables.
fn is_ours() -> bool {
    !original_differs("it leaves out silently what it cannot use")
}

/// A directory for `--envdir` in the folder of this server.
fn directory(setup: &Setup) -> PathBuf {
    let directory = setup.folder().join("env");
    fs::create_dir(&directory).expect("cannot make a directory");
    directory
}

/// As whoever manages such a directory should do it: no reader sees half a file.
fn put(directory: &Path, name: &str, content: impl AsRef<[u8]>) {
    let new = directory.join(".new");
    fs::write(&new, content).expect("cannot write a file");
    fs::rename(&new, directory.join(name)).expect("cannot put it in place");
}

fn remove(directory: &Path, name: &str) {
    fs::remove_file(directory.join(name)).expect("cannot remove a file");
}

fn envdir(directory: &Path) -> String {
    format!("--envdir={}", directory.display())
}

/// A server with one port and an envdir, and that directory.
fn with_envdir(prepare: impl Fn(&Path)) -> (Server, u16, PathBuf) {
    let port = ports::tcp();
    let setup = Server::setup();
    let directory = directory(&setup);
    prepare(&directory);
    let server = setup
        .status_file()
        .port(port)
        .option(envdir(&directory))
        .start();
    server.accepted();
    (server, port, directory)
}

/// The environment of the process as bytes, since a value need not be text.
fn bytes_of(pid: i32, name: &str) -> Option<Vec<u8>> {
    let all = fs::read(format!("/proc/{pid}/environ")).expect("cannot read the environment");
    let prefix = format!("{name}=");
    all.split(|byte| *byte == 0)
        .find_map(|one| one.strip_prefix(prefix.as_bytes()))
        .map(<[u8]>::to_vec)
}

fn variable<'a>(report: &'a Report, name: &str) -> Option<&'a str> {
    report.environment.get(name).map(String::as_str)
}

#[track_caller]
fn assert_said_once(server: &Server, text: &str) {
    assert_eq!(server.count_in_log(text), 1, "{text}\n{}", server.log());
}

#[test]
fn each_generation_gets_the_directory_as_it_is_then() {
    let (server, port, directory) = with_envdir(|directory| {
        put(directory, "KEPT", "kept\n");
        put(directory, "CHANGED", "before\n");
    });
    let first = server.ask(port);
    assert_eq!(variable(&first, "KEPT"), Some("kept"));
    assert_eq!(variable(&first, "CHANGED"), Some("before"));
    assert_eq!(variable(&first, "ADDED"), None);
    put(&directory, "CHANGED", "after\n");
    put(&directory, "ADDED", "added\n");
    server.restart();
    let second = server.ask(port);
    assert_eq!(variable(&second, "KEPT"), Some("kept"));
    assert_eq!(variable(&second, "CHANGED"), Some("after"));
    assert_eq!(variable(&second, "ADDED"), Some("added"));
}

#[test]
fn a_variable_whose_file_is_removed_is_gone_in_the_next_generation() {
    if original_differs("it stays at the value that it had first") {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup();
    let directory = directory(&setup);
    for name in ["OURS", "OF_BOTH"] {
        put(&directory, name, "directory\n");
    }
    let server = setup
        .status_file()
        .port(port)
        .option(envdir(&directory))
        .env("OF_BOTH", "launcher")
        .env("OF_LAUNCHER", "launcher")
        .start();
    server.accepted();
    let first = server.ask(port);
    for name in ["OURS", "OF_BOTH"] {
        assert_eq!(variable(&first, name), Some("directory"));
        remove(&directory, name);
    }
    server.restart();
    let second = server.ask(port);
    assert_eq!(variable(&second, "OURS"), None);
    assert_eq!(variable(&second, "OF_BOTH"), None, "the launcher's is back");
    assert_eq!(variable(&second, "OF_LAUNCHER"), Some("launcher"));
    put(&directory, "OF_BOTH", "again\n");
    server.restart();
    assert_eq!(variable(&server.ask(port), "OF_BOTH"), Some("again"));
}

#[test]
fn the_value_is_the_first_line_without_its_end() {
    let (server, port, _) = with_envdir(|directory| {
        put(directory, "PLAIN", "plain");
        put(directory, "LINE", "line\n");
        put(directory, "LINES", "first\nsecond\n");
        put(directory, "BLANKS", "  blanks \t\n");
        put(directory, "DOS", "dos\r\n");
        put(directory, "BLANK_LINE", "\nsecond\n");
        put(directory, "EMPTY", "");
        put(directory, ".HIDDEN", "hidden\n");
        put(directory, "EQUALS", "a=b=c\n");
        put(directory, "lower-case.name", "any\n");
    });
    let report = server.ask(port);
    let found: BTreeMap<&str, &str> = report
        .environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| {
            ![
                "PATH",
                "E2E_MARK",
                "ENVDIR",
                "SERVER_STARTER_PORT",
                "SERVER_STARTER_GENERATION",
                "SERVER_STARTER_WORKER",
                "SERVER_STARTER_WORKERS",
            ]
            .contains(name)
        })
        .collect();
    assert_eq!(
        found,
        [
            ("PLAIN", "plain"),
            ("LINE", "line"),
            ("LINES", "first"),
            ("BLANKS", "  blanks \t"),
            ("DOS", "dos\r"),
            ("BLANK_LINE", ""),
            ("EQUALS", "a=b=c"),
            ("lower-case.name", "any"),
        ]
        .into()
    );
}

#[test]
fn an_empty_file_leaves_the_launchers_variable_alone() {
    let port = ports::tcp();
    let setup = Server::setup();
    let directory = directory(&setup);
    put(&directory, "NAME", "");
    let server = setup
        .port(port)
        .option(envdir(&directory))
        .env("NAME", "launcher")
        .start();
    assert_eq!(variable(&server.ask(port), "NAME"), Some("launcher"));
}

#[test]
fn any_bytes_but_nul_are_passed_as_they_are() {
    let binary: Vec<u8> = (1..=255).filter(|byte| *byte != b'\n').collect();
    let (server, port, _) = with_envdir(|directory| put(directory, "BINARY", &binary));
    assert_eq!(bytes_of(server.ask(port).pid, "BINARY"), Some(binary));
}

#[test]
fn a_nul_becomes_a_line_break() {
    if original_differs("it cuts the value there") {
        return;
    }
    let (server, port, _) = with_envdir(|directory| put(directory, "TWO", b"one\0two\0\nthree\n"));
    let value = bytes_of(server.ask(port).pid, "TWO").expect("no variable");
    assert_eq!(value, b"one\ntwo\n");
}

#[test]
fn envdir_itself_is_exported() {
    let (server, port, directory) = with_envdir(|_| {});
    let exported = server.ask(port).environment["ENVDIR"].clone();
    assert_eq!(exported, directory.display().to_string());
}

#[test]
fn the_variable_envdir_is_as_good_as_the_option() {
    let port = ports::tcp();
    let setup = Server::setup();
    let directory = directory(&setup);
    put(&directory, "NAME", "value\n");
    let server = setup.port(port).env("ENVDIR", &directory).start();
    assert_eq!(variable(&server.ask(port), "NAME"), Some("value"));
}

#[test]
fn the_option_envdir_holds_over_the_variable() {
    let port = ports::tcp();
    let setup = Server::setup();
    let directory = directory(&setup);
    put(&directory, "NAME", "option\n");
    let another = setup.folder().join("another");
    fs::create_dir(&another).expect("cannot make a directory");
    put(&another, "NAME", "variable\n");
    put(&another, "OTHER", "variable\n");
    let server = setup
        .port(port)
        .env("ENVDIR", &another)
        .option(envdir(&directory))
        .start();
    let report = server.ask(port);
    assert_eq!(variable(&report, "NAME"), Some("option"));
    assert_eq!(variable(&report, "OTHER"), None);
}

#[test]
fn an_empty_variable_envdir_is_none() {
    let port = ports::tcp();
    let server = Server::setup()
        .status_file()
        .port(port)
        .env("ENVDIR", "")
        .start();
    server.accepted();
    assert_eq!(server.count_in_log("envdir"), 0, "{}", server.log());
    assert_eq!(server.ask(port).generation, Some(1));
}

#[test]
fn path_in_the_directory_is_where_the_program_is_looked_up() {
    let port = ports::tcp();
    let setup = Server::setup();
    let directory = directory(&setup);
    let programs_there = setup.folder().join("programs");
    fs::create_dir(&programs_there).expect("cannot make a directory");
    symlink(programs::worker(), programs_there.join("only-here")).expect("cannot make a link");
    put(
        &directory,
        "PATH",
        format!("{}\n", programs_there.display()),
    );
    let server = setup
        .port(port)
        .option(envdir(&directory))
        .program(["only-here"])
        .start();
    let path = server.ask(port).environment["PATH"].clone();
    assert_eq!(path, programs_there.display().to_string());
}

#[test]
fn what_the_directory_says_is_for_the_workers_alone() {
    if original_differs("its log command gets it too") {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup();
    let directory = directory(&setup);
    let library = "/nonexistent/library.so";
    put(&directory, "LD_PRELOAD", library);
    put(&directory, "ONLY_WORKERS", "yes\n");
    let file = setup.folder().join("reader");
    let server = setup
        .status_file()
        .port(port)
        .option(envdir(&directory))
        .option(format!(
            "--log-file=| env > {0}.new && mv {0}.new {0}; exec cat > {0}.log",
            file.display()
        ))
        .start();
    let report = server.ask(port);
    assert_eq!(variable(&report, "LD_PRELOAD"), Some(library));
    assert_eq!(variable(&report, "ONLY_WORKERS"), Some("yes"));
    // The other child of start_server.
    let reader = server.wait_for("the log command tells its environment", |_| {
        fs::read_to_string(&file).ok()
    });
    assert!(reader.contains("E2E_MARK="), "{reader}");
    assert!(!reader.contains("LD_PRELOAD"), "{reader}");
    assert!(!reader.contains("ONLY_WORKERS"), "{reader}");
}

#[test]
fn what_cannot_be_a_variable_is_left_out_and_said_once() {
    if !is_ours() {
        return;
    }
    let (server, port, directory) = with_envdir(|directory| {
        put(directory, "GOOD", "good\n");
        put(directory, "WITH=EQUALS", "x\n");
        put(directory, "SERVER_STARTER_PORT", "1=2\n");
        put(directory, "SERVER_STARTER_GENERATION", "77\n");
        put(directory, "SERVER_STARTER_WORKER", "77\n");
        put(directory, "SERVER_STARTER_WORKERS", "77\n");
        put(directory, "SERVER_STARTER_LANE", "7\n");
        fs::create_dir(directory.join("FOLDER")).expect("cannot make a directory");
        // It never has a writer: a reader that waits for one hangs.
        mkfifo(&directory.join("FIFO"), Mode::from_bits_truncate(0o666)).expect("mkfifo");
        let longest = LONGEST - "LONG=".len();
        put(directory, "LONG", "x".repeat(longest));
        put(
            directory,
            "TOO_LONG",
            "x".repeat(LONGEST - "TOO_LONG=".len() + 1),
        );
    });
    server.restart();
    server.restart();
    let report = server.ask(port);
    assert_eq!(report.generation, Some(3));
    assert_eq!(variable(&report, "GOOD"), Some("good"));
    assert_eq!(
        variable(&report, "LONG").map(str::len),
        Some(LONGEST - "LONG=".len())
    );
    assert_eq!(
        variable(&report, "SERVER_STARTER_PORT"),
        Some(&*format!("127.0.0.1:{port}=3"))
    );
    for name in ["WITH", "FOLDER", "FIFO", "TOO_LONG"] {
        assert_eq!(variable(&report, name), None, "{name}");
    }
    for (name, cause) in [
        ("WITH=EQUALS", "its name holds a ="),
        ("SERVER_STARTER_PORT", "start_server sets it itself"),
        ("SERVER_STARTER_GENERATION", "start_server sets it itself"),
        ("SERVER_STARTER_WORKER", "start_server sets it itself"),
        ("SERVER_STARTER_WORKERS", "start_server sets it itself"),
        ("SERVER_STARTER_LANE", "start_server sets it itself"),
        ("FOLDER", "it is not a regular file"),
        ("FIFO", "it is not a regular file"),
        (
            "TOO_LONG",
            "it is too long for the environment of a program",
        ),
    ] {
        let path = directory.join(name);
        assert_said_once(
            &server,
            &format!(
                "start_server: cannot use {} as a variable: {cause}",
                path.display()
            ),
        );
    }
    assert_eq!(server.count_in_log("cannot use"), 9, "{}", server.log());
}

#[test]
fn a_file_name_cannot_forge_a_line_of_the_log() {
    if !is_ours() {
        return;
    }
    let (server, _, _) = with_envdir(|directory| {
        put(directory, "A=\nexiting\n", "x\n");
    });
    server.wait_for_log("its name holds a =");
    assert!(
        !server.log().lines().any(|line| line == "exiting"),
        "{}",
        server.log()
    );
}

/// Makes a file or directory of variables unreadable in one way, and says which and why.
type Spoiler = fn(&Path) -> (PathBuf, &'static str);

const WAYS_TO_BE_UNREADABLE: [Spoiler; 5] = [
    |directory| {
        fs::remove_dir_all(directory).expect("cannot remove the directory");
        (directory.to_owned(), "No such file or directory")
    },
    |directory| {
        fs::remove_dir_all(directory).expect("cannot remove the directory");
        fs::write(directory, "no directory").expect("cannot write a file");
        (directory.to_owned(), "Not a directory")
    },
    |directory| {
        close(directory);
        (directory.to_owned(), "Permission denied")
    },
    |directory| {
        let secret = directory.join("SECRET");
        close(&secret);
        (secret, "Permission denied")
    },
    |directory| {
        let link = directory.join("LINK");
        symlink("nowhere", &link).expect("cannot make a link");
        (link, "No such file or directory")
    },
];

fn close(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o000)).expect("cannot close it");
}

fn open_again(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("cannot open it");
}

/// `cannot read` with what could not be read, and why.
fn cannot_read(how: &str, directory: &Path, spoiled: (PathBuf, &str)) -> String {
    let (path, cause) = spoiled;
    let what = match path == directory {
        true => format!("{how}={}", path.display()),
        false => format!("the variable {}", path.display()),
    };
    format!("cannot read {what}: {cause}")
}

#[test]
fn without_its_variables_no_server_is_started() {
    if original_differs("its workers start without them") {
        return;
    }
    for spoil in WAYS_TO_BE_UNREADABLE {
        for how in ["--envdir", "ENVDIR"] {
            for is_root in [false, true] {
                let mut setup = Server::setup();
                if is_root {
                    if !needs_root() {
                        continue;
                    }
                    setup = setup.as_root().option("--user=nobody");
                }
                let directory = directory(&setup);
                put(&directory, "SECRET", "x\n");
                let spoiled = spoil(&directory);
                let setup = match how {
                    "--envdir" => setup.option(envdir(&directory)),
                    _ => setup.env("ENVDIR", &directory),
                };
                let finished = setup.pid_file().path("socket").run();
                let line = cannot_read(how, &directory, spoiled);
                let said = format!("start_server: {line}");
                assert!(
                    finished.log.lines().any(|one| one == said),
                    "{said}\n{}",
                    finished.log
                );
                assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
                assert_eq!(finished.server.started(), [], "{line}");
                for left in ["socket", "pid"] {
                    let left = finished.server.folder().join(left);
                    assert!(!left.exists(), "{line}: {} is left", left.display());
                }
            }
        }
    }
}

#[test]
fn whoever_waits_for_a_daemon_hears_that_it_has_no_variables() {
    if original_differs("its workers start without them") {
        return;
    }
    let setup = Server::setup().pid_file();
    let directory = setup.folder().join("missing");
    let finished = setup
        .options(["--daemonize", "--log-file=log-of-daemon"])
        .option(envdir(&directory))
        .run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    let line = cannot_read(
        "--envdir",
        &directory,
        (directory.clone(), "No such file or directory"),
    );
    assert!(finished.log.contains(&line), "{}", finished.log);
}

#[test]
fn a_restart_without_its_variables_has_failed_and_the_old_generation_serves_on() {
    if original_differs("its workers start without them") {
        return;
    }
    for spoil in WAYS_TO_BE_UNREADABLE {
        let port = ports::tcp();
        let setup = Server::setup();
        let directory = directory(&setup);
        put(&directory, "SECRET", "before\n");
        let server = setup
            .pid_file()
            .status_file()
            .port(port)
            .option(envdir(&directory))
            .start();
        server.accepted();
        let old = server.ask(port);
        let line = cannot_read("--envdir", &directory, spoil(&directory));
        let restart = server
            .client(["--restart", "--pid-file=pid"])
            .output_in_turn()
            .expect("cannot run start_server");
        let said = String::from_utf8_lossy(&restart.stderr).into_owned();
        assert_eq!(restart.status.code(), Some(1), "{said}");
        assert!(said.contains(&line), "{said}");
        assert_eq!(server.ask(port).pid, old.pid);
        assert_eq!(
            server.count_in_log(&format!("{line}; no worker")),
            1,
            "{}",
            server.log()
        );
        // Mended: one of the next tries, or the next restart, has them.
        if directory.is_file() {
            fs::remove_file(&directory).expect("cannot remove a file");
        }
        if directory.exists() {
            open_again(&directory);
            fs::remove_dir_all(&directory).expect("cannot remove the directory");
        }
        fs::create_dir(&directory).expect("cannot make a directory");
        put(&directory, "SECRET", "after\n");
        let restart = server
            .client(["--restart", "--pid-file=pid"])
            .output_in_turn()
            .expect("cannot run start_server");
        assert!(restart.status.success(), "{}", server.log());
        let new = server.ask(port);
        assert_ne!(new.pid, old.pid);
        assert_eq!(variable(&new, "SECRET"), Some("after"));
    }
}

#[test]
fn variables_that_cannot_be_read_between_two_starts_are_said_and_change_nothing() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().status_file();
    let directory = directory(&setup);
    put(&directory, "KILL_OLD_DELAY", "0.1\n");
    let server = setup.option(envdir(&directory)).start();
    let old = server.accepted();
    put(&directory, "KILL_OLD_DELAY", "0.2\n");
    close(&directory.join("KILL_OLD_DELAY"));
    server.wait_for_log("KILL_OLD_DELAY: Permission denied; no worker is started without it");
    put(&directory, "OTHER", "x\n");
    remove(&directory, "KILL_OLD_DELAY");
    put(&directory, "KILL_OLD_DELAY", "0.3\n");
    assert_eq!(server.generations(), [old.generation]);
    assert_eq!(
        server.count_in_log("no worker is started"),
        1,
        "{}",
        server.log()
    );
    assert_eq!(delay_of_restart(&server).as_deref(), Some("0.3"));
}

#[test]
fn an_environment_that_is_too_large_is_a_failed_start_and_the_old_one_serves_on() {
    if original_differs("it does not read the directory again before the next try") {
        return;
    }
    let (server, port, directory) = with_envdir(|_| {});
    let old = server.ask(port);
    // Each can be passed, all together cannot.
    for number in 0..40 {
        put(&directory, &format!("LARGE_{number}"), "x".repeat(120_000));
    }
    server.signal(Signal::SIGHUP);
    server.wait_for_log("seems to have failed to start");
    server.wait_for_log("Argument list too long");
    assert_eq!(server.ask(port).pid, old.pid);
    for number in 0..40 {
        remove(&directory, &format!("LARGE_{number}"));
    }
    server.wait_until(
        "a later generation serves alone",
        |server| matches!(server.generations()[..], [generation] if generation > 1),
    );
}

// The knobs.

/// The seconds that the log shows for the delay before old workers are killed, after a restart.
#[track_caller]
fn delay_of_restart(server: &Server) -> Option<String> {
    let signalled = |server: &Server| {
        let log = server.log();
        log.lines()
            .filter(|line| *line == "killing old workers")
            .count()
    };
    let before = signalled(server);
    server.signal(Signal::SIGHUP);
    server.wait_until("the old ones were signalled", |server| {
        signalled(server) > before
    });
    let log = server.log();
    let mut lines = log.lines().filter(|line| {
        line.starts_with("new worker is now running") || line.starts_with("sleeping ")
    });
    let last = lines.next_back()?;
    let words: Vec<&str> = last.split(' ').collect();
    match words[..] {
        [
            "sleeping",
            seconds,
            "secs",
            "before",
            "killing",
            "old",
            "workers",
        ] => Some(seconds.to_owned()),
        _ => None,
    }
}

#[test]
fn kill_old_delay_comes_from_the_option_then_the_environment_and_the_directory_holds_over_both() {
    for (option, variable, file, expected) in [
        (None, None, None, None),
        (None, Some("1"), None, Some("1")),
        (Some("2"), Some("1"), None, Some("2")),
        (Some("0"), Some("1"), None, None),
        (Some("2"), None, Some("1"), Some("1")),
        (Some("2"), Some("2"), Some("1"), Some("1")),
        (Some("1"), None, Some("0"), None),
    ] {
        let mut setup = Server::setup().status_file();
        let directory = directory(&setup);
        setup = setup.option(envdir(&directory));
        if let Some(option) = option {
            setup = setup.option(format!("--kill-old-delay={option}"));
        }
        if let Some(variable) = variable {
            setup = setup.env("KILL_OLD_DELAY", variable);
        }
        if let Some(file) = file {
            put(&directory, "KILL_OLD_DELAY", file);
        }
        let server = setup.start();
        server.accepted();
        assert_eq!(
            delay_of_restart(&server).as_deref(),
            expected,
            "option {option:?}, environment {variable:?}, directory {file:?}"
        );
    }
}

#[test]
fn kill_old_delay_in_the_directory_holds_from_the_next_restart_and_the_option_is_back_without_it() {
    if original_differs("it takes whole seconds only, and a file that is removed has no effect") {
        return;
    }
    let setup = Server::setup().status_file();
    let directory = directory(&setup);
    let server = setup
        .option(envdir(&directory))
        .option("--kill-old-delay=0.1")
        .start();
    server.accepted();
    assert_eq!(delay_of_restart(&server).as_deref(), Some("0.1"));
    put(&directory, "KILL_OLD_DELAY", "0.2\n");
    assert_eq!(delay_of_restart(&server).as_deref(), Some("0.2"));
    remove(&directory, "KILL_OLD_DELAY");
    assert_eq!(delay_of_restart(&server).as_deref(), Some("0.1"));
}

#[test]
fn what_others_tell_start_server_alone_does_not_reach_the_workers() {
    if original_differs("it hands everything on") {
        return;
    }
    let names = [
        "NOTIFY_SOCKET",
        "FDSTORE",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_PIDFDID",
        "LISTEN_FDNAMES",
        "UNICORN_FD",
        "NGINX",
        "EINHORN_FDS",
        "EINHORN_FD_COUNT",
        "EINHORN_FD_0",
        "EINHORN_FD_17",
        "EINHORN_MASTER_PID",
        "EINHORN_SOCK_PATH",
        "GUNICORN_FD",
        "GUNICORN_PID",
        "PUMA_INHERIT_0",
        "FPM_SOCKETS",
        "SERVER_STARTER_OTHER",
    ];
    let port = ports::tcp();
    let setup = || {
        let setup = Server::setup().port(port);
        names
            .into_iter()
            .fold(setup, |setup, name| setup.env(name, "another's"))
            // Alike, but of nobody.
            .env("NGINX_VERSION", "1")
    };
    let server = setup()
        .option("--log-file=| env > environment-of-the-log-command; cat")
        .start();
    let report = server.ask(port);
    for name in names {
        assert_eq!(variable(&report, name), None, "{name}");
    }
    assert_eq!(variable(&report, "NGINX_VERSION"), Some("1"));
    let file = server.folder().join("environment-of-the-log-command");
    let of_command = server.wait_for("the log command has written its environment", |_| {
        fs::read_to_string(&file)
            .ok()
            .filter(|text| text.contains("PATH="))
    });
    assert!(!of_command.contains("another's"), "{of_command}");
    drop(server);

    let server = setup().option("--fd-env=systemd,einhorn").start();
    let report = server.ask(port);
    assert_eq!(variable(&report, "LISTEN_FDS"), Some("1"));
    assert_eq!(variable(&report, "EINHORN_FD_0"), Some("3"));
    assert_eq!(variable(&report, "EINHORN_FD_17"), None);
    let pid = report.pid.to_string();
    assert_eq!(variable(&report, "LISTEN_PID"), Some(pid.as_str()));
    assert_eq!(variable(&report, "NOTIFY_SOCKET"), None);
}

#[test]
fn the_knobs_of_options_are_exported_to_the_workers() {
    let port = ports::tcp();
    let server = Server::setup()
        .port(port)
        .options([
            "--enable-auto-restart",
            "--auto-restart-interval=300",
            "--kill-old-delay=7",
        ])
        .start();
    let report = server.ask(port);
    assert_eq!(variable(&report, "ENABLE_AUTO_RESTART"), Some("1"));
    assert_eq!(variable(&report, "AUTO_RESTART_INTERVAL"), Some("300"));
    assert_eq!(variable(&report, "KILL_OLD_DELAY"), Some("7"));
}

#[test]
fn with_auto_restart_the_delay_is_five_seconds_unless_it_is_said() {
    for (words, expected) in [(&["--kill-old-delay=0"][..], None), (&[], Some("5"))] {
        let server = Server::setup()
            .status_file()
            .options(["--enable-auto-restart", "--auto-restart-interval=1000"])
            .options(words.iter().copied())
            .start();
        server.accepted();
        server.signal(Signal::SIGHUP);
        server.wait_for_log("new worker is now running");
        match expected {
            Some(seconds) => {
                server.wait_for_log(&format!("sleeping {seconds} secs before killing"));
            }
            None => {
                server.wait_for_log("killing old workers");
                assert_eq!(server.count_in_log("sleeping"), 0, "{}", server.log());
            }
        }
    }
}

#[test]
fn auto_restart_that_appears_in_the_directory_begins_without_any_signal() {
    let setup = Server::setup().status_file();
    let directory = directory(&setup);
    let server = setup.option(envdir(&directory)).start();
    server.accepted();
    if original_differs("it looks at the directory only when something else happens") {
        return;
    }
    put(&directory, "AUTO_RESTART_INTERVAL", "0.3\n");
    put(&directory, "KILL_OLD_DELAY", "0\n");
    put(&directory, "ENABLE_AUTO_RESTART", "1\n");
    server.wait_for_log_times(2, "autorestart triggered (interval=0.3)");
}

#[test]
fn auto_restart_that_leaves_the_directory_ends_without_any_signal() {
    if original_differs("a file that is removed has no effect") {
        return;
    }
    // Two alike: what one goes on to do is the clock for what the other does not do any more.
    let pair = [(); 2].map(|()| {
        let setup = Server::setup().status_file();
        let directory = directory(&setup);
        put(&directory, "AUTO_RESTART_INTERVAL", "0.5\n");
        put(&directory, "KILL_OLD_DELAY", "0\n");
        put(&directory, "ENABLE_AUTO_RESTART", "1\n");
        (setup.option(envdir(&directory)).start(), directory)
    });
    let [(stopped, directory), (clock, _)] = &pair;
    stopped.wait_for_log("autorestart triggered (interval=0.5)");
    stopped.wait_for_log("died, status:");
    remove(directory, "ENABLE_AUTO_RESTART");
    let before = stopped.count_in_log("autorestart triggered");
    let of_clock = clock.count_in_log("autorestart triggered");
    clock.wait_for_log_times(of_clock + 4, "autorestart triggered");
    // One more may have been due at the moment of the removal.
    let after = stopped.count_in_log("autorestart triggered");
    assert!(after <= before + 1, "{before} {after}\n{}", stopped.log());
    // And the environment of workers is without it.
    let newest = stopped.restart();
    assert_eq!(bytes_of(newest.pid.as_raw(), "ENABLE_AUTO_RESTART"), None);
}

#[test]
fn what_is_true_of_enable_auto_restart_is_as_in_perl_and_a_few_words_are_not() {
    for (value, on) in [
        ("1", true),
        ("yes", true),
        ("true", true),
        ("0", false),
        ("", false),
    ] {
        let server = Server::setup()
            .status_file()
            .env("ENABLE_AUTO_RESTART", value)
            .env("AUTO_RESTART_INTERVAL", "1000")
            .start();
        server.accepted();
        server.signal(Signal::SIGHUP);
        // The delay is another one where automatic restarts are on.
        match on {
            true => drop(server.wait_for_log("sleeping 5 secs before killing old workers")),
            false => {
                server.wait_for_log("killing old workers");
                assert_eq!(server.count_in_log("sleeping"), 0, "{value:?}");
            }
        }
    }
    if !is_ours() {
        return;
    }
    for value in ["false", "no", "Off"] {
        let server = Server::setup()
            .status_file()
            .env("ENABLE_AUTO_RESTART", value)
            .start();
        server.accepted();
        server.restart();
        server.restart();
        assert_eq!(server.count_in_log("sleeping"), 0, "{value:?}");
        assert_said_once(
            &server,
            &format!("start_server: ENABLE_AUTO_RESTART={value} is treated as 0"),
        );
    }
}

#[test]
fn knobs_that_are_no_numbers_are_said_once_and_the_default_is_used() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().status_file();
    let directory = directory(&setup);
    put(&directory, "KILL_OLD_DELAY", "soon\n");
    let server = setup
        .option(envdir(&directory))
        .env("AUTO_RESTART_INTERVAL", "-3")
        .start();
    server.accepted();
    assert_eq!(delay_of_restart(&server), None);
    assert_eq!(delay_of_restart(&server), None);
    assert_said_once(
        &server,
        "start_server: cannot use KILL_OLD_DELAY=soon: it is not a number of seconds; using 0",
    );
    assert_said_once(
        &server,
        "start_server: cannot use AUTO_RESTART_INTERVAL=-3: it is not a number of seconds; using 360",
    );
    put(&directory, "KILL_OLD_DELAY", "0.1\n");
    assert_eq!(delay_of_restart(&server).as_deref(), Some("0.1"));
    // It was right in between, so this is news.
    put(&directory, "KILL_OLD_DELAY", "soon\n");
    assert_eq!(delay_of_restart(&server), None);
    assert_eq!(
        server.count_in_log("KILL_OLD_DELAY=soon"),
        2,
        "{}",
        server.log()
    );
}

#[test]
fn many_changes_at_once_neither_wake_nor_stop_the_server_for_long() {
    let (server, port, directory) = with_envdir(|_| {});
    for number in 0..2000 {
        put(&directory, "CHANGING", format!("{number}\n"));
    }
    let mut restarted = client::connect(port).expect("cannot connect");
    restarted.send("ping").expect("cannot send");
    assert!(!restarted.receive().expect("no answer").is_empty());
    server.restart();
    assert_eq!(variable(&server.ask(port), "CHANGING"), Some("1999"));
}
