//! Which processes hold an address that cannot be bound, as far as this user can see in /proc.
//!
//! Used only after a failure, to word a hint: no decision depends on it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::message::Transport;
use nix::unistd::Pid;

use crate::host::proc::{Fields, socket_inode};
use crate::words::remedy;
use crate::words::text::printable;

/// How much of a socket table is read at most, in bytes: some hundred thousand sockets.
const LARGEST_TABLE: u64 = 32 * 1024 * 1024;

/// How much of a command name is read at most, in bytes; the kernel keeps 15.
const LONGEST_COMMAND: u64 = 64;

/// How many processes are named in one line.
const MOST_NAMED: usize = 16;

/// `TCP_LISTEN` in the column `st`.
const LISTENS: u8 = 0x0a;

/// `SO_ACCEPTCON` in the column `Flags` of /proc/net/unix.
const ACCEPTS: u32 = 0x1_0000;

/// `SOCK_DGRAM` in its column `Type`.
const DATAGRAM: u32 = 2;

/// The hint naming the processes that hold the port; `None` if none is visible.
pub fn hint_of_port(transport: Transport, ip: IpAddr, port: u16) -> Option<String> {
    let (table, table6) = match transport {
        Transport::Tcp => ("/proc/net/tcp", "/proc/net/tcp6"),
        Transport::Udp => ("/proc/net/udp", "/proc/net/udp6"),
    };
    let mut sockets = inet_sockets(&read(table, LARGEST_TABLE), u32::to_ne_bytes);
    sockets.extend(inet_sockets(&read(table6, LARGEST_TABLE), u32::to_ne_bytes));
    let inodes = in_the_way(&sockets, transport, ip, port);
    hint(&processes(|_, inode| inodes.contains(&inode)))
}

/// The same for the path of a unix socket that is served.
pub fn hint_of_path(path: &Path) -> Option<String> {
    let absolute = std::path::absolute(path).ok();
    let wanted = path.metadata().ok();
    let sockets = served_sockets(&read("/proc/net/unix", LARGEST_TABLE));
    // The table has each path as it was bound. The holder of a relative one may have changed directory since: such a socket
    // counts only if it is seen to be the same file, because other sockets of that name exist all over the machine.
    let is_ours = |process: &Path, bound: &Path| {
        let found = process.join("cwd").join(bound);
        match (&wanted, found.metadata()) {
            (Some(wanted), Ok(found)) => (wanted.dev(), wanted.ino()) == (found.dev(), found.ino()),
            // If this user cannot see that, the name alone has to do.
            _ => absolute.as_deref() == Some(bound),
        }
    };
    hint(&processes(|process, inode| {
        let mut sockets = sockets.iter().filter(|socket| socket.inode == inode);
        sockets.any(|socket| is_ours(process, &socket.path))
    }))
}

/// A process that has one of the sockets open.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    /// Its command name, as one line.
    command: String,
}

fn hint(holders: &[Holder]) -> Option<String> {
    let ourselves = std::process::id();
    if !holders.is_empty() && holders.iter().all(|holder| holder.pid == ourselves) {
        return Some(remedy::HELD_BY_OURSELVES.to_owned());
    }
    let mut servers = holders.iter().filter_map(server_of);
    if let Some(pid) = servers.find(|pid| *pid != ourselves) {
        return Some(remedy::of_running_server(pid));
    }
    let mut named: Vec<String> = holders
        .iter()
        .filter(|holder| holder.pid != ourselves)
        .map(|Holder { pid, command }| format!("pid {pid} ({command})"))
        .collect();
    if named.len() > MOST_NAMED {
        let more = named.split_off(MOST_NAMED).len();
        named.push(format!("{more} more"));
    }
    let last = named.pop()?;
    let all = match named.is_empty() {
        true => last,
        false => format!("{} and {last}", named.join(", ")),
    };
    Some(remedy::of_holders(&all))
}

/// The start_server that runs there, by its name: the holder, or the parent of a worker, whose own descriptors this user
/// may not see.
fn server_of(holder: &Holder) -> Option<u32> {
    let is_server = |pid: &u32| {
        let comm = read(format!("/proc/{pid}/comm"), LONGEST_COMMAND);
        command(&comm) == "start_server"
    };
    let pid = Pid::from_raw(i32::try_from(holder.pid).ok()?);
    let parent = Fields::of(pid).ok().and_then(|fields| fields.parent());
    let parent = parent.and_then(|parent| u32::try_from(parent.as_raw()).ok());
    [Some(holder.pid), parent]
        .into_iter()
        .flatten()
        .find(is_server)
}

