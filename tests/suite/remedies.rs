//! Mistakes that everybody makes once: each message names the remedy.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;

use e2e::ports;
use e2e::skip::{needs_ipv6, needs_program, needs_root};
use e2e::{Server, Setup};

use crate::bad_input::{FAILED, assert_refused, assert_usage, is_ours, make_file};
use crate::circumstances::refusing;
use crate::launch::{as_ordinary_user, launch};
use crate::privileges::can_drop;

#[test]
fn the_spellings_of_other_programs_are_answered_with_ours() {
    if !is_ours() {
        return;
    }
    let cause = "a port is a number from 0 to 65535";
    for (given, cause, hint) in [
        (
            "/run/x.sock",
            cause,
            "a unix socket is written as --path=/run/x.sock",
        ),
        (
            "unix:/run/x.sock",
            cause,
            "a unix socket is written as --path=/run/x.sock",
        ),
        ("80/tcp", cause, "it is written as --port=80"),
        (
            "80-90",
            cause,
            "a range is written as a list: --port=80,...,90",
        ),
        (
            "localhost:http",
            cause,
            "names of services are not looked up: `getent services http` shows the number",
        ),
        (
            "tcp://127.0.0.1:80",
            "tcp://127.0.0.1 is not an IPv6 address",
            "it is written as --port=127.0.0.1:80",
        ),
    ] {
        let line = format!("start_server: cannot use --port={given}: {cause}");
        let setup = Server::setup().option(format!("--port={given}"));
        assert_usage(setup, &[&line, &format!("hint: {hint}")]);
    }
    let setup = Server::setup().option("--path=unix:/run/x.sock");
    let lines = [
        "start_server: cannot listen on --path=unix:/run/x.sock: its directory does not exist",
        "hint: a unix socket is written as --path=/run/x.sock",
    ];
    assert_refused(setup, FAILED, &lines);
}

#[test]
fn a_user_with_a_group_in_one_word_is_told_how_both_are_written() {
    if is_ours() && needs_root() {
        let lines = [
            "start_server: cannot use --user=nobody:nogroup: there is no such user",
            "hint: the group has an option of its own: --user=nobody --group=nogroup",
        ];
        let setup = Server::setup().as_root().option("--user=nobody:nogroup");
        assert_refused(setup, FAILED, &lines);
    }
}

#[test]
fn a_program_with_blanks_is_quoted_and_told_to_be_several_words() {
    if !is_ours() {
        return;
    }
    for program in ["./server -v", "server -v"] {
        let line = format!("start_server: cannot execute '{program}': No such file or directory");
        let hint = format!(
            "hint: the program and its arguments are separate words, but '{program}' was given as one"
        );
        // The PATH of whoever runs the tests may have directories that are closed to the user.
        let setup = Server::setup()
            .program([program])
            .env("PATH", "/usr/bin:/bin");
        assert_refused(setup, FAILED, &[&line, &hint]);
    }
    // If a program of that name exists, the blank is not the problem.
    let setup = Server::setup().program(["./my server"]);
    make_file(&setup, "my server", "#!/bin/sh\n", 0o644);
    let lines = [
        "start_server: cannot execute './my server': Permission denied",
        "hint: it is not executable for this user: see chmod(1)",
    ];
    assert_refused(setup, FAILED, &lines);
}

#[test]
fn a_program_that_is_being_written_has_its_remedy() {
    if !is_ours() {
        return;
    }
    let setup = Server::setup().program(["./program"]);
    make_file(&setup, "program", "#!/bin/sh\n", 0o755);
    let open = OpenOptions::new()
        .append(true)
        .open(setup.folder().join("program"));
    let open = open.expect("cannot open the program");
    let lines = [
        "start_server: cannot execute ./program: Text file busy",
        "hint: a process has it open for writing: write a new version under another name, then rename it to this one",
    ];
    assert_refused(setup, FAILED, &lines);
    drop(open);
}

#[test]
fn a_script_that_path_finds_and_whose_interpreter_is_missing_is_told_from_one_without_permission() {
    if !is_ours() {
        return;
    }
    for (text, mode, cause, hint) in [
        (
            "#!/missing/interpreter\n",
            0o755,
            "No such file or directory",
            "the interpreter in its first line does not exist: /missing/interpreter",
        ),
        (
            "#!/bin/sh\n",
            0o644,
            "Permission denied",
            "FOLDER/our-script is not executable for this user",
        ),
    ] {
        let setup = Server::setup().program(["our-script"]);
        make_file(&setup, "our-script", text, mode);
        let folder = setup.folder().display().to_string();
        let line = format!("start_server: cannot execute our-script: {cause}");
        let hint = format!("hint: {}", hint.replace("FOLDER", &folder));
        let setup = setup.env("PATH", format!("{folder}:/usr/bin:/bin"));
        assert_refused(setup, FAILED, &[&line, &hint]);
    }
}

