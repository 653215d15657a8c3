//! An upgrade in place while something else is under way: it ends as it would have without.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::chown;
use std::path::Path;

use e2e::client::Load;
use e2e::server::NOBODY;
use e2e::{Server, Setup, client, ports, proc, wait};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, Uid, mkfifo};

use crate::commands::{Client, accepted, run};
use crate::readiness::{Gate, gated, scripted, with_files};
use crate::upgrade::{Programs, is_ours, open_files, serving, upgradable, upgrade, upgraded};

fn restart(server: &Server) -> Client {
    run(server, &["--restart", "--pid-file=pid"])
}

/// Waits until this generation has a worker, which has proved nothing yet.
#[track_caller]
fn wait_for_start(server: &Server, generation: u64) {
    server.wait_until("a generation starts", |server| {
        server.status_json().is_some_and(|json| {
            let mut generations = json["generations"].as_array().into_iter().flatten();
            generations.any(|one| {
                let has_worker = one["workers"].as_array().is_some_and(|all| !all.is_empty());
                one["number"] == generation && has_worker
            })
        })
    });
}

fn fifo(folder: &Path, name: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("cannot make a FIFO");
    let owner = Uid::effective().is_root().then_some(NOBODY);
    chown(&path, owner, None).expect("cannot give the FIFO away");
    path
}

/// Lets whoever reads this FIFO go on.
fn open_gate(path: &Path) {
    let gate = OpenOptions::new().write(true).open(path);
    std::io::Write::write_all(&mut gate.expect("cannot open the gate"), b"\n")
        .expect("cannot open the gate");
}

#[test]
fn a_hundred_upgrades_under_load_fail_no_request() {
    if !is_ours() {
        return;
    }
    let (mut server, programs, port) = serving(with_files().worker(["--graceful"]));
    let pid = server.pid();
    let open = open_files(pid).len();
    let load = Load::start(port, 16);
    for number in 1..=100 {
        programs.replace_by_version(number % 2 == 1);
        let restarting = (number % 10 == 0).then(|| restart(&server));
        upgraded(&server);
        if let Some(mut client) = restarting {
            assert_eq!(client.wait(), 0, "{}", client.said());
        }
        load.wait_for_more(10);
    }
    let outcome = load.stop();
    assert_eq!(outcome.failures, [""; 0]);
    assert_eq!(server.ask(port).generation, Some(11));
    let json = server.status_json().expect("no status");
    assert_eq!(json["upgrades"]["tried"], 100);
    assert_eq!(json["supervisor"]["pid"], pid.as_raw());
    assert_eq!(open_files(pid).len(), open);
    assert!(server.stop().success());
}

/// Each kind of proof, of a generation that is held at a gate until it is upgraded.
fn each_proof(test: impl Fn(&str, Setup, &dyn Fn(Setup) -> (Setup, Gate))) {
    for ready in [
        "interval",
        "notify",
        "fd:9",
        "exec:test $SERVER_STARTER_GENERATION = 1 || test -e go",
        "accept",
        "http:/exists/pid",
    ] {
        let setup = with_files().option(format!("--ready={ready}"));
        let arguments = if ready == "notify" { "--notify" } else { "" };
        let say = if ready == "fd:9" {
            "echo >&9; exec 9>&-;"
        } else {
            ""
        };
        test(ready, setup, &|setup| {
            let gate = fifo(setup.folder(), "gate");
            let before = format!(
                "[ $SERVER_STARTER_GENERATION = 1 ] || read x <{}; {say} :",
                gate.display()
            );
            (scripted(setup, &before, arguments), Gate::at(gate))
        });
    }
}

