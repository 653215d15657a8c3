//! `--restart`, `--stop` and `--reopen`: each signals a running start_server and waits until the outcome is known.

mod follower;
mod reopen;
mod restart;
mod server;
mod settings;
mod status;
mod stop;
mod wait;

pub use self::reopen::reopen;
pub use self::restart::restart;
pub use self::settings::Settings;
pub use self::status::Status;
pub use self::stop::stop;
