//! What moves bytes between the device, the sockets, the timers, the control sockets and the engine.

#[cfg(target_os = "linux")]
mod configure;
pub(crate) mod event_loop;
mod events;
mod network;
mod receive;
mod relay;
mod show;
pub(crate) mod sockets;
mod yield_budget;
