//! Under the real systemd: what replaces or kills start_server, or a part of it, costs no request, and the unit stays well.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use e2e::client::{At, Load};
use e2e::skip::original_differs;
use e2e::systemd::Systemd;
use e2e::{proc, programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::guardian::random;
use crate::systemd::service;
use crate::upgrade::newer;

/// The line of a log that ends what a kill has begun.
const REVIVED: &str = "; a new one goes on with its ";

fn is_ours() -> bool {
    !original_differs(
        "it can neither be upgraded in place nor keep its listeners when it is killed",
    )
}

/// A unit whose workers finish what they have begun.
fn unit(name: &str, port: u16, options: &str, lines: &[&str]) -> String {
    let start = format!(
        "ExecStart=/e2e/bin/start_server --user=nobody --port=127.0.0.1:{port} --path=/run/{name}/sock \
         --pid-file=/run/{name}/pid --status-file=/run/{name}/status {options} -- /e2e/bin/worker --graceful"
    );
    let folder = format!("ExecStartPre=/usr/bin/install -d -o nobody /run/{name}");
    let mut all = vec![
        "Type=notify",
        &*folder,
        &start,
        "ExecReload=/bin/kill -HUP $MAINPID",
        "WatchdogSec=2",
    ];
    all.extend(lines);
    service(&all).replace("[Service]\n", "StartLimitIntervalSec=0\n[Service]\n")
}

/// A started unit, and clients of both its listeners.
struct Served<'a> {
    systemd: &'a Systemd,
    name: &'static str,
    loads: [Load; 2],
}

impl<'a> Served<'a> {
    #[track_caller]
    fn start(systemd: &'a Systemd, name: &'static str, port: u16) -> Served<'a> {
        systemd.must(["start", name]);
        let sock = systemd.file(&format!("/run/{name}/sock"));
        let served = Served {
            systemd,
            name,
            loads: [At::from(port), At::from(&sock)]
                .map(|at| systemd.in_network(|| Load::start_paced(at, 2))),
        };
        served.answers();
        served
    }

    #[track_caller]
    fn answers(&self) {
        self.loads.iter().for_each(|load| load.wait_for_more(8));
    }

    fn property(&self, name: &str) -> String {
        self.systemd.property(self.name, name)
    }

    #[track_caller]
    fn wait_for(&self, name: &str, value: &str) {
        self.systemd.wait_for(self.name, name, value);
    }

    #[track_caller]
    fn wait_for_generation(&self, generation: u32) {
        self.wait_for("ActiveState", "active");
        let status = format!("serving: generation {generation}, 1 worker");
        self.wait_for("StatusText", &status);
    }

    #[track_caller]
    fn reload(&self, generation: u32) {
        self.systemd.must(["reload", self.name]);
        self.wait_for_generation(generation);
        self.answers();
    }

    #[track_caller]
    fn main_process(&self) -> Pid {
        let main = self.systemd.main_process(self.name);
        main.unwrap_or_else(|| panic!("{} has no main process: {}", self.name, self.log()))
    }

    /// The program that supervises, under a guardian.
    #[track_caller]
    fn supervisor(&self) -> Pid {
        let main = self.main_process();
        wait::until(
            "a supervisor lives",
            || self.log(),
            || {
                let children = proc::children(main).into_iter();
                let mut found = children
                    .filter(|pid| proc::status(*pid).is_some_and(|it| it.name == "start_server"));
                found.next()
            },
        )
    }

    /// Waits until another ping of the watchdog has come.
    #[track_caller]
    fn is_pinged(&self) {
        let before = self.property("WatchdogTimestampMonotonic");
        wait::until(
            "the watchdog is pinged",
            || self.log(),
            || (self.property("WatchdogTimestampMonotonic") != before).then_some(()),
        );
    }

    /// Runs a command of start_server on it.
    fn command(&self, words: &[&str]) -> (Option<i32>, String) {
        let file = format!("--pid-file=/run/{}/pid", self.name);
        let words = words.iter().copied().chain([&*file]);
        let output = (self.systemd).run(["/e2e/bin/start_server"].into_iter().chain(words));
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into())
    }

    fn log(&self) -> String {
        self.systemd.log()
    }

    /// What `FILE.json` calls the version that runs.
    fn version(&self) -> String {
        let file = format!("/run/{}/status.json", self.name);
        let text = fs::read(self.systemd.file(&file)).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        json["supervisor"]["version"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Ends the clients. Not one of their requests may have failed.
    #[track_caller]
    fn lost_nothing(self) -> Stopped<'a> {
        self.answers();
        let log = self.log();
        for outcome in self.loads.map(Load::stop) {
            let first: Vec<&String> = outcome.failures.iter().take(10).collect();
            assert!(first.is_empty(), "{}: {first:?}\n{log}", self.name);
        }
        Stopped(self.systemd, self.name)
    }
}

