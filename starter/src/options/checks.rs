//! What one option requires of the others, once each is valid by itself.

use std::num::NonZeroU16;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use common::message::Transport;

use super::refusal::{lacks, refused, unusable};
use super::values::Given;
use crate::client::Form;
use crate::host::order::Trial;
use crate::listeners;
use crate::listeners::dialects::Dialect;
use crate::listeners::spec::{PortSpec, check_duplicates};
use crate::log::{self, LineFormat, LogTarget};
use crate::machine::Replace;
use crate::ready::{self, Ready};
use crate::status;
use crate::status::file::json_path;
use crate::words::failure::Failure;
use crate::words::remedy;
use crate::words::text::quoted;

/// Options, each with those of which it needs one.
const NEEDS: [(&str, &[&str]); 23] = [
    (
        "timeout",
        &[
            "restart", "promote", "rollback", "abort", "scale", "upgrade", "stop", "reopen",
        ],
    ),
    ("follow", &["status"]),
    (
        "json",
        &["status", "restart", "promote", "rollback", "abort"],
    ),
    ("no-wait", &["restart", "promote", "rollback", "abort"]),
    ("canary", &["restart"]),
    ("canary-by", &["canary"]),
    ("canary-time", &["canary"]),
    ("openmetrics", &["status"]),
    ("group", &["user"]),
    ("check-first", &["check"]),
    ("cpu-affinity", &["switch"]),
    ("lanes", &["switch"]),
    ("quiet-time", &["switch"]),
    ("switch-timeout", &["switch"]),
    ("udp-flows", &["switch"]),
    ("keep-env", &["user"]),
    ("log-stream", &["log-file"]),
    ("log-timestamps", &["log-file"]),
    ("syslog-tag", &["syslog"]),
    ("syslog-address", &["syslog"]),
    ("syslog-format", &["syslog"]),
    ("syslog-stream", &["syslog"]),
    ("daemonize", &["log-file", "syslog"]),
];

/// What asks the server.
const ASKING: [&str; 3] = ["ready=accept", "ready=http:PATH", "ready=exec:COMMAND"];

/// Those of them that are named with their value.
const NAMED_WITH_VALUE: [&str; 2] = ["timeout", "group"];

/// The options that `--self-test` allows beside it.
const OF_SELF_TEST: [&str; 4] = ["self-test", "user", "group", "strict"];

/// A server can only be started if there is a program for it.
pub fn check_program(given: &Given<'_>) -> Result<(), Failure> {
    match given.all("program").next() {
        None => Err(Failure::usage("server program not specified").hint(remedy::PROGRAM_LAST)),
        Some(program) if program.is_empty() => {
            Err(Failure::usage("the name of the server program is empty"))
        }
        Some(_) => Ok(()),
    }
}

/// Refuses an option without the one that it needs.
pub fn check_needs(given: &Given<'_>) -> Result<(), Failure> {
    let is_lacking = |(option, needed): &&(&str, &[&str])| {
        given.has(option) && !needed.iter().any(|one| given.has(one))
    };
    let Some((option, needed)) = NEEDS.iter().find(is_lacking) else {
        return Ok(());
    };
    let value = match NAMED_WITH_VALUE.contains(option) {
        true => given.value(option)?,
        false => None,
    };
    Err(match value {
        Some(value) => refused(option, value, &lacks(needed)),
        None => unusable(option, &lacks(needed)),
    })
}

/// How a command shows what it finds. Unlike the options of a start, those that say it have no meaning for other commands.
pub fn form(command: &str, given: &Given<'_>) -> Result<Form, Failure> {
    let forms = [
        ("follow", Form::Follow),
        ("json", Form::Json),
        ("openmetrics", Form::OpenMetrics),
    ];
    let mut forms = forms.into_iter().filter(|(name, _)| given.flag(name));
    match (forms.next(), forms.next()) {
        (None, _) => Ok(Form::Text),
        (Some((name, _)), _) if !needed_by(name).contains(&command) => {
            Err(unusable(name, &lacks(needed_by(name))))
        }
        (Some((_, form)), None) => Ok(form),
        (Some((name, _)), Some((other, _))) => {
            Err(unusable(name, &format!("--{other} is given as well")))
        }
    }
}

/// Whether the command is over when the new generation serves. Others do not know that moment.
pub fn returns_at_commit(command: &str, given: &Given<'_>) -> Result<bool, Failure> {
    let is_given = given.flag("no-wait");
    let needed = needed_by("no-wait");
    match is_given && !needed.contains(&command) {
        true => Err(unusable("no-wait", &lacks(needed))),
        false => Ok(is_given),
    }
}

/// The share that a restart asks for. Other commands have none.
pub fn canary(command: &str, given: &Given<'_>) -> Result<Option<Trial>, Failure> {
    let percent = given.percent("canary")?;
    let is_by_client = given.by_client("canary-by")?;
    let seconds = given.count("canary-time", u16::MAX)?;
    if percent.is_some() && command != "restart" {
        return Err(unusable("canary", &lacks(needed_by("canary"))));
    }
    let alone = ["canary-by", "canary-time"].into_iter();
    let mut alone = alone.filter(|option| percent.is_none() && given.has(option));
    if let Some(option) = alone.next() {
        return Err(unusable(option, &lacks(needed_by(option))));
    }
    Ok(percent.map(|percent| Trial {
        percent,
        is_by_client: is_by_client.unwrap_or_default(),
        seconds: seconds.and_then(NonZeroU16::new),
    }))
}

