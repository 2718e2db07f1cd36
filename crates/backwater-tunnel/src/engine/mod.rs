//! Peers, sessions, queues and packets.

pub(crate) mod allowed;
pub mod counters;
pub(crate) mod endpoints;
pub(crate) mod lengths;
pub mod packet;
pub(crate) mod path_mtu;
pub(crate) mod peer;
pub mod queue;
pub(crate) mod session_indices;
pub(crate) mod slots;
