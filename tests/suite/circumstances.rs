//! Less usual circumstances, each of which once made a difference that it must not make.

use std::ffi::CString;
use std::fmt::Display;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::channel::Channel;
use common::message::{Allow, Grant, Identity, Reply, Request, SocketFile};
use e2e::skip::{needs_program, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Server, ports, proc, programs, wait};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};

use crate::attack_worker::attacker;
use crate::channel::{self, allow, file, nobody};
use crate::launch::{RootFolder, as_ordinary_user, launch, ordinary_folder};
use crate::privileges::can_drop;

#[test]
fn a_file_that_begins_with_blanks_or_a_number_is_no_pid_file() {
    if original_differs("it overwrites whatever is there") {
        return;
    }
    for text in [
        format!("{}precious\n", "\n".repeat(40)),
        format!("12{}precious\n", " ".repeat(40)),
    ] {
        let setup = Server::setup()
            .option("--pid-file=thing")
            .program(["./missing"]);
        let path = setup.folder().join("thing");
        fs::write(&path, &text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let finished = setup.run();
        assert_eq!(
            fs::read_to_string(&path).ok(),
            Some(text),
            "{}",
            finished.log
        );
    }
}

#[test]
fn a_failed_start_leaves_no_socket_behind() {
    if original_differs("it leaves them") {
        return;
    }
    for option in ["--path=missing/socket", "--status-file=missing/status"] {
        let finished = Server::setup().path("socket").option(option).run();
        assert_eq!(finished.status.code(), Some(1));
        assert!(
            !finished.server.folder().join("socket").exists(),
            "{}",
            finished.log
        );
    }
}

#[test]
fn a_list_with_root_as_the_user_is_refused_with_paths_too() {
    if !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let (channel, theirs): (Channel<Request, Reply>, OwnedFd) = Channel::pair().unwrap();
    let mut child = Command::new(programs::binder())
        .stdin(Stdio::from(theirs))
        .stderr(Stdio::piped())
        .spawn_in_turn()
        .unwrap();
    let identity = Some(Identity {
        uid: 0,
        gid: 0,
        groups: vec![],
    });
    let grants = vec![Grant::Path(SocketFile {
        path: folder.join("s").into(),
        mode: 0o600,
        uid: None,
        gid: None,
    })];
    channel
        .send(
            &Request::Allow(Allow {
                identity,
                grants,
                escapes: vec![],
                more: false,
            }),
            &[],
        )
        .unwrap();
    drop(channel);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_socket_with_an_abstract_name_is_no_channel() {
    let new = || {
        socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap()
    };
    let (listener, client) = (new(), new());
    let address = UnixAddr::new_abstract(format!("e2e-{}", std::process::id()).as_bytes()).unwrap();
    bind(listener.as_raw_fd(), &address).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    connect(client.as_raw_fd(), &address).unwrap();
    let (accepted, _) = UnixListener::from(listener).accept().unwrap();
    assert!(Channel::<Reply, Request>::from_socket(accepted.into()).is_err());
}

#[test]
fn a_real_time_signal_that_the_launcher_ignored_is_as_usual_for_the_worker() {
    if original_differs("it resets nothing") {
        return;
    }
    let worker = programs::worker();
    let mut before = vec!["env", "--ignore-signal=40"];
    before.extend(as_ordinary_user());
    let launched = launch(
        &before,
        &["--", worker.to_str().unwrap(), "--report=report"],
    );
    let ignored = launched.wait_for_report().status.ignored;
    assert_eq!(ignored, 1 << (Signal::SIGPIPE as i32 - 1), "{ignored:x}");
}

fn without(capability: &str, option: &str) {
    let (bounding, inheritable) = (
        format!("--bounding-set=-{capability}"),
        format!("--inh-caps=-{capability}"),
    );
    let worker = programs::worker();
    let launched = launch(
        &["setpriv", &bounding, &inheritable],
        &[
            "--user=nobody",
            option,
            "--",
            worker.to_str().unwrap(),
            "--report=report",
        ],
    );
    launched.wait_for_report();
}

#[test]
fn a_high_port_needs_no_right_to_bind_low_ones() {
    if original_differs("root needs --user") || !needs_root() || !needs_program("setpriv") {
        return;
    }
    without(
        "net_bind_service",
        &format!("--port=127.0.0.1:{}", ports::tcp()),
    );
}

#[test]
fn a_path_of_root_without_setpcap_is_a_notice_and_no_failure() {
    if original_differs("root needs --user") || !needs_root() || !needs_program("setpriv") {
        return;
    }
    let folder = RootFolder::new();
    without("setpcap", &format!("--path={}", folder.join("socket")));
}

/// The flags with which a process has a descriptor open.
fn flags(pid: nix::unistd::Pid, descriptor: i32) -> OFlag {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap();
    let flags = text
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .unwrap();
    OFlag::from_bits_truncate(i32::from_str_radix(flags.trim(), 8).unwrap())
}

/// The session of a process, from /proc/PID/stat (proc(5)).
fn session(pid: nix::unistd::Pid) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(3)
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn a_terminal_of_root_can_neither_be_read_nor_typed_into_by_a_worker() {
    if original_differs("its workers are root's anyway") || !needs_root() {
        return;
    }
    let pty = openpty(None, None).unwrap();
    let terminal = fs::File::from(pty.slave);
    let folder = ordinary_folder();
    let mut child = Command::new(programs::start_server())
        .args(["--user=nobody", "--"])
        .arg(programs::worker())
        .arg(format!(
            "--report={}",
            folder.path().join("report").display()
        ))
        .current_dir(folder.path())
        .stdin(terminal.try_clone().unwrap())
        .stdout(terminal.try_clone().unwrap())
        .stderr(terminal)
        .spawn_in_turn()
        .unwrap();
    let supervisor = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let worker = wait::until(
        "the worker is there",
        || format!("{:?}", proc::children(supervisor)),
        || {
            proc::children(supervisor).into_iter().find(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim() == "worker")
            })
        },
    );
    // Typing into a terminal takes the terminal of the own session, reading takes a descriptor for reading.
    let (of_worker, of_supervisor) = (session(worker), session(supervisor));
    let link = fs::read_link(format!("/proc/{worker}/fd/0")).unwrap();
    let modes = [1, 2].map(|descriptor| flags(worker, descriptor) & OFlag::O_ACCMODE);
    nix::sys::signal::kill(supervisor, Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert_ne!(of_worker, of_supervisor);
    assert_eq!(of_worker, worker.as_raw());
    assert_eq!(link, std::path::Path::new("/dev/null"));
    assert_eq!(modes, [OFlag::O_WRONLY; 2]);
}

/// A session keyring of its own for the process that this command starts.
#[expect(
    unsafe_code,
    reason = "neither the standard library nor nix reaches keyrings"
)]
fn in_a_session_of_keys(command: &mut Command) -> &mut Command {
    let join = || {
        let nothing = std::ptr::null::<libc::c_char>();
        // SAFETY: without a name it reads no memory.
        let joined =
            unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, nothing) };
        Errno::result(joined)?;
        Ok(())
    };
    // SAFETY: it makes a system call only.
    unsafe { command.pre_exec(join) }
}

