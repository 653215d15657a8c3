//! A terminal of root's must not be a way back to root for the server program.
//!
//! Whoever has a terminal as its controlling one can type into it (`TIOCSTI`, tty_ioctl(4)), as if root had; whoever
//! can read from it can take what root types. So a worker below root leaves the session and gets it for writing only.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// Makes what terminals there are on descriptors 0 to 2 unreadable; says whether there is one. Call it as root: the
/// terminal may not belong to the user to become.
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
    Ok(terminals.contains(&true))
}

fn for_writing(terminal: &impl AsFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", terminal.as_fd().as_raw_fd());
    OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(path)
}
