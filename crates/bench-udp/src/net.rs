//! The other ends, and the clock.

use std::{
    io, mem,
    net::SocketAddr,
    os::fd::AsRawFd,
    process::Command,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    raw::Raw,
    subject::{Job, Subject},
};

/// The core of what is measured, and the one of whoever feeds it.
const MEASURED: usize = 0;
const OTHER: usize = 1;

const RECEIVE_BUFFER: usize = 128 << 20;

/// A socket on loopback that holds whatever one measurement receives.
pub(crate) fn socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    // More than `rmem_max`: it is allowed to whoever owns the network namespace.
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER as i32);
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

pub(crate) fn address_of(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

/// A socket that takes nothing: its buffer is full after a datagram or two, and whatever comes then is dropped before
/// it is looked at. Delivery on loopback is work of the sender's thread, so the less of it the better; trains stay
/// whole.
pub(crate) fn sink() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 0);
    option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket
}

/// Reads all that has arrived, datagram by datagram.
pub(crate) fn drain(socket: &Socket) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        match io::Read::read(&mut &*socket, &mut buffer) {
            Ok(len) => datagrams.push(buffer[..len].to_vec()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return datagrams,
            Err(e) => panic!("{e}"),
        }
    }
}

pub(crate) fn option(socket: &Socket, level: i32, name: i32, value: i32) {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel reads an int of that length.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    assert_eq!(result, 0, "setsockopt({level}, {name}): {}", io::Error::last_os_error());
}

/// Runs `tc`.
///
/// # Errors
/// When it is not installed or refuses.
pub(crate) fn tc(arguments: &str) -> Result<(), String> {
    let status = Command::new("tc").args(arguments.split(' ')).status().map_err(|e| format!("tc: {e}"))?;
    status.success().then_some(()).ok_or_else(|| format!("tc {arguments}: {status}"))
}

/// A thread on the other core that fills receive buffers: what is measured is the receiving alone.
pub(crate) struct Filler {
    orders: Sender<Order>,
    done: Receiver<()>,
}

struct Order {
    to: SocketAddr,
    train: Vec<u8>,
    size: usize,
    times: usize,
}

impl Filler {
    pub(crate) fn start() -> Self {
        let (orders, incoming) = channel::<Order>();
        let (tell, done) = channel();
        std::thread::spawn(move || {
            pin(OTHER);
            let mut raw = Raw::new();
            for Order { to, train, size, times } in incoming {
                raw.send(&Job { to: &[to], train: &train, size }, times);
                if tell.send(()).is_err() {
                    return;
                }
            }
        });
        Self { orders, done }
    }

    /// Sends the train so many times. On loopback it has arrived when the call that sent it is back.
    pub(crate) fn fill(&self, to: SocketAddr, train: &[u8], size: usize, times: usize) {
        self.orders.send(Order { to, train: train.to_vec(), size, times }).unwrap();
        self.done.recv().unwrap();
    }
}

pub(crate) fn pin_measured() {
    pin(MEASURED);
}

fn pin(core: usize) {
    // SAFETY: a cpu_set_t is a bit set, for which zeroes are valid; the kernel reads it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    assert_eq!(result, 0, "core {core}: {}", io::Error::last_os_error());
}

/// The time that the calling thread has run.
pub(crate) fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
