//! A check of TURN servers, load for them, and a measurement of back-pressure on this host.
//!
//! [`check`](mod@check) uses a server as a program would, and says what works.
//! [`clients`] makes many clients of a TURN server. [`load`] sends through them, up, down or from one to another, faster than any
//! server relays. [`forward`] relays and does nothing else, as a limit to compare servers with. [`pressure`] measures what this host
//! does when it has no room for a datagram.
//!
//! One thread does everything, on a current-thread tokio runtime.
#![forbid(unsafe_code)]

pub mod check;
pub mod clients;
pub mod forward;
pub mod load;
pub mod pressure;
pub mod turn;

mod drops;
mod errno;
mod latency;
mod pace;
