//! The system calls, and readiness. One file per kind of system, each a complete implementation of the same items.
//!
//! `linux.rs`, `portable.rs`:
//! - `State`: what has to be known per socket to send and receive.
//!   - `State::new(&socket2::Socket, packet_info) -> io::Result<State>` sets the options of a socket.
//!   - `send(&self, SockRef, &Outgoing, peer) -> io::Result<()>` hands datagrams to the kernel, all of them or none.
//!     `peer` is whom the socket is connected to: other destinations are refused.
//!   - `send_several(&self, SockRef, impl Iterator<Item = Outgoing>, peer) -> io::Result<SentSeveral>`: the same for several, in
//!     their order; how many the kernel took, or the error about the first.
//!   - `limits(&self, &SocketAddr, segment_bytes) -> (usize, usize)`: datagrams and bytes in one `Outgoing` to this destination, at
//!     most; one datagram without segmentation offload.
//!   - `segmentation_refused(&self, &SocketAddr, segment_bytes)` remembers that the kernel refuses GSO batches with such segments, or
//!     longer ones, to this destination.
//!   - `receive_hop_limit(&self, &Socket)` has the system tell the hop limits of what is received, where it can.
//!   - `set_fragmentation(&self, &Socket, Fragmentation) -> io::Result<()>`; `Never` is what `new` sets, where there is a way.
//!   - `drain_errors(&self, SockRef, FnMut(IcmpError))` empties the error queue, within a budget; passes on what was
//!     received. Of what was made here, which belongs to the call that failed, it passes on the route's MTU.
//!   - `max_segments(&self)`, `max_receive_segments(&self)`: datagrams of a GSO batch to a destination that nothing is known of, and of
//!     a GRO batch, at most.
//!   - `receive_timestamps(&self, &Socket)` has the system tell when it received, where it can; `no_receive_offload(&self, &Socket)` has
//!     datagrams arrive one by one.
//! - `set_leaving(&Socket, &Leaving) -> io::Result<()>` sets how datagrams leave, before the state is made.
//! - `OS`: which row of the decision table applies; `RECEIVE_INTEREST`: what a receiver waits for.
//!
//! `receive_linux.rs`, `receive_portable.rs`:
//! - `Buffers::receive(&mut self, SockRef, &State) -> io::Result<usize>` fills them, and returns how many slots it has filled.
//! - `Slots`: what a call needs beside the caller's buffers; `Slots::new(slots)`, `receive_into(&mut self, SockRef, &State, bufs, metas)`;
//!   `Slots::over(&mut [u8])` are for the memory of `Buffers`.
//!
//! `connected.rs` is what `portable.rs` sends with on a connected socket.
//!
//! `reactor_unix.rs`, `reactor_windows.rs`: `Io`, the socket; `Reader`, its registration to receive, which also puts another socket in
//! its place; `Registration`, one sender's registration to send.
//!
//! `replacement_unix.rs`, `replacement_windows.rs`: `replacement(&Socket, SocketAddr) -> io::Result<Socket>`, a socket with the options
//! of another, to put in its place; `connected_beside`, one that is connected at the same port; `deafen`, so that it receives no more.
//!
//! `send_only_linux.rs`, `send_only_portable.rs`: `send_buffer`, how full a send buffer is; `send_only`, a second socket that sends from the
//! same address and port, and receives nothing. Only Linux has them.
//!
//! `errno_unix.rs`, `errno_windows.rs`: `errno`, the errors of a send from their numbers; `writable`, whether the socket
//! says that it has room.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
    time::Instant,
};

use crate::{Ecn, transmit::Header};

#[cfg_attr(all(any(target_os = "linux", target_os = "android"), not(backwater_portable)), path = "linux.rs")]
#[cfg_attr(not(all(any(target_os = "linux", target_os = "android"), not(backwater_portable))), path = "portable.rs")]
mod imp;

#[cfg(all(any(target_os = "linux", target_os = "android"), not(backwater_portable)))]
mod cmsg;

#[cfg(all(any(target_os = "linux", target_os = "android"), not(backwater_portable)))]
mod devices;

#[cfg_attr(all(any(target_os = "linux", target_os = "android"), not(backwater_portable)), path = "receive_linux.rs")]
#[cfg_attr(
    not(all(any(target_os = "linux", target_os = "android"), not(backwater_portable))),
    path = "receive_portable.rs"
)]
mod receive;

#[cfg_attr(all(any(target_os = "linux", target_os = "android"), not(backwater_portable)), path = "send_only_linux.rs")]
#[cfg_attr(
    not(all(any(target_os = "linux", target_os = "android"), not(backwater_portable))),
    path = "send_only_portable.rs"
)]
mod send_only;

