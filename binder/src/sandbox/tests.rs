//! The tables as the kernel reads them: what they let pass, and what ends the process.

use super::*;

/// struct seccomp_data (seccomp(2)), as 32-bit words.
fn data(number: libc::c_long, arguments: [u64; 6]) -> Vec<u32> {
    let machine = match std::env::consts::ARCH {
        "x86_64" => 0xC000_003E,
        "aarch64" => 0xC000_00B7,
        other => panic!("no AUDIT_ARCH is known here for {other}"),
    };
    data_of(machine, u32::try_from(number).unwrap(), arguments)
}

fn data_of(machine: u32, number: u32, arguments: [u64; 6]) -> Vec<u32> {
    let words = arguments
        .iter()
        .flat_map(|it| [*it as u32, (*it >> 32) as u32]);
    [number, machine, 0, 0].into_iter().chain(words).collect()
}

/// Whether the program lets this pass. The other answer is always the end of the process.
fn passes(program: &BpfProgram, data: &[u32]) -> bool {
    let (mut at, mut value) = (0, 0);
    loop {
        let now = &program[at];
        at += 1;
        let condition = match now.code {
            0x20 => {
                value = data[now.k as usize / 4];
                continue;
            }
            0x54 => {
                value &= now.k;
                continue;
            }
            0x06 => match now.k {
                libc::SECCOMP_RET_ALLOW => return true,
                libc::SECCOMP_RET_KILL_PROCESS => return false,
                other => panic!("an answer {other:#x}"),
            },
            0x05 => {
                at += now.k as usize;
                continue;
            }
            0x15 => value == now.k,
            0x25 => value > now.k,
            0x35 => value >= now.k,
            other => panic!("an instruction {other:#x}"),
        };
        at += usize::from(if condition { now.jt } else { now.jf });
    }
}

#[test]
fn only_a_binder_that_makes_several_sockets_of_a_udp_port_may_let_them_share_it() {
    let share = [
        3,
        libc::SOL_SOCKET as u64,
        libc::SO_REUSEPORT as u64,
        0,
        0,
        0,
    ];
    for udp_lanes in [false, true] {
        let work = Work {
            udp: true,
            udp_lanes,
            tcp_ports: vec![80],
            ..Work::default()
        };
        let program = program(&binding_calls(&work)).unwrap().unwrap();
        let may_share = passes(&program, &data(libc::SYS_setsockopt, share));
        assert_eq!(may_share, udp_lanes);
        let attach = [
            3,
            libc::SOL_SOCKET as u64,
            libc::SO_ATTACH_REUSEPORT_CBPF as u64,
            0,
            0,
            0,
        ];
        assert!(!passes(&program, &data(libc::SYS_setsockopt, attach)));
    }
}

/// The filters of a binder of TCP ports, of UDP ports, of paths, of paths with owners, and of one that waits.
fn filters() -> [BpfProgram; 5] {
    let root = std::fs::File::open("/").unwrap();
    let directories = || vec![(std::os::fd::AsFd::as_fd(&root), What::Socket)];
    let of = |work: &Work<'_>| program(&binding_calls(work)).unwrap().unwrap();
    let tcp = Work {
        tcp_ports: vec![80],
        ..Work::default()
    };
    let udp = Work {
        udp: true,
        ..Work::default()
    };
    let paths = Work {
        directories: directories(),
        ..Work::default()
    };
    let owners = Work {
        directories: directories(),
        owners: true,
        ..Work::default()
    };
    let waiting = program(&WAITING.concat()).unwrap().unwrap();
    [of(&tcp), of(&udp), of(&paths), of(&owners), waiting]
}

