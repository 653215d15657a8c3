//! Runs in the place of a new version of start_server, and is none. What it does stands in the file `successor` beside it:
//!
//! - `hang`: never says whether it can resume.
//! - `no`: says why it cannot.
//! - `keep`: the same, and leaves the snapshot in the current directory, as the file `snapshot`.
//! - `silent`: succeeds without a word, as a program does that knows nothing of it.
//! - `fails PROGRAM`: says yes. Then, in the place of start_server, it lets PROGRAM, a real one, resume from a damaged
//!   snapshot. That one comes back here, and this lets the program before go on from the undamaged one.

#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};
use std::{env, thread};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// What a program inherits, as start_server writes it: snapshot, the program before, and why that has come back.
const INHERITANCE: &str = "START_SERVER_RESUME";

/// The same as it was before it was changed here.
const UNCHANGED: &str = "SUCCESSOR_UNCHANGED";

fn main() {
    let ourselves = env::current_exe().expect("/proc");
    let order = fs::read_to_string(ourselves.with_file_name("successor")).expect("an order");
    let is_tried = env::args().any(|word| word.starts_with("--can-resume="));
    match (order.trim().split_once(' '), order.trim()) {
        (_, "hang") => loop {
            thread::park();
        },
        (_, "no") => {
            writeln!(std::io::stderr(), "start_server: it is a bad day").expect("standard error");
            exit(1);
        }
        (_, "keep") => {
            let mut words = env::args();
            let number =
                words.find_map(|word| Some(word.strip_prefix("--can-resume=")?.to_owned()));
            let number = number.expect("nobody has asked");
            let snapshot = fs::read(format!("/proc/self/fd/{number}")).expect("a snapshot");
            fs::write("snapshot", snapshot).expect("a file");
            writeln!(std::io::stderr(), "start_server: it was kept").expect("standard error");
            exit(1);
        }
        (_, "silent") => {}
        (Some(("fails", _)), _) if is_tried => {
            writeln!(std::io::stdout(), "start_server can resume: 9.9.9").expect("standard output");
        }
        (Some(("fails", program)), _) => fail(program.into()),
        _ => exit(2),
    }
}

fn fail(program: OsString) {
    let inherited = env::var(INHERITANCE).expect("nothing was inherited");
    let (arg0, arguments) = {
        let mut words = env::args_os();
        (words.next().expect("a name"), words)
    };
    let Ok(unchanged) = env::var(UNCHANGED) else {
        let damaged = env::temp_dir().join(format!("damaged-{}", std::process::id()));
        fs::write(&damaged, "start_server snapshot 1 4 0\n{}{}").expect("a file");
        let snapshot = File::open(&damaged).expect("a file");
        fs::remove_file(&damaged).expect("a file");
        let ourselves = File::open("/proc/self/exe").expect("/proc");
        for file in [&snapshot, &ourselves] {
            close_at_exec(file.as_raw_fd(), false);
        }
        let changed = format!("{}:{}:", snapshot.into_raw_fd(), ourselves.into_raw_fd());
        let error = Command::new(program)
            .arg0(arg0)
            .args(arguments)
            .env(INHERITANCE, changed)
            .env(UNCHANGED, &inherited)
            .exec();
        panic!("cannot execute it: {error}");
    };
    // It has come back, and says why.
    let failure = before_failure(&inherited);
    let mut parts = unchanged.splitn(3, ':');
    let (snapshot, before) = (parts.next().expect("a number"), parts.next().expect("two"));
    let damaged = inherited.split(':').next().expect("a number");
    for number in [damaged, before] {
        close_at_exec(number.parse().expect("a number"), true);
    }
    let error = Command::new(format!("/proc/self/fd/{before}"))
        .arg0(arg0)
        .args(arguments)
        .env(INHERITANCE, format!("{snapshot}::{failure}"))
        .env_remove(UNCHANGED)
        .exec();
    panic!("cannot execute it: {error}");
}

fn before_failure(inherited: &str) -> &str {
    inherited.splitn(3, ':').nth(2).expect("three parts")
}

#[expect(unsafe_code, reason = "descriptors come by number")]
fn close_at_exec(number: RawFd, is_wanted: bool) {
    let flags = match is_wanted {
        true => FdFlag::FD_CLOEXEC,
        false => FdFlag::empty(),
    };
    // SAFETY: nothing here closes it.
    let file = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(file, FcntlArg::F_SETFD(flags)).expect("an open descriptor");
}
