//! The timestamp of a line: local time, because people who read logs look at a wall clock.

use std::fmt;

use time::OffsetDateTime;

/// A wall-clock time.
#[derive(Debug, Clone, Copy)]
pub struct LocalTime(OffsetDateTime);

impl LocalTime {
    /// Now; in UTC if the local time is unknown.
    pub fn now() -> LocalTime {
        LocalTime(OffsetDateTime::now_local().unwrap_or_else(|_| OffsetDateTime::now_utc()))
    }
}

/// With milliseconds and the offset (RFC 3339): `2026-11-22T18:43:06.123+01:00`.
impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LocalTime(at) = self;
        let (hours, minutes, _) = at.offset().as_hms();
        let sign = if at.offset().is_negative() { '-' } else { '+' };
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}{sign}{:02}:{:02}",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second(),
            at.millisecond(),
            hours.unsigned_abs(),
            minutes.unsigned_abs(),
        )
    }
}

impl LocalTime {
    /// As RFC 3164 has it, section 4.1.2: `Nov  2 18:43:06`, always 15 bytes.
    pub fn rfc3164(&self) -> String {
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let LocalTime(at) = self;
        let month = MONTHS[usize::from(u8::from(at.month())) - 1];
        format!(
            "{month} {:2} {:02}:{:02}:{:02}",
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use time::UtcOffset;

    use super::*;

    #[test]
    fn a_time_is_written_in_its_own_offset() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_793_612_586_123_456_789).unwrap();
        let at = |hours, minutes| {
            LocalTime(at.to_offset(UtcOffset::from_hms(hours, minutes, 0).unwrap()))
        };
        assert_eq!(at(0, 0).to_string(), "2026-11-02T09:43:06.123+00:00");
        assert_eq!(at(5, 30).to_string(), "2026-11-02T15:13:06.123+05:30");
        assert_eq!(at(-3, -30).to_string(), "2026-11-02T06:13:06.123-03:30");
        assert_eq!(at(1, 0).rfc3164(), "Nov  2 10:43:06");
    }
}
