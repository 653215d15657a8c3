//! Command lines, and what is made of them.

mod checks;
mod commands;
mod definition;
mod logging;
mod manual;
mod preset;
mod settings;
mod spelling;
mod units;
mod values;

use std::ffi::OsString;

use super::{Invocation, Options, parse};
use crate::client;
use crate::words::failure::{Failure, Status};

pub fn parse_words(words: &[&str]) -> Result<Invocation, Failure> {
    parse(words.iter().map(OsString::from))
}

pub fn started(words: &[&str]) -> Options {
    match parse_words(words) {
        Ok(Invocation::Start(options)) => *options,
        other => panic!("{words:?}: {other:?}"),
    }
}

/// With a program behind the options.
pub fn with(options: &[&str]) -> Options {
    started(&[options, &["--", "prog"]].concat())
}

pub fn stopped(options: &[&str]) -> client::Settings {
    match parse_words(&[&["--stop", "--pid-file=/p"], options].concat()) {
        Ok(Invocation::Stop(options)) => options,
        other => panic!("{options:?}: {other:?}"),
    }
}

pub fn printed(words: &[&str]) -> String {
    match parse_words(words) {
        Ok(Invocation::Print(text)) => text,
        other => panic!("{words:?}: {other:?}"),
    }
}

pub fn error(words: &[&str]) -> String {
    match parse_words(words) {
        Err(failure) => {
            assert_eq!(failure.status, Status::Usage, "{words:?}");
            failure.to_string()
        }
        other => panic!("{words:?}: {other:?}"),
    }
}

pub fn names(options: &Options) -> Vec<&str> {
    options
        .listeners
        .ports
        .iter()
        .map(|port| port.name.as_str())
        .collect()
}
