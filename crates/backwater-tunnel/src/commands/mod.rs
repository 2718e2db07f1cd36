//! What the program can be asked to do.

pub mod check;
pub mod generate;
pub mod set;
pub mod status;
pub mod up;
