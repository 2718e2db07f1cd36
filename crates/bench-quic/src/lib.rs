//! QUIC transfers over quinn's and noq's own sockets, and over Backwater's: for the benchmark and the adapters' tests.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use backwater_udp::{Backpressure, Policy, StatsSnapshot, UdpSocket};

#[path = "../../backwater-udp/tests/support/mod.rs"]
pub mod support;
#[path = "../../backwater-udp/tests/support/veth.rs"]
pub mod veth;

mod transfer;

pub use transfer::{noq, quinn};
use veth::Veth;

/// The code of the page is compiled, and run where it has a `main`: here, since it embeds quinn too.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/embedding.md")]
struct Embedding;

/// Where the two ends are.
pub enum Link {
    Loopback,
    /// The client is at the near end.
    Veth(Veth),
}

/// Whose sockets, at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sockets {
    Stock,
    /// Backwater's, which hold a datagram for so long.
    Backwater(Duration),
}

/// What came out of a transfer from the client to the server.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Bytes of the stream.
    pub bytes: u64,
    /// From the first write until the server has confirmed the last byte.
    pub wall: Duration,
    /// What both ends' threads have run.
    pub cpu: Duration,
    /// Datagrams that the client's connection has given to its socket, and that the server's has received.
    pub sent: u64,
    pub received: u64,
    /// How often the server's receive buffer was full; it may have cost a GSO batch each time.
    pub overflowed: u64,
    /// Packets that the client's loss detection has declared lost.
    pub declared_lost: u64,
    /// The client's socket, where it is Backwater's.
    pub stats: Option<StatsSnapshot>,
}

impl Link {
    /// An address to bind to: the client's, and the server's.
    fn near(&self) -> SocketAddr {
        match self {
            Self::Loopback => (Ipv4Addr::LOCALHOST, 0).into(),
            Self::Veth(veth) => veth.near(false),
        }
    }

    fn far(&self) -> SocketAddr {
        match self {
            Self::Loopback => (Ipv4Addr::LOCALHOST, 0).into(),
            Self::Veth(veth) => veth.far(false, 0),
        }
    }

    fn at_far_end<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        match self {
            Self::Loopback => std::thread::spawn(f),
            Self::Veth(veth) => veth.at_far_end(|_| f()),
        }
    }

    /// How often a receive buffer was full at the server, so far.
    fn overflowed(&self) -> u64 {
        self.at_far_end(support::receive_buffer_errors).join().unwrap()
    }
}

impl Outcome {
    /// Datagrams that were lost on the way to the link, which itself loses none: by the socket, or by the queue before the link. `None` if
    /// it is not known, since the server's receive buffer was full.
    pub fn lost_locally(&self) -> Option<u64> {
        (self.overflowed == 0).then_some(self.sent.saturating_sub(self.received))
    }

    /// Megabits of the stream a second.
    pub fn goodput(&self) -> f64 {
        self.bytes as f64 * 8e-6 / self.wall.as_secs_f64()
    }
}

/// Bytes of a server's receive buffer, where the system allows it.
static RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// A Backwater socket, or the system's.
enum Bound {
    Stock(std::net::UdpSocket),
    Backwater(UdpSocket),
}

impl Bound {
    fn new(sockets: Sockets, addr: SocketAddr) -> Self {
        Self::of(std::net::UdpSocket::bind(addr).unwrap(), sockets)
    }

    fn of(socket: std::net::UdpSocket, sockets: Sockets) -> Self {
        match sockets {
            Sockets::Stock => Self::Stock(socket),
            Sockets::Backwater(deadline) => {
                let policy = Backpressure::new(Policy::Wait { deadline });
                Self::Backwater(UdpSocket::builder().backpressure(policy).from_std(socket).unwrap())
            }
        }
    }

    /// With a large receive buffer, and how many bytes of QUIC it holds for certain.
    fn server(sockets: Sockets, addr: SocketAddr) -> (Self, u32) {
        let socket = std::net::UdpSocket::bind(addr).unwrap();
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel reads an int of that length. It may refuse: the window is what there is room for then.
        let _ = unsafe {
            let value = (&raw const RECEIVE_BUFFER).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, len)
        };
        let room = socket2::SockRef::from(&socket).recv_buffer_size().unwrap();
        (Self::of(socket, sockets), (room / 4).min(2 << 20) as u32)
    }
}

/// Runs the server at the far end and the client here, each on a thread of its own.
fn run<C: Send + 'static>(
    link: &Link,
    serve: impl FnOnce(SocketAddr, mpsc::Sender<(SocketAddr, C)>) -> u64 + Send + 'static,
    send: impl FnOnce(SocketAddr, SocketAddr, C) -> Outcome,
) -> Outcome {
    let (any, overflowed) = (link.far(), link.overflowed());
    let (bound, server) = mpsc::channel();
    let serving = link.at_far_end(move || {
        let before = cpu_time();
        (serve(any, bound), cpu_time() - before)
    });
    let (to, certificate) = server.recv().unwrap();
    let before = cpu_time();
    let mut outcome = send(link.near(), to, certificate);
    outcome.cpu = cpu_time() - before;
    let (received, cpu) = serving.join().unwrap();
    outcome.received = received;
    outcome.cpu += cpu;
    outcome.overflowed = link.overflowed() - overflowed;
    outcome
}

/// The time that the calling thread has run.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What the client knows when the server has confirmed all.
struct Sent {
    wall: Duration,
    sent: u64,
    declared_lost: u64,
    stats: Option<StatsSnapshot>,
}

fn outcome(bytes: u64, Sent { wall, sent, declared_lost, stats }: Sent) -> Outcome {
    let zero = Duration::ZERO;
    Outcome { bytes, wall, cpu: zero, sent, received: 0, overflowed: 0, declared_lost, stats }
}

fn began() -> Instant {
    Instant::now()
}
