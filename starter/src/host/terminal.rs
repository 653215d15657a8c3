//! The terminal: how large it is, and above all that root's must not give the server program a way back to root.
//!
//! A process can type into its controlling terminal (`TIOCSTI`, tty_ioctl(4)) as if root had, and anything that can read
//! from a terminal gets what root types. So the supervisor started by root gives the terminal up as far as it can, and
//! workers get a session of their own and the terminal write-only.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, getpid, getsid};

/// Makes any terminals on descriptors 0 to 2 write-only; returns whether the session must be left. Call it as root: the
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
    Ok(give_up_controlling() || terminals.contains(&true))
}

/// Gives up the controlling terminal: even with 0 to 2 redirected, /dev/tty leads every user in the session to it (tty(4)).
/// Signals from the keyboard go to the process group and still arrive. A session leader keeps its terminal: otherwise the
/// whole session would lose it. Returns whether there was one.
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
        // Without that file, or a free descriptor for it, nobody can tell.
        Err(error) => error.raw_os_error() != Some(Errno::ENXIO as i32),
    }
}

/// The lines and columns of a terminal, unless it does not know them.
#[expect(unsafe_code, reason = "nix has no TIOCGWINSZ")]
pub fn size(terminal: &impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCGWINSZ writes one such struct (ioctl_tty(2)), which outlives the call.
    let result = unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

#[expect(unsafe_code, reason = "nix has no TIOCNOTTY")]
fn detach_from(terminal: &File) {
    // SAFETY: TIOCNOTTY takes no argument (ioctl_tty(2)). It fails if the terminal has just been lost.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) };
}

fn for_writing(terminal: &impl AsFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", terminal.as_fd().as_raw_fd());
    OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(path)
}
