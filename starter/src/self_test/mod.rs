//! `--self-test`: starts both programs on this host as a server would, and checks every process against PROCESSES
//! of start_server-binder(8), from outside by /proc and from inside by escapes that must fail.
//!
//! - [`server`]: a real server. Its worker is this program in another role ([`worker`]), which tries what it is told to.
//! - [`binders`]: real binders, with this process in place of the supervisor. A binder waits for requests, so it can be
//!   examined in each phase, and it tries the escapes in its sealed list.
//! - [`checks`]: what each process must be like.
//!
//! This process keeps its launcher's privileges in order to examine everything, and acts as a hostile launcher: the others
//! inherit blocked and ignored signals and an open file from it. It decides nothing about confinement: a check that fails
//! is a line and exit code 1, and the next check follows.

mod binders;
mod checks;
mod inherited;
mod patience;
mod report;
mod scratch;
mod server;
mod settings;
mod worker;

use caps::Capability;
use common::message::Identity;
use common::privileges;
use nix::sys::prctl::set_child_subreaper;
use nix::unistd::{getegid, geteuid, getgroups};

pub use self::settings::Settings;
pub use self::worker::{is_worker, run as run_worker};

use self::inherited::Inherited;
use self::patience::Patience;
use self::report::Report;
use self::scratch::{Ports, Scratch};
use crate::host::identity;
use crate::host::proc::Status;
use crate::words::failure::Failure;
use crate::words::remedy;

/// What all parts of the self-test share.
struct Test<'a> {
    settings: &'a Settings,
    /// The user to become, as root.
    identity: Option<Identity>,
    /// The user who serves in the end.
    user: Identity,
    inherited: Inherited,
    scratch: Scratch,
    ports: Ports,
    patience: Patience,
    /// This process: what the others inherit.
    launcher: Status,
    report: Report,
}

/// Runs all checks; returns whether all of them hold.
///
/// # Errors
/// If they cannot be made: an unknown user, no place for files, an interruption.
pub fn run(settings: &Settings) -> Result<bool, Failure> {
    let account = identity::identify(&settings.identity)?;
    let identity = account.map(|account| account.identity);
    if identity.is_some() {
        can_examine()?;
    }
    // Any process left behind becomes a child of this one, and is noticed.
    set_child_subreaper(true).map_err(|errno| {
        Failure::failed(format!(
            "cannot adopt the processes of the self-test: {}",
            errno.desc()
        ))
    })?;
    let patience = Patience::take_signals()?;
    let mut test = Test {
        settings,
        user: match &identity {
            Some(identity) => identity.clone(),
            None => ourselves()?,
        },
        inherited: Inherited::now()?,
        scratch: Scratch::new(identity.as_ref())?,
        ports: Ports::find(identity.is_some())?,
        identity,
        patience,
        launcher: Status::of(nix::unistd::getpid())?,
        report: Report::default(),
    };
    test.everything()?;
    test.report.summary()
}

/// Root is not always able to examine and kill the processes of a user, which no server needs.
fn can_examine() -> Result<(), Failure> {
    let cannot = |cause: String| Failure::failed(format!("cannot test as root: {cause}"));
    let needed = [
        Capability::CAP_KILL,
        Capability::CAP_SYS_PTRACE,
        Capability::CAP_DAC_OVERRIDE,
    ];
    let available = privileges::available(&needed).map_err(|error| cannot(error.to_string()))?;
    match needed.iter().find(|one| !available.contains(one)) {
        None => Ok(()),
        Some(missing) => Err(cannot(format!("{missing} is missing here"))
            .hint(remedy::CAPABILITIES_OF_THE_SELF_TEST)),
    }
}

impl Test<'_> {
    fn everything(&mut self) -> Result<(), Failure> {
        // One server or binder after the other: never two at a time.
        self.part("server", Test::server_of_ports)?;
        match &self.identity {
            Some(_) => self.part("server", Test::server_of_a_path)?,
            None => self.report.not_here(
                checks::LASTING,
                "an ordinary user makes its sockets at paths itself",
            )?,
        }
        self.part("port binder", Test::binder_of_ports)?;
        match &self.identity {
            Some(_) => self.part("path binder", Test::binder_of_a_path),
            None => self.report.not_here(
                "path binder",
                "an ordinary user makes its sockets at paths itself",
            ),
        }
    }

    /// Runs one part. If a fault of what it tests keeps it from continuing, that is a line of the report.
    fn part(
        &mut self,
        process: &str,
        part: fn(&mut Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Err(failure) = part(self) else {
            return Ok(());
        };
        if self.patience.is_interrupted() || self.report.is_broken() {
            return Err(failure);
        }
        let found = failure.to_string().replace('\n', "; ");
        self.report
            .check(process, "it can be tested to the end", false, found)
    }

    /// What the launcher has of a capability: nobody can have more.
    fn has(&self, capability: caps::Capability) -> Result<bool, Failure> {
        privileges::available(&[capability])
            .map(|available| !available.is_empty())
            .map_err(|error| Failure::failed(format!("cannot test: {error}")))
    }
}

fn ourselves() -> Result<Identity, Failure> {
    let groups = getgroups()
        .map_err(|errno| Failure::failed(format!("cannot read the groups: {}", errno.desc())))?;
    Ok(Identity {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        groups: groups.into_iter().map(|gid| gid.as_raw()).collect(),
    })
}
