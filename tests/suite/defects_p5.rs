//! B1 to B31: the defects of Server::Starter 0.35 of Perl.
//!
//! What cannot be provoked from outside, or is kept:
//!
//! * B13, SIGPIPE is ignored in workers: kept, since servers rely on it. The test says that nothing else is ignored.
//! * B21, no limit for failed starts: `--start-limit`, which Server::Starter does not have, has its tests in `restart`.
//! * B22, workers get TERM at INT whatever `--signal-on-term` says: kept, and tested in `restart`.
//! * B23, a comparison with the pid of a worker that there is none of: it only led to a warning of Perl. The other half
//!   of it, strangers taken for old workers, is tested.
//! * B24, socket options whose failure nobody looks at: no kernel refuses them for the sockets that can be asked for.
//!   One IPv4 address for each host name is kept.
//! * B28, the moment in which the umask is 0 while a path is bound: it is shorter than anything that could look into
//!   it. The test says that the mode of a path is what was asked for, which needs no umask.
//! * B29, generations begin at 1 with each start: kept, servers print them. The test says that `--restart` does not
//!   mistake them for those of an earlier server.
//! * B30, only the first line of a variable, empty files and dot files: kept.
//!
//! The tests named after a version are of defects that Server::Starter itself has mended in it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::client;
use e2e::skip::original_differs;
use e2e::{Server, ports, proc, programs};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::defects::{
    FILES, break_it, breakable, client as start_client, code_of, ends_soon, envdir, hup, is_reaped,
    mend_it, original_fails, removable, reporting, serving, soon, take_the_program_away,
    wait_for_reports, wait_until_acted_on, write_for_all,
};
use crate::launch::{as_ordinary_user, launch, ordinary_folder};

/// After a start that failed before the program was executed.
#[track_caller]
fn assert_files_are_in_place(server: &Server, socket: &Path, pid: i32) {
    server.wait_for_log("seems to have failed to start");
    assert_eq!(server.pid_file(), Some(server.pid()), "no pid file");
    let status = server.status_file().expect("no status file");
    assert!(status.starts_with("1:"), "{status}");
    assert_eq!(client::ask(socket).pid, pid);
}

#[test]
fn b01_a_failed_exec_leaves_pid_file_status_file_and_socket_in_place() {
    original_fails("no pid file", || {
        let setup = removable(Server::setup()).pid_file().path("socket");
        let socket = setup.folder().join("socket");
        let (server, old) = serving(setup);
        take_the_program_away(&server);
        hup(&server);
        assert_files_are_in_place(&server, &socket, old.pid.as_raw());
    });
}

#[test]
fn b01_a_failed_chdir_leaves_pid_file_status_file_and_socket_in_place() {
    original_fails("no pid file", || {
        let setup = Server::setup().pid_file().path("socket");
        let (socket, inner) = (setup.folder().join("socket"), setup.folder().join("inner"));
        fs::create_dir(&inner).expect("cannot make the folder");
        let (server, old) = serving(setup.option("--dir=inner").worker(["--graceful"]));
        fs::remove_dir(&inner).expect("cannot remove the folder");
        hup(&server);
        assert_files_are_in_place(&server, &socket, old.pid.as_raw());
    });
}

#[test]
fn b02_a_hup_during_the_interval_does_not_cut_it_short() {
    original_fails("accepted before its interval was over", || {
        let port = ports::tcp();
        let (server, old) = serving(breakable(Server::setup().port(port).interval("3")));
        hup(&server);
        let new = server.wait_for_service(2);
        hup(&server);
        wait_until_acted_on(&server);
        let accepted = server.count_in_log("new worker is now running");
        assert_eq!(accepted, 0, "accepted before its interval was over");
        break_it(&server);
        kill(new.pid, Signal::SIGKILL).expect("cannot kill the worker");
        server.wait_for_log(&format!("new worker {} seems to have failed", new.pid));
        assert_eq!(client::ask(port).pid, old.pid.as_raw());
        assert_eq!(server.caught(old), [""; 0]);
    });
}

