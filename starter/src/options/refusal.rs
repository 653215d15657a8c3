//! Why an option cannot be used, in words.

use std::ffi::OsStr;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::words::failure::Failure;
use crate::words::remedy;
use crate::words::text::quoted;

/// `--option` cannot be used, whatever its value.
pub fn unusable(option: &str, cause: &str) -> Failure {
    Failure::usage(format!("cannot use --{option}: {cause}"))
}

/// `--option` cannot be used with this value.
pub fn refused(option: &str, value: &OsStr, cause: &str) -> Failure {
    Failure::usage(format!("cannot use --{option}={}: {cause}", quoted(value)))
}

/// The cause of a refusal if one of these is missing.
pub fn lacks(needed: &[&str]) -> String {
    format!("it needs {} as well", alternatives(needed))
}

/// `--a, --b or --c`
pub fn alternatives(names: &[&str]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        text.push_str(match index {
            0 => "--",
            _ if index + 1 == names.len() => " or --",
            _ => ", --",
        });
        text.push_str(name);
    }
    text
}

/// Turns an error of clap into one line. `unknown` is the unknown option as typed.
pub fn of_clap(error: &clap::Error, unknown: Option<&str>) -> Failure {
    let context = |kind| match error.get(kind) {
        // An option is followed by the name of its value.
        Some(ContextValue::String(text)) => text.split(' ').next(),
        _ => None,
    };
    match (error.kind(), context(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(option)) => {
            let failure = Failure::usage(format!("unknown option {}", unknown.unwrap_or(option)));
            match context(ContextKind::SuggestedArg) {
                Some(suggestion) => failure.hint(remedy::did_you_mean(suggestion)),
                None => failure,
            }
        }
        (ErrorKind::TooManyValues, Some(option)) => {
            let failure = Failure::usage(format!("cannot use {option}: it takes no value"));
            match option {
                // To Server::Starter it is short for that one.
                "--status" => failure.hint(remedy::did_you_mean("--status-file")),
                _ => failure,
            }
        }
        // No other kind is known to occur, because the words were normalized before.
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            Failure::usage(line.strip_prefix("error: ").unwrap_or(line))
        }
    }
}
