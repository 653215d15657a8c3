//! Orders to a running start_server that no signal stands for: SIGURG with a value (sigqueue(3)). Whoever may send HUP may
//! send one. SIGURG is ignored by default, so a process that knows of no orders is not harmed.

use std::num::NonZeroU16;

use nix::sys::signal::Signal;

/// The signal that carries an order.
pub const CARRIER: Signal = Signal::SIGURG;

/// What is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Undo the last restart.
    RollBack,
    /// Give up the restart that is under way or being tried again.
    Abort,
    /// Restart, and give the new generation a share of new traffic.
    Canary(Trial),
    /// Give it everything.
    Promote,
    /// Run this many workers.
    Scale(u16),
}

/// The share that a new generation gets, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// 1 to 99.
    pub percent: u8,
    /// Each client goes to the same generation, by its address.
    pub is_by_client: bool,
    /// After this many seconds without a fault it is promoted.
    pub seconds: Option<NonZeroU16>,
}

/// The upper quarter of the value that orders a canary.
const CANARY: u8 = b'c';

/// In the next quarter: by client.
const BY_CLIENT: u8 = 0x80;

/// The upper half of the value that orders another number of workers, which is the lower half.
const SCALE: i32 = i32::from_be_bytes(*b"sc\0\0");

impl Order {
    /// One of each.
    const ALL: [Order; 5] = [
        Order::RollBack,
        Order::Abort,
        Order::Scale(1),
        Order::Canary(Trial {
            percent: 1,
            is_by_client: false,
            seconds: None,
        }),
        Order::Promote,
    ];

    /// Its name in `FILE.json`, where a server lists the orders that it obeys.
    pub fn name(self) -> &'static str {
        match self {
            Order::RollBack => "rollback",
            Order::Abort => "abort",
            Order::Scale(_) => "scale",
            Order::Canary(_) => "canary",
            Order::Promote => "promote",
        }
    }

    /// Every name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Order::ALL.into_iter().map(Order::name)
    }

    /// The value that the signal carries. Nobody else sends one of these by chance.
    pub fn value(self) -> i32 {
        match self {
            Order::RollBack => i32::from_be_bytes(*b"\0rol"),
            Order::Abort => i32::from_be_bytes(*b"\0abo"),
            Order::Scale(workers) => SCALE | i32::from(workers),
            Order::Canary(trial) => trial.value(),
            Order::Promote => i32::from_be_bytes(*b"\0pro"),
        }
    }

    /// The order that a signal carries, if it is one.
    pub fn carried(signal: Signal, code: i32, value: i32) -> Option<Order> {
        if signal != CARRIER || code != libc::SI_QUEUE {
            return None;
        }
        let workers = value ^ SCALE;
        if let Ok(workers) = u16::try_from(workers) {
            return Some(Order::Scale(workers));
        }
        if let Some(trial) = Trial::of_value(value) {
            return Some(Order::Canary(trial));
        }
        let mut all = Order::ALL.into_iter();
        all.find(|order| order.value() == value)
    }
}

impl Trial {
    fn value(self) -> i32 {
        let by = match self.is_by_client {
            true => BY_CLIENT,
            false => 0,
        };
        let [high, low] = self.seconds.map_or(0, NonZeroU16::get).to_be_bytes();
        i32::from_be_bytes([CANARY, by | self.percent, high, low])
    }

    fn of_value(value: i32) -> Option<Trial> {
        let [kind, share, high, low] = value.to_be_bytes();
        let percent = share & !BY_CLIENT;
        (kind == CANARY && (1..=99).contains(&percent)).then(|| Trial {
            percent,
            is_by_client: share & BY_CLIENT != 0,
            seconds: NonZeroU16::new(u16::from_be_bytes([high, low])),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_value_is_an_order() {
        let value = Order::RollBack.value();
        let carried = |signal, code, value| Order::carried(signal, code, value).is_some();
        for order in Order::ALL.into_iter().chain([Order::Scale(u16::MAX)]) {
            let carried = Order::carried(CARRIER, libc::SI_QUEUE, order.value());
            assert_eq!(carried, Some(order));
        }
        for (percent, is_by_client, seconds) in
            [(1, false, 0), (99, true, u16::MAX), (10, true, 60)]
        {
            let seconds = NonZeroU16::new(seconds);
            let order = Order::Canary(Trial {
                percent,
                is_by_client,
                seconds,
            });
            let carried = Order::carried(CARRIER, libc::SI_QUEUE, order.value());
            assert_eq!(carried, Some(order));
        }
        for percent in [0, 100, 127] {
            let value = i32::from_be_bytes([CANARY, percent, 0, 0]);
            assert!(!carried(CARRIER, libc::SI_QUEUE, value));
        }
        assert!(!carried(CARRIER, libc::SI_QUEUE, 0));
        assert!(!carried(CARRIER, libc::SI_USER, value));
        assert!(!carried(Signal::SIGHUP, libc::SI_QUEUE, value));
    }
}
