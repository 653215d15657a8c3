//! From the sealed list to the answers: one phase after the other, each of which consumes the one before.

#![deny(
    clippy::wildcard_enum_match_arm,
    reason = "a new message must be thought of in every phase"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use caps::Capability;
use common::channel::{Channel, ChannelError};
use common::message::{Ask, Attempt, Grant, Identity, Refusal, Reply, Request, Transport};
use common::privileges;
use common::trusted_path::{Trust, open_directory};
use common::unix_socket::{Directory, Made, MadeFile, Place};
use nix::unistd::{Pid, geteuid, getppid};

use crate::grants::{List, Next, Sealed, Unused};
use crate::policy::Authority;
use crate::sandbox::{self, Narrower, Work};
use crate::{attempt, listener};

type ToSupervisor = Channel<Reply, Request>;

/// Phase 1 is done: the list is sealed.
pub struct Asked {
    channel: ToSupervisor,
    list: Sealed,
}

/// Phase 2 is done: what is at the paths is known, and what the policy says of the ports.
pub struct Looked {
    channel: ToSupervisor,
    identity: Option<Identity>,
    needed: Vec<Capability>,
    grants: Vec<(Grant, Finding)>,
}

/// Phase 3 is done: no other user and no other capability than binding needs.
pub struct Dropped {
    channel: ToSupervisor,
    grants: Vec<(Grant, Finding)>,
}

/// Phase 4 is done: only what binding needs can be done any more.
pub struct Confined {
    channel: ToSupervisor,
    unused: Unused<Finding>,
    narrower: Option<Narrower>,
    /// For a self-test.
    parent: Pid,
}

/// Phase 5 is done: no privilege is left, and these files are to be removed.
pub struct Served {
    channel: ToSupervisor,
    files: Vec<MadeFile>,
}

/// What is known of a grant, beside what it says.
enum Finding {
    Nothing,
    Refused(Refusal),
    Place(Box<Place>),
}

/// The sockets of one request, in its order.
#[derive(Default)]
struct Batch {
    sockets: Vec<OwnedFd>,
    replaced: Vec<u32>,
    /// Made when everything else is done, so that a self-test can have it in the last phase too.
    attempt: Option<(u32, Attempt)>,
}

/// Receives the list until it is sealed.
pub fn receive(channel: ToSupervisor) -> Result<Asked, String> {
    let mut list = List::default();
    loop {
        let request = channel.receive().map_err(in_words)?;
        let request = request.ok_or("the channel was closed before the list was sealed")?;
        match list.with(request)? {
            Next::More(longer) => list = longer,
            Next::Sealed(list) => return Ok(Asked { channel, list }),
        }
    }
}

impl Asked {
    /// Opens the directories of the paths and sees whether a server is still behind an existing socket: with
    /// the launcher's rights, because nothing but the launcher's own list has been heard yet. What is wrong with a
    /// path, or with a port for this launcher, is answered when it is asked for.
    pub fn look(self, authority: &Authority) -> Looked {
        let look = |grant: Grant| {
            let finding = match &grant {
                Grant::Port {
                    transport, port, ..
                } => match authority.objection(*transport, *port) {
                    Some(objection) => Finding::Refused(Refusal::Because(objection)),
                    None => Finding::Nothing,
                },
                // Only root may ask for it: the next phase refuses, and nothing is looked at before.
                Grant::Path(_) if !geteuid().is_root() => Finding::Nothing,
                Grant::Path(file) => match place(&file.path) {
                    Ok(place) => Finding::Place(Box::new(place)),
                    Err(refusal) => Finding::Refused(refusal),
                },
                Grant::Attempt(_) => Finding::Nothing,
            };
            (grant, finding)
        };
        let grants: Vec<_> = self.list.grants.into_iter().map(look).collect();
        Looked {
            channel: self.channel,
            identity: self.list.identity,
            needed: needed_capabilities(&grants, authority),
            grants,
        }
    }
}

