//! `--status-file=F`: `F` in Server::Starter's format for programs that know it, and `F.json` with everything. A pid file
//! `P` gets a `P.json` with the same contents, where `--restart` finds its verdict.
//!
//! All are removed at the end if they are still ours. A full disk does not end the service: the caller gets one notice, and
//! the write is retried until it works.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::from_machine::{self, Clock};
use super::lines::is_status_lines;
use super::replaced::{self, PackedReplaced, Replaced, remove_drafts_of_the_dead};
use super::view::{self, View, is_status_json};
use crate::host::confinement::{InForce, OfBinder};
use crate::host::luggage::Luggage;
use crate::host::moment::Moment;
use crate::host::order::Order;
use crate::host::proc;
use crate::listeners::listener::Listener;
use crate::log::{Readers, Reopened};
use crate::machine::{Machine, REMEMBERED};
use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::trouble::Trouble;

pub use super::replaced::{cannot as cannot_write, read_text};
use super::settings::{Settings, Shown};
use super::shown::shown;

/// How long after a failed write it is retried.
const RETRY: Duration = Duration::from_secs(1);

/// How long what a worker says about itself may wait to be written: it can say something new at any moment.
const SOON: Duration = Duration::from_millis(100);

/// The mode of `F`, whatever the umask: it contains nothing but numbers.
const READ_BY_ALL: u32 = 0o644;

/// USR2, among the orders.
pub const UPGRADE: &str = "upgrade";

/// The minimum mode of `F.json`, to let workers and clients of the same user read it. Beyond that the umask decides: it may
/// contain lines of the log, and should be readable to no more users than the log itself.
const READ_BY_USER: u32 = 0o600;

/// All these files.
#[derive(Debug)]
pub struct StatusFile {
    lines: Option<Replaced>,
    json: Vec<Replaced>,
    /// Their contents, updated before each save.
    view: View,
    /// The last lines on standard error of workers that have ended or whose start has failed, if known; oldest first.
    last_lines: VecDeque<(Pid, Vec<String>)>,
    /// What the generations are called of which something is known.
    labels: BTreeMap<u32, String>,
    /// When it is saved even without a change of the machine.
    retry_at: Option<Moment>,
    /// What a starting generation waits for, if that is more than time.
    awaited: Option<String>,
}

/// Those of these files that root has made for this user, where only root can: still empty.
#[derive(Debug, Default)]
pub struct MadeByRoot(pub BTreeMap<PathBuf, File>);

impl MadeByRoot {
    fn take_or(
        &mut self,
        path: &Path,
        least_mode: u32,
        is_stale: fn(&str) -> bool,
    ) -> Result<Replaced, Failure> {
        let path = path.to_owned();
        match self.0.remove(&path) {
            Some(file) => Ok(Replaced::made(path, least_mode, file)),
            None => Replaced::new(path, least_mode, is_stale),
        }
    }
}

/// The paths of all these files.
pub fn paths(settings: &Settings) -> Vec<PathBuf> {
    let files = [&settings.status_file, &settings.pid_file];
    let json = files.into_iter().flatten().map(|beside| json_path(beside));
    settings.status_file.iter().cloned().chain(json).collect()
}

/// Before root replaces what this user has at one of them.
///
/// # Errors
/// If that is no status file.
pub fn refuse_foreign(path: &Path) -> Result<(), Failure> {
    let is_stale = |text: &str| is_status_lines(text) || is_status_json(text);
    replaced::refuse_foreign(path, is_stale).map(drop)
}

/// The same for the next program, without what it knows from its settings and takes from the machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedStatusFile {
    lines: Option<PackedReplaced>,
    json: Vec<PackedReplaced>,
    lasting: Lasting,
    last_lines: Vec<(i32, Vec<String>)>,
    #[serde(default)]
    labels: BTreeMap<u32, String>,
    retry_at: Option<Moment>,
}

/// What the files show of the server, whichever program runs it.
#[derive(Debug, Serialize, Deserialize)]
struct Lasting {
    /// That of the process that was started.
    pid: u32,
    started_at: f64,
    start_ticks: Option<u64>,
    confinement: view::Confinement,
    listeners: Vec<view::Listener>,
    fd_store: view::FdStore,
    log: view::Log,
}

