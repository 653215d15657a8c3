//! Containers that share a volume: a pid of one belongs to another process in the other, so a command from a pid
//! namespace other than the server's signals nobody.

use std::path::Path;
use std::process::Command;

use e2e::skip::{missing, needs_program, needs_root};
use e2e::start::InTurn;
use e2e::{Server, proc, programs};
use nix::unistd::{Pid, Uid};

use crate::commands::{Client, accepted, is_ours};
use crate::launch::{AS_NOBODY, Launched, as_ordinary_user, launch};

const COMMANDS: [&str; 3] = ["--stop", "--restart", "--reopen"];

/// The commands that make a container of root's and one of an ordinary user's, whoever runs the tests; without those
/// that do not work here. `more` options are added to each.
fn containers(more: &[&'static str]) -> Vec<Vec<&'static str>> {
    let of_root = vec!["unshare", "--pid", "--fork"];
    let of_user = as_ordinary_user().iter().copied();
    let of_user = of_user.chain(["unshare", "--user", "--pid", "--fork"]);
    let mut found = Vec::new();
    if needs_root() {
        found.push(of_root);
    }
    let of_user: Vec<_> = of_user.collect();
    let mut works = Command::new(of_user[0]);
    let works = works.args(&of_user[1..]).args(["--mount-proc", "true"]);
    match works.status_in_turn().is_ok_and(|status| status.success()) {
        true => found.push(of_user),
        false => drop(missing("needs user namespaces of ordinary users")),
    }
    for words in &mut found {
        words.extend(more);
    }
    found
}

/// Starts a command to the server of this pid file, such as `--stop`, behind the words `before` it.
fn command(before: &[&str], word: &str, pid_file: &Path, folder: &Path) -> Client {
    let program = programs::start_server();
    let program = program.to_str().expect("UTF-8");
    let words: Vec<&str> = before.iter().copied().chain([program, word]).collect();
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .arg(format!("--pid-file={}", pid_file.display()))
        .arg("--timeout=20")
        .current_dir(folder);
    Client::start(command, folder)
}

const ASK_THERE: &str = "hint: pids of one container mean nothing in another: run the command in the container that \
                         the server was started in\n";

fn elsewhere(pid_file: &str) -> String {
    format!(
        "start_server: cannot ask the server of --pid-file={pid_file}: it runs in another pid namespace; ask there\n"
    )
}

#[test]
fn a_command_from_another_container_says_so_and_signals_nobody() {
    if !is_ours() || !needs_program("unshare") {
        return;
    }
    let mut server = Server::setup()
        .pid_file()
        .option("--log-file=log.file")
        .start();
    accepted(&server);
    let folder = server.folder().to_owned();
    for container in containers(&["--mount-proc"]) {
        for word in COMMANDS {
            let mut client = command(&container, word, Path::new("pid"), &folder);
            assert_eq!(client.wait(), 1, "{}", client.said());
            assert_eq!(client.said(), elsewhere("pid") + ASK_THERE);
        }
    }
    assert!(proc::alive(server.pid()));
    // It was not told to do anything: this is its first restart.
    let mut restart = command(as_ordinary_user(), "--restart", Path::new("pid"), &folder);
    assert_eq!(restart.wait(), 0, "{}", restart.said());
    server.wait_for_generations(&[2]);
    let mut stop = command(as_ordinary_user(), "--stop", Path::new("pid"), &folder);
    assert_eq!(stop.wait(), 0, "{}", stop.said());
    assert!(server.wait_exit().success());
}

#[test]
fn a_pid_file_that_is_locked_in_another_container_is_left_to_it() {
    if !is_ours() || !needs_program("unshare") {
        return;
    }
    let server = Server::setup().pid_file().start();
    accepted(&server);
    for container in containers(&["--mount-proc"]) {
        let user = match container[0] {
            "unshare" if Uid::effective().is_root() => "--user=nobody",
            _ => "--interval=1",
        };
        let mut second = Command::new(container[0]);
        second
            .args(&container[1..])
            .arg(programs::start_server())
            .args([user, "--pid-file=pid", "--", "true"])
            .current_dir(server.folder());
        let mut second = Client::start(second, server.folder());
        assert_eq!(second.wait(), 1, "{}", second.said());
        let said =
            "cannot use --pid-file=pid: it is locked by a process in another pid namespace\n";
        assert!(second.said().ends_with(said), "{}", second.said());
    }
    assert_eq!(server.pid_file(), Some(server.pid()));
}

/// A server that is the first process of a container.
fn contained(container: &[&'static str]) -> Launched {
    let worker = programs::worker();
    let mut arguments = vec!["--pid-file=pid", "--interval=0"];
    if container[0] == "unshare" && Uid::effective().is_root() {
        arguments.push("--user=nobody");
    }
    let worker = worker.to_str().expect("UTF-8");
    arguments.extend(["--", worker, "--graceful", "--report=report"]);
    let launched = launch(container, &arguments);
    launched.wait_for_report();
    launched
}

/// The first process of the container.
fn first(launched: &Launched) -> Pid {
    proc::children(launched.pid())[0]
}

fn assert_was_not_signalled(launched: &Launched) {
    assert!(proc::alive(first(launched)));
    let log = launched.log();
    assert!(!log.contains("received"), "{log}");
}

#[test]
fn a_command_to_a_server_in_a_container_says_where_it_runs_and_signals_nobody() {
    if !is_ours() || !needs_program("unshare") {
        return;
    }
    for container in containers(&["--mount-proc", "--kill-child"]) {
        let launched = contained(&container);
        for word in COMMANDS {
            let mut client = command(
                as_ordinary_user(),
                word,
                Path::new("pid"),
                launched.folder(),
            );
            assert_eq!(client.wait(), 1, "{}", client.said());
            let pid = first(&launched);
            let hint = format!(
                "hint: it is pid {pid} here and pid 1 there: as root, put `nsenter --all --target={pid}` before the \
                 command, or run the command by the exec of the container (docker exec, podman exec)\n"
            );
            assert_eq!(client.said(), elsewhere("pid") + &hint);
        }
        assert_was_not_signalled(&launched);
    }
}

#[test]
fn the_first_process_of_a_container_is_not_taken_for_that_of_another() {
    if !is_ours() || !needs_root() || !needs_program("unshare") || !needs_program("nsenter") {
        return;
    }
    // Both are pid 1, belong to the same user, and have dropped privileges: only root can look at their descriptors.
    let container = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let (asked, other) = (contained(&container), contained(&container));
    let pid_file = asked.folder().join("pid");
    let target = format!("--target={}", first(&other));
    let mut before = vec!["nsenter", &target, "--pid", "--mount"];
    for is_root in [false, true] {
        if !is_root {
            before.extend(AS_NOBODY);
        }
        for word in COMMANDS {
            let mut client = command(&before, word, &pid_file, other.folder());
            assert_eq!(client.wait(), 1, "{}", client.said());
            let said = elsewhere(&pid_file.display().to_string()) + ASK_THERE;
            assert_eq!(client.said(), said);
        }
        before.truncate(4);
        assert_was_not_signalled(&asked);
        assert_was_not_signalled(&other);
    }
    // In its own container it can be asked as usual.
    let target = format!("--target={}", first(&asked));
    let before = ["nsenter", &target, "--pid", "--mount"];
    let mut restart = command(&before, "--restart", &pid_file, asked.folder());
    assert_eq!(restart.wait(), 0, "{}", restart.said());
    assert!(asked.log().contains("received HUP"), "{}", asked.log());
}

#[test]
fn pids_that_proc_shows_of_another_namespace_are_not_used() {
    if !is_ours() || !needs_program("unshare") {
        return;
    }
    let server = Server::setup().pid_file().start();
    accepted(&server);
    for container in containers(&[]) {
        for word in COMMANDS {
            let mut client = command(&container, word, Path::new("pid"), server.folder());
            assert_eq!(client.wait(), 1, "{}", client.said());
            let said = "start_server: cannot find the server of --pid-file=pid: /proc is missing, or that of another \
                        pid namespace\n\
                        hint: mount the /proc of this pid namespace: `mount -t proc proc /proc`, as root in it; or create \
                        the namespace with `unshare --mount-proc`\n";
            assert_eq!(client.said(), said);
        }
    }
    assert!(proc::alive(server.pid()));
    assert_eq!(server.count_in_log("received"), 0);
}
