//! Under the real systemd, which is booted in a root of its own: what `systemctl` says and does.

use std::time::Duration;

use e2e::skip::original_differs;
use e2e::systemd::Systemd;
use e2e::wait;

fn is_ours() -> bool {
    !original_differs("it tells no service manager")
}

/// A unit with these lines in its section of the service.
pub fn service(lines: &[&str]) -> String {
    let log = "StandardError=append:/run/e2e.log";
    format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\n{log}\n{}\n",
        lines.join("\n")
    )
}

fn start_server(options: &str, worker: &str) -> String {
    format!("ExecStart=/e2e/bin/start_server --user=nobody {options} -- /e2e/bin/worker {worker}")
}

/// A shipped unit, for programs and a user that are here, and with as few tries of a restart as possible.
fn shipped(unit: &str, port: u16, folder: &str) -> String {
    let worker = format!("/e2e/bin/worker --exit-if-exists=/run/{folder}/broken");
    unit.replace("[Unit]\n", "[Unit]\nDefaultDependencies=no\n")
        .replace(
            "[Service]\n",
            "[Service]\nStandardError=append:/run/e2e.log\n",
        )
        .replace("www-data", "nobody")
        // The root of the test has neither the users nor the devices that these make.
        .replace("DynamicUser=yes", "User=nobody")
        .replace("PrivateDevices=yes\n", "")
        .replace("ExecStart=", &format!("ExecStart={}/", Systemd::PROGRAMS))
        .replace("/etc/start_server/%i.conf", "/e2e/units/one.conf")
        .replace("/srv/app/server", &worker)
        .replace("--start-limit=3", "--start-limit=1")
        .replace("--port=80", &format!("--port={port}"))
        .replace(":80\n", &format!(":{port}\n"))
}

#[test]
fn the_shipped_units_start_reload_and_stop() {
    if !is_ours() {
        return;
    }
    let by_root = include_str!("../../starter/share/systemd/app.service");
    let by_user = include_str!("../../starter/share/systemd/app-user.service");
    let template = include_str!("../../starter/share/systemd/start_server@.service");
    let socket = include_str!("../../starter/share/systemd/app-socket.socket");
    let by_socket = include_str!("../../starter/share/systemd/app-socket.service");
    let configuration = "SERVER_USER=nobody\nSERVER_OPTIONS=--port=82 --interval=0.5\n\
        SERVER=/e2e/bin/worker --exit-if-exists=/run/start_server-one/broken\n";
    let units = [
        ("app.service", &*shipped(by_root, 80, "app")),
        ("app-user.service", &shipped(by_user, 81, "app-user")),
        (
            "start_server@.service",
            &shipped(template, 82, "start_server-one"),
        ),
        ("one.conf", configuration),
        ("app-socket.socket", &shipped(socket, 83, "app-socket")),
        ("app-socket.service", &shipped(by_socket, 83, "app-socket")),
    ];
    let Some(systemd) = Systemd::boot(&units) else {
        return;
    };
    for (unit, folder, port) in [
        ("app", "app", "0050"),
        ("app-user", "app-user", "0051"),
        ("start_server@one", "start_server-one", "0052"),
        ("app-socket", "app-socket", "0053"),
    ] {
        let property = |name: &str| systemd.property(unit, name);
        systemd.must(["start", unit]);
        assert_eq!(property("ActiveState"), "active", "{}", systemd.log());
        assert_eq!(property("StatusText"), "serving: generation 1, 1 worker");
        let sockets = systemd.run(["cat", "/proc/net/tcp"]);
        let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
        assert!(sockets.contains(&format!("00000000:{port} ")), "{sockets}");
        let main = property("MainPID");

        systemd.must(["reload", unit]);
        systemd.wait_for(unit, "StatusText", "serving: generation 2, 1 worker");
        systemd.wait_for(unit, "ActiveState", "active");

        let broken = format!("/run/{folder}/broken");
        assert!(systemd.run(["touch", &broken]).status.success());
        systemd.must(["reload", unit]);
        let failed = "restart of generation 3 failed: exit status 1; generation 2 serves";
        systemd.wait_for(unit, "StatusText", failed);
        systemd.wait_for(unit, "ActiveState", "active");
        assert_eq!(
            (property("MainPID"), property("NRestarts")),
            (main, "0".into())
        );

        systemd.must(["stop", unit]);
        assert_eq!(property("ActiveState"), "inactive");
        assert_eq!(property("Result"), "success");
    }
}

