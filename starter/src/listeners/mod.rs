//! From what the command line says to sockets that listen, and how workers are told about them.
//!
//! What only root can do is asked of binders, everything else is done here. Each step consumes the one before, so that the
//! order cannot be wrong:
//!
//! 1. [`plan::Plan::new`]: who makes which socket; owners are looked up. Still with the launcher's rights.
//! 2. [`plan::Plan::start_binders`]: the binders run and have their sealed lists. Still with the launcher's rights.
//! 3. The caller drops its privileges.
//! 4. [`plan::Prepared::resolve`]: host names become addresses.
//! 5. [`bind::Resolved::bind`]: sockets are asked for and received, and they listen.

pub mod bind;
pub mod binder;
pub mod dialects;
pub mod health;
pub mod holders;
pub mod plan;
mod refusal;
mod second_name;
mod settings;
mod sockets;
pub mod spec;
mod user_directory;

pub use self::settings::Settings;
