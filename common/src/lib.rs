//! What the two processes of start_server must agree on, and what workers written in Rust need of it.
//!
//! No policy lives here: `starter` decides what to ask for, `binder` what to grant.

#[cfg(feature = "boundary")]
pub mod channel;
#[cfg(feature = "boundary")]
pub mod descriptors;
#[cfg(feature = "boundary")]
pub mod entry;
#[cfg(feature = "boundary")]
pub mod for_user;
#[cfg(feature = "boundary")]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "boundary")]
pub mod message;
#[cfg(feature = "boundary")]
pub mod privileges;
#[cfg(feature = "boundary")]
pub mod signals;
#[cfg(feature = "boundary")]
pub mod stat;
#[cfg(feature = "boundary")]
pub mod trusted_path;
#[cfg(feature = "boundary")]
pub mod unix_socket;
#[cfg(feature = "boundary")]
pub mod wire;

#[cfg(feature = "server_ports")]
mod server_ports;
#[cfg(feature = "server_ports")]
pub use server_ports::{Listener, ServerPort, ServerPortsError, lane, put_lane, server_ports};
