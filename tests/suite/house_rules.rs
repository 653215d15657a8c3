//! Rules about the repository itself that nobody would notice being broken.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::start::InTurn;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("no parent")
        .to_owned()
}

/// Every Rust file of the programs.
fn sources() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["common", "binder", "starter"]
        .map(|name| top().join(name))
        .into();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("cannot list a folder") {
            let path = entry.expect("cannot list a folder").path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "rs" => files.push(path),
                _ => {}
            }
        }
    }
    assert!(files.len() > 20, "the sources are elsewhere: {files:?}");
    files
}

fn name(file: &Path) -> String {
    file.strip_prefix(top())
        .expect("outside of the repository")
        .display()
        .to_string()
}

#[test]
fn unsafe_code_appears_only_where_it_is_known() {
    let known = [
        "binder/src/escape.rs",
        "binder/src/lib.rs",
        "common/src/channel.rs",
        "common/src/descriptors.rs",
        "common/src/privileges.rs",
        "common/src/server_ports.rs",
        "common/src/signals.rs",
        "starter/src/guardian/kept.rs",
        "starter/src/guardian/message.rs",
        "starter/src/host/dispositions.rs",
        "starter/src/host/memory.rs",
        "starter/src/listeners/group.rs",
        "starter/src/listeners/sockets.rs",
        "starter/src/log/command.rs",
        "starter/src/host/open_files.rs",
        "starter/src/host/own_program.rs",
        "starter/src/host/process.rs",
        "starter/src/host/terminal.rs",
        "starter/src/ready/notify.rs",
        "starter/src/worker/mod.rs",
    ];
    let found: BTreeSet<String> = sources()
        .iter()
        .filter(|file| {
            fs::read_to_string(file)
                .expect("cannot read")
                .contains("unsafe {")
        })
        .map(|file| name(file))
        .collect();
    assert_eq!(found, known.map(str::to_owned).into());
}

#[test]
fn every_package_obeys_the_lints() {
    for package in ["common", "binder", "starter", "tests"] {
        let manifest =
            fs::read_to_string(top().join(package).join("Cargo.toml")).expect("cannot read");
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{package} has its own lints"
        );
    }
}

/// The maximum lines of privileged code. A commit that raises it says what for.
const MOST_PRIVILEGED_LINES: usize = 2270;

#[test]
fn what_runs_with_privilege_does_not_grow_unseen() {
    let files = privileged_files();
    let names: Vec<String> = files.iter().map(|file| name(file)).collect();
    for expected in ["binder/src/serve.rs", "common/src/wire.rs"] {
        assert!(names.iter().any(|it| it == expected), "{names:?}");
    }
    // What only start_server and its workers use.
    for foreign in ["common/src/entry.rs", "common/src/server_ports.rs"] {
        assert!(names.iter().all(|it| it != foreign), "{names:?}");
    }
    let lines: usize = files.iter().map(|file| lines_of_code(file)).sum();
    let close = MOST_PRIVILEGED_LINES - 50..=MOST_PRIVILEGED_LINES;
    assert!(close.contains(&lines), "{lines} lines of {names:?}");
}

/// The binder, and the modules of `common` that it uses, or that those use.
fn privileged_files() -> BTreeSet<PathBuf> {
    let is_code = |file: &PathBuf| {
        let test_or_fuzz = ["tests.rs", "fuzz.rs"].map(OsStr::new);
        file.file_name()
            .is_some_and(|name| !test_or_fuzz.contains(&name))
    };
    let mut files: BTreeSet<PathBuf> = sources()
        .into_iter()
        .filter(|file| file.starts_with(top().join("binder/src")) && is_code(file))
        .collect();
    let mut unread: Vec<PathBuf> = files.iter().cloned().collect();
    let common = top().join("common/src");
    files.insert(common.join("lib.rs"));
    while let Some(file) = unread.pop() {
        let prefix = match file.starts_with(&common) {
            true => "crate::",
            false => "common::",
        };
        let text = fs::read_to_string(&file).expect("cannot read");
        for rest in text.split(prefix).skip(1) {
            let end = rest.find(|it: char| !it.is_alphanumeric() && it != '_');
            let module = rest.split_at(end.expect("a name has an end")).0;
            // Of several at once none would be seen.
            assert!(
                !module.is_empty(),
                "{}: `{prefix}` without a name",
                name(&file)
            );
            let used = common.join(module).with_extension("rs");
            if used.exists() && files.insert(used.clone()) {
                unread.push(used);
            }
        }
    }
    files
}

