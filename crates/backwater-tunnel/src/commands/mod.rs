//! What the program can be asked to do.

pub mod check;
#[cfg(target_os = "linux")]
pub mod device;
pub mod generate;
pub mod set;
pub mod status;
pub mod up;
