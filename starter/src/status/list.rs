//! A list in a file that somebody else may have written.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// A list of which a reader keeps only the last `MOST` elements: the newest, if they are in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct List<T, const MOST: usize>(Vec<T>);

impl<T, const MOST: usize> Default for List<T, MOST> {
    fn default() -> Self {
        List(Vec::new())
    }
}

impl<T, const MOST: usize> Deref for List<T, MOST> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T, const MOST: usize> FromIterator<T> for List<T, MOST> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        List(elements.into_iter().collect())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for List<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

struct Elements<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Elements<T, MOST> {
    type Value = List<T, MOST>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<List<T, MOST>, A::Error> {
        let mut last = VecDeque::new();
        while let Some(element) = elements.next_element()? {
            if last.len() == MOST {
                last.pop_front();
            }
            last.push_back(element);
        }
        Ok(List(last.into()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_last_elements_are_kept() {
        let read = |text: &str| serde_json::from_str::<List<u32, 3>>(text).unwrap();
        assert_eq!(*read("[]"), [0; 0]);
        assert_eq!(*read("[1,2,3]"), [1, 2, 3]);
        assert_eq!(*read("[1,2,3,4,5]"), [3, 4, 5]);
        let list: List<u32, 3> = (1..=5).collect();
        // Writing is unbounded.
        assert_eq!(serde_json::to_string(&list).unwrap(), "[1,2,3,4,5]");
    }
}
