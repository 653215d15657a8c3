//! The command lines of the units in `share/systemd`.

use super::parse_words;

const UNITS: [&str; 4] = [
    include_str!("../../../share/systemd/app.service"),
    include_str!("../../../share/systemd/app-user.service"),
    include_str!("../../../share/systemd/app-socket.service"),
    include_str!("../../../share/systemd/start_server@.service"),
];

#[test]
fn every_unit_has_a_valid_command_line() {
    for unit in UNITS {
        let unit = unit
            .replace("\\\n", " ")
            .replace("$SERVER_OPTIONS", "--port=80 --ready=http:/health")
            .replace("$SERVER", "/srv/app/server --verbose");
        let command = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart=start_server "))
            .unwrap();
        let words: Vec<&str> = command.split_whitespace().collect();
        assert!(parse_words(&words).is_ok(), "{command}");
    }
}
