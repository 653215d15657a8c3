//! The superdaemon: starts server programs with bound sockets and replaces them without refusing a connection.
//!
//! Its rooms, from the ground up; each imports only from those above it in this list:
//!
//! | room | what is there |
//! |---|---|
//! | `words` | every message and hint, and what makes text from outside safe to show |
//! | `host` | this process and the system around it: identity, signals, locks, clocks, confinement |
//! | `log` | where output goes; nothing else writes to it |
//! | `machine` | all policy, and nothing else: an event and the time go in, actions come out |
//! | `listeners` | from `--port` and `--path` to sockets, by way of the binder or directly |
//! | `worker` | one child: its descriptors, its environment, its exec |
//! | `ready` | when a worker serves: what it says itself, and what a command or a probe finds |
//! | `status` | pid file, status file and `FILE.json` |
//! | `manager` | what the service manager that launched us is told, over `NOTIFY_SOCKET` |
//! | `client` | `--restart`, `--promote`, `--rollback`, `--abort`, `--upgrade`, `--stop`, `--reopen`, `--status`: requests to another start_server |
//! | `self_test` | `--self-test`: everything promised about the processes, tried on this host |
//! | `guardian` | `--guardian`: the process that outlives a supervisor and starts the next one |
//! | `supervisor` | the loop: descriptors become events, actions become system calls |
//! | `options` | the command line, which fills in the settings that each room defines |
//! | `start` | the phases of a start in their order |
//!
//! It is a library only to let its parsers be fuzzed: nothing else is public, and the program is [`main`].

mod client;
#[doc(hidden)]
pub mod fuzz;
mod guardian;
mod host;
mod listeners;
mod log;
mod machine;
mod manager;
mod options;
mod ready;
mod self_test;
mod start;
mod status;
mod supervisor;
mod words;
mod worker;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::host::own_program::Inheritance;
use crate::host::signals;
use crate::host::{dispositions, identity, passed_on};
use crate::log::LineFormat;
use crate::options::Invocation;
use crate::words::failure::{Failure, Status};
use crate::words::findings::Findings;
use crate::words::notice::Notice;

/// The whole program, from its command line to its exit code.
pub fn main() -> ExitCode {
    let status = run().unwrap_or_else(|failure| {
        log::show(&format_args!("start_server: {failure}"));
        failure.status
    });
    ExitCode::from(status as u8)
}

fn run() -> Result<Status, Failure> {
    // First, because it applies to the clients and the worker of a self-test too.
    identity::refuse_rights_of_another()?;
    let done = |()| Status::Done;
    if self_test::is_worker() {
        return self_test::run_worker().map(done);
    }
    // Before any descriptor is closed and any signal is reset: both are another program's.
    if let Some(inheritance) = Inheritance::find() {
        return start::resume::run(inheritance);
    }
    if let Some(snapshot) = start::resume::question(std::env::args_os().skip(1)) {
        return print(&start::resume::answer(snapshot)?);
    }
    // A server alone has a use for them, and a lie about them keeps nothing else from running.
    let passed_on = passed_on::take_and_close_others()?;
    // Before the first child: a process that ignores CHLD cannot wait for one.
    dispositions::reset();
    signals::hold().map_err(start::cannot_set_up_signals)?;
    match options::parse(std::env::args_os().skip(1))? {
        Invocation::Start(options) => {
            let format = options.log.format;
            start::run(*options, passed_on?).or_else(|failure| show(format, failure))
        }
        Invocation::CheckConfig(options) => report(
            &start::dry_run::run(&options, passed_on),
            options.log.is_quiet,
        ),
        Invocation::Restart(settings) => {
            client::restart(&settings, &mut teller(&settings)).map(done)
        }
        Invocation::Rollback(settings) => {
            client::rollback(&settings, &mut teller(&settings)).map(done)
        }
        Invocation::Promote(settings) => {
            client::promote(&settings, &mut teller(&settings)).map(done)
        }
        Invocation::Abort(settings) => client::abort(&settings, &mut teller(&settings)).map(done),
        Invocation::Scale(settings, workers) => {
            client::scale(&settings, workers, &mut teller(&settings)).map(done)
        }
        Invocation::Stop(settings) => client::stop(&settings, &mut teller(&settings)).map(done),
        Invocation::Upgrade(settings) => {
            client::upgrade(&settings, &mut teller(&settings)).map(done)
        }
        Invocation::Reopen(settings) => client::reopen(&settings, &mut teller(&settings)).map(done),
        Invocation::Status(settings) => client::show(&settings, &mut teller(&settings)),
        Invocation::SelfTest(settings) => self_test::run(&settings).map(|holds| match holds {
            true => Status::Done,
            false => Status::Failed,
        }),
        Invocation::Print(text) => print(&text),
    }
}

/// Why a start has failed, as its log would have it; wrong usage is always said in plain text.
fn show(format: LineFormat, failure: Failure) -> Result<Status, Failure> {
    match failure.status {
        Status::Usage => Err(failure),
        status => {
            log::show_failure(format, &failure);
            Ok(status)
        }
    }
}

fn print(text: &str) -> Result<Status, Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(Status::Done),
        Err(error) => Err(Failure::failed(format!(
            "cannot write to standard output: {error}"
        ))),
    }
}

/// What a dry run has found: what would be done, unless it is quiet, and what would fail.
fn report(findings: &Findings, is_quiet: bool) -> Result<Status, Failure> {
    if !is_quiet {
        print(&findings.text())?;
    }
    for failure in findings.failures() {
        log::show(&format_args!("start_server: {failure}"));
    }
    Ok(findings.status())
}

/// Shows what a client reports while it waits, unless it is quiet.
fn teller(settings: &client::Settings) -> impl FnMut(Notice) + use<> {
    let is_quiet = settings.is_quiet;
    move |notice| {
        if !is_quiet {
            log::show(&notice);
        }
    }
}
