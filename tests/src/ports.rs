//! Unused ports of the loopback interface, each handed out once.

use std::collections::HashSet;
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, process};

/// A port above 1023 that nobody uses, for TCP and UDP, IPv4 and IPv6 alike.
///
/// It lies below the range from which the kernel takes the ports of outgoing connections, so that it stays unused.
#[must_use]
pub fn tcp() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ephemeral: u16 = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(32768);
    take(
        10_000..if ephemeral > 12_000 {
            ephemeral
        } else {
            32_768
        },
        &NEXT,
        |_| true,
    )
}

/// The same, under the name that a UDP test wants to read.
#[must_use]
pub fn udp() -> u16 {
    tcp()
}

/// A port below 1024 that nobody uses. Only root can know, so this needs root.
#[must_use]
pub fn low() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    take(600..1024, &NEXT, claim)
}

/// Low ports are few: none is handed out by two processes that run tests at the same time. The sign is an abstract
/// socket (unix(7)), which is gone with the process.
fn claim(port: u16) -> bool {
    static CLAIMS: Mutex<Vec<UnixDatagram>> = Mutex::new(Vec::new());
    let name = format!("start_server-e2e-port-{port}");
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let claimed = UnixDatagram::bind_addr(&address);
    let mut claims = CLAIMS.lock().expect("another test panicked here");
    claimed.map(|socket| claims.push(socket)).is_ok()
}

fn take(range: Range<u16>, next: &AtomicU32, claim: impl Fn(u16) -> bool) -> u16 {
    let length = u32::from(range.end - range.start);
    // Test processes that run at the same time begin at different places.
    let offset = process::id().wrapping_mul(211);
    for _ in 0..length {
        let number = next.fetch_add(1, Ordering::Relaxed).wrapping_add(offset) % length;
        let port =
            range.start + u16::try_from(number).expect("less than the length of a range of u16");
        if is_unused(port) && claim(port) {
            return port;
        }
    }
    panic!("no port in {range:?} is unused");
}

fn is_unused(port: u16) -> bool {
    /// Long enough that a thousand ports are not a thousand looks at very long tables.
    const FRESH: Duration = Duration::from_millis(200);
    static SEEN: Mutex<Option<(Instant, HashSet<u16>)>> = Mutex::new(None);
    let mut seen = SEEN.lock().expect("another test panicked here");
    match &*seen {
        Some((at, used)) if at.elapsed() < FRESH => !used.contains(&port),
        _ => !seen.insert((Instant::now(), used())).1.contains(&port),
    }
}

/// The ports that somebody has. By looking only: a socket that was bound to find out would live on for a moment in
/// whatever process is just being started by another thread.
fn used() -> HashSet<u16> {
    // Connections of the past do not keep anybody from a port.
    const LISTENS: &str = "0A";
    let mut used = HashSet::new();
    for protocol in ["tcp", "tcp6", "udp", "udp6"] {
        let table = fs::read_to_string(format!("/proc/net/{protocol}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let mut words = line.split_whitespace().skip(1);
            let (local, state) = (words.next(), words.nth(1));
            let port = local.and_then(|local| local.rsplit_once(':'));
            if protocol.starts_with("udp") || state == Some(LISTENS) {
                used.extend(port.and_then(|(_, port)| u16::from_str_radix(port, 16).ok()));
            }
        }
    }
    used
}
