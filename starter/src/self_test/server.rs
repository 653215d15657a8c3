//! A real server, started as an operator would, whose worker tries what it is told to.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::Test;
use super::inherited::Inherited;
use super::patience::Patience;
use super::scratch::Scratch;
use super::worker::{ROLE, Said, WorkerEscape};
use crate::host::process::Process;
use crate::words::failure::{self, Failure};

/// The running server. Dropping it kills it and its workers.
pub struct Server {
    child: Child,
    process: Process,
    /// Standard input of all workers.
    escapes: ChildStdin,
    /// Standard output of all workers.
    said: Lines,
    /// What it must not leave behind.
    files: Vec<PathBuf>,
    inherited: Inherited,
}

impl Test<'_> {
    /// Starts a server with a port, and with a socket at this path that has these attributes.
    pub fn start_server(&self, socket: &Path, attributes: &str) -> Result<Server, Failure> {
        let cannot = |cause: String| Failure::failed(format!("cannot run start_server: {cause}"));
        let program = std::env::current_exe().map_err(|error| cannot(failure::cause(&error)))?;
        let (pid_file, status_file) = (self.scratch.of_user("pid"), self.scratch.of_user("status"));
        let mut command = self.server_command(&program, socket, attributes);
        let mut child = command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(self.scratch.log()?)
            .spawn()
            .map_err(|error| cannot(failure::cause(&error)))?;
        let process = Process::open(pid_of(&child)).map_err(|errno| cannot(errno.desc().into()))?;
        let (Some(escapes), Some(said)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(cannot("it has no pipes".into()));
        };
        let beside = |path: &Path| path.with_extension("json");
        let files = vec![
            socket.to_owned(),
            beside(&pid_file),
            beside(&status_file),
            pid_file,
            status_file,
        ];
        Ok(Server {
            child,
            process,
            escapes,
            said: Lines {
                pipe: File::from(OwnedFd::from(said)),
                unread: Vec::new(),
            },
            files,
            inherited: self.inherited.clone(),
        })
    }
    /// The command line that an operator would type.
    fn server_command(&self, program: &Path, socket: &Path, attributes: &str) -> Command {
        let mut command = Command::new(program);
        let options = [
            ("--user", &self.settings.identity.user),
            ("--group", &self.settings.identity.group),
        ];
        for (name, value) in options {
            if let Some(value) = value {
                command.arg(format!("{name}={value}"));
            }
        }
        command.args(self.settings.is_strict.then_some("--strict"));
        command.arg(format!(
            "--port={}:{}",
            self.ports.address, self.ports.served
        ));
        for (name, path, more) in [
            ("--path=", socket, attributes),
            ("--pid-file=", &self.scratch.of_user("pid"), ""),
            ("--status-file=", &self.scratch.of_user("status"), ""),
        ] {
            let mut word = OsString::from(name);
            word.push(path);
            word.push(more);
            command.arg(word);
        }
        command.args(["--interval=0", "--"]).arg(program).arg(ROLE);
        command
    }
}

impl Server {
    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    /// Pid and status files, and the socket.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        self.process.signal(signal).map_err(|errno| {
            Failure::failed(format!("cannot signal start_server: {}", errno.desc()))
        })
    }

    /// Waits for the worker of this generation, which then waits for its escapes.
    pub fn worker(
        &mut self,
        expected: u32,
        patience: &Patience,
        scratch: &Scratch,
    ) -> Result<Pid, Failure> {
        let what = format!("generation {expected} starts");
        match self.said.next(patience, scratch, &what)? {
            Said::Here { generation, pid } if generation == expected => Ok(Pid::from_raw(pid)),
            other => Err(unexpected(&what, &other)),
        }
    }

    /// Has the newest worker try these escapes: an errno for each, or `None` if it succeeded.
    pub fn try_escapes(
        &mut self,
        escapes: &[WorkerEscape],
        patience: &Patience,
        scratch: &Scratch,
    ) -> Result<Vec<Option<Errno>>, Failure> {
        let cannot = |error: io::Error| {
            Failure::failed(format!("cannot tell the worker what to try: {error}"))
        };
        let mut line = serde_json::to_vec(escapes).map_err(|error| cannot(error.into()))?;
        line.push(b'\n');
        self.escapes.write_all(&line).map_err(cannot)?;
        let mut outcomes = Vec::new();
        for escape in escapes {
            let what = format!("the worker has tried {escape:?}");
            match self.said.next(patience, scratch, &what)? {
                Said::Tried(errno) => outcomes.push(errno.map(Errno::from_raw)),
                other => return Err(unexpected(&what, &other)),
            }
        }
        Ok(outcomes)
    }

    /// Waits for it to exit.
    pub fn end(&mut self, patience: &Patience) -> Result<ExitStatus, Failure> {
        patience.readable(self.process.as_fd(), "start_server ends after TERM")?;
        self.child
            .wait()
            .map_err(|error| Failure::failed(format!("cannot wait for start_server: {error}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It fails if it has already exited.
        drop(self.child.kill());
        drop(self.child.wait());
        self.inherited.end_newer();
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

fn unexpected(what: &str, said: &Said) -> Failure {
    let instead = match said {
        Said::Here { generation, .. } => format!("generation {generation} has started"),
        Said::Tried(_) => "it tries something else".to_owned(),
    };
    Failure::failed(format!("waited in vain until {what}: {instead}"))
}

/// The messages of the workers.
struct Lines {
    pipe: File,
    /// An incomplete line.
    unread: Vec<u8>,
}

impl Lines {
    fn next(
        &mut self,
        patience: &Patience,
        scratch: &Scratch,
        what: &str,
    ) -> Result<Said, Failure> {
        let cannot =
            |cause: String| Failure::failed(format!("cannot read from the worker: {cause}"));
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| cannot(error.to_string()));
            }
            patience.readable(self.pipe.as_fd(), what)?;
            let mut buffer = [0; 4096];
            match self.pipe.read(&mut buffer) {
                Ok(0) => {
                    let cause = scratch
                        .last_words()
                        .unwrap_or_else(|| "without a word".into());
                    return Err(Failure::failed(format!("it ended before {what}: {cause}")));
                }
                Ok(length) => self.unread.extend(&buffer[..length]),
                Err(error) => return Err(cannot(failure::cause(&error))),
            }
        }
    }
}
