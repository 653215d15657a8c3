//! What `--preset=NAME` sets: the options that one server program needs for restarts without a lost request.
//!
//! `--ready` is among them only where a server serves every listener that it is given, whatever its configuration says:
//! otherwise a good version would be refused because nobody answers at the probe. Each line was tried with the server
//! itself, under load.

use std::ffi::OsStr;

use super::refusal::refused;
use crate::words::failure::Failure;

/// The name that prints the table instead of starting a server.
pub const LIST: &str = "list";

/// One server program.
#[derive(Debug)]
pub struct Preset {
    name: &'static str,
    /// Options without their dashes, each with its value.
    options: &'static [(&'static str, &'static str)],
    why: &'static str,
}

const PRESETS: [Preset; 12] = [
    Preset {
        name: "gunicorn",
        options: &[
            ("fd-env", "systemd"),
            ("signal-on-hup", "TERM"),
            ("signal-on-term", "TERM"),
            ("ready", "accept"),
        ],
        why: "TERM finishes what it has begun; QUIT would not",
    },
    Preset {
        name: "h2o",
        options: &[("signal-on-hup", "TERM"), ("signal-on-term", "TERM")],
        why: "it reads SERVER_STARTER_PORT, and TERM finishes what it has begun",
    },
    Preset {
        name: "hypercorn",
        options: &[("signal-on-hup", "TERM"), ("signal-on-term", "TERM")],
        why: "it takes fd://3 by its own --bind, and TERM finishes what it has begun",
    },
    Preset {
        name: "nginx",
        options: &[
            ("fd-env", "nginx"),
            ("signal-on-hup", "QUIT"),
            ("signal-on-term", "QUIT"),
        ],
        why: "TERM cuts off requests and downloads, QUIT finishes them",
    },
    Preset {
        name: "node",
        options: &[("signal-on-hup", "TERM"), ("signal-on-term", "TERM")],
        why: "its code reads SERVER_STARTER_PORT, and closes its servers on TERM",
    },
    Preset {
        name: "php-fpm",
        options: &[
            ("fd-env", "php-fpm"),
            ("signal-on-hup", "QUIT"),
            ("signal-on-term", "QUIT"),
        ],
        why: "QUIT finishes requests, within process_control_timeout",
    },
    Preset {
        name: "plain",
        options: &[
            ("fd-env", "systemd"),
            ("signal-on-hup", "TERM"),
            ("signal-on-term", "TERM"),
        ],
        why: "it reads LISTEN_FDS or SERVER_STARTER_PORT, and drains on TERM",
    },
    Preset {
        name: "puma",
        options: &[
            ("fd-env", "systemd"),
            ("signal-on-hup", "TERM"),
            ("signal-on-term", "TERM"),
        ],
        why: "TERM finishes what it has begun, with `queue_requests false`",
    },
    Preset {
        name: "starlet",
        options: &[
            ("signal-on-hup", "TERM"),
            ("signal-on-term", "TERM"),
            ("ready", "accept"),
        ],
        why: "it reads SERVER_STARTER_PORT, and TERM finishes what it has begun",
    },
    Preset {
        name: "starman",
        options: &[
            ("signal-on-hup", "QUIT"),
            ("signal-on-term", "QUIT"),
            ("ready", "accept"),
        ],
        why: "TERM cuts off responses, QUIT finishes them",
    },
    Preset {
        name: "unicorn",
        options: &[
            ("fd-env", "unicorn"),
            ("signal-on-hup", "QUIT"),
            ("signal-on-term", "QUIT"),
            ("ready", "accept"),
        ],
        why: "TERM cuts off requests, QUIT finishes them",
    },
    Preset {
        name: "uvicorn",
        options: &[("signal-on-hup", "TERM"), ("signal-on-term", "TERM")],
        why: "it takes the first listener by its own --fd=3, and TERM finishes what it has begun",
    },
];

/// The preset of this name, which is not that of the list.
pub fn find(name: &OsStr) -> Result<&'static Preset, Failure> {
    let found = PRESETS.iter().find(|preset| name == preset.name);
    found.ok_or_else(|| {
        let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        let cause = format!(
            "the presets are {}; --preset={LIST} shows them",
            names.join(", ")
        );
        refused("preset", name, &cause)
    })
}

/// The table: a line for each preset.
pub fn list() -> String {
    let longest = PRESETS.iter().map(|preset| preset.name.len()).max();
    let width = longest.unwrap_or_default();
    let line = |preset: &Preset| {
        let (name, options, why) = (preset.name, preset.options(), preset.why);
        format!("{name:width$}  {options}: {why}\n")
    };
    PRESETS.iter().map(line).collect()
}

impl Preset {
    /// What it sets for this option.
    pub fn value(&self, option: &str) -> Option<&'static OsStr> {
        let mut options = self.options.iter();
        let found = options.find(|(name, _)| *name == option);
        found.map(|(_, value)| OsStr::new(*value))
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its options, as on a command line.
    pub fn options(&self) -> String {
        self.words().collect::<Vec<String>>().join(" ")
    }

    /// Whether a message names one of its options as it sets them.
    pub fn is_in(&self, message: &str) -> bool {
        self.words().any(|word| message.contains(&word))
    }

    fn words(&self) -> impl Iterator<Item = String> {
        let options = self.options.iter();
        options.map(|(name, value)| format!("--{name}={value}"))
    }
}
