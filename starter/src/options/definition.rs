//! Every option, as clap knows it and as the help shows it.

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, Command};

use crate::log::DEFAULT_ADDRESS;

const USAGE: &str = "\
start_server [options] -- server-prog server-arg1 server-arg2 ...
       start_server --restart --pid-file=FILE [--timeout=SECONDS]
       start_server --promote --pid-file=FILE [--timeout=SECONDS]
       start_server --rollback --pid-file=FILE [--timeout=SECONDS]
       start_server --abort --pid-file=FILE [--timeout=SECONDS]
       start_server --scale=NUMBER --pid-file=FILE [--timeout=SECONDS]
       start_server --upgrade --pid-file=FILE [--timeout=SECONDS]
       start_server --stop --pid-file=FILE [--timeout=SECONDS]
       start_server --reopen --pid-file=FILE [--timeout=SECONDS]
       start_server --status --pid-file=FILE [--follow|--json|--openmetrics]
       start_server --check-config [options] -- server-prog ...
       start_server --self-test [--user=USER] [--group=GROUP] [--strict]";

/// What a reader of the help still needs, at its end.
const AFTER_HELP: &str = "\
Signals:
  HUP        Start a new server; once it serves, stop the old one.
  TERM       Send --signal-on-term to all servers, and exit after the last one.
  INT, QUIT  Send TERM to all servers, and exit after the last one.
  USR1       Reopen --log-file.
  USR2       Execute the program file of start_server again, as --upgrade.
  TTIN, TTOU Start one more server beside the others, or stop one, as --scale.

Exit codes:
  0  Done as asked; --status: it serves.
  1  It could not be done; --status: it runs, but does not serve well.
  2  Wrong usage.
  3  No server holds --pid-file.
  4  Still undecided after --timeout.

Examples:
  start_server --port=8080 --pid-file=app.pid -- ./server
  start_server --restart --pid-file=app.pid --timeout=60

The manual: man start_server";

/// All options, in the order of the help.
pub fn definition() -> Command {
    Command::new("start_server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A superdaemon for hot-deploying server programs.")
        .override_usage(USAGE)
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .next_line_help(true)
        .after_help(AFTER_HELP)
        // As with Getopt::Long, the last one wins.
        .args_override_self(true)
        .next_help_heading("Listening")
        .args(listening())
        .next_help_heading("Program")
        .args(program())
        .next_help_heading("Restarting")
        .args(restarting())
        .args(switching())
        .next_help_heading("Many servers")
        .args(many())
        .next_help_heading("Readiness")
        .args(readiness())
        .next_help_heading("Files and logging")
        .args(files())
        .next_help_heading("Syslog")
        .args(syslog())
        .next_help_heading("Privileges")
        .args(privileges())
        .next_help_heading("Commands")
        .args(requests())
        .args(others())
        // Hidden, because the usage line shows it better than a list would.
        .arg(
            Arg::new("program")
                .num_args(0..)
                .trailing_var_arg(true)
                .value_parser(ValueParser::os_string())
                .hide(true),
        )
}

fn listening() -> [Arg; 3] {
    [
        list("port", "[HOST:][u]PORT[=FD][,freebind]").help(lines([
            "Listen on a TCP port, or with a leading u on a UDP port; without HOST,",
            "on every IPv4 address. An IPv6 address is written like [::1]:80. =FD",
            "sets the descriptor's number in the server. PORT 0 takes a free port.",
            "With freebind, HOST may be an address that no interface has yet.",
            "Repeatable; takes a comma-separated list.",
        ])),
        list("path", "PATH[,mode=MODE][,user=USER][,group=GROUP]").help(lines([
            "Listen on a unix socket. MODE is octal (default: 0777). @NAME is an",
            "abstract socket, without a file. Repeatable; takes a comma-separated",
            "list of absolute paths.",
        ])),
        valued("backlog", "NUMBER").help(format!(
            "How many connections each listener may queue (default: {}).",
            libc::SOMAXCONN
        )),
    ]
}

