use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use clap::error::ErrorKind;
use nix::sys::signal::Signal;

use super::{error, names, started, with};
use crate::log::LogTarget;
use crate::options::definition::definition;
use crate::options::refusal::of_clap;
use crate::options::{Invocation, parse};
use crate::words::failure::Failure;

#[test]
fn the_program_begins_at_the_first_word_that_is_no_option() {
    for (words, program, arguments) in [
        (vec!["prog"], "prog", vec![]),
        (vec!["--", "prog"], "prog", vec![]),
        (
            vec!["--port=80", "prog", "--port=81", "-x"],
            "prog",
            vec!["--port=81", "-x"],
        ),
        (vec!["--port", "80", "prog", "80"], "prog", vec!["80"]),
        (vec!["--strict", "prog", "--help"], "prog", vec!["--help"]),
        (
            vec!["--", "--strict", "--version"],
            "--strict",
            vec!["--version"],
        ),
        (vec!["--", "-x"], "-x", vec![]),
        // Alone and without the dashes, these are asked for.
        (vec!["--", "help"], "help", vec![]),
        (vec!["--", "version"], "version", vec![]),
        (vec!["help", "me"], "help", vec!["me"]),
        (vec!["--strict", "version"], "version", vec![]),
        (vec!["Help"], "Help", vec![]),
        (vec!["--", "--", "prog"], "--", vec!["prog"]),
        (
            vec!["prog", "--", "a", "--", ""],
            "prog",
            vec!["--", "a", "--", ""],
        ),
        (vec!["--", "prog", "--", "a"], "prog", vec!["--", "a"]),
        (vec!["-", "a"], "-", vec!["a"]),
        (vec!["one word", "a"], "one word", vec!["a"]),
    ] {
        let options = started(&words);
        assert_eq!(
            (options.worker.program.to_str(), options.worker.arguments),
            (
                Some(program),
                arguments.iter().map(OsString::from).collect()
            ),
            "{words:?}"
        );
    }
}

#[test]
fn without_a_program_nothing_starts() {
    for words in [
        &[][..],
        &["--"],
        &["--port=80"],
        &["--port", "80"],
        &["--strict", "--"],
    ] {
        assert_eq!(
            error(words),
            "server program not specified\nhint: put it last, after two dashes: see --help"
        );
    }
    assert_eq!(error(&["", "a"]), "the name of the server program is empty");
    assert_eq!(
        error(&["--", ""]),
        "the name of the server program is empty"
    );
}

#[test]
fn options_are_found_in_any_case_and_by_a_unique_beginning() {
    for words in [
        &["--port=80"][..],
        &["--port", "80"],
        &["--PORT=80"],
        &["--Port", "80"],
        &["--po=80"],
        &["--POR", "80"],
    ] {
        assert_eq!(names(&with(words)), ["80"], "{words:?}");
    }
    assert_eq!(
        with(&["--signal-on-TERM=int"]).machine.signal_on_term,
        Signal::SIGINT
    );
    assert_eq!(
        with(&["--di", "/x", "--STATUS-F=/y"]).status.status_file,
        Some("/y".into())
    );
    assert!(with(&["--str"]).is_strict);
    // The value keeps its case and its further =.
    assert_eq!(with(&["--DIR=A=b"]).worker.directory, Some("A=b".into()));
}

#[test]
fn a_beginning_that_is_not_unique_is_refused_with_the_candidates() {
    for (word, candidates) in [
        (
            "--st",
            "--start-limit, --start-parallel, --start-timeout, --status, --status-file, --stop, --stop-timeout or --strict",
        ),
        (
            "--ST=1",
            "--start-limit, --start-parallel, --start-timeout, --status, --status-file, --stop, --stop-timeout or --strict",
        ),
        (
            "--sta",
            "--start-limit, --start-parallel, --start-timeout, --status or --status-file",
        ),
        ("--sto", "--stop or --stop-timeout"),
        ("--d", "--daemonize or --dir"),
        ("--en=1", "--enable-auto-restart or --envdir"),
        (
            "--p",
            "--path, --pid-file, --port, --preset, --probe or --promote",
        ),
        ("--signal-on", "--signal-on-hup or --signal-on-term"),
    ] {
        let name = word.split('=').next().unwrap();
        assert_eq!(
            error(&[word, "prog"]),
            format!("cannot use {name}: it could mean {candidates}")
        );
    }
}

#[test]
fn an_unknown_option_is_refused() {
    for (word, message) in [
        (
            "--prot=80",
            "unknown option --prot\nhint: did you mean --port?",
        ),
        (
            "--Prot",
            "unknown option --Prot\nhint: did you mean --port?",
        ),
        (
            "--statusfile",
            "unknown option --statusfile\nhint: did you mean --status-file?",
        ),
        ("--=80", "unknown option --=80"),
        ("--=", "unknown option --="),
        (
            "--po rt=1",
            "unknown option '--po rt'\nhint: did you mean --port?",
        ),
        ("--x\ny", "unknown option --x\\x0Ay"),
    ] {
        assert_eq!(error(&[word, "prog"]), message);
    }
    assert_eq!(
        error(&["--rsyslog", "prog"]),
        "unknown option --rsyslog\nhint: did you mean --syslog?"
    );
}

