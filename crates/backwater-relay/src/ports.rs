//! Relayed transport addresses: where they come from.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use backwater_stun::AddressFamily;
use backwater_turn::{
    Families, PeerAddr, PerFamily, RelayedAddr, RelayedPorts,
    server::{PortRequest, RESERVED_FOR},
};
use backwater_udp::{UdpSocket, UdpSocketBuilder};

/// Descriptors that no relayed socket takes.
#[cfg(unix)]
const KEPT_DESCRIPTORS: u64 = 8;

/// Ports that others hold and that are come across before a client is told that there is none.
const ATTEMPTS: usize = 64;

/// Random ports that are tried before the next free one is looked for: with half of the ports taken, one allocation in 256
/// gets that.
const GUESSES: usize = 8;

/// Ports that may be reserved at once.
const MAX_RESERVED: usize = 256;

/// The address that relayed ports are on, and what peers know it as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelayIp {
    pub(crate) bind: IpAddr,
    pub(crate) advertise: IpAddr,
}

/// As `10.0.0.10 → 192.0.2.10`, or one address if peers know it as that.
impl fmt::Display for RelayIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bind, advertise } = self;
        if bind == advertise { bind.fmt(f) } else { write!(f, "{bind} → {advertise}") }
    }
}

impl RelayIp {
    /// Returns the address that this host reaches its own sockets at.
    fn local(&self) -> IpAddr {
        match self.bind {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            IpAddr::V4(_) | IpAddr::V6(_) => self.bind,
        }
    }
}

/// Hands out ports. One for the process: a reservation may be claimed on another thread than it was made on.
pub(crate) struct Ports {
    ips: PerFamily<Option<RelayIp>>,
    range: RangeInclusive<u16>,
    taken: PerFamily<Taken>,
    /// Those of the taken ones that are ours.
    relayed: Arc<RelayedPorts>,
    reserved: Mutex<HashMap<[u8; 8], Reserved>>,
}

/// A bit for each port that is not to be had: ours, or out of the range.
struct Taken(Box<[AtomicU64]>);

/// A port that is ours until this is dropped.
pub(crate) struct Lease {
    ports: Arc<Ports>,
    family: AddressFamily,
    port: u16,
}

struct Reserved {
    socket: std::net::UdpSocket,
    lease: Lease,
    until: Instant,
}

/// A port that was handed out.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: UdpSocket,
    pub(crate) lease: Lease,
    pub(crate) relayed: RelayedAddr,
}

/// The sockets of an allocation, and what the next port is reserved under.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) sockets: PerFamily<Option<Bound>>,
    pub(crate) token: Option<[u8; 8]>,
}

/// Whether an address is one of this host's: the system binds no socket to any other. It knows more of them than the
/// interfaces have, such as all of 127.0.0.0/8 and of prefixes that are routed to this host.
///
/// Where `net.ipv4.ip_nonlocal_bind` is set, every address counts as this host's.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    // Without a descriptor to find it out, it is better taken for one.
    !matches!(std::net::UdpSocket::bind((ip, 0)), Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable)
}

impl Ports {
    pub(crate) fn new(
        v4: Option<RelayIp>,
        v6: Option<RelayIp>,
        range: RangeInclusive<u16>,
        relayed: Arc<RelayedPorts>,
    ) -> Arc<Self> {
        let taken = PerFamily { v4: Taken::all_but(&range), v6: Taken::all_but(&range) };
        Arc::new(Self { ips: PerFamily { v4, v6 }, range, taken, relayed, reserved: Mutex::default() })
    }

