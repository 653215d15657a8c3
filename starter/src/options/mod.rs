//! The command line: from words to options that are complete and valid.
//!
//! Nothing is opened, resolved or looked up here: a user or a host that does not exist is found out later.

mod checks;
mod definition;
mod refusal;
mod spelling;
mod values;

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use nix::sys::signal::Signal;

use self::checks::{check_group, check_together};
use self::definition::definition;
use self::refusal::{refusal, refused};
use self::spelling::spell_out;
use self::values::{Given, parse_fd_styles, syslog, utf8};
use crate::listeners::spec::{PathSpec, PortSpec, parse_paths, parse_ports};
use crate::log::{LogTarget, Stream, SyslogSettings};
use crate::words::failure::Failure;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Invocation {
    Start(Box<Options>),
    /// A running superdaemon is to start a new generation.
    Restart(ClientOptions),
    /// A running superdaemon is to end.
    Stop(ClientOptions),
    /// A running superdaemon is to open its log file again.
    Reopen(ClientOptions),
    /// Both programs are to be tested on this host.
    SelfTest(SelfTestOptions),
    /// Only this text, on stdout: the help or the version.
    Print(String),
}

/// Everything that can be chosen, with the defaults filled in.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// The server program: not empty, not yet searched for.
    pub program: OsString,
    pub arguments: Vec<OsString>,
    pub ports: Vec<PortSpec>,
    pub paths: Vec<PathSpec>,
    /// At least 1.
    pub backlog: i32,
    pub directory: Option<PathBuf>,
    pub envdir: Option<PathBuf>,
    /// In the order given, each once.
    pub fd_env: Vec<FdStyle>,
    pub interval: Duration,
    pub signal_on_hup: Signal,
    pub signal_on_term: Signal,
    /// `None` is 0, or 5 seconds with auto restart: the environment has a say in that.
    pub kill_old_delay: Option<Duration>,
    /// `None` leaves it to the environment.
    pub enable_auto_restart: Option<bool>,
    /// `None` leaves it to the environment.
    pub auto_restart_interval: Option<Duration>,
    /// `None` waits without end.
    pub stop_timeout: Option<Duration>,
    /// `None` tries without end.
    pub start_limit: Option<NonZeroU32>,
    pub pid_file: Option<PathBuf>,
    pub status_file: Option<PathBuf>,
    pub log_file: Option<LogTarget>,
    /// What of the workers goes to it; not empty.
    pub log_streams: Vec<Stream>,
    /// Only together with `log_file`.
    pub log_timestamps: bool,
    pub syslog: Option<SyslogSettings>,
    /// What of the workers goes to it; not empty.
    pub syslog_streams: Vec<Stream>,
    /// Our own sentences are not for standard error.
    pub quiet: bool,
    /// Only together with `log_file` or `syslog`.
    pub daemonize: bool,
    pub user: Option<String>,
    /// Only together with `user`.
    pub group: Option<String>,
    pub strict: bool,
}

/// How to reach a running superdaemon, and how long to wait for it.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientOptions {
    pub pid_file: PathBuf,
    pub status_file: Option<PathBuf>,
    /// `None` waits without end.
    pub timeout: Option<Duration>,
}

/// How the servers of a self-test are started.
#[derive(Debug, PartialEq, Eq)]
pub struct SelfTestOptions {
    pub user: Option<String>,
    /// Only together with `user`.
    pub group: Option<String>,
    pub strict: bool,
}

/// Whose environment variables tell of the descriptors, beside `SERVER_STARTER_PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdStyle {
    /// Only where no listener chooses its descriptor.
    Systemd,
    /// Only where every listener is a stream socket.
    Unicorn,
    Nginx,
    Einhorn,
}

/// Reads the words after the name of this program.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, Failure> {
    let definition = definition();
    let words = spell_out(&definition, arguments)?;
    match definition.try_get_matches_from(words.for_clap) {
        Ok(matches) => complete(&Given(&matches)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                let text = error.render().to_string();
                Ok(Invocation::Print(format!("{}\n", text.trim_end())))
            }
            _ => Err(refusal(&error, words.unknown.as_deref())),
        },
    }
}

fn complete(given: &Given<'_>) -> Result<Invocation, Failure> {
    if given.flag("self-test") {
        return Ok(Invocation::SelfTest(self_test(given)?));
    }
    let commands: Vec<&str> = ["restart", "stop", "reopen"]
        .into_iter()
        .filter(|command| given.flag(command))
        .collect();
    match commands[..] {
        [] => Ok(Invocation::Start(Box::new(start(given)?))),
        ["restart"] => Ok(Invocation::Restart(client("restart", given)?)),
        ["stop"] => Ok(Invocation::Stop(client("stop", given)?)),
        ["reopen"] => Ok(Invocation::Reopen(client("reopen", given)?)),
        [one, other, ..] => Err(Failure::usage(format!(
            "cannot use --{one}: --{other} is given as well"
        ))),
        [_] => Err(Failure::usage("cannot use this command")),
    }
}