/// Refuses a delay before the old server is stopped where it is stopped first.
pub fn check_replace(
    given: &Given<'_>,
    replace: Replace,
    delay: Option<Duration>,
) -> Result<(), Failure> {
    let has_delay = delay.is_some_and(|delay| !delay.is_zero());
    match given.value("kill-old-delay")? {
        Some(value) if has_delay && replace == Replace::StopFirst => {
            let cause = "--replace=stop-first stops the old server before it starts the new one";
            Err(refused("kill-old-delay", value, cause))
        }
        Some(_) | None => Ok(()),
    }
}

/// Refuses to replace servers one by one where they all stop first.
pub fn check_rolling(given: &Given<'_>, replace: Replace) -> Result<(), Failure> {
    match given.has("rolling") && replace == Replace::StopFirst {
        true => {
            let cause = "--replace=stop-first stops all old servers before it starts a new one";
            Err(unusable("rolling", cause))
        }
        false => Ok(()),
    }
}

/// Refuses a switch where there is no moment at which all that is old can be left for all that is new.
pub fn check_switch(given: &Given<'_>, replace: Replace) -> Result<(), Failure> {
    let cause = match (given.has("rolling"), replace) {
        _ if !given.has("switch") => return Ok(()),
        (true, _) => "--rolling replaces servers one by one, and --switch all at the same moment",
        (false, Replace::StopFirst) => {
            "--replace=stop-first leaves no old server from which to switch"
        }
        (false, Replace::Overlap) => return Ok(()),
    };
    Err(unusable("switch", cause))
}

/// Refuses flows of UDP where nothing can come by UDP. What the launcher passes on is not known here.
pub fn check_udp_flows(given: &Given<'_>, settings: &listeners::Settings) -> Result<(), Failure> {
    let is_udp = |port: &PortSpec| port.transport == Transport::Udp;
    match given.has("udp-flows") && !settings.ports.iter().any(is_udp) {
        true => Err(unusable(
            "udp-flows",
            "no --port is UDP, such as --port=u443",
        )),
        false => Ok(()),
    }
}

/// The options of which this one needs one.
fn needed_by(option: &str) -> &'static [&'static str] {
    let found = NEEDS.iter().find(|(name, _)| *name == option);
    found.map_or(&[], |(_, needed)| needed)
}

/// Refuses options that a self-test sets itself.
pub fn check_self_test(given: &Given<'_>) -> Result<(), Failure> {
    if given.all("program").next().is_some() {
        return Err(unusable("self-test", "it takes no server program"));
    }
    match given
        .names()
        .into_iter()
        .find(|name| !OF_SELF_TEST.contains(name))
    {
        Some(other) => Err(unusable(
            "self-test",
            &format!("--{other} is given as well"),
        )),
        None => check_needs(given),
    }
}

/// Refuses options about readiness that have nothing to do, and descriptors that two things want.
pub fn check_ready(
    given: &Given<'_>,
    settings: &ready::Settings,
    listeners: &listeners::Settings,
) -> Result<(), Failure> {
    let ready = &settings.ready;
    if given.has("ready-status") && !matches!(ready, Ready::Http { .. }) {
        return Err(unusable("ready-status", &lacks(&["ready=http:PATH"])));
    }
    if given.has("probe")
        && !matches!(
            ready,
            Ready::Accept | Ready::Http { .. } | Ready::Command(_)
        )
    {
        return Err(unusable("probe", &lacks(&ASKING)));
    }
    if given.has("start-timeout") {
        if *ready == Ready::Interval && !given.has("check") {
            let cause = "it needs --check, or a --ready other than interval, as well";
            return Err(unusable("start-timeout", cause));
        }
        if settings.start_timeout.is_zero() {
            let cause = "no server is ready in no time";
            return Err(refused("start-timeout", "0".as_ref(), cause));
        }
    }
    check_watch(settings)?;
    match settings.reserved_number() {
        Some(number) => check_reserved(number, listeners),
        None => Ok(()),
    }
}

/// Refuses to watch what can only be told once.
fn check_watch(settings: &ready::Settings) -> Result<(), Failure> {
    let Some(watch) = settings.watch else {
        return Ok(());
    };
    let failure = match settings.ready {
        Ready::Accept | Ready::Http { .. } | Ready::Command(_) if watch.is_zero() => {
            refused("watch", "0".as_ref(), "every server would be unhealthy")
        }
        Ready::Accept | Ready::Http { .. } | Ready::Command(_) => return Ok(()),
        Ready::Interval | Ready::Notify | Ready::Descriptor(_) => {
            unusable("watch", &lacks(&ASKING))
        }
    };
    let is_told = matches!(settings.ready, Ready::Notify | Ready::Descriptor(_));
    Err(failure.hint_if(is_told.then(|| remedy::ASK_AGAIN.into())))
}

