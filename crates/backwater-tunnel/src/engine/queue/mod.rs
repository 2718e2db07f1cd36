//! The queue in front of a path: flows take turns, and CoDel marks or drops instead of letting it fill. No I/O; time is
//! an argument.

pub mod codel;
pub mod fair;
pub mod rate;
#[cfg(test)]
mod simulation;