/// Keys in that session: as many as wanted, or as the quota of the user lets it have.
#[expect(
    unsafe_code,
    reason = "neither the standard library nor nix reaches keyrings"
)]
fn with_keys<'a>(command: &'a mut Command, name: &str, most: usize) -> &'a mut Command {
    const SESSION: i32 = -3;
    let names: Vec<CString> = (0..most)
        .map(|number| CString::new(format!("{name}{number}")).unwrap())
        .collect();
    let add = move || {
        let (kind, payload) = (c"user".as_ptr(), c"x".as_ptr());
        for name in &names {
            let name = name.as_ptr();
            // SAFETY: the texts end with a NUL, and the payload has the length that is given.
            let added =
                unsafe { libc::syscall(libc::SYS_add_key, kind, name, payload, 1, SESSION) };
            match Errno::result(added) {
                Err(Errno::EDQUOT) => break,
                result => result.map(drop)?,
            }
        }
        Ok(())
    };
    // SAFETY: it makes system calls only.
    unsafe { command.pre_exec(add) }
}

#[test]
fn keys_of_roots_session_are_not_the_workers() {
    if original_differs("its workers are root's anyway") || !needs_root() {
        return;
    }
    let folder = ordinary_folder();
    let secret = format!("e2e-secret-{}", std::process::id());
    let mut command = Command::new(programs::start_server());
    command
        .args(["--user=nobody", "--start-limit=1", "--"])
        .args(["sh", "-c", "cat /proc/keys > keys; exit 1"])
        .current_dir(folder.path());
    let command = with_keys(in_a_session_of_keys(&mut command), &secret, 1);
    let output = command.output_in_turn().unwrap();
    let keys = fs::read_to_string(folder.path().join("keys"));
    let keys = keys.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert!(!keys.contains(&secret), "{keys}");
}

#[test]
fn a_user_without_room_for_keys_can_be_become() {
    if original_differs("its workers are root's anyway") || !needs_root() {
        return;
    }
    // Of whom no other test runs anything.
    let mut user = Command::new("sleep");
    user.arg("1000")
        .uid(USER_WITHOUT_ROOM)
        .gid(USER_WITHOUT_ROOM);
    let user = with_keys(in_a_session_of_keys(&mut user), "e2e-", 1000);
    let mut user = user.spawn_in_turn().unwrap();
    let mut command = Command::new(programs::start_server());
    command.arg(format!("--user={USER_WITHOUT_ROOM}")).args([
        "--start-limit=1",
        "--",
        "sh",
        "-c",
        "echo it runs; exit 1",
    ]);
    let output = in_a_session_of_keys(&mut command).output_in_turn().unwrap();
    user.kill().unwrap();
    user.wait().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(stdout, "it runs\n", "{output:?}");
}

