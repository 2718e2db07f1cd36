//! The engine in virtual time: real engines, and a network that is a model.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod minutes;
mod model;
mod network;
mod node;
mod random;
mod worlds;
