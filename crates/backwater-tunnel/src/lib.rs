//! A WireGuard client whose event loop manages the queue in front of a congested path instead of losing in it.

#![forbid(unsafe_code)]

mod allowed;
pub mod commands;
pub mod config;
mod control;
pub mod counters;
mod endpoints;
mod event_loop;
mod lengths;
pub mod link;
mod notices;
pub mod packet;
mod path;
mod path_mtu;
mod peer;
pub mod queue;
mod session_indices;
mod signals;
pub mod status;
mod yield_budget;
