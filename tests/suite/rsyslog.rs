//! Where output goes: `--syslog`, with the real rsyslogd.

use std::cell::{Cell, Ref, RefCell};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use e2e::client::{Flow, burst, write};
use e2e::skip::{find_program, needs_program, original_differs};
use e2e::start::InTurn;
use e2e::{Server, Setup, client, ports, proc, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// An rsyslogd of its own, with everything below one folder. Ended when it is dropped.
struct Rsyslogd {
    folder: PathBuf,
    port: u16,
    child: Child,
    seen: RefCell<Seen>,
}

/// What was read of its file. There may be very many lines, so each is read once.
#[derive(Default)]
struct Seen {
    bytes: u64,
    lines: Vec<Line>,
}

/// A line that it has written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    facility: String,
    severity: String,
    program: String,
    pid: i32,
    data: String,
    text: String,
}

impl Rsyslogd {
    fn start(folder: &Path, port: u16) -> Rsyslogd {
        let dir = folder.display();
        // The special parser knows nothing but what syslog(3) of the C library writes.
        let configuration = format!(
            r#"
module(load="imuxsock" SysSock.Use="off")
module(load="imudp")
main_queue(queue.type="FixedArray" queue.size="1000000")
template(name="line" type="string"
    string="%syslogfacility-text%|%syslogseverity-text%|%programname%|%procid%|%structured-data%|%msg%\n")
ruleset(name="keep") {{ action(type="omfile" file="{dir}/written" template="line") }}
input(type="imuxsock" Socket="{dir}/syslog" ruleset="keep")
input(type="imuxsock" Socket="{dir}/syslog5424" UseSpecialParser="off" ruleset="keep")
input(type="imudp" address="127.0.0.1" port="{port}" ruleset="keep")
"#
        );
        let file = folder.join("rsyslog.conf");
        fs::write(&file, configuration).expect("cannot write the configuration");
        let output = File::create(folder.join("rsyslogd.out")).expect("cannot make a file");
        drop(fs::remove_file(folder.join("rsyslogd.pid")));
        let child = Command::new(find_program("rsyslogd").expect("it was there"))
            .arg("-n")
            .arg("-f")
            .arg(&file)
            .arg("-i")
            .arg(folder.join("rsyslogd.pid"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("cannot duplicate"))
            .stderr(output)
            .spawn_in_turn()
            .expect("cannot run rsyslogd");
        let daemon = Rsyslogd {
            folder: folder.to_owned(),
            port,
            child,
            seen: RefCell::default(),
        };
        let listens = || {
            let pid = fs::read_to_string(folder.join("rsyslogd.pid")).ok()?;
            let ours = pid.trim_end() == daemon.child.id().to_string();
            (ours && folder.join("syslog5424").exists()).then_some(())
        };
        wait::until("rsyslogd listens", || daemon.evidence(), listens);
        daemon
    }

    fn evidence(&self) -> String {
        fs::read_to_string(self.folder.join("rsyslogd.out")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("cannot signal rsyslogd");
    }

    /// At once, with all that it has read and not written.
    fn kill(mut self) {
        self.child.kill().expect("cannot kill rsyslogd");
        self.child.wait().expect("cannot wait for rsyslogd");
    }

    /// Every line that it has written by now.
    fn lines(&self) -> Ref<'_, [Line]> {
        self.read();
        Ref::map(self.seen.borrow(), |seen| &seen.lines[..])
    }

    fn read(&self) {
        let mut seen = self.seen.borrow_mut();
        let Ok(mut file) = File::open(self.folder.join("written")) else {
            return;
        };
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(seen.bytes)).expect("cannot seek");
        file.read_to_end(&mut text).expect("cannot read");
        // The last line may not be whole yet, nor its last character.
        let whole = text.iter().rposition(|byte| *byte == b'\n');
        text.truncate(whole.map_or(0, |end| end + 1));
        seen.bytes += u64::try_from(text.len()).expect("a length");
        let text = String::from_utf8(text).expect("rsyslogd has written no UTF-8");
        assert!(!text.chars().any(|one| one.is_control() && one != '\n'));
        let lines = text.split_terminator('\n').map(Line::parse);
        seen.lines.extend(lines);
    }

