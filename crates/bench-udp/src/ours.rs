//! Backwater.

use std::{future::poll_fn, io::IoSlice, net::SocketAddr, rc::Rc};

use arrayvec::ArrayVec;
use backwater_udp::{Receiver, RecvBatch, Sender, Transmit, UdpSocket, gso::MAX_SEGMENTS};
use tokio::runtime::Runtime;

use crate::{
    MANY, net,
    subject::{Change, HEADER, Job, Look, SLOTS, Subject},
};

pub(crate) struct Ours {
    runtime: Rc<Runtime>,
    sender: Sender,
    receiver: Receiver,
    batch: RecvBatch,
}

impl Ours {
    pub(crate) fn new(runtime: &Rc<Runtime>) -> Self {
        let _inside = runtime.enter();
        let socket = UdpSocket::from_std(net::socket().into()).unwrap();
        let (sender, receiver) = (socket.sender(), socket.receiver());
        Self { runtime: runtime.clone(), sender, receiver, batch: RecvBatch::new(SLOTS) }
    }
}

impl Subject for Ours {
    fn address(&self) -> SocketAddr {
        self.sender.socket().local_addr()
    }

    fn send(&mut self, job: &Job<'_>, times: usize) {
        let slices = [IoSlice::new(job.train)];
        let transmit = |&to| Transmit::new(to, &slices).segment_size(job.size);
        self.runtime.block_on(async {
            let mut transmits = ArrayVec::<_, MANY>::new();
            for _ in 0..times {
                let report = match job.to {
                    [one] => self.sender.send(&mut transmit(one)).await.unwrap(),
                    all => {
                        transmits.clear();
                        transmits.extend(all.iter().map(transmit));
                        poll_fn(|cx| self.sender.poll_send_batch(cx, &mut transmits)).await.unwrap()
                    }
                };
                assert_eq!(report.sent as usize, job.to.len() * job.train.len() / job.size);
            }
        });
    }

    fn receive(&mut self, datagrams: usize, look: &mut Look) {
        self.runtime.block_on(async {
            let mut left = datagrams;
            while left > 0 {
                self.receiver.recv(&mut self.batch).await.unwrap();
                for train in self.batch.gro_batches() {
                    for datagram in train.payloads() {
                        look.at(datagram);
                        left -= 1;
                    }
                }
            }
        });
    }

    fn forward(&mut self, change: Change, to: SocketAddr, datagrams: usize) {
        self.runtime.block_on(async {
            let mut left = datagrams;
            while left > 0 {
                self.receiver.recv(&mut self.batch).await.unwrap();
                for train in self.batch.gro_batches() {
                    let mut slices = ArrayVec::<_, { 2 * MAX_SEGMENTS }>::new();
                    for datagram in train.payloads() {
                        left -= 1;
                        match change {
                            Change::Strip => slices.push(IoSlice::new(&datagram[HEADER.len()..])),
                            Change::Insert => slices.extend([IoSlice::new(&HEADER), IoSlice::new(datagram)]),
                        }
                    }
                    let mut transmit = Transmit::new(to, &slices).segment_size(change.size(train.segment_size));
                    self.sender.send(&mut transmit).await.unwrap();
                }
            }
        });
    }
}
