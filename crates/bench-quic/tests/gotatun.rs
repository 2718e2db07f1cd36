//! gotatun on Backwater's sockets.
#![allow(missing_docs)]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use backwater_udp::{Backpressure, GotatunReceiver, GotatunSender, GotatunSockets, Policy, UdpSocket};
use bench_quic::{
    support::{block_on, in_namespace},
    veth::Veth,
};
use gotatun::{
    packet::{Packet, PacketBufPool},
    udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams},
};

async fn bind(addr: Option<IpAddr>) -> (GotatunSender, GotatunReceiver) {
    let wait = Backpressure::new(Policy::Wait { deadline: Duration::from_secs(10) });
    let params = UdpTransportFactoryParams { addr, port: 0, fwmark: None };
    GotatunSockets::new(UdpSocket::builder().backpressure(wait)).bind(&params).await.unwrap()
}

fn packet(bytes: &[u8]) -> Packet {
    Packet::from_bytes(bytes.into())
}

/// Receives so many, by one method or the other.
async fn receive(from: &mut GotatunReceiver, count: usize, many: bool) -> Vec<(Vec<u8>, SocketAddr)> {
    let (mut pool, mut packets) = (PacketBufPool::new(64), Vec::new());
    let receiving = async {
        while packets.len() < count {
            if many {
                from.recv_many_from(&mut (), &mut pool, &mut packets).await.unwrap();
            } else {
                packets.push(from.recv_from(&mut pool).await.unwrap());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), receiving).await.expect("packets are missing");
    packets.into_iter().map(|(packet, from)| (packet.to_vec(), from)).collect()
}

#[test]
fn packets_of_all_lengths_arrive_in_both_families() {
    block_on(async {
        let (sender, mut receiver) = bind(None).await;
        let port = sender.local_addr().unwrap().unwrap().port();
        for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let (peer, mut at_peer) = bind(Some(ip)).await;
            let to = peer.local_addr().unwrap().unwrap();
            for many in [false, true] {
                let lens = [1400, 1400, 1400, 200, 1400, 0, 70, 70, 9000];
                let mut packets: Vec<_> = lens.map(|len| (packet(&vec![7; len]), to)).into();
                let attempts = sender.socket().stats().snapshot().attempts;
                sender.send_many_to(&mut (), &mut packets).await.unwrap();
                assert!(packets.is_empty());
                let calls = sender.socket().stats().snapshot().attempts - attempts;
                assert!(calls <= 9, "{calls}");
                let got = receive(&mut at_peer, 9, many).await;
                assert!(got.iter().map(|(bytes, _)| bytes.len()).eq(lens), "{ip}");
                assert!(got.iter().all(|(_, from)| *from == SocketAddr::new(ip, port)), "{got:?}");

                peer.send_to(packet(b"answer"), SocketAddr::new(ip, port)).await.unwrap();
                assert_eq!(receive(&mut receiver, 1, many).await, [(b"answer".to_vec(), to)]);
            }
        }
    });
}

#[test]
fn nothing_is_lost_locally_before_a_slow_link() {
    in_namespace("nothing_is_lost_locally_before_a_slow_link", || {
        let veth = Veth::new(0);
        veth.shape("rate 20mbit burst 70000 limit 140000");
        let (sink, before) = (veth.sink(false), veth.missed_by_the_receiver());
        let stats = block_on(async {
            let (sender, _receiver) = bind(Some(veth.near(false).ip())).await;
            for batch in 0..40u32 {
                let number = |i: u32| [&(50 * batch + i).to_be_bytes()[..], &[7; 1196]].concat();
                let mut packets: Vec<_> = (0..50).map(|i| (packet(&number(i)), sink.addr)).collect();
                sender.send_many_to(&mut (), &mut packets).await.unwrap();
            }
            sender.socket().stats().snapshot()
        });
        let (arrived, missed) = (sink.finish().len() as u64, veth.missed_by_the_receiver() - before);
        assert_eq!((stats.sent, stats.dropped_total(), stats.held), (2000, 0, 0), "{stats:?}");
        assert_eq!(arrived + missed, 2000);
        assert!(stats.no_buffers_total() > 0, "the queue was never full: {stats:?}");
    });
}

/// A device takes them.
#[test]
fn a_device_is_built_on_them() {
    block_on(async {
        let (tun_send, tun_receive) = (NoTun, NoTun);
        let device = gotatun::device::build().with_udp(GotatunSockets::default()).with_ip_pair(tun_send, tun_receive);
        let device = device.build().await.unwrap();
        device.stop().await;
    });
}

/// A tunnel's end without packets.
struct NoTun;

impl gotatun::tun::IpSend for NoTun {
    async fn send(&mut self, _packet: Packet<gotatun::packet::Ip>) -> std::io::Result<()> {
        Ok(())
    }
}

impl gotatun::tun::IpRecv for NoTun {
    async fn recv<'a>(
        &'a mut self,
        _pool: &mut PacketBufPool,
    ) -> std::io::Result<impl Iterator<Item = Packet<gotatun::packet::Ip>> + Send + 'a> {
        std::future::pending::<()>().await;
        Ok(std::iter::empty())
    }

    fn mtu(&self) -> gotatun::tun::MtuWatcher {
        gotatun::tun::MtuWatcher::new(1420)
    }
}
