//! The program and the library, with real clients and real sockets.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../../../backwater-udp/tests/support/mod.rs"]
mod support;

mod abuse;
mod admin;
mod client;
mod clients;
mod clock;
mod data_path;
mod dual_stack;
mod fragments;
mod hardship;
mod limits;
mod mobility;
mod nat;
mod program;
mod proto_client;
mod security;
