//! What is wrong with a listener that cannot be mended at once, and what helps.

use serde::{Deserialize, Serialize};

/// Why a listener is not as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong, in words that follow the name of the listener and a colon.
    pub cause: String,
    pub hint: &'static str,
    /// Whether clients reach it all the same.
    pub is_reachable: bool,
}

/// Nobody reaches a listener of a generation that serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreachable {
    /// `nobody can reach a.sock: its file was removed`.
    pub cause: String,
    pub hint: String,
}

/// Who can make a new socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// The supervisor, before the next generation starts.
    Supervisor,
    /// The next start alone: root makes it there, or the port is taken until then.
    Start,
}

impl Trouble {
    /// The file of a unix socket was removed.
    pub fn removed(maker: Maker) -> Trouble {
        Trouble::deaf("its file was removed", remedy(maker))
    }

    /// Its path holds another file, which stays.
    pub fn replaced(maker: Maker) -> Trouble {
        let hint = match maker {
            Maker::Supervisor => "move away what is there, then --restart",
            Maker::Start => "move away what is there, then stop the server and start it again",
        };
        Trouble::deaf("something else has its path, and is left alone", hint)
    }

    /// A worker has called shutdown(2) on a unix socket, or on a UDP socket for both ways.
    pub fn shut_down(maker: Maker) -> Trouble {
        Trouble::deaf("a worker has shut it down", remedy(maker))
    }

    /// A worker has called shutdown(2) on a UDP socket to read no more, which it still does.
    pub fn shut_down_for_reading() -> Trouble {
        Trouble {
            is_reachable: true,
            ..Trouble::deaf(
                "a worker has shut it down: to wait for a datagram there returns at once",
                "stop the server and start it again",
            )
        }
    }

    /// A new unix socket could not be made in its place.
    pub fn not_made_again(cause: impl Into<String>) -> Trouble {
        Trouble::deaf(cause, "once that is mended, --restart makes a new socket")
    }

    /// It could not be mended.
    pub fn unmended(cause: impl Into<String>) -> Trouble {
        Trouble::deaf(cause, "stop the server and start it again")
    }

    fn deaf(cause: impl Into<String>, hint: &'static str) -> Trouble {
        Trouble {
            cause: cause.into(),
            hint,
            is_reachable: false,
        }
    }
}

fn remedy(maker: Maker) -> &'static str {
    match maker {
        Maker::Supervisor => "--restart makes a new socket for the next generation",
        Maker::Start => "stop the server and start it again, which makes a new socket",
    }
}
