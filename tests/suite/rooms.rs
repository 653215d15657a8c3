//! The rooms of the superdaemon and the directions between them, read from its `use` lines and paths.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from the ground up: each imports from those before it alone.
const ROOMS: &[&str] = &[
    "words",
    "host",
    "log",
    "machine",
    "listeners",
    "worker",
    "ready",
    "status",
    "manager",
    "client",
    "self_test",
    "guardian",
    "supervisor",
    "options",
    "start",
    "fuzz",
    "lib",
    "main",
];

/// What the machine may know besides itself: sentences, and small types that hold values and nothing else.
const MACHINE_MAY_IMPORT: &[&str] = &[
    "crate::host::moment",
    "crate::machine",
    "crate::words",
    "nix::errno::Errno",
    "nix::sys::signal::Signal",
    "nix::unistd::Pid",
    "serde",
    "std",
];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../starter/src")
}

/// Every source file without its tests, by its path below `starter/src`.
fn files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut folders = vec![sources()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("cannot list a folder") {
            let path = entry.expect("cannot list a folder").path();
            let name = path.file_name().and_then(|name| name.to_str());
            if matches!(name, Some("tests" | "tests.rs")) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("cannot read a source");
            let name = path.strip_prefix(sources()).expect("outside").display();
            files.insert(name.to_string(), without_tests(&text));
        }
    }
    assert!(files.len() > 40, "the sources are elsewhere: {files:?}");
    files
}

