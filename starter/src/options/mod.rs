//! The command line: from its words to the settings of every room.
//!
//! - [`mod@spelling`]: options in any case and abbreviated become the one spelling that clap knows.
//! - [`mod@definition`]: all options, and the help text.
//! - [`mod@values`]: the value of each option, read into its type.
//! - [`mod@preset`]: the options that a server program needs, by its name.
//! - [`mod@checks`]: what one option requires of the others.
//!
//! Here they become an [`Invocation`]. Nothing is opened, resolved or looked up: whether a user or a host exists is found
//! out later.

mod checks;
mod definition;
mod preset;
mod refusal;
mod spelling;
mod values;
mod workers;

use std::ffi::{OsStr, OsString};
use std::mem;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use nix::sys::signal::Signal;

use self::checks::{
    canary, check_fd_store, check_files, check_listeners, check_log_format, check_needs,
    check_program, check_ready, check_replace, check_rolling, check_self_test, check_switch,
    check_udp_flows, form, returns_at_commit,
};
use self::definition::definition;
use self::preset::Preset;
use self::refusal::{lacks, of_clap, unusable};
use self::spelling::spell_out;
use self::values::{Given, tag_of};
use self::workers::MOST_WORKERS;
pub use self::workers::Workers;
use crate::host::{identity, runtime_dir};
use crate::listeners::Switch;
use crate::listeners::dialects::Dialect;
use crate::listeners::program::Spread;
use crate::log::{Address, DEFAULT_ADDRESS, Format, LogTarget, SyslogSettings};
use crate::machine::{Knobs, Proof, Replace};
use crate::ready::{MOST_STORED, ProbeAt, Ready, Statuses};
use crate::words::failure::Failure;
use crate::words::remedy;
use crate::worker::{Label, environment};
use crate::{client, listeners, log, machine, ready, self_test, status, worker};

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    Start(Box<Options>),
    /// Find out what that would do, and do none of it.
    CheckConfig(Box<Options>),
    /// Tell a running superdaemon to start a new generation.
    Restart(client::Settings),
    /// Tell a running superdaemon to give its canary everything.
    Promote(client::Settings),
    /// Tell a running superdaemon to undo its last restart.
    Rollback(client::Settings),
    /// Tell a running superdaemon to give up a restart.
    Abort(client::Settings),
    /// Tell a running superdaemon to run another number of workers.
    Scale(client::Settings, u16),
    /// Tell a running superdaemon to stop.
    Stop(client::Settings),
    /// Tell a running superdaemon to reopen its log file.
    Reopen(client::Settings),
    /// Tell a running superdaemon to execute its program file again.
    Upgrade(client::Settings),
    /// Show what a running superdaemon is doing.
    Status(client::Settings),
    /// Test both programs on this host.
    SelfTest(self_test::Settings),
    /// Print this text, the help or the version, on stdout.
    Print(String),
}

/// The settings of every room, with the defaults filled in.
#[derive(Debug)]
pub struct Options {
    pub identity: identity::Settings,
    /// Whether missing confinement is a failure rather than a warning.
    pub is_strict: bool,
    /// Whether to run in the background.
    pub is_daemon: bool,
    /// Whether a guardian outlives the supervisor.
    pub is_guarded: bool,
    pub workers: Workers,
    pub listeners: listeners::Settings,
    pub worker: worker::Settings,
    pub environment: environment::Settings,
    pub machine: machine::Settings,
    pub ready: ready::Settings,
    pub log: log::Settings,
    pub status: status::Settings,
    /// The directory of relative paths of all these files.
    pub runtime_dir: Option<PathBuf>,
    /// What a preset has set, for people.
    pub preset: Option<String>,
}

/// How long a worker may take to become ready, by default.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What `--switch` does by default.
const LANES: u8 = 2;
const QUIET_TIME: Duration = Duration::from_millis(200);
const SWITCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The status of HTTP that counts as ready, by default.
const OK_ALONE: Statuses = Statuses {
    first: 200,
    last: 200,
};

/// Makes an invocation that asks a running superdaemon for something.
type Command = fn(client::Settings) -> Invocation;

