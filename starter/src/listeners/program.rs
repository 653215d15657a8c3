//! The program that the kernel asks which socket of a group gets new traffic (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)), in
//! classic BPF (Documentation/networking/filter.rst). It runs for each connection request and each datagram, with what
//! follows the TCP or UDP header before it, and answers with a place in the group.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LEN,
    BPF_MISC, BPF_MOD, BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_W, BPF_X, BPF_XOR, SKF_AD_CPU,
    SKF_AD_OFF, SKF_AD_RANDOM, SKF_NET_OFF, sock_filter,
};

use crate::machine::By;

/// These bits of a product are mixed best.
const MIX: u32 = 0x9e37_79b1;

/// In a QUIC packet with a long header (RFC 8999) this bit of the first byte is set.
const LONG_HEADER: u32 = 0x80;

/// These versions of it (RFC 9000, RFC 9369) have the type of a packet in these bits of the first byte, and call a
/// handshake packet so.
const VERSION_1: u32 = 1;
const VERSION_2: u32 = 0x6b33_43cf;
const TYPE: u32 = 0x30;
const HANDSHAKE_1: u32 = 0x20;
const HANDSHAKE_2: u32 = 0x30;

/// Where a long header has the length of the connection ID.
const LENGTH: u32 = 5;

/// Where it has bytes of an ID that a client has made up: the first choose one of several sockets for a flow, the second
/// decide whether it goes to a canary.
const OF_SPREAD: u32 = 6;
const OF_CANARY: u32 = 10;

/// The ID that a client makes up for the server has at least this length.
const SHORTEST_OF_CLIENT: u32 = 8;

/// Which places get new traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub main: Vec<u32>,
    /// Who gets a percentage of it.
    pub canary: Option<(Vec<u32>, u8, By)>,
    pub spread: Spread,
    pub family: Family,
    /// Where packets of flows that exist already name their socket.
    pub flows: Option<Flows>,
}

/// How new traffic is spread over several places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    Random,
    /// By the number of the CPU that took the packet.
    Cpu,
}

/// Where a packet has its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Packets of QUIC with a connection ID that a server has issued go to the socket that it names: those with a short header,
/// and of those with a long one as many as show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flows {
    /// Which byte of the connection ID, from 0.
    pub offset: u8,
    /// The place of each socket, by its number; of one that has none, the flows count as new.
    pub places: Vec<Option<u32>>,
}

impl Choice {
    /// Its instructions.
    pub fn program(&self) -> Vec<sock_filter> {
        let mut program = Vec::new();
        if let Some(flows) = &self.flows {
            program.extend(flows.known());
        }
        if let Some((places, percent, by)) = &self.canary {
            let canary = self.spread(places);
            program.extend(match by {
                By::Random => self.chance(OF_CANARY),
                By::Client => of_client(self.family),
            });
            program.push(modulo(100));
            // The kernel reads these two as how many instructions to skip.
            let beyond = u8::try_from(canary.len()).unwrap_or(u8::MAX);
            program.push(jump(BPF_JGE, (*percent).into(), beyond, 0));
            program.extend(canary);
        }
        program.extend(self.spread(&self.main));
        program
    }

    /// Answers with one of the places.
    fn spread(&self, places: &[u32]) -> Vec<sock_filter> {
        let (last, others) = match places.split_last() {
            Some((last, others)) => (*last, others),
            None => (0, &[][..]),
        };
        if others.is_empty() {
            return vec![answer(last)];
        }
        let count = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let mut program = match self.spread {
            Spread::Random => self.chance(OF_SPREAD),
            Spread::Cpu => vec![load_of_kernel(SKF_AD_CPU)],
        };
        program.push(modulo(count));
        for (number, place) in (0..).zip(others) {
            program.extend([jump(BPF_JEQ, number, 0, 1), answer(*place)]);
        }
        program.push(answer(last));
        program
    }

