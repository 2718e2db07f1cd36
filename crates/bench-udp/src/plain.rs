//! `tokio::net::UdpSocket`: a call for each datagram.

use std::{net::SocketAddr, rc::Rc};

use tokio::{net::UdpSocket, runtime::Runtime};

use crate::{
    net,
    subject::{Change, HEADER, Job, Look, SLOT_BYTES, Subject},
};

pub(crate) struct Plain {
    runtime: Rc<Runtime>,
    socket: UdpSocket,
    buffer: Vec<u8>,
}

impl Plain {
    pub(crate) fn new(runtime: &Rc<Runtime>) -> Self {
        let _inside = runtime.enter();
        let socket = UdpSocket::from_std(net::socket().into()).unwrap();
        Self { runtime: runtime.clone(), socket, buffer: vec![0; SLOT_BYTES] }
    }
}

impl Subject for Plain {
    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    fn has_gro(&self) -> bool {
        false
    }

    fn send(&mut self, job: &Job<'_>, times: usize) {
        self.runtime.block_on(async {
            for _ in 0..times {
                for to in job.to {
                    for datagram in job.train.chunks(job.size) {
                        self.socket.send_to(datagram, to).await.unwrap();
                    }
                }
            }
        });
    }

    fn receive(&mut self, datagrams: usize, look: &mut Look) {
        self.runtime.block_on(async {
            for _ in 0..datagrams {
                let (len, _) = self.socket.recv_from(&mut self.buffer).await.unwrap();
                look.at(&self.buffer[..len]);
            }
        });
    }

    /// Nothing is copied: the header's place is kept free in front of where the datagram is received.
    fn forward(&mut self, change: Change, to: SocketAddr, datagrams: usize) {
        let at = HEADER.len();
        self.buffer[..at].copy_from_slice(&HEADER);
        self.runtime.block_on(async {
            for _ in 0..datagrams {
                let (len, _) = self.socket.recv_from(&mut self.buffer[at..]).await.unwrap();
                let changed = match change {
                    Change::Strip => &self.buffer[2 * at..at + len],
                    Change::Insert => &self.buffer[..at + len],
                };
                self.socket.send_to(changed, to).await.unwrap();
            }
        });
    }
}
