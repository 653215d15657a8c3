//! What each process of a server must be like: the moments in PROCESSES of start_server-binder(8).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use caps::Capability;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::Test;
use super::server::Server;
use super::worker::WorkerEscape;
use crate::host::proc::{self, Status};
use crate::status::file::read_text;
use crate::words::failure::{self, Failure};

/// The binder that stays to remove the sockets at paths.
pub const LASTING: &str = "resident binder";

/// Its supervisor.
const BESIDE: &str = "supervisor beside a binder";

/// The descriptors that a process must have, by number; the order of the others does not matter.
type Descriptors<'a> = (&'a [(i32, &'a str)], Vec<String>);

/// What /proc must show of a process.
pub struct Profile {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Permitted and effective alike.
    pub capability: Option<Capability>,
    /// The bounding set is empty, and no exec gains anything.
    pub sealed: bool,
    /// The number of filters beyond this process's own.
    pub filters: u32,
    /// Nobody may inspect it; false if that cannot be seen or is not intended.
    pub undumpable: bool,
}

impl Test<'_> {
    /// With ports, and with a socket at a path that the user may write: no privileged process remains.
    pub fn server_of_ports(&mut self) -> Result<(), Failure> {
        let socket = self.scratch.of_user("socket");
        let mut server = self.start_server(&socket, "")?;
        let worker = server.worker(1, &self.patience, &self.scratch)?;
        // It waits for its escapes: any other process was there before it.
        let children = proc::children(server.pid())?;
        self.report.check(
            "port binder",
            "it is gone when the first worker starts",
            children == [worker],
            format_args!("{} processes are there", children.len()),
        )?;
        // It has created the socket, and will remove it.
        let made = vec![text(&self.scratch.users_directory()), text(&socket)];
        self.supervisor("supervisor", &server, 2, made)?;
        if self.identity.is_none() {
            let why = "an ordinary user has nothing to give up: the bounding set stays, and setuid programs work";
            self.report.not_here("supervisor", why)?;
            let why = "it can do to its supervisor whatever its user can";
            self.report.not_here("worker", why)?;
        }
        if self.ports.forbidden.is_none() {
            let why = "low ports are open to everybody on this host";
            self.report.not_here("worker", why)?;
        }
        let mut escapes = self.escapes_of_every_worker();
        escapes.extend(self.escapes_at("its supervisor", server.pid()));
        self.generations(&mut server, worker, &escapes, "")?;
        self.end(server, None)
    }

    /// With a port, and with a socket at a path that only root may write: the binder stays to remove it.
    pub fn server_of_a_path(&mut self) -> Result<(), Failure> {
        let socket = self.scratch.path("socket");
        // To change its owner the binder needs a capability, which must be gone afterwards.
        let owner = format!(",user={}", self.user.uid);
        let mut server = self.start_server(&socket, &owner)?;
        let worker = server.worker(1, &self.patience, &self.scratch)?;
        let mut others = proc::children(server.pid())?;
        others.retain(|child| *child != worker);
        self.report.check(
            LASTING,
            "it is the only process beside the first worker",
            others.len() == 1,
            format_args!("there are {} others", others.len()),
        )?;
        let Some(binder) = others.first().copied() else {
            return self.end(server, None);
        };
        // Two layers: for creating the socket, and for removing it.
        let profile = Profile {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            capability: None,
            sealed: true,
            filters: 2,
            undumpable: false,
        };
        self.check_profile(LASTING, binder, &profile)?;
        let rest = vec![text(self.scratch.directory()), text(&socket)];
        self.binder_has(LASTING, binder, rest)?;
        // The third socket is the channel.
        self.supervisor(BESIDE, &server, 3, Vec::new())?;
        let mut escapes = self.escapes_at("the resident binder", binder);
        escapes.push((
            WorkerEscape::Signal(binder.as_raw()),
            "it cannot signal the resident binder".into(),
        ));
        escapes.push((
            WorkerEscape::RemoveFile(socket),
            "it cannot remove the socket of root".into(),
        ));
        self.generations(&mut server, worker, &escapes, " beside a binder")?;
        self.end(server, Some(binder))
    }

    fn supervisor(
        &mut self,
        process: &str,
        server: &Server,
        sockets: usize,
        mut rest: Vec<String>,
    ) -> Result<(), Failure> {
        let pid = server.pid();
        let profile = self.profile_of_user(self.identity.is_some());
        self.check_profile(process, pid, &profile)?;
        let status = Status::of(pid)?;
        self.report.check(
            process,
            "it ignores no signal that its launcher ignored",
            status.ignored & mask(&[Signal::SIGWINCH, Signal::SIGTSTP]) == 0,
            format_args!("it ignores {:x}", status.ignored),
        )?;
        let named = server
            .files()
            .iter()
            .filter(|path| !path.ends_with("socket"));
        rest.extend(named.map(|path| text(path)));
        // Its server program, to start it again after a crash.
        rest.extend(std::env::current_exe().map(|path| text(&path)));
        rest.push("anon_inode:[signalfd]".into());
        rest.extend((0..sockets).map(|_| "socket".to_owned()));
        let log = text(&self.scratch.log_path());
        let standard = [(0, "pipe"), (1, "pipe"), (2, log.as_str())];
        // A status file that is just being replaced is open twice.
        let expected = (&standard[..], rest);
        let settled = self
            .patience
            .until("its descriptors are as they must be", || {
                Ok(proc::descriptors(pid)
                    .is_ok_and(|open| has_descriptors(&open, &expected))
                    .then_some(()))
            });
        self.report.check(
            process,
            "its listeners, signals and files are open, and nothing that was leaked to it",
            settled.is_ok(),
            listed(proc::descriptors(pid)),
        )?;
        let pid_file = self.scratch.of_user("pid");
        // In a directory of the user, whose other processes may have put anything there.
        let noted = read_text(&pid_file).unwrap_or_default();
        self.report.check(
            process,
            "it has the pid that was started, as its pid file says",
            noted.trim() == pid.to_string(),
            format_args!("{pid} was started, and the file says {:?}", noted.trim()),
        )
    }

    /// The first worker and the one after a HUP, each examined and told to try these escapes.
    fn generations(
        &mut self,
        server: &mut Server,
        first: Pid,
        escapes: &[(WorkerEscape, String)],
        where_: &str,
    ) -> Result<(), Failure> {
        let mut pid = first;
        for generation in [1, 2] {
            let process = format!("worker {generation}{where_}");
            self.worker(&process, pid)?;
            let all: Vec<WorkerEscape> = escapes.iter().map(|(escape, _)| escape.clone()).collect();
            let outcomes = server.try_escapes(&all, &self.patience, &self.scratch)?;
            for ((_, what), outcome) in escapes.iter().zip(outcomes) {
                let refused = matches!(outcome, Some(Errno::EPERM | Errno::EACCES));
                let found = match outcome {
                    None => "it can",
                    Some(errno) => errno.desc(),
                };
                self.report.check(&process, what, refused, found)?;
            }
            if generation == 1 {
                server.signal(Signal::SIGHUP)?;
                pid = server.worker(2, &self.patience, &self.scratch)?;
            }
        }
        Ok(())
    }

    fn worker(&mut self, process: &str, pid: Pid) -> Result<(), Failure> {
        let profile = Profile {
            // An ordinary process of its user.
            undumpable: false,
            ..self.profile_of_user(self.identity.is_some())
        };
        self.check_profile(process, pid, &profile)?;
        let status = Status::of(pid)?;
        self.report.check(
            process,
            "it blocks no signal, and ignores only PIPE",
            status.blocked == 0 && status.ignored == mask(&[Signal::SIGPIPE]),
            format_args!(
                "it blocks {:x} and ignores {:x}",
                status.blocked, status.ignored
            ),
        )?;
        let log = text(&self.scratch.log_path());
        let all = [
            (0, "pipe"),
            (1, "pipe"),
            (2, log.as_str()),
            (3, "socket"),
            (4, "socket"),
        ];
        self.descriptors(
            process,
            pid,
            "0 to 2 and the listeners",
            &(&all, Vec::new()),
        )?;
        let names = proc::variables(pid);
        // The launcher's environment is empty here. A worker of root's start_server gets its user's login variables.
        let (of_login, of_sockets) = (
            ["HOME", "LOGNAME", "SHELL", "USER"],
            [
                "SERVER_STARTER_GENERATION",
                "SERVER_STARTER_PORT",
                "SERVER_STARTER_WORKER",
                "SERVER_STARTER_WORKERS",
            ],
        );
        let mut expected = of_sockets.to_vec();
        if self.identity.is_some() {
            expected.extend(of_login);
            expected.sort_unstable();
        }
        self.report.check(
            process,
            "its environment is its launcher's plus its user's login variables and those for its sockets",
            names.as_ref().is_ok_and(|names| *names == expected),
            names.map_or_else(|error| failure::cause(&error), |names| names.join(" ")),
        )
    }

    fn escapes_of_every_worker(&mut self) -> Vec<(WorkerEscape, String)> {
        let mut escapes: Vec<(WorkerEscape, String)> = [
            (WorkerEscape::BecomeRoot, "it cannot become uid 0"),
            (WorkerEscape::BecomeRootGroup, "it cannot become gid 0"),
            (WorkerEscape::TakeGroups, "it cannot take the group of root"),
            (
                WorkerEscape::RaiseCapabilities,
                "it cannot raise a capability",
            ),
        ]
        .into_iter()
        .map(|(escape, what)| (escape, what.to_owned()))
        .collect();
        if let Some(port) = self.ports.forbidden {
            let what = format!("it cannot bind the low port {port}");
            escapes.push((WorkerEscape::BindPort(self.ports.address, port), what));
        }
        if self.identity.is_some() {
            let what = "it cannot open a file of root".to_owned();
            escapes.push((WorkerEscape::ReadFile(self.scratch.log_path()), what));
        }
        escapes
    }

    /// Against a process out of the user's reach. An ordinary user's supervisor has nothing that its worker does not have.
    fn escapes_at(&self, whom: &str, pid: Pid) -> Vec<(WorkerEscape, String)> {
        if self.identity.is_none() {
            return Vec::new();
        }
        let pid = pid.as_raw();
        vec![
            (WorkerEscape::Trace(pid), format!("it cannot trace {whom}")),
            (
                WorkerEscape::ReadMemory(pid),
                format!("it cannot open the memory of {whom}"),
            ),
            (
                WorkerEscape::TakeDescriptor(pid),
                format!("it cannot take a descriptor from {whom}"),
            ),
        ]
    }

    /// What a supervisor must be like and, except for the last point, a worker.
    fn profile_of_user(&self, dropped: bool) -> Profile {
        Profile {
            uid: self.user.uid,
            gid: self.user.gid,
            groups: self.user.groups.clone(),
            capability: None,
            sealed: dropped,
            filters: 0,
            undumpable: dropped,
        }
    }

    /// Sends TERM and checks that nothing is left behind.
    fn end(&mut self, mut server: Server, binder: Option<Pid>) -> Result<(), Failure> {
        server.signal(Signal::SIGTERM)?;
        let status = server.end(&self.patience)?;
        let process = match binder {
            Some(_) => BESIDE,
            None => "supervisor",
        };
        self.report.check(
            process,
            "it exits with 0 after TERM",
            status.success(),
            status,
        )?;
        let left: Vec<String> = server
            .files()
            .iter()
            .filter(|path| path.symlink_metadata().is_ok())
            .map(|path| text(path))
            .collect();
        self.report.check(
            process,
            "it leaves no socket, pid or status file",
            left.is_empty(),
            left.join(" "),
        )?;
        // Orphans have become children of this process by now.
        let left = self.inherited.newer()?;
        self.report.check(
            process,
            "it leaves no process",
            left.is_empty(),
            format_args!("{} are there", left.len()),
        )?;
        if let Some(binder) = binder {
            self.report.check(
                LASTING,
                "it exits before its supervisor",
                !proc::exists(binder),
                "it is there",
            )?;
        }
        Ok(())
    }

    /// The user, the capabilities and the confinement of a process.
    pub fn check_profile(
        &mut self,
        process: &str,
        pid: Pid,
        profile: &Profile,
    ) -> Result<(), Failure> {
        let status = Status::of(pid)?;
        self.check_identity(process, &status, profile)?;
        self.check_capabilities(process, &status, profile)?;
        self.check_filters(process, &status, profile)?;
        if profile.undumpable {
            self.check_undumpable(process, pid, &status)?;
        }
        self.report.check(
            process,
            "it has one thread",
            status.threads == 1,
            status.threads,
        )
    }

    /// The user and the groups.
    fn check_identity(
        &mut self,
        process: &str,
        status: &Status,
        profile: &Profile,
    ) -> Result<(), Failure> {
        let Profile { uid, gid, .. } = profile;
        self.report.check(
            process,
            format_args!("its uids are {uid}"),
            status.uids == [*uid; 4],
            words(&status.uids),
        )?;
        let mut groups = profile.groups.clone();
        groups.sort_unstable();
        groups.dedup();
        self.report.check(
            process,
            format_args!("its gids are {gid}, its groups {}", words(&groups)),
            status.gids == [*gid; 4] && status.groups == groups,
            format_args!("{}, and {}", words(&status.gids), words(&status.groups)),
        )
    }

    /// The capability sets, and what could fill them again.
    fn check_capabilities(
        &mut self,
        process: &str,
        status: &Status,
        profile: &Profile,
    ) -> Result<(), Failure> {
        let set = profile.capability.map_or(0, |one| one.bitmask());
        let found = [
            status.permitted,
            status.effective,
            status.inheritable,
            status.ambient,
        ];
        let named = match profile.capability {
            Some(capability) => format!("it has {capability} and no other capability"),
            None => "it has no capability".to_owned(),
        };
        self.report.check(
            process,
            named,
            found == [set, set, 0, 0],
            format_args!(
                "permitted {:x}, effective {:x}, inheritable {:x}, ambient {:x}",
                found[0], found[1], found[2], found[3]
            ),
        )?;
        if profile.sealed {
            self.report.check(
                process,
                "its bounding set is empty",
                status.bounding == 0,
                format_args!("{:x}", status.bounding),
            )?;
        }
        if profile.sealed || profile.filters > 0 {
            self.report.check(
                process,
                "no_new_privs is set",
                status.no_new_privs,
                "it is not",
            )?;
        }
        Ok(())
    }

    /// The required number of seccomp filters.
    fn check_filters(
        &mut self,
        process: &str,
        status: &Status,
        profile: &Profile,
    ) -> Result<(), Failure> {
        let filters = self.launcher.seccomp_filters + profile.filters;
        let what = match profile.filters {
            0 => "it has the seccomp filters of its launcher".to_owned(),
            1 => "it has one seccomp filter of its own".to_owned(),
            more => format!("it has {more} seccomp filters of its own"),
        };
        self.report.check(
            process,
            what,
            status.seccomp_filters == filters,
            format_args!("{} instead of {filters}", status.seccomp_filters),
        )
    }

    fn check_undumpable(
        &mut self,
        process: &str,
        pid: Pid,
        status: &Status,
    ) -> Result<(), Failure> {
        let found = match proc::is_dumpable(pid) {
            // Everything there belongs to root for a process of root's.
            Ok(_) if status.uids.contains(&0) => Some("its user is root".to_owned()),
            Ok(true) => Some("it is dumpable".to_owned()),
            Ok(false) => None,
            Err(error) => Some(failure::cause(&error)),
        };
        self.report.check(
            process,
            "its user cannot inspect it",
            found.is_none(),
            found.unwrap_or_default(),
        )
    }

    /// What a binder has besides its channel and standard error.
    pub fn binder_has(
        &mut self,
        process: &str,
        pid: Pid,
        rest: Vec<String>,
    ) -> Result<(), Failure> {
        let log = text(&self.scratch.log_path());
        let standard = [(0, "socket"), (1, "/dev/null"), (2, log.as_str())];
        let what = match rest.is_empty() {
            true => "the channel and standard error",
            false => "the channel, standard error, and the files it works on",
        };
        self.descriptors(process, pid, what, &(&standard, rest))?;
        let names = proc::variables(pid);
        self.report.check(
            process,
            "its environment is empty",
            names.as_ref().is_ok_and(Vec::is_empty),
            names.map_or_else(|error| failure::cause(&error), |names| names.join(" ")),
        )?;
        let directory = proc::directory(pid);
        self.report.check(
            process,
            "its directory is /",
            directory.as_ref().is_ok_and(|path| path == Path::new("/")),
            directory.map_or_else(|error| failure::cause(&error), |path| text(&path)),
        )
    }

    fn descriptors(
        &mut self,
        process: &str,
        pid: Pid,
        what: impl Display,
        expected: &Descriptors<'_>,
    ) -> Result<(), Failure> {
        let open = proc::descriptors(pid);
        self.report.check(
            process,
            format_args!("only {what} are open"),
            open.as_ref()
                .is_ok_and(|open| has_descriptors(open, expected)),
            listed(open),
        )
    }
}

fn has_descriptors(open: &BTreeMap<i32, String>, (fixed, rest): &Descriptors<'_>) -> bool {
    let mut open = open.clone();
    let fixed_hold = fixed
        .iter()
        .all(|(number, target)| open.remove(number).as_deref() == Some(*target));
    let mut others: Vec<String> = open.into_values().collect();
    let mut rest = rest.clone();
    others.sort_unstable();
    rest.sort_unstable();
    fixed_hold && others == rest
}

fn listed(open: std::io::Result<BTreeMap<i32, String>>) -> String {
    match open {
        Ok(open) => open
            .iter()
            .map(|(number, target)| format!("{number} {target}"))
            .collect::<Vec<_>>()
            .join(", "),
        Err(error) => failure::cause(&error),
    }
}

fn mask(signals: &[Signal]) -> u64 {
    signals
        .iter()
        .fold(0, |mask, signal| mask | 1 << (*signal as i32 - 1))
}

fn words(numbers: &[u32]) -> String {
    if numbers.is_empty() {
        return "none".into();
    }
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(" ")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
