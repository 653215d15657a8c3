//! A terminal of root's must not be a way back to root for the server program.
//!
//! Whoever has a terminal as its controlling one can type into it (`TIOCSTI`, tty_ioctl(4)), as if root had; whoever
//! can read from it can take what root types. So the supervisor below root gives it up, as far as it can, and workers get
//! a session of their own, and the terminal for writing only.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, getpid, getsid};

/// Makes what terminals there are on descriptors 0 to 2 unreadable; says whether the session must be left. Call it as
/// root: the terminal may not belong to the user to become.
pub fn keep_from_user() -> io::Result<bool> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let terminals = [
        stdin.is_terminal(),
        stdout.is_terminal(),
        stderr.is_terminal(),
    ];
    if terminals[0] {
        dup2_stdin(File::open("/dev/null")?)?;
    }
    if terminals[1] {
        dup2_stdout(for_writing(&stdout)?)?;
    }
    if terminals[2] {
        dup2_stderr(for_writing(&stderr)?)?;
    }
    Ok(give_up_controlling() || terminals.contains(&true))
}

/// With 0 to 2 elsewhere the session still has its terminal, and /dev/tty leads every user there (tty(4)). Signals of the
/// keyboard go to the process group, and so they come all the same. The leader of a session keeps its terminal: without
/// it the whole session would lose it. Says whether there was one.
fn give_up_controlling() -> bool {
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open("/dev/tty");
    match opened {
        Ok(terminal) => {
            if getsid(None) != Ok(getpid()) {
                detach_from(&terminal);
            }
            true
        }
        // Where there is no such file, or no descriptor left for it, nobody can tell.
        Err(error) => error.raw_os_error() != Some(Errno::ENXIO as i32),
    }
}

#[expect(unsafe_code, reason = "nix has no TIOCNOTTY")]
fn detach_from(terminal: &File) {
    // SAFETY: TIOCNOTTY takes no argument (ioctl_tty(2)). It fails where the terminal was lost a moment ago.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) };
}

fn for_writing(terminal: &impl AsFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", terminal.as_fd().as_raw_fd());
    OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(path)
}
