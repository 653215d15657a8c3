//! `--check-config`: the phases of a start, without what they change.
//!
//! Nothing is bound, nothing is written, and no server program or command is run. Started by root, it gives up root's
//! privileges where a start does, and for the same reason: what comes after that is under the user's control, and only the
//! user knows what the user may do.

use std::mem;

use crate::host::access::{self, Expected};
use crate::host::daemon;
use crate::host::identity::{self, Account};
use crate::host::open_files::OpenFiles;
use crate::host::passed_on::PassedOn;
use crate::host::runtime_dir;
use crate::listeners::dry_run;
use crate::listeners::inherited::Inherited;
use crate::options::Options;
use crate::start::{drop_privileges, files};
use crate::words::failure::Failure;
use crate::words::findings::Findings;
use crate::words::notice::Notice;
use crate::words::text::quoted;
use crate::worker::environment::Environment;
use crate::worker::lookup;
use crate::{log, status};

/// Finds out what a start with these options would do, and as much as possible of what would keep it from that.
pub fn run(options: &Options, passed_on: Result<Vec<PassedOn>, Failure>) -> Findings {
    let mut findings = Findings::default();
    let findings_of = &mut findings;
    if let Some(preset) = &options.preset {
        findings_of.would(format!("takes from --preset: {preset}"));
    }
    if options.is_daemon {
        findings_of.take(daemon::refuse_first());
    }
    let account = match identity::identify(&options.identity) {
        Ok(account) => account,
        Err(failure) => {
            // Nobody knows what an unknown user may do, and root may do everything.
            findings_of.fails(failure);
            return findings;
        }
    };
    if let Some(account) = &account {
        findings_of.would(runs_as(options, account));
    }
    let identity = account.map(|account| account.identity);
    let Some(open_files) = findings_of.take(OpenFiles::of_launcher()) else {
        return findings;
    };
    let inherited = passed_on.and_then(|it| Inherited::examine_all(it, identity.as_ref()));
    let inherited = findings_of.take(inherited).unwrap_or_default();
    let listening = &options.listeners;
    let mut examined = dry_run::examine(
        listening,
        &files::wanted(options),
        |path, cause| files::cannot_make(options, path, cause),
        inherited,
        identity.clone(),
        open_files,
        findings_of,
    );
    let dropped = drop_privileges(identity.as_ref(), options.is_strict);
    if findings_of.take(dropped).is_none() {
        return findings;
    }
    let mut expected = Expected {
        by_root: mem::take(&mut examined.by_root),
        directory: None,
    };
    examine_runtime_dir(options, &mut expected, findings_of);
    let mut of_files = Findings::default();
    let is_running = status::dry_run::examine(&options.status, &expected, &mut of_files);
    examined.finish(options.is_strict, is_running, &expected, findings_of);
    findings_of.append(of_files);
    log::examine(&options.log, &expected, findings_of);
    examine_worker(options, findings_of);
    findings
}

/// With the user's privileges.
fn examine_runtime_dir(options: &Options, expected: &mut Expected, findings: &mut Findings) {
    let Some(path) = &options.runtime_dir else {
        return;
    };
    let is_missing = path.symlink_metadata().is_err();
    let examined = match (is_missing, expected.covers(path)) {
        // Root has examined it.
        (_, true) => Ok(()),
        (true, false) => {
            access::can_make(path, expected).map_err(|error| runtime_dir::cannot(path, &error))
        }
        (false, false) => runtime_dir::accept(path),
    };
    if findings.take(examined).is_some() && is_missing {
        findings.would(format!("makes {} (--runtime-dir)", quoted(path)));
        expected.directory = Some(path.clone());
    }
}

fn runs_as(options: &Options, account: &Account) -> String {
    let name = options.identity.user.as_deref().unwrap_or_default();
    let (uid, gid) = (account.identity.uid, account.identity.gid);
    format!("becomes {} (uid {uid}, gid {gid})", quoted(name))
}

/// The program is looked up in the worker's own PATH, which `--envdir` may set.
fn examine_worker(options: &Options, findings: &mut Findings) {
    let mut environment = Environment::new(&options.environment);
    let loaded = environment.load();
    let changes = loaded.changes.map_err(|failure| Failure::from(&failure));
    let Some(changes) = findings.take(changes) else {
        return;
    };
    let warnings = loaded.notices.iter().map(Notice::to_string);
    warnings.for_each(|warning| findings.would(warning));
    if let Some(directory) = &options.environment.directory {
        let shown = quoted(directory);
        findings.would(format!("sets the variables in {shown} (--envdir)"));
    }
    let worker = &options.worker;
    if let Some(check) = &worker.check {
        let when = match options.machine.check_first {
            true => "before each start",
            false => "before each restart",
        };
        findings.would(format!("runs {when} (--check): {}", quoted(check)));
    }
    let found = lookup::find(worker, &changes).map_err(|failure| Failure::from(&failure));
    if let Some(program) = findings.take(found) {
        let directory = worker.directory.as_ref().map(quoted);
        let directory = directory.map(|it| format!(" in {it}")).unwrap_or_default();
        findings.would(format!("runs {}{directory}", quoted(program)));
    }
}