impl StatusFile {
    /// For the next program, to which the files belong then.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedStatusFile {
        let (view, last_lines) = (&self.view, self.last_lines.iter());
        PackedStatusFile {
            lines: self.lines.as_ref().map(|file| file.pack(luggage)),
            json: self.json.iter().map(|file| file.pack(luggage)).collect(),
            lasting: Lasting {
                pid: u32::try_from(view.supervisor.pid).unwrap_or_default(),
                started_at: view.supervisor.started_at,
                start_ticks: view.supervisor.start_ticks,
                confinement: view.confinement.clone(),
                listeners: view.listeners.to_vec(),
                fd_store: view.fd_store.clone().unwrap_or_default(),
                log: view.log.clone(),
            },
            last_lines: last_lines
                .map(|(pid, lines)| (pid.as_raw(), lines.clone()))
                .collect(),
            labels: self.labels.clone(),
            retry_at: self.retry_at,
        }
    }

    /// What another program has packed. What is new about this one is written with the next save.
    /// `is_killed` says that the one before was killed.
    pub fn unpack(packed: PackedStatusFile, settings: &Shown<'_>, is_killed: bool) -> StatusFile {
        let json = packed.json.into_iter();
        let last_lines = packed.last_lines.into_iter();
        let mut files = StatusFile {
            lines: packed.lines.map(|file| Replaced::unpack(file, READ_BY_ALL)),
            json: json
                .map(|file| Replaced::unpack(file, READ_BY_USER))
                .collect(),
            view: view_of(settings, packed.lasting),
            last_lines: last_lines
                .map(|(pid, lines)| (Pid::from_raw(pid), lines))
                .collect(),
            labels: packed.labels,
            retry_at: packed.retry_at,
            awaited: settings.ready.ready.awaited(),
        };
        if is_killed {
            files.find_again();
        }
        files
    }

    /// The program before was killed, perhaps between writing a file and saying so: what lies there is ours as well, and
    /// what it has not finished is not needed.
    fn find_again(&mut self) {
        let pid = self.view.supervisor.pid;
        let is_ours = |text: &str| View::parse(text).is_some_and(|view| view.supervisor.pid == pid);
        self.json
            .iter_mut()
            .for_each(|json| json.find_again(is_ours));
        if let Some(lines) = &mut self.lines {
            // Empty while no worker is settled.
            lines.find_again(|text| text.is_empty() || is_status_lines(text));
        }
        let files = self.lines.iter().chain(&self.json);
        files.for_each(|file| remove_drafts(file.path()));
    }

    /// Writes the first `F.json`, which also shows that the directory can be written, and removes a stale `F`.
    ///
    /// # Errors
    /// If something that is not a status file is there (it is left alone), or nothing can be written.
    pub fn create(
        settings: &Shown<'_>,
        listeners: &[Listener],
        confinement: InForce,
        mut made: MadeByRoot,
    ) -> Result<StatusFile, Failure> {
        let now = Moment::now();
        let lasting = Lasting {
            pid: std::process::id(),
            started_at: Clock::new(now).seconds(now),
            start_ticks: proc::start_ticks(Pid::this()),
            confinement: confinement.into(),
            listeners: listeners.iter().map(view::Listener::from).collect(),
            fd_store: view::FdStore::default(),
            log: view::Log::default(),
        };
        let lines = settings.files.status_file.as_deref();
        let mut status = StatusFile {
            lines: lines
                .map(|path| made.take_or(path, READ_BY_ALL, is_status_lines))
                .transpose()?,
            json: Vec::new(),
            view: view_of(settings, lasting),
            last_lines: VecDeque::new(),
            labels: BTreeMap::new(),
            retry_at: None,
            awaited: settings.ready.ready.awaited(),
        };
        lines.into_iter().for_each(remove_drafts);
        let text: Rc<str> = status.view.text().into();
        let pid_file = settings.files.pid_file.as_deref();
        for beside in [lines, pid_file].into_iter().flatten() {
            let path = json_path(beside);
            let mut json = made.take_or(&path, READ_BY_USER, is_status_json)?;
            remove_drafts(&path);
            json.create(&text)?;
            status.json.push(json);
        }
        if let Some(lines) = &mut status.lines {
            // Its pids are out of date, and workers read it.
            lines.remove_stale()?;
        }
        Ok(status)
    }

    /// Writes what has changed. An error yields one notice, and the write is retried until it works.
    #[must_use]
    pub fn save(&mut self, machine: &Machine, now: Moment) -> Vec<Notice> {
        let mut saved = Vec::new();
        if let Some(file) = &mut self.lines {
            let text = from_machine::lines(machine);
            // Before anything has settled there is no `F`, as in Server::Starter.
            if !text.is_empty() || file.is_written() {
                saved.push(file.save(&text.into()));
            }
        }
        if !self.json.is_empty() {
            let last_lines = |pid| {
                last_lines_of(&self.last_lines, pid)
                    .iter()
                    .cloned()
                    .collect()
            };
            let (clock, awaited) = (Clock::new(now), self.awaited.as_deref());
            from_machine::update(&mut self.view, machine, &clock, awaited, last_lines);
            self.show_labels();
            let text = self.view.text().into();
            saved.extend(self.json.iter_mut().map(|file| file.save(&text)));
        }
        let is_done = saved.iter().all(|one| one.is_done);
        self.retry_at = (!is_done).then(|| now + RETRY);
        saved.into_iter().filter_map(|one| one.notice).collect()
    }

    /// What a generation is called; written with the next change.
    pub fn name_generation(&mut self, generation: u32, label: String) {
        /// More than have workers or a verdict that is remembered, except where workers never end.
        const KEPT: usize = 64;
        self.labels.insert(generation, label);
        while self.labels.len() > KEPT {
            self.labels.pop_first();
        }
    }

    /// What a generation is called.
    pub fn label_of(&self, generation: u32) -> Option<&str> {
        self.labels.get(&generation).map(String::as_str)
    }

    fn show_labels(&mut self) {
        let label = |number: u64| {
            let number = u32::try_from(number).ok()?;
            self.labels.get(&number).cloned()
        };
        let generations = self.view.generations.iter().cloned();
        let generations = generations.map(|one| view::Generation {
            label: label(one.number),
            ..one
        });
        let generations = generations.collect();
        let verdicts = self.view.verdicts.iter().cloned();
        let verdicts = verdicts.map(|one| view::Verdict {
            label: label(one.generation),
            ..one
        });
        self.view.verdicts = verdicts.collect();
        self.view.generations = generations;
    }

    /// The last lines of a worker that has ended or whose start has failed; written with the next change.
    pub fn keep_last_lines(&mut self, pid: Pid, last_lines: Vec<String>) {
        if last_lines.is_empty() {
            return;
        }
        // More may be known than when its start failed.
        self.last_lines.retain(|(one, _)| *one != pid);
        self.last_lines.push_back((pid, last_lines));
        if self.last_lines.len() > REMEMBERED {
            self.last_lines.pop_front();
        }
    }

    /// Who can read what is written here, besides its user.
    pub fn readers(&self) -> Readers {
        let files = self.json.iter().filter_map(Replaced::metadata);
        let mut readers = Readers {
            group: None,
            all: false,
        };
        for file in files {
            readers.all |= file.mode() & 0o004 != 0;
            if file.mode() & 0o040 != 0 {
                readers.group = Some(file.gid());
            }
        }
        readers
    }

    /// The results of requests to reopen the log file; written with the next change.
    pub fn log_reopened(&mut self, Reopened { orders, failure }: Reopened) {
        self.view.log.reopened = orders.into();
        self.view.log.failure = failure;
    }

    /// This process is the one to signal from now on; written with the next change.
    pub fn taken_over(&mut self) {
        self.view.supervisor.pid = std::process::id().into();
        self.view.supervisor.start_ticks = proc::start_ticks(Pid::this());
    }

    /// What became of requests to upgrade this process; written with the next change.
    pub fn upgrades_decided(&mut self, tried: u32, failure: Option<&str>) {
        self.view.upgrades = view::Upgrades {
            tried: tried.into(),
            failure: failure.map(str::to_owned),
        };
    }

    /// How many lines the log has lost so far; written with the next change, or soon. However fast they are lost, that
    /// does not write all the time.
    pub fn lines_lost(&mut self, lost: u64, now: Moment) {
        if std::mem::replace(&mut self.view.log.lost, lost) != lost {
            self.retry_at.get_or_insert(now + RETRY);
        }
    }

    /// What workers have left, by name, and how many were refused; written with the next change.
    pub fn descriptors_kept(&mut self, kept: BTreeMap<&str, u64>, refused: u64) {
        if let Some(store) = &mut self.view.fd_store {
            store.refused = refused;
            store.count = kept.values().sum();
            let kept = kept.into_iter().map(|(name, count)| view::Kept {
                name: name.to_owned(),
                count,
            });
            store.names = kept.collect();
        }
    }

    /// What is wrong with each listener; written with the next change.
    pub fn listeners_examined<'a>(&mut self, troubles: impl Iterator<Item = Option<&'a Trouble>>) {
        let listeners = self.view.listeners.iter().zip(troubles);
        let listeners = listeners.map(|(listener, trouble)| view::Listener {
            trouble: trouble.map(|trouble| trouble.cause.clone()),
            ..listener.clone()
        });
        self.view.listeners = listeners.collect();
    }

    /// The last lines of a worker that has ended or whose start has failed, if known.
    pub fn last_lines_of(&self, pid: Pid) -> &[String] {
        last_lines_of(&self.last_lines, pid)
    }

    /// Something has changed that need not be written at once.
    pub fn changed(&mut self, now: Moment) {
        self.retry_at.get_or_insert(now + SOON);
    }

    /// When [`StatusFile::save`] is due: after a failure, after lines were lost, or after what was not written at once.
    pub fn deadline(&self) -> Option<Moment> {
        self.retry_at
    }
}