    /// Binds a socket of each family, or of as many as can be had.
    ///
    /// # Errors
    /// If it is none, what stood in the way of the last.
    pub(crate) fn bind(
        self: &Arc<Self>,
        builder: &UdpSocketBuilder,
        families: Families,
        port: PortRequest,
        now: Instant,
    ) -> io::Result<Sockets> {
        let mut found = Sockets { sockets: PerFamily::default(), token: None };
        if let PortRequest::Reserved(token) = port {
            let reserved = self.reserved().remove(&token).filter(|r| r.until > now);
            let Reserved { socket, lease, .. } = reserved.ok_or(io::ErrorKind::NotFound)?;
            let family = lease.family;
            *found.sockets.get_mut(family) = Some(self.bound(builder.from_std(socket)?, lease)?);
            return Ok(found);
        }
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for family in families.iter() {
            match self.bind_one(builder, family, port, now) {
                Ok((bound, token)) => {
                    *found.sockets.get_mut(family) = Some(bound);
                    found.token = token;
                }
                Err(error) => last = error,
            }
        }
        if found.sockets.v4.is_none() && found.sockets.v6.is_none() { Err(last) } else { Ok(found) }
    }

    /// Closes the reserved ports that nobody has claimed.
    pub(crate) fn expire(&self, now: Instant) {
        self.reserved().retain(|_, r| r.until > now);
    }