/// Without blank lines, comments and tests, which are the end of a file.
fn lines_of_code(file: &Path) -> usize {
    let text = fs::read_to_string(file).expect("cannot read");
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
    lines
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

/// The packages that the binder is made of, by name and version, for these kinds of edges of `cargo tree`.
fn packages_of_the_binder(edges: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--package", "binder"])
        .args(["--edges", edges])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(top())
        .output_in_turn()
        .expect("cannot run cargo");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("cargo prints text");
    let name = |line: &str| line.split(' ').next().map(str::to_owned);
    text.lines().filter_map(name).collect()
}

/// What runs with privilege. Each was looked at; whoever adds one says here what for.
#[test]
fn the_binder_is_made_of_nothing_but_what_is_listed_here() {
    let listed = [
        "binder",
        // Messages.
        "bincode",
        "serde",
        "serde_core",
        "unty",
        // System calls.
        "bitflags",
        "cfg-if",
        "libc",
        "memoffset",
        "nix",
        // Capabilities.
        "caps",
        // The sandbox.
        "enumflags2",
        "landlock",
        "seccompiler",
        "thiserror",
        "common",
    ];
    let found = packages_of_the_binder("normal,no-proc-macro");
    assert_eq!(found, listed.map(str::to_owned).into());
}

/// What runs on the machine that builds it, and could put something into it.
#[test]
fn the_binder_is_built_by_nothing_but_what_is_listed_here() {
    let listed = [
        // Finds out what the compiler can do, for nix and memoffset.
        "autocfg",
        "cfg_aliases",
        // Derives of enumflags2, serde and thiserror.
        "enumflags2_derive",
        "proc-macro2",
        "quote",
        "serde_derive",
        "syn",
        "thiserror-impl",
        "unicode-ident",
    ];
    let linked = packages_of_the_binder("normal,no-proc-macro");
    let built_by = &packages_of_the_binder("normal,build") - &linked;
    assert_eq!(built_by, listed.map(str::to_owned).into());
}

#[test]
fn only_one_file_knows_the_encoding() {
    for file in sources() {
        let text = fs::read_to_string(&file).expect("cannot read");
        let knows = text.contains("bincode::");
        assert_eq!(
            knows,
            name(&file) == "common/src/wire.rs",
            "{}",
            name(&file)
        );
    }
}

/// The TLS of the tests of QUIC, which is in no program.
const QUIC_OF_TESTS: [(&str, &str); 4] = [
    ("ring", "Apache-2.0 AND ISC"),
    ("rustls-webpki", "ISC"),
    ("subtle", "BSD-3-Clause"),
    ("untrusted", "ISC"),
];

/// What `.cargo/deny.toml` says, as far as that can be known without cargo-deny.
#[test]
fn every_package_comes_from_the_registry_and_under_a_permissive_licence() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1"])
        .current_dir(top())
        .output_in_turn()
        .expect("cannot run cargo");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    assert!(packages.len() > 30, "too few: {}", packages.len());
    for package in packages {
        let (name, licence) = (&package["name"], package["license"].as_str());
        let source = package["source"].as_str();
        let is_known =
            source.is_none_or(|it| it == "registry+https://github.com/rust-lang/crates.io-index");
        assert!(is_known, "{name} comes from {source:?}");
        // One of the alternatives, and with it all that is added.
        let mut alternatives = licence
            .unwrap_or_default()
            .split(" OR ")
            .flat_map(|it| it.split('/'));
        let permissive = alternatives.any(|it| ["MIT", "Apache-2.0"].contains(&it));
        let is_of_tests = licence.is_some_and(|it| {
            QUIC_OF_TESTS
                .iter()
                .any(|one| *name == one.0 && it == one.1)
        });
        let is_unicode = licence == Some("(MIT OR Apache-2.0) AND Unicode-3.0");
        let is_known = permissive || is_unicode || is_of_tests;
        assert!(is_known, "{name} is under {licence:?}");
    }
}

/// It is for the newcomer, and for somebody in a hurry. Everything else is in the manual and in tests/README.md.
const MOST_LINES_OF_THE_README: usize = 250;

#[test]
fn the_readme_is_short() {
    let text = fs::read_to_string(top().join("README.md")).expect("cannot read");
    let lines = text.lines().count();
    assert!(lines <= MOST_LINES_OF_THE_README, "{lines} lines");
}

#[test]
fn the_prose_has_lines_of_at_most_120_columns_and_links_to_what_is_there() {
    let mut links = 0;
    for file in ["README.md", "tests/README.md"] {
        let path = top().join(file);
        let text = fs::read_to_string(&path).expect("cannot read");
        // Every second part is a block.
        for line in text.split("```").step_by(2).flat_map(str::lines) {
            let is_row = line.starts_with('|');
            assert!(is_row || line.chars().count() <= 120, "{file}: {line}");
        }
        for rest in text.split("](").skip(1) {
            let (target, _) = rest.split_once(')').expect("no end of a link");
            if !target.starts_with("https://") {
                let target = path.parent().expect("a file has one").join(target);
                assert!(target.exists(), "{file}: {}", target.display());
                links += 1;
            }
        }
    }
    assert!(links > 8, "{links}");
}

/// `.ci/run` makes the checks that developers are told to make.
#[test]
fn the_checks_in_the_documentation_are_those_of_ci() {
    let text = fs::read_to_string(top().join("tests/README.md")).expect("cannot read");
    let ci = fs::read_to_string(top().join(".ci/run")).expect("cannot read");
    let ci = ci.replace(" --locked", "");
    let (_, section) = text.split_once("## The checks\n").expect("no section");
    let (_, block) = section.split_once("```sh\n").expect("no block");
    let (block, _) = block.split_once("```").expect("no end of a block");
    let readme = fs::read_to_string(top().join("README.md")).expect("cannot read");
    assert!(readme.contains("```sh\ncargo test --workspace\n```\n"));
    for command in block.lines() {
        assert!(ci.lines().any(|line| line == command), "{command}");
    }
    assert_eq!(block.lines().count(), 5);
}
