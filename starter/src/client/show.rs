//! `--status`: what the server is doing, according to its `FILE.json` and the kernel.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::for_people::Shown;
use super::for_programs::{json, openmetrics};
use super::observed::{Observed, observe};
use super::overview::State;
use super::server::{Say, Server};
use super::settings::{Form, Settings};
use super::sheet::{Colour, Sheet};
use super::status::{Status, no_status};
use super::wait::{Wait, Woken};
use crate::host::terminal;
use crate::status::file::{json_path, read_text};
use crate::status::view::View;
use crate::words::failure::{self, Failure, Status as Code};
use crate::words::remedy;

/// How often it is redrawn.
const REDRAW: Duration = Duration::from_secs(1);

/// The lines and columns of a terminal that does not tell.
pub const USUAL_SIZE: (u16, u16) = (24, 80);

/// Prints the status. Returns the exit code for its state.
pub fn show(settings: &Settings, say: Say<'_>) -> Result<Code, Failure> {
    if settings.form == Form::Follow && !io::stdout().is_terminal() {
        return Err(Failure::usage(
            "cannot use --follow: standard output is not a terminal",
        ));
    }
    let server = Server::find(&settings.pid_file, say)?;
    let status = read(&server, settings)?;
    let view = status.view();
    let now = observe(view, server.pid);
    let text = match settings.form {
        Form::Follow => return follow(&server, settings),
        Form::Text => sheet(&server, view, &now, None).text(is_coloured()),
        Form::Json => json(view, &now),
        Form::OpenMetrics => openmetrics(view, &now),
    };
    write(&text)?;
    Ok(State::of(view).code())
}

/// The status that this server has written.
fn read(server: &Server, settings: &Settings) -> Result<Status, Failure> {
    let of_pid_file = json_path(&settings.pid_file);
    let of_status_file = settings.status_file.as_deref().map(json_path);
    let mut files = [Some(&of_pid_file), of_status_file.as_ref()]
        .into_iter()
        .flatten();
    let found = files.find_map(|json| Status::read(json).filter(|it| it.is_of(server.pid)));
    found.ok_or_else(|| {
        let is_closed = read_text(&of_pid_file)
            .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        let failure = Failure::failed(format!(
            "cannot show the status of pid {}: {}",
            server.pid,
            no_status(&of_pid_file)
        ));
        failure.hint(match is_closed {
            true => remedy::USER_OF_THE_SERVER,
            false => remedy::NO_STATUS,
        })
    })
}

fn sheet(server: &Server, view: &View, now: &Observed, before: Option<&Observed>) -> Sheet {
    let shown = Shown {
        view,
        now,
        before,
        is_stopped: server.is_stopped(),
    };
    shown.sheet()
}

/// Redraws it until the server ends, or somebody ends this process: Ctrl-C does, as it does any program that has
/// nothing to clean up. Each picture is one write, below what the terminal showed before, and takes the place of the
/// last one.
fn follow(server: &Server, settings: &Settings) -> Result<Code, Failure> {
    let mut before: Option<Observed> = None;
    let mut drawn = 0;
    loop {
        let next = Instant::now() + REDRAW;
        let mut sheet = match read(server, settings) {
            Ok(status) => {
                let now = observe(status.view(), server.pid);
                let sheet = sheet(server, status.view(), &now, before.as_ref());
                before = Some(now);
                sheet
            }
            Err(failure) => {
                let mut sheet = Sheet::default();
                sheet.sentence(Some(Colour::Red), &failure.text());
                sheet
            }
        };
        let (lines, columns) = terminal::size(&io::stdout()).unwrap_or(USUAL_SIZE);
        // The last line is left for the cursor.
        sheet.fit(usize::from(lines).saturating_sub(1), columns.into());
        let text = sheet.text(is_coloured());
        let back = match drawn {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        };
        write(&format!("{back}{text}"))?;
        drawn = sheet.lines();
        let pause = next.saturating_duration_since(Instant::now());
        match Wait::new(server, Some(pause)).next()? {
            Woken::ServerEnded => {
                return Err(Failure::not_running(format!(
                    "not running: pid {} has exited",
                    server.pid
                )));
            }
            Woken::TimedOut | Woken::FilesChanged | Woken::Due => {}
        }
    }
}

/// The status in every form, without what only the kernel knows: for fuzzers.
pub fn in_every_form(status: &Status) -> [String; 3] {
    let (view, now) = (status.view(), Observed::default());
    let shown = Shown {
        view,
        now: &now,
        before: None,
        is_stopped: None,
    };
    [
        shown.sheet().text(false),
        json(view, &now),
        openmetrics(view, &now),
    ]
}

/// Whether colours are wanted: by a terminal that has them, and by whoever looks at it (no-color.org).
fn is_coloured() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// Writes to standard output.
pub fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| {
            let cause = failure::cause(&error);
            Failure::failed(format!("cannot write to standard output: {cause}"))
        }),
    }
}
