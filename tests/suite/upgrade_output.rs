//! Output through upgrades in place: no line is lost, doubled or cut.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use e2e::client::{Flow, write};
use e2e::{Server, client, programs, wait};
use nix::sys::signal::Signal;

use crate::capture::{numbers, read};
use crate::commands::run;
use crate::readiness::with_files;
use crate::syslog::Daemon;
use crate::upgrade::{Programs, is_ours, serving, upgraded};

/// Upgrades again and again while a worker writes; returns how many lines it has written.
#[track_caller]
fn upgrade_while_it_writes(server: &Server, programs: &Programs, flow: Flow) -> usize {
    for number in 0..8 {
        programs.replace_by_version(number % 2 == 0);
        upgraded(server);
    }
    flow.end().count
}

/// The numbered lines of generation 1 in a file are these, in order.
#[track_caller]
fn assert_all(text: &str, count: usize, stamped: bool) {
    let found = numbers(text, 80, stamped);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1]);
    let all = found[&1].iter().copied();
    assert!(all.eq(1..=count), "{} of {count}", found[&1].len());
}

#[test]
fn a_log_command_gets_every_line() {
    if !is_ours() {
        return;
    }
    for options in [&[][..], &["--log-timestamps"], &["--log-stream=stderr"]] {
        let setup = with_files().options(options.iter().copied());
        let kept = setup.folder().join("kept");
        let command = format!(
            "--log-file=| exec {} --sink={}",
            programs::worker().display(),
            kept.display()
        );
        let (mut server, programs, port) = serving(setup.option(command));
        let flow = Flow::start(port, 80, "stderr", 20);
        let count = upgrade_while_it_writes(&server, &programs, flow);
        assert!(server.stop().success());
        let condition = "the last line is kept";
        wait::until(
            condition,
            || read(&kept),
            || read(&kept).contains("exiting\n").then_some(()),
        );
        assert_all(&read(&kept), count, options == ["--log-timestamps"]);
        assert_eq!(read(&kept).matches("the log command died").count(), 0);
    }
}

#[test]
fn a_log_command_that_dies_after_an_upgrade_is_started_again() {
    if !is_ours() {
        return;
    }
    let setup = with_files().option("--log-file=| echo $$ >reader; exec cat >>kept");
    let (server, programs, port) = serving(setup);
    let reader = |server: &Server| {
        let text = fs::read_to_string(server.folder().join("reader")).ok()?;
        text.trim().parse().ok().map(nix::unistd::Pid::from_raw)
    };
    let first = server.wait_for("the log command runs", reader);
    programs.replace_by_version(true);
    upgraded(&server);
    nix::sys::signal::kill(first, Signal::SIGKILL).expect("cannot kill it");
    server.wait_for("another one runs", |server| {
        reader(server).filter(|pid| *pid != first)
    });
    write(port, "stderr", "after its death");
    server.wait_until("the line is kept", |server| {
        read(&server.folder().join("kept")).contains("after its death\n")
    });
    let kept = read(&server.folder().join("kept"));
    assert_eq!(
        kept.matches("the log command died, status:9").count(),
        1,
        "{kept}"
    );
}

