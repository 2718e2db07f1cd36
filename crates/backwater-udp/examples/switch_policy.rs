//! Switches between waiting and dropping while it sends: `cargo run -p backwater-udp --example switch_policy`.
//!
//! It sends to a socket of its own, which takes everything. To see refusals, give it an address behind a slow interface:
//! `… --example switch_policy -- 192.0.2.10:9`. A switch holds for all sockets that share the handle, and for the senders that
//! wait at that moment.

use std::{
    env, io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use backwater_udp::{Backpressure, DropReason, Policy, UdpSocket};

/// How long each policy is in force.
const PERIOD: Duration = Duration::from_millis(200);

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let sink = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let to = match env::args().nth(1) {
        Some(address) => address.parse().map_err(io::Error::other)?,
        None => sink.local_addr()?,
    };
    let flag = Backpressure::new(Policy::default());
    let unspecified = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket =
        UdpSocket::builder().backpressure(flag.clone()).bind(unspecified.parse().map_err(io::Error::other)?)?;

    let sending = tokio::spawn(send_until(socket.clone(), to, Instant::now() + 4 * PERIOD));
    for policy in [Policy::Wait { deadline: Duration::from_millis(50) }, Policy::Drop, Policy::default(), Policy::Drop]
    {
        flag.set(policy);
        let before = socket.stats().snapshot();
        tokio::time::sleep(PERIOD).await;
        let now = socket.stats().snapshot();
        println!(
            "{policy:?}: {} sent, {} dropped for want of room, {} waits",
            now.sent - before.sent,
            now.dropped(DropReason::NoBuffers) - before.dropped(DropReason::NoBuffers),
            now.parked - before.parked,
        );
    }
    sending.await?
}

/// Sends as fast as the system allows.
async fn send_until(socket: UdpSocket, to: SocketAddr, end: Instant) -> io::Result<()> {
    let mut sender = socket.sender();
    while Instant::now() < end {
        match sender.send_to(&[0; 1200], to).await {
            Ok(()) => {}
            // The datagram was dropped, and the socket goes on.
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<DropReason>()) => {
                tokio::task::yield_now().await
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
