//! The workers, by pid: a line of ours that names one says its generation and slot too.

use std::collections::{BTreeMap, VecDeque};

use nix::unistd::Pid;

use crate::words::subject::Subject;

/// How many are remembered after their exit: what is said about it comes right after it.
const MOST_DEPARTED: usize = 64;

/// One worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub generation: u32,
    pub slot: usize,
    pub pid: Pid,
}

/// What a line of ours speaks of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct About {
    pub generation: Option<u32>,
    pub pid: Option<Pid>,
    /// The slot of a worker.
    pub worker: Option<usize>,
}

/// All that live, and those that have exited last.
#[derive(Debug, Default)]
pub struct Workers {
    living: BTreeMap<Pid, Known>,
    departed: VecDeque<Known>,
}

impl Workers {
    pub fn started(&mut self, worker: Known) {
        // The pid may have been another one's.
        self.departed.retain(|one| one.pid != worker.pid);
        self.living.insert(worker.pid, worker);
    }

    pub fn exited(&mut self, pid: Pid) {
        if let Some(worker) = self.living.remove(&pid) {
            if self.departed.len() == MOST_DEPARTED {
                self.departed.pop_front();
            }
            self.departed.push_back(worker);
        }
    }

    fn find(&self, pid: Pid) -> Option<&Known> {
        let departed = || self.departed.iter().find(|one| one.pid == pid);
        self.living.get(&pid).or_else(departed)
    }

    /// What the keys of a line say that speaks of this: of several workers, the generation that all of them have.
    pub fn about(&self, subject: &Subject) -> About {
        let known: Vec<Option<&Known>> = subject.pids.iter().map(|pid| self.find(*pid)).collect();
        let mut generations = known.iter().map(|one| one.map(|one| one.generation));
        let first = generations.next().flatten();
        let common = first.filter(|first| generations.all(|one| one == Some(*first)));
        let (pid, worker) = match (&subject.pids[..], &known[..]) {
            ([pid], [known]) => (Some(*pid), known.map(|one| one.slot)),
            _ => (None, None),
        };
        About {
            generation: subject.generation.or(common),
            pid,
            worker: worker.or(subject.slot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_leads_to_the_generation_and_the_slot() {
        let pid = Pid::from_raw;
        let mut workers = Workers::default();
        for (generation, slot, number) in [(2, 0, 7), (2, 1, 8), (3, 0, 9)] {
            let pid = pid(number);
            workers.started(Known {
                generation,
                slot,
                pid,
            });
        }
        workers.exited(pid(7));
        let about = |workers: &Workers, pids: &[i32]| {
            let About {
                generation,
                pid,
                worker,
            } = workers.about(&Subject {
                pids: pids.iter().map(|one| Pid::from_raw(*one)).collect(),
                ..Subject::default()
            });
            (generation, pid.map(Pid::as_raw), worker)
        };
        assert_eq!(about(&workers, &[7]), (Some(2), Some(7), Some(0)));
        assert_eq!(about(&workers, &[9]), (Some(3), Some(9), Some(0)));
        assert_eq!(about(&workers, &[7, 8]), (Some(2), None, None));
        assert_eq!(about(&workers, &[8, 9]), (None, None, None));
        // Of a process that is no worker, such as ourselves.
        assert_eq!(about(&workers, &[1]), (None, Some(1), None));
        assert_eq!(about(&workers, &[]), (None, None, None));
        let failed = Subject {
            generation: Some(4),
            slot: Some(1),
            pids: Vec::new(),
        };
        let (generation, worker) = (Some(4), Some(1));
        let expected = About {
            generation,
            pid: None,
            worker,
        };
        assert_eq!(workers.about(&failed), expected);
        // Another one with the same pid.
        workers.started(Known {
            generation: 5,
            slot: 2,
            pid: pid(7),
        });
        assert_eq!(about(&workers, &[7]), (Some(5), Some(7), Some(2)));
        for number in 100..300 {
            let pid = pid(number);
            workers.started(Known {
                generation: 6,
                slot: 0,
                pid,
            });
            workers.exited(pid);
        }
        assert_eq!(about(&workers, &[100]), (None, Some(100), None));
        assert_eq!(about(&workers, &[299]), (Some(6), Some(299), Some(0)));
    }
}
