//! The longest GSO batch that network devices above others pass on as one (`RTM_GETLINK`, rtnetlink(7)).
//!
//! A device that is given a longer batch than its `gso_max_segs` and `gso_max_size` allow has the kernel cut it into packets
//! (`gso_features_check`). A device with a queue does so behind the queue, which takes a batch or refuses it. A device above another
//! one (macvlan, VLAN, bond) has no queue: the lower device's queue then drops some of the packets, and the send succeeds.
//!
//! So no batch is longer than all such devices allow that are up, wherever it goes. To look up the route of each destination would
//! cost a system call for each, and would be wrong where more than the destination decides: marks, users, ports, bound devices.

use std::{
    cell::Cell,
    collections::BTreeSet,
    io::{self, Read, Write},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use libc::c_int;
use socket2::{Domain, Protocol, Socket, Type};

use super::now;
use crate::gso::MAX_SEGMENTS;

/// Datagrams and payload bytes of a batch, at most.
#[inline]
pub(crate) fn limits() -> (usize, usize) {
    let limits = Limits::from_bits(LIMITS.load(Relaxed));
    (limits.datagrams as usize, limits.bytes as usize)
}

/// Looks at the devices, for a socket that is made: the first one of the process waits for the answer.
pub(crate) fn socket_made() {
    if LOOKED.compare_exchange(0, now(), Relaxed, Relaxed).is_ok() { look() } else { look_again() }
}

/// Counts a batch that is offered to the kernel: devices change, so each thread looks again now and then.
#[inline]
pub(crate) fn batch_offered() {
    thread_local! {
        static BATCHES: Cell<u8> = const { Cell::new(0) };
    }
    let batches = BATCHES.get().wrapping_add(1);
    BATCHES.set(batches);
    if batches == 0 {
        look_again();
    }
}

static LIMITS: AtomicU64 = AtomicU64::new(Limits::NONE.to_bits());

/// When somebody has looked last, as [`now`] counts; 0 before the first time.
static LOOKED: AtomicU64 = AtomicU64::new(0);

/// Seconds between two looks, at least.
const INTERVAL: u64 = 10;

#[cold]
fn look_again() {
    let (now, last) = (now(), LOOKED.load(Relaxed));
    if now >= last + INTERVAL && LOOKED.compare_exchange(last, now, Relaxed, Relaxed).is_ok() {
        // On a thread of its own: the kernel makes those who ask wait while it changes devices.
        let _ = thread::Builder::new().name("backwater-links".into()).spawn(look);
    }
}

/// Where the kernel does not answer (in a sandbox, on Android), no limit is known.
fn look() {
    if let Ok(limits) = ask() {
        LIMITS.store(limits.to_bits(), Relaxed);
    }
}

/// Reads of an answer, each of up to [`READ_BYTES`]: some 20 devices.
const MAX_READS: usize = 10_000;
const READ_BYTES: usize = 32 << 10;

fn ask() -> io::Result<Limits> {
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    // Each part of the answer is there by the time that the call before it returns.
    socket.set_nonblocking(true)?;
    socket.write_all(&request())?;
    let (mut devices, mut buffer) = (Devices::default(), vec![0; READ_BYTES]);
    for _ in 0..MAX_READS {
        let read = socket.read(&mut buffer)?;
        if devices.read(buffer.get(..read).unwrap_or_default())? == Answer::Complete {
            return Ok(devices.limits());
        }
    }
    Err(io::ErrorKind::QuotaExceeded.into())
}

/// `linux/rtnetlink.h`; libc does not know it on Android.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// `struct nlmsghdr`, `struct ifinfomsg`, and the attribute that leaves out the counters of each device.
fn request() -> Vec<u8> {
    let (flags, filter) = ((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16, RTEXT_FILTER_SKIP_STATS);
    let mut request = Vec::with_capacity(40);
    request.extend(40u32.to_ne_bytes());
    request.extend(libc::RTM_GETLINK.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Sequence number and port, and all devices.
    request.extend([0; 8 + 16]);
    request.extend(8u16.to_ne_bytes());
    request.extend(libc::IFLA_EXT_MASK.to_ne_bytes());
    request.extend(filter.to_ne_bytes());
    request
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    datagrams: u32,
    bytes: u32,
}

impl Limits {
    const NONE: Self = Self { datagrams: MAX_SEGMENTS as u32, bytes: u32::MAX };

    const fn to_bits(self) -> u64 {
        (self.datagrams as u64) << 32 | self.bytes as u64
    }

    const fn from_bits(bits: u64) -> Self {
        Self { datagrams: (bits >> 32) as u32, bytes: bits as u32 }
    }
}

/// Headers of a packet in bytes, at most: Ethernet with two VLAN tags, IPv6 and UDP. The kernel counts them (`skb->len`).
const HEADERS: u32 = 22 + 40 + 8;

/// Since Linux 6.3; libc has it for Android only.
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Continued,
    Complete,
}

/// The devices that are up.
#[derive(Default)]
struct Devices {
    all: Vec<Device>,
    /// The indices of those that have others as ports: bonds, teams, bridges.
    masters: BTreeSet<u32>,
}

struct Device {
    index: u32,
    /// Whether it is made on top of another one.
    stacked: bool,
    limits: Limits,
}

impl Devices {
    /// Reads a part of the answer.
    fn read(&mut self, mut messages: &[u8]) -> io::Result<Answer> {
        while let Some([l0, l1, l2, l3, k0, k1, ..]) = messages.first_chunk::<16>() {
            let len = u32::from_ne_bytes([*l0, *l1, *l2, *l3]) as usize;
            let Some(body) = messages.get(16..len) else { return Err(io::ErrorKind::InvalidData.into()) };
            match u16::from_ne_bytes([*k0, *k1]) {
                libc::RTM_NEWLINK => self.add(body),
                kind if c_int::from(kind) == libc::NLMSG_DONE => return Ok(Answer::Complete),
                kind if c_int::from(kind) == libc::NLMSG_ERROR => return Err(io::ErrorKind::Other.into()),
                _ => {}
            }
            messages = messages.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(Answer::Continued)
    }

    /// A `struct ifinfomsg`, and attributes.
    fn add(&mut self, body: &[u8]) {
        let Some(([_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..], attributes)) = body.split_first_chunk::<16>()
        else {
            return;
        };
        let (index, flags) = ([*i0, *i1, *i2, *i3], [*f0, *f1, *f2, *f3]);
        let mut device = Device { index: u32::from_ne_bytes(index), stacked: false, limits: Limits::NONE };
        for (kind, value) in numbers(attributes) {
            match kind {
                libc::IFLA_LINK => device.stacked = true,
                libc::IFLA_MASTER => drop(self.masters.insert(value)),
                libc::IFLA_GSO_MAX_SEGS => device.limits.datagrams = device.limits.datagrams.min(value),
                libc::IFLA_GSO_MAX_SIZE | IFLA_GSO_IPV4_MAX_SIZE => {
                    // A packet of the maximum itself is cut.
                    device.limits.bytes = device.limits.bytes.min(value.saturating_sub(HEADERS + 1));
                }
                _ => {}
            }
        }
        if c_int::from_ne_bytes(flags) & libc::IFF_UP != 0 {
            self.all.push(device);
        }
    }

    fn limits(&self) -> Limits {
        let above = self.all.iter().filter(|device| device.stacked || self.masters.contains(&device.index));
        above.fold(Limits::NONE, |known, Device { limits, .. }| Limits {
            datagrams: known.datagrams.min(limits.datagrams),
            bytes: known.bytes.min(limits.bytes),
        })
    }
}

/// The attributes that are 32 bits long (`struct rtattr`).
fn numbers(mut attributes: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    std::iter::from_fn(move || {
        loop {
            let [l0, l1, k0, k1] = *attributes.first_chunk()?;
            let len = usize::from(u16::from_ne_bytes([l0, l1]));
            let value = attributes.get(4..len)?;
            attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
            if let Ok(value) = <[u8; 4]>::try_from(value) {
                return Some((u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes(value)));
            }
        }
    })
}

#[cfg(test)]
mod tests;
