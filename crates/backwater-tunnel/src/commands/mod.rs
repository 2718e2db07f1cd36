//! What the program can be asked to do.

pub mod set;
pub mod status;
pub mod up;

/// The configuration cannot be used.
const BAD_CONFIGURATION: u8 = 2;

/// It did not work.
const FAILED: u8 = 1;
