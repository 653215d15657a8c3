//! The limit of open files: raised for the superdaemon, the launcher's own for the workers.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::failure::Failure;

/// The limit that the launcher set, and that workers get back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    pub soft: rlim_t,
    pub hard: rlim_t,
}

impl OpenFiles {
    /// Read it before it is raised.
    pub fn of_launcher() -> Result<OpenFiles, Failure> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| {
            Failure::failed(format!(
                "cannot read the limit of open files: {}",
                errno.desc()
            ))
        })?;
        Ok(OpenFiles { soft, hard })
    }

    /// Makes room for so many descriptors in this process, as far as the hard limit allows. Whoever then needs more
    /// than there are gets the kernel's error.
    pub fn make_room_for(self, descriptors: usize) -> Result<(), Failure> {
        let wanted = rlim_t::try_from(descriptors)
            .unwrap_or(rlim_t::MAX)
            .min(self.hard);
        if wanted <= self.soft {
            return Ok(());
        }
        setrlimit(Resource::RLIMIT_NOFILE, wanted, self.hard).map_err(|errno| {
            Failure::failed(format!(
                "cannot raise the limit of open files: {}",
                errno.desc()
            ))
        })
    }
}
