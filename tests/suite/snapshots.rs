//! What a version leaves to the next one: every snapshot that was ever written can be read.
//!
//! `tests/snapshots` has one of each state that was worth it, by each format. A file is added with
//! `E2E_WRITE_SNAPSHOTS=1 cargo test -p e2e --test suite -- snapshots`, and never changed.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use e2e::start::InTurn;
use e2e::{Server, client, folder, programs};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::readiness::with_files;
use crate::upgrade::{Programs, is_ours, upgradable, upgrade};

/// No snapshot of the corpus names a descriptor with this number or a higher one.
pub const MOST_DESCRIPTORS: i32 = 120;

fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots")
}

/// Every snapshot, with its name.
pub fn of_the_corpus() -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(place()).expect("there is no corpus").flatten();
    let mut found: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("cannot read it"))
        })
        .collect();
    found.sort();
    found
}

/// The JSON with the line that has to come before it.
pub fn sealed(json: &[u8]) -> Vec<u8> {
    let checksum = json.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let line = format!("start_server snapshot 1 {} {checksum:016x}\n", json.len());
    [line.as_bytes(), json].concat()
}

/// What a program says to a snapshot, when every descriptor is open that it may name.
pub fn can_resume(program: &Path, snapshot: &[u8]) -> Output {
    let file = memfd_create(c"snapshot", MFdFlags::MFD_CLOEXEC).expect("cannot make a file");
    let mut file = fs::File::from(file);
    std::io::Write::write_all(&mut file, snapshot).expect("cannot write");
    let high = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(MOST_DESCRIPTORS * 4));
    let null: OwnedFd = fs::File::open("/dev/null").expect("no /dev/null").into();
    let null = fcntl(&null, FcntlArg::F_DUPFD_CLOEXEC(MOST_DESCRIPTORS * 4));
    let (high, null) = (high.expect("no descriptor"), null.expect("no descriptor"));
    let mut command = Command::new(program);
    command.arg(format!("--can-resume={MOST_DESCRIPTORS}"));
    with_descriptors(&mut command, high, null);
    command.env_clear();
    let output = command.output_in_turn().expect("cannot run it");
    for number in [high, null] {
        nix::unistd::close(number).expect("it was open");
    }
    output
}

#[expect(unsafe_code, reason = "only a hook can set descriptors for a child")]
fn with_descriptors(command: &mut Command, snapshot: i32, null: i32) {
    let set = move || {
        let numbers = (3..MOST_DESCRIPTORS).map(|number| (null, number));
        for (from, to) in numbers.chain([(snapshot, MOST_DESCRIPTORS)]) {
            // SAFETY: this child executes another program next, so nobody can own what `to` was.
            if unsafe { nix::libc::dup2(from, to) } == -1 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the hook makes system calls only.
    unsafe { command.pre_exec(set) };
}

#[track_caller]
fn assert_read(name: &str, snapshot: &[u8]) {
    let output = can_resume(&programs::start_server(), snapshot);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, error) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{name}: {error}");
    let yes = format!("start_server can resume: {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(said, yes, "{name}");
}

#[test]
fn every_snapshot_of_the_corpus_can_be_read() {
    if !is_ours() {
        return;
    }
    let corpus = of_the_corpus();
    assert!(corpus.len() >= 4, "{}", corpus.len());
    for (name, snapshot) in corpus {
        assert_read(&name, &snapshot);
        // Whatever is wrong with the descriptors is found before anything is taken over.
        let mut command = Command::new(programs::start_server());
        let path = place().join(&name);
        let file = fs::File::open(path).expect("cannot open it");
        let word = format!("--can-resume={}", file.as_raw_fd());
        fcntl(&file, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("it is open");
        let output = command.arg(word).output_in_turn().expect("cannot run it");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(" is not there: "), "{name}: {said}");
    }
}

/// The snapshot of a server in its present state.
#[track_caller]
fn taken(server: &Server, programs: &Programs) -> Vec<u8> {
    programs.replace_by_successor("keep");
    let mut client = upgrade(server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    assert!(client.said().contains("it was kept"), "{}", client.said());
    fs::read(server.folder().join("snapshot")).expect("no snapshot")
}

/// Without anything that is of this machine alone.
fn neutral(server: &Server, snapshot: &[u8]) -> Vec<u8> {
    let start = snapshot.iter().position(|byte| *byte == b'\n');
    let json = &snapshot[start.expect("no line") + 1..];
    let mut value: Value = serde_json::from_slice(json).expect("no JSON");
    let of_server = server.folder().to_str().expect("UTF-8");
    let of_programs = programs::installed().to_str().expect("UTF-8");
    let base = folder::base().to_str().expect("UTF-8");
    let temporary = std::env::temp_dir();
    let pairs = [
        (of_server, "/srv/app"),
        (of_programs, "/usr/local/bin"),
        (base, "/srv"),
        (temporary.to_str().expect("UTF-8"), "/tmp"),
    ];
    let replace = |text: &str| {
        let start = text.to_owned();
        pairs
            .iter()
            .fold(start, |text, (from, to)| text.replace(from, to))
    };
    change_texts(&mut value, &replace);
    sealed(value.to_string().as_bytes())
}

/// Changes every text, also those that serde writes as a list of bytes because they need not be text.
fn change_texts(value: &mut Value, change: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(all) => all.iter_mut().for_each(|one| change_texts(one, change)),
        Value::Object(all) => {
            if let Some(Value::Array(bytes)) = all.get_mut("Unix") {
                let text = bytes
                    .iter()
                    .filter_map(|byte| u8::try_from(byte.as_u64()?).ok());
                let text = String::from_utf8(text.collect()).expect("UTF-8");
                *bytes = change(&text).bytes().map(Value::from).collect();
                return;
            }
            all.values_mut().for_each(|one| change_texts(one, change));
        }
        _ => {}
    }
}

/// What is written now is read, and belongs in the corpus.
#[track_caller]
fn check(server: &Server, programs: &Programs, name: &str) {
    let snapshot = taken(server, programs);
    let neutral = neutral(server, &snapshot);
    assert_read(name, &snapshot);
    assert_read(name, &neutral);
    let text = String::from_utf8(snapshot).expect("UTF-8");
    let version = format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&version), "{text}");
    if std::env::var_os("E2E_WRITE_SNAPSHOTS").is_some() {
        let name = format!("{}-{name}", env!("CARGO_PKG_VERSION"));
        fs::write(place().join(name), neutral).expect("cannot write");
    }
}

