//! What workers leave for the workers after them: descriptors with names, by the protocol of sd_notify(3) (`FDSTORE=1`), of
//! which start_server is the manager.
//!
//! At most as many are kept as `--fd-store-max` says. A new one beyond that is refused, and those that are there stay: they
//! are somebody's connections. All names together are bounded too, because they become one variable of every worker, and
//! with a larger one than the kernel passes on nothing could be started any more.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use super::message::Message;
use crate::host::luggage::{Carried, Luggage};
use crate::host::open_files::{duplicate_above, is_same_file};

/// What has no name gets this one, as in systemd.
const DEFAULT_NAME: &str = "stored";

/// The longest name, in bytes.
const LONGEST_NAME: usize = 255;

/// How long all names may be together, with their colons: half of what one variable may have.
const LONGEST_NAMES: usize = 64 * 1024;

/// The largest `--fd-store-max`.
pub const MOST: u16 = 4096;

/// The descriptors, oldest first.
#[derive(Debug)]
pub struct Store {
    most: usize,
    /// The number of the first one in a worker: the listeners come before it.
    first: RawFd,
    /// The highest number that anything of ours has in a worker.
    highest: RawFd,
    kept: Vec<Kept>,
    /// The length of all names, with their colons.
    length: usize,
    refused: u64,
    has_changed: bool,
}

#[derive(Debug)]
struct Kept {
    name: String,
    descriptor: OwnedFd,
    /// Device and inode: different ones are different files.
    file: (u64, u64),
    /// Whether it goes when it hangs up.
    is_polled: bool,
}

/// The store on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedStore {
    kept: Vec<PackedKept>,
    refused: u64,
    has_changed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedKept {
    name: String,
    descriptor: Carried,
    file: (u64, u64),
    is_polled: bool,
}

/// Why a worker's wish was not granted as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Refusal {
    /// Nothing is kept at all.
    Off,
    Full,
    /// The names together would be too long.
    Names,
    /// The kernel or its limits did not let it in.
    Lost,
    /// It is kept under the default name.
    BadName,
    /// Without a valid name nothing is removed.
    NothingNamed,
}

