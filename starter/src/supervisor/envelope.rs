//! How a snapshot travels from one version of this program to another: a line that says what follows, then JSON.
//!
//! The line is `start_server snapshot FORMAT LENGTH CHECKSUM`, with the length of the JSON in bytes. A version reads its own
//! format and all earlier ones: fields are only added, each with a default, and FORMAT rises when an older version would lose
//! something that it does not know.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::sealed::checksum;

/// The newest format that is known here: since it, listeners have lanes.
pub const FORMAT: u32 = 2;

/// The first one, of which every version knows everything that is not in a later one.
pub const FIRST: u32 = 1;

const MARK: &str = "start_server snapshot";

/// Writes it, in the earliest format that has everything that is in it.
///
/// # Errors
/// What JSON cannot represent.
pub fn seal(content: &impl Serialize, format: u32) -> Result<Vec<u8>, String> {
    let json = serde_json::to_vec(content).map_err(|error| error.to_string())?;
    let (length, checksum) = (json.len(), checksum(&json));
    let mut all = format!("{MARK} {format} {length} {checksum:016x}\n").into_bytes();
    all.extend(json);
    Ok(all)
}

/// Reads it.
///
/// # Errors
/// Why it cannot be read, in words.
pub fn open<T: DeserializeOwned>(all: &[u8]) -> Result<T, String> {
    let line = all.iter().position(|byte| *byte == b'\n');
    let (line, json) = all.split_at(line.ok_or("it is no snapshot of start_server")?);
    let json = json.get(1..).unwrap_or_default();
    let line = str::from_utf8(line).unwrap_or_default();
    let words = line.strip_prefix(MARK).unwrap_or_default();
    let mut words = words.split_whitespace();
    let format: u32 = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or("it is no snapshot of start_server")?;
    if format == 0 || format > FORMAT {
        return Err(format!(
            "the snapshot has format {format}, and this version knows formats up to {FORMAT}"
        ));
    }
    let (length, checksum_of) = (words.next(), words.next());
    let is_whole = length.and_then(|word| word.parse().ok()) == Some(json.len());
    let is_as_written = checksum_of == Some(&format!("{:016x}", checksum(json)));
    if !is_whole || !is_as_written {
        return Err("the snapshot is damaged".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| format!("the snapshot cannot be used: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_read_and_every_damage_is_seen() {
        let all = seal(&vec![1, 2, 3], FIRST).unwrap();
        assert_eq!(open::<Vec<u32>>(&all).unwrap(), [1, 2, 3]);
        for place in 0..all.len() {
            let mut damaged = all.clone();
            damaged[place] ^= 1;
            assert!(open::<Vec<u32>>(&damaged).is_err(), "{place}");
            assert!(open::<Vec<u32>>(&all[..place]).is_err(), "{place}");
        }
    }

    #[test]
    fn a_later_format_is_refused_for_that_reason() {
        let later = format!("{MARK} {} 2 0\n{{}}", FORMAT + 1);
        let why = open::<Vec<u32>>(later.as_bytes()).unwrap_err();
        assert!(why.contains("this version knows formats up to"), "{why}");
    }
}
