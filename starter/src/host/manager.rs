//! The service manager that has started this process, as far as one has.

/// What a service manager tells its own service, and no other process (sd_notify(3), sd_watchdog_enabled(3),
/// sd_listen_fds(3)): a worker that found these would answer to it in our place.
pub const VARIABLES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
];
