//! A crash deploys nothing: a worker that dies is replaced by what has served, whatever lies on disk by then. With
//! `--no-pin` it is replaced by what lies there, as in Server::Starter.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use e2e::skip::{needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Report, Server, Setup, Worker, ports, proc, programs};
use nix::sys::resource::Resource;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// Something that happens to a server's files between its start and a crash.
struct Case {
    what: &'static str,
    /// Makes the files, and says how they are started.
    prepare: fn(Setup) -> Setup,
    change: fn(&Path),
    /// The descriptors of a worker that is started again.
    descriptors: &'static [i32],
}

const ALL: &[i32] = &[0, 1, 2, 3];

/// How many there are with the one from which a script without a name is read.
const AND_SCRIPT: usize = 5;

const CASES: &[Case] = &[
    Case {
        what: "the link that --dir leads through is changed",
        prepare: |setup| {
            two_releases(setup)
                .option("--dir=current")
                .program(["./app"])
        },
        change: flip,
        descriptors: ALL,
    },
    Case {
        what: "the link that the program's path leads through is changed",
        prepare: |setup| two_releases(setup).program(["current/app"]),
        change: flip,
        descriptors: ALL,
    },
    Case {
        what: "the program is a link, and is changed",
        prepare: |setup| {
            let setup = two_releases(setup);
            link("release1/app", &setup.folder().join("app"));
            setup.program(["./app"])
        },
        change: |folder| link("release2/app", &folder.join("app")),
        descriptors: ALL,
    },
    Case {
        what: "the program is replaced by rubbish",
        prepare: |setup| with_app(setup).program(["./app"]),
        change: |folder| replace(&folder.join("app"), "rubbish\n"),
        descriptors: ALL,
    },
    Case {
        what: "the program is deleted",
        prepare: |setup| with_app(setup).program(["./app"]),
        change: |folder| fs::remove_file(folder.join("app")).expect("cannot remove it"),
        descriptors: ALL,
    },
    Case {
        what: "the program is moved aside",
        prepare: |setup| with_app(setup).program(["./app"]),
        change: |folder| {
            let app = folder.join("app");
            fs::rename(&app, folder.join("app.old")).expect("cannot move it");
            executable(&app, "rubbish\n");
        },
        descriptors: ALL,
    },
    Case {
        what: "a script is moved aside",
        prepare: |setup| with_script(setup).program(["./app"]),
        change: |folder| {
            let app = folder.join("app");
            fs::rename(&app, folder.join("app.old")).expect("cannot move it");
            executable(&app, "rubbish\n");
        },
        descriptors: ALL,
    },
    Case {
        what: "a script is replaced by rubbish",
        prepare: |setup| with_script(setup).program(["./app"]),
        change: |folder| replace(&folder.join("app"), "rubbish\n"),
        descriptors: &[],
    },
    Case {
        what: "a script is deleted",
        prepare: |setup| with_script(setup).program(["./app"]),
        change: |folder| fs::remove_file(folder.join("app")).expect("cannot remove it"),
        descriptors: &[],
    },
    Case {
        what: "a script without its first line is deleted",
        prepare: |setup| {
            executable(&setup.folder().join("app"), &script(1).split_off(10));
            setup.program(["./app"])
        },
        change: |folder| fs::remove_file(folder.join("app")).expect("cannot remove it"),
        descriptors: &[],
    },
    Case {
        what: "--dir is renamed",
        prepare: |setup| {
            two_releases(setup)
                .option("--dir=release1")
                .program(["./app"])
        },
        change: |folder| {
            let of = |name| folder.join(name);
            fs::rename(of("release1"), of("old")).expect("cannot rename it");
            fs::rename(of("release2"), of("release1")).expect("cannot rename it");
        },
        descriptors: ALL,
    },
    Case {
        what: "--dir is removed with all that is in it",
        prepare: |setup| {
            two_releases(setup)
                .option("--dir=release1")
                .program(["./app"])
        },
        change: |folder| fs::remove_dir_all(folder.join("release1")).expect("cannot remove it"),
        descriptors: ALL,
    },
    Case {
        what: "the directory of a program with an absolute path is renamed",
        prepare: |setup| {
            let setup = two_releases(setup);
            let app = setup.folder().join("release1/app");
            setup.program([app])
        },
        change: |folder| {
            fs::rename(folder.join("release1"), folder.join("old")).expect("cannot rename it");
        },
        descriptors: ALL,
    },
    Case {
        what: "PATH leads to another one before",
        prepare: |setup| {
            let setup = two_releases(setup);
            let [first, second] = ["first", "release1"].map(|name| setup.folder().join(name));
            make(&first);
            let path = format!("{}:{}:/usr/bin:/bin", first.display(), second.display());
            setup.env("PATH", path).program(["app"])
        },
        change: |folder| executable(&folder.join("first/app"), "rubbish\n"),
        descriptors: ALL,
    },
];

