//! Real binders, with the self-test in the place of the supervisor. As its list is the launcher's, it may hold attempts:
//! things that the binder must not be able to do, and tries to.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use caps::Capability;
use common::message::{
    Address, Ask, Attempt, Confinement, Grant, Refusal, Reply, SocketFile, Transport,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::Test;
use super::checks::Looks;
use crate::host::process::Process;
use crate::listeners::binder::{Binder, Heard, channel_failed};
use crate::words::failure::Failure;

const PORTS: &str = "binder of ports";
const PATH: &str = "binder of a path";

/// All of them, as what a binder cannot do.
const ATTEMPTS: [(Attempt, &str); 10] = [
    (Attempt::BecomeRoot, "change its user to root"),
    (Attempt::RaiseCapabilities, "raise a capability"),
    (Attempt::BindAnotherPort, "bind another port"),
    (Attempt::BindAnotherPath, "bind another path"),
    (Attempt::OpenAnotherSocket, "open a socket of another kind"),
    (Attempt::OpenFile, "open a file"),
    (Attempt::Execute, "execute a program"),
    (Attempt::Fork, "fork"),
    (Attempt::TraceParent, "trace its parent"),
    (Attempt::SignalParent, "signal its parent"),
];

/// What a binder has to do yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A grant of its list is unused.
    Serving,
    /// All is bound.
    Done,
}

/// A running binder. Dropping it ends it.
struct Played {
    binder: Binder,
    process: Process,
}

impl Drop for Played {
    fn drop(&mut self) {
        self.binder.kill();
    }
}

