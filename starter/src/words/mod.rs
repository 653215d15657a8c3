//! Every message that this program shows at run time, and what makes text safe to show.

pub mod canary;
pub mod distrust;
pub mod failure;
pub mod file_type;
pub mod findings;
pub mod guardian;
pub mod lack;
pub mod manager;
pub mod many;
pub mod notice;
pub mod number;
pub mod parts;
pub mod progress;
pub mod remedy;
pub mod rollback;
mod sentence;
pub mod start_failure;
pub mod stop_first;
pub mod stopping;
pub mod subject;
pub mod switch;
pub mod text;
pub mod trouble;
pub mod upgrade;