fn needed_capabilities(grants: &[(Grant, Finding)], authority: &Authority) -> Vec<Capability> {
    let ports = grants.iter().any(|one| match one {
        (Grant::Port { port, .. }, Finding::Nothing) => authority.is_needed_for(*port),
        (Grant::Port { .. } | Grant::Path(_) | Grant::Attempt(_), _) => false,
    });
    [
        (ports, Capability::CAP_NET_BIND_SERVICE),
        (work(grants).owners, Capability::CAP_CHOWN),
    ]
    .into_iter()
    .filter_map(|(needed, capability)| needed.then_some(capability))
    .collect()
}

fn place(path: &Path) -> Result<Place, Refusal> {
    let directory = path.parent().unwrap_or(path);
    let directory = open_directory(directory, &Trust::ROOT)
        .map_err(|untrusted| Refusal::Because(untrusted.to_string()))?;
    Place::examine(Directory::OfRoot(directory), path)
}

impl Looked {
    /// For ports, root becomes the user and keeps the right to bind low ones; for paths, it stays root by number,
    /// because only root may write in their directories. One process does one of the two.
    pub fn drop_privileges(self) -> Result<Dropped, String> {
        // A launcher without the right to bind low ports can still have high ones.
        let keep = privileges::available(&self.needed).map_err(|error| error.to_string())?;
        let is_path = |(grant, _): &(Grant, Finding)| matches!(grant, Grant::Path(_));
        let paths = self.grants.iter().any(is_path);
        let dropped = match (&self.identity, geteuid().is_root()) {
            (None, false) if !paths => privileges::keep_only(&keep),
            (Some(_), true) if paths => privileges::stay_root_with(&keep).map(drop),
            (Some(identity), true) => privileges::become_user(identity, &keep).map(drop),
            (None, true) => return Err("root asked for sockets without a user to become".into()),
            (_, false) => return Err("an ordinary user asked for what only root can do".into()),
        };
        dropped.map_err(|error| error.to_string())?;
        // The change of user may have undone it.
        privileges::become_undumpable().map_err(|error| error.to_string())?;
        Ok(Dropped {
            channel: self.channel,
            grants: self.grants,
        })
    }
}

impl Dropped {
    /// Takes away what the capabilities and the user still leave, and tells the supervisor what this kernel has of that.
    pub fn confine(self) -> Result<Confined, String> {
        let parent = getppid();
        let (confinement, narrower) = sandbox::confine(&work(&self.grants))?;
        // Where the supervisor is gone by now, the next phase finds that out.
        drop(self.channel.send(&Reply::Confined(confinement), &[]));
        Ok(Confined {
            channel: self.channel,
            unused: Unused::new(self.grants),
            narrower,
            parent,
        })
    }
}

/// What the grants need that will be used: those that are refused need nothing.
fn work(grants: &[(Grant, Finding)]) -> Work<'_> {
    let mut work = Work::default();
    for (grant, finding) in grants {
        match (grant, finding) {
            (
                Grant::Port {
                    transport: Transport::Tcp,
                    port,
                    ..
                },
                Finding::Nothing,
            ) => work.tcp_ports.push(*port),
            (
                Grant::Port {
                    transport: Transport::Udp,
                    ..
                },
                Finding::Nothing,
            ) => work.udp = true,
            (Grant::Path(file), Finding::Place(place)) => {
                work.directories.push(place.directory());
                work.owners |= file.uid.is_some() || file.gid.is_some();
            }
            (
                Grant::Port { .. } | Grant::Path(_) | Grant::Attempt(_),
                Finding::Nothing | Finding::Refused(_) | Finding::Place(_),
            ) => {}
        }
    }
    work
}

impl Confined {
    /// Answers requests until the last grant is used, one is refused, or the channel is closed.
    pub fn serve(mut self) -> Result<Served, String> {
        let mut files = Vec::new();
        let result = self.answer_all(&mut files);
        let served = Served {
            channel: self.channel,
            files,
        };
        match result {
            Ok(()) => Ok(served),
            Err(cause) => {
                served.remove_files();
                Err(cause)
            }
        }
    }

