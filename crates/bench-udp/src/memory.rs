//! What a socket and a sender take.

use std::{fs, future::poll_fn, io::IoSlice, mem, task::Poll};

use backwater_udp::{Receiver, Sender, Transmit, UdpSocket};
use tokio::runtime::Runtime;

use crate::{heap, net};

/// How many are made, to level what the runtime allocates in blocks.
const COUNT: i64 = 1024;

/// The lines of the table.
pub(crate) fn measure(runtime: &Runtime) -> Vec<String> {
    let _inside = runtime.enter();
    let mut lines = Vec::new();
    let sockets = std::iter::repeat_with(|| UdpSocket::bind(([127, 0, 0, 1], 0).into()).unwrap());
    let (bytes, sockets) = heap_of(|| sockets.take(COUNT as usize).collect::<Vec<_>>());
    let handle = size_of::<UdpSocket>();
    lines.push(format!("| `UdpSocket` | {handle} | {} | 1 |", bytes - handle as i64));
    let (bytes, senders) = heap_of(|| sockets.iter().map(UdpSocket::sender).collect::<Vec<_>>());
    lines.push(format!("| `Sender` | {} | {} | 0 |", size_of::<Sender>(), bytes - size_of::<Sender>() as i64));
    lines.push(format!("| `Receiver` | {} | 0 | 0 |", size_of::<Receiver>()));
    drop(senders);
    drop(sockets);
    lines.push(parked(runtime).unwrap_or_else(|why| format!("| `Sender` that waits | not measured: {why} | | |")));
    lines
}

/// Bytes for each of what is made, and all of it.
fn heap_of<T>(make: impl FnOnce() -> T) -> (i64, T) {
    let before = heap::bytes();
    let made = make();
    ((heap::bytes() - before) / COUNT, made)
}

/// A sender that the system has refused, behind a queue that lets next to nothing through.
fn parked(runtime: &Runtime) -> Result<String, String> {
    net::tc("qdisc add dev lo root tbf rate 1mbit burst 3k limit 12k")?;
    let (there, descriptors) = (net::socket(), || fs::read_dir("/proc/self/fd").unwrap().count());
    let to = net::address_of(&there);
    let socket = UdpSocket::builder().send_buffer(4096).bind(([127, 0, 0, 1], 0).into()).unwrap();
    let mut sender = socket.sender();
    let payload = [IoSlice::new(&[0; 1200])];
    let (heap_before, before) = (heap::bytes(), descriptors());
    let waits = runtime.block_on(poll_fn(|cx| {
        let mut left = 1000;
        let waits = loop {
            let mut transmit = Transmit::new(to, &payload);
            if sender.poll_send(cx, &mut transmit).is_pending() {
                break true;
            }
            left -= 1;
            if left == 0 {
                break false;
            }
        };
        Poll::Ready(waits)
    }));
    let line = (heap::bytes() - heap_before, descriptors() - before);
    drop(sender);
    net::tc("qdisc del dev lo root")?;
    if !waits {
        return Err("nothing was refused".into());
    }
    Ok(format!("| `Sender` that waits | {} | {} | {} |", mem::size_of::<Sender>(), line.0, line.1))
}
