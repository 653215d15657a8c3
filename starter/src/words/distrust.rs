//! Why root does not trust a path, in words.

use std::borrow::Cow;

use common::trusted_path::{Distrust, Untrusted};
use nix::errno::Errno;

use crate::words::text::quoted;

/// Which part of a path is not trusted, and why: `/tmp/x belongs to an ordinary user`.
pub fn of_path(untrusted: &Untrusted) -> String {
    format!("{} {}", quoted(&untrusted.at), predicate(untrusted.why))
}

/// What follows the name of a file or directory: `belongs to an ordinary user`.
pub fn predicate(why: Distrust) -> Cow<'static, str> {
    match why {
        Distrust::Relative => "is not an absolute path".into(),
        Distrust::Errno(errno) => {
            format!("cannot be opened: {}", Errno::from_raw(errno).desc()).into()
        }
        Distrust::LinkOfUser => "is a symbolic link of an ordinary user".into(),
        Distrust::ServedByUser => "is on a file system that an ordinary user may serve".into(),
        Distrust::OwnedByUser => "belongs to an ordinary user".into(),
        Distrust::WritableByOthers => "is writable by users other than its owner".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_line_whatever_it_is_called() {
        let untrusted = Untrusted {
            at: "/a\nforged: line".into(),
            why: Distrust::OwnedByUser,
        };
        let sentence = r"'/a\x0Aforged: line' belongs to an ordinary user";
        assert_eq!(of_path(&untrusted), sentence);
    }
}