    #[track_caller]
    fn wait_for(&self, end: &str) -> Line {
        let mut next = 0;
        wait::until(
            &format!("rsyslogd has written a line that ends with {end:?}"),
            || {
                let lines = self.lines();
                let some = &lines[lines.len().saturating_sub(50)..];
                format!("{}\n{some:#?}", self.evidence())
            },
            || {
                let lines = self.lines();
                let found = lines[next..].iter().find(|line| line.text.ends_with(end));
                next = lines.len();
                found.cloned()
            },
        )
    }

    /// Waits until all lines of a burst have arrived or been reported lost; returns the numbers of those that arrived and
    /// the count of those lost. However long all of it takes: there is time as long as more comes.
    #[track_caller]
    fn wait_for_burst(&self, count: usize) -> (Vec<usize>, usize) {
        let (mut numbers, mut lost, mut next) = (Vec::new(), 0, 0);
        while numbers.len() + lost < count {
            wait::until(
                &format!("more of {count} lines have come or were told to be lost"),
                || format!("{} have come, {lost} were told", numbers.len()),
                || (self.lines().len() > next).then_some(()),
            );
            let lines = self.lines();
            for line in &lines[next..] {
                numbers.extend(number_in(&line.text));
                lost += told_lost(&line.text);
            }
            next = lines.len();
        }
        (numbers, lost)
    }
}

