//! The files that show what runs: pid file, status file, and `FILE.json` beside each.

pub mod dry_run;
pub mod file;
mod from_machine;
pub mod lines;
mod list;
pub mod pid_file;
mod replaced;
mod settings;
mod shown;
pub mod view;

pub use self::settings::{Settings, Shown};
