//! SIGKILL at any moment: no privileged process is left behind, no file names a process that is not ours, and the next
//! start on the same ports and files works.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use e2e::folder::Folder;
use e2e::server::{NOBODY, Setup};
use e2e::{Server, client, ports, proc, wait};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};

use crate::launch::RootFolder;
use crate::privileges::can_drop;

/// Numbers that are the same in every run: a failure says from which state its round began.
struct Random(u64);

impl Random {
    /// xorshift64.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// Lets a random moment pass. It waits for nothing: the aim is to hit whatever is under way in the middle, for which a
    /// sleep is too coarse.
    fn pass(&mut self, longest: Duration) {
        let longest = u64::try_from(longest.as_micros()).expect("a short time");
        let moment = Duration::from_micros(self.below(longest + 1));
        let began = Instant::now();
        while began.elapsed() < moment {
            std::hint::spin_loop();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Supervisor,
    Binder,
    Worker,
}

/// What all servers of one test have in common.
struct Site {
    /// Of the socket.
    roots: RootFolder,
    /// Of the pid and status file.
    files: Folder,
    port: u16,
}

impl Site {
    fn new() -> Site {
        Site {
            roots: RootFolder::new(),
            files: Folder::new(Uid::from_raw(NOBODY), Gid::from_raw(NOBODY)),
            port: ports::low(),
        }
    }

    fn socket(&self) -> String {
        self.roots.join("socket")
    }

    fn setup(&self) -> Setup {
        let file = |name: &str| self.files.path().join(name).display().to_string();
        let options = [
            "--user=nobody".to_owned(),
            format!("--path={}", self.socket()),
            format!("--pid-file={}", file("pid")),
            format!("--status-file={}", file("status")),
        ];
        let setup = Server::setup().as_root().interval("0").port(self.port);
        setup.options(options)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.files.path().join(name)).unwrap_or_default()
    }

    /// The files name no foreign process: those left behind by a killed server are stale.
    #[track_caller]
    fn assert_files_name_nobody_else(&self, server: &Server, what: &str) {
        let text = self.read("pid");
        if !text.is_empty() {
            let pid = Pid::from_raw(text.trim_end().parse().expect("a pid"));
            let is_ours = pid == server.pid() || !proc::alive(pid);
            assert!(is_ours, "{what}: {pid} is not {}", server.pid());
        }
        // Before looking at the processes: every process named in it has started by then.
        let status = self.read("status");
        let group: BTreeSet<Pid> = proc::group(server.pid()).into_iter().collect();
        for line in status.lines() {
            let (_, worker) = line.split_once(':').expect("GENERATION:PID");
            let worker = Pid::from_raw(worker.parse().expect("a pid"));
            let is_ours = group.contains(&worker) || !proc::alive(worker);
            assert!(is_ours, "{what}: {line} is not of {}", server.pid());
        }
    }

    /// The lock on the pid file, which tells whether the server of it runs, ends with the supervisor: a worker that was
    /// forked in that moment has it until it executes its program.
    #[track_caller]
    fn assert_pid_file_is_free(&self, what: &str) {
        wait::until(
            &format!("the pid file is free: {what}"),
            String::new,
            || {
                let Ok(file) = File::open(self.files.path().join("pid")) else {
                    return Some(());
                };
                let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
                lock.is_ok().then_some(())
            },
        );
    }

    /// Nothing is left of a server that was told to stop.
    #[track_caller]
    fn assert_is_empty(&self, what: &str) {
        let entries = fs::read_dir(self.files.path()).expect("no folder");
        let mut left: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        // One that was killed before, between the making and the renaming of such a file, could not remove it.
        left.retain(|path| !is_draft_of_the_dead(path));
        assert!(left.is_empty(), "{what}: {left:?}");
    }
}

/// Whether it is the draft of a status file, `F.PID.NUMBER`, of a process that is gone.
fn is_draft_of_the_dead(path: &Path) -> bool {
    let pid = path.file_stem().map(Path::new).and_then(Path::extension);
    let pid = pid.and_then(|pid| pid.to_str()?.parse().ok());
    pid.is_some_and(|pid| !proc::alive(Pid::from_raw(pid)))
}

/// The processes in the group that are root's in any way.
fn privileged(leader: Pid) -> Vec<Pid> {
    let is_root = |pid: &Pid| {
        proc::status(*pid).is_some_and(|status| status.uids.contains(&0) || status.effective != 0)
    };
    let mut found = proc::group(leader);
    found.retain(is_root);
    found
}

/// Kills what there is of this kind at this moment; false if there is none.
fn kill_now(server: &Server, victim: Victim) -> bool {
    let is_it = |pid: &Pid| {
        let name = proc::status(*pid).map(|status| status.name);
        match victim {
            Victim::Supervisor => true,
            Victim::Binder => name.is_some_and(|name| name == "start_server-bi"),
            // Also one that has not executed the program yet.
            Victim::Worker => name.is_some_and(|name| name != "start_server-bi"),
        }
    };
    let found = match victim {
        Victim::Supervisor => vec![server.pid()],
        Victim::Binder | Victim::Worker => proc::children(server.pid()),
    };
    let found: Vec<Pid> = found.into_iter().filter(is_it).collect();
    for pid in &found {
        // It may have ended by itself since.
        let _ = kill(*pid, Signal::SIGKILL);
    }
    !found.is_empty()
}

/// Whatever was sent to it, it has ended in a way that is meant to be.
#[track_caller]
fn assert_ended_properly(server: &Server, status: ExitStatus, sent: Option<Signal>, what: &str) {
    let log = server.log();
    assert!(!log.contains("panicked"), "{what}: {log}");
    match (status.code(), status.signal()) {
        (Some(0), _) => assert_eq!(sent, Some(Signal::SIGTERM), "{what}: {log}"),
        (Some(1), _) => assert!(log.contains("start_server: cannot "), "{what}: {log}"),
        // Before it takes its signals, a signal ends it.
        (_, Some(number)) => assert_eq!(sent.map(|it| it as i32), Some(number), "{what}: {log}"),
        _ => panic!("{what}: {status}\n{log}"),
    }
}

/// One server from its start to its end, with kills on the way, and what is left after it.
struct Life<'a> {
    site: &'a Site,
    server: Server,
    what: String,
}