impl Drop for StatusFile {
    fn drop(&mut self) {
        self.lines
            .iter()
            .chain(&self.json)
            .for_each(Replaced::remove);
    }
}

/// Before the machine has added anything.
fn view_of(settings: &Shown<'_>, lasting: Lasting) -> View {
    View {
        supervisor: view::Supervisor {
            pid: lasting.pid.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: lasting.started_at,
            start_ticks: lasting.start_ticks,
            orders: orders().map(str::to_owned).collect(),
        },
        options: shown(settings),
        confinement: lasting.confinement,
        listeners: lasting.listeners.into_iter().collect(),
        fd_store: match settings.ready.fd_store_max {
            0 => None,
            max => Some(view::FdStore {
                max: max.into(),
                ..lasting.fd_store
            }),
        },
        log: lasting.log,
        ..View::default()
    }
}

/// The JSON file that belongs to a status or pid file.
pub fn json_path(beside: &Path) -> PathBuf {
    let mut path = OsString::from(beside);
    path.push(".json");
    path.into()
}

/// Everything that this version obeys besides what every version does.
fn orders() -> impl Iterator<Item = &'static str> {
    Order::names().chain([UPGRADE])
}

fn last_lines_of(all: &VecDeque<(Pid, Vec<String>)>, pid: Pid) -> &[String] {
    // The last one with that pid: pids are reused.
    let found = all.iter().rev().find(|(one, _)| *one == pid);
    found.map_or(&[], |(_, lines)| lines)
}

