//! Folders below the system's temporary one, gone when they are no longer needed.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process};

use nix::unistd::{Gid, Pid, Uid};

use crate::proc;

const PREFIX: &str = "start_server-e2e-";

/// The folder of this test process: `start_server-e2e-PID`, owned by whoever runs the tests and open to everybody.
/// It goes away when the process exits; what a killed one left behind is removed by the next.
pub fn base() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        remove_leftovers();
        let path = env::temp_dir().join(format!("{PREFIX}{}", process::id()));
        make(&path);
        remove_at_exit();
        path
    })
}

/// A fresh folder that belongs to a user, removed with everything in it when it is dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new folder, mode 0755.
    #[must_use]
    pub fn new(uid: Uid, gid: Gid) -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let path = base().join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        make(&path);
        chown(&path, Some(uid.as_raw()), Some(gid.as_raw()))
            .expect("cannot give the folder to its user");
        Folder(path)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed now goes with the base folder, or with the next run.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// What is in a folder: type, mode, owners, inode and content of everything.
#[must_use]
pub fn snapshot(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)
        .expect("cannot read the folder")
        .flatten()
    {
        let path = entry.path();
        let metadata = path.symlink_metadata().expect("cannot look at it");
        let kind = metadata.file_type();
        let content = match () {
            () if kind.is_file() => fs::read(&path).map(|bytes| format!("{bytes:?}")),
            () if kind.is_symlink() => fs::read_link(&path).map(|path| format!("{path:?}")),
            () if kind.is_dir() => Ok(format!("{:?}", snapshot(&path))),
            () => Ok(String::new()),
        };
        let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
        let inode = metadata.ino();
        let described = format!(
            "{mode:o} {uid} {gid} {inode} {}",
            content.expect("cannot read it")
        );
        found.insert(path.display().to_string(), described);
    }
    found
}

fn make(path: &Path) {
    DirBuilder::new()
        .mode(0o755)
        .create(path)
        .unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
    // The umask may have taken something away.
    fs::set_permissions(path, Permissions::from_mode(0o755))
        .expect("cannot open the folder to everybody");
}

fn remove_leftovers() {
    for entry in fs::read_dir(env::temp_dir())
        .expect("cannot read the temporary folder")
        .flatten()
    {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.parse().ok())
        else {
            continue;
        };
        if pid == process::id().cast_signed() || !proc::alive(Pid::from_raw(pid)) {
            // It may belong to another user: then it is theirs to remove.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

#[expect(
    unsafe_code,
    reason = "the standard library has no hook for the end of the process"
)]
fn remove_at_exit() {
    extern "C" fn remove() {
        // A forked child that exits before it executes something must not remove the folder of its parent.
        if base().ends_with(format!("{PREFIX}{}", process::id())) {
            drop(fs::remove_dir_all(base()));
        }
    }
    // SAFETY: `remove` is a function with the C calling convention that does not unwind: it ignores every failure.
    let failed = unsafe { libc::atexit(remove) };
    assert_eq!(
        failed, 0,
        "cannot register the removal of the temporary folder"
    );
}
