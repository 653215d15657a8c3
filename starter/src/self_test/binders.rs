//! Real binders, with the self-test in place of the supervisor. Since the launcher writes the list, it may name escapes:
//! things that the binder must not be able to do, and tries to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use caps::Capability;
use common::message::{
    Address, Ask, Confinement, Escape, Grant, Reply, Request, SocketFile, Transport,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::Test;
use super::checks::Profile;
use crate::host::process::Process;
use crate::listeners::binder::{Binder, Received, channel_failed};
use crate::words::failure::Failure;

const PORTS: &str = "port binder";
const PATH: &str = "path binder";

/// All of them, worded as things that a binder cannot do.
const ESCAPES: [(Escape, &str); 10] = [
    (Escape::BecomeRoot, "change its user to root"),
    (Escape::RaiseCapabilities, "raise a capability"),
    (Escape::BindAnotherPort, "bind another port"),
    (Escape::BindAnotherPath, "bind another path"),
    (Escape::OpenAnotherSocket, "open a socket of another kind"),
    (Escape::OpenFile, "open a file"),
    (Escape::Execute, "execute a program"),
    (Escape::Fork, "fork"),
    (Escape::TraceParent, "trace its parent"),
    (Escape::SignalParent, "signal its parent"),
];

/// The phase of a binder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A grant of its list is unused.
    Serving,
    /// Everything is bound.
    Done,
}

/// A running binder. Dropping it kills it.
struct TestBinder {
    binder: Binder,
    process: Process,
}

impl Drop for TestBinder {
    fn drop(&mut self) {
        self.binder.kill();
    }
}

