//! What `--restart` tells about its progress and its end, in parts of one line. Each is safe to show.

use crate::words::number::short_time;
use crate::words::text::shortened;

/// A start is under way that was not asked for by this restart.
pub fn is_late(generation: u64) -> String {
    format!("generation {generation} is still starting, the restart comes after it")
}

/// The new generation has a worker. What it must do before it serves may come from outside.
pub fn started(generation: u64, waiting_for: Option<&str>) -> String {
    match waiting_for {
        Some(what) => {
            let what = shortened(what);
            format!("generation {generation}: started, waiting for {what}")
        }
        None => format!("generation {generation}: started"),
    }
}

/// What serves must be gone before the new generation is started.
pub fn stops_first(generation: u64, workers: usize) -> String {
    match workers {
        1 => format!("generation {generation} stops first: waiting for 1 worker to exit"),
        left => format!("generation {generation} stops first: waiting for {left} workers to exit"),
    }
}

/// A restart has failed for which what served had to stop.
pub fn comes_back(generation: u64) -> String {
    format!("generation {generation} has failed, starting again what served before")
}

/// That is done. The time is in seconds.
pub fn was_restored(generation: u64, unserved: f64) -> String {
    let unserved = short_time(unserved);
    format!(
        "what served before was started again as generation {generation}; nobody answered for {unserved}"
    )
}

/// Something else serves by now, perhaps this generation.
pub fn serves_instead(generation: Option<u64>, unserved: f64) -> String {
    let unserved = short_time(unserved);
    match generation {
        Some(generation) => {
            format!("generation {generation} serves instead; nobody answered for {unserved}")
        }
        None => format!("another generation served instead; nobody answered for {unserved}"),
    }
}

/// The new generation serves, and old ones still have workers.
pub fn serving(generation: u64, old: &Old) -> String {
    let old = match *old {
        Old::Retiring(old) => format!("generation {old} still serves too"),
        Old::Draining(old) => format!("generation {old} drains"),
        Old::Several(count) => format!("{count} old generations drain"),
    };
    format!("generation {generation}: serving; {old}")
}

/// The generations that hold up a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old {
    /// One that has not been told to stop.
    Retiring(u64),
    /// One that was.
    Draining(u64),
    /// So many.
    Several(usize),
}

/// How many connections old generations still have.
pub fn connections(count: usize) -> String {
    match count {
        1 => "1 connection".to_owned(),
        count => format!("{count} connections"),
    }
}

/// How a restart has succeeded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Success {
    pub generation: u64,
    /// The generation whose program it runs again, after a rollback.
    pub again: Option<u64>,
    /// It has served all the time: a rollback has put an end to what was to replace it.
    pub is_kept: bool,
    /// What the new generation is called, if somebody has said it.
    pub label: Option<String>,
    /// The worker of the generation that serves.
    pub pid: Option<i64>,
    /// How long its start took, in seconds.
    pub after: Option<f64>,
    /// The generation that serves, if that is another one by now.
    pub successor: Option<u64>,
    /// The old generations that nobody waits for.
    pub left: Option<Old>,
    /// The newest old generation that is gone, and how long that took, in seconds.
    pub gone: Option<(u64, f64)>,
    /// How long nobody answered, if the old generation had to stop first.
    pub unserved: Option<f64>,
}

impl Success {
    /// `generation 5 serves (pid 1234, ready after 0.84 s); generation 4 is gone (drained 3.1 s)`
    pub fn sentence(&self) -> String {
        let number = self.generation;
        let label = || self.label.as_ref().map(shortened);
        let pid = self.pid.map(|pid| format!("pid {pid}"));
        let ready = self
            .after
            .map(|seconds| format!("ready after {}", short_time(seconds)));
        let again = |number: u64| format!(" (generation {number} again)");
        let again = self.again.map(again).unwrap_or_default();
        let mut sentence = match self.successor {
            None if self.is_kept => {
                format!(
                    "generation {number} keeps serving{}",
                    in_brackets([label(), pid])
                )
            }
            None => format!(
                "generation {number}{again} serves{}",
                in_brackets([label(), pid, ready])
            ),
            Some(other) => format!(
                "generation {number} served{}, now generation {other} does{}",
                in_brackets([label(), ready]),
                in_brackets([pid])
            ),
        };
        if let Some(unserved) = self.unserved {
            let unserved = short_time(unserved);
            let old = self.gone.map_or_else(String::new, |(old, _)| {
                format!("generation {old} stopped first, ")
            });
            sentence.push_str(&format!("; {old}nobody answered for {unserved}"));
        } else if let Some((old, seconds)) = self.gone {
            sentence.push_str(&gone(old, seconds));
        }
        match self.left {
            None => {}
            Some(Old::Retiring(old) | Old::Draining(old)) => {
                sentence.push_str(&format!("; generation {old} is not waited for"));
            }
            Some(Old::Several(count)) => {
                sentence.push_str(&format!("; {count} old generations are not waited for"));
            }
        }
        sentence
    }
}

