//! The addresses of the relays, in the order in which they are tried: by their round-trip time.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use backwater_stun::{Class, Message, Method, TransactionId, Writer};
use tokio::sync::mpsc;

use crate::{config::Endpoint, engine::endpoints::canonical};

/// How long the lookup of a name may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long servers have to answer the Binding request that measures the round-trip time.
const MEASUREMENT: Duration = Duration::from_millis(500);

/// Addresses that are tried, at most.
const MAX_ADDRESSES: usize = 16;

/// The result of a lookup.
pub(super) struct Resolved {
    pub(super) server: Endpoint,
    pub(super) result: io::Result<Vec<SocketAddr>>,
}

/// The addresses of the servers.
#[derive(Default)]
pub(super) struct Servers {
    servers: Vec<Server>,
    /// Lookups under way.
    lookups: usize,
    /// When the measurement began.
    measuring: Option<Instant>,
    is_measured: bool,
    current: usize,
}

struct Server {
    address: SocketAddr,
    /// Of the Binding request.
    id: TransactionId,
    rtt: Option<Duration>,
}

impl Servers {
    /// Looks the servers up anew.
    pub(super) fn begin(&mut self, servers: &[Endpoint], results: &mpsc::Sender<Resolved>) {
        *self = Self::default();
        for server in servers {
            match server {
                Endpoint::Address(address) => self.add(*address),
                Endpoint::Name(name, port) => {
                    self.lookups += 1;
                    let (results, server) = (results.clone(), server.clone());
                    let (name, port) = (name.clone(), *port);
                    tokio::spawn(async move {
                        let lookup = tokio::net::lookup_host((name.as_str(), port));
                        let result = match tokio::time::timeout(PATIENCE, lookup).await {
                            Ok(found) => found.map(Vec::from_iter),
                            Err(_) => Err(io::ErrorKind::TimedOut.into()),
                        };
                        let _ = results.send(Resolved { server, result }).await;
                    });
                }
            }
        }
    }

    /// Takes the result of a lookup.
    ///
    /// # Errors
    /// Why the name has no address.
    pub(super) fn resolved(&mut self, result: io::Result<Vec<SocketAddr>>) -> io::Result<()> {
        self.lookups = self.lookups.saturating_sub(1);
        result?.into_iter().for_each(|address| self.add(canonical(address)));
        Ok(())
    }

    fn add(&mut self, address: SocketAddr) {
        let mut id = [0; 12];
        if self.servers.len() < MAX_ADDRESSES
            && self.servers.iter().all(|server| server.address != address)
            && getrandom::fill(&mut id).is_ok()
        {
            self.servers.push(Server { address, id: TransactionId(id), rtt: None });
        }
    }

    /// Whether the round-trip time to this server is being measured.
    pub(super) fn is_measured(&self, server: SocketAddr) -> bool {
        self.measuring.is_some() && self.servers.iter().any(|other| other.address == server)
    }

    /// Takes a response of a server's, if it is one.
    pub(super) fn measured(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let (Some(since), Ok(message)) = (self.measuring, Message::parse(datagram)) else { return };
        let is_response = message.class() == Class::SuccessResponse && message.method() == Method::BINDING;
        let of = |server: &&mut Server| server.address == from && server.id == message.transaction_id();
        if let Some(server) = self.servers.iter_mut().find(of).filter(|_| is_response) {
            server.rtt.get_or_insert(now.saturating_duration_since(since));
        }
    }

    /// Measures the round-trip times, if there are several servers. Returns whether the order is known.
    pub(super) fn measure(&mut self, now: Instant, mut send: impl FnMut(SocketAddr, &[u8])) -> bool {
        if self.lookups > 0 {
            return false;
        }
        if self.is_measured || self.servers.len() < 2 {
            return true;
        }
        let Some(since) = self.measuring else {
            self.measuring = Some(now);
            for server in &self.servers {
                let mut buffer = [0; 64];
                if let Ok(writer) = Writer::new(&mut buffer, Class::Request, Method::BINDING, server.id) {
                    send(server.address, writer.finish());
                }
            }
            return false;
        };
        let is_over = now.saturating_duration_since(since) >= MEASUREMENT;
        if !is_over && self.servers.iter().any(|server| server.rtt.is_none()) {
            return false;
        }
        (self.measuring, self.is_measured) = (None, true);
        // Those that do not answer are last, in the order of the configuration.
        self.servers.sort_by_key(|server| server.rtt.unwrap_or(Duration::MAX));
        true
    }