fn make(folder: &Path) {
    fs::create_dir(folder).expect("cannot make a directory");
    fs::set_permissions(folder, Permissions::from_mode(0o755)).expect("cannot open it");
}

/// A copy of the fixture worker.
fn app(path: &Path) {
    fs::copy(programs::worker(), path).expect("cannot copy the worker");
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("cannot make it executable");
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).expect("cannot write it");
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("cannot make it executable");
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    executable(&new, text);
    fs::rename(&new, path).expect("cannot put it in place");
}

/// A script that runs the fixture worker, which reports the number of its release.
fn script(release: u32) -> String {
    let worker = programs::worker();
    format!("#!/bin/sh\nexec {} release={release}\n", worker.display())
}

fn link(target: &str, path: &Path) {
    let new = path.with_extension("new");
    symlink(target, &new).expect("cannot make a link");
    fs::rename(&new, path).expect("cannot put it in place");
}

fn with_app(setup: Setup) -> Setup {
    app(&setup.folder().join("app"));
    setup
}

fn with_script(setup: Setup) -> Setup {
    executable(&setup.folder().join("app"), &script(1));
    setup
}

/// `release1` works, `release2` does not, and `current` leads to the first one.
fn two_releases(setup: Setup) -> Setup {
    let of = |name: &str| setup.folder().join(name);
    make(&of("release1"));
    make(&of("release2"));
    app(&of("release1/app"));
    executable(&of("release2/app"), "rubbish\n");
    link("release1", &of("current"));
    setup
}

fn flip(folder: &Path) {
    link("release2", &folder.join("current"));
}

fn kill_worker(worker: Worker) {
    kill(worker.pid, Signal::SIGKILL).expect("cannot kill the worker");
}

/// The first worker, once it is accepted: these programs have no journal.
#[track_caller]
fn first(server: &Server) -> Worker {
    server.wait_until_accepted();
    server.wait_for("one worker serves", |server| server.workers().pop())
}

/// Waits until another worker serves, alone.
#[track_caller]
fn next(server: &Server, old: Worker) -> Worker {
    server.wait_for("another worker serves alone", |server| {
        match server.workers()[..] {
            [worker] if worker.generation > old.generation => Some(worker),
            _ => None,
        }
    })
}

/// The worker dies, and another one serves in its place.
#[track_caller]
fn crash(server: &Server, worker: Worker) -> Worker {
    kill_worker(worker);
    next(server, worker)
}

/// What an administrator sees of a process: how it was called, and what it runs. A file that is gone has a mark.
fn looks(pid: i32) -> (Vec<u8>, String) {
    let link = fs::read_link(format!("/proc/{pid}/exe")).expect("cannot see the program");
    let line = fs::read(format!("/proc/{pid}/cmdline")).expect("cannot see the command line");
    let first = line.split(|byte| *byte == 0).next();
    let name = link.file_name().expect("a name").to_string_lossy();
    let name = name.trim_end_matches(" (deleted)");
    (
        first.unwrap_or_default().to_vec(),
        name.trim_end_matches(".old").to_owned(),
    )
}

