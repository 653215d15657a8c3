use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{started, with};
use crate::host::identity;
use crate::listeners::dialects::Dialect;
use crate::listeners::spec::{parse_paths, parse_ports};
use crate::log::{Address, Format, LineFormat, LogTarget, Stream, SyslogSettings};
use crate::machine::{Knobs, Proof, Replace};
use crate::options::{Options, Workers};
use crate::ready::{ProbeAt, Ready, Statuses};
use crate::worker::environment;
use crate::{listeners, log, machine, ready, status, worker};

const NO_KNOBS: Knobs = Knobs {
    kill_old_delay: Duration::ZERO,
    auto_restart: None,
};

#[test]
fn the_defaults_are_those_of_server_starter() {
    let Options {
        identity,
        is_strict,
        is_daemon,
        is_guarded,
        listeners,
        worker,
        environment,
        machine,
        ready,
        log,
        status,
        workers,
        preset,
        runtime_dir,
    } = started(&["prog"]);
    assert_eq!((is_strict, is_daemon, is_guarded), (false, false, false));
    assert_eq!(preset, None);
    assert_eq!(workers, Workers::Number(1));
    let expected = identity::Settings {
        user: None,
        group: None,
        keeps_environment: false,
    };
    assert_eq!(identity, expected);
    let expected = listeners::Settings {
        ports: vec![],
        paths: vec![],
        backlog: None,
        dialects: vec![],
        switch: None,
    };
    assert_eq!(listeners, expected);
    let expected = worker::Settings {
        label: None,
        program: "prog".into(),
        arguments: vec![],
        check: None,
        directory: None,
    };
    assert_eq!(worker, expected);
    let expected = environment::Settings {
        directory: None,
        kill_old_delay: None,
        enable_auto_restart: None,
        auto_restart_interval: None,
    };
    assert_eq!(environment, expected);
    let expected = machine::Settings {
        workers: 1,
        rolling: None,
        start_parallel: None,
        most_workers: usize::MAX,
        interval: Duration::from_secs(1),
        proof: Proof::Interval,
        signal_on_hup: Signal::SIGTERM,
        signal_on_term: Signal::SIGTERM,
        stop_timeout: None,
        check: None,
        check_first: false,
        kill_old_timeout: None,
        max_old_generations: None,
        start_limit: None,
        first_start_limit: None,
        watch: None,
        pins: true,
        replace: Replace::Overlap,
        lanes: 1,
        shards: 1,
        flows: false,
        quiet_time: Duration::from_millis(200),
        switch_timeout: Duration::from_secs(5),
        knobs: NO_KNOBS,
    };
    assert_eq!(machine, expected);
    let expected = ready::Settings {
        ready: Ready::Interval,
        probe: None,
        start_timeout: Duration::from_secs(60),
        watch: None,
        fd_store_max: 0,
    };
    assert_eq!(ready, expected);
    let expected = log::Settings {
        target: None,
        target_streams: Stream::BOTH.into(),
        has_timestamps: false,
        format: LineFormat::Text,
        syslog: None,
        syslog_streams: Stream::BOTH.into(),
        is_quiet: false,
        is_attended: true,
    };
    assert_eq!(log, expected);
    let expected = status::Settings {
        pid_file: None,
        status_file: None,
    };
    assert_eq!(status, expected);
    assert_eq!(runtime_dir, None);
}

