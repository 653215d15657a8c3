//! Who is asked for a proof, as sentences name it.

use std::fmt::{self, Display, Formatter};

/// The worker in one slot of a generation. Where the generation has no other, it is the generation that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whom {
    pub generation: u32,
    pub slot: usize,
    /// Whether its generation has other workers.
    pub has_others: bool,
    /// Whether its generation is on its way to its commit.
    pub is_new: bool,
}

impl Whom {
    /// The same one, of a generation that has committed.
    pub fn that_serves(self) -> Whom {
        Whom {
            is_new: false,
            ..self
        }
    }

    /// The command that is run for it.
    pub fn command(self) -> String {
        match self.has_others {
            true => format!("the --ready command for worker {}", self.slot),
            false => "the --ready command".to_owned(),
        }
    }
}

impl Display for Whom {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        if self.has_others {
            write!(to, "worker {} of ", self.slot)?;
        }
        match self.is_new {
            true => to.write_str("the new generation"),
            false => write!(to, "generation {}", self.generation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_named_where_it_is_not_the_only_one() {
        let alone = Whom {
            generation: 5,
            slot: 2,
            has_others: false,
            is_new: true,
        };
        let one = Whom {
            has_others: true,
            ..alone
        };
        for (whom, expected) in [
            (alone, "the new generation"),
            (alone.that_serves(), "generation 5"),
            (one, "worker 2 of the new generation"),
            (one.that_serves(), "worker 2 of generation 5"),
        ] {
            assert_eq!(whom.to_string(), expected);
        }
        assert_eq!(alone.command(), "the --ready command");
        assert_eq!(one.command(), "the --ready command for worker 2");
    }
}
