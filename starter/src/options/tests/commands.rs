use std::time::Duration;

use super::{error, names, parse_words, started};
use crate::client::Form;
use crate::host::identity;
use crate::options::Invocation;
use crate::{client, self_test};

/// The command that these words ask for, and its settings.
fn asked(words: &[&str]) -> (&'static str, client::Settings) {
    match parse_words(words) {
        Ok(Invocation::Restart(settings)) => ("restart", settings),
        Ok(Invocation::Stop(settings)) => ("stop", settings),
        Ok(Invocation::Reopen(settings)) => ("reopen", settings),
        Ok(Invocation::Status(settings)) => ("status", settings),
        other => panic!("{words:?}: {other:?}"),
    }
}

#[test]
fn a_running_superdaemon_is_reached_by_its_files() {
    let client = |status_file: Option<&str>, timeout| client::Settings {
        pid_file: "/p".into(),
        status_file: status_file.map(Into::into),
        timeout,
        is_quiet: false,
        form: Form::Text,
        returns_at_commit: false,
        canary: None,
    };
    for (words, expected) in [
        (
            &["--restart", "--pid-file=/p", "--status-file=/s"][..],
            ("restart", client(Some("/s"), None)),
        ),
        (
            &["--pid-file=/p", "--rest", "--time=2.5"],
            ("restart", client(None, Some(Duration::from_millis(2500)))),
        ),
        (
            &["--STOP", "--pid-file", "/p", "--timeout", "0"],
            ("stop", client(None, Some(Duration::ZERO))),
        ),
        (
            &["--stop", "--stop", "--pid-file=/p", "--stop-timeout=1"],
            ("stop", client(None, None)),
        ),
    ] {
        assert_eq!(asked(words), expected, "{words:?}");
    }
    let quiet = client::Settings {
        is_quiet: true,
        ..client(None, None)
    };
    assert_eq!(
        asked(&["--reopen", "--pid-file=/p", "--quiet"]),
        ("reopen", quiet)
    );
}

#[test]
fn the_command_line_of_the_start_serves_for_a_restart_too() {
    let words = ["--pid-file=/p", "--port=80=5", "--daemonize", "--group=www"];
    for program in [
        &["--", "prog", "--stop"][..],
        &["prog"],
        &[""],
        &["--"],
        &[],
    ] {
        let words = [
            &words[..],
            &["--fd-env=systemd", "--syslog-tag=app", "--restart"],
            program,
        ]
        .concat();
        let restart = parse_words(&words);
        assert!(matches!(restart, Ok(Invocation::Restart(_))), "{words:?}");
    }
    // What is no option, or has a wrong value, is an error all the same.
    assert_eq!(
        error(&["--restart", "--pid-file=/p", "--interval=x"]),
        error(&["--interval=x", "prog"])
    );
    assert_eq!(
        error(&["--restart", "--pid-file=/p", "--syslog-tag=a b"]),
        error(&["--syslog", "--syslog-tag=a b", "prog"])
    );
    assert_eq!(
        error(&["--stop", "--pid-file=/p", "--unknown"]),
        "unknown option --unknown"
    );
    // What is behind the program's name is the program's.
    assert_eq!(
        started(&["prog", "--restart"]).worker.arguments,
        ["--restart"]
    );
}

#[test]
fn a_running_superdaemon_is_asked_for_one_thing_and_by_its_pid_file() {
    for command in ["restart", "rollback", "stop", "reopen", "status"] {
        let message = format!("cannot use --{command}: it needs --pid-file as well");
        let word = format!("--{command}");
        assert_eq!(error(&[&word]), message);
        assert_eq!(error(&[&word, "--status-file=/s", "prog"]), message);
    }
    assert_eq!(
        error(&["--stop", "--restart", "--pid-file=/p"]),
        "cannot use --restart: --stop is given as well"
    );
    assert_eq!(
        error(&["--timeout=5", "--pid-file=/p", "prog"]),
        "cannot use --timeout=5: it needs --restart, --promote, --rollback, --abort, --scale, --upgrade, --stop or --reopen as well"
    );
}

#[test]
fn a_restart_may_be_one_of_a_share() {
    let canary = |words: &[&str]| {
        let words = [&["--restart", "--pid-file=/p"], words].concat();
        let trial = asked(&words).1.canary;
        trial.map(|one| (one.percent, one.is_by_client, one.seconds.map(u16::from)))
    };
    assert_eq!(canary(&[]), None);
    assert_eq!(canary(&["--canary=1"]), Some((1, false, None)));
    let all = ["--canary=99%", "--canary-by=client", "--canary-time=60"];
    assert_eq!(canary(&all), Some((99, true, Some(60))));
    for (words, expected) in [
        (
            &["--restart", "--canary=100%"][..],
            "cannot use --canary=100%: it takes a whole number from 1% to 99%",
        ),
        (
            &["--stop", "--canary=10%"],
            "cannot use --canary: it needs --restart as well",
        ),
        (
            &["--restart", "--canary-time=1"],
            "cannot use --canary-time: it needs --canary as well",
        ),
        (
            &["--canary=10%", "--switch", "--port=80", "prog"],
            "cannot use --canary: it needs --restart as well",
        ),
    ] {
        let words = [&["--pid-file=/p"], words].concat();
        assert_eq!(error(&words), expected, "{words:?}");
    }
}