/// Of Debian, for programs that must own no file: `games`.
const USER_WITHOUT_ROOM: u32 = 5;

/// The owner of the TCP socket that is bound to a port, from /proc/net/tcp (proc(5)).
fn owner_of_port(port: u16) -> u32 {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X} ");
    let line = table.lines().find(|line| line.contains(&local)).unwrap();
    line.split_whitespace().nth(7).unwrap().parse().unwrap()
}

#[test]
fn the_socket_of_a_port_is_the_users_also_where_root_makes_a_path() {
    if original_differs("its workers are root's anyway") || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let (path, port) = (format!("--path={}", folder.join("socket")), ports::low());
    let worker = programs::worker();
    let port_option = format!("--port=127.0.0.1:{port}");
    let arguments = [
        "--user=nobody",
        &path,
        &port_option,
        "--",
        worker.to_str().unwrap(),
        "--report=report",
    ];
    let launched = launch(&[], &arguments);
    launched.wait_for_report();
    assert_eq!(owner_of_port(port), e2e::server::NOBODY);
}

#[test]
fn the_resident_binder_outlives_every_signal_to_its_group() {
    if original_differs("it has no binder") || !needs_root() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let worker = programs::worker();
    let option = format!("--path={path}");
    let launched = launch(
        &[],
        &[
            "--user=nobody",
            &option,
            "--",
            worker.to_str().unwrap(),
            "--report=report",
        ],
    );
    launched.wait_for_report();
    let binder = proc::children(launched.pid()).into_iter().find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.starts_with("start_server-bi"))
    });
    let binder = binder.unwrap();
    for signal in [
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGXCPU,
        Signal::SIGTERM,
    ] {
        nix::sys::signal::kill(binder, signal).unwrap();
    }
    nix::sys::signal::kill(launched.pid(), Signal::SIGTERM).unwrap();
    wait::until("the socket is removed", String::new, || {
        (!std::path::Path::new(&path).exists()).then_some(())
    });
    assert!(
        !launched.log().contains("the binder died"),
        "{}",
        launched.log()
    );
}

#[test]
fn as_many_paths_as_descriptors_allow_leave_nothing_behind() {
    let mut setup = Server::setup();
    for number in 0..60 {
        setup = setup.path(&format!("s{number}"));
    }
    let mut server = setup
        .limit(nix::sys::resource::Resource::RLIMIT_NOFILE, 128, 4096)
        .start();
    server.wait_for_service(1);
    server.stop();
    assert!(!server.folder().join("s0").exists() && !server.folder().join("s59").exists());
}

#[test]
fn any_backlog_that_fits_into_a_number_is_accepted() {
    let port = ports::tcp();
    let server = Server::setup()
        .option("--backlog=100000")
        .port(port)
        .start();
    server.ask(port);
}

#[test]
fn as_pid_1_it_reaps_strangers_silently_and_obeys_its_signals() {
    if original_differs("it takes strangers for old workers")
        || !needs_root()
        || !needs_program("unshare")
    {
        return;
    }
    let worker = programs::worker();
    // An orphan of another generation's making, which exits with a status of its own.
    let program = format!(
        "((exit 7) &); exec {} --graceful --report=report",
        worker.display()
    );
    let launched = launch(
        &["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"],
        &[
            "--user=nobody",
            "--interval=0",
            "--status-file=status",
            "--",
            "sh",
            "-c",
            &program,
        ],
    );
    launched.wait_for_report();
    let first = proc::children(launched.pid())[0];
    let generations = || fs::read_to_string(launched.folder().join("status")).unwrap_or_default();
    let alone = |number: &str| {
        wait::until(
            "the generation is alone, and no stranger is left",
            || format!("{:?}: {}", proc::children(first), launched.log()),
            || {
                let status = generations();
                let only = status.starts_with(number) && status.lines().count() == 1;
                (only && proc::children(first).len() == 1).then_some(())
            },
        );
    };
    alone("1:");
    nix::sys::signal::kill(first, Signal::SIGHUP).unwrap();
    alone("2:");
    nix::sys::signal::kill(first, Signal::SIGTERM).unwrap();
    wait::until(
        "it has ended",
        || launched.log(),
        || launched.log().ends_with("exiting\n").then_some(()),
    );
    let log = launched.log();
    assert!(!log.contains("status:1792"), "{log}");
    assert_eq!(log.matches(" died, status:0").count(), 2, "{log}");
}