const COMMANDS: [(&str, Command); 8] = [
    ("restart", Invocation::Restart),
    ("promote", Invocation::Promote),
    ("rollback", Invocation::Rollback),
    ("abort", Invocation::Abort),
    ("upgrade", Invocation::Upgrade),
    ("stop", Invocation::Stop),
    ("reopen", Invocation::Reopen),
    ("status", Invocation::Status),
];

/// Parses the words after the name of this program.
///
/// # Errors
/// Wrong usage: the first error in the command line.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, Failure> {
    let definition = definition();
    let spelled = spell_out(&definition, arguments)?;
    match definition.try_get_matches_from(spelled.words) {
        Ok(matches) => with_preset(Given::new(&matches)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                let text = error.render().to_string();
                Ok(Invocation::Print(format!("{}\n", text.trim_end())))
            }
            _ => Err(of_clap(&error, spelled.unknown.as_deref())),
        },
    }
}

/// Adds what the preset sets, or shows all presets.
fn with_preset(mut given: Given<'_>) -> Result<Invocation, Failure> {
    match given.value("preset")? {
        None => {}
        Some(name) if name == preset::LIST => return Ok(Invocation::Print(preset::list())),
        Some(name) => given.preset = Some(preset::find(name)?),
    }
    // What is refused may be an option that nobody has typed.
    invocation(&given).map_err(|failure| {
        let cause = given.preset.filter(|one| one.is_in(&failure.to_string()));
        let hint = cause.map(|preset| remedy::of_preset(preset.name(), &preset.options()));
        failure.hint_if(hint)
    })
}

fn invocation(given: &Given<'_>) -> Result<Invocation, Failure> {
    if given.flag("self-test") {
        return Ok(Invocation::SelfTest(self_test(given)?));
    }
    if given.has("scale") {
        return scale(given);
    }
    let mut commands = COMMANDS.into_iter().filter(|(name, _)| given.flag(name));
    match (commands.next(), commands.next()) {
        (Some((name, _)), _) if given.flag("check-config") => Err(unusable(
            "check-config",
            &format!("--{name} is given as well"),
        )),
        (None, _) if given.flag("check-config") => {
            Ok(Invocation::CheckConfig(Box::new(start(given)?)))
        }
        (None, _) => Ok(Invocation::Start(Box::new(start(given)?))),
        (Some((name, command)), None) => Ok(command(client(name, given)?)),
        (Some((name, _)), Some((other, _))) => {
            Err(unusable(name, &format!("--{other} is given as well")))
        }
    }
}

fn start(given: &Given<'_>) -> Result<Options, Failure> {
    // Who forgets --restart has no program either.
    check_needs(given)?;
    check_program(given)?;
    let mut options = options(given)?;
    check_listeners(&options.listeners)?;
    check_files(&options.status, &options.log)?;
    check_log_format(&options.log)?;
    check_ready(given, &options.ready, &options.listeners)?;
    let (replace, delay) = (options.machine.replace, options.environment.kill_old_delay);
    check_replace(given, replace, delay)?;
    check_rolling(given, replace)?;
    check_switch(given, replace)?;
    check_udp_flows(given, &options.listeners)?;
    check_fd_store(given, &options.ready, &options.listeners)?;
    // Whoever takes descriptors back takes the listeners by the same variables.
    if options.ready.fd_store_max > 0 && !options.listeners.dialects.contains(&Dialect::Systemd) {
        options.listeners.dialects.push(Dialect::Systemd);
    }
    Ok(options)
}

/// As with Server::Starter, the command line of a start, with `command` added to it, also serves for the command: the
/// program and the other options must be valid by themselves, but have no effect.
fn client(command: &str, given: &Given<'_>) -> Result<client::Settings, Failure> {
    let status::Settings {
        pid_file,
        status_file,
    } = options(given)?.status;
    let timeout = given.seconds("timeout")?;
    Ok(client::Settings {
        pid_file: pid_file.ok_or_else(|| unusable(command, &lacks(&["pid-file"])))?,
        status_file,
        timeout,
        is_quiet: given.flag("quiet"),
        form: form(command, given)?,
        returns_at_commit: returns_at_commit(command, given)?,
        canary: canary(command, given)?,
    })
}

