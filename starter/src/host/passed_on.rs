//! The descriptors that the launcher passes on by the protocol of sd_listen_fds(3), as systemd does: from 3 on, as many as
//! `LISTEN_FDS` says, with their names in `LISTEN_FDNAMES`, for the process that `LISTEN_PID` names.
//!
//! Here they only get an owner, before anything else is opened. What each is, and whether it may be used, is not known
//! yet, and every other descriptor is closed. `LISTEN_PIDFDID` is not needed: our launcher has executed us.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use common::descriptors::{FIRST, close_inherited};

use crate::host::open_files::adopt;
use crate::words::failure::Failure;
use crate::words::text::{quoted, shortened};
use crate::words::{number, remedy};

/// A descriptor that was passed on.
#[derive(Debug)]
pub struct PassedOn {
    pub descriptor: OwnedFd,
    /// The number that it was passed on with.
    pub number: RawFd,
    /// Not empty.
    pub name: Option<OsString>,
}

/// Takes over what was passed on, in order, and closes every other inherited descriptor but 0, 1 and 2. Call it before
/// anything is opened.
///
/// # Errors
/// The outer one if they cannot be closed, the inner one if the variables do not tell the truth; then nothing is kept.
pub fn take_and_close_others() -> Result<Result<Vec<PassedOn>, Failure>, Failure> {
    let passed_on = announced().and_then(take);
    let count = passed_on.as_ref().map_or(0, Vec::len);
    let kept = RawFd::try_from(count).unwrap_or(0);
    close_inherited(FIRST + kept).map_err(|errno| {
        Failure::failed(format!(
            "cannot close inherited descriptors: {}",
            errno.desc()
        ))
    })?;
    Ok(passed_on)
}

/// What the variables announce.
#[derive(Debug, PartialEq, Eq)]
struct Announced {
    count: RawFd,
    /// As many, or none at all.
    names: Vec<OsString>,
}

fn announced() -> Result<Announced, Failure> {
    let variable = |name: &str| env::var_os(name);
    read(std::process::id(), variable)
}

fn read(ours: u32, variable: impl Fn(&str) -> Option<OsString>) -> Result<Announced, Failure> {
    let nothing = Announced {
        count: 0,
        names: Vec::new(),
    };
    // Without a pid they may be for anybody, and with another one they are for another.
    let (Some(count), Some(pid)) = (variable("LISTEN_FDS"), variable("LISTEN_PID")) else {
        return Ok(nothing);
    };
    if whole(&pid) != Some(ours) {
        return Ok(nothing);
    }
    let shown = shortened(quoted(&count));
    let cannot = |cause: &str| {
        refused(&format!(
            "cannot take over the descriptors of LISTEN_FDS={shown}: {cause}"
        ))
    };
    let count: RawFd = whole(&count)
        .filter(|count| *count <= RawFd::MAX - FIRST)
        .ok_or_else(|| cannot("it is not a number of descriptors"))?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<OsString> = match names.is_empty() {
        true => Vec::new(),
        false => {
            let names = names.as_bytes().split(|byte| *byte == b':');
            names
                .map(|name| OsString::from_vec(name.to_vec()))
                .collect()
        }
    };
    if !names.is_empty() && usize::try_from(count) != Ok(names.len()) {
        let many = names.len();
        return Err(cannot(&format!("LISTEN_FDNAMES has {many} names")));
    }
    Ok(Announced { count, names })
}

fn take(announced: Announced) -> Result<Vec<PassedOn>, Failure> {
    let Announced { count, names } = announced;
    let names = names
        .into_iter()
        .map(|name| (!name.is_empty()).then_some(name));
    let names = names.chain(std::iter::repeat(None));
    // One after the other, so that a count that is too high costs nothing.
    (FIRST..FIRST + count)
        .zip(names)
        .map(|(number, name)| match adopt(number) {
            Some(descriptor) => Ok(PassedOn {
                descriptor,
                number,
                name,
            }),
            None => Err(refused(&format!(
                "cannot take over descriptor {number} of LISTEN_FDS={count}: it is not open"
            ))),
        })
        .collect()
}

fn whole<T: std::str::FromStr>(text: &OsStr) -> Option<T> {
    number::digits(text.to_str().filter(|text| !text.is_empty())?)
}

fn refused(text: &str) -> Failure {
    Failure::failed(text).hint(remedy::LISTEN_FDS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn read_these(variables: &[(&str, &str)]) -> Result<(RawFd, usize), String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(one, _)| *one == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let announced = read(7, variable).map_err(|failure| failure.text())?;
        Ok((announced.count, announced.names.len()))
    }

    #[test]
    fn what_is_not_for_this_process_is_ignored() {
        for variables in [
            &[][..],
            &[("LISTEN_FDS", "2")],
            &[("LISTEN_PID", "7")],
            &[("LISTEN_FDS", "2"), ("LISTEN_PID", "8")],
            &[("LISTEN_FDS", "2"), ("LISTEN_PID", "7 ")],
            &[("LISTEN_FDS", "2"), ("LISTEN_PID", "")],
            // Even if it makes no sense.
            &[("LISTEN_FDS", "x"), ("LISTEN_PID", "8")],
            &[("LISTEN_FDS", "0"), ("LISTEN_PID", "7")],
        ] {
            assert_eq!(read_these(variables), Ok((0, 0)), "{variables:?}");
        }
    }

    #[test]
    fn names_are_as_many_as_descriptors_or_none() {
        let with = |names| read_these(&[("LISTEN_FDS", "2"), ("LISTEN_PID", "7"), names]);
        assert_eq!(with(("LISTEN_FDNAMES", "a:b")), Ok((2, 2)));
        assert_eq!(with(("LISTEN_FDNAMES", ":")), Ok((2, 2)));
        assert_eq!(with(("LISTEN_FDNAMES", "")), Ok((2, 0)));
        assert_eq!(with(("X", "")), Ok((2, 0)));
        let failed = "cannot take over the descriptors of LISTEN_FDS=2: LISTEN_FDNAMES has 3 names";
        assert_eq!(with(("LISTEN_FDNAMES", "a:b:c")), Err(failed.to_owned()));
    }

    #[test]
    fn numbers_are_digits_in_range() {
        for count in [
            "",
            "x",
            "-1",
            "+1",
            " 1",
            "1.0",
            "2147483645",
            "99999999999",
        ] {
            let failed = read_these(&[("LISTEN_FDS", count), ("LISTEN_PID", "7")]).unwrap_err();
            assert!(
                failed.ends_with("it is not a number of descriptors"),
                "{failed}"
            );
        }
    }
}