/// A server of this case before and after a crash, and what has changed in between.
fn before_and_after(case: &Case, setup: Setup) -> (Server, Report, Report) {
    let port = ports::tcp();
    let server = (case.prepare)(setup.status_file().port(port)).start();
    let old = first(&server);
    let before = server.ask(port);
    let look = looks(before.pid);
    (case.change)(server.folder());
    crash(&server, old);
    let after = server.ask(port);
    assert_ne!(after.pid, before.pid);
    assert_eq!(looks(after.pid), look, "{}", case.what);
    (server, before, after)
}

fn check(case: &Case, setup: Setup) {
    let (server, before, after) = before_and_after(case, setup);
    let what = case.what;
    assert_eq!(server.count_in_log("seems to have failed"), 0, "{what}");
    assert_eq!(server.count_in_log("cannot start again"), 0, "{what}");
    assert_eq!(after.generation, Some(2), "{what}");
    assert_eq!(after.args, before.args, "{what}");
    let numbers = after.descriptor_numbers();
    match case.descriptors {
        [] => {
            assert_eq!(&numbers[..4], ALL, "{what}");
            assert_eq!(numbers.len(), AND_SCRIPT, "{what}: {numbers:?}");
            let script = &after.descriptors[&numbers[4]];
            assert!(script.ends_with("app (deleted)"), "{what}: {script}");
        }
        expected => assert_eq!(numbers, expected, "{what}"),
    }
    // The same directory, by whatever name.
    let is_same = after.cwd == before.cwd
        || after.cwd.is_empty()
        || after.cwd.ends_with("/old")
        || after.cwd.ends_with(" (deleted)");
    assert!(is_same, "{what}: {} {}", before.cwd, after.cwd);
    let variables = |report: &Report| {
        let mut variables = report.environment.clone();
        variables.remove("SERVER_STARTER_GENERATION");
        // The shell of a script sets these.
        variables.remove("_");
        variables.remove("PWD");
        variables
    };
    assert_eq!(variables(&after), variables(&before), "{what}");
}

#[test]
fn a_crash_brings_back_what_served_whatever_lies_on_disk() {
    if original_differs("it starts what lies there") {
        return;
    }
    for case in CASES {
        check(case, Server::setup());
    }
}

#[test]
fn without_pins_a_crash_starts_what_lies_on_disk() {
    for case in CASES {
        let port = ports::tcp();
        let mut setup = Server::setup().status_file().port(port).interval("1");
        if !original_differs("it has no such option") {
            setup = setup.option("--no-pin");
        }
        let server = (case.prepare)(setup).start();
        let old = first(&server);
        (case.change)(server.folder());
        kill_worker(old);
        server.wait_for_log("seems to have failed to start");
        assert_eq!(server.count_in_log("cannot start again"), 0);
    }
}

#[test]
fn a_server_that_root_has_started_brings_back_what_served_too() {
    if !needs_root() || original_differs("it starts what lies there") {
        return;
    }
    for case in CASES {
        check(case, Server::setup().as_root().option("--user=nobody"));
    }
}

#[test]
fn the_directory_of_the_launcher_may_be_renamed() {
    let port = ports::tcp();
    let of_another: &[&[&str]] = &[&[]];
    let options = match programs::another() {
        None => &[&["--no-pin"][..], &[]],
        Some(_) => of_another,
    };
    for options in options {
        let setup = Server::setup().port(port);
        let [before, after] = ["release", "old"].map(|name| setup.folder().join(name));
        make(&before);
        app(&before.join("app"));
        let status = setup.folder().join("status");
        let server = setup
            .option(format!("--status-file={}", status.display()))
            .options(options.iter().copied())
            .enter(&before)
            .program(["./app"])
            .start();
        let old = first(&server);
        fs::rename(&before, &after).expect("cannot rename it");
        crash(&server, old);
        assert_eq!(server.ask(port).cwd, after.display().to_string());
    }
}

