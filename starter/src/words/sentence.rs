//! Every message that the running superdaemon logs, in words.
//!
//! The wording is Server::Starter's, because scripts look for it; messages that it does not have are marked.

use std::fmt;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::words::failure::Failure;
use crate::words::notice::Notice;
use crate::words::number::time;
use crate::words::parts::{Pids, WithMeaning, failed_starts, name};
use crate::words::remedy;
use crate::words::start_failure::StartFailure;
use crate::words::stopping::listed;
use crate::words::text::{printable, quoted};

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::CannotStartWorker { cause, .. } => {
                write!(f, "start_server: {}", Failure::from(cause))
            }
            one_line => {
                f.write_str(&printable(one_line.sentence()))?;
                match one_line.hint() {
                    Some(hint) => write!(f, "\nhint: {hint}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Notice {
    fn hint(&self) -> Option<&'static str> {
        match self {
            Notice::FailedToStart { status: 0, .. } => Some(remedy::STAY_IN_FOREGROUND),
            Notice::NobodyAccepts { .. } => Some(remedy::TAKES_NO_SOCKETS),
            Notice::SyslogUnreachable { errno, .. } => remedy::of_syslog(*errno),
            Notice::Unpinned { errno, .. } => remedy::of_unpinned(*errno),
            _ => None,
        }
    }

    /// One long match that keeps all messages in one place.
    fn sentence(&self) -> String {
        match self {
            Notice::StartingNow(pid) => format!("start_server (pid:{pid}) starting now..."),
            Notice::Duplicated { descriptor } => {
                format!("socket is duplicated to file descriptor {descriptor}")
            }
            Notice::RemovingSocket { path } => {
                format!("removing existing socket file:{}", printable(path))
            }
            Notice::StartingNewWorker(pid) => format!("starting new worker {pid}"),
            Notice::FailedToStart { pid, status } => {
                format!("new worker {pid} seems to have failed to start, exit status:{status}")
            }
            Notice::ReceivedHup => "received HUP, spawning a new worker".into(),
            Notice::NewWorkerRunning { signal, pids } => {
                let (signal, pids) = (name(*signal), Pids(pids, "none"));
                format!("new worker is now running, sending {signal} to old workers:{pids}")
            }
            Notice::Sleeping { delay, .. } => {
                format!(
                    "sleeping {} secs before killing old workers",
                    delay.as_secs_f64()
                )
            }
            Notice::KillingOldWorkers { .. } => "killing old workers".into(),
            Notice::AutoRestart { interval, forced } => {
                let (forced, interval) = (
                    if *forced { "forced, " } else { "" },
                    interval.as_secs_f64(),
                );
                format!("autorestart triggered ({forced}interval={interval})")
            }
            Notice::DiedUnexpectedly { pid, status } => {
                format!("worker {pid} died unexpectedly with status:{status}, restarting")
            }
            Notice::OldWorkerDied { pid, status } => {
                format!("old worker {pid} died, status:{status}")
            }
            Notice::Stopping {
                received,
                sent,
                pids,
            } => {
                let (received, sent, pids) = (name(*received), name(*sent), Pids(pids, ""));
                format!("received {received}, sending {sent} to all workers:{pids}")
            }
            Notice::WorkerDied { pid, status } => format!("worker {pid} died, status:{status}"),
            Notice::Exiting => "exiting".into(),
            Notice::CannotStartWorker { cause, .. } => cause.cause.clone(),
            Notice::CheckFailed(failure) => {
                format!("start_server: {}; nothing was started", failure.cause)
            }
            Notice::Listening { first, count } => {
                format!("start_server: listening on {}", listed(first, *count))
            }
            Notice::Labelled { generation, label } => {
                format!("start_server: generation {generation} is {label}")
            }
            Notice::Serves { generation, pids } => {
                let pids = Pids(pids, "none");
                format!("start_server: generation {generation} serves (pid {pids})")
            }
            Notice::StillWaiting(waiting) => waiting.to_string(),
            Notice::PortChosen { given, address } => {
                format!("start_server: {given} is bound to {address}")
            }
            Notice::TookOver { keys } => {
                format!("start_server: took over from the launcher: {}", keys.join(" "))
            }
            Notice::TookBack { keys } => {
                let keys = keys.join(" ");
                format!("start_server: took back from the service manager: {keys}")
            }
            Notice::AttributesOfLauncher { given } => {
                format!(
                    "start_server: {given}: the launcher has made this socket, so its mode and owner stay as they are"
                )
            }
            Notice::BacklogCut { asked, granted } => {
                format!("start_server: the kernel caps --backlog={asked} at {granted}: see `sysctl net.core.somaxconn`")
            }
            Notice::Unpinned { generation, errno } => {
                let cause = errno.map_or("it was not kept", Errno::desc);
                format!(
                    "start_server: cannot start again what has served: {cause}; generation {generation} starts what \
                     is at its path now"
                )
            }
            Notice::EndingLeftovers {
                worker,
                signal,
                pids,
            } => {
                let (signal, pids) = (name(*signal), Pids(pids, "none"));
                format!(
                    "start_server: worker {worker} has left processes behind, sending {signal} to them:{pids}"
                )
            }
            Notice::RollingBack(way) => format!("start_server: rolling back: {}", way.sentence()),
            Notice::Aborting(way) => format!("start_server: aborting: {}", way.sentence()),
            Notice::CannotAbort(StartFailure { cause, .. }) => {
                format!("start_server: cannot abort: {cause}")
            }
            Notice::NextTry { next, serving } => {
                let next = time(next.as_secs_f64());
                format!(
                    "start_server: generation {serving} keeps serving; the restart is tried again in {next}, \
                     unless --abort ends that"
                )
            }
            Notice::CannotRollBack(StartFailure { cause, .. }) => {
                format!("start_server: cannot roll back: {cause}")
            }
            Notice::RolledBack { pids } => {
                format!(
                    "the old workers were not yet signalled and are serving again:{}",
                    Pids(pids, "none")
                )
            }
            Notice::GivingUp { failures, serving } if serving.is_empty() => {
                format!(
                    "start_server: giving up after {}, no worker is left to serve",
                    failed_starts(*failures)
                )
            }
            Notice::GivingUp { failures, serving } => {
                let pids = Pids(serving, "");
                format!(
                    "start_server: giving up the restart after {}, still serving:{pids}",
                    failed_starts(*failures)
                )
            }
            Notice::NothingServes { next } => {
                let next = next.as_secs_f64();
                format!(
                    "start_server: no worker is serving, clients have to wait; next start in {next:.1} secs"
                )
            }
            Notice::StopFirst(step) => step.to_string(),
            Notice::Switching(step) => step.to_string(),
            Notice::Trial(step) => step.to_string(),
            Notice::Upgrade(step) => step.to_string(),
            Notice::Guarding(step) => step.to_string(),
            Notice::Many(step) => step.to_string(),
            Notice::CrashLoop { deaths, next } => {
                let next = next.as_secs_f64();
                format!(
                    "start_server: workers have died {deaths} times in a row soon after they began to serve; next start in {next:.1} secs"
                )
            }
            Notice::KillingWorkers { pids } => {
                format!(
                    "--stop-timeout expired, sending KILL to all workers:{}",
                    Pids(pids, "")
                )
            }
            Notice::KillingLateWorkers { pids } => {
                format!(
                    "start_server: sending KILL to workers that have not stopped in time:{}",
                    Pids(pids, "")
                )
            }
            Notice::StoppingByItself(pid) => {
                format!("start_server: worker {pid} says that it is stopping, though nobody told it to")
            }
            Notice::NobodyAccepts {
                listener,
                waiting,
                since,
            } => {
                let (listener, seconds) = (quoted(listener), since.as_secs());
                format!("start_server: nobody accepts connections at {listener}: {waiting} in its queue, one for more than {seconds} secs")
            }
            Notice::Unhealthy {
                generation,
                since,
                known,
            } => {
                let seconds = since.as_secs_f64();
                format!("start_server: generation {generation} has been unhealthy for {seconds} secs: {known}")
            }
            Notice::HealthyAgain { generation } => {
                format!("start_server: generation {generation} is healthy again")
            }
            Notice::Ignored(Signal::SIGXCPU) => {
                "received XCPU: start_server has used up its CPU time (ulimit -t); at the hard limit the kernel kills it"
                    .into()
            }
            Notice::Ignored(signal) => {
                format!("received {}, ignoring it", name(*signal))
            }
            Notice::CannotSignal { pid, signal, errno } => {
                format!(
                    "start_server: cannot send {} to worker {pid}: {}",
                    name(*signal),
                    errno.desc()
                )
            }
            Notice::CannotSave { path, cause } => {
                format!(
                    "start_server: cannot write {}: {cause}; will keep trying",
                    quoted(path)
                )
            }
            Notice::SavedAgain { path } => format!("{} is up to date again", quoted(path)),
            Notice::TakenOver { path } => {
                format!(
                    "start_server: {} was replaced by another process, leaving it alone",
                    quoted(path)
                )
            }
            Notice::Complaint(text) | Notice::NotificationIgnored { sentence: text, .. } => {
                text.clone()
            }
            Notice::ClosedStreams(names) => {
                format!("hint: {}", remedy::of_closed_streams(&names.join(" or ")))
            }
            Notice::LinesLost(lost) => {
                format!("start_server: {lost} lines before this one could not be written")
            }
            Notice::NeverSent(lines) => {
                format!("start_server: {lines} lines have not reached syslog and are lost")
            }
            Notice::PidFileGone { path } => {
                format!(
                    "start_server: cannot rewrite {}, which is gone or no longer contains our pid",
                    quoted(path)
                )
            }
            Notice::PidFileWrittenAgain { path } => {
                format!(
                    "start_server: {} was gone, rewrote it",
                    quoted(path)
                )
            }
            Notice::PidFileOverwritten { path, by } => {
                let with = by.map(|pid| format!(" with pid {pid}"));
                format!("start_server: {} was overwritten{}, rewrote it; give the server program a pid file of its own",
                    quoted(path),
                    with.unwrap_or_default()
                )
            }
            Notice::LogCommandDied { status } => {
                let status = WithMeaning(*status);
                format!("start_server: the log command died, status:{status}; starting it again")
            }
            Notice::CannotStartLogCommand { cause } => {
                format!("start_server: cannot start the log command: {cause}; trying again")
            }
            Notice::LogReopened {
                path,
                is_captured: false,
            } => {
                format!(
                    "start_server: reopened {}; new workers write to it",
                    quoted(path)
                )
            }
            Notice::LogReopened {
                path,
                is_captured: true,
            } => {
                format!(
                    "start_server: reopened {}; all lines now go there",
                    quoted(path)
                )
            }
            Notice::SyslogUnreachable { place, errno } => {
                format!(
                    "start_server: cannot reach syslog at {place}: {}; will keep trying",
                    errno.desc()
                )
            }
            Notice::CannotReopen { path, cause } => {
                format!(
                    "start_server: cannot reopen {}: {cause}; keeping the old one open",
                    quoted(path)
                )
            }
            Notice::NothingToReopen => {
                "received USR1, but there is no log file to reopen".into()
            }
            Notice::StopServer { ours, theirs } => {
                format!("stop_server (pid:{ours}) stopping now (pid:{theirs})...")
            }
            Notice::RestartAsked { pid } => {
                format!("sent HUP to start_server (pid:{pid}), waiting for the new generation...")
            }
            Notice::CanaryAsked { pid } => {
                format!("asked start_server (pid:{pid}) for a canary, waiting for the new generation...")
            }
            Notice::RollbackAsked { pid } => {
                format!("asked start_server (pid:{pid}) to roll back, waiting for the outcome...")
            }
            Notice::PromotionAsked { pid } => {
                format!("asked start_server (pid:{pid}) to promote the canary, waiting for the outcome...")
            }
            Notice::AbortAsked { pid } => {
                format!("asked start_server (pid:{pid}) to abort the restart, waiting for the outcome...")
            }
            Notice::ScaleAsked { pid, workers } => {
                let workers = match workers {
                    1 => "1 worker, waiting for it...".to_owned(),
                    workers => format!("{workers} workers, waiting for them..."),
                };
                format!("asked start_server (pid:{pid}) for {workers}")
            }
            Notice::LockHeldByAnother {
                path,
                written,
                holder,
            } => {
                let written = match written {
                    Some(pid) => format!("pid {pid}"),
                    None => "no pid".into(),
                };
                format!("start_server: {} contains {written}, but pid {holder} holds its lock and is the server",
                    quoted(path)
                )
            }
            Notice::UpgradeAsked { pid } => {
                format!("sent USR2 to start_server (pid:{pid}), waiting for the upgrade...")
            }
            Notice::ReopenAsked { pid } => {
                format!("sent USR1 to start_server (pid:{pid}), waiting for the log file...")
            }
            Notice::ListenerMended { name, was, worker } => was.mended(name, *worker),
            Notice::ListenerInTrouble {
                name,
                trouble,
                worker,
            } => trouble.of(name, *worker),
            Notice::ListenerReachable { name } => {
                format!("start_server: the listener {name} is in order again")
            }
            Notice::BinderDied => {
                "start_server: the binder died; its socket files will not be removed at exit"
                    .into()
            }
            Notice::Unconfined(lack) => {
                format!(
                    "start_server: cannot confine the binder fully: this kernel or container lacks {lack}"
                )
            }
            Notice::BoundingSetKept => {
                "start_server: cannot empty the capability bounding set: CAP_SETPCAP is missing; \
                 no_new_privs still keeps workers from gaining privileges"
                    .into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_kept_has_no_errno() {
        let said = |errno| {
            let generation = 2;
            Notice::Unpinned { generation, errno }.to_string()
        };
        let end = "generation 2 starts what is at its path now";
        let expected =
            format!("start_server: cannot start again what has served: it was not kept; {end}");
        assert_eq!(said(None), expected);
        let expected = format!(
            "start_server: cannot start again what has served: Too many open files; {end}\n\
             hint: raise it with ulimit -n (LimitNOFILE= of systemd)"
        );
        assert_eq!(said(Some(Errno::EMFILE)), expected);
    }
}