/// A call, its arguments, and in which of the filters it passes.
type Row = (libc::c_long, &'static [i64], [bool; 5]);

const NOWHERE: [bool; 5] = [false; 5];
const EVERYWHERE: [bool; 5] = [true; 5];
const SERVES: [bool; 5] = [true, true, true, true, false];
const ONLY_TCP: [bool; 5] = [true, false, false, false, false];
const ONLY_UDP: [bool; 5] = [false, true, false, false, false];
const ONLY_PATHS: [bool; 5] = [false, false, true, true, false];
const PATHS_AND_WAITING: [bool; 5] = [false, false, true, true, true];

const STREAM: i64 = super::STREAM as i64;
const DATAGRAM: i64 = super::DATAGRAM as i64;
const INET: i64 = libc::AF_INET as i64;
const INET6: i64 = libc::AF_INET6 as i64;
const UNIX: i64 = libc::AF_UNIX as i64;
const HERE: i64 = libc::AT_FDCWD as i64;

#[rustfmt::skip]
const ROWS: &[Row] = &[
    (libc::SYS_write, &[2], EVERYWHERE),
    (libc::SYS_write, &[0], NOWHERE),
    (libc::SYS_write, &[3], NOWHERE),
    (libc::SYS_sendmsg, &[0, 0, libc::MSG_NOSIGNAL as i64], EVERYWHERE),
    (libc::SYS_sendmsg, &[3, 0, libc::MSG_NOSIGNAL as i64], NOWHERE),
    (libc::SYS_sendmsg, &[0, 0, (libc::MSG_NOSIGNAL | libc::MSG_FASTOPEN) as i64], NOWHERE),
    (libc::SYS_sendto, &[0], NOWHERE),
    (libc::SYS_recvmsg, &[0, 0, libc::MSG_CMSG_CLOEXEC as i64], SERVES),
    (libc::SYS_recvmsg, &[3, 0, libc::MSG_CMSG_CLOEXEC as i64], NOWHERE),
    (libc::SYS_recvfrom, &[0], PATHS_AND_WAITING),
    (libc::SYS_recvfrom, &[3], NOWHERE),
    (libc::SYS_bind, &[3], SERVES),
    (libc::SYS_capset, &[], SERVES),
    (libc::SYS_mmap, &[0, 4096, libc::PROT_READ as i64], EVERYWHERE),
    (libc::SYS_mmap, &[0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as i64], NOWHERE),
    (libc::SYS_mprotect, &[], NOWHERE),
    (libc::SYS_prctl, &[libc::PR_CAP_AMBIENT as i64, libc::PR_CAP_AMBIENT_CLEAR_ALL as i64], SERVES),
    (libc::SYS_prctl, &[libc::PR_CAP_AMBIENT as i64, libc::PR_CAP_AMBIENT_RAISE as i64], NOWHERE),
    (libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as i64, 1], ONLY_PATHS),
    (libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as i64, 1], NOWHERE),
    (libc::SYS_prctl, &[libc::PR_SET_SECUREBITS as i64, 0], NOWHERE),
    (libc::SYS_socket, &[INET, STREAM, 0], ONLY_TCP),
    (libc::SYS_socket, &[INET6, STREAM, 0], ONLY_TCP),
    (libc::SYS_socket, &[INET, STREAM, libc::IPPROTO_MPTCP as i64], NOWHERE),
    (libc::SYS_socket, &[INET, STREAM, libc::IPPROTO_TCP as i64], NOWHERE),
    (libc::SYS_socket, &[INET, DATAGRAM, 0], ONLY_UDP),
    (libc::SYS_socket, &[INET6, DATAGRAM, 0], ONLY_UDP),
    (libc::SYS_socket, &[INET, (libc::SOCK_RAW | libc::SOCK_CLOEXEC) as i64, 0], NOWHERE),
    (libc::SYS_socket, &[UNIX, STREAM, 0], ONLY_PATHS),
    (libc::SYS_socket, &[UNIX, DATAGRAM, 0], NOWHERE),
    (libc::SYS_socket, &[libc::AF_NETLINK as i64, DATAGRAM, 0], NOWHERE),
    (libc::SYS_setsockopt, &[3, libc::SOL_SOCKET as i64, libc::SO_REUSEADDR as i64], ONLY_TCP),
    (libc::SYS_setsockopt, &[3, libc::SOL_SOCKET as i64, libc::SO_REUSEPORT as i64], NOWHERE),
    (libc::SYS_setsockopt, &[3, libc::IPPROTO_IPV6 as i64, libc::IPV6_V6ONLY as i64], [true, true, false, false, false]),
    (libc::SYS_setsockopt, &[3, libc::IPPROTO_IP as i64, libc::IP_FREEBIND as i64], NOWHERE),
    (libc::SYS_connect, &[3], NOWHERE),
    (libc::SYS_listen, &[3], NOWHERE),
    (libc::SYS_accept4, &[3], NOWHERE),
    (libc::SYS_fchmod, &[3, 0o777], ONLY_PATHS),
    (libc::SYS_fchmod, &[3, 0o4755], NOWHERE),
    (libc::SYS_fchmod, &[3, 0o2755], NOWHERE),
    // The file that standard error may be, and /dev/null.
    (libc::SYS_fchmod, &[2, 0o777], NOWHERE),
    (libc::SYS_fchmod, &[1, 0o777], NOWHERE),
    (libc::SYS_fchmod, &[0, 0o777], NOWHERE),
    (libc::SYS_fchmodat, &[HERE, 0, 0o777], NOWHERE),
    (libc::SYS_fchownat, &[4, 0, 0, 0, libc::AT_EMPTY_PATH as i64], [false, false, false, true, false]),
    (libc::SYS_fchownat, &[HERE, 0, 0, 0, 0], NOWHERE),
    (libc::SYS_fchown, &[4], NOWHERE),
    (libc::SYS_openat, &[4, 0, (libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC) as i64], ONLY_PATHS),
    (libc::SYS_openat, &[4, 0, (libc::O_PATH | libc::O_CLOEXEC) as i64], NOWHERE),
    (libc::SYS_openat, &[4, 0, libc::O_RDONLY as i64], NOWHERE),
    (libc::SYS_openat, &[4, 0, (libc::O_WRONLY | libc::O_CREAT) as i64], NOWHERE),
    (libc::SYS_openat, &[4, 0, NEW_FILE.bits() as i64, 0o644], NOWHERE),
    (libc::SYS_openat, &[4, 0, NEW_FILE.bits() as i64, 0o666], NOWHERE),
    (libc::SYS_openat, &[4, 0, NEW_FILE.difference(nix::fcntl::OFlag::O_EXCL).bits() as i64, 0o644], NOWHERE),
    (libc::SYS_mkdirat, &[4, 0, 0o755], NOWHERE),
    (libc::SYS_mkdirat, &[4, 0, 0o777], NOWHERE),
    (libc::SYS_openat2, &[4], NOWHERE),
    (libc::SYS_unlinkat, &[4, 0, 0], PATHS_AND_WAITING),
    (libc::SYS_unlinkat, &[4, 0, libc::AT_REMOVEDIR as i64], NOWHERE),
    (libc::SYS_renameat2, &[], NOWHERE),
    (libc::SYS_linkat, &[], NOWHERE),
    (libc::SYS_seccomp, &[libc::SECCOMP_SET_MODE_FILTER as i64], ONLY_PATHS),
    (libc::SYS_landlock_restrict_self, &[], ONLY_PATHS),
    (libc::SYS_execve, &[], NOWHERE),
    (libc::SYS_execveat, &[], NOWHERE),
    (libc::SYS_clone, &[], NOWHERE),
    (libc::SYS_clone3, &[], NOWHERE),
    (libc::SYS_ptrace, &[], NOWHERE),
    (libc::SYS_process_vm_readv, &[], NOWHERE),
    (libc::SYS_pidfd_getfd, &[], NOWHERE),
    (libc::SYS_kill, &[], NOWHERE),
    (libc::SYS_tgkill, &[], NOWHERE),
    (libc::SYS_setresuid, &[], NOWHERE),
    (libc::SYS_setns, &[], NOWHERE),
    (libc::SYS_unshare, &[], NOWHERE),
    (libc::SYS_mount, &[], NOWHERE),
    (libc::SYS_ioctl, &[], NOWHERE),
    (libc::SYS_dup, &[], NOWHERE),
    (libc::SYS_dup3, &[], NOWHERE),
    (libc::SYS_fcntl, &[0, libc::F_DUPFD as i64], NOWHERE),
    (libc::SYS_read, &[0], NOWHERE),
    (libc::SYS_io_uring_setup, &[], NOWHERE),
    (libc::SYS_io_uring_enter, &[], NOWHERE),
    (libc::SYS_bpf, &[], NOWHERE),
    (libc::SYS_keyctl, &[], NOWHERE),
    (libc::SYS_personality, &[], NOWHERE),
    (libc::SYS_rt_sigaction, &[], NOWHERE),
];

