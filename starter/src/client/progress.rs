//! Shows the progress of a restart on standard error: on a terminal in one line that is rewritten, elsewhere with a line
//! for each phase.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use super::follower::Found;
use super::observed::{Observed, observe};
use super::server::Server;
use super::settings::Settings;
use super::sheet::cut;
use super::show::USUAL_SIZE;
use super::status::{Asked, Status};
use super::verdict::{LATE, Phase, SERVING, phase};
use crate::host::terminal;
use crate::log;

/// How often the line is rewritten at most.
const REDRAW: Duration = Duration::from_millis(100);

/// How often connections are counted at most: that looks at every process.
const RECOUNT: Duration = Duration::from_secs(1);

/// What was shown so far.
pub struct Progress<'a> {
    server: &'a Server,
    asked: Asked,
    /// The last generation before the restart.
    newest: u64,
    form: Form,
    /// The last phase that has a line of its own.
    told: u8,
    /// What the rewritten line contains.
    line: String,
    /// When it may be rewritten.
    redraw_at: Instant,
    /// The connections of old generations, if known, and when they are counted again.
    open: Option<usize>,
    recount_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Silent,
    Rewritten,
    Lines,
}

impl<'a> Progress<'a> {
    pub fn new(settings: &Settings, server: &'a Server, asked: Asked, newest: u64) -> Progress<'a> {
        let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let now = Instant::now();
        Progress {
            server,
            asked,
            newest,
            form: match io::stderr().is_terminal() && !is_dumb {
                _ if settings.is_quiet => Form::Silent,
                true => Form::Rewritten,
                false => Form::Lines,
            },
            told: 0,
            line: String::new(),
            redraw_at: now,
            open: None,
            recount_at: now,
        }
    }

    /// When it wants to show more, whether something has happened or not.
    pub fn due(&self) -> Option<Instant> {
        (self.form == Form::Rewritten).then_some(self.redraw_at)
    }

    /// Shows where the restart is.
    pub fn show(&mut self, found: &Found) {
        match self.form {
            Form::Silent => {}
            Form::Lines => self.tell(self.phase(found)),
            // However often the server writes.
            Form::Rewritten if Instant::now() < self.redraw_at => {}
            Form::Rewritten => self.rewrite(found),
        }
    }

    /// A rollback waits for no start that is under way: it ends it.
    fn phase(&self, found: &Found) -> Option<Phase> {
        let phase = phase(found, self.newest);
        phase.filter(|phase| phase.order != LATE || self.asked == Asked::Restart)
    }

    fn tell(&mut self, phase: Option<Phase>) {
        if let Some(phase) = phase.filter(|phase| phase.order > self.told) {
            self.told = phase.order;
            log::show(&phase.sentence);
        }
    }

    fn rewrite(&mut self, found: &Found) {
        self.redraw_at = Instant::now() + REDRAW;
        let line = match self.phase(found) {
            Some(phase) => {
                if phase.order == SERVING {
                    self.count(found);
                }
                phase.with_time(self.open)
            }
            None => String::new(),
        };
        let (_, columns) = terminal::size(&io::stderr()).unwrap_or(USUAL_SIZE);
        self.draw(cut(&line, usize::from(columns).saturating_sub(1)));
    }

    fn draw(&mut self, line: String) {
        if line != self.line {
            log::show_in_place(&line);
            self.line = line;
        }
    }

    fn count(&mut self, found: &Found) {
        let (Some(status), Some(generation)) = (&found.status, found.generation) else {
            return;
        };
        if Instant::now() >= self.recount_at {
            self.open = open(status, generation, &observe(status.view(), self.server.pid));
            self.recount_at = Instant::now() + RECOUNT;
        }
    }
}

/// The connections of all generations before this one, if they are known.
fn open(status: &Status, generation: u64, now: &Observed) -> Option<usize> {
    let workers = status
        .replaced_by(generation)
        .flat_map(|one| one.workers.iter());
    let all = workers.map(|worker| now.workers.get(&worker.pid)?.connections);
    all.sum()
}

/// Nothing of the line stays, whatever comes next.
impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.draw(String::new());
    }
}