#[test]
fn b03_a_new_worker_that_dies_during_the_delay_does_not_take_the_old_one_with_it() {
    original_fails("the old one was stopped", || {
        let port = ports::tcp();
        let setup = Server::setup().port(port).interval("1");
        let (server, old) = serving(breakable(setup.option("--kill-old-delay=2")));
        hup(&server);
        let new = server.wait_for_service(2);
        server.wait_for_log("sleeping 2 secs before killing old workers");
        break_it(&server);
        kill(new.pid, Signal::SIGKILL).expect("cannot kill the worker");
        // The third failure comes more than two seconds after the first.
        server.wait_until("the delay is over", |server| {
            server.log().contains("\nkilling old workers\n")
                || server.count_in_log("seems to have failed to start") >= 3
        });
        let stopped = server.log().contains("\nkilling old workers\n");
        assert!(!stopped, "the old one was stopped");
        assert_eq!(server.caught(old), [""; 0]);
        assert_eq!(client::ask(port).pid, old.pid.as_raw());
    });
}

#[test]
fn b04_a_term_during_the_delay_is_acted_on_at_once() {
    original_fails("in vain until it ended", || {
        let setup = Server::setup().option("--kill-old-delay=1000");
        let (mut server, _) = serving(setup);
        hup(&server);
        server.wait_for_log("sleeping 1000 secs before killing old workers");
        server.signal(Signal::SIGTERM);
        assert!(ends_soon(&mut server).success());
    });
}

#[test]
fn b05_restart_comes_to_an_end_when_a_start_fails() {
    original_fails("in vain until the client ended", || {
        let setup = Server::setup().pid_file().interval("1");
        let (server, _) = serving(breakable(setup));
        break_it(&server);
        let restart = start_client(&server, &["--restart", FILES[0], FILES[1]]);
        server.wait_for_log("seems to have failed to start");
        mend_it(&server);
        server.wait_until(
            "a later generation serves alone",
            |server| matches!(server.generations()[..], [generation] if generation > 2),
        );
        assert_eq!(code_of(&server, restart), Some(1));
    });
}

#[test]
fn b05_restarts_that_overlap_both_come_to_an_end() {
    original_fails("in vain until the client ended", || {
        let port = ports::tcp();
        let setup = Server::setup().pid_file().port(port);
        let (server, first) = serving(setup.worker(["--graceful"]));
        let held = client::hold(port);
        let one = start_client(&server, &["--restart", FILES[0], FILES[1]]);
        server.wait_for_drain(first);
        let two = start_client(&server, &["--restart", FILES[0], FILES[1]]);
        server.wait_for_generations(&[1, 3]);
        held.finish();
        assert_eq!(code_of(&server, one), Some(0));
        assert_eq!(code_of(&server, two), Some(0));
    });
}

#[test]
fn b05_restart_waits_no_longer_than_it_is_told_to() {
    original_fails("not the exit code of a wait that is over", || {
        let port = ports::tcp();
        let setup = Server::setup().pid_file().port(port);
        let (server, _) = serving(setup.worker(["--graceful"]));
        let _held = client::hold(port);
        let arguments = ["--restart", FILES[0], FILES[1], "--timeout=0.5"];
        let code = code_of(&server, start_client(&server, &arguments));
        assert_eq!(code, Some(4), "not the exit code of a wait that is over");
    });
}

#[test]
fn b05_restart_of_a_server_that_was_killed_comes_to_an_end() {
    let (mut server, _) = serving(Server::setup().pid_file());
    server.signal(Signal::SIGKILL);
    server.wait_exit();
    let restart = start_client(&server, &["--restart", FILES[0], FILES[1]]);
    assert_eq!(code_of(&server, restart), Some(3));
}

