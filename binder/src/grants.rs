//! The sealed list: what may be asked for, and each of it once. Here messages are judged; nothing is opened or bound.

#![deny(
    clippy::wildcard_enum_match_arm,
    reason = "a new message must be thought of in every phase"
)]

use common::message::{
    Allow, Ask, Grant, Identity, MOST_DESCRIPTORS, MOST_GRANTS, Request, SocketFile,
};

/// More sockets than a process can have open by the kernel's default (`fs.nr_open`) are a mistake.
const MOST_SOCKETS: usize = 1 << 20;

/// A list that is still being received.
#[derive(Debug, Default)]
pub struct List {
    identity: Option<Identity>,
    grants: Vec<Grant>,
}

/// What a message makes of a list.
#[derive(Debug)]
pub enum Next {
    More(List),
    Sealed(Sealed),
}

/// The whole list.
#[derive(Debug)]
pub struct Sealed {
    pub identity: Option<Identity>,
    pub grants: Vec<Grant>,
}

/// What is left of the list: each grant, with what else is known about it, until it is used.
#[derive(Debug)]
pub struct Unused<T>(Vec<Option<(Grant, T)>>);

impl List {
    /// Takes the next message. An error in words ends the process, here and below.
    pub fn with(mut self, request: Request) -> Result<Next, String> {
        let Allow {
            identity,
            grants,
            more,
        } = match request {
            Request::Allow(allow) => allow,
            Request::Bind(_) => return Err("Bind came before the list was sealed".into()),
        };
        if identity.as_ref().is_some_and(|identity| identity.uid == 0) {
            return Err("the user to become is root".into());
        }
        if !self.grants.is_empty() && identity != self.identity {
            return Err("two lists for different users".into());
        }
        if grants.len() > MOST_GRANTS || (more && grants.is_empty()) {
            return Err(format!("a list of {} grants", grants.len()));
        }
        self.identity = identity;
        self.grants.extend(grants);
        if self.grants.len() > MOST_SOCKETS {
            return Err(format!("more than {MOST_SOCKETS} grants"));
        }
        if more {
            return Ok(Next::More(self));
        }
        let List { identity, grants } = self;
        let sealed = Sealed { identity, grants };
        if sealed.has_ports() && sealed.has_paths() {
            // A port that root binds is root's socket for good, whoever uses it.
            return Err("ports and paths are not for one process".into());
        }
        Ok(Next::Sealed(sealed))
    }
}

impl Sealed {
    pub fn has_ports(&self) -> bool {
        let is_port = |grant: &Grant| matches!(grant, Grant::Port { .. });
        self.grants.iter().any(is_port)
    }

    pub fn has_paths(&self) -> bool {
        self.files().next().is_some()
    }

    /// The sockets that are to be made at paths.
    pub fn files(&self) -> impl Iterator<Item = &SocketFile> {
        self.grants.iter().filter_map(|grant| match grant {
            Grant::Path(file) => Some(file),
            Grant::Port { .. } | Grant::Attempt(_) => None,
        })
    }
}

impl<T> Unused<T> {
    pub fn new(grants: Vec<(Grant, T)>) -> Unused<T> {
        Unused(grants.into_iter().map(Some).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// What a request asks for.
    pub fn asks(&self, request: Request) -> Result<Vec<Ask>, String> {
        match request {
            Request::Allow(_) => Err("Allow came after the list was sealed".into()),
            Request::Bind(asks) if asks.is_empty() || asks.len() > MOST_DESCRIPTORS => {
                Err(format!("a request for {} sockets", asks.len()))
            }
            Request::Bind(asks) => Ok(asks),
        }
    }

    /// The grant for an ask, which is used by that: it must be there still, and allow just this.
    pub fn take(&mut self, ask: &Ask) -> Result<(Grant, T), String> {
        let number = match ask {
            Ask::Port { grant, .. } | Ask::Path { grant } | Ask::Attempt { grant } => *grant,
        };
        let (grant, known) = usize::try_from(number)
            .ok()
            .and_then(|number| self.0.get_mut(number))
            .and_then(Option::take)
            .ok_or_else(|| format!("grant {number} does not exist or was used already"))?;
        match allows(&grant, ask) {
            true => Ok((grant, known)),
            false => Err(format!("the ask is not what grant {number} allows")),
        }
    }
}

fn allows(grant: &Grant, ask: &Ask) -> bool {
    match (grant, ask) {
        (Grant::Port { port, ip, .. }, Ask::Port { address, .. }) => {
            address.port == *port && ip.is_none_or(|ip| ip == address.ip)
        }
        (Grant::Path(_), Ask::Path { .. }) | (Grant::Attempt(_), Ask::Attempt { .. }) => true,
        (
            Grant::Port { .. } | Grant::Path(_) | Grant::Attempt(_),
            Ask::Port { .. } | Ask::Path { .. } | Ask::Attempt { .. },
        ) => false,
    }
}
