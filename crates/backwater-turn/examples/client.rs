//! A TURN client on a blocking socket: sends a line to a peer through a relay, and returns what comes back.
//!
//! ```text
//! cargo run -p backwater-turn --example client -- 127.0.0.1:3478 alice secret 127.0.0.1:7000
//! ```

use std::{error::Error, net::SocketAddr, net::UdpSocket, time::Duration, time::Instant};

use backwater_turn::client::{Client, Config, Credential, Event, Input};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [server, user, password, peer] = &args[..] else { return Err("SERVER USER PASSWORD PEER".into()) };
    let answer = ask(server.parse()?, Credential::new(user, password)?, peer.parse()?, b"hello")?;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Sends `question` to the peer through the server, and returns the peer's first datagram.
#[allow(clippy::wildcard_enum_match_arm, reason = "the other events are printed")]
pub fn ask(server: SocketAddr, user: Credential, peer: SocketAddr, question: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let (socket, mut seed) = (UdpSocket::bind(any)?, [0; 64]);
    getrandom::fill(&mut seed)?;
    let mut client = Client::new(Instant::now(), Config::new(server, user, seed));
    client.bind(Instant::now(), peer)?;
    let (mut buffer, mut answer) = ([0; 2000], Vec::new());
    loop {
        while let Some(transmit) = client.poll_transmit(Instant::now()) {
            socket.send_to(transmit.bytes, transmit.server)?;
        }
        while let Some(event) = client.poll_event() {
            match event {
                Event::Bound { channel, .. } => {
                    // Four bytes in front of the payload are the header's.
                    let mut datagram = [&[0; 4], question].concat();
                    client.send(Instant::now(), channel, &mut datagram)?;
                    socket.send_to(&datagram, client.server())?;
                }
                Event::Closed => return Ok(answer),
                Event::Failed(why) => return Err(why.into()),
                Event::PeerRefused { code, reason, .. } => return Err(format!("{code} {reason}").into()),
                event => println!("{event:?}"),
            }
        }
        let wait = client.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
        socket.set_read_timeout(Some(wait.unwrap_or_default().max(Duration::from_millis(1))))?;
        // Nothing within this time, or an ICMP message: the client sends again.
        if let Ok((len, from)) = socket.recv_from(&mut buffer)
            && let Input::Data { payload, .. } = client.handle_input(Instant::now(), from, &buffer[..len])
        {
            answer = buffer[payload].to_vec();
            client.close(Instant::now());
        }
        client.handle_timeout(Instant::now());
    }
}