#[test]
fn every_option_reaches_its_room() {
    let Options {
        identity,
        is_strict,
        is_daemon,
        is_guarded,
        listeners,
        worker,
        environment,
        machine,
        ready,
        log,
        status,
        workers,
        preset,
        runtime_dir,
    } = with(&[
        "--port=80",
        "--path=/a,mode=0660",
        "--backlog=5",
        "--dir=/d",
        "--envdir=/e",
        "--fd-env=nginx",
        "--no-pin",
        "--replace=overlap",
        "--interval=2",
        "--signal-on-hup=QUIT",
        "--signal-on-term=INT",
        "--kill-old-delay=3",
        "--enable-auto-restart",
        "--auto-restart-interval=7",
        "--stop-timeout=4",
        "--check=make test",
        "--check-first",
        "--ready=http:/up",
        "--ready-status=200-399",
        "--probe=unix",
        "--start-timeout=10",
        "--watch=11",
        "--kill-old-timeout=8",
        "--max-old-generations=9",
        "--workers=auto",
        "--rolling=2",
        "--start-parallel=3",
        "--start-limit=6",
        "--runtime-dir=/r/",
        "--pid-file=/p",
        "--status-file=/s",
        "--log-file=/l",
        "--log-stream=stdout",
        "--log-timestamps",
        "--syslog=local3",
        "--syslog-tag=app",
        "--syslog-address=udp:host:514",
        "--syslog-format=rfc5424",
        "--syslog-stream=stderr",
        "--quiet",
        "--daemonize",
        "--guardian",
        "--user=www",
        "--group=33",
        "--keep-env",
        "--strict",
    ]);
    assert_eq!((is_strict, is_daemon, is_guarded), (true, true, true));
    assert_eq!(workers, Workers::Auto);
    assert_eq!(preset, None);
    let expected = identity::Settings {
        user: Some("www".into()),
        group: Some("33".into()),
        keeps_environment: true,
    };
    assert_eq!(identity, expected);
    let expected = listeners::Settings {
        ports: parse_ports("80").unwrap(),
        paths: parse_paths("/a,mode=0660".as_ref()).unwrap(),
        backlog: Some(5),
        dialects: vec![Dialect::Nginx],
        switch: None,
    };
    assert_eq!(listeners, expected);
    let expected = worker::Settings {
        label: None,
        program: "prog".into(),
        arguments: vec![],
        check: Some("make test".into()),
        directory: Some("/d".into()),
    };
    assert_eq!(worker, expected);
    let expected = environment::Settings {
        directory: Some("/e".into()),
        kill_old_delay: Some(Duration::from_secs(3)),
        enable_auto_restart: Some(true),
        auto_restart_interval: Some(Duration::from_secs(7)),
    };
    assert_eq!(environment, expected);
    let expected = machine::Settings {
        workers: 1,
        rolling: NonZeroUsize::new(2),
        start_parallel: NonZeroUsize::new(3),
        most_workers: usize::MAX,
        interval: Duration::from_secs(2),
        proof: Proof::Told {
            within: Duration::from_secs(10),
        },
        signal_on_hup: Signal::SIGQUIT,
        signal_on_term: Signal::SIGINT,
        stop_timeout: Some(Duration::from_secs(4)),
        check: Some(Duration::from_secs(10)),
        check_first: true,
        kill_old_timeout: Some(Duration::from_secs(8)),
        max_old_generations: NonZeroU32::new(9),
        start_limit: NonZeroU32::new(6),
        first_start_limit: NonZeroU32::new(6),
        watch: Some(Duration::from_secs(11)),
        pins: false,
        replace: Replace::Overlap,
        lanes: 1,
        shards: 1,
        flows: false,
        quiet_time: Duration::from_millis(200),
        switch_timeout: Duration::from_secs(5),
        knobs: NO_KNOBS,
    };
    assert_eq!(machine, expected);
    let expected = ready::Settings {
        ready: Ready::Http {
            path: "/up".into(),
            statuses: Statuses {
                first: 200,
                last: 399,
            },
        },
        probe: Some(ProbeAt::Unix),
        start_timeout: Duration::from_secs(10),
        watch: Some(Duration::from_secs(11)),
        fd_store_max: 0,
    };
    assert_eq!(ready, expected);
    let expected = log::Settings {
        target: Some(LogTarget::File("/l".into())),
        target_streams: vec![Stream::Stdout],
        has_timestamps: true,
        format: LineFormat::Text,
        syslog: Some(SyslogSettings {
            facility: "local3".into(),
            tag: "app".into(),
            address: Address::Udp("host:514".into()),
            format: Format::Rfc5424,
        }),
        syslog_streams: vec![Stream::Stderr],
        is_quiet: true,
        is_attended: false,
    };
    assert_eq!(log, expected);
    let expected = status::Settings {
        pid_file: Some("/p".into()),
        status_file: Some("/s".into()),
    };
    assert_eq!(status, expected);
    assert_eq!(runtime_dir, Some("/r".into()));
}

#[test]
fn a_daemon_gives_up_at_the_first_failed_start_unless_there_is_a_limit() {
    let limits = |words: &[&str]| {
        let machine = with(&[&["--log-file=/l"], words].concat()).machine;
        (machine.start_limit, machine.first_start_limit)
    };
    assert_eq!(limits(&["--daemonize"]), (None, NonZeroU32::new(1)));
    let three = NonZeroU32::new(3);
    assert_eq!(limits(&["--daemonize", "--start-limit=3"]), (three, three));
    assert_eq!(limits(&["--start-limit=3"]), (three, three));
}

#[test]
fn relative_files_are_in_the_runtime_directory() {
    let words = [
        "--runtime-dir=run/",
        "--pid-file=p",
        "--status-file=/s",
        "--log-file=l",
    ];
    let Options { status, log, .. } = with(&words);
    assert_eq!(status.pid_file, Some("run/p".into()));
    assert_eq!(status.status_file, Some("/s".into()));
    assert_eq!(log.target, Some(LogTarget::File("run/l".into())));
    let Options { log, .. } = with(&["--runtime-dir=/r", "--log-file=| cat"]);
    assert_eq!(log.target, Some(LogTarget::Command("cat".into())));
}
