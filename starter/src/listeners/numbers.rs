//! The numbers that descriptors have in the workers, and the room that this takes here.

use std::os::fd::RawFd;

use crate::host::open_files::OpenFiles;
use crate::listeners::plan::SPARE_DESCRIPTORS;
use crate::words::failure::Failure;
use crate::words::remedy;

/// How many numbers above its listeners a worker needs for its exec (the program, its loader, libraries).
const DESCRIPTORS_TO_EXEC: u64 = 8;

/// How many descriptors can come with one datagram.
const MOST_ON_THE_WAY: usize = 253;

/// Numbers in the workers that are not for listeners.
#[derive(Debug, Clone, Copy)]
pub struct Reserved {
    /// This one.
    pub number: Option<RawFd>,
    /// As many after those of the listeners.
    pub after: usize,
}

/// Raises the limit on open files for this many sockets, and for the workers' numbers up to this one.
pub fn make_room(highest: RawFd, sockets: usize, open_files: OpenFiles) -> Result<(), Failure> {
    let soft = open_files.soft;
    if sockets > 0 && u64::from(highest.unsigned_abs()) + DESCRIPTORS_TO_EXEC > soft {
        return Err(Failure::failed(format!(
            "cannot pass descriptor {highest} to workers: the limit on open files is {soft}"
        ))
        .hint(remedy::RAISE_OPEN_FILES));
    }
    let highest = usize::try_from(highest).unwrap_or(0);
    open_files.make_room_for(highest + 3 * sockets + SPARE_DESCRIPTORS)
}

/// The same for this many descriptors after those of the listeners. Returns the highest number then.
pub fn make_more_room(
    highest: RawFd,
    sockets: usize,
    after: usize,
    open_files: OpenFiles,
) -> Result<RawFd, Failure> {
    if after == 0 {
        return Ok(highest);
    }
    let last = 2 + sockets + after;
    let soft = open_files.soft;
    if u64::try_from(last).is_ok_and(|last| last + DESCRIPTORS_TO_EXEC > soft) {
        return Err(Failure::failed(format!(
            "cannot pass --fd-store-max={after} descriptors to workers: the limit on open files is {soft}"
        ))
        .hint(remedy::RAISE_OPEN_FILES));
    }
    // They are kept above the workers' numbers, and some are on their way while those before them are kept.
    open_files.make_room_for(last + 3 * sockets + after + MOST_ON_THE_WAY + SPARE_DESCRIPTORS)?;
    Ok(highest.max(RawFd::try_from(last).unwrap_or(RawFd::MAX)))
}

/// Numbers the workers' descriptors: fixed ones as requested, the others consecutively from 3.
/// One of them may be reserved for something else.
pub fn numbers(fixed: &[Option<RawFd>], reserved: Option<RawFd>) -> Vec<RawFd> {
    let mut free =
        (3..).filter(|number| !fixed.contains(&Some(*number)) && Some(*number) != reserved);
    fixed
        .iter()
        .map(|number| number.or_else(|| free.next()).unwrap_or(RawFd::MAX))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_consecutive_from_3_and_move_away_only_for_fixed_ones() {
        assert_eq!(numbers(&[None, None, None], None), [3, 4, 5]);
        assert_eq!(numbers(&[None, Some(4), None], None), [3, 4, 5]);
        assert_eq!(numbers(&[None, Some(3), None], None), [4, 3, 5]);
        assert_eq!(numbers(&[Some(0), None, Some(100)], None), [0, 3, 100]);
        assert!(numbers(&[], None).is_empty());
        assert_eq!(numbers(&[None, Some(5), None, None], Some(3)), [4, 5, 6, 7]);
    }
}
