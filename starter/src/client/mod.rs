//! Requests to a running start_server. `--restart`, `--promote`, `--rollback`, `--abort`, `--scale`, `--upgrade`, `--stop` and
//! `--reopen` signal it and wait until the outcome is known; `--status` only looks at it.

mod follower;
mod for_people;
mod for_programs;
mod observed;
mod overview;
mod progress;
mod reopen;
mod restart;
mod scale;
mod server;
mod settings;
mod sheet;
mod show;
mod status;
mod stop;
mod upgrade;
mod verdict;
mod wait;

pub use self::reopen::reopen;
pub use self::restart::{abort, promote, restart, rollback};
pub use self::scale::scale;
pub use self::settings::{Form, Settings};
pub use self::show::{in_every_form, show};
pub use self::status::{Asked, Status};
pub use self::stop::stop;
pub use self::upgrade::upgrade;
pub use self::verdict::in_every_form as restart_in_every_form;
