//! quinn-udp on tokio. Calls go to the system at once, without asking the reactor first, which is what it does best;
//! the sockets here are never without room when they send, nor without datagrams when they receive.

use std::{io::IoSliceMut, net::SocketAddr, rc::Rc};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::{net::UdpSocket, runtime::Runtime};

use crate::{
    net,
    subject::{Change, HEADER, Job, Look, SLOT_BYTES, SLOTS, Subject},
};

pub(crate) struct Quinn {
    runtime: Rc<Runtime>,
    socket: UdpSocket,
    state: UdpSocketState,
    slots: Vec<u8>,
    /// Where trains are put together: it takes one piece of memory only.
    copy: Vec<u8>,
}

impl Quinn {
    pub(crate) fn new(runtime: &Rc<Runtime>) -> Self {
        let _inside = runtime.enter();
        let socket = UdpSocket::from_std(net::socket().into()).unwrap();
        let state = UdpSocketState::new((&socket).into()).unwrap();
        assert!(state.max_gso_segments() >= 64 && state.gro_segments() >= 64);
        let (slots, copy) = (vec![0; SLOTS * SLOT_BYTES], Vec::with_capacity(SLOT_BYTES));
        Self { runtime: runtime.clone(), socket, state, slots, copy }
    }
}

impl Subject for Quinn {
    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    fn send(&mut self, job: &Job<'_>, times: usize) {
        self.runtime.block_on(async {
            for _ in 0..times {
                for &destination in job.to {
                    let transmit = transmit(destination, job.train, job.size);
                    self.state.try_send((&self.socket).into(), &transmit).unwrap();
                }
            }
        });
    }

    fn receive(&mut self, datagrams: usize, look: &mut Look) {
        self.runtime.block_on(async {
            let mut slots = slots(&mut self.slots);
            let mut metas = [RecvMeta::default(); SLOTS];
            let mut left = datagrams;
            while left > 0 {
                let count = self.state.recv((&self.socket).into(), &mut slots, &mut metas).unwrap();
                for (slot, meta) in slots.iter().zip(&metas[..count]) {
                    for datagram in slot[..meta.len].chunks(meta.stride) {
                        look.at(datagram);
                        left -= 1;
                    }
                }
            }
        });
    }

    fn forward(&mut self, change: Change, to: SocketAddr, datagrams: usize) {
        self.runtime.block_on(async {
            let mut slots = slots(&mut self.slots);
            let mut metas = [RecvMeta::default(); SLOTS];
            let mut left = datagrams;
            while left > 0 {
                let count = self.state.recv((&self.socket).into(), &mut slots, &mut metas).unwrap();
                for (slot, meta) in slots.iter().zip(&metas[..count]) {
                    self.copy.clear();
                    for datagram in slot[..meta.len].chunks(meta.stride) {
                        match change {
                            Change::Strip => self.copy.extend_from_slice(&datagram[HEADER.len()..]),
                            Change::Insert => {
                                self.copy.extend_from_slice(&HEADER);
                                self.copy.extend_from_slice(datagram);
                            }
                        }
                        left -= 1;
                    }
                    let transmit = transmit(to, &self.copy, change.size(meta.stride));
                    self.state.try_send((&self.socket).into(), &transmit).unwrap();
                }
            }
        });
    }
}

fn transmit(destination: SocketAddr, contents: &[u8], size: usize) -> Transmit<'_> {
    Transmit { destination, ecn: None, contents, segment_size: Some(size), src_ip: None }
}

fn slots(data: &mut [u8]) -> [IoSliceMut<'_>; SLOTS] {
    let mut slots = data.chunks_mut(SLOT_BYTES);
    std::array::from_fn(|_| IoSliceMut::new(slots.next().unwrap()))
}
