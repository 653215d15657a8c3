//! How options may be spelled, as with Getopt::Long: in any case, shortened to a unique prefix, and with their value in the
//! same word or in the next one.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::iter::Peekable;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, ArgAction, Command};

use super::refusal::alternatives;
use crate::log::facility;
use crate::words::failure::Failure;
use crate::words::remedy;
use crate::words::text::quoted;

/// The normalized command line for clap: options as `--name=value`, then `--`, then the program.
pub struct Spelled {
    pub words: Vec<OsString>,
    /// The unknown option at the end of `words`, as typed.
    pub unknown: Option<String>,
}

/// Normalizes every option: in full, in lower case, and with its value in the same word.
pub fn spell_out(
    definition: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Spelled, Failure> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(word) = asked_in_a_word(&arguments) {
        return Ok(Spelled {
            words: vec![word.into()],
            unknown: None,
        });
    }
    let mut words = Vec::new();
    let mut rest = arguments.into_iter().peekable();
    let program = loop {
        let Some(word) = rest.next() else { break None };
        if word == "--" {
            break rest.next();
        }
        if !looks_like_option(&word) {
            break Some(word);
        }
        let typed = Typed::new(&word);
        let Some(option) = find(definition, &typed)? else {
            // clap knows what to suggest; nothing after this word matters any more.
            words.push(format!("--{}", typed.lower_case()).into());
            return Ok(Spelled {
                words,
                unknown: Some(typed.to_string()),
            });
        };
        let is_last = answers_at_once(option) && typed.value.is_none();
        words.push(in_one_word(option, value(option, typed, &mut rest)?));
        if is_last {
            return Ok(Spelled {
                words,
                unknown: None,
            });
        }
    };
    if let Some(program) = program {
        words.push("--".into());
        words.push(program);
        words.extend(rest);
    }
    Ok(Spelled {
        words,
        unknown: None,
    })
}

/// The option that a lone `help` or `version` means. A program of that name can be started with `--` before it.
fn asked_in_a_word(arguments: &[OsString]) -> Option<&'static str> {
    match arguments {
        [word] if word == "help" => Some("--help"),
        [word] if word == "version" => Some("--version"),
        _ => None,
    }
}

/// A lone `-` does not.
fn looks_like_option(word: &OsStr) -> bool {
    word.len() > 1 && word.as_bytes().starts_with(b"-")
}

/// A parsed option as typed. Shown without its value.
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

    fn lower_case(&self) -> String {
        self.name.to_string_lossy().to_ascii_lowercase()
    }

    /// `=VALUE`, or nothing.
    fn shown_value(&self) -> String {
        let shown = |value| format!("={}", quoted(value));
        self.value.as_ref().map(shown).unwrap_or_default()
    }
}

impl fmt::Display for Typed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut whole = OsString::from(&self.dashes);
        whole.push(&self.name);
        f.write_str(&quoted(whole))
    }
}

/// The option that is meant, or `None` if there is no such option.
fn find<'a>(definition: &'a Command, typed: &Typed) -> Result<Option<&'a Arg>, Failure> {
    if typed.dashes == "-"
        && let Some(option) = of_letter(definition, typed)
    {
        return Ok(Some(option));
    }
    let candidates = candidates(definition, &typed.lower_case());
    if typed.dashes == "-" {
        return Err(single_dash(typed, &candidates));
    }
    match candidates[..] {
        [] if typed.name.is_empty() => Err(Failure::usage(format!(
            "unknown option {typed}{}",
            typed.shown_value()
        ))),
        [] => Ok(None),
        [(_, option)] => Ok(Some(option)),
        [..] => Err(Failure::usage(format!(
            "cannot use {typed}: it could mean {}",
            alternatives(&names(&candidates))
        ))),
    }
}

/// The option that has this letter as well: `-h` or `-V`.
fn of_letter<'a>(definition: &'a Command, typed: &Typed) -> Option<&'a Arg> {
    let typed = typed.name.to_str().filter(|_| typed.value.is_none())?;
    let mut options = definition.get_arguments();
    options.find(|option| {
        let letter = option.get_short();
        letter.is_some_and(|letter| typed.chars().eq([letter]))
    })
}

/// The option with exactly this name, or else all that begin with it, in alphabetical order.
fn candidates<'a>(definition: &'a Command, name: &str) -> Vec<(&'a str, &'a Arg)> {
    if name.is_empty() {
        return Vec::new();
    }
    let options = definition.get_arguments();
    let mut candidates: Vec<_> = options
        .filter_map(|option| Some((option.get_long()?, option)))
        .filter(|(long, _)| long.starts_with(name))
        .collect();
    candidates.sort_unstable_by_key(|(long, _)| *long);
    // The shortest comes first: an exact match is that one.
    if candidates.first().is_some_and(|(long, _)| *long == name) {
        candidates.truncate(1);
    }
    candidates
}

fn names<'a>(candidates: &[(&'a str, &Arg)]) -> Vec<&'a str> {
    candidates.iter().map(|(name, _)| *name).collect()
}

fn single_dash(typed: &Typed, candidates: &[(&str, &Arg)]) -> Failure {
    let value = typed.shown_value();
    let failure = Failure::usage(format!(
        "cannot use {typed}{value}: options begin with two dashes"
    ));
    match candidates {
        [] => failure,
        [(name, _)] => failure.hint(remedy::write_instead(&format!("--{name}{value}"))),
        _ => failure.hint(remedy::write_instead(&alternatives(&names(candidates)))),
    }
}

/// The value from the same word or, if one is required, from the next.
fn value(
    option: &Arg,
    typed: Typed,
    rest: &mut Peekable<impl Iterator<Item = OsString>>,
) -> Result<Option<OsString>, Failure> {
    if typed.value.is_some() {
        return Ok(typed.value);
    }
    if needs_value(option) {
        // In Server::Starter an option would take the next option as its value.
        return match rest.next_if(|next| !looks_like_option(next)) {
            Some(value) => Ok(Some(value)),
            None => Err(no_value(option, &typed, rest.peek())),
        };
    }
    if option.get_id() == "syslog"
        && let Some(next) = rest.peek()
    {
        refuse_facility_apart(next)?;
    }
    Ok(None)
}

/// An option with an optional value takes it only after an equals sign, never from the next word.
fn needs_value(option: &Arg) -> bool {
    let may_stand_alone = option
        .get_num_args()
        .is_some_and(|range| range.min_values() == 0);
    option.get_action().takes_values() && !may_stand_alone
}

fn no_value(option: &Arg, typed: &Typed, next: Option<&OsString>) -> Failure {
    let failure = Failure::usage(format!("cannot use {typed}: its value is missing"));
    match next {
        Some(next) if next != "--" => {
            let (name, next) = (option.get_id(), quoted(next));
            failure.hint(remedy::value_with_a_dash(name.as_str(), &next))
        }
        _ => failure,
    }
}

/// `--syslog local0` would start a server program named local0. To do that, use `--`.
fn refuse_facility_apart(next: &OsStr) -> Result<(), Failure> {
    match next.to_str().filter(|name| facility(name).is_some()) {
        Some(name) => Err(Failure::usage(format!(
            "cannot use --syslog {name}: a facility needs an equals sign"
        ))
        .hint(remedy::facility_or_program(name))),
        None => Ok(()),
    }
}

/// Whether nothing after this option matters.
fn answers_at_once(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::Help | ArgAction::Version)
}

fn in_one_word(option: &Arg, value: Option<OsString>) -> OsString {
    let mut word = OsString::from(format!("--{}", option.get_id()));
    if let Some(value) = value {
        word.push("=");
        word.push(value);
    }
    word
}
