//! The privileged half of start_server: it opens the requested sockets, makes a few files for the user where only root
//! can, and does nothing else.
//!
//! Run by start_server alone, with the channel as descriptor 0. The phases, each of which consumes the one before:
//!
//! 1. `receive`: the sealed list of what may be made, sent by start_server while it still was root itself.
//! 2. `examine`: opens the directories of the paths and examines their contents, with the launcher's privileges.
//!    If this program has more than its launcher, a policy file says what that launcher may have.
//! 3. `drop_privileges`: for good, with proof; no capability is left except what the list needs.
//! 4. `confine`: a sandbox takes the rest of the system away.
//! 5. `serve`: one answer for each request. Before the last answer the remaining privileges go too.
//! 6. `wait`: only if files must be removed at the end. The end of the channel is the order to do so.
//!
//! Anything unexpected ends the process, with one line and status 1 or by the sandbox.

mod escape;
#[doc(hidden)]
pub mod fuzz;
mod grants;
mod listener;
mod policy;
mod sandbox;
mod serve;

use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;

use common::channel::Channel;
use common::descriptors::{FIRST, close_inherited};
use common::message::{Reply, Request};
use common::privileges::become_undumpable;
use common::signals::ignore_all_but;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::policy::Authority;

/// The whole program.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            // In one write, because the sandbox may kill a process that writes in parts. If stderr is closed, nobody is
            // left to tell.
            let line = format!("start_server-binder: {}\n", printable(&cause));
            drop(io::stderr().write_all(line.as_bytes()));
            ExitCode::FAILURE
        }
    }
}

/// One line that is safe to show, whatever others have put into it.
fn printable(cause: &str) -> String {
    let mut line = String::new();
    for character in cause.chars() {
        match character {
            ' '..='~' => line.push(character),
            other => line.extend(other.escape_default()),
        }
    }
    line
}

fn run() -> Result<(), String> {
    close_inherited(FIRST)
        .map_err(|errno| format!("cannot close inherited descriptors: {}", errno.desc()))?;
    become_undumpable()?;
    // A terminal's signals reach the whole process group, a service manager's TERM the whole control group; but socket
    // files must be removed when the supervisor exits, not before. Its exit closes the channel, even if it is killed, so
    // nothing else needs to end this process.
    ignore_all_but(&[]);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(|errno| format!("cannot unblock signals: {}", errno.desc()))?;
    let authority = Authority::of_this_process()?;
    let channel = inherited_channel()?;
    let asked = serve::receive(channel)?;
    let examined = asked.examine(&authority);
    let dropped = examined.drop_privileges()?;
    let confined = dropped.confine()?;
    let served = confined.serve()?;
    served.wait();
    Ok(())
}

/// Descriptor 0, where start_server puts its end of the channel.
#[expect(unsafe_code, reason = "the channel is inherited as a number")]
fn inherited_channel() -> Result<Channel<Reply, Request>, String> {
    // SAFETY: it is open, because the standard library opens 0 to 2 at startup if they are closed, and this is the
    // only use of standard input in this program.
    let socket = unsafe { OwnedFd::from_raw_fd(0) };
    Channel::from_socket(socket)
        .map_err(|error| format!("this program is run by start_server only: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays_in_one_line_and_drives_no_terminal() {
        let cause = "cannot do `it`: a\nforged: line\x1b[2J\u{9b}\u{202e}";
        let line = r"cannot do `it`: a\nforged: line\u{1b}[2J\u{9b}\u{202e}";
        assert_eq!(printable(cause), line);
    }
}