impl Test<'_> {
    /// The binder that becomes the user.
    pub fn binder_of_ports(&mut self) -> Result<(), Failure> {
        let grant = self.port();
        let ask = self.ask_port(0);
        let (mut test_binder, _) = self.start_confined(PORTS, std::slice::from_ref(&grant))?;
        // It waits for requests.
        let pid = test_binder.binder.pid();
        let needed = Capability::CAP_NET_BIND_SERVICE;
        let profile = Profile {
            uid: self.user.uid,
            gid: self.user.gid,
            groups: self.user.groups.clone(),
            capability: self.has(needed)?.then_some(needed),
            sealed: self.identity.is_some(),
            filters: 1,
            undumpable: true,
        };
        self.check_profile(PORTS, pid, &profile)?;
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
                    "no low port is available here: testing with port {} instead",
                    self.ports.served
                ),
            )?;
        }
        self.serves_its_port(&mut test_binder, ask)?;
        let elsewhere = Ask::Port {
            grant: 0,
            address: Address {
                ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port: self.ports.served,
                scope: 0,
            },
        };
        self.ask_beyond(PORTS, &grant, elsewhere, "asked for another address")?;
        let beyond = self.ask_port(7);
        self.ask_beyond(PORTS, &grant, beyond, "asked for more than its list holds")?;
        self.ask_twice(PORTS, &grant, ask)?;
        self.escapes(PORTS, |_, _| grant.clone(), ask)
    }

    /// It binds what it was started for, and exits.
    fn serves_its_port(&mut self, test_binder: &mut TestBinder, ask: Ask) -> Result<(), Failure> {
        let (address, port) = (self.ports.address, self.ports.served);
        let bound = match self.bind(test_binder, ask)? {
            Received::Reply(Reply::Bound { .. }, sockets) => sockets
                .into_iter()
                .filter_map(|socket| TcpListener::from(socket).local_addr().ok())
                .collect(),
            _ => Vec::new(),
        };
        self.report.check(
            PORTS,
            format_args!("it binds {address}:{port}"),
            bound == [(address, port).into()],
            "it does not",
        )?;
        let ended = self.end_of(test_binder)?;
        self.report.check(
            PORTS,
            "it exits when its list is used up",
            ended.success(),
            ended,
        )
    }

    /// The binder that keeps uid 0.
    pub fn binder_of_a_path(&mut self) -> Result<(), Failure> {
        for (number, owner) in [(0, None), (1, Some(self.user.uid))] {
            let grant = self.path(number, owner);
            let (mut test_binder, has_landlock) =
                self.start_confined(PATH, std::slice::from_ref(&grant))?;
            let pid = test_binder.binder.pid();
            let needed = Capability::CAP_CHOWN;
            let profile = Profile {
                uid: 0,
                gid: 0,
                groups: Vec::new(),
                capability: (owner.is_some() && self.has(needed)?).then_some(needed),
                sealed: true,
                filters: 1,
                undumpable: false,
            };
            self.check_profile(PATH, pid, &profile)?;
            let directory = self.scratch.directory().to_string_lossy().into_owned();
            let mut rest = vec![directory];
            // The second layer, ready to be added to the first.
            rest.extend(has_landlock.then(|| "anon_inode:[landlock-ruleset]".to_owned()));
            self.binder_has(PATH, pid, rest)?;
            self.bind(&mut test_binder, Ask::Path { grant: 0 })?;
            let socket = self.scratch.path(&format!("socket-{number}"));
            let is_there = socket.symlink_metadata().is_ok();
            let ended = self.end_of(&mut test_binder)?;
            let left = socket.symlink_metadata().is_ok();
            self.report.check(
                PATH,
                "it creates its socket, and removes it at exit",
                is_there && !left && ended.success(),
                format_args!("made: {is_there}, left: {left}, {ended}"),
            )?;
        }
        self.report.not_here(
            PATH,
            "its locked securebits cannot be seen from outside: it exits if it cannot lock them",
        )?;
        let (grant, ask) = (self.path(2, None), Ask::Path { grant: 0 });
        let port = self.ask_port(0);
        self.ask_beyond(PATH, &grant, port, "asked for a port")?;
        let beyond = Ask::Path { grant: 7 };
        self.ask_beyond(PATH, &grant, beyond, "asked for more than its list holds")?;
        self.ask_twice(PATH, &grant, ask)?;
        self.escapes(PATH, |test, number| test.path(3 + number, None), ask)
    }

    fn port(&self) -> Grant {
        Grant::Port {
            transport: Transport::Tcp,
            port: self.ports.served,
            ip: Some(IpAddr::V4(self.ports.address)),
            freebind: false,
            lanes: 1,
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

    /// Each binder has a path of its own: one that its sandbox kills cannot remove it.
    fn path(&self, number: usize, uid: Option<u32>) -> Grant {
        Grant::Path(SocketFile {
            path: self.scratch.path(&format!("socket-{number}")).into(),
            mode: 0o600,
            uid,
            gid: None,
        })
    }

    /// Starts a binder with this list, as far as it goes by itself; returns whether it has Landlock. Its confinement is two
    /// lines of the report.
    fn start_confined(
        &mut self,
        process: &str,
        grants: &[Grant],
    ) -> Result<(TestBinder, bool), Failure> {
        let (test_binder, confinement) = self.start_binder(grants, &[])?;
        self.report.check(
            process,
            "seccomp is in force",
            confinement.seccomp,
            "this kernel or container lacks it",
        )?;
        self.report.check(
            process,
            format_args!("Landlock {} is in force", Confinement::LANDLOCK),
            confinement.landlock >= Confinement::LANDLOCK,
            match confinement.landlock {
                0 => "this kernel or container lacks it".to_owned(),
                version => format!("this kernel has version {version}"),
            },
        )?;
        Ok((test_binder, confinement.landlock > 0))
    }

    fn start_binder(
        &self,
        grants: &[Grant],
        escapes: &[Escape],
    ) -> Result<(TestBinder, Confinement), Failure> {
        let stderr = self.scratch.log()?;
        let binder = Binder::start_to_test(self.identity.clone(), grants, escapes, stderr)?;
        let process = Process::open(binder.pid()).map_err(|errno| channel_failed(errno.desc()))?;
        let mut test_binder = TestBinder { binder, process };
        self.wait_for_message(&test_binder, "the binder reports its confinement")?;
        let confinement = test_binder.binder.confinement()?;
        Ok((test_binder, confinement))
    }

    fn bind(&self, test_binder: &mut TestBinder, ask: Ask) -> Result<Received, Failure> {
        self.request(test_binder, &Request::Bind(vec![ask]))
    }

    fn request(
        &self,
        test_binder: &mut TestBinder,
        request: &Request,
    ) -> Result<Received, Failure> {
        test_binder.binder.send(request);
        self.wait_for_message(test_binder, "the binder answers")?;
        test_binder.binder.receive_or_end()
    }

    /// Waits until it has sent something or exited, so that no wait can be endless.
    fn wait_for_message(&self, test_binder: &TestBinder, what: &str) -> Result<(), Failure> {
        self.patience.readable(test_binder.binder.as_fd(), what)?;
        if has_hung_up(test_binder.binder.as_fd()) {
            let process = test_binder.process.as_fd();
            self.patience.readable(process, "the binder ends")?;
        }
        Ok(())
    }

    /// Closes the channel, and waits for the binder to exit.
    fn end_of(&self, test_binder: &mut TestBinder) -> Result<ExitStatus, Failure> {
        test_binder.binder.hang_up();
        let process = test_binder.process.as_fd();
        self.patience
            .readable(process, "the binder ends with its channel")?;
        test_binder.binder.wait().map_err(channel_failed)
    }

    /// Requests something that is not in its list.
    fn ask_beyond(
        &mut self,
        process: &str,
        grant: &Grant,
        ask: Ask,
        asked: &str,
    ) -> Result<(), Failure> {
        let (mut test_binder, _) = self.start_binder(std::slice::from_ref(grant), &[])?;
        let received = self.bind(&mut test_binder, ask)?;
        self.ends(process, received, asked)
    }

    /// Requests the same thing twice. Without an escape that is never tried it would have exited by then.
    fn ask_twice(&mut self, process: &str, grant: &Grant, ask: Ask) -> Result<(), Failure> {
        let grants = std::slice::from_ref(grant);
        let (mut test_binder, _) = self.start_binder(grants, &[Escape::OpenFile])?;
        self.bind(&mut test_binder, ask)?;
        let received = self.bind(&mut test_binder, ask)?;
        self.ends(process, received, "asked for the same twice")
    }

    fn ends(&mut self, process: &str, received: Received, asked: &str) -> Result<(), Failure> {
        let (holds, found) = match received {
            Received::End(ended) => (ended.code() == Some(1), ended.to_string()),
            Received::Reply(Reply::Bound { .. }, _) => (false, "it succeeds".to_owned()),
            Received::Reply(..) => (false, "it answers".to_owned()),
        };
        let what = format_args!("it gives nothing and exits when it is {asked}");
        self.report.check(process, what, holds, found)
    }

    /// Tries every escape in both phases, each with a binder of its own.
    fn escapes(
        &mut self,
        process: &str,
        grant: impl Fn(&Self, usize) -> Grant,
        ask: Ask,
    ) -> Result<(), Failure> {
        let done = match ask {
            Ask::Path { .. } => "once it waits",
            Ask::Port { .. } => "once all is bound",
        };
        let mut number = 0;
        for (phase, moment) in [(Phase::Serving, "while it serves"), (Phase::Done, done)] {
            for (escape, what) in ESCAPES {
                let grant = grant(self, number);
                number += 1;
                let outcome = match self.escape(grant, ask, phase, escape) {
                    Err(failure) if self.patience.is_interrupted() => return Err(failure),
                    Err(failure) => Outcome::Other(failure.to_string().replace('\n', "; ")),
                    Ok(outcome) => outcome,
                };
                let (what, holds) = match makes_the_call_itself(&ask, phase, escape) {
                    true => (
                        format!("{moment}, it cannot {what}"),
                        matches!(outcome, Outcome::Forbidden(_)),
                    ),
                    // Not merely refused by something else: the first layer is sufficient.
                    false => (
                        format!("{moment}, it is killed when it tries to {what}"),
                        matches!(outcome, Outcome::Ended),
                    ),
                };
                self.report.check(process, what, holds, outcome)?;
            }
        }
        Ok(())
    }

    /// The outcome of one escape.
    fn escape(
        &self,
        grant: Grant,
        ask: Ask,
        phase: Phase,
        escape: Escape,
    ) -> Result<Outcome, Failure> {
        let (mut test_binder, _) = self.start_binder(&[grant], &[escape])?;
        if phase == Phase::Done {
            match self.bind(&mut test_binder, ask)? {
                Received::Reply(Reply::Bound { .. }, _) => {}
                Received::Reply(..) => return Ok(Outcome::Other("it does not bind".into())),
                Received::End(ended) => return Ok(Outcome::of_end(ended)),
            }
        }
        let received = self.request(&mut test_binder, &Request::TryEscape(escape))?;
        Ok(match received {
            Received::End(ended) => Outcome::of_end(ended),
            Received::Reply(Reply::EscapeTried { errno: None }, _) => {
                Outcome::Other("it can".into())
            }
            Received::Reply(Reply::EscapeTried { errno: Some(errno) }, _) => {
                Outcome::of_errno(Errno::from_raw(errno))
            }
            Received::Reply(Reply::Bound { .. } | Reply::Refused { .. }, _) => {
                Outcome::Other("it answers something else".into())
            }
            Received::Reply(Reply::Confined(_), _) => {
                Outcome::Other("it reports its confinement twice".into())
            }
        })
    }
}

/// The outcome of an escape.
enum Outcome {
    /// seccomp killed the process.
    Ended,
    /// Refused by the kernel, with one of the two errors that mean just that.
    Forbidden(Errno),
    /// In words.
    Other(String),
}

impl Outcome {
    fn of_end(ended: ExitStatus) -> Outcome {
        match ended.signal() == Some(Signal::SIGSYS as i32) {
            true => Outcome::Ended,
            false => Outcome::Other(format!("it ended, {ended}")),
        }
    }

    fn of_errno(errno: Errno) -> Outcome {
        match errno {
            Errno::EPERM | Errno::EACCES => Outcome::Forbidden(errno),
            // Nothing was tried: a precondition is missing.
            _ => Outcome::Other(errno.desc().into()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Ended => f.write_str("its sandbox kills it"),
            Outcome::Forbidden(errno) => {
                write!(f, "it is refused, not killed: {}", errno.desc())
            }
            Outcome::Other(found) => f.write_str(found),
        }
    }
}

/// Whether a binder makes this system call itself, with these arguments, so that only Landlock or the capabilities prevent
/// it.
fn makes_the_call_itself(ask: &Ask, phase: Phase, escape: Escape) -> bool {
    match ask {
        Ask::Path { .. } => {
            phase == Phase::Serving
                && matches!(escape, Escape::RaiseCapabilities | Escape::BindAnotherPath)
        }
        // It does not wait afterwards, and has no second layer for that.
        Ask::Port { .. } => {
            matches!(escape, Escape::RaiseCapabilities | Escape::BindAnotherPort)
        }
    }
}

fn has_hung_up(channel: BorrowedFd<'_>) -> bool {
    let ends = PollFlags::POLLHUP | PollFlags::from_bits_retain(libc::POLLRDHUP);
    let mut sources = [PollFd::new(channel, ends)];
    poll(&mut sources, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
