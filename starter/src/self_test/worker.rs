//! The worker of a self-test: this program in another role. It reports that it runs, tries what it is told to, reports the
//! outcomes, and stays until it is signalled.
//!
//! It changes nothing about itself before it is examined. Its orders arrive on its standard input, with no more privileges
//! than those of whoever started it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;

use caps::{CapSet, CapsHashSet};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, getpid, getppid, read, setgroups, setresgid, setresuid, unlink};
use serde::{Deserialize, Serialize};

use crate::host::process::Process;
use crate::words::failure::Failure;

/// The only argument: not an option, because options are for users.
pub const ROLE: &str = "--self-test-worker";

/// Something that a worker must not be able to do. Each is harmless if it succeeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerEscape {
    BecomeRoot,
    BecomeRootGroup,
    TakeGroups,
    RaiseCapabilities,
    BindPort(Ipv4Addr, u16),
    ReadFile(PathBuf),
    RemoveFile(PathBuf),
    Trace(i32),
    ReadMemory(i32),
    TakeDescriptor(i32),
    Signal(i32),
}

/// A worker's messages, one line each.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// It runs, and waits for its escapes.
    Here { generation: u32, pid: i32 },
    /// The outcome of the next escape: an errno, or `None` if it succeeded.
    Tried(Option<i32>),
}

/// Whether this process is such a worker.
pub fn is_worker() -> bool {
    let mut arguments = std::env::args_os().skip(1);
    arguments.next().as_deref() == Some(OsStr::new(ROLE)) && arguments.next().is_none()
}

/// Runs the worker.
pub fn run() -> Result<(), Failure> {
    let cannot =
        |cause: String| Failure::failed(format!("cannot be a self-test's worker: {cause}"));
    let generation = std::env::var("SERVER_STARTER_GENERATION")
        .ok()
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| cannot("it was not started by start_server".to_owned()))?;
    let tried = try_all(generation).map_err(|error| cannot(error.to_string()));
    if tried.is_ok() {
        stay();
    }
    // The self-test is gone, and with it the reason for its server; nobody is left to report this failure to.
    let _ = kill(getppid(), Signal::SIGTERM);
    tried
}

fn try_all(generation: u32) -> io::Result<()> {
    let pid = getpid().as_raw();
    say(&Said::Here { generation, pid })?;
    for escape in read_escapes()? {
        say(&Said::Tried(
            escape.attempt().err().map(|errno| errno as i32),
        ))?;
    }
    Ok(())
}

fn say(said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    let mut out = io::stdout();
    out.write_all(&line)?;
    out.flush()
}

/// Reads the list of escapes, and not one byte more: the next generation reads the same pipe.
fn read_escapes() -> io::Result<Vec<WorkerEscape>> {
    let stdin = io::stdin();
    let mut line = Vec::new();
    let mut byte = [0];
    while read(&stdin, &mut byte)? == 1 && byte != [b'\n'] {
        line.push(byte[0]);
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Until a signal ends it, or the self-test is gone.
fn stay() {
    let stdin = io::stdin();
    let mut end = [PollFd::new(stdin.as_fd(), PollFlags::empty())];
    while let Err(Errno::EINTR) = poll(&mut end, PollTimeout::NONE) {}
}

impl WorkerEscape {
    fn attempt(&self) -> nix::Result<()> {
        let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
        let errno_of = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        match self {
            WorkerEscape::BecomeRoot => setresuid(user, user, user),
            WorkerEscape::BecomeRootGroup => setresgid(group, group, group),
            WorkerEscape::TakeGroups => setgroups(&[group]),
            WorkerEscape::RaiseCapabilities => {
                let every: CapsHashSet = caps::all();
                caps::set(None, CapSet::Permitted, &every).map_err(|_| Errno::last())
            }
            WorkerEscape::BindPort(address, port) => TcpListener::bind((*address, *port))
                .map(drop)
                .map_err(errno_of),
            WorkerEscape::ReadFile(path) => File::open(path).map(drop).map_err(errno_of),
            WorkerEscape::RemoveFile(path) => unlink(path),
            WorkerEscape::Trace(pid) => {
                ptrace::seize(Pid::from_raw(*pid), ptrace::Options::empty())
            }
            WorkerEscape::ReadMemory(pid) => File::open(format!("/proc/{pid}/mem"))
                .map(drop)
                .map_err(errno_of),
            WorkerEscape::TakeDescriptor(pid) => {
                Process::open(Pid::from_raw(*pid))?.descriptor(0).map(drop)
            }
            WorkerEscape::Signal(pid) => kill(Pid::from_raw(*pid), None),
        }
    }
}
