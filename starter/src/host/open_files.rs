//! The limit on open descriptors: raised for the superdaemon, while workers get the launcher's own.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use crate::words::failure::Failure;
use crate::words::remedy;

/// What start_server needs at least, beside its sockets.
const OWN_DESCRIPTORS: rlim_t = 16;

/// The limit that the launcher set, and that workers get back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFiles {
    pub soft: rlim_t,
    pub hard: rlim_t,
}

impl OpenFiles {
    /// Reads it; call this before it is raised.
    pub fn of_launcher() -> Result<OpenFiles, Failure> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| {
            Failure::failed(format!(
                "cannot read the limit on open files: {}",
                errno.desc()
            ))
        })?;
        Ok(OpenFiles { soft, hard })
    }

    /// Checks whether this many sockets can be open at all, and as many further ones for their lanes: each needs its number
    /// in the workers and one out of their way.
    ///
    /// # Errors
    /// They cannot. If only the further ones are too many, the command line asks for too many lanes.
    pub fn check(self, sockets: usize, further: usize) -> Result<(), Failure> {
        let needed = |sockets| {
            let sockets = rlim_t::try_from(sockets).unwrap_or(rlim_t::MAX / 4);
            sockets * 2 + OWN_DESCRIPTORS
        };
        let (all, limit) = (sockets + further, self.hard);
        if needed(all) <= limit {
            return Ok(());
        }
        let text = format!(
            "cannot open {all} sockets: that takes {} descriptors, and the limit on open files is {limit}",
            needed(all)
        );
        Err(match needed(sockets) <= limit {
            true => Failure::usage(text).hint(remedy::FEWER_LANES),
            false => Failure::failed(text).hint(remedy::RAISE_OPEN_FILES),
        })
    }

    /// Makes room for this many descriptors in this process, as far as the hard limit allows. Needing more than that then
    /// fails with the kernel's error.
    pub fn make_room_for(self, descriptors: usize) -> Result<(), Failure> {
        let wanted = rlim_t::try_from(descriptors)
            .unwrap_or(rlim_t::MAX)
            .min(self.hard);
        // Never lower: it may have been raised for something else before.
        if getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(soft, _)| wanted <= soft) {
            return Ok(());
        }
        setrlimit(Resource::RLIMIT_NOFILE, wanted, self.hard).map_err(|errno| {
            Failure::failed(format!(
                "cannot raise the limit on open files: {}",
                errno.desc()
            ))
        })
    }
}

/// A close-on-exec copy of a descriptor with a number above `number`.
pub fn duplicate_above(descriptor: BorrowedFd<'_>, number: RawFd) -> nix::Result<OwnedFd> {
    let copy = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(number + 1))?;
    Ok(owned(copy))
}

/// The open descriptor with this number, which nobody in this process may own yet; `None` if it is not open. From now on it
/// is close-on-exec.
#[expect(
    unsafe_code,
    reason = "what the launcher passes on is known only by its number"
)]
pub fn adopt(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_SETFD takes no pointer, and no descriptor away from anybody; a number that is not open is answered with
    // EBADF.
    let marked = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    (marked == 0).then(|| owned(number))
}

/// Whether both are the same open file, as copies of a descriptor are (kcmp(2)). Where the kernel does not tell, what looks
/// the same is the same, as in systemd.
#[expect(unsafe_code, reason = "nix has no kcmp")]
pub fn is_same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    let (pid, number) = (std::process::id(), |it: BorrowedFd<'_>| it.as_raw_fd());
    // SAFETY: it takes numbers only.
    let compared = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            pid,
            pid,
            KCMP_FILE,
            number(one),
            number(other),
        )
    };
    match compared {
        0 => true,
        1.. => false,
        _ => looks_the_same(one, other).unwrap_or(false),
    }
}

fn looks_the_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> nix::Result<bool> {
    let (a, b) = (fstat(one)?, fstat(other)?);
    let is_same =
        (a.st_dev, a.st_ino, a.st_mode, a.st_rdev) == (b.st_dev, b.st_ino, b.st_mode, b.st_rdev);
    Ok(is_same && fcntl(one, FcntlArg::F_GETFL)? == fcntl(other, FcntlArg::F_GETFL)?)
}

/// The descriptor with this number, which is open and has no owner.
#[expect(unsafe_code, reason = "some descriptors come as a number")]
pub fn owned(number: RawFd) -> OwnedFd {
    // SAFETY: it is open and has no owner: F_DUPFD_CLOEXEC has just created it, or it was inherited, which is the contract
    // of `adopt` and of this function.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// What may be open with this number, for a call that finds out.
#[expect(unsafe_code, reason = "what was inherited is known only by its number")]
pub fn borrowed<'a>(number: RawFd) -> BorrowedFd<'a> {
    debug_assert!(number >= 0);
    // SAFETY: the number is not -1, and a call with one that is not open is answered with EBADF.
    unsafe { BorrowedFd::borrow_raw(number) }
}
