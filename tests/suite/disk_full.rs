//! A full disk under the files that start_server writes: an error at the start, and no end of the service later.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::server::NOBODY;
use e2e::skip::{missing, needs_root, original_differs};
use e2e::start::InTurn;
use e2e::{Server, Setup, ports, proc};
use nix::sys::signal::Signal;

/// A small file system of its own in the folder of a server; unmounted when it is dropped.
struct Disk(PathBuf);

impl Disk {
    /// Needs root; `None` where even root may not mount.
    fn mount(setup: &Setup) -> Option<Disk> {
        if original_differs("it dies or writes half files") || !needs_root() {
            return None;
        }
        let path = setup.folder().join("disk");
        fs::create_dir(&path).expect("cannot make a directory");
        if let Err(cause) = mount(&["-t", "tmpfs", "-o", "size=64k,mode=0755", "tmpfs"], &path) {
            missing(&format!("needs to mount a file system: {cause}"));
            return None;
        }
        let disk = Disk(path);
        chown(&disk.0, Some(NOBODY), Some(NOBODY)).expect("cannot give the disk away");
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn option(&self, option: &str, name: &str) -> String {
        format!("--{option}={}", self.path(name).display())
    }

    /// Takes all the room that there is.
    fn fill(&self) {
        let mut file = File::create(self.path("filler")).expect("cannot make a file");
        // The last part of a block as well.
        for size in [4096, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.path("filler")).expect("cannot make room");
    }

    /// What is there beside the filler.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0)
            .expect("cannot read the disk")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name != "filler")
            .collect();
        names.sort();
        names
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, since what is still open there must not keep it.
        let unmounted = Command::new("umount")
            .arg("--lazy")
            .arg(&self.0)
            .status_in_turn();
        drop(unmounted);
    }
}

/// By mount(8).
fn mount(words: &[&str], path: &Path) -> Result<(), String> {
    let output = Command::new("mount")
        .args(words)
        .arg(path)
        .output_in_turn()
        .map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned()),
    }
}

/// A server that cannot start on a full disk says this, and leaves nothing behind.
#[track_caller]
fn assert_refused(setup: Setup, disk: &Disk, line: &str) {
    let finished = setup.run();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.log);
    let lines: Vec<&str> = finished.log.lines().skip(1).collect();
    let hint = "hint: the file system is full: see `df` and `df -i`";
    assert_eq!(lines, [line, hint]);
    assert_eq!(finished.server.started(), []);
    assert_eq!(disk.names(), [""; 0]);
}

