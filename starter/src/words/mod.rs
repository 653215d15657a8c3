//! Every message that this program shows at run time, and what makes text safe to show.

pub mod distrust;
pub mod exec_failure;
pub mod failure;
pub mod lack;
pub mod notice;
pub mod number;
pub mod remedy;
pub mod text;
pub mod trouble;