fn program() -> [Arg; 7] {
    [
        valued("dir", "DIR").help("Change to this directory before executing the server program."),
        valued("envdir", "DIR").help(lines([
            "Set an environment variable for each file in this directory: its name",
            "is that of the file, its value the first line. The files are read",
            "anew for each restart.",
        ])),
        valued("preset", "NAME|list").help(lines([
            "Set what this server program needs: --fd-env, --signal-on-hup,",
            "--signal-on-term and --ready. NAME is nginx, puma, unicorn and others,",
            "or plain for one that drains on TERM. Each of these options wins over",
            "it. With list, print what each preset sets and why, and exit.",
        ])),
        list("fd-env", "STYLE[,STYLE]").help(lines([
            "Also announce the descriptors in the variables of systemd",
            "(LISTEN_FDS), unicorn (UNICORN_FD), nginx (NGINX), einhorn",
            "(EINHORN_FDS) or php-fpm (FPM_SOCKETS). Repeatable; takes a",
            "comma-separated list.",
        ])),
        valued("label", "TEXT").help(lines([
            "What each generation of the server is called in the log, the status",
            "and verdicts (default: the path and time of its program, and --dir).",
        ])),
        valued("label-file", "FILE")
            .help("The same from the first line of this file, read for each generation."),
        flag("no-pin").help(lines([
            "When a server has died, start what is on disk by then. By default",
            "the program, directory and environment that have served come back, and",
            "only a restart looks at the disk.",
        ])),
    ]
}

fn restarting() -> [Arg; 14] {
    [
        valued("interval", "SECONDS").help(lines([
            "How long a new server must stay alive to count as started, and the",
            "shortest time between two starts (default: 1).",
        ])),
        valued("start-limit", "NUMBER")
            .help("Give up a restart after this many failed starts (default: no limit)."),
        valued("check", "COMMAND").help(lines([
            "Run this shell command before each restart, as the server would run.",
            "Unless it exits with 0 within --start-timeout, nothing is started.",
        ])),
        flag("check-first").help("Run --check before the very first start too."),
        valued("replace", "overlap|stop-first").help(lines([
            "Stop the old server when the new one serves (overlap, the default), or",
            "before the new one is started (stop-first): then there are never two",
            "servers, and connections wait in the queue meanwhile.",
        ])),
        valued("signal-on-hup", "SIGNAL")
            .help("The signal for the old server when it is to stop (default: TERM)."),
        valued("kill-old-delay", "SECONDS").help(lines([
            "The time between the start of a new server and that signal (default:",
            "0, or 5 with --enable-auto-restart).",
        ])),
        valued("kill-old-timeout", "SECONDS").help(lines([
            "Kill an old server that is still alive this long after that signal",
            "(default: never).",
        ])),
        valued("max-old-generations", "NUMBER").help(lines([
            "Kill the oldest servers at once when more generations than this have",
            "been told to stop and are still alive (default: no limit).",
        ])),
        valued("signal-on-term", "SIGNAL")
            .help("The signal for the server when TERM ends start_server (default: TERM)."),
        valued("stop-timeout", "SECONDS")
            .help("Kill what is still alive this long after that signal (default: never)."),
        flag("guardian").help(lines([
            "Watch the supervisor from the process that was started: if it is",
            "killed, another one goes on with the same servers and listeners.",
        ])),
        optionally_valued("enable-auto-restart", "0|1", "1")
            .help("Start a new server at regular intervals, as on HUP (default: 0)."),
        valued("auto-restart-interval", "SECONDS").help(lines([
            "The time between two such starts (default: 360); doubled while an old",
            "server is still alive.",
        ])),
    ]
}

fn switching() -> [Arg; 6] {
    [
        optionally_valued("switch", "optional|required", "optional").help(lines([
            "Open several sockets for each port, and give each new server one that",
            "no other has. Once it serves, all new connections go to it, and the",
            "old one has time to finish before it is told to stop. Unix sockets and",
            "inherited ones are shared, as are all where the kernel cannot do it;",
            "with required, that is refused.",
        ])),
        valued("lanes", "NUMBER").help(lines([
            "With --switch: how many generations can live at a time, old ones too,",
            "each with sockets of its own: 2 to 8 (default: 2).",
        ])),
        valued("quiet-time", "SECONDS").help(lines([
            "With --switch: how long the old server's queue must have been empty",
            "before it is told to stop (default: 0.2).",
        ])),
        valued("switch-timeout", "SECONDS").help(lines([
            "With --switch: tell the old server to stop after this time in any case",
            "(default: 5).",
        ])),
        valued("udp-flows", "quic:OFFSET").help(lines([
            "With --switch and QUIC: give packets of a connection to the server",
            "that has accepted it. Byte OFFSET, 0 to 19, of each connection ID that",
            "a server issues must be the number in its SERVER_STARTER_LANE.",
        ])),
        flag("cpu-affinity").help(lines([
            "With --switch and --workers: bind each server to some of the CPUs, and",
            "give it the connections that arrive on these.",
        ])),
    ]
}

