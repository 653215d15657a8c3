//! What the status files show of the command line.

use std::path::Path;

use super::Options;
use crate::log::{Address, LogTarget};
use crate::status::file::Settings;
use crate::status::view;

/// The status files that these options ask for.
pub fn status_settings(options: &Options) -> Settings {
    Settings {
        status_file: options.status_file.clone(),
        pid_file: options.pid_file.clone(),
        options: shown(options),
    }
}

fn shown(options: &Options) -> view::Options {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let path = |path: &Option<_>| path.as_deref().map(text);
    view::Options {
        program: options.program.to_string_lossy().into_owned(),
        arguments: options
            .arguments
            .iter()
            .map(|one| one.to_string_lossy().into_owned())
            .collect(),
        dir: path(&options.directory),
        interval: options.interval.as_secs_f64(),
        signal_on_hup: options.signal_on_hup.as_str().to_owned(),
        signal_on_term: options.signal_on_term.as_str().to_owned(),
        kill_old_delay: options.kill_old_delay.map(|one| one.as_secs_f64()),
        stop_timeout: options.stop_timeout.map(|one| one.as_secs_f64()),
        start_limit: options.start_limit.map(Into::into),
        pid_file: path(&options.pid_file),
        status_file: path(&options.status_file),
        log_file: options.log_file.as_ref().map(|target| match target {
            LogTarget::File(path) => text(path),
            LogTarget::Command(command) => format!("| {}", command.to_string_lossy()),
        }),
        log_timestamps: options.log_timestamps,
        syslog: options.syslog.as_ref().map(|syslog| view::Syslog {
            facility: syslog.facility.clone(),
            tag: syslog.tag.clone(),
            address: match &syslog.address {
                Address::Socket(path) => text(path),
                Address::Udp(address) => format!("udp:{address}"),
            },
        }),
        user: options.user.clone(),
        group: options.group.clone(),
    }
}
