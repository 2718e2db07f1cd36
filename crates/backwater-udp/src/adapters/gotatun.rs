//! [gotatun](https://docs.rs/gotatun/0.10) 0.10.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ::gotatun::{
    packet::{Packet, PacketBufPool},
    udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams},
};
use arrayvec::ArrayVec;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Receiver, RecvBatch, Transmit, UdpSocket, UdpSocketBuilder,
    gso::{MAX_SEGMENTS, Shape},
};

/// Makes a `gotatun::device::DeviceBuilder`'s sockets: for its `with_udp`.
///
/// Packets to one peer leave in GSO batches. A batch that the system has no room for is held until there is, and the task that sends
/// it waits. What is older than the deadline of the [`Policy`](crate::Policy) is dropped and counted.
#[derive(Debug, Default)]
pub struct GotatunSockets {
    builder: UdpSocketBuilder,
}

/// Sends what gotatun has encrypted. Clones send on the same socket.
#[derive(Clone, Debug)]
pub struct GotatunSender(UdpSocket);

/// Receives for gotatun.
#[derive(Debug)]
pub struct GotatunReceiver {
    receiver: Receiver,
    batch: RecvBatch,
    /// The next GRO batch of `batch`, and where in it the next packet begins.
    slot: usize,
    at: usize,
}

/// GRO batches that one call receives.
const SLOTS: usize = 16;

impl GotatunSockets {
    /// Makes them with these options: counters and policy, sizes of buffers.
    pub fn new(builder: UdpSocketBuilder) -> Self {
        Self { builder }
    }
}

impl UdpTransportFactory for GotatunSockets {
    type Send = GotatunSender;
    type Recv = GotatunReceiver;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(GotatunSender, GotatunReceiver)> {
        let bound = match params.addr {
            Some(addr) => bound(addr, params)?,
            // Both families, or IPv4 where there is no IPv6.
            None => {
                bound(Ipv6Addr::UNSPECIFIED.into(), params).or_else(|_| bound(Ipv4Addr::UNSPECIFIED.into(), params))?
            }
        };
        let socket = self.builder.from_std(bound.into())?;
        let receiver = socket.receiver();
        Ok((GotatunSender(socket), GotatunReceiver { receiver, batch: RecvBatch::new(SLOTS), slot: 0, at: 0 }))
    }
}

fn bound(addr: IpAddr, params: &UdpTransportFactoryParams) -> io::Result<Socket> {
    let addr = SocketAddr::new(addr, params.port);
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(params.addr.is_some())?;
    }
    #[cfg(target_os = "linux")]
    if let Some(mark) = params.fwmark {
        socket.set_mark(mark)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

impl GotatunSender {
    /// Its socket: for the counters and the policy.
    pub fn socket(&self) -> &UdpSocket {
        &self.0
    }
}

impl UdpSend for GotatunSender {
    type SendManyBuf = ();

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        let slices = [IoSlice::new(&packet)];
        self.0.sender().send(&mut Transmit::new(destination, &slices)).await.map(drop)
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        MAX_SEGMENTS
    }

    async fn send_many_to(&self, (): &mut (), packets: &mut Vec<(Packet, SocketAddr)>) -> io::Result<()> {
        let (mut sender, mut rest) = (self.0.sender(), packets.as_slice());
        while let Some((first, to)) = rest.first() {
            let (batch, others) = rest.split_at(batch_len(rest));
            rest = others;
            let slices: ArrayVec<_, MAX_SEGMENTS> = batch.iter().map(|(packet, _)| IoSlice::new(packet)).collect();
            sender.send(&mut Transmit::new(*to, &slices).segment_size(first.len())).await?;
        }
        packets.clear();
        Ok(())
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        Ok(Some(self.0.local_addr()))
    }

    #[cfg(target_os = "linux")]
    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.0.0.sock_ref().set_mark(mark)
    }
}

/// How many packets at the front may leave in one GSO batch: one at least.
fn batch_len(packets: &[(Packet, SocketAddr)]) -> usize {
    let (mut shape, first) = (Shape::default(), packets.first().map(|(_, to)| *to));
    let fits = |(packet, to): &&(Packet, SocketAddr)| {
        let fits = Some(*to) == first && shape.can_append(packet.len());
        if fits {
            shape.append(packet.len());
        }
        fits
    };
    packets.iter().take_while(fits).count().max(1)
}

impl GotatunReceiver {
    /// The next packet of what was received last, copied into one of the pool's.
    fn take_next(&mut self, pool: &PacketBufPool) -> Option<(Packet, SocketAddr)> {
        let train = self.batch.gro_batch(self.slot)?;
        let rest = train.payload.get(self.at..).unwrap_or_default();
        let bytes = rest.get(..train.segment_size.max(1)).unwrap_or(rest);
        let mut packet = pool.get();
        packet.buf_mut().clear();
        packet.buf_mut().extend_from_slice(bytes);
        self.at += bytes.len();
        if bytes.len() == rest.len() {
            (self.slot, self.at) = (self.slot + 1, 0);
        }
        Some((packet, train.source))
    }

    async fn receive(&mut self) -> io::Result<()> {
        self.receiver.recv(&mut self.batch).await?;
        (self.slot, self.at) = (0, 0);
        Ok(())
    }
}

impl UdpRecv for GotatunReceiver {
    type RecvManyBuf = ();

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        loop {
            if let Some(packet) = self.take_next(pool) {
                return Ok(packet);
            }
            self.receive().await?;
        }
    }

    async fn recv_many_from(
        &mut self,
        (): &mut (),
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        if self.batch.gro_batch(self.slot).is_none() {
            self.receive().await?;
        }
        packets.extend(std::iter::from_fn(|| self.take_next(pool)));
        Ok(())
    }
}
