//! Starting programs from a process in which many tests run at once.
//!
//! Between fork and exec a child holds a copy of every descriptor of the test process, those with `FD_CLOEXEC` too
//! (fork(2), execve(2)). In that moment nothing that another test closes is closed: a listener still accepts, a
//! datagram socket still takes what is sent, a lock is still held, a program that was just written is still "text file
//! busy". So programs are started one after the other, and whatever was closed before a program is started is closed
//! when it runs. Where a program runs already, [`settled`] waits for that.

#![allow(
    clippy::disallowed_methods,
    reason = "this is the place that may start programs"
)]

use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::{fs, io, thread};

use crate::wait::DEADLINE;

/// Held while a child is between fork and exec.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    // It guards no data that a panic could have left half changed.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns when everything that this process has closed is closed in its children too.
pub fn settled() {
    drop(turn());
}

/// Until the descriptors of ours are closed in the child. The kernel lets the caller of vfork(2) go on a little before
/// that, and gives the process its new name a little after.
fn wait_for_exec(child: &Child) {
    let name = |process: &str| fs::read_to_string(format!("/proc/{process}/comm")).ok();
    let (ours, theirs) = (name("thread-self"), child.id().to_string());
    let deadline = Instant::now() + DEADLINE;
    while name(&theirs) == ours && Instant::now() < deadline {
        thread::yield_now();
    }
}

/// What [`Command`] has, for a process in which many tests run at once.
pub trait InTurn {
    /// As [`Command::spawn`], which returns after exec.
    ///
    /// # Errors
    /// As there.
    fn spawn_in_turn(&mut self) -> io::Result<Child>;

    /// As [`Command::output`], with an empty standard input and with pipes for the output, whatever was set before.
    ///
    /// # Errors
    /// As there.
    fn output_in_turn(&mut self) -> io::Result<Output>;

    /// As [`Command::status`].
    ///
    /// # Errors
    /// As there.
    fn status_in_turn(&mut self) -> io::Result<ExitStatus>;
}

impl InTurn for Command {
    fn spawn_in_turn(&mut self) -> io::Result<Child> {
        let _turn = turn();
        let child = self.spawn()?;
        wait_for_exec(&child);
        Ok(child)
    }

    fn output_in_turn(&mut self) -> io::Result<Output> {
        self.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn_in_turn()?
            .wait_with_output()
    }

    fn status_in_turn(&mut self) -> io::Result<ExitStatus> {
        self.spawn_in_turn()?.wait()
    }
}
