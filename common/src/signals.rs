//! Signal dispositions by number: of every signal that the kernel has, including those that nix has no name for and those
//! that the C library reserves for itself.

use nix::sys::signal::Signal;

/// The highest signal number (signal(7)).
const HIGHEST: libc::c_int = 64;

/// Faults of the process itself, which it is pointless to ignore.
const FAULTS: [Signal; 8] = [
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGSEGV,
    Signal::SIGSYS,
    Signal::SIGCHLD,
];

/// Resets every signal to its default disposition: exec preserves what the launcher ignored.
pub fn reset_all() {
    (1..=HIGHEST).for_each(|number| set(number, libc::SIG_DFL));
}

/// Ignores every signal that can be, except these and faults (and CHLD, which means nothing unless it is requested). Not
/// even for a moment: a signal that arrives then is lost.
pub fn ignore_all_but(kept: &[Signal]) {
    let is_kept = |number: &libc::c_int| {
        let mut all = FAULTS.iter().chain(kept);
        all.any(|signal| *signal as libc::c_int == *number)
    };
    (1..=HIGHEST)
        .filter(|number| !is_kept(number))
        .for_each(|number| set(number, libc::SIG_IGN));
}

/// Ignores one signal.
pub fn ignore(signal: Signal) {
    set(signal as libc::c_int, libc::SIG_IGN);
}

/// Stops the interval timers (setitimer(2)), which exec preserves too: their signals kill a process that does not expect
/// them.
#[expect(unsafe_code, reason = "nix has no setitimer")]
pub fn stop_timers() {
    let zero = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let stopped = libc::itimerval {
        it_interval: zero,
        it_value: zero,
    };
    for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: the kernel reads one struct of this type and writes nothing. It cannot fail for these numbers.
        unsafe { libc::setitimer(timer, &raw const stopped, std::ptr::null_mut()) };
    }
}

/// SIG_DFL or SIG_IGN for one signal. It fails only for KILL and STOP, which cannot be changed.
#[expect(
    unsafe_code,
    reason = "neither nix nor the C library reaches every signal"
)]
fn set(number: libc::c_int, action: libc::sighandler_t) {
    // The kernel's struct sigaction, at most this large: the action, no flags, no mask (rt_sigaction(2)).
    let wanted = [action as u64, 0, 0, 0];
    let old = std::ptr::null_mut::<u64>();
    // SAFETY: the kernel reads one struct from a larger buffer and writes nothing; neither action runs code of ours.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            number,
            wanted.as_ptr(),
            old,
            size_of::<u64>(),
        )
    };
}