    fn bind_one(
        self: &Arc<Self>,
        builder: &UdpSocketBuilder,
        family: AddressFamily,
        port: PortRequest,
        now: Instant,
    ) -> io::Result<(Bound, Option<[u8; 8]>)> {
        let ip = self.ips.get(family).ok_or(io::ErrorKind::AddrNotAvailable)?.bind;
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        // The first ports of a pair are looked for, when a pair is wanted.
        let (even, pair) = match port {
            PortRequest::Even { reserve_next } => (true, reserve_next),
            PortRequest::Any | PortRequest::Reserved(_) => (false, false),
        };
        for _ in 0..ATTEMPTS {
            let Some(lease) = self.lease(family, even, pair)? else { break };
            let result = builder.bind(SocketAddr::new(ip, lease.port)).and_then(|socket| {
                keep_descriptors(&socket)?;
                let token = pair.then(|| self.reserve(ip, lease.port + 1, now)).transpose()?;
                Ok((socket, token))
            });
            match result {
                Ok((socket, token)) => return Ok((self.bound(socket, lease)?, token)),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = e,
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }

    /// A free port, each as likely as any other, so that a client does not learn from its own ports which ones others have.
    /// Where few are free: the first one from a random one on.
    fn lease(self: &Arc<Self>, family: AddressFamily, even: bool, pair: bool) -> io::Result<Option<Lease>> {
        let taken = self.taken.get(family);
        let mut random = [[0; 4]; GUESSES];
        getrandom::fill(random.as_flattened_mut())?;
        let count = u32::from(self.range.end() - self.range.start()) + 1;
        // A remainder of 32 bits is uniform but for one part in 2^16.
        let guesses = random.map(|bytes| self.range.start() + (u32::from_le_bytes(bytes) % count) as u16);
        let found = guesses
            .into_iter()
            .map(|port| if even { port & !1 } else { port })
            .find(|&port| taken.take_this(port, pair));
        let port = found.or_else(|| taken.take(guesses[0], even, pair));
        Ok(port.map(|port| self.own(family, port)))
    }

    /// A port that has just been taken.
    fn own(self: &Arc<Self>, family: AddressFamily, port: u16) -> Lease {
        let lease = Lease { ports: self.clone(), family, port };
        self.relayed(&lease).into_iter().for_each(|addr| self.relayed.insert(addr));
        lease
    }

    fn reserve(self: &Arc<Self>, ip: IpAddr, port: u16, now: Instant) -> io::Result<[u8; 8]> {
        let mut token = [0; 8];
        getrandom::fill(&mut token)?;
        let family = AddressFamily::of(&(ip, port).into());
        if !self.taken.get(family).set(port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let lease = self.own(family, port);
        // Bound before the lock, and what is closed is closed after it: a lease is given back there.
        let socket = std::net::UdpSocket::bind((ip, port))?;
        keep_descriptors(&socket)?;
        let mut reserved = self.reserved();
        let old: Vec<_> = reserved.extract_if(|_, r| r.until <= now).collect();
        let full = reserved.len() >= MAX_RESERVED;
        if !full {
            reserved.insert(token, Reserved { socket, lease, until: now + RESERVED_FOR });
        }
        drop(reserved);
        drop(old);
        if full { Err(io::ErrorKind::QuotaExceeded.into()) } else { Ok(token) }
    }

    /// What peers know a port as.
    pub(crate) fn relayed(&self, lease: &Lease) -> Option<RelayedAddr> {
        let ip = self.ips.get(lease.family).as_ref()?.advertise;
        Some(RelayedAddr((ip, lease.port).into()))
    }

    /// Returns the port of a peer whose IP address is the relay's own, as peers know it or as this host does.
    #[inline]
    pub(crate) fn own_port(&self, peer: PeerAddr) -> Option<u16> {
        let own = self.ips.get(AddressFamily::of(&peer.0)).as_ref()?;
        (own.advertise == peer.0.ip() || own.bind == peer.0.ip()).then(|| peer.0.port())
    }

    /// Returns the address at which this host reaches a relayed address of the relay's own, whatever is outside of the host.
    pub(crate) fn local(&self, peer: PeerAddr) -> Option<SocketAddr> {
        let port = self.own_port(peer).filter(|_| self.relayed.contains(peer.0))?;
        Some((self.ips.get(AddressFamily::of(&peer.0)).as_ref()?.local(), port).into())
    }

    /// Returns what peers know an address as: that of a relayed port is translated, any other stays as it is.
    #[inline]
    pub(crate) fn advertised(&self, addr: SocketAddr) -> PeerAddr {
        let family = AddressFamily::of(&addr);
        let translated = match self.ips.get(family) {
            Some(own) if own.local() == addr.ip() && self.relayed.contains(addr) => own.advertise,
            _ => addr.ip(),
        };
        PeerAddr((translated, addr.port()).into())
    }

    fn bound(&self, socket: UdpSocket, lease: Lease) -> io::Result<Bound> {
        let relayed = self.relayed(&lease).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Bound { socket, relayed, lease })
    }

    fn reserved(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 8], Reserved>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a socket that takes one of the last descriptors: the administration answers also when clients get no more.
#[cfg(unix)]
pub(crate) fn keep_descriptors(socket: &impl std::os::fd::AsRawFd) -> io::Result<()> {
    use rustix::process::{Resource, getrlimit};
    static LIMIT: LazyLock<u64> = LazyLock::new(|| getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX));
    // The system gives the lowest number that is free.
    let is_kept = (socket.as_raw_fd() as u64).saturating_add(KEPT_DESCRIPTORS) >= *LIMIT;
    if is_kept { Err(rustix::io::Errno::MFILE.into()) } else { Ok(()) }
}

#[cfg(not(unix))]
pub(crate) fn keep_descriptors<T>(_: &T) -> io::Result<()> {
    Ok(())
}

/// Returns what an operator can do about a port that could not be bound; nothing if it is the client's own affair.
pub(crate) fn remedy(error: &io::Error) -> Option<&'static str> {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::QuotaExceeded) {
        // A reservation that is not there (any more), or one too many.
        None
    } else if kind == io::ErrorKind::AddrInUse {
        Some("all ports are taken: widen the range ports, or bound each user by max-allocations-per-user")
    } else if kind == io::ErrorKind::AddrNotAvailable {
        Some("relay-address is no address of this host any more: add it to an interface again")
    } else if no_descriptor(error) {
        Some("raise the limit of descriptors (systemd: LimitNOFILE=, a shell: ulimit -n, the kernel: fs.file-max)")
    } else {
        Some("the system has no room for another socket: the error says of what")
    }
}

#[cfg(unix)]
pub(crate) fn no_descriptor(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(not(unix))]
pub(crate) fn no_descriptor(_: &io::Error) -> bool {
    false
}

impl Taken {
    const EVEN: u64 = 0x5555_5555_5555_5555;

    fn all_but(range: &RangeInclusive<u16>) -> Self {
        let word = |word: u16| {
            let bit = |bit: u16| u64::from(!range.contains(&(word * 64 + bit))) << bit;
            AtomicU64::new((0..64).map(bit).sum())
        };
        Self((0..1024).map(word).collect())
    }