/// The code alone: no comments, and nothing from the first `#[cfg(test)]` on, which is the end of each file.
fn without_tests(text: &str) -> String {
    text.lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The paths that begin with `root`, groups in braces spelled out: `crate::a::{b, c::d}` is `crate::a::b` and
/// `crate::a::c::d`.
fn paths(code: &str, root: &str) -> Vec<String> {
    let starts = code.match_indices(root).filter(|(at, _)| {
        let before = code[..*at].chars().next_back();
        !before.is_some_and(|one| one.is_alphanumeric() || one == '_' || one == ':')
    });
    starts
        .flat_map(|(at, _)| spelled_out("", &code[at..]).0)
        .collect()
}

/// The paths at the start of `code`, each behind `prefix`, and how many bytes they take.
fn spelled_out(prefix: &str, code: &str) -> (Vec<String>, usize) {
    let is_part = |one: char| one.is_alphanumeric() || one == '_' || one == ':';
    let end = code.find(|one| !is_part(one)).unwrap_or(code.len());
    let path = format!("{prefix}{}", &code[..end]);
    if !path.ends_with("::") || !code[end..].starts_with('{') {
        return (vec![path.trim_end_matches("::").to_owned()], end);
    }
    let (mut all, mut at) = (Vec::new(), end + 1);
    loop {
        at += code[at..].len() - code[at..].trim_start_matches([' ', '\n', ',']).len();
        if code[at..].starts_with('}') {
            return (all, at + 1);
        }
        let (some, taken) = spelled_out(&path, &code[at..]);
        assert!(taken > 0, "not understood: {}", &code[..at + 10]);
        all.extend(some);
        at += taken;
    }
}

/// What a file imports from this crate, as full paths.
fn imports(file: &str, code: &str) -> Vec<String> {
    let module = module_of(file);
    let parent = module
        .rsplit_once("::")
        .map_or("crate", |(parent, _)| parent);
    let full = |root: &str, base: &str| -> Vec<String> {
        let paths = paths(code, &format!("{root}::")).into_iter();
        paths.map(|path| path.replacen(root, base, 1)).collect()
    };
    let mut all = full("crate", "crate");
    all.extend(full("self", &module));
    all.extend(full("super", parent));
    all
}

fn module_of(file: &str) -> String {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    match path {
        "lib" | "main" => "crate".to_owned(),
        path => format!("crate::{}", path.replace('/', "::")),
    }
}

/// The file that defines what a path leads to.
fn file_of(path: &str, files: &BTreeMap<String, String>) -> String {
    let parts: Vec<&str> = path.split("::").skip(1).collect();
    (1..=parts.len())
        .rev()
        .map(|length| parts[..length].join("/"))
        .flat_map(|path| [format!("{path}.rs"), format!("{path}/mod.rs")])
        .find(|candidate| files.contains_key(candidate))
        .unwrap_or_else(|| "lib.rs".to_owned())
}

fn room(file: &str) -> &str {
    let top = file.split('/').next().unwrap_or(file);
    top.trim_end_matches(".rs")
}

fn arrows(files: &BTreeMap<String, String>) -> BTreeMap<&str, BTreeSet<String>> {
    files
        .iter()
        .map(|(file, code)| {
            let mut targets: BTreeSet<String> = imports(file, code)
                .iter()
                .map(|path| file_of(path, files))
                .collect();
            targets.remove(file);
            (file.as_str(), targets)
        })
        .collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let files = files();
    let mut left = arrows(&files);
    // A room that imports none of the remaining ones, or that none of them imports, is in no circle.
    loop {
        let count = left.len();
        let names: BTreeSet<String> = left.keys().map(|name| (*name).to_owned()).collect();
        left.values_mut()
            .for_each(|targets| targets.retain(|target| names.contains(target)));
        let imported: BTreeSet<String> = left.values().flatten().cloned().collect();
        left.retain(|name, targets| !targets.is_empty() && imported.contains(*name));
        if left.len() == count {
            break;
        }
    }
    assert!(left.is_empty(), "these import each other: {left:#?}");
}

#[test]
fn rooms_import_only_from_those_below() {
    let files = files();
    let height_of = |file: &str| {
        let place = ROOMS.iter().position(|one| *one == room(file));
        place.unwrap_or_else(|| panic!("{file} is in a room without a place"))
    };
    let mut wrong = Vec::new();
    for (file, targets) in arrows(&files) {
        let above = |target: &&String| height_of(target) > height_of(file);
        wrong.extend(
            targets
                .iter()
                .filter(above)
                .map(|target| format!("{file} imports {target}")),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_machine_knows_nothing_of_the_world() {
    let mut foreign = Vec::new();
    for (file, code) in files() {
        if room(&file) != "machine" {
            continue;
        }
        assert!(!code.contains("::now()"), "{file} looks at a clock");
        let mut all = imports(&file, &code);
        for root in [
            "std",
            "nix",
            "serde",
            "serde_json",
            "clap",
            "common",
            "libc",
        ] {
            all.extend(paths(&code, &format!("{root}::")));
        }
        let is_known = |path: &String| {
            let mut known = MACHINE_MAY_IMPORT.iter();
            known.any(|one| path == one || path.starts_with(&format!("{one}::")))
        };
        all.retain(|path| !is_known(path));
        foreign.extend(all.into_iter().map(|path| format!("{file}: {path}")));
    }
    assert!(foreign.is_empty(), "{foreign:#?}");
}

#[test]
fn nobody_but_the_log_writes_to_standard_error() {
    for (file, code) in files() {
        if room(&file) == "log" {
            continue;
        }
        let writes = ["stderr().write", "stderr().lock", "eprint!", "eprintln!"];
        let found = writes.iter().find(|one| code.contains(**one));
        assert_eq!(found, None, "{file}");
    }
}

/// Text from outside is shown by one function (`words/text.rs`), so that it cannot forge a line.
#[test]
fn nothing_is_shown_as_it_came_from_outside() {
    for (file, code) in files() {
        assert!(!code.contains(".display()"), "{file} shows a path as it is");
    }
}

#[test]
fn imports_are_found_in_groups_and_in_the_middle_of_code() {
    let code = "use crate::a::{self, b::{c, d}, e};\nlet x = crate::f::g(); mycrate::h();";
    let expected = ["a::self", "a::b::c", "a::b::d", "a::e", "f::g"];
    let expected = expected.map(|path| format!("crate::{path}"));
    assert_eq!(paths(code, "crate::"), expected);
}

#[test]
fn every_hint_is_worded_among_the_remedies() {
    for (file, code) in files() {
        let code: String = code.split_whitespace().collect();
        for worded in [".hint(\"", ".hint(format!(", ".hint_if(Some("] {
            assert!(
                !code.contains(worded),
                "{file} words a hint of its own: {worded}"
            );
        }
    }
}

#[test]
fn no_file_is_longer_than_600_lines_without_its_tests() {
    for (file, code) in files() {
        let lines = code.lines().count();
        assert!(lines <= 600, "{file} has {lines} lines");
    }
}

/// Functions whose head says why they read better whole.
const LONG: &[&str] = &[
    "words/notice.rs: pub fn severity(&self) -> Severity {",
    "words/sentence.rs: fn sentence(&self) -> String {",
    "words/subject.rs: pub fn subject(&self) -> Subject {",
];

#[test]
fn no_function_is_longer_than_60_lines() {
    let mut long = Vec::new();
    for (file, code) in files() {
        let lines: Vec<&str> = code.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let head = line.trim_start();
            if !["fn ", "pub fn ", "pub(super) fn ", "pub const fn "]
                .iter()
                .any(|one| head.starts_with(one))
            {
                continue;
            }
            // As rustfmt writes it, a function ends with a brace as far in as it begins.
            let end = format!("{}}}", &line[..line.len() - head.len()]);
            let length = lines[start..].iter().position(|line| *line == end);
            let name = format!("{file}: {head}");
            if length.is_some_and(|length| length >= 60) && !LONG.contains(&name.as_str()) {
                long.push(name);
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}