/// What refuses a system call to a program, and so to everything that it starts: see the fixture.
pub fn refusing(call: impl Display, how: &str) -> [String; 4] {
    let attacker = attacker().to_str().expect("UTF-8").to_owned();
    [attacker, "refuse".into(), call.to_string(), how.into()]
}

/// The kernel says that they are locked, and they are not.
#[test]
fn securebits_that_did_not_hold_end_the_binder() {
    if !can_drop() {
        return;
    }
    let folder = RootFolder::new();
    let path = folder.join("socket");
    let call = format!("{}:{}", libc::SYS_prctl, libc::PR_SET_SECUREBITS);
    let [program, arguments @ ..] = refusing(call, "0");
    let mut command = Command::new(program);
    command.args(arguments).arg(programs::binder());
    let peer = channel::start(command);
    peer.send(&allow(nobody(), vec![file(&path)]));
    peer.end()
        .assert_refused("the locked securebits did not hold");
    assert!(!Path::new(&path).exists());
}

#[test]
fn an_older_kernel_without_close_range_leaks_nothing_either() {
    if !can_drop() {
        return;
    }
    let worker = programs::worker();
    let folder = RootFolder::new();
    // Before Linux 5.9, before 5.11 for close-on-exec, and an older container.
    for errno in [Errno::ENOSYS, Errno::EINVAL, Errno::EPERM] {
        let refusing = refusing(libc::SYS_close_range, &(errno as i32).to_string());
        let leaking = [
            "sh",
            "-c",
            "exec 4</dev/null 9</dev/null; exec \"$@\"",
            "sh",
        ];
        let before = leaking
            .into_iter()
            .chain(refusing.iter().map(String::as_str));
        let launched = launch(
            &before.collect::<Vec<_>>(),
            &[
                "--user=nobody",
                &format!("--port=127.0.0.1:{}", ports::low()),
                &format!("--path={}", folder.join("socket")),
                "--",
                worker.to_str().expect("UTF-8"),
                "--report=report",
            ],
        );
        let report = launched.wait_for_report();
        assert_eq!(report.descriptor_numbers(), [0, 1, 2, 3, 4], "{errno}");
        let mut processes = proc::children(launched.pid());
        processes.push(launched.pid());
        for pid in processes {
            let open = proc::descriptors(pid);
            let leaked = open
                .iter()
                .filter(|(number, target)| **number > 2 && *target == "/dev/null");
            assert_eq!(leaked.count(), 0, "{errno}: {pid} has {open:?}");
        }
    }
}

#[test]
fn a_filter_around_start_server_that_kills_the_binder_is_named() {
    if !can_drop() {
        return;
    }
    let refusing = refusing(libc::SYS_landlock_create_ruleset, "kill");
    let mut launched = launch(
        &refusing.each_ref().map(String::as_str),
        &[
            "--user=nobody",
            &format!("--port=127.0.0.1:{}", ports::low()),
            "--",
            "true",
        ],
    );
    assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
    let lines = "start_server: cannot talk to the binder: it exited too early, signal: 31 (SIGSYS)\n\
                 hint: a seccomp filter of the unit or container forbids a system call that the binder needs: in a unit, add to \
                 SystemCallFilter= \
                 seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self\n";
    assert!(launched.log().ends_with(lines), "{}", launched.log());
}

#[test]
fn a_path_of_root_with_an_owner_but_without_chown_is_refused_with_the_remedy() {
    if !can_drop() || !needs_program("setpriv") {
        return;
    }
    let folder = RootFolder::new();
    let option = format!("--path={},group=65534", folder.join("socket"));
    let mut launched = launch(
        &["setpriv", "--bounding-set=-chown"],
        &["--user=nobody", &option, "--", "true"],
    );
    assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
    let lines = format!(
        "start_server: cannot listen on {option}: Operation not permitted\n\
         hint: root lacks CAP_CHOWN here: give the unit or container that capability\n"
    );
    assert!(launched.log().ends_with(&lines), "{}", launched.log());
}

#[test]
fn a_file_where_nothing_can_be_written_at_all_has_its_own_hint() {
    if !can_drop() || !needs_program("unshare") {
        return;
    }
    // As below ProtectSystem=strict.
    let script = "mount -t tmpfs -o ro none /mnt && exec \"$@\"";
    for option in ["pid-file", "status-file", "log-file"] {
        let mut launched = launch(
            &["unshare", "--mount", "sh", "-c", script, "sh"],
            &[
                "--user=nobody",
                &format!("--{option}=/mnt/file"),
                "--",
                "true",
            ],
        );
        assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
        let lines = ": Read-only file system\n\
                     hint: in a unit with ProtectSystem=strict, name its directory in ReadWritePaths=\n";
        assert!(launched.log().ends_with(lines), "{}", launched.log());
    }
}
