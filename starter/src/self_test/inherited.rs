//! Telling this process's own children from those that it inherited.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};

use crate::host::proc;
use crate::words::failure::Failure;

/// The children that this process already had when its program was executed: they are not ours to touch.
#[derive(Clone)]
pub struct Inherited(Vec<Pid>);

impl Inherited {
    pub fn now() -> Result<Inherited, Failure> {
        proc::children(getpid()).map(Inherited)
    }

    /// The newer ones that still exist, running or not yet waited for.
    pub fn newer(&self) -> Result<Vec<Pid>, Failure> {
        let mut children = proc::children(getpid())?;
        children.retain(|child| !self.0.contains(child));
        Ok(children)
    }

    /// Kills every new child of this process, which adopts orphans.
    pub fn end_newer(&self) {
        while let Ok(children) = self.newer()
            && !children.is_empty()
        {
            for child in children {
                // Their own children are adopted then.
                let _ = kill(child, Signal::SIGKILL);
                if waitpid(child, None).is_err() {
                    return;
                }
            }
        }
    }
}
