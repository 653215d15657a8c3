//! The superdaemon: starts server programs with bound sockets, and replaces them without refusing a connection.
//!
//! A library only so that its parsers can be fuzzed: nothing else of it is public, and the program is [`main`].

mod client;
#[doc(hidden)]
pub mod fuzz;
mod host;
mod listeners;
mod log;
mod machine;
mod options;
mod self_test;
mod start;
mod status;
mod supervisor;
mod words;
mod worker;

use std::io::{self, Write};
use std::process::ExitCode;

use common::descriptors::close_inherited;

use crate::host::identity;
use crate::machine::Outcome;
use crate::options::Invocation;
use crate::start::cannot_set_up_signals;
use crate::supervisor::signals;
use crate::words::failure::{self, Failure};

/// The whole program, from its command line to its exit code.
pub fn main() -> ExitCode {
    match run() {
        Ok(Outcome::Stopped) => ExitCode::SUCCESS,
        Ok(Outcome::GivenUp) => ExitCode::from(failure::Status::Failed as u8),
        Err(failure) => {
            log::complain(&failure);
            ExitCode::from(failure.status as u8)
        }
    }
}

fn run() -> Result<Outcome, Failure> {
    // First, for the clients and the worker of a self-test as well.
    identity::refuse_rights_of_another()?;
    if self_test::is_worker() {
        return self_test::run_worker().map(|()| Outcome::Stopped);
    }
    close_inherited().map_err(|errno| {
        Failure::failed(format!(
            "cannot close inherited descriptors: {}",
            errno.desc()
        ))
    })?;
    // Before the first child: whoever ignores CHLD cannot wait for one.
    signals::reset().map_err(cannot_set_up_signals)?;
    let done = |()| Outcome::Stopped;
    let mut say = log::say;
    match options::parse(std::env::args_os().skip(1))? {
        Invocation::Start(options) => start::run(*options),
        Invocation::Restart(options) => client::restart(&options, &mut say).map(done),
        Invocation::Stop(options) => client::stop(&options, &mut say).map(done),
        Invocation::Reopen(options) => client::reopen(&options, &mut say).map(done),
        Invocation::SelfTest(options) => self_test::run(&options).map(|holds| match holds {
            true => Outcome::Stopped,
            false => Outcome::GivenUp,
        }),
        Invocation::Print(text) => io::stdout()
            .write_all(text.as_bytes())
            .map(done)
            .map_err(|error| Failure::failed(format!("cannot write to standard output: {error}"))),
    }
}