#[test]
fn a_program_on_a_file_system_without_programs_is_told_from_one_without_permission() {
    if !is_ours() || !needs_root() || !needs_program("unshare") {
        return;
    }
    let script =
        "mount -t tmpfs -o noexec,mode=755 none /mnt && cp /bin/true /mnt/program && exec \"$@\"";
    for program in ["/mnt/program", "program"] {
        let mut launched = launch(
            &[
                "unshare",
                "--mount",
                "sh",
                "-c",
                script,
                "sh",
                "env",
                "PATH=/mnt",
            ],
            &["--user=nobody", "--", program],
        );
        assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
        let lines = format!(
            "start_server: cannot execute {program}: Permission denied\n\
             hint: its file system is mounted with noexec: see findmnt(8)\n"
        );
        assert!(launched.log().ends_with(&lines), "{}", launched.log());
    }
}

#[test]
fn names_with_blanks_are_quoted_as_in_a_shell() {
    if !is_ours() {
        return;
    }
    for (option, shown, cause) in [
        (
            "--port=80 90",
            "--port='80 90'",
            "a port is a number from 0 to 65535",
        ),
        (
            "--signal-on-hup=no signal",
            "--signal-on-hup='no signal'",
            "the signal is a name such as TERM, or a number from 1 to 31",
        ),
    ] {
        let line = format!("start_server: cannot use {shown}: {cause}");
        assert_usage(Server::setup().option(option), &[&line]);
    }
    let mut missing = vec![
        (
            "--pid-file=no such/pid",
            "use --pid-file='no such/pid': its directory does not exist",
        ),
        (
            "--log-file=no such/log",
            "open --log-file='no such/log': its directory does not exist",
        ),
        (
            "--status-file=no such/status",
            "write the status file 'no such/status.json': its directory does not exist",
        ),
    ];
    let hint = "hint: create it for the server's user: `install -d -o USER 'no such'`";
    for (option, cause) in missing.drain(..) {
        let line = format!("start_server: cannot {cause}");
        assert_refused(Server::setup().option(option), FAILED, &[&line, hint]);
    }
    let line = "start_server: cannot listen on --path='no such/a b': its directory does not exist";
    let setup = Server::setup().option("--path=no such/a b");
    assert_refused(setup, FAILED, &[line, hint]);
    if needs_root() {
        let line = "start_server: cannot use --user='no body': there is no such user";
        let setup = Server::setup().as_root().option("--user=no body");
        assert_refused(setup, FAILED, &[line]);
    }
}

#[test]
fn a_directory_that_cannot_be_entered_says_what_closes_it() {
    if !is_ours() {
        return;
    }
    let setup = || Server::setup().option("--dir=my dir/inside");
    let cannot =
        |cause: &str| format!("start_server: cannot change to --dir='my dir/inside': {cause}");

    let closed = setup();
    let directory = closed.folder().join("my dir");
    fs::create_dir(&directory).expect("cannot make a directory");
    let mode = Permissions::from_mode(0o000);
    fs::set_permissions(&directory, mode).expect("cannot set the mode");
    let lines = [
        &*cannot("Permission denied"),
        "hint: the directory 'my dir' is closed to this user",
    ];
    assert_refused(closed, FAILED, &lines);

    let file = setup();
    make_file(&file, "my dir", "", 0o644);
    let lines = [
        &*cannot("Not a directory"),
        "hint: it, or a part of its path, is a file",
    ];
    assert_refused(file, FAILED, &lines);
}

#[test]
fn a_launcher_whose_directory_was_removed_is_told_so() {
    if !is_ours() {
        return;
    }
    let run = |setup: Setup| {
        let gone = setup.folder().join("gone");
        fs::create_dir(&gone).expect("cannot make a directory");
        setup.enter_and_remove(&gone).run()
    };
    let user = Server::setup;
    let root = || Server::setup().as_root().option("--user=nobody");
    let missing = "No such file or directory";
    let mut cases = vec![
        (user().program(["./server"]), "execute ./server", missing),
        (
            user().option("--dir=inside"),
            "change to --dir=inside",
            missing,
        ),
    ];
    let directory = "its directory does not exist";
    for (option, cannot) in [
        ("--path=socket", "listen on --path=socket"),
        ("--pid-file=pid", "use --pid-file=pid"),
        ("--log-file=out", "open --log-file=out"),
    ] {
        cases.push((user().option(option), cannot, directory));
        if needs_root() {
            let is_path = option.starts_with("--path");
            let cause = if is_path { missing } else { directory };
            cases.push((root().option(option), cannot, cause));
        }
    }
    for (setup, cannot, cause) in cases {
        let finished = run(setup);
        assert_eq!(finished.status.code(), Some(FAILED), "{}", finished.log);
        let lines = format!(
            "start_server: cannot {cannot}: {cause}\n\
             hint: the directory that start_server was started in has been removed: start it from another one, or give \
             an absolute path\n"
        );
        assert!(finished.log.ends_with(&lines), "{}", finished.log);
    }
}