#[test]
fn a_log_file_gets_every_line_with_its_stamp_and_can_be_reopened() {
    if !is_ours() {
        return;
    }
    let setup = with_files().options(["--log-file=server.log", "--log-timestamps"]);
    let (mut server, programs, port) = serving(setup);
    let path = server.folder().join("server.log");
    let old = server.folder().join("server.log.1");
    let flows = [("stderr", 1), ("stdout", 2)].map(|(stream, _)| Flow::start(port, 80, stream, 20));
    let [errors, outputs] = flows;
    for number in 0..4 {
        programs.replace_by_version(number % 2 == 0);
        upgraded(&server);
    }
    fs::rename(&path, &old).expect("cannot rotate");
    let mut reopen = run(&server, &["--reopen", "--pid-file=pid"]);
    assert_eq!(reopen.wait(), 0, "{}", reopen.said());
    upgraded(&server);
    let length = fs::metadata(&old).expect("no file").len();
    let written = [
        upgrade_while_it_writes(&server, &programs, errors),
        outputs.end().count,
    ];
    assert!(server.stop().success());
    assert_eq!(fs::metadata(&old).expect("no file").len(), length);
    let text = read(&old) + &read(&path);
    assert!(text.ends_with("exiting\n"), "{text}");
    let found = numbers(&text, 80, true);
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    for number in &found[&1] {
        *times.entry(*number).or_default() += 1;
    }
    for (number, times) in times {
        let expected = written.iter().filter(|count| **count >= number).count();
        assert_eq!(times, expected, "line {number}");
    }
    let total: usize = written.iter().sum();
    assert_eq!(found[&1].len(), total);
}

#[test]
fn half_a_line_before_and_the_rest_after_is_one_line() {
    if !is_ours() {
        return;
    }
    for (option, file) in [
        ("--log-timestamps", "server.log"),
        ("--no-pin", "server.log"),
    ] {
        let setup = with_files().options(["--log-file=server.log", option]);
        let (mut server, programs, port) = serving(setup);
        let path = server.folder().join(file);
        client::request(port, "raw stderr 68616c66").expect("no answer");
        for is_newer in [true, false] {
            programs.replace_by_version(is_newer);
            upgraded(&server);
        }
        client::request(port, "raw stderr 20616e6420726573740a").expect("no answer");
        // A character in two parts.
        client::request(port, "raw stderr e282").expect("no answer");
        upgraded(&server);
        client::request(port, "raw stderr ac0a").expect("no answer");
        assert!(server.stop().success());
        let text = read(&path);
        match option {
            "--log-timestamps" => {
                let ends = |end: &str| text.lines().filter(|line| line.ends_with(end)).count();
                assert_eq!(ends("] half and rest"), 1, "{text}");
                assert_eq!(ends("] \u{20ac}"), 1, "{text}");
            }
            // The worker writes to the file itself, so a line of ours may come between.
            _ => assert!(
                text.contains("half") && text.contains(" and rest\n"),
                "{text}"
            ),
        }
    }
}

#[test]
fn syslog_gets_every_line() {
    if !is_ours() {
        return;
    }
    let setup = with_files();
    let address = setup.folder().join("syslog");
    let daemon = Daemon::at(&address);
    let (mut server, programs, port) = serving(setup.options([
        "--syslog=local3".to_owned(),
        format!("--syslog-address={}", address.display()),
    ]));
    client::request(port, "raw stderr 68616c66").expect("no answer");
    upgraded(&server);
    client::request(port, "raw stderr 20616e6420726573740a").expect("no answer");
    let flow = Flow::start(port, 80, "stderr", 300);
    // However long an upgrade takes, during which there is room for so many records only.
    let count = daemon.read_during(|| {
        for number in 0..5 {
            programs.replace_by_version(number % 2 == 0);
            upgraded(&server);
        }
        flow.end().count
    });
    let (found, lost) = daemon.read_numbers(|found, lost, _| {
        found.last() == Some(&count) || found.len() as u64 + lost > count as u64
    });
    assert_eq!(lost, 0);
    assert!(
        found.iter().copied().eq(1..=count),
        "{} of {count}",
        found.len()
    );
    let messages = daemon.messages();
    let halves = messages.iter().filter(|one| one.contains("half"));
    assert_eq!(halves.collect::<Vec<_>>(), ["gen 1: half and rest"]);
    assert!(server.stop().success());
    wait::until(
        "its last record",
        || format!("{:?}", daemon.messages()),
        || {
            daemon
                .messages()
                .iter()
                .any(|one| one.ends_with("exiting"))
                .then_some(())
        },
    );
    assert!(Path::new(&address).exists());
}