fn arguments(given: &[i64]) -> [u64; 6] {
    std::array::from_fn(|place| given.get(place).map_or(0, |it| u64::from(*it as u32)))
}

#[test]
fn each_phase_has_its_calls_with_their_arguments_and_no_other() {
    let filters = filters();
    for (number, given, expected) in ROWS {
        let data = data(*number, arguments(given));
        let found = filters.each_ref().map(|filter| passes(filter, &data));
        assert_eq!(found, *expected, "system call {number} with {given:x?}");
    }
}

#[test]
fn an_address_that_is_not_there_yet_takes_one_more_call_and_no_other() {
    let work = Work {
        tcp_ports: vec![80],
        freebind: true,
        ..Work::default()
    };
    let filter = program(&binding_calls(&work)).unwrap().unwrap();
    for (number, given, [expected, ..]) in ROWS {
        let is_freebind =
            given.get(1..) == Some(&[libc::IPPROTO_IP as i64, libc::IP_FREEBIND as i64]);
        let found = passes(&filter, &data(*number, arguments(given)));
        assert_eq!(
            found,
            *expected || is_freebind,
            "system call {number} with {given:x?}"
        );
    }
}

#[test]
fn what_is_made_for_the_user_takes_one_more_call_and_no_socket() {
    let root = std::fs::File::open("/").unwrap();
    let new_file = [4, 0, NEW_FILE.bits() as i64, 0o644];
    let new_directory = [4, 0, 0o755];
    for (kind, call, its_own) in [
        (Kind::File, libc::SYS_openat, &new_file[..]),
        (Kind::Directory, libc::SYS_mkdirat, &new_directory[..]),
    ] {
        let work = Work {
            directories: vec![(std::os::fd::AsFd::as_fd(&root), What::ForUser(kind))],
            owners: true,
            ..Work::default()
        };
        let filter = program(&binding_calls(&work)).unwrap().unwrap();
        for (number, given, [.., of_sockets, _]) in ROWS {
            let is_of_socket = [libc::SYS_socket, libc::SYS_fchmod].contains(number);
            let expected = (*of_sockets && !is_of_socket) || (*number == call && *given == its_own);
            let found = passes(&filter, &data(*number, arguments(given)));
            assert_eq!(found, expected, "system call {number} with {given:x?}");
        }
    }
}

