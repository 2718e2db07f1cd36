//! A TURN server and a TURN client (RFC 8656) as state machines without I/O.
//!
//! Datagrams and the time go in, decisions come out. Sockets, timers and threads are the caller's. No function waits, and no
//! datagram makes one panic or allocate without bound.
//!
//! [`client`] says how to drive a [`Client`](client::Client), and [`server`] a [`Server`](server::Server). The server in short:
//!
//! ```
//! # use std::{sync::Arc, time::{Duration, Instant}};
//! # use backwater_turn::{*, server::*};
//! # let mut credentials = Credentials::new("example.org").unwrap();
//! # credentials.add_user("alice", "secret").unwrap();
//! # let now = Now { instant: Instant::now(), unix: std::time::UNIX_EPOCH.elapsed().unwrap() };
//! # let mut server = Server::new(Config {
//! #     credentials: credentials.into(), directory: None, peers: PeerRules::default(), families: Families { v4: true, v6: false },
//! #     max_lifetime: Duration::from_secs(3600),
//! #     quotas: Quotas::new(Limits::default(), Limits::default(), now.instant),
//! #     reply_limit: None, failure_limit: None, relayed_ports: Arc::default(), nonce_key: [1; 64], thread: 0,
//! # });
//! # let source = "192.0.2.1:5000".parse().unwrap();
//! # let from = FiveTuple::udp(ClientAddr(source), "198.51.100.1:3478".parse().unwrap());
//! # let datagram = &[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
//! # let mut sent = 0;
//! let mut reply = [0; MAX_REPLY];
//! match server.handle_client(now, from, datagram, &mut reply) {
//!     Action::Forward { via, to, range, .. } => { /* send datagram[range] to the peer, from the socket of `via` */ }
//!     Action::Reply(len) => { /* send reply[..len] to the client */
//! # sent = len;
//!     }
//!     Action::Bind(bind) => { /* bind sockets, then call server.bound(..) and send the reply */ }
//!     _ => { /* see Action */ }
//! }
//! while let Some((id, families)) = server.expire(now.instant) {
//!     // close these sockets of `id`
//! }
//! let next = server.poll_timeout(); // call expire again then
//! # assert!(sent > 0 && next.is_none());
//! ```

#![forbid(unsafe_code)]

mod address;
mod auth;
mod bucket;
pub mod client;
mod failure_limit;
mod peers;
mod quota;
mod random;
mod relayed_ports;
mod reply_limit;
pub mod server;
mod unread;

pub use address::{ClientAddr, Families, FiveTuple, PeerAddr, PerFamily, Protocol, RelayedAddr};
pub use auth::{
    AuthFailure, AuthFailureReason, Credentials, CredentialsError, Directory, HashedPassword, time_limited_password,
};
pub use failure_limit::FailureLimit;
pub use peers::{PeerRefused, PeerRules, Subject};
pub use quota::{Limits, OverQuota, QuotaReason, Quotas};
pub use relayed_ports::RelayedPorts;
pub use reply_limit::ReplyLimit;

use std::time::{Duration, Instant};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The time, which the caller passes in.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The monotonic time, for lifetimes.
    pub instant: Instant,
    /// The time since 1970-01-01 UTC, for nonces and time-limited users.
    pub unix: Duration,
}
