//! TURN (RFC 8656) as state machines without I/O.
//!
//! Bytes and the time go in, decisions come out; sockets, timers and threads are the caller's. Nothing here waits,
//! and nothing that a network sends panics or allocates without bound.

#![forbid(unsafe_code)]

mod address;
mod auth;
mod bucket;
mod failure_limit;
mod peers;
mod quota;
mod random;
mod relayed_ports;
mod reply_limit;
pub mod server;

pub use address::{ClientAddr, Families, FiveTuple, PeerAddr, PerFamily, RelayedAddr};
pub use auth::{AuthFailure, AuthFailureReason, Credentials, CredentialsError, time_limited_password};
pub use failure_limit::FailureLimit;
pub use peers::{PeerRefused, PeerRules, Subject};
pub use quota::{Limits, OverQuota, QuotaReason, Quotas};
pub use relayed_ports::RelayedPorts;
pub use reply_limit::ReplyLimit;

use std::time::{Duration, Instant};

/// The time, which the state machines never ask for themselves.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// What lifetimes are measured with.
    pub instant: Instant,
    /// Since 1970-01-01 UTC: what nonces and time-limited credentials are dated with.
    pub unix: Duration,
}
