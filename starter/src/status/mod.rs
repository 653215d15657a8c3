//! The files that tell what runs: pid file, status file, and `FILE.json` beside each.

pub mod file;
mod from_machine;
pub mod lines;
mod list;
pub mod pid_file;
mod replaced;
pub mod view;
