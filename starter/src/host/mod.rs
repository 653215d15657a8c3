//! The process that this program runs in, and the system around it.

pub mod access;
pub mod confinement;
pub mod daemon;
pub mod dispositions;
pub mod identity;
pub mod launcher;
pub mod locks;
pub mod low_ports;
pub mod luggage;
pub mod memory;
pub mod moment;
pub mod open_files;
pub mod order;
pub mod own_program;
pub mod passed_on;
pub mod proc;
pub mod process;
pub mod runtime_dir;
pub mod sealed;
pub mod signals;
pub mod sock_diag;
pub mod streams;
pub mod terminal;
pub mod watch;
