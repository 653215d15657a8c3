//! The units in `starter/share/systemd`, with systemd's own judgement of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::folder::Folder;
use e2e::skip::{find_program, needs_program, original_differs};
use e2e::start::InTurn;
use nix::unistd::{Gid, Uid};

fn shared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../starter/share/systemd")
}

/// The units by their names; a template has an instance.
fn units() -> Vec<(String, String)> {
    let mut units = Vec::new();
    for entry in fs::read_dir(shared()).expect("cannot list the units") {
        let path = entry.expect("cannot list the units").path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.expect("a name").replace("@.", "@instance.");
        units.push((name, fs::read_to_string(path).expect("cannot read a unit")));
    }
    assert_eq!(units.len(), 5, "{units:?}");
    units
}

fn is_ours() -> bool {
    !original_differs("it has no units")
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !is_ours() || !needs_program("systemd-analyze") {
        return;
    }
    let folder = Folder::new(Uid::effective(), Gid::effective());
    // It looks for the programs, which are elsewhere here.
    let program = find_program("true").expect("there is no true");
    let program = program.to_str().expect("a plain path");
    let mut paths = Vec::new();
    for (name, text) in units() {
        // Wherever it is installed: systemd searches the folders of programs for a plain name.
        let start = format!("\nExecStart={program} ");
        let text = text
            .replace("\nExecStart=start_server ", &start)
            .replace("/srv/app/server", program);
        let path = folder.path().join(name);
        fs::write(&path, text).expect("cannot write a unit");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("cannot set a mode");
        paths.push(path);
    }
    let verify = |paths: &[PathBuf]| {
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .args(paths)
            .output_in_turn()
            .expect("cannot run systemd-analyze");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let (is_clean, said) = verify(&paths);
    assert!(is_clean && said.is_empty(), "{said}");
    // It does look.
    let path = folder.path().join("wrong.service");
    fs::write(&path, "[Service]\nExecStart=/missing\nTyp=notify\n").expect("cannot write a unit");
    let (is_clean, said) = verify(&[path]);
    assert!(
        !is_clean && said.contains("/missing") && said.contains("Typ"),
        "{said}"
    );
}

/// What README.md and start_server(1) say about hardening is what the units have.
#[test]
fn the_first_unit_is_that_of_the_readme_and_the_manual() {
    if !is_ours() {
        return;
    }
    let readme = fs::read_to_string(shared().join("../../../README.md")).expect("no README");
    let unit = fs::read_to_string(shared().join("app.service")).expect("no unit");
    let (_, section) = readme.split_once("## Under systemd\n").expect("no section");
    let (section, _) = section.split_once("\n## ").expect("no end of the section");
    let in_readme = blocks(section, "```ini\n", "```");
    let page = fs::read_to_string(shared().join("../man/start_server.1")).expect("no page");
    let (_, section) = page.split_once(".SS Under systemd\n").expect("no section");
    let (section, _) = section.split_once("\n.SS ").expect("no end of the section");
    let section = section
        .replace("\\-", "-")
        .replace("\\&", "")
        .replace("\\e\n", "\\\n");
    let in_page = blocks(&section, ".EX\n", ".EE\n");
    // The first is the unit, the second another way to reload, the last what restricts it.
    for blocks in [in_readme, in_page] {
        let [first, _, last] = blocks[..] else {
            panic!("{blocks:?}");
        };
        assert!(first.starts_with("[Service]\n"), "{first}");
        assert!(last.starts_with("CapabilityBoundingSet="), "{last}");
        for line in first.lines().chain(last.lines()) {
            assert!(unit.lines().any(|one| one == line), "{line}");
        }
    }
}

fn blocks<'a>(section: &'a str, begin: &str, end: &str) -> Vec<&'a str> {
    let blocks = section.split(begin).skip(1);
    blocks
        .map(|rest| rest.split_once(end).expect("no end of a block").0)
        .collect()
}
