//! The program and the library, with real clients and real sockets.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[cfg(target_os = "linux")]
#[path = "../../../backwater-udp/tests/support/icmp.rs"]
mod icmp;
#[path = "../../../backwater-udp/tests/support/mod.rs"]
mod support;

mod abuse;
mod admin;
mod client;
mod clients;
mod clock;
mod commands;
mod data_path;
mod dual_stack;
#[cfg(target_os = "linux")]
mod forged_icmp;
mod fragments;
mod hardship;
mod hooks;
mod hops;
mod limits;
mod mobility;
mod nat;
mod operations;
mod operator;
mod packaging;
mod page;
#[cfg(target_os = "linux")]
mod paths;
mod program;
mod proto_client;
mod reload;
mod security;
mod sessions;
mod start;
mod streams;
mod webrtc;