/// The arguments of the worker, which name the release where each one is a script.
fn release(server: &Server, port: u16) -> String {
    server.ask(port).args.concat()
}

/// `current` leads to `release1`, a script; `release2` is one too, or rubbish.
fn scripts(second: &str) -> Setup {
    let setup = two_releases(Server::setup().status_file());
    executable(&setup.folder().join("release1/app"), &script(1));
    executable(&setup.folder().join("release2/app"), second);
    setup.option("--dir=current").program(["./app"])
}

#[test]
fn a_restart_looks_anew_and_from_then_on_that_is_what_served() {
    if original_differs("a crash starts what lies on disk") {
        return;
    }
    let port = ports::tcp();
    let server = scripts(&script(2)).port(port).start();
    let first = first(&server);
    flip(server.folder());
    let second = crash(&server, first);
    assert_eq!(release(&server, port), "release=1");
    let third = server.restart();
    assert_eq!(release(&server, port), "release=2");
    assert!(third.generation > second.generation);
    link("release1", &server.folder().join("current"));
    crash(&server, third);
    assert_eq!(release(&server, port), "release=2");
    assert!(server.ask(port).cwd.ends_with("release2"));
}

#[test]
fn an_automatic_restart_looks_anew() {
    let port = ports::tcp();
    let server = scripts(&script(2))
        .port(port)
        .options(["--enable-auto-restart", "--auto-restart-interval=1"])
        .option("--kill-old-delay=0")
        .start();
    first(&server);
    flip(server.folder());
    server.wait_until("the new release serves", |_| {
        e2e::client::try_ask(port).is_ok_and(|report| report.args == ["release=2"])
    });
}

#[test]
fn a_crash_after_a_refused_deploy_brings_back_what_served_and_then_the_deploy_is_tried_again() {
    if original_differs("it starts what lies on disk") {
        return;
    }
    let port = ports::tcp();
    let server = scripts("rubbish\n").port(port).pid_file().start();
    let old = first(&server);
    flip(server.folder());
    let restart = server
        .client(["--restart", "--pid-file=pid"])
        .output_in_turn()
        .expect("cannot run start_server");
    assert_eq!(restart.status.code(), Some(1), "{}", server.log());
    kill_worker(old);
    server.wait_until("it serves again", |server| {
        let mut workers = server.workers().into_iter();
        workers.any(|worker| worker.pid != old.pid && server.ask(port).pid == worker.pid.as_raw())
    });
    assert_eq!(release(&server, port), "release=1");
    // It is mended: nobody has to ask again.
    replace(&server.folder().join("release2/app"), &script(2));
    server.wait_until("the new release serves", |_| {
        e2e::client::try_ask(port).is_ok_and(|report| report.args == ["release=2"])
    });
}

/// The old worker dies while the new one, which will fail, is starting.
#[test]
fn a_crash_during_a_deploy_that_fails_brings_back_what_served() {
    if original_differs("it starts what lies on disk") {
        return;
    }
    let port = ports::tcp();
    let setup = Server::setup().status_file().port(port).interval("1");
    let app = setup.folder().join("app");
    executable(&app, &script(1));
    let server = setup.option("--start-limit=1").program(["./app"]).start();
    let old = first(&server);
    replace(&app, "#!/bin/sh\nread line < hold\nexit 1\n");
    let hold = server.folder().join("hold");
    mkfifo(&hold, Mode::S_IRUSR).expect("cannot make a fifo");
    fs::set_permissions(&hold, Permissions::from_mode(0o644)).expect("cannot open it");
    server.signal(Signal::SIGHUP);
    server.wait_for_log_times(2, "starting new worker");
    kill_worker(old);
    server.wait_for_log(&format!("old worker {} died", old.pid));
    fs::write(&hold, "\n").expect("cannot let it go on");
    next(&server, old);
    assert_eq!(release(&server, port), "release=1");
    assert_eq!(server.count_in_log("giving up"), 0, "{}", server.log());
}