impl Life<'_> {
    /// Sends a signal or none, and kills one or several, at random moments.
    #[track_caller]
    fn strike(mut self, random: &mut Random, longest: Duration, first: Victim) {
        random.pass(longest);
        let sent = match random.below(4) {
            0 => Some(Signal::SIGHUP),
            1 => Some(Signal::SIGTERM),
            _ => None,
        };
        if let Some(signal) = sent {
            self.server.signal(signal);
            random.pass(longest / 4);
        }
        let mut victims = vec![first];
        if random.below(3) == 0 {
            let all = [Victim::Supervisor, Victim::Binder, Victim::Worker];
            victims.push(all[usize::try_from(random.below(3)).expect("small")]);
        }
        self.what = format!("{}, {sent:?}, {victims:?}", self.what);
        let hit: Vec<bool> = victims
            .iter()
            .map(|victim| kill_now(&self.server, *victim))
            .collect();
        if victims.contains(&Victim::Supervisor) {
            self.supervisor_was_killed(sent, random);
        } else {
            let binder_was_killed = victims[0] == Victim::Binder && hit[0]
                || victims.get(1) == Some(&Victim::Binder) && hit[1];
            self.supervisor_lives(sent, binder_was_killed);
        }
    }

    #[track_caller]
    fn supervisor_was_killed(mut self, sent: Option<Signal>, random: &mut Random) {
        let what = self.what.clone();
        self.server.wait_exit();
        let pid = self.server.pid();
        if random.below(4) == 0 {
            return self.starts_at_once();
        }
        wait::until(
            &format!("no privileged process is left: {what}"),
            || format!("{:?}", privileged(pid)),
            || privileged(pid).is_empty().then_some(()),
        );
        self.site.assert_pid_file_is_free(&what);
        self.site.assert_files_name_nobody_else(&self.server, &what);
        // Workers that it has told to stop before may end at any moment.
        let serves_on = sent != Some(Signal::SIGTERM) && !proc::group(pid).is_empty();
        if random.below(2) == 0 && serves_on {
            // Its workers serve on.
            let finished = self.site.setup().run();
            assert_eq!(finished.status.code(), Some(1), "{what}: {}", finished.log);
            let line = format!(
                "cannot listen on --port=127.0.0.1:{}: Address already in use",
                self.site.port
            );
            assert!(finished.log.contains(&line), "{what}: {}", finished.log);
            let holders = proc::group(pid);
            let hint = finished
                .log
                .lines()
                .find_map(|line| line.strip_prefix("hint: it is held by "));
            let hint = hint.unwrap_or_else(|| panic!("{what}: {}", finished.log));
            for holder in holders {
                let name = format!("pid {holder} (");
                assert!(hint.contains(&name), "{what}: {}", finished.log);
            }
            assert_eq!(proc::group(finished.server.pid()), [], "{what}");
        }
        self.end_workers();
    }

    /// Ends the workers that a killed supervisor has left.
    #[track_caller]
    fn end_workers(&self) {
        let (pid, what) = (self.server.pid(), &self.what);
        // A worker may be forked still, and fork no more.
        wait::until(
            &format!("the workers have ended: {what}"),
            || format!("{:?}", proc::group(pid)),
            || {
                let left = proc::group(pid);
                for worker in &left {
                    let _ = kill(*worker, Signal::SIGKILL);
                }
                left.is_empty().then_some(())
            },
        );
    }

    /// As a service manager does, which neither knows of a binder that is still at work nor waits for it.
    #[track_caller]
    fn starts_at_once(self) {
        let what = format!("{}, the next start at once", self.what);
        for worker in proc::group(self.server.pid()) {
            if proc::status(worker).is_some_and(|status| status.uids == [NOBODY; 4]) {
                let _ = kill(worker, Signal::SIGKILL);
            }
        }
        let mut next = self.site.setup().start();
        if let Some(status) = next.wait_for_answer_or_exit(self.site.port) {
            // Sockets are held until the last process of the other one is gone.
            assert_eq!(status.code(), Some(1), "{what}: {}", next.log());
            let held = [
                "Address already in use",
                "another server is listening on it",
            ];
            let log = next.log();
            assert!(held.iter().any(|it| log.contains(it)), "{what}: {log}");
        } else {
            self.end_workers();
            wait::until(
                &format!("the other binder is gone: {what}"),
                String::new,
                || proc::group(self.server.pid()).is_empty().then_some(()),
            );
            let socket = self.site.socket();
            let answer = client::try_ask(Path::new(&socket));
            assert!(answer.is_ok(), "{what}: {answer:?}\n{}", next.log());
            assert!(next.stop().success(), "{what}: {}", next.log());
            self.site.assert_is_empty(&what);
        }
        self.end_workers();
    }

    #[track_caller]
    fn supervisor_lives(mut self, sent: Option<Signal>, binder_was_killed: bool) {
        let what = self.what.clone();
        let status = match sent {
            Some(Signal::SIGTERM) => Some(self.server.wait_exit()),
            _ => self.server.wait_for_answer_or_exit(self.site.port),
        };
        if let Some(status) = status {
            assert_ended_properly(&self.server, status, sent, &what);
        } else {
            self.site.assert_files_name_nobody_else(&self.server, &what);
            let stopped = self.server.stop();
            assert!(stopped.success(), "{what}: {stopped} {}", self.server.log());
            self.site.assert_is_empty(&what);
            let socket = Path::new(&self.site.socket()).exists();
            // A process about to become the binder when it was examined may have been taken for a worker.
            let binder_was_killed =
                binder_was_killed || self.server.count_in_log("the binder died") > 0;
            assert!(
                !socket || binder_was_killed,
                "{what}: the socket is left\n{}",
                self.server.log()
            );
        }
        // Where a signal has ended it, before it has taken any, binders end by themselves.
        let pid = self.server.pid();
        wait::until(
            &format!("nothing is left: {what}"),
            || format!("{:?}", proc::group(pid)),
            || proc::group(pid).is_empty().then_some(()),
        );
        self.site.assert_pid_file_is_free(&what);
    }
}

