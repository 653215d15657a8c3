use super::{error, with};
use crate::machine::Replace;

#[test]
fn a_group_needs_a_user() {
    assert_eq!(
        error(&["--group=www", "prog"]),
        "cannot use --group=www: it needs --user as well"
    );
    assert_eq!(with(&["--user=www"]).identity.group, None);
}

#[test]
fn keeping_the_environment_of_root_needs_a_user() {
    assert_eq!(
        error(&["--keep-env", "prog"]),
        "cannot use --keep-env: it needs --user as well"
    );
    let identity = with(&["--user=www", "--keep-env"]).identity;
    assert!(identity.keeps_environment);
}

#[test]
fn a_style_that_cannot_tell_of_a_listener_is_refused() {
    let chosen =
        "cannot use --fd-env=systemd: its descriptors are numbered from 3 without gaps, but";
    assert_eq!(
        error(&["--fd-env=systemd", "--port=79,80=5", "prog"]),
        format!("{chosen} --port=80=5 sets its own")
    );
    assert_eq!(
        error(&["--port=[::1]:u53=0", "--fd-env=nginx,systemd", "prog"]),
        format!("{chosen} --port=[::1]:u53=0 sets its own")
    );
    assert_eq!(
        error(&["--port=80,u53", "--fd-env=unicorn", "prog"]),
        "cannot use --fd-env=unicorn: it takes stream sockets only, but --port=u53 is UDP"
    );
    let tcp_only = "cannot use --fd-env=php-fpm: it takes TCP ports only, but";
    assert_eq!(
        error(&["--port=80,u53", "--fd-env=php-fpm", "prog"]),
        format!("{tcp_only} --port=u53 is UDP")
    );
    assert_eq!(
        error(&["--port=80", "--path=/a", "--fd-env=php-fpm", "prog"]),
        format!("{tcp_only} --path=/a is none: php-fpm would remove its file")
    );
    for words in [
        &["--fd-env=systemd", "--port=80,u53", "--path=/a"][..],
        &["--fd-env=php-fpm", "--port=80=5,[::1]:81"],
        &["--fd-env=unicorn", "--port=80=5", "--path=/a"],
        &["--fd-env=nginx,einhorn", "--port=80=5,u53", "--path=/a"],
    ] {
        assert!(!with(words).listeners.dialects.is_empty());
    }
}

#[test]
fn a_daemon_needs_a_log() {
    assert_eq!(
        error(&["--daemonize", "prog"]),
        "cannot use --daemonize: it needs --log-file or --syslog as well"
    );
    assert!(with(&["--daemonize", "--syslog"]).is_daemon);
    assert!(with(&["--daemonize", "--log-file=| cat"]).is_daemon);
    assert!(!with(&["--log-file=/l"]).is_daemon);
}

#[test]
fn one_file_cannot_have_two_purposes() {
    for (words, cause) in [
        (
            &["--pid-file=a", "--log-file=./a"][..],
            "--log-file=./a: it is the same file as --pid-file=a",
        ),
        (
            &["--pid-file=/x/a", "--log-file=/x/a.json"],
            "--log-file=/x/a.json: it is the same file as the JSON beside --pid-file=/x/a",
        ),
        (
            &["--pid-file=a", "--status-file=a.json"],
            "--status-file=a.json: it is the same file as the JSON beside --pid-file=a",
        ),
        (
            &["--status-file=a", "--pid-file=a"],
            "--status-file=a: it is the same file as --pid-file=a",
        ),
    ] {
        let message = error(&[words, &["prog"]].concat());
        assert_eq!(message, format!("cannot use {cause}"));
    }
    for words in [
        &["--pid-file=a", "--status-file=b", "--log-file=c"][..],
        &["--pid-file=a", "--log-file=| tee a"],
    ] {
        with(words);
    }
}

#[test]
fn what_is_stopped_first_is_not_stopped_after_a_delay() {
    assert_eq!(
        error(&["--replace=stop-first", "--kill-old-delay=5", "prog"]),
        "cannot use --kill-old-delay=5: --replace=stop-first stops the old server before it starts the new one"
    );
    for words in [
        &["--replace=stop-first", "--kill-old-delay=0"][..],
        &["--replace=stop-first"],
    ] {
        assert_eq!(with(words).machine.replace, Replace::StopFirst);
    }
    let overlap = with(&["--replace=overlap", "--kill-old-delay=5"]);
    assert_eq!(overlap.machine.replace, Replace::Overlap);
    assert_eq!(
        error(&["--replace=first", "prog"]),
        "cannot use --replace=first: the ways are overlap and stop-first"
    );
}
