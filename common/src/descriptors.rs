//! Descriptors that a process was started with, or is about to pass on.

use std::os::fd::RawFd;

use nix::errno::Errno;

/// The first one that is not standard input, output or error.
pub const FIRST: RawFd = 3;

/// Closes every descriptor from this one on (close_range(2)), which the launcher may have leaked. Call it before anything is
/// opened.
#[expect(
    unsafe_code,
    reason = "what the launcher leaked has no owner in this process"
)]
pub fn close_inherited(first: RawFd) -> nix::Result<()> {
    close_range(first, 0).or_else(|errno| {
        for_each_open(first, errno, |number| {
            // SAFETY: no OwnedFd exists yet from `first` on: that is the contract of `close_inherited`.
            unsafe { libc::close(number) }
        })
    })
}

/// Marks every descriptor but 0, 1 and 2 close-on-exec.
#[expect(unsafe_code, reason = "the descriptors are only known by number")]
pub fn keep_from_exec() -> nix::Result<()> {
    close_range(FIRST, libc::CLOSE_RANGE_CLOEXEC).or_else(|errno| {
        for_each_open(FIRST, errno, |number| {
            // SAFETY: this takes no descriptor away from its owner.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }
        })
    })
}

#[expect(unsafe_code, reason = "nix has no close_range")]
fn close_range(first: RawFd, flags: libc::c_uint) -> nix::Result<()> {
    // SAFETY: it takes numbers only. No OwnedFd may exist yet when descriptors are closed: that is the contract of
    // `close_inherited`; close-on-exec takes no descriptor away from its owner.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) })
        .map(drop)
}

/// One by one, if close_range(2) or its flag is missing: before Linux 5.11, and in containers whose filter does not know
/// it.
fn for_each_open(first: RawFd, refused: Errno, act: impl Fn(RawFd) -> i32) -> nix::Result<()> {
    // All numbers first, so that the list itself is not changed while it is read.
    let listed = std::fs::read_dir("/proc/self/fd").and_then(|entries| {
        entries
            .map(|entry| {
                Ok(entry?
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse().ok()))
            })
            .collect::<std::io::Result<Vec<Option<RawFd>>>>()
    });
    // Without /proc nothing is known about them: then the first error counts.
    for number in listed.map_err(|_| refused)?.into_iter().flatten() {
        if number >= first {
            match Errno::result(act(number)) {
                // The list itself is closed by now.
                Ok(_) | Err(Errno::EBADF) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}
