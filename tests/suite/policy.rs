//! Low ports for ordinary users: the binder has file capabilities, and a policy file says who may have what.
//!
//! The file has one place, below /etc. So everything here runs in a mount namespace of its own, with another /etc.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::message::{Ask, Grant, Refusal, Reply, Request, Transport};
use e2e::folder::Folder;
use e2e::server::NOBODY;
use e2e::skip::{missing, needs_program, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Report, ports, proc, programs, wait};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, mkfifo};

use crate::attack_worker::{LOOKS, assert_cannot, reach};
use crate::channel::{self, LOOPBACK, Peer, allow, ask, file, nobody, only_socket, tcp};
use crate::launch::{Launched, RootFolder, install, launch_program, make_directory};

const FILE: &str = "/etc/start_server/binder.conf";

/// Everybody asks as `nobody`, with this primary group, `web`, and 4444, `dns`, as a supplementary one.
const WEB: u32 = 4343;

/// Another user, `alice`.
const ALICE: u32 = 4242;

fn can_grant() -> bool {
    !original_differs("it has no policy")
        && needs_root()
        && needs_program("setcap")
        && needs_program("setpriv")
        && needs_program("unshare")
        && low_ports_are_reserved()
}

fn low_ports_are_reserved() -> bool {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    first.is_ok_and(|it| it.trim() == "1024") || missing("needs ports below 1024 to be reserved")
}

/// Both programs, the binder with its capability.
fn installed() -> &'static Path {
    static INSTALLED: OnceLock<Folder> = OnceLock::new();
    let folder = INSTALLED.get_or_init(|| {
        let folder = root_folder();
        install(&programs::start_server(), folder.path(), "start_server");
        let binder = install(&programs::binder(), folder.path(), "start_server-binder");
        set_capability(&binder);
        folder
    });
    folder.path()
}

/// The right to bind low ports, for whoever executes the program.
pub fn set_capability(program: &Path) {
    let set = Command::new("setcap")
        .arg("cap_net_bind_service=ep")
        .arg(program)
        .status_in_turn();
    assert!(set.expect("cannot run setcap").success());
}

fn root_folder() -> Folder {
    Folder::new(Uid::from_raw(0), Gid::from_raw(0))
}

/// Another /etc.
pub struct Etc(Folder);

impl Etc {
    /// With users and groups, and without any policy.
    pub fn bare() -> Etc {
        let etc = Etc(root_folder());
        let users = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nalice:x:4242:4242::/:/bin/sh\n";
        let groups =
            "root:x:0:\nnogroup:x:65534:\nalice:x:4242:\nweb:x:4343:\ndns:x:4444:\nstaff:x:4545:\n";
        let names = "passwd: files\ngroup: files\n";
        for (name, text) in [
            ("passwd", users),
            ("group", groups),
            ("nsswitch.conf", names),
        ] {
            fs::write(etc.join(name), text).expect("cannot write");
        }
        // Where the libraries are.
        drop(fs::copy("/etc/ld.so.cache", etc.join("ld.so.cache")));
        etc
    }

