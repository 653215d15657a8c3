//! What is written down about the running superdaemon, for programs and people.

pub mod file;
pub mod pid_file;
mod replaced;
mod settings;

pub use self::settings::{Settings, Shown};