impl Test<'_> {
    /// The binder that becomes the user.
    pub fn binder_of_ports(&mut self) -> Result<(), Failure> {
        let grant = self.port();
        let (ask, address) = (self.ask_port(0), self.ports.address);
        let (mut played, _) = self.start_confined(PORTS, std::slice::from_ref(&grant))?;
        // It waits to be asked.
        let pid = played.binder.pid();
        let needed = Capability::CAP_NET_BIND_SERVICE;
        let looks = Looks {
            uid: self.user.uid,
            gid: self.user.gid,
            groups: self.user.groups.clone(),
            capability: self.has(needed)?.then_some(needed),
            sealed: self.identity.is_some(),
            filters: 1,
            undumpable: true,
        };
        self.looks(PORTS, pid, &looks)?;
        match &self.identity {
            Some(_) => self.binder_has(PORTS, pid, Vec::new())?,
            None => self.report.not_here(
                PORTS,
                "only root can see its descriptors and its environment",
            )?,
        }
        if !self.ports.served_is_low() {
            self.report.not_here(
                PORTS,
                format_args!(
                    "no low port can be had here: port {} stands for one",
                    self.ports.served
                ),
            )?;
        }
        let bound = match self.ask(&mut played, vec![ask])? {
            Heard::Reply(Reply::Bound { .. }, sockets) => sockets
                .into_iter()
                .filter_map(|socket| TcpListener::from(socket).local_addr().ok())
                .collect(),
            _ => Vec::new(),
        };
        self.report.check(
            PORTS,
            format_args!("it binds {address}:{}", self.ports.served),
            bound == [(address, self.ports.served).into()],
            "it does not",
        )?;
        let ended = self.end_of(&mut played)?;
        self.report.check(
            PORTS,
            "it ends when its list is used up",
            ended.success(),
            ended,
        )?;
        let elsewhere = Ask::Port {
            grant: 0,
            address: Address {
                ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port: self.ports.served,
                scope: 0,
            },
        };
        self.surprise(PORTS, &grant, elsewhere, "asked for another address")?;
        let beyond = self.ask_port(7);
        self.surprise(PORTS, &grant, beyond, "asked for more than its list holds")?;
        self.surprise_after(PORTS, &grant, ask)?;
        self.attempts(PORTS, |_, _| grant.clone(), ask)
    }

    /// The binder that stays root by number.
    pub fn binder_of_a_path(&mut self) -> Result<(), Failure> {
        for (number, owner) in [(0, None), (1, Some(self.user.uid))] {
            let grant = self.path(number, owner);
            let (mut played, has_landlock) =
                self.start_confined(PATH, std::slice::from_ref(&grant))?;
            let pid = played.binder.pid();
            let needed = Capability::CAP_CHOWN;
            let looks = Looks {
                uid: 0,
                gid: 0,
                groups: Vec::new(),
                capability: (owner.is_some() && self.has(needed)?).then_some(needed),
                sealed: true,
                filters: 1,
                undumpable: false,
            };
            self.looks(PATH, pid, &looks)?;
            let directory = self.scratch.directory().display().to_string();
            let mut rest = vec![directory];
            // The second layer, ready to be put over the first.
            rest.extend(has_landlock.then(|| "anon_inode:[landlock-ruleset]".to_owned()));
            self.binder_has(PATH, pid, rest)?;
            self.ask(&mut played, vec![Ask::Path { grant: 0 }])?;
            let socket = self.scratch.path(&format!("socket-{number}"));
            let is_there = socket.symlink_metadata().is_ok();
            let ended = self.end_of(&mut played)?;
            let left = socket.symlink_metadata().is_ok();
            self.report.check(
                PATH,
                "it makes its socket, and removes it at the end",
                is_there && !left && ended.success(),
                format_args!("made: {is_there}, left: {left}, {ended}"),
            )?;
        }
        self.report.not_here(
            PATH,
            "its locked securebits cannot be seen from outside: it ends where it cannot lock them",
        )?;
        let (grant, ask) = (self.path(2, None), Ask::Path { grant: 0 });
        let port = self.ask_port(0);
        self.surprise(PATH, &grant, port, "asked for a port")?;
        let beyond = Ask::Path { grant: 7 };
        self.surprise(PATH, &grant, beyond, "asked for more than its list holds")?;
        self.surprise_after(PATH, &grant, ask)?;
        self.attempts(PATH, |test, number| test.path(3 + number, None), ask)
    }

    fn port(&self) -> Grant {
        Grant::Port {
            transport: Transport::Tcp,
            port: self.ports.served,
            ip: Some(IpAddr::V4(self.ports.address)),
        }
    }

    fn ask_port(&self, grant: u32) -> Ask {
        let address = Address {
            ip: IpAddr::V4(self.ports.address),
            port: self.ports.served,
            scope: 0,
        };
        Ask::Port { grant, address }
    }

    /// Each binder has a path of its own: one that is ended by its sandbox cannot remove it.
    fn path(&self, number: usize, uid: Option<u32>) -> Grant {
        Grant::Path(SocketFile {
            path: self.scratch.path(&format!("socket-{number}")),
            mode: 0o600,
            uid,
            gid: None,
        })
    }

    /// A binder with this list, as far as it goes by itself, and whether it has Landlock. What confines it is two lines
    /// of the report.
    fn start_confined(
        &mut self,
        process: &str,
        grants: &[Grant],
    ) -> Result<(Played, bool), Failure> {
        let (played, confinement) = self.start_binder(grants)?;
        self.report.check(
            process,
            "seccomp is in force",
            confinement.seccomp,
            "this kernel or container has none for it",
        )?;
        self.report.check(
            process,
            format_args!("Landlock {} is in force", Confinement::LANDLOCK),
            confinement.landlock >= Confinement::LANDLOCK,
            match confinement.landlock {
                0 => "this kernel or container has none for it".to_owned(),
                version => format!("this kernel has version {version}"),
            },
        )?;
        Ok((played, confinement.landlock > 0))
    }

    fn start_binder(&self, grants: &[Grant]) -> Result<(Played, Confinement), Failure> {
        let stderr = self.scratch.log()?;
        let binder = Binder::start_with_stderr(self.identity.clone(), grants, stderr)?;
        let process = Process::open(binder.pid()).map_err(|errno| channel_failed(errno.desc()))?;
        let mut played = Played { binder, process };
        self.wait_for_word(&played, "the binder says what confines it")?;
        let confinement = played.binder.confinement()?;
        Ok((played, confinement))
    }

    fn ask(&self, played: &mut Played, asks: Vec<Ask>) -> Result<Heard, Failure> {
        played.binder.ask(asks);
        self.wait_for_word(played, "the binder answers")?;
        played.binder.hear()
    }

    /// Until it has said something, or has ended: so that nothing waits without end for it.
    fn wait_for_word(&self, played: &Played, what: &str) -> Result<(), Failure> {
        self.patience.readable(played.binder.as_fd(), what)?;
        if has_hung_up(played.binder.as_fd()) {
            let process = played.process.as_fd();
            self.patience.readable(process, "the binder ends")?;
        }
        Ok(())
    }

    /// Closes the channel, and waits for the end of the binder.
    fn end_of(&self, played: &mut Played) -> Result<ExitStatus, Failure> {
        played.binder.hang_up();
        let process = played.process.as_fd();
        self.patience
            .readable(process, "the binder ends with its channel")?;
        played.binder.wait().map_err(channel_failed)
    }

    /// It is asked for something that is not in its list.
    fn surprise(
        &mut self,
        process: &str,
        grant: &Grant,
        ask: Ask,
        asked: &str,
    ) -> Result<(), Failure> {
        let (mut played, _) = self.start_binder(std::slice::from_ref(grant))?;
        let heard = self.ask(&mut played, vec![ask])?;
        self.ends(process, heard, asked)
    }

    /// It is asked twice for the same. Another grant keeps it from having ended by then.
    fn surprise_after(&mut self, process: &str, grant: &Grant, ask: Ask) -> Result<(), Failure> {
        let list = [grant.clone(), Grant::Attempt(Attempt::OpenFile)];
        let (mut played, _) = self.start_binder(&list)?;
        self.ask(&mut played, vec![ask])?;
        let heard = self.ask(&mut played, vec![ask])?;
        self.ends(process, heard, "asked for the same twice")
    }

    fn ends(&mut self, process: &str, heard: Heard, asked: &str) -> Result<(), Failure> {
        let (holds, found) = match heard {
            Heard::End(ended) => (ended.code() == Some(1), ended.to_string()),
            Heard::Reply(Reply::Bound { .. }, _) => (false, "it does it".to_owned()),
            Heard::Reply(..) => (false, "it answers".to_owned()),
        };
        let what = format_args!("it gives nothing and ends when it is {asked}");
        self.report.check(process, what, holds, found)
    }

    /// Every attempt in both phases, each by a binder of its own.
    fn attempts(
        &mut self,
        process: &str,
        grant: impl Fn(&Self, usize) -> Grant,
        ask: Ask,
    ) -> Result<(), Failure> {
        let done = match ask {
            Ask::Path { .. } => "once it waits",
            Ask::Port { .. } | Ask::Attempt { .. } => "once all is bound",
        };
        let mut number = 0;
        for (phase, moment) in [(Phase::Serving, "while it serves"), (Phase::Done, done)] {
            for (attempt, what) in ATTEMPTS {
                let grants = [grant(self, number), Grant::Attempt(attempt)];
                number += 1;
                let outcome = match self.attempt(&grants, ask, phase) {
                    Err(failure) if self.patience.is_interrupted() => return Err(failure),
                    Err(failure) => Outcome::Other(failure.to_string().replace('\n', "; ")),
                    Ok(outcome) => outcome,
                };
                let (what, holds) = match knows_the_call(&ask, phase, attempt) {
                    true => (
                        format!("{moment}, it cannot {what}"),
                        matches!(outcome, Outcome::Forbidden(_)),
                    ),
                    // Not just refused by something else: the first layer holds by itself.
                    false => (
                        format!("{moment}, it is ended when it tries to {what}"),
                        matches!(outcome, Outcome::Ended),
                    ),
                };
                let found = match outcome {
                    Outcome::Ended => "its sandbox has ended it".to_owned(),
                    Outcome::Forbidden(errno) => {
                        format!("it is not ended but refused: {}", errno.desc())
                    }
                    Outcome::Other(found) => found,
                };
                self.report.check(process, what, holds, found)?;
            }
        }
        Ok(())
    }

    /// What becomes of one attempt.
    fn attempt(&self, grants: &[Grant], ask: Ask, phase: Phase) -> Result<Outcome, Failure> {
        let (mut played, _) = self.start_binder(grants)?;
        let attempt = Ask::Attempt { grant: 1 };
        let asks = match phase {
            Phase::Serving => vec![attempt],
            Phase::Done => vec![ask, attempt],
        };
        let heard = self.ask(&mut played, asks)?;
        Ok(match heard {
            Heard::End(ended) if ended.signal() == Some(Signal::SIGSYS as i32) => Outcome::Ended,
            Heard::End(ended) => Outcome::Other(format!("it ended, {ended}")),
            Heard::Reply(Reply::Refused { refusal, .. }, _) => Outcome::of(refusal),
            Heard::Reply(Reply::Bound { .. }, _) => Outcome::Other("it can".into()),
            Heard::Reply(Reply::Confined(_), _) => {
                Outcome::Other("it says twice what confines it".into())
            }
        })
    }
}