/// The processes with one of these sockets open, by pid. Those that this user cannot examine are left out.
fn processes(is_wanted: impl Fn(&Path, u64) -> bool) -> Vec<Holder> {
    let mut holders = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let process = entry.path();
        let descriptors = fs::read_dir(process.join("fd"));
        let holds = descriptors.into_iter().flatten().flatten().any(|entry| {
            let target = fs::read_link(entry.path());
            let inode = target.ok().and_then(|it| socket_inode(it.as_os_str()));
            inode.is_some_and(|inode| is_wanted(&process, inode))
        });
        if holds {
            let comm = read(process.join("comm"), LONGEST_COMMAND);
            let command = command(&comm);
            holders.push(Holder { pid, command });
        }
    }
    holders.sort_by_key(|holder| holder.pid);
    holders
}

/// What can be read of a file, at most `most` bytes.
fn read(path: impl AsRef<Path>, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What was read before an error counts too: the answer is as good as what is visible.
        drop(file.take(most).read_to_end(&mut bytes));
    }
    bytes
}

/// The whole lines after a table's header: a last one without its end was cut, and so were the numbers in it.
fn rows(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    let whole = table.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let whole = table.get(..whole).unwrap_or_default();
    whole.split(|byte| *byte == b'\n').skip(1)
}

/// A row of /proc/net/{tcp,tcp6,udp,udp6}.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InetSocket {
    pub ip: IpAddr,
    pub port: u16,
    pub state: u8,
    pub inode: u64,
}

/// `to_bytes` is the kernel's byte order, as it prints each word of an address as a number of its own.
pub fn inet_sockets(table: &[u8], to_bytes: fn(u32) -> [u8; 4]) -> Vec<InetSocket> {
    let parsed = |row| {
        let row = std::str::from_utf8(row).ok()?;
        // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
        let columns: Vec<&str> = row.split_ascii_whitespace().take(10).collect();
        let (ip, port) = columns.get(1)?.split_once(':')?;
        Some(InetSocket {
            ip: address(ip, to_bytes)?,
            port: u16::from_str_radix(port, 16).ok()?,
            state: u8::from_str_radix(columns.get(3)?, 16).ok()?,
            inode: columns.get(9)?.parse().ok()?,
        })
    };
    rows(table).filter_map(parsed).collect()
}

/// An IPv4 address in an IPv6 one is that IPv4 address.
fn address(digits: &str, to_bytes: fn(u32) -> [u8; 4]) -> Option<IpAddr> {
    let word = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok()?;
        u32::from_str_radix(digits, 16).ok().map(to_bytes)
    };
    let (words, rest) = digits.as_bytes().as_chunks::<8>();
    match (words, rest) {
        ([only], []) => Some(Ipv4Addr::from(word(only)?).into()),
        ([first, second, third, fourth], []) => {
            let words = [word(first)?, word(second)?, word(third)?, word(fourth)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    }
}

/// The inodes of the sockets that keep this address from being bound.
pub fn in_the_way(sockets: &[InetSocket], transport: Transport, ip: IpAddr, port: u16) -> Vec<u64> {
    let candidates = sockets.iter().filter(|socket| {
        socket.port == port && (transport == Transport::Udp || socket.state == LISTENS)
    });
    let overlaps = |socket: &&InetSocket| {
        socket.ip.is_ipv4() == ip.is_ipv4()
            && (socket.ip == ip || socket.ip.is_unspecified() || ip.is_unspecified())
    };
    let inodes = |sockets: Vec<&InetSocket>| sockets.iter().map(|socket| socket.inode).collect();
    let same_family: Vec<&InetSocket> = candidates.clone().filter(overlaps).collect();
    if !same_family.is_empty() || ip.is_ipv6() {
        return inodes(same_family);
    }
    // An IPv6 wildcard can include IPv4; the table does not show whether it does. Beside a wildcard of the same family it
    // does not, or that one could not have been bound.
    inodes(
        candidates
            .filter(|socket| socket.ip == Ipv6Addr::UNSPECIFIED)
            .collect(),
    )
}

/// A row of /proc/net/unix for a socket that a client would reach.
#[derive(Debug, PartialEq, Eq)]
pub struct ServedSocket {
    inode: u64,
    pub path: PathBuf,
}

/// The rows of a whole table.
pub fn served_sockets(table: &[u8]) -> Vec<ServedSocket> {
    let parsed = |row| {
        // Num: RefCount Protocol Flags Type St Inode Path; the path may contain anything.
        let mut rest: &[u8] = row;
        let mut column = || {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|byte| *byte == b' ')?;
            let (column, after) = rest.split_at(end);
            rest = after;
            std::str::from_utf8(column).ok()
        };
        let hexadecimal = |column: &str| u32::from_str_radix(column, 16).ok();
        let (_, _, _) = (column()?, column()?, column()?);
        let (flags, kind) = (hexadecimal(column()?)?, hexadecimal(column()?)?);
        let (_, inode) = (column()?, column()?.parse().ok()?);
        let path = rest.strip_prefix(b" ").filter(|path| !path.is_empty())?;
        let is_served = flags & ACCEPTS != 0 || kind == DATAGRAM;
        // An abstract name is not a path.
        (is_served && !path.starts_with(b"@")).then(|| ServedSocket {
            inode,
            path: PathBuf::from(OsStr::from_bytes(path)),
        })
    };
    rows(table).filter_map(parsed).collect()
}

