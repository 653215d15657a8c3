//! start_server as the first process of a container: pid 1, to which the kernel gives every orphan, and for which it
//! ignores every signal that it does not ask for.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::folder::Folder;
use e2e::skip::{needs_program, needs_root};
use e2e::start::InTurn;
use e2e::{proc, programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};

use crate::commands::{Client, is_ours};
use crate::launch::{AS_NOBODY, Launched, install, launch, launch_program};

/// The container: what follows is its first process.
pub const CONTAINER: [&str; 5] = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];

fn can_contain() -> bool {
    is_ours() && needs_root() && needs_program("unshare") && needs_program("nsenter")
}

/// A server of an ordinary user in a container, with these options and this program.
fn contained(options: &[&str], program: &[&str]) -> Launched {
    let before = [&CONTAINER[..], &AS_NOBODY].concat();
    let own = ["--pid-file=pid", "--interval=0"];
    launch(&before, &[&own, options, &["--"], program].concat())
}

/// A shell that does something before it becomes the fixture worker.
fn after(script: &str, worker: &str) -> String {
    let program = programs::worker();
    format!("{script}; exec {} {worker}", program.display())
}

/// The pid of the container's first process, as the test sees it.
pub fn first(launched: &Launched) -> Pid {
    let first = || proc::children(launched.pid()).first().copied();
    launched.wait_for("the container has a first process", || {
        let first = first()?;
        let name = fs::read_to_string(format!("/proc/{first}/comm")).ok()?;
        (name == "start_server\n").then_some(first)
    })
}

/// What somebody in the container asks the server.
fn ask(launched: &Launched, question: &[&str]) -> Client {
    let target = format!("--target={}", first(launched));
    let mut command = Command::new("nsenter");
    command
        .args([&target, "--pid", "--mount"])
        .args(AS_NOBODY)
        .arg(programs::start_server())
        .args(question)
        .arg(format!(
            "--pid-file={}",
            launched.folder().join("pid").display()
        ))
        .current_dir(launched.folder());
    Client::start(command, launched.folder())
}

/// The exit code of `--status`, with what it said.
fn status(launched: &Launched) -> (i32, String) {
    let mut client = ask(launched, &["--status", "--quiet"]);
    (client.wait(), client.said())
}

fn wait_until_it_serves(launched: &Launched) {
    launched.wait_for("it serves", || (status(launched).0 == 0).then_some(()));
}

fn exists(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn orphans_of_workers_are_reaped_and_taken_for_nobody_else() {
    if !can_contain() {
        return;
    }
    // Some end at once, three when they are told to, in sessions of their own.
    let script = "for i in 1 2 3; do (true &); (setsid sleep 1000 &); done";
    let worker = after(script, "--graceful --report=report");
    let launched = contained(&[], &["sh", "-c", &worker]);
    launched.wait_for_report();
    let first = first(&launched);
    let orphans = launched.wait_for("three orphans are left", || {
        let mut found = proc::children(first);
        found.retain(|&pid| proc::session(pid) == Some(pid));
        (found.len() == 3).then_some(found)
    });
    for orphan in orphans {
        kill(orphan, Signal::SIGKILL).expect("cannot kill an orphan");
        launched.wait_for("the orphan is reaped", || (!exists(orphan)).then_some(()));
    }
    launched.wait_for("nobody is left but the worker", || {
        let listed = fs::read_to_string(format!("/proc/{first}/task/{first}/children"));
        let listed = listed.expect("cannot list the children");
        (listed.split_whitespace().count() == 1).then_some(())
    });
    let log = launched.log();
    assert_eq!(log.matches("starting new worker").count(), 1, "{log}");
    assert!(!log.contains("died"), "{log}");
}

#[test]
fn signals_without_a_meaning_reach_nobody() {
    if !can_contain() {
        return;
    }
    let worker = programs::worker();
    let worker = worker.to_str().expect("UTF-8");
    let caught = "--catch=HUP,INT,QUIT,USR1,USR2,ALRM,CONT,WINCH,VTALRM,PROF,IO,PWR,XCPU,XFSZ,TSTP";
    let options = ["--journal=journal", "--graceful", "--report=report", caught];
    let launched = contained(&[], &[&[worker], &options[..]].concat());
    launched.wait_for_report();
    let first = first(&launched);
    let meant = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGKILL,
        Signal::SIGSTOP,
    ];
    // Those of real time too: RTMIN+3 halts a container whose first process is systemd.
    for number in (1..=64).filter(|number| meant.iter().all(|one| *one as i32 != *number)) {
        let sent = Command::new("sh")
            .args(["-c", "kill -$0 $1"])
            .args([number.to_string(), first.to_string()])
            .status_in_turn();
        assert!(sent.expect("cannot run sh").success(), "{number}");
    }
    kill(first, Signal::SIGHUP).expect("cannot send HUP");
    launched.wait_for("the second generation is the only one", || {
        let is_replaced = launched.log().contains("old worker");
        (is_replaced && proc::children(first).len() == 1).then_some(())
    });
    let journal = fs::read_to_string(launched.folder().join("journal")).expect("no journal");
    let words = journal.lines().filter_map(|line| line.split(' ').nth(2));
    let signals = words.filter(|word| word.starts_with("SIG"));
    assert_eq!(signals.collect::<Vec<_>>(), ["SIGTERM"], "{journal}");
    let log = launched.log();
    let mut said: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("received"))
        .map(|line| line.split([',', ':']).next().unwrap_or_default())
        .collect();
    let known = [
        "received HUP",
        "received USR1",
        "received USR2",
        "received XCPU",
    ];
    said.sort_unstable();
    assert_eq!(said, known, "{log}");
}