#[test]
fn a_start_that_is_not_ready_yet_commits_after_an_upgrade() {
    if !is_ours() {
        return;
    }
    each_proof(|ready, setup, gated| {
        let setup = match ready {
            // Longer than the upgrades take, however busy the machine is.
            "interval" => setup.interval("8"),
            _ => setup,
        };
        let (setup, gate) = gated(setup);
        let (mut server, programs, port) = serving(setup);
        let mut client = restart(&server);
        wait_for_start(&server, 2);
        programs.replace_by_version(true);
        for _ in 0..2 {
            upgraded(&server);
            assert_eq!(server.ask(port).generation, Some(1), "{ready}");
        }
        assert!(client.is_waiting(), "{ready}: {}", client.said());
        gate.open();
        if ready.starts_with("exec") {
            server.wait_for_service(2);
            assert!(client.is_waiting(), "{ready}: {}", client.said());
            fs::write(server.folder().join("go"), "").expect("cannot write");
        }
        assert_eq!(client.wait(), 0, "{ready}: {}", client.said());
        server.wait_until("the second generation answers", |_| {
            client::try_ask(port).is_ok_and(|report| report.generation == Some(2))
        });
        upgraded(&server);
        // What the generation was asked by works for the next one too.
        let mut client = restart(&server);
        wait_for_start(&server, 3);
        gate.open();
        assert_eq!(client.wait(), 0, "{ready}: {}", client.said());
        assert!(server.stop().success(), "{ready}");
    });
}

#[test]
fn a_start_that_is_never_ready_fails_after_an_upgrade_at_the_same_time() {
    if !is_ours() {
        return;
    }
    each_proof(|ready, setup, gated| {
        if ready == "interval" {
            return;
        }
        let setup = setup.options(["--start-timeout=3", "--start-limit=1"]);
        let (setup, _gate) = gated(setup);
        let (server, programs, port) = serving(setup);
        let mut client = restart(&server);
        wait_for_start(&server, 2);
        programs.replace_by_version(true);
        upgraded(&server);
        assert_eq!(client.wait(), 1, "{ready}: {}", client.said());
        let expected = "was not ready within 3 secs: ";
        assert!(
            client.said().contains(expected),
            "{ready}: {}",
            client.said()
        );
        assert_eq!(server.ask(port).generation, Some(1), "{ready}");
        server.wait_for_generations(&[1]);
    });
}

