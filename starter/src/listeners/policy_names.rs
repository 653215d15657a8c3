//! Names in the binder's policy that nobody has: for the wording of a refusal only, which the binder has decided.

use std::fs::File;
use std::io::Read;

use common::message::{LARGEST_POLICY, POLICY_FILE};
use nix::unistd::{Group, User};

use crate::words::text::shortened;

/// The first line of the policy whose user or group does not exist: `its line 3 is for user alcie, who does not exist`.
pub fn unknown_name() -> Option<String> {
    let mut text = String::new();
    let file = File::open(POLICY_FILE).ok()?;
    file.take(LARGEST_POLICY as u64)
        .read_to_string(&mut text)
        .ok()?;
    of_text(&text, |kind, name| match kind {
        // An error of the user database says nothing about the name.
        "user" => !matches!(User::from_name(name), Ok(None)),
        "group" => !matches!(Group::from_name(name), Ok(None)),
        _ => true,
    })
}

fn of_text(text: &str, exists: impl Fn(&str, &str) -> bool) -> Option<String> {
    text.lines().enumerate().find_map(|(place, line)| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let (kind, name) = (words.next()?, words.next()?);
        let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
        (!is_number && !exists(kind, name)).then(|| {
            let (number, name) = (place + 1, shortened(name));
            format!("its line {number} is for {kind} {name}, who does not exist")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_that_nobody_has_is_named() {
        let exists = |_: &str, name: &str| name == "alice";
        let policy = "# user bob tcp 1\n\nuser alice tcp 80\nuser 7 tcp 80\n group alcie\tudp 53 # why\nuser x tcp 1\n";
        assert_eq!(
            of_text(policy, exists).as_deref(),
            Some("its line 5 is for group alcie, who does not exist")
        );
        assert_eq!(of_text("user alice tcp 80\nuser\n", exists), None);
    }
}
