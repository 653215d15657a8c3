//! The pins of all generations on their way to the next program. Generations that share a pin share it there too.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::host::luggage::Luggage;
use crate::worker::pin::{PackedPin, Pin};

/// Each pin once, with the generations that were started from it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PackedPins(Vec<(Vec<u32>, PackedPin)>);

impl PackedPins {
    /// Packs the pins of these generations.
    pub fn pack(pins: &BTreeMap<u32, Rc<Pin>>, luggage: &mut Luggage) -> PackedPins {
        let mut shared: Vec<(Vec<u32>, &Rc<Pin>)> = Vec::new();
        for (generation, pin) in pins {
            match shared.iter_mut().find(|(_, one)| Rc::ptr_eq(one, pin)) {
                Some((generations, _)) => generations.push(*generation),
                None => shared.push((vec![*generation], pin)),
            }
        }
        let packed = shared.into_iter();
        let packed = packed.map(|(generations, pin)| (generations, pin.pack(luggage)));
        PackedPins(packed.collect())
    }

    /// The pins by generation.
    pub fn unpack(self) -> BTreeMap<u32, Rc<Pin>> {
        let shared = self.0.into_iter().flat_map(|(generations, pin)| {
            let pin = Rc::new(Pin::unpack(pin));
            let by_generation = move |generation| (generation, Rc::clone(&pin));
            generations.into_iter().map(by_generation)
        });
        shared.collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn generations_that_shared_a_pin_still_share_it() {
        let shared = Rc::new(Pin::without_files(vec![("A".into(), None)]));
        let other = Rc::new(Pin::without_files(Vec::new()));
        let pins = [(1, &shared), (2, &other), (3, &shared)];
        let pins = pins.map(|(generation, pin)| (generation, Rc::clone(pin)));
        let packed = PackedPins::pack(&pins.into(), &mut Luggage::default());
        let text = serde_json::to_string(&packed).unwrap();
        let packed: PackedPins = serde_json::from_str(&text).unwrap();
        let pins = packed.unpack();
        assert_eq!(pins.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(Rc::ptr_eq(&pins[&1], &pins[&3]));
        assert!(!Rc::ptr_eq(&pins[&1], &pins[&2]));
        assert_eq!(pins[&1].environment, shared.environment);
        let executed = pins[&1].execute(&std::process::Command::new("x"));
        assert_eq!(executed, Err(Some(Errno::ENOENT)));
    }
}