fn many() -> [Arg; 3] {
    [
        valued("workers", "NUMBER|auto").help(lines([
            "Run this many servers side by side, or one for each CPU (default: 1).",
            "Each finds its number in SERVER_STARTER_WORKER, from 0.",
        ])),
        optionally_valued("rolling", "NUMBER", "1").help(lines([
            "Replace them one by one: start up to this many new ones (default: 1),",
            "and stop an old one as soon as the new one in its place serves. If one",
            "fails, the restart stops there. Without this option, all are replaced",
            "at once.",
        ])),
        valued("start-parallel", "NUMBER").help(lines([
            "How many of them may be starting at the same time (default: the number",
            "of CPUs; with --ready=interval no limit).",
        ])),
    ]
}

fn readiness() -> [Arg; 6] {
    [
        valued("ready", "WHAT").help(lines([
            "What proves that a new server serves, and so ends the old one:",
            "interval      it stays alive for --interval (default)",
            "notify        it says READY=1, as to systemd (sd_notify)",
            "fd:N          it writes a line feed to descriptor N, as to s6",
            "exec:COMMAND  a shell command exits with 0; it is tried again",
            "accept        it accepts a connection on a listener of its own",
            "http:PATH     it answers GET PATH there",
        ])),
        valued("ready-status", "STATUS[-STATUS]")
            .help("The statuses that count as ready with --ready=http (default: 200)."),
        valued("probe", "tcp|unix").help(lines([
            "Where the server's own listener is for --ready=accept and http: a port",
            "of 127.0.0.1 (default), or a unix socket. It is announced after the",
            "others; with exec, COMMAND finds it in SERVER_STARTER_PROBE.",
        ])),
        valued("start-timeout", "SECONDS").help(lines([
            "How long a new server may take to become ready; after that it has",
            "failed (default: 60).",
        ])),
        valued("watch", "SECONDS").help(lines([
            "With --ready=exec, accept or http: go on asking the server. When it",
            "fails for this long, it is unhealthy: that is logged and shown, and",
            "within --kill-old-delay the old server takes over again.",
        ])),
        valued("fd-store-max", "NUMBER").help(lines([
            "With --ready=notify: keep up to this many descriptors that a server",
            "sends (FDSTORE=1, as to systemd), and pass them to the next ones after",
            "the listeners, in the variables of --fd-env=systemd (default: 0).",
        ])),
    ]
}

fn files() -> [Arg; 9] {
    [
        valued("runtime-dir", "DIR").help(lines([
            "Make this directory for the server's user if it is missing. Relative",
            "--pid-file, --status-file and --log-file are in it.",
        ])),
        valued("pid-file", "FILE")
            .help("Write the process id of start_server to this file, and lock it."),
        valued("status-file", "FILE")
            .help("Write a line GENERATION:PID to this file for each running server."),
        valued("log-file", "FILE").help(lines([
            "Append stdout and stderr of start_server and the server to this file.",
            "With \"| COMMAND\", pipe them to a shell command instead.",
        ])),
        list("log-stream", "stdout|stderr").help(lines([
            "Log only this output of the server to --log-file (default: both).",
            "Repeatable; takes a comma-separated list.",
        ])),
        flag("log-timestamps")
            .help("Prefix each line of --log-file with time, generation and process id."),
        valued("log-format", "text|json").help(lines([
            "How to write each line, whoever wrote it: as it is (text, the",
            "default), or as a JSON object with all that is known about it. With",
            "json, but neither --log-file nor --syslog, all output goes to stderr.",
        ])),
        flag("quiet").help(lines([
            "Write no messages of start_server itself to stderr, except why it",
            "failed. Of the commands below only --status, and --restart and",
            "--rollback with --json, then print anything when they succeed.",
        ])),
        flag("daemonize").help("Run in the background. Needs --log-file or --syslog."),
    ]
}

fn syslog() -> [Arg; 5] {
    [
        optionally_valued("syslog", "FACILITY", "daemon").help(lines([
            "Send every line to syslog: the messages of start_server, and the",
            "output of the server with its process id and generation. FACILITY is a",
            "name such as daemon (default) or local0.",
        ])),
        valued("syslog-tag", "TAG")
            .help("The tag of each record (default: the server program's name)."),
        valued("syslog-address", "PATH|udp:HOST:PORT").help(format!(
            "The unix socket or UDP port where syslog listens (default: {DEFAULT_ADDRESS})."
        )),
        valued("syslog-format", "rfc3164|rfc5424")
            .help("The format of the records (default: rfc3164)."),
        list("syslog-stream", "stdout|stderr")
            .help("Send only this output of the server to syslog (default: both)."),
    ]
}