/// The inode of the socket that listens at port 80.
fn listener(systemd: &Systemd) -> Option<String> {
    let sockets = systemd.run(["cat", "/proc/net/tcp"]);
    let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
    let line = sockets
        .lines()
        .find(|line| line.contains("00000000:0050 "))?;
    line.split_whitespace().nth(9).map(str::to_owned)
}

#[test]
fn a_killed_server_comes_back_with_the_same_sockets() {
    if !is_ours() {
        return;
    }
    let unit = service(&[
        "Type=notify",
        "FileDescriptorStoreMax=64",
        "Restart=on-failure",
        "RestartSec=0",
        &start_server("--port=80", ""),
    ]);
    let Some(systemd) = Systemd::boot(&[("app.service", &unit)]) else {
        return;
    };
    systemd.must(["start", "app"]);
    let first = listener(&systemd);
    assert!(first.is_some(), "{}", systemd.log());
    for kills in 1..=3 {
        let main = systemd.property("app", "MainPID");
        assert!(systemd.run(["kill", "-KILL", &main]).status.success());
        systemd.wait_for("app", "NRestarts", &kills.to_string());
        systemd.wait_for("app", "ActiveState", "active");
        systemd.wait_for("app", "StatusText", "serving: generation 1, 1 worker");
        assert_eq!(listener(&systemd), first, "{}", systemd.log());
    }
    systemd.must(["stop", "app"]);
    assert_eq!(listener(&systemd), None, "nobody keeps it");
}

#[test]
fn a_reload_by_our_own_command_has_its_verdict() {
    if !is_ours() {
        return;
    }
    let unit = service(&[
        "Type=notify",
        "ExecStartPre=/usr/bin/install -d -o nobody /run/app",
        &start_server(
            "--pid-file=/run/app/pid --start-limit=1",
            "--exit-if-exists=/run/app/broken",
        ),
        "ExecReload=/e2e/bin/start_server --restart --pid-file=/run/app/pid --timeout=60",
    ]);
    let Some(systemd) = Systemd::boot(&[("app.service", &unit)]) else {
        return;
    };
    systemd.must(["start", "app"]);
    systemd.must(["reload", "app"]);
    systemd.wait_for("app", "ActiveState", "active");
    systemd.wait_for("app", "StatusText", "serving: generation 2, 1 worker");
    assert!(systemd.run(["touch", "/run/app/broken"]).status.success());
    assert!(!systemd.systemctl(["reload", "app"]).status.success());
    systemd.wait_for("app", "ActiveState", "active");
    let failed = "restart of generation 3 failed: exit status 1; generation 2 serves";
    systemd.wait_for("app", "StatusText", failed);
}

#[test]
fn a_restart_is_seen_while_it_lasts_and_a_reload_waits_for_it() {
    if !is_ours() {
        return;
    }
    let options = "--pid-file=/run/app/pid --ready='exec:test -e /run/app/good'";
    let unit = service(&[
        "Type=notify",
        "ExecStartPre=/usr/bin/install -d -o nobody /run/app",
        "ExecStartPre=/usr/bin/touch /run/app/good",
        &start_server(options, ""),
        "ExecReload=/bin/kill -HUP $MAINPID",
    ]);
    let Some(systemd) = Systemd::boot(&[("app.service", &unit)]) else {
        return;
    };
    systemd.must(["start", "app"]);
    assert!(systemd.run(["rm", "/run/app/good"]).status.success());
    systemd.must(["reload", "--no-block", "app"]);
    let status = "restarting: generation 2 of 1, waiting for its --ready command to succeed";
    systemd.wait_for("app", "StatusText", status);
    systemd.wait_for("app", "ActiveState", "reloading");
    assert!(systemd.run(["touch", "/run/app/good"]).status.success());
    systemd.wait_for("app", "ActiveState", "active");
    systemd.wait_for("app", "StatusText", "serving: generation 2, 1 worker");
}