#[test]
fn it_ends_within_the_grace_period_whoever_ignores_it() {
    if !can_contain() {
        return;
    }
    let script = "trap '' TERM; (setsid sleep 1000 &)";
    let worker = after(script, "--ignore=TERM --report=report");
    let mut launched = contained(&["--stop-timeout=1"], &["sh", "-c", &worker]);
    launched.wait_for_report();
    let first = first(&launched);
    let all = launched.wait_for("the worker and the orphan are there", || {
        let found = proc::children(first);
        (found.len() == 2).then_some(found)
    });
    let told = Instant::now();
    kill(first, Signal::SIGTERM).expect("cannot send TERM");
    assert_eq!(launched.wait_exit(), 0, "{}", launched.log());
    let took = told.elapsed();
    let grace = Duration::from_secs(1)..Duration::from_secs(8);
    assert!(grace.contains(&took), "{took:?}");
    assert!(!all.into_iter().any(proc::alive));
}

/// The kernel does not end the first process at a signal with the default action.
#[test]
fn it_ends_at_once_while_it_starts() {
    if !can_contain() {
        return;
    }
    // Whoever looks for a host name waits for ever.
    let script = "mkfifo -m 666 hosts && mount --bind hosts /etc/hosts && exec \"$@\"";
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let before = [&CONTAINER[..], &["sh", "-c", script, "sh"], &AS_NOBODY].concat();
        let mut launched = launch(&before, &["--port=front.test:8080", "--", "true"]);
        launched.wait_for("it has begun", || {
            launched.log().contains("starting now").then_some(())
        });
        kill(first(&launched), signal).expect("cannot send a signal");
        assert_eq!(launched.wait_exit(), 128 + signal as i32);
    }
}

#[test]
fn the_status_is_that_of_this_container() {
    if !can_contain() {
        return;
    }
    let worker = programs::worker();
    let worker = worker.to_str().expect("UTF-8");
    let ready = "--ready=exec:test -e go";
    let [one, other] = [(); 2].map(|()| {
        let launched = contained(&[ready], &[worker, "--graceful", "--report=report"]);
        launched.wait_for_report();
        let (code, said) = status(&launched);
        assert_eq!(code, 1, "{said}");
        assert!(said.starts_with("starting: generation 1"), "{said}");
        fs::write(launched.folder().join("go"), "").expect("cannot write");
        wait_until_it_serves(&launched);
        launched
    });

    let mut restart = ask(&one, &["--restart", "--timeout=20"]);
    assert_eq!(restart.wait(), 0, "{}", restart.said());
    let (code, said) = status(&one);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("last start: generation 2 committed"),
        "{said}"
    );

    // On a volume, a container that was killed leaves its files to the next one, and both servers are pid 1.
    let json = |launched: &Launched| launched.folder().join("pid.json");
    fs::copy(json(&one), json(&other)).expect("cannot copy the status");
    let (code, said) = status(&other);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("is not the status of that server"), "{said}");
}

#[test]
fn it_does_not_leave_its_container_by_going_into_the_background() {
    if !can_contain() {
        return;
    }
    let mut launched = contained(&["--daemonize", "--log-file=log.file"], &["true"]);
    assert_eq!(launched.wait_exit(), 1);
    let said = "start_server: cannot run in the background: this is pid 1, and with pid 1 all processes of a container \
                end\nhint: leave out --daemonize: the runtime itself runs containers in the background\n";
    assert_eq!(launched.log(), said);
}

#[test]
fn a_binder_with_a_capability_that_the_container_lacks_is_explained() {
    if !can_contain() || !needs_program("setcap") {
        return;
    }
    let folder = Folder::new(Uid::from_raw(0), Gid::from_raw(0));
    let program = install(&programs::start_server(), folder.path(), "start_server");
    let binder = install(&programs::binder(), folder.path(), "start_server-binder");
    let mut set = Command::new("setcap");
    let set = set.arg("cap_net_bind_service=ep").arg(&binder);
    assert!(set.status_in_turn().expect("cannot run setcap").success());
    let before = [&CONTAINER[..], &AS_NOBODY, &["--bounding-set=-all"]].concat();
    let mut launched = launch_program(&before, &program, &["--port=0", "--", "true"]);
    assert_eq!(launched.wait_exit(), 1);
    let said = format!(
        "start_server: cannot run the binder {}: Operation not permitted\n\
         hint: probably the binder has a file capability that is missing in the bounding set: add NET_BIND_SERVICE to \
         the capabilities of the container (--cap-add) or unit (CapabilityBoundingSet=), or take it from the file: \
         `setcap -r`\n",
        binder.display()
    );
    assert_eq!(launched.log(), said);
    // It does work without.
    let before = [&CONTAINER[..], &AS_NOBODY].concat();
    let launched = launch_program(&before, &program, &["--port=0", "--", "sleep", "1000"]);
    wait::until(
        "a worker is started",
        || launched.log(),
        || launched.log().contains("starting new worker").then_some(()),
    );
}
