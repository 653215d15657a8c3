//! What is wrong with a listener that cannot be mended at once, and the remedy.

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Why a listener is not as it was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What is wrong, to follow the name of the listener and a colon.
    pub cause: String,
    pub hint: String,
    /// Whether clients reach it nevertheless.
    pub is_reachable: bool,
}

/// Nobody can reach a listener of the serving generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreachable {
    /// `nobody can reach a.sock: its file was removed`.
    pub cause: String,
    pub hint: String,
}

/// Who can create a new socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Maker {
    /// The supervisor, before the next generation starts.
    Supervisor,
    /// Only a start of the whole server: root creates it then, and until then the name or port is taken.
    Start,
    /// The launcher, which has passed it on.
    Launcher,
}

impl Trouble {
    /// The file of a unix socket was removed.
    pub fn removed(maker: Maker) -> Trouble {
        Trouble::cut_off("its file was removed", remedy(maker))
    }

    /// There is another file at its path, which is left alone.
    pub fn replaced(maker: Maker) -> Trouble {
        let hint = match maker {
            Maker::Supervisor => "move away what is there, then --restart",
            Maker::Start => "move away what is there, then stop the server and start it again",
            Maker::Launcher => {
                "move away what is there, then let the launcher make a new socket, and start the server again"
            }
        };
        Trouble::cut_off("something else is at its path, and is left alone", hint)
    }

    /// A worker has called shutdown(2) on a unix socket, or for both directions on a UDP socket.
    pub fn shut_down(maker: Maker) -> Trouble {
        Trouble::cut_off("a worker has shut it down", remedy(maker))
    }

    /// A worker has called shutdown(2) for reading on a UDP socket, which still receives.
    pub fn shut_down_for_reading() -> Trouble {
        Trouble {
            is_reachable: true,
            ..Trouble::cut_off(
                "a worker has shut it down for reading: waiting for a datagram returns at once",
                "stop the server and start it again",
            )
        }
    }

    /// A new unix socket could not be created in its place.
    pub fn not_made_again(cause: impl Into<String>) -> Trouble {
        Trouble::cut_off(cause, "once that is fixed, --restart creates a new socket")
    }

    /// It could not be mended.
    pub fn unmended(cause: impl Into<String>) -> Trouble {
        Trouble::cut_off(cause, "stop the server and start it again")
    }

    /// The line about the listener of this name. `worker` has just exited, if that is when the trouble was noticed.
    pub(super) fn of(&self, name: &str, worker: Option<Pid>) -> String {
        let Trouble { cause, hint, .. } = self;
        let when = worker.map(|pid| format!(", seen when worker {pid} exited"));
        format!(
            "start_server: the listener {name} is in trouble: {cause}{}; {hint}",
            when.unwrap_or_default()
        )
    }

    fn cut_off(cause: impl Into<String>, hint: &'static str) -> Trouble {
        Trouble {
            cause: cause.into(),
            hint: hint.to_owned(),
            is_reachable: false,
        }
    }
}

fn remedy(maker: Maker) -> &'static str {
    match maker {
        Maker::Supervisor => "--restart creates a new socket for the next generation",
        Maker::Start => "stop the server and start it again, which creates a new socket",
        Maker::Launcher => {
            "stop the server, let its launcher make a new socket (systemctl restart of its socket unit), and start it again"
        }
    }
}

/// What had been done to a listener, by a worker or by whoever removes files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Was {
    ShutDown,
    Connected,
    /// Its file has its name again.
    Removed,
    /// There is a new socket, which the earlier workers do not have.
    Replaced,
}

impl Was {
    pub(super) fn mended(self, name: &str, worker: Option<Pid>) -> String {
        // Most likely it was the worker that has just exited, but others are still alive.
        let by = match worker {
            Some(pid) => format!(", apparently by worker {pid}"),
            None => " since the last check".into(),
        };
        let (what, done, mended) = match self {
            Was::ShutDown => ("", "shut down", "it listens again"),
            Was::Connected => (
                "",
                "connected to one peer",
                "it receives from everybody again",
            ),
            Was::Removed => ("file of the ", "removed", "it is back"),
            Was::Replaced => (
                "",
                "removed or shut down",
                "workers started from now on get a new socket",
            ),
        };
        format!("start_server: the {what}listener {name} was {done}{by}; {mended}")
    }
}
