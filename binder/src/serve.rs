//! From the sealed list to the answers: one phase after the other, each of which consumes the one before.

#![deny(
    clippy::wildcard_enum_match_arm,
    reason = "a new message must be thought of in every phase"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use caps::Capability;
use common::channel::Channel;
use common::for_user;
use common::message::{
    Ask, Escape, Grant, Identity, Refusal, Reply, Request, SocketFile, Transport,
};
use common::privileges;
use common::trusted_path::{Trust, open_directory};
use common::unix_socket::{Made, MadeFile, Place, RootDirectory};
use nix::errno::Errno;
use nix::unistd::{Pid, geteuid, getppid};

use crate::grants::{List, Next, Order, Sealed, Unused};
use crate::policy::Authority;
use crate::sandbox::{self, Narrower, What, Work};
use crate::{escape, listener};

type ToSupervisor = Channel<Reply, Request>;

/// Phase 1 is done: the list is sealed.
pub struct Asked {
    channel: ToSupervisor,
    list: Sealed,
}

/// Phase 2 is done: the contents of the paths are known, and what the policy says about the ports.
pub struct Examined {
    channel: ToSupervisor,
    identity: Option<Identity>,
    has_paths: bool,
    needed: Vec<Capability>,
    unused: Unused<Task>,
}

/// Phase 3 is done: no other user and no capability except what binding needs.
pub struct Dropped {
    channel: ToSupervisor,
    unused: Unused<Task>,
}

/// Phase 4 is done: only what binding needs is still possible.
pub struct Confined {
    channel: ToSupervisor,
    unused: Unused<Task>,
    narrower: Option<Narrower>,
    /// For a self-test.
    parent: Pid,
}

/// Phase 5 is done: no privilege is left, and these files must be removed.
pub struct Served {
    channel: ToSupervisor,
    files: Vec<MadeFile<RootDirectory>>,
}

/// What to do for a grant when it is requested.
enum Task {
    Port {
        transport: Transport,
        port: u16,
        freebind: bool,
        lanes: u8,
    },
    Path(Box<Place<RootDirectory>>, SocketFile),
    ForUser(Box<for_user::Place>, Identity),
    Refuse(Refusal),
}

/// What one request has made, in order, and which of the sockets have replaced a stale one.
#[derive(Default)]
struct Batch {
    descriptors: Vec<OwnedFd>,
    replaced: Vec<u32>,
}

/// Receives the list until it is sealed.
pub fn receive(channel: ToSupervisor) -> Result<Asked, String> {
    let mut list = List::default();
    loop {
        let request = channel.receive()?;
        let request = request.ok_or("the channel was closed before the list was sealed")?;
        match list.with(request)? {
            Next::More(longer) => list = longer,
            Next::Sealed(list) => return Ok(Asked { channel, list }),
        }
    }
}

impl Asked {
    /// Opens the directories of the paths and finds out whether an existing socket is still served: with the launcher's
    /// privileges, because nothing but the launcher's own list has been read yet. An objection to a path, or to a port for
    /// this launcher, is answered when it is requested.
    pub fn examine(self, authority: &Authority) -> Examined {
        let Asked { channel, list } = self;
        let has_paths = list.has_paths();
        let prepare = |grant: Grant| {
            let user = list.identity.as_ref();
            let task = task(&grant, user, authority).unwrap_or_else(Task::Refuse);
            (grant, task)
        };
        let tasks = list.grants.into_iter().map(prepare).collect();
        let unused = Unused::new(tasks, list.escapes);
        Examined {
            channel,
            identity: list.identity,
            has_paths,
            needed: needed_capabilities(&unused, authority),
            unused,
        }
    }
}

