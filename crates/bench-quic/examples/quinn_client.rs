//! A QUIC client on Backwater's socket: `cargo run --manifest-path crates/bench-quic/Cargo.toml --example quinn_client`.
//!
//! It sends a megabyte to an echo server on loopback, which it starts itself, and prints what became of its datagrams.

use std::{error::Error, sync::Arc};

use backwater_udp::QuinnSocket;
use quinn::{ClientConfig, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};

const MEGABYTE: usize = 1 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (server, certificate) = server()?;
    let address = server.local_addr()?;
    tokio::spawn(echo(server));

    let socket = Arc::new(QuinnSocket::bind("127.0.0.1:0".parse()?)?);
    let counters = socket.socket().clone();
    let mut endpoint =
        Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    endpoint.set_default_client_config(ClientConfig::with_root_certificates(Arc::new(roots))?);

    let connection = endpoint.connect(address, "localhost")?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let sending = tokio::spawn(async move {
        send.write_all(&vec![7; MEGABYTE]).await?;
        send.finish().map_err(quinn::WriteError::from)
    });
    let answer = receive.read_to_end(2 * MEGABYTE).await?;
    sending.await??;
    connection.close(0u32.into(), b"done");
    // Until what is held has gone.
    endpoint.wait_idle().await;

    let stats = counters.stats().snapshot();
    println!("{} bytes came back", answer.len());
    println!("datagrams: {} accepted, {} sent, {} dropped", stats.accepted, stats.sent, stats.dropped_total());
    Ok(())
}

/// An endpoint with a certificate of its own.
fn server() -> Result<(Endpoint, CertificateDer<'static>), Box<dyn Error>> {
    let identity = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
    let certificate = identity.cert.der().clone();
    let config = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
    Ok((Endpoint::server(config, "127.0.0.1:0".parse()?)?, certificate))
}

/// Sends the first stream of the first connection back.
async fn echo(endpoint: Endpoint) -> Option<()> {
    let connection = endpoint.accept().await?.await.ok()?;
    let (mut send, mut receive) = connection.accept_bi().await.ok()?;
    let received = receive.read_to_end(2 * MEGABYTE).await.ok()?;
    send.write_all(&received).await.ok()?;
    send.finish().ok()?;
    connection.closed().await;
    Some(())
}
