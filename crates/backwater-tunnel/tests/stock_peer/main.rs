//! The tunnel, end to end: the program in networks that the tests make, against wireguard-go.
//!
//! What has to wait for minutes is one test, so that everything else runs meanwhile.

#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod across_minutes;
mod bad_input;
mod close;
mod control;
mod exit_node;
mod memory;
mod moves;
mod names;
mod overload;
mod path_mtu;
mod relayed;
mod secrecy;
mod soak;
mod surroundings;
mod talk;
mod uapi;