    /// Takes the first port from `from` on, and then from the start; of a pair, only the lower one.
    fn take(&self, from: u16, even: bool, pair: bool) -> Option<u16> {
        let first = usize::from(from / 64);
        // The word of `from` comes twice: at first without the ports before it, at last with them.
        let words = (first..1024).chain(0..=first).enumerate();
        for (step, index) in words {
            let word = self.0.get(index)?;
            let mut free = !word.load(Relaxed);
            if pair {
                // An even port's neighbour is in the same word.
                free &= free >> 1;
            }
            if even || pair {
                free &= Self::EVEN;
            }
            if step == 0 {
                free &= u64::MAX << (from % 64);
            }
            while free != 0 {
                let port = (index as u16) * 64 + free.trailing_zeros() as u16;
                if self.set(port) {
                    return Some(port);
                }
                free &= free - 1;
            }
        }
        None
    }

    /// Takes this port if it is free; of a pair, if the one above it is free too.
    fn take_this(&self, port: u16, pair: bool) -> bool {
        let is_taken = |port: u16| {
            self.0.get(usize::from(port / 64)).is_none_or(|word| word.load(Relaxed) & (1 << (port % 64)) != 0)
        };
        !(pair && is_taken(port | 1)) && self.set(port)
    }

    /// Returns whether it was free.
    fn set(&self, port: u16) -> bool {
        let bit = 1 << (port % 64);
        self.0.get(usize::from(port / 64)).is_some_and(|word| word.fetch_or(bit, Relaxed) & bit == 0)
    }

