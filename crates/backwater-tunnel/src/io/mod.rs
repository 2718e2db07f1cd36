//! What moves bytes between the device, the sockets and the engine.

pub(crate) mod event_loop;
pub(crate) mod path;
mod yield_budget;
