//! From what the command line says to sockets that listen, and how workers are told about them.

pub mod bind;
pub mod binder;
pub mod dialects;
pub mod holders;
mod settings;
pub mod spec;

pub use self::settings::Settings;
