//! The process that this program runs in, and the system around it.

pub mod confinement;
pub mod daemon;
pub mod identity;
pub mod moment;
pub mod open_files;
pub mod process;
pub mod terminal;