impl Drop for Rsyslogd {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Line {
    #[track_caller]
    fn parse(line: &str) -> Line {
        let parts: Vec<&str> = line.splitn(6, '|').collect();
        let [facility, severity, program, pid, data, text] = parts[..] else {
            panic!("not of the template: {line:?}");
        };
        Line {
            facility: facility.to_owned(),
            severity: severity.to_owned(),
            program: program.to_owned(),
            pid: pid.parse().unwrap_or_else(|_| panic!("no pid in {line:?}")),
            data: data.to_owned(),
            // The blank behind the tag is a part of the text of RFC 3164.
            text: text.strip_prefix(' ').unwrap_or(text).to_owned(),
        }
    }
}

/// The number of a line of a burst: `gen 1: 1 00000042 ....`.
fn number_in(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("gen ")?.split_once(": ")?.1;
    let digits = rest.split_once(' ')?.1.get(..8)?;
    digits.parse().ok()
}

fn told_lost(text: &str) -> usize {
    text.strip_prefix("start_server: ")
        .and_then(|rest| rest.split_once(" lines before this one were lost: "))
        .map_or(0, |(number, _)| number.parse().expect("a number"))
}

/// Whether rsyslogd and a start_server of ours are to be had.
fn can_run() -> bool {
    !original_differs("it has no --syslog") && needs_program("rsyslogd")
}

/// A server that sends to this socket of an rsyslogd in its folder.
fn setup(socket: &str) -> (Setup, u16) {
    let port = ports::tcp();
    let setup = Server::setup().status_file().port(port);
    let address = setup.folder().join(socket);
    let setup = setup
        .options(["--syslog=local5", "--syslog-tag=app"])
        .option(format!("--syslog-address={}", address.display()))
        .worker(["--graceful"]);
    (setup, port)
}

#[test]
fn rsyslogd_finds_facility_severity_tag_pid_and_generation() {
    if !can_run() {
        return;
    }
    for way in ["syslog", "syslog5424", "udp", "udp5424"] {
        let port = ports::tcp();
        let setup = Server::setup().status_file().port(port);
        let rsyslogd = Rsyslogd::start(setup.folder(), ports::udp());
        let address = match way.starts_with("udp") {
            true => format!("udp:127.0.0.1:{}", rsyslogd.port),
            false => setup.folder().join(way).display().to_string(),
        };
        let is_5424 = way.ends_with("5424");
        let failing = setup.folder().join("failing");
        let mut server = setup
            .options(["--syslog=local5", "--syslog-tag=app"])
            .option(format!("--syslog-address={address}"))
            .options(is_5424.then_some("--syslog-format=rfc5424"))
            // Whoever ends before it says so has failed to start, however long it took.
            .option("--ready=notify")
            .worker([
                "--graceful".to_owned(),
                "--notify".to_owned(),
                format!("--exit-if-exists={}", failing.display()),
            ])
            .start();
        let first = server.accepted().pid.as_raw();
        let ours = server.pid().as_raw();
        let check = |text: &str, severity: &str, pid: i32, of: Option<(u32, &str)>| {
            let (text, data) = match of {
                None => (text.to_owned(), "-".to_owned()),
                Some((generation, _)) if !is_5424 => {
                    (format!("gen {generation}: {text}"), "-".to_owned())
                }
                Some((generation, stream)) => (
                    text.to_owned(),
                    format!(
                        "[start_server@32473 generation=\"{generation}\" pid=\"{pid}\" stream=\"{stream}\"]"
                    ),
                ),
            };
            let expected = Line {
                facility: "local5".into(),
                severity: severity.into(),
                program: "app".into(),
                pid,
                data,
                text,
            };
            assert_eq!(rsyslogd.wait_for(&expected.text), expected, "{way}");
        };
        let start = format!("start_server (pid:{ours}) starting now...");
        check(&start, "notice", ours, None);
        write(port, "stdout", "on standard output");
        check("on standard output", "info", first, Some((1, "stdout")));
        write(port, "stderr", "on standard error");
        check("on standard error", "warning", first, Some((1, "stderr")));
        fs::write(&failing, "").expect("cannot write a file");
        server.signal(Signal::SIGHUP);
        let second = server.wait_for_start(2).pid;
        let text = format!("new worker {second} seems to have failed to start, exit status:256");
        check(&text, "err", ours, None);
        fs::remove_file(&failing).expect("cannot remove a file");
        // It is tried again by itself.
        let third = server.wait_for("a later generation serves alone", |server| {
            let [worker] = server.workers()[..] else {
                return None;
            };
            let text = server.status_file()?;
            (text == format!("{}:{}\n", worker.generation, worker.pid) && worker.generation > 2)
                .then_some(worker)
        });
        kill(third.pid, Signal::SIGKILL).expect("cannot kill the worker");
        let pid = third.pid;
        let text = format!("worker {pid} died unexpectedly with status:9, restarting");
        check(&text, "warning", ours, None);
        server.wait_for_service(third.generation + 1);
        assert!(server.stop().success());
        check("exiting", "notice", ours, None);
    }
}

#[test]
fn rsyslogd_gets_what_could_do_harm_as_harmless_lines() {
    if !can_run() {
        return;
    }
    let (setup, port) = setup("syslog");
    let rsyslogd = Rsyslogd::start(setup.folder(), ports::udp());
    let server = setup.start();
    let worker = server.accepted().pid.as_raw();
    let bytes = b"a\0b\n<0>Jan  1 00:00:00 forged: c\n\x1b]0;title\x07\x9b2J\x7f\nhalf \xe2\x82\n\xac\xff\n";
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    client::request(port, &format!("raw stderr {hex}")).expect("no answer");
    let long = "\u{20ac}".repeat(100 * 1024 / 3);
    write(port, "stderr", &long);
    write(port, "stderr", "the end");
    rsyslogd.wait_for("the end");
    let texts: Vec<String> = rsyslogd
        .lines()
        .iter()
        .filter(|line| line.pid == worker)
        .map(|line| {
            assert_eq!(
                (line.facility.as_str(), line.severity.as_str()),
                ("local5", "warning")
            );
            let text = line.text.strip_prefix("gen 1: ").expect("a generation");
            text.to_owned()
        })
        .collect();
    let expected = [
        r"a\x00b",
        "<0>Jan  1 00:00:00 forged: c",
        r"\x1B]0;title\x07\x9B2J\x7F",
        r"half \xE2\x82",
        r"\xAC\xFF",
    ];
    assert_eq!(texts[..expected.len()], expected);
    let whole: String = texts[expected.len()..texts.len() - 1]
        .iter()
        .map(|piece| piece.replace("[...]", ""))
        .collect();
    assert!(whole == long, "{} bytes of {}", whole.len(), long.len());
}

#[test]
fn a_burst_reaches_rsyslogd_in_order_or_what_is_lost_adds_up() {
    if !can_run() {
        return;
    }
    const COUNT: usize = 100_000;
    let (setup, port) = setup("syslog");
    let rsyslogd = Rsyslogd::start(setup.folder(), ports::udp());
    let server = setup.start();
    server.accepted();
    burst(port, COUNT, 100, "stdout");
    let (numbers, lost) = rsyslogd.wait_for_burst(COUNT);
    assert_eq!(numbers.len() + lost, COUNT);
    assert!(numbers.is_sorted_by(|one, next| one < next));
}

#[test]
fn a_stopped_rsyslogd_holds_up_neither_writers_nor_a_restart() {
    if !can_run() {
        return;
    }
    const COUNT: usize = 100_000;
    let (setup, port) = setup("syslog");
    let rsyslogd = Rsyslogd::start(setup.folder(), ports::udp());
    let server = setup.start();
    server.accepted();
    // Two write at the same time, and the slowest write of both counts.
    let slowest_write = || {
        let flow = Flow::start(port, 100, "stdout", 0);
        let slowest = burst(port, COUNT, 100, "stdout");
        slowest.max(flow.end().slowest)
    };
    let live = slowest_write();
    let usual = {
        let began = Instant::now();
        server.restart();
        began.elapsed()
    };
    rsyslogd.signal(Signal::SIGSTOP);
    // A loaded machine can hold up anybody, but not always.
    let slowest = Cell::new(Duration::MAX);
    wait::until(
        "writes take no longer than with a daemon that reads",
        || format!("{:?}, with one that reads {live:?}", slowest.get()),
        || {
            slowest.set(slowest.get().min(slowest_write()));
            (slowest.get() <= live + Duration::from_millis(100)).then_some(())
        },
    );
    let flow = Flow::start(port, 100, "stdout", 0);
    let mut restarts = 1;
    let quickest = Cell::new(Duration::MAX);
    wait::until(
        "a restart takes no longer than with a daemon that reads",
        || format!("{:?}, with one that reads {usual:?}", quickest.get()),
        || {
            restarts += 1;
            let began = Instant::now();
            server.signal(Signal::SIGHUP);
            let end = "new worker is now running, sending TERM to old workers";
            server.wait_for_log_times(restarts, end);
            quickest.set(quickest.get().min(began.elapsed()));
            (quickest.get() <= usual + Duration::from_secs(1)).then_some(())
        },
    );
    flow.end();
    rsyslogd.signal(Signal::SIGCONT);
    // As long as there is no room, this one is lost too.
    wait::until(
        "it reads again",
        || rsyslogd.evidence(),
        || {
            write(port, "stdout", "it reads again");
            let lines = rsyslogd.lines();
            let is_it = |line: &Line| line.text.ends_with("it reads again");
            lines.iter().rev().take(50).any(is_it).then_some(())
        },
    );
}

#[test]
fn an_rsyslogd_that_is_killed_and_started_again_gets_what_follows_and_the_count_of_the_gap() {
    if !can_run() {
        return;
    }
    const COUNT: usize = 300_000;
    let (setup, port) = setup("syslog");
    let folder = setup.folder().to_owned();
    let server = setup.start();
    server.accepted();
    // Not there yet.
    server.wait_for_log("cannot reach syslog at");
    let rsyslogd = Rsyslogd::start(&folder, ports::udp());
    rsyslogd.wait_for(&format!(
        "start_server (pid:{}) starting now...",
        server.pid()
    ));
    write(port, "stdout", "before");
    rsyslogd.wait_for("gen 1: before");
    rsyslogd.kill();
    burst(port, COUNT, 100, "stdout");
    let rsyslogd = Rsyslogd::start(&folder, ports::udp());
    let (numbers, lost) = rsyslogd.wait_for_burst(COUNT);
    assert_eq!(numbers.len() + lost, COUNT);
    assert!(lost > 0, "the burst was too small to lose anything");
    assert!(numbers.is_sorted_by(|one, next| one < next));
    write(port, "stdout", "after");
    rsyslogd.wait_for("gen 1: after");
    assert_eq!(server.count_in_log("cannot reach syslog at"), 2);
    assert!(proc::alive(server.pid()));
}
