//! What README.md shows is true: its commands are run as they stand there, in namespaces where `/run`, `/srv`,
//! `/usr/local`, `/etc` and the ports are the test's own.
//!
//! The first command is run by `tests/fresh_clone`; that every other command line is a valid one is tested beside the
//! options, and the units in [`crate::unit_files`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::folder::Folder;
use e2e::programs;
use e2e::skip::{needs_program, needs_root, original_differs};
use e2e::start::InTurn;
use nix::unistd::{Gid, Uid};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn readme() -> String {
    fs::read_to_string(top().join("README.md")).expect("no README")
}

/// The only block of commands in this section that begins like this.
fn block(section: &str, beginning: &str) -> String {
    let readme = readme();
    let (_, rest) = readme
        .split_once(&format!("\n## {section}\n"))
        .unwrap_or_else(|| panic!("no section {section}"));
    let (section, _) = rest.split_once("\n## ").unwrap_or((rest, ""));
    let blocks = section.split("\n```sh\n").skip(1);
    let blocks = blocks.map(|rest| rest.split("\n```").next().unwrap_or_default());
    let found: Vec<&str> = blocks.filter(|one| one.starts_with(beginning)).collect();
    assert_eq!(found.len(), 1, "{beginning}: {found:?}");
    found[0].to_owned()
}

/// The command in the row of this question.
fn answer(question: &str) -> String {
    let row = format!("| {question} | `");
    let readme = readme();
    let rest = readme.split_once(&row).map(|(_, rest)| rest);
    let command = rest.and_then(|rest| rest.split('`').next());
    command
        .unwrap_or_else(|| panic!("no question: {question}"))
        .to_owned()
}

/// Each command of the README is in a variable.
const SCRIPT: &str = r#"
set -euf
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /srv
mount -t tmpfs -o mode=755 tmpfs /usr/local
cp -a /etc "$FOLDER/etc"
mount --bind "$FOLDER/etc" /etc
trap 'cat /run/log' EXIT
moment() { read -rt 0.05 <> <(:) || true; }
# expect CODE TEXT COMMAND
expect() {
    local got=0 said
    said=$(bash -c "$3" 2>&1) || got=$?
    said=$(echo $said)
    case "$got $said" in "$1 "*"$2"*) ;; *) echo "$3: wanted $1 and '$2', got $got: $said"; exit 1 ;; esac
}
# eventually TEXT COMMAND
eventually() {
    until case "$(echo $(bash -c "$2" 2>&1))" in *"$1"*) ;; *) false ;; esac; do moment; done
}

bash -c "$INSTALL" >/run/log
mkdir /srv/app
cp "$HELLO" /srv/app/server
bash -c "$START" >/run/log 2>&1 &
server=$!
until bash -c "$LIVE" >/run/status 2>&1; do kill -0 $server; moment; done
expect 0 ' current ' "$LIVE"
expect 0 ' CONNS ' "$LIVE"
expect 0 '"state": "current"' "$FOR_A_SCRIPT"
# It wants a terminal.
script -qec "$CONNECTIONS" /dev/null >/run/followed 2>&1 &
follows=$!

printf '#!/bin/sh\nexit 1\n' >/srv/app/new
chmod 755 /srv/app/new
mv /srv/app/new /srv/app/server
expect 1 'failed to start' "$DEPLOY"
eventually ' failed ' "$WHY"
eventually 'next start in ' "$NEXT"
expect 0 'generation 1 keeps serving' "$NOT_AGAIN"
said=$(echo $(bash -c "$NEXT"))
case "$said" in *'next start in '*) echo "still tried again: $said"; exit 1 ;; esac

cp "$HELLO" /srv/app/new
mv /srv/app/new /srv/app/server
expect 0 ' serves ' "$AGAIN"
expect 0 '(generation 1 again) serves' "$BACK"
expect 0 '6 workers serve' "$SCALE"
expect 0 'stopped' "$STOP"
wait $server
status=0
wait $follows || status=$?
[ $status = 3 ] && grep -q CONNS /run/followed || { echo "--follow ended with $status"; exit 1; }
"#;

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    if original_differs("it has another README") || !needs_root() {
        return;
    }
    if !needs_program("unshare") || !needs_program("script") {
        return;
    }
    let folder = Folder::new(Uid::effective(), Gid::effective());
    let output = Command::new("timeout")
        .args(["120", "unshare", "--mount", "--net"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["bash", "-c", SCRIPT])
        .current_dir(top())
        .env("FOLDER", folder.path())
        .env("BUILD", programs::installed())
        .env("HELLO", programs::hello())
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("INSTALL", block("Quick start", "starter/share/install.sh "))
        .env("START", block("Low ports", "install -d "))
        .env("DEPLOY", block("A deploy", "start_server --restart "))
        .env("LIVE", answer("Which version is live, and since when?"))
        .env(
            "CONNECTIONS",
            answer("How many connections does each generation hold?"),
        )
        .env("WHY", answer("Why did the last deploy fail?"))
        .env("NEXT", answer("When is the next try?"))
        .env("AGAIN", answer("Try again now"))
        .env("NOT_AGAIN", answer("Do not try again"))
        .env("BACK", answer("How do I get the old one back?"))
        .env("FOR_A_SCRIPT", answer("The status, for a script"))
        .env("STOP", answer("How do I stop it?"))
        .env("SCALE", block("Many workers", "start_server --scale="))
        .output_in_turn()
        .expect("cannot run timeout");
    assert!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whoever adds a command says here what runs it.
#[test]
fn every_command_of_the_readme_is_tried() {
    // Those of start_server itself are parsed beside the options.
    let run_by = [
        // tests/fresh_clone, which takes the first block.
        "cargo build --release --bins --examples && target/release/start_server ",
        // .ci/run.
        "cargo test --workspace",
        // The test above.
        "starter/share/install.sh /usr/local",
        "install -d -o www-data /run/app",
        "start_server ",
    ];
    let readme = readme();
    let blocks = readme.split("\n```sh\n").skip(1);
    let blocks = blocks.map(|rest| rest.split("\n```").next().unwrap_or_default());
    let text = blocks.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    for command in text.lines() {
        let is_tried = run_by
            .iter()
            .any(|beginning| command.starts_with(beginning));
        assert!(is_tried, "{command}");
    }
    assert!(text.starts_with(run_by[0]), "{text}");
    assert_eq!(text.lines().count(), 8);
}
