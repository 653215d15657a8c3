//! The privileged half of start_server: it opens the sockets that were asked for, and nothing else.
//!
//! Run by start_server alone, with the channel as descriptor 0. The phases, each of which consumes the one before:
//!
//! 1. `receive`: the sealed list of what may be bound, sent by start_server while it still had root itself.
//! 2. `examine`: the directories of the paths are opened and what is in them is examined, with the launcher's rights.
//!    Where this program has more than its launcher, a policy file says what that launcher may have.
//! 3. `drop_privileges`: for good, with proof; no other capability is left than binding needs.
//! 4. `confine`: a sandbox takes the rest of the system away.
//! 5. `serve`: one answer for each request. Before the last answer the rest of the privileges goes too.
//! 6. `wait`: only where socket files are to be removed at the end. The channel's end is the order to do so.
//!
//! Anything unexpected ends the process with one line and status 1, or by the sandbox.

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
use common::descriptors::close_inherited;
use common::message::{Reply, Request};
use common::privileges::become_undumpable;
use common::signals::ignore_all;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::policy::Authority;

/// The whole program.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            // At once, because the sandbox may end a process that writes in parts. Nobody is left to tell where stderr is
            // closed.
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
    close_inherited()
        .map_err(|errno| format!("cannot close inherited descriptors: {}", errno.desc()))?;
    become_undumpable()?;
    // A terminal's signals reach the whole process group, a service manager's TERM the whole control group; but socket
    // files are to be removed when the supervisor ends, not before it. Its end closes the channel, also when it is
    // killed, so that nothing else needs to end this process.
    ignore_all();
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
    // SAFETY: it is open, because the standard library opens 0 to 2 at start where they are closed, and this is the
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
