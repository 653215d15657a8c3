//! All options, as clap knows them and as the help text shows them.

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, Command};

use crate::log::DEFAULT_ADDRESS;

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
            flag("quiet").help(
                "Write no messages of start_server itself to stderr, except why it has\n\
                 failed. The commands below print nothing when they succeed.",
            ),
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
