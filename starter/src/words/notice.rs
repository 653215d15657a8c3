//! Everything that the running superdaemon logs, and how important it is. [`super::sentence`] words it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::words::canary::Trial;
use crate::words::guardian::Guarding;
use crate::words::lack::Lack;
use crate::words::many::Many;
use crate::words::rollback::Way;
use crate::words::start_failure::StartFailure;
use crate::words::stop_first::StopFirst;
use crate::words::stopping::StillWaiting;
use crate::words::switch::Switching;
use crate::words::trouble::{Trouble, Was};
use crate::words::upgrade::Upgrade;

/// How important a line is, in syslog's terms (syslog(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
    Notice,
    Info,
}

impl Severity {
    /// As syslog.conf(5) calls it.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "err",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
            Severity::Info => "info",
        }
    }
}

/// Something that the superdaemon says while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    StartingNow(Pid),
    Duplicated {
        descriptor: i32,
    },
    RemovingSocket {
        path: PathBuf,
    },
    StartingNewWorker(Pid),
    FailedToStart {
        pid: Pid,
        status: i32,
    },
    ReceivedHup,
    NewWorkerRunning {
        signal: Signal,
        pids: Vec<Pid>,
    },
    Sleeping {
        delay: Duration,
        old: Vec<Pid>,
    },
    KillingOldWorkers {
        old: Vec<Pid>,
    },
    /// With the seconds between automatic restarts.
    AutoRestart {
        interval: Duration,
        forced: bool,
    },
    DiedUnexpectedly {
        pid: Pid,
        status: i32,
    },
    OldWorkerDied {
        pid: Pid,
        status: i32,
    },
    Stopping {
        received: Signal,
        sent: Signal,
        pids: Vec<Pid>,
    },
    WorkerDied {
        pid: Pid,
        status: i32,
    },
    Exiting,
    // Not in Server::Starter:
    /// All listeners are open: where the first ones are, and how many there are.
    Listening {
        first: Vec<String>,
        count: usize,
    },
    /// What a generation is called that is about to be started.
    Labelled {
        generation: u32,
        label: String,
    },
    /// A generation has committed.
    Serves {
        generation: u32,
        pids: Vec<Pid>,
    },
    /// It was told to stop once more.
    StillWaiting(StillWaiting),
    /// The kernel has chosen a port that was left to it.
    PortChosen {
        given: String,
        address: SocketAddr,
    },
    /// What the launcher has passed on, by its keys.
    TookOver {
        keys: Vec<String>,
    },
    /// What an earlier start has stored with the service manager, by its keys.
    TookBack {
        keys: Vec<String>,
    },
    /// Mode and owner of a file that the launcher has made.
    AttributesOfLauncher {
        given: String,
    },
    /// The kernel grants each listener a shorter queue than was asked for.
    BacklogCut {
        asked: i32,
        granted: u32,
    },
    CannotStartWorker {
        generation: u32,
        slot: usize,
        /// If there is a process.
        pid: Option<Pid>,
        cause: StartFailure,
    },
    /// So nothing is started.
    CheckFailed(StartFailure),
    /// What has served cannot be started again in this generation.
    Unpinned {
        generation: u32,
        /// If its program is held at all.
        errno: Option<Errno>,
    },
    /// A worker that has exited left these processes behind.
    EndingLeftovers {
        worker: Pid,
        signal: Signal,
        pids: Vec<Pid>,
    },
    /// The last restart is undone, because somebody asked for it.
    RollbackAsked {
        pid: Pid,
    },
    RollingBack(Way),
    CannotRollBack(StartFailure),
    /// The restart is given up, because somebody asked for it.
    AbortAsked {
        pid: Pid,
    },
    /// Another number of workers, because somebody asked for it.
    ScaleAsked {
        pid: Pid,
        workers: u16,
    },
    Aborting(Way),
    CannotAbort(StartFailure),
    /// A restart has failed and is tried again after this time; what serves meanwhile goes on.
    NextTry {
        next: Duration,
        serving: u32,
    },
    RolledBack {
        pids: Vec<Pid>,
    },
    GivingUp {
        failures: u32,
        serving: Vec<Pid>,
    },
    NothingServes {
        next: Duration,
    },
    /// A restart for which what serves stops first.
    StopFirst(StopFirst),
    Switching(Switching),
    Trial(Trial),
    /// A client has asked for a canary.
    CanaryAsked {
        pid: Pid,
    },
    /// A client has asked for the promotion of the canary.
    PromotionAsked {
        pid: Pid,
    },
    Upgrade(Upgrade),
    Many(Many),
    Guarding(Guarding),
    /// What serves dies soon after it has committed.
    CrashLoop {
        deaths: u32,
        next: Duration,
    },
    KillingWorkers {
        pids: Vec<Pid>,
    },
    /// They were told to stop.
    KillingLateWorkers {
        pids: Vec<Pid>,
    },
    /// Connections wait in the queue of a listener, known by its key.
    NobodyAccepts {
        listener: OsString,
        waiting: u32,
        since: Duration,
    },
    /// The generation that serves has answered badly or not at all for this long.
    Unhealthy {
        generation: u32,
        since: Duration,
        known: String,
    },
    HealthyAgain {
        generation: u32,
    },
    /// A worker has begun to stop without having been told to.
    StoppingByItself(Pid),
    Ignored(Signal),
    CannotSignal {
        pid: Pid,
        signal: Signal,
        errno: Errno,
    },
    CannotSave {
        path: PathBuf,
        cause: String,
    },
    SavedAgain {
        path: PathBuf,
    },
    TakenOver {
        path: PathBuf,
    },
    BinderDied,
    BoundingSetKept,
    Unconfined(Lack),
    /// A complete message, worded elsewhere, such as one about a problem with `--envdir`.
    Complaint(String),
    /// The same about what a generation was notified of, by this worker if it is known.
    NotificationIgnored {
        generation: u32,
        worker: Option<Pid>,
        sentence: String,
    },
    /// A possible cause of a failed start: the user cannot open the streams with these paths.
    ClosedStreams(Vec<&'static str>),
    LinesLost(u64),
    NeverSent(u64),
    PidFileGone {
        path: PathBuf,
    },
    PidFileWrittenAgain {
        path: PathBuf,
    },
    /// With the pid that it contained, if any.
    PidFileOverwritten {
        path: PathBuf,
        by: Option<u32>,
    },
    LogCommandDied {
        status: i32,
    },
    CannotStartLogCommand {
        cause: String,
    },
    LogReopened {
        path: PathBuf,
        /// Whether we write every line ourselves, so that all of them go there now.
        is_captured: bool,
    },
    SyslogUnreachable {
        place: String,
        errno: Errno,
    },
    CannotReopen {
        path: PathBuf,
        cause: String,
    },
    NothingToReopen,
    StopServer {
        ours: Pid,
        theirs: Pid,
    },
    RestartAsked {
        pid: Pid,
    },
    UpgradeAsked {
        pid: Pid,
    },
    ReopenAsked {
        pid: Pid,
    },
    /// With the worker that has just exited, if that is when it was noticed.
    ListenerMended {
        name: String,
        was: Was,
        worker: Option<Pid>,
    },
    ListenerInTrouble {
        name: String,
        trouble: Trouble,
        worker: Option<Pid>,
    },
    ListenerReachable {
        name: String,
    },
    /// With the pid in the file, if it contains one.
    LockHeldByAnother {
        path: PathBuf,
        written: Option<u32>,
        holder: Pid,
    },
}