fn task(grant: &Grant, user: Option<&Identity>, authority: &Authority) -> Result<Task, Refusal> {
    match grant {
        Grant::Port {
            transport,
            port,
            freebind,
            lanes,
            ..
        } => {
            authority.check(*transport, *port)?;
            Ok(Task::Port {
                transport: *transport,
                port: *port,
                freebind: *freebind,
                lanes: *lanes,
            })
        }
        // Only root may request it: the next phase ends the process, and nothing is touched before.
        Grant::Path(_) | Grant::ForUser(_) if !geteuid().is_root() => Err(Errno::EPERM.into()),
        Grant::Path(file) => {
            let path = Path::new(&file.path);
            let place = Place::examine(directory_of(path)?, path)?;
            Ok(Task::Path(Box::new(place), file.clone()))
        }
        Grant::ForUser(wanted) => {
            // Without one, the next phase ends the process too.
            let user = user.ok_or(Errno::EPERM)?;
            let path = Path::new(&wanted.path);
            let directory = directory_of(path)?;
            let place = for_user::Place::examine(directory, path, wanted.kind, user.uid)?;
            Ok(Task::ForUser(Box::new(place), user.clone()))
        }
    }
}

fn directory_of(path: &Path) -> Result<RootDirectory, Refusal> {
    let directory = path.parent().unwrap_or(path);
    let directory = open_directory(directory, &Trust::ROOT).map_err(Refusal::Untrusted)?;
    Ok(RootDirectory(directory))
}

fn needed_capabilities(unused: &Unused<Task>, authority: &Authority) -> Vec<Capability> {
    let mut needed = Vec::new();
    let is_privileged = |task: &Task| match task {
        Task::Port { port, .. } => authority.is_needed_for(*port),
        Task::Path(..) | Task::ForUser(..) | Task::Refuse(_) => false,
    };
    if unused.prepared().any(is_privileged) {
        needed.push(Capability::CAP_NET_BIND_SERVICE);
    }
    if work(unused).owners {
        needed.push(Capability::CAP_CHOWN);
    }
    needed
}

impl Examined {
    /// For ports, root becomes the user and retains the right to bind low ones; for paths, it keeps uid 0, because only
    /// root may write in their directories. One process does one of the two.
    pub fn drop_privileges(self) -> Result<Dropped, String> {
        // A launcher without the right to bind low ports can still have high ones.
        let retained = privileges::available(&self.needed)?;
        match (&self.identity, geteuid().is_root()) {
            (None, false) if !self.has_paths => privileges::retain_only(&retained),
            (Some(_), true) if self.has_paths => privileges::stay_root_with(&retained).map(drop),
            (Some(identity), true) => privileges::become_user(identity, &retained).map(drop),
            (None, true) => return Err("root asked for sockets without a user to become".into()),
            (_, false) => return Err("an ordinary user asked for what only root can do".into()),
        }?;
        // The change of user may have undone it.
        privileges::become_undumpable()?;
        Ok(Dropped {
            channel: self.channel,
            unused: self.unused,
        })
    }
}

impl Dropped {
    /// Takes away what the capabilities and the user still leave, and tells the supervisor what this kernel supports of
    /// that.
    pub fn confine(self) -> Result<Confined, String> {
        let parent = getppid();
        let (confinement, narrower) = sandbox::confine(&work(&self.unused))?;
        // If the supervisor is gone by now, the next phase finds out.
        drop(self.channel.send(&Reply::Confined(confinement), &[]));
        Ok(Confined {
            channel: self.channel,
            unused: self.unused,
            narrower,
            parent,
        })
    }
}

/// What the sandbox must allow for the tasks.
fn work(unused: &Unused<Task>) -> Work<'_> {
    let mut work = Work::default();
    for task in unused.prepared() {
        match task {
            Task::Port {
                transport,
                port,
                freebind,
                lanes,
            } => {
                work.freebind |= freebind;
                match transport {
                    Transport::Tcp => work.tcp_ports.push(*port),
                    Transport::Udp => {
                        work.udp = true;
                        work.udp_lanes |= *lanes > 1;
                    }
                }
            }
            Task::Path(place, file) => {
                work.directories.push((place.directory(), What::Socket));
                work.owners |= file.uid.is_some() || file.gid.is_some();
            }
            Task::ForUser(place, _) => {
                let (directory, kind) = place.work();
                work.directories.push((directory, What::ForUser(kind)));
                work.owners = true;
            }
            Task::Refuse(_) => {}
        }
    }
    work
}

