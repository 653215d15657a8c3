//! From the sealed list to the answers: who may have what, and each of it once.

#![deny(
    clippy::wildcard_enum_match_arm,
    reason = "a new message must be thought of in every phase"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use caps::Capability;
use common::channel::{Channel, ChannelError};
use common::message::{
    Allow, Ask, Grant, Identity, MOST_DESCRIPTORS, MOST_GRANTS, Refusal, Reply, Request, SocketFile,
};
use common::privileges;
use common::trusted_path::{Trust, open_directory};
use common::unix_socket::{Made, MadeFile, Place};
use nix::unistd::geteuid;

use crate::listener;

type ToSupervisor = Channel<Reply, Request>;

/// Phase 1 is done: the list is sealed.
pub struct Asked {
    channel: ToSupervisor,
    identity: Option<Identity>,
    grants: Vec<Grant>,
}

/// Phase 2 is done: what is at the paths is known.
pub struct Looked {
    channel: ToSupervisor,
    identity: Option<Identity>,
    grants: Vec<Open>,
}

/// Phase 3 is done: only what binding needs can be done any more.
pub struct Confined {
    channel: ToSupervisor,
    grants: Vec<Option<Open>>,
}

/// Phase 4 is done: no privilege is left, and these files are to be removed.
pub struct Served {
    channel: ToSupervisor,
    files: Vec<MadeFile>,
}

/// A grant that was not used yet.
enum Open {
    Port(Grant),
    Path {
        wanted: SocketFile,
        place: Box<Result<Place, Refusal>>,
    },
}

/// The sockets of one request, in its order.
#[derive(Default)]
struct Batch {
    sockets: Vec<OwnedFd>,
    replaced: Vec<u32>,
}

/// Receives `Allow` until one seals the list.
pub fn receive(channel: ToSupervisor) -> Result<Asked, String> {
    let mut asked = Asked {
        channel,
        identity: None,
        grants: Vec::new(),
    };
    loop {
        let Allow {
            identity,
            grants,
            more,
        } = match asked.channel.receive().map_err(in_words)? {
            Some(Request::Allow(allow)) => allow,
            Some(Request::Bind(_)) => return Err("Bind came before the list was sealed".into()),
            None => return Err("the channel was closed before the list was sealed".into()),
        };
        if identity.as_ref().is_some_and(|identity| identity.uid == 0) {
            return Err("the user to become is root".into());
        }
        if !asked.grants.is_empty() && identity != asked.identity {
            return Err("two lists for different users".into());
        }
        if grants.len() > MOST_GRANTS || (more && grants.is_empty()) {
            return Err(format!("a list of {} grants", grants.len()));
        }
        asked.identity = identity;
        asked.grants.extend(grants);
        if asked.grants.len() > MOST_SOCKETS {
            return Err(format!("more than {MOST_SOCKETS} grants"));
        }
        if !more {
            return Ok(asked);
        }
    }
}

/// More sockets than a process can have open by the kernel's default (`fs.nr_open`) are a mistake.
const MOST_SOCKETS: usize = 1 << 20;

impl Asked {
    /// Opens the directories of the paths and sees whether a server is still behind an existing socket: with
    /// the launcher's rights, because nothing but the launcher's own list has been heard yet. What is wrong with a
    /// path is answered when it is asked for.
    pub fn look(self) -> Looked {
        let grants = self
            .grants
            .into_iter()
            .map(|grant| match grant {
                Grant::Port { .. } => Open::Port(grant),
                Grant::Path(wanted) => Open::Path {
                    place: Box::new(place(&wanted.path)),
                    wanted,
                },
            })
            .collect();
        Looked {
            channel: self.channel,
            identity: self.identity,
            grants,
        }
    }
}

fn place(path: &Path) -> Result<Place, Refusal> {
    let directory = path.parent().unwrap_or(path);
    let directory = open_directory(directory, &Trust::ROOT)
        .map_err(|untrusted| Refusal::Because(untrusted.to_string()))?;
    Place::examine(directory, path)
}

