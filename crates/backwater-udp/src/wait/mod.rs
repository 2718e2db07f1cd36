//! What happens to a datagram that the system has no room for.
//!
//! - [`decision`]: what a failed system call means, as one table.
//! - [`backoff`]: when a sender that waits tries again.
//! - [`fairness`]: the senders of a socket that wait for the same, and which of them tries for all.
//! - [`core`](self::core): the send loop, which puts the three together, and the queue of many destinations on top of it.
//!
//! `core` makes the system calls, and asks `decision` about each that fails. What is refused waits: `fairness` has the group that
//! it waits in, with one `backoff` for the whole group. None of the first three does I/O or reads a clock, and all four reach the
//! system by the trait [`Io`](crate::io::Io), so that the tests run them as shipped over a model.

pub(crate) mod backoff;
pub(crate) mod core;
pub(crate) mod decision;
pub(crate) mod fairness;
