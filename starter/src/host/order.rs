//! Orders to a running start_server that no signal stands for: SIGURG with a value (sigqueue(3)). Whoever may send HUP may
//! send one. SIGURG is ignored by default, so a process that knows of no orders is not harmed.

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
    /// Run this many workers.
    Scale(u16),
}

/// The upper half of the value that orders another number of workers, which is the lower half.
const SCALE: i32 = i32::from_be_bytes(*b"sc\0\0");

impl Order {
    /// One of each.
    const ALL: [Order; 3] = [Order::RollBack, Order::Abort, Order::Scale(1)];

    /// Its name in `FILE.json`, where a server lists the orders that it obeys.
    pub fn name(self) -> &'static str {
        match self {
            Order::RollBack => "rollback",
            Order::Abort => "abort",
            Order::Scale(_) => "scale",
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
        let mut all = Order::ALL.into_iter();
        all.find(|order| order.value() == value)
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
        assert!(!carried(CARRIER, libc::SI_QUEUE, 0));
        assert!(!carried(CARRIER, libc::SI_USER, value));
        assert!(!carried(Signal::SIGHUP, libc::SI_QUEUE, value));
    }
}