    /// Loads a number by chance. The first packets of a flow have the same, as they have the same ID: four bytes of it. The
    /// client has made that up, and so can choose.
    fn chance(&self, of_flow: u32) -> Vec<sock_filter> {
        let any = load_of_kernel(SKF_AD_RANDOM);
        match self.flows {
            None => vec![any],
            Some(_) => vec![
                load(BPF_W | BPF_LEN, 0),
                jump(BPF_JGE, of_flow + 4, 0, 4),
                load(BPF_B | BPF_ABS, 0),
                jump(BPF_JSET, LONG_HEADER, 0, 2),
                load(BPF_W | BPF_ABS, of_flow),
                always(1),
                any,
            ],
        }
    }
}

impl Flows {
    /// Answers for packets whose flow is known; what follows is for all others.
    fn known(&self) -> Vec<sock_filter> {
        let offset = u32::from(self.offset);
        let (of_short, of_long) = (1 + offset, 6 + offset);
        let mut program = vec![
            // A packet that is too short belongs to no flow: a load beyond its end would be an answer.
            load(BPF_W | BPF_LEN, 0),
            jump(BPF_JGE, of_short + 1, 1, 0),
            elsewhere(),
            load(BPF_B | BPF_ABS, 0),
            jump(BPF_JSET, LONG_HEADER, 2, 0),
            load(BPF_B | BPF_ABS, of_short),
            always(0),
        ];
        let short = program.len();
        program.extend([
            load(BPF_W | BPF_LEN, 0),
            jump(BPF_JGE, of_long + 1, 1, 0),
            elsewhere(),
            load(BPF_W | BPF_ABS, 1),
            jump(BPF_JEQ, VERSION_1, 2, 0),
            jump(BPF_JEQ, VERSION_2, 4, 0),
            elsewhere(),
            // The type of a packet, of version 1 and of version 2: who sends a handshake packet knows an ID of ours.
            load(BPF_B | BPF_ABS, 0),
            code(BPF_ALU | BPF_AND | BPF_K, TYPE),
            jump(BPF_JEQ, HANDSHAKE_1, 6, 3),
            load(BPF_B | BPF_ABS, 0),
            code(BPF_ALU | BPF_AND | BPF_K, TYPE),
            jump(BPF_JEQ, HANDSHAKE_2, 3, 0),
            // And an ID that a client has made up is not as short.
            load(BPF_B | BPF_ABS, LENGTH),
            jump(BPF_JGE, SHORTEST_OF_CLIENT, 0, 1),
            elsewhere(),
            load(BPF_B | BPF_ABS, LENGTH),
            jump(BPF_JGE, offset + 1, 1, 0),
            elsewhere(),
            load(BPF_B | BPF_ABS, of_long),
        ]);
        // What has loaded the number from a short header.
        program[short - 1] = always(distance(short - 1, program.len()));
        let answers = self.places.iter().enumerate();
        let answers = answers.filter_map(|(number, place)| {
            let number = u32::try_from(number).ok()?;
            Some([jump(BPF_JEQ, number, 0, 1), answer((*place)?)])
        });
        program.extend(answers.flatten());
        let end = program.len();
        for (place, one) in program.iter_mut().enumerate() {
            if is_elsewhere(one) {
                one.k = distance(place, end);
            }
        }
        program
    }
}

/// How many instructions a jump from one to another skips.
fn distance(from: usize, to: usize) -> u32 {
    u32::try_from(to - from - 1).unwrap_or(0)
}

/// A jump to the instructions for packets of no known flow; its distance is filled in later.
fn elsewhere() -> sock_filter {
    always(u32::MAX)
}

fn is_elsewhere(one: &sock_filter) -> bool {
    one.code == elsewhere().code && one.k == elsewhere().k
}

/// Loads a number that is the same for all that comes from the same client.
fn of_client(family: Family) -> Vec<sock_filter> {
    let mut program = match family {
        Family::V4 => vec![load_of_network(12)],
        // The network of a client: the rest may change from one connection to the next (RFC 8981).
        Family::V6 => vec![
            load_of_network(8),
            code(BPF_MISC | BPF_TAX, 0),
            load_of_network(12),
            code(BPF_ALU | BPF_XOR | BPF_X, 0),
        ],
    };
    program.extend([
        code(BPF_ALU | BPF_MUL | BPF_K, MIX),
        code(BPF_ALU | BPF_RSH | BPF_K, 16),
    ]);
    program
}

