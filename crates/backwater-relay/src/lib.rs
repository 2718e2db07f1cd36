//! A TURN relay (RFC 8656) over UDP: the event loop around [`backwater_turn::server`].
//!
//! One thread per core, each with a listener of its own on the shared port and with state that is its own: a client's
//! datagrams all come to one thread, and no lock is on their way.

#![forbid(unsafe_code)]

mod admin;
pub mod commands;
mod config;
mod coturn;
mod counters;
mod endpoint;
mod external;
mod fields;
mod health;
mod hooks;
mod ingress;
mod log_limit;
mod ports;
mod pulse;
mod relay;
mod reload;
mod runs;
mod worker;

pub use config::{Arguments, Config, ConfigError, FirstRun};
pub use coturn::{Import, Note, import};
pub use counters::{Counter, Counters};
pub use ingress::stream::CutOff;
pub use relay::{Relay, StartError};