fn scale(given: &Given<'_>) -> Result<Invocation, Failure> {
    let mut others = COMMANDS.into_iter().map(|(name, _)| name);
    let mut others = others.by_ref().chain(["check-config"]);
    if let Some(other) = others.find(|name| given.flag(name)) {
        return Err(unusable("scale", &format!("--{other} is given as well")));
    }
    let to = given.count("scale", MOST_WORKERS)?.unwrap_or(1);
    Ok(Invocation::Scale(client("scale", given)?, to))
}

fn self_test(given: &Given<'_>) -> Result<self_test::Settings, Failure> {
    check_self_test(given)?;
    Ok(self_test::Settings {
        identity: identity(given)?,
        is_strict: given.flag("strict"),
    })
}

/// Each option by itself; the program may be missing.
fn options(given: &Given<'_>) -> Result<Options, Failure> {
    let worker = worker(given)?;
    let ready = ready(given)?;
    let runtime_dir = given.path("runtime-dir")?;
    let runtime_dir = runtime_dir.map(|path| runtime_dir::without_slash(&path));
    let below = |path: PathBuf| match &runtime_dir {
        Some(directory) => directory.join(path),
        None => path,
    };
    let mut log = log(given, &worker.program)?;
    if let Some(LogTarget::File(path)) = &mut log.target {
        *path = below(mem::take(path));
    }
    Ok(Options {
        listeners: listeners(given)?,
        log,
        worker,
        environment: environment(given)?,
        machine: machine(given, &ready)?,
        ready,
        status: status::Settings {
            pid_file: given.path("pid-file")?.map(below),
            status_file: given.path("status-file")?.map(below),
        },
        runtime_dir,
        identity: identity(given)?,
        is_strict: given.flag("strict"),
        is_daemon: given.flag("daemonize"),
        is_guarded: given.flag("guardian"),
        workers: given.workers("workers")?.unwrap_or(Workers::Number(1)),
        preset: given.preset.map(Preset::options),
    })
}

fn identity(given: &Given<'_>) -> Result<identity::Settings, Failure> {
    Ok(identity::Settings {
        user: given.text("user")?,
        group: given.text("group")?,
        keeps_environment: given.flag("keep-env"),
    })
}

fn listeners(given: &Given<'_>) -> Result<listeners::Settings, Failure> {
    Ok(listeners::Settings {
        ports: given.ports("port")?,
        paths: given.paths("path")?,
        backlog: given.count("backlog", i32::MAX)?,
        dialects: given.dialects("fd-env")?,
        switch: switch(given)?,
    })
}

fn switch(given: &Given<'_>) -> Result<Option<Switch>, Failure> {
    let lanes = given.lanes("lanes")?.unwrap_or(LANES);
    let is_required = given.required("switch")?;
    let flows = given.udp_flows("udp-flows")?;
    let spread = match given.flag("cpu-affinity") {
        true => Spread::Cpu,
        false => Spread::Random,
    };
    Ok(is_required.map(|is_required| Switch {
        lanes,
        // One for each worker, once their number is known.
        shards: 1,
        spread,
        is_required,
        flows,
    }))
}

fn worker(given: &Given<'_>) -> Result<worker::Settings, Failure> {
    let mut words = given.all("program").map(OsStr::to_owned);
    Ok(worker::Settings {
        check: given.value("check")?.map(OsStr::to_owned),
        program: words.next().unwrap_or_default(),
        arguments: words.collect(),
        label: label(given)?,
        directory: given.path("dir")?,
    })
}

fn label(given: &Given<'_>) -> Result<Option<Label>, Failure> {
    let file = given.path("label-file")?;
    match (given.value("label")?, file) {
        (Some(_), Some(_)) => Err(unusable("label", "--label-file is given as well")),
        (Some(text), None) => Ok(Some(Label::Text(text.to_owned()))),
        (None, file) => Ok(file.map(Label::File)),
    }
}

fn environment(given: &Given<'_>) -> Result<environment::Settings, Failure> {
    Ok(environment::Settings {
        directory: given.path("envdir")?,
        kill_old_delay: given.seconds("kill-old-delay")?,
        enable_auto_restart: given.switch("enable-auto-restart")?,
        auto_restart_interval: given.seconds("auto-restart-interval")?,
    })
}