    /// With this policy.
    fn with(policy: &str) -> Etc {
        let etc = Etc::bare();
        make_directory(&etc.directory(), 0o755, 0);
        fs::write(etc.policy(), policy).expect("cannot write the policy");
        fs::set_permissions(etc.policy(), fs::Permissions::from_mode(0o644)).expect("chmod");
        etc
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn directory(&self) -> PathBuf {
        self.join("start_server")
    }

    fn policy(&self) -> PathBuf {
        self.directory().join("binder.conf")
    }

    /// What is to be put before a command so that it runs there, as `nobody`.
    fn before(&self) -> Vec<String> {
        let mut words = self.before_as_root();
        words.extend(
            [
                "setpriv",
                "--reuid=65534",
                "--regid=4343",
                "--groups=65534,4444",
            ]
            .map(str::to_owned),
        );
        words
    }

    /// What is to be put before a command so that it runs there.
    pub fn before_as_root(&self) -> Vec<String> {
        let etc = self.0.path().to_str().expect("UTF-8");
        [
            "unshare",
            "--mount",
            "--propagation=private",
            "sh",
            "-c",
            "mount --bind \"$0\" /etc && exec \"$@\"",
            etc,
        ]
        .map(str::to_owned)
        .into()
    }

    /// A fixture worker of the asker with these options.
    fn launch(&self, options: &[&str]) -> Launched {
        self.launch_behind(&[], options)
    }

    fn launch_behind(&self, behind: &[&str], options: &[&str]) -> Launched {
        let before = self.before();
        let before: Vec<&str> = before
            .iter()
            .map(String::as_str)
            .chain(behind.iter().copied())
            .collect();
        let worker = programs::worker();
        let program = ["--", worker.to_str().expect("UTF-8"), "--report=report"];
        let arguments = [options, &program].concat();
        launch_program(&before, &installed().join("start_server"), &arguments)
    }

    /// The binder alone, with the test as the asker's start_server.
    fn binder(&self, environment: &[(&str, &str)]) -> Peer {
        let before = self.before();
        let mut command = Command::new(&before[0]);
        command.args(&before[1..]);
        command.arg("env").arg("-i");
        command.args(
            environment
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        command.arg(installed().join("start_server-binder"));
        channel::start(command)
    }
}

fn option(transport: Transport, port: u16) -> String {
    match transport {
        Transport::Tcp => format!("--port=127.0.0.1:{port}"),
        Transport::Udp => format!("--port=127.0.0.1:u{port}"),
    }
}

#[track_caller]
fn assert_is_granted(etc: &Etc, transport: Transport, port: u16) -> Report {
    let launched = etc.launch(&[&option(transport, port)]);
    let report = launched.wait_for_report();
    let socket = report.socket(&format!("127.0.0.1:{port}"));
    assert_eq!(socket.address, format!("127.0.0.1:{port}"));
    assert_has_nothing_more(&report);
    report
}

/// The worker is an ordinary process of its user.
#[track_caller]
fn assert_has_nothing_more(report: &Report) {
    let status = &report.status;
    assert_eq!(status.uids, [NOBODY; 4]);
    assert_eq!(status.gids, [WEB; 4]);
    let [inheritable, permitted, effective, _, ambient] = status.capabilities();
    assert_eq!([inheritable, permitted, effective, ambient], [0; 4]);
    assert_eq!((status.seccomp, status.no_new_privs), (0, false));
}

/// Refused with this cause, by the message that an operator gets.
#[track_caller]
fn assert_is_refused(etc: &Etc, transport: Transport, port: u16, cause: &str) {
    let option = option(transport, port);
    let mut launched = etc.launch(&[&option]);
    assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
    let kind = match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    let hint = match cause.contains("grants nothing: line ") {
        true => {
            "a valid line is, for example, `user alice tcp 80,443` or `group dns udp 53`".to_owned()
        }
        false => format!(
            "root can allow it with a line such as `user 65534 {kind} {port}` in {FILE}, \
             which must belong to root, be readable by everybody and writable by root alone"
        ),
    };
    let expected = format!("start_server: cannot listen on {option}: {cause}\nhint: {hint}\n");
    let log = launched.log();
    assert!(log.ends_with(&expected), "{log}\ninstead of\n{expected}");
    assert!(!log.contains("starting new worker"), "{log}");
}

fn not_allowed(transport: &str, port: u16) -> String {
    format!("{FILE} does not allow {transport} port {port} to uid 65534 or its groups")
}

fn nothing(cause: &str) -> String {
    format!("{FILE} grants nothing: {cause}")
}

#[test]
fn a_low_port_is_granted_by_user_and_by_any_group_of_the_asker() {
    if !can_grant() {
        return;
    }
    for who in [
        "user nobody",
        "user 65534",
        "group web",
        "group dns",
        "group nogroup",
        "group 4343",
        "group 4444",
    ] {
        let port = ports::low();
        let text = format!("# who\n\nuser alice tcp 80\r\n  {who}\ttcp 1,{port},1023 # why\n");
        assert_is_granted(&Etc::with(&text), Transport::Tcp, port);
    }
}

#[test]
fn a_low_port_is_granted_within_a_range_and_by_transport() {
    if !can_grant() {
        return;
    }
    let port = ports::low();
    let (before, after) = (port - 1, port + 1);
    for (range, granted) in [
        (format!("{port}-{port}"), true),
        (format!("{before}-{after}"), true),
        ("1-65535".to_owned(), true),
        (format!("1-{before}"), false),
        (format!("{after}-65535"), false),
        (format!("{before},{after}"), false),
    ] {
        let both = format!("user nobody tcp {range}\ngroup dns udp {range}\n");
        let etc = Etc::with(&both);
        match granted {
            true => {
                assert_is_granted(&etc, Transport::Tcp, port);
                assert_is_granted(&etc, Transport::Udp, port);
            }
            false => {
                assert_is_refused(&etc, Transport::Tcp, port, &not_allowed("tcp", port));
                assert_is_refused(&etc, Transport::Udp, port, &not_allowed("udp", port));
            }
        }
    }
    let etc = Etc::with(&format!("user nobody udp {port}\n"));
    assert_is_granted(&etc, Transport::Udp, port);
    assert_is_refused(&etc, Transport::Tcp, port, &not_allowed("tcp", port));
}

#[test]
fn what_is_granted_to_others_is_not_granted() {
    if !can_grant() {
        return;
    }
    let port = ports::low();
    for who in [
        "user alice",
        "user root",
        "user 0",
        "user 4294967295",
        "user nobody-has-this-name",
        // A name of the other kind.
        "user web",
        "user 4343",
        "group nobody",
        "group staff",
        "group root",
        "group 0",
    ] {
        let etc = Etc::with(&format!("{who} tcp {port}\n"));
        let unknown = ["user nobody-has-this-name", "user web", "group nobody"];
        let mut cause = not_allowed("tcp", port);
        if unknown.contains(&who) {
            cause.push_str(&format!("; its line 1 is for {who}, who does not exist"));
        }
        assert_is_refused(&etc, Transport::Tcp, port, &cause);
    }
}

#[test]
fn one_port_that_is_not_granted_takes_the_others_with_it() {
    if !can_grant() {
        return;
    }
    let (granted, other) = (ports::low(), ports::low());
    let etc = Etc::with(&format!("user nobody tcp {granted}\n"));
    let options = [
        option(Transport::Tcp, granted),
        option(Transport::Tcp, other),
    ];
    let mut launched = etc.launch(&[&options[0], &options[1]]);
    assert_eq!(launched.wait_exit(), 1);
    let log = launched.log();
    assert!(log.contains(&not_allowed("tcp", other)), "{log}");
    channel::assert_is_free(granted);
}

/// What is wrong with a policy, which would allow the port otherwise, and the cause that is told.
type Spoiled = (&'static str, fn(&Etc), &'static str);

const SPOILED: &[Spoiled] = &[
    (
        "no directory",
        |etc| fs::remove_dir_all(etc.directory()).expect("cannot remove it"),
        "/etc/start_server cannot be opened: No such file or directory",
    ),
    (
        "no file",
        |etc| fs::remove_file(etc.policy()).expect("cannot remove it"),
        "it does not exist",
    ),
    (
        "a file that the asker cannot read",
        |etc| set_mode(&etc.policy(), 0o600),
        "it cannot be opened: Permission denied",
    ),
    (
        "a directory that the asker cannot search",
        |etc| set_mode(&etc.directory(), 0o700),
        "it cannot be opened: Permission denied",
    ),
    (
        "a file of the asker",
        |etc| give(&etc.policy(), NOBODY),
        "it belongs to an ordinary user",
    ),
    (
        "a file of somebody else",
        |etc| give(&etc.policy(), ALICE),
        "it belongs to an ordinary user",
    ),
    (
        "a file that a group can write",
        |etc| set_mode(&etc.policy(), 0o664),
        "it is writable by users other than its owner",
    ),
    (
        "a file that everybody can write",
        |etc| set_mode(&etc.policy(), 0o646),
        "it is writable by users other than its owner",
    ),
    (
        "a directory of somebody else",
        |etc| give(&etc.directory(), ALICE),
        "/etc/start_server belongs to an ordinary user",
    ),
    (
        "a directory that a group can write",
        |etc| set_mode(&etc.directory(), 0o775),
        "/etc/start_server is writable by users other than its owner",
    ),
    (
        "a directory like /tmp",
        |etc| set_mode(&etc.directory(), 0o1777),
        "/etc/start_server is writable by users other than its owner",
    ),
    (
        "a file that is a link, even of root",
        |etc| {
            fs::rename(etc.policy(), etc.join("real")).expect("cannot move it");
            symlink("../real", etc.policy()).expect("cannot make a link");
        },
        "it is a symbolic link",
    ),
    (
        "a directory that is a link of an ordinary user",
        |etc| {
            fs::rename(etc.directory(), etc.join("real")).expect("cannot move it");
            symlink("real", etc.directory()).expect("cannot make a link");
            lchown(etc.directory(), Some(ALICE), None).expect("cannot give the link away");
        },
        "/etc/start_server is a symbolic link of an ordinary user",
    ),
    (
        "a fifo, for which nobody waits",
        |etc| {
            fs::remove_file(etc.policy()).expect("cannot remove it");
            mkfifo(&etc.policy(), Mode::from_bits_truncate(0o644)).expect("cannot make a fifo");
        },
        "it is not a regular file",
    ),
    (
        "a directory in the place of the file",
        |etc| {
            fs::remove_file(etc.policy()).expect("cannot remove it");
            make_directory(&etc.policy(), 0o755, 0);
        },
        "it is not a regular file",
    ),
    (
        "too large a file",
        |etc| append(&etc.policy(), &"#\n".repeat(32 * 1024)),
        "it is larger than 65536 bytes",
    ),
    (
        "a file that is no text",
        |etc| {
            let old = fs::read(etc.policy()).expect("cannot read the policy");
            fs::write(etc.policy(), [&old[..], b"# \xe9\n"].concat()).expect("cannot write it");
        },
        "it is not valid UTF-8",
    ),
    (
        "a malformed line",
        |etc| append(&etc.policy(), "user alice tcp 80 443\n"),
        "line 3 is not of the form `user NAME tcp 80,443`",
    ),
    (
        "an unknown word",
        |etc| append(&etc.policy(), "users alice tcp 80\n"),
        "line 3 does not begin with `user` or `group`",
    ),
    (
        "an unknown transport",
        |etc| append(&etc.policy(), "user alice sctp 80\n"),
        "line 3 has neither `tcp` nor `udp` after the name",
    ),
    (
        "a port that is none",
        |etc| append(&etc.policy(), "user alice tcp 80,65536\n"),
        "line 3 has a list of ports that is not of the form `53,8000-8010`",
    ),
];

#[test]
fn a_policy_that_cannot_be_trusted_or_understood_grants_nothing_and_says_why() {
    if !can_grant() {
        return;
    }
    let port = ports::low();
    for (what, spoil, cause) in SPOILED {
        let etc = Etc::with(&format!("# A policy.\nuser nobody tcp {port}\n"));
        spoil(&etc);
        let at = std::panic::AssertUnwindSafe(|| {
            assert_is_refused(&etc, Transport::Tcp, port, &nothing(cause));
        });
        assert!(std::panic::catch_unwind(at).is_ok(), "with {what}");
        // Nothing is lost for those who need no policy.
        if *what == "no directory" {
            assert_is_granted(&etc, Transport::Tcp, ports::tcp());
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("cannot set the mode");
}

fn give(path: &Path, uid: u32) {
    chown(path, Some(uid), None).expect("cannot give it away");
}

fn append(path: &Path, text: &str) {
    let old = fs::read_to_string(path).expect("cannot read the policy");
    fs::write(path, old + text).expect("cannot write the policy");
}

#[test]
fn a_directory_that_is_a_link_of_root_is_followed() {
    if !can_grant() {
        return;
    }
    let port = ports::low();
    let etc = Etc::with(&format!("user nobody tcp {port}\n"));
    fs::rename(etc.directory(), etc.join("real")).expect("cannot move it");
    symlink("real", etc.directory()).expect("cannot make a link");
    assert_is_granted(&etc, Transport::Tcp, port);
}

#[test]
fn high_ports_need_no_line() {
    if !can_grant() {
        return;
    }
    for etc in [Etc::bare(), Etc::with("malformed\n"), Etc::with("")] {
        assert_is_granted(&etc, Transport::Tcp, ports::tcp());
        assert_is_granted(&etc, Transport::Udp, ports::udp());
    }
}

#[test]
fn a_socket_at_a_path_is_made_by_the_user_itself() {
    if !can_grant() {
        return;
    }
    let port = ports::low();
    let etc = Etc::with(&format!("user nobody tcp {port}\n"));
    let launched = etc.launch(&[&option(Transport::Tcp, port), "--path=socket"]);
    launched.wait_for_report();
    let socket = fs::metadata(launched.folder().join("socket")).expect("no socket");
    assert_eq!((socket.uid(), socket.gid()), (NOBODY, WEB));
    // Only the worker: no binder waits to remove it.
    assert_eq!(proc::children(launched.pid()).len(), 1);
    let mut elsewhere = etc.launch(&["--path=/etc/socket"]);
    assert_eq!(elsewhere.wait_exit(), 1);
    let log = elsewhere.log();
    assert!(
        log.contains("cannot listen on --path=/etc/socket: Permission denied"),
        "{log}"
    );
}

#[test]
fn root_needs_no_line_with_the_same_binder() {
    if !can_grant() {
        return;
    }
    let port = ports::low();
    let before = Etc::bare();
    let before = before.before_as_root();
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    let worker = programs::worker();
    let worker = worker.to_str().expect("UTF-8");
    let option = option(Transport::Tcp, port);
    let arguments = ["--user=nobody", &option, "--", worker, "--report=report"];
    let launched = launch_program(&before, &installed().join("start_server"), &arguments);
    assert_eq!(launched.wait_for_report().status.uids, [NOBODY; 4]);
}

#[test]
fn a_launcher_that_can_gain_nothing_gets_nothing_and_is_told_the_remedy() {
    if !can_grant() {
        return;
    }
    let port = ports::low();
    let etc = Etc::with(&format!("user nobody tcp {port}\n"));
    let option = option(Transport::Tcp, port);
    let mut launched = etc.launch_behind(&["setpriv", "--no-new-privs"], &[&option]);
    assert_eq!(launched.wait_exit(), 1);
    let log = launched.log();
    assert!(log.contains("Permission denied\nhint: "), "{log}");
    for remedy in ["setcap cap_net_bind_service=ep", FILE, "no_new_privs"] {
        assert!(log.contains(remedy), "{remedy:?} is not in {log}");
    }
}

/// There the user is root by number, with every capability: over the namespace, and not over the ports of the machine.
#[test]
fn a_user_namespace_of_the_asker_gains_nothing() {
    if !can_grant() {
        return;
    }
    let port = ports::low();
    let etc = Etc::with("");
    let own = ["unshare", "--user", "--map-root-user"];
    let before = etc.before();
    let can = Command::new(&before[0])
        .args(&before[1..])
        .args(own)
        .arg("true")
        .status_in_turn();
    if !can.expect("cannot run unshare").success() {
        missing("needs user namespaces");
        return;
    }
    let option = option(Transport::Tcp, port);
    for options in [&[&*option][..], &[&option, "--user=nobody"]] {
        let mut launched = etc.launch_behind(&own, options);
        assert_ne!(launched.wait_exit(), 0, "{}", launched.log());
    }
    channel::assert_is_free(port);
}

#[test]
fn a_hostile_environment_does_not_reach_the_binder() {
    if !can_grant() {
        return;
    }
    let port = ports::low();
    let etc = Etc::with(&format!("user nobody tcp {port}\n"));
    let hostile = [
        // Without capabilities the loader would speak of both.
        ("LD_PRELOAD", "/no/such/library.so"),
        ("LD_DEBUG", "all"),
        ("LD_LIBRARY_PATH", "/no/such/folder"),
        ("GLIBC_TUNABLES", "glibc.malloc.check=3"),
        ("RUST_BACKTRACE", "full"),
        ("RUST_MIN_STACK", "1"),
        ("MALLOC_ARENA_MAX", "x"),
    ];
    let peer = etc.binder(&hostile);
    peer.send(&allow(None, vec![tcp(port)]));
    peer.send(&Request::Bind(vec![ask(0, port)]));
    only_socket(&peer);
    peer.end().assert_quiet();
}

#[test]
fn an_asker_who_speaks_to_the_binder_itself_gets_no_more() {
    if !can_grant() {
        return;
    }
    let (granted, other, high) = (ports::low(), ports::low(), ports::tcp());
    let etc = Etc::with(&format!("user nobody tcp {granted}\n"));
    // To become somebody, and paths. It does not even look at what is there.
    let folder = RootFolder::new();
    let path = folder.path().join("socket");
    let server = UnixListener::bind(&path).expect("cannot bind");
    server.set_nonblocking(true).expect("cannot change it");
    set_mode(&path, 0o777);
    for (identity, grants) in [
        (nobody(), vec![tcp(granted)]),
        (None, vec![file(&path)]),
        (nobody(), vec![file(&path)]),
    ] {
        let peer = etc.binder(&[]);
        peer.send(&allow(identity, grants));
        peer.end()
            .assert_refused("an ordinary user asked for what only root can do");
        let connected = server.accept().map(drop).map_err(|error| error.kind());
        assert_eq!(connected, Err(ErrorKind::WouldBlock));
    }
    // A port without a line: with any address, and beside others that have one.
    let any = Grant::Port {
        transport: Transport::Tcp,
        port: other,
        ip: None,
        freebind: false,
        lanes: 1,
    };
    for grants in [
        vec![tcp(other)],
        vec![any],
        vec![tcp(other), tcp(granted), tcp(high)],
    ] {
        let peer = etc.binder(&[]);
        peer.send(&allow(None, grants));
        peer.send(&Request::Bind(vec![ask(0, other)]));
        let refused = Reply::Refused {
            ask: 0,
            refusal: Refusal::NotAllowed,
        };
        assert_eq!(peer.answer().0, refused);
        peer.end().assert_quiet();
    }
    // Another port with the grant of one that has a line.
    for with in [granted, high] {
        let peer = etc.binder(&[]);
        peer.send(&allow(None, vec![tcp(with)]));
        peer.send(&Request::Bind(vec![ask(0, other)]));
        peer.end()
            .assert_refused("the ask is not what grant 0 allows");
    }
    channel::assert_is_free(other);
}

#[test]
fn the_binder_of_an_asker_keeps_only_what_it_needs_and_cannot_be_looked_into() {
    if !can_grant() {
        return;
    }
    let (low, high) = (ports::low(), ports::tcp());
    let etc = Etc::with(&format!("user nobody tcp {low}\n"));
    for (grants, kept) in [(vec![tcp(low), tcp(high)], 1 << 10), (vec![tcp(high)], 0)] {
        let count = grants.len();
        let peer = etc.binder(&[]);
        peer.send(&allow(None, grants));
        let pid = peer.pid();
        let status = wait::until(
            "it is confined",
            || format!("{:?}", proc::status(pid)),
            || proc::status(pid).filter(|it| it.seccomp_filters == 1),
        );
        assert_eq!(status.uids, [NOBODY; 4]);
        let [inheritable, permitted, effective, _, ambient] = status.capabilities();
        assert_eq!([inheritable, ambient], [0, 0]);
        assert_eq!([permitted, effective], [kept, kept]);
        let looks = reach(pid);
        // It is the asker's process: it may be stopped, but not looked into.
        for what in LOOKS {
            assert_cannot(&looks, what);
        }
        let port = if count == 2 { low } else { high };
        peer.send(&Request::Bind(vec![ask(0, port)]));
        only_socket(&peer);
        if count == 2 {
            let other = Ask::Port {
                grant: 1,
                address: common::message::Address {
                    ip: LOOPBACK,
                    port: high,
                    scope: 0,
                },
            };
            peer.send(&Request::Bind(vec![other]));
            only_socket(&peer);
        }
        peer.end().assert_quiet();
    }
}

#[test]
fn a_binder_with_a_setuid_or_setgid_bit_ends() {
    if !can_grant() {
        return;
    }
    let etc = Etc::with("");
    for mode in [0o4755, 0o2755] {
        let folder = root_folder();
        let binder = install(&programs::binder(), folder.path(), "start_server-binder");
        set_mode(&binder, mode);
        let before = etc.before();
        let mut command = Command::new(&before[0]);
        command.args(&before[1..]).arg(binder);
        let peer = channel::start(command);
        peer.end().assert_refused(
            "this program does not run with a setuid or setgid bit: remove it with chmod u-s,g-s",
        );
    }
}