impl Notice {
    /// Errors are requests that failed; warnings are things that nobody requested. One long match: each notice has its
    /// place.
    pub fn severity(&self) -> Severity {
        match self {
            Notice::FailedToStart { .. }
            | Notice::StopFirst(StopFirst::StartingAgain { .. })
            | Notice::CannotStartWorker { .. }
            | Notice::CheckFailed(_)
            | Notice::GivingUp { .. }
            | Notice::NothingServes { .. }
            | Notice::CrashLoop { .. }
            | Notice::CannotSignal { .. }
            | Notice::CannotSave { .. }
            | Notice::CannotStartLogCommand { .. }
            | Notice::CannotReopen { .. }
            | Notice::Many(Many::RollStopped { .. })
            | Notice::Switching(Switching::NotSwitched { .. })
            | Notice::Trial(Trial::Failed { .. } | Trial::Died { .. })
            | Notice::ListenerInTrouble { .. } => Severity::Error,
            Notice::DiedUnexpectedly { .. }
            | Notice::EndingLeftovers { .. }
            | Notice::Unpinned { .. }
            | Notice::RolledBack { .. }
            | Notice::RollingBack(_)
            | Notice::CannotRollBack(_)
            | Notice::Aborting(_)
            | Notice::CannotAbort(_)
            | Notice::Trial(Trial::CannotPromote(_))
            | Notice::KillingWorkers { .. }
            | Notice::KillingLateWorkers { .. }
            | Notice::StoppingByItself(_)
            | Notice::NobodyAccepts { .. }
            | Notice::Unhealthy { .. }
            | Notice::TakenOver { .. }
            | Notice::BinderDied
            | Notice::BoundingSetKept
            | Notice::Unconfined(_)
            | Notice::BacklogCut { .. }
            | Notice::AttributesOfLauncher { .. }
            | Notice::Complaint(_)
            | Notice::NotificationIgnored { .. }
            | Notice::ClosedStreams(_)
            | Notice::LinesLost(_)
            | Notice::NeverSent(_)
            | Notice::PidFileGone { .. }
            | Notice::PidFileWrittenAgain { .. }
            | Notice::PidFileOverwritten { .. }
            | Notice::LockHeldByAnother { .. }
            | Notice::LogCommandDied { .. }
            | Notice::NothingToReopen
            | Notice::Upgrade(Upgrade::Failed { .. })
            | Notice::Guarding(_)
            | Notice::Many(Many::CannotScale(_))
            | Notice::Switching(
                Switching::Impossible { .. }
                | Switching::Shared(_)
                | Switching::NoLanes { .. }
                | Switching::NotSwept { .. }
                | Switching::NotQuiet { .. },
            )
            | Notice::ListenerMended { .. }
            | Notice::SyslogUnreachable { .. } => Severity::Warning,
            Notice::StartingNow(_)
            | Notice::ReceivedHup
            | Notice::NewWorkerRunning { .. }
            | Notice::AutoRestart { .. }
            | Notice::StopFirst(_)
            | Notice::Switching(_)
            | Notice::Trial(_)
            | Notice::Many(Many::Scaling { .. })
            | Notice::Upgrade(Upgrade::Done { .. })
            | Notice::Stopping { .. }
            | Notice::StillWaiting(_)
            | Notice::Serves { .. }
            | Notice::Exiting
            | Notice::SavedAgain { .. }
            | Notice::HealthyAgain { .. }
            | Notice::ListenerReachable { .. }
            | Notice::LogReopened { .. } => Severity::Notice,
            Notice::Duplicated { .. }
            | Notice::TookOver { .. }
            | Notice::TookBack { .. }
            | Notice::PortChosen { .. }
            | Notice::Listening { .. }
            | Notice::Labelled { .. }
            | Notice::RemovingSocket { .. }
            | Notice::StartingNewWorker(_)
            | Notice::Sleeping { .. }
            | Notice::KillingOldWorkers { .. }
            | Notice::OldWorkerDied { .. }
            | Notice::WorkerDied { .. }
            | Notice::Ignored(_)
            | Notice::StopServer { .. }
            | Notice::RestartAsked { .. }
            | Notice::RollbackAsked { .. }
            | Notice::AbortAsked { .. }
            | Notice::CanaryAsked { .. }
            | Notice::PromotionAsked { .. }
            | Notice::ScaleAsked { .. }
            | Notice::NextTry { .. }
            | Notice::ReopenAsked { .. }
            | Notice::UpgradeAsked { .. }
            | Notice::Upgrade(Upgrade::Trying { .. }) => Severity::Info,
        }
    }

    /// Whether this tells why a start failed.
    pub fn is_failed_start(&self) -> bool {
        matches!(
            self,
            Notice::CannotStartWorker { .. } | Notice::FailedToStart { .. }
        )
    }
}
