//! The descriptors that a snapshot names, by their numbers there.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use nix::unistd::dup2_raw;

use crate::host::open_files::duplicate_above;

/// What to keep, in the order in which the supervisor has said so.
#[derive(Debug, Default)]
pub struct Kept(Vec<One>);

#[derive(Debug)]
struct One {
    number: RawFd,
    /// From this snapshot on.
    since: u64,
    /// `None` if no snapshot has that number any more.
    descriptor: Option<OwnedFd>,
}

impl Kept {
    pub fn keep(&mut self, number: RawFd, since: u64, descriptor: Option<OwnedFd>) {
        self.0.push(One {
            number,
            since,
            descriptor,
        });
    }

    /// Keeps nothing from this snapshot on.
    pub fn forget_all(&mut self, since: u64) {
        let numbers: BTreeSet<RawFd> = self.0.iter().map(|one| one.number).collect();
        for number in numbers {
            self.keep(number, since, None);
        }
    }

    /// Closes what the snapshot with this number and all after it do not name. The same may be said of one that cannot be
    /// written again and again.
    pub fn prune(&mut self, last: u64) {
        let is_over = |place: usize, one: &One| {
            let later = self.0.get(place + 1..).unwrap_or_default();
            let mut later = later.iter();
            later.any(|next| next.number == one.number && next.since <= last.max(one.since))
        };
        let over: Vec<bool> = (self.0.iter().enumerate())
            .map(|(place, one)| is_over(place, one) || one.is_nothing(last))
            .collect();
        let mut over = over.into_iter();
        self.0.retain(|_| !over.next().unwrap_or_default());
    }

    /// What the snapshot with this number names.
    pub fn of(&self, last: u64) -> Vec<(RawFd, BorrowedFd<'_>)> {
        let mut found: Vec<(RawFd, BorrowedFd<'_>)> = Vec::new();
        for one in self.0.iter().filter(|one| one.since <= last) {
            found.retain(|(number, _)| *number != one.number);
            let descriptor = one.descriptor.as_ref().map(AsFd::as_fd);
            found.extend(descriptor.map(|descriptor| (one.number, descriptor)));
        }
        found
    }
}

impl One {
    fn is_nothing(&self, last: u64) -> bool {
        self.descriptor.is_none() && self.since <= last
    }
}

/// In a child: gives descriptors these numbers, whatever had them, and keeps them open at an exec.
///
/// # Errors
/// Of dup2(2).
#[expect(unsafe_code, reason = "the numbers are those of a snapshot")]
pub fn place(descriptors: &[(RawFd, BorrowedFd<'_>)]) -> nix::Result<()> {
    let highest = descriptors.iter().map(|(number, _)| *number).max();
    // First out of the way of each other.
    let copies = descriptors.iter().map(|(number, descriptor)| {
        Ok((*number, duplicate_above(*descriptor, highest.unwrap_or(2))?))
    });
    let copies: Vec<(RawFd, OwnedFd)> = copies.collect::<nix::Result<_>>()?;
    for (number, copy) in &copies {
        // SAFETY: this child executes another program, and uses nothing by its old number before that.
        let placed = unsafe { dup2_raw(copy, *number) }?;
        // It has the number that it was to have, and stays open.
        let _ = placed.into_raw_fd();
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn numbers(kept: &Kept, last: u64) -> Vec<RawFd> {
        kept.of(last)
            .into_iter()
            .map(|(number, _)| number)
            .collect()
    }

    #[test]
    fn what_a_snapshot_names_is_kept_until_no_later_one_does() {
        let mut kept = Kept::default();
        let file = || Some(OwnedFd::from(std::io::pipe().unwrap().0));
        kept.keep(7, 1, file());
        kept.keep(8, 1, file());
        // Of a snapshot that was not written.
        kept.keep(7, 2, file());
        kept.keep(8, 2, None);
        let first = |kept: &Kept, last| kept.of(last)[0].1.as_raw_fd();
        let before = first(&kept, 1);
        kept.prune(1);
        assert_eq!((numbers(&kept, 1), first(&kept, 1)), (vec![7, 8], before));
        assert_eq!(numbers(&kept, 2), [7]);
        assert_ne!(first(&kept, 2), before);
        kept.prune(2);
        assert_eq!(kept.0.len(), 1);
        assert_eq!(numbers(&kept, 2), [7]);
        // Of one that cannot be written.
        (0..3).for_each(|_| kept.keep(7, 3, file()));
        kept.prune(2);
        assert_eq!(kept.0.len(), 2);
        // One of a supervisor that has died before it wrote that snapshot, and what its successor has.
        kept.keep(9, 3, file());
        kept.forget_all(3);
        kept.keep(8, 3, file());
        assert_eq!((numbers(&kept, 2), numbers(&kept, 3)), (vec![7], vec![8]));
        kept.prune(3);
        assert_eq!(kept.0.len(), 1);
    }
}