/// The old generation of a restart has exited, as the end of a sentence: `; generation 4 is gone (drained 3.1 s)`.
pub fn gone(old: u64, drained: f64) -> String {
    format!(
        "; generation {old} is gone (drained {})",
        short_time(drained)
    )
}

/// What is known of these: ` (pid 1234, ready after 0.84 s)`.
pub(super) fn in_brackets(parts: impl IntoIterator<Item = Option<String>>) -> String {
    let known: Vec<String> = parts.into_iter().flatten().collect();
    match known.is_empty() {
        true => String::new(),
        false => format!(" ({})", known.join(", ")),
    }
}

/// A server was stopped. The time is in seconds.
pub fn stopped(took: f64) -> String {
    format!("stopped ({})", short_time(took))
}

/// A server has reopened this log file.
pub fn reopened(log_file: Option<&str>, took: f64) -> String {
    let file = log_file.map_or_else(|| "the log file".to_owned(), shortened);
    format!("reopened {file} ({})", short_time(took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_deploy_says_so_in_one_line_with_its_figures() {
        let success = Success {
            generation: 5,
            pid: Some(1234),
            after: Some(0.84),
            gone: Some((4, 3.1)),
            ..Success::default()
        };
        let sentence = "generation 5 serves (pid 1234, ready after 0.84 s); generation 4 is gone (drained 3.1 s)";
        assert_eq!(success.sentence(), sentence);
        let first = Success {
            generation: 1,
            ..Success::default()
        };
        assert_eq!(first.sentence(), "generation 1 serves");
        let brief = Success {
            left: Some(Old::Draining(4)),
            gone: None,
            ..success.clone()
        };
        let sentence =
            "generation 5 serves (pid 1234, ready after 0.84 s); generation 4 is not waited for";
        assert_eq!(brief.sentence(), sentence);
        let alone = Success {
            unserved: Some(1.34),
            gone: Some((4, 0.0)),
            ..success.clone()
        };
        let sentence = "generation 5 serves (pid 1234, ready after 0.84 s); generation 4 stopped first, nobody answered for 1.3 s";
        assert_eq!(alone.sentence(), sentence);
        let crashed = Success {
            successor: Some(6),
            gone: None,
            ..success
        };
        let sentence = "generation 5 served (ready after 0.84 s), now generation 6 does (pid 1234)";
        assert_eq!(crashed.sentence(), sentence);
    }

    #[test]
    fn a_rollback_says_what_it_leads_to() {
        let kept = Success {
            generation: 4,
            pid: Some(1234),
            is_kept: true,
            gone: Some((5, 3.1)),
            ..Success::default()
        };
        let sentence =
            "generation 4 keeps serving (pid 1234); generation 5 is gone (drained 3.1 s)";
        assert_eq!(kept.sentence(), sentence);
        let again = Success {
            generation: 6,
            again: Some(4),
            after: Some(0.84),
            gone: Some((5, 3.1)),
            ..Success::default()
        };
        let sentence = "generation 6 (generation 4 again) serves (ready after 0.84 s); generation 5 is gone (drained 3.1 s)";
        assert_eq!(again.sentence(), sentence);
    }

    #[test]
    fn a_stop_and_a_reopened_file_have_a_line_with_the_time() {
        assert_eq!(stopped(0.8), "stopped (0.80 s)");
        let file = Some("/var/log/app\n.log");
        assert_eq!(
            reopened(file, 0.02),
            r"reopened /var/log/app\x0A.log (0.02 s)"
        );
        assert_eq!(reopened(None, 0.02), "reopened the log file (0.02 s)");
    }

    #[test]
    fn what_a_server_waits_for_drives_no_terminal() {
        assert_eq!(
            started(5, Some("GET /\n\x1b[2J")),
            r"generation 5: started, waiting for GET /\x0A\x1B[2J"
        );
    }
}
