use std::num::NonZeroU32;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{error, started, stopped, with};
use crate::listeners::Switch;
use crate::listeners::dialects::Dialect;
use crate::listeners::program::Spread;
use crate::words::text::quoted;

#[test]
fn seconds_may_have_decimals() {
    for (value, nanoseconds) in [
        ("0", 0),
        ("1", 1_000_000_000),
        ("007", 7_000_000_000),
        ("0.5", 500_000_000),
        (".25", 250_000_000),
        ("2.", 2_000_000_000),
        ("0.000000001", 1),
        ("1000000000", 1_000_000_000_000_000_000),
    ] {
        let word = |name: &str| format!("--{name}={value}");
        let options = with(&[
            &word("interval"),
            &word("kill-old-delay"),
            &word("auto-restart-interval"),
            &word("stop-timeout"),
        ]);
        let expected = Duration::from_nanos(nanoseconds);
        assert_eq!(options.machine.interval, expected, "{value}");
        for seconds in [
            options.environment.kill_old_delay,
            options.environment.auto_restart_interval,
            options.machine.stop_timeout,
            stopped(&[&word("timeout")]).timeout,
        ] {
            assert_eq!(seconds, Some(expected), "{value}");
        }
    }
    let cause = "the time is a number of seconds from 0 to 1000000000, such as 1 or 0.5";
    for value in [
        "abc",
        "-1",
        "-0",
        "+1",
        "1e3",
        "nan",
        "inf",
        "infinity",
        "1s",
        " 1",
        "1,5",
        ".",
        "1.2.3",
        "1000000000.1",
        "٣",
    ] {
        for name in [
            "interval",
            "kill-old-delay",
            "auto-restart-interval",
            "stop-timeout",
        ] {
            let word = format!("--{name}={value}");
            assert_eq!(
                error(&[&word, "prog"]),
                format!("cannot use --{name}={}: {cause}", quoted(value))
            );
        }
        let word = format!("--timeout={value}");
        assert_eq!(
            error(&["--stop", "--pid-file=/p", &word]),
            format!("cannot use --timeout={}: {cause}", quoted(value))
        );
    }
    let endless = format!("--interval={}", "9".repeat(400));
    assert_eq!(
        error(&[&endless, "prog"]),
        format!("cannot use {endless}: {cause}")
    );
}

#[test]
fn counts_begin_at_one() {
    for (value, number) in [("1", 1), ("128", 128), ("007", 7), ("2147483647", i32::MAX)] {
        let options = with(&["--backlog", value, "--start-limit", value]);
        assert_eq!(options.listeners.backlog, Some(number));
        assert_eq!(
            options.machine.start_limit,
            NonZeroU32::new(number.unsigned_abs())
        );
    }
    assert_eq!(
        with(&["--start-limit=4294967295"]).machine.start_limit,
        Some(NonZeroU32::MAX)
    );
    for value in ["0", "00", "-1", "+1", "1.0", "many", " 1", "4294967296"] {
        let cause = "it takes a number from 1 to";
        for (name, most) in [
            ("backlog", i32::MAX.unsigned_abs()),
            ("start-limit", u32::MAX),
        ] {
            let word = format!("--{name}={value}");
            assert_eq!(
                error(&[&word, "prog"]),
                format!("cannot use --{name}={}: {cause} {most}", quoted(value))
            );
        }
    }
    assert!(
        error(&["--backlog=2147483648", "prog"]).starts_with("cannot use --backlog=2147483648: ")
    );
}

#[test]
fn signals_have_names_in_any_case_and_numbers() {
    for (value, signal) in [
        ("TERM", Signal::SIGTERM),
        ("term", Signal::SIGTERM),
        ("SIGTERM", Signal::SIGTERM),
        ("SigUsr1", Signal::SIGUSR1),
        ("USR2", Signal::SIGUSR2),
        ("cont", Signal::SIGCONT),
        ("CLD", Signal::SIGCHLD),
        ("sigpoll", Signal::SIGIO),
        ("IOT", Signal::SIGABRT),
        ("15", Signal::SIGTERM),
        ("1", Signal::SIGHUP),
        ("031", Signal::SIGSYS),
    ] {
        let options = with(&["--signal-on-hup", value, "--signal-on-term", value]);
        assert_eq!(
            (
                options.machine.signal_on_hup,
                options.machine.signal_on_term
            ),
            (signal, signal),
            "{value}"
        );
    }
    for number in 1..=31 {
        assert_eq!(
            with(&[&format!("--signal-on-hup={number}")])
                .machine
                .signal_on_hup as i32,
            number
        );
    }
    let cause = "the signal is a name such as TERM, or a number from 1 to 31";
    for value in [
        "FOO",
        "SIG",
        "SIGSIGTERM",
        "0",
        "32",
        "-1",
        "+1",
        "15x",
        "1.5",
        "99999999999",
        " TERM",
        "TERM\n",
    ] {
        for name in ["signal-on-hup", "signal-on-term"] {
            let word = format!("--{name}={value}");
            assert_eq!(
                error(&[&word, "prog"]),
                format!("cannot use --{name}={}: {cause}", quoted(value))
            );
        }
    }
}