#[test]
fn a_link_local_address_without_its_interface_is_told_how_it_is_written() {
    if !is_ours() || !needs_ipv6() {
        return;
    }
    for port in [ports::tcp().to_string(), format!("u{}", ports::udp())] {
        let line =
            format!("start_server: cannot listen on --port=[fe80::5]:{port}: Invalid argument");
        let hint = format!(
            "hint: a link-local address needs its interface: --port=[fe80::5%eth0]:{port}, with the name that \
             `ip address` shows"
        );
        let setup = Server::setup().option(format!("--port=[fe80::5]:{port}"));
        assert_refused(setup, FAILED, &[&line, &hint]);
    }
}

#[test]
fn each_refusal_of_a_port_has_its_remedy() {
    if !can_drop() {
        return;
    }
    for (errno, cause, hint) in [
        (
            libc::EACCES,
            "Permission denied",
            "a security module forbids this port: with SELinux, `ausearch -m avc` shows the refusal and \
             `semanage port -l` the ports that are allowed",
        ),
        (
            libc::EPERM,
            "Operation not permitted",
            "a filter of the unit or container forbids this port: in a unit, see SocketBindDeny= and SocketBindAllow=",
        ),
        (
            libc::EAFNOSUPPORT,
            "Address family not supported by protocol",
            "this address family is switched off: for IPv6, look for ipv6.disable=1 on the kernel's command line; in a \
             unit, see RestrictAddressFamilies=",
        ),
        (
            libc::ENODEV,
            "No such device",
            "no interface has that name: see `ip link`",
        ),
        (
            libc::ENOBUFS,
            "No buffer space available",
            "no more memory is available: see `free`, or MemoryMax= of the unit",
        ),
    ] {
        let refusing = refusing(libc::SYS_bind, &errno.to_string());
        let option = format!("--port=127.0.0.1:{}", ports::tcp());
        let mut launched = launch(
            &refusing.each_ref().map(String::as_str),
            &["--user=nobody", &option, "--", "true"],
        );
        assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
        let lines = format!("start_server: cannot listen on {option}: {cause}\nhint: {hint}\n");
        assert!(launched.log().ends_with(&lines), "{}", launched.log());
    }
}

#[test]
fn a_backlog_above_the_limit_of_the_kernel_is_said_once_and_shown_as_it_is() {
    if !is_ours() {
        return;
    }
    let limit = fs::read_to_string("/proc/sys/net/core/somaxconn").expect("no limit");
    let limit: u64 = limit.trim().parse().expect("a number");
    for (asked, granted) in [(limit, limit), (limit + 1, limit), (7, 7)] {
        let (tcp, udp) = (ports::tcp(), ports::udp());
        let setup = Server::setup().status_file().path("a socket");
        let setup = setup.option(format!("--port={tcp},u{udp}"));
        let server = setup.option(format!("--backlog={asked}")).start();
        let report = server.ask(tcp);
        assert_eq!(
            report.socket(&tcp.to_string()).backlog.map(u64::from),
            Some(granted)
        );
        let line = format!(
            "start_server: the kernel caps --backlog={asked} at {granted}: see `sysctl net.core.somaxconn`"
        );
        assert_eq!(server.count_in_log(&line), usize::from(granted < asked));
        assert_eq!(
            server.count_in_log("the kernel caps"),
            usize::from(granted < asked)
        );
        let json = server.status_json().expect("no status");
        let backlogs = json["listeners"].as_array().expect("no listeners");
        let backlogs: Vec<_> = backlogs.iter().map(|one| one["backlog"].as_u64()).collect();
        assert_eq!(backlogs, [Some(granted), None, Some(granted)]);
    }
}

#[test]
fn a_self_test_that_has_no_room_for_its_files_says_where_it_may_have_some() {
    if !is_ours() {
        return;
    }
    let before = [as_ordinary_user(), &["env", "TMPDIR=/missing place"]].concat();
    let mut launched = launch(&before, &["--self-test"]);
    assert_eq!(launched.wait_exit(), 1, "{}", launched.log());
    let lines = "start_server: cannot prepare a directory in '/missing place': No such file or directory\n\
                 hint: set TMPDIR to a directory in which this user may create another\n";
    assert!(launched.log().ends_with(lines), "{}", launched.log());
}
