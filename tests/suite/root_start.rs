//! A start by root: what the worker finds that is not root's any more, and users that are hardly there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use e2e::server::Finished;
use e2e::server::Setup;
use e2e::skip::{needs_root, original_differs};
use e2e::{Report, Server, ports, programs};
use nix::unistd::User;

use crate::launch::{RootFolder, make_directory, ordinary_folder};

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
    fs::set_permissions(
        closed.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .expect("cannot close it");
    let path = format!("/usr/bin:{}:/bin", bin.display());
    let cannot = |name: &str| format!("start_server: cannot execute {name}: Permission denied");
    let hint = format!(
        "hint: closed to this user, so that the program may be there: {}; PATH is {path}",
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