#[test]
fn b06_a_second_server_with_the_same_pid_file_is_refused_and_the_first_can_be_stopped() {
    original_fails("in vain until it ended", || {
        let (mut server, _) = serving(Server::setup().pid_file());
        let path = server.folder().join("pid");
        let mut second = Server::setup()
            .option(format!("--pid-file={}", path.display()))
            .start();
        assert_eq!(ends_soon(&mut second).code(), Some(1));
        assert_eq!(server.pid_file(), Some(server.pid()));
        let stop = start_client(&server, &["--stop", FILES[0]]);
        assert!(server.wait_exit().success());
        assert_eq!(code_of(&server, stop), Some(0));
    });
}

#[test]
fn b07_a_second_server_with_the_same_path_is_refused_and_the_first_is_still_reached() {
    original_fails("in vain until it ended", || {
        let setup = Server::setup().path("socket");
        let socket = setup.folder().join("socket");
        let (_server, worker) = serving(setup);
        let mut second = Server::setup()
            .option(format!("--path={}", socket.display()))
            .start();
        assert_eq!(ends_soon(&mut second).code(), Some(1));
        assert_eq!(client::ask(&socket).pid, worker.pid.as_raw());
    });
}

/// Waits until start_server either has a worker or has refused to start.
#[track_caller]
fn wait_until_decided(server: &Server) {
    server.wait_until("it has started or ended", |server| {
        !proc::alive(server.pid()) || !server.started().is_empty()
    });
}

#[test]
fn b08_a_file_at_the_path_of_a_socket_is_not_deleted() {
    original_fails("it is gone", || {
        let setup = Server::setup().path("file");
        let path = setup.folder().join("file");
        write_for_all(&path, "precious");
        let server = setup.start();
        wait_until_decided(&server);
        assert_eq!(fs::read_to_string(&path).expect("it is gone"), "precious");
        assert_eq!(server.started(), []);
    });
}

#[test]
fn b09_a_variable_that_is_removed_from_envdir_is_gone_in_the_next_generation() {
    original_fails("it is still there", || {
        let port = ports::tcp();
        let setup = envdir(Server::setup().port(port), &[("COLOUR", "red\n")]);
        let (server, _) = serving(setup);
        assert_eq!(client::ask(port).environment["COLOUR"], "red");
        fs::remove_file(server.folder().join("env/COLOUR")).expect("cannot remove the variable");
        server.restart();
        let found = server.ask(port).environment.get("COLOUR").cloned();
        assert_eq!(found, None, "it is still there");
    });
}

#[test]
fn b10_a_descriptor_that_the_socket_has_anyway_can_be_asked_for() {
    original_fails("is no socket", || {
        // One of them is what the socket has at first.
        for descriptor in 3..8 {
            let port = ports::tcp();
            let setup = Server::setup().option(format!("--port=127.0.0.1:{port}={descriptor}"));
            let server = reporting(setup).start();
            let report = &wait_for_reports(&server, 1)[0];
            let name = format!("127.0.0.1:{port}");
            assert_eq!(report.listeners[0].fd, descriptor);
            assert_eq!(report.socket(&name).address, name);
        }
    });
}

#[test]
fn b11_a_descriptor_that_is_asked_for_is_not_taken_from_another_listener() {
    original_fails("not its own socket", || {
        for descriptor in 3..8 {
            let names = [ports::tcp(), ports::tcp()].map(|port| format!("127.0.0.1:{port}"));
            let setup = Server::setup()
                .option(format!("--port={}", names[0]))
                .option(format!("--port={}={descriptor}", names[1]));
            let server = reporting(setup).start();
            let report = &wait_for_reports(&server, 1)[0];
            for name in &names {
                assert_eq!(report.socket(name).address, *name, "not its own socket");
            }
        }
    });
}

#[test]
fn b12_a_log_command_that_dies_is_started_again_and_no_line_is_lost() {
    original_fails("in vain until the line is in the log", || {
        let port = ports::tcp();
        let setup = Server::setup().port(port);
        let (server, _) = serving(setup.option("--log-file=| exec cat >>out"));
        let out = server.folder().join("out");
        let read = || fs::read_to_string(&out).unwrap_or_default();
        let is_cat = |pid: &_| proc::status(*pid).is_some_and(|it| it.name == "cat");
        let command = server.wait_for("the log command runs", |server| {
            proc::children(server.pid()).into_iter().find(is_cat)
        });
        kill(command, Signal::SIGKILL).expect("cannot kill the log command");
        server.wait_until("it is reaped", |_| is_reaped(command));
        client::request(port, "stderr a line after its death").expect("no answer");
        soon(&server, "the line is in the log", |_| {
            read().contains("\na line after its death\n").then_some(())
        });
        assert!(!read().contains("old worker"), "{}", read());
    });
}