fn privileges() -> [Arg; 4] {
    [
        valued("user", "USER")
            .help("Run as this user, a name or number, once the listeners are open."),
        valued("group", "GROUP")
            .help("Run as this group, a name or number (default: the user's groups)."),
        flag("keep-env").help(lines([
            "Leave the server root's HOME, USER, LOGNAME, SHELL, MAIL and XDG_*.",
            "By default the first four are those of --user, the others are unset.",
        ])),
        flag("strict").help("Fail instead of warning if any confinement is unavailable."),
    ]
}

fn requests() -> [Arg; 13] {
    [
        flag("restart").help(lines([
            "Send HUP to the start_server that holds --pid-file, and wait until a",
            "new server has replaced the old one. Options for a start have no",
            "effect.",
        ])),
        valued("canary", "PERCENT").help(lines([
            "With --restart, where the server runs with --switch: give the new one",
            "only this share of new connections, 1% to 99%, until --promote or",
            "--rollback. If it dies or is unhealthy, the old one gets them all.",
        ])),
        valued("canary-by", "random|client").help(lines([
            "With --canary: choose its connections by chance (random, the default),",
            "or by source address, so that each client stays with one server.",
        ])),
        valued("canary-time", "SECONDS").help(lines([
            "With --canary: promote it after this time without a fault, a whole",
            "number of seconds (default: never).",
        ])),
        flag("promote").help(lines([
            "Give all new connections to the server that --restart --canary has",
            "started, and wait until it serves alone.",
        ])),
        flag("rollback").help(lines([
            "Undo the last restart: the server that it replaced goes on if it has",
            "not been told to stop yet, and is started again if it is gone. Wait",
            "until it serves alone.",
        ])),
        flag("abort").help(lines([
            "Give up a restart that is under way or has failed and is tried again;",
            "what serves goes on until the next restart.",
        ])),
        valued("scale", "NUMBER").help(lines([
            "Let the start_server that holds --pid-file run this many servers side",
            "by side, and wait until they serve.",
        ])),
        flag("no-wait").help(lines([
            "With --restart, --promote, --rollback or --abort: return as soon as",
            "the server serves, and do not wait for the one that it replaces.",
        ])),
        flag("upgrade").help(lines([
            "Send USR2 to the start_server that holds --pid-file: the program file",
            "that lies in its place by now goes on in the same process, with the",
            "same options, listeners and servers. Wait until it does.",
        ])),
        flag("stop").help(lines([
            "Send TERM to the start_server that holds --pid-file, and wait until it",
            "has exited. Options for a start have no effect.",
        ])),
        flag("reopen").help(lines([
            "Send USR1 to the start_server that holds --pid-file, and wait until it",
            "has reopened --log-file. Options for a start have no effect.",
        ])),
        valued("timeout", "SECONDS")
            .help("The longest that these commands wait (default: no limit)."),
    ]
}

fn others() -> [Arg; 8] {
    [
        flag("status").help(lines([
            "Print what the start_server that holds --pid-file is doing, with its",
            "listeners and workers. Options for a start have no effect.",
        ])),
        flag("follow").help("With --status: redraw it once a second, until Ctrl-C."),
        flag("json").help(lines([
            "With --status: print it as JSON. With --restart, --promote,",
            "--rollback or --abort: print the verdict.",
        ])),
        flag("openmetrics").help("With --status: print it as OpenMetrics text, for scrapers."),
        flag("check-config").help(lines([
            "Say what a start with the other options would do, and everything that",
            "would keep it from that. Binds nothing, writes nothing, runs nothing.",
        ])),
        flag("self-test").help(lines([
            "Start servers, try to break out of each of their processes, and report",
            "what holds on this host. Allows only --user, --group and --strict.",
        ])),
        flag("help")
            .short('h')
            .action(ArgAction::Help)
            .help("Print this help."),
        flag("version")
            .short('V')
            .action(ArgAction::Version)
            .help("Print the version."),
    ]
}

/// An option with a value.
fn valued(name: &'static str, value: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .value_parser(ValueParser::os_string())
}

/// An option with a value that may be repeated; every occurrence counts.
fn list(name: &'static str, value: &'static str) -> Arg {
    valued(name, value).action(ArgAction::Append)
}

/// An option with an optional value, which follows an equals sign and is never the next word.
fn optionally_valued(name: &'static str, value: &'static str, default: &'static str) -> Arg {
    valued(name, value)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value(default)
}

fn flag(name: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue)
}

/// Text with manual line breaks: without its feature `wrap_help`, clap inserts none.
fn lines<const COUNT: usize>(lines: [&str; COUNT]) -> String {
    lines.join("\n")
}