#[test]
fn a_start_that_fails_shows_its_reason_and_one_that_takes_its_time_is_waited_for() {
    if !is_ours() {
        return;
    }
    let failing = service(&[
        "Type=notify",
        "ExecStart=/e2e/bin/start_server --user=nobody -- /missing",
    ]);
    // Longer than systemd would wait, at both ends.
    let slow = service(&[
        "Type=notify",
        "TimeoutStartSec=1",
        "TimeoutStopSec=1",
        &start_server(
            "--ready='exec:sleep 2.5' --stop-timeout=2.5",
            "--ignore=TERM",
        ),
    ]);
    let units = [("failing.service", &*failing), ("slow.service", &slow)];
    let Some(systemd) = Systemd::boot(&units) else {
        return;
    };
    assert!(!systemd.systemctl(["start", "failing"]).status.success());
    let why = "cannot execute /missing: No such file or directory";
    assert_eq!(systemd.property("failing", "StatusText"), why);
    assert_eq!(systemd.property("failing", "StatusErrno"), "2");
    assert_eq!(systemd.property("failing", "Result"), "exit-code");

    systemd.must(["start", "slow"]);
    systemd.wait_for("slow", "StatusText", "serving: generation 1, 1 worker");
    systemd.must(["stop", "slow"]);
    assert_eq!(
        systemd.property("slow", "Result"),
        "success",
        "{}",
        systemd.log()
    );
}

#[test]
fn a_daemon_is_the_main_process_and_its_watchdog_is_answered() {
    if !is_ours() {
        return;
    }
    let options = |name: &str| {
        let in_folder = |file: &str| format!("/run/{name}/{file}");
        format!(
            "--daemonize --log-file={} --pid-file={}",
            in_folder("log"),
            in_folder("pid")
        )
    };
    let forking = service(&[
        "Type=forking",
        "PIDFile=/run/forking/pid",
        "ExecStartPre=/usr/bin/install -d -o nobody /run/forking",
        &start_server(&options("forking"), ""),
        "ExecReload=/bin/kill -HUP $MAINPID",
        "WatchdogSec=1",
    ]);
    // It introduces itself: there is no PIDFile.
    let notify = service(&[
        "Type=notify",
        "NotifyAccess=all",
        "ExecStartPre=/usr/bin/install -d -o nobody /run/notify",
        &start_server(&options("notify"), ""),
    ]);
    let units = [("forking.service", &*forking), ("notify.service", &notify)];
    let Some(systemd) = Systemd::boot(&units) else {
        return;
    };
    for unit in ["forking", "notify"] {
        systemd.must(["start", unit]);
        let file = systemd.run(["cat", &format!("/run/{unit}/pid")]);
        let pid = String::from_utf8_lossy(&file.stdout).trim_end().to_owned();
        assert_eq!(systemd.property(unit, "MainPID"), pid);
    }
    systemd.must(["reload", "forking"]);
    systemd.wait_for("forking", "StatusText", "serving: generation 2, 1 worker");
    // Twice as long as it would wait.
    wait::let_pass(Duration::from_secs(2));
    for unit in ["forking", "notify"] {
        assert_eq!(systemd.property(unit, "ActiveState"), "active", "{unit}");
        systemd.must(["stop", unit]);
        assert_eq!(systemd.property(unit, "Result"), "success", "{unit}");
    }
}

#[test]
fn a_server_that_serves_nothing_for_too_long_is_ended_by_the_watchdog() {
    if !is_ours() {
        return;
    }
    let unit = service(&[
        "Type=notify",
        "ExecStartPre=/usr/bin/install -d -o nobody /run/app",
        &start_server(
            "--pid-file=/run/app/pid",
            "--exit-if-exists=/run/app/broken",
        ),
        "WatchdogSec=1",
    ]);
    let Some(systemd) = Systemd::boot(&[("app.service", &unit)]) else {
        return;
    };
    systemd.must(["start", "app"]);
    wait::let_pass(Duration::from_secs(2));
    assert_eq!(systemd.property("app", "ActiveState"), "active");
    let kill =
        "touch /run/app/broken && kill -KILL $(cat /proc/$(cat /run/app/pid)/task/*/children)";
    assert!(systemd.run(["sh", "-c", kill]).status.success());
    systemd.wait_for("app", "Result", "watchdog");
}
