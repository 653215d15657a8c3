//! For a dry run: whether the pid file and the status files could be written. None is.

use super::file::json_path;
use super::lines::is_status_lines;
use super::pid_file::PidFile;
use super::replaced;
use super::settings::Settings;
use super::view::is_status_json;
use crate::host::access::Expected;
use crate::words::findings::Findings;
use crate::words::text::quoted;

/// Examines all of them. Returns whether a server is running that holds the pid file.
pub fn examine(settings: &Settings, expected: &Expected, findings: &mut Findings) -> bool {
    let mut is_running = false;
    if let Some(path) = settings.pid_file.as_deref()
        && let Some(locked) = findings.take(PidFile::examine(path, expected))
    {
        let shown = quoted(path);
        match locked {
            Some(by) => {
                let by = by.trim_start_matches("it ");
                findings.would(format!(
                    "--pid-file={shown} {by}: what that server has is not examined"
                ));
                is_running = true;
            }
            None => findings.would(format!("writes {shown} (--pid-file)")),
        }
    }
    if let Some(path) = settings.status_file.as_deref()
        && findings
            .take(replaced::examine(path, expected, is_status_lines))
            .is_some()
    {
        findings.would(format!("writes {} (--status-file)", quoted(path)));
    }
    let files = [&settings.status_file, &settings.pid_file];
    for beside in files.into_iter().flatten() {
        let path = json_path(beside);
        let examined = replaced::examine(&path, expected, is_status_json);
        if findings.take(examined).is_some() {
            findings.would(format!("writes {}", quoted(&path)));
        }
    }
    is_running
}
