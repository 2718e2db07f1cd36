//! A link of two ends, each in a network of its own, with a queue at one of them.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use crate::support::{ip, receive_buffer_errors, tc};

/// A veth pair. The near end is in the network of the thread that made it; the far end's is a network of its own, since the
/// kernel would short-cut the way to an address of the same one. Both have an IPv4 and an IPv6 address and know each other's
/// hardware address, so that nothing but what a test sends is on the link.
pub struct Veth {
    index: u8,
    far: File,
}

/// A datagram that arrived at the far end, with its number, and when the kernel took it from the link.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub number: u32,
    pub at: SystemTime,
}

/// A socket at the far end, read by a thread of its own until nothing arrives any more.
pub struct Sink {
    pub addr: SocketAddr,
    done: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Arrival>>,
}

impl Veth {
    /// `index` tells it from the others of a test.
    pub fn new(index: u8) -> Self {
        let (near, far) = (format!("near{index}"), format!("far{index}"));
        let network = std::thread::spawn(|| {
            // SAFETY: no pointers; it concerns this thread alone.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let veth = Self { index, far: network.join().unwrap() };
        ip(&format!(
            "link add {near} address 02:00:00:00:{index:02x}:01 type veth \
             peer name {far} address 02:00:00:00:{index:02x}:02"
        ));
        ip(&format!("link set {far} netns /proc/{}/fd/{}", std::process::id(), veth.far.as_raw_fd()));
        veth.configure(&near, 1, 2);
        veth.at_far_end(move |veth| veth.configure(&far, 2, 1)).join().unwrap();
        veth.wait_until_up();
        veth
    }

    /// The kernel takes an IPv6 address into use some time after it was added.
    fn wait_until_up(&self) {
        for v6 in [false, true] {
            let any = self.far(v6, 0);
            let far = self.at_far_end(move |_| UdpSocket::bind(any).unwrap()).join().unwrap();
            let near = UdpSocket::bind(self.near(v6)).unwrap();
            far.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let arrives = |_| near.send_to(b"up?", far.local_addr().unwrap()).is_ok() && far.recv(&mut [0; 8]).is_ok();
            assert!((0..3000).any(arrives), "the link is not up after a minute");
        }
    }

    fn configure(&self, name: &str, own: u8, other: u8) {
        let index = self.index;
        ip(&format!("link set {name} addrgenmode none"));
        ip(&format!("link set {name} up mtu 9216"));
        for (address, bits) in [(address(index, own, false), 24), (address(index, own, true), 64)] {
            let nodad = if bits == 64 { "nodad" } else { "" };
            ip(&format!("address add {address}/{bits} dev {name} {nodad}"));
        }
        for v6 in [false, true] {
            let address = address(index, other, v6);
            ip(&format!("neighbor add {address} lladdr 02:00:00:00:{index:02x}:{other:02x} dev {name} nud permanent"));
        }
    }

    /// An address of the near end to bind to.
    pub fn near(&self, v6: bool) -> SocketAddr {
        (address(self.index, 1, v6), 0).into()
    }

    /// An address of the far end.
    pub fn far(&self, v6: bool, port: u16) -> SocketAddr {
        (address(self.index, 2, v6), port).into()
    }

    /// Puts a token bucket before the link: `tbf` with these parameters.
    pub fn shape(&self, parameters: &str) {
        tc(&format!("qdisc replace dev near{} root tbf {parameters}", self.index));
    }

    /// Runs `f` on a thread in the far network.
    pub fn at_far_end<T: Send + 'static>(&self, f: impl FnOnce(Self) -> T + Send + 'static) -> JoinHandle<T> {
        let veth = Self { index: self.index, far: self.far.try_clone().unwrap() };
        std::thread::spawn(move || {
            // SAFETY: the descriptor is open; it concerns this thread alone.
            let result = unsafe { libc::setns(veth.far.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            f(veth)
        })
    }

    /// Datagrams that arrived at the far end and found a receive buffer full.
    pub fn missed_by_the_receiver(&self) -> u64 {
        self.at_far_end(|_| receive_buffer_errors()).join().unwrap()
    }

    /// A socket at the far end.
    pub fn sink(&self, v6: bool) -> Sink {
        let done = Arc::new(AtomicBool::new(false));
        let (bound, addr) = mpsc::channel();
        let (finished, any) = (done.clone(), self.far(v6, 0));
        let thread = self.at_far_end(move |_| {
            let socket = UdpSocket::bind(any).unwrap();
            socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            timestamps(&socket);
            bound.send(socket.local_addr().unwrap()).unwrap();
            let mut arrivals = Vec::new();
            loop {
                // What had been sent by then is there by the time that nothing came for so long.
                let last = finished.load(SeqCst);
                match receive(&socket) {
                    Some(arrival) => arrivals.push(arrival),
                    None if last => return arrivals,
                    None => {}
                }
            }
        });
        Sink { addr: addr.recv().unwrap(), done, thread }
    }
}

impl Sink {
    /// All that arrived; nothing more is sent.
    pub fn finish(self) -> Vec<Arrival> {
        self.done.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}

fn address(index: u8, end: u8, v6: bool) -> IpAddr {
    if v6 { [0xfd07, index.into(), 0, 0, 0, 0, 0, end.into()].into() } else { [10, 7, index, end].into() }
}

/// `SO_TIMESTAMPNS`: the kernel notes the time of each datagram where it takes it from the link.
fn timestamps(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads an int from the pointer, and its length is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// The next datagram; `None` when none comes in time.
fn receive(socket: &UdpSocket) -> Option<Arrival> {
    let (mut number, mut control) = ([0u8; 4], [0u64; 8]);
    let mut slice = libc::iovec { iov_base: number.as_mut_ptr().cast(), iov_len: number.len() };
    // SAFETY: all zeroes is a valid msghdr; the buffers outlive the call and their lengths are given with them. The control
    // message is aligned as `u64` is, and the kernel has written a `timespec` into one of this type.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        (header.msg_iov, header.msg_iovlen) = (&raw mut slice, 1);
        (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control) as _);
        if libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) < 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
            return None;
        }
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        assert!(!message.is_null() && (*message).cmsg_type == libc::SCM_TIMESTAMPNS, "no timestamp");
        let time = libc::CMSG_DATA(message).cast::<libc::timespec>().read_unaligned();
        let at = SystemTime::UNIX_EPOCH + Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
        Some(Arrival { number: u32::from_be_bytes(number), at })
    }
}