/// Refuses to keep descriptors that no worker can send, or that have no place after the listeners.
pub fn check_fd_store(
    given: &Given<'_>,
    settings: &ready::Settings,
    listeners: &listeners::Settings,
) -> Result<(), Failure> {
    let Some(value) = given.value("fd-store-max")? else {
        return Ok(());
    };
    if settings.ready != Ready::Notify {
        return Err(refused("fd-store-max", value, &lacks(&["ready=notify"])));
    }
    let mut ports = listeners.ports.iter();
    match ports.find(|port| port.descriptor.is_some()) {
        Some(port) if settings.fd_store_max > 0 => {
            let cause = format!(
                "workers get their descriptors from 3 on without gaps, but --port={} sets its own",
                quoted(&port.given)
            );
            Err(refused("fd-store-max", value, &cause))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_reserved(number: RawFd, listeners: &listeners::Settings) -> Result<(), Failure> {
    let value = format!("fd:{number}");
    let has_it = |port: &&PortSpec| port.descriptor == Some(number);
    if let Some(port) = listeners.ports.iter().find(has_it) {
        let cause = format!("--port={} has that descriptor", quoted(&port.given));
        return Err(refused("ready", value.as_ref(), &cause));
    }
    let count = listeners.ports.len() + listeners.paths.len();
    let is_within = usize::try_from(number).is_ok_and(|number| number < 3 + count);
    if listeners.dialects.contains(&Dialect::Systemd) && is_within {
        let cause = format!(
            "--fd-env=systemd numbers the listeners from 3 without gaps: the first free one is {}",
            3 + count
        );
        return Err(refused("ready", value.as_ref(), &cause));
    }
    Ok(())
}

/// Refuses one file for two purposes: each would overwrite the other.
pub fn check_files(status: &status::Settings, log: &log::Settings) -> Result<(), Failure> {
    let log = match &log.target {
        Some(LogTarget::File(path)) => Some(path.as_path()),
        Some(LogTarget::Command(_)) | None => None,
    };
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    let options = [
        ("pid-file", status.pid_file.as_deref(), true),
        ("status-file", status.status_file.as_deref(), true),
        ("log-file", log, false),
    ];
    for (option, path, has_json) in options {
        let Some(path) = path else { continue };
        let shown = format!("--{option}={}", quoted(path));
        let json = has_json.then(|| (format!("the JSON beside {shown}"), json_path(path)));
        for (name, path) in std::iter::once((shown.clone(), path.to_owned())).chain(json) {
            // What is not absolute is so in the same directory.
            let path = std::path::absolute(&path).unwrap_or(path);
            if let Some((other, _)) = files.iter().find(|(_, taken)| *taken == path) {
                let name = if name == shown { "it" } else { &name };
                let cause = format!("{name} is the same file as {other}");
                return Err(Failure::usage(format!("cannot use {shown}: {cause}")));
            }
            files.push((name, path));
        }
    }
    Ok(())
}

/// Refuses stamps before what has the time in it.
pub fn check_log_format(log: &log::Settings) -> Result<(), Failure> {
    match log.has_timestamps && log.format == LineFormat::Json {
        true => {
            let cause = "--log-format=json writes the time of each line anyway";
            Err(unusable("log-timestamps", cause))
        }
        false => Ok(()),
    }
}

/// Refuses listeners that exclude each other, and dialects that cannot describe them.
pub fn check_listeners(settings: &listeners::Settings) -> Result<(), Failure> {
    check_duplicates(&settings.ports, &settings.paths)?;
    let first = |matches: fn(&&PortSpec) -> bool| settings.ports.iter().find(matches);
    if settings.dialects.contains(&Dialect::Systemd)
        && let Some(port) = first(|port| port.descriptor.is_some())
    {
        let cause = format!(
            "its descriptors are numbered from 3 without gaps, but --port={} sets its own",
            quoted(&port.given)
        );
        return Err(refused("fd-env", "systemd".as_ref(), &cause));
    }
    if settings.dialects.contains(&Dialect::Unicorn)
        && let Some(port) = first(|port| port.transport == Transport::Udp)
    {
        let cause = format!(
            "it takes stream sockets only, but --port={} is UDP",
            quoted(&port.given)
        );
        return Err(refused("fd-env", "unicorn".as_ref(), &cause));
    }
    if settings.dialects.contains(&Dialect::PhpFpm) {
        let udp = first(|port| port.transport == Transport::Udp);
        let udp = udp.map(|port| format!("--port={} is UDP", quoted(&port.given)));
        let path = settings.paths.first().map(|path| {
            let shown = quoted(&path.path);
            format!("--path={shown} is none: php-fpm would remove its file")
        });
        if let Some(cause) = udp.or(path) {
            let cause = format!("it takes TCP ports only, but {cause}");
            return Err(refused("fd-env", "php-fpm".as_ref(), &cause));
        }
    }
    Ok(())
}
