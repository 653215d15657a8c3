//! Numbers as people type them: only digits, whereas the standard library also takes signs, exponents and infinity.

use std::str::FromStr;
use std::time::Duration;

/// The longest time that can be requested, in seconds: about 31 years.
pub const LONGEST_TIME: f64 = 1e9;

/// A whole number in decimal digits.
pub fn digits<T: FromStr>(text: &str) -> Option<T> {
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    }
}

/// The number of a port that can be listened on: 1 to 65535.
pub fn port(text: &str) -> Option<u16> {
    digits(text).filter(|port| *port != 0)
}

/// Seconds from 0 to [`LONGEST_TIME`], with one decimal point at most.
pub fn seconds(text: &str) -> Option<Duration> {
    let is_decimal = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|seconds| is_decimal && *seconds <= LONGEST_TIME)?;
    Duration::try_from_secs_f64(seconds).ok()
}
