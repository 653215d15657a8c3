//! Entry points for fuzzing and property tests: everything that reads bytes written by others.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a broken invariant is what a fuzzer looks for"
)]

use common::message::{Ask, BadPolicy, Grant, MOST_DESCRIPTORS, Request};
use common::wire;

use crate::grants::{List, Next, Order, Unused};
use crate::policy;

/// The whole conversation: datagrams, each preceded by its length as two bytes, little-endian. Whatever they contain, every
/// grant and every escape is used at most once, and a grant only for what it says.
pub fn conversation(bytes: &[u8]) {
    let mut requests = datagrams(bytes).map_while(|one| wire::decode::<Request>(one).ok());
    let mut list = List::default();
    let sealed = loop {
        let Some(request) = requests.next() else {
            return;
        };
        match list.with(request) {
            Ok(Next::More(longer)) => list = longer,
            Ok(Next::Sealed(sealed)) => break sealed,
            Err(cause) => return assert_is_one_line(&cause),
        }
    };
    assert!(!(sealed.has_ports() && sealed.has_paths()));
    assert!(sealed.identity.as_ref().is_none_or(|it| it.uid != 0));
    let grants = sealed.grants;
    let prepared = grants.iter().map(|grant| (grant.clone(), grant.clone()));
    let mut left = sealed.escapes.clone();
    let mut unused = Unused::new(prepared.collect(), sealed.escapes);
    let mut used = vec![false; grants.len()];
    for request in requests {
        match unused.order(request) {
            Ok(Order::Bind(granted)) => {
                assert!((1..=MOST_DESCRIPTORS).contains(&granted.len()));
                for (ask, granted) in granted {
                    let (Ask::Port { grant, .. } | Ask::Path { grant }) = ask;
                    let place = usize::try_from(grant).unwrap();
                    assert!(!std::mem::replace(&mut used[place], true));
                    assert_eq!(granted, grants[place]);
                    assert_is_what_was_granted(&granted, &ask);
                }
            }
            Ok(Order::TryEscape(escape)) => {
                let place = left.iter().position(|listed| *listed == escape);
                left.remove(place.unwrap());
            }
            Err(cause) => return assert_is_one_line(&cause),
        }
        let is_used_up = used.iter().all(|used| *used) && left.is_empty();
        assert_eq!(unused.is_empty(), is_used_up);
    }
}

fn assert_is_what_was_granted(grant: &Grant, ask: &Ask) {
    match (grant, ask) {
        (Grant::Port { port, ip, .. }, Ask::Port { address, .. }) => {
            assert_eq!(*port, address.port);
            assert!(ip.is_none() || *ip == Some(address.ip));
        }
        (Grant::Path(_) | Grant::ForUser(_), Ask::Path { .. }) => {}
        _ => panic!("{grant:?} was given to {ask:?}"),
    }
}

fn assert_is_one_line(cause: &str) {
    assert!(!cause.contains(char::is_control), "{cause:?}");
}

fn datagrams(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (datagram, rest) = rest.split_at(length);
        bytes = rest;
        Some(datagram)
    })
}

/// The policy file: either it is understood as a whole, or the error names a line.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match policy::parse(text) {
        Ok(rules) => {
            assert!(rules.len() <= text.lines().count());
            for rule in rules {
                assert!(!rule.ports.is_empty());
                assert!(
                    rule.ports
                        .iter()
                        .all(|it| !it.is_empty() && *it.start() > 0)
                );
            }
        }
        Err(BadPolicy::Line { number, .. }) => {
            assert!((1..=text.lines().count()).contains(&usize::try_from(number).unwrap()));
        }
        Err(other) => panic!("{other:?} is not about a line"),
    }
}
