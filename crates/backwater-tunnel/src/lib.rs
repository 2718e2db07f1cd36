//! A WireGuard client whose event loop manages the queue in front of a congested path instead of losing in it.

#![forbid(unsafe_code)]
#![cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "`wg` changes a running tunnel on Linux alone"))]

pub mod commands;
pub mod config;
mod control;
pub mod device;
#[cfg(target_os = "linux")]
mod dns;
pub mod engine;
mod hooks;
mod io;
mod notices;
mod programs;
mod signals;
pub mod status;
#[cfg(target_os = "linux")]
mod uapi;

pub use engine::{counters, packet, queue};