#[test]
fn a_worker_that_dies_before_it_is_ready_has_failed_though_nobody_watched() {
    if !is_ours() {
        return;
    }
    let (setup, gate) = gated(
        with_files().options(["--ready=notify", "--start-limit=1"]),
        "--exit=7",
    );
    // The first one says so itself.
    let setup = setup.without_program();
    let before =
        "[ $SERVER_STARTER_GENERATION = 1 ] || { read x <gate; echo last words >&2; exit 7; }";
    let (server, programs, port) = serving(scripted(setup, before, "--notify"));
    let mut client = restart(&server);
    wait_for_start(&server, 2);
    let dying = server.status_json().expect("no status")["generations"][1]["workers"][0]["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok())
        .map(Pid::from_raw)
        .expect("a pid");
    programs.replace_by_version(true);
    // It dies between the snapshot and the exec, as far as a test can bring that about.
    proc::stop(server.pid());
    server.signal(Signal::SIGUSR2);
    gate.open();
    server.wait_until("it has died", |_| !proc::alive(dying));
    server.signal(Signal::SIGCONT);
    assert_eq!(client.wait(), 1, "{}", client.said());
    assert!(client.said().contains("(exit code 7)"), "{}", client.said());
    server.wait_for_log("upgraded in place");
    assert_eq!(server.ask(port).generation, Some(1));
}

#[test]
fn an_old_worker_drains_through_an_upgrade() {
    if !is_ours() {
        return;
    }
    let (server, programs, port) = serving(with_files().worker(["--graceful"]));
    let first = server.wait_for_service(1);
    let held = client::hold(port);
    let mut client = restart(&server);
    server.wait_for_drain(first);
    programs.replace_by_version(true);
    upgraded(&server);
    assert!(client.is_waiting(), "{}", client.said());
    let json = server.status_json().expect("no status");
    assert_eq!(json["generations"][0]["state"], "old");
    assert_eq!(held.finish().generation, Some(1));
    assert_eq!(client.wait(), 0, "{}", client.said());
    server.wait_for_log(&format!("old worker {} died, status:0", first.pid));
    server.wait_for_generations(&[2]);
}

#[test]
fn old_workers_are_killed_after_an_upgrade_when_their_time_is_over() {
    if !is_ours() {
        return;
    }
    let (server, programs, port) = serving(
        with_files()
            .worker(["--graceful"])
            .option("--kill-old-timeout=6"),
    );
    let first = server.wait_for_service(1);
    let _held = client::hold(port);
    server.signal(Signal::SIGHUP);
    server.wait_for_drain(first);
    programs.replace_by_version(true);
    upgraded(&server);
    assert_eq!(server.generations(), [1, 2]);
    server.wait_for_log(&format!(
        "sending KILL to workers that have not stopped in time:{}",
        first.pid
    ));
    server.wait_for_generations(&[2]);
}

#[test]
fn the_delay_before_old_workers_are_told_goes_on() {
    if !is_ours() {
        return;
    }
    let (server, programs, _) = serving(
        with_files()
            .worker(["--graceful"])
            .option("--kill-old-delay=6"),
    );
    let first = server.wait_for_service(1);
    let mut client = restart(&server);
    server.wait_until("the new generation serves", |server| {
        server
            .status_json()
            .is_some_and(|json| json["generations"][0]["state"] == "retiring")
    });
    programs.replace_by_version(true);
    upgraded(&server);
    let json = server.status_json().expect("no status");
    assert_eq!(json["generations"][0]["state"], "retiring");
    assert!(client.is_waiting());
    assert_eq!(client.wait(), 0, "{}", client.said());
    assert_eq!(server.caught(first), ["SIGTERM"]);
    server.wait_for_generations(&[2]);
}

#[test]
fn a_start_that_has_failed_is_tried_again_after_an_upgrade() {
    if !is_ours() {
        return;
    }
    let setup = with_files().interval("1");
    let bad = setup.folder().join("bad");
    let worker = format!("--exit-if-exists={}", bad.display());
    let (server, programs, port) = serving(setup.worker([worker]));
    fs::write(&bad, "").expect("cannot write");
    server.signal(Signal::SIGHUP);
    server.wait_until("the next start is planned", |server| {
        server
            .status_json()
            .is_some_and(|json| json["next_start_at"].is_number())
    });
    programs.replace_by_version(true);
    let planned = server.status_json().expect("no status")["next_start_at"].clone();
    upgraded(&server);
    let now = server.status_json().expect("no status")["next_start_at"].clone();
    if let Some((then, now)) = planned.as_f64().zip(now.as_f64()) {
        assert!((now - then).abs() < 0.1 || now > then + 0.9, "{then} {now}");
    }
    fs::remove_file(&bad).expect("cannot remove it");
    server.wait_until("a later generation serves", |_| {
        client::try_ask(port).is_ok_and(|report| report.generation > Some(2))
    });
}

#[test]
fn a_check_that_runs_decides_after_an_upgrade() {
    if !is_ours() {
        return;
    }
    for (end, code) in [("exit 0", 0), ("exit 3", 1)] {
        let setup = with_files();
        let gate = fifo(setup.folder(), "gate");
        let check = format!("printf 'the first '; touch runs; read x <gate; echo line; {end}");
        let (server, programs, port) = serving(setup.option(format!("--check={check}")));
        let mut client = restart(&server);
        server.wait_until("it runs", |server| server.folder().join("runs").exists());
        programs.replace_by_version(true);
        upgraded(&server);
        assert!(client.is_waiting(), "{}", client.said());
        open_gate(&gate);
        assert_eq!(client.wait(), code, "{}", client.said());
        if code == 1 {
            let said = client.said();
            assert!(said.contains("the first line"), "{said}");
            assert!(said.contains("(exit code 3)"), "{said}");
        }
        let expected = if code == 0 { Some(2) } else { Some(1) };
        server.wait_until("the right generation serves", |_| {
            client::try_ask(port).is_ok_and(|report| report.generation == expected)
        });
        let none_of_it = |pid: &Pid| !proc::environment(*pid).contains_key("SERVER_STARTER_PORT");
        let children = proc::children(server.pid());
        assert_eq!(children.iter().filter(|pid| none_of_it(pid)).count(), 0);
    }
}

#[test]
fn stop_first_goes_on_with_the_start() {
    if !is_ours() {
        return;
    }
    let (server, programs, port) = serving(
        with_files()
            .worker(["--graceful"])
            .option("--replace=stop-first"),
    );
    let first = server.wait_for_service(1);
    let held = client::hold(port);
    let mut client = restart(&server);
    server.wait_for_drain(first);
    programs.replace_by_version(true);
    upgraded(&server);
    assert_eq!(server.generations(), [1]);
    assert!(client.is_waiting());
    held.finish();
    assert_eq!(client.wait(), 0, "{}", client.said());
    assert_eq!(server.ask(port).generation, Some(2));
}

#[test]
fn a_server_that_is_stopping_is_not_upgraded() {
    if !is_ours() {
        return;
    }
    let (mut server, programs, port) = serving(
        with_files()
            .worker(["--graceful"])
            .option("--stop-timeout=60"),
    );
    let first = server.wait_for_service(1);
    let held = client::hold(port);
    server.signal(Signal::SIGTERM);
    server.wait_for_drain(first);
    programs.replace_by_version(true);
    let mut client = upgrade(&server);
    assert_eq!(client.wait(), 1, "{}", client.said());
    let pid = server.pid();
    let line = format!("start_server: cannot upgrade pid {pid}: the server is stopping\n");
    assert!(client.said().ends_with(&line), "{}", client.said());
    assert_eq!(held.finish().generation, Some(1));
    assert!(server.wait_exit().success(), "{}", server.log());
    assert_eq!(server.count_in_log("upgraded in place"), 0);
}

#[test]
fn what_is_tried_holds_up_neither_a_restart_nor_a_stop() {
    if !is_ours() {
        return;
    }
    let (mut server, programs, port) = serving(with_files());
    programs.replace_by_successor("hang");
    let mut client = upgrade(&server);
    let tried = wait_for_rehearsal(&server, &programs);
    assert_eq!(restart(&server).wait(), 0);
    assert_eq!(server.ask(port).generation, Some(2));
    assert!(server.stop().success());
    assert_eq!(client.wait(), 1, "{}", client.said());
    wait::until("it is gone", String::new, || {
        (!proc::alive(tried)).then_some(())
    });
}

/// The child that tries what lies there.
#[track_caller]
fn wait_for_rehearsal(server: &Server, programs: &Programs) -> Pid {
    server.wait_for("it is tried", |server| {
        let runs_it = |pid: &Pid| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|it| it == programs.start_server())
        };
        proc::children(server.pid()).into_iter().find(runs_it)
    })
}