fn start(given: &Given<'_>) -> Result<Options, Failure> {
    match given.all("program").next() {
        None => {
            return Err(Failure::usage("server program not specified")
                .hint("it comes last, after two dashes: see --help"));
        }
        Some(program) if program.is_empty() => {
            return Err(Failure::usage("cannot use an empty name as server program"));
        }
        Some(_) => {}
    }
    let options = options(given)?;
    if let Some(timeout) = given.value("timeout")? {
        let cause = "it needs --restart, --stop or --reopen as well";
        return Err(refused("timeout", timeout, cause));
    }
    if given.all("log-stream").next().is_some() && options.log_file.is_none() {
        return Err(Failure::usage(
            "cannot use --log-stream: it needs --log-file as well",
        ));
    }
    check_together(&options)?;
    Ok(options)
}

/// As in Server::Starter, one command line can serve for the start and, with one option more, for `command`: the
/// program and the other options have to be valid alone, but do not matter.
fn client(command: &str, given: &Given<'_>) -> Result<ClientOptions, Failure> {
    let options = options(given)?;
    let timeout = given.seconds("timeout")?;
    let Some(pid_file) = options.pid_file else {
        return Err(Failure::usage(format!(
            "cannot use --{command}: it needs --pid-file as well"
        )));
    };
    Ok(ClientOptions {
        pid_file,
        status_file: options.status_file,
        timeout,
    })
}

/// It chooses everything else itself.
fn self_test(given: &Given<'_>) -> Result<SelfTestOptions, Failure> {
    let goes_with = ["self-test", "user", "group", "strict"];
    let cannot = |cause: &str| Failure::usage(format!("cannot use --self-test: {cause}"));
    if given.all("program").next().is_some() {
        return Err(cannot("it takes no server program"));
    }
    if let Some(other) = given.names().find(|name| !goes_with.contains(name)) {
        return Err(cannot(&format!("--{other} is given as well")));
    }
    let (user, group) = (given.text("user")?, given.text("group")?);
    check_group(user.as_deref(), group.as_deref())?;
    Ok(SelfTestOptions {
        user,
        group,
        strict: given.flag("strict"),
    })
}

/// Each option by itself; the program may be missing.
fn options(given: &Given<'_>) -> Result<Options, Failure> {
    let mut words = given.all("program").cloned();
    let program = words.next().unwrap_or_default();
    let arguments = words.collect();

    let mut ports = Vec::new();
    for value in given.all("port") {
        ports.extend(parse_ports(utf8("port", value)?)?);
    }
    let mut paths = Vec::new();
    for value in given.all("path") {
        paths.extend(parse_paths(value)?);
    }
    let mut fd_env = Vec::new();
    for value in given.all("fd-env") {
        for style in parse_fd_styles(utf8("fd-env", value)?)? {
            if !fd_env.contains(&style) {
                fd_env.push(style);
            }
        }
    }

    let syslog = syslog(given, &program)?;

    Ok(Options {
        program,
        arguments,
        ports,
        paths,
        backlog: given.count("backlog", i32::MAX)?.unwrap_or(libc::SOMAXCONN),
        directory: given.path("dir")?,
        envdir: given.path("envdir")?,
        fd_env,
        interval: given.seconds("interval")?.unwrap_or(Duration::from_secs(1)),
        signal_on_hup: given.signal("signal-on-hup")?.unwrap_or(Signal::SIGTERM),
        signal_on_term: given.signal("signal-on-term")?.unwrap_or(Signal::SIGTERM),
        kill_old_delay: given.seconds("kill-old-delay")?,
        enable_auto_restart: given.switch("enable-auto-restart")?,
        auto_restart_interval: given.seconds("auto-restart-interval")?,
        stop_timeout: given.seconds("stop-timeout")?,
        start_limit: given
            .count("start-limit", u32::MAX)?
            .and_then(NonZeroU32::new),
        pid_file: given.path("pid-file")?,
        status_file: given.path("status-file")?,
        log_file: given.log_target("log-file")?,
        log_streams: given.streams("log-stream")?,
        log_timestamps: given.flag("log-timestamps"),
        syslog,
        syslog_streams: given.streams("syslog-stream")?,
        quiet: given.flag("quiet"),
        daemonize: given.flag("daemonize"),
        user: given.text("user")?,
        group: given.text("group")?,
        strict: given.flag("strict"),
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]
mod tests;
