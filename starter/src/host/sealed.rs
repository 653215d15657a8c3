//! Files in memory that nobody can change any more (memfd_create(2)), for what one program of this process leaves to the next.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// `MFD_NOEXEC_SEAL` of Linux 6.3, which some hosts require (`vm.memfd_noexec`).
const NEVER_EXECUTED: MFdFlags = MFdFlags::from_bits_retain(8);

/// The largest that is read, in bytes: more than all queues of a log together.
const LARGEST: u64 = 256 << 20;

/// Puts this into a new one.
///
/// # Errors
/// Of memfd_create(2) and write(2): mostly that there is no memory.
pub fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let name = c"start_server";
    let file = match memfd_create(name, flags | NEVER_EXECUTED) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        made => made,
    }?;
    let mut file = File::from(file);
    file.write_all(content)?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// All that is in a file, wherever others have read to.
///
/// # Errors
/// Of read(2), and for a file that is too large.
pub fn read_all(file: impl AsFd) -> io::Result<Vec<u8>> {
    let file = File::from(file.as_fd().try_clone_to_owned()?);
    let length = file.metadata()?.len();
    if length > LARGEST {
        return Err(Errno::EFBIG.into());
    }
    let mut content = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

/// FNV-1a: tells damage from what was written, and no more.
pub fn checksum(content: &[u8]) -> u64 {
    content.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_can_be_read_and_never_written() {
        let sealed = sealed(b"content").unwrap();
        for _ in 0..2 {
            assert_eq!(read_all(&sealed).unwrap(), b"content");
        }
        let file = File::from(sealed);
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(1).is_err());
    }

    #[test]
    fn every_change_of_a_byte_is_seen() {
        assert_eq!(checksum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(checksum(b"ab"), checksum(b"ba"));
    }
}
