//! Points in time that outlive the program that took them: everything that runs on this host reads the same clock until
//! the next boot.

use std::ops::Add;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Nanoseconds of `CLOCK_MONOTONIC`, which is immune to changes of the wall clock and continues across an exec; it stops
/// while the host is suspended (clock_gettime(2)).
///
/// `std::time::Instant` reads the same clock, but does not show its number and cannot be made from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(u64);

impl Moment {
    /// Where the clock begins.
    pub const ZERO: Moment = Moment(0);

    /// The current time.
    pub fn now() -> Moment {
        // It fails only for a clock that does not exist (clock_gettime(2), EINVAL), and this one always does.
        Moment::since_the_epoch_of_the_clock(
            clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from),
        )
    }

    /// The clock counts from an arbitrary point: on Linux, from boot.
    fn since_the_epoch_of_the_clock(passed: Duration) -> Moment {
        Moment(nanoseconds(passed))
    }

    /// How much later this is than the other moment; zero if it is earlier.
    pub fn saturating_since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// A moment that was not read from a clock.
    #[cfg(test)]
    pub fn of_test(passed: Duration) -> Moment {
        Moment::since_the_epoch_of_the_clock(passed)
    }
}

/// This much later. A sum out of range, which is beyond some 584 years, is the latest moment that can be represented:
/// for every practical purpose, never.
impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(nanoseconds(duration)))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_clock_is_that_of_instant() {
        let (instant, moment) = (Instant::now(), Moment::now());
        let later = Moment::now();
        assert!(later.saturating_since(moment) <= instant.elapsed());
        assert!(moment > Moment::of_test(Duration::ZERO));
        // It counts from boot, not from 1970.
        let years = |count: u64| Duration::from_secs(count * 365 * 24 * 3600);
        assert!(moment < Moment::of_test(years(30)));
    }

    #[test]
    fn sums_and_differences_stay_within_what_can_be_counted() {
        let at = |seconds| Moment::of_test(Duration::from_secs(seconds));
        assert_eq!(at(3) + Duration::from_secs(2), at(5));
        assert_eq!(at(5).saturating_since(at(3)), Duration::from_secs(2));
        assert_eq!(at(3).saturating_since(at(5)), Duration::ZERO);
        assert_eq!(at(3) + Duration::MAX, Moment(u64::MAX));
    }

    #[test]
    fn it_is_written_as_a_number() {
        let moment = Moment(1_500_000_000);
        let text = serde_json::to_string(&moment).unwrap();
        assert_eq!(text, "1500000000");
        assert_eq!(serde_json::from_str::<Moment>(&text).unwrap(), moment);
    }
}
