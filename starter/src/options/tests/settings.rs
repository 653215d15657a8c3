use std::num::NonZeroU32;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{started, with};
use crate::listeners::spec::{parse_paths, parse_ports};
use crate::log::{Address, Format, LogTarget, Stream, SyslogSettings};
use crate::options::{FdStyle, Options};

#[test]
fn the_defaults_are_those_of_server_starter() {
    let expected = Options {
        program: "prog".into(),
        arguments: vec![],
        ports: vec![],
        paths: vec![],
        backlog: libc::SOMAXCONN,
        directory: None,
        envdir: None,
        fd_env: vec![],
        interval: Duration::from_secs(1),
        signal_on_hup: Signal::SIGTERM,
        signal_on_term: Signal::SIGTERM,
        kill_old_delay: None,
        enable_auto_restart: None,
        auto_restart_interval: None,
        stop_timeout: None,
        start_limit: None,
        pid_file: None,
        status_file: None,
        log_file: None,
        log_streams: Stream::BOTH.into(),
        log_timestamps: false,
        syslog: None,
        syslog_streams: Stream::BOTH.into(),
        quiet: false,
        daemonize: false,
        user: None,
        group: None,
        strict: false,
    };
    assert_eq!(started(&["prog"]), expected);
}

#[test]
fn every_option_reaches_its_field() {
    let options = with(&[
        "--port=80",
        "--path=/a,mode=0660",
        "--backlog=5",
        "--dir=/d",
        "--envdir=/e",
        "--fd-env=nginx",
        "--interval=2",
        "--signal-on-hup=QUIT",
        "--signal-on-term=INT",
        "--kill-old-delay=3",
        "--enable-auto-restart",
        "--auto-restart-interval=7",
        "--stop-timeout=4",
        "--start-limit=6",
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
        "--user=www",
        "--group=33",
        "--strict",
    ]);
    let expected = Options {
        program: "prog".into(),
        arguments: vec![],
        ports: parse_ports("80").unwrap(),
        paths: parse_paths("/a,mode=0660".as_ref()).unwrap(),
        backlog: 5,
        directory: Some("/d".into()),
        envdir: Some("/e".into()),
        fd_env: vec![FdStyle::Nginx],
        interval: Duration::from_secs(2),
        signal_on_hup: Signal::SIGQUIT,
        signal_on_term: Signal::SIGINT,
        kill_old_delay: Some(Duration::from_secs(3)),
        enable_auto_restart: Some(true),
        auto_restart_interval: Some(Duration::from_secs(7)),
        stop_timeout: Some(Duration::from_secs(4)),
        start_limit: NonZeroU32::new(6),
        pid_file: Some("/p".into()),
        status_file: Some("/s".into()),
        log_file: Some(LogTarget::File("/l".into())),
        log_streams: vec![Stream::Stdout],
        log_timestamps: true,
        syslog: Some(SyslogSettings {
            facility: "local3".into(),
            tag: "app".into(),
            address: Address::Udp("host:514".into()),
            format: Format::Rfc5424,
        }),
        syslog_streams: vec![Stream::Stderr],
        quiet: true,
        daemonize: true,
        user: Some("www".into()),
        group: Some("33".into()),
        strict: true,
    };
    assert_eq!(options, expected);
}