#[test]
fn empty_values_are_refused() {
    for name in [
        "dir",
        "envdir",
        "enable-auto-restart",
        "auto-restart-interval",
        "kill-old-delay",
        "pid-file",
        "status-file",
        "log-file",
        "timeout",
        "user",
        "group",
        "interval",
        "backlog",
        "signal-on-hup",
    ] {
        let message = format!("cannot use --{name}=: its value is empty");
        assert_eq!(error(&[&format!("--{name}="), "prog"]), message);
        if name != "enable-auto-restart" {
            assert_eq!(error(&[&format!("--{name}"), "", "prog"]), message);
        }
    }
    assert_eq!(
        error(&["--fd-env=", "prog"]),
        "cannot use --fd-env=: a style is missing"
    );
    assert_eq!(
        error(&["--port=", "prog"]),
        "cannot use --port=: a port is missing"
    );
    assert_eq!(
        error(&["--path", "", "prog"]),
        "cannot use --path=: the path is empty"
    );
}

#[test]
fn auto_restart_is_a_flag_that_can_be_switched_off() {
    for (words, on) in [
        (&["--enable-auto-restart"][..], true),
        (&["--enable-auto-restart=1"], true),
        (&["--ENABLE-AUTO-RESTART=True"], true),
        (&["--ena=0"], false),
        (&["--enable-auto-restart=FALSE"], false),
        (&["--enable-auto-restart=1", "--enable=0"], false),
        (&["--enable-auto-restart=0", "--enable"], true),
    ] {
        assert_eq!(
            with(words).environment.enable_auto_restart,
            Some(on),
            "{words:?}"
        );
    }
    for value in ["2", "yes", "on", "00", " 1", "truee"] {
        let word = format!("--enable-auto-restart={value}");
        assert_eq!(
            error(&[&word, "prog"]),
            format!(
                "cannot use --enable-auto-restart={}: it takes 0, 1, true or false, or no value",
                quoted(value)
            )
        );
    }
    // The next word is never its value.
    let options = started(&["--enable-auto-restart", "0", "1"]);
    assert_eq!(options.environment.enable_auto_restart, Some(true));
    assert_eq!(options.worker.program, "0");
    let options = started(&["--enable-auto-restart", "--strict", "prog"]);
    assert_eq!(options.environment.enable_auto_restart, Some(true));
    assert!(options.is_strict);
}

#[test]
fn a_delay_of_zero_is_told_from_none() {
    assert_eq!(
        with(&["--enable-auto-restart"]).environment.kill_old_delay,
        None
    );
    assert_eq!(
        with(&["--kill-old-delay=0"]).environment.kill_old_delay,
        Some(Duration::ZERO)
    );
}

#[test]
fn styles_of_telling_descriptors_add_up() {
    use Dialect::{Einhorn, Nginx, PhpFpm, Systemd, Unicorn};
    for (words, styles) in [
        (&["--fd-env=systemd"][..], vec![Systemd]),
        (
            &["--fd-env", "nginx,einhorn,systemd,unicorn,php-fpm"],
            vec![Nginx, Einhorn, Systemd, Unicorn, PhpFpm],
        ),
        (
            &[
                "--fd-env=unicorn",
                "--fd-env=nginx, unicorn",
                "--fd-e=nginx",
            ],
            vec![Unicorn, Nginx],
        ),
    ] {
        assert_eq!(with(words).listeners.dialects, styles, "{words:?}");
    }
    let styles = "the styles are systemd, unicorn, nginx, einhorn and php-fpm";
    for (value, message) in [
        ("upstart", format!("--fd-env=upstart: {styles}")),
        ("systemd,puma", format!("--fd-env=puma: {styles}")),
        ("Systemd", format!("--fd-env=Systemd: {styles}")),
        (
            "systemd,",
            "--fd-env=systemd,: a style is missing".to_owned(),
        ),
        (",nginx", "--fd-env=,nginx: a style is missing".to_owned()),
    ] {
        let word = format!("--fd-env={value}");
        assert_eq!(error(&[&word, "prog"]), format!("cannot use {message}"));
    }
}

#[test]
fn a_switch_has_lanes() {
    let switch = |words: &[&str]| {
        let words = [words, &["--", "prog"]].concat();
        started(&words).listeners.switch
    };
    assert_eq!(switch(&[]), None);
    let expected = |lanes, is_required| {
        Some(Switch {
            lanes,
            shards: 1,
            spread: Spread::Random,
            is_required,
            flows: None,
        })
    };
    assert_eq!(switch(&["--switch"]), expected(2, false));
    assert_eq!(switch(&["--switch", "--lanes=8"]), expected(8, false));
    assert_eq!(
        switch(&["--lanes=3", "--switch=required"]),
        expected(3, true)
    );
    for (option, flows) in [("--udp-flows=quic:0", 0), ("--udp-flows=quic:19", 19)] {
        let found = switch(&["--switch", "--port=u443", option]);
        assert_eq!(found.and_then(|found| found.flows), Some(flows));
    }
    let times = [
        "--switch",
        "--quiet-time=0",
        "--switch-timeout=0.5",
        "--",
        "prog",
    ];
    let machine = started(&times).machine;
    let expected = (Duration::ZERO, Duration::from_millis(500));
    assert_eq!((machine.quiet_time, machine.switch_timeout), expected);
}
