//! One task that serves many destinations and waits for none: `cargo run -p backwater-udp --example many_destinations`.
//!
//! A publisher sends each message to all its subscribers. A subscriber behind a full path gets its messages late, or loses them
//! after the deadline; the others do not notice. Here the subscribers are tasks of the same program.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    net::SocketAddr,
    time::Duration,
};

use backwater_udp::{DatagramStream, QueueBounds, SendQueue, Transmit, UdpSocket};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

const SUBSCRIBERS: usize = 5;
const MESSAGES: usize = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let loopback = || UdpSocket::bind(([127, 0, 0, 1], 0).into());
    let (mut addresses, mut subscribers) = (Vec::new(), JoinSet::new());
    for _ in 0..SUBSCRIBERS {
        let socket = loopback()?;
        addresses.push(socket.local_addr());
        subscribers.spawn(subscribe(socket));
    }

    // A subscriber may keep 64 KiB waiting, all of them together 1 MiB.
    let bounds = QueueBounds { of_a_key: 64 << 10, of_all: 1 << 20, ..QueueBounds::default() };
    let mut queue = SendQueue::new(loopback()?, bounds);
    publish(&mut queue, &addresses).await?;

    // What still waits is sent, or dropped at its deadline.
    poll_fn(|cx| queue.poll_flush(cx)).await?;
    let received = subscribers.join_all().await.into_iter().sum::<io::Result<usize>>()?;
    let counts = queue.socket().stats().snapshot();
    println!("{} sent, {} dropped, {received} received", counts.sent, counts.dropped_total());
    Ok(())
}

/// Sends each message to every subscriber. The same task does whatever else its program does.
async fn publish(queue: &mut SendQueue, subscribers: &[SocketAddr]) -> io::Result<()> {
    let mut clock = interval(Duration::from_millis(1));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    while number < MESSAGES {
        tokio::select! {
            _ = clock.tick() => {
                let message = format!("message {number}");
                let payload = [IoSlice::new(message.as_bytes())];
                for &subscriber in subscribers {
                    // Returns at once: what the system refuses is copied into the queue of this subscriber.
                    queue.send(subscriber, &mut Transmit::new(subscriber, &payload))?;
                }
                number += 1;
            }
            // Ready at once while nothing waits, so that it is polled only when something does.
            flushed = poll_fn(|cx| queue.poll_flush(cx)), if queue.held() > 0 => flushed?,
        }
    }
    Ok(())
}

/// Receives until all messages have come, or none for a second.
async fn subscribe(socket: UdpSocket) -> io::Result<usize> {
    let mut stream = DatagramStream::new(socket.receiver());
    let mut received = 0;
    while received < MESSAGES {
        match tokio::time::timeout(Duration::from_secs(1), stream.recv()).await {
            Ok(datagram) => {
                datagram?;
                received += 1;
            }
            Err(_) => break,
        }
    }
    Ok(received)
}
