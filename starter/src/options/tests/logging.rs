use super::{error, started, with};
use crate::log::{Address, Format, LineFormat, LogTarget, Stream};

#[test]
fn a_log_goes_to_a_file_or_to_a_command() {
    for value in ["/l", "log", "a|b", " x", "-"] {
        let target = with(&["--log-file", value]).log.target;
        assert_eq!(target, Some(LogTarget::File(value.into())), "{value}");
    }
    for (value, command) in [
        ("|cat", "cat"),
        ("| cat -u", "cat -u"),
        (" \t\x0b\x0c\r\n| \n cat | tee x ", "cat | tee x "),
        ("||x", "|x"),
    ] {
        let target = with(&["--log-file", value]).log.target;
        assert_eq!(
            target,
            Some(LogTarget::Command(command.into())),
            "{value:?}"
        );
    }
    for (value, shown) in [("|", "|"), (" | ", "' | '")] {
        assert_eq!(
            error(&["--log-file", value, "prog"]),
            format!("cannot use --log-file={shown}: a command is missing after the |")
        );
    }
}

#[test]
fn lines_are_text_or_objects_and_objects_are_written_here() {
    assert_eq!(with(&["--log-format=text"]).log, with(&[]).log);
    let log = with(&["--log-format=json"]).log;
    assert!(log.format == LineFormat::Json && log.captures() && log.is_passed_on());
    let is_passed_on = |words: &[&str]| {
        let log = with(&[&["--log-format=json"], words].concat()).log;
        Stream::BOTH.map(|stream| log.routes(stream).is_passed_on())
    };
    assert_eq!(is_passed_on(&["--log-file=/l"]), [true, true]);
    let words = ["--log-file=/l", "--log-stream=stderr"];
    assert_eq!(is_passed_on(&words), [false, true]);
    // To standard error go those that go nowhere else.
    assert_eq!(is_passed_on(&["--syslog"]), [false, false]);
    let words = ["--syslog", "--syslog-stream=stdout"];
    assert_eq!(is_passed_on(&words), [false, true]);
    let words = ["--syslog", "--syslog-stream=stdout", "--daemonize"];
    assert_eq!(is_passed_on(&words), [false, false]);
}

#[test]
fn syslog_has_a_facility_a_tag_an_address_a_format_and_streams() {
    let syslog = |words: &[&str]| with(words).log.syslog.unwrap();
    let plain = syslog(&["--syslog"]);
    assert_eq!(
        (plain.facility.as_str(), plain.tag.as_str()),
        ("daemon", "prog")
    );
    assert_eq!(plain.address, Address::Socket("/dev/log".into()));
    assert_eq!(plain.format, Format::Rfc3164);
    for name in [
        "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron",
        "authpriv", "ftp", "local0", "local7",
    ] {
        assert_eq!(syslog(&[&format!("--syslog={name}")]).facility, name);
    }
    let tag_of = |program: &str| {
        started(&["--syslog", "--", program])
            .log
            .syslog
            .unwrap()
            .tag
    };
    assert_eq!(tag_of("/srv/my app/server:1"), "server_1");
    assert_eq!(tag_of(&"x".repeat(50)), "x".repeat(32));
    for address in [
        "/run/log",
        "udp:127.0.0.1:514",
        "udp:[::1]:514",
        "udp:log.example:1",
    ] {
        assert_eq!(
            syslog(&["--syslog", &format!("--syslog-address={address}")]).address,
            match address.strip_prefix("udp:") {
                Some(address) => Address::Udp(address.into()),
                None => Address::Socket(address.into()),
            }
        );
    }
    let streams = with(&["--syslog", "--syslog-stream=stderr, stdout,stderr"])
        .log
        .syslog_streams;
    assert_eq!(streams, [Stream::Stderr, Stream::Stdout]);
}

#[test]
fn a_log_that_cannot_be_is_refused_with_the_cause() {
    let facilities = "the facilities are kern, user, mail, daemon, auth, syslog, lpr, news, uucp, cron, authpriv, ftp and local0 to local7";
    let address = "the address is an absolute path, or udp:HOST:PORT";
    let tag = "a tag has 1 to 32 letters, digits and any of . _ - /";
    let long = format!("--syslog-tag={}", "x".repeat(33));
    for (words, cause) in [
        (vec!["--syslog=local8"], facilities),
        (vec!["--syslog=-1"], facilities),
        (vec!["--syslog="], "its value is empty"),
        (
            vec!["--syslog", "--syslog-format=rfc1"],
            "the formats are rfc3164 and rfc5424",
        ),
        (vec!["--syslog", "--syslog-tag=a b"], tag),
        (vec!["--syslog", "--syslog-tag=a:"], tag),
        (vec!["--syslog", &long], tag),
        (vec!["--syslog", "--syslog-address=log"], address),
        (vec!["--syslog", "--syslog-address=udp:"], address),
        (vec!["--syslog", "--syslog-address=udp:host"], address),
        (vec!["--syslog", "--syslog-address=udp::514"], address),
        (vec!["--syslog", "--syslog-address=udp:host:0"], address),
        (vec!["--syslog", "--syslog-address=udp:host:65536"], address),
        (vec!["--syslog", "--syslog-address=tcp:host:514"], address),
        (
            vec!["--syslog", "--syslog-stream=stdin"],
            "the streams are stdout and stderr",
        ),
        (
            vec!["--syslog", "--syslog-stream=stdout,"],
            "the streams are stdout and stderr",
        ),
        (vec!["--syslog-tag=a"], "it needs --syslog as well"),
        (
            vec!["--syslog-address=/dev/log"],
            "it needs --syslog as well",
        ),
        (vec!["--syslog-format=rfc5424"], "it needs --syslog as well"),
        (vec!["--syslog-stream=stdout"], "it needs --syslog as well"),
        (vec!["--log-timestamps"], "it needs --log-file as well"),
        (vec!["--log-stream=stdout"], "it needs --log-file as well"),
        (vec!["--log-format=xml"], "the formats are text and json"),
        (vec!["--log-format="], "its value is empty"),
        (
            vec!["--log-file=/l", "--log-timestamps", "--log-format=json"],
            "--log-format=json writes the time of each line anyway",
        ),
        (
            vec!["--log-stream=stdout,stderr"],
            "it needs --log-file as well",
        ),
        (
            vec!["--log-file=/l", "--log-stream=both"],
            "the streams are stdout and stderr",
        ),
    ] {
        let message = error(&[&words[..], &["prog"]].concat());
        assert!(
            message.ends_with(&format!(": {cause}")),
            "{words:?}: {message}"
        );
    }
}
