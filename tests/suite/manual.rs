//! The manual pages, judged by mandoc, and the completions, tried in the shells themselves. That both fit the options is
//! tested beside the options.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::skip::{needs_program, original_differs};
use e2e::start::InTurn;

fn shared(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../starter/share")
        .join(name)
}

fn is_ours(program: &str) -> bool {
    !original_differs("its manual is another") && needs_program(program)
}

/// Whether mandoc finds nothing wrong with a page, and what it says.
fn lint(page: &Path) -> (bool, String) {
    let output = Command::new("mandoc")
        .args(["-Tlint", "-Wwarning"])
        .arg(page)
        .output_in_turn()
        .expect("cannot run mandoc");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && said.is_empty(), said)
}

#[test]
fn mandoc_finds_nothing_wrong_with_the_pages() {
    if !is_ours("mandoc") {
        return;
    }
    let mut checked = 0;
    for entry in fs::read_dir(shared("man")).expect("no pages").flatten() {
        let (is_clean, said) = lint(&entry.path());
        assert!(is_clean, "{said}");
        // What every terminal and every printer shows.
        let text = fs::read(entry.path()).expect("cannot read a page");
        assert!(text.is_ascii(), "{entry:?}");
        checked += 1;
    }
    assert_eq!(checked, 4);
    // It does look.
    let wrong = shared("systemd/app.service");
    assert!(!lint(&wrong).0);
}

/// What bash offers for the last of these words.
fn offered(words: &[&str]) -> Vec<String> {
    // As bash calls it: the command, the word to be completed, and the one before.
    let script = r#"
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        spec=($(complete -p start_server))
        for i in "${!spec[@]}"; do [ "${spec[i]}" != -F ] || function=${spec[i + 1]}; done
        "$function" start_server "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let output = Command::new("bash")
        .args(["--norc", "-c", script, "bash"])
        .arg(shared("completions/start_server.bash"))
        .arg("start_server")
        .args(words)
        .output_in_turn()
        .expect("cannot run bash");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.lines().filter(|line| !line.is_empty());
    words.map(str::to_owned).collect()
}

#[test]
fn bash_completes_options_and_their_values() {
    if !is_ours("bash") {
        return;
    }
    assert_eq!(offered(&["--pid-fi"]), ["--pid-file"]);
    assert_eq!(offered(&["--port", "80", "--rollb"]), ["--rollback"]);
    assert_eq!(offered(&["--replace", "st"]), ["stop-first"]);
    assert_eq!(offered(&["--preset", "uv"]), ["uvicorn"]);
    assert_eq!(
        offered(&["--probe", ""]),
        ["tcp", "unix"].map(str::to_owned)
    );
    assert_eq!(offered(&["--no-such"]), [""; 0]);
}

#[test]
fn the_other_shells_can_read_their_completions() {
    for (shell, name) in [("zsh", "_start_server"), ("fish", "start_server.fish")] {
        if !is_ours(shell) {
            continue;
        }
        let output = Command::new(shell)
            .arg("-n")
            .arg(shared("completions").join(name))
            .output_in_turn()
            .expect("cannot run the shell");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && said.is_empty(),
            "{shell}: {said}"
        );
    }
}

#[test]
fn fish_completes_options() {
    if !is_ours("fish") {
        return;
    }
    let output = Command::new("fish")
        .args(["--no-config", "-c"])
        .arg("source $argv[1]; complete -C 'start_server --pid-fi'")
        .arg(shared("completions/start_server.fish"))
        .output_in_turn()
        .expect("cannot run fish");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("--pid-file"), "{said}");
}
