//! The programs under test: built once in a test process, and installed where every user can run them.
//!
//! `cargo test` does not build the programs of other packages, and a checkout may be closed to `nobody`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, iter};

use crate::folder;
use crate::start::InTurn;

/// The environment variable that names another start_server to run the suite against.
const ANOTHER: &str = "START_SERVER";

/// The start_server to test; the binder lies beside it, unless START_SERVER names another one.
#[must_use]
pub fn start_server() -> PathBuf {
    another().unwrap_or_else(|| installed().join("start_server"))
}

/// The installed binder.
#[must_use]
pub fn binder() -> PathBuf {
    installed().join("start_server-binder")
}

/// The fixture.
#[must_use]
pub fn worker() -> PathBuf {
    installed().join("worker")
}

/// The program that leaves descriptors to its successors.
#[must_use]
pub fn keeper() -> PathBuf {
    installed().join("keeper")
}

/// The example of a worker written in Rust.
#[must_use]
pub fn hello() -> PathBuf {
    installed().join("hello")
}

/// The example of a worker that serves QUIC. It is built when the first test wants it.
#[must_use]
pub fn quic() -> PathBuf {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    let install = || {
        let folder = installed();
        let build = Build::of_this_process();
        build.run(&["--example", "quic", "-p", "e2e"]);
        install(&build.folder.join("examples/quic"), folder)
    };
    INSTALLED.get_or_init(install).clone()
}

/// The start_server that START_SERVER names instead of ours.
#[must_use]
pub fn another() -> Option<PathBuf> {
    env::var_os(ANOTHER).map(PathBuf::from)
}

/// The folder with the installed programs. Mode 0755 and owned by whoever runs the tests, as its parents are.
pub fn installed() -> &'static Path {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let build = Build::of_this_process();
        let folder = folder::base().join("bin");
        fs::create_dir(&folder).expect("cannot make the folder for the programs");
        fs::set_permissions(&folder, Permissions::from_mode(0o755))
            .expect("cannot open the folder for the programs");
        install(&build.folder.join("worker"), &folder);
        install(&build.folder.join("keeper"), &folder);
        install(&build.folder.join("successor"), &folder);
        if another().is_none() {
            let packages = ["-p", "starter", "-p", "binder", "-p", "common"];
            build.run(&[&["--bins", "--examples"], &packages[..]].concat());
            for program in ["start_server", "start_server-binder", "examples/hello"] {
                install(&build.folder.join(program), &folder);
            }
        }
        folder
    })
}

/// Copies a program into a folder, executable by everybody. The parents of the folder are the caller's business.
pub fn install(program: &Path, folder: &Path) -> PathBuf {
    let copy = folder.join(program.file_name().expect("a program has a name"));
    fs::copy(program, &copy)
        .unwrap_or_else(|e| panic!("cannot install {}: {e}", program.display()));
    fs::set_permissions(&copy, Permissions::from_mode(0o755))
        .expect("cannot make the program executable");
    copy
}

/// How cargo built this test, so that the programs are built the same way and in the same place.
struct Build {
    target_folder: PathBuf,
    triple: Option<String>,
    profile: String,
    /// Where the finished programs are.
    folder: PathBuf,
}

impl Build {
    /// This test is `TARGET[/TRIPLE]/PROFILE/deps/suite-HASH`, and TARGET is marked by a CACHEDIR.TAG.
    fn of_this_process() -> Build {
        let test = env::current_exe().expect("cannot find out where this test is");
        let folder = test
            .ancestors()
            .nth(2)
            .expect("tests are in deps/")
            .to_owned();
        let target_folder = folder
            .ancestors()
            .skip(1)
            .find(|path| path.join("CACHEDIR.TAG").exists())
            .expect("no target folder of cargo above this test")
            .to_owned();
        let between = folder.strip_prefix(&target_folder).expect("an ancestor");
        let mut parts = between
            .iter()
            .rev()
            .map(|part| part.to_string_lossy().into_owned());
        let profile = match parts.next().as_deref() {
            Some("debug") | None => "dev".to_owned(),
            Some(name) => name.to_owned(),
        };
        Build {
            target_folder,
            triple: parts.next(),
            profile,
            folder,
        }
    }

    fn run(&self, what: &[&str]) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet"]).args(what);
        cargo
            .arg("--manifest-path")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
        cargo
            .arg("--target-dir")
            .arg(&self.target_folder)
            .arg("--profile")
            .arg(&self.profile);
        cargo.args(
            self.triple
                .iter()
                .flat_map(|triple| iter::once("--target").chain(iter::once(triple.as_str()))),
        );
        let output = cargo.output_in_turn().expect("cannot run cargo");
        assert!(
            output.status.success(),
            "cannot build the programs:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
