//! A WireGuard client whose event loop manages the queue in front of a congested path instead of losing in it.

#![forbid(unsafe_code)]

mod allowed;
pub mod commands;
pub mod config;
mod control;
pub mod counters;
#[cfg(target_os = "linux")]
mod dns;
mod endpoints;
mod event_loop;
mod hooks;
mod lengths;
pub mod link;
mod notices;
pub mod packet;
mod path;
mod path_mtu;
mod peer;
mod programs;
pub mod queue;
mod session_indices;
mod signals;
mod slots;
pub mod status;
#[cfg(target_os = "linux")]
mod uapi;
mod yield_budget;
