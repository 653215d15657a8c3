//! The command line: from words to options that are complete and valid.
//!
//! Nothing is opened, resolved or looked up here: a user or a host that does not exist is found out later.

mod shown;

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU32;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use common::message::Transport;
use nix::sys::signal::Signal;

pub use self::shown::status_settings;

use crate::listeners::spec::{PathSpec, PortSpec, check_duplicates, parse_paths, parse_ports};
use crate::log::{Address, DEFAULT_ADDRESS, Format, LogTarget, Stream, SyslogOptions, facility};
use crate::words::failure::Failure;
use crate::words::number::{self, LONGEST_TIME};
use crate::words::text::printable;

/// The words for `--fd-env`.
const FD_STYLES: [(&str, FdStyle); 4] = [
    ("systemd", FdStyle::Systemd),
    ("unicorn", FdStyle::Unicorn),
    ("nginx", FdStyle::Nginx),
    ("einhorn", FdStyle::Einhorn),
];

/// The words for `--syslog-format`.
const SYSLOG_FORMATS: [(&str, Format); 2] =
    [("rfc3164", Format::Rfc3164), ("rfc5424", Format::Rfc5424)];

/// The longest tag of a syslog record (RFC 3164, 4.1.3).
const LONGEST_TAG: usize = 32;

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
    pub syslog: Option<SyslogOptions>,
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

/// All options, in the order of the help text.
///
/// The lines of the help are broken by hand: clap without its feature `wrap_help` breaks none.
pub fn definition() -> Command {
    Command::new("start_server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A superdaemon for hot-deploying server programs.")
        .override_usage(
            "start_server [options] -- server-prog server-arg1 server-arg2 ...\n       \
             start_server --restart --pid-file=FILE [--timeout=SECONDS]\n       \
             start_server --stop --pid-file=FILE [--timeout=SECONDS]\n       \
             start_server --reopen --pid-file=FILE [--timeout=SECONDS]\n       \
             start_server --self-test [--user=USER] [--group=GROUP] [--strict]",
        )
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .next_line_help(true)
        // As with Getopt::Long, the last one wins.
        .args_override_self(true)
        .next_help_heading("Listening")
        .args([
            valued("port", "[HOST:][u]PORT[=FD]")
                .action(ArgAction::Append)
                .help(
                    "Listen on a TCP port, or a UDP port where u precedes it. Without HOST:\n\
                 0.0.0.0, every IPv4 address; an IPv6 address is written [::1]:80. =FD\n\
                 sets the descriptor that the server sees. May be given many times, and\n\
                 may hold a list separated by commas.",
                ),
            valued("path", "PATH[,mode=MODE][,user=USER][,group=GROUP]")
                .action(ArgAction::Append)
                .help(
                    "Listen on a unix socket. MODE is octal (default: 0777). May be given\n\
                 many times, and may hold a list of absolute paths separated by commas.",
                ),
            valued("backlog", "NUMBER").help(format!(
                "Connections that may wait to be accepted, on each listener (default:\n{})",
                libc::SOMAXCONN
            )),
        ])
        .next_help_heading("Program")
        .args([
            valued("dir", "DIR")
                .help("Change to this directory before the server program is executed."),
            valued("envdir", "DIR").help(
                "Give the server an environment variable for each file in this\n\
                 directory: the file's name and its first line. The files are read anew\n\
                 for each server that is started.",
            ),
            valued("fd-env", "STYLE[,STYLE]")
                .action(ArgAction::Append)
                .help(
                    "Also tell the descriptors in the variables of systemd (LISTEN_FDS),\n\
                     unicorn (UNICORN_FD), nginx (NGINX) or einhorn (EINHORN_FDS). May be\n\
                     given many times, and may hold a list separated by commas.",
                ),
        ])
        .next_help_heading("Restarting")
        .args([
            valued("interval", "SECONDS").help(
                "How long a new server has to stay alive to count as started, and the\n\
                 shortest time between two starts (default: 1).",
            ),
            valued("start-limit", "NUMBER")
                .help("Give a restart up after so many failed starts (default: no limit)."),
            valued("signal-on-hup", "SIGNAL").help(
                "What the old server gets when a HUP has started a new one (default:\nTERM).",
            ),
            valued("kill-old-delay", "SECONDS").help(
                "Time between the start of a new server and that signal (default: 0, or\n\
                 5 with --enable-auto-restart).",
            ),
            valued("signal-on-term", "SIGNAL")
                .help("What the server gets when a TERM ends start_server (default: TERM)."),
            valued("stop-timeout", "SECONDS")
                .help("Kill what is still alive so long after that signal (default: never)."),
            valued("enable-auto-restart", "0|1")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("1")
                .help("Start a new server from time to time, as at a HUP (default: 0)."),
            valued("auto-restart-interval", "SECONDS").help(
                "Time between two such starts (default: 360). While an old server is\n\
                 still alive, it is twice as long.",
            ),
        ])
        .next_help_heading("Files and logging")
        .args([
            valued("pid-file", "FILE")
                .help("Write the process id of start_server here, and lock the file."),
            valued("status-file", "FILE")
                .help("Write a line GENERATION:PID here for each server that is running."),
            valued("log-file", "FILE").help(
                "Append stdout and stderr to this file, those of the server too. As\n\
                 \"| COMMAND\", pipe them to a command of the shell instead.",
            ),
            valued("log-stream", "stdout|stderr")
                .action(ArgAction::Append)
                .help(
                    "Only this output of the server goes to --log-file (default: both). May\n\
                 be given twice, and may hold a list separated by commas.",
                ),
            flag("log-timestamps").help(
                "Put time, generation and process id before each line of --log-file.",
            ),
            flag("quiet").help("Do not write what start_server itself has to say to stderr."),
            flag("daemonize").help("Run in the background. Needs --log-file or --syslog."),
        ])
        .next_help_heading("Syslog")
        .args([
            valued("syslog", "FACILITY")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("daemon")
                .help(
                    "Send every line to syslog: what start_server has to say, and what the\n\
                 server writes, with its process id and generation. FACILITY is a name\n\
                 such as daemon (default) or local0.",
                ),
            valued("syslog-tag", "TAG")
                .help("The name in each record (default: that of the server program)."),
            valued("syslog-address", "PATH|udp:HOST:PORT").help(format!(
                "The unix socket, or the UDP port, where syslog listens (default:\n{DEFAULT_ADDRESS})."
            )),
            valued("syslog-format", "rfc3164|rfc5424")
                .help("How records are written (default: rfc3164)."),
            valued("syslog-stream", "stdout|stderr")
                .action(ArgAction::Append)
                .help("Only this output of the server goes to syslog (default: both)."),
        ])
        .next_help_heading("Privileges")
        .args([
            valued("user", "USER")
                .help("Run as this user, by name or number, once the listeners are open."),
            valued("group", "GROUP")
                .help("Run as this group, by name or number (default: the user's groups)."),
            flag("strict")
                .help("Fail where a means of confinement is missing, instead of warning."),
        ])
        .next_help_heading("Commands")
        .args([
            flag("restart").help(
                "Send HUP to the start_server that holds --pid-file, and wait until a\n\
                 new server has replaced the old one. Other options do not matter.",
            ),
            flag("stop").help(
                "Send TERM to the start_server that holds --pid-file, and wait until it\n\
                 is gone. Other options do not matter.",
            ),
            flag("reopen").help(
                "Send USR1 to the start_server that holds --pid-file, and wait until it\n\
                 has opened --log-file again. Other options do not matter.",
            ),
            valued("timeout", "SECONDS")
                .help("Wait no longer than this for one of these (default: no limit)."),
            flag("self-test").help(
                "Start servers, try to break out of each of their processes, and say\n\
                 what holds on this host. Only --user, --group and --strict go with it.",
            ),
            flag("help")
                .action(ArgAction::Help)
                .help("Print this help."),
            flag("version")
                .action(ArgAction::Version)
                .help("Print the version."),
        ])
        // The usage line shows it better than a list would.
        .arg(
            Arg::new("program")
                .num_args(0..)
                .trailing_var_arg(true)
                .value_parser(ValueParser::os_string())
                .hide(true),
        )
}

