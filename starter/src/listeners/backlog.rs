//! How many connections may wait at a listener: what we ask listen(2) for, and what the kernel grants.

use std::fs;

use crate::words::notice::Notice;

/// The kernel's limit. listen(2) silently cuts a larger number down to it.
const LIMIT: &str = "/proc/sys/net/core/somaxconn";

/// A backlog for listen(2), with the limit of this network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    asked: Option<i32>,
    limit: Option<u32>,
}

impl Backlog {
    /// `asked` is the value of `--backlog`, if it was given.
    pub fn new(asked: Option<i32>) -> Backlog {
        let limit = fs::read_to_string(LIMIT).ok();
        Backlog {
            asked,
            limit: limit.and_then(|text| text.trim().parse().ok()),
        }
    }

    /// Whether `--backlog` was given.
    pub fn is_asked(self) -> bool {
        self.asked.is_some()
    }

    /// The argument of listen(2).
    pub fn number(self) -> i32 {
        self.asked.unwrap_or(libc::SOMAXCONN)
    }

    /// What a listener gets.
    pub fn granted(self) -> u32 {
        let number = self.number().unsigned_abs();
        self.limit.map_or(number, |limit| number.min(limit))
    }

    /// The notice for a user who asked for more than that.
    pub fn notice(self) -> Option<Notice> {
        let (asked, granted) = (self.asked?, self.granted());
        (granted < asked.unsigned_abs()).then_some(Notice::BacklogCut { asked, granted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_and_is_cut_is_said() {
        for (asked, limit, granted, is_said) in [
            (None, Some(128), 128, false),
            (None, None, libc::SOMAXCONN.unsigned_abs(), false),
            (Some(7), Some(128), 7, false),
            (Some(128), Some(128), 128, false),
            (Some(129), Some(128), 128, true),
            (Some(129), None, 129, false),
        ] {
            let backlog = Backlog { asked, limit };
            assert_eq!(backlog.granted(), granted, "{backlog:?}");
            assert_eq!(backlog.notice().is_some(), is_said, "{backlog:?}");
        }
    }
}
