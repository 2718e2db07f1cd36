//! What peers see the relayed addresses as, asked of a STUN server (RFC 8489 §13), and what this host runs in.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    time::{Duration, Instant},
};

use backwater_stun::{Class, Message, Method, TransactionId, Writer, XorMappedAddress};
use tracing::{info, warn};

use crate::{Config, ports::RelayIp, relay::StartError};

/// How long each transmission of the request waits for the response: RTO doubles (RFC 8489 §6.2.1), 7.5 seconds in all.
const WAITS: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_millis(1000), Duration::from_millis(2000), Duration::from_millis(4000)];

impl Config {
    /// Asks the STUN server that `external-address` names, if it names one, what peers see the relayed addresses as. Blocks for up to
    /// 7.5 seconds for each family, and for the look-up of the server's name.
    ///
    /// # Errors
    /// [`StartError::External`]: the server cannot be found, or does not answer.
    pub fn find_external(&mut self) -> Result<(), StartError> {
        let Some((host, port)) = &self.external_server else { return Ok(()) };
        let server = format!("{host}:{port}");
        let failed = |error| StartError::External(server.clone(), error);
        let servers: Vec<_> = (&**host, *port).to_socket_addrs().map_err(failed)?.collect();
        let mut found = 0;
        for ip in [&mut self.relay_v4, &mut self.relay_v6].into_iter().flatten() {
            let Some(&server) = servers.iter().find(|server| server.is_ipv4() == ip.bind.is_ipv4()) else { continue };
            let (local, mapped) = ask(ip.bind, server).map_err(failed)?;
            say(local, mapped);
            *ip = RelayIp { advertise: mapped.ip(), ..*ip };
            found += 1;
        }
        // Nobody could be told the wildcard.
        let wildcard = [self.relay_v4, self.relay_v6].into_iter().flatten().any(|ip| ip.advertise.is_unspecified());
        if found == 0 || wildcard {
            let problem = "the server's name has no address of the family";
            return Err(failed(io::Error::new(io::ErrorKind::AddrNotAvailable, problem)));
        }
        Ok(())
    }
}

/// Returns the address of a socket, and what the server sees it as.
fn ask(bind: IpAddr, server: SocketAddr) -> io::Result<(SocketAddr, SocketAddr)> {
    let socket = UdpSocket::bind((bind, 0))?;
    socket.connect(server)?;
    let mut id = [0; 12];
    getrandom::fill(&mut id)?;
    let id = TransactionId(id);
    let mut buffer = [0; 64];
    let request = Writer::new(&mut buffer, Class::Request, Method::BINDING, id).map_err(io::Error::other)?.finish();
    for wait in WAITS {
        // A network that is not up yet, and ICMP errors, may pass.
        let _ = socket.send(request);
        let until = Instant::now() + wait;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            let mut response = [0; 1500];
            match socket.recv(&mut response) {
                Ok(len) => {
                    if let Some(mapped) = response.get(..len).and_then(|response| mapped(response, id)) {
                        return Ok((socket.local_addr()?, mapped));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::thread::sleep(until.saturating_duration_since(Instant::now()));
                }
                // The next one is sent.
                Err(_) => break,
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))
}

/// The mapped address of a response to this request.
fn mapped(response: &[u8], id: TransactionId) -> Option<SocketAddr> {
    let message = Message::parse(response).ok()?;
    let is_answer = message.class() == Class::SuccessResponse && message.method() == Method::BINDING;
    let XorMappedAddress(mapped) = message.get().ok()??;
    let is_one = !mapped.ip().is_unspecified() && !mapped.ip().is_multicast() && mapped.port() != 0;
    (is_answer && is_one && message.transaction_id() == id).then_some(mapped)
}

fn say(local: SocketAddr, mapped: SocketAddr) {
    if local.ip() == mapped.ip() {
        return info!(address = %local.ip(), "no NAT between this host and the STUN server");
    }
    info!(local = %local.ip(), external = %mapped.ip(), "behind a NAT: external-address found by STUN");
    if local.port() != mapped.port() {
        warn!(
            local = %local,
            external = %mapped,
            remedy = "forward the listeners' ports and the range ports to this host, each to the same number",
            "the NAT changes ports: peers do not reach relayed addresses unless their ports are forwarded"
        );
    }
}

/// Returns what kind of container this process is in, by what container managers leave there; `None`: none, or one of another kind.
pub(crate) fn container() -> Option<String> {
    let is_there = |path: &str| std::path::Path::new(path).exists();
    let told = std::env::var("container").ok().filter(|kind| !kind.is_empty());
    let by_systemd = || std::fs::read_to_string("/run/systemd/container").ok();
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        Some("kubernetes".to_owned())
    } else if is_there("/.dockerenv") {
        Some("docker".to_owned())
    } else if let Some(kind) = told.or_else(by_systemd) {
        Some(kind.trim().chars().filter(char::is_ascii_graphic).take(32).collect())
    } else if is_there("/run/.containerenv") {
        Some("podman".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(class: Class, id: TransactionId, mapped: SocketAddr) -> Vec<u8> {
        let mut buffer = [0; 100];
        let mut w = Writer::new(&mut buffer, class, Method::BINDING, id).unwrap();
        w.attribute(&XorMappedAddress(mapped)).unwrap();
        w.finish().to_vec()
    }

    #[test]
    fn only_the_answer_to_the_request_counts() {
        let (id, addr) = (TransactionId([1; 12]), "198.51.100.7:4000".parse().unwrap());
        assert_eq!(mapped(&response(Class::SuccessResponse, id, addr), id), Some(addr));
        assert_eq!(mapped(&response(Class::SuccessResponse, TransactionId([2; 12]), addr), id), None);
        assert_eq!(mapped(&response(Class::ErrorResponse, id, addr), id), None);
        for wrong in ["0.0.0.0:4000", "224.0.0.1:4000", "198.51.100.7:0"] {
            assert_eq!(mapped(&response(Class::SuccessResponse, id, wrong.parse().unwrap()), id), None, "{wrong}");
        }
        assert_eq!(mapped(b"", id), None);
    }

    /// The server answers the second transmission: a datagram may be lost.
    #[test]
    fn request_is_sent_again_until_it_is_answered() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = server.local_addr().unwrap();
        let answering = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            let (first, _) = server.recv_from(&mut buffer).unwrap();
            let first = buffer[..first].to_vec();
            server.send_to(b"nonsense", server.recv_from(&mut buffer).unwrap().1).unwrap();
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..len], first, "the same transaction");
            let id = Message::parse(&first).unwrap().transaction_id();
            server.send_to(&response(Class::SuccessResponse, id, "198.51.100.7:9".parse().unwrap()), from).unwrap();
        });
        let (local, found) = ask([127, 0, 0, 1].into(), addr).unwrap();
        assert_eq!((local.ip(), found), ([127, 0, 0, 1].into(), "198.51.100.7:9".parse().unwrap()));
        answering.join().unwrap();
    }
}
