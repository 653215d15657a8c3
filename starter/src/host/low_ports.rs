//! Which ports need privilege to be bound.

use std::fs;

/// Contains the first port that needs none; each network namespace has its own value (ip(7)).
const FIRST: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// What to assume if the kernel does not say.
const USUAL_FIRST: u32 = 1024;

/// The first port that needs no privilege: 0 if no port needs any; the kernel allows at most 65535.
pub fn first_unprivileged() -> u32 {
    let text = fs::read_to_string(FIRST).ok();
    text.and_then(|text| text.trim().parse().ok())
        .unwrap_or(USUAL_FIRST)
}
