use nix::sys::signal::Signal;

use super::{error, parse_words, printed, stopped, with};
use crate::listeners::dialects::Dialect;
use crate::options::Invocation;
use crate::ready::Ready;

#[test]
fn a_preset_sets_its_options() {
    let options = with(&["--preset=unicorn"]);
    assert_eq!(options.listeners.dialects, [Dialect::Unicorn]);
    assert_eq!(options.machine.signal_on_hup, Signal::SIGQUIT);
    assert_eq!(options.machine.signal_on_term, Signal::SIGQUIT);
    assert_eq!(options.ready.ready, Ready::Accept);
    assert!(options.ready.probe.is_some());
    let options = with(&["--preset=h2o"]);
    assert_eq!(options.listeners.dialects, []);
    assert_eq!(options.ready.ready, Ready::Interval);
}

#[test]
fn each_option_besides_wins_wherever_it_stands() {
    let options = with(&[
        "--ready=http:/up",
        "--preset=unicorn",
        "--fd-env=systemd",
        "--signal-on-hup=USR2",
    ]);
    assert_eq!(options.listeners.dialects, [Dialect::Systemd]);
    assert_eq!(options.machine.signal_on_hup, Signal::SIGUSR2);
    // The others are still the preset's.
    assert_eq!(options.machine.signal_on_term, Signal::SIGQUIT);
    assert!(matches!(options.ready.ready, Ready::Http { .. }));
    let options = with(&["--preset=unicorn", "--ready=interval"]);
    assert_eq!(options.ready.ready, Ready::Interval);
    assert_eq!(options.ready.probe, None);
    // The last preset is the only one.
    let options = with(&["--preset=unicorn", "--preset=nginx"]);
    assert_eq!(options.listeners.dialects, [Dialect::Nginx]);
    assert_eq!(options.ready.ready, Ready::Interval);
}

#[test]
fn every_preset_of_the_list_is_valid_and_is_shown_with_its_options_and_a_reason() {
    let list = printed(&["--preset=list"]);
    assert_eq!(list, printed(&["--PRES", "list", "--", "prog"]));
    for line in list.lines() {
        let (name, rest) = line.split_once(' ').unwrap();
        with(&[&format!("--preset={name}")]);
        let (options, why) = rest.split_once(": ").unwrap();
        let options: Vec<&str> = options.split_whitespace().collect();
        // By themselves they do the same.
        with(&options);
        assert!(!why.is_empty(), "{line}");
        assert!(line.len() <= 140, "{line}");
    }
    let lines = list.lines().map(|line| line.split(' ').next().unwrap());
    assert!(lines.is_sorted(), "{list}");
    assert_eq!(list.lines().count(), 12);
}

#[test]
fn an_unknown_preset_is_refused_with_the_names() {
    for option in ["--preset=Puma", "--preset=mongrel"] {
        let error = error(&[option, "prog"]);
        let begin = format!("cannot use {option}: the presets are gunicorn, h2o, ");
        assert!(error.starts_with(&begin), "{error}");
        assert!(
            error.ends_with("uvicorn; --preset=list shows them"),
            "{error}"
        );
    }
    assert_eq!(
        error(&["--preset=", "prog"]),
        "cannot use --preset=: its value is empty"
    );
}

#[test]
fn what_a_preset_sets_is_explained_where_it_is_refused() {
    let shown = error(&["--preset=puma", "--port=80=5", "prog"]);
    let (refusal, hint) = shown.split_once('\n').unwrap();
    let begin = "cannot use --fd-env=systemd: ";
    assert!(refusal.starts_with(begin), "{shown}");
    let begin = "hint: --preset=puma stands for --fd-env=systemd --signal-on-hup=TERM ";
    assert!(hint.starts_with(begin), "{shown}");
    // Not where it is not the cause.
    let shown = error(&["--preset=puma", "--interval=x", "prog"]);
    assert!(!shown.contains("--preset"), "{shown}");
    with(&["--preset=puma", "--port=80=5", "--fd-env=einhorn"]);
}

#[test]
fn a_command_takes_the_command_line_of_a_start_with_a_preset() {
    stopped(&["--preset=unicorn", "--", "unicorn"]);
    let both = parse_words(&["--self-test", "--preset=unicorn"]);
    assert!(both.is_err());
    let list = parse_words(&["--restart", "--preset=list"]);
    assert!(matches!(list, Ok(Invocation::Print(_))));
}
