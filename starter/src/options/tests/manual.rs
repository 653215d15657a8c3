//! The manual pages and the completions in `share`, held against the options.
//!
//! What is generated is written again with `E2E_WRITE_MANUAL=1 cargo test -p starter --lib manual`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, ValueHint};
use clap_complete::{Shell, generate};

use super::parse_words;
use crate::options::definition::definition;
use crate::options::preset;

const PAGES: [&str; 4] = [
    "binder.conf.5",
    "start_server-binder.8",
    "start_server-protocol.7",
    "start_server.1",
];

/// Before the options in `start_server.1`, and behind them.
const BEGIN: &str =
    ".\\\" The options, from their definition. What stands below \"by hand\" is kept.\n";
const END: &str = ".\\\" The end of the options.\n";
/// Between what is generated for an option and what only the manual says.
const BY_HAND: &str = ".\\\" by hand\n";

fn shared(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("share")
        .join(name)
}

fn page(name: &str) -> String {
    let path = shared("man").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

#[track_caller]
fn assert_current(path: &Path, wanted: &str) {
    if std::env::var_os("E2E_WRITE_MANUAL").is_some() {
        fs::write(path, wanted).expect("cannot write it");
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    let differs = wanted.lines().zip(found.lines()).find(|(a, b)| a != b);
    assert!(
        found == wanted,
        "{path:?} is not that of the options: E2E_WRITE_MANUAL=1 cargo test -p starter --lib manual; {differs:?}"
    );
}

/// The name of an option's entry.
fn entry(option: &Arg) -> String {
    format!(".\\\" option {}\n", option.get_id())
}

fn named() -> Vec<Arg> {
    let definition = definition();
    let named = definition.get_arguments().filter(|one| !one.is_hide_set());
    named.cloned().collect()
}

/// What the page has by hand for this option.
fn by_hand<'a>(options: &'a str, option: &Arg) -> &'a str {
    let Some((_, rest)) = options.split_once(&entry(option)) else {
        return "";
    };
    let (entry, _) = rest.split_once(".\\\" option ").unwrap_or((rest, ""));
    let (_, text) = entry.split_once(BY_HAND).unwrap_or_default();
    // The heading of the next group.
    text.rfind(".SS ").map_or(text, |end| &text[..end])
}

/// A word as roff prints it, with the dashes of an option as they are typed.
fn word(text: &str) -> String {
    let is_option = text.trim_start_matches(['(', '"']).starts_with('-');
    let text = text.replace('\\', "\\e");
    match is_option {
        true => text.replace('-', "\\-"),
        false => text,
    }
}

fn line(text: &str) -> String {
    let words: Vec<String> = text.split(' ').map(word).collect();
    let line = words.join(" ");
    match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}\n"),
        false => format!("{line}\n"),
    }
}

/// The tag of an option: how it is typed.
fn tag(option: &Arg) -> String {
    let long = option.get_long().expect("every option has a name");
    let long = format!("\\fB\\-\\-{}\\fR", long.replace('-', "\\-"));
    let short = option
        .get_short()
        .map(|short| format!("\\fB\\-{short}\\fR, "));
    let value = option.get_value_names().unwrap_or_default().first();
    let value = value.map(|value| match option.is_require_equals_set() {
        true => format!("[=\\fI{value}\\fR]"),
        false => format!("=\\fI{value}\\fR"),
    });
    let value = value.filter(|_| option.get_action().takes_values());
    format!(
        "{}{long}{}\n",
        short.unwrap_or_default(),
        value.unwrap_or_default()
    )
}

/// The help of an option. Lines in two columns, as of `--ready`, become a list.
fn help(option: &Arg) -> String {
    let help = option
        .get_help()
        .expect("every option has a help")
        .to_string();
    let mut text = String::new();
    let mut is_list = false;
    for one in help.lines() {
        match one.split_once("  ") {
            Some((name, meaning)) => {
                text += if is_list { "" } else { ".RS\n" };
                is_list = true;
                text += &format!(".TP 15\n\\fB{name}\\fR\n{}", line(meaning.trim_start()));
            }
            None => text += &line(one),
        }
    }
    text + if is_list { ".RE\n" } else { "" }
}

