//! Mistakes that everybody makes once: each message names the remedy.

use std::fs::OpenOptions;

use e2e::Server;
use e2e::skip::{needs_program, needs_root};

use crate::bad_input::{FAILED, assert_refused, assert_usage, is_ours, make_file};
use crate::launch::launch;

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
        // Another PATH may have closed directories.
        let setup = Server::setup()
            .program([program])
            .env("PATH", "/usr/bin:/bin");
        assert_refused(setup, FAILED, &[&line, &hint]);
    }
    // One that is there is another matter.
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
