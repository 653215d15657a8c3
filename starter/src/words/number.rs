//! Numbers as people type them: only digits, whereas the standard library also takes signs, exponents and infinity. And as
//! they read them: with a unit, and short whatever the number is.

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

/// A time in seconds, in the two largest units that say something: `3.2 s`, `5 min`, `3 h 20 min`, `4 d 2 h`.
pub fn time(seconds: f64) -> String {
    // A clock may have been set back, and a number may be anything.
    let seconds = seconds.clamp(0.0, LONGEST_TIME);
    let tenths = (seconds * 10.0).round() / 10.0;
    if tenths < 100.0 {
        return match tenths.fract() == 0.0 {
            true => format!("{tenths:.0} s"),
            false => format!("{tenths:.1} s"),
        };
    }
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let minutes = whole.as_secs() / 60;
    let (hours, days) = (minutes / 60, minutes / (24 * 60));
    let with = |large: u64, unit: &str, small: u64, smaller: &str| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {smaller}"),
    };
    match (days, hours) {
        (0, 0) => format!("{minutes} min"),
        (0, hours) => with(hours, "h", minutes % 60, "min"),
        (days, hours) => with(days, "d", hours % 24, "h"),
    }
}

/// The same where less than a second matters too: `0.84 s`.
pub fn short_time(seconds: f64) -> String {
    match seconds {
        0.0..0.995 => format!("{seconds:.2} s"),
        seconds => time(seconds),
    }
}

/// An amount of memory in bytes: `512 B`, `3.2 MiB`, `120 MiB`.
pub fn memory(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // The tenths of the unit: a unit is left when the next one shows no more of them.
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, 0);
    while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match tenths < 100 {
        true => format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]),
        false => format!("{} {}", tenths / 10, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_short_whatever_it_is() {
        for (seconds, expected) in [
            (0.0, "0 s"),
            (-5.0, "0 s"),
            (0.04, "0 s"),
            (3.21, "3.2 s"),
            (60.0, "60 s"),
            (99.94, "99.9 s"),
            (99.96, "1 min"),
            (150.0, "2 min"),
            (3600.0, "1 h"),
            (3.0 * 3600.0 + 1234.0, "3 h 20 min"),
            (4.0 * 86400.0 + 7200.0, "4 d 2 h"),
            (1e308, "11574 d 1 h"),
        ] {
            assert_eq!(time(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn a_short_time_has_hundredths() {
        for (seconds, expected) in [
            (0.0, "0.00 s"),
            (0.84, "0.84 s"),
            (0.996, "1 s"),
            (3.12, "3.1 s"),
            (-1.0, "0 s"),
            (1e308, "11574 d 1 h"),
        ] {
            assert_eq!(short_time(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn memory_is_short_whatever_it_is() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10 * 1024, "10 KiB"),
            (3_400_000, "3.2 MiB"),
            (125_829_120, "120 MiB"),
            (u64::MAX, "15 EiB"),
        ] {
            assert_eq!(memory(bytes), expected, "{bytes}");
        }
    }
}
