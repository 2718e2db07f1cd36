//! Datagrams that are sent and received all the while that sockets come and go.

use std::{
    net::{SocketAddr, UdpSocket as Std},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use backwater_udp::{RecvBatch, RecvDatagram, UdpSocket};
use tokio::time::timeout;

/// Sends numbered datagrams by turns from several sockets, until it is stopped.
pub struct Flood {
    running: Arc<AtomicBool>,
    /// How many have arrived. No more than fit into a receive buffer are on their way.
    pub seen: Arc<AtomicU32>,
    thread: JoinHandle<u32>,
}

impl Flood {
    pub fn start(from: Vec<Std>, to: SocketAddr) -> Self {
        let (running, seen) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicU32>::default());
        let (goes_on, arrived) = (running.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut sent = 0u32;
            while goes_on.load(SeqCst) {
                if sent - arrived.load(SeqCst) < 100 {
                    from[sent as usize % from.len()].send_to(&sent.to_be_bytes(), to).unwrap();
                    sent += 1;
                } else {
                    std::thread::yield_now();
                }
            }
            sent
        });
        Self { running, seen, thread }
    }

    /// Receives all that arrives at a socket, until nothing more does after the flood was stopped.
    pub fn receive<T: Send + 'static>(
        &self,
        socket: UdpSocket,
        kept: impl Fn(RecvDatagram<'_>) -> T + Send + 'static,
    ) -> tokio::task::JoinHandle<Vec<T>> {
        let (running, seen) = (self.running.clone(), self.seen.clone());
        tokio::spawn(async move {
            let (mut receiver, mut batch, mut all) = (socket.receiver(), RecvBatch::new(8), Vec::new());
            loop {
                let sending = running.load(SeqCst);
                match timeout(Duration::from_millis(500), receiver.recv(&mut batch)).await {
                    Ok(result) => result.unwrap(),
                    Err(_) if sending => continue,
                    Err(_) => break all,
                }
                let before = all.len();
                all.extend(batch.datagrams().map(&kept));
                seen.fetch_add((all.len() - before) as u32, SeqCst);
            }
        })
    }

    /// How many were sent.
    pub fn stop(self) -> u32 {
        self.running.store(false, SeqCst);
        self.thread.join().unwrap()
    }
}
