//! Load for TURN servers, and what the host does that they run on.
//!
//! [`clients`] are many clients of a TURN server, and [`load`] sends through them, up, down or from one to another, faster
//! than any server relays; [`forward`] is what a server is measured against: it relays and does nothing else. [`pressure`]
//! measures what this host does when it has no room for a datagram.
//!
//! One thread does everything, on a current-thread tokio runtime.
#![forbid(unsafe_code)]

pub mod clients;
pub mod forward;
pub mod load;
pub mod pressure;
pub mod turn;

mod drops;
mod errno;
mod latency;
mod pace;