#[test]
fn old_current_and_starting_generations_with_their_output() {
    if !is_ours() {
        return;
    }
    let setup = with_files().path("socket").options([
        "--ready=notify",
        "--log-file=server.log",
        "--log-timestamps",
        "--kill-old-timeout=600",
        "--stop-timeout=60",
    ]);
    let port = e2e::ports::tcp();
    let before = "[ $SERVER_STARTER_GENERATION -lt 3 ] || exec sleep 600";
    let setup = crate::readiness::scripted(setup.port(port), before, "--notify");
    let (setup, programs) = upgradable(setup);
    let server = setup.start();
    crate::commands::accepted(&server);
    let _held = client::hold(port);
    server.signal(Signal::SIGHUP);
    server.wait_for_service(2);
    server.wait_for_drain(server.wait_for_service(1));
    client::request(port, "raw stderr 68616c66").expect("no answer");
    server.signal(Signal::SIGHUP);
    server.wait_until("the third one starts", |server| {
        let json = server.status_json();
        json.is_some_and(|json| {
            json["generations"]
                .as_array()
                .is_some_and(|all| all.len() == 3)
        })
    });
    check(&server, &programs, "three-generations");
}

#[test]
fn a_store_and_syslog() {
    if !is_ours() {
        return;
    }
    let setup = with_files();
    let daemon = setup.folder().join("syslog");
    let _daemon = crate::syslog::Daemon::at(&daemon);
    let port = e2e::ports::tcp();
    let setup = setup.port(port).program([programs::keeper()]).options([
        "--ready=notify".to_owned(),
        "--fd-store-max=5".to_owned(),
        "--syslog=local3".to_owned(),
        format!("--syslog-address={}", daemon.display()),
    ]);
    let (setup, programs) = upgradable(setup);
    let server = setup.start();
    server.wait_until_accepted();
    client::request(port, "send memfd 2 FDSTORE=1;FDNAME=one").expect("no answer");
    server.wait_until("they are kept", |server| {
        server
            .status_json()
            .is_some_and(|json| json["fd_store"]["count"] == 2)
    });
    check(&server, &programs, "store");
}

#[test]
fn a_probe_that_is_watched_and_a_delay() {
    if !is_ours() {
        return;
    }
    let setup = with_files().options([
        "--ready=http:/exists/pid",
        "--probe=unix",
        "--watch=5",
        "--kill-old-delay=600",
        "--log-file=| exec cat >>kept",
    ]);
    let port = e2e::ports::tcp();
    let setup = setup.port(port).path("socket").worker(["--graceful"]);
    let (setup, programs) = upgradable(setup);
    let server = setup.start();
    crate::commands::accepted(&server);
    server.signal(Signal::SIGHUP);
    server.wait_until("the first one retires", |server| {
        let json = server.status_json();
        json.is_some_and(|json| json["generations"][0]["state"] == "retiring")
    });
    check(&server, &programs, "probe");
}

#[test]
fn a_check_that_runs_and_a_command_as_proof() {
    if !is_ours() {
        return;
    }
    let setup = with_files().options([
        "--ready=exec:true",
        "--check=echo line; printf half; touch runs; exec sleep 600",
        "--enable-auto-restart",
    ]);
    let port = e2e::ports::tcp();
    let (setup, programs) = upgradable(setup.port(port));
    let server = setup.start();
    crate::commands::accepted(&server);
    server.signal(Signal::SIGHUP);
    server.wait_until("it runs", |server| server.folder().join("runs").exists());
    check(&server, &programs, "check");
}

#[test]
fn lanes_of_two_generations() {
    if !is_ours() {
        return;
    }
    let setup = with_files().options(["--switch", "--kill-old-delay=600"]);
    let (port, datagrams) = (e2e::ports::tcp(), e2e::ports::udp());
    let setup = setup.port(port).path("socket");
    let setup = setup.option(format!("--port=127.0.0.1:u{datagrams}"));
    let (setup, programs) = upgradable(setup);
    let server = setup.start();
    crate::commands::accepted(&server);
    server.signal(Signal::SIGHUP);
    server.wait_until("new connections go to the second one", |server| {
        let json = server.status_json();
        json.is_some_and(|json| {
            json["generations"][0]["state"] == "retiring" && json["switch"]["selected"] == 1
        })
    });
    check(&server, &programs, "lanes");
}

#[test]
fn a_canary_with_its_share() {
    if !is_ours() {
        return;
    }
    let setup = with_files()
        .options(["--switch", "--workers=2"])
        .worker(["--graceful"]);
    let port = e2e::ports::tcp();
    let (setup, programs) = upgradable(setup.port(port));
    let server = setup.start();
    crate::commands::accepted(&server);
    let words = ["--restart", "--canary=10%", "--canary-by=client"];
    let more = ["--canary-time=3600", "--pid-file=pid"];
    let mut client = crate::commands::run(&server, &[&words[..], &more].concat());
    assert_eq!(client.wait(), 0, "{}\n{}", client.said(), server.log());
    check(&server, &programs, "canary");
}