#[test]
fn b13_no_signal_but_sigpipe_is_ignored_or_blocked_in_workers() {
    let port = ports::tcp();
    let (_server, _) = serving(Server::setup().port(port));
    let status = client::ask(port).status;
    assert_eq!(proc::signals(status.ignored), [Signal::SIGPIPE]);
    assert_eq!((status.blocked, status.caught), (0, 0));
}

#[test]
fn b14_daemonize_tells_whether_the_start_has_succeeded() {
    original_fails("it says that all is well", || {
        let daemon = || Server::setup().options(["--daemonize", "--log-file=out"]);
        let missing = daemon().program(["./missing"]).run();
        assert_eq!(missing.status.code(), Some(1), "it says that all is well");
        let line = "start_server: cannot execute ./missing: No such file or directory\n";
        assert!(missing.log.contains(line), "{}", missing.log);

        let unwritable = daemon().option("--pid-file=missing/pid").run();
        assert_eq!(unwritable.status.code(), Some(1), "{}", unwritable.log);

        let failing = daemon().worker(["--exit=3"]).run();
        assert_eq!(failing.status.code(), Some(1), "{}", failing.log);

        let port = ports::tcp();
        let good = daemon().port(port).pid_file().status_file().run();
        assert!(good.status.success(), "{}", good.log);
        assert!(good.server.pid_file().is_some() && good.server.status_file().is_some());
        assert_eq!(client::ask(port).generation, Some(1));
    });
}

#[test]
fn b15_a_worker_that_drains_is_not_signalled_again() {
    original_fails("signalled again", || {
        let port = ports::tcp();
        let (server, first) = serving(Server::setup().port(port).worker(["--graceful"]));
        let held = client::hold(port);
        hup(&server);
        server.wait_for_drain(first);
        hup(&server);
        server.wait_for_generations(&[1, 3]);
        held.finish();
        server.wait_for_generations(&[3]);
        assert_eq!(server.caught(first), ["SIGTERM"], "signalled again");
    });
}

#[test]
fn b16_the_status_file_lists_9_before_10() {
    original_fails("not by number", || {
        let port = ports::tcp();
        let setup = Server::setup().port(port).interval("0");
        let (server, mut newest) = serving(setup.worker(["--graceful"]));
        for generation in 2..=9 {
            hup(&server);
            newest = server.wait_for_service(generation);
            let line = format!("{generation}:{}\n", newest.pid);
            server.wait_until("it is listed alone", |server| {
                server.status_file().as_ref() == Some(&line)
            });
        }
        let _held = client::hold(port);
        hup(&server);
        server.wait_for_drain(newest);
        let listed = server.wait_for("both are listed", |server| {
            let text = server.status_file()?;
            let number = |line: &str| line.split_once(':')?.0.parse::<u32>().ok();
            let numbers: Vec<u32> = text.lines().filter_map(number).collect();
            (numbers.len() == 2).then_some(numbers)
        });
        assert_eq!(listed, [9, 10], "not by number");
    });
}

/// Sends a command to a server whose pid file names a foreign process, which must not be affected.
fn ask_for_a_stranger(option: &str) {
    let (server, stranger) = serving(Server::setup().worker(["--catch=TERM,HUP"]));
    write_for_all(&server.folder().join("pid"), &format!("{}\n", stranger.pid));
    let client = start_client(&server, &[option, FILES[0], FILES[1]]);
    let code = code_of(&server, client);
    assert_eq!(code, Some(3), "not the exit code of a server that is gone");
    assert_eq!(server.caught(stranger), [""; 0]);
    assert!(proc::alive(stranger.pid));
}

