//! The service manager that started this process, if any.

/// Variables that a service manager addresses to its service alone (sd_notify(3), sd_watchdog_enabled(3),
/// sd_listen_fds(3)): a worker that found them would answer in our place.
pub const VARIABLES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
];