/// Of an argument of 32 bits the kernel does not look at the upper half either.
#[test]
fn the_upper_half_of_an_argument_hides_nothing() {
    const UPPER: u64 = 0xFFFF_FFFF_0000_0000;
    let filters = filters();
    for (number, given, expected) in ROWS {
        let data = data(*number, arguments(given).map(|it| it | UPPER));
        let found = filters.each_ref().map(|filter| passes(filter, &data));
        assert_eq!(found, *expected, "system call {number} with {given:x?}");
    }
}

#[test]
fn no_number_beyond_the_table_passes() {
    let tables = [
        ALWAYS, SERVING, TCP, UDP, SOCKETS, FILES, OWNERS, REMOVING, WAITS,
    ];
    let known: Vec<libc::c_long> = tables.concat().iter().map(|(number, _)| *number).collect();
    for filter in filters() {
        for number in (0..1024).filter(|number| !known.contains(number)) {
            assert!(!passes(&filter, &data(number, [0; 6])), "{number}");
        }
    }
}

/// The other interfaces of an x86_64 kernel: x32, which only marks the number, and the one of 32 bits.
#[test]
fn no_other_interface_of_the_kernel_passes() {
    const X32: u32 = 0x4000_0000;
    const I386: u32 = 0x4000_0003;
    let own = data(0, [0; 6])[1];
    for filter in filters() {
        for number in 0..1024 {
            for ids in [[own, number | X32], [I386, number]] {
                assert!(!passes(&filter, &data_of(ids[0], ids[1], [0; 6])));
            }
        }
    }
}