#[test]
fn b17_stop_does_not_signal_a_process_that_has_got_the_number_of_the_server() {
    original_fails("not the exit code of a server that is gone", || {
        ask_for_a_stranger("--stop");
    });
}

#[test]
fn b17_restart_does_not_signal_a_process_that_has_got_the_number_of_the_server() {
    original_fails("in vain until the client ended", || {
        ask_for_a_stranger("--restart");
    });
}

#[test]
fn b18_a_term_during_the_interval_does_not_accept_the_new_worker() {
    original_fails("said to run", || {
        let setup = Server::setup().interval("2").worker(["--graceful"]);
        let (mut server, old) = serving(setup);
        hup(&server);
        let new = server.wait_for_service(2);
        assert!(server.stop().success());
        let accepted = server.count_in_log("new worker is now running");
        assert_eq!(accepted, 0, "said to run");
        assert_eq!([server.caught(old), server.caught(new)], [["SIGTERM"]; 2]);
        assert_eq!(server.started(), [old, new]);
    });
}

#[test]
fn b19_auto_restart_can_be_switched_on_by_envdir() {
    original_fails("in vain until it has restarted by itself", || {
        let setup = envdir(Server::setup(), &[("KILL_OLD_DELAY", "0")]);
        let (server, _) = serving(setup);
        let env = server.folder().join("env");
        fs::write(env.join("AUTO_RESTART_INTERVAL"), "3").expect("cannot write a variable");
        fs::write(env.join("ENABLE_AUTO_RESTART"), "1").expect("cannot write a variable");
        hup(&server);
        server.wait_for_generations(&[2]);
        soon(&server, "it has restarted by itself", |server| {
            server.started().into_iter().find(|it| it.generation == 3)
        });
    });
}

#[test]
fn b20_without_an_interval_a_worker_that_dies_at_once_is_not_accepted() {
    original_fails("a dead one was accepted", || {
        let port = ports::tcp();
        let (server, old) = serving(breakable(Server::setup().port(port).interval("0")));
        break_it(&server);
        hup(&server);
        server.wait_until("the start is decided", |server| {
            server.count_in_log("new worker is now running") > 0
                || server.count_in_log("seems to have failed to start") > 0
        });
        let accepted = server.count_in_log("new worker is now running");
        assert_eq!(accepted, 0, "a dead one was accepted");
        assert_eq!(client::ask(port).pid, old.pid.as_raw());
    });
}

/// How long it takes until so many further workers were started, all of which fail.
fn time_of_starts(interval: &str, gaps: usize) -> Duration {
    let setup = Server::setup().interval(interval).worker(["--exit=1"]);
    let server = setup.start();
    server.wait_for_start(1);
    let began = Instant::now();
    server.wait_until("there were more starts", |server| {
        server.started().len() > gaps
    });
    began.elapsed()
}

#[test]
fn b20_without_an_interval_there_is_a_delay_between_failed_starts() {
    original_fails("too fast", || {
        // Half of what is asked for, since the first one may be seen late.
        let time = time_of_starts("0", 4);
        assert!(time >= Duration::from_millis(100), "too fast: {time:?}");
    });
}

#[test]
fn b21_failed_starts_are_tried_ever_later() {
    original_fails("no later than before", || {
        let interval = if programs::another().is_some() {
            1.0
        } else {
            0.2
        };
        let time = time_of_starts(&interval.to_string(), 4).as_secs_f64();
        // 1 + 1.5 + 2.25 + 3.375 intervals, and 4 where each wait is as the first.
        assert!(time > 6.0 * interval, "no later than before: {time}");
    });
}

#[test]
fn b22_quit_ends_workers_and_removes_the_files_as_int_does() {
    original_fails("QUIT has killed it", || {
        let setup = Server::setup().pid_file().path("socket");
        let socket = setup.folder().join("socket");
        let (mut server, worker) = serving(setup);
        server.signal(Signal::SIGQUIT);
        assert!(server.wait_exit().success(), "QUIT has killed it");
        assert!(!proc::alive(worker.pid));
        assert!(!socket.exists() && server.pid_file().is_none());
        assert_eq!(server.status_file(), None);
    });
}