#[cfg(all(unix, any(test, not(any(target_os = "linux", target_os = "android")), backwater_portable)))]
mod connected;

#[cfg_attr(unix, path = "errno_unix.rs")]
#[cfg_attr(not(unix), path = "errno_windows.rs")]
mod errno;

#[cfg_attr(unix, path = "reactor_unix.rs")]
#[cfg_attr(not(unix), path = "reactor_windows.rs")]
mod reactor;

#[cfg_attr(unix, path = "replacement_unix.rs")]
#[cfg_attr(not(unix), path = "replacement_windows.rs")]
mod replacement;

mod buffers;
mod segmentation;

pub(crate) use buffers::Buffers;
pub(crate) use errno::{errno, writable};
pub(crate) use imp::{OS, State, set_leaving};
pub(crate) use reactor::{Io, Reader, Registration};
pub(crate) use receive::Slots;
pub(crate) use replacement::{connected_beside, deafen, replacement};
pub(crate) use segmentation::Segmentation;
pub(crate) use send_only::{send_buffer, send_only};

#[cfg(test)]
mod errno_tests;

/// Bytes of a receive slot: the largest datagram or train.
pub(crate) const SLOT_BYTES: usize = 65_536;

/// Whether both are the same address, one of them perhaps mapped into IPv6.
fn is_same(one: &SocketAddr, other: &SocketAddr) -> bool {
    one == other || one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

/// Whether a socket of one family is to send from an address of the other.
fn is_of_another_family(source: &Option<IpAddr>, v6: bool) -> bool {
    // An IPv6 socket may send IPv4.
    !v6 && source.is_some_and(|source| source.to_canonical().is_ipv6())
}

/// Datagrams for one system call.
pub(crate) struct Outgoing<'a> {
    pub(crate) destination: &'a SocketAddr,
    pub(crate) source: &'a Option<IpAddr>,
    pub(crate) ecn: Option<Ecn>,
    /// What the socket has to be told first: the caller of `send` has.
    pub(crate) header: Header,
    pub(crate) slices: &'a [IoSlice<'a>],
    /// Of all the slices.
    pub(crate) bytes: usize,
    /// The length of each datagram but the last, when there is more than one.
    pub(crate) segment_size: Option<u16>,
}

/// What became of several messages.
pub(crate) struct SentSeveral {
    /// How many the kernel took.
    pub(crate) messages: usize,
    /// Whether the one after them failed, for a reason that the kernel has not reported and will not.
    pub(crate) failed: bool,
}

/// Sends until one is refused.
pub(crate) fn one_by_one<'a>(
    outs: impl Iterator<Item = Outgoing<'a>>,
    send: impl Fn(&Outgoing<'_>) -> io::Result<()>,
) -> io::Result<usize> {
    let mut sent = 0;
    for out in outs {
        match send(&out) {
            Err(e) if sent == 0 => return Err(e),
            Err(_) => break,
            Ok(()) => sent += 1,
        }
    }
    Ok(sent)
}

/// Copies the slices, one behind the other, to where there is room for them.
fn gather(slices: &[IoSlice<'_>], mut room: &mut [u8]) {
    for slice in slices {
        let Some((place, rest)) = room.split_at_mut_checked(slice.len()) else { break };
        // Headers are short: for the four bytes of ChannelData a call to copy them takes longer than the copy.
        match (<&mut [u8; 4]>::try_from(&mut *place), <&[u8; 4]>::try_from(&**slice)) {
            (Ok(place), Ok(header)) => *place = *header,
            _ => place.copy_from_slice(slice),
        }
        room = rest;
    }
}

/// The slices as one, copied into a buffer of the thread's.
#[inline(always)]
fn gathered<R>(out: &Outgoing<'_>, send: impl FnOnce(&[u8]) -> R) -> R {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    // Taken out meanwhile: a thread that ends has none any more, and gets one for the occasion.
    let mut buffer = BUFFER.try_with(RefCell::take).unwrap_or_default();
    // It keeps its length: to ask for room slice by slice costs as much as to copy short ones.
    if buffer.len() < out.bytes {
        buffer.resize(out.bytes, 0);
    }
    gather(out.slices, &mut buffer);
    let sent = send(buffer.get(..out.bytes).unwrap_or_default());
    let _ = BUFFER.try_with(|kept| kept.replace(buffer));
    sent
}

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// In seconds, from one on. Not the wall clock's: one that is set back would keep a refusal for longer.
fn now() -> u64 {
    BEGINNING.elapsed().as_secs() + 1
}
