//! What the binaries share: logs and the end of the process.

#![forbid(unsafe_code)]

mod logs;
mod shutdown;

pub use logs::{BadFilter, Logs};
pub use shutdown::termination;