    /// Returns when [`measure`](Self::measure) is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.measuring.map(|since| since + MEASUREMENT)
    }

    /// The server to use; `None`: all have failed.
    pub(super) fn current(&self) -> Option<SocketAddr> {
        self.servers.get(self.current).map(|server| server.address)
    }

    /// Whether there is another server to try.
    pub(super) fn has_next(&self) -> bool {
        self.current + 1 < self.servers.len()
    }

    /// Turns to the next server.
    pub(super) fn next(&mut self) {
        self.current += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 3478))
    }

    /// The servers 1, 2 and 3, and the requests that measure them.
    fn measured(now: Instant) -> (Servers, Vec<(SocketAddr, Vec<u8>)>) {
        let (results, _) = mpsc::channel(1);
        let mut servers = Servers::default();
        servers.begin(&[1, 2, 3].map(|n| Endpoint::Address(address(n))), &results);
        let mut requests = Vec::new();
        assert!(!servers.measure(now, |server, request| requests.push((server, request.to_vec()))));
        assert_eq!((requests.len(), servers.poll_timeout()), (3, Some(now + MEASUREMENT)));
        (servers, requests)
    }

    fn response(request: &[u8]) -> Vec<u8> {
        let id = Message::parse(request).unwrap().transaction_id();
        Writer::new(&mut [0; 64], Class::SuccessResponse, Method::BINDING, id).unwrap().finish().to_vec()
    }

    fn order(mut servers: Servers) -> Vec<SocketAddr> {
        let mut order = Vec::new();
        while let Some(server) = servers.current() {
            assert_eq!(servers.has_next(), order.len() < 2);
            order.push(server);
            servers.next();
        }
        order
    }

    #[test]
    fn servers_are_tried_by_their_round_trip_time_and_silent_ones_last() {
        let now = Instant::now();
        let (mut servers, requests) = measured(now);
        servers.measured(now + 10 * MS, address(3), &response(&requests[2].1));
        servers.measured(now + 30 * MS, address(2), &response(&requests[1].1));
        // A copy, and what is said by another one, count nothing.
        servers.measured(now + 40 * MS, address(3), &response(&requests[2].1));
        servers.measured(now + 1 * MS, address(1), &response(&requests[2].1));
        servers.measured(now + 1 * MS, address(1), &requests[0].1);
        servers.measured(now + 1 * MS, address(1), b"no message");
        let none = |_: SocketAddr, _: &[u8]| panic!("measured already");
        assert!(!servers.measure(now + 499 * MS, none));
        assert!(servers.measure(now + 500 * MS, none) && servers.poll_timeout().is_none());
        assert!(servers.measure(now + 900 * MS, none), "the order stays");
        assert_eq!(order(servers), [3, 2, 1].map(address));
    }

    #[test]
    fn measurement_ends_with_the_last_answer() {
        let now = Instant::now();
        let (mut servers, requests) = measured(now);
        for (n, (server, request)) in (1..).zip(&requests) {
            assert!(servers.is_measured(*server));
            servers.measured(now + n * MS, *server, &response(request));
        }
        assert!(servers.measure(now + 4 * MS, |_, _| panic!("measured already")));
        assert!(!servers.is_measured(address(1)));
        assert_eq!(order(servers), [1, 2, 3].map(address));
    }

    #[test]
    fn one_server_is_not_measured_and_addresses_are_bounded() {
        let now = Instant::now();
        let (results, _) = mpsc::channel(1);
        let mut servers = Servers::default();
        servers.begin(&[Endpoint::Address(address(1))], &results);
        assert!(servers.measure(now, |_, _| panic!("it is the only one")));
        let many = (0..=255).map(|n| SocketAddr::from(([198, 51, 100, n], 3478)));
        servers.resolved(Ok(many.collect())).unwrap();
        assert_eq!(servers.servers.len(), MAX_ADDRESSES);
    }
}
