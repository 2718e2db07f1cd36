//! Relayed transport addresses: where they come from.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use backwater_stun::AddressFamily;
use backwater_turn::{RelayedAddr, server::PortRequest};
use backwater_udp::{Builder, UdpSocket};

/// Ports that are tried before a client is told that there is none.
const ATTEMPTS: usize = 64;

/// RFC 8656, section 7.2: how long a reserved port is kept.
const RESERVED_FOR: Duration = Duration::from_secs(30);

/// Ports that may be reserved at once.
const MAX_RESERVED: usize = 256;

/// The address that relayed ports are on, and what peers know it as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelayIp {
    pub(crate) bind: IpAddr,
    pub(crate) advertise: IpAddr,
}

/// Hands out ports. One for the process: a reservation may be claimed on another thread than it was made on.
pub(crate) struct Ports {
    pub(crate) v4: Option<RelayIp>,
    pub(crate) v6: Option<RelayIp>,
    pub(crate) range: RangeInclusive<u16>,
    reserved: Mutex<HashMap<[u8; 8], Reserved>>,
}

struct Reserved {
    socket: std::net::UdpSocket,
    until: Instant,
}

/// A port that was handed out.
pub(crate) struct Bound {
    pub(crate) socket: UdpSocket,
    pub(crate) relayed: RelayedAddr,
    pub(crate) token: Option<[u8; 8]>,
}

impl Ports {
    pub(crate) fn new(v4: Option<RelayIp>, v6: Option<RelayIp>, range: RangeInclusive<u16>) -> Self {
        Self { v4, v6, range, reserved: Mutex::default() }
    }

    pub(crate) fn bind(
        &self,
        builder: &Builder,
        family: AddressFamily,
        port: PortRequest,
        now: Instant,
    ) -> io::Result<Bound> {
        if let PortRequest::Reserved(token) = port {
            let reserved = self.reserved().remove(&token).filter(|r| r.until > now);
            let socket = reserved.ok_or(io::ErrorKind::NotFound)?.socket;
            return self.bound(builder.from_std(socket)?, None);
        }
        let ip = match family {
            AddressFamily::Ipv4 => self.v4,
            AddressFamily::Ipv6 => self.v6,
        };
        let ip = ip.ok_or(io::ErrorKind::AddrNotAvailable)?.bind;
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..ATTEMPTS {
            match self.try_bind(builder, ip, port, now) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = e,
                result => return result,
            }
        }
        Err(last)
    }

    /// Closes the reserved ports that nobody has claimed.
    pub(crate) fn expire(&self, now: Instant) {
        self.reserved().retain(|_, r| r.until > now);
    }

    fn try_bind(&self, builder: &Builder, ip: IpAddr, port: PortRequest, now: Instant) -> io::Result<Bound> {
        let random = fastrand::u16(self.range.clone());
        match port {
            PortRequest::Any | PortRequest::Reserved(_) => self.bound(builder.bind(SocketAddr::new(ip, random))?, None),
            PortRequest::Even { reserve_next } => {
                let even = if random.is_multiple_of(2) { random } else { random ^ 1 };
                let next = even | 1;
                if !self.range.contains(&even) || !self.range.contains(&next) {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                let socket = builder.bind(SocketAddr::new(ip, even))?;
                let token = if reserve_next { Some(self.reserve(SocketAddr::new(ip, next), now)?) } else { None };
                self.bound(socket, token)
            }
        }
    }

    fn reserve(&self, addr: SocketAddr, now: Instant) -> io::Result<[u8; 8]> {
        let mut token = [0; 8];
        getrandom::fill(&mut token)?;
        let mut reserved = self.reserved();
        reserved.retain(|_, r| r.until > now);
        if reserved.len() >= MAX_RESERVED {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let socket = std::net::UdpSocket::bind(addr)?;
        reserved.insert(token, Reserved { socket, until: now + RESERVED_FOR });
        Ok(token)
    }

    fn bound(&self, socket: UdpSocket, token: Option<[u8; 8]>) -> io::Result<Bound> {
        let mut relayed = socket.local_addr();
        let ip = if relayed.is_ipv4() { self.v4 } else { self.v6 };
        relayed.set_ip(ip.ok_or(io::ErrorKind::AddrNotAvailable)?.advertise);
        Ok(Bound { socket, relayed: RelayedAddr(relayed), token })
    }

    fn reserved(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 8], Reserved>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(range: RangeInclusive<u16>) -> Ports {
        let ip = IpAddr::from([127, 0, 0, 1]);
        Ports::new(Some(RelayIp { bind: ip, advertise: [192, 0, 2, 1].into() }), None, range)
    }

    fn bind(p: &Ports, port: PortRequest, now: Instant) -> io::Result<Bound> {
        p.bind(&UdpSocket::builder(), AddressFamily::Ipv4, port, now)
    }

    #[tokio::test]
    async fn an_even_port_and_the_one_above_it() {
        let (p, now) = (ports(40_001..=49_000), Instant::now());
        let bound = bind(&p, PortRequest::Even { reserve_next: true }, now).unwrap();
        let port = bound.relayed.0.port();
        assert_eq!((port % 2, bound.relayed.0.ip()), (0, [192, 0, 2, 1].into()));
        assert!(std::net::UdpSocket::bind(("127.0.0.1", port + 1)).is_err(), "set aside");
        let token = bound.token.unwrap();
        let next = bind(&p, PortRequest::Reserved(token), now).unwrap();
        assert_eq!(next.relayed.0.port(), port + 1);
        assert!(bind(&p, PortRequest::Reserved(token), now).is_err(), "only once");
    }

    #[tokio::test]
    async fn a_reservation_lasts_thirty_seconds() {
        let (p, now) = (ports(40_001..=49_000), Instant::now());
        let bound = bind(&p, PortRequest::Even { reserve_next: true }, now).unwrap();
        p.expire(now + RESERVED_FOR);
        std::net::UdpSocket::bind(("127.0.0.1", bound.relayed.0.port() + 1)).unwrap();
        assert!(bind(&p, PortRequest::Reserved(bound.token.unwrap()), now).is_err());
    }

    #[tokio::test]
    async fn ports_run_out() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let p = ports(port..=port);
        assert_eq!(bind(&p, PortRequest::Any, Instant::now()).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        let v6 = p.bind(&UdpSocket::builder(), AddressFamily::Ipv6, PortRequest::Any, Instant::now());
        assert_eq!(v6.err().unwrap().kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[tokio::test]
    async fn reservations_are_bounded() {
        let (p, now) = (ports(30_000..=65_535), Instant::now());
        let mut sockets = Vec::new();
        for _ in 0..MAX_RESERVED {
            sockets.push(bind(&p, PortRequest::Even { reserve_next: true }, now).unwrap());
        }
        assert!(bind(&p, PortRequest::Even { reserve_next: true }, now).is_err());
        assert!(bind(&p, PortRequest::Even { reserve_next: false }, now).is_ok());
    }
}
