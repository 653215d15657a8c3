//! How options may be written: in any case, by a unique beginning, with their value in the same word or in the next one,
//! as with Getopt::Long.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, ArgAction, Command};

use super::refusal::alternatives;
use crate::log::facility;
use crate::words::failure::Failure;
use crate::words::text::printable;

/// The command line in the one spelling that is left to clap: `--name=value`, then `--`, then the program.
pub struct Words {
    pub for_clap: Vec<OsString>,
    /// The unknown option at the end of `for_clap`, as typed.
    pub unknown: Option<String>,
}

/// Spells every option out in full and in lower case, with its value in the same word.
pub fn spell_out(
    definition: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Words, Failure> {
    let mut for_clap = Vec::new();
    let mut rest = arguments.into_iter().peekable();
    let program = loop {
        let Some(word) = rest.next() else { break None };
        if word == "--" {
            break rest.next();
        }
        if !looks_like_option(&word) {
            break Some(word);
        }
        let Typed {
            dashes,
            name,
            value,
        } = Typed::new(&word);
        let shown = format!("{dashes}{}", printable(&name));
        let found = look_up(definition, &name);
        if dashes == "-" {
            return Err(single_dash(&shown, &found, value.as_deref()));
        }
        let option = match found {
            Found::One(option) => option,
            Found::Several(names) => {
                return Err(Failure::usage(format!(
                    "cannot use {shown}: it could mean {}",
                    alternatives(&names)
                )));
            }
            Found::None => {
                if name.is_empty() {
                    return Err(Failure::usage(format!(
                        "unknown option {}",
                        printable(&word)
                    )));
                }
                // clap knows the suggestion; nothing behind this word matters any more.
                for_clap.push(format!("--{}", name.to_string_lossy().to_ascii_lowercase()).into());
                return Ok(Words {
                    for_clap,
                    unknown: Some(shown),
                });
            }
        };
        let action = option.get_action();
        let is_last_word =
            matches!(action, ArgAction::Help | ArgAction::Version) && value.is_none();
        let value = match value {
            Some(value) => Some(value),
            None if needs_value(option) => {
                // Unlike Server::Starter, whose options take the next option as their value.
                let Some(next) = rest.next_if(|next| !looks_like_option(next)) else {
                    return Err(no_value(option, &shown, rest.peek()));
                };
                Some(next)
            }
            None => match rest.peek() {
                Some(next) if option.get_id() == "syslog" => {
                    refuse_facility_apart(next)?;
                    None
                }
                _ => None,
            },
        };
        let mut spelled = OsString::from(format!("--{}", option.get_id()));
        if let Some(value) = value {
            spelled.push("=");
            spelled.push(value);
        }
        for_clap.push(spelled);
        if is_last_word {
            return Ok(Words {
                for_clap,
                unknown: None,
            });
        }
    };
    if let Some(program) = program {
        for_clap.push("--".into());
        for_clap.push(program);
        for_clap.extend(rest);
    }
    Ok(Words {
        for_clap,
        unknown: None,
    })
}

/// A facility behind a blank would be taken for the server program; a program of that name follows two dashes.
fn refuse_facility_apart(next: &OsStr) -> Result<(), Failure> {
    match next.to_str().filter(|name| facility(name).is_some()) {
        Some(name) => Err(Failure::usage(format!(
            "cannot use --syslog {name}: a facility follows an equals sign"
        ))
        .hint(format!(
            "write --syslog={name}, or -- before a server program of that name"
        ))),
        None => Ok(()),
    }
}

/// An option that may stand alone takes a value only behind its `=`, never the next word.
fn needs_value(option: &Arg) -> bool {
    let may_stand_alone = option
        .get_num_args()
        .is_some_and(|range| range.min_values() == 0);
    option.get_action().takes_values() && !may_stand_alone
}

/// A lone `-` does not.
fn looks_like_option(word: &OsStr) -> bool {
    word.len() > 1 && word.as_bytes().starts_with(b"-")
}

/// An option, taken apart as it was typed.
struct Typed {
    dashes: &'static str,
    name: OsString,
    value: Option<OsString>,
}

impl Typed {
    fn new(word: &OsStr) -> Typed {
        let bytes = word.as_bytes();
        let (dashes, bytes) = match bytes.strip_prefix(b"--") {
            Some(bytes) => ("--", bytes),
            None => ("-", bytes.strip_prefix(b"-").unwrap_or(bytes)),
        };
        let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let mut halves = bytes.splitn(2, |byte| *byte == b'=');
        let name = owned(halves.next().unwrap_or_default());
        Typed {
            dashes,
            name,
            value: halves.next().map(owned),
        }
    }
}

enum Found<'a> {
    One(&'a Arg),
    /// Their names.
    Several(Vec<&'a str>),
    None,
}

/// Finds an option by its name, or by the beginning of it, in any case.
fn look_up<'a>(definition: &'a Command, name: &OsStr) -> Found<'a> {
    let name = name.to_string_lossy().to_ascii_lowercase();
    let named = || {
        definition
            .get_arguments()
            .filter_map(|option| Some((option.get_long()?, option)))
    };
    if let Some((_, option)) = named().find(|(long, _)| *long == name) {
        return Found::One(option);
    }
    if name.is_empty() {
        return Found::None;
    }
    let mut candidates: Vec<_> = named()
        .filter(|(long, _)| long.starts_with(&name))
        .collect();
    match candidates.as_slice() {
        [] => Found::None,
        [(_, option)] => Found::One(option),
        _ => {
            candidates.sort_by_key(|(long, _)| *long);
            Found::Several(candidates.into_iter().map(|(long, _)| long).collect())
        }
    }
}

fn single_dash(shown: &str, found: &Found<'_>, value: Option<&OsStr>) -> Failure {
    let value = value
        .map(|value| format!("={}", printable(value)))
        .unwrap_or_default();
    let failure = Failure::usage(format!(
        "cannot use {shown}{value}: the name of an option follows two dashes"
    ));
    match found {
        Found::One(option) => failure.hint(format!("write --{}{value}", option.get_id())),
        Found::Several(names) => failure.hint(format!("write {}", alternatives(names))),
        Found::None => failure,
    }
}

fn no_value(option: &Arg, shown: &str, next: Option<&OsString>) -> Failure {
    let failure = Failure::usage(format!("cannot use {shown}: its value is missing"));
    match next {
        Some(next) if next != "--" => {
            let (name, next) = (option.get_id(), printable(next));
            failure.hint(format!(
                "a value that starts with a dash is written --{name}={next}"
            ))
        }
        _ => failure,
    }
}