    fn clear(&self, port: u16) {
        if let Some(word) = self.0.get(usize::from(port / 64)) {
            word.fetch_and(!(1 << (port % 64)), Relaxed);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ports.relayed(self).into_iter().for_each(|addr| self.ports.relayed.remove(addr));
        self.ports.taken.get(self.family).clear(self.port);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.port).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Families = Families { v4: true, v6: false };
    const PAIR: PortRequest = PortRequest::Even { reserve_next: true };

    fn ports(range: RangeInclusive<u16>) -> Arc<Ports> {
        let ip = IpAddr::from([127, 0, 0, 1]);
        Ports::new(Some(RelayIp { bind: ip, advertise: [192, 0, 2, 1].into() }), None, range, Arc::default())
    }

    fn bind(p: &Arc<Ports>, port: PortRequest, now: Instant) -> io::Result<(Bound, Option<[u8; 8]>)> {
        let Sockets { sockets, token } = p.bind(&UdpSocket::builder(), V4, port, now)?;
        Ok((sockets.v4.unwrap(), token))
    }

    #[tokio::test]
    async fn an_even_port_and_the_one_above_it() {
        let (p, now) = (ports(40_001..=49_000), Instant::now());
        let (bound, token) = bind(&p, PAIR, now).unwrap();
        let port = bound.relayed.0.port();
        assert_eq!((port % 2, bound.relayed.0.ip()), (0, [192, 0, 2, 1].into()));
        assert!(std::net::UdpSocket::bind(("127.0.0.1", port + 1)).is_err(), "set aside");
        let (next, _) = bind(&p, PortRequest::Reserved(token.unwrap()), now).unwrap();
        assert_eq!(next.relayed.0.port(), port + 1);
        assert!(bind(&p, PortRequest::Reserved(token.unwrap()), now).is_err(), "only once");
    }

    #[tokio::test]
    async fn a_reservation_lasts_thirty_seconds() {
        let (p, now) = (ports(40_001..=49_000), Instant::now());
        let (bound, token) = bind(&p, PAIR, now).unwrap();
        p.expire(now + RESERVED_FOR);
        std::net::UdpSocket::bind(("127.0.0.1", bound.relayed.0.port() + 1)).unwrap();
        assert!(p.taken.v4.set(bound.relayed.0.port() + 1), "given back");
        assert!(bind(&p, PortRequest::Reserved(token.unwrap()), now).is_err());
    }

    #[tokio::test]
    async fn ports_run_out() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let p = ports(port..=port);
        let now = Instant::now();
        assert_eq!(bind(&p, PortRequest::Any, now).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        bind(&p, PortRequest::Any, now).unwrap();
        bind(&p, PortRequest::Any, now).unwrap();
        let v6 = p.bind(&UdpSocket::builder(), Families { v4: false, v6: true }, PortRequest::Any, now);
        assert_eq!(v6.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }

    /// Of two families, the one that can be had.
    #[tokio::test]
    async fn one_family_of_two() {
        let (p, now) = (ports(40_001..=49_000), Instant::now());
        let both = Families { v4: true, v6: true };
        let found = p.bind(&UdpSocket::builder(), both, PortRequest::Any, now).unwrap();
        assert!(found.sockets.v4.is_some() && found.sockets.v6.is_none());
    }

    #[tokio::test]
    async fn reservations_are_bounded() {
        let (p, now) = (ports(30_000..=65_535), Instant::now());
        let mut sockets = Vec::new();
        for _ in 0..MAX_RESERVED {
            sockets.push(bind(&p, PAIR, now).unwrap());
        }
        assert!(bind(&p, PAIR, now).is_err());
        assert!(bind(&p, PortRequest::Even { reserve_next: false }, now).is_ok());
    }

    #[tokio::test]
    async fn a_relayed_port_is_known_by_its_advertised_and_its_local_address() {
        let (p, now) = (ports(40_001..=49_000), Instant::now());
        let (bound, _) = bind(&p, PortRequest::Any, now).unwrap();
        let relayed = bound.relayed.0;
        let local = SocketAddr::from(([127, 0, 0, 1], relayed.port()));
        assert_eq!((p.local(PeerAddr(relayed)), p.local(PeerAddr(local))), (Some(local), Some(local)));
        assert_eq!((p.advertised(local), p.advertised(relayed)), (PeerAddr(relayed), PeerAddr(relayed)));
        drop(bound);
        for port in [relayed.port(), 40_000, 53] {
            let (local, relayed) = (SocketAddr::new(local.ip(), port), SocketAddr::new(relayed.ip(), port));
            assert_eq!((p.local(PeerAddr(relayed)), p.advertised(local)), (None, PeerAddr(local)), "not leased");
        }
    }

    /// One who has many ports in a row must not draw the others' ports to the end of the row, and no port follows from another.
    #[test]
    fn a_port_does_not_follow_from_the_ports_of_others() {
        let p = ports(20_000..=29_999);
        (20_000..25_000).for_each(|port| assert!(p.taken.v4.set(port)));
        let leases: Vec<_> = (0..200).map(|_| p.lease(AddressFamily::Ipv4, false, false).unwrap().unwrap()).collect();
        let near = leases.iter().filter(|lease| lease.port < 25_500).count();
        assert!(near < 80, "{near} of 200 ports are in the next tenth of what is free");
        let mut steps: Vec<_> = leases.windows(2).map(|w| i32::from(w[1].port) - i32::from(w[0].port)).collect();
        steps.sort_unstable();
        steps.dedup();
        assert!(steps.len() > 150, "{} steps", steps.len());
    }

    /// Every port of a range is found, wherever the search begins, and nothing beside it.
    #[test]
    fn a_range_is_used_to_its_last_port() {
        for range in [100..=100, 63..=64, 1..=1000, 60_000..=65_535] {
            for from in [*range.start(), *range.end(), *range.start() / 2 + *range.end() / 2] {
                let taken = Taken::all_but(&range);
                let mut found: Vec<_> = std::iter::from_fn(|| taken.take(from, false, false)).collect();
                found.sort_unstable();
                assert_eq!(found, range.clone().collect::<Vec<_>>());
                taken.clear(from);
                assert_eq!(taken.take(*range.end(), false, false), Some(from));
            }
            let taken = Taken::all_but(&range);
            let found: Vec<_> = std::iter::from_fn(|| taken.take(*range.start(), true, false)).collect();
            assert_eq!(found.len(), range.clone().filter(|port| port % 2 == 0).count());
            assert!(found.iter().all(|port| port % 2 == 0));
        }
        let taken = Taken::all_but(&(101..=106));
        assert_eq!(taken.take(101, true, true), Some(102));
        assert!(taken.set(105));
        assert_eq!(taken.take(101, true, true), None, "106 has no neighbour, and that of 104 is gone");
    }
}