#[track_caller]
fn accepted(server: &Server) {
    server.wait_for_log("starting new worker");
    server.wait_for_service(1);
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_pid_file_for_which_there_is_no_room_is_an_error_at_the_start() {
    let setup = Server::setup();
    let Some(disk) = Disk::mount(&setup) else {
        return;
    };
    disk.fill();
    let option = disk.option("pid-file", "pid");
    let line = format!("start_server: cannot use {option}: No space left on device");
    assert_refused(setup.option(option), &disk, &line);
}

#[test]
fn a_status_file_for_which_there_is_no_room_is_an_error_at_the_start() {
    let setup = Server::setup();
    let Some(disk) = Disk::mount(&setup) else {
        return;
    };
    disk.fill();
    let line = format!(
        "start_server: cannot write the status file {}: No space left on device",
        disk.path("status.json").display()
    );
    let setup = setup.option(disk.option("status-file", "status"));
    assert_refused(setup, &disk, &line);
}

#[test]
fn a_log_file_that_cannot_even_be_made_is_an_error_at_the_start() {
    let setup = Server::setup();
    let Some(disk) = Disk::mount(&setup) else {
        return;
    };
    // No more files, rather than no more bytes: an empty file needs none.
    mount(&["-o", "remount,nr_inodes=1"], &disk.0).expect("cannot limit the files");
    let option = disk.option("log-file", "server.log");
    let line = format!("start_server: cannot open {option}: No space left on device");
    assert_refused(setup.option(option), &disk, &line);
}

#[test]
fn a_disk_that_fills_up_under_the_status_and_pid_file_is_said_once_and_the_service_goes_on() {
    let port = ports::tcp();
    let setup = Server::setup();
    let Some(disk) = Disk::mount(&setup) else {
        return;
    };
    let mut server = setup
        .port(port)
        .option(disk.option("pid-file", "pid"))
        .option(disk.option("status-file", "status"))
        .worker(["--graceful"])
        .start();
    let first = server.wait_for_service(1);
    let line = format!("1:{}\n", first.pid);
    let status = disk.path("status");
    server.wait_until("the first generation is listed", |_| read(&status) == line);
    disk.fill();
    server.restart();
    server.restart();
    assert_eq!(server.ask(port).generation, Some(3));
    // The files are whole, although they are of before.
    assert_eq!(read(&status), line);
    let json = read(&disk.path("status.json"));
    assert!(
        serde_json::from_str::<serde_json::Value>(&json).is_ok(),
        "{json}"
    );
    assert_eq!(read(&disk.path("pid")), format!("{}\n", server.pid()));
    for name in ["status", "status.json", "pid.json"] {
        let text = format!(
            "start_server: cannot write {}: No space left on device; will keep trying",
            disk.path(name).display()
        );
        server.wait_for_log(&text);
        assert_eq!(server.count_in_log(&text), 1, "{}", server.log());
    }
    // It is tried again and again, each time with a draft.
    server.wait_until("there is no draft", |_| {
        disk.names() == ["pid", "pid.json", "status", "status.json"]
    });

    // With room, and nothing else that happens, they are right again.
    disk.make_room();
    let third = server.workers()[0];
    assert_eq!(third.generation, 3);
    let line = format!("3:{}\n", third.pid);
    server.wait_until("the status file is right again", |_| read(&status) == line);
    for name in ["status", "status.json", "pid.json"] {
        let text = format!("{} is up to date again", disk.path(name).display());
        server.wait_for_log(&text);
        assert_eq!(server.count_in_log(&text), 1, "{}", server.log());
    }
    for name in ["status.json", "pid.json"] {
        let text = read(&disk.path(name));
        let json: serde_json::Value = serde_json::from_str(&text).expect("whole JSON");
        assert_eq!(json["generations"][0]["number"], 3, "{text}");
    }
    assert!(server.stop().success());
    assert_eq!(disk.names(), [""; 0]);
}

#[test]
fn a_second_time_the_disk_is_full_is_said_again() {
    let port = ports::tcp();
    let setup = Server::setup();
    let Some(disk) = Disk::mount(&setup) else {
        return;
    };
    let server = setup
        .port(port)
        .option(disk.option("status-file", "status"))
        .worker(["--graceful"])
        .start();
    server.wait_until("the first generation is listed", |_| {
        disk.path("status").exists()
    });
    server.wait_for_service(1);
    for times in 1..=2 {
        disk.fill();
        server.restart();
        server.wait_for_log_times(times, "status: No space left on device; will keep trying");
        disk.make_room();
        server.wait_for_log_times(times, "status is up to date again");
        server.wait_for_log_times(times, "status.json is up to date again");
    }
}

#[test]
fn a_server_that_ends_while_the_disk_is_full_leaves_nothing_behind() {
    let setup = Server::setup();
    let Some(disk) = Disk::mount(&setup) else {
        return;
    };
    let mut server = setup
        .option(disk.option("pid-file", "pid"))
        .option(disk.option("status-file", "status"))
        .worker(["--graceful"])
        .start();
    server.wait_until("the first generation is listed", |_| {
        disk.path("status").exists()
    });
    server.wait_for_service(1);
    disk.fill();
    server.restart();
    assert!(server.stop().success());
    assert_eq!(disk.names(), [""; 0]);
}

#[test]
fn a_disk_that_fills_up_under_the_log_file_loses_lines_and_counts_them() {
    let port = ports::tcp();
    let setup = Server::setup();
    let Some(disk) = Disk::mount(&setup) else {
        return;
    };
    let mut server = setup
        .port(port)
        .option(disk.option("log-file", "server.log"))
        .worker(["--graceful"])
        .start();
    let first = server.wait_for_service(1);
    let log = disk.path("server.log");
    server.wait_until("the log is written", |_| !read(&log).is_empty());
    // The room that is left in its last block as well.
    while fs::OpenOptions::new()
        .append(true)
        .open(&log)
        .and_then(|mut file| {
            file.write_all(&[b'x'; 63])
                .and_then(|()| file.write_all(b"\n"))
        })
        .is_ok()
    {}
    disk.fill();
    for _ in 0..10 {
        server.signal(Signal::SIGUSR2);
        server.wait_until("the signal was taken", |server| {
            proc::status(server.pid()).is_some_and(|status| status.pending == 0)
        });
    }
    // Nothing else is affected: neither the worker that writes, nor the restart, nor clients.
    e2e::client::request(port, "stderr nobody reads this").expect("no answer");
    assert_eq!(server.ask(port).pid, first.pid.as_raw());
    let second = server.restart();
    assert_eq!(server.ask(port).pid, second.pid.as_raw());
    let full = read(&log);
    assert!(
        !full.contains(&format!("starting new worker {}", second.pid)),
        "{full}"
    );
    drop(
        File::options()
            .write(true)
            .truncate(true)
            .open(&log)
            .expect("cannot truncate"),
    );
    server.signal(Signal::SIGUSR2);
    server.wait_until("lines are written again", |_| {
        read(&log).contains("received USR2")
    });
    let text = read(&log);
    let lost = text.lines().find_map(|line| {
        let rest = line.strip_prefix("start_server: ")?;
        let number = rest.strip_suffix(" lines before this one could not be written")?;
        number.parse::<u32>().ok()
    });
    // Ten signals, and at least the HUP, the new worker, and the end of the old one.
    assert!(lost.is_some_and(|lost| lost >= 13), "{text}");
    assert!(server.stop().success());
    assert_eq!(read(&log).lines().last(), Some("exiting"));
}

#[test]
fn a_disk_that_fills_up_under_captured_output_stops_nobody_and_the_loss_adds_up() {
    let port = ports::tcp();
    let setup = Server::setup();
    let Some(disk) = Disk::mount(&setup) else {
        return;
    };
    let mut server = setup
        .port(port)
        .status_file()
        .option(disk.option("log-file", "server.log"))
        .option("--log-timestamps")
        .worker(["--graceful"])
        .start();
    let first = server.wait_for_service(1);
    let log = disk.path("server.log");
    let flow = e2e::client::Flow::start(port, 80, "stderr", 100);
    server.wait_until("the disk is full, and lines are lost", |server| {
        let json = server.status_json();
        json.is_some_and(|json| json["log"]["lost"].as_u64() > Some(0))
    });
    // It serves, and the worker goes on.
    assert_eq!(server.ask(port).pid, first.pid.as_raw());
    disk.fill();
    // By somebody who moves the log away, as one does then; the old file is kept for the count.
    let old = read(&log);
    server.signal(Signal::SIGUSR2);
    // First this, as long as nothing can be written that would be in neither of the two.
    drop(
        File::options()
            .write(true)
            .truncate(true)
            .open(&log)
            .expect("cannot truncate"),
    );
    disk.make_room();
    let told = || {
        let text = read(&log);
        text.lines()
            .filter_map(|line| {
                let rest = line.split_once("] start_server: ")?.1;
                let number = rest.strip_suffix(" lines before this one could not be written")?;
                number.parse::<usize>().ok()
            })
            .sum::<usize>()
    };
    server.wait_until("the loss is told without anything else to say", |_| {
        told() > 0
    });
    let written = flow.end().count;
    assert!(server.stop().success());
    let text = old.clone() + &read(&log);
    let whole = text.lines().filter(|line| {
        line.ends_with("....")
            && line.len()
                == 79 + "2026-11-22T18:43:06.123+01:00 [1:] ".len() + first.pid.to_string().len()
    });
    // Those of ours that were lost are counted too: the signal, and what came of it.
    let (kept, told) = (whole.count(), told());
    assert!(told > 0);
    assert!(
        (written..=written + 2).contains(&(kept + told)),
        "{written} were written, {kept} kept, {told} told"
    );
    for line in read(&log).lines() {
        assert!(
            line.starts_with("20") || line.is_empty(),
            "no start of a line: {line:?}"
        );
    }
}

#[test]
fn a_directory_that_is_closed_later_is_like_a_full_disk() {
    let port = ports::tcp();
    if original_differs("it dies") {
        return;
    }
    let setup = Server::setup();
    let folder = setup.folder().join("files");
    fs::create_dir(&folder).expect("cannot make a directory");
    let set_mode = |mode| {
        fs::set_permissions(&folder, Permissions::from_mode(mode)).expect("cannot set the mode");
    };
    set_mode(0o777);
    let status = folder.join("status");
    let server = setup
        .port(port)
        .option(format!("--status-file={}", status.display()))
        .worker(["--graceful"])
        .start();
    server.wait_until("the first generation is listed", |_| status.exists());
    accepted(&server);
    set_mode(0o555);
    server.restart();
    server.wait_for_log("status: Permission denied; will keep trying");
    assert_eq!(server.ask(port).generation, Some(2));
    set_mode(0o777);
    server.wait_until("the status file is right again", |server| {
        let line = format!("2:{}\n", server.ask(port).pid);
        read(&status) == line
    });
}