/// A unit that nobody uses any more.
struct Stopped<'a>(&'a Systemd, &'static str);

impl Stopped<'_> {
    /// Stops it: nothing is left over.
    #[track_caller]
    fn stop(self) {
        let Stopped(systemd, unit) = self;
        systemd.must(["stop", unit]);
        assert_eq!(systemd.property(unit, "ActiveState"), "inactive");
        assert_eq!(
            systemd.property(unit, "Result"),
            "success",
            "{}",
            systemd.log()
        );
        assert_eq!(systemd.processes(unit), []);
        for name in ["sock", "pid", "pid.json", "status", "status.json"] {
            let left = systemd.file(&format!("/run/{unit}/{name}"));
            assert!(left.symlink_metadata().is_err(), "{name} is left");
        }
    }
}

/// What can lie in the place of start_server, each with its version.
fn versions() -> [(PathBuf, String); 2] {
    let built = (
        programs::start_server(),
        env!("CARGO_PKG_VERSION").to_owned(),
    );
    [newer().clone(), built]
}

#[test]
fn an_upgrade_keeps_the_unit_its_main_process_and_its_watchdog() {
    if !is_ours() {
        return;
    }
    let plain = unit("plain", 80, "", &[]);
    let guarded = unit("guarded", 81, "--guardian", &["NotifyAccess=all"]);
    let units = [("plain.service", &*plain), ("guarded.service", &guarded)];
    let Some(systemd) = Systemd::boot(&units) else {
        return;
    };
    let units = [("plain", 80), ("guarded", 81)];
    let served = units.map(|(name, port)| Served::start(&systemd, name, port));
    let mains = served.each_ref().map(|one| one.property("MainPID"));
    for round in 0..6 {
        let (program, version) = &versions()[round % 2];
        systemd.replace_program(program);
        for (one, main) in served.iter().zip(&mains) {
            let tried = systemd.log().matches("resumes").count();
            match round % 4 {
                0 | 3 => {
                    let (code, said) = one.command(&["--upgrade"]);
                    assert_eq!(code, Some(0), "{said}\n{}", one.log());
                }
                _ => assert!(systemd.run(["kill", "-USR2", main]).status.success()),
            }
            wait::until(
                &format!("{version} goes on, after {tried}"),
                || format!("{}: {}", one.version(), one.log()),
                || (one.version() == *version).then_some(()),
            );
            assert_eq!(one.property("ActiveState"), "active");
            one.is_pinged();
            one.reload(u32::try_from(round).expect("a few") + 2);
        }
    }
    // One that cannot take over changes nothing.
    systemd.replace_program(std::path::Path::new("/bin/true"));
    for one in &served {
        assert!(
            systemd
                .run(["kill", "-USR2", &one.property("MainPID")])
                .status
                .success()
        );
    }
    wait::until(
        "both have refused it",
        || systemd.log(),
        || {
            (systemd
                .log()
                .matches("it does not know how to resume")
                .count()
                >= 2)
                .then_some(())
        },
    );
    systemd.replace_program(&programs::start_server());
    // Longer than the watchdog would wait.
    wait::let_pass(Duration::from_secs(3));
    for (one, main) in served.into_iter().zip(mains) {
        one.reload(8);
        let now = ["MainPID", "NRestarts", "ActiveState"].map(|name| one.property(name));
        assert_eq!(now, [main, "0".into(), "active".into()], "{}", one.log());
        one.lost_nothing().stop();
    }
}

