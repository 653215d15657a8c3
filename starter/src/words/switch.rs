//! What is said about lanes: sockets of one address, each for one generation, and the switch between them.

use std::fmt;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::words::failure::Failure;
use crate::words::parts::Pids;
use crate::words::remedy;

/// Something that happened to lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switching {
    /// This kernel, or whoever filters our system calls, does not let a program choose the socket.
    Impossible { errno: Errno },
    /// These listeners have one socket each.
    Shared(Vec<String>),
    /// This one has only one, for this reason.
    NoLanes { given: String, errno: Errno },
    /// New connections go to this generation from now on.
    Switched { generation: u32, lane: u8 },
    /// The kernel does not give them to another lane.
    NotSwitched { listener: String, errno: Errno },
    /// A start waits for a lane, and these still have theirs.
    Waiting { pids: Vec<Pid> },
    /// A worker is started for the clients that wait in a lane that no worker serves.
    Sweeping {
        waiting: usize,
        lane: u8,
        /// There are as many of these workers as there may be.
        is_last: bool,
    },
    /// That worker could not be started, has died, or has not accepted them.
    NotSwept { lane: u8 },
    /// Clients still wait for old workers, which are told to stop all the same.
    NotQuiet { waiting: usize },
}

/// `--switch=required`, and this listener is everybody's.
pub fn cannot_switch(given: &str) -> Failure {
    Failure::failed(format!(
        "cannot use --switch=required: all generations share {given}"
    ))
    .hint(remedy::SWITCH_PORTS)
}

/// `--switch=required`, and this listener cannot have lanes.
pub fn no_lanes(given: &str, errno: Errno) -> Failure {
    let cause = errno.desc();
    Failure::failed(format!(
        "cannot use --switch=required: cannot open more sockets for {given}: {cause}"
    ))
    .hint(remedy::SWITCH_ANEW)
}

/// `--switch=required`, and no listener can have any.
pub fn impossible(errno: Errno) -> Failure {
    Failure::failed(format!("cannot use --switch=required: {}", refused(errno)))
        .hint(remedy::SWITCH_KERNEL)
}

fn refused(errno: Errno) -> String {
    format!(
        "setsockopt(SO_ATTACH_REUSEPORT_CBPF) is refused: {}",
        errno.desc()
    )
}

impl fmt::Display for Switching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start_server: ")?;
        match self {
            Switching::Impossible { errno } => write!(
                f,
                "--switch has no effect here, and all generations share the listeners: {}",
                refused(*errno)
            ),
            Switching::Shared(listeners) => write!(
                f,
                "all generations share these listeners despite --switch: {}",
                listeners.join(", ")
            ),
            Switching::NoLanes { given, errno } => write!(
                f,
                "all generations share {given}: cannot open more sockets for it: {}",
                errno.desc()
            ),
            Switching::Switched { generation, lane } => write!(
                f,
                "new connections go to generation {generation} (lane {lane})"
            ),
            Switching::NotSwitched { listener, errno } => write!(
                f,
                "cannot switch {listener} to another lane: {}",
                errno.desc()
            ),
            Switching::Waiting { pids } => write!(
                f,
                "the next start waits until old workers are gone, as no lane is free (see --lanes, --kill-old-timeout):{}",
                Pids(pids, "none")
            ),
            Switching::Sweeping {
                waiting,
                lane,
                is_last,
            } => {
                write!(
                    f,
                    "clients wait in lane {lane}, which no worker serves (sockets: {waiting}): starting a worker for them"
                )?;
                match is_last {
                    true => write!(f, ", the last one until such a worker is gone"),
                    false => Ok(()),
                }
            }
            Switching::NotSwept { lane } => write!(
                f,
                "the worker for the clients that wait in lane {lane} did not serve them; another one follows"
            ),
            Switching::NotQuiet { waiting } => write!(
                f,
                "clients still wait for old workers (sockets: {waiting}), which are told to stop now: --switch-timeout is over"
            ),
        }
    }
}