#[test]
fn an_option_with_one_dash_is_refused_with_the_right_spelling() {
    let two = "options begin with two dashes";
    for (word, hint) in [
        ("-port=80", "\nhint: write --port=80"),
        ("-PORT=80", "\nhint: write --port=80"),
        ("-port", "\nhint: write --port"),
        ("-H", "\nhint: write --help"),
        (
            "-p",
            "\nhint: write --path, --pid-file, --port, --preset, --probe or --promote",
        ),
        ("-x", ""),
        ("-1", ""),
    ] {
        assert_eq!(
            error(&[word, "prog"]),
            format!("cannot use {word}: {two}{hint}")
        );
    }
}

#[test]
fn a_value_is_never_taken_from_the_next_option() {
    let missing = "its value is missing";
    let hint = "hint: a value that begins with a dash needs an equals sign:";
    for (words, message) in [
        (vec!["--port"], format!("cannot use --port: {missing}")),
        (vec!["--PO"], format!("cannot use --PO: {missing}")),
        (
            vec!["--port", "--", "prog"],
            format!("cannot use --port: {missing}"),
        ),
        (
            vec!["--dir", "--port=80"],
            format!("cannot use --dir: {missing}\n{hint} --dir=--port=80"),
        ),
        (
            vec!["--int", "-1"],
            format!("cannot use --int: {missing}\n{hint} --interval=-1"),
        ),
    ] {
        assert_eq!(error(&words), message, "{words:?}");
    }
    assert_eq!(with(&["--dir", "-"]).worker.directory, Some("-".into()));
    assert_eq!(with(&["--dir=-x"]).worker.directory, Some("-x".into()));
    assert_eq!(with(&["--dir=--"]).worker.directory, Some("--".into()));
}

#[test]
fn a_flag_takes_no_value() {
    for word in [
        "--strict=1",
        "--strict=",
        "--help=x",
        "--version=1",
        "--daemonize=1",
        "--restart=1",
        "--stop=0",
    ] {
        let name = word.split('=').next().unwrap();
        assert_eq!(
            error(&[word, "prog"]),
            format!("cannot use {name}: it takes no value")
        );
    }
    // To Server::Starter it is short for another option.
    assert_eq!(
        error(&["--status=/s", "prog"]),
        "cannot use --status: it takes no value\nhint: did you mean --status-file?"
    );
    assert_eq!(started(&["--strict", "1", "2"]).worker.program, "1");
}

#[test]
fn listeners_add_up_and_of_the_others_the_last_wins() {
    let options = with(&["--port=80", "--path=/a", "--port", "81,u53", "--path=/b,/c"]);
    assert_eq!(names(&options), ["80", "81", "53"]);
    assert_eq!(options.listeners.paths.len(), 3);
    let options = with(&[
        "--interval=1",
        "--user=a",
        "--strict",
        "--INT=2",
        "--strict",
        "--user",
        "b",
    ]);
    assert_eq!(
        (options.machine.interval, options.identity.user.as_deref()),
        (Duration::from_secs(2), Some("b"))
    );
    assert!(options.is_strict);
    assert_eq!(
        error(&["--port=80", "--port=*:80", "prog"]),
        "cannot use --port=*:80: it is the same as --port=80"
    );
}

#[test]
fn words_need_not_be_utf_8() {
    let words = [
        b"--path=/\xff".as_slice(),
        b"--dir",
        b"\xfe",
        b"--pid-file=\xfd",
        b"--envdir=\xfa",
        b"--log-file=|\xf9",
        b"\xfc",
        b"\xfb",
    ];
    let Ok(Invocation::Start(options)) = parse(words.map(|word| OsString::from_vec(word.to_vec())))
    else {
        panic!("not started");
    };
    assert_eq!(
        options.listeners.paths[0].path.as_os_str().as_bytes(),
        b"/\xff"
    );
    assert_eq!(
        options.worker.directory.unwrap().as_os_str().as_bytes(),
        b"\xfe"
    );
    assert_eq!(
        options.status.pid_file.unwrap().as_os_str().as_bytes(),
        b"\xfd"
    );
    assert_eq!(
        options
            .environment
            .directory
            .unwrap()
            .as_os_str()
            .as_bytes(),
        b"\xfa"
    );
    let command = LogTarget::Command(OsString::from_vec(b"\xf9".to_vec()));
    assert_eq!(options.log.target, Some(command));
    assert_eq!(options.worker.program.as_bytes(), b"\xfc");
    assert_eq!(options.worker.arguments[0].as_bytes(), b"\xfb");

    for (word, message) in [
        (
            b"--port=\xff".as_slice(),
            "cannot use --port=\\xFF: it is not valid UTF-8",
        ),
        (
            b"--user=\xff",
            "cannot use --user=\\xFF: it is not valid UTF-8",
        ),
        (
            b"--fd-env=\xff",
            "cannot use --fd-env=\\xFF: it is not valid UTF-8",
        ),
        (
            b"--enable-auto-restart=\xff",
            "cannot use --enable-auto-restart=\\xFF: it takes 0, 1, true or false, or no value",
        ),
        (b"--\xff=1", "unknown option --\\xFF"),
        (
            b"-\xff=1",
            "cannot use -\\xFF=1: options begin with two dashes",
        ),
    ] {
        let words = [word, b"prog"].map(|word| OsString::from_vec(word.to_vec()));
        assert_eq!(parse(words).unwrap_err().to_string(), message);
    }
}

#[test]
fn an_error_of_clap_that_is_not_known_keeps_its_first_line() {
    for kind in [
        ErrorKind::ArgumentConflict,
        ErrorKind::UnknownArgument,
        ErrorKind::TooManyValues,
    ] {
        let failure = of_clap(&definition().error(kind, "some text\nand more"), None);
        assert_eq!(failure, Failure::usage("some text"));
    }
}
