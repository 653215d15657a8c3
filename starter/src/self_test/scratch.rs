//! The self-test's resources: a temporary directory, and free ports.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::message::Identity;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::mkdtemp;

use crate::host::low_ports;
use crate::words::failure::{self, Failure};
use crate::words::remedy;
use crate::words::text::quoted;

/// Ports below this number are low, unless the kernel opens them to everybody.
const LOW: u32 = 1024;

/// A directory, removed with everything in it.
pub struct Scratch {
    /// As root: nobody else can write in it or above it.
    directory: PathBuf,
    log: File,
    /// Inherited by every process started from here, which must close it.
    _leak: File,
}

impl Scratch {
    pub fn new(identity: Option<&Identity>) -> Result<Scratch, Failure> {
        let place = match identity {
            Some(_) => PathBuf::from("/run"),
            None => std::env::temp_dir(),
        };
        let cannot = |cause: String| {
            Failure::failed(format!(
                "cannot prepare a directory in {}: {cause}",
                quoted(&place)
            ))
        };
        let template = format!("start_server-self-test-{}-XXXXXX", std::process::id());
        let directory = mkdtemp(&place.join(template)).map_err(|errno| {
            let hint = remedy::of_scratch(&place, errno, identity.is_some());
            cannot(errno.desc().to_owned()).hint_if(hint)
        })?;
        // As /proc shows it: without links.
        let furnished = directory.canonicalize().and_then(|directory| {
            let (log, leak) = furnish(&directory, identity)?;
            Ok((directory, log, leak))
        });
        let (directory, log, leak) = furnished.map_err(|error| {
            drop(fs::remove_dir_all(&directory));
            cannot(failure::cause(&error))
        })?;
        Ok(Scratch {
            directory,
            log,
            _leak: leak,
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Creates something with the launcher's privileges.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the user may write.
    pub fn users_directory(&self) -> PathBuf {
        self.directory.join("user")
    }

    /// Creates something as the user.
    pub fn of_user(&self, name: &str) -> PathBuf {
        self.users_directory().join(name)
    }

    pub fn log_path(&self) -> PathBuf {
        self.path("log")
    }

    /// Standard error of the started processes.
    pub fn log(&self) -> Result<Stdio, Failure> {
        let copy = self.log.try_clone().map_err(|error| {
            Failure::failed(format!(
                "cannot open {}: {}",
                quoted(self.log_path()),
                failure::cause(&error)
            ))
        })?;
        Ok(copy.into())
    }

    /// The last error in the log, or its last line: why a process of this program exited.
    pub fn last_words(&self) -> Option<String> {
        let text = fs::read_to_string(self.log_path()).ok()?;
        let is_error =
            |line: &&str| line.contains(": cannot ") || line.starts_with("start_server-binder: ");
        let mut lines = text.lines();
        let Some(error) = lines.rfind(is_error) else {
            return text.lines().last().map(str::to_owned);
        };
        let hint = text
            .lines()
            .last()
            .filter(|line| line.starts_with("hint: "));
        Some(
            [Some(error), hint]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("; "),
        )
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing can be done about what cannot be removed.
        drop(fs::remove_dir_all(&self.directory));
    }
}

fn furnish(directory: &Path, identity: Option<&Identity>) -> io::Result<(File, File)> {
    fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    let of_user = directory.join("user");
    fs::create_dir(&of_user)?;
    if let Some(identity) = identity {
        chown(&of_user, Some(identity.uid), Some(identity.gid))?;
    }
    let open = |name: &str| {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(directory.join(name))
    };
    let (log, leak) = (open("log")?, open("leaked")?);
    fcntl(&leak, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok((log, leak))
}

/// Unused ports of the loopback interface.
pub struct Ports {
    /// One that only this self-test uses: two at a time do not collide.
    pub address: Ipv4Addr,
    /// To be served: a low one if the launcher can have it.
    pub served: u16,
    /// A low port that nobody requests; `None` if this kernel opens low ports to everybody.
    pub forbidden: Option<u16>,
}

impl Ports {
    pub fn find(as_root: bool) -> Result<Ports, Failure> {
        let number = std::process::id() & 0x00ff_ffff;
        let address =
            Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() & 0xff00_0000 | number.max(2));
        let mut low = (1..LOW.min(low_ports::first_unprivileged()))
            .rev()
            .filter_map(|port| u16::try_from(port).ok());
        let highest = low.clone().next();
        let is_free = |port: &u16| TcpListener::bind((address, *port)).is_ok();
        // Only root can know which are free, and not if it lacks the capability.
        let mut next_free = || as_root.then(|| low.find(is_free)).flatten();
        let (served, forbidden) = (next_free(), next_free().or(highest));
        let any = || {
            let listener = TcpListener::bind((address, 0))?;
            Ok(listener.local_addr()?.port())
        };
        let served = served.map_or_else(any, Ok).map_err(|error: io::Error| {
            Failure::failed(format!(
                "cannot find a free port of {address}: {}",
                failure::cause(&error)
            ))
        })?;
        Ok(Ports {
            address,
            served,
            forbidden,
        })
    }

    pub fn served_is_low(&self) -> bool {
        u32::from(self.served) < LOW
    }
}
