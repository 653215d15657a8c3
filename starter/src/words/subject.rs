//! Which generation and processes each notice is about, for formats of the log that have a place for it.

use nix::unistd::Pid;

use crate::words::canary::Trial;
use crate::words::guardian::Guarding;
use crate::words::many::Many;
use crate::words::notice::Notice;
use crate::words::rollback::Way;
use crate::words::stop_first::StopFirst;
use crate::words::switch::Switching;

/// What a notice is about. A pid may be enough: whoever knows the workers knows their generation and slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    pub generation: Option<u32>,
    /// The slot of its worker, where it may have none.
    pub slot: Option<usize>,
    /// The processes that it names, mostly workers.
    pub pids: Vec<Pid>,
}

impl Subject {
    fn of_generation(number: u32) -> Subject {
        Subject {
            generation: Some(number),
            ..Subject::default()
        }
    }

    fn of_pids(pids: &[Pid]) -> Subject {
        Subject {
            pids: pids.to_vec(),
            ..Subject::default()
        }
    }
}

impl Notice {
    /// One long match: each notice has its place.
    pub fn subject(&self) -> Subject {
        match self {
            Notice::CannotStartWorker {
                generation,
                slot,
                pid,
                ..
            } => Subject {
                generation: Some(*generation),
                slot: Some(*slot),
                pids: pid.iter().copied().collect(),
            },
            Notice::StartingNow(pid)
            | Notice::StartingNewWorker(pid)
            | Notice::StoppingByItself(pid)
            | Notice::FailedToStart { pid, .. }
            | Notice::DiedUnexpectedly { pid, .. }
            | Notice::Trial(Trial::Died { pid, .. })
            | Notice::OldWorkerDied { pid, .. }
            | Notice::WorkerDied { pid, .. }
            | Notice::CannotSignal { pid, .. }
            | Notice::EndingLeftovers { worker: pid, .. } => Subject::of_pids(&[*pid]),
            Notice::ListenerMended { worker, .. } | Notice::ListenerInTrouble { worker, .. } => {
                Subject::of_pids(worker.as_slice())
            }
            Notice::NewWorkerRunning { pids, .. }
            | Notice::Sleeping { old: pids, .. }
            | Notice::KillingOldWorkers { old: pids }
            | Notice::Stopping { pids, .. }
            | Notice::RolledBack { pids }
            | Notice::GivingUp { serving: pids, .. }
            | Notice::KillingWorkers { pids }
            | Notice::KillingLateWorkers { pids }
            | Notice::StopFirst(StopFirst::Stopping { pids, .. }) => Subject::of_pids(pids),
            Notice::NotificationIgnored {
                generation, worker, ..
            } => Subject {
                generation: Some(*generation),
                ..Subject::of_pids(worker.as_slice())
            },
            Notice::Serves { generation, pids } => Subject {
                generation: Some(*generation),
                ..Subject::of_pids(pids)
            },
            Notice::Switching(Switching::Switched { generation, .. })
            | Notice::Trial(
                Trial::Shared { generation, .. }
                | Trial::Promoting { generation, .. }
                | Trial::Replaced { generation }
                | Trial::Failed { generation, .. },
            ) => Subject::of_generation(*generation),
            Notice::Switching(Switching::Waiting { pids }) => Subject::of_pids(pids),
            Notice::StillWaiting(waiting) => {
                let pids: Vec<Pid> = waiting.workers.iter().map(|(pid, _)| *pid).collect();
                Subject::of_pids(&pids)
            }
            Notice::Labelled { generation, .. }
            | Notice::Unpinned { generation, .. }
            | Notice::Unhealthy { generation, .. }
            | Notice::HealthyAgain { generation }
            | Notice::NextTry {
                serving: generation,
                ..
            }
            | Notice::Many(Many::RollStopped { generation, .. }) => {
                Subject::of_generation(*generation)
            }
            Notice::RollingBack(way) | Notice::Aborting(way) => match way {
                Way::Keep(number) | Way::Return { to: number, .. } | Way::StartAgain(number) => {
                    Subject::of_generation(*number)
                }
            },
            Notice::Duplicated { .. }
            | Notice::RemovingSocket { .. }
            | Notice::ReceivedHup
            | Notice::AutoRestart { .. }
            | Notice::Exiting
            | Notice::Listening { .. }
            | Notice::PortChosen { .. }
            | Notice::TookOver { .. }
            | Notice::TookBack { .. }
            | Notice::AttributesOfLauncher { .. }
            | Notice::BacklogCut { .. }
            // No generation was started for it.
            | Notice::CheckFailed(_)
            | Notice::CannotRollBack(_)
            | Notice::CannotAbort(_)
            | Notice::Trial(Trial::Asked { .. } | Trial::CannotPromote(_))
            | Notice::NothingServes { .. }
            | Notice::StopFirst(StopFirst::StartingAgain { .. } | StopFirst::ServesAgain { .. })
            | Notice::Switching(
                Switching::Impossible { .. }
                | Switching::Shared(_)
                | Switching::NoLanes { .. }
                | Switching::NotSwitched { .. }
                | Switching::Sweeping { .. }
                | Switching::NotSwept { .. }
                | Switching::NotQuiet { .. },
            )
            | Notice::Upgrade(_)
            | Notice::Many(Many::Scaling { .. } | Many::CannotScale(_))
            | Notice::Guarding(
                Guarding::Revived { .. }
                | Guarding::Last { .. }
                | Guarding::GuardianGone
                | Guarding::Unwritten { .. },
            )
            | Notice::CrashLoop { .. }
            | Notice::NobodyAccepts { .. }
            | Notice::Ignored(_)
            | Notice::CannotSave { .. }
            | Notice::SavedAgain { .. }
            | Notice::TakenOver { .. }
            | Notice::BinderDied
            | Notice::BoundingSetKept
            | Notice::Unconfined(_)
            | Notice::Complaint(_)
            | Notice::ClosedStreams(_)
            | Notice::LinesLost(_)
            | Notice::NeverSent(_)
            | Notice::PidFileGone { .. }
            | Notice::PidFileWrittenAgain { .. }
            | Notice::PidFileOverwritten { .. }
            | Notice::LogCommandDied { .. }
            | Notice::CannotStartLogCommand { .. }
            | Notice::LogReopened { .. }
            | Notice::SyslogUnreachable { .. }
            | Notice::CannotReopen { .. }
            | Notice::NothingToReopen
            | Notice::ListenerReachable { .. }
            | Notice::LockHeldByAnother { .. }
            // What a client says of another start_server, which is in no log.
            | Notice::StopServer { .. }
            | Notice::RestartAsked { .. }
            | Notice::RollbackAsked { .. }
            | Notice::AbortAsked { .. }
            | Notice::CanaryAsked { .. }
            | Notice::PromotionAsked { .. }
            | Notice::ScaleAsked { .. }
            | Notice::UpgradeAsked { .. }
            | Notice::ReopenAsked { .. } => Subject::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;
    use crate::words::start_failure::StartFailure;

    #[test]
    fn a_notice_speaks_of_what_it_names() {
        let pid = Pid::from_raw;
        let of_pids = |pids: &[i32]| Subject {
            pids: pids.iter().copied().map(pid).collect(),
            ..Subject::default()
        };
        let of_generation = |number| Subject {
            generation: Some(number),
            ..Subject::default()
        };
        let serves = Notice::Serves {
            generation: 3,
            pids: vec![pid(7), pid(8)],
        };
        let failed = Notice::CannotStartWorker {
            generation: 3,
            slot: 1,
            pid: None,
            cause: StartFailure::failed_check(256),
        };
        let stopping = Notice::Stopping {
            received: Signal::SIGTERM,
            sent: Signal::SIGTERM,
            pids: vec![pid(7), pid(8)],
        };
        for (notice, subject) in [
            (Notice::StartingNewWorker(pid(7)), of_pids(&[7])),
            (
                serves,
                Subject {
                    generation: Some(3),
                    ..of_pids(&[7, 8])
                },
            ),
            (
                failed,
                Subject {
                    slot: Some(1),
                    ..of_generation(3)
                },
            ),
            (stopping, of_pids(&[7, 8])),
            (
                Notice::RollingBack(Way::Return { to: 2, from: 3 }),
                of_generation(2),
            ),
            (Notice::HealthyAgain { generation: 4 }, of_generation(4)),
            (Notice::ReceivedHup, Subject::default()),
        ] {
            assert_eq!(notice.subject(), subject, "{notice}");
        }
    }
}