fn answer(place: u32) -> sock_filter {
    code(BPF_RET | BPF_K, place)
}

fn modulo(divisor: u32) -> sock_filter {
    code(BPF_ALU | BPF_MOD | BPF_K, divisor)
}

fn load(how: u32, at: u32) -> sock_filter {
    code(BPF_LD | how, at)
}

/// Something that the kernel knows beside the packet.
fn load_of_kernel(what: i32) -> sock_filter {
    load(BPF_W | BPF_ABS, (SKF_AD_OFF + what).cast_unsigned())
}

/// Four bytes of the IP header.
fn load_of_network(at: i32) -> sock_filter {
    load(BPF_W | BPF_ABS, (SKF_NET_OFF + at).cast_unsigned())
}

fn always(skipped: u32) -> sock_filter {
    code(BPF_JMP, skipped)
}

/// Skips this many instructions if the condition holds, and that many if it does not.
fn jump(condition: u32, operand: u32, holds: u8, otherwise: u8) -> sock_filter {
    sock_filter {
        jt: holds,
        jf: otherwise,
        ..code(BPF_JMP | condition | BPF_K, operand)
    }
}

fn code(code: u32, operand: u32) -> sock_filter {
    sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: 0,
        jf: 0,
        k: operand,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
    use std::os::fd::{AsRawFd, OwnedFd};

    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket,
    };

    use super::*;
    use crate::listeners::group::tests::{MAKING, listening, reached_by};
    use crate::listeners::group::{Group, Making, Selected};
    use crate::listeners::sockets::bound_address;

    fn selected(main: &[u8], canary: Option<(&[u8], u8, By)>) -> Selected {
        Selected {
            main: main.to_vec(),
            canary: canary.map(|(sockets, percent, by)| (sockets.to_vec(), percent, by)),
            spread: Spread::Random,
            flows: Vec::new(),
        }
    }

    /// A group of UDP, whose sockets do not block.
    fn datagrams(ip: IpAddr, lanes: u8, flows: Option<u8>) -> (OwnedFd, Group) {
        let first = OwnedFd::from(UdpSocket::bind((ip, 0)).unwrap());
        let making = Making {
            lanes,
            backlog: None,
            flows,
            ..MAKING
        };
        let group = Group::form(&first, vec![], making).unwrap();
        (first, group)
    }

    /// Which lane gets this datagram.
    fn reached(client: &UdpSocket, data: &[u8], first: &OwnedFd, group: &Group) -> u8 {
        client.send_to(data, bound_address(first).unwrap()).unwrap();
        let has_got = |lane: &u8| {
            let socket = UdpSocket::from(group.lane(first, *lane).try_clone().unwrap());
            socket.set_nonblocking(true).unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        };
        let lanes: Vec<u8> = (0..group.count()).filter(has_got).collect();
        assert_eq!(lanes.len(), 1, "{lanes:?}");
        lanes[0]
    }

    /// How many of these datagrams go to each lane.
    fn spread_of(times: u32, first: &OwnedFd, group: &Group) -> BTreeMap<u8, u32> {
        let client = UdpSocket::bind((bound_address(first).unwrap().ip(), 0)).unwrap();
        let mut counts = BTreeMap::new();
        for _ in 0..times {
            *counts
                .entry(reached(&client, b"x", first, group))
                .or_default() += 1;
        }
        counts
    }

    #[test]
    fn a_share_comes_to_a_canary() {
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let (first, group) = datagrams(ip, 3, None);
            let wanted = selected(&[2], Some((&[1], 10, By::Random)));
            group.select(&first, &wanted).unwrap();
            let counts = spread_of(4000, &first, &group);
            assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [1, 2]);
            // Seven standard deviations.
            assert!(
                (400_u32 - 133..400 + 133).contains(&counts[&1]),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn several_sockets_get_as_much_each_and_a_canary_the_same() {
        let (first, group) = datagrams(Ipv4Addr::LOCALHOST.into(), 8, None);
        let wanted = selected(&[4, 5, 6, 7], None);
        group.select(&first, &wanted).unwrap();
        let counts = spread_of(8000, &first, &group);
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [4, 5, 6, 7]);
        assert!(
            counts.values().all(|count| (1730..2270).contains(count)),
            "{counts:?}"
        );
        let wanted = selected(&[4, 5, 6, 7], Some((&[0, 1], 50, By::Random)));
        group.select(&first, &wanted).unwrap();
        let counts = spread_of(8000, &first, &group);
        assert!(
            counts[&0].abs_diff(2000) < 270 && counts[&1].abs_diff(2000) < 270,
            "{counts:?}"
        );
        assert!(
            (4..8).all(|one| counts[&one].abs_diff(1000) < 210),
            "{counts:?}"
        );
    }

    #[test]
    fn by_the_cpu_that_took_it_each_goes_to_the_socket_of_that_cpu() {
        let (first, group) = datagrams(Ipv4Addr::LOCALHOST.into(), 8, None);
        let wanted = Selected {
            spread: Spread::Cpu,
            ..selected(&[4, 5, 6], None)
        };
        group.select(&first, &wanted).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let us = nix::unistd::Pid::from_raw(0);
        let allowed = nix::sched::sched_getaffinity(us).unwrap();
        for cpu in (0..nix::sched::CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()) {
            let mut only = nix::sched::CpuSet::new();
            only.set(cpu).unwrap();
            nix::sched::sched_setaffinity(us, &only).unwrap();
            for _ in 0..20 {
                let lane = reached(&client, b"x", &first, &group);
                assert_eq!(usize::from(lane), 4 + cpu % 3);
            }
        }
    }

    /// A connection from this address.
    fn connect_from(ip: Ipv4Addr, to: SocketAddr) -> TcpStream {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let from = SockaddrStorage::from(SocketAddr::from((ip, 0)));
        bind(socket.as_raw_fd(), &from).unwrap();
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
        TcpStream::from(socket)
    }

    #[test]
    fn a_client_stays_with_one_version() {
        let (first, group) = listening(Ipv4Addr::LOCALHOST.into());
        let address = bound_address(&first).unwrap();
        let of = |percent| selected(&[0], Some((&[2], percent, By::Client)));
        let mut before = Vec::new();
        for percent in [30, 30, 60] {
            group.select(&first, &of(percent)).unwrap();
            let lanes = (1..=200).flat_map(|last| {
                let client = connect_from(Ipv4Addr::new(127, 0, 3, last), address);
                reached_by(client, &first, &group)
            });
            let lanes: Vec<u8> = lanes.collect();
            assert_eq!(lanes.len(), 200);
            let share = lanes.iter().filter(|lane| **lane == 2).count();
            assert!(
                share.abs_diff(2 * usize::from(percent)) < 35,
                "{share} of 200"
            );
            // Whoever came to the canary does so when it gets more.
            let mut pairs = lanes.iter().zip(&before);
            assert!(pairs.all(|(now, then)| now >= then));
            before = lanes;
        }
    }

    #[test]
    fn packets_of_a_flow_come_to_the_socket_that_they_name_and_all_others_to_the_selected_one() {
        let (first, group) = datagrams(Ipv4Addr::LOCALHOST.into(), 5, Some(2));
        let wanted = Selected {
            flows: vec![0, 1, 2, 3],
            ..selected(&[1], None)
        };
        group.select(&first, &wanted).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let short = |number: u8| [0x40, 0xff, 0xff, number, 0xff];
        for number in 0..4 {
            assert_eq!(reached(&client, &short(number), &first, &group), number);
        }
        // It has no flows.
        for data in [
            &short(4)[..],
            &short(255),
            // A long header.
            &[0xc0, 0, 0, 3, 0],
            &[0x80, 0, 0, 3, 0],
            &[0xe0, 0, 0, 0, 1, 3, 0, 0],
            // Too short.
            &[0x40, 3, 3],
            &[0x40],
            &[],
        ] {
            assert_eq!(reached(&client, data, &first, &group), 1, "{data:?}");
        }
        assert_eq!(reached(&client, &[0x40, 0, 0, 3], &first, &group), 3);
    }

    #[test]
    fn a_long_header_names_a_socket_where_its_id_is_certainly_a_servers() {
        const MAIN: u8 = 1;
        let offset = 2;
        let (first, group) = datagrams(Ipv4Addr::LOCALHOST.into(), 4, Some(offset));
        let wanted = Selected {
            flows: vec![0, 1, 2, 3],
            ..selected(&[MAIN], None)
        };
        group.select(&first, &wanted).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // All types of a version, with IDs of all lengths, of which none but the right byte is a number of a socket.
        let packet = |version: u32, kind: u8, length: u8| {
            let mut packet = vec![0xc0 | kind << 4 | 0x0f];
            packet.extend(version.to_be_bytes());
            packet.push(length);
            packet.resize(32, 0xff);
            packet[6 + usize::from(offset)] = 3;
            packet
        };
        for (version, handshake) in [(VERSION_1, 2), (VERSION_2, 3), (0xff00_001d, 9), (0, 9)] {
            for kind in 0..4 {
                for length in [0, 1, 2, 3, 7, 8, 20, 21, 255] {
                    let is_certain = handshake < 9 && (kind == handshake || length < 8);
                    let expected = match is_certain && length > offset {
                        true => 3,
                        false => MAIN,
                    };
                    let found = reached(&client, &packet(version, kind, length), &first, &group);
                    assert_eq!(found, expected, "{version:x} {kind} {length}");
                }
            }
        }
        // The byte is the last one, or is not there.
        let handshake = packet(VERSION_1, 2, 8);
        assert_eq!(reached(&client, &handshake[..9], &first, &group), 3);
        assert_eq!(reached(&client, &handshake[..8], &first, &group), MAIN);
    }

    #[test]
    fn the_first_packets_of_a_flow_come_to_the_same_socket() {
        let (first, group) = datagrams(Ipv4Addr::LOCALHOST.into(), 6, Some(0));
        let wanted = Selected {
            flows: vec![0, 1, 2, 3, 4, 5],
            ..selected(&[2, 3, 4, 5], Some((&[0, 1], 50, By::Random)))
        };
        group.select(&first, &wanted).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut counts = BTreeMap::new();
        for number in 0..400_u32 {
            // Initial and 0-RTT, with IDs that differ.
            let packet = |kind: u8| {
                let mut packet = vec![0xc0 | kind << 4, 0, 0, 0, 1, 8];
                packet.extend(number.wrapping_mul(MIX).to_be_bytes());
                packet.extend(number.wrapping_mul(MIX).rotate_left(16).to_be_bytes());
                packet.resize(40, 0);
                packet
            };
            let lane = reached(&client, &packet(0), &first, &group);
            for kind in [0, 1, 0] {
                assert_eq!(reached(&client, &packet(kind), &first, &group), lane);
            }
            *counts.entry(lane).or_insert(0_u32) += 1;
        }
        // Half of them to two, the other half to four.
        assert!(counts[&0].abs_diff(100) < 60 && counts[&1].abs_diff(100) < 60);
        assert!(
            (2..6).all(|lane| counts[&lane].abs_diff(50) < 40),
            "{counts:?}"
        );
    }

    #[test]
    fn the_largest_program_is_taken() {
        let (first, group) = datagrams(Ipv4Addr::LOCALHOST.into(), 128, Some(19));
        let halves: Vec<u8> = (0..128).collect();
        let (main, canary) = halves.split_at(64);
        let wanted = Selected {
            flows: (0..128).collect(),
            ..selected(main, Some((canary, 99, By::Client)))
        };
        group.select(&first, &wanted).unwrap();
    }
}