/// Rounds of two starts each: one that is hit while it starts, and one that must serve and is hit then.
#[track_caller]
fn kill_again_and_again(seed: u64, rounds: usize, first: Victim) {
    if !can_drop() {
        return;
    }
    let site = Site::new();
    let mut random = Random(seed);
    for round in 0..rounds {
        let what = format!("round {round} of {first:?}, from {:#x}", random.0);
        let life = Life {
            site: &site,
            server: site.setup().start(),
            what: format!("{what}, starting"),
        };
        life.strike(&mut random, Duration::from_millis(25), first);

        let mut server = site.setup().start();
        if let Some(status) = server.wait_for_answer_or_exit(site.port) {
            panic!("{what}: the next start failed, {status}\n{}", server.log());
        }
        let socket = site.socket();
        let report = client::ask(Path::new(&socket));
        assert_eq!(report.listeners.len(), 2, "{what}");
        assert_eq!(site.read("pid"), format!("{}\n", server.pid()), "{what}");
        let life = Life {
            site: &site,
            server,
            what: format!("{what}, serving"),
        };
        life.strike(&mut random, Duration::from_millis(3), first);
    }
}

#[test]
fn a_supervisor_that_is_killed_at_any_moment_leaves_nothing_privileged() {
    kill_again_and_again(0x5eed_0001, 100, Victim::Supervisor);
}

#[test]
fn a_binder_that_is_killed_at_any_moment_leaves_nothing_privileged() {
    kill_again_and_again(0x5eed_0002, 100, Victim::Binder);
}

#[test]
fn a_worker_that_is_killed_at_any_moment_leaves_nothing_privileged() {
    kill_again_and_again(0x5eed_0003, 100, Victim::Worker);
}