fn remove_drafts(path: &Path) {
    remove_drafts_of_the_dead(path, |text| {
        text.is_empty() || text.starts_with("{\n  \"supervisor\"") || is_status_lines(text)
    });
}

impl From<InForce> for view::Confinement {
    fn from(confinement: InForce) -> view::Confinement {
        view::Confinement {
            supervisor: view::ConfinedSupervisor {
                no_new_privs: confinement.supervisor.no_new_privs,
                bounding_set_empty: confinement.supervisor.bounding_set_empty,
            },
            binders: confinement.binders.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<OfBinder> for view::ConfinedBinder {
    fn from(binder: OfBinder) -> view::ConfinedBinder {
        view::ConfinedBinder {
            makes: binder.makes.to_owned(),
            seccomp: binder.seccomp,
            landlock: binder.landlock,
        }
    }
}

impl From<&Listener> for view::Listener {
    fn from(listener: &Listener) -> view::Listener {
        let name = listener.name.to_string_lossy().into_owned();
        view::Listener {
            address: match listener.address {
                Some(address) => address.to_string(),
                None => name.clone(),
            },
            name,
            kind: listener.kind.to_owned(),
            fd: listener.number,
            backlog: listener.backlog,
            sockets: listener.group.as_ref().map(|group| group.count().into()),
            inherited: listener.inherited.is_some(),
            trouble: None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
mod tests {
    use std::fs;
    use std::mem::ManuallyDrop;
    use std::net::UdpSocket;

    use super::*;
    use crate::host::confinement::OfSupervisor;
    use crate::machine::Event;
    use crate::options::{Invocation, Options, parse};

    fn options(words: &[&str]) -> Options {
        match parse(words.iter().map(OsString::from)) {
            Ok(Invocation::Start(options)) => *options,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn settings(options: &Options) -> Shown<'_> {
        Shown {
            files: &options.status,
            worker: &options.worker,
            environment: &options.environment,
            machine: &options.machine,
            ready: &options.ready,
            log: &options.log,
            identity: &options.identity,
        }
    }

    fn listener() -> Listener {
        Listener {
            name: "web".into(),
            kind: "udp",
            address: None,
            socket: UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            group: None,
            number: 3,
            backlog: None,
            inherited: None,
        }
    }

    #[test]
    fn the_next_program_goes_on_with_the_files_and_removes_its_own_at_the_end() {
        let folder = std::env::temp_dir().join(format!("packed-status-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = |name: &str| folder.join(name);
        let option = |name: &str, file| format!("--{name}={}", path(file).to_str().unwrap());
        let files = [option("status-file", "F"), option("pid-file", "P")];
        let more = ["--ready=notify", "--fd-store-max=9", "--", "prog"];
        let options = options(&[&[files[0].as_str(), files[1].as_str()], &more[..]].concat());
        let confinement = InForce {
            supervisor: OfSupervisor::ORDINARY,
            binders: Vec::new(),
        };
        // It would remove the files of the next one.
        let mut before = ManuallyDrop::new(
            StatusFile::create(
                &settings(&options),
                &[listener()],
                confinement,
                MadeByRoot::default(),
            )
            .unwrap(),
        );
        let (now, pid) = (Moment::now(), Pid::from_raw(77));
        let mut machine = Machine::start(options.machine.clone(), now).0;
        let spawned = |generation| Event::Spawned {
            generation,
            slot: 0,
            pid: Pid::from_raw(76 + i32::try_from(generation).unwrap()),
        };
        for event in [spawned(1), Event::Executed(pid), Event::Ready(pid)] {
            machine.on(event, now);
        }
        before.descriptors_kept([("one", 2)].into(), 4);
        before.keep_last_lines(pid, vec!["said".to_owned()]);
        assert_eq!(before.save(&machine, now), []);
        fs::remove_file(path("P.json")).unwrap();
        fs::write(path("P.json"), "foreign").unwrap();
        before.log_reopened(Reopened {
            orders: 1,
            failure: Some("no".to_owned()),
        });
        let notices = before.save(&machine, now);
        assert!(matches!(notices[..], [Notice::TakenOver { .. }]));
        before.lines_lost(5, now);

        let written = || View::parse(&fs::read_to_string(path("F.json")).unwrap()).unwrap();
        let was = written();
        let text = serde_json::to_string(&before.pack(&mut Luggage::default())).unwrap();
        let packed = serde_json::from_str(&text).unwrap();
        let mut next = StatusFile::unpack(packed, &settings(&options), false);
        assert_eq!(next.deadline(), Some(now + RETRY));
        assert_eq!(next.last_lines_of(pid), ["said"]);
        machine.on(Event::Restart, now);
        machine.on(spawned(2), now);
        // The foreign file is known.
        assert_eq!(next.save(&machine, now), []);
        let is = written();
        assert_eq!(is.generations[1].waiting_for.as_deref(), Some("READY=1"));
        let log = view::Log {
            lost: 5,
            ..was.log.clone()
        };
        assert_eq!((is.supervisor, is.log), (was.supervisor, log));
        assert_eq!((is.options, is.listeners), (was.options, was.listeners));
        assert_eq!(is.confinement, was.confinement);
        assert_eq!(is.fd_store, was.fd_store);
        assert_eq!(is.fd_store.unwrap().refused, 4);
        assert_eq!(fs::read_to_string(path("F")).unwrap(), "1:77\n");
        drop(next);
        let left: Vec<_> = fs::read_dir(&folder).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(fs::read_to_string(path("P.json")).unwrap(), "foreign");
        fs::remove_dir_all(&folder).unwrap();
    }
}