/// Everything between the two marks.
fn options(present: &str) -> String {
    let mut text = String::new();
    let mut group = None;
    for option in named() {
        let heading = option.get_help_heading().map(str::to_owned);
        if heading != group {
            text += &format!(
                ".SS {}\n",
                heading.as_deref().expect("every option has one")
            );
            group = heading;
        }
        text += &format!("{}.TP\n{}{}", entry(&option), tag(&option), help(&option));
        let kept = by_hand(present, &option);
        if !kept.is_empty() {
            text += &format!("{BY_HAND}{kept}");
        }
    }
    text
}

#[test]
fn the_page_has_the_options_of_the_program() {
    let page = page("start_server.1");
    let (before, rest) = page.split_once(BEGIN).expect("no options");
    let (present, after) = rest.split_once(END).expect("no end of the options");
    let wanted = format!("{before}{BEGIN}{}{END}{after}", options(present));
    assert_current(&shared("man/start_server.1"), &wanted);
    // Nothing that is kept by hand belongs to an option that is gone.
    for (start, _) in present.match_indices(".\\\" option ") {
        let name = present[start..].lines().next().unwrap_or_default();
        let is_there = |option: &Arg| entry(option).trim_end() == name;
        assert!(named().iter().any(is_there), "{name}");
    }
}

/// As clap keeps it, without its feature `string`: a test may leak a few words.
fn lasting(word: &str) -> &'static str {
    word.to_owned().leak()
}

/// What can follow an option, as far as its value's name says it.
fn with_values(option: Arg) -> Arg {
    let name = option.get_value_names().unwrap_or_default().first();
    let name = name
        .map(|name| name.as_str().to_owned())
        .unwrap_or_default();
    match name.as_str() {
        "NAME|list" => {
            let list = preset::list();
            let names = list.lines().filter_map(|line| line.split(' ').next());
            let names: Vec<&'static str> = names.chain([preset::LIST]).map(lasting).collect();
            option.value_parser(PossibleValuesParser::new(names))
        }
        "0|1" | "overlap|stop-first" | "tcp|unix" | "stdout|stderr" | "rfc3164|rfc5424" => {
            let values: Vec<&'static str> = name.split('|').map(lasting).collect();
            option.value_parser(PossibleValuesParser::new(values))
        }
        "STYLE[,STYLE]" => {
            option.value_parser(["systemd", "unicorn", "nginx", "einhorn", "php-fpm"])
        }
        "DIR" => option.value_hint(ValueHint::DirPath),
        "USER" => option.value_hint(ValueHint::Username),
        "COMMAND" => option.value_hint(ValueHint::CommandString),
        name if name == "FILE" || name.starts_with("PATH") => {
            option.value_hint(ValueHint::FilePath)
        }
        _ => option,
    }
}

fn completions(shell: Shell) -> String {
    let mut command = Command::new("start_server")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(named().into_iter().map(with_values));
    // The program and its words, which only zsh can tell from a file.
    if shell == Shell::Zsh {
        let program = Arg::new("program").num_args(1..).trailing_var_arg(true);
        command = command.arg(program.value_hint(ValueHint::CommandWithArguments));
    }
    let mut script = Vec::new();
    generate(shell, &mut command, "start_server", &mut script);
    String::from_utf8(script).expect("a script is text")
}

#[test]
fn the_completions_have_the_options_of_the_program() {
    for (shell, name) in [
        (Shell::Bash, "start_server.bash"),
        (Shell::Zsh, "_start_server"),
        (Shell::Fish, "start_server.fish"),
    ] {
        assert_current(&shared("completions").join(name), &completions(shell));
    }
}

/// What a page shows as typed or printed: the lines between `.EX` and `.EE`.
fn examples(page: &str) -> Vec<String> {
    let mut examples = Vec::new();
    for block in page.split(".EX\n").skip(1) {
        let (block, _) = block.split_once(".EE\n").expect("no end of an example");
        let text = [
            ("\\&", ""),
            ("\\-", "-"),
            ("\\(aq", "'"),
            ("\\(ha", "^"),
            ("\\(ti", "~"),
            ("\\(ga", "`"),
            ("\\e", "\\"),
        ];
        let block = text
            .iter()
            .fold(block.to_owned(), |text, (from, to)| text.replace(from, to));
        examples.extend(block.replace("\\\n", " ").lines().map(str::to_owned));
    }
    examples
}

/// The words of a command line, if this is one of start_server.
fn command(line: &str) -> Option<Vec<&str>> {
    // With its path, or as a unit names it.
    let is_command = line.starts_with("start_server ")
        || ["/", "=", "=+"]
            .iter()
            .any(|before| line.contains(&format!("{before}start_server --")));
    let (_, words) = line.split_once("start_server ").filter(|_| is_command)?;
    Some(words.split_whitespace().collect())
}

