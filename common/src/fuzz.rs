//! Entry points for fuzzers: each takes any bytes as a datagram and asserts what must hold for all of them.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::{Reply, Request};
use crate::wire::{LARGEST, decode, encode};

/// What the binder receives.
pub fn request(datagram: &[u8]) {
    assert_stable::<Request>(datagram);
}

/// What start_server receives.
pub fn reply(datagram: &[u8]) {
    assert_stable::<Reply>(datagram);
}

fn assert_stable<T: Serialize + DeserializeOwned + PartialEq + Debug>(datagram: &[u8]) {
    let message: T = match decode(datagram) {
        Ok(message) => message,
        Err(error) => {
            let said = error.to_string();
            return assert!(!said.contains(char::is_control), "{said:?}");
        }
    };
    assert!(datagram.len() <= LARGEST);
    let written = encode(&message);
    assert!(written.is_ok(), "{message:?}: {written:?}");
    let written = written.unwrap_or_default();
    // The decoder accepts numbers in longer forms than necessary; the encoder writes none.
    assert!(written.len() <= datagram.len(), "{message:?}");
    assert_eq!(decode(&written), Ok(message));
    // No proper part of a message is a message.
    let (_, shorter) = written.split_last().unwrap_or((&0, &[]));
    assert!(decode::<T>(shorter).is_err(), "{written:?}");
    let longer = [written.as_slice(), &[0]].concat();
    assert!(decode::<T>(&longer).is_err(), "{written:?}");
}