fn valued(name: &'static str, value: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .value_parser(ValueParser::os_string())
}

fn flag(name: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue)
}

/// The command line in the one spelling that is left to clap: `--name=value`, then `--`, then the program.
struct Words {
    for_clap: Vec<OsString>,
    /// The unknown option at the end of `for_clap`, as typed.
    unknown: Option<String>,
}

/// Spells every option out in full and in lower case, with its value in the same word.
fn spell_out(
    definition: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Words, Failure> {
    let mut for_clap = Vec::new();
    let mut rest = arguments.into_iter().peekable();
    let program = loop {
        let Some(word) = rest.next() else { break None };
        if word == "--" {
            break rest.next();
        }
        if !looks_like_option(&word) {
            break Some(word);
        }
        let Typed {
            dashes,
            name,
            value,
        } = Typed::new(&word);
        let shown = format!("{dashes}{}", printable(&name));
        let found = look_up(definition, &name);
        if dashes == "-" {
            return Err(single_dash(&shown, &found, value.as_deref()));
        }
        let option = match found {
            Found::One(option) => option,
            Found::Several(names) => {
                return Err(Failure::usage(format!(
                    "cannot use {shown}: it could mean {}",
                    alternatives(&names)
                )));
            }
            Found::None => {
                if name.is_empty() {
                    return Err(Failure::usage(format!(
                        "unknown option {}",
                        printable(&word)
                    )));
                }
                // clap knows the suggestion; nothing behind this word matters any more.
                for_clap.push(format!("--{}", name.to_string_lossy().to_ascii_lowercase()).into());
                return Ok(Words {
                    for_clap,
                    unknown: Some(shown),
                });
            }
        };
        let action = option.get_action();
        let is_last_word =
            matches!(action, ArgAction::Help | ArgAction::Version) && value.is_none();
        let value = match value {
            Some(value) => Some(value),
            None if needs_value(option) => {
                // Unlike Server::Starter, whose options take the next option as their value.
                let Some(next) = rest.next_if(|next| !looks_like_option(next)) else {
                    return Err(no_value(option, &shown, rest.peek()));
                };
                Some(next)
            }
            None => match rest.peek() {
                Some(next) if option.get_id() == "syslog" => {
                    refuse_facility_apart(next)?;
                    None
                }
                _ => None,
            },
        };
        let mut spelled = OsString::from(format!("--{}", option.get_id()));
        if let Some(value) = value {
            spelled.push("=");
            spelled.push(value);
        }
        for_clap.push(spelled);
        if is_last_word {
            return Ok(Words {
                for_clap,
                unknown: None,
            });
        }
    };
    if let Some(program) = program {
        for_clap.push("--".into());
        for_clap.push(program);
        for_clap.extend(rest);
    }
    Ok(Words {
        for_clap,
        unknown: None,
    })
}

/// A facility behind a blank would be taken for the server program; a program of that name follows two dashes.
fn refuse_facility_apart(next: &OsStr) -> Result<(), Failure> {
    match next.to_str().filter(|name| facility(name).is_some()) {
        Some(name) => Err(Failure::usage(format!(
            "cannot use --syslog {name}: a facility follows an equals sign"
        ))
        .hint(format!(
            "write --syslog={name}, or -- before a server program of that name"
        ))),
        None => Ok(()),
    }
}

/// An option that may stand alone takes a value only behind its `=`, never the next word.
fn needs_value(option: &Arg) -> bool {
    let may_stand_alone = option
        .get_num_args()
        .is_some_and(|range| range.min_values() == 0);
    option.get_action().takes_values() && !may_stand_alone
}

/// A lone `-` does not.
fn looks_like_option(word: &OsStr) -> bool {
    word.len() > 1 && word.as_bytes().starts_with(b"-")
}

/// An option, taken apart as it was typed.
struct Typed {
    dashes: &'static str,
    name: OsString,
    value: Option<OsString>,
}

impl Typed {
    fn new(word: &OsStr) -> Typed {
        let bytes = word.as_bytes();
        let (dashes, bytes) = match bytes.strip_prefix(b"--") {
            Some(bytes) => ("--", bytes),
            None => ("-", bytes.strip_prefix(b"-").unwrap_or(bytes)),
        };
        let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let mut halves = bytes.splitn(2, |byte| *byte == b'=');
        let name = owned(halves.next().unwrap_or_default());
        Typed {
            dashes,
            name,
            value: halves.next().map(owned),
        }
    }
}

enum Found<'a> {
    One(&'a Arg),
    /// Their names.
    Several(Vec<&'a str>),
    None,
}

/// Finds an option by its name, or by the beginning of it, in any case.
fn look_up<'a>(definition: &'a Command, name: &OsStr) -> Found<'a> {
    let name = name.to_string_lossy().to_ascii_lowercase();
    let named = || {
        definition
            .get_arguments()
            .filter_map(|option| Some((option.get_long()?, option)))
    };
    if let Some((_, option)) = named().find(|(long, _)| *long == name) {
        return Found::One(option);
    }
    if name.is_empty() {
        return Found::None;
    }
    let mut candidates: Vec<_> = named()
        .filter(|(long, _)| long.starts_with(&name))
        .collect();
    match candidates.as_slice() {
        [] => Found::None,
        [(_, option)] => Found::One(option),
        _ => {
            candidates.sort_by_key(|(long, _)| *long);
            Found::Several(candidates.into_iter().map(|(long, _)| long).collect())
        }
    }
}

/// `--a, --b or --c`
fn alternatives(names: &[&str]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        text.push_str(match index {
            0 => "--",
            _ if index + 1 == names.len() => " or --",
            _ => ", --",
        });
        text.push_str(name);
    }
    text
}

fn single_dash(shown: &str, found: &Found<'_>, value: Option<&OsStr>) -> Failure {
    let value = value
        .map(|value| format!("={}", printable(value)))
        .unwrap_or_default();
    let failure = Failure::usage(format!(
        "cannot use {shown}{value}: the name of an option follows two dashes"
    ));
    match found {
        Found::One(option) => failure.hint(format!("write --{}{value}", option.get_id())),
        Found::Several(names) => failure.hint(format!("write {}", alternatives(names))),
        Found::None => failure,
    }
}

fn no_value(option: &Arg, shown: &str, next: Option<&OsString>) -> Failure {
    let failure = Failure::usage(format!("cannot use {shown}: its value is missing"));
    match next {
        Some(next) if next != "--" => {
            let (name, next) = (option.get_id(), printable(next));
            failure.hint(format!(
                "a value that starts with a dash is written --{name}={next}"
            ))
        }
        _ => failure,
    }
}