impl Store {
    /// For workers that have this many listeners, all numbered from 3 without gaps.
    pub fn new(most: u16, listeners: usize, highest: RawFd) -> Store {
        Store {
            most: most.into(),
            first: RawFd::try_from(3 + listeners).unwrap_or(RawFd::MAX),
            highest,
            kept: Vec::new(),
            length: 0,
            refused: 0,
            has_changed: false,
        }
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedStore {
        PackedStore {
            kept: self.kept.iter().map(|kept| kept.pack(luggage)).collect(),
            refused: self.refused,
            has_changed: self.has_changed,
        }
    }

    /// What was kept goes into this store, which is new. None of it is lost, however little that would let in.
    pub fn unpack(packed: PackedStore, new: Store) -> Store {
        let kept = packed.kept.into_iter().map(Kept::unpack);
        // What has been lost on the way is not handed on.
        let kept: Vec<Kept> = kept.filter(Kept::is_the_same).collect();
        Store {
            length: length_of(&kept),
            kept,
            refused: packed.refused,
            has_changed: packed.has_changed,
            ..new
        }
    }

    pub fn is_on(&self) -> bool {
        self.most > 0
    }

    pub fn most(&self) -> usize {
        self.most
    }

    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Does what a worker asks for. What it does not keep is closed. `ours` are the listeners, which every worker has anyway.
    pub fn obey(
        &mut self,
        message: &Message,
        descriptors: Vec<OwnedFd>,
        is_cut: bool,
        ours: &[BorrowedFd<'_>],
    ) -> Vec<Refusal> {
        // Whoever waits for us to close something does not want it kept.
        if message.is_barrier || !(message.stores || message.removes) {
            return Vec::new();
        }
        if !self.is_on() {
            return vec![Refusal::Off];
        }
        let mut refusals = Vec::new();
        let given = message.descriptor_name.as_deref();
        let name = given.and_then(valid);
        if message.removes {
            match name {
                Some(name) => self.remove(name),
                None => refusals.push(Refusal::NothingNamed),
            }
        }
        if message.stores {
            if given.is_some() && name.is_none() {
                refusals.push(Refusal::BadName);
            }
            let name = name.unwrap_or(DEFAULT_NAME);
            for descriptor in descriptors {
                if let Err(refusal) = self.keep(name, descriptor, !message.is_unpolled, ours) {
                    self.refused += 1;
                    self.has_changed = true;
                    refusals.push(refusal);
                }
            }
            refusals.extend(is_cut.then_some(Refusal::Lost));
        }
        refusals
    }

    fn keep(
        &mut self,
        name: &str,
        descriptor: OwnedFd,
        is_polled: bool,
        ours: &[BorrowedFd<'_>],
    ) -> Result<(), Refusal> {
        let stat = fstat(&descriptor).map_err(|_| Refusal::Lost)?;
        let file = (stat.st_dev, stat.st_ino);
        let is_same = |other: &OwnedFd| is_same_file(descriptor.as_fd(), other.as_fd());
        let is_kept = |kept: &Kept| kept.file == file && is_same(&kept.descriptor);
        if self.kept.iter().any(is_kept)
            || ours
                .iter()
                .any(|socket| is_same_file(descriptor.as_fd(), *socket))
        {
            return Ok(());
        }
        if self.kept.len() >= self.most {
            return Err(Refusal::Full);
        }
        if self.length + name.len() + 1 > LONGEST_NAMES {
            return Err(Refusal::Names);
        }
        // Out of the way of the numbers that a worker's descriptors get.
        let descriptor = duplicate_above(descriptor.as_fd(), self.highest);
        let descriptor = descriptor.map_err(|_| Refusal::Lost)?;
        self.kept.push(Kept {
            name: name.to_owned(),
            descriptor,
            file,
            is_polled,
        });
        self.count();
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        self.kept.retain(|kept| kept.name != name);
        self.count();
    }

    fn count(&mut self) {
        self.length = length_of(&self.kept);
        self.has_changed = true;
    }

    /// What to wait for: nothing but hang-ups and errors.
    pub fn sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let polled = self.kept.iter().filter(|kept| kept.is_polled);
        polled.map(|kept| (kept.descriptor.as_fd(), PollFlags::empty()))
    }

    /// Closes what has hung up.
    pub fn tidy(&mut self) {
        let sources = self.sources();
        let mut polled: Vec<_> = sources.map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        if polled.is_empty() || !matches!(poll(&mut polled, PollTimeout::ZERO), Ok(1..)) {
            return;
        }
        let is_over = |one: &PollFd<'_>| one.any() == Some(true);
        let mut over: Vec<bool> = polled.iter().map(is_over).collect();
        let mut over = over.drain(..);
        self.kept
            .retain(|kept| !(kept.is_polled && over.next() == Some(true)));
        drop(over);
        self.count();
    }

    /// What the next worker gets: name, descriptor, and its number there.
    pub fn hand_out(&self) -> Vec<(&str, BorrowedFd<'_>, RawFd)> {
        let kept = self.kept.iter().zip(self.first..);
        kept.map(|(kept, number)| (kept.name.as_str(), kept.descriptor.as_fd(), number))
            .collect()
    }

    /// How many there are of each name, if anything has changed since the last time.
    pub fn take_changed(&mut self) -> Option<BTreeMap<&str, u64>> {
        if !std::mem::take(&mut self.has_changed) {
            return None;
        }
        let mut counts = BTreeMap::new();
        for kept in &self.kept {
            *counts.entry(kept.name.as_str()).or_default() += 1;
        }
        Some(counts)
    }
}

impl Kept {
    fn pack(&self, luggage: &mut Luggage) -> PackedKept {
        PackedKept {
            name: self.name.clone(),
            descriptor: luggage.put(&self.descriptor),
            file: self.file,
            is_polled: self.is_polled,
        }
    }

    /// As when it was put in.
    fn is_the_same(&self) -> bool {
        fstat(&self.descriptor).is_ok_and(|there| (there.st_dev, there.st_ino) == self.file)
    }

    fn unpack(packed: PackedKept) -> Kept {
        Kept {
            name: packed.name,
            descriptor: packed.descriptor.take(),
            file: packed.file,
            is_polled: packed.is_polled,
        }
    }
}

/// Of all names, with their colons.
fn length_of(kept: &[Kept]) -> usize {
    kept.iter().map(|kept| kept.name.len() + 1).sum()
}

impl Refusal {
    /// What there is to say about it.
    pub fn sentence(self, worker: impl std::fmt::Display, most: usize) -> String {
        match self {
            Refusal::Off => format!(
                "start_server: closing descriptors that worker {worker} asks to keep (FDSTORE=1): they are only kept with \
                 --fd-store-max"
            ),
            Refusal::Full => format!(
                "start_server: closing a descriptor that worker {worker} asks to keep: there are --fd-store-max={most} already"
            ),
            Refusal::Names => format!(
                "start_server: closing a descriptor that worker {worker} asks to keep: all names together would be longer than \
                 {LONGEST_NAMES} bytes"
            ),
            Refusal::Lost => format!(
                "start_server: losing a descriptor that worker {worker} asks to keep: it cannot be received, perhaps because of \
                 the limit on open files"
            ),
            Refusal::BadName => format!(
                "start_server: keeping a descriptor of worker {worker} as \"{DEFAULT_NAME}\": its FDNAME is not printable ASCII \
                 without a colon, or longer than {LONGEST_NAME} bytes"
            ),
            Refusal::NothingNamed => format!(
                "start_server: ignoring FDSTOREREMOVE=1 from worker {worker}: there is no FDNAME that a descriptor can have"
            ),
        }
    }
}

/// A name as systemd accepts it: one without a colon or a control character. It may be empty.
fn valid(name: &[u8]) -> Option<&str> {
    let is_allowed = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b':';
    let is_valid = name.len() <= LONGEST_NAME && name.iter().all(is_allowed);
    std::str::from_utf8(name).ok().filter(|_| is_valid)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::fd::AsRawFd;

    use super::super::message::parse;
    use super::*;

    fn store(most: u16) -> Store {
        Store::new(most, 2, 3 + 2 + i32::from(most))
    }

    fn file() -> OwnedFd {
        std::io::pipe().unwrap().1.into()
    }

    /// Both ends, so that nothing hangs up.
    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = std::io::pipe().unwrap();
        (reader.into(), writer.into())
    }

    fn tell(store: &mut Store, text: &[u8], descriptors: Vec<OwnedFd>) -> Vec<Refusal> {
        store.obey(&parse(text), descriptors, false, &[])
    }

    fn names(store: &Store) -> Vec<(&str, RawFd)> {
        let all = store.hand_out().into_iter();
        all.map(|(name, _, number)| (name, number)).collect()
    }

    #[test]
    fn what_is_stored_follows_the_listeners_until_it_is_removed_by_name() {
        let mut store = store(9);
        assert_eq!(tell(&mut store, b"FDSTORE=1\nFDNAME=a", vec![file()]), []);
        assert_eq!(tell(&mut store, b"FDSTORE=1", vec![file(), file()]), []);
        assert_eq!(tell(&mut store, b"FDSTORE=1\nFDNAME=", vec![file()]), []);
        assert_eq!(
            names(&store),
            [("a", 5), ("stored", 6), ("stored", 7), ("", 8)]
        );
        for (_, descriptor, _) in store.hand_out() {
            assert!(descriptor.as_raw_fd() > store.highest);
        }
        let counts = store.take_changed().unwrap();
        assert_eq!(counts, [("", 1), ("a", 1), ("stored", 2)].into());
        assert_eq!(store.take_changed(), None);
        assert_eq!(
            tell(&mut store, b"FDSTOREREMOVE=1\nFDNAME=stored", vec![]),
            []
        );
        assert_eq!(names(&store), [("a", 5), ("", 6)]);
        // Both: what is sent replaces what was there.
        let both = b"FDSTORE=1\nFDSTOREREMOVE=1\nFDNAME=a";
        assert_eq!(tell(&mut store, both, vec![file(), file()]), []);
        assert_eq!(names(&store), [("", 5), ("a", 6), ("a", 7)]);
        assert_eq!(
            tell(&mut store, b"FDSTOREREMOVE=1", vec![]),
            [Refusal::NothingNamed]
        );
        // Nothing of this asks to keep anything.
        for text in [
            &b"READY=1"[..],
            b"FDNAME=x",
            b"FDSTORE=1\nBARRIER=1",
            b"FDSTORE=0",
        ] {
            assert_eq!(tell(&mut store, text, vec![file()]), []);
        }
        assert_eq!(names(&store).len(), 3);
    }

    #[test]
    fn the_newest_is_refused_and_the_same_file_is_kept_once() {
        let mut store = store(2);
        let (one, two) = (file(), file());
        let copy = one.try_clone().unwrap();
        let again = one.try_clone().unwrap();
        assert_eq!(
            tell(&mut store, b"FDSTORE=1\nFDNAME=a", vec![one, copy]),
            []
        );
        assert_eq!(
            tell(&mut store, b"FDSTORE=1\nFDNAME=b", vec![two, file()]),
            [Refusal::Full]
        );
        assert_eq!(tell(&mut store, b"FDSTORE=1\nFDNAME=c", vec![again]), []);
        assert_eq!(names(&store), [("a", 5), ("b", 6)]);
        assert_eq!(store.refused(), 1);
        let listener = file();
        let ours = [listener.as_fd()];
        let copy = listener.try_clone().unwrap();
        tell(&mut store, b"FDSTOREREMOVE=1\nFDNAME=a", vec![]);
        let kept = store.obey(&parse(b"FDSTORE=1\nFDNAME=l"), vec![copy], false, &ours);
        assert_eq!((kept, names(&store)), (vec![], vec![("b", 5)]));
    }

    #[test]
    fn without_a_limit_nothing_is_kept() {
        let mut store = store(0);
        assert_eq!(tell(&mut store, b"FDSTORE=1", vec![file()]), [Refusal::Off]);
        assert_eq!(names(&store), []);
    }

    #[test]
    fn names_are_those_that_systemd_accepts_and_together_fit_a_variable() {
        let mut store = store(MOST);
        for bad in [&b"a:b"[..], b"a\tb", b"\xc3\xa4", b"\x7f", &[b'x'; 256]] {
            let text = [b"FDSTORE=1\nFDNAME=", bad].concat();
            assert_eq!(tell(&mut store, &text, vec![file()]), [Refusal::BadName]);
            let text = [b"FDSTOREREMOVE=1\nFDNAME=", bad].concat();
            assert_eq!(tell(&mut store, &text, vec![]), [Refusal::NothingNamed]);
        }
        assert!(names(&store).iter().all(|(name, _)| *name == DEFAULT_NAME));
        tell(&mut store, b"FDSTOREREMOVE=1\nFDNAME=stored", vec![]);
        let text = [b"FDSTORE=1\nFDNAME=", &[b'x'; 255][..]].concat();
        for _ in 0..256 {
            assert_eq!(tell(&mut store, &text, vec![file()]), []);
        }
        assert_eq!(tell(&mut store, &text, vec![file()]), [Refusal::Names]);
        assert_eq!(
            tell(&mut store, b"FDSTORE=1\nFDNAME=", vec![file()]),
            [Refusal::Names]
        );
    }

    #[test]
    fn what_hangs_up_goes_unless_it_is_not_to_be_polled() {
        let mut store = store(9);
        let ((first, one), (second, two), (third, three)) = (pipe(), pipe(), pipe());
        tell(&mut store, b"FDSTORE=1\nFDNAME=a", vec![first]);
        tell(&mut store, b"FDSTORE=1\nFDNAME=b\nFDPOLL=0", vec![second]);
        tell(&mut store, b"FDSTORE=1\nFDNAME=c", vec![third]);
        assert_eq!(store.sources().count(), 2);
        store.tidy();
        assert_eq!(names(&store), [("a", 5), ("b", 6), ("c", 7)]);
        drop((two, three));
        store.tidy();
        assert_eq!(names(&store), [("a", 5), ("b", 6)]);
        drop(one);
        store.tidy();
        assert_eq!(names(&store), [("b", 5)]);
    }

    #[test]
    fn the_next_program_keeps_the_same_files_under_the_same_rules() {
        let mut store = store(2);
        let ((first, one), (second, two)) = (pipe(), pipe());
        let copy = second.try_clone().unwrap();
        tell(&mut store, b"FDSTORE=1\nFDNAME=a", vec![first]);
        tell(&mut store, b"FDSTORE=1\nFDNAME=b\nFDPOLL=0", vec![second]);
        tell(&mut store, b"FDSTORE=1\nFDNAME=c", vec![file()]);
        let text = serde_json::to_string(&store.pack(&mut Luggage::default())).unwrap();
        drop(store);
        let new = self::store(2);
        let mut store = Store::unpack(serde_json::from_str(&text).unwrap(), new);
        assert_eq!(names(&store), [("a", 5), ("b", 6)]);
        assert_eq!((store.refused(), store.length), (1, 4));
        assert_eq!(store.take_changed(), Some([("a", 1), ("b", 1)].into()));
        // It is full, and has this file already.
        assert_eq!(
            tell(&mut store, b"FDSTORE=1", vec![file()]),
            [Refusal::Full]
        );
        assert_eq!(tell(&mut store, b"FDSTORE=1", vec![copy]), []);
        drop((one, two));
        store.tidy();
        assert_eq!(names(&store), [("b", 5)]);
    }
}