#[test]
fn b22_usr1_and_usr2_do_not_end_it() {
    original_fails("start_server ended before", || {
        let port = ports::tcp();
        let (mut server, _) = serving(Server::setup().port(port));
        for signal in [Signal::SIGUSR1, Signal::SIGUSR2] {
            server.signal(signal);
            server.wait_for_log(&format!("received {}", &signal.as_str()[3..]));
        }
        assert_eq!(client::ask(port).generation, Some(1));
        assert!(server.stop().success());
    });
}

#[test]
fn b23_a_child_that_is_no_worker_is_not_taken_for_one() {
    original_fails("a stranger was taken for a worker", || {
        let folder = ordinary_folder();
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::from_bits_truncate(0o644)).expect("cannot make the fifo");
        // A child that was there before start_server was executed.
        let shell = format!("cat {} & exec \"$0\" \"$@\"", fifo.display());
        let before = [as_ordinary_user(), &["sh", "-c", &shell]].concat();
        let worker = programs::worker();
        let worker = worker.to_str().expect("UTF-8");
        let arguments = ["--interval=1", "--", worker, "--report=report"];
        let mut server = launch(&before, &arguments);
        let worker = server.wait_for_report().pid;
        let stranger = server.wait_for("the stranger runs", || {
            let mut others = proc::children(server.pid()).into_iter();
            others.find(|pid| pid.as_raw() != worker)
        });
        fs::write(&fifo, "").expect("cannot release the stranger");
        server.wait_for("the stranger is reaped", || {
            is_reaped(stranger).then_some(())
        });
        kill(server.pid(), Signal::SIGTERM).expect("cannot stop it");
        assert_eq!(server.wait_exit(), 0);
        let taken = server.log().contains(&stranger.to_string());
        assert!(
            !taken,
            "a stranger was taken for a worker\n{}",
            server.log()
        );
    });
}

#[test]
fn b24_a_port_above_65535_is_refused() {
    original_fails("in vain until it ended", || {
        let port = 65536 + u32::from(ports::tcp());
        let setup = Server::setup().option(format!("--port=127.0.0.1:{port}"));
        let mut server = setup.start();
        assert_eq!(ends_soon(&mut server).code(), Some(2));
    });
}

#[test]
fn b24_an_empty_host_and_a_star_are_all_of_ipv4() {
    for host in ["", "*"] {
        original_fails("start_server ended before", || {
            let port = ports::tcp();
            let setup = Server::setup().option(format!("--port={host}:{port}"));
            let server = setup.start();
            let report = server.ask(port);
            let socket = report.listeners[0].socket.as_ref().expect("no socket");
            assert_eq!(socket.address, format!("0.0.0.0:{port}"));
        });
    }
}

#[test]
fn b25_the_same_port_of_tcp_and_udp_are_two_listeners() {
    let port = ports::tcp();
    let setup = Server::setup().option(format!("--port=127.0.0.1:u{port}"));
    let server = setup.port(port).start();
    let report = server.ask(port);
    let kinds = report.listeners.iter().map(|it| {
        let socket = it.socket.as_ref().expect("no socket");
        (it.name.clone(), socket.kind.clone())
    });
    let name = format!("127.0.0.1:{port}");
    let expected = ["datagram", "stream"].map(|kind| (name.clone(), kind.to_owned()));
    assert_eq!(kinds.collect::<Vec<_>>(), expected);
}

