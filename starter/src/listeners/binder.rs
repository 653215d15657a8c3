//! The binder process from this side: find it, start it, send requests, end it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use common::channel::Channel;
use common::message::{
    Allow, Ask, Confinement, Escape, Grant, Identity, MOST_GRANTS, Refusal, Reply, Request,
};
use common::trusted_path::{Trust, open_directory};
use common::wire;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};
use crate::host::proc::Fields;
use crate::host::process::wait_for;
use crate::words::distrust;
use crate::words::failure::{self, Failure};
use crate::words::remedy::{self, BINDER};
use crate::words::text::quoted;

type ToBinder = Channel<Request, Reply>;

/// The running binder.
pub struct Binder {
    /// A child of this process, whichever program started it.
    child: Pid,
    /// Once it was reaped: then the number may be another process's.
    ended: Option<ExitStatus>,
    channel: ToBinder,
}

/// One that waits to remove its files, for the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedBinder {
    child: i32,
    channel: Carried,
}

/// The answer to one request.
pub enum Answer {
    /// The sockets of each request in order, and the requests whose path held a stale socket that was replaced.
    Sockets {
        sockets: Vec<OwnedFd>,
        replaced: Vec<u32>,
    },
    /// This request could not be fulfilled.
    Refused { ask: u32, refusal: Refusal },
}

/// What a binder sends.
pub enum Received {
    Reply(Reply, Vec<OwnedFd>),
    /// It has closed the channel and exited.
    End(ExitStatus),
}

impl Binder {
    /// Starts it with nothing of ours but its end of the channel and standard error, and sends it the sealed list while we
    /// still have the launcher's privileges.
    pub fn start(identity: Option<Identity>, grants: &[Grant]) -> Result<Binder, Failure> {
        Binder::start_to_test(identity, grants, &[], Stdio::inherit())
    }

    /// The same, with escapes that it is to try on request, and its own standard error.
    pub fn start_to_test(
        identity: Option<Identity>,
        grants: &[Grant],
        escapes: &[Escape],
        stderr: Stdio,
    ) -> Result<Binder, Failure> {
        let program = program_beside_us()?;
        let cannot = |cause: &dyn std::fmt::Display| {
            Failure::failed(format!(
                "cannot run the binder {}: {cause}",
                quoted(&program)
            ))
        };
        let (channel, theirs) = ToBinder::pair().map_err(|error| cannot(&error))?;
        let child = Command::new(&program)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|error| {
                let is_refused = error.raw_os_error() == Some(libc::EPERM);
                let hint = is_refused.then_some(remedy::BINDER_MAY_NOT);
                cannot(&failure::cause(&error)).hint_if(hint.map(Into::into))
            })?;
        let binder = Binder {
            child: Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX)),
            ended: None,
            channel,
        };
        binder.allow(identity, grants, escapes)?;
        Ok(binder)
    }

    /// For the next program, which has the same children.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedBinder {
        PackedBinder {
            child: self.child.as_raw(),
            channel: luggage.put(&self.channel),
        }
    }

    /// What another program has packed.
    pub fn unpack(PackedBinder { child, channel }: PackedBinder) -> Binder {
        Binder {
            child: Pid::from_raw(child),
            ended: None,
            channel: ToBinder::of(channel.take()),
        }
    }

    fn allow(
        &self,
        identity: Option<Identity>,
        grants: &[Grant],
        escapes: &[Escape],
    ) -> Result<(), Failure> {
        let mut left = grants.chunks(MOST_GRANTS).peekable();
        while let Some(part) = left.next() {
            let more = left.peek().is_some();
            let request = Request::Allow(Allow {
                identity: identity.clone(),
                grants: part.to_vec(),
                escapes: if more { vec![] } else { escapes.to_vec() },
                more,
            });
            // Nothing else in it can be that long. If it went unsent, both sides would wait forever.
            wire::encode(&request)
                .map_err(|error| channel_failed(error).hint(remedy::TOO_MANY_GROUPS))?;
            // If the binder has already exited, the next receive finds out why.
            drop(self.channel.send(&request, &[]));
        }
        Ok(())
    }

    /// Its confinement from now on: its first message, before any request.
    pub fn confinement(&mut self) -> Result<Confinement, Failure> {
        match self.receive()? {
            (Reply::Confined(confinement), _) => Ok(confinement),
            (Reply::Bound { .. } | Reply::Refused { .. } | Reply::EscapeTried { .. }, _) => {
                Err(channel_failed("it answered before it was asked"))
            }
        }
    }

    /// Requests `wanted` descriptors, at most `MOST_DESCRIPTORS`.
    pub fn bind(&mut self, asks: Vec<Ask>, wanted: usize) -> Result<Answer, Failure> {
        self.send(&Request::Bind(asks));
        match self.receive()? {
            (Reply::Bound { replaced }, sockets) if sockets.len() == wanted => {
                Ok(Answer::Sockets { sockets, replaced })
            }
            (Reply::Bound { .. }, sockets) => Err(channel_failed(format!(
                "it sent {} sockets instead of {wanted}",
                sockets.len()
            ))),
            (Reply::Refused { ask, refusal }, _) => Ok(Answer::Refused { ask, refusal }),
            (Reply::Confined(_), _) => Err(channel_failed("it reported its confinement twice")),
            (Reply::EscapeTried { .. }, _) => Err(channel_failed("it tried to escape")),
        }
    }

    /// Sends one request; the answer is received next.
    pub fn send(&self, request: &Request) {
        // If the binder has already exited, its last answer or its exit status says more than this error.
        drop(self.channel.send(request, &[]));
    }

    /// The next message, or the end.
    pub fn receive_or_end(&mut self) -> Result<Received, Failure> {
        let received = self.channel.receive_with_descriptors();
        if let Some((reply, descriptors)) = received.map_err(channel_failed)? {
            return Ok(Received::Reply(reply, descriptors));
        }
        self.hang_up();
        self.wait().map(Received::End).map_err(channel_failed)
    }

    fn receive(&mut self) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let ended = match self.receive_or_end()? {
            Received::Reply(reply, descriptors) => return Ok((reply, descriptors)),
            Received::End(ended) => ended,
        };
        let failure = channel_failed(format!("it exited too early, {ended}"));
        match ended.signal() {
            Some(libc::SIGSYS) => Err(failure.hint(match launcher_filters() {
                true => remedy::FOREIGN_FILTER,
                false => remedy::OWN_FILTER,
            })),
            _ => Err(failure),
        }
    }

    /// Ends the requests: the binder removes its files and exits.
    pub fn hang_up(&self) {
        self.channel.hang_up();
    }

    /// Waits until it has exited.
    pub fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let ended = match self.ended {
            Some(ended) => ended,
            None => wait_for(self.child)?,
        };
        self.ended = Some(ended);
        Ok(ended)
    }

    /// Kills it if it has not exited.
    pub fn kill(&mut self) {
        // Both fail only if the process is gone.
        if self.ended.is_none() {
            let _ = kill(self.child, Signal::SIGKILL);
        }
        drop(self.wait());
    }

    pub fn pid(&self) -> Pid {
        self.child
    }

    /// Closes the channel, upon which it removes its files and exits, and waits for that.
    pub fn end(self) -> std::io::Result<ExitStatus> {
        let Binder {
            child,
            ended,
            channel,
        } = self;
        // A guardian has a copy: to close it is not enough. It fails only if the binder is gone.
        let _ = shutdown(channel.as_fd().as_raw_fd(), Shutdown::Write);
        match ended.map_or_else(|| wait_for(child), Ok) {
            // It is the guardian's child, which alone learns how it exits. It does so by closing its end.
            Err(Errno::ECHILD) => {
                while let Ok(Some(_)) = channel.receive() {}
                Ok(ExitStatus::default())
            }
            ended => Ok(ended?),
        }
    }
}