/// A process can give itself any name.
pub fn command(comm: &[u8]) -> String {
    let comm = comm.strip_suffix(b"\n").unwrap_or(comm);
    printable(OsStr::from_bytes(comm))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    /// A table as a kernel of this byte order prints it.
    fn table(sockets: &[(&str, u16, u8, u64)], from_bytes: fn([u8; 4]) -> u32) -> String {
        let rows = sockets.iter().map(|(ip, port, state, inode)| {
            let bytes = match ip.parse().unwrap() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let words = bytes.chunks(4).map(|word| from_bytes(word.try_into().unwrap()));
            let ip: String = words.map(|word| format!("{word:08X}")).collect();
            format!(
                "   0: {ip}:{port:04X} 00000000:0000 {state:02X} 00000000:00000000 00:00000000 00000000 65534        0 {inode} 1 0 100\n"
            )
        });
        HEAD.to_owned() + &rows.collect::<String>()
    }

    fn socket(ip: &str, port: u16, state: u8, inode: u64) -> InetSocket {
        let ip = ip.parse().unwrap();
        InetSocket {
            ip,
            port,
            state,
            inode,
        }
    }

    #[test]
    fn a_row_is_read_as_the_kernel_prints_it() {
        let row = "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 65534        0 12345 1 0000000000000000 100 0 0 10 0      \n";
        let table = HEAD.to_owned() + row;
        assert_eq!(
            inet_sockets(table.as_bytes(), u32::to_le_bytes),
            [socket("127.0.0.1", 8080, LISTENS, 12345)]
        );
        assert_eq!(
            inet_sockets(table.as_bytes(), u32::to_be_bytes),
            [socket("1.0.0.127", 8080, LISTENS, 12345)]
        );
        let row = "   0: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0\n";
        assert_eq!(
            inet_sockets((HEAD.to_owned() + row).as_bytes(), u32::to_le_bytes),
            [socket("2001:db8::1", 80, LISTENS, 7)]
        );
    }

    #[test]
    fn addresses_are_read_in_both_byte_orders() {
        let sockets = [
            ("127.0.0.1", 8080, LISTENS, 12345),
            ("0.0.0.0", 1, 7, 1),
            ("2001:db8::1:2:3", 65535, LISTENS, u64::MAX),
            ("::", 80, LISTENS, 3),
        ];
        let expected = sockets.map(|(ip, port, state, inode)| socket(ip, port, state, inode));
        let little = table(&sockets, u32::from_le_bytes);
        assert_eq!(inet_sockets(little.as_bytes(), u32::to_le_bytes), expected);
        let big = table(&sockets, u32::from_be_bytes);
        assert_eq!(inet_sockets(big.as_bytes(), u32::to_be_bytes), expected);
        let mapped = table(&[("::ffff:127.0.0.1", 1, 7, 1)], u32::from_ne_bytes);
        assert_eq!(
            inet_sockets(mapped.as_bytes(), u32::to_ne_bytes),
            [socket("127.0.0.1", 1, 7, 1)]
        );
    }

    #[test]
    fn a_table_that_was_cut_gives_whole_rows_only() {
        let whole = table(
            &[("127.0.0.1", 1, LISTENS, 11), ("127.0.0.1", 2, LISTENS, 22)],
            u32::from_ne_bytes,
        );
        let both = inet_sockets(whole.as_bytes(), u32::to_ne_bytes);
        for length in 0..whole.len() {
            let cut = inet_sockets(&whole.as_bytes()[..length], u32::to_ne_bytes);
            assert!(cut.len() < 2 && both.starts_with(&cut), "cut to {length}");
        }
    }

    #[test]
    fn what_is_no_row_is_left_out() {
        for row in [
            "",
            "   0:",
            "   0: 0100007F 00000000:0000 0A 0:0 0:0 0 0 0 5 1",
            "   0: 0100007:1F90 00000000:0000 0A 0:0 0:0 0 0 0 5 1",
            "   0: 0100007F00:1F90 00000000:0000 0A 0:0 0:0 0 0 0 5 1",
            "   0: 0100007F:1F901 00000000:0000 0A 0:0 0:0 0 0 0 5 1",
            "   0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0",
            "   0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0 x 1",
        ] {
            let table = format!("{HEAD}{row}\n");
            assert_eq!(inet_sockets(table.as_bytes(), u32::to_ne_bytes), []);
        }
    }

    #[test]
    fn only_what_conflicts_is_in_the_way() {
        let sockets = [
            socket("127.0.0.1", 80, LISTENS, 1),
            socket("127.0.0.2", 80, LISTENS, 2),
            socket("127.0.0.1", 81, LISTENS, 3),
            // A connection.
            socket("127.0.0.1", 80, 1, 4),
            socket("::1", 80, LISTENS, 5),
            socket("0.0.0.0", 82, LISTENS, 6),
            socket("::", 82, LISTENS, 7),
            socket("::", 83, LISTENS, 8),
            socket("::1", 83, LISTENS, 9),
        ];
        let tcp = |ip: &str, port| in_the_way(&sockets, Transport::Tcp, ip.parse().unwrap(), port);
        assert_eq!(tcp("127.0.0.1", 80), [1]);
        assert_eq!(tcp("0.0.0.0", 80), [1, 2]);
        assert_eq!(tcp("::1", 80), [5]);
        assert_eq!(tcp("::", 80), [5]);
        assert_eq!(tcp("127.0.0.1", 82), [6]);
        assert_eq!(tcp("::1", 82), [7]);
        assert_eq!(tcp("127.0.0.1", 83), [8]);
        assert_eq!(tcp("::1", 83), [8, 9]);
        assert_eq!(tcp("127.0.0.1", 84), [0; 0]);
        let udp = in_the_way(&sockets, Transport::Udp, "127.0.0.1".parse().unwrap(), 80);
        assert_eq!(udp, [1, 4]);
    }

    #[test]
    fn of_unix_sockets_those_that_are_served_are_found_with_their_paths() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/app.sock\n\
             0000000000000000: 00000003 00000000 00000000 0001 03 12346 /run/app.sock\n\
             0000000000000000: 00000002 00000000 00010000 0005 01   347  with two  spaces \n\
             0000000000000000: 00000002 00000000 00000000 0002 01    48 /dev/log\n\
             0000000000000000: 00000002 00000000 00010000 0001 01    49 @abstract\n\
             0000000000000000: 00000002 00000000 00010000 0001 01    50\n\
             0000000000000000: 00000002 00000000 00010000 0001 01    51 /cut";
        let found: Vec<(u64, PathBuf)> = served_sockets(table.as_bytes())
            .into_iter()
            .map(|socket| (socket.inode, socket.path))
            .collect();
        let expected = [
            (12345, "/run/app.sock"),
            (347, " with two  spaces "),
            (48, "/dev/log"),
        ];
        assert_eq!(
            found,
            expected.map(|(inode, path)| (inode, PathBuf::from(path)))
        );
    }

    #[test]
    fn a_link_to_a_socket_has_its_inode() {
        let inode = |target: &str| socket_inode(OsStr::new(target));
        assert_eq!(inode("socket:[123]"), Some(123));
        for other in ["pipe:[123]", "socket:[]", "socket:[123", "socket:[1]2]", ""] {
            assert_eq!(inode(other), None);
        }
    }

    #[test]
    fn the_hint_names_every_process_in_one_line() {
        let holder = |pid, comm: &[u8]| Holder {
            pid,
            command: command(comm),
        };
        assert_eq!(hint(&[]), None);
        let tail = ": another server, or workers that a killed start_server has left behind";
        let hint_of = |holders: &[Holder]| {
            let hint = hint(holders).unwrap();
            hint.strip_suffix(tail).unwrap().to_owned()
        };
        let (one, two) = (holder(0, b"worker\n"), holder(u32::MAX, b"\x1b[2J\n\n"));
        assert_eq!(hint_of(&[one]), "it is held by pid 0 (worker)");
        let one = holder(0, b"worker\n");
        let escaped = "pid 4294967295 (\\x1B[2J\\x0A)";
        assert_eq!(
            hint_of(&[one, two]),
            format!("it is held by pid 0 (worker) and {escaped}")
        );
        let many: Vec<Holder> = (0..=16).map(|_| holder(0, b"w")).collect();
        assert!(hint_of(&many).ends_with("pid 0 (w), pid 0 (w) and 1 more"));
        let ourselves = holder(std::process::id(), b"start_server");
        assert_eq!(
            hint(&[ourselves]).unwrap(),
            "another listener of the same command line has it"
        );
    }
}