#[test]
fn b25_a_worker_that_takes_its_sockets_by_server_ports_can_tell_udp_from_tcp() {
    if original_differs("its server_ports is a function of Perl, which loses one of the two") {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup().port(port);
    let setup = setup.option(format!("--port=127.0.0.1:u{port}"));
    let server = setup.program([programs::hello()]).start();
    server.wait_for_log(&format!(
        "hello: cannot serve 127.0.0.1:{port}: UDP has no connections"
    ));
}

#[test]
fn b26_a_path_that_server_starter_port_cannot_hold_is_refused() {
    for path in ["a;b", "a=b"] {
        original_fails("in vain until it ended", || {
            let mut server = Server::setup().option(format!("--path={path}")).start();
            assert_eq!(ends_soon(&mut server).code(), Some(2));
            assert!(!server.folder().join(path).exists());
        });
    }
}

#[test]
fn b27_links_in_the_folder_of_the_status_file_are_not_followed() {
    original_fails("a link was followed", || {
        let folder = ordinary_folder();
        let [precious, status] = ["precious", "status"].map(|name| folder.path().join(name));
        write_for_all(&precious, "precious");
        // The pid stays the same at exec, so the name of a temporary file with a pid in it is known.
        let shell = format!(
            "ln -s precious {}.$$ && exec \"$0\" \"$@\"",
            status.display()
        );
        let before = [as_ordinary_user(), &["sh", "-c", &shell]].concat();
        let file = format!("--status-file={}", status.display());
        let worker = programs::worker();
        let worker = worker.to_str().expect("UTF-8");
        let server = launch(&before, &["--interval=1", &file, "--", worker]);
        server.wait_for("there is a status file", || status.exists().then_some(()));
        let found = fs::read_to_string(&precious).expect("cannot read it");
        assert_eq!(found, "precious", "a link was followed");
        let metadata = status.symlink_metadata().expect("no status file");
        assert!(metadata.is_file());
    });
}

#[test]
fn b27_links_in_the_place_of_the_pid_file_are_not_followed() {
    original_fails("a link was followed", || {
        let setup = Server::setup().pid_file();
        let [precious, pid] = ["precious", "pid"].map(|name| setup.folder().join(name));
        write_for_all(&precious, "precious");
        symlink(&precious, &pid).expect("cannot make the link");
        let server = setup.start();
        wait_until_decided(&server);
        let found = fs::read_to_string(&precious).expect("cannot read it");
        assert_eq!(found, "precious", "a link was followed");
    });
}

#[test]
fn b28_the_mode_of_a_path_is_what_was_asked_for() {
    original_fails("no socket at the path", || {
        let setup = Server::setup().umask(0);
        let path = setup.folder().join("socket");
        let option = format!("--path={},mode=0600", path.display());
        let (_server, _) = serving(setup.option(option));
        let metadata = fs::metadata(&path).expect("no socket at the path");
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    });
}

#[test]
fn b29_restart_does_not_go_by_the_generations_of_an_earlier_server() {
    original_fails("in vain until the client ended", || {
        let setup = Server::setup().pid_file().status_file().interval("2");
        write_for_all(&setup.folder().join("status"), "5:1\n");
        let server = setup.start();
        server.wait_for_service(1);
        // Nothing has been accepted yet, so this is still the file of the earlier one.
        let restart = start_client(&server, &["--restart", FILES[0], FILES[1]]);
        assert_eq!(code_of(&server, restart), Some(0));
        assert_eq!(server.generations(), [2]);
    });
}

#[test]
fn b30_envdir_does_not_change_what_start_server_tells_the_worker() {
    original_fails("not what start_server says", || {
        let lies = [
            ("SERVER_STARTER_PORT", "1=99"),
            ("SERVER_STARTER_GENERATION", "77"),
        ];
        let port = ports::tcp();
        let setup = envdir(Server::setup().port(port), &lies);
        let server = reporting(setup.status_file()).start();
        server.wait_until("it is accepted", |server| server.status_file().is_some());
        hup(&server);
        for (report, generation) in wait_for_reports(&server, 2).iter().zip(1..) {
            let told = (report.listeners.first()).map(|listener| listener.name.clone());
            let expected = (Some(format!("127.0.0.1:{port}")), Some(generation));
            assert_eq!(
                (told, report.generation),
                expected,
                "not what start_server says"
            );
        }
    });
}

#[test]
fn b30_a_nul_in_envdir_is_a_line_break() {
    original_fails("cut", || {
        let port = ports::tcp();
        let setup = envdir(Server::setup().port(port), &[("LINES", "one\0two\n")]);
        let (_server, _) = serving(setup);
        assert_eq!(client::ask(port).environment["LINES"], "one\ntwo", "cut");
    });
}

#[test]
fn b31_a_term_that_reaches_a_worker_before_its_program_is_executed_is_not_lost() {
    original_fails("in vain until it ended", || {
        // The program is found at the end of this, which takes long enough to be in time, as a rule.
        let path = format!("{}/usr/bin:/bin:.", "/-:".repeat(40_000));
        let was_in_time = || {
            let setup = Server::setup().interval("1000").env("PATH", &path);
            let fixture = setup.folder().join("fixture");
            symlink(programs::worker(), fixture).expect("cannot make a link");
            let mut server = setup.program(["fixture", "--journal=journal"]).start();
            server.wait_for_log("starting new worker");
            wait_until_acted_on(&server);
            server.signal(Signal::SIGTERM);
            assert!(ends_soon(&mut server).success());
            server.started().is_empty()
        };
        assert!((0..20).any(|_| was_in_time()), "never in time");
    });
}

#[test]
fn v0_04_a_signal_during_the_first_interval_is_acted_on_at_once() {
    let mut server = Server::setup().interval("1000").start();
    server.wait_for_start(1);
    wait_until_acted_on(&server);
    assert!(server.stop().success());
}

#[test]
fn v0_06_an_int_while_starts_fail_ends_it() {
    let mut server = Server::setup().interval("1").worker(["--exit=1"]).start();
    server.wait_for_log("seems to have failed to start");
    server.signal(Signal::SIGINT);
    assert!(server.wait_exit().success());
}

#[test]
fn v0_24_it_ends_although_an_old_worker_still_drains_at_term() {
    let port = ports::tcp();
    let (mut server, old) = serving(Server::setup().port(port).worker(["--graceful"]));
    let held = client::hold(port);
    hup(&server);
    server.wait_for_drain(old);
    let new = server.wait_for_service(2);
    wait_until_acted_on(&server);
    server.signal(Signal::SIGTERM);
    server.wait_for_drain(new);
    held.finish();
    assert!(server.wait_exit().success());
}

#[test]
fn v0_29_a_port_can_be_descriptor_0() {
    let port = ports::tcp();
    let setup = Server::setup().option(format!("--port=127.0.0.1:{port}=0"));
    let server = setup.start();
    let report = server.ask(port);
    assert_eq!(report.listeners[0].fd, 0);
}

#[test]
fn v0_30_a_start_that_fails_leaves_the_status_file_of_another_server() {
    let port = ports::tcp();
    let (server, worker) = serving(Server::setup().port(port));
    let path = server.folder().join("status");
    let mut second = Server::setup()
        .port(port)
        .option(format!("--status-file={}", path.display()))
        .start();
    assert!(!second.wait_exit().success());
    let line = format!("1:{}\n", worker.pid);
    assert_eq!(server.status_file(), Some(line));
}

#[test]
fn v0_31_the_path_of_a_daemon_stays() {
    let setup = Server::setup().options(["--daemonize", "--log-file=out"]);
    let setup = setup.path("socket").pid_file();
    let socket = setup.folder().join("socket");
    let launched = setup.run();
    assert!(launched.status.success(), "{}", launched.log);
    assert_eq!(launched.server.ask(&socket).generation, Some(1));
}

#[test]
fn v0_33_signals_do_not_cut_the_delay_short() {
    let setup = Server::setup().interval("1").option("--kill-old-delay=2");
    let (server, old) = serving(setup.worker(["--graceful"]));
    let began = Instant::now();
    hup(&server);
    server.wait_for_log("sleeping 2 secs before killing old workers");
    hup(&server);
    server.wait_for_drain(old);
    let passed = began.elapsed();
    // The original counts whole seconds, so that each signal may cost it one.
    let least = if programs::another().is_some() { 2 } else { 3 };
    assert!(passed >= Duration::from_secs(least), "{passed:?}");
}