/// A server with an envdir in which NAME is changed, and its worker dies.
fn value_after_crash(setup: Setup) -> Option<String> {
    let port = ports::tcp();
    let directory = setup.folder().join("env");
    make(&directory);
    fs::write(directory.join("NAME"), "before\n").expect("cannot write a file");
    let server = setup
        .status_file()
        .port(port)
        .option(format!("--envdir={}", directory.display()))
        .options((programs::another().is_none()).then_some("--fd-env=systemd"))
        .start();
    let old = first(&server);
    fs::write(directory.join("NAME"), "after\n").expect("cannot write a file");
    crash(&server, old);
    let mut report = server.ask(port);
    // These belong to the worker, not to what it is started from.
    let of = |name: &str| report.environment[name].parse();
    assert_eq!(of("SERVER_STARTER_GENERATION"), Ok(2));
    if programs::another().is_none() {
        assert_eq!(of("LISTEN_PID"), Ok(report.pid));
    }
    report.environment.remove("NAME")
}

#[test]
fn the_environment_is_that_which_served() {
    if original_differs("it reads the directory again") {
        return;
    }
    let value = value_after_crash(Server::setup());
    assert_eq!(value.as_deref(), Some("before"));
}

#[test]
fn without_pins_the_environment_is_read_again() {
    let mut setup = Server::setup();
    if !original_differs("it has no such option") {
        setup = setup.option("--no-pin");
    }
    assert_eq!(value_after_crash(setup).as_deref(), Some("after"));
}

/// A script that finds what it needs beside itself, and tells how it was called.
fn looks_beside_itself() -> String {
    let worker = programs::worker();
    let worker = worker.display();
    format!("#!/bin/sh\nexec {worker} release=$(cat $(dirname $0)/number) name=$0\n")
}

#[test]
fn where_nothing_has_changed_the_next_worker_is_called_as_the_one_before() {
    let port = ports::tcp();
    let setup = two_releases(Server::setup().status_file().port(port));
    executable(
        &setup.folder().join("release1/script"),
        &looks_beside_itself(),
    );
    fs::write(setup.folder().join("release1/number"), "1").expect("cannot write it");
    link("script", &setup.folder().join("release1/app"));
    let server = setup.program(["current/app"]).start();
    let old = first(&server);
    assert_eq!(server.ask(port).args, ["release=1", "name=current/app"]);
    crash(&server, old);
    assert_eq!(server.ask(port).args, ["release=1", "name=current/app"]);
}

/// As in releases that are copied with `cp -al` and then changed.
#[test]
fn the_same_file_in_another_release_is_not_what_served() {
    if original_differs("it starts what lies on disk") {
        return;
    }
    for (option, expected) in [("--start-limit=1", "release=1"), ("--no-pin", "release=2")] {
        let port = ports::tcp();
        let setup = two_releases(Server::setup().status_file().port(port));
        let of = |name: &str| setup.folder().join(name);
        for (folder, number) in [("release1", "1"), ("release2", "2")] {
            fs::remove_file(of(folder).join("app")).expect("cannot remove it");
            fs::write(of(folder).join("number"), number).expect("cannot write it");
        }
        executable(&of("release1/app"), &looks_beside_itself());
        fs::hard_link(of("release1/app"), of("release2/app")).expect("cannot link it");
        let server = setup.option(option).program(["current/app"]).start();
        let old = first(&server);
        assert_eq!(server.ask(port).args[0], "release=1");
        flip(server.folder());
        crash(&server, old);
        assert_eq!(server.ask(port).args[0], expected, "{option}");
    }
}