#[test]
fn a_status_is_shown_in_one_form() {
    for (words, form) in [
        (&["--status"][..], Form::Text),
        (&["--status", "--follow"], Form::Follow),
        (&["--JSON", "--Status"], Form::Json),
        (
            &["--open", "--status", "--port=80", "prog"],
            Form::OpenMetrics,
        ),
    ] {
        let (command, settings) = asked(&[&["--pid-file=/p"], words].concat());
        assert_eq!((command, settings.form), ("status", form), "{words:?}");
    }
    for (words, cause) in [
        (
            &["--status", "--json", "--follow"][..],
            "cannot use --follow: --json is given as well",
        ),
        (
            &["--stop", "--json"],
            "cannot use --json: it needs --status, --restart, --promote, --rollback or --abort as well",
        ),
        (
            &["--json", "prog"],
            "cannot use --json: it needs --status, --restart, --promote, --rollback or --abort as well",
        ),
        (
            &["--restart", "--openmetrics"],
            "cannot use --openmetrics: it needs --status as well",
        ),
        (
            &["--restart", "--json", "--follow"],
            "cannot use --follow: it needs --status as well",
        ),
        (
            &["--status", "--no-wait"],
            "cannot use --no-wait: it needs --restart, --promote, --rollback or --abort as well",
        ),
        (
            &["--no-wait", "prog"],
            "cannot use --no-wait: it needs --restart, --promote, --rollback or --abort as well",
        ),
        (
            &["--follow", "prog"],
            "cannot use --follow: it needs --status as well",
        ),
        (
            &["--status", "--stop"],
            "cannot use --stop: --status is given as well",
        ),
    ] {
        assert_eq!(error(&[&["--pid-file=/p"], words].concat()), cause);
    }
}

#[test]
fn a_restart_has_a_verdict_for_programs_and_need_not_wait() {
    for (words, form, returns_at_commit) in [
        (&["--json"][..], Form::Json, false),
        (&["--no-wait"], Form::Text, true),
        (&["--NO-W", "--js", "--", "prog"], Form::Json, true),
    ] {
        let (command, settings) = asked(&[&["--pid-file=/p", "--restart"], words].concat());
        let found = (command, settings.form, settings.returns_at_commit);
        assert_eq!(found, ("restart", form, returns_at_commit), "{words:?}");
    }
}

#[test]
fn a_self_test_chooses_everything_itself_but_the_user() {
    let chosen = |words: &[&str]| match parse_words(words) {
        Ok(Invocation::SelfTest(settings)) => settings,
        other => panic!("{words:?}: {other:?}"),
    };
    let expected = |user: Option<&str>, group: Option<&str>, is_strict| self_test::Settings {
        identity: identity::Settings {
            user: user.map(Into::into),
            group: group.map(Into::into),
            keeps_environment: false,
        },
        is_strict,
    };
    assert_eq!(chosen(&["--self-test"]), expected(None, None, false));
    assert_eq!(
        chosen(&["--self", "--user", "www", "--group=33", "--strict"]),
        expected(Some("www"), Some("33"), true)
    );
    for (words, cause) in [
        (&["prog"][..], "it takes no server program"),
        (&["--port=80", "--", "prog"], "it takes no server program"),
        (&["--port=80"], "--port is given as well"),
        (
            &["--user=www", "--interval=0"],
            "--interval is given as well",
        ),
        (&["--daemonize"], "--daemonize is given as well"),
        (&["--stop", "--pid-file=/p"], "--pid-file is given as well"),
        (&["--restart"], "--restart is given as well"),
        (&["--timeout=x"], "--timeout is given as well"),
    ] {
        let words = [&["--self-test"], words].concat();
        let message = format!("cannot use --self-test: {cause}");
        assert_eq!(error(&words), message, "{words:?}");
    }
    assert_eq!(
        error(&["--self-test", "--group=www"]),
        "cannot use --group=www: it needs --user as well"
    );
    assert_eq!(
        error(&["--self-test", "--user="]),
        "cannot use --user=: its value is empty"
    );
}

#[test]
fn a_dry_run_takes_the_command_line_of_a_start_and_no_other_command() {
    let words = ["--check-config", "--port=8080", "--check=x", "prog", "word"];
    let Ok(Invocation::CheckConfig(options)) = parse_words(&words) else {
        panic!("not a dry run");
    };
    assert_eq!(names(&options), ["8080"]);
    assert_eq!(options.worker.program, "prog");
    assert_eq!(
        error(&["--check-config"]),
        "server program not specified\nhint: put it last, after two dashes: see --help"
    );
    for command in ["restart", "stop", "status"] {
        let option = format!("--{command}");
        assert_eq!(
            error(&["--check-config", "--pid-file=p", &option, "prog"]),
            format!("cannot use --check-config: {option} is given as well")
        );
    }
    assert!(parse_words(&["--self-test", "--check-config"]).is_err());
}
