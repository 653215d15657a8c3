//! What a machine may lack: tests say so and end early, unless `E2E_NO_SKIP` is set: then the lack is a failure.
//!
//! ```no_run
//! if !e2e::skip::needs_root() {
//!     return;
//! }
//! ```

use std::io::Write;
use std::path::PathBuf;
use std::{env, io, thread};

use nix::unistd::Uid;

use crate::programs;

/// Whether the tests run as root.
#[must_use]
pub fn needs_root() -> bool {
    Uid::effective().is_root() || missing("needs root")
}

/// Whether the tests run as an ordinary user themselves. (Most tests want a *server* of an ordinary user: that is
/// what [`Server`](crate::Server) does by default, whoever runs the tests.)
#[must_use]
pub fn needs_ordinary_user() -> bool {
    !Uid::effective().is_root() || inapplicable("needs an ordinary user, and the tests run as root")
}

/// Whether this program can be found by $PATH.
#[must_use]
pub fn needs_program(name: &str) -> bool {
    find_program(name).is_some() || missing(&format!("needs {name}, which is not installed"))
}

/// Whether the kernel lets us use IPv6 on the loopback interface.
#[must_use]
pub fn needs_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok() || missing("needs IPv6")
}

/// Whether START_SERVER names another start_server: then the promise is known to be broken there, for this reason.
#[must_use]
pub fn original_differs(reason: &str) -> bool {
    programs::another().is_some() && !inapplicable(&format!("START_SERVER differs: {reason}"))
}

/// Says that a test cannot run here. Fails it where that is not accepted; else returns false.
pub fn missing(reason: &str) -> bool {
    assert!(
        env::var_os("E2E_NO_SKIP").is_none(),
        "{reason}, and E2E_NO_SKIP forbids to skip"
    );
    inapplicable(reason)
}

/// Says that a test has nothing to say here, which is no failure anywhere. Returns false.
fn inapplicable(reason: &str) -> bool {
    let name = thread::current().name().unwrap_or("test").to_owned();
    // Not by `eprintln!`: the test runner would show it only for tests that fail. Nothing can be done when stderr is
    // closed.
    drop(writeln!(io::stderr(), "SKIPPED {name}: {reason}"));
    false
}

/// Where $PATH leads for this name.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}