/// However low the launcher's limit is.
#[test]
fn the_descriptor_of_a_script_takes_the_number_of_no_listener() {
    if original_differs("it starts what lies on disk") {
        return;
    }
    let port = ports::tcp();
    let server = with_script(Server::setup().status_file())
        .option(format!("--port=127.0.0.1:{port}=20"))
        .port(ports::tcp())
        .limit(Resource::RLIMIT_NOFILE, 28, 4096)
        .program(["./app"])
        .start();
    let old = first(&server);
    fs::remove_file(server.folder().join("app")).expect("cannot remove it");
    crash(&server, old);
    let numbers = server.ask(port).descriptor_numbers();
    assert_eq!(numbers[..5], [0, 1, 2, 3, 20]);
    assert!(numbers.len() == 6 && numbers[5] > 20, "{numbers:?}");
}

#[test]
fn what_cannot_be_started_again_is_said_and_what_lies_on_disk_is_started() {
    if original_differs("it starts what lies on disk") {
        return;
    }
    let port = ports::tcp();
    let server = scripts(&script(2)).port(port).start();
    let old = first(&server);
    let app = server.folder().join("release1/app");
    let kept = fs::File::open(&app).expect("cannot open it");
    replace(&app, &script(3));
    flip(server.folder());
    kept.set_permissions(Permissions::from_mode(0o600))
        .expect("cannot change the mode");
    crash(&server, old);
    assert_eq!(release(&server, port), "release=2");
    server.wait_for_log(
        "start_server: cannot start again what has served: Permission denied; generation 2 starts what is at its path now",
    );
    server.wait_for_log("hint: the file that served must stay executable");
    assert!(server.ask(port).cwd.ends_with("release2"));
    assert_eq!(server.ask(port).descriptor_numbers(), ALL);
}

#[test]
fn a_program_that_is_overwritten_in_place_is_not_what_served() {
    let port = ports::tcp();
    let server = with_script(Server::setup().status_file().port(port))
        .program(["./app"])
        .start();
    let old = first(&server);
    fs::write(server.folder().join("app"), script(2)).expect("cannot overwrite it");
    crash(&server, old);
    assert_eq!(release(&server, port), "release=2");
}

#[test]
fn no_descriptors_are_left_after_many_restarts_and_crashes() {
    if original_differs("it has no such descriptors") {
        return;
    }
    let port = ports::tcp();
    let server = two_releases(Server::setup().status_file().port(port))
        .interval("0")
        .option("--dir=current")
        .program(["./app"])
        .start();
    first(&server);
    assert!(shows_pins(&server));
    let held = |server: &Server| {
        let all = proc::descriptors(server.pid());
        let is_pin = |path: &&String| path.contains("release1");
        (all.len(), all.values().filter(is_pin).count())
    };
    for _ in 0..2 {
        server.restart();
    }
    // What the current generation and the one before it were started from.
    server.wait_until("the first one is let go", |server| held(server).1 == 4);
    let before = held(&server);
    for number in 0..50 {
        let newest = server.restart();
        if number % 10 == 0 {
            crash(&server, newest);
        }
    }
    // A status file is open twice while it is being replaced: perhaps `before`, perhaps now.
    server.wait_until("nothing is left", |server| {
        let (all, pins) = held(server);
        all <= before.0 && pins == before.1
    });
    let numbers = server.ask(port).descriptor_numbers();
    assert_eq!(numbers, ALL);
}

/// Whether the status says that workers are replaced by what has served.
#[track_caller]
fn shows_pins(server: &Server) -> bool {
    let json = server.status_json().expect("no status");
    json["options"]["pins"].as_bool().expect("it does not say")
}

/// With `--no-pin` nothing is kept from being unmounted.
#[test]
fn without_pins_nothing_is_held_open() {
    if original_differs("it has no such option") {
        return;
    }
    let server = two_releases(Server::setup().status_file())
        .options(["--no-pin", "--dir=current"])
        .program(["./app"])
        .start();
    first(&server);
    server.restart();
    assert!(!shows_pins(&server));
    let held = proc::descriptors(server.pid());
    assert!(
        !held.values().any(|path| path.contains("release")),
        "{held:?}"
    );
}