impl AsFd for Binder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// Reports a broken protocol; the connection is of no further use.
pub fn channel_failed(cause: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("cannot talk to the binder: {cause}"))
}

/// Whether this process, and thus every binder, runs under a seccomp filter of its launcher.
fn launcher_filters() -> bool {
    Fields::of_this_process().is_ok_and(|status| status.is_filtered())
}

/// The binder's path, derived from the running file and nothing that the launcher can set.
///
/// # Errors
/// If it is missing, or, as root, if anybody but root and the owner of this program could have changed it.
fn program_beside_us() -> Result<PathBuf, Failure> {
    let ourselves = std::env::current_exe().map_err(|error| {
        Failure::failed(format!(
            "cannot find the binder: /proc/self/exe: {}",
            failure::cause(&error)
        ))
    })?;
    let directory = ourselves.parent().unwrap_or(Path::new("/"));
    let program = directory.join(BINDER);
    let cannot = |cause: &dyn std::fmt::Display| {
        Failure::failed(format!(
            "cannot run the binder {}: {cause}",
            quoted(&program)
        ))
    };
    let binder = program.symlink_metadata().map_err(|error| {
        // The list that cargo keeps of what it has installed into this folder's parent.
        let by_cargo = directory.with_file_name(".crates.toml").exists();
        cannot(&failure::cause(&error)).hint(remedy::of_missing_binder(&ourselves, by_cargo))
    })?;
    if !binder.is_file() {
        return Err(cannot(&"it is not a regular file"));
    }
    if !nix::unistd::geteuid().is_root() {
        // Running it gives the caller no privilege that it does not have.
        return Ok(program);
    }
    let owner = std::fs::metadata("/proc/self/exe")
        .map_err(|error| cannot(&failure::cause(&error)))?
        .uid();
    let trust = Trust {
        owner: Some(owner),
        sticky: true,
    };
    open_directory(directory, &trust)
        .map_err(|untrusted| cannot(&distrust::of_path(&untrusted)).hint(remedy::TRUSTED_BINDER))?;
    let stat = nix::sys::stat::lstat(&program).map_err(|errno| cannot(&errno.desc()))?;
    match trust.objection(&stat) {
        Some(objection) => Err(
            cannot(&format_args!("it {}", distrust::predicate(objection)))
                .hint(remedy::TRUSTED_BINDER),
        ),
        None => Ok(program),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::zombie_processes,
        reason = "the binder that is unpacked waits for it"
    )]
    fn the_next_program_waits_for_the_binder_of_the_one_before() {
        let (channel, theirs) = ToBinder::pair().unwrap();
        // Like a binder, it ends with the channel.
        let child = Command::new("sh")
            .args(["-c", "read line; exit 7"])
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        let binder = Binder {
            child: Pid::from_raw(i32::try_from(child.id()).unwrap()),
            ended: None,
            channel,
        };
        let text = serde_json::to_string(&binder.pack(&mut Luggage::default())).unwrap();
        let pid = binder.pid();
        drop(binder);
        let next = Binder::unpack(serde_json::from_str(&text).unwrap());
        assert_eq!(next.pid(), pid);
        assert_eq!(next.end().unwrap().code(), Some(7));
    }
}
