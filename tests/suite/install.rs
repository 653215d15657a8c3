//! `starter/share/install.sh`, for everybody whom no package fits: what it installs works from where it is.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use e2e::folder::Folder;
use e2e::skip::{needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{ports, programs};
use nix::unistd::{Gid, Uid};

use crate::launch::{AS_NOBODY, as_ordinary_user, launch_program};

fn is_ours() -> bool {
    !original_differs("it has no install.sh")
}

/// Runs the script behind `before`, with the programs of the tests.
fn install(before: &[&str], arguments: &[&str]) -> Output {
    let share = Path::new(env!("CARGO_MANIFEST_DIR")).join("../starter/share");
    // A checkout may be closed to the user who installs.
    let sources = Folder::new(Uid::effective(), Gid::effective());
    let copied = sources.path().join("starter");
    fs::create_dir(&copied).expect("cannot make a folder");
    let copy = ["cp", "-R"].map(str::to_owned).into_iter();
    let paths = [&share, &copied].map(|path| path.display().to_string());
    let copy: Vec<String> = copy.chain(paths).collect();
    run(&copy);
    let script = copied.join("share/install.sh");
    let mut words = before.iter().copied().chain(["sh"]);
    Command::new(words.next().expect("sh at least"))
        .args(words)
        .arg(script)
        .args(arguments)
        .env("BUILD", programs::installed())
        .output_in_turn()
        .expect("cannot run sh")
}

fn run(words: &[String]) {
    let output = Command::new(&words[0]).args(&words[1..]).output_in_turn();
    let output = output.expect("cannot run it");
    assert!(output.status.success(), "{words:?}: {output:?}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Starts what was installed, behind `before`, and asks the worker.
fn serves(prefix: &Path, before: &[&str], options: &[&str]) {
    let port = ports::tcp();
    let address = format!("--port=127.0.0.1:{port}");
    let worker = programs::worker();
    let worker = worker.to_str().expect("UTF-8");
    let mut arguments = vec![address.as_str()];
    arguments.extend(options);
    arguments.extend(["--", worker, "--report=report"]);
    let server = launch_program(before, &prefix.join("bin/start_server"), &arguments);
    server.wait_for_report();
}

fn mode(path: &Path) -> u32 {
    let metadata = path.metadata();
    let metadata = metadata.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    metadata.mode() & 0o7777
}

fn user_and_group(user: u32) -> (Uid, Gid) {
    (Uid::from_raw(user), Gid::from_raw(user))
}

#[test]
fn an_ordinary_user_installs_below_a_folder_of_theirs_and_starts_a_server_from_there() {
    if !is_ours() {
        return;
    }
    let (uid, gid) = match Uid::effective().is_root() {
        true => user_and_group(65534),
        false => (Uid::effective(), Gid::effective()),
    };
    let folder = Folder::new(uid, gid);
    let prefix = folder.path().join("local");
    let shown = prefix.to_str().expect("UTF-8");
    // Twice: the second time over what is there.
    for _ in 0..2 {
        let output = install(as_ordinary_user(), &[shown]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        for line in [
            format!("installed {shown}/bin/start_server"),
            "left out /etc/start_server/binder.conf: only root installs it".to_owned(),
            format!("systemd does not look in {shown}/lib/systemd/system"),
        ] {
            assert!(said.contains(&line), "{said}");
        }
    }
    assert_eq!(mode(&prefix.join("bin/start_server")), 0o755);
    assert_eq!(mode(&prefix.join("bin/start_server-binder")), 0o755);
    let unit = prefix.join("lib/systemd/system/start_server@.service");
    let unit = fs::read_to_string(unit).expect("no unit");
    let start = format!("\nExecStart={shown}/bin/start_server --user=");
    assert!(unit.contains(&start), "{unit}");
    let policy = fs::read_to_string(prefix.join("share/doc/start_server/binder.conf"));
    let setcap = format!("setcap cap_net_bind_service=ep {shown}/bin/start_server-binder");
    assert!(policy.expect("no example").contains(&setcap));
    serves(&prefix, as_ordinary_user(), &[]);
}

#[test]
fn root_installs_for_a_package_and_starts_a_server_from_there() {
    if !is_ours() || !needs_root() {
        return;
    }
    let (uid, gid) = user_and_group(0);
    let folder = Folder::new(uid, gid);
    let destination = folder.path().to_str().expect("UTF-8");
    let output = install(&[], &["/opt/server", destination]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let policy = folder.path().join("etc/start_server/binder.conf");
    assert_eq!(mode(&policy), 0o644);
    // What root has written stays.
    fs::write(&policy, "user 4242 tcp 80\n").expect("cannot write");
    let output = install(&[], &["/opt/server", destination]);
    let kept = format!("kept {}", policy.display());
    assert!(text(&output.stdout).contains(&kept), "{output:?}");
    let now = fs::read_to_string(&policy).expect("cannot read");
    assert_eq!(now, "user 4242 tcp 80\n");
    let prefix = folder.path().join("opt/server");
    serves(&prefix, &[], &["--user=nobody"]);
    serves(&prefix, &AS_NOBODY, &[]);
}

#[test]
fn what_cannot_be_installed_is_said_in_one_line() {
    if !is_ours() {
        return;
    }
    let folder = Folder::new(Uid::effective(), Gid::effective());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("no mode");
    let here = folder.path().to_str().expect("UTF-8");
    let file = format!("{here}/file");
    fs::write(&file, "").expect("cannot write");
    let below = format!("{file}/local");
    for (arguments, last) in [
        (&[][..], "usage: install.sh PREFIX [DESTDIR]".to_owned()),
        (
            &["local"],
            "cannot install to 'local': PREFIX must be an absolute path other than /".to_owned(),
        ),
        (
            &["/with a blank"],
            "cannot install to '/with a blank': a unit or a manual cannot name such a path"
                .to_owned(),
        ),
        (&[&below], format!("cannot create {below}/bin")),
    ] {
        let output = install(as_ordinary_user(), arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let line = format!("install.sh: {last}");
        assert_eq!(said.lines().last(), Some(&*line), "{said}");
    }
}

/// cargo installs one package at a time: whoever did that with one alone learns the command for the other.
#[test]
fn what_cargo_installed_without_the_binder_names_the_second_command() {
    if !is_ours() {
        return;
    }
    let folder = Folder::new(Uid::effective(), Gid::effective());
    let programs_folder = folder.path().join("bin");
    fs::create_dir(&programs_folder).expect("cannot make a folder");
    fs::write(folder.path().join(".crates.toml"), "[v1]\n").expect("cannot write");
    let program = programs::install(&programs::start_server(), &programs_folder);
    let port = format!("--port=127.0.0.1:{}", ports::tcp());
    let mut launched = launch_program(as_ordinary_user(), &program, &[&port, "--", "true"]);
    assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
    let hint = format!(
        "hint: install start_server-binder beside {}: `cargo install --path binder`, as with start_server",
        program.display()
    );
    let log = launched.log();
    assert!(log.lines().any(|line| line == hint), "{log}");
}
