//! Waiting for a stated condition: the only place of the tests where time passes.

use std::thread;
use std::time::{Duration, Instant};

/// Generous, for a loaded machine: whoever waits this long waits for something that does not come.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often a condition is looked at: less often the longer it takes, as a look may cost much, and others need the CPUs.
const SHORTEST_PAUSE: Duration = Duration::from_millis(3);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// Asks `probe` until it has an answer. Panics with the condition and the evidence when the deadline passes.
#[track_caller]
pub fn until<T>(
    condition: &str,
    evidence: impl Fn() -> String,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        let waited = began.elapsed();
        if waited >= DEADLINE {
            panic!(
                "waited {DEADLINE:?} in vain until {condition}\n{}",
                evidence()
            );
        }
        thread::sleep((waited / 32).clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
    }
}

/// For promises on a period in which nothing happens: there is no condition to wait for.
pub fn let_pass(period: Duration) {
    thread::sleep(period);
}
