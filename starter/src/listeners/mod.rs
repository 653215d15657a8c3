//! From the command line to listening sockets, and how workers learn about them.
//!
//! Binders do what only root can do, everything else is done here. Each step consumes the one before, so the order cannot
//! be wrong:
//!
//! 1. [`plan::Plan::new`]: decides who creates which socket, and looks up owners. Still with the launcher's privileges.
//! 2. [`plan::Plan::start_binders`]: starts the binders and sends their sealed lists. Still with the launcher's privileges.
//! 3. The caller drops its privileges.
//! 4. [`plan::Prepared::resolve`]: turns host names into addresses.
//! 5. [`bind::Resolved::confine`]: the binders have given up all that they do not need.
//! 6. [`bind::Confined::make`]: requests what root makes for the user besides sockets.
//! 7. [`bind::Confined::bind`]: requests and receives the sockets, and listens on them.

pub mod backlog;
pub mod bind;
pub mod binder;
pub mod dialects;
pub mod dry_run;
pub mod for_user;
mod foreign_spelling;
pub mod group;
pub mod health;
pub mod holders;
pub mod inherited;
pub mod lanes;
mod launchers_file;
mod listen;
pub mod listener;
pub mod numbers;
pub mod packed;
pub mod plan;
mod policy_names;
pub mod program;
pub mod queues;
mod refusal;
mod second_name;
mod settings;
pub mod socket_files;
pub mod sockets;
pub mod spec;
mod store;
mod stored;
mod user_directory;

pub use self::settings::{Settings, Switch};
