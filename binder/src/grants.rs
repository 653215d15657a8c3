//! The sealed list: what may be requested, each item once. Messages are checked here; nothing is opened or bound.

#![deny(
    clippy::wildcard_enum_match_arm,
    reason = "a new message must be thought of in every phase"
)]

use common::message::{
    Allow, Ask, Escape, Grant, Identity, MOST_DESCRIPTORS, MOST_GRANTS, MOST_LANES, Request,
};

/// More sockets than a process can have open by the kernel's default (`fs.nr_open`) are a mistake.
const MOST_SOCKETS: usize = 1 << 20;

/// A list that is still being received.
#[derive(Debug, Default)]
pub struct List {
    identity: Option<Identity>,
    grants: Vec<Grant>,
    escapes: Vec<Escape>,
}

/// The state of a list after a message.
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
    pub escapes: Vec<Escape>,
}

/// What is left of the list: each grant, with what was prepared for it, and each escape until it is used.
#[derive(Debug)]
pub struct Unused<T> {
    grants: Vec<Option<(Grant, T)>>,
    escapes: Vec<Escape>,
}

/// The contents of a request, each item with what the list has for it.
#[derive(Debug)]
pub enum Order<T> {
    Bind(Vec<(Ask, T)>),
    TryEscape(Escape),
}

impl List {
    /// Takes the next message. An error, in words, ends the process, here and below.
    pub fn with(mut self, request: Request) -> Result<Next, String> {
        let allow = match request {
            Request::Allow(allow) => allow,
            Request::Bind(_) => return Err("Bind came before the list was sealed".into()),
            Request::TryEscape(_) => return Err("TryEscape came before the list was sealed".into()),
        };
        let Allow {
            identity,
            grants,
            escapes,
            more,
        } = allow;
        if identity.as_ref().is_some_and(|identity| identity.uid == 0) {
            return Err("the user to become is root".into());
        }
        if !self.grants.is_empty() && identity != self.identity {
            return Err("two lists for different users".into());
        }
        if grants.len() > MOST_GRANTS || (more && grants.is_empty()) {
            return Err(format!("a list of {} grants", grants.len()));
        }
        if let Some(lanes) = grants.iter().find_map(wrong_lanes) {
            return Err(format!("a port with {lanes} lanes"));
        }
        self.identity = identity;
        self.grants.extend(grants);
        self.escapes.extend(escapes);
        if self.grants.len() + self.escapes.len() > MOST_SOCKETS {
            return Err(format!("more than {MOST_SOCKETS} grants"));
        }
        match more {
            true => Ok(Next::More(self)),
            false => self.seal().map(Next::Sealed),
        }
    }

    fn seal(self) -> Result<Sealed, String> {
        let sealed = Sealed {
            identity: self.identity,
            grants: self.grants,
            escapes: self.escapes,
        };
        if sealed.has_ports() && sealed.has_paths() {
            // A port bound by root is root's socket for good, whoever uses it.
            return Err("ports and paths are not for one process".into());
        }
        Ok(sealed)
    }
}

fn wrong_lanes(grant: &Grant) -> Option<u8> {
    match grant {
        Grant::Port { lanes, .. } => Some(*lanes).filter(|it| !(1..=MOST_LANES).contains(it)),
        Grant::Path(_) | Grant::ForUser(_) => None,
    }
}

impl Sealed {
    pub fn has_ports(&self) -> bool {
        let is_port = |grant: &Grant| matches!(grant, Grant::Port { .. });
        self.grants.iter().any(is_port)
    }

    pub fn has_paths(&self) -> bool {
        let is_path = |grant: &Grant| matches!(grant, Grant::Path(_) | Grant::ForUser(_));
        self.grants.iter().any(is_path)
    }
}

impl<T> Unused<T> {
    pub fn new(grants: Vec<(Grant, T)>, escapes: Vec<Escape>) -> Unused<T> {
        let grants = grants.into_iter().map(Some).collect();
        Unused { grants, escapes }
    }

    pub fn is_empty(&self) -> bool {
        self.grants.iter().all(Option::is_none) && self.escapes.is_empty()
    }

    /// What was prepared for the grants.
    pub fn prepared(&self) -> impl Iterator<Item = &T> {
        self.grants.iter().flatten().map(|(_, prepared)| prepared)
    }

    /// What a request asks for; this uses up all of it.
    pub fn order(&mut self, request: Request) -> Result<Order<T>, String> {
        match request {
            Request::Allow(_) => Err("Allow came after the list was sealed".into()),
            Request::Bind(asks) if asks.is_empty() || asks.len() > MOST_DESCRIPTORS => {
                Err(format!("a request for {} sockets", asks.len()))
            }
            Request::Bind(asks) if self.count(&asks) > MOST_DESCRIPTORS => {
                Err(format!("a request for {} sockets", self.count(&asks)))
            }
            Request::Bind(asks) => {
                let granted = asks.into_iter().map(|ask| Ok((ask, self.take(&ask)?)));
                granted.collect::<Result<_, _>>().map(Order::Bind)
            }
            Request::TryEscape(escape) => {
                let place = self.escapes.iter().position(|listed| *listed == escape);
                let place = place.ok_or("the escape is not in the list or was tried already")?;
                Ok(Order::TryEscape(self.escapes.remove(place)))
            }
        }
    }

    /// How many descriptors that would be, as far as it is granted.
    fn count(&self, asks: &[Ask]) -> usize {
        let lanes = |ask: &Ask| {
            let (Ask::Port { grant, .. } | Ask::Path { grant }) = *ask;
            let granted = self.grants.get(usize::try_from(grant).ok()?)?;
            match granted {
                Some((Grant::Port { lanes, .. }, _)) => Some(usize::from(*lanes)),
                Some((Grant::Path(_) | Grant::ForUser(_), _)) => Some(1),
                None => None,
            }
        };
        asks.iter().filter_map(lanes).sum()
    }

    /// The grant must be unused, and allow exactly this.
    fn take(&mut self, ask: &Ask) -> Result<T, String> {
        let (Ask::Port { grant: number, .. } | Ask::Path { grant: number }) = *ask;
        let (grant, prepared) = usize::try_from(number)
            .ok()
            .and_then(|number| self.grants.get_mut(number))
            .and_then(Option::take)
            .ok_or_else(|| format!("grant {number} does not exist or was used already"))?;
        match allows(&grant, ask) {
            true => Ok(prepared),
            false => Err(format!("the ask is not what grant {number} allows")),
        }
    }
}

fn allows(grant: &Grant, ask: &Ask) -> bool {
    match (grant, ask) {
        (Grant::Port { port, ip, .. }, Ask::Port { address, .. }) => {
            address.port == *port && ip.is_none_or(|ip| ip == address.ip)
        }
        (Grant::Path(_) | Grant::ForUser(_), Ask::Path { .. }) => true,
        (Grant::Port { .. }, Ask::Path { .. })
        | (Grant::Path(_) | Grant::ForUser(_), Ask::Port { .. }) => false,
    }
}