impl Confined {
    /// Answers requests until the list is used up, a request is refused, or the channel is closed.
    pub fn serve(mut self) -> Result<Served, String> {
        let mut files = Vec::new();
        let result = self.answer_all(&mut files);
        let served = Served {
            channel: self.channel,
            files,
        };
        if result.is_err() {
            served.remove_files();
        }
        result.map(|()| served)
    }

    fn answer_all(&mut self, files: &mut Vec<MadeFile<RootDirectory>>) -> Result<(), String> {
        while !self.unused.is_empty() {
            let Some(request) = self.channel.receive()? else {
                return Ok(());
            };
            match self.unused.order(request)? {
                Order::Bind(granted) => match make_all(granted, files) {
                    Ok(batch) => {
                        self.give_up_rest_if_done()?;
                        self.answer_with(batch)?;
                    }
                    Err(refused) => {
                        // The last answer: what was created so far is not used.
                        files.drain(..).for_each(|file| file.remove());
                        return self.channel.send(&refused, &[]);
                    }
                },
                Order::TryEscape(escape) => {
                    self.give_up_rest_if_done()?;
                    self.try_escape(escape)?;
                }
            }
        }
        Ok(())
    }

    /// Before the last answer, so that no worker can start while an unneeded privilege is left; and before the last escape,
    /// which tests a binder that has done its work.
    fn give_up_rest_if_done(&mut self) -> Result<(), String> {
        if !self.unused.is_empty() {
            return Ok(());
        }
        privileges::give_up_rest()?;
        self.narrower.take().map_or(Ok(()), Narrower::confine)
    }

    fn answer_with(&self, batch: Batch) -> Result<(), String> {
        let descriptors: Vec<_> = batch.descriptors.iter().map(AsFd::as_fd).collect();
        let replaced = batch.replaced;
        self.channel.send(&Reply::Bound { replaced }, &descriptors)
    }

    fn try_escape(&self, escape: Escape) -> Result<(), String> {
        let outcome = escape::attempt(escape, self.parent);
        let errno = outcome.err().map(|errno| errno as i32);
        self.channel.send(&Reply::EscapeTried { errno }, &[])
    }
}

/// Makes what one request asks for; if something cannot be made, returns the answer that says so.
fn make_all(
    granted: Vec<(Ask, Task)>,
    files: &mut Vec<MadeFile<RootDirectory>>,
) -> Result<Batch, Reply> {
    let mut batch = Batch::default();
    for (number, (ask, task)) in (0..).zip(granted) {
        match make(ask, task) {
            Ok(Product::Inet(sockets)) => batch.descriptors.extend(sockets),
            Ok(Product::Unix(made)) => {
                batch.descriptors.push(made.socket);
                batch.replaced.extend(made.replaced.then_some(number));
                files.push(made.file);
            }
            Ok(Product::ForUser(made)) => {
                batch.descriptors.push(made.descriptor);
                files.extend(made.file);
            }
            Err(refusal) => {
                let ask = number;
                return Err(Reply::Refused { ask, refusal });
            }
        }
    }
    Ok(batch)
}

enum Product {
    Inet(Vec<OwnedFd>),
    Unix(Made<RootDirectory>),
    ForUser(for_user::Made),
}

fn make(ask: Ask, task: Task) -> Result<Product, Refusal> {
    match (ask, task) {
        (
            Ask::Port { address, .. },
            Task::Port {
                transport,
                freebind,
                lanes,
                ..
            },
        ) => {
            let sockets = listener::bind_all(transport, address, freebind, lanes)?;
            Ok(Product::Inet(sockets))
        }
        (Ask::Path { .. }, Task::Path(place, file)) => {
            Ok(Product::Unix(place.bind(file.mode, file.uid, file.gid)?))
        }
        (Ask::Path { .. }, Task::ForUser(place, user)) => Ok(Product::ForUser(place.make(&user)?)),
        (_, Task::Refuse(refusal)) => Err(refusal),
        // The list allows no such request.
        (Ask::Port { .. }, Task::Path(..) | Task::ForUser(..))
        | (Ask::Path { .. }, Task::Port { .. }) => Err(Errno::EINVAL.into()),
    }
}

impl Served {
    /// Returns at once if nothing must be removed. Otherwise waits until the supervisor closes the channel, deliberately or
    /// by its death, and removes the files that are still the ones it created.
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
