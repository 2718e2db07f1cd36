//! The system calls. One file per kind of system, each a complete implementation of the same items:
//!
//! - `State`: what has to be known per socket to send and receive.
//!   - `State::new(&socket2::Socket, packet_info) -> io::Result<State>` sets the options of a socket.
//!   - `send(&self, SockRef, &Outgoing) -> io::Result<()>` hands datagrams to the kernel, all of them or none.
//!   - `max_segments(&self) -> usize`: datagrams in one `Outgoing`, at most; 1 without segmentation offload.
//!   - `segmentation_failed(&self)`: told when a train was refused by a driver.
//! - `Buffers`: room for received trains.
//!   - `Buffers::new(slots)`, `receive(&mut self, SockRef, &State) -> io::Result<usize>` fills it (how many slots),
//!     `train(&self, slot) -> RawTrain`.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
};

use crate::transmit::Ecn;

#[cfg_attr(all(any(target_os = "linux", target_os = "android"), not(backwater_portable)), path = "linux.rs")]
#[cfg_attr(not(all(any(target_os = "linux", target_os = "android"), not(backwater_portable))), path = "portable.rs")]
mod imp;

#[cfg(all(any(target_os = "linux", target_os = "android"), not(backwater_portable)))]
mod cmsg;

#[cfg_attr(unix, path = "errno_unix.rs")]
#[cfg_attr(not(unix), path = "errno_windows.rs")]
mod errno;

#[cfg_attr(unix, path = "registration_unix.rs")]
#[cfg_attr(not(unix), path = "registration_windows.rs")]
mod registration;

pub(crate) use errno::errno;
pub(crate) use imp::{Buffers, State};
pub(crate) use registration::Registration;

/// Bytes of a receive slot: the largest datagram or train.
pub(crate) const SLOT_BYTES: usize = 65_536;

/// Datagrams for one system call.
pub(crate) struct Outgoing<'a> {
    pub(crate) destination: SocketAddr,
    pub(crate) source: Option<IpAddr>,
    pub(crate) ecn: Option<Ecn>,
    pub(crate) slices: &'a [IoSlice<'a>],
    /// The length of each datagram but the last, when there is more than one.
    pub(crate) segment_size: Option<u16>,
}

/// A received train, or a single datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawTrain<'a> {
    pub(crate) source: SocketAddr,
    pub(crate) local_ip: Option<IpAddr>,
    pub(crate) ecn: Option<Ecn>,
    pub(crate) segment_size: usize,
    pub(crate) payload: &'a [u8],
}