/// What became of an attempt.
enum Outcome {
    /// seccomp has ended the process.
    Ended,
    /// By the kernel, with one of the two errors that say just that.
    Forbidden(Errno),
    /// In words.
    Other(String),
}

impl Outcome {
    fn of(refusal: Refusal) -> Outcome {
        match refusal {
            Refusal::Errno(errno) => match Errno::from_raw(errno) {
                errno @ (Errno::EPERM | Errno::EACCES) => Outcome::Forbidden(errno),
                // No attempt at all: what it needs is not there.
                errno => Outcome::Other(errno.desc().into()),
            },
            Refusal::Because(cause) => Outcome::Other(cause),
        }
    }
}

/// Whether a binder makes this system call itself, with these arguments, so that only Landlock or the capabilities keep it
/// from that.
fn knows_the_call(ask: &Ask, phase: Phase, attempt: Attempt) -> bool {
    match ask {
        Ask::Path { .. } => {
            phase == Phase::Serving
                && matches!(
                    attempt,
                    Attempt::RaiseCapabilities | Attempt::BindAnotherPath
                )
        }
        // It does not wait afterwards, and has no second layer for that.
        Ask::Port { .. } | Ask::Attempt { .. } => matches!(
            attempt,
            Attempt::RaiseCapabilities | Attempt::BindAnotherPort
        ),
    }
}

fn has_hung_up(channel: BorrowedFd<'_>) -> bool {
    let ends = PollFlags::POLLHUP | PollFlags::from_bits_retain(libc::POLLRDHUP);
    let mut sources = [PollFd::new(channel, ends)];
    poll(&mut sources, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
