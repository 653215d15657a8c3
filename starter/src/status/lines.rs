//! The status file in Server::Starter's format: a line `GENERATION:PID` for every worker.

use std::path::Path;

use super::replaced::read_text;
use crate::words::failure;

/// The generations in such a file, in its order; the cause in words if there are none.
pub fn read_lines(path: &Path) -> Result<Vec<u32>, String> {
    let text = read_text(path).map_err(|error| failure::cause(&error))?;
    Ok(parse_lines(&text))
}

/// Lines of any other format are skipped.
pub fn parse_lines(text: &str) -> Vec<u32> {
    text.lines()
        .filter_map(|line| line.split_once(':')?.0.parse().ok())
        .collect()
}

/// Whether a status file may be replaced: it contains nothing but such lines.
pub fn is_status_lines(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.lines().all(|line| {
        line.split_once(':')
            .is_some_and(|(generation, pid)| number(generation) && number(pid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_may_be_replaced() {
        for ours in ["", "1:23\n", "9:100\n10:101\n", "1:23"] {
            assert!(is_status_lines(ours), "{ours:?}");
        }
        for foreign in ["\n", "hello\n", "1:23\nhello\n", "1:\n", ":1\n", "a:1\n"] {
            assert!(!is_status_lines(foreign), "{foreign:?}");
        }
    }
}