/// Puts an error of clap into one line. `unknown` is the unknown option as typed.
fn refusal(error: &clap::Error, unknown: Option<&str>) -> Failure {
    let context = |kind| match error.get(kind) {
        // An option is shown with the name of its value behind it.
        Some(ContextValue::String(text)) => text.split(' ').next(),
        _ => None,
    };
    match (error.kind(), context(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(option)) => {
            let failure = Failure::usage(format!("unknown option {}", unknown.unwrap_or(option)));
            match context(ContextKind::SuggestedArg) {
                Some(suggestion) => failure.hint(format!("did you mean {suggestion}?")),
                None => failure,
            }
        }
        (ErrorKind::TooManyValues, Some(option)) => {
            Failure::usage(format!("cannot use {option}: it takes no value"))
        }
        // The words were spelled out so that no other kind is known to occur; should one, its first line says it.
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            Failure::usage(line.strip_prefix("error: ").unwrap_or(line))
        }
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

/// What one option asks of the others.
fn check_together(options: &Options) -> Result<(), Failure> {
    check_duplicates(&options.ports, &options.paths)?;
    check_fd_env(options)?;
    check_group(options.user.as_deref(), options.group.as_deref())?;
    if options.daemonize && options.log_file.is_none() && options.syslog.is_none() {
        return Err(Failure::usage(
            "cannot use --daemonize: it needs --log-file or --syslog as well",
        ));
    }
    if options.log_timestamps && options.log_file.is_none() {
        return Err(Failure::usage(
            "cannot use --log-timestamps: it needs --log-file as well",
        ));
    }
    Ok(())
}

fn check_group(user: Option<&str>, group: Option<&str>) -> Result<(), Failure> {
    match (user, group) {
        (None, Some(group)) => Err(refused("group", group.as_ref(), "it needs --user as well")),
        _ => Ok(()),
    }
}

/// All that begins with `--syslog`.
fn syslog(given: &Given<'_>, program: &OsStr) -> Result<Option<SyslogOptions>, Failure> {
    let others = [
        "syslog-tag",
        "syslog-address",
        "syslog-format",
        "syslog-stream",
    ];
    if given.value("syslog")?.is_none() {
        return match others
            .into_iter()
            .find(|other| given.all(other).next().is_some())
        {
            Some(other) => Err(Failure::usage(format!(
                "cannot use --{other}: it needs --syslog as well"
            ))),
            None => Ok(None),
        };
    }
    let facility = given.read(
        "syslog",
        |name| facility(name).map(|_| name.to_owned()),
        || "the facilities are kern, user, mail, daemon, auth, syslog, lpr, news, uucp, cron, authpriv, ftp and local0 to local7".to_owned(),
    )?;
    let tag = given.read(
        "syslog-tag",
        |tag| is_tag(tag).then(|| tag.to_owned()),
        || format!("a tag has 1 to {LONGEST_TAG} letters, digits and any of . _ - /"),
    )?;
    let format = given.read(
        "syslog-format",
        |name| {
            let found = SYSLOG_FORMATS.iter().find(|(one, _)| *one == name);
            found.map(|(_, format)| *format)
        },
        || "the formats are rfc3164 and rfc5424".to_owned(),
    )?;
    Ok(Some(SyslogOptions {
        facility: facility.unwrap_or_default(),
        tag: tag.unwrap_or_else(|| tag_of(program)),
        address: syslog_address(given)?,
        format: format.unwrap_or(Format::Rfc3164),
    }))
}

fn syslog_address(given: &Given<'_>) -> Result<Address, Failure> {
    let option = "syslog-address";
    let Some(value) = given.value(option)? else {
        return Ok(Address::Socket(DEFAULT_ADDRESS.into()));
    };
    let cause = "the address is an absolute path, or udp:HOST:PORT";
    match value.to_str().and_then(|text| text.strip_prefix("udp:")) {
        Some(address) => {
            let port = address
                .rsplit_once(':')
                .map(|(host, port)| (host, number::port(port)));
            match port {
                Some((host, Some(_))) if !host.is_empty() => Ok(Address::Udp(address.to_owned())),
                _ => Err(refused(option, value, cause)),
            }
        }
        None if value.as_bytes().starts_with(b"/") => Ok(Address::Socket(value.into())),
        None => Err(refused(option, value, cause)),
    }
}

fn is_tag(text: &str) -> bool {
    (1..=LONGEST_TAG).contains(&text.len()) && text.chars().all(is_of_tag)
}

/// What no syslog daemon takes for the end of the tag.
fn is_of_tag(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._-/".contains(character)
}

/// The name of the program, as far as it can be a tag.
fn tag_of(program: &OsStr) -> String {
    let name = Path::new(program).file_name().unwrap_or(program);
    let tag: String = name
        .to_string_lossy()
        .chars()
        .map(|one| if is_of_tag(one) { one } else { '_' })
        .take(LONGEST_TAG)
        .collect();
    match tag.is_empty() {
        true => "start_server".to_owned(),
        false => tag,
    }
}

fn check_fd_env(options: &Options) -> Result<(), Failure> {
    let chosen = options.ports.iter().find(|port| port.descriptor.is_some());
    if let (true, Some(port)) = (options.fd_env.contains(&FdStyle::Systemd), chosen) {
        let cause = format!(
            "its descriptors are consecutive from 3, but --port={} chooses its own",
            port.given
        );
        return Err(refused("fd-env", "systemd".as_ref(), &cause));
    }
    let mut ports = options.ports.iter();
    let datagram = ports.find(|port| port.transport == Transport::Udp);
    if let (true, Some(port)) = (options.fd_env.contains(&FdStyle::Unicorn), datagram) {
        let cause = format!(
            "it takes stream sockets only, but --port={} is UDP",
            port.given
        );
        return Err(refused("fd-env", "unicorn".as_ref(), &cause));
    }
    Ok(())
}

/// Reads the value of one `--fd-env`: a list, separated by commas.
fn parse_fd_styles(value: &str) -> Result<Vec<FdStyle>, Failure> {
    let words = value.split(',').map(str::trim);
    words
        .map(|word| {
            if word.is_empty() {
                // The empty word itself would show nothing: name the list that holds it.
                return Err(refused("fd-env", value.as_ref(), "a style is missing"));
            }
            let found = FD_STYLES.iter().find(|(name, _)| *name == word);
            found.map(|(_, style)| *style).ok_or_else(|| {
                let cause = "the styles are systemd, unicorn, nginx and einhorn";
                refused("fd-env", word.as_ref(), cause)
            })
        })
        .collect()
}

fn refused(option: &str, value: &OsStr, cause: &str) -> Failure {
    Failure::usage(format!(
        "cannot use --{option}={}: {cause}",
        printable(value)
    ))
}

fn utf8<'a>(option: &str, value: &'a OsStr) -> Result<&'a str, Failure> {
    value
        .to_str()
        .ok_or_else(|| refused(option, value, "it is not valid UTF-8"))
}

/// What clap has read, by type. `None` means that the option was not given.
struct Given<'a>(&'a ArgMatches);

impl<'a> Given<'a> {
    fn flag(&self, option: &str) -> bool {
        self.0.get_flag(option)
    }