    fn answer_all(&mut self, files: &mut Vec<MadeFile>) -> Result<(), String> {
        while !self.unused.is_empty() {
            let Some(request) = self.channel.receive().map_err(in_words)? else {
                return Ok(());
            };
            let mut batch = Batch::default();
            for (number, ask) in (0..).zip(self.unused.asks(request)?) {
                if let Err(refusal) = self.fulfil(number, ask, &mut batch, files)? {
                    return self.refuse(number, refusal, files);
                }
            }
            if self.unused.is_empty() {
                // Before the last answer, so that no worker can start while anything is left that is not needed.
                privileges::give_up_rest().map_err(|error| error.to_string())?;
                if let Some(narrower) = self.narrower.take() {
                    narrower.confine()?;
                }
            }
            if let Some((number, attempt)) = batch.attempt
                && let Err(errno) = attempt::make(attempt, self.parent)
            {
                return self.refuse(number, errno.into(), files);
            }
            let descriptors: Vec<_> = batch.sockets.iter().map(AsFd::as_fd).collect();
            let bound = Reply::Bound {
                replaced: batch.replaced,
            };
            self.channel.send(&bound, &descriptors).map_err(in_words)?;
        }
        Ok(())
    }

    /// The last answer: what was made so far is not used.
    fn refuse(
        &mut self,
        ask: u32,
        refusal: Refusal,
        files: &mut Vec<MadeFile>,
    ) -> Result<(), String> {
        files.drain(..).for_each(|file| file.remove());
        self.channel
            .send(&Reply::Refused { ask, refusal }, &[])
            .map_err(in_words)
    }

    /// One ask: an answer for the supervisor inside, or the reason to end at once outside.
    fn fulfil(
        &mut self,
        number: u32,
        ask: Ask,
        batch: &mut Batch,
        files: &mut Vec<MadeFile>,
    ) -> Result<Result<(), Refusal>, String> {
        match (self.unused.take(&ask)?, ask) {
            ((_, Finding::Refused(refusal)), _) => return Ok(Err(refusal)),
            ((Grant::Port { transport, .. }, Finding::Nothing), Ask::Port { address, .. }) => {
                match listener::bind(transport, address) {
                    Ok(socket) => batch.sockets.push(socket),
                    Err(errno) => return Ok(Err(errno.into())),
                }
            }
            ((Grant::Path(wanted), Finding::Place(place)), Ask::Path { .. }) => {
                match place.bind(wanted.mode, wanted.uid, wanted.gid) {
                    Ok(Made {
                        socket,
                        file,
                        replaced,
                    }) => {
                        batch.sockets.push(socket);
                        files.push(file);
                        batch.replaced.extend(replaced.then_some(number));
                    }
                    Err(refusal) => return Ok(Err(refusal)),
                }
            }
            ((Grant::Attempt(attempt), Finding::Nothing), Ask::Attempt { .. }) => {
                if batch.attempt.replace((number, attempt)).is_some() {
                    return Err("two attempts in one request".into());
                }
            }
            (
                (
                    Grant::Port { .. } | Grant::Path(_) | Grant::Attempt(_),
                    Finding::Nothing | Finding::Place(_),
                ),
                Ask::Port { .. } | Ask::Path { .. } | Ask::Attempt { .. },
            ) => return Err("a grant was prepared for something else".into()),
        }
        Ok(Ok(()))
    }
}

impl Served {
    /// Where nothing is to be removed, returns at once. Otherwise waits until the supervisor closes the channel,
    /// deliberately or by its death, and removes the socket files that are still the ones that were made.
    pub fn wait(self) {
        if self.files.is_empty() {
            return;
        }
        self.channel.wait_for_end();
        self.remove_files();
    }

    fn remove_files(&self) {
        self.files.iter().for_each(MadeFile::remove);
    }
}

fn in_words(error: ChannelError) -> String {
    error.to_string()
}
