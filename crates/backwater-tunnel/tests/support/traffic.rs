//! What is sent through a tunnel.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::Network;

/// Nothing arrives for so long: nothing will.
const PATIENCE: Duration = Duration::from_secs(20);

const BLOCK: usize = 1 << 20;

/// Sends so many MiB over TCP from one network to an address of the other one, and compares each byte there. Returns
/// how long it took.
pub fn transfer(from: &Network, to: &Network, addr: IpAddr, blocks: u32) -> Duration {
    let listener = to.within(move || TcpListener::bind((addr, 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let seed = fastrand::u64(..);
    let receiver = to.spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut expected, mut got) = (pattern(seed), vec![0; BLOCK]);
        for number in 0..blocks {
            stream.read_exact(&mut got).unwrap_or_else(|error| panic!("block {number} of {blocks}: {error}"));
            expected[..4].copy_from_slice(&number.to_be_bytes());
            assert!(got == expected, "block {number} of {blocks} is another one");
        }
        assert_eq!(stream.read(&mut got).unwrap(), 0, "more than was sent");
    });
    let sender = from.spawn(move || {
        let begin = Instant::now();
        let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut block = pattern(seed);
        for number in 0..blocks {
            block[..4].copy_from_slice(&number.to_be_bytes());
            stream.write_all(&block).unwrap_or_else(|error| panic!("block {number} of {blocks}: {error}"));
        }
        begin
    });
    let begin = sender.join().unwrap();
    receiver.join().unwrap();
    begin.elapsed()
}

fn pattern(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Answers each datagram with itself, on this port of all addresses, until it is dropped.
pub struct Echo {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub const PORT: u16 = 7;

    pub fn new(network: &Network) -> Self {
        let done = Arc::<AtomicBool>::default();
        let socket = network.within(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, Self::PORT)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let thread = std::thread::spawn({
            let done = done.clone();
            move || {
                let mut buffer = vec![0; 65_536];
                while !done.load(SeqCst) {
                    if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                        // The way back may not be there at the moment.
                        let _ = socket.send_to(&buffer[..len], from);
                    }
                }
            }
        });
        Self { done, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.done.store(true, SeqCst);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Sends datagrams of all sizes to the echo there, and has each back as it was.
pub fn datagrams(from: &Network, to: IpAddr) {
    from.within(move || {
        let socket = socket(to);
        let mut back = vec![0; 65_536];
        for len in (1..=1372).step_by(7).chain([4_000, 20_000, 60_000]) {
            let sent: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(len).collect();
            socket.send(&sent).unwrap();
            let len = socket.recv(&mut back).unwrap_or_else(|error| panic!("{len} bytes: {error}"));
            assert!(back[..len] == sent, "{} bytes came back as {len}", sent.len());
        }
    });
}

/// Sends 20 datagrams that are packets of `len` bytes, one after the other, to the echo there, and has each back.
pub fn packets_of(from: &Network, to: IpAddr, len: u16) {
    from.within(move || {
        let socket = socket(to);
        let mut back = vec![0; 65_536];
        for number in 0..20 {
            let sent = vec![number; usize::from(len) - if to.is_ipv4() { 28 } else { 48 }];
            socket.send(&sent).unwrap();
            let received =
                socket.recv(&mut back).unwrap_or_else(|error| panic!("{number}, {len} bytes to {to}: {error}"));
            assert!(back[..received] == sent, "{number} came back as {received} bytes");
        }
    });
}

/// How long it takes until a datagram gets to the echo there and back. One is sent every 20 ms. `idle` is how long an idle
/// machine takes at most: ten times as long is a failure, so that a busy one does not fail.
pub fn until_answered(from: &Network, to: IpAddr, idle: Duration) -> Duration {
    let at_most = 10 * idle;
    from.within(move || {
        let begin = Instant::now();
        let socket = socket(to);
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // What was sent before, and comes late, is of another socket.
        loop {
            // The way may not be there at the moment.
            let sent = socket.send(b"there?");
            match socket.recv(&mut [0; 16]) {
                Ok(_) => return begin.elapsed(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
            assert!(begin.elapsed() < at_most, "no answer for {at_most:?}; the last was {sent:?}");
        }
    })
}

fn socket(to: IpAddr) -> UdpSocket {
    let any = if to.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0; 16], 0)) };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect((to, Echo::PORT)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// One TCP stream without an end, whose bytes are counted as they arrive.
pub struct Stream {
    done: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// As fast as it goes.
    pub fn new(from: &Network, to: &Network, addr: IpAddr) -> Self {
        let (done, bytes) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let listener = to.within(move || TcpListener::bind((addr, 0)).unwrap());
        let addr = listener.local_addr().unwrap();
        let receiver = to.spawn({
            let bytes = bytes.clone();
            move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut buffer = vec![0; BLOCK];
                while let Ok(len) = stream.read(&mut buffer)
                    && len > 0
                {
                    bytes.fetch_add(len as u64, SeqCst);
                }
            }
        });
        let sender = from.spawn({
            let done = done.clone();
            move || {
                let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
                stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
                let block = &pattern(1)[..1 << 16];
                while !done.load(SeqCst) {
                    if let Err(error) = stream.write(block)
                        && error.kind() != ErrorKind::WouldBlock
                    {
                        panic!("the stream has ended: {error}");
                    }
                }
            }
        });
        Self { done, bytes, threads: vec![sender, receiver] }
    }

    /// Bytes that have arrived.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(SeqCst)
    }

    /// Ends it; it must not have ended before.
    pub fn finish(self) {
        self.done.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}