    /// Of all options that were given, in the order of their names.
    fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let matches = self.0;
        let is_given = |name: &&str| matches.value_source(name) == Some(ValueSource::CommandLine);
        let mut names: Vec<&str> = matches
            .ids()
            .map(clap::Id::as_str)
            .filter(is_given)
            .collect();
        names.sort_unstable();
        names.into_iter()
    }

    fn all(&self, option: &str) -> impl Iterator<Item = &'a OsString> + use<'a> {
        self.0.get_many::<OsString>(option).unwrap_or_default()
    }

    fn value(&self, option: &str) -> Result<Option<&'a OsString>, Failure> {
        match self.0.get_one::<OsString>(option) {
            Some(value) if value.is_empty() => Err(refused(option, value, "its value is empty")),
            value => Ok(value),
        }
    }

    fn text(&self, option: &str) -> Result<Option<String>, Failure> {
        let value = self.value(option)?;
        value
            .map(|value| Ok(utf8(option, value)?.to_owned()))
            .transpose()
    }

    fn path(&self, option: &str) -> Result<Option<PathBuf>, Failure> {
        Ok(self.value(option)?.map(PathBuf::from))
    }

    fn log_target(&self, option: &str) -> Result<Option<LogTarget>, Failure> {
        let Some(value) = self.value(option)? else {
            return Ok(None);
        };
        match read_command(value.as_bytes()) {
            None => Ok(Some(LogTarget::File(value.into()))),
            Some(b"") => Err(refused(option, value, "a command is missing after the |")),
            Some(command) => Ok(Some(LogTarget::Command(OsString::from_vec(
                command.to_vec(),
            )))),
        }
    }

    /// Lists of streams; both where none is given.
    fn streams(&self, option: &str) -> Result<Vec<Stream>, Failure> {
        let mut streams = Vec::new();
        for value in self.all(option) {
            for word in utf8(option, value)?.split(',').map(str::trim) {
                let found = Stream::BOTH
                    .into_iter()
                    .find(|stream| stream.name() == word);
                let cause = "the streams are stdout and stderr";
                let stream = found.ok_or_else(|| refused(option, value, cause))?;
                if !streams.contains(&stream) {
                    streams.push(stream);
                }
            }
        }
        match streams.is_empty() {
            true => Ok(Stream::BOTH.into()),
            false => Ok(streams),
        }
    }

    fn switch(&self, option: &str) -> Result<Option<bool>, Failure> {
        let cause = || "it takes 0, 1, true or false, or no value".to_owned();
        self.read(option, read_switch, cause)
    }

    fn seconds(&self, option: &str) -> Result<Option<Duration>, Failure> {
        let cause = || {
            format!("the time is a number of seconds from 0 to {LONGEST_TIME}, such as 1 or 0.5")
        };
        self.read(option, number::seconds, cause)
    }

    fn signal(&self, option: &str) -> Result<Option<Signal>, Failure> {
        self.read(option, read_signal, || {
            "the signal is a name such as TERM, or a number from 1 to 31".to_owned()
        })
    }

    /// A number from 1 on.
    fn count<T>(&self, option: &str, most: T) -> Result<Option<T>, Failure>
    where
        T: FromStr + PartialOrd + From<bool> + std::fmt::Display,
    {
        let cause = || format!("it takes a number from 1 to {most}");
        let read = |text: &str| number::digits(text).filter(|number| *number >= T::from(true));
        self.read(option, read, cause)
    }

    fn read<T>(
        &self,
        option: &str,
        read: impl Fn(&str) -> Option<T>,
        cause: impl Fn() -> String,
    ) -> Result<Option<T>, Failure> {
        let Some(value) = self.value(option)? else {
            return Ok(None);
        };
        match value.to_str().and_then(read) {
            Some(read) => Ok(Some(read)),
            None => Err(refused(option, value, &cause())),
        }
    }
}

/// What is behind a leading `|`; `None` where there is none.
fn read_command(value: &[u8]) -> Option<&[u8]> {
    let command = without_blanks(value).strip_prefix(b"|")?;
    Some(without_blanks(command))
}

/// Takes off, at the start, what `\s` of Perl matches in ASCII.
fn without_blanks(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\n' | b'\x0b' | b'\x0c' | b'\r', rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

fn read_switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// A number, or a name in any case with or without SIG; also the second names that Perl knows on Linux.
fn read_signal(text: &str) -> Option<Signal> {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return Signal::try_from(number::digits::<i32>(text)?).ok();
    }
    let upper = text.to_ascii_uppercase();
    match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "CLD" => Some(Signal::SIGCHLD),
        "IOT" => Some(Signal::SIGABRT),
        "POLL" => Some(Signal::SIGIO),
        name => Signal::from_str(&format!("SIG{name}")).ok(),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]
mod tests {
    use super::*;
    use crate::words::failure::Status;

    fn parse_words(words: &[&str]) -> Result<Invocation, Failure> {
        parse(words.iter().map(OsString::from))
    }

