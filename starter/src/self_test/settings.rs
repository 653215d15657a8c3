//! Settings for the self-test.

use crate::host::identity;

/// How its servers are started.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub identity: identity::Settings,
    /// They are started with `--strict`.
    pub is_strict: bool,
}
