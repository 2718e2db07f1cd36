//! An echo server: `cargo run -p backwater-udp --example echo -- 127.0.0.1:7777`.
//!
//! Each batch that arrives as one (GRO) leaves as one (GSO), from the address it came to. While the system has no room the
//! server waits, and the receive buffer fills: clients lose datagrams before the server's memory grows.

use std::{env, io};

use backwater_udp::{RecvBatch, Transmit, UdpSocket};

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let socket = UdpSocket::bind(address.parse().map_err(io::Error::other)?)?;
    println!("{}", socket.local_addr());

    let (mut receiver, mut sender) = (socket.receiver(), socket.sender());
    let mut batch = RecvBatch::new(8);
    loop {
        receiver.recv(&mut batch).await?;
        for train in batch.gro_batches() {
            let payload = [io::IoSlice::new(train.payload)];
            let mut echo = Transmit::new(train.source, &payload)
                .segment_size(train.segment_size)
                .source(train.local_ip)
                .ecn(train.ecn);
            let report = sender.send(&mut echo).await?;
            if report.dropped.total() > 0 {
                eprintln!("{}: {} datagrams dropped", train.source, report.dropped.total());
            }
        }
    }
}
