//! The memory that guardian and supervisor share: the last two snapshots, each with its number. A supervisor that is killed
//! while it writes one leaves the other.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The room for one snapshot, in bytes. Only what is written takes memory.
const HALF: u64 = 64 << 20;

/// What precedes a snapshot: its number and its length. After it come its number once more, how many descriptors it names,
/// and their numbers: a version that writes none of that is understood, too.
const HEAD: u64 = 16;

/// What a supervisor has written.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    pub number: u64,
    pub snapshot: Vec<u8>,
    /// The numbers of the descriptors that the snapshot names.
    pub descriptors: Vec<RawFd>,
}

/// The memory.
#[derive(Debug)]
pub struct Area(File);

impl Area {
    pub fn new() -> io::Result<Area> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let area = File::from(memfd_create(c"start_server", flags)?);
        area.set_len(2 * HALF)?;
        fcntl(
            &area,
            FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
        )?;
        Ok(Area(area))
    }

    pub fn of(area: OwnedFd) -> Area {
        Area(area.into())
    }

    /// Writes the snapshot with this number over the one before the last.
    ///
    /// # Errors
    /// It is too long, or there is no memory. The last one is still there.
    pub fn write(&self, number: u64, snapshot: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
        let length = snapshot.len() as u64;
        let mut rest = number.to_be_bytes().to_vec();
        rest.extend((descriptors.len() as u64).to_be_bytes());
        rest.extend(descriptors.iter().flat_map(|one| one.to_be_bytes()));
        if HEAD + length + rest.len() as u64 > HALF {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let half = half(number);
        // It is nobody's until it has its number.
        self.0.write_all_at(&[0; 8], half)?;
        self.0.write_all_at(&length.to_be_bytes(), half + 8)?;
        self.0.write_all_at(snapshot, half + HEAD)?;
        self.0.write_all_at(&rest, half + HEAD + length)?;
        self.0.write_all_at(&number.to_be_bytes(), half)
    }

    /// The number of the last one; 0 if there is none.
    pub fn last(&self) -> u64 {
        let number = |half| self.number_at(half).unwrap_or(0);
        number(0).max(number(HALF))
    }

    /// The last one.
    ///
    /// # Errors
    /// There is none.
    pub fn read(&self) -> io::Result<Written> {
        let number = self.last();
        if number == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let half = half(number);
        let length = self.number_at(half + 8)?.min(HALF - HEAD);
        let mut snapshot = vec![0; in_memory(length)];
        self.0.read_exact_at(&mut snapshot, half + HEAD)?;
        let end = half + HEAD + length;
        let descriptors = self.descriptors_at(end, number, half + HALF);
        Ok(Written {
            number,
            snapshot,
            descriptors: descriptors.unwrap_or_default(),
        })
    }

    /// None are known if they are not this snapshot's.
    fn descriptors_at(&self, place: u64, number: u64, end: u64) -> io::Result<Vec<RawFd>> {
        if place + 16 > end || self.number_at(place)? != number {
            return Ok(Vec::new());
        }
        let most = (end - place - 16) / 4;
        let count = self.number_at(place + 8)?.min(most);
        let mut bytes = vec![0; in_memory(count * 4)];
        self.0.read_exact_at(&mut bytes, place + 16)?;
        let (numbers, _) = bytes.as_chunks::<4>();
        Ok(numbers
            .iter()
            .map(|one| RawFd::from_be_bytes(*one))
            .collect())
    }

    fn number_at(&self, place: u64) -> io::Result<u64> {
        let mut number = [0; 8];
        self.0.read_exact_at(&mut number, place)?;
        Ok(u64::from_be_bytes(number))
    }
}

/// A length that fits into half of the memory.
fn in_memory(length: u64) -> usize {
    usize::try_from(length).unwrap_or_default()
}

/// Where it is.
fn half(number: u64) -> u64 {
    number % 2 * HALF
}

impl AsFd for Area {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn written(number: u64, text: &str, descriptors: &[RawFd]) -> Written {
        Written {
            number,
            snapshot: text.into(),
            descriptors: descriptors.to_vec(),
        }
    }

    #[test]
    fn the_last_one_is_read_and_one_that_is_unfinished_is_not() {
        let area = Area::new().unwrap();
        assert!(area.read().is_err());
        for number in 1..=5 {
            let text = format!("snapshot {number}");
            area.write(number, text.as_bytes(), &[7, 8]).unwrap();
            assert_eq!(area.read().unwrap(), written(number, &text, &[7, 8]));
        }
        // Killed before the number was written.
        area.0.write_all_at(&[0; 8], half(6)).unwrap();
        area.0.write_all_at(b"half of", half(6) + HEAD).unwrap();
        assert_eq!(area.read().unwrap(), written(5, "snapshot 5", &[7, 8]));
    }

    #[test]
    fn one_that_is_too_long_leaves_the_last_one() {
        let area = Area::new().unwrap();
        area.write(1, b"short", &[]).unwrap();
        let long = vec![0; usize::try_from(HALF).unwrap()];
        assert!(area.write(2, &long, &[]).is_err());
        assert_eq!(area.read().unwrap(), written(1, "short", &[]));
    }

    #[test]
    fn descriptors_are_those_of_this_snapshot_or_none() {
        let area = Area::new().unwrap();
        area.write(1, b"same length", &[7, 8]).unwrap();
        // As a version without them writes it.
        area.0.write_all_at(&3u64.to_be_bytes(), half(3)).unwrap();
        assert_eq!(area.read().unwrap(), written(3, "same length", &[]));
        // A count that no memory holds.
        area.write(3, b"same length", &[7, 8]).unwrap();
        let count = half(3) + HEAD + 11 + 8;
        area.0.write_all_at(&[0xff; 8], count).unwrap();
        assert!(area.read().unwrap().descriptors.starts_with(&[7, 8]));
    }
}
