//! Which ports need a privilege.

use std::fs;

/// The first one that needs none, per network namespace (ip(7)).
const FIRST: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Where the kernel does not say.
const USUAL_FIRST: u32 = 1024;

/// The first port that needs no privilege, which is 65536 where all of them need one.
pub fn first_unprivileged() -> u32 {
    let text = fs::read_to_string(FIRST).ok();
    text.and_then(|text| text.trim().parse().ok())
        .unwrap_or(USUAL_FIRST)
}
