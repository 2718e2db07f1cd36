//! The addresses at which a peer may be reached, and when its name is resolved.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::config::Endpoint;

/// The time between two resolutions of a name while handshakes fail: it begins with the first, doubles, and ends with the second.
const FIRST_INTERVAL: Duration = Duration::from_secs(5);
const LAST_INTERVAL: Duration = Duration::from_secs(120);

/// Addresses of one name that are tried, at most.
const MAX_ADDRESSES: usize = 16;

/// The addresses of one peer.
#[derive(Debug)]
pub(crate) struct Endpoints {
    configured: Option<Endpoint>,
    /// The configured endpoint's, in the resolver's order (RFC 6724).
    addresses: Vec<SocketAddr>,
    /// Where the last authenticated message came from.
    answered: Option<SocketAddr>,
    /// When the name is to be resolved; `None`: no reason to.
    resolve_at: Option<Instant>,
    interval: Duration,
    is_resolving: bool,
    is_failing: bool,
}

impl Endpoints {
    pub(crate) fn new(configured: Option<Endpoint>) -> Self {
        let addresses = if let Some(Endpoint::Address(address)) = configured { vec![address] } else { Vec::new() };
        Self {
            configured,
            addresses,
            answered: None,
            resolve_at: None,
            interval: FIRST_INTERVAL,
            is_resolving: false,
            is_failing: false,
        }
    }

    /// The address to begin with: the one that answered last, or the first of the configured endpoint.
    pub(crate) fn first(&self) -> Option<SocketAddr> {
        self.candidates().next()
    }

    /// The configured endpoint's name; `None` if it is an address.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.configured {
            Some(Endpoint::Name(name, _)) => Some(name),
            Some(Endpoint::Address(_)) | None => None,
        }
    }

    /// Whether a result of a resolution is due.
    pub(crate) fn is_resolving(&self) -> bool {
        self.is_resolving
    }

    /// Whether handshakes have failed since the peer answered last.
    pub(crate) fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// A handshake with the peer at `current` had no answer. Returns the address to try next; `None` if there is no other.
    pub(crate) fn handshake_failed(&mut self, now: Instant, current: SocketAddr) -> Option<SocketAddr> {
        self.is_failing = true;
        self.resolve_at.get_or_insert(now);
        let after = self.candidates().skip_while(|&address| address != current).nth(1);
        after.or_else(|| self.first()).filter(|&next| next != current)
    }

    /// An authenticated message came from there.
    pub(crate) fn on_answer(&mut self, from: SocketAddr) {
        self.answered = Some(from);
        self.on_relayed_answer();
    }

    /// An authenticated message came by a relay: it says where the relay sees the peer, not where this host would.
    pub(crate) fn on_relayed_answer(&mut self) {
        if self.is_failing {
            (self.is_failing, self.resolve_at, self.interval) = (false, None, FIRST_INTERVAL);
        }
    }

    /// Whether one of the addresses is of IPv6.
    pub(crate) fn has_v6(&self) -> bool {
        self.candidates().any(|address| address.is_ipv6())
    }

    /// Whether no endpoint is configured: it is learnt when the peer calls.
    pub(crate) fn is_learnt(&self) -> bool {
        self.configured.is_none()
    }

    /// Has the name resolved as soon as possible.
    pub(crate) fn resolve_soon(&mut self, now: Instant) {
        self.resolve_at = Some(now);
    }

    /// The name and port to resolve now, if it is time to. The result is due by [`resolved`](Self::resolved).
    pub(crate) fn start_resolving(&mut self, now: Instant) -> Option<(String, u16)> {
        let Some(Endpoint::Name(name, port)) = &self.configured else { return None };
        if self.is_resolving || self.resolve_at.is_none_or(|at| now < at) {
            return None;
        }
        self.is_resolving = true;
        Some((name.clone(), *port))
    }

    /// Takes the result of a resolution. Of a failed one the addresses that are known stay; it is repeated.
    ///
    /// # Errors
    /// Why there is no address.
    pub(crate) fn resolved(&mut self, now: Instant, result: io::Result<Vec<SocketAddr>>) -> io::Result<()> {
        self.is_resolving = false;
        let result = result.and_then(|found| {
            let mut addresses = Vec::new();
            for address in found.into_iter().map(canonical) {
                if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
        });
        // Until the peer answers, it is resolved again: the answer may be an old one.
        if result.is_err() || self.is_failing {
            self.resolve_at = Some(now + self.interval);
            self.interval = (self.interval * 2).min(LAST_INTERVAL);
        } else {
            self.resolve_at = None;
        }
        self.addresses = result?;
        // What answered is not preferred any more if it has stopped to, and is not the name's.
        if self.is_failing && self.answered.is_some_and(|answered| !self.addresses.contains(&answered)) {
            self.answered = None;
        }
        Ok(())
    }

    /// Whether it is one of the addresses to try.
    pub(crate) fn contains(&self, address: SocketAddr) -> bool {
        self.candidates().any(|candidate| candidate == address)
    }

    /// Whether one of the addresses to try has this IP address.
    pub(crate) fn has_ip(&self, ip: IpAddr) -> bool {
        self.candidates().any(|candidate| candidate.ip() == ip)
    }

    fn candidates(&self) -> impl Iterator<Item = SocketAddr> {
        let others = self.addresses.iter().copied().filter(|&address| Some(address) != self.answered);
        self.answered.into_iter().chain(others)
    }
}

/// An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) as the IPv4 address that it stands for.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        // Flow label and scope stay.
        ip if ip.is_ipv6() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

#[cfg(test)]
mod tests;
