//! The same transfer over quinn and over noq, which have one API but for the names.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
};

use rcgen::CertifiedKey;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};

use crate::{Bound, Link, Outcome, Sent, Sockets, outcome, support::block_on};

/// What a client writes at a time.
const PIECE: usize = 64 << 10;

/// `transfer` of one crate. `$wrap` is the pointer to a socket that its endpoint takes, `$lost` how its statistics say what was lost.
macro_rules! quic {
    ($name:ident, $socket:ident, $wrap:ident, |$statistics:ident| $lost:expr) => {
        pub mod $name {
            use ::$name as quic;

            use super::*;

            /// Sends `bytes` in one stream from the near end to the far one.
            pub fn transfer(link: &Link, sockets: Sockets, bytes: u64) -> Outcome {
                crate::run(
                    link,
                    move |addr, bound| block_on(serve(sockets, addr, bound)),
                    |addr, to, certificate| block_on(send(sockets, addr, to, certificate, bytes)),
                )
            }

            /// Serves one connection. Returns how many datagrams it has received.
            async fn serve(
                sockets: Sockets,
                addr: SocketAddr,
                bound: mpsc::Sender<(SocketAddr, CertificateDer<'static>)>,
            ) -> u64 {
                let (certificate, key) = identity();
                let mut config = quic::ServerConfig::with_single_cert(vec![certificate.clone()], key).unwrap();
                let (bound_here, window) = Bound::server(sockets, addr);
                let mut transport = quic::TransportConfig::default();
                transport.receive_window(window.into()).stream_receive_window(window.into());
                config.transport_config(Arc::new(transport));
                let (endpoint, _) = endpoint(bound_here, Some(config));
                bound.send((endpoint.local_addr().unwrap(), certificate)).unwrap();
                let connection = endpoint.accept().await.unwrap().await.unwrap();
                let (mut confirm, mut stream) = connection.accept_bi().await.unwrap();
                let mut piece = vec![0; PIECE];
                while stream.read(&mut piece).await.unwrap().is_some() {}
                confirm.write_all(b"all").await.unwrap();
                confirm.finish().unwrap();
                connection.closed().await;
                // The first datagram has made the connection, and is not counted.
                connection.stats().udp_rx.datagrams + 1
            }

            async fn send(
                sockets: Sockets,
                addr: SocketAddr,
                to: SocketAddr,
                certificate: CertificateDer<'static>,
                bytes: u64,
            ) -> Outcome {
                let (endpoint, socket) = endpoint(Bound::new(sockets, addr), None);
                let connection = connect(&endpoint, to, certificate).await;
                let began = crate::began();
                push(&connection, bytes).await;
                let wall = began.elapsed();
                connection.close(0u32.into(), b"");
                // Until what is held has gone.
                endpoint.wait_idle().await;
                let $statistics = connection.stats();
                let stats = socket.map(|socket| socket.stats().snapshot());
                outcome(bytes, Sent { wall, sent: $statistics.udp_tx.datagrams, declared_lost: $lost, stats })
            }

            async fn connect(
                endpoint: &quic::Endpoint,
                to: SocketAddr,
                certificate: CertificateDer<'static>,
            ) -> quic::Connection {
                let mut roots = RootCertStore::empty();
                roots.add(certificate).unwrap();
                let config = quic::ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
                endpoint.connect_with(config, to, "localhost").unwrap().await.unwrap()
            }

            /// Sends `bytes` in one stream, and waits until all have arrived.
            async fn push(connection: &quic::Connection, bytes: u64) {
                let (mut stream, mut confirmed) = connection.open_bi().await.unwrap();
                let (piece, mut left) = (vec![0x5a; PIECE], bytes);
                while left > 0 {
                    let len = left.min(PIECE as u64);
                    stream.write_all(&piece[..len as usize]).await.unwrap();
                    left -= len;
                }
                stream.finish().unwrap();
                assert_eq!(confirmed.read_to_end(3).await.unwrap(), b"all");
            }

            /// Two connections of one endpoint, each with so many bytes for its link. Whether the second has sent all of them while the
            /// first had not.
            pub fn overtakes(sockets: Sockets, [slow, fast]: [(&Link, u64); 2]) -> bool {
                let (bound, servers) = mpsc::channel();
                let serving = [slow.0, fast.0].map(|link| {
                    let (addr, bound) = (link.far(), bound.clone());
                    let serving = link.at_far_end(move || block_on(serve(sockets, addr, bound)));
                    (servers.recv().unwrap(), serving)
                });
                let [((to_slow, of_slow), slow_server), ((to_fast, of_fast), fast_server)] = serving;
                let overtakes = block_on(async {
                    let any = (std::net::Ipv4Addr::UNSPECIFIED, 0).into();
                    let (endpoint, _) = endpoint(Bound::new(sockets, any), None);
                    let (one, other) =
                        (connect(&endpoint, to_slow, of_slow).await, connect(&endpoint, to_fast, of_fast).await);
                    let mut pushing = std::pin::pin!(push(&one, slow.1));
                    let overtakes = tokio::select! {
                        biased;
                        () = &mut pushing => false,
                        () = push(&other, fast.1) => true,
                    };
                    if overtakes {
                        pushing.await;
                    }
                    one.close(0u32.into(), b"");
                    other.close(0u32.into(), b"");
                    endpoint.wait_idle().await;
                    overtakes
                });
                slow_server.join().unwrap();
                fast_server.join().unwrap();
                overtakes
            }

            fn endpoint(
                bound: Bound,
                server: Option<quic::ServerConfig>,
            ) -> (quic::Endpoint, Option<backwater_udp::UdpSocket>) {
                let (config, runtime) = (quic::EndpointConfig::default(), Arc::new(quic::TokioRuntime));
                match bound {
                    Bound::Stock(socket) => (quic::Endpoint::new(config, server, socket, runtime).unwrap(), None),
                    Bound::Backwater(socket) => {
                        let wrapped = $wrap::new(backwater_udp::$socket::new(socket.clone()));
                        let made = quic::Endpoint::new_with_abstract_socket(config, server, wrapped, runtime);
                        (made.unwrap(), Some(socket))
                    }
                }
            }
        }
    };
}

quic!(quinn, QuinnSocket, Arc, |statistics| statistics.path.lost_packets);
quic!(noq, NoqSocket, Box, |statistics| statistics.lost_packets);

fn identity() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).unwrap();
    (cert.der().clone(), PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into())
}
