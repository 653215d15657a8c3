//! The harness of the end-to-end tests: runs the built start_server and looks at what it did.
//!
//! It asserts nothing about start_server itself; what is promised stands in `suite/`. How a test reads:
//!
//! ```no_run
//! use e2e::{Server, ports};
//!
//! let port = ports::tcp();
//! let mut server = Server::setup().port(port).worker(["--graceful"]).start();
//! let first = server.ask(port);
//! server.restart();
//! assert_ne!(server.ask(port).pid, first.pid);
//! assert!(server.stop().success());
//! ```
//!
//! * [`Server`] runs start_server, by default as an ordinary user (`nobody` where the tests run as root), in a
//!   directory and a process group of its own. It ends everything that it started when it is dropped.
//! * The fixture `worker` (`src/bin/worker.rs`) answers each connection with a [`Report`] on itself and writes its
//!   starts and the signals that it caught to a journal, [`Server::journal`]. Ask with [`Server::ask`].
//! * [`proc`] reads uids, capabilities, masks and descriptors of any process out of /proc.
//! * Tests never sleep. [`wait::until`] and the `wait_..` methods of [`Server`] wait for a condition; when it does not
//!   come about they panic with the condition and the log of the server.
//! * Programs are started with [`start::InTurn`], so that what one test closes is closed in the programs of all.
//! * What a machine may lack is asked for with [`skip`]; the test says SKIPPED, or fails where `E2E_NO_SKIP` is set.
//! * `START_SERVER=/usr/bin/start_server` runs the suite against another start_server, such as Server::Starter;
//!   [`skip::original_differs`] states each promise that it does not keep.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

pub mod client;
pub mod fd_store;
pub mod folder;
pub mod journal;
pub mod manager;
pub mod ports;
pub mod proc;
pub mod programs;
pub mod report;
pub mod server;
pub mod skip;
pub mod start;
pub mod systemd;
pub mod trace;
pub mod wait;

pub use report::Report;
pub use server::{Finished, Server, Setup, Worker};