#[test]
fn twenty_kills_of_a_server_whose_listeners_are_kept_refuse_nobody() {
    if !is_ours() {
        return;
    }
    let again = [
        "FileDescriptorStoreMax=64",
        "Restart=on-failure",
        "RestartSec=0",
    ];
    let plain = unit("plain", 80, "", &again);
    let guarded = [&again[..], &["NotifyAccess=all"]].concat();
    let guarded = unit("guarded", 81, "--guardian", &guarded);
    let units = [("plain.service", &*plain), ("guarded.service", &guarded)];
    let Some(systemd) = Systemd::boot(&units) else {
        return;
    };
    for (name, port) in [("plain", 80), ("guarded", 81)] {
        let one = Served::start(&systemd, name, port);
        for kills in 1..=20 {
            wait::let_pass(Duration::from_micros(random(50_000)));
            // In the middle of a restart, too.
            if kills % 4 == 0 {
                kill(one.main_process(), Signal::SIGHUP).expect("it is gone");
            }
            // With a guardian that is it: systemd ends the supervisor with the rest.
            kill(one.main_process(), Signal::SIGKILL).expect("it is gone");
            one.wait_for("NRestarts", &kills.to_string());
            one.wait_for_generation(1);
            one.answers();
        }
        one.reload(2);
        one.is_pinged();
        one.lost_nothing().stop();
    }
}

#[test]
fn with_a_guardian_the_unit_does_not_notice_that_its_supervisor_is_killed() {
    if !is_ours() {
        return;
    }
    let plain = unit("plain", 80, "--guardian", &["NotifyAccess=all"]);
    let kept = [
        "NotifyAccess=all",
        "FileDescriptorStoreMax=64",
        "Restart=on-failure",
        "RestartSec=0",
    ];
    let kept = unit("kept", 81, "--guardian", &kept);
    let units = [("plain.service", &*plain), ("kept.service", &kept)];
    let Some(systemd) = Systemd::boot(&units) else {
        return;
    };
    for (name, port) in [("plain", 80), ("kept", 81)] {
        let one = Served::start(&systemd, name, port);
        let main = one.property("MainPID");
        let begun = Instant::now();
        let mut generation = 1;
        // The fifth within a minute would be the last.
        for _ in 0..4 {
            wait::let_pass(Duration::from_micros(random(100_000)));
            let before = one.supervisor();
            kill(before, Signal::SIGKILL).expect("it is gone");
            wait::until(
                "another one lives",
                || one.log(),
                || (one.supervisor() != before).then_some(()),
            );
            assert_eq!(one.property("ActiveState"), "active", "{}", one.log());
            one.is_pinged();
            generation += 1;
            one.reload(generation);
        }
        let revived = one.log().matches(REVIVED).count();
        assert!(revived >= 4, "{}", one.log());
        let now = ["MainPID", "NRestarts"].map(|name| one.property(name));
        assert_eq!(now, [main.clone(), "0".into()], "{}", one.log());
        let (code, said) = one.command(&["--status"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(&format!("pid {main}")), "{said}");
        let (code, said) = one.command(&["--restart"]);
        assert_eq!(code, Some(0), "{said}");
        // On a machine that is too slow for five within a minute it would be like the others.
        if name == "kept" && begun.elapsed() < Duration::from_secs(50) {
            // Now the fifth: systemd starts the server again, with the same listeners.
            kill(one.supervisor(), Signal::SIGKILL).expect("it is gone");
            one.wait_for("NRestarts", "1");
            one.wait_for_generation(1);
            one.reload(2);
        }
        one.lost_nothing().stop();
    }
}
