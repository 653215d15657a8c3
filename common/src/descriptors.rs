//! Descriptors that a process was started with, or is about to hand on.

use nix::errno::Errno;

/// Closes every descriptor but 0, 1 and 2 (close_range(2)): whatever the launcher leaked is nobody's business here.
/// Call it before anything is opened.
pub fn close_inherited() -> nix::Result<()> {
    close_range(0)
}

/// Marks every descriptor but 0, 1 and 2 close-on-exec.
pub fn keep_from_exec() -> nix::Result<()> {
    close_range(libc::CLOSE_RANGE_CLOEXEC)
}

#[expect(unsafe_code, reason = "nix has no close_range")]
fn close_range(flags: libc::c_uint) -> nix::Result<()> {
    // SAFETY: it takes numbers only. No OwnedFd may exist yet when descriptors are closed: that is the contract of
    // `close_inherited`; close-on-exec takes no descriptor away from its owner.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) })
        .map(drop)
}
