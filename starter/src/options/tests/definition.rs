use clap::Arg;

use super::{parse_words, printed};
use crate::options::definition::definition;

#[test]
fn the_definition_is_consistent() {
    definition().debug_assert();
}

#[test]
fn the_version_is_one_line() {
    let version = concat!("start_server ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(printed(&["--version"]), version);
    assert_eq!(printed(&["-V"]), version);
    assert_eq!(printed(&["version"]), version);
    assert_eq!(printed(&["--strict", "-V", "--unknown"]), version);
    assert_eq!(printed(&["--VERS", "--unknown"]), version);
    assert_eq!(printed(&["--port=0", "--ver", "--", "prog"]), version);
}

#[test]
fn the_help_shows_every_option_in_80_columns() {
    let help = printed(&["--help"]);
    assert_eq!(help, printed(&["--HE", "prog"]));
    for asked in ["-h", "help"] {
        assert_eq!(help, printed(&[asked]), "{asked}");
    }
    let end = "  start_server --restart --pid-file=app.pid --timeout=60\n\nThe manual: man start_server\n";
    assert!(help.ends_with(end), "{help}");
    assert!(
        help.contains("Usage: start_server [options] -- server-prog server-arg1 server-arg2 ...\n"),
        "{help}"
    );
    for line in help.lines() {
        assert!(line.len() <= 80, "{line}");
        assert_eq!(line, line.trim_end());
    }
    let definition = definition();
    for long in definition.get_arguments().filter_map(Arg::get_long) {
        assert!(help.contains(&format!("--{long}")), "{long}");
    }
    let headings: Vec<_> = help
        .lines()
        .filter(|line| line.ends_with(':') && !line.starts_with(' '))
        .collect();
    assert_eq!(
        headings,
        [
            "Listening:",
            "Program:",
            "Restarting:",
            "Many servers:",
            "Readiness:",
            "Files and logging:",
            "Syslog:",
            "Privileges:",
            "Commands:",
            "Signals:",
            "Exit codes:",
            "Examples:"
        ]
    );
}

const README: &str = include_str!("../../../../README.md");

/// The code within the text of the README, and the lines of its blocks: each as the README has it.
fn code() -> (Vec<&'static str>, Vec<String>) {
    let (mut spans, mut lines) = (Vec::new(), Vec::new());
    for (number, part) in README.split("```").enumerate() {
        match number % 2 {
            0 => spans.extend(part.split('`').skip(1).step_by(2)),
            _ => lines.extend(part.replace("\\\n", " ").lines().map(str::to_owned)),
        }
    }
    (spans, lines)
}

#[test]
fn every_command_line_in_the_readme_is_valid() {
    let (spans, lines) = code();
    // What the shell puts in for root only.
    let lines = lines.iter().map(|line| match line.split_once("$([") {
        Some((before, rest)) => {
            let (_, after) = rest.split_once("nobody)").unwrap();
            format!("{before}--user=nobody{after}")
        }
        None => line.clone(),
    });
    let mut checked = 0;
    for line in lines.chain(spans.iter().map(|&span| span.to_owned())) {
        // With its path, or as a unit names it.
        let is_within = ["/", "=", "=+"]
            .iter()
            .any(|before| line.contains(&format!("{before}start_server --")));
        if !line.starts_with("start_server ") && !is_within || line == BEFORE_AN_APPLICATION {
            continue;
        }
        let (_, command) = line.split_once("start_server ").unwrap();
        let words: Vec<&str> = command.split_whitespace().collect();
        assert!(parse_words(&words).is_ok(), "{line}");
        checked += 1;
    }
    assert_eq!(checked, 17);
}

const BEFORE_AN_APPLICATION: &str = "start_server --port=127.0.0.1:8080 --pid-file=/run/app/pid";

#[test]
fn every_application_in_the_readme_is_one_of_the_manual() {
    let (spans, _) = code();
    assert!(spans.contains(&BEFORE_AN_APPLICATION));
    let (_, before) = BEFORE_AN_APPLICATION.split_once(' ').unwrap();
    let page = include_str!("../../../share/man/start_server.1");
    let (_, section) = page.split_once(".SH APPLICATIONS\n").unwrap();
    let (section, _) = section.split_once("\n.SH ").unwrap();
    let section = section.replace("\\-", "-").replace("\\&", "");
    let applications = spans
        .iter()
        .filter(|span| span.starts_with("--preset=") && span.contains(" -- "));
    let mut checked = 0;
    for application in applications {
        let words = before.split(' ').chain(application.split(' '));
        let words: Vec<&str> = words.collect();
        assert!(parse_words(&words).is_ok(), "{application}");
        let in_page = format!("\n\\fB{application}\\fR\n");
        assert!(section.contains(&in_page), "{application}");
        checked += 1;
    }
    assert_eq!(checked, 12);
}

/// Those of server programs, which the table of applications mentions.
const OPTIONS_OF_OTHERS: [&str; 2] = ["--listen", "--bind"];

#[test]
fn every_option_that_the_readme_names_exists() {
    let definition = definition();
    let (spans, _) = code();
    let names = spans.iter().filter(|span| span.starts_with("--"));
    let names = names.map(|span| span.split(['=', ' ']).next().unwrap());
    let mut checked = 0;
    for name in names.filter(|name| !OPTIONS_OF_OTHERS.contains(name)) {
        let exists = |one: &Arg| one.get_long() == name.strip_prefix("--");
        assert!(definition.get_arguments().any(exists), "{name}");
        checked += 1;
    }
    assert!(checked > 30, "{checked}");
}