#[test]
fn every_command_line_in_the_pages_is_valid() {
    let mut checked = 0;
    for name in PAGES {
        for line in examples(&page(name)) {
            if let Some(words) = command(&line) {
                assert!(parse_words(&words).is_ok(), "{name}: {line}");
                checked += 1;
            }
        }
    }
    assert!(checked >= 10, "{checked}");
}

/// The sections of a page, and those that its text refers to, each with the page that should have it.
fn sections_and_references(name: &str) -> (Vec<String>, Vec<(String, String)>) {
    let text = page(name);
    let headings = text.lines().filter_map(|line| {
        let heading = line.strip_prefix(".SH ").or(line.strip_prefix(".SS "))?;
        Some(heading.replace("\\-", "-"))
    });
    let headings = headings.collect();
    let text = text.replace('\n', " ").replace("\\-", "-");
    let mut references = Vec::new();
    let parts: Vec<&str> = text.split("\\(lq").collect();
    for (before, after) in parts.iter().zip(&parts[1..]) {
        let section = after.split("\\(rq").next().unwrap_or_default();
        // `\fBstart_server-binder\fR(8), ` right before it.
        let elsewhere = before.strip_suffix("), ").and_then(|before| {
            let (before, number) = before.rsplit_once("\\fR(")?;
            let (_, page) = before.rsplit_once("\\fB")?;
            Some(format!("{page}.{number}"))
        });
        references.push((elsewhere.unwrap_or(name.to_owned()), section.to_owned()));
    }
    (headings, references)
}

#[test]
fn every_section_that_is_referred_to_is_there() {
    let sections = |page: &str| sections_and_references(page).0;
    let mut checked = 0;
    for name in PAGES {
        for (page, section) in sections_and_references(name).1 {
            assert!(
                sections(&page).contains(&section),
                "{name}: {page}, {section}"
            );
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
    // `start_server(1), INSTALLATION`: those in the README are in capitals.
    let readme = include_str!("../../../../README.md").replace('\n', " ");
    let mut checked = 0;
    for name in PAGES {
        let (page, number) = name.rsplit_once('.').unwrap();
        for rest in readme.split(&format!("{page}({number}), ")).skip(1) {
            let is_capital = |it: &char| it.is_ascii_uppercase() || *it == ' ';
            let section: String = rest.chars().take_while(is_capital).collect();
            assert!(sections(name).contains(&section), "{name}: {section}");
            checked += 1;
        }
    }
    assert!(checked >= 4, "{checked}");
}

/// The names of all fields of the structures in a file of the sources whose names begin like this.
fn fields<'a>(source: &'a str, structure: &str) -> Vec<&'a str> {
    let (source, _) = source.split_once("#[cfg(test)]").unwrap_or((source, ""));
    let start = format!("struct {structure}");
    let bodies = source.split(&start).skip(1);
    let bodies = bodies.filter_map(|rest| rest.split_once("\n}").map(|(body, _)| body));
    let lines = bodies.flat_map(|body| body.lines().skip(1));
    let fields = lines.filter_map(|line| line.trim().split_once(": "));
    let fields = fields.map(|(name, _)| name.trim_start_matches("pub "));
    fields
        .filter(|name| !name.starts_with(['/', '#', '_']))
        .collect()
}

#[test]
fn the_pages_name_everything_that_programs_read() {
    let page = page("start_server-protocol.7");
    let file = fields(include_str!("../../status/view.rs"), "");
    let status = fields(include_str!("../../client/for_programs.rs"), "Json");
    let verdict = fields(include_str!("../../client/verdict.rs"), "Json");
    let metrics = include_str!("../../client/for_programs.rs").split('"');
    let metrics =
        metrics.filter(|text| text.ends_with("_seconds") || text.starts_with("listener_"));
    let all: Vec<&str> = [file, status, verdict, metrics.collect()].concat();
    assert!(all.len() > 120, "{}", all.len());
    for name in all {
        assert!(page.contains(&format!("\\fB{name}\\fR")), "{name}");
    }
}

#[test]
fn every_page_is_listed_here() {
    let found = fs::read_dir(shared("man")).expect("no pages").flatten();
    let mut found: Vec<_> = found.map(|entry| entry.file_name()).collect();
    found.sort();
    assert_eq!(found, PAGES.map(OsStr::new));
}