fn ready(given: &Given<'_>) -> Result<ready::Settings, Failure> {
    let statuses = given.statuses("ready-status")?;
    let ready = given.ready("ready", statuses.unwrap_or(OK_ALONE))?;
    let probe = given.probe("probe")?;
    let needs_probe = matches!(ready, Some(Ready::Accept | Ready::Http { .. }));
    Ok(ready::Settings {
        ready: ready.unwrap_or(Ready::Interval),
        probe: probe.or(needs_probe.then_some(ProbeAt::Tcp)),
        start_timeout: given.seconds("start-timeout")?.unwrap_or(START_TIMEOUT),
        watch: given.seconds("watch")?,
        fd_store_max: given.limit("fd-store-max", MOST_STORED)?.unwrap_or(0),
    })
}

fn machine(given: &Given<'_>, ready: &ready::Settings) -> Result<machine::Settings, Failure> {
    let start_limit = given.count("start-limit", u32::MAX)?;
    let start_limit = start_limit.and_then(NonZeroU32::new);
    let first_start_limit = match given.flag("daemonize") {
        // The launcher waits for the verdict: by default it is that of the first try.
        true => start_limit.or(Some(NonZeroU32::MIN)),
        false => start_limit,
    };
    Ok(machine::Settings {
        // How many there can be is found out later.
        workers: 1,
        most_workers: usize::MAX,
        rolling: at_least_one(given.count("rolling", MOST_WORKERS)?),
        start_parallel: at_least_one(given.count("start-parallel", MOST_WORKERS)?),
        interval: given.seconds("interval")?.unwrap_or(Duration::from_secs(1)),
        proof: match ready.ready {
            Ready::Interval => Proof::Interval,
            _ => Proof::Told {
                within: ready.start_timeout,
            },
        },
        signal_on_hup: given.signal("signal-on-hup")?.unwrap_or(Signal::SIGTERM),
        signal_on_term: given.signal("signal-on-term")?.unwrap_or(Signal::SIGTERM),
        stop_timeout: given.seconds("stop-timeout")?,
        check: given.value("check")?.map(|_| ready.start_timeout),
        check_first: given.flag("check-first"),
        kill_old_timeout: given.seconds("kill-old-timeout")?,
        max_old_generations: given
            .count("max-old-generations", u32::MAX)?
            .and_then(NonZeroU32::new),
        start_limit,
        first_start_limit,
        watch: ready.watch,
        pins: !given.flag("no-pin"),
        replace: given.replace("replace")?.unwrap_or(Replace::Overlap),
        // How many there can be is found out later.
        lanes: 1,
        shards: 1,
        flows: false,
        quiet_time: given.seconds("quiet-time")?.unwrap_or(QUIET_TIME),
        switch_timeout: given.seconds("switch-timeout")?.unwrap_or(SWITCH_TIMEOUT),
        // The environment of the first generation can override these, and is read later.
        knobs: Knobs {
            kill_old_delay: Duration::ZERO,
            auto_restart: None,
        },
    })
}

fn at_least_one(number: Option<u16>) -> Option<NonZeroUsize> {
    NonZeroUsize::new(number?.into())
}

fn log(given: &Given<'_>, program: &OsStr) -> Result<log::Settings, Failure> {
    Ok(log::Settings {
        target: given.log_target("log-file")?,
        target_streams: given.streams("log-stream")?,
        has_timestamps: given.flag("log-timestamps"),
        format: given.line_format("log-format")?.unwrap_or_default(),
        syslog: syslog(given, program)?,
        syslog_streams: given.streams("syslog-stream")?,
        is_quiet: given.flag("quiet"),
        is_attended: !given.flag("daemonize"),
    })
}

/// The other options of syslog are parsed without `--syslog` too, lest a wrong one be ignored.
fn syslog(given: &Given<'_>, program: &OsStr) -> Result<Option<SyslogSettings>, Failure> {
    let facility = given.facility("syslog")?;
    let tag = given.syslog_tag("syslog-tag")?;
    let address = given.syslog_address("syslog-address")?;
    let format = given.syslog_format("syslog-format")?;
    Ok(facility.map(|facility| SyslogSettings {
        facility,
        tag: tag.unwrap_or_else(|| tag_of(program)),
        address: address.unwrap_or_else(|| Address::Socket(DEFAULT_ADDRESS.into())),
        format: format.unwrap_or(Format::Rfc3164),
    }))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]
mod tests;
