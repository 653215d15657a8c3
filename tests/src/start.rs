//! Starting programs from a process in which many tests run at once.
//!
//! A child holds a copy of every descriptor of the test process, those with `FD_CLOEXEC` too, until the program that it
//! executes begins to run (fork(2), execve(2)). Until then nothing that another test closes is closed: a listener still
//! accepts, a datagram socket still takes what is sent, a lock is still held, a program that was just written is still
//! "text file busy". So programs are started one after the other, and whatever was closed before a program is started is
//! closed when it runs. Where a program runs already, its test waits for the effect of the close.

#![allow(
    clippy::disallowed_methods,
    reason = "this is the place that may start programs"
)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// Held while a child is between fork and exec.
static TURN: Mutex<()> = Mutex::new(());

/// What [`Command`] has, for a process in which many tests run at once.
pub trait InTurn {
    /// As [`Command::spawn`] with a hook: by a pipe that the program does not inherit it waits until that begins to run.
    /// Without one it would go on as soon as the program is loaded (vfork(2)), when descriptors are not closed yet.
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

/// Does something while no child is between fork and exec: what it closes is closed then.
pub fn between_starts<T>(act: impl FnOnce() -> T) -> T {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    act()
}

impl InTurn for Command {
    #[expect(
        unsafe_code,
        reason = "only a hook makes the standard library wait long enough"
    )]
    fn spawn_in_turn(&mut self) -> io::Result<Child> {
        // SAFETY: it does nothing.
        unsafe { self.pre_exec(|| Ok(())) };
        // It guards no data that a panic could have left half changed.
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        self.spawn()
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
