//! System types as plain numbers, for the snapshot.

/// For `serde(with)`.
pub mod pid {
    use nix::unistd::Pid;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(pid: &Pid, serializer: S) -> Result<S::Ok, S::Error> {
        pid.as_raw().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pid, D::Error> {
        i32::deserialize(deserializer).map(Pid::from_raw)
    }
}

/// For `serde(with)`.
pub mod signal {
    use nix::sys::signal::Signal;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(signal: &Signal, serializer: S) -> Result<S::Ok, S::Error> {
        (*signal as i32).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Signal, D::Error> {
        let number = i32::deserialize(deserializer)?;
        Signal::try_from(number)
            .map_err(|_| D::Error::custom(format_args!("{number} is the number of no signal")))
    }
}
