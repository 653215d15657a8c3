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

#[test]
fn the_readme_has_a_row_for_every_option() {
    let rows: Vec<&str> = README
        .lines()
        .filter(|line| line.starts_with("| `--"))
        .collect();
    for option in definition().get_arguments().filter_map(Arg::get_long) {
        // In the first column: the others may mention it.
        let named = |row: &&&str| {
            let column = row.split('|').nth(1).unwrap();
            column.contains(&format!("`--{option}`")) || column.contains(&format!("`--{option}="))
        };
        assert_eq!(rows.iter().filter(named).count(), 1, "--{option}");
    }
    for row in &rows {
        let name = row
            .trim_start_matches("| `--")
            .split(['=', '`'])
            .next()
            .unwrap();
        assert!(
            definition()
                .get_arguments()
                .any(|one| one.get_long() == Some(name)),
            "{row}"
        );
    }
}

#[test]
fn every_command_line_in_the_readme_is_valid() {
    let text = README.replace("\\\n", " ");
    // What the shell puts in for root only.
    let substitution = text.find("$([").map(|start| {
        let end = text[start..].find(") --port").unwrap();
        text[start..=start + end].to_owned()
    });
    let text = text.replace(&substitution.unwrap(), "--user=nobody");
    let mut checked = 0;
    for line in text.lines() {
        // With its path, or as a unit names it.
        let is_within = ["/", "=", "=+"]
            .iter()
            .any(|before| line.contains(&format!("{before}start_server --")));
        if !line.starts_with("start_server ") && !is_within {
            continue;
        }
        let (_, command) = line.split_once("start_server ").unwrap();
        let words: Vec<&str> = command.split_whitespace().collect();
        assert!(parse_words(&words).is_ok(), "{line}");
        checked += 1;
    }
    assert_eq!(checked, 9);
}
