//! What the status files show of the command line.

use std::path::Path;

use super::settings::Shown;
use super::view;
use crate::log::{Address, LineFormat, LogTarget};
use crate::worker::Label;

/// The settings as `F.json` has them.
pub fn shown(settings: &Shown<'_>) -> view::Options {
    let Shown {
        files,
        worker,
        environment,
        machine,
        ready,
        log,
        identity,
    } = settings;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let path = |path: &Option<_>| path.as_deref().map(text);
    view::Options {
        program: worker.program.to_string_lossy().into_owned(),
        arguments: worker
            .arguments
            .iter()
            .map(|one| one.to_string_lossy().into_owned())
            .collect(),
        dir: path(&worker.directory),
        label: worker.label.as_ref().map(|label| match label {
            Label::Text(text) => format!("--label={}", text.to_string_lossy()),
            Label::File(path) => format!("--label-file={}", text(path)),
        }),
        interval: machine.interval.as_secs_f64(),
        ready: ready.ready.shown(),
        start_timeout: ready
            .ready
            .awaited()
            .map(|_| ready.start_timeout.as_secs_f64()),
        watch: ready.watch.map(|one| one.as_secs_f64()),
        signal_on_hup: machine.signal_on_hup.as_str().to_owned(),
        signal_on_term: machine.signal_on_term.as_str().to_owned(),
        kill_old_delay: environment.kill_old_delay.map(|one| one.as_secs_f64()),
        stop_timeout: machine.stop_timeout.map(|one| one.as_secs_f64()),
        start_limit: machine.start_limit.map(Into::into),
        pins: machine.pins,
        pid_file: path(&files.pid_file),
        status_file: path(&files.status_file),
        log_file: log.target.as_ref().map(|target| match target {
            LogTarget::File(path) => text(path),
            LogTarget::Command(command) => format!("| {}", command.to_string_lossy()),
        }),
        log_timestamps: log.has_timestamps,
        log_format: match log.format {
            LineFormat::Text => "text".to_owned(),
            LineFormat::Json => "json".to_owned(),
        },
        syslog: log.syslog.as_ref().map(|syslog| view::Syslog {
            facility: syslog.facility.clone(),
            tag: syslog.tag.clone(),
            address: match &syslog.address {
                Address::Socket(path) => text(path),
                Address::Udp(address) => format!("udp:{address}"),
            },
        }),
        user: identity.user.clone(),
        group: identity.group.clone(),
    }
}