impl Looked {
    /// For ports, root becomes the user and keeps the right to bind low ones; for paths, it stays root by number,
    /// because only root may write in their directories. One process does one of the two.
    pub fn drop_privileges(self) -> Result<Confined, String> {
        // A launcher without the right to bind low ports can still have high ones.
        let keep = privileges::available(&self.needed_capabilities())
            .map_err(|error| error.to_string())?;
        let paths = self
            .grants
            .iter()
            .any(|grant| matches!(grant, Open::Path { .. }));
        if paths
            && self
                .grants
                .iter()
                .any(|grant| matches!(grant, Open::Port(_)))
        {
            // A port that root binds is root's socket for good, whoever uses it.
            return Err("ports and paths are not for one process".into());
        }
        let dropped = match (&self.identity, geteuid().is_root()) {
            (None, false) if !paths => privileges::keep_only(&keep),
            (Some(_), true) if paths => privileges::stay_root_with(&keep).map(drop),
            (Some(identity), true) => privileges::become_user(identity, &keep).map(drop),
            (None, true) => return Err("root asked for sockets without a user to become".into()),
            (_, false) => return Err("an ordinary user asked for what only root can do".into()),
        };
        dropped.map_err(|error| error.to_string())?;
        Ok(Confined {
            channel: self.channel,
            grants: self.grants.into_iter().map(Some).collect(),
        })
    }

    fn needed_capabilities(&self) -> Vec<Capability> {
        let ports = self
            .grants
            .iter()
            .any(|grant| matches!(grant, Open::Port(_)));
        let owners = self.grants.iter().any(|grant| {
            matches!(grant, Open::Path { wanted, .. } if wanted.uid.is_some() || wanted.gid.is_some())
        });
        [
            (ports, Capability::CAP_NET_BIND_SERVICE),
            (owners, Capability::CAP_CHOWN),
        ]
        .into_iter()
        .filter_map(|(needed, capability)| needed.then_some(capability))
        .collect()
    }
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
        while self.grants.iter().any(Option::is_some) {
            let asks = match self.channel.receive().map_err(in_words)? {
                Some(Request::Bind(asks)) => asks,
                Some(Request::Allow(_)) => {
                    return Err("Allow came after the list was sealed".into());
                }
                None => return Ok(()),
            };
            if asks.is_empty() || asks.len() > MOST_DESCRIPTORS {
                return Err(format!("a request for {} sockets", asks.len()));
            }
            let mut batch = Batch::default();
            for (number, ask) in (0..).zip(asks) {
                if let Err(refusal) = self.fulfil(number, ask, &mut batch, files)? {
                    let reply = Reply::Refused {
                        ask: number,
                        refusal,
                    };
                    files.drain(..).for_each(|file| file.remove());
                    return self.channel.send(&reply, &[]).map_err(in_words);
                }
            }
            if self.grants.iter().all(Option::is_none) {
                // Before the last answer, so that no worker can start while a capability is left.
                privileges::keep_only(&[]).map_err(|error| error.to_string())?;
            }
            let descriptors: Vec<_> = batch.sockets.iter().map(AsFd::as_fd).collect();
            self.channel
                .send(
                    &Reply::Bound {
                        replaced: batch.replaced,
                    },
                    &descriptors,
                )
                .map_err(in_words)?;
        }
        Ok(())
    }

    /// One ask: an answer for the supervisor inside, or the reason to end at once outside.
    fn fulfil(
        &mut self,
        number: u32,
        ask: Ask,
        batch: &mut Batch,
        files: &mut Vec<MadeFile>,
    ) -> Result<Result<(), Refusal>, String> {
        let (Ask::Port { grant, .. } | Ask::Path { grant }) = ask;
        let open = usize::try_from(grant)
            .ok()
            .and_then(|grant| self.grants.get_mut(grant))
            .and_then(Option::take)
            .ok_or_else(|| format!("grant {grant} does not exist or was used already"))?;
        let bound = match (open, ask) {
            (
                Open::Port(Grant::Port {
                    transport,
                    port,
                    ip,
                }),
                Ask::Port { address, .. },
            ) if address.port == port && ip.is_none_or(|ip| ip == address.ip) => {
                listener::bind(transport, address)
                    .map_err(Refusal::from)
                    .map(|socket| (socket, None))
            }
            (Open::Path { wanted, place }, Ask::Path { .. }) => (*place)
                .and_then(|place| place.bind(wanted.mode, wanted.uid, wanted.gid))
                .map(
                    |Made {
                         socket,
                         file,
                         replaced,
                     }| (socket, Some((file, replaced))),
                ),
            (Open::Port(_) | Open::Path { .. }, Ask::Port { .. } | Ask::Path { .. }) => {
                return Err(format!("the ask is not what grant {grant} allows"));
            }
        };
        Ok(bound.map(|(socket, file)| {
            batch.sockets.push(socket);
            if let Some((file, replaced)) = file {
                files.push(file);
                batch.replaced.extend(replaced.then_some(number));
            }
        }))
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
