//! The children of this process that are not the self-test's, and those that are.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};

use crate::host::proc;
use crate::words::failure::Failure;

/// The children that this process had already when its program was executed: they are nobody's business here.
#[derive(Clone)]
pub struct Inherited(Vec<Pid>);

impl Inherited {
    pub fn now() -> Result<Inherited, Failure> {
        proc::children(getpid()).map(Inherited)
    }

    /// Those that are newer and still there, running or not yet waited for.
    pub fn newer(&self) -> Result<Vec<Pid>, Failure> {
        let mut children = proc::children(getpid())?;
        children.retain(|child| !self.0.contains(child));
        Ok(children)
    }

    /// Ends what has become a child of this process, because it adopts what others leave behind.
    pub fn end_newer(&self) {
        while let Ok(children) = self.newer()
            && !children.is_empty()
        {
            for child in children {
                // Its own children are adopted then.
                let _ = kill(child, Signal::SIGKILL);
                if waitpid(child, None).is_err() {
                    return;
                }
            }
        }
    }
}