    fn started(words: &[&str]) -> Options {
        match parse_words(words) {
            Ok(Invocation::Start(options)) => *options,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    /// With a program behind the options.
    fn with(options: &[&str]) -> Options {
        started(&[options, &["--", "prog"]].concat())
    }

    fn stopped(options: &[&str]) -> ClientOptions {
        match parse_words(&[&["--stop", "--pid-file=/p"], options].concat()) {
            Ok(Invocation::Stop(options)) => options,
            other => panic!("{options:?}: {other:?}"),
        }
    }

    fn printed(words: &[&str]) -> String {
        match parse_words(words) {
            Ok(Invocation::Print(text)) => text,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn error(words: &[&str]) -> String {
        match parse_words(words) {
            Err(failure) => {
                assert_eq!(failure.status, Status::Usage, "{words:?}");
                failure.to_string()
            }
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn names(options: &Options) -> Vec<&str> {
        options
            .ports
            .iter()
            .map(|port| port.name.as_str())
            .collect()
    }

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn the_defaults_are_those_of_server_starter() {
        let expected = Options {
            program: "prog".into(),
            arguments: vec![],
            ports: vec![],
            paths: vec![],
            backlog: libc::SOMAXCONN,
            directory: None,
            envdir: None,
            fd_env: vec![],
            interval: Duration::from_secs(1),
            signal_on_hup: Signal::SIGTERM,
            signal_on_term: Signal::SIGTERM,
            kill_old_delay: None,
            enable_auto_restart: None,
            auto_restart_interval: None,
            stop_timeout: None,
            start_limit: None,
            pid_file: None,
            status_file: None,
            log_file: None,
            log_streams: Stream::BOTH.into(),
            log_timestamps: false,
            syslog: None,
            syslog_streams: Stream::BOTH.into(),
            quiet: false,
            daemonize: false,
            user: None,
            group: None,
            strict: false,
        };
        assert_eq!(started(&["prog"]), expected);
    }

    #[test]
    fn every_option_reaches_its_field() {
        let options = with(&[
            "--port=80",
            "--path=/a,mode=0660",
            "--backlog=5",
            "--dir=/d",
            "--envdir=/e",
            "--fd-env=nginx",
            "--interval=2",
            "--signal-on-hup=QUIT",
            "--signal-on-term=INT",
            "--kill-old-delay=3",
            "--enable-auto-restart",
            "--auto-restart-interval=7",
            "--stop-timeout=4",
            "--start-limit=6",
            "--pid-file=/p",
            "--status-file=/s",
            "--log-file=/l",
            "--log-stream=stdout",
            "--log-timestamps",
            "--syslog=local3",
            "--syslog-tag=app",
            "--syslog-address=udp:host:514",
            "--syslog-format=rfc5424",
            "--syslog-stream=stderr",
            "--quiet",
            "--daemonize",
            "--user=www",
            "--group=33",
            "--strict",
        ]);
        let expected = Options {
            program: "prog".into(),
            arguments: vec![],
            ports: parse_ports("80").unwrap(),
            paths: parse_paths("/a,mode=0660".as_ref()).unwrap(),
            backlog: 5,
            directory: Some("/d".into()),
            envdir: Some("/e".into()),
            fd_env: vec![FdStyle::Nginx],
            interval: Duration::from_secs(2),
            signal_on_hup: Signal::SIGQUIT,
            signal_on_term: Signal::SIGINT,
            kill_old_delay: Some(Duration::from_secs(3)),
            enable_auto_restart: Some(true),
            auto_restart_interval: Some(Duration::from_secs(7)),
            stop_timeout: Some(Duration::from_secs(4)),
            start_limit: NonZeroU32::new(6),
            pid_file: Some("/p".into()),
            status_file: Some("/s".into()),
            log_file: Some(LogTarget::File("/l".into())),
            log_streams: vec![Stream::Stdout],
            log_timestamps: true,
            syslog: Some(SyslogOptions {
                facility: "local3".into(),
                tag: "app".into(),
                address: Address::Udp("host:514".into()),
                format: Format::Rfc5424,
            }),
            syslog_streams: vec![Stream::Stderr],
            quiet: true,
            daemonize: true,
            user: Some("www".into()),
            group: Some("33".into()),
            strict: true,
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn the_program_begins_at_the_first_word_that_is_no_option() {
        for (words, program, arguments) in [
            (vec!["prog"], "prog", vec![]),
            (vec!["--", "prog"], "prog", vec![]),
            (
                vec!["--port=80", "prog", "--port=81", "-x"],
                "prog",
                vec!["--port=81", "-x"],
            ),
            (vec!["--port", "80", "prog", "80"], "prog", vec!["80"]),
            (vec!["--strict", "prog", "--help"], "prog", vec!["--help"]),
            (
                vec!["--", "--strict", "--version"],
                "--strict",
                vec!["--version"],
            ),
            (vec!["--", "-x"], "-x", vec![]),
            (vec!["--", "--", "prog"], "--", vec!["prog"]),
            (
                vec!["prog", "--", "a", "--", ""],
                "prog",
                vec!["--", "a", "--", ""],
            ),
            (vec!["--", "prog", "--", "a"], "prog", vec!["--", "a"]),
            (vec!["-", "a"], "-", vec!["a"]),
            (vec!["one word", "a"], "one word", vec!["a"]),
        ] {
            let options = started(&words);
            assert_eq!(
                (options.program.to_str(), options.arguments),
                (
                    Some(program),
                    arguments.iter().map(OsString::from).collect()
                ),
                "{words:?}"
            );
        }
    }

    #[test]
    fn without_a_program_nothing_starts() {
        for words in [
            &[][..],
            &["--"],
            &["--port=80"],
            &["--port", "80"],
            &["--strict", "--"],
        ] {
            assert_eq!(
                error(words),
                "server program not specified\nhint: it comes last, after two dashes: see --help"
            );
        }
        assert_eq!(
            error(&["", "a"]),
            "cannot use an empty name as server program"
        );
        assert_eq!(
            error(&["--", ""]),
            "cannot use an empty name as server program"
        );
    }

    #[test]
    fn options_are_found_in_any_case_and_by_a_unique_beginning() {
        for words in [
            &["--port=80"][..],
            &["--port", "80"],
            &["--PORT=80"],
            &["--Port", "80"],
            &["--po=80"],
            &["--POR", "80"],
        ] {
            assert_eq!(names(&with(words)), ["80"], "{words:?}");
        }
        assert_eq!(
            with(&["--signal-on-TERM=int"]).signal_on_term,
            Signal::SIGINT
        );
        assert_eq!(
            with(&["--di", "/x", "--STAT=/y"]).status_file,
            Some("/y".into())
        );
        assert!(with(&["--str"]).strict);
        // The value keeps its case and its further =.
        assert_eq!(with(&["--DIR=A=b"]).directory, Some("A=b".into()));
    }

    #[test]
    fn a_beginning_that_is_not_unique_is_refused_with_the_candidates() {
        for (word, candidates) in [
            (
                "--st",
                "--start-limit, --status-file, --stop, --stop-timeout or --strict",
            ),
            (
                "--ST=1",
                "--start-limit, --status-file, --stop, --stop-timeout or --strict",
            ),
            ("--sta", "--start-limit or --status-file"),
            ("--sto", "--stop or --stop-timeout"),
            ("--d", "--daemonize or --dir"),
            ("--en=1", "--enable-auto-restart or --envdir"),
            ("--p", "--path, --pid-file or --port"),
            ("--signal-on", "--signal-on-hup or --signal-on-term"),
        ] {
            let name = word.split('=').next().unwrap();
            assert_eq!(
                error(&[word, "prog"]),
                format!("cannot use {name}: it could mean {candidates}")
            );
        }
    }

    #[test]
    fn an_unknown_option_is_refused() {
        for (word, message) in [
            (
                "--prot=80",
                "unknown option --prot\nhint: did you mean --port?",
            ),
            (
                "--Prot",
                "unknown option --Prot\nhint: did you mean --port?",
            ),
            (
                "--statusfile",
                "unknown option --statusfile\nhint: did you mean --status-file?",
            ),
            ("--=80", "unknown option --=80"),
            ("--=", "unknown option --="),
            (
                "--po rt=1",
                "unknown option --po rt\nhint: did you mean --port?",
            ),
            ("--x\ny", "unknown option --x\\x0Ay"),
        ] {
            assert_eq!(error(&[word, "prog"]), message);
        }
        assert_eq!(
            error(&["--rsyslog", "prog"]),
            "unknown option --rsyslog\nhint: did you mean --syslog?"
        );
    }

    #[test]
    fn an_option_with_one_dash_is_refused_with_the_right_spelling() {
        let two = "the name of an option follows two dashes";
        for (word, hint) in [
            ("-port=80", "\nhint: write --port=80"),
            ("-PORT=80", "\nhint: write --port=80"),
            ("-port", "\nhint: write --port"),
            ("-h", "\nhint: write --help"),
            ("-p", "\nhint: write --path, --pid-file or --port"),
            ("-x", ""),
            ("-1", ""),
        ] {
            assert_eq!(
                error(&[word, "prog"]),
                format!("cannot use {word}: {two}{hint}")
            );
        }
    }

    #[test]
    fn a_value_is_never_taken_from_the_next_option() {
        let missing = "its value is missing";
        let hint = "hint: a value that starts with a dash is written";
        for (words, message) in [
            (vec!["--port"], format!("cannot use --port: {missing}")),
            (vec!["--PO"], format!("cannot use --PO: {missing}")),
            (
                vec!["--port", "--", "prog"],
                format!("cannot use --port: {missing}"),
            ),
            (
                vec!["--dir", "--port=80"],
                format!("cannot use --dir: {missing}\n{hint} --dir=--port=80"),
            ),
            (
                vec!["--int", "-1"],
                format!("cannot use --int: {missing}\n{hint} --interval=-1"),
            ),
        ] {
            assert_eq!(error(&words), message, "{words:?}");
        }
        assert_eq!(with(&["--dir", "-"]).directory, Some("-".into()));
        assert_eq!(with(&["--dir=-x"]).directory, Some("-x".into()));
        assert_eq!(with(&["--dir=--"]).directory, Some("--".into()));
    }

    #[test]
    fn a_flag_takes_no_value() {
        for word in [
            "--strict=1",
            "--strict=",
            "--help=x",
            "--version=1",
            "--daemonize=1",
            "--restart=1",
            "--stop=0",
        ] {
            let name = word.split('=').next().unwrap();
            assert_eq!(
                error(&[word, "prog"]),
                format!("cannot use {name}: it takes no value")
            );
        }
        assert_eq!(started(&["--strict", "1", "2"]).program, "1");
    }

    #[test]
    fn listeners_add_up_and_of_the_others_the_last_wins() {
        let options = with(&["--port=80", "--path=/a", "--port", "81,u53", "--path=/b,/c"]);
        assert_eq!(names(&options), ["80", "81", "53"]);
        assert_eq!(options.paths.len(), 3);
        let options = with(&[
            "--interval=1",
            "--user=a",
            "--strict",
            "--INT=2",
            "--strict",
            "--user",
            "b",
        ]);
        assert_eq!(
            (options.interval, options.user.as_deref()),
            (Duration::from_secs(2), Some("b"))
        );
        assert!(options.strict);
        assert_eq!(
            error(&["--port=80", "--port=*:80", "prog"]),
            "cannot use --port=*:80: it is the same as --port=80"
        );
    }

    #[test]
    fn words_need_not_be_utf_8() {
        let words = [
            b"--path=/\xff".as_slice(),
            b"--dir",
            b"\xfe",
            b"--pid-file=\xfd",
            b"--envdir=\xfa",
            b"--log-file=|\xf9",
            b"\xfc",
            b"\xfb",
        ];
        let Ok(Invocation::Start(options)) =
            parse(words.map(|word| OsString::from_vec(word.to_vec())))
        else {
            panic!("not started");
        };
        assert_eq!(options.paths[0].path.as_os_str().as_bytes(), b"/\xff");
        assert_eq!(options.directory.unwrap().as_os_str().as_bytes(), b"\xfe");
        assert_eq!(options.pid_file.unwrap().as_os_str().as_bytes(), b"\xfd");
        assert_eq!(options.envdir.unwrap().as_os_str().as_bytes(), b"\xfa");
        let command = LogTarget::Command(OsString::from_vec(b"\xf9".to_vec()));
        assert_eq!(options.log_file, Some(command));
        assert_eq!(options.program.as_bytes(), b"\xfc");
        assert_eq!(options.arguments[0].as_bytes(), b"\xfb");

        for (word, message) in [
            (
                b"--port=\xff".as_slice(),
                "cannot use --port=\\xFF: it is not valid UTF-8",
            ),
            (
                b"--user=\xff",
                "cannot use --user=\\xFF: it is not valid UTF-8",
            ),
            (
                b"--fd-env=\xff",
                "cannot use --fd-env=\\xFF: it is not valid UTF-8",
            ),
            (
                b"--enable-auto-restart=\xff",
                "cannot use --enable-auto-restart=\\xFF: it takes 0, 1, true or false, or no value",
            ),
            (b"--\xff=1", "unknown option --\\xFF"),
            (
                b"-\xff=1",
                "cannot use -\\xFF=1: the name of an option follows two dashes",
            ),
        ] {
            let words = [word, b"prog"].map(|word| OsString::from_vec(word.to_vec()));
            assert_eq!(parse(words).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn seconds_may_have_decimals() {
        for (value, nanoseconds) in [
            ("0", 0),
            ("1", 1_000_000_000),
            ("007", 7_000_000_000),
            ("0.5", 500_000_000),
            (".25", 250_000_000),
            ("2.", 2_000_000_000),
            ("0.000000001", 1),
            ("1000000000", 1_000_000_000_000_000_000),
        ] {
            let word = |name: &str| format!("--{name}={value}");
            let options = with(&[
                &word("interval"),
                &word("kill-old-delay"),
                &word("auto-restart-interval"),
                &word("stop-timeout"),
            ]);
            let expected = Duration::from_nanos(nanoseconds);
            assert_eq!(options.interval, expected, "{value}");
            for seconds in [
                options.kill_old_delay,
                options.auto_restart_interval,
                options.stop_timeout,
                stopped(&[&word("timeout")]).timeout,
            ] {
                assert_eq!(seconds, Some(expected), "{value}");
            }
        }
        let cause = "the time is a number of seconds from 0 to 1000000000, such as 1 or 0.5";
        for value in [
            "abc",
            "-1",
            "-0",
            "+1",
            "1e3",
            "nan",
            "inf",
            "infinity",
            "1s",
            " 1",
            "1,5",
            ".",
            "1.2.3",
            "1000000000.1",
            "٣",
        ] {
            for name in [
                "interval",
                "kill-old-delay",
                "auto-restart-interval",
                "stop-timeout",
            ] {
                let word = format!("--{name}={value}");
                assert_eq!(
                    error(&[&word, "prog"]),
                    format!("cannot use {word}: {cause}")
                );
            }
            let word = format!("--timeout={value}");
            assert_eq!(
                error(&["--stop", "--pid-file=/p", &word]),
                format!("cannot use {word}: {cause}")
            );
        }
        let endless = format!("--interval={}", "9".repeat(400));
        assert_eq!(
            error(&[&endless, "prog"]),
            format!("cannot use {endless}: {cause}")
        );
    }

    #[test]
    fn counts_begin_at_one() {
        for (value, number) in [("1", 1), ("128", 128), ("007", 7), ("2147483647", i32::MAX)] {
            let options = with(&["--backlog", value, "--start-limit", value]);
            assert_eq!(options.backlog, number);
            assert_eq!(options.start_limit, NonZeroU32::new(number.unsigned_abs()));
        }
        assert_eq!(
            with(&["--start-limit=4294967295"]).start_limit,
            Some(NonZeroU32::MAX)
        );
        for value in ["0", "00", "-1", "+1", "1.0", "many", " 1", "4294967296"] {
            let cause = "it takes a number from 1 to";
            for (name, most) in [
                ("backlog", i32::MAX.unsigned_abs()),
                ("start-limit", u32::MAX),
            ] {
                let word = format!("--{name}={value}");
                assert_eq!(
                    error(&[&word, "prog"]),
                    format!("cannot use {word}: {cause} {most}")
                );
            }
        }
        assert!(
            error(&["--backlog=2147483648", "prog"])
                .starts_with("cannot use --backlog=2147483648: ")
        );
    }

    #[test]
    fn signals_have_names_in_any_case_and_numbers() {
        for (value, signal) in [
            ("TERM", Signal::SIGTERM),
            ("term", Signal::SIGTERM),
            ("SIGTERM", Signal::SIGTERM),
            ("SigUsr1", Signal::SIGUSR1),
            ("USR2", Signal::SIGUSR2),
            ("cont", Signal::SIGCONT),
            ("CLD", Signal::SIGCHLD),
            ("sigpoll", Signal::SIGIO),
            ("IOT", Signal::SIGABRT),
            ("15", Signal::SIGTERM),
            ("1", Signal::SIGHUP),
            ("031", Signal::SIGSYS),
        ] {
            let options = with(&["--signal-on-hup", value, "--signal-on-term", value]);
            assert_eq!(
                (options.signal_on_hup, options.signal_on_term),
                (signal, signal),
                "{value}"
            );
        }
        for number in 1..=31 {
            assert_eq!(
                with(&[&format!("--signal-on-hup={number}")]).signal_on_hup as i32,
                number
            );
        }
        let cause = "the signal is a name such as TERM, or a number from 1 to 31";
        for value in [
            "FOO",
            "SIG",
            "SIGSIGTERM",
            "0",
            "32",
            "-1",
            "+1",
            "15x",
            "1.5",
            "99999999999",
            " TERM",
            "TERM\n",
        ] {
            for name in ["signal-on-hup", "signal-on-term"] {
                let word = format!("--{name}={value}");
                let shown = word.replace('\n', "\\x0A");
                assert_eq!(
                    error(&[&word, "prog"]),
                    format!("cannot use {shown}: {cause}")
                );
            }
        }
    }

    #[test]
    fn empty_values_are_refused() {
        for name in [
            "dir",
            "envdir",
            "enable-auto-restart",
            "auto-restart-interval",
            "kill-old-delay",
            "pid-file",
            "status-file",
            "log-file",
            "timeout",
            "user",
            "group",
            "interval",
            "backlog",
            "signal-on-hup",
        ] {
            let message = format!("cannot use --{name}=: its value is empty");
            assert_eq!(error(&[&format!("--{name}="), "prog"]), message);
            if name != "enable-auto-restart" {
                assert_eq!(error(&[&format!("--{name}"), "", "prog"]), message);
            }
        }
        assert_eq!(
            error(&["--fd-env=", "prog"]),
            "cannot use --fd-env=: a style is missing"
        );
        assert_eq!(
            error(&["--port=", "prog"]),
            "cannot use --port=: a port is missing"
        );
        assert_eq!(
            error(&["--path", "", "prog"]),
            "cannot use --path=: the path is empty"
        );
    }

    #[test]
    fn a_group_needs_a_user() {
        assert_eq!(
            error(&["--group=www", "prog"]),
            "cannot use --group=www: it needs --user as well"
        );
        assert_eq!(with(&["--user=www"]).group, None);
    }

    #[test]
    fn auto_restart_is_a_flag_that_can_be_switched_off() {
        for (words, on) in [
            (&["--enable-auto-restart"][..], true),
            (&["--enable-auto-restart=1"], true),
            (&["--ENABLE-AUTO-RESTART=True"], true),
            (&["--ena=0"], false),
            (&["--enable-auto-restart=FALSE"], false),
            (&["--enable-auto-restart=1", "--enable=0"], false),
            (&["--enable-auto-restart=0", "--enable"], true),
        ] {
            assert_eq!(with(words).enable_auto_restart, Some(on), "{words:?}");
        }
        for value in ["2", "yes", "on", "00", " 1", "truee"] {
            let word = format!("--enable-auto-restart={value}");
            assert_eq!(
                error(&[&word, "prog"]),
                format!("cannot use {word}: it takes 0, 1, true or false, or no value")
            );
        }
        // The next word is never its value.
        let options = started(&["--enable-auto-restart", "0", "1"]);
        assert_eq!(options.enable_auto_restart, Some(true));
        assert_eq!(options.program, "0");
        let options = started(&["--enable-auto-restart", "--strict", "prog"]);
        assert_eq!(options.enable_auto_restart, Some(true));
        assert!(options.strict);
    }

    #[test]
    fn a_delay_of_zero_is_told_from_none() {
        assert_eq!(with(&["--enable-auto-restart"]).kill_old_delay, None);
        assert_eq!(
            with(&["--kill-old-delay=0"]).kill_old_delay,
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn styles_of_telling_descriptors_add_up() {
        use FdStyle::{Einhorn, Nginx, Systemd, Unicorn};
        for (words, styles) in [
            (&["--fd-env=systemd"][..], vec![Systemd]),
            (
                &["--fd-env", "nginx,einhorn,systemd,unicorn"],
                vec![Nginx, Einhorn, Systemd, Unicorn],
            ),
            (
                &["--fd-env=unicorn", "--fd-env=nginx, unicorn", "--fd=nginx"],
                vec![Unicorn, Nginx],
            ),
        ] {
            assert_eq!(with(words).fd_env, styles, "{words:?}");
        }
        let styles = "the styles are systemd, unicorn, nginx and einhorn";
        for (value, message) in [
            ("upstart", format!("--fd-env=upstart: {styles}")),
            ("systemd,puma", format!("--fd-env=puma: {styles}")),
            ("Systemd", format!("--fd-env=Systemd: {styles}")),
            (
                "systemd,",
                "--fd-env=systemd,: a style is missing".to_owned(),
            ),
            (",nginx", "--fd-env=,nginx: a style is missing".to_owned()),
        ] {
            let word = format!("--fd-env={value}");
            assert_eq!(error(&[&word, "prog"]), format!("cannot use {message}"));
        }
    }

    #[test]
    fn a_style_that_cannot_tell_of_a_listener_is_refused() {
        let chosen = "cannot use --fd-env=systemd: its descriptors are consecutive from 3, but";
        assert_eq!(
            error(&["--fd-env=systemd", "--port=79,80=5", "prog"]),
            format!("{chosen} --port=80=5 chooses its own")
        );
        assert_eq!(
            error(&["--port=[::1]:u53=0", "--fd-env=nginx,systemd", "prog"]),
            format!("{chosen} --port=[::1]:u53=0 chooses its own")
        );
        assert_eq!(
            error(&["--port=80,u53", "--fd-env=unicorn", "prog"]),
            "cannot use --fd-env=unicorn: it takes stream sockets only, but --port=u53 is UDP"
        );
        for words in [
            &["--fd-env=systemd", "--port=80,u53", "--path=/a"][..],
            &["--fd-env=unicorn", "--port=80=5", "--path=/a"],
            &["--fd-env=nginx,einhorn", "--port=80=5,u53", "--path=/a"],
        ] {
            assert!(!with(words).fd_env.is_empty());
        }
    }

    #[test]
    fn a_log_goes_to_a_file_or_to_a_command() {
        for value in ["/l", "log", "a|b", " x", "-"] {
            let target = with(&["--log-file", value]).log_file;
            assert_eq!(target, Some(LogTarget::File(value.into())), "{value}");
        }
        for (value, command) in [
            ("|cat", "cat"),
            ("| cat -u", "cat -u"),
            (" \t\x0b\x0c\r\n| \n cat | tee x ", "cat | tee x "),
            ("||x", "|x"),
        ] {
            let target = with(&["--log-file", value]).log_file;
            assert_eq!(
                target,
                Some(LogTarget::Command(command.into())),
                "{value:?}"
            );
        }
        for value in ["|", " | "] {
            assert_eq!(
                error(&["--log-file", value, "prog"]),
                format!("cannot use --log-file={value}: a command is missing after the |")
            );
        }
    }

    #[test]
    fn a_daemon_needs_a_log() {
        assert_eq!(
            error(&["--daemonize", "prog"]),
            "cannot use --daemonize: it needs --log-file or --syslog as well"
        );
        assert!(with(&["--daemonize", "--syslog"]).daemonize);
        assert!(with(&["--daemonize", "--log-file=| cat"]).daemonize);
        assert!(!with(&["--log-file=/l"]).daemonize);
    }

    #[test]
    fn syslog_has_a_facility_a_tag_an_address_a_format_and_streams() {
        let syslog = |words: &[&str]| with(words).syslog.unwrap();
        let plain = syslog(&["--syslog"]);
        assert_eq!(
            (plain.facility.as_str(), plain.tag.as_str()),
            ("daemon", "prog")
        );
        assert_eq!(plain.address, Address::Socket("/dev/log".into()));
        assert_eq!(plain.format, Format::Rfc3164);
        for name in [
            "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron",
            "authpriv", "ftp", "local0", "local7",
        ] {
            assert_eq!(syslog(&[&format!("--syslog={name}")]).facility, name);
        }
        let tag_of = |program: &str| started(&["--syslog", "--", program]).syslog.unwrap().tag;
        assert_eq!(tag_of("/srv/my app/server:1"), "server_1");
        assert_eq!(tag_of(&"x".repeat(50)), "x".repeat(32));
        for address in [
            "/run/log",
            "udp:127.0.0.1:514",
            "udp:[::1]:514",
            "udp:log.example:1",
        ] {
            assert_eq!(
                syslog(&["--syslog", &format!("--syslog-address={address}")]).address,
                match address.strip_prefix("udp:") {
                    Some(address) => Address::Udp(address.into()),
                    None => Address::Socket(address.into()),
                }
            );
        }
        let streams = with(&["--syslog", "--syslog-stream=stderr, stdout,stderr"]).syslog_streams;
        assert_eq!(streams, [Stream::Stderr, Stream::Stdout]);
    }

    #[test]
    fn a_log_that_cannot_be_is_refused_with_the_cause() {
        let facilities = "the facilities are kern, user, mail, daemon, auth, syslog, lpr, news, uucp, cron, authpriv, ftp and local0 to local7";
        let address = "the address is an absolute path, or udp:HOST:PORT";
        let tag = "a tag has 1 to 32 letters, digits and any of . _ - /";
        let long = format!("--syslog-tag={}", "x".repeat(33));
        for (words, cause) in [
            (vec!["--syslog=local8"], facilities),
            (vec!["--syslog=-1"], facilities),
            (vec!["--syslog="], "its value is empty"),
            (
                vec!["--syslog", "--syslog-format=rfc1"],
                "the formats are rfc3164 and rfc5424",
            ),
            (vec!["--syslog", "--syslog-tag=a b"], tag),
            (vec!["--syslog", "--syslog-tag=a:"], tag),
            (vec!["--syslog", &long], tag),
            (vec!["--syslog", "--syslog-address=log"], address),
            (vec!["--syslog", "--syslog-address=udp:"], address),
            (vec!["--syslog", "--syslog-address=udp:host"], address),
            (vec!["--syslog", "--syslog-address=udp::514"], address),
            (vec!["--syslog", "--syslog-address=udp:host:0"], address),
            (vec!["--syslog", "--syslog-address=udp:host:65536"], address),
            (vec!["--syslog", "--syslog-address=tcp:host:514"], address),
            (
                vec!["--syslog", "--syslog-stream=stdin"],
                "the streams are stdout and stderr",
            ),
            (
                vec!["--syslog", "--syslog-stream=stdout,"],
                "the streams are stdout and stderr",
            ),
            (vec!["--syslog-tag=a"], "it needs --syslog as well"),
            (
                vec!["--syslog-address=/dev/log"],
                "it needs --syslog as well",
            ),
            (vec!["--syslog-format=rfc5424"], "it needs --syslog as well"),
            (vec!["--syslog-stream=stdout"], "it needs --syslog as well"),
            (vec!["--log-timestamps"], "it needs --log-file as well"),
            (vec!["--log-stream=stdout"], "it needs --log-file as well"),
            (
                vec!["--log-stream=stdout,stderr"],
                "it needs --log-file as well",
            ),
            (
                vec!["--log-file=/l", "--log-stream=both"],
                "the streams are stdout and stderr",
            ),
        ] {
            let message = error(&[&words[..], &["prog"]].concat());
            assert!(
                message.ends_with(&format!(": {cause}")),
                "{words:?}: {message}"
            );
        }
    }

    #[test]
    fn a_running_superdaemon_is_reached_by_its_files() {
        let client = |status_file: Option<&str>, timeout| ClientOptions {
            pid_file: "/p".into(),
            status_file: status_file.map(Into::into),
            timeout,
        };
        for (words, expected) in [
            (
                &["--restart", "--pid-file=/p", "--status-file=/s"][..],
                Invocation::Restart(client(Some("/s"), None)),
            ),
            (
                &["--pid-file=/p", "--rest", "--time=2.5"],
                Invocation::Restart(client(None, Some(Duration::from_millis(2500)))),
            ),
            (
                &["--STOP", "--pid-file", "/p", "--timeout", "0"],
                Invocation::Stop(client(None, Some(Duration::ZERO))),
            ),
            (
                &["--stop", "--stop", "--pid-file=/p", "--stop-timeout=1"],
                Invocation::Stop(client(None, None)),
            ),
        ] {
            assert_eq!(parse_words(words), Ok(expected), "{words:?}");
        }
    }

    #[test]
    fn the_command_line_of_the_start_serves_for_a_restart_too() {
        let words = ["--pid-file=/p", "--port=80=5", "--daemonize", "--group=www"];
        for program in [
            &["--", "prog", "--stop"][..],
            &["prog"],
            &[""],
            &["--"],
            &[],
        ] {
            let words = [&words[..], &["--fd-env=systemd", "--restart"], program].concat();
            let restart = parse_words(&words);
            assert!(matches!(restart, Ok(Invocation::Restart(_))), "{words:?}");
        }
        // What is no option, or has a wrong value, is an error all the same.
        assert_eq!(
            error(&["--restart", "--pid-file=/p", "--interval=x"]),
            error(&["--interval=x", "prog"])
        );
        assert_eq!(
            error(&["--stop", "--pid-file=/p", "--unknown"]),
            "unknown option --unknown"
        );
        // What is behind the program's name is the program's.
        assert_eq!(started(&["prog", "--restart"]).arguments, ["--restart"]);
    }

    #[test]
    fn a_running_superdaemon_is_asked_for_one_thing_and_by_its_pid_file() {
        for command in ["restart", "stop"] {
            let message = format!("cannot use --{command}: it needs --pid-file as well");
            let word = format!("--{command}");
            assert_eq!(error(&[&word]), message);
            assert_eq!(error(&[&word, "--status-file=/s", "prog"]), message);
        }
        assert_eq!(
            error(&["--stop", "--restart", "--pid-file=/p"]),
            "cannot use --restart: --stop is given as well"
        );
        assert_eq!(
            error(&["--timeout=5", "--pid-file=/p", "prog"]),
            "cannot use --timeout=5: it needs --restart, --stop or --reopen as well"
        );
    }

    #[test]
    fn a_self_test_chooses_everything_itself_but_the_user() {
        let chosen = |user: Option<&str>, group: Option<&str>, strict| {
            Ok(Invocation::SelfTest(SelfTestOptions {
                user: user.map(Into::into),
                group: group.map(Into::into),
                strict,
            }))
        };
        assert_eq!(parse_words(&["--self-test"]), chosen(None, None, false));
        assert_eq!(
            parse_words(&["--self", "--user", "www", "--group=33", "--strict"]),
            chosen(Some("www"), Some("33"), true)
        );
        for (words, cause) in [
            (&["prog"][..], "it takes no server program"),
            (&["--port=80", "--", "prog"], "it takes no server program"),
            (&["--port=80"], "--port is given as well"),
            (
                &["--user=www", "--interval=0"],
                "--interval is given as well",
            ),
            (&["--daemonize"], "--daemonize is given as well"),
            (&["--stop", "--pid-file=/p"], "--pid-file is given as well"),
            (&["--restart"], "--restart is given as well"),
            (&["--timeout=x"], "--timeout is given as well"),
        ] {
            let words = [&["--self-test"], words].concat();
            let message = format!("cannot use --self-test: {cause}");
            assert_eq!(error(&words), message, "{words:?}");
        }
        assert_eq!(
            error(&["--self-test", "--group=www"]),
            "cannot use --group=www: it needs --user as well"
        );
        assert_eq!(
            error(&["--self-test", "--user="]),
            "cannot use --user=: its value is empty"
        );
    }

    #[test]
    fn the_version_is_one_line() {
        let version = concat!("start_server ", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(printed(&["--version"]), version);
        assert_eq!(printed(&["--VERS", "--unknown"]), version);
        assert_eq!(printed(&["--port=0", "--ver", "--", "prog"]), version);
    }

    #[test]
    fn the_help_shows_every_option_in_80_columns() {
        let help = printed(&["--help"]);
        assert_eq!(help, printed(&["--HE", "prog"]));
        assert!(help.ends_with("Print the version.\n"), "{help}");
        assert!(
            help.contains(
                "Usage: start_server [options] -- server-prog server-arg1 server-arg2 ...\n"
            ),
            "{help}"
        );
        for line in help.lines() {
            assert!(line.len() <= 80, "{line}");
            assert_eq!(line, line.trim_end());
        }
        let definition = definition();
        for long in definition.get_arguments().filter_map(Arg::get_long) {
            assert!(help.contains(&format!("--{long}")), "{long}");
        }
        let headings: Vec<_> = help
            .lines()
            .filter(|line| line.ends_with(':') && !line.starts_with(' '))
            .collect();
        assert_eq!(
            headings,
            [
                "Listening:",
                "Program:",
                "Restarting:",
                "Files and logging:",
                "Syslog:",
                "Privileges:",
                "Commands:"
            ]
        );
    }

    const README: &str = include_str!("../../../README.md");

    #[test]
    fn the_readme_has_a_row_for_every_option() {
        let rows: Vec<&str> = README
            .lines()
            .filter(|line| line.starts_with("| `--"))
            .collect();
        for option in definition().get_arguments().filter_map(Arg::get_long) {
            // In the first column: the others may mention it.
            let named = |row: &&&str| {
                let column = row.split('|').nth(1).unwrap();
                column.contains(&format!("`--{option}`"))
                    || column.contains(&format!("`--{option}="))
            };
            assert_eq!(rows.iter().filter(named).count(), 1, "--{option}");
        }
        for row in &rows {
            let name = row
                .trim_start_matches("| `--")
                .split(['=', '`'])
                .next()
                .unwrap();
            assert!(
                definition()
                    .get_arguments()
                    .any(|one| one.get_long() == Some(name)),
                "{row}"
            );
        }
    }

    #[test]
    fn every_command_line_in_the_readme_is_valid() {
        let text = README.replace("\\\n", " ");
        // What the shell puts in for root only.
        let substitution = text.find("$([").map(|start| {
            let end = text[start..].find(") --port").unwrap();
            text[start..=start + end].to_owned()
        });
        let text = text.replace(&substitution.unwrap(), "--user=nobody");
        let mut checked = 0;
        for line in text.lines() {
            if !line.starts_with("start_server ") && !line.contains("/start_server --") {
                continue;
            }
            let (_, command) = line.split_once("start_server ").unwrap();
            let words: Vec<&str> = command.split_whitespace().collect();
            assert!(parse_words(&words).is_ok(), "{line}");
            checked += 1;
        }
        assert_eq!(checked, 6);
    }

    #[test]
    fn an_error_of_clap_that_is_not_known_keeps_its_first_line() {
        for kind in [
            ErrorKind::ArgumentConflict,
            ErrorKind::UnknownArgument,
            ErrorKind::TooManyValues,
        ] {
            let failure = refusal(&definition().error(kind, "some text\nand more"), None);
            assert_eq!(failure, Failure::usage("some text"));
        }
    }
}