#[test]
fn a_daemon_whose_first_generation_starts_has_its_verdict_after_an_upgrade() {
    if !is_ours() {
        return;
    }
    for (end, code) in [(":", 0), ("exit 7", 1)] {
        let setup = with_files();
        let gate = fifo(setup.folder(), "gate");
        let setup = setup.options([
            "--daemonize",
            "--log-file=server.log",
            "--ready=notify",
            "--start-limit=1",
        ]);
        let before = format!("read x <{}; {end}", gate.display());
        let port = ports::tcp();
        let (setup, programs) = upgradable(scripted(setup.port(port), &before, "--notify"));
        let mut server = setup.start();
        wait_for_start(&server, 1);
        programs.replace_by_version(true);
        upgraded(&server);
        assert!(proc::alive(server.pid()), "its launcher has gone");
        open_gate(&gate);
        assert_eq!(server.wait_exit().code(), Some(code), "{}", server.log());
        if code == 1 {
            assert!(server.log().contains("(exit code 7)"), "{}", server.log());
            continue;
        }
        assert_eq!(server.ask(port).generation, Some(1));
        upgraded(&server);
        let mut stop = run(&server, &["--stop", "--pid-file=pid"]);
        assert_eq!(stop.wait(), 0, "{}", stop.said());
        assert!(!server.folder().join("pid").exists());
    }
}

#[test]
fn a_generation_that_becomes_unhealthy_after_an_upgrade_is_noticed() {
    if !is_ours() {
        return;
    }
    let setup = with_files().options(["--ready=http:/exists/go", "--watch=0.4"]);
    fs::write(setup.folder().join("go"), "").expect("cannot write");
    let (server, programs, _) = serving(scripted(setup, ":", ""));
    programs.replace_by_version(true);
    upgraded(&server);
    fs::remove_file(server.folder().join("go")).expect("cannot remove it");
    server.wait_for_log("has been unhealthy for 0.4 secs: GET /exists/go");
    upgraded(&server);
    let mut status = run(&server, &["--status", "--pid-file=pid"]);
    assert_eq!(status.wait(), 1, "{}", status.said());
    fs::write(server.folder().join("go"), "").expect("cannot write");
    server.wait_until("it is well again", |server| {
        run(server, &["--status", "--pid-file=pid"]).wait() == 0
    });
    assert_eq!(server.count_in_log("has been unhealthy"), 1);
    accepted(&server);
}
