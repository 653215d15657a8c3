//! Whether a notification comes from a worker.

use nix::unistd::Pid;

use crate::host::proc::Fields;

/// More ancestors than any server has between a worker and a process that speaks for it.
const MOST_ANCESTORS: usize = 64;

/// The worker that is the sender, or from which the sender descends.
///
/// A sender that is gone already cannot be traced, and speaks for nobody: any process of this user can send something and
/// exit. `systemd-notify` waits until its message was read (`BARRIER=1`).
pub fn worker_of(sender: Pid, workers: &[Pid]) -> Option<Pid> {
    let mut at = sender;
    for _ in 0..MOST_ANCESTORS {
        if workers.contains(&at) {
            return Some(at);
        }
        match Fields::of(at) {
            Ok(fields) => at = fields.parent().filter(|parent| parent.as_raw() > 1)?,
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::process::{Command, Stdio};

    use nix::unistd::{getpid, getppid};

    use super::*;

    #[test]
    fn a_sender_is_traced_to_the_worker_from_which_it_descends() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let (ourselves, parent) = (getpid(), getppid());
        assert_eq!(worker_of(pid, &[pid]), Some(pid));
        assert_eq!(worker_of(pid, &[ourselves]), Some(ourselves));
        assert_eq!(worker_of(pid, &[parent]), Some(parent));
        // Not the other way round: a child does not stand for its parent.
        assert_eq!(worker_of(ourselves, &[pid]), None);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(worker_of(pid, &[ourselves]), None);
        // A sender in another pid namespace.
        assert_eq!(worker_of(Pid::from_raw(0), &[ourselves]), None);
    }
}
